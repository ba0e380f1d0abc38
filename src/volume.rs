//! A volume as front ends see it, whatever their protocol: found by name, read and written at any
//! byte, flushed, resized, described.
//!
//! What all reactors share is in the [`Directory`]: which pools and volumes there are, under
//! which names, who has them open. Each reactor has a [`Catalog`], its way in, and through it
//! [`Volume`]s, which do I/O on that reactor without a hop. What changes a pool (create, delete,
//! rename, resize, attributes) is done by the pool's owner reactor, in [`owner`], one change of
//! names after the other.
//!
//! Invariants:
//! * Every read and write of every front end passes [`Gate::check`], as an operation of a host:
//!   the local mount is one too ([`Hosts`]). Nobody else decides what a reservation allows.
//! * Two writes that touch the same block do not lose each other's bytes, on whatever reactors
//!   they run ([`exclusion`]).
//! * An open volume that loses its name keeps working until the last front end closes it.

pub mod attributes;
mod caching;
mod catalog;
mod directory;
mod error;
pub mod events;
mod exclusion;
mod gate;
mod handle;
mod hosts;
mod key;
mod owner;
mod parents;
mod pool;
mod relatives;
mod reservations;

pub use attributes::Attributes;
pub use caching::Caching;
pub use catalog::Catalog;
pub use directory::{Directory, Entry, Hold, Key, Opening};
pub use error::Error;
pub use gate::{Access, Gate};
pub use handle::{Slice, Volume, VolumeCounters};
pub use hosts::{DRAIN_LIMIT, Hosts, Keeping, Listener};
pub use owner::{NewVolume, PoolOwner, Replace, USER_PREFIX, is_file_name};
pub use pool::Pool;
pub use reservations::{ATTRIBUTE as RESERVATIONS_ATTRIBUTE, Reset};

use crate::block::AnyChannel;

/// The store under a pool.
pub type Store = crate::lvol::Store<AnyChannel>;
