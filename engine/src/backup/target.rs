//! A new data directory, made of slots' records: beside its name, and renamed when it is whole and durable.
//!
//! Invariants:
//! - The directory is one of its own: it has a new random id and begins with boot 1, so it vouches for nothing that another
//!   directory had acknowledged, and is a member of no cluster.
//! - Each slot's records keep their bytes and their counters, so its digest stays. Their terms become one, and the
//!   generation the first: a history of its own, as that of an engine that was never part of a cluster.
//! - What was begun and not finished has a name of its own ([`building_of`]), and is removed by the next try; but not what a
//!   repair had finished already, and not named.

use std::path::{Path, PathBuf};

use lockgate_runtime::fs;

use super::error::BackupError;
use super::writer::rename_durably;
use crate::beside::{building_of, folder_of};
use crate::engine::Engine;
use crate::error::ApplyError;
use crate::log::files::create_dir_durably;
use crate::meta::{Directory, LOCK_FILE, META_FILE, MetaError, refuse_between_names};
use crate::types::{Gate, Generation, RangeHeader, Slot, Term};

const GENERATION: Generation = Generation::new(1);
const TERM: Term = Term(1);

/// How the new directory is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TargetOptions {
    pub(crate) cores: usize,
    pub(crate) memory_bytes_max: u64,
    pub(crate) log_file_bytes: u64,
}

/// A directory in the making.
pub(crate) struct Target {
    building: PathBuf,
    engine: Engine,
}

impl Target {
    /// Begins the directory that is to be `dir`. To be awaited on a core.
    pub(crate) async fn create(dir: &Path, options: &TargetOptions) -> Result<Target, BackupError> {
        let building = building_of(dir);
        remove_leftover(&building).await?;
        let runtime = lockgate_runtime::current();
        let cores = options.cores.clamp(1, runtime.cores());
        let engine = Engine::builder(&building)
            .clustered(true)
            .cores(cores)
            .memory_bytes_max(options.memory_bytes_max)
            .log_file_bytes(options.log_file_bytes)
            .open_on(&runtime)
            .await
            .map_err(|source| BackupError::Open { dir: building.clone(), source })?;
        Ok(Target { building, engine })
    }

    /// A slot's records follow, in the order of their versions.
    pub(crate) fn begin_slot(&self, slot: Slot) -> Result<(), BackupError> {
        Ok(self.engine.open_slot(slot, GENERATION, Gate::Importing)?)
    }

    /// The slot's next records.
    pub(crate) async fn records(&self, slot: Slot, base: u64, records: &[u8]) -> Result<(), BackupError> {
        let header = RangeHeader { term: TERM, base };
        loop {
            match self.engine.apply(slot, GENERATION, &header, records) {
                Ok(_) => return Ok(()),
                Err(ApplyError::Log { source, .. }) if source.is_retryable() => {
                    self.engine.wait_log_room(slot).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Compares what the slot became with what it was.
    pub(crate) fn end_slot(&self, slot: Slot, counter: u64, digest: u64) -> Result<(), BackupError> {
        let status = self.engine.slot_status(slot);
        if status.digest == digest && status.version.counter == counter {
            return Ok(());
        }
        Err(BackupError::Mismatch { slot, have: status.digest, wanted: digest })
    }

    /// The slot is not to be part of it after all.
    pub(crate) fn leave_out(&self, slot: Slot) -> Result<(), BackupError> {
        Ok(self.engine.drop_slot(slot, GENERATION)?)
    }

    /// Makes all of it durable. It still has the name of something unfinished: see [`name_durably`].
    pub(crate) async fn finish(self) -> Result<PathBuf, BackupError> {
        self.engine.sync_all().await?;
        self.engine.close().await?;
        Ok(self.building)
    }

    /// Removes what was begun. What cannot be removed only takes room.
    pub(crate) async fn abandon(self) {
        let Target { building, engine } = self;
        // A log that has failed cannot be closed, and need not be.
        let _ = engine.close().await;
        drop(engine);
        if let Err(error) = fs::remove_dir_all(&building).await {
            tracing::warn!(dir = %building.display(), %error, "a directory that was not finished could not be removed");
        }
    }
}

/// Gives a finished directory its name, durably.
pub(crate) async fn name_durably(building: &Path, dir: &Path) -> Result<(), BackupError> {
    rename_durably(building, dir).await
}

/// Refuses what is not a free name or an empty directory. Makes the folder that it is to be in.
pub(crate) async fn check_is_free(dir: &Path) -> Result<(), BackupError> {
    if dir.file_name().is_none() {
        return Err(BackupError::NotEmpty { dir: dir.to_path_buf() });
    }
    if fs::exists(dir).await {
        let files = fs::read_dir(dir).await.map_err(BackupError::io("listing", dir))?;
        if !files.is_empty() {
            return Err(BackupError::NotEmpty { dir: dir.to_path_buf() });
        }
    }
    refuse_between_names(dir)
        .await
        .map_err(|error| BackupError::Open { dir: dir.to_path_buf(), source: error.into() })?;
    let folder = folder_of(dir);
    create_dir_durably(&folder).await.map_err(BackupError::io("creating", &folder))
}

/// Removes what an earlier try has left, unless one is at work there.
async fn remove_leftover(building: &Path) -> Result<(), BackupError> {
    if !fs::exists(building).await {
        return Ok(());
    }
    if fs::exists(&building.join(META_FILE)).await || fs::exists(&building.join(LOCK_FILE)).await {
        // Damaged or not otherwise: it is going away.
        if let Err(MetaError::InUse { dir }) = Directory::open(building).await {
            return Err(BackupError::Busy { file: dir });
        }
    }
    fs::remove_dir_all(building).await.map_err(BackupError::io("removing", building))
}
