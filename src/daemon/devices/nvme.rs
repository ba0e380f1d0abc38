//! Devices behind our own NVMe driver: a drive on PCI through VFIO, or a controller in software.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Emulated, add_channels, run_on};
use crate::block::AnyDevice;
use crate::block::nvme::{NvmeController, NvmeDevice, Wanted};
use crate::config;
use crate::daemon::site::Site;
use crate::emulated::{ControllerThread, EmulatedController, FileMedia, Settings};
use crate::hw::pci::PciAddress;
use crate::hw::transport::Transport;
use crate::hw::vfio::{VfioAccess, VfioOptions, VfioTransport};
use crate::nvme::ControllerIdentity;
use crate::reactor::Remote;
use crate::units::NamespaceId;

/// The controller that a device is a namespace of.
#[derive(Clone)]
pub(in crate::daemon) struct Attached {
    /// What requests call the controller.
    pub(in crate::daemon) controller: String,
    /// Its PCI address, or the path of an emulated one.
    pub(in crate::daemon) place: String,
    pub(in crate::daemon) identity: Arc<ControllerIdentity>,
    pub(in crate::daemon) namespace: NamespaceId,
}

/// One namespace, or all that can be used, with a channel for each reactor.
pub(super) fn wanted(
    namespace: Option<NamespaceId>,
    io_timeout: Duration,
    sites: &[Remote<Site>],
) -> Wanted {
    Wanted { namespace, channels: count(sites), io_timeout }
}

/// Namespaces of a controller on PCI, which vfio-pci must have.
pub(super) fn attach_pci(
    name: &str,
    (address, access): (PciAddress, VfioAccess),
    wanted: Wanted,
    sites: &[Remote<Site>],
) -> anyhow::Result<Vec<(NvmeDevice, Attached)>> {
    // Vector 0 is the admin queue's; each reactor has one to sleep on.
    let options = VfioOptions { vectors: count(sites).saturating_add(1), access };
    if access == VfioAccess::NoIommu {
        tracing::warn!(
            controller = name,
            pci = %address,
            "UNSAFE: no IOMMU; this drive can overwrite any of the machine's memory, and so can a \
             fault of this program"
        );
    }
    let transport = VfioTransport::open(address, options)?;
    let (access, vectors) = (transport.access(), transport.vectors());
    tracing::info!(controller = name, pci = %address, ?access, vectors, "controller taken");
    attach(name, Arc::new(transport), wanted, sites)
        .with_context(|| format!("cannot use the controller at {address}"))
}

/// The same at the request of an operator: also opens a channel to each namespace on every reactor,
/// by the name `NAMEnID`.
pub(in crate::daemon) fn attach_on_request(
    name: &str,
    address: PciAddress,
    sites: &[Remote<Site>],
) -> anyhow::Result<Vec<(String, NvmeDevice, Attached)>> {
    let wanted = wanted(None, config::DEFAULT_IO_TIMEOUT, sites);
    let attached = attach_pci(name, (address, VfioAccess::Any), wanted, sites)?;
    let found: Vec<_> = attached
        .into_iter()
        .map(|(device, attached)| (format!("{name}n{}", attached.namespace), device, attached))
        .collect();
    let opened = found.iter().try_for_each(|(bdev, device, _)| {
        add_channels(bdev, &AnyDevice::Nvme(device.clone()), sites)
    });
    let opened = opened.and_then(|()| {
        ensure!(!found.is_empty(), "the controller at {address} has no namespace that can be used");
        Ok(())
    });
    if let Err(error) = opened {
        let bdevs: Vec<String> = found.into_iter().map(|(bdev, ..)| bdev).collect();
        if let Err(closing) = detach(name, &bdevs, sites) {
            tracing::warn!("while giving up: {closing:#}");
        }
        return Err(error);
    }
    Ok(found)
}

/// Gives a controller back. Nothing may use its devices any more.
pub(in crate::daemon) fn detach(
    name: &str,
    bdevs: &[String],
    sites: &[Remote<Site>],
) -> anyhow::Result<()> {
    for site in sites {
        let bdevs = bdevs.to_vec();
        run_on(site, move |site| async move {
            bdevs.iter().for_each(|bdev| site.drop_channel(bdev));
        })?;
    }
    let name = name.to_owned();
    run_on(&sites[0], move |site| async move {
        let controller = site.controller(&name);
        site.controllers.borrow_mut().retain(|(known, _)| *known != name);
        match controller {
            // One that was given up is gone already.
            Some(controller) if !controller.is_over() => controller.shut_down().await,
            _ => Ok(()),
        }
    })?
    .context("the controller was not shut down in order")
}

/// An emulated controller over a file, and the NVMe driver on it.
pub(super) fn open_emulated(
    name: &str,
    image: &config::Image,
    sites: &[Remote<Site>],
) -> anyhow::Result<(Emulated, NvmeDevice, Attached)> {
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
    let wanted = wanted(Some(NamespaceId(1)), config::DEFAULT_IO_TIMEOUT, sites);
    let mut found = attach(name, Arc::clone(&controller) as _, wanted, sites)?;
    let (device, attached) = found.pop().context("the controller has no namespace")?;
    Ok((Emulated { controller, _thread: thread }, device, attached))
}

/// Brings a controller up. The first reactor polls it from then on.
fn attach(
    name: &str,
    transport: Arc<dyn Transport>,
    wanted: Wanted,
    sites: &[Remote<Site>],
) -> anyhow::Result<Vec<(NvmeDevice, Attached)>> {
    let name = name.to_owned();
    run_on(&sites[0], move |site| async move {
        let (driver, devices) =
            NvmeController::open(&site.reactor, &site.arena, transport, &wanted).await?;
        let (identity, place) = (Arc::new(driver.identity().clone()), driver.name().to_owned());
        tracing::info!(
            controller = name,
            place,
            model = identity.model,
            serial = identity.serial,
            firmware = identity.firmware,
            queue_pairs = identity.max_queue_pairs,
            sgl = identity.sgl,
            shadow_doorbells = identity.shadow_doorbells,
            "controller attached"
        );
        site.controllers.borrow_mut().push((name.clone(), Rc::new(driver)));
        let attached = |device: &NvmeDevice| Attached {
            controller: name.clone(),
            place: place.clone(),
            identity: Arc::clone(&identity),
            namespace: device.namespace(),
        };
        anyhow::Ok(devices.into_iter().map(|device| (device.clone(), attached(&device))).collect())
    })?
}

/// One channel for each reactor.
fn count(sites: &[Remote<Site>]) -> u16 {
    u16::try_from(sites.len()).unwrap_or(u16::MAX)
}
