//! fjall: a log-structured merge tree. A synced set is an insert, and a sync of the journal's data.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Settings, Store};
use crate::failure::{During, Failure};
use crate::keys::WorkingSet;

/// As redb's.
const CACHE_BYTES: u64 = 512 << 20;

/// A fjall database with one keyspace.
pub struct FjallSubject {
    database: Database,
    keys: Keyspace,
}

/// Opens it as a store.
pub fn open(folder: &Path, _: &Settings) -> Result<Box<dyn Store>, Failure> {
    let opened = Database::builder(folder.join("fjall")).cache_size(CACHE_BYTES).open();
    let database = opened.during("opening fjall")?;
    let keys = database.keyspace("keys", KeyspaceCreateOptions::default).during("opening fjall")?;
    Ok(Box::new(FjallSubject { database, keys }))
}

impl Store for FjallSubject {
    fn load(&self, set: &WorkingSet) -> Result<(), Failure> {
        let mut value = set.blank();
        for (key, next) in set.pairs() {
            set.begin_with(&mut value, &next);
            self.keys.insert(key, value.as_slice()).during("loading fjall")?;
        }
        self.database.persist(PersistMode::SyncAll).during("syncing fjall")
    }

    fn set_synced(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.keys.insert(key, value).during("writing to fjall")?;
        self.database.persist(PersistMode::SyncData).during("syncing fjall")
    }

    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<Option<bool>, Failure> {
        let value = self.keys.get(key).during("reading fjall")?;
        Ok(Some(value.map(|value| see(&value)).is_some()))
    }
}
