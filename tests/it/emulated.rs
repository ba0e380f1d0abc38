//! The emulated controller by itself, driven by a host of a few lines: raw queues in an arena.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lvolfs::emulated::{
    ControllerThread, Counters, EmulatedController, Fault, FaultAction, FileMedia, Memory,
    MemoryGeometry, Settings,
};
use lvolfs::hw::dma::{DmaArena, DmaBuffer, SharedMemory};
use lvolfs::hw::transport::Transport;
use lvolfs::spec::command::{
    AdminOpcode, Deallocate, DsmRange, Feature, ForceUnitAccess, IdentifyKind, IoOpcode,
    QueueCounts, SubmissionEntry,
};
use lvolfs::spec::completion::CompletionEntry;
use lvolfs::spec::identify::{
    DeallocatedReads, IdentifyController, IdentifyIndependentNamespace, IdentifyNamespace,
    NamespaceIdType, namespace_descriptors,
};
use lvolfs::spec::log::{
    AsyncEvent, ErrorLogEntry, LogPage, NOTIFY_NAMESPACE_ATTRIBUTES, SmartLog,
};
use lvolfs::spec::register::{
    ACQ, AQA, ASQ, AdminQueueAttributes, CAP, CC, CSTS, Capabilities, Configuration,
    ControllerStatus, GONE32, NSSR, NSSR_RESET, Shutdown, ShutdownStatus, VERSION_1_4, VS,
    completion_doorbell, submission_doorbell,
};
use lvolfs::spec::status::{Status, StatusCode};
use lvolfs::units::{BlockCount, BlockSize, ByteCount, CommandId, Iova, Lba, NamespaceId, QueueId};
use zerocopy::{FromBytes, IntoBytes};

const NS: NamespaceId = NamespaceId(1);
const ENTRIES: u16 = 8;
/// Steps after which a test gives a completion up.
const PATIENCE: usize = 64;

struct Queue {
    id: u16,
    submission: SharedMemory,
    completion: SharedMemory,
    entries: u16,
    tail: u16,
    head: u16,
    phase: bool,
    next_id: u16,
}

struct Host {
    controller: Arc<EmulatedController>,
    arena: DmaArena,
    admin: Queue,
    io: Option<Queue>,
}

fn memory(atomic_unit: u64) -> Memory {
    let mut geometry = MemoryGeometry::new(BlockSize::B512, BlockCount(1 << 16));
    geometry.atomic_unit = ByteCount(atomic_unit);
    Memory::new(geometry)
}

impl Host {
    /// A host with a controller over memory, an I/O queue pair created.
    fn new() -> Self {
        let controller = EmulatedController::new(Settings::default(), memory(512)).unwrap();
        Self::up(controller)
    }

    fn up(controller: Arc<EmulatedController>) -> Self {
        let mut host = Self::attach(controller);
        assert!(host.enable().ready());
        host.create_io_queues();
        host
    }

    fn attach(controller: Arc<EmulatedController>) -> Self {
        let arena = DmaArena::new(ByteCount(16 << 20), false).unwrap();
        controller.map(&arena).unwrap();
        let admin = Queue::new(&arena, 0, ENTRIES);
        Self { controller, arena, admin, io: None }
    }

    /// Configures the admin queue and enables; returns CSTS after it.
    fn enable(&mut self) -> ControllerStatus {
        self.controller.write32(CC, 0);
        self.admin = Queue::new(&self.arena, 0, ENTRIES);
        self.controller.write32(AQA, AdminQueueAttributes::new(ENTRIES, ENTRIES).0);
        self.controller.write64(ASQ, self.admin.submission.iova().get());
        self.controller.write64(ACQ, self.admin.completion.iova().get());
        self.controller.write32(CC, Configuration::ENABLE.0);
        self.status()
    }

    fn create_io_queues(&mut self) {
        let queue = Queue::new(&self.arena, 1, ENTRIES);
        let (submission, completion) = (queue.submission.iova(), queue.completion.iova());
        let id = QueueId(1);
        let create = SubmissionEntry::create_completion_queue(id, ENTRIES, completion, Some(1));
        assert_eq!(self.admin(create).code(), StatusCode::SUCCESS);
        let create = SubmissionEntry::create_submission_queue(id, ENTRIES, submission, id);
        assert_eq!(self.admin(create).code(), StatusCode::SUCCESS);
        self.io = Some(queue);
    }

    fn status(&self) -> ControllerStatus {
        ControllerStatus(self.controller.read32(CSTS))
    }

    fn queue(&mut self, id: u16) -> &mut Queue {
        match id {
            0 => &mut self.admin,
            _ => self.io.as_mut().unwrap(),
        }
    }

    /// Puts a command into a queue and rings.
    fn submit(&mut self, id: u16, entry: SubmissionEntry) -> CommandId {
        let queue = self.queue(id);
        let command = queue.push(entry);
        let tail = queue.tail;
        self.ring(id, u32::from(tail));
        command
    }

    fn ring(&self, id: u16, tail: u32) {
        let offset = submission_doorbell(id, 4).unwrap();
        self.controller.doorbell(offset).unwrap().ring(tail);
    }

    /// Takes the next completion of a queue, if there is one, and rings.
    fn reap(&mut self, id: u16) -> Option<CompletionEntry> {
        let queue = self.queue(id);
        let entry = queue.pop()?;
        let head = queue.head;
        let offset = completion_doorbell(id, 4).unwrap();
        self.controller.doorbell(offset).unwrap().ring(u32::from(head));
        Some(entry)
    }

    fn wait(&mut self, id: u16) -> CompletionEntry {
        for _ in 0..PATIENCE {
            if let Some(entry) = self.reap(id) {
                return entry;
            }
            self.controller.step(16);
        }
        panic!("no completion on queue {id}");
    }

    fn run(&mut self, id: u16, entry: SubmissionEntry) -> CompletionEntry {
        let command = self.submit(id, entry);
        let completion = self.wait(id);
        assert_eq!(completion.command_id(), command);
        assert_eq!(completion.submission_queue.get(), id);
        completion
    }

    fn admin(&mut self, entry: SubmissionEntry) -> Status {
        self.run(0, entry).status()
    }

    fn io(&mut self, entry: SubmissionEntry) -> StatusCode {
        self.run(1, entry).status().code()
    }

