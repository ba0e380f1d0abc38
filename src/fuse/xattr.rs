//! Extended attributes: what a volume is, and what users stored with it.
//!
//! `user.lvolfs.*` are made up when they are read and cannot be set. Other `user.*` attributes
//! are stored in the volume's metadata, where SPDK's tools see them too. No other namespace
//! exists here.

use std::sync::Arc;

use super::abi::GetxattrOut;
use super::errno::Errno;
use super::reply::Reply;
use super::request::Operation;
use super::tree::Node;
use crate::lvol::external_name;
use crate::reservation::Rights;
use crate::volume::{Catalog, Entry, USER_PREFIX};

/// The namespace of the attributes that tell what a volume is.
const OWN_PREFIX: &str = "user.lvolfs.";

/// GETXATTR, SETXATTR, LISTXATTR and REMOVEXATTR.
pub(super) async fn handle(
    catalog: &Catalog,
    node: &Node,
    operation: Operation,
) -> Result<Reply, Errno> {
    let entry = match node {
        Node::Volume(entry) => entry,
        Node::Root | Node::Pool(_) => return on_directory(&operation),
    };
    match operation {
        Operation::GetXattr { name, size } => {
            let value = match name.strip_prefix(OWN_PREFIX) {
                Some(own) => describe(catalog, entry).await?.remove(own),
                None => {
                    check_stored(&name, Errno::EOPNOTSUPP)?;
                    catalog.xattr(entry, &name).await?
                }
            };
            answer(value.ok_or(Errno::ENODATA)?, size)
        }
        Operation::ListXattr { size } => {
            let mut names = Vec::new();
            for own in describe(catalog, entry).await?.names() {
                names.extend_from_slice(format!("{OWN_PREFIX}{own}\0").as_bytes());
            }
            for stored in catalog.user_xattrs(entry).await? {
                names.extend_from_slice(&stored);
                names.push(0);
            }
            answer(names, size)
        }
        Operation::SetXattr { name, value, flags } => {
            check_stored(&name, Errno::EPERM)?;
            let exists = catalog.xattr(entry, &name).await?.is_some();
            match i32::try_from(flags) {
                Ok(libc::XATTR_CREATE) if exists => return Err(Errno::EEXIST),
                Ok(libc::XATTR_REPLACE) if !exists => return Err(Errno::ENODATA),
                Ok(0 | libc::XATTR_CREATE | libc::XATTR_REPLACE) => {}
                _ => return Err(Errno::EINVAL),
            }
            catalog.set_xattr(entry, &name, value).await?;
            Ok(Reply::empty())
        }
        Operation::RemoveXattr { name } => {
            check_stored(&name, Errno::EPERM)?;
            catalog.remove_xattr(entry, &name).await?;
            Ok(Reply::empty())
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Directories have no attributes.
fn on_directory(operation: &Operation) -> Result<Reply, Errno> {
    match operation {
        Operation::ListXattr { size } => answer(Vec::new(), *size),
        Operation::GetXattr { .. } => Err(Errno::ENODATA),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// Whether an attribute is one of those that are stored; those of our own get `own`.
fn check_stored(name: &str, own: Errno) -> Result<(), Errno> {
    if name.starts_with(OWN_PREFIX) {
        Err(own)
    } else if name.starts_with(USER_PREFIX) {
        Ok(())
    } else {
        Err(Errno::EOPNOTSUPP)
    }
}

/// The value, its length if that was asked for, or that it does not fit.
fn answer(value: Vec<u8>, size: u32) -> Result<Reply, Errno> {
    if size == 0 {
        let size = u32::try_from(value.len()).map_err(|_| Errno::ERANGE)?;
        return Ok(Reply::structure(&GetxattrOut { size, padding: 0 }));
    }
    if value.len() > size as usize { Err(Errno::ERANGE) } else { Ok(Reply::Bytes(value)) }
}

/// What a volume is, as names and texts.
struct Description(Vec<(&'static str, String)>);

impl Description {
    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|(name, _)| *name)
    }

    fn remove(self, name: &str) -> Option<Vec<u8>> {
        let found = self.0.into_iter().find(|(have, _)| *have == name);
        found.map(|(_, text)| text.into_bytes())
    }
}

async fn describe(catalog: &Catalog, entry: &Arc<Entry>) -> Result<Description, Errno> {
    let info = catalog.volume_info(entry).await?;
    let volume = catalog.volume(entry.key()).await?;
    let pool = entry.pool();
    // Of relatives the names, while they have any.
    let volumes = catalog.directory().volumes(pool.key());
    let name_of =
        |blob| volumes.iter().find(|other| other.blob() == blob).map(|other| other.name());
    let parent = info.parent.and_then(name_of).or_else(|| {
        let external = external_name(info.external_parent.as_deref()?);
        let text = String::from_utf8_lossy(&external);
        let volume = catalog.directory().find(&text).map(|parent| parent.path());
        Some(format!("external {}", volume.as_deref().unwrap_or(&text)))
    });
    let clones: Vec<String> = info.clones.iter().copied().filter_map(name_of).collect();
    Ok(Description(vec![
        ("parent", parent.unwrap_or_default()),
        ("clones", clones.join(" ")),
        ("uuid", entry.uuid().to_string()),
        ("pool", pool.name().to_string()),
        ("blob", format!("{:#x}", entry.blob().get())),
        ("thin", info.thin.to_string()),
        ("snapshot", info.snapshot.to_string()),
        ("read_only", volume.is_read_only().to_string()),
        ("size", volume.size().to_string()),
        ("allocated", volume.allocated().to_string()),
        ("cluster_size", pool.cluster_size().to_string()),
        ("block_size", volume.block_size().to_string()),
        ("cache", entry.caching().name().to_owned()),
        ("reservation", reservation(catalog, entry)),
    ]))
}

/// The reservations as one line of words.
fn reservation(catalog: &Catalog, entry: &Entry) -> String {
    let (state, local) = (entry.gate().reservations(), catalog.directory().hosts().local());
    let access = match state.rights(local) {
        Rights::All => "read-write",
        Rights::Read => "read",
        Rights::None => "none",
    };
    if let Some(damage) = state.fence() {
        return format!("type=fenced access={access} reason={damage}");
    }
    let role = match (state.is_holder(local), state.key_of(local)) {
        (true, _) => "holder",
        (false, Some(_)) => "registrant",
        (false, None) => "none",
    };
    let kind = state.reservation().map_or(0, |held| held.reservation_type().wire());
    let registrants = state.registrants().len();
    format!("type={kind} registrants={registrants} role={role} access={access}")
}
