//! Every variant of every error that the engine's callers get, provoked on a real engine: what nobody can get, nobody has
//! to handle. A new variant does not compile here until it has a name, and fails here until it is provoked.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::common::{
    FIRST, builder, clustered, copy_slot, import, key, own, slot_of, standalone, version, with_a_floor,
};
use lockgate_engine::log::{FrameHeader, FrameKind, RecoverError};
use lockgate_engine::record::{NewRecord, encode};
use lockgate_engine::{
    ApplyError, BATCH_BYTES_MAX, BATCH_RECORDS_MAX, BatchError, Engine, FRAME_DATA, FRAME_OPEN, FRAME_STABLE,
    FRAME_TERM, FRAME_TRUNCATE, Gate, Generation, OpError, OpenError, RangeHeader, ReplayError, ScanCursor,
    SlotError, SubscribeError, Term, VALUE_BYTES_MAX, WaitError,
};
use lockgate_runtime::sim::{DiskFaults, Sim};

/// An error type whose variants have names.
trait Named: std::error::Error + Sized {
    const NAMES: &'static [&'static str];

    fn name(&self) -> &'static str;
}

/// The `match` has no wildcard: a variant that is not listed does not compile.
macro_rules! named {
    ($($of:ident: $($variant:ident)*;)*) => {
        $(impl Named for $of {
            const NAMES: &'static [&'static str] = &[$(stringify!($variant)),*];

            fn name(&self) -> &'static str {
                match self {
                    $($of::$variant { .. } => stringify!($variant)),*
                }
            }
        })*
    };
}

named! {
    OpError: Frozen NotOwned LogBehind DiskFull OutOfMemory KeyTooLong ValueTooLong NotAnInteger Overflow ForeignCursor LogFailed;
    BatchError: ForeignKey TooManyRecords TooLong Op;
    SlotError: Stale NotOpen WrongGate TermTooLow BelowFloor OutOfMemory Log;
    ApplyError: NotTaking Record ForeignKey OutOfOrder BadBase BadLength TermTooLow Diverged OutOfMemory Log;
    SubscribeError: NotHere Diverged BelowFloor Gaps;
    WaitError: LogFailed OnCoreThread;
    OpenError: Config Runtime Io Reserve Meta Checkpoint Recover Log;
    ReplayError: UnknownKind NoSuchSlot Range BadTerm BadTruncation BadStable Truncation NotEmpty OutOfMemory;
}

/// All variants but `not_yet` were provoked, and those were not; each says something.
fn assert_all<E: Named>(provoked: &[E], not_yet: &[&str]) {
    for error in provoked {
        let text = error.to_string();
        assert!(text.len() > 15, "{}: {text:?}", error.name());
    }
    assert_names::<E>(provoked.iter().map(Named::name).collect(), not_yet);
}

fn assert_names<E: Named>(provoked: BTreeSet<&str>, not_yet: &[&str]) {
    let all: BTreeSet<&str> = E::NAMES.iter().copied().collect();
    assert!(not_yet.iter().all(|name| all.contains(name)), "what is excepted exists");
    let expected: BTreeSet<&str> = all.into_iter().filter(|name| !not_yet.contains(name)).collect();
    assert_eq!(provoked, expected, "left: provoked; right: all that should be");
}

/// An engine of one core whose log fails soon: something stands where its fourth file must be created.
fn with_a_failing_log(folder: &Path) -> Engine {
    let engine = builder(folder, 1).log_file_bytes(16 << 10).open().unwrap();
    let in_the_way = format!("core-0.{:016x}.{:08x}.log", engine.boot().number, 3);
    std::fs::write(engine.log_dir().join(in_the_way), b"").unwrap();
    engine
}

/// Writes until a write is refused.
fn refusal(engine: &Engine, tag: &str) -> OpError {
    let keys = engine.keyspace(0);
    (0..).find_map(|number| keys.set(&key(tag, number), b"").err()).unwrap()
}

const LOG_BYTES_MAX: usize = 64 << 10;

/// An engine whose log takes little, with a reservation of all of that.
macro_rules! full_log {
    ($engine:ident, $folder:ident) => {
        let $folder = tempfile::tempdir().unwrap();
        let $engine =
            builder($folder.path(), 1).clustered(true).log_unwritten_bytes_max(LOG_BYTES_MAX as u64);
        let $engine = $engine.open().unwrap();
        own(&$engine, slot_of("x"), FIRST, 1);
        import(&$engine, slot_of("y"), FIRST);
        lockgate_runtime::block_on_foreign($engine.wait_log_room(slot_of("x"))).unwrap().unwrap();
        // A frame's header is reserved with its payload.
        let _room = $engine.log(0).reserve(LOG_BYTES_MAX - 32).unwrap();
    };
}

