//! The model held against what it promises: who sees what, what is told, what is refused.

use std::sync::{Arc, Mutex};

use zerocopy::FromBytes;

use super::*;
use crate::spec::fabrics::{DISCOVERY_NQN, DiscoveryEntry, DiscoveryHeader, SubsystemType};

const DEMO: &str = "nqn.2026-11.io.lvolfs:demo";
const OTHER: &str = "nqn.2026-11.io.lvolfs:other";
const ALICE: &str = "nqn.2026-11.io.lvolfs:alice";
const BOB: &str = "nqn.2026-11.io.lvolfs:bob";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn listener(text: &str) -> Listener {
    Listener { address: address(text), state: AnaState::Optimized, groups: BTreeMap::new() }
}

fn volume(number: u64) -> NewNamespace {
    NewNamespace::of("pool0", Uuid::from_u64_pair(7, number), Some(Key::from_number(number)))
}

/// A model with the subsystem `DEMO`, and what its subscriber was told.
fn model() -> (Model, Arc<Mutex<Vec<Change>>>) {
    let model = Model::new(1000, None);
    model
        .create_subsystem(NewSubsystem { ana_reporting: true, ..NewSubsystem::named(DEMO) })
        .unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let listed = Arc::clone(&told);
    model.subscribe(move |change| listed.lock().unwrap().push(change.clone()));
    (model, told)
}

fn take(told: &Mutex<Vec<Change>>) -> Vec<Change> {
    std::mem::take(&mut told.lock().unwrap())
}

fn hosts() -> Change {
    Change::Hosts { subsystem: DEMO.into() }
}

fn namespace(id: u32) -> Change {
    Change::Namespace { subsystem: DEMO.into(), namespace: NamespaceId(id) }
}

#[test]
fn nobody_may_connect_until_somebody_says_so() {
    let (model, told) = model();
    let local = address("127.0.0.1:4420");
    let admit = |host| model.subsystem(DEMO).unwrap().admit(host, local);
    model.add_listener(DEMO, listener("127.0.0.1:4420")).unwrap();
    assert_eq!(take(&told), [Change::Discovery]);
    assert_eq!(admit(ALICE), Err(Refusal::Host));
    model.add_host(DEMO, ALICE).unwrap();
    assert_eq!((admit(ALICE), admit(BOB)), (Ok(()), Err(Refusal::Host)));
    model.set_allow_any_host(DEMO, true).unwrap();
    assert_eq!(admit(BOB), Ok(()));
    take(&told);
    model.set_allow_any_host(DEMO, false).unwrap();
    assert_eq!(take(&told), [hosts(), Change::Discovery]);
    assert_eq!((admit(ALICE), admit(BOB)), (Ok(()), Err(Refusal::Host)));
    model.remove_host(DEMO, ALICE).unwrap();
    assert_eq!(take(&told), [hosts(), Change::Discovery]);
    assert_eq!(model.remove_host(DEMO, ALICE), Err(Error::NoHost { nqn: ALICE.into() }));
    assert!(take(&told).is_empty(), "what was refused is not told");
}

#[test]
fn a_listener_is_found_by_the_local_end() {
    let (model, _) = model();
    model.set_allow_any_host(DEMO, true).unwrap();
    for text in ["10.0.0.1:4420", "0.0.0.0:4421", "[::]:4422"] {
        model.add_listener(DEMO, listener(text)).unwrap();
    }
    let demo = model.subsystem(DEMO).unwrap();
    for (local, there) in [
        ("10.0.0.1:4420", true),
        ("[::ffff:10.0.0.1]:4420", true),
        ("10.0.0.2:4420", false),
        ("10.0.0.1:4423", false),
        ("10.0.0.2:4421", true),
        ("[::1]:4421", false),
        ("[fe80::1]:4422", true),
        ("[::ffff:10.0.0.2]:4422", true),
    ] {
        let admitted = demo.admit(ALICE, address(local));
        assert_eq!(admitted.is_ok(), there, "{local}: {admitted:?}");
    }
    let same = model.add_listener(DEMO, listener("10.0.0.1:4420"));
    assert_eq!(same, Err(Error::ListenerExists { address: address("10.0.0.1:4420") }));
    assert_eq!(model.add_listener(DEMO, listener("10.0.0.1:0")), Err(Error::Port));
    let demo = model.subsystem(DEMO).unwrap();
    assert_eq!(demo.listeners.len(), 3, "what was refused is not there");
}

