//! What a command costs in the driver: submit, ring, poll, with nothing behind the doorbell.
//!
//! The controller is emulated until a queue pair exists. From then on this program plays the
//! device: it writes the completions itself, two stores each, which are part of the figures. Run
//! with `cargo bench --bench queue_pair`; the spread is that of twenty windows.

#![expect(clippy::print_stdout, reason = "the figures are the program's output")]

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lvolfs::emulated::{EmulatedController, Memory, MemoryGeometry, Settings as DeviceSettings};
use lvolfs::hw::dma::{DmaArena, DmaBuffer, DmaWindow};
use lvolfs::hw::event::EventFd;
use lvolfs::hw::transport::{Doorbell, DoorbellPage, Transport};
use lvolfs::nvme::{Controller, Event, QueuePair, QueueSettings, Request, Settings};
use lvolfs::reactor::clock::{Clock, Instant};
use lvolfs::spec::command::{AdminOpcode, ForceUnitAccess, SubmissionEntry};
use lvolfs::spec::completion::CompletionEntry;
use lvolfs::spec::register::{ASQ, DOORBELLS};
use lvolfs::spec::status::Status;
use lvolfs::units::{BlockCount, BlockSize, ByteCount, CommandId, Iova, Lba, NamespaceId, QueueId};
use zerocopy::FromBytes;

const WINDOWS: usize = 20;
const COMMANDS_PER_WINDOW: usize = 200_000;
/// Offset of the first doorbell that is not the admin queue's.
const IO_DOORBELLS: u32 = DOORBELLS + 8;

/// An emulated controller whose I/O doorbells nobody looks at.
struct Tap {
    device: Arc<EmulatedController>,
    doorbells: Arc<DoorbellPage>,
    admin_submissions: AtomicU64,
}

