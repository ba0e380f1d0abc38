//! The undo file of a repair: what each page was, and what it became.
//!
//! ```text
//! 0      4096 bytes: magic, version, size of the image, number of pages, checksum
//! 4096   4096 bytes: zero while the repair is under way; "done" when it has ended
//! 8192   for each page that is written: offset, checksum of what follows, 4096 bytes as they were
//!        before the repair, 4096 bytes as they are written
//! ```
//!
//! It is written and made durable before the image is touched. It is put back only onto an image
//! whose every sector of these pages is still old or new, so that nothing newer is lost.

use std::collections::BTreeMap;
use std::io;

use crate::units::ByteCount;

use super::super::format::{PageBytes, STRUCTURE_SIZE};
use super::super::validate::{ImageRead, ValidateError, image_read};
use super::{ImageWrite, Pages, Plan};

const MAGIC: [u8; 8] = *b"LVFSUNDO";
const VERSION: u32 = 1;
/// Where the mark of a finished repair is, in the file.
pub const DONE_OFFSET: u64 = 4096;
/// That mark.
pub const DONE: &[u8; 4] = b"done";
const RECORDS: usize = 8192;
const RECORD: usize = 16 + 2 * STRUCTURE_SIZE;
const SECTOR: usize = 512;
/// The largest undo file that is read.
pub const FILE_LIMIT: u64 = 8 << 30;

/// Why an undo file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UndoError {
    /// The bytes are not, or not wholly, those of an undo file.
    #[error("this is no undo file, or it is damaged or cut off")]
    NotUndo,
    /// It belongs to another image.
    #[error("it was made for an image of {made} bytes, this one has {found}")]
    OtherImage {
        /// As the file says.
        made: u64,
        /// As it is.
        found: u64,
    },
    /// The image was changed since.
    #[error("the page at {offset} was changed after the repair; putting it back would lose that")]
    Changed {
        /// Where, in the image.
        offset: u64,
    },
    /// The image cannot be read.
    #[error(transparent)]
    Read(#[from] ValidateError),
    /// The image cannot be written.
    #[error("cannot write the image")]
    Write(#[source] io::Error),
}

/// The content of an undo file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undo {
    size: ByteCount,
    old: Pages,
    /// Each content that the repair gives a page.
    new: Vec<(u64, PageBytes)>,
    done: bool,
}

impl Undo {
    /// What must be kept before `plan` is carried out.
    ///
    /// # Errors
    /// [`ValidateError`]: the image cannot be read.
    pub fn of(image: &dyn ImageRead, plan: &Plan) -> Result<Self, ValidateError> {
        let size = image.size().map_err(ValidateError::Size)?;
        let new: Vec<_> = plan.writes().collect();
        let mut old = Pages::new();
        for (offset, _) in &new {
            let mut page = [0; STRUCTURE_SIZE];
            image_read(image, *offset, &mut page)?;
            old.insert(*offset, page);
        }
        Ok(Self { size, old, new, done: false })
    }

    /// How many pages it has.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.old.len()
    }

    /// Whether the repair came to its end.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.done
    }

    /// The bytes of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; RECORDS];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.size.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&(self.new.len() as u64).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..4092]);
        bytes[4092..4096].copy_from_slice(&crc.to_le_bytes());
        if self.done {
            bytes[DONE_OFFSET as usize..][..DONE.len()].copy_from_slice(DONE);
        }
        for (offset, new) in &self.new {
            let Some(old) = self.old.get(offset) else { continue };
            let crc = crc32c::crc32c_append(crc32c::crc32c(old), new);
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&u64::from(crc).to_le_bytes());
            bytes.extend_from_slice(old);
            bytes.extend_from_slice(new);
        }
        bytes
    }

    /// Reads the bytes of a file, which is not trusted.
    ///
    /// # Errors
    /// [`UndoError::NotUndo`].
    pub fn decode(bytes: &[u8]) -> Result<Self, UndoError> {
        let (head, records) = bytes.split_at_checked(RECORDS).ok_or(UndoError::NotUndo)?;
        let number =
            |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap_or_default());
        let crc = crc32c::crc32c(&head[..4092]);
        let is_ours = head[..8] == MAGIC
            && head[8..12] == VERSION.to_le_bytes()
            && head[4092..4096] == crc.to_le_bytes()
            && usize::try_from(number(24)).ok().and_then(|count| count.checked_mul(RECORD))
                == Some(records.len());
        if !is_ours {
            return Err(UndoError::NotUndo);
        }
        let size = ByteCount(number(16));
        let (mut old, mut new) = (Pages::new(), Vec::new());
        for record in records.chunks_exact(RECORD) {
            let (place, pages) = record.split_at(16);
            let (place, crc) = place.split_at(8);
            let value = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
            let offset = value(place);
            let (before, after) = pages.split_at(STRUCTURE_SIZE);
            let inside = offset.checked_add(STRUCTURE_SIZE as u64).is_some_and(|end| end <= size.0);
            let (Ok(before), Ok(after)) = (PageBytes::try_from(before), PageBytes::try_from(after))
            else {
                return Err(UndoError::NotUndo);
            };
            if value(crc) != u64::from(crc32c::crc32c(pages)) || !inside {
                return Err(UndoError::NotUndo);
            }
            old.entry(offset).or_insert(before);
            new.push((offset, after));
        }
        let done = head[DONE_OFFSET as usize..][..DONE.len()] == DONE[..];
        Ok(Self { size, old, new, done })
    }

    /// Puts back what was there before the repair, to the bit. FLUSH. Can be done again after a
    /// crash in the middle.
    ///
    /// # Errors
    /// [`UndoError`]; if it is not [`UndoError::Write`], nothing was written.
    pub fn put_back(&self, image: &dyn ImageWrite) -> Result<(), UndoError> {
        let found = image.size().map_err(ValidateError::Size)?.0;
        if found != self.size.0 {
            return Err(UndoError::OtherImage { made: self.size.0, found });
        }
        let mut contents: BTreeMap<u64, Vec<&PageBytes>> = BTreeMap::new();
        for (offset, page) in self.old.iter().chain(self.new.iter().map(|(at, page)| (at, page))) {
            contents.entry(*offset).or_default().push(page);
        }
        for (offset, contents) in contents {
            let mut now = [0; STRUCTURE_SIZE];
            image_read(image, offset, &mut now)?;
            let mut sectors = now.chunks(SECTOR).zip((0..).step_by(SECTOR));
            let known =
                sectors.all(|(now, at)| contents.iter().any(|page| page[at..at + SECTOR] == *now));
            if !known {
                return Err(UndoError::Changed { offset });
            }
        }
        for (offset, old) in &self.old {
            image.write_at(*offset, old).map_err(UndoError::Write)?;
        }
        image.flush().map_err(UndoError::Write)
    }
}
