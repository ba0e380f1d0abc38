//! I/O commands.

use std::time::Duration;

use lvolfs::nvmf::pdu::Digests;
use lvolfs::spec::command::{
    ALL_NAMESPACES, Deallocate, DsmRange, ForceUnitAccess, IoOpcode, SubmissionEntry,
};
use lvolfs::spec::status::StatusCode;
use lvolfs::units::{ByteOffset, CommandId, Lba, NamespaceId, QueueId};
use zerocopy::IntoBytes;

use super::host::Host;
use super::pipe::Pipe;
use super::rig::{BLOCK, BLOCKS, ONE, TWO, with_rig};

pub(super) fn pattern(seed: u64, blocks: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(blocks * BLOCK).collect()
}

pub(super) fn write(lba: u64, blocks: usize) -> SubmissionEntry {
    SubmissionEntry::write(ONE, Lba(lba), blocks as u32, ForceUnitAccess::No)
}

pub(super) fn read(lba: u64, blocks: usize) -> SubmissionEntry {
    SubmissionEntry::read(ONE, Lba(lba), blocks as u32)
}

pub(super) async fn fetch(host: &mut Host<Pipe>, lba: u64, blocks: usize) -> Vec<u8> {
    host.run(read(lba, blocks), &[], (blocks * BLOCK) as u32).await.ok().data
}

pub(super) fn with_opcode(opcode: IoOpcode, lba: u64, blocks: usize) -> SubmissionEntry {
    let mut entry = write(lba, blocks);
    entry.opcode = opcode.0;
    entry
}

#[test]
fn data_comes_back_whatever_was_agreed() {
    for bits in 0..4 {
        for alignment in [0, 31] {
            with_rig(async |rig| {
                let digests = Digests::from_bits(bits);
                let mut connected = rig.connect_with(digests, alignment, bits & 1 == 0).await;
                let io = &mut connected.io;
                // In the capsule, on request in one piece, in several, and as large as may be.
                for (blocks, max_data) in [(1, 4096), (2, 4096), (7, 12 << 10), (256, 1 << 20)] {
                    io.max_data = max_data;
                    let data = pattern(blocks as u64, blocks);
                    io.run(write(9, blocks), &data, 0).await.ok();
                    assert!(fetch(io, 9, blocks).await == data, "{blocks} blocks");
                }
                assert!(fetch(io, 500, 2).await == vec![0; 2 * BLOCK]);
            });
        }
    }
}

#[test]
fn ranges_are_checked() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let io = &mut connected.io;
        let data = pattern(1, 2);
        for lba in [BLOCKS, BLOCKS - 1, u64::MAX, u64::MAX - 1, 1 << 52] {
            io.run(write(lba, 2), &data, 0).await.is(StatusCode::LBA_OUT_OF_RANGE);
            io.run(read(lba, 2), &[], 8192).await.is(StatusCode::LBA_OUT_OF_RANGE);
            let verify = with_opcode(IoOpcode::VERIFY, lba, 2);
            io.plain(verify).await.is(StatusCode::LBA_OUT_OF_RANGE);
            let zeroes = with_opcode(IoOpcode::WRITE_ZEROES, lba, 2);
            io.plain(zeroes).await.is(StatusCode::LBA_OUT_OF_RANGE);
        }
        io.run(write(0, 3), &data, 0).await.is(StatusCode::DATA_SGL_LENGTH_INVALID);
        io.plain(write(0, 1)).await.is(StatusCode::DATA_SGL_LENGTH_INVALID);
        io.run(read(0, 2), &[], 4096).await.is(StatusCode::DATA_SGL_LENGTH_INVALID);
        io.run(read(0, 257), &[], 2 << 20).await.is(StatusCode::INVALID_FIELD);
        let large = vec![0; (1 << 20) + BLOCK];
        io.run(write(0, 257), &large, 0).await.is(StatusCode::DATA_SGL_LENGTH_INVALID);
        for id in [0, 3, 0xffff_fffe, 0xffff_ffff] {
            let entry = SubmissionEntry::read(NamespaceId(id), Lba(0), 1);
            let answer = io.run(entry, &[], 4096).await;
            answer.is(StatusCode::INVALID_NAMESPACE);
            assert!(answer.status().is_final());
        }
        io.plain(with_opcode(IoOpcode(0x7d), 0, 1)).await.is(StatusCode::INVALID_OPCODE);
        io.plain(with_opcode(IoOpcode::WRITE_UNCORRECTABLE, 0, 1))
            .await
            .is(StatusCode::INVALID_OPCODE);
    });
}

