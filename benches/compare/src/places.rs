//! The folder that everything of a run lies in, and its end, also by a signal.
//!
//! Invariant: the folder is removed whichever way the run ends, unless it is killed outright. Whoever removes it holds
//! `ending` and never gives it back: nobody else reports or ends the process then.

use std::fs;
use std::path::{Path, PathBuf};

use lockgate_runtime::sync::{Arc, Mutex};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

use crate::failure::{During, Failure};

/// The exit code after SIGINT, as shells have it; SIGTERM's is the same for simplicity of what follows it.
const INTERRUPTED: i32 = 130;
/// The engine and its rivals still run while their folder is removed, and may make a file meanwhile.
const REMOVALS_MAX: usize = 1_000;

/// Where a run keeps its files.
pub struct Places {
    folder: TempDir,
    ending: Arc<Mutex<()>>,
}

impl Places {
    /// A new folder in `parent`, or in the system's folder for temporary files.
    pub fn new(parent: Option<&Path>) -> Result<Places, Failure> {
        let parent = parent.map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = tempfile::Builder::new().prefix("lockgate-compare-").tempdir_in(&parent);
        let folder = folder.map_err(|error| {
            Failure::during(format!("making a folder in {} (see --dir)", parent.display()), error)
        })?;
        let places = Places { folder, ending: Arc::new(Mutex::new(())) };
        places.watch_signals()?;
        Ok(places)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// A new folder below it, removed when it is dropped.
    pub fn folder(&self, name: &str) -> Result<TempDir, Failure> {
        let made = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(self.root());
        made.during("making a folder for data")
    }

    /// Keeps a signal from ending the process from here on. Does not return if one is ending it.
    pub fn hold_end<T>(&self, report: impl FnOnce() -> T) -> T {
        let _held = self.ending.lock();
        report()
    }

    /// On a signal the folder goes and the process ends. Children die with it by themselves.
    fn watch_signals(&self) -> Result<(), Failure> {
        let mut signals = Signals::new([SIGINT, SIGTERM]).during("asking for signals")?;
        let (root, ending) = (self.root().to_path_buf(), self.ending.clone());
        let watch = move || {
            if signals.forever().next().is_some() {
                let _held = ending.lock();
                let gone = (0..REMOVALS_MAX).any(|_| fs::remove_dir_all(&root).is_ok() || !root.exists());
                if !gone {
                    eprintln!("lockgate-compare: {} could not be removed", root.display());
                }
                std::process::exit(INTERRUPTED);
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(watch).during("starting a thread")?;
        Ok(())
    }
}
