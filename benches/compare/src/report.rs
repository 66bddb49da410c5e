//! The rows of a run, as text and as JSON.
//!
//! A row that has a goal is judged; the others are shown beside. What was not measured is named with the reason.

use std::fmt::Write;

use serde::Serialize;

/// What rows about memory and speed in memory belong to.
pub const ENGINE_ISSUE: &str = "engine";
/// What rows about writes that survive belong to.
pub const DURABILITY_ISSUE: &str = "durability";

/// What a ratio should be.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

impl Goal {
    fn is_met_by(self, ratio: f64) -> bool {
        match self {
            Goal::AtMost(most) => ratio <= most,
            Goal::AtLeast(least) => ratio >= least,
        }
    }
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What it belongs to.
    pub issue: &'static str,
    /// What was done, and by whom.
    pub name: String,
    /// What should be, in words. Empty: it is shown, no more.
    pub goal: String,
    /// What was measured, in words.
    pub measured: String,
    /// What the goal is about, if there is something to compare with.
    pub ratio: Option<f64>,
    /// Whether the goal is met. `None`: there is none, or this run is not one to judge by.
    pub met: Option<bool>,
    /// How many rounds it is the median of.
    pub rounds: usize,
}

/// What was left out.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    name: String,
    why: String,
}

/// Everything that a run found out.
#[derive(Debug)]
pub struct Report {
    judges: bool,
    rows: Vec<Row>,
    skipped: Vec<Skipped>,
}

/// What the last line is made of.
#[derive(Serialize)]
struct Json<'a> {
    rows: Vec<&'a Row>,
    shown: Vec<&'a Row>,
    skipped: &'a [Skipped],
    rounds: usize,
    keys: u32,
    judged: bool,
}

impl Report {
    /// An empty one. If it does not judge, no goal is said to be met or missed.
    pub fn new(judges: bool) -> Report {
        Report { judges, rows: Vec::new(), skipped: Vec::new() }
    }

    /// Adds a row with a goal: `ratio` is judged by `goal`, which `words` explain.
    pub fn judged(
        &mut self,
        (issue, name): (&'static str, String),
        (goal, words): (Goal, &str),
        measured: String,
        ratio: f64,
        rounds: usize,
    ) {
        let goal_text = match goal {
            Goal::AtMost(most) => format!("<= {most} {words}"),
            Goal::AtLeast(least) => format!(">= {least} {words}"),
        };
        let met = self.judges.then(|| goal.is_met_by(ratio));
        self.rows.push(Row { issue, name, goal: goal_text, measured, ratio: Some(ratio), met, rounds });
    }

    /// Adds a row without one.
    pub fn shown(
        &mut self,
        issue: &'static str,
        name: String,
        measured: String,
        ratio: Option<f64>,
        rounds: usize,
    ) {
        self.rows.push(Row { issue, name, goal: String::new(), measured, ratio, met: None, rounds });
    }

    /// Notes what was not measured, and why.
    pub fn skip(&mut self, name: &str, why: impl Into<String>) {
        self.skipped.push(Skipped { name: name.into(), why: why.into() });
    }

    /// The table.
    pub fn text(&self) -> String {
        let head = ["name", "goal", "measured", "ratio", "rounds", "met"].map(str::to_owned);
        let mut lines = vec![head];
        for row in &self.rows {
            let ratio = row.ratio.map_or(String::new(), |ratio| format!("{ratio:.3}"));
            let met = row.met.map_or("", |met| if met { "yes" } else { "NO" });
            let texts = [&row.name, &row.goal, &row.measured, &ratio, &row.rounds.to_string(), met];
            lines.push(texts.map(str::to_owned));
        }
        let widths: [usize; 6] =
            std::array::from_fn(|column| lines.iter().map(|line| line[column].len()).max().unwrap_or(0));
        let mut text = String::new();
        for line in lines {
            let mut all = String::new();
            for (cell, width) in line.iter().zip(widths) {
                let _ = write!(all, "{cell:width$}  ");
            }
            let _ = writeln!(text, "{}", all.trim_end());
        }
        for Skipped { name, why } in &self.skipped {
            let _ = writeln!(text, "not measured: {name}: {why}");
        }
        if !self.judges {
            let _ = writeln!(text, "not judged: goals take 5 rounds at least, and no --smoke");
        }
        text
    }

    /// The line of JSON.
    pub fn json(&self, rounds: usize, keys: u32) -> Result<String, serde_json::Error> {
        let (shown, rows) = self.rows.iter().partition(|row| row.goal.is_empty());
        let skipped = &self.skipped;
        serde_json::to_string(&Json { rows, shown, skipped, rounds, keys, judged: self.judges })
    }
}
