//! An arena whose physical addresses a device uses: for drives without an IOMMU.
//!
//! What a device knows must stay true for as long as it may act on it, and without an IOMMU nobody
//! stops it when it does not. So, in order:
//!
//! 1. The memory is a file in hugetlbfs, locked by this process. Its pages are contiguous for 2 MiB,
//!    and are neither swapped nor compacted. They are the file's, not the process's: after a SIGKILL
//!    they stay its own, so a drive that the kernel has not stopped yet writes to memory that
//!    nobody else was given. The next start takes the file over; an orderly end removes it.
//! 2. The file's pages are mapped in the order of their addresses, such that every two from an even
//!    one on are neighbours: no buffer is larger. Pages that have none are given back.
//! 3. They are registered with an io_uring, which pins them for long (`FOLL_LONGTERM`), as VFIO does
//!    where there is an IOMMU. The kernel moves no page that is pinned so, whoever asks. `mlock` would
//!    keep them from being swapped, not from being moved.
//! 4. Only then the addresses that devices are told are read, from `/proc/self/pagemap`.

#![expect(unsafe_code, reason = "maps the file's pages and registers them with an io_uring")]

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use io_uring::IoUring;

use super::{HUGE_PAGE, PAGE};
use crate::units::{ByteCount, Iova};

/// Huge pages in the largest buffer.
const NEIGHBOURS: usize = super::MAX_BUFFER / HUGE_PAGE;
/// `/proc/self/pagemap`: the page is there, and where (`Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// Why there is no such arena.
#[derive(Debug, thiserror::Error)]
pub enum PhysicalError {
    /// hugetlbfs is not mounted.
    #[error(
        "no hugetlbfs with pages of 2 MiB is mounted; run as root: mkdir -p /dev/hugepages && mount \
         -t hugetlbfs -o pagesize=2M none /dev/hugepages"
    )]
    NoHugetlbfs,
    /// There are not enough huge pages.
    #[error(
        "{path}: {reason}: the memory takes {pages} free huge pages of 2 MiB; boot with \
         hugepages={pages}, or write the number to /proc/sys/vm/nr_hugepages", path = .path.display()
    )]
    NoPages {
        /// The file.
        path: PathBuf,
        /// How many it takes.
        pages: usize,
        /// The system's reason.
        reason: io::Error,
    },
    /// The file is another process's.
    #[error("{}: in use by another process", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened, locked, sized or mapped.
    #[error("{}: {operation}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// The system's reason.
        reason: io::Error,
    },
    /// The pages cannot be pinned.
    #[error(
        "cannot pin {size} of memory with an io_uring: {reason}; where that is ENOMEM raise the \
         limit on locked memory (systemd: LimitMEMLOCK=infinity, shell: ulimit -l)",
        size = .size.human()
    )]
    Pin {
        /// How much.
        size: ByteCount,
        /// The system's reason.
        reason: io::Error,
    },
    /// The physical addresses cannot be had.
    #[error("/proc/self/pagemap tells no physical addresses: {reason}; it takes CAP_SYS_ADMIN")]
    Pagemap {
        /// The system's reason.
        reason: io::Error,
    },
    /// The pages lie apart.
    #[error(
        "the free huge pages lie apart: of {found} only {paired} lie side by side, and {pages} must; \
         reserve more, at boot (hugepages=N on the kernel's command line)"
    )]
    Apart {
        /// How many pages were looked at.
        found: usize,
        /// How many of them have a neighbour.
        paired: usize,
        /// How many must.
        pages: usize,
    },
    /// A page is not where it was.
    #[error("a huge page moved from {before:#x} to {now:#x} while it was mapped; start again")]
    Moved {
        /// Its address before it was pinned.
        before: u64,
        /// And after.
        now: u64,
    },
}

/// Where the arena's huge pages are, in the order in which they are mapped.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Addresses(Box<[u64]>);

impl Addresses {
    /// The address of the byte at `offset` of the arena.
    #[inline]
    pub(super) fn at(&self, offset: usize) -> Iova {
        Iova(self.0[offset / HUGE_PAGE] + (offset % HUGE_PAGE) as u64)
    }

