//! The methods: one typed function each, made from one table, so that what the daemon implements,
//! what a client calls and what `rpc_get_methods` lists cannot differ.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};
use uuid::Uuid;

use super::client::{Client, ClientError};
use super::error::RpcError;
use super::events::EventSource;
use super::status::Status;
use super::types::{
    AcquireReservation, AddListener, AddNs, AllowAnyHost, AttachController, Bdev, CheckShallowCopy,
    CloneBdev, CloneLvol, ControllerError, ControllerHealth, CreateLvol, CreateLvstore,
    CreateSubsystem, CreateTransport, GetBdevs, GetControllers, GetIostat, GetLvols, GetMethods,
    GetNotifications, GetSubsystems, GetTransports, Iostat, KillInstance, Lvol, Lvstore,
    NamedControllers, NoParameters, Notification, NsHost, NvmfController, NvmfListener, NvmfQpair,
    NvmfReferral, NvmfStats, NvmfSubsystem, PreemptReservation, ReferralEntry, RegisterReservation,
    RenameLvol, RenameLvstore, ReservationReset, ReservationStatus, ResetReservation, ResizeLvol,
    ScrubStatus, SelectController, SelectListener, SelectLvol, SelectLvstore, SelectNs,
    SelectSubsystem, SelectTarget, SetAnaState, SetNsAnaGroup, SetParent, SetSpace, ShallowCopy,
    ShallowCopyOperation, SnapshotLvol, StartScrub, StartShallowCopy, SubsystemHost, Transport,
    Version, VersionFields, WatchEvents, Watching,
};

