//! A namespace as one queue uses it: found once, and again when the model changes.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::controller::Controller;
use super::model::{AnaState, Namespace, Subsystem};
use super::queue::Queue;
use super::status;
use crate::spec::status::{Status, StatusCode};
use crate::units::NamespaceId;
use crate::volume::Volume;

/// What a queue knows of its subsystem.
#[derive(Default)]
pub(super) struct Cache {
    generation: u64,
    subsystem: Option<Arc<Subsystem>>,
    volumes: HashMap<NamespaceId, Rc<Volume>>,
}

/// The subsystem of a queue's controller, as it is now.
pub(super) fn subsystem(queue: &Queue, controller: &Controller) -> Result<Arc<Subsystem>, Status> {
    let model = queue.service.target.model();
    let generation = model.generation();
    let mut cache = queue.namespaces.borrow_mut();
    if cache.generation != generation || cache.subsystem.is_none() {
        // The snapshot may be newer than the generation; then it is taken once more.
        cache.volumes.clear();
        cache.generation = generation;
        cache.subsystem = model.subsystem(controller.subsystem());
    }
    match &cache.subsystem {
        Some(subsystem) => Ok(Arc::clone(subsystem)),
        None => Err(Status::of(StatusCode::INVALID_NAMESPACE).do_not_retry()),
    }
}

/// The path's status where the namespace cannot be reached through this listener.
pub(super) fn check_ana(
    subsystem: &Subsystem,
    controller: &Controller,
    namespace: &Namespace,
) -> Result<(), Status> {
    match subsystem.ana_state(controller.local(), namespace.ana_group) {
        AnaState::Optimized | AnaState::NonOptimized => Ok(()),
        AnaState::Inaccessible => Err(StatusCode::ANA_INACCESSIBLE.into()),
        AnaState::PersistentLoss => Err(StatusCode::ANA_PERSISTENT_LOSS.into()),
        AnaState::Change => Err(StatusCode::ANA_TRANSITION.into()),
    }
}

/// The volume behind a namespace that the queue's host sees and can reach.
pub(super) async fn volume(
    queue: &Queue,
    controller: &Controller,
    id: NamespaceId,
) -> Result<Rc<Volume>, Status> {
    let subsystem = subsystem(queue, controller)?;
    if let Some(volume) = queue.namespaces.borrow().volumes.get(&id) {
        return Ok(Rc::clone(volume));
    }
    let namespace = subsystem
        .namespace(&controller.host().nqn, id)
        .ok_or(Status::of(StatusCode::INVALID_NAMESPACE).do_not_retry())?;
    check_ana(&subsystem, controller, namespace)?;
    let key = namespace.key.ok_or(Status::of(StatusCode::INVALID_NAMESPACE))?;
    // Boxed: once for each namespace, and a large future.
    let opening = Box::pin(queue.service.catalog.volume_for(key, controller.host().id));
    let volume = opening.await.map_err(status::of)?;
    let mut cache = queue.namespaces.borrow_mut();
    if cache.subsystem.as_ref().is_some_and(|known| Arc::ptr_eq(known, &subsystem)) {
        cache.volumes.insert(id, Rc::clone(&volume));
    }
    Ok(volume)
}
