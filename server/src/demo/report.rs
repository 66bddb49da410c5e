//! The outcome of a demo run: its JSON, its text and its exit code.
//!
//! The JSON has exactly the fields of [`Report`], in this order; scripts read it. A run passes only if it found no loss,
//! no resurrection, no stale read and no slot without an owner.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The exit code of a run that found a violation.
pub const EXIT_VIOLATION: u8 = 1;

/// Three points of a distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of the samples are at most this.
    pub p50: f64,
    /// 99 of 100 samples are at most this.
    pub p99: f64,
    /// The largest sample.
    pub max: f64,
}

/// The outcome of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// How many keys were loaded.
    pub keys: u64,
    /// Acknowledged writes after loading, while a job was active.
    pub acked_writes: u64,
    /// Keys that lost an acknowledged write, or hold a value that nobody wrote.
    pub lost: u64,
    /// Keys on which something deleted came back.
    pub resurrected: u64,
    /// Reads below the last value acknowledged before they began.
    pub stale_reads: u64,
    /// Slots for which no node accepted a write within 5 seconds.
    pub unowned_slots: u64,
    /// Jobs that were committed and activated.
    pub jobs: u64,
    /// The most jobs that were active at the same time.
    pub concurrent_jobs_max: u64,
    /// Bytes that jobs streamed from sources to targets.
    pub migrated_bytes: u64,
    /// `migrated_bytes` by the time during which a job was active, in millions a second.
    pub mb_per_s: f64,
    /// Per handover: a client's longest interval between acknowledgements on a moving slot, retries included.
    pub write_gap_ms: Percentiles,
    /// From the freeze of a job's slots to their activation at the target.
    pub freeze_to_activate_us: Percentiles,
    /// A synced 4 KiB write in a preallocated file on the same disk, in the same run.
    pub raw_data_sync_us_p50: u64,
    /// Nodes that were killed.
    pub kills: u64,
    /// Kills in the middle of a finalize after which the cluster failed over.
    pub failovers_at_finalize: u64,
}

impl Report {
    /// Whether nothing went wrong that must not go wrong.
    pub fn passed(&self) -> bool {
        self.lost == 0 && self.resurrected == 0 && self.stale_reads == 0 && self.unowned_slots == 0
    }

    /// The process' exit code: 0, or 1 on any loss, resurrection, stale read or unowned slot.
    pub fn exit_code(&self) -> u8 {
        if self.passed() { 0 } else { EXIT_VIOLATION }
    }

    /// The report as one line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers in structs are always representable")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gap = &self.write_gap_ms;
        let pause = &self.freeze_to_activate_us;
        writeln!(f, "{} keys; {} writes acknowledged while slots moved", self.keys, self.acked_writes)?;
        writeln!(
            f,
            "{} jobs committed and activated, up to {} at once; {:.1} MB moved at {:.1} MB/s",
            self.jobs,
            self.concurrent_jobs_max,
            self.migrated_bytes as f64 / 1e6,
            self.mb_per_s
        )?;
        writeln!(
            f,
            "write gap on moving slots      p50 {:.1} ms   p99 {:.1} ms   max {:.1} ms",
            gap.p50, gap.p99, gap.max
        )?;
        writeln!(
            f,
            "freeze to activate             p50 {:.0} us   p99 {:.0} us   max {:.0} us   (a raw data sync: {} us)",
            pause.p50, pause.p99, pause.max, self.raw_data_sync_us_p50
        )?;
        writeln!(
            f,
            "lost {}   resurrected {}   stale reads {}   unowned slots {}",
            self.lost, self.resurrected, self.stale_reads, self.unowned_slots
        )?;
        if self.kills > 0 {
            let (kills, met) = (self.kills, self.failovers_at_finalize);
            writeln!(f, "{kills} nodes killed; {met} failovers met a finalize")?;
        }
        write!(f, "{}", if self.passed() { "PASSED: every key is what clients were told" } else { "FAILED" })
    }
}

/// Collects durations; from a microsecond to an hour, three significant digits.
#[derive(Debug)]
pub struct Durations {
    histogram: Histogram<u64>,
}

impl Default for Durations {
    fn default() -> Self {
        Durations::new()
    }
}

impl Durations {
    const MAX_US: u64 = 3_600_000_000;

