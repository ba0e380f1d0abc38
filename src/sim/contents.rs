//! What a simulated disk holds, and what was written to it.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Contents are kept in pages of this size; an atomic unit is at most this.
pub(super) const PAGE: usize = 4096;

pub(super) type Pages = BTreeMap<u64, Arc<[u8; PAGE]>>;

#[derive(Clone)]
pub(super) enum Data {
    Bytes(Arc<[u8]>),
    Fill(u8, u64),
}

impl Data {
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Fill(_, length) => *length,
        }
    }

    pub(super) fn part(&self, range: std::ops::Range<u64>) -> Self {
        match self {
            Self::Bytes(bytes) => {
                Self::Bytes(bytes[range.start as usize..range.end as usize].into())
            }
            Self::Fill(byte, _) => Self::Fill(*byte, range.end - range.start),
        }
    }
}

pub(super) fn apply(pages: &mut Pages, offset: u64, data: &Data, part: std::ops::Range<u64>) {
    let mut at = part.start;
    while at < part.end {
        let position = offset + at;
        let (page, start) = (position / PAGE as u64, (position % PAGE as u64) as usize);
        let length = ((part.end - at) as usize).min(PAGE - start);
        let target = pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
        let target = &mut Arc::make_mut(target)[start..start + length];
        match data {
            Data::Bytes(bytes) => target.copy_from_slice(&bytes[at as usize..at as usize + length]),
            Data::Fill(byte, _) => target.fill(*byte),
        }
        at += length as u64;
    }
}

/// Whether `part` of `data` is what `pages` hold at `offset`; a part lies in one page.
pub(super) fn is_stored(
    pages: &Pages,
    offset: u64,
    data: &Data,
    part: std::ops::Range<u64>,
) -> bool {
    let mut stored = [0; PAGE];
    let stored = &mut stored[..(part.end - part.start) as usize];
    read(pages, offset, stored);
    match data {
        Data::Bytes(bytes) => bytes[part.start as usize..part.end as usize] == *stored,
        Data::Fill(byte, _) => stored.iter().all(|stored| stored == byte),
    }
}

pub(super) fn read(pages: &Pages, offset: u64, into: &mut [u8]) {
    let mut done = 0;
    while done < into.len() {
        let position = offset + done as u64;
        let (page, start) = (position / PAGE as u64, (position % PAGE as u64) as usize);
        let length = (into.len() - done).min(PAGE - start);
        let target = &mut into[done..done + length];
        match pages.get(&page) {
            Some(bytes) => target.copy_from_slice(&bytes[start..start + length]),
            None => target.fill(0),
        }
        done += length;
    }
}
