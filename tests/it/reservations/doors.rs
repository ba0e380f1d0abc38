//! Reservations at a volume's gate: every operation of every host, on every reactor, and what is
//! kept of them.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use lvolfs::block::memory::MemoryDevice;
use lvolfs::block::{AnyChannel, AnyDevice, Durability};
use lvolfs::emulated::{Fault, FaultAction, Settings};
use lvolfs::fuse::errno::Errno;
use lvolfs::fuse::openings::Openings;
use lvolfs::fuse::operations::Operations;
use lvolfs::fuse::reply::Reply;
use lvolfs::fuse::request::{Caller, FileHandle, NodeId, Operation, Request};
use lvolfs::hw::dma::{DmaArena, DmaBuffer};
use lvolfs::lvol::FormatOptions;
use lvolfs::lvol::format::LayoutOptions;
use lvolfs::reactor::policy::SpinPermits;
use lvolfs::reactor::{Clock, Reactor, ReactorOptions, Wait};
use lvolfs::reservation::{
    Acquire, Command, ExistingKey, Key, Persistence, Register, ReservationType, Reservations,
    Rights,
};
use lvolfs::spec::command::IoOpcode;
use lvolfs::spec::status::StatusCode;
use lvolfs::units::{BlockSize, ByteCount, ByteOffset};
use lvolfs::volume::{
    Attributes, Catalog, Directory, Entry, Error, Hosts, Keeping, NewVolume, Pool, PoolOwner,
    RESERVATIONS_ATTRIBUTE, Store, Volume,
};

use super::{acquire, host, kinds, register};
use crate::drive::EmulatedDrive;

const SIZE: u64 = 4 << 20;
const BLOCK: usize = 4096;
/// The local mount in these tests.
const LOCAL: char = 'C';

fn defaults() -> Attributes {
    Attributes::new(0o600, 0, 0)
}

/// A pool `p` with a volume `v` on one reactor.
pub(super) struct Rig {
    arena: DmaArena,
    directory: Directory,
    pool: Arc<Pool>,
    owner: Rc<PoolOwner>,
    catalog: Rc<Catalog>,
    entry: Arc<Entry>,
}

impl Rig {
    async fn format(reactor: &Rc<Reactor>, channel: AnyChannel, keeping: Keeping) -> Self {
        let arena = DmaArena::new(ByteCount(16 << 20), false).unwrap();
        Self::format_in(reactor, arena, channel, keeping).await
    }

    pub(super) async fn format_in(
        reactor: &Rc<Reactor>,
        arena: DmaArena,
        channel: AnyChannel,
        keeping: Keeping,
    ) -> Self {
        let layout = LayoutOptions { cluster_size: ByteCount(64 << 10), ..Default::default() };
        let options = FormatOptions { name: "p".into(), uuid: None, layout };
        Store::format(&channel, &arena, &options).await.unwrap();
        Self::open(reactor, arena, channel, keeping).await
    }

    pub(super) async fn open(
        reactor: &Rc<Reactor>,
        arena: DmaArena,
        channel: AnyChannel,
        keeping: Keeping,
    ) -> Self {
        let store = Store::open(channel.clone(), reactor, &arena).await.unwrap();
        let remote = store.remote().unwrap();
        let directory = Directory::new(Hosts::new(host(LOCAL), keeping));
        let (owner, pool) = PoolOwner::open(reactor, store, &directory, defaults()).await.unwrap();
        let catalog = Rc::new(Catalog::new(reactor, &arena, &directory));
        catalog.attach(&pool, remote, channel).await.unwrap();
        let entry = match directory.find_volume(pool.key(), "v") {
            Some(entry) => entry,
            None => {
                let (name, size) = ("v".to_owned(), ByteCount(SIZE));
                let new = NewVolume { name, size, thin: true, uuid: None, attributes: None };
                catalog.create(&pool, new).await.unwrap()
            }
        };
        Self { arena, directory, pool, owner, catalog, entry }
    }

    pub(super) fn uuid(&self) -> uuid::Uuid {
        self.entry.uuid()
    }

    pub(super) fn reservations(&self) -> Arc<Reservations> {
        self.entry.gate().reservations()
    }

    pub(super) async fn close(&self) {
        self.owner.close(&self.pool).await.unwrap();
    }

