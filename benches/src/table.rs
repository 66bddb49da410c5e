//! The table at the end of a bench: what was measured, against which goal, and whether it was met.

use std::fmt::Write;

use crate::samples::Samples;

/// The rows of one bench.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<[String; 6]>,
    /// A row was left out: nothing was measured for it.
    lacks_rows: bool,
}

const HEAD: [&str; 6] = ["name", "goal", "measured", "samples", "ratio", "met"];

impl Table {
    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether all that should be in it was measured: the command line may leave benchmarks out.
    pub fn is_whole(&self) -> bool {
        !self.lacks_rows
    }

    /// Whether a row of these samples would have nothing to show; then it is left out.
    fn leaves_out(&mut self, samples: &[&Samples]) -> bool {
        let lacks = samples.iter().any(|samples| samples.is_empty());
        self.lacks_rows |= lacks;
        lacks
    }

    /// A figure without a goal: median and 99th percentile.
    pub fn figure(&mut self, name: &str, samples: &Samples) {
        if self.leaves_out(&[samples]) {
            return;
        }
        let row = [name, "", &spread(samples), &samples.count().to_string(), "", ""];
        self.rows.push(row.map(str::to_owned));
    }

    /// A median that should be at most `times` that of `others`, which `against` names.
    pub fn budget(&mut self, name: &str, samples: &Samples, times: f64, against: &str, others: &Samples) {
        if self.leaves_out(&[samples, others]) {
            return;
        }
        let against_us = others.p50_us();
        let ratio = samples.p50_us() / against_us;
        let times_shown = if times < 1.0 { format!("1/{:.0}", 1.0 / times) } else { times.to_string() };
        let goal = format!("p50 <= {times_shown} x {against} ({})", shown(against_us));
        self.judged(name, goal, spread(samples), samples.count(), ratio, ratio <= times);
    }

    /// A 99th percentile that should be at most `times` that of `others`, which `against` names.
    pub fn budget_p99(&mut self, name: &str, samples: &Samples, times: f64, against: &str, others: &Samples) {
        if self.leaves_out(&[samples, others]) {
            return;
        }
        let ratio = samples.p99_us() / others.p99_us();
        let goal = format!("p99 <= {times} x {against} ({})", shown(others.p99_us()));
        self.judged(name, goal, spread(samples), samples.count(), ratio, ratio <= times);
    }

    /// A median that should be at most `goal_us`, which `goal` explains.
    pub fn at_most(&mut self, name: &str, samples: &Samples, goal: &str, goal_us: f64) {
        if self.leaves_out(&[samples]) {
            return;
        }
        let ratio = samples.p50_us() / goal_us;
        let goal = format!("p50 <= {goal} ({})", shown(goal_us));
        self.judged(name, goal, spread(samples), samples.count(), ratio, ratio <= 1.0);
    }

    /// A number of bytes that should be at most `goal`.
    pub fn bytes(&mut self, name: &str, bytes: usize, goal: usize) {
        let ratio = bytes as f64 / goal as f64;
        self.judged(name, format!("<= {goal} B"), format!("{bytes} B"), 1, ratio, bytes <= goal);
    }

    /// Bytes for each of `keys` keys, without a goal.
    pub fn bytes_a_key(&mut self, name: &str, bytes: u64, keys: u64) {
        let measured = format!("{:.1} B", bytes as f64 / keys as f64);
        self.rows.push([name, "", &measured, "1", "", ""].map(str::to_owned));
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
        let (samples, sync) = ([4_100_000].into_iter().collect(), [1_000_000].into_iter().collect());
        let mut table = Table::default();
        table.budget("a", &samples, 4.0, "sync", &sync);
        table.budget("b", &samples, 5.0, "sync", &sync);
        table.at_most("c", &samples, "10 ms", 10_000.0);
        table.bytes("d", 11, 10);
        let text = table.text();
        let ends: Vec<bool> = text.lines().skip(1).map(|line| line.ends_with("yes")).collect();
        assert_eq!(ends, [false, true, true, false], "{text}");
        assert!(text.contains("p50 <= 4 x sync (1000.0 us)  p50 4100.0 us, p99 4100.0 us  1"), "{text}");
        table.budget("e", &samples, 1.0 / 30.0, "sync", &sync);
        table.budget_p99("f", &samples, 1.5, "sync", &sync);
        assert!(table.text().contains("p99 <= 1.5 x sync (1000.0 us)"), "{}", table.text());
        assert!(table.text().contains("p50 <= 1/30 x sync"), "{}", table.text());
        assert!(table.is_whole());
    }

    #[test]
    fn what_was_not_measured_has_no_row() {
        let (some, none): (Samples, _) = ([1_000].into_iter().collect(), Samples::default());
        let mut table = Table::default();
        table.figure("a", &none);
        table.at_most("b", &none, "10 ms", 10_000.0);
        table.budget("c", &some, 4.0, "sync", &none);
        assert!(table.is_empty() && !table.is_whole());
        table.figure("d", &some);
        assert!(!table.is_empty() && !table.is_whole());
        assert_eq!(table.text().lines().count(), 2);
    }
}
