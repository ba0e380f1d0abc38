//! `[target]`: what is exported to other machines.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use toml::Spanned;

use super::check::{Checker, Named, no_such};
use super::raw::{Key, RawNamespace, RawSubsystem, RawTarget};
use super::{Cache, DEFAULT_STATE_DIR, Pool, VolumeName};
use crate::spec::name::{
    DEFAULT_MODEL, DEFAULT_SERIAL, NameError, check_model, check_nqn, check_serial,
    check_subsystem_nqn,
};

/// The most namespaces of a subsystem.
pub(super) const NAMESPACES_PER_SUBSYSTEM: u32 = 1024;
/// Namespaces of a subsystem that does not say otherwise; SPDK's.
pub(super) const DEFAULT_MAX_NAMESPACES: u32 = 32;
/// The most addresses in one list.
const ADDRESSES_LIMIT: usize = 64;

/// `[target]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where subsystems can be reached that do not say otherwise.
    pub listen: Vec<SocketAddr>,
    /// Where else discovery answers; it does on every listener of a subsystem too.
    pub discovery: Vec<SocketAddr>,
    /// Other discovery services that hosts are told of.
    pub referrals: Vec<SocketAddr>,
    /// The folder for what is changed while the target runs.
    pub state_dir: PathBuf,
    /// The subsystems, in the file's order. Names are unique; no volume is in two of them.
    pub subsystems: Vec<Subsystem>,
}

/// `[[target.subsystem]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subsystem {
    /// NQN.
    pub nqn: String,
    /// Namespaces, in the file's order.
    pub namespaces: Vec<Namespace>,
    /// NQNs of the hosts that may connect.
    pub hosts: Vec<String>,
    /// Whether every host may connect.
    pub allow_any_host: bool,
    /// Where it can be reached.
    pub listen: Vec<SocketAddr>,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// The largest NSID.
    pub max_namespaces: u32,
    /// Whether hosts are told of ANA groups.
    pub ana: bool,
}

/// A namespace of a subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The volume, in a pool that exists.
    pub volume: VolumeName,
    /// NSID; unique in its subsystem, and not 0.
    pub nsid: u32,
    /// ANAGRPID.
    pub ana_group: u32,
    /// The hosts that see it; `None` for all that may connect.
    pub hosts: Option<Vec<String>>,
}

