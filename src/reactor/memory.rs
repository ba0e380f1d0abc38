//! Memory for data on its way, for those who can wait for it.

use std::time::Duration;

use super::Reactor;
use crate::hw::dma::{DmaArena, DmaBuffer};
use crate::units::ByteCount;

/// How long to wait for memory before looking again.
const RETRY: Duration = Duration::from_micros(200);
/// How long to wait before it is an error. What holds the memory is under way at devices, which
/// answer or are given up sooner.
const LIMIT: Duration = Duration::from_secs(60);

/// How much of the arena an allocation may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All but an eighth, which stays for those who serve what this is for.
    Most,
    /// All: this is for something under way, which gives its own memory back once it is served.
    All,
}

impl Reactor {
    /// As [`DmaArena::allocate`], but with an arena that is full now this waits: others are about
    /// to give memory back. `None` after a minute, or if `length` is more than a buffer can have.
    pub async fn allocate(
        &self,
        arena: &DmaArena,
        length: usize,
        share: Share,
    ) -> Option<DmaBuffer> {
        let reserve = match share {
            Share::Most => ByteCount(arena.size().get() / 8),
            Share::All => ByteCount(0),
        };
        let end = self.now().after(LIMIT);
        loop {
            if let Some(buffer) = arena.allocate_leaving(length, reserve) {
                return Some(buffer);
            }
            if length == 0 || length > crate::hw::dma::MAX_BUFFER || self.now() >= end {
                return None;
            }
            self.sleep(RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::ReactorOptions;

    #[test]
    fn a_full_arena_is_waited_for_but_not_for_ever() {
        let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
        let arena = DmaArena::new(ByteCount(4 << 20), false).unwrap();
        let mut held: Vec<_> = (0..4).map(|_| arena.allocate(1 << 20)).collect();
        let more = || reactor.allocate(&arena, 1 << 20, Share::All);
        assert!(reactor.block_on(more()).is_none());
        let later = async {
            reactor.sleep(Duration::from_millis(5)).await;
            held.pop();
        };
        let (buffer, ()) = reactor.block_on(futures_util::future::join(more(), later));
        assert!(buffer.is_some());
        drop(held);
        // Half a MiB stays for others.
        let most = reactor.block_on(reactor.allocate(&arena, 1 << 20, Share::Most)).unwrap();
        let rest = reactor.block_on(reactor.allocate(&arena, 2 << 20, Share::Most));
        assert!(rest.is_none(), "an eighth is kept");
        drop((buffer, most));
        assert!(reactor.block_on(reactor.allocate(&arena, 0, Share::All)).is_none());
    }
}