/// An engine whose memory is full, mostly of a slot that is owned, with another one that imports.
fn with_full_memory(folder: &Path) -> (Engine, OpError) {
    let engine = builder(folder, 1).clustered(true).memory_bytes_max(4 << 10).open().unwrap();
    own(&engine, slot_of("x"), FIRST, 1);
    import(&engine, slot_of("y"), FIRST);
    let refused = refusal(&engine, "x");
    (engine, refused)
}

/// What a write gets when the disk, a simulated one, is full.
fn refused_by_a_full_disk() -> OpError {
    let sim = Sim::new(1);
    let (runtime, control) = (sim.node("a", 1), sim.control());
    let on = runtime.clone();
    let engine = runtime.block_on(0, move || async move {
        Engine::builder("/srv/a").cores(1).log_file_bytes(64 << 10).open_on(&on).await.unwrap()
    });
    control.set_disk_faults("a", DiskFaults { capacity_bytes: Some(0), ..DiskFaults::default() });
    runtime.block_on(0, move || async move {
        loop {
            match engine.keyspace(0).set(b"k", &[1; 1000]) {
                Ok(receipt) => receipt.written().await.unwrap(),
                Err(error) => break error,
            }
        }
    })
}

#[test]
fn operations() {
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let engine = clustered(folders[0].path(), 1);
    let keys = engine.keyspace(0);
    let mut errors = vec![keys.get(b"{x}").unwrap_err()];
    own(&engine, slot_of("x"), FIRST, 1);
    errors.push(keys.set(&[0; 65_536], b"").unwrap_err());
    errors.push(keys.set(b"{x}", &vec![0; VALUE_BYTES_MAX + 1]).unwrap_err());
    let _ = keys.set(b"{x}", b"9223372036854775807").unwrap();
    errors.push(keys.increment(b"{x}", 1).unwrap_err());
    let _ = keys.set(b"{x}", b"one").unwrap();
    errors.push(keys.increment(b"{x}", 1).unwrap_err());
    errors.push(keys.scan(slot_of("x"), ScanCursor::from_u64(1), 1).unwrap_err());
    engine.freeze(slot_of("x"), FIRST).unwrap();
    errors.push(keys.set(b"{x}", b"v").unwrap_err());
    full_log!(behind, _folder);
    errors.push(behind.keyspace(0).set(b"{x}", b"v").unwrap_err());
    errors.push(refused_by_a_full_disk());
    errors.push(with_full_memory(folders[1].path()).1);
    let failing = with_a_failing_log(folders[2].path());
    errors.push(loop {
        match failing.keyspace(0).set(b"k", &[1; 9_000]) {
            Ok(receipt) => drop(receipt.wait_written()),
            Err(error) => break error,
        }
    });
    assert_all(&errors, &[]);
    let retryable = errors.iter().filter(|error| error.is_retryable()).map(Named::name).collect::<Vec<_>>();
    assert_eq!(retryable, ["Frozen", "LogBehind"]);
}

#[test]
fn batches() {
    let folder = tempfile::tempdir().unwrap();
    let engine = clustered(folder.path(), 1);
    let slot = slot_of("x");
    let mut batch = engine.batch(slot);
    let mut errors = vec![batch.set(0, b"{x}", b"").commit().unwrap_err()];
    own(&engine, slot, FIRST, 1);
    errors.push(batch.set(0, b"{y}", b"").commit().unwrap_err());
    let mut batch = engine.batch(slot);
    for number in 0..=BATCH_RECORDS_MAX {
        batch.set(0, key("x", number), b"");
    }
    errors.push(batch.commit().unwrap_err());
    let long = vec![0; BATCH_BYTES_MAX];
    errors.push(engine.batch(slot).set(0, b"{x}", &long).commit().unwrap_err());
    assert_all(&errors, &[]);
    assert_eq!(engine.slot_status(slot).version, version(0, 0), "nothing was written");
}

