//! Memory: what keys take when they are loaded, and after they were overwritten many times.
//!
//! Each figure comes from a process of its own, which does nothing else: what a map took before cannot be told apart from
//! what it takes now. The figure is the difference of the resident memory before and after the load, with everything that
//! came with it (rounding, tables that are half empty, and log buffers: the engine's log is bounded to 4 MiB of them here). The engine's own account is shown beside, with what
//! it takes when it is empty. One process for each figure: they hardly differ from run to run.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::Context;
use super::lanes::Lane;
use crate::cli::MemoryOrder;
use crate::failure::{During, Failure};
use crate::keys::WorkingSet;
use crate::memory::{available_bytes, disk_free_bytes, settled_resident_bytes};
use crate::report::{ENGINE_ISSUE, Goal, Report};
use crate::subjects::{
    Account, DashMapSubject, EngineSubject, HashBrownSubject, MOVED, Map, MapKind, PapayaSubject, Settings,
};

/// The command line's name of the child that measures.
const CHILD: &str = "measure-memory";
/// Values, and the resident bytes that a key with one may take.
const SIZES: [(usize, f64); 3] = [(8, 60.0), (100, 160.0), (4_096, 4_400.0)];
const OVERWRITES_NAME: &str = "memory after endless overwrites";
const OVERWRITTEN_VALUE_BYTES: usize = 100;
/// How often everything is overwritten.
const OVERWRITES: u32 = 20;
/// What memory may be after that, against a fresh load.
const GROWTH_MAX: f64 = 1.35;
/// What the engine's log may hold unwritten here: its buffers are resident memory while they are full.
const LOG_UNWRITTEN_BYTES_MAX: u64 = 4 << 20;
/// What a key takes beside its value, at most: in memory, and in a log.
const KEY_MEMORY_BYTES: u64 = 250;
const KEY_LOG_BYTES: u64 = 64;

/// What a child found out.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    /// What the empty map took.
    empty_bytes: u64,
    /// What the load added.
    loaded_bytes: u64,
    /// What there was above the empty map after all overwrites.
    overwritten_bytes: u64,
    /// The map's own account in the end.
    account: Account,
}

fn size_name(value_bytes: usize) -> String {
    format!("resident bytes a key, values of {value_bytes} B")
}

pub fn rows() -> Vec<String> {
    let sizes = SIZES.iter().map(|(value_bytes, _)| size_name(*value_bytes));
    sizes.chain([OVERWRITES_NAME.to_owned()]).collect()
}

pub fn measure(context: &Context, report: &mut Report) -> Result<(), Failure> {
    for (value_bytes, most) in SIZES {
        let name = size_name(value_bytes);
        if context.run.wants(&name) {
            loaded(context, report, &name, value_bytes, most)?;
            context.progress.row();
        }
    }
    if context.run.wants(OVERWRITES_NAME) {
        overwritten(context, report)?;
        context.progress.row();
    }
    Ok(())
}

fn loaded(
    context: &Context,
    report: &mut Report,
    name: &str,
    value_bytes: usize,
    most: f64,
) -> Result<(), Failure> {
    let Some(keys) = keys_that_fit(context, value_bytes, 1)? else {
        report.skip(name, "there is not enough memory, or room on the disk");
        return Ok(());
    };
    for map in MapKind::ALL {
        context.progress.doing(format!("{name}: {}", map.name()));
        let found = in_child(context, map, keys, value_bytes, 0)?;
        let per_key = found.loaded_bytes as f64 / f64::from(keys);
        let measured = format!("{per_key:.1} B ({keys} keys)");
        let row = format!("{name}: {}", map.name());
        if map == MapKind::Engine {
            let goal = (Goal::AtMost(most), "B");
            report.judged((ENGINE_ISSUE, row), goal, measured, per_key, 1);
            accounted(report, name, &found, keys);
        } else {
            report.shown(ENGINE_ISSUE, row, measured, None, 1);
        }
    }
    Ok(())
}

fn overwritten(context: &Context, report: &mut Report) -> Result<(), Failure> {
    let Some(keys) = keys_that_fit(context, OVERWRITTEN_VALUE_BYTES, u64::from(OVERWRITES) + 1)? else {
        report.skip(OVERWRITES_NAME, "there is not enough memory, or room on the disk");
        return Ok(());
    };
    for map in MapKind::ALL {
        context.progress.doing(format!("{OVERWRITES_NAME}: {}", map.name()));
        let found = in_child(context, map, keys, OVERWRITTEN_VALUE_BYTES, OVERWRITES)?;
        let times = found.overwritten_bytes as f64 / found.loaded_bytes as f64;
        let per_key = found.overwritten_bytes as f64 / f64::from(keys);
        let mut measured = format!("{per_key:.1} B a key after {OVERWRITES} x {keys} sets");
        if let Some((_, moved)) = found.account.iter().find(|(name, _)| name == MOVED) {
            let sets = f64::from(OVERWRITES) * f64::from(keys);
            measured.push_str(&format!(", {:.2} records moved a set", moved / sets));
        }
        let row = format!("{OVERWRITES_NAME}: {}", map.name());
        if map == MapKind::Engine {
            let goal = (Goal::AtMost(GROWTH_MAX), "of a fresh load");
            report.judged((ENGINE_ISSUE, row), goal, measured, times, 1);
            accounted(report, OVERWRITES_NAME, &found, keys);
        } else {
            report.shown(ENGINE_ISSUE, row, measured, Some(times), 1);
        }
    }
    Ok(())
}

