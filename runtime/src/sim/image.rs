//! Images of a disk: what it held at one moment, what of that was durable, what was under way; and what an outage at that
//! moment leaves of it.
//!
//! A run is recorded once, and then every moment of it can be the last one, in many ways, without running it again.
//!
//! Invariants:
//! - An image never changes. It shares its pages with the disk that it was taken of, and with other images.
//! - What an outage leaves is drawn from the outage's seed alone, by the code by which machines of a simulation fail.
//! - Taking images draws nothing, so that a recorded history is the one that is not recorded.

use std::fmt;

use super::disk::{Disk, Survivors};
use super::disk_call::{self, Asked, DiskCall};
use super::faults::{DiskFaults, PowerLoss};
use super::machine::{Ending, Machine};
use super::names::Entry;
use super::random::Random;
use super::world::State;

/// How the process on an image's machine ends, and so what is left of its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// The process is killed, and the operating system goes on: all that was written is there to be read, durable or
    /// not. What was under way happens, or a first part of a write does, or nothing, by this seed.
    Kill(u64),
    /// The power is cut, and nothing that was not durable survives.
    PowerCutLosesAll,
    /// The power is cut, and by chance all that was asked for has reached the disk.
    PowerCutLosesNothing,
    /// The power is cut, and this seed decides what was under way still happens, and which sectors, lengths and changes of
    /// directories have reached the disk, as [`PowerLoss::Seeded`] has it.
    PowerCut(u64),
}

/// What one machine's disk was at one moment. Cheap to clone and to keep: pages are shared.
#[derive(Clone)]
pub struct DiskImage {
    number: u64,
    moment: String,
    disk: Disk,
    under_way: Vec<Asked>,
    /// The machine's operating system: see [`Machine::os_origin`] and [`Machine::os_boots`].
    os_origin: (u64, u32),
    os_boots: u32,
}

impl fmt::Debug for DiskImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskImage").field("number", &self.number).field("moment", &self.moment).finish()
    }
}

impl DiskImage {
    /// The number of its moment among those that were recorded of its machine, from 0.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its moment in words: the operation that had just been asked for, or was just done.
    pub fn moment(&self) -> &str {
        &self.moment
    }

    /// The disk after an outage at this moment.
    fn disk_after(&self, outage: Outage) -> Disk {
        let (ending, seed) = match outage {
            Outage::Kill(seed) => (Ending::Kill, seed),
            Outage::PowerCutLosesAll => (Ending::PowerCut(PowerLoss::All), 0),
            Outage::PowerCutLosesNothing => (Ending::Exit, 0),
            Outage::PowerCut(seed) => (Ending::PowerCut(PowerLoss::Seeded), seed),
        };
        let mut random = Random::new(seed, self.number);
        let mut disk = self.disk.clone();
        for asked in &self.under_way {
            disk_call::end(&mut disk, &mut random, asked.clone(), ending);
        }
        disk.close_all();
        match outage {
            Outage::Kill(_) => {}
            Outage::PowerCutLosesAll => disk.cut_power(Survivors::None),
            Outage::PowerCutLosesNothing => disk.cut_power(Survivors::All),
            Outage::PowerCut(_) => disk.cut_power(Survivors::Some(&mut random)),
        }
        disk.faults = DiskFaults::default();
        disk.syncs_to_fail = 0;
        disk
    }

    /// Gives a machine without a process the disk after an outage.
    pub(super) fn put_into(&self, machine: &mut Machine, outage: Outage) {
        machine.disk = self.disk_after(outage);
        (machine.os_origin, machine.os_boots) = (Some(self.os_origin), self.os_boots);
        machine.has_power = matches!(outage, Outage::Kill(_));
    }
}

/// Whether an operation was just asked for, or is done.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stage {
    Issued,
    Done,
}

/// Takes images of one machine's disk.
#[derive(Default)]
pub(super) struct Recorder {
    images: Vec<DiskImage>,
    next: u64,
}

impl Recorder {
    /// Those that were taken since the last call.
    pub(super) fn take(&mut self) -> Vec<DiskImage> {
        std::mem::take(&mut self.images)
    }
}

impl Machine {
    /// Words for a moment, if an image of it is to be taken.
    pub(super) fn moment(&self, stage: Stage, call: &DiskCall) -> Option<String> {
        if self.recorder.is_none() || !call.is_change() {
            return None;
        }
        let of_inode = |number: u64| {
            let mut named = self.disk.tree.all_named().into_iter();
            let found = named.find(|(_, entry)| *entry == Entry::File(number));
            found.map_or_else(|| format!("file {number}, which has no name"), |(path, _)| path)
        };
        let what = match call {
            DiskCall::Write { inode, data, offset } => {
                format!("write of {} bytes at {offset} of {}", data.len(), of_inode(*inode))
            }
            DiskCall::Sync { inode } => format!("sync of {}", of_inode(*inode)),
            // The others name what they change.
            call => format!("{call:?}"),
        };
        Some(match stage {
            Stage::Issued => format!("just asked for: {what}"),
            Stage::Done => format!("just done: {what}"),
        })
    }
}

