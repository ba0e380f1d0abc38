//! Serving the mount: by which transport, on which reactors, until when.

use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use futures_channel::oneshot;
use futures_util::future::{Either, join_all, select};

use super::pools::default_attributes;
use super::reactors::{ReactorThread, Seat};
use super::signals;
use super::site::{FileService, Site, Way};
use crate::config::{self, Config};
use crate::control::types::KillSignal;
use crate::fuse::device;
use crate::fuse::mount::{Access, Mount, MountOptions, Transport, Unmounted};
use crate::fuse::notify::Notifier;
use crate::fuse::openings::Openings;
use crate::fuse::operations::Operations;
use crate::fuse::reply::Reply;
use crate::fuse::request::Request;
use crate::fuse::uring::{self, Queues, RegisterError, Shape, Stopped};
use crate::hw::dma::DmaBuffer;
use crate::hw::thread::possible_cpus;
use crate::units::ByteCount;

/// How long the kernel may take to let go of a mount that is gone.
const END_LIMIT: Duration = Duration::from_secs(5);

/// The mount and those who serve it.
pub(super) struct Files {
    mount: Mount,
    /// Whether its end is our own doing.
    closing: Arc<AtomicBool>,
    transport: TransportInUse,
}

/// How requests come, for people.
#[derive(Clone, Debug)]
pub(super) struct TransportInUse {
    pub(super) name: &'static str,
    /// If not by the faster way: why, and what to do about it.
    pub(super) note: Option<String>,
}

/// How much DMA memory the queues of the mount will take.
pub(super) fn queue_memory(config: &Config) -> ByteCount {
    match config.mount.transport {
        _ if config.mount.path.is_none() => ByteCount(0),
        config::Transport::DevFuse => ByteCount(0),
        config::Transport::Auto | config::Transport::IoUring => Shape::of(possible_cpus()).memory(),
    }
}

/// Whether a volume may be opened for write-back.
pub(super) fn writes_back(config: &Config) -> bool {
    let volumes = config.volumes.iter().map(|volume| volume.cache);
    volumes.chain([config.mount.cache]).any(|cache| cache == config::Cache::Writeback)
}

impl Files {
    /// Mounts, and serves the mount on every reactor; `None` if there is none to be.
    pub(super) fn open(
        config: &Config,
        sites: &[ReactorThread<Site>],
    ) -> anyhow::Result<Option<Self>> {
        let Some(path) = &config.mount.path else { return Ok(None) };
        let options = MountOptions {
            path: path.clone(),
            access: if config.mount.allow_other { Access::Everybody } else { Access::Owner },
            transport: match config.mount.transport {
                config::Transport::Auto => Transport::Auto,
                config::Transport::IoUring => Transport::IoUring,
                config::Transport::DevFuse => Transport::DevFuse,
            },
            write_back: writes_back(config),
        };
        let mount = Mount::new(&options)?;
        let note = mount.io_uring().err().map(str::to_owned);
        let transport = TransportInUse { name: "/dev/fuse", note };
        let mut files = Self { mount, closing: Arc::default(), transport };
        if let Err(error) = files.serve(config, sites) {
            drop(files.close(sites));
            return Err(error);
        }
        files.announce();
        Ok(Some(files))
    }

    /// Where it is.
    pub(super) fn path(&self) -> PathBuf {
        self.mount.path().to_owned()
    }

    /// A way to tell the kernel what other doors changed.
    pub(super) fn notifier(&self) -> anyhow::Result<Notifier> {
        Notifier::new(&self.mount.connection()?).context("cannot clone a connection")
    }

    /// How requests come.
    pub(super) fn transport(&self) -> &TransportInUse {
        &self.transport
    }

    fn announce(&self) {
        let (path, transport) = (self.mount.path().display(), self.transport.name);
        match &self.transport.note {
            None => tracing::info!(%path, transport, "mounted"),
            Some(reason) => tracing::info!(%path, transport, "mounted; not by io_uring: {reason}"),
        }
    }

    fn serve(&mut self, config: &Config, sites: &[ReactorThread<Site>]) -> anyhow::Result<()> {
        let openings = Arc::new(Openings::default());
        let defaults = default_attributes(config);
        for site in sites {
            let (openings, defaults) = (Arc::clone(&openings), defaults.clone());
            site.run(move |site| async move {
                let operations = Rc::new(Operations::new(&site.catalog, &openings, defaults));
                *site.files.borrow_mut() = Some(FileService { operations, ways: Vec::new() });
            })?;
        }
        let [first, others @ ..] = sites else { return Ok(()) };
        // What does not come by queues comes here; if there are none, everything does.
        self.read_device(first)?;
        if self.transport.note.is_none() {
            match self.serve_queues(sites)? {
                Ok(()) => {
                    self.transport.name = "io_uring";
                    return Ok(());
                }
                Err(error) if config.mount.transport == config::Transport::IoUring => {
                    return Err(error.into());
                }
                Err(error) => self.transport.note = Some(error.to_string()),
            }
        }
        others.iter().try_for_each(|site| self.read_device(site))
    }

