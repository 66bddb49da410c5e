//! Log files: their names, and preparing them ahead of need.
//!
//! Invariants:
//! - A prepared file has its full size, in zeros or in what an earlier file of the chain held, and a header, both synced,
//!   and a durable name. Batches of the earlier file are not valid in it: their salt is another one.
//! - Files of a chain are numbered without gaps from 0, and file n+1 is begun only when file n has been taken into use.
//!   So a gap in the numbers is never the work of a crash.
//! - At most one file is prepared ahead (the shelf holds it), so little is left behind by a crash.
//!
//! The maker is a task of its own beside the writer; both live on one core and share the [`Shelf`].

use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use lockgate_runtime::sync::Arc;
use lockgate_runtime::{Event, OpenOptions, fs, mutation};

use super::LogConfig;
use super::error::{LogFailed, StopCause};
use super::format::{FileHeader, LogPosition, name_hash};
use super::outside::{File, remove_file};
use super::recycle::ChainFiles;
use super::shared::Shared;
use super::space::{Retry, Who, is_no_space};

/// Zeros are written in pieces of this size: a larger one would hold up the core's other tasks.
const FILL_BYTES: usize = 256 << 10;
/// Zeros are synced at latest after this many bytes: a larger heap of dirty pages would hold up the commits' syncs.
const FILL_SYNC_BYTES: u64 = 4 << 20;
/// Size of a chain's first file; each further one is twice as large, up to the configured size.
const FIRST_FILE_BYTES: u64 = 4 << 20;
const NAME_BYTES_MAX: usize = 64;
const SYNCING_DIRECTORY: &str = "syncing the directory of";

static ZEROS: [u8; FILL_BYTES] = [0; FILL_BYTES];

/// True when `name` may be part of a log's file names.
pub(super) fn name_is_allowed(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// Name of a chain's file.
pub(crate) fn file_name(log: &str, boot: u64, seq: u32) -> String {
    format!("{log}.{boot:016x}.{seq:08x}.log")
}

/// Boot and number of a file, if its name is one of this log's.
pub(crate) fn parse_file_name(log: &str, file: &str) -> Option<(u64, u32)> {
    let middle = file.strip_prefix(log)?.strip_prefix('.')?.strip_suffix(".log")?;
    let (boot, seq) = middle.split_once('.')?;
    let boot = u64::from_str_radix(boot, 16).ok()?;
    let seq = u32::from_str_radix(seq, 16).ok()?;
    // Only the exact spelling counts: a copy that somebody made under a similar name is not part of the chain.
    (file_name(log, boot, seq) == file).then_some((boot, seq))
}

/// Creates a directory and those above it where they do not exist, with durable names.
///
/// That a directory exists does not say that its name is durable: whoever made it may have been killed before it was
/// synced. So the names of all that are below a directory of others' are synced each time.
pub(crate) async fn create_dir_durably(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir).await?;
    for path in dir.ancestors().filter(|path| !path.as_os_str().is_empty()) {
        let Some(parent) = path.parent() else { break };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        if mutation!("unsynced-directory") {
            continue;
        }
        match fs::sync_dir(parent).await {
            // A directory that this process may not open was not made by it either.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            synced => synced?,
        }
    }
    Ok(())
}

/// An input or output error, with what it happened to.
#[derive(Debug)]
pub(super) struct FileFault {
    pub(super) action: &'static str,
    pub(super) file: PathBuf,
    pub(super) offset: u64,
    pub(super) source: io::Error,
}

impl FileFault {
    /// Whether it passes when the disk has space again. A directory's failed sync does not, whatever it says: it may be
    /// about more than this file.
    pub(super) fn is_no_space(&self) -> bool {
        is_no_space(&self.source) && self.action != SYNCING_DIRECTORY
    }

    pub(super) fn into_failed(self, log: &str, position: u64) -> LogFailed {
        LogFailed::new(StopCause::Io {
            log: log.to_owned(),
            action: self.action,
            file: self.file,
            offset: self.offset,
            position: LogPosition(position),
            source: self.source,
        })
    }
}

/// A file that is ready for batches.
pub(super) struct PreparedFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) seq: u32,
    pub(super) salt: u64,
    pub(super) capacity_bytes: u64,
}

/// Makes the files of one chain, in order.
pub(super) struct FileMaker {
    dir: PathBuf,
    name: String,
    boot: u64,
    chain_start: u64,
    chain: Arc<ChainFiles>,
    next_seq: u32,
}

impl FileMaker {
    pub(super) fn new(cfg: &LogConfig, chain_start: u64) -> FileMaker {
        FileMaker {
            dir: cfg.dir.clone(),
            name: cfg.name.clone(),
            boot: cfg.boot,
            chain_start,
            chain: Arc::new(ChainFiles::new(cfg, chain_start)),
            next_seq: 0,
        }
    }

    pub(super) fn chain(&self) -> &Arc<ChainFiles> {
        &self.chain
    }

