//! What the layers know, in the words of the control plane.

use crate::block::nvme::{NvmeChannel, NvmeDevice};
use crate::block::{AnyChannel, AnyDevice, Counters as BlockCounters};
use crate::control::status::{Counters, DeviceStatus, Health, VolumeStatus};
use crate::control::types::{
    Bdev, BdevIostat, DriverSpecific, Lvol, LvolPool, LvolSpecific, SupportedIoTypes,
};
use crate::lvol::{OnFull, Quarantined, StoreInfo, StoreState, VolumeInfo, external_name};
use crate::units::{BlobId, ByteCount};
use crate::volume::{Entry, Key, Pool, VolumeCounters};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::devices::Opened;
use super::devices::nvme::Attached;
use super::service::{counters_of, total};
use super::site::Site;
use crate::emulated::EmulatedController;

/// How long a driver may take to notice that its namespace has grown.
const RESCAN_LIMIT: Duration = Duration::from_secs(10);
const RESCAN_STEP: Duration = Duration::from_millis(2);

/// What one reactor has counted.
pub(super) struct SiteFacts {
    pub(super) reactor: Counters,
    /// Of file requests.
    pub(super) files: Counters,
    channels: Vec<(String, BlockCounters, Option<Counters>)>,
    volumes: Vec<(Key, VolumeCounters)>,
}

impl SiteFacts {
    pub(super) fn of(site: &Site) -> Self {
        let channel = |(name, channel): (String, AnyChannel)| {
            let counters = crate::block::BlockDevice::counters(&channel);
            let nvme = match &channel {
                AnyChannel::Nvme(channel) => Some(queue_counters(channel)),
                AnyChannel::Memory(_) | AnyChannel::File(_) => None,
            };
            (name, counters, nvme)
        };
        let files = site.files.borrow();
        Self {
            reactor: counters_of(&site.reactor.statistics()),
            files: files
                .as_ref()
                .map(|files| counters_of(&files.operations.counters()))
                .unwrap_or_default(),
            channels: site.channels().into_iter().map(channel).collect(),
            volumes: site.catalog.counters(),
        }
    }
}

/// Of both queue pairs of a channel, and how much of it each did.
fn queue_counters(channel: &NvmeChannel) -> Counters {
    let (polled, interrupting) = channel.queue_counters();
    let mut sum = total(polled.iter().chain([&interrupting]).map(counters_of));
    let completed = polled.map_or(0, |polled| polled.completed);
    sum.insert("completed_by_polling".to_owned(), completed);
    sum.insert("completed_by_interrupt".to_owned(), interrupting.completed);
    sum
}

/// A device of the configuration.
pub(super) struct DeviceFacts {
    pub(super) name: String,
    pub(super) uuid: Uuid,
    driver: &'static str,
    device: AnyDevice,
    /// Its NVMe controller and namespace, if that is what it is.
    pub(super) nvme: Option<Attached>,
    emulated: Option<Arc<EmulatedController>>,
}

impl DeviceFacts {
    pub(super) fn new(opened: &Opened) -> Self {
        Self {
            name: opened.name.clone(),
            uuid: opened.uuid,
            driver: opened.driver,
            device: opened.device.clone(),
            nvme: opened.nvme.clone(),
            emulated: opened.emulated.as_ref().map(|emulated| Arc::clone(&emulated.controller)),
        }
    }

    /// A namespace that was attached on request.
    pub(super) fn attached(name: String, device: NvmeDevice, attached: Attached) -> Self {
        Self {
            uuid: uuid_of(&name),
            name,
            driver: "nvme",
            device: AnyDevice::Nvme(device),
            nvme: Some(attached),
            emulated: None,
        }
    }

    /// Looks whether the device has become larger, where nobody tells: a file, and an emulated
    /// controller over one. A controller on PCI tells the driver by itself.
    pub(super) fn rescan(&self) -> std::io::Result<()> {
        match (&self.device, &self.emulated) {
            (AnyDevice::File(file), _) => file.rescan(),
            (AnyDevice::Nvme(device), Some(emulated)) => {
                let wanted = emulated.rescan()?.get();
                let began = std::time::Instant::now();
                // The controller tells the driver, which looks at the namespace anew.
                while device.geometry().block_count.get() < wanted {
                    if began.elapsed() > RESCAN_LIMIT {
                        return Err(std::io::ErrorKind::TimedOut.into());
                    }
                    std::thread::sleep(RESCAN_STEP);
                }
                Ok(())
            }
            (AnyDevice::Nvme(_) | AnyDevice::Memory(_), _) => Ok(()),
        }
    }

