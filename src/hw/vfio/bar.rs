//! BAR 0 of a controller: its registers and doorbells.
//!
//! What may be mapped is mapped, in one reserved range of addresses; the rest (a page that holds
//! the interrupt table, on older kernels) is reached through the device's descriptor. Every access
//! is a volatile one of 32 bits: some controllers mishandle wider ones, and NVMe allows a 64-bit
//! register to be read as two halves.
//!
//! A device that is gone answers reads with all ones and loses writes, whether the bus says so or
//! the kernel takes the mapping away (see `sigbus`).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::ioctl::Region;
use super::sigbus::GuardedRange;
use crate::hw::transport::DoorbellMemory;

/// Where the doorbells start (NVMe over PCIe Transport 1.1, 3.1.2).
pub(super) const DOORBELLS: u32 = 0x1000;
/// No more of a BAR than this is mapped: room for 65536 queue pairs, and for fewer of them with
/// doorbells far apart. A controller's own memory behind them is not used.
const LENGTH_LIMIT: usize = 16 << 20;
const PAGE: usize = 4096;

/// A mapped BAR.
#[derive(Debug)]
pub(super) struct Bar {
    /// Whatever is read or written is volatile, and may be the device's at any moment.
    base: NonNull<u8>,
    length: usize,
    /// The mapped parts; the rest of the range cannot be accessed.
    areas: Vec<Range<usize>>,
    guard: Option<GuardedRange>,
    device: Arc<File>,
    /// Where the BAR is in `device`.
    offset: u64,
}

// SAFETY: the mapping lives as long as `Bar` and is only accessed as volatile registers, which
// any thread may do.
unsafe impl Send for Bar {}
// SAFETY: as above.
unsafe impl Sync for Bar {}

