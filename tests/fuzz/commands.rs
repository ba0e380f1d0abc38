//! A host that does whatever its bytes say, to a real target over volumes in memory, on virtual
//! time: it connects, sends commands and data, right and wrong, and leaves.
//!
//! Whatever it does, the target keeps to the protocol: it answers each command once, sends no more
//! data than was asked for, and asks for the data of commands alone that have some. When all data
//! that it asked for is there, every command is answered. When the host is gone, no connection, no
//! controller and no memory stays behind, and a fresh host is served.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::{Either, select};
use lvolfs::block::AnyDevice;
use lvolfs::block::memory::MemoryDevice;
use lvolfs::hw::dma::DmaArena;
use lvolfs::lvol::FormatOptions;
use lvolfs::lvol::format::LayoutOptions;
use lvolfs::nvmf::model::{AnaState, NewNamespace};
use lvolfs::nvmf::pdu::{
    self, Data, Decoder, Digests, Encoder, Event, Limits, MAX_ALIGNMENT, Pdu, Role, data_digest,
};
use lvolfs::nvmf::stream::Stream;
use lvolfs::reactor::{Gather, Reactor, ReactorOptions};
use lvolfs::spec::command::{AdminOpcode, ForceUnitAccess, SubmissionEntry};
use lvolfs::spec::completion::CompletionEntry;
use lvolfs::spec::fabrics::{DISCOVERY_NQN, DYNAMIC_CONTROLLER, SglDescriptor, SglKind};
use lvolfs::spec::register;
use lvolfs::units::{BlockSize, ByteCount, CommandId, Lba, NamespaceId, QueueId};
use lvolfs::volume::{Attributes, Directory, NewVolume, PoolOwner, Store};
use zerocopy::{FromBytes, IntoBytes};

use super::exported::{self, Exported, HOST, SUBSYSTEM, Source, local};
use super::host::{Host, IN_CAPSULE, Identity};
use super::pipe::Pipe;

const DISK: ByteCount = ByteCount(16 << 20);
const CLUSTER: ByteCount = ByteCount(64 << 10);
/// Less than three connections may hold: some commands wait for memory.
const MEMORY: ByteCount = ByteCount(10 << 20);
const VOLUME: ByteCount = ByteCount(2 << 20);
const BLOCK: usize = 4096;
/// Connections at a time.
const CONNECTIONS: usize = 4;
/// Of one input, so that none takes for ever.
const ACTIONS: usize = 128;
/// Virtual time in which the target does what can be done at once.
const MOMENT: Duration = Duration::from_millis(2);
/// Virtual time in which the target must have taken what was sent, or have given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Virtual time in which a command that finds no memory is answered all the same.
const MEMORY_PATIENCE: Duration = Duration::from_secs(6);
/// The host that looks afterwards, and has a namespace of its own.
const FRESH: &str = "nqn.2026-11.io.lvolfs:fresh";
const FRESH_NAMESPACE: NamespaceId = NamespaceId(3);

const OPCODES: [u8; 20] = [
    0x01, 0x02, 0x00, 0x05, 0x08, 0x09, 0x0c, 0x0d, 0x0e, 0x11, 0x15, 0x19, 0x06, 0x0a, 0x18, 0x7f,
    0x02, 0x01, 0x01, 0x05,
];
const NAMESPACES: [u32; 6] = [1, 1, 2, 0, 3, u32::MAX];
/// What SGLs say; the first stands for what the command moves.
const LENGTHS: [u32; 12] = [0, 0, 0, 0, 16, 512, 1024, 4096, 8192, 65_536, (1 << 20) + 4, u32::MAX];

/// What is still to be read of the input.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn half(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes([self.byte()?, self.byte()?]))
    }

    /// As many bytes as the next one says.
    fn bytes(&mut self) -> Option<&[u8]> {
        let length = usize::from(self.byte()?).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(bytes)
    }
}

/// What a command that was sent waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Answer,
    /// It may wait for ever.
    Event,
    /// Of an admin queue, whose answer names the controller.
    Controller,
}

