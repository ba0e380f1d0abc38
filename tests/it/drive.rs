//! A drive in this process: an emulated controller that works when its reactor polls it, and our
//! driver on it.

use std::rc::Rc;
use std::sync::Arc;

use lvolfs::block::nvme::{NvmeController, NvmeDevice, Wanted};
use lvolfs::emulated::{EmulatedController, Memory, MemoryGeometry, Settings};
use lvolfs::hw::dma::DmaArena;
use lvolfs::hw::event::EventFd;
use lvolfs::reactor::{Instant, Poller, Reactor, Registration};
use lvolfs::units::{BlockCount, BlockSize, ByteCount, NamespaceId};

/// Commands that the controller takes in one turn of the reactor.
const COMMANDS_PER_TURN: usize = 64;

struct Stepped(Arc<EmulatedController>);

impl Poller for Stepped {
    fn poll(&self, _now: Instant) -> usize {
        self.0.step(COMMANDS_PER_TURN)
    }

    fn outstanding(&self) -> bool {
        false
    }

    fn event(&self) -> Option<Arc<EventFd>> {
        None
    }
}

/// The drive, as long as this lives.
pub(crate) struct EmulatedDrive {
    pub(crate) emulated: Arc<EmulatedController>,
    pub(crate) device: NvmeDevice,
    pub(crate) controller: NvmeController,
    _steps: Registration,
}

impl EmulatedDrive {
    /// A blank drive in memory, whose device gives out so many channels.
    pub(crate) fn open(
        reactor: &Rc<Reactor>,
        arena: &DmaArena,
        (size, block_size): (ByteCount, BlockSize),
        settings: Settings,
        channels: u16,
    ) -> Self {
        let blocks = BlockCount(size.get() >> block_size.shift());
        let memory = Memory::new(MemoryGeometry::new(block_size, blocks));
        let emulated = EmulatedController::new(settings, memory).unwrap();
        let steps = reactor.register(Rc::new(Stepped(Arc::clone(&emulated))));
        let wanted = Wanted::new(Some(NamespaceId(1)), channels);
        let transport = Arc::clone(&emulated);
        let opened = NvmeController::open(reactor, arena, transport, &wanted);
        let (controller, devices) = reactor.block_on(opened).unwrap();
        let [device] = &*devices else { panic!("one namespace was asked for") };
        Self { emulated, device: device.clone(), controller, _steps: steps }
    }
}
