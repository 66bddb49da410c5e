//! Reading a checkpoint: its manifest, and its slots on all cores.
//!
//! Invariants: nothing is changed on the disk; every record is verified before it is taken in; a slot that was loaded is
//! exactly what was pinned, by its version, its keys and its digest; whatever is in the files, there is an error or the
//! data, and never a panic.

use std::io;
use std::path::{Path, PathBuf};

use lockgate_runtime::{File, OpenOptions, fs, mutation};

use super::LoadError;
use super::files::{data_file_name, manifest_path};
use super::format::{
    DATA_HEADER_BYTES, DataHeader, FormatFault, MANIFEST_BYTES_MAX, Manifest, RangeBytes, SlotEntry,
};
use super::source::Source;
use crate::cores::Job;
use crate::log::LogStart;
use crate::meta::Directory;
use crate::record::{self, Kind, RECORD_HEADER_BYTES, RecordError};
use crate::recovery::{Progress, Target};
use crate::slots::SlotTable;
use crate::types::{RangeHeader, SLOTS, Slot, Version};

/// Records are taken in in pieces of this size, or one record that is longer: each becomes a segment.
const PIECE_BYTES: usize = crate::chain::SEGMENT_BYTES_MAX as usize;
/// A slot counts as so many bytes more when the slots are divided among the cores.
const SLOT_COST_BYTES: u64 = 512;
/// Slots that are loaded before other tasks have their turn.
const SLOTS_PER_TURN: usize = 16;

/// What a recovery goes on from: the checkpoint's manifest, and what the slots in it have of the logs.
pub(crate) struct Base {
    pub(crate) manifest: Manifest,
    /// By slot: the end of the last frame that it has, in the log that was its home then.
    positions: Vec<u64>,
}

impl Base {
    /// Of this directory's manifest.
    pub(crate) fn of_directory(manifest: Manifest, directory: &Directory) -> Result<Base, LoadError> {
        let meta = directory.meta();
        let why = if manifest.head.id.directory_id != meta.directory_id {
            "it belongs to another directory"
        } else if manifest.head.boot > meta.boot {
            "it was taken by a later boot than the meta file knows of"
        } else {
            return Ok(Base::new(manifest));
        };
        let file = manifest_path(&directory.checkpoint_dir());
        Err(LoadError::Corrupt { file, offset: 0, why: why.into() })
    }

    /// The sum of the positions from which the logs are replayed.
    pub(crate) fn replayed_from(&self) -> u64 {
        self.manifest.head.logs.iter().map(|log| log.start.position).sum()
    }

    /// Of a manifest that is known to be of the directory.
    pub(crate) fn new(manifest: Manifest) -> Base {
        let mut positions = vec![0; usize::from(SLOTS)];
        for entry in &manifest.slots {
            positions[entry.image.slot.index()] = entry.image.position.0;
        }
        Base { manifest, positions }
    }

    /// From where on a core's log is to be replayed. `None`: the log was made later.
    pub(crate) fn start_of(&self, core: usize) -> Option<LogStart> {
        self.manifest.head.logs.iter().find(|log| log.core as usize == core).map(|log| log.start)
    }

    /// Whether a slot has the frame that ends at this position of a core's log. The positions of other logs are not
    /// compared: when the number of cores changed, the slot went on in another log.
    pub(crate) fn has(&self, slot: Slot, core: usize, end: u64) -> bool {
        slot.index() % self.manifest.head.cores as usize == core
            && end <= self.positions[slot.index()]
            && !mutation!("checkpoint-position-not-skipped")
    }
}

