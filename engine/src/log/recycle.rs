//! Log space that is given back: which file the writer is in, which files wait to be used again.
//!
//! Invariants:
//! - Only files that lie before a start that is durable are given back, so recovery reads none of them, whatever their
//!   names and headers say.
//! - A file of this boot's chain waits under its old name until the maker gives it a new header, synced, and only then a
//!   new name. Until that name is durable no batch goes to it.
//! - At most [`RECYCLED_FILES_MAX`] files wait; others are removed, oldest first.
//!
//! What this module does not know: that anything but the log is checkpointed.

use std::collections::BTreeSet;
use std::path::PathBuf;

use lockgate_runtime::fs;
use lockgate_runtime::sync::Mutex;

use super::LogConfig;
use super::files::{file_name, parse_file_name};
use super::format::FILE_HEADER_BYTES;
use super::start::{LogStart, paths_of, remove_obsolete_files};

/// Files that are kept for being used again, beside the one that is prepared already.
pub const RECYCLED_FILES_MAX: usize = 4;

/// What became of the files that were given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenBack {
    /// Files that are kept, to be used again.
    pub recycled_files: usize,
    /// Files that are gone.
    pub removed_files: usize,
}

/// The files of one log's chain, as the writer, the maker and whoever gives files back see them.
pub(super) struct ChainFiles {
    dir: PathBuf,
    name: String,
    boot: u64,
    /// Size of a whole file. Others are not used again: a chain's first ones are smaller, oversized ones larger.
    pub(super) file_bytes: u64,
    state: Mutex<State>,
}

struct State {
    /// The file that the writer is in, and the position of its first batch.
    seq: u32,
    file_position: u64,
    /// Given back and not used again yet.
    waiting: BTreeSet<u32>,
    /// The one of them that the maker is at.
    taken: Option<u32>,
}

impl ChainFiles {
    pub(super) fn new(cfg: &LogConfig, chain_start: u64) -> ChainFiles {
        ChainFiles {
            dir: cfg.dir.clone(),
            name: cfg.name.clone(),
            boot: cfg.boot,
            file_bytes: cfg.file_bytes.next_multiple_of(FILE_HEADER_BYTES as u64),
            state: Mutex::new(State {
                seq: 0,
                file_position: chain_start,
                waiting: BTreeSet::new(),
                taken: None,
            }),
        }
    }

    pub(super) fn path_of(&self, seq: u32) -> PathBuf {
        self.dir.join(file_name(&self.name, self.boot, seq))
    }

    /// The writer goes on in this file.
    pub(super) fn enter(&self, seq: u32, file_position: u64) {
        let mut state = self.state.lock();
        (state.seq, state.file_position) = (seq, file_position);
    }

    /// Where a log stands that has taken frames up to `appended()`, asked after the file.
    pub(super) fn mark(&self, appended: impl FnOnce() -> u64) -> LogStart {
        let state = self.state.lock();
        LogStart { boot: self.boot, seq: state.seq, file_position: state.file_position, position: appended() }
    }

    /// The maker takes a file to use it again. It says so when it is done.
    pub(super) fn take(&self) -> Option<u32> {
        let mut state = self.state.lock();
        let taken = state.waiting.pop_first();
        state.taken = taken;
        taken
    }

    /// The file that was taken has its new name, or is gone; or it waits again.
    pub(super) fn done(&self, again: bool) {
        let mut state = self.state.lock();
        let taken = state.taken.take();
        state.waiting.extend(taken.filter(|_| again));
    }

    pub(super) async fn give_back(&self, start: LogStart) -> GivenBack {
        let files = match fs::read_dir(&self.dir).await {
            Ok(files) => files,
            Err(error) => {
                tracing::warn!(dir = %self.dir.display(), %error, "the log's files could not be listed");
                return GivenBack::default();
            }
        };
        let mut before: Vec<(u64, u32)> = files
            .iter()
            .filter_map(|file| parse_file_name(&self.name, file))
            .filter(|file| *file < (start.boot, start.seq))
            .collect();
        before.sort_unstable();
        let (recycled_files, gone) = self.choose(before, &start);
        let removed_files = remove_obsolete_files(&paths_of(&self.dir, &self.name, &gone)).await;
        tracing::debug!(log = self.name, recycled_files, removed_files, "log space was given back");
        GivenBack { recycled_files, removed_files }
    }

    /// Puts the last whole files of this chain among those that wait. Returns their number, and what is to be removed.
    fn choose(&self, mut before: Vec<(u64, u32)>, start: &LogStart) -> (usize, Vec<(u64, u32)>) {
        let mut state = self.state.lock();
        let kept_from = (self.boot, state.seq);
        assert!(
            (start.boot, start.seq) <= kept_from,
            "log {}: files up to {start:?} were given back, and the writer is in {kept_from:?}",
            self.name
        );
        before.retain(|(boot, seq)| {
            *boot != self.boot || !(state.waiting.contains(seq) || state.taken == Some(*seq))
        });
        let own = before.iter().filter(|(boot, _)| *boot == self.boot).count();
        let room = RECYCLED_FILES_MAX.saturating_sub(state.waiting.len());
        let kept = before.split_off(before.len() - own.min(room));
        state.waiting.extend(kept.iter().map(|(_, seq)| *seq));
        (kept.len(), before)
    }
}
