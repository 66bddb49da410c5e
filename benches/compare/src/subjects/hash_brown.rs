//! hashbrown's map of boxed slices, with foldhash: what a single thread can have without any lock.

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::Map;
use crate::failure::Failure;

/// A plain hash map.
#[derive(Default)]
pub struct HashBrownSubject(HashMap<Box<[u8]>, Box<[u8]>, RandomState>);

impl Map for HashBrownSubject {
    fn look_at<R>(&self, key: &[u8], see: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, Failure> {
        Ok(self.0.get(key).map(|value| see(value)))
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.0.insert(key.into(), value.into());
        Ok(())
    }
}