    async fn volume(&self, letter: char) -> Rc<Volume> {
        self.catalog.volume_for(self.entry.key(), host(letter)).await.unwrap()
    }

    pub(super) async fn reserve(&self, letter: char, command: Command) -> Result<(), Error> {
        self.catalog.reserve(&self.entry, host(letter), command).await
    }

    /// A and B register with keys 0xa and 0xb, and A takes `kind`.
    async fn scene(&self, kind: Option<ReservationType>, persist: bool) {
        for (letter, key) in [('A', 0xa), ('B', 0xb)] {
            self.reserve(letter, join(key, persist)).await.unwrap();
        }
        if let Some(kind) = kind {
            self.reserve('A', acquire(Acquire::Acquire, Key(0xa), kind)).await.unwrap();
        }
    }

    fn data(&self, byte: u8) -> DmaBuffer {
        let mut buffer = self.arena.allocate(BLOCK).unwrap();
        buffer.fill(byte);
        buffer
    }

    pub(super) async fn can_write(&self, letter: char) -> bool {
        let volume = self.volume(letter).await;
        match volume.write(ByteOffset(0), self.data(1), Durability::Cached).await {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error, Error::ReservationConflict);
                false
            }
        }
    }

    async fn can_read(&self, letter: char) -> bool {
        self.volume(letter).await.read(ByteOffset(0), BLOCK).await.is_ok()
    }
}

fn join(key: u64, persist: bool) -> Command {
    Command::Register {
        action: Register::Register(Key(key)),
        existing: ExistingKey::Ignored,
        persistence: persist.then_some(Persistence::ThroughPowerLoss),
    }
}

fn memory(reactor: &Rc<Reactor>, arena: &DmaArena) -> (AnyDevice, AnyChannel) {
    let device = AnyDevice::Memory(MemoryDevice::new(ByteCount(64 << 20), BlockSize::B4096));
    let channel = device.channel(reactor, arena).unwrap();
    (device, channel)
}

/// A reactor on the machine's clock, for what another thread does.
fn real_reactor(index: usize) -> Rc<Reactor> {
    let permits = SpinPermits::new(1);
    let clock = Clock::Real(std::time::Instant::now());
    Reactor::new(ReactorOptions { index, wait: Wait::Sleep, permits, clock }).unwrap()
}

fn conflicts<T>(result: &Result<T, Error>) -> bool {
    match result {
        Ok(_) => false,
        Err(Error::ReservationConflict) => true,
        Err(other) => panic!("{other}"),
    }
}

/// Each operation of a volume, by each role under each type, is a conflict exactly where the
/// specification's table has one.
#[test]
fn every_operation_of_every_host_passes_the_gate() {
    let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
    reactor.block_on(async {
        for kind in kinds() {
            let arena = DmaArena::new(ByteCount(16 << 20), false).unwrap();
            let (_device, channel) = memory(&reactor, &arena);
            let rig = Rig::format(&reactor, channel, Keeping::Nowhere).await;
            rig.scene(kind, false).await;
            for letter in ['A', 'B', 'C'] {
                let what = format!("{letter} under {kind:?}");
                let (may_read, may_write) = match (letter, kind.map(ReservationType::wire)) {
                    ('A', _) | (_, None) => (true, true),
                    ('B', Some(1)) | ('C', Some(1 | 3 | 5)) => (true, false),
                    ('B', Some(2)) | ('C', Some(_)) => (false, false),
                    _ => (true, true),
                };
                let volume = rig.volume(letter).await;
                let (zero, length) = (ByteOffset(0), BLOCK as u64);
                assert_eq!(!conflicts(&volume.read(zero, BLOCK).await), may_read, "{what}");
                let write = volume.write(zero, rig.data(1), Durability::Cached).await;
                let mut part = rig.data(1);
                drop(part.split_off(100));
                let partial = volume.write(ByteOffset(7), part, Durability::Cached).await;
                let writes = [
                    conflicts(&write),
                    conflicts(&partial),
                    conflicts(&volume.flush().await),
                    conflicts(&volume.discard(zero, length).await),
                    conflicts(&volume.write_zeroes(zero, length).await),
                    conflicts(&volume.allocate_range(zero, length).await),
                ];
                assert_eq!(writes, [!may_write; 6], "{what}");
            }
            // What changes the volume as a whole is done by the local mount, who is C.
            let state = rig.entry.gate().reservations();
            let may_read = state.rights(host(LOCAL)) != Rights::None;
            let may_write = state.rights(host(LOCAL)) == Rights::All;
            // Who may not read it may not read it by a copy either.
            let snapshot = rig.catalog.snapshot(&rig.entry, "snapshot").await;
            assert_eq!(!conflicts(&snapshot), may_read, "{kind:?}");
            // No host reads anything else after these.
            rig.catalog.inflate(&rig.entry).await.unwrap();
            let resize = rig.catalog.resize(&rig.entry, ByteCount(SIZE)).await;
            let grow = rig.catalog.grow_to(&rig.entry, ByteCount(SIZE)).await;
            let parent = match &snapshot {
                Ok(snapshot) => Arc::clone(snapshot),
                Err(_) => Arc::clone(&rig.entry),
            };
            let set_parent = rig.catalog.set_parent(&rig.entry, &parent).await;
            let set_parent = matches!(set_parent, Err(Error::ReservationConflict));
            let read_only = rig.catalog.set_read_only(&rig.entry).await;
            let delete = rig.catalog.delete(&rig.entry).await;
            let changes = [
                conflicts(&resize),
                conflicts(&grow),
                set_parent,
                conflicts(&read_only),
                conflicts(&delete),
            ];
            assert_eq!(changes, [!may_write; 5], "{kind:?}");
            rig.owner.close(&rig.pool).await.unwrap();
        }
    });
}

