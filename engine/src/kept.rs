//! Whether all that the latest boot wrote to its logs is still here, although it may never have been synced.
//!
//! What was written is in the system's cache until it is on the disk, so the end of a process loses none of it, and a start
//! of the system may. There is one more way: after a failed sync the system holds pages for clean that the disk never got,
//! and gives them up when it likes. Recovery goes by the disk (see `log/ahead.rs`). So the two are compared: a file whose
//! unsynced end reads differently from the disk itself has lost writes. Every batch says up to where the log was synced when
//! it was written: what lies before that is on the disk, and is not compared.
//!
//! Reading past the cache leaves the evidence where it is, for whoever asks next: a check of the directory, say, changes
//! nothing of this answer. Where the filesystem has no such reads the cache must be made to forget, and that is noted first.
//!
//! What this does not see: pages that were lost to a failed sync and given up before this start. What a checkpoint has was
//! synced in the logs before, so that checkpoints change nothing here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use lockgate_runtime::{DIRECT_ALIGN_BYTES, File, OpenOptions, Runtime, direct_start, fs};

use crate::cores::Job;
use crate::log::files::parse_file_name;
use crate::log::format::{BATCH_HEADER_BYTES, BatchHeader, FILE_HEADER_BYTES, FileHeader, batch_file_bytes};
use crate::meta::{Directory, MetaError};
use crate::recovery::core_of;

/// The files of a chain that may have unsynced batches: the one in use, behind which one more is prepared.
const UNSYNCED_FILES_MAX: usize = 2;
/// Bytes that are read at once to be compared.
const READ_BYTES: usize = 1 << 20;
/// Bytes that are read at once to look at the headers of batches, which may lie far from each other.
const LOOK_BYTES: usize = 64 << 10;

/// A file that is to be compared with what the system remembers of it.
struct Latest {
    path: PathBuf,
    /// For reads from the disk itself; `None`: the filesystem has none.
    direct: Option<File>,
}

/// Whether nothing that the latest boot wrote can be lost. To be asked before the recovery. `cores` of the runtime help.
pub(crate) async fn kept_written(
    directory: &mut Directory,
    runtime: &Runtime,
    cores: usize,
) -> Result<bool, MetaError> {
    if directory.meta().boot == 0 {
        return Ok(true);
    }
    if !directory.is_same_os_boot() {
        return Ok(false);
    }
    let unchanged = match latest_files(directory).await {
        Ok(files) => {
            if files.iter().flat_map(|(_, of_log)| of_log).any(|file| file.direct.is_none()) {
                // The check destroys its own evidence then: if it is not finished, no later one can tell.
                directory.forget_os_boot().await?;
            }
            are_unchanged(files, runtime, cores).await
        }
        Err(error) => Err(error),
    };
    Ok(unchanged.unwrap_or_else(|error| {
        tracing::warn!(%error, "the latest log files could not be read: taken as if writes were lost");
        false
    }))
}

/// The files of the latest boot that may have unsynced batches, by the number of their core.
async fn latest_files(directory: &Directory) -> io::Result<Vec<(usize, Vec<Latest>)>> {
    let dir = directory.log_dir();
    if !fs::exists(&dir).await {
        return Ok(Vec::new());
    }
    let mut files: BTreeMap<usize, BTreeSet<(u32, PathBuf)>> = BTreeMap::new();
    for file in fs::read_dir(&dir).await? {
        let log = file.split('.').next().unwrap_or(&file);
        if let Some(core) = core_of(log)
            && let Some((boot, seq)) = parse_file_name(log, &file)
            && boot == directory.meta().boot
        {
            files.entry(core).or_default().insert((seq, dir.join(file)));
        }
    }
    let mut latest = Vec::new();
    for (core, of_log) in files {
        let mut of_core = Vec::new();
        for (_, path) in of_log.into_iter().rev().take(UNSYNCED_FILES_MAX) {
            let direct = open_direct(&path).await?;
            of_core.push(Latest { path, direct });
        }
        latest.push((core, of_core));
    }
    Ok(latest)
}

async fn open_direct(path: &Path) -> io::Result<Option<File>> {
    let opened = async {
        let file = File::open(path, &OpenOptions::new().read(true).direct(true)).await?;
        // Only a read shows it.
        checksum(&file, 0..1).await?;
        io::Result::Ok(file)
    };
    match opened.await {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
    }
}

