//! Measures what a client of a moving slot notices: the longest interval between two acknowledgements of its writes.
//!
//! A [`GapProbe`] belongs to one handover. It writes one key in each of a few of the moving slots, all the time, from
//! before the job starts until after it has ended. Invariant: its writes are verified like all others; its keys are its
//! own, so that they have one writer.

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockgate_engine::{SLOTS, Slot};
use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::data::{DataEntry, DataSet};
use super::oracle::{Oracle, WriteKind};
use super::tally::Tally;
use crate::client::{Answer, ClientConfig, ClusterClient, Command, Outcome};

/// How many slots of a handover are probed.
pub const SLOTS_PROBED: usize = 2;
/// Between two rounds of writes: a probe should notice a gap, not make one by taking the machine for itself.
pub const ROUND_PAUSE: Duration = Duration::from_micros(1_000);

const PROBE_VALUE: &[u8] = b"a value that is written again and again while its slot moves";

/// A hash tag for every slot, so that a key can be made for any of them.
pub struct SlotTags {
    tags: Vec<u32>,
}

impl SlotTags {
    /// Finds one number for each slot. Takes a few milliseconds.
    pub fn find() -> SlotTags {
        let mut tags = vec![None; usize::from(SLOTS)];
        let mut missing = tags.len();
        for number in 0_u32.. {
            let tag = &mut tags[Slot::of_key(number.to_string().as_bytes()).index()];
            if tag.is_none() {
                *tag = Some(number);
                missing -= 1;
                if missing == 0 {
                    break;
                }
            }
        }
        SlotTags { tags: tags.into_iter().map(|tag| tag.expect("none is missing")).collect() }
    }

    /// A key of this slot that begins with `prefix` (which must not contain a brace).
    pub fn key(&self, prefix: &str, slot: Slot) -> Vec<u8> {
        format!("{prefix}{{{}}}", self.tags[slot.index()]).into_bytes()
    }
}

/// What a probe noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// The longest interval between two acknowledgements on one slot, retries included.
    pub longest: Duration,
    /// Acknowledged writes.
    pub acked: u64,
    /// Writes that were refused or whose outcome is unknown.
    pub failed: u64,
}

/// A probe at work.
pub struct GapProbe {
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
    thread: Option<JoinHandle<Gap>>,
}

impl GapProbe {
    /// Starts writing to some of `slots`, spread over them. `name` makes the keys this probe's own: no other may have it.
    pub fn start(
        name: &str,
        seeds: &[SocketAddr],
        config: ClientConfig,
        slots: &[Slot],
        tags: &SlotTags,
        tally: &Arc<Tally>,
    ) -> std::io::Result<GapProbe> {
        let entries = spread(slots, SLOTS_PROBED)
            .map(|slot| DataEntry::new(tags.key(&format!("probe:{name}:"), slot), PROBE_VALUE.to_vec()))
            .collect();
        let data = DataSet::from_entries(entries).map_err(std::io::Error::other)?;
        let stop = Arc::new(AtomicBool::new(false));
        let acked = Arc::new(AtomicU64::new(0));
        let mut prober = Prober {
            oracle: Oracle::new(mix_name(name), Arc::new(data)),
            client: ClusterClient::new(seeds, config),
            tally: tally.clone(),
            stop: stop.clone(),
            acked: acked.clone(),
            gap: Gap::default(),
        };
        let builder = std::thread::Builder::new().name("gap-probe".into());
        let thread = builder.spawn(move || prober.run())?;
        Ok(GapProbe { stop, acked, thread: Some(thread) })
    }

    /// How many writes were acknowledged so far: a job should start only after the first ones, and the probe be finished
    /// only some after the job has ended.
    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::SeqCst)
    }

    /// Stops, compares the probe's keys with what it was told, and says what it noticed.
    ///
    /// Panics when the probe's thread panicked.
    pub fn finish(mut self) -> Gap {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().expect("only finish and drop take it");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for GapProbe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// `count` of the slots, with equal distances; fewer if there are fewer.
fn spread(slots: &[Slot], count: usize) -> impl Iterator<Item = Slot> {
    let step = slots.len().div_ceil(count.max(1)).max(1);
    slots.iter().step_by(step).copied()
}

fn mix_name(name: &str) -> u64 {
    name.bytes().fold(0, |seed, byte| super::oracle::mix64(seed ^ u64::from(byte)))
}

/// The probe's thread.
struct Prober {
    oracle: Oracle,
    client: ClusterClient,
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
    gap: Gap,
}

impl Prober {
    fn run(&mut self) -> Gap {
        let mut last_ack = vec![None; self.oracle.data().len()];
        while !self.stop.load(Ordering::SeqCst) {
            // One after the other, so that each acknowledgement's time is its own; the slots freeze together anyway.
            for (key, last) in last_ack.iter_mut().enumerate() {
                if !self.write(key as u32) {
                    continue;
                }
                let now = Instant::now();
                if let Some(last) = last.replace(now) {
                    self.gap.longest = self.gap.longest.max(now.duration_since(last));
                }
            }
            std::thread::sleep(ROUND_PAUSE);
        }
        self.compare();
        self.gap
    }

    /// One write; whether it was acknowledged.
    fn write(&mut self, key: u32) -> bool {
        let write = self.oracle.write_issued(key);
        let name = &self.oracle.data().entries()[key as usize].key;
        let value;
        let command = match write.kind {
            WriteKind::Put => {
                value = self.oracle.value_of(key, write.counter);
                Command::Set(name, &value)
            }
            WriteKind::Delete => Command::Delete(name),
        };
        let outcome = self.client.execute(&[command]).pop().expect("one outcome for one command");
        match outcome {
            Outcome::Acknowledged(answer) => {
                self.gap.acked += 1;
                self.acked.fetch_add(1, Ordering::SeqCst);
                match answer {
                    Answer::Deleted { existed } => {
                        self.tally.record(name, &self.oracle.delete_acked(write, existed));
                    }
                    _ => self.oracle.write_acked(write),
                }
                true
            }
            Outcome::Refused(_) => {
                self.gap.failed += 1;
                self.tally.record(name, &self.oracle.write_refused(write));
                false
            }
            Outcome::Unknown(_) => {
                self.gap.failed += 1;
                self.oracle.write_unknown(write);
                false
            }
        }
    }

    fn compare(&mut self) {
        for (key, entry) in self.oracle.data().entries().iter().enumerate() {
            if let Outcome::Acknowledged(value) = self.client.get(&entry.key) {
                self.tally.record(&entry.key, &self.oracle.finally(key as u32, value.as_deref()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_key_for_every_slot() {
        let tags = SlotTags::find();
        for slot in Slot::all() {
            assert_eq!(Slot::of_key(&tags.key("probe:1:", slot)), slot);
        }
    }

    #[test]
    fn probed_slots_are_spread() {
        let slots: Vec<_> = Slot::all().take(500).collect();
        let numbers = |count| spread(&slots, count).map(Slot::number).collect::<Vec<_>>();
        assert_eq!(numbers(2), [0, 250]);
        assert_eq!(numbers(3), [0, 167, 334]);
        assert_eq!(spread(&slots[..1], 3).count(), 1);
        assert_eq!(spread(&[], 3).count(), 0);
    }
}
