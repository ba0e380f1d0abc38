//! The server: connections to requests, answers back.
//!
//! One thread accepts; each connection has a thread that reads and parses; a few workers carry
//! requests out, so that several of one connection are in progress at a time and answers come in
//! the order in which they are ready. A client that sends faster than the workers work is read no
//! further; one that does not read its answers is given up. No thread here touches data of
//! volumes.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use serde_json::Value;

use super::codec::{Incoming, Refusal, Request, Splitter, reply};
use super::error::RpcError;
use super::events::{self, WATCHERS_LIMIT};
use super::methods::{self, Service};
use super::socket::{Claimed, SocketError};

/// The most connections at a time; further ones are closed at once.
pub const CONNECTIONS_LIMIT: usize = 64;
/// The longest answer. A longer one is replaced by an error.
pub const REPLY_BYTES_LIMIT: usize = 32 << 20;
/// Requests that are carried out at a time.
const WORKERS: usize = 4;
/// Requests that wait for a worker, over all connections.
const QUEUE_LIMIT: usize = 64;
/// How long a client may take to read an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 16 << 10;

/// A control socket that is being served. Dropping it, or [`Server::stop`], ends that.
#[derive(Debug)]
pub struct Server {
    claimed: Claimed,
    connections: Arc<Connections>,
    acceptor: Option<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
}

impl Server {
    /// Whether `path` is to be had, for those who want to know before they begin anything. Leaves
    /// the lock file and no socket.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(path: &Path) -> Result<(), SocketError> {
        Claimed::claim(path).map(drop)
    }

    /// Claims `path` and serves `service` there. The socket has mode 0600; its folder is created
    /// if there is none; a stale socket is replaced.
    ///
    /// # Errors
    /// If the path is not to be had, or no threads are.
    pub fn start(path: &Path, service: Arc<dyn Service>) -> Result<Self, SocketError> {
        let claimed = Claimed::claim(path)?;
        let system = |operation| {
            move |source| SocketError::System { operation, path: path.to_owned(), source }
        };
        let (jobs, queue) = crossbeam_channel::bounded(QUEUE_LIMIT);
        let mut server = Self {
            connections: Arc::default(),
            acceptor: None,
            workers: Vec::with_capacity(WORKERS),
            claimed,
        };
        for _ in 0..WORKERS {
            let (queue, service) = (queue.clone(), service.clone());
            let worker = spawn("control-worker", move || work(&queue, &service));
            server.workers.push(worker.map_err(system("start a thread for"))?);
        }
        let listener =
            server.claimed.listener.try_clone().map_err(system("duplicate the socket"))?;
        let connections = server.connections.clone();
        let acceptor = spawn("control", move || accept(&listener, &connections, &jobs));
        server.acceptor = Some(acceptor.map_err(system("start a thread for"))?);
        Ok(server)
    }

    /// Accepts and reads no more, lets the requests in progress be answered, closes the
    /// connections and removes the socket. Waits for all of that.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes the thread in accept(2), for good.
        let listener = self.claimed.listener.try_clone().map(OwnedFd::from).map(UnixStream::from);
        let woken = listener.and_then(|listener| listener.shutdown(Shutdown::Both));
        if let Err(error) = woken {
            // Only without file descriptors; then the threads end with the process.
            tracing::warn!(%error, "cannot stop accepting control connections");
            return;
        }
        self.acceptor.take().map(JoinHandle::join);
        // With the readers gone there are no more jobs; the workers end when they have answered.
        self.connections.close_and_join();
        for worker in self.workers.drain(..) {
            // A worker catches what its requests do; there is nothing else in it that can fail.
            worker.join().ok();
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run)
}

