//! Type by role by command, against tables typed from the specification.

use lvolfs::reservation::{
    Access, Acquire, Command, ExistingKey, Gate, IdentifierSize, Key, Persistence, Register,
    Release, ReportFormat, ReservationType, Reservations, Rights, report,
};
use lvolfs::spec::command::{AdminOpcode, IoOpcode, SubmissionEntry};
use lvolfs::spec::reservation::HostId;
use lvolfs::spec::status::StatusCode;
use lvolfs::units::{ControllerId, NamespaceId};

use super::{acquire, after, host, kinds, picture, register, release, scene, told};

/// A is the holder, B a registrant, C neither.
const ROLES: [(&str, char); 3] = [("holder", 'A'), ("registrant", 'B'), ("non-registrant", 'C')];
const KEYS: [(char, u64); 2] = [('A', 0xa), ('B', 0xb)];

/// Columns: no reservation, WE, EA, WE-RO, EA-RO, WE-AR, EA-AR. "." is allowed, "X" a conflict.
const ACCESS: &str = "
    holder         read   . . . . . . .
    holder         write  . . . . . . .
    registrant     read   . . X . . . .
    registrant     write  . X X . . . .
    non-registrant read   . . X . X . X
    non-registrant write  . X X X X X X
";

fn role(name: &str) -> char {
    ROLES.iter().find(|(known, _)| *known == name).unwrap().1
}

fn cells(table: &str) -> impl Iterator<Item = Vec<&str>> {
    table.lines().filter(|line| !line.trim().is_empty()).map(|row| row.split_whitespace().collect())
}

#[test]
fn every_command_of_every_role_under_every_type() {
    let groups = [
        ("read", Access::Read, &[IoOpcode::READ, IoOpcode::COMPARE, IoOpcode::VERIFY][..]),
        (
            "write",
            Access::Write,
            &[
                IoOpcode::WRITE,
                IoOpcode::WRITE_UNCORRECTABLE,
                IoOpcode::WRITE_ZEROES,
                IoOpcode::DATASET_MANAGEMENT,
                IoOpcode::FLUSH,
            ],
        ),
    ];
    let mut checked = 0;
    for row in cells(ACCESS) {
        let letter = role(row[0]);
        let (_, access, opcodes) = groups.iter().find(|(name, ..)| *name == row[1]).unwrap();
        for (kind, expected) in kinds().zip(&row[2..]) {
            let state = scene(&KEYS, kind);
            let pass = Gate::new(state.clone()).pass(host(letter));
            for &opcode in *opcodes {
                let access = Access::of(opcode).unwrap();
                let allowed = state.rights(host(letter)).allow(access);
                assert_eq!(allowed, *expected == ".", "{row:?} {kind:?} {opcode:?}");
                let answer = if allowed { Ok(()) } else { Err(StatusCode::RESERVATION_CONFLICT) };
                assert_eq!(pass.check(access), answer, "{row:?} {kind:?} {opcode:?}");
                assert_eq!(access, Access::of(opcodes[0]).unwrap());
                checked += 1;
            }
            assert_eq!(state.rights(host(letter)).allow(*access), *expected == ".");
        }
    }
    assert_eq!(checked, 3 * 7 * 8);
}

/// What needs both groups is allowed where both are: Copy, fused Compare and Write.
#[test]
fn commands_of_both_groups_need_both() {
    for kind in kinds() {
        let state = scene(&KEYS, kind);
        for (_, letter) in ROLES {
            let rights = state.rights(host(letter));
            let both = rights.allow(Access::Read) && rights.allow(Access::Write);
            assert_eq!(rights.allow(Access::of(IoOpcode::COPY).unwrap()), both);
            assert_eq!(rights.allow(Access::ReadAndWrite), both);
        }
    }
}

