//! `lockgate backup` and `lockgate restore`: asks a node for a file, makes one of a directory, and brings one back, as a
//! new directory or through the front door of a running cluster.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lockgate_engine::backup::{
    self, BackupOptions, BackupPart, BackupProgress, BackupReader, ProgressFn, RestoreOptions, SlotSection,
};
use lockgate_engine::record::{self, Kind};
use lockgate_runtime::Runtime;
use lockgate_runtime::sync::Arc;

use crate::cli::{BackupArgs, RestoreArgs};
use crate::client::{
    ClientConfig, ClientError, ClusterClient, Command, Connection, Outcome, Reply, Timeouts,
};
use crate::cluster::tool_runtime;
use crate::error::CommandError;

/// Pause between two looks at a backup that a node is writing.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Keys that are written at once; a value that is long goes with fewer.
const KEYS_AT_ONCE: usize = 256;
/// Bytes that are written at once, beside one value.
const BYTES_AT_ONCE: usize = 1 << 20;
/// How often a write is tried again whose outcome is not known: it says the same each time.
const UNKNOWN_MAX: u32 = 5;
/// How long a cluster may be busy with itself before a key counts as refused.
const RETRY: Duration = Duration::from_secs(60);

/// Makes a backup.
pub fn back_up(args: &BackupArgs) -> Result<(), CommandError> {
    match (args.node, &args.dir) {
        (Some(node), None) => of_node(node, &args.file, args.bytes_per_second),
        (None, Some(dir)) => of_directory(dir.clone(), args),
        _ => Err(CommandError::Usage("give either a node's address or --dir".into())),
    }
}

/// What a node says of its latest backup.
#[derive(Default)]
struct Status {
    texts: BTreeMap<String, String>,
    numbers: BTreeMap<String, u64>,
}

impl Status {
    fn of(reply: &Reply) -> Option<Status> {
        let Reply::Array(parts) = reply else { return None };
        let mut status = Status::default();
        for pair in parts.chunks_exact(2) {
            let Reply::Bulk(name) = &pair[0] else { return None };
            let name = String::from_utf8_lossy(name).into_owned();
            match &pair[1] {
                Reply::Bulk(text) => {
                    status.texts.insert(name, String::from_utf8_lossy(text).into_owned());
                }
                Reply::Integer(number) => {
                    status.numbers.insert(name, u64::try_from(*number).ok()?);
                }
                _ => return None,
            }
        }
        Some(status)
    }

