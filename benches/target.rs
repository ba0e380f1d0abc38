//! The NVMe-oF/TCP target on loopback: a daemon with one reactor on one CPU, this program as the
//! host on another, polling.
//!
//! Beside it, in the same run: a thread that only answers, with the same bytes on the same kind of
//! socket (the floor), and, for durable writes, `pwrite` and `fdatasync` of a file beside the
//! pool's. Windows of what is compared alternate; each figure is the median, with the spread. Run
//! with `cargo bench --bench target`; `-- quick` has fewer and shorter windows, `-- NAME...` runs
//! some parts: latency, throughput, connections, durable, idle, memory.

#![expect(clippy::print_stdout, reason = "the figures are the program's output")]

use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use lvolfs::hw::dma::DmaBuffer;
use lvolfs::hw::thread::{allowed_cpus, pin_to_cpu, possible_cpus, run_on};
use lvolfs::nvmf::pdu::{Decoder, Digests, Encoder, Event, Pdu};
use lvolfs::nvmf::stream::Stream;
use lvolfs::reactor::Gather;
use lvolfs::spec::command::{ForceUnitAccess, SubmissionEntry};
use lvolfs::spec::fabrics::{SglDescriptor, SglKind};
use lvolfs::units::{CommandId, Lba, NamespaceId};

#[path = "../tests/it/nvmf/host.rs"]
mod host;

use host::{Host, Identity};

const SUBSYSTEM: &str = "nqn.2026-11.io.lvolfs:bench";
const NAMESPACE: NamespaceId = NamespaceId(1);
const BLOCK: usize = 4096;
const VOLUME: usize = 128 << 20;
const RECEIVE: usize = 256 << 10;
/// Queue entries asked for; a queue holds one command fewer.
const ENTRIES: u32 = 128;
/// I/O queues of one controller in this bench.
const QUEUES: usize = 32;

/// Runs a future that never waits: the sockets under it block.
fn run<R>(future: impl Future<Output = R>) -> R {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => unreachable!("a socket that blocks has answered"),
    }
}

/// A socket that blocks.
struct Blocking(TcpStream);

