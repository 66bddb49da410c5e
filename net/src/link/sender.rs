//! The sending half of a link: a queue of messages bounded in bytes, and the task that writes it out.
//!
//! Invariants:
//! - Messages leave in the order in which they were queued; frames of two messages never mix.
//! - The first failure of a link is final: it is what everybody gets, and nothing is queued after it.
//! - Queued bytes exceed [`SEND_QUEUE_BYTES_MAX`] by at most one message.
//! - Large parts are sent from where they lie; only headers and small parts are copied (packed into one buffer, which
//!   costs the kernel less than many small ones).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use lockgate_runtime::{Event, IoBuf, TcpStream, timeout};

use super::error::{LinkError, Peer};
use super::frame::{FRAME_BYTES_MAX, FrameEncoder, MESSAGE_BYTES_MAX};
use super::handshake::{Hello, KIND_PING, KIND_USER_MIN};
use super::keepalive::Hearing;
use super::part::Piece;

/// A sender waits while this many bytes are queued on its link.
pub const SEND_QUEUE_BYTES_MAX: usize = 4 << 20;

/// What a queued message costs beside its bytes, so that the queue of empty ones is bounded as well.
const MESSAGE_OVERHEAD_BYTES: usize = 64;
/// Frames are gathered for one write up to this many bytes.
const WRITE_BYTES: usize = 1 << 20;
/// Pieces up to this many bytes are copied beside the frame headers.
const COPY_BYTES_MAX: usize = 4 << 10;
/// How long what is queued may take to leave after the last sender is gone.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

const _: () = assert!(WRITE_BYTES >= FRAME_BYTES_MAX);

/// What the halves of a link share.
pub(super) struct Shared {
    pub(super) peer: Peer,
    /// What the peer said of itself.
    pub(super) hello: Hello,
    pub(super) stream: TcpStream,
    pub(super) hearing: Hearing,
    state: RefCell<State>,
    /// There is something to write, or the link is over.
    work: Event,
    /// There is room in the queue, or the link is over.
    room: Event,
    /// The link is over.
    closed: Event,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Outgoing>,
    queued_bytes: usize,
    senders_gone: bool,
    failure: Option<LinkError>,
}

impl Shared {
    pub(super) fn new(peer: Peer, hello: Hello, stream: TcpStream) -> Rc<Self> {
        Rc::new(Self {
            peer,
            hello,
            stream,
            hearing: Hearing::new(),
            state: RefCell::default(),
            work: Event::new(),
            room: Event::new(),
            closed: Event::new(),
        })
    }

    /// Ends the link, if this is the first reason to; returns the first reason.
    pub(super) fn fail(&self, error: LinkError) -> LinkError {
        let queue = {
            let mut state = self.state.borrow_mut();
            if let Some(first) = &state.failure {
                return first.clone();
            }
            state.failure = Some(error.clone());
            state.queued_bytes = 0;
            std::mem::take(&mut state.queue)
        };
        drop(queue);
        self.stream.shutdown();
        for event in [&self.work, &self.room, &self.closed] {
            event.notify_all();
        }
        error
    }

    pub(super) fn failure(&self) -> Option<LinkError> {
        self.state.borrow().failure.clone()
    }

    /// Queues a ping, unless something waits to leave anyway.
    pub(super) fn ping(&self) {
        if self.state.borrow().queue.is_empty() {
            self.push(Outgoing::new(KIND_PING, Vec::new(), 0));
        }
    }

    fn push(&self, message: Outgoing) {
        let mut state = self.state.borrow_mut();
        state.queued_bytes += message.left + MESSAGE_OVERHEAD_BYTES;
        state.queue.push_back(message);
        drop(state);
        self.work.notify_all();
    }

    /// The next message to write; None once the link is over or the last sender is gone.
    async fn next(&self) -> Option<Outgoing> {
        loop {
            let work = self.work.listen();
            {
                let mut state = self.state.borrow_mut();
                if state.failure.is_some() {
                    return None;
                }
                if let Some(message) = state.queue.pop_front() {
                    return Some(message);
                }
                if state.senders_gone {
                    return None;
                }
            }
            work.await;
        }
    }

    fn try_next(&self) -> Option<Outgoing> {
        self.state.borrow_mut().queue.pop_front()
    }

    /// So many queued bytes have left.
    fn written(&self, bytes: usize) {
        let mut state = self.state.borrow_mut();
        // After a failure the count was reset.
        state.queued_bytes = state.queued_bytes.saturating_sub(bytes);
        drop(state);
        self.room.notify_all();
    }
}

