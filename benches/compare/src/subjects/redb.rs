//! redb: B-trees that are copied on write. One writer at a time; each commit is synced.

use std::path::Path;

use redb::{Database, ReadableDatabase, TableDefinition};

use super::{Settings, Store};
use crate::failure::{During, Failure};
use crate::keys::WorkingSet;

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("keys");
/// All of the working set fits, as the other stores' caches and the system's hold it.
const CACHE_BYTES: usize = 512 << 20;
/// Keys of one transaction while loading.
const LOAD_BATCH: usize = 50_000;

/// A redb database.
pub struct RedbSubject(Database);

/// Opens it as a store.
pub fn open(folder: &Path, _: &Settings) -> Result<Box<dyn Store>, Failure> {
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(folder.join("redb"));
    Ok(Box::new(RedbSubject(database.during("opening redb")?)))
}

impl RedbSubject {
    fn write<'p>(&self, pairs: impl Iterator<Item = (&'p [u8], &'p [u8])>) -> Result<(), redb::Error> {
        let transaction = self.0.begin_write()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (key, value) in pairs {
                table.insert(key, value)?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn read(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<bool, redb::Error> {
        let table = self.0.begin_read()?.open_table(TABLE)?;
        let value = table.get(key)?;
        Ok(value.map(|value| see(value.value())).is_some())
    }
}

impl Store for RedbSubject {
    fn load(&self, set: &WorkingSet) -> Result<(), Failure> {
        let pairs: Vec<_> = set.pairs().collect();
        for batch in pairs.chunks(LOAD_BATCH) {
            let mut values = vec![set.blank(); batch.len()];
            values.iter_mut().zip(batch).for_each(|(value, (_, next))| set.begin_with(value, next));
            let filled = batch.iter().zip(&values).map(|((key, _), value)| (&key[..], &value[..]));
            self.write(filled).during("loading redb")?;
        }
        Ok(())
    }

    fn set_synced(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.write(std::iter::once((key, value))).during("committing to redb")
    }

    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<Option<bool>, Failure> {
        self.read(key, see).during("reading redb").map(Some)
    }
}
