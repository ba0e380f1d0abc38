//! The stored state: what SPDK wrote, what may be in a file, and what a crash leaves.

use std::fs;
use std::path::Path;

use lvolfs::reservation::persistence::{Damage, MAX_BYTES, decode, encode};
use lvolfs::reservation::{
    Access, Acquire, Command, ExistingKey, Holder, Injected, Key, MAX_REGISTRANTS, Persistence,
    Register, Release, ReservationType, Reservations, Rights, StateFile, Step, StoreError,
};
use lvolfs::spec::reservation::HostId;
use lvolfs::spec::status::StatusCode;
use uuid::{Uuid, uuid};

/// The volume of the golden files.
const VOLUME: Uuid = uuid!("11111111-2222-3333-4444-555555555555");
const FIRST: &str = "0f97cd74-8c80-4142-990f-65c4f0392420";
const SECOND: &str = "22222222-aaaa-4bbb-8ccc-0123456789ab";
const FIRST_KEY: Key = Key(16_045_690_982_613_277_275);
const SECOND_KEY: Key = Key(1_234_605_616_436_508_552);

fn host(text: &str) -> HostId {
    HostId::new(*Uuid::parse_str(text).unwrap().as_bytes()).unwrap()
}

fn golden(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden");
    fs::read(folder.join(format!("ptpl-{name}.json"))).unwrap()
}

fn apply(state: &Reservations, host: HostId, command: Command) -> Reservations {
    state.apply(host, &command).unwrap().after
}

fn register(key: Key) -> Command {
    Command::Register {
        action: Register::Register(key),
        existing: ExistingKey::Is(Key::ZERO),
        persistence: Some(Persistence::ThroughPowerLoss),
    }
}

fn acquire(key: Key, reservation_type: ReservationType) -> Command {
    Command::Acquire { action: Acquire::Acquire, key, reservation_type }
}

/// The state of the golden file `2regs-writeexcl`.
fn write_exclusive() -> Reservations {
    let state = apply(&Reservations::default(), host(FIRST), register(FIRST_KEY));
    let state = apply(&state, host(SECOND), register(SECOND_KEY));
    apply(&state, host(FIRST), acquire(FIRST_KEY, ReservationType::WriteExclusive))
}

fn without_generation(state: &Reservations) -> Reservations {
    decode(&encode(state, VOLUME), VOLUME).unwrap()
}

#[test]
fn the_files_that_spdk_wrote_mean_what_it_meant() {
    let two = [(FIRST, FIRST_KEY), (SECOND, SECOND_KEY)];
    let one = [(SECOND, SECOND_KEY)];
    let file = |name: &str, registrants: &[(&str, Key)], held: Option<(u8, Holder)>| {
        let state = decode(&golden(name), VOLUME).unwrap();
        let found: Vec<_> =
            state.registrants().iter().map(|one| (one.host.to_string(), one.key)).collect();
        let expected: Vec<_> =
            registrants.iter().map(|&(host, key)| (host.to_owned(), key)).collect();
        assert_eq!(found, expected, "{name}");
        let reservation = state.reservation();
        let reservation = reservation.map(|held| (held.reservation_type().wire(), held.holder()));
        assert_eq!(reservation, held, "{name}");
        assert_eq!(state.persistence(), Persistence::ThroughPowerLoss, "{name}");
        // What we write is byte for byte what SPDK wrote, but for the end of the line.
        assert_eq!(encode(&state, VOLUME).trim_ascii_end(), golden(name), "{name}");
    };
    file("2regs-noresv", &two, None);
    file("2regs-writeexcl", &two, Some((1, Holder::Host(host(FIRST)))));
    file("after-last-unregister", &[], None);
    file("allregs-rtype6", &one, Some((6, Holder::AllRegistrants)));
    file("preempted-rtype4", &one, Some((4, Holder::Host(host(SECOND)))));
    assert_eq!(
        decode(&golden("2regs-writeexcl"), VOLUME),
        Ok(without_generation(&write_exclusive()))
    );
}

