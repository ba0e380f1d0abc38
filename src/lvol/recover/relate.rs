//! From loaded blobs to volumes: interrupted snapshot operations, names, parents, owners.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::units::{BlobId, ClusterCount, ClusterIndex, PageIndex, VolumeCluster};

use super::super::error::{Damage, Error, ReadOnlyReason};
use super::super::format::{
    BitSet, ClusterMap, Layout, MappedRun, Mapping, MaskKind, SuperBlock, VolumeName, lvolstore,
};
use super::super::journal::find_journal;
use super::super::volume::Volume;
use super::super::volume_map::{Fate, Place, PlacedRun, VolumeMap};
use super::stray::Stray;
use super::{Held, Loaded, LoadedBlob, Recovered, pages_of};

/// From loaded blobs to volumes: interrupted snapshot operations, names, parents, owners.
pub(super) fn relate(
    super_block: SuperBlock,
    mut loaded: Loaded,
    own_blob: BlobId,
    fate: &Arc<Fate>,
) -> Result<Recovered, Error> {
    let mut interrupted = finish_interrupted(&mut loaded);
    if !loaded.blobs.contains_key(&own_blob) {
        return Err(own_blob_is_damaged(&loaded, own_blob));
    }
    let names = take_names(&mut loaded, own_blob)?;
    let order = parents_first(&mut loaded);
    keep_with_partners(&mut loaded, &mut interrupted);
    let mut volumes: BTreeMap<BlobId, Volume> = BTreeMap::new();
    let (held, stray) = (std::mem::take(&mut loaded.held), std::mem::take(&mut loaded.stray));
    let mut owners = Owners::new(&loaded.layout, held, stray);
    for id in order {
        let (Some(LoadedBlob { blob, map }), Some(name)) =
            (loaded.blobs.remove(&id), names.get(&id))
        else {
            continue;
        };
        loaded.claim_blob(&blob, &map);
        let shared = Arc::new(VolumeMap::new(id, &loaded.layout, fate));
        let parent = blob.parent().and_then(|parent| volumes.get(&parent));
        let clusters = map.clusters();
        shared.show_parent(parent.map(|parent| &*parent.map), clusters.0);
        let mut volume = Volume::new(blob, shared, name.clone(), clusters);
        volume.root_dirty = interrupted.kept.contains_key(&id);
        owners.own(&mut volume, &map, &mut volumes);
        volume.map.set_clusters(clusters);
        volumes.insert(id, volume);
    }
    // Of what has two owners, nothing is written: not even what an interruption left to be done.
    for volume in volumes.values_mut().filter(|volume| volume.shares().is_some()) {
        volume.dirty.clear();
        volume.root_dirty = false;
    }
    for (id, Discarded { found, name, .. }) in interrupted.discarded {
        loaded.claim_blob(&found.blob, &found.map);
        let shared = Arc::new(VolumeMap::new(id, &loaded.layout, fate));
        volumes.insert(id, owners.leftovers(found, name, shared));
    }
    if !volumes.contains_key(&own_blob) {
        return Err(own_blob_is_damaged(&loaded, own_blob));
    }
    let Loaded { layout, allocator, quarantined, recovery, .. } = loaded;
    let journal = find_journal(&layout, volumes.values());
    let (clean, pages_read) = (recovery.clean, recovery.pages_scanned);
    let (blobs, quarantined_blobs) = (volumes.len(), quarantined.len());
    tracing::info!(clean, pages_read, blobs, quarantined_blobs, "lvstore opened");
    Ok(Recovered { super_block, allocator, volumes, own_blob, journal, quarantined, recovery })
}

fn own_blob_is_damaged(loaded: &Loaded, own_blob: BlobId) -> Error {
    let damaged = loaded.quarantined.iter().find(|quarantined| quarantined.id == own_blob);
    let damage = damaged.map_or(Damage::Missing, |quarantined| quarantined.damage.clone());
    Error::SuperBlob(damage)
}

/// Snapshots whose making or deletion was interrupted.
#[derive(Default)]
struct Interrupted {
    /// Those that stay, and the volume that is the clone of each.
    kept: BTreeMap<BlobId, BlobId>,
    discarded: BTreeMap<BlobId, Discarded>,
}