/// Locks; a thread that panicked while it held the lock left whole values behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The open connections, each with the thread that reads it.
#[derive(Debug, Default)]
struct Connections {
    readers: Mutex<HashMap<u64, Reader>>,
    /// Streams of events, over all connections.
    watchers: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Reader {
    connection: Arc<Connection>,
    thread: JoinHandle<()>,
}

impl Connections {
    fn close_and_join(&self) {
        let open: Vec<Reader> = lock(&self.readers).drain().map(|(_, reader)| reader).collect();
        for Reader { connection, .. } in &open {
            // It fails if the client has closed it; the reader sees that by itself.
            connection.stream.shutdown(Shutdown::Read).ok();
        }
        for reader in open {
            reader.thread.join().ok();
        }
    }
}

fn accept(listener: &UnixListener, connections: &Arc<Connections>, jobs: &Sender<Job>) {
    for number in 0.. {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                // Out of descriptors: the connection stays in the backlog, and asking again at
                // once would find the same.
                std::thread::park_timeout(Duration::from_millis(100));
                continue;
            }
        };
        if let Err(error) = admit(number, stream, connections, jobs) {
            tracing::debug!(%error, "control connection refused");
        }
    }
}

fn admit(
    number: u64,
    stream: UnixStream,
    connections: &Arc<Connections>,
    jobs: &Sender<Job>,
) -> io::Result<()> {
    let mut open = lock(&connections.readers);
    if open.len() >= CONNECTIONS_LIMIT {
        tracing::warn!(limit = CONNECTIONS_LIMIT, "too many control connections");
        return Ok(());
    }
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let connection = Arc::new(Connection {
        stream,
        writing: Mutex::default(),
        closed: AtomicBool::new(false),
        watchers: Mutex::default(),
        all_watchers: Arc::clone(&connections.watchers),
    });
    let (reading, jobs, list) = (connection.clone(), jobs.clone(), connections.clone());
    let thread = spawn("control-client", move || {
        reading.serve(&jobs);
        reading.end_watching();
        drop(reading);
        // The handle of this very thread goes with it: nobody waits for it any more.
        lock(&list.readers).remove(&number);
    })?;
    open.insert(number, Reader { connection, thread });
    Ok(())
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// Held while an answer is written, so that answers do not mix.
    writing: Mutex<()>,
    /// Whether nothing more is read from it.
    closed: AtomicBool,
    /// The threads of its streams of events.
    watchers: Mutex<Vec<JoinHandle<()>>>,
    all_watchers: Arc<AtomicUsize>,
}

