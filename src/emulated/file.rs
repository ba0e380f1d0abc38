//! A regular file or a block device as the medium. The host's page cache is the volatile cache.
//!
//! Data moves between the file and DMA memory with no copy of ours between. What was synced is
//! on the medium; after a sync that failed nobody knows what is, and every later one fails too:
//! the kernel reports a lost page once and then forgets it. A file that was deleted, replaced or
//! cut short meanwhile counts as a failed sync: nobody could open what is written to it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::cache::ROT;
use super::scatter::Scatter;
use crate::hw::file::{Fallocate, Kept, fallocate, size_of};
use crate::units::{BlockCount, BlockSize};

/// Zeros for file systems that cannot zero a range themselves.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// A file that holds the blocks of a namespace.
#[derive(Debug)]
pub struct FileMedia {
    file: File,
    block_size: BlockSize,
    blocks: BlockCount,
    kept: Kept,
    sync_failed: bool,
}

impl FileMedia {
    /// The blocks of `file`, which must be open for reading and writing. Bytes past the last
    /// whole block are not used.
    ///
    /// # Errors
    /// The system's; `InvalidInput` for a file that is no medium or holds not one block.
    pub fn new(file: File, block_size: BlockSize) -> io::Result<Self> {
        let blocks = size_of(&file)? >> block_size.shift();
        if blocks == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let kept = Kept::of(&file)?;
        Ok(Self { file, block_size, blocks: BlockCount(blocks), kept, sync_failed: false })
    }

    /// Size of a logical block.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Blocks of the file.
    #[must_use]
    pub fn blocks(&self) -> BlockCount {
        self.blocks
    }

    /// Takes in what the file has gained; true if that is a block or more. A file that has become
    /// smaller keeps its blocks, and reads of the missing ones fail.
    pub(super) fn rescan(&mut self) -> io::Result<bool> {
        let blocks = BlockCount(self.kept.measure(&self.file)? >> self.block_size.shift());
        let grown = blocks > self.blocks;
        self.blocks = self.blocks.max(blocks);
        Ok(grown)
    }

    /// Reads `length` bytes at `offset`. A file that was cut short meanwhile is an error.
    pub(super) fn read(&self, offset: u64, into: &mut Scatter<'_>) -> io::Result<()> {
        let mut position = offset;
        while let Some((window, segment)) = into.next(usize::MAX) {
            let mut done = 0;
            while done < segment.length {
                let iova = segment.after(done);
                let left = segment.length - done;
                match window.read_file(self.file.as_fd(), position, iova, left) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => {
                        done += read;
                        position += read as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Writes to the page cache. On an error part of the data may have been written.
    pub(super) fn write(&self, offset: u64, from: &mut Scatter<'_>) -> io::Result<()> {
        let mut position = offset;
        while let Some((window, segment)) = from.next(usize::MAX) {
            let mut done = 0;
            while done < segment.length {
                let iova = segment.after(done);
                let left = segment.length - done;
                match window.write_file(self.file.as_fd(), position, iova, left) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        done += written;
                        position += written as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Makes a range read as zeros, keeping its storage where the file system can.
    pub(super) fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        if fallocate(&self.file, Fallocate::ZeroRange, offset, length).is_ok() {
            return Ok(());
        }
        let (mut position, end) = (offset, offset + length);
        while position < end {
            let step = (end - position).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..step as usize], position)?;
            position += step;
        }
        Ok(())
    }

    /// Gives a range's storage back, so that it reads as zeros.
    ///
    /// # Errors
    /// The system's, when nothing was changed: a host's hint that could not be followed.
    pub(super) fn deallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        fallocate(&self.file, Fallocate::PunchHole, offset, length)
    }

    /// Changes the byte at `offset`, if the file lets us.
    pub(super) fn rot(&self, offset: u64) {
        let mut byte = [0];
        if self.file.read_exact_at(&mut byte, offset).is_ok() {
            drop(self.file.write_all_at(&[byte[0] ^ ROT], offset));
        }
    }

    /// Makes everything written so far durable.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.sync_failed {
            return Err(io::Error::other("an earlier sync failed"));
        }
        // What was synced to a file without a name is on the medium, and still nobody's.
        let result = self.file.sync_data().and_then(|()| self.kept.check(&self.file));
        if let Err(error) = &result {
            tracing::error!(%error, "the emulated drive's file cannot be made durable any more");
            self.sync_failed = true;
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulated::scatter::Segment;
    use crate::hw::dma::DmaArena;
    use crate::units::ByteCount;

    #[test]
    fn data_moves_between_file_and_memory() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10 * 4096 + 100).unwrap();
        let mut media = FileMedia::new(file.try_clone().unwrap(), BlockSize::B4096).unwrap();
        assert_eq!(media.blocks(), BlockCount(10));
        let arena = DmaArena::new(ByteCount::MIB, false).unwrap();
        let window = arena.window();
        let mut buffer = arena.allocate(8192).unwrap();
        buffer[..4096].fill(1);
        buffer[4096..].fill(2);
        let part = |from: u64| Segment {
            iova: crate::units::Iova(buffer.iova().get() + from),
            length: 4096,
        };
        let swapped = [part(4096), part(0)];
        media.write(4096, &mut Scatter::new(&window, &swapped)).unwrap();
        media.sync().unwrap();
        let mut seen = [0; 8192];
        file.read_exact_at(&mut seen, 4096).unwrap();
        assert!(seen[..4096] == [2; 4096] && seen[4096..] == [1; 4096]);
        media.zero(4096, 4096).unwrap();
        media.deallocate(8192, 4096).unwrap();
        media.read(4096, &mut Scatter::new(&window, &swapped)).unwrap();
        assert!(buffer.iter().all(|&byte| byte == 0));
        file.set_len(4096).unwrap();
        let error = media.read(4096, &mut Scatter::new(&window, &swapped)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_sync_that_failed_is_not_forgotten() {
        // A pipe has a size to nobody and cannot be synced; it stands for a failing disk.
        let (_, writer) = io::pipe().unwrap();
        let mut media = FileMedia {
            file: File::from(std::os::fd::OwnedFd::from(writer)),
            block_size: BlockSize::B512,
            blocks: BlockCount(1),
            kept: Kept::of(&tempfile::tempfile().unwrap()).unwrap(),
            sync_failed: false,
        };
        assert!(media.sync().is_err());
        media.file = tempfile::tempfile().unwrap();
        assert!(media.sync().is_err());
    }

    #[test]
    fn an_empty_file_is_no_medium() {
        let file = tempfile::tempfile().unwrap();
        assert!(FileMedia::new(file, BlockSize::B512).is_err());
    }
}