/// Takes an image of a machine's disk, if this is a moment of which one is to be taken.
pub(super) fn record(state: &mut State, node: usize, moment: Option<String>) {
    let seed = state.seed;
    let machine = &mut state.machines[node];
    let (Some(moment), Some(recorder)) = (moment, &mut machine.recorder) else { return };
    recorder.images.push(DiskImage {
        number: recorder.next,
        moment,
        disk: machine.disk.clone(),
        under_way: machine.calls.changes(),
        os_origin: machine.os_origin.unwrap_or((seed, node as u32)),
        os_boots: machine.os_boots,
    });
    recorder.next += 1;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::sim::Sim;
    use crate::sync::Arc;
    use crate::{File, OpenOptions, fs};

    const SECTOR: usize = 512;

    /// What a disk shows of three names: the bytes of each, if it is there.
    type Shown = [Option<Vec<u8>>; 3];

    fn shown(disk: &Disk) -> Shown {
        ["/a", "/b", "/c"].map(|path| {
            let Ok(Some(Entry::File(number))) = disk.tree.entry(Path::new(path)) else { return None };
            let mut bytes = vec![0; disk.len(number) as usize];
            assert_eq!(disk.read(number, &mut bytes, 0), bytes.len());
            Some(bytes)
        })
    }

    async fn open(path: &str) -> File {
        let options = OpenOptions::new().read(true).write(true).create(true);
        File::open(Path::new(path), &options).await.expect("opened")
    }

    async fn write(file: &File, bytes: Vec<u8>, offset: u64) {
        file.write_all_at(bytes, offset).await.0.expect("written");
    }

    /// Two durable sectors of 1 in `/a`; then three of 2 over them, a file `/b` with a sector of 3 that becomes `/c`, and
    /// no sync of any of that. Last, a write of one page and a half of 4 to `/a` is under way.
    fn recorded() -> Vec<DiskImage> {
        let sim = Sim::new(5);
        let node = sim.node("node", 1);
        let control = sim.control();
        let a = node.block_on(0, || async {
            let a = open("/a").await;
            write(&a, vec![1; 2 * SECTOR], 0).await;
            a.sync_data().await.expect("synced");
            fs::sync_dir(Path::new("/")).await.expect("synced");
            a
        });
        control.record_images("node");
        node.block_on(0, move || async move {
            write(&a, vec![2; 3 * SECTOR], 0).await;
            let b = open("/b").await;
            write(&b, vec![3; SECTOR], 0).await;
            fs::rename(Path::new("/b"), Path::new("/c")).await.expect("renamed");
            write(&a, vec![4; 12 * SECTOR], 0).await;
        });
        control.take_images("node")
    }

    /// All that a disk may show after a power cut, listed without its code. `a`: its sectors, each with what may be there,
    /// for each length that it may have; `names` of `/b` and `/c` after 0, 1 or 2 changes of their directory.
    fn all_states(contents: &BTreeSet<Vec<u8>>, changes: usize) -> BTreeSet<Shown> {
        let mut states = BTreeSet::new();
        for a in contents {
            for third in [Vec::new(), vec![0; SECTOR], vec![3; SECTOR]] {
                for made in 0..=changes {
                    let (b, c) = (third.clone(), third.clone());
                    states.insert([Some(a.clone()), (made == 1).then_some(b), (made == 2).then_some(c)]);
                }
            }
        }
        states
    }

    /// Every choice of sectors, with the last of each choice's candidates for what lies there.
    fn choices(sectors: &[&[u8]]) -> BTreeSet<Vec<u8>> {
        let first = BTreeSet::from([Vec::new()]);
        sectors.iter().fold(first, |begun, candidates| {
            let grown = begun.iter().flat_map(|bytes| {
                candidates.iter().map(move |byte| [bytes.clone(), vec![*byte; SECTOR]].concat())
            });
            grown.collect()
        })
    }

    #[test]
    fn seeded_power_cuts_of_an_image_leave_all_that_may_be_left_and_nothing_else() {
        let images = recorded();
        let renamed = images.iter().find(|image| image.moment().contains("done: Rename")).expect("renamed");
        // Two sectors old or new; then the length of old, or that of new with a sector that is new or nothing.
        let mut contents = choices(&[&[1, 2], &[1, 2]]);
        contents.extend(choices(&[&[1, 2], &[1, 2], &[0, 2]]));
        let expected = all_states(&contents, 2);
        assert_eq!(expected.len(), 12 * 7);
        let found: BTreeSet<Shown> =
            (0..40_000).map(|seed| shown(&renamed.disk_after(Outage::PowerCut(seed)))).collect();
        assert!(found == expected, "{} of {} states", found.len(), expected.len());
    }

    #[test]
    fn what_is_under_way_may_happen_in_part() {
        let images = recorded();
        let last = images.iter().rev().find(|image| image.moment().contains("asked for: write")).expect("it");
        assert_eq!(last.under_way.len(), 1);
        // Killed: nothing, the first page, or all of it; never other sectors, and nothing else is touched.
        let found: BTreeSet<Shown> =
            (0..200).map(|seed| shown(&last.disk_after(Outage::Kill(seed)))).collect();
        let renamed = |a: Vec<u8>| [Some(a), None, Some(vec![3; SECTOR])];
        let (nothing, page, all) = (vec![2; 3 * SECTOR], vec![4; 8 * SECTOR], vec![4; 12 * SECTOR]);
        assert_eq!(found, BTreeSet::from([nothing.clone(), page, all.clone()].map(renamed)));
        // Without power: any sector of the first page may be of any of the three writes that has come so far.
        let mut kinds = BTreeSet::new();
        for seed in 0..2_000 {
            let [Some(a), ..] = shown(&last.disk_after(Outage::PowerCut(seed))) else {
                panic!("/a is durable")
            };
            for (at, sector) in a.chunks(SECTOR).enumerate() {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "sectors are whole");
                let allowed: &[u8] = if at < 2 { &[1, 2, 4] } else { &[0, 2, 4] };
                assert!(allowed.contains(&sector[0]) && (at < 3 || sector[0] != 2));
            }
            assert!([2, 3, 8, 12].contains(&(a.len() / SECTOR)));
            kinds.insert(a);
        }
        assert!(kinds.len() > 200, "{}", kinds.len());
        let old = [Some(vec![1; 2 * SECTOR]), None, None];
        assert_eq!(shown(&last.disk_after(Outage::PowerCutLosesAll)), old);
        assert_eq!(shown(&last.disk_after(Outage::PowerCutLosesNothing)), renamed(all));
    }

    #[test]
    fn images_are_numbered_and_do_not_change() {
        let images = recorded();
        assert!(images.iter().map(DiskImage::number).eq(0..images.len() as u64));
        let calls = ["write", "Open", "write", "Rename", "write"];
        assert_eq!(images.len(), 2 * calls.len());
        for (pair, call) in images.chunks(2).zip(calls) {
            assert!(pair[0].moment().starts_with(&format!("just asked for: {call}")), "{pair:?}");
            assert!(pair[1].moment().starts_with(&format!("just done: {call}")), "{pair:?}");
        }
        let first = shown(&images[0].disk_after(Outage::PowerCutLosesNothing));
        assert_eq!(first, [Some(vec![2; 3 * SECTOR]), None, None]);
        assert_eq!(shown(&images[0].disk), [Some(vec![1; 2 * SECTOR]), None, None]);
    }

    #[test]
    fn a_machine_goes_on_where_an_image_ended() {
        let images = Arc::new(recorded());
        let sim = Sim::new(9);
        for (name, outage, len) in [
            ("killed", Outage::Kill(1), 12),
            ("cut", Outage::PowerCutLosesAll, 2),
            ("spared", Outage::PowerCutLosesNothing, 12),
        ] {
            sim.put_disk(name, &images[9], outage);
            let node = sim.node(name, 1);
            let bytes = node.block_on(0, || async { fs::read(Path::new("/a")).await.expect("read") });
            assert_eq!(bytes.len(), len * SECTOR, "{name}");
            // What a kill leaves is there to be read, and a power cut later takes it.
            sim.control().cut_power(name, PowerLoss::All);
            let node = sim.node(name, 1);
            let bytes = node.block_on(0, || async { fs::read(Path::new("/a")).await.expect("read") });
            assert_eq!(bytes.len(), if name == "killed" { 2 } else { len } * SECTOR, "{name}");
        }
        let hash = |outage| {
            sim.put_disk("hashed", &images[9], outage);
            sim.disk_hash("hashed")
        };
        let spared = hash(Outage::PowerCutLosesNothing);
        assert_eq!(spared, sim.disk_hash("spared"));
        assert_ne!(spared, hash(Outage::PowerCutLosesAll));
    }

    #[test]
    fn the_operating_system_outlives_a_kill_only() {
        let id = |node: &crate::Runtime| node.block_on(0, || async { crate::os_boot_id() }).expect("known");
        let sim = Sim::new(5);
        let before = id(&sim.node("node", 1));
        let images = recorded();
        let other = Sim::new(77);
        other.put_disk("k", &images[0], Outage::Kill(0));
        // The same seed, and the machine after the one that drives the simulation.
        assert_eq!(id(&other.node("k", 1)), before);
        other.put_disk("c", &images[0], Outage::PowerCut(0));
        assert_ne!(id(&other.node("c", 1)), before);
    }
}
