//! Pools (lvstores) and volumes (lvols).

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::control::error::RpcError;
use crate::units::ByteCount;

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
    /// The largest device that the pool can grow to, in bytes.
    #[serde(default)]
    pub max_growable_size: u64,
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
        assert_eq!(json!(LvolClearMethod::WriteZeroes), json!("write_zeroes"));
        let create = CreateLvol { lvol_name: "v".to_owned(), size: Some(1), ..Default::default() };
        assert_eq!(json!(create), json!({"lvol_name": "v", "size": 1}));
        let upper: SelectLvstore =
            serde_json::from_value(json!({"uuid": "00000000-0000-0000-0000-0000000000AB"}))
                .unwrap();
        assert_eq!(upper.uuid, Some(Uuid::from_u128(0xab)));
    }
}
