//! Recovery: reads all chains of a log, oldest boot first, and tells a torn end from damage.
//!
//! The rule. A chain is read batch by batch. Where no valid batch continues it, at position P:
//! - If an end E of that boot is known (an earlier recovery accepted it), the chain must reach exactly E; what lies
//!   behind E was cut then and stays cut. A chain that does not reach E is damaged.
//! - Otherwise, if a later valid batch of the boot says that P had been synced (its `synced` is beyond P), then P is
//!   damaged: a batch that had been on the disk is not there any more.
//! - Otherwise P is the torn end of a crash: nothing from P on was promised to anybody. It is cut, that is, ignored.
//! - A chain that ends with a seal was closed in order, and ends there.
//!
//! Where the caller knows from where on the log is kept (see [`LogStart`]), what lies before that is not looked at. The
//! start itself had been on the disk before it was noted: a log that does not reach it, or not at that very place, is
//! damaged.
//!
//! Invariants:
//! - What is accepted is on the disk: after a crash of the process alone, the last file's bytes may be in the system's
//!   cache only, and an end that was recorded must not be lost by the next power cut. So that file is synced.
//! - Nothing on the disk is changed; cutting is done by recording the end (see [`crate::meta`]).
//! - The chain of each boot begins at the position where the chain before it ended.
//! - Frames are visited in the order of their positions, each once, and only from verified batches; those before the
//!   start are not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lockgate_runtime::fs;

use super::error::{RecoverError, VisitError};
use super::files::{file_name, name_is_allowed, parse_file_name};
use super::format::{
    BatchHeader, FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FrameHeader, Frames, LogPosition,
    SECTOR_BYTES, name_hash,
};
use super::reader::{Found, Identity, LogFile, next_offset};
use super::start::{Chains, LogStart, paths_of, take_obsolete};

/// Where a log ended, as its recovery accepted it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredEnd {
    /// The last boot that has a chain or a known end; 0 for a log that is new.
    pub boot: u64,
    /// The end of the log: the next chain begins here.
    pub position: LogPosition,
    /// Number of files that were read.
    pub files: u64,
    /// The accepted end of each boot from the start's on, to be recorded before the log is written again, and to be given
    /// to the next recovery as `known_ends`.
    pub ends: Vec<(u64, u64)>,
    /// Files that were prepared and never used, see [`remove_unused_files`].
    pub unused_files: Vec<PathBuf>,
    /// Files before the start, oldest first, see [`remove_obsolete_files`](super::remove_obsolete_files).
    pub obsolete_files: Vec<PathBuf>,
}

/// What is done with the frames of a log that is recovered.
pub trait Visitor {
    /// Called for every frame, in order. An error ends the recovery.
    fn frame(&mut self, frame: &FrameHeader, payload: &[u8]) -> Result<(), VisitError>;

    /// Called behind every batch, so with at most one batch's frames in between: the place to wait for others.
    fn batch_end(&mut self) -> impl Future<Output = Result<(), VisitError>>;
}

/// A closure, which waits for nobody.
struct Each<F>(F);

impl<F: FnMut(&FrameHeader, &[u8]) -> Result<(), VisitError>> Visitor for Each<F> {
    fn frame(&mut self, frame: &FrameHeader, payload: &[u8]) -> Result<(), VisitError> {
        self.0(frame, payload)
    }

    async fn batch_end(&mut self) -> Result<(), VisitError> {
        Ok(())
    }
}

/// Recovers the log `name` in `dir` and calls `visit` for every frame, in order.
///
/// `start` says from where on the log is kept; without it, it is kept from its beginning. Files before it are not read
/// and may be missing; frames that begin before its position are not visited. `known_ends` holds (boot, end position) as
/// earlier recoveries accepted them. A directory that does not exist is a log without chains. An error of `visit` ends the
/// recovery.
pub async fn recover(
    dir: &Path,
    name: &str,
    start: Option<LogStart>,
    known_ends: &[(u64, u64)],
    visit: impl FnMut(&FrameHeader, &[u8]) -> Result<(), VisitError>,
) -> Result<RecoveredEnd, RecoverError> {
    recover_with(dir, name, start, known_ends, &mut Each(visit)).await
}

