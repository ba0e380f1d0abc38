//! The configuration file: TOML in, checked values of unit types out.
//!
//! A file goes through two forms. The raw form is what serde reads: it refuses unknown keys and
//! wrong types. The checked form, [`Config`], is what the daemon gets: every value is in range,
//! every name is valid and unique, every reference leads somewhere. Nothing else is ever looked
//! at: neither form touches a device, a folder or a socket, so a file can be checked on any
//! machine.
//!
//! Each refusal names the file, the line, the key, the value and what is allowed; the check
//! collects all of them, so that a file is corrected in one round.
//!
//! `config.toml.example` documents every key; a test holds its defaults against those here.

mod cache;
mod check;
mod error;
mod identity;
mod mount;
mod name;
mod nvme;
mod pci;
mod raw;
mod shape;
mod space;
mod target;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::error::{ConfigError, Problem};
pub use self::mount::{DEFAULT_FILE_MODE, Mount, Transport};
pub use self::name::{NAME_BYTES_LIMIT, NameError, VolumeName, check_name};
pub use self::pci::PciAddress;
pub use self::target::{Namespace, Subsystem, Target};
pub use crate::reactor::Wait;
use crate::spec::reservation::HostId;
use crate::units::{BlockSize, ByteCount, NamespaceId};

/// Larger files are refused unread: no configuration is that long.
pub const FILE_BYTES_LIMIT: u64 = 1 << 20;
/// The most reactors that a configuration may ask for.
pub const REACTORS_LIMIT: usize = 64;
/// The most reactors that there are without being asked for: each takes a queue pair of each
/// device, and drives have few.
pub const DEFAULT_REACTORS_LIMIT: usize = 16;
/// Where the control socket is unless the file or the command line says otherwise.
pub const DEFAULT_SOCKET: &str = "var/lvolfs.sock";
/// The longest path of a control socket: what the system takes, less what is needed to put it in
/// place under a temporary name.
pub const SOCKET_PATH_BYTES_LIMIT: usize = 100;
/// Where the files of reservations are unless the file says otherwise.
pub const DEFAULT_RESERVATIONS: &str = "var/reservations";
/// The longest NQN.
pub const NQN_BYTES_LIMIT: usize = 223;
/// Cluster size of a pool that does not say otherwise; SPDK's.
pub const DEFAULT_CLUSTER_SIZE: ByteCount = ByteCount(4 << 20);
/// Free space in percent below which a pool that does not say otherwise counts as low.
pub const DEFAULT_LOW_WATER: u32 = 10;
/// Commit interval of a pool that does not say otherwise.
pub const DEFAULT_COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// How long a command of a drive may take unless the file says otherwise; Linux's.
pub const DEFAULT_IO_TIMEOUT: Duration = Duration::from_secs(30);
/// DMA memory unless the file says otherwise.
pub const DEFAULT_DMA_MEMORY: ByteCount = ByteCount(32 << 20);
/// Where the target keeps what is changed while it runs, unless the file says otherwise.
pub const DEFAULT_STATE_DIR: &str = "var/target";

/// A whole configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where volumes appear as files.
    pub mount: Mount,
    /// How the daemon is controlled.
    pub control: Control,
    /// The devices, in the file's order. Names, and what they stand on, are unique.
    pub devices: Vec<Device>,
    /// The pools, in the file's order. Each is on a device of its own, which exists in `devices`.
    pub pools: Vec<Pool>,
    /// The volumes to create if missing, in the file's order. Each is in one of `pools`.
    pub volumes: Vec<Volume>,
    /// Reservations, and the mount as a host.
    pub reservations: Reservations,
    /// What is exported to other machines; `None` if nothing is, and there is no target.
    pub target: Option<Target>,
    /// Threads and memory.
    pub reactor: Reactor,
    /// What is logged, and how.
    pub log: Log,
}

/// Whether the kernel may keep what is written to a volume's file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// No: every read and write arrives.
    #[default]
    Direct,
    /// Yes: in its page cache, until a flush or until it sees fit.
    Writeback,
}

/// `[control]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// The path of the control socket.
    pub socket: PathBuf,
}

/// `[[device]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The name that pools and requests use.
    pub name: String,
    /// Its UUID, by which volumes name it as their external parent; made from the name if `None`.
    pub uuid: Option<uuid::Uuid>,
    /// What it is.
    pub driver: Driver,
}

/// A device's driver, with the keys that this driver has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// A namespace of an NVMe controller on PCI.
    Nvme {
        /// The controller.
        address: PciAddress,
        /// The namespace; never 0.
        namespace: NamespaceId,
        /// How long a command may take before it is aborted, and again before the controller is
        /// reset; a flush has twice as long.
        io_timeout: Duration,
        /// Whether the controller is used though no IOMMU keeps it from the machine's memory.
        unsafe_no_iommu: bool,
    },
    /// The NVMe driver against an emulated controller over a file.
    NvmeEmulated(Image),
    /// A file or a block device of the host.
    File(Image),
    /// Memory of the daemon; its content ends with the daemon.
    Memory {
        /// Its size: a multiple of the block size, not 0.
        size: ByteCount,
        /// Its block size.
        block_size: BlockSize,
    },
}

