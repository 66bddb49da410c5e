//! What a synced write costs on the disk that the demo runs on, measured without the engine.
//!
//! A handover ends with replicas' syncs, so its time means little without this figure from the same run. The measured
//! file is written once with zeros and synced before, as the log's files are: a growing file costs many times more.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use thiserror::Error;

use super::report::Durations;

/// What one measured write writes.
pub const WRITE_BYTES: usize = 4096;
/// How many writes are measured.
pub const WRITES: usize = 200;

const FILE_NAME: &str = "disk-probe";
const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// The disk cannot be measured.
#[derive(Debug, Error)]
#[error("{}: cannot {what}: {source}; the directory must be on a disk that can be written", path.display())]
pub struct DiskError {
    path: PathBuf,
    what: &'static str,
    source: io::Error,
}

/// Whether the directory is in memory (tmpfs, ramfs), where a sync costs nothing and promises nothing.
pub fn is_in_memory(directory: &Path) -> Result<bool, DiskError> {
    let stat = rustix::fs::statfs(directory).map_err(|errno| DiskError {
        path: directory.to_path_buf(),
        what: "ask for its file system",
        source: errno.into(),
    })?;
    Ok(matches!(stat.f_type as i64, TMPFS_MAGIC | RAMFS_MAGIC))
}

/// The warning to print for a directory in memory.
pub fn in_memory_warning(directory: &Path) -> String {
    let shown = directory.display();
    format!(
        "warning: {shown} is in memory (tmpfs), where a sync is free: times will flatter. Set TMPDIR to a directory on a disk."
    )
}

/// Measures synced writes of [`WRITE_BYTES`] in a preallocated file of its own, which is removed afterwards.
pub fn raw_data_sync(directory: &Path) -> Result<Durations, DiskError> {
    let path = directory.join(FILE_NAME);
    let measured = measure(&path);
    let removed = std::fs::remove_file(&path);
    let durations = measured?;
    removed.map_err(|source| DiskError { path, what: "remove it", source })?;
    Ok(durations)
}

fn measure(path: &Path) -> Result<Durations, DiskError> {
    let failed = |what| move |source| DiskError { path: path.to_path_buf(), what, source };
    let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed("create it"))?;
    fill(&file).map_err(failed("fill it with zeros"))?;
    let mut durations = Durations::new();
    let block = [0x5a_u8; WRITE_BYTES];
    for n in 0..WRITES {
        let began = Instant::now();
        file.write_all_at(&block, (n * WRITE_BYTES) as u64).map_err(failed("write to it"))?;
        file.sync_data().map_err(failed("sync it"))?;
        durations.record(began.elapsed());
    }
    Ok(durations)
}

fn fill(file: &File) -> io::Result<()> {
    file.write_all_at(&vec![0_u8; WRITES * WRITE_BYTES], 0)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_measures_and_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let durations = raw_data_sync(directory.path()).unwrap();
        assert_eq!(durations.count(), WRITES as u64);
        assert!(durations.quantile_us(0.5) > 0);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn memory_is_told_from_disk() {
        let shm = Path::new("/dev/shm");
        if shm.is_dir() && std::fs::read_to_string("/proc/mounts").unwrap().contains("tmpfs /dev/shm ") {
            assert!(is_in_memory(shm).unwrap());
        }
        assert!(!is_in_memory(Path::new("/proc")).unwrap());
        assert!(in_memory_warning(shm).contains("/dev/shm"));
    }

    #[test]
    fn errors_name_the_path() {
        let message = raw_data_sync(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(message.starts_with("/nonexistent/disk-probe: cannot create it"), "{message}");
        assert!(is_in_memory(Path::new("/nonexistent")).is_err());
    }
}
