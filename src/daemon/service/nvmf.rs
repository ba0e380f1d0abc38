//! The NVMe-oF target.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use uuid::Uuid;

use super::{Answer, DaemonService};
use crate::control::types::{
    AddListener, AddNs, AllowAnyHost, AnaStateName, CreateSubsystem, CreateTransport,
    GetSubsystems, GetTransports, GroupState, HostName, ListenAddress, NsHost, NvmfController,
    NvmfListener, NvmfNamespace, NvmfQpair, NvmfReferral, NvmfStats, NvmfSubsystem, PollGroup,
    ReferralEntry, SelectListener, SelectNs, SelectSubsystem, SelectTarget, SetAnaState,
    SetNsAnaGroup, SubsystemHost, Transport, TransportName,
};
use crate::control::{NvmfMethods, RpcError};
use crate::daemon::site::Site;
use crate::daemon::target::TargetDoor;
use crate::nvmf::controller::{Controller, Kind};
use crate::nvmf::limits;
use crate::nvmf::model::{
    self, AnaState, Listener, NewNamespace, NewSubsystem, Referral, Subsystem,
};
use crate::reactor::Remote;
use crate::spec::fabrics::{DISCOVERY_NQN, MAX_CONTROLLER_ID};
use crate::units::NamespaceId;

const TICKS_PER_SECOND: u64 = 1_000_000_000;

/// A refused change, with SPDK's text in front: `Invalid parameters`.
fn refused(error: model::Error) -> RpcError {
    match error {
        model::Error::NotKept { .. } => RpcError::internal(error),
        _ => RpcError::invalid_parameters(error),
    }
}

impl DaemonService {
    fn door(&self) -> Answer<&Arc<TargetDoor>> {
        self.target.as_ref().ok_or_else(RpcError::method_not_found)
    }

    fn subsystem(&self, nqn: &str) -> Answer<Arc<Subsystem>> {
        let found = self.door()?.model().subsystem(nqn);
        found.ok_or_else(|| refused(model::Error::NoSubsystem { nqn: nqn.to_owned() }))
    }

    /// `pool/volume` of a namespace whose volume is there.
    fn volume_name(&self, namespace: &model::Namespace) -> Option<String> {
        let entry = self.directory.volume(namespace.key?)?;
        Some(format!("{}/{}", entry.pool().name(), entry.name()))
    }

    fn told(&self, subsystem: &Subsystem) -> NvmfSubsystem {
        let namespace = |namespace: &model::Namespace| NvmfNamespace {
            nsid: namespace.id.get(),
            bdev_name: namespace.volume.to_string(),
            name: namespace.volume.to_string(),
            nguid: format!("{:X}", namespace.nguid.simple()),
            eui64: (namespace.eui64 != [0; 8])
                .then(|| namespace.eui64.iter().map(|byte| format!("{byte:02X}")).collect()),
            uuid: namespace.uuid,
            anagrpid: subsystem.ana_reporting.then_some(namespace.ana_group),
            volume: self.volume_name(namespace),
            hosts: namespace.visible_to.as_ref().map(|hosts| hosts.iter().cloned().collect()),
        };
        NvmfSubsystem {
            nqn: subsystem.nqn.clone(),
            subtype: "NVMe".to_owned(),
            listen_addresses: subsystem
                .listeners
                .iter()
                .map(|listener| ListenAddress::of(listener.address))
                .collect(),
            allow_any_host: subsystem.allow_any_host,
            hosts: subsystem.hosts.iter().map(|nqn| HostName { nqn: nqn.clone() }).collect(),
            serial_number: Some(subsystem.serial.clone()),
            model_number: Some(subsystem.model.clone()),
            max_namespaces: Some(subsystem.max_namespaces),
            min_cntlid: Some(subsystem.min_cntlid),
            max_cntlid: Some(subsystem.max_cntlid),
            namespaces: Some(subsystem.namespaces.values().map(namespace).collect()),
        }
    }

