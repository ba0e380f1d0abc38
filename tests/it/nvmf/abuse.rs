//! Hosts that break the protocol, say nothing, take nothing, or ask for too much. After each, a
//! fresh host is served (see `with_rig`).

use std::time::Duration;

use lvolfs::nvmf::pdu::{self, Digests, Encoder, Pdu, Role};
use lvolfs::spec::command::SubmissionEntry;
use lvolfs::spec::fabrics::{SglDescriptor, SglKind};
use lvolfs::units::QueueId;

use super::host::Host;
use super::io::{half, pattern, read, write};
use super::pipe::Pipe;
use super::rig::{BLOCK, ONE, Rig, with_rig};

/// Connects, sends bytes, and returns why the target ended the connection.
async fn provoke(
    rig: &Rig,
    digests: Digests,
    bytes: impl FnOnce(&mut Host<Pipe>) -> Vec<u8>,
) -> (u16, u32) {
    let mut connected = rig.connect_with(digests, 0, true).await;
    let bytes = bytes(&mut connected.io);
    connected.io.send(&bytes).await;
    connected.io.end().await.expect("a terminating PDU")
}

fn command(host: &mut Host<Pipe>, sgl: SglDescriptor, length: u32) -> Vec<u8> {
    let id = host.command_id();
    let entry = write(0, 1).with_command_id(id).with_sgl(sgl);
    let mut bytes = Vec::new();
    host.encoder.header(&Pdu::Command { entry, length }, &mut bytes);
    bytes.resize(bytes.len() + length as usize, 0);
    bytes
}

#[test]
fn malformed_pdus_are_answered_by_a_terminating_one() {
    with_rig(async |rig| {
        let none = Digests::default();
        let sgl = |address, length, kind| SglDescriptor { address, length, kind };
        let changed = |at: usize, value: u8| {
            move |host: &mut Host<Pipe>| {
                let mut bytes = command(host, sgl(0, 4096, SglKind::TRANSPORT), 0);
                bytes[at] = value;
                bytes
            }
        };
        assert_eq!(provoke(&rig, none, changed(0, 5)).await, (1, 0));
        assert_eq!(provoke(&rig, none, changed(2, 70)).await, (1, 2));
        assert_eq!(provoke(&rig, none, changed(4, 60)).await, (1, 4));
        assert_eq!(provoke(&rig, none, changed(1, 1)).await, (1, 1));
        let crooked = |host: &mut Host<Pipe>| {
            let mut bytes = command(host, sgl(0, 4096, SglKind::IN_CAPSULE), 4096);
            bytes[3] = 71;
            bytes
        };
        assert_eq!(provoke(&rig, none, crooked).await, (1, 3));
        let ended = |_: &mut Host<Pipe>| {
            let mut bytes = Vec::new();
            pdu::terminate(Role::Host, 7, 0, &[], &mut bytes);
            bytes
        };
        assert_eq!(provoke(&rig, none, ended).await, (1, 8), "an unknown status");
        let inside = SglKind::IN_CAPSULE;
        let with = |sgl, length| move |host: &mut Host<Pipe>| command(host, sgl, length);
        assert_eq!(provoke(&rig, none, with(sgl(0, 512, inside), 4096)).await, (1, 4));
        assert_eq!(provoke(&rig, none, with(sgl(0, 512, inside), 0)).await, (1, 4));
        assert_eq!(provoke(&rig, none, with(sgl(8, 4096, inside), 4096)).await, (6, 32));
        let outside = sgl(0, 4096, SglKind::TRANSPORT);
        assert_eq!(provoke(&rig, none, with(outside, 4096)).await, (6, 47));
        assert_eq!(provoke(&rig, none, with(sgl(0, 8196, inside), 8196)).await.0, 5);
        let digests = Digests { header: true, data: true };
        let flipped = |host: &mut Host<Pipe>| {
            let mut bytes = command(host, outside, 0);
            bytes[40] ^= 1;
            bytes
        };
        assert_eq!(provoke(&rig, digests, flipped).await.0, 3);
        let again = |_: &mut Host<Pipe>| {
            let mut bytes = Vec::new();
            let pdu = Pdu::InitializeRequest { alignment: 0, digests: none, max_r2t: 1 };
            Encoder::default().header(&pdu, &mut bytes);
            bytes
        };
        assert_eq!(provoke(&rig, none, again).await, (2, 0));
    });
}

