//! The driver core against the emulated controller, stepped: virtual time, no threads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lvolfs::emulated::{
    EmulatedController, Fault, FaultAction, Memory, MemoryGeometry, Settings as DeviceSettings,
};
use lvolfs::hw::dma::{DmaArena, DmaBuffer};
use lvolfs::nvme::{
    CommandFailure, Completion, Controller, Event, Namespace, NvmeError, QueuePair, QueueSettings,
    RejectReason, Request, ResetCause, Settings,
};
use lvolfs::reactor::clock::Instant;
use lvolfs::spec::command::{AdminOpcode, Deallocate, DsmRange, ForceUnitAccess, IoOpcode};
use lvolfs::spec::log::SmartLog;
use lvolfs::spec::status::{Status, StatusCode};
use lvolfs::units::{BlockCount, BlockSize, ByteCount, CommandId, Lba, NamespaceId, QueueId};

const NS: NamespaceId = NamespaceId(1);
/// Turns after which a test gives up waiting: with the longest step, many virtual hours.
const PATIENCE: usize = 200_000;

/// A controller, its driver and a clock.
struct Rig {
    device: Arc<EmulatedController>,
    arena: DmaArena,
    controller: Controller,
    now: Instant,
    events: Vec<Event>,
    /// Whether the device does anything.
    running: bool,
}

fn memory(block_size: BlockSize) -> Memory {
    Memory::new(MemoryGeometry::new(block_size, BlockCount(1 << 16)))
}

impl Rig {
    fn new(settings: DeviceSettings) -> Self {
        Self::over(settings, memory(BlockSize::B512))
    }

    fn over(settings: DeviceSettings, memory: Memory) -> Self {
        let device = EmulatedController::new(settings, memory).unwrap();
        let arena = DmaArena::new(ByteCount(32 << 20), false).unwrap();
        let transport = Arc::clone(&device) as _;
        let controller = Controller::start(transport, &arena, Settings::default()).unwrap();
        let now = Instant::default();
        Self { device, arena, controller, now, events: Vec::new(), running: true }
    }

    /// One that is up, with its namespace.
    fn up(settings: DeviceSettings) -> (Self, Namespace) {
        let mut rig = Self::new(settings);
        let namespace = rig.ready();
        (rig, namespace)
    }

    /// One that is up, with a queue pair of `entries` entries.
    fn with_pair(entries: u16) -> (Self, QueuePair) {
        let (mut rig, _) = Self::up(DeviceSettings::default());
        let pair = rig.pair(entries).unwrap();
        (rig, pair)
    }

    fn pass(&mut self, by: Duration) {
        self.now = self.now.after(by);
        self.device.advance(by);
        if self.running {
            self.device.step(usize::MAX);
        }
        let events = &mut self.events;
        self.controller.poll(self.now, &mut |event| events.push(event));
    }