#[test]
fn a_file_answers_ebade() {
    let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
    reactor.block_on(async {
        let arena = DmaArena::new(ByteCount(16 << 20), false).unwrap();
        let (_device, channel) = memory(&reactor, &arena);
        let rig = Rig::format(&reactor, channel, Keeping::Nowhere).await;
        let openings = Arc::new(Openings::default());
        let operations = Operations::new(&rig.catalog, &openings, defaults());
        let node = NodeId(rig.entry.key().number());
        let caller = Caller { uid: 0, gid: 0, thread: 1 };
        let ask = async |operation: Operation, data: Option<DmaBuffer>| {
            let request = Request { unique: 2, node, caller, operation };
            match operations.handle(request, data).await {
                Reply::Error(errno) => Some(errno),
                _ => None,
            }
        };
        let (handle, size) = (FileHandle(0), BLOCK as u32);
        let write = || Operation::Write { handle, offset: 0, size, flags: 0 };
        let read = || Operation::Read { handle, offset: 0, size };
        assert_eq!(ask(write(), Some(rig.data(1))).await, None);
        rig.scene(Some(ReservationType::WriteExclusive), false).await;
        assert_eq!(ask(write(), Some(rig.data(1))).await, Some(Errno::EBADE));
        assert_eq!(ask(read(), None).await, None);
        let kind = ReservationType::ExclusiveAccess;
        rig.reserve('A', acquire(Acquire::Preempt(Key(0xa)), Key(0xa), kind)).await.unwrap();
        assert_eq!(ask(read(), None).await, Some(Errno::EBADE));
        rig.owner.close(&rig.pool).await.unwrap();
    });
}

