//! The `/dev/fuse` transport: requests are read, served and answered on one reactor.
//!
//! Each reactor has its own clone of the connection's descriptor, and so its own queue of
//! requests that it took. A request is read into two places at once: 80 bytes of headers, and a
//! page-aligned DMA buffer. The headers of a WRITE are exactly 80 bytes long, so its data lands
//! in memory that a device can take it from. Every request runs as a task of its own; answers
//! go out in whatever order they are ready.
//!
//! Backpressure: with [`REQUESTS_LIMIT`] requests under way, or without DMA memory for the next
//! one, nothing is read; requests then wait in the kernel.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_util::future::{Either, select};
use zerocopy::{FromBytes, IntoBytes};

use super::abi::{InHeader, WriteIn, opcode};
use super::errno::Errno;
use super::reply::Reply;
use super::request::Request;
use super::transfer;
use crate::hw;
use crate::hw::dma::{DmaArena, DmaBuffer};
use crate::reactor::{Reactor, Readiness};

/// Most requests that one reactor has under way.
pub const REQUESTS_LIMIT: usize = 128;
/// The headers of a request: those of a WRITE exactly, of others with part of what follows.
const HEADERS: usize = size_of::<InHeader>() + size_of::<WriteIn>();
/// Data up to this size is copied to a buffer of its own size: cheaper than to give a buffer of
/// the largest size away for it.
const COPY_LIMIT: usize = 16 << 10;
/// Requests read in a row before the tasks get their turn.
const BATCH: usize = 16;
/// How long to wait for DMA memory before looking again.
const MEMORY_RETRY: Duration = Duration::from_micros(200);

/// One reactor's descriptor of a mount's connection. Made anywhere, moved to its reactor.
pub struct Connection {
    file: File,
    /// The same opening, as the ring polls it.
    descriptor: Arc<OwnedFd>,
}

impl Connection {
    /// A clone of the connection behind `session`.
    ///
    /// # Errors
    /// The system's.
    pub fn new(session: BorrowedFd<'_>) -> io::Result<Self> {
        let file = hw::fuse::clone_connection(session)?;
        let descriptor = Arc::new(OwnedFd::from(file.try_clone()?));
        Ok(Self { file, descriptor })
    }

    /// The file itself, as queues of the io_uring transport are registered on it.
    ///
    /// # Errors
    /// The system's.
    pub fn file(&self) -> io::Result<Arc<File>> {
        Ok(Arc::new(self.file.try_clone()?))
    }

    fn receive(&self, headers: &mut [u8; HEADERS], data: &mut [u8]) -> io::Result<usize> {
        (&self.file).read_vectored(&mut [IoSliceMut::new(headers), IoSliceMut::new(data)])
    }

    /// Answers the request `unique`.
    fn send(&self, unique: u64, reply: &Reply) {
        let Some(header) = reply.header(unique) else { return };
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(reply.body())];
        let Err(error) = (&self.file).write_vectored(&parts) else { return };
        // Nobody waits for the answer any more: the caller was killed, or the mount is gone.
        if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) {
            return;
        }
        tracing::error!(unique, %error, "the kernel refused an answer");
        if !matches!(reply, Reply::Error(_)) {
            // The caller must not wait for ever.
            self.send(unique, &Reply::Error(Errno::EIO));
        }
    }
}

/// Requests under way on one reactor.
#[derive(Default)]
pub(super) struct UnderWay {
    count: Cell<usize>,
    waker: RefCell<Option<Waker>>,
    closed: Cell<bool>,
}

impl UnderWay {
    /// Nothing is to begin any more.
    pub(super) fn close(&self) {
        self.closed.set(true);
    }

    /// Whether nothing is to begin any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    pub(super) fn begin(self: &Rc<Self>) -> Begun {
        self.count.set(self.count.get() + 1);
        Begun(Rc::clone(self))
    }

    /// Waits until at most `limit` requests are under way.
    pub(super) fn at_most(&self, limit: usize) -> impl Future<Output = ()> {
        poll_fn(move |context| {
            if self.count.get() <= limit {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
    }
}

/// A request under way; ends when dropped.
pub(super) struct Begun(Rc<UnderWay>);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }
}

/// Serves the requests that this reactor takes from `connection`, each by `handler`, which gets
/// the data of a WRITE beside the request. Returns when the mount is gone, or after `stop`, once
/// every request under way is answered.
///
/// # Errors
/// The system's, if the connection can no longer be read.
pub async fn serve<H>(
    reactor: Rc<Reactor>,
    arena: DmaArena,
    connection: Connection,
    handler: Rc<H>,
    stop: impl Future<Output = ()>,
) -> io::Result<()>
where
    H: AsyncFn(Request, Option<DmaBuffer>) -> Reply + 'static,
{
    let server = Server {
        reactor,
        arena,
        connection: Rc::new(connection),
        handler,
        under_way: Rc::default(),
    };
    let result = match select(pin!(server.read_requests()), pin!(stop)).await {
        Either::Left((result, _)) => result,
        Either::Right(((), _)) => Ok(()),
    };
    server.under_way.at_most(0).await;
    result
}

