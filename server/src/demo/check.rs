//! What is asked after all clients have ended: does every key hold what its writer was told, and is every slot served?

use std::net::SocketAddr;
use std::time::Duration;

use lockgate_engine::Slot;
use lockgate_runtime::sync::Mutex;
use lockgate_runtime::sync::atomic::{AtomicU64, Ordering};

use super::load::Shared;
use super::oracle::KeyIndex;
use super::probe::SlotTags;
use crate::client::{Answer, ClientConfig, ClusterClient, Command, Outcome};

/// A slot is unowned if no node accepts a write within this time.
pub const OWNED_WITHIN: Duration = Duration::from_secs(5);

/// How many commands are in flight at once.
const IN_FLIGHT: usize = 64;
/// What keys of the check for unowned slots begin with.
const CHECK_KEY: &str = "owned?";

/// Keys that could not be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Keys that were read and judged.
    pub keys: u64,
    /// Keys that no node gave an answer for. Nothing is known about them: not a pass.
    pub unread: Vec<Vec<u8>>,
}

/// Reads every key and gives what is there to the verifier. To be called when no client is writing any more.
///
/// `progress` is called with how many keys were read since its last call.
pub fn compare_all(
    seeds: &[SocketAddr],
    config: ClientConfig,
    shared: &Shared,
    threads: usize,
    progress: impl Fn(u64) + Sync,
) -> Compared {
    let keys = shared.oracle.data().len();
    let next = AtomicU64::new(0);
    let compared = Mutex::new(Compared::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut client = ClusterClient::new(seeds, config);
                loop {
                    let first = next.fetch_add(IN_FLIGHT as u64, Ordering::SeqCst) as usize;
                    if first >= keys {
                        break;
                    }
                    let range = first..(first + IN_FLIGHT).min(keys);
                    let count = range.len() as u64;
                    compare(&mut client, shared, range, &compared);
                    progress(count);
                }
            });
        }
    });
    compared.into_inner()
}

fn compare(
    client: &mut ClusterClient,
    shared: &Shared,
    range: std::ops::Range<usize>,
    compared: &Mutex<Compared>,
) {
    let entries = &shared.oracle.data().entries()[range.clone()];
    let commands: Vec<_> = entries.iter().map(|entry| Command::Get(&entry.key)).collect();
    let outcomes = client.execute(&commands);
    for ((index, entry), outcome) in range.zip(entries).zip(outcomes) {
        match outcome {
            Outcome::Acknowledged(Answer::Value(value)) => {
                let verdict = shared.oracle.finally(index as KeyIndex, value.as_deref());
                shared.tally.record(&entry.key, &verdict);
                compared.lock().keys += 1;
            }
            _ => compared.lock().unread.push(entry.key.clone()),
        }
    }
}

/// Writes a key of its own in every slot, and returns the slots in which no node accepts it within [`OWNED_WITHIN`].
///
/// The keys are deleted again.
pub fn unowned_slots(seeds: &[SocketAddr], mut config: ClientConfig, tags: &SlotTags) -> Vec<Slot> {
    config.retry = OWNED_WITHIN;
    // All at once, so that many unowned slots take no longer than one.
    let keys: Vec<_> = Slot::all().map(|slot| tags.key(CHECK_KEY, slot)).collect();
    let sets: Vec<_> = keys.iter().map(|key| Command::Set(key, b"yes")).collect();
    let mut client = ClusterClient::new(seeds, config);
    let outcomes = client.execute(&sets);
    let accepted = |outcome: &Outcome| matches!(outcome, Outcome::Acknowledged(_));
    let unowned: Vec<_> =
        Slot::all().zip(&outcomes).filter(|(_, outcome)| !accepted(outcome)).map(|(slot, _)| slot).collect();
    let written = keys.iter().zip(&outcomes).filter(|(_, outcome)| accepted(outcome));
    let deletes: Vec<_> = written.map(|(key, _)| Command::Delete(key)).collect();
    for outcome in client.execute(&deletes) {
        if let Outcome::Refused(error) | Outcome::Unknown(error) = outcome {
            tracing::warn!(%error, "a key of the check for unowned slots stays behind");
        }
    }
    unowned
}
