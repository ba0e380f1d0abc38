//! A disk with a volatile write cache, whose power can be cut at any command.
//!
//! * A write is *pending* from its submission. A flush makes durable what had completed when the
//!   flush was submitted; force unit access makes durable its own write.
//! * A cut keeps any subset of what is pending, chosen for each atomic unit by itself: so writes
//!   are lost, reordered and torn. Discards and zeroings are pending like writes.
//! * With [`SimDisk::cut_after`] the disk dies at its n-th command: that command is submitted,
//!   may have happened or not, and neither it nor any later one is answered.
//!
//! * A recorded disk ([`SimDisk::record`]) keeps what each moment of one run was, so that a single
//!   run serves for a cut at each of its commands.
//!
//! Invariant: the same options, commands and seeds give the same disk.

use std::cell::RefCell;
use std::collections::hash_map::DefaultHasher;
use std::future::{Future, poll_fn};
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::block::{
    BlockDevice, BlockError, Counted, Counters, Counting, Discard, Durability, Geometry, Transfer,
    TransferError,
};
use crate::hw::dma::{DmaBuffer, MAX_BUFFER};
use crate::reactor::Reactor;
use crate::units::{BlockCount, BlockSize, ByteCount, Lba};

use super::contents::{Data, PAGE, Pages, apply, is_stored, read};

/// What an unspecified discard leaves behind.
const DISCARDED: u8 = 0xdb;

/// What a disk is made with.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Its size, a multiple of 4096.
    pub size: ByteCount,
    /// Its block size.
    pub block_size: BlockSize,
    /// Bytes that a cut keeps or loses as one: 512 to 4096, also less than a block.
    pub atomic_unit: usize,
    /// What discarding does.
    pub discard: Discard,
    /// Commands take up to 100 us of virtual time, as this seed draws; `None`: no time.
    pub delays: Option<u64>,
}

impl SimOptions {
    /// A disk with blocks and atomic units of 4096 bytes, whose discarded blocks read as zeros.
    #[must_use]
    pub fn new(size: ByteCount) -> Self {
        Self {
            size,
            block_size: BlockSize::B4096,
            atomic_unit: PAGE,
            discard: Discard::Zeroes,
            delays: None,
        }
    }
}

/// A write that a cut may lose.
#[derive(Clone)]
struct Pending {
    offset: u64,
    data: Data,
    completed: bool,
    number: u64,
}

struct State {
    options: SimOptions,
    geometry: Geometry,
    /// What a cut cannot take.
    stable: Pages,
    /// What reads return.
    cached: Pages,
    pending: Vec<Pending>,
    next_number: u64,
    commands: u64,
    cut_after: Option<u64>,
    flushes: u64,
    ignored_flush: Option<u64>,
    dead: bool,
    watchers: Vec<Waker>,
    rng: Option<fastrand::Rng>,
    /// Moments: commands submitted until then, what is stable, what is pending.
    record: Option<Vec<(u64, Pages, Vec<Pending>)>>,
}

/// A simulated disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Rc<RefCell<State>>);

impl SimDisk {
    /// A disk of zeros.
    ///
    /// # Panics
    /// If the options contradict the documentation: a mistake of the test.
    #[must_use]
    pub fn new(options: SimOptions) -> Self {
        Self::with_contents(options, Pages::new())
    }

    /// A disk that holds `image` from its first byte on.
    ///
    /// # Panics
    /// If the image is larger than the disk.
    #[must_use]
    pub fn with_image(options: SimOptions, image: &[u8]) -> Self {
        assert!(image.len() as u64 <= options.size.get(), "the image does not fit");
        let mut contents = Pages::new();
        apply(&mut contents, 0, &Data::Bytes(image.into()), 0..image.len() as u64);
        Self::with_contents(options, contents)
    }

    fn with_contents(options: SimOptions, contents: Pages) -> Self {
        assert!(options.size.get().is_multiple_of(PAGE as u64), "the size is whole pages");
        let unit = options.atomic_unit;
        assert!(unit.is_power_of_two() && (512..=PAGE).contains(&unit), "a unit of {unit} bytes");
        let geometry = Geometry {
            block_size: options.block_size,
            physical_block_size: options.block_size,
            block_count: BlockCount(options.size.get() >> options.block_size.shift()).into(),
            atomic_write: ByteCount(unit as u64),
            volatile_cache: true,
            discard: options.discard,
            max_transfer: ByteCount(MAX_BUFFER as u64),
        };
        Self(Rc::new(RefCell::new(State {
            rng: options.delays.map(fastrand::Rng::with_seed),
            options,
            geometry,
            stable: contents.clone(),
            cached: contents,
            pending: Vec::new(),
            next_number: 0,
            commands: 0,
            cut_after: None,
            flushes: 0,
            ignored_flush: None,
            dead: false,
            watchers: Vec::new(),
            record: None,
        })))
    }