#[test]
fn namespaces_have_the_identity_of_their_volume() {
    let (model, told) = model();
    assert_eq!(model.add_namespace(DEMO, volume(1)), Ok(NamespaceId(1)));
    assert_eq!(take(&told), [namespace(1)]);
    let third = NewNamespace { id: Some(NamespaceId(3)), ..volume(3) };
    assert_eq!(model.add_namespace(DEMO, third), Ok(NamespaceId(3)));
    assert_eq!(model.add_namespace(DEMO, volume(2)), Ok(NamespaceId(2)));
    let demo = model.subsystem(DEMO).unwrap();
    let first = demo.namespace(ALICE, NamespaceId(1)).unwrap();
    assert_eq!((first.uuid, first.nguid), (first.volume, first.volume));
    assert_eq!(first.ana_group, 1);
    let again = NewNamespace { id: Some(NamespaceId(3)), ..volume(4) };
    assert_eq!(
        model.add_namespace(DEMO, again),
        Err(Error::NamespaceExists { id: NamespaceId(3) })
    );
    model.create_subsystem(NewSubsystem::named(OTHER)).unwrap();
    assert_eq!(
        model.add_namespace(OTHER, volume(3)),
        Err(Error::VolumeExported { nqn: DEMO.into(), id: NamespaceId(3) })
    );
    let beyond = NewNamespace { id: Some(NamespaceId(33)), ..volume(4) };
    assert_eq!(model.add_namespace(DEMO, beyond), Err(Error::NamespaceId { max: 32 }));
    take(&told);
    model.remove_namespace(DEMO, NamespaceId(1)).unwrap();
    assert_eq!(take(&told), [namespace(1)]);
    model.volume_changed(Key::from_number(3));
    assert_eq!(take(&told), [namespace(3)]);
    // A snapshot that was taken before does not change.
    assert!(demo.namespace(ALICE, NamespaceId(1)).is_some());
}

#[test]
fn a_namespace_without_its_volume_is_not_seen() {
    let (model, _) = model();
    let new = NewNamespace { key: None, ..volume(1) };
    model.add_namespace(DEMO, new).unwrap();
    let demo = model.subsystem(DEMO).unwrap();
    assert!(demo.namespace(ALICE, NamespaceId(1)).is_none());
    assert_eq!(demo.namespaces.len(), 1);
}

#[test]
fn a_namespace_can_be_shown_to_some_hosts_alone() {
    let (model, _) = model();
    model.add_namespace(DEMO, volume(1)).unwrap();
    let hidden = NewNamespace { visible_to_all: false, ..volume(2) };
    let id = model.add_namespace(DEMO, hidden).unwrap();
    let sees = |host| -> Vec<u32> {
        let demo = model.subsystem(DEMO).unwrap();
        demo.visible(host).map(|namespace| namespace.id.get()).collect()
    };
    assert_eq!(sees(ALICE), [1]);
    model.set_visible(DEMO, id, ALICE, true).unwrap();
    assert_eq!((sees(ALICE), sees(BOB)), (vec![1, 2], vec![1]));
    model.set_visible(DEMO, id, ALICE, false).unwrap();
    assert_eq!(sees(ALICE), [1]);
    assert_eq!(model.set_visible(DEMO, id, ALICE, false), Err(Error::NoHost { nqn: ALICE.into() }));
    assert_eq!(
        model.set_visible(DEMO, NamespaceId(1), ALICE, true),
        Err(Error::VisibleToAll { id: NamespaceId(1) })
    );
}