#[test]
fn what_reservations_never_stop() {
    for opcode in [
        IoOpcode::RESERVATION_REGISTER,
        IoOpcode::RESERVATION_REPORT,
        IoOpcode::RESERVATION_ACQUIRE,
        IoOpcode::RESERVATION_RELEASE,
    ] {
        assert_eq!(Access::of(opcode), None);
    }
    let stopped = [AdminOpcode::FORMAT_NVM, AdminOpcode::NAMESPACE_ATTACHMENT];
    for opcode in (0..=u8::MAX).map(AdminOpcode) {
        let expected = stopped.contains(&opcode).then_some(Access::Write);
        assert_eq!(Access::of_admin(opcode), expected, "{opcode:?}");
    }
}

/// Columns: no reservation and the six types. "." success, "X" Reservation Conflict, "F" Invalid
/// Field. A has key a, B has key b, C shows key c. `same` is the type held (or WE if none is),
/// `other` the next one.
const COMMANDS: &str = "
    holder         register-same        . . . . . . .
    holder         register-new         X X X X X X X
    holder         register-zero        F F F F F F F
    holder         register-new-iekey   . . . . . . .
    holder         register-zero-iekey  . . . . . . .
    holder         unregister           . . . . . . .
    holder         unregister-wrong     X X X X X X X
    holder         unregister-iekey     . . . . . . .
    holder         replace              . . . . . . .
    holder         replace-wrong        X X X X X X X
    holder         replace-iekey        . . . . . . .
    holder         replace-zero         . . . . . . .
    holder         acquire-same         . . . . . . .
    holder         acquire-other        . X X X X X X
    holder         acquire-wrong        X X X X X X X
    holder         preempt-b            . . . . . . .
    holder         preempt-unknown      X X X X X X X
    holder         preempt-zero         F F F F F . .
    holder         preempt-wrong        X X X X X X X
    holder         release-same         . . . . . . .
    holder         release-other        . F F F F F F
    holder         release-wrong        X X X X X X X
    holder         clear                . . . . . . .
    holder         clear-wrong          X X X X X X X
    holder         set-persistence      . . . . . . .
    registrant     register-same        . . . . . . .
    registrant     register-new         X X X X X X X
    registrant     register-zero        F F F F F F F
    registrant     register-new-iekey   . . . . . . .
    registrant     register-zero-iekey  . . . . . . .
    registrant     unregister           . . . . . . .
    registrant     unregister-wrong     X X X X X X X
    registrant     unregister-iekey     . . . . . . .
    registrant     replace              . . . . . . .
    registrant     replace-wrong        X X X X X X X
    registrant     replace-iekey        . . . . . . .
    registrant     replace-zero         . . . . . . .
    registrant     acquire-same         . X X X X . .
    registrant     acquire-other        . X X X X X X
    registrant     acquire-wrong        X X X X X X X
    registrant     preempt-b            . . . . . . .
    registrant     preempt-unknown      X X X X X X X
    registrant     preempt-zero         F F F F F . .
    registrant     preempt-wrong        X X X X X X X
    registrant     release-same         . . . . . . .
    registrant     release-other        . F F F F F F
    registrant     release-wrong        X X X X X X X
    registrant     clear                . . . . . . .
    registrant     clear-wrong          X X X X X X X
    registrant     set-persistence      . . . . . . .
    non-registrant register-same        . . . . . . .
    non-registrant register-new         . . . . . . .
    non-registrant register-zero        F F F F F F F
    non-registrant register-new-iekey   . . . . . . .
    non-registrant register-zero-iekey  F F F F F F F
    non-registrant unregister           X X X X X X X
    non-registrant unregister-wrong     X X X X X X X
    non-registrant unregister-iekey     X X X X X X X
    non-registrant replace              X X X X X X X
    non-registrant replace-wrong        X X X X X X X
    non-registrant replace-iekey        . . . . . . .
    non-registrant replace-zero         X X X X X X X
    non-registrant acquire-same         X X X X X X X
    non-registrant acquire-other        X X X X X X X
    non-registrant acquire-wrong        X X X X X X X
    non-registrant preempt-b            X X X X X X X
    non-registrant preempt-unknown      X X X X X X X
    non-registrant preempt-zero         X X X X X X X
    non-registrant preempt-wrong        X X X X X X X
    non-registrant release-same         X X X X X X X
    non-registrant release-other        X X X X X X X
    non-registrant release-wrong        X X X X X X X
    non-registrant clear                X X X X X X X
    non-registrant clear-wrong          X X X X X X X
    non-registrant set-persistence      . . . . . . .
