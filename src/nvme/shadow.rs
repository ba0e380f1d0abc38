//! Shadow doorbells (Base 5.2.5 and annex B.5): doorbells in memory, so that a controller in
//! software is not entered for each of them.
//!
//! A write to a doorbell register is cheap on hardware and a trip out of the virtual machine on an
//! emulated controller. Such a controller takes two pages: one where the host stores what it would
//! write to the registers, and one where the controller stores, before it stops looking, the value
//! past which it wants to hear of the register itself (EventIdx). The admin queue has none.
//!
//! The order that keeps a command from being overlooked, at the host:
//! 1. the entries, before
//! 2. the shadow doorbell (release), before
//! 3. a full fence, before
//! 4. EventIdx (acquire); the register is written if the doorbell has passed it.
//!
//! The controller stores EventIdx, fences, and looks at the shadow doorbell once more. Whichever
//! fence comes first, one of the two sees what the other has stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crate::hw::dma::{DmaArena, PAGE, SharedMemory};
use crate::hw::transport::Doorbell;
use crate::units::Iova;

/// The two pages, as long as anybody may use them.
#[derive(Debug)]
pub(crate) struct ShadowPages {
    /// `None` only while dropped.
    pages: Option<(SharedMemory, SharedMemory)>,
    /// Whether the controller was told of them since it was last enabled.
    active: AtomicBool,
    /// Whether the controller was seen to be disabled, for good.
    released: AtomicBool,
}

impl ShadowPages {
    /// Both pages, zeroed, of which no controller knows; `None` if the arena is full.
    pub(crate) fn new(arena: &DmaArena) -> Option<Self> {
        let shadow = arena.allocate_shared(PAGE)?;
        let Some(events) = arena.allocate_shared(PAGE) else {
            drop(shadow.reclaim());
            return None;
        };
        Some(Self {
            pages: Some((shadow, events)),
            active: AtomicBool::new(false),
            released: AtomicBool::new(false),
        })
    }

    fn pages(&self) -> &(SharedMemory, SharedMemory) {
        let Some(pages) = &self.pages else { unreachable!("there are pages until the drop") };
        pages
    }

    /// Device addresses of the shadow doorbells and of EventIdx.
    pub(crate) fn addresses(&self) -> (Iova, Iova) {
        let (shadow, events) = self.pages();
        (shadow.iova(), events.iova())
    }

    /// Whether the controller looks at them. Only changed while no queue is live; the link's state
    /// makes it visible to their owners.
    pub(crate) fn set_active(&self, active: bool) {
        self.active.store(active, Ordering::Relaxed);
    }

    /// The controller was seen to be disabled and will not be enabled again.
    pub(crate) fn release(&self) {
        self.released.store(true, Ordering::Release);
    }
}

impl Drop for ShadowPages {
    /// Frees the memory if the controller was seen to let go of it; else it is quarantined.
    fn drop(&mut self) {
        if self.released.load(Ordering::Acquire)
            && let Some((shadow, events)) = self.pages.take()
        {
            drop(shadow.reclaim());
            drop(events.reclaim());
        }
    }
}

/// One doorbell of a queue: its register, and its place in the shadow pages if it has one.
#[derive(Debug)]
pub(crate) struct Bell {
    register: Doorbell,
    shadow: Option<Shadow>,
}

#[derive(Debug)]
struct Shadow {
    pages: Arc<ShadowPages>,
    offset: usize,
    /// The value last stored.
    rung: u32,
}

impl Bell {
    /// A doorbell with only a register.
    pub(crate) fn new(register: Doorbell) -> Self {
        Self { register, shadow: None }
    }

    /// The same with the shadow at byte `offset` of `pages`, if it lies in them. The controller
    /// must not know the queue now.
    pub(crate) fn shadowed(mut self, pages: &Arc<ShadowPages>, offset: u32) -> Self {
        let offset = offset as usize;
        if offset + size_of::<u32>() <= PAGE {
            self.shadow = Some(Shadow { pages: Arc::clone(pages), offset, rung: 0 });
            self.restart();
        }
        self
    }

    /// Tells the controller `value`, in memory or by the register.
    #[inline]
    pub(crate) fn ring(&mut self, value: u32) {
        if self.shadow.as_mut().is_none_or(|shadow| shadow.store(value)) {
            self.register.ring(value);
        }
    }

    /// Starts over at 0. The controller must not know the queue now.
    pub(crate) fn restart(&mut self) {
        if let Some(shadow) = &mut self.shadow {
            let (values, events) = shadow.pages.pages();
            values.store_half(shadow.offset, 0);
            // One of the queue's former life would have the controller not be told for long.
            events.store_half(shadow.offset, 0);
            shadow.rung = 0;
        }
    }
}

impl Shadow {
    /// Stores `value`; true if the register is to be written too.
    #[inline]
    fn store(&mut self, value: u32) -> bool {
        let before = std::mem::replace(&mut self.rung, value);
        if !self.pages.active.load(Ordering::Relaxed) {
            return true;
        }
        let (values, events) = self.pages.pages();
        values.store_half(self.offset, value);
        fence(Ordering::SeqCst);
        passes(events.load_half(self.offset), before, value)
    }
}

