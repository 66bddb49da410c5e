//! What can be proven of a damaged directory's slots: the records that its logs still have, as far as nothing that came
//! before them can be missing.
//!
//! Behind a gap in a log every slot of that log is *in doubt*: one of its writes may have been in the gap. The slot's next
//! frame tells. A slot's writes are counted one by one, so a record that continues the count proves that none is missing, and
//! so does a term that begins at the slot's last write, or a truncation to a write that is here. What ends a generation, or
//! begins one, makes everything before it irrelevant. Any other frame proves that something is missing: the slot is *cut*
//! there, and what follows is not taken, as it rests on writes that nobody has.
//!
//! So each slot ends up as it was at one moment: at its end (sure), at a moment that was perhaps not the last (in doubt), or
//! at an earlier one (cut). `docs/decisions/0014-check-and-repair.md` argues that.

use std::collections::BTreeMap;
use std::path::Path;

use lockgate_runtime::mutation;

use super::load::empty_slots;
use crate::apply::verify_range;
use crate::builder::core_log_name;
use crate::checkpoint::{Base, load_leniently};
use crate::error::OpenError;
use crate::frames::{
    FRAME_DATA, FRAME_DROP, FRAME_FLOOR, FRAME_OPEN, FRAME_TERM, FRAME_TRUNCATE, FRAME_UNDO_FLOOR,
};
use crate::log::files::parse_file_name;
use crate::log::lenient::{Gap, Met, Tail, read_leniently};
use crate::log::{FrameHeader, VisitError};
use crate::recovery::{Era, ReplayError, core_of, eras, replay_frame};
use crate::slot::SlotState;
use crate::slots::SlotTable;
use crate::types::{Generation, RangeHeader, Slot, Term, Version};
use crate::wakes::Wakes;

/// A log's ends that earlier starts accepted; what is not known is judged by the files alone.
pub(crate) type Ends = BTreeMap<String, Vec<(u64, u64)>>;

/// What is known of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// Nothing is missing.
    Sure,
    /// Its last writes may be missing.
    Unsure,
    /// Writes are missing, and what followed them was not taken.
    Cut,
}

/// What one log lost.
#[derive(Clone, Debug)]
pub(crate) struct LogLoss {
    pub(crate) log: String,
    pub(crate) gap: Gap,
}

/// A slot whose later frames were not taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ignored {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    pub(crate) why: String,
}

/// The slots, and what is missing of them.
pub(crate) struct Salvage {
    pub(crate) slots: SlotTable,
    pub(crate) doubts: Vec<Doubt>,
    pub(crate) ignored: Vec<Ignored>,
    pub(crate) losses: Vec<LogLoss>,
    /// Logs of which it cannot be told whether they went on.
    pub(crate) open_logs: Vec<String>,
}

/// What is left of a directory.
pub(crate) struct Damaged<'a> {
    pub(crate) log_dir: &'a Path,
    pub(crate) checkpoint_dir: &'a Path,
    /// The names in the folder of the logs.
    pub(crate) files: &'a [String],
    pub(crate) ends: &'a Ends,
    pub(crate) base: Option<&'a Base>,
}

impl Damaged<'_> {
    /// How many cores each boot had, by the files that it made; the checkpoint's boot, as it says.
    pub(crate) fn cores_by_boot(&self) -> BTreeMap<u64, usize> {
        let first = self.base.map_or(0, |base| base.manifest.head.boot);
        let mut cores = BTreeMap::new();
        for file in self.files {
            let log = file.split('.').next().unwrap_or(file);
            if let Some(core) = core_of(log)
                && let Some((boot, _)) = parse_file_name(log, file)
                && boot >= first
            {
                let most = cores.entry(boot).or_insert(0);
                *most = (core + 1).max(*most);
            }
        }
        if let Some(base) = self.base {
            cores.insert(first, base.manifest.head.cores as usize);
        }
        cores
    }
}

