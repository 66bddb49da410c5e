//! Looking at data directories that no process uses: whether all of one is there, and making one of what is left.
//!
//! A check reads a directory by the code that a start recovers it with, into slots that are served to nobody, and changes
//! nothing. A repair makes a *new* directory of what can be proven of a damaged one, beside it.
//!
//! From the bottom: `load` (a directory's slots, read-only), [`report`] (what a check found), `salvage` (what can be proven of
//! a damaged directory), `repair`, and the check itself in here.

pub(crate) mod load;
mod repair;
pub mod report;
mod salvage;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lockgate_runtime::{Boxed, fs};

pub use repair::{CutSlot, Loss, RepairOptions, RepairReport, repair};
pub use report::{
    CheckError, CheckReport, CheckpointReport, Damage, LogReport, MetaReport, SlotSums, Verdict,
};

use crate::backup::tally_of;
use crate::builder::{CORES_MAX, core_log_name};
use crate::checkpoint::{Base, read_manifest};
use crate::error::OpenError;
use crate::log::files::{file_name, parse_file_name};
use crate::log::lenient::{Met, Tail, read_leniently};
use crate::log::{LogStart, RecoverError, recover};
use crate::meta::{Directory, LOG_FOLDER, Meta, MetaError};
use crate::recovery::core_of;
use crate::types::Version;
use load::{Loaded, records_of};

/// The logs of the layer above have names that begin so.
const CONTROL_LOGS: &str = "control";

/// Checks a data directory: the meta file, every log, that all of it can be replayed, and every slot's sums. The directory is
/// locked meanwhile, and nothing in it is changed. To be awaited on a core.
///
/// `memory_bytes_max`: what the directory's data may take; all of it is held once.
pub fn check<'a>(dir: &'a Path, memory_bytes_max: u64) -> Boxed<'a, Result<CheckReport, CheckError>> {
    Box::pin(async move {
        let mut report = CheckReport { dir: dir.to_path_buf(), ..CheckReport::default() };
        // Held to the end of the first part; the replay locks it again.
        let directory = match Directory::inspect(dir).await {
            Ok(directory) => directory,
            Err(error) => {
                report.damage.push(report::damage_of(OpenError::Meta(error), dir)?);
                return Ok(report);
            }
        };
        report.meta = Some(MetaReport::of(directory.meta()));
        let files = list(&directory.log_dir()).await?;
        let names = log_names(&files, directory.meta());
        report.other_files = other_files(&files, &names);
        let base = base_of(&directory, &mut report).await?;
        // From where on the cores' logs are kept is not known without it.
        let is_base_lost = !report.damage.is_empty();
        for name in names.iter().filter(|name| !is_base_lost || core_of(name).is_none()) {
            let ends = directory.known_ends(name);
            let start = base.as_ref().zip(core_of(name)).and_then(|(base, core)| base.start_of(core));
            let log = check_log(&directory.log_dir(), name, &files, (start, ends)).await?;
            report.damage.extend(log.damage.clone());
            report.logs.push(log);
        }
        forgive_left_over(&mut report);
        report.damage.extend(missing_logs(&directory, &files));
        if report.damage.iter().any(|damage| !is_of_control_log(damage)) {
            return Ok(report);
        }
        drop(directory);
        match Loaded::recover(dir, memory_bytes_max).await {
            Ok(loaded) => report.slots = Some(sums_of(&loaded, &mut report.damage)),
            Err(error) => report.damage.push(report::damage_of(error, dir)?),
        }
        Ok(report)
    })
}

