//! What a request is answered with, whatever transport it came by.

use std::ops::Range;

use zerocopy::{Immutable, IntoBytes};

use super::abi::{CreateOut, OutHeader};
use super::errno::Errno;
use crate::hw::dma::DmaBuffer;

/// The largest fixed structure in an answer.
const INLINE: usize = size_of::<CreateOut>();

/// An answer.
#[derive(Debug)]
pub enum Reply {
    /// The request failed.
    Error(Errno),
    /// A fixed structure, or nothing.
    Inline(Inline),
    /// Bytes of a directory or an extended attribute.
    Bytes(Vec<u8>),
    /// Data of a volume: this part of the buffer.
    Data(DmaBuffer, Range<usize>),
    /// The kernel expects no answer.
    None,
}

/// A small structure, held without an allocation.
#[derive(Clone, Copy, Debug)]
pub struct Inline {
    bytes: [u8; INLINE],
    length: usize,
}

impl Reply {
    /// Success with nothing to tell.
    #[must_use]
    pub const fn empty() -> Self {
        Self::Inline(Inline { bytes: [0; INLINE], length: 0 })
    }

    /// Success with one of the structures of [`super::abi`].
    ///
    /// # Panics
    /// If the structure is larger than all answers of the ABI: our mistake.
    #[must_use]
    pub fn structure<T: IntoBytes + Immutable>(structure: &T) -> Self {
        let from = structure.as_bytes();
        assert!(from.len() <= INLINE, "an answer of {} bytes is not inline", from.len());
        let mut bytes = [0; INLINE];
        bytes[..from.len()].copy_from_slice(from);
        Self::Inline(Inline { bytes, length: from.len() })
    }

    /// What follows the header.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        match self {
            Self::Error(_) | Self::None => &[],
            Self::Inline(inline) => &inline.bytes[..inline.length],
            Self::Bytes(bytes) => bytes,
            Self::Data(buffer, range) => &buffer[range.clone()],
        }
    }

    /// The header of this answer to the request `unique`; `None` if none is to be sent.
    #[must_use]
    pub fn header(&self, unique: u64) -> Option<OutHeader> {
        let error = match self {
            Self::None => return None,
            Self::Error(errno) => -errno.get(),
            Self::Inline(_) | Self::Bytes(_) | Self::Data(..) => 0,
        };
        let length = size_of::<OutHeader>() + self.body().len();
        // A body is at most one largest write and a header: far below 4 GiB.
        let len = u32::try_from(length).unwrap_or(u32::MAX);
        Some(OutHeader { len, error, unique })
    }
}

impl From<Errno> for Reply {
    fn from(errno: Errno) -> Self {
        Self::Error(errno)
    }
}
