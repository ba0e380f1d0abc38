//! The device's side of the arena.

#![expect(unsafe_code, reason = "copies between the mapping and other memory, or files")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::DmaArena;
use crate::units::Iova;

/// The arena seen from the device's side: what an emulated controller may touch. Every access
/// names a device address and is refused if any byte of it lies outside the arena.
#[derive(Clone, Debug)]
pub struct DmaWindow(DmaArena);

/// A device address outside the memory that was mapped for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("device address {:#x}+{length} is outside the mapped DMA window", .iova.get())]
pub struct OutsideWindow {
    /// First byte of the access.
    pub iova: Iova,
    /// Its length.
    pub length: usize,
}

impl DmaWindow {
    pub(super) fn new(arena: DmaArena) -> Self {
        Self(arena)
    }

    fn pointer(&self, iova: Iova, length: usize) -> Result<*mut u8, OutsideWindow> {
        let arena = &self.0.0;
        let offset = arena.offset_of(iova, length).ok_or(OutsideWindow { iova, length })?;
        // SAFETY: in bounds of the mapping, with all `length` bytes, as just checked.
        Ok(unsafe { arena.base.as_ptr().add(offset) })
    }

    /// Whether all `length` bytes at `iova` can be reached.
    #[must_use]
    pub fn contains(&self, iova: Iova, length: usize) -> bool {
        self.pointer(iova, length).is_ok()
    }

    /// Copies from memory, as a device's DMA read does.
    ///
    /// # Errors
    /// [`OutsideWindow`].
    pub fn read(&self, iova: Iova, into: &mut [u8]) -> Result<(), OutsideWindow> {
        let from = self.pointer(iova, into.len())?;
        // SAFETY: in bounds; `into` is ordinary memory and cannot overlap the arena unless the
        // host broke the protocol by lending CPU-owned arena memory to itself as a device.
        unsafe { std::ptr::copy(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Copies into memory, as a device's DMA write does.
    ///
    /// # Errors
    /// [`OutsideWindow`].
    pub fn write(&self, iova: Iova, from: &[u8]) -> Result<(), OutsideWindow> {
        let into = self.pointer(iova, from.len())?;
        // SAFETY: in bounds; see `read`.
        unsafe { std::ptr::copy(from.as_ptr(), into, from.len()) };
        Ok(())
    }

    /// Stores eight aligned bytes after everything written before (release): how a completion
    /// queue entry's half with the phase bit becomes visible last.
    ///
    /// # Errors
    /// [`OutsideWindow`], also for an address that is not a multiple of eight.
    pub fn store_release(&self, iova: Iova, value: u64) -> Result<(), OutsideWindow> {
        let pointer = self.pointer(iova, 8)?;
        if !iova.get().is_multiple_of(8) {
            return Err(OutsideWindow { iova, length: 8 });
        }
        // SAFETY: in bounds and aligned; the other side uses atomics for queue memory.
        unsafe { &*pointer.cast::<AtomicU64>() }.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    /// Loads four aligned bytes (acquire), or stores them (release): a shadow doorbell.
    ///
    /// # Errors
    /// [`OutsideWindow`], also for an address that is not a multiple of four.
    pub fn load_half(&self, iova: Iova) -> Result<u32, OutsideWindow> {
        Ok(u32::from_le(self.half(iova)?.load(Ordering::Acquire)))
    }

    /// See [`DmaWindow::load_half`].
    ///
    /// # Errors
    /// [`OutsideWindow`], also for an address that is not a multiple of four.
    pub fn store_half(&self, iova: Iova, value: u32) -> Result<(), OutsideWindow> {
        self.half(iova)?.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    fn half(&self, iova: Iova) -> Result<&AtomicU32, OutsideWindow> {
        let pointer = self.pointer(iova, 4)?;
        if !iova.get().is_multiple_of(4) {
            return Err(OutsideWindow { iova, length: 4 });
        }
        // SAFETY: in bounds and aligned; the mapping lives as long as `self`. The other side uses
        // atomics for shadow doorbells.
        Ok(unsafe { &*pointer.cast::<AtomicU32>() })
    }

    /// Reads from a file straight into memory. Returns the bytes read.
    ///
    /// # Errors
    /// The system's; `InvalidInput` for an address outside.
    pub fn read_file(
        &self,
        file: BorrowedFd<'_>,
        position: u64,
        iova: Iova,
        length: usize,
    ) -> io::Result<usize> {
        let into = self.pointer(iova, length).map_err(invalid)?;
        let position = i64::try_from(position).map_err(invalid)?;
        // SAFETY: in bounds of the mapping, which outlives the call.
        let read = unsafe { libc::pread(file.as_raw_fd(), into.cast(), length, position) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// Writes from memory straight to a file. Returns the bytes written.
    ///
    /// # Errors
    /// The system's; `InvalidInput` for an address outside.
    pub fn write_file(
        &self,
        file: BorrowedFd<'_>,
        position: u64,
        iova: Iova,
        length: usize,
    ) -> io::Result<usize> {
        let from = self.pointer(iova, length).map_err(invalid)?;
        let position = i64::try_from(position).map_err(invalid)?;
        // SAFETY: in bounds of the mapping, which outlives the call.
        let written = unsafe { libc::pwrite(file.as_raw_fd(), from.cast(), length, position) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}
