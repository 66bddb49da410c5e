//! The directories of a simulated disk: what is in them, what of it is durable, and the changes between both.
//!
//! Invariants:
//! - The changes are in the order in which they were made. A rename is one change, also between two directories.
//! - Durable entries and then all changes, in order, give the live entries.
//! - Whatever becomes durable, and whatever a power cut leaves, is for each directory a prefix of its changes.
//! - A link is counted for every entry of a directory, and for every entry that a change names.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path};

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// The number of a directory.
    Directory(u64),
    /// The number of an inode.
    File(u64),
}

/// The root's number.
const ROOT: u64 = 0;

#[derive(Debug, Clone, Default)]
struct Directory {
    live: BTreeMap<OsString, Entry>,
    durable: BTreeMap<OsString, Entry>,
}

/// An entry of a directory is set or removed.
#[derive(Debug, Clone)]
struct Set {
    directory: u64,
    name: OsString,
    entry: Option<Entry>,
}

/// What becomes durable together, or not at all.
type Change = Vec<Set>;

/// All directories of a disk.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    directories: BTreeMap<u64, Directory>,
    /// Those that are not durable.
    changes: Vec<Change>,
    next_directory: u64,
    links: BTreeMap<u64, Links>,
}

/// How often a file is named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Links {
    /// In live directories.
    pub(super) live: usize,
    /// In durable directories, and in changes.
    pub(super) other: usize,
}

/// A name's place: its directory and itself.
struct Place<'a> {
    directory: u64,
    name: &'a OsStr,
    /// The directories that were passed on the way.
    above: Vec<u64>,
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

impl Tree {
    pub(super) fn new() -> Self {
        Self {
            directories: BTreeMap::from([(ROOT, Directory::default())]),
            changes: Vec::new(),
            next_directory: ROOT,
            links: BTreeMap::new(),
        }
    }

    fn child(&self, directory: u64, name: &OsStr) -> Option<Entry> {
        self.directories.get(&directory)?.live.get(name).copied()
    }

