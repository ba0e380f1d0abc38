//! The doors: the mount, the target and the control socket, opened last and closed first.

use std::sync::Arc;

use super::devices::Devices;
use super::files::{self, Files};
use super::hosts;
use super::pools::Pools;
use super::reactors::ReactorThread;
use super::service::{DaemonService, Mounted};
use super::site::Site;
use super::target::TargetDoor;
use crate::config::Config;
use crate::control::Server;
use crate::fuse::mount;
use crate::fuse::notify::Notifier;

/// What is open to users.
pub(super) struct Doors {
    control: Option<Server>,
    /// `None` if the configuration has no mount.
    files: Option<Files>,
    target: Option<Arc<TargetDoor>>,
}

impl Doors {
    /// Refuses what could not be opened, before anything is touched.
    pub(super) fn check(config: &Config) -> anyhow::Result<()> {
        if let Some(path) = &config.mount.path {
            mount::check(path)?;
        }
        Server::check(&config.control.socket)?;
        Ok(())
    }

    /// Mounts, opens the target, and takes requests on the control socket.
    pub(super) fn open(
        config: &Config,
        sites: &[ReactorThread<Site>],
        devices: &Devices,
        pools: &Arc<Pools>,
    ) -> anyhow::Result<Self> {
        let files = Files::open(config, sites)?;
        let mut doors = Self { control: None, files, target: None };
        match TargetDoor::open(config, sites) {
            Ok(target) => doors.target = target,
            Err(error) => {
                drop(doors.close(sites));
                return Err(error);
            }
        }
        match doors.serve_control(config, sites, devices, pools) {
            Ok(server) => doors.control = Some(server),
            Err(error) => {
                drop(doors.close(sites));
                return Err(error);
            }
        }
        Ok(doors)
    }

    fn serve_control(
        &self,
        config: &Config,
        sites: &[ReactorThread<Site>],
        devices: &Devices,
        pools: &Arc<Pools>,
    ) -> anyhow::Result<Server> {
        let local = sites[0].run(|site| async move { site.catalog.directory().hosts().local() })?;
        let notifier = self.files.as_ref().map_or(Ok(Notifier::nobody()), Files::notifier)?;
        let mount = Mounted {
            at: self.files.as_ref().map(|files| (files.path(), files.transport().clone())),
            notifier,
            write_back: files::writes_back(config),
            host_nqn: hosts::nqn(config, local),
        };
        let target = self.target.clone();
        let service = DaemonService::new(sites, devices, pools, target, mount)?;
        Ok(Server::start(&config.control.socket, Arc::new(service))?)
    }

    /// Sends hosts away, unmounts, and waits until every request was answered.
    pub(super) fn close(self, sites: &[ReactorThread<Site>]) -> anyhow::Result<()> {
        if let Some(control) = self.control {
            control.stop();
        }
        let target = self.target.map_or(Ok(()), |target| target.close(sites));
        self.files.map_or(Ok(()), |files| files.close(sites)).and(target)
    }
}
