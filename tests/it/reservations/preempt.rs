//! The cases of Preempt and of Preempt and Abort.

use lvolfs::reservation::{Acquire, Holder, Key, ReservationType, Reservations};
use lvolfs::spec::status::StatusCode;

use super::{acquire, host, picture, scene, told};

/// A has taken the reservation; B and C share a key; D is one more. Keys are the letters, but for
/// C, which has B's.
const REGISTRANTS: [(char, u64); 4] = [('A', 0xa), ('B', 0xb), ('C', 0xb), ('D', 0xd)];
/// The types that one registrant holds.
const ONE_HOLDER: [u8; 4] = [1, 2, 3, 4];
/// The types that all registrants hold.
const ALL_HOLD: [u8; 2] = [5, 6];

fn kind(wire: u8) -> ReservationType {
    ReservationType::from_wire(wire).unwrap()
}

/// What becomes of `state` when `sender` preempts `victim` to take `new`: by both commands, which
/// differ in nothing but what must be drained.
#[track_caller]
fn preempt(
    state: &Reservations,
    sender: char,
    victim: u64,
    new: u8,
) -> Result<(String, Reservations), StatusCode> {
    let own = state.key_of(host(sender)).unwrap();
    let plain = acquire(Acquire::Preempt(Key(victim)), own, kind(new));
    let abort = acquire(Acquire::PreemptAndAbort(Key(victim)), own, kind(new));
    let aborted = state.apply(host(sender), &abort);
    let outcome = match state.apply(host(sender), &plain) {
        Ok(outcome) => outcome,
        Err(status) => {
            assert_eq!(aborted.unwrap_err(), status);
            return Err(status);
        }
    };
    let aborted = aborted.unwrap();
    assert_eq!((&aborted.after, told(&aborted)), (&outcome.after, told(&outcome)));
    assert!(outcome.abort.is_empty());
    // To be drained: exactly those others that are no longer registered.
    let gone = |one: &char| {
        *one != sender
            && state.key_of(host(*one)).is_some()
            && outcome.after.key_of(host(*one)).is_none()
    };
    let gone: Vec<_> = ['A', 'B', 'C', 'D'].into_iter().filter(gone).map(host).collect();
    assert_eq!(aborted.abort, gone);
    assert_eq!(outcome.after.generation(), state.generation() + 1);
    Ok((format!("{}:{}", picture(&outcome.after), told(&outcome)), outcome.after))
}

#[track_caller]
fn check(state: &Reservations, sender: char, victim: u64, new: u8, expected: &str) -> Reservations {
    let (found, after) = preempt(state, sender, victim, new).unwrap();
    assert_eq!(found, expected, "{sender} preempts {victim:#x} to take {new}");
    after
}

/// Case 1: nobody holds anything. Registrants go; nothing is taken.
#[test]
fn without_a_reservation_registrants_go() {
    let state = scene(&REGISTRANTS, None);
    for new in 1..=6 {
        check(&state, 'A', 0xb, new, "AD:B1 C1");
        check(&state, 'D', 0xa, new, "BCD:A1");
        // A host that names its own key goes too, untold.
        check(&state, 'D', 0xd, new, "ABC:");
        check(&state, 'B', 0xb, new, "AD:C1");
        let after = check(&state, 'A', 0xd, new, "ABC:D1");
        assert_eq!(after.reservation(), None);
        assert_eq!(preempt(&state, 'A', 0x99, new).unwrap_err(), StatusCode::RESERVATION_CONFLICT);
        assert_eq!(preempt(&state, 'A', 0, new).unwrap_err(), StatusCode::INVALID_FIELD);
    }
}

/// Case 2: the holder's key is named. Its registrants go, and the sender takes over.
#[test]
fn the_holders_key_gives_the_reservation() {
    for old in ONE_HOLDER {
        let state = scene(&REGISTRANTS, Some(kind(old)));
        for new in ONE_HOLDER {
            let after = check(&state, 'D', 0xa, new, "BCD*:A1 B2 C2");
            let held = after.reservation().unwrap();
            assert_eq!(
                (held.reservation_type(), held.holder()),
                (kind(new), Holder::Host(host('D')))
            );
            // A sender with the holder's key stays, the others with it go.
            let shared = scene(&[('B', 0xb), ('A', 0xa), ('C', 0xb)], Some(kind(old)));
            check(&shared, 'C', 0xb, new, "AC*:A2 B1");
        }
        for new in ALL_HOLD {
            let after = check(&state, 'D', 0xa, new, "B*C*D*:A1 B2 C2");
            let held = after.reservation().unwrap();
            assert_eq!(
                (held.reservation_type(), held.holder()),
                (kind(new), Holder::AllRegistrants)
            );
        }
    }
}