/// SPDK once refused a namespace whose file was not there yet, mended it, broke it and mended it
/// again (spdk issue 3427).
#[test]
fn a_path_that_was_never_used_starts_clean() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fresh.json");
    let (mut file, state) = StateFile::load(&path, VOLUME);
    assert_eq!(state, Reservations::default());
    assert_eq!(state.rights(host(FIRST)), Rights::All);
    assert!(!path.exists(), "loading changes nothing");
    file.store(&write_exclusive()).unwrap();
    let (_, state) = StateFile::load(&path, VOLUME);
    assert_eq!(state, without_generation(&write_exclusive()));
}

/// SPDK leaves an empty file when persistence is switched off, and refuses it at the next start.
#[test]
fn an_empty_file_starts_clean() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.json");
    fs::write(&path, golden("cleared-by-cptpl2")).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    let (mut file, state) = StateFile::load(&path, VOLUME);
    assert_eq!(state, Reservations::default());
    file.store(&write_exclusive()).unwrap();
    assert_eq!(StateFile::load(&path, VOLUME).1, without_generation(&write_exclusive()));
}

#[test]
fn a_corrupt_file_fences_the_namespace() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("corrupt.json");
    let whole = golden("2regs-writeexcl");
    // Each shorter file, and what a power loss makes of one that was never synced.
    let cut = (1..whole.len()).map(|length| whole[..length].to_vec());
    for bytes in cut.chain([vec![0; whole.len()], b"\n".to_vec()]) {
        fs::write(&path, &bytes).unwrap();
        let (mut file, state) = StateFile::load(&path, VOLUME);
        assert!(matches!(state.fence(), Some(Damage::Malformed { .. })), "{:?}", state.fence());
        for host in [FIRST, SECOND, "99999999-0000-0000-0000-000000000000"].map(host) {
            assert_eq!(state.rights(host), Rights::None);
            assert!(!state.rights(host).allow(Access::Read));
        }
        // Hosts may register, but neither they nor a store lift the fence or touch the file.
        let state = apply(&state, host(FIRST), register(FIRST_KEY));
        assert_eq!(state.rights(host(FIRST)), Rights::None);
        for command in [
            acquire(FIRST_KEY, ReservationType::WriteExclusive),
            Command::Release { action: Release::Release(None), key: FIRST_KEY },
            Command::Release { action: Release::Clear, key: FIRST_KEY },
        ] {
            let refused = state.apply(host(FIRST), &command).unwrap_err();
            assert_eq!(refused, StatusCode::RESERVATION_CONFLICT);
        }
        file.store(&state).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

/// A file of one registrant, with parts to replace.
const SOUND: &str = r#"{"ptpl": true, "rtype": 3, "crkey": 51966,
    "bdev_uuid": "11111111-2222-3333-4444-555555555555",
    "holder_uuid": "0f97cd74-8c80-4142-990f-65c4f0392420",
    "registrants": [{"rkey": 51966, "host_uuid": "0f97cd74-8c80-4142-990f-65c4f0392420"}]}"#;