    /// A channel for `reactor`.
    #[must_use]
    pub fn channel(&self, reactor: &Rc<Reactor>) -> SimChannel {
        SimChannel {
            disk: self.clone(),
            reactor: Rc::clone(reactor),
            geometry: Rc::new(self.0.borrow().geometry.clone()),
            counting: Rc::default(),
        }
    }

    /// The disk is larger from now on, for those who have it open, too.
    ///
    /// # Panics
    /// If the size is not whole pages, or is smaller.
    pub fn grow(&self, size: ByteCount) {
        let mut state = self.0.borrow_mut();
        let bytes = size.get();
        assert!(bytes.is_multiple_of(PAGE as u64) && bytes >= state.options.size.get());
        state.options.size = size;
        let blocks = BlockCount(bytes >> state.options.block_size.shift());
        state.geometry.block_count.grow(blocks);
    }

    /// How many commands were submitted so far.
    #[must_use]
    pub fn commands(&self) -> u64 {
        self.0.borrow().commands
    }

    /// Cuts the power at the `command`-th command from the disk's beginning (the first is 1).
    pub fn cut_after(&self, command: u64) {
        self.0.borrow_mut().cut_after = Some(command);
    }

    /// How many flushes were submitted so far.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.0.borrow().flushes
    }

    /// The `flush`-th flush from the disk's beginning (the first is 1) is answered and does nothing,
    /// as if who submitted it had forgotten it.
    pub fn ignore_flush(&self, flush: u64) {
        self.0.borrow_mut().ignored_flush = Some(flush);
    }

    /// Keeps, from now on, what the disk is after the submission of each command that changes it.
    pub fn record(&self) {
        self.0.borrow_mut().record.get_or_insert_default();
    }

    /// What [`SimDisk::record`] kept: how many commands had been submitted, and the disk as a cut
    /// at the last of them would find it.
    #[must_use]
    pub fn recorded(&self) -> Vec<(u64, Self)> {
        let state = self.0.borrow();
        let moment = |(commands, stable, pending): &(u64, Pages, Vec<Pending>)| {
            let disk = Self::with_contents(state.options.clone(), stable.clone());
            disk.0.borrow_mut().pending.clone_from(pending);
            (*commands, disk)
        };
        state.record.iter().flatten().map(moment).collect()
    }

    /// Ends when the disk has died.
    pub fn dead(&self) -> impl Future<Output = ()> + use<> {
        let disk = self.clone();
        poll_fn(move |context| {
            let mut state = disk.0.borrow_mut();
            if state.dead {
                return Poll::Ready(());
            }
            state.watchers.push(context.waker().clone());
            Poll::Pending
        })
    }

    /// How many atomic units a cut now would decide about.
    #[must_use]
    pub fn undecided(&self) -> usize {
        let state = self.0.borrow();
        state.pending.iter().map(|pending| state.units(pending).count()).sum()
    }

    /// The disk after a power cut now, each undecided unit kept or lost as `seed` draws.
    #[must_use]
    pub fn cut(&self, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        // Sometimes nearly all or nearly nothing survives: bugs hide at the ends.
        let keep_of_16 = rng.u8(0..=16);
        self.cut_with(|_| rng.u8(0..16) < keep_of_16)
    }

    /// The disk after a power cut now; undecided unit `i`, in order of submission, is kept if bit
    /// `i` of `mask` is set; units beyond 63 are lost.
    #[must_use]
    pub fn cut_keep(&self, mask: u64) -> Self {
        self.cut_with(|unit| unit < 64 && mask >> unit & 1 != 0)
    }

    /// How many atomic units a cut now would decide about that would make a difference: keeping one
    /// that writes what is there already is the same as losing it.
    #[must_use]
    pub fn choices(&self) -> usize {
        let state = self.0.borrow();
        state.choices().iter().filter(|choice| **choice).count()
    }

    /// For each of the [`SimDisk::choices`] the write of which it is a part: 0, 1, ... in order of
    /// submission, counting those that a cut decides about.
    #[must_use]
    pub fn writes_of_choices(&self) -> Vec<usize> {
        let state = self.0.borrow();
        let choices = state.choices();
        let mut left = choices.iter();
        let (mut writes, mut number) = (Vec::new(), 0);
        for pending in &state.pending {
            let units = left.by_ref().take(state.units(pending).count());
            let parts = units.filter(|matters| **matters).count();
            writes.extend(std::iter::repeat_n(number, parts));
            number += usize::from(parts > 0);
        }
        writes
    }

    /// The disk after a power cut now; `keep` says whether the n-th of the [`SimDisk::choices`], in
    /// order of submission, is kept.
    #[must_use]
    pub fn cut_choosing(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let choices = self.0.borrow().choices();
        let mut number = 0;
        self.cut_with(|unit| {
            let matters = choices[unit];
            number += usize::from(matters);
            matters && keep(number - 1)
        })
    }

    /// A number that disks with different stable contents do not share, but for the odd collision of
    /// 64 bits.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (page, bytes) in
            self.0.borrow().stable.iter().filter(|(_, bytes)| ***bytes != [0; PAGE])
        {
            (page, &bytes[..]).hash(&mut hasher);
        }
        hasher.finish()
    }

    fn cut_with(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let state = self.0.borrow();
        let mut survived = state.stable.clone();
        let mut number = 0;
        for pending in &state.pending {
            for unit in state.units(pending) {
                if keep(number) {
                    apply(&mut survived, pending.offset, &pending.data, unit);
                }
                number += 1;
            }
        }
        Self::with_contents(state.options.clone(), survived)
    }

    /// A copy of the disk as it is now, cache and all, with nothing in flight.
    #[must_use]
    pub fn fork(&self) -> Self {
        let state = self.0.borrow();
        let copy = Self::with_contents(state.options.clone(), state.stable.clone());
        {
            let mut new = copy.0.borrow_mut();
            new.cached = state.cached.clone();
            new.pending = state.pending.clone();
            new.next_number = state.next_number;
        }
        copy
    }

    /// Reads what a reader would see now, any range within the disk.
    ///
    /// # Panics
    /// If the range ends past the disk's end.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) {
        let state = self.0.borrow();
        let end = offset + into.len() as u64;
        assert!(end <= state.options.size.get(), "a read past the end, at {end}");
        read(&state.cached, offset, into);
    }

    /// The disk's size.
    #[must_use]
    pub fn size(&self) -> ByteCount {
        self.0.borrow().options.size
    }
}