impl Stream for Blocking {
    async fn receive(&self, mut bytes: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        ((&self.0).read(&mut bytes), bytes)
    }
    async fn receive_exact(&self, mut buffer: DmaBuffer) -> (io::Result<usize>, DmaBuffer) {
        let length = buffer.len();
        ((&self.0).read_exact(&mut buffer).map(|()| length), buffer)
    }
    async fn send(&self, mut gather: Gather) -> (io::Result<()>, Gather) {
        let bytes = gather.copied();
        gather.clear();
        ((&self.0).write_all(&bytes), gather)
    }
    fn close(&self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

/// A daemon of its own, in a folder of its own.
struct Daemon {
    process: Child,
    folder: PathBuf,
    port: u16,
}

impl Daemon {
    fn start(name: &str, device: &str, cpu: usize) -> Self {
        let folder =
            std::env::temp_dir().join(format!("lvolfs-bench-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for temporary files");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let port = port.expect("loopback").port();
        fs::create_dir_all(folder.join("mount")).expect("space for a folder");
        let config = format!(
            "[mount]\npath = \"mount\"\n[control]\nsocket = \"control.sock\"\n\
             [[device]]\nname = \"d\"\nblock_size = 4096\n{device}\n\
             [[pool]]\nname = \"p\"\ndevice = \"d\"\ncluster_size = \"1MiB\"\ncreate = true\n\
             [[volume]]\nname = \"p/v\"\nsize = \"{VOLUME}B\"\n\
             [reactor]\ncores = [{cpu}]\n\
             [target]\nlisten = [\"127.0.0.1:{port}\"]\nstate_dir = \"target\"\n\
             [[target.subsystem]]\nnqn = \"{SUBSYSTEM}\"\nallow_any_host = true\n\
             namespaces = [{{ volume = \"p/v\", nsid = 1 }}]\n\
             [log]\nlevel = \"warn\"\n"
        );
        fs::write(folder.join("config.toml"), config).expect("space for a file");
        // A process inherits where it may run; the daemon is to see the whole machine.
        let own = allowed_cpus();
        run_on(&(0..possible_cpus()).collect::<Vec<_>>()).expect("one of all");
        let mut process = Command::new(env!("CARGO_BIN_EXE_lvolfs"))
            .args(["serve", "--config", "config.toml"])
            .current_dir(&folder)
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary that was just built");
        run_on(&own).expect("it ran there before");
        for _ in 0..500 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Self { process, folder, port };
            }
            assert!(process.try_wait().expect("a child").is_none(), "the daemon has ended");
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the daemon does not listen");
    }

    /// Processor time so far, of all its threads.
    fn processor(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()));
        let stat = stat.expect("the daemon lives");
        let fields: Vec<&str> =
            stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // utime and stime, fields 14 and 15 of proc(5), in hundredths of a second.
        let ticks: u64 =
            fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("ticks")).sum();
        Duration::from_millis(ticks * 10)
    }

    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("the daemon lives");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") << 10
    }

    /// Connections with an I/O queue each, and the admin queues that they need.
    fn connect(&self, count: usize) -> (Vec<Host<Blocking>>, Vec<Lane>) {
        let identity = Identity::new(SUBSYSTEM, "nqn.2026-11.io.lvolfs:bench-host");
        let initialized = || {
            let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the daemon listens");
            stream.set_nodelay(true).expect("a TCP socket");
            run(Host::initialize(Blocking(stream), Digests::default(), 0))
        };
        let (mut admins, mut lanes) = (Vec::new(), Vec::new());
        for at in 0..count {
            if at % QUEUES == 0 {
                let mut admin = initialized();
                let id = run(admin.connect_admin(&identity, 120_000));
                admins.push((id, admin));
            }
            let (id, _) = admins.last().expect("just pushed");
            let mut queue = initialized();
            let number = (at % QUEUES) as u16 + 1;
            run(queue.connect_io(&identity, *id, number, ENTRIES, false)).ok();
            lanes.push(Lane::new(queue));
        }
        (admins.into_iter().map(|(_, admin)| admin).collect(), lanes)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Asked to end, it unmounts; if it cannot, what is left must not stay mounted.
        let asked = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status();
        let ended = (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            !matches!(self.process.try_wait(), Ok(None))
        });
        if !ended || asked.is_err() {
            let _ = self.process.kill();
            let _ = self.process.wait();
            let _ = Command::new("umount").arg("-l").arg(self.folder.join("mount")).status();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Read,
    Write,
}

/// What is asked of the target.
#[derive(Clone, Copy)]
struct Job {
    kind: Kind,
    bytes: usize,
    /// Commands in flight on each connection.
    depth: usize,
    random: bool,
}

/// One I/O queue, without anything that a fast host would not have.
struct Lane {
    stream: TcpStream,
    decoder: Decoder,
    encoder: Encoder,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    begun: Vec<Instant>,
    /// The command whose data comes, if its last piece is also its answer.
    answered: Option<u16>,
    next: u64,
}

impl Lane {
    fn new(host: Host<Blocking>) -> Self {
        let Host { stream, decoder, encoder, .. } = host;
        stream.0.set_nonblocking(true).expect("a socket");
        Self {
            stream: stream.0,
            decoder,
            encoder,
            input: vec![0; RECEIVE],
            output: Vec::new(),
            sent: 0,
            begun: vec![Instant::now(); ENTRIES as usize],
            answered: None,
            next: 0,
        }
    }