#[test]
fn each_way_to_be_damaged_has_its_reason() {
    type Expected = fn(&Damage) -> bool;
    let malformed: Expected = |damage| matches!(damage, Damage::Malformed { .. });
    let bad_identifier: Expected = |damage| matches!(damage, Damage::BadIdentifier { .. });
    let cases: &[(&str, &str, Expected)] = &[
        // Shape.
        ("}]}", "}]} x", malformed),
        ("}]}", "}]}{}", malformed),
        (SOUND, "{}", malformed),
        (SOUND, "[]", malformed),
        (SOUND, "null", malformed),
        (SOUND, "true", malformed),
        (SOUND, "\u{feff}{}", malformed),
        (SOUND, r#"[true, 0, 0, "11111111-2222-3333-4444-555555555555", "", []]"#, malformed),
        (
            "{\"rkey\": 51966, \"host_uuid\": \"0f97cd74-8c80-4142-990f-65c4f0392420\"}",
            "[51966, \"0f97cd74-8c80-4142-990f-65c4f0392420\"]",
            malformed,
        ),
        ("\"ptpl\": true", "\"ptpl\": 1", malformed),
        ("\"ptpl\": true", "\"ptpl\": null", malformed),
        ("\"ptpl\": true", "\"ptpl\": true, \"ptpl\": true", malformed),
        ("\"ptpl\": true", "\"ptpl\": true, \"generation\": 1", malformed),
        ("\"rkey\"", "\"extra\": 0, \"rkey\"", malformed),
        ("\"rkey\": 51966, ", "", malformed),
        ("\"rkey\": 51966", "\"rkey\": -1", malformed),
        ("\"rkey\": 51966", "\"rkey\": 51966.0", malformed),
        ("\"rkey\": 51966", "\"rkey\": 18446744073709551616", malformed),
        ("\"rtype\": 3", "\"rtype\": 4294967296", malformed),
        ("\"bdev_uuid\": \"11111111-2222-3333-4444-555555555555\",", "", malformed),
        ("\"registrants\": [", "\"registrants\": null, \"x\": [", malformed),
        // Identifiers.
        ("\"11111111-2222", "\"x1111111-2222", bad_identifier),
        ("\"11111111-2222-3333-4444-555555555555\"", "\"\"", bad_identifier),
        (
            "\"11111111-2222-3333-4444-555555555555\"",
            "\"11111111222233334444555555555555\"",
            bad_identifier,
        ),
        (
            "\"11111111-2222-3333-4444-555555555555\"",
            "\"{11111111-2222-3333-4444-555555555555}\"",
            bad_identifier,
        ),
        (
            "\"host_uuid\": \"0f97cd74-8c80-4142-990f-65c4f0392420\"",
            "\"host_uuid\": \"00000000-0000-0000-0000-000000000000\"",
            bad_identifier,
        ),
        ("\"host_uuid\": \"0f97cd74", "\"host_uuid\": \"0f97cd7", bad_identifier),
        ("\"holder_uuid\": \"0f97cd74", "\"holder_uuid\": \"g", bad_identifier),
        ("11111111-2222", "11111111-2223", |damage| matches!(damage, Damage::OtherVolume { .. })),
        // Meaning.
        ("\"rtype\": 3", "\"rtype\": 7", |damage| *damage == Damage::ReservationType { value: 7 }),
        ("\"rtype\": 3", "\"rtype\": 257", |damage| {
            *damage == Damage::ReservationType { value: 257 }
        }),
        ("\"rtype\": 3", "\"rtype\": 0", |damage| *damage == Damage::UnexpectedHolder { value: 0 }),
        ("\"rtype\": 3,", "", |damage| *damage == Damage::UnexpectedHolder { value: 0 }),
        ("\"rtype\": 3", "\"rtype\": 5", |damage| *damage == Damage::UnexpectedHolder { value: 5 }),
        (
            "\"holder_uuid\": \"0f97cd74-8c80-4142-990f-65c4f0392420\",",
            "\"holder_uuid\": \"\",",
            |damage| matches!(damage, Damage::NoHolder { .. }),
        ),
        ("\"holder_uuid\": \"0f97cd74-8c80-4142-990f-65c4f0392420\",", "", |damage| {
            matches!(damage, Damage::NoHolder { .. })
        }),
        ("\"holder_uuid\": \"0f97", "\"holder_uuid\": \"0f98", |damage| {
            matches!(damage, Damage::HolderNotRegistered { .. })
        }),
        ("\"crkey\": 51966", "\"crkey\": 51967", |damage| {
            *damage == Damage::HolderKey { found: Key(51967), expected: Key(51966) }
        }),
        ("\"crkey\": 51966,", "", |damage| {
            *damage == Damage::HolderKey { found: Key::ZERO, expected: Key(51966) }
        }),
        ("\"rkey\": 51966", "\"rkey\": 0", |damage| matches!(damage, Damage::ZeroKey { .. })),
        (
            "}]}",
            "}, {\"rkey\": 1, \"host_uuid\": \"0F97CD74-8C80-4142-990F-65C4F0392420\"}]}",
            |damage| matches!(damage, Damage::RegisteredTwice { .. }),
        ),
    ];
    decode(SOUND.as_bytes(), VOLUME).unwrap();
    for (part, instead, expected) in cases {
        assert!(SOUND.contains(part), "{part}");
        // Whether or not it persists: a file that says so wrongly may have said more.
        for ptpl in ["\"ptpl\": true", "\"ptpl\": false"] {
            let text = SOUND.replacen(part, instead, 1).replace("\"ptpl\": true", ptpl);
            let damage = decode(text.as_bytes(), VOLUME).unwrap_err();
            assert!(expected(&damage), "{text}: {damage:?}");
            assert!(!damage.to_string().is_empty());
        }
    }
    let holderless = SOUND
        .replace("\"rtype\": 3", "\"rtype\": 6")
        .replace("\"holder_uuid\": \"0f97cd74-8c80-4142-990f-65c4f0392420\",", "");
    assert_eq!(
        decode(holderless.as_bytes(), VOLUME).unwrap().reservation().unwrap().holder(),
        Holder::AllRegistrants
    );
    let nobody = &holderless[..holderless.find("[{").unwrap()];
    let nobody = format!("{nobody}[]}}");
    assert!(matches!(decode(nobody.as_bytes(), VOLUME), Err(Damage::NoHolder { .. })));
}

#[test]
fn what_may_be_left_out_or_differ_in_a_sound_file() {
    let minimal = r#"{"bdev_uuid": "11111111-2222-3333-4444-555555555555", "registrants": []}"#;
    assert_eq!(decode(minimal.as_bytes(), VOLUME), Ok(Reservations::default()));
    // Without persistence nothing of it outlives the restart that reads it.
    let off = SOUND.replace("true", "false");
    assert_eq!(decode(off.as_bytes(), VOLUME), Ok(Reservations::default()));
    // White space, order and the case of UUIDs do not matter.
    let upper = SOUND.replace(FIRST, &FIRST.to_uppercase()).replace(", ", " ,\n\t");
    assert_eq!(decode(upper.as_bytes(), VOLUME), decode(SOUND.as_bytes(), VOLUME));
    // SPDK leaves the key of a holder that has gone where all registrants hold.
    let stale = String::from_utf8(golden("allregs-rtype6")).unwrap();
    let stale = stale.replace(r#""crkey":1234605616436508552"#, r#""crkey":7"#);
    let state = decode(stale.as_bytes(), VOLUME).unwrap();
    assert_eq!(state.reservation().unwrap().holder(), Holder::AllRegistrants);
}

#[test]
fn the_limit_of_registrants_holds_in_a_file() {
    let file = |count: usize| {
        let registrants: Vec<_> = (1..=count)
            .map(|number| {
                let host = Uuid::from_u128(number as u128);
                format!("{{\n    \"rkey\": {},\n    \"host_uuid\": \"{host}\"\n  }}", u64::MAX)
            })
            .collect();
        let registrants = registrants.join(", ");
        format!(r#"{{"ptpl": true, "bdev_uuid": "{VOLUME}", "registrants": [{registrants}]}}"#)
    };
    let full = decode(file(MAX_REGISTRANTS).as_bytes(), VOLUME).unwrap();
    assert_eq!(full.registrants().len(), MAX_REGISTRANTS);
    assert_eq!(decode(&encode(&full, VOLUME), VOLUME).as_ref(), Ok(&full));
    let count = MAX_REGISTRANTS + 1;
    assert_eq!(decode(file(count).as_bytes(), VOLUME), Err(Damage::TooManyRegistrants { count }));
    // And by commands, one is too many.
    let refused = full.apply(host(FIRST), &register(FIRST_KEY)).unwrap_err();
    assert_eq!(refused, StatusCode::INTERNAL_ERROR);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.json");
    fs::write(&path, vec![b' '; MAX_BYTES + 1]).unwrap();
    assert_eq!(StateFile::load(&path, VOLUME).1.fence(), Some(&Damage::TooLarge));
    let sparse = fs::File::create(&path).unwrap();
    sparse.set_len(1 << 40).unwrap();
    assert_eq!(StateFile::load(&path, VOLUME).1.fence(), Some(&Damage::TooLarge));
}

#[test]
fn what_is_no_readable_file_fences() {
    let folder = tempfile::tempdir().unwrap();
    let fence = |path: &Path| StateFile::load(path, VOLUME).1.fence().cloned();
    assert_eq!(fence(folder.path()), Some(Damage::NotAFile));
    assert_eq!(fence(Path::new("/dev/null")), Some(Damage::NotAFile));
    assert_eq!(fence(&folder.path().join("no/file.json")), Some(Damage::FolderMissing));
    let (link, target) = (folder.path().join("link"), folder.path().join("target"));
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert_eq!(fence(&link), Some(Damage::DanglingLink));
    fs::write(&target, golden("2regs-noresv")).unwrap();
    assert_eq!(fence(&link), None);
    let below = target.join("file.json");
    assert!(matches!(fence(&below), Some(Damage::Unreadable { .. })));
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    std::os::unix::fs::symlink(&one, &other).unwrap();
    std::os::unix::fs::symlink(&other, &one).unwrap();
    assert!(matches!(fence(&one), Some(Damage::Unreadable { .. })));
}

/// The changes of state over which stores are broken: from nothing, between reservations, to a
/// state that does not persist.
fn changes() -> Vec<(Reservations, Reservations)> {
    let held = write_exclusive();
    let preempt = Command::Acquire {
        action: Acquire::Preempt(FIRST_KEY),
        key: SECOND_KEY,
        reservation_type: ReservationType::ExclusiveAccessRegistrantsOnly,
    };
    let taken = apply(&held, host(SECOND), preempt);
    let off = apply(&taken, host(SECOND), Command::SetPersistence(Persistence::Volatile));
    vec![(Reservations::default(), held.clone()), (held, taken.clone()), (taken, off)]
}

#[test]
fn a_kill_at_each_step_leaves_the_old_state_or_the_new() {
    for (old, new) in changes() {
        for (number, killed) in Step::ALL.into_iter().enumerate() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("state.json");
            let (mut file, _) = StateFile::load(&path, VOLUME);
            file.store(&old).unwrap();
            let hook = |step| if step == killed { Injected::Kill } else { Injected::Nothing };
            let error = file.store_with(&new, hook).unwrap_err();
            assert!(matches!(error, StoreError::Killed { step } if step == killed));
            let (mut file, found) = StateFile::load(&path, VOLUME);
            // The rename is step 4: before it the old state, after it the new one.
            let expected = if number <= 3 { &old } else { &new };
            assert_eq!(found, without_generation(expected), "killed before {killed:?}");
            assert_eq!(found.fence(), None);
            // What the crash has left over does not hinder the next store.
            file.store(&new).unwrap();
            assert_eq!(StateFile::load(&path, VOLUME).1, without_generation(&new));
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary stays");
        }
    }
}

#[test]
fn an_error_at_each_step_fails_the_store_and_the_next_one_repairs() {
    for (old, new) in changes() {
        for failing in Step::ALL {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("state.json");
            let (mut file, _) = StateFile::load(&path, VOLUME);
            file.store(&old).unwrap();
            assert!(file.holds(&old));
            let hook = |step| match step == failing {
                true => Injected::Error(std::io::ErrorKind::StorageFull),
                false => Injected::Nothing,
            };
            let error = file.store_with(&new, hook).unwrap_err();
            assert!(matches!(error, StoreError::Step { step, .. } if step == failing));
            let found = StateFile::load(&path, VOLUME).1;
            let either = [without_generation(&old), without_generation(&new)];
            assert_eq!(found, either[usize::from(failing == Step::SyncFolder)], "{failing:?}");
            assert!(!file.holds(&new));
            // The command failed, so the old state is the true one; the next store says so.
            file.store(&old).unwrap();
            assert!(file.holds(&old));
            assert_eq!(StateFile::load(&path, VOLUME).1, either[0]);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), usize::from(path.exists()));
        }
    }
}