    /// Reads requests from `/dev/fuse` on one reactor.
    fn read_device(&self, site: &ReactorThread<Site>) -> anyhow::Result<()> {
        let connection = self.mount.connection()?;
        let closing = Arc::clone(&self.closing);
        site.run(move |site| async move {
            let (reactor, arena) = (Rc::clone(&site.reactor), site.arena.clone());
            add_way(&site, closing, |operations, stop| async move {
                let handler = handler(operations);
                let stop = stopped(stop);
                if let Err(error) = device::serve(reactor, arena, connection, handler, stop).await {
                    tracing::error!(%error, "the connection to the kernel failed: files are gone");
                }
                Stopped::default()
            });
        })
    }

    /// Registers every queue, or none: on an error the kernel has gone back to `/dev/fuse`.
    fn serve_queues(
        &self,
        sites: &[ReactorThread<Site>],
    ) -> anyhow::Result<Result<(), RegisterError>> {
        let shape = Shape::of(possible_cpus());
        let homes: Vec<_> = sites.iter().map(ReactorThread::cpu).collect();
        let mut registered = Ok(());
        for (site, queues) in sites.iter().zip(uring::assign(shape, &homes)) {
            if queues.is_empty() {
                continue;
            }
            let seat = site.seat();
            let others = homes.iter().flatten().copied().filter(|cpu| Some(*cpu) != site.cpu());
            let others: Vec<usize> = others.collect();
            let connection =
                self.mount.connection()?.file().context("cannot clone a connection")?;
            let closing = Arc::clone(&self.closing);
            registered = site.run(move |site| async move {
                let (reactor, arena) = (Rc::clone(&site.reactor), &site.arena);
                match Queues::register(&reactor, arena, &connection, &queues, shape.depth) {
                    Ok(queues) => {
                        let settled = match seat {
                            Seat::Home(cpu) => reactor.settle(cpu, others),
                            Seat::Bound(cpu) => reactor.settle(cpu, Vec::new()),
                            Seat::Anywhere => Ok(()),
                        };
                        if let Err(error) = settled {
                            tracing::warn!(%error, "a reactor cannot run on its CPU");
                        }
                        add_way(&site, closing, |operations, stop| async move {
                            let handler = handler(operations);
                            uring::serve(&reactor, queues, handler, stopped(stop)).await
                        });
                        Ok(())
                    }
                    Err(error) => {
                        uring::refuse(&reactor, arena, &connection);
                        Err(error)
                    }
                }
            })?;
            if registered.is_err() {
                break;
            }
        }
        Ok(registered)
    }

    /// Unmounts, and waits until every request was answered.
    pub(super) fn close(mut self, sites: &[ReactorThread<Site>]) -> anyhow::Result<()> {
        self.closing.store(true, Ordering::Relaxed);
        let path = self.mount.path().display().to_string();
        let unmounted = self.mount.unmount().with_context(|| format!("cannot unmount {path}"));
        let mut ends = Vec::new();
        for site in sites {
            let site_ends = site.run(|site| async move {
                let files = site.files.borrow_mut().take();
                let mut ends = Vec::new();
                for Way { stop, drained, ended } in
                    files.map(|files| files.ways).unwrap_or_default()
                {
                    drop(stop);
                    // Comes when every request was answered, or with the reactor: both are ends.
                    drained.await.unwrap_or_default();
                    ends.push(ended);
                }
                ends
            })?;
            ends.push(site_ends);
        }
        let unmounted = match unmounted? {
            Unmounted::Clean => "unmounted",
            Unmounted::InUse => {
                self.mount.detach().with_context(|| format!("cannot unmount {path}"))?;
                "unmounted while in use: its users get errors from now on"
            }
        };
        for (site, ends) in sites.iter().zip(ends) {
            site.run(move |site| async move {
                let ended = std::pin::pin!(join_all(ends));
                let limit = site.reactor.sleep(END_LIMIT);
                if let Either::Right(_) = select(ended, limit).await {
                    tracing::warn!("the kernel does not let go of the mount's queues");
                }
            })?;
        }
        tracing::info!(path, "{unmounted}");
        Ok(())
    }
}

/// Serves one more way that requests come, until the mount ends or it is stopped.
fn add_way<F, Fut>(site: &Rc<Site>, closing: Arc<AtomicBool>, serve: F)
where
    F: FnOnce(Rc<Operations>, oneshot::Receiver<()>) -> Fut,
    Fut: Future<Output = Stopped> + 'static,
{
    let mut files = site.files.borrow_mut();
    let Some(files) = files.as_mut() else { return };
    let (stop, wanted) = oneshot::channel();
    let (drain, drained) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let serving = serve(Rc::clone(&files.operations), wanted);
    site.reactor.spawn(async move {
        let rest = serving.await;
        if !closing.load(Ordering::Relaxed) {
            tracing::warn!("unmounted by somebody else: the daemon ends");
            if let Err(error) = signals::raise(KillSignal::SigTerm) {
                tracing::error!(%error, "cannot end the daemon");
            }
        }
        // Nobody waits if the doors were closed in a hurry.
        drain.send(()).unwrap_or_default();
        rest.ended().await;
        end.send(()).unwrap_or_default();
    });
    files.ways.push(Way { stop, drained, ended });
}

fn handler(
    operations: Rc<Operations>,
) -> Rc<impl AsyncFn(Request, Option<DmaBuffer>) -> Reply + 'static> {
    Rc::new(async move |request, data| operations.handle(request, data).await)
}

/// Ends when the other end is used or dropped.
async fn stopped(stop: oneshot::Receiver<()>) {
    stop.await.unwrap_or_default();
}