    /// Without samples.
    pub fn new() -> Durations {
        let histogram =
            Histogram::new_with_bounds(1, Self::MAX_US, 3).expect("the bounds are valid constants");
        Durations { histogram }
    }

    /// Adds a sample.
    pub fn record(&mut self, duration: Duration) {
        self.record_us(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Adds a sample in microseconds.
    pub fn record_us(&mut self, duration_us: u64) {
        self.histogram.saturating_record(duration_us.min(Self::MAX_US));
    }

    /// How many samples there are.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The value at a quantile, in microseconds; 0 without samples.
    pub fn quantile_us(&self, quantile: f64) -> u64 {
        self.histogram.value_at_quantile(quantile)
    }

    /// Percentiles in microseconds; zeros without samples.
    pub fn percentiles_us(&self) -> Percentiles {
        self.percentiles(1.0)
    }

    /// Percentiles in milliseconds, to a microsecond; zeros without samples.
    pub fn percentiles_ms(&self) -> Percentiles {
        self.percentiles(1000.0)
    }

    fn percentiles(&self, unit_us: f64) -> Percentiles {
        let at = |quantile| self.quantile_us(quantile) as f64 / unit_us;
        Percentiles { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

/// `bytes` by `duration`, in millions a second, to two digits; 0 for no time.
pub fn mb_per_s(bytes: u64, duration: Duration) -> f64 {
    if duration.is_zero() {
        return 0.0;
    }
    (bytes as f64 / duration.as_secs_f64() / 1e6 * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_exactly_the_promised_fields() {
        let json: serde_json::Value = serde_json::from_str(&Report::default().to_json()).unwrap();
        let mut fields: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        let mut promised = [
            "keys",
            "acked_writes",
            "lost",
            "resurrected",
            "stale_reads",
            "unowned_slots",
            "jobs",
            "concurrent_jobs_max",
            "migrated_bytes",
            "mb_per_s",
            "write_gap_ms",
            "freeze_to_activate_us",
            "raw_data_sync_us_p50",
            "kills",
            "failovers_at_finalize",
        ];
        promised.sort_unstable();
        assert_eq!(fields, promised);
        for distribution in ["write_gap_ms", "freeze_to_activate_us"] {
            let mut points: Vec<_> = json[distribution].as_object().unwrap().keys().cloned().collect();
            points.sort_unstable();
            assert_eq!(points, ["max", "p50", "p99"]);
        }
        assert!(!Report::default().to_json().contains('\n'));
    }

    #[test]
    fn each_violation_fails_the_run() {
        assert_eq!(Report::default().exit_code(), 0);
        let bad = [
            Report { lost: 1, ..Report::default() },
            Report { resurrected: 1, ..Report::default() },
            Report { stale_reads: 1, ..Report::default() },
            Report { unowned_slots: 1, ..Report::default() },
        ];
        for report in bad {
            assert_eq!(report.exit_code(), 1, "{report:?}");
            assert!(report.to_string().ends_with("FAILED"));
        }
    }

    #[test]
    fn percentiles_are_of_the_samples() {
        let mut durations = Durations::new();
        assert_eq!(durations.percentiles_us(), Percentiles::default());
        for sample_us in 1..=100 {
            durations.record(Duration::from_micros(sample_us * 10));
        }
        assert_eq!(durations.count(), 100);
        assert_eq!(durations.percentiles_us(), Percentiles { p50: 500.0, p99: 990.0, max: 1000.0 });
        assert_eq!(durations.percentiles_ms(), Percentiles { p50: 0.5, p99: 0.99, max: 1.0 });
        durations.record(Duration::from_secs(1_000_000));
        let max = durations.percentiles_us().max;
        assert!((max / 3.6e9 - 1.0).abs() < 0.001, "{max}");
    }

    #[test]
    fn throughput_is_in_millions_a_second() {
        assert_eq!(mb_per_s(5_000_000, Duration::from_secs(2)), 2.5);
        assert_eq!(mb_per_s(5, Duration::ZERO), 0.0);
    }

    #[test]
    fn the_text_is_short() {
        let report = Report { keys: 12, migrated_bytes: 2_000_000, ..Report::default() };
        let text = report.to_string();
        assert!(text.lines().count() <= 8 && text.contains("12 keys") && text.contains("2.0 MB"), "{text}");
    }
}
