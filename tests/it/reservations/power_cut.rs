//! The power goes at each device command of reservation commands whose state is kept in the
//! volume. What the next opening finds is what was answered last, or what the command under way
//! was to bring about: never a third thing, and never an open volume where there was a reservation.
//!
//! A failure prints its seed and its command; `SEED=n cargo test --test it reservations::power_cut`
//! runs one seed.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use lvolfs::block::AnyChannel;
use lvolfs::block::nvme::{NvmeController, Wanted};
use lvolfs::emulated::{EmulatedController, Memory, MemoryGeometry, Settings};
use lvolfs::hw::dma::DmaArena;
use lvolfs::hw::event::EventFd;
use lvolfs::reactor::{Instant, Poller, Reactor, ReactorOptions, Registration};
use lvolfs::reservation::persistence::{decode, encode};
use lvolfs::reservation::{
    Acquire, Command, ExistingKey, Key, Persistence, Register, Release, ReservationType,
    Reservations, Rights,
};
use lvolfs::units::{BlockCount, BlockSize, ByteCount, NamespaceId};
use lvolfs::volume::Keeping;

use super::doors::Rig;
use super::{acquire, host, release};

const DISK: u64 = 8 << 20;
const HOSTS: [char; 3] = ['A', 'B', 'C'];
/// Commands of one run.
const COMMANDS: usize = 40;
/// What of the cache survives each cut, by chance.
const CUTS: u64 = 3;

/// A controller that carries out one command in each turn, and keeps a picture of its disk before
/// each: what a power cut at that moment would have to work with.
struct Stepped {
    emulated: Arc<EmulatedController>,
    commands: Cell<u64>,
    recording: Cell<bool>,
    pictures: RefCell<Vec<(u64, Memory)>>,
}

impl Poller for Stepped {
    fn poll(&self, _now: Instant) -> usize {
        if !self.emulated.has_work() {
            return 0;
        }
        if self.recording.get() {
            let picture = self.emulated.snapshot().unwrap();
            self.pictures.borrow_mut().push((self.commands.get() + 1, picture));
        }
        let done = self.emulated.step(1);
        self.commands.set(self.commands.get() + done as u64);
        done
    }

    fn outstanding(&self) -> bool {
        false
    }

    fn event(&self) -> Option<Arc<EventFd>> {
        None
    }
}

/// A drive with these contents, and our driver on it.
struct Drive {
    stepped: Rc<Stepped>,
    controller: NvmeController,
    channel: AnyChannel,
    _steps: Registration,
}

impl Drive {
    async fn new(reactor: &Rc<Reactor>, arena: &DmaArena, memory: Memory) -> Self {
        let emulated = EmulatedController::new(Settings::default(), memory).unwrap();
        let stepped = Rc::new(Stepped {
            emulated: Arc::clone(&emulated),
            commands: Cell::new(0),
            recording: Cell::new(false),
            pictures: RefCell::default(),
        });
        let steps = reactor.register(Rc::clone(&stepped) as Rc<dyn Poller>);
        let wanted = Wanted::new(Some(NamespaceId(1)), 1);
        let opened = NvmeController::open(reactor, arena, emulated, &wanted);
        let (controller, devices) = opened.await.unwrap();
        let channel = AnyChannel::Nvme(devices[0].channel(reactor, arena).unwrap());
        Self { stepped, controller, channel, _steps: steps }
    }

    /// Closes what was open on it, and gives its memory back.
    async fn end(self, rig: Rig) {
        rig.close().await;
        drop(self.channel);
        self.controller.shut_down().await.unwrap();
    }
}

/// What a restart makes of a state.
fn kept(state: &Reservations, rig: &Rig) -> Reservations {
    let uuid = rig.uuid();
    decode(&encode(state, uuid), uuid).unwrap()
}