/// A file system that forgets at a power cut what was not synced: of a file any prefix stays, of
/// a folder any prefix of its changes.
#[derive(Default)]
struct Forgetful {
    durable_name: Option<Vec<u8>>,
    temporary: Vec<u8>,
    temporary_durable: bool,
    renamed: bool,
}

impl Forgetful {
    fn perform(&mut self, step: Step, bytes: &[u8]) {
        match step {
            Step::CreateTemporary => (self.temporary, self.temporary_durable) = (vec![], false),
            Step::WriteTemporary => self.temporary = bytes.to_vec(),
            Step::SyncTemporary => self.temporary_durable = true,
            Step::Rename => self.renamed = true,
            Step::SyncFolder => {
                self.durable_name = Some(self.temporary.clone());
                self.renamed = false;
            }
        }
    }

    /// What the name may have after a power cut now.
    fn after_power_cut(&self) -> Vec<Option<Vec<u8>>> {
        let mut found = vec![self.durable_name.clone()];
        if self.renamed {
            let shortest = if self.temporary_durable { self.temporary.len() } else { 0 };
            let prefixes = shortest..=self.temporary.len();
            found.extend(prefixes.map(|length| Some(self.temporary[..length].to_vec())));
        }
        found
    }
}

/// What each step's power cut may leave of a file that had `before` and is replaced by `after`, in
/// the order of the steps; the last one is what stays.
pub(crate) fn what_power_cuts_leave(before: &[u8], after: &[u8]) -> Vec<(Step, Option<Vec<u8>>)> {
    let mut disk = Forgetful { durable_name: Some(before.to_vec()), ..Forgetful::default() };
    let mut left = Vec::new();
    for step in Step::ALL {
        disk.perform(step, after);
        left.extend(disk.after_power_cut().into_iter().map(|found| (step, found)));
    }
    left
}

