//! Data from the host: where it goes, and what its end starts.

use std::rc::Rc;

use super::{Landing, Outcome, Queue, State};
use crate::hw::dma::DmaBuffer;
use crate::nvmf::pdu::{Data, FatalStatus, Fault};
use crate::spec::status::StatusCode;

impl Queue {
    /// An H2CData PDU came. Returns where its data goes.
    pub(in super::super) fn host_data(
        &self,
        command_id: u16,
        tag: u16,
        offset: u32,
        length: u32,
        last: bool,
    ) -> Result<Landing, Fault> {
        let commands = self.commands.borrow();
        let sequence = |what| Fault::new(FatalStatus::SequenceError, what);
        let key = usize::from(tag).checked_sub(1);
        let Some((key, command)) = key.and_then(|key| Some((key, commands.get(key)?))) else {
            return Err(sequence("a transfer tag that no R2T had"));
        };
        if command.entry.id().get() != command_id {
            return Err(sequence("the transfer tag of another command"));
        }
        let (expected, total) = match &command.state {
            State::Collecting { buffer, received, asked: true, .. } => (*received, buffer.len()),
            State::Swallowing { .. } => return Ok(Landing::Command(key)),
            _ => return Err(Fault::field(0, "data that no R2T asked for")),
        };
        let end = u64::from(offset) + u64::from(length);
        if offset as usize != expected || end > total as u64 || last && end < total as u64 {
            return Err(Fault::new(FatalStatus::DataOutOfRange, "not the data that was asked for"));
        }
        Ok(Landing::Command(key))
    }

    /// Some of the data came.
    pub(in super::super) fn land(&self, landing: Landing, data: &[u8]) {
        let Landing::Command(key) = landing else { return };
        if let Some(command) = self.commands.borrow_mut().get_mut(key) {
            match &mut command.state {
                State::Collecting { buffer, received, .. } => {
                    buffer[*received..*received + data.len()].copy_from_slice(data);
                    *received += data.len();
                }
                State::Swallowing { left, .. } => *left = left.saturating_sub(data.len()),
                _ => {}
            }
        }
    }

    /// Takes the part of a buffer that the next `length` bytes belong to, to be received into.
    pub(in super::super) fn take_tail(&self, landing: Landing, length: usize) -> Option<DmaBuffer> {
        let Landing::Command(key) = landing else { return None };
        match &mut self.commands.borrow_mut().get_mut(key)?.state {
            State::Collecting { buffer, received, .. } if *received + length == buffer.len() => {
                Some(buffer.split_off(*received))
            }
            _ => None,
        }
    }

    /// Gives it back, filled.
    pub(in super::super) fn put_tail(&self, landing: Landing, tail: DmaBuffer, filled: usize) {
        let Landing::Command(key) = landing else { return };
        let mut commands = self.commands.borrow_mut();
        let Some(command) = commands.get_mut(key) else { return };
        match &mut command.state {
            State::Collecting { buffer, received, .. } => {
                let joined = buffer.join(tail);
                assert!(joined.is_ok(), "the tail of another buffer");
                *received += filled;
            }
            State::Swallowing { left, .. } => *left = left.saturating_sub(filled),
            _ => {}
        }
    }

    /// The data of a PDU is complete.
    pub(in super::super) fn landed(self: &Rc<Self>, landing: Landing, data: Data) {
        let Landing::Command(key) = landing else { return };
        let buffer = {
            let mut commands = self.commands.borrow_mut();
            let Some(command) = commands.get_mut(key) else { return };
            match &command.state {
                State::Swallowing { left: 0, .. } => {
                    commands.remove(key);
                    return;
                }
                State::Collecting { buffer, received, .. }
                    if *received == buffer.len() || data == Data::Corrupt => {}
                _ => return,
            }
            let State::Collecting { buffer, received, .. } =
                std::mem::replace(&mut command.state, State::Waiting)
            else {
                unreachable!("looked at above")
            };
            if data == Data::Corrupt && received < buffer.len() {
                // The rest still comes.
                let left = buffer.len() - received;
                drop(commands);
                self.answer(key, StatusCode::TRANSIENT_TRANSPORT_ERROR);
                self.swallow(key, left);
                return;
            }
            buffer
        };
        match data {
            Data::Intact => self.run(key, Some(buffer)),
            Data::Corrupt => {
                let code = StatusCode::TRANSIENT_TRANSPORT_ERROR;
                self.complete(key, Outcome::failure(code));
            }
        }
    }
}