/// A command that was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// What its SGL says.
    length: u32,
    awaited: Awaited,
}

/// Data that the target asked for.
#[derive(Clone, Copy, Debug)]
struct Request {
    command: u16,
    tag: u16,
    sent: u32,
    length: u32,
}

/// One connection of the host.
struct Connection {
    stream: Pipe,
    decoder: Decoder,
    encoder: Encoder,
    /// What its ICReq asked for.
    asked: Encoder,
    next: u16,
    outstanding: BTreeMap<u16, Vec<Sent>>,
    requests: VecDeque<Request>,
    controller: Option<u16>,
    identity: Identity,
    /// The target has not ended it.
    open: bool,
    /// Only whole PDUs were sent, so that answers can be counted.
    orderly: bool,
    /// Two commands may have one identifier, so that which of them is meant cannot be told.
    ambiguous: bool,
}

impl Connection {
    fn new(stream: Pipe) -> Self {
        let limits = Limits { in_capsule: 0, data: 4 << 20 };
        Self {
            stream,
            decoder: Decoder::new(Role::Host, limits),
            encoder: Encoder::default(),
            asked: Encoder::default(),
            next: 0,
            outstanding: BTreeMap::new(),
            requests: VecDeque::new(),
            controller: None,
            identity: Identity::new(SUBSYSTEM, HOST),
            open: true,
            orderly: true,
            ambiguous: false,
        }
    }

    /// Sends bytes, or gives the connection up.
    async fn send(&mut self, reactor: &Rc<Reactor>, bytes: &[u8]) {
        if !self.open {
            return;
        }
        let mut gather = Gather::default();
        gather.bytes().extend_from_slice(bytes);
        let send = pin!(self.stream.send(gather));
        let taken = match select(send, reactor.sleep(PATIENCE)).await {
            Either::Left(((result, _), _)) => result.is_ok(),
            Either::Right(_) => false,
        };
        self.open = taken;
    }

    /// Reads what is there; whether there was anything.
    fn pump(&mut self) -> bool {
        let mut any = false;
        let mut context = Context::from_waker(Waker::noop());
        loop {
            let received = pin!(self.stream.receive(vec![0; 16 << 10])).poll(&mut context);
            let Poll::Ready((received, bytes)) = received else { return any };
            let length = received.unwrap_or(0);
            if length == 0 {
                self.open = false;
                return any;
            }
            any = true;
            self.read(&bytes[..length]);
        }
    }

    fn read(&mut self, mut input: &[u8]) {
        loop {
            let event = self.decoder.feed(&mut input).expect("the target keeps to the protocol");
            match event {
                None => return,
                Some(Event::Header(pdu)) => self.take(pdu),
                Some(Event::Data(_)) => {}
                Some(Event::End(end)) => assert_eq!(end, Data::Intact),
            }
        }
    }

    fn take(&mut self, pdu: Pdu) {
        match pdu {
            Pdu::InitializeResponse { alignment, digests, .. } => {
                assert_eq!((alignment, digests), (0, self.asked.digests));
                self.decoder.agree(digests, self.asked.alignment);
                self.encoder = Encoder { digests, alignment: 0 };
            }
            Pdu::Response(completion) => self.answered(completion),
            Pdu::ControllerData { command, offset, length, success, .. } => {
                let end = u64::from(offset) + u64::from(length);
                let known = self.is_outstanding(command, |sent| u64::from(sent.length) >= end);
                assert!(known || !self.orderly, "data that nobody asked for: {pdu:?}");
                if success {
                    let status = lvolfs::spec::status::Status::SUCCESS;
                    self.answered(CompletionEntry::new(CommandId(command), status, 0));
                }
            }
            Pdu::ReadyToTransfer { command, tag, offset, length } => {
                let known = self.is_outstanding(command, |sent| sent.length == length);
                assert!(known || !self.orderly, "asks for data of no command: {pdu:?}");
                assert!(tag > 0 && offset == 0 && length > 0, "{pdu:?}");
                self.requests.push_back(Request { command, tag, sent: 0, length });
            }
            Pdu::Terminate { .. } => self.open = false,
            other => panic!("the target sent {other:?}"),
        }
    }