    fn buffer(&self, length: usize, byte: u8) -> DmaBuffer {
        let mut buffer = self.arena.allocate(length).unwrap();
        buffer.fill(byte);
        buffer
    }

    /// A write of blocks filled with `byte`, and its memory.
    fn write_entry(
        &self,
        lba: u64,
        blocks: u32,
        byte: u8,
        force: ForceUnitAccess,
    ) -> (SubmissionEntry, DmaBuffer) {
        let buffer = self.buffer(blocks as usize * 512, byte);
        let entry = SubmissionEntry::write(NS, Lba(lba), blocks, force)
            .with_prps(buffer.iova(), Iova(buffer.iova().get() + 4096));
        (entry, buffer)
    }

    fn write(&mut self, lba: u64, blocks: u32, byte: u8) {
        let (entry, _buffer) = self.write_entry(lba, blocks, byte, ForceUnitAccess::No);
        assert_eq!(self.io(entry), StatusCode::SUCCESS);
    }

    fn flush(&mut self) {
        assert_eq!(self.io(SubmissionEntry::flush(NS)), StatusCode::SUCCESS);
    }

    /// The first byte of each of `blocks` blocks, all of whose bytes must be the same.
    fn read(&mut self, lba: u64, blocks: u32) -> Vec<u8> {
        let buffer = self.buffer(blocks as usize * 512, 0xee);
        let entry = SubmissionEntry::read(NS, Lba(lba), blocks)
            .with_prps(buffer.iova(), Iova(buffer.iova().get() + 4096));
        assert_eq!(self.io(entry), StatusCode::SUCCESS);
        firsts(&buffer)
    }

    fn identify<T: FromBytes>(&mut self, kind: IdentifyKind, namespace: NamespaceId) -> T {
        let buffer = self.buffer(4096, 0xee);
        let entry = SubmissionEntry::identify(kind, namespace).with_prps(buffer.iova(), Iova(0));
        assert_eq!(self.admin(entry).code(), StatusCode::SUCCESS, "{kind:?}");
        T::read_from_bytes(&buffer).unwrap_or_else(|_| unreachable!())
    }

    fn counters(&self) -> Counters {
        self.controller.counters()
    }

    fn inject(&self, fault: Fault) {
        self.controller.inject(fault);
    }
}

impl Queue {
    fn new(arena: &DmaArena, id: u16, entries: u16) -> Self {
        Self {
            id,
            submission: arena.allocate_shared(usize::from(entries) * 64).unwrap(),
            completion: arena.allocate_shared(usize::from(entries) * 16).unwrap(),
            entries,
            tail: 0,
            head: 0,
            phase: true,
            next_id: 0,
        }
    }

    fn push(&mut self, entry: SubmissionEntry) -> CommandId {
        let id = CommandId(self.next_id);
        self.next_id += 1;
        self.push_as(id, entry);
        id
    }

    fn push_as(&mut self, id: CommandId, entry: SubmissionEntry) {
        let slot = usize::from(self.tail);
        self.submission.store_entry(slot, entry.with_command_id(id).bytes());
        self.tail = (self.tail + 1) % self.entries;
    }

    /// As `pop`, without a look at what is in it.
    fn pop_anything(&mut self) -> Option<CompletionEntry> {
        let at = usize::from(self.head) * 16;
        let high = self.completion.load_acquire(at + 8);
        let entry = CompletionEntry::from_words([self.completion.load_acquire(at), high]);
        if entry.phase() != self.phase {
            return None;
        }
        self.head = (self.head + 1) % self.entries;
        self.phase ^= self.head == 0;
        Some(entry)
    }

    fn pop(&mut self) -> Option<CompletionEntry> {
        let entry = self.pop_anything()?;
        assert_eq!(entry.submission_queue.get(), self.id);
        Some(entry)
    }
}

fn firsts(bytes: &[u8]) -> Vec<u8> {
    let first = |block: &[u8]| {
        assert!(block.iter().all(|byte| *byte == block[0]), "a torn block");
        block[0]
    };
    bytes.chunks(512).map(first).collect()
}

fn surviving(memory: &Memory, blocks: usize) -> Vec<u8> {
    let mut bytes = vec![0; blocks * 512];
    memory.peek(0, &mut bytes);
    firsts(&bytes)
}

/// Every state that a power cut now can leave of the first `blocks` blocks.
fn outcomes(host: &Host, blocks: usize) -> BTreeSet<Vec<u8>> {
    let snapshot = host.controller.snapshot().unwrap();
    let undecided = snapshot.undecided();
    assert!(undecided <= 12, "{undecided} undecided units are too many to try");
    let cut = |mask| {
        let mut memory = snapshot.clone();
        memory.power_cut_keep(mask);
        surviving(&memory, blocks)
    };
    (0..1 << undecided).map(cut).collect()
}

#[test]
fn registers_and_the_life_of_a_controller() {
    let mut host = Host::attach(
        EmulatedController::new(
            Settings { ready_delay: Duration::from_millis(700), ..Settings::default() },
            memory(512),
        )
        .unwrap(),
    );
    let controller = Arc::clone(&host.controller);
    let cap = Capabilities(controller.read64(CAP));
    assert_eq!((cap.max_queue_entries(), cap.doorbell_stride()), (1024, 4));
    assert!(cap.contiguous_queues() && cap.subsystem_reset() && cap.timeout_ms() >= 700);
    assert_eq!((cap.min_page_shift(), cap.max_page_shift()), (12, 12));
    assert_eq!(controller.read32(VS), VERSION_1_4);
    assert!(!host.enable().ready(), "takes its time");
    controller.advance(Duration::from_millis(700));
    assert!(host.status().ready());
    controller.write32(CC, Configuration::ENABLE.with_shutdown(Shutdown::Normal).0);
    assert_eq!(host.status().shutdown(), ShutdownStatus::Complete);
    controller.write32(CC, 0);
    assert_eq!(host.status(), ControllerStatus(0));
    controller.write32(NSSR, NSSR_RESET);
    assert!(host.status().subsystem_reset_occurred());
    controller.write32(CSTS, ControllerStatus::SUBSYSTEM_RESET_OCCURRED);
    assert_eq!(host.status(), ControllerStatus(0));
    assert_eq!(controller.read64(ASQ), 0);
}