#[test]
fn zeroes_and_deallocation() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let io = &mut connected.io;
        let data = pattern(2, 64);
        io.run(write(0, 64), &data, 0).await.ok();
        let volume = rig.catalog.volume(rig.volumes[0].key()).await.unwrap();
        let before = volume.allocated();
        let zeroes = |lba, blocks, deallocate| {
            SubmissionEntry::write_zeroes(ONE, Lba(lba), blocks, deallocate, ForceUnitAccess::Yes)
        };
        io.plain(zeroes(3, 2, Deallocate::No)).await.ok();
        assert!(fetch(io, 3, 2).await == vec![0; 2 * BLOCK]);
        assert!(fetch(io, 5, 1).await == data[5 * BLOCK..6 * BLOCK]);
        assert_eq!(volume.allocated(), before);
        io.plain(zeroes(16, 16, Deallocate::Yes)).await.ok();
        assert!(volume.allocated() < before, "a whole cluster went back");
        let ranges =
            [DsmRange::new(Lba(32), 16), DsmRange::new(Lba(0), 0), DsmRange::new(Lba(48), 1)];
        let deallocate = SubmissionEntry::deallocate_ranges(ONE, 3);
        io.run(deallocate, ranges.as_bytes(), 0).await.ok();
        assert!(fetch(io, 32, 17).await == vec![0; 17 * BLOCK]);
        assert!(fetch(io, 49, 1).await == data[49 * BLOCK..50 * BLOCK]);
        let answer = io.run(deallocate, &ranges.as_bytes()[..32], 0).await;
        answer.is(StatusCode::DATA_SGL_LENGTH_INVALID);
        let outside = [DsmRange::new(Lba(49), 1), DsmRange::new(Lba(BLOCKS), 1)];
        let deallocate = SubmissionEntry::deallocate_ranges(ONE, 2);
        let answer = io.run(deallocate, outside.as_bytes(), 0).await;
        answer.is(StatusCode::LBA_OUT_OF_RANGE);
        assert!(fetch(io, 49, 1).await == data[49 * BLOCK..50 * BLOCK], "nothing was done");
    });
}

