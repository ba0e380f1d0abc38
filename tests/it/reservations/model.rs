//! Random commands of several hosts, against a model that is slow and plain.
//!
//! The model has one entry for each host and numbers for everything else; it knows the rules as
//! sentences over hosts, not as transitions of a structure. After each command, status, rights,
//! report, notifications, drained hosts and stored form must be what it says.

use std::collections::{BTreeMap, BTreeSet};

use lvolfs::reservation::persistence::{decode, encode};
use lvolfs::reservation::{Command, Gate, Pass, ReportFormat, Reservations, Rights, report};
use lvolfs::spec::command::SubmissionEntry;
use lvolfs::spec::reservation::HostId;
use lvolfs::spec::status::StatusCode;
use lvolfs::units::ControllerId;
use uuid::Uuid;

pub(crate) const HOSTS: u8 = 5;
const VOLUME: Uuid = Uuid::from_u128(7);
const CONFLICT: Result<(), StatusCode> = Err(StatusCode::RESERVATION_CONFLICT);
const INVALID: Result<(), StatusCode> = Err(StatusCode::INVALID_FIELD);

pub(crate) fn host(number: u8) -> HostId {
    HostId::new([number + 1; 16]).unwrap()
}

/// A command as its fields on the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw {
    opcode: u8,
    action: u32,
    iekey: bool,
    rtype: u32,
    cptpl: u32,
    first_key: u64,
    second_key: u64,
}

impl Raw {
    pub(crate) fn random(random: &mut fastrand::Rng, model: &Model, sender: u8) -> Self {
        // Keys that mean something are likely, so that most commands get past the first check.
        let own = model.keys.get(&sender).copied().unwrap_or(0);
        let first_key = if random.u8(..8) > 0 { own } else { random.u64(..4) };
        Self {
            opcode: [0x0d, 0x0d, 0x11, 0x11, 0x11, 0x15][random.usize(..6)],
            action: random.u32(..3),
            iekey: random.u8(..8) == 0,
            rtype: if random.u8(..16) == 0 { random.u32(..9) } else { random.u32(1..=6) },
            cptpl: random.u32(..4),
            first_key,
            second_key: random.u64(..5),
        }
    }

    /// The command and its data.
    pub(crate) fn wire(&self) -> (SubmissionEntry, Vec<u8>) {
        let mut entry = SubmissionEntry { opcode: self.opcode, ..SubmissionEntry::default() };
        let rtype = if self.opcode == 0x0d { 0 } else { self.rtype << 8 };
        let cptpl = if self.opcode == 0x0d { self.cptpl << 30 } else { 0 };
        entry.namespace = 1.into();
        entry.dword10 = (self.action | u32::from(self.iekey) << 3 | rtype | cptpl).into();
        (entry, [self.first_key.to_le_bytes(), self.second_key.to_le_bytes()].concat())
    }