    fn text(&self, name: &str) -> &str {
        self.texts.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> u64 {
        self.numbers.get(name).copied().unwrap_or(0)
    }
}

/// Has a node write a backup, and waits until it has.
fn of_node(addr: SocketAddr, file: &Path, bytes_per_second: Option<u64>) -> Result<(), CommandError> {
    let Some(name) = file.to_str().filter(|name| !name.contains('/')) else {
        let why = "with a node's address FILE is a plain name: the node writes it to the folder of its --backup-dir";
        return Err(CommandError::Usage(why.into()));
    };
    let mut connection = Connection::connect(addr, Timeouts::default())?;
    let rate = bytes_per_second.map(|rate| rate.to_string());
    let mut words: Vec<&[u8]> = vec![b"LOCKGATE", b"BACKUP", name.as_bytes()];
    if let Some(rate) = &rate {
        words.extend([b"RATE".as_slice(), rate.as_bytes()]);
    }
    connection.call(&words)?;
    let bar = progress_bar("slots");
    loop {
        let reply = connection.call(&[b"LOCKGATE", b"BACKUPSTATUS"])?;
        let status = Status::of(&reply).filter(|status| status.text("name") == name);
        let Some(status) = status else {
            return Err(CommandError::Backup(format!("{addr} says nothing of the backup '{name}' any more")));
        };
        bar.set_length(status.number("slots"));
        bar.set_position(status.number("slots-done"));
        match status.text("state") {
            "running" => std::thread::sleep(LOOK_PAUSE),
            "done" => {
                bar.finish_and_clear();
                let (slots, keys) = (status.number("slots"), status.number("keys"));
                let (bytes, path) = (status.number("bytes"), status.text("path"));
                println!("{addr} has written {path}: {keys} keys in {slots} slots, {bytes} bytes");
                tell_left(status.number("slots-left"));
                return Ok(());
            }
            _ => return Err(CommandError::Backup(format!("{addr}: {}", status.text("error")))),
        }
    }
}

/// Slots that moved away while they were copied.
fn tell_left(slots: u64) {
    if slots > 0 {
        println!(
            "{slots} slots moved away meanwhile and are not in it: make a backup at their new owners, too"
        );
    }
}

fn of_directory(dir: PathBuf, args: &BackupArgs) -> Result<(), CommandError> {
    let (file, memory) = (args.file.clone(), args.memory_max);
    let bar = progress_bar("slots");
    let options = BackupOptions {
        bytes_per_second: args.bytes_per_second,
        progress: Some(tell(&bar, |progress| (progress.slots_done, progress.slots))),
        ..BackupOptions::default()
    };
    let made =
        on_core(1, move || async move { backup::back_up_directory(&dir, &file, memory, &options).await })?;
    bar.finish_and_clear();
    let made = made.map_err(CommandError::backup)?;
    let (footer, file) = (made.footer, made.file.display());
    println!("{file}: {} keys in {} slots, {} bytes", footer.keys, footer.slots, made.bytes);
    Ok(())
}

/// Brings a backup back.
pub fn restore(args: &RestoreArgs) -> Result<(), CommandError> {
    match (args.node, &args.dir) {
        (Some(node), _) => into_cluster(node, &args.file),
        (None, Some(dir)) => into_directory(dir.clone(), args),
        (None, None) => verify(args.file.clone()),
    }
}

fn verify(file: PathBuf) -> Result<(), CommandError> {
    let bar = bytes_bar(&file)?;
    let told = tell(&bar, |progress| (progress.bytes, 0));
    let verified = on_core(1, move || async move { backup::verify(&file, Some(&told)).await })?;
    bar.finish_and_clear();
    let footer = verified.map_err(CommandError::backup)?;
    println!("the backup is whole: {} keys in {} slots", footer.keys, footer.slots);
    tell_left(footer.slots_left);
    Ok(())
}

fn into_directory(dir: PathBuf, args: &RestoreArgs) -> Result<(), CommandError> {
    let (file, cores) = (args.file.clone(), usize::from(args.cores));
    let bar = bytes_bar(&file)?;
    let options = RestoreOptions {
        cores,
        memory_bytes_max: args.memory_max,
        progress: Some(tell(&bar, |progress| (progress.bytes, 0))),
        ..RestoreOptions::default()
    };
    let to = dir.clone();
    let restored = on_core(cores, move || async move { backup::restore(&file, &to, &options).await })?;
    bar.finish_and_clear();
    let footer = restored.map_err(CommandError::backup)?;
    println!("{}: {} keys in {} slots", dir.display(), footer.keys, footer.slots);
    tell_left(footer.slots_left);
    Ok(())
}

/// The live keys of a slot, with their values and deadlines.
type Live = BTreeMap<Vec<u8>, (Vec<u8>, Option<u64>)>;

/// The sections of a backup, one after the other, in memory one at a time.
struct Sections {
    runtime: Runtime,
    reader: Option<BackupReader>,
}

impl Sections {
    fn open(file: &Path) -> Result<Sections, CommandError> {
        let (runtime, file) = (tool_runtime()?, file.to_path_buf());
        let reader = runtime.block_on(0, move || async move { BackupReader::open(&file).await });
        Ok(Sections { runtime, reader: Some(reader.map_err(CommandError::backup)?) })
    }

