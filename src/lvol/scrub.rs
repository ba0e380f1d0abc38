//! Scrub: reads, in the background and at a set rate, everything that the pool would need after a
//! crash or a read, and reports what cannot be read or is not what it must be.
//!
//! 1. The super block, then each volume's root, chain and extent pages: checksum, owner, place,
//!    and for an extent page that it names the clusters that memory knows.
//! 2. Each cluster that a volume has of its own, read as a whole. What data must be is known to
//!    nobody here; that the device can read it is what counts.
//!
//! Nothing is written. Pools go on working meanwhile: whatever changed while it was being looked at
//! is looked at again, or left out if it is gone. Findings are logged once each, and the first
//! [`FINDINGS_LIMIT`] are kept until the next scrub.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::block::{BlockDevice, BlockError};
use crate::units::{BlobId, ByteCount, ByteOffset, ClusterIndex, PageIndex, VolumeCluster};

use super::error::Error;
use super::format::{
    ExtentPage, Mapping, Page, PageBytes, STRUCTURE_SIZE, SuperBlock, TableSlot, root_page,
};
use super::store::Store;
use super::volume::Volume;
use super::volume_map::Place;

/// Findings that are kept; the rest is only counted.
pub const FINDINGS_LIMIT: usize = 100;
/// The rate if none is asked for, in bytes a second.
pub const DEFAULT_RATE: ByteCount = ByteCount(64 << 20);
/// The lowest rate: below it a scrub of any pool would take years.
pub const LOWEST_RATE: ByteCount = ByteCount(64 << 10);
/// Bytes of one read of data.
const READ_STEP: u64 = 256 << 10;
/// How often a metadata page that seems wrong is read before that is believed.
const TRIES: usize = 3;
/// How long to wait for DMA memory that data I/O has at the moment.
const MEMORY_RETRY: Duration = Duration::from_millis(10);

/// Where a scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScrubState {
    /// There was none since the pool was opened.
    #[default]
    Never,
    /// One is under way.
    Running,
    /// The last one read everything.
    Done,
    /// The last one was stopped, or the pool was closed under it.
    Stopped,
}

/// What a scrub did and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Where it is.
    pub state: ScrubState,
    /// The most that it reads in a second.
    pub rate: ByteCount,
    /// What there was to read when it began.
    pub total: ByteCount,
    /// What has been read.
    pub read: ByteCount,
    /// Metadata pages among it.
    pub pages: u64,
    /// Clusters among it.
    pub clusters: u64,
    /// How long it took so far.
    pub elapsed: Duration,
    /// How many faults were found.
    pub faults: u64,
    /// The first of them.
    pub findings: Vec<String>,
}

/// The scrub of a pool: the current one, or the last.
#[derive(Default)]
pub(super) struct Scrubs {
    report: RefCell<ScrubReport>,
    stop: Cell<bool>,
}

/// One metadata page to look at.
#[derive(Clone, Copy, Debug)]
enum Item {
    Root(BlobId),
    /// A later page of a chain, with its number in it.
    Chain(BlobId, usize, PageIndex),
    Extent(BlobId, TableSlot, PageIndex),
}

/// What one look at a page says.
enum Look {
    Good,
    /// It is no longer the volume's.
    Gone,
    /// It is wrong, or was being written.
    Wrong(String),
}