    /// Whether there is a command with this identifier of which `meant` can be true.
    fn is_outstanding(&self, command: u16, meant: impl Fn(&Sent) -> bool) -> bool {
        let all = self.outstanding.get(&command);
        all.is_some_and(|all| all.iter().any(|sent| self.ambiguous || meant(sent)))
    }

    fn answered(&mut self, completion: CompletionEntry) {
        let sent = match self.outstanding.get_mut(&completion.command_id().get()) {
            Some(all) if !all.is_empty() => all.remove(0),
            _ => {
                assert!(!self.orderly, "an answer to no command: {completion:?}");
                return;
            }
        };
        if sent.awaited == Awaited::Controller && completion.status().is_success() {
            self.controller = Some(completion.result.get() as u16);
        }
    }

    /// The bytes of a command, which now is outstanding.
    fn command(
        &mut self,
        entry: SubmissionEntry,
        awaited: Awaited,
        data: Option<&[u8]>,
    ) -> Vec<u8> {
        self.next = self.next.wrapping_add(1);
        let entry = entry.with_command_id(CommandId(self.next));
        let sent = Sent { length: entry.sgl().length, awaited };
        self.outstanding.entry(self.next).or_default().push(sent);
        let data = data.unwrap_or_default();
        let mut bytes = Vec::new();
        self.encoder.header(&Pdu::Command { entry, length: data.len() as u32 }, &mut bytes);
        self.add_data(data, &mut bytes);
        bytes
    }

    fn add_data(&self, data: &[u8], bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(data);
        if !data.is_empty() && self.encoder.digests.data {
            bytes.extend(data_digest(&[data]).to_le_bytes());
        }
    }

    fn connect(&mut self, queue: QueueId, keep_alive: u32, controller: u16) -> Vec<u8> {
        let data = self.identity.data(controller);
        let length = data.as_bytes().len() as u32;
        let sgl = SglDescriptor { address: 0, length, kind: SglKind::IN_CAPSULE };
        let entry = SubmissionEntry::connect(queue, 32, 0, keep_alive).with_sgl(sgl);
        let admin = queue.get() == 0;
        let awaited = if admin { Awaited::Controller } else { Awaited::Answer };
        self.command(entry, awaited, Some(data.as_bytes()))
    }

    /// Some of the data that was asked for first.
    fn data(&mut self, limit: u32, fill: u8, intact: bool) -> Option<Vec<u8>> {
        let request = self.requests.front_mut()?;
        let length = limit.min(request.length - request.sent);
        let (command, tag, offset) = (request.command, request.tag, request.sent);
        request.sent += length;
        let last = request.sent == request.length;
        if last {
            self.requests.pop_front();
        }
        let mut bytes = Vec::new();
        self.encoder.header(&Pdu::HostData { command, tag, offset, length, last }, &mut bytes);
        self.add_data(&vec![fill; length as usize], &mut bytes);
        if !intact && self.encoder.digests.data {
            let end = bytes.len() - 1;
            bytes[end] ^= 1;
        }
        Some(bytes)
    }

    /// Commands that should have been answered.
    fn unanswered(&self) -> Vec<(u16, Sent)> {
        let all = self.outstanding.iter().flat_map(|(id, all)| all.iter().map(|sent| (*id, *sent)));
        all.filter(|(_, sent)| sent.awaited != Awaited::Event).collect()
    }
}

/// The host, and what it plays with.
struct Player<'a> {
    reactor: &'a Rc<Reactor>,
    exported: &'a Exported,
    connections: [Option<Connection>; CONNECTIONS],
}

