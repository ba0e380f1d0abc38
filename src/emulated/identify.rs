//! What the controller says of itself: identify structures and log pages.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::core::Core;
use super::errors;
use super::events::REQUEST_LIMIT;
use crate::spec::command::{ALL_NAMESPACES, IdentifyKind};
use crate::spec::identify::{
    IDENTIFY_SIZE, IdentifyController, IdentifyIndependentNamespace, IdentifyNamespace,
    IdentifyNvmController, LbaFormat, NamespaceDescriptor, NamespaceIdType, fill_ascii,
};
use crate::spec::log::{LogPage, SmartLog};
use crate::spec::status::StatusCode;
use crate::units::NamespaceId;

/// The one namespace.
pub(super) const NAMESPACE: NamespaceId = NamespaceId(1);
const MODEL: &str = "lvolfs emulated controller";
/// Power states that a host might choose from.
pub(super) const POWER_STATES: u8 = 4;
/// Abort commands at once, 0's based; each is answered at once.
const ABORT_LIMIT: u8 = 3;
/// Blocks that other commands see written together, 0's based: commands are carried out one after
/// the other, so that every length is.
const ISOLATED_BLOCKS: u16 = u16::MAX;
/// VWC: a cache is present, and Flush takes the broadcast namespace (bits 2:1 are 3).
const CACHE_PRESENT: u8 = IdentifyController::VWC_PRESENT | 3 << 1;

/// A structure as it is sent.
pub(super) type Page = [u8; IDENTIFY_SIZE];

impl Core {
    /// The structure that Identify with this kind and namespace asks for.
    pub(super) fn identify(
        &self,
        kind: IdentifyKind,
        namespace: NamespaceId,
    ) -> Result<Page, StatusCode> {
        let mut page = [0; IDENTIFY_SIZE];
        let is_ours = namespace == NAMESPACE;
        let exists = if is_ours { Ok(()) } else { Err(StatusCode::INVALID_NAMESPACE) };
        match kind {
            // The broadcast namespace asks for what all namespaces have in common.
            IdentifyKind::NAMESPACE if namespace == ALL_NAMESPACES => {
                page.copy_from_slice(self.common_namespace().as_bytes());
            }
            IdentifyKind::NAMESPACE => {
                exists?;
                page.copy_from_slice(self.identify_namespace().as_bytes());
            }
            IdentifyKind::CONTROLLER => page.copy_from_slice(self.identify_controller().as_bytes()),
            IdentifyKind::ACTIVE_NAMESPACES | IdentifyKind::ALLOCATED_NAMESPACES => {
                if namespace.get() >= 0xffff_fffe {
                    return Err(StatusCode::INVALID_NAMESPACE);
                }
                if namespace < NAMESPACE {
                    page[..4].copy_from_slice(&NAMESPACE.get().to_le_bytes());
                }
            }
            IdentifyKind::NAMESPACE_DESCRIPTORS => {
                exists?;
                self.descriptors(&mut page);
            }
            IdentifyKind::COMMAND_SET_NAMESPACE => exists?,
            IdentifyKind::COMMAND_SET_CONTROLLER => {
                page.copy_from_slice(identify_nvm_controller().as_bytes());
            }
            IdentifyKind::INDEPENDENT_NAMESPACE => {
                exists?;
                page.copy_from_slice(self.identify_independent().as_bytes());
            }
            _ => return Err(StatusCode::INVALID_FIELD),
        }
        Ok(page)
    }

    fn identify_controller(&self) -> IdentifyController {
        let mut page = IdentifyController::new_zeroed();
        // No PCI vendor number is ours to use.
        fill_ascii(&mut page.serial, &self.settings.serial);
        fill_ascii(&mut page.model, MODEL);
        fill_ascii(&mut page.firmware, env!("CARGO_PKG_VERSION"));
        page.max_transfer = self.settings.max_transfer;
        page.version = U32::new(self.settings.version);
        page.async_events = U32::new(
            IdentifyController::OAES_NAMESPACE_ATTRIBUTES
                | IdentifyController::OAES_FIRMWARE_ACTIVATION,
        );
        page.controller_type = 1;
        if self.settings.shadow_doorbells {
            page.admin_commands = U16::new(IdentifyController::OACS_DOORBELL_BUFFER);
        }
        page.firmware_activation_time = U16::new(self.settings.firmware_activation);
        // Data blocks with any alignment.
        page.sgl_support = U32::new(u32::from(self.settings.sgl));
        page.abort_limit = ABORT_LIMIT;
        page.async_event_limit = (REQUEST_LIMIT - 1) as u8;
        // One read-only firmware slot.
        page.firmware_updates = 1 << 1 | 1;
        // Extended data: Get Log Page takes long lengths and offsets.
        page.log_attributes = 1 << 2;
        page.error_log_entries = (errors::ENTRIES - 1) as u8;
        page.power_states = POWER_STATES - 1;
        page.submission_entry_size = 0x66;
        page.completion_entry_size = 0x44;
        page.namespaces = U32::new(1);
        page.optional_commands = U16::new(
            IdentifyController::ONCS_DATASET_MANAGEMENT | IdentifyController::ONCS_WRITE_ZEROES,
        );
        page.volatile_write_cache = if self.settings.volatile_cache { CACHE_PRESENT } else { 0 };
        page.atomic_write_unit = U16::new(ISOLATED_BLOCKS);
        page.atomic_write_unit_power_fail = U16::new(self.atomic_blocks());
        let nqn = format!("nqn.2014-08.org.nvmexpress:uuid:{}", self.settings.uuid());
        page.subsystem_nqn[..nqn.len()].copy_from_slice(nqn.as_bytes());
        page
    }