    /// Lets time pass until an event of the wanted kind; the others are kept.
    fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(Event) -> Result<T, Event>) -> T {
        for _ in 0..PATIENCE {
            for event in std::mem::take(&mut self.events) {
                match wanted(event) {
                    Ok(found) => return found,
                    Err(Event::Failed(error)) => panic!("while waiting for {what}: {error}"),
                    Err(other) => self.events.push(other),
                }
            }
            self.pass(Duration::from_millis(10));
        }
        panic!("no {what}; instead {:?}", self.events);
    }

    fn ready(&mut self) -> Namespace {
        self.until("readiness", |event| match event {
            Event::Ready { mut namespaces, refused, .. } => {
                assert!(refused.is_empty(), "{refused:?}");
                Ok(namespaces.remove(0))
            }
            other => Err(other),
        })
    }

    fn failed(&mut self) -> NvmeError {
        self.until("failure", |event| match event {
            Event::Failed(error) => Ok(error),
            other => Err(other),
        })
    }

    fn pair(&mut self, entries: u16) -> Result<QueuePair, NvmeError> {
        let mut settings = QueueSettings::new(NS);
        settings.entries = entries;
        self.controller.request(Request::CreateQueuePair { settings, tag: 77 }).unwrap();
        self.until("a queue pair", |event| match event {
            Event::QueuePairCreated { tag, result } => {
                assert_eq!(tag, 77);
                Ok(result.map(|pair| *pair))
            }
            other => Err(other),
        })
    }

    fn delete(&mut self, pair: QueuePair) {
        self.controller.request(Request::DeleteQueuePair { pair: Box::new(pair), tag: 5 }).unwrap();
        self.until("deletion", |event| match event {
            Event::QueuePairDeleted { tag: 5, result } => {
                result.unwrap();
                Ok(())
            }
            other => Err(other),
        });
    }

    fn reset_done(&mut self, pair: &mut QueuePair) -> Vec<Completion> {
        let mut completions = Vec::new();
        for _ in 0..PATIENCE {
            pair.poll(self.now, &mut |completion| completions.push(completion));
            let done = self.events.iter().any(|event| matches!(event, Event::ResetDone));
            if done && pair.is_live() {
                self.events.clear();
                return completions;
            }
            self.pass(Duration::from_millis(10));
        }
        panic!("the reset never ended; {:?}", self.events);
    }

    /// Lets time pass until `count` commands of `pair` have ended.
    fn complete(&mut self, pair: &mut QueuePair, count: usize) -> Vec<Completion> {
        let mut completions = Vec::new();
        pair.ring();
        for _ in 0..PATIENCE {
            pair.poll(self.now, &mut |completion| completions.push(completion));
            if completions.len() >= count {
                assert_eq!(completions.len(), count);
                return completions;
            }
            self.pass(Duration::from_millis(10));
        }
        panic!("{} of {count} commands ended", completions.len());
    }

    fn buffer(&self, length: usize, fill: u8) -> DmaBuffer {
        let mut buffer = self.arena.allocate(length).unwrap();
        buffer.fill(fill);
        buffer
    }

    fn write(&mut self, pair: &mut QueuePair, lba: u64, length: usize, fill: u8) {
        let buffer = self.buffer(length, fill);
        pair.submit_write(Lba(lba), buffer, ForceUnitAccess::No, lba).unwrap();
        assert_eq!(self.complete(pair, 1)[0].result, Ok(0));
    }

    fn read(&mut self, pair: &mut QueuePair, lba: u64, length: usize) -> DmaBuffer {
        let buffer = self.buffer(length, 0xee);
        pair.submit_read(Lba(lba), buffer, lba).unwrap();
        let completion = self.complete(pair, 1).remove(0);
        assert_eq!(completion.result, Ok(0));
        completion.buffer.unwrap()
    }

    /// The driver did nothing that a real controller would punish.
    fn check_manners(&self) {
        let counters = self.device.counters();
        assert_eq!((counters.outside_window, counters.invalid_doorbells), (0, 0));
    }

    /// Shuts down; afterwards all memory is back.
    fn shut_down(mut self, pair: Option<QueuePair>) {
        if let Some(pair) = pair {
            self.delete(pair);
        }
        self.controller.request(Request::Shutdown).unwrap();
        self.until("shutdown", |event| match event {
            Event::ShutDown => Ok(()),
            other => Err(other),
        });
        assert!(self.controller.is_over());
        self.check_manners();
        assert_eq!(self.arena.quarantined(), ByteCount(0));
        drop(self.controller);
        assert_eq!(self.arena.free(), self.arena.size());
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn a_controller_comes_up_serves_and_shuts_down() {
    for (block_size, volatile_cache) in [(BlockSize::B512, true), (BlockSize::B4096, false)] {
        let settings = DeviceSettings { volatile_cache, max_transfer: 5, ..Default::default() };
        let mut rig = Rig::over(settings, memory(block_size));
        let namespace = rig.ready();
        assert_eq!(namespace.id, NS);
        assert_eq!(namespace.block_size, block_size);
        assert_eq!(namespace.block_count, BlockCount(1 << 16));
        assert_eq!(namespace.max_transfer, ByteCount(128 << 10));
        assert_eq!(namespace.volatile_cache, volatile_cache);
        let mut pair = rig.pair(32).unwrap();
        assert_eq!(pair.entries(), 32);
        for (lba, pages, fill) in [(0, 1, 1), (100, 2, 2), (1000, 32, 3)] {
            rig.write(&mut pair, lba, pages * 4096, fill);
        }
        for (lba, pages, fill) in [(0, 1, 1), (100, 2, 2), (1000, 32, 3)] {
            let buffer = rig.read(&mut pair, lba, pages * 4096);
            assert!(buffer.iter().all(|&byte| byte == fill), "LBA {lba}");
        }
        pair.submit_flush(9).unwrap();
        let flushed = rig.complete(&mut pair, 1);
        assert_eq!((flushed[0].token, flushed[0].opcode), (9, IoOpcode::FLUSH));
        assert_eq!(rig.device.counters().flushes, 1);
        rig.shut_down(Some(pair));
    }
}

#[test]
fn zeroes_and_discards_reach_the_device() {
    let (mut rig, mut pair) = Rig::with_pair(16);
    rig.write(&mut pair, 0, 64 << 10, 7);
    let (no, force) = (Deallocate::No, ForceUnitAccess::Yes);
    pair.submit_write_zeroes(Lba(8), 8, no, force, 1).unwrap();
    let ranges = [DsmRange::new(Lba(32), 8), DsmRange::new(Lba(64), 8)];
    pair.submit_discard(&ranges, 2).unwrap();
    for completion in rig.complete(&mut pair, 2) {
        assert_eq!(completion.result, Ok(0));
    }
    let data = rig.read(&mut pair, 0, 64 << 10);
    for (block, bytes) in data.chunks(512).enumerate() {
        let zero = matches!(block, 8..16 | 32..40 | 64..72);
        assert!(bytes.iter().all(|&byte| byte == if zero { 0 } else { 7 }), "block {block}");
    }
    drop(data);
    assert_eq!(rig.device.counters().force_unit_access, 1);
    rig.shut_down(Some(pair));
}

#[test]
fn many_commands_on_small_queues_match_a_model() {
    for entries in [2, 3, 5, 9, 64] {
        let seed = 0x5eed + u64::from(entries);
        let mut random = fastrand::Rng::with_seed(seed);
        let settings = DeviceSettings { reorder: Some(seed), ..Default::default() };
        let (mut rig, _) = Rig::up(settings);
        let mut pair = rig.pair(entries).unwrap();
        let mut model = BTreeMap::<u64, u8>::new();
        for round in 0..60_u8 {
            let mut written = 0;
            let mut batch = BTreeMap::new();
            while pair.vacant() > 0 && written < 40 {
                let lba = random.u64(0..500);
                if batch.insert(lba, round).is_some() {
                    continue;
                }
                let buffer = rig.buffer(512, round);
                pair.submit_write(Lba(lba), buffer, ForceUnitAccess::No, lba).unwrap();
                written += 1;
            }
            for completion in rig.complete(&mut pair, written) {
                assert_eq!(completion.result, Ok(0), "seed {seed}");
            }
            model.extend(batch);
            let lba = random.u64(0..490);
            let data = rig.read(&mut pair, lba, 10 * 512);
            for (block, bytes) in (lba..).zip(data.chunks(512)) {
                let expected = model.get(&block).copied().unwrap_or(0);
                assert!(bytes.iter().all(|&byte| byte == expected), "seed {seed}, LBA {block}");
            }
        }
        assert_eq!(pair.counters().misbehaviour.total(), 0);
        rig.shut_down(Some(pair));
    }
}

#[test]
fn a_slow_controller_is_waited_for_and_a_dead_one_is_not() {
    for delay in [Duration::from_millis(1), Duration::from_millis(1900)] {
        let settings = DeviceSettings { ready_delay: delay, ..Default::default() };
        let (mut rig, _) = Rig::up(settings);
        assert!(rig.now.since(Instant::default()) >= delay);
        let pair = rig.pair(4).unwrap();
        rig.shut_down(Some(pair));
    }
    let mut never = Rig::new(DeviceSettings { ready_delay: Duration::MAX, ..Default::default() });
    assert!(matches!(never.failed(), NvmeError::ReadyTimeout { ready: true, .. }));
    assert!(never.now.since(Instant::default()) < seconds(300), "every wait is bounded");
}

#[test]
fn a_controller_that_was_left_enabled_is_taken_over() {
    let (rig, _) = Rig::up(DeviceSettings::default());
    // The driver dies; the next one finds the controller enabled.
    let device = Arc::clone(&rig.device);
    drop(rig.controller);
    assert!(rig.arena.quarantined().get() > 0, "the device still has the admin queue");
    let transport = Arc::clone(&device) as _;
    let controller = Controller::start(transport, &rig.arena, Settings::default()).unwrap();
    let mut rig = Rig {
        device,
        arena: rig.arena,
        controller,
        now: Instant::default(),
        events: Vec::new(),
        running: true,
    };
    rig.ready();
    let mut pair = rig.pair(8).unwrap();
    rig.write(&mut pair, 0, 512, 1);
    rig.delete(pair);
    rig.check_manners();
}

#[test]
fn a_controller_that_cannot_be_disabled_is_reset_by_its_function() {
    let settings = DeviceSettings { disable_delay: Duration::MAX, ..Default::default() };
    let (mut rig, mut pair) = (Rig::up(settings).0, None);
    for _ in 0..2 {
        let mut created = match pair.take() {
            Some(pair) => pair,
            None => rig.pair(8).unwrap(),
        };
        rig.controller.request(Request::Reset).unwrap();
        rig.reset_done(&mut created);
        rig.write(&mut created, 3, 512, 9);
        pair = Some(created);
    }
    rig.check_manners();
}

#[test]
fn a_fatal_controller_is_reset_and_its_commands_end_once() {
    let (mut rig, mut pair) = Rig::with_pair(16);
    rig.write(&mut pair, 1, 512, 1);
    rig.running = false;
    for token in 0..15 {
        let buffer = rig.buffer(4096, 2);
        pair.submit_write(Lba(token * 8), buffer, ForceUnitAccess::No, token).unwrap();
    }
    let full = pair.submit_flush(99).unwrap_err();
    assert_eq!(full.reason, RejectReason::Full);
    pair.ring();
    rig.device.fail();
    rig.running = true;
    let mut lost = rig.reset_done(&mut pair);
    lost.sort_by_key(|completion| completion.token);
    assert_eq!(lost.len(), 15);
    for (token, completion) in (0..).zip(lost) {
        assert_eq!(completion.token, token);
        assert_eq!(completion.result, Err(CommandFailure::Reset));
        assert_eq!(completion.buffer.unwrap().len(), 4096);
    }
    rig.write(&mut pair, 1, 512, 3);
    assert_eq!(rig.read(&mut pair, 1, 512)[0], 3);
    rig.shut_down(Some(pair));
}

#[test]
fn a_lost_completion_is_aborted_and_then_reset() {
    let (mut rig, mut pair) = Rig::with_pair(8);
    rig.device.inject(Fault::new(FaultAction::LoseCompletion).on_opcode(IoOpcode::READ.0));
    let buffer = rig.buffer(512, 0);
    pair.submit_read(Lba(0), buffer, 42).unwrap();
    pair.ring();
    let began = rig.now;
    let lost = rig.reset_done(&mut pair);
    assert_eq!((lost.len(), lost[0].token), (1, 42));
    assert_eq!(lost[0].result, Err(CommandFailure::Reset));
    assert!(rig.now.since(began) >= seconds(60), "twice the timeout");
    assert!(rig.now.since(began) < seconds(70));
    assert_eq!((pair.counters().late, pair.counters().lost), (1, 1));
    drop(lost);
    rig.shut_down(Some(pair));
}

#[test]
fn a_stalled_command_is_aborted_and_its_late_completion_counts() {
    let (mut rig, mut pair) = Rig::with_pair(8);
    rig.device.inject(Fault::new(FaultAction::Delay(seconds(40))));
    let buffer = rig.buffer(512, 0);
    pair.submit_read(Lba(0), buffer, 42).unwrap();
    let completion = rig.complete(&mut pair, 1).remove(0);
    assert_eq!(completion.token, 42);
    assert!(completion.buffer.is_some());
    drop(completion);
    assert_eq!(pair.counters().late, 1);
    rig.pass(seconds(60));
    rig.pass(seconds(60));
    assert!(!rig.events.iter().any(|event| matches!(event, Event::ResetStarted { .. })));
    rig.shut_down(Some(pair));
}

#[test]
fn misbehaviour_is_counted_and_harms_no_other_command() {
    let (mut rig, mut pair) = Rig::with_pair(8);
    rig.device.inject(Fault::new(FaultAction::DuplicateCompletion));
    rig.write(&mut pair, 0, 512, 1);
    rig.write(&mut pair, 1, 512, 1);
    assert_eq!(pair.counters().misbehaviour.repeated_completions, 1);
    rig.device.inject(Fault::new(FaultAction::WrongCommandId(CommandId(0x0fff))));
    let buffer = rig.buffer(512, 2);
    pair.submit_write(Lba(2), buffer, ForceUnitAccess::No, 8).unwrap();
    pair.ring();
    let lost = rig.reset_done(&mut pair);
    assert_eq!(lost[0].token, 8, "its own completion never came");
    assert_eq!(pair.counters().misbehaviour.unknown_commands, 1);
    drop(lost);
    rig.shut_down(Some(pair));
}

#[test]
fn an_admin_command_without_an_answer_resets_the_controller() {
    let (mut rig, _) = Rig::up(DeviceSettings::default());
    let create = AdminOpcode::CREATE_SUBMISSION_QUEUE.0;
    let fault = Fault::new(FaultAction::LoseCompletion).on_queue(QueueId(0)).on_opcode(create);
    rig.device.inject(fault);
    assert!(matches!(rig.pair(8), Err(NvmeError::NoAnswer { .. })));
    rig.until("a reset", |event| match event {
        Event::ResetStarted { cause, .. } => {
            assert_eq!(cause, ResetCause::AdminTimeout);
            Ok(())
        }
        other => Err(other),
    });
    rig.until("the end of the reset", |event| match event {
        Event::ResetDone => Ok(()),
        other => Err(other),
    });
    let pair = rig.pair(8).unwrap();
    rig.delete(pair);
    assert!(rig.arena.quarantined().get() > 0, "of the pair that nobody knows about");
}

#[test]
fn a_refused_queue_is_an_error_and_no_leak() {
    let (mut rig, _) = Rig::up(DeviceSettings { io_queues: 2, ..Default::default() });
    let refuse = Status::of(StatusCode::INVALID_QUEUE_SIZE);
    for opcode in [AdminOpcode::CREATE_COMPLETION_QUEUE, AdminOpcode::CREATE_SUBMISSION_QUEUE] {
        let fault = Fault::new(FaultAction::Fail(refuse)).on_queue(QueueId(0)).on_opcode(opcode.0);
        rig.device.inject(fault);
        match rig.pair(8) {
            Err(NvmeError::Command { command, status }) => {
                assert_eq!((command, status.code()), (opcode, refuse.code()));
            }
            other => panic!("{other:?}"),
        }
    }
    let (first, second) = (rig.pair(8).unwrap(), rig.pair(8).unwrap());
    assert_ne!(first.id(), second.id());
    assert!(matches!(rig.pair(8), Err(NvmeError::NoQueueLeft { limit: 2 })));
    rig.delete(first);
    let third = rig.pair(8).unwrap();
    rig.delete(second);
    rig.shut_down(Some(third));
}

#[test]
fn a_dropped_pair_is_deleted_on_the_device_by_and_by() {
    let (mut rig, _) = Rig::up(DeviceSettings { io_queues: 1, ..Default::default() });
    for _ in 0..5 {
        drop(rig.pair(8).unwrap());
        rig.pass(Duration::from_millis(1));
        for _ in 0..20 {
            rig.pass(Duration::from_millis(1));
        }
    }
    assert!(rig.arena.quarantined().get() > 0);
    rig.check_manners();
}

#[test]
fn an_unplugged_controller_ends_everything() {
    let (mut rig, mut pair) = Rig::with_pair(8);
    rig.write(&mut pair, 0, 512, 1);
    rig.device.unplug();
    for token in 0..3 {
        let buffer = rig.buffer(512, 0);
        pair.submit_read(Lba(token), buffer, token).unwrap();
    }
    pair.ring();
    let error = rig.failed();
    assert!(matches!(error, NvmeError::Gone), "{error}");
    let mut completions = Vec::new();
    pair.poll(rig.now, &mut |completion| completions.push(completion));
    assert_eq!(completions.len(), 3);
    for completion in completions {
        assert_eq!(completion.result, Err(CommandFailure::Gone));
    }
    let rejected = pair.submit_flush(1).unwrap_err();
    assert_eq!(rejected.reason, RejectReason::Gone);
    assert!(matches!(rig.pair(8), Err(NvmeError::Gone)), "requests are still answered");
}

#[test]
fn no_controller_is_no_wait() {
    let mut rig = Rig::new(DeviceSettings::default());
    rig.device.unplug();
    assert!(matches!(rig.failed(), NvmeError::Gone));
    assert!(rig.now.since(Instant::default()) < seconds(1));
}

#[test]
fn a_power_cut_is_noticed_and_survived() {
    let (mut rig, mut pair) = Rig::with_pair(8);
    rig.write(&mut pair, 0, 512, 1);
    pair.submit_flush(0).unwrap();
    rig.complete(&mut pair, 1);
    rig.device.power_cut(1);
    let lost = rig.reset_done(&mut pair);
    assert!(lost.is_empty());
    assert_eq!(rig.read(&mut pair, 0, 512)[0], 1);
    rig.shut_down(Some(pair));
}

#[test]
fn a_controller_that_fails_again_and_again_is_given_up() {
    let (mut rig, mut pair) = Rig::with_pair(8);
    for _ in 0..5 {
        rig.device.fail();
        rig.reset_done(&mut pair);
    }
    rig.device.fail();
    assert!(matches!(rig.failed(), NvmeError::TooManyResets { resets: 5, .. }));
}

#[test]
fn namespace_changes_and_health_warnings_are_told() {
    let (mut rig, namespace) = Rig::up(DeviceSettings::default());
    for round in 1..=10 {
        rig.device.resize(BlockCount(namespace.block_count.get() + round));
        rig.until("a namespace change", |event| match event {
            Event::NamespaceChanged(new) => {
                assert_eq!(new.block_count.get(), namespace.block_count.get() + round);
                Ok(())
            }
            other => Err(other),
        });
    }
    let bits = SmartLog::WARNING_READ_ONLY | SmartLog::WARNING_BACKUP_FAILED;
    rig.device.warn(bits);
    let warning = rig.until("a warning", |event| match event {
        Event::Health { critical_warning, .. } => Ok(critical_warning),
        other => Err(other),
    });
    assert_eq!(warning, bits);
    rig.shut_down(None);
}

#[test]
fn resets_in_the_middle_of_traffic_lose_no_command() {
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut rig, _) = Rig::up(DeviceSettings { reorder: Some(seed), ..Default::default() });
        let mut pairs = [rig.pair(random.u16(2..20)).unwrap(), rig.pair(16).unwrap()];
        let mut open = BTreeMap::<u64, usize>::new();
        let mut token = 0;
        for round in 0..400 {
            for pair in &mut pairs {
                while pair.is_live() && pair.vacant() > 0 && random.bool() {
                    let buffer = rig.arena.allocate(4096).unwrap();
                    pair.submit_read(Lba(random.u64(0..1000)), buffer, token).unwrap();
                    open.insert(token, round);
                    token += 1;
                }
                pair.ring();
            }
            if round % 130 == 129 {
                rig.controller.request(Request::Reset).unwrap();
            }
            rig.running = random.u8(..) < 200;
            rig.pass(Duration::from_millis(random.u64(0..30)));
            for pair in &mut pairs {
                // A pair that is slow to look surrenders late.
                if random.bool() {
                    pair.poll(rig.now, &mut |completion| {
                        assert!(open.remove(&completion.token).is_some(), "seed {seed}: twice");
                        assert_eq!(completion.buffer.map(|buffer| buffer.len()), Some(4096));
                    });
                }
            }
        }
        rig.running = true;
        for pair in &mut pairs {
            let left = pair.in_flight();
            for completion in rig.complete(pair, left) {
                assert!(open.remove(&completion.token).is_some(), "seed {seed}");
            }
        }
        assert!(open.is_empty(), "seed {seed}: {open:?} never ended");
        let done = rig.events.iter().filter(|event| matches!(event, Event::ResetDone)).count();
        assert_eq!(done, 3, "seed {seed}");
        for pair in pairs {
            rig.delete(pair);
        }
        rig.shut_down(None);
    }
}

#[test]
fn no_failing_admin_command_hangs_the_start() {
    // Each admin command of the bring-up fails or is lost in turn; what is optional is done
    // without, what is not is an error.
    let lost = FaultAction::LoseCompletion;
    let failed = FaultAction::Fail(Status::of(StatusCode::INVALID_FIELD).do_not_retry());
    for action in [failed, lost, FaultAction::Unplug, FaultAction::FatalStatus] {
        for nth in 0..14 {
            let mut rig = Rig::new(DeviceSettings::default());
            rig.device.inject(Fault::new(action).on_queue(QueueId(0)).after(nth));
            let outcome = rig.until("an outcome", |event| match event {
                Event::Ready { namespaces, .. } => Ok(Ok(namespaces.len())),
                Event::Failed(error) => Ok(Err(error)),
                other => Err(other),
            });
            if action == FaultAction::Unplug && rig.device.counters().faults > 0 {
                assert!(outcome.is_err(), "unplugged at command {nth}");
            }
            assert!(rig.now.since(Instant::default()) < seconds(400), "{action:?} at {nth}");
        }
    }
}
