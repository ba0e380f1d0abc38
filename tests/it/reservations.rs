//! Reservations against the specification's tables, an obvious model, SPDK's files, and crashes.

mod doors;
pub(crate) mod files;
pub(crate) mod model;
mod power_cut;
mod preempt;
mod tables;

use lvolfs::reservation::{
    Acquire, Command, ExistingKey, Key, Outcome, Register, Release, ReservationType, Reservations,
};
use lvolfs::spec::reservation::HostId;

/// A host by a letter.
fn host(letter: char) -> HostId {
    HostId::new([letter as u8; 16]).unwrap()
}

fn register(action: Register, existing: ExistingKey) -> Command {
    Command::Register { action, existing, persistence: None }
}

fn acquire(action: Acquire, key: Key, reservation_type: ReservationType) -> Command {
    Command::Acquire { action, key, reservation_type }
}

fn release(action: Release, key: Key) -> Command {
    Command::Release { action, key }
}

/// The state after commands that must succeed.
fn after(start: &Reservations, commands: &[(char, Command)]) -> Reservations {
    commands.iter().fold(start.clone(), |state, (letter, command)| {
        state.apply(host(*letter), command).unwrap().after
    })
}

/// A state with these registrants, of which the first has taken `held`.
fn scene(registrants: &[(char, u64)], held: Option<ReservationType>) -> Reservations {
    let join = |&(letter, key)| {
        (letter, register(Register::Register(Key(key)), ExistingKey::Is(Key::ZERO)))
    };
    let mut commands: Vec<_> = registrants.iter().map(join).collect();
    if let Some(kind) = held {
        let (letter, key) = registrants[0];
        commands.push((letter, acquire(Acquire::Acquire, Key(key), kind)));
    }
    after(&Reservations::default(), &commands)
}

/// None and the six types.
fn kinds() -> impl Iterator<Item = Option<ReservationType>> {
    [None].into_iter().chain(ReservationType::ALL.into_iter().map(Some))
}

/// Registrants as letters, with a star at each holder: "A*BC".
fn picture(state: &Reservations) -> String {
    let one = |letter: u8| if state.is_holder(host(letter.into())) { "*" } else { "" };
    let letters = state.registrants().iter().map(|one| one.host.bytes()[0]);
    letters.map(|letter| format!("{}{}", char::from(letter), one(letter))).collect()
}

/// Who is told what, sorted: "B1 D2" for host B with event 1 and host D with event 2.
fn told(outcome: &Outcome) -> String {
    let mut told: Vec<_> = outcome
        .notifications
        .iter()
        .map(|told| format!("{}{}", char::from(told.host.bytes()[0]), told.event.wire().0))
        .collect();
    told.sort();
    told.join(" ")
}