    fn submit(&mut self, slot: u16, job: Job, rng: &mut fastrand::Rng, data: &[u8]) {
        let places = (VOLUME / job.bytes) as u64;
        self.next = if job.random { rng.u64(0..places) } else { (self.next + 1) % places };
        let blocks = (job.bytes / BLOCK) as u32;
        let lba = Lba(self.next * u64::from(blocks));
        let entry = match job.kind {
            Kind::Read => SubmissionEntry::read(NAMESPACE, lba, blocks),
            Kind::Write => SubmissionEntry::write(NAMESPACE, lba, blocks, ForceUnitAccess::No),
        };
        self.push(slot, entry, job, data);
    }

    fn push(&mut self, slot: u16, entry: SubmissionEntry, job: Job, data: &[u8]) {
        let inside = job.kind == Kind::Write && job.bytes <= host::IN_CAPSULE;
        let kind = if inside { SglKind::IN_CAPSULE } else { SglKind::TRANSPORT };
        let sgl = SglDescriptor { address: 0, length: job.bytes as u32, kind };
        let entry = entry.with_command_id(CommandId(slot)).with_sgl(sgl);
        let length = if inside { job.bytes as u32 } else { 0 };
        self.encoder.header(&Pdu::Command { entry, length }, &mut self.output);
        if inside {
            self.output.extend_from_slice(&data[..job.bytes]);
        }
        self.begun[usize::from(slot)] = Instant::now();
    }

    /// Sends what the socket takes.
    fn send(&mut self) {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => panic!("the target has gone: {error}"),
            }
        }
        self.output.clear();
        self.sent = 0;
    }

    /// Receives what there is; the commands that ended.
    fn receive(&mut self, data: &[u8], done: &mut Vec<u16>) {
        let received = match self.stream.read(&mut self.input) {
            Ok(0) => panic!("the target has closed the connection"),
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => panic!("the target has gone: {error}"),
        };
        let mut input = &self.input[..received];
        while let Some(event) =
            self.decoder.feed(&mut input).expect("the target keeps to the protocol")
        {
            match event {
                Event::Header(Pdu::Response(entry)) => {
                    assert!(entry.status().is_success(), "{}", entry.status());
                    done.push(entry.command_id().get());
                }
                Event::Header(Pdu::ControllerData { command, success, .. }) => {
                    self.answered = success.then_some(command);
                }
                Event::Header(Pdu::ReadyToTransfer { command, tag, offset, length }) => {
                    let pdu = Pdu::HostData { command, tag, offset, length, last: true };
                    self.encoder.header(&pdu, &mut self.output);
                    self.output.extend_from_slice(&data[..length as usize]);
                }
                Event::Header(other) => panic!("the target sent {other:?}"),
                Event::Data(_) => {}
                Event::End(_) => done.extend(self.answered.take()),
            }
        }
    }
}

/// What a window showed.
#[derive(Clone, Copy)]
struct Window {
    per_second: f64,
    median: Duration,
    /// Processor time of the daemon for each command.
    processor: Duration,
}

/// Runs a job on all lanes for a while, polling.
fn window(daemon: &Daemon, lanes: &mut [Lane], job: Job, time: Duration) -> Window {
    let data = vec![0x5a; job.bytes];
    let mut rng = fastrand::Rng::with_seed(7);
    let mut latencies = Vec::with_capacity(1 << 20);
    let mut done = Vec::new();
    let processor = daemon.processor();
    let begin = Instant::now();
    for lane in &mut *lanes {
        for slot in 0..job.depth as u16 {
            lane.submit(slot, job, &mut rng, &data);
        }
        lane.send();
    }
    let mut outstanding = lanes.len() * job.depth;
    let mut over = false;
    while outstanding > 0 {
        for lane in &mut *lanes {
            lane.receive(&data, &mut done);
            if !done.is_empty() {
                let now = Instant::now();
                over |= now - begin >= time;
                for slot in done.drain(..) {
                    latencies.push(now - lane.begun[usize::from(slot)]);
                    if over {
                        outstanding -= 1;
                    } else {
                        lane.submit(slot, job, &mut rng, &data);
                    }
                }
            }
            lane.send();
        }
    }
    let elapsed = begin.elapsed();
    let commands = latencies.len();
    let (_, median, _) = latencies.select_nth_unstable(commands / 2);
    Window {
        per_second: commands as f64 / elapsed.as_secs_f64(),
        median: *median,
        processor: (daemon.processor() - processor) / commands as u32,
    }
}

