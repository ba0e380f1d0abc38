//! The queue pair against a device that does what the test says, entry by entry.

use std::collections::{BTreeSet, VecDeque};

use zerocopy::{FromBytes, FromZeros};

use super::*;
use crate::hw::dma::{DmaArena, DmaWindow};
use crate::hw::transport::{Doorbell, DoorbellPage};
use crate::nvme::identity::ControllerIdentity;
use crate::nvme::namespace::Namespace;
use crate::nvme::quirks::Quirks;
use crate::nvme::rings::Doorbells;
use crate::nvme::shadow::Bell;
use crate::spec::identify::{DeallocatedReads, IdentifyController};
use crate::spec::register::Capabilities;
use crate::spec::status::{Status, StatusCode};
use crate::units::{BlockCount, BlockSize, ByteCount, CommandId, NamespaceId};

const ID: u16 = 3;

/// The other end of the rings.
struct Device {
    window: DmaWindow,
    doorbells: Arc<DoorbellPage>,
    submissions: Iova,
    completions: Iova,
    entries: u16,
    head: u16,
    tail: u16,
    phase: bool,
}

impl Device {
    fn fetch(&mut self) -> Vec<SubmissionEntry> {
        let tail = u16::try_from(self.doorbells.load(0).unwrap()).unwrap();
        assert!(tail < self.entries, "the tail is outside the queue");
        let mut commands = Vec::new();
        while self.head != tail {
            let mut bytes = [0; 64];
            let at = self.submissions.get() + u64::from(self.head) * 64;
            self.window.read(Iova(at), &mut bytes).unwrap();
            commands.push(SubmissionEntry::read_from_bytes(&bytes).unwrap());
            self.head = (self.head + 1) % self.entries;
        }
        commands
    }

    fn post(&mut self, entry: CompletionEntry) {
        let words = entry.with_phase(self.phase).to_words();
        self.post_words(words);
    }

    fn post_words(&mut self, words: [u64; 2]) {
        let at = self.completions.get() + u64::from(self.tail) * 16;
        self.window.write(Iova(at), &words[0].to_le_bytes()).unwrap();
        self.window.store_release(Iova(at + 8), words[1]).unwrap();
        self.tail = (self.tail + 1) % self.entries;
        self.phase ^= self.tail == 0;
    }

    fn answer(&mut self, id: CommandId, status: Status) {
        self.post(CompletionEntry::new(id, status, 0).with_queue(ID, self.head));
    }

    fn restart(&mut self) {
        (self.head, self.tail, self.phase) = (0, 0, true);
        self.doorbells.store(0, 0);
        self.doorbells.store(1, 0);
    }
}

struct Rig {
    arena: DmaArena,
    pair: QueuePair,
    link: Arc<Link>,
    device: Device,
}

fn namespace() -> Namespace {
    Namespace {
        id: NamespaceId(1),
        block_size: BlockSize::B512,
        block_count: BlockCount(1 << 20),
        max_transfer: ByteCount(128 << 10),
        volatile_cache: true,
        atomic_write_blocks: 1,
        preferred_write_blocks: 1,
        deallocated_reads: DeallocatedReads::Zeros,
        zeroes_by_deallocation: true,
        max_write_zeroes_blocks: 1 << 10,
        max_discard_ranges: 256,
        max_discard_range_blocks: u32::MAX,
        max_discard_blocks: u64::MAX,
        write_protected: false,
        thin: false,
        nguid: [0; 16],
        eui64: [0; 8],
    }
}

fn controller(sgl: bool) -> ControllerIdentity {
    let mut page = IdentifyController::new_zeroed();
    page.sgl_support.set(u32::from(sgl));
    ControllerIdentity::new(&page, Capabilities::emulated(64, 1), 0x0001_0400, Quirks::default())
}

fn rig(entries: u16) -> Rig {
    rig_with(entries, false)
}

fn rig_with(entries: u16, sgl: bool) -> Rig {
    let arena = DmaArena::new(ByteCount(4 << 20), false).unwrap();
    let doorbells = Arc::new(DoorbellPage::new(2));
    let bell =
        |offset| Bell::new(Doorbell::new(Arc::clone(&doorbells) as _, offset, None).unwrap());
    let link = Arc::new(Link::new());
    let mut settings = QueueSettings::new(NamespaceId(1));
    settings.timeout = Duration::from_secs(1);
    let pair = QueuePair::new(Parts {
        id: QueueId(ID),
        entries,
        arena: &arena,
        doorbells: Doorbells { submission: bell(0), completion: bell(4) },
        link: Arc::clone(&link),
        target: Target::io(&namespace(), &controller(sgl), &settings),
    })
    .unwrap();
    let (submissions, completions) = pair.ring_addresses();
    let device = Device {
        window: arena.window(),
        doorbells,
        submissions,
        completions,
        entries,
        head: 0,
        tail: 0,
        phase: true,
    };
    Rig { arena, pair, link, device }
}

