//! How much one READ or WRITE moves at most.

use std::sync::OnceLock;

use crate::hw::dma::MAX_BUFFER;

/// The largest READ or WRITE there ever is: the largest buffer.
pub const TRANSFER_LIMIT: usize = MAX_BUFFER;
/// Pages of a request where the kernel does not let an administrator say.
const USUAL_PAGES: usize = 256;
const PAGE: usize = 4096;
/// Where an administrator says how many pages a request may have.
const PAGES_LIMIT: &str = "/proc/sys/fs/fuse/max_pages_limit";

/// The largest READ and WRITE that this process asks for, the same in all its life: what
/// `fs.fuse.max_pages_limit` allows, 1 MiB by default, at most [`TRANSFER_LIMIT`].
#[must_use]
pub fn size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| of_limit(std::fs::read_to_string(PAGES_LIMIT).ok().as_deref()))
}

fn of_limit(text: Option<&str>) -> usize {
    let pages = text.and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL_PAGES);
    // A buffer for it is a power of two.
    let pages = pages.clamp(1, TRANSFER_LIMIT / PAGE);
    (PAGE << pages.ilog2()).max(2 * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_large_as_the_administrator_allows() {
        assert_eq!(of_limit(None), 1 << 20);
        assert_eq!(of_limit(Some("256\n")), 1 << 20);
        assert_eq!(of_limit(Some("512\n")), 2 << 20);
        assert_eq!(of_limit(Some("1000")), 2 << 20);
        assert_eq!(of_limit(Some("65535")), TRANSFER_LIMIT);
        assert_eq!(of_limit(Some("0")), 8192);
        assert_eq!(of_limit(Some("nonsense")), 1 << 20);
    }
}