    /// The next whole section, verified to its end; `None` behind the last one.
    fn next(&mut self) -> Result<Option<(SlotSection, Live)>, CommandError> {
        let reader = self.reader.take().expect("it is put back");
        let (reader, section) = self.runtime.block_on(0, move || async move {
            let mut reader = reader;
            let section = next_section(&mut reader).await;
            (reader, section)
        });
        self.reader = Some(reader);
        section
    }
}

async fn next_section(reader: &mut BackupReader) -> Result<Option<(SlotSection, Live)>, CommandError> {
    let mut live = Live::new();
    while let Some(part) = reader.next_part().await.map_err(CommandError::backup)? {
        match part {
            BackupPart::SlotBegins(_) | BackupPart::SlotLeft(_) => live.clear(),
            BackupPart::Records { .. } => take_in(reader.records(), &mut live)?,
            BackupPart::SlotEnds(section) => return Ok(Some((section, live))),
            BackupPart::End(_) => {}
        }
    }
    Ok(None)
}

fn take_in(records: &[u8], live: &mut Live) -> Result<(), CommandError> {
    let mut at = 0;
    while at < records.len() {
        let found = record::parse(&records[at..]).expect("the reader has verified it");
        at += found.encoded_bytes();
        match found.kind {
            Kind::Put if found.keyspace != 0 => {
                return Err(CommandError::Backup(format!(
                    "the backup has keys in keyspace {}, and a server has keyspace 0 only: restore it into a directory",
                    found.keyspace
                )));
            }
            Kind::Put => {
                live.insert(found.key.to_vec(), (found.value.to_vec(), found.deadline_ms));
            }
            Kind::Delete if found.keyspace == 0 => {
                live.remove(found.key);
            }
            Kind::Clear if found.keyspace == 0 => live.clear(),
            Kind::Delete | Kind::Clear => {}
        }
    }
    Ok(())
}

/// Writes a backup's keys into a cluster, after the whole file was verified.
fn into_cluster(node: SocketAddr, file: &Path) -> Result<(), CommandError> {
    let bar = bytes_bar(file)?;
    let mut keys = 0;
    let mut sections = Sections::open(file)?;
    while let Some((section, _)) = sections.next()? {
        keys += section.keys;
        bar.set_position(sections.reader.as_ref().map_or(0, BackupReader::offset));
    }
    bar.finish_and_clear();
    let bar = progress_bar("keys");
    bar.set_length(keys);
    let mut writing = Writing {
        client: ClusterClient::new(&[node], ClientConfig { retry: RETRY, ..ClientConfig::default() }),
        written: 0,
        ended: 0,
    };
    let mut sections = Sections::open(file)?;
    while let Some((_, live)) = sections.next()? {
        writing.write(&live, lockgate_runtime::unix_ms())?;
        bar.set_position(writing.written + writing.ended);
    }
    bar.finish_and_clear();
    println!("{} keys were written, {} had ended meanwhile", writing.written, writing.ended);
    Ok(())
}

struct Writing {
    client: ClusterClient,
    written: u64,
    /// Keys whose time came between the backup and now.
    ended: u64,
}

impl Writing {
    fn write(&mut self, live: &Live, now_ms: u64) -> Result<(), CommandError> {
        let (alive, ended): (Vec<_>, Vec<_>) =
            live.iter().partition(|(_, (_, at_ms))| at_ms.is_none_or(|at_ms| at_ms > now_ms));
        self.ended += ended.len() as u64;
        let times: Vec<Option<String>> =
            alive.iter().map(|(_, (_, at_ms))| at_ms.map(|at_ms| at_ms.to_string())).collect();
        let mut group: Vec<Command<'_>> = Vec::new();
        let mut bytes = 0;
        for ((key, (value, _)), at_ms) in alive.into_iter().zip(&times) {
            if group.len() == KEYS_AT_ONCE || (!group.is_empty() && bytes + value.len() > BYTES_AT_ONCE) {
                self.send(std::mem::take(&mut group))?;
                bytes = 0;
            }
            bytes += key.len() + value.len();
            group.push(match at_ms {
                Some(at_ms) => Command::SetUntil(key, value, at_ms.as_bytes()),
                None => Command::Set(key, value),
            });
        }
        self.send(group)
    }

    /// Writes a group. What may or may not have been executed is written again: it says the same.
    fn send(&mut self, group: Vec<Command<'_>>) -> Result<(), CommandError> {
        let (mut left, mut tries) = (group, 0);
        while !left.is_empty() {
            let outcomes = self.client.execute(&left);
            let mut unknown: Option<ClientError> = None;
            let mut again = Vec::new();
            for (command, outcome) in left.into_iter().zip(outcomes) {
                match outcome {
                    Outcome::Acknowledged(_) => self.written += 1,
                    Outcome::Refused(error) => return Err(self.stopped(&error)),
                    Outcome::Unknown(error) => {
                        again.push(command);
                        unknown = Some(error);
                    }
                }
            }
            left = again;
            tries += 1;
            if let Some(error) = unknown.filter(|_| tries > UNKNOWN_MAX) {
                return Err(self.stopped(&error));
            }
        }
        Ok(())
    }

    fn stopped(&self, error: &ClientError) -> CommandError {
        let written = self.written;
        CommandError::Backup(format!(
            "{error}. {written} keys were written before; the same call begins again and writes them anew"
        ))
    }
}

/// Runs something on cores of its own.
fn on_core<T: Send + 'static, F: Future<Output = T> + 'static>(
    cores: usize,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<T, CommandError> {
    let builder = Runtime::builder().cores(cores).pin(false).spin_us(0).name("lockgate-tool");
    let runtime = builder.build().map_err(CommandError::backup)?;
    let result = runtime.block_on(0, work);
    runtime.shutdown();
    Ok(result)
}

/// A bar that is seen where somebody looks.
fn progress_bar(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{{bar:30}} {{pos}}/{{len}} {what}"));
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr())
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn bytes_bar(file: &Path) -> Result<ProgressBar, CommandError> {
    let length =
        std::fs::metadata(file).map_err(CommandError::io(format!("cannot read {}", file.display())))?;
    let bar = progress_bar("bytes");
    bar.set_length(length.len());
    Ok(bar)
}

/// Position and length, or 0 where the length is known.
fn tell(bar: &ProgressBar, of: fn(BackupProgress) -> (u64, u64)) -> ProgressFn {
    let bar = bar.clone();
    Arc::new(move |progress| {
        let (position, length) = of(progress);
        if length > 0 {
            bar.set_length(length);
        }
        bar.set_position(position);
    })
}