";

fn command(name: &str, letter: char, kind: Option<ReservationType>) -> Command {
    let own = Key(u64::from(letter.to_digit(16).unwrap()));
    let (wrong, new) = (Key(0x77), Key(0xe));
    let held = kind.unwrap_or(ReservationType::WriteExclusive);
    let other = ReservationType::from_wire(held.wire() % 6 + 1).unwrap();
    let is = ExistingKey::Is;
    let preempt = |victim| acquire(Acquire::Preempt(Key(victim)), own, held);
    match name {
        "register-same" => register(Register::Register(own), is(wrong)),
        "register-new" => register(Register::Register(new), is(own)),
        "register-zero" => register(Register::Register(Key::ZERO), is(own)),
        "register-new-iekey" => register(Register::Register(new), ExistingKey::Ignored),
        "register-zero-iekey" => register(Register::Register(Key::ZERO), ExistingKey::Ignored),
        "unregister" => register(Register::Unregister, is(own)),
        "unregister-wrong" => register(Register::Unregister, is(wrong)),
        "unregister-iekey" => register(Register::Unregister, ExistingKey::Ignored),
        "replace" => register(Register::Replace(new), is(own)),
        "replace-wrong" => register(Register::Replace(new), is(wrong)),
        "replace-iekey" => register(Register::Replace(new), ExistingKey::Ignored),
        "replace-zero" => register(Register::Replace(Key::ZERO), is(own)),
        "acquire-same" => acquire(Acquire::Acquire, own, held),
        "acquire-other" => acquire(Acquire::Acquire, own, other),
        "acquire-wrong" => acquire(Acquire::Acquire, wrong, held),
        "preempt-b" => preempt(0xb),
        "preempt-unknown" => preempt(0x99),
        "preempt-zero" => preempt(0),
        "preempt-wrong" => acquire(Acquire::Preempt(Key(0xb)), wrong, held),
        "release-same" => release(Release::Release(Some(held)), own),
        "release-other" => release(Release::Release(Some(other)), own),
        "release-wrong" => release(Release::Release(Some(held)), wrong),
        "clear" => release(Release::Clear, own),
        "clear-wrong" => release(Release::Clear, wrong),
        "set-persistence" => Command::SetPersistence(Persistence::ThroughPowerLoss),
        other => panic!("no command {other}"),
    }
}

/// Whether the specification counts the command in the generation if it succeeds.
fn counted(name: &str) -> bool {
    ["register", "unregister", "replace", "preempt", "clear"]
        .iter()
        .any(|counted| name.starts_with(counted))
}

#[test]
fn every_reservation_command_of_every_role_under_every_type() {
    for row in cells(COMMANDS) {
        let letter = role(row[0]);
        for (kind, expected) in kinds().zip(&row[2..]) {
            // The key of a host is its letter as a hexadecimal digit.
            let state = scene(&KEYS, kind);
            let command = command(row[1], letter, kind);
            let what = format!("{row:?} {kind:?}");
            match (state.apply(host(letter), &command), *expected) {
                (Ok(outcome), ".") => {
                    let generation = state.generation() + u32::from(counted(row[1]));
                    assert_eq!(outcome.after.generation(), generation, "{what}");
                }
                (Err(StatusCode::RESERVATION_CONFLICT), "X") => {}
                (Err(StatusCode::INVALID_FIELD), "F") => {}
                (result, _) => panic!("{what}: {result:?}"),
            }
        }
    }
}

