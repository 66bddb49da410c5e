//! Reading a log that is damaged: all batches that verify, in the order of their positions, and where something is missing.
//!
//! For repairs only. A start goes by [`recover`](super::recover), which stops at damage.
//!
//! Invariants:
//! - Only frames of batches whose checksum matches, and that carry the salt of a file whose header is valid, are given out,
//!   each once, and none behind an end that an earlier start accepted: what lay there was cut.
//! - Whatever lies between two batches and is not there is told as a gap, before the frames behind it. What only lies behind
//!   the last batch is told as the tail: it may be the torn end of a crash, or nothing.
//! - Nothing on the disk is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::error::{RecoverError, VisitError};
use super::files::{file_name, parse_file_name};
use super::format::{
    BatchHeader, FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FrameHeader, Frames, SECTOR_BYTES, name_hash,
};
use super::reader::{Found, Identity, LogFile, next_offset};
use super::start::{Chains, LogStart, take_obsolete};

/// A place in a log's files, and what is wrong there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: PathBuf,
    pub(crate) offset: u64,
    pub(crate) why: String,
}

/// Frames that had been there and are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    /// The boot whose chain is read behind the gap, or that should have reached its end.
    pub(crate) boot: u64,
    /// Whether the gap reaches into the chain of an earlier boot.
    pub(crate) spans_boots: bool,
    /// The position of the first frame that is missing.
    pub(crate) from: u64,
    /// The position of the first one behind the gap.
    pub(crate) to: u64,
    /// Where the reading stopped.
    pub(crate) place: Place,
}

/// What the reading meets with.
pub(crate) enum Met<'a> {
    /// A frame, by which boot it was written, and where it ends in the log.
    Frame((u64, u64), &'a FrameHeader, &'a [u8]),
    Gap(&'a Gap),
}

/// Where the reading ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail {
    /// The end of the last frame.
    pub(crate) position: u64,
    /// The last boot that has files of it.
    pub(crate) last_boot: u64,
    /// Whether the last chain was closed in order.
    pub(crate) is_sealed: bool,
    /// Whether an earlier start had accepted this end.
    pub(crate) is_accepted: bool,
    pub(crate) place: Place,
    pub(crate) files: u64,
    pub(crate) frames: u64,
}

/// Reads the log `name` in `dir`, whose files are among `files`. An error of `visit`, and what the system cannot read, ends
/// it.
pub(crate) async fn read_leniently(
    dir: &Path,
    name: &str,
    files: &[String],
    start: Option<LogStart>,
    known_ends: &[(u64, u64)],
    visit: &mut impl FnMut(Met<'_>) -> Result<(), VisitError>,
) -> Result<Tail, RecoverError> {
    let mut chains = Chains::new();
    for (boot, seq) in files.iter().filter_map(|file| parse_file_name(name, file)) {
        chains.entry(boot).or_default().insert(seq);
    }
    if let Some(start) = &start {
        take_obsolete(&mut chains, start);
    }
    let mut ends: BTreeMap<u64, u64> = known_ends.iter().copied().collect();
    add_ends(dir, name, &chains, &mut ends).await?;
    let first_boot = start.map_or(0, |start| start.boot);
    let boots: BTreeSet<u64> =
        chains.keys().chain(ends.keys()).copied().filter(|boot| *boot >= first_boot).collect();
    let mut reading = Reading {
        dir,
        name,
        visited_from: start.map_or(0, |start| start.position),
        // A log begins at 0.
        position: Some(start.map_or(0, |start| start.position)),
        tail: Tail::default(),
        has_stopped: false,
        visit,
    };
    for boot in boots {
        let seqs = chains.remove(&boot).unwrap_or_default();
        let file_position = start.filter(|start| start.boot == boot).map(|start| start.file_position);
        reading.chain(boot, &seqs, ends.get(&boot).copied(), file_position).await?;
    }
    reading.tail.position = reading.position.unwrap_or(0);
    Ok(reading.tail)
}

/// A chain ends where the next one begins, whether that was recorded or not.
async fn add_ends(
    dir: &Path,
    name: &str,
    chains: &Chains,
    ends: &mut BTreeMap<u64, u64>,
) -> Result<(), RecoverError> {
    let mut before: Option<u64> = None;
    for (&boot, seqs) in chains {
        for &seq in seqs {
            let identity = Identity { name_hash: name_hash(name), boot, seq };
            let opened = LogFile::open(dir.join(file_name(name, boot, seq)), identity).await;
            let header = match opened {
                Ok(file) => file.header,
                Err(RecoverError::Corrupt { .. }) => None,
                Err(other) => return Err(other),
            };
            if let Some(header) = header {
                if let Some(before) = before {
                    ends.entry(before).or_insert(header.chain_start);
                }
                break;
            }
        }
        before = Some(boot);
    }
    Ok(())
}

struct Reading<'a, V> {
    dir: &'a Path,
    name: &'a str,
    visited_from: u64,
    /// Up to where frames were read or given up.
    position: Option<u64>,
    tail: Tail,
    /// Since the last frame the reading has stopped somewhere, and the tail says where first.
    has_stopped: bool,
    visit: &'a mut V,
}

