//! The word that a queue pair and its controller share, and through which a reset takes the queue
//! away from its owner and gives it back.
//!
//! ```text
//!          controller          controller         pair               controller          controller
//!   Live -------------> Stopping -------> Stopped ------> Surrendered ----------> Creating ---> Live
//!   Live <------------> Paused ---------> Stopping
//!     any state ------> Dead / DeadUnproven (the end)
//! ```
//!
//! * `Live`: commands may be submitted.
//! * `Paused`: the controller activates firmware. No commands; what has completed may be taken; all
//!   memory is still the device's.
//! * `Stopping`: a reset is on its way. No commands; what has completed may still be taken; all
//!   memory is still the device's.
//! * `Stopped`: the controller was seen to be disabled. All memory is ours again. The pair ends
//!   its commands in flight, clears its rings and surrenders.
//! * `Surrendered`: the pair is quiet, its memory is ours.
//! * `Creating`: the controller is creating the queue anew; its memory is the device's.
//! * `Dead`: the controller will not come back, and was seen to be disabled.
//! * `DeadUnproven`: it will not come back and may, for all we know, still write to memory.
//!
//! Every step is a compare-and-swap from a state that allows it, so that a pair that is dropped
//! (`Stopped` or `Surrendered` to `Dead`) and a controller that creates its queue anew exclude
//! each other: the memory is freed, or used, never both.
//!
//! A doorbell that its owner rings in the moment the state leaves `Live` reaches a queue that does
//! not exist, at worst after the controller is enabled again: an error event, and no harm, as the
//! queue is created anew only once that same owner has surrendered.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::queue_pair::Remains;
use crate::units::CommandId;

/// Who may do what with a queue pair now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum LinkState {
    Live,
    Stopping,
    Stopped,
    Surrendered,
    Creating,
    Dead,
    DeadUnproven,
    Paused,
}

/// Between one queue pair and its controller.
#[derive(Debug)]
pub(crate) struct Link {
    state: AtomicU32,
    /// A command to abort: its identifier, or [`NO_ABORT`].
    abort: AtomicU32,
    hopeless: AtomicBool,
    /// What a pair left behind that was dropped.
    remains: Mutex<Option<Remains>>,
}

const NO_ABORT: u32 = u32::MAX;

impl Link {
    pub(crate) fn new() -> Self {
        Self {
            state: AtomicU32::new(LinkState::Live as u32),
            abort: AtomicU32::new(NO_ABORT),
            hopeless: AtomicBool::new(false),
            remains: Mutex::new(None),
        }
    }

    /// The state now. Acquire: who sees `Stopped` also sees what the device wrote before it was
    /// disabled; who sees `Surrendered` also sees the rings cleared.
    #[inline]
    pub(crate) fn state(&self) -> LinkState {
        match self.state.load(Ordering::Acquire) {
            0 => LinkState::Live,
            1 => LinkState::Stopping,
            2 => LinkState::Stopped,
            3 => LinkState::Surrendered,
            4 => LinkState::Creating,
            5 => LinkState::Dead,
            7 => LinkState::Paused,
            _ => LinkState::DeadUnproven,
        }
    }