impl State {
    /// The parts of a pending write that a cut decides about, as ranges of its data.
    fn units(&self, pending: &Pending) -> impl Iterator<Item = std::ops::Range<u64>> + use<> {
        let unit = self.options.atomic_unit as u64;
        let (start, end) = (pending.offset, pending.offset + pending.data.length());
        let mut at = start;
        std::iter::from_fn(move || {
            let from = at;
            // An atomic write is aligned to its size.
            at = (from + 1).next_multiple_of(unit).min(end);
            (from < end).then(|| from - start..at - start)
        })
    }

    /// For each undecided unit whether it matters: it is not what is stable there, or another one
    /// that matters is below it.
    fn choices(&self) -> Vec<bool> {
        let mut below: Vec<(u64, u64)> = Vec::new();
        let mut choices = Vec::new();
        for pending in &self.pending {
            for unit in self.units(pending) {
                let (from, to) = (pending.offset + unit.start, pending.offset + unit.end);
                let overlaps = below.iter().any(|(start, end)| *start < to && from < *end);
                let matters = overlaps || !is_stored(&self.stable, from, &pending.data, unit);
                if matters {
                    below.push((from, to));
                }
                choices.push(matters);
            }
        }
        choices
    }

    /// Counts a command; false if the disk is dead for it.
    fn submit(&mut self) -> Admission {
        if self.dead {
            return Admission::Ignored;
        }
        self.commands += 1;
        if self.cut_after == Some(self.commands) {
            self.dead = true;
            self.watchers.drain(..).for_each(Waker::wake);
            return Admission::Last;
        }
        Admission::Served
    }

