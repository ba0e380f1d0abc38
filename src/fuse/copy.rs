//! COPY_FILE_RANGE: `cp` of a whole volume makes a clone, at once and without copying.
//!
//! Everything else (a part of a volume, into something that has content, into another pool) is
//! refused with the error upon which `cp` reads and writes.

use zerocopy::IntoBytes;

use super::abi::WriteOut;
use super::errno::Errno;
use super::reply::Reply;
use super::request::{CopyRange, NodeId};
use super::tree::{Node, resolve};
use crate::lvol;
use crate::volume::{Catalog, Entry, Error};

pub(super) async fn whole(
    catalog: &Catalog,
    from: NodeId,
    range: CopyRange,
) -> Result<Reply, Errno> {
    let volume = |node| match resolve(catalog.directory(), node)? {
        Node::Volume(entry) => Ok(entry),
        Node::Root | Node::Pool(_) => Err(Errno::EISDIR),
    };
    let (from, to) = (volume(from)?, volume(range.target)?);
    if !is_whole(catalog, &from, range).await? {
        return Err(Errno::EOPNOTSUPP);
    }
    match catalog.copy_whole(&from, &to).await {
        Ok(copied) => Ok(answer(copied.get(), range.wide)),
        Err(Error::OtherPool | Error::Store(lvol::Error::Unsuitable(_))) => Err(Errno::EOPNOTSUPP),
        Err(error) => Err(error.into()),
    }
}

async fn is_whole(
    catalog: &Catalog,
    from: &std::sync::Arc<Entry>,
    range: CopyRange,
) -> Result<bool, Errno> {
    let size = catalog.volume(from.key()).await?.size().get();
    Ok(range.offset == 0 && range.target_offset == 0 && size > 0 && range.length >= size)
}

/// How much was copied. The narrow answer cannot say more than 32 bits count; who asks then goes
/// on behind that, is refused, and copies the rest onto itself.
fn answer(copied: u64, wide: bool) -> Reply {
    if wide {
        return Reply::Bytes(copied.as_bytes().to_vec());
    }
    const MOST: u32 = !0xfff;
    let size = u32::try_from(copied).unwrap_or(MOST);
    Reply::structure(&WriteOut { size, padding: 0 })
}
