//! A repair that ends at any moment, by a kill or a power cut: the damaged directory or the repaired one is there, whole, and
//! where neither has the directory's name nothing is begun in its place.

use std::path::Path;
use std::time::Duration;

use lockgate_engine::backup::{RestoreOptions, restore};
use lockgate_engine::check::{CheckReport, RepairOptions, RepairReport, check, repair};
use lockgate_engine::meta::MetaError;
use lockgate_engine::{Engine, MEMORY_BYTES_MAX_DEFAULT, OpenError};
use lockgate_runtime::sim::{Control, PowerLoss, Sim};
use lockgate_runtime::sync::{Arc, Mutex};
use lockgate_runtime::{File, OpenOptions, fs, sleep};

use crate::common::key;

const DIR: &str = "/srv/data";
const WHOLE_KEYS: u64 = 3;

async fn open() -> Result<Engine, OpenError> {
    let builder = Engine::builder(DIR).cores(1).log_file_bytes(64 << 10);
    builder.open_on(&lockgate_runtime::current()).await
}

/// Runs work on machine `a` as its next process.
async fn on_machine<T: Send + 'static, F: Future<Output = T> + 'static>(
    control: &Control,
    work: impl FnOnce() -> F + Send + 'static,
) -> T {
    let done = Arc::new(Mutex::new(None));
    let tell = done.clone();
    control.start("a", 1).spawn_on(0, move || async move {
        let outcome = work().await;
        *tell.lock() = Some(outcome);
    });
    loop {
        if let Some(outcome) = done.lock().take() {
            control.kill("a");
            return outcome;
        }
        sleep(Duration::from_micros(100)).await;
    }
}

async fn damaged_directory() {
    let engine = open().await.expect("it opens");
    for (number, value) in [b"first", b"lost!", b"third"].into_iter().enumerate() {
        engine.keyspace(0).set(&key("cut", number), value).expect("set").synced().await.expect("synced");
        engine.keyspace(0).set(&key("whole", number), b"value").expect("set").synced().await.expect("synced");
    }
    engine.close().await.expect("closed");
    drop(engine);
    let path = Path::new("/srv/data/log/core-0.0000000000000001.00000000.log");
    let bytes = fs::read(path).await.expect("read");
    let at = bytes.windows(5).position(|window| window == b"lost!").expect("it is there");
    let file = File::open(path, &OpenOptions::new().read(true).write(true)).await.expect("opened");
    file.write_all_at(vec![bytes[at] ^ 1], at as u64).await.0.expect("written");
    file.sync_data().await.expect("synced");
}

fn options(in_place: bool) -> RepairOptions {
    RepairOptions { in_place, log_file_bytes: 64 << 10, ..RepairOptions::default() }
}

async fn checked() -> CheckReport {
    check(Path::new(DIR), MEMORY_BYTES_MAX_DEFAULT).await.expect("it can be checked")
}

/// What was found after the end, and by the repair after it.
#[derive(Debug, Default)]
struct Found {
    is_between: bool,
    is_repaired: bool,
    repair: RepairReport,
    names: Vec<String>,
}

async fn look(in_place: bool) -> Found {
    let is_between = match open().await {
        // It is there, and repaired.
        Ok(engine) => {
            assert_eq!(engine.keyspace(0).len(), 1 + WHOLE_KEYS);
            engine.close().await.expect("closed");
            return Found { is_repaired: true, ..Found::default() };
        }
        Err(OpenError::Recover(_)) => false,
        Err(OpenError::Meta(MetaError::BetweenNames { .. })) => true,
        Err(other) => panic!("{other}"),
    };
    let found = checked().await;
    assert_eq!(found.damage.len(), 1, "{found:?}");
    if is_between {
        let text = &found.damage[0].text;
        assert!(text.contains("/srv/data.damaged-1") && text.contains("/srv/data.building"), "{text}");
        assert!(!fs::exists(Path::new(DIR)).await, "a look makes nothing");
        let refused = restore(Path::new("/srv/backup"), Path::new(DIR), &RestoreOptions::default()).await;
        assert!(
            refused.expect_err("refused").to_string().contains("a repair ended"),
            "no restoration either"
        );
    }
    let repair = repair(Path::new(DIR), &options(in_place)).await.expect("repaired");
    assert_eq!(repair.is_continued, is_between);
    assert_eq!(repair.kept.keys, 1 + WHOLE_KEYS);
    assert_eq!(checked().await.damage, []);
    let names = fs::read_dir(Path::new("/srv")).await.expect("listed");
    Found { is_between, is_repaired: false, repair, names }
}

/// Ends a repair after one of the machine's polls, by a power cut or by a kill, and looks at what is there. Returns the polls of
/// the whole repair, too.
fn run(in_place: bool, cut: Option<(u64, bool)>) -> (Found, std::ops::Range<u64>) {
    let sim = Sim::new(3);
    let (control, found) = (sim.control(), Arc::new(Mutex::new(None)));
    let (tell, watched) = (found.clone(), control.clone());
    sim.run_until(async move {
        on_machine(&watched, damaged_directory).await;
        let ended = Arc::new(Mutex::new(false));
        let (runtime, first) = (watched.start("a", 1), watched.polls("a") + 1);
        if let Some((poll, by_power)) = cut {
            let (cutting, ended) = (watched.clone(), ended.clone());
            watched.after_poll("a", poll, move || {
                match by_power {
                    true => cutting.cut_power("a", PowerLoss::Seeded),
                    false => cutting.kill("a"),
                }
                *ended.lock() = true;
            });
        }
        let done = ended.clone();
        runtime.spawn_on(0, move || async move {
            repair(Path::new(DIR), &options(in_place)).await.expect("repaired");
            *done.lock() = true;
        });
        while !*ended.lock() {
            sleep(Duration::from_micros(100)).await;
        }
        let polls = first..watched.polls("a");
        if watched.is_running("a") {
            watched.kill("a");
        }
        let seen = on_machine(&watched, move || look(in_place)).await;
        *tell.lock() = Some((seen, polls));
    });
    found.lock().take().expect("it was looked at")
}

#[test]
fn a_repair_that_ends_at_any_moment_can_be_repeated() {
    for in_place in [false, true] {
        let (whole, polls) = run(in_place, None);
        assert!(whole.is_repaired && polls.end - polls.start > 50, "{polls:?}");
        let (mut before, mut between, mut after) = (0, 0, 0);
        // From the end: most of the polls before are the reading of what is damaged.
        for at in polls.clone().rev().take(120).chain(polls.step_by(23)) {
            for by_power in [false, true] {
                let (found, _) = run(in_place, Some((at, by_power)));
                before += usize::from(!found.is_repaired && !found.is_between);
                between += usize::from(found.is_between);
                after += usize::from(found.is_repaired);
                if !found.is_repaired {
                    let original = found.repair.original.is_some();
                    assert_eq!(original, !in_place, "poll {at}");
                    let kept = found.names.contains(&"data.damaged-1".to_owned());
                    assert_eq!(
                        (kept, found.names.len()),
                        (!in_place, 1 + usize::from(!in_place)),
                        "{found:?}"
                    );
                }
            }
        }
        assert!(before > 10 && between > 0 && after > 0, "{before} before, {between} between, {after} after");
    }
}