#[test]
fn nonsense_in_the_configuration_is_fatal_until_it_is_taken_back() {
    let mut host = Host::attach(EmulatedController::new(Settings::default(), memory(512)).unwrap());
    for (register, value) in [(AQA, 0), (ASQ, 0x1000), (ASQ, 8), (ACQ, 0)] {
        host.enable();
        host.controller.write32(CC, 0);
        match register {
            AQA => host.controller.write32(AQA, value as u32),
            other => host.controller.write64(other, value),
        }
        host.controller.write32(CC, Configuration::ENABLE.0);
        assert!(host.status().fatal(), "{register:#x} = {value:#x}");
        host.controller.write32(CC, 0);
        assert!(!host.status().fatal());
    }
    host.controller.write32(CC, Configuration::ENABLE.0 | 1 << 7);
    assert!(host.status().fatal(), "pages of 8 KiB");
    assert!(host.enable().ready());
}

#[test]
fn what_it_says_of_itself() {
    let mut host = Host::up(EmulatedController::new(Settings::default(), memory(4096)).unwrap());
    let controller: IdentifyController = host.identify(IdentifyKind::CONTROLLER, NamespaceId(0));
    assert_eq!((controller.namespaces.get(), controller.max_transfer), (1, 8));
    assert_eq!(controller.volatile_write_cache & 1, 1);
    let namespace: IdentifyNamespace = host.identify(IdentifyKind::NAMESPACE, NS);
    assert_eq!((namespace.size.get(), namespace.format().data_size), (1 << 16, 9));
    assert_eq!(namespace.atomic_write_unit_power_fail.get(), 7);
    assert_eq!(namespace.deallocated_reads(), DeallocatedReads::Zeros);
    let list: [u32; 1024] = host.identify(IdentifyKind::ACTIVE_NAMESPACES, NamespaceId(0));
    assert_eq!(list[..2], [1, 0]);
    let list: [u32; 1024] = host.identify(IdentifyKind::ACTIVE_NAMESPACES, NS);
    assert_eq!(list[0], 0);
    let page: [u8; 4096] = host.identify(IdentifyKind::NAMESPACE_DESCRIPTORS, NS);
    let ids: Vec<_> = namespace_descriptors(&page).collect();
    assert_eq!(ids[1].0, NamespaceIdType::UUID);
    assert_eq!(ids[0], (NamespaceIdType::NGUID, &namespace.nguid[..]));
    let page: IdentifyIndependentNamespace = host.identify(IdentifyKind::INDEPENDENT_NAMESPACE, NS);
    assert_eq!((page.features, page.status), (0, 1));
    let _: [u8; 4096] = host.identify(IdentifyKind::COMMAND_SET_NAMESPACE, NS);
    let _: [u8; 4096] = host.identify(IdentifyKind::COMMAND_SET_CONTROLLER, NamespaceId(0));
    for (kind, namespace, code) in [
        (IdentifyKind::NAMESPACE, NamespaceId(2), StatusCode::INVALID_NAMESPACE),
        (IdentifyKind(0x99), NamespaceId(0), StatusCode::INVALID_FIELD),
    ] {
        let entry = SubmissionEntry::identify(kind, namespace);
        assert_eq!(host.admin(entry).code(), code);
    }
}

#[test]
fn blocks_are_written_read_zeroed_and_deallocated() {
    let mut host = Host::new();
    assert_eq!(host.read(0, 4), [0; 4]);
    host.write(1, 2, 7);
    assert_eq!(host.read(0, 4), [0, 7, 7, 0]);
    let zeroes = SubmissionEntry::write_zeroes(NS, Lba(1), 1, Deallocate::No, ForceUnitAccess::No);
    assert_eq!(host.io(zeroes), StatusCode::SUCCESS);
    assert_eq!(host.read(0, 4), [0, 0, 7, 0]);
    let mut ranges = host.buffer(4096, 0);
    let list = [DsmRange::new(Lba(2), 1), DsmRange::new(Lba(0), 0)];
    ranges[..32].copy_from_slice(list.as_bytes());
    let entry = SubmissionEntry::deallocate_ranges(NS, 2).with_prps(ranges.iova(), Iova(0));
    assert_eq!(host.io(entry), StatusCode::SUCCESS);
    assert_eq!(host.read(0, 4), [0; 4]);
    host.flush();
    let counters = host.counters();
    assert_eq!((counters.reads, counters.writes, counters.flushes), (4, 1, 1));
    assert_eq!((counters.write_zeroes, counters.dataset_managements), (1, 1));
    assert_eq!((counters.bytes_read, counters.bytes_written), (4 * 2048, 1024));
    assert_eq!((counters.failures, counters.outside_window), (0, 0));
}

#[test]
fn large_transfers_go_through_a_list() {
    let mut host = Host::new();
    const LENGTH: usize = 1 << 20;
    let mut buffer = host.arena.allocate(LENGTH).unwrap();
    for (index, word) in buffer.chunks_mut(8).enumerate() {
        word.copy_from_slice(&(index as u64).to_le_bytes());
    }
    let list = host.arena.allocate_shared(4096).unwrap();
    for page in 1..LENGTH / 4096 {
        list.store((page - 1) * 8, buffer.iova().get() + page as u64 * 4096);
    }
    let write = SubmissionEntry::write(NS, Lba(3), 2048, ForceUnitAccess::No);
    assert_eq!(host.io(write.with_prps(buffer.iova(), list.iova())), StatusCode::SUCCESS);
    let written = buffer.to_vec();
    buffer.fill(0);
    let read = SubmissionEntry::read(NS, Lba(3), 2048);
    assert_eq!(host.io(read.with_prps(buffer.iova(), list.iova())), StatusCode::SUCCESS);
    assert!(*buffer == *written);
    let read = SubmissionEntry::read(NS, Lba(3), 2049);
    assert_eq!(host.io(read.with_prps(buffer.iova(), list.iova())), StatusCode::INVALID_FIELD);
}

