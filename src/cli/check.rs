//! `lvolfs check` and `lvolfs dump`: work on a store that no daemon has in use.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, ValueHint};
use serde_json::{Value, json};

use super::Exit;
use super::pretty;
use super::table::size;
use crate::hw::file::lock_exclusive;
use crate::hw::replacement::{Injected, replace};
use crate::lvol::check::{self, Check, CheckError, Known, Verdict};
use crate::lvol::dump::{self, BlobDump, Dump};
use crate::lvol::repair::undo::{DONE, DONE_OFFSET, FILE_LIMIT, Undo};
use crate::lvol::repair::{self, Plan};
use crate::lvol::validate::{Parent, Report, Severity, Volume};
use crate::units::{BlobId, BlockSize, ByteCount};

/// Findings of one kind that are shown as text; `--json` has all.
const SHOWN_EACH: usize = 20;

/// What the operator knows of a store.
#[derive(Debug, Args)]
pub(super) struct KnownArguments {
    /// The cluster size, such as 4MiB, if the super block is lost
    #[arg(long, value_name = "BYTES", value_parser = ByteCount::parse)]
    cluster_size: Option<ByteCount>,
    /// The block size of the device the store was made on, such as 4096B, if the super block is
    /// lost
    #[arg(long, value_name = "BYTES", value_parser = block_size)]
    block_size: Option<BlockSize>,
}

fn block_size(text: &str) -> Result<BlockSize, String> {
    let bytes = ByteCount::parse(text)?;
    let size = u32::try_from(bytes.0).ok().and_then(BlockSize::new);
    size.ok_or_else(|| format!("{text} is no block size"))
}

fn blob_id(text: &str) -> Result<BlobId, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map(BlobId).map_err(|error| format!("{text} is no blob id: {error}"))
}

impl KnownArguments {
    const fn known(&self) -> Known {
        Known { cluster_size: self.cluster_size, block_size: self.block_size }
    }

    /// Says what could still find a store that is not found.
    fn advise(&self, error: CheckError) -> anyhow::Error {
        let all_is_said = self.cluster_size.is_some() && self.block_size.is_some();
        if all_is_said || !matches!(error, CheckError::NotLvolstore(_)) {
            return error.into();
        }
        anyhow!(
            "{error}. If a store is here whose super block is lost, --cluster-size and \
             --block-size find it"
        )
    }
}

/// A store to check.
#[derive(Debug, Args)]
pub struct CheckStore {
    /// The block device or image file
    #[arg(value_hint = ValueHint::FilePath)]
    store: PathBuf,
    /// Repair what can be repaired without guessing; data clusters are never touched
    #[arg(long)]
    repair: bool,
    /// Where --repair saves every page that it changes [default: NAME.undo in the current folder]
    #[arg(long, value_name = "FILE", requires = "repair", value_hint = ValueHint::FilePath)]
    save_to: Option<PathBuf>,
    /// With --repair, erase this damaged volume, by the blob that a finding names; may be repeated
    #[arg(long, value_name = "BLOB", requires = "repair", value_parser = blob_id)]
    give_up: Vec<BlobId>,
    /// Put back what a repair saved in FILE
    #[arg(long, value_name = "FILE", conflicts_with = "repair", value_hint = ValueHint::FilePath)]
    undo: Option<PathBuf>,
    #[command(flatten)]
    known: KnownArguments,
}

/// A store to show.
#[derive(Debug, Args)]
pub struct DumpStore {
    /// The block device or image file
    #[arg(value_hint = ValueHint::FilePath)]
    store: PathBuf,
    #[command(flatten)]
    known: KnownArguments,
}

/// A check ends with a code of its own even when it has told all.
pub(super) struct Told {
    pub(super) text: String,
    pub(super) exit: Exit,
}

