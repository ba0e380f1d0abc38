//! The io_uring transport: requests come with completions, answers go back with submissions.
//!
//! The kernel has a queue for each possible CPU, and puts a request into the queue of the CPU on
//! which it was made. Each queue has some entries; an entry is memory for one request and its
//! answer, and a task that serves whatever comes in it. The payload of an entry lies in the DMA
//! arena: the data of a WRITE goes from there to the device, and that of a READ is read there, so
//! that nothing is copied but by the kernel. An answer and the wait for the next request are one
//! submission, which goes out with the ring's other work.
//!
//! How it begins: after the handshake agreed on it, the kernel holds every request back until
//! each queue has an entry ([`Queues::register`]), or until a registration fails, by which it goes
//! back to `/dev/fuse` for good. So a mount is never left half-way: whoever cannot register all
//! queues makes one registration fail ([`refuse`]). FORGET and INTERRUPT still come by
//! `/dev/fuse`, so one reactor goes on reading that.
//!
//! How it ends: when the mount or its connection is gone, each entry completes with an error.
//!
//! Backpressure: with all entries of a queue under way, further requests wait in the kernel.

use std::fs::File;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, LocalBoxFuture, join_all, select};
use zerocopy::{FromBytes, IntoBytes};

use super::abi::{InHeader, OutHeader, opcode};
use super::device::UnderWay;
use super::errno::Errno;
use super::reply::Reply;
use super::request::{Operation, Request};
use super::transfer;
use crate::hw::dma::{DmaArena, DmaBuffer};
use crate::reactor::{AtKernel, HEADER, QueueEntry, Reactor};
use crate::units::ByteCount;

/// Entries of each queue, where there are few CPUs.
const DEPTH: usize = 32;
/// Fewest entries of a queue.
const LEAST_DEPTH: usize = 2;
/// Memory for all entries of all queues is kept below this where [`LEAST_DEPTH`] allows it.
const MEMORY_LIMIT: usize = 1 << 30;
/// Memory of an entry beside its payload.
const ENTRY_OVERHEAD: usize = 4096;

/// How long an answer waits for a device to let go of the request's memory.
const LENT_WAIT: Duration = Duration::from_secs(30);
/// How often it looks.
const LENT_RETRY: Duration = Duration::from_millis(10);

/// Where the parts of a header are: `fuse_uring_req_header` and `fuse_uring_ent_in_out`.
mod header {
    use std::ops::Range;
    pub(super) const IN_OUT: usize = 0;
    pub(super) const UNIQUE: Range<usize> = 8..16;
    pub(super) const OPERATION: Range<usize> = 128..256;
    pub(super) const COMMIT_ID: Range<usize> = 264..272;
    pub(super) const PAYLOAD_SIZE: Range<usize> = 272..276;
}

/// How many queues there are and how deep they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// One queue for each possible CPU.
    pub queues: usize,
    /// Entries of each.
    pub depth: usize,
}

impl Shape {
    /// For a machine with so many possible CPUs.
    #[must_use]
    pub fn of(possible_cpus: usize) -> Self {
        let queues = possible_cpus.max(1);
        let depth = (MEMORY_LIMIT / (queues * transfer::size())).clamp(LEAST_DEPTH, DEPTH);
        Self { queues, depth }
    }

    /// How much of the arena the entries take.
    #[must_use]
    pub fn memory(self) -> ByteCount {
        let entry = transfer::size() + ENTRY_OVERHEAD;
        ByteCount((self.queues * self.depth * entry) as u64)
    }
}

/// Which queues each of several reactors serves, by the CPU that each belongs to, if it does:
/// a CPU's queue goes to the CPU's reactor, and those of other CPUs are spread evenly.
#[must_use]
pub fn assign(shape: Shape, homes: &[Option<usize>]) -> Vec<Vec<u16>> {
    let mut assigned = vec![Vec::new(); homes.len()];
    for queue in 0..shape.queues {
        let home = homes.iter().position(|home| *home == Some(queue));
        let place = home.or_else(|| queue.checked_rem(homes.len()));
        if let (Some(place), Ok(queue)) = (place, u16::try_from(queue)) {
            assigned[place].push(queue);
        }
    }
    assigned
}

/// Entries of some queues, registered and served by one reactor.
pub struct Queues {
    entries: Vec<AtKernel>,
}