/// The median of some figures, and their spread.
fn middle(mut figures: Vec<f64>) -> (f64, f64, f64) {
    figures.sort_unstable_by(f64::total_cmp);
    (figures[figures.len() / 2], figures[0], figures[figures.len() - 1])
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A thread that answers requests of `ask` bytes with `answer` bytes, polling; and the median
/// time for one.
struct Floor {
    stream: TcpStream,
    ask: usize,
    answer: usize,
}

impl Floor {
    fn new(ask: usize, answer: usize, cpu: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("it is bound");
        std::thread::spawn(move || {
            let _ = pin_to_cpu(cpu);
            let Ok((mut stream, _)) = listener.accept() else { return };
            let (mut request, reply) = (vec![0; ask], vec![0; answer]);
            let _ = stream.set_nodelay(true);
            while spin_read(&mut stream, &mut request) {
                if stream.write_all(&reply).is_err() {
                    return;
                }
            }
        });
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("a TCP socket");
        Self { stream, ask, answer }
    }

    fn window(&mut self, time: Duration) -> Duration {
        let (request, mut reply) = (vec![0; self.ask], vec![0; self.answer]);
        let begin = Instant::now();
        let mut latencies = Vec::new();
        while begin.elapsed() < time {
            let asked = Instant::now();
            self.stream.write_all(&request).expect("the thread lives");
            assert!(spin_read(&mut self.stream, &mut reply), "the thread lives");
            latencies.push(asked.elapsed());
        }
        let middle = latencies.len() / 2;
        *latencies.select_nth_unstable(middle).1
    }
}

/// Fills `bytes`, polling; false at the end of the stream. After a millisecond without a first
/// byte, nothing is being measured: the processor is left to who does.
fn spin_read(stream: &mut TcpStream, bytes: &mut [u8]) -> bool {
    stream.set_nonblocking(true).expect("a socket");
    let (mut filled, begin) = (0, Instant::now());
    while filled < bytes.len() {
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return false,
            Ok(read) => filled += read,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return false,
            Err(_) if filled == 0 && begin.elapsed() > Duration::from_millis(1) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(_) => {}
        }
    }
    stream.set_nonblocking(false).expect("a socket");
    true
}

/// How long and how often.
#[derive(Clone, Copy)]
struct Effort {
    windows: usize,
    time: Duration,
}

/// Measures a job; prints and returns the median rate.
fn measure(daemon: &Daemon, lanes: &mut [Lane], job: Job, effort: Effort, name: &str) -> f64 {
    let windows: Vec<Window> =
        (0..effort.windows).map(|_| window(daemon, lanes, job, effort.time)).collect();
    let rate = middle(windows.iter().map(|window| window.per_second).collect());
    let median = middle(windows.iter().map(|window| microseconds(window.median)).collect());
    let processor = middle(windows.iter().map(|window| microseconds(window.processor)).collect());
    println!(
        "{name}: {:.0} a second ({:.0}-{:.0}), median {:.1} us ({:.1}-{:.1}), \
         the daemon's processor {:.2} us each ({:.2}-{:.2})",
        rate.0, rate.1, rate.2, median.0, median.1, median.2, processor.0, processor.1, processor.2
    );
    rate.0
}

fn small(kind: Kind, depth: usize) -> Job {
    Job { kind, bytes: BLOCK, depth, random: true }
}

const KINDS: [(Kind, &str); 2] = [(Kind::Read, "read"), (Kind::Write, "write")];