fn at(milliseconds: u64) -> Instant {
    Instant::from_nanos(milliseconds * 1_000_000)
}

impl Rig {
    fn read(&mut self, token: u64) -> Result<(), Rejected> {
        let buffer = self.arena.allocate(512).unwrap();
        self.pair.submit_read(Lba(token), buffer, token)
    }

    fn poll(&mut self, now: Instant) -> Vec<Completion> {
        let mut completions = Vec::new();
        let count = self.pair.poll(now, &mut |completion| completions.push(completion));
        assert_eq!(count, completions.len());
        completions
    }

    fn reset(&self) {
        self.link.stop();
        assert!(self.link.change(LinkState::Stopping, LinkState::Stopped));
    }
}

#[test]
fn every_small_queue_wraps_in_any_order() {
    for entries in 2..=9 {
        let seed = 0x71 + u64::from(entries);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut rig = rig(entries);
        let (mut next, mut open, mut fetched) = (0, BTreeSet::new(), VecDeque::new());
        while next < 2000 || !open.is_empty() {
            let mut full = false;
            while next < 2000 && !full && random.u8(..) < 200 {
                match rig.read(next) {
                    Ok(()) => {
                        assert!(open.insert(next));
                        next += 1;
                    }
                    Err(rejected) => {
                        assert_eq!(rejected.reason, RejectReason::Full);
                        assert_eq!(rejected.buffer.unwrap().len(), 512);
                        assert_eq!(open.len(), usize::from(entries) - 1, "seed {seed}");
                        full = true;
                    }
                }
            }
            rig.pair.ring();
            fetched.extend(rig.device.fetch());
            random.shuffle(fetched.make_contiguous());
            for _ in 0..random.usize(0..=fetched.len()) {
                let command: SubmissionEntry = fetched.pop_front().unwrap();
                rig.device.answer(command.id(), Status::SUCCESS);
            }
            for completion in rig.poll(at(0)) {
                assert!(open.remove(&completion.token), "seed {seed}: {completion:?}");
                assert_eq!(completion.result, Ok(0));
                assert_eq!(completion.opcode, IoOpcode::READ);
                assert_eq!(completion.buffer.unwrap().len(), 512);
            }
            let told = rig.device.doorbells.load(1).unwrap();
            assert_eq!(told, u32::from(rig.device.tail), "seed {seed}: all entries came back");
        }
        assert_eq!(rig.pair.counters().reads, 2000);
        assert_eq!(rig.pair.counters().completed, 2000);
        assert_eq!(rig.pair.counters().misbehaviour.total(), 0, "seed {seed}");
    }
}

#[test]
fn the_device_sees_nothing_before_the_doorbell() {
    let mut rig = rig(8);
    for token in 0..3 {
        rig.read(token).unwrap();
    }
    assert!(rig.device.fetch().is_empty());
    rig.pair.ring();
    let commands = rig.device.fetch();
    assert_eq!(commands.len(), 3);
    assert_eq!(commands[2].lba(), Lba(2));
    assert_eq!(commands[0].nsid(), NamespaceId(1));
    rig.pair.ring();
    assert!(rig.device.fetch().is_empty());
}

#[test]
fn each_command_says_what_it_is_for() {
    let mut rig = rig(16);
    let buffer = rig.arena.allocate_zeroed(16 << 10).unwrap();
    let first = buffer.iova();
    rig.pair.submit_write(Lba(7), buffer, ForceUnitAccess::Yes, 1).unwrap();
    rig.pair.submit_flush(2).unwrap();
    let (zeroes, no) = (Deallocate::Yes, ForceUnitAccess::No);
    rig.pair.submit_write_zeroes(Lba(9), 1024, zeroes, no, 3).unwrap();
    let ranges = [DsmRange::new(Lba(1), 2), DsmRange::new(Lba(100), 50)];
    rig.pair.submit_discard(&ranges, 4).unwrap();
    rig.pair.ring();
    let commands = rig.device.fetch();
    assert_eq!(commands[0].block_count(), BlockCount(32));
    assert_eq!(commands[0].force_unit_access(), ForceUnitAccess::Yes);
    assert_eq!(commands[0].prp1.get(), first.get());
    let mut list = [0; 24];
    rig.device.window.read(Iova(commands[0].prp2.get()), &mut list).unwrap();
    for (page, entry) in (1..).zip(list.as_chunks::<8>().0) {
        assert_eq!(u64::from_le_bytes(*entry), first.get() + page * 4096);
    }
    assert_eq!(commands[1].io_opcode(), IoOpcode::FLUSH);
    assert_eq!(commands[2].deallocate(), Deallocate::Yes);
    assert_eq!(commands[3].range_count(), 2);
    let mut seen = [0; 32];
    rig.device.window.read(Iova(commands[3].prp1.get()), &mut seen).unwrap();
    assert_eq!(DsmRange::read_from_bytes(&seen[16..]).unwrap(), ranges[1]);
    let counters = rig.pair.counters();
    let each = (counters.writes, counters.flushes, counters.write_zeroes, counters.discards);
    assert_eq!(each, (1, 1, 1, 1));
}

