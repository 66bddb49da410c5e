//! Making a new directory of what can be proven of a damaged one.
//!
//! Invariants:
//! - The damaged directory is only read. It gets another name once the new one is whole and durable, or, only if that was
//!   asked for, is removed then.
//! - The new directory is one of its own: a new id, boot 1, a member of no cluster (see `backup/target.rs`). It vouches for
//!   nothing: neither what the old one lost nor what it still had.
//! - A directory without damage is left alone.

use std::path::{Path, PathBuf};

use lockgate_runtime::{Boxed, fs};

use super::report::{CheckError, Damage, SlotSums};
use super::salvage::{Damaged, Doubt, LogLoss, Salvage};
use super::{check, ends_of, is_lost, list, load::records_of};
use crate::backup::target::{Target, TargetOptions, name_durably};
use crate::backup::{BackupError, tally_of};
use crate::beside::{BetweenNames, free_damaged_name};
use crate::builder::MEMORY_BYTES_MAX_DEFAULT;
use crate::cell::SlotCell;
use crate::checkpoint::format::Manifest;
use crate::checkpoint::{Base, CHECKPOINT_FOLDER, LoadError, read_manifest};
use crate::error::OpenError;
use crate::log::FILE_BYTES_DEFAULT;
use crate::meta::{Directory, LOCK_FILE, LOG_FOLDER, META_FILE, Meta, MetaError, lock_for_inspection};
use crate::recovery::eras;
use crate::types::{Slot, Version};

/// How a directory is repaired.
#[derive(Clone, Copy, Debug)]
pub struct RepairOptions {
    /// Whether the damaged directory is removed in the end. Otherwise it is kept beside the new one, under another name.
    pub in_place: bool,
    /// The cores that the new directory's logs are made for.
    pub cores: usize,
    /// The memory that the data may take: all of it is held twice for a while.
    pub memory_bytes_max: u64,
    /// The size of a log file of the new directory.
    pub log_file_bytes: u64,
}

impl Default for RepairOptions {
    fn default() -> Self {
        RepairOptions {
            in_place: false,
            cores: 1,
            memory_bytes_max: MEMORY_BYTES_MAX_DEFAULT,
            log_file_bytes: FILE_BYTES_DEFAULT,
        }
    }
}

/// Frames that a log had and has not any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The log.
    pub log: String,
    /// The file in which the reading stopped.
    pub file: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// The position of the first frame that is missing.
    pub from: u64,
    /// The position behind the last one: so many bytes of frames are lost.
    pub to: u64,
    /// What lies there instead.
    pub why: String,
}

/// A slot whose history was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutSlot {
    /// The slot.
    pub slot: Slot,
    /// It is as it was at this version.
    pub version: Version,
    /// Later frames that are there, and rest on what is not.
    pub dropped_frames: u64,
    /// Bytes of their records.
    pub dropped_bytes: u64,
    /// Why they were dropped.
    pub why: String,
}

/// What a repair kept, and what it dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// The new directory; `None`: there was no damage, and nothing was done.
    pub repaired: Option<PathBuf>,
    /// The damaged directory's name now; `None`: it was removed.
    pub original: Option<PathBuf>,
    /// An earlier repair had made the new directory, and ended before it had its name: only that was done. What was lost
    /// the earlier one knew.
    pub is_continued: bool,
    /// What the check found.
    pub damage: Vec<Damage>,
    /// What the new directory holds.
    pub kept: SlotSums,
    /// Per damaged place what the logs lost.
    pub losses: Vec<Loss>,
    /// Slots that are as they were at an earlier moment.
    pub cut: Vec<CutSlot>,
    /// Slots whose last writes may be among what was lost.
    pub in_doubt: Vec<Slot>,
    /// Logs that were not closed in order, so that it cannot be told whether they went on: their slots are in doubt, too.
    pub open_logs: Vec<String>,
    /// What else was in the directory, and is not in the new one: what belongs to a cluster's member, and what no engine
    /// knows.
    pub left_behind: Vec<String>,
}

