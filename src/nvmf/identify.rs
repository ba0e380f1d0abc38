//! Identify: what the target says of its controllers and namespaces.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::admin::{answer, invalid_field, room};
use super::controller::{Controller, ERROR_LOG, Kind};
use super::event::{NOTIFY_ANA, NOTIFY_DISCOVERY};
use super::limits::{ABORTS, EVENT_REQUESTS, IN_CAPSULE, KEEP_ALIVE_UNITS, MDTS, QUEUE_ENTRIES};
use super::model::{Namespace, Subsystem};
use super::namespace;
use super::queue::{Outcome, Queue};
use super::{io, status};
use crate::spec::command::{IdentifyKind, SubmissionEntry};
use crate::spec::fabrics::{DISCOVERY_NQN, fill_nqn};
use crate::spec::identify::{
    FabricsController, IDENTIFY_SIZE, IdentifyController, IdentifyIndependentNamespace,
    IdentifyNamespace, IdentifyNvmController, LbaFormat, NamespaceIdType, fill_ascii,
};
use crate::spec::log::NamespaceList;
use crate::spec::register::VERSION_2_0;
use crate::spec::status::{Status, StatusCode};
use crate::units::NamespaceId;
use crate::volume::{Keeping, Volume};

/// CSI of the NVM command set.
const NVM: u8 = 0;
/// Seconds after which a host may give up on a path that changes (ANATT).
const ANA_TIMEOUT: u8 = 10;
/// CNS values that the vocabulary has no name for, for nobody else uses them.
const ACTIVE_OF_COMMAND_SET: IdentifyKind = IdentifyKind(0x07);
const ALLOCATED_NAMESPACE: IdentifyKind = IdentifyKind(0x11);
const CONTROLLERS_OF_NAMESPACE: IdentifyKind = IdentifyKind(0x12);
const CONTROLLERS: IdentifyKind = IdentifyKind(0x13);

pub(super) async fn run(
    queue: &Queue,
    controller: &Controller,
    entry: &SubmissionEntry,
) -> Result<Outcome, Status> {
    let room = room(entry)?;
    if room < IDENTIFY_SIZE {
        return Err(invalid_field());
    }
    let kind = entry.identify_kind();
    if kind == IdentifyKind::CONTROLLER {
        let page = identify_controller(queue, controller)?;
        return Ok(answer(queue, page.as_bytes(), room).await);
    }
    if controller.kind() == Kind::Discovery {
        return Err(invalid_field());
    }
    let subsystem = namespace::subsystem(queue, controller)?;
    let host = &controller.host().nqn;
    let with_command_set = matches!(
        kind,
        IdentifyKind::COMMAND_SET_NAMESPACE
            | IdentifyKind::COMMAND_SET_CONTROLLER
            | ACTIVE_OF_COMMAND_SET
    );
    if with_command_set && entry.identify_command_set() != NVM {
        return Err(invalid_field());
    }
    let mut page = [0; IDENTIFY_SIZE];
    match kind {
        IdentifyKind::NAMESPACE
        | IdentifyKind::COMMAND_SET_NAMESPACE
        | IdentifyKind::INDEPENDENT_NAMESPACE
        | ALLOCATED_NAMESPACE => {
            check_id(&subsystem, entry.nsid())?;
            // A valid identifier of no namespace that the host sees: zeros.
            if let Some(found) = subsystem.namespace(host, entry.nsid())
                && let Some(key) = found.key
            {
                let catalog = &queue.service.catalog;
                let volume = catalog.volume(key).await.map_err(status::of)?;
                let keeping = catalog.directory().hosts().keeping();
                match kind {
                    IdentifyKind::COMMAND_SET_NAMESPACE => {}
                    IdentifyKind::INDEPENDENT_NAMESPACE => {
                        page = independent(found, &volume, keeping);
                    }
                    _ => page = identify_namespace(found, &volume, keeping),
                }
            }
        }
        IdentifyKind::ACTIVE_NAMESPACES
        | ACTIVE_OF_COMMAND_SET
        | IdentifyKind::ALLOCATED_NAMESPACES => {
            let after = entry.nsid();
            if after.get() >= 0xffff_fffe {
                return Err(Status::of(StatusCode::INVALID_NAMESPACE).do_not_retry());
            }
            let ids = subsystem.visible(host).map(|namespace| namespace.id);
            page = list(ids.filter(|id| *id > after));
        }
        IdentifyKind::NAMESPACE_DESCRIPTORS => {
            check_id(&subsystem, entry.nsid())?;
            let found = subsystem.namespace(host, entry.nsid()).ok_or(invalid_field())?;
            page = descriptors(found);
        }
        IdentifyKind::COMMAND_SET_CONTROLLER => page = nvm_controller(),
        CONTROLLERS | CONTROLLERS_OF_NAMESPACE => {
            if kind == CONTROLLERS_OF_NAMESPACE {
                check_id(&subsystem, entry.nsid())?;
                subsystem.namespace(host, entry.nsid()).ok_or(invalid_field())?;
            }
            page = controllers(queue, controller, entry.identify_controller_id());
        }
        IdentifyKind::COMMAND_SETS => page[0] = 1,
        _ => return Err(invalid_field()),
    }
    Ok(answer(queue, &page, room).await)
}

