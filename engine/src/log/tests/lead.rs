//! Threads that wait for a sync write and sync by themselves, when nobody else does.

use std::sync::mpsc;

use lockgate_runtime::mutations;

use super::super::files::{FileMaker, PreparedFile};
use super::super::outside::File;
use super::*;

/// A core that does nothing until it is let go: what happens meanwhile is not its writer's work.
struct StoppedCore {
    _let_go: mpsc::Sender<()>,
}

impl StoppedCore {
    fn new(runtime: &Runtime) -> StoppedCore {
        let (let_go, waits) = mpsc::channel::<()>();
        let (stopped, has_stopped) = mpsc::channel();
        runtime.spawn_on(0, move || async move {
            // The log's writer comes to rest first.
            lockgate_runtime::sleep(Duration::from_millis(20)).await;
            stopped.send(()).expect("the test waits");
            // Either way it is over.
            let _ = waits.recv();
        });
        has_stopped.recv().expect("the core stops");
        StoppedCore { _let_go: let_go }
    }
}

fn runtime() -> Runtime {
    Runtime::builder().cores(1).pin(false).spin_us(0).name("lead").build().expect("a runtime")
}

#[test]
fn a_thread_leads_while_the_core_does_something_else() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (runtime, path) = (runtime(), dir.path().join("log"));
    let cfg = LogConfig { file_bytes: 1 << 20, ..config(&path, 1) };
    let log = runtime.block_on(0, move || async move { Log::create(cfg, 0).await.expect("created") });
    let frames: Vec<Seen> = (0..5).map(|number| frame(number, 100)).collect();
    let core = StoppedCore::new(&runtime);
    for frame in &frames {
        let end = append(&log, frame);
        log.wait_synced_blocking(end).expect("synced by this thread");
        assert_eq!((log.synced(), log.written()), (end, end));
    }
    drop(core);
    // The writer goes on where the thread has stopped.
    let more = frame(5, 100);
    let (closing, last) = (log.clone(), append(&log, &more));
    let recovered = runtime.block_on(0, move || async move {
        closing.wait_synced(last).await.expect("synced");
        closing.close().await.expect("closed");
        recover_all(&path, &[]).await.expect("recovered").1
    });
    assert_eq!(recovered, frames.into_iter().chain([more]).collect::<Vec<_>>());
    runtime.shutdown();
}

/// A log whose first file takes every write and refuses to sync: the null device.
fn log_that_cannot_sync(runtime: &Runtime, path: PathBuf) -> Log {
    runtime.block_on(0, move || async move {
        fs::create_dir_all(&path).await.expect("create");
        let null = PathBuf::from("/dev/null");
        let file = File::open(&null, &OpenOptions::new().write(true)).await.expect("open");
        let first = PreparedFile { file, path: null, seq: 0, salt: 1, capacity_bytes: 1 << 30 };
        let cfg = config(&path, 1);
        Log::start(&cfg, 0, FileMaker::new(&cfg, 0), first)
    })
}

/// The known bug that leaves out what the test below needs.
#[test]
fn a_thread_that_leads_and_does_not_sync_is_found_out() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let runtime = runtime();
    let log = log_that_cannot_sync(&runtime, dir.path().join("log"));
    let core = StoppedCore::new(&runtime);
    let end = append(&log, &frame(1, 100));
    mutations::activate(Some("unsynced-led-batch"));
    let waited = log.wait_synced_blocking(end);
    mutations::activate(None);
    assert!(waited.is_ok() && log.synced() == end, "nothing was synced, and nobody noticed");
    drop(core);
    runtime.shutdown();
}

#[test]
fn a_failure_of_a_thread_that_leads_latches() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let runtime = runtime();
    let log = log_that_cannot_sync(&runtime, dir.path().join("log"));
    let core = StoppedCore::new(&runtime);
    let end = append(&log, &frame(1, 100));
    let error = log.wait_synced_blocking(end).expect_err("it cannot be synced");
    let LogWaitError::Failed(failed) = &error else { panic!("{error}") };
    assert!(
        matches!(failed.cause(), StopCause::Io { action: "syncing", .. }) && log.failure().is_some(),
        "{failed}"
    );
    assert_eq!((log.synced().0, log.written()), (0, end));
    assert!(matches!(log.reserve(1), Err(LogError::Failed(_))));
    drop(core);
    let closed = runtime.block_on(0, move || async move { log.close().await });
    assert_eq!(closed.expect_err("failed").to_string(), failed.to_string());
    runtime.shutdown();
}

#[test]
fn threads_and_the_writer_take_turns_over_many_files() {
    const THREADS: u64 = 8;
    const EACH: u64 = 60;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (runtime, path) = (runtime(), dir.path().join("log"));
    let cfg = config(&path, 1);
    let log = runtime.block_on(0, move || async move { Log::create(cfg, 0).await.expect("created") });
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let log = &log;
            scope.spawn(move || {
                for number in 0..EACH {
                    // Some are larger than what is left of most files, which are small.
                    let bytes = if number % 7 == 0 { 5_000 } else { 100 };
                    let end = append(log, &frame(thread * EACH + number, bytes));
                    log.wait_synced_blocking(end).expect("synced");
                    assert!(log.synced() >= end);
                }
            });
        }
    });
    let seen = runtime.block_on(0, move || async move {
        log.close().await.expect("closed");
        recover_all(&path, &[]).await.expect("recovered").1
    });
    let mut numbers: Vec<u64> = seen.iter().map(|seen| seen.header.term - 1).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..THREADS * EACH).collect::<Vec<_>>());
    runtime.shutdown();
}
