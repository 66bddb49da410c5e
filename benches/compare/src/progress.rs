//! How far the run is, on stderr: a bar on a terminal, otherwise a line for each row.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The run's progress, in rows.
pub struct Progress {
    bar: ProgressBar,
    plain: bool,
}

impl Progress {
    /// Of a run of so many rows.
    pub fn new(rows: usize) -> Progress {
        let plain = !std::io::stderr().is_terminal();
        let target = if plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let style = ProgressStyle::with_template("{elapsed:>4} {bar:24} {pos}/{len} {msg}");
        let style = style.expect("the template is sound");
        let bar = ProgressBar::with_draw_target(Some(rows as u64), target).with_style(style);
        Progress { bar, plain }
    }

    /// Says what is being done now.
    pub fn doing(&self, what: impl Into<String>) {
        let what = what.into();
        if self.plain {
            eprintln!("{what} ...");
        }
        self.bar.set_message(what);
        self.bar.tick();
    }

    /// One more row is there.
    pub fn row(&self) {
        self.bar.inc(1);
    }

    /// All of it is done.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
