//! Whether all that the latest boot wrote to its logs is still here, although it may never have been synced.
//!
//! What was written is in the system's cache until it is on the disk, so the end of a process loses none of it, and a start
//! of the system may. There is one more way: after a failed sync the system holds pages for clean that the disk never got,
//! and gives them up when it likes. Recovery has it forget them, and goes by the disk (see `log/reader.rs`). So they are
//! compared before: a file that reads differently once its pages are forgotten has lost writes.
//!
//! What this does not see: pages that were lost to a failed sync and given up before this start.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use lockgate_runtime::{File, OpenOptions, fs};

use crate::log::files::parse_file_name;
use crate::meta::{Directory, MetaError};
use crate::recovery::core_of;

/// The files of a chain that may have unsynced batches: the one in use, behind which one more is prepared.
const UNSYNCED_FILES_MAX: usize = 2;
const READ_BYTES: usize = 1 << 20;

/// Whether nothing that the latest boot wrote can be lost. To be asked before the recovery.
pub(crate) async fn kept_written(directory: &mut Directory) -> Result<bool, MetaError> {
    if directory.meta().boot == 0 {
        return Ok(true);
    }
    if !directory.is_same_os_boot() {
        return Ok(false);
    }
    // The check destroys its own evidence: if it is not finished, no later one can tell.
    directory.forget_os_boot().await?;
    let unchanged = are_unchanged(directory).await;
    Ok(unchanged.unwrap_or_else(|error| {
        tracing::warn!(%error, "the latest log files could not be read: taken as if writes were lost");
        false
    }))
}

async fn are_unchanged(directory: &Directory) -> io::Result<bool> {
    let dir = directory.log_dir();
    if !fs::exists(&dir).await {
        return Ok(true);
    }
    let mut files: BTreeMap<String, BTreeSet<(u32, String)>> = BTreeMap::new();
    for file in fs::read_dir(&dir).await? {
        let log = file.split('.').next().unwrap_or(&file).to_owned();
        if core_of(&log).is_some()
            && let Some((boot, seq)) = parse_file_name(&log, &file)
            && boot == directory.meta().boot
        {
            files.entry(log).or_default().insert((seq, file));
        }
    }
    for (_, file) in files.values().flat_map(|of_log| of_log.iter().rev().take(UNSYNCED_FILES_MAX)) {
        if !is_unchanged(&dir.join(file)).await? {
            tracing::warn!(file, "the disk does not have all that was written: a sync must have failed");
            return Ok(false);
        }
    }
    Ok(true)
}

async fn is_unchanged(path: &Path) -> io::Result<bool> {
    let file = File::open(path, &OpenOptions::new().read(true)).await?;
    let cached = checksum(&file).await?;
    file.forget_cached()?;
    Ok(checksum(&file).await? == cached)
}

async fn checksum(file: &File) -> io::Result<(u64, u32)> {
    let (mut at, mut crc, mut buffer) = (0, 0, vec![0; READ_BYTES]);
    loop {
        let (read, bytes) = file.read_at(buffer, at).await;
        buffer = bytes;
        let count = read?;
        if count == 0 {
            return Ok((at, crc));
        }
        crc = crc32c::crc32c_append(crc, &buffer[..count]);
        at += count as u64;
    }
}