    /// Moves from `from` to `to`; false if the state is not `from`. Only the side that the picture
    /// above names may call this. Release: what was done before is visible to who sees `to`.
    pub(crate) fn change(&self, from: LinkState, to: LinkState) -> bool {
        let (from, to) = (from as u32, to as u32);
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Controller: takes the queue away before a reset. A queue that it does not know now stays
    /// as it is.
    pub(crate) fn stop(&self) {
        let _ = self.change(LinkState::Live, LinkState::Stopping)
            || self.change(LinkState::Paused, LinkState::Stopping)
            || self.change(LinkState::Creating, LinkState::Stopping);
    }

    /// Controller: the queue is known to it, and empty.
    pub(crate) fn start(&self) {
        self.abort.store(NO_ABORT, Ordering::Relaxed);
        self.hopeless.store(false, Ordering::Relaxed);
        let _ = self.change(LinkState::Creating, LinkState::Live);
    }

    /// Controller: it will not come back. `disabled` says whether it was seen to be disabled.
    pub(crate) fn end(&self, disabled: bool) {
        let used = if disabled { LinkState::Dead } else { LinkState::DeadUnproven };
        for (from, to) in [
            (LinkState::Live, used),
            (LinkState::Paused, used),
            (LinkState::Stopping, used),
            (LinkState::Creating, used),
            (LinkState::Stopped, LinkState::Dead),
            // A pair may surrender in between, so this is looked at after `Stopped`.
            (LinkState::Surrendered, LinkState::Dead),
        ] {
            if self.change(from, to) {
                return;
            }
        }
    }

    /// Controller: it takes no commands for a while.
    pub(crate) fn pause(&self) {
        self.change(LinkState::Live, LinkState::Paused);
    }

    /// Controller: it takes commands again.
    pub(crate) fn resume(&self) {
        self.change(LinkState::Paused, LinkState::Live);
    }

    /// Pair, while dropped: leaves what the device may still use to the controller.
    pub(crate) fn leave(&self, remains: Remains) {
        *self.remains.lock().unwrap_or_else(PoisonError::into_inner) = Some(remains);
        // The controller may have been disabled, and have looked for it, just before.
        if self.close() {
            self.reclaim_remains();
        }
    }

    /// Frees what a dropped pair has left, if anything. Only once the device does not use it any
    /// more.
    pub(crate) fn reclaim_remains(&self) {
        let remains = self.remains.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(remains) = remains {
            remains.reclaim();
        }
    }

    /// Pair, while dropped: whether its memory is its own. From then on it stays so.
    pub(crate) fn close(&self) -> bool {
        self.state() == LinkState::Dead
            || self.change(LinkState::Stopped, LinkState::Dead)
            || self.change(LinkState::Surrendered, LinkState::Dead)
    }

    /// Pair: asks for `id` to be aborted, unless an earlier wish has not been looked at yet; an
    /// abort is only an attempt to avoid a reset.
    pub(crate) fn ask_abort(&self, id: CommandId) {
        let asked = u32::from(id.get());
        let (set, failed) = (Ordering::Relaxed, Ordering::Relaxed);
        // The outcome does not matter: see above.
        let _ = self.abort.compare_exchange(NO_ABORT, asked, set, failed);
    }

    /// Pair: says that a command was not answered although it was aborted.
    pub(crate) fn ask_reset(&self) {
        self.hopeless.store(true, Ordering::Relaxed);
    }

    /// Controller: the command to abort, if there is one.
    pub(crate) fn take_abort(&self) -> Option<CommandId> {
        if self.abort.load(Ordering::Relaxed) == NO_ABORT {
            return None;
        }
        u16::try_from(self.abort.swap(NO_ABORT, Ordering::Relaxed)).ok().map(CommandId)
    }

    /// Controller: whether the pair wants a reset.
    pub(crate) fn wants_reset(&self) -> bool {
        self.hopeless.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_takes_a_queue_and_gives_it_back() {
        let link = Link::new();
        link.ask_abort(CommandId(7));
        link.ask_abort(CommandId(8));
        link.ask_reset();
        link.stop();
        assert_eq!(link.state(), LinkState::Stopping);
        assert!(!link.close(), "the device may still write");
        assert!(link.change(LinkState::Stopping, LinkState::Stopped));
        assert!(link.change(LinkState::Stopped, LinkState::Surrendered));
        link.stop();
        assert_eq!(link.state(), LinkState::Surrendered, "it is not the device's now");
        assert!(link.change(LinkState::Surrendered, LinkState::Creating));
        assert!(!link.close(), "its memory is about to be the device's");
        link.start();
        assert_eq!(link.state(), LinkState::Live);
        assert_eq!((link.take_abort(), link.wants_reset()), (None, false), "of an older life");
    }

    #[test]
    fn a_dropped_pair_and_a_new_queue_exclude_each_other() {
        let link = Link::new();
        link.stop();
        link.change(LinkState::Stopping, LinkState::Stopped);
        assert!(link.close());
        assert!(!link.change(LinkState::Surrendered, LinkState::Creating));
        for (prepare, disabled, end) in [
            (LinkState::Stopping, true, LinkState::Dead),
            (LinkState::Stopping, false, LinkState::DeadUnproven),
            (LinkState::Stopped, false, LinkState::Dead),
        ] {
            let link = Link::new();
            link.stop();
            link.change(LinkState::Stopping, prepare);
            link.end(disabled);
            assert_eq!((link.state(), link.close()), (end, end == LinkState::Dead));
        }
    }

    #[test]
    fn one_abort_is_kept() {
        let link = Link::new();
        assert_eq!(link.take_abort(), None);
        link.ask_abort(CommandId(0));
        link.ask_abort(CommandId(9));
        assert_eq!((link.take_abort(), link.take_abort()), (Some(CommandId(0)), None));
    }
}
