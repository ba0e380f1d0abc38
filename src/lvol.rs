//! The lvolstore: SPDK's on-disk format with ordered, flushed commits.
//!
//! ```text
//!  reactor A          reactor B          the owner's reactor
//!  VolumeIo           VolumeIo ---mail--> Store
//!     |   \              |   \           allocate, operations, commit, reclaim
//!     |    `-- VolumeMap-+----`---------- (writes it; the others only read it)
//!     v                  v                   v
//!  device channel     device channel      device channel
//! ```
//!
//! [`Store`] is the pool at its one owner; [`StoreIo`] and [`VolumeIo`] are a reactor's way to its
//! volumes; [`VolumeMap`] is what both share. `commit.rs` has the order in which things become
//! durable, `recover.rs` how they are found again, `format` the bytes.

mod allocate;
mod allocator;
pub mod check;
mod commit;
mod create;
pub mod dump;
mod error;
mod external;
pub mod format;
mod freeze;
mod grow;
mod inflate;
mod interruption;
mod io;
mod journal;
mod merge;
mod metadata_io;
mod operations;
mod periodic;
mod reclaim;
mod recover;
pub mod repair;
mod scrub;
mod shallow_copy;
mod snapshot;
mod space;
mod store;
mod supply;
mod tracker;
pub mod validate;
mod volume;
mod volume_map;

pub use create::{FormatOptions, Preparation};
pub use error::{Damage, Error, IoFailure, ReadOnlyReason, Resource, VolumeTransfer};
pub use external::{EXTERNAL_CHAIN_LIMIT, External, ExternalName, external_name, stored_name};
pub use interruption::Interruption;
pub use io::{StoreIo, VolumeIo, VolumeParent};
pub use journal::TornWrites;
pub use operations::NewVolume;
pub use recover::Recovery;
pub use scrub::{DEFAULT_RATE, FINDINGS_LIMIT, LOWEST_RATE, ScrubReport, ScrubState};
pub use snapshot::NewRelative;
pub use space::{OnFull, SpaceChange, SpaceState, WAIT_LIMIT, WAITERS_LIMIT};
pub use store::{Quarantined, Store, StoreCounters, StoreInfo, StoreState};
pub use tracker::{InFlight, Tracker};
pub use volume::VolumeInfo;
pub use volume_map::{Place, VOLUME_CLUSTERS_LIMIT, VolumeMap};
