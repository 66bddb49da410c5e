//! `lockgate check`: prints what a check or a repair found, for people or as JSON.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use lockgate_engine::Slot;
use lockgate_engine::check::{
    self, CheckReport, Damage, LogReport, RepairOptions, RepairReport, SlotSums, Verdict,
};
use lockgate_runtime::Runtime;
use serde_json::{Value, json};

use crate::cli::CheckArgs;
use crate::error::CommandError;
use crate::survey::columns;

/// Damage was found.
const DAMAGED: u8 = 1;

/// Checks a directory, and repairs it if that was asked for; the exit code.
pub fn run(args: &CheckArgs) -> Result<u8, CommandError> {
    let failed = |error: &dyn std::fmt::Display| CommandError::Check(error.to_string());
    // A new directory is made beside it, so it must have a name.
    let dir = absolute(&args.dir)
        .map_err(|error| CommandError::Check(format!("{}: {error}", args.dir.display())))?;
    let builder = Runtime::builder().cores(1).pin(false).spin_us(0).name("lockgate-tool");
    let runtime = builder.build().map_err(|error| failed(&error))?;
    let (at, memory) = (dir.clone(), args.memory_max);
    let found = runtime.block_on(0, move || async move { check::check(&at, memory).await });
    let found = found.map_err(|error| failed(&error))?;
    let mut repaired = None;
    if args.repair && found.is_damaged() {
        let options = RepairOptions {
            in_place: args.in_place,
            memory_bytes_max: args.memory_max,
            ..RepairOptions::default()
        };
        let at = dir.clone();
        let report = runtime.block_on(0, move || async move { check::repair(&at, &options).await });
        repaired = Some(report.map_err(|error| failed(&error))?);
    }
    if args.json {
        println!("{}", json!({ "check": of_check(&found), "repair": repaired.as_ref().map(of_repair) }));
    } else {
        print_check(&found);
        if let Some(report) = &repaired {
            print_repair(&dir, report);
        }
    }
    Ok(if found.is_damaged() { DAMAGED } else { 0 })
}

/// The directory's path without links, also where it is not there: then a repair may have left others beside it.
fn absolute(dir: &Path) -> std::io::Result<PathBuf> {
    match (std::fs::canonicalize(dir), dir.file_name()) {
        (Err(error), Some(name)) if error.kind() == ErrorKind::NotFound => {
            let folder = dir.parent().filter(|folder| !folder.as_os_str().is_empty());
            Ok(std::fs::canonicalize(folder.unwrap_or(Path::new(".")))?.join(name))
        }
        (result, _) => result,
    }
}

fn print_check(report: &CheckReport) {
    println!("directory  {}", report.dir.display());
    if let Some(meta) = &report.meta {
        let id: String = meta.directory_id.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("meta       id {id}, boot {}, keeps all since boot {}", meta.boot, meta.kept_since);
    }
    if let Some(point) = &report.checkpoint {
        println!(
            "checkpoint number {}, of boot {}: {} slots in {} files, {} bytes",
            point.number, point.boot, point.slots, point.files, point.bytes
        );
    }
    let titles = ["log", "boots", "files", "frames", "payload bytes", "ends at", "how"].map(str::to_owned);
    let mut rows = vec![titles.to_vec()];
    rows.extend(report.logs.iter().map(row));
    columns(&rows).iter().for_each(|line| println!("{line}"));
    if let Some(slots) = &report.slots {
        println!("replay     {}", in_words(slots));
    }
    for file in &report.other_files {
        println!("note       {file} is no log file, and is not looked at");
    }
    for damage in &report.damage {
        println!("DAMAGED    {}", damage.text);
    }
    match report.damage.len() {
        0 => println!("fine"),
        1 => println!("DAMAGED in one place"),
        places => println!("DAMAGED in {places} places"),
    }
}

fn in_words(slots: &SlotSums) -> String {
    format!(
        "{} keys in {} slots, {} bytes of {} are live, sum of digests {:#018x}",
        slots.keys, slots.slots, slots.live_bytes, slots.record_bytes, slots.digest
    )
}

fn row(log: &LogReport) -> Vec<String> {
    let end = if log.verdict == Verdict::Damaged { "-".to_owned() } else { log.end.to_string() };
    vec![
        log.name.clone(),
        log.boots.to_string(),
        log.files.to_string(),
        log.frames.to_string(),
        log.payload_bytes.to_string(),
        end,
        how(&log.verdict),
    ]
}

fn how(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Closed => "closed in order".into(),
        Verdict::Accepted => "ends where an earlier start accepted it".into(),
        Verdict::Open { file, offset, why } => {
            let name = file.file_name().unwrap_or_default().display();
            format!("not closed: cut at byte offset {offset} of {name} ({why}), nothing promised is lost")
        }
        Verdict::Empty => "empty".into(),
        Verdict::LeftOver => "left over: a later log has replaced it".into(),
        Verdict::Damaged => "DAMAGED".into(),
    }
}

