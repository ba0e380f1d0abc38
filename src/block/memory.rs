//! A device in memory: for tests, benches, and volumes that need not outlive the process.
//!
//! Sparse: only chunks that were written take memory, so a test may have a device of terabytes.
//! Chunks share huge pages: see [`crate::hw::pieces`].
//! It has no volatile cache: there is nothing that a flush could still save.

use std::rc::Rc;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::{
    BlockDevice, BlockError, Counted, Counters, Counting, Discard, Durability, Geometry, Transfer,
    TransferError,
};
use crate::hw::dma::{DmaBuffer, MAX_BUFFER};
use crate::hw::pieces::{PIECE, Piece, Pieces};
use crate::units::{BlockCount, BlockSize, ByteCount, Lba};

const CHUNK: usize = PIECE;
/// Chunks that are found together.
const GROUP: usize = 1024;

/// [`CHUNK`] bytes, or nothing: zeros.
type Chunk = RwLock<Option<Piece>>;

/// The shared part of a memory device.
#[derive(Clone)]
pub struct MemoryDevice(Arc<Memory>);

struct Memory {
    geometry: Geometry,
    groups: Box<[OnceLock<Box<[Chunk]>>]>,
    pieces: Pieces,
}

impl MemoryDevice {
    /// A device of `size` bytes, rounded down to whole blocks, that reads as zeros.
    #[must_use]
    pub fn new(size: ByteCount, block_size: BlockSize) -> Self {
        let geometry = Geometry {
            block_size,
            physical_block_size: block_size,
            block_count: BlockCount(size.get() >> block_size.shift()).into(),
            atomic_write: ByteCount(4096.max(u64::from(block_size.bytes()))),
            volatile_cache: false,
            discard: Discard::Zeroes,
            max_transfer: ByteCount(MAX_BUFFER as u64),
        };
        let groups = size.get().div_ceil((CHUNK * GROUP) as u64);
        let groups = (0..groups).map(|_| OnceLock::new()).collect();
        Self(Arc::new(Memory { geometry, groups, pieces: Pieces::default() }))
    }

    /// What the device is.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.0.geometry
    }

    /// Makes it larger; what is new reads as zeros. A smaller size changes nothing.
    pub fn grow(&self, size: ByteCount) {
        let geometry = &self.0.geometry;
        geometry.block_count.grow(BlockCount(size.get() >> geometry.block_size.shift()));
    }

    /// A channel for one reactor.
    #[must_use]
    pub fn channel(&self) -> MemoryChannel {
        MemoryChannel { device: self.clone(), counting: Rc::default() }
    }

    /// Memory that the contents take.
    #[must_use]
    pub fn resident(&self) -> ByteCount {
        let there = |chunk: &&Chunk| chunk.read().is_ok_and(|chunk| chunk.is_some());
        let chunks = self.0.groups.iter().filter_map(OnceLock::get).flatten();
        ByteCount((chunks.filter(there).count() * CHUNK) as u64)
    }
}

impl Memory {
    /// A chunk, if any of its group was ever written.
    fn known(&self, chunk: u64) -> Option<&Chunk> {
        let (group, within) = (chunk / GROUP as u64, chunk % GROUP as u64);
        Some(&self.groups[group as usize].get()?[within as usize])
    }

    fn chunk(&self, chunk: u64) -> &Chunk {
        let (group, within) = (chunk / GROUP as u64, chunk % GROUP as u64);
        let new = || (0..GROUP).map(|_| Chunk::default()).collect();
        &self.groups[group as usize].get_or_init(new)[within as usize]
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        for (chunk, start, part) in pieces(offset, into.len()) {
            let target = &mut into[part.clone()];
            let chunk = self.known(chunk).map(Chunk::read);
            match chunk.map(|chunk| chunk.unwrap_or_else(PoisonError::into_inner)).as_deref() {
                Some(Some(bytes)) => target.copy_from_slice(&bytes[start..start + part.len()]),
                Some(None) | None => target.fill(0),
            }
        }
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), BlockError> {
        for (chunk, start, part) in pieces(offset, from.len()) {
            let mut bytes = self.chunk(chunk).write().unwrap_or_else(PoisonError::into_inner);
            let bytes = match &mut *bytes {
                Some(bytes) => bytes,
                none => none.insert(self.pieces.allocate().ok_or(BlockError::System {
                    operation: "getting memory for a write",
                    offset: offset + part.start as u64,
                    errno: libc::ENOMEM,
                })?),
            };
            bytes[start..start + part.len()].copy_from_slice(&from[part]);
        }
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64) {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let (chunk, start) = (at / CHUNK as u64, (at % CHUNK as u64) as usize);
            let part = (end - at).min((CHUNK - start) as u64) as usize;
            at += part as u64;
            let Some(chunk) = self.known(chunk) else { continue };
            let mut bytes = chunk.write().unwrap_or_else(PoisonError::into_inner);
            if part == CHUNK {
                *bytes = None;
            } else if let Some(bytes) = &mut *bytes {
                bytes[start..start + part].fill(0);
            }
        }
    }
}

/// The chunks that a range touches: number, first byte in the chunk, part of the range.
fn pieces(
    offset: u64,
    length: usize,
) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done as u64;
        let (chunk, start) = (at / CHUNK as u64, (at % CHUNK as u64) as usize);
        let part = done..done + (length - done).min(CHUNK - start);
        done = part.end;
        Some((chunk, start, part))
    })
}

/// One reactor's way to a memory device.
#[derive(Clone)]
pub struct MemoryChannel {
    device: MemoryDevice,
    counting: Rc<Counting>,
}

impl BlockDevice for MemoryChannel {
    fn geometry(&self) -> &Geometry {
        &self.device.0.geometry
    }

    async fn read(&self, start: Lba, mut buffer: DmaBuffer) -> Transfer {
        let checked = self.geometry().check_transfer(start, buffer.len());
        self.counting.add(Counted::Read(buffer.len() as u64), checked.is_ok());
        match checked {
            Ok((offset, _)) => self.device.0.read(offset, &mut buffer),
            Err(error) => return Err(TransferError::new(error, buffer)),
        }
        Ok(buffer)
    }

    async fn write(&self, start: Lba, buffer: DmaBuffer, durability: Durability) -> Transfer {
        let checked = self.geometry().check_transfer(start, buffer.len());
        self.counting.add(Counted::Write(buffer.len() as u64, durability), checked.is_ok());
        let written = checked.and_then(|(offset, _)| self.device.0.write(offset, &buffer));
        match written {
            Ok(()) => Ok(buffer),
            Err(error) => Err(TransferError::new(error, buffer)),
        }
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.counting.add(Counted::Flush, true);
        Ok(())
    }

    async fn discard(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        self.zero(Counted::Discard, start, blocks)
    }

    async fn write_zeroes(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        self.zero(Counted::WriteZeroes, start, blocks)
    }

    fn counters(&self) -> Counters {
        self.counting.get()
    }
}

impl MemoryChannel {
    fn zero(&self, what: Counted, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        let checked = self.geometry().check(start, blocks);
        self.counting.add(what, checked.is_ok());
        let length = blocks.get() << self.geometry().block_size.shift();
        self.device.0.zero(checked?, length);
        Ok(())
    }
}