    /// Why it cannot be used any more, if so.
    pub(super) fn failure(&self) -> Option<String> {
        self.device.failure()
    }

    pub(super) fn bdev(&self, claimed: bool) -> Bdev {
        let product_name = match self.driver {
            "memory" => "Malloc disk",
            "file" => "URING bdev",
            _ => "NVMe disk",
        };
        Bdev {
            name: self.name.clone(),
            aliases: Vec::new(),
            product_name: product_name.to_owned(),
            block_size: self.device.geometry().block_size.bytes(),
            num_blocks: self.device.geometry().block_count.get(),
            uuid: self.uuid,
            claimed,
            claim_type: claimed.then(|| "exclusive_write".to_owned()),
            supported_io_types: supported(),
            ..Bdev::default()
        }
    }

    pub(super) fn status(&self, sites: &[SiteFacts]) -> DeviceStatus {
        let channels =
            || sites.iter().flat_map(|site| &site.channels).filter(|(name, ..)| *name == self.name);
        let nvme = channels().filter_map(|(_, _, nvme)| nvme.clone());
        DeviceStatus {
            name: self.name.clone(),
            driver: self.driver.to_owned(),
            health: match self.device.failure() {
                Some(reason) => Health::Failed { reason },
                None => Health::Ok,
            },
            size: self.device.geometry().size().get(),
            block_size: self.device.geometry().block_size.bytes(),
            volatile_write_cache: self.device.geometry().volatile_cache,
            counters: total(channels().map(|(_, counters, _)| counters_of(counters))),
            nvme: Some(total(nvme)).filter(|counters| !counters.is_empty()),
            controller: self.emulated.as_ref().map(|emulated| counters_of(&emulated.counters())),
        }
    }
}

/// The UUID of a device that has none of its own.
pub(super) fn uuid_of(name: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
}

fn supported() -> SupportedIoTypes {
    SupportedIoTypes {
        read: true,
        write: true,
        unmap: true,
        flush: true,
        write_zeroes: true,
        ..SupportedIoTypes::default()
    }
}

pub(super) fn store_health(state: &StoreState) -> Health {
    match state {
        StoreState::Ok => Health::Ok,
        StoreState::Poisoned(error) => Health::Poisoned { reason: error.to_string() },
        StoreState::Closed => Health::Failed { reason: "the pool is closed".to_owned() },
    }
}

/// What went through a volume on all reactors.
fn volume_total(key: Key, sites: &[SiteFacts]) -> Counters {
    let mine = sites.iter().flat_map(|site| &site.volumes).filter(|(other, _)| *other == key);
    total(mine.map(|(_, counters)| counters_of(counters)))
}

/// Names of a volume's parents, for people.
pub(super) struct ParentFacts {
    pub(super) parent: Option<String>,
    pub(super) external_parent: Option<String>,
    /// Why what shows from outside is not attached.
    pub(super) missing: Option<String>,
}

pub(super) fn volume_status(
    entry: &Entry,
    info: &VolumeInfo,
    cluster_size: ByteCount,
    parents: ParentFacts,
    sites: &[SiteFacts],
) -> VolumeStatus {
    let ParentFacts { parent, external_parent, missing } = parents;
    VolumeStatus {
        name: info.name.clone(),
        uuid: entry.uuid(),
        health: match entry.gate().reservations().fence() {
            None if info.degraded => Health::Degraded {
                reason: format!(
                    "only what it has of its own can be read, for its external parent is not \
                     attached: {}",
                    missing.unwrap_or_default()
                ),
            },
            None => Health::Ok,
            Some(damage) => Health::Fenced {
                reason: format!(
                    "its stored reservations cannot be believed: {damage}; \
                     `lvolfs reservation reset {}/{}` lifts the fence",
                    entry.pool().name(),
                    info.name
                ),
            },
        },
        size: info.size.get(),
        allocated: u64::from(info.allocated.get()) * cluster_size.get(),
        thin: info.thin,
        reserve: u64::from(info.reserve.get()) * cluster_size.get(),
        waits_for_space: info.on_full == OnFull::Wait,
        read_only: info.read_only.is_some(),
        parent,
        external_parent,
        counters: volume_total(entry.key(), sites),
    }
}

