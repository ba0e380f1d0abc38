//! What an lvolstore keeps in the attributes of blobs: names and UUIDs.
//!
//! The super blob has the store's; every other blob is a volume and has its own. The order in which
//! attributes are set here is SPDK's, since it is the order on the medium.

use std::fmt;

use uuid::Uuid;

use crate::units::{BlobId, ClusterCount};

use super::blob::{Blob, Mapping, Xattrs};
use super::extent::ExtentTable;

/// Bytes that a volume's name is padded to when the volume is made, and that no name reaches.
const NAME_BYTES: usize = 64;
/// Bytes of a UUID's text and its NUL.
const UUID_BYTES: usize = 37;

const NAME: &str = "name";
const UUID: &str = "uuid";

/// Why a name or UUID is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The blob has no such attribute. SPDK loads no store in which a volume has no name.
    #[error("attribute {attribute} is missing")]
    Missing {
        /// Which.
        attribute: &'static str,
    },
    /// A name of no bytes.
    #[error("a name cannot be empty")]
    NameEmpty,
    /// A name of 64 bytes or more.
    #[error("a name can have 63 bytes, not {bytes}")]
    NameTooLong {
        /// The length.
        bytes: usize,
    },
    /// A name that is not UTF-8, or has a NUL in it.
    #[error("the name is not text")]
    NameNotText,
    /// Not the text of a UUID and a NUL.
    #[error("the UUID is not the text of one")]
    Uuid,
}

/// The name of a volume or of a store: 1 to 63 bytes of text without NUL.
///
/// SPDK allows every such name, so this type does; [`VolumeName::is_file_name`] tells those apart
/// that can be the name of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