    /// Where `path` is or would be; None for the root. Fails where a directory on the way is missing.
    fn place<'a>(&self, path: &'a Path) -> io::Result<Option<Place<'a>>> {
        let mut place: Option<Place<'a>> = None;
        for part in path.components() {
            let name = match part {
                Component::CurDir | Component::RootDir => continue,
                _ => part.as_os_str(),
            };
            let (directory, mut above) = match place {
                None => (ROOT, Vec::new()),
                Some(Place { directory, name, above }) => match self.child(directory, name) {
                    Some(Entry::Directory(below)) => (below, above),
                    Some(Entry::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                    None => return Err(not_found(path)),
                },
            };
            above.push(directory);
            place = Some(Place { directory, name, above });
        }
        Ok(place)
    }

    /// What `path` stands for, if it exists.
    pub(super) fn entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        Ok(match self.place(path)? {
            Some(place) => self.child(place.directory, place.name),
            None => Some(Entry::Directory(ROOT)),
        })
    }

    fn directory(&self, path: &Path) -> io::Result<u64> {
        match self.entry(path)? {
            Some(Entry::Directory(number)) => Ok(number),
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(not_found(path)),
        }
    }

    pub(super) fn links(&self, file: u64) -> Links {
        self.links.get(&file).copied().unwrap_or_default()
    }

    fn count(&mut self, entry: Option<Entry>, change: impl FnOnce(&mut Links)) {
        let Some(Entry::File(file)) = entry else { return };
        let links = self.links.entry(file).or_default();
        change(links);
        if *links == Links::default() {
            self.links.remove(&file);
        }
    }

    /// Makes a change of live entries. What was replaced or removed is added to `unlinked`.
    fn change(&mut self, change: Change, unlinked: &mut Vec<u64>) {
        for Set { directory, name, entry } in &change {
            self.count(*entry, |links| {
                links.live += 1;
                links.other += 1;
            });
            let Some(of) = self.directories.get_mut(directory) else { continue };
            let before = match entry {
                Some(entry) => of.live.insert(name.clone(), *entry),
                None => of.live.remove(name),
            };
            self.count(before, |links| links.live -= 1);
            unlinked.extend(file_of(before));
        }
        self.changes.push(change);
    }

    /// Names a new file. Fails as opening it would.
    pub(super) fn create_file(&mut self, path: &Path, file: u64) -> io::Result<()> {
        let place = self.place(path)?.ok_or(io::ErrorKind::IsADirectory)?;
        let (directory, name) = (place.directory, place.name.to_owned());
        self.change(vec![Set { directory, name, entry: Some(Entry::File(file)) }], &mut Vec::new());
        Ok(())
    }

    /// Creates a directory.
    pub(super) fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        let place = self.place(path)?.ok_or(io::ErrorKind::AlreadyExists)?;
        if self.child(place.directory, place.name).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let (directory, name) = (place.directory, place.name.to_owned());
        self.next_directory += 1;
        self.directories.insert(self.next_directory, Directory::default());
        let entry = Some(Entry::Directory(self.next_directory));
        self.change(vec![Set { directory, name, entry }], &mut Vec::new());
        Ok(())
    }

    /// Renames a file or a directory. Returns the file that was replaced.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<Vec<u64>> {
        let old = self.place(from)?.ok_or(io::ErrorKind::InvalidInput)?;
        let entry = self.child(old.directory, old.name).ok_or_else(|| not_found(from))?;
        let new = self.place(to)?.ok_or(io::ErrorKind::AlreadyExists)?;
        let replaced = self.child(new.directory, new.name);
        match (entry, replaced) {
            _ if replaced == Some(entry) => return Ok(Vec::new()),
            (Entry::File(_), Some(Entry::Directory(_))) => return Err(io::ErrorKind::IsADirectory.into()),
            (Entry::Directory(_), Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Entry::Directory(moved), None) if new.above.contains(&moved) => {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            _ => {}
        }
        let removed = Set { directory: old.directory, name: old.name.to_owned(), entry: None };
        let added = Set { directory: new.directory, name: new.name.to_owned(), entry: Some(entry) };
        let mut unlinked = Vec::new();
        self.change(vec![removed, added], &mut unlinked);
        Ok(unlinked)
    }

    /// Removes a file's name. Returns the file.
    pub(super) fn remove_file(&mut self, path: &Path) -> io::Result<Vec<u64>> {
        let place = self.place(path)?.ok_or(io::ErrorKind::IsADirectory)?;
        match self.child(place.directory, place.name) {
            Some(Entry::File(_)) => {}
            Some(Entry::Directory(_)) => return Err(io::ErrorKind::IsADirectory.into()),
            None => return Err(not_found(path)),
        }
        let (directory, name) = (place.directory, place.name.to_owned());
        let mut unlinked = Vec::new();
        self.change(vec![Set { directory, name, entry: None }], &mut unlinked);
        Ok(unlinked)
    }

    /// Removes a directory and, before it, one after the other, all that is in it. Returns the files.
    pub(super) fn remove_dir_all(&mut self, path: &Path) -> io::Result<Vec<u64>> {
        let number = self.directory(path)?;
        let place = self.place(path)?.ok_or(io::ErrorKind::InvalidInput)?;
        let (directory, name) = (place.directory, place.name.to_owned());
        let mut unlinked = Vec::new();
        self.empty(number, &mut unlinked);
        self.change(vec![Set { directory, name, entry: None }], &mut unlinked);
        Ok(unlinked)
    }

    fn empty(&mut self, directory: u64, unlinked: &mut Vec<u64>) {
        let children: Vec<(OsString, Entry)> = match self.directories.get(&directory) {
            Some(of) => of.live.iter().map(|(name, entry)| (name.clone(), *entry)).collect(),
            None => return,
        };
        for (name, entry) in children {
            if let Entry::Directory(below) = entry {
                self.empty(below, unlinked);
            }
            self.change(vec![Set { directory, name, entry: None }], unlinked);
        }
    }

    pub(super) fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let number = self.directory(path)?;
        let names = self.directories.get(&number).into_iter().flat_map(|of| of.live.keys());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    /// Makes the changes of a directory durable, and those that cannot be durable later than they are. Returns the
    /// files that lost a durable name.
    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<Vec<u64>> {
        let directory = self.directory(path)?;
        Ok(self.commit_all_of(directory))
    }

    fn commit_all_of(&mut self, directory: u64) -> Vec<u64> {
        // Backwards: a rename between two directories takes along what the other one had before.
        let mut needed = BTreeSet::from([directory]);
        let mut is_durable = vec![false; self.changes.len()];
        for (change, is_durable) in self.changes.iter().zip(&mut is_durable).rev() {
            if change.iter().any(|set| needed.contains(&set.directory)) {
                *is_durable = true;
                needed.extend(change.iter().map(|set| set.directory));
            }
        }
        let changes = std::mem::take(&mut self.changes);
        let mut unlinked = Vec::new();
        for (change, is_durable) in changes.into_iter().zip(is_durable) {
            if is_durable {
                self.commit(change, &mut unlinked);
            } else {
                self.changes.push(change);
            }
        }
        unlinked
    }

    fn commit(&mut self, change: Change, unlinked: &mut Vec<u64>) {
        for Set { directory, name, entry } in change {
            let Some(of) = self.directories.get_mut(&directory) else { continue };
            // The link of a new entry is that of the change.
            let before = match entry {
                Some(entry) => of.durable.insert(name, entry),
                None => of.durable.remove(&name),
            };
            self.count(before, |links| links.other -= 1);
            unlinked.extend(file_of(before));
        }
    }

    /// The power is cut: `survives` is asked for each change that is not durable, as long as all changes before it in
    /// its directories have survived. Live entries are the durable ones then.
    pub(super) fn cut_power(&mut self, mut survives: impl FnMut() -> bool) {
        let mut torn = BTreeSet::new();
        for change in std::mem::take(&mut self.changes) {
            let is_torn = change.iter().any(|set| torn.contains(&set.directory));
            if !is_torn && survives() {
                self.commit(change, &mut Vec::new());
            } else {
                torn.extend(change.iter().map(|set| set.directory));
            }
        }
        self.links.clear();
        let mut reached = BTreeMap::new();
        let mut next = vec![ROOT];
        while let Some(number) = next.pop() {
            let Some(mut directory) = self.directories.remove(&number) else { continue };
            directory.live = directory.durable.clone();
            for &entry in directory.live.values() {
                if let Entry::Directory(below) = entry {
                    next.push(below);
                }
                self.count(Some(entry), |links| {
                    links.live += 1;
                    links.other += 1;
                });
            }
            reached.insert(number, directory);
        }
        self.directories = reached;
    }

    /// All that has a live name: paths from the root, and what they stand for.
    pub(super) fn all_named(&self) -> Vec<(String, Entry)> {
        let mut named = Vec::new();
        let mut next = vec![(ROOT, String::new())];
        while let Some((number, path)) = next.pop() {
            let Some(directory) = self.directories.get(&number) else { continue };
            for (name, entry) in &directory.live {
                let path = format!("{path}/{}", name.to_string_lossy());
                if let Entry::Directory(below) = entry {
                    next.push((*below, path.clone()));
                }
                named.push((path, *entry));
            }
        }
        named
    }

    /// The files whose live path starts with `prefix`.
    pub(super) fn files_below(&self, prefix: &str) -> Vec<u64> {
        let named = self.all_named().into_iter().filter(|(path, _)| path.starts_with(prefix));
        named.filter_map(|(_, entry)| file_of(Some(entry))).collect()
    }
}