#[test]
fn a_power_cut_at_each_step_leaves_the_old_state_or_the_new() {
    for (old, new) in changes() {
        let (before, after) = (encode(&old, VOLUME), encode(&new, VOLUME));
        let left = what_power_cuts_leave(&before, &after);
        assert_eq!(left.last(), Some(&(Step::SyncFolder, Some(after))));
        for (step, found) in left {
            let state = decode(&found.unwrap_or_default(), VOLUME);
            let state = state.unwrap_or_else(Reservations::fenced);
            assert!(
                state == without_generation(&old) || state == without_generation(&new),
                "cut after {step:?}: {state:?}"
            );
        }
    }
}

#[test]
fn what_needs_no_store_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    let (mut file, state) = StateFile::load(&path, VOLUME);
    // Hosts that register without persistence leave no file.
    let mut volatile = register(FIRST_KEY);
    if let Command::Register { persistence, .. } = &mut volatile {
        *persistence = Some(Persistence::Volatile);
    }
    let state = apply(&state, host(FIRST), volatile);
    file.store_with(&state, |_| panic!("nothing to store")).unwrap();
    assert!(!path.exists());
    // A register that changes nothing but the generation needs no store either.
    let held = write_exclusive();
    file.store(&held).unwrap();
    let again = apply(&held, host(FIRST), register(FIRST_KEY));
    assert_ne!(again.generation(), held.generation());
    file.store_with(&again, |_| panic!("nothing to store")).unwrap();
    // The file is the owner's alone: keys are in it.
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // Persistence off leaves a file that SPDK reads, not an empty one.
    let off = apply(&held, host(FIRST), Command::SetPersistence(Persistence::Volatile));
    file.store(&off).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"ptpl\":false") && text.contains("\"registrants\":[]"), "{text}");
}

