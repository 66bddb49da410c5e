//! A part of a data file, read from its beginning to its end, ahead of who uses it.
//!
//! Invariants: memory is bounded by two windows and the longest record; nothing beyond the part is read; a file that ends
//! early is an error, and names the place.

use std::path::PathBuf;
use std::pin::Pin;
use std::task::Poll;

use futures_util::poll;
use lockgate_runtime::File;

use super::LoadError;

/// Bytes that are read at once.
const WINDOW_BYTES: u64 = 1 << 20;

type ReadDone = (std::io::Result<usize>, Vec<u8>);

/// A read that was begun.
enum Ahead {
    Running(Pin<Box<dyn Future<Output = ReadDone>>>),
    Done(ReadDone),
}

/// See the module.
pub(super) struct Source {
    file: File,
    path: PathBuf,
    /// Of the first byte of `buffer[from..]`.
    offset: u64,
    buffer: Vec<u8>,
    from: usize,
    /// Where the next read begins.
    next: u64,
    end: u64,
    ahead: Option<Ahead>,
    /// Not in use.
    spare: Vec<u8>,
}

impl Source {
    /// The bytes from `start` to `end` of a file.
    pub(super) fn new(file: File, path: PathBuf, start: u64, end: u64) -> Source {
        Source {
            file,
            path,
            offset: start,
            buffer: Vec::new(),
            from: 0,
            next: start,
            end,
            ahead: None,
            spare: Vec::new(),
        }
    }

    /// Where the next byte is in the file.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// At least the next `bytes`, which are within the part.
    pub(super) async fn next(&mut self, bytes: usize) -> Result<&[u8], LoadError> {
        while self.buffer.len() - self.from < bytes {
            if self.ahead.is_none() {
                self.begin().await;
            }
            let (read, mut window) = match self.ahead.take() {
                Some(Ahead::Running(read)) => read.await,
                Some(Ahead::Done(done)) => done,
                None => return Err(self.short()),
            };
            let read = read.map_err(|source| LoadError::Io {
                file: self.path.clone(),
                offset: self.offset,
                source,
            })?;
            if read < window.len() {
                return Err(self.short());
            }
            self.buffer.drain(..self.from);
            self.from = 0;
            if self.buffer.is_empty() {
                std::mem::swap(&mut self.buffer, &mut window);
            } else {
                self.buffer.extend_from_slice(&window);
            }
            self.spare = window;
            self.begin().await;
        }
        Ok(&self.buffer[self.from..])
    }

    /// The next `bytes` were used.
    pub(super) fn take(&mut self, bytes: usize) {
        self.from += bytes;
        self.offset += bytes as u64;
    }

    /// Begins the next read, if there is one, and does not wait for it.
    async fn begin(&mut self) {
        let bytes = (self.end - self.next).min(WINDOW_BYTES) as usize;
        if bytes == 0 {
            return;
        }
        let (file, offset, mut window) = (self.file.clone(), self.next, std::mem::take(&mut self.spare));
        window.resize(bytes, 0);
        self.next += bytes as u64;
        let mut read: Pin<Box<dyn Future<Output = ReadDone>>> =
            Box::pin(async move { file.read_at(window, offset).await });
        self.ahead = Some(match poll!(&mut read) {
            Poll::Ready(done) => Ahead::Done(done),
            Poll::Pending => Ahead::Running(read),
        });
    }

    fn short(&self) -> LoadError {
        let why = "the file ends early".into();
        LoadError::Corrupt { file: self.path.clone(), offset: self.offset, why }
    }
}
