//! Random reservation commands of several hosts over several controllers, against the model of
//! `reservations/model.rs`: on one reactor all that can be seen, on several what is acknowledged.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use lvolfs::block::AnyDevice;
use lvolfs::hw::dma::DmaArena;
use lvolfs::nvmf::pdu::Digests;
use lvolfs::nvmf::service::Service;
use lvolfs::nvmf::target::{Peer, Target};
use lvolfs::reactor::policy::SpinPermits;
use lvolfs::reactor::{Clock, Reactor, ReactorOptions, Remote, Wait};
use lvolfs::spec::command::SubmissionEntry;
use lvolfs::spec::log::LogPage;
use lvolfs::spec::reservation::HostId;
use lvolfs::spec::status::StatusCode;
use lvolfs::units::{BlockSize, ByteCount, NamespaceId};
use lvolfs::volume::{Catalog, Directory, Hosts, Keeping, Pool, Store};

use super::host::{Host, Identity};
use super::io::{pattern, read, write};
use super::pipe;
use super::rig::{BLOCK, Connected, ONE, Rig, SUBSYSTEM, local};
use crate::fuse_operations::{Served, memory_device};
use crate::reservations::model::{HOSTS, Model, Raw, host};

const CONTROLLERS: usize = 2;

fn identity(number: u8) -> Identity {
    let nqn = format!("nqn.2026-11.io.lvolfs:host-{number}");
    Identity { id: host(number).bytes(), ..Identity::new(SUBSYSTEM, &nqn) }
}

/// Reservations are kept in the volume: that needs no other thread, and so no luck.
fn directory() -> Directory {
    let local = HostId::new(*b"the local mount.").unwrap();
    Directory::new(Hosts::new(local, Keeping::Volume))
}

fn arena() -> DmaArena {
    DmaArena::new(ByteCount(32 << 20), false).unwrap()
}

async fn rig(served: Served) -> Rig {
    let rig = Rig::of(served).await;
    for number in 0..HOSTS {
        rig.model.add_host(SUBSYSTEM, &identity(number).host).unwrap();
    }
    rig
}

async fn join_all(rig: &Rig) -> Vec<Vec<Connected>> {
    let mut hosts = Vec::new();
    for number in 0..HOSTS {
        let mut controllers = Vec::new();
        for _ in 0..CONTROLLERS {
            controllers.push(rig.connect_as(&identity(number), 0).await);
        }
        hosts.push(controllers);
    }
    hosts
}

/// The types of the notifications that wait.
async fn notifications(connected: &mut Connected) -> Vec<u8> {
    let page = LogPage::RESERVATION_NOTIFICATION;
    let entry = SubmissionEntry::get_log_page(page, NamespaceId(0), 64);
    let mut found = Vec::new();
    loop {
        let page = connected.admin.run(entry, &[], 64).await.ok().data;
        if page[8] == 0 {
            return found;
        }
        found.push(page[8]);
    }
}

async fn may_write(connected: &mut Connected) -> bool {
    let status = connected.io.run(write(1, 1), &pattern(1, 1), 0).await.status();
    assert!(status.is_success() || status.is(StatusCode::RESERVATION_CONFLICT), "{status}");
    status.is_success()
}

async fn may_read(connected: &mut Connected) -> bool {
    let status = connected.io.run(read(1, 1), &[], BLOCK as u32).await.status();
    assert!(status.is_success() || status.is(StatusCode::RESERVATION_CONFLICT), "{status}");
    status.is_success()
}

/// Everything that hosts can see is what the model says.
async fn check(
    model: &Model,
    hosts: &mut [Vec<Connected>],
    random: &mut fastrand::Rng,
    what: &str,
) {
    let mut expected = model.report();
    for entry in expected[64..].chunks_mut(64) {
        let controllers = &hosts[usize::from(entry[0])];
        let lowest = controllers.iter().map(|one| one.id).min().unwrap();
        entry[..2].copy_from_slice(&lowest.to_le_bytes());
    }
    let asker = &mut hosts[random.usize(..usize::from(HOSTS))][random.usize(..CONTROLLERS)];
    let report = SubmissionEntry::reservation_report(ONE, (expected.len() / 4) as u32);
    let found = asker.io.run(report, &[], expected.len() as u32).await.ok().data;
    assert_eq!(found, expected, "{what}");
    for (number, controllers) in (0..HOSTS).zip(hosts) {
        for connected in controllers.iter_mut() {
            let told = model.told.iter().filter(|(told, _)| *told == number);
            let expected: Vec<u8> = told.map(|(_, event)| *event).collect();
            assert_eq!(notifications(connected).await, expected, "{what}: to host {number}");
        }
        let connected = &mut controllers[random.usize(..CONTROLLERS)];
        let found = (may_read(connected).await, may_write(connected).await);
        assert_eq!(found, model.may(number), "{what}: host {number} reads and writes");
    }
}

