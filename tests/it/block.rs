//! One conformance suite, run on each block driver: what src/block.rs promises, held by all.

use std::rc::Rc;

use lvolfs::block::fault::{Fault, Faults, Faulty, Operation};
use lvolfs::block::file::{FileDevice, FileOptions, OpenError, open};
use lvolfs::block::memory::MemoryDevice;
use lvolfs::block::recording::{Recorder, Recording};
use lvolfs::block::{BlockDevice, BlockError, Discard, Durability};
use lvolfs::hw::dma::{DmaArena, DmaBuffer};
use lvolfs::hw::file::TakenAway;
use lvolfs::reactor::{Reactor, ReactorOptions};
use lvolfs::units::{BlockCount, BlockSize, ByteCount, Lba};

/// Size of the devices under test.
const SIZE: ByteCount = ByteCount(8 << 20);

fn reactor() -> Rc<Reactor> {
    Reactor::new(ReactorOptions::deterministic()).unwrap()
}

fn arena() -> DmaArena {
    DmaArena::new(ByteCount(16 << 20), false).unwrap()
}

fn filled(arena: &DmaArena, bytes: usize, value: u8) -> DmaBuffer {
    let mut buffer = arena.allocate(bytes).unwrap();
    buffer.fill(value);
    buffer
}

/// The suite itself.
async fn conforms<D: BlockDevice>(reactor: &Rc<Reactor>, arena: &DmaArena, device: D) {
    ends_and_lengths(arena, &device).await;
    writes_are_read_back(arena, &device).await;
    zeroing_and_discarding(arena, &device).await;
    many_at_once(reactor, arena, &device).await;
    counters_count(arena, &device).await;
}

async fn ends_and_lengths<D: BlockDevice>(arena: &DmaArena, device: &D) {
    let geometry = device.geometry().clone();
    let block = geometry.block_size.bytes() as usize;
    let last = Lba(geometry.block_count.get() - 1);
    let written = device.write(last, filled(arena, block, 1), Durability::Cached).await;
    assert_eq!(written.unwrap().len(), block, "the last block can be written");
    for start in [geometry.block_count.get(), u64::MAX, u64::MAX - 1] {
        let read = device.read(Lba(start), filled(arena, 2 * block, 0)).await.unwrap_err();
        assert!(matches!(read.error, BlockError::OutOfRange { .. }), "{:?}", read.error);
        assert_eq!(read.buffer.unwrap().len(), 2 * block, "the buffer comes back");
        let zeroed = device.write_zeroes(Lba(start), BlockCount(2)).await;
        assert!(matches!(zeroed, Err(BlockError::OutOfRange { .. })));
        let discarded = device.discard(Lba(start), BlockCount(u64::MAX)).await;
        assert!(matches!(discarded, Err(BlockError::OutOfRange { .. })));
    }
    let beyond = device.write(last, filled(arena, 2 * block, 9), Durability::Cached).await;
    assert!(beyond.is_err(), "a write across the end fails as a whole");
    let back = device.read(last, filled(arena, block, 0)).await.unwrap();
    assert!(back.iter().all(|&byte| byte == 1), "and changes nothing");
    let crooked = device.read(Lba(0), filled(arena, block + 1, 0)).await.unwrap_err();
    assert!(matches!(crooked.error, BlockError::BadLength { .. }));
    assert!(device.discard(Lba(0), BlockCount(0)).await.is_err());
}

async fn writes_are_read_back<D: BlockDevice>(arena: &DmaArena, device: &D) {
    let block = device.geometry().block_size.bytes() as usize;
    for (index, durability) in [Durability::Cached, Durability::ForceUnitAccess].iter().enumerate()
    {
        for blocks in [1, 3, 64, 256] {
            let value = (index * 100 + blocks % 90 + 1) as u8;
            let start = Lba(7);
            let buffer = filled(arena, blocks * block, value);
            let back = device.write(start, buffer, *durability).await.unwrap();
            device.flush().await.unwrap();
            let read = device.read(start, back).await.unwrap();
            assert!(read.iter().all(|&byte| byte == value));
        }
    }
    let neighbour = device.read(Lba(6), filled(arena, block, 5)).await.unwrap();
    assert!(neighbour.iter().all(|&byte| byte == 0), "a block never written reads as zeros");
}

