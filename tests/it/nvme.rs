//! The driver core against the emulated controller, stepped: virtual time, no threads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lvolfs::emulated::{
    ControllerThread, EmulatedController, Fault, FaultAction, Memory, MemoryGeometry,
    Settings as DeviceSettings,
};
use lvolfs::hw::dma::{DmaArena, DmaBuffer};
use lvolfs::hw::pci::{CLASS_NVME, PciIdentity};
use lvolfs::hw::transport::Transport;
use lvolfs::nvme::{
    CommandFailure, Completion, Controller, Event, Namespace, NvmeError, QueuePair, QueueSettings,
    RejectReason, Request, ResetCause, Settings,
};
use lvolfs::reactor::clock::Instant;
use lvolfs::spec::command::{
    AdminOpcode, Deallocate, DsmRange, Feature, ForceUnitAccess, IoOpcode,
};
use lvolfs::spec::log::{LogPage, SmartLog};
use lvolfs::spec::register::{AQA, VERSION_1_4, VERSION_2_0};
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
        let arena = DmaArena::new(ByteCount(32 << 20), false).unwrap();
        Self::on(EmulatedController::new(settings, memory).unwrap(), arena)
    }

    /// A driver for a controller that somebody may have used before, with the same memory.
    fn on(device: Arc<EmulatedController>, arena: DmaArena) -> Self {
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
    for (entries, shadow_doorbells) in
        [(2, false), (2, true), (3, false), (5, true), (9, false), (64, false), (64, true)]
    {
        let seed = 0x5eed + u64::from(entries);
        let mut random = fastrand::Rng::with_seed(seed);
        let settings =
            DeviceSettings { reorder: Some(seed), shadow_doorbells, ..Default::default() };
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
    let mut rig = Rig::on(device, rig.arena);
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
    // What the pair had that nobody knows about is back too.
    let pair = rig.pair(8).unwrap();
    rig.shut_down(Some(pair));
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
    // Its memory was the device's until the queue was deleted, and then it came back.
    rig.shut_down(None);
}

#[test]
fn what_a_dropped_pair_leaves_comes_back_when_the_device_lets_go() {
    // By the shutdown, without a moment to delete the queue before.
    let (mut rig, mut pair) = Rig::with_pair(8);
    rig.device.inject(Fault::new(FaultAction::LoseCompletion));
    let buffer = rig.buffer(512, 1);
    pair.submit_write(Lba(0), buffer, ForceUnitAccess::No, 1).unwrap();
    pair.ring();
    rig.pass(Duration::from_millis(1));
    drop(pair);
    assert!(rig.arena.free() < rig.arena.size());
    rig.shut_down(None);
    // By a reset that comes in between.
    let (mut rig, pair) = Rig::with_pair(8);
    rig.controller.request(Request::Reset).unwrap();
    rig.pass(Duration::from_millis(1));
    drop(pair);
    rig.until("the end of the reset", |event| match event {
        Event::ResetDone => Ok(()),
        other => Err(other),
    });
    let pair = rig.pair(8).unwrap();
    rig.shut_down(Some(pair));
    // And when the controller does not answer the deletion, by the reset that follows.
    let (mut rig, pair) = Rig::with_pair(8);
    let delete = AdminOpcode::DELETE_SUBMISSION_QUEUE.0;
    let fault = Fault::new(FaultAction::LoseCompletion).on_queue(QueueId(0)).on_opcode(delete);
    rig.device.inject(fault);
    drop(pair);
    rig.until("the end of the reset", |event| match event {
        Event::ResetDone => Ok(()),
        other => Err(other),
    });
    rig.shut_down(None);
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
fn shadow_doorbells_survive_resets_and_new_queues() {
    let settings = DeviceSettings { shadow_doorbells: true, io_queues: 2, ..Default::default() };
    let (mut rig, _) = Rig::up(settings);
    for round in 0..4 {
        let mut pair = rig.pair(5).unwrap();
        // Not a multiple of the ring, so that a tail of its former life would be noticed.
        for lba in 0..7 {
            rig.write(&mut pair, lba, 512, round);
        }
        rig.controller.request(Request::Reset).unwrap();
        assert!(rig.reset_done(&mut pair).is_empty());
        for lba in 0..3 {
            assert!(rig.read(&mut pair, lba, 512).iter().all(|&byte| byte == round));
        }
        rig.delete(pair);
    }
    let pair = rig.pair(8).unwrap();
    rig.shut_down(Some(pair));
}

/// A controller that sleeps whenever it has seen all doorbells: it is woken for the last one, too.
#[test]
fn shadow_doorbells_wake_a_controller_that_sleeps() {
    let settings = DeviceSettings { shadow_doorbells: true, ..Default::default() };
    let (mut rig, _) = Rig::up(settings);
    let mut pair = rig.pair(7).unwrap();
    let thread = ControllerThread::spawn(Arc::clone(&rig.device)).unwrap();
    for round in 0..3000_u64 {
        let mut ended = 0;
        let count = round % 6 + 1;
        for lba in 0..count {
            pair.submit_write(Lba(lba), rig.buffer(512, 1), ForceUnitAccess::No, lba).unwrap();
            pair.ring();
        }
        while ended < count {
            pair.poll(rig.now, &mut |completion| {
                assert_eq!(completion.result, Ok(0));
                ended += 1;
            });
            std::thread::yield_now();
        }
    }
    drop(thread);
    rig.shut_down(Some(pair));
}

#[test]
fn a_controller_that_refuses_its_shadow_doorbells_is_used_without() {
    let mut rig = Rig::new(DeviceSettings { shadow_doorbells: true, ..Default::default() });
    let refusal = FaultAction::Fail(StatusCode::INTERNAL_ERROR.into());
    let config = AdminOpcode::DOORBELL_BUFFER_CONFIG.0;
    rig.device.inject(Fault::new(refusal).on_queue(QueueId(0)).on_opcode(config));
    rig.ready();
    assert_eq!(rig.device.counters().faults, 1);
    let mut pair = rig.pair(4).unwrap();
    for lba in 0..9 {
        rig.write(&mut pair, lba, 512, 7);
    }
    // After a reset it takes them.
    rig.controller.request(Request::Reset).unwrap();
    assert!(rig.reset_done(&mut pair).is_empty());
    for lba in 0..9 {
        rig.write(&mut pair, lba, 512, 8);
    }
    rig.shut_down(Some(pair));
}

#[test]
fn long_transfers_are_described_by_sgls_where_the_controller_takes_them() {
    for (sgl, pci, expected) in [
        (true, None, 2),
        (false, None, 0),
        // Huawei's drives only say that they do.
        (true, Some((0x19e5, 0x3755)), 0),
    ] {
        let pci = pci.map(|(vendor, device)| identity(vendor, device));
        let (mut rig, _) = Rig::up(DeviceSettings { sgl, pci, ..Default::default() });
        let mut pair = rig.pair(16).unwrap();
        // Two pages are two PRPs, and need no list.
        rig.write(&mut pair, 0, 8192, 1);
        rig.write(&mut pair, 16, 12288, 2);
        let data = rig.read(&mut pair, 0, 20480);
        assert!(data.iter().enumerate().all(|(at, &byte)| byte == if at < 8192 { 1 } else { 2 }));
        drop(data);
        assert_eq!(rig.device.counters().sgls, expected, "SGLS {sgl}");
        rig.shut_down(Some(pair));
    }
}

fn identity(vendor: u16, device: u16) -> PciIdentity {
    PciIdentity { vendor, device, class: CLASS_NVME, subsystem: (vendor, 1) }
}

#[test]
fn nobody_is_late_while_firmware_is_activated() {
    let settings = DeviceSettings { firmware_activation: 1200, ..Default::default() };
    let (mut rig, _) = Rig::up(settings);
    let mut pair = rig.pair(8).unwrap();
    rig.write(&mut pair, 0, 512, 1);
    let buffer = rig.buffer(512, 0);
    pair.submit_read(Lba(0), buffer, 5).unwrap();
    // Longer than a command may take, and shorter than MTFA.
    rig.device.activate_firmware(seconds(100));
    let started = rig.now;
    rig.until("the notice", |event| match event {
        Event::Notice(notice) => {
            assert_eq!(notice.log_page, LogPage::FIRMWARE);
            Ok(())
        }
        other => Err(other),
    });
    pair.ring();
    let refused = pair.submit_flush(6).unwrap_err();
    assert_eq!(refused.reason, RejectReason::Paused);
    while !pair.is_live() {
        rig.pass(Duration::from_millis(100));
        pair.poll(rig.now, &mut |completion| panic!("{completion:?}"));
    }
    let read = rig.complete(&mut pair, 1);
    assert_eq!((read[0].token, read[0].result), (5, Ok(0)));
    assert!(rig.now.since(started) >= seconds(100));
    drop(read);
    rig.write(&mut pair, 1, 512, 2);
    assert_eq!(pair.counters().late, 0);
    assert!(!rig.events.iter().any(|event| matches!(event, Event::ResetStarted { .. })));
    // The event was taken up: the next activation is told of, too.
    rig.device.activate_firmware(seconds(1));
    rig.until("the next notice", |event| match event {
        Event::Notice(_) => Ok(()),
        other => Err(other),
    });
    rig.pass(seconds(2));
    rig.pass(seconds(2));
    rig.write(&mut pair, 2, 512, 3);
    rig.shut_down(Some(pair));
}

#[test]
fn firmware_that_takes_longer_than_it_may_ends_in_a_reset() {
    let (mut rig, _) = Rig::up(DeviceSettings { firmware_activation: 20, ..Default::default() });
    let mut pair = rig.pair(8).unwrap();
    rig.device.activate_firmware(Duration::MAX);
    let started = rig.now;
    rig.until("a reset", |event| match event {
        Event::ResetStarted { cause, .. } => {
            assert_eq!(cause, ResetCause::FirmwareTimeout);
            Ok(())
        }
        other => Err(other),
    });
    let waited = rig.now.since(started);
    assert!((seconds(2)..seconds(4)).contains(&waited), "{waited:?}");
    assert!(rig.reset_done(&mut pair).is_empty());
    rig.write(&mut pair, 0, 512, 1);
    rig.shut_down(Some(pair));
}

#[test]
fn quirks_are_kept_to() {
    // Samsung PM1725a, left enabled by somebody else.
    let pci = Some(identity(0x144d, 0xa822));
    let (rig, namespace) = Rig::up(DeviceSettings { pci, ..Default::default() });
    assert_eq!(namespace.max_write_zeroes_blocks, 0);
    let (device, arena) = (Arc::clone(&rig.device), rig.arena.clone());
    drop(rig);
    let mut rig = Rig::on(device, arena);
    rig.ready();
    assert!(rig.now.since(Instant::default()) >= Duration::from_millis(2300));
    // QEMU's old identity: only the first namespace, which nobody lists.
    let pci = Some(identity(0x8086, 0x5845));
    let mut rig = Rig::new(DeviceSettings { pci, version: 0x0002_0000, ..Default::default() });
    let list = Fault::new(FaultAction::FatalStatus)
        .on_queue(QueueId(0))
        .on_opcode(AdminOpcode::IDENTIFY.0);
    rig.device.inject(list.after(2));
    let namespace = rig.ready();
    assert_eq!((namespace.id, namespace.nguid), (NS, [0; 16]));
    // Apple: one command at a time, and nothing for the one that is none of ours.
    let pci = Some(identity(0x106b, 0x2001));
    let (mut rig, _) = Rig::up(DeviceSettings { pci, ..Default::default() });
    let pair = rig.pair(64).unwrap();
    assert_eq!(pair.entries(), 2);
    rig.shut_down(Some(pair));
    let pci = Some(identity(0x106b, 0x2005));
    let mut rig = Rig::new(DeviceSettings { pci, ..Default::default() });
    assert!(matches!(rig.failed(), NvmeError::Unsupported { .. }));
    // Microsoft: a page of admin commands.
    let pci = Some(identity(0x1414, 0xb111));
    let (rig, _) = Rig::up(DeviceSettings { pci, ..Default::default() });
    assert_eq!(rig.device.read32(AQA) & 0xfff, 63);
    rig.shut_down(None);
}

#[test]
fn power_states_and_the_write_cache_are_left_as_they_were_found() {
    for cache_enabled in [true, false] {
        let (mut rig, namespace) = Rig::up(DeviceSettings { cache_enabled, ..Default::default() });
        assert_eq!(namespace.volatile_cache, cache_enabled);
        let mut pair = rig.pair(8).unwrap();
        rig.write(&mut pair, 0, 512, 1);
        rig.controller.request(Request::Reset).unwrap();
        assert!(rig.reset_done(&mut pair).is_empty());
        for (feature, found) in [
            (Feature::POWER_MANAGEMENT, 0),
            (Feature::AUTONOMOUS_POWER_STATES, 0),
            (Feature::VOLATILE_WRITE_CACHE, u32::from(cache_enabled)),
        ] {
            assert_eq!(rig.device.feature(feature), Some(found), "{feature:?}");
        }
        rig.shut_down(Some(pair));
    }
}

#[test]
fn a_namespace_outside_the_cache_needs_no_flush() {
    for (version, namespace_cached, expected) in [
        (VERSION_2_0, true, true),
        (VERSION_2_0, false, false),
        // Before 2.0 nobody can say so.
        (VERSION_1_4, false, true),
    ] {
        let settings = DeviceSettings { version, namespace_cached, ..Default::default() };
        let (rig, namespace) = Rig::up(settings);
        assert_eq!(namespace.volatile_cache, expected, "version {version:#x}");
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
