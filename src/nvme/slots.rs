//! The commands in flight: one slot each, found by command identifier.
//!
//! A command identifier is slot (bits 11:0) and generation (bits 15:12), which counts the uses of
//! the slot. So a completion that comes twice, or for a command of long ago, is noticed instead
//! of ending another command: unless the slot was used a multiple of sixteen times in between.

use crate::hw::dma::DeviceBuffer;
use crate::units::CommandId;

const SLOT_BITS: u32 = 12;
const SLOT_MASK: u16 = (1 << SLOT_BITS) - 1;

/// How far a command has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The slot is free.
    Free,
    /// In flight; no sweep has looked at it yet, so its time has not started.
    Fresh,
    /// In flight, until the deadline.
    Timed,
    /// Past its deadline: to be aborted, until the second deadline.
    Late,
}

/// A command in flight.
#[derive(Debug)]
pub(crate) struct Slot {
    /// The caller's name for the command.
    pub(crate) token: u64,
    /// The data, which is the device's until the command has completed.
    pub(crate) buffer: Option<DeviceBuffer>,
    /// When the stage ends, in nanoseconds; valid in `Timed` and `Late`.
    pub(crate) deadline: u64,
    /// How long a stage lasts in milliseconds; 0 is for ever.
    pub(crate) patience_ms: u32,
    pub(crate) opcode: u8,
    pub(crate) stage: Stage,
    generation: u8,
}

/// Why a completion belongs to no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stray {
    /// There is no such slot.
    NoSlot,
    /// The slot is free or has another generation: it completed before.
    Stale,
}

/// All slots of a queue pair.
#[derive(Debug)]
pub(crate) struct Slots {
    slots: Box<[Slot]>,
    /// Free slots; the one freed last is used next, as it is warm.
    free: Vec<u16>,
}

impl Slots {
    /// `count` free slots.
    pub(crate) fn new(count: u16) -> Self {
        // Slot 4095 with generation 15 would be the reserved identifier FFFFh.
        assert!((1..SLOT_MASK).contains(&count), "{count} commands in flight are not possible");
        let slot = || Slot {
            token: 0,
            buffer: None,
            deadline: 0,
            patience_ms: 0,
            opcode: 0,
            stage: Stage::Free,
            generation: 0,
        };
        Self { slots: (0..count).map(|_| slot()).collect(), free: (0..count).rev().collect() }
    }

    /// Takes a free slot: its index and the identifier for its next command.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<(u16, CommandId)> {
        let index = self.free.pop()?;
        let generation = u16::from(self.slots[usize::from(index)].generation);
        Some((index, CommandId(index | generation << SLOT_BITS)))
    }

    /// The slot of index `index`, which came from [`Slots::take`].
    #[inline]
    pub(crate) fn slot(&mut self, index: u16) -> &mut Slot {
        &mut self.slots[usize::from(index)]
    }

    /// The slot in flight that `id` names.
    #[inline]
    pub(crate) fn find(&self, id: CommandId) -> Result<u16, Stray> {
        let index = id.get() & SLOT_MASK;
        let slot = self.slots.get(usize::from(index)).ok_or(Stray::NoSlot)?;
        let generation = u16::from(slot.generation);
        if slot.stage == Stage::Free || id.get() >> SLOT_BITS != generation {
            return Err(Stray::Stale);
        }
        Ok(index)
    }

    /// Ends the command in slot `index` and frees the slot: its token, opcode and data.
    #[inline]
    pub(crate) fn finish(&mut self, index: u16) -> (u64, u8, Option<DeviceBuffer>) {
        let slot = &mut self.slots[usize::from(index)];
        slot.stage = Stage::Free;
        slot.generation = (slot.generation + 1) & 0xf;
        let (token, opcode, buffer) = (slot.token, slot.opcode, slot.buffer.take());
        self.free.push(index);
        (token, opcode, buffer)
    }

    /// Commands in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many more commands fit.
    pub(crate) fn vacant(&self) -> usize {
        self.free.len()
    }

    /// Index of any command in flight.
    pub(crate) fn any_in_flight(&self) -> Option<u16> {
        let index = self.slots.iter().position(|slot| slot.stage != Stage::Free)?;
        u16::try_from(index).ok()
    }

    /// Gives each command in flight all of its time again, from the next sweep on.
    pub(crate) fn restart_clocks(&mut self) {
        for slot in &mut self.slots {
            if slot.stage != Stage::Free {
                slot.stage = Stage::Fresh;
            }
        }
    }

    /// Looks at the clock for each command in flight. Returns how many passed their first
    /// deadline now, the identifier of the one of them that is to be aborted, and whether one
    /// passed its second deadline.
    pub(crate) fn sweep(&mut self, now: u64) -> Overdue {
        let mut overdue = Overdue::default();
        for (index, slot) in (0_u16..).zip(&mut self.slots) {
            let next = now.saturating_add(u64::from(slot.patience_ms) * 1_000_000);
            match slot.stage {
                Stage::Free => {}
                Stage::Fresh if slot.patience_ms != 0 => {
                    (slot.stage, slot.deadline) = (Stage::Timed, next);
                }
                Stage::Timed if now >= slot.deadline => {
                    (slot.stage, slot.deadline) = (Stage::Late, next);
                    overdue.count += 1;
                    let generation = u16::from(slot.generation);
                    overdue.abort = Some(CommandId(index | generation << SLOT_BITS));
                }
                Stage::Late if now >= slot.deadline => overdue.hopeless = true,
                Stage::Fresh | Stage::Timed | Stage::Late => {}
            }
        }
        overdue
    }
}