    fn write(&mut self, offset: u64, data: Data) -> u64 {
        let length = data.length();
        apply(&mut self.cached, offset, &data, 0..length);
        let number = self.next_number;
        self.next_number += 1;
        self.pending.push(Pending { offset, data, completed: false, number });
        self.note();
        number
    }

    fn note(&mut self) {
        if let Some(record) = &mut self.record {
            record.push((self.commands, self.stable.clone(), self.pending.clone()));
        }
    }

    /// Makes one write stable, whatever is pending beside it. What was pending where it wrote is
    /// overtaken: no cut can bring that back.
    fn settle_alone(&mut self, number: u64) {
        let Some(index) = self.pending.iter().position(|write| write.number == number) else {
            return;
        };
        let write = self.pending.remove(index);
        let (start, end) = (write.offset, write.offset + write.data.length());
        apply(&mut self.stable, start, &write.data, 0..end - start);
        for earlier in self.pending.drain(..index).collect::<Vec<_>>().into_iter().rev() {
            let (from, to) = (earlier.offset, earlier.offset + earlier.data.length());
            for (from, to) in [(from.max(end), to), (from, to.min(start))] {
                if from < to {
                    let data = earlier.data.part(from - earlier.offset..to - earlier.offset);
                    self.pending.insert(0, Pending { offset: from, data, ..earlier.clone() });
                }
            }
        }
    }

    /// Makes the chosen pending writes stable, in their order.
    fn settle(&mut self, chosen: impl Fn(&Pending) -> bool) {
        let pending = std::mem::take(&mut self.pending);
        for write in pending {
            if chosen(&write) {
                let length = write.data.length();
                apply(&mut self.stable, write.offset, &write.data, 0..length);
            } else {
                self.pending.push(write);
            }
        }
    }
}

/// What becomes of a command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Admission {
    /// It is carried out and answered.
    Served,
    /// The power goes while it is carried out: no answer.
    Last,
    /// The power is off.
    Ignored,
}

/// One reactor's way to a simulated disk.
#[derive(Clone)]
pub struct SimChannel {
    disk: SimDisk,
    reactor: Rc<Reactor>,
    geometry: Rc<Geometry>,
    counting: Rc<Counting>,
}

impl SimChannel {
    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// Submits a command. Without power it is never answered.
    async fn command<R>(&self, start: impl FnOnce(&mut State) -> R) -> R {
        let (admission, delay, result) = {
            let mut state = self.disk.0.borrow_mut();
            let admission = state.submit();
            let result = (admission != Admission::Ignored).then(|| start(&mut state));
            let delay = state.rng.as_mut().map(|rng| Duration::from_nanos(rng.u64(0..100_000)));
            (admission, delay, result)
        };
        if let (Admission::Served, Some(result)) = (admission, result) {
            if let Some(delay) = delay {
                self.reactor.sleep(delay).await;
            }
            // Power may have gone while it was under way.
            if !self.disk.0.borrow().dead {
                return result;
            }
        }
        std::future::pending().await
    }

    async fn fill(&self, offset: u64, byte: u8, length: u64) {
        let number = self.command(|state| state.write(offset, Data::Fill(byte, length))).await;
        self.complete(number);
    }

    fn complete(&self, number: u64) {
        let mut state = self.disk.0.borrow_mut();
        if let Some(write) = state.pending.iter_mut().find(|write| write.number == number) {
            write.completed = true;
        }
    }
}

impl BlockDevice for SimChannel {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    async fn read(&self, start: Lba, mut buffer: DmaBuffer) -> Transfer {
        let checked = self.geometry.check_transfer(start, buffer.len());
        self.counting.add(Counted::Read(buffer.len() as u64), checked.is_ok());
        match checked {
            Ok((offset, _)) => {
                self.command(|state| read(&state.cached, offset, &mut buffer)).await;
                Ok(buffer)
            }
            Err(error) => Err(TransferError::new(error, buffer)),
        }
    }

