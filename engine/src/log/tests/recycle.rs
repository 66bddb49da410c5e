//! Log space that is given back is used again, and what it held before is never taken for the log.

use lockgate_runtime::sim::{Control, PowerLoss};
use lockgate_runtime::sync::{Arc, Mutex};
use lockgate_runtime::{mutations, random_u64, sleep};

use super::super::format::SECTOR_BYTES;
use super::*;

/// Appends frames until the log is in another file. Returns them.
async fn fill_file(log: &Log, next: &mut u64) -> Vec<Seen> {
    let (seq, mut frames) = (log.mark().seq, Vec::new());
    while log.mark().seq == seq {
        frames.push(frame(*next, 2500));
        *next += 1;
        append_as_batches(log, &frames[frames.len() - 1..]).await;
    }
    frames
}

async fn files(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).await.expect("listed")
}

/// A log in a file that was used before, with a start at that file; the frames from the start on, all but the last one
/// synced.
async fn recycled_log(dir: &Path) -> (Log, LogStart, Vec<Seen>) {
    let log = Log::create(config(dir, 1), 0).await.expect("created");
    let (mut next, mut given_back) = (0, GivenBack::default());
    // Files 0 and 1 are given back while 2 is written and 3 is ready, so that 4 is made of one of them.
    while log.mark().seq < 2 {
        fill_file(&log, &mut next).await;
    }
    while given_back.recycled_files < 2 {
        log.wait_synced(log.appended()).await.expect("synced");
        given_back.recycled_files += log.give_back(log.mark()).await.recycled_files;
    }
    while log.mark().seq < 4 {
        fill_file(&log, &mut next).await;
    }
    assert!(!files(dir).await.contains(&file_name(NAME, 1, 0)), "the oldest file has a new name");
    log.wait_synced(log.appended()).await.expect("synced");
    let start = log.mark();
    let frames: Vec<Seen> = (next..next + 2).map(|number| frame(number, 700)).collect();
    append_as_batches(&log, &frames[..1]).await;
    log.wait_synced(log.appended()).await.expect("synced");
    append_as_batches(&log, &frames[1..]).await;
    (log, start, frames)
}

#[test]
fn files_are_used_again() {
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        let (mut next, mut sums) = (0, GivenBack::default());
        for round in 0..12 {
            for _ in 0..=round % 7 {
                fill_file(&log, &mut next).await;
            }
            let start = log.mark();
            log.wait_synced(LogPosition(start.position)).await.expect("synced");
            let given_back = log.give_back(start).await;
            sums.recycled_files += given_back.recycled_files;
            sums.removed_files += given_back.removed_files;
            let left = files(&dir).await.len();
            assert!(left <= RECYCLED_FILES_MAX + 3, "{left} files");
            assert_eq!(log.give_back(start).await, GivenBack::default(), "nothing more");
            let more = fill_file(&log, &mut next).await;
            // In place: an image would miss a file that gets its new name in between.
            let (end, seen) = recover_from(&dir, Some(start), &[]).await.expect("recovered");
            assert_eq!((end.position, &seen[..]), (log.written(), &more[..]), "round {round}");
        }
        assert!(sums.recycled_files >= 12 && sums.removed_files >= 3, "{sums:?}");
        log.close().await.expect("closed");
    });
}

#[test]
fn files_of_older_boots_and_of_other_sizes_are_removed() {
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        append_as_batches(&log, &[frame(1, 100)]).await;
        log.close().await.expect("closed");
        let log = Log::create(config(&dir, 2), log.appended().0).await.expect("created");
        append_as_batches(&log, &[frame(2, 100), frame(3, 50_000)]).await;
        let mut next = 4;
        fill_file(&log, &mut next).await;
        log.wait_synced(log.appended()).await.expect("synced");
        let older = LogStart { seq: 0, file_position: 132, position: 132, ..log.mark() };
        assert_eq!(log.give_back(older).await, GivenBack { recycled_files: 0, removed_files: 1 });
        let start = log.mark();
        let given_back = log.give_back(start).await;
        assert_eq!((given_back.recycled_files, given_back.removed_files), (start.seq as usize, 0));
        // Of those that wait, the oversized one turns out not to be a whole file.
        for _ in 0..6 {
            fill_file(&log, &mut next).await;
        }
        log.close().await.expect("closed");
        for file in files(&dir).await {
            let len = fs::read(&dir.join(&file)).await.expect("read").len() as u64;
            assert_eq!(len, FILE_BYTES_MIN, "{file}");
        }
        let (_, seen) = recover_from(&dir, Some(start), &[]).await.expect("recovered");
        assert_eq!(seen.len() as u64, next - 5);
    });
}