    fn controllers(&self, nqn: &str) -> Answer<Vec<Arc<Controller>>> {
        if nqn != DISCOVERY_NQN {
            self.subsystem(nqn)?;
        }
        let mut controllers = self.door()?.target.controllers();
        controllers.retain(|controller| controller.subsystem() == nqn);
        controllers.sort_by_key(|controller| controller.id());
        Ok(controllers)
    }
}

/// The discovery subsystem as SPDK shows it.
fn discovery_subsystem(addresses: Vec<SocketAddr>) -> NvmfSubsystem {
    NvmfSubsystem {
        nqn: DISCOVERY_NQN.to_owned(),
        subtype: "Discovery".to_owned(),
        listen_addresses: addresses.into_iter().map(ListenAddress::of).collect(),
        allow_any_host: true,
        hosts: Vec::new(),
        serial_number: None,
        model_number: None,
        max_namespaces: None,
        min_cntlid: None,
        max_cntlid: None,
        namespaces: None,
    }
}

fn ana_state(name: AnaStateName) -> AnaState {
    match name {
        AnaStateName::Optimized => AnaState::Optimized,
        AnaStateName::NonOptimized => AnaState::NonOptimized,
        AnaStateName::Inaccessible => AnaState::Inaccessible,
    }
}

fn ana_name(state: AnaState) -> &'static str {
    match state {
        AnaState::Optimized => "optimized",
        AnaState::NonOptimized => "non_optimized",
        AnaState::Inaccessible => "inaccessible",
        AnaState::PersistentLoss => "persistent_loss",
        AnaState::Change => "change",
    }
}

/// Hexadecimal digits, as many as `N` bytes have; dashes are skipped, as SPDK does.
fn hexadecimal<const N: usize>(name: &str, text: &str) -> Answer<[u8; N]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 2 * N);
    let number = number.filter(|_| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    let Some(number) = number else {
        let reason = format!("{name} {text:?} is not {} hexadecimal digits", 2 * N);
        return Err(RpcError::invalid_parameters(reason));
    };
    let mut bytes = [0; N];
    bytes.copy_from_slice(&number.to_be_bytes()[16 - N..]);
    Ok(bytes)
}

fn refuse_tls(secure_channel: Option<bool>) -> Answer<()> {
    match secure_channel {
        Some(true) => Err(RpcError::invalid_parameters("secure_channel is not supported")),
        _ => Ok(()),
    }
}

fn referral(parameters: &NvmfReferral) -> Answer<Referral> {
    parameters.check_target()?;
    refuse_tls(parameters.secure_channel)?;
    Ok(Referral {
        address: parameters.address.socket_address()?,
        nqn: parameters.subnqn.clone().unwrap_or_else(|| DISCOVERY_NQN.to_owned()),
    })
}

impl NvmfMethods for DaemonService {
    fn nvmf_create_transport(&self, parameters: CreateTransport) -> Answer<bool> {
        parameters.check()?;
        Ok(true)
    }

    fn nvmf_get_transports(&self, parameters: GetTransports) -> Answer<Vec<Transport>> {
        if parameters.trtype.is_some_and(|name| !name.eq_ignore_ascii_case("tcp")) {
            return Err(RpcError::errno(libc::ENODEV));
        }
        Ok(vec![Transport {
            trtype: "TCP".to_owned(),
            max_queue_depth: limits::QUEUE_ENTRIES,
            max_io_qpairs_per_ctrlr: limits::IO_QUEUES.into(),
            in_capsule_data_size: limits::IN_CAPSULE,
            max_io_size: limits::MAX_TRANSFER,
            max_aq_depth: limits::QUEUE_ENTRIES,
            kas: limits::KEEP_ALIVE_UNITS.into(),
            min_kato: limits::MIN_KEEP_ALIVE,
        }])
    }