/// As [`recover`], for a visitor that may have to wait.
pub async fn recover_with(
    dir: &Path,
    name: &str,
    start: Option<LogStart>,
    known_ends: &[(u64, u64)],
    visitor: &mut impl Visitor,
) -> Result<RecoveredEnd, RecoverError> {
    if !name_is_allowed(name) {
        return Err(RecoverError::BadName { name: name.to_owned() });
    }
    let mut recovered = RecoveredEnd::default();
    let mut chains = list_chains(dir, name).await?;
    let mut known: BTreeMap<u64, u64> = known_ends.iter().copied().collect();
    let mut boots: BTreeSet<u64> = chains.keys().chain(known.keys()).copied().collect();
    // Unknown until a chain or a known end tells where the oldest boot began.
    let mut position: Option<u64> = None;
    if let Some(start) = &start {
        recovered.obsolete_files = paths_of(dir, name, &take_obsolete(&mut chains, start));
        known.retain(|boot, _| *boot >= start.boot);
        boots.retain(|boot| *boot > start.boot);
        boots.insert(start.boot);
        if !chains.contains_key(&start.boot) {
            check_unused(dir, name, start)?;
            position = Some(start.position);
            recovered.position = LogPosition(start.position);
        }
    }
    for boot in boots {
        let known_end = known.get(&boot).copied();
        let start = start.filter(|start| start.boot == boot);
        let end = match chains.get(&boot) {
            Some(seqs) => {
                let first_seq = start.map_or(0, |start| start.seq);
                let end_seq = check_gaps(dir, name, boot, first_seq, seqs)?;
                let mut chain = Chain { dir, name, boot, start, first_seq, end_seq, known_end, position };
                chain.read(&mut recovered, visitor).await?
            }
            None => end_without_files(dir, name, boot, known_end, position)?,
        };
        if let Some(end) = end {
            position = Some(end);
            recovered.position = LogPosition(end);
            recovered.ends.push((boot, end));
        }
        recovered.boot = boot;
    }
    Ok(recovered)
}

/// The boot of the start has no file: then it must not have written the log.
fn check_unused(dir: &Path, name: &str, start: &LogStart) -> Result<(), RecoverError> {
    if start.may_be_unused() {
        return Ok(());
    }
    Err(RecoverError::Missing {
        file: dir.join(file_name(name, start.boot, start.seq)),
        evidence: format!("the log is kept from position {} on, which lies in it", start.file_position),
    })
}

/// Removes files that were prepared ahead and never used by a boot that crashed. Call it after the ends of the recovery
/// have been recorded. A file that cannot be removed stays; it only takes room.
pub async fn remove_unused_files(recovered: &RecoveredEnd) {
    // From the highest number down: a crash in between must not leave a gap.
    for path in recovered.unused_files.iter().rev() {
        if let Err(error) = fs::remove_file(path).await {
            tracing::warn!(file = %path.display(), %error, "an unused log file could not be removed");
            return;
        }
    }
}

async fn list_chains(dir: &Path, name: &str) -> Result<Chains, RecoverError> {
    let mut chains = Chains::new();
    if !fs::exists(dir).await {
        return Ok(chains);
    }
    let files = fs::read_dir(dir).await;
    for file in files.map_err(|source| RecoverError::Io { file: dir.to_path_buf(), offset: 0, source })? {
        if let Some((boot, seq)) = parse_file_name(name, &file) {
            chains.entry(boot).or_default().insert(seq);
        }
    }
    Ok(chains)
}

/// A file is begun only after its predecessor's name is durable, so a gap in the numbers was made by somebody else.
/// Returns the number after the last one.
fn check_gaps(
    dir: &Path,
    name: &str,
    boot: u64,
    first_seq: u32,
    seqs: &BTreeSet<u32>,
) -> Result<u32, RecoverError> {
    let mut end_seq = first_seq;
    for seq in seqs {
        if end_seq != *seq {
            return Err(RecoverError::Missing {
                file: dir.join(file_name(name, boot, end_seq)),
                evidence: format!("{} exists and was begun after it", file_name(name, boot, *seq)),
            });
        }
        end_seq += 1;
    }
    Ok(end_seq)
}