    /// Where in the arena `length` bytes at an address are, if all of them are.
    pub(super) fn find(&self, iova: Iova, length: usize) -> Option<usize> {
        let page = self.0.partition_point(|&address| address <= iova.get()).checked_sub(1)?;
        let within = usize::try_from(iova.get() - self.0[page]).ok()?;
        if within >= HUGE_PAGE {
            return None;
        }
        let last = (within.checked_add(length)?.max(1) - 1) / HUGE_PAGE;
        let run = self.0.get(page..=page.checked_add(last)?)?;
        let contiguous = run.windows(2).all(|pair| pair[0] + HUGE_PAGE as u64 == pair[1]);
        contiguous.then_some(page * HUGE_PAGE + within)
    }
}

/// Which `count` of the pages at `addresses` to map, in order: ascending, and each group of
/// [`NEIGHBOURS`] from a multiple of it on without a gap.
fn choose(addresses: &[u64], count: usize) -> Result<Vec<usize>, PhysicalError> {
    let mut order: Vec<usize> = (0..addresses.len()).collect();
    order.sort_unstable_by_key(|&page| addresses[page]);
    let adjoin = |pair: &[usize]| addresses[pair[0]] + HUGE_PAGE as u64 == addresses[pair[1]];
    let (mut chosen, mut rest) = (Vec::with_capacity(count), order.as_slice());
    while chosen.len() < count
        && let Some(group) = rest.get(..NEIGHBOURS)
    {
        if group.windows(2).all(adjoin) {
            chosen.extend_from_slice(group);
            rest = &rest[NEIGHBOURS..];
        } else {
            rest = &rest[1..];
        }
    }
    match chosen.len() {
        enough if enough == count => Ok(chosen),
        paired => Err(PhysicalError::Apart { found: addresses.len(), paired, pages: count }),
    }
}

/// A file's pages, pinned and mapped.
pub(super) struct PhysicalPages {
    pub(super) addresses: Addresses,
    path: PathBuf,
    /// Pins the pages for as long as it lives.
    _pin: IoUring,
}

impl PhysicalPages {
    /// Removes the file.
    pub(super) fn remove(&self) {
        // What is left is taken over by the next start.
        drop(std::fs::remove_file(&self.path));
    }
}

/// The pages, their file, and where they are mapped.
pub(super) struct Mapped {
    pub(super) pages: PhysicalPages,
    pub(super) file: File,
    pub(super) base: NonNull<u8>,
}

/// Maps `length` bytes, a multiple of the largest buffer, from the file `name` in hugetlbfs.
pub(super) fn map(name: &str, length: usize) -> Result<Mapped, PhysicalError> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let path = hugetlbfs(&mounts).ok_or(PhysicalError::NoHugetlbfs)?.join(name);
    let file = open(&path)?;
    let pages = length / HUGE_PAGE;
    // The more are looked at, the more of them lie side by side.
    let mut result = map_among(&path, &file, pages, pages);
    for more in [pages / 4 + NEIGHBOURS, pages + NEIGHBOURS] {
        if !matches!(result, Err(PhysicalError::Apart { .. })) {
            break;
        }
        match map_among(&path, &file, pages, pages + more) {
            // There are no more: what is wrong is still that they lie apart.
            Err(PhysicalError::NoPages { .. }) => break,
            other => result = other,
        }
    }
    let (base, addresses, pin) = result?;
    let pages = PhysicalPages { addresses, path, _pin: pin };
    Ok(Mapped { pages, file, base })
}