#[test]
fn data_that_was_not_asked_for() {
    with_rig(async |rig| {
        // (offset, length, tag is right, command is right, last) of the first H2CData.
        let cases = [
            (0, 4096, false, true, true, 2),
            (0, 4096, true, false, true, 2),
            (512, 4096, true, true, true, 4),
            (0, 32_768, true, true, true, 4),
            (0, 4096, true, true, true, 4),
            (u32::MAX - 511, 1024, true, true, true, 4),
        ];
        for (offset, length, right_tag, right_command, last, status) in cases {
            let mut connected = rig.connect().await;
            let io = &mut connected.io;
            io.submit(write(0, 4), &pattern(1, 4), 0).await;
            let (request, ..) = io.receive().await.unwrap();
            let Pdu::ReadyToTransfer { command, tag, .. } = request else { panic!("{request:?}") };
            let tag = if right_tag { tag } else { 0 };
            let command = if right_command { command } else { command + 1 };
            let mut bytes = Vec::new();
            let pdu = Pdu::HostData { command, tag, offset, length, last };
            io.encoder.header(&pdu, &mut bytes);
            bytes.resize(bytes.len() + length as usize, 0);
            io.send(&bytes).await;
            let (seen, _) = io.end().await.expect("a terminating PDU");
            assert_eq!(seen, status, "{offset} {length} {right_tag} {right_command}");
        }
        let tail = |_: &mut Host<Pipe>| {
            let mut bytes = Vec::new();
            let pdu = Pdu::HostData { command: 1, tag: 77, offset: 0, length: 8, last: true };
            Encoder::default().header(&pdu, &mut bytes);
            bytes.extend([0; 8]);
            bytes
        };
        assert_eq!(provoke(&rig, Digests::default(), tail).await.0, 2);
    });
}

#[test]
fn a_wrong_data_digest_fails_only_its_command() {
    with_rig(async |rig| {
        let digests = Digests { header: true, data: true };
        let mut connected = rig.connect_with(digests, 0, true).await;
        let io = &mut connected.io;
        let data = pattern(1, 1);
        let (_, mut bytes) = io.capsule(write(0, 1), &data, 0, true);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        io.send(&bytes).await;
        let code = lvolfs::spec::status::StatusCode::TRANSIENT_TRANSPORT_ERROR;
        io.complete().await.unwrap().is(code);
        let found = io.run(read(0, 1), &[], BLOCK as u32).await.ok();
        assert!(found.data.iter().all(|byte| *byte == 0), "nothing was written");
        io.run(write(0, 1), &data, 0).await.ok();
    });
}

#[test]
fn more_commands_than_the_queue_has() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let io = &mut connected.io;
        // Writes whose data never comes take their places.
        for at in 0..140 {
            io.submit(write(at, 1), &pattern(0, 4), 0).await;
        }
        assert_eq!(io.end().await, Some((1, 0)));
    });
}

#[test]
fn silent_and_slow_hosts_are_dropped() {
    with_rig(async |rig| {
        let sleep = |seconds| rig.served.reactor.sleep(Duration::from_secs(seconds));
        let mut silent = Host::silent(rig.stream());
        let mut undecided = rig.initialized().await;
        let mut lazy = rig.connect().await;
        lazy.io.submit(write(0, 4), &pattern(1, 4), 0).await;
        sleep(9).await;
        assert_eq!(rig.service.connections(), 4);
        lazy.admin.property(0x1c).await;
        sleep(2).await;
        assert_eq!(rig.service.connections(), 3, "no ICReq");
        assert_eq!(silent.end().await, None);
        lazy.admin.property(0x1c).await;
        sleep(10).await;
        assert_eq!(undecided.end().await, None, "no Connect");
        for _ in 0..3 {
            lazy.admin.property(0x1c).await;
            sleep(5).await;
        }
        assert_eq!(lazy.io.end().await, None, "no data");
        assert_eq!(lazy.admin.property(0x1c).await, 1);
    });
}

