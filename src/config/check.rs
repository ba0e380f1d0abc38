//! From the raw form to the checked one: every rule that a value, or two of them together, must
//! keep. All problems are collected; a configuration exists only if there are none.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use super::cache::Caches;
use super::error::Problem;
use super::raw::{
    Key, RawConfig, RawControl, RawCores, RawDevice, RawDriver, RawOnFull, RawPool, RawPtpl,
    RawReactor, RawReservations, RawVolume, RawWait, Size,
};
use super::{
    Config, Control, Cores, DEFAULT_CLUSTER_SIZE, DEFAULT_COMMIT_INTERVAL, DEFAULT_DMA_MEMORY,
    DEFAULT_RESERVATIONS, DEFAULT_SOCKET, Device, Driver, Image, Log, NQN_BYTES_LIMIT, Pool, Ptpl,
    REACTORS_LIMIT, Reactor, Reservations, SOCKET_PATH_BYTES_LIMIT, Volume, VolumeName, Wait,
    check_name,
};
use crate::spec::reservation::HostId;
use crate::units::{BlockSize, ByteCount};

/// An lvstore's metadata pages are so large, and clusters consist of whole ones.
const METADATA_PAGE: u64 = 4096;
/// SPDK keeps the cluster size in 32 bits.
const CLUSTER_SIZE_LIMIT: u64 = 1 << 32;
const DMA_MEMORY_LEAST: u64 = 4 << 20;
const DMA_MEMORY_MOST: u64 = 64 << 30;
const COMMIT_INTERVAL_LEAST: Duration = Duration::from_millis(10);
const COMMIT_INTERVAL_MOST: Duration = Duration::from_secs(600);
/// As many CPUs as Linux can be built for.
const CPUS_LIMIT: i64 = 8192;

/// Checks everything; the problems are in the file's order.
pub(super) fn check(raw: RawConfig, text: &str) -> Result<Config, Vec<Problem>> {
    let mut checker = Checker { text, problems: Vec::new(), caches: Caches::default() };
    if raw.mount.is_none() && raw.target.is_none() {
        let rule = "there is neither [mount] nor [target]: nobody could reach a volume";
        checker.refuse_section(&(0..0), "", rule);
    }
    let mount = checker.mount(raw.mount);
    let control = checker.control(raw.control);
    let devices = checker.devices(raw.device);
    let pools = checker.pools(raw.pool, &devices);
    let volumes = checker.volumes(raw.volume, &pools, &devices);
    let reservations = checker.reservations(raw.reservations);
    let target = raw.target.map(|raw| checker.target(raw.into_inner(), &pools));
    let reactor = checker.reactor(raw.reactor);
    let log = Log { level: raw.log.level, format: raw.log.format };
    let mut problems = checker.problems;
    // A section that is refused for a reason of its own is missing from those after it, but its
    // name is still known to them: see `Named`.
    match (mount, problems.is_empty()) {
        (Some(mount), true) => Ok(Config {
            mount,
            control,
            devices: devices.checked,
            pools: pools.checked,
            volumes,
            reservations,
            target,
            reactor,
            log,
        }),
        _ => {
            problems.sort_by_key(|problem| problem.line);
            Err(problems)
        }
    }
}

/// The sections of one kind: those that are fine, and the names of all.
pub(super) struct Named<T> {
    pub(super) checked: Vec<T>,
    /// Name to line, also of sections that have a problem, so that each is reported only once.
    pub(super) lines: HashMap<String, usize>,
}

pub(super) struct Checker<'a> {
    text: &'a str,
    problems: Vec<Problem>,
    pub(super) caches: Caches,
}