#[test]
fn compare_verify_and_copy() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let io = &mut connected.io;
        let data = pattern(3, 8);
        io.run(write(10, 8), &data, 0).await.ok();
        io.run(with_opcode(IoOpcode::COMPARE, 10, 8), &data, 0).await.ok();
        let mut other = data.clone();
        other[5 * BLOCK] ^= 1;
        let answer = io.run(with_opcode(IoOpcode::COMPARE, 10, 8), &other, 0).await;
        answer.is(StatusCode::COMPARE_FAILURE);
        io.plain(with_opcode(IoOpcode::VERIFY, 0, 256)).await.ok();
        io.plain(with_opcode(IoOpcode::VERIFY, 0, 257)).await.is(StatusCode::INVALID_FIELD);

        let range = |lba: u64, blocks: u16| {
            let mut range = [0_u8; 32];
            range[8..16].copy_from_slice(&lba.to_le_bytes());
            range[16..18].copy_from_slice(&(blocks - 1).to_le_bytes());
            range
        };
        let copy = |lba, ranges: u32| {
            let mut entry = with_opcode(IoOpcode::COPY, lba, 1);
            entry.dword12.set(ranges - 1);
            entry
        };
        let ranges = [range(12, 2), range(10, 1)].concat();
        io.run(copy(100, 2), &ranges, 0).await.ok();
        assert!(fetch(io, 100, 2).await == data[2 * BLOCK..4 * BLOCK]);
        assert!(fetch(io, 102, 1).await == data[..BLOCK]);
        let end = copy(BLOCKS - 2, 2);
        io.run(end, &ranges, 0).await.is(StatusCode::LBA_OUT_OF_RANGE);
        let long = range(0, 4097);
        io.run(copy(0, 1), &long, 0).await.is(StatusCode::COMMAND_SIZE_LIMIT_EXCEEDED);
        let many = vec![0; 32 * 129];
        io.run(copy(0, 129), &many, 0).await.is(StatusCode::COMMAND_SIZE_LIMIT_EXCEEDED);
        io.run(copy(0, 3), &ranges, 0).await.is(StatusCode::DATA_SGL_LENGTH_INVALID);
        let mut format = copy(100, 2);
        format.dword12.set(1 | 1 << 8);
        io.run(format, &ranges, 0).await.is(StatusCode::INVALID_FIELD);
    });
}

/// Sends a compare and a write as one operation; the two answers in the order of the commands.
pub(super) async fn exchange(
    io: &mut Host<Pipe>,
    compare: SubmissionEntry,
    expected: &[u8],
    write: SubmissionEntry,
    data: &[u8],
) -> (StatusCode, StatusCode) {
    let (mut first, mut second) = (compare, write);
    (first.flags, second.flags) = (1, 2);
    let one = io.submit(first, expected, 0).await;
    let two = io.submit(second, data, 0).await;
    let (a, b) = (io.complete().await.unwrap(), io.complete().await.unwrap());
    let of = |id| {
        let answer = if a.completion.command_id() == id { &a } else { &b };
        answer.status().code()
    };
    (of(one), of(two))
}

#[test]
fn fused_compare_and_write() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let io = &mut connected.io;
        // In the capsule, and on request.
        for blocks in [1, 8] {
            let (old, new) = (pattern(4, blocks), pattern(5, blocks));
            io.run(write(0, blocks), &old, 0).await.ok();
            let compare = with_opcode(IoOpcode::COMPARE, 0, blocks);
            let success = StatusCode::SUCCESS;
            let done = exchange(io, compare, &old, write(0, blocks), &new).await;
            assert_eq!(done, (success, success));
            assert!(fetch(io, 0, blocks).await == new);
            let failed = (StatusCode::COMPARE_FAILURE, StatusCode::ABORTED_FAILED_FUSED);
            assert_eq!(exchange(io, compare, &old, write(0, blocks), &old).await, failed);
            assert!(fetch(io, 0, blocks).await == new);
            let elsewhere = exchange(io, compare, &new, write(1, blocks), &old).await;
            let expected = (StatusCode::ABORTED_FAILED_FUSED, StatusCode::INVALID_FIELD);
            assert_eq!(elsewhere, expected);
        }
        let large = pattern(6, 17);
        let compare = with_opcode(IoOpcode::COMPARE, 0, 17);
        let (first, _) = exchange(io, compare, &large, write(0, 17), &large).await;
        assert_eq!(first, StatusCode::ATOMIC_WRITE_UNIT_EXCEEDED);
        // Halves without their other half.
        let data = pattern(7, 1);
        let mut second = write(0, 1);
        second.flags = 2;
        io.run(second, &data, 0).await.is(StatusCode::ABORTED_MISSING_FUSED);
        let mut first = with_opcode(IoOpcode::COMPARE, 0, 1);
        first.flags = 1;
        let lonely = io.submit(first, &data, 0).await;
        let other = io.submit(read(0, 1), &[], 4096).await;
        for _ in 0..2 {
            let answer = io.complete().await.unwrap();
            if answer.completion.command_id() == lonely {
                answer.is(StatusCode::ABORTED_MISSING_FUSED);
            } else {
                assert_eq!(answer.ok().completion.command_id(), other);
            }
        }
    });
}