/// A boot that has a known end and no files must have written nothing.
fn end_without_files(
    dir: &Path,
    name: &str,
    boot: u64,
    known_end: Option<u64>,
    position: Option<u64>,
) -> Result<Option<u64>, RecoverError> {
    match known_end {
        Some(end) if end > position.unwrap_or(0) => Err(RecoverError::Missing {
            file: dir.join(file_name(name, boot, 0)),
            evidence: format!(
                "an earlier start accepted this boot's log up to position {end}, and the files that are left end at {}",
                position.unwrap_or(0)
            ),
        }),
        // It carries nothing: the record of it ends here.
        _ => Ok(None),
    }
}

/// The files of one boot.
struct Chain<'a> {
    dir: &'a Path,
    name: &'a str,
    boot: u64,
    /// From where on it is kept, if that is not its beginning.
    start: Option<LogStart>,
    first_seq: u32,
    /// The number after its last file.
    end_seq: u32,
    known_end: Option<u64>,
    /// Where the chain before ended, then where this one has been read to.
    position: Option<u64>,
}

/// Where reading a chain came to a stop.
struct Stop {
    seq: u32,
    offset: u64,
    position: u64,
    why: &'static str,
    sealed: bool,
    /// Nothing lies at the stop, and the successor's first batch (or its header, at offset 0) is broken: then that is
    /// the damaged place, if there is damage at all.
    broken_successor: Option<(u64, &'static str)>,
}

impl Chain<'_> {
    /// Reads the chain. Returns its end, or nothing if it never began and nothing came before.
    async fn read(
        &mut self,
        recovered: &mut RecoveredEnd,
        visitor: &mut impl Visitor,
    ) -> Result<Option<u64>, RecoverError> {
        let mut first = self.open(self.first_seq).await?;
        let Some(header) = first.header else {
            return self.judge_unbegun(first, recovered).await;
        };
        if let Some(expected) = self.position
            && expected != header.chain_start
        {
            return Err(self.discontinuous(&first, header.chain_start, expected));
        }
        let position = match &self.start {
            None => header.chain_start,
            Some(start) => self.check_start(start, &mut first, &header).await?,
        };
        let stop = self.read_files(first, header.chain_start, position, recovered, visitor).await?;
        self.judge(&stop, recovered).await?;
        Ok(Some(stop.position))
    }

    async fn open(&self, seq: u32) -> Result<LogFile, RecoverError> {
        let path = self.dir.join(file_name(self.name, self.boot, seq));
        LogFile::open(path, Identity { name_hash: name_hash(self.name), boot: self.boot, seq }).await
    }

    /// Whether the start can lie in the file that it names. Returns the position of that file's first batch.
    async fn check_start(
        &self,
        start: &LogStart,
        first: &mut LogFile,
        header: &FileHeader,
    ) -> Result<u64, RecoverError> {
        let found = first.batch_at(FILE_HEADER_BYTES as u64).await?;
        let why = if start.seq == 0 && header.chain_start != start.file_position {
            format!("its boot begins at position {}", header.chain_start)
        } else if header.chain_start > start.file_position || start.file_position > start.position {
            format!("its boot begins at position {}, behind the start", header.chain_start)
        } else if let Found::Batch(batch, _) = found
            && batch.position != start.file_position
        {
            format!("its first batch is of position {}", batch.position)
        } else {
            return Ok(start.file_position);
        };
        Err(RecoverError::Corrupt {
            file: first.path.clone(),
            offset: 0,
            position: LogPosition(start.file_position),
            why,
            evidence: kept_from(start),
        })
    }

