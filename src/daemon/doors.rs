//! The doors: the mount and the control socket, opened last and closed first.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use futures_channel::oneshot;

use super::devices::Devices;
use super::pools::{Pools, default_attributes};
use super::reactors::ReactorThread;
use super::service::DaemonService;
use super::signals;
use super::site::{FileService, Site};
use crate::config::Config;
use crate::control::Server;
use crate::control::types::KillSignal;
use crate::fuse::device::{Connection, serve};
use crate::fuse::mount::{self, Access, Mount, MountOptions, Unmounted};
use crate::fuse::openings::Openings;
use crate::fuse::operations::Operations;
use crate::volume::Attributes;

/// What is open to users.
pub(super) struct Doors {
    control: Option<Server>,
    mount: Mount,
    /// Whether the end of the mount is our own doing.
    closing: Arc<AtomicBool>,
}

impl Doors {
    /// Refuses what could not be opened, before anything is touched.
    pub(super) fn check(config: &Config) -> anyhow::Result<()> {
        mount::check(&config.mount.path)?;
        Server::check(&config.control.socket)?;
        Ok(())
    }

    /// Mounts, and serves the mount on every reactor.
    pub(super) fn open(
        config: &Config,
        sites: &[ReactorThread<Site>],
        devices: &Devices,
        pools: &Pools,
    ) -> anyhow::Result<Self> {
        let access = if config.mount.allow_other { Access::Everybody } else { Access::Owner };
        let options = MountOptions { path: config.mount.path.clone(), access };
        let mount = Mount::new(&options)?;
        let mut doors = Self { control: None, mount, closing: Arc::default() };
        let openings = Arc::new(Openings::default());
        for site in sites {
            let connection = doors.mount.connection();
            let started = connection.map_err(anyhow::Error::from).and_then(|connection| {
                serve_files(site, connection, &openings, &doors.closing, default_attributes(config))
            });
            if let Err(error) = started {
                drop(doors.close(sites));
                return Err(error);
            }
        }
        tracing::info!(path = %doors.mount.path().display(), "mounted");
        match serve_control(config, sites, devices, pools) {
            Ok(server) => doors.control = Some(server),
            Err(error) => {
                drop(doors.close(sites));
                return Err(error);
            }
        }
        Ok(doors)
    }

    /// Unmounts, and waits until every request was answered.
    pub(super) fn close(self, sites: &[ReactorThread<Site>]) -> anyhow::Result<()> {
        self.closing.store(true, Ordering::Relaxed);
        if let Some(control) = self.control {
            control.stop();
        }
        let path = self.mount.path().display().to_string();
        let unmounted = self.mount.unmount().with_context(|| format!("cannot unmount {path}"));
        for site in sites {
            site.run(|site| async move {
                let files = site.files.borrow_mut().take();
                if let Some(FileService { stop, ended, .. }) = files {
                    drop(stop);
                    // Ends when every request was answered, or with its reactor: both are ends.
                    ended.await.unwrap_or_default();
                }
            })?;
        }
        match unmounted? {
            Unmounted::Clean => tracing::info!(path, "unmounted"),
            Unmounted::Detached => {
                tracing::warn!(path, "the mount was in use: its users get errors from now on");
            }
        }
        Ok(())
    }
}

fn serve_control(
    config: &Config,
    sites: &[ReactorThread<Site>],
    devices: &Devices,
    pools: &Pools,
) -> anyhow::Result<Server> {
    let service = DaemonService::new(sites, devices, pools, config.mount.path.clone())?;
    Ok(Server::start(&config.control.socket, Arc::new(service))?)
}

fn serve_files(
    site: &ReactorThread<Site>,
    connection: Connection,
    openings: &Arc<Openings>,
    closing: &Arc<AtomicBool>,
    defaults: Attributes,
) -> anyhow::Result<()> {
    let (openings, closing) = (Arc::clone(openings), Arc::clone(closing));
    site.run(move |site| async move {
        let operations = Rc::new(Operations::new(&site.catalog, &openings, defaults));
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let handler = {
            let operations = Rc::clone(&operations);
            Rc::new(async move |request, data| operations.handle(request, data).await)
        };
        let (reactor, arena) = (Rc::clone(&site.reactor), site.arena.clone());
        site.reactor.spawn(async move {
            let stopped = async { stopped.await.unwrap_or_default() };
            if let Err(error) = serve(reactor, arena, connection, handler, stopped).await {
                tracing::error!(%error, "the connection to the kernel failed: files are gone");
            }
            if !closing.load(Ordering::Relaxed) {
                tracing::warn!("unmounted by somebody else: the daemon ends");
                if let Err(error) = signals::raise(KillSignal::SigTerm) {
                    tracing::error!(%error, "cannot end the daemon");
                }
            }
            // Nobody waits if the doors were closed in a hurry.
            end.send(()).unwrap_or_default();
        });
        *site.files.borrow_mut() = Some(FileService { operations, stop, ended });
    })
}
