//! Groups of criterion benchmarks whose routines time themselves, and every single time that they took.
//!
//! Invariant: what is handed back are the iterations that criterion's own figures are of; those of its warm-up are not
//! among them. What this does not know: what is timed, and which table it goes into.

use std::cell::LazyCell;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};

/// What one iteration handed back.
pub trait Timed {
    /// The time that counts of it, in nanoseconds.
    fn ns(&self) -> u64;
}

impl Timed for u64 {
    fn ns(&self) -> u64 {
        *self
    }
}

/// Benchmarks of one group.
pub struct Group<'a> {
    group: BenchmarkGroup<'a, WallTime>,
    sample_size: usize,
}

impl<'a> Group<'a> {
    /// A group each of whose benchmarks takes about `duration` and the tenth of it to warm up, for `sample_size` samples (10
    /// at least) of equally many iterations. It takes longer if one iteration of each sample does.
    pub fn new(
        criterion: &'a mut Criterion,
        name: &str,
        sample_size: usize,
        duration: Duration,
    ) -> Group<'a> {
        let mut group = criterion.benchmark_group(name);
        group.sampling_mode(SamplingMode::Flat).sample_size(sample_size);
        group.measurement_time(duration).warm_up_time(duration / 10);
        Group { group, sample_size }
    }

    /// Benchmarks `routine`, which does as many iterations as it is told to and hands back what each of them was. What it
    /// does between them does not count. Empty if the command line leaves this benchmark out.
    pub fn measure<T: Timed>(&mut self, name: &str, mut routine: impl FnMut(usize) -> Vec<T>) -> Vec<T> {
        self.measure_on(name, &mut LazyCell::new(|| ()), |(), count| routine(count))
    }

    /// The same on something that several benchmarks share; the first one that runs makes it.
    pub fn measure_on<S, T: Timed>(
        &mut self,
        name: &str,
        shared: &mut LazyCell<S, impl FnOnce() -> S>,
        mut routine: impl FnMut(&mut S, usize) -> Vec<T>,
    ) -> Vec<T> {
        let mut batches = Vec::new();
        self.group.bench_function(name, |bencher| {
            // Not within what criterion watches: it guesses from its first call how long the others will take.
            let shared = LazyCell::force_mut(shared);
            bencher.iter_custom(|iterations| {
                let batch = routine(shared, iterations as usize);
                assert_eq!(batch.len() as u64, iterations, "{name}: each iteration has its time");
                let total_ns = batch.iter().map(Timed::ns).sum();
                batches.push(batch);
                Duration::from_nanos(total_ns)
            });
        });
        // Criterion does not say which calls warm up; those of its samples are the last ones.
        let warming_up = batches.len().saturating_sub(self.sample_size);
        batches.into_iter().skip(warming_up).flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn criterion(folder: &tempfile::TempDir) -> Criterion {
        Criterion::default().without_plots().nresamples(1_001).output_directory(folder.path())
    }

    #[test]
    fn iterations_of_the_warm_up_are_left_out() {
        let folder = tempfile::tempdir().expect("a folder for what criterion keeps");
        let mut criterion = criterion(&folder);
        let mut group = Group::new(&mut criterion, "groups", 10, Duration::from_millis(20));
        let (mut calls, mut next_ns) = (Vec::new(), 1_000);
        let times = group.measure("counted", |count| {
            calls.push(count);
            let first_ns = next_ns;
            next_ns += count as u64;
            (first_ns..next_ns).collect::<Vec<u64>>()
        });
        let each = calls[calls.len() - 1];
        assert!(
            calls.len() > 10 && calls[calls.len() - 10..].iter().all(|count| *count == each),
            "{calls:?}"
        );
        let expected: Vec<u64> = (next_ns - 10 * each as u64..next_ns).collect();
        assert_eq!(times, expected);
    }

    #[test]
    fn what_is_shared_is_made_once_and_only_for_benchmarks_that_run() {
        let folder = tempfile::tempdir().expect("a folder for what criterion keeps");
        let mut criterion = criterion(&folder).with_filter("runs");
        let mut group = Group::new(&mut criterion, "groups", 10, Duration::from_millis(20));
        let made = std::cell::Cell::new(0);
        let mut shared = LazyCell::new(|| made.set(made.get() + 1));
        assert!(group.measure_on("left out", &mut shared, |(), count| vec![1_u64; count]).is_empty());
        assert_eq!(made.get(), 0);
        for name in ["runs", "runs too"] {
            assert!(!group.measure_on(name, &mut shared, |(), count| vec![1_000_u64; count]).is_empty());
        }
        assert_eq!(made.get(), 1);
    }
}