    /// Visits all batches that continue the chain, over all files, and tells where that ended.
    async fn read_files(
        &self,
        first: LogFile,
        chain_start: u64,
        position: u64,
        recovered: &mut RecoveredEnd,
        visitor: &mut impl Visitor,
    ) -> Result<Stop, RecoverError> {
        let mut file = first;
        let mut stop = Stop {
            seq: self.first_seq,
            offset: FILE_HEADER_BYTES as u64,
            position,
            why: "",
            sealed: false,
            broken_successor: None,
        };
        recovered.files += 1;
        loop {
            let nothing_here = self.read_file(&mut file, &mut stop, visitor).await?;
            if stop.sealed || self.known_end == Some(stop.position) || stop.seq + 1 == self.end_seq {
                return Ok(stop);
            }
            // The file has no more; its successor may begin exactly here.
            let mut next = self.open(stop.seq + 1).await?;
            let first = next.batch_at(FILE_HEADER_BYTES as u64).await?;
            let belongs = next.header.is_some_and(|header| header.chain_start == chain_start);
            if !belongs || !matches!(&first, Found::Batch(header, _) if header.position == stop.position) {
                stop.broken_successor = match first {
                    _ if !nothing_here => None,
                    _ if !belongs => Some((0, "the file header is not valid")),
                    Found::Invalid(why) => Some((FILE_HEADER_BYTES as u64, why)),
                    _ => None,
                };
                return Ok(stop);
            }
            recovered.files += 1;
            stop.seq += 1;
            stop.offset = FILE_HEADER_BYTES as u64;
            file = next;
        }
    }