/// A volume that cannot be served.
pub(super) fn quarantined_status(quarantined: &Quarantined) -> VolumeStatus {
    let unnamed = || format!("blob {:#x}", quarantined.id.get());
    VolumeStatus {
        name: quarantined.name.clone().unwrap_or_else(unnamed),
        uuid: Uuid::nil(),
        health: Health::Quarantined { reason: quarantined.damage.to_string() },
        size: 0,
        allocated: 0,
        thin: false,
        reserve: 0,
        waits_for_space: false,
        read_only: true,
        parent: None,
        external_parent: None,
        counters: Counters::new(),
    }
}

pub(super) fn volume_bdev(
    entry: &Entry,
    info: &VolumeInfo,
    pool: &StoreInfo,
    volumes: &[VolumeInfo],
    base_bdev: String,
    external_parent: Option<String>,
) -> Bdev {
    let name_of = |id: &BlobId| {
        volumes.iter().find(|volume| volume.id == *id).map(|volume| volume.name.clone())
    };
    let clones: Vec<String> = info.clones.iter().filter_map(name_of).collect();
    let writable = info.read_only.is_none();
    Bdev {
        name: entry.uuid().to_string(),
        aliases: vec![format!("{}/{}", entry.pool().name(), info.name)],
        product_name: "Logical Volume".to_owned(),
        block_size: pool.block_size.bytes(),
        num_blocks: info.size.get() >> pool.block_size.shift(),
        uuid: entry.uuid(),
        supported_io_types: SupportedIoTypes {
            write: writable,
            unmap: writable,
            write_zeroes: writable,
            seek_hole: true,
            seek_data: true,
            ..supported()
        },
        driver_specific: DriverSpecific {
            lvol: Some(LvolSpecific {
                lvol_store_uuid: entry.pool().uuid(),
                base_bdev,
                thin_provision: info.thin,
                num_allocated_clusters: u64::from(info.allocated.get()),
                snapshot: info.snapshot,
                clone: info.parent.is_some(),
                base_snapshot: info.parent.as_ref().and_then(name_of),
                clones: Some(clones).filter(|clones| !clones.is_empty()),
                esnap_clone: info.external_parent.is_some(),
                external_snapshot_name: info
                    .external_parent
                    .as_deref()
                    .map(|stored| String::from_utf8_lossy(&external_name(stored)).into_owned()),
                external_snapshot_alias: external_parent,
            }),
        },
        ..Bdev::default()
    }
}

pub(super) fn lvol(pool: &Pool, entry: &Entry, info: &VolumeInfo) -> Lvol {
    Lvol {
        alias: format!("{}/{}", pool.name(), info.name),
        uuid: entry.uuid(),
        name: info.name.clone(),
        is_thin_provisioned: info.thin,
        is_snapshot: info.snapshot,
        is_clone: info.parent.is_some(),
        is_esnap_clone: info.external_parent.is_some(),
        is_degraded: info.degraded,
        num_allocated_clusters: u64::from(info.allocated.get()),
        lvs: LvolPool { name: pool.name().to_string(), uuid: pool.uuid() },
    }
}

pub(super) fn device_iostat(name: &str, sites: &[SiteFacts]) -> BdevIostat {
    let channels = sites.iter().flat_map(|site| &site.channels).filter(|(other, ..)| other == name);
    let sum = channels.fold(BlockCounters::default(), |sum, (_, counters, _)| sum + *counters);
    BdevIostat {
        name: name.to_owned(),
        bytes_read: sum.bytes_read,
        num_read_ops: sum.reads,
        bytes_written: sum.bytes_written,
        num_write_ops: sum.writes,
        num_unmap_ops: sum.discards,
        num_flush_ops: sum.flushes,
        ..BdevIostat::default()
    }
}

pub(super) fn volume_iostat(entry: &Entry, sites: &[SiteFacts]) -> BdevIostat {
    let counters = volume_total(entry.key(), sites);
    let get = |name: &str| counters.get(name).copied().unwrap_or_default();
    BdevIostat {
        name: entry.uuid().to_string(),
        bytes_read: get("bytes_read"),
        num_read_ops: get("reads"),
        bytes_written: get("bytes_written"),
        num_write_ops: get("writes"),
        num_unmap_ops: get("discards"),
        num_flush_ops: get("flushes"),
        ..BdevIostat::default()
    }
}