impl Player<'_> {
    /// Lets the target do what can be done at once.
    async fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 3 {
            self.reactor.sleep(MOMENT).await;
            let open = self.connections.iter_mut().flatten();
            let any = open.fold(false, |any, connection| connection.pump() | any);
            quiet = if any { 0 } else { quiet + 1 };
        }
    }

    async fn send(&mut self, slot: usize, bytes: &[u8]) {
        if let Some(connection) = &mut self.connections[slot] {
            connection.send(self.reactor, bytes).await;
        }
    }

    /// One action; `None` at the end of the script.
    async fn act(&mut self, action: u8, script: &mut Script<'_>) -> Option<()> {
        let slot = usize::from(script.byte()?) % CONNECTIONS;
        match action % 16 {
            0 => self.open(slot, script).await?,
            1 => self.connect_admin(slot, script).await?,
            2 => self.connect_io(slot, script).await?,
            3..=7 => self.command(slot, script).await?,
            8 | 9 => {
                let (step, fill) = (u32::from(script.byte()?), script.byte()?);
                // Eight bits say all of it.
                let limit = if step == 0xff { u32::MAX } else { (step + 1) * 4096 };
                let connection = self.connections[slot].as_mut();
                let bytes = connection.and_then(|it| it.data(limit, fill, fill != 0xff));
                self.send(slot, &bytes.unwrap_or_default()).await;
            }
            10 => self.wrong_data(slot, script).await?,
            11 => {
                let bytes = script.bytes()?.to_vec();
                if let Some(connection) = &mut self.connections[slot] {
                    connection.orderly = false;
                }
                self.send(slot, &bytes).await;
            }
            12 => drop(self.connections[slot].take()),
            13 => {
                let time = Duration::from_millis(250) * u32::from(script.byte()?);
                self.reactor.sleep(time).await;
                self.settle().await;
            }
            14 => self.settle().await,
            _ => self.rest(slot, script).await?,
        }
        Some(())
    }

    /// A new connection in the place of one that there may be.
    async fn open(&mut self, slot: usize, script: &mut Script<'_>) -> Option<()> {
        let (setup, alignment) = (script.byte()?, script.byte()?);
        let mut connection = Connection::new(exported::connect(&self.exported.service));
        if setup & 4 != 0 {
            connection.identity.id = [8; 16];
        }
        if setup & 8 != 0 {
            connection.identity.host = "nqn.2026-11.io.lvolfs:stranger".to_owned();
        }
        if setup & 16 != 0 {
            connection.identity.subsystem = DISCOVERY_NQN.to_owned();
        }
        let digests = Digests::from_bits(setup & 3);
        connection.asked = Encoder { digests, alignment: alignment % (MAX_ALIGNMENT + 1) };
        self.connections[slot] = Some(connection);
        if setup & 32 == 0 {
            let alignment = alignment % (MAX_ALIGNMENT + 1);
            let hello = Pdu::InitializeRequest { alignment, digests, max_r2t: 1 };
            let mut bytes = Vec::new();
            Encoder::default().header(&hello, &mut bytes);
            self.send(slot, &bytes).await;
            self.settle().await;
        }
        Some(())
    }

    /// Connects the admin queue and enables the controller.
    async fn connect_admin(&mut self, slot: usize, script: &mut Script<'_>) -> Option<()> {
        let keep_alive = u32::from(script.byte()?) * 1000;
        let Some(connection) = &mut self.connections[slot] else { return Some(()) };
        let bytes = connection.connect(QueueId(0), keep_alive, DYNAMIC_CONTROLLER);
        self.send(slot, &bytes).await;
        self.settle().await;
        self.configure(slot, 0x0046_0001).await;
        self.settle().await;
        Some(())
    }

    async fn configure(&mut self, slot: usize, value: u32) {
        let Some(connection) = &mut self.connections[slot] else { return };
        let sgl = SglDescriptor { address: 0, length: 0, kind: SglKind::TRANSPORT };
        let entry = SubmissionEntry::property_set(register::CC, false, value.into()).with_sgl(sgl);
        let bytes = connection.command(entry, Awaited::Answer, None);
        self.send(slot, &bytes).await;
    }

    /// Connects an I/O queue to the controller of another connection.
    async fn connect_io(&mut self, slot: usize, script: &mut Script<'_>) -> Option<()> {
        let (admin, queue) = (usize::from(script.byte()?) % CONNECTIONS, script.byte()?);
        let controller = self.connections[admin].as_ref().and_then(|admin| admin.controller);
        let Some(connection) = &mut self.connections[slot] else { return Some(()) };
        let queue = QueueId(u16::from(queue % 80));
        let bytes = connection.connect(queue, 0, controller.unwrap_or(9));
        self.send(slot, &bytes).await;
        self.settle().await;
        Some(())
    }

    /// A command: opcode, flags, namespace, first block, blocks, what the SGL says, and with flags
    /// some changed bytes and some data. Flags: bits 0 and 1 are FUSE, bit 2 is FUA, bit 3 for
    /// changed bytes, bit 4 for data in the capsule, bit 5 for chosen data, bit 6 for the
    /// identifier of the command before, bit 7 for an opcode that is taken as it is.
    async fn command(&mut self, slot: usize, script: &mut Script<'_>) -> Option<()> {
        let (opcode, flags) = (script.byte()?, script.byte()?);
        let opcode = if flags >> 7 == 1 { opcode } else { OPCODES[usize::from(opcode) % 20] };
        let namespace = NAMESPACES[usize::from(script.byte()?) % NAMESPACES.len()];
        let (lba, blocks) = (script.byte()?, u32::from(script.byte()?) + 1);
        let length = LENGTHS[usize::from(script.byte()?) % LENGTHS.len()];
        let force = if flags & 4 == 0 { ForceUnitAccess::No } else { ForceUnitAccess::Yes };
        let entry = SubmissionEntry::write(NamespaceId(namespace), Lba(lba.into()), blocks, force);
        let mut raw = *entry.bytes();
        raw[0] = opcode;
        raw[1] = flags & 3;
        if flags & 8 != 0 {
            for change in script.bytes()?.chunks_exact(2) {
                raw[40 + usize::from(change[0]) % 24] = change[1];
            }
        }
        let length = match (length, opcode) {
            (0, 0x01 | 0x02 | 0x05) => blocks * BLOCK as u32,
            (0, 0x06 | 0x19) => BLOCK as u32,
            (0, 0x09) => (u32::from(lba) + 1) * 16,
            (0, 0x0d | 0x0e | 0x11 | 0x15) => 16,
            (length, _) => length,
        };
        let mut data = Vec::new();
        if flags & 16 != 0 && length as usize <= IN_CAPSULE {
            data.resize(length as usize, lba);
        }
        if flags & 32 != 0 {
            let chosen = script.bytes()?;
            let chosen = &chosen[..chosen.len().min(data.len())];
            data[..chosen.len()].copy_from_slice(chosen);
        }
        let Some(connection) = &mut self.connections[slot] else { return Some(()) };
        let kind = if data.is_empty() { SglKind::TRANSPORT } else { SglKind::IN_CAPSULE };
        let entry = SubmissionEntry::read_from_bytes(&raw).unwrap();
        let entry = entry.with_sgl(SglDescriptor { address: 0, length, kind });
        if flags & 64 != 0 {
            connection.next = connection.next.wrapping_sub(1);
            connection.ambiguous = true;
        }
        let admin = connection.controller.is_some();
        let event = admin && entry.admin_opcode() == AdminOpcode::ASYNC_EVENT_REQUEST;
        let awaited = if event { Awaited::Event } else { Awaited::Answer };
        let bytes = connection.command(entry, awaited, Some(&data));
        self.send(slot, &bytes).await;
        Some(())
    }

    /// Data that nobody asked for.
    async fn wrong_data(&mut self, slot: usize, script: &mut Script<'_>) -> Option<()> {
        let (command, tag) = (script.half()?, u16::from(script.byte()?));
        let (offset, length) = (u32::from(script.byte()?) * 512, u32::from(script.byte()?));
        let Some(connection) = &mut self.connections[slot] else { return Some(()) };
        // It may be right by chance.
        connection.orderly = false;
        let last = length & 1 == 0;
        let length = (length + 1) * 128;
        let mut bytes = Vec::new();
        let pdu = Pdu::HostData { command, tag, offset, length, last };
        connection.encoder.header(&pdu, &mut bytes);
        connection.add_data(&vec![1; length as usize], &mut bytes);
        self.send(slot, &bytes).await;
        Some(())
    }

    /// What is rare.
    async fn rest(&mut self, slot: usize, script: &mut Script<'_>) -> Option<()> {
        let what = script.byte()?;
        match what % 8 {
            // Reset, shutdown, enabled again.
            0 => self.configure(slot, 0x0046_0000).await,
            1 => self.configure(slot, 0x0046_4001).await,
            2 => self.configure(slot, 0x0046_0001).await,
            3 => {
                let (queue, command) = (QueueId(u16::from(script.byte()? % 4)), script.half()?);
                let Some(connection) = &mut self.connections[slot] else { return Some(()) };
                let sgl = SglDescriptor { address: 0, length: 0, kind: SglKind::TRANSPORT };
                let entry = SubmissionEntry::abort(queue, CommandId(command)).with_sgl(sgl);
                let bytes = connection.command(entry, Awaited::Answer, None);
                self.send(slot, &bytes).await;
            }
            4 => {
                let mut bytes = Vec::new();
                pdu::terminate(Role::Host, u16::from(script.byte()?), 0, &[], &mut bytes);
                self.send(slot, &bytes).await;
            }
            // What is exported changes under the host.
            5 => {
                let model = &self.exported.model;
                let second = NamespaceId(2);
                if model.remove_namespace(SUBSYSTEM, second).is_err() {
                    let entry = &self.exported.volumes[1];
                    let new = NewNamespace::of("p", entry.uuid(), Some(entry.key()));
                    let new = NewNamespace { id: Some(second), ..new };
                    model.add_namespace(SUBSYSTEM, new).unwrap();
                }
            }
            6 | 7 => {
                let state = match what % 8 {
                    6 => AnaState::Inaccessible,
                    _ => AnaState::Optimized,
                };
                self.exported.model.set_ana_state(SUBSYSTEM, local(), None, state).unwrap();
            }
            _ => unreachable!("a number below eight"),
        }
        Some(())
    }

    /// Sends everything that was asked for; then every command must be answered.
    async fn finish(&mut self) {
        // Each round answers at least one request, and there are fewer commands than that.
        for _ in 0..ACTIONS {
            self.settle().await;
            let mut any = false;
            for slot in 0..CONNECTIONS {
                while let Some(connection) = &mut self.connections[slot]
                    && connection.open
                    && let Some(bytes) = connection.data(u32::MAX, 0, true)
                {
                    any = true;
                    self.send(slot, &bytes).await;
                }
            }
            if !any {
                break;
            }
        }
        // A first half still waits for the second one: it gets something else.
        for slot in 0..CONNECTIONS {
            self.configure(slot, 0x0046_0001).await;
        }
        self.settle().await;
        let waits = |connection: &Connection| {
            connection.open && connection.orderly && !connection.unanswered().is_empty()
        };
        if self.connections.iter().flatten().any(waits) {
            self.reactor.sleep(MEMORY_PATIENCE).await;
            self.settle().await;
        }
        for (slot, connection) in self.connections.iter().enumerate() {
            if let Some(connection) = connection.as_ref().filter(|connection| waits(connection)) {
                panic!("connection {slot}: not answered: {:?}", connection.unanswered());
            }
        }
    }
}

