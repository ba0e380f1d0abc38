//! Fused operations: two commands that are done as one. The second comes right after the first.

use std::rc::Rc;

use super::{Queue, State};
use crate::hw::dma::DmaBuffer;
use crate::nvmf::dispatch;
use crate::spec::command::SubmissionEntry;
use crate::spec::status::StatusCode;

/// Which commands belong together. Only commands that are not answered are named here, since slots
/// are used again.
#[derive(Default)]
pub(super) struct Fused {
    /// The command that came last, if it is a first half.
    first: Option<usize>,
    /// First and second halves that are not begun; `None` stands for one that has failed.
    pairs: Vec<[Option<usize>; 2]>,
}

impl Fused {
    fn position(&self, key: usize) -> Option<usize> {
        self.pairs.iter().position(|pair| pair.contains(&Some(key)))
    }

    /// Takes a half that was answered out; returns the other one, if it is not answered.
    fn part(&mut self, key: usize) -> Option<usize> {
        if self.first == Some(key) {
            self.first = None;
        }
        let at = self.position(key)?;
        let pair = &mut self.pairs[at];
        let other = pair.iter().flatten().copied().find(|half| *half != key);
        if other.is_none() {
            self.pairs.swap_remove(at);
        } else {
            *pair = [None, other];
        }
        other
    }
}

impl Queue {
    /// Notes which commands belong together: a first half and the command right after it.
    pub(super) fn note_fused(self: &Rc<Self>, key: usize, entry: &SubmissionEntry) {
        let mut fused = self.fused.borrow_mut();
        let missed = match (fused.first.take(), entry.fused()) {
            (first, 1) => {
                fused.first = Some(key);
                first
            }
            (Some(first), 2) => {
                fused.pairs.push([Some(first), Some(key)]);
                None
            }
            (first, _) => first,
        };
        drop(fused);
        // If its data is still to come, it is refused then.
        if let Some(first) = missed
            && self.is_half(first)
        {
            self.refuse(first, StatusCode::ABORTED_MISSING_FUSED);
        }
    }

    /// Whether a command has all its data and waits for its other half.
    fn is_half(&self, key: usize) -> bool {
        let commands = self.commands.borrow();
        commands.get(key).is_some_and(|command| matches!(command.state, State::Half { .. }))
    }

    /// A half was answered, and not together with the other one, which fails with it.
    pub(super) fn part(&self, key: usize) {
        let other = self.fused.borrow_mut().part(key);
        // If its data is still to come, it is refused then.
        if let Some(other) = other
            && self.is_half(other)
        {
            self.refuse(other, StatusCode::ABORTED_FAILED_FUSED);
        }
    }

    pub(super) fn run_half(self: &Rc<Self>, key: usize, data: Option<DmaBuffer>) {
        let (pair, may_come) = {
            let fused = self.fused.borrow();
            (fused.position(key).map(|at| fused.pairs[at]), fused.first == Some(key))
        };
        let (first, second) = match pair {
            Some([Some(first), Some(second)]) => (first, second),
            Some(_) => return self.refuse(key, StatusCode::ABORTED_FAILED_FUSED),
            None if may_come => return self.hold_half(key, data),
            None => return self.refuse(key, StatusCode::ABORTED_MISSING_FUSED),
        };
        let other = if key == first { second } else { first };
        let Some(other_data) = self.release_half(other) else {
            // The other's data is still to come.
            return self.hold_half(key, data);
        };
        self.fused.borrow_mut().pairs.retain(|pair| !pair.contains(&Some(key)));
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
        let since = self.service.reactor.now();
        if let Some(command) = self.commands.borrow_mut().get_mut(key) {
            command.state = State::Half { data, since };
        }
    }

    /// Takes the data of a half that waited; from here on it waits for its turn.
    fn release_half(&self, key: usize) -> Option<Option<DmaBuffer>> {
        let mut commands = self.commands.borrow_mut();
        let command = commands.get_mut(key)?;
        match std::mem::replace(&mut command.state, State::Waiting) {
            State::Half { data, .. } => Some(data),
            state => {
                command.state = state;
                None
            }
        }
    }
}