/// What a host owes of a command that is answered already, and the second half of a pair, is waited
/// for no longer than data that it was asked for.
#[test]
fn hosts_that_never_send_what_they_owe_are_dropped() {
    with_rig(async |rig| {
        let mut aborts = rig.connect().await;
        let mut halves = rig.connect().await;
        let id = aborts.io.submit(write(0, 4), &pattern(1, 4), 0).await;
        halves.io.submit(half(1, 0), &pattern(0, 1), 0).await;
        rig.served.reactor.sleep(Duration::from_millis(1)).await;
        let abort = SubmissionEntry::abort(QueueId(1), id);
        assert_eq!(aborts.admin.plain(abort).await.ok().result(), 0, "aborted");
        for waited in (0..40).step_by(5) {
            let expected = if waited <= 30 { 4 } else { 2 };
            assert_eq!(rig.service.connections(), expected, "after {waited} s");
            rig.served.reactor.sleep(Duration::from_secs(5)).await;
            aborts.admin.property(0x1c).await;
            halves.admin.property(0x1c).await;
        }
        assert_eq!(aborts.io.end().await, None);
        assert_eq!(halves.io.end().await, None);
    });
}

#[test]
fn a_host_that_takes_nothing_is_dropped_and_starves_nobody() {
    with_rig(async |rig| {
        let mut greedy = rig.connect().await;
        let mut modest = rig.connect().await;
        modest.io.run(write(0, 64), &pattern(2, 64), 0).await.ok();
        for _ in 0..120 {
            greedy.io.submit(read(0, 256), &[], 1 << 20).await;
        }
        for _ in 0..50 {
            let found = modest.io.run(read(0, 64), &[], 64 * BLOCK as u32).await.ok();
            assert!(found.data == pattern(2, 64));
        }
        for _ in 0..4 {
            greedy.admin.property(0x1c).await;
            modest.admin.property(0x1c).await;
            rig.served.reactor.sleep(Duration::from_secs(9)).await;
        }
        // What was on its way is still there to be read; then it ends.
        assert_eq!(greedy.io.end().await, None);
        modest.io.run(read(0, 1), &[], 4096).await.ok();
    });
}

#[test]
fn hosts_may_leave_at_any_time() {
    with_rig(async |rig| {
        let whole = {
            let mut host = rig.connect().await;
            host.io.capsule(write(0, 2), &pattern(3, 2), 0, true).1
        };
        for cut in (0..whole.len()).step_by(97) {
            let mut host = rig.connect().await;
            host.io.send(&whole[..cut]).await;
        }
        let mut host = rig.connect().await;
        let mut bytes = Vec::new();
        pdu::terminate(Role::Host, 1, 0, &[], &mut bytes);
        host.io.send(&bytes).await;
        assert_eq!(host.io.end().await, None);
        host.admin.plain(SubmissionEntry::property_get(0x1c, false)).await.ok();
        let mut io = rig.io_queue(host.id, 1, Digests::default(), 0, false).await;
        io.plain(SubmissionEntry::flush(ONE)).await.ok();
    });
}

/// What waits for memory that other commands of the connection hold ends with the connection.
#[test]
fn a_host_leaves_while_its_commands_wait_for_memory() {
    with_rig(async |rig| {
        let free = rig.served.arena.free();
        for reads in [false, true] {
            let mut host = rig.connect().await;
            // The first ones may send their data, and do not; the others are not asked yet.
            for at in 0..6 {
                host.io.submit(write(at, 256), &pattern(0, 256), 0).await;
            }
            if reads {
                host.io.submit(read(0, 256), &[], 1 << 20).await;
            }
            rig.served.reactor.sleep(Duration::from_millis(10)).await;
            assert!(rig.served.arena.free() < free, "some hold memory");
            drop(host);
            rig.served.reactor.sleep(Duration::from_secs(1)).await;
            assert_eq!(rig.service.connections(), 0);
            assert_eq!(rig.served.arena.free(), free, "reads: {reads}");
        }
    });
}