/// A drive holds a write of B. A preempt of B is answered at once, a preempt and abort when the
/// write has ended; meanwhile B is refused, and others are served.
#[test]
fn preempt_and_abort_waits_for_what_is_in_flight() {
    let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
    let arena = DmaArena::new(ByteCount(16 << 20), false).unwrap();
    let size = (ByteCount(64 << 20), BlockSize::B4096);
    let drive = EmulatedDrive::open(&reactor, &arena, size, Settings::default(), 1);
    let emulated = &drive.emulated;
    let channel = AnyChannel::Nvme(drive.device.channel(&reactor, &arena).unwrap());
    reactor.block_on(async {
        let rig = Rig::format_in(&reactor, arena.clone(), channel, Keeping::Nowhere).await;
        assert!(rig.can_write('A').await, "the cluster is allocated");
        for abort in [false, true] {
            let kind = ReservationType::WriteExclusiveRegistrantsOnly;
            rig.scene((!abort).then_some(kind), false).await;
            emulated.inject(Fault::new(FaultAction::Hold).on_opcode(IoOpcode::WRITE.0));
            let volume = rig.volume('B').await;
            let data = rig.data(2);
            let write = reactor.task(async move {
                volume.write(ByteOffset(BLOCK as u64), data, Durability::Cached).await
            });
            reactor.sleep(Duration::from_millis(1)).await;
            let answered = Rc::new(std::cell::Cell::new(false));
            let (catalog, entry) = (Rc::clone(&rig.catalog), Arc::clone(&rig.entry));
            let preempt = {
                let answered = Rc::clone(&answered);
                reactor.task(async move {
                    let victim = Key(0xb);
                    let action = match abort {
                        true => Acquire::PreemptAndAbort(victim),
                        false => Acquire::Preempt(victim),
                    };
                    let command = acquire(action, Key(0xa), kind);
                    let result = catalog.reserve(&entry, host('A'), command).await;
                    answered.set(true);
                    result
                })
            };
            reactor.sleep(Duration::from_millis(1)).await;
            assert_eq!(answered.get(), !abort);
            assert!(!rig.can_write('B').await, "the new state is in force");
            assert!(rig.can_read('B').await && rig.can_write('A').await);
            emulated.release_held();
            assert_eq!(write.await, Ok(BLOCK));
            assert_eq!(preempt.await, Ok(()));
        }
        rig.owner.close(&rig.pool).await.unwrap();
    });
    reactor.block_on(drive.controller.shut_down()).unwrap();
}

/// What a restart finds, after a close and after a crash, kept in files and in the volume.
#[test]
fn a_restart_finds_the_same_state_before_the_first_io() {
    let folder = tempfile::tempdir().unwrap();
    let reactor = real_reactor(0);
    let arena = DmaArena::new(ByteCount(16 << 20), false).unwrap();
    reactor.block_on(async {
        for keeping in [Keeping::Folder(folder.path().into()), Keeping::Volume] {
            for crash in [false, true] {
                let (_device, channel) = memory(&reactor, &arena);
                let rig =
                    Rig::format_in(&reactor, arena.clone(), channel.clone(), keeping.clone()).await;
                rig.scene(Some(ReservationType::ExclusiveAccess), true).await;
                let before = rig.entry.gate().reservations();
                if !crash {
                    rig.owner.close(&rig.pool).await.unwrap();
                }
                let rig =
                    Rig::open(&reactor, arena.clone(), channel.clone(), keeping.clone()).await;
                let after = rig.entry.gate().reservations();
                assert_eq!(before.registrants(), after.registrants());
                assert_eq!(before.reservation(), after.reservation());
                assert!(!rig.can_read('B').await && !rig.can_read('C').await);
                assert!(rig.can_write('A').await);
                // Without persistence nothing is found.
                let volatile = Command::SetPersistence(Persistence::Volatile);
                rig.reserve('A', volatile).await.unwrap();
                let rig = Rig::open(&reactor, arena.clone(), channel, keeping.clone()).await;
                assert_eq!(*rig.entry.gate().reservations(), Reservations::default());
                assert!(rig.can_write('C').await);
            }
        }
    });
}

