//! What lies on a device, told from its first bytes: so that nothing is formatted that is not
//! blank, and the refusal names what was found.

use super::page::Page;
use super::super_block::{LVOLSTORE, blobstore_kind};
use super::{CHECKSUM_OFFSET, STRUCTURE_SIZE, root_page};

/// How many bytes from the start of a device [`Contents::identify`] wants to see.
pub const IDENTIFY_BYTES: usize = 128 << 10;

/// What the start of a device looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// The first 4096 bytes are zero, and nothing that is known follows.
    Blank,
    /// Metadata of an lvolstore whose super block is zero. It was destroyed: SPDK zeroes no more
    /// than those 4096 bytes, and one of our own whose destruction was interrupted may also have
    /// the checksum in the last four of them. Or its super block is lost, and a check can find it.
    Remains,
    /// An lvolstore; whether it is intact is for `SuperBlock::parse` to say.
    Lvolstore,
    /// A blobstore of another kind; the text is its kind.
    OtherBlobstore(String),
    /// Something that is recognised.
    Known(&'static str),
    /// Something that is not recognised.
    Unknown,
}

impl Contents {
    /// Looks at the first bytes of a device, at best [`IDENTIFY_BYTES`] of them.
    #[must_use]
    pub fn identify(first: &[u8]) -> Self {
        if let Some(kind) = blobstore_kind(first) {
            if kind == LVOLSTORE {
                return Self::Lvolstore;
            }
            let length = kind.iter().position(|byte| *byte == 0).unwrap_or(kind.len());
            return Self::OtherBlobstore(kind[..length].escape_ascii().to_string());
        }
        if let Some((name, ..)) = SIGNATURES.iter().find(|(_, offset, magic)| {
            first.get(*offset..).is_some_and(|rest| rest.starts_with(magic))
        }) {
            return Self::Known(name);
        }
        let checked = &first[..first.len().min(CHECKSUM_OFFSET)];
        if checked.iter().any(|byte| *byte != 0) {
            return Self::Unknown;
        }
        // No other bytes have such a checksum.
        let pages = first.as_chunks::<STRUCTURE_SIZE>().0.iter().skip(1);
        let metadata = pages.filter_map(|page| Page::parse(page).ok());
        match metadata.map(|page| page.blob()).find(|blob| root_page(*blob).is_some()) {
            Some(_) => Self::Remains,
            None => Self::Blank,
        }
    }
}

impl std::fmt::Display for Contents {
    /// Completes the sentence "the device holds ...".
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Blank => f.write_str("nothing"),
            Self::Remains => f.write_str("metadata of an lvolstore, but no super block"),
            Self::Lvolstore => f.write_str("an lvolstore"),
            Self::OtherBlobstore(kind) => write!(f, "an SPDK blobstore of kind \"{kind}\""),
            Self::Known(name) => f.write_str(name),
            Self::Unknown => f.write_str("unrecognised data"),
        }
    }
}

/// Names, positions and bytes of signatures. Specific ones first: a boot sector's mark also ends
/// the first sector of FAT, NTFS and of the protective MBR before a GPT.
const SIGNATURES: &[(&str, usize, &[u8])] = &[
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("a LUKS volume (second header)", 16384, b"SKUL\xba\xbe"),
    ("a BitLocker volume", 3, b"-FVE-FS-"),
    ("an XFS file system", 0, b"XFSB"),
    ("a btrfs file system", 65600, b"_BHRfS_M"),
    ("a bcachefs or bcache device", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    ("an ext2, ext3 or ext4 file system", 1080, b"\x53\xef"),
    ("an f2fs file system", 1024, b"\x10\x20\xf5\xf2"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an LVM physical volume", 1024, b"LABELONE"),
    ("an LVM physical volume", 1536, b"LABELONE"),
    ("a member of a Linux software RAID", 0, b"\xfc\x4e\x2b\xa9"),
    ("a member of a Linux software RAID", 4096, b"\xfc\x4e\x2b\xa9"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("swap space", 4086, b"SWAP-SPACE"),
    ("swap space", 65526, b"SWAPSPACE2"),
    ("an ISO 9660 file system", 32769, b"CD001"),
    ("a squashfs file system", 0, b"hsqs"),
    ("a qcow2 disk image", 0, b"QFI\xfb"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a FAT file system", 82, b"FAT32   "),
    ("a FAT file system", 54, b"FAT1"),
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    ("an MBR partition table or a boot sector", 510, b"\x55\xaa"),
];

#[cfg(test)]
mod tests {
    use super::super::{blob_id, checksum};
    use super::*;
    use crate::units::PageIndex;

    fn device(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut device = vec![0; IDENTIFY_BYTES];
        device[offset..offset + bytes.len()].copy_from_slice(bytes);
        device
    }

    #[test]
    fn each_signature_is_seen_in_the_bytes_that_are_asked_for() {
        for (name, offset, magic) in SIGNATURES {
            let found = Contents::identify(&device(*offset, magic));
            assert_eq!(found, Contents::Known(name));
        }
    }

    #[test]
    fn the_specific_name_wins() {
        let mut disk = device(510, b"\x55\xaa");
        disk[512..520].copy_from_slice(b"EFI PART");
        assert_eq!(Contents::identify(&disk), Contents::Known("a GPT partition table"));
    }

    #[test]
    fn blank_means_the_first_page_is_zero() {
        assert_eq!(Contents::identify(&device(0, b"")), Contents::Blank);
        assert_eq!(Contents::identify(&device(4096, b"old metadata")), Contents::Blank);
        assert_eq!(Contents::identify(&device(4091, b"x")), Contents::Unknown);
        assert_eq!(Contents::identify(&device(4092, b"crc")), Contents::Blank);
        assert_eq!(Contents::identify(&[]), Contents::Blank);
    }

    #[test]
    fn metadata_without_a_super_block_is_not_blank() {
        let mut page = [0; STRUCTURE_SIZE];
        page[..8].copy_from_slice(&blob_id(PageIndex(0)).0.to_le_bytes());
        let crc = checksum(&page);
        page[CHECKSUM_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        let mut disk = device(16 << 10, &page);
        assert_eq!(Contents::identify(&disk), Contents::Remains);
        disk[CHECKSUM_OFFSET] = 1;
        assert_eq!(Contents::identify(&disk), Contents::Remains);
        disk[17 << 10] ^= 1;
        assert_eq!(Contents::identify(&disk), Contents::Blank);
    }

    #[test]
    fn blobstores_are_told_apart() {
        let mut disk = device(0, b"SPDKBLOB");
        disk[56..62].copy_from_slice(b"BLOBFS");
        let found = Contents::identify(&disk);
        assert_eq!(found, Contents::OtherBlobstore("BLOBFS".into()));
        assert_eq!(found.to_string(), "an SPDK blobstore of kind \"BLOBFS\"");
        disk[56..72].copy_from_slice(&LVOLSTORE);
        assert_eq!(Contents::identify(&disk), Contents::Lvolstore);
    }
}
