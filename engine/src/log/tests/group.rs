//! Groups, bounds and time: many writers share a sync, the queue is bounded, and nothing stays unsynced for long.

use std::cell::Cell;
use std::rc::Rc;

use super::super::format::FRAME_HEADER_BYTES;
use super::*;

#[test]
fn writers_share_batches_and_syncs() {
    const WRITERS: u64 = 64;
    const ROUNDS: u64 = 5;
    on_both(|dir| async move {
        let log =
            Log::create(LogConfig { file_bytes: 1 << 20, ..config(&dir, 1) }, 0).await.expect("created");
        let left = Rc::new(Cell::new(WRITERS));
        let done = lockgate_runtime::Event::new();
        for writer in 0..WRITERS {
            let (log, left, done) = (log.clone(), left.clone(), done.clone());
            lockgate_runtime::spawn(async move {
                for round in 0..ROUNDS {
                    let end = append(&log, &frame(writer * ROUNDS + round, 100));
                    log.wait_synced(end).await.expect("synced");
                    assert!(log.synced() >= end);
                }
                left.set(left.get() - 1);
                done.notify_all();
            });
        }
        while left.get() > 0 {
            let changed = done.listen();
            if left.get() > 0 {
                changed.await;
            }
        }
        log.close().await.expect("closed");
        let batches = batches(&dir, 1, 0).await;
        let frames: u64 = batches.iter().map(|(_, header)| u64::from(header.frames)).sum();
        assert_eq!(frames, WRITERS * ROUNDS);
        assert!(batches.len() as u64 <= 4 * ROUNDS, "{} batches for {ROUNDS} rounds", batches.len());
    });
}

#[test]
fn threads_append_and_wait() {
    const THREADS: u64 = 4;
    const FRAMES: u64 = 200;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("log");
    let runtime = Runtime::builder().cores(1).pin(false).build().expect("a runtime");
    let cfg = LogConfig { unwritten_bytes_max: 8 << 10, ..config(&path, 1) };
    let log = runtime.block_on(0, move || async move { Log::create(cfg, 0).await.expect("created") });
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let log = &log;
            scope.spawn(move || {
                for number in 0..FRAMES {
                    let frame = Seen {
                        header: FrameHeader { slot: thread as u16, ..frame(number, 0).header },
                        ..frame(number, 90)
                    };
                    let reservation = loop {
                        match log.reserve(frame.payload.len()) {
                            Ok(reservation) => break reservation,
                            Err(error) if error.is_retryable() => {
                                log.wait_written_blocking(log.appended()).expect("written");
                            }
                            Err(error) => panic!("{error}"),
                        }
                    };
                    let end = log.append(reservation, frame.header, &[&frame.payload]).expect("appended");
                    if number % 50 == 0 {
                        log.wait_synced_blocking(end).expect("synced");
                        assert!(log.synced() >= end);
                    }
                }
            });
        }
    });
    runtime.block_on(0, move || async move {
        log.close().await.expect("closed");
        assert_eq!(log.shared().outstanding(), 0);
        let (_, seen) = recover_all(&path, &[]).await.expect("recovered");
        assert_eq!(seen.len() as u64, THREADS * FRAMES);
        for thread in 0..THREADS as u16 {
            let of_thread: Vec<u64> = seen
                .iter()
                .filter(|seen| seen.header.slot == thread)
                .map(|seen| seen.header.term - 1)
                .collect();
            assert_eq!(of_thread, (0..FRAMES).collect::<Vec<_>>());
        }
    });
    runtime.shutdown();
}

#[test]
fn the_queue_is_bounded_and_one_large_frame_is_let_in_alone() {
    on_both(|dir| async move {
        let bound = 1000;
        let log = Log::create(LogConfig { unwritten_bytes_max: bound, ..config(&dir, 1) }, 0)
            .await
            .expect("created");
        // Nothing waits: a frame beyond the bound is let in, and keeps the others out.
        let large = log.reserve(5000).expect("alone");
        let error = log.reserve(0).expect_err("behind");
        assert!(error.is_retryable() && error.to_string().contains("core-0"), "{error}");
        drop(large);
        assert_eq!(log.shared().outstanding(), 0);
        // Small frames up to the bound, exactly.
        let half = log.reserve(500 - FRAME_HEADER_BYTES).expect("room");
        let other_half = log.reserve(500 - FRAME_HEADER_BYTES).expect("room");
        assert!(matches!(
            log.reserve(0),
            Err(LogError::Behind { unwritten_bytes: 1000, bound_bytes: 1000, .. })
        ));
        drop(half);
        // What an append does not use is given back at once; the rest when it is written.
        let end = log.append(other_half, frame(1, 0).header, &[&[1; 100]]).expect("appended");
        assert_eq!(log.shared().outstanding(), (100 + FRAME_HEADER_BYTES) as u64);
        assert!(log.reserve(5000).is_err());
        log.wait_written(end).await.expect("written");
        assert_eq!(log.shared().outstanding(), 0);
        drop(log.reserve(5000).expect("empty again"));
        assert!(matches!(log.reserve(usize::MAX), Err(LogError::FrameTooLong { .. })));
        log.close().await.expect("closed");
    });
}

#[test]
fn what_is_written_is_synced_after_the_flush_interval() {
    in_simulation(|dir| async move {
        let interval = Duration::from_millis(250);
        let log =
            Log::create(LogConfig { flush_interval: interval, ..config(&dir, 1) }, 0).await.expect("created");
        let end = append(&log, &frame(1, 10));
        log.wait_written(end).await.expect("written");
        let written_at_ns = lockgate_runtime::now_ns();
        assert!(log.synced() < end);
        // Waits without asking.
        log.shared().synced.wait_for(end.0).await.expect("synced");
        let waited = Duration::from_nanos(lockgate_runtime::now_ns() - written_at_ns);
        assert!(waited >= interval / 2 && waited <= interval * 2, "{waited:?}");
        log.close().await.expect("closed");
    });
}

#[test]
fn buffers_give_their_memory_back_a_while_after_a_burst() {
    in_simulation(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        let burst = async || {
            (0..40).for_each(|_| _ = append(&log, &frame(1, 40_000)));
            log.wait_written(log.appended()).await.expect("written");
        };
        // What comes in between, and is short, does not put it off.
        let pause = Duration::from_millis(300);
        for pauses in [3, 3, 4] {
            burst().await;
            assert!(log.shared().filled_spare() > 0);
            for _ in 0..pauses {
                lockgate_runtime::sleep(pause).await;
                let end = append(&log, &frame(1, 10));
                log.wait_written(end).await.expect("written");
            }
            let is_over = pause * pauses > Duration::from_secs(1);
            assert_eq!(log.shared().filled_spare() == 0, is_over, "{pauses} times {pause:?} after a burst");
        }
        burst().await;
        log.close().await.expect("closed");
    });
}

#[test]
fn every_group_is_synced_when_so_configured() {
    on_both(|dir| async move {
        let log =
            Log::create(LogConfig { sync_every_batch: true, ..config(&dir, 1) }, 0).await.expect("created");
        let end = append(&log, &frame(1, 10));
        log.shared().synced.wait_for(end.0).await.expect("synced");
        log.close().await.expect("closed");
    });
}

#[test]
fn blocking_waits_are_refused_on_a_core() {
    on_core(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        let end = append(&log, &frame(1, 10));
        assert!(matches!(log.wait_synced_blocking(end), Err(LogWaitError::OnCoreThread)));
        log.close().await.expect("closed");
    });
}