/// Maps and pins `pages` pages, chosen among the first `all` of the file.
fn map_among(
    path: &Path,
    file: &File,
    pages: usize,
    all: usize,
) -> Result<(NonNull<u8>, Addresses, IoUring), PhysicalError> {
    let failed =
        |operation| move |reason| PhysicalError::File { path: path.to_owned(), operation, reason };
    let short = |reason| PhysicalError::NoPages { path: path.to_owned(), pages: all, reason };
    file.set_len((all * HUGE_PAGE) as u64).map_err(failed("set its size"))?;
    let found = map_pages(file, std::ptr::null_mut(), all * HUGE_PAGE, 0).map_err(short)?;
    let addresses = physical(found, all);
    // SAFETY: the mapping that was just made, to which nothing refers.
    unsafe { libc::munmap(found.cast(), all * HUGE_PAGE) };
    let addresses = addresses?;
    let chosen = choose(&addresses, pages)?;
    for page in (0..all).filter(|page| !chosen.contains(page)) {
        give_back(file, page).map_err(failed("give a page back"))?;
    }
    // From here on an error leaves the mapping behind: the process gives up.
    let base = reserve(pages * HUGE_PAGE).map_err(failed("reserve addresses"))?;
    for (place, &page) in chosen.iter().enumerate() {
        let at = base.wrapping_add(place * HUGE_PAGE);
        map_pages(file, at, HUGE_PAGE, page * HUGE_PAGE).map_err(failed("mmap"))?;
    }
    let pin = pin(base, pages * HUGE_PAGE)?;
    let told = physical(base, pages)?;
    for (&page, &now) in chosen.iter().zip(&told) {
        if addresses[page] != now {
            return Err(PhysicalError::Moved { before: addresses[page], now });
        }
    }
    let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory).map_err(Into::into);
    Ok((base.map_err(failed("mmap"))?, Addresses(told.into()), pin))
}

/// Addresses for `length` bytes of huge pages, with nothing there yet.
fn reserve(length: usize) -> io::Result<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let more = length + HUGE_PAGE;
    // SAFETY: a new mapping without any access at an address that the kernel chooses.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), more, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let unaligned = start.addr() % HUGE_PAGE;
    let to_boundary = (HUGE_PAGE - unaligned) % HUGE_PAGE;
    Ok(start.cast::<u8>().wrapping_add(to_boundary))
}

/// Takes a page out of the file.
fn give_back(file: &File, page: usize) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let offset = i64::try_from(page * HUGE_PAGE).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: an open descriptor and numbers; nothing is mapped of the page.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, HUGE_PAGE as i64) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The first place among `mounts` (`/proc/self/mounts`) where files are made of pages of 2 MiB.
fn hugetlbfs(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (place, kind, options) = (words.next()?, words.next()?, words.next()?);
        let fits = |option: &str| option.strip_prefix("pagesize=").is_none_or(|size| size == "2M");
        (kind == "hugetlbfs" && options.split(',').all(fits)).then(|| Path::new(place).into())
    })
}

