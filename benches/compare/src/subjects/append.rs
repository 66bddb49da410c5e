//! What the disk itself takes: 4 KiB written into a file that is there already, full of zeros, and its data synced.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use lockgate_runtime::sync::Mutex;

use super::{Settings, Store};
use crate::failure::{During, Failure};
use crate::keys::WorkingSet;

const FILE_BYTES: u64 = 16 << 20;
const WRITE_BYTES: usize = 4096;

/// A file, and where the next write goes: around in a circle. A file that grows would cost many times more.
pub struct AppendFile {
    file: File,
    offset: Mutex<u64>,
}

impl AppendFile {
    fn open(folder: &Path) -> std::io::Result<AppendFile> {
        let path = folder.join("append");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        file.write_all_at(&vec![0; FILE_BYTES as usize], 0)?;
        file.sync_all()?;
        Ok(AppendFile { file, offset: Mutex::new(0) })
    }
}

/// Opens the file as a store that nothing can be looked up in.
pub fn open(folder: &Path, _: &Settings) -> Result<Box<dyn Store>, Failure> {
    Ok(Box::new(AppendFile::open(folder).during("preparing a file")?))
}

impl Store for AppendFile {
    fn load(&self, _: &WorkingSet) -> Result<(), Failure> {
        Ok(())
    }

    fn set_synced(&self, _: &[u8], value: &[u8]) -> Result<(), Failure> {
        let mut block = [0; WRITE_BYTES];
        let bytes = value.len().min(WRITE_BYTES);
        block[..bytes].copy_from_slice(&value[..bytes]);
        let mut offset = self.offset.lock();
        self.file.write_all_at(&block, *offset).during("writing a file")?;
        self.file.sync_data().during("syncing a file")?;
        *offset = (*offset + WRITE_BYTES as u64) % FILE_BYTES;
        Ok(())
    }

    fn get(&self, _: &[u8], _: &mut dyn FnMut(&[u8])) -> Result<Option<bool>, Failure> {
        Ok(None)
    }

    fn takes_many_writers(&self) -> bool {
        false
    }
}
