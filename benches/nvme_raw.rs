//! The NVMe driver on a real controller, with nothing above it: one queue pair, polled by one
//! thread, 4 KiB at random places.
//!
//!     nvme_raw ADDRESS (read | write) DEPTH SECONDS
//!
//! ADDRESS is on PCI and bound to vfio-pci (`mount/bind-vfio`). `write` destroys what is on the
//! first namespace. Prints one line: commands per second, and the CPU time that this thread took,
//! in percent. `benches/compare-nvme` sets it beside the kernel's driver.

#![expect(clippy::print_stdout, reason = "the figures are the program's output")]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant as WallClock};

use anyhow::{Context, Result, bail, ensure};
use lvolfs::hw::dma::{DmaArena, DmaBuffer};
use lvolfs::hw::transport::Transport;
use lvolfs::hw::vfio::{VfioAccess, VfioOptions, VfioTransport};
use lvolfs::nvme::{
    Completion, Controller, Event, Namespace, QueuePair, QueueSettings, Request, Settings,
};
use lvolfs::reactor::clock::Instant;
use lvolfs::spec::command::ForceUnitAccess;
use lvolfs::units::{ByteCount, Lba};

const BYTES: usize = 4096;
/// How often the clock is looked at.
const ROUNDS_PER_LOOK: u32 = 64;
/// How long any step of the start may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The driver's owner: time, and the controller that wants to be polled.
struct Owner {
    started: WallClock,
    controller: Controller,
}

impl Owner {
    fn now(&self) -> Instant {
        let since = self.started.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(since).unwrap_or(u64::MAX))
    }

    /// Polls until `wanted` takes an event.
    fn until<T>(&mut self, mut wanted: impl FnMut(Event) -> Option<Result<T>>) -> Result<T> {
        let end = WallClock::now() + PATIENCE;
        let mut found = None;
        while found.is_none() {
            ensure!(WallClock::now() < end, "the controller does not answer");
            let now = self.now();
            self.controller.poll(now, &mut |event| match event {
                Event::Failed(error) => found = Some(Err(error.into())),
                other => {
                    if let Some(result) = wanted(other) {
                        found = Some(result);
                    }
                }
            });
        }
        found.context("just found")?
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let [address, direction, depth, seconds] = arguments else {
        bail!("use: nvme_raw ADDRESS (read | write) DEPTH SECONDS");
    };
    let write = match direction.as_str() {
        "read" => false,
        "write" => true,
        other => bail!("{other} is neither read nor write"),
    };
    let depth: u16 = depth.parse().context("DEPTH")?;
    ensure!((1..=255).contains(&depth), "DEPTH is 1 to 255");
    let limit = Duration::from_secs_f64(seconds.parse().context("SECONDS")?);
    let options = VfioOptions { vectors: 1, access: VfioAccess::Any };
    let transport = VfioTransport::open(address.parse()?, options)?;
    let arena = DmaArena::new(ByteCount(8 << 20), false)?;
    let transport = Arc::new(transport) as Arc<dyn Transport>;
    let controller = Controller::start(transport, &arena, Settings::default())?;
    let mut owner = Owner { started: WallClock::now(), controller };
    let namespace = owner.until(|event| match event {
        Event::Ready { namespaces, .. } => {
            Some(namespaces.into_iter().next().context("it has no namespace that can be used"))
        }
        _ => None,
    })?;
    let settings = QueueSettings::new(namespace.id);
    let create = Request::CreateQueuePair { settings, tag: 0 };
    owner.controller.request(create).map_err(|_| anyhow::anyhow!("no room for a request"))?;
    let mut pair = owner.until(|event| match event {
        Event::QueuePairCreated { result, .. } => Some(result.map_err(Into::into)),
        _ => None,
    })?;
    let buffers = (0..depth).map(|_| arena.allocate_zeroed(BYTES).context("the arena is full"));
    let buffers = buffers.collect::<Result<Vec<_>>>()?;
    let load = Load { write, limit, random: fastrand::Rng::with_seed(7), namespace };
    let line = load.run(&mut owner, &mut pair, buffers)?;
    println!("{line}");
    let delete = Request::DeleteQueuePair { pair, tag: 0 };
    owner.controller.request(delete).map_err(|_| anyhow::anyhow!("no room for a request"))?;
    let shutdown = owner.controller.request(Request::Shutdown);
    shutdown.map_err(|_| anyhow::anyhow!("no room for a request"))?;
    owner.until(|event| matches!(event, Event::ShutDown).then_some(Ok(())))
}

struct Load {
    write: bool,
    limit: Duration,
    random: fastrand::Rng,
    namespace: Namespace,
}

impl Load {
    fn submit(&mut self, pair: &mut QueuePair, buffer: DmaBuffer) -> Result<()> {
        let blocks = (BYTES >> self.namespace.block_size.shift()) as u64;
        let places = self.namespace.block_count.get() / blocks;
        let at = Lba(self.random.u64(..places) * blocks);
        let submitted = match self.write {
            true => pair.submit_write(at, buffer, ForceUnitAccess::No, 0),
            false => pair.submit_read(at, buffer, 0),
        };
        submitted.map_err(|rejected| anyhow::anyhow!("{}", rejected.reason))
    }

    /// Keeps all buffers in flight until the time is over.
    fn run(
        mut self,
        owner: &mut Owner,
        pair: &mut QueuePair,
        buffers: Vec<DmaBuffer>,
    ) -> Result<String> {
        for buffer in buffers {
            self.submit(pair, buffer)?;
        }
        let mut ready: Vec<DmaBuffer> = Vec::with_capacity(pair.in_flight());
        let (mut ended, mut failed) = (0_u64, None);
        let (began, used) = (WallClock::now(), thread_seconds()?);
        let mut now = owner.now();
        let mut next_care = now;
        loop {
            for _ in 0..ROUNDS_PER_LOOK {
                pair.ring();
                pair.poll(now, &mut |completion: Completion| {
                    ended += 1;
                    match (completion.result, completion.buffer) {
                        (Ok(_), Some(buffer)) => ready.push(buffer),
                        (result, _) => failed = Some(result),
                    }
                });
                while let Some(buffer) = ready.pop() {
                    self.submit(pair, buffer)?;
                }
            }
            ensure!(failed.is_none(), "a command failed: {failed:?}");
            now = owner.now();
            if now >= next_care {
                next_care = now.after(owner.controller.poll(now, &mut |_| {}));
                if began.elapsed() >= self.limit {
                    break;
                }
            }
        }
        let took = began.elapsed().as_secs_f64();
        let cpu = (thread_seconds()? - used) / took * 100.0;
        pair.ring();
        while pair.in_flight() > 0 {
            pair.poll(owner.now(), &mut drop);
        }
        Ok(format!("iops={:.0} cpu={cpu:.0}", ended as f64 / took))
    }
}

/// CPU time of this thread so far, from the system's own account of it.
fn thread_seconds() -> Result<f64> {
    let account = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos: f64 = account.split(' ').next().context("an empty account")?.parse()?;
    Ok(nanos / 1e9)
}