/// What a thread's inputs share.
struct Bench {
    reactor: Rc<Reactor>,
    arena: DmaArena,
}

thread_local! {
    static BENCH: Bench = Bench {
        reactor: Reactor::new(ReactorOptions::deterministic()).unwrap(),
        arena: DmaArena::new(MEMORY, false).unwrap(),
    };
}

/// A sequence of what hosts do.
pub(crate) fn commands(input: &[u8]) {
    BENCH.with(|bench| {
        let before = bench.arena.free();
        bench.reactor.block_on(bench.run(input));
        assert_eq!(bench.arena.free(), before, "memory that the pool has kept");
    });
}

impl Bench {
    async fn run(&self, input: &[u8]) {
        let Self { reactor, arena } = self;
        let device = AnyDevice::Memory(MemoryDevice::new(DISK, BlockSize::B4096));
        let layout = LayoutOptions { cluster_size: CLUSTER, ..Default::default() };
        let options = FormatOptions { name: "p".into(), uuid: None, layout };
        let channel = device.channel(reactor, arena).unwrap();
        Store::format(&channel, arena, &options).await.unwrap();
        let store = Store::open(channel.clone(), reactor, arena).await.unwrap();
        let remote = store.remote().unwrap();
        let directory = Directory::default();
        let defaults = Attributes::new(0o600, 0, 0);
        let (owner, pool) = PoolOwner::open(reactor, store, &directory, defaults).await.unwrap();
        let (directory, pool) = (&directory, &pool);
        let source = Source { reactor, arena, directory, pool, store: remote, channel };
        let exported = Exported::new(source, &["one", "two"], VOLUME).await;
        let new = NewVolume {
            name: "three".to_owned(),
            size: VOLUME,
            thin: true,
            uuid: None,
            attributes: None,
        };
        let third = exported.catalog.create(pool, new).await.unwrap();
        let new = NewNamespace::of("p", third.uuid(), Some(third.key()));
        let new = NewNamespace { visible_to_all: false, ..new };
        let third = exported.model.add_namespace(SUBSYSTEM, new).unwrap();
        assert_eq!(third, FRESH_NAMESPACE);
        exported.model.add_host(SUBSYSTEM, FRESH).unwrap();
        exported.model.set_visible(SUBSYSTEM, third, FRESH, true).unwrap();
        self.fresh_host(&exported, 1).await;
        let free = arena.free();

        let mut script = Script(input);
        let connections = Default::default();
        let mut player = Player { reactor, exported: &exported, connections };
        for _ in 0..ACTIONS {
            let Some(action) = script.byte() else { break };
            if player.act(action, &mut script).await.is_none() {
                break;
            }
        }
        player.finish().await;
        drop(player);
        self.gone(&exported).await;
        assert_eq!(arena.free(), free, "memory that the target has kept");
        exported.model.set_ana_state(SUBSYSTEM, local(), None, AnaState::Optimized).unwrap();
        self.fresh_host(&exported, 2).await;
        exported.service.drain().await;
        drop(exported);
        owner.close(pool).await.unwrap();
    }