async fn zeroing_and_discarding<D: BlockDevice>(arena: &DmaArena, device: &D) {
    let block = device.geometry().block_size.bytes() as usize;
    let buffer = filled(arena, 64 * block, 3);
    let buffer = device.write(Lba(100), buffer, Durability::Cached).await.unwrap();
    device.write_zeroes(Lba(110), BlockCount(10)).await.unwrap();
    let buffer = device.read(Lba(100), buffer).await.unwrap();
    for (index, bytes) in buffer.chunks(block).enumerate() {
        let expected = if (10..20).contains(&index) { 0 } else { 3 };
        assert!(bytes.iter().all(|&byte| byte == expected), "block {index}");
    }
    device.discard(Lba(130), BlockCount(8)).await.unwrap();
    device.flush().await.unwrap();
    let buffer = device.read(Lba(100), buffer).await.unwrap();
    assert!(buffer[29 * block..30 * block].iter().all(|&byte| byte == 3));
    assert!(buffer[38 * block..39 * block].iter().all(|&byte| byte == 3));
    if device.geometry().discard == Discard::Zeroes {
        assert!(buffer[30 * block..38 * block].iter().all(|&byte| byte == 0));
    }
}

async fn many_at_once<D: BlockDevice>(reactor: &Rc<Reactor>, arena: &DmaArena, device: &D) {
    let block = device.geometry().block_size.bytes() as usize;
    let tasks: Vec<_> = (0..200_u64)
        .map(|index| {
            let (device, buffer) = (device.clone(), filled(arena, block, index as u8 + 1));
            reactor.task(async move {
                let start = Lba(300 + index);
                let buffer = device.write(start, buffer, Durability::Cached).await.unwrap();
                device.flush().await.unwrap();
                let buffer = device.read(start, buffer).await.unwrap();
                assert!(buffer.iter().all(|&byte| byte == index as u8 + 1), "block {index}");
            })
        })
        .collect();
    futures_util::future::join_all(tasks).await;
}

async fn counters_count<D: BlockDevice>(arena: &DmaArena, device: &D) {
    let block = device.geometry().block_size.bytes() as usize;
    let before = device.counters();
    let buffer = filled(arena, 2 * block, 0);
    let buffer = device.write(Lba(0), buffer, Durability::ForceUnitAccess).await.unwrap();
    device.read(Lba(0), buffer).await.unwrap();
    device.flush().await.unwrap();
    let after = device.counters();
    assert_eq!(after.writes, before.writes + 1);
    assert_eq!(after.fua_writes, before.fua_writes + 1);
    assert_eq!(after.bytes_written, before.bytes_written + 2 * block as u64);
    assert_eq!(after.reads, before.reads + 1);
    assert_eq!(after.flushes, before.flushes + 1);
}

#[test]
fn memory_conforms() {
    for block_size in [BlockSize::B512, BlockSize::B4096] {
        let (reactor, arena) = (reactor(), arena());
        let device = MemoryDevice::new(SIZE, block_size);
        reactor.block_on(conforms(&reactor, &arena, device.channel()));
    }
}

fn file_device(direct: bool, block_size: BlockSize) -> (tempfile::TempDir, FileDevice) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/disk.img");
    let options = FileOptions { path: path.clone(), size: Some(SIZE), create: true, direct };
    let opened = open(&options).unwrap();
    assert!(opened.created);
    (folder, FileDevice::new(opened, &path, block_size).unwrap())
}

#[test]
fn a_file_conforms_with_and_without_the_page_cache() {
    for (direct, block_size) in [(false, BlockSize::B512), (true, BlockSize::B4096)] {
        let (reactor, arena) = (reactor(), arena());
        let (_folder, device) = file_device(direct, block_size);
        reactor.block_on(conforms(&reactor, &arena, device.channel(&reactor, &arena)));
    }
}

#[test]
fn a_file_that_is_taken_away_fails_its_flushes() {
    let (reactor, arena) = (reactor(), arena());
    let (folder, device) = file_device(false, BlockSize::B4096);
    let channel = device.channel(&reactor, &arena);
    let path = folder.path().join("new/disk.img");
    reactor.block_on(async {
        channel.flush().await.unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(SIZE.get() - 1).unwrap();
        let cut = channel.flush().await.unwrap_err();
        assert!(cut.to_string().contains("was cut to 8388607 of its 8388608 bytes"), "{cut}");
        file.set_len(SIZE.get()).unwrap();
        channel.flush().await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let gone = channel.flush().await.unwrap_err();
        assert!(matches!(gone, BlockError::TakenAway(TakenAway::Deleted)), "{gone}");
        // What is there can still be read, to copy it away.
        channel.read(Lba(0), filled(&arena, 4096, 1)).await.unwrap();
    });
}

