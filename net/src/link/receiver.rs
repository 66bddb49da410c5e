//! The receiving half of a link.
//!
//! Invariants:
//! - A message is given once, whole, in order, after its checksums matched.
//! - `recv` may be dropped at any time without losing anything: the read under way is kept here.
//! - The input buffer holds at most [`INPUT_BYTES_MAX`]; a message beyond it grows with what arrived.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;

use lockgate_runtime::TcpStream;

use super::error::{LinkError, Peer};
use super::frame::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameDecoder, FrameError, Message, Step};
use super::handshake::{Hello, KIND_PING, KIND_USER_MIN};
use super::sender::Shared;

const INPUT_BYTES_FIRST: usize = 8 << 10;
const INPUT_BYTES_MAX: usize = 512 << 10;

const _: () = assert!(INPUT_BYTES_MAX >= FRAME_HEADER_BYTES + FRAME_BYTES_MAX);

/// Receives the messages of a link.
pub struct LinkReceiver {
    shared: Rc<Shared>,
    reader: FrameReader,
}

impl fmt::Debug for LinkReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkReceiver(from {})", self.shared.peer)
    }
}

impl LinkReceiver {
    pub(super) fn new(shared: Rc<Shared>, reader: FrameReader) -> Self {
        Self { shared, reader }
    }

    /// The next message. After an error the link is over.
    pub async fn recv(&mut self) -> Result<Message, LinkError> {
        loop {
            if let Some(message) = self.try_recv()? {
                return Ok(message);
            }
            if let Some(failure) = self.shared.failure() {
                return Err(failure);
            }
            let filled = {
                let _waiting = self.shared.hearing.waiting();
                self.reader.fill().await
            };
            filled.map_err(|error| self.fail(error))?;
            self.shared.hearing.heard();
        }
    }

    /// The next message if all of it is here already.
    pub fn try_recv(&mut self) -> Result<Option<Message>, LinkError> {
        let next = loop {
            match self.reader.buffered() {
                Ok(Some(message)) if message.kind == KIND_PING && message.payload.is_empty() => {}
                other => break other,
            }
        };
        match next {
            Ok(Some(message)) if message.kind < KIND_USER_MIN => {
                let reason = "this kind belongs to the handshake, which is over".to_owned();
                Err(self.shared.fail(LinkError::Message {
                    peer: self.shared.peer,
                    kind: message.kind,
                    reason,
                }))
            }
            Ok(message) => Ok(message),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// What the peer said of itself.
    pub fn peer(&self) -> &Hello {
        &self.shared.hello
    }

    fn fail(&self, error: ReadError) -> LinkError {
        self.shared.fail(error.of(self.shared.peer))
    }
}

/// Why no further message can be read.
#[derive(Debug)]
pub(super) enum ReadError {
    Frame(FrameError),
    Io(io::Error),
    End { in_message: bool },
}

impl ReadError {
    pub(super) fn of(self, peer: Peer) -> LinkError {
        match self {
            ReadError::Frame(error) => LinkError::Frame { peer, error },
            ReadError::Io(error) => LinkError::io(peer, &error),
            ReadError::End { in_message } => LinkError::ClosedByPeer { peer, in_message },
        }
    }
}

type Reading = Pin<Box<dyn Future<Output = (io::Result<usize>, Vec<u8>)>>>;

/// Reads frames from a stream: during the handshake and after it.
pub(super) struct FrameReader {
    stream: TcpStream,
    pub(super) decoder: FrameDecoder,
    input: Vec<u8>,
    /// How much of `input` was consumed.
    start: usize,
    /// How much of `input` the decoder wants, from `start` on.
    need: usize,
    /// The read under way, which has `input`.
    reading: Option<Reading>,
}

impl FrameReader {
    pub(super) fn new(stream: TcpStream, message_bytes_max: usize) -> Self {
        Self {
            stream,
            decoder: FrameDecoder::with_limit(message_bytes_max),
            input: Vec::new(),
            start: 0,
            need: FRAME_HEADER_BYTES,
            reading: None,
        }
    }

    /// The next message.
    pub(super) async fn next(&mut self) -> Result<Message, ReadError> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// The next message if all of it was received.
    fn buffered(&mut self) -> Result<Option<Message>, ReadError> {
        if self.reading.is_some() {
            return Ok(None);
        }
        loop {
            match self.decoder.decode(&self.input[self.start..]).map_err(ReadError::Frame)? {
                Step::Need(need) => {
                    self.need = need;
                    return Ok(None);
                }
                Step::Part(skip) => self.start += skip,
                Step::Message(skip, message) => {
                    self.start += skip;
                    return Ok(Some(message));
                }
            }
        }
    }

    /// Receives more.
    async fn fill(&mut self) -> Result<(), ReadError> {
        if self.reading.is_none() {
            let input = self.make_room();
            let stream = self.stream.clone();
            self.reading = Some(Box::pin(async move { stream.recv(input).await }));
        }
        let reading = self.reading.as_mut().expect("set above");
        let (received, input) = reading.await;
        self.reading = None;
        self.input = input;
        match received {
            Ok(0) => Err(ReadError::End { in_message: !self.input.is_empty() || self.decoder.in_message() }),
            Ok(_) => Ok(()),
            Err(error) => Err(ReadError::Io(error)),
        }
    }

    /// The input buffer with room for more, and without what was consumed.
    fn make_room(&mut self) -> Vec<u8> {
        let mut input = std::mem::take(&mut self.input);
        // A buffer that was filled to its end is too small for what comes.
        let filled = input.len() == input.capacity();
        input.drain(..self.start);
        self.start = 0;
        let doubled = if filled { 2 * input.capacity() } else { input.capacity() };
        let wanted = doubled.clamp(INPUT_BYTES_FIRST, INPUT_BYTES_MAX).max(self.need);
        input.reserve_exact(wanted - input.len());
        input
    }
}