impl Connection {
    /// Reads requests until the client closes, says something that is not JSON, or too much.
    fn serve(self: &Arc<Self>, jobs: &Sender<Job>) {
        let mut splitter = Splitter::default();
        let mut bytes = vec![0; READ_BYTES];
        loop {
            let wanted = splitter.room().min(READ_BYTES);
            if wanted == 0 {
                let error = RpcError::invalid_request().because("it is too long");
                return self.refuse_and_close(error);
            }
            let read = match (&self.stream).read(&mut bytes[..wanted]) {
                Ok(0) => break,
                Ok(read) => &bytes[..read],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            if splitter.push(read).is_err() {
                unreachable!("no more than there is room for was read");
            }
            while let Some(value) = splitter.next_value() {
                if !self.take(&value, jobs) {
                    return;
                }
            }
        }
        if let Some(rest) = splitter.finish() {
            self.take(&rest, jobs);
        }
    }

    /// Hands one value of the stream to the workers; false if that ends the connection.
    fn take(self: &Arc<Self>, value: &[u8], jobs: &Sender<Job>) -> bool {
        let (requests, form) = match Incoming::parse(value) {
            Ok(Incoming::Single(request)) => (vec![request], Form::Single),
            Ok(Incoming::Batch(requests)) => (requests, Form::Batch),
            Err(error) => {
                self.refuse_and_close(error);
                return false;
            }
        };
        let answers = Mutex::new((requests.len(), Vec::with_capacity(requests.len())));
        let exchange = Arc::new(Exchange { connection: self.clone(), form, answers });
        for request in requests {
            match request {
                Ok(request) => {
                    let job = Job { request, exchange: exchange.clone() };
                    // The queue is closed only after the last reader has ended.
                    if jobs.send(job).is_err() {
                        return false;
                    }
                }
                Err(Refusal { id, error }) => exchange.answered(reply(&id, Err(error))),
            }
        }
        true
    }

    /// Makes room for one more stream of events.
    fn may_watch(&self) -> Result<(), RpcError> {
        let room = |count: usize| (count < WATCHERS_LIMIT).then_some(count + 1);
        let taken = self.all_watchers.fetch_update(Ordering::AcqRel, Ordering::Acquire, room);
        let full = || format!("{WATCHERS_LIMIT} streams of events are open already");
        taken.map(drop).map_err(|_| RpcError::errno(libc::EBUSY).because(full()))
    }

    /// Streams events from number `first` on until the connection is closed. There is room.
    fn watch(self: &Arc<Self>, service: &Arc<dyn Service>, first: u64) {
        let (connection, service) = (Arc::clone(self), Arc::clone(service));
        let thread = spawn("control-events", move || connection.stream_events(&*service, first));
        match thread {
            Ok(thread) => lock(&self.watchers).push(thread),
            Err(error) => {
                tracing::warn!(%error, "no thread for a stream of events; its client is let go");
                self.all_watchers.fetch_sub(1, Ordering::AcqRel);
                self.stream.shutdown(Shutdown::Both).ok();
            }
        }
    }

    fn stream_events(&self, service: &dyn Service, mut first: u64) {
        if let Some(source) = service.event_source() {
            while !self.closed.load(Ordering::Acquire) {
                source.wait(first, events::LOOK_UP);
                for event in source.from(first, events::BATCH) {
                    first = event.id + 1;
                    self.write(&events::notification(&event));
                }
            }
        }
        self.all_watchers.fetch_sub(1, Ordering::AcqRel);
    }

    /// Nothing more is read: the streams end.
    fn end_watching(&self) {
        self.closed.store(true, Ordering::Release);
        for thread in lock(&self.watchers).drain(..) {
            // A stream that panicked has said so in the log.
            thread.join().ok();
        }
    }

    fn refuse_and_close(&self, error: RpcError) {
        self.write(&reply(&Value::Null, Err(error)));
        self.stream.shutdown(Shutdown::Both).ok();
    }

    fn write(&self, answer: &Value) {
        let mut text = answer.to_string();
        if text.len() > REPLY_BYTES_LIMIT {
            let error = RpcError::internal("the answer is too long");
            text = reply(&answer["id"], Err(error)).to_string();
        }
        text.push('\n');
        let _writing = lock(&self.writing);
        if let Err(error) = (&self.stream).write_all(text.as_bytes()) {
            // Half an answer cannot be followed by another one.
            tracing::debug!(%error, "control client gone before its answer");
            self.stream.shutdown(Shutdown::Both).ok();
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Single,
    Batch,
}

/// One value from a client, and the answer that it will get when all of it is carried out.
#[derive(Debug)]
struct Exchange {
    connection: Arc<Connection>,
    form: Form,
    /// How many are missing, and those that are there.
    answers: Mutex<(usize, Vec<Value>)>,
}

impl Exchange {
    fn answered(&self, answer: Value) {
        let mut answers = lock(&self.answers);
        answers.1.push(answer);
        answers.0 -= 1;
        if answers.0 == 0 {
            let mut all = std::mem::take(&mut answers.1);
            match (self.form, all.pop()) {
                (Form::Single, Some(answer)) => self.connection.write(&answer),
                (_, last) => {
                    all.extend(last);
                    self.connection.write(&Value::Array(all));
                }
            }
        }
    }
}

#[derive(Debug)]
struct Job {
    request: Request,
    exchange: Arc<Exchange>,
}

/// A worker's life: it ends when no reader is left that could send jobs.
fn work(queue: &Receiver<Job>, service: &Arc<dyn Service>) {
    for Job { request: Request { id, method, params }, exchange } in queue {
        let call = AssertUnwindSafe(|| methods::call(&**service, &method, params));
        let outcome = catch_unwind(call).unwrap_or_else(|_| {
            tracing::error!(method, "a control request ended in a panic; the log above has it");
            Err(RpcError::internal("the request ended in a panic"))
        });
        let connection = Arc::clone(&exchange.connection);
        let (outcome, first) = match outcome {
            Ok(watching) if method == events::WATCH => match connection.may_watch() {
                Ok(()) => (Ok(watching.clone()), watching["from"].as_u64()),
                Err(full) => (Err(full), None),
            },
            outcome => (outcome, None),
        };
        exchange.answered(reply(&id, outcome));
        if let Some(first) = first {
            connection.watch(service, first);
        }
    }
}
