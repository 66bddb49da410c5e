//! A process that writes is killed, again and again, on the same directory, and what it was told is compared with what is
//! there. A kill takes no cache with it, so what was called written must be there like what was called synced.
//!
//! The child is this test program, started again with [`CHILD`] in its environment: then the test that is named there
//! opens the directory and writes until it dies. It says in lines what it is about to write and what it was told.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lockgate_engine::{Engine, Slot, Version};

use crate::common::{builder, key};
use crate::disk_images::Dice;

/// The directory that the child writes to, and its seed.
const CHILD: &str = "LOCKGATE_KILLED_CHILD";
const KILLS: usize = 50;
/// Threads of the child. Each has keys of its own.
const WRITERS: usize = 4;
const KEYS: usize = 5;
/// Written together, under the last of a writer's numbers for keys.
const BATCH: usize = 3;
/// Every so manieth write of a key deletes it.
const DELETES: u64 = 9;
/// After so many lines of the child at most it is killed.
const LINES_MAX: usize = 500;

/// What a key has after its write of that number.
fn expected(writer: usize, number: usize, count: u64) -> Option<Vec<u8>> {
    if count.is_multiple_of(DELETES) {
        return None;
    }
    let mut dice = Dice(count << 16 ^ (writer << 8 ^ number) as u64);
    let bytes = if dice.below(40) == 0 { 70_000 } else { dice.below(4_000) };
    let mut value = count.to_le_bytes().to_vec();
    value.extend((0..bytes).map(|_| dice.below(256) as u8));
    Some(value)
}

fn name(writer: usize, number: usize) -> Vec<u8> {
    key(&format!("w{writer}"), number)
}

/// One line, in one piece: a kill divides none.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n#{line}\n").as_bytes()).and_then(|()| out.flush()).expect("somebody listens");
}

/// Writes for ever.
fn write(engine: &Engine, writer: usize, seed: u64) {
    let (mut dice, keys) = (Dice(seed ^ (writer as u64) << 32), engine.keyspace(0));
    let found = |number: usize| keys.get(&name(writer, number)).expect("a read");
    // What a key had last may have been a delete: then its numbers go on from the one before.
    let last = |number| found(number).map_or(0, |value| read_count(value.as_bytes()));
    let mut counts: Vec<u64> = (0..=KEYS).map(|number| last(number).max(seed)).collect();
    loop {
        let number = dice.below(KEYS + 1);
        counts[number] += 1;
        let count = counts[number];
        say(&format!("issued {writer} {number} {count}"));
        let value = expected(writer, number, count);
        let receipt = if number == KEYS {
            let mut batch = engine.batch(Slot::of_key(&name(writer, 0)));
            for part in KEYS..KEYS + BATCH {
                match &value {
                    Some(value) => batch.set(0, name(writer, part), value.clone()),
                    None => batch.delete(0, name(writer, part)),
                };
            }
            batch.commit().expect("taken")
        } else {
            match &value {
                Some(value) => keys.set(&name(writer, number), value).expect("taken"),
                None => keys.delete(&name(writer, number)).expect("taken").1,
            }
        };
        if dice.below(150) == 0 {
            let _ = engine.checkpoint_blocking().expect("a checkpoint");
        }
        match dice.below(4) {
            0 => continue,
            1 => receipt.wait_synced().expect("synced"),
            _ => receipt.wait_written().expect("written"),
        }
        let Version { term, counter } = receipt.version;
        say(&format!("kept {writer} {number} {count} {term} {counter}"));
    }
}

fn read_count(value: &[u8]) -> u64 {
    u64::from_le_bytes(*value.first_chunk().expect("eight bytes at least"))
}

/// What the child does. Without its variable there is nothing to do.
#[test]
fn the_child_writes_until_it_is_killed() {
    let Ok(asked) = std::env::var(CHILD) else { return };
    let (seed, folder) = asked.split_once(':').expect("a seed and a folder");
    let seed = seed.parse().expect("a number");
    let engine = builder(Path::new(folder), 2).log_file_bytes(256 << 10).flush_interval_ms(20).open();
    let engine = engine.expect("it opens");
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let engine = &engine;
            scope.spawn(move || write(engine, writer, seed));
        }
    });
}

/// What was said of a key, over all children.
#[derive(Clone, Debug, Default)]
struct Said {
    kept: u64,
    /// What came after it.
    issued: Vec<u64>,
}

#[derive(Default)]
struct Known {
    keys: BTreeMap<(usize, usize), Said>,
    /// The last version that a writer's slot was said to have.
    versions: BTreeMap<usize, (u64, u64)>,
    acknowledged: u64,
}

