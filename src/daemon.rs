//! The life of the daemon, in order: start threads, claim devices, recover pools, open doors, say
//! ready, wait, drain, close.
//!
//! When [`serve`] returns without an error, every door is closed, every pool was closed clean and
//! flushed, and every device was told of the shutdown. When it returns with one, whatever was
//! opened before was closed as far as possible, and what was not will be recovered at the next
//! start.

mod devices;
mod doors;
mod facts;
mod files;
mod hosts;
mod pools;
mod reactors;
mod service;
mod signals;
mod site;
mod target;

use std::sync::Arc;

use anyhow::Context;

use crate::config::{Config, Cores, Driver};
use crate::hw::dma::DmaArena;
use crate::units::ByteCount;
use devices::Devices;
use doors::Doors;
use pools::Pools;
use reactors::{ReactorThread, Seat};
use signals::Signals;
use site::Site;

/// Serves the configuration until a signal asks for the end; then drains and closes.
///
/// # Errors
/// What kept it from starting, or what could not be closed in order.
pub fn serve(config: &Config) -> anyhow::Result<()> {
    let signals = Signals::install().context("cannot listen for signals")?;
    // Before anything is touched: what is likely to be wrong with a first configuration.
    Doors::check(config)?;
    let memory = ByteCount(config.reactor.dma_memory.get() + files::queue_memory(config).get());
    let arena = dma_memory(config, memory)?;
    let sites = start_reactors(config, &arena)?;
    let devices = Devices::open(config, &sites)?;
    let served = serve_pools(config, &sites, &devices, &signals);
    let shut_down = devices.close(&sites);
    drop(sites);
    if shut_down.is_ok() {
        arena.remove_file();
    }
    served.and(shut_down)
}

/// From open devices to closed pools.
fn serve_pools(
    config: &Config,
    sites: &[ReactorThread<Site>],
    devices: &Devices,
    signals: &Signals,
) -> anyhow::Result<()> {
    let pools = Pools::open(config, sites, devices)?;
    let served = serve_doors(config, sites, devices, &pools, signals);
    let closed = pools.close();
    if served.is_ok() && closed.is_ok() {
        tracing::info!("closed clean");
    }
    served.and(closed)
}

/// From open pools to closed doors.
fn serve_doors(
    config: &Config,
    sites: &[ReactorThread<Site>],
    devices: &Devices,
    pools: &Arc<Pools>,
    signals: &Signals,
) -> anyhow::Result<()> {
    let doors = Doors::open(config, sites, devices, pools)?;
    announce(config, pools);
    let reason = signals.wait();
    tracing::info!(reason, "draining");
    drop(sd_notify::notify(&[sd_notify::NotifyState::Stopping]));
    pools.stop_waiting();
    doors.close(sites)
}

/// Memory that devices reach. Where one of them has no IOMMU, its physical addresses are theirs.
fn dma_memory(config: &Config, size: ByteCount) -> anyhow::Result<DmaArena> {
    let without_iommu = config.devices.iter().find_map(|device| match &device.driver {
        Driver::Nvme { address, unsafe_no_iommu: true, .. } => Some(address),
        _ => None,
    });
    match without_iommu {
        // One process at a time can use a controller, and so the file.
        Some(address) => DmaArena::physical(size, &format!("lvolfs-{address}"))
            .with_context(|| format!("cannot get DMA memory for {address} without an IOMMU")),
        None => DmaArena::new(size, config.reactor.huge_pages)
            .context("cannot get DMA memory; lower reactor.dma_memory"),
    }
}

fn start_reactors(config: &Config, arena: &DmaArena) -> anyhow::Result<Vec<ReactorThread<Site>>> {
    let seats = match &config.reactor.cores {
        Cores::All => reactors::on_every_cpu(),
        Cores::Count(count) => vec![Seat::Anywhere; *count],
        Cores::Cpus(cpus) => cpus.iter().copied().map(Seat::Bound).collect(),
    };
    let (arena, directory) = (arena.clone(), hosts::directory(config)?);
    reactors::start(&seats, config.reactor.wait, move |reactor| {
        Site::new(reactor, &arena, &directory)
    })
}

/// Tells the operator, and whoever supervises us, that the volumes can be used.
fn announce(config: &Config, pools: &Pools) {
    let (summary, control) = (pools.summary(), config.control.socket.display());
    let line = match &config.mount.path {
        Some(path) => format!("ready: {summary} at {}; control socket {control}", path.display()),
        None => format!("ready: {summary}, exported only; control socket {control}"),
    };
    #[expect(clippy::print_stdout, reason = "the one line that a person waits for")]
    {
        println!("{line}");
    }
    // Nobody supervises us if there is no socket for it: nothing to tell then.
    drop(sd_notify::notify(&[
        sd_notify::NotifyState::Ready,
        sd_notify::NotifyState::Status(&line),
    ]));
}

/// The moment now, for how long the daemon has been ready.
fn now() -> std::time::Instant {
    std::time::Instant::now()
}
