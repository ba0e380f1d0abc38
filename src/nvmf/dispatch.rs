//! Which command is done where.
//!
//! To add a command: give it an arm in `admin.rs` or `io.rs`, and its line in the tables of
//! `log.rs`, which tell hosts what there is.

use std::rc::Rc;

use super::queue::{Outcome, Queue};
use super::{admin, fabrics, io};
use crate::hw::dma::DmaBuffer;
use crate::spec::command::{AdminOpcode, SubmissionEntry};
use crate::spec::status::{Status, StatusCode};

/// A command of a pair: its slot, itself, and its data.
pub(super) type Half<'a> = (usize, &'a SubmissionEntry, Option<DmaBuffer>);

/// Runs the command in slot `key`, whose data came from the host. `None`: it is answered later.
pub(super) async fn run(
    queue: &Rc<Queue>,
    key: usize,
    entry: &SubmissionEntry,
    data: Option<DmaBuffer>,
) -> Option<Outcome> {
    if entry.admin_opcode() == AdminOpcode::FABRICS {
        return Some(fabrics::run(queue, entry, data.as_deref()).into());
    }
    let Some((controller, id)) = queue.association() else {
        return Some(out_of_sequence().into());
    };
    if !controller.is_enabled() {
        return Some(out_of_sequence().into());
    }
    if id.get() == 0 {
        // Boxed, as what is rare in `io`: the futures of reads and writes stay small.
        return Box::pin(admin::run(queue, &controller, key, entry, data.as_deref())).await;
    }
    Some(io::run(queue, &controller, key, entry, data).await.into())
}

/// Runs a fused operation; the two outcomes in the order of the commands.
pub(super) async fn run_pair(
    queue: &Rc<Queue>,
    first: Half<'_>,
    second: Half<'_>,
) -> (Outcome, Outcome) {
    let Some((controller, _)) = queue.association().filter(|(c, _)| c.is_enabled()) else {
        return (out_of_sequence().into(), out_of_sequence().into());
    };
    io::run_pair(queue, &controller, first, second).await
}

fn out_of_sequence() -> Result<Outcome, Status> {
    Err(Status::of(StatusCode::COMMAND_SEQUENCE_ERROR).do_not_retry())
}