/// Sends messages on a link. Clones send on the same link, which is closed (after what is queued has left) when the
/// last of them is dropped.
#[derive(Clone)]
pub struct LinkSender(Rc<Senders>);

struct Senders(Rc<Shared>);

impl Drop for Senders {
    fn drop(&mut self) {
        self.0.state.borrow_mut().senders_gone = true;
        self.0.work.notify_all();
    }
}

impl fmt::Debug for LinkSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkSender(to {})", self.shared().peer)
    }
}

impl LinkSender {
    pub(super) fn new(shared: Rc<Shared>) -> Self {
        Self(Rc::new(Senders(shared)))
    }

    fn shared(&self) -> &Shared {
        &self.0.0
    }

    /// Queues a message whose payload is `parts` one after the other; waits while the queue is full. It has not left
    /// when this returns: an answer is the only proof of arrival.
    ///
    /// Panics if `kind` is one of the link's own (below [`KIND_USER_MIN`]).
    pub async fn send(&self, kind: u8, parts: Vec<Box<dyn IoBuf>>) -> Result<(), LinkError> {
        let message = self.message(kind, parts)?;
        let shared = self.shared();
        loop {
            let room = shared.room.listen();
            if self.has_room()? {
                shared.push(message);
                return Ok(());
            }
            room.await;
        }
    }

    /// As [`LinkSender::send`], but drops the message and returns false if the queue is full.
    pub fn try_send(&self, kind: u8, parts: Vec<Box<dyn IoBuf>>) -> Result<bool, LinkError> {
        let message = self.message(kind, parts)?;
        let room = self.has_room()?;
        if room {
            self.shared().push(message);
        }
        Ok(room)
    }

    /// Waits until all that is queued has been handed to the kernel.
    pub async fn flush(&self) -> Result<(), LinkError> {
        let shared = self.shared();
        loop {
            let room = shared.room.listen();
            if let Some(failure) = shared.failure() {
                return Err(failure);
            }
            if shared.state.borrow().queued_bytes == 0 {
                return Ok(());
            }
            room.await;
        }
    }

    /// Closes the link at once. Everybody who waits on it gets the reason.
    pub fn close(&self, reason: &str) {
        let peer = self.shared().peer;
        self.shared().fail(LinkError::ClosedHere { peer, reason: reason.to_owned() });
    }

    /// Waits until the link is over, and says why. That the peer has left is noticed by receiving, or by a send that
    /// fails: somebody must do one of the two.
    pub async fn closed(&self) -> LinkError {
        loop {
            let closed = self.shared().closed.listen();
            if let Some(failure) = self.shared().failure() {
                return failure;
            }
            closed.await;
        }
    }

    /// Why the link is over, if it is.
    pub fn failure(&self) -> Option<LinkError> {
        self.shared().failure()
    }

    /// What the peer said of itself.
    pub fn peer(&self) -> &Hello {
        &self.shared().hello
    }

    /// The peer's name, for messages.
    pub fn peer_name(&self) -> Peer {
        self.shared().peer
    }

    /// Ends the link because of a message that makes no sense.
    pub(super) fn reject(&self, kind: u8, reason: impl fmt::Display) -> LinkError {
        let peer = self.shared().peer;
        self.shared().fail(LinkError::Message { peer, kind, reason: reason.to_string() })
    }

    fn message(&self, kind: u8, parts: Vec<Box<dyn IoBuf>>) -> Result<Outgoing, LinkError> {
        assert!(kind >= KIND_USER_MIN, "message kinds below {KIND_USER_MIN} are the link's own, not {kind}");
        let bytes = parts.iter().map(|part| part.as_slice().len()).sum();
        if bytes > MESSAGE_BYTES_MAX {
            let peer = self.shared().peer;
            return Err(LinkError::MessageTooLong { peer, bytes, limit: MESSAGE_BYTES_MAX });
        }
        Ok(Outgoing::new(kind, parts, bytes))
    }

    fn has_room(&self) -> Result<bool, LinkError> {
        let state = self.shared().state.borrow();
        match &state.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(state.queued_bytes < SEND_QUEUE_BYTES_MAX),
        }
    }
}

/// A message on its way out.
struct Outgoing {
    kind: u8,
    parts: Vec<Rc<dyn IoBuf>>,
    /// Bytes that were not framed yet.
    left: usize,
    /// Where they begin: a part, and an offset in it.
    part: usize,
    offset: usize,
}

impl Outgoing {
    fn new(kind: u8, parts: Vec<Box<dyn IoBuf>>, bytes: usize) -> Self {
        Self { kind, parts: parts.into_iter().map(Rc::from).collect(), left: bytes, part: 0, offset: 0 }
    }

