//! A blob as its root page and chain pages describe it.

use crate::units::{BlobId, ClusterCount, PageIndex};

use super::extent::{ExtentTable, Runs};
use super::page::PageProblem;
use super::raw::{
    DESCRIPTOR_BYTES, FLAG_EXTENT_TABLE, FLAG_EXTERNAL_SNAPSHOT, FLAG_INTERNAL_XATTR,
    FLAG_READ_ONLY, FLAG_THIN, FLAGS_CLEAR_METHOD, RawFlags,
};

/// Internal xattr: the parent of a clone.
pub(super) const PARENT: &str = "SNAP";
/// Internal xattr: this snapshot is being made; the value is the blob it is made of.
const SNAPSHOT_OF: &str = "SNAPTMP";
/// Internal xattr: this snapshot is being deleted; the value is its only clone.
const DELETING_FOR: &str = "SNAPRM";
/// Internal xattr: the name of the parent outside of the store.
const EXTERNAL_PARENT: &str = "EXTSNAP";
/// The internal xattrs whose value is a blob id.
pub(super) const BLOB_ID_XATTRS: [&str; 3] = [PARENT, SNAPSHOT_OF, DELETING_FOR];

/// How clusters are cleared when they are freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClearMethod {
    /// As the store does it, which is by unmapping.
    #[default]
    Default,
    /// Not at all.
    None,
    /// By unmapping.
    Unmap,
    /// By writing zeroes.
    WriteZeroes,
}

impl ClearMethod {
    const fn bits(self) -> u64 {
        match self {
            Self::Default => 0,
            Self::None => 1,
            Self::Unmap => 2,
            Self::WriteZeroes => 3,
        }
    }

    const fn from_bits(bits: u64) -> Self {
        match bits & FLAGS_CLEAR_METHOD {
            0 => Self::Default,
            1 => Self::None,
            2 => Self::Unmap,
            _ => Self::WriteZeroes,
        }
    }
}

/// A blob's flags. Two flags of the format are not here, since they repeat other fields of
/// [`Blob`]: that it has internal xattrs and that its mapping is a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Clusters may be without storage.
    pub thin: bool,
    /// The parent is another device; goes with thin.
    pub external_snapshot: bool,
    /// Neither data nor metadata may change. Every snapshot has it.
    pub read_only: bool,
    /// How clusters are cleared when they are freed.
    pub clear_method: ClearMethod,
    /// Bits that are unknown here and forbid changing data or metadata; kept on rewrite.
    pub unknown_data_read_only: u64,
    /// Bits that are unknown here and forbid changing metadata; kept on rewrite.
    pub unknown_metadata_read_only: u64,
}

impl Flags {
    /// Whether data must not be written.
    #[must_use]
    pub const fn forbids_data(self) -> bool {
        self.read_only || self.unknown_data_read_only != 0
    }

    /// Whether metadata must not be written: by anyone but the store itself, which may still turn
    /// `read_only` off.
    #[must_use]
    pub const fn forbids_metadata(self) -> bool {
        self.forbids_data() || self.unknown_metadata_read_only != 0
    }

    /// Reads the flag words; unknown bits of the first are refused.
    pub(super) fn parse(raw: &RawFlags) -> Result<Self, PageProblem> {
        let known = FLAG_THIN | FLAG_INTERNAL_XATTR | FLAG_EXTENT_TABLE | FLAG_EXTERNAL_SNAPSHOT;
        let invalid = raw.invalid.get();
        if invalid & !known != 0 {
            return Err(PageProblem::UnknownFlags { flags: invalid & !known });
        }
        let data = raw.data_read_only.get();
        let metadata = raw.metadata_read_only.get();
        Ok(Self {
            thin: invalid & FLAG_THIN != 0,
            external_snapshot: invalid & FLAG_EXTERNAL_SNAPSHOT != 0,
            read_only: data & FLAG_READ_ONLY != 0,
            clear_method: ClearMethod::from_bits(metadata),
            unknown_data_read_only: data & !FLAG_READ_ONLY,
            unknown_metadata_read_only: metadata & !FLAGS_CLEAR_METHOD,
        })
    }
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    /// Its name, which is bytes to the blobstore.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// Why an extended attribute cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XattrError {
    /// An empty name.
    #[error("an extended attribute needs a name")]
    NoName,
    /// Name and value do not fit into one page.
    #[error("name ({name} bytes) and value ({value} bytes) of the attribute exceed {limit} bytes")]
    TooLarge {
        /// Length of the name.
        name: usize,
        /// Length of the value.
        value: usize,
        /// What both may have together.
        limit: usize,
    },
}

