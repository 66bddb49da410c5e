//! A file's bytes in windows, from its beginning to its end as a rule, as the disk has them: the next window is on its way
//! while one is in use.
//!
//! Invariants:
//! - What is read comes from the disk, and not from what the system remembers: see rule R19. Where the filesystem can, the
//!   system's cache is passed by and stays as it is; elsewhere it is made to forget first.
//! - Memory is bounded by two windows of [`WINDOW_BYTES`] with [`ROOM_BYTES`] each, or by what was asked for in one piece if
//!   that is more. It is within the file, so no length that was read makes it larger than the file.
//! - Reading changes nothing on the disk.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::task::Poll;

use futures_util::poll;
use lockgate_runtime::{DIRECT_ALIGN_BYTES, File, OpenOptions, direct_start, mutation};

/// Bytes that are read at once, when a file has turned out to be read on and on.
const WINDOW_BYTES: usize = 2 << 20;
/// Bytes of the first read: of many files only the beginning is looked at.
const FIRST_BYTES: usize = 128 << 10;
/// Room before a window's bytes for the end of the window before: what lies in both is whole then. A batch of small frames fits.
const ROOM_BYTES: usize = (1 << 20) + (64 << 10);
const ALIGN: u64 = DIRECT_ALIGN_BYTES as u64;

/// Bytes of the file: `bytes[begin..]`, from `offset` on.
#[derive(Default)]
struct Window {
    bytes: Vec<u8>,
    begin: usize,
    offset: u64,
}

impl Window {
    fn end(&self) -> u64 {
        self.offset + (self.bytes.len() - self.begin) as u64
    }

    fn range(&self, offset: u64, end: u64) -> Option<Range<usize>> {
        if offset < self.offset || end > self.end() {
            return None;
        }
        let at = |offset: u64| self.begin + (offset - self.offset) as usize;
        Some(at(offset)..at(end))
    }
}

type ReadDone = (io::Result<usize>, Vec<u8>);

/// A read that was begun.
enum Reading {
    Running(Pin<Box<dyn Future<Output = ReadDone>>>),
    Done(ReadDone),
}

struct Next {
    reading: Reading,
    from: usize,
    /// Of the file.
    offset: u64,
    bytes: usize,
}

/// See the module.
pub(super) struct Ahead {
    file: File,
    /// Shorter than it was, if the file was cut while it was read.
    len: u64,
    window: Window,
    next: Option<Next>,
    /// Not in use.
    spare: Vec<u8>,
    read_bytes: usize,
}

impl Ahead {
    pub(super) async fn open(path: &Path) -> io::Result<Ahead> {
        Ahead::open_by(async |options| File::open(path, &options).await).await
    }

