//! LMDB, through heed: B-trees in mapped memory. One writer at a time; each commit is synced.
//!
//! Access rule of the mapping: only this process opens the folder, which nobody else knows, and only through the one
//! `Env` in here; the file is not touched in any other way while that is open.

use std::path::Path;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions};

use super::{Settings, Store};
use crate::failure::{During, Failure};
use crate::keys::WorkingSet;

/// Addresses, not memory.
const MAP_BYTES: usize = 64 << 30;
/// More than there are threads that read.
const READERS_MAX: u32 = 256;

/// An LMDB environment with one database.
pub struct LmdbSubject {
    env: Env,
    keys: Database<'static, Bytes, Bytes>,
}

/// Opens it as a store.
pub fn open(folder: &Path, _: &Settings) -> Result<Box<dyn Store>, Failure> {
    Ok(Box::new(LmdbSubject::open(&folder.join("lmdb")).during("opening LMDB")?))
}

impl LmdbSubject {
    fn open(folder: &Path) -> Result<LmdbSubject, Box<dyn std::error::Error + Send + Sync>> {
        std::fs::create_dir_all(folder)?;
        let mut options = EnvOpenOptions::new();
        options.map_size(MAP_BYTES).max_readers(READERS_MAX);
        // SAFETY: the access rule at the top: nobody else opens or changes the file while it is mapped.
        let env = unsafe { options.open(folder)? };
        let opened = env.create_databases_and_commit(env.write_txn()?, |opener, transaction| {
            opener.create_database::<Bytes, Bytes>(transaction, None).map(CommitOrAbort::<_, ()>::Commit)
        })?;
        let keys = opened.unwrap_commit();
        Ok(LmdbSubject { env, keys })
    }

    fn write_all(&self, set: &WorkingSet) -> heed::Result<()> {
        let (mut transaction, mut value) = (self.env.write_txn()?, set.blank());
        for (key, next) in set.pairs() {
            set.begin_with(&mut value, &next);
            self.keys.put(&mut transaction, &key, &value)?;
        }
        transaction.commit()
    }

    fn write(&self, key: &[u8], value: &[u8]) -> heed::Result<()> {
        let mut transaction = self.env.write_txn()?;
        self.keys.put(&mut transaction, key, value)?;
        transaction.commit()
    }

    fn read(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> heed::Result<bool> {
        let transaction = self.env.read_txn()?;
        Ok(self.keys.get(&transaction, key)?.map(see).is_some())
    }
}

impl Store for LmdbSubject {
    fn load(&self, set: &WorkingSet) -> Result<(), Failure> {
        self.write_all(set).during("loading LMDB")
    }

    fn set_synced(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.write(key, value).during("committing to LMDB")
    }

    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<Option<bool>, Failure> {
        self.read(key, see).during("reading LMDB").map(Some)
    }
}