/// A command that is likely to be one that succeeds.
fn random_command(random: &mut fastrand::Rng, letter: char, state: &Reservations) -> Command {
    let own = |letter: char| Key(u64::from(u32::from(letter)));
    let key = state.key_of(host(letter)).unwrap_or(own(letter));
    let victim = own(HOSTS[random.usize(..3)]);
    let kind = ReservationType::ALL[random.usize(..6)];
    let (existing, persistence) = (ExistingKey::Ignored, Some(Persistence::ThroughPowerLoss));
    match random.u8(..20) {
        0..8 => Command::Register { action: Register::Register(key), existing, persistence },
        8 => Command::Register { action: Register::Unregister, existing, persistence: None },
        9..13 => acquire(Acquire::Acquire, key, kind),
        13..15 => acquire(Acquire::Preempt(victim), key, kind),
        15 | 16 => acquire(Acquire::PreemptAndAbort(victim), key, kind),
        17 => Command::SetPersistence(Persistence::Volatile),
        18 => Command::SetPersistence(Persistence::ThroughPowerLoss),
        _ => release(Release::Clear, key),
    }
}

/// One run and all its cuts; returns how many there were.
async fn run(reactor: &Rc<Reactor>, seed: u64) -> usize {
    let arena = DmaArena::new(ByteCount(16 << 20), false).unwrap();
    let mut random = fastrand::Rng::with_seed(seed);
    let blocks = BlockCount(DISK >> BlockSize::B4096.shift());
    let memory = Memory::new(MemoryGeometry::new(BlockSize::B4096, blocks));
    let drive = Drive::new(reactor, &arena, memory).await;
    let rig = Rig::format_in(reactor, arena.clone(), drive.channel.clone(), Keeping::Volume).await;
    // What a restart may find from which command of the drive on: the state after each answer, and
    // the state that the next command was to bring about.
    let mut answered = vec![(0, kept(&Reservations::default(), &rig))];
    let mut begun = Vec::new();
    drive.stepped.recording.set(true);
    while answered.len() <= COMMANDS {
        let letter = HOSTS[random.usize(..3)];
        let state = rig.reservations();
        let command = random_command(&mut random, letter, &state);
        let Ok(outcome) = state.apply(host(letter), &command) else { continue };
        let first = drive.stepped.commands.get();
        rig.reserve(letter, command).await.unwrap();
        let last = drive.stepped.commands.get();
        let after = kept(&outcome.after, &rig);
        begun.push((first + 1..=last, after.clone()));
        answered.push((last, after));
    }
    drive.stepped.recording.set(false);
    let pictures = drive.stepped.pictures.take();
    drive.end(rig).await;
    let mut cuts = 0;
    for (number, picture) in pictures {
        let before = answered.iter().rev().find(|(last, _)| *last < number);
        let under_way = begun.iter().find(|(commands, _)| commands.contains(&number));
        let allowed: Vec<&Reservations> = before
            .map(|(_, state)| state)
            .into_iter()
            .chain(under_way.map(|(_, state)| state))
            .collect();
        for cut in 0..CUTS {
            let what = format!("seed {seed}, command {number}, cut {cut}");
            let mut memory = picture.clone();
            memory.power_cut(seed ^ number << 32 ^ cut << 56);
            let drive = Drive::new(reactor, &arena, memory).await;
            let rig =
                Rig::open(reactor, arena.clone(), drive.channel.clone(), Keeping::Volume).await;
            let found = rig.reservations();
            assert!(allowed.contains(&&*found), "{what}: found {found:?}, not {allowed:?}");
            for letter in HOSTS {
                let may = found.rights(host(letter)) == Rights::All;
                assert_eq!(rig.can_write(letter).await, may, "{what}: {letter}");
            }
            drive.end(rig).await;
            cuts += 1;
        }
    }
    // Else the cuts have shown nothing.
    assert!(begun.iter().any(|(_, state)| state.reservation().is_some()), "seed {seed}");
    cuts
}

#[test]
fn a_power_cut_leaves_the_old_state_or_the_new_in_the_volume() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..4).collect(),
    };
    for seed in seeds {
        let reactor = Reactor::new(ReactorOptions::deterministic()).unwrap();
        let cuts = reactor.block_on(run(&reactor, seed));
        assert!(cuts > 30, "seed {seed}: {cuts} cuts");
    }
}