/// What the engine itself says, per key, and what it took when it was empty.
fn accounted(report: &mut Report, name: &str, found: &Found, keys: u32) {
    let per_key = |(part, sum): &(String, f64)| format!("{part} {:.1}", sum / f64::from(keys));
    let mut parts: Vec<String> = found.account.iter().map(per_key).collect();
    parts.push(format!("empty {:.1}", found.empty_bytes as f64 / f64::from(keys)));
    let row = format!("{name}: the engine's own account, a key");
    report.shown(ENGINE_ISSUE, row, parts.join(", "), None, 1);
}

/// As many keys as were asked for, or half of it, and so on, until they fit; a log has each `times` times.
fn keys_that_fit(context: &Context, value_bytes: usize, times: u64) -> Result<Option<u32>, Failure> {
    let memory_bytes = available_bytes()? / 2;
    let disk_bytes = disk_free_bytes(context.places.root())? / 2;
    let fits = |keys: u32| {
        let (keys, value_bytes) = (u64::from(keys), value_bytes as u64);
        keys * (value_bytes + KEY_MEMORY_BYTES) <= memory_bytes
            && keys * (value_bytes + KEY_LOG_BYTES) * times <= disk_bytes
    };
    let halves = std::iter::successors(Some(context.run.keys), |keys| Some(keys / 2));
    Ok(halves.take_while(|keys| *keys > 0).find(|keys| fits(*keys)))
}

/// Has a child of this program measure one map.
fn in_child(
    context: &Context,
    map: MapKind,
    keys: u32,
    value_bytes: usize,
    overwrites: u32,
) -> Result<Found, Failure> {
    let folder = context.places.folder("memory")?;
    let program = std::env::current_exe().during("finding this program")?;
    let mut command = Command::new(program);
    let map_name = clap::ValueEnum::to_possible_value(&map).map(|value| value.get_name().to_owned());
    command.arg(CHILD).arg("--map").arg(map_name.unwrap_or_default());
    command.args(["--keys", &keys.to_string(), "--value-bytes", &value_bytes.to_string()]);
    command.args(["--overwrites", &overwrites.to_string(), "--cores", &context.run.cores.to_string()]);
    command.arg("--dir").arg(folder.path()).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().during("starting a process to measure memory")?;
    if !output.status.success() {
        return Err(Failure::new(format!("measuring the memory of {}: {}", map.name(), output.status)));
    }
    serde_json::from_slice(&output.stdout).during("reading what a process measured")
}

/// The child: measures, and prints one line of JSON.
pub fn be_child(order: &MemoryOrder) -> Result<(), Failure> {
    let orphan_signal = rustix::process::Signal::KILL;
    rustix::process::set_parent_process_death_signal(Some(orphan_signal))
        .during("asking to end with the parent")?;
    let settings = Settings {
        cores: usize::from(order.cores),
        log_unwritten_bytes_max: Some(LOG_UNWRITTEN_BYTES_MAX),
        checkpoints: true,
    };
    let found = match order.map {
        MapKind::Engine => fill(order, |folder| EngineSubject::open(folder, &settings)),
        MapKind::DashMap => fill(order, |_| Ok(DashMapSubject::default())),
        MapKind::Hashbrown => fill(order, |_| Ok(HashBrownSubject::default())),
        MapKind::Papaya => fill(order, |_| Ok(PapayaSubject::default())),
    }?;
    println!("{}", serde_json::to_string(&found).during("writing JSON")?);
    Ok(())
}

fn fill<M: Map>(
    order: &MemoryOrder,
    open: impl FnOnce(&Path) -> Result<M, Failure>,
) -> Result<Found, Failure> {
    // Before the first figure: it is there all the time.
    let set = WorkingSet::new(order.keys, order.value_bytes);
    let before_bytes = settled_resident_bytes()?;
    let mut map = open(&order.dir)?;
    let empty_bytes = settled_resident_bytes()?;
    map.load(&set)?;
    let loaded_bytes = settled_resident_bytes()?.saturating_sub(empty_bytes);
    let mut value = set.blank();
    for time in 0..order.overwrites {
        for (key, next) in set.drawn_pairs(time.into(), set.len()) {
            set.begin_with(&mut value, &next);
            map.set(&key, &value)?;
        }
    }
    map.settle()?;
    Ok(Found {
        empty_bytes: empty_bytes.saturating_sub(before_bytes),
        loaded_bytes,
        overwritten_bytes: settled_resident_bytes()?.saturating_sub(empty_bytes),
        account: map.account().unwrap_or_default(),
    })
}