fn latency(daemon: &Daemon, cpu: usize, effort: Effort) {
    for (kind, name) in KINDS {
        let (ask, answer) = match kind {
            Kind::Read => (72, 24 + BLOCK),
            Kind::Write => (72 + BLOCK, 24),
        };
        let mut floor = Floor::new(ask, answer, cpu);
        let (_admins, mut lanes) = daemon.connect(1);
        let (mut floors, mut medians) = (Vec::new(), Vec::new());
        for _ in 0..effort.windows {
            floors.push(microseconds(floor.window(effort.time / 2)));
            let window = window(daemon, &mut lanes, small(kind, 1), effort.time / 2);
            medians.push(microseconds(window.median));
        }
        let (floor, target) = (middle(floors), middle(medians));
        println!(
            "4 KiB {name}, depth 1: median {:.1} us ({:.1}-{:.1}); a thread that only answers {:.1} us \
             ({:.1}-{:.1}); ratio {:.2}",
            target.0,
            target.1,
            target.2,
            floor.0,
            floor.1,
            floor.2,
            target.0 / floor.0
        );
    }
}

fn throughput(daemon: &Daemon, effort: Effort) {
    let (_admins, mut lanes) = daemon.connect(1);
    for (kind, name) in KINDS {
        for depth in [1, 32, 127] {
            let name = format!("4 KiB random {name}, depth {depth}");
            measure(daemon, &mut lanes, small(kind, depth), effort, &name);
        }
        let job = Job { kind, bytes: 128 << 10, depth: 8, random: false };
        measure(daemon, &mut lanes, job, effort, &format!("128 KiB sequential {name}, depth 8"));
    }
}

fn connections(daemon: &Daemon, effort: Effort) {
    for count in [1, 16, 256] {
        let (_admins, mut lanes) = daemon.connect(count);
        for (kind, name) in KINDS {
            let depth = (256 / count).clamp(1, 127);
            let name = format!("4 KiB random {name}, {count} connections x depth {depth}");
            measure(daemon, &mut lanes, small(kind, depth), effort, &name);
        }
    }
}

/// A write and a flush after it, one after the other, against the same on a plain file.
fn durable(folder: &Path, cpu: usize, effort: Effort) {
    let path = folder.join("disk.img");
    let device = format!("driver = \"file\"\npath = {path:?}\nsize = \"1GiB\"\ncreate = true");
    let daemon = Daemon::start("file", &device, cpu);
    let (_admins, mut lanes) = daemon.connect(1);
    let fill = Job { kind: Kind::Write, bytes: 128 << 10, depth: 8, random: false };
    window(&daemon, &mut lanes, fill, Duration::from_secs(2));
    let plain = folder.join("plain");
    let file = plain_file(&plain);
    let mut rng = fastrand::Rng::with_seed(3);
    let data = vec![0xa5; BLOCK];
    let (mut over_tcp, mut of_file) = (Vec::new(), Vec::new());
    for _ in 0..effort.windows {
        let begin = Instant::now();
        let mut times = Vec::new();
        while begin.elapsed() < effort.time {
            let block = rng.u64(0..(VOLUME / BLOCK) as u64);
            let asked = Instant::now();
            file.write_all_at(&data, block * BLOCK as u64).expect("space");
            file.sync_data().expect("the file system works");
            times.push(asked.elapsed());
        }
        of_file.push(microseconds(median(&mut times)));
        let lane = &mut lanes[0];
        let begin = Instant::now();
        let mut times = Vec::new();
        while begin.elapsed() < effort.time {
            let asked = Instant::now();
            lane.submit(0, small(Kind::Write, 1), &mut rng, &data);
            wait_for(lane, &data);
            let nothing = Job { kind: Kind::Read, bytes: 0, depth: 1, random: true };
            lane.push(0, SubmissionEntry::flush(NAMESPACE), nothing, &data);
            wait_for(lane, &data);
            times.push(asked.elapsed());
        }
        over_tcp.push(microseconds(median(&mut times)));
    }
    let (over_tcp, of_file) = (middle(over_tcp), middle(of_file));
    println!(
        "4 KiB write and flush on a pool in a file: median {:.0} us ({:.0}-{:.0}); pwrite and \
         fdatasync of a file beside it {:.0} us ({:.0}-{:.0}); ratio {:.2}",
        over_tcp.0,
        over_tcp.1,
        over_tcp.2,
        of_file.0,
        of_file.1,
        of_file.2,
        over_tcp.0 / of_file.0
    );
}