#[test]
fn impossible_commands_come_back() {
    let mut rig = rig(4);
    for (length, offset, reason) in [
        (511, 0, RejectReason::BadLength),
        (128 << 10 | 512, 0, RejectReason::BadLength),
        (512, 2, RejectReason::Misaligned),
    ] {
        let mut whole = rig.arena.allocate(offset + length).unwrap();
        let buffer = whole.split_off(offset);
        let rejected = rig.pair.submit_read(Lba(0), buffer, 0).unwrap_err();
        assert_eq!(rejected.reason, reason, "{length} bytes at {offset}");
        assert_eq!(rejected.buffer.unwrap().len(), length);
    }
    let (no, force) = (Deallocate::No, ForceUnitAccess::No);
    for blocks in [0, 1025] {
        let rejected = rig.pair.submit_write_zeroes(Lba(0), blocks, no, force, 0).unwrap_err();
        assert_eq!(rejected.reason, RejectReason::BadLength);
    }
    let many = vec![DsmRange::default(); rig.pair.max_discard_ranges() + 1];
    assert_eq!(rig.pair.submit_discard(&[], 0).unwrap_err().reason, RejectReason::BadLength);
    assert_eq!(rig.pair.submit_discard(&many, 0).unwrap_err().reason, RejectReason::BadLength);
    assert_eq!(rig.pair.in_flight(), 0);
    assert_eq!(rig.pair.vacant(), 3);
}

#[test]
fn a_second_completion_is_counted_and_ends_nothing() {
    let mut rig = rig(8);
    rig.read(1).unwrap();
    rig.read(2).unwrap();
    rig.pair.ring();
    let commands = rig.device.fetch();
    let failed = Status::of(StatusCode::UNRECOVERED_READ_ERROR);
    rig.device.answer(commands[0].id(), failed);
    rig.device.answer(commands[0].id(), Status::SUCCESS);
    rig.device.answer(CommandId(0xffff), Status::SUCCESS);
    rig.device.post(CompletionEntry::new(commands[1].id(), Status::SUCCESS, 0).with_queue(9, 0));
    let completions = rig.poll(at(0));
    assert_eq!(completions.len(), 1);
    assert_eq!(completions[0].result, Err(CommandFailure::Status(failed)));
    let seen = rig.pair.counters().misbehaviour;
    assert_eq!((seen.repeated_completions, seen.unknown_commands, seen.wrong_queues), (1, 1, 1));
    assert_eq!(rig.pair.in_flight(), 1, "the second command waits on");
    rig.device.answer(commands[1].id(), Status::SUCCESS);
    assert_eq!(rig.poll(at(0))[0].token, 2);
}

#[test]
fn a_late_command_is_aborted_then_reset_and_keeps_its_buffer() {
    let mut rig = rig(4);
    rig.read(5).unwrap();
    rig.pair.ring();
    let command = rig.device.fetch()[0];
    let free = rig.arena.free();
    for now in [0, 500, 999] {
        assert!(rig.poll(at(now)).is_empty());
        assert_eq!(rig.link.take_abort(), None);
    }
    assert!(rig.poll(at(1100)).is_empty());
    assert_eq!(rig.link.take_abort(), Some(command.id()));
    assert!(!rig.link.wants_reset());
    assert!(rig.poll(at(2300)).is_empty());
    assert!(rig.link.wants_reset());
    rig.link.stop();
    assert!(rig.poll(at(2400)).is_empty(), "the device may still write");
    assert_eq!(rig.read(6).unwrap_err().reason, RejectReason::Resetting);
    assert_eq!(rig.arena.free(), free);
    rig.link.change(LinkState::Stopping, LinkState::Stopped);
    let completions = rig.poll(at(2500));
    assert_eq!(completions[0].token, 5);
    assert_eq!(completions[0].result, Err(CommandFailure::Reset));
    assert!(completions[0].buffer.is_some());
    assert_eq!(rig.link.state(), LinkState::Surrendered);
    assert_eq!((rig.pair.counters().late, rig.pair.counters().lost), (1, 1));
}

