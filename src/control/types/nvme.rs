//! NVMe controllers: attached, looked at, reset and detached.

use serde::{Deserialize, Serialize};

/// Of `bdev_nvme_attach_controller`. SPDK's parameters for fabrics are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachController {
    /// What the controller is called from now on; its namespaces become `NAMEnID`.
    pub name: String,
    /// The transport: `PCIe`, in any case.
    pub trtype: String,
    /// The controller's PCI address.
    pub traddr: String,
}

/// Of `bdev_nvme_get_controllers`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GetControllers {
    /// Only this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A controller by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectController {
    /// Its name.
    pub name: String,
    /// Its number in the subsystem, where there may be several of one name: there never are here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cntlid: Option<u16>,
}

/// What has one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedControllers {
    /// The name.
    pub name: String,
    /// The controllers; one here.
    pub ctrlrs: Vec<Controller>,
}

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controller {
    /// `enabled`, or `failed` if it was given up.
    pub state: String,
    /// How it is reached.
    pub trid: TransportId,
    /// Its number in the subsystem.
    pub cntlid: u16,
    /// Who we are to it.
    pub host: Host,
    /// Model, serial number and firmware revision; ours, not SPDK's.
    #[serde(default)]
    pub identity: ControllerNames,
    /// Its namespaces in use, as devices; ours, not SPDK's.
    #[serde(default)]
    pub bdevs: Vec<String>,
}

/// What a controller calls itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the words of Identify Controller")]
pub struct ControllerNames {
    pub model_number: String,
    pub serial_number: String,
    pub firmware_revision: String,
}

/// How a controller is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportId {
    /// `PCIe`, or `CUSTOM` for an emulated controller.
    pub trtype: String,
    /// The PCI address, or the path of the emulated controller's file.
    pub traddr: String,
}

/// Who we are to a controller; empty for one on PCI.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "SPDK's words")]
pub struct Host {
    pub nqn: String,
    pub addr: String,
    pub svcid: String,
}

/// The answer of `bdev_nvme_get_controller_health_info`: the SMART / Health Information log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "SPDK's words, and those of the log page")]
pub struct ControllerHealth {
    pub model_number: String,
    pub serial_number: String,
    pub firmware_revision: String,
    pub traddr: String,
    pub critical_warning: u8,
    pub temperature_celsius: i32,
    pub available_spare_percentage: u8,
    pub available_spare_threshold_percentage: u8,
    pub percentage_used: u8,
    pub data_units_read: u128,
    pub data_units_written: u128,
    pub host_read_commands: u128,
    pub host_write_commands: u128,
    pub controller_busy_time: u128,
    pub power_cycles: u128,
    pub power_on_hours: u128,
    pub unsafe_shutdowns: u128,
    pub media_errors: u128,
    pub num_err_log_entries: u128,
    pub warning_temperature_time_minutes: u32,
    pub critical_composite_temperature_time_minutes: u32,
}

/// An entry of a controller's error log, of `lvolfs_nvme_get_error_log`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerError {
    /// Counts errors since the controller was made.
    pub error_count: u64,
    /// The queue of the command, or 65535.
    pub sqid: u16,
    /// The command, or 65535.
    pub cid: u16,
    /// What the controller answered.
    pub status: String,
    /// First block of the error.
    pub lba: u64,
    /// The namespace.
    pub nsid: u32,
}
