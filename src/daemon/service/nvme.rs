//! NVMe controllers: attached, looked at, reset and detached.

use std::rc::Rc;
use std::sync::{Arc, PoisonError};

use zerocopy::FromBytes;

use super::{Answer, DaemonService};
use crate::block::nvme::NvmeController;
use crate::control::types::{
    AttachController, Controller, ControllerError, ControllerHealth, ControllerNames,
    GetControllers, Host, NamedControllers, SelectController, TransportId,
};
use crate::control::{NvmeMethods, RpcError};
use crate::daemon::devices::nvme::{self, Attached};
use crate::daemon::facts::DeviceFacts;
use crate::daemon::site::Site;
use crate::nvme::NvmeError;
use crate::spec::log::{ErrorLogEntry, LogPage, SmartLog};
use crate::spec::status::Status;

/// Entries of the error log that are read: a page of them.
const ERRORS: usize = 64;
/// Zero degrees Celsius in kelvins.
const ZERO_CELSIUS: i32 = 273;

impl DaemonService {
    /// The controller of that name, and its devices.
    fn controller(&self, name: &str) -> Answer<(Attached, Vec<Arc<DeviceFacts>>)> {
        let mut devices = self.devices().clone();
        devices.retain(|device| of_controller(device, name));
        let attached = devices.first().and_then(|device| device.nvme.clone());
        let missing = || RpcError::errno(libc::ENODEV).because(name);
        Ok((attached.ok_or_else(missing)?, devices))
    }

    fn ask_controller<F, Fut, R>(&self, name: &str, ask: F) -> Answer<R>
    where
        F: FnOnce(Rc<NvmeController>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, NvmeError>> + 'static,
        R: Send + 'static,
    {
        let wanted = name.to_owned();
        let run = |site: Rc<Site>| async move {
            match site.controller(&wanted) {
                Some(controller) => Some(ask(controller).await),
                None => None,
            }
        };
        let result = self.sites[0].call_blocking(run).map_err(RpcError::internal)?;
        let result = result.ok_or_else(|| RpcError::errno(libc::ENODEV).because(name))?;
        result.map_err(|error| RpcError::errno(libc::EIO).because(format!("{name}: {error}")))
    }
}

fn of_controller(device: &DeviceFacts, name: &str) -> bool {
    device.nvme.as_ref().is_some_and(|attached| attached.controller == name)
}

fn names(attached: &Attached) -> ControllerNames {
    ControllerNames {
        model_number: attached.identity.model.clone(),
        serial_number: attached.identity.serial.clone(),
        firmware_revision: attached.identity.firmware.clone(),
    }
}

fn wide(number: [zerocopy::little_endian::U64; 2]) -> u128 {
    u128::from(number[0].get()) | u128::from(number[1].get()) << 64
}

fn health(attached: &Attached, smart: &SmartLog) -> ControllerHealth {
    let names = names(attached);
    ControllerHealth {
        model_number: names.model_number,
        serial_number: names.serial_number,
        firmware_revision: names.firmware_revision,
        traddr: attached.place.clone(),
        critical_warning: smart.critical_warning,
        temperature_celsius: i32::from(smart.temperature.get()) - ZERO_CELSIUS,
        available_spare_percentage: smart.available_spare,
        available_spare_threshold_percentage: smart.spare_threshold,
        percentage_used: smart.percentage_used,
        data_units_read: wide(smart.data_units_read),
        data_units_written: wide(smart.data_units_written),
        host_read_commands: wide(smart.host_reads),
        host_write_commands: wide(smart.host_writes),
        controller_busy_time: wide(smart.busy_minutes),
        power_cycles: wide(smart.power_cycles),
        power_on_hours: wide(smart.power_on_hours),
        unsafe_shutdowns: wide(smart.unsafe_shutdowns),
        media_errors: wide(smart.media_errors),
        num_err_log_entries: wide(smart.error_log_entries),
        warning_temperature_time_minutes: smart.warning_minutes.get(),
        critical_composite_temperature_time_minutes: smart.critical_minutes.get(),
    }
}

impl NvmeMethods for DaemonService {
    fn bdev_nvme_attach_controller(&self, parameters: AttachController) -> Answer<Vec<String>> {
        if !parameters.trtype.eq_ignore_ascii_case("pcie") {
            let reason = format!("trtype {:?}: only PCIe is supported", parameters.trtype);
            return Err(RpcError::invalid_parameters(reason));
        }
        let name = parameters.name;
        crate::config::check_name(&name).map_err(RpcError::invalid_parameters)?;
        let address = parameters.traddr.parse().map_err(RpcError::invalid_parameters)?;
        let _turn = self.attaching.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = |device: &Arc<DeviceFacts>| {
            of_controller(device, &name) || device.name.starts_with(&format!("{name}n"))
        };
        if self.devices().iter().any(taken) {
            return Err(RpcError::errno(libc::EEXIST).because(name));
        }
        let found = nvme::attach_on_request(&name, address, &self.sites)
            .map_err(|error| RpcError::errno(libc::EIO).because(format!("{error:#}")))?;
        let mut devices = self.devices();
        let mut bdevs = Vec::new();
        for (bdev, device, attached) in found {
            let facts = DeviceFacts::attached(bdev.clone(), device, attached);
            self.pools.add_device(&bdev, facts.uuid);
            devices.push(Arc::new(facts));
            bdevs.push(bdev);
        }
        drop(devices);
        bdevs.iter().for_each(|bdev| self.pools.open_found(bdev));
        self.pools.attach_parents();
        Ok(bdevs)
    }