#[test]
fn a_torn_tail_over_older_batches_is_cut() {
    on_both(|dir| async move {
        let (log, start, frames) = recycled_log(&dir).await;
        let image = crash_image(&dir).await;
        let path = file_path(&image, 1, start.seq);
        let (offset, header) = *batches(&image, 1, start.seq).await.last().expect("batches");
        let stale = {
            let bytes = fs::read(&path).await.expect("read");
            bytes[header_end(offset, &header)..].iter().any(|byte| *byte != 0)
        };
        assert!(stale, "older batches lie behind the end");
        let (end, seen) = recover_from(&image, Some(start), &[]).await.expect("recovered");
        assert_eq!((end.position, &seen), (log.appended(), &frames));
        // Of the last batch, the older content may be what is left, of all of it or of its first or last sector.
        let old = fs::read(&file_path(&image, 1, start.seq - 1)).await.expect("read");
        let at = offset as usize;
        let sectors = [at..at + SECTOR_BYTES, at + SECTOR_BYTES..at + 2 * SECTOR_BYTES];
        for lost in [sectors[0].clone(), sectors[1].clone(), at..at + 2 * SECTOR_BYTES] {
            let whole = fs::read(&path).await.expect("read");
            edit(&path, |bytes| bytes[lost.clone()].copy_from_slice(&old[lost.clone()])).await;
            let (end, seen) = recover_from(&image, Some(start), &[]).await.expect("recovered");
            assert_eq!((end.position.0, &seen[..]), (header.position, &frames[..1]), "{lost:?}");
            overwrite(&path, whole).await;
        }
        log.close().await.expect("closed");
    });
}

fn header_end(offset: u64, header: &BatchHeader) -> usize {
    next_offset(offset, header) as usize
}

#[test]
fn damage_over_older_batches_is_refused() {
    on_both(|dir| async move {
        let (log, start, _) = recycled_log(&dir).await;
        let image = crash_image(&dir).await;
        let path = file_path(&image, 1, start.seq);
        let (offset, _) = batches(&image, 1, start.seq).await[1];
        edit(&path, |bytes| bytes[offset as usize + 100] ^= 1).await;
        let error = recover_from(&image, Some(start), &[]).await.expect_err("damaged");
        assert!(
            matches!(&error, RecoverError::Corrupt { file, offset: at, .. } if *file == path && *at == offset),
            "{error}"
        );
        log.close().await.expect("closed");
    });
}

/// What survives a life of the simulated machine, beside its disk.
#[derive(Default)]
struct World {
    /// Frames before this number were synced.
    synced: u64,
    recycled: usize,
    opens: usize,
    problem: Option<String>,
}

/// What a boot knows of the log, as the meta file and a checkpoint's manifest have it.
#[derive(Default)]
struct Known {
    boot: u64,
    ends: Vec<(u64, u64)>,
    start: Option<LogStart>,
    /// Number of the first frame from the start on.
    first: u64,
}

impl Known {
    async fn load() -> Known {
        if !fs::exists(Path::new("/known")).await {
            return Known::default();
        }
        let bytes = fs::read(Path::new("/known")).await.expect("read");
        let mut words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8")));
        let mut word = || words.next().expect("a word");
        let (boot, first) = (word(), word());
        let start = LogStart { boot: word(), seq: word() as u32, file_position: word(), position: word() };
        let ends = (0..word()).map(|_| (word(), word())).collect();
        Known { boot, ends, start: (start.boot > 0).then_some(start), first }
    }

