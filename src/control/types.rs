//! Parameters and results of the methods that SPDK has too: its names, its shapes.
//!
//! Every type is read and written: the daemon reads parameters and writes results, the command
//! line the reverse. Parameters refuse unknown keys; results that are read ignore them, so that
//! a newer daemon can tell an older client more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::RpcError;
use crate::units::ByteCount;

/// The parameters of a method that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParameters {}

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

/// How the clusters of a volume are cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "SPDK's words")]
pub enum LvolClearMethod {
    Default,
    None,
    Unmap,
    WriteZeroes,
}

/// One pool, by its UUID or by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolSelector {
    /// By its UUID.
    Uuid(Uuid),
    /// By its name.
    Name(String),
}

/// At most one of the two, or SPDK's answer to both.
fn selector(
    uuid: Option<Uuid>,
    name: Option<&String>,
    keys: &str,
) -> Result<Option<PoolSelector>, RpcError> {
    match (uuid, name) {
        (Some(_), Some(_)) => Err(RpcError::errno(libc::EINVAL).because(keys)),
        (Some(uuid), None) => Ok(Some(PoolSelector::Uuid(uuid))),
        (None, Some(name)) => Ok(Some(PoolSelector::Name(name.clone()))),
        (None, None) => Ok(None),
    }
}

/// Of `bdev_lvol_get_lvstores`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SelectLvstore {
    /// The pool's UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Or its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lvs_name: Option<String>,
}

impl SelectLvstore {
    /// The pool meant, if any.
    ///
    /// # Errors
    /// `-EINVAL` if both keys are there.
    pub fn at_most_one(&self) -> Result<Option<PoolSelector>, RpcError> {
        selector(self.uuid, self.lvs_name.as_ref(), "at most one of uuid and lvs_name")
    }

    /// The pool meant.
    ///
    /// # Errors
    /// `-EINVAL` unless exactly one key is there.
    pub fn exactly_one(&self) -> Result<PoolSelector, RpcError> {
        let missing = || RpcError::errno(libc::EINVAL).because("one of uuid and lvs_name");
        self.at_most_one()?.ok_or_else(missing)
    }
}

/// A pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lvstore {
    /// Its identity.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// The name of its device.
    pub base_bdev: String,
    /// Clusters for data.
    pub total_data_clusters: u64,
    /// Those that are free.
    pub free_clusters: u64,
    /// Bytes in a block.
    pub block_size: u64,
    /// Bytes in a cluster.
    pub cluster_size: u64,
}

/// A size in bytes, or in MiB.
fn size(bytes: Option<u64>, mebibytes: Option<u64>) -> Result<ByteCount, RpcError> {
    match (bytes, mebibytes) {
        (Some(bytes), None) => Ok(ByteCount(bytes)),
        (None, Some(mebibytes)) => {
            let bytes = mebibytes.checked_mul(ByteCount::MIB.get()).map(ByteCount);
            bytes.ok_or_else(|| RpcError::invalid_parameters("size_in_mib is too large"))
        }
        _ => Err(RpcError::invalid_parameters("one of size and size_in_mib is required")),
    }
}

/// Of `bdev_lvol_create`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateLvol {
    /// The volume's name in its pool.
    pub lvol_name: String,
    /// Its size in bytes, as SPDK took it before version 24.05 and as older clients send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Its size in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_in_mib: Option<u64>,
    /// Whether clusters are allocated when they are written; not if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thin_provision: Option<bool>,
    /// The pool's UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Or its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lvs_name: Option<String>,
    /// How to clear its clusters when they are freed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clear_method: Option<LvolClearMethod>,
}

impl CreateLvol {
    /// The size asked for; the pool rounds it up to whole clusters.
    ///
    /// # Errors
    /// "Invalid parameters" unless exactly one of the two keys is there.
    pub fn size(&self) -> Result<ByteCount, RpcError> {
        size(self.size, self.size_in_mib)
    }

    /// The pool meant.
    ///
    /// # Errors
    /// `-EINVAL` unless exactly one key is there.
    pub fn pool(&self) -> Result<PoolSelector, RpcError> {
        SelectLvstore { uuid: self.uuid, lvs_name: self.lvs_name.clone() }.exactly_one()
    }
}

/// Of `bdev_lvol_rename`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenameLvol {
    /// The volume: `pool/volume`, or its UUID.
    pub old_name: String,
    /// Its name in the pool from now on.
    pub new_name: String,
}

/// Of `bdev_lvol_resize`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeLvol {
    /// The volume: `pool/volume`, or its UUID.
    pub name: String,
    /// Its size from now on in bytes, as SPDK took it before version 24.05.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Its size from now on in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_in_mib: Option<u64>,
}

