//! Reading a backup file, part by part, each verified before it is given out.
//!
//! Memory is bounded: a window of [`WINDOW_BYTES`], or one chunk if that is larger; a chunk's length is compared with what is
//! left of the file before room for it is made. Besides that, the keys of one slot.

use std::ops::Range;
use std::path::{Path, PathBuf};

use lockgate_runtime::{Boxed, File, OpenOptions};

use super::decode::{BackupDecoder, BackupPart};
use super::error::BackupError;
use super::format::{BackupFault, BackupFooter, BackupHeader, CHUNK_HEADER_BYTES, FILE_HEADER_BYTES};
use super::{BackupProgress, ProgressFn};

/// Bytes that are read at once.
const WINDOW_BYTES: usize = 1 << 20;

/// An open backup file. It may be moved between the threads of one runtime's cores, and is read on one of them.
pub struct BackupReader {
    path: PathBuf,
    file: File,
    len: u64,
    decoder: BackupDecoder,
    /// Bytes of the file from `window_offset` on.
    window: Vec<u8>,
    window_offset: u64,
    records: Range<usize>,
}

impl BackupReader {
    /// Opens a file and reads its header.
    pub fn open<'a>(path: &'a Path) -> Boxed<'a, Result<BackupReader, BackupError>> {
        Box::pin(async move {
            let failed = || BackupError::io("reading", path);
            let file = File::open(path, &OpenOptions::new().read(true)).await.map_err(failed())?;
            let len = file.len().await.map_err(failed())?;
            let (result, mut window) = file.read_at(vec![0; len.min(WINDOW_BYTES as u64) as usize], 0).await;
            window.truncate(result.map_err(failed())?);
            let decoder = BackupDecoder::new(&window[..window.len().min(FILE_HEADER_BYTES)])
                .map_err(|fault| BackupError::fault(path, fault))?;
            let path = path.to_path_buf();
            Ok(BackupReader { path, file, len, decoder, window, window_offset: 0, records: 0..0 })
        })
    }

    /// What the file says of itself.
    pub fn header(&self) -> &BackupHeader {
        self.decoder.header()
    }

    /// The file's length.
    pub fn file_bytes(&self) -> u64 {
        self.len
    }

    /// How much of the file was read.
    pub fn offset(&self) -> u64 {
        self.decoder.offset()
    }

    /// The records of the last part, if it was [`BackupPart::Records`].
    pub fn records(&self) -> &[u8] {
        &self.window[self.records.clone()]
    }

    /// The next part; `None` behind the end.
    pub fn next_part<'a>(&'a mut self) -> Boxed<'a, Result<Option<BackupPart>, BackupError>> {
        Box::pin(async move {
            let at = self.decoder.offset();
            if self.decoder.has_ended() {
                return match at == self.len {
                    true => Ok(None),
                    false => Err(self.invalid(at, "something follows the footer")),
                };
            }
            let Some(header) = self.bytes(at, CHUNK_HEADER_BYTES).await? else {
                return Err(self.invalid(at, "the file ends early: it is not whole"));
            };
            let payload_bytes = self.decoder.payload_bytes(&self.window[header]);
            let payload_bytes = payload_bytes.map_err(|fault| BackupError::fault(&self.path, fault))?;
            let Some(chunk) = self.bytes(at, CHUNK_HEADER_BYTES + payload_bytes).await? else {
                return Err(self.invalid(at, "the file ends early: it is not whole"));
            };
            let (header, payload) =
                self.window[chunk.clone()].split_first_chunk().expect("both were asked for");
            let part = self.decoder.chunk(header, payload);
            let part = part.map_err(|fault| BackupError::fault(&self.path, fault))?;
            self.records = match part {
                BackupPart::Records { .. } => chunk.start + CHUNK_HEADER_BYTES..chunk.end,
                _ => 0..0,
            };
            Ok(Some(part))
        })
    }

    fn invalid(&self, offset: u64, why: &str) -> BackupError {
        BackupError::fault(&self.path, BackupFault::at(offset, why))
    }

    /// The range of the window with `len` bytes from `offset`; `None` when the file is shorter.
    async fn bytes(&mut self, offset: u64, len: usize) -> Result<Option<Range<usize>>, BackupError> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Ok(None);
        }
        let window_end = self.window_offset + self.window.len() as u64;
        if offset < self.window_offset || offset + len as u64 > window_end {
            let room = (self.len - offset).min(len.max(WINDOW_BYTES) as u64) as usize;
            let mut buffer = std::mem::take(&mut self.window);
            buffer.resize(room, 0);
            if buffer.capacity() > 2 * room.max(WINDOW_BYTES) {
                buffer.shrink_to_fit();
            }
            let (result, buffer) = self.file.read_at(buffer, offset).await;
            let read = result.map_err(BackupError::io("reading", &self.path))?;
            self.window = buffer;
            self.window.truncate(read);
            self.window_offset = offset;
            if read < len {
                return Ok(None);
            }
        }
        let start = (offset - self.window_offset) as usize;
        Ok(Some(start..start + len))
    }
}

/// Reads a whole backup and checks all of it: checksums, records, each slot's version, keys and digest, and that nothing is
/// missing. To be awaited on a core.
pub fn verify<'a>(
    path: &'a Path,
    progress: Option<&'a ProgressFn>,
) -> Boxed<'a, Result<BackupFooter, BackupError>> {
    Box::pin(async move {
        let mut reader = BackupReader::open(path).await?;
        let (mut slots_done, mut footer) = (0, None);
        while let Some(part) = reader.next_part().await? {
            match part {
                BackupPart::SlotEnds(_) | BackupPart::SlotLeft(_) => slots_done += 1,
                BackupPart::End(found) => footer = Some(found),
                _ => {}
            }
            if let Some(tell) = progress {
                tell(BackupProgress { slots_done, slots: 0, bytes: reader.offset() });
            }
        }
        Ok(footer.expect("nothing is behind the end but the end"))
    })
}