#[test]
fn ana_states_are_of_a_listener() {
    let (model, told) = model();
    let (left, right) = (address("127.0.0.1:4420"), address("127.0.0.1:4421"));
    model.add_listener(DEMO, listener("127.0.0.1:4420")).unwrap();
    model.add_listener(DEMO, listener("127.0.0.1:4421")).unwrap();
    model.add_namespace(DEMO, volume(1)).unwrap();
    take(&told);
    let state = |local, group| model.subsystem(DEMO).unwrap().ana_state(local, group);
    model.set_ana_state(DEMO, left, None, AnaState::Inaccessible).unwrap();
    assert_eq!(take(&told), [Change::Ana { subsystem: DEMO.into() }]);
    model.set_ana_state(DEMO, left, Some(2), AnaState::NonOptimized).unwrap();
    assert_eq!(state(left, 1), AnaState::Inaccessible);
    assert_eq!(state(left, 2), AnaState::NonOptimized);
    assert_eq!(state(right, 1), AnaState::Optimized);
    assert_eq!(state(address("127.0.0.1:4422"), 1), AnaState::Inaccessible);
    model.set_ana_state(DEMO, left, None, AnaState::Optimized).unwrap();
    assert_eq!(state(left, 2), AnaState::Optimized);
    model.set_ana_group(DEMO, NamespaceId(1), 5).unwrap();
    let groups = model.subsystem(DEMO).unwrap().ana_groups(ALICE);
    assert_eq!(groups, BTreeMap::from([(5, vec![NamespaceId(1)])]));
    assert_eq!(model.set_ana_group(DEMO, NamespaceId(1), 33), Err(Error::AnaGroup { max: 32 }));
    assert_eq!(model.subsystem(DEMO).unwrap().ana_changes, 4);
    model.create_subsystem(NewSubsystem::named(OTHER)).unwrap();
    let refused = model.set_ana_state(OTHER, left, None, AnaState::Inaccessible);
    assert_eq!(refused, Err(Error::NoAna));
}

#[test]
fn the_generation_moves_with_every_change_and_no_other() {
    let (model, _) = model();
    let mut last = model.generation();
    let mut moved = || {
        let before = std::mem::replace(&mut last, model.generation());
        before != last
    };
    assert!(!moved());
    model.add_host(DEMO, ALICE).unwrap();
    assert!(moved());
    model.remove_host(DEMO, BOB).unwrap_err();
    assert!(!moved());
    model.volume_changed(Key::from_number(1));
    assert!(!moved(), "no namespace is on it");
}

/// What a page says: its generation, and of each entry kind, address, port and NQN.
fn read(page: &[u8]) -> (u64, Vec<(u8, String, String, String)>) {
    let (header, rest) = DiscoveryHeader::read_from_prefix(page).unwrap();
    let entries = <[DiscoveryEntry]>::ref_from_bytes(rest).unwrap();
    assert_eq!(header.records.get(), entries.len() as u64);
    let text = |field: &[u8]| String::from_utf8(field.to_vec()).unwrap().trim_end().to_owned();
    let one = |entry: &DiscoveryEntry| {
        assert_eq!(entry.transport, 3);
        assert_eq!(entry.family, if entry.address.contains(&b':') { 2 } else { 1 });
        let nqn = crate::spec::fabrics::nqn(&entry.subsystem_nqn).unwrap().to_owned();
        (entry.subsystem_type, text(&entry.address), text(&entry.service), nqn)
    };
    (header.generation.get(), entries.iter().map(one).collect())
}

