//! A host for tests and benches: drives one queue of the target, and can be as rude as a test
//! wants. Made of the target's own codec, whose bytes are held against the specification by
//! number in its unit tests.

#![allow(dead_code, clippy::allow_attributes, reason = "the benches use a part of it")]

use std::collections::HashMap;

use lvolfs::nvmf::pdu::{Data, Decoder, Digests, Encoder, Event, Limits, Pdu, Role, data_digest};
use lvolfs::nvmf::stream::Stream;
use lvolfs::reactor::Gather;
use lvolfs::spec::command::SubmissionEntry;
use lvolfs::spec::completion::CompletionEntry;
use lvolfs::spec::fabrics::{
    CONNECT_NO_FLOW_CONTROL, ConnectData, DYNAMIC_CONTROLLER, SglDescriptor, SglKind, fill_nqn,
};
use lvolfs::spec::register;
use lvolfs::spec::status::{Status, StatusCode};
use lvolfs::units::{CommandId, QueueId};
use zerocopy::{FromZeros, IntoBytes};

/// What is received at once.
const RECEIVE: usize = 256 << 10;
/// The most data that a capsule of this host has.
pub(crate) const IN_CAPSULE: usize = 8192;

/// Who connects, and to what.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) subsystem: String,
    pub(crate) host: String,
    pub(crate) id: [u8; 16],
}

impl Identity {
    pub(crate) fn new(subsystem: &str, host: &str) -> Self {
        Self { subsystem: subsystem.to_owned(), host: host.to_owned(), id: [7; 16] }
    }

    pub(crate) fn data(&self, controller: u16) -> ConnectData {
        let mut data = ConnectData::new_zeroed();
        data.host_id = self.id;
        data.controller_id.set(controller);
        fill_nqn(&mut data.subsystem_nqn, &self.subsystem);
        fill_nqn(&mut data.host_nqn, &self.host);
        data
    }
}

/// The answer to a command.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) completion: CompletionEntry,
    pub(crate) data: Vec<u8>,
}

impl Answer {
    pub(crate) fn status(&self) -> Status {
        self.completion.status()
    }

    pub(crate) fn result(&self) -> u32 {
        self.completion.result.get()
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert!(self.status().is_success(), "{}", self.status());
        self
    }

    #[track_caller]
    pub(crate) fn is(&self, code: StatusCode) {
        assert!(self.status().is(code), "{} and not {code}", self.status());
    }
}

/// A command under way.
#[derive(Default)]
struct Pending {
    /// What is still to be sent on request.
    payload: Vec<u8>,
    data: Vec<u8>,
}

/// One queue.
pub(crate) struct Host<S> {
    pub(crate) stream: S,
    pub(crate) decoder: Decoder,
    pub(crate) encoder: Encoder,
    input: Vec<u8>,
    start: usize,
    end: usize,
    gather: Option<Gather>,
    pending: HashMap<u16, Pending>,
    next: u16,
    /// Where H2CData is cut.
    pub(crate) max_data: usize,
    /// The PDU that ended the connection.
    pub(crate) terminated: Option<(u16, u32)>,
}

impl<S: Stream> Host<S> {
    /// A host that has sent nothing yet.
    pub(crate) fn silent(stream: S) -> Self {
        let limits = Limits { in_capsule: 0, data: 4 << 20 };
        Self {
            stream,
            decoder: Decoder::new(Role::Host, limits),
            encoder: Encoder::default(),
            input: vec![0; RECEIVE],
            start: 0,
            end: 0,
            gather: Some(Gather::default()),
            pending: HashMap::new(),
            next: 0,
            max_data: 64 << 10,
            terminated: None,
        }
    }

    /// A host that has initialized its connection.
    pub(crate) async fn initialize(stream: S, digests: Digests, alignment: u8) -> Self {
        let mut host = Self::silent(stream);
        let mut bytes = Vec::new();
        let request = Pdu::InitializeRequest { alignment, digests, max_r2t: 1 };
        Encoder::default().header(&request, &mut bytes);
        host.send(&bytes).await;
        match host.receive().await {
            Some((Pdu::InitializeResponse { alignment: ours, digests: agreed, max_data }, ..)) => {
                assert_eq!(agreed, digests);
                assert_eq!(ours, 0, "hosts insist");
                assert!(max_data >= 4096 && max_data.is_multiple_of(4));
            }
            other => panic!("no ICResp: {other:?}"),
        }
        host.decoder.agree(digests, alignment);
        host.encoder = Encoder { digests, alignment: 0 };
        host
    }

