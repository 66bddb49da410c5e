//! A simulated disk: files with their live and their durable content kept apart, and names likewise.
//!
//! Invariants:
//! - Reads see live content; a power cut leaves durable content and durable names, and by the seed some of the rest.
//! - A sync makes durable the pages that were written before it was asked for (and perhaps later ones), also those that
//!   another sync is writing out. Pages of a failed sync are clean: no later sync covers them.
//! - An inode lives as long as a live or durable name, a change of names, a handle or a pending operation refers to it.
//! - What counts as allocated are the whole pages of inodes with a live name, a handle or a pending operation.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use super::faults::DiskFaults;
use super::names::{Entry, Tree};
use super::pages::{Data, PAGE_BYTES, PageRanges, Pages, pages_of, whole_pages_bytes};
use super::random::{Random, hash, mix};

/// A file.
#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    pub(super) live: Pages,
    pub(super) durable: Pages,
    /// The pages that are written and in no sync.
    pub(super) dirty: PageRanges,
    /// The pages of each sync that is under way.
    pub(super) syncing: Vec<SyncPoint>,
    /// Open handles and pending operations.
    users: usize,
    is_locked: bool,
    /// Whether its pages are in the disk's count.
    is_counted: bool,
}

/// What is to be synced: the pages that were dirty and the length, when the sync was asked for.
#[derive(Debug, Clone)]
pub(super) struct SyncPoint {
    number: u64,
    pub(super) pages: PageRanges,
    len: u64,
}

/// One machine's disk.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) inodes: BTreeMap<u64, Inode>,
    pub(super) tree: Tree,
    pub(super) faults: DiskFaults,
    /// So many syncs of files fail that are asked for from now on.
    pub(super) syncs_to_fail: u32,
    allocated_bytes: u64,
    next_number: u64,
}

/// The machine's answer to an operation that its hardware could not do.
pub(super) fn io_fault() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}

impl Disk {
    pub(super) fn new() -> Self {
        Self {
            inodes: BTreeMap::new(),
            tree: Tree::new(),
            faults: DiskFaults::default(),
            syncs_to_fail: 0,
            allocated_bytes: 0,
            next_number: 0,
        }
    }

