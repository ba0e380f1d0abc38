//! Devices and volumes as SPDK's block devices, and what went through them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Of `bdev_get_bdevs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GetBdevs {
    /// Only this one: a name, an alias `pool/volume`, or a UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How long to wait for it to appear, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
}

/// A device or a volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bdev {
    /// A device's name; of a volume, its UUID.
    pub name: String,
    /// Of a volume, `pool/volume`.
    pub aliases: Vec<String>,
    /// What it is: "Logical Volume", "NVMe disk", "Malloc disk", "URING bdev".
    pub product_name: String,
    /// Bytes in a block.
    pub block_size: u32,
    /// Its size in blocks.
    pub num_blocks: u64,
    /// Its identity.
    pub uuid: Uuid,
    /// Limits of its rate; all 0, for there are none.
    #[serde(default)]
    pub assigned_rate_limits: RateLimits,
    /// Whether a pool has it.
    pub claimed: bool,
    /// How it is claimed: `exclusive_write` if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_type: Option<String>,
    /// Whether it is zoned; it never is.
    #[serde(default)]
    pub zoned: bool,
    /// What it can do.
    #[serde(default)]
    pub supported_io_types: SupportedIoTypes,
    /// What only its kind has.
    #[serde(default)]
    pub driver_specific: DriverSpecific,
}

/// Limits of a bdev's rate; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimits {
    /// Reads and writes a second.
    pub rw_ios_per_sec: u64,
    /// MiB read and written a second.
    pub rw_mbytes_per_sec: u64,
    /// MiB read a second.
    pub r_mbytes_per_sec: u64,
    /// MiB written a second.
    pub w_mbytes_per_sec: u64,
}

/// What a bdev can do. The rest of SPDK's list is never supported and left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "named after the operations")]
pub struct SupportedIoTypes {
    pub read: bool,
    pub write: bool,
    pub unmap: bool,
    pub flush: bool,
    pub reset: bool,
    pub nvme_admin: bool,
    pub nvme_io: bool,
    pub write_zeroes: bool,
    pub compare: bool,
    pub compare_and_write: bool,
    pub abort: bool,
    pub seek_hole: bool,
    pub seek_data: bool,
    pub copy: bool,
}

/// What only one kind of bdev has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DriverSpecific {
    /// Of a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lvol: Option<LvolSpecific>,
}

/// What only a volume has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LvolSpecific {
    /// The pool's UUID.
    pub lvol_store_uuid: Uuid,
    /// The name of the pool's device.
    pub base_bdev: String,
    /// Whether clusters are allocated when they are written.
    pub thin_provision: bool,
    /// Clusters that are allocated.
    pub num_allocated_clusters: u64,
    /// Whether it is a snapshot.
    pub snapshot: bool,
    /// Whether it is a clone of a snapshot.
    pub clone: bool,
    /// The snapshot that it is a clone of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_snapshot: Option<String>,
    /// A snapshot's clones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clones: Option<Vec<String>>,
    /// Whether it is a clone of something outside of the pool.
    pub esnap_clone: bool,
    /// What names that in the metadata: a UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_snapshot_name: Option<String>,
    /// Ours: the name of that device, or `pool/volume`, if it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_snapshot_alias: Option<String>,
}

/// Of `bdev_get_iostat`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GetIostat {
    /// Only these; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
    /// Whether to tell each reactor's share; needs exactly one name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_channel: Option<bool>,
    /// What to set to zero afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset_mode: Option<ResetMode>,
}

/// Which statistics are set to zero when they have been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "SPDK's words")]
pub enum ResetMode {
    All,
    Maxmin,
    Error,
    None,
}

/// What went through the bdevs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Iostat {
    /// Ticks in a second.
    pub tick_rate: u64,
    /// Now.
    pub ticks: u64,
    /// Each bdev's share.
    pub bdevs: Vec<BdevIostat>,
}

/// What went through one bdev.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "SPDK's words; latencies are in ticks")]
pub struct BdevIostat {
    pub name: String,
    pub bytes_read: u64,
    pub num_read_ops: u64,
    pub bytes_written: u64,
    pub num_write_ops: u64,
    pub bytes_unmapped: u64,
    pub num_unmap_ops: u64,
    pub bytes_copied: u64,
    pub num_copy_ops: u64,
    /// Ours: SPDK does not count flushes.
    pub num_flush_ops: u64,
    pub read_latency_ticks: u64,
    pub max_read_latency_ticks: u64,
    pub min_read_latency_ticks: u64,
    pub write_latency_ticks: u64,
    pub max_write_latency_ticks: u64,
    pub min_write_latency_ticks: u64,
    pub unmap_latency_ticks: u64,
    pub max_unmap_latency_ticks: u64,
    pub min_unmap_latency_ticks: u64,
    pub copy_latency_ticks: u64,
    pub max_copy_latency_ticks: u64,
    pub min_copy_latency_ticks: u64,
    /// Failed operations, by the name of the error.
    pub io_error: BTreeMap<String, u64>,
}