#[test]
fn mistakes_of_a_driver_are_answered() {
    let mut host = Host::new();
    let buffer = host.buffer(4096, 0);
    let at = buffer.iova();
    let read = |lba, blocks| SubmissionEntry::read(NS, Lba(lba), blocks).with_prps(at, at);
    let cases = [
        (read(1 << 16, 1), StatusCode::LBA_OUT_OF_RANGE),
        (read((1 << 16) - 1, 2), StatusCode::LBA_OUT_OF_RANGE),
        (read(u64::MAX, 1), StatusCode::LBA_OUT_OF_RANGE),
        (SubmissionEntry::flush(NamespaceId(2)), StatusCode::INVALID_NAMESPACE),
        (SubmissionEntry::read(NamespaceId(u32::MAX), Lba(0), 1), StatusCode::INVALID_NAMESPACE),
        (SubmissionEntry { flags: 0x80, ..read(0, 1) }, StatusCode::INVALID_FIELD),
        (SubmissionEntry { opcode: 0x99, ..read(0, 1) }, StatusCode::INVALID_OPCODE),
        (read(0, 1).with_prps(Iova(at.get() + 1), at), StatusCode::INVALID_PRP_OFFSET),
        (read(0, 1).with_prps(Iova(0x1000), at), StatusCode::DATA_TRANSFER_ERROR),
        (
            SubmissionEntry::deallocate_ranges(NS, 1).with_prps(Iova(8), at),
            StatusCode::DATA_TRANSFER_ERROR,
        ),
    ];
    for (entry, code) in cases {
        assert_eq!(host.io(entry), code, "{entry:?}");
    }
    assert_eq!(host.counters().outside_window, 2);
    let page = host.buffer(4096, 0);
    let log = SubmissionEntry::get_log_page(LogPage::ERROR, NamespaceId(0), 4096);
    assert_eq!(host.admin(log.with_prps(page.iova(), Iova(0))), Status::SUCCESS);
    let error = |index: usize| ErrorLogEntry::read_from_bytes(&page[index * 64..][..64]).unwrap();
    assert_eq!((error(0).error_count.get(), error(9).error_count.get()), (10, 1));
    assert_eq!((error(9).lba.get(), error(9).namespace.get()), (1 << 16, 1));
    let status = Status::from_bits(error(9).status.get() >> 1);
    assert_eq!(status.code(), StatusCode::LBA_OUT_OF_RANGE);
    assert_eq!(error(10).error_count.get(), 0);
    assert_eq!(host.io(SubmissionEntry::flush(NamespaceId(u32::MAX))), StatusCode::SUCCESS);
}

#[test]
fn queues_are_made_and_deleted_in_order() {
    let mut host = Host::new();
    let memory = host.arena.allocate_shared(4096).unwrap();
    let at = memory.iova();
    let completion = |id, entries, at, vector| {
        SubmissionEntry::create_completion_queue(QueueId(id), entries, at, vector)
    };
    let submission =
        |id, target| SubmissionEntry::create_submission_queue(QueueId(id), 8, at, QueueId(target));
    for (entry, code) in [
        (completion(1, 8, at, None), StatusCode::INVALID_QUEUE_ID),
        (completion(0, 8, at, None), StatusCode::INVALID_QUEUE_ID),
        (completion(17, 8, at, None), StatusCode::INVALID_QUEUE_ID),
        (completion(2, 1, at, None), StatusCode::INVALID_QUEUE_SIZE),
        (completion(2, 1025, at, None), StatusCode::INVALID_QUEUE_SIZE),
        (completion(2, 8, Iova(at.get() + 64), None), StatusCode::INVALID_PRP_OFFSET),
        (completion(2, 8, Iova(0), None), StatusCode::DATA_TRANSFER_ERROR),
        (completion(2, 8, at, Some(17)), StatusCode::INVALID_INTERRUPT_VECTOR),
        (submission(2, 2), StatusCode::COMPLETION_QUEUE_INVALID),
        (submission(2, 0), StatusCode::COMPLETION_QUEUE_INVALID),
        (submission(1, 1), StatusCode::INVALID_QUEUE_ID),
        (SubmissionEntry::delete_completion_queue(QueueId(1)), StatusCode::INVALID_QUEUE_DELETION),
        (SubmissionEntry::delete_submission_queue(QueueId(0)), StatusCode::INVALID_QUEUE_ID),
        (SubmissionEntry::delete_submission_queue(QueueId(2)), StatusCode::INVALID_QUEUE_ID),
        (
            SubmissionEntry::set_features(Feature::NUMBER_OF_QUEUES, 0),
            StatusCode::COMMAND_SEQUENCE_ERROR,
        ),
        (SubmissionEntry::delete_submission_queue(QueueId(1)), StatusCode::SUCCESS),
        (SubmissionEntry::delete_completion_queue(QueueId(1)), StatusCode::SUCCESS),
    ] {
        assert_eq!(host.admin(entry).code(), code, "{entry:?}");
    }
    let counts = QueueCounts { submission: 4, completion: 4 };
    let set = SubmissionEntry::set_features(Feature::NUMBER_OF_QUEUES, counts.to_dword());
    let granted = QueueCounts::from_dword(host.run(0, set).result.get());
    assert_eq!((granted.submission, granted.completion), (16, 16));
    host.create_io_queues();
    host.write(0, 1, 1);
}

#[test]
fn deleting_a_queue_answers_its_commands() {
    let mut host = Host::new();
    let lost = host.submit(1, SubmissionEntry::flush(NS));
    host.submit(0, SubmissionEntry::delete_submission_queue(QueueId(1)));
    host.controller.step(1);
    assert_eq!(host.reap(0).unwrap().status().code(), StatusCode::SUCCESS);
    let answer = host.reap(1).unwrap();
    assert_eq!(answer.command_id(), lost);
    assert_eq!(answer.status().code(), StatusCode::ABORTED_QUEUE_DELETED);
}

