//! Reservations on the wire: the four commands, what they stop, what is told to whom, and what
//! survives. The tables are typed from the specification, not from the code.

use std::path::Path;
use std::time::Duration;

use lvolfs::block::AnyDevice;
use lvolfs::emulated::{Fault, FaultAction, Settings};
use lvolfs::hw::dma::DmaArena;
use lvolfs::nvmf::model::AnaState;
use lvolfs::nvmf::pdu::Digests;
use lvolfs::reactor::{Reactor, ReactorOptions};
use lvolfs::spec::command::{
    ALL_NAMESPACES, AdminOpcode, DsmRange, Feature, ForceUnitAccess, IdentifyKind, IoOpcode,
    SubmissionEntry,
};
use lvolfs::spec::log::LogPage;
use lvolfs::spec::reservation::{
    AcquireAction, HostId, PersistenceChange, RegisterAction, ReleaseAction,
};
use lvolfs::spec::status::StatusCode;
use lvolfs::units::{BlockSize, ByteCount, Lba, NamespaceId};
use lvolfs::volume::{DRAIN_LIMIT, Directory, Hosts, Keeping};
use zerocopy::IntoBytes;

use super::host::{Answer, Host, Identity};
use super::io::{exchange, pattern, read, with_opcode, write};
use super::pipe::Pipe;
use super::rig::{BLOCK, Connected, ONE, Rig, SUBSYSTEM, TWO, local, real_reactor, with_rig};
use crate::drive::EmulatedDrive;
use crate::fuse_operations::{Served, memory_device};

const CONFLICT: StatusCode = StatusCode::RESERVATION_CONFLICT;
const SUCCESS: StatusCode = StatusCode::SUCCESS;

/// A host by a letter: identifier and name.
pub(super) fn identity(letter: char) -> Identity {
    let nqn = format!("nqn.2026-11.io.lvolfs:{}", letter.to_ascii_lowercase());
    Identity { id: [letter as u8; 16], ..Identity::new(SUBSYSTEM, &nqn) }
}

/// A host's key: "A" has 0xa.
fn key(letter: char) -> u64 {
    u64::from(u32::from(letter)) - 0x37
}

fn keys(current: u64, other: u64) -> Vec<u8> {
    [current.to_le_bytes(), other.to_le_bytes()].concat()
}

fn register(action: RegisterAction) -> SubmissionEntry {
    SubmissionEntry::reservation_register(ONE, action, PersistenceChange::NONE)
}

fn acquire(action: AcquireAction, rtype: u8) -> SubmissionEntry {
    SubmissionEntry::reservation_acquire(ONE, action, rtype)
}

fn release(action: ReleaseAction, rtype: u8) -> SubmissionEntry {
    SubmissionEntry::reservation_release(ONE, action, rtype)
}

/// A host that may connect, with a controller that no time-out ends.
pub(super) async fn join(rig: &Rig, letter: char) -> Connected {
    allow(rig, letter);
    rig.connect_as(&identity(letter), 0).await
}

fn allow(rig: &Rig, letter: char) {
    let known = rig.model.subsystem(SUBSYSTEM).unwrap();
    if !known.hosts.contains(&identity(letter).host) {
        rig.model.add_host(SUBSYSTEM, &identity(letter).host).unwrap();
    }
}

impl Connected {
    async fn register(&mut self, key: u64) {
        self.io.run(register(RegisterAction::REGISTER), &keys(0, key), 0).await.ok();
    }

    async fn acquire(&mut self, key: u64, rtype: u8) {
        self.io.run(acquire(AcquireAction::ACQUIRE, rtype), &keys(key, 0), 0).await.ok();
    }

    async fn report(&mut self) -> Vec<u8> {
        let entry = SubmissionEntry::reservation_report(ONE, 64);
        self.io.run(entry, &[], 256).await.ok().data
    }

    async fn write(&mut self) -> StatusCode {
        self.io.run(write(3, 1), &pattern(3, 1), 0).await.status().code()
    }

    async fn read(&mut self) -> StatusCode {
        self.io.run(read(3, 1), &[], BLOCK as u32).await.status().code()
    }

    async fn notification(&mut self) -> Vec<u8> {
        notification(&mut self.admin, 64, false).await.ok().data
    }
}

async fn notification(admin: &mut Host<Pipe>, length: u32, retain: bool) -> Answer {
    let page = LogPage::RESERVATION_NOTIFICATION;
    let mut entry = SubmissionEntry::get_log_page(page, NamespaceId(0), length);
    if retain {
        entry.dword10.set(entry.dword10.get() | 1 << 15);
    }
    admin.run(entry, &[], length).await
}

fn feature(opcode: AdminOpcode, feature: Feature, id: NamespaceId, value: u32) -> SubmissionEntry {
    let mut entry = SubmissionEntry::set_features(feature, value);
    entry.opcode = opcode.0;
    entry.namespace.set(id.get());
    entry
}

async fn get(admin: &mut Host<Pipe>, which: Feature, id: NamespaceId) -> Answer {
    admin.plain(feature(AdminOpcode::GET_FEATURES, which, id, 0)).await
}

async fn set(admin: &mut Host<Pipe>, which: Feature, id: NamespaceId, value: u32) -> Answer {
    admin.plain(feature(AdminOpcode::SET_FEATURES, which, id, value)).await
}

