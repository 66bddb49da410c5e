//! The demo's clients: writers and readers as blocking threads, which tell the verifier all that they are told.
//!
//! Invariants: a key belongs to exactly one writer (its index modulo the number of writers); a writer has at most one
//! operation outstanding on a key; every operation's outcome and every read's answer reaches the [`Oracle`].
//! All threads end soon after the stop flag is set: within the client's retry and answer times.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::oracle::{IssuedWrite, KeyIndex, Oracle, WriteKind, mix64};
use super::tally::Tally;
use crate::client::{Answer, ClientConfig, ClusterClient, Command, Outcome};

/// Recently written keys, which readers prefer: there a stale read would show.
const RECENT_KEYS: usize = 256;
/// One round of a writer in this many is followed by reads of the same keys by the writer itself.
const READ_BACK_ONE_IN: u64 = 4;

/// How many clients there are and how they work.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// Nodes to learn the cluster from.
    pub seeds: Vec<SocketAddr>,
    /// Writer threads.
    pub writers: usize,
    /// Reader threads.
    pub readers: usize,
    /// How many different keys a client has in flight at once.
    pub keys_in_flight: usize,
    /// Which keys are chosen, in which order.
    pub seed: u64,
    /// How the clients retry.
    pub client: ClientConfig,
}

/// What clients share: the verifier, the findings, the flags, and the counts.
pub struct Shared {
    /// Judges everything.
    pub oracle: Arc<Oracle>,
    /// Counts the verdicts.
    pub tally: Arc<Tally>,
    /// Set it, and all threads end.
    pub stop: AtomicBool,
    /// While it is set (a job is active), acknowledged writes count as [`Counts::acked_while_counting`].
    pub counting: AtomicBool,
    acked: AtomicU64,
    acked_while_counting: AtomicU64,
    deletes: AtomicU64,
    refused: AtomicU64,
    unknown: AtomicU64,
    reads: AtomicU64,
    failed_reads: AtomicU64,
    redirects: AtomicU64,
    recent: Vec<AtomicU32>,
    recent_next: AtomicU64,
}

/// What the clients did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Acknowledged writes, deletes among them.
    pub acked: u64,
    /// Those acknowledged while `counting` was set.
    pub acked_while_counting: u64,
    /// Acknowledged deletes.
    pub deletes: u64,
    /// Writes that were refused for good.
    pub refused: u64,
    /// Writes of unknown outcome.
    pub unknown: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Reads that were not.
    pub failed_reads: u64,
    /// Redirects that clients followed.
    pub redirects: u64,
}

impl Shared {
    /// With nothing done, nothing stopped.
    pub fn new(oracle: Arc<Oracle>, tally: Arc<Tally>) -> Arc<Shared> {
        let zero = || AtomicU64::new(0);
        Arc::new(Shared {
            oracle,
            tally,
            stop: AtomicBool::new(false),
            counting: AtomicBool::new(false),
            acked: zero(),
            acked_while_counting: zero(),
            deletes: zero(),
            refused: zero(),
            unknown: zero(),
            reads: zero(),
            failed_reads: zero(),
            redirects: zero(),
            recent: (0..RECENT_KEYS).map(|_| AtomicU32::new(0)).collect(),
            recent_next: zero(),
        })
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            acked: get(&self.acked),
            acked_while_counting: get(&self.acked_while_counting),
            deletes: get(&self.deletes),
            refused: get(&self.refused),
            unknown: get(&self.unknown),
            reads: get(&self.reads),
            failed_reads: get(&self.failed_reads),
            redirects: get(&self.redirects),
        }
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn key(&self, index: KeyIndex) -> &[u8] {
        &self.oracle.data().entries()[index as usize].key
    }

    /// Tells the verifier what became of a write.
    fn settle(&self, write: IssuedWrite, outcome: Outcome) {
        let index = write.key;
        let add = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Outcome::Acknowledged(answer) => {
                if let Answer::Deleted { existed } = answer {
                    add(&self.deletes);
                    self.tally.record(self.key(index), &self.oracle.delete_acked(write, existed));
                } else {
                    self.oracle.write_acked(write);
                }
                add(&self.acked);
                if self.counting.load(Ordering::Relaxed) {
                    add(&self.acked_while_counting);
                }
                let place = add(&self.recent_next) as usize % RECENT_KEYS;
                self.recent[place].store(index, Ordering::Relaxed);
            }
            Outcome::Refused(error) => {
                add(&self.refused);
                tracing::debug!(%error, "a write was refused");
                self.tally.record(self.key(index), &self.oracle.write_refused(write));
            }
            Outcome::Unknown(error) => {
                add(&self.unknown);
                tracing::debug!(%error, "a write has an unknown outcome");
                self.oracle.write_unknown(write);
            }
        }
    }
}

