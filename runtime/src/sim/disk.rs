//! A simulated disk: files in pages, with their live and their durable content kept apart, and names likewise.
//!
//! Invariants:
//! - Reads see live content; [`Disk::cut_power`] leaves durable content and durable names only.
//! - A sync makes durable the pages that were written before it was asked for (and perhaps later ones).
//! - Pages that hold only zeros are not stored, so that preallocated files cost nothing.
//! - An inode lives as long as a live or durable name, a handle or a pending operation refers to it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};

const PAGE_BYTES: usize = 4096;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Directory,
    File(u64),
}

/// The content of a file.
#[derive(Debug, Clone, Default)]
struct Pages {
    len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

#[derive(Debug, Default)]
struct Inode {
    live: Pages,
    durable: Pages,
    dirty: BTreeSet<u64>,
    /// Open handles and pending operations.
    users: usize,
    is_locked: bool,
}

/// One machine's disk.
#[derive(Debug)]
pub(super) struct Disk {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<PathBuf, Entry>,
    durable_names: BTreeMap<PathBuf, Entry>,
    next_inode: u64,
    /// Grows with each power cut: handles from before are dead.
    pub(super) epoch: u64,
}

/// Splits `len` bytes at `offset` into (page, from, to) within pages.
fn spans(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
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
    fn read(&self, into: &mut [u8], offset: u64) -> usize {
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

    fn write(&mut self, bytes: &[u8], offset: u64, dirty: &mut BTreeSet<u64>) {
        let mut done = 0;
        for (page, from, to) in spans(offset, bytes.len()) {
            let source = &bytes[done..done + to - from];
            done += to - from;
            dirty.insert(page);
            if !self.pages.contains_key(&page) && source.iter().all(|&byte| byte == 0) {
                continue;
            }
            let target = self.pages.entry(page).or_insert_with(|| vec![0; PAGE_BYTES].into());
            target[from..to].copy_from_slice(source);
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }
}

/// A path without `.` components, as the key of a name.
fn key(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, Component::CurDir)).collect()
}

fn is_root(path: &Path) -> bool {
    path.parent().is_none()
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

/// What is to be synced: the pages that were dirty and the length, when the sync was asked for.
pub(super) struct SyncPoint {
    pages: BTreeSet<u64>,
    len: u64,
}

impl Disk {
    pub(super) fn new() -> Self {
        Self {
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            next_inode: 0,
            epoch: 0,
        }
    }

    fn entry(&self, path: &Path) -> Option<Entry> {
        if is_root(path) { Some(Entry::Directory) } else { self.names.get(path).copied() }
    }

    fn check_parent(&self, path: &Path) -> io::Result<()> {
        match path.parent().map(|parent| self.entry(parent)) {
            Some(Some(Entry::Directory)) => Ok(()),
            Some(Some(Entry::File(_))) => Err(io::ErrorKind::NotADirectory.into()),
            Some(None) | None => Err(not_found(path)),
        }
    }

    /// Opens a file, or creates it. The inode gets a user.
    pub(super) fn open(&mut self, path: &Path, options: &crate::OpenOptions) -> io::Result<u64> {
        let path = key(path);
        let number = match self.entry(&path) {
            Some(Entry::Directory) => return Err(io::ErrorKind::IsADirectory.into()),
            Some(Entry::File(_)) if options.create_new => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            Some(Entry::File(number)) => number,
            None if options.create || options.create_new => {
                self.check_parent(&path)?;
                self.next_inode += 1;
                self.inodes.insert(self.next_inode, Inode::default());
                self.names.insert(path, Entry::File(self.next_inode));
                self.next_inode
            }
            None => return Err(not_found(&path)),
        };
        let inode = self.inodes.get_mut(&number).expect("a named inode exists");
        if options.truncate && options.write {
            inode.dirty.extend(inode.live.pages.keys());
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

    fn collect(&mut self, number: u64) {
        let Some(inode) = self.inodes.get(&number) else { return };
        let entry = Entry::File(number);
        if inode.users == 0
            && !self.names.values().any(|named| *named == entry)
            && !self.durable_names.values().any(|named| *named == entry)
        {
            self.inodes.remove(&number);
        }
    }

    pub(super) fn read(&self, number: u64, into: &mut [u8], offset: u64) -> usize {
        self.inodes.get(&number).map_or(0, |inode| inode.live.read(into, offset))
    }

    pub(super) fn write(&mut self, number: u64, bytes: &[u8], offset: u64) {
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.live.write(bytes, offset, &mut inode.dirty);
        }
    }

    pub(super) fn len(&self, number: u64) -> u64 {
        self.inodes.get(&number).map_or(0, |inode| inode.live.len)
    }

    /// A sync is asked for.
    pub(super) fn begin_sync(&mut self, number: u64) -> SyncPoint {
        match self.inodes.get_mut(&number) {
            Some(inode) => SyncPoint { pages: std::mem::take(&mut inode.dirty), len: inode.live.len },
            None => SyncPoint { pages: BTreeSet::new(), len: 0 },
        }
    }

    /// The sync is done.
    pub(super) fn finish_sync(&mut self, number: u64, point: SyncPoint) {
        let Some(inode) = self.inodes.get_mut(&number) else { return };
        for page in point.pages {
            match inode.live.pages.get(&page) {
                Some(bytes) => {
                    inode.durable.pages.insert(page, bytes.clone());
                }
                None => {
                    inode.durable.pages.remove(&page);
                }
            }
        }
        inode.durable.len = point.len;
    }

    /// Creates a directory. It is durable at once: what matters to crashes is files and their names.
    pub(super) fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        let path = key(path);
        if self.entry(&path).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.check_parent(&path)?;
        self.names.insert(path.clone(), Entry::Directory);
        self.durable_names.insert(path, Entry::Directory);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (key(from), key(to));
        let entry = self.entry(&from).filter(|_| !is_root(&from)).ok_or_else(|| not_found(&from))?;
        self.check_parent(&to)?;
        if entry == Entry::Directory {
            return self.rename_dir(&from, &to);
        }
        let replaced = self.entry(&to);
        if replaced == Some(Entry::Directory) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        self.names.remove(&from);
        self.names.insert(to, entry);
        if let Some(Entry::File(number)) = replaced.filter(|replaced| *replaced != entry) {
            self.collect(number);
        }
        Ok(())
    }

    fn rename_dir(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        if self.entry(to).is_some() || to.starts_with(from) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        for names in [&mut self.names, &mut self.durable_names] {
            let moved: Vec<PathBuf> = names.keys().filter(|name| name.starts_with(from)).cloned().collect();
            for name in moved {
                let below = name.strip_prefix(from).expect("it starts so").to_path_buf();
                let entry = names.remove(&name).expect("just seen");
                let new = if below.as_os_str().is_empty() { to.into() } else { to.join(below) };
                names.insert(new, entry);
            }
        }
        Ok(())
    }

    pub(super) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        let path = key(path);
        match self.entry(&path) {
            Some(Entry::File(number)) => {
                self.names.remove(&path);
                self.collect(number);
                Ok(())
            }
            Some(Entry::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(not_found(&path)),
        }
    }

    pub(super) fn remove_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let path = key(path);
        match self.entry(&path) {
            Some(Entry::Directory) if !is_root(&path) => {}
            Some(_) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Err(not_found(&path)),
        }
        let below: Vec<PathBuf> = self.names.keys().filter(|name| name.starts_with(&path)).cloned().collect();
        for name in below {
            let entry = self.names.remove(&name);
            match entry {
                Some(Entry::File(number)) => self.collect(number),
                _ => {
                    // As the creation of a directory, its removal is durable at once.
                    self.durable_names.retain(|durable, _| !durable.starts_with(&name));
                }
            }
        }
        Ok(())
    }

    pub(super) fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let path = key(path);
        match self.entry(&path) {
            Some(Entry::Directory) => {}
            Some(Entry::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Err(not_found(&path)),
        }
        let children = self.names.keys().filter(|name| name.parent() == Some(&path));
        let mut names: Vec<String> = children
            .filter_map(|name| name.file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Makes the names in a directory durable.
    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let path = key(path);
        if self.entry(&path) != Some(Entry::Directory) {
            return Err(not_found(&path));
        }
        let mut forgotten = Vec::new();
        self.durable_names.retain(|name, entry| {
            let is_kept = name.parent() != Some(&path) || self.names.contains_key(name);
            if !is_kept && let Entry::File(number) = entry {
                forgotten.push(*number);
            }
            is_kept
        });
        for (name, entry) in &self.names {
            if name.parent() == Some(&path)
                && let Some(Entry::File(number)) = self.durable_names.insert(name.clone(), *entry)
            {
                forgotten.push(number);
            }
        }
        for number in forgotten {
            self.collect(number);
        }
        Ok(())
    }

    pub(super) fn exists(&self, path: &Path) -> bool {
        self.entry(&key(path)).is_some()
    }

    /// Only what is durable is left; handles from before are dead.
    pub(super) fn cut_power(&mut self) {
        self.epoch += 1;
        self.names = self.durable_names.clone();
        let named: BTreeSet<u64> = self
            .names
            .values()
            .filter_map(|entry| match entry {
                Entry::File(number) => Some(*number),
                Entry::Directory => None,
            })
            .collect();
        self.inodes.retain(|number, _| named.contains(number));
        for inode in self.inodes.values_mut() {
            inode.live = inode.durable.clone();
            inode.dirty.clear();
            inode.users = 0;
            inode.is_locked = false;
        }
    }
}
