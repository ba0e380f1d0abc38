//! The arguments, from which help, completions and manual pages are made as well.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use uuid::Uuid;

use super::check::{CheckStore, DumpStore};
use super::device::DeviceVerb;
use super::pool::PoolChange;
use super::relatives::RelativeVerb;
use super::reservation::ReservationVerb;
use super::scrub::ScrubPool;
use super::space::{VolumeSpace, WatchArguments};
use super::target::TargetVerb;
use crate::config::{VolumeName, check_name};
use crate::units::ByteCount;

/// Logical volumes as files, on an NVMe drive or a file, durable by fsync
///
/// Exit codes: 0 done; 1 failed; 2 wrong usage; 3 no daemon answers; 4 the configuration is
/// refused; from check: 5 the store can be repaired; 6 it is damaged.
#[derive(Debug, Parser)]
#[command(name = "lvolfs", version, max_term_width = 100, subcommand_required = true)]
pub struct Arguments {
    /// The daemon's control socket [default: that of --config, else var/lvolfs.sock]
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,

    /// The daemon's configuration
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,

    /// Print JSON instead of tables
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a daemon, in the foreground, until SIGTERM or Ctrl-C
    ///
    /// Opens the devices, opens or creates the pools and volumes that --config declares, mounts,
    /// and says when it is ready. Nothing is formatted that is not blank.
    Serve,
    /// Check a configuration without touching anything that it names
    CheckConfig {
        /// The configuration
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Check a store that no daemon has in use, one of SPDK's too, and repair it
    ///
    /// Reads all metadata: super block, bitmaps, every volume's pages, who owns which cluster,
    /// snapshots and clones, names. Exit codes: 0 nothing is wrong; 5 what is wrong can be repaired;
    /// 6 something is wrong that cannot; 1 it could not be checked.
    Check(CheckStore),
    /// Print the metadata of a store that no daemon has in use
    Dump(DumpStore),
    /// Tell the state of a running daemon
    Status {
        /// Also the counters of every layer
        #[arg(long)]
        counters: bool,
    },
    /// Create, look at and change pools
    #[command(subcommand)]
    Pool(PoolVerb),
    /// Create, look at and change volumes
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Look at devices; attach, detach and reset NVMe controllers
    #[command(subcommand)]
    Device(DeviceVerb),
    /// Print what happens to pools and volumes, a line each, as it happens
    Events(WatchArguments),
    /// Look at and change who may read and write a volume
    #[command(subcommand)]
    Reservation(ReservationVerb),
    /// Export volumes to other machines, and say who may use them
    #[command(subcommand)]
    Target(TargetVerb),
    /// Call any method of a running daemon and print its result as JSON
    ///
    /// `lvolfs rpc rpc_get_methods` lists the methods; their names and shapes are those of SPDK.
    Rpc {
        /// The method
        method: String,
        /// Its parameters, a JSON object; - reads them from standard input
        #[arg(value_name = "JSON")]
        parameters: Option<String>,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// An existing directory
        #[arg(value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
}

/// What to do with pools.
#[derive(Debug, Subcommand)]
pub enum PoolVerb {
    /// List the pools
    List,
    /// Show one pool
    Show {
        /// The pool's name
        #[arg(value_parser = pool_name)]
        pool: String,
    },
    #[command(flatten)]
    Change(PoolChange),
    /// Read all metadata and all data of a pool in the background, to find what cannot be read
    Scrub(ScrubPool),
}

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Create a volume; it is durable when the command returns
    Create(CreateVolume),
    /// List the volumes
    List {
        /// Only those of this pool
        #[arg(value_parser = pool_name)]
        pool: Option<String>,
    },
    /// Show one volume
    Show {
        /// The volume
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeName::parse)]
        volume: VolumeName,
    },
    /// Change a volume's size
    Resize {
        /// The volume
        #[arg(value_name = "POOL/VOLUME", value_parser = VolumeName::parse)]
        volume: VolumeName,
        /// Its size from now on, such as 256MiB; rounded up to whole clusters
        #[arg(value_parser = ByteCount::parse)]
        size: ByteCount,
        /// Allow a smaller size, and so the loss of what is beyond it
        #[arg(long)]
        shrink: bool,
    },
    /// Rename a volume within its pool
    Rename {
        /// The volume
        #[arg(value_name = "POOL/VOLUME|UUID", value_parser = VolumeReference::parse)]
        volume: VolumeReference,
        /// Its name from now on, with or without the pool
        #[arg(value_name = "NAME")]
        new_name: String,
    },
    #[command(flatten)]
    Relative(RelativeVerb),
    /// Promise a volume space, or say what its writes do when the pool is full
    Space(VolumeSpace),
    /// Delete a volume and its data; a snapshot's go to its only clone
    Delete {
        /// The volume
        #[arg(value_name = "POOL/VOLUME|UUID", value_parser = VolumeReference::parse)]
        volume: VolumeReference,
    },
}