/// Identifiers from 1 to NN may be asked about.
fn check_id(subsystem: &Subsystem, id: NamespaceId) -> Result<(), Status> {
    if (1..=subsystem.max_namespaces).contains(&id.get()) {
        return Ok(());
    }
    Err(Status::of(StatusCode::INVALID_NAMESPACE).do_not_retry())
}

fn list(ids: impl Iterator<Item = NamespaceId>) -> [u8; IDENTIFY_SIZE] {
    let mut list = NamespaceList { entries: [U32::ZERO; 1024] };
    for (slot, id) in list.entries.iter_mut().zip(ids) {
        slot.set(id.get());
    }
    zerocopy::transmute!(list)
}

/// Controllers of the subsystem from `first` on.
fn controllers(queue: &Queue, controller: &Controller, first: u16) -> [u8; IDENTIFY_SIZE] {
    let all = queue.service.target.controllers();
    let ours = all.iter().filter(|other| other.subsystem() == controller.subsystem());
    let mut ids: Vec<u16> = ours.map(|other| other.id()).filter(|id| *id >= first).collect();
    ids.sort_unstable();
    ids.truncate(2047);
    let mut page = [0; IDENTIFY_SIZE];
    let words = std::iter::once(ids.len() as u16).chain(ids.iter().copied());
    for (to, word) in page.chunks_exact_mut(2).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    page
}