/// A snapshot that goes.
struct Discarded {
    found: LoadedBlob,
    name: VolumeName,
    /// The volume that it was made of, or has been merged into.
    other: BlobId,
}

/// Applies the rule for interrupted snapshot operations, as SPDK does at load: a blob that was
/// being made a snapshot, or deleted as one, stays if its other volume is already (or still) its
/// clone, and goes otherwise. What goes shares its clusters with the other one. One without a name
/// was not made by an lvolstore, and one that has a clone is needed: they go to quarantine.
fn finish_interrupted(loaded: &mut Loaded) -> Interrupted {
    let mut result = Interrupted::default();
    let interrupted = loaded.blobs.values().filter_map(|found| {
        let other = found.blob.deleting_for().or(found.blob.snapshot_of())?;
        Some((found.blob.id, other))
    });
    let interrupted: Vec<_> = interrupted.collect();
    if interrupted.is_empty() {
        return result;
    }
    let parents: HashSet<_> =
        loaded.blobs.values().filter_map(|found| found.blob.parent()).collect();
    for (id, other) in interrupted {
        let Some(parent) = loaded.blobs.get(&other).map(|other| other.blob.parent()) else {
            loaded.quarantine_loaded(id, Damage::Interrupted { other });
            continue;
        };
        let Some(found) = loaded.blobs.get_mut(&id) else { continue };
        if parent == Some(id) {
            found.blob.set_deleting_for(None);
            found.blob.set_snapshot_of(None);
            found.blob.flags.read_only = true;
            result.kept.insert(id, other);
            continue;
        }
        match lvolstore::name(&found.blob.xattrs) {
            Err(error) => loaded.quarantine_loaded(id, error.into()),
            Ok(_) if parents.contains(&id) => {
                loaded.quarantine_loaded(id, Damage::Interrupted { other });
            }
            Ok(name) => {
                let found = loaded.blobs.remove(&id);
                let discarded = found.map(|found| (id, Discarded { found, name, other }));
                result.discarded.extend(discarded);
            }
        }
    }
    result
}

/// Interrupted snapshots whose other volume went to quarantine follow it, and the clones of those:
/// without the other one, nobody can tell what is whose.
fn keep_with_partners(loaded: &mut Loaded, interrupted: &mut Interrupted) {
    let kept = interrupted.kept.iter();
    let kept = kept.filter(|(_, other)| !loaded.blobs.contains_key(other));
    let mut lost: Vec<_> =
        kept.map(|(id, other)| (*id, Damage::Interrupted { other: *other })).collect();
    if !lost.is_empty() {
        let mut children: HashMap<BlobId, Vec<BlobId>> = HashMap::new();
        for (id, found) in &loaded.blobs {
            if let Some(parent) = found.blob.parent() {
                children.entry(parent).or_default().push(*id);
            }
        }
        let mut partners: HashMap<BlobId, Vec<BlobId>> = HashMap::new();
        for (id, other) in &interrupted.kept {
            partners.entry(*other).or_default().push(*id);
        }
        while let Some((id, damage)) = lost.pop() {
            loaded.quarantine_loaded(id, damage);
            let clones = children.remove(&id).into_iter().flatten();
            lost.extend(clones.map(|clone| (clone, Damage::Parent { parent: id })));
            let kept = partners.remove(&id).into_iter().flatten();
            lost.extend(kept.map(|kept| (kept, Damage::Interrupted { other: id })));
        }
    }
    let discarded = std::mem::take(&mut interrupted.discarded);
    for (id, discarded) in discarded {
        let other = discarded.other;
        if !loaded.blobs.contains_key(&other) {
            loaded.blobs.insert(id, discarded.found);
            loaded.quarantine_loaded(id, Damage::Interrupted { other });
        } else {
            tracing::warn!(blob = id.0, other = other.0, "removing an unfinished snapshot");
            interrupted.discarded.insert(id, discarded);
        }
    }
}

