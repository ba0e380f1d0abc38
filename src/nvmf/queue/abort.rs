//! Aborting commands: those that no device has seen.

use super::{Queue, State};
use crate::spec::status::StatusCode;

impl Queue {
    /// Aborts a command; false if it is not here, or a device may have it.
    pub(in super::super) fn abort(&self, command_id: u16) -> bool {
        let since = self.service.reactor.now();
        let found = {
            let commands = self.commands.borrow();
            let found = commands.iter().find(|(_, c)| c.entry.id().get() == command_id);
            found.map(|(key, command)| {
                let next = match &command.state {
                    State::Collecting { buffer, received, .. } => {
                        Some(State::Swallowing { left: buffer.len() - received, since })
                    }
                    State::Waiting => Some(State::Aborted),
                    // Removed: no task knows it.
                    State::Event | State::Half { .. } => Some(State::Swallowing { left: 0, since }),
                    State::Running | State::Swallowing { .. } | State::Aborted => None,
                };
                (key, next)
            })
        };
        let Some((key, Some(next))) = found else { return false };
        self.answer(key, StatusCode::ABORT_REQUESTED);
        let mut commands = self.commands.borrow_mut();
        if let State::Swallowing { left: 0, .. } = next {
            commands.remove(key);
        } else if let Some(command) = commands.get_mut(key) {
            command.state = next;
        }
        true
    }
}