/// Opens a store so that nobody else has it.
fn open(path: &Path) -> anyhow::Result<File> {
    let shown = path.display();
    let kind = std::fs::metadata(path).with_context(|| format!("cannot open {shown}"))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        bail!("{shown} is neither a file nor a block device");
    }
    // The kernel gives a block device that is mounted, or part of something, to nobody else.
    let flags = if kind.is_block_device() { libc::O_EXCL } else { 0 };
    let attempt = |write| {
        OpenOptions::new().read(true).write(write).custom_flags(libc::O_CLOEXEC | flags).open(path)
    };
    match attempt(true) {
        Ok(file) => match lock_exclusive(&file) {
            Ok(()) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bail!("{shown} is in use: another process holds its lock; stop that one first")
            }
            Err(error) => Err(error).with_context(|| format!("cannot lock {shown}")),
        },
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            bail!("{shown} is in use: it is mounted, or part of another device")
        }
        // Nobody can write to it, so nobody can change it under the check.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            attempt(false).with_context(|| format!("cannot open {shown}"))
        }
        Err(error) => Err(error).with_context(|| format!("cannot open {shown}")),
    }
}

impl CheckStore {
    pub(super) fn run(self, json: bool) -> anyhow::Result<Told> {
        let path = &self.store;
        let shown = path.display();
        let image = open(path)?;
        if let Some(file) = &self.undo {
            let undo = read_undo(file)?;
            undo.put_back(&image).with_context(|| format!("cannot undo {shown}"))?;
            let text =
                format!("{shown}: {} pages are as they were before the repair", undo.pages());
            return Ok(Told { text: super::ask::done(json, &text), exit: Exit::Success });
        }
        let mut done = Vec::new();
        if self.repair {
            let save_to = self.save_to.clone().map_or_else(|| default_save(path), Ok)?;
            done = repair(&image, &self.known, &self.give_up, &save_to)
                .with_context(|| format!("cannot repair {shown}"))?;
        }
        let check = check::check(&image, self.known.known())
            .map_err(|error| self.known.advise(error))
            .with_context(|| format!("cannot check {shown}"))?;
        let exit = match check.verdict() {
            Verdict::Clean => Exit::Success,
            Verdict::Repairable => Exit::Repairable,
            Verdict::Damaged => Exit::Damaged,
        };
        let text = if json { as_json(&check, &done) } else { told(path, &check, &done) };
        Ok(Told { text, exit })
    }
}

fn default_save(path: &Path) -> anyhow::Result<PathBuf> {
    let name = path.file_name().context("the store has no file name; say --save-to FILE")?;
    let mut name = name.to_owned();
    name.push(".undo");
    Ok(name.into())
}

fn read_undo(path: &Path) -> anyhow::Result<Undo> {
    let shown = path.display();
    let read = || {
        let mut file = File::open(path)?;
        let mut bytes = Vec::new();
        if file.metadata()?.len() > FILE_LIMIT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        file.read_to_end(&mut bytes).map(|_| bytes)
    };
    let bytes = read().with_context(|| format!("cannot read {shown}"))?;
    Undo::decode(&bytes).with_context(|| format!("cannot use {shown}"))
}

/// Repairs, after everything that changes was saved; tells what was done.
fn repair(
    image: &File,
    known: &KnownArguments,
    give_up: &[BlobId],
    save_to: &Path,
) -> anyhow::Result<Vec<String>> {
    let shown = save_to.display();
    let mut done = Vec::new();
    if save_to.exists() {
        let undo = read_undo(save_to)?;
        if undo.is_done() {
            bail!("{shown} belongs to an earlier repair; move it away, or say --save-to FILE");
        }
        undo.put_back(image).context("an earlier repair was interrupted")?;
        done.push(format!("put back {} pages of an interrupted repair", undo.pages()));
    }
    let plan: Plan =
        repair::plan(image, known.known(), give_up).map_err(|error| known.advise(error))?;
    if plan.is_empty() {
        return Ok(done);
    }
    let undo = Undo::of(image, &plan)?;
    // Durable as a whole, before anything changes.
    replace(save_to, &undo.encode(), |_| Injected::Nothing)
        .with_context(|| format!("cannot write {shown}"))?;
    let file = OpenOptions::new().write(true).open(save_to);
    let file = file.with_context(|| format!("cannot open {shown}"))?;
    plan.carry_out(image)?;
    let finished = file.write_all_at(DONE, DONE_OFFSET).and_then(|()| file.sync_all());
    finished.with_context(|| format!("the repair is done, but {shown} cannot say so"))?;
    done.extend(plan.steps().map(|(what, pages)| format!("{what} ({pages} pages)")));
    done.push(format!("saved what was changed in {shown}; --undo {shown} puts it back"));
    Ok(done)
}

const fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Repairable => "repairable",
        Severity::Damage => "damage",
    }
}

const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Clean => "clean",
        Verdict::Repairable => "repairable",
        Verdict::Damaged => "damaged",
    }
}

fn name_of(report: &Report, volume: &Volume) -> String {
    let name = volume.name.as_ref().map(ToString::to_string);
    let pool = report.name.as_ref().map_or("?", |name| name.as_str());
    format!("{pool}/{}", name.unwrap_or_else(|| format!("{:#x}", volume.blob.0)))
}

fn parent_of(report: &Report, volume: &Volume) -> Option<String> {
    match volume.parent.as_ref()? {
        Parent::Snapshot(id) => Some(match report.volumes.get(id) {
            Some(parent) => name_of(report, parent),
            None => format!("{:#x}", id.0),
        }),
        Parent::External(name) => Some(name.escape_ascii().to_string()),
    }
}

fn as_json(check: &Check, done: &[String]) -> String {
    let mut findings = Vec::new();
    if let Some(damage) = &check.super_block {
        let found = if check.report.is_some() { "repairable" } else { "damage" };
        findings.push(json!({
            "severity": found, "code": "super-block", "text": chain(damage),
        }));
    }
    let report = check.report.as_ref();
    findings.extend(report.iter().flat_map(|report| &report.findings).map(|finding| {
        json!({
            "severity": severity(finding.severity()),
            "code": finding.code(),
            "text": finding.to_string(),
        })
    }));
    let store = report.map_or(Value::Null, |report| {
        let volumes = report.volumes.values().map(|volume| {
            json!({
                "blob": format!("{:#x}", volume.blob.0),
                "name": volume.name.as_ref().map(ToString::to_string),
                "uuid": volume.uuid,
                "size": volume.size.0,
                "thin": volume.thin,
                "read_only": volume.read_only,
                "allocated_clusters": volume.allocated.0,
                "parent": parent_of(report, volume),
                "clones": volume.clones.iter().map(|id| format!("{:#x}", id.0)).collect::<Vec<_>>(),
            })
        });
        json!({
            "name": report.name.as_ref().map(ToString::to_string),
            "uuid": report.uuid,
            "closed_in_order": report.clean,
            "size": report.layout.size().0,
            "cluster_size": report.layout.cluster_size().0,
            "data_clusters": report.layout.data_clusters().0,
            "free_clusters": report.free_clusters.0,
            "volumes": volumes.collect::<Vec<_>>(),
            "journal": report.journal.as_ref().map(|journal| json!({
                "blob": format!("{:#x}", journal.blob.0),
                "name": journal.name.as_ref().map(ToString::to_string),
                "size": journal.size.0,
            })),
        })
    });
    pretty(&json!({
        "verdict": verdict(check.verdict()),
        "repaired": done,
        "findings": findings,
        "store": store,
    }))
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn told(path: &Path, check: &Check, done: &[String]) -> String {
    let mut text = String::new();
    for step in done {
        text += &format!("repair: {step}\n");
    }
    if let Some(damage) = &check.super_block {
        text += &match &check.report {
            Some(_) => format!("repairable: {}; it could be rebuilt\n", chain(damage)),
            None => format!(
                "damage: {}; nothing else says what it was. If you know cluster size and block \
                 size of the store, give --cluster-size and --block-size\n",
                chain(damage)
            ),
        };
    }
    if let Some(report) = &check.report {
        text += &findings(report);
        let name = report.name.as_ref().map_or("?", |name| name.as_str());
        let layout = &report.layout;
        text += &format!(
            "pool {name}: {}, clusters of {}, {} of {} free, {} volumes, {}\n",
            size(layout.size().0),
            size(layout.cluster_size().0),
            report.free_clusters.0,
            layout.data_clusters().0,
            report.volumes.len(),
            if report.clean { "closed in order" } else { "not closed in order" },
        );
        if let Some(journal) = &report.journal {
            text += &format!(
                "journal {}: blob {:#x}, {}, against torn writes; no volume\n",
                name_of(report, journal),
                journal.blob.0,
                size(journal.size.0),
            );
        }
    }
    text + &format!("{}: {}\n", path.display(), verdict(check.verdict()))
}

fn findings(report: &Report) -> String {
    let mut text = String::new();
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for finding in &report.findings {
        let count = counts.entry(finding.code()).or_default();
        *count += 1;
        if *count <= SHOWN_EACH {
            text += &format!("{}: {finding}\n", severity(finding.severity()));
        }
    }
    for (code, count) in counts.into_iter().filter(|(_, count)| *count > SHOWN_EACH) {
        text += &format!("and {} more of the kind {code}\n", count - SHOWN_EACH);
    }
    text
}

impl DumpStore {
    pub(super) fn run(self, json: bool) -> anyhow::Result<String> {
        let shown = self.store.display();
        let image = open(&self.store)?;
        let dump = dump::dump(&image, self.known.known())
            .map_err(|error| self.known.advise(error))
            .with_context(|| format!("cannot show {shown}"))?;
        Ok(if json { pretty(&dump) } else { shown_dump(&dump) })
    }
}

fn shown_dump(dump: &Dump) -> String {
    let Dump { super_block, bitmaps, blobs, other_pages, damaged_pages } = dump;
    let mut text = String::from("super block\n");
    if let Some(damage) = &super_block.damage {
        text += &format!("  rebuilt, since {damage}\n");
    }
    text += &format!(
        "  version {}, {}, super blob {}\n  {} bytes in {} clusters of {} bytes, {} of them metadata\n  metadata pages of {} bytes, volume blocks of {} bytes\n",
        super_block.version,
        if super_block.clean { "clean" } else { "not clean" },
        super_block.super_blob.as_deref().unwrap_or("none"),
        super_block.size,
        super_block.clusters,
        super_block.cluster_size,
        super_block.metadata_clusters,
        super_block.metadata_page_size,
        super_block.io_unit,
    );
    for region in &super_block.regions {
        text += &format!("  {}: page {}, {} pages\n", region.name, region.first, region.pages);
    }
    for bitmap in bitmaps {
        text += &format!("{} bitmap: {} of {} bits\n", bitmap.name, bitmap.used, bitmap.bits);
        for (first, count) in &bitmap.runs {
            text += &format!("  {first}+{count}\n");
        }
    }
    for blob in blobs {
        text += &shown_blob(blob);
    }
    for page in other_pages {
        text += &format!("page {}: chain or extent page of blob {}\n", page.page, page.writer);
    }
    for page in damaged_pages {
        text += &format!("page {page}: damaged\n");
    }
    text
}

fn shown_blob(blob: &BlobDump) -> String {
    let mut text = format!(
        "blob {}: {}{}, {} clusters\n",
        blob.id,
        if blob.thin { "thin" } else { "thick" },
        if blob.read_only { ", read-only" } else { "" },
        blob.clusters,
    );
    for xattr in &blob.xattrs {
        text += &format!("  {} = {}\n", xattr.name, xattr.value);
    }
    for xattr in &blob.internal_xattrs {
        text += &format!("  internal {} = {}\n", xattr.name, xattr.value);
    }
    if !blob.chain.is_empty() {
        text += &format!("  chain pages {:?}\n", blob.chain);
    }
    for (slot, page) in &blob.extent_pages {
        text += &format!("  extent page {page} in place {slot}\n");
    }
    match &blob.map {
        None => text += "  the mapping cannot be read\n",
        Some(runs) => {
            for run in runs {
                text += &format!("  {}+{} at cluster {}\n", run.volume, run.count, run.device);
            }
        }
    }
    text
}