#[test]
fn controllers_and_namespaces_say_what_they_can() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let admin = &mut connected.admin;
        let page = async |admin: &mut Host<Pipe>, kind, id| {
            let entry = SubmissionEntry::identify(IdentifyKind(kind), NamespaceId(id));
            admin.run(entry, &[], 4096).await.ok().data
        };
        assert_eq!(page(admin, 1, 0).await[520] & 1 << 5, 1 << 5, "ONCS");
        // Nothing here keeps reservations, so all but persistence.
        assert_eq!(page(admin, 0, 1).await[30..32], [1, 0xfe], "NMIC, RESCAP");
        assert_eq!(page(admin, 8, 1).await[1..3], [1, 0xfe]);
        let log = async |admin: &mut Host<Pipe>, page, length| {
            let entry = SubmissionEntry::get_log_page(LogPage(page), NamespaceId(0), length);
            admin.run(entry, &[], length).await.ok().data
        };
        let effects = log(admin, 5, 4096).await;
        for opcode in [0x0d, 0x0e, 0x11, 0x15] {
            assert_eq!(effects[1024 + 4 * opcode], 1);
        }
        let features = log(admin, 0x12, 1024).await;
        assert_eq!((features[4 * 0x82], features[4 * 0x83]), (1, 1));
        assert_eq!(log(admin, 0, 1024).await[4 * 0x80], 1);
    });
}

#[test]
fn a_report_is_laid_out_as_the_specification_says() {
    with_rig(async |rig| {
        let (mut a, mut b) = (join(&rig, 'A').await, join(&rig, 'B').await);
        // A second controller of A is the same registrant.
        let again = rig.connect_as(&identity('A'), 0).await;
        a.register(0xa).await;
        b.register(0x1_0000_000b).await;
        a.acquire(0xa, 3).await;
        let whole = b.report().await;
        let mut expected = vec![0; 256];
        // Generation 2, type 3, two registrants, nothing persists.
        expected[..10].copy_from_slice(&[2, 0, 0, 0, 3, 2, 0, 0, 0, 0]);
        expected[64..73].copy_from_slice(&[a.id as u8, 0, 1, 0, 0, 0, 0, 0, 0xa]);
        expected[80..96].fill(b'A');
        expected[128..137].copy_from_slice(&[b.id as u8, 0, 0, 0, 0, 0, 0, 0, 0xb]);
        expected[140] = 1;
        expected[144..160].fill(b'B');
        assert_eq!(whole, expected);
        // As much as is asked for.
        for dwords in [1, 3, 16, 17, 48] {
            let entry = SubmissionEntry::reservation_report(ONE, dwords);
            let part = b.io.run(entry, &[], dwords * 4).await.ok().data;
            assert_eq!(part, expected[..dwords as usize * 4]);
        }
        let entry = SubmissionEntry::reservation_report(ONE, 64);
        b.io.run(entry, &[], 252).await.is(StatusCode::DATA_SGL_LENGTH_INVALID);
        let mut basic = entry;
        basic.dword11.set(0);
        b.io.run(basic, &[], 256).await.is(StatusCode::HOST_ID_INCONSISTENT_FORMAT);
        for dwords in [(1 << 18) + 1, u32::MAX] {
            let entry = SubmissionEntry::reservation_report(ONE, dwords);
            b.io.run(entry, &[], 2 << 20).await.is(StatusCode::INVALID_FIELD);
        }
        let nowhere = SubmissionEntry::reservation_report(NamespaceId(9), 16);
        b.io.run(nowhere, &[], 64).await.is(StatusCode::INVALID_NAMESPACE);
        // A host without a controller.
        drop(a);
        drop(again);
        rig.served.reactor.sleep(Duration::from_millis(300)).await;
        expected[64..66].fill(0xff);
        assert_eq!(b.report().await, expected);
        b.io.run(release(ReleaseAction::CLEAR, 0), &keys(0x1_0000_000b, 0), 0).await.ok();
    });
}

#[test]
fn what_is_wrong_with_a_command_is_refused() {
    with_rig(async |rig| {
        let mut a = join(&rig, 'A').await;
        for entry in [
            register(RegisterAction::REGISTER),
            acquire(AcquireAction::ACQUIRE, 1),
            release(ReleaseAction::RELEASE, 1),
        ] {
            let size = if entry.opcode == 0x15 { 8 } else { 16 };
            let short = &keys(1, 1)[..size - 4];
            a.io.run(entry, short, 0).await.is(StatusCode::DATA_SGL_LENGTH_INVALID);
            a.io.plain(entry).await.is(StatusCode::DATA_SGL_LENGTH_INVALID);
            for id in [0, 9, u32::MAX] {
                let mut elsewhere = entry;
                elsewhere.namespace.set(id);
                let answer = a.io.run(elsewhere, &keys(0, 1), 0).await;
                answer.is(StatusCode::INVALID_NAMESPACE);
                assert!(answer.status().is_final());
            }
            let mut reserved = entry;
            reserved.dword10.set(entry.dword10.get() | 7);
            a.io.run(reserved, &keys(0, 1), 0).await.is(StatusCode::INVALID_FIELD);
        }
        // Nothing here keeps reservations.
        let persist = SubmissionEntry::reservation_register(
            ONE,
            RegisterAction::REGISTER,
            PersistenceChange::PERSIST,
        );
        a.io.run(persist, &keys(0, 1), 0).await.is(StatusCode::INVALID_FIELD);
        a.io.run(acquire(AcquireAction::ACQUIRE, 1), &keys(1, 0), 0).await.is(CONFLICT);
        assert_eq!(a.report().await[5], 0);
        // Not on the admin queue, where these numbers are other commands.
        let answer = a.admin.run(register(RegisterAction::REGISTER), &keys(0, 1), 0).await;
        answer.is(StatusCode::INVALID_OPCODE);
        // A path that is closed.
        let closed = AnaState::Inaccessible;
        rig.model.set_ana_state(SUBSYSTEM, local(), Some(1), closed).unwrap();
        let answer = a.io.run(register(RegisterAction::REGISTER), &keys(0, 1), 0).await;
        answer.is(StatusCode::ANA_INACCESSIBLE);
        let mask = get(&mut a.admin, Feature::RESERVATION_NOTIFICATION_MASK, ONE).await;
        mask.is(StatusCode::ANA_INACCESSIBLE);
        rig.model.set_ana_state(SUBSYSTEM, local(), Some(1), AnaState::Optimized).unwrap();
    });
}

