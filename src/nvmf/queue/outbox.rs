//! What is to be sent, and how it is gathered for one system call.

use std::collections::VecDeque;
use std::ops::Range;

use zerocopy::little_endian::U32;

use super::Outcome;
use super::budget::Permit;
use crate::hw::dma::DmaBuffer;
use crate::nvmf::limits::{SEND_BUFFERS, SEND_BYTES};
use crate::nvmf::pdu::{Encoder, Pdu, data_digest};
use crate::reactor::Gather;
use crate::spec::completion::CompletionEntry;
use crate::units::CommandId;

/// Data up to this size is copied between the headers: cheaper than a vector of its own.
const COPY_LIMIT: usize = 512;

/// Something to send.
#[derive(Debug)]
pub(in super::super) enum Reply {
    /// A PDU that has no data.
    Header(Pdu),
    /// Data, and a response unless the last PDU of the data says that all went well.
    Data {
        command: CommandId,
        buffer: DmaBuffer,
        range: Range<usize>,
        response: Option<CompletionEntry>,
        /// Memory of the connection's share, held until it is sent.
        permit: Option<Permit>,
    },
    /// Bytes as they are: a PDU that ends the connection.
    Bytes(Vec<u8>),
}

impl Reply {
    /// The answer to a command.
    pub(super) fn answer(
        command: CommandId,
        queue: u16,
        head: u16,
        may_omit_response: bool,
        outcome: Outcome,
        permit: Option<Permit>,
    ) -> Self {
        let mut entry = CompletionEntry::new(command, outcome.status, outcome.result as u32)
            .with_queue(queue, head);
        entry.result_high = U32::new((outcome.result >> 32) as u32);
        match outcome.data {
            Some((buffer, range)) if outcome.status.is_success() && !range.is_empty() => {
                let omitted = may_omit_response && outcome.result == 0;
                let response = (!omitted).then_some(entry);
                Self::Data { command, buffer, range, response, permit }
            }
            _ => Self::Header(Pdu::Response(entry)),
        }
    }
}

/// Replies that wait to be sent.
#[derive(Debug, Default)]
pub(in super::super) struct Outbox {
    waiting: VecDeque<Reply>,
    /// Of what is being sent.
    permits: Vec<Permit>,
}

impl Outbox {
    pub(in super::super) fn push(&mut self, reply: Reply) {
        self.waiting.push_back(reply);
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(in super::super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// What was gathered before is sent.
    pub(in super::super) fn sent(&mut self) -> Vec<Permit> {
        std::mem::take(&mut self.permits)
    }

    /// Moves as much as one system call should send into `gather`.
    pub(in super::super) fn gather(&mut self, encoder: Encoder, gather: &mut Gather) {
        while gather.len() < SEND_BYTES && gather.buffers() < SEND_BUFFERS {
            match self.waiting.pop_front() {
                None => return,
                Some(Reply::Header(pdu)) => encoder.header(&pdu, gather.bytes()),
                Some(Reply::Bytes(bytes)) => gather.bytes().extend(bytes),
                Some(Reply::Data { command, buffer, range, response, permit }) => {
                    self.permits.extend(permit);
                    let pdu = Pdu::ControllerData {
                        command: command.get(),
                        offset: 0,
                        length: range.len() as u32,
                        last: true,
                        success: response.is_none(),
                    };
                    encoder.header(&pdu, gather.bytes());
                    let digest =
                        encoder.digests.data.then(|| data_digest(&[&buffer[range.clone()]]));
                    if range.len() <= COPY_LIMIT {
                        gather.bytes().extend_from_slice(&buffer[range]);
                    } else {
                        gather.push(buffer, range);
                    }
                    if let Some(digest) = digest {
                        gather.bytes().extend(digest.to_le_bytes());
                    }
                    if let Some(response) = response {
                        encoder.header(&Pdu::Response(response), gather.bytes());
                    }
                }
            }
        }
    }
}