/// What a sweep found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overdue {
    /// Commands that passed their first deadline.
    pub(crate) count: u32,
    /// One of them.
    pub(crate) abort: Option<CommandId>,
    /// Whether a command passed its second deadline.
    pub(crate) hopeless: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(slots: &mut Slots, token: u64, patience_ms: u32) -> (u16, CommandId) {
        let (index, id) = slots.take().unwrap();
        let slot = slots.slot(index);
        (slot.token, slot.stage, slot.patience_ms) = (token, Stage::Fresh, patience_ms);
        (index, id)
    }

    #[test]
    fn identifiers_differ_for_sixteen_uses_of_a_slot() {
        let mut slots = Slots::new(1);
        let mut seen = Vec::new();
        for token in 0..16 {
            let (index, id) = start(&mut slots, token, 0);
            assert!(slots.take().is_none(), "one slot holds one command");
            for &old in &seen {
                assert_eq!(slots.find(old), Err(Stray::Stale), "{old:?} completed before");
            }
            assert_eq!(slots.find(id), Ok(index));
            assert_eq!(slots.finish(index).0, token);
            assert_eq!(slots.find(id), Err(Stray::Stale), "{id:?} completes once");
            seen.push(id);
        }
        assert_eq!(slots.take().unwrap().1, seen[0]);
    }

    #[test]
    fn no_identifier_is_reserved_and_unknown_ones_are_strays() {
        let mut slots = Slots::new(SLOT_MASK - 1);
        assert_eq!(slots.find(CommandId(0xffff)), Err(Stray::NoSlot));
        assert_eq!(slots.find(CommandId(0)), Err(Stray::Stale));
        for _ in 0..SLOT_MASK - 1 {
            assert_ne!(slots.take().unwrap().1, CommandId(0xffff));
        }
        assert_eq!(slots.take(), None);
    }

    #[test]
    fn time_starts_at_the_first_sweep_and_ends_twice() {
        let mut slots = Slots::new(4);
        let (_, id) = start(&mut slots, 1, 10);
        start(&mut slots, 2, 0);
        let ms = 1_000_000;
        assert_eq!(slots.sweep(500 * ms), Overdue::default(), "long before the sweep or not");
        assert_eq!(slots.sweep(509 * ms), Overdue::default());
        let first = slots.sweep(510 * ms);
        assert_eq!(first, Overdue { count: 1, abort: Some(id), hopeless: false });
        assert_eq!(slots.sweep(519 * ms), Overdue::default());
        assert!(slots.sweep(520 * ms).hopeless);
        assert_eq!(slots.find(id), Ok(0), "a late command is still in flight");
    }
}
