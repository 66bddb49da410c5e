//! RocksDB: a log-structured merge tree. Each synced set syncs the log; writers that wait at the same time share a sync.

use std::path::Path;

use rocksdb::{DB, Options, WriteBatch, WriteOptions};

use super::{Settings, Store};
use crate::failure::{During, Failure};
use crate::keys::WorkingSet;

/// Keys of one batch while loading.
const LOAD_BATCH: usize = 10_000;

/// A RocksDB database.
pub struct RocksSubject {
    database: DB,
    synced: WriteOptions,
}

/// Opens it as a store.
pub fn open(folder: &Path, _: &Settings) -> Result<Box<dyn Store>, Failure> {
    let mut options = Options::default();
    options.create_if_missing(true);
    let database = DB::open(&options, folder.join("rocksdb")).during("opening RocksDB")?;
    let mut synced = WriteOptions::default();
    synced.set_sync(true);
    Ok(Box::new(RocksSubject { database, synced }))
}

impl Store for RocksSubject {
    fn load(&self, set: &WorkingSet) -> Result<(), Failure> {
        let (mut value, pairs) = (set.blank(), set.pairs().collect::<Vec<_>>());
        for pairs in pairs.chunks(LOAD_BATCH) {
            let mut batch = WriteBatch::default();
            for (key, next) in pairs {
                set.begin_with(&mut value, next);
                batch.put(key, &value);
            }
            self.database.write(batch).during("loading RocksDB")?;
        }
        self.database.flush_wal(true).during("syncing RocksDB")
    }

    fn set_synced(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.database.put_opt(key, value, &self.synced).during("writing to RocksDB")
    }

    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<Option<bool>, Failure> {
        let value = self.database.get_pinned(key).during("reading RocksDB")?;
        Ok(Some(value.map(|value| see(&value)).is_some()))
    }
}
