//! The node's directory: who it is, which boot this is, and where each log was accepted to end.
//!
//! Invariants:
//! - One process at a time: [`Directory`] holds an exclusive lock on the file `LOCK` until it is dropped.
//! - The meta file is replaced atomically and durably, never changed in place; its checksum is verified on reading.
//! - The directory's id never changes, and the boot number grows by one per start, before anything is written under it.
//! - A directory that has logs and no meta file is refused: its logs' ends and boots are unknown.
//!
//! `docs/formats.md` has the file as a table. What this module does not know: what the logs hold.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use lockgate_runtime::{Boxed, File, OpenOptions, fs, mutation};

use crate::beside::BetweenNames;
use crate::log::files::create_dir_durably;

/// Version of the meta file that is written, and the only one that is read.
pub const META_VERSION: u32 = 2;
/// Largest meta file that is read or written.
pub const META_BYTES_MAX: usize = 16 << 20;
/// Name of the meta file in a node's directory.
pub const META_FILE: &str = "meta";
/// Name of the file whose lock says that the directory is in use.
pub const LOCK_FILE: &str = "LOCK";
/// Folder of the logs in a node's directory.
pub const LOG_FOLDER: &str = "log";

const MAGIC: [u8; 8] = *b"LGNODEMF";
const HEADER_BYTES: usize = 8 + 4 + 4 + 16 + 8 + 16 + 8 + 4;
const CRC_BYTES: usize = 4;

/// What the meta file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Random, made with the directory: two directories are never mistaken for each other.
    pub directory_id: [u8; 16],
    /// Number of the latest boot; 0 before the first.
    pub boot: u64,
    /// The start of the operating system that the latest boot ran in; zeros: unknown.
    pub os_boot_id: [u8; 16],
    /// What was written since this boot is still here; 0 before the first.
    pub kept_since: u64,
    /// Per log: (boot, accepted end position), as [`crate::log::RecoveredEnd::ends`] has it.
    pub ends: BTreeMap<String, Vec<(u64, u64)>>,
}

/// Why a node's directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// Another process, or another engine in this one, uses the directory.
    #[error(
        "the directory {} is in use by another process (its file {LOCK_FILE} is locked). Stop that process, or give \
         this one a directory of its own", dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The meta file was written by a version that this program does not know.
    #[error("the meta file {} has format version {found}; this program reads version {META_VERSION}. Use the program version that wrote it", file.display())]
    UnknownVersion {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The meta file is not what was written.
    #[error(
        "the meta file {} is damaged: {why}. Nothing was changed. Restore the node's directory from a backup, or start \
         the node with an empty directory and let it copy its data from its peers", file.display()
    )]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// There is nothing that could be looked at.
    #[error("{} is not a data directory: it has no file {META_FILE}", dir.display())]
    NotThere {
        /// The directory.
        dir: PathBuf,
    },
    /// There are logs, but no meta file.
    #[error(
        "the directory {} has logs but no meta file. Restore the file {META_FILE} from where the directory was copied \
         from, or start the node with an empty directory and let it copy its data from its peers", dir.display()
    )]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// A repair has ended between the names of the damaged directory and of the new one.
    #[error(
        "there is no directory {0}, and it is not to be begun anew: a repair ended between its two names. {building} is the \
         repaired directory, and {original} the damaged one, both whole. `lockgate check --repair {0}` goes on; or give one \
         of them the name yourself", dir.display(), building = building.display(), original = original.display()
    )]
    BetweenNames {
        /// The directory.
        dir: PathBuf,
        /// The name that the damaged one has.
        original: PathBuf,
        /// The name that the repaired one has.
        building: PathBuf,
    },
    /// The content has outgrown the format.
    #[error("the meta file {} would have {bytes} bytes, more than {META_BYTES_MAX}", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Its size.
        bytes: usize,
    },
    /// The system refused.
    #[error("{action} {} failed: {source}. Check the disk and the permissions", file.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A node's directory, locked for this process.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    meta: Meta,
    /// Held for its lock.
    _lock: Option<File>,
}

