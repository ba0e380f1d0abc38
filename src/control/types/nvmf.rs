//! The NVMe-oF target.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::control::RpcError;

/// SPDK's name of its only target; ours too.
pub const TARGET_NAME: &str = "nvmf_tgt";

macro_rules! parameters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
            /// The target's name; there is one.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub tgt_name: Option<String>,
        }

        impl $name {
            /// Checks the target's name.
            ///
            /// # Errors
            /// `Invalid parameters` if it is not [`TARGET_NAME`].
            pub fn check_target(&self) -> Result<(), RpcError> {
                check_target(self.tgt_name.as_deref())
            }
        }
    };
}

fn check_target(name: Option<&str>) -> Result<(), RpcError> {
    match name {
        Some(name) if name != TARGET_NAME => {
            let reason = format!("there is no target {name}, only {TARGET_NAME}");
            Err(RpcError::invalid_parameters(reason))
        }
        _ => Ok(()),
    }
}

/// An address of a listener, in the words of NVMe-oF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenAddress {
    /// The transport: TCP.
    pub trtype: String,
    /// The address family: IPv4 or IPv6; follows from the address if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adrfam: Option<String>,
    /// The IP address.
    pub traddr: String,
    /// The port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trsvcid: Option<String>,
}

impl ListenAddress {
    /// In the words of NVMe-oF.
    #[must_use]
    pub fn of(address: SocketAddr) -> Self {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        Self {
            trtype: "TCP".to_owned(),
            adrfam: Some(family.to_owned()),
            traddr: address.ip().to_string(),
            trsvcid: Some(address.port().to_string()),
        }
    }

    /// The address.
    ///
    /// # Errors
    /// `Invalid parameters` if it is none of TCP.
    pub fn socket_address(&self) -> Result<SocketAddr, RpcError> {
        let invalid = |reason: String| Err(RpcError::invalid_parameters(reason));
        if !self.trtype.eq_ignore_ascii_case("tcp") {
            return invalid(format!("trtype {:?} is not TCP, the only one there is", self.trtype));
        }
        let Ok(ip) = self.traddr.parse::<IpAddr>() else {
            return invalid(format!("traddr {:?} is not an IP address", self.traddr));
        };
        let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
        if self.adrfam.as_ref().is_some_and(|given| !given.eq_ignore_ascii_case(family)) {
            return invalid(format!("traddr {ip} is not of the family given as adrfam"));
        }
        match self.trsvcid.as_deref().map(str::parse::<u16>) {
            Some(Ok(port)) if port != 0 => Ok(SocketAddr::new(ip, port)),
            Some(_) => invalid("trsvcid is a port from 1 to 65535".to_owned()),
            None => invalid("trsvcid is missing: the port, such as \"4420\"".to_owned()),
        }
    }
}

/// The state of an ANA group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "SPDK's words")]
pub enum AnaStateName {
    Optimized,
    NonOptimized,
    Inaccessible,
}

/// Of `nvmf_create_transport`. Of SPDK's options those are taken that ask for what there is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "SPDK's words")]
pub struct CreateTransport {
    pub trtype: String,
    #[serde(default)]
    pub tgt_name: Option<String>,
    #[serde(default)]
    pub max_queue_depth: Option<u32>,
    #[serde(default)]
    pub max_io_qpairs_per_ctrlr: Option<u32>,
    #[serde(default)]
    pub in_capsule_data_size: Option<u32>,
    #[serde(default)]
    pub max_io_size: Option<u32>,
    #[serde(default)]
    pub io_unit_size: Option<u32>,
    #[serde(default)]
    pub max_aq_depth: Option<u32>,
    #[serde(default)]
    pub num_shared_buffers: Option<u32>,
    #[serde(default)]
    pub buf_cache_size: Option<u32>,
    #[serde(default)]
    pub iobuf_small_cache_size: Option<u32>,
    #[serde(default)]
    pub iobuf_large_cache_size: Option<u32>,
    #[serde(default)]
    pub zcopy: Option<bool>,
    #[serde(default)]
    pub c2h_success: Option<bool>,
    #[serde(default)]
    pub dif_insert_or_strip: Option<bool>,
    #[serde(default)]
    pub sock_priority: Option<u32>,
    #[serde(default)]
    pub acceptor_backlog: Option<i32>,
    #[serde(default)]
    pub abort_timeout_sec: Option<u32>,
    #[serde(default)]
    pub control_msg_num: Option<u32>,
    #[serde(default)]
    pub acceptor_poll_rate: Option<u32>,
    #[serde(default)]
    pub ack_timeout: Option<u32>,
    #[serde(default)]
    pub kas: Option<u32>,
    #[serde(default)]
    pub min_kato: Option<u32>,
}