#[test]
fn discovery_tells_a_host_what_it_may_connect_to() {
    let (model, _) = model();
    model.add_listener(DEMO, listener("127.0.0.1:4420")).unwrap();
    model.add_listener(DEMO, listener("0.0.0.0:4421")).unwrap();
    model.add_listener(DEMO, listener("[::1]:4420")).unwrap();
    let local = address("192.0.2.1:8009");
    let current = || (3, "192.0.2.1".into(), "8009".into(), DISCOVERY_NQN.to_owned());
    let entry = |ip: &str, port: &str| {
        (SubsystemType::NVM.0, ip.to_owned(), port.to_owned(), DEMO.to_owned())
    };
    let (first, entries) = read(&model.discovery_log(ALICE, local));
    assert!(first >= 1000, "the counter begins where it was told to: {first}");
    assert_eq!(entries, [current()], "nothing for a host that may not connect");
    model.add_host(DEMO, ALICE).unwrap();
    let (second, entries) = read(&model.discovery_log(ALICE, local));
    assert!(second > first);
    let expected =
        [current(), entry("127.0.0.1", "4420"), entry("192.0.2.1", "4421"), entry("::1", "4420")];
    assert_eq!(entries, expected);
    assert_eq!(read(&model.discovery_log(BOB, local)).1, [current()]);
    // Through IPv6 the listener for every IPv4 address has no address to tell.
    let (_, entries) = read(&model.discovery_log(ALICE, address("[2001:db8::1]:8009")));
    assert_eq!(entries.len(), 3, "{entries:?}");
    // What does not concern discovery does not disturb it.
    model.add_namespace(DEMO, volume(1)).unwrap();
    assert_eq!(read(&model.discovery_log(ALICE, local)).0, second);
    let referral = Referral { address: address("192.0.2.9:8009"), nqn: DISCOVERY_NQN.into() };
    model.add_referral(referral.clone()).unwrap();
    let (third, entries) = read(&model.discovery_log(BOB, local));
    assert!(third > second);
    let told = (1, "192.0.2.9".into(), "8009".into(), DISCOVERY_NQN.to_owned());
    assert_eq!(entries, [current(), told]);
    model.add_referral(referral.clone()).unwrap_err();
    model.remove_referral(&referral).unwrap();
    assert_eq!(read(&model.discovery_log(BOB, local)).1.len(), 1);
}

struct Full;

impl Keeper for Full {
    fn keep(&self, _: &Exports) -> Result<(), String> {
        Err("No space left on device".into())
    }
}

#[test]
fn what_cannot_be_kept_is_not_done() {
    let model = Model::new(0, Some(Box::new(Full)));
    let before = model.generation();
    let refused = model.create_subsystem(NewSubsystem::named(DEMO));
    assert_eq!(refused, Err(Error::NotKept { reason: "No space left on device".into() }));
    assert!(model.subsystem(DEMO).is_none());
    assert_eq!(model.generation(), before);
}

#[test]
fn limits_hold() {
    let (model, _) = model();
    for port in 1..=LISTENERS_PER_SUBSYSTEM {
        model.add_listener(DEMO, listener(&format!("127.0.0.1:{port}"))).unwrap();
    }
    assert_eq!(model.add_listener(DEMO, listener("127.0.0.1:9999")), Err(Error::TooManyListeners));
    model
        .create_subsystem(NewSubsystem { max_namespaces: 1, ..NewSubsystem::named(OTHER) })
        .unwrap();
    model.add_namespace(OTHER, volume(1)).unwrap();
    assert_eq!(model.add_namespace(OTHER, volume(2)), Err(Error::NoFreeNamespace { max: 1 }));
    for bad in [
        NewSubsystem { max_namespaces: 0, ..NewSubsystem::named("nqn.2026-11.io.lvolfs:c") },
        NewSubsystem { min_cntlid: 0, ..NewSubsystem::named("nqn.2026-11.io.lvolfs:c") },
        NewSubsystem { max_cntlid: 0xfff0, ..NewSubsystem::named("nqn.2026-11.io.lvolfs:c") },
        NewSubsystem {
            min_cntlid: 9,
            max_cntlid: 8,
            ..NewSubsystem::named("nqn.2026-11.io.lvolfs:c")
        },
        NewSubsystem { serial: String::new(), ..NewSubsystem::named("nqn.2026-11.io.lvolfs:c") },
        NewSubsystem::named(DISCOVERY_NQN),
        NewSubsystem::named(DEMO),
    ] {
        assert!(model.create_subsystem(bad.clone()).is_err(), "{bad:?}");
    }
}

