//! The table at the end of a bench: what was measured, against which goal, and whether it was met.

use std::fmt::Write;

use crate::samples::Samples;

/// The rows of one bench.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<[String; 6]>,
}

const HEAD: [&str; 6] = ["name", "goal", "measured", "samples", "ratio", "met"];

impl Table {
    /// A figure without a goal: median and 99th percentile.
    pub fn figure(&mut self, name: &str, samples: &Samples) {
        let row = [name, "", &spread(samples), &samples.count().to_string(), "", ""];
        self.rows.push(row.map(str::to_owned));
    }

    /// A median that should be at most `times` that of `against_us`, which `against` names.
    pub fn budget(&mut self, name: &str, samples: &Samples, times: f64, against: &str, against_us: f64) {
        let ratio = samples.p50_us() / against_us;
        let goal = format!("p50 <= {times} x {against} ({})", shown(against_us));
        self.judged(name, goal, spread(samples), samples.count(), ratio, ratio <= times);
    }

    /// A median that should be at most `goal_us`, which `goal` explains.
    pub fn at_most(&mut self, name: &str, samples: &Samples, goal: &str, goal_us: f64) {
        let ratio = samples.p50_us() / goal_us;
        let goal = format!("p50 <= {goal} ({})", shown(goal_us));
        self.judged(name, goal, spread(samples), samples.count(), ratio, ratio <= 1.0);
    }

    /// A number of bytes that should be at most `goal`.
    pub fn bytes(&mut self, name: &str, bytes: usize, goal: usize) {
        let ratio = bytes as f64 / goal as f64;
        self.judged(name, format!("<= {goal} B"), format!("{bytes} B"), 1, ratio, bytes <= goal);
    }

    fn judged(&mut self, name: &str, goal: String, measured: String, count: usize, ratio: f64, met: bool) {
        let met = if met { "yes" } else { "NO" }.to_owned();
        self.rows.push([name.to_owned(), goal, measured, count.to_string(), format!("{ratio:.2}"), met]);
    }

    /// The rows, aligned.
    pub fn text(&self) -> String {
        let widths: [usize; 6] = std::array::from_fn(|column| {
            let cells = self.rows.iter().map(|row| row[column].len());
            cells.chain([HEAD[column].len()]).max().unwrap_or(0)
        });
        let mut text = String::new();
        for row in std::iter::once(HEAD).chain(self.rows.iter().map(|row| row.each_ref().map(String::as_str)))
        {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

fn spread(samples: &Samples) -> String {
    format!("p50 {}, p99 {}", shown(samples.p50_us()), shown(samples.p99_us()))
}

fn shown(us: f64) -> String {
    if us < 10_000.0 { format!("{us:.1} us") } else { format!("{:.2} ms", us / 1_000.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_budget_is_said_to_be_missed() {
        let mut samples = Samples::default();
        samples.push(4_100_000);
        let mut table = Table::default();
        table.budget("a", &samples, 4.0, "sync", 1_000.0);
        table.budget("b", &samples, 5.0, "sync", 1_000.0);
        table.at_most("c", &samples, "10 ms", 10_000.0);
        table.bytes("d", 11, 10);
        let text = table.text();
        let ends: Vec<bool> = text.lines().skip(1).map(|line| line.ends_with("yes")).collect();
        assert_eq!(ends, [false, true, true, false], "{text}");
        assert!(text.contains("p50 <= 4 x sync (1000.0 us)  p50 4100.0 us, p99 4100.0 us  1"), "{text}");
    }
}