#[test]
fn a_late_completion_still_counts() {
    let mut rig = rig(4);
    rig.read(5).unwrap();
    rig.pair.ring();
    let command = rig.device.fetch()[0];
    rig.poll(at(0));
    rig.poll(at(1100));
    rig.device.answer(command.id(), Status::of(StatusCode::ABORT_REQUESTED));
    let completions = rig.poll(at(1200));
    assert_eq!(completions.len(), 1);
    assert!(completions[0].buffer.is_some());
    rig.poll(at(9000));
    assert!(!rig.link.wants_reset());
}

#[test]
fn a_reset_in_the_middle_starts_the_rings_over() {
    let mut rig = rig(5);
    for round in 0..40_u64 {
        for token in 0..4 {
            rig.read(token).unwrap();
        }
        rig.pair.ring();
        let commands = rig.device.fetch();
        let answered = round as usize % 5;
        for command in &commands[..answered] {
            rig.device.answer(command.id(), Status::SUCCESS);
        }
        rig.reset();
        let completions = rig.poll(at(round));
        assert_eq!(completions.len(), 4, "each command ends once");
        let done = completions.iter().filter(|completion| completion.result.is_ok()).count();
        assert_eq!(done, answered, "what completed before the reset completed");
        assert!(completions.iter().all(|completion| completion.buffer.is_some()));
        assert!(rig.link.change(LinkState::Surrendered, LinkState::Creating));
        rig.device.restart();
        rig.link.start();
        // A completion from before the reset is stale.
        rig.device.answer(commands[0].id(), Status::SUCCESS);
        assert!(rig.poll(at(round)).is_empty());
        assert_eq!(rig.pair.counters().misbehaviour.total(), round + 1);
    }
}

#[test]
fn a_dead_controllers_buffers_stay_in_quarantine_unless_it_was_disabled() {
    for disabled in [true, false] {
        let mut rig = rig(4);
        rig.read(1).unwrap();
        rig.pair.ring();
        rig.link.end(disabled);
        let completions = rig.poll(at(0));
        assert_eq!(completions[0].result, Err(CommandFailure::Gone));
        assert_eq!(completions[0].buffer.is_some(), disabled);
        assert_eq!(rig.read(2).unwrap_err().reason, RejectReason::Gone);
        drop(completions);
        let quarantined = rig.arena.quarantined();
        assert_eq!(quarantined.get() == 0, disabled);
        drop((rig.pair, rig.link));
        assert_eq!(rig.arena.quarantined() > quarantined, !disabled, "the rings too");
    }
}

#[test]
fn a_dropped_live_pair_leaves_its_memory_to_the_device() {
    let mut rig = rig(4);
    rig.read(1).unwrap();
    rig.pair.ring();
    let (free, arena) = (rig.arena.free(), rig.arena.clone());
    drop(rig.pair);
    assert_eq!((arena.free(), arena.quarantined()), (free, ByteCount(0)), "the controller has it");
    rig.link.reclaim_remains();
    assert_eq!(arena.free(), arena.size(), "the command's buffer too");
    // Whose controller is gone without a word of it.
    let rig = self::rig(4);
    let arena = rig.arena.clone();
    drop((rig.pair, rig.link));
    assert!(arena.quarantined().get() > 0);
}

#[test]
fn no_stream_of_completions_makes_it_panic() {
    for seed in 0..64 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut rig = rig(random.u16(2..20));
        let mut open = BTreeSet::new();
        for token in 0..300 {
            if rig.read(token).is_ok() {
                open.insert(token);
            }
            rig.pair.ring();
            let mut words = [random.u64(..), random.u64(..)];
            if random.bool() {
                // A plausible entry: this queue, a small identifier.
                let id = CommandId(random.u16(..) & 0xf007);
                let status = Status::from_bits(random.u16(..));
                let entry = CompletionEntry::new(id, status, 7).with_queue(ID, random.u16(..));
                words = entry.with_phase(random.bool()).to_words();
            }
            rig.device.post_words(words);
            for completion in rig.poll(at(token)) {
                assert!(open.remove(&completion.token), "seed {seed}: ended twice");
                assert!(completion.buffer.is_some());
            }
        }
        assert_eq!(rig.pair.in_flight(), open.len(), "seed {seed}");
        rig.reset();
        let lost = rig.poll(at(0));
        assert!(lost.iter().all(|completion| open.remove(&completion.token)), "seed {seed}");
        assert!(open.is_empty(), "seed {seed}: {open:?} never ended");
    }
}
