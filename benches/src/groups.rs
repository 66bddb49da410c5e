//! Groups of criterion benchmarks whose routines time themselves, and every single time that they took.
//!
//! Invariant: what is handed back are the iterations that criterion's own figures are of; those of its warm-up are not
//! among them. What this does not know: what is timed, and which table it goes into.

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
        let mut batches = Vec::new();
        self.group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let batch = routine(iterations as usize);
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

    #[test]
    fn iterations_of_the_warm_up_are_left_out() {
        let folder = tempfile::tempdir().expect("a folder for what criterion keeps");
        let mut criterion =
            Criterion::default().without_plots().nresamples(1_001).output_directory(folder.path());
        let mut group = Group::new(&mut criterion, "groups", 10, Duration::from_millis(20));
        let (mut calls, mut next_ns) = (Vec::new(), 1_000);
        let times = group.measure("counted", |count| {
            calls.push(count);
            std::thread::sleep(Duration::from_micros(100) * count as u32);
            (0..count)
                .map(|_| {
                    next_ns += 1;
                    next_ns
                })
                .collect::<Vec<u64>>()
        });
        let each = calls[calls.len() - 1];
        assert!(
            calls.len() > 10 && calls[calls.len() - 10..].iter().all(|count| *count == each),
            "{calls:?}"
        );
        let expected: Vec<u64> = (next_ns + 1 - 10 * each as u64..=next_ns).collect();
        assert_eq!(times, expected);
    }
}
