//! Where a validator reads from.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use crate::units::ByteCount;

use super::ValidateError;

/// Bytes that can be read at any position: an image file, a block device, memory.
pub trait ImageRead {
    /// How many bytes there are.
    ///
    /// # Errors
    /// What the operating system says.
    fn size(&self) -> io::Result<ByteCount>;

    /// Fills `into` with the bytes from `offset` on.
    ///
    /// # Errors
    /// What the operating system says; `UnexpectedEof` beyond the end.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

impl ImageRead for &[u8] {
    fn size(&self) -> io::Result<ByteCount> {
        Ok(ByteCount(self.len() as u64))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).ok();
        let bytes = offset
            .and_then(|offset| self.get(offset..))
            .and_then(|rest| rest.get(..into.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(bytes);
        Ok(())
    }
}

impl ImageRead for File {
    /// A block device has no length but an end.
    fn size(&self) -> io::Result<ByteCount> {
        let mut file = self;
        file.seek(SeekFrom::End(0)).map(ByteCount)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }
}

/// Reads, and says where if that fails.
pub(in crate::lvol) fn read(
    image: &dyn ImageRead,
    offset: u64,
    into: &mut [u8],
) -> Result<(), ValidateError> {
    let length = into.len();
    image.read_at(offset, into).map_err(|source| ValidateError::Read { offset, length, source })
}