    fn nvmf_create_subsystem(&self, parameters: CreateSubsystem) -> Answer<bool> {
        parameters.check_target()?;
        let defaults = NewSubsystem::named(&parameters.nqn);
        let new = NewSubsystem {
            serial: parameters.serial_number.unwrap_or(defaults.serial),
            model: parameters.model_number.unwrap_or(defaults.model),
            // SPDK takes 0 for its default too.
            max_namespaces: parameters
                .max_namespaces
                .filter(|max| *max != 0)
                .unwrap_or(defaults.max_namespaces),
            min_cntlid: parameters.min_cntlid.unwrap_or(1),
            max_cntlid: parameters.max_cntlid.unwrap_or(MAX_CONTROLLER_ID),
            ana_reporting: parameters.ana_reporting.unwrap_or(false),
            allow_any_host: parameters.allow_any_host.unwrap_or(false),
            nqn: parameters.nqn,
        };
        self.door()?.model().create_subsystem(new).map_err(refused)?;
        Ok(true)
    }

    fn nvmf_delete_subsystem(&self, parameters: SelectSubsystem) -> Answer<bool> {
        parameters.check_target()?;
        let door = self.door()?;
        door.model().delete_subsystem(&parameters.nqn).map_err(refused)?;
        door.stop_unused();
        Ok(true)
    }

    fn nvmf_get_subsystems(&self, parameters: GetSubsystems) -> Answer<Vec<NvmfSubsystem>> {
        let door = self.door()?;
        let mut addresses = door.target.listeners();
        addresses.sort();
        let mut subsystems = vec![discovery_subsystem(addresses)];
        let exports = door.model().exports();
        subsystems.extend(exports.subsystems.values().map(|subsystem| self.told(subsystem)));
        if let Some(nqn) = parameters.nqn {
            subsystems.retain(|subsystem| subsystem.nqn == nqn);
            if subsystems.is_empty() {
                return Err(RpcError::errno(libc::ENODEV).because(nqn));
            }
        }
        Ok(subsystems)
    }

    fn nvmf_subsystem_add_listener(&self, parameters: AddListener) -> Answer<bool> {
        parameters.check_target()?;
        refuse_tls(parameters.secure_channel)?;
        let address = parameters.listen_address.socket_address()?;
        self.subsystem(&parameters.nqn)?;
        let door = self.door()?;
        // Listen first: the model must not tell hosts of an address where nobody answers.
        door.listen(address).map_err(|error| {
            RpcError::invalid_parameters(format!("cannot listen on {address}: {error}"))
        })?;
        let state = parameters.ana_state.map(ana_state).unwrap_or_default();
        let listener = Listener { address, state, groups: std::collections::BTreeMap::new() };
        let added = door.model().add_listener(&parameters.nqn, listener).map_err(refused);
        if added.is_err() {
            door.stop_unused();
        }
        added.map(|()| true)
    }

    fn nvmf_subsystem_remove_listener(&self, parameters: SelectListener) -> Answer<bool> {
        parameters.check_target()?;
        let address = parameters.listen_address.socket_address()?;
        let door = self.door()?;
        door.model().remove_listener(&parameters.nqn, address).map_err(refused)?;
        door.stop_unused();
        Ok(true)
    }

    fn nvmf_subsystem_listener_set_ana_state(&self, parameters: SetAnaState) -> Answer<bool> {
        parameters.check_target()?;
        let address = parameters.listen_address.socket_address()?;
        let group = parameters.anagrpid.filter(|group| *group != 0);
        let state = ana_state(parameters.ana_state);
        let model = self.door()?.model();
        model.set_ana_state(&parameters.nqn, address, group, state).map_err(refused)?;
        Ok(true)
    }