    async fn save(&self) {
        let start = self.start.unwrap_or(LogStart::unused(0, 0));
        let mut words = vec![self.boot, self.first, start.boot, u64::from(start.seq)];
        words.extend([start.file_position, start.position, self.ends.len() as u64]);
        words.extend(self.ends.iter().flat_map(|(boot, end)| [*boot, *end]));
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        fs::write_atomic(Path::new("/known"), bytes).await.expect("saved");
    }
}

/// Opens the log, or says what is wrong with it. Returns the number of the next frame.
async fn open(known: &mut Known, synced: u64) -> Result<(Log, u64), String> {
    let dir = Path::new("/srv/log");
    let recovered = recover_from(dir, known.start, &known.ends).await;
    let (end, seen) = recovered.map_err(|error| error.to_string())?;
    let next = known.first + seen.len() as u64;
    if seen.iter().zip(known.first..).any(|(seen, number)| seen.header != frame(number, 0).header) {
        return Err("frames that are not those that were appended".into());
    }
    if next < synced {
        return Err(format!("{synced} frames were synced, and the log ends after {next}"));
    }
    known.boot += 1;
    known.ends = end.ends.clone();
    known.save().await;
    remove_unused_files(&end).await;
    remove_obsolete_files(&end.obsolete_files).await;
    let log = Log::create(config(dir, known.boot), end.position.0).await.expect("created");
    Ok((log, next))
}

async fn live(world: Arc<Mutex<World>>) {
    let mut known = Known::load().await;
    let synced = world.lock().synced;
    let (log, mut next) = match open(&mut known, synced).await {
        Ok(opened) => opened,
        Err(problem) => {
            world.lock().problem = Some(problem);
            return;
        }
    };
    world.lock().opens += 1;
    loop {
        let end = append(&log, &frame(next, (random_u64() % 6000) as usize));
        next += 1;
        match random_u64() % 8 {
            0 => log.wait_written(end).await.expect("written"),
            1 | 2 => {
                log.wait_synced(end).await.expect("synced");
                world.lock().synced = next;
            }
            3 => {
                let start = log.mark();
                log.wait_synced(end).await.expect("synced");
                world.lock().synced = next;
                (known.start, known.first) = (Some(start), next);
                known.save().await;
                world.lock().recycled += log.give_back(start).await.recycled_files;
            }
            _ => {}
        }
    }
}

async fn lives(control: Control, world: Arc<Mutex<World>>) {
    for _ in 0..8 {
        let runtime = control.start("a", 1);
        let of = world.clone();
        runtime.spawn_on(0, move || live(of));
        sleep(Duration::from_micros(random_u64() % 40_000)).await;
        if world.lock().problem.is_some() {
            return;
        }
        match random_u64() % 4 {
            0 => control.kill("a"),
            1 => control.cut_power("a", PowerLoss::All),
            _ => control.cut_power("a", PowerLoss::Seeded),
        }
    }
}

fn lived(seed: u64) -> World {
    let sim = Sim::new(seed);
    let world = Arc::new(Mutex::new(World::default()));
    sim.run_until(lives(sim.control(), world.clone()));
    std::mem::take(&mut *world.lock())
}

#[test]
fn every_life_finds_what_was_synced() {
    let (mut opens, mut recycled) = (0, 0);
    for seed in 0..150 {
        let world = lived(seed);
        assert_eq!(world.problem, None, "seed {seed}");
        opens += world.opens;
        recycled += world.recycled;
    }
    assert!(opens > 500 && recycled > 500, "{opens} opens, {recycled} files used again");
}

#[test]
fn every_sync_is_needed() {
    for bug in [
        "unsynced-log-batch",
        "unsynced-log-file",
        "unsynced-log-name",
        "unsynced-recycled-header",
        "unsynced-recycled-name",
        "unsynced-recovered-end",
        "unsynced-directory",
    ] {
        mutations::activate(Some(bug));
        let found = (0..400).find_map(|seed| lived(seed).problem);
        mutations::activate(None);
        assert!(found.is_some(), "{bug} is not found");
    }
}
