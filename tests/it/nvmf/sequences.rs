//! Random commands against a model of the blocks, and random nonsense that must be survived.

use lvolfs::nvmf::pdu::{Digests, Pdu};
use lvolfs::spec::command::SubmissionEntry;
use lvolfs::spec::fabrics::{SglDescriptor, SglKind};
use zerocopy::FromBytes;

use super::io::{fetch, pattern, write};
use super::rig::{BLOCK, with_rig};

/// Blocks that are used.
const USED: u64 = 64;

#[test]
fn random_writes_and_clears_are_what_the_model_says() {
    for seed in 0..6 {
        with_rig(async |rig| {
            let mut random = fastrand::Rng::with_seed(seed);
            let digests = Digests::from_bits(random.u8(..4));
            let mut connected = rig.connect_with(digests, 0, random.bool()).await;
            let io = &mut connected.io;
            let mut model = vec![0; USED as usize * BLOCK];
            for step in 0..60 {
                let lba = random.u64(..USED);
                let blocks = random.usize(1..=(USED - lba).min(20) as usize);
                let at = lba as usize * BLOCK..(lba as usize + blocks) * BLOCK;
                let mut entry = write(lba, blocks);
                match random.u8(..4) {
                    0 => {
                        entry.opcode = 8;
                        let deallocate = u32::from(random.bool()) << 25;
                        entry.dword12.set(entry.dword12.get() | deallocate);
                        io.plain(entry).await.ok();
                        model[at].fill(0);
                    }
                    1 => {
                        entry.opcode = 5;
                        io.run(entry, &model[at], 0).await.ok();
                    }
                    _ => {
                        let data = pattern(seed << 32 | step, blocks);
                        io.max_data = random.usize(1..8) * 4096;
                        io.run(entry, &data, 0).await.ok();
                        model[at].copy_from_slice(&data);
                    }
                }
            }
            assert!(fetch(io, 0, USED as usize).await == model, "seed {seed}");
        });
    }
}

/// Commands of random bits, on both queues, in and out of order: each is answered, or the
/// connection ends; nothing else.
#[test]
fn nonsense_is_survived() {
    with_rig(async |rig| {
        for seed in 0..150 {
            let mut random = fastrand::Rng::with_seed(seed);
            let connected = rig.connect().await;
            let mut host = if random.bool() { connected.admin } else { connected.io };
            let mut sent = 0;
            for _ in 0..random.usize(1..12) {
                let mut raw = [0_u8; 64];
                if random.bool() {
                    raw.fill_with(|| random.u8(..));
                }
                raw[0] = *random
                    .choice(&[
                        0, 1, 2, 5, 6, 8, 9, 10, 12, 12, 0x0d, 0x0e, 0x11, 0x15, 0x18, 0x19, 0x7f,
                        0x55,
                    ])
                    .unwrap();
                raw[4..8].copy_from_slice(&u32::from(random.u8(..4)).to_le_bytes());
                let entry = SubmissionEntry::read_from_bytes(&raw).unwrap();
                let entry = entry.with_command_id(host.command_id());
                let data = [0_u8; 2048];
                let inside = random.bool();
                let length = if inside { data.len() as u32 } else { random.u32(..1 << 16) };
                let kind = if inside { SglKind::IN_CAPSULE } else { SglKind::TRANSPORT };
                let entry = entry.with_sgl(SglDescriptor { address: 0, length, kind });
                let mut bytes = Vec::new();
                let length = if inside { length } else { 0 };
                host.encoder.header(&Pdu::Command { entry, length }, &mut bytes);
                if inside {
                    bytes.extend(data);
                }
                if random.u8(..30) == 0 {
                    let at = random.usize(..bytes.len());
                    bytes[at] ^= 1 << random.u8(..8);
                }
                host.send(&bytes).await;
                sent += 1;
            }
            // Answers, requests for data and event requests that wait: whatever there is, it is
            // no more than one thing for each command, and one end.
            let mut seen = 0;
            let wait = std::time::Duration::from_millis(5);
            loop {
                let next = std::pin::pin!(host.receive());
                let patience = rig.served.reactor.sleep(wait);
                match futures_util::future::select(next, patience).await {
                    futures_util::future::Either::Left((Some((pdu, ..)), _)) => {
                        seen += usize::from(matches!(
                            pdu,
                            Pdu::Response(_) | Pdu::ReadyToTransfer { .. }
                        ));
                    }
                    _ => break,
                }
            }
            assert!(seen <= sent, "seed {seed}");
        }
    });
}
