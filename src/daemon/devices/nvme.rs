//! Devices behind our own NVMe driver: a drive on PCI through VFIO, or a controller in software.

use std::sync::Arc;

use anyhow::Context;

use super::Emulated;
use crate::block::nvme::{NvmeController, NvmeDevice, Wanted};
use crate::config;
use crate::daemon::reactors::ReactorThread;
use crate::daemon::site::Site;
use crate::emulated::{ControllerThread, EmulatedController, FileMedia, Settings};
use crate::hw::transport::Transport;
use crate::hw::vfio::{VfioAccess, VfioOptions, VfioTransport};
use crate::units::NamespaceId;

/// The namespace of a controller on PCI, which vfio-pci must have.
pub(super) fn open_pci(
    name: &str,
    address: config::PciAddress,
    namespace: NamespaceId,
    sites: &[ReactorThread<Site>],
) -> anyhow::Result<NvmeDevice> {
    let address = address.to_string().parse()?;
    // Vector 0 is the admin queue's; each reactor has one to sleep on.
    let options = VfioOptions { vectors: count(sites).saturating_add(1), access: VfioAccess::Any };
    let transport = VfioTransport::open(address, options)?;
    let (access, vectors) = (transport.access(), transport.vectors());
    tracing::info!(device = name, pci = %address, ?access, vectors, "controller taken");
    let wanted = Wanted { namespace, channels: count(sites) };
    attach(name, Arc::new(transport), wanted, sites)
        .with_context(|| format!("cannot use the controller at {address}"))
}

/// An emulated controller over a file, and the NVMe driver on it.
pub(super) fn open_emulated(
    name: &str,
    image: &config::Image,
    sites: &[ReactorThread<Site>],
) -> anyhow::Result<(Emulated, NvmeDevice)> {
    // The page cache is the controller's volatile cache, so never around it.
    let opened = super::open_image(image, false)?;
    let media = FileMedia::new(opened.file, image.block_size)
        .with_context(|| format!("cannot use {}", image.path.display()))?;
    let settings = Settings {
        name: format!("emulated:{}", image.path.display()),
        // One queue pair to poll and one to sleep on for each reactor.
        io_queues: count(sites).saturating_mul(2),
        ..Settings::default()
    };
    let controller = EmulatedController::new(settings, media).context("no events left")?;
    let thread = ControllerThread::spawn(Arc::clone(&controller))
        .context("cannot start the emulated controller's thread")?;
    let wanted = Wanted { namespace: NamespaceId(1), channels: count(sites) };
    let device = attach(name, Arc::clone(&controller) as _, wanted, sites)?;
    Ok((Emulated { controller, _thread: thread }, device))
}

/// Brings a controller up. The first reactor polls it from then on.
fn attach(
    name: &str,
    transport: Arc<dyn Transport>,
    wanted: Wanted,
    sites: &[ReactorThread<Site>],
) -> anyhow::Result<NvmeDevice> {
    let name = name.to_owned();
    sites[0].run(move |site| async move {
        let (driver, device) =
            NvmeController::open(&site.reactor, &site.arena, transport, &wanted).await?;
        let identity = driver.identity();
        tracing::info!(
            device = name,
            model = identity.model,
            serial = identity.serial,
            firmware = identity.firmware,
            queue_pairs = identity.max_queue_pairs,
            "controller attached"
        );
        site.controllers.borrow_mut().push((name, driver));
        anyhow::Ok(device)
    })?
}

/// One channel for each reactor.
fn count(sites: &[ReactorThread<Site>]) -> u16 {
    u16::try_from(sites.len()).unwrap_or(u16::MAX)
}