#[test]
fn doorbells_are_checked() {
    let mut host = Host::new();
    let request = host.submit(0, SubmissionEntry::async_event_request());
    host.controller.step(1);
    host.ring(1, u32::from(ENTRIES));
    let event = host.wait(0);
    assert_eq!(event.command_id(), request);
    let event = AsyncEvent::from_dword(event.result.get());
    assert_eq!(event.information, AsyncEvent::INVALID_DOORBELL_VALUE);
    host.submit(0, SubmissionEntry::async_event_request());
    host.ring(5, 1);
    host.controller.step(9);
    assert!(host.reap(0).is_none(), "not before the page was read");
    let buffer = host.buffer(4096, 0);
    let log = SubmissionEntry::get_log_page(event.log_page, NamespaceId(0), 64);
    assert_eq!(host.run(0, log.with_prps(buffer.iova(), Iova(0))).status(), Status::SUCCESS);
    host.ring(5, 1);
    let event = AsyncEvent::from_dword(host.wait(0).result.get());
    assert_eq!(event.information, AsyncEvent::INVALID_DOORBELL_REGISTER);
    host.controller.write32(completion_doorbell(1, 4).unwrap(), 3);
    host.controller.step(1);
    assert_eq!(host.counters().invalid_doorbells, 4);
}

#[test]
fn an_identifier_in_use_is_a_conflict() {
    let mut host = Host::new();
    for _ in 0..2 {
        host.queue(1).push_as(CommandId(7), SubmissionEntry::flush(NS));
    }
    host.ring(1, 2);
    assert_eq!(host.wait(1).status().code(), StatusCode::SUCCESS);
    assert_eq!(host.wait(1).status().code(), StatusCode::COMMAND_ID_CONFLICT);
    host.queue(1).push_as(CommandId(7), SubmissionEntry::flush(NS));
    host.ring(1, 3);
    assert_eq!(host.wait(1).status().code(), StatusCode::SUCCESS);
}

#[test]
fn a_full_completion_queue_stalls_its_submission_queue() {
    let mut host = Host::new();
    let small = Queue::new(&host.arena, 2, 2);
    let id = QueueId(2);
    let create = SubmissionEntry::create_completion_queue(id, 2, small.completion.iova(), None);
    assert_eq!(host.admin(create).code(), StatusCode::SUCCESS);
    let other = Queue::new(&host.arena, 2, ENTRIES);
    let create = SubmissionEntry::create_submission_queue(id, ENTRIES, other.submission.iova(), id);
    assert_eq!(host.admin(create).code(), StatusCode::SUCCESS);
    host.io = Some(Queue { completion: small.completion, ..other });
    for _ in 0..3 {
        host.submit(2, SubmissionEntry::flush(NS));
    }
    host.queue(2).entries = 2;
    for _ in 0..3 {
        assert_eq!(host.controller.step(16), 1, "one entry fits");
        assert_eq!(host.controller.step(16), 0, "stalled");
        assert!(host.reap(2).is_some());
    }
    assert_eq!(host.controller.step(16), 0);
}

#[test]
fn interrupts_follow_completions() {
    let mut host = Host::new();
    let event = host.controller.interrupt(1).unwrap();
    assert!(!event.consume());
    host.submit(1, SubmissionEntry::flush(NS));
    host.submit(1, SubmissionEntry::flush(NS));
    host.controller.step(16);
    assert!(event.consume() && !event.consume());
    assert!(host.controller.interrupt(17).is_err());
    host.inject(Fault::new(FaultAction::LoseInterrupt));
    host.submit(1, SubmissionEntry::flush(NS));
    host.controller.step(16);
    assert!(!event.consume());
    host.submit(1, SubmissionEntry::flush(NS));
    host.controller.step(16);
    assert!(event.consume());
}

#[test]
fn features_logs_and_aborts() {
    let mut host = Host::new();
    let get = SubmissionEntry::get_features(Feature::VOLATILE_WRITE_CACHE);
    assert_eq!(host.run(0, get).result.get(), 1);
    let set = SubmissionEntry::set_features(Feature::VOLATILE_WRITE_CACHE, 0);
    assert_eq!(host.admin(set), Status::SUCCESS);
    host.write(0, 1, 9);
    assert_eq!(outcomes(&host, 1), [vec![9]].into(), "written through");
    let buffer = host.buffer(4096, 0);
    let log = SubmissionEntry::get_log_page(LogPage::SMART, NamespaceId(u32::MAX), 512)
        .with_prps(buffer.iova(), Iova(0));
    assert_eq!(host.admin(log), Status::SUCCESS);
    let smart = SmartLog::read_from_bytes(&buffer[..512]).unwrap();
    assert_eq!((smart.host_writes[0].get(), smart.power_cycles[0].get()), (1, 1));
    host.inject(Fault::new(FaultAction::Hold));
    let held = host.submit(1, SubmissionEntry::flush(NS));
    host.controller.step(1);
    assert_eq!(host.run(0, SubmissionEntry::abort(QueueId(1), held)).result.get(), 0);
    let answer = host.reap(1).unwrap();
    assert_eq!((answer.command_id(), answer.status().code()), (held, StatusCode::ABORT_REQUESTED));
    assert_eq!(host.run(0, SubmissionEntry::abort(QueueId(1), held)).result.get(), 1);
}

#[test]
fn a_namespace_that_grows_is_announced() {
    let mut host = Host::new();
    let set = SubmissionEntry::set_features(
        Feature::ASYNC_EVENT_CONFIGURATION,
        NOTIFY_NAMESPACE_ATTRIBUTES,
    );
    assert_eq!(host.admin(set), Status::SUCCESS);
    host.submit(0, SubmissionEntry::async_event_request());
    host.controller.step(1);
    host.write(5, 1, 5);
    host.controller.resize(BlockCount(1 << 17));
    let event = AsyncEvent::from_dword(host.wait(0).result.get());
    assert_eq!(event.log_page, LogPage::CHANGED_NAMESPACES);
    let namespace: IdentifyNamespace = host.identify(IdentifyKind::NAMESPACE, NS);
    assert_eq!(namespace.size.get(), 1 << 17);
    host.write((1 << 17) - 1, 1, 3);
    assert_eq!(host.read(5, 1), [5]);
}