#[test]
fn decorators_conform_too() {
    let (reactor, arena) = (reactor(), arena());
    let device = MemoryDevice::new(SIZE, BlockSize::B4096).channel();
    let device = Recording::new(Faulty::new(device, Faults::default()), Recorder::default());
    reactor.block_on(conforms(&reactor, &arena, device));
}

#[test]
fn flushes_asked_for_together_share_one() {
    let (reactor, arena) = (reactor(), arena());
    let (_folder, device) = file_device(false, BlockSize::B4096);
    let channel = device.channel(&reactor, &arena);
    reactor.block_on(async {
        let flushes = (0..100).map(|_| channel.flush());
        for result in futures_util::future::join_all(flushes).await {
            result.unwrap();
        }
    });
    assert!(channel.counters().flushes <= 2, "{} flushes", channel.counters().flushes);
}

#[test]
fn faults_hit_what_they_name() {
    let (reactor, arena) = (reactor(), arena());
    let faults = Faults::default();
    let memory = MemoryDevice::new(SIZE, BlockSize::B4096).channel();
    let device = Faulty::new(memory, faults.clone());
    let fault = |operation, blocks, after| Fault { operation, blocks, after, times: 1 };
    reactor.block_on(async {
        faults.inject(fault(Operation::Write, Some(5..6), 0));
        let write = |start| device.write(Lba(start), filled(&arena, 4096, 1), Durability::Cached);
        assert!(write(4).await.is_ok());
        let failed = write(5).await.unwrap_err();
        assert!(matches!(failed.error, BlockError::Injected { .. }));
        assert!(write(5).await.is_ok(), "the fault is used up");
        faults.inject(fault(Operation::Flush, None, 1));
        assert!(device.flush().await.is_ok());
        assert!(device.flush().await.is_err());
        assert!(device.flush().await.is_ok());
    });
}

#[test]
fn a_truncated_file_is_an_error_not_a_panic() {
    let (reactor, arena) = (reactor(), arena());
    let (folder, device) = file_device(false, BlockSize::B4096);
    let file = std::fs::File::options().write(true).open(folder.path().join("new/disk.img"));
    file.unwrap().set_len(4096).unwrap();
    let channel = device.channel(&reactor, &arena);
    let read = reactor.block_on(channel.read(Lba(1), filled(&arena, 4096, 0))).unwrap_err();
    assert!(matches!(read.error, BlockError::Short { .. }), "{:?}", read.error);
    assert!(read.buffer.is_some());
}

#[test]
fn opening_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    let options = |size, create| FileOptions { path: path.clone(), size, create, direct: false };
    let missing = open(&options(None, false)).unwrap_err();
    assert!(missing.to_string().contains("disk.img"), "{missing}");
    let first = open(&options(Some(SIZE), true)).unwrap();
    let locked = open(&options(None, false)).unwrap_err();
    assert!(matches!(locked, OpenError::Locked { .. }), "{locked}");
    drop(first);
    let again = open(&options(None, true)).unwrap();
    assert_eq!((again.size, again.created), (SIZE, false));
    drop(again);
    let small = open(&options(Some(ByteCount(SIZE.get() * 2)), true)).unwrap_err();
    assert!(matches!(small, OpenError::TooSmall { .. }), "{small}");
    let kind = FileOptions { path: "/dev/null".into(), size: None, create: false, direct: false };
    assert!(matches!(open(&kind).unwrap_err(), OpenError::WrongKind { .. }));
}

/// An NVMe namespace of an emulated controller that runs in the reactor's own turns.
mod nvme_device {
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::Duration;

    use lvolfs::block::nvme::NvmeChannel;
    use lvolfs::emulated::{Fault, FaultAction, Settings};

    use lvolfs::reactor::{ReactorOptions, Wait};
    use lvolfs::spec::command::IoOpcode;
    use lvolfs::spec::log::LogPage;

    use super::*;
    use crate::drive::EmulatedDrive;

    struct Bench {
        reactor: Rc<Reactor>,
        arena: DmaArena,
        channel: NvmeChannel,
        drive: EmulatedDrive,
    }

    fn bench(block_size: BlockSize, settings: Settings) -> Bench {
        bench_on(reactor(), block_size, settings)
    }

    fn bench_on(reactor: Rc<Reactor>, block_size: BlockSize, settings: Settings) -> Bench {
        let arena = arena();
        let drive = EmulatedDrive::open(&reactor, &arena, (SIZE, block_size), settings, 1);
        let channel = drive.device.channel(&reactor, &arena).unwrap();
        let second = drive.device.channel(&reactor, &arena);
        assert!(second.is_err(), "one queue pair was asked for");
        Bench { reactor, arena, channel, drive }
    }

