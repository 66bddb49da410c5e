//! What happens to the bytes of one file when its machine or its disk fails.

use super::disk::{Inode, Odds};
use super::pages::{PAGE_BYTES, Page, PageRanges, spans};
use super::random::{Random, is_zero};
use crate::sync::Arc;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

fn bytes_of(page: Option<&Arc<Page>>) -> Page {
    page.map_or([0; PAGE_BYTES], |page| **page)
}

impl Inode {
    /// Makes sectors of dirty pages durable, and perhaps the length, as the seed says.
    pub(super) fn write_some_out(&mut self, random: &mut Random) {
        let odds = Odds::draw(random);
        for range in self.dirty.iter() {
            let mut stored: Vec<u64> =
                self.live.stored(range.clone()).chain(self.durable.stored(range)).collect();
            stored.sort_unstable();
            stored.dedup();
            for page in stored {
                let (new, mut torn) = (bytes_of(self.live.page(page)), bytes_of(self.durable.page(page)));
                for (new, old) in new.chunks(SECTOR_BYTES).zip(torn.chunks_mut(SECTOR_BYTES)) {
                    if odds.survives(random) {
                        old.copy_from_slice(new);
                    }
                }
                self.durable.set_page(page, (!is_zero(&torn)).then(|| Arc::new(torn)));
            }
        }
        if self.live.len != self.durable.len && odds.survives(random) {
            self.durable.len = self.live.len;
        }
    }

    /// Has clean pages read as they are on the disk: after a failed sync that is not what was written.
    pub(super) fn forget_cached(&mut self) {
        let mut clean = PageRanges::default();
        clean.insert(0..u64::MAX);
        clean.remove_all(&self.dirty);
        self.syncing.iter().for_each(|sync| clean.remove_all(&sync.pages));
        for range in clean.iter() {
            let mut stored: Vec<u64> =
                self.live.stored(range.clone()).chain(self.durable.stored(range)).collect();
            stored.sort_unstable();
            stored.dedup();
            for page in stored {
                self.live.set_page(page, self.durable.page(page).cloned());
            }
        }
    }

    /// What [`Inode::forget_cached`] would have to be read, while the cache stays as it is.
    pub(super) fn read_direct(&self, into: &mut [u8], offset: u64) -> usize {
        let read = self.live.read(into, offset);
        let is_cached_only =
            |page| self.dirty.contains(page) || self.syncing.iter().any(|sync| sync.pages.contains(page));
        let mut done = 0;
        for (page, from, to) in spans(offset, read) {
            if !is_cached_only(page) {
                into[done..done + to - from].copy_from_slice(&bytes_of(self.durable.page(page))[from..to]);
            }
            done += to - from;
        }
        read
    }

    /// How many bytes of a page lie within the file.
    pub(super) fn bytes_in(&self, page: u64) -> usize {
        let left = self.live.len.max(self.durable.len).saturating_sub(page * PAGE_BYTES as u64);
        usize::try_from(left).unwrap_or(PAGE_BYTES).min(PAGE_BYTES)
    }

    /// Whether a page lies within the file and holds more than zeros.
    pub(super) fn has_bytes(&self, page: u64) -> bool {
        let holds = |page: Option<&Arc<Page>>| page.is_some_and(|page| !is_zero(&page[..]));
        self.bytes_in(page) > 0 && (holds(self.live.page(page)) || holds(self.durable.page(page)))
    }

    /// Flips bits of a byte, in what is live and in what is durable.
    pub(super) fn flip(&mut self, page: u64, byte: usize, bits: u8) {
        for pages in [&mut self.live, &mut self.durable] {
            if let Some(stored) = pages.page(page) {
                let mut rotten = **stored;
                rotten[byte] ^= bits;
                pages.set_page(page, Some(Arc::new(rotten)));
            }
        }
    }
}