    fn new_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes
    }

    /// How many bytes more may be allocated.
    fn room_bytes(&self) -> u64 {
        self.faults.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.allocated_bytes))
    }

    /// Opens a file, or creates it. The inode gets a user.
    pub(super) fn open(&mut self, path: &Path, options: &crate::OpenOptions) -> io::Result<u64> {
        let number = match self.tree.entry(path)? {
            Some(Entry::Directory(_)) => return Err(io::ErrorKind::IsADirectory.into()),
            Some(Entry::File(_)) if options.create_new => return Err(io::ErrorKind::AlreadyExists.into()),
            Some(Entry::File(number)) => number,
            None if options.create || options.create_new => {
                if self.room_bytes() == 0 {
                    return Err(no_space());
                }
                let number = self.new_number();
                self.tree.create_file(path, number)?;
                self.inodes.insert(number, Inode { is_counted: true, ..Inode::default() });
                number
            }
            None => {
                let message = format!("{} does not exist", path.display());
                return Err(io::Error::new(io::ErrorKind::NotFound, message));
            }
        };
        let inode = self.inodes.get_mut(&number).expect("a named inode exists");
        if options.truncate && options.write {
            self.allocated_bytes -= whole_pages_bytes(inode.live.len);
            inode.dirty.insert(pages_of(0, usize::try_from(inode.live.len).unwrap_or(usize::MAX)));
            inode.live = Pages::default();
        }
        if options.exclusive_lock {
            if inode.is_locked {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            inode.is_locked = true;
        }
        inode.users += 1;
        Ok(number)
    }

    /// A pending operation uses the inode.
    pub(super) fn add_user(&mut self, number: u64) {
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.users += 1;
        }
    }

    /// A handle or an operation is done with the inode.
    pub(super) fn remove_user(&mut self, number: u64) {
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.users -= 1;
        }
        self.collect(number);
    }

    pub(super) fn unlock(&mut self, number: u64) {
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.is_locked = false;
        }
    }

    /// Looks whether the inode still counts, and whether it is still needed.
    fn collect(&mut self, number: u64) {
        let links = self.tree.links(number);
        let Some(inode) = self.inodes.get_mut(&number) else { return };
        if inode.users > 0 || links.live > 0 {
            return;
        }
        if std::mem::replace(&mut inode.is_counted, false) {
            self.allocated_bytes -= whole_pages_bytes(inode.live.len);
        }
        if links.other == 0 {
            self.inodes.remove(&number);
        }
    }

    /// Names were removed or have become durable.
    pub(super) fn collect_all(&mut self, unlinked: io::Result<Vec<u64>>) -> io::Result<()> {
        unlinked?.into_iter().for_each(|number| self.collect(number));
        Ok(())
    }

    pub(super) fn read(&self, number: u64, into: &mut [u8], offset: u64) -> usize {
        self.inodes.get(&number).map_or(0, |inode| inode.live.read(into, offset))
    }

    /// As [`Disk::read`], past the cache.
    pub(super) fn read_direct(&self, number: u64, into: &mut [u8], offset: u64) -> usize {
        self.inodes.get(&number).map_or(0, |inode| inode.read_direct(into, offset))
    }

    /// Writes the first `len` bytes of `data`, as far as there is room.
    pub(super) fn write(&mut self, number: u64, data: &Data, len: usize, offset: u64) -> io::Result<()> {
        let room_bytes = self.room_bytes();
        let Some(inode) = self.inodes.get_mut(&number) else { return Ok(()) };
        let before_bytes = whole_pages_bytes(inode.live.len);
        let end_max = before_bytes.saturating_add(room_bytes) / PAGE_BYTES as u64 * PAGE_BYTES as u64;
        let fits = end_max.saturating_sub(offset);
        let written = len.min(usize::try_from(fits).unwrap_or(usize::MAX));
        inode.live.write(data, written, offset);
        inode.dirty.insert(pages_of(offset, written));
        if inode.is_counted {
            self.allocated_bytes += whole_pages_bytes(inode.live.len) - before_bytes;
        }
        if written < len { Err(no_space()) } else { Ok(()) }
    }

    /// What the cache holds of clean pages is gone.
    pub(super) fn forget_cached(&mut self, number: u64) {
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.forget_cached();
        }
    }

    pub(super) fn len(&self, number: u64) -> u64 {
        self.inodes.get(&number).map_or(0, |inode| inode.live.len)
    }

    /// A sync is asked for. Returns its number.
    pub(super) fn begin_sync(&mut self, number: u64) -> u64 {
        let sync = self.new_number();
        if let Some(inode) = self.inodes.get_mut(&number) {
            let mut pages = std::mem::take(&mut inode.dirty);
            for other in &inode.syncing {
                pages.insert_all(&other.pages);
            }
            inode.syncing.push(SyncPoint { number: sync, pages, len: inode.live.len });
        }
        sync
    }

    /// The sync is done.
    pub(super) fn finish_sync(&mut self, number: u64, sync: u64) {
        let Some((inode, point)) = self.take_sync(number, sync) else { return };
        for range in point.pages.iter() {
            inode.durable.copy_range(&inode.live, range);
        }
        inode.durable.len = point.len;
    }

    /// The sync has failed: its pages are clean, and no other sync has them.
    pub(super) fn fail_sync(&mut self, number: u64, sync: u64) {
        let Some((inode, point)) = self.take_sync(number, sync) else { return };
        for other in &mut inode.syncing {
            other.pages.remove_all(&point.pages);
        }
    }

    /// The sync does not come to its end: its pages are dirty again.
    pub(super) fn abandon_sync(&mut self, number: u64, sync: u64) {
        let Some((inode, point)) = self.take_sync(number, sync) else { return };
        inode.dirty.insert_all(&point.pages);
    }

    fn take_sync(&mut self, number: u64, sync: u64) -> Option<(&mut Inode, SyncPoint)> {
        let inode = self.inodes.get_mut(&number)?;
        let place = inode.syncing.iter().position(|point| point.number == sync)?;
        let point = inode.syncing.remove(place);
        Some((inode, point))
    }

    /// The process that had all handles is gone.
    pub(super) fn close_all(&mut self) {
        let numbers: Vec<u64> = self.inodes.keys().copied().collect();
        for number in numbers {
            if let Some(inode) = self.inodes.get_mut(&number) {
                inode.users = 0;
                inode.is_locked = false;
            }
            self.collect(number);
        }
    }

    /// The power is cut, after [`Disk::close_all`].
    pub(super) fn cut_power(&mut self, mut survivors: Survivors<'_>) {
        match &mut survivors {
            Survivors::None => self.tree.cut_power(|| false),
            Survivors::All => self.tree.cut_power(|| true),
            Survivors::Some(random) => {
                let odds = Odds::draw(random);
                self.tree.cut_power(|| odds.survives(random));
            }
        }
        let tree = &self.tree;
        self.inodes.retain(|number, _| tree.links(*number).live > 0);
        self.allocated_bytes = 0;
        for inode in self.inodes.values_mut() {
            match &mut survivors {
                Survivors::Some(random) => inode.write_some_out(random),
                Survivors::All => inode.durable = inode.live.clone(),
                Survivors::None => {}
            }
            // A sync may have taken along what was written after its length was.
            inode.durable.cut_to(inode.durable.len);
            inode.live = inode.durable.clone();
            inode.dirty = PageRanges::default();
            inode.is_counted = true;
            self.allocated_bytes += whole_pages_bytes(inode.live.len);
        }
    }

    /// A hash of all live names and of what they stand for.
    pub(super) fn live_hash(&self) -> u64 {
        self.tree.all_named().into_iter().fold(0, |all, (path, entry)| {
            let content = match entry {
                Entry::Directory(_) => 1,
                Entry::File(number) => self.inodes.get(&number).map_or(2, |inode| inode.live.hash()),
            };
            mix(all.rotate_left(7) ^ hash(path.as_bytes())) ^ content
        })
    }

    /// Flips `bits` different random bits in pages, with other bytes than zeros, of the files whose path starts with
    /// `prefix`. Returns how many there were to flip.
    pub(super) fn rot(&mut self, prefix: &str, bits: usize, random: &mut Random) -> usize {
        let mut places = Vec::new();
        for number in self.tree.files_below(prefix) {
            let Some(inode) = self.inodes.get(&number) else { continue };
            let pages = inode.live.stored(0..u64::MAX).chain(inode.durable.stored(0..u64::MAX));
            places.extend(pages.map(|page| (number, page)));
        }
        places.sort_unstable();
        places.dedup();
        places.retain(|&(number, page)| self.inodes.get(&number).is_some_and(|inode| inode.has_bytes(page)));
        let bytes_in = |&(number, page): &(u64, u64)| self.inodes[&number].bytes_in(page);
        let bits = bits.min(places.iter().map(bytes_in).sum::<usize>() * 8);
        let mut flipped = BTreeSet::new();
        while flipped.len() < bits {
            let (number, page) = places[random.index(places.len())];
            let Some(inode) = self.inodes.get_mut(&number) else { continue };
            let byte = random.index(inode.bytes_in(page));
            let bit = random.index(8);
            if flipped.insert((number, page, byte, bit)) {
                inode.flip(page, byte, 1 << bit);
            }
        }
        flipped.len()
    }
}

/// What of that which is not durable survives a power cut.
pub(super) enum Survivors<'a> {
    None,
    /// What these say, sector by sector, length by length, change of a directory by change.
    Some(&'a mut Random),
    All,
}

/// How much of what is not durable survives one power cut: nothing, half, most or all of it.
pub(super) struct Odds(usize);

impl Odds {
    pub(super) fn draw(random: &mut Random) -> Self {
        Self(random.index(4))
    }

    pub(super) fn survives(&self, random: &mut Random) -> bool {
        match self.0 {
            0 => false,
            1 => random.one_in(2),
            2 => !random.one_in(8),
            _ => true,
        }
    }
}