/// Why queues could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// There is no DMA memory, or there are too many entries for one reactor.
    #[error("no memory for the queues of {queues} CPUs; raise reactor.dma_memory or reactor.cores")]
    NoMemory {
        /// How many queues were to be served here.
        queues: usize,
    },
    /// The kernel said no.
    #[error("the kernel refused to register a queue: {0}")]
    Refused(#[from] io::Error),
}

impl Queues {
    /// Registers `depth` entries of each of `queues` on the connection.
    ///
    /// # Errors
    /// [`RegisterError`]. The caller then sees to it that the kernel gives the transport up.
    pub fn register(
        reactor: &Reactor,
        arena: &DmaArena,
        connection: &Arc<File>,
        queues: &[u16],
        depth: usize,
    ) -> Result<Self, RegisterError> {
        let no_memory = RegisterError::NoMemory { queues: queues.len() };
        let one = |queue| {
            QueueEntry::register(reactor.ring(), arena, connection, queue, transfer::size())
        };
        let all = queues.iter().flat_map(|queue| std::iter::repeat_n(*queue, depth));
        let entries = all.map(one).collect::<Option<Vec<_>>>().ok_or(no_memory)?;
        // Registrations are done as they are submitted: what fails has failed on return.
        reactor.ring().submit();
        reactor.ring().reap();
        entries.iter().try_for_each(AtKernel::accepted)?;
        Ok(Self { entries })
    }
}

/// Makes the kernel give the transport up, if not all queues of the connection are registered
/// yet: requests then come by `/dev/fuse`.
pub fn refuse(reactor: &Reactor, arena: &DmaArena, connection: &Arc<File>) {
    // There is no queue of this number.
    let entry = QueueEntry::register(reactor.ring(), arena, connection, u16::MAX, 2 * 4096);
    reactor.ring().submit();
    reactor.ring().reap();
    if entry.is_none_or(|entry| entry.accepted().is_ok()) {
        tracing::error!("the kernel does not give FUSE over io_uring up");
    }
}

/// Serves the requests that come by `queues`, each by `handler`, which gets the data of a WRITE,
/// or memory for the data of a READ, beside the request. Returns when the mount is gone, or after
/// `stop`, once every request under way is answered; what comes later gets an error.
pub async fn serve<H>(
    reactor: &Rc<Reactor>,
    queues: Queues,
    handler: Rc<H>,
    stop: impl Future<Output = ()>,
) -> Stopped
where
    H: AsyncFn(Request, Option<DmaBuffer>) -> Reply + 'static,
{
    let under_way = Rc::<UnderWay>::default();
    let tasks = queues.entries.into_iter().map(|entry| {
        let (handler, under_way) = (Rc::clone(&handler), Rc::clone(&under_way));
        reactor.task(serve_entry(Rc::clone(reactor), entry, handler, under_way))
    });
    let entries: LocalBoxFuture<'static, _> = Box::pin(join_all(tasks.collect::<Vec<_>>()));
    match select(entries, pin!(stop)).await {
        Either::Left(_) => Stopped(None),
        Either::Right(((), entries)) => {
            under_way.close();
            under_way.at_most(0).await;
            Stopped(Some(entries))
        }
    }
}

/// Queues of which no request is under way, and whose entries may still be with the kernel.
#[derive(Default)]
pub struct Stopped(Option<LocalBoxFuture<'static, Vec<()>>>);

impl Stopped {
    /// Waits until the kernel has given every entry back: the mount is gone, or its connection is
    /// aborted, which is the caller's to see to. The kernel cannot take a request back that it
    /// has given to an entry unless the entry's ring goes on turning, so until then it must.
    pub async fn ended(self) {
        if let Some(entries) = self.0 {
            entries.await;
        }
    }
}

async fn serve_entry<H>(
    reactor: Rc<Reactor>,
    mut entry: AtKernel,
    handler: Rc<H>,
    under_way: Rc<UnderWay>,
) where
    H: AsyncFn(Request, Option<DmaBuffer>) -> Reply + 'static,
{
    loop {
        let mut request = match entry.await {
            Ok(request) => request,
            Err(error) => {
                if !matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECANCELED)) {
                    tracing::error!(%error, "the kernel gave up an entry of a queue");
                }
                return;
            }
        };
        let begun = under_way.begin();
        let commit_id = number(&request.header()[header::COMMIT_ID]);
        let (unique, reply) = if under_way.is_closed() {
            // An entry that is not committed would be in the way of the end of the connection.
            (number(&request.header()[header::UNIQUE]), Reply::Error(Errno::EIO))
        } else {
            answer(&mut request, &*handler).await
        };
        put(&mut request, unique, reply);
        entry = match request.commit(commit_id) {
            Ok(committed) => committed,
            Err(request) => commit_late(&reactor, request, unique, commit_id).await,
        };
        drop(begun);
    }
}