impl Salvage {
    /// Loads the checkpoint, if there is one, and reads all core logs below `dir`. To be awaited on a core.
    pub(crate) async fn read(dir: &Damaged<'_>, memory_bytes_max: u64) -> Result<Salvage, OpenError> {
        let count = Slot::all().len();
        let mut salvage = Salvage {
            slots: empty_slots(dir.log_dir, memory_bytes_max)?,
            doubts: vec![Doubt::Sure; count],
            ignored: vec![Ignored::default(); count],
            losses: Vec::new(),
            open_logs: Vec::new(),
        };
        if let Some(base) = dir.base {
            for (slot, error) in load_leniently(&salvage.slots, dir.checkpoint_dir, base).await? {
                salvage.doubts[slot.index()] = Doubt::Cut;
                salvage.ignored[slot.index()].why = error.to_string();
            }
        }
        let boots = dir.cores_by_boot();
        let known = dir.ends.keys().filter_map(|name| core_of(name)).map(|core| core + 1);
        let logs = boots.values().copied().chain(known).max().unwrap_or(0);
        let eras = eras(&boots);
        for (number, era) in eras.iter().enumerate() {
            let from = number.checked_sub(1).map_or(0, |before| eras[before].last_boot + 1);
            let to = if number + 1 == eras.len() { u64::MAX } else { era.last_boot };
            for core in 0..logs {
                let tail = salvage.log(dir, &boots, (from, to), (era, core)).await?;
                if to == u64::MAX && core < era.cores {
                    salvage.doubt_the_end(core, era, &tail);
                }
            }
        }
        Ok(salvage)
    }

    /// Reads what one log has of the boots of an era.
    async fn log(
        &mut self,
        dir: &Damaged<'_>,
        boots: &BTreeMap<u64, usize>,
        (from, to): (u64, u64),
        (era, core): (&Era, usize),
    ) -> Result<Tail, OpenError> {
        let name = core_log_name(core);
        let known = dir.ends.get(&name).map_or(&[][..], Vec::as_slice);
        let start = dir.base.and_then(|base| base.start_of(core));
        let mut visit = |met: Met<'_>| -> Result<(), VisitError> {
            match met {
                Met::Frame((boot, end), header, payload) if (from..=to).contains(&boot) => {
                    self.frame(dir.base, (core, end), header, payload)
                }
                Met::Gap(gap) if (from..=to).contains(&gap.boot) => {
                    let is_of_era = !gap.spans_boots && boots.contains_key(&gap.boot);
                    self.gap(dir.base, (&name, core), is_of_era.then_some(era), gap);
                    Ok(())
                }
                _ => Ok(()),
            }
        };
        Ok(read_leniently(dir.log_dir, &name, dir.files, start, known, &mut visit).await?)
    }

    /// Without a seal it cannot be told whether a log went on. What it promised nobody it need not have; in a directory that
    /// is damaged it may have had more.
    fn doubt_the_end(&mut self, core: usize, era: &Era, tail: &Tail) {
        if (tail.is_sealed || tail.is_accepted) && tail.last_boot >= era.last_boot {
            return;
        }
        self.open_logs.push(core_log_name(core));
        for doubt in self.doubts.iter_mut().skip(core).step_by(era.cores) {
            if *doubt == Doubt::Sure && !mutation!("repair-without-doubts") {
                *doubt = Doubt::Unsure;
            }
        }
    }

    /// Something of a log is missing. `era`: when the log had only the slots of its core; otherwise it may have had any. What
    /// a slot has of the checkpoint it does not miss.
    fn gap(&mut self, base: Option<&Base>, (log, core): (&str, usize), era: Option<&Era>, gap: &Gap) {
        for (slot, doubt) in Slot::all().zip(self.doubts.iter_mut()) {
            let is_home = era.is_none_or(|era| slot.index() % era.cores == core);
            let has_all = base.is_some_and(|base| base.has(slot, core, gap.to));
            if is_home && !has_all && *doubt == Doubt::Sure && !mutation!("repair-without-doubts") {
                *doubt = Doubt::Unsure;
            }
        }
        self.losses.push(LogLoss { log: log.to_owned(), gap: gap.clone() });
    }

    fn frame(
        &mut self,
        base: Option<&Base>,
        (core, end): (usize, u64),
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<(), VisitError> {
        let Some(slot) = Slot::new(header.slot) else {
            return Err(ReplayError::NoSuchSlot(header.slot).into());
        };
        if base.is_some_and(|base| base.has(slot, core, end)) {
            return Ok(());
        }
        let slots = self.slots.clone();
        let mut held = slots.of(slot).lock();
        let judged = match self.doubts[slot.index()] {
            Doubt::Sure => Judged::Take,
            Doubt::Unsure => judge(&held, header, payload),
            Doubt::Cut if ends_all_before(&held, header) => Judged::Proven,
            Doubt::Cut => Judged::Ignore,
        };
        let why = match judged {
            Judged::Take | Judged::Proven => match replay_frame(&mut held, header, payload) {
                Ok(()) if matches!(judged, Judged::Proven) => {
                    self.doubts[slot.index()] = Doubt::Sure;
                    self.ignored[slot.index()] = Ignored::default();
                    return Ok(());
                }
                Ok(()) => return Ok(()),
                // Not damage: more memory brings all of it back.
                Err(error @ ReplayError::OutOfMemory { .. }) => return Err(error.into()),
                Err(error) => error.to_string(),
            },
            Judged::Missing(why) => why.to_owned(),
            Judged::Ignore => String::new(),
        };
        self.doubts[slot.index()] = Doubt::Cut;
        let ignored = &mut self.ignored[slot.index()];
        if !why.is_empty() {
            ignored.why = why;
            // Data of a generation that is over must not stay.
            end_what_is_over(&mut held, header);
        }
        ignored.frames += 1;
        ignored.bytes += payload.len() as u64;
        Ok(())
    }
}

