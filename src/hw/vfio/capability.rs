//! The chains of capabilities behind VFIO's information structures, as bytes.
//!
//! Each capability starts with its id (16 bits), its version (16 bits) and the offset of the next
//! one (32 bits, 0 for the last). Offsets count from the start of the structure. What the kernel
//! wrote is read with the same care as anything from outside: no offset is believed.

/// More capabilities than this in one structure are not read.
const CHAIN_LIMIT: usize = 64;

/// The bytes of the first capability `wanted`, header included, in the structure `bytes` whose
/// chain begins at `first`.
pub(super) fn find(bytes: &[u8], first: u32, wanted: u32) -> Option<&[u8]> {
    let mut offset = first;
    for _ in 0..CHAIN_LIMIT {
        let capability = bytes.get(usize::try_from(offset).ok()?..)?;
        let id = u16::from_ne_bytes(*capability.first_chunk()?);
        if offset == 0 {
            return None;
        }
        if u32::from(id) == wanted {
            return Some(capability);
        }
        offset = u32_at(capability, 4)?;
    }
    None
}

/// The pairs of 64-bit numbers of a capability that is a counted list of them: its header, a
/// 32-bit count, 32 bits of nothing, the pairs. A list that is cut short ends where it is cut.
pub(super) fn pairs(capability: &[u8]) -> Vec<(u64, u64)> {
    let count = u32_at(capability, 8).unwrap_or(0) as usize;
    let (words, _) = capability.get(16..).unwrap_or_default().as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    let pair =
        |[first, second]: &[[u8; 8]; 2]| (u64::from_ne_bytes(*first), u64::from_ne_bytes(*second));
    pairs.iter().take(count).map(pair).collect()
}

/// The 32-bit number at `offset`.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The 64-bit number at `offset`.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A capability whose list is `pairs`.
    pub(crate) fn capability(id: u16, next: u32, pairs: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = id.to_ne_bytes().to_vec();
        bytes.extend(1_u16.to_ne_bytes());
        bytes.extend(next.to_ne_bytes());
        bytes.extend((pairs.len() as u32).to_ne_bytes());
        bytes.extend([0; 4]);
        for (first, second) in pairs {
            bytes.extend(first.to_ne_bytes());
            bytes.extend(second.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn a_chain_is_followed_to_its_end() {
        let mut bytes = vec![0; 24];
        bytes.extend(capability(3, 24 + 16, &[]));
        bytes.extend(capability(1, 0, &[(0, 9), (20, 29)]));
        assert_eq!(pairs(find(&bytes, 24, 1).unwrap()), [(0, 9), (20, 29)]);
        assert_eq!(pairs(find(&bytes, 24, 3).unwrap()), []);
        assert!(find(&bytes, 24, 2).is_none());
        assert!(find(&bytes, 0, 1).is_none());
    }

    #[test]
    fn a_chain_that_lies_ends() {
        let mut bytes = vec![0; 24];
        bytes.extend(capability(3, 24, &[]));
        assert!(find(&bytes, 24, 1).is_none(), "a circle");
        assert!(find(&bytes, u32::MAX, 1).is_none());
        assert!(find(&bytes, 39, 1).is_none());
        let mut cut = capability(1, 0, &[(1, 2), (3, 4)]);
        cut[8] = 200;
        cut.truncate(16 + 20);
        assert_eq!(pairs(&cut), [(1, 2)]);
        assert_eq!(pairs(&cut[..6]), []);
    }
}