    /// As [`Ahead::open`], of the file that `open` opens, which a filesystem may refuse to do for direct reads.
    async fn open_by(open: impl AsyncFn(OpenOptions) -> io::Result<File>) -> io::Result<Ahead> {
        let read = OpenOptions::new().read(true);
        if mutation!("recovery-believes-the-cache") {
            return Ahead::of(open(read).await?).await;
        }
        let direct = async { Ahead::of(open(read.direct(true)).await?).await };
        match direct.await {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let file = open(read).await?;
                file.forget_cached()?;
                Ahead::of(file).await
            }
            opened => opened,
        }
    }

    /// Reads the beginning: only that shows whether the file can be read like this.
    async fn of(file: File) -> io::Result<Ahead> {
        let len = file.len().await?;
        let mut ahead = Ahead {
            file,
            len,
            window: Window::default(),
            next: None,
            spare: Vec::new(),
            read_bytes: FIRST_BYTES,
        };
        if len > 0 {
            ahead.seek(0, 1).await?;
        }
        Ok(ahead)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The window's memory, for ranges that were found.
    pub(super) fn window(&self) -> &[u8] {
        &self.window.bytes
    }

    /// The range of the window with `len` bytes from `offset`; `None` when the file is shorter.
    pub(super) async fn bytes(&mut self, offset: u64, len: usize) -> io::Result<Option<Range<usize>>> {
        let Some(end) = offset.checked_add(len as u64).filter(|end| *end <= self.len) else {
            return Ok(None);
        };
        if self.window.range(offset, end).is_none() {
            if self.goes_on(offset, end) {
                self.advance(offset).await?;
            } else {
                self.seek(offset, len).await?;
            }
        }
        let Some(range) = self.window.range(offset, end) else {
            // It became shorter while it was read.
            self.len = self.window.end();
            return Ok(None);
        };
        // Who looks only at the beginning wants nothing of what follows.
        if offset > 0 {
            self.begin_next().await;
        }
        Ok(Some(range))
    }

    /// Whether the next window, with the end of this one before it, has these bytes.
    fn goes_on(&self, offset: u64, end: u64) -> bool {
        let Some(next) = &self.next else { return false };
        (self.window.offset..=self.window.end()).contains(&offset)
            && self.window.end() - offset <= ROOM_BYTES as u64
            && end <= (next.offset + next.bytes as u64).min(self.len)
    }

    /// Makes the next window the present one, and keeps of this one what lies from `offset` on.
    async fn advance(&mut self, offset: u64) -> io::Result<()> {
        let next = self.next.take().expect("the caller has looked");
        let (result, mut bytes) = match next.reading {
            Reading::Running(reading) => reading.await,
            Reading::Done(done) => done,
        };
        bytes.truncate(next.from + result?);
        let kept = (self.window.end() - offset) as usize;
        let begin = next.from - kept;
        let old = &self.window.bytes;
        bytes[begin..next.from].copy_from_slice(&old[old.len() - kept..]);
        let before = std::mem::replace(&mut self.window, Window { bytes, begin, offset });
        self.spare = before.bytes;
        Ok(())
    }

    /// Reads a window with `len` bytes from `offset`, wherever that is.
    async fn seek(&mut self, offset: u64, len: usize) -> io::Result<()> {
        // Its buffer belongs to it until it is done.
        self.next = None;
        let at = offset - offset % ALIGN;
        let bytes = self.length(at, len.max(self.read_bytes) + (offset - at) as usize);
        let old = std::mem::take(&mut self.window);
        if self.spare.capacity() < old.bytes.capacity() {
            self.spare = old.bytes;
        }
        let (buffer, from) = self.buffer(0, bytes);
        let (result, mut buffer) = self.file.read_part_at(buffer, from, at).await;
        buffer.truncate(from + result?);
        self.window = Window { bytes: buffer, begin: from, offset: at };
        self.read_more();
        Ok(())
    }

    /// Begins to read what follows the window, if that was not begun and there is any.
    async fn begin_next(&mut self) {
        let offset = self.window.end();
        if self.next.is_some() || offset >= self.len || !offset.is_multiple_of(ALIGN) {
            return;
        }
        let bytes = self.length(offset, self.read_bytes);
        // What is kept of a window is no more than all of it.
        let room = ROOM_BYTES.min(self.window.bytes.len() - self.window.begin);
        let (buffer, from) = self.buffer(room, bytes);
        let file = self.file.clone();
        let mut reading: Pin<Box<dyn Future<Output = ReadDone>>> =
            Box::pin(async move { file.read_part_at(buffer, from, offset).await });
        let reading = match poll!(&mut reading) {
            Poll::Ready(done) => Reading::Done(done),
            Poll::Pending => Reading::Running(reading),
        };
        self.next = Some(Next { reading, from, offset, bytes });
        self.read_more();
        // It is on its way only when the core has come round.
        lockgate_runtime::yield_now().await;
    }

    fn read_more(&mut self) {
        self.read_bytes = (2 * self.read_bytes).min(WINDOW_BYTES);
    }

    /// `bytes` from `offset` on, in whole units, as far as the file reaches.
    fn length(&self, offset: u64, bytes: usize) -> usize {
        let left = (self.len - offset).next_multiple_of(ALIGN);
        bytes.next_multiple_of(DIRECT_ALIGN_BYTES).min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    /// A buffer that begins with so much room and ends with so many bytes, and where those begin.
    fn buffer(&mut self, room: usize, bytes: usize) -> (Vec<u8>, usize) {
        let whole = |bytes: usize| room + DIRECT_ALIGN_BYTES + bytes;
        let wanted = whole(bytes.max(self.read_bytes));
        let mut buffer = std::mem::take(&mut self.spare);
        if buffer.capacity() < wanted || buffer.capacity() > 2 * whole(bytes.max(WINDOW_BYTES)) {
            buffer = vec![0; wanted];
        }
        let from = direct_start(&buffer, room);
        buffer.resize(from + bytes, 0);
        (buffer, from)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::PathBuf;

    use lockgate_runtime::fs;
    use lockgate_runtime::sim::Sim;
    use proptest::prelude::*;

    use super::*;
    use crate::log::tests::{in_simulation, on_core};

    /// Larger than the windows, and not of whole units.
    const LEN: usize = 3 * WINDOW_BYTES + 700_123;

    fn content(at: usize) -> u8 {
        (at ^ at >> 8 ^ at >> 17) as u8
    }

    /// A file with this content.
    async fn make_file(dir: &Path) -> PathBuf {
        fs::create_dir_all(dir).await.expect("created");
        let path = dir.join("file");
        fs::write_atomic(&path, (0..LEN).map(content).collect()).await.expect("written");
        path
    }

    async fn check(ahead: &mut Ahead, offset: usize, len: usize) {
        let found = ahead.bytes(offset as u64, len).await.expect("read");
        if offset + len > LEN {
            return assert_eq!(found, None, "{len} bytes from {offset}");
        }
        let found = &ahead.window()[found.expect("they are there")];
        assert_eq!(found.len(), len);
        let differs = found.iter().enumerate().find(|(at, byte)| **byte != content(offset + at));
        assert_eq!(differs, None, "{len} bytes from {offset}");
    }

    async fn walk(dir: PathBuf, steps: Vec<(usize, usize, bool)>) {
        let path = make_file(&dir).await;
        walk_through(Ahead::open(&path).await.expect("opened"), steps).await;
    }

    async fn walk_through(mut ahead: Ahead, steps: Vec<(usize, usize, bool)>) {
        assert_eq!(ahead.len(), LEN as u64);
        let mut at = 0;
        for (skip, len, is_jump) in steps {
            at = if is_jump { skip * 977 % LEN } else { at + skip % 3_000 };
            check(&mut ahead, at, len).await;
            at += len;
        }
        // To the end, in pieces as batches are.
        let mut at = 0;
        while at < LEN {
            check(&mut ahead, at, 64).await;
            check(&mut ahead, at, 300_000.min(LEN - at)).await;
            at += 300_000;
        }
    }

    #[test]
    fn any_walk_through_a_file_finds_its_bytes() {
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 8,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let lengths = prop_oneof![6 => 1..5_000usize, 2 => 1..1_500_000usize, 1 => 1..LEN];
        let steps = prop::collection::vec(
            (any::<u32>().prop_map(|n| n as usize), lengths, prop::bool::weighted(0.2)),
            1..25,
        );
        let outcome = runner.run(&steps, |steps| {
            let again = steps.clone();
            on_core(move |dir| walk(dir, steps));
            in_simulation(move |dir| walk(dir, again));
            Ok(())
        });
        outcome.unwrap();
    }

    /// Opens as `direct` does what is to be read directly, and else the file. Says which of both was asked for, in order.
    async fn open_where(
        path: &Path,
        direct: impl AsyncFn() -> io::Result<File>,
    ) -> (io::Result<Ahead>, Vec<bool>) {
        let asked = RefCell::new(Vec::new());
        let opened = Ahead::open_by(async |options| {
            assert!(options.read && options == OpenOptions::new().read(true).direct(options.direct));
            asked.borrow_mut().push(options.direct);
            if options.direct { direct().await } else { File::open(path, &options).await }
        });
        (opened.await, asked.into_inner())
    }

    /// As a filesystem that knows no direct reads.
    async fn refuse() -> io::Result<File> {
        Err(io::Error::from_raw_os_error(rustix::io::Errno::INVAL.raw_os_error()))
    }

    #[test]
    fn where_direct_reads_are_refused_the_same_is_read_without_them() {
        let test = |dir: PathBuf| async move {
            let path = make_file(&dir).await;
            let (opened, asked) = open_where(&path, refuse).await;
            assert_eq!(asked, [true, false]);
            walk_through(opened.expect("opened"), vec![(0, 64, true), (7, 100_000, false), (9, 5_000, true)])
                .await;
        };
        on_core(test);
        in_simulation(test);
    }

    #[test]
    fn direct_reads_may_be_refused_as_late_as_the_first_one() {
        // It opens, has a length, and refuses to be read: the loopback device has no such property.
        let refusing = Path::new("/sys/class/net/lo/duplex");
        let read = std::fs::read(refusing).map_err(|error| error.kind());
        if read != Err(io::ErrorKind::InvalidInput) {
            eprintln!("SKIPPED: reading {} is not refused here: {read:?}", refusing.display());
            return;
        }
        on_core(move |dir| async move {
            let path = make_file(&dir).await;
            let direct = async || File::open(refusing, &OpenOptions::new().read(true)).await;
            let (opened, asked) = open_where(&path, direct).await;
            assert_eq!(asked, [true, false]);
            walk_through(opened.expect("opened"), vec![(3, 70_000, true)]).await;
        });
    }

    #[test]
    fn another_error_than_a_refusal_is_one() {
        let test = |dir: PathBuf| async move {
            let path = make_file(&dir).await;
            let (opened, asked) =
                open_where(&path, async || Err(io::ErrorKind::PermissionDenied.into())).await;
            assert_eq!(opened.err().map(|error| error.kind()), Some(io::ErrorKind::PermissionDenied));
            assert_eq!(asked, [true], "it was not tried in another way");
            // It cannot be read, which only the first read shows.
            let direct = async || File::open(&path, &OpenOptions::new().write(true)).await;
            let (opened, asked) = open_where(&path, direct).await;
            assert!(opened.is_err_and(|error| error.kind() != io::ErrorKind::InvalidInput));
            assert_eq!(asked, [true]);
            // It is gone by then.
            let (opened, asked) = open_where(&dir.join("none"), refuse).await;
            assert_eq!(opened.err().map(|error| error.kind()), Some(io::ErrorKind::NotFound));
            assert_eq!(asked, [true, false]);
        };
        on_core(test);
        in_simulation(test);
    }

    #[test]
    fn what_the_disk_never_got_is_not_read_without_direct_reads_either() {
        let sim = Sim::new(7);
        let (node, control, path) = (sim.node("a", 1), sim.control(), PathBuf::from("/node/file"));
        let (old, new) = (vec![1; 10_000], vec![2; 10_000]);
        let (place, bytes) = (path.clone(), old.clone());
        node.block_on(0, move || async move {
            fs::create_dir_all(Path::new("/node")).await.expect("created");
            fs::write_atomic(&place, bytes).await.expect("written");
        });
        control.fail_next_sync("a");
        node.block_on(0, move || async move {
            let file = File::open(&path, &OpenOptions::new().write(true)).await.expect("opened");
            file.write_all_at(new.clone(), 0).await.0.expect("written");
            assert!(file.sync_data().await.is_err());
            assert_eq!(fs::read(&path).await.expect("read"), new, "the system believes that it is there");
            let mut ahead = open_where(&path, refuse).await.0.expect("opened");
            let found = ahead.bytes(0, old.len()).await.expect("read").expect("it is there");
            assert_eq!(ahead.window()[found], old);
        });
    }
}