/// Case 2, by the holder itself: it changes its type, and the others learn if it did.
#[test]
fn a_holder_that_preempts_itself_changes_its_type() {
    for old in ONE_HOLDER {
        let state = scene(&REGISTRANTS, Some(kind(old)));
        for new in 1..=6 {
            let expected = match new {
                _ if new == old => "A*BCD:",
                5 | 6 => "A*B*C*D*:B2 C2 D2",
                _ => "A*BCD:B2 C2 D2",
            };
            let after = check(&state, 'A', 0xa, new, expected);
            assert_eq!(after.reservation().unwrap().reservation_type(), kind(new));
        }
        // Others with its key go all the same.
        let shared = scene(&[('A', 0xa), ('B', 0xa), ('C', 0xc)], Some(kind(old)));
        check(&shared, 'A', 0xa, old, "A*C:B1");
    }
}

/// Case 3: another key than the holder's. Registrants go, the reservation stays as it is.
#[test]
fn another_key_leaves_the_reservation() {
    for old in ONE_HOLDER {
        let state = scene(&REGISTRANTS, Some(kind(old)));
        for new in 1..=6 {
            for (sender, victim, expected) in [
                ('A', 0xb, "A*D:B1 C1"),
                ('D', 0xb, "A*D:B1 C1"),
                ('B', 0xd, "A*BC:D1"),
                ('B', 0xb, "A*D:C1"),
                ('D', 0xd, "A*BC:"),
            ] {
                let after = check(&state, sender, victim, new, expected);
                assert_eq!(after.reservation(), state.reservation());
            }
            for sender in ['A', 'B'] {
                let unknown = preempt(&state, sender, 0x99, new).unwrap_err();
                assert_eq!(unknown, StatusCode::RESERVATION_CONFLICT);
                assert_eq!(preempt(&state, sender, 0, new).unwrap_err(), StatusCode::INVALID_FIELD);
            }
        }
    }
}

/// Case 4: all registrants hold, and key zero names them. All others go, and the sender takes.
#[test]
fn key_zero_takes_from_all_registrants() {
    for old in ALL_HOLD {
        let state = scene(&REGISTRANTS, Some(kind(old)));
        for new in 1..=6 {
            for (sender, expected) in
                [('A', "A*:B1 C1 D1"), ('B', "B*:A1 C1 D1"), ('D', "D*:A1 B1 C1")]
            {
                let after = check(&state, sender, 0, new, expected);
                let held = after.reservation().unwrap();
                assert_eq!(held.reservation_type(), kind(new));
                let alone = Holder::Host(host(sender));
                let holder = if new >= 5 { Holder::AllRegistrants } else { alone };
                assert_eq!(held.holder(), holder);
            }
            let alone = scene(&[('A', 0xa)], Some(kind(old)));
            check(&alone, 'A', 0, new, "A*:");
        }
    }
}

/// Case 5: all registrants hold, and a key names some. They go; the reservation stays while there
/// is a registrant.
#[test]
fn a_key_removes_some_of_all_registrants() {
    for old in ALL_HOLD {
        let state = scene(&REGISTRANTS, Some(kind(old)));
        for new in 1..=6 {
            for (sender, victim, expected) in [
                ('A', 0xb, "A*D*:B1 C1"),
                ('D', 0xa, "B*C*D*:A1"),
                ('B', 0xb, "A*D*:C1"),
                ('A', 0xa, "B*C*D*:"),
            ] {
                let after = check(&state, sender, victim, new, expected);
                assert_eq!(after.reservation(), state.reservation());
            }
            let unknown = preempt(&state, 'A', 0x99, new).unwrap_err();
            assert_eq!(unknown, StatusCode::RESERVATION_CONFLICT);
            let same = scene(&[('A', 1), ('B', 1)], Some(kind(old)));
            let nobody = check(&same, 'A', 1, new, ":B1");
            assert_eq!(nobody.reservation(), None);
        }
    }
}
