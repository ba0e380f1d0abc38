//! Reading PDUs: bytes in, in whatever pieces they come, headers and data out.
//!
//! The decoder owns room for one header and nothing else: data is handed on as it comes, so that
//! it can be put (or received) where it belongs. All that a header alone can be wrong about is
//! found here; what depends on commands under way is the queue's.

use zerocopy::FromBytes;

use super::{
    COMMON_HEADER, DIGEST, Digests, FatalStatus, Fault, MAX_ALIGNMENT, MAX_HEADER, MAX_TERMINATE,
    Pdu, flag, kind, pad_digest,
};
use crate::spec::command::SubmissionEntry;
use crate::spec::completion::CompletionEntry;

/// Which end of the connection reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The controller reads what hosts send.
    Controller,
    /// The host reads what controllers send.
    Host,
}

/// The most data that one PDU may carry.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// In a command capsule.
    pub in_capsule: u32,
    /// In an H2CData or C2HData.
    pub data: u32,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole header. If the PDU has data, [`Event::Data`]s follow and one [`Event::End`].
    Header(Pdu),
    /// Some of the data.
    Data(&'a [u8]),
    /// The data is complete.
    End(Data),
}

/// Whether data is what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// There is no digest, or it matches.
    Intact,
    /// The digest does not match.
    Corrupt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Collecting the common header, then the header and what stands before the data.
    Header,
    Data,
    Digest,
    /// Collecting what a terminating PDU carries behind its header, which tells nothing more.
    Copy,
}

/// The reading end of a connection.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    limits: Limits,
    digests: Digests,
    /// CPDA or HPDA: what this end asked for.
    alignment: u8,
    initialized: bool,
    state: State,
    bytes: [u8; 256],
    /// How many bytes of the header, or of the digest, are there.
    have: usize,
    digest: [u8; DIGEST],
    /// How many bytes the header has with digest and padding; 0 until the common header is there.
    want: usize,
    left: usize,
    data: usize,
    crc: u32,
}

impl Decoder {
    /// A decoder for a connection on which nothing was read yet.
    #[must_use]
    pub fn new(role: Role, limits: Limits) -> Self {
        Self {
            role,
            limits,
            digests: Digests::default(),
            alignment: 0,
            initialized: false,
            state: State::Header,
            bytes: [0; 256],
            have: 0,
            digest: [0; DIGEST],
            want: 0,
            left: 0,
            data: 0,
            crc: 0,
        }
    }

    /// What ICReq and ICResp agreed on, for the PDUs that follow. `alignment` is what this end
    /// asked its peer for.
    pub fn agree(&mut self, digests: Digests, alignment: u8) {
        self.digests = digests;
        self.alignment = alignment;
    }

    /// The header that was read last, or as much of it as there is: for the PDU that ends the
    /// connection.
    #[must_use]
    pub fn last_header(&self) -> &[u8] {
        let whole = usize::from(self.bytes[2]).min(MAX_HEADER);
        let incomplete = self.state == State::Header && self.have > 0;
        &self.bytes[..if incomplete { whole.min(self.have) } else { whole }]
    }

    /// How many bytes of data are still to come of the PDU whose header was read last.
    #[must_use]
    pub fn data_left(&self) -> usize {
        if self.state == State::Data { self.left } else { 0 }
    }

    /// Data that did not pass [`Decoder::feed`], but was received where it belongs; at most
    /// [`Decoder::data_left`] bytes. Returns the end of the data, if it needs no digest.
    pub fn received(&mut self, data: &[u8]) -> Option<Data> {
        assert!(data.len() <= self.data_left(), "more data than the PDU has");
        self.advance(data);
        if self.state == State::Header { Some(Data::Intact) } else { None }
    }