/// What the checkpoint says, if there is one.
async fn base_of(directory: &Directory, report: &mut CheckReport) -> Result<Option<Base>, CheckError> {
    let base = match read_manifest(&directory.checkpoint_dir()).await {
        Ok(Some(manifest)) => Base::of_directory(manifest, directory).map(Some),
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    match base {
        Ok(base) => {
            report.checkpoint = base.as_ref().map(|base| CheckpointReport {
                number: base.manifest.head.id.number,
                boot: base.manifest.head.boot,
                taken_at_ms: base.manifest.head.taken_at_ms,
                slots: base.manifest.slots.len() as u64,
                files: base.manifest.head.files.len() as u64,
                bytes: base.manifest.head.files.iter().map(|file| file.bytes).sum(),
            });
            Ok(base)
        }
        Err(error) => {
            report.damage.push(report::damage_of(error.into(), directory.path())?);
            Ok(None)
        }
    }
}

/// The names in a folder; none if it is not there.
async fn list(folder: &Path) -> Result<Vec<String>, CheckError> {
    if !fs::exists(folder).await {
        return Ok(Vec::new());
    }
    fs::read_dir(folder)
        .await
        .map_err(|source| CheckError::Open(OpenError::Io { path: folder.to_path_buf(), source }))
}

/// The logs that have files, and the cores' that should have some.
fn log_names(files: &[String], meta: &Meta) -> BTreeSet<String> {
    let of_files = files.iter().filter_map(|file| {
        let name = file.split('.').next()?;
        parse_file_name(name, file).map(|_| name.to_owned())
    });
    // Of a control log that was given up it stays known that it was there.
    let known = meta.ends.keys().filter(|name| core_of(name).is_some()).cloned();
    of_files.chain(known).collect()
}

fn other_files(files: &[String], logs: &BTreeSet<String>) -> Vec<String> {
    let is_log = |file: &&String| {
        let name = file.split('.').next().unwrap_or_default();
        logs.contains(name) && parse_file_name(name, file).is_some()
    };
    files.iter().filter(|file| !is_log(file)).map(|file| format!("{LOG_FOLDER}/{file}")).collect()
}

async fn check_log(
    log_dir: &Path,
    name: &str,
    files: &[String],
    (start, ends): (Option<LogStart>, &[(u64, u64)]),
) -> Result<LogReport, CheckError> {
    let (mut frames, mut bytes) = (0, 0);
    let recovered = recover(log_dir, name, start, ends, |_, payload| {
        frames += 1;
        bytes += payload.len() as u64;
        Ok(())
    })
    .await;
    let mine = || files.iter().filter_map(|file| parse_file_name(name, file));
    let mut log = LogReport {
        name: name.to_owned(),
        files: mine().count() as u64,
        boots: mine().map(|(boot, _)| boot).collect::<BTreeSet<_>>().len() as u64,
        frames,
        payload_bytes: bytes,
        ..LogReport::default()
    };
    match recovered {
        Ok(end) => {
            log.end = end.position.0;
            let tail = tail_of(log_dir, name, files, (start, ends)).await?;
            log.verdict = verdict_of(&tail);
        }
        Err(error) => {
            log.verdict = Verdict::Damaged;
            log.damage = Some(report::damage_of(OpenError::Recover(error), log_dir)?);
        }
    }
    Ok(log)
}

/// What lies at the end of a log that is not damaged.
async fn tail_of(
    log_dir: &Path,
    name: &str,
    files: &[String],
    (start, ends): (Option<LogStart>, &[(u64, u64)]),
) -> Result<Tail, CheckError> {
    let mut visit = |_: Met<'_>| Ok(());
    let read = read_leniently(log_dir, name, files, start, ends, &mut visit).await;
    read.map_err(|error: RecoverError| CheckError::Open(OpenError::Recover(error)))
}

fn verdict_of(tail: &Tail) -> Verdict {
    let place = &tail.place;
    if tail.is_sealed {
        Verdict::Closed
    } else if tail.is_accepted {
        Verdict::Accepted
    } else if tail.files == 0 {
        Verdict::Empty
    } else {
        Verdict::Open { file: place.file.clone(), offset: place.offset, why: place.why.clone() }
    }
}

/// A start makes a file for each core, one after the other, and the latest boot's are all kept.
fn missing_logs(directory: &Directory, files: &[String]) -> Vec<Damage> {
    let boot = directory.meta().boot;
    let is_there = |core: &usize| {
        let name = core_log_name(*core);
        files.iter().filter_map(|file| parse_file_name(&name, file)).any(|(of, _)| of == boot)
    };
    let last = (0..CORES_MAX).rev().find(is_there).unwrap_or(0);
    let missing = (0..last).filter(|core| !is_there(core));
    let damage = missing.map(|core| {
        let file = directory.log_dir().join(file_name(&core_log_name(core), boot, 0));
        let text = format!(
            "log file {} is missing: {} has a file of the same boot, which was made after it",
            file.display(),
            core_log_name(last)
        );
        Damage { file, offset: None, position: None, text }
    });
    damage.collect()
}

fn is_of_control_log(damage: &Damage) -> bool {
    let name = damage.file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with(CONTROL_LOGS)
}

/// Control logs before the newest one that was begun are leftovers: it begins with a snapshot that covers them. So are
/// later ones, which were not begun.
fn forgive_left_over(report: &mut CheckReport) {
    let number = |log: &LogReport| match log.name.strip_prefix(CONTROL_LOGS)? {
        "" => Some(0),
        rest => rest.strip_prefix('-')?.parse::<u64>().ok(),
    };
    let newest = report.logs.iter().filter(|log| log.frames > 0).filter_map(number).max();
    let mut forgiven = Vec::new();
    for log in &mut report.logs {
        if number(log).is_some_and(|of| newest.is_some_and(|newest| of < newest)) && log.damage.is_some() {
            log.verdict = Verdict::LeftOver;
            forgiven.extend(log.damage.take());
        }
    }
    report.damage.retain(|damage| !forgiven.contains(damage));
}

/// Compares what each slot says of itself with its records, and adds all of them up.
fn sums_of(loaded: &Loaded, damage: &mut Vec<Damage>) -> SlotSums {
    let mut sums = SlotSums::default();
    for (slot, cell) in loaded.slots.all_known() {
        let held = cell.lock();
        let status = held.status();
        if status.version == Version::ZERO {
            continue;
        }
        let (keys, live_bytes, digest, bytes) = tally_of(&records_of(&held));
        if (keys, live_bytes, digest) != (status.keys, status.live_bytes, status.digest) {
            damage.push(Damage {
                file: loaded.directory.path().to_path_buf(),
                offset: None,
                position: None,
                text: format!(
                    "slot {slot} has {keys} keys with digest {digest:#018x} by its records, and {} with {:#018x} by its \
                     own count: this is a bug of this program, not of the disk",
                    status.keys, status.digest
                ),
            });
        }
        sums.slots += 1;
        sums.keys += keys;
        sums.live_bytes += live_bytes;
        sums.record_bytes += bytes;
        sums.digest = sums.digest.wrapping_add(digest);
    }
    sums
}

/// The ends that a meta file knows, by log.
fn ends_of(meta: &Meta) -> BTreeMap<String, Vec<(u64, u64)>> {
    meta.ends.clone()
}

/// Whether a meta file cannot be used, but the logs may.
fn is_lost(error: &MetaError) -> bool {
    matches!(error, MetaError::Corrupt { .. } | MetaError::Missing { .. })
}
