//! A log that is kept from somewhere on: what lies before is not looked at, and the start must be there.

use super::*;

/// A frame and where it begins.
type Placed = (u64, Seen);

/// Boot `boot` appends `count` frames in batches of their own and marks the log before each. Closed in order.
async fn chain(dir: &Path, boot: u64, position: u64, count: u64) -> (Vec<Placed>, Vec<LogStart>) {
    let log = Log::create(config(dir, boot), position).await.expect("created");
    let (mut frames, mut marks) = (Vec::new(), Vec::new());
    for number in 0..count {
        let frame = frame(boot * 1000 + number, 2500);
        marks.push(log.mark());
        frames.push((log.appended().0, frame.clone()));
        append_as_batches(&log, &[frame]).await;
    }
    marks.push(log.mark());
    log.close().await.expect("closed");
    (frames, marks)
}

fn from(frames: &[Placed], position: u64) -> Vec<Seen> {
    frames.iter().filter(|(at, _)| *at >= position).map(|(_, frame)| frame.clone()).collect()
}

async fn refused(dir: &Path, start: LogStart) -> String {
    let error = recover_from(dir, Some(start), &[]).await.expect_err("a wrong start must be refused");
    assert!(matches!(error, RecoverError::Corrupt { .. } | RecoverError::Missing { .. }), "{error}");
    error.to_string()
}

#[test]
fn every_mark_is_a_start() {
    on_both(|dir| async move {
        let (mut frames, mut marks) = chain(&dir, 1, 0, 20).await;
        let end = recover_all(&dir, &[]).await.expect("recovered").0;
        let (more, later_marks) = chain(&dir, 2, end.position.0, 12).await;
        frames.extend(more);
        marks.extend(later_marks);
        let (whole, _) = recover_all(&dir, &end.ends).await.expect("recovered");
        assert!(marks.iter().any(|mark| mark.seq > 2 && mark.position > mark.file_position));
        for known in [&[][..], &end.ends[..], &whole.ends[..]] {
            for mark in &marks {
                let (end, seen) = recover_from(&dir, Some(*mark), known).await.expect("recovered");
                assert_eq!((end.position, end.boot), (whole.position, 2), "{mark:?}");
                assert_eq!(seen, from(&frames, mark.position), "{mark:?}");
                let kept: Vec<_> = whole.ends.iter().filter(|(boot, _)| *boot >= mark.boot).collect();
                assert_eq!(end.ends.iter().collect::<Vec<_>>(), kept, "{mark:?}");
                let first = file_path(&dir, mark.boot, mark.seq);
                assert!(end.obsolete_files.iter().all(|file| *file < first), "{mark:?}");
                let obsolete = end.obsolete_files.len();
                assert!(mark.boot == 2 || obsolete == mark.seq as usize, "{obsolete} before {mark:?}");
            }
        }
        // What is obsolete may go, in any order and number.
        for mark in marks {
            let (end, seen) = recover_from(&dir, Some(mark), &whole.ends).await.expect("recovered");
            for file in end.obsolete_files.iter().rev().step_by(2) {
                fs::remove_file(file).await.expect("removed");
            }
            let (again, same) = recover_from(&dir, Some(mark), &whole.ends).await.expect("recovered");
            assert_eq!((again.position, &same), (end.position, &seen));
            remove_obsolete_files(&again.obsolete_files).await;
            let (again, same) = recover_from(&dir, Some(mark), &whole.ends).await.expect("recovered");
            assert_eq!((again.obsolete_files.len(), again.position, same), (0, end.position, seen));
        }
    });
}

#[test]
fn files_before_the_start_are_not_looked_at() {
    on_both(|dir| async move {
        let (frames, marks) = chain(&dir, 1, 0, 20).await;
        let start = marks[15];
        assert!(start.seq > 2);
        overwrite(&file_path(&dir, 1, 0), vec![0xff; 100]).await;
        // As a recycling leaves it that was cut short: the header of another place.
        let other = fs::read(&file_path(&dir, 1, start.seq)).await.expect("read");
        overwrite(&file_path(&dir, 1, 1), other).await;
        let (_, seen) = recover_from(&dir, Some(start), &[]).await.expect("recovered");
        assert_eq!(seen, from(&frames, start.position));
        assert!(refused(&dir, marks[0]).await.contains("byte offset 0"));
        let second = marks.iter().find(|mark| mark.seq == 1).expect("a second file");
        assert!(refused(&dir, *second).await.contains("another log or place"));
    });
}