/// The running clients.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Writes every key once, with all writers, and returns when that is done or the stop flag is set.
    ///
    /// `progress` is called now and then, from several threads, with how many keys were acknowledged since its last call.
    pub fn fill(config: &LoadConfig, shared: &Arc<Shared>, progress: impl Fn(u64) + Sync) {
        std::thread::scope(|scope| {
            for writer in 0..config.writers {
                let mut client = Client::new(config, shared, writer as u64);
                let progress = &progress;
                scope.spawn(move || {
                    let own = own_keys(client.shared.oracle.data().len(), config.writers, writer);
                    let own: Vec<_> = own.collect();
                    for keys in own.chunks(config.keys_in_flight.max(1)) {
                        if client.shared.stopping() {
                            return;
                        }
                        client.write(keys);
                        progress(keys.len() as u64);
                    }
                });
            }
        });
    }

    /// Starts the writers and readers.
    pub fn start(config: &LoadConfig, shared: &Arc<Shared>) -> std::io::Result<Load> {
        let mut load = Load { shared: shared.clone(), threads: Vec::new() };
        for writer in 0..config.writers {
            let client = Client::new(config, shared, writer as u64);
            let writers = config.writers;
            load.spawn(format!("writer-{writer}"), move || client.write_until_stopped(writers, writer))?;
        }
        for reader in 0..config.readers {
            let client = Client::new(config, shared, (config.writers + reader) as u64);
            load.spawn(format!("reader-{reader}"), move || client.read_until_stopped())?;
        }
        Ok(load)
    }

    /// Stops all clients and waits for them.
    ///
    /// Panics when a client panicked: the verifier's word is then worth nothing.
    pub fn stop(mut self) -> Counts {
        self.join(true);
        self.shared.counts()
    }

    fn spawn(&mut self, name: String, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name).spawn(body)?);
        Ok(())
    }

    fn join(&mut self, report_panics: bool) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join()
                && report_panics
            {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.join(false);
    }
}

/// The keys of one writer.
fn own_keys(keys: usize, writers: usize, writer: usize) -> impl Iterator<Item = KeyIndex> {
    (writer..keys).step_by(writers.max(1)).map(|index| index as KeyIndex)
}

/// One client thread's state.
struct Client {
    shared: Arc<Shared>,
    cluster: ClusterClient,
    /// The state of its choices: drawn from the seed and the thread's number.
    random: u64,
    keys_in_flight: usize,
}

impl Client {
    fn new(config: &LoadConfig, shared: &Arc<Shared>, number: u64) -> Client {
        Client {
            shared: shared.clone(),
            cluster: ClusterClient::new(&config.seeds, config.client),
            random: mix64(config.seed ^ mix64(number + 1)),
            keys_in_flight: config.keys_in_flight.max(1),
        }
    }

    fn random_below(&mut self, bound: usize) -> usize {
        self.random = mix64(self.random);
        (self.random % bound as u64) as usize
    }

    fn write_until_stopped(mut self, writers: usize, writer: usize) {
        let own: Vec<_> = own_keys(self.shared.oracle.data().len(), writers, writer).collect();
        if own.is_empty() {
            return;
        }
        while !self.shared.stopping() {
            let keys = self.choose(|client| own[client.random_below(own.len())]);
            self.write(&keys);
            if self.random_below(READ_BACK_ONE_IN as usize) == 0 {
                self.read(&keys);
            }
        }
    }

    fn read_until_stopped(mut self) {
        let all = self.shared.oracle.data().len();
        while !self.shared.stopping() {
            let keys = self.choose(|client| {
                if client.random_below(2) == 0 {
                    return client.random_below(all) as KeyIndex;
                }
                let place = client.random_below(RECENT_KEYS);
                client.shared.recent[place].load(Ordering::Relaxed)
            });
            self.read(&keys);
        }
    }

    /// Different keys, at most as many as may be in flight.
    fn choose(&mut self, mut draw: impl FnMut(&mut Client) -> KeyIndex) -> Vec<KeyIndex> {
        let mut keys: Vec<_> = (0..self.keys_in_flight).map(|_| draw(self)).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// The next operation on each of these keys, all in flight at once.
    fn write(&mut self, keys: &[KeyIndex]) {
        let shared = self.shared.clone();
        let writes: Vec<_> = keys.iter().map(|key| shared.oracle.write_issued(*key)).collect();
        let values: Vec<_> = writes
            .iter()
            .map(|write| match write.kind {
                WriteKind::Put => Some(shared.oracle.value_of(write.key, write.counter)),
                WriteKind::Delete => None,
            })
            .collect();
        let commands: Vec<_> = writes
            .iter()
            .zip(&values)
            .map(|(write, value)| match value {
                Some(value) => Command::Set(shared.key(write.key), value),
                None => Command::Delete(shared.key(write.key)),
            })
            .collect();
        let outcomes = self.execute(&commands);
        for (write, outcome) in writes.into_iter().zip(outcomes) {
            shared.settle(write, outcome);
        }
    }

    /// Reads these keys, all in flight at once.
    fn read(&mut self, keys: &[KeyIndex]) {
        let shared = self.shared.clone();
        let began: Vec<_> = keys.iter().map(|key| shared.oracle.read_began(*key)).collect();
        let commands: Vec<_> = keys.iter().map(|key| Command::Get(shared.key(*key))).collect();
        let outcomes = self.execute(&commands);
        for ((key, snapshot), outcome) in keys.iter().zip(began).zip(outcomes) {
            match outcome {
                Outcome::Acknowledged(Answer::Value(value)) => {
                    shared.reads.fetch_add(1, Ordering::Relaxed);
                    let verdict = shared.oracle.read_ended(snapshot, value.as_deref());
                    shared.tally.record(shared.key(*key), &verdict);
                }
                _ => {
                    shared.failed_reads.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn execute(&mut self, commands: &[Command<'_>]) -> Vec<Outcome> {
        let before = self.cluster.redirects();
        let outcomes = self.cluster.execute(commands);
        self.shared.redirects.fetch_add(self.cluster.redirects() - before, Ordering::Relaxed);
        outcomes
    }
}

#[cfg(test)]
mod tests;