    async fn write(&self, start: Lba, buffer: DmaBuffer, durability: Durability) -> Transfer {
        let checked = self.geometry.check_transfer(start, buffer.len());
        self.counting.add(Counted::Write(buffer.len() as u64, durability), checked.is_ok());
        let offset = match checked {
            Ok((offset, _)) => offset,
            Err(error) => return Err(TransferError::new(error, buffer)),
        };
        let data = Data::Bytes(buffer[..].into());
        let number = self.command(|state| state.write(offset, data)).await;
        self.complete(number);
        if durability == Durability::ForceUnitAccess {
            self.disk.0.borrow_mut().settle_alone(number);
        }
        Ok(buffer)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.counting.add(Counted::Flush, true);
        let completed = |state: &mut State| -> Vec<u64> {
            state.note();
            state.flushes += 1;
            if state.ignored_flush == Some(state.flushes) {
                return Vec::new();
            }
            let completed = state.pending.iter().filter(|write| write.completed);
            completed.map(|write| write.number).collect()
        };
        let numbers = self.command(completed).await;
        self.disk.0.borrow_mut().settle(|write| numbers.binary_search(&write.number).is_ok());
        Ok(())
    }

    async fn discard(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        let checked = self.geometry.check(start, blocks);
        self.counting.add(Counted::Discard, checked.is_ok());
        let (offset, length) = (checked?, blocks.get() << self.geometry.block_size.shift());
        match self.geometry.discard {
            Discard::Ignored => self.command(|_| ()).await,
            Discard::Unspecified => self.fill(offset, DISCARDED, length).await,
            Discard::Zeroes => self.fill(offset, 0, length).await,
        }
        Ok(())
    }

