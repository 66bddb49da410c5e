//! The first error is final: waiters fail, nothing more is taken, and the error names the file.

use super::super::files::{FileMaker, PreparedFile};
use super::super::outside::File;
use super::*;

/// A log whose first file is `path`, opened as told.
async fn log_on(path: &Path, options: OpenOptions, dir: &Path) -> Log {
    fs::create_dir_all(dir).await.expect("create");
    let file = File::open(path, &options).await.expect("open");
    let first = PreparedFile { file, path: path.to_path_buf(), seq: 0, salt: 1, capacity_bytes: 1 << 30 };
    let cfg = config(dir, 1);
    Log::start(&cfg, 100, FileMaker::new(&cfg, 100), first)
}

fn assert_latched(log: &Log, failed: &LogFailed, action: &str, file: &Path) {
    let StopCause::Io { action: found, file: named, .. } = failed.cause() else { panic!("{failed}") };
    assert_eq!((*found, named.as_path()), (action, file), "{failed}");
    assert!(failed.to_string().contains(file.to_str().expect("text")), "{failed}");
    assert_eq!(log.failure().expect("latched").to_string(), failed.to_string());
    let error = log.reserve(1).expect_err("no room in a failed log");
    assert!(matches!(&error, LogError::Failed(again) if again.to_string() == failed.to_string()), "{error}");
    assert!(!error.is_retryable());
}

#[test]
fn a_failed_write_latches() {
    on_core(|dir| async move {
        let path = dir.with_extension("readonly");
        overwrite(&path, vec![0; 8192]).await;
        let log = log_on(&path, OpenOptions::new().read(true), &dir).await;
        let early = log.reserve(10).expect("room");
        let end = append(&log, &frame(1, 100));
        let (written, synced) = (log.wait_written(end).await, log.wait_synced(end).await);
        let failed = written.expect_err("the file cannot be written");
        assert_eq!(synced.expect_err("nor synced").to_string(), failed.to_string());
        assert_latched(&log, &failed, "writing", &path);
        assert!(failed.to_string().contains("byte offset 4096 (log position 100)"), "{failed}");
        // A reservation from before does not help, and a position that was reached stays reached.
        let late = log.append(early, frame(2, 10).header, &[b"0123456789"]).expect_err("latched");
        assert_eq!(late.to_string(), failed.to_string());
        log.wait_synced(LogPosition(100)).await.expect("reached before");
        assert_eq!((log.synced().0, log.written().0, log.appended()), (100, 100, end));
        assert_eq!(log.close().await.expect_err("failed").to_string(), failed.to_string());
    });
}

#[test]
fn a_failed_sync_latches() {
    on_core(|dir| async move {
        // The null device takes every write and refuses to sync.
        let path = Path::new("/dev/null");
        let log = log_on(path, OpenOptions::new().write(true), &dir).await;
        let end = append(&log, &frame(1, 100));
        log.wait_written(end).await.expect("written");
        let failed = log.wait_synced(end).await.expect_err("cannot be synced");
        assert_latched(&log, &failed, "syncing", path);
        assert_eq!((log.synced().0, log.written()), (100, end));
    });
}

#[test]
fn a_file_that_cannot_be_prepared_latches() {
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        // Something stands where a later file of the chain must be created.
        overwrite(&file_path(&dir, 1, 3), vec![]).await;
        let mut failed = None;
        for number in 0..20 {
            let Ok(reservation) = log.reserve(9000) else { break };
            let Ok(end) = log.append(reservation, frame(number, 0).header, &[&[7; 9000]]) else { break };
            if let Err(cause) = log.wait_synced(end).await {
                failed = Some(cause);
                break;
            }
        }
        let failed = failed.or_else(|| log.failure()).expect("the log cannot go on");
        assert_latched(&log, &failed, "creating", &file_path(&dir, 1, 3));
        assert!(log.synced() <= log.written() && log.written() <= log.appended());
    });
}

#[test]
fn waiters_fail_when_the_core_is_shut_down() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let runtime = Runtime::builder().cores(1).pin(false).build().expect("a runtime");
    let cfg = config(&dir.path().join("log"), 1);
    let log = runtime.block_on(0, move || async move { Log::create(cfg, 0).await.expect("created") });
    let waiter = std::thread::spawn({
        let log = log.clone();
        move || log.wait_written_blocking(LogPosition(1))
    });
    runtime.shutdown();
    let error = waiter.join().expect("no panic").expect_err("nobody writes any more");
    assert!(
        matches!(&error, LogWaitError::Failed(failed) if matches!(failed.cause(), StopCause::CoreStopped { .. }))
    );
    assert!(log.reserve(1).is_err());
}

#[test]
fn a_closed_log_says_so() {
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        let held = log.reserve(1).expect("room");
        let end = append(&log, &frame(1, 10));
        log.close().await.expect("closed");
        log.close().await.expect("closed before");
        log.wait_synced(end).await.expect("synced by the close");
        assert!(log.failure().is_none());
        assert!(log.append(held, frame(2, 1).header, &[b"x"]).expect_err("closed").is_closed());
        assert!(matches!(log.reserve(1), Err(LogError::Failed(cause)) if cause.is_closed()));
        assert!(log.wait_written(LogPosition(end.0 + 1)).await.expect_err("never").is_closed());
        assert!(!fs::exists(&file_path(&dir, 1, 1)).await, "the spare file is removed");
    });
}

#[test]
fn dropping_the_last_handle_closes() {
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        append(&log, &frame(1, 10));
        drop(log);
        while batches(&dir, 1, 0).await.len() < 2 || fs::exists(&file_path(&dir, 1, 1)).await {
            lockgate_runtime::yield_now().await;
        }
        assert_eq!(recover_all(&dir, &[]).await.expect("recovered").1.len(), 1);
    });
}