/// What each command leaves: registrants, stars at the holders, and who is told what.
#[test]
fn what_register_release_and_clear_bring_about() {
    // Of A and B, where A has taken the type: who, command, result under none and six types.
    let table = "
        A unregister      B      | B    | B    | B:B2  | B:B2  | B*     | B*
        B unregister      A      | A*   | A*   | A*    | A*    | A*     | A*
        A replace         AB     | A*B  | A*B  | A*B   | A*B   | A*B*   | A*B*
        B replace         AB     | A*B  | A*B  | A*B   | A*B   | A*B*   | A*B*
        C register-new    ABC    | A*BC | A*BC | A*BC  | A*BC  | A*B*C* | A*B*C*
        A replace-zero    B      | B    | B    | B:B2  | B:B2  | B*     | B*
        A release-same    AB     | AB   | AB   | AB:B2 | AB:B2 | AB:B2  | AB:B2
        B release-same    AB     | A*B  | A*B  | A*B   | A*B   | AB:A2  | AB:A2
        A clear           :B3    | :B3  | :B3  | :B3   | :B3   | :B3    | :B3
        B clear           :A3    | :A3  | :A3  | :A3   | :A3   | :A3    | :A3
        A acquire-same    A*B    | A*B  | A*B  | A*B   | A*B   | A*B*   | A*B*
    ";
    for row in table.lines().filter(|line| !line.trim().is_empty()) {
        let mut words = row.split_whitespace();
        let letter = words.next().unwrap().chars().next().unwrap();
        let name = words.next().unwrap();
        let results: String = words.collect();
        for (kind, expected) in kinds().zip(results.split('|')) {
            let outcome = scene(&KEYS, kind).apply(host(letter), &command(name, letter, kind));
            let outcome = outcome.unwrap();
            let (picture, told) = (picture(&outcome.after), told(&outcome));
            let found = if told.is_empty() { picture } else { format!("{picture}:{told}") };
            assert_eq!(found, expected, "{letter} {name} {kind:?}");
            assert!(outcome.abort.is_empty());
            let still_held = outcome.after.reservation().is_some();
            assert_eq!(still_held, found.contains('*'), "{letter} {name} {kind:?}");
        }
    }
    // The last registrant takes a reservation of all registrants with it.
    for kind in ReservationType::ALL {
        let alone = scene(&[('A', 0xa)], Some(kind));
        let gone = after(&alone, &[('A', command("unregister", 'A', Some(kind)))]);
        assert_eq!((gone.reservation(), gone.registrants().len()), (None, 0));
    }
}

#[test]
fn persistence_changes_only_with_a_command_that_succeeds() {
    let persist = |action, existing| Command::Register {
        action,
        existing,
        persistence: Some(Persistence::ThroughPowerLoss),
    };
    let state = scene(&KEYS, None);
    let wrong = ExistingKey::Is(Key(1));
    // The state that a refused command leaves is the one before it: there is no other.
    state.apply(host('A'), &persist(Register::Unregister, wrong)).unwrap_err();
    assert_eq!(state.persistence(), Persistence::Volatile);
    let on = after(&state, &[('A', persist(Register::Register(Key(0xa)), wrong))]);
    assert_eq!(on.persistence(), Persistence::ThroughPowerLoss);
    let same = after(&on, &[('A', register(Register::Register(Key(0xa)), wrong))]);
    assert_eq!(same.persistence(), Persistence::ThroughPowerLoss);
    let off = after(&on, &[('C', Command::SetPersistence(Persistence::Volatile))]);
    assert_eq!(off.persistence(), Persistence::Volatile);
    assert_eq!(off.generation(), on.generation());
}

/// A host whose role is its identifier's: another connection of it is the same registrant.
#[test]
fn the_role_is_the_hosts_and_not_the_connections() {
    let state = scene(&KEYS, Some(ReservationType::ExclusiveAccess));
    let gate = Gate::new(state);
    for _reconnect in 0..2 {
        assert_eq!(gate.pass(host('A')).check(Access::Write), Ok(()));
        assert!(gate.pass(host('B')).check(Access::Read).is_err());
    }
}