    /// Makes sure that the directory exists, durably, and prepares the chain's first file.
    pub(super) async fn prepare_directory_and_first(&mut self) -> Result<PreparedFile, FileFault> {
        if let Err(source) = create_dir_durably(&self.dir).await {
            return Err(FileFault {
                action: "creating the directory",
                file: self.dir.clone(),
                offset: 0,
                source,
            });
        }
        match self.prepare(&Cell::new(false)).await? {
            Some(first) => Ok(first),
            None => unreachable!("nobody asked the first file's preparation to stop"),
        }
    }

    fn next_capacity_bytes(&self) -> u64 {
        let doubled = FIRST_FILE_BYTES.checked_shl(self.next_seq.min(32)).unwrap_or(u64::MAX);
        self.chain.file_bytes.min(doubled)
    }

    /// Prepares the next file. `None` if it was told to stop; what was begun is removed then, and when the disk is full.
    async fn prepare(&mut self, stop: &Cell<bool>) -> Result<Option<PreparedFile>, FileFault> {
        let path = self.chain.path_of(self.next_seq);
        let prepared = self.try_to_prepare(&path, stop).await;
        match &prepared {
            Ok(Some(_)) => self.next_seq += 1,
            Ok(None) => remove_quietly(&path).await,
            Err(fault) if fault.is_no_space() && fs::exists(&path).await => remove_quietly(&path).await,
            Err(_) => {}
        }
        prepared
    }

    async fn try_to_prepare(
        &self,
        path: &Path,
        stop: &Cell<bool>,
    ) -> Result<Option<PreparedFile>, FileFault> {
        while let Some(old) = self.chain.take() {
            let recycled = self.recycle(old, path).await;
            self.chain.done(recycled.is_err());
            if let Some(recycled) = recycled? {
                return Ok(Some(recycled));
            }
        }
        let fault = |action, offset, source| FileFault { action, file: path.to_path_buf(), offset, source };
        let options = OpenOptions::new().read(true).write(true).create_new(true);
        let file = File::open(path, &options).await.map_err(|error| fault("creating", 0, error))?;
        let capacity_bytes = self.next_capacity_bytes();
        if !self.fill(&file, path, capacity_bytes, stop).await? {
            return Ok(None);
        }
        let salt = self.write_header(&file, path).await?;
        if !mutation!("unsynced-log-file") {
            file.sync_data().await.map_err(|error| fault("syncing", capacity_bytes, error))?;
        }
        if !mutation!("unsynced-log-name") {
            fs::sync_dir(&self.dir).await.map_err(|error| fault(SYNCING_DIRECTORY, 0, error))?;
        }
        Ok(Some(PreparedFile { file, path: path.to_path_buf(), seq: self.next_seq, salt, capacity_bytes }))
    }

    /// Fills a file with zeros. False if it was told to stop.
    async fn fill(
        &self,
        file: &File,
        path: &Path,
        capacity_bytes: u64,
        stop: &Cell<bool>,
    ) -> Result<bool, FileFault> {
        let fault = |action, offset, source| FileFault { action, file: path.to_path_buf(), offset, source };
        let mut offset = 0;
        while offset < capacity_bytes {
            if stop.get() {
                return Ok(false);
            }
            let piece: &'static [u8] = &ZEROS[..(capacity_bytes - offset).min(FILL_BYTES as u64) as usize];
            let (result, _) = file.write_all_at(piece, offset).await;
            result.map_err(|error| fault("zero-filling", offset, error))?;
            offset += piece.len() as u64;
            if offset.is_multiple_of(FILL_SYNC_BYTES) {
                // For the pace alone; what is owed is synced in the end.
                file.sync_data().await.map_err(|error| fault("syncing", offset, error))?;
            }
        }
        Ok(true)
    }

    /// Writes the next file's header, and returns its salt.
    async fn write_header(&self, file: &File, path: &Path) -> Result<u64, FileFault> {
        let salt = lockgate_runtime::random_u64();
        let header = FileHeader {
            name_hash: name_hash(&self.name),
            boot: self.boot,
            seq: self.next_seq,
            chain_start: self.chain_start,
            salt,
        };
        let (result, _) = file.write_all_at(header.encode(), 0).await;
        result.map_err(|source| FileFault {
            action: "writing the header of",
            file: path.to_path_buf(),
            offset: 0,
            source,
        })?;
        Ok(salt)
    }