    #[test]
    fn a_namespace_conforms() {
        for block_size in [BlockSize::B512, BlockSize::B4096] {
            // Transfers above 128 KiB are split.
            let shadow_doorbells = block_size == BlockSize::B4096;
            let settings = Settings { max_transfer: 5, shadow_doorbells, ..Settings::default() };
            let bench = bench(block_size, settings);
            let suite = conforms(&bench.reactor, &bench.arena, bench.channel.clone());
            bench.reactor.block_on(suite);
            drop(bench.channel);
            bench.reactor.block_on(bench.drive.controller.shut_down()).unwrap();
            let counters = bench.drive.emulated.counters();
            assert_eq!((counters.outside_window, counters.invalid_doorbells), (0, 0));
        }
    }

    #[test]
    fn zeroing_gives_blocks_back_only_where_they_then_read_as_zeros() {
        for (deallocate_features, expected) in [(1 | 1 << 3, 1), (1 << 3, 0), (1, 0)] {
            let settings = Settings { deallocate_features, ..Settings::default() };
            let bench = bench(BlockSize::B4096, settings);
            bench.reactor.block_on(bench.channel.write_zeroes(Lba(3), BlockCount(9))).unwrap();
            let counters = bench.drive.emulated.counters();
            let counted = (counters.write_zeroes, counters.deallocating_write_zeroes);
            assert_eq!(counted, (1, expected), "DLFEAT {deallocate_features:#x}");
        }
    }

    /// Also those that are dropped while they wait for room in the queue.
    #[test]
    fn commands_that_nobody_waits_for_hold_up_no_others() {
        let bench = bench(BlockSize::B512, Settings { queue_entries: 3, ..Settings::default() });
        bench.reactor.block_on(async {
            let read = |index: usize| {
                let (channel, arena) = (bench.channel.clone(), bench.arena.clone());
                let start = Lba(index as u64);
                bench.reactor.task(async move {
                    channel.read(start, filled(&arena, 512, 1)).await.unwrap();
                })
            };
            let mut reads: Vec<_> = (0..64).map(|index| Some(read(index))).collect();
            // They queue up, and most of them go away: some called already, some not.
            for step in 0..8 {
                bench.reactor.sleep(Duration::from_nanos(1)).await;
                reads.iter_mut().skip(step).step_by(9).for_each(|read| drop(read.take()));
            }
            futures_util::future::join_all(reads.into_iter().flatten()).await;
        });
    }