    fn nvmf_subsystem_get_listeners(
        &self,
        parameters: SelectSubsystem,
    ) -> Answer<Vec<NvmfListener>> {
        parameters.check_target()?;
        let subsystem = self.subsystem(&parameters.nqn)?;
        let groups: std::collections::BTreeSet<u32> =
            subsystem.namespaces.values().map(|namespace| namespace.ana_group).collect();
        let one = |listener: &Listener| {
            let groups = groups.iter().chain(listener.groups.keys());
            let groups: std::collections::BTreeSet<u32> = groups.copied().collect();
            let state = |group: u32| GroupState {
                ana_group: group,
                ana_state: ana_name(listener.ana_state(group)).to_owned(),
            };
            NvmfListener {
                address: ListenAddress::of(listener.address),
                ana_states: subsystem
                    .ana_reporting
                    .then(|| groups.into_iter().map(state).collect()),
            }
        };
        Ok(subsystem.listeners.iter().map(one).collect())
    }

    fn nvmf_subsystem_add_ns(&self, parameters: AddNs) -> Answer<u32> {
        parameters.check_target()?;
        let AddNs { nqn, namespace, .. } = parameters;
        self.subsystem(&nqn)?;
        // SPDK answers a bdev that is missing, and one that is taken, in the same way.
        let invalid = RpcError::invalid_parameters;
        let entry = self
            .volume(&namespace.bdev_name)
            .map_err(|_| invalid(format!("there is no volume {:?}", namespace.bdev_name)))?;
        let hold = entry.hold(&nqn).map_err(|error| {
            invalid(format!("{}/{}: {error}", entry.pool().name(), entry.name()))
        })?;
        let nguid = namespace.nguid.map(|text| hexadecimal("nguid", &text)).transpose()?;
        let eui64 = namespace.eui64.map(|text| hexadecimal("eui64", &text)).transpose()?;
        let new = NewNamespace {
            id: namespace.nsid.filter(|id| *id != 0).map(NamespaceId),
            hold: Some(hold),
            nguid: nguid.map(Uuid::from_bytes),
            eui64: eui64.unwrap_or_default(),
            uuid: namespace.uuid,
            ana_group: namespace.anagrpid.filter(|group| *group != 0),
            visible_to_all: namespace.no_auto_visible != Some(true),
            ..NewNamespace::of(&entry.pool().name(), entry.uuid(), Some(entry.key()))
        };
        Ok(self.door()?.model().add_namespace(&nqn, new).map_err(refused)?.get())
    }

    fn nvmf_subsystem_remove_ns(&self, parameters: SelectNs) -> Answer<bool> {
        parameters.check_target()?;
        let id = NamespaceId(parameters.nsid);
        self.door()?.model().remove_namespace(&parameters.nqn, id).map_err(refused)?;
        Ok(true)
    }

    fn nvmf_subsystem_set_ns_ana_group(&self, parameters: SetNsAnaGroup) -> Answer<bool> {
        parameters.check_target()?;
        let (id, group) = (NamespaceId(parameters.nsid), parameters.anagrpid);
        self.door()?.model().set_ana_group(&parameters.nqn, id, group).map_err(refused)?;
        Ok(true)
    }

    fn nvmf_ns_add_host(&self, parameters: NsHost) -> Answer<bool> {
        parameters.check_target()?;
        let (NsHost { nqn, nsid, host, .. }, model) = (parameters, self.door()?.model());
        model.set_visible(&nqn, NamespaceId(nsid), &host, true).map_err(refused)?;
        Ok(true)
    }

    fn nvmf_ns_remove_host(&self, parameters: NsHost) -> Answer<bool> {
        parameters.check_target()?;
        let (NsHost { nqn, nsid, host, .. }, model) = (parameters, self.door()?.model());
        model.set_visible(&nqn, NamespaceId(nsid), &host, false).map_err(refused)?;
        Ok(true)
    }

    fn nvmf_subsystem_add_host(&self, parameters: SubsystemHost) -> Answer<bool> {
        parameters.check_target()?;
        self.door()?.model().add_host(&parameters.nqn, &parameters.host).map_err(refused)?;
        Ok(true)
    }

