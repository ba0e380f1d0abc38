//! Snapshots, clones and the super blob fit together.

use std::collections::{HashMap, HashSet};

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
    let parents: HashSet<_> =
        walk.blobs.values().filter_map(|member| member.blob.parent()).collect();
    for member in walk.blobs.values() {
        check_identity(&member.blob, findings);
        check_parent(walk, &member.blob, findings);
        check_unfinished(walk, &member.blob, &parents, findings);
    }
    check_loops(walk, findings);
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
}

/// Reports every blob that is its own ancestor. Looks at each blob once, however long the lines of
/// ancestors are.
fn check_loops(walk: &Walk, findings: &mut Findings) {
    let parent = |id: &BlobId| walk.blobs.get(id).and_then(|member| member.blob.parent());
    let mut seen_from = HashMap::new();
    for start in walk.blobs.keys() {
        let mut next = Some(*start);
        while let Some(id) = next {
            match seen_from.insert(id, *start) {
                None => next = parent(&id),
                Some(other) if other != *start => break,
                Some(_) => {
                    let around = std::iter::successors(parent(&id), parent);
                    for member in around.take_while(|member| *member != id).chain([id]) {
                        findings.add(Finding::ParentLoop { blob: member });
                    }
                    break;
                }
            }
        }
    }
}

fn check_unfinished(walk: &Walk, blob: &Blob, parents: &HashSet<BlobId>, findings: &mut Findings) {
    let id = blob.id;
    // It is ended by keeping it, if the other is its clone, or else by erasing it.
    let ends = |other: &BlobId| {
        let other = walk.blobs.get(other);
        other.is_some_and(|other| other.blob.parent() == Some(id) || !parents.contains(&id))
    };
    if let Some(other) = blob.deleting_for().or(blob.snapshot_of()).filter(|other| !ends(other)) {
        findings.add(Finding::Unfinishable { blob: id, other });
        return;
    }
    if let Some(of) = blob.snapshot_of() {
        findings.add(Finding::SnapshotUnfinished { blob: id, of });
    }
    if let Some(clone) = blob.deleting_for() {
        findings.add(Finding::DeletionUnfinished { blob: id, clone });
    }
}
