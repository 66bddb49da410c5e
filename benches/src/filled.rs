//! An engine on a disk, filled with keys: what its benches work on.
//!
//! Keys are 16 hexadecimal digits, of numbers: those below [`Filled::keys`] are there. A set that finds the log behind waits
//! for room in it, as a program would have to.

use lockgate_engine::{Engine, Keyspace, OpError};
use lockgate_runtime::block_on_foreign;
use tempfile::TempDir;

use crate::numbers::mixed;
use crate::output::data_folder;

/// A key.
pub type Key = [u8; 16];

/// Segments of a core can have all of its range of addresses.
const MEMORY_BYTES_MAX: u64 = 16 << 30;

/// The key of a number.
pub fn key(number: u64) -> Key {
    let bits = mixed(number.wrapping_add(1));
    std::array::from_fn(|at| b"0123456789abcdef"[(bits >> (60 - 4 * at)) as usize & 15])
}

/// An engine of one core that has `keys` keys with equally long values.
pub struct Filled {
    /// How many keys there are.
    pub keys: u64,
    /// The value that each of them has.
    pub value: Vec<u8>,
    /// The keyspace that they are in.
    pub keyspace: Keyspace,
    engine: Engine,
    // The last one: the engine ends before its folder goes.
    _folder: TempDir,
}

impl Filled {
    /// Opens an engine in a new folder and fills it; on return all of it is on the disk.
    pub fn new(keys: u64, value_bytes: usize) -> Filled {
        let folder = data_folder();
        let engine = Engine::builder(folder.path().join("engine"))
            .memory_bytes_max(MEMORY_BYTES_MAX)
            .open()
            .expect("the engine opens");
        let keyspace = engine.keyspace(0);
        let filled = Filled { keys, value: vec![0x5a; value_bytes], keyspace, engine, _folder: folder };
        (0..keys).for_each(|number| filled.set(&key(number)));
        filled.settle();
        filled
    }

    /// The engine itself.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Gives a key the value, in memory and in the log, and does not wait for the disk.
    pub fn set(&self, key: &Key) {
        set_when_there_is_room(&self.engine, &self.keyspace, key, &self.value);
    }

    /// Removes a key that is there.
    pub fn delete(&self, key: &Key) {
        let was_there =
            until_room(&self.engine, || self.keyspace.delete(key).map(|(was_there, _)| was_there));
        assert!(was_there, "a key that was set is there");
    }

    /// Reads a key that is there; the length of its value.
    pub fn get(&self, key: &Key) -> usize {
        let value = self.keyspace.get(key).expect("a served slot can be read");
        value.expect("a key that was set is there").len()
    }

    /// Waits until nothing goes on in the background.
    pub fn settle(&self) {
        let synced = block_on_foreign(self.engine.sync_all()).expect("not on a core");
        synced.expect("the disk works");
    }

    /// Memory of segments and of indexes, in bytes, as the engine counts it.
    pub fn memory_bytes(&self) -> (u64, u64) {
        let stats = self.engine.stats();
        (stats.memory_used_bytes, stats.index_bytes)
    }
}

/// Gives a key a value, in memory and in the log, as soon as the log has room.
pub fn set_when_there_is_room(engine: &Engine, keyspace: &Keyspace, key: &Key, value: &[u8]) {
    until_room(engine, || keyspace.set(key, value).map(drop));
}

fn until_room<T>(engine: &Engine, write: impl Fn() -> Result<T, OpError>) -> T {
    loop {
        match write() {
            Ok(done) => return done,
            Err(OpError::LogBehind { slot, .. }) => {
                let room = block_on_foreign(engine.wait_log_room(slot)).expect("not on a core");
                room.expect("the disk works");
            }
            Err(error) => panic!("a write was refused: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_is_filled_with_is_there_and_nothing_else() {
        let filled = Filled::new(100, 8);
        assert!((0..100).all(|number| filled.get(&key(number)) == 8));
        assert_eq!(filled.keyspace.get(&key(100)).expect("it can be read"), None);
        assert_eq!(filled.keyspace.len(), 100);
        filled.delete(&key(99));
        assert_eq!(filled.keyspace.len(), 99);
    }
}
