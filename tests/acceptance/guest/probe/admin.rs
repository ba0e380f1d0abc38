//! Just enough of an admin queue to send IDENTIFY.

use anyhow::{Result, bail, ensure};
use lvolfs::hw::dma::{DmaArena, SharedMemory};
use lvolfs::hw::event::EventFd;
use lvolfs::hw::transport::{Doorbell, Transport};
use lvolfs::hw::vfio::VfioTransport;
use lvolfs::spec::command::{IdentifyKind, SubmissionEntry};
use lvolfs::spec::completion::CompletionEntry;
use lvolfs::spec::register::{
    ACQ, AQA, ASQ, AdminQueueAttributes, CAP, CC, CSTS, Capabilities, Configuration,
    ControllerStatus, completion_doorbell, submission_doorbell,
};
use lvolfs::units::{CommandId, Iova, NamespaceId};

const ENTRIES: u16 = 4;
/// Turns of a wait of a millisecond, or of whatever the caller waits with.
const PATIENCE: u32 = 10_000_000;

pub(crate) struct AdminQueue {
    submission: SharedMemory,
    completion: SharedMemory,
    submission_bell: Doorbell,
    completion_bell: Doorbell,
    /// Commands sent so far; each was waited for.
    sent: u16,
}

impl AdminQueue {
    /// Disables the controller and enables it with an admin queue of its own.
    pub(crate) fn enable(transport: &VfioTransport, arena: &DmaArena) -> Result<Self> {
        let shared = || arena.allocate_shared(4096).ok_or(anyhow::anyhow!("the arena is full"));
        let (submission, completion) = (shared()?, shared()?);
        transport.write32(CC, 0);
        wait_until(transport, false)?;
        transport.write32(AQA, AdminQueueAttributes::new(ENTRIES, ENTRIES).0);
        transport.write64(ASQ, submission.iova().get());
        transport.write64(ACQ, completion.iova().get());
        transport.write32(CC, Configuration::ENABLE.0);
        wait_until(transport, true)?;
        let stride = Capabilities(transport.read64(CAP)).doorbell_stride();
        let bell = |offset: Option<u32>| transport.doorbell(offset.unwrap_or(u32::MAX));
        Ok(Self {
            submission_bell: bell(submission_doorbell(0, stride))?,
            completion_bell: bell(completion_doorbell(0, stride))?,
            submission,
            completion,
            sent: 0,
        })
    }

    /// Reads the controller's identity and compares its serial number.
    pub(crate) fn identify(
        &mut self,
        arena: &DmaArena,
        serial: &str,
        pause: impl FnMut(),
    ) -> Result<()> {
        let Some(page) = arena.allocate_zeroed(4096) else { bail!("the arena is full") };
        let page = page.into_device();
        let status = self.send(page.iova(), pause)?;
        ensure!(status == 0, "IDENTIFY ended with status {status:#x}");
        // The completion was seen: the page is ours again.
        let page = page.reclaim();
        let found = String::from_utf8_lossy(&page[4..24]);
        ensure!(found.trim_end() == serial, "serial {found:?}, not {serial:?}");
        Ok(())
    }

    /// IDENTIFY with its answer sent to any address. Returns the status.
    pub(crate) fn identify_to(&mut self, target: Iova) -> Result<u16> {
        self.send(target, std::hint::spin_loop)
    }

    fn send(&mut self, target: Iova, mut pause: impl FnMut()) -> Result<u16> {
        let entry = SubmissionEntry::identify(IdentifyKind::CONTROLLER, NamespaceId(0))
            .with_prps(target, Iova(0))
            .with_command_id(CommandId(self.sent));
        let place = self.sent % ENTRIES;
        // The phase bit of new entries: 1 in the first round, then 0, and so on.
        let phase = (self.sent / ENTRIES).is_multiple_of(2);
        self.submission.store_entry(usize::from(place), entry.bytes());
        self.sent += 1;
        self.submission_bell.ring(u32::from(self.sent % ENTRIES));
        for _ in 0..PATIENCE {
            let at = usize::from(place) * 16;
            let second = self.completion.load_acquire(at + 8);
            let completion =
                CompletionEntry::from_words([self.completion.load_acquire(at), second]);
            if completion.phase() == phase {
                ensure!(completion.command_id() == CommandId(self.sent - 1), "a stray completion");
                self.completion_bell.ring(u32::from(self.sent % ENTRIES));
                return Ok(completion.status.get() >> 1);
            }
            pause();
        }
        bail!("no completion")
    }
}

fn wait_until(transport: &VfioTransport, ready: bool) -> Result<()> {
    let millisecond = EventFd::new()?;
    for _ in 0..10_000 {
        let status = ControllerStatus(transport.read32(CSTS));
        ensure!(!status.gone() && !status.fatal(), "CSTS {:#x}", status.0);
        if status.ready() == ready {
            return Ok(());
        }
        millisecond.wait(Some(1));
    }
    bail!("not {} within 10 s", if ready { "ready" } else { "disabled" })
}