impl Checker<'_> {
    pub(super) fn target(&mut self, raw: RawTarget, pools: &Named<Pool>) -> Target {
        let listen = self.addresses(raw.listen, "target.listen");
        let discovery = self.addresses(raw.discovery, "target.discovery");
        let referrals = self.addresses(raw.referrals, "target.referrals");
        let state_dir = raw.state_dir.and_then(|key| self.path(key, "target.state_dir"));
        let mut exported = HashMap::new();
        let mut names = HashMap::new();
        let mut subsystems = Vec::new();
        for section in raw.subsystem {
            let (span, raw) = (section.span(), section.into_inner());
            let what = "the subsystem's name, such as \"nqn.2026-11.io.lvolfs:demo\"";
            let nqn = self.require(raw.nqn.clone(), &span, "target.subsystem.nqn", what);
            let nqn = nqn.filter(|nqn| self.subsystem_nqn(nqn, &mut names));
            let subsystem = self.subsystem(raw, &listen, pools, &mut exported);
            if let (Some(nqn), Some(subsystem)) = (nqn, subsystem) {
                subsystems.push(Subsystem { nqn: nqn.into_inner(), ..subsystem });
            }
        }
        Target {
            listen,
            discovery,
            referrals,
            state_dir: state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
            subsystems,
        }
    }

    fn subsystem_nqn(&mut self, nqn: &Spanned<String>, names: &mut HashMap<String, usize>) -> bool {
        if let Err(error) = check_subsystem_nqn(nqn.get_ref()) {
            self.refuse(nqn.span(), "target.subsystem.nqn", error.to_string());
            return false;
        }
        self.unique(nqn, "target.subsystem.nqn", names)
    }

    /// A subsystem but for its name.
    fn subsystem(
        &mut self,
        raw: RawSubsystem,
        listen: &[SocketAddr],
        pools: &Named<Pool>,
        exported: &mut HashMap<String, usize>,
    ) -> Option<Subsystem> {
        let serial = self.text(raw.serial, "serial", DEFAULT_SERIAL, check_serial);
        let model = self.text(raw.model, "model", DEFAULT_MODEL, check_model);
        let max = self.number(raw.max_namespaces, "max_namespaces", NAMESPACES_PER_SUBSYSTEM);
        let max = max.map(|max| max.unwrap_or(DEFAULT_MAX_NAMESPACES));
        let hosts = self.hosts(raw.hosts, "target.subsystem.hosts");
        let own = raw.listen.map(|list| self.addresses(list, "target.subsystem.listen"));
        let namespaces = max.map(|max| self.namespaces(raw.namespaces, max, pools, exported));
        Some(Subsystem {
            nqn: String::new(),
            namespaces: namespaces?,
            hosts,
            allow_any_host: raw.allow_any_host,
            listen: own.unwrap_or_else(|| listen.to_vec()),
            serial: serial?,
            model: model?,
            max_namespaces: max?,
            ana: raw.ana,
        })
    }

    fn namespaces(
        &mut self,
        raw: Vec<Spanned<RawNamespace>>,
        max: u32,
        pools: &Named<Pool>,
        exported: &mut HashMap<String, usize>,
    ) -> Vec<Namespace> {
        let mut namespaces: Vec<Namespace> = Vec::new();
        for section in raw {
            let (span, raw) = (section.span(), section.into_inner());
            let what = "the volume, such as \"pool0/demo\"";
            let (Some(volume), Some(nsid)) = (&raw.volume, &raw.nsid) else {
                let missing = if raw.volume.is_none() { what } else { "its NSID, such as 1" };
                let key = if raw.volume.is_none() { "volume" } else { "nsid" };
                let rule = format!("the key \"{key}\" is missing: {missing}");
                self.refuse(span, "target.subsystem.namespaces", rule);
                continue;
            };
            let volume = self.exported_volume(volume, pools, exported);
            let taken = namespaces.iter().any(|other| other.nsid == *nsid.get_ref());
            if taken {
                let rule = "another namespace of the subsystem has this NSID";
                self.refuse(nsid.span(), "target.subsystem.namespaces.nsid", rule);
            }
            let nsid = self.number(raw.nsid, "namespaces.nsid", max).flatten();
            let group = self.number(raw.ana_group, "namespaces.ana_group", max);
            let hosts =
                raw.hosts.map(|hosts| self.hosts(hosts, "target.subsystem.namespaces.hosts"));
            if let (Some(volume), Some(nsid), Some(group)) = (volume, nsid, group) {
                let ana_group = group.unwrap_or(nsid);
                namespaces.push(Namespace { volume, nsid, ana_group, hosts });
            }
        }
        namespaces
    }

    fn exported_volume(
        &mut self,
        key: &Spanned<String>,
        pools: &Named<Pool>,
        exported: &mut HashMap<String, usize>,
    ) -> Option<VolumeName> {
        const KEY: &str = "target.subsystem.namespaces.volume";
        let name = match VolumeName::parse(key.get_ref()) {
            Ok(name) => name,
            Err(error) => {
                self.refuse(key.span(), KEY, error.to_string());
                return None;
            }
        };
        if !pools.lines.contains_key(name.pool()) {
            self.refuse(key.span(), KEY, no_such("pool", &pools.lines));
            return None;
        }
        if self.caches.of(&name) == Cache::Writeback {
            let rule = "the mount keeps what is written to it in the page cache, where no host \
                        sees it; give the volume cache = \"direct\"";
            self.refuse(key.span(), KEY, rule);
            return None;
        }
        self.unique(key, KEY, exported).then_some(name)
    }

    /// A number from 1 to `max`, if it is there; `None` if it is refused.
    fn number(&mut self, key: Key<u32>, name: &str, max: u32) -> Option<Option<u32>> {
        let Some(key) = key else { return Some(None) };
        if (1..=max).contains(key.get_ref()) {
            return Some(Some(*key.get_ref()));
        }
        let name = format!("target.subsystem.{name}");
        self.refuse(key.span(), &name, format!("it is from 1 to {max}"));
        None
    }

    fn text(
        &mut self,
        key: Key<String>,
        name: &str,
        default: &str,
        check: fn(&str) -> Result<(), NameError>,
    ) -> Option<String> {
        let Some(key) = key else { return Some(default.to_owned()) };
        match check(key.get_ref()) {
            Ok(()) => Some(key.into_inner()),
            Err(error) => {
                let name = format!("target.subsystem.{name}");
                self.refuse(key.span(), &name, error.to_string());
                None
            }
        }
    }

    fn hosts(&mut self, list: Vec<Spanned<String>>, name: &str) -> Vec<String> {
        let mut hosts = Vec::new();
        for host in list {
            match check_nqn(host.get_ref()) {
                Ok(()) => hosts.push(host.into_inner()),
                Err(error) => self.refuse(host.span(), name, error.to_string()),
            }
        }
        hosts
    }

    fn addresses(&mut self, list: Vec<Spanned<String>>, name: &str) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        for key in list {
            let rule = match key.get_ref().parse::<SocketAddr>() {
                Ok(address) if address.port() == 0 => "a port is from 1 to 65535",
                Ok(address) if addresses.contains(&address) => "this address is there twice",
                Ok(_) if addresses.len() == ADDRESSES_LIMIT => "there are at most 64 addresses",
                Ok(address) => {
                    addresses.push(address);
                    continue;
                }
                Err(_) => "an address and a port, such as \"127.0.0.1:4420\" or \"[::1]:4420\"",
            };
            self.refuse(key.span(), name, rule);
        }
        addresses
    }
}
