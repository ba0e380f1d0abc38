//! Listing directories: the pools of the mount, and the volumes of a pool.

use super::{Answer, Errno, Operations};
use crate::fuse::reply::Reply;
use crate::fuse::request::NodeId;
use crate::fuse::transfer::TRANSFER_LIMIT;
use crate::fuse::tree::{self, Listing, Node, Position};
use crate::volume::{Key, Pool};

/// Entries of a directory that are read at a time.
const LISTING_STEP: usize = 128;

impl Operations {
    pub(super) async fn readdir(&self, id: NodeId, offset: u64, size: u32, plus: bool) -> Answer {
        let mut listing = Listing::new((size as usize).min(TRANSFER_LIMIT), plus);
        let position = Position::from_offset(offset);
        let node = self.node(id)?;
        if let Node::Volume(_) = node {
            return Err(Errno::ENOTDIR);
        }
        if listing.push_dots(position, id) {
            let after = match position {
                Position::After(key) => Some(key),
                Position::Start | Position::AfterDot | Position::AfterDotDot => None,
            };
            match node {
                Node::Pool(pool) => self.list_volumes(&pool, after, &mut listing).await,
                Node::Root | Node::Volume(_) => self.list_pools(after, &mut listing),
            }
        }
        Ok(Reply::Bytes(listing.into_bytes()))
    }

    fn list_pools(&self, after: Option<Key>, listing: &mut Listing) {
        for pool in self.catalog.directory().pools() {
            let (key, kind) = (pool.key(), libc::S_IFDIR);
            let attr = Some(tree::pool_attributes(&pool, &self.defaults));
            if after < Some(key)
                && !listing.push(&pool.name(), key.into(), key.number(), kind, attr)
            {
                return;
            }
        }
    }

    async fn list_volumes(&self, pool: &Pool, mut after: Option<Key>, listing: &mut Listing) {
        loop {
            let limit = listing.room().min(LISTING_STEP);
            let entries = self.catalog.directory().volumes_after(pool.key(), after, limit);
            if entries.is_empty() {
                return;
            }
            for entry in entries {
                let (name, key) = (entry.name(), entry.key());
                after = Some(key);
                if !crate::volume::is_file_name(&name) {
                    continue;
                }
                let attr = if listing.has_attributes() {
                    // One that cannot be opened now is listed without attributes.
                    let volume = self.volume_of(&entry).await.ok();
                    volume.map(|volume| tree::volume_attributes(&volume))
                } else {
                    None
                };
                if !listing.push(&name, key.into(), key.number(), libc::S_IFREG, attr) {
                    return;
                }
            }
        }
    }
}
