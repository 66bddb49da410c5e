//! Names beside a data directory: the one that is being made for it, and the damaged ones that it replaced.
//!
//! A repair gives two directories their names, one after the other. A crash in between leaves both, whole, and nothing under
//! the directory's own name. To begin anew there would look like the loss of everything: so that state is found here, every
//! opening of the directory refuses it, and a repair goes on from it.

use std::io;
use std::path::{Path, PathBuf};

use lockgate_runtime::fs;

/// What is behind the name of a directory that is not whole yet.
const BUILDING_SUFFIX: &str = ".building";
/// What is behind the name of a directory that was replaced, before its number.
const DAMAGED_SUFFIX: &str = ".damaged-";

/// The path with something behind its name.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

/// The folder that a path's name is in.
pub(crate) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Where a new directory is made, until it is whole.
pub(crate) fn building_of(dir: &Path) -> PathBuf {
    beside(dir, BUILDING_SUFFIX)
}

fn damaged_of(dir: &Path, number: u64) -> PathBuf {
    beside(dir, &format!("{DAMAGED_SUFFIX}{number}"))
}

/// The first of DIR.damaged-1, DIR.damaged-2, ... that is free.
pub(crate) async fn free_damaged_name(dir: &Path) -> PathBuf {
    let mut number = 1;
    while fs::exists(&damaged_of(dir, number)).await {
        number += 1;
    }
    damaged_of(dir, number)
}

/// A repair that has ended between its two names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BetweenNames {
    /// The damaged directory.
    pub(crate) original: PathBuf,
    /// The repaired one: it got its last byte before the original lost its name.
    pub(crate) building: PathBuf,
}

impl BetweenNames {
    /// Whether a directory that has nothing under its own name is in that state. One that was made meanwhile and is empty
    /// still (by whoever prepares a start) counts as nothing.
    pub(crate) async fn find(dir: &Path) -> io::Result<Option<BetweenNames>> {
        let building = building_of(dir);
        if !fs::exists(&building).await || (fs::exists(dir).await && !fs::read_dir(dir).await?.is_empty()) {
            return Ok(None);
        }
        let Some(name) = dir.file_name().and_then(|name| name.to_str()) else { return Ok(None) };
        let number_of = |other: &String| {
            let number = other.strip_prefix(name)?.strip_prefix(DAMAGED_SUFFIX)?.parse().ok()?;
            damaged_of(dir, number).ends_with(other).then_some(number)
        };
        let last = fs::read_dir(&folder_of(dir)).await?.iter().filter_map(number_of).max();
        Ok(last.map(|number| BetweenNames { original: damaged_of(dir, number), building }))
    }
}
