//! Devices: claimed, opened on every reactor, and told of the shutdown.

pub(super) mod nvme;

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use uuid::Uuid;

use super::facts::uuid_of;
use super::reactors::ReactorThread;
use super::site::Site;
use crate::block::AnyDevice;
use crate::block::file::{self, FileDevice, FileOptions};
use crate::block::memory::MemoryDevice;
use crate::config::{self, Config, Driver};
use crate::emulated::{ControllerThread, EmulatedController};
use crate::hw::vfio::VfioAccess;
use crate::reactor::Remote;
use crate::units::BlockSize;

/// The devices of the configuration, open.
pub(super) struct Devices {
    opened: Vec<Opened>,
}

/// One device.
pub(super) struct Opened {
    pub(super) name: String,
    /// By which volumes name it as their external parent.
    pub(super) uuid: Uuid,
    pub(super) device: AnyDevice,
    /// Its driver's name in the configuration.
    pub(super) driver: &'static str,
    /// Its NVMe controller and namespace, if that is what it is.
    pub(super) nvme: Option<nvme::Attached>,
    /// Its controller in software, if that is what it is.
    pub(super) emulated: Option<Emulated>,
}

/// An emulated controller and the thread that runs it.
pub(super) struct Emulated {
    pub(super) controller: Arc<EmulatedController>,
    _thread: ControllerThread,
}

impl Devices {
    /// Opens every device, and a channel to each on every reactor. On an error everything is
    /// closed again.
    pub(super) fn open(config: &Config, sites: &[ReactorThread<Site>]) -> anyhow::Result<Self> {
        let remotes: Vec<_> = sites.iter().map(|site| site.object().clone()).collect();
        let mut devices = Self { opened: Vec::new() };
        for device in &config.devices {
            let opened = open_device(device, &remotes)
                .and_then(|opened| {
                    add_channels(&opened.name, &opened.device, &remotes)?;
                    Ok(opened)
                })
                .with_context(|| format!("cannot open device {:?}", device.name));
            match opened {
                Ok(opened) => devices.opened.push(opened),
                Err(error) => {
                    if let Err(closing) = devices.close(sites) {
                        tracing::warn!("while giving up: {closing:#}");
                    }
                    return Err(error);
                }
            }
        }
        Ok(devices)
    }

    /// The devices, in the configuration's order.
    pub(super) fn list(&self) -> &[Opened] {
        &self.opened
    }

    /// Gives the devices back, and tells controllers to write out their caches and stop. Nothing
    /// may use them any more.
    pub(super) fn close(self, sites: &[ReactorThread<Site>]) -> anyhow::Result<()> {
        for site in sites {
            site.run(|site| async move { site.drop_channels() })?;
        }
        // All controllers are polled by the first reactor.
        sites[0].run(|site| async move {
            let controllers = std::mem::take(&mut *site.controllers.borrow_mut());
            let mut first = Ok(());
            for (name, controller) in controllers {
                let shut_down = controller.shut_down().await;
                let named = shut_down.with_context(|| format!("device {name:?} was not shut down"));
                first = first.and(named);
            }
            first
        })?
    }
}

/// Runs `call` with what the daemon has on a reactor, and blocks until it ends.
pub(super) fn run_on<F, Fut, R>(site: &Remote<Site>, call: F) -> anyhow::Result<R>
where
    F: FnOnce(Rc<Site>) -> Fut + Send + 'static,
    Fut: Future<Output = R> + 'static,
    R: Send + 'static,
{
    site.call_blocking(call).context("a reactor has ended before its time")
}

/// A channel to the device on every reactor.
fn add_channels(name: &str, device: &AnyDevice, sites: &[Remote<Site>]) -> anyhow::Result<()> {
    for site in sites {
        let (name, device) = (name.to_owned(), device.clone());
        run_on(site, move |site| async move {
            site.add_channel(&name, device.channel(&site.reactor, &site.arena)?);
            anyhow::Ok(())
        })??;
    }
    Ok(())
}

fn open_device(device: &config::Device, sites: &[Remote<Site>]) -> anyhow::Result<Opened> {
    let mut attached = None;
    let mut emulated = None;
    let any = match &device.driver {
        Driver::Memory { size, block_size } => {
            AnyDevice::Memory(MemoryDevice::new(*size, *block_size))
        }
        Driver::File(image) => {
            // Requests of 512 bytes are not possible past the page cache of every disk.
            let opened = open_image(image, image.block_size == BlockSize::B4096)?;
            AnyDevice::File(FileDevice::new(opened, &image.path, image.block_size)?)
        }
        Driver::NvmeEmulated(image) => {
            let (controller, device, identity) = nvme::open_emulated(&device.name, image, sites)?;
            (emulated, attached) = (Some(controller), Some(identity));
            AnyDevice::Nvme(device)
        }
        Driver::Nvme { address, namespace, io_timeout, unsafe_no_iommu } => {
            let address = address.to_string().parse()?;
            let access = if *unsafe_no_iommu { VfioAccess::NoIommu } else { VfioAccess::Any };
            let wanted = nvme::wanted(Some(*namespace), *io_timeout, sites);
            let mut found = nvme::attach_pci(&device.name, (address, access), wanted, sites)?;
            let (device, identity) = found.pop().context("the controller has no namespace")?;
            attached = Some(identity);
            AnyDevice::Nvme(device)
        }
    };
    let geometry = any.geometry();
    tracing::info!(
        device = device.name,
        driver = device.driver.name(),
        size = geometry.size().human(),
        block_size = geometry.block_size.bytes(),
        volatile_cache = geometry.volatile_cache,
        "device opened"
    );
    let driver = device.driver.name();
    let uuid = device.uuid.unwrap_or_else(|| uuid_of(&device.name));
    Ok(Opened { name: device.name.clone(), uuid, device: any, driver, nvme: attached, emulated })
}

fn open_image(image: &config::Image, direct: bool) -> anyhow::Result<file::OpenedFile> {
    let opened = file::open(&FileOptions {
        path: image.path.clone(),
        size: image.size,
        create: image.create,
        direct,
    })?;
    if opened.created {
        tracing::info!(path = %image.path.display(), "created a sparse file");
    }
    Ok(opened)
}