/// Who may read and write under types 0 to 6: holder, registrant, and a host that is neither.
const RIGHTS: [[&str; 7]; 3] = [
    ["rw", "rw", "rw", "rw", "rw", "rw", "rw"],
    ["rw", "r-", "--", "rw", "rw", "rw", "rw"],
    ["rw", "r-", "--", "r-", "--", "r-", "--"],
];

/// Every I/O command that there is, each valid: its status for the host of `io`, by name.
async fn every_command(io: &mut Host<Pipe>) -> Vec<(&'static str, &'static str, StatusCode)> {
    let (zeros, none): (&[u8], &[u8]) = (&[0; BLOCK], &[]);
    let force = |mut entry: SubmissionEntry| {
        entry.dword12.set(entry.dword12.get() | 1 << 30);
        entry
    };
    let deallocate = |mut entry: SubmissionEntry| {
        entry.dword12.set(entry.dword12.get() | 1 << 25);
        entry
    };
    let with = |opcode| with_opcode(opcode, 5, 1);
    let dsm = |bits| {
        let mut entry = with(IoOpcode::DATASET_MANAGEMENT);
        entry.dword10.set(0);
        entry.dword11.set(bits);
        entry.dword12.set(0);
        entry
    };
    let range = DsmRange::new(Lba(5), 1);
    let nothing = DsmRange::new(Lba(5), 0);
    let mut copy = with(IoOpcode::COPY);
    copy.dword12.set(0);
    let mut source = [0; 32];
    source[8] = 6;
    let block = BLOCK as u32;
    let commands = [
        ("read", "r", read(5, 1), none, block),
        ("read with FUA", "r", force(read(5, 1)), none, block),
        ("compare", "r", with(IoOpcode::COMPARE), zeros, 0),
        ("compare with FUA", "r", force(with(IoOpcode::COMPARE)), zeros, 0),
        ("verify", "r", with(IoOpcode::VERIFY), none, 0),
        ("write", "w", write(5, 1), zeros, 0),
        ("write with FUA", "w", force(write(5, 1)), zeros, 0),
        ("write zeroes", "w", with(IoOpcode::WRITE_ZEROES), none, 0),
        ("write zeroes, FUA", "w", force(with(IoOpcode::WRITE_ZEROES)), none, 0),
        ("write zeroes, DEAC", "w", deallocate(with(IoOpcode::WRITE_ZEROES)), none, 0),
        ("deallocate", "w", dsm(4), range.as_bytes(), 0),
        ("deallocate nothing", "w", dsm(4), nothing.as_bytes(), 0),
        ("dataset hints", "w", dsm(3), range.as_bytes(), 0),
        ("flush", "w", SubmissionEntry::flush(ONE), none, 0),
        ("flush of all", "w", SubmissionEntry::flush(ALL_NAMESPACES), none, 0),
        ("copy", "rw", copy, &source[..], 0),
    ];
    let mut found = Vec::new();
    for (name, needs, entry, data, room) in commands {
        let answer = io.run(entry, data, room).await;
        found.push((name, needs, answer.status().code()));
    }
    let compare = with(IoOpcode::COMPARE);
    let (one, two) = exchange(io, compare, zeros, write(5, 1), zeros).await;
    let failed = StatusCode::ABORTED_FAILED_FUSED;
    let both = match (one, two) {
        (SUCCESS, SUCCESS) => SUCCESS,
        (CONFLICT, other) | (other, CONFLICT) if other == failed => CONFLICT,
        other => panic!("compare and write: {other:?}"),
    };
    found.push(("compare and write", "rw", both));
    found
}