/// The manifest in the folder of a directory's checkpoint; `None` if there is no checkpoint.
///
/// Once it was read, a power cut does not bring the one before back: what that one needs may go.
pub(crate) async fn read_manifest(dir: &Path) -> Result<Option<Manifest>, LoadError> {
    let path = manifest_path(dir);
    let failed = |source| LoadError::Io { file: path.clone(), offset: 0, source };
    let file = match File::open(&path, &OpenOptions::new().read(true)).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let len = file.len().await.map_err(failed)?;
    if len > MANIFEST_BYTES_MAX as u64 {
        let why = format!("it has {len} bytes, more than {MANIFEST_BYTES_MAX}");
        return Err(LoadError::Corrupt { file: path, offset: 0, why });
    }
    let (result, mut bytes) = file.read_at(vec![0; len as usize], 0).await;
    bytes.truncate(result.map_err(failed)?);
    let manifest = Manifest::decode(&bytes).map_err(|fault| fault_in(&path, fault))?;
    if !mutation!("unsynced-found-manifest") {
        fs::sync_dir(dir).await.map_err(failed)?;
    }
    Ok(Some(manifest))
}

fn fault_in(file: &Path, fault: FormatFault) -> LoadError {
    let file = file.to_path_buf();
    match fault {
        FormatFault::Invalid { offset, why } => LoadError::Corrupt { file, offset: offset as u64, why },
        FormatFault::UnknownVersion(found) => LoadError::UnknownVersion { file, found },
    }
}

/// Some slots that lie next to each other in a data file.
struct Part {
    path: PathBuf,
    header: DataHeader,
    file_bytes: u64,
    slots: Vec<SlotEntry>,
}

/// Loads all slots of a checkpoint into empty ones, with all cores of the table.
pub(crate) async fn load_all(target: &Target, dir: &Path, base: &Base) -> Result<(), LoadError> {
    let Target { runtime, cores, slots, progress } = target;
    let jobs: Vec<_> = divide(&base.manifest, dir, *cores)
        .into_iter()
        .enumerate()
        .map(|(core, parts)| {
            let (slots, progress) = (slots.clone(), progress.clone());
            Job::start_on(runtime, core, move || async move {
                for part in parts {
                    load_part(part, &slots, &progress).await?;
                }
                Ok(())
            })
        })
        .collect();
    let mut result = Ok(());
    // All of them, also when one has failed: they use the slots.
    for job in jobs {
        let done = job.done().await;
        result = result.and(done);
    }
    result
}

/// The slots in the order in which they lie in the files, in as many shares of about the same size as there are cores.
fn divide(manifest: &Manifest, dir: &Path, cores: usize) -> Vec<Vec<Part>> {
    let cost = |entry: &SlotEntry| entry.bytes() + SLOT_COST_BYTES;
    let share = manifest.slots.iter().map(cost).sum::<u64>() / cores as u64 + 1;
    let mut shares: Vec<Vec<Part>> = (0..cores).map(|_| Vec::new()).collect();
    let mut before = 0;
    for (number, file) in manifest.head.files.iter().enumerate() {
        let mut of_share = None;
        for entry in manifest.slots.iter().filter(|entry| usize::from(entry.file) == number) {
            let at = ((before / share) as usize).min(cores - 1);
            before += cost(entry);
            if of_share != Some(at) {
                of_share = Some(at);
                shares[at].push(Part {
                    path: dir.join(data_file_name(manifest.head.id.number, file.core)),
                    header: DataHeader { id: manifest.head.id, core: file.core },
                    file_bytes: file.bytes,
                    slots: Vec::new(),
                });
            }
            let part = shares[at].last_mut().expect("just made, if it was not there");
            part.slots.push(entry.clone());
        }
        if of_share.is_none() {
            // It holds nothing, and must be there all the same.
            shares[0].push(Part {
                path: dir.join(data_file_name(manifest.head.id.number, file.core)),
                header: DataHeader { id: manifest.head.id, core: file.core },
                file_bytes: file.bytes,
                slots: Vec::new(),
            });
        }
    }
    shares
}

