//! Log pages: Get Log Page, and what stands in the pages.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::admin::{answer, check_controller_scope, invalid_field, room};
use super::controller::{Controller, ERROR_LOG, Kind};
use super::namespace;
use super::queue::{Outcome, Queue};
use crate::spec::command::{AdminOpcode, Feature, IoOpcode, SubmissionEntry};
use crate::spec::log::{
    ErrorLogEntry, LogPage, NAMESPACE_LIST_ENTRIES, NAMESPACE_LIST_OVERFLOW, SmartLog,
};
use crate::spec::reservation::NotificationPage;
use crate::spec::status::{Status, StatusCode};
use crate::units::{NamespaceId, QueueId};

/// Feature Identifiers Supported and Effects.
const FEATURE_EFFECTS: LogPage = LogPage(0x12);
/// LSP of the ANA page: groups without their namespaces (RGO).
const GROUPS_ONLY: u32 = 1 << 8;
/// An effect: the command, page or feature is supported.
const SUPPORTED: u32 = 1;
/// An effect: the command changes the contents of blocks.
const CHANGES_BLOCKS: u32 = 1 << 1;

const PAGES: &[LogPage] = &[
    LogPage::SUPPORTED,
    LogPage::ERROR,
    LogPage::SMART,
    LogPage::FIRMWARE,
    LogPage::CHANGED_NAMESPACES,
    LogPage::COMMAND_EFFECTS,
    LogPage::ANA,
    FEATURE_EFFECTS,
    LogPage::RESERVATION_NOTIFICATION,
];
const DISCOVERY_PAGES: &[LogPage] = &[LogPage::SUPPORTED, FEATURE_EFFECTS, LogPage::DISCOVERY];

const ADMIN_COMMANDS: &[AdminOpcode] = &[
    AdminOpcode::GET_LOG_PAGE,
    AdminOpcode::IDENTIFY,
    AdminOpcode::ABORT,
    AdminOpcode::SET_FEATURES,
    AdminOpcode::GET_FEATURES,
    AdminOpcode::ASYNC_EVENT_REQUEST,
    AdminOpcode::KEEP_ALIVE,
];
const IO_COMMANDS: &[(IoOpcode, u32)] = &[
    (IoOpcode::FLUSH, SUPPORTED),
    (IoOpcode::WRITE, SUPPORTED | CHANGES_BLOCKS),
    (IoOpcode::READ, SUPPORTED),
    (IoOpcode::COMPARE, SUPPORTED),
    (IoOpcode::WRITE_ZEROES, SUPPORTED | CHANGES_BLOCKS),
    (IoOpcode::DATASET_MANAGEMENT, SUPPORTED | CHANGES_BLOCKS),
    (IoOpcode::VERIFY, SUPPORTED),
    (IoOpcode::RESERVATION_REGISTER, SUPPORTED),
    (IoOpcode::RESERVATION_REPORT, SUPPORTED),
    (IoOpcode::RESERVATION_ACQUIRE, SUPPORTED),
    (IoOpcode::RESERVATION_RELEASE, SUPPORTED),
    (IoOpcode::COPY, SUPPORTED | CHANGES_BLOCKS),
];
const FEATURES: &[Feature] = &[
    Feature::ARBITRATION,
    Feature::POWER_MANAGEMENT,
    Feature::TEMPERATURE_THRESHOLD,
    Feature::ERROR_RECOVERY,
    Feature::VOLATILE_WRITE_CACHE,
    Feature::NUMBER_OF_QUEUES,
    Feature::WRITE_ATOMICITY,
    Feature::ASYNC_EVENT_CONFIGURATION,
    Feature::KEEP_ALIVE_TIMER,
    Feature::HOST_BEHAVIOR,
    Feature::HOST_IDENTIFIER,
    Feature::RESERVATION_NOTIFICATION_MASK,
    Feature::RESERVATION_PERSISTENCE,
];
const DISCOVERY_FEATURES: &[Feature] =
    &[Feature::ASYNC_EVENT_CONFIGURATION, Feature::KEEP_ALIVE_TIMER];

/// The error log of one controller, newest first.
#[derive(Default)]
pub(super) struct Errors {
    count: u64,
    entries: VecDeque<ErrorLogEntry>,
}

impl Errors {
    pub(super) fn push(&mut self, mut entry: ErrorLogEntry) {
        self.count += 1;
        entry.error_count = U64::new(self.count);
        self.entries.truncate(ERROR_LOG - 1);
        self.entries.push_front(entry);
    }
}

/// What the error log says of a command.
pub(super) fn error_entry(
    queue: QueueId,
    command: &SubmissionEntry,
    status: Status,
) -> ErrorLogEntry {
    let mut entry = ErrorLogEntry::new_zeroed();
    entry.submission_queue = U16::new(queue.get());
    entry.command_id = command.command_id;
    entry.status = U16::new(status.bits() << 1);
    // Not stated.
    entry.parameter_location = U16::new(0xffff);
    entry.namespace = command.namespace;
    if queue.get() != 0 {
        entry.lba = U64::new(command.lba().get());
    }
    entry.transport = crate::spec::fabrics::TransportType::TCP.0;
    entry.opcode = command.opcode;
    entry
}