#[test]
fn random_commands_do_on_the_wire_what_the_model_says() {
    for seed in 0..12 {
        let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
        reactor.block_on(async {
            let mut random = fastrand::Rng::with_seed(seed);
            let device = memory_device(64 << 20, BlockSize::B4096);
            let served = Served::format_in(&reactor, device.clone(), arena(), directory()).await;
            let mut rig = rig(served).await;
            let mut hosts = join_all(&rig).await;
            let mut model = Model::default();
            for step in 0..50 {
                let sender = random.u8(..HOSTS);
                let raw = Raw::random(&mut random, &model, sender);
                let what =
                    format!("seed {seed}, step {step}: {sender} sends {raw:x?} to {model:?}");
                let connected = &mut hosts[usize::from(sender)][random.usize(..CONTROLLERS)];
                let (entry, data) = raw.wire();
                let status = connected.io.run(entry, &data, 0).await.status();
                match model.execute(sender, &raw) {
                    Ok(()) => assert!(status.is_success(), "{what}: {status}"),
                    Err(code) => assert!(status.is(code), "{what}: {status}"),
                }
                check(&model, &mut hosts, &mut random, &what).await;
                model.told.clear();
                match random.u8(..30) {
                    // A target that is not closed, and the next one.
                    0 => {
                        let arena = rig.served.arena.clone();
                        let next = Served::open_in(&reactor, device.clone(), arena, directory());
                        rig = self::rig(next.await).await;
                        hosts = join_all(&rig).await;
                        model.restart();
                        check(&model, &mut hosts, &mut random, &format!("{what}: restart")).await;
                    }
                    1 => {
                        let connected = &mut hosts[usize::from(sender)][0];
                        connected.admin.set_configuration(0x0046_0000).await;
                        connected.admin.set_configuration(0x0046_0001).await;
                        connected.io = rig.initialized().await;
                        let joined = &identity(sender);
                        connected.io.connect_io(joined, connected.id, 1, 128, true).await.ok();
                    }
                    2 => {
                        let again = rig.connect_as(&identity(sender), 0).await;
                        hosts[usize::from(sender)][1] = again;
                        // The old one notices.
                        reactor.sleep(Duration::from_millis(300)).await;
                    }
                    _ => {}
                }
            }
        });
    }
}

/// A reactor on the machine's clock.
fn real_reactor(index: usize) -> Rc<Reactor> {
    let permits = SpinPermits::new(1);
    let clock = Clock::Real(std::time::Instant::now());
    Reactor::new(ReactorOptions { index, wait: Wait::Sleep, permits, clock }).unwrap()
}

/// A controller with one I/O queue, both on the reactor of `service`.
async fn controller(service: &Rc<Service>, identity: &Identity) -> Connected {
    let stream = || {
        let (ours, theirs) = pipe::pair();
        let peer = Peer { local: local(), remote: "127.0.0.1:5000".parse().unwrap() };
        service.serve(theirs, peer);
        ours
    };
    let mut admin = Host::initialize(stream(), Digests::default(), 0).await;
    let id = admin.connect_admin(identity, 0).await;
    let mut io = Host::initialize(stream(), Digests::default(), 0).await;
    io.connect_io(identity, id, 1, 128, true).await.ok();
    Connected { id, admin, io }
}

/// How a thread gets to what the first reactor made.
struct Way {
    directory: Directory,
    pool: Arc<Pool>,
    store: Remote<Store>,
    device: AnyDevice,
    target: Arc<Target>,
}

/// What the threads share.
#[derive(Default)]
struct Shared {
    /// The states in the order of the commands; each may be in force from its entry on.
    history: RwLock<Vec<Model>>,
    /// How many of those commands were answered: the state of each is in force from then on.
    answered: AtomicUsize,
    over: AtomicBool,
    /// Writes that were refused, and that were done.
    counts: [AtomicUsize; 2],
}