/// Name and value of one attribute may have this many bytes together.
const XATTR_LIMIT: usize = DESCRIPTOR_BYTES - 9;

/// Extended attributes in the order in which they were first set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xattrs(Vec<Xattr>);

impl Xattrs {
    /// No attributes.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The value of an attribute.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.iter().find(|xattr| xattr.name == name).map(|xattr| xattr.value.as_slice())
    }

    /// Sets an attribute; one that exists keeps its place.
    ///
    /// # Errors
    /// [`XattrError`] if it would not fit into a page.
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> Result<(), XattrError> {
        if name.is_empty() {
            return Err(XattrError::NoName);
        }
        if name.len() + value.len() > XATTR_LIMIT {
            let (name, value) = (name.len(), value.len());
            return Err(XattrError::TooLarge { name, value, limit: XATTR_LIMIT });
        }
        match self.0.iter_mut().find(|xattr| xattr.name == name) {
            Some(xattr) => xattr.value = value.to_vec(),
            None => self.0.push(Xattr { name: name.to_vec(), value: value.to_vec() }),
        }
        Ok(())
    }

    /// Sets an attribute of the format itself, whose size is known to fit.
    pub(super) fn set_known(&mut self, name: &str, value: &[u8]) {
        let set = self.set(name.as_bytes(), value);
        assert!(set.is_ok(), "the attributes of the format fit into a page");
    }

    /// Appends an attribute that was read from a page, and so fits into one.
    pub(super) fn push_read(&mut self, xattr: Xattr) {
        self.0.push(xattr);
    }

    /// Removes an attribute; tells whether it existed.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        let before = self.0.len();
        self.0.retain(|xattr| xattr.name != name);
        self.0.len() != before
    }

    /// All attributes in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Xattr> {
        self.0.iter()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }
}

impl<'a> IntoIterator for &'a Xattrs {
    type Item = &'a Xattr;
    type IntoIter = std::slice::Iter<'a, Xattr>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Where a blob's clusters are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// In the blob's own pages, as stores before SPDK 20.04 do.
    Rle(Runs),
    /// In extent pages.
    Table(ExtentTable),
}

impl Mapping {
    /// The size of the blob as its own pages state it. With a table, the last extent page may know
    /// better: see [`super::ClusterMap::of`].
    #[must_use]
    pub const fn clusters(&self) -> ClusterCount {
        match self {
            Self::Rle(runs) => runs.clusters(),
            Self::Table(table) => table.clusters(),
        }
    }
}

/// A blob: everything that its root page and chain pages say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Names the root page, which never moves.
    pub id: BlobId,
    /// What kind of blob it is.
    pub flags: Flags,
    /// What the lvolstore keeps with it.
    pub xattrs: Xattrs,
    /// What the blobstore keeps with it.
    pub(in crate::lvol) internal: Xattrs,
    /// Where its clusters are.
    pub mapping: Mapping,
    /// The metadata pages after the root, in order.
    pub chain: Vec<PageIndex>,
}

impl Blob {
    /// A thick blob without clusters and attributes, with an extent table.
    #[must_use]
    pub const fn new(id: BlobId) -> Self {
        Self {
            id,
            flags: Flags {
                thin: false,
                external_snapshot: false,
                read_only: false,
                clear_method: ClearMethod::Default,
                unknown_data_read_only: 0,
                unknown_metadata_read_only: 0,
            },
            xattrs: Xattrs::new(),
            internal: Xattrs::new(),
            mapping: Mapping::Table(ExtentTable::new(ClusterCount(0))),
            chain: Vec::new(),
        }
    }

    /// The snapshot that this blob is a clone of.
    #[must_use]
    pub fn parent(&self) -> Option<BlobId> {
        self.blob_id_xattr(PARENT)
    }

    /// Makes the blob a clone of a snapshot, or of none.
    pub fn set_parent(&mut self, parent: Option<BlobId>) {
        self.set_blob_id_xattr(PARENT, parent);
    }

    /// The blob that this snapshot is being made of, while that is not finished.
    #[must_use]
    pub fn snapshot_of(&self) -> Option<BlobId> {
        self.blob_id_xattr(SNAPSHOT_OF)
    }

    /// Marks the making of a snapshot as begun or finished.
    pub fn set_snapshot_of(&mut self, blob: Option<BlobId>) {
        self.set_blob_id_xattr(SNAPSHOT_OF, blob);
    }

    /// The only clone of this snapshot, while the snapshot is being deleted.
    #[must_use]
    pub fn deleting_for(&self) -> Option<BlobId> {
        self.blob_id_xattr(DELETING_FOR)
    }