    /// Makes the next file of one that was given back. `None` if that is not a whole file, or not there any more.
    ///
    /// The header first, and the name only then: a crash in between leaves a file under a name that lies before the
    /// log's start, which nobody reads.
    async fn recycle(&self, old: u32, path: &Path) -> Result<Option<PreparedFile>, FileFault> {
        let old = self.chain.path_of(old);
        let fault = |action, source| FileFault { action, file: old.clone(), offset: 0, source };
        let file = match File::open(&old, &OpenOptions::new().read(true).write(true)).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fault("opening", error)),
        };
        let capacity_bytes = file.len().await.map_err(|error| fault("asking for the length of", error))?;
        if capacity_bytes != self.chain.file_bytes {
            drop(file);
            remove_quietly(&old).await;
            return Ok(None);
        }
        let salt = self.write_header(&file, &old).await?;
        if !mutation!("unsynced-recycled-header") {
            file.sync_data().await.map_err(|error| fault("syncing", error))?;
        }
        fs::rename(&old, path).await.map_err(|error| fault("renaming", error))?;
        if !mutation!("unsynced-recycled-name") {
            fs::sync_dir(&self.dir).await.map_err(|error| fault(SYNCING_DIRECTORY, error))?;
        }
        Ok(Some(PreparedFile { file, path: path.to_path_buf(), seq: self.next_seq, salt, capacity_bytes }))
    }
}

/// Where the maker leaves the one file that is ready, for the writer to take.
pub(super) struct Shelf {
    spare: RefCell<Option<PreparedFile>>,
    stop: Cell<bool>,
    maker_ended: Cell<bool>,
    /// Why there will be no file, where the log was closed while it waited for space.
    no_space: RefCell<Option<FileFault>>,
    changed: Event,
}

impl Shelf {
    pub(super) fn new() -> Shelf {
        Shelf {
            spare: RefCell::new(None),
            stop: Cell::new(false),
            maker_ended: Cell::new(false),
            no_space: RefCell::new(None),
            changed: Event::new(),
        }
    }

    /// One that nobody fills: `spare` is all that there is.
    #[cfg(all(test, loom))]
    pub(super) fn without_maker(spare: Option<PreparedFile>) -> Shelf {
        let shelf = Shelf::new();
        shelf.spare.replace(spare);
        shelf.maker_ended.set(true);
        shelf
    }

    /// Takes the next file, waiting until it is ready. `None` when there will not be one.
    pub(super) async fn take(&self) -> Option<PreparedFile> {
        loop {
            let changed = self.changed.listen();
            let spare = self.spare.borrow_mut().take();
            if spare.is_some() {
                self.changed.notify_all();
                return spare;
            }
            if self.maker_ended.get() {
                return None;
            }
            changed.await;
        }
    }

    /// The lack of space for which there is no next file, after [`Shelf::take`] had none.
    pub(super) fn no_space(&self) -> Option<FileFault> {
        self.no_space.borrow_mut().take()
    }

    /// Tells the maker to end.
    pub(super) fn stop(&self) {
        self.stop.set(true);
        self.changed.notify_all();
    }

    /// Ends the maker and removes the file that was prepared and not needed.
    pub(super) async fn clear(&self) {
        self.stop();
        loop {
            let changed = self.changed.listen();
            if self.maker_ended.get() {
                break;
            }
            changed.await;
        }
        let spare = self.spare.borrow_mut().take();
        if let Some(spare) = spare {
            drop(spare.file);
            remove_quietly(&spare.path).await;
        }
    }
}

/// The maker's task: keeps one file on the shelf. An error ends the log, as every input or output error does, except for
/// a full disk: then it is tried again, until the log is closed.
pub(super) async fn keep_one_ready(mut maker: FileMaker, shelf: Rc<Shelf>, shared: Arc<Shared>) {
    let mut retry = Retry::new();
    while !shelf.stop.get() {
        let changed = shelf.changed.listen();
        let full = shelf.spare.borrow().is_some();
        if full {
            changed.await;
            continue;
        }
        match maker.prepare(&shelf.stop).await {
            Ok(spare) => {
                *shelf.spare.borrow_mut() = spare;
                if shared.space.got(Who::Maker) {
                    tracing::info!(log = %shared.name, "the disk has space again, the log goes on");
                }
                retry = Retry::new();
            }
            Err(fault) if fault.is_no_space() => {
                let sooner = shared.space.changed.listen();
                if shared.space.run_out(Who::Maker) {
                    tracing::warn!(log = %shared.name, file = %fault.file.display(), error = %fault.source,
                        "the disk is full: data will be refused until there is space again");
                }
                if shared.is_refusing() {
                    *shelf.no_space.borrow_mut() = Some(fault);
                    break;
                }
                retry.wait(sooner).await;
            }
            Err(fault) => {
                let failed = shared.stop(fault.into_failed(&shared.name, shared.written.get()));
                tracing::error!(error = %failed, "the log stopped");
                break;
            }
        }
        shelf.changed.notify_all();
    }
    shelf.maker_ended.set(true);
    shelf.changed.notify_all();
}

/// Removes a file that holds nothing. If it stays, it only takes room: recovery finds no batch in it.
async fn remove_quietly(path: &Path) {
    if let Err(error) = remove_file(path).await {
        tracing::warn!(file = %path.display(), %error, "an unused log file could not be removed");
    }
}