/// The name of each blob; those without, and second ones of a name, go to quarantine.
fn take_names(
    loaded: &mut Loaded,
    own_blob: BlobId,
) -> Result<BTreeMap<BlobId, VolumeName>, Error> {
    let mut names = BTreeMap::new();
    let mut taken: HashMap<VolumeName, BlobId> = HashMap::new();
    for id in loaded.blobs.keys().copied().collect::<Vec<_>>() {
        let Some(found) = loaded.blobs.get(&id) else { continue };
        match lvolstore::name(&found.blob.xattrs) {
            Ok(name) if id == own_blob => {
                names.insert(id, name);
            }
            Err(error) if id == own_blob => return Err(Error::SuperBlob(error.into())),
            Ok(name) => match taken.get(&name).copied() {
                Some(other) => loaded.quarantine_loaded(id, Damage::DuplicateName { other }),
                None => {
                    taken.insert(name.clone(), id);
                    names.insert(id, name);
                }
            },
            Err(error) => loaded.quarantine_loaded(id, error.into()),
        }
    }
    Ok(names)
}

/// The blobs in an order in which each follows its parent. Those whose parent is missing, and those
/// that are their own ancestors, go to quarantine.
fn parents_first(loaded: &mut Loaded) -> Vec<BlobId> {
    let mut order = Vec::with_capacity(loaded.blobs.len());
    let mut children: BTreeMap<BlobId, Vec<BlobId>> = BTreeMap::new();
    for (id, found) in &loaded.blobs {
        match found.blob.parent() {
            Some(parent) => children.entry(parent).or_default().push(*id),
            None => order.push(*id),
        }
    }
    let mut next = 0;
    while let Some(id) = order.get(next) {
        order.extend(children.remove(id).into_iter().flatten());
        next += 1;
    }
    for (parent, orphans) in children {
        for id in orphans {
            loaded.quarantine_loaded(id, Damage::Parent { parent });
        }
    }
    order
}

/// Who owns each cluster and each metadata page.
struct Owners {
    /// Clusters that have an owner.
    clusters: BitSet,
    /// Whose they are: asked only when one has two, and made when the first one has.
    by_cluster: Option<HashMap<ClusterIndex, BlobId>>,
    pages: HashMap<PageIndex, BlobId>,
    /// What blobs in quarantine own.
    held: Vec<Held>,
    stray: Stray,
}

impl Owners {
    fn new(layout: &Layout, held: Vec<Held>, stray: Stray) -> Self {
        let mut clusters = BitSet::new(layout.mask_bits(MaskKind::UsedClusters));
        let mut pages = HashMap::new();
        for held in &held {
            pages.extend(held.pages.iter().map(|page| (*page, held.id)));
            for (first, count) in &held.clusters {
                clusters.insert_run(first.0, count.0);
            }
        }
        Self { clusters, by_cluster: None, pages, held, stray }
    }

    /// Puts a volume's own places into its map, and finds what another volume owns, too.
    fn own(
        &mut self,
        volume: &mut Volume,
        map: &ClusterMap,
        others: &mut BTreeMap<BlobId, Volume>,
    ) {
        let id = volume.blob.id;
        let mut shared = None;
        for page in pages_of(&volume.blob) {
            if let Some(other) = self.pages.insert(page, id) {
                shared = Some((other, ReadOnlyReason::SharedPage { page, other }));
                limit(others, other, ReadOnlyReason::SharedPage { page, other: id });
            }
        }
        let runs = runs_to_own(volume, map);
        for (index, run) in runs.iter().enumerate() {
            for (cluster, other) in self.own_clusters(id, *run, &runs[..index], others) {
                shared = Some((other, ReadOnlyReason::SharedCluster { cluster, other }));
                limit(others, other, ReadOnlyReason::SharedCluster { cluster, other: id });
            }
        }
        volume.map.set_runs(runs.iter().map(|run| PlacedRun {
            first: run.volume,
            count: run.count,
            place: Place::Own(run.device),
        }));
        if let Some((other, reason)) = shared {
            tracing::error!(blob = id.0, other = other.0, %reason, "two owners: both read-only");
            volume.limit = Some(reason);
        }
        volume.show_flags();
    }