    #[test]
    fn controllers_that_come_and_go_take_no_memory_along() {
        let reactor = reactor();
        let arena = arena();
        for round in 0..20 {
            let size = (ByteCount(16 << 20), BlockSize::B4096);
            let settings = Settings { shadow_doorbells: round % 2 == 0, ..Settings::default() };
            let drive = EmulatedDrive::open(&reactor, &arena, size, settings, 2);
            let channel = drive.device.channel(&reactor, &arena).unwrap();
            let buffer = filled(&arena, 4096, 1);
            let written = channel.write(Lba(0), buffer, Durability::Cached);
            drop(reactor.block_on(written).unwrap());
            // In the order in which the daemon detaches: one channel was never taken.
            drop(channel);
            reactor.block_on(drive.controller.shut_down()).unwrap();
            drop(drive);
            assert_eq!(arena.free(), arena.size(), "round {round}");
        }
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_will_not_is_reported() {
        let bench = bench(BlockSize::B4096, Settings::default());
        let internal = lvolfs::spec::status::StatusCode::INTERNAL_ERROR;
        let medium = lvolfs::spec::status::StatusCode::UNRECOVERED_READ_ERROR;
        bench.reactor.block_on(async {
            let fail = |code: lvolfs::spec::status::StatusCode| {
                Fault::new(FaultAction::Fail(code.into())).on_opcode(IoOpcode::READ.0)
            };
            bench.drive.emulated.inject(fail(internal).times(2));
            let buffer = bench.channel.read(Lba(0), filled(&bench.arena, 4096, 1)).await.unwrap();
            bench.drive.emulated.inject(fail(medium));
            let failed = bench.channel.read(Lba(0), buffer).await.unwrap_err();
            assert!(matches!(failed.error, BlockError::Nvme { .. }), "{:?}", failed.error);
            let buffer = failed.buffer.expect("the buffer comes back");
            bench.channel.read(Lba(0), buffer).await.unwrap();
        });
        assert_eq!(bench.channel.counters().errors, 1);
    }

    #[test]
    fn a_reset_fails_the_flush_of_what_was_cached_unless_it_was_asked_for() {
        let bench = bench(BlockSize::B4096, Settings::default());
        let write = || {
            let buffer = filled(&bench.arena, 4096, 9);
            bench.channel.write(Lba(3), buffer, Durability::Cached)
        };
        let settle = || bench.reactor.sleep(Duration::from_secs(5));
        bench.reactor.block_on(async {
            write().await.unwrap();
            bench.channel.flush().await.unwrap();
            bench.drive.emulated.fail();
            settle().await;
            bench.channel.flush().await.expect("everything had been flushed before the reset");
            write().await.unwrap();
            bench.drive.controller.reset().await.unwrap();
            settle().await;
            bench.channel.flush().await.expect("the cache was written out before the reset");
            write().await.unwrap();
            bench.drive.emulated.fail();
            settle().await;
            assert_eq!(bench.channel.flush().await, Err(BlockError::CacheLost));
            let back = bench.channel.read(Lba(3), filled(&bench.arena, 4096, 0)).await.unwrap();
            assert_eq!(back[0], 9, "the emulated cache survives a reset");
        });
    }

    #[test]
    fn a_controller_that_is_pulled_out_ends_every_command_and_is_let_go_of() {
        let bench = bench(BlockSize::B4096, Settings::default());
        assert_eq!(bench.drive.device.failure(), None);
        bench.reactor.block_on(async {
            bench.drive.emulated.unplug();
            let read = bench.channel.read(Lba(0), filled(&bench.arena, 4096, 0)).await;
            assert!(read.is_err());
            assert!(bench.channel.flush().await.is_err());
            assert!(bench.drive.controller.reset().await.is_err());
            assert!(bench.drive.controller.read_log(LogPage::SMART, 512).await.is_err());
        });
        assert!(bench.drive.controller.is_over());
        assert!(bench.drive.device.failure().unwrap().contains("unplugged"), "says why");
        // Nothing but the bench has the controller any more: no doorbell, no transport.
        assert_eq!(Arc::strong_count(&bench.drive.emulated), 2, "the bench and its steps");
    }

    #[test]
    fn health_and_errors_are_read_while_commands_run() {
        let bench = bench(BlockSize::B4096, Settings::default());
        bench.reactor.block_on(async {
            let reads =
                (0..8).map(|lba| bench.channel.read(Lba(lba), filled(&bench.arena, 4096, 0)));
            let logs = async {
                for page in [LogPage::SMART, LogPage::ERROR] {
                    let log = bench.drive.controller.read_log(page, 512).await.unwrap();
                    assert_eq!(log.len(), 512);
                }
                bench.drive.controller.read_log(LogPage::SMART, 512).await.unwrap()
            };
            let (reads, smart) =
                futures_util::future::join(futures_util::future::join_all(reads), logs).await;
            assert!(reads.iter().all(Result::is_ok));
            let kelvins = u16::from_le_bytes([smart[1], smart[2]]);
            assert!((250..400).contains(&kelvins), "{kelvins} K");
        });
    }

    #[test]
    fn what_is_polled_for_takes_the_hot_queue_and_the_rest_the_cold_one() {
        let count = |wait| {
            let options = ReactorOptions { wait, ..ReactorOptions::deterministic() };
            let bench =
                bench_on(Reactor::new(options).unwrap(), BlockSize::B4096, Settings::default());
            bench.reactor.block_on(async {
                let buffer = bench.channel.read(Lba(0), filled(&bench.arena, 4096, 0)).await;
                bench.channel.write(Lba(0), buffer.unwrap(), Durability::Cached).await.unwrap();
                bench.channel.read(Lba(0), filled(&bench.arena, 128 << 10, 0)).await.unwrap();
                bench.channel.flush().await.unwrap();
            });
            let (hot, cold) = bench.channel.queue_counters();
            let hot = hot.expect("the controller has queues enough");
            ((hot.reads, hot.writes, hot.flushes), (cold.reads, cold.writes, cold.flushes))
        };
        assert_eq!(count(Wait::Busy), ((1, 1, 0), (1, 0, 1)), "small ones are polled for");
        assert_eq!(count(Wait::Sleep), ((0, 0, 0), (2, 1, 1)), "nobody polls");
        let few = Settings { io_queues: 1, ..Settings::default() };
        let bench = bench(BlockSize::B4096, few);
        assert!(bench.channel.queue_counters().0.is_none(), "one queue pair must do");
        bench.reactor.block_on(conforms(&bench.reactor, &bench.arena, bench.channel.clone()));
    }
}
