//! STATFS: how large pools are, and how much of them is free.

use std::sync::Arc;

use super::abi::StatfsOut;
use super::errno::Errno;
use super::reply::Reply;
use super::tree::Node;
use crate::volume::Catalog;

/// Longest name of a volume: SPDK's limit.
const VOLUME_NAME_LIMIT: u32 = 63;
/// Unit of the counts.
const STATFS_BLOCK: u32 = 4096;

/// What `df` shows of the pool that a node is in, or of all pools.
pub(super) async fn of(catalog: &Catalog, node: &Node) -> Result<Reply, Errno> {
    let pools = match node {
        Node::Root => catalog.directory().pools(),
        Node::Pool(pool) => vec![Arc::clone(pool)],
        Node::Volume(entry) => vec![Arc::clone(entry.pool())],
    };
    let mut sum = StatfsOut {
        bsize: STATFS_BLOCK,
        frsize: STATFS_BLOCK,
        namelen: VOLUME_NAME_LIMIT,
        ..Default::default()
    };
    for pool in pools {
        let info = catalog.pool_info(&pool).await?;
        let blocks = info.cluster_size.get() / u64::from(STATFS_BLOCK);
        sum.blocks += u64::from(info.data_clusters.get()) * blocks;
        sum.bfree += u64::from(info.free_clusters.get()) * blocks;
        sum.files += catalog.directory().volumes(pool.key()).len() as u64;
        // A volume takes at least one metadata page.
        sum.ffree += u64::from(info.free_metadata_pages);
    }
    sum.bavail = sum.bfree;
    sum.files += sum.ffree;
    Ok(Reply::structure(&sum))
}