impl ResizeLvol {
    /// The size asked for; the pool rounds it up to whole clusters.
    ///
    /// # Errors
    /// "Invalid parameters" unless exactly one of the two keys is there.
    pub fn size(&self) -> Result<ByteCount, RpcError> {
        size(self.size, self.size_in_mib)
    }
}

/// Of `bdev_lvol_set_read_only` and `bdev_lvol_delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectLvol {
    /// The volume: `pool/volume`, or its UUID.
    pub name: String,
}

/// Of `bdev_lvol_get_lvols`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GetLvols {
    /// Only of the pool with this UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lvs_uuid: Option<Uuid>,
    /// Only of the pool with this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lvs_name: Option<String>,
}

impl GetLvols {
    /// The pool meant, if any.
    ///
    /// # Errors
    /// `-EINVAL` if both keys are there.
    pub fn pool(&self) -> Result<Option<PoolSelector>, RpcError> {
        selector(self.lvs_uuid, self.lvs_name.as_ref(), "at most one of lvs_uuid and lvs_name")
    }
}

/// A volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lvol {
    /// `pool/volume`.
    pub alias: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Its name in the pool.
    pub name: String,
    /// Whether clusters are allocated when they are written.
    pub is_thin_provisioned: bool,
    /// Whether it is a snapshot.
    pub is_snapshot: bool,
    /// Whether it is a clone of a snapshot.
    pub is_clone: bool,
    /// Whether it is a clone of something outside of the pool.
    pub is_esnap_clone: bool,
    /// Whether it cannot be used.
    pub is_degraded: bool,
    /// Clusters that are allocated.
    pub num_allocated_clusters: u64,
    /// Its pool.
    pub lvs: LvolPool,
}

/// A volume's pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LvolPool {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
}

/// Of `spdk_kill_instance`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillInstance {
    /// What to send to the daemon.
    pub sig_name: KillSignal,
}

/// A signal's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "named after the signals")]
pub enum KillSignal {
    SigInt,
    SigTerm,
    SigQuit,
    SigHup,
    SigKill,
    SigUsr1,
}

/// Of `rpc_get_methods`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GetMethods {
    /// Only those that are available now; all of ours always are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<bool>,
    /// Also names that are out of use; there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_aliases: Option<bool>,
}

/// The answer of `spdk_get_version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The whole version: "lvolfs v0.1.0".
    pub version: String,
    /// Its parts.
    pub fields: VersionFields,
}

/// The parts of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "SPDK's words")]
pub struct VersionFields {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
    pub suffix: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes_are_given_in_bytes_or_in_mebibytes() {
        assert_eq!(size(Some(5), None), Ok(ByteCount(5)));
        assert_eq!(size(None, Some(5)), Ok(ByteCount(5 << 20)));
        for (bytes, mebibytes) in [(None, None), (Some(1), Some(1)), (None, Some(u64::MAX))] {
            assert_eq!(size(bytes, mebibytes).unwrap_err().code, -32602);
        }
    }

    #[test]
    fn pools_are_given_by_one_key() {
        let uuid = Uuid::from_u128(7);
        let select =
            |uuid, name: Option<&str>| SelectLvstore { uuid, lvs_name: name.map(str::to_owned) };
        assert_eq!(select(None, None).at_most_one(), Ok(None));
        assert_eq!(select(None, None).exactly_one().unwrap_err().code, -22);
        let both = select(Some(uuid), Some("p")).at_most_one().unwrap_err();
        assert!(both.code == -22 && both.message.starts_with("Invalid argument"), "{both}");
        assert_eq!(select(Some(uuid), None).exactly_one(), Ok(PoolSelector::Uuid(uuid)));
        let named = select(None, Some("p")).exactly_one();
        assert_eq!(named, Ok(PoolSelector::Name("p".to_owned())));
    }

    #[test]
    fn words_are_those_of_spdk() {
        assert_eq!(json!(KillSignal::SigUsr1), json!("SIGUSR1"));
        assert_eq!(json!(LvolClearMethod::WriteZeroes), json!("write_zeroes"));
        assert_eq!(json!(ResetMode::Maxmin), json!("maxmin"));
        let create = CreateLvol { lvol_name: "v".to_owned(), size: Some(1), ..Default::default() };
        assert_eq!(json!(create), json!({"lvol_name": "v", "size": 1}));
        let upper: SelectLvstore =
            serde_json::from_value(json!({"uuid": "00000000-0000-0000-0000-0000000000AB"}))
                .unwrap();
        assert_eq!(upper.uuid, Some(Uuid::from_u128(0xab)));
    }
}