impl Directory {
    /// Creates the directory if it does not exist, locks it, and reads its meta file. A new directory gets a meta file
    /// with a random id and boot 0.
    pub fn open<'a>(path: &'a Path) -> Boxed<'a, Result<Directory, MetaError>> {
        Box::pin(async move {
            refuse_between_names(path).await?;
            create_dir_durably(path).await.map_err(io_error("creating the directory", path))?;
            let lock = lock(path).await?;
            let meta_path = path.join(META_FILE);
            let log_dir = path.join(LOG_FOLDER);
            if fs::exists(&meta_path).await {
                let meta = read(&meta_path).await?;
                return Ok(Directory { path: path.to_path_buf(), meta, _lock: Some(lock) });
            }
            if has_logs(path).await? || (fs::exists(&log_dir).await && has_logs(&log_dir).await?) {
                return Err(MetaError::Missing { dir: path.to_path_buf() });
            }
            let mut directory_id = [0; 16];
            directory_id[..8].copy_from_slice(&lockgate_runtime::random_u64().to_le_bytes());
            directory_id[8..].copy_from_slice(&lockgate_runtime::random_u64().to_le_bytes());
            let meta =
                Meta { directory_id, boot: 0, os_boot_id: [0; 16], kept_since: 0, ends: BTreeMap::new() };
            let mut directory = Directory { path: path.to_path_buf(), meta: meta.clone(), _lock: Some(lock) };
            directory.replace(meta).await?;
            Ok(directory)
        })
    }

    /// Locks a directory and reads its meta file, and changes nothing, not even where something is missing. Not for one that
    /// is to be written.
    pub fn inspect<'a>(path: &'a Path) -> Boxed<'a, Result<Directory, MetaError>> {
        Box::pin(async move {
            let meta_path = path.join(META_FILE);
            if !fs::exists(&meta_path).await {
                refuse_between_names(path).await?;
                let log_dir = path.join(LOG_FOLDER);
                let has_logs = fs::exists(&log_dir).await && has_logs(&log_dir).await?;
                let dir = path.to_path_buf();
                return Err(if has_logs { MetaError::Missing { dir } } else { MetaError::NotThere { dir } });
            }
            let lock = lock_for_inspection(path).await?;
            let meta = read(&meta_path).await?;
            Ok(Directory { path: path.to_path_buf(), meta, _lock: lock })
        })
    }

    /// What the meta file of a directory holds, which the caller has locked.
    pub(crate) async fn read_meta(path: &Path) -> Result<Meta, MetaError> {
        let meta_path = path.join(META_FILE);
        match fs::exists(&meta_path).await {
            true => read(&meta_path).await,
            false => Err(MetaError::Missing { dir: path.to_path_buf() }),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the logs belong.
    pub fn log_dir(&self) -> PathBuf {
        self.path.join(LOG_FOLDER)
    }

    /// Where the checkpoint belongs.
    pub fn checkpoint_dir(&self) -> PathBuf {
        self.path.join(crate::checkpoint::CHECKPOINT_FOLDER)
    }

    /// What the meta file holds.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The known ends of a log, for its recovery.
    pub fn known_ends(&self, log: &str) -> &[(u64, u64)] {
        self.meta.ends.get(log).map_or(&[], Vec::as_slice)
    }

    /// Begins a boot: records the ends that the recoveries accepted, per log, and the next boot's number, in one step.
    /// Logs that are not named keep their ends. `kept`: all that the latest boot wrote is still here, see
    /// [`is_same_os_boot`](Directory::is_same_os_boot). Returns the number; only then may logs be created under it.
    pub async fn begin_boot(
        &mut self,
        ends: BTreeMap<String, Vec<(u64, u64)>>,
        kept: bool,
    ) -> Result<u64, MetaError> {
        let mut meta = self.meta.clone();
        meta.boot += 1;
        meta.os_boot_id = lockgate_runtime::os_boot_id().unwrap_or_default();
        // A loss is remembered over any number of boots: who asks may have heard of none of them.
        meta.kept_since = if kept && meta.kept_since > 0 { meta.kept_since } else { meta.boot };
        meta.ends.extend(ends);
        self.replace(meta).await?;
        Ok(self.meta.boot)
    }

    /// Records the accepted ends of one log, which is recovered apart from the others. Only then may it be created. Without
    /// ends nothing is known of it any more.
    pub async fn accept_ends(&mut self, log: &str, ends: Vec<(u64, u64)>) -> Result<(), MetaError> {
        let mut meta = self.meta.clone();
        if ends.is_empty() {
            meta.ends.remove(log);
        } else {
            meta.ends.insert(log.to_owned(), ends);
        }
        self.replace(meta).await
    }

    /// Until the next boot begins, any start takes the system for another one.
    pub async fn forget_os_boot(&mut self) -> Result<(), MetaError> {
        let meta = Meta { os_boot_id: Default::default(), ..self.meta.clone() };
        self.replace(meta).await
    }

    /// Whether the operating system has not started anew since the latest boot began. False where that is not known.
    pub fn is_same_os_boot(&self) -> bool {
        lockgate_runtime::os_boot_id().is_some_and(|now| now != [0; 16] && now == self.meta.os_boot_id)
    }

    async fn replace(&mut self, meta: Meta) -> Result<(), MetaError> {
        let file = self.path.join(META_FILE);
        let bytes = meta.encode();
        if bytes.len() > META_BYTES_MAX {
            return Err(MetaError::TooLarge { file, bytes: bytes.len() });
        }
        let is_durable = !mutation!("unsynced-meta");
        fs::replace(&file, bytes, is_durable).await.map_err(io_error("writing the meta file", &file))?;
        self.meta = meta;
        Ok(())
    }
}

fn io_error<'a>(action: &'static str, file: &'a Path) -> impl FnOnce(io::Error) -> MetaError + 'a {
    move |source| MetaError::Io { action, file: file.to_path_buf(), source }
}

/// Locks a directory that is only to be read, and makes no file for it.
pub(crate) async fn lock_for_inspection(dir: &Path) -> Result<Option<File>, MetaError> {
    let path = dir.join(LOCK_FILE);
    // A process makes the file before anything else. Where it is missing nobody is at work, as in a copy.
    if !fs::exists(&path).await {
        return Ok(None);
    }
    lock_with(dir, &path, &OpenOptions::new().read(true).exclusive_lock(true)).await.map(Some)
}

async fn lock(dir: &Path) -> Result<File, MetaError> {
    let options = OpenOptions::new().read(true).write(true).create(true).exclusive_lock(true);
    lock_with(dir, &dir.join(LOCK_FILE), &options).await
}

async fn lock_with(dir: &Path, path: &Path, options: &OpenOptions) -> Result<File, MetaError> {
    match File::open(path, options).await {
        Ok(file) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(MetaError::InUse { dir: dir.to_path_buf() })
        }
        Err(error) => Err(io_error("locking", path)(error)),
    }
}