    fn nvmf_subsystem_remove_host(&self, parameters: SubsystemHost) -> Answer<bool> {
        parameters.check_target()?;
        self.door()?.model().remove_host(&parameters.nqn, &parameters.host).map_err(refused)?;
        Ok(true)
    }

    fn nvmf_subsystem_allow_any_host(&self, parameters: AllowAnyHost) -> Answer<bool> {
        parameters.check_target()?;
        let (AllowAnyHost { nqn, allow_any_host, .. }, model) = (parameters, self.door()?.model());
        model.set_allow_any_host(&nqn, allow_any_host).map_err(refused)?;
        Ok(true)
    }

    fn nvmf_subsystem_get_controllers(
        &self,
        parameters: SelectSubsystem,
    ) -> Answer<Vec<NvmfController>> {
        parameters.check_target()?;
        let one = |controller: &Arc<Controller>| NvmfController {
            cntlid: controller.id(),
            cntrltype: match controller.kind() {
                Kind::Io => "io".to_owned(),
                Kind::Discovery => "discovery".to_owned(),
            },
            hostnqn: controller.host().nqn.clone(),
            hostid: controller.host().id.to_string(),
            num_io_qpairs: u32::try_from(controller.io_queues()).unwrap_or(u32::MAX),
            listen_address: ListenAddress::of(controller.local()),
        };
        Ok(self.controllers(&parameters.nqn)?.iter().map(one).collect())
    }

    fn nvmf_subsystem_get_qpairs(&self, parameters: SelectSubsystem) -> Answer<Vec<NvmfQpair>> {
        parameters.check_target()?;
        let mut qpairs = Vec::new();
        for controller in self.controllers(&parameters.nqn)? {
            for qid in controller.queues() {
                qpairs.push(NvmfQpair {
                    cntlid: controller.id(),
                    qid,
                    state: "enabled".to_owned(),
                    hostnqn: controller.host().nqn.clone(),
                    listen_address: ListenAddress::of(controller.local()),
                });
            }
        }
        Ok(qpairs)
    }

    fn nvmf_get_stats(&self, _: SelectTarget) -> Answer<NvmfStats> {
        let ask = |site: &Remote<Site>| {
            let count = |site: Rc<Site>| async move {
                let target = site.target.borrow();
                target.as_ref().map(|service| service.statistics()).unwrap_or_default()
            };
            site.call_blocking(count).map_err(RpcError::internal)
        };
        let mut poll_groups = Vec::new();
        for (index, site) in self.sites.iter().enumerate() {
            let statistics = ask(site)?;
            poll_groups.push(PollGroup {
                name: format!("reactor_{index}"),
                admin_qpairs: statistics.admin_queues,
                io_qpairs: statistics.io_queues,
                current_admin_qpairs: statistics.current_admin_queues,
                current_io_qpairs: statistics.current_io_queues,
                pending_bdev_io: statistics.pending_io,
                completed_nvme_io: statistics.completed_io,
                transports: vec![TransportName { trtype: "TCP".to_owned() }],
            });
        }
        Ok(NvmfStats { tick_rate: TICKS_PER_SECOND, poll_groups })
    }

    fn nvmf_discovery_add_referral(&self, parameters: NvmfReferral) -> Answer<bool> {
        self.door()?.model().add_referral(referral(&parameters)?).map_err(refused)?;
        Ok(true)
    }

    fn nvmf_discovery_remove_referral(&self, parameters: NvmfReferral) -> Answer<bool> {
        self.door()?.model().remove_referral(&referral(&parameters)?).map_err(refused)?;
        Ok(true)
    }

    fn nvmf_discovery_get_referrals(&self, _: SelectTarget) -> Answer<Vec<ReferralEntry>> {
        let one = |referral: &Referral| ReferralEntry {
            address: ListenAddress::of(referral.address),
            subnqn: referral.nqn.clone(),
            secure_channel: false,
        };
        Ok(self.door()?.model().exports().referrals.iter().map(one).collect())
    }
}
