//! Operations of a disk while they are under way: what is asked for, when it happens, and whether it fails.
//!
//! Invariants:
//! - An operation takes effect when its time has come, also if nobody waits for it any more.
//! - It keeps its inode until then.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use super::disk::{Disk, io_fault};
use super::image::{self, Stage};
use super::machine::Ending;
use super::node::NodePort;
use super::pages::{Data, PAGE_BYTES};
use super::random::{Random, hash, mix};
use super::world::{Happening, Operation, Promise, State, promise};
use crate::file::OpenOptions;
use crate::sim::PowerLoss;

/// Latencies in nanoseconds, from and to.
const NAME_NS: (u64, u64) = (3_000, 30_000);
const OPEN_NS: (u64, u64) = (5_000, 40_000);
const READ_NS: (u64, u64) = (5_000, 30_000);
const WRITE_NS: (u64, u64) = (5_000, 20_000);
const SYNC_NS: (u64, u64) = (100_000, 1_000_000);
/// What moving bytes takes beside that: 4 bytes a nanosecond.
const BYTES_PER_NS: u64 = 4;

/// What can be asked of a disk.
#[derive(Debug, Clone)]
pub(super) enum DiskCall {
    Open { path: PathBuf, options: OpenOptions },
    Read { inode: u64, buf: Vec<u8>, from: usize, offset: u64, is_direct: bool },
    Write { inode: u64, data: Data, offset: u64 },
    Sync { inode: u64 },
    CreateDir(PathBuf),
    Rename(PathBuf, PathBuf),
    RemoveFile(PathBuf),
    RemoveDirAll(PathBuf),
    ReadDir(PathBuf),
    SyncDir(PathBuf),
    Exists(PathBuf),
}

/// What a disk answers.
#[derive(Debug)]
pub(super) enum DiskAnswer {
    Done,
    /// The inode of an opened file.
    Opened(Opened),
    /// The buffer comes back in any case.
    Read(io::Result<usize>, Vec<u8>),
    Names(Vec<String>),
    Exists(bool),
}

/// A file that was opened: what must be closed again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opened {
    pub(super) node: usize,
    pub(super) process: u64,
    pub(super) inode: u64,
    pub(super) has_lock: bool,
}

type Answer = io::Result<DiskAnswer>;

/// An operation that was asked for.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) call: DiskCall,
    /// The sync's number, for syncs of files.
    sync: u64,
    is_to_fail: bool,
    process: u64,
}

/// An operation that is under way, and who waits for it.
struct UnderWay {
    asked: Asked,
    promise: Promise<Answer>,
}

/// The operations of one machine that are under way, in the order in which they were asked for.
#[derive(Default)]
pub(super) struct Calls {
    next: u64,
    under_way: BTreeMap<u64, UnderWay>,
}

impl Calls {
    /// Those that change what the disk holds or what of it is durable.
    pub(super) fn changes(&self) -> Vec<Asked> {
        let asked = self.under_way.values().map(|under_way| &under_way.asked);
        asked.filter(|asked| asked.call.is_change()).cloned().collect()
    }
}

impl DiskCall {
    pub(super) fn inode(&self) -> Option<u64> {
        match self {
            Self::Read { inode, .. } | Self::Write { inode, .. } | Self::Sync { inode } => Some(*inode),
            _ => None,
        }
    }

    /// Whether it may change what the disk holds, or what of it is durable.
    pub(super) fn is_change(&self) -> bool {
        match self {
            Self::Open { options, .. } => options.create || options.create_new || options.truncate,
            Self::Read { .. } | Self::ReadDir(_) | Self::Exists(_) => false,
            _ => true,
        }
    }

    /// Draws how long it takes.
    fn latency_ns(&self, disk: &Disk, random: &mut Random) -> u64 {
        let ((from, to), bytes) = match self {
            Self::Open { .. } => (OPEN_NS, 0),
            Self::Read { buf, from, .. } => (READ_NS, buf.len() - from),
            Self::Write { data, .. } => (WRITE_NS, data.len()),
            Self::Sync { .. } | Self::SyncDir(_) => (SYNC_NS, 0),
            _ => (NAME_NS, 0),
        };
        let mut latency_ns = random.between(from, to) + bytes as u64 / BYTES_PER_NS;
        let faults = disk.faults;
        if matches!(self, Self::Write { .. } | Self::Sync { .. } | Self::SyncDir(_))
            && random.one_in(faults.slow_one_in)
        {
            latency_ns += random.between(faults.slow_ns.0, faults.slow_ns.1);
        }
        latency_ns
    }