    /// Makes a volume, which owns `earlier` already, the owner of `run`; of that, what had an owner
    /// before, with it.
    fn own_clusters(
        &mut self,
        id: BlobId,
        run: MappedRun,
        earlier: &[MappedRun],
        others: &BTreeMap<BlobId, Volume>,
    ) -> Vec<(ClusterIndex, BlobId)> {
        let unowned = self.clusters.insert_run(run.device.0, run.count.0) == run.count.0;
        if unowned && self.by_cluster.is_none() {
            return Vec::new();
        }
        let by_cluster = self.by_cluster.get_or_insert_with(|| {
            let earlier = earlier.iter().flat_map(|run| clusters_of(run.device, run.count));
            let earlier = earlier.map(|cluster| (cluster, id));
            let held = self.held.iter().flat_map(held_of);
            held.chain(others.values().flat_map(own_of)).chain(earlier).collect()
        });
        let owned = clusters_of(run.device, run.count);
        owned.filter_map(|cluster| Some((cluster, by_cluster.insert(cluster, id)?))).collect()
    }

    /// An unfinished snapshot as a volume to be deleted by the next commit, with what nobody else
    /// has, another unfinished one included: it is given back once.
    fn leftovers(&mut self, found: LoadedBlob, name: VolumeName, map: Arc<VolumeMap>) -> Volume {
        let LoadedBlob { mut blob, map: clusters } = found;
        if let Mapping::Table(table) = &mut blob.mapping {
            for (slot, page) in table.iter().collect::<Vec<_>>() {
                if self.stray.pages.contains(page.0) || self.pages.contains_key(&page) {
                    table.clear(slot);
                } else {
                    self.pages.insert(page, blob.id);
                }
            }
        }
        let mut volume = Volume::new(blob, map, name, ClusterCount(0));
        let unshared = clusters.device_clusters();
        let unshared = unshared.filter(|cluster| !self.stray.clusters.contains(cluster.0));
        volume.dropped = unshared.filter(|cluster| self.clusters.insert(cluster.0)).collect();
        volume.delete();
        volume
    }
}

/// What of its mapping a volume owns. Of what its parent has, too, it has not taken the place over
/// yet; the next commit of such an extent page says so.
fn runs_to_own<'m>(volume: &mut Volume, map: &'m ClusterMap) -> Cow<'m, [MappedRun]> {
    if volume.blob.parent().is_none() {
        return Cow::Borrowed(map.runs());
    }
    let mut runs: Vec<MappedRun> = Vec::new();
    for run in map.runs() {
        let mut continued = false;
        for (offset, device) in (0..).zip(clusters_of(run.device, run.count)) {
            let at = VolumeCluster(run.volume.0 + offset);
            if volume.map.get(at) == Place::Parent(device) {
                volume.touch(at);
                continued = false;
            } else if continued && let Some(last) = runs.last_mut() {
                last.count.0 += 1;
            } else {
                runs.push(MappedRun { volume: at, device, count: ClusterCount(1) });
                continued = true;
            }
        }
    }
    Cow::Owned(runs)
}

/// The clusters that a volume's map shows as its own, and the volume.
fn own_of(volume: &Volume) -> impl Iterator<Item = (ClusterIndex, BlobId)> + '_ {
    let id = volume.blob.id;
    let runs = volume.map.runs(0..volume.clusters.0);
    runs.filter_map(|run| match run.place {
        Place::Own(place) => Some(clusters_of(place, run.count)),
        Place::None | Place::Parent(_) => None,
    })
    .flatten()
    .map(move |cluster| (cluster, id))
}

/// The clusters that a blob in quarantine has, and the blob.
fn held_of(held: &Held) -> impl Iterator<Item = (ClusterIndex, BlobId)> + '_ {
    let runs = held.clusters.iter().flat_map(|(first, count)| clusters_of(*first, *count));
    runs.map(|cluster| (cluster, held.id))
}

fn clusters_of(first: ClusterIndex, count: ClusterCount) -> impl Iterator<Item = ClusterIndex> {
    (first.0..first.0 + count.0).map(ClusterIndex)
}

fn limit(volumes: &mut BTreeMap<BlobId, Volume>, id: BlobId, reason: ReadOnlyReason) {
    if let Some(volume) = volumes.get_mut(&id) {
        volume.limit = Some(reason);
        volume.show_flags();
    }
}
