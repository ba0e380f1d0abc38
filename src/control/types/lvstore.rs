//! Pools (lvstores) that are made and changed at run time.

use serde::{Deserialize, Serialize};

/// What happens to what a device held before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "SPDK's words")]
pub enum LvstoreClearMethod {
    Unmap,
    #[value(name = "write_zeroes")]
    WriteZeroes,
    None,
}

/// Of `bdev_lvol_create_lvstore`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateLvstore {
    /// The device, which must be blank.
    pub bdev_name: String,
    /// The pool's name.
    pub lvs_name: String,
    /// Bytes of a cluster; 4 MiB if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_sz: Option<u32>,
    /// What happens to what the device held before; unmap if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clear_method: Option<LvstoreClearMethod>,
    /// Metadata pages for a hundred clusters; 100 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_md_pages_per_cluster_ratio: Option<u32>,
    /// The smallest metadata page in bytes; 4096 if absent, and never less than the device's
    /// physical block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md_page_size: Option<u32>,
}

/// Of `bdev_lvol_rename_lvstore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenameLvstore {
    /// The pool's name.
    pub old_name: String,
    /// Its name from now on.
    pub new_name: String,
}