pub(super) async fn run(
    queue: &Queue,
    controller: &Controller,
    entry: &SubmissionEntry,
) -> Result<Outcome, Status> {
    let page = entry.log_page();
    let discovery = controller.kind() == Kind::Discovery;
    let pages = if discovery { DISCOVERY_PAGES } else { PAGES };
    if !pages.contains(&page) {
        return Err(Status::of(StatusCode::INVALID_LOG_PAGE).do_not_retry());
    }
    check_controller_scope(entry)?;
    let (offset, length) = (entry.log_offset(), entry.log_length());
    let room = room(entry)?;
    if !offset.is_multiple_of(4) || length > room as u64 {
        return Err(invalid_field());
    }
    let clear = !entry.retain_event();
    let bytes = match page {
        LogPage::SUPPORTED => supported(pages),
        LogPage::ERROR => errors(controller),
        LogPage::SMART => smart(controller, queue.service.target.health()),
        LogPage::FIRMWARE => firmware(),
        LogPage::CHANGED_NAMESPACES => changed_namespaces(controller, clear),
        LogPage::COMMAND_EFFECTS => command_effects(),
        LogPage::ANA => ana(queue, controller, entry.dword10.get() & GROUPS_ONLY != 0)?,
        LogPage::RESERVATION_NOTIFICATION => notification(controller, offset, length),
        FEATURE_EFFECTS => feature_effects(if discovery { DISCOVERY_FEATURES } else { FEATURES }),
        _ => {
            let model = queue.service.target.model();
            model.discovery_log(&controller.host().nqn, controller.local())
        }
    };
    if offset > bytes.len() as u64 {
        return Err(invalid_field());
    }
    if clear {
        controller.lock().events.read(page);
    }
    // What lies behind the end of a page reads as zeros.
    let mut part = bytes[offset as usize..].to_vec();
    part.resize(length as usize, 0);
    Ok(answer(queue, &part, room).await)
}

fn put(page: &mut [u8], index: usize, value: u32) {
    page[index * 4..index * 4 + 4].copy_from_slice(&value.to_le_bytes());
}

fn supported(pages: &[LogPage]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    for page in pages {
        put(&mut bytes, page.0.into(), SUPPORTED);
    }
    bytes
}

fn errors(controller: &Controller) -> Vec<u8> {
    let state = controller.lock();
    let mut bytes: Vec<u8> =
        state.errors.entries.iter().flat_map(|entry| entry.as_bytes().to_vec()).collect();
    bytes.resize(ERROR_LOG * size_of::<ErrorLogEntry>(), 0);
    bytes
}

/// The health of the drives, and what this controller's host did.
fn smart(controller: &Controller, mut page: SmartLog) -> Vec<u8> {
    let counters = &controller.counters;
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    // Data units are thousands of 512 bytes, rounded up.
    let units = |counter| U64::new(read(counter).div_ceil(512_000));
    page.data_units_read[0] = units(&counters.bytes_read);
    page.data_units_written[0] = units(&counters.bytes_written);
    page.host_reads[0] = U64::new(read(&counters.reads));
    page.host_writes[0] = U64::new(read(&counters.writes));
    page.error_log_entries[0] = U64::new(controller.lock().errors.count);
    page.as_bytes().to_vec()
}

fn firmware() -> Vec<u8> {
    let mut page = vec![0; 512];
    page[0] = 1;
    crate::spec::identify::fill_ascii(&mut page[8..16], env!("CARGO_PKG_VERSION"));
    page
}

fn changed_namespaces(controller: &Controller, clear: bool) -> Vec<u8> {
    let mut page = vec![0; NAMESPACE_LIST_ENTRIES * 4];
    match controller.lock().events.changed(clear) {
        Some(list) => list.iter().enumerate().for_each(|(at, id)| put(&mut page, at, *id)),
        None => put(&mut page, 0, NAMESPACE_LIST_OVERFLOW),
    }
    page
}

/// The oldest notification. It is taken by whoever reads the page as a whole; a part of it can be
/// looked at without losing it.
fn notification(controller: &Controller, offset: u64, length: u64) -> Vec<u8> {
    let whole = offset == 0 && length >= size_of::<NotificationPage>() as u64;
    let notifications = &mut controller.lock().notifications;
    let page = if whole { notifications.next_page() } else { notifications.first_page() };
    page.as_bytes().to_vec()
}

fn command_effects() -> Vec<u8> {
    let mut page = vec![0; 4096];
    for opcode in ADMIN_COMMANDS {
        put(&mut page, opcode.0.into(), SUPPORTED);
    }
    for (opcode, effects) in IO_COMMANDS {
        put(&mut page, 256 + usize::from(opcode.0), *effects);
    }
    page
}

fn feature_effects(features: &[Feature]) -> Vec<u8> {
    let mut page = vec![0; 1024];
    for feature in features {
        put(&mut page, feature.0.into(), SUPPORTED);
    }
    page
}

fn ana(queue: &Queue, controller: &Controller, groups_only: bool) -> Result<Vec<u8>, Status> {
    let subsystem = namespace::subsystem(queue, controller)?;
    let groups = subsystem.ana_groups(&controller.host().nqn);
    let changes = subsystem.ana_changes;
    let mut page = Vec::new();
    page.extend(changes.to_le_bytes());
    page.extend((groups.len() as u16).to_le_bytes());
    page.extend([0; 6]);
    for (group, namespaces) in groups {
        let named: &[NamespaceId] = if groups_only { &[] } else { &namespaces };
        page.extend(U32::new(group).to_bytes());
        page.extend((named.len() as u32).to_le_bytes());
        page.extend(changes.to_le_bytes());
        page.push(subsystem.ana_state(controller.local(), group).wire());
        page.extend([0; 15]);
        page.extend(named.iter().flat_map(|id| id.get().to_le_bytes()));
    }
    Ok(page)
}