impl CreateTransport {
    /// Checks that it is the transport there is.
    ///
    /// # Errors
    /// `Invalid parameters`.
    pub fn check(&self) -> Result<(), RpcError> {
        check_target(self.tgt_name.as_deref())?;
        if !self.trtype.eq_ignore_ascii_case("tcp") {
            let reason = format!("trtype {:?} is not TCP, the only one there is", self.trtype);
            return Err(RpcError::invalid_parameters(reason));
        }
        if self.dif_insert_or_strip == Some(true) {
            return Err(RpcError::invalid_parameters("dif_insert_or_strip is not supported"));
        }
        Ok(())
    }
}

/// Of `nvmf_get_transports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GetTransports {
    /// Only this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trtype: Option<String>,
    /// The target's name; there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tgt_name: Option<String>,
}

/// A transport's options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "SPDK's words")]
pub struct Transport {
    pub trtype: String,
    pub max_queue_depth: u32,
    pub max_io_qpairs_per_ctrlr: u32,
    pub in_capsule_data_size: u32,
    pub max_io_size: u32,
    pub max_aq_depth: u32,
    pub kas: u32,
    pub min_kato: u32,
}

/// Of `nvmf_create_subsystem`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "SPDK's words; what is absent has SPDK's default")]
pub struct CreateSubsystem {
    pub nqn: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tgt_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_number: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_number: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_namespaces: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_any_host: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ana_reporting: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_cntlid: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cntlid: Option<u16>,
}

impl CreateSubsystem {
    /// Checks the target's name.
    ///
    /// # Errors
    /// `Invalid parameters` if it is not [`TARGET_NAME`].
    pub fn check_target(&self) -> Result<(), RpcError> {
        check_target(self.tgt_name.as_deref())
    }
}

parameters! {
    /// Names one subsystem.
    SelectSubsystem {
        /// Its NQN.
        nqn: String,
    }
}

/// Of `nvmf_get_subsystems`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GetSubsystems {
    /// Only this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nqn: Option<String>,
    /// The target's name; there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tgt_name: Option<String>,
}

/// A subsystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "SPDK's words; the discovery subsystem has only the first ones")]
pub struct NvmfSubsystem {
    pub nqn: String,
    /// "NVMe" or "Discovery".
    pub subtype: String,
    pub listen_addresses: Vec<ListenAddress>,
    pub allow_any_host: bool,
    pub hosts: Vec<HostName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_number: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_number: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_namespaces: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_cntlid: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cntlid: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Vec<NvmfNamespace>>,
}

/// A host in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostName {
    /// Its NQN.
    pub nqn: String,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfNamespace {
    /// NSID.
    pub nsid: u32,
    /// The volume's UUID.
    pub bdev_name: String,
    /// The same.
    pub name: String,
    /// NGUID, 32 hexadecimal digits.
    pub nguid: String,
    /// EUI64, 16 hexadecimal digits, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eui64: Option<String>,
    /// UUID.
    pub uuid: Uuid,
    /// ANAGRPID, if hosts are told of ANA groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anagrpid: Option<u32>,
    /// The volume as `pool/volume`, if it is there. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// The hosts that see it, if not all do. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
}

parameters! {
    /// Of `nvmf_subsystem_add_listener`.
    AddListener {
        /// The subsystem.
        nqn: String,
        /// Where it shall listen.
        listen_address: ListenAddress,
        /// TLS; not supported.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        secure_channel: Option<bool>,
        /// The state of its ANA groups there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ana_state: Option<AnaStateName>,
    }
}

parameters! {
    /// Of `nvmf_subsystem_remove_listener`.
    SelectListener {
        /// The subsystem.
        nqn: String,
        /// Where it listens.
        listen_address: ListenAddress,
    }
}