/// Refuses a directory whose repair was not finished: where there is nothing under its name, something is all the same.
pub(crate) async fn refuse_between_names(dir: &Path) -> Result<(), MetaError> {
    match BetweenNames::find(dir).await.map_err(io_error("looking beside", dir))? {
        None => Ok(()),
        Some(BetweenNames { original, building }) => {
            Err(MetaError::BetweenNames { dir: dir.to_path_buf(), original, building })
        }
    }
}

async fn has_logs(dir: &Path) -> Result<bool, MetaError> {
    let files = fs::read_dir(dir).await.map_err(io_error("listing", dir))?;
    Ok(files.iter().any(|file| file.ends_with(".log")))
}

async fn read(path: &Path) -> Result<Meta, MetaError> {
    let failed = || io_error("reading the meta file", path);
    let file = File::open(path, &OpenOptions::new().read(true)).await.map_err(failed())?;
    let len = file.len().await.map_err(failed())?;
    if len > META_BYTES_MAX as u64 {
        let why = format!("it has {len} bytes, more than {META_BYTES_MAX}");
        return Err(MetaError::Corrupt { file: path.to_path_buf(), why });
    }
    let (result, mut bytes) = file.read_at(vec![0; len as usize], 0).await;
    bytes.truncate(result.map_err(failed())?);
    match Meta::decode(&bytes) {
        Ok(meta) => Ok(meta),
        Err(MetaFault::UnknownVersion(found)) => {
            Err(MetaError::UnknownVersion { file: path.to_path_buf(), found })
        }
        Err(MetaFault::Invalid(why)) => Err(MetaError::Corrupt { file: path.to_path_buf(), why: why.into() }),
    }
}

/// Why bytes are not a meta file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaFault {
    /// What is wrong.
    Invalid(&'static str),
    /// A whole file of a version that this program does not know.
    UnknownVersion(u32),
}