impl Driver {
    /// The driver's name in the configuration.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Nvme { .. } => "nvme",
            Self::NvmeEmulated(_) => "nvme-emulated",
            Self::File(_) => "file",
            Self::Memory { .. } => "memory",
        }
    }

    /// The device's size, as far as the configuration tells it.
    #[must_use]
    pub const fn declared_size(&self) -> Option<ByteCount> {
        match self {
            Self::Nvme { .. } => None,
            Self::NvmeEmulated(image) | Self::File(image) => image.size,
            Self::Memory { size, .. } => Some(*size),
        }
    }

    /// The device's block size, as far as the configuration tells it.
    #[must_use]
    pub const fn block_size(&self) -> Option<BlockSize> {
        match self {
            Self::Nvme { .. } => None,
            Self::NvmeEmulated(image) | Self::File(image) => Some(image.block_size),
            Self::Memory { block_size, .. } => Some(*block_size),
        }
    }
}

/// A file under a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The file, or the block device.
    pub path: PathBuf,
    /// Its size: a multiple of the block size, not 0. `None` takes the file's own; never `None`
    /// if `create` is true.
    pub size: Option<ByteCount>,
    /// The block size it is used with.
    pub block_size: BlockSize,
    /// Whether to create the file if there is none.
    pub create: bool,
}

/// `[[pool]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The lvstore's name on disk, and the folder's name under the mount.
    pub name: String,
    /// The name of its device, which exists.
    pub device: String,
    /// Cluster size if it has to be formatted: a multiple of 4096 and of the device's block size,
    /// less than 4 GiB.
    pub cluster_size: ByteCount,
    /// Whether a blank device may be formatted. One that is not blank never is.
    pub create: bool,
    /// How long a changed mapping may wait for its commit when nobody asks for a flush.
    pub commit_interval: Duration,
    /// Free space in percent of the pool below which it is low; at most 99.
    pub low_water: u32,
}

/// `[[volume]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The pool, which exists, and the name in it.
    pub name: VolumeName,
    /// Its size, not 0; the pool rounds it up to whole clusters.
    pub size: ByteCount,
    /// Whether clusters are allocated on first write instead of at creation.
    pub thin: bool,
    /// How much of it can always be written, whatever others do; at most its size.
    pub reserve: ByteCount,
    /// Whether its writes wait when the pool is full, instead of failing.
    pub waits_for_space: bool,
    /// Whether the kernel may keep what is written to its file: the mount's, unless it says so
    /// itself.
    pub cache: Cache,
}

/// `[reservations]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservations {
    /// Where reservations outlive a power loss.
    pub ptpl: Ptpl,
    /// The host identifier of the local mount; made from the machine's if `None`.
    pub host_id: Option<HostId>,
    /// Its name; made from the host identifier if `None`.
    pub host_nqn: Option<String>,
}

/// Where reservations outlive a power loss (PTPL).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ptpl {
    /// In this folder, a file for each volume.
    Folder(PathBuf),
    /// In the volume's metadata.
    Volume,
}

/// `[reactor]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reactor {
    /// How many reactors, or on which CPUs.
    pub cores: Cores,
    /// How an idle reactor waits.
    pub wait: Wait,
    /// The size of the arena of DMA memory.
    pub dma_memory: ByteCount,
    /// Whether to use huge pages if the system has them to spare.
    pub huge_pages: bool,
}

/// The reactors' threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cores {
    /// One for each CPU that the process may use, up to [`DEFAULT_REACTORS_LIMIT`].
    #[default]
    All,
    /// So many, wherever the system runs them; from 1 to [`REACTORS_LIMIT`].
    Count(usize),
    /// One on each of these CPUs, each named once; from 1 to [`REACTORS_LIMIT`] of them.
    Cpus(Vec<usize>),
}

impl Cores {
    /// How many reactors that is, if the configuration alone tells it.
    #[must_use]
    pub fn count(&self) -> Option<usize> {
        match self {
            Self::All => None,
            Self::Count(count) => Some(*count),
            Self::Cpus(cpus) => Some(cpus.len()),
        }
    }
}

/// `[log]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// The least severe events that are logged.
    pub level: LogLevel,
    /// Their form.
    pub format: LogFormat,
}

/// The severity of a log event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what failed.
    Error,
    /// Also what needs attention.
    Warn,
    /// Also what changed state.
    #[default]
    Info,
    /// Also how it came about.
    Debug,
    /// Also every request.
    Trace,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// If it cannot be read, or with every problem found in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = error::read(path)?;
        Self::parse(&text, path)
    }

    /// Checks `text`, which came from `path`.
    ///
    /// # Errors
    /// With every problem found.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let parsed = shape::check(text)
            .and_then(|()| {
                toml::from_str(text).map_err(|error| vec![Problem::from_toml(&error, text)])
            })
            .and_then(|raw| check::check(raw, text));
        parsed.map_err(|problems| ConfigError::Invalid { path: path.to_owned(), problems })
    }
}