fn only_file(folder: &Path) -> std::path::PathBuf {
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

#[test]
fn damage_fences_the_volume_until_an_administrator_lifts_it() {
    let folder = tempfile::tempdir().unwrap();
    let reactor = real_reactor(0);
    let arena = DmaArena::new(ByteCount(16 << 20), false).unwrap();
    reactor.block_on(async {
        for keeping in [Keeping::Folder(folder.path().into()), Keeping::Volume] {
            let (_device, channel) = memory(&reactor, &arena);
            let rig =
                Rig::format_in(&reactor, arena.clone(), channel.clone(), keeping.clone()).await;
            rig.scene(Some(ReservationType::WriteExclusive), true).await;
            let not_fenced = rig.catalog.reset_reservations(&rig.entry, false).await;
            assert!(matches!(
                not_fenced,
                Err(Error::Reservation { status: StatusCode::INVALID_FIELD, .. })
            ));
            match &keeping {
                Keeping::Volume => {
                    rig.owner.set_xattr(&rig.entry, RESERVATIONS_ATTRIBUTE, b"{").await.unwrap();
                }
                _ => std::fs::write(only_file(folder.path()), b"{").unwrap(),
            }
            rig.owner.close(&rig.pool).await.unwrap();
            let rig = Rig::open(&reactor, arena.clone(), channel.clone(), keeping.clone()).await;
            for letter in ['A', 'B', 'C'] {
                assert!(!rig.can_read(letter).await && !rig.can_write(letter).await);
            }
            rig.reserve('A', join(5, true)).await.expect("registration commands answer");
            let kind = ReservationType::WriteExclusive;
            let refused = rig.reserve('A', acquire(Acquire::Acquire, Key(5), kind)).await;
            assert_eq!(refused, Err(Error::ReservationConflict));
            let reset = rig.catalog.reset_reservations(&rig.entry, false).await.unwrap();
            assert!(reset.fence.is_some() && reset.removed == 0);
            if keeping != Keeping::Volume {
                assert_eq!(std::fs::read(reset.set_aside.unwrap()).unwrap(), b"{");
            }
            assert!(rig.can_write('C').await);
            rig.reserve('A', acquire(Acquire::Acquire, Key(5), kind)).await.unwrap();
            rig.owner.close(&rig.pool).await.unwrap();
            let rig = Rig::open(&reactor, arena.clone(), channel.clone(), keeping.clone()).await;
            assert!(rig.can_write('A').await && !rig.can_write('C').await);
            let reset = rig.catalog.reset_reservations(&rig.entry, true).await.unwrap();
            assert_eq!((reset.fence, reset.removed), (None, 1));
            assert!(rig.can_write('C').await);
            // Deleting the volume leaves nothing of it but the evidence.
            rig.catalog.delete(&rig.entry).await.unwrap();
            if keeping != Keeping::Volume {
                let left = only_file(folder.path());
                assert!(left.to_str().unwrap().ends_with(".damaged-1"), "{left:?}");
            }
        }
    });
}

#[test]
fn what_cannot_be_stored_does_not_happen() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone");
    std::fs::create_dir(&gone).unwrap();
    let reactor = real_reactor(0);
    let arena = DmaArena::new(ByteCount(16 << 20), false).unwrap();
    reactor.block_on(async {
        let (_device, channel) = memory(&reactor, &arena);
        let rig = Rig::format(&reactor, channel, Keeping::Folder(gone.clone())).await;
        rig.scene(None, true).await;
        let before = rig.entry.gate().reservations();
        std::fs::remove_dir_all(&gone).unwrap();
        let take = acquire(Acquire::Acquire, Key(0xa), ReservationType::WriteExclusive);
        let failed = rig.reserve('A', take).await;
        assert!(matches!(
            failed,
            Err(Error::Reservation { status: StatusCode::INTERNAL_ERROR, .. })
        ));
        assert_eq!(rig.entry.gate().reservations(), before);
        assert!(rig.can_write('C').await);
        std::fs::create_dir(&gone).unwrap();
        rig.reserve('A', take).await.expect("the next one may succeed");
        assert!(!rig.can_write('C').await);
    });
}

#[test]
fn where_nothing_is_kept_nothing_may_be_asked_to_persist() {
    let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
    reactor.block_on(async {
        let arena = DmaArena::new(ByteCount(16 << 20), false).unwrap();
        let (_device, channel) = memory(&reactor, &arena);
        let rig = Rig::format(&reactor, channel, Keeping::Nowhere).await;
        let refused = rig.reserve('A', join(1, true)).await;
        assert!(matches!(
            refused,
            Err(Error::Reservation { status: StatusCode::INVALID_FIELD, .. })
        ));
        rig.owner.close(&rig.pool).await.unwrap();
    });
}