impl Meta {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&META_VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.directory_id);
        bytes.extend_from_slice(&self.boot.to_le_bytes());
        bytes.extend_from_slice(&self.os_boot_id);
        bytes.extend_from_slice(&self.kept_since.to_le_bytes());
        bytes.extend_from_slice(&(self.ends.len() as u32).to_le_bytes());
        for (log, ends) in &self.ends {
            bytes.extend_from_slice(&(log.len() as u32).to_le_bytes());
            bytes.extend_from_slice(log.as_bytes());
            bytes.extend_from_slice(&(ends.len() as u32).to_le_bytes());
            for (boot, end) in ends {
                bytes.extend_from_slice(&boot.to_le_bytes());
                bytes.extend_from_slice(&end.to_le_bytes());
            }
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a file's bytes. Takes no more memory than some times their number.
    pub fn decode(bytes: &[u8]) -> Result<Meta, MetaFault> {
        let Some((content, crc)) = bytes.split_last_chunk::<CRC_BYTES>() else {
            return Err(MetaFault::Invalid("it is too short"));
        };
        if content.len() < HEADER_BYTES || !content.starts_with(&MAGIC) {
            return Err(MetaFault::Invalid("it does not begin as a meta file does"));
        }
        if u32::from_le_bytes(*crc) != crc32c::crc32c(content) {
            return Err(MetaFault::Invalid("its checksum does not match"));
        }
        let mut rest = Rest(&content[MAGIC.len()..]);
        let version = rest.u32()?;
        if version != META_VERSION {
            return Err(MetaFault::UnknownVersion(version));
        }
        if rest.u32()? != 0 {
            return Err(MetaFault::Invalid("reserved bytes are in use"));
        }
        let directory_id = rest.array()?;
        let boot = rest.u64()?;
        let os_boot_id = rest.array()?;
        let kept_since = rest.u64()?;
        if kept_since > boot {
            return Err(MetaFault::Invalid("it remembers a boot that never was"));
        }
        let log_count = rest.u32()?;
        let mut ends: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
        for _ in 0..log_count {
            let name_bytes = rest.u32()? as usize;
            let Ok(name) = std::str::from_utf8(rest.take(name_bytes)?) else {
                return Err(MetaFault::Invalid("a log's name is not text"));
            };
            if ends.last_key_value().is_some_and(|(last, _)| last.as_str() >= name) {
                return Err(MetaFault::Invalid("its logs are out of order"));
            }
            // No room is made for the count: it grows as the entries turn out to be there.
            let mut of_log = Vec::new();
            for _ in 0..rest.u32()? {
                of_log.push((rest.u64()?, rest.u64()?));
            }
            ends.insert(name.to_owned(), of_log);
        }
        if rest.0.is_empty() {
            Ok(Meta { directory_id, boot, os_boot_id, kept_since, ends })
        } else {
            Err(MetaFault::Invalid("it is too long"))
        }
    }
}

