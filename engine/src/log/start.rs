//! From where on a log is kept: what a durable checkpoint says of it, for its recovery.
//!
//! Invariant: what lies before a start is never read. So its files may be missing in any number, be half of a
//! recycling, or say another place in their headers; they are only listed, for the opener to remove.
//!
//! What this module does not know: what a checkpoint is, and where it notes the start.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lockgate_runtime::fs;

use super::files::file_name;

/// From where on a log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStart {
    /// Boot of the chain that the file belongs to.
    pub boot: u64,
    /// First file of that chain that is kept.
    pub seq: u32,
    /// Position of that file's first batch.
    pub file_position: u64,
    /// Frames that begin before this are not needed any more.
    pub position: u64,
}

impl LogStart {
    /// The start of a log that boot `boot` does not write, and that ends at `position`.
    pub fn unused(boot: u64, position: u64) -> LogStart {
        LogStart { boot, seq: 0, file_position: position, position }
    }

    /// True when the log may have no file of `boot` at all.
    pub(super) fn may_be_unused(&self) -> bool {
        self.seq == 0 && self.file_position == self.position
    }
}

/// A log's files, as numbers by boot.
pub(super) type Chains = BTreeMap<u64, BTreeSet<u32>>;

/// Takes the files before `start` out of `chains`, and returns them, oldest first.
pub(super) fn take_obsolete(chains: &mut Chains, start: &LogStart) -> Vec<(u64, u32)> {
    let mut obsolete = Vec::new();
    for (&boot, seqs) in chains.range_mut(..=start.boot) {
        let kept = if boot == start.boot { seqs.split_off(&start.seq) } else { BTreeSet::new() };
        obsolete.extend(std::mem::replace(seqs, kept).into_iter().map(|seq| (boot, seq)));
    }
    chains.retain(|_, seqs| !seqs.is_empty());
    obsolete
}

pub(super) fn paths_of(dir: &Path, name: &str, files: &[(u64, u32)]) -> Vec<PathBuf> {
    files.iter().map(|&(boot, seq)| dir.join(file_name(name, boot, seq))).collect()
}

/// Removes files before a log's start, as a recovery has listed them. A file that cannot be removed stays; it only
/// takes room. Returns how many were removed.
pub async fn remove_obsolete_files(files: &[PathBuf]) -> usize {
    let mut removed = 0;
    // Oldest first: what is left begins later, and has no gap that a crash could be blamed for.
    for path in files {
        match fs::remove_file(path).await {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "an old log file could not be removed");
                break;
            }
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_before_is_taken_out_in_order() {
        let chain = |seqs: &[u32]| seqs.iter().copied().collect::<BTreeSet<u32>>();
        let mut chains = Chains::from([(1, chain(&[0, 1])), (3, chain(&[0, 2, 3, 4])), (5, chain(&[0]))]);
        let start = LogStart { boot: 3, seq: 3, file_position: 9, position: 10 };
        assert_eq!(take_obsolete(&mut chains, &start), [(1, 0), (1, 1), (3, 0), (3, 2)]);
        assert_eq!(chains, Chains::from([(3, chain(&[3, 4])), (5, chain(&[0]))]));
        assert!(!start.may_be_unused() && LogStart::unused(4, 7).may_be_unused());
        assert_eq!(take_obsolete(&mut chains, &LogStart::unused(4, 7)), [(3, 3), (3, 4)]);
        assert_eq!(take_obsolete(&mut Chains::new(), &start), []);
    }
}