#[test]
fn an_administrator_lifts_the_fence_and_keeps_the_evidence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    for number in 1..=3 {
        fs::write(&path, b"garbage").unwrap();
        let (mut file, state) = StateFile::load(&path, VOLUME);
        let state = apply(&state, host(FIRST), register(FIRST_KEY));
        let aside = file.set_aside().unwrap().unwrap();
        assert!(aside.to_str().unwrap().ends_with(&format!("state.json.damaged-{number}")));
        assert_eq!(fs::read(aside).unwrap(), b"garbage");
        let open = state.without_fence();
        assert_eq!(open.rights(host(SECOND)), Rights::All);
        assert_ne!(open.generation(), state.generation());
        file.store(&open).unwrap();
        let loaded = StateFile::load(&path, VOLUME).1;
        assert_eq!(loaded.key_of(host(FIRST)), Some(FIRST_KEY));
        assert_eq!(loaded.fence(), None);
    }
    // A directory in its place is set aside just so, and a path without a file is none.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let (mut file, _) = StateFile::load(&path, VOLUME);
    file.set_aside().unwrap().unwrap();
    assert_eq!(file.set_aside().unwrap(), None);
    let nested = folder.path().join("a/b");
    StateFile::create_folder(&nested).unwrap();
    StateFile::create_folder(&nested).unwrap();
    assert!(nested.is_dir());
    let below_a_file = folder.path().join("state.json.damaged-1/c");
    assert!(matches!(StateFile::create_folder(&below_a_file), Err(StoreError::Folder { .. })));
}

/// The file system itself refuses, rather than a hook: the folder has gone.
#[test]
fn a_store_into_a_folder_that_has_gone_fails() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let (mut file, _) = StateFile::load(&inner.join("state.json"), VOLUME);
    fs::remove_dir(&inner).unwrap();
    let error = file.store(&write_exclusive()).unwrap_err();
    assert!(matches!(error, StoreError::Step { step: Step::CreateTemporary, .. }), "{error}");
}
