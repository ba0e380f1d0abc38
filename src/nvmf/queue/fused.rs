//! Fused operations: two commands that are done as one. The second comes right after the first.

use std::rc::Rc;

use super::{Command, Queue, State};
use crate::hw::dma::DmaBuffer;
use crate::nvmf::dispatch;
use crate::spec::command::SubmissionEntry;
use crate::spec::status::StatusCode;

impl Queue {
    /// Notes which commands belong together: a first half and the command right after it.
    pub(super) fn note_fused(self: &Rc<Self>, key: usize, entry: &SubmissionEntry) {
        let mut fused = self.fused.get();
        let first = fused.first.take();
        match (first, entry.fused()) {
            (first, 1) => {
                fused.first = Some(key);
                self.fused.set(fused);
                self.miss_partner(first);
            }
            (Some(first), 2) => {
                fused.pair = Some((first, key));
                self.fused.set(fused);
            }
            (first, _) => {
                self.fused.set(fused);
                self.miss_partner(first);
            }
        }
    }

    /// A first half whose partner did not come.
    fn miss_partner(&self, first: Option<usize>) {
        let Some(key) = first else { return };
        let is_half = match self.commands.borrow().get(key) {
            Some(command) => matches!(command.state, State::Half(_)),
            None => false,
        };
        // If its data is still to come, it is refused then.
        if is_half {
            self.refuse(key, StatusCode::ABORTED_MISSING_FUSED);
        }
    }

    pub(super) fn run_half(self: &Rc<Self>, key: usize, data: Option<DmaBuffer>) {
        let mut fused = self.fused.get();
        let pair = fused.pair.filter(|(first, second)| key == *first || key == *second);
        let Some((first, second)) = pair else {
            if fused.first == Some(key) {
                // The partner may still come.
                if let Some(command) = self.commands.borrow_mut().get_mut(key) {
                    command.state = State::Half(data);
                }
            } else {
                self.refuse(key, StatusCode::ABORTED_MISSING_FUSED);
            }
            return;
        };
        let other = if key == first { second } else { first };
        let other_data = match self.commands.borrow_mut().get_mut(other) {
            Some(Command { state: State::Half(data), .. }) => Ok(data.take()),
            other => Err(other.is_some()),
        };
        let other_data = match other_data {
            Ok(data) => data,
            // The other's data is still to come.
            Err(true) => return self.hold_half(key, data),
            Err(false) => {
                fused.pair = None;
                self.fused.set(fused);
                return self.refuse(key, StatusCode::ABORTED_FAILED_FUSED);
            }
        };
        fused.pair = None;
        self.fused.set(fused);
        let (first_data, second_data) =
            if key == first { (data, other_data) } else { (other_data, data) };
        let entries = {
            let commands = self.commands.borrow();
            match (commands.get(first), commands.get(second)) {
                (Some(first), Some(second)) => (first.entry, second.entry),
                _ => return,
            }
        };
        let queue = Rc::clone(self);
        self.stage(async move {
            let (one, two) = dispatch::run_pair(
                &queue,
                (first, &entries.0, first_data),
                (second, &entries.1, second_data),
            )
            .await;
            queue.complete(first, one);
            queue.complete(second, two);
        });
    }

    fn hold_half(&self, key: usize, data: Option<DmaBuffer>) {
        if let Some(command) = self.commands.borrow_mut().get_mut(key) {
            command.state = State::Half(data);
        }
    }
}