#[test]
fn faults() {
    let mut host = Host::new();
    host.write(0, 1, 1);
    let failure: Status = StatusCode::WRITE_FAULT.into();
    host.inject(Fault::new(FaultAction::Fail(failure)).on_opcode(IoOpcode::WRITE.0));
    let (entry, _buffer) = host.write_entry(0, 1, 2, ForceUnitAccess::No);
    assert_eq!(host.read(0, 1), [1], "no read");
    assert_eq!(host.io(entry), StatusCode::WRITE_FAULT);
    assert_eq!(host.read(0, 1), [1]);
    host.inject(Fault::new(FaultAction::FailAfter(failure)));
    assert_eq!(host.io(entry), StatusCode::WRITE_FAULT);
    assert_eq!(host.read(0, 1), [2]);

    host.inject(Fault::new(FaultAction::Delay(Duration::from_secs(30))));
    host.submit(1, entry);
    host.controller.step(9);
    host.controller.advance(Duration::from_secs(29));
    host.controller.step(9);
    assert!(host.reap(1).is_none());
    host.controller.advance(Duration::from_secs(1));
    host.wait(1);

    host.inject(Fault::new(FaultAction::WrongCommandId(CommandId(0x777))));
    host.submit(1, entry);
    assert_eq!(host.wait(1).command_id(), CommandId(0x777));
    host.inject(Fault::new(FaultAction::DuplicateCompletion));
    host.submit(1, entry);
    assert_eq!(host.wait(1).command_id(), host.reap(1).unwrap().command_id());

    host.inject(Fault::new(FaultAction::Hold).on_opcode(IoOpcode::READ.0));
    let buffer = host.buffer(512, 0);
    host.submit(1, SubmissionEntry::read(NS, Lba(0), 1).with_prps(buffer.iova(), Iova(0)));
    host.controller.step(9);
    assert!(host.reap(1).is_none());
    host.controller.release_held();
    assert!(host.reap(1).is_some());

    host.inject(Fault::new(FaultAction::CorruptData).on_opcode(IoOpcode::WRITE.0));
    assert_eq!(host.io(entry), StatusCode::SUCCESS);
    let mut bytes = [0; 2];
    host.controller.with_memory(|memory| memory.peek(0, &mut bytes));
    assert!(bytes[0] != 2 && bytes[1] == 2);

    host.inject(Fault::new(FaultAction::LoseCompletion));
    host.submit(1, entry);
    host.controller.step(9);
    host.controller.release_held();
    assert!(host.reap(1).is_none());
    assert_eq!(host.counters().faults, 8);
}

#[test]
fn a_controller_that_fails_or_vanishes() {
    let mut host = Host::new();
    host.write(0, 1, 1);
    host.inject(Fault::new(FaultAction::FatalStatus));
    host.submit(1, SubmissionEntry::flush(NS));
    host.controller.step(9);
    assert!(host.status().fatal() && host.reap(1).is_none());
    assert_eq!(host.controller.step(9), 0);
    assert!(host.enable().ready());
    host.create_io_queues();
    assert_eq!(host.read(0, 1), [1], "the cache outlives a reset");
    host.inject(Fault::new(FaultAction::Unplug));
    host.submit(1, SubmissionEntry::flush(NS));
    host.controller.step(9);
    assert!(host.status().gone() && host.reap(1).is_none());
    assert_eq!(host.controller.read32(VS), GONE32);
    assert_eq!(host.controller.read64(CAP), u64::MAX);
    host.controller.write32(CC, 0);
    assert!(host.controller.reset().is_err() && host.status().gone());
    host.controller.replug();
    assert!(host.enable().ready());
}

#[test]
fn an_arena_is_replaced_only_while_disabled() {
    let host = Host::new();
    let other = DmaArena::new(ByteCount::MIB, false).unwrap();
    assert!(host.controller.map(&host.arena).is_ok());
    assert!(host.controller.map(&other).is_err());
    host.controller.reset().unwrap();
    assert!(host.controller.map(&other).is_ok());
}

#[test]
fn flushed_data_survives_every_cut_and_the_rest_may() {
    let mut host = Host::new();
    host.write(0, 2, 1);
    host.flush();
    host.write(1, 2, 2);
    assert_eq!(
        outcomes(&host, 3),
        [vec![1, 1, 0], vec![1, 2, 0], vec![1, 1, 2], vec![1, 2, 2]].into()
    );
    for seed in 0..32 {
        let mut memory = host.controller.snapshot().unwrap();
        memory.power_cut(seed);
        assert_eq!(surviving(&memory, 1), [1], "seed {seed}");
    }
    host.controller.power_cut(3);
    assert_eq!(host.status(), ControllerStatus(0), "as after power on");
    assert!(host.enable().ready());
    host.create_io_queues();
    assert_eq!(host.read(0, 1), [1]);
    assert_eq!(host.counters().unsafe_shutdowns, 1);
}

#[test]
fn a_flush_does_not_cover_what_was_in_flight_when_it_was_submitted() {
    let mut host = Host::new();
    let (write, _buffer) = host.write_entry(0, 1, 1, ForceUnitAccess::No);
    host.queue(1).push(write);
    host.queue(1).push(SubmissionEntry::flush(NS));
    host.ring(1, 2);
    assert!(host.wait(1).status().is_success() && host.wait(1).status().is_success());
    assert_eq!(outcomes(&host, 1), [vec![0], vec![1]].into());
    host.flush();
    assert_eq!(outcomes(&host, 1), [vec![1]].into());
}

#[test]
fn force_unit_access_survives_alone() {
    let mut host = Host::new();
    host.write(0, 1, 1);
    let (entry, _buffer) = host.write_entry(1, 1, 2, ForceUnitAccess::Yes);
    assert_eq!(host.io(entry), StatusCode::SUCCESS);
    assert_eq!(outcomes(&host, 2), [vec![0, 2], vec![1, 2]].into());
    assert_eq!(host.counters().force_unit_access, 1);
}

#[test]
fn commands_in_flight_may_have_happened() {
    let mut host = Host::new();
    let (entry, _buffer) = host.write_entry(0, 1, 1, ForceUnitAccess::Yes);
    host.submit(1, entry);
    assert_eq!(outcomes(&host, 1), [vec![0], vec![1]].into(), "rung and not yet seen");
    assert_eq!(host.counters().writes, 0, "a snapshot changes nothing");
    host.inject(Fault::new(FaultAction::Hold));
    host.controller.step(1);
    assert_eq!(outcomes(&host, 1), [vec![0], vec![1]].into(), "done and not yet answered");
    host.controller.release_held();
    assert_eq!(outcomes(&host, 1), [vec![1]].into());
}

