//! `lvolfs pool create`, `rename`, `grow` and `delete`.

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::json;

use super::arguments::pool_name;
use super::ask::{Daemon, done, find_pool};
use super::pretty;
use crate::control::types::{CreateLvstore, LvstoreClearMethod, RenameLvstore, SelectLvstore};
use crate::units::ByteCount;

/// What to do with pools as a whole.
#[derive(Debug, Subcommand)]
pub enum PoolChange {
    /// Make a pool on a blank device of the daemon
    Create(CreatePool),
    /// Give a pool another name
    ///
    /// Its directory has the new name at once, and what is open stays open. A configuration that
    /// declares the pool must be changed, too, before the next start.
    Rename {
        /// The pool
        #[arg(value_parser = pool_name)]
        pool: String,
        /// Its name from now on
        #[arg(value_parser = pool_name)]
        name: String,
    },
    /// Take in what a pool's device has gained, while everything goes on
    Grow {
        /// The pool
        #[arg(value_parser = pool_name)]
        pool: String,
    },
    /// Destroy a pool; its device is blank then
    ///
    /// Refused while a volume of it is open, exported or reserved.
    Delete {
        /// The pool
        #[arg(value_parser = pool_name)]
        pool: String,
        /// Destroy its volumes and their data, too
        #[arg(long)]
        with_volumes: bool,
    },
}

/// A pool to make.
#[derive(Debug, Args)]
pub struct CreatePool {
    /// Its name
    #[arg(value_parser = pool_name)]
    pool: String,
    /// The device, which must be blank and in no pool
    device: String,
    /// The unit of allocation: a multiple of 4096 bytes below 4GiB
    #[arg(long, value_name = "SIZE", value_parser = ByteCount::parse, default_value = "4MiB")]
    cluster_size: ByteCount,
    /// Metadata pages for a hundred clusters; more of them allow for more, and for later growth
    #[arg(long, value_name = "PERCENT", default_value_t = 100)]
    metadata_ratio: u32,
    /// What happens to what the device held before
    #[arg(long, value_name = "METHOD", default_value = "unmap")]
    clear: LvstoreClearMethod,
}

impl Daemon {
    pub(super) fn change_pool(&mut self, change: PoolChange, json: bool) -> anyhow::Result<String> {
        match change {
            PoolChange::Create(create) => self.create_pool(create, json),
            PoolChange::Rename { pool, name } => {
                let text = format!("{pool} is {name} now");
                let rename = RenameLvstore { old_name: pool, new_name: name };
                self.client().bdev_lvol_rename_lvstore(&rename)?;
                Ok(done(json, &text))
            }
            PoolChange::Grow { pool } => {
                let before = find_pool(&self.ask_status()?, &pool)?.total_clusters;
                let select = SelectLvstore { lvs_name: Some(pool.clone()), uuid: None };
                self.client().bdev_lvol_grow_lvstore(&select)?;
                let status = self.ask_status()?;
                let now = find_pool(&status, &pool)?;
                let size = ByteCount(now.total_clusters.saturating_mul(now.cluster_size)).human();
                Ok(done(
                    json,
                    &match now.total_clusters > before {
                        true => format!("{pool} has {size} now"),
                        false => {
                            format!("{pool} has {size} as before: its device has gained nothing")
                        }
                    },
                ))
            }
            PoolChange::Delete { pool, with_volumes } => {
                let status = self.ask_status()?;
                let count = find_pool(&status, &pool)?.volumes.len();
                if count > 0 && !with_volumes {
                    bail!("{pool} has {count} volumes; say --with-volumes if they may be lost");
                }
                let text = format!("{pool} is destroyed");
                let select = SelectLvstore { lvs_name: Some(pool), uuid: None };
                self.client().bdev_lvol_delete_lvstore(&select)?;
                Ok(done(json, &text))
            }
        }
    }

    fn create_pool(&mut self, create: CreatePool, json: bool) -> anyhow::Result<String> {
        let CreatePool { pool, device, cluster_size, metadata_ratio, clear } = create;
        let Ok(bytes) = u32::try_from(cluster_size.get()) else {
            bail!("a cluster has less than 4GiB, not {}", cluster_size.human());
        };
        let uuid = self.client().bdev_lvol_create_lvstore(&CreateLvstore {
            bdev_name: device.clone(),
            lvs_name: pool.clone(),
            cluster_sz: Some(bytes),
            clear_method: Some(clear),
            num_md_pages_per_cluster_ratio: Some(metadata_ratio),
            md_page_size: None,
        })?;
        Ok(if json {
            pretty(&json!({ "uuid": uuid }))
        } else {
            format!("{pool} is there on {device}, {uuid}\n")
        })
    }
}