    /// Visits the batches of one file from `stop` on, and moves `stop` to where no batch continues it. True when there
    /// is nothing at all at that place.
    async fn read_file(
        &self,
        file: &mut LogFile,
        stop: &mut Stop,
        visitor: &mut impl Visitor,
    ) -> Result<bool, RecoverError> {
        while self.known_end != Some(stop.position) {
            let found = file.batch_at(stop.offset).await?;
            let (header, range) = match found {
                Found::Batch(header, range) if header.position == stop.position => (header, range),
                Found::Batch(..) => {
                    stop.why = "the batch here is of another position";
                    return Ok(false);
                }
                Found::Nothing(why) | Found::Invalid(why) => {
                    stop.why = why;
                    return Ok(matches!(found, Found::Nothing(_)));
                }
            };
            if header.payload_bytes == 0 {
                stop.sealed = true;
                stop.why = "the chain is sealed here";
                return Ok(false);
            }
            let visited_from = self.start.map_or(0, |start| start.position);
            visit_frames(file, stop, &header, &file.window()[range], visited_from, visitor)?;
            visitor.batch_end().await.map_err(|source| RecoverError::Visit {
                file: file.path.clone(),
                offset: stop.offset,
                source,
            })?;
            stop.position += u64::from(header.payload_bytes);
            stop.offset = next_offset(stop.offset, &header);
            if self.known_end.is_some_and(|end| end < stop.position) {
                stop.why = "the accepted end lies inside of the batch before";
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Decides whether the stop is an acceptable end.
    async fn judge(&self, stop: &Stop, recovered: &mut RecoveredEnd) -> Result<(), RecoverError> {
        if let Some(start) = self.start.filter(|start| start.position > stop.position) {
            return Err(self.corrupt(stop, kept_from(&start)));
        }
        match self.known_end {
            Some(end) if end == stop.position => Ok(()),
            Some(end) => {
                Err(self
                    .corrupt(stop, format!("an earlier start accepted this boot's log up to position {end}")))
            }
            None if stop.sealed => Ok(()),
            None => {
                self.judge_by_later_batches(stop, recovered).await?;
                self.open(stop.seq).await?.sync().await
            }
        }
    }

    /// Searches everything behind the stop for batches: one that knows of a sync beyond it proves damage. Files without
    /// any batch are noted as unused.
    async fn judge_by_later_batches(
        &self,
        stop: &Stop,
        recovered: &mut RecoveredEnd,
    ) -> Result<(), RecoverError> {
        let mut unused = Vec::new();
        for seq in stop.seq..self.end_seq {
            let mut file = self.open(seq).await?;
            let mut offset = if seq == stop.seq { stop.offset } else { FILE_HEADER_BYTES as u64 };
            let mut found_any = false;
            while let Some((at, header)) = file.find_batch_after(offset, stop.position).await? {
                found_any = true;
                if header.synced > stop.position {
                    return Err(self.corrupt(
                        stop,
                        format!(
                            "the later batch at byte offset {at} of {} says that everything before position {} was on \
                             the disk",
                            file.path.display(),
                            header.synced
                        ),
                    ));
                }
                offset = at + SECTOR_BYTES as u64;
            }
            if seq > stop.seq && !found_any {
                unused.push(file.path);
            } else {
                unused.clear();
            }
        }
        recovered.unused_files.extend(unused);
        Ok(())
    }

    /// The first file has no valid header: the boot crashed while it prepared the file, unless something proves that
    /// the chain had begun.
    async fn judge_unbegun(
        &self,
        mut first: LogFile,
        recovered: &mut RecoveredEnd,
    ) -> Result<Option<u64>, RecoverError> {
        let before = self.position.unwrap_or(0);
        let evidence = if let Some(end) = self.known_end.filter(|end| *end > before) {
            Some(format!("an earlier start accepted this boot's log up to position {end}"))
        } else if let Some(start) = &self.start {
            Some(kept_from(start))
        } else if self.end_seq > 1 {
            Some("the chain has a second file, which is begun only after the first file's header is on the disk".into())
        } else {
            let found = first.find_batch_after(FILE_HEADER_BYTES as u64, before).await?;
            found.map(|(at, _)| format!("there is a valid batch at byte offset {at}"))
        };
        match evidence {
            Some(evidence) => Err(RecoverError::Corrupt {
                file: first.path,
                offset: 0,
                position: LogPosition(before),
                why: "the file header is not valid".into(),
                evidence,
            }),
            None => {
                recovered.unused_files.push(first.path);
                Ok(self.position)
            }
        }
    }

    fn corrupt(&self, stop: &Stop, evidence: String) -> RecoverError {
        let (seq, offset, why) = match stop.broken_successor {
            Some((offset, why)) => (stop.seq + 1, offset, why),
            None => (stop.seq, stop.offset, stop.why),
        };
        RecoverError::Corrupt {
            file: self.dir.join(file_name(self.name, self.boot, seq)),
            offset,
            position: LogPosition(stop.position),
            why: why.into(),
            evidence,
        }
    }

    fn discontinuous(&self, first: &LogFile, found: u64, expected: u64) -> RecoverError {
        RecoverError::Corrupt {
            file: first.path.clone(),
            offset: 0,
            position: LogPosition(expected),
            why: format!("its boot begins at position {found}"),
            evidence: format!(
                "the boots before it end at position {expected}, so files of an earlier boot are missing, damaged or \
                 not this directory's"
            ),
        }
    }
}

/// The evidence that a start is.
fn kept_from(start: &LogStart) -> String {
    format!(
        "a checkpoint says that the log is kept from position {} on, in a file that begins at position {}",
        start.position, start.file_position
    )
}

/// Visits a batch's frames that do not begin before `visited_from`.
fn visit_frames(
    file: &LogFile,
    stop: &Stop,
    header: &BatchHeader,
    payload: &[u8],
    visited_from: u64,
    visitor: &mut impl Visitor,
) -> Result<(), RecoverError> {
    let malformed = |why: String, evidence: &str| RecoverError::Corrupt {
        file: file.path.clone(),
        offset: stop.offset,
        position: LogPosition(stop.position),
        why,
        evidence: evidence.into(),
    };
    let verified = "the batch's checksum is right, so it was written like this";
    let mut frames = 0;
    let mut begin = stop.position;
    for frame in Frames::new(payload) {
        let Ok((frame, payload)) = frame else {
            return Err(malformed(format!("frame {frames} does not fit its batch"), verified));
        };
        let end = begin + (FRAME_HEADER_BYTES + payload.len()) as u64;
        if begin >= visited_from {
            visitor.frame(&frame, payload).map_err(|source| RecoverError::Visit {
                file: file.path.clone(),
                offset: stop.offset,
                source,
            })?;
        } else if end > visited_from {
            let why = format!("position {visited_from} lies inside of a frame");
            return Err(malformed(why, "a checkpoint says that a frame begins there"));
        }
        begin = end;
        frames += 1;
    }
    if frames != header.frames {
        let why = format!("the batch holds {frames} frames and its header says {}", header.frames);
        return Err(malformed(why, verified));
    }
    Ok(())
}
