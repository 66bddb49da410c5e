//! What the benches share: engines and real clusters in one process, the disk's own times, samples, tables and bars.
//!
//! `cargo bench -p lockgate-benches` measures, by criterion; `cargo test -p lockgate-benches` goes through the same code
//! once. See the README beside this crate's manifest. What this crate does not know:
//! anything that an embedder could not ask; it looks at nodes through their public interfaces. A missed budget is
//! reported, never asserted.

pub mod big_map;
pub mod cluster;
pub mod filled;
pub mod groups;
pub mod numbers;
pub mod output;
pub mod raw_sync;
pub mod round_trip;
pub mod samples;
pub mod stages;
pub mod svg;
pub mod table;
pub mod zipf;

/// Whether this is a measurement, by the same rule as criterion's: `cargo bench` says `--bench`, unless one adds `--test`.
/// Otherwise it is a short round.
pub fn is_measurement() -> bool {
    let said = |flag: &str| std::env::args().any(|argument| argument == flag);
    said("--bench") && !said("--test")
}

/// `full` when measuring, `small` otherwise.
pub fn size(full: usize, small: usize) -> usize {
    if is_measurement() { full } else { small }
}

/// Shows what nodes log, filtered by `RUST_LOG`; nothing by default.
pub fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt()
        .with_thread_names(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}