    /// Reads the next event from `input`, which is advanced. `None`: more bytes are needed.
    ///
    /// # Errors
    /// The connection cannot go on; nothing more may be read.
    pub fn feed<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Fault> {
        loop {
            match self.state {
                State::Header => {
                    let want = if self.want == 0 { COMMON_HEADER } else { self.want };
                    if !self.collect(input, want) {
                        return Ok(None);
                    }
                    if self.want == 0 {
                        self.want = self.check_common()?;
                        continue;
                    }
                    let pdu = self.check_header()?;
                    self.want = 0;
                    return Ok(Some(Event::Header(pdu)));
                }
                State::Data => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let (data, rest) = input.split_at(self.left.min(input.len()));
                    *input = rest;
                    self.advance(data);
                    if self.state == State::Header {
                        // No digest: the end is reported by the next call, without input.
                        self.state = State::Digest;
                        self.left = 0;
                    }
                    return Ok(Some(Event::Data(data)));
                }
                State::Digest => {
                    let step = (self.left - self.have).min(input.len());
                    let (now, later) = input.split_at(step);
                    self.digest[self.have..self.have + step].copy_from_slice(now);
                    *input = later;
                    self.have += step;
                    if self.have < self.left {
                        return Ok(None);
                    }
                    self.state = State::Header;
                    self.have = 0;
                    let intact = self.left == 0
                        || self.digest == pad_digest(self.crc, self.data).to_le_bytes();
                    let data = if intact { Data::Intact } else { Data::Corrupt };
                    return Ok(Some(Event::End(data)));
                }
                State::Copy => {
                    let step = self.left.min(input.len());
                    *input = &input[step..];
                    self.left -= step;
                    if self.left > 0 {
                        return Ok(None);
                    }
                    self.state = State::Header;
                }
            }
        }
    }

    /// Moves bytes from `input` to the header until there are `want`.
    fn collect(&mut self, input: &mut &[u8], want: usize) -> bool {
        let step = want.saturating_sub(self.have).min(input.len());
        let (now, later) = input.split_at(step);
        self.bytes[self.have..self.have + step].copy_from_slice(now);
        *input = later;
        self.have += step;
        self.have >= want
    }

    fn advance(&mut self, data: &[u8]) {
        if self.digests.data {
            self.crc = crc32c::crc32c_append(self.crc, data);
        }
        self.left -= data.len();
        if self.left > 0 {
            return;
        }
        self.have = 0;
        if self.digests.data {
            self.state = State::Digest;
            self.left = DIGEST;
        } else {
            self.state = State::Header;
        }
    }

    /// Checks the common header; returns how many bytes stand before the data.
    fn check_common(&self) -> Result<usize, Fault> {
        let [kind, flags, header, offset, ..] = self.bytes;
        let total = self.total();
        let expected = match (self.role, kind) {
            (Role::Controller, kind::INITIALIZE_REQUEST)
            | (Role::Host, kind::INITIALIZE_RESPONSE) => 128,
            (Role::Controller, kind::COMMAND) => 72,
            (Role::Controller, kind::HOST_TERMINATE | kind::HOST_DATA)
            | (
                Role::Host,
                kind::CONTROLLER_TERMINATE
                | kind::RESPONSE
                | kind::CONTROLLER_DATA
                | kind::READY_TO_TRANSFER,
            ) => 24,
            _ => return Err(Fault::field(0, "a PDU of a type that does not exist here")),
        };
        let initialize = matches!(kind, kind::INITIALIZE_REQUEST | kind::INITIALIZE_RESPONSE);
        let terminate = matches!(kind, kind::HOST_TERMINATE | kind::CONTROLLER_TERMINATE);
        if initialize && self.initialized {
            return Err(Fault::new(FatalStatus::SequenceError, "initialized a second time"));
        }
        if !initialize && !self.initialized && !terminate {
            return Err(Fault::new(FatalStatus::SequenceError, "a PDU before initialization"));
        }
        if header != expected {
            return Err(Fault::field(2, "HLEN is not the length of this header"));
        }
        let header = usize::from(header);
        if initialize {
            return if total == header { Ok(header) } else { Err(PLEN) };
        }
        if terminate {
            return if (header..=MAX_TERMINATE).contains(&total) { Ok(header) } else { Err(PLEN) };
        }
        if (flags & flag::HEADER_DIGEST != 0) != self.digests.header {
            return Err(Fault::field(1, "the header digest flag is not what was agreed"));
        }
        let header = header + if self.digests.header { DIGEST } else { 0 };
        let carries = matches!(kind, kind::COMMAND | kind::HOST_DATA | kind::CONTROLLER_DATA);
        if total == header && kind != kind::HOST_DATA && kind != kind::CONTROLLER_DATA {
            return Ok(header);
        }
        if !carries || total < header {
            return Err(PLEN);
        }
        let offset = usize::from(offset);
        let unit = (usize::from(self.alignment) + 1) * 4;
        if offset < header || !offset.is_multiple_of(unit) {
            return Err(Fault::field(3, "PDO is inside of the header, or not aligned"));
        }
        if (flags & flag::DATA_DIGEST != 0) != self.digests.data {
            return Err(Fault::field(1, "the data digest flag is not what was agreed"));
        }
        let digest = if self.digests.data { DIGEST } else { 0 };
        let Some(data) = total.checked_sub(offset + digest).filter(|data| *data > 0) else {
            return Err(PLEN);
        };
        let limit = if kind == kind::COMMAND { self.limits.in_capsule } else { self.limits.data };
        if data > limit as usize {
            return Err(Fault::new(
                FatalStatus::DataLimitExceeded,
                "more data than a PDU may carry here",
            ));
        }
        Ok(offset)
    }

    /// PLEN.
    fn total(&self) -> usize {
        self.word(4) as usize
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes([
            self.bytes[at],
            self.bytes[at + 1],
            self.bytes[at + 2],
            self.bytes[at + 3],
        ])
    }

    fn half(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// Checks the header as a whole, and begins its data.
    fn check_header(&mut self) -> Result<Pdu, Fault> {
        let [kind, flags, header, offset, ..] = self.bytes;
        let header = usize::from(header);
        let terminate = matches!(kind, kind::HOST_TERMINATE | kind::CONTROLLER_TERMINATE);
        if self.digests.header && !terminate {
            let received = self.word(header);
            if crc32c::crc32c(&self.bytes[..header]) != received {
                return Err(Fault {
                    status: FatalStatus::HeaderDigest,
                    information: received,
                    what: "the header digest does not match",
                });
            }
        }
        let digest = if self.digests.data { DIGEST } else { 0 };
        let data = match offset {
            0 => 0,
            _ if terminate => 0,
            offset => self.total().saturating_sub(usize::from(offset) + digest),
        };
        // A capsule without data may still name an offset.
        let has_data = self.total() > header + if self.digests.header { DIGEST } else { 0 };
        let length = if has_data && !terminate { data as u32 } else { 0 };
        let last = flags & flag::LAST != 0;
        let pdu = match kind {
            kind::INITIALIZE_REQUEST => {
                self.check_initialize()?;
                Pdu::InitializeRequest {
                    alignment: self.bytes[10],
                    digests: Digests::from_bits(self.bytes[11]),
                    max_r2t: self.word(12).saturating_add(1),
                }
            }
            kind::INITIALIZE_RESPONSE => {
                self.check_initialize()?;
                Pdu::InitializeResponse {
                    alignment: self.bytes[10],
                    digests: Digests::from_bits(self.bytes[11]),
                    max_data: self.word(12),
                }
            }
            kind::HOST_TERMINATE | kind::CONTROLLER_TERMINATE => {
                let status = self.half(8);
                if self.role == Role::Controller && !(1..=6).contains(&status) {
                    return Err(Fault::field(8, "a terminating PDU with an unknown status"));
                }
                Pdu::Terminate { status, information: self.word(10) }
            }
            kind::COMMAND => match SubmissionEntry::read_from_bytes(&self.bytes[8..72]) {
                Ok(entry) => Pdu::Command { entry, length },
                Err(_) => unreachable!("an entry has 64 bytes"),
            },
            kind::RESPONSE => match CompletionEntry::read_from_bytes(&self.bytes[8..24]) {
                Ok(entry) => Pdu::Response(entry),
                Err(_) => unreachable!("an entry has 16 bytes"),
            },
            kind::READY_TO_TRANSFER => Pdu::ReadyToTransfer {
                command: self.half(8),
                tag: self.half(10),
                offset: self.word(12),
                length: self.word(16),
            },
            _ => {
                if self.word(16) != length {
                    return Err(Fault::field(16, "DATAL is not the length of the data"));
                }
                let (command, offset) = (self.half(8), self.word(12));
                if kind == kind::HOST_DATA {
                    Pdu::HostData { command, tag: self.half(10), offset, length, last }
                } else {
                    let success = flags & flag::SUCCESS != 0;
                    Pdu::ControllerData { command, offset, length, last, success }
                }
            }
        };
        self.begin_data(terminate, header, length as usize);
        Ok(pdu)
    }

    fn begin_data(&mut self, terminate: bool, header: usize, length: usize) {
        self.data = length;
        self.left = length;
        self.crc = 0;
        if terminate {
            self.left = self.total() - header;
            self.state = State::Copy;
        } else if length > 0 {
            self.state = State::Data;
            return;
        }
        self.have = 0;
    }

    fn check_initialize(&mut self) -> Result<(), Fault> {
        if self.half(8) != 0 {
            return Err(Fault::field(8, "a PDU format version that does not exist"));
        }
        if self.bytes[10] > MAX_ALIGNMENT {
            return Err(Fault::field(10, "a data alignment above 128 bytes"));
        }
        self.initialized = true;
        Ok(())
    }
}

const PLEN: Fault = Fault::field(4, "PLEN is not the length of such a PDU");