fn identify_controller(
    queue: &Queue,
    controller: &Controller,
) -> Result<IdentifyController, Status> {
    let Ok(mut page) = IdentifyController::read_from_bytes(&[0; IDENTIFY_SIZE]) else {
        unreachable!("the page has its size");
    };
    let discovery = controller.kind() == Kind::Discovery;
    fill_ascii(&mut page.firmware, env!("CARGO_PKG_VERSION"));
    page.max_transfer = MDTS;
    page.controller_id = U16::new(controller.id());
    page.version = U32::new(VERSION_2_0);
    page.controller_type = if discovery { 2 } else { 1 };
    // 128-bit host identifiers, traffic-based keep alive.
    page.attributes = U32::new(1 | 1 << 6);
    page.async_event_limit = EVENT_REQUESTS as u8 - 1;
    page.error_log_entries = ERROR_LOG as u8 - 1;
    page.keep_alive = U16::new(KEEP_ALIVE_UNITS);
    page.max_commands = U16::new(QUEUE_ENTRIES as u16);
    // Any SGL; offsets into the capsule; transport data blocks.
    page.sgl_support = U32::new(1 | 1 << 20 | 1 << 21);
    page.fabrics = FabricsController {
        command_capsule_size: U32::new((64 + IN_CAPSULE) / 16),
        response_capsule_size: U32::new(1),
        in_capsule_data_offset: U16::ZERO,
        attributes: 0,
        max_sgl_descriptors: 1,
        optional_commands: U16::new(u16::from(!discovery)),
        reserved: [0; 242],
    };
    if discovery {
        fill_ascii(&mut page.serial, "discovery");
        fill_ascii(&mut page.model, "lvolfs");
        page.log_attributes = 1 << 2;
        page.async_events = U32::new(NOTIFY_DISCOVERY);
        fill_nqn(&mut page.subsystem_nqn, DISCOVERY_NQN);
        return Ok(page);
    }
    let subsystem = namespace::subsystem(queue, controller)?;
    fill_ascii(&mut page.serial, &subsystem.serial);
    fill_ascii(&mut page.model, &subsystem.model);
    fill_nqn(&mut page.subsystem_nqn, &subsystem.nqn);
    page.arbitration_burst = 6;
    // Several ports, several controllers.
    page.multipath = 1 | 1 << 1;
    page.async_events = U32::new(IdentifyController::OAES_NAMESPACE_ATTRIBUTES);
    if subsystem.ana_reporting {
        page.multipath |= 1 << 3;
        page.async_events = U32::new(page.async_events.get() | NOTIFY_ANA);
        let ana = &mut page.reserved322;
        ana[20] = ANA_TIMEOUT;
        // Reports every state.
        ana[21] = 0b1_1111;
        ana[22..26].copy_from_slice(&subsystem.max_namespaces.to_le_bytes());
        ana[26..30].copy_from_slice(&subsystem.max_namespaces.to_le_bytes());
    }
    page.abort_limit = ABORTS as u8 - 1;
    // Slot 1, read-only.
    page.firmware_updates = 1 | 1 << 1;
    // Effects, offsets in pages, the list of pages.
    page.log_attributes = 1 << 1 | 1 << 2 | 1 << 5;
    page.submission_entry_size = 0x66;
    page.completion_entry_size = 0x44;
    page.namespaces = U32::new(subsystem.max_namespaces);
    page.max_allowed_namespaces = U32::new(subsystem.max_namespaces);
    page.optional_commands = U16::new(
        IdentifyController::ONCS_COMPARE
            | IdentifyController::ONCS_DATASET_MANAGEMENT
            | IdentifyController::ONCS_WRITE_ZEROES
            | IdentifyController::ONCS_RESERVATIONS
            | IdentifyController::ONCS_VERIFY
            | IdentifyController::ONCS_COPY,
    );
    // Compare and Write.
    page.fused = U16::new(1);
    // A mapping that was not committed is volatile, whatever the drive has: so it is always
    // present, and Flush of all namespaces is supported.
    page.volatile_write_cache = IdentifyController::VWC_PRESENT | 3 << 1;
    page.atomic_compare_and_write = U16::new(io::COMPARE_AND_WRITE_BLOCKS - 1);
    // Copy descriptor format 0.
    page.copy_formats = U16::new(1);
    Ok(page)
}

fn nvm_controller() -> [u8; IDENTIFY_SIZE] {
    let page = IdentifyNvmController {
        verify_limit: MDTS,
        // As large as the field of the command.
        write_zeroes_limit: 0,
        write_uncorrectable_limit: 0,
        // All 256 that a command can have.
        dsm_ranges: 0,
        dsm_range_blocks: U32::ZERO,
        dsm_blocks: U64::ZERO,
        reserved: [0; 4080],
    };
    zerocopy::transmute!(page)
}

fn sharing_attributes(volume: &Volume) -> u8 {
    if volume.is_read_only() { IdentifyNamespace::NSATTR_WRITE_PROTECTED } else { 0 }
}