#[test]
fn gates() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let engine = clustered(folders[0].path(), 1);
    let (slot, second) = (slot_of("x"), Generation::new(2));
    own(&engine, slot, second, 5);
    let mut errors = vec![
        engine.freeze(slot, FIRST).unwrap_err(),
        engine.freeze(slot, Generation::new(3)).unwrap_err(),
        engine.truncate(slot, second, version(0, 0)).unwrap_err(),
        engine.follow(slot, second).and_then(|()| engine.own(slot, second, Term(4))).unwrap_err(),
    ];
    full_log!(behind, _folder);
    errors.push(behind.own(slot_of("z"), FIRST, Term(1)).unwrap_err());
    let (full, _) = with_full_memory(folders[1].path());
    full.follow(slot, FIRST).unwrap();
    // Part of a segment stays, so it is copied.
    errors.push(full.truncate(slot, FIRST, version(1, 1)).unwrap_err());
    let folder = tempfile::tempdir().unwrap();
    let (compacted, slot) = with_a_floor(folder.path());
    compacted.follow(slot, FIRST).unwrap();
    errors.push(compacted.truncate(slot, FIRST, version(1, 1)).unwrap_err());
    assert_all(&errors, &[]);
}

fn encoded(name: &[u8], deltas: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for delta in deltas {
        let new = NewRecord { delta: *delta, ..NewRecord::put(0, name, b"value", None) };
        let start = bytes.len();
        bytes.resize(start + new.encoded_bytes(), 0);
        encode(&mut bytes[start..], &new);
    }
    bytes
}

#[test]
fn ranges() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let engine = clustered(folders[0].path(), 1);
    let slot = slot_of("y");
    let range = |term, base| RangeHeader { term: Term(term), base };
    let apply = |engine: &Engine, range: RangeHeader, bytes: &[u8]| engine.apply(slot, FIRST, &range, bytes);
    let good = encoded(b"{y}", &[1, 2]);
    let mut errors = vec![apply(&engine, range(2, 0), &good).unwrap_err()];
    import(&engine, slot, FIRST);
    for (range, bytes) in [
        (range(2, 0), &good[..good.len() - 4]),
        (range(2, 0), &[]),
        (range(2, u64::MAX), &good),
        (range(2, 0), &encoded(b"{x}", &[1])),
        (range(2, 0), &encoded(b"{y}", &[2, 2])),
    ] {
        errors.push(apply(&engine, range, bytes).unwrap_err());
    }
    assert_eq!(apply(&engine, range(2, 0), &good).unwrap().version, version(2, 2));
    errors.push(apply(&engine, range(1, 2), &good).unwrap_err());
    errors.push(apply(&engine, range(2, 1), &encoded(b"{y}", &[7])).unwrap_err());
    full_log!(behind, _folder);
    errors.push(apply(&behind, range(1, 0), &good).unwrap_err());
    errors.push(apply(&with_full_memory(folders[1].path()).0, range(1, 0), &good).unwrap_err());
    assert_all(&errors, &[]);
}

#[test]
fn subscriptions() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (source, other) = (standalone(folders[0].path(), 1), clustered(folders[1].path(), 1));
    let slot = slot_of("x");
    let _ = source.keyspace(0).set(b"{x}", b"v").unwrap();
    import(&other, slot, FIRST);
    copy_slot(&source, &other, slot, FIRST, FIRST);
    let (ours, theirs) = (source.stream(), other.stream());
    assert!(theirs.subscribe(slot, FIRST, version(1, 1)).is_ok());
    let folder = tempfile::tempdir().unwrap();
    let (compacted, _) = with_a_floor(folder.path());
    let errors = [
        theirs.subscribe(slot_of("y"), FIRST, version(0, 0)).unwrap_err(),
        ours.subscribe(slot, FIRST, version(7, 9)).unwrap_err(),
        compacted.stream().subscribe(slot, FIRST, version(1, 1)).unwrap_err(),
        ours.resume(slot, FIRST, version(1, 1), version(1, 2)).unwrap_err(),
    ];
    assert_all(&errors, &[]);
    assert_eq!(other.slot_status(slot).gate, Gate::Importing);
}

#[test]
fn waits() {
    let folder = tempfile::tempdir().unwrap();
    let engine = with_a_failing_log(folder.path());
    let receipt = engine.keyspace(0).set(b"k", b"v").unwrap();
    let blocking = receipt.clone();
    let on_core = engine.runtime().block_on(0, move || async move { blocking.wait_synced() });
    // A place in the log that it never comes to.
    let mut never = receipt;
    never.ticket.position.0 += 1 << 30;
    let failed = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| never.wait_synced());
        while let Ok(later) = engine.keyspace(0).set(b"k", &[1; 9_000]) {
            drop(later.wait_written());
        }
        waiter.join().unwrap()
    });
    assert_all(&[on_core.unwrap_err(), failed.unwrap_err()], &[]);
}

const OPEN: &str = "LOCKGATE_TEST_OPENS";