#[test]
fn every_command_of_every_role_under_every_type() {
    with_rig(async |rig| {
        let mut a = join(&rig, 'A').await;
        let mut b = join(&rig, 'B').await;
        let mut c = join(&rig, 'C').await;
        a.register(0xa).await;
        b.register(0xb).await;
        for rtype in 0..=6_u8 {
            if rtype > 0 {
                a.acquire(0xa, rtype).await;
            }
            for (row, io) in RIGHTS.iter().zip([&mut a.io, &mut b.io, &mut c.io]) {
                let may = row[usize::from(rtype)];
                for (name, needs, status) in every_command(io).await {
                    let allowed = needs.chars().all(|need| may.contains(need));
                    let expected = if allowed { SUCCESS } else { CONFLICT };
                    assert_eq!(status, expected, "{name} under type {rtype} by one who may {may}");
                }
            }
            // What reservations never stop.
            assert_eq!(c.report().await[4], rtype);
            get(&mut c.admin, Feature::RESERVATION_PERSISTENCE, ONE).await.ok();
            let identify = SubmissionEntry::identify(IdentifyKind(0), ONE);
            c.admin.run(identify, &[], 4096).await.ok();
            if rtype > 0 {
                let entry = release(ReleaseAction::RELEASE, rtype);
                a.io.run(entry, &keys(0xa, 0), 0).await.ok();
            }
        }
        // Which half of a pair is told of the conflict: the one that has it.
        let zeros = vec![0; BLOCK];
        let failed = StatusCode::ABORTED_FAILED_FUSED;
        let compare = with_opcode(IoOpcode::COMPARE, 5, 1);
        for (rtype, expected) in [(1, (failed, CONFLICT)), (2, (CONFLICT, failed))] {
            a.acquire(0xa, rtype).await;
            assert_eq!(exchange(&mut c.io, compare, &zeros, write(5, 1), &zeros).await, expected);
            a.io.run(release(ReleaseAction::RELEASE, rtype), &keys(0xa, 0), 0).await.ok();
        }
        // The other namespace has its own.
        a.acquire(0xa, 2).await;
        let elsewhere = SubmissionEntry::write(TWO, Lba(5), 1, ForceUnitAccess::No);
        c.io.run(elsewhere, &zeros, 0).await.ok();
        a.io.run(release(ReleaseAction::CLEAR, 0), &keys(0xa, 0), 0).await.ok();
    });
}

/// A hosts's role is kept over a reset, a disconnect and a time-out, and found by every controller
/// that it makes.
#[test]
fn a_role_survives_what_ends_controllers() {
    with_rig(async |rig| {
        let mut a = join(&rig, 'A').await;
        let mut b = join(&rig, 'B').await;
        a.register(0xa).await;
        a.acquire(0xa, 2).await;
        assert_eq!((a.write().await, b.read().await), (SUCCESS, CONFLICT));
        // A reset.
        a.admin.set_configuration(0x0046_0000).await;
        assert_eq!(b.read().await, CONFLICT);
        a.admin.set_configuration(0x0046_0001).await;
        a.io = rig.initialized().await;
        a.io.connect_io(&identity('A'), a.id, 1, 128, true).await.ok();
        assert_eq!((a.write().await, b.read().await), (SUCCESS, CONFLICT));
        // A disconnect without a word.
        drop(a);
        rig.served.reactor.sleep(Duration::from_millis(300)).await;
        assert_eq!(b.read().await, CONFLICT);
        // A time-out.
        let a = rig.connect_as(&identity('A'), 15_000).await;
        rig.served.reactor.sleep(Duration::from_secs(20)).await;
        assert_eq!(rig.target.controllers().len(), 1, "B's");
        drop(a);
        assert_eq!(b.read().await, CONFLICT);
        // Two controllers at once, of which one is shut down.
        let mut one = join(&rig, 'A').await;
        let mut two = join(&rig, 'A').await;
        assert_eq!((one.write().await, two.write().await), (SUCCESS, SUCCESS));
        one.admin.set_configuration(0x0046_4001).await;
        assert_eq!((two.write().await, b.read().await), (SUCCESS, CONFLICT));
        two.io.run(release(ReleaseAction::CLEAR, 0), &keys(0xa, 0), 0).await.ok();
        assert_eq!(b.read().await, SUCCESS);
    });
}

/// An admin queue with an event request that waits.
struct Listener {
    admin: Host<Pipe>,
    _io: Host<Pipe>,
}

impl Listener {
    async fn new(rig: &Rig, letter: char) -> Self {
        let Connected { mut admin, io, .. } = join(rig, letter).await;
        admin.submit(SubmissionEntry::async_event_request(), &[], 0).await;
        Self { admin, _io: io }
    }

    /// Whether the event was told, after everything before it; then another request waits.
    async fn told(&mut self, rig: &Rig) -> bool {
        rig.served.reactor.sleep(Duration::from_millis(1)).await;
        let mut keep_alive = SubmissionEntry::async_event_request();
        keep_alive.opcode = AdminOpcode::KEEP_ALIVE.0;
        let id = self.admin.submit(keep_alive, &[], 0).await;
        let mut told = false;
        loop {
            let answer = self.admin.complete().await.unwrap().ok();
            if answer.completion.command_id() == id {
                return told;
            }
            assert_eq!(answer.result(), 0x0080_0006, "type 6, information 0, page 80h");
            assert!(!told, "told twice");
            told = true;
            self.admin.submit(SubmissionEntry::async_event_request(), &[], 0).await;
        }
    }

    /// The notifications that wait: type and namespace.
    async fn read_all(&mut self) -> Vec<(u8, u8)> {
        let mut found = Vec::new();
        loop {
            let page = notification(&mut self.admin, 64, false).await.ok().data;
            if page[8] == 0 {
                assert_eq!(page, [0; 64]);
                return found;
            }
            found.push((page[8], page[12]));
        }
    }
}