#[test]
fn reports_are_laid_out_as_the_specification_says() {
    let controller = |asked: HostId| (asked == host('A')).then_some(ControllerId(0x0102));
    for (kind, rtype) in kinds().zip(0..) {
        let state = scene(&KEYS, kind);
        let persist = Command::SetPersistence(Persistence::ThroughPowerLoss);
        let state = after(&state, &[('C', persist)]);
        let bytes = report(&state, ReportFormat::Extended, controller).unwrap();
        let mut expected = vec![0; 64 * 3];
        // Generation 2, type, two registrants, persistent.
        (expected[0], expected[4], expected[5], expected[9]) = (2, rtype, 2, 1);
        expected[64..66].copy_from_slice(&[0x02, 0x01]);
        expected[66] = u8::from(rtype > 0);
        expected[72] = 0xa;
        expected[80..96].copy_from_slice(&[b'A'; 16]);
        expected[128..130].copy_from_slice(&[0xff, 0xff]);
        expected[130] = u8::from(rtype >= 5);
        expected[136] = 0xb;
        expected[144..160].copy_from_slice(&[b'B'; 16]);
        assert_eq!(bytes, expected, "{kind:?}");
        let short = report(&state, ReportFormat::Basic, controller);
        assert_eq!(short, Err(StatusCode::HOST_ID_INCONSISTENT_FORMAT));
    }
}

#[test]
fn reports_with_short_identifiers() {
    let short = HostId::new(0x0807_0605_0403_0201_u128.to_le_bytes()).unwrap();
    let state = Reservations::default();
    let join = register(Register::Register(Key(u64::MAX)), ExistingKey::Ignored);
    let state = state.apply(short, &join).unwrap().after;
    let take = acquire(Acquire::Acquire, Key(u64::MAX), ReservationType::ExclusiveAccess);
    let state = state.apply(short, &take).unwrap().after;
    let bytes = report(&state, ReportFormat::Basic, |_| Some(ControllerId(1))).unwrap();
    let mut expected = vec![0; 48];
    (expected[0], expected[4], expected[5]) = (1, 2, 1);
    (expected[24], expected[26]) = (1, 1);
    expected[32..40].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    expected[40..48].copy_from_slice(&[0xff; 8]);
    assert_eq!(bytes, expected);
    let (extended, mut basic) =
        (SubmissionEntry::reservation_report(NamespaceId(1), 16), SubmissionEntry::default());
    basic.opcode = extended.opcode;
    for (entry, identifiers, expected) in [
        (&extended, IdentifierSize::Bits128, Ok(ReportFormat::Extended)),
        (&basic, IdentifierSize::Bits64, Ok(ReportFormat::Basic)),
        (&basic, IdentifierSize::Bits128, Err(StatusCode::HOST_ID_INCONSISTENT_FORMAT)),
        (&extended, IdentifierSize::Bits64, Err(StatusCode::HOST_ID_INCONSISTENT_FORMAT)),
    ] {
        assert_eq!(ReportFormat::requested(entry, identifiers), expected);
    }
}

#[test]
fn a_fence_shows_in_rights_and_report() {
    let why = lvolfs::reservation::persistence::Damage::NotAFile;
    let fenced = Reservations::fenced(why);
    let persist = Command::Register {
        action: Register::Register(Key(0xa)),
        existing: ExistingKey::Ignored,
        persistence: Some(Persistence::ThroughPowerLoss),
    };
    let registered = after(&fenced, &[('A', persist)]);
    assert_eq!(registered.rights(host('A')), Rights::None);
    let bytes = report(&registered, ReportFormat::Extended, |_| None).unwrap();
    // One registrant, no reservation, and no promise to persist.
    assert_eq!((bytes[0], bytes[4], bytes[5], bytes[9]), (1, 0, 1, 0));
    let gone = after(&registered, &[('A', register(Register::Unregister, ExistingKey::Ignored))]);
    assert_eq!(gone.rights(host('C')), Rights::None, "still fenced");
    assert_eq!(gone.without_fence().rights(host('C')), Rights::All);
}