/// Repairs a directory that no process uses. To be awaited on a core.
pub fn repair<'a>(dir: &'a Path, options: &'a RepairOptions) -> Boxed<'a, Result<RepairReport, CheckError>> {
    Box::pin(async move {
        let between = BetweenNames::find(dir).await.map_err(BackupError::io("looking beside", dir))?;
        if let Some(between) = between {
            return go_on(dir, between, options).await;
        }
        let found = check(dir, options.memory_bytes_max).await?;
        let mut report = RepairReport { damage: found.damage, ..RepairReport::default() };
        if report.damage.is_empty() {
            return Ok(report);
        }
        let lock =
            lock_for_inspection(dir).await.map_err(|error| CheckError::Open(OpenError::Meta(error)))?;
        let meta = known_meta(dir).await?;
        let log_dir = dir.join(LOG_FOLDER);
        let files = list(&log_dir).await?;
        let ends = meta.as_ref().map(ends_of).unwrap_or_default();
        let (checkpoint_dir, base) = (dir.join(CHECKPOINT_FOLDER), known_base(dir, meta.as_ref()).await?);
        let damaged = Damaged {
            log_dir: &log_dir,
            checkpoint_dir: &checkpoint_dir,
            files: &files,
            ends: &ends,
            base: base.as_ref(),
        };
        let salvage = Salvage::read(&damaged, options.memory_bytes_max).await.map_err(CheckError::Open)?;
        if let Some(loss) = salvage.losses.first()
            && meta.is_none()
            && eras(&damaged.cores_by_boot()).len() > 1
        {
            return Err(CheckError::Unordered { dir: dir.to_path_buf(), log: loss.log.clone() });
        }
        let building = build(dir, &salvage, options, &mut report.kept).await?;
        tell(&salvage, &mut report);
        report.left_behind = left_behind(dir).await?;
        let original = free_damaged_name(dir).await;
        name_durably(dir, &original).await?;
        end(dir, BetweenNames { original, building }, options, &mut report).await?;
        drop(lock);
        Ok(report)
    })
}

/// Gives the new directory its name, now that the damaged one has another.
async fn end(
    dir: &Path,
    BetweenNames { original, building }: BetweenNames,
    options: &RepairOptions,
    report: &mut RepairReport,
) -> Result<(), CheckError> {
    name_durably(&building, dir).await?;
    report.repaired = Some(dir.to_path_buf());
    if options.in_place {
        fs::remove_dir_all(&original).await.map_err(BackupError::io("removing", &original))?;
    } else {
        report.original = Some(original);
    }
    Ok(())
}

/// Finishes a repair that has ended between the two names.
async fn go_on(
    dir: &Path,
    between: BetweenNames,
    options: &RepairOptions,
) -> Result<RepairReport, CheckError> {
    let found = check(&between.building, options.memory_bytes_max).await?;
    let Some(kept) = found.slots.filter(|_| found.damage.is_empty()) else {
        // It was whole when the original gave up its name: what happened to it since is not for a program to guess.
        let BetweenNames { original, building } = between;
        let dir = dir.to_path_buf();
        return Err(CheckError::Open(OpenError::Meta(MetaError::BetweenNames { dir, original, building })));
    };
    let mut report = RepairReport { is_continued: true, kept, ..RepairReport::default() };
    end(dir, between, options, &mut report).await?;
    Ok(report)
}

/// The meta file's content; `None` if it is lost.
async fn known_meta(dir: &Path) -> Result<Option<Meta>, CheckError> {
    match Directory::read_meta(dir).await {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if is_lost(&error) => Ok(None),
        Err(error) => Err(CheckError::Open(OpenError::Meta(error))),
    }
}