/// One half of a Compare and Write of one block.
pub(super) fn half(fused: u8, lba: u64) -> SubmissionEntry {
    let mut entry = match fused {
        1 => with_opcode(IoOpcode::COMPARE, lba, 1),
        _ => write(lba, 1),
    };
    entry.flags = fused;
    entry
}

/// The codes of the next two answers, in the order of these commands.
async fn two_answers(io: &mut Host<Pipe>, ids: [CommandId; 2]) -> [StatusCode; 2] {
    let answers = [io.complete().await.unwrap(), io.complete().await.unwrap()];
    ids.map(|id| {
        let mut all = answers.iter();
        all.find(|answer| answer.completion.command_id() == id).unwrap().status().code()
    })
}

#[test]
fn halves_are_answered_whatever_becomes_of_the_others() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let (admin, io) = (&mut connected.admin, &mut connected.io);
        let zeros = vec![0; BLOCK];
        // Two pairs are on their way, and what the first one needs comes last.
        let mut bytes = Vec::new();
        for lba in [1, 2] {
            bytes.extend(io.capsule(half(1, lba), &zeros, 0, lba == 2).1);
            bytes.extend(io.capsule(half(2, lba), &pattern(lba, 1), 0, true).1);
        }
        io.send(&bytes).await;
        for _ in 0..4 {
            io.complete().await.unwrap().ok();
        }
        for lba in [1, 2] {
            assert!(fetch(io, lba, 1).await == pattern(lba, 1));
        }
        // One half is refused when it comes: the first, then the second.
        let long = vec![0; (1 << 20) + BLOCK];
        let refused = StatusCode::DATA_SGL_LENGTH_INVALID;
        let (missing, failed) =
            (StatusCode::ABORTED_MISSING_FUSED, StatusCode::ABORTED_FAILED_FUSED);
        let ids = [io.submit(half(1, 3), &long, 0).await, io.submit(half(2, 3), &zeros, 0).await];
        assert_eq!(two_answers(io, ids).await, [refused, missing]);
        let ids = [io.submit(half(1, 3), &zeros, 0).await, io.submit(half(2, 3), &long, 0).await];
        assert_eq!(two_answers(io, ids).await, [failed, refused]);
        // The first is aborted: while it waits for the second, and while the second waits for it.
        let aborted = StatusCode::ABORT_REQUESTED;
        for alone in [true, false] {
            let (first, bytes) = io.capsule(half(1, 3), &zeros, 0, alone);
            io.send(&bytes).await;
            let (second, bytes) = io.capsule(half(2, 3), &zeros, 0, true);
            if !alone {
                io.send(&bytes).await;
            }
            rig.served.reactor.sleep(Duration::from_millis(1)).await;
            let abort = SubmissionEntry::abort(QueueId(1), first);
            assert_eq!(admin.plain(abort).await.ok().result(), 0, "aborted");
            if alone {
                io.send(&bytes).await;
            }
            let expected = [aborted, if alone { missing } else { failed }];
            assert_eq!(two_answers(io, [first, second]).await, expected);
        }
        // What is left over hinders nobody.
        let both = exchange(io, half(1, 3), &zeros, half(2, 3), &pattern(3, 1)).await;
        assert_eq!(both, (StatusCode::SUCCESS, StatusCode::SUCCESS));
        assert!(fetch(io, 3, 1).await == pattern(3, 1));
    });
}