    /// A host that finds all in order.
    async fn fresh_host(&self, exported: &Exported, round: u8) {
        let identity = Identity { id: [9; 16], ..Identity::new(SUBSYSTEM, FRESH) };
        let connect = || exported::connect(&exported.service);
        let mut admin = Host::initialize(connect(), Digests::default(), 0).await;
        let id = admin.connect_admin(&identity, 15_000).await;
        let mut io = Host::initialize(connect(), Digests::default(), 0).await;
        io.connect_io(&identity, id, 1, 32, true).await.ok();
        let data = vec![round; 4 * BLOCK];
        let lba = Lba(round.into());
        let write = SubmissionEntry::write(FRESH_NAMESPACE, lba, 4, ForceUnitAccess::No);
        io.run(write, &data, 0).await.ok();
        io.plain(SubmissionEntry::flush(FRESH_NAMESPACE)).await.ok();
        let read = SubmissionEntry::read(FRESH_NAMESPACE, lba, 4);
        let found = io.run(read, &[], 4 * BLOCK as u32).await.ok();
        assert!(found.data == data, "what a fresh host wrote");
        drop((admin, io));
        self.gone(exported).await;
    }

    /// Waits until no connection is left.
    async fn gone(&self, exported: &Exported) {
        let deadline = self.reactor.now().after(PATIENCE);
        while exported.service.connections() > 0 && self.reactor.now() < deadline {
            self.reactor.sleep(MOMENT).await;
        }
        assert_eq!(exported.service.connections(), 0, "connections that their host has left");
        assert!(exported.target.controllers().is_empty(), "controllers without a connection");
    }
}