/// A subsystem that the configuration declares.
fn subsystem(nqn: &str, hosts: &[&str], volumes: &[u64]) -> Subsystem {
    let model = Model::new(0, None);
    model.create_subsystem(NewSubsystem::named(nqn)).unwrap();
    hosts.iter().for_each(|host| model.add_host(nqn, host).unwrap());
    for number in volumes {
        model.add_namespace(nqn, volume(*number)).unwrap();
    }
    (*model.subsystem(nqn).unwrap()).clone()
}

fn exports(subsystems: &[Subsystem]) -> Exports {
    let named = |subsystem: &Subsystem| (subsystem.nqn.clone(), Arc::new(subsystem.clone()));
    Exports { subsystems: subsystems.iter().map(named).collect(), referrals: Vec::new() }
}

#[test]
fn changes_outlive_a_restart_and_an_edited_declaration_wins() {
    let declared = exports(&[subsystem(DEMO, &[ALICE], &[1])]);
    let changed = exports(&[subsystem(DEMO, &[BOB], &[1]), subsystem(OTHER, &[BOB], &[2])]);
    let kept = state_file::Kept { declared: declared.clone(), exports: changed.clone() };
    assert_eq!(kept.clone().merge(&declared), (changed, vec![]), "as it was changed");

    let edited = exports(&[subsystem(DEMO, &[], &[1])]);
    let (merged, dropped) = kept.clone().merge(&edited);
    assert_eq!(merged.subsystems[DEMO].hosts.len(), 0, "the edit took the host away");
    assert_eq!(merged.subsystems[OTHER].hosts.len(), 1);
    assert_eq!(dropped.len(), 1, "{dropped:?}");

    let (merged, dropped) = kept.clone().merge(&Exports::default());
    assert!(!merged.subsystems.contains_key(DEMO), "its declaration was removed");
    assert_eq!(dropped.len(), 1, "{dropped:?}");

    // A volume that is declared elsewhere now leaves the subsystem that was made at run time.
    let (merged, dropped) = kept.merge(&exports(&[subsystem(DEMO, &[ALICE], &[1, 2])]));
    assert_eq!(merged.subsystems[OTHER].namespaces.len(), 0);
    assert_eq!(merged.check(), Ok(()));
    assert_eq!(dropped.len(), 2, "{dropped:?}");

    let deleted = state_file::Kept { declared: declared.clone(), exports: Exports::default() };
    assert!(deleted.clone().merge(&declared).0.subsystems.is_empty(), "it stays deleted");
    assert_eq!(deleted.merge(&edited).0, edited);
}

#[test]
fn a_state_file_is_whole_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("var/target");
    let declared = exports(&[subsystem(DEMO, &[ALICE], &[1])]);
    let file = state_file::StateFile::new(&place, declared.clone());
    assert!(file.load().unwrap().is_none(), "nothing was kept");
    assert!(!place.exists(), "looking touches nothing");
    let mut changed = declared.clone();
    let with_group = Arc::make_mut(changed.subsystems.get_mut(DEMO).unwrap());
    with_group.ana_reporting = true;
    with_group.listeners.push(Listener {
        groups: BTreeMap::from([(3, AnaState::Inaccessible)]),
        ..listener("[::1]:4420")
    });
    file.keep(&changed).unwrap();
    let kept = file.load().unwrap().unwrap();
    assert_eq!((kept.declared, kept.exports), (declared, changed));
    assert!(!place.join("target.json.tmp").exists());
    let text = std::fs::read(file.path()).unwrap();
    // Every bit that is turned over, and every end that is cut off, is noticed, or means nothing.
    let whole = file.load().unwrap();
    for at in 0..text.len() {
        let mut bad = text.clone();
        bad[at] ^= 1 << (at % 7);
        std::fs::write(file.path(), &bad).unwrap();
        if let Ok(read) = file.load() {
            assert_eq!(read, whole, "byte {at} turned over");
        }
        std::fs::write(file.path(), &text[..at]).unwrap();
        if let Ok(read) = file.load() {
            assert_eq!(read, whole, "cut at {at}");
        }
    }
}