fn median(times: &mut [Duration]) -> Duration {
    let middle = times.len() / 2;
    *times.select_nth_unstable(middle).1
}

/// A file of the volume's size whose blocks are all there.
fn plain_file(path: &Path) -> File {
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path);
    let file = file.expect("space for a file");
    for at in (0..VOLUME).step_by(1 << 20) {
        file.write_all_at(&vec![1; 1 << 20], at as u64).expect("space");
    }
    file.sync_all().expect("the file system works");
    file
}

fn wait_for(lane: &mut Lane, data: &[u8]) {
    let mut done = Vec::new();
    while done.is_empty() {
        lane.send();
        lane.receive(data, &mut done);
    }
}

fn idle(daemon: &Daemon) {
    let (_admins, _lanes) = daemon.connect(16);
    std::thread::sleep(Duration::from_secs(1));
    let (before, begin) = (daemon.processor(), Instant::now());
    std::thread::sleep(Duration::from_secs(20));
    let used = (daemon.processor() - before).as_secs_f64() / begin.elapsed().as_secs_f64();
    println!("idle with 16 connections, over 20 s: {:.2} % of a processor", used * 100.0);
}

fn memory(daemon: &Daemon) {
    let before = daemon.resident();
    let (admins, mut lanes) = daemon.connect(960);
    let connected = daemon.resident();
    window(daemon, &mut lanes, small(Kind::Read, 4), Duration::from_secs(1));
    window(daemon, &mut lanes, small(Kind::Write, 4), Duration::from_secs(1));
    println!(
        "resident: {} MiB; with {} connections {} MiB; after load on all of them {} MiB (of these {} MiB \
         are the device in memory)",
        before >> 20,
        admins.len() + lanes.len(),
        connected >> 20,
        daemon.resident() >> 20,
        VOLUME >> 20
    );
}

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|name| name != "--bench").collect();
    let quick = arguments.iter().any(|name| name == "quick");
    let parts: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|name| *name != "quick").collect();
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    let effort = if quick {
        Effort { windows: 3, time: Duration::from_millis(300) }
    } else {
        Effort { windows: 7, time: Duration::from_secs(1) }
    };
    let cpus = allowed_cpus();
    let (host, target) = (cpus[0], cpus[cpus.len() - 1]);
    pin_to_cpu(host).expect("it may run there");
    if host == target {
        println!("only one CPU: the host and the target share it, so the figures mean little");
    }
    let daemon = Daemon::start("memory", "driver = \"memory\"\nsize = \"512MiB\"", target);
    let (admins, mut lanes) = daemon.connect(1);
    let fill = Job { kind: Kind::Write, bytes: 128 << 10, depth: 8, random: false };
    window(&daemon, &mut lanes, fill, Duration::from_secs(1));
    drop((admins, lanes));
    if wanted("latency") {
        latency(&daemon, target, effort);
    }
    if wanted("throughput") {
        throughput(&daemon, effort);
    }
    if wanted("connections") {
        connections(&daemon, effort);
    }
    if wanted("durable") {
        durable(&daemon.folder, target, effort);
    }
    if wanted("idle") {
        idle(&daemon);
    }
    if wanted("memory") {
        memory(&daemon);
    }
}
