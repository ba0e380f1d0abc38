//! The structures as they lie on the medium: packed, little-endian, each field at a stated offset.
//!
//! The offsets are asserted at compile time and listed in [`STRUCTURES`], with which a test compares
//! the tables of `docs/on-disk-format.md`. No value in here has been checked.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A field of an on-disk structure; offset and size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name, as in the code.
    pub name: &'static str,
    /// Bytes from the start of the structure.
    pub offset: usize,
    /// Bytes that it occupies.
    pub size: usize,
}

/// An on-disk structure.
#[derive(Clone, Copy, Debug)]
pub struct Structure {
    /// Its name, as in the code.
    pub name: &'static str,
    /// Its size in bytes.
    pub size: usize,
    /// Its fields in order, without gaps.
    pub fields: &'static [Field],
}

macro_rules! on_disk {
    (
        $(#[$doc:meta])*
        $name:ident [$size:literal] { $( $(#[$field_doc:meta])* $offset:literal $field:ident: $type:ty, )* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(C)]
        pub struct $name {
            $( $(#[$field_doc])* pub $field: $type, )*
        }

        impl $name {
            /// What this structure looks like.
            pub const STRUCTURE: Structure = Structure {
                name: stringify!($name),
                size: size_of::<Self>(),
                fields: &[$(Field {
                    name: stringify!($field),
                    offset: offset_of!(Self, $field),
                    size: size_of::<$type>(),
                }),*],
            };
        }

        const _: () = {
            assert!(size_of::<$name>() == $size);
            $( assert!(offset_of!($name, $field) == $offset); )*
        };
    };
}

on_disk! {
    /// The super block: the only copy, at byte 0 of the device. "Pages" are of `md_page_size`
    /// bytes and counted from the start of the device.
    RawSuperBlock [4096] {
        /// ASCII `SPDKBLOB`.
        0 signature: [u8; 8],
        /// 3; 1 and 2 are readable.
        8 version: U32,
        /// 4096.
        12 length: U32,
        /// 1 after an orderly close, else 0.
        16 clean: U32,
        /// The blob that holds the store's name and UUID; all ones: none.
        20 super_blob: U64,
        /// In bytes.
        28 cluster_size: U32,
        /// In pages.
        32 used_page_mask_start: U32,
        /// In pages.
        36 used_page_mask_len: U32,
        /// In pages.
        40 used_cluster_mask_start: U32,
        /// In pages; the region may reach further, which is what bounds growth.
        44 used_cluster_mask_len: U32,
        /// In pages.
        48 md_start: U32,
        /// In pages.
        52 md_len: U32,
        /// ASCII, zero padded; an lvolstore is `LVOLSTORE`.
        56 bstype: [u8; 16],
        /// In pages.
        72 used_blobid_mask_start: U32,
        /// In pages; 0 before version 3.
        76 used_blobid_mask_len: U32,
        /// The bytes the store was made for; 0: all of the device.
        80 size: U64,
        /// In bytes; 0: 4096.
        88 io_unit_size: U32,
        /// In bytes; 0: 4096.
        92 md_page_size: U32,
        /// Zero.
        96 reserved: [u8; 3996],
        /// CRC-32C over all bytes before.
        4092 crc: U32,
    }
}

on_disk! {
    /// Before the bits of each of the three bitmaps.
    RawMaskHeader [5] {
        /// 0: metadata pages, 1: clusters, 2: blob ids.
        0 kind: u8,
        /// In bits.
        1 length: U32,
    }
}

on_disk! {
    /// A metadata page: root page, chain page or extent page.
    RawPage [4096] {
        /// The blob that owned the page when it was written.
        0 id: U64,
        /// 0 in a root page and in an extent page, then 1, 2, ... along the chain.
        8 sequence: U32,
        /// Zero.
        12 reserved: U32,
        /// Descriptors, back to back.
        16 descriptors: [u8; 4072],
        /// The next page of the chain; all ones: none.
        4088 next: U32,
        /// CRC-32C over all bytes before.
        4092 crc: U32,
    }
}

on_disk! {
    /// Before the body of each descriptor.
    RawDescriptorHeader [5] {
        /// One of the `DESCRIPTOR_` constants.
        0 kind: u8,
        /// Bytes that follow this header.
        1 length: U32,
    }
}

on_disk! {
    /// Body of a flags descriptor.
    RawFlags [24] {
        /// A reader that does not know one of these bits must not open the blob.
        0 invalid: U64,
        /// A reader that does not know one of these bits must not change data or metadata.
        8 data_read_only: U64,
        /// A reader that does not know one of these bits must not change metadata.
        16 metadata_read_only: U64,
    }
}

on_disk! {
    /// Start of the body of an extended attribute; name and value follow, without a NUL.
    RawXattr [4] {
        /// In bytes.
        0 name_length: U16,
        /// In bytes.
        2 value_length: U16,
    }
}

on_disk! {
    /// One element of a run-length descriptor.
    RawRun [8] {
        /// First cluster of the run; 0: the run is not allocated.
        0 first_cluster: U32,
        /// Clusters in the run.
        4 count: U32,
    }
}

on_disk! {
    /// Start of the body of an extent table; elements follow.
    RawExtentTable [8] {
        /// Clusters of the whole blob; the same in each descriptor of one table.
        0 num_clusters: U64,
    }
}

on_disk! {
    /// One element of an extent table.
    RawTableEntry [8] {
        /// Metadata page of the extent page; 0: `count` extent pages are not allocated.
        0 page: U32,
        /// 1 if `page` is not 0.
        4 count: U32,
    }
}

on_disk! {
    /// Start of the body of an extent page; one 32-bit cluster number per cluster follows.
    RawExtentPage [4] {
        /// The cluster of the blob that the first number is for.
        0 start_cluster_idx: U32,
    }
}

on_disk! {
    /// Start of the first page of the journal; entries follow. The page ends with a checksum over
    /// all bytes before, as every structure does.
    RawJournalHeader [16] {
        /// ASCII `LVOLFSJ1`.
        0 signature: [u8; 8],
        /// Entries that follow, and pages behind this one.
        8 count: U32,
        /// Zero.
        12 reserved: U32,
    }
}

on_disk! {
    /// A page that is rewritten in place.
    RawJournalEntry [44] {
        /// Where, in bytes from the start of the device.
        0 offset: U64,
        /// CRC-32C over all 4096 bytes of what is written there.
        8 crc: U32,
        /// CRC-32C of each 512 bytes of what was there before.
        12 before: [U32; 8],
    }
}

/// Ends the descriptors of a page if its length is 0; skipped otherwise.
pub const DESCRIPTOR_PADDING: u8 = 0;
/// Runs of clusters.
pub const DESCRIPTOR_RLE: u8 = 1;
/// An extended attribute of the user, which is the lvolstore.
pub const DESCRIPTOR_XATTR: u8 = 2;
/// Flags.
pub const DESCRIPTOR_FLAGS: u8 = 3;
/// An extended attribute of the blobstore.
pub const DESCRIPTOR_INTERNAL_XATTR: u8 = 4;
/// The list of extent pages.
pub const DESCRIPTOR_EXTENT_TABLE: u8 = 5;
/// The clusters of one extent page.
pub const DESCRIPTOR_EXTENT_PAGE: u8 = 6;

/// Bytes of a page that descriptors may use.
pub const DESCRIPTOR_BYTES: usize = 4072;
/// `next` of the last page of a chain.
pub const NO_PAGE: u32 = u32::MAX;
/// `super_blob` of a store that has none.
pub const NO_BLOB: u64 = u64::MAX;

/// Invalid flag: clusters without storage are allowed.
pub const FLAG_THIN: u64 = 1 << 0;
/// Invalid flag: the blob has an internal xattr.
pub const FLAG_INTERNAL_XATTR: u64 = 1 << 1;
/// Invalid flag: the mapping is an extent table.
pub const FLAG_EXTENT_TABLE: u64 = 1 << 2;
/// Invalid flag: the parent is another device, named by the internal xattr `EXTSNAP`.
pub const FLAG_EXTERNAL_SNAPSHOT: u64 = 1 << 3;
/// Data read-only flag: neither data nor metadata may change.
pub const FLAG_READ_ONLY: u64 = 1 << 0;
/// Metadata read-only flags: two bits that say how freed clusters are cleared.
pub const FLAGS_CLEAR_METHOD: u64 = 0b11;

/// Every structure, in the order of `docs/on-disk-format.md`.
pub const STRUCTURES: &[Structure] = &[
    RawSuperBlock::STRUCTURE,
    RawMaskHeader::STRUCTURE,
    RawPage::STRUCTURE,
    RawDescriptorHeader::STRUCTURE,
    RawFlags::STRUCTURE,
    RawXattr::STRUCTURE,
    RawRun::STRUCTURE,
    RawExtentTable::STRUCTURE,
    RawTableEntry::STRUCTURE,
    RawExtentPage::STRUCTURE,
    RawJournalHeader::STRUCTURE,
    RawJournalEntry::STRUCTURE,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_no_gaps() {
        for structure in STRUCTURES {
            let mut end = 0;
            for field in structure.fields {
                assert_eq!(field.offset, end, "{}.{}", structure.name, field.name);
                end += field.size;
            }
            assert_eq!(end, structure.size, "{}", structure.name);
        }
    }
}