macro_rules! methods {
    ($(
        $(#[$group_doc:meta])*
        $group:ident: $Methods:ident {
            $($(#[$doc:meta])* $name:ident($parameters:ty) -> $result:ty;)*
        }
    )*) => {
        $(
            $(#[$group_doc])*
            pub trait $Methods {
                $($(#[$doc])* fn $name(&self, parameters: $parameters) -> Result<$result, RpcError>;)*
            }
        )*

        /// What a daemon can be asked, by groups. Functions are called on the server's threads,
        /// several at a time, and may block as long as the client should wait. A group that is
        /// not there is not listed, and its methods are not found.
        ///
        /// An error is the client's answer; see [`RpcError`] for SPDK's codes and texts.
        pub trait Service: Send + Sync {
            $($(#[$group_doc])* fn $group(&self) -> Option<&dyn $Methods> { None })*

            /// Where a stream of events comes from.
            fn event_source(&self) -> Option<&dyn EventSource> { None }
        }

        impl Client {
            $($($(#[$doc])*
            ///
            /// # Errors
            /// The daemon's answer, or that there is none.
            pub fn $name(&mut self, parameters: &$parameters) -> Result<$result, ClientError> {
                self.call(stringify!($name), parameters)
            })*)*
        }

        /// The names of all methods of all groups, by group.
        pub const SERVICE_METHODS: &[&[&str]] = &[$(&[$(stringify!($name)),*]),*];

        fn service_methods(service: &dyn Service) -> Vec<&'static str> {
            let mut names: Vec<&'static str> = Vec::new();
            $(if service.$group().is_some() { names.extend([$(stringify!($name)),*]); })*
            names
        }

        fn call_service(
            service: &dyn Service,
            method: &str,
            parameters: Value,
        ) -> Result<Value, RpcError> {
            match method {
                $($(stringify!($name) => {
                    let group = service.$group().ok_or_else(RpcError::method_not_found)?;
                    decode(parameters).and_then(|typed| group.$name(typed)).and_then(encode)
                })*)*
                _ => Err(RpcError::method_not_found()),
            }
        }
    };
}

methods! {
    /// Devices and volumes as block devices.
    bdev: BdevMethods {
        /// Devices and volumes.
        bdev_get_bdevs(GetBdevs) -> Vec<Bdev>;
        /// What went through devices and volumes.
        bdev_get_iostat(GetIostat) -> Iostat;
    }

    /// Pools and their volumes.
    lvol: LvolMethods {
        /// Pools.
        bdev_lvol_get_lvstores(SelectLvstore) -> Vec<Lvstore>;
        /// Creates a volume, durably; its UUID.
        bdev_lvol_create(CreateLvol) -> Uuid;
        /// Renames a volume, durably; true.
        bdev_lvol_rename(RenameLvol) -> bool;
        /// Changes a volume's size, durably; true. Data beyond a smaller size is gone.
        bdev_lvol_resize(ResizeLvol) -> bool;
        /// Makes a volume read-only for ever; true.
        bdev_lvol_set_read_only(SelectLvol) -> bool;
        /// Deletes a volume; true.
        bdev_lvol_delete(SelectLvol) -> bool;
        /// Volumes.
        bdev_lvol_get_lvols(GetLvols) -> Vec<Lvol>;
    }

    /// Pools made, renamed and destroyed at run time.
    lvstore: LvstoreMethods {
        /// Makes a pool on a blank device, durably; its UUID.
        bdev_lvol_create_lvstore(CreateLvstore) -> Uuid;
        /// Renames a pool, durably; true.
        bdev_lvol_rename_lvstore(RenameLvstore) -> bool;
        /// Takes in what the pool's device has gained, durably; true.
        bdev_lvol_grow_lvstore(SelectLvstore) -> bool;
        /// Destroys a pool with all its volumes, none of which may be in use; true.
        bdev_lvol_delete_lvstore(SelectLvstore) -> bool;
    }

    /// NVMe controllers.
    nvme: NvmeMethods {
        /// Takes a controller on PCI; the names of its devices.
        bdev_nvme_attach_controller(AttachController) -> Vec<String>;
        /// Lets go of a controller that no pool uses; true.
        bdev_nvme_detach_controller(SelectController) -> bool;
        /// Controllers.
        bdev_nvme_get_controllers(GetControllers) -> Vec<NamedControllers>;
        /// Resets a controller after it has written out its cache; true once it is back.
        bdev_nvme_reset_controller(SelectController) -> bool;
        /// A controller's SMART / Health Information.
        bdev_nvme_get_controller_health_info(SelectController) -> ControllerHealth;
        /// A controller's error log, the latest entries.
        lvolfs_nvme_get_error_log(SelectController) -> Vec<ControllerError>;
    }

    /// Snapshots, clones and parents of volumes.
    relatives: RelativeMethods {
        /// Makes a read-only snapshot of a volume, durably; its UUID.
        bdev_lvol_snapshot(SnapshotLvol) -> Uuid;
        /// Makes a writable clone of a snapshot or a read-only volume, durably; its UUID.
        bdev_lvol_clone(CloneLvol) -> Uuid;
        /// Allocates all of a volume and cuts it off from its parents, durably; true.
        bdev_lvol_inflate(SelectLvol) -> bool;
        /// Copies what a volume shows of its parent and cuts it off from it, durably; true.
        bdev_lvol_decouple_parent(SelectLvol) -> bool;
        /// Makes a thin volume a clone of a snapshot of its size, durably; true.
        bdev_lvol_set_parent(SetParent) -> bool;
        /// Makes a volume that is a clone of a device, durably; its UUID.
        bdev_lvol_clone_bdev(CloneBdev) -> Uuid;
        /// Makes a device the parent of a thin volume that is at least as large, durably; true.
        bdev_lvol_set_parent_bdev(SetParent) -> bool;
    }

    /// Copies of volumes to devices.
    copy: CopyMethods {
        /// Begins to copy what a read-only volume has of its own to a device.
        bdev_lvol_start_shallow_copy(StartShallowCopy) -> ShallowCopyOperation;
        /// How far such a copy is.
        bdev_lvol_check_shallow_copy(CheckShallowCopy) -> ShallowCopy;
    }

    /// What happened to pools and volumes.
    events: EventMethods {
        /// The kinds of events.
        notify_get_types(NoParameters) -> Vec<String>;
        /// Events that are remembered, in SPDK's shape.
        notify_get_notifications(GetNotifications) -> Vec<Notification>;
        /// Begins a stream of events on this connection; the number of its first.
        lvolfs_watch_events(WatchEvents) -> Watching;
    }

    /// The NVMe-oF target.
    nvmf: NvmfMethods {
        /// True: TCP is there, and needs no making.
        nvmf_create_transport(CreateTransport) -> bool;
        /// Transports.
        nvmf_get_transports(GetTransports) -> Vec<Transport>;
        /// Creates a subsystem to which no host may connect yet; true.
        nvmf_create_subsystem(CreateSubsystem) -> bool;
        /// Deletes a subsystem; its hosts are disconnected; true.
        nvmf_delete_subsystem(SelectSubsystem) -> bool;
        /// Subsystems, the discovery subsystem first.
        nvmf_get_subsystems(GetSubsystems) -> Vec<NvmfSubsystem>;
        /// Makes a subsystem reachable at an address; true.
        nvmf_subsystem_add_listener(AddListener) -> bool;
        /// Makes it unreachable there; hosts that came that way are disconnected; true.
        nvmf_subsystem_remove_listener(SelectListener) -> bool;
        /// Sets the state of ANA groups on a listener; true.
        nvmf_subsystem_listener_set_ana_state(SetAnaState) -> bool;
        /// Where a subsystem can be reached.
        nvmf_subsystem_get_listeners(SelectSubsystem) -> Vec<NvmfListener>;
        /// Adds a volume as a namespace; its NSID.
        nvmf_subsystem_add_ns(AddNs) -> u32;
        /// Takes a namespace away; true.
        nvmf_subsystem_remove_ns(SelectNs) -> bool;
        /// Moves a namespace to another ANA group; true.
        nvmf_subsystem_set_ns_ana_group(SetNsAnaGroup) -> bool;
        /// Shows a namespace to a host; true.
        nvmf_ns_add_host(NsHost) -> bool;
        /// Hides it again; true.
        nvmf_ns_remove_host(NsHost) -> bool;
        /// Lets a host connect; true.
        nvmf_subsystem_add_host(SubsystemHost) -> bool;
        /// Lets it no longer, and disconnects it; true.
        nvmf_subsystem_remove_host(SubsystemHost) -> bool;
        /// Lets every host connect, or only those of the list; true.
        nvmf_subsystem_allow_any_host(AllowAnyHost) -> bool;
        /// The controllers that hosts have in a subsystem.
        nvmf_subsystem_get_controllers(SelectSubsystem) -> Vec<NvmfController>;
        /// Their queue pairs.
        nvmf_subsystem_get_qpairs(SelectSubsystem) -> Vec<NvmfQpair>;
        /// How many connections each reactor has.
        nvmf_get_stats(SelectTarget) -> NvmfStats;
        /// Tells hosts of another discovery service; true.
        nvmf_discovery_add_referral(NvmfReferral) -> bool;
        /// Tells them no longer; true.
        nvmf_discovery_remove_referral(NvmfReferral) -> bool;
        /// The discovery services that hosts are told of.
        nvmf_discovery_get_referrals(SelectTarget) -> Vec<ReferralEntry>;
    }

    /// Scrubs of pools.
    scrub: ScrubMethods {
        /// Begins to read all of a pool in the background; true.
        lvolfs_pool_scrub_start(StartScrub) -> bool;
        /// Stops it; true.
        lvolfs_pool_scrub_stop(SelectLvstore) -> bool;
        /// How far it is, or what the last one found.
        lvolfs_pool_scrub_status(SelectLvstore) -> ScrubStatus;
    }

    /// What volumes want of their pools' space.
    space: SpaceMethods {
        /// Sets a volume's reserve, and what its writes do when the pool is full, durably; true.
        lvolfs_volume_set_space(SetSpace) -> bool;
    }

    /// Reservations of volumes. All but the last act for the local mount, and answer with the
    /// state after it.
    reservation: ReservationMethods {
        /// Who has registered, and who holds what.
        lvolfs_reservation_show(SelectLvol) -> ReservationStatus;
        /// Registers the local mount, gives it another key, or ends its registration.
        lvolfs_reservation_register(RegisterReservation) -> ReservationStatus;
        /// Takes a reservation that nobody holds.
        lvolfs_reservation_acquire(AcquireReservation) -> ReservationStatus;
        /// Removes the registrants of a key, and takes over what they hold.
        lvolfs_reservation_preempt(PreemptReservation) -> ReservationStatus;
        /// Gives up the reservation.
        lvolfs_reservation_release(SelectLvol) -> ReservationStatus;
        /// Removes the reservation and every registration.
        lvolfs_reservation_clear(SelectLvol) -> ReservationStatus;
        /// An administrator's override.
        lvolfs_reservation_reset(ResetReservation) -> ReservationReset;
    }

    /// The process.
    process: ProcessMethods {
        /// Sends the daemon a signal; true. SIGTERM is the way to stop it.
        spdk_kill_instance(KillInstance) -> bool;
        /// The state and the counters of every layer.
        lvolfs_status(NoParameters) -> Status;
    }
}

/// The methods that need no daemon behind them.
const OWN_METHODS: &[&str] = &["rpc_get_methods", "spdk_get_version"];

/// The names of all methods that `service` offers, sorted.
#[must_use]
pub fn names(service: &dyn Service) -> Vec<&'static str> {
    let mut names = service_methods(service);
    names.extend(OWN_METHODS);
    names.sort_unstable();
    names
}

/// Calls `method` with `parameters`, which are `Null` if the request has none.
///
/// # Errors
/// The answer to the client.
pub fn call(service: &dyn Service, method: &str, parameters: Value) -> Result<Value, RpcError> {
    match method {
        "rpc_get_methods" => decode::<GetMethods>(parameters).and_then(|_| encode(names(service))),
        "spdk_get_version" => decode::<NoParameters>(parameters).and_then(|_| encode(version())),
        _ => call_service(service, method, parameters),
    }
}

fn version() -> Version {
    let number = |text: &str| text.parse().unwrap_or(0);
    let suffix = env!("CARGO_PKG_VERSION_PRE");
    Version {
        version: concat!("lvolfs v", env!("CARGO_PKG_VERSION")).to_owned(),
        fields: VersionFields {
            major: number(env!("CARGO_PKG_VERSION_MAJOR")),
            minor: number(env!("CARGO_PKG_VERSION_MINOR")),
            patch: number(env!("CARGO_PKG_VERSION_PATCH")),
            suffix: if suffix.is_empty() { String::new() } else { format!("-{suffix}") },
        },
    }
}

fn decode<P: DeserializeOwned>(parameters: Value) -> Result<P, RpcError> {
    let object = match parameters {
        Value::Null => Value::Object(Map::new()),
        Value::Object(_) => whole_numbers(parameters),
        _ => return Err(RpcError::invalid_parameters("they are given by name, in an object")),
    };
    serde_json::from_value(object).map_err(RpcError::invalid_parameters)
}

fn encode<R: Serialize>(result: R) -> Result<Value, RpcError> {
    serde_json::to_value(result).map_err(RpcError::internal)
}

/// Turns `1.0e3`, which JSON allows for a whole number and SPDK takes, into `1000`. Recursion is
/// bounded by the parser's limit on nesting.
fn whole_numbers(value: Value) -> Value {
    // Up to here each whole number has a floating point number of its own.
    const EXACT: f64 = (1_u64 << 53) as f64;
    match value {
        Value::Number(number) => Value::Number(match number.as_f64() {
            Some(float)
                if number.is_f64() && float.fract() == 0.0 && (0.0..=EXACT).contains(&float) =>
            {
                Number::from(float as u64)
            }
            _ => number,
        }),
        Value::Array(list) => Value::Array(list.into_iter().map(whole_numbers).collect()),
        Value::Object(members) => Value::Object(
            members.into_iter().map(|(key, value)| (key, whole_numbers(value))).collect(),
        ),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn decoded(value: Value) -> Result<CreateLvol, RpcError> {
        decode(value)
    }

    #[test]
    fn parameters_are_strict() {
        let cases = [
            (json!({"lvol_name": "v", "sise": 1}), "unknown field `sise`"),
            (json!({"lvol_name": 5}), "invalid type"),
            (json!({"size": 5}), "missing field `lvol_name`"),
            (json!({"lvol_name": "v", "size": -1}), "invalid value"),
            (json!({"lvol_name": "v", "size": 1.5}), "invalid type"),
            (json!({"lvol_name": "v", "uuid": "nonsense"}), "UUID"),
            (json!({"lvol_name": "v", "thin_provision": 1}), "invalid type"),
            (json!({"lvol_name": "v", "clear_method": "burn"}), "unknown variant `burn`"),
            (json!(["v"]), "by name"),
            (Value::Null, "missing field"),
        ];
        for (parameters, part) in cases {
            let error = decoded(parameters.clone()).unwrap_err();
            assert_eq!(error.code, -32602, "{parameters}");
            assert!(error.message.starts_with("Invalid parameters: "), "{error}");
            assert!(error.message.contains(part), "{error}");
        }
    }

    #[test]
    fn numbers_may_be_written_as_floats_if_they_are_whole() {
        let text = r#"{"lvol_name":"v","size":1.0e3}"#;
        let create = decoded(serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(create.size, Some(1000));
        let create = decoded(json!({"lvol_name": "v", "size": null, "size_in_mib": 2})).unwrap();
        assert_eq!((create.size, create.size_in_mib), (None, Some(2)));
    }

    struct KnowsDevices;

    impl Service for KnowsDevices {
        fn bdev(&self) -> Option<&dyn BdevMethods> {
            Some(self)
        }
    }

    impl BdevMethods for KnowsDevices {
        fn bdev_get_bdevs(&self, _: GetBdevs) -> Result<Vec<Bdev>, RpcError> {
            Ok(Vec::new())
        }

        fn bdev_get_iostat(&self, _: GetIostat) -> Result<Iostat, RpcError> {
            Ok(Iostat::default())
        }
    }

    #[test]
    fn only_groups_that_are_there_are_listed_and_answer() {
        let names = names(&KnowsDevices);
        assert!(names.is_sorted() && names.contains(&"rpc_get_methods"));
        assert!(names.contains(&"bdev_get_bdevs") && !names.contains(&"lvolfs_status"));
        assert_eq!(call(&KnowsDevices, "bdev_get_bdevs", Value::Null), Ok(json!([])));
        let absent = call(&KnowsDevices, "lvolfs_status", Value::Null).unwrap_err();
        assert_eq!(absent.code, -32601);
    }

    #[test]
    fn the_version_has_spdks_shape() {
        let version = encode(version()).unwrap();
        assert_eq!(version["version"], concat!("lvolfs v", env!("CARGO_PKG_VERSION")));
        assert!(version["fields"]["major"].is_number() && version["fields"]["suffix"].is_string());
    }
}