async fn are_unchanged(
    files: Vec<(usize, Vec<Latest>)>,
    runtime: &Runtime,
    cores: usize,
) -> io::Result<bool> {
    let jobs: Vec<_> = files
        .into_iter()
        .map(|(core, latest)| {
            Job::start_on(runtime, core % cores, move || async move {
                for file in latest {
                    if !is_unchanged(&file).await? {
                        tracing::warn!(file = %file.path.display(), "the disk does not have all that was written: a sync must have failed");
                        return io::Result::Ok(false);
                    }
                }
                Ok(true)
            })
        })
        .collect();
    let mut all: io::Result<bool> = Ok(true);
    for job in jobs {
        let unchanged = job.done().await;
        all = all.and_then(|all| Ok(all && unchanged?));
    }
    all
}

async fn is_unchanged(Latest { path, direct }: &Latest) -> io::Result<bool> {
    let file = File::open(path, &OpenOptions::new().read(true)).await?;
    let unsynced = unsynced(&file).await?;
    let cached = checksum(&file, unsynced.clone()).await?;
    let on_disk = match direct {
        Some(direct) => checksum(direct, unsynced).await?,
        None => {
            file.forget_cached()?;
            checksum(&file, unsynced).await?
        }
    };
    Ok(on_disk == cached)
}

/// Where in the file the batches are that its last batch did not know to be synced. Where there is no batch: all of it.
async fn unsynced(file: &File) -> io::Result<Range<u64>> {
    let mut window = Window { file, at: 0, bytes: Vec::new() };
    let Ok(header) = FileHeader::decode(window.bytes(0, FILE_HEADER_BYTES).await?) else {
        return Ok(0..file.len().await?);
    };
    // What may be unsynced: the ends of the batches' positions, and their offsets.
    let mut open: VecDeque<(u64, u64)> = VecDeque::new();
    let mut offset = FILE_HEADER_BYTES as u64;
    while let Some(batch) = BatchHeader::decode(window.bytes(offset, BATCH_HEADER_BYTES).await?)
        && batch.salt == header.salt
        && batch.boot == header.boot
        && let Some(end) = batch.end()
    {
        open.push_back((end, offset));
        while open.front().is_some_and(|(end, _)| *end <= batch.synced) {
            open.pop_front();
        }
        offset += batch_file_bytes(batch.payload_bytes as usize) as u64;
    }
    Ok(open.front().map_or(offset, |(_, offset)| *offset)..offset)
}

/// What is being read of a file, from its beginning to its end.
struct Window<'a> {
    file: &'a File,
    at: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// So many bytes from this offset on; fewer where the file ends.
    async fn bytes(&mut self, offset: u64, count: usize) -> io::Result<&[u8]> {
        if offset < self.at || offset + count as u64 > self.at + self.bytes.len() as u64 {
            let mut buffer = std::mem::take(&mut self.bytes);
            buffer.resize(LOOK_BYTES, 0);
            let (read, mut bytes) = self.file.read_at(buffer, offset).await;
            bytes.truncate(read?);
            (self.at, self.bytes) = (offset, bytes);
        }
        let from = ((offset - self.at) as usize).min(self.bytes.len());
        Ok(&self.bytes[from..(from + count).min(self.bytes.len())])
    }
}

/// Of the bytes in a range, and where they end if the file ends before. The reads are aligned, so that they may be direct.
async fn checksum(file: &File, range: Range<u64>) -> io::Result<(u64, u32)> {
    let (mut at, mut crc) = (range.start, 0);
    let mut buffer = vec![0; READ_BYTES + DIRECT_ALIGN_BYTES];
    let from = direct_start(&buffer, 0);
    while at < range.end {
        let offset = at - at % DIRECT_ALIGN_BYTES as u64;
        let wanted = (range.end - offset).next_multiple_of(DIRECT_ALIGN_BYTES as u64);
        buffer.resize(from + wanted.min(READ_BYTES as u64) as usize, 0);
        let (read, bytes) = file.read_part_at(buffer, from, offset).await;
        buffer = bytes;
        let read = &buffer[from..from + read?];
        let skipped = (at - offset) as usize;
        let new = read.get(skipped..).unwrap_or_default();
        let new = &new[..new.len().min((range.end - at) as usize)];
        if new.is_empty() {
            break;
        }
        crc = crc32c::crc32c_append(crc, new);
        at += new.len() as u64;
    }
    Ok((at, crc))
}
