//! `LOCKGATE BACKUP` and `LOCKGATE BACKUPSTATUS`: this node writes what it serves to a file on its own machine.
//!
//! One backup at a time. It goes on when whoever asked for it is gone, as it takes longer than a client may wait; how far it
//! is and how it ended is asked for. The name is a plain one, in the folder that whoever started the node has named: clients
//! choose no paths.

use std::path::{Path, PathBuf};

use lockgate_engine::backup::{BackupOptions, BackupProgress, BackupSummary, PARTIAL_SUFFIX};
use lockgate_net::resp::{Reply, Request};
use lockgate_runtime::sync::{Arc, Mutex};

use super::{Commands, arity};

/// The longest name of a backup's file, in bytes.
const NAME_BYTES_MAX: usize = 200;

/// How the latest backup is.
enum State {
    /// There was none since the node started.
    Never,
    Running(BackupProgress),
    Done(BackupSummary),
    Failed(String),
}

/// The backups of one node, for the commands on all of its cores.
pub struct Backups {
    folder: Option<PathBuf>,
    latest: Mutex<(String, State)>,
}

impl Backups {
    /// Backups go to this folder, which is made when it is needed; without one they are refused.
    pub fn new(folder: Option<PathBuf>) -> Backups {
        Backups { folder, latest: Mutex::new((String::new(), State::Never)) }
    }

    /// Takes the turn. The path that the backup gets.
    fn begin(&self, name: &str) -> Result<PathBuf, String> {
        let folder = self.folder.as_ref().ok_or(
            "ERR this node writes no backups: start it with --backup-dir and the folder that they belong into",
        )?;
        let mut latest = self.latest.lock();
        if let (running, State::Running(_)) = &*latest {
            return Err(format!("ERR the backup '{running}' is being written: wait until it is done"));
        }
        *latest = (name.to_owned(), State::Running(BackupProgress::default()));
        Ok(folder.join(name))
    }

    fn set(&self, state: State) {
        self.latest.lock().1 = state;
    }
}

impl Commands {
    /// Dispatches the subcommands.
    pub(super) async fn lockgate(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
        let Some(sub) = request.args().get(1) else { return Err(arity("LOCKGATE")) };
        match sub.to_ascii_uppercase().as_slice() {
            b"BACKUP" => self.back_up(request, reply),
            b"BACKUPSTATUS" => {
                self.backup_status(reply);
                Ok(())
            }
            _ => {
                let sub = String::from_utf8_lossy(sub);
                Err(format!("ERR unknown subcommand '{sub}'. Try LOCKGATE BACKUP, BACKUPSTATUS."))
            }
        }
    }

    /// `LOCKGATE BACKUP name [RATE bytes-per-second]`: begins a backup of all slots that are served here.
    fn back_up(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
        let (name, bytes_per_second) = match request.args()[2..] {
            [name] => (name, None),
            [name, word, rate] if word.eq_ignore_ascii_case(b"RATE") => {
                let rate = std::str::from_utf8(rate).ok().and_then(|text| text.parse().ok());
                let rate = rate.filter(|rate: &u64| *rate > 0);
                (name, Some(rate.ok_or("ERR value is not an integer or out of range")?))
            }
            _ => return Err(arity("LOCKGATE BACKUP")),
        };
        let name = checked_name(name)?;
        let path = self.backups.begin(name)?;
        let (engine, backups) = (self.node.engine().clone(), Arc::clone(&self.backups));
        let telling = Arc::clone(&backups);
        let options = BackupOptions {
            bytes_per_second,
            progress: Some(Arc::new(move |progress| telling.set(State::Running(progress)))),
            ..BackupOptions::default()
        };
        lockgate_runtime::spawn(async move {
            let folder = path.parent().unwrap_or(Path::new("."));
            let made = lockgate_runtime::fs::create_dir_all(folder).await;
            backups.set(match made {
                Err(error) => State::Failed(format!("creating {} failed: {error}", folder.display())),
                Ok(()) => match engine.backup(&path, &options).await {
                    Ok(summary) => State::Done(summary),
                    Err(error) => State::Failed(error.to_string()),
                },
            });
        });
        reply.ok();
        Ok(())
    }

    /// `LOCKGATE BACKUPSTATUS`: the latest backup since the node started, as names and values.
    fn backup_status(&self, reply: &mut Reply) {
        let latest = self.backups.latest.lock();
        let (name, state) = &*latest;
        let (word, progress, error) = match state {
            State::Never => ("none", BackupProgress::default(), ""),
            State::Running(progress) => ("running", *progress, ""),
            State::Failed(error) => ("failed", BackupProgress::default(), error.as_str()),
            State::Done(done) => {
                let slots = done.footer.slots;
                ("done", BackupProgress { slots_done: slots, slots, bytes: done.bytes }, "")
            }
        };
        let (keys, slots_left, path) = match state {
            State::Done(done) => (done.footer.keys, done.footer.slots_left, done.file.display().to_string()),
            _ => (0, 0, String::new()),
        };
        let texts = [("state", word), ("name", name.as_str()), ("path", path.as_str()), ("error", error)];
        let BackupProgress { slots_done, slots, bytes } = progress;
        let numbers = [
            ("slots-done", slots_done),
            ("slots", slots),
            ("bytes", bytes),
            ("keys", keys),
            ("slots-left", slots_left),
        ];
        reply.map(texts.len() + numbers.len());
        for (key, value) in texts {
            reply.bulk(key.as_bytes());
            reply.bulk(value.as_bytes());
        }
        for (key, value) in numbers {
            reply.bulk(key.as_bytes());
            reply.integer(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }
}

/// A name that names a file in a folder, and nothing else.
fn checked_name(name: &[u8]) -> Result<&str, String> {
    let is_plain = |name: &&str| {
        (1..=NAME_BYTES_MAX).contains(&name.len())
            && !name.starts_with('.')
            && !name.ends_with(PARTIAL_SUFFIX)
            && !name.chars().any(|letter| letter == '/' || letter.is_control())
    };
    let name = std::str::from_utf8(name).ok().filter(is_plain);
    name.ok_or_else(|| {
        "ERR a backup is given a plain file name, without a folder; it lies in the folder that the node was started with"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_ones() {
        for name in ["monday", "a.b-c_d", "x"] {
            assert_eq!(checked_name(name.as_bytes()), Ok(name));
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for name in ["", ".", "..", ".hidden", "a/b", "/etc/x", "a\nb", "a\0", "x.partial", &long] {
            assert!(checked_name(name.as_bytes()).is_err(), "{name:?}");
        }
        assert!(checked_name(&[0xff]).is_err());
    }

    #[test]
    fn one_backup_at_a_time() {
        let none = Backups::new(None).begin("x").unwrap_err();
        assert!(none.contains("--backup-dir"), "{none}");
        let backups = Backups::new(Some(PathBuf::from("folder")));
        assert_eq!(backups.begin("one"), Ok(PathBuf::from("folder/one")));
        assert!(backups.begin("two").unwrap_err().contains("'one' is being written"));
        backups.set(State::Failed("why".into()));
        assert_eq!(backups.begin("two"), Ok(PathBuf::from("folder/two")));
    }
}