/// As [`load_all`], on this core, for repairs: a slot whose records are damaged is left empty. Returns those, with what is
/// wrong. Other errors end it.
pub(crate) async fn load_leniently(
    slots: &SlotTable,
    dir: &Path,
    base: &Base,
) -> Result<Vec<(Slot, LoadError)>, LoadError> {
    let (manifest, progress) = (&base.manifest, Progress::new(0, None));
    let mut damaged = Vec::new();
    for entry in &manifest.slots {
        let file = manifest.head.files[usize::from(entry.file)];
        let path = dir.join(data_file_name(manifest.head.id.number, file.core));
        let header = DataHeader { id: manifest.head.id, core: file.core };
        // Whatever is wrong with a file, what verifies in it is what was written.
        let opened = match open_data_file(&path, &header, file.bytes).await {
            Err(LoadError::Corrupt { .. }) => {
                let failed = |source| LoadError::Io { file: path.clone(), offset: 0, source };
                File::open(&path, &OpenOptions::new().read(true)).await.map_err(failed)
            }
            opened => opened,
        };
        let loaded = match opened {
            Ok(opened) => {
                let mut source = Source::new(opened, path, entry.offset, entry.offset + entry.bytes());
                load_slot(&mut source, entry, slots, &progress).await
            }
            Err(error) => Err(error),
        };
        let slot = entry.image.slot;
        match loaded {
            Ok(()) => {}
            Err(error @ (LoadError::Corrupt { .. } | LoadError::Missing { .. })) => {
                let _garbage = slots.of(slot).lock().store.take();
                damaged.push((slot, error));
            }
            Err(other) => return Err(other),
        }
    }
    Ok(damaged)
}

async fn load_part(part: Part, slots: &SlotTable, progress: &Progress) -> Result<(), LoadError> {
    let path = part.path;
    let file = open_data_file(&path, &part.header, part.file_bytes).await?;
    let (Some(first), Some(last)) = (part.slots.first(), part.slots.last()) else { return Ok(()) };
    let (start, end) = (first.offset, last.offset + last.bytes());
    let mut source = Source::new(file, path, start, end);
    for (turn, entry) in part.slots.iter().enumerate() {
        load_slot(&mut source, entry, slots, progress).await?;
        if turn % SLOTS_PER_TURN == 0 {
            lockgate_runtime::yield_now().await;
        }
    }
    Ok(())
}

async fn open_data_file(path: &Path, expected: &DataHeader, bytes: u64) -> Result<File, LoadError> {
    let failed = |source| LoadError::Io { file: path.to_path_buf(), offset: 0, source };
    let file = match File::open(path, &OpenOptions::new().read(true)).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let why = "the manifest names it".into();
            return Err(LoadError::Missing { file: path.to_path_buf(), why });
        }
        Err(error) => return Err(failed(error)),
    };
    let corrupt = |why: String| LoadError::Corrupt { file: path.to_path_buf(), offset: 0, why };
    let (result, mut header) = file.read_at(vec![0; DATA_HEADER_BYTES], 0).await;
    header.truncate(result.map_err(failed)?);
    let header = DataHeader::decode(&header).map_err(|fault| fault_in(path, fault))?;
    if header != *expected {
        return Err(corrupt("it belongs to another checkpoint, or to another core".into()));
    }
    let len = file.len().await.map_err(failed)?;
    if len != bytes {
        return Err(corrupt(format!("it has {len} bytes, and the manifest says {bytes}")));
    }
    Ok(file)
}

