//! The power goes at each device command of reservation commands whose state is kept in the
//! volume. What the next opening finds is what was answered last, or what the command under way
//! was to bring about: never a third thing, and never an open volume where there was a reservation.
//!
//! A failure prints its seed and its command; `SEED=n cargo test --test it reservations::power_cut`
//! runs one seed.

use std::rc::Rc;

use lvolfs::block::AnyChannel;
use lvolfs::emulated::{Memory, MemoryGeometry};
use lvolfs::hw::dma::DmaArena;
use lvolfs::reactor::{Reactor, ReactorOptions};
use lvolfs::reservation::persistence::{decode, encode};
use lvolfs::reservation::{
    Acquire, Command, ExistingKey, Key, Persistence, Register, Release, ReservationType,
    Reservations, Rights,
};
use lvolfs::units::{BlockCount, BlockSize, ByteCount};
use lvolfs::volume::Keeping;

use super::doors::Rig;
use super::{acquire, host, release};
use crate::power::Drive;

const DISK: u64 = 8 << 20;
const HOSTS: [char; 3] = ['A', 'B', 'C'];
/// Commands of one run.
const COMMANDS: usize = 40;
/// What of the cache survives each cut, by chance.
const CUTS: u64 = 3;

/// A drive with these contents, and the channel to it.
async fn drive_of(reactor: &Rc<Reactor>, arena: &DmaArena, memory: Memory) -> (Drive, AnyChannel) {
    let drive = Drive::new(reactor, arena, memory, 1, None).await;
    let channel = drive.device.channel(reactor, arena).unwrap();
    (drive, channel)
}

/// Closes what is open on a drive, and gives its memory back.
async fn end(drive: Drive, rig: Rig) {
    rig.close().await;
    drop(rig);
    drive.end().await;
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
    let (drive, channel) = drive_of(reactor, &arena, memory).await;
    let rig = Rig::format_in(reactor, arena.clone(), channel, Keeping::Volume).await;
    // What a restart may find from which command of the drive on: the state after each answer, and
    // the state that the next command was to bring about.
    let mut answered = vec![(0, kept(&Reservations::default(), &rig))];
    let mut begun = Vec::new();
    drive.stepped.picture_each();
    while answered.len() <= COMMANDS {
        let letter = HOSTS[random.usize(..3)];
        let state = rig.reservations();
        let command = random_command(&mut random, letter, &state);
        let Ok(outcome) = state.apply(host(letter), &command) else { continue };
        let first = drive.stepped.commands();
        rig.reserve(letter, command).await.unwrap();
        let last = drive.stepped.commands();
        let after = kept(&outcome.after, &rig);
        begun.push((first + 1..=last, after.clone()));
        answered.push((last, after));
    }
    let pictures = drive.stepped.pictures();
    end(drive, rig).await;
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
            let (drive, channel) = drive_of(reactor, &arena, memory).await;
            let rig = Rig::open(reactor, arena.clone(), channel, Keeping::Volume).await;
            let found = rig.reservations();
            assert!(allowed.contains(&&*found), "{what}: found {found:?}, not {allowed:?}");
            for letter in HOSTS {
                let may = found.rights(host(letter)) == Rights::All;
                assert_eq!(rig.can_write(letter).await, may, "{what}: {letter}");
            }
            end(drive, rig).await;
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