parameters! {
    /// Of `nvmf_subsystem_listener_set_ana_state`.
    SetAnaState {
        /// The subsystem.
        nqn: String,
        /// Where it listens.
        listen_address: ListenAddress,
        /// The new state.
        ana_state: AnaStateName,
        /// The group; all if absent or 0.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        anagrpid: Option<u32>,
    }
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfListener {
    /// Where.
    pub address: ListenAddress,
    /// The states of its groups, if hosts are told of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ana_states: Option<Vec<GroupState>>,
}

/// The state of an ANA group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupState {
    /// The group.
    pub ana_group: u32,
    /// Its state.
    pub ana_state: String,
}

/// A volume to add as a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddNamespace {
    /// The volume: its UUID, or `pool/volume`.
    pub bdev_name: String,
    /// NSID; the first that is free if absent or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nsid: Option<u32>,
    /// NGUID, 32 hexadecimal digits; the volume's UUID if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nguid: Option<String>,
    /// EUI64, 16 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eui64: Option<String>,
    /// UUID; the volume's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// ANAGRPID; the NSID if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anagrpid: Option<u32>,
    /// Whether no host sees it until `nvmf_ns_add_host` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_auto_visible: Option<bool>,
}

parameters! {
    /// Of `nvmf_subsystem_add_ns`.
    AddNs {
        /// The subsystem.
        nqn: String,
        /// The namespace.
        namespace: AddNamespace,
    }
}

parameters! {
    /// Names one namespace.
    SelectNs {
        /// The subsystem.
        nqn: String,
        /// NSID.
        nsid: u32,
    }
}

parameters! {
    /// Of `nvmf_subsystem_set_ns_ana_group`.
    SetNsAnaGroup {
        /// The subsystem.
        nqn: String,
        /// NSID.
        nsid: u32,
        /// The new group.
        anagrpid: u32,
    }
}

parameters! {
    /// Of `nvmf_ns_add_host` and `nvmf_ns_remove_host`.
    NsHost {
        /// The subsystem.
        nqn: String,
        /// NSID.
        nsid: u32,
        /// The host's NQN.
        host: String,
    }
}

parameters! {
    /// Of `nvmf_subsystem_add_host` and `nvmf_subsystem_remove_host`. Keys are not supported.
    SubsystemHost {
        /// The subsystem.
        nqn: String,
        /// The host's NQN.
        host: String,
        /// How long to wait until the host is gone; it goes at once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
    }
}

parameters! {
    /// Of `nvmf_subsystem_allow_any_host`.
    AllowAnyHost {
        /// The subsystem.
        nqn: String,
        /// Whether every host may connect.
        allow_any_host: bool,
    }
}

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "SPDK's words")]
pub struct NvmfController {
    pub cntlid: u16,
    pub cntrltype: String,
    pub hostnqn: String,
    pub hostid: String,
    pub num_io_qpairs: u32,
    /// Where the host came to. Ours.
    pub listen_address: ListenAddress,
}

/// A queue pair of a controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "SPDK's words")]
pub struct NvmfQpair {
    pub cntlid: u16,
    pub qid: u16,
    pub state: String,
    pub hostnqn: String,
    pub listen_address: ListenAddress,
}

/// Names the target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SelectTarget {
    /// The target's name; there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tgt_name: Option<String>,
}

/// What the target has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfStats {
    /// Ticks in a second.
    pub tick_rate: u64,
    /// Each reactor's share.
    pub poll_groups: Vec<PollGroup>,
}

/// One reactor's share of the target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "SPDK's words")]
pub struct PollGroup {
    pub name: String,
    pub admin_qpairs: u64,
    pub io_qpairs: u64,
    pub current_admin_qpairs: u32,
    pub current_io_qpairs: u32,
    pub pending_bdev_io: u64,
    pub completed_nvme_io: u64,
    pub transports: Vec<TransportName>,
}

/// A transport in statistics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportName {
    /// TCP.
    pub trtype: String,
}

parameters! {
    /// Of `nvmf_discovery_add_referral` and `nvmf_discovery_remove_referral`.
    NvmfReferral {
        /// Where the other discovery service is.
        address: ListenAddress,
        /// Its NQN; the well-known one if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subnqn: Option<String>,
        /// TLS; not supported.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        secure_channel: Option<bool>,
    }
}

/// A referral in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferralEntry {
    /// Where it is.
    pub address: ListenAddress,
    /// Its NQN.
    pub subnqn: String,
    /// Whether it demands TLS.
    pub secure_channel: bool,
}
