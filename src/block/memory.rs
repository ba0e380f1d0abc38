//! A device in memory: for tests, benches, and volumes that need not outlive the process.
//!
//! Sparse: only chunks that were written take memory, so a test may have a device of terabytes.
//! It has no volatile cache: there is nothing that a flush could still save.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock};

use super::{
    BlockDevice, BlockError, Counted, Counters, Counting, Discard, Durability, Geometry, Transfer,
    TransferError,
};
use crate::hw::dma::{DmaBuffer, MAX_BUFFER};
use crate::units::{BlockCount, BlockSize, ByteCount, Lba};

const CHUNK: usize = 64 << 10;
/// Chunks are spread over this many locks.
const SHARDS: usize = 64;

type Shard = RwLock<HashMap<u64, Box<[u8]>>>;

/// The shared part of a memory device.
#[derive(Clone)]
pub struct MemoryDevice(Arc<Memory>);

struct Memory {
    geometry: Geometry,
    shards: Vec<Shard>,
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
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        Self(Arc::new(Memory { geometry, shards }))
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
        let chunks = |shard: &Shard| shard.read().map_or(0, |map| map.len());
        ByteCount(self.0.shards.iter().map(chunks).sum::<usize>() as u64 * CHUNK as u64)
    }
}

impl Memory {
    fn shard(&self, chunk: u64) -> &Shard {
        &self.shards[(chunk % SHARDS as u64) as usize]
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        for (chunk, start, part) in pieces(offset, into.len()) {
            let target = &mut into[part.clone()];
            let map = self.shard(chunk).read().unwrap_or_else(PoisonError::into_inner);
            match map.get(&chunk) {
                Some(bytes) => target.copy_from_slice(&bytes[start..start + part.len()]),
                None => target.fill(0),
            }
        }
    }

    fn write(&self, offset: u64, from: &[u8]) {
        for (chunk, start, part) in pieces(offset, from.len()) {
            let mut map = self.shard(chunk).write().unwrap_or_else(PoisonError::into_inner);
            let bytes = map.entry(chunk).or_insert_with(|| vec![0; CHUNK].into());
            bytes[start..start + part.len()].copy_from_slice(&from[part]);
        }
    }

    fn zero(&self, offset: u64, length: u64) {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let (chunk, start) = (at / CHUNK as u64, (at % CHUNK as u64) as usize);
            let part = (end - at).min((CHUNK - start) as u64) as usize;
            let mut map = self.shard(chunk).write().unwrap_or_else(PoisonError::into_inner);
            if part == CHUNK {
                map.remove(&chunk);
            } else if let Some(bytes) = map.get_mut(&chunk) {
                bytes[start..start + part].fill(0);
            }
            at += part as u64;
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
        match checked {
            Ok((offset, _)) => self.device.0.write(offset, &buffer),
            Err(error) => return Err(TransferError::new(error, buffer)),
        }
        Ok(buffer)
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