    async fn write_zeroes(&self, start: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        let checked = self.geometry.check(start, blocks);
        self.counting.add(Counted::WriteZeroes, checked.is_ok());
        let (offset, length) = (checked?, blocks.get() << self.geometry.block_size.shift());
        self.fill(offset, 0, length).await;
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.counting.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::dma::DmaArena;
    use crate::reactor::ReactorOptions;

    struct Bench {
        reactor: Rc<Reactor>,
        arena: DmaArena,
        disk: SimDisk,
    }

    impl Bench {
        fn new(options: SimOptions) -> Self {
            let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
            let arena = DmaArena::new(ByteCount(4 << 20), false).unwrap();
            Self { reactor, arena, disk: SimDisk::new(options) }
        }

        async fn write(&self, block: u64, value: u8, durability: Durability) {
            let mut buffer = self.arena.allocate(4096).unwrap();
            buffer.fill(value);
            let channel = self.disk.channel(&self.reactor);
            channel.write(Lba(block), buffer, durability).await.unwrap();
        }
    }

    fn byte(disk: &SimDisk, block: u64) -> u8 {
        let mut byte = [0];
        disk.read_at(block * 4096, &mut byte);
        byte[0]
    }

    fn options() -> SimOptions {
        SimOptions::new(ByteCount(1 << 20))
    }

    #[test]
    fn flushed_and_fua_writes_survive_others_may_not() {
        let bench = Bench::new(options());
        bench.reactor.block_on(async {
            bench.write(1, 1, Durability::Cached).await;
            bench.disk.channel(&bench.reactor).flush().await.unwrap();
            bench.write(2, 2, Durability::Cached).await;
            bench.write(3, 3, Durability::ForceUnitAccess).await;
            bench.write(1, 9, Durability::Cached).await;
        });
        assert_eq!(bench.disk.undecided(), 2);
        let outcomes: Vec<_> = (0..4)
            .map(|mask| bench.disk.cut_keep(mask))
            .map(|disk| (byte(&disk, 1), byte(&disk, 2), byte(&disk, 3)))
            .collect();
        assert_eq!(outcomes, [(1, 0, 3), (1, 2, 3), (9, 0, 3), (9, 2, 3)]);
        assert_eq!(byte(&bench.disk, 1), 9, "a reader sees the cache");
    }

    #[test]
    fn a_forced_write_overtakes_what_was_pending_in_its_place() {
        let bench = Bench::new(options());
        bench.reactor.block_on(async {
            let mut buffer = bench.arena.allocate(3 * 4096).unwrap();
            buffer.fill(1);
            let channel = bench.disk.channel(&bench.reactor);
            channel.write(Lba(1), buffer, Durability::Cached).await.unwrap();
            bench.write(2, 2, Durability::ForceUnitAccess).await;
        });
        assert_eq!(bench.disk.undecided(), 2);
        let survived = |mask| {
            let disk = bench.disk.cut_keep(mask);
            [1, 2, 3].map(|block| byte(&disk, block))
        };
        assert_eq!([0, 1, 2, 3].map(survived), [[0, 2, 0], [1, 2, 0], [0, 2, 1], [1, 2, 1]]);
    }

    #[test]
    fn a_record_has_each_moment_that_a_cut_could_find() {
        let bench = Bench::new(options());
        bench.disk.record();
        bench.reactor.block_on(async {
            bench.write(1, 1, Durability::Cached).await;
            bench.disk.channel(&bench.reactor).flush().await.unwrap();
            bench.write(2, 2, Durability::Cached).await;
        });
        let moments = bench.disk.recorded();
        let seen = moments.iter().map(|(commands, disk)| (*commands, disk.undecided()));
        assert_eq!(seen.collect::<Vec<_>>(), [(1, 1), (2, 1), (3, 1)]);
        let last = &moments[2].1;
        assert_eq!((byte(&last.cut_keep(0), 1), byte(&last.cut_keep(0), 2)), (1, 0));
    }

    #[test]
    fn a_cut_need_not_decide_about_what_changes_nothing() {
        let bench = Bench::new(SimOptions { atomic_unit: 512, ..options() });
        bench.reactor.block_on(async {
            bench.write(1, 0, Durability::Cached).await;
            assert_eq!((bench.disk.undecided(), bench.disk.choices()), (8, 0));
            bench.write(1, 7, Durability::Cached).await;
            bench.write(1, 0, Durability::Cached).await;
        });
        assert_eq!((bench.disk.undecided(), bench.disk.choices()), (24, 16));
        assert_eq!(bench.disk.writes_of_choices(), [[0; 8], [1; 8]].concat());
        let none = bench.disk.cut_choosing(|_| false);
        let last = bench.disk.cut_choosing(|choice| choice == 8);
        let first = bench.disk.cut_choosing(|choice| choice == 0);
        assert_eq!([&none, &last, &first].map(|disk| byte(disk, 1)), [0, 0, 7]);
        assert_eq!(none.fingerprint(), last.fingerprint());
        assert_ne!(none.fingerprint(), first.fingerprint());
    }

    #[test]
    fn an_ignored_flush_keeps_nothing() {
        let bench = Bench::new(options());
        bench.disk.ignore_flush(2);
        let channel = bench.disk.channel(&bench.reactor);
        let mut seen = Vec::new();
        bench.reactor.block_on(async {
            for block in 1..4 {
                bench.write(block, 1, Durability::Cached).await;
                channel.flush().await.unwrap();
                seen.push(bench.disk.undecided());
            }
        });
        assert_eq!((seen, bench.disk.flushes()), (vec![0, 1, 0], 3));
    }

    #[test]
    fn a_write_is_torn_at_the_atomic_unit() {
        let bench = Bench::new(SimOptions { atomic_unit: 512, ..options() });
        bench.reactor.block_on(bench.write(0, 7, Durability::Cached));
        assert_eq!(bench.disk.undecided(), 8);
        let torn = bench.disk.cut_keep(0b10);
        let mut bytes = [0; 1536];
        torn.read_at(0, &mut bytes);
        assert_eq!((bytes[0], bytes[512], bytes[1024]), (0, 7, 0));
    }

    #[test]
    fn a_flush_does_not_cover_what_was_in_flight_when_it_began() {
        let mut lost = 0;
        for seed in 0..50 {
            let bench = Bench::new(SimOptions { delays: Some(seed), ..options() });
            bench.reactor.block_on(async {
                let channel = bench.disk.channel(&bench.reactor);
                let write = bench.write(5, 5, Durability::Cached);
                let (_, flushed) = futures_util::future::join(write, channel.flush()).await;
                flushed.unwrap();
            });
            if byte(&bench.disk.cut_keep(0), 5) == 0 {
                lost += 1;
            }
        }
        assert_eq!(lost, 50, "both were submitted together: the flush covers nothing");
    }

    #[test]
    fn power_goes_at_the_chosen_command() {
        let bench = Bench::new(options());
        bench.disk.cut_after(3);
        let work = async {
            for block in 1..10 {
                bench.write(block, 1, Durability::ForceUnitAccess).await;
            }
        };
        let died = bench.disk.dead();
        bench.reactor.block_on(futures_util::future::select(Box::pin(work), Box::pin(died)));
        assert_eq!(bench.disk.commands(), 3);
        assert_eq!((byte(&bench.disk.cut_keep(0), 2), byte(&bench.disk.cut_keep(0), 3)), (1, 0));
        assert_eq!(byte(&bench.disk.cut_keep(1), 3), 1);
        assert_eq!(byte(&bench.disk.cut_keep(1), 4), 0);
    }
}
