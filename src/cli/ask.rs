//! The verbs that ask a running daemon.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::UsageError;
use super::arguments::{CreateVolume, PoolVerb, VolumeReference, VolumeVerb};
use super::pretty;
use super::table::{Table, duration, percent, size};
use crate::config::{Config, DEFAULT_SOCKET, VolumeName, check_name};
use crate::control::status::{
    Counters, DeviceStatus, Health, PoolStatus, ReactorStatus, Status, VolumeStatus,
};
use crate::control::types::{CreateLvol, NoParameters, RenameLvol, ResizeLvol, SelectLvol};
use crate::control::{Client, ClientError};
use crate::units::ByteCount;

/// A daemon to ask.
pub(super) struct Daemon(Client);

/// Connects to the socket that is named, else to that of the configuration that is named, else
/// to the usual one.
pub(super) fn connect(socket: Option<PathBuf>, config: Option<PathBuf>) -> anyhow::Result<Daemon> {
    let socket = match (socket, config) {
        (Some(socket), _) => socket,
        (None, Some(config)) => Config::load(&config)?.control.socket,
        (None, None) => DEFAULT_SOCKET.into(),
    };
    Ok(Daemon(Client::connect(&socket)?))
}

/// The parameters of `rpc`: JSON, or `-` for standard input.
pub(super) fn parameters(text: Option<String>) -> anyhow::Result<Value> {
    let text = match text.as_deref() {
        None => return Ok(Value::Null),
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            text
        }
        Some(text) => text.to_owned(),
    };
    Ok(serde_json::from_str(&text).map_err(UsageError::NotJson)?)
}

impl Daemon {
    /// The connection, for the verbs that have files of their own.
    pub(super) fn client(&mut self) -> &mut Client {
        &mut self.0
    }

    pub(super) fn rpc(&mut self, method: &str, parameters: &Value) -> anyhow::Result<String> {
        let result: Value = self.0.call(method, parameters)?;
        Ok(pretty(&result))
    }

    pub(super) fn status(&mut self, json: bool, counters: bool) -> anyhow::Result<String> {
        let status = self.ask_status()?;
        if json {
            return Ok(pretty(&status));
        }
        let mut text = format!(
            "lvolfs {}, process {}, ready for {}\n",
            status.version,
            status.pid,
            duration(status.uptime_seconds)
        );
        let mut mounts = Table::new(&["MOUNT", "TRANSPORT", "NOTE"]);
        for mount in &status.mounts {
            let note = mount.transport_note.clone().unwrap_or_default();
            mounts.row([mount.path.display().to_string(), mount.transport.clone(), note]);
        }
        let tables = [
            mounts,
            pools(&status.pools),
            volumes(&status, None),
            devices(&status.devices),
            reactors(&status.reactors),
        ];
        for table in tables {
            text += &format!("\n{table}");
        }
        text += &problems(&status);
        if counters {
            text += &format!("\n{}", counter_table(&status));
        }
        Ok(text)
    }

    pub(super) fn pool(&mut self, verb: PoolVerb, json: bool) -> anyhow::Result<String> {
        match verb {
            PoolVerb::List => {
                let status = self.ask_status()?;
                Ok(if json { pretty(&status.pools) } else { pools(&status.pools).to_string() })
            }
            PoolVerb::Scrub(scrub) => self.scrub(scrub, json),
            PoolVerb::Change(change) => self.change_pool(change, json),
            PoolVerb::Show { pool } => {
                let status = self.ask_status()?;
                let found = find_pool(&status, &pool)?;
                if json {
                    return Ok(pretty(found));
                }
                Ok(format!("{}\n{}", facts_of_pool(found), volumes(&status, Some(&pool))))
            }
        }
    }

