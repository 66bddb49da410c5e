//! The names of a checkpoint's files, its manifest's swap, and the removal of what nobody needs.
//!
//! Invariants: a name belongs to one attempt only, and its file is made anew; what is not named as a checkpoint's file is
//! not touched; the swap is the only place where the manifest is written.

use std::io;
use std::path::{Path, PathBuf};

use lockgate_runtime::sync::Arc;
use lockgate_runtime::{File, OpenOptions, fs, mutation};

use super::CheckpointError;

/// Name of the manifest in the folder of the checkpoint.
pub const MANIFEST_FILE: &str = "manifest";
/// The next manifest, until it takes the place of the one before.
const NEXT_MANIFEST_FILE: &str = "manifest.tmp";

/// Name of the file with the slots of one core.
pub fn data_file_name(number: u64, core: u32) -> String {
    format!("{number:016x}.{core}.data")
}

/// Number and core of a data file, if the name is one of theirs.
pub fn parse_data_file_name(name: &str) -> Option<(u64, u32)> {
    let (number, core) = name.strip_suffix(".data")?.split_once('.')?;
    let (number, core) = (u64::from_str_radix(number, 16).ok()?, core.parse().ok()?);
    // Only the exact spelling counts.
    (data_file_name(number, core) == name).then_some((number, core))
}

/// What happened to a file, as an error.
pub(super) fn io_error<'a>(
    action: &'static str,
    file: &'a Path,
) -> impl FnOnce(io::Error) -> CheckpointError + 'a {
    move |source| CheckpointError::Io { action, file: file.to_path_buf(), source: Arc::new(source) }
}

/// Makes a new file.
pub(super) async fn create(path: &Path) -> Result<File, CheckpointError> {
    let options = OpenOptions::new().write(true).create_new(true);
    File::open(path, &options).await.map_err(io_error("creating", path))
}

/// Makes durable what was written to a data file.
pub(super) async fn sync_data(file: &File, path: &Path) -> Result<(), CheckpointError> {
    if mutation!("unsynced-checkpoint-data") {
        return Ok(());
    }
    file.sync_data().await.map_err(io_error("syncing", path))
}

/// How far a swap came that failed.
pub(super) enum SwapFailed {
    /// The manifest is the one before.
    Before(CheckpointError),
    /// The manifest may be either one after a power cut: the files of both are needed.
    Unsure(CheckpointError),
}

/// Puts a new manifest in the place of the one before, durably. All that it names is on the disk, except for the names of
/// the files beside it: those were made before the manifest is renamed, a directory's changes reach the disk in their order,
/// and the last sync here is for all of them.
pub(super) async fn swap_manifest(
    dir: &Path,
    pieces: impl Iterator<Item = Vec<u8>>,
) -> Result<(), SwapFailed> {
    let (next, manifest) = (dir.join(NEXT_MANIFEST_FILE), dir.join(MANIFEST_FILE));
    prepare(&next, pieces).await.map_err(SwapFailed::Before)?;
    fs::rename(&next, &manifest).await.map_err(io_error("renaming", &next)).map_err(SwapFailed::Before)?;
    if mutation!("unsynced-manifest-name") {
        return Ok(());
    }
    fs::sync_dir(dir).await.map_err(io_error("syncing", dir)).map_err(SwapFailed::Unsure)
}

async fn prepare(next: &Path, pieces: impl Iterator<Item = Vec<u8>>) -> Result<(), CheckpointError> {
    // Not the same file again: its sync may have failed.
    if fs::exists(next).await {
        fs::remove_file(next).await.map_err(io_error("removing", next))?;
    }
    let file = create(next).await?;
    let mut written = 0;
    for piece in pieces {
        let end = written + piece.len() as u64;
        file.write_all_at(piece, written).await.0.map_err(io_error("writing", next))?;
        written = end;
    }
    if !mutation!("unsynced-manifest") {
        file.sync_data().await.map_err(io_error("syncing", next))?;
    }
    Ok(())
}

/// Removes the data files of all checkpoints but one, and a manifest that was not finished. `kept` is the number of the
/// checkpoint that is in use, durably; 0: there is none, and all go. Returns how many went. What cannot be removed stays, and only
/// takes room.
pub(crate) async fn remove_leftovers(dir: &Path, kept: u64) -> usize {
    remove_where(dir, |name| {
        let number = parse_data_file_name(name).map(|(number, _)| number);
        name == NEXT_MANIFEST_FILE || number.is_some_and(|number| number != kept)
    })
    .await
}

/// Removes the data files of one checkpoint, which was abandoned.
pub(super) async fn remove_attempt(dir: &Path, number: u64) {
    remove_where(dir, |name| {
        name == NEXT_MANIFEST_FILE || parse_data_file_name(name).is_some_and(|(of, _)| of == number)
    })
    .await;
}

async fn remove_where(dir: &Path, goes: impl Fn(&str) -> bool) -> usize {
    let names = match fs::read_dir(dir).await {
        Ok(names) => names,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(dir = %dir.display(), %error, "the folder of the checkpoint could not be listed");
            }
            return 0;
        }
    };
    let mut removed = 0;
    for path in names.iter().filter(|name| goes(name)).map(|name| dir.join(name)) {
        match fs::remove_file(&path).await {
            Ok(()) => removed += 1,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "a file of an older checkpoint could not be removed");
            }
        }
    }
    removed
}

/// Where the manifest is.
pub(crate) fn manifest_path(dir: &Path) -> PathBuf {
    dir.join(MANIFEST_FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_exact() {
        assert_eq!(parse_data_file_name(&data_file_name(0x1f, 3)), Some((0x1f, 3)));
        for other in ["manifest", "1.0.data", "000000000000001F.0.data", "000000000000001f.00.data", "x.data"]
        {
            assert_eq!(parse_data_file_name(other), None, "{other}");
        }
    }
}
