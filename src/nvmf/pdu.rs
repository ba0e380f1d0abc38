//! NVMe/TCP protocol data units (TCP Transport 3.6): what they are, and how they are written.
//!
//! Pure bytes: no socket here. [`Decoder`] reads what a peer sent, in whatever pieces it came.
//! Every PDU starts with a common header of eight bytes: type @0, flags @1, HLEN @2, PDO @3,
//! PLEN @4. Then the rest of the header, a header digest, padding up to PDO, data, a data digest.

mod decoder;

use zerocopy::IntoBytes;

use crate::spec::command::SubmissionEntry;
use crate::spec::completion::CompletionEntry;
pub use decoder::{Data, Decoder, Event, Limits, Role};

/// Bytes of the common header.
pub const COMMON_HEADER: usize = 8;
/// Bytes of a digest.
pub const DIGEST: usize = 4;
/// The longest header: those of ICReq and ICResp.
pub const MAX_HEADER: usize = 128;
/// The longest PDU that ends a connection.
pub const MAX_TERMINATE: usize = 152;
/// The largest HPDA or CPDA: data at multiples of 128 bytes.
pub const MAX_ALIGNMENT: u8 = 31;

/// Types of PDUs.
pub mod kind {
    /// Initialize Connection Request.
    pub const INITIALIZE_REQUEST: u8 = 0x00;
    /// Initialize Connection Response.
    pub const INITIALIZE_RESPONSE: u8 = 0x01;
    /// Host to Controller Terminate Connection Request.
    pub const HOST_TERMINATE: u8 = 0x02;
    /// Controller to Host Terminate Connection Request.
    pub const CONTROLLER_TERMINATE: u8 = 0x03;
    /// Command Capsule.
    pub const COMMAND: u8 = 0x04;
    /// Response Capsule.
    pub const RESPONSE: u8 = 0x05;
    /// Host to Controller Data Transfer.
    pub const HOST_DATA: u8 = 0x06;
    /// Controller to Host Data Transfer.
    pub const CONTROLLER_DATA: u8 = 0x07;
    /// Ready to Transfer.
    pub const READY_TO_TRANSFER: u8 = 0x09;
}

/// Bits of the common header's flags.
pub mod flag {
    /// HDGSTF: a header digest follows the header.
    pub const HEADER_DIGEST: u8 = 1;
    /// DDGSTF: a data digest follows the data.
    pub const DATA_DIGEST: u8 = 1 << 1;
    /// LAST_PDU: the last data of this transfer.
    pub const LAST: u8 = 1 << 2;
    /// SUCCESS: the command succeeded, and no response capsule follows.
    pub const SUCCESS: u8 = 1 << 3;
}

/// Why a connection is ended (FES).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FatalStatus {
    /// A field of a PDU's header is wrong.
    InvalidHeaderField = 1,
    /// A PDU that may not come now.
    SequenceError = 2,
    /// The header digest does not match.
    HeaderDigest = 3,
    /// Data outside of what was asked for.
    DataOutOfRange = 4,
    /// More data than allowed. "R2T limit exceeded" has the same number.
    DataLimitExceeded = 5,
    /// A parameter that is not supported.
    UnsupportedParameter = 6,
}

/// Why a connection cannot go on: what the terminating PDU tells the peer, and the log tells us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} (status {}, information {information:#x})", *.status as u16)]
pub struct Fault {
    /// FES.
    pub status: FatalStatus,
    /// FEI: the byte offset of the field that is wrong, or the digest received.
    pub information: u32,
    /// The same in words.
    pub what: &'static str,
}

impl Fault {
    /// A fault at byte `offset` of the header.
    #[must_use]
    pub const fn field(offset: u32, what: &'static str) -> Self {
        Self { status: FatalStatus::InvalidHeaderField, information: offset, what }
    }

    /// A fault without information.
    #[must_use]
    pub const fn new(status: FatalStatus, what: &'static str) -> Self {
        Self { status, information: 0, what }
    }
}

/// Which digests a connection uses: CRC-32C, over the header and over the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// HDGST.
    pub header: bool,
    /// DDGST.
    pub data: bool,
}

