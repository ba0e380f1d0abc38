//! The Discovery log page (Base 5.1.12.3.1): where a host finds the subsystems that it may
//! connect to.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use zerocopy::{FromZeros, IntoBytes};

use super::Exports;
use super::subsystem::covers;
use crate::spec::fabrics::{
    AddressFamily, DISCOVERY_NQN, DYNAMIC_CONTROLLER, DiscoveryEntry, DiscoveryHeader,
    SubsystemType, TransportType, fill_nqn,
};

/// Entries of the admin queue that a host may ask for (ASQSZ); at least 32.
const ADMIN_QUEUE_ENTRIES: u16 = 128;

/// Another discovery service, which hosts are told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Referral {
    /// Where it is.
    pub address: SocketAddr,
    /// Its NQN, most often [`DISCOVERY_NQN`].
    pub nqn: String,
}

/// The page for a host that came through `local`, the local end of its connection.
///
/// It has an entry for every listener of every subsystem to which the host may connect, and one for
/// every referral. A listener for every address of the machine is told as the address that the
/// host came to, which it can reach; where that is of another family, the listener is left out.
#[must_use]
pub(super) fn log(exports: &Exports, generation: u64, host: &str, local: SocketAddr) -> Vec<u8> {
    let local_ip = local.ip().to_canonical();
    let mut entries = vec![entry(SubsystemType::CURRENT_DISCOVERY, local, 0, DISCOVERY_NQN)];
    for subsystem in exports.subsystems.values().filter(|subsystem| subsystem.allows(host)) {
        for listener in &subsystem.listeners {
            let Some(address) = reachable(listener.address, local_ip) else { continue };
            // Ports are told apart by their numbers, which are the same for as long as they exist.
            let port = listener.address.port();
            entries.push(entry(SubsystemType::NVM, address, port, &subsystem.nqn));
        }
    }
    for referral in &exports.referrals {
        entries.push(entry(SubsystemType::REFERRAL, referral.address, 0, &referral.nqn));
    }
    let mut header = DiscoveryHeader::new_zeroed();
    header.generation.set(generation);
    header.records.set(entries.len() as u64);
    let mut page = Vec::with_capacity(size_of::<DiscoveryHeader>() * (1 + entries.len()));
    page.extend_from_slice(header.as_bytes());
    page.extend_from_slice(entries.as_bytes());
    page
}

/// The address of a listener as a host that came to `local` can use it.
fn reachable(listener: SocketAddr, local: IpAddr) -> Option<SocketAddr> {
    if !listener.ip().is_unspecified() {
        return Some(listener);
    }
    let address = SocketAddr::new(local, listener.port());
    covers(listener, address).then_some(address)
}

fn entry(kind: SubsystemType, address: SocketAddr, port: u16, nqn: &str) -> DiscoveryEntry {
    let ip = address.ip().to_canonical();
    let family = if ip.is_ipv4() { AddressFamily::IPV4 } else { AddressFamily::IPV6 };
    let mut entry = DiscoveryEntry::new_zeroed();
    entry.transport = TransportType::TCP.0;
    entry.family = family.0;
    entry.subsystem_type = kind.0;
    entry.requirements = DiscoveryEntry::NO_SECURE_CHANNEL | DiscoveryEntry::FLOW_CONTROL_OPTIONAL;
    entry.port.set(port);
    entry.controller_id.set(DYNAMIC_CONTROLLER);
    entry.admin_queue_size.set(ADMIN_QUEUE_ENTRIES);
    if kind == SubsystemType::CURRENT_DISCOVERY {
        entry
            .flags
            .set(DiscoveryEntry::DUPLICATE_INFORMATION | DiscoveryEntry::PERSISTENT_CONNECTIONS);
    }
    fill_padded(&mut entry.service, &address.port().to_string());
    fill_padded(&mut entry.address, &ip.to_string());
    fill_nqn(&mut entry.subsystem_nqn, nqn);
    entry
}

fn fill_padded(field: &mut [u8], text: &str) {
    field.fill(b' ');
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
}