/// Hosts that write on one reactor, until it is over. Each answer must be one that some state gives
/// that was in force between the write's begin and its end.
async fn write_on(reactor: &Rc<Reactor>, way: Way, shared: &Shared, seed: u64) {
    let arena = DmaArena::new(ByteCount(8 << 20), false).unwrap();
    let catalog = Rc::new(Catalog::new(reactor, &arena, &way.directory));
    let channel = way.device.channel(reactor, &arena).unwrap();
    catalog.attach(&way.pool, way.store, channel).await.unwrap();
    let service = Service::new(&catalog, &way.target);
    let mut hosts = Vec::new();
    for number in 0..HOSTS {
        hosts.push(controller(&service, &identity(number)).await);
    }
    let mut random = fastrand::Rng::with_seed(seed);
    while !shared.over.load(Ordering::SeqCst) {
        let number = random.u8(..HOSTS);
        let from = shared.answered.load(Ordering::SeqCst);
        let done = may_write(&mut hosts[usize::from(number)]).await;
        let right = {
            let states = shared.history.read().unwrap();
            states[from..].iter().any(|state| state.may(number).1 == done)
        };
        assert!(right, "seed {seed}: a write of host {number} from state {from}: {done}");
        shared.counts[usize::from(done)].fetch_add(1, Ordering::SeqCst);
    }
    drop(hosts);
    service.drain().await;
}

#[test]
fn no_reactor_acknowledges_a_write_that_the_model_forbids() {
    const REACTORS: usize = 2;
    let seed = 11;
    let shared = Arc::new(Shared::default());
    shared.history.write().unwrap().push(Model::default());
    let ways: Arc<Mutex<Vec<std::sync::mpsc::Sender<Way>>>> = Arc::default();
    let mut threads = Vec::new();
    for index in 1..=REACTORS {
        let (tell, told) = std::sync::mpsc::channel();
        ways.lock().unwrap().push(tell);
        let shared = Arc::clone(&shared);
        threads.push(std::thread::spawn(move || {
            let reactor = real_reactor(index);
            let way = told.recv().unwrap();
            reactor.block_on(write_on(&reactor, way, &shared, seed + index as u64));
        }));
    }
    let reactor = real_reactor(0);
    reactor.block_on(async {
        let device = memory_device(64 << 20, BlockSize::B4096);
        let served = Served::format_in(&reactor, device.clone(), arena(), directory()).await;
        let rig = rig(served).await;
        let mut hosts = join_all(&rig).await;
        for tell in ways.lock().unwrap().iter() {
            let way = Way {
                directory: rig.served.directory.clone(),
                pool: Arc::clone(&rig.served.pool),
                store: rig.served.store(),
                device: device.clone(),
                target: Arc::clone(&rig.target),
            };
            tell.send(way).unwrap();
        }
        let mut random = fastrand::Rng::with_seed(seed);
        let mut model = Model::default();
        // The others may start late: commands go on until there was enough to look at.
        let enough = || shared.counts.iter().all(|count| count.load(Ordering::SeqCst) >= 200);
        let one_has_ended =
            |threads: &[JoinHandle<()>]| threads.iter().any(JoinHandle::is_finished);
        for step in 0..100_000 {
            if step >= 300 && enough() || one_has_ended(&threads) {
                break;
            }
            let sender = random.u8(..HOSTS);
            let raw = Raw::random(&mut random, &model, sender);
            let mut next = model.clone();
            let expected = next.execute(sender, &raw);
            if expected.is_ok() {
                shared.history.write().unwrap().push(next.clone());
            }
            let connected = &mut hosts[usize::from(sender)][random.usize(..CONTROLLERS)];
            let (entry, data) = raw.wire();
            let status = connected.io.run(entry, &data, 0).await.status();
            let what = format!("seed {seed}, step {step}: {sender} sends {raw:x?} to {model:?}");
            match expected {
                Ok(()) => {
                    assert!(status.is_success(), "{what}: {status}");
                    shared.answered.fetch_add(1, Ordering::SeqCst);
                    model = next;
                }
                Err(code) => assert!(status.is(code), "{what}: {status}"),
            }
            // What this reactor serves is judged by the new state at once.
            let number = random.u8(..HOSTS);
            let found = may_write(&mut hosts[usize::from(number)][0]).await;
            assert_eq!(found, model.may(number).1, "{what}: then host {number} writes");
        }
        assert!(enough() || one_has_ended(&threads), "{:?}", shared.counts);
        shared.over.store(true, Ordering::SeqCst);
        // Their last operations may need this reactor.
        while !threads.iter().all(JoinHandle::is_finished) {
            reactor.sleep(Duration::from_millis(1)).await;
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop(hosts);
        rig.service.drain().await;
        rig.served.close().await;
    });
}