/// Each row: the type that A holds, who sends what, and who is told what: "B2" is event 2 for B.
/// A, B and C are registered; D is not.
const NOTIFICATIONS: &[(&[u8], &str, &str)] = &[
    (&[0, 1, 2, 3, 4, 5, 6], "B registers", ""),
    (&[1, 2, 3, 4, 5, 6], "A acquires", ""),
    (&[1, 2, 3, 4], "B releases", ""),
    (&[5, 6], "B releases", "A2 C2"),
    (&[1, 2], "A releases", ""),
    (&[3, 4, 5, 6], "A releases", "B2 C2"),
    (&[0, 1, 2, 5, 6], "A leaves", ""),
    (&[3, 4], "A leaves", "B2 C2"),
    (&[1, 2, 3, 4, 5, 6], "B leaves", ""),
    (&[0, 1, 2, 3, 4, 5, 6], "A clears", "B3 C3"),
    (&[0, 1, 2, 3, 4, 5, 6], "B clears", "A3 C3"),
    (&[0, 5, 6], "B preempts A", "A1"),
    (&[1, 2, 3, 4], "B preempts A", "A1 C2"),
    (&[0, 1, 2, 3, 4, 5, 6], "B preempts C", "C1"),
    (&[0, 1, 2, 3, 4, 5, 6], "B aborts C", "C1"),
    (&[1, 2, 3, 4], "B aborts A", "A1 C2"),
    (&[1, 2, 3, 4], "A preempts A", ""),
    (&[1, 2, 3, 4], "A preempts A for another type", "B2 C2"),
    (&[5, 6], "B preempts all", "A1 C1"),
];

fn command(rtype: u8, words: &str) -> (char, SubmissionEntry, Vec<u8>) {
    let mut parts = words.split(' ');
    let sender = parts.next().unwrap().chars().next().unwrap();
    let verb = parts.next().unwrap();
    let own = key(sender);
    let victim = match parts.next() {
        Some("all") | None => 0,
        Some(letter) => key(letter.chars().next().unwrap()),
    };
    let taken = if words.ends_with("another type") { rtype % 6 + 1 } else { rtype.max(1) };
    let (entry, data) = match verb {
        "registers" => (register(RegisterAction::REGISTER), keys(0, own)),
        "leaves" => (register(RegisterAction::UNREGISTER), keys(own, 0)),
        "acquires" => (acquire(AcquireAction::ACQUIRE, rtype), keys(own, 0)),
        "releases" => (release(ReleaseAction::RELEASE, rtype), keys(own, 0)),
        "clears" => (release(ReleaseAction::CLEAR, 0), keys(own, 0)),
        "preempts" => (acquire(AcquireAction::PREEMPT, taken), keys(own, victim)),
        "aborts" => (acquire(AcquireAction::PREEMPT_AND_ABORT, taken), keys(own, victim)),
        _ => panic!("{words}"),
    };
    (sender, entry, data)
}

#[test]
fn each_event_tells_whom_the_table_says() {
    with_rig(async |rig| {
        let letters = ['A', 'B', 'C', 'D'];
        let (mut hosts, mut listeners) = (Vec::new(), Vec::new());
        for letter in letters {
            hosts.push(join(&rig, letter).await);
            // All controllers of a host are told.
            listeners.push((letter, Listener::new(&rig, letter).await));
            listeners.push((letter, Listener::new(&rig, letter).await));
        }
        for (types, words, expected) in NOTIFICATIONS {
            for &rtype in *types {
                rig.catalog.reset_reservations(&rig.volumes[0], true).await.unwrap();
                for (index, letter) in ['A', 'B', 'C'].into_iter().enumerate() {
                    hosts[index].register(key(letter)).await;
                }
                if rtype > 0 {
                    hosts[0].acquire(0xa, rtype).await;
                }
                for (_, listener) in &mut listeners {
                    listener.told(&rig).await;
                    listener.read_all().await;
                }
                let (sender, entry, data) = command(rtype, words);
                let index = sender as usize - 'A' as usize;
                hosts[index].io.run(entry, &data, 0).await.ok();
                for (letter, listener) in &mut listeners {
                    let what = format!("{words} under type {rtype}, at {letter}");
                    let mut told = expected.split(' ').filter(|told| told.starts_with(*letter));
                    let event = told.next().map(|told| told[1..].parse::<u8>().unwrap());
                    assert_eq!(listener.told(&rig).await, event.is_some(), "{what}");
                    let pages: Vec<_> = event.map(|event| (event, 1)).into_iter().collect();
                    assert_eq!(listener.read_all().await, pages, "{what}");
                }
            }
        }
        rig.catalog.reset_reservations(&rig.volumes[0], true).await.unwrap();
    });
}

