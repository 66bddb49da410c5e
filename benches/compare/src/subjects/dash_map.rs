//! DashMap of boxed slices, with foldhash.

use dashmap::DashMap;
use foldhash::fast::RandomState;

use super::Map;
use crate::failure::Failure;

/// A map of shards, each under a lock.
#[derive(Default)]
pub struct DashMapSubject(DashMap<Box<[u8]>, Box<[u8]>, RandomState>);

/// The same, with a `get` that does what the engine's does: it gives out a copy that may be kept, and holds no lock.
#[derive(Default)]
pub struct CloningDashMapSubject(DashMapSubject);

impl Map for CloningDashMapSubject {
    const ONLY_GETS: bool = true;

    fn look_at<R>(&self, key: &[u8], see: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, Failure> {
        self.0.look_at(key, see)
    }

    fn get<R>(&self, key: &[u8], see: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, Failure> {
        let value = self.0.0.get(key).map(|value| value.clone());
        Ok(value.map(|value| see(&value)))
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.0.set(key, value)
    }
}

impl Map for DashMapSubject {
    fn look_at<R>(&self, key: &[u8], see: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, Failure> {
        Ok(self.0.get(key).map(|value| see(&value)))
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.0.insert(key.into(), value.into());
        Ok(())
    }
}