async fn load_slot(
    source: &mut Source,
    entry: &SlotEntry,
    slots: &SlotTable,
    progress: &Progress,
) -> Result<(), LoadError> {
    let (image, start) = (&entry.image, source.offset());
    let slot = image.slot;
    let out_of_memory = |error| LoadError::OutOfMemory { slot, source: error };
    let cell = slots.of(slot);
    cell.lock().expect_keys(image.keys).map_err(out_of_memory)?;
    let mut last = Version::ZERO;
    for RangeBytes { header, bytes } in &entry.ranges {
        let (mut left, mut wanted) = (*bytes, PIECE_BYTES);
        while left > 0 {
            let offset = source.offset();
            let at_hand = source.next(wanted.min(left as usize)).await?;
            let within = &at_hand[..at_hand.len().min(left as usize)];
            let is_rest = within.len() as u64 == left;
            let piece = match verify_piece(slot, *header, last.counter, within, is_rest, PIECE_BYTES) {
                Ok(piece) => piece,
                Err(PieceFault { at, why }) => {
                    let (offset, why) = (offset + at as u64, format!("slot {slot}: {why}"));
                    return Err(LoadError::Corrupt { file: source.path().clone(), offset, why });
                }
            };
            if piece.bytes == 0 {
                // A write that is longer than what is at hand.
                wanted = piece.needed_bytes.max(2 * within.len());
                continue;
            }
            wanted = PIECE_BYTES;
            cell.lock().load(*header, piece.first, &within[..piece.bytes]).map_err(out_of_memory)?;
            last = Version::new(header.term, piece.last);
            left -= piece.bytes as u64;
            source.take(piece.bytes);
            progress.add(piece.bytes as u64);
        }
    }
    let mut held = cell.lock();
    let (keys, digest) = (held.store.keys(), held.store.digest());
    if (last, keys, digest) != (image.version, image.keys, image.digest) {
        let why = format!(
            "slot {slot} ends at version {last} with {keys} keys and digest {digest:#x}, and the manifest says {}, {} \
             and {:#x}",
            image.version, image.keys, image.digest
        );
        return Err(LoadError::Corrupt { file: source.path().clone(), offset: start, why });
    }
    held.restore(image);
    Ok(())
}

/// Some verified writes at the beginning of a range's rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// The counter of the first record.
    pub first: u64,
    /// The counter of the last one.
    pub last: u64,
    /// How long they are together. 0: the first write is longer than what was given.
    pub bytes: usize,
    /// So much must be given at least for the first write, if that was too little.
    pub needed_bytes: usize,
}

/// What is wrong in a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceFault {
    /// Where in what was given.
    pub at: usize,
    /// What.
    pub why: String,
}

/// Verifies the whole writes at the beginning of `bytes`, which are a slot's records behind the counter `after`: as many
/// as fit into `bytes_max`, but at least one. `is_rest`: the range ends where the bytes do.
pub fn verify_piece(
    slot: Slot,
    header: RangeHeader,
    after: u64,
    bytes: &[u8],
    is_rest: bool,
    bytes_max: usize,
) -> Result<Piece, PieceFault> {
    let mut piece = Piece { last: after, ..Piece::default() };
    let (mut at, mut last) = (0, after);
    while at < bytes.len() {
        let fault = |why: String| PieceFault { at, why };
        let record = match record::verify(&bytes[at..]) {
            Ok(record) => record,
            Err(RecordError::Truncated { needed_bytes, .. }) if !is_rest => {
                piece.needed_bytes = at + needed_bytes;
                return Ok(piece);
            }
            Err(error) => return Err(fault(error.to_string())),
        };
        let end = at + record.encoded_bytes();
        if piece.bytes > 0 && end > bytes_max {
            return Ok(piece);
        }
        let of = Slot::of_key(record.key);
        if of != slot && record.kind != Kind::Clear {
            return Err(fault(format!("a key of slot {of}")));
        }
        let counter = header.base.checked_add(u64::from(record.delta));
        let Some(counter) = counter.filter(|counter| *counter > last) else {
            return Err(fault("a record that does not follow the one before it".into()));
        };
        if at == 0 {
            piece.first = counter;
        }
        (at, last) = (end, counter);
        // A write of several records stays in one piece, so that no stream divides it.
        if !record.goes_on || (is_rest && end == bytes.len()) {
            (piece.bytes, piece.last) = (end, counter);
        }
    }
    piece.needed_bytes = at + RECORD_HEADER_BYTES;
    Ok(piece)
}