impl Digests {
    /// From DGST.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self { header: bits & 1 != 0, data: bits & 2 != 0 }
    }

    /// As DGST.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.header as u8 | (self.data as u8) << 1
    }
}

/// A PDU's header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pdu {
    /// ICReq: PFV is 0 and HPDA at most 31, or decoding failed.
    InitializeRequest {
        /// HPDA: data to the host lies at multiples of `(alignment + 1) * 4`.
        alignment: u8,
        /// What the host wants.
        digests: Digests,
        /// R2Ts that the host takes at a time.
        max_r2t: u32,
    },
    /// ICResp.
    InitializeResponse {
        /// CPDA: data to the controller lies at multiples of `(alignment + 1) * 4`.
        alignment: u8,
        /// What is used.
        digests: Digests,
        /// MAXH2CDATA: the most bytes of one H2CData PDU.
        max_data: u32,
    },
    /// H2CTermReq or C2HTermReq.
    Terminate {
        /// FES.
        status: u16,
        /// FEI.
        information: u32,
    },
    /// CapsuleCmd.
    Command {
        /// The command.
        entry: SubmissionEntry,
        /// Bytes of data in the capsule.
        length: u32,
    },
    /// CapsuleResp.
    Response(CompletionEntry),
    /// H2CData.
    HostData {
        /// CCCID.
        command: u16,
        /// TTAG.
        tag: u16,
        /// DATAO.
        offset: u32,
        /// DATAL.
        length: u32,
        /// LAST_PDU.
        last: bool,
    },
    /// C2HData.
    ControllerData {
        /// CCCID.
        command: u16,
        /// DATAO.
        offset: u32,
        /// DATAL.
        length: u32,
        /// LAST_PDU.
        last: bool,
        /// SUCCESS: there will be no response.
        success: bool,
    },
    /// R2T.
    ReadyToTransfer {
        /// CCCID.
        command: u16,
        /// TTAG.
        tag: u16,
        /// R2TO.
        offset: u32,
        /// R2TL.
        length: u32,
    },
}

impl Pdu {
    /// Bytes of data that follow the header.
    #[must_use]
    pub const fn data_length(&self) -> u32 {
        match self {
            Self::Command { length, .. }
            | Self::HostData { length, .. }
            | Self::ControllerData { length, .. } => *length,
            _ => 0,
        }
    }
}

/// CRC-32C over data, with the zeros that make its length a multiple of four.
#[must_use]
pub fn data_digest(parts: &[&[u8]]) -> u32 {
    let (crc, length) = parts.iter().fold((0, 0), |(crc, length), part| {
        (crc32c::crc32c_append(crc, part), length + part.len())
    });
    pad_digest(crc, length)
}

fn pad_digest(crc: u32, length: usize) -> u32 {
    match length % 4 {
        0 => crc,
        rest => crc32c::crc32c_append(crc, &[0; 3][..4 - rest]),
    }
}

/// Writes PDUs the way a connection has agreed to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Encoder {
    /// Digests in use.
    pub digests: Digests,
    /// HPDA or CPDA of the receiver.
    pub alignment: u8,
}