impl Bar {
    /// Maps what may be mapped of `region` of `device`.
    pub(super) fn map(device: Arc<File>, region: &Region) -> io::Result<Self> {
        let limit = |size: u64| usize::try_from(size).unwrap_or(usize::MAX).min(LENGTH_LIMIT);
        let length = limit(region.size).next_multiple_of(PAGE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses, without any access.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let offset = region.offset;
        // From here on dropping the value unmaps the range.
        let mut bar = Self { base, length, areas: Vec::new(), guard: None, device, offset };
        for &(start, size) in &region.mappable {
            let end = limit(start.saturating_add(size)).min(limit(region.size));
            let (start, end) = (limit(start).next_multiple_of(PAGE), end & !(PAGE - 1));
            if start < end {
                bar.map_area(start..end)?;
            }
        }
        bar.guard = Some(GuardedRange::new(base.as_ptr().addr(), length)?);
        Ok(bar)
    }

    fn map_area(&mut self, area: Range<usize>) -> io::Result<()> {
        let overlaps = |other: &Range<usize>| area.start < other.end && other.start < area.end;
        let position = self.offset.checked_add(area.start as u64);
        let Some(position) = position.and_then(|position| i64::try_from(position).ok()) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if area.end > self.length || self.areas.iter().any(overlaps) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: within the range that was reserved for this BAR, which nothing refers to yet.
        let mapped = unsafe {
            let at = self.base.as_ptr().add(area.start).cast();
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            libc::mmap(at, area.len(), protection, flags, self.device.as_raw_fd(), position)
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.areas.push(area);
        Ok(())
    }

    /// Whether the first doorbells can be rung by a store.
    pub(super) fn has_doorbells(&self) -> bool {
        self.pointer(DOORBELLS).is_some()
    }

    /// Whether the kernel took the mapping away under an access.
    pub(super) fn is_dead(&self) -> bool {
        self.guard.as_ref().is_some_and(GuardedRange::is_dead)
    }

    /// The register at `offset` if it is mapped.
    fn pointer(&self, offset: u32) -> Option<NonNull<u32>> {
        let offset = offset as usize;
        let inside = |area: &Range<usize>| area.start <= offset && offset + 4 <= area.end;
        if !offset.is_multiple_of(4) || !self.areas.iter().any(inside) {
            return None;
        }
        // SAFETY: within the mapping, as just checked; the result is aligned.
        Some(unsafe { self.base.add(offset) }.cast())
    }

    /// Reads a register. All ones if there is none, or no device any more.
    pub(super) fn read32(&self, offset: u32) -> u32 {
        let value = match self.pointer(offset) {
            // SAFETY: a mapped, aligned register that lives as long as `self`.
            Some(register) => u32::from_le(unsafe { register.as_ptr().read_volatile() }),
            None => {
                let mut bytes = [0xff; 4];
                let read = self.device.read_exact_at(&mut bytes, self.position(offset));
                if read.is_ok() { u32::from_le_bytes(bytes) } else { u32::MAX }
            }
        };
        if self.is_dead() { u32::MAX } else { value }
    }

    /// Writes a register, after everything that this thread stored before.
    pub(super) fn write32(&self, offset: u32, value: u32) {
        match self.pointer(offset) {
            Some(register) => {
                std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
                // SAFETY: as for reading; the device is the only one to see the store.
                unsafe { register.as_ptr().write_volatile(value.to_le()) };
            }
            // A write to a device that is gone is lost: the same as on the bus.
            None => drop(self.device.write_all_at(&value.to_le_bytes(), self.position(offset))),
        }
    }

    fn position(&self, offset: u32) -> u64 {
        self.offset.saturating_add(u64::from(offset))
    }
}

impl DoorbellMemory for Bar {
    fn register(&self, offset: u32) -> Option<NonNull<u32>> {
        self.pointer(DOORBELLS.checked_add(offset)?)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // First the guard: after it nobody maps anything here.
        self.guard = None;
        // SAFETY: the range was mapped by `map`; no reference into it is left, since a doorbell
        // keeps its memory.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::transport::Doorbell;

    /// A file that stands for a device whose BAR is its second page and on.
    fn device(pages: usize) -> Arc<File> {
        let file = tempfile::tempfile().unwrap();
        file.set_len((1 + pages as u64) * PAGE as u64).unwrap();
        Arc::new(file)
    }

    fn region(pages: u64, mappable: &[(u64, u64)]) -> Region {
        Region { offset: 4096, size: pages * 4096, mappable: mappable.to_vec() }
    }

    fn on_device(file: &File, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 4096 + offset).unwrap();
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn registers_are_reached_mapped_or_not() {
        let file = device(4);
        // The third page may not be mapped.
        let mappable = [(0, 0x2000), (0x3000, 0x1000)];
        let bar = Arc::new(Bar::map(Arc::clone(&file), &region(4, &mappable)).unwrap());
        assert!(bar.has_doorbells());
        for offset in [0x14, 0x1ffc, 0x2000, 0x2ffc, 0x3000] {
            bar.write32(offset, 0x0100_0000 + offset);
            assert_eq!(bar.read32(offset), 0x0100_0000 + offset);
            assert_eq!(on_device(&file, u64::from(offset)), 0x0100_0000 + offset);
        }
        assert!(bar.pointer(0x2000).is_none() && bar.pointer(0x1002).is_none());
        let bell = |offset| Doorbell::new(Arc::clone(&bar) as _, offset, None);
        bell(8).unwrap().ring(77);
        assert_eq!(on_device(&file, 0x1008), 77);
        assert!(bell(0x1000).is_none() && bell(0x3000).is_none() && bell(u32::MAX).is_none());
        assert_eq!(bar.read32(0x8000), u32::MAX, "past the end");
        assert_eq!(bar.read32(u32::MAX), u32::MAX);
        bar.write32(u32::MAX - 3, 1);
    }

    #[test]
    fn areas_that_make_no_sense_are_not_mapped() {
        let map = |mappable: &[(u64, u64)]| Bar::map(device(2), &region(2, mappable));
        assert!(!map(&[]).unwrap().has_doorbells());
        assert!(!map(&[(u64::MAX, u64::MAX)]).unwrap().has_doorbells());
        assert!(map(&[(0, u64::MAX)]).unwrap().has_doorbells());
        assert!(map(&[(0, 0x2000), (0x1000, 0x1000)]).is_err(), "they overlap");
        let far = Region { offset: u64::MAX - 4096, ..region(2, &[(0, 0x2000)]) };
        assert!(Bar::map(device(2), &far).is_err());
    }

    #[test]
    fn a_bar_that_vanishes_reads_all_ones() {
        let file = device(2);
        let other = device(2);
        let bar = Arc::new(Bar::map(Arc::clone(&file), &region(2, &[(0, 0x2000)])).unwrap());
        let alive = Bar::map(Arc::clone(&other), &region(2, &[(0, 0x2000)])).unwrap();
        let bell = Doorbell::new(Arc::clone(&bar) as _, 0, None).unwrap();
        assert_eq!(bar.read32(0x1c), 0);
        // The kernel raises SIGBUS for pages past the end of a file, as for those of a BAR whose
        // device is gone.
        file.set_len(0).unwrap();
        bell.ring(1);
        assert!(bar.is_dead());
        assert_eq!(bar.read32(0x1c), u32::MAX);
        bar.write32(0x14, 5);
        bell.ring(2);
        assert_eq!((bar.read32(0x14), bar.read32(0x1000)), (u32::MAX, u32::MAX));
        assert_eq!(alive.read32(0x1c), 0, "another BAR is not concerned");
        assert!(!alive.is_dead());
        drop(bell);
        drop(bar);
        let again = Bar::map(device(2), &region(2, &[(0, 0x2000)])).unwrap();
        assert!(!again.is_dead(), "the place in the table is as new");
    }
}