    pub(super) fn volume(&mut self, verb: VolumeVerb, json: bool) -> anyhow::Result<String> {
        match verb {
            VolumeVerb::List { pool } => self.list_volumes(pool.as_deref(), json),
            VolumeVerb::Show { volume } => {
                let status = self.ask_status()?;
                let found = find_volume(&status, &volume)?;
                Ok(if json {
                    pretty(&volume_as_json(volume.pool(), found))
                } else {
                    facts_of_volume(&volume, found).to_string()
                })
            }
            VolumeVerb::Create(create) => self.create_volume(&create, json),
            VolumeVerb::Resize { volume, size, shrink } => {
                self.resize_volume(&volume, size, shrink)?;
                Ok(done(json, &format!("{volume} has {} now", size.human())))
            }
            VolumeVerb::Rename { volume, new_name } => {
                let (new_name, renamed) = match &volume {
                    VolumeReference::Name(name) => {
                        let new_name = name_in_pool(name, &new_name)?;
                        let renamed = format!("{volume} is {}/{new_name} now", name.pool());
                        (new_name, renamed)
                    }
                    VolumeReference::Uuid(_) => {
                        check_name(&new_name)?;
                        let renamed = format!("{volume} is named {new_name} now");
                        (new_name, renamed)
                    }
                };
                let rename = RenameLvol { old_name: volume.to_string(), new_name };
                self.0.bdev_lvol_rename(&rename)?;
                Ok(done(json, &renamed))
            }
            VolumeVerb::Relative(verb) => self.relative(verb, json),
            VolumeVerb::Space(wanted) => self.set_space(wanted, json),
            VolumeVerb::Delete { volume } => {
                self.0.bdev_lvol_delete(&SelectLvol { name: volume.to_string() })?;
                Ok(done(json, &format!("{volume} is deleted")))
            }
        }
    }

    fn list_volumes(&mut self, pool: Option<&str>, json: bool) -> anyhow::Result<String> {
        let status = self.ask_status()?;
        if let Some(pool) = pool {
            find_pool(&status, pool)?;
        }
        if !json {
            return Ok(volumes(&status, pool).to_string());
        }
        let list: Vec<Value> = status
            .pools
            .iter()
            .filter(|candidate| pool.is_none_or(|pool| candidate.name == pool))
            .flat_map(|pool| pool.volumes.iter().map(|volume| volume_as_json(&pool.name, volume)))
            .collect();
        Ok(pretty(&list))
    }

    fn create_volume(&mut self, create: &CreateVolume, json: bool) -> anyhow::Result<String> {
        let CreateVolume { volume, size, thick } = create;
        let uuid = self.0.bdev_lvol_create(&CreateLvol {
            lvol_name: volume.volume().to_owned(),
            lvs_name: Some(volume.pool().to_owned()),
            size: Some(size.get()),
            thin_provision: Some(!thick),
            ..CreateLvol::default()
        })?;
        Ok(if json {
            pretty(&json!({ "uuid": uuid }))
        } else {
            let kind = if *thick { "thick" } else { "thin" };
            format!("{volume} is there: {}, {kind}, {uuid}\n", size.human())
        })
    }

    fn resize_volume(
        &mut self,
        volume: &VolumeName,
        size: ByteCount,
        shrink: bool,
    ) -> anyhow::Result<()> {
        if !shrink {
            let status = self.ask_status()?;
            let now = ByteCount(find_volume(&status, volume)?.size);
            if size < now {
                bail!(
                    "{volume} has {}, and what is beyond {} would be lost; say --shrink if so",
                    now.human(),
                    size.human()
                );
            }
        }
        let name = volume.to_string();
        self.0.bdev_lvol_resize(&ResizeLvol { name, size: Some(size.get()), size_in_mib: None })?;
        Ok(())
    }

    pub(super) fn ask_status(&mut self) -> Result<Status, ClientError> {
        self.0.lvolfs_status(&NoParameters {})
    }
}

pub(super) fn done(json: bool, text: &str) -> String {
    if json { "true\n".to_owned() } else { format!("{text}\n") }
}