#[test]
fn masks_suppress_and_resets_forget() {
    with_rig(async |rig| {
        const MASK: Feature = Feature::RESERVATION_NOTIFICATION_MASK;
        let (mut a, mut b) = (join(&rig, 'A').await, join(&rig, 'B').await);
        let admin = &mut b.admin;
        assert_eq!(get(admin, MASK, ONE).await.ok().result(), 0);
        set(admin, MASK, TWO, 0b1000).await.ok();
        assert_eq!(get(admin, MASK, TWO).await.ok().result(), 0b1000);
        assert_eq!(get(admin, MASK, ONE).await.ok().result(), 0);
        // All at once; reserved bits are dropped.
        set(admin, MASK, ALL_NAMESPACES, 0xffff_fff5).await.ok();
        for id in [ONE, TWO] {
            assert_eq!(get(admin, MASK, id).await.ok().result(), 0b0100);
        }
        get(admin, MASK, ALL_NAMESPACES).await.is(StatusCode::INVALID_FIELD);
        for id in [0, 9] {
            get(admin, MASK, NamespaceId(id)).await.is(StatusCode::INVALID_NAMESPACE);
            set(admin, MASK, NamespaceId(id), 0).await.is(StatusCode::INVALID_NAMESPACE);
        }
        let mut saved = feature(AdminOpcode::SET_FEATURES, MASK, ONE, 0);
        saved.dword10.set(saved.dword10.get() | 1 << 31);
        admin.plain(saved).await.is(StatusCode::FEATURE_NOT_SAVEABLE);
        // Each bit suppresses the event with its number; events are 2, 3 and 1 in this order.
        for bits in (0..16).step_by(2) {
            set(&mut b.admin, MASK, ONE, bits).await.ok();
            a.register(0xa).await;
            b.register(0xb).await;
            a.acquire(0xa, 3).await;
            a.io.run(release(ReleaseAction::RELEASE, 3), &keys(0xa, 0), 0).await.ok();
            a.io.run(release(ReleaseAction::CLEAR, 0), &keys(0xa, 0), 0).await.ok();
            a.register(0xa).await;
            b.register(0xb).await;
            let preempt = acquire(AcquireAction::PREEMPT, 1);
            a.io.run(preempt, &keys(0xa, 0xb), 0).await.ok();
            a.io.run(release(ReleaseAction::CLEAR, 0), &keys(0xa, 0), 0).await.ok();
            let expected: Vec<u8> =
                [2, 3, 1].into_iter().filter(|event| bits >> event & 1 == 0).collect();
            for (index, event) in expected.iter().enumerate() {
                let left = (expected.len() - index - 1) as u8;
                // A part of the page can be looked at without taking it.
                let part = notification(&mut b.admin, 16, false).await.ok().data;
                let page = b.notification().await;
                assert_eq!(part, page[..16]);
                assert_eq!((page[8], page[9], page[12]), (*event, left, 1), "mask {bits:#b}");
            }
            assert_eq!(b.notification().await, [0; 64], "mask {bits:#b}");
        }
        // A reset forgets masks, pages and the event.
        set(&mut b.admin, MASK, ONE, 0b0010).await.ok();
        a.register(0xa).await;
        b.register(0xb).await;
        a.io.run(release(ReleaseAction::CLEAR, 0), &keys(0xa, 0), 0).await.ok();
        b.admin.set_configuration(0x0046_0000).await;
        a.register(0xa).await;
        b.admin.set_configuration(0x0046_0001).await;
        assert_eq!(b.notification().await, [0; 64]);
        assert_eq!(get(&mut b.admin, MASK, ONE).await.ok().result(), 0);
        a.io.run(release(ReleaseAction::CLEAR, 0), &keys(0xa, 0), 0).await.ok();
    });
}

/// An event is told once until its page is read without "retain"; a namespace that goes takes its
/// pages with it.
#[test]
fn events_are_armed_by_reading() {
    with_rig(async |rig| {
        let mut a = join(&rig, 'A').await;
        let mut b = join(&rig, 'B').await;
        let mut listener = Listener::new(&rig, 'B').await;
        for round in 0..3 {
            a.register(0xa).await;
            b.register(0xb).await;
            a.io.run(release(ReleaseAction::CLEAR, 0), &keys(0xa, 0), 0).await.ok();
            let told = listener.told(&rig).await;
            match round {
                0 => assert!(told),
                1 => {
                    assert!(!told, "told, and not read");
                    let page = notification(&mut listener.admin, 64, true).await.ok().data;
                    assert_eq!((page[0], page[9]), (1, 1));
                }
                _ => {
                    assert!(!told, "read, but retained");
                    assert_eq!(listener.read_all().await, [(3, 1); 2]);
                }
            }
        }
        a.register(0xa).await;
        b.register(0xb).await;
        a.io.run(release(ReleaseAction::CLEAR, 0), &keys(0xa, 0), 0).await.ok();
        assert!(listener.told(&rig).await);
        let namespace = rig.model.subsystem(SUBSYSTEM).unwrap().namespaces[&ONE].clone();
        rig.model.remove_namespace(SUBSYSTEM, ONE).unwrap();
        assert_eq!(listener.read_all().await, []);
        let new = lvolfs::nvmf::model::NewNamespace {
            id: Some(ONE),
            ..lvolfs::nvmf::model::NewNamespace::of("p", namespace.volume, namespace.key)
        };
        rig.model.add_namespace(SUBSYSTEM, new).unwrap();
        a.register(0xa).await;
        a.io.run(release(ReleaseAction::CLEAR, 0), &keys(0xa, 0), 0).await.ok();
    });
}