    /// Draws whether it fails.
    fn is_to_fail(&self, disk: &mut Disk, random: &mut Random) -> bool {
        let faults = disk.faults;
        match self {
            Self::Sync { .. } if disk.syncs_to_fail > 0 => {
                disk.syncs_to_fail -= 1;
                true
            }
            Self::Sync { .. } | Self::SyncDir(_) => random.one_in(faults.sync_fails_one_in),
            Self::Write { .. } => random.one_in(faults.write_fails_one_in),
            Self::Read { .. } => random.one_in(faults.read_fails_one_in),
            _ => false,
        }
    }

    /// What of it shows in the trace.
    fn trace(&self) -> u64 {
        match self {
            Self::Write { inode, data: Data::Bytes(bytes), offset } => {
                hash(bytes) ^ mix(*inode ^ mix(*offset))
            }
            Self::Write { inode, data: Data::Zeros(len), offset } => {
                mix(*len as u64 ^ mix(*inode ^ mix(*offset)))
            }
            Self::Read { inode, offset, .. } => mix(*inode ^ mix(*offset)),
            Self::Sync { inode } => mix(*inode),
            Self::Open { path, .. }
            | Self::CreateDir(path)
            | Self::RemoveFile(path)
            | Self::RemoveDirAll(path)
            | Self::ReadDir(path)
            | Self::SyncDir(path)
            | Self::Exists(path) => hash(path.as_os_str().as_encoded_bytes()),
            Self::Rename(from, to) => {
                mix(hash(from.as_os_str().as_encoded_bytes())) ^ hash(to.as_os_str().as_encoded_bytes())
            }
        }
    }
}

/// What a file's handle gets when the process that it belonged to is gone.
pub(super) fn process_is_gone() -> io::Error {
    io::Error::other("the process on the simulated machine is gone")
}

/// Asks the disk of the port's machine for something.
pub(super) fn start(port: &NodePort, call: DiskCall) -> Operation<Answer> {
    let (promise, operation) = promise(&port.world, close_opened);
    port.world.with(|state| {
        if !state.machines[port.node].runs(port.process) {
            promise.keep(state, Err(process_is_gone()));
            return;
        }
        state.trace(call.trace());
        let machine = &mut state.machines[port.node];
        let latency_ns = call.latency_ns(&machine.disk, &mut state.random);
        let is_to_fail = call.is_to_fail(&mut machine.disk, &mut state.random);
        if let Some(inode) = call.inode() {
            machine.disk.add_user(inode);
        }
        let sync = match &call {
            DiskCall::Sync { inode } => machine.disk.begin_sync(*inode),
            _ => 0,
        };
        machine.calls.next += 1;
        let number = machine.calls.next;
        let asked = Asked { call, sync, is_to_fail, process: port.process };
        let moment = machine.moment(Stage::Issued, &asked.call);
        machine.calls.under_way.insert(number, UnderWay { asked, promise });
        image::record(state, port.node, moment);
        state.schedule(latency_ns, Happening::DiskCall { node: port.node, number });
    });
    operation
}

/// The time of an operation has come. Does nothing when its process ended before.
pub(super) fn finish(state: &mut State, node: usize, number: u64) {
    let Some(UnderWay { asked, promise }) = state.machines[node].calls.under_way.remove(&number) else {
        return;
    };
    let moment = state.machines[node].moment(Stage::Done, &asked.call);
    let inode = asked.call.inode();
    let disk = &mut state.machines[node].disk;
    let answer = carry_out(disk, &mut state.random, node, asked);
    if let Some(inode) = inode {
        disk.remove_user(inode);
    }
    image::record(state, node, moment);
    promise.keep(state, answer);
}

