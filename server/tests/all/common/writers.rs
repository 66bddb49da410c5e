//! Writers that remember what they were told, and check in the end that nothing of it is lost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use lockgate::client::{ClientConfig, ClusterClient, Outcome, Timeouts};
use lockgate_runtime::sync::Mutex;
use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Cluster, key_of, until};

/// Batches that must be acknowledged before a node is killed, and again after it has come back.
const BATCHES: u64 = 25;

/// What one key's only writer knows of it. Values are numbers that only grow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// The last number that was acknowledged as synced.
    synced: u64,
    /// The last number that was sent.
    sent: u64,
}

/// What a writer did, readable while it goes on.
#[derive(Default)]
pub struct Written {
    keys: Mutex<BTreeMap<String, Known>>,
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

impl Written {
    /// This number is about to be sent to these keys.
    pub fn sending(&self, keys: &[String], number: u64) {
        keys.iter().for_each(|key| self.keys.lock().entry(key.clone()).or_default().sent = number);
    }

    /// This number was acknowledged for these keys.
    pub fn synced(&self, keys: &[String], number: u64) {
        keys.iter().for_each(|key| self.keys.lock().entry(key.clone()).or_default().synced = number);
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the writer should end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits for more acknowledgements.
    pub fn wait_for_more(&self) {
        let enough = self.acknowledged.load(Ordering::Relaxed) + BATCHES;
        until("the writer makes progress", || {
            (self.acknowledged.load(Ordering::Relaxed) >= enough).then_some(())
        });
    }

    /// Every key must hold what was acknowledged last, or something that was sent after that.
    pub fn check(&self, client: &mut ClusterClient) {
        let keys = self.keys.lock().clone();
        assert!(keys.values().filter(|known| known.synced > 0).count() > 5, "too little was acknowledged");
        for (key, known) in keys {
            let read = client.get(key.as_bytes());
            let Outcome::Acknowledged(value) = read else { panic!("{key}: {read:?}") };
            let number = value.map_or(0, |value| String::from_utf8_lossy(&value).parse().expect("a number"));
            let allowed = known.synced..=known.sent;
            assert!(allowed.contains(&number), "{key} holds {number}, which is not in {allowed:?}");
        }
    }
}

/// Ends the writers also when a test fails: else it would wait for them for ever.
pub struct StopOnDrop<'a>(pub &'a Written);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// A client that soon gives up, so that a writer notices that it should stop.
pub fn hasty() -> ClientConfig {
    let second = Duration::from_secs(1);
    ClientConfig { timeouts: Timeouts { connect: second, answer: 15 * second }, retry: second }
}

/// Writes one key after the other to nodes that acknowledge only what is synced.
pub fn write_until_stopped(nodes: &[SocketAddr], keys: &[String], written: &Written) {
    let mut client = ClusterClient::new(nodes, hasty());
    for number in 1.. {
        if written.stopped() {
            return;
        }
        let keys = &keys[number as usize % keys.len()..][..1];
        written.sending(keys, number);
        if let Outcome::Acknowledged(()) = client.set(keys[0].as_bytes(), number.to_string().as_bytes()) {
            written.synced(keys, number);
        }
    }
}

/// Keys of the writer of [`under_writes`], spread over all slots.
const KEYS: u16 = 40;

/// Does something to a cluster while it is written to, with writes acknowledged before and after it; then nothing that was
/// acknowledged is lost.
pub fn under_writes(cluster: &mut Cluster, act: impl FnOnce(&mut Cluster, &Written)) {
    let keys: Vec<String> = (0..KEYS).map(|number| key_of(number * 400, number.into())).collect();
    let (written, addrs) = (Written::default(), cluster.addrs());
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&written);
        scope.spawn(|| write_until_stopped(&addrs, &keys, &written));
        written.wait_for_more();
        act(cluster, &written);
        written.wait_for_more();
    });
    written.check(&mut cluster.client());
}
