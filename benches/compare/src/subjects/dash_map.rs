//! DashMap of boxed slices, with foldhash.

use dashmap::DashMap;
use foldhash::fast::RandomState;

use super::Map;
use crate::failure::Failure;

/// A map of shards, each under a lock.
#[derive(Default)]
pub struct DashMapSubject(DashMap<Box<[u8]>, Box<[u8]>, RandomState>);

impl Map for DashMapSubject {
    fn read<R>(&self, key: &[u8], see: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, Failure> {
        Ok(self.0.get(key).map(|value| see(&value)))
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.0.insert(key.into(), value.into());
        Ok(())
    }
}