/// Has an operation take effect.
fn carry_out(disk: &mut Disk, random: &mut Random, node: usize, asked: Asked) -> Answer {
    let Asked { call, sync, is_to_fail, process } = asked;
    match call {
        DiskCall::Open { path, options } => disk.open(&path, &options).map(|inode| {
            DiskAnswer::Opened(Opened { node, process, inode, has_lock: options.exclusive_lock })
        }),
        DiskCall::Read { buf, .. } if is_to_fail => Ok(DiskAnswer::Read(Err(io_fault()), buf)),
        DiskCall::Read { inode, mut buf, from, offset, is_direct } => {
            let into = &mut buf[from..];
            let count = match is_direct {
                true => disk.read_direct(inode, into, offset),
                false => disk.read(inode, into, offset),
            };
            Ok(DiskAnswer::Read(Ok(count), buf))
        }
        DiskCall::Write { inode, data, offset } if is_to_fail => {
            let written = some_pages(data.len(), random);
            let _ = disk.write(inode, &data, written, offset);
            Err(io_fault())
        }
        DiskCall::Write { inode, data, offset } => done(disk.write(inode, &data, data.len(), offset)),
        DiskCall::Sync { inode } if is_to_fail => {
            disk.fail_sync(inode, sync);
            Err(io_fault())
        }
        DiskCall::Sync { inode } => {
            disk.finish_sync(inode, sync);
            Ok(DiskAnswer::Done)
        }
        DiskCall::SyncDir(_) if is_to_fail => Err(io_fault()),
        call => call_of_names(disk, &call),
    }
}

fn call_of_names(disk: &mut Disk, call: &DiskCall) -> Answer {
    match call {
        DiskCall::CreateDir(path) => done(disk.tree.create_dir(path)),
        DiskCall::Rename(from, to) => {
            let replaced = disk.tree.rename(from, to);
            done(disk.collect_all(replaced))
        }
        DiskCall::RemoveFile(path) => {
            let removed = disk.tree.remove_file(path);
            done(disk.collect_all(removed))
        }
        DiskCall::RemoveDirAll(path) => {
            let removed = disk.tree.remove_dir_all(path);
            done(disk.collect_all(removed))
        }
        DiskCall::SyncDir(path) => {
            let forgotten = disk.tree.sync_dir(path);
            done(disk.collect_all(forgotten))
        }
        DiskCall::ReadDir(path) => disk.tree.read_dir(path).map(DiskAnswer::Names),
        DiskCall::Exists(path) => Ok(DiskAnswer::Exists(matches!(disk.tree.entry(path), Ok(Some(_))))),
        _ => unreachable!("operations of files are carried out elsewhere"),
    }
}

fn done(result: io::Result<()>) -> Answer {
    result.map(|()| DiskAnswer::Done)
}

/// A part of `len` bytes, in whole pages.
fn some_pages(len: usize, random: &mut Random) -> usize {
    random.index(len / PAGE_BYTES + 1) * PAGE_BYTES
}

/// The process has ended: what it had under way happens now or never.
pub(super) fn end_all(state: &mut State, node: usize, ending: Ending) {
    let machine = &mut state.machines[node];
    for under_way in std::mem::take(&mut machine.calls.under_way).into_values() {
        // Nobody waits for its answer any more.
        end(&mut machine.disk, &mut state.random, under_way.asked, ending);
    }
}

/// The end of a process meets an operation: it happens, or a part of it, or nothing. What it would have opened and its
/// user's count are for [`Disk::close_all`].
pub(super) fn end(disk: &mut Disk, random: &mut Random, asked: Asked, ending: Ending) {
    let happens = match ending {
        Ending::Exit => true,
        Ending::PowerCut(PowerLoss::All) => false,
        Ending::Kill | Ending::PowerCut(PowerLoss::Seeded) => random.one_in(2),
    };
    if happens {
        let _ = carry_out(disk, random, 0, asked);
        return;
    }
    match &asked.call {
        DiskCall::Sync { inode } => disk.abandon_sync(*inode, asked.sync),
        DiskCall::Write { inode, data, offset } if ending != Ending::PowerCut(PowerLoss::All) => {
            let written = some_pages(data.len(), random);
            let _ = disk.write(*inode, data, written, *offset);
        }
        _ => {}
    }
}

fn close_opened(state: &mut State, answer: Answer) {
    if let Ok(DiskAnswer::Opened(opened)) = answer {
        close(state, opened);
    }
}

/// The last handle of an open file is gone.
pub(super) fn close(state: &mut State, opened: Opened) {
    let machine = &mut state.machines[opened.node];
    if machine.runs(opened.process) {
        if opened.has_lock {
            machine.disk.unlock(opened.inode);
        }
        machine.disk.remove_user(opened.inode);
    }
}