impl<D: BlockDevice> Store<D> {
    /// Begins a scrub that reads at most `rate` bytes a second, and at least [`LOWEST_RATE`].
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::Busy`] while another one is under way.
    pub fn start_scrub(&self, rate: ByteCount) -> Result<(), Error> {
        if self.state.borrow().closed {
            return Err(Error::Closed);
        }
        let scrubs = &self.scrubs;
        if scrubs.report.borrow().state == ScrubState::Running {
            return Err(Error::Busy { with: "a scrub of this pool" });
        }
        let rate = rate.max(LOWEST_RATE);
        let state = ScrubState::Running;
        *scrubs.report.borrow_mut() = ScrubReport { state, rate, ..ScrubReport::default() };
        scrubs.stop.set(false);
        let store = self.strong();
        self.reactor.spawn(async move { store.scrub().await });
        Ok(())
    }

    /// Asks the scrub that is under way, if any, to stop; it does so after the read it is at.
    pub fn stop_scrub(&self) {
        self.scrubs.stop.set(true);
    }

    /// The scrub that is under way, or the last one.
    #[must_use]
    pub fn scrub_report(&self) -> ScrubReport {
        self.scrubs.report.borrow().clone()
    }

    async fn scrub(self: Rc<Self>) {
        let pool = self.info().name;
        let rate = self.scrubs.report.borrow().rate;
        tracing::info!(pool, rate = %rate.human(), "scrub begins");
        let mut pace = Pace { store: &self, began: self.reactor.now(), rate };
        let ended = self.scrub_all(&mut pace).await;
        let mut report = self.scrubs.report.borrow_mut();
        report.state = if ended.is_some() { ScrubState::Done } else { ScrubState::Stopped };
        report.elapsed = self.reactor.now().since(pace.began);
        let ScrubReport { read, faults, .. } = &*report;
        if *faults > 0 {
            tracing::error!(
                pool,
                faults,
                "scrub found faults: copy what matters to another pool; lvolfs check tells more"
            );
        } else {
            tracing::info!(pool, read = %read.human(), state = ?report.state, "scrub ended");
        }
    }

    /// All of it; `None` once it is to stop.
    async fn scrub_all(&self, pace: &mut Pace<'_, D>) -> Option<()> {
        let items = self.metadata_items();
        self.scrubs.report.borrow_mut().total = self.scrub_size(items.len());
        self.scrub_super_block(pace).await?;
        for item in items {
            self.scrub_page(item, pace).await?;
        }
        let mut at = None;
        while let Some((blob, cluster, place)) = self.next_own_cluster(at) {
            self.scrub_cluster(blob, cluster, place, pace).await?;
            at = Some((blob, cluster));
        }
        Some(())
    }

    fn scrub_size(&self, pages: usize) -> ByteCount {
        let state = self.state.borrow();
        let served = state.volumes.values().filter(|volume| !volume.deleted);
        let clusters: u64 = served.map(|volume| u64::from(volume.map.allocated().0)).sum();
        let metadata = (pages as u64 + 1) * STRUCTURE_SIZE as u64;
        ByteCount(metadata + clusters * self.layout.cluster_size().0)
    }

    fn metadata_items(&self) -> Vec<Item> {
        let state = self.state.borrow();
        let mut items = Vec::new();
        for (id, volume) in state.volumes.iter().filter(|(_, volume)| !volume.deleted) {
            items.push(Item::Root(*id));
            let chain = volume.blob.chain.iter().enumerate();
            items.extend(chain.map(|(index, page)| Item::Chain(*id, index + 1, *page)));
            if let Mapping::Table(table) = &volume.blob.mapping {
                items.extend(table.iter().map(|(slot, page)| Item::Extent(*id, slot, page)));
            }
        }
        items
    }

    async fn scrub_super_block(&self, pace: &mut Pace<'_, D>) -> Option<()> {
        let medium = super::metadata_io::medium(self.io.device().geometry());
        for left in (0..TRIES).rev() {
            let problem = match self.read_for_scrub(ByteOffset(0), STRUCTURE_SIZE, pace).await? {
                Ok(bytes) => match SuperBlock::parse(&bytes, medium) {
                    Ok(_) => None,
                    Err(problem) => Some(problem.to_string()),
                },
                Err(error) => Some(error.to_string()),
            };
            match problem {
                None => break,
                Some(_) if left > 0 => self.settle_commits().await,
                Some(problem) => self.found(format!("the super block: {problem}")),
            }
        }
        self.scrubs.report.borrow_mut().pages += 1;
        Some(())
    }

    /// Looks at a page until it is good, gone, or wrong [`TRIES`] times with no commit in between.
    async fn scrub_page(&self, item: Item, pace: &mut Pace<'_, D>) -> Option<()> {
        for left in (0..TRIES).rev() {
            let Some(page) = self.place_of(item) else { return Some(()) };
            let read = self.read_for_scrub(self.page_offset(page), STRUCTURE_SIZE, pace).await?;
            let look = match read {
                Ok(bytes) => self.look(item, &bytes),
                Err(error) => Look::Wrong(error.to_string()),
            };
            match look {
                Look::Good | Look::Gone => break,
                Look::Wrong(_) if left > 0 => self.settle_commits().await,
                Look::Wrong(problem) => {
                    let (kind, id) = match item {
                        Item::Root(id) => ("root", id),
                        Item::Chain(id, ..) => ("chain", id),
                        Item::Extent(id, ..) => ("extent", id),
                    };
                    let volume = self.name_for_scrub(id);
                    self.found(format!("{volume}: {kind} page {page}: {problem}"));
                }
            }
        }
        self.scrubs.report.borrow_mut().pages += 1;
        Some(())
    }

    /// The page of an item, while the volume has it.
    fn place_of(&self, item: Item) -> Option<PageIndex> {
        let state = self.state.borrow();
        let volume = |id| state.volumes.get(&id).filter(|volume: &&Volume| !volume.deleted);
        match item {
            Item::Root(id) => volume(id).and_then(|_| root_page(id)),
            Item::Chain(id, sequence, page) => {
                (volume(id)?.blob.chain.get(sequence - 1) == Some(&page)).then_some(page)
            }
            Item::Extent(id, slot, page) => match &volume(id)?.blob.mapping {
                Mapping::Table(table) => (table.get(slot) == Some(page)).then_some(page),
                Mapping::Rle(_) => None,
            },
        }
    }

    fn look(&self, item: Item, bytes: &PageBytes) -> Look {
        if self.place_of(item).is_none() {
            return Look::Gone;
        }
        let checked = match item {
            Item::Root(id) => self.look_at_chain(id, 0, bytes),
            Item::Chain(id, sequence, _) => self.look_at_chain(id, sequence as u32, bytes),
            Item::Extent(id, slot, _) => self.look_at_extents(id, slot, bytes),
        };
        checked.map_or_else(Look::Wrong, |()| Look::Good)
    }

    fn look_at_chain(&self, id: BlobId, sequence: u32, bytes: &PageBytes) -> Result<(), String> {
        let page = Page::parse(bytes).map_err(|problem| problem.to_string())?;
        if page.blob() != id {
            return Err(format!("it belongs to blob {:#x}", page.blob().0));
        }
        if page.sequence() != sequence {
            return Err(format!("it says that it is number {} of its chain", page.sequence()));
        }
        Ok(())
    }

    fn look_at_extents(
        &self,
        id: BlobId,
        slot: TableSlot,
        bytes: &PageBytes,
    ) -> Result<(), String> {
        let page = ExtentPage::parse(&self.layout, bytes).map_err(|problem| problem.to_string())?;
        // Which blob it names says nothing: a snapshot takes over the pages of its volume as they are.
        if page.first != slot.first_cluster() {
            return Err(format!("it maps from cluster {} on", page.first));
        }
        let state = self.state.borrow();
        let Some(volume) = state.volumes.get(&id).filter(|volume| !volume.dirty.contains(&slot))
        else {
            return Ok(());
        };
        let entries = page.clusters.len() as u32;
        if volume.map.own_entries(slot, entries) != page.clusters {
            return Err("it names other clusters than those in use".to_owned());
        }
        Ok(())
    }

    /// The first cluster after `at` that a volume has of its own, in the order of identities.
    fn next_own_cluster(
        &self,
        at: Option<(BlobId, VolumeCluster)>,
    ) -> Option<(BlobId, VolumeCluster, ClusterIndex)> {
        let state = self.state.borrow();
        let first = at.map_or(BlobId(0), |(blob, _)| blob);
        for (id, volume) in state.volumes.range(first..).filter(|(_, volume)| !volume.deleted) {
            let from = match at {
                Some((blob, cluster)) if blob == *id => cluster.0.saturating_add(1),
                _ => 0,
            };
            let end = volume.map.clusters().0;
            for run in volume.map.runs(from..end) {
                if let Place::Own(place) = run.place {
                    return Some((*id, run.first, place));
                }
            }
        }
        None
    }

    async fn scrub_cluster(
        &self,
        blob: BlobId,
        cluster: VolumeCluster,
        place: ClusterIndex,
        pace: &mut Pace<'_, D>,
    ) -> Option<()> {
        let size = self.layout.cluster_size().0;
        let step = READ_STEP.min(self.io.device().geometry().max_transfer.0);
        let mut within = 0;
        while within < size {
            let length = step.min(size - within);
            let offset = ByteOffset(u64::from(place.0) * size + within);
            if let Err(error) = self.read_data(offset, length, pace).await? {
                let still = {
                    let state = self.state.borrow();
                    let volume = state.volumes.get(&blob);
                    volume.is_some_and(|volume| volume.map.get(cluster) == Place::Own(place))
                };
                if still {
                    let volume = self.name_for_scrub(blob);
                    let at = u64::from(cluster.0) * size + within;
                    self.found(format!(
                        "{volume}: {length} bytes at byte {at} (byte {offset} of the device): {error}"
                    ));
                }
            }
            within += length;
        }
        self.scrubs.report.borrow_mut().clusters += 1;
        Some(())
    }

    /// Reads one structure when its time has come; `None` once the scrub is to stop.
    async fn read_for_scrub(
        &self,
        offset: ByteOffset,
        length: usize,
        pace: &mut Pace<'_, D>,
    ) -> Option<Result<PageBytes, BlockError>> {
        loop {
            pace.wait(length as u64).await?;
            match self.io.read_page(offset).await {
                Err(BlockError::NoMemory { .. }) => self.reactor.sleep(MEMORY_RETRY).await,
                other => return Some(other),
            }
        }
    }

    async fn read_data(
        &self,
        offset: ByteOffset,
        length: u64,
        pace: &mut Pace<'_, D>,
    ) -> Option<Result<(), BlockError>> {
        loop {
            pace.wait(length).await?;
            match self.io.read(offset, length as usize).await {
                Err(BlockError::NoMemory { .. }) => self.reactor.sleep(MEMORY_RETRY).await,
                other => return Some(other.map(drop)),
            }
        }
    }

    /// Lets the commit that is under way end: what it writes is on its place then. A failure is
    /// the pool's, which says so itself.
    async fn settle_commits(&self) {
        drop(self.commit([]).await);
    }

    fn name_for_scrub(&self, id: BlobId) -> String {
        let state = self.state.borrow();
        let own = state.own_blob == id;
        let journal = state.journal.as_ref().is_some_and(|own| own.id == id);
        match state.volumes.get(&id) {
            Some(_) if own => "the pool's own blob".to_owned(),
            Some(_) if journal => "the pool's journal".to_owned(),
            Some(volume) => format!("volume {}", volume.name.as_str()),
            None => format!("blob {:#x}", id.0),
        }
    }

    fn found(&self, finding: String) {
        let mut report = self.scrubs.report.borrow_mut();
        report.faults += 1;
        if report.findings.len() < FINDINGS_LIMIT {
            tracing::error!(finding, "scrub found a fault");
            report.findings.push(finding);
        }
    }
}

/// Keeps the rate, and counts.
struct Pace<'a, D: BlockDevice> {
    store: &'a Store<D>,
    began: crate::reactor::Instant,
    rate: ByteCount,
}

impl<D: BlockDevice> Pace<'_, D> {
    /// Waits until `bytes` more may be read; `None` once the scrub is to stop.
    async fn wait(&mut self, bytes: u64) -> Option<()> {
        let store = self.store;
        let due = {
            let mut report = store.scrubs.report.borrow_mut();
            report.elapsed = store.reactor.now().since(self.began);
            let due = report.read.0 as f64 / self.rate.0 as f64;
            report.read.0 += bytes;
            Duration::from_secs_f64(due)
        };
        store.reactor.sleep_until(self.began.after(due)).await;
        let ended = store.scrubs.stop.get() || store.state.borrow().closed;
        (!ended).then_some(())
    }
}