impl<V: FnMut(Met<'_>) -> Result<(), VisitError>> Reading<'_, V> {
    /// Reads the chain of one boot. `file_position`: where its first kept file begins, if not where the chain does.
    async fn chain(
        &mut self,
        boot: u64,
        seqs: &BTreeSet<u32>,
        known_end: Option<u64>,
        file_position: Option<u64>,
    ) -> Result<(), RecoverError> {
        (self.tail.is_sealed, self.tail.is_accepted) = (false, false);
        if !seqs.is_empty() {
            self.tail.last_boot = boot;
        }
        let mut is_first = true;
        for &seq in seqs {
            let path = self.dir.join(file_name(self.name, boot, seq));
            let identity = Identity { name_hash: name_hash(self.name), boot, seq };
            let mut file = match LogFile::open(path.clone(), identity).await {
                Ok(file) => file,
                Err(RecoverError::Corrupt { file, offset, why, .. }) => {
                    self.stopped(Place { file, offset, why });
                    continue;
                }
                Err(other) => return Err(other),
            };
            let Some(header) = file.header else {
                let why = "the file header is not valid".to_owned();
                self.stopped(Place { file: path, offset: 0, why });
                continue;
            };
            if is_first {
                let begins = file_position.unwrap_or(header.chain_start);
                // What lies before the start is not missed, and neither is what a log had before its first chain.
                let expected = self.position.map_or(begins, |position| match file_position {
                    Some(file_position) => file_position.min(position),
                    None => position,
                });
                self.position = Some(expected);
                self.go_on_at(boot, begins, true)?;
            }
            is_first = false;
            self.tail.files += 1;
            if self.file(boot, &mut file, known_end).await? {
                break;
            }
        }
        match known_end {
            Some(end) if self.position.is_none_or(|position| position < end) => {
                self.position.get_or_insert(0);
                self.tail.is_accepted = true;
                let (file, why) = (self.dir.join(file_name(self.name, boot, 0)), "it is missing".into());
                self.stopped(Place { file, offset: 0, why });
                self.go_on_at(boot, end, false)
            }
            Some(_) => {
                self.tail.is_accepted = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The first place counts: what is behind it may be as nobody ever wrote it.
    fn stopped(&mut self, place: Place) {
        if !std::mem::replace(&mut self.has_stopped, true) {
            self.tail.place = place;
        }
    }

    /// What is read next is of this position. What lies between is missing.
    fn go_on_at(&mut self, boot: u64, to: u64, spans_boots: bool) -> Result<(), RecoverError> {
        let from = self.position.unwrap_or(to);
        if to != from {
            let gap = Gap { boot, spans_boots, from, to, place: self.tail.place.clone() };
            self.tell(Met::Gap(&gap))?;
        }
        self.position = Some(to);
        Ok(())
    }

    fn tell(&mut self, met: Met<'_>) -> Result<(), RecoverError> {
        let place = &self.tail.place;
        (self.visit)(met).map_err(|source| RecoverError::Visit {
            file: place.file.clone(),
            offset: place.offset,
            source,
        })
    }

    /// Reads one file. True: the chain ends in it.
    async fn file(
        &mut self,
        boot: u64,
        file: &mut LogFile,
        known_end: Option<u64>,
    ) -> Result<bool, RecoverError> {
        let mut offset = FILE_HEADER_BYTES as u64;
        loop {
            let position = self.position.unwrap_or(0);
            if known_end == Some(position) {
                return Ok(true);
            }
            let (header, range) = match file.batch_at(offset).await? {
                Found::Batch(header, range) if header.position >= position => (header, range),
                found => {
                    let why = match found {
                        Found::Batch(..) => "the batch here is of another position",
                        Found::Nothing(why) | Found::Invalid(why) => why,
                    };
                    self.stopped(Place { file: file.path.clone(), offset, why: why.into() });
                    match file.find_batch_after(offset, position).await? {
                        Some((at, _)) if at > offset => offset = at,
                        _ => return Ok(false),
                    }
                    continue;
                }
            };
            let Some(end) = header.end().filter(|end| known_end.is_none_or(|known| *end <= known)) else {
                // It reaches beyond what was accepted: it lies where the log was cut.
                return Ok(true);
            };
            self.go_on_at(boot, header.position, false)?;
            if header.payload_bytes == 0 {
                self.tail.is_sealed = true;
                return Ok(true);
            }
            let place = Place { file: file.path.clone(), offset, why: String::new() };
            self.frames(boot, &header, &file.window()[range], place)?;
            self.position = Some(end);
            offset = next_offset(offset, &header).max(offset + SECTOR_BYTES as u64);
        }
    }

    fn frames(
        &mut self,
        boot: u64,
        header: &BatchHeader,
        payload: &[u8],
        place: Place,
    ) -> Result<(), RecoverError> {
        (self.tail.place, self.has_stopped) = (place, false);
        let mut at = header.position;
        for frame in Frames::new(payload) {
            let Ok((frame, payload)) = frame else {
                self.tail.place.why = "a frame does not fit its batch".into();
                self.position = Some(at);
                return self.go_on_at(boot, header.end().unwrap_or(at), false);
            };
            let begins = at;
            at += (FRAME_HEADER_BYTES + payload.len()) as u64;
            if begins >= self.visited_from {
                self.tail.frames += 1;
                self.tell(Met::Frame((boot, at), &frame, payload))?;
            }
        }
        Ok(())
    }
}
