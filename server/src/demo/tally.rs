//! Counts the verdicts of a run, by key, and keeps a few of them in words.
//!
//! Invariant: a key is counted once as lost and once as resurrected, however many reads notice it; stale reads are
//! counted one by one.

use std::collections::BTreeSet;

use lockgate_runtime::sync::Mutex;

use super::oracle::Verdict;

/// How many findings are kept in words.
pub const FINDINGS_KEPT: usize = 20;

/// Collects verdicts from all clients.
#[derive(Default)]
pub struct Tally {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    lost: BTreeSet<Vec<u8>>,
    resurrected: BTreeSet<Vec<u8>>,
    corrupt: BTreeSet<Vec<u8>>,
    stale_reads: u64,
    findings: Vec<String>,
}

/// What was found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Keys that lost an acknowledged write.
    pub lost: u64,
    /// Keys on which something deleted came back.
    pub resurrected: u64,
    /// Keys with a value that nobody wrote.
    pub corrupt: u64,
    /// Reads below what was acknowledged before they began.
    pub stale_reads: u64,
    /// The first findings, in words.
    pub findings: Vec<String>,
}

impl Tally {
    /// An empty one.
    pub fn new() -> Tally {
        Tally::default()
    }

    /// Counts a verdict on a key.
    pub fn record(&self, key: &[u8], verdict: &Verdict) {
        if verdict.is_fine() {
            return;
        }
        let mut inner = self.inner.lock();
        let news = match verdict {
            Verdict::Fine => false,
            Verdict::Lost { .. } => inner.lost.insert(key.to_vec()),
            Verdict::Resurrected { .. } => inner.resurrected.insert(key.to_vec()),
            Verdict::Corrupt { .. } => inner.corrupt.insert(key.to_vec()),
            Verdict::Stale { .. } => {
                inner.stale_reads += 1;
                true
            }
        };
        if news && inner.findings.len() < FINDINGS_KEPT {
            inner.findings.push(format!("{}: {verdict}", key.escape_ascii()));
        }
    }

    /// The counts so far.
    pub fn totals(&self) -> Totals {
        let inner = self.inner.lock();
        Totals {
            lost: inner.lost.len() as u64,
            resurrected: inner.resurrected.len() as u64,
            corrupt: inner.corrupt.len() as u64,
            stale_reads: inner.stale_reads,
            findings: inner.findings.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::Found;
    use super::*;

    #[test]
    fn keys_count_once_and_stale_reads_each() {
        let tally = Tally::new();
        let lost = Verdict::Lost { acknowledged: 3, found: Found::Nothing };
        let stale = Verdict::Stale { acknowledged: 3, read: 2 };
        for verdict in [&Verdict::Fine, &lost, &lost, &stale, &stale] {
            tally.record(b"k", verdict);
        }
        tally.record(b"other", &lost);
        tally.record(b"k\n", &Verdict::Corrupt { why: "bytes".into() });
        let totals = tally.totals();
        assert_eq!((totals.lost, totals.stale_reads, totals.corrupt, totals.resurrected), (2, 2, 1, 0));
        assert_eq!(totals.findings.len(), 5);
        assert_eq!(totals.findings[4], "k\\n: corrupt: bytes");
    }

    #[test]
    fn only_the_first_findings_are_kept_in_words() {
        let tally = Tally::new();
        for read in 0..100 {
            tally.record(b"k", &Verdict::Stale { acknowledged: 200, read });
        }
        assert_eq!(tally.totals().stale_reads, 100);
        assert_eq!(tally.totals().findings.len(), FINDINGS_KEPT);
    }
}