#[test]
fn flush_of_one_and_of_all() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let io = &mut connected.io;
        io.run(write(0, 1), &pattern(8, 1), 0).await.ok();
        for id in [ONE, TWO, ALL_NAMESPACES] {
            io.plain(SubmissionEntry::flush(id)).await.ok();
        }
        for id in [0, 3] {
            let answer = io.plain(SubmissionEntry::flush(NamespaceId(id))).await;
            answer.is(StatusCode::INVALID_NAMESPACE);
        }
    });
}

#[test]
fn a_full_pool_is_capacity_exceeded() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let new = lvolfs::volume::NewVolume {
            name: "thick".into(),
            size: lvolfs::units::ByteCount(56 << 20),
            thin: false,
            uuid: None,
            attributes: None,
        };
        rig.catalog.create(&rig.served.pool, new).await.unwrap();
        let data = pattern(9, 256);
        let mut answer = None;
        for step in 0..BLOCKS / 256 * 2 {
            let mut entry = write(step % 4 * 256, 256);
            entry.namespace.set(1 + (step / 4) as u32);
            let done = connected.io.run(entry, &data, 0).await;
            if !done.status().is_success() {
                answer = Some(done);
                break;
            }
        }
        let answer = answer.expect("two volumes are more than is left");
        answer.is(StatusCode::CAPACITY_EXCEEDED);
        assert!(answer.status().is_final());
        connected.io.plain(SubmissionEntry::flush(ONE)).await.ok();
    });
}

#[test]
fn many_commands_at_once_and_the_queue_head() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let io = &mut connected.io;
        let mut heads = Vec::new();
        for round in 0..3 {
            for at in 0..100 {
                if (at + round) % 2 == 0 {
                    io.submit(write(at, 1), &pattern(at, 1), 0).await;
                } else {
                    io.submit(read(at, 1), &[], 4096).await;
                }
            }
            for _ in 0..100 {
                let answer = io.complete().await.unwrap().ok();
                heads.push(answer.completion.submission_head.get());
                assert_eq!(answer.completion.submission_queue.get(), 1);
            }
        }
        // One more for each answer, from the Connect on, modulo the queue's size.
        let expected: Vec<u16> = (2..302).map(|head| head % 128).collect();
        assert_eq!(heads, expected);
        for at in 0..100 {
            assert!(fetch(io, at, 1).await == pattern(at, 1));
        }
    });
}

#[test]
fn the_file_and_the_namespace_are_the_same_volume() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let io = &mut connected.io;
        let node = lvolfs::fuse::request::NodeId(rig.volumes[0].key().number());
        let mut random = fastrand::Rng::with_seed(11);
        for step in 0..60_u64 {
            let (lba, blocks) = (random.u64(..BLOCKS - 16), random.usize(1..16));
            let data = pattern(step, blocks);
            let offset = lba * BLOCK as u64;
            if random.bool() {
                io.run(write(lba, blocks), &data, 0).await.ok();
            } else {
                assert_eq!(rig.served.write(node, offset, &data).await.unwrap(), data.len());
            }
            if random.u8(..8) == 0 {
                let entry = SubmissionEntry::write_zeroes(
                    ONE,
                    Lba(lba),
                    1,
                    Deallocate::Yes,
                    ForceUnitAccess::No,
                );
                io.plain(entry).await.ok();
            }
            let through_file = rig.served.read(node, offset, data.len()).await.unwrap();
            assert!(fetch(io, lba, blocks).await == through_file, "step {step}");
        }
        // What the file cuts off, the namespace no longer has; and the host is told.
        let volume = rig.catalog.volume(rig.volumes[0].key()).await.unwrap();
        let half = volume.size().get() / 2;
        rig.served.truncate(node, half, None).await.unwrap();
        let past = half / BLOCK as u64;
        io.run(read(past, 1), &[], 4096).await.is(StatusCode::LBA_OUT_OF_RANGE);
        io.run(read(past - 1, 1), &[], 4096).await.ok();
        let slice = volume.read(ByteOffset(half - 4096), 8192).await.unwrap().unwrap();
        assert_eq!(slice.range.len(), 4096);
    });
}