/// The new name without the pool, which must be the volume's.
pub(super) fn name_in_pool(volume: &VolumeName, new_name: &str) -> anyhow::Result<String> {
    let qualified = match new_name.contains('/') {
        true => VolumeName::parse(new_name)?,
        false => VolumeName::parse(&format!("{}/{new_name}", volume.pool()))?,
    };
    if qualified.pool() != volume.pool() {
        let (from, to) = (volume.pool().to_owned(), qualified.pool().to_owned());
        return Err(UsageError::OtherPool { from, to }.into());
    }
    Ok(qualified.volume().to_owned())
}

pub(super) fn find_pool<'a>(status: &'a Status, name: &str) -> anyhow::Result<&'a PoolStatus> {
    let found = status.pools.iter().find(|pool| pool.name == name);
    found.with_context(|| format!("no such pool: {name}"))
}

fn find_volume<'a>(status: &'a Status, name: &VolumeName) -> anyhow::Result<&'a VolumeStatus> {
    let pool = find_pool(status, name.pool())?;
    let found = pool.volumes.iter().find(|volume| volume.name == name.volume());
    found.with_context(|| format!("no such volume: {name}"))
}

fn volume_as_json(pool: &str, volume: &VolumeStatus) -> Value {
    let mut value = json!(volume);
    value["pool"] = pool.into();
    value
}

fn pools(pools: &[PoolStatus]) -> Table {
    let headings = ["POOL", "STATE", "DEVICE", "CLUSTER", "SIZE", "FREE", "VOLUMES"];
    let mut table = Table::new(&headings);
    for pool in pools {
        table.row([
            pool.name.clone(),
            pool.health.word().to_owned(),
            pool.device.clone(),
            size(pool.cluster_size),
            size(pool.total_clusters.saturating_mul(pool.cluster_size)),
            size(pool.free_clusters.saturating_mul(pool.cluster_size)),
            pool.volumes.len().to_string(),
        ]);
    }
    table
}

fn volumes(status: &Status, pool: Option<&str>) -> Table {
    let mut table = Table::new(&["VOLUME", "STATE", "SIZE", "ALLOCATED", "KIND"]);
    for of in status.pools.iter().filter(|of| pool.is_none_or(|pool| of.name == pool)) {
        for volume in &of.volumes {
            // Of one that cannot be read nothing is known.
            let unknown = matches!(volume.health, Health::Quarantined { .. });
            let known = |text: String| if unknown { "-".to_owned() } else { text };
            table.row([
                format!("{}/{}", of.name, volume.name),
                volume.health.word().to_owned(),
                known(size(volume.size)),
                known(size(volume.allocated)),
                known(kind(volume)),
            ]);
        }
    }
    table
}

fn kind(volume: &VolumeStatus) -> String {
    let provisioning = if volume.thin { "thin" } else { "thick" };
    let access = if volume.read_only { ", read-only" } else { "" };
    format!("{provisioning}{access}")
}

pub(super) fn devices(devices: &[DeviceStatus]) -> Table {
    let mut table = Table::new(&["DEVICE", "STATE", "DRIVER", "SIZE", "BLOCK", "WRITE CACHE"]);
    for device in devices {
        table.row([
            device.name.clone(),
            device.health.word().to_owned(),
            device.driver.clone(),
            size(device.size),
            device.block_size.to_string(),
            if device.volatile_write_cache { "volatile" } else { "none" }.to_owned(),
        ]);
    }
    table
}

/// What each reactor did with its time: work, polls that found nothing, and sleep.
fn reactors(reactors: &[ReactorStatus]) -> Table {
    let mut table = Table::new(&["REACTOR", "CPU", "WORKED", "POLLED", "SLEPT"]);
    for reactor in reactors {
        let get = |name: &str| reactor.counters.get(name).copied().unwrap_or_default();
        let (lived, spun, slept) = (get("lived_nanos"), get("spun_nanos"), get("slept_nanos"));
        let worked = lived.saturating_sub(spun).saturating_sub(slept);
        table.row([
            reactor.index.to_string(),
            reactor.cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string()),
            percent(worked, lived),
            percent(spun, lived),
            percent(slept, lived),
        ]);
    }
    table
}