/// The drive holds a write of B while A preempts it. Plain, A is answered at once; with abort, when
/// the write has ended. From then on B is refused, also where its data was still to come.
#[test]
fn preempt_and_abort_waits_for_what_is_in_flight() {
    let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
    let arena = DmaArena::new(ByteCount(32 << 20), false).unwrap();
    let size = (ByteCount(64 << 20), BlockSize::B4096);
    let drive = EmulatedDrive::open(&reactor, &arena, size, Settings::default(), 3);
    let emulated = &drive.emulated;
    let device = AnyDevice::Nvme(drive.device.clone());
    reactor.block_on(async {
        let served = Served::format_in(&reactor, device, arena.clone(), Directory::default());
        let rig = Rig::of(served.await).await;
        let mut a = join(&rig, 'A').await;
        let mut b = join(&rig, 'B').await;
        let mut other = join(&rig, 'B').await;
        assert_eq!(a.write().await, SUCCESS, "the cluster is allocated");
        for action in [AcquireAction::PREEMPT, AcquireAction::PREEMPT_AND_ABORT] {
            a.register(0xa).await;
            b.register(0xb).await;
            a.io.run(acquire(AcquireAction::ACQUIRE, 3), &keys(0xa, 0), 0).await.ok();
            emulated.inject(Fault::new(FaultAction::Hold).on_opcode(IoOpcode::WRITE.0));
            let held = b.io.submit(write(3, 1), &pattern(1, 1), 0).await;
            reactor.sleep(Duration::from_millis(1)).await;
            // A write whose data the target has asked for.
            let (late, bytes) = b.io.capsule(write(4, 1), &pattern(2, 1), 0, false);
            b.io.send(&bytes).await;
            reactor.sleep(Duration::from_millis(1)).await;
            let preempt = a.io.submit(acquire(action, 3), &keys(0xa, 0xb), 0).await;
            reactor.sleep(Duration::from_millis(1)).await;
            // B is refused by every controller, others are served.
            assert_eq!(other.write().await, CONFLICT);
            let late_answer = b.io.complete().await.unwrap();
            assert_eq!(late_answer.completion.command_id(), late, "the held write is not answered");
            late_answer.is(CONFLICT);
            let report = SubmissionEntry::reservation_report(ONE, 16);
            let report = a.io.submit(report, &[], 64).await;
            let mut answered = Vec::new();
            while answered.last() != Some(&report) {
                answered.push(a.io.complete().await.unwrap().ok().completion.command_id());
            }
            let at_once = action == AcquireAction::PREEMPT;
            assert_eq!(answered.contains(&preempt), at_once, "{action:?}");
            emulated.release_held();
            let done = b.io.complete().await.unwrap().ok();
            assert_eq!(done.completion.command_id(), held);
            if !at_once {
                let done = a.io.complete().await.unwrap().ok();
                assert_eq!(done.completion.command_id(), preempt);
            }
            a.io.run(release(ReleaseAction::CLEAR, 0), &keys(0xa, 0), 0).await.ok();
        }
        // What does not end in time: the sender is told, and the new state is in force.
        a.register(0xa).await;
        b.register(0xb).await;
        a.acquire(0xa, 3).await;
        emulated.inject(Fault::new(FaultAction::Hold).on_opcode(IoOpcode::WRITE.0));
        let held = b.io.submit(write(3, 1), &pattern(1, 1), 0).await;
        reactor.sleep(Duration::from_millis(1)).await;
        let before = reactor.now();
        let abort = acquire(AcquireAction::PREEMPT_AND_ABORT, 3);
        let answer = a.io.run(abort, &keys(0xa, 0xb), 0).await;
        answer.is(StatusCode::COMMAND_INTERRUPTED);
        let waited = reactor.now().since(before);
        assert!((DRAIN_LIMIT..Duration::from_secs(30)).contains(&waited), "{waited:?}");
        assert_eq!((other.write().await, a.write().await), (CONFLICT, SUCCESS));
        emulated.release_held();
        let done = b.io.complete().await.unwrap().ok();
        assert_eq!(done.completion.command_id(), held);
        drop((a, b, other));
        rig.service.drain().await;
    });
    reactor.block_on(drive.controller.shut_down()).unwrap();
}

fn arena() -> DmaArena {
    DmaArena::new(ByteCount(32 << 20), false).unwrap()
}

fn directory(keeping: Keeping) -> Directory {
    Directory::new(Hosts::new(HostId::new(*b"the local mount.").unwrap(), keeping))
}

