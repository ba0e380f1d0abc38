//! The namespace identification descriptor list (Base 5.1.13.2.3, CNS 03h): what a namespace is
//! called, in up to four ways.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::spec::{assert_layout, open_enum};

open_enum! {
    /// Type of a namespace identification descriptor (NIDT).
    NamespaceIdType(u8) {
        /// EUI64, 8 bytes.
        EUI64 = 1,
        /// NGUID, 16 bytes.
        NGUID = 2,
        /// UUID, 16 bytes.
        UUID = 3,
        /// Command set identifier, 1 byte.
        COMMAND_SET = 4,
    }
}

/// Header of a namespace identification descriptor (CNS 03h); `length` bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NamespaceDescriptor {
    /// NIDT; 0 ends the list.
    pub id_type: u8,
    /// NIDL.
    pub length: u8,
    /// Reserved.
    pub reserved: [u8; 2],
}
assert_layout!(NamespaceDescriptor, 4, length @ 1);

/// The descriptors of a namespace identification descriptor list, as far as it is well formed.
pub fn namespace_descriptors(mut list: &[u8]) -> impl Iterator<Item = (NamespaceIdType, &[u8])> {
    std::iter::from_fn(move || {
        let (header, rest) = NamespaceDescriptor::read_from_prefix(list).ok()?;
        if header.id_type == 0 || header.length == 0 {
            return None;
        }
        let (id, rest) = rest.split_at_checked(usize::from(header.length))?;
        list = rest;
        Some((NamespaceIdType(header.id_type), id))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_end_where_the_list_is_broken() {
        let mut list = [0_u8; 64];
        list[..2].copy_from_slice(&[3, 16]);
        list[4..20].fill(0xaa);
        list[20..22].copy_from_slice(&[4, 1]);
        let found: Vec<_> = namespace_descriptors(&list).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], (NamespaceIdType::UUID, &[0xaa; 16][..]));
        assert_eq!(found[1], (NamespaceIdType::COMMAND_SET, &[0][..]));
        list[21] = 255;
        assert_eq!(namespace_descriptors(&list).count(), 1);
        assert_eq!(namespace_descriptors(&[1]).count(), 0);
        assert_eq!(namespace_descriptors(&[0xff; 4096]).count(), 15);
    }
}