struct Server<H> {
    reactor: Rc<Reactor>,
    arena: DmaArena,
    connection: Rc<Connection>,
    handler: Rc<H>,
    under_way: Rc<UnderWay>,
}

impl<H> Server<H>
where
    H: AsyncFn(Request, Option<DmaBuffer>) -> Reply + 'static,
{
    async fn read_requests(&self) -> io::Result<()> {
        let mut headers = [0; HEADERS];
        let mut spare = None;
        let mut in_a_row = 0;
        loop {
            self.under_way.at_most(REQUESTS_LIMIT - 1).await;
            let mut buffer = match spare.take() {
                Some(buffer) => buffer,
                None => self.receive_buffer().await,
            };
            match self.connection.receive(&mut headers, &mut buffer) {
                Ok(length) => {
                    spare = self.dispatch(&headers, length, buffer);
                    in_a_row += 1;
                    if in_a_row == BATCH {
                        in_a_row = 0;
                        yield_now().await;
                    }
                }
                Err(error) => {
                    spare = Some(buffer);
                    in_a_row = 0;
                    match error.raw_os_error() {
                        Some(libc::EAGAIN) => {
                            let descriptor = &self.connection.descriptor;
                            self.reactor.ring().ready(descriptor, Readiness::Read).await?;
                        }
                        // A request that was taken back while we read it; a signal.
                        Some(libc::ENOENT | libc::EINTR) => {}
                        Some(libc::ENODEV) => return Ok(()),
                        _ => return Err(error),
                    }
                }
            }
        }
    }

    /// A buffer that any request fits in. A quarter of the arena stays free for those who serve
    /// the requests.
    async fn receive_buffer(&self) -> DmaBuffer {
        loop {
            if self.arena.free().get() > self.arena.size().get() / 4
                && let Some(buffer) = self.arena.allocate(transfer::size())
            {
                return buffer;
            }
            self.reactor.sleep(MEMORY_RETRY).await;
        }
    }

    /// Starts a request of `length` bytes; gives the receive buffer back if it is still free.
    fn dispatch(
        &self,
        headers: &[u8; HEADERS],
        length: usize,
        buffer: DmaBuffer,
    ) -> Option<DmaBuffer> {
        let Ok((header, arguments)) = InHeader::read_from_prefix(headers) else {
            unreachable!("the headers are longer than a header");
        };
        if length < size_of::<InHeader>() || header.len as usize != length {
            // The kernel never does this. There is nobody to answer.
            tracing::error!(length, announced = header.len, "a request of a wrong length");
            return Some(buffer);
        }
        let arguments = &arguments[..arguments.len().min(length - size_of::<InHeader>())];
        let after = length.saturating_sub(HEADERS).min(buffer.len());
        let (parsed, data, spare) = if header.opcode == opcode::WRITE {
            let parsed = Request::parse(&header, arguments);
            let (data, spare) = self.take_data(buffer, after);
            (parsed, data, spare)
        } else if after == 0 {
            (Request::parse(&header, arguments), None, Some(buffer))
        } else {
            let arguments = [arguments, &buffer[..after]].concat();
            (Request::parse(&header, &arguments), None, Some(buffer))
        };
        match parsed {
            Ok(request) => self.start(request, data),
            Err(malformed) => {
                tracing::trace!(%malformed, "refused");
                self.connection.send(header.unique, &Reply::Error(malformed.errno));
            }
        }
        spare
    }

    /// The first `length` bytes of the receive buffer as a buffer of their own, and the receive
    /// buffer, if it is still whole.
    fn take_data(
        &self,
        mut buffer: DmaBuffer,
        length: usize,
    ) -> (Option<DmaBuffer>, Option<DmaBuffer>) {
        if length <= COPY_LIMIT
            && let Some(mut copy) = self.arena.allocate(length)
        {
            copy.copy_from_slice(&buffer[..length]);
            return (Some(copy), Some(buffer));
        }
        drop(buffer.split_off(length));
        (Some(buffer), None)
    }

    fn start(&self, request: Request, data: Option<DmaBuffer>) {
        let begun = self.under_way.begin();
        let (handler, connection) = (Rc::clone(&self.handler), Rc::clone(&self.connection));
        self.reactor.spawn(async move {
            let unique = request.unique;
            let reply = handler(request, data).await;
            connection.send(unique, &reply);
            drop(begun);
        });
    }
}

/// Lets the other tasks run once.
fn yield_now() -> impl Future<Output = ()> {
    let mut yielded = false;
    poll_fn(move |context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
}