impl Known {
    fn hear(&mut self, line: &str) {
        let Some(line) = line.strip_prefix('#') else { return };
        let mut words = line.split(' ');
        let what = words.next().expect("a word");
        let numbers: Vec<u64> = words.map(|word| word.parse().expect("a number")).collect();
        let (writer, number, count) = (numbers[0] as usize, numbers[1] as usize, numbers[2]);
        let said = self.keys.entry((writer, number)).or_default();
        if what == "issued" {
            said.issued.push(count);
            return;
        }
        said.kept = count;
        said.issued.retain(|issued| *issued > count);
        self.acknowledged += 1;
        let version = (numbers[3], numbers[4]);
        let before = self.versions.insert(writer, version).unwrap_or_default();
        // A delete of what is not there writes nothing.
        let rises = before < version || (before == version && count.is_multiple_of(DELETES));
        assert!(rises, "writer {writer}: version {version:?} came after {before:?}");
    }

    /// Every key is as it was after its last write that was kept, or after a later one.
    fn check(&mut self, engine: &Engine) {
        for ((writer, number), said) in &mut self.keys {
            let (writer, number) = (*writer, *number);
            let parts = if number == KEYS { KEYS..KEYS + BATCH } else { number..number + 1 };
            let found: Vec<Option<Vec<u8>>> = parts.map(|part| read(engine, &name(writer, part))).collect();
            let mut candidates = std::iter::once(said.kept).chain(said.issued.iter().copied());
            let place = match &found[0] {
                Some(value) => candidates.find(|count| *count == read_count(value)),
                None => candidates.find(|count| *count == 0 || count.is_multiple_of(DELETES)),
            };
            let counts: Vec<Option<u64>> =
                found.iter().map(|found| found.as_deref().map(read_count)).collect();
            let Some(count) = place else {
                panic!("writer {writer}, key {number}: found {counts:?}, and it was {said:?}");
            };
            let right = if count == 0 { None } else { expected(writer, number, count) };
            let is_right = found.iter().all(|found| *found == right);
            assert!(is_right, "writer {writer}, key {number}: {counts:?} is not what was written as {count}");
            *said = Said { kept: count, issued: Vec::new() };
            let status = engine.slot_status(Slot::of_key(&name(writer, 0)));
            let now = (status.version.term.0, status.version.counter);
            assert!(now >= self.versions.get(&writer).copied().unwrap_or_default(), "writer {writer}");
        }
    }
}

fn read(engine: &Engine, name: &[u8]) -> Option<Vec<u8>> {
    engine.keyspace(0).get(name).expect("a read").map(|value| value.as_bytes().to_vec())
}

fn start(folder: &Path, seed: u64) -> Child {
    let child = std::env::current_exe().expect("this program");
    let mut command = Command::new(child);
    command.args(["kills::the_child_writes_until_it_is_killed", "--exact", "--nocapture"]);
    command
        .env(CHILD, format!("{seed}:{}", folder.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    command.spawn().expect("it starts")
}

#[test]
fn what_was_acknowledged_outlives_fifty_kills() {
    let seed = std::env::var("LOCKGATE_SEED")
        .ok()
        .map_or_else(|| std::process::id().into(), |seed| seed.parse().expect("LOCKGATE_SEED is a number"));
    println!("LOCKGATE_SEED={seed}");
    let (folder, mut dice, mut known) =
        (tempfile::tempdir().expect("a folder"), Dice(seed), Known::default());
    let path = folder.path().join("data");
    for kill in 1..=KILLS {
        // Numbers of writes only rise, also where a delete hides the last one.
        let mut child = start(&path, (kill as u64) << 32);
        let lines = BufReader::new(child.stdout.take().expect("it is piped"));
        let most = 1 + dice.below(LINES_MAX);
        if dice.below(5) == 0 {
            // In the middle of its start, or soon after it.
            std::thread::sleep(Duration::from_micros(dice.below(40_000) as u64));
            child.kill().expect("it is killed");
        }
        let mut heard = 0;
        for line in lines.lines() {
            known.hear(&line.expect("text"));
            heard += 1;
            if heard == most {
                child.kill().expect("it is killed");
            }
        }
        let status = child.wait().expect("it has ended");
        assert_eq!(status.code(), None, "kill {kill}: the child ended by itself, seed {seed}");
        let engine = builder(&path, 1 + dice.below(3)).log_file_bytes(256 << 10).open();
        known.check(&engine.unwrap_or_else(|error| panic!("kill {kill}, seed {seed}: {error}")));
    }
    println!("{} writes were acknowledged", known.acknowledged);
    assert!(known.acknowledged > 1_000, "{} writes were acknowledged", known.acknowledged);
}