    /// Sends bytes as they are.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let mut gather = self.gather.take().unwrap_or_default();
        gather.bytes().extend_from_slice(bytes);
        let (_, gather) = self.stream.send(gather).await;
        self.gather = Some(gather);
    }

    /// The next PDU with its data; `None` when the target has closed.
    pub(crate) async fn receive(&mut self) -> Option<(Pdu, Vec<u8>, Data)> {
        let (mut pdu, mut data) = (None, Vec::new());
        loop {
            let mut input = &self.input[self.start..self.end];
            let before = input.len();
            let event = self.decoder.feed(&mut input).expect("the target keeps to the protocol");
            let consumed = before - input.len();
            let done = match event {
                Some(Event::Header(header)) => {
                    pdu = Some(header);
                    (header.data_length() == 0).then_some(Data::Intact)
                }
                Some(Event::Data(piece)) => {
                    data.extend_from_slice(piece);
                    None
                }
                Some(Event::End(end)) => Some(end),
                None => {
                    let (received, bytes) =
                        self.stream.receive(std::mem::take(&mut self.input)).await;
                    self.input = bytes;
                    (self.start, self.end) = (0, received.unwrap_or(0));
                    if self.end == 0 {
                        return None;
                    }
                    continue;
                }
            };
            self.start += consumed;
            if let (Some(end), Some(pdu)) = (done, pdu) {
                if let Pdu::Terminate { status, information } = pdu {
                    self.terminated = Some((status, information));
                }
                return Some((pdu, data, end));
            }
        }
    }

    /// Whether something was received that was not looked at yet.
    pub(crate) fn has_input(&self) -> bool {
        self.start < self.end
    }

    /// An identifier for the next command.
    pub(crate) fn command_id(&mut self) -> CommandId {
        self.next = (self.next + 1) % 0x7fff;
        CommandId(self.next)
    }

    /// The bytes of a command, with `data` in the capsule if there is room, else kept until it is
    /// asked for; `room` is what the host takes of what is read.
    pub(crate) fn capsule(
        &mut self,
        entry: SubmissionEntry,
        data: &[u8],
        room: u32,
        in_capsule: bool,
    ) -> (CommandId, Vec<u8>) {
        let id = self.command_id();
        let inside = in_capsule && !data.is_empty() && data.len() <= IN_CAPSULE;
        let kind = if inside { SglKind::IN_CAPSULE } else { SglKind::TRANSPORT };
        let length = if data.is_empty() { room } else { data.len() as u32 };
        let entry = entry.with_command_id(id).with_sgl(SglDescriptor { address: 0, length, kind });
        let length = if inside { data.len() as u32 } else { 0 };
        let mut bytes = Vec::with_capacity(72 + data.len());
        self.encoder.header(&Pdu::Command { entry, length }, &mut bytes);
        if inside {
            bytes.extend_from_slice(data);
            if self.encoder.digests.data {
                bytes.extend(data_digest(&[data]).to_le_bytes());
            }
        }
        let payload = if inside { Vec::new() } else { data.to_vec() };
        self.pending.insert(id.get(), Pending { payload, data: Vec::new() });
        (id, bytes)
    }

    /// Sends a command.
    pub(crate) async fn submit(
        &mut self,
        entry: SubmissionEntry,
        data: &[u8],
        room: u32,
    ) -> CommandId {
        let (id, bytes) = self.capsule(entry, data, room, true);
        self.send(&bytes).await;
        id
    }

    /// Sends what the target asks for until it answers a command, whichever.
    pub(crate) async fn complete(&mut self) -> Option<Answer> {
        loop {
            let (pdu, data, intact) = self.receive().await?;
            assert_eq!(intact, Data::Intact);
            match pdu {
                Pdu::Response(completion) => return Some(self.answer(completion)),
                Pdu::ControllerData { command, offset, length, success, .. } => {
                    let pending = self.pending.get_mut(&command).expect("data of no command");
                    assert_eq!(
                        (offset as usize, length as usize),
                        (pending.data.len(), data.len())
                    );
                    pending.data.extend(data);
                    if success {
                        let id = CommandId(command);
                        let completion = CompletionEntry::new(id, Status::SUCCESS, 0);
                        return Some(self.answer(completion));
                    }
                }
                Pdu::ReadyToTransfer { command, tag, offset, length } => {
                    assert_ne!(tag, 0, "tags count from one");
                    self.send_data(command, tag, offset as usize, length as usize).await;
                }
                Pdu::Terminate { .. } => return None,
                other => panic!("the target sent {other:?}"),
            }
        }
    }

    fn answer(&mut self, completion: CompletionEntry) -> Answer {
        let id = completion.command_id().get();
        let pending = self.pending.remove(&id).expect("the answer to no command");
        Answer { completion, data: pending.data }
    }

    async fn send_data(&mut self, command: u16, tag: u16, offset: usize, length: usize) {
        let pending = self.pending.get(&command).expect("asked for the data of no command");
        let payload = pending.payload[offset..offset + length].to_vec();
        let mut bytes = Vec::new();
        let chunks = payload.len().div_ceil(self.max_data);
        for (index, chunk) in payload.chunks(self.max_data).enumerate() {
            let pdu = Pdu::HostData {
                command,
                tag,
                offset: (offset + index * self.max_data) as u32,
                length: chunk.len() as u32,
                last: index + 1 == chunks,
            };
            self.encoder.header(&pdu, &mut bytes);
            bytes.extend_from_slice(chunk);
            if self.encoder.digests.data {
                bytes.extend(data_digest(&[chunk]).to_le_bytes());
            }
        }
        self.send(&bytes).await;
    }

    /// Runs one command. Answers to others that come first are a mistake of the test.
    #[track_caller]
    pub(crate) fn run<'a>(
        &'a mut self,
        entry: SubmissionEntry,
        data: &'a [u8],
        room: u32,
    ) -> impl Future<Output = Answer> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let id = self.submit(entry, data, room).await;
            match self.complete().await {
                Some(answer) => {
                    assert_eq!(answer.completion.command_id(), id, "{caller}");
                    answer
                }
                None => panic!("{caller}: disconnected: {:?}", self.terminated),
            }
        }
    }

    /// A command without data.
    #[track_caller]
    pub(crate) fn plain(&mut self, entry: SubmissionEntry) -> impl Future<Output = Answer> + '_ {
        self.run(entry, &[], 0)
    }

    /// Connects the admin queue and enables the controller; its identifier.
    pub(crate) async fn connect_admin(&mut self, identity: &Identity, keep_alive: u32) -> u16 {
        let entry = SubmissionEntry::connect(QueueId(0), 32, 0, keep_alive);
        let data = identity.data(DYNAMIC_CONTROLLER);
        let id = self.run(entry, data.as_bytes(), 0).await.ok().result() as u16;
        self.set_configuration(0x0046_0001).await;
        assert_eq!(self.property(register::CSTS).await & 1, 1, "ready");
        id
    }

    /// Connects an I/O queue.
    pub(crate) async fn connect_io(
        &mut self,
        identity: &Identity,
        controller: u16,
        queue: u16,
        entries: u32,
        flow_control: bool,
    ) -> Answer {
        let attributes = if flow_control { 0 } else { CONNECT_NO_FLOW_CONTROL };
        let entry = SubmissionEntry::connect(QueueId(queue), entries, attributes, 0);
        self.run(entry, identity.data(controller).as_bytes(), 0).await
    }

    pub(crate) async fn property(&mut self, offset: u32) -> u32 {
        self.plain(SubmissionEntry::property_get(offset, false)).await.ok().result()
    }

    pub(crate) async fn set_configuration(&mut self, value: u32) {
        let entry = SubmissionEntry::property_set(register::CC, false, value.into());
        self.plain(entry).await.ok();
    }

    /// Waits until the target closes; what it said before.
    pub(crate) async fn end(&mut self) -> Option<(u16, u32)> {
        while self.receive().await.is_some() {}
        self.terminated
    }
}