#[test]
fn the_first_file_that_is_kept_must_be_there() {
    on_both(|dir| async move {
        let (_, marks) = chain(&dir, 1, 0, 20).await;
        let start = marks[12];
        let path = file_path(&dir, 1, start.seq);
        let whole = fs::read(&path).await.expect("read");
        fs::remove_file(&path).await.expect("removed");
        let error = recover_from(&dir, Some(start), &[]).await.expect_err("missing");
        assert!(matches!(&error, RecoverError::Missing { file, .. } if *file == path), "{error}");
        overwrite(&path, vec![0; whole.len()]).await;
        let error = recover_from(&dir, Some(start), &[]).await.expect_err("no header");
        assert!(matches!(&error, RecoverError::Corrupt { file, offset: 0, .. } if *file == path), "{error}");
        overwrite(&path, whole).await;
        recover_from(&dir, Some(start), &[]).await.expect("whole again");
        // All files of the boot, with and without the directory.
        for file in fs::read_dir(&dir).await.expect("listed") {
            fs::remove_file(&dir.join(file)).await.expect("removed");
        }
        assert!(refused(&dir, start).await.contains("is missing"));
        fs::remove_dir_all(&dir).await.expect("removed");
        assert!(refused(&dir, start).await.contains("is missing"));
    });
}

#[test]
fn wrong_positions_are_refused() {
    on_both(|dir| async move {
        let (_, marks) = chain(&dir, 1, 0, 20).await;
        let (start, end) = (marks[12], marks[20].position);
        assert!(start.position > start.file_position && start.file_position > 0);
        let wrong = [
            LogStart { file_position: start.file_position - 1, ..start },
            LogStart { file_position: start.file_position + 1, ..start },
            LogStart { file_position: end, position: end, ..start },
            LogStart { file_position: end + 1000, position: end + 1000, ..start },
            LogStart { position: start.position + 1, ..start },
            LogStart { position: start.file_position - 1, ..start },
            LogStart { position: end + 1, ..start },
            LogStart { seq: start.seq - 1, ..start },
            LogStart { seq: 0, file_position: 7, position: 7, ..start },
            LogStart { seq: 100, ..start },
            LogStart { boot: 2, ..start },
        ];
        for start in wrong {
            assert!(refused(&dir, start).await.contains("Nothing was changed"), "{start:?}");
        }
        // The log does not reach its start.
        let whole = recover_all(&dir, &[]).await.expect("recovered").0;
        let cut = whole.position.0 - 2532;
        let error = recover_from(&dir, Some(marks[20]), &[(1, cut)]).await.expect_err("too short");
        assert!(error.to_string().contains("a checkpoint says"), "{error}");
    });
}

#[test]
fn a_log_that_was_not_in_use_has_no_files() {
    on_both(|dir| async move {
        let unused = LogStart::unused(3, 500);
        for known in [&[][..], &[(1, 500)], &[(1, 400), (3, 500)]] {
            let (end, seen) = recover_from(&dir, Some(unused), known).await.expect("recovered");
            assert_eq!((end.position.0, end.boot, seen.len(), end.files), (500, 3, 0, 0));
        }
        recover_from(&dir, Some(unused), &[(3, 501)]).await.expect_err("it was in use later");
        // It is in use again from a later boot on, and older boots' files are still there.
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        append_as_batches(&log, &[frame(9, 468)]).await;
        log.close().await.expect("closed");
        let (frames, marks) = chain(&dir, 4, 500, 6).await;
        let (end, seen) = recover_from(&dir, Some(unused), &[(1, 500)]).await.expect("recovered");
        assert_eq!((seen, end.boot), (from(&frames, 0), 4));
        assert_eq!(end.obsolete_files, [file_path(&dir, 1, 0)]);
        assert_eq!(marks[0], LogStart { boot: 4, ..LogStart::unused(4, 500) });
        let elsewhere = LogStart::unused(3, 499);
        let error = recover_from(&dir, Some(elsewhere), &[]).await.expect_err("it does not fit");
        assert!(error.to_string().contains("its boot begins at position 500"), "{error}");
    });
}

#[test]
fn a_mark_in_an_empty_file_is_a_start_after_a_crash() {
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 7), 40).await.expect("created");
        let start = log.mark();
        assert_eq!(start, LogStart::unused(7, 40));
        let image = crash_image(&dir).await;
        let (end, seen) = recover_from(&image, Some(start), &[(6, 40)]).await.expect("recovered");
        assert_eq!((end.position.0, end.ends, seen.len()), (40, vec![(7, 40)], 0));
        append_as_batches(&log, &[frame(1, 10)]).await;
        log.wait_synced(log.appended()).await.expect("synced");
        let image = crash_image(&dir).await;
        let (_, seen) = recover_from(&image, Some(start), &[(6, 40)]).await.expect("recovered");
        assert_eq!(seen, [frame(1, 10)]);
        log.close().await.expect("closed");
    });
}
