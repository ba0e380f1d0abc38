//! A transfer of several clusters: cut into pieces, and joined again.

use std::sync::Arc;

use crate::hw::dma::DmaBuffer;
use crate::units::{BlockCount, ByteOffset, Lba, VolumeCluster};

use super::super::error::{IoFailure, VolumeTransfer};
use super::super::external::Shown;
use super::super::tracker::InFlight;

/// A part of a transfer that one device operation or one call of the owner does.
pub(super) struct Piece<'a> {
    pub(super) bytes: usize,
    pub(super) way: Way<'a>,
}

pub(super) enum Way<'a> {
    /// At this place; not reused before the operation is finished.
    Place(Lba, InFlight<'a>),
    /// Nowhere yet, or in a parent's cluster.
    Owner(VolumeCluster, BlockCount),
    /// No data: zeros.
    Zeros,
    /// Outside of the pool, at this byte of the volume.
    External(Arc<Shown>, ByteOffset),
}

/// Cuts a buffer as the pieces say.
pub(super) fn cut(mut buffer: DmaBuffer, pieces: &[Piece<'_>]) -> Vec<DmaBuffer> {
    let mut parts = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let rest = buffer.split_off(piece.bytes);
        parts.push(std::mem::replace(&mut buffer, rest));
    }
    parts
}

/// Joins the parts again. The first error counts; one buffer that did not come back takes the
/// whole with it.
pub(super) fn join(parts: Vec<VolumeTransfer>) -> VolumeTransfer {
    let mut failed = None;
    let mut joined: Option<DmaBuffer> = None;
    let mut complete = true;
    for part in parts {
        let buffer = match part {
            Ok(buffer) => Some(buffer),
            Err(IoFailure { error, buffer }) => {
                failed.get_or_insert(error);
                buffer
            }
        };
        match (&mut joined, buffer) {
            (_, None) => complete = false,
            (None, Some(buffer)) => joined = Some(buffer),
            (Some(joined), Some(buffer)) => complete &= joined.join(buffer).is_ok(),
        }
    }
    match (failed, joined.filter(|_| complete)) {
        (None, Some(buffer)) => Ok(buffer),
        (None, None) => unreachable!("what did not fail gave its buffer back"),
        (Some(error), buffer) => Err(IoFailure { error, buffer }),
    }
}