fn file_of(entry: Option<Entry>) -> Option<u64> {
    match entry {
        Some(Entry::File(file)) => Some(file),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exists(tree: &Tree, path: &str) -> bool {
        matches!(tree.entry(Path::new(path)), Ok(Some(_)))
    }

    #[test]
    fn a_directory_is_durable_by_a_sync_of_the_one_above() {
        for is_synced in [false, true] {
            let mut tree = Tree::new();
            tree.create_dir(Path::new("/a")).expect("created");
            tree.create_dir(Path::new("/a/b")).expect("created");
            tree.create_file(Path::new("/a/b/file"), 1).expect("created");
            for path in ["/a/b", "/a"] {
                tree.sync_dir(Path::new(path)).expect("synced");
            }
            if is_synced {
                tree.sync_dir(Path::new("/")).expect("synced");
            }
            tree.cut_power(|| false);
            assert_eq!(exists(&tree, "/a/b/file"), is_synced);
            assert_eq!(tree.links(1).live, usize::from(is_synced));
        }
    }

    #[test]
    fn a_directory_in_the_place_of_what_was_removed_stays() {
        let mut tree = Tree::new();
        tree.create_dir(Path::new("/a")).expect("created");
        tree.sync_dir(Path::new("/")).expect("synced");
        tree.remove_dir_all(Path::new("/a")).expect("removed");
        tree.create_dir(Path::new("/a")).expect("created");
        tree.create_file(Path::new("/a/file"), 1).expect("created");
        tree.sync_dir(Path::new("/a")).expect("synced");
        tree.sync_dir(Path::new("/")).expect("synced");
        tree.cut_power(|| false);
        assert!(exists(&tree, "/a/file"));
    }
}