/// The checkpoint; `None` if there is none, or its manifest is lost.
async fn known_base(dir: &Path, meta: Option<&Meta>) -> Result<Option<Base>, CheckError> {
    let manifest = match read_manifest(&dir.join(CHECKPOINT_FOLDER)).await {
        Ok(manifest) => manifest,
        Err(LoadError::Corrupt { .. } | LoadError::Missing { .. }) => None,
        Err(other) => return Err(CheckError::Open(other.into())),
    };
    // Without the meta file it cannot be compared with it.
    let is_known = |manifest: &Manifest| {
        meta.is_none_or(|meta| {
            meta.directory_id == manifest.head.id.directory_id && manifest.head.boot <= meta.boot
        })
    };
    Ok(manifest.filter(is_known).map(Base::new))
}

/// Writes the slots to a directory beside the damaged one.
async fn build(
    dir: &Path,
    salvage: &Salvage,
    options: &RepairOptions,
    kept: &mut SlotSums,
) -> Result<PathBuf, CheckError> {
    let RepairOptions { cores, memory_bytes_max, log_file_bytes, .. } = *options;
    let target = Target::create(dir, &TargetOptions { cores, memory_bytes_max, log_file_bytes }).await?;
    for (slot, cell) in salvage.slots.all_known() {
        if let Err(error) = copy_slot(slot, cell, &target, kept).await {
            target.abandon().await;
            return Err(error.into());
        }
    }
    Ok(target.finish().await?)
}

async fn copy_slot(
    slot: Slot,
    cell: &SlotCell,
    target: &Target,
    kept: &mut SlotSums,
) -> Result<(), BackupError> {
    let (status, records) = {
        let held = cell.lock();
        (held.status(), records_of(&held))
    };
    if status.version == Version::ZERO {
        return Ok(());
    }
    target.begin_slot(slot)?;
    for (range, records) in &records {
        target.records(slot, range.base, records).await?;
    }
    target.end_slot(slot, status.version.counter, status.digest)?;
    let (keys, live_bytes, digest, bytes) = tally_of(&records);
    kept.slots += 1;
    kept.keys += keys;
    kept.live_bytes += live_bytes;
    kept.record_bytes += bytes;
    kept.digest = kept.digest.wrapping_add(digest);
    Ok(())
}

fn tell(salvage: &Salvage, report: &mut RepairReport) {
    report.losses = salvage
        .losses
        .iter()
        .map(|LogLoss { log, gap }| Loss {
            log: log.clone(),
            file: gap.place.file.clone(),
            offset: gap.place.offset,
            from: gap.from,
            to: gap.to,
            why: gap.place.why.clone(),
        })
        .collect();
    report.open_logs.clone_from(&salvage.open_logs);
    for slot in Slot::all() {
        match salvage.doubts[slot.index()] {
            Doubt::Sure => {}
            Doubt::Unsure => report.in_doubt.push(slot),
            Doubt::Cut => {
                let ignored = &salvage.ignored[slot.index()];
                report.cut.push(CutSlot {
                    slot,
                    version: salvage.slots.of(slot).lock().version(),
                    dropped_frames: ignored.frames,
                    dropped_bytes: ignored.bytes,
                    why: ignored.why.clone(),
                });
            }
        }
    }
}

/// What the new directory does not have: everything but the cores' logs and what every directory has.
async fn left_behind(dir: &Path) -> Result<Vec<String>, CheckError> {
    let mut files: Vec<String> = list(dir).await?;
    files.retain(|file| ![LOG_FOLDER, CHECKPOINT_FOLDER, META_FILE, LOCK_FILE].contains(&file.as_str()));
    let logs = list(&dir.join(LOG_FOLDER)).await?;
    let is_core = |file: &String| file.split('.').next().and_then(crate::recovery::core_of).is_some();
    files.extend(logs.into_iter().filter(|file| !is_core(file)).map(|file| format!("{LOG_FOLDER}/{file}")));
    Ok(files)
}