/// What is left to decode.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], MetaFault> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(MetaFault::Invalid("it is too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MetaFault> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(MetaFault::Invalid("it is too short"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, MetaFault> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, MetaFault> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use lockgate_runtime::Runtime;
    use lockgate_runtime::sim::Sim;

    use super::*;

    fn on_both<F: Future<Output = ()> + 'static>(test: impl Fn(PathBuf) -> F + Copy + Send + 'static) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("node");
        let runtime = Runtime::builder().cores(1).pin(false).build().expect("a runtime");
        runtime.block_on(0, move || test(path));
        runtime.shutdown();
        Sim::new(3).node("a", 1).block_on(0, move || test(PathBuf::from("/a/node")));
    }

    async fn overwrite(path: &Path, bytes: Vec<u8>) {
        fs::write_atomic(path, bytes).await.expect("written");
    }

    #[test]
    fn boots_and_ends_are_kept() {
        on_both(|path| async move {
            let mut directory = Directory::open(&path).await.expect("opened");
            let id = directory.meta().directory_id;
            assert_ne!(id, [0; 16]);
            assert_eq!((directory.meta().boot, directory.known_ends("core-0")), (0, [].as_slice()));
            let ends = BTreeMap::from([("core-0".to_owned(), vec![(1, 500), (2, 700)])]);
            assert_eq!(directory.begin_boot(ends, true).await.expect("recorded"), 1);
            directory.accept_ends("control", vec![(1, 9)]).await.expect("recorded");
            assert_eq!(directory.begin_boot(BTreeMap::new(), true).await.expect("recorded"), 2);
            drop(directory);
            let mut directory = Directory::open(&path).await.expect("opened again");
            assert_eq!((directory.meta().directory_id, directory.meta().boot), (id, 2));
            assert_eq!(directory.known_ends("core-0"), [(1, 500), (2, 700)]);
            assert_eq!(directory.known_ends("control"), [(1, 9)]);
            directory.accept_ends("control", vec![]).await.expect("recorded");
            drop(directory);
            let directory = Directory::open(&path).await.expect("opened again");
            assert!(!directory.meta().ends.contains_key("control"), "a log without ends is forgotten");
        });
    }

    #[test]
    fn one_process_at_a_time() {
        on_both(|path| async move {
            let first = Directory::open(&path).await.expect("opened");
            let error = Directory::open(&path).await.expect_err("locked");
            assert!(matches!(error, MetaError::InUse { .. }), "{error}");
            assert!(error.to_string().contains(path.to_str().expect("text")), "{error}");
            drop(first);
            Directory::open(&path).await.expect("free again");
        });
    }

    #[test]
    fn damage_and_unknown_versions_are_refused_by_name() {
        on_both(|path| async move {
            let mut directory = Directory::open(&path).await.expect("opened");
            let ends = BTreeMap::from([("core-0".to_owned(), vec![(1, 500)])]);
            directory.begin_boot(ends, true).await.expect("recorded");
            drop(directory);
            let file = path.join(META_FILE);
            let whole = fs::read(&file).await.expect("read");
            for at in 0..whole.len() {
                let mut bytes = whole.clone();
                bytes[at] ^= 0x20;
                overwrite(&file, bytes).await;
                let error = Directory::open(&path).await.expect_err("damaged");
                assert!(
                    matches!(&error, MetaError::Corrupt { file: named, .. } if *named == file),
                    "{error}"
                );
                overwrite(&file, whole[..at].to_vec()).await;
                assert!(matches!(Directory::open(&path).await, Err(MetaError::Corrupt { .. })), "{at} bytes");
            }
            let mut bytes = whole[..whole.len() - CRC_BYTES].to_vec();
            bytes[MAGIC.len()] = 9;
            bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
            overwrite(&file, bytes).await;
            let error = Directory::open(&path).await.expect_err("unknown");
            assert!(matches!(error, MetaError::UnknownVersion { found: 9, .. }), "{error}");
        });
    }

    #[test]
    fn logs_without_a_meta_file_are_refused() {
        on_both(|path| async move {
            drop(Directory::open(&path).await.expect("opened"));
            fs::remove_file(&path.join(META_FILE)).await.expect("removed");
            drop(Directory::open(&path).await.expect("nothing is lost yet"));
            fs::remove_file(&path.join(META_FILE)).await.expect("removed");
            fs::create_dir_all(&path.join(LOG_FOLDER)).await.expect("created");
            overwrite(&path.join(LOG_FOLDER).join("core-0.x.log"), vec![]).await;
            assert!(matches!(Directory::open(&path).await, Err(MetaError::Missing { .. })));
        });
    }

    #[test]
    fn lengths_are_not_trusted() {
        let ends = BTreeMap::from([("a".to_owned(), vec![(1, 2)])]);
        let meta = Meta { directory_id: [1; 16], boot: 3, os_boot_id: [2; 16], kept_since: 2, ends };
        let bytes = meta.encode();
        assert_eq!(Meta::decode(&bytes), Ok(meta));
        // Each count and length, set to its largest value, under a checksum that is right.
        for at in [HEADER_BYTES - 4, HEADER_BYTES, HEADER_BYTES + 5] {
            let mut bytes = bytes[..bytes.len() - CRC_BYTES].to_vec();
            bytes[at..at + 4].fill(0xff);
            bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
            assert!(matches!(Meta::decode(&bytes), Err(MetaFault::Invalid(_))), "count at {at}");
        }
        // The one log twice: nobody could tell which of its ends counts.
        let mut twice = bytes[..bytes.len() - CRC_BYTES].to_vec();
        twice.extend_from_within(HEADER_BYTES..);
        twice[HEADER_BYTES - 4] = 2;
        twice.extend_from_slice(&crc32c::crc32c(&twice).to_le_bytes());
        assert_eq!(Meta::decode(&twice), Err(MetaFault::Invalid("its logs are out of order")));
    }
}