    /// Blocks that survive a power cut together, 0's based.
    fn atomic_blocks(&self) -> u16 {
        let blocks = self.media.atomic_unit() >> self.media.block_size().shift();
        u16::try_from(blocks.saturating_sub(1)).unwrap_or(u16::MAX)
    }

    fn common_namespace(&self) -> IdentifyNamespace {
        let mut page = IdentifyNamespace::new_zeroed();
        page.formats[0] = LbaFormat::plain(self.media.block_size().shift() as u8);
        page.deallocate_features = self.settings.deallocate_features;
        page
    }

    fn identify_namespace(&self) -> IdentifyNamespace {
        let blocks = U64::new(self.media.blocks().get());
        let mut page = self.common_namespace();
        page.size = blocks;
        page.capacity = blocks;
        page.utilization = blocks;
        page.features = IdentifyNamespace::NSFEAT_ATOMICS;
        let unit = U16::new(self.atomic_blocks());
        page.atomic_write_unit = U16::new(ISOLATED_BLOCKS);
        page.atomic_write_unit_power_fail = unit;
        page.atomic_boundary_power_fail = unit;
        page.nguid = *self.settings.uuid().as_bytes();
        page
    }

    fn identify_independent(&self) -> IdentifyIndependentNamespace {
        let mut page = IdentifyIndependentNamespace::new_zeroed();
        if !self.settings.volatile_cache || !self.settings.namespace_cached {
            page.features = IdentifyIndependentNamespace::NSFEAT_NO_VOLATILE_CACHE;
        }
        // Ready.
        page.status = 1;
        page
    }

    fn descriptors(&self, page: &mut Page) {
        let uuid = self.settings.uuid();
        let mut rest = &mut page[..];
        for kind in [NamespaceIdType::NGUID, NamespaceIdType::UUID] {
            let header = NamespaceDescriptor { id_type: kind.0, length: 16, reserved: [0; 2] };
            let (head, tail) = rest.split_at_mut(20);
            head[..4].copy_from_slice(header.as_bytes());
            head[4..].copy_from_slice(uuid.as_bytes());
            rest = tail;
        }
    }

    /// The whole log page `page`.
    pub(super) fn log_page(&self, page: LogPage) -> Result<Vec<u8>, StatusCode> {
        match page {
            LogPage::SUPPORTED => {
                let mut list = vec![0; 1024];
                for page in [
                    LogPage::SUPPORTED,
                    LogPage::ERROR,
                    LogPage::SMART,
                    LogPage::FIRMWARE,
                    LogPage::CHANGED_NAMESPACES,
                ] {
                    list[usize::from(page.0) * 4] = 1;
                }
                Ok(list)
            }
            LogPage::ERROR => Ok(self.errors.page()),
            LogPage::SMART => Ok(self.smart().as_bytes().to_vec()),
            LogPage::FIRMWARE => {
                let mut slots = vec![0; 512];
                slots[0] = 1;
                fill_ascii(&mut slots[8..16], env!("CARGO_PKG_VERSION"));
                Ok(slots)
            }
            LogPage::CHANGED_NAMESPACES => Ok(self.changed_namespaces()),
            _ => Err(StatusCode::INVALID_LOG_PAGE),
        }
    }

    fn changed_namespaces(&self) -> Vec<u8> {
        let mut list = vec![0; 4096];
        if self.namespace_changed {
            list[..4].copy_from_slice(&NAMESPACE.get().to_le_bytes());
        }
        list
    }

    fn smart(&self) -> SmartLog {
        /// Bytes in a data unit.
        const DATA_UNIT: u64 = 512_000;
        let wide = |value: u64| [U64::new(value), U64::ZERO];
        let counters = &self.counters;
        let mut page = SmartLog::new_zeroed();
        page.critical_warning = self.critical_warning;
        page.temperature = U16::new(300);
        page.available_spare = 100;
        page.spare_threshold = 10;
        page.data_units_read = wide(counters.bytes_read.div_ceil(DATA_UNIT));
        page.data_units_written = wide(counters.bytes_written.div_ceil(DATA_UNIT));
        page.host_reads = wide(counters.reads);
        page.host_writes = wide(counters.writes);
        page.power_cycles = wide(counters.power_cycles);
        page.unsafe_shutdowns = wide(counters.unsafe_shutdowns);
        page.error_log_entries = wide(self.errors.count());
        page
    }
}

fn identify_nvm_controller() -> IdentifyNvmController {
    // No limit of its own on Write Zeroes, and every range a Dataset Management command can name.
    IdentifyNvmController::new_zeroed()
}