    /// Appends the next frame to `write`. True if it was the last one.
    fn frame(&mut self, encoder: &mut FrameEncoder, write: &mut Write) -> bool {
        let length = self.left.min(FRAME_BYTES_MAX);
        self.left -= length;
        let pieces = self.take(length);
        let slices = pieces.iter().map(|(part, range)| &self.parts[*part].as_slice()[range.clone()]);
        let header = encoder.header(self.kind, self.left > 0, slices);
        write.copy(&header);
        for (part, range) in pieces {
            write.piece(&self.parts[part], range);
        }
        self.left == 0
    }

    /// Where the next `length` bytes lie.
    fn take(&mut self, mut length: usize) -> Vec<(usize, Range<usize>)> {
        let mut pieces = Vec::with_capacity(4);
        while length > 0 {
            let part_bytes = self.parts[self.part].as_slice().len();
            let end = part_bytes.min(self.offset + length);
            if end > self.offset {
                pieces.push((self.part, self.offset..end));
                length -= end - self.offset;
            }
            self.offset = end;
            if end == part_bytes {
                self.part += 1;
                self.offset = 0;
            }
        }
        pieces
    }
}

/// What goes out in one write.
#[derive(Default)]
struct Write {
    /// What precedes `tail`.
    bufs: Vec<Box<dyn IoBuf>>,
    tail: Vec<u8>,
    bytes: usize,
}

impl Write {
    fn copy(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.bytes += bytes.len();
    }

    fn piece(&mut self, part: &Rc<dyn IoBuf>, range: Range<usize>) {
        if range.len() <= COPY_BYTES_MAX {
            return self.copy(&part.as_slice()[range]);
        }
        self.bytes += range.len();
        self.seal_tail();
        self.bufs.push(Box::new(Piece::new(part.clone(), range)));
    }

    fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            self.bufs.push(Box::new(std::mem::take(&mut self.tail)));
        }
    }

    async fn send(&mut self, stream: &TcpStream) -> std::io::Result<()> {
        self.bytes = 0;
        if self.bufs.is_empty() {
            let (sent, mut buffer) = stream.send_all(std::mem::take(&mut self.tail)).await;
            buffer.clear();
            buffer.shrink_to(FRAME_BYTES_MAX);
            self.tail = buffer;
            return sent;
        }
        self.seal_tail();
        stream.send_all_vectored(std::mem::take(&mut self.bufs)).await
    }
}

/// Writes out what is queued until the link is over or its last sender is gone; then ends it.
pub(super) async fn write_out(shared: Rc<Shared>, encoder: FrameEncoder) {
    let drained = Writer { shared: shared.clone(), encoder, write: Write::default() }.run().await;
    if let Err(error) = drained {
        shared.fail(LinkError::io(shared.peer, &error));
    } else {
        let reason = "its last sender is gone".to_owned();
        shared.fail(LinkError::ClosedHere { peer: shared.peer, reason });
    }
}

struct Writer {
    shared: Rc<Shared>,
    encoder: FrameEncoder,
    write: Write,
}

impl Writer {
    async fn run(mut self) -> std::io::Result<()> {
        while let Some(first) = self.shared.next().await {
            let mut current = Some(first);
            while current.is_some() {
                let queued_bytes = self.gather(&mut current);
                self.send().await?;
                self.shared.written(queued_bytes);
            }
        }
        Ok(())
    }

    /// Frames what is queued up to [`WRITE_BYTES`], from `current` on, in which a message that is not done is left.
    /// Returns what it counted in the queue.
    fn gather(&mut self, current: &mut Option<Outgoing>) -> usize {
        let mut queued_bytes = 0;
        while self.write.bytes < WRITE_BYTES {
            let Some(mut message) = current.take().or_else(|| self.shared.try_next()) else { break };
            let before = message.left;
            let done = message.frame(&mut self.encoder, &mut self.write);
            queued_bytes += before - message.left;
            if done {
                queued_bytes += MESSAGE_OVERHEAD_BYTES;
            } else {
                *current = Some(message);
            }
        }
        queued_bytes
    }

    async fn send(&mut self) -> std::io::Result<()> {
        if !self.shared.state.borrow().senders_gone {
            return self.write.send(&self.shared.stream).await;
        }
        // Nobody is left to close the link if the peer has stopped reading.
        match timeout(DRAIN_TIMEOUT, self.write.send(&self.shared.stream)).await {
            Ok(sent) => sent,
            Err(_) => Err(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "what was queued did not leave in time",
            )),
        }
    }
}