/// Parses what has come in an entry and has it done.
async fn answer<H>(entry: &mut QueueEntry, handler: &H) -> (u64, Reply)
where
    H: AsyncFn(Request, Option<DmaBuffer>) -> Reply,
{
    let bytes: [u8; HEADER] = *entry.header();
    let Ok((header, _)) = InHeader::read_from_prefix(&bytes[header::IN_OUT..]) else {
        unreachable!("the area is longer than a header");
    };
    let size = u32::from_ne_bytes(bytes[header::PAYLOAD_SIZE].try_into().unwrap_or_default());
    let size = (size as usize).min(entry.payload().len());
    let fixed = &bytes[header::OPERATION];
    let moves_data = matches!(header.opcode, opcode::READ | opcode::WRITE);
    if moves_data && entry.is_damaged() {
        return (header.unique, Reply::Error(Errno::EIO));
    }
    let parsed = if moves_data {
        Request::parse_parts(&header, fixed, &[])
    } else {
        Request::parse_parts(&header, fixed, &entry.payload()[..size])
    };
    let request = match parsed {
        Ok(request) => request,
        Err(malformed) => {
            tracing::trace!(%malformed, "refused");
            return (header.unique, Reply::Error(malformed.errno));
        }
    };
    let data = match request.operation {
        Operation::Write { .. } => Some(entry.lend(size)),
        Operation::Read { size, .. } => Some(entry.lend(size as usize)),
        _ => None,
    };
    (header.unique, handler(request, data).await)
}

/// Puts an answer where the kernel looks for it.
fn put(entry: &mut QueueEntry, unique: u64, reply: Reply) {
    // The kernel wants an answer to everything that comes by a queue.
    let header = reply.header(unique).unwrap_or(OutHeader { len: 16, error: 0, unique });
    let length = reply.body().len();
    let mut header = header;
    match reply {
        Reply::Data(buffer, range) if range.start == 0 && entry.lent(&buffer) => drop(buffer),
        reply if length > 0 => {
            let fits = entry.is_whole() && length <= entry.payload().len();
            if fits {
                entry.payload()[..length].copy_from_slice(reply.body());
            } else {
                tracing::error!(unique, length, "no memory to put an answer into");
                header = OutHeader { len: 16, error: -Errno::EIO.get(), unique };
            }
        }
        _ => {}
    }
    let size = header.len - size_of::<OutHeader>() as u32;
    let bytes = entry.header();
    bytes[header::IN_OUT..size_of::<OutHeader>()].copy_from_slice(header.as_bytes());
    bytes[header::PAYLOAD_SIZE].copy_from_slice(&size.to_ne_bytes());
}

/// A part of the payload is still with a device, whose command failed without an end: the memory
/// must not be the kernel's before a reset took it from the device. If that does not come, the
/// request fails now, and the entry carries no data until the memory is back.
async fn commit_late(
    reactor: &Reactor,
    mut entry: QueueEntry,
    unique: u64,
    commit_id: u64,
) -> AtKernel {
    let end = reactor.now().after(LENT_WAIT);
    loop {
        match entry.commit(commit_id) {
            Ok(committed) => return committed,
            Err(back) => entry = back,
        }
        if reactor.now() >= end {
            tracing::error!(
                "a device holds on to memory of a request queue: requests that need it get EIO \
                 until the daemon is started again"
            );
            put(&mut entry, unique, Reply::Error(Errno::EIO));
            return entry.commit_damaged(commit_id);
        }
        reactor.sleep(LENT_RETRY).await;
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map(u64::from_ne_bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_has_a_reactor_and_memory_is_bounded() {
        let two = Shape::of(2);
        assert_eq!((two.queues, two.depth), (2, DEPTH));
        assert_eq!(assign(two, &[None]), [vec![0, 1]]);
        assert_eq!(assign(two, &[Some(1), Some(0)]), [vec![1], vec![0]]);
        assert_eq!(assign(Shape::of(5), &[Some(2), Some(3)]), [vec![0, 2, 4], vec![1, 3]]);
        let many = Shape::of(128);
        assert!((LEAST_DEPTH..DEPTH).contains(&many.depth));
        assert!(many.memory().get() <= (MEMORY_LIMIT + 128 * 8 * ENTRY_OVERHEAD) as u64);
        assert_eq!(Shape::of(4096).depth, LEAST_DEPTH);
    }
}