/// Whether a doorbell that moves from `before` to `value` passes `event`: the controller has seen
/// everything up to `event` and looks no further. Queues have at most 65 536 entries, so sixteen
/// bits count the distance, also across the end of the ring.
#[inline]
fn passes(event: u32, before: u32, value: u32) -> bool {
    let (event, before, value) = (event as u16, before as u16, value as u16);
    value.wrapping_sub(event).wrapping_sub(1) < value.wrapping_sub(before)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    use crate::hw::transport::{DeviceWake, DoorbellPage};
    use crate::units::ByteCount;

    #[test]
    fn a_controller_that_stopped_looking_is_told() {
        for entries in [2, 3, 5, 8, 31, 1024] {
            for before in 0..entries {
                for step in 1..entries.min(9) {
                    let value = (before + step) % entries;
                    // It stopped at the last value it was told, or at one on the way to this.
                    for seen in 0..step {
                        let event = (before + seen) % entries;
                        assert!(
                            passes(event, before, value),
                            "{entries}: {before} {value} {event}"
                        );
                    }
                    // It looked as late as now, or has not stopped looking since an older value.
                    assert!(!passes(value, before, value), "{entries}: {before} {value}");
                    if step + 1 < entries {
                        let older = (before + entries - 1) % entries;
                        assert!(!passes(older, before, value), "{entries}: {before} {value}");
                    }
                }
            }
        }
    }

    fn bell(page: &Arc<DoorbellPage>, pages: &Arc<ShadowPages>) -> Bell {
        let register = Doorbell::new(Arc::clone(page) as _, 8, None).unwrap();
        Bell::new(register).shadowed(pages, 8)
    }

    #[test]
    fn the_register_is_left_alone_until_the_controller_asks() {
        let arena = DmaArena::new(ByteCount(4 << 20), false).unwrap();
        let whole = arena.free();
        let registers = Arc::new(DoorbellPage::new(4));
        let pages = Arc::new(ShadowPages::new(&arena).unwrap());
        let mut bell = bell(&registers, &pages);
        bell.ring(3);
        let (values, events) = pages.pages();
        assert_eq!((registers.load(2), values.load_half(8)), (Some(3), 0), "it was not told yet");
        bell.restart();
        registers.store(2, 0);
        pages.set_active(true);
        bell.ring(1);
        assert_eq!((registers.load(2), values.load_half(8)), (Some(1), 1), "EventIdx is 0");
        bell.ring(2);
        assert_eq!((registers.load(2), values.load_half(8)), (Some(1), 2), "it still looks");
        events.store_half(8, 2);
        bell.ring(5);
        assert_eq!((registers.load(2), values.load_half(8)), (Some(5), 5), "it had stopped");
        bell.restart();
        assert_eq!((values.load_half(8), events.load_half(8)), (0, 0));
        pages.release();
        drop((bell, pages));
        assert_eq!((arena.free(), arena.quarantined()), (whole, ByteCount(0)));
        drop(ShadowPages::new(&arena));
        assert_eq!(arena.quarantined(), ByteCount(2 * PAGE as u64), "nobody saw it let go");
    }

    /// Host and controller on two threads, the controller going to sleep whenever it has seen
    /// everything: it must be woken for the last command, too.
    #[test]
    fn no_command_is_overlooked() {
        const COMMANDS: u32 = 20_000;
        const ENTRIES: u32 = 7;
        let arena = DmaArena::new(ByteCount(4 << 20), false).unwrap();
        let registers = Arc::new(DoorbellPage::new(4));
        let pages = Arc::new(ShadowPages::new(&arena).unwrap());
        pages.set_active(true);
        let wake = Arc::new(DeviceWake::new().unwrap());
        let register = Doorbell::new(registers, 8, Some(Arc::clone(&wake))).unwrap();
        let mut host = Bell::new(register).shadowed(&pages, 8);
        let seen = Arc::new(AtomicU32::new(0));
        let device = std::thread::spawn({
            let (pages, seen) = (Arc::clone(&pages), Arc::clone(&seen));
            move || {
                let (values, events) = pages.pages();
                let (mut tail, mut total) = (0, 0);
                while total < COMMANDS {
                    let now = values.load_half(8);
                    total += (now + ENTRIES - tail) % ENTRIES;
                    tail = now;
                    seen.store(total, Ordering::Release);
                    wake.sleep_unless(None, || {
                        events.store_half(8, tail);
                        fence(Ordering::SeqCst);
                        total == COMMANDS || values.load_half(8) != tail
                    });
                }
            }
        });
        for submitted in 1..=COMMANDS {
            host.ring(submitted % ENTRIES);
            while submitted - seen.load(Ordering::Acquire) > ENTRIES - 2 {
                std::thread::yield_now();
            }
        }
        device.join().unwrap();
        assert_eq!(seen.load(Ordering::Acquire), COMMANDS);
    }
}