/// What persists is in force before the first I/O of the next target; what does not is gone. The
/// state is durable before the answer: the old target is not closed.
#[test]
fn reservations_persist_over_a_restart() {
    const PERSIST: Feature = Feature::RESERVATION_PERSISTENCE;
    let folder = tempfile::tempdir().unwrap();
    let reactor = real_reactor();
    reactor.block_on(async {
        for keeping in [Keeping::Folder(folder.path().into()), Keeping::Volume] {
            let device = memory_device(64 << 20, BlockSize::B4096);
            let served =
                Served::format_in(&reactor, device.clone(), arena(), directory(keeping.clone()))
                    .await;
            let rig = Rig::of(served).await;
            let mut a = join(&rig, 'A').await;
            let mut b = join(&rig, 'B').await;
            let identify = SubmissionEntry::identify(IdentifyKind(0), ONE);
            assert_eq!(a.admin.run(identify, &[], 4096).await.ok().data[31], 0xff, "RESCAP");
            b.register(0xb).await;
            assert_eq!(get(&mut a.admin, PERSIST, ONE).await.ok().result(), 0);
            let persist = SubmissionEntry::reservation_register(
                ONE,
                RegisterAction::REGISTER,
                PersistenceChange::PERSIST,
            );
            a.io.run(persist, &keys(0, 0xa), 0).await.ok();
            a.acquire(0xa, 4).await;
            assert_eq!(get(&mut b.admin, PERSIST, ONE).await.ok().result(), 1);
            let before = a.report().await;
            assert_eq!(before[9], 1, "PTPLS");
            let arena = rig.served.arena.clone();
            let again =
                |directory| Served::open_in(&reactor, device.clone(), arena.clone(), directory);
            let rig = Rig::of(again(directory(keeping.clone())).await).await;
            let mut a = join(&rig, 'A').await;
            let mut b = join(&rig, 'B').await;
            let mut c = join(&rig, 'C').await;
            assert_eq!((c.read().await, c.write().await), (CONFLICT, CONFLICT));
            assert_eq!((b.read().await, a.write().await), (SUCCESS, SUCCESS));
            let after = a.report().await;
            assert_eq!(after[4..10], before[4..10], "type, registrants, persistence");
            assert_eq!(after[66..128], before[66..128], "B, who registered first");
            // Switched off by the feature, also durably.
            set(&mut b.admin, PERSIST, ONE, 0).await.ok();
            assert_eq!(get(&mut a.admin, PERSIST, ONE).await.ok().result(), 0);
            assert_eq!(c.read().await, CONFLICT, "until a restart");
            let rig = Rig::of(again(directory(keeping.clone())).await).await;
            let mut c = join(&rig, 'C').await;
            assert_eq!((c.write().await, c.report().await[5]), (SUCCESS, 0));
            // And on again for every namespace.
            set(&mut c.admin, PERSIST, ALL_NAMESPACES, 1).await.ok();
            for id in [ONE, TWO] {
                assert_eq!(get(&mut c.admin, PERSIST, id).await.ok().result(), 1);
            }
            get(&mut c.admin, PERSIST, ALL_NAMESPACES).await.is(StatusCode::INVALID_FIELD);
            let nowhere = get(&mut c.admin, PERSIST, NamespaceId(0)).await;
            nowhere.is(StatusCode::INVALID_NAMESPACE);
        }
    });
}

/// Behind a fence nobody reads or writes, and registration commands answer.
#[test]
fn a_fenced_namespace_answers_registration_commands() {
    let folder = tempfile::tempdir().unwrap();
    let reactor = real_reactor();
    reactor.block_on(async {
        let keeping = Keeping::Folder(folder.path().into());
        let device = memory_device(64 << 20, BlockSize::B4096);
        let served =
            Served::format_in(&reactor, device.clone(), arena(), directory(keeping.clone())).await;
        let rig = Rig::of(served).await;
        let file = format!("{}.json", rig.volumes[0].uuid());
        let file = Path::join(folder.path(), file);
        std::fs::write(&file, b"{\"ptpl\": tru").unwrap();
        let arena = rig.served.arena.clone();
        let served = Served::open_in(&reactor, device, arena, directory(keeping)).await;
        let rig = Rig::of(served).await;
        let mut a = join(&rig, 'A').await;
        let mut b = join(&rig, 'B').await;
        for (name, _, status) in every_command(&mut a.io).await {
            assert_eq!(status, CONFLICT, "{name}");
        }
        let persist = SubmissionEntry::reservation_register(
            ONE,
            RegisterAction::REGISTER,
            PersistenceChange::PERSIST,
        );
        a.io.run(persist, &keys(0, 0xa), 0).await.ok();
        b.register(0xb).await;
        for entry in [
            acquire(AcquireAction::ACQUIRE, 1),
            acquire(AcquireAction::PREEMPT, 1),
            release(ReleaseAction::RELEASE, 0),
            release(ReleaseAction::CLEAR, 0),
        ] {
            a.io.run(entry, &keys(0xa, 0xb), 0).await.is(CONFLICT);
        }
        let report = b.report().await;
        assert_eq!((report[4], report[5], report[9]), (0, 2, 0));
        assert_eq!(a.write().await, CONFLICT);
        assert_eq!(std::fs::read(&file).unwrap(), b"{\"ptpl\": tru");
        rig.catalog.reset_reservations(&rig.volumes[0], false).await.unwrap();
        assert_eq!((a.write().await, b.write().await), (SUCCESS, SUCCESS));
        a.acquire(0xa, 1).await;
        assert_eq!((a.write().await, b.write().await), (SUCCESS, CONFLICT));
    });
}

/// A command that cannot be stored fails, may be tried again, and changes nothing.
#[test]
fn what_cannot_be_stored_is_not_done() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone");
    std::fs::create_dir(&gone).unwrap();
    let reactor = real_reactor();
    reactor.block_on(async {
        let device = memory_device(64 << 20, BlockSize::B4096);
        let keeping = Keeping::Folder(gone.clone());
        let rig =
            Rig::of(Served::format_in(&reactor, device, arena(), directory(keeping)).await).await;
        let mut a = rig.connect_with(Digests::default(), 0, false).await;
        let persist = SubmissionEntry::reservation_register(
            ONE,
            RegisterAction::REGISTER,
            PersistenceChange::PERSIST,
        );
        std::fs::remove_dir(&gone).unwrap();
        let failed = a.io.run(persist, &keys(0, 0xa), 0).await;
        failed.is(StatusCode::INTERNAL_ERROR);
        assert!(!failed.status().is_final());
        assert_eq!(a.report().await[5], 0);
        std::fs::create_dir(&gone).unwrap();
        a.io.run(persist, &keys(0, 0xa), 0).await.ok();
        assert_eq!(a.report().await[5], 1);
        assert_eq!(std::fs::read_dir(&gone).unwrap().count(), 1);
    });
}