/// What a frame says of a slot that is in doubt.
enum Judged {
    /// It can be taken, and proves nothing.
    Take,
    /// Nothing is missing before it.
    Proven,
    /// Something is missing before it.
    Missing(&'static str),
    Ignore,
}

/// Whether nothing that came before this frame matters any more.
fn ends_all_before(held: &SlotState, header: &FrameHeader) -> bool {
    let generation = Generation(header.generation);
    match header.kind {
        FRAME_OPEN => generation > held.generation(),
        FRAME_DROP => generation >= held.generation(),
        _ => false,
    }
}

fn judge(held: &SlotState, header: &FrameHeader, payload: &[u8]) -> Judged {
    if ends_all_before(held, header) {
        return Judged::Proven;
    }
    let generation = Generation(header.generation);
    let is_old = generation < held.generation() || (generation == held.generation() && !held.is_open());
    if is_old {
        // The frames of ended generations have no effect, wherever they are.
        return Judged::Take;
    }
    // A slot that nobody ever moved has no frame that opens it.
    if generation > held.generation() && held.generation() != Generation::ZERO {
        return Judged::Missing("a generation of its data began where the log is damaged");
    }
    let (term, have) = (Term(header.term), held.version());
    match header.kind {
        FRAME_DATA => {
            let range = RangeHeader { term, base: header.base };
            match verify_range(held.slot(), range, payload) {
                Ok((first, _)) if first == have.counter + 1 && range.term >= have.term => Judged::Proven,
                Ok(_) => Judged::Missing("writes before the next one are where the log is damaged"),
                Err(_) => Judged::Take,
            }
        }
        FRAME_TERM if header.base == have.counter && term >= have.term => Judged::Proven,
        FRAME_TERM => Judged::Missing("writes before the next term are where the log is damaged"),
        FRAME_TRUNCATE => {
            let to = Version::new(term, header.base);
            match to <= have && held.on_history(to) {
                true => Judged::Proven,
                false => Judged::Missing("writes that stayed are where the log is damaged"),
            }
        }
        // They speak of what was never here. That one of them is lost cannot be told, and need not be: a repaired directory is
        // another one, which feeds nobody who had a cursor in this slot.
        FRAME_FLOOR | FRAME_UNDO_FLOOR => Judged::Take,
        // A stable frame, and what is no frame at all.
        _ if Version::new(term, header.base) > have => {
            Judged::Missing("writes that are known to be there are where the log is damaged")
        }
        _ => Judged::Take,
    }
}

/// A frame of a newer generation proves that the one before it has ended.
fn end_what_is_over(held: &mut SlotState, header: &FrameHeader) {
    let generation = Generation(header.generation);
    if generation > held.generation() && held.is_open() {
        let over = held.generation();
        held.end_generation(over, &mut Wakes::default());
    }
}