/// A sentence on each thing that does not work.
fn problems(status: &Status) -> String {
    let of_pools = status.pools.iter().flat_map(|pool| {
        let volumes = pool.volumes.iter();
        let volumes = volumes
            .map(move |volume| (format!("volume {}/{}", pool.name, volume.name), &volume.health));
        std::iter::once((format!("pool {}", pool.name), &pool.health)).chain(volumes)
    });
    let of_devices =
        status.devices.iter().map(|device| (format!("device {}", device.name), &device.health));
    of_pools
        .chain(of_devices)
        .filter_map(|(what, health)| {
            health.reason().map(|reason| format!("\n{what} is {}: {reason}\n", health.word()))
        })
        .collect()
}

fn counter_table(status: &Status) -> Table {
    let mut table = Table::new(&["LAYER", "COUNTER", "VALUE"]);
    let mut add = |layer: &str, counters: &Counters| {
        for (name, value) in counters {
            table.row([layer.to_owned(), name.clone(), value.to_string()]);
        }
    };
    for mount in &status.mounts {
        add(&format!("mount {}", mount.path.display()), &mount.counters);
    }
    for pool in &status.pools {
        for volume in &pool.volumes {
            add(&format!("volume {}/{}", pool.name, volume.name), &volume.counters);
        }
        add(&format!("pool {}", pool.name), &pool.counters);
    }
    for device in &status.devices {
        add(&format!("device {}", device.name), &device.counters);
        for (layer, counters) in [("nvme", &device.nvme), ("controller", &device.controller)] {
            if let Some(counters) = counters {
                add(&format!("{layer} {}", device.name), counters);
            }
        }
    }
    for reactor in &status.reactors {
        add(&format!("reactor {}", reactor.index), &reactor.counters);
    }
    table
}

fn facts_of_pool(pool: &PoolStatus) -> Table {
    let mut table = Table::new(&["POOL", &pool.name]);
    let bytes = |clusters: u64| size(clusters.saturating_mul(pool.cluster_size));
    table.fact("state", pool.health.word());
    table.fact("reason", pool.health.reason().unwrap_or_default());
    table.fact("uuid", pool.uuid);
    table.fact("device", &pool.device);
    table.fact("cluster", size(pool.cluster_size));
    table
        .fact("size", format!("{} ({} clusters)", bytes(pool.total_clusters), pool.total_clusters));
    table.fact("free", format!("{} ({} clusters)", bytes(pool.free_clusters), pool.free_clusters));
    table.fact("space", &pool.space);
    table.fact("allocated", size(pool.allocated));
    table.fact("provisioned", size(pool.provisioned));
    table.fact("reserved", size(pool.reserved));
    for (name, value) in &pool.counters {
        table.fact(name, value);
    }
    table
}

fn facts_of_volume(name: &VolumeName, volume: &VolumeStatus) -> Table {
    let mut table = Table::new(&["VOLUME", &name.to_string()]);
    table.fact("state", volume.health.word());
    table.fact("reason", volume.health.reason().unwrap_or_default());
    table.fact("uuid", volume.uuid);
    table.fact("size", format!("{} ({} bytes)", size(volume.size), volume.size));
    table.fact("allocated", size(volume.allocated));
    table.fact("kind", kind(volume));
    if let Some(parent) = &volume.parent {
        table.fact("parent", format!("{}/{parent}", name.pool()));
    }
    if let Some(parent) = &volume.external_parent {
        table.fact("external parent", parent);
    }
    if volume.reserve > 0 {
        table.fact("reserve", size(volume.reserve));
    }
    table.fact("on full", if volume.waits_for_space { "wait" } else { "error" });
    for (name, value) in &volume.counters {
        table.fact(name, value);
    }
    table
}