impl Encoder {
    /// Appends the header of `pdu`, its digest and the padding. If data follows, the caller
    /// appends the data and then, if digests are in use, [`data_digest`] of it.
    pub fn header(&self, pdu: &Pdu, out: &mut Vec<u8>) {
        let start = out.len();
        match *pdu {
            Pdu::InitializeRequest { alignment, digests, max_r2t } => {
                out.extend([kind::INITIALIZE_REQUEST, 0, 128, 0, 128, 0, 0, 0, 0, 0]);
                out.extend([alignment, digests.bits()]);
                out.extend(max_r2t.saturating_sub(1).to_le_bytes());
                out.resize(start + MAX_HEADER, 0);
            }
            Pdu::InitializeResponse { alignment, digests, max_data } => {
                out.extend([kind::INITIALIZE_RESPONSE, 0, 128, 0, 128, 0, 0, 0, 0, 0]);
                out.extend([alignment, digests.bits()]);
                out.extend(max_data.to_le_bytes());
                out.resize(start + MAX_HEADER, 0);
            }
            // Its direction and the offending header are the caller's: see `terminate`.
            Pdu::Terminate { status, information } => {
                terminate(Role::Controller, status, information, &[], out);
            }
            Pdu::Command { entry, length } => {
                self.common(kind::COMMAND, 0, 72, length, out);
                out.extend_from_slice(entry.bytes());
                self.finish(start, length, out);
            }
            Pdu::Response(entry) => {
                self.common(kind::RESPONSE, 0, 24, 0, out);
                out.extend_from_slice(entry.as_bytes());
                self.finish(start, 0, out);
            }
            Pdu::HostData { command, tag, offset, length, last } => {
                let flags = if last { flag::LAST } else { 0 };
                self.common(kind::HOST_DATA, flags, 24, length, out);
                out.extend(command.to_le_bytes());
                out.extend(tag.to_le_bytes());
                self.range(offset, length, start, length, out);
            }
            Pdu::ControllerData { command, offset, length, last, success } => {
                let last = if last { flag::LAST } else { 0 };
                let flags = last | if success { flag::SUCCESS } else { 0 };
                self.common(kind::CONTROLLER_DATA, flags, 24, length, out);
                out.extend(command.to_le_bytes());
                out.extend([0, 0]);
                self.range(offset, length, start, length, out);
            }
            Pdu::ReadyToTransfer { command, tag, offset, length } => {
                self.common(kind::READY_TO_TRANSFER, 0, 24, 0, out);
                out.extend(command.to_le_bytes());
                out.extend(tag.to_le_bytes());
                self.range(offset, length, start, 0, out);
            }
        }
    }

    /// Where data starts after a header of `header` bytes.
    fn data_offset(&self, header: usize) -> usize {
        let digest = if self.digests.header { DIGEST } else { 0 };
        (header + digest).next_multiple_of((usize::from(self.alignment) + 1) * 4)
    }

    fn common(&self, kind: u8, mut flags: u8, header: u8, data: u32, out: &mut Vec<u8>) {
        let digest = if self.digests.header { DIGEST } else { 0 };
        let mut offset = 0;
        let mut total = usize::from(header) + digest;
        if self.digests.header {
            flags |= flag::HEADER_DIGEST;
        }
        if data > 0 {
            offset = self.data_offset(header.into());
            total = offset + data as usize;
            if self.digests.data {
                flags |= flag::DATA_DIGEST;
                total += DIGEST;
            }
        }
        // The largest offset is 132 rounded up to 128: it fits a byte. Totals fit 32 bits, since
        // transfers are far smaller.
        out.extend([kind, flags, header, offset as u8]);
        out.extend((total as u32).to_le_bytes());
    }

    fn range(&self, offset: u32, length: u32, start: usize, data: u32, out: &mut Vec<u8>) {
        out.extend(offset.to_le_bytes());
        out.extend(length.to_le_bytes());
        out.extend([0; 4]);
        self.finish(start, data, out);
    }

    /// Header digest and padding.
    fn finish(&self, start: usize, data: u32, out: &mut Vec<u8>) {
        let header = out.len() - start;
        if self.digests.header {
            let digest = crc32c::crc32c(&out[start..]);
            out.extend(digest.to_le_bytes());
        }
        if data > 0 {
            out.resize(start + self.data_offset(header), 0);
        }
    }
}

/// Appends the PDU by which `sender` ends a connection, with a copy of the header that was wrong.
pub fn terminate(sender: Role, status: u16, information: u32, header: &[u8], out: &mut Vec<u8>) {
    let kind = match sender {
        Role::Controller => kind::CONTROLLER_TERMINATE,
        Role::Host => kind::HOST_TERMINATE,
    };
    let header = &header[..header.len().min(MAX_TERMINATE - 24)];
    out.extend([kind, 0, 24, 0]);
    out.extend((24 + header.len() as u32).to_le_bytes());
    out.extend(status.to_le_bytes());
    out.extend(information.to_le_bytes());
    out.extend([0; 10]);
    out.extend_from_slice(header);
}

#[cfg(test)]
mod tests;