fn print_repair(dir: &Path, report: &RepairReport) {
    println!();
    if report.is_continued {
        println!(
            "an earlier repair had made the new directory and not named it: that was done now, and nothing else"
        );
    }
    match &report.original {
        Some(original) => println!("the damaged directory is {} now, untouched", original.display()),
        None => println!("the damaged directory was removed"),
    }
    println!("the new one is {}: {}", dir.display(), in_words(&report.kept));
    println!(
        "it is a directory of its own: it passes for no cluster's member, and vouches for nothing that was lost"
    );
    for loss in &report.losses {
        println!(
            "LOST       {} bytes of frames of {}, positions {} to {}, at byte offset {} of {}: {}",
            loss.to.abs_diff(loss.from),
            loss.log,
            loss.from,
            loss.to,
            loss.offset,
            loss.file.display(),
            loss.why
        );
    }
    for log in &report.open_logs {
        println!("IN DOUBT   {log} was not closed: whether it went on behind its last batch cannot be told");
    }
    for cut in &report.cut {
        println!(
            "CUT        slot {} is as it was at version {}; {} later frames ({} bytes) rest on what is lost: {}",
            cut.slot, cut.version, cut.dropped_frames, cut.dropped_bytes, cut.why
        );
    }
    if !report.in_doubt.is_empty() {
        println!(
            "IN DOUBT   {} slots may lack their last writes, so that a key that was deleted last may be back: {}",
            report.in_doubt.len(),
            ranges(&report.in_doubt)
        );
    }
    for file in &report.left_behind {
        println!("LEFT       {file} is not in the new directory");
    }
}

/// Ascending slots as ranges.
fn ranges(slots: &[Slot]) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for slot in slots.iter().map(|slot| slot.number()) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == slot => *last = slot,
            _ => ranges.push((slot, slot)),
        }
    }
    let shown = ranges.iter().take(RANGES_SHOWN).map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    let shown = shown.collect::<Vec<_>>().join(" ");
    match ranges.len().checked_sub(RANGES_SHOWN) {
        Some(more) if more > 0 => format!("{shown} and {more} more ranges (--json has all)"),
        _ => shown,
    }
}

const RANGES_SHOWN: usize = 40;

fn of_check(report: &CheckReport) -> Value {
    let logs = report.logs.iter().map(|log| {
        json!({
            "name": log.name, "boots": log.boots, "files": log.files, "frames": log.frames,
            "payload_bytes": log.payload_bytes, "end": log.end, "how": how(&log.verdict),
            "damaged": log.damage.is_some(),
        })
    });
    json!({
        "dir": report.dir,
        "damaged": report.is_damaged(),
        "meta": report.meta.as_ref().map(|meta| json!({
            "directory_id": meta.directory_id.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            "boot": meta.boot,
            "kept_since": meta.kept_since,
        })),
        "checkpoint": report.checkpoint.as_ref().map(|point| json!({
            "number": point.number, "boot": point.boot, "taken_at_ms": point.taken_at_ms,
            "slots": point.slots, "files": point.files, "bytes": point.bytes,
        })),
        "logs": logs.collect::<Vec<_>>(),
        "slots": report.slots.as_ref().map(of_slots),
        "other_files": report.other_files,
        "damage": report.damage.iter().map(of_damage).collect::<Vec<_>>(),
    })
}

fn of_slots(slots: &SlotSums) -> Value {
    json!({
        "slots": slots.slots, "keys": slots.keys, "live_bytes": slots.live_bytes,
        "record_bytes": slots.record_bytes, "digest": format!("{:016x}", slots.digest),
    })
}

fn of_damage(damage: &Damage) -> Value {
    json!({
        "file": damage.file, "offset": damage.offset, "position": damage.position, "text": damage.text,
    })
}

fn of_repair(report: &RepairReport) -> Value {
    let losses = report.losses.iter().map(|loss| {
        json!({
            "log": loss.log, "file": loss.file, "offset": loss.offset, "from": loss.from, "to": loss.to,
            "why": loss.why,
        })
    });
    let cut = report.cut.iter().map(|cut| {
        json!({
            "slot": cut.slot.number(), "version": cut.version.to_string(),
            "dropped_frames": cut.dropped_frames, "dropped_bytes": cut.dropped_bytes, "why": cut.why,
        })
    });
    json!({
        "repaired": report.repaired,
        "original": report.original,
        "continued": report.is_continued,
        "kept": of_slots(&report.kept),
        "losses": losses.collect::<Vec<_>>(),
        "open_logs": report.open_logs,
        "cut": cut.collect::<Vec<_>>(),
        "in_doubt": report.in_doubt.iter().map(|slot| slot.number()).collect::<Vec<_>>(),
        "left_behind": report.left_behind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_told_as_ranges() {
        let slots = |numbers: &[u16]| numbers.iter().filter_map(|slot| Slot::new(*slot)).collect::<Vec<_>>();
        assert_eq!(ranges(&slots(&[1, 2, 3, 7, 9, 10])), "1-3 7 9-10");
        let many: Vec<u16> = (0..100).map(|number| number * 2).collect();
        assert!(ranges(&slots(&many)).ends_with("78 and 60 more ranges (--json has all)"));
    }
}