/// The states in the order of the commands, as a commander on one reactor made them, while hosts
/// on several reactors write. An answer is right if some state that was in force between the
/// write's begin and its end gives it.
#[test]
fn no_reactor_lets_through_what_no_state_in_force_allows() {
    const REACTORS: usize = 3;
    const HOSTS: [char; 3] = ['A', 'B', 'C'];
    let history: Arc<RwLock<Vec<Reservations>>> =
        Arc::new(RwLock::new(vec![Reservations::default()]));
    // Commands that were answered.
    let answered = Arc::new(AtomicUsize::new(0));
    let over = Arc::new(AtomicBool::new(false));
    // Writes that were refused, and that were done.
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let seed = 7;
    type Way = (Directory, Arc<Pool>, lvolfs::reactor::Remote<Store>, AnyDevice);
    let ways: Arc<Mutex<Vec<std::sync::mpsc::Sender<Way>>>> = Arc::default();
    let mut threads = Vec::new();
    for index in 1..=REACTORS {
        let (tell, told) = std::sync::mpsc::channel::<Way>();
        ways.lock().unwrap().push(tell);
        let (history, answered, over) =
            (Arc::clone(&history), Arc::clone(&answered), Arc::clone(&over));
        let counts = Arc::clone(&counts);
        threads.push(std::thread::spawn(move || {
            let reactor = real_reactor(index);
            let arena = DmaArena::new(ByteCount(4 << 20), false).unwrap();
            let (directory, pool, store, device) = told.recv().unwrap();
            reactor.block_on(async {
                let catalog = Catalog::new(&reactor, &arena, &directory);
                let channel = device.channel(&reactor, &arena).unwrap();
                catalog.attach(&pool, store, channel).await.unwrap();
                let key = directory.find_volume(pool.key(), "v").unwrap().key();
                let mut random = fastrand::Rng::with_seed(seed + index as u64);
                while !over.load(Ordering::SeqCst) {
                    let letter = HOSTS[random.usize(..3)];
                    let volume = catalog.volume_for(key, host(letter)).await.unwrap();
                    let data = arena.allocate(BLOCK).unwrap();
                    let at = ByteOffset((index * BLOCK) as u64);
                    let from = answered.load(Ordering::SeqCst);
                    let done = !conflicts(&volume.write(at, data, Durability::Cached).await);
                    let right = {
                        let states = history.read().unwrap();
                        let mut states = states[from..].iter();
                        states.any(|state| (state.rights(host(letter)) == Rights::All) == done)
                    };
                    assert!(
                        right,
                        "seed {seed}: reactor {index}, host {letter}, from state {from}: {done}"
                    );
                    counts[usize::from(done)].fetch_add(1, Ordering::SeqCst);
                    // Lets the reactor take its mail.
                    reactor.sleep(Duration::ZERO).await;
                }
            });
        }));
    }
    let reactor = real_reactor(0);
    let arena = DmaArena::new(ByteCount(16 << 20), false).unwrap();
    reactor.block_on(async {
        let (device, channel) = memory(&reactor, &arena);
        let rig = Rig::format_in(&reactor, arena.clone(), channel, Keeping::Nowhere).await;
        for tell in ways.lock().unwrap().iter() {
            let store = rig.owner.store().remote().unwrap();
            let way = (rig.directory.clone(), Arc::clone(&rig.pool), store, device.clone());
            tell.send(way).unwrap();
        }
        let mut random = fastrand::Rng::with_seed(seed);
        // The others may start late: commands go on until there was enough to look at.
        let enough = || counts.iter().all(|count| count.load(Ordering::SeqCst) >= 100);
        for step in 0..200_000 {
            if step >= 400 && enough() || threads.iter().any(JoinHandle::is_finished) {
                break;
            }
            let letter = HOSTS[random.usize(..3)];
            let state = rig.entry.gate().reservations();
            let key = state.key_of(host(letter)).unwrap_or(Key(u64::from(u32::from(letter))));
            let victim = Key(u64::from(u32::from(HOSTS[random.usize(..3)])));
            let kind = ReservationType::ALL[random.usize(..6)];
            let command = match random.u8(..8) {
                0..3 => register(Register::Register(key), ExistingKey::Ignored),
                3 => register(Register::Unregister, ExistingKey::Ignored),
                4 => acquire(Acquire::Acquire, key, kind),
                5 => acquire(Acquire::Preempt(victim), key, kind),
                6 => acquire(Acquire::PreemptAndAbort(victim), key, kind),
                _ => super::release(lvolfs::reservation::Release::Clear, key),
            };
            let Ok(outcome) = state.apply(host(letter), &command) else { continue };
            // It may be in force from here on, and is from its answer on.
            history.write().unwrap().push(outcome.after);
            rig.reserve(letter, command).await.unwrap();
            answered.fetch_add(1, Ordering::SeqCst);
        }
        assert!(enough() || threads.iter().any(JoinHandle::is_finished), "{counts:?}");
        over.store(true, Ordering::SeqCst);
        // Their last operations may need this reactor.
        while !threads.iter().all(JoinHandle::is_finished) {
            reactor.sleep(Duration::from_millis(1)).await;
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        rig.owner.close(&rig.pool).await.unwrap();
    });
}
