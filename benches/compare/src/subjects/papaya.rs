//! papaya's map of boxed slices, with foldhash: readers take no lock, and memory is reclaimed later.

use foldhash::fast::RandomState;
use papaya::HashMap;

use super::Map;
use crate::failure::Failure;

/// A map whose every operation pins it, as a program does that comes and goes.
#[derive(Default)]
pub struct PapayaSubject(HashMap<Box<[u8]>, Box<[u8]>, RandomState>);

impl Map for PapayaSubject {
    fn look_at<R>(&self, key: &[u8], see: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, Failure> {
        Ok(self.0.pin().get(key).map(|value| see(value)))
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.0.pin().insert(key.into(), value.into());
        Ok(())
    }
}
