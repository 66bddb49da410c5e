//! What is appended is recovered: over many files and boots, with large frames, after closes and crashes.

use super::*;

#[test]
fn many_files_and_boots() {
    on_both(|dir| async move {
        let mut all = Vec::new();
        let mut known = Vec::new();
        let mut position = 0;
        for boot in 1..=4 {
            let (end, seen) = recover_all(&dir, &known).await.expect("recovered");
            assert_eq!((end.position.0, &seen), (position, &all), "before boot {boot}");
            known = end.ends;
            let log = Log::create(config(&dir, boot), position).await.expect("created");
            for number in 0..60 {
                let frame = frame(boot * 1000 + number, (number as usize * 97) % 3000);
                position = append(&log, &frame).0;
                all.push(frame);
                if number % 7 == 0 {
                    log.wait_written(LogPosition(position)).await.expect("written");
                }
            }
            log.close().await.expect("closed");
            assert_eq!((log.written().0, log.synced().0, log.appended().0), (position, position, position));
        }
        let (end, seen) = recover_all(&dir, &known).await.expect("recovered");
        assert_eq!((end.position.0, end.boot), (position, 4));
        assert!(end.files > 8, "{} files", end.files);
        assert!(end.unused_files.is_empty());
        assert_eq!(seen, all);
        // The same without known ends: the seals and the chains' starts agree.
        assert_eq!(recover_all(&dir, &[]).await.expect("recovered").1, all);
    });
}

#[test]
fn a_frame_larger_than_a_file_gets_one_of_its_own() {
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        let frames: Vec<Seen> = [10, 70_000, 20, 300_000, 1_500_000, 30, 40_000]
            .iter()
            .zip(1..)
            .map(|(len, n)| frame(n, *len))
            .collect();
        for frame in &frames {
            append(&log, frame);
        }
        let end = log.appended();
        log.wait_synced(end).await.expect("synced");
        let image = crash_image(&dir).await;
        let (recovered, seen) = recover_all(&image, &[]).await.expect("recovered");
        assert_eq!(recovered.position, end);
        assert_eq!(seen, frames);
        log.close().await.expect("closed");
        assert_eq!(recover_all(&dir, &[]).await.expect("recovered").1, frames);
    });
}

#[test]
fn boots_that_wrote_nothing_leave_nothing_to_stumble_over() {
    on_both(|dir| async move {
        let (nothing, _) = recover_all(&dir, &[]).await.expect("a log that does not exist");
        assert_eq!(nothing, RecoveredEnd::default());
        let mut known = Vec::new();
        for boot in [1, 3, 4] {
            let log = Log::create(config(&dir, boot), 0).await.expect("created");
            if boot == 3 {
                log.close().await.expect("closed");
            }
            // The other boots end in a crash: the files stay as they are now.
            let image = crash_image(&dir).await;
            let (end, seen) = recover_all(&image, &known).await.expect("recovered");
            assert_eq!((end.position.0, seen.len(), end.boot), (0, 0, boot));
            known = end.ends;
            log.close().await.expect("closed");
        }
        assert_eq!(known, [(1, 0), (3, 0), (4, 0)]);
    });
}

#[test]
fn files_that_a_crash_left_unused_are_removed_on_request() {
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        append_as_batches(&log, &[frame(1, 5000)]).await;
        // The second file is taken into use, so the first spare is ready; the next may be in the making.
        append_as_batches(&log, &[frame(2, 9000)]).await;
        while !fs::exists(&file_path(&dir, 1, 2)).await {
            lockgate_runtime::yield_now().await;
        }
        let image = crash_image(&dir).await;
        log.close().await.expect("closed");
        let (end, seen) = recover_all(&image, &[]).await.expect("recovered");
        assert_eq!(seen.len(), 2);
        assert_eq!(end.unused_files, [file_path(&image, 1, 2)]);
        remove_unused_files(&end).await;
        assert!(!fs::exists(&file_path(&image, 1, 2)).await);
        assert_eq!(recover_all(&image, &end.ends).await.expect("recovered").1.len(), 2);
    });
}

#[test]
fn a_file_that_exists_is_not_overwritten() {
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        let error = Log::create(config(&dir, 1), 0).await.expect_err("the boot's chain exists");
        assert!(error.to_string().contains("core-0.0000000000000001.00000000.log"), "{error}");
        log.close().await.expect("closed");
    });
}

#[test]
fn impossible_configurations_are_refused() {
    on_both(|dir| async move {
        for bad in [
            LogConfig { name: "a/b".into(), ..config(&dir, 1) },
            LogConfig { file_bytes: FILE_BYTES_MIN - 1, ..config(&dir, 1) },
            LogConfig { unwritten_bytes_max: 0, ..config(&dir, 1) },
        ] {
            assert!(matches!(Log::create(bad, 0).await, Err(LogError::Config { .. })));
        }
        assert!(matches!(
            recover(&dir, "a/b", None, &[], |_, _| Ok(())).await,
            Err(RecoverError::BadName { .. })
        ));
    });
}

#[test]
fn the_visitor_can_stop_a_recovery() {
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        append(&log, &frame(1, 10));
        log.close().await.expect("closed");
        let error =
            recover(&dir, NAME, None, &[], |_, _| Err("no such slot".into())).await.expect_err("refused");
        assert!(
            error.to_string().contains("no such slot") && error.to_string().contains("offset 4096"),
            "{error}"
        );
    });
}
