//! Checking a store that nobody has in use: what `lvolfs check` says about a device or an image.
//!
//! The judgement is [`validate`](super::validate)'s. Here stands what a tool needs around it: a
//! super block that is damaged is rebuilt in memory from what else the medium says, if that can be
//! done without guessing, so that everything behind it is checked all the same; and all findings
//! together make one [`Verdict`]. Nothing is written; that is for [`repair`](super::repair).
//!
//! Work and memory are bounded by the metadata that the image really holds, whatever it claims.

use crate::units::{BlobId, BlockSize, ByteCount, ByteOffset};

use super::format::{
    Contents, IDENTIFY_BYTES, PageBytes, STRUCTURE_SIZE, SuperBlock, SuperBlockError,
};
use super::validate::{
    Examined, Finding, ImageRead, Report, Severity, Tolerant, ValidateError, examine, image_read,
    medium_of, restored_super_block,
};

mod super_block;

/// What the operator knows of the store; looked at only when the super block is lost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// The allocation unit.
    pub cluster_size: Option<ByteCount>,
    /// The block size of the device that the store was made on.
    pub block_size: Option<BlockSize>,
}

/// What a check comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing is wrong. There may be notes.
    Clean,
    /// What is wrong can be put right without guessing.
    Repairable,
    /// Something is wrong that cannot.
    Damaged,
}

/// Why there is nothing to check or to repair.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The image cannot be read.
    #[error(transparent)]
    Read(#[from] ValidateError),
    /// It was never a store.
    #[error("there is no lvolstore here; it holds {0}")]
    NotLvolstore(Contents),
    /// Only what is damaged can be given up.
    #[error("blob {:#x} is not damaged; a daemon can delete it", .blob.0)]
    NotDamaged {
        /// Which.
        blob: BlobId,
    },
    /// Without it the store has no name.
    #[error("blob {:#x} is the store's own and cannot be given up", .blob.0)]
    OwnBlob {
        /// Which.
        blob: BlobId,
    },
    /// A blob cannot be given up before those that need it.
    #[error("blob {:#x} needs {:#x}, which is to be given up: give up both, or none", .needs.0, .blob.0)]
    Needed {
        /// What was to be given up.
        blob: BlobId,
        /// Its clone, or its partner in an interrupted operation.
        needs: BlobId,
    },
}

/// What a check found.
#[derive(Debug)]
pub struct Check {
    /// What is wrong with the super block.
    pub super_block: Option<SuperBlockError>,
    /// Everything else; `None` if the super block could not be rebuilt.
    pub report: Option<Report>,
}

impl Check {
    /// What it comes to.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let Some(report) = &self.report else { return Verdict::Damaged };
        let worst = report.findings.iter().map(Finding::severity).max();
        match worst {
            Some(Severity::Damage) => Verdict::Damaged,
            Some(Severity::Repairable) => Verdict::Repairable,
            _ if self.super_block.is_some() => Verdict::Repairable,
            Some(Severity::Note) | None => Verdict::Clean,
        }
    }
}

/// Checks the store in an image.
///
/// # Errors
/// [`CheckError`]: nothing could be checked.
pub fn check(image: &dyn ImageRead, known: Known) -> Result<Check, CheckError> {
    let Found { damage, super_block, is_torn } = find(image, known)?;
    let report = match super_block {
        Some(super_block) => Some(examine(image, super_block, is_torn)?.report()),
        None => None,
    };
    Ok(Check { super_block: damage, report })
}

/// The super block of an image, as it is or as it must have been.
pub(super) struct Found {
    pub(super) damage: Option<SuperBlockError>,
    pub(super) super_block: Option<SuperBlock>,
    /// Whether a power cut tore it, and opening restores it. That is no damage.
    pub(super) is_torn: bool,
}

/// Finds the super block.
pub(super) fn find(image: &dyn ImageRead, known: Known) -> Result<Found, CheckError> {
    let size = image.size().map_err(ValidateError::Size)?;
    let mut start = vec![0; size.0.min(IDENTIFY_BYTES as u64) as usize];
    // Without the first page nothing is known; what follows is looked at closely later.
    let first = start.len().min(STRUCTURE_SIZE);
    let (head, tail) = start.split_at_mut(first);
    image_read(image, 0, head)?;
    image_read(&Tolerant::new(image), STRUCTURE_SIZE as u64, tail)?;
    let Some(first) = start.first_chunk::<STRUCTURE_SIZE>() else {
        return Err(CheckError::NotLvolstore(Contents::identify(&start)));
    };
    // The smallest block there is: what is read here is not bound to the device's own.
    let medium = medium_of(image, BlockSize::B512)?;
    let whole =
        |super_block, is_torn| Ok(Found { damage: None, super_block: Some(super_block), is_torn });
    let damage = match SuperBlock::parse(first, medium) {
        Ok(super_block) => return whole(super_block, false),
        Err(damage) => damage,
    };
    if matches!(damage, SuperBlockError::Checksum { .. })
        && let Some(super_block) = restored_super_block(image, first, medium)?
    {
        return whole(super_block, true);
    }
    let super_block = match damage {
        SuperBlockError::Kind { .. } | SuperBlockError::Version { .. } => None,
        _ => super_block::rebuild(image, first, known)?,
    };
    match (super_block, Contents::identify(&start)) {
        (None, contents) if contents != Contents::Lvolstore => {
            Err(CheckError::NotLvolstore(contents))
        }
        (super_block, _) => Ok(Found { damage: Some(damage), super_block, is_torn: false }),
    }
}

/// Reads a page of 4096 bytes.
fn read_page(image: &dyn ImageRead, offset: ByteOffset) -> Result<PageBytes, ValidateError> {
    let mut page = [0; STRUCTURE_SIZE];
    image_read(image, offset.0, &mut page)?;
    Ok(page)
}

/// Examines the store of a super block that was found.
pub(super) fn examined(
    image: &dyn ImageRead,
    super_block: SuperBlock,
    is_torn: bool,
) -> Result<Examined, CheckError> {
    Ok(examine(image, super_block, is_torn)?)
}