/// What an engine says that this test program, started anew under a limit of its process, cannot open.
fn opened_under(limit: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; ulimit {limit} && exec \"$0\" \"$@\"");
    let mut child = Command::new("sh");
    child.arg("-c").arg(script).arg(std::env::current_exe().unwrap());
    child.args(["--exact", "errors::opens", "--nocapture", "--test-threads=1"]).env(OPEN, folder.path());
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let name = text.lines().find_map(|line| line.split_once("opened: ").map(|(_, name)| name.to_owned()));
    name.unwrap_or_else(|| panic!("{limit}: {output:?}"))
}

#[test]
fn opens() {
    if let Some(folder) = std::env::var_os(OPEN) {
        let error = builder(Path::new(&folder), 1).open().expect_err("the limit is too low");
        println!("\nopened: {}", error.name());
        return;
    }
    let fresh = || tempfile::tempdir().unwrap();
    let refused = |folder: &Path| builder(folder, 1).open().expect_err("refused");
    let mut errors = vec![builder(fresh().path(), 0).open().expect_err("no cores")];
    errors.push(builder(fresh().path(), 1).log_file_bytes(1).open().expect_err("no room in a file"));
    let used = fresh();
    let engine = standalone(used.path(), 1);
    errors.push(refused(used.path()));
    engine.keyspace(0).set(b"k", b"v").unwrap().wait_synced().unwrap();
    drop(engine);
    let files = || std::fs::read_dir(used.path().join("log")).unwrap().map(|entry| entry.unwrap().path());
    let firsts: Vec<_> = files().collect();
    drop(standalone(used.path(), 1));
    firsts.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    errors.push(refused(used.path()));
    std::fs::remove_dir_all(used.path().join("log")).unwrap();
    std::fs::write(used.path().join("log"), b"not a folder").unwrap();
    errors.push(refused(used.path()));
    let damaged = fresh();
    drop(standalone(damaged.path(), 1));
    std::fs::create_dir(damaged.path().join("checkpoint")).unwrap();
    std::fs::write(damaged.path().join("checkpoint").join("manifest"), b"no manifest").unwrap();
    errors.push(refused(damaged.path()));
    let under_limits = [opened_under("-v 4194304"), opened_under("-n 4")];
    assert_eq!(under_limits, ["Reserve", "Runtime"]);
    let names = errors.iter().map(|error| -> &str { error.name() });
    let names = names.chain(under_limits.iter().map(String::as_str)).collect();
    assert_names::<OpenError>(names, &[]);
}

/// What a recovery says after frames were logged that the engine does not log.
fn replayed(frames: &[FrameHeader], payload: &[u8], memory_bytes_max: u64) -> ReplayError {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 1);
    for _ in 0..3 {
        let _ = engine.keyspace(0).set(b"{x}", &[1; 500]).unwrap();
    }
    let log = engine.log(0);
    for frame in frames {
        let end = log.append(log.reserve(payload.len()).unwrap(), *frame, &[payload]).unwrap();
        log.wait_synced_blocking(end).unwrap();
    }
    drop(engine);
    let refused = builder(folder.path(), 1).memory_bytes_max(memory_bytes_max).open().expect_err("refused");
    let OpenError::Recover(RecoverError::Visit { source, .. }) = refused else { panic!("{refused}") };
    *source.downcast().expect("the engine's own words")
}

#[test]
fn frames() {
    let frame =
        |kind: FrameKind, slot: u16, term, base| FrameHeader { kind, slot, generation: FIRST.0, term, base };
    let slot = slot_of("x").number();
    let errors = [
        (frame(FrameKind(60), slot, 0, 0), &b""[..], u64::MAX),
        (frame(FRAME_OPEN, 20_000, 0, 0), b"", u64::MAX),
        (frame(FRAME_DATA, slot, 1, 1), b"not a record", u64::MAX),
        (frame(FRAME_TERM, slot, 2, 7), b"", u64::MAX),
        (frame(FRAME_TRUNCATE, slot, 0, 1), b"", u64::MAX),
        (frame(FRAME_STABLE, slot, 1, 99), b"", u64::MAX),
        (frame(FRAME_OPEN, slot, 0, 0), b"payload", u64::MAX),
        (frame(FRAME_OPEN, slot, 0, 0), b"", 64),
    ]
    .map(|(frame, payload, memory_bytes_max)| replayed(&[frame], payload, memory_bytes_max));
    // What was superseded is discarded; then it would have to be live again.
    let discarded = [frame(FRAME_STABLE, slot, 1, 3), frame(FRAME_TRUNCATE, slot, 1, 1)];
    let errors: Vec<_> = errors.into_iter().chain([replayed(&discarded, b"", u64::MAX)]).collect();
    assert_all(&errors, &[]);
}