/// The file, locked. It has no pages unless a process that was killed has left them.
fn open(path: &Path) -> Result<File, PhysicalError> {
    let failed =
        |operation| move |reason| PhysicalError::File { path: path.to_owned(), operation, reason };
    let in_use = || PhysicalError::InUse { path: path.to_owned() };
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.custom_flags(libc::O_NOFOLLOW).open(path).map_err(failed("open"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(in_use()),
        Err(TryLockError::Error(reason)) => return Err(failed("lock")(reason)),
    }
    // Its last user may have removed it since it was opened.
    if file.metadata().map_err(failed("stat"))?.nlink() == 0 {
        return Err(in_use());
    }
    Ok(file)
}

/// Maps `length` bytes of the file from `offset` at an address, in place of what is there, or at
/// one that the kernel chooses.
fn map_pages(file: &File, at: *mut u8, length: usize, offset: usize) -> io::Result<*mut u8> {
    let fixed = if at.is_null() { 0 } else { libc::MAP_FIXED };
    let flags = libc::MAP_SHARED | libc::MAP_POPULATE | fixed;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: a new mapping where the kernel chooses, or one in place of a mapping of this module's
    // own that nothing refers to yet.
    let mapped =
        unsafe { libc::mmap(at.cast(), length, protection, flags, file.as_raw_fd(), offset) };
    match mapped {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        mapped => Ok(mapped.cast()),
    }
}

/// Pins the pages that are mapped at `base` until what is returned is dropped.
fn pin(base: *mut u8, length: usize) -> Result<IoUring, PhysicalError> {
    let failed = |reason| PhysicalError::Pin { size: ByteCount(length as u64), reason };
    let ring = IoUring::new(1).map_err(failed)?;
    let page = |page: usize| libc::iovec {
        iov_base: base.wrapping_add(page * HUGE_PAGE).cast(),
        iov_len: HUGE_PAGE,
    };
    let pages: Vec<libc::iovec> = (0..length / HUGE_PAGE).map(page).collect();
    // SAFETY: the ranges are mapped, and nothing is ever submitted to this ring, so the kernel
    // only pins them.
    unsafe { ring.submitter().register_buffers(&pages) }.map_err(failed)?;
    Ok(ring)
}

/// The physical address of each of `count` huge pages that are mapped at `base`.
fn physical(base: *const u8, count: usize) -> Result<Vec<u64>, PhysicalError> {
    let failed = |reason| PhysicalError::Pagemap { reason };
    let pagemap = File::open("/proc/self/pagemap").map_err(failed)?;
    let address = |page: usize| {
        let mut entry = [0; 8];
        let index = (base.addr() + page * HUGE_PAGE) / PAGE;
        pagemap.read_exact_at(&mut entry, index as u64 * 8).map_err(failed)?;
        let entry = u64::from_ne_bytes(entry);
        let address = (entry & FRAME) * PAGE as u64;
        // Without the capability the kernel tells 0.
        let told = entry & PRESENT != 0 && address != 0;
        match told && address.is_multiple_of(HUGE_PAGE as u64) {
            true => Ok(address),
            false => Err(failed(io::ErrorKind::PermissionDenied.into())),
        }
    };
    (0..count).map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn addresses(pages: &[u64]) -> Addresses {
        Addresses(pages.iter().map(|page| page * 2 * MIB).collect())
    }

    #[test]
    fn what_lies_in_the_arena_is_found_and_nothing_else() {
        let arena = addresses(&[10, 11, 12, 13, 40, 41]);
        let huge = HUGE_PAGE;
        for offset in [0, 1, huge - 1, huge, 4 * huge + 4096, 6 * huge - 1] {
            assert_eq!(arena.find(arena.at(offset), 1), Some(offset));
        }
        let at = |page: u64| Iova(page * 2 * MIB);
        assert_eq!(arena.find(at(10), 4 * huge), Some(0));
        assert_eq!(arena.find(at(10), 4 * huge + 1), None, "across the gap");
        assert_eq!(arena.find(at(40), 2 * huge), Some(4 * huge));
        assert_eq!(arena.find(at(41), huge + 1), None, "past the end");
        for outside in [Iova(0), Iova(at(10).get() - 1), at(14), at(39), at(42), Iova(u64::MAX)] {
            assert_eq!(arena.find(outside, 1), None, "{outside:?}");
        }
        assert_eq!(arena.find(at(10), usize::MAX), None);
    }

    #[test]
    fn pages_are_mapped_so_that_the_largest_buffer_has_no_gap() {
        let at = |pages: &[u64]| pages.iter().map(|page| page * 2 * MIB).collect::<Vec<_>>();
        assert_eq!(choose(&at(&[7, 3, 2, 6]), 4).unwrap(), [2, 1, 3, 0]);
        assert_eq!(choose(&at(&[5, 4]), 2).unwrap(), [1, 0]);
        assert_eq!(
            choose(&at(&[9, 1, 3, 4, 6, 7, 8]), 4).unwrap(),
            [2, 3, 4, 5],
            "1 and 9 are not"
        );
        for (pages, pairs) in [(&[2, 4, 5, 7][..], 2), (&[1][..], 0), (&[1, 2, 3][..], 2)] {
            let error = choose(&at(pages), 4).unwrap_err();
            assert!(
                matches!(error, PhysicalError::Apart { paired, .. } if paired == pairs),
                "{pages:?}: {error}"
            );
        }
    }

    #[test]
    fn hugetlbfs_is_found_by_its_kind_and_page_size() {
        let mounts = "proc /proc proc rw 0 0\n\
                      none /mnt/big hugetlbfs rw,pagesize=1024M 0 0\n\
                      hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n";
        assert_eq!(hugetlbfs(mounts), Some("/dev/hugepages".into()));
        assert_eq!(hugetlbfs("none /huge hugetlbfs rw 0 0\n"), Some("/huge".into()));
        assert_eq!(hugetlbfs("none /huge tmpfs rw 0 0\nshort\n"), None);
    }
}
