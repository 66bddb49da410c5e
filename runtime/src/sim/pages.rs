//! The content of a file in pages, and sets of page numbers.
//!
//! Invariants:
//! - A page that was only ever written with zeros is not stored, and writing zeros over many pages is one operation, so
//!   that preallocated files cost nothing.
//! - Stored pages are shared between live and durable content until one of them is written.
//! - The ranges of a [`PageRanges`] are disjoint and do not touch.

use std::collections::BTreeMap;
use std::ops::Range;

use super::random::{hash, is_zero, mix};
use crate::sync::Arc;

pub(super) const PAGE_BYTES: usize = 4096;

/// The bytes of one page.
pub(super) type Page = [u8; PAGE_BYTES];

/// A set of page numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct PageRanges(BTreeMap<u64, u64>);

impl PageRanges {
    pub(super) fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        if let Some((&before, &before_end)) = self.0.range(..=start).next_back()
            && before_end >= start
        {
            (start, end) = (before, end.max(before_end));
        }
        while let Some((&after, &after_end)) = self.0.range(start..=end).next() {
            end = end.max(after_end);
            self.0.remove(&after);
        }
        self.0.insert(start, end);
    }

    pub(super) fn remove(&mut self, range: Range<u64>) {
        let Range { start, end } = range;
        let first = self.0.range(..=start).next_back().map_or(start, |(&first, _)| first);
        let touched: Vec<(u64, u64)> = self.0.range(first..end).map(|(&from, &to)| (from, to)).collect();
        for (from, to) in touched.into_iter().filter(|(_, to)| *to > start) {
            self.0.remove(&from);
            self.insert(from..start);
            self.insert(end..to);
        }
    }

    pub(super) fn contains(&self, page: u64) -> bool {
        self.0.range(..=page).next_back().is_some_and(|(_, end)| page < *end)
    }

    pub(super) fn insert_all(&mut self, other: &PageRanges) {
        other.iter().for_each(|range| self.insert(range));
    }

    pub(super) fn remove_all(&mut self, other: &PageRanges) {
        other.iter().for_each(|range| self.remove(range));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(&start, &end)| start..end)
    }
}

/// What is written: bytes, or so many zeros. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) enum Data {
    Bytes(Arc<Vec<u8>>),
    Zeros(usize),
}

impl Data {
    pub(super) fn of(bytes: &[u8]) -> Self {
        if is_zero(bytes) { Self::Zeros(bytes.len()) } else { Self::Bytes(Arc::new(bytes.to_vec())) }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Zeros(len) => *len,
        }
    }
}

/// The content of a file.
#[derive(Debug, Clone, Default)]
pub(super) struct Pages {
    pub(super) len: u64,
    pages: BTreeMap<u64, Arc<Page>>,
}

/// The numbers of the pages that `len` bytes at `offset` touch.
pub(super) fn pages_of(offset: u64, len: usize) -> Range<u64> {
    let page_bytes = PAGE_BYTES as u64;
    offset / page_bytes..(offset + len as u64).div_ceil(page_bytes)
}

/// `len` rounded up to whole pages.
pub(super) fn whole_pages_bytes(len: u64) -> u64 {
    len.next_multiple_of(PAGE_BYTES as u64)
}

/// Splits `len` bytes at `offset` into (page, from, to) within pages.
pub(super) fn spans(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let page_bytes = PAGE_BYTES as u64;
    let end = offset + len as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let page = at / page_bytes;
        let stop = end.min((page + 1) * page_bytes);
        let base = page * page_bytes;
        let span = (page, (at - base) as usize, (stop - base) as usize);
        at = stop;
        Some(span)
    })
}

impl Pages {
    /// Reads what there is, and says how much that was.
    pub(super) fn read(&self, into: &mut [u8], offset: u64) -> usize {
        let left = self.len.saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        let mut done = 0;
        for (page, from, to) in spans(offset, len) {
            let target = &mut into[done..done + to - from];
            match self.pages.get(&page) {
                Some(bytes) => target.copy_from_slice(&bytes[from..to]),
                None => target.fill(0),
            }
            done += to - from;
        }
        len
    }

    /// Writes the first `len` bytes of `data` at `offset`.
    pub(super) fn write(&mut self, data: &Data, len: usize, offset: u64) {
        if len == 0 {
            return;
        }
        match data {
            Data::Bytes(bytes) => self.write_bytes(&bytes[..len], offset),
            Data::Zeros(_) => self.write_zeros(len, offset),
        }
        self.len = self.len.max(offset + len as u64);
    }

    fn write_bytes(&mut self, bytes: &[u8], offset: u64) {
        let mut done = 0;
        for (page, from, to) in spans(offset, bytes.len()) {
            let source = &bytes[done..done + to - from];
            done += to - from;
            if let Some(target) = self.pages.get_mut(&page) {
                Arc::make_mut(target)[from..to].copy_from_slice(source);
            } else if !is_zero(source) {
                let mut fresh = [0; PAGE_BYTES];
                fresh[from..to].copy_from_slice(source);
                self.pages.insert(page, Arc::new(fresh));
            }
        }
    }