#[test]
fn drives_that_lie_lose_data() {
    let mut host = Host::new();
    host.write(0, 1, 1);
    host.inject(Fault::new(FaultAction::Pretend).on_opcode(IoOpcode::FLUSH.0));
    host.flush();
    assert_eq!(outcomes(&host, 1).len(), 2, "a flush that lies");
    host.flush();
    host.inject(Fault::new(FaultAction::IgnoreForceUnitAccess));
    let (entry, _buffer) = host.write_entry(0, 1, 2, ForceUnitAccess::Yes);
    assert_eq!(host.io(entry), StatusCode::SUCCESS);
    assert_eq!(outcomes(&host, 1), [vec![1], vec![2]].into(), "no force");
}

#[test]
fn an_orderly_shutdown_loses_nothing() {
    let mut host = Host::new();
    host.write(0, 8, 1);
    let shutdown = Configuration::ENABLE.with_shutdown(Shutdown::Normal);
    host.controller.write32(CC, shutdown.0);
    assert_eq!(outcomes(&host, 8), [vec![1; 8]].into());
    host.controller.power_cut(0);
    assert_eq!(host.counters().unsafe_shutdowns, 0);
}

/// Random writes, flushes and cuts against what NVMe allows: a block holds its last flushed
/// version or one written later, whatever the order of processing.
#[test]
fn power_cuts_keep_the_promises_of_the_specification() {
    const BLOCKS: u64 = 24;
    for seed in 0..40 {
        let settings = Settings { reorder: Some(seed), ..Settings::default() };
        let unit = [512, 4096][seed as usize % 2];
        let mut host = Host::up(EmulatedController::new(settings, memory(unit)).unwrap());
        let mut random = fastrand::Rng::with_seed(seed);
        // For each block the versions that may survive.
        let mut allowed = vec![vec![0_u8]; BLOCKS as usize];
        for byte in 1..60 {
            if random.u8(..6) == 0 {
                host.flush();
                for versions in &mut allowed {
                    versions.drain(..versions.len() - 1);
                }
                continue;
            }
            let start = random.u64(..BLOCKS - 8);
            let blocks = random.u32(1..=8);
            let force = match random.u8(..4) {
                0 => ForceUnitAccess::Yes,
                _ => ForceUnitAccess::No,
            };
            let (entry, _buffer) = host.write_entry(start, blocks, byte, force);
            assert_eq!(host.io(entry), StatusCode::SUCCESS);
            for versions in &mut allowed[start as usize..][..blocks as usize] {
                if force == ForceUnitAccess::Yes {
                    versions.clear();
                }
                versions.push(byte);
            }
        }
        let newest: Vec<_> = allowed.iter().map(|versions| versions[versions.len() - 1]).collect();
        assert_eq!(host.read(0, 16), newest[..16], "seed {seed}");
        for cut in 0..50 {
            let mut memory = host.controller.snapshot().unwrap();
            memory.power_cut(cut);
            for (block, byte) in surviving(&memory, BLOCKS as usize).into_iter().enumerate() {
                assert!(
                    allowed[block].contains(&byte),
                    "seed {seed} cut {cut}: block {block} is {byte}, not in {:?}",
                    allowed[block]
                );
            }
        }
    }
}

#[test]
fn commands_are_reordered_by_a_seed() {
    let order = |seed| {
        let settings = Settings { reorder: Some(seed), ..Settings::default() };
        let mut host = Host::up(EmulatedController::new(settings, memory(512)).unwrap());
        for _ in 0..6 {
            host.queue(1).push(SubmissionEntry::flush(NS));
        }
        host.ring(1, 6);
        (0..6).map(|_| host.wait(1).command_id().get()).collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1));
    assert!((0..8).any(|seed| order(seed) != [0, 1, 2, 3, 4, 5]));
}

#[test]
fn a_file_is_a_medium() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let media = FileMedia::new(file.try_clone().unwrap(), BlockSize::B512).unwrap();
    let mut host = Host::up(EmulatedController::new(Settings::default(), media).unwrap());
    host.write(1, 2, 7);
    assert_eq!(host.counters().syncs, 0);
    let (entry, _buffer) = host.write_entry(4, 1, 8, ForceUnitAccess::Yes);
    host.queue(1).push(entry);
    host.queue(1).push(SubmissionEntry::flush(NS));
    host.queue(1).push(SubmissionEntry::flush(NS));
    let tail = host.queue(1).tail;
    host.ring(1, u32::from(tail));
    for _ in 0..3 {
        assert!(host.wait(1).status().is_success());
    }
    assert_eq!(host.counters().syncs, 1, "shared by the batch");
    let zeroes = SubmissionEntry::write_zeroes(NS, Lba(1), 1, Deallocate::Yes, ForceUnitAccess::No);
    assert_eq!(host.io(zeroes), StatusCode::SUCCESS);
    assert_eq!(host.read(0, 6), [0, 0, 7, 0, 8, 0]);
    assert!(host.controller.snapshot().is_none());
    file.set_len(512).unwrap();
    let buffer = host.buffer(512, 0);
    let read = SubmissionEntry::read(NS, Lba(4), 1).with_prps(buffer.iova(), Iova(0));
    assert_eq!(host.io(read), StatusCode::UNRECOVERED_READ_ERROR);
}

#[test]
fn a_thread_goes_on_when_a_full_queue_has_room() {
    let mut host = Host::new();
    let small = Queue::new(&host.arena, 2, 2);
    let id = QueueId(2);
    let create = SubmissionEntry::create_completion_queue(id, 2, small.completion.iova(), Some(2));
    assert_eq!(host.admin(create).code(), StatusCode::SUCCESS);
    let create = SubmissionEntry::create_submission_queue(id, 2, small.submission.iova(), id);
    assert_eq!(host.admin(create).code(), StatusCode::SUCCESS);
    host.io = Some(small);
    let interrupt = host.controller.interrupt(2).unwrap();
    let thread = ControllerThread::spawn(Arc::clone(&host.controller)).unwrap();
    for _ in 0..20 {
        // The second command finds the queue full, until the first answer is consumed.
        host.submit(2, SubmissionEntry::flush(NS));
        interrupt.wait(None);
        interrupt.consume();
        host.submit(2, SubmissionEntry::flush(NS));
        for _ in 0..2 {
            while host.reap(2).is_none() {
                interrupt.wait(None);
                interrupt.consume();
            }
        }
    }
    drop(thread);
}

