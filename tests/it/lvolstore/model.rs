//! What a pool must hold after a power cut: a history of operations, each with the moments between
//! which it happened, and what they allow to be found.
//!
//! A cut at command n finds an operation *done* if it returned before command n was submitted,
//! and *begun* if it was called before. What is done and durable must be there; what is begun and
//! not durable may be there.

use std::collections::BTreeMap;

/// When an operation happened, in two clocks: its place in the order of all beginnings and ends,
/// and commands that the disk had seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) began: u64,
    pub(crate) ended: u64,
    pub(crate) first_command: u64,
    pub(crate) last_command: u64,
}

impl Span {
    /// Begun before every cut, and never done.
    pub(crate) const fn perhaps() -> Self {
        Self { began: 0, ended: 0, first_command: 0, last_command: u64::MAX }
    }

    /// Begun before every cut, and done at `command`.
    pub(crate) const fn first(command: u64) -> Self {
        Self { began: 0, ended: 0, first_command: 0, last_command: command }
    }

    /// Before every cut.
    const fn always() -> Self {
        Self { began: 0, ended: 0, first_command: 0, last_command: 0 }
    }

    fn begun(self, cut: u64) -> bool {
        self.first_command < cut
    }

    fn done(self, cut: u64) -> bool {
        self.last_command < cut
    }
}

/// A value over time: each change is durable when its operation returns.
#[derive(Clone, Debug)]
struct Timeline<T>(Vec<(Span, T)>);

impl<T: Clone + PartialEq> Timeline<T> {
    /// The values that a cut may find.
    fn allowed(&self, cut: u64) -> Vec<T> {
        let done = self.0.iter().rposition(|(span, _)| span.done(cut)).unwrap_or(0);
        let begun = self.0[done..].iter().filter(|(span, _)| span.begun(cut));
        begun.map(|(_, value)| value.clone()).collect()
    }

    fn now(&self) -> T {
        self.0.last().unwrap().1.clone()
    }
}

/// What was written to a block.
#[derive(Clone, Copy, Debug)]
struct Write {
    span: Span,
    value: u64,
    /// Whether it is durable when it returns, without an fsync.
    durable: bool,
}

/// One volume, from its making on.
#[derive(Clone, Debug)]
pub(crate) struct ModelVolume {
    created: Span,
    deleted: Option<Span>,
    name: Timeline<String>,
    /// Whatever else can be told of it.
    facts: Timeline<String>,
    clusters: Timeline<u64>,
    /// For each block that was ever written: what, and when. Every value is used once.
    blocks: BTreeMap<u64, Vec<Write>>,
    fsyncs: Vec<Span>,
    /// Orderly closes, each with the command at which the next opening ended.
    closes: Vec<(Span, Option<u64>)>,
}

impl ModelVolume {
    pub(crate) fn new(created: Span, name: String, clusters: u64, facts: String) -> Self {
        Self {
            created,
            deleted: None,
            name: Timeline(vec![(created, name)]),
            facts: Timeline(vec![(created, facts)]),
            clusters: Timeline(vec![(created, clusters)]),
            blocks: BTreeMap::new(),
            fsyncs: Vec::new(),
            closes: Vec::new(),
        }
    }

    /// A snapshot or a clone: what the volume holds now, durable when it is there at all.
    pub(crate) fn copy(&self, created: Span, name: String, facts: String) -> Self {
        let mut copy = Self::new(created, name, self.clusters(), facts);
        for block in self.blocks.keys() {
            let write = Write { span: created, value: self.value(*block), durable: true };
            let base = Write { span: Span::always(), ..write };
            copy.blocks.insert(*block, vec![base, write]);
        }
        copy
    }

    pub(crate) fn exists(&self) -> bool {
        self.deleted.is_none()
    }

    pub(crate) fn clusters(&self) -> u64 {
        self.clusters.now()
    }

    pub(crate) fn delete(&mut self, span: Span) {
        self.deleted = Some(span);
    }

    pub(crate) fn rename(&mut self, span: Span, name: String) {
        self.name.0.push((span, name));
    }

    /// Says something about it, durable when the operation returns.
    pub(crate) fn tell(&mut self, span: Span, facts: String) {
        self.facts.0.push((span, facts));
    }

    /// What is cut off reads as zeros if it comes back.
    pub(crate) fn resize(&mut self, span: Span, clusters: u64, per_cluster: u64) {
        for (block, writes) in self.blocks.range_mut(clusters * per_cluster..) {
            assert!(*block >= clusters * per_cluster);
            writes.push(Write { span, value: 0, durable: true });
        }
        self.clusters.0.push((span, clusters));
    }

    pub(crate) fn write(&mut self, span: Span, block: u64, value: u64, durable: bool) {
        self.blocks.entry(block).or_default().push(Write { span, value, durable });
    }

    pub(crate) fn fsync(&mut self, span: Span) {
        self.fsyncs.push(span);
    }

    /// What it shows of another one from now on, durable when the operation returns.
    pub(crate) fn show(&mut self, span: Span, shown: &Self) {
        for block in shown.blocks.keys() {
            let value = shown.value(*block);
            self.blocks.entry(*block).or_default().push(Write { span, value, durable: true });
        }
    }

    pub(crate) fn close(&mut self, span: Span) {
        self.closes.push((span, None));
    }

    pub(crate) fn open(&mut self, command: u64) {
        self.closes.last_mut().unwrap().1 = Some(command);
    }

    /// Whether a cut must find it closed in order.
    pub(crate) fn is_closed(&self, cut: u64) -> bool {
        let ended = |opened: Option<u64>| opened.is_some_and(|command| command < cut);
        self.closes.iter().any(|(span, opened)| span.done(cut) && !ended(*opened))
    }

    /// What a block holds now.
    pub(crate) fn value(&self, block: u64) -> u64 {
        self.blocks.get(&block).and_then(|writes| writes.last()).map_or(0, |write| write.value)
    }

    /// Whether a cut may, and whether it must, find the volume.
    pub(crate) fn existence(&self, cut: u64) -> (bool, bool) {
        let may = self.created.begun(cut) && !self.deleted.is_some_and(|span| span.done(cut));
        let must = self.created.done(cut) && !self.deleted.is_some_and(|span| span.begun(cut));
        (may, must)
    }

    pub(crate) fn names(&self, cut: u64) -> Vec<String> {
        self.name.allowed(cut)
    }

    pub(crate) fn facts(&self, cut: u64) -> Vec<String> {
        self.facts.allowed(cut)
    }

    pub(crate) fn sizes(&self, cut: u64) -> Vec<u64> {
        self.clusters.allowed(cut)
    }

    /// The values that a cut may find in a block.
    pub(crate) fn values(&self, block: u64, cut: u64) -> Vec<u64> {
        let Some(writes) = self.blocks.get(&block) else { return vec![0] };
        // An fsync covers what ended before it began.
        let covered = |write: &Write| {
            let mut fsyncs = self.fsyncs.iter().filter(|fsync| fsync.done(cut));
            (write.durable && write.span.done(cut))
                || fsyncs.any(|fsync| write.span.ended < fsync.began)
        };
        let durable = writes.iter().rposition(covered);
        let base = durable.map_or(0, |last| writes[last].value);
        let later = &writes[durable.map_or(0, |last| last + 1)..];
        let later = later.iter().filter(|write| write.span.begun(cut));
        std::iter::once(base).chain(later.map(|write| write.value)).collect()
    }
}