    fn write_zeros(&mut self, len: usize, offset: u64) {
        let stored: Vec<u64> = self.pages.range(pages_of(offset, len)).map(|(&page, _)| page).collect();
        for page in stored {
            let base = page * PAGE_BYTES as u64;
            let from = offset.saturating_sub(base) as usize;
            let to = (offset + len as u64 - base).min(PAGE_BYTES as u64) as usize;
            if to - from == PAGE_BYTES {
                self.pages.remove(&page);
            } else if let Some(target) = self.pages.get_mut(&page) {
                Arc::make_mut(target)[from..to].fill(0);
            }
        }
    }

    /// Makes the pages in `range` those of `other`.
    pub(super) fn copy_range(&mut self, other: &Pages, range: Range<u64>) {
        let gone: Vec<u64> = self
            .pages
            .range(range.clone())
            .filter(|(page, _)| !other.pages.contains_key(page))
            .map(|(&page, _)| page)
            .collect();
        for page in gone {
            self.pages.remove(&page);
        }
        self.pages.extend(other.pages.range(range).map(|(&page, bytes)| (page, bytes.clone())));
    }

    /// A hash of the content: the same bytes have the same, whether zeros are stored or not.
    pub(super) fn hash(&self) -> u64 {
        let pages = self.pages.iter().filter(|(_, bytes)| !is_zero(&bytes[..]));
        pages
            .fold(mix(self.len), |all, (page, bytes)| mix(all.rotate_left(9) ^ mix(*page) ^ hash(&bytes[..])))
    }

    /// The numbers of the stored pages in `range`.
    pub(super) fn stored(&self, range: Range<u64>) -> impl Iterator<Item = u64> {
        self.pages.range(range).map(|(&page, _)| page)
    }

    /// A stored page.
    pub(super) fn page(&self, page: u64) -> Option<&Arc<Page>> {
        self.pages.get(&page)
    }

    /// Stores a page, or removes it.
    pub(super) fn set_page(&mut self, page: u64, bytes: Option<Arc<Page>>) {
        match bytes {
            Some(bytes) => {
                self.pages.insert(page, bytes);
            }
            None => {
                self.pages.remove(&page);
            }
        }
    }

    /// Sets the length; what lies after it is gone.
    pub(super) fn cut_to(&mut self, len: u64) {
        let kept = len.div_ceil(PAGE_BYTES as u64);
        drop(self.pages.split_off(&kept));
        let within = (len % PAGE_BYTES as u64) as usize;
        if within > 0
            && let Some(last) = self.pages.get_mut(&(kept - 1))
            && !is_zero(&last[within..])
        {
            Arc::make_mut(last)[within..].fill(0);
        }
        self.len = len;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sim::random::Random;

    #[test]
    fn ranges_are_a_set() {
        for seed in 0..50 {
            let mut random = Random::new(seed, 0);
            let (mut ranges, mut set) = (PageRanges::default(), BTreeSet::new());
            for _ in 0..60 {
                let start = random.between(0, 40);
                let range = start..start + random.between(0, 12);
                if random.one_in(3) {
                    ranges.remove(range.clone());
                    set.retain(|page| !range.contains(page));
                } else {
                    ranges.insert(range.clone());
                    set.extend(range);
                }
                let listed: Vec<u64> = ranges.iter().flatten().collect();
                assert_eq!(listed, set.iter().copied().collect::<Vec<_>>(), "seed {seed}");
                let ends: Vec<_> = ranges.iter().collect();
                assert!(ends.windows(2).all(|pair| pair[0].end < pair[1].start), "seed {seed}: {ends:?}");
            }
        }
    }

    #[test]
    fn pages_are_bytes() {
        for seed in 0..50 {
            let mut random = Random::new(seed, 1);
            let (mut pages, mut bytes) = (Pages::default(), Vec::new());
            for _ in 0..40 {
                let (offset, len) = (random.index(30_000), random.index(20_000));
                let data = if random.one_in(2) {
                    Data::Zeros(len)
                } else {
                    Data::of(&vec![random.between(0, 3) as u8; len])
                };
                pages.write(&data, len, offset as u64);
                if len > 0 {
                    bytes.resize(bytes.len().max(offset + len), 0);
                }
                match &data {
                    Data::Bytes(written) => bytes[offset..offset + len].copy_from_slice(written),
                    Data::Zeros(0) => {}
                    Data::Zeros(len) => bytes[offset..offset + len].fill(0),
                }
                if random.one_in(10) {
                    let len = random.index(bytes.len() + 1);
                    pages.cut_to(len as u64);
                    bytes.truncate(len);
                }
                let mut read = vec![7; bytes.len() + 10];
                assert_eq!(pages.read(&mut read, 0), bytes.len(), "seed {seed}");
                assert!(read[..bytes.len()] == bytes[..], "seed {seed}");
            }
        }
    }
}
