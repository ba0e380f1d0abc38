//! `lvolfs device`: devices, and the NVMe controllers behind them.

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::json;

use super::ask::{Daemon, done};
use super::pretty;
use super::table::{Table, size};
use crate::control::types::{
    AttachController, ControllerError, ControllerHealth, GetControllers, NamedControllers,
    NoParameters, SelectController,
};

/// What to do with devices.
#[derive(Debug, Subcommand)]
pub enum DeviceVerb {
    /// List the devices
    List,
    /// Show one device; of an NVMe controller also its health and its error log
    Show {
        /// The device, or its controller
        name: String,
    },
    /// Take an NVMe controller on PCI, which vfio-pci must have (mount/bind-vfio)
    ///
    /// Its namespaces become the devices NAMEn1, NAMEn2, ... until it is detached or the daemon
    /// ends.
    Attach {
        /// What to call it
        name: String,
        /// Its PCI address, as lspci -D writes it
        address: String,
    },
    /// Let go of an NVMe controller that no pool uses
    Detach {
        /// The controller
        name: String,
    },
    /// Reset an NVMe controller, after it has written out its cache
    Reset {
        /// The controller
        name: String,
    },
}

impl Daemon {
    pub(super) fn device(&mut self, verb: DeviceVerb, json: bool) -> anyhow::Result<String> {
        match verb {
            DeviceVerb::List => {
                let devices = self.client().lvolfs_status(&NoParameters {})?.devices;
                Ok(if json { pretty(&devices) } else { super::ask::devices(&devices).to_string() })
            }
            DeviceVerb::Show { name } => self.show_device(&name, json),
            DeviceVerb::Attach { name, address } => {
                let trtype = "PCIe".to_owned();
                let attach = AttachController { name, trtype, traddr: address };
                let bdevs = self.client().bdev_nvme_attach_controller(&attach)?;
                Ok(if json { pretty(&bdevs) } else { format!("{}\n", bdevs.join("\n")) })
            }
            DeviceVerb::Detach { name } => {
                let told = format!("{name} is detached");
                self.client().bdev_nvme_detach_controller(&select(name))?;
                Ok(done(json, &told))
            }
            DeviceVerb::Reset { name } => {
                let told = format!("{name} was reset");
                self.client().bdev_nvme_reset_controller(&select(name))?;
                Ok(done(json, &told))
            }
        }
    }

    fn show_device(&mut self, name: &str, json: bool) -> anyhow::Result<String> {
        let status = self.client().lvolfs_status(&NoParameters {})?;
        let device = status.devices.iter().find(|device| device.name == name);
        let all = self.client().bdev_nvme_get_controllers(&GetControllers::default())?;
        let controller = all.iter().find(|known| {
            known.name == name || known.ctrlrs.iter().any(|one| one.bdevs.iter().any(|b| b == name))
        });
        if device.is_none() && controller.is_none() {
            return Err(anyhow::anyhow!("no such device: {name}"));
        }
        let (mut health, mut errors) = (None, Vec::new());
        if let Some(controller) = controller.filter(|known| known.ctrlrs[0].state == "enabled") {
            let select = select(controller.name.clone());
            health = Some(self.client().bdev_nvme_get_controller_health_info(&select)?);
            errors = self.client().lvolfs_nvme_get_error_log(&select)?;
        }
        if json {
            let whole = json!({
                "device": device, "controller": controller, "health": health, "errors": errors
            });
            return Ok(pretty(&whole));
        }
        let mut table = Table::new(&["DEVICE", name]);
        if let Some(device) = device {
            table.fact("state", device.health.word());
            table.fact("reason", device.health.reason().unwrap_or_default());
            table.fact("driver", &device.driver);
            table.fact("size", size(device.size));
            table.fact("block", device.block_size);
            let cache = if device.volatile_write_cache { "volatile" } else { "none" };
            table.fact("write cache", cache);
        }
        if let Some(controller) = controller {
            controller_facts(&mut table, controller).context("a controller without a part")?;
        }
        if let Some(health) = &health {
            health_facts(&mut table, health);
        }
        let log = error_table(&errors);
        Ok(if errors.is_empty() { table.to_string() } else { format!("{table}\n{log}") })
    }
}

fn select(name: String) -> SelectController {
    SelectController { name, cntlid: None }
}

fn controller_facts(table: &mut Table, named: &NamedControllers) -> Option<()> {
    let controller = named.ctrlrs.first()?;
    table.fact("controller", &named.name);
    table.fact("controller state", &controller.state);
    table.fact("address", format!("{} {}", controller.trid.trtype, controller.trid.traddr));
    table.fact("model", &controller.identity.model_number);
    table.fact("serial number", &controller.identity.serial_number);
    table.fact("firmware", &controller.identity.firmware_revision);
    Some(())
}

fn health_facts(table: &mut Table, health: &ControllerHealth) {
    table.fact("critical warnings", format!("{:#04x}", health.critical_warning));
    table.fact("temperature", format!("{} C", health.temperature_celsius));
    let (spare, least) =
        (health.available_spare_percentage, health.available_spare_threshold_percentage);
    table.fact("spare", format!("{spare} % (critical below {least} %)"));
    table.fact("life used", format!("{} %", health.percentage_used));
    table.fact("media errors", health.media_errors);
    table.fact("errors logged", health.num_err_log_entries);
    table.fact("unsafe shutdowns", health.unsafe_shutdowns);
    table.fact("power cycles", health.power_cycles);
    table.fact("power-on hours", health.power_on_hours);
    // A data unit is 512 000 bytes.
    let bytes = |units: u128| size(u64::try_from(units * 512_000).unwrap_or(u64::MAX));
    table.fact("read", bytes(health.data_units_read));
    table.fact("written", bytes(health.data_units_written));
}

fn error_table(errors: &[ControllerError]) -> Table {
    let mut table = Table::new(&["ERROR", "QUEUE", "COMMAND", "NAMESPACE", "LBA", "STATUS"]);
    for error in errors {
        table.row([
            error.error_count.to_string(),
            error.sqid.to_string(),
            error.cid.to_string(),
            error.nsid.to_string(),
            error.lba.to_string(),
            error.status.clone(),
        ]);
    }
    table
}