/// RESCAP: every type; persistence where it can be kept.
fn reservation_capabilities(keeping: &Keeping) -> u8 {
    let persist = match keeping {
        Keeping::Nowhere => 0,
        Keeping::Folder(_) | Keeping::Volume => IdentifyNamespace::RESCAP_PERSIST,
    };
    persist | IdentifyNamespace::RESCAP_ALL_TYPES | IdentifyNamespace::RESCAP_IGNORE_EXISTING_KEY
}

fn identify_namespace(
    found: &Namespace,
    volume: &Volume,
    keeping: &Keeping,
) -> [u8; IDENTIFY_SIZE] {
    let Ok(mut page) = IdentifyNamespace::read_from_bytes(&[0; IDENTIFY_SIZE]) else {
        unreachable!("the page has its size");
    };
    let block = volume.block_size().get();
    let blocks = volume.size().get() / block;
    page.size = U64::new(blocks);
    page.capacity = U64::new(blocks);
    page.utilization = U64::new((volume.allocated().get() / block).min(blocks));
    page.features = IdentifyNamespace::NSFEAT_PREFERRED;
    if volume.is_thin() {
        page.features |= IdentifyNamespace::NSFEAT_THIN;
    }
    page.sharing = 1;
    page.reservation_capabilities = reservation_capabilities(keeping);
    // Deallocated blocks read as zeros; Write Zeroes can deallocate.
    page.deallocate_features = 1 | IdentifyNamespace::DLFEAT_WRITE_ZEROES;
    page.nvm_capacity = [U64::new(volume.size().get()), U64::ZERO];
    let cluster = volume.entry().pool().cluster_size().get() / block;
    let cluster = U16::new(u16::try_from(cluster - 1).unwrap_or(u16::MAX));
    page.preferred_deallocate_granularity = cluster;
    page.preferred_deallocate_alignment = cluster;
    page.atomic_compare_and_write = U16::new(io::COMPARE_AND_WRITE_BLOCKS - 1);
    page.max_copy_range = U16::new(io::COPY_RANGE_BLOCKS);
    page.max_copy_length = U32::new(io::COPY_BLOCKS);
    page.reserved80[0] = io::COPY_RANGES - 1;
    page.ana_group = U32::new(found.ana_group);
    page.attributes = sharing_attributes(volume);
    page.nguid = *found.nguid.as_bytes();
    page.eui64 = found.eui64;
    page.formats[0] = LbaFormat::plain(block.trailing_zeros() as u8);
    zerocopy::transmute!(page)
}

fn independent(found: &Namespace, volume: &Volume, keeping: &Keeping) -> [u8; IDENTIFY_SIZE] {
    let page = IdentifyIndependentNamespace {
        features: 0,
        sharing: 1,
        reservation_capabilities: reservation_capabilities(keeping),
        format_progress: 0,
        ana_group: U32::new(found.ana_group),
        attributes: sharing_attributes(volume),
        reserved9: 0,
        nvm_set: U16::ZERO,
        endurance_group: U16::ZERO,
        status: 1,
        reserved15: [0; 4081],
    };
    zerocopy::transmute!(page)
}

fn descriptors(found: &Namespace) -> [u8; IDENTIFY_SIZE] {
    let mut list = Vec::new();
    let mut add = |kind: NamespaceIdType, value: &[u8]| {
        if kind == NamespaceIdType::COMMAND_SET || value.iter().any(|byte| *byte != 0) {
            list.extend([kind.0, value.len() as u8, 0, 0]);
            list.extend_from_slice(value);
        }
    };
    add(NamespaceIdType::EUI64, &found.eui64);
    add(NamespaceIdType::NGUID, found.nguid.as_bytes());
    add(NamespaceIdType::UUID, found.uuid.as_bytes());
    add(NamespaceIdType::COMMAND_SET, &[NVM]);
    let mut page = [0; IDENTIFY_SIZE];
    page[..list.len()].copy_from_slice(&list);
    page
}