    fn bdev_nvme_detach_controller(&self, parameters: SelectController) -> Answer<bool> {
        let _turn = self.attaching.lock().unwrap_or_else(PoisonError::into_inner);
        let (attached, devices) = self.controller(&parameters.name)?;
        let bdevs: Vec<String> = devices.iter().map(|device| device.name.clone()).collect();
        let claimed = bdevs.iter().map(|device| self.pools.claim(device, "detached"));
        let _claimed = claimed.collect::<Result<Vec<_>, _>>().map_err(|user| {
            let reason = format!("{} is in use by {user}", attached.controller);
            RpcError::errno(libc::EBUSY).because(reason)
        })?;
        self.devices().retain(|device| !bdevs.contains(&device.name));
        bdevs.iter().for_each(|bdev| self.pools.remove_device(bdev));
        nvme::detach(&attached.controller, &bdevs, &self.sites)
            .map_err(|error| RpcError::errno(libc::EIO).because(format!("{error:#}")))?;
        tracing::info!(controller = attached.controller, "controller detached");
        Ok(true)
    }

    fn bdev_nvme_get_controllers(
        &self,
        parameters: GetControllers,
    ) -> Answer<Vec<NamedControllers>> {
        let mut all: Vec<NamedControllers> = Vec::new();
        for device in self.devices().iter() {
            let Some(attached) = &device.nvme else { continue };
            if parameters.name.as_ref().is_some_and(|name| *name != attached.controller) {
                continue;
            }
            if let Some(known) = all.iter_mut().find(|known| known.name == attached.controller) {
                known.ctrlrs[0].bdevs.push(device.name.clone());
                continue;
            }
            let emulated = attached.place.starts_with("emulated:");
            let controller = Controller {
                state: if device.failure().is_some() { "failed" } else { "enabled" }.to_owned(),
                trid: TransportId {
                    trtype: if emulated { "CUSTOM" } else { "PCIe" }.to_owned(),
                    traddr: attached.place.clone(),
                },
                cntlid: attached.identity.controller_id,
                host: Host::default(),
                identity: names(attached),
                bdevs: vec![device.name.clone()],
            };
            let name = attached.controller.clone();
            all.push(NamedControllers { name, ctrlrs: vec![controller] });
        }
        match parameters.name {
            Some(name) if all.is_empty() => Err(RpcError::errno(libc::ENODEV).because(name)),
            _ => Ok(all),
        }
    }

    fn bdev_nvme_reset_controller(&self, parameters: SelectController) -> Answer<bool> {
        let (attached, _) = self.controller(&parameters.name)?;
        if parameters.cntlid.is_some_and(|id| id != attached.identity.controller_id) {
            return Err(RpcError::invalid_parameters("no controller of that name has this cntlid"));
        }
        let reset = |controller: Rc<NvmeController>| async move { controller.reset().await };
        self.ask_controller(&parameters.name, reset).map(|()| true)
    }

    fn bdev_nvme_get_controller_health_info(
        &self,
        parameters: SelectController,
    ) -> Answer<ControllerHealth> {
        let (attached, _) = self.controller(&parameters.name)?;
        let log = self.ask_controller(&parameters.name, |controller| async move {
            controller.read_log(LogPage::SMART, size_of::<SmartLog>()).await
        })?;
        let smart = SmartLog::ref_from_bytes(&log)
            .map_err(|_| RpcError::internal("the log page has another length"))?;
        Ok(health(&attached, smart))
    }

    fn lvolfs_nvme_get_error_log(
        &self,
        parameters: SelectController,
    ) -> Answer<Vec<ControllerError>> {
        self.controller(&parameters.name)?;
        let log = self.ask_controller(&parameters.name, |controller| async move {
            controller.read_log(LogPage::ERROR, ERRORS * size_of::<ErrorLogEntry>()).await
        })?;
        let entries = log.chunks_exact(size_of::<ErrorLogEntry>());
        let entries = entries.filter_map(|bytes| ErrorLogEntry::ref_from_bytes(bytes).ok());
        let used = entries.filter(|entry| entry.error_count.get() != 0);
        Ok(used
            .map(|entry| ControllerError {
                error_count: entry.error_count.get(),
                sqid: entry.submission_queue.get(),
                cid: entry.command_id.get(),
                // The phase tag is in bit 0.
                status: Status::from_bits(entry.status.get() >> 1).to_string(),
                lba: entry.lba.get(),
                nsid: entry.namespace.get(),
            })
            .collect())
    }
}