impl Transport for Tap {
    fn name(&self) -> &str {
        "bench"
    }
    fn read32(&self, offset: u32) -> u32 {
        self.device.read32(offset)
    }
    fn write32(&self, offset: u32, value: u32) {
        self.device.write32(offset, value);
    }
    fn read64(&self, offset: u32) -> u64 {
        self.device.read64(offset)
    }
    fn write64(&self, offset: u32, value: u64) {
        if offset == ASQ {
            self.admin_submissions.store(value, Ordering::Relaxed);
        }
        self.device.write64(offset, value);
    }
    fn doorbell(&self, offset: u32) -> io::Result<Doorbell> {
        let Some(offset) = offset.checked_sub(IO_DOORBELLS) else {
            return self.device.doorbell(offset);
        };
        Doorbell::new(Arc::clone(&self.doorbells) as _, offset, None)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn map(&self, arena: &DmaArena) -> io::Result<()> {
        self.device.map(arena)
    }
    fn vectors(&self) -> u16 {
        self.device.vectors()
    }
    fn interrupt(&self, vector: u16) -> io::Result<Arc<EventFd>> {
        self.device.interrupt(vector)
    }
    fn reset(&self) -> io::Result<()> {
        self.device.reset()
    }
}

/// The device's end of the completion ring.
struct Device {
    window: DmaWindow,
    submissions: Iova,
    completions: Iova,
    entries: u16,
    fetched: u16,
    posted: u16,
    phase: bool,
}

impl Device {
    /// Answers the next `count` commands.
    fn answer(&mut self, count: usize) {
        for _ in 0..count {
            let mut id = [0; 2];
            let entry = self.submissions.get() + u64::from(self.fetched) * 64;
            self.window.read(Iova(entry + 2), &mut id).expect("the queue is mapped");
            self.fetched = (self.fetched + 1) % self.entries;
            let id = CommandId(u16::from_le_bytes(id));
            let words = CompletionEntry::new(id, Status::SUCCESS, 0)
                .with_queue(1, self.fetched)
                .with_phase(self.phase)
                .to_words();
            let at = self.completions.get() + u64::from(self.posted) * 16;
            for (offset, word) in [(0, words[0]), (8, words[1])] {
                self.window.store_release(Iova(at + offset), word).expect("the queue is mapped");
            }
            self.posted = (self.posted + 1) % self.entries;
            self.phase ^= self.posted == 0;
        }
    }
}

/// Brings a controller up far enough to have a queue pair.
fn queue_pair(arena: &DmaArena) -> (Controller, QueuePair, Device) {
    let memory = Memory::new(MemoryGeometry::new(BlockSize::B4096, BlockCount(1 << 16)));
    let device = EmulatedController::new(DeviceSettings::default(), memory).expect("descriptors");
    let tap = Arc::new(Tap {
        device: Arc::clone(&device),
        doorbells: Arc::new(DoorbellPage::new(2)),
        admin_submissions: AtomicU64::new(0),
    });
    let transport = Arc::clone(&tap) as Arc<dyn Transport>;
    let mut controller =
        Controller::start(transport, arena, Settings::default()).expect("the arena is mapped");
    let settings = QueueSettings::new(NamespaceId(1));
    let request = Request::CreateQueuePair { settings, tag: 0 };
    controller.request(request).expect("the first request fits");
    let mut created = None;
    for turn in 0..100_000 {
        device.step(usize::MAX);
        controller.poll(Instant::from_nanos(turn * 1_000_000), &mut |event| {
            if let Event::QueuePairCreated { result, .. } = event {
                created = Some(*result.expect("the controller grants a queue pair"));
            }
        });
        if created.is_some() {
            break;
        }
    }
    let pair = created.expect("the emulated controller comes up");
    let player = player(arena.window(), &tap, &pair);
    (controller, pair, player)
}

/// Finds the rings in the commands that created them.
fn player(window: DmaWindow, tap: &Tap, pair: &QueuePair) -> Device {
    let (mut submissions, mut completions) = (Iova(0), Iova(0));
    for slot in 0..32 {
        let mut bytes = [0; 64];
        let at = tap.admin_submissions.load(Ordering::Relaxed) + slot * 64;
        window.read(Iova(at), &mut bytes).expect("the admin queue is mapped");
        let entry = SubmissionEntry::read_from_bytes(&bytes).expect("64 bytes");
        if entry.queue_id() != QueueId(1) {
            continue;
        }
        match entry.admin_opcode() {
            AdminOpcode::CREATE_SUBMISSION_QUEUE => submissions = Iova(entry.prp1.get()),
            AdminOpcode::CREATE_COMPLETION_QUEUE => completions = Iova(entry.prp1.get()),
            _ => {}
        }
    }
    let entries = pair.entries();
    Device { window, submissions, completions, entries, fetched: 0, posted: 0, phase: true }
}

/// Nanoseconds for each of `COMMANDS_PER_WINDOW` commands, `depth` at a time.
fn window(
    pair: &mut QueuePair,
    device: &mut Device,
    buffers: &mut Vec<DmaBuffer>,
    depth: usize,
) -> f64 {
    let clock = Clock::real();
    let rounds = COMMANDS_PER_WINDOW / depth;
    // The time that the pair is told stands still: no command is late.
    let still = Instant::default();
    let start = clock.now();
    for round in 0..rounds {
        for token in 0..depth as u64 {
            let Some(buffer) = buffers.pop() else { unreachable!("each command gives one back") };
            let lba = Lba(round as u64 & 0xfff);
            pair.submit_write(lba, buffer, ForceUnitAccess::No, token).expect("the queue has room");
        }
        pair.ring();
        device.answer(depth);
        let ended = pair.poll(still, &mut |completion| {
            black_box(completion.token);
            buffers.extend(completion.buffer);
        });
        assert_eq!(ended, depth);
    }
    let spent: Duration = clock.now().since(start);
    spent.as_nanos() as f64 / (rounds * depth) as f64
}

fn main() {
    let arena = DmaArena::new(ByteCount(32 << 20), false).expect("memory for the arena");
    let (_controller, mut pair, mut device) = queue_pair(&arena);
    for (pages, what) in [(1, "4 KiB"), (32, "128 KiB, PRP list")] {
        let mut buffers: Vec<_> = (0..if pages == 1 { 255 } else { 32 })
            .map(|_| arena.allocate(pages * 4096).expect("room in the arena"))
            .collect();
        for depth in [1, 8, 32, 255] {
            if depth > buffers.len() {
                continue;
            }
            let mut figures: Vec<f64> =
                (0..WINDOWS).map(|_| window(&mut pair, &mut device, &mut buffers, depth)).collect();
            figures.sort_by(f64::total_cmp);
            let (best, median, worst) = (figures[0], figures[WINDOWS / 2], figures[WINDOWS - 1]);
            println!(
                "{what:>18}, depth {depth:>3}: {median:6.1} ns/command \
                 (best {best:.1}, worst {worst:.1})"
            );
        }
    }
    // What this program answered in the device's place cannot be taken back.
    drop(pair);
}