impl Checker<'_> {
    pub(super) fn refuse(&mut self, span: Range<usize>, key: &str, rule: impl Into<String>) {
        self.problems.push(Problem::at(self.text, span, key, rule.into()));
    }

    fn refuse_section(&mut self, span: &Range<usize>, section: &str, rule: impl Into<String>) {
        self.problems.push(Problem::of_section(self.text, span, section, rule.into()));
    }

    /// The key's value, or a problem that names the missing key.
    pub(super) fn require<T>(
        &mut self,
        key: Key<T>,
        section: &Range<usize>,
        name: &str,
        what: &str,
    ) -> Option<Spanned<T>> {
        if key.is_none() {
            let (table, key) = name.rsplit_once('.').unwrap_or(("", name));
            self.refuse_section(section, table, format!("the key \"{key}\" is missing: {what}"));
        }
        key
    }

    pub(super) fn path(&mut self, key: Spanned<String>, name: &str) -> Option<PathBuf> {
        let rule = match key.get_ref().as_str() {
            "" => "a path must not be empty",
            path if path.contains('\0') => "a path must not contain NUL",
            _ => return Some(PathBuf::from(key.into_inner())),
        };
        self.refuse(key.span(), name, rule);
        None
    }

    /// Notes the name of a section; refuses it if it is invalid or was there before.
    fn name(
        &mut self,
        key: &Spanned<String>,
        name: &str,
        lines: &mut HashMap<String, usize>,
    ) -> bool {
        if let Err(error) = check_name(key.get_ref()) {
            self.refuse(key.span(), name, error.to_string());
            return false;
        }
        self.unique(key, name, lines)
    }

    pub(super) fn unique(
        &mut self,
        key: &Spanned<String>,
        name: &str,
        lines: &mut HashMap<String, usize>,
    ) -> bool {
        let here = Problem::at(self.text, key.span(), name, String::new());
        match lines.get(key.get_ref()) {
            Some(line) => {
                let rule = format!("this is already on line {line}; each must be different");
                self.problems.push(Problem { rule, ..here });
                false
            }
            None => {
                lines.insert(key.get_ref().clone(), here.line);
                true
            }
        }
    }

    fn control(&mut self, raw: RawControl) -> Control {
        let Some(key) = raw.socket else {
            return Control { socket: DEFAULT_SOCKET.into() };
        };
        let (span, length) = (key.span(), key.get_ref().len());
        let socket = self.path(key, "control.socket").unwrap_or_default();
        if length > SOCKET_PATH_BYTES_LIMIT {
            let rule = format!(
                "a socket's path has at most {SOCKET_PATH_BYTES_LIMIT} bytes, this one has {length}"
            );
            self.refuse(span, "control.socket", rule);
        }
        Control { socket }
    }

    fn reservations(&mut self, raw: RawReservations) -> Reservations {
        let in_volume = raw.ptpl == Some(RawPtpl::Volume);
        if let Some(key) = raw.path.as_ref().filter(|_| in_volume) {
            let rule = "there are no files with ptpl = \"volume\"";
            self.refuse(key.span(), "reservations.path", rule);
        }
        let path = raw.path.map(|key| self.path(key, "reservations.path").unwrap_or_default());
        let path = path.unwrap_or_else(|| DEFAULT_RESERVATIONS.into());
        let ptpl = if in_volume { Ptpl::Volume } else { Ptpl::Folder(path) };
        let host_id = raw.host_id.and_then(|key| {
            let uuid = uuid::Uuid::parse_str(key.get_ref()).ok();
            let host_id = uuid.and_then(|uuid| HostId::new(uuid.into_bytes()));
            if host_id.is_none() {
                let rule = "a host identifier is a UUID, and not all zeros";
                self.refuse(key.span(), "reservations.host_id", rule);
            }
            host_id
        });
        let host_nqn = raw.host_nqn.and_then(|key| {
            let nqn = key.get_ref();
            let fine = nqn.starts_with("nqn.")
                && nqn.len() <= NQN_BYTES_LIMIT
                && !nqn.contains(char::is_control);
            if !fine {
                let rule = format!(
                    "a host's name begins with \"nqn.\" and has at most {NQN_BYTES_LIMIT} bytes"
                );
                self.refuse(key.span(), "reservations.host_nqn", rule);
            }
            fine.then(|| key.into_inner())
        });
        Reservations { ptpl, host_id, host_nqn }
    }

    fn devices(&mut self, raw: Vec<Spanned<RawDevice>>) -> Named<Device> {
        let mut named = Named { checked: Vec::new(), lines: HashMap::new() };
        let (mut stands_on, mut uuids) = (HashMap::new(), HashMap::new());
        for section in raw {
            let (span, raw) = (section.span(), section.into_inner());
            let name = self.require(raw.name.clone(), &span, "device.name", "pools refer to it");
            let unique =
                name.as_ref().is_some_and(|name| self.name(name, "device.name", &mut named.lines));
            let uuid = raw.uuid.clone().and_then(|key| self.uuid(&key, &mut uuids));
            let driver = self.driver(raw, &span, &mut stands_on);
            if let (Some(name), true, Some(driver)) = (name, unique, driver) {
                named.checked.push(Device { name: name.into_inner(), uuid, driver });
            }
        }
        named
    }

    fn driver(
        &mut self,
        raw: RawDevice,
        section: &Range<usize>,
        stands_on: &mut HashMap<String, usize>,
    ) -> Option<Driver> {
        let what = "one of \"nvme\", \"nvme-emulated\", \"file\", \"memory\"";
        let driver = self.require(raw.driver.clone(), section, "device.driver", what)?.into_inner();
        self.foreign_keys(&raw, driver);
        match driver {
            RawDriver::Nvme => self.nvme(raw, section, stands_on),
            RawDriver::NvmeEmulated => {
                self.image(raw, section, stands_on).map(Driver::NvmeEmulated)
            }
            RawDriver::File => self.image(raw, section, stands_on).map(Driver::File),
            RawDriver::Memory => {
                let what = "the size of the memory, such as \"1GiB\"";
                let block_size = self.block_size(raw.block_size)?;
                let size = self.require(raw.size, section, "device.size", what)?;
                let size = self.device_size(&size, block_size)?;
                Some(Driver::Memory { size, block_size })
            }
        }
    }

    /// Refuses keys that the device's driver does not have.
    fn foreign_keys(&mut self, raw: &RawDevice, driver: RawDriver) {
        let nvme = driver == RawDriver::Nvme;
        let image = matches!(driver, RawDriver::NvmeEmulated | RawDriver::File);
        let (of_images, of_blocks) = ("file, nvme-emulated", "file, memory, nvme-emulated");
        let keys = [
            ("path", place(&raw.path), image, of_images),
            ("create", place(&raw.create), image, of_images),
            ("size", place(&raw.size), !nvme, of_blocks),
            ("block_size", place(&raw.block_size), !nvme, of_blocks),
            ("pci", place(&raw.pci), nvme, "nvme"),
            ("namespace", place(&raw.namespace), nvme, "nvme"),
            ("io_timeout", place(&raw.io_timeout), nvme, "nvme"),
            ("unsafe_no_iommu", place(&raw.unsafe_no_iommu), nvme, "nvme"),
        ];
        for (key, span, allowed, drivers) in keys {
            if let (Some(span), false) = (span, allowed) {
                let rule = format!("only these drivers have this key: {drivers}");
                self.refuse(span, &format!("device.{key}"), rule);
            }
        }
    }

    fn image(
        &mut self,
        raw: RawDevice,
        section: &Range<usize>,
        stands_on: &mut HashMap<String, usize>,
    ) -> Option<Image> {
        let create = raw.create.is_some_and(Spanned::into_inner);
        let block_size = self.block_size(raw.block_size)?;
        let path = self.require(raw.path, section, "device.path", "the file's path");
        let size = match &raw.size {
            Some(size) => Some(self.device_size(size, block_size)?),
            None if create => {
                let what = "a file that may have to be created needs a size, such as \"1GiB\"";
                self.require(raw.size, section, "device.size", what);
                return None;
            }
            None => None,
        };
        let path = path?;
        let unique = self.unique(&path, "device.path", stands_on);
        let path = self.path(path, "device.path")?;
        unique.then_some(Image { path, size, block_size, create })
    }

    fn block_size(&mut self, key: Key<u32>) -> Option<BlockSize> {
        let Some(key) = key else { return Some(BlockSize::B4096) };
        match key.get_ref() {
            512 => Some(BlockSize::B512),
            4096 => Some(BlockSize::B4096),
            _ => {
                self.refuse(key.span(), "device.block_size", "a block size is 512 or 4096");
                None
            }
        }
    }

    fn device_size(&mut self, key: &Spanned<Size>, block_size: BlockSize) -> Option<ByteCount> {
        let size = key.get_ref().0;
        let whole = size.get().is_multiple_of(u64::from(block_size.bytes()));
        let representable = i64::try_from(size.get()).is_ok();
        if size.get() != 0 && whole && representable {
            return Some(size);
        }
        let rule = format!("a device's size is a multiple of its block size, {block_size}, not 0");
        let rule = if representable { rule } else { "a size is less than 8388608TiB".into() };
        self.refuse(key.span(), "device.size", rule);
        None
    }

    fn pools(&mut self, raw: Vec<Spanned<RawPool>>, devices: &Named<Device>) -> Named<Pool> {
        let mut named = Named { checked: Vec::new(), lines: HashMap::new() };
        let mut used = HashMap::new();
        for section in raw {
            let (span, raw) = (section.span(), section.into_inner());
            let what = "the lvstore's name, and the folder's";
            let name = self.require(raw.name.clone(), &span, "pool.name", what);
            let unique =
                name.as_ref().is_some_and(|name| self.name(name, "pool.name", &mut named.lines));
            let pool = self.pool(raw, &span, devices, &mut used);
            if let (Some(name), true, Some(pool)) = (name, unique, pool) {
                named.checked.push(Pool { name: name.into_inner(), ..pool });
            }
        }
        named
    }

    /// A pool but for its name.
    fn pool(
        &mut self,
        raw: RawPool,
        section: &Range<usize>,
        devices: &Named<Device>,
        used: &mut HashMap<String, usize>,
    ) -> Option<Pool> {
        let commit_interval = self.commit_interval(raw.commit_interval);
        let low_water = self.low_water(raw.low_water);
        let device = self.require(raw.device, section, "pool.device", "the name of its device");
        let name = device.as_ref().map_or("", |device| device.get_ref().as_str());
        let driver =
            devices.checked.iter().find(|device| device.name == name).map(|device| &device.driver);
        let cluster_size = self.cluster_size(raw.cluster_size, section, driver);
        let device = device.as_ref()?;
        if !devices.lines.contains_key(name) {
            self.refuse(device.span(), "pool.device", no_such("device", &devices.lines));
            return None;
        }
        if let Some(line) = used.get(name) {
            let rule =
                format!("the pool on line {line} is on this device; each needs one of its own");
            self.refuse(device.span(), "pool.device", rule);
            return None;
        }
        used.insert(name.to_owned(), Problem::of_section(self.text, section, "", "".into()).line);
        Some(Pool {
            name: String::new(),
            device: device.get_ref().clone(),
            cluster_size: cluster_size?,
            create: raw.create.unwrap_or(false),
            commit_interval: commit_interval?,
            low_water: low_water?,
        })
    }

    fn cluster_size(
        &mut self,
        key: Key<Size>,
        section: &Range<usize>,
        driver: Option<&Driver>,
    ) -> Option<ByteCount> {
        let size = key.as_ref().map_or(DEFAULT_CLUSTER_SIZE, |key| key.get_ref().0);
        let block = driver.and_then(Driver::block_size).map_or(1, BlockSize::bytes);
        let device = driver.and_then(Driver::declared_size);
        let rule = if size.get() == 0 || !size.get().is_multiple_of(METADATA_PAGE) {
            format!("a cluster is a multiple of {METADATA_PAGE} bytes, such as \"1MiB\"")
        } else if !size.get().is_multiple_of(u64::from(block)) {
            format!("a cluster is a multiple of the device's block size, {block}")
        } else if size.get() >= CLUSTER_SIZE_LIMIT {
            "a cluster is smaller than 4GiB".to_owned()
        } else if let Some(device) = device.filter(|device| *device < size) {
            format!("a cluster of {} does not fit the device's {}", size.human(), device.human())
        } else {
            return Some(size);
        };
        match key {
            Some(key) => self.refuse(key.span(), "pool.cluster_size", rule),
            None => self.refuse_section(section, "pool.cluster_size", rule),
        }
        None
    }

    fn commit_interval(&mut self, key: Key<super::raw::Interval>) -> Option<Duration> {
        let Some(key) = key else { return Some(DEFAULT_COMMIT_INTERVAL) };
        let interval = key.get_ref().0;
        if (COMMIT_INTERVAL_LEAST..=COMMIT_INTERVAL_MOST).contains(&interval) {
            return Some(interval);
        }
        self.refuse(key.span(), "pool.commit_interval", "it is from \"10ms\" to \"10min\"");
        None
    }

    fn volumes(
        &mut self,
        raw: Vec<Spanned<RawVolume>>,
        pools: &Named<Pool>,
        devices: &Named<Device>,
    ) -> Vec<Volume> {
        let mut lines = HashMap::new();
        let mut volumes = Vec::new();
        for section in raw {
            let (span, raw) = (section.span(), section.into_inner());
            let what = "the pool and the name in it, such as \"pool0/demo\"";
            let name = self.require(raw.name, &span, "volume.name", what);
            let name = name.and_then(|name| self.volume_name(&name, pools, &mut lines));
            let what = "the volume's size, such as \"256MiB\"";
            let size = self.require(raw.size, &span, "volume.size", what);
            let (Some(name), Some(size)) = (name, size) else { continue };
            let thin = raw.thin.unwrap_or(true);
            let pool = pools.checked.iter().find(|pool| pool.name == name.pool());
            let of_pool = |device: &&Device| pool.is_some_and(|pool| pool.device == device.name);
            let device = devices.checked.iter().find(of_pool);
            let device_size = device.and_then(|device| device.driver.declared_size());
            let reserve = self.reserve(raw.reserve, size.get_ref().0);
            let waits_for_space = raw.on_full == Some(RawOnFull::Wait);
            let cache = self.caches.set(&name, raw.cache);
            if self.volume_size(&size, pool, device_size.filter(|_| !thin))
                && let Some(reserve) = reserve
            {
                let size = size.get_ref().0;
                volumes.push(Volume { name, size, thin, reserve, waits_for_space, cache });
            }
        }
        volumes
    }

    fn volume_name(
        &mut self,
        key: &Spanned<String>,
        pools: &Named<Pool>,
        lines: &mut HashMap<String, usize>,
    ) -> Option<VolumeName> {
        let name = match VolumeName::parse(key.get_ref()) {
            Ok(name) => name,
            Err(error) => {
                self.refuse(key.span(), "volume.name", error.to_string());
                return None;
            }
        };
        if !pools.lines.contains_key(name.pool()) {
            self.refuse(key.span(), "volume.name", no_such("pool", &pools.lines));
            return None;
        }
        self.unique(key, "volume.name", lines).then_some(name)
    }

    /// `room` is the size of the device, if all of the volume must have its place there.
    fn volume_size(
        &mut self,
        key: &Spanned<Size>,
        pool: Option<&Pool>,
        room: Option<ByteCount>,
    ) -> bool {
        let size = key.get_ref().0;
        let cluster_size = pool.map_or(DEFAULT_CLUSTER_SIZE, |pool| pool.cluster_size);
        let most = ByteCount(cluster_size.get().saturating_mul(u64::from(u32::MAX)));
        let rule = if size.get() == 0 {
            "a volume is larger than 0".to_owned()
        } else if size > most {
            format!("a volume has at most 4294967295 clusters of {}", cluster_size.human())
        } else if let Some(room) = room.filter(|room| size > *room) {
            format!("a volume with thin = false fits its device, which has {}", room.human())
        } else {
            return true;
        };
        self.refuse(key.span(), "volume.size", rule);
        false
    }

    fn reactor(&mut self, raw: RawReactor) -> Reactor {
        let dma_memory = raw.dma_memory.as_ref().map_or(DEFAULT_DMA_MEMORY, |key| key.get_ref().0);
        let valid = (DMA_MEMORY_LEAST..=DMA_MEMORY_MOST).contains(&dma_memory.get());
        if let Some(key) = raw.dma_memory.filter(|_| !valid) {
            self.refuse(key.span(), "reactor.dma_memory", "it is from \"4MiB\" to \"64GiB\"");
        }
        Reactor {
            cores: self.cores(raw.cores).unwrap_or_default(),
            wait: match raw.wait {
                Some(RawWait::Busy) => Wait::Busy,
                Some(RawWait::Sleep) => Wait::Sleep,
                Some(RawWait::Adaptive) | None => Wait::Adaptive,
            },
            dma_memory,
            huge_pages: raw.huge_pages.unwrap_or(true),
        }
    }

    fn cores(&mut self, key: Key<RawCores>) -> Option<Cores> {
        let key = key?;
        let cores = match key.get_ref() {
            RawCores::Word(word) => (word == "all").then_some(Cores::All),
            RawCores::Count(count) => usize::try_from(*count).ok().map(Cores::Count),
            RawCores::Cpus(cpus) => {
                let cpu = |&cpu: &i64| usize::try_from(cpu).ok().filter(|_| cpu < CPUS_LIMIT);
                let known: Option<Vec<usize>> = cpus.iter().map(cpu).collect();
                let distinct = cpus.iter().collect::<HashSet<_>>().len() == cpus.len();
                known.filter(|_| distinct).map(Cores::Cpus)
            }
        };
        let cores = cores.filter(|cores| {
            cores.count().is_none_or(|count| (1..=REACTORS_LIMIT).contains(&count))
        });
        if cores.is_none() {
            let rule = format!(
                "it is \"all\", a number from 1 to {REACTORS_LIMIT}, or a list of different \
                 CPUs, such as [2, 3]"
            );
            self.refuse(key.span(), "reactor.cores", rule);
        }
        cores
    }
}

/// Where a key's value stands, if the key is there.
fn place<T>(key: &Key<T>) -> Option<Range<usize>> {
    key.as_ref().map(Spanned::span)
}

/// What to say of a reference that leads nowhere.
pub(super) fn no_such(kind: &str, lines: &HashMap<String, usize>) -> String {
    let mut names: Vec<String> = lines.keys().map(|name| format!("{name:?}")).collect();
    names.sort();
    match names.as_slice() {
        [] => format!("there is no [[{kind}]] in this file"),
        names => format!("no [[{kind}]] has this name; there is {}", names.join(", ")),
    }
}
