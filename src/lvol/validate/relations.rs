//! Snapshots, clones and the super blob fit together.

use crate::units::BlobId;

use super::super::format::Blob;
use super::walk::{Walk, check_identity};
use super::{Finding, Findings};

/// Checks every blob's place among the others.
pub(super) fn check(walk: &Walk, super_blob: Option<BlobId>, findings: &mut Findings) {
    match super_blob.and_then(|id| walk.blobs.get(&id)) {
        None => findings.add(Finding::NoSuperBlob),
        Some(member) => {
            let clusters = member.blob.mapping.clusters();
            if clusters.0 != 0 {
                findings.add(Finding::SuperBlobClusters { clusters });
            }
        }
    }
    for member in walk.blobs.values() {
        check_identity(&member.blob, findings);
        check_parent(walk, &member.blob, findings);
        check_unfinished(&member.blob, findings);
    }
}

fn check_parent(walk: &Walk, blob: &Blob, findings: &mut Findings) {
    let id = blob.id;
    let external = blob.external_parent().is_some();
    if external != blob.flags.external_snapshot {
        findings.add(Finding::ExternalParent { blob: id });
    }
    if external && blob.parent().is_some() {
        findings.add(Finding::TwoParents { blob: id });
    }
    if (external || blob.parent().is_some()) && !blob.flags.thin {
        findings.add(Finding::ThickClone { blob: id });
    }
    let Some(parent) = blob.parent() else { return };
    let Some(member) = walk.blobs.get(&parent) else {
        findings.add(Finding::NoParent { blob: id, parent });
        return;
    };
    let snapshot = &member.blob;
    let in_motion = snapshot.snapshot_of().is_some() || snapshot.deleting_for().is_some();
    if !snapshot.flags.read_only && !in_motion {
        findings.add(Finding::WritableParent { blob: parent });
    }
    if is_own_ancestor(walk, blob) {
        findings.add(Finding::ParentLoop { blob: id });
    }
}

/// Follows two parents a step and one step, so that a loop further up ends the search, too.
fn is_own_ancestor(walk: &Walk, blob: &Blob) -> bool {
    let parent = |id: BlobId| walk.blobs.get(&id).and_then(|member| member.blob.parent());
    let (mut slow, mut fast) = (blob.id, blob.id);
    loop {
        for _ in 0..2 {
            match parent(fast) {
                Some(next) if next == blob.id => return true,
                Some(next) => fast = next,
                None => return false,
            }
        }
        slow = parent(slow).unwrap_or(slow);
        if slow == fast {
            return false;
        }
    }
}

fn check_unfinished(blob: &Blob, findings: &mut Findings) {
    if let Some(of) = blob.snapshot_of() {
        findings.add(Finding::SnapshotUnfinished { blob: blob.id, of });
    }
    if let Some(clone) = blob.deleting_for() {
        findings.add(Finding::DeletionUnfinished { blob: blob.id, clone });
    }
}
