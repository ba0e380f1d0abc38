//! From loaded blobs to volumes: interrupted snapshot operations, names, parents, owners.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::units::{BlobId, ClusterCount, ClusterIndex, PageIndex, VolumeCluster};

use super::super::error::{Damage, Error, ReadOnlyReason};
use super::super::format::{ClusterMap, Mapping, SuperBlock, VolumeName, lvolstore};
use super::super::journal::find_journal;
use super::super::volume::Volume;
use super::super::volume_map::{Fate, Place, VolumeMap};
use super::{Loaded, LoadedBlob, Recovered, pages_of};

/// From loaded blobs to volumes: interrupted snapshot operations, names, parents, owners.
pub(super) fn relate(
    super_block: SuperBlock,
    mut loaded: Loaded,
    own_blob: BlobId,
    fate: &Arc<Fate>,
) -> Result<Recovered, Error> {
    let interrupted = finish_interrupted(&mut loaded);
    if !loaded.blobs.contains_key(&own_blob) {
        let damaged = loaded.quarantined.iter().find(|quarantined| quarantined.id == own_blob);
        let damage = damaged.map_or(Damage::Missing, |quarantined| quarantined.damage.clone());
        return Err(Error::SuperBlob(damage));
    }
    let names = take_names(&mut loaded, own_blob)?;
    let order = parents_first(&mut loaded);
    let mut volumes: BTreeMap<BlobId, Volume> = BTreeMap::new();
    let mut owners = Owners::default();
    for id in order {
        let (Some(LoadedBlob { blob, map }), Some(name)) =
            (loaded.blobs.remove(&id), names.get(&id))
        else {
            continue;
        };
        loaded.claim(pages_of(&blob).into_iter(), map.device_clusters());
        let shared = Arc::new(VolumeMap::new(id, &loaded.layout, fate));
        let parent = blob.parent().and_then(|parent| volumes.get(&parent));
        let clusters = map.clusters();
        shared.show_parent(parent.map(|parent| &*parent.map), clusters.0);
        let mut volume = Volume::new(blob, shared, name.clone(), clusters);
        volume.root_dirty = interrupted.kept.contains(&id);
        owners.own(&mut volume, &map, &mut volumes);
        volume.map.set_clusters(clusters);
        volumes.insert(id, volume);
    }
    for (id, discarded) in interrupted.discarded {
        let shared = Arc::new(VolumeMap::new(id, &loaded.layout, fate));
        let volume = owners.leftovers(&mut loaded, discarded, shared);
        volumes.extend(volume.map(|volume| (id, volume)));
    }
    let Loaded { layout, allocator, quarantined, recovery, .. } = loaded;
    let journal = find_journal(&layout, volumes.values());
    let (clean, pages_read) = (recovery.clean, recovery.pages_scanned);
    let (blobs, quarantined_blobs) = (volumes.len(), quarantined.len());
    tracing::info!(clean, pages_read, blobs, quarantined_blobs, "lvstore opened");
    Ok(Recovered { super_block, allocator, volumes, own_blob, journal, quarantined, recovery })
}

/// Snapshots whose making or deletion was interrupted.
#[derive(Default)]
struct Interrupted {
    kept: BTreeSet<BlobId>,
    discarded: BTreeMap<BlobId, LoadedBlob>,
}

/// Applies the rule for interrupted snapshot operations, as SPDK does at load: a blob that was
/// being made a snapshot, or deleted as one, stays if its other volume is already (or still) its
/// clone, and goes otherwise. What goes shares its clusters with the other one.
fn finish_interrupted(loaded: &mut Loaded) -> Interrupted {
    let mut result = Interrupted::default();
    let interrupted = loaded.blobs.values().filter_map(|found| {
        let other = found.blob.deleting_for().or(found.blob.snapshot_of())?;
        Some((found.blob.id, other))
    });
    for (id, other) in interrupted.collect::<Vec<_>>() {
        let Some(parent) = loaded.blobs.get(&other).map(|other| other.blob.parent()) else {
            loaded.quarantine_loaded(id, Damage::Interrupted { other });
            continue;
        };
        if parent == Some(id) {
            if let Some(found) = loaded.blobs.get_mut(&id) {
                found.blob.set_deleting_for(None);
                found.blob.set_snapshot_of(None);
                found.blob.flags.read_only = true;
                result.kept.insert(id);
            }
        } else if let Some(found) = loaded.blobs.remove(&id) {
            tracing::warn!(blob = id.0, other = other.0, "removing an unfinished snapshot");
            result.discarded.insert(id, found);
        }
    }
    result
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
#[derive(Default)]
struct Owners {
    clusters: HashMap<ClusterIndex, BlobId>,
    pages: HashMap<PageIndex, BlobId>,
}

impl Owners {
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
        for run in map.runs() {
            for offset in 0..run.count.0 {
                let at = VolumeCluster(run.volume.0 + offset);
                let cluster = ClusterIndex(run.device.0 + offset);
                if volume.map.get(at) == Place::Parent(cluster) {
                    // Not taken over yet; the next commit of this extent page says so.
                    volume.touch(at);
                    continue;
                }
                volume.map.set(at, Place::Own(cluster));
                if let Some(other) = self.clusters.insert(cluster, id) {
                    shared = Some((other, ReadOnlyReason::SharedCluster { cluster, other }));
                    limit(others, other, ReadOnlyReason::SharedCluster { cluster, other: id });
                }
            }
        }
        if let Some((other, reason)) = shared {
            tracing::error!(blob = id.0, other = other.0, %reason, "two owners: both read-only");
            volume.limit = Some(reason);
        }
        volume.show_flags();
    }

    /// An unfinished snapshot as a volume to be deleted by the next commit, with what it shares
    /// with nobody. One without a name was not made by an lvolstore, and stays.
    fn leftovers(
        &self,
        loaded: &mut Loaded,
        found: LoadedBlob,
        map: Arc<VolumeMap>,
    ) -> Option<Volume> {
        let LoadedBlob { mut blob, map: clusters } = found;
        loaded.claim(pages_of(&blob).into_iter(), clusters.device_clusters());
        let id = blob.id;
        let name = match lvolstore::name(&blob.xattrs) {
            Ok(name) => name,
            Err(error) => {
                loaded.quarantine(id, None, error.into());
                return None;
            }
        };
        if let Mapping::Table(table) = &mut blob.mapping {
            for (slot, page) in table.iter().collect::<Vec<_>>() {
                if self.pages.contains_key(&page) {
                    table.clear(slot);
                }
            }
        }
        let mut volume = Volume::new(blob, map, name, ClusterCount(0));
        let unshared = clusters.device_clusters();
        volume.dropped = unshared.filter(|cluster| !self.clusters.contains_key(cluster)).collect();
        volume.delete();
        Some(volume)
    }
}

fn limit(volumes: &mut BTreeMap<BlobId, Volume>, id: BlobId, reason: ReadOnlyReason) {
    if let Some(volume) = volumes.get_mut(&id) {
        volume.limit = Some(reason);
        volume.show_flags();
    }
}