    /// Marks the deletion of a snapshot as begun.
    pub fn set_deleting_for(&mut self, clone: Option<BlobId>) {
        self.set_blob_id_xattr(DELETING_FOR, clone);
    }

    /// The name of the parent outside of the store. SPDK's lvolstore uses the text of a bdev's
    /// UUID and a NUL.
    #[must_use]
    pub fn external_parent(&self) -> Option<&[u8]> {
        self.internal.get(EXTERNAL_PARENT.as_bytes())
    }

    /// Names the parent outside of the store and sets the flags that go with it, or removes name
    /// and flag (the blob stays thin).
    ///
    /// # Errors
    /// [`XattrError::TooLarge`].
    pub fn set_external_parent(&mut self, name: Option<&[u8]>) -> Result<(), XattrError> {
        let key = EXTERNAL_PARENT.as_bytes();
        if let Some(name) = name {
            self.internal.set(key, name)?;
            self.flags.thin = true;
        } else {
            self.internal.remove(key);
        }
        self.flags.external_snapshot = name.is_some();
        Ok(())
    }

    /// All internal attributes, those unknown here included.
    #[must_use]
    pub const fn internal_xattrs(&self) -> &Xattrs {
        &self.internal
    }

    /// The flag words as they are written.
    pub(super) fn raw_flags(&self) -> RawFlags {
        let bit = |set, flag| if set { flag } else { 0 };
        let flags = self.flags;
        let invalid = bit(flags.thin, FLAG_THIN)
            | bit(flags.external_snapshot, FLAG_EXTERNAL_SNAPSHOT)
            | bit(!self.internal.is_empty(), FLAG_INTERNAL_XATTR)
            | bit(matches!(self.mapping, Mapping::Table(_)), FLAG_EXTENT_TABLE);
        let data = bit(flags.read_only, FLAG_READ_ONLY) | flags.unknown_data_read_only;
        let metadata = flags.clear_method.bits() | flags.unknown_metadata_read_only;
        RawFlags {
            invalid: invalid.into(),
            data_read_only: data.into(),
            metadata_read_only: metadata.into(),
        }
    }

    fn blob_id_xattr(&self, name: &str) -> Option<BlobId> {
        let value = self.internal.get(name.as_bytes())?;
        value.try_into().ok().map(|bytes| BlobId(u64::from_le_bytes(bytes)))
    }

    fn set_blob_id_xattr(&mut self, name: &str, id: Option<BlobId>) {
        match id {
            Some(id) => self.internal.set_known(name, &id.0.to_le_bytes()),
            None => {
                self.internal.remove(name.as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvol::format::blob_id;

    #[test]
    fn attributes_keep_their_order() {
        let mut xattrs = Xattrs::new();
        xattrs.set(b"name", b"a").unwrap();
        xattrs.set(b"uuid", b"b").unwrap();
        xattrs.set(b"name", b"c").unwrap();
        let names: Vec<_> = xattrs.iter().map(|xattr| xattr.name.as_slice()).collect();
        assert_eq!(names, [b"name", b"uuid"]);
        assert_eq!(xattrs.get(b"name"), Some(&b"c"[..]));
        assert!(xattrs.remove(b"name") && !xattrs.remove(b"name"));
    }

    #[test]
    fn an_attribute_fits_into_a_page_or_is_refused() {
        let mut xattrs = Xattrs::new();
        assert_eq!(xattrs.set(b"", b"x"), Err(XattrError::NoName));
        assert_eq!(xattrs.set(b"n", &[0; XATTR_LIMIT - 1]), Ok(()));
        let refused = xattrs.set(b"n", &[0; XATTR_LIMIT]);
        assert!(matches!(refused, Err(XattrError::TooLarge { .. })));
    }

    #[test]
    fn relations_are_internal_attributes() {
        let mut blob = Blob::new(blob_id(PageIndex(3)));
        assert_eq!(blob.raw_flags().invalid.get(), FLAG_EXTENT_TABLE);
        let parent = blob_id(PageIndex(2));
        blob.set_parent(Some(parent));
        assert_eq!(blob.parent(), Some(parent));
        assert_ne!(blob.raw_flags().invalid.get() & FLAG_INTERNAL_XATTR, 0);
        blob.set_parent(None);
        assert_eq!(blob.parent(), None);
        assert_eq!(blob.raw_flags().invalid.get(), FLAG_EXTENT_TABLE);
        blob.set_external_parent(Some(b"elsewhere")).unwrap();
        assert!(blob.flags.thin && blob.flags.external_snapshot);
        assert_eq!(blob.external_parent(), Some(&b"elsewhere"[..]));
        blob.set_external_parent(None).unwrap();
        assert!(blob.flags.thin && !blob.flags.external_snapshot);
    }
}