/// A volume that is there; one whose name is no file's can be named by its UUID.
#[derive(Clone, Debug)]
pub enum VolumeReference {
    /// By pool and name.
    Name(VolumeName),
    /// By UUID.
    Uuid(Uuid),
}

impl VolumeReference {
    fn parse(text: &str) -> Result<Self, crate::config::NameError> {
        match Uuid::try_parse(text) {
            Ok(uuid) => Ok(Self::Uuid(uuid)),
            Err(_) => VolumeName::parse(text).map(Self::Name),
        }
    }
}

impl std::fmt::Display for VolumeReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Uuid(uuid) => uuid.fmt(f),
        }
    }
}

/// A volume to create.
#[derive(Debug, Args)]
pub struct CreateVolume {
    /// The volume
    #[arg(value_name = "POOL/VOLUME", value_parser = VolumeName::parse)]
    pub volume: VolumeName,
    /// Its size, such as 256MiB; rounded up to whole clusters
    #[arg(value_parser = ByteCount::parse)]
    pub size: ByteCount,
    /// Allocate all of it now instead of when it is written
    #[arg(long)]
    pub thick: bool,
}

pub(super) fn pool_name(text: &str) -> Result<String, crate::config::NameError> {
    check_name(text).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definitions_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        for line in ["lvolfs --json --socket s pool list", "lvolfs pool list --socket s --json"] {
            let arguments = parse(line).unwrap();
            assert_eq!(arguments.socket, Some("s".into()));
            assert!(arguments.json && matches!(arguments.verb, Verb::Pool(PoolVerb::List)));
        }
        let arguments = parse("lvolfs serve --config c.toml").unwrap();
        assert_eq!(arguments.config, Some("c.toml".into()));
    }

    #[test]
    fn values_are_checked_before_anything_is_asked() {
        let Verb::Volume(VolumeVerb::Create(create)) =
            parse("lvolfs volume create p/v 32MiB").unwrap().verb
        else {
            panic!("not a volume to create")
        };
        assert_eq!((create.volume.to_string(), create.size.get()), ("p/v".to_owned(), 32 << 20));
        assert!(!create.thick);
        for name in ["p/v", "97ac8e56-4b4c-4d5e-9d6f-1c5b0a3c7b11"] {
            let Verb::Volume(VolumeVerb::Rename { volume, .. }) =
                parse(&format!("lvolfs volume rename {name} w")).unwrap().verb
            else {
                panic!("not a volume to rename")
            };
            assert_eq!(volume.to_string(), name);
        }
        for line in [
            "lvolfs",
            "lvolfs frobnicate",
            "lvolfs volume delete v",
            "lvolfs volume create p/v",
            "lvolfs volume create v 32MiB",
            "lvolfs volume create p/v 32MB",
            "lvolfs volume show p/..",
            "lvolfs pool show a/b",
            "lvolfs completions klingon",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}: {error}");
        }
    }
}