#[test]
fn a_thread_serves_and_stops() {
    let mut host = Host::new();
    let interrupt = host.controller.interrupt(1).unwrap();
    let thread = ControllerThread::spawn(Arc::clone(&host.controller)).unwrap();
    for round in 0..200_u64 {
        let (entry, _buffer) = host.write_entry(round, 1, round as u8, ForceUnitAccess::No);
        host.submit(1, entry);
        let answer = loop {
            if let Some(answer) = host.reap(1) {
                break answer;
            }
            interrupt.wait(None);
            interrupt.consume();
        };
        assert!(answer.status().is_success());
    }
    host.inject(Fault::new(FaultAction::Delay(Duration::from_millis(2))));
    host.submit(1, SubmissionEntry::flush(NS));
    while host.reap(1).is_none() {
        interrupt.wait(None);
        interrupt.consume();
    }
    drop(thread);
    assert_eq!(host.controller.step(1), 0);
    assert_eq!(host.read(7, 2), [7, 8]);
}

#[test]
fn shadow_doorbells_are_looked_at_and_checked() {
    let config = |shadow, events| SubmissionEntry::doorbell_buffers(Iova(shadow), Iova(events));
    let mut host = Host::new();
    let base = host.arena.iova().get();
    assert_eq!(host.admin(config(base, base)).code(), StatusCode::INVALID_OPCODE);
    let settings = Settings { shadow_doorbells: true, ..Settings::default() };
    let mut host = Host::attach(EmulatedController::new(settings, memory(512)).unwrap());
    assert!(host.enable().ready());
    let pages = [0; 2].map(|_| host.arena.allocate_shared(4096).unwrap());
    let [shadow, events] = [&pages[0], &pages[1]].map(|page| page.iova().get());
    assert_eq!(host.admin(config(shadow + 8, events)).code(), StatusCode::INVALID_FIELD);
    assert_eq!(host.admin(config(shadow, 0)).code(), StatusCode::DATA_TRANSFER_ERROR);
    assert_eq!(host.controller.counters().outside_window, 1);
    assert_eq!(host.admin(config(shadow, events)).code(), StatusCode::SUCCESS);
    host.create_io_queues();
    let bell = 8; // That of submission queue 1.
    host.queue(1).push(SubmissionEntry::flush(NS));
    assert!(!host.controller.has_work());
    pages[0].store_half(bell, 1);
    assert!(host.controller.has_work());
    host.controller.step(8);
    assert!(host.reap(1).unwrap().status().is_success());
    // The register counts for nothing now, and nonsense in the shadow is said once.
    host.ring(1, 3);
    assert!(!host.controller.has_work());
    pages[0].store_half(bell, 999);
    host.controller.step(8);
    assert_eq!(host.controller.counters().invalid_doorbells, 1);
    assert!(!host.controller.has_work());
    // A reset forgets them.
    assert!(host.enable().ready());
    host.create_io_queues();
    let command = host.submit(1, SubmissionEntry::flush(NS));
    host.controller.step(8);
    assert_eq!(host.reap(1).unwrap().command_id(), command);
}

/// A host that means no good: random registers, doorbells, queue memory and commands.
#[test]
fn nothing_a_host_does_makes_it_panic() {
    const LAST_REGISTER: u32 = 0x40;
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let settings = Settings {
            reorder: (seed % 2 == 0).then_some(seed),
            max_transfer: [0, 1, 8][seed as usize % 3],
            io_queues: 2,
            shadow_doorbells: seed % 4 < 2,
            ..Settings::default()
        };
        let controller = EmulatedController::new(settings, memory(512)).unwrap();
        let mut host = Host::up(controller);
        let base = host.arena.iova().get();
        let address = |random: &mut fastrand::Rng| match random.u8(..8) {
            0 => random.u64(..),
            1 => base + random.u64(..1 << 25),
            2 => base + (16 << 20) - 4096,
            _ => base + random.u64(..4096) * 4096,
        };
        for _ in 0..400 {
            let mut entry = SubmissionEntry::read_from_bytes(&[0; 64]).unwrap();
            random.fill(entry.as_mut_bytes());
            entry.opcode = match random.u8(..24) {
                0 => AdminOpcode::DOORBELL_BUFFER_CONFIG.0,
                _ => random.u8(..16),
            };
            entry.flags &= if random.bool() { 0 } else { 0xff };
            if random.u8(..4) > 0 {
                entry.namespace.set(1);
                entry.dword10.set(random.u32(..0x0008_0008));
                entry.dword11.set(random.u32(..) & random.u32(..) & 0x0001_0007);
                entry.dword12.set(random.u32(..) & 0x4200_01ff);
                entry.dword13.set(0);
            }
            entry.prp1.set(address(&mut random));
            entry.prp2.set(address(&mut random));
            let id = random.u16(..2);
            let command = CommandId(random.u16(..12));
            host.queue(id).push_as(command, entry);
            match random.u8(..16) {
                0 => host.ring(random.u16(..3), random.u32(..)),
                1 => {
                    let head = completion_doorbell(random.u16(..4), 4).unwrap();
                    host.controller.write32(head, random.u32(..10));
                }
                2 if random.u8(..4) == 0 => {
                    let register = random.u32(..LAST_REGISTER / 4) * 4;
                    let bits = random.u32(..) & random.u32(..);
                    host.controller.write32(register, bits);
                }
                3 if random.u8(..4) == 0 => {
                    host.enable();
                    host.io = Some(Queue::new(&host.arena, 1, ENTRIES));
                }
                4 => drop(host.controller.snapshot()),
                5 if random.u8(..8) == 0 => host.controller.power_cut(seed),
                _ => {
                    let tail = host.queue(id).tail;
                    host.ring(id, u32::from(tail));
                }
            }
            host.controller.step(random.usize(..20));
            let _ = host.controller.has_work();
            while host.queue(id).pop_anything().is_some() {
                let head = host.queue(id).head;
                host.controller.write32(completion_doorbell(id, 4).unwrap(), u32::from(head));
            }
        }
        host.controller.power_cut(seed);
        assert!(host.enable().ready(), "seed {seed}");
    }
}