    fn decode(&self) -> Result<Command, StatusCode> {
        let (entry, data) = self.wire();
        Command::decode(&entry, &data)
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Model {
    keys: BTreeMap<u8, u64>,
    /// Those in the order of their registration.
    order: Vec<u8>,
    /// RTYPE, and who took it.
    held: Option<(u32, u8)>,
    generation: u32,
    ptpl: bool,
    /// Of the last command: who was told what, who must be drained.
    pub(crate) told: BTreeSet<(u8, u8)>,
    drained: BTreeSet<u8>,
}

impl Model {
    /// What a restart of the target makes of it.
    pub(crate) fn restart(&mut self) {
        *self = match self.ptpl {
            true => Self { generation: 0, ..self.clone() },
            false => Self::default(),
        };
    }

    fn holders(&self) -> BTreeSet<u8> {
        match self.held {
            None => BTreeSet::new(),
            Some((5 | 6, _)) => self.keys.keys().copied().collect(),
            Some((_, taker)) => BTreeSet::from([taker]),
        }
    }

    /// Whether a host may read, and write.
    pub(crate) fn may(&self, host: u8) -> (bool, bool) {
        let Some((rtype, _)) = self.held else { return (true, true) };
        let insider =
            self.holders().contains(&host) || (rtype >= 3 && self.keys.contains_key(&host));
        // Odd types are Write Exclusive: everyone reads.
        (insider || rtype % 2 == 1, insider)
    }

    fn others(&self, sender: u8) -> BTreeSet<u8> {
        self.keys.keys().copied().filter(|&one| one != sender).collect()
    }

    fn tell(&mut self, hosts: BTreeSet<u8>, event: u8) {
        self.told.extend(hosts.into_iter().map(|one| (one, event)));
    }

    fn forget(&mut self, gone: &BTreeSet<u8>) {
        let holders = self.holders();
        self.keys.retain(|one, _| !gone.contains(one));
        self.order.retain(|one| !gone.contains(one));
        if !holders.is_empty() && holders.is_subset(gone) {
            self.held = None;
        }
    }

    pub(crate) fn execute(&mut self, sender: u8, raw: &Raw) -> Result<(), StatusCode> {
        self.told.clear();
        self.drained.clear();
        match raw.opcode {
            0x0d => self.register(sender, raw),
            0x11 => self.acquire(sender, raw),
            _ => self.release(sender, raw),
        }
    }

    fn register(&mut self, sender: u8, raw: &Raw) -> Result<(), StatusCode> {
        if raw.cptpl == 1 {
            return INVALID;
        }
        let own = self.keys.get(&sender).copied();
        let shown = own.is_some() && (raw.iekey || own == Some(raw.first_key));
        let new = raw.second_key;
        let unregister = match raw.action {
            1 => true,
            0 => new == 0 && raw.iekey && own.is_some(),
            _ => new == 0 && own.is_some(),
        };
        if unregister {
            if !shown {
                return CONFLICT;
            }
            let before = self.held;
            self.forget(&BTreeSet::from([sender]));
            if let (Some((3..=6, _)), None) = (before, self.held) {
                self.tell(self.others(sender), 2);
            }
        } else {
            let allowed = match (raw.action, own) {
                (0, None) => true,
                (0, Some(own)) => own == new || raw.iekey,
                (_, None) => raw.iekey,
                (_, Some(_)) => shown,
            };
            if raw.action == 0 && new == 0 {
                return INVALID;
            }
            if !allowed {
                return CONFLICT;
            }
            if new == 0 {
                return INVALID;
            }
            if self.keys.insert(sender, new).is_none() {
                self.order.push(sender);
            }
        }
        self.generation += 1;
        if raw.cptpl != 0 {
            self.ptpl = raw.cptpl == 3;
        }
        Ok(())
    }

    fn acquire(&mut self, sender: u8, raw: &Raw) -> Result<(), StatusCode> {
        if raw.iekey || raw.rtype == 0 || raw.rtype > 6 {
            return INVALID;
        }
        if self.keys.get(&sender) != Some(&raw.first_key) {
            return CONFLICT;
        }
        if raw.action == 0 {
            return match self.held {
                None => {
                    self.held = Some((raw.rtype, sender));
                    Ok(())
                }
                Some((rtype, _)) if rtype == raw.rtype && self.holders().contains(&sender) => {
                    Ok(())
                }
                Some(_) => CONFLICT,
            };
        }
        let victim = raw.second_key;
        let named: BTreeSet<u8> =
            self.keys.iter().filter(|(_, key)| **key == victim).map(|(one, _)| *one).collect();
        let (gone, takes) = match self.held {
            Some((5 | 6, _)) if victim == 0 => (self.others(sender), true),
            Some((1..=4, holder)) if named.contains(&holder) => {
                (&named - &BTreeSet::from([sender]), true)
            }
            _ if victim == 0 => return INVALID,
            _ if named.is_empty() => return CONFLICT,
            _ => (named, false),
        };
        let before = self.held;
        self.forget(&gone);
        if takes {
            self.held = Some((raw.rtype, sender));
            if before != self.held {
                self.tell(self.others(sender), 2);
            }
        }
        let preempted = &gone - &BTreeSet::from([sender]);
        self.tell(preempted.clone(), 1);
        if raw.action == 2 {
            self.drained = preempted;
        }
        self.generation += 1;
        Ok(())
    }

    fn release(&mut self, sender: u8, raw: &Raw) -> Result<(), StatusCode> {
        if raw.iekey || raw.action > 1 || (raw.action == 0 && raw.rtype > 6) {
            return INVALID;
        }
        if self.keys.get(&sender) != Some(&raw.first_key) {
            return CONFLICT;
        }
        if raw.action == 1 {
            self.tell(self.others(sender), 3);
            (self.keys, self.order, self.held) = Default::default();
            self.generation += 1;
            return Ok(());
        }
        let Some((rtype, _)) = self.held else { return Ok(()) };
        if rtype != raw.rtype {
            return INVALID;
        }
        if self.holders().contains(&sender) {
            self.held = None;
            if rtype >= 3 {
                self.tell(self.others(sender), 2);
            }
        }
        Ok(())
    }

    /// The extended report of a target in which each host has the controller of its own number.
    pub(crate) fn report(&self) -> Vec<u8> {
        let mut bytes = vec![0; 64 * (1 + self.order.len())];
        bytes[..4].copy_from_slice(&self.generation.to_le_bytes());
        bytes[4] = self.held.map_or(0, |(rtype, _)| rtype as u8);
        bytes[5] = self.order.len() as u8;
        bytes[9] = u8::from(self.ptpl);
        for (entry, one) in bytes[64..].chunks_mut(64).zip(&self.order) {
            entry[0] = *one;
            entry[2] = u8::from(self.holders().contains(one));
            entry[8..16].copy_from_slice(&self.keys[one].to_le_bytes());
            entry[16..32].copy_from_slice(&[one + 1; 16]);
        }
        bytes
    }
}

fn check_state(model: &Model, state: &Reservations, passes: &[Pass], what: &str) {
    for (number, pass) in (0..HOSTS).zip(passes) {
        let rights = state.rights(host(number));
        let expected = match model.may(number) {
            (true, true) => Rights::All,
            (true, false) => Rights::Read,
            _ => Rights::None,
        };
        assert_eq!(rights, expected, "{what}: host {number}");
        for access in [lvolfs::reservation::Access::Read, lvolfs::reservation::Access::Write] {
            assert_eq!(pass.check(access).is_ok(), rights.allow(access), "{what}");
        }
    }
    let controller = |asked: HostId| Some(ControllerId(u16::from(asked.bytes()[0]) - 1));
    let bytes = report(state, ReportFormat::Extended, controller).unwrap();
    assert_eq!(bytes, model.report(), "{what}");
}

/// After a restart: what persists is there, with generation 0; else nothing is.
fn check_stored(model: &Model, state: &Reservations, what: &str) {
    let loaded = decode(&encode(state, VOLUME), VOLUME).unwrap();
    let persists = Model { generation: 0, ..model.clone() };
    let expected = if model.ptpl { persists } else { Model::default() };
    let controller = |asked: HostId| Some(ControllerId(u16::from(asked.bytes()[0]) - 1));
    let bytes = report(&loaded, ReportFormat::Extended, controller).unwrap();
    assert_eq!(bytes, expected.report(), "{what}");
}

fn run(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model = Model::default();
    let gate = Gate::new(Reservations::default());
    let passes: Vec<_> = (0..HOSTS).map(|number| gate.pass(host(number))).collect();
    for step in 0..200 {
        let sender = random.u8(..HOSTS);
        let raw = Raw::random(&mut random, &model, sender);
        let what = format!("seed {seed}, step {step}: host {sender} sends {raw:x?} to {model:?}");
        let before = gate.state();
        let result = raw.decode().and_then(|command| before.apply(host(sender), &command));
        let expected = model.execute(sender, &raw);
        match (result, expected) {
            (Err(found), Err(expected)) => assert_eq!(found, expected, "{what}"),
            (Ok(outcome), Ok(())) => {
                let number = |host: HostId| host.bytes()[0] - 1;
                let told = outcome.notifications.iter();
                let told: Vec<_> =
                    told.map(|told| (number(told.host), told.event.wire().0)).collect();
                assert_eq!(told.len(), model.told.len(), "{what}: {told:?}");
                assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), model.told, "{what}");
                let drained: BTreeSet<_> = outcome.abort.into_iter().map(number).collect();
                assert_eq!(drained, model.drained, "{what}");
                gate.publish(outcome.after);
            }
            (result, expected) => panic!("{what}: {result:?} instead of {expected:?}"),
        }
        check_state(&model, &gate.state(), &passes, &what);
        check_stored(&model, &gate.state(), &what);
    }
}

#[test]
fn random_commands_do_what_the_model_says() {
    for seed in 0..300 {
        run(seed);
    }
}