impl VolumeName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`IdentityError::NameEmpty`], [`IdentityError::NameTooLong`] and
    /// [`IdentityError::NameNotText`].
    pub fn new(name: &str) -> Result<Self, IdentityError> {
        if name.is_empty() {
            Err(IdentityError::NameEmpty)
        } else if name.len() >= NAME_BYTES {
            Err(IdentityError::NameTooLong { bytes: name.len() })
        } else if name.contains('\0') {
            Err(IdentityError::NameNotText)
        } else {
            Ok(Self(name.to_owned()))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a directory can list it: no slash, and neither `.` nor `..`.
    #[must_use]
    pub fn is_file_name(&self) -> bool {
        !self.0.contains('/') && self.0 != "." && self.0 != ".."
    }

    /// Reads the name from a value that ends at its first NUL or at its end.
    fn read(value: &[u8]) -> Result<Self, IdentityError> {
        if value.len() > NAME_BYTES {
            return Err(IdentityError::NameTooLong { bytes: value.len() });
        }
        let length = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
        let text = str::from_utf8(&value[..length]).map_err(|_| IdentityError::NameNotText)?;
        Self::new(text)
    }

    fn terminated(&self) -> Vec<u8> {
        let mut bytes = self.0.as_bytes().to_vec();
        bytes.push(0);
        bytes
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of the volume or store whose attributes these are.
///
/// # Errors
/// [`IdentityError`] if there is none or it is unusable.
pub fn name(xattrs: &Xattrs) -> Result<VolumeName, IdentityError> {
    let value = xattrs.get(NAME.as_bytes());
    VolumeName::read(value.ok_or(IdentityError::Missing { attribute: NAME })?)
}

/// The UUID of the volume or store whose attributes these are.
///
/// # Errors
/// [`IdentityError`] if there is none or it is unusable. SPDK tolerates that for a volume and
/// uses `<uuid of the store>_<blob id>` as its unique id instead.
pub fn uuid(xattrs: &Xattrs) -> Result<Uuid, IdentityError> {
    let value = xattrs.get(UUID.as_bytes()).ok_or(IdentityError::Missing { attribute: UUID })?;
    let text = value.strip_suffix(&[0]).filter(|_| value.len() == UUID_BYTES);
    text.and_then(|text| Uuid::try_parse_ascii(text).ok()).ok_or(IdentityError::Uuid)
}

/// Gives a volume another name, as SPDK writes it: the text and one NUL.
pub fn rename(xattrs: &mut Xattrs, name: &VolumeName) {
    xattrs.set_known(NAME, &name.terminated());
}

fn set_uuid(xattrs: &mut Xattrs, uuid: Uuid) {
    let mut text = [0; UUID_BYTES];
    uuid.hyphenated().encode_lower(&mut text[..UUID_BYTES - 1]);
    xattrs.set_known(UUID, &text);
}

/// The super blob of a store: no clusters, the store's UUID and name.
#[must_use]
pub fn super_blob(id: BlobId, name: &VolumeName, uuid: Uuid) -> Blob {
    let mut blob = Blob::new(id);
    set_uuid(&mut blob.xattrs, uuid);
    blob.xattrs.set_known(NAME, &name.terminated());
    blob
}

/// The blob of a new volume without allocated clusters. A thick volume is not complete before
/// all of them are.
#[must_use]
pub fn volume_blob(id: BlobId, name: &VolumeName, uuid: Uuid, clusters: ClusterCount) -> Blob {
    let mut blob = Blob::new(id);
    let mut padded = name.terminated();
    padded.resize(NAME_BYTES, 0);
    blob.xattrs.set_known(NAME, &padded);
    set_uuid(&mut blob.xattrs, uuid);
    blob.mapping = Mapping::Table(ExtentTable::new(clusters));
    blob
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvol::format::blob_id;
    use crate::units::PageIndex;

    const ID: Uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);

    #[test]
    fn names_are_written_as_spdk_does() {
        let name = VolumeName::new("data").unwrap();
        let mut volume = volume_blob(blob_id(PageIndex(2)), &name, ID, ClusterCount(7));
        assert_eq!(volume.xattrs.get(b"name").map(<[u8]>::len), Some(64));
        let uuid_text = b"00112233-4455-6677-8899-aabbccddeeff\0";
        assert_eq!(volume.xattrs.get(b"uuid"), Some(&uuid_text[..]));
        assert_eq!(super::name(&volume.xattrs), Ok(name));
        assert_eq!(uuid(&volume.xattrs), Ok(ID));
        assert_eq!(volume.mapping.clusters(), ClusterCount(7));

        let other = VolumeName::new("other").unwrap();
        rename(&mut volume.xattrs, &other);
        assert_eq!(volume.xattrs.get(b"name"), Some(&b"other\0"[..]));
        assert_eq!(
            volume.xattrs.iter().next().map(|xattr| xattr.name.as_slice()),
            Some(&b"name"[..])
        );

        let store = super_blob(blob_id(PageIndex(0)), &other, ID);
        let order: Vec<_> = store.xattrs.iter().map(|xattr| xattr.name.as_slice()).collect();
        assert_eq!(order, [b"uuid", b"name"]);
    }

    #[test]
    fn bad_names_are_refused() {
        assert!(VolumeName::new(&"n".repeat(63)).is_ok());
        let cases = [
            ("", IdentityError::NameEmpty),
            (&"n".repeat(64), IdentityError::NameTooLong { bytes: 64 }),
            ("a\0b", IdentityError::NameNotText),
        ];
        for (text, error) in cases {
            assert_eq!(VolumeName::new(text), Err(error));
        }
        let mut xattrs = Xattrs::new();
        assert_eq!(name(&xattrs), Err(IdentityError::Missing { attribute: "name" }));
        let values: [(&[u8], IdentityError); 4] = [
            (b"\0", IdentityError::NameEmpty),
            (&[b'n'; 64], IdentityError::NameTooLong { bytes: 64 }),
            (&[0; 65], IdentityError::NameTooLong { bytes: 65 }),
            (b"\xff\xfe\0", IdentityError::NameNotText),
        ];
        for (value, error) in values {
            xattrs.set(b"name", value).unwrap();
            assert_eq!(name(&xattrs), Err(error));
        }
    }

    #[test]
    fn only_some_names_can_be_files() {
        let files = ["a", "snap 1", "..."];
        let others = [".", "..", "a/b", "/"];
        assert!(files.iter().all(|name| VolumeName::new(name).unwrap().is_file_name()));
        assert!(!others.iter().any(|name| VolumeName::new(name).unwrap().is_file_name()));
    }

    #[test]
    fn bad_uuids_are_refused() {
        let mut xattrs = Xattrs::new();
        assert_eq!(uuid(&xattrs), Err(IdentityError::Missing { attribute: "uuid" }));
        let texts: [&[u8]; 4] = [
            b"",
            b"00112233-4455-6677-8899-aabbccddeeff",
            b"00112233-4455-6677-8899-aabbccddeefg\0",
            b"00112233445566778899aabbccddeeff\0",
        ];
        for text in texts {
            xattrs.set(b"uuid", text).unwrap();
            assert_eq!(uuid(&xattrs), Err(IdentityError::Uuid));
        }
    }
}
