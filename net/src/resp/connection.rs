//! One client's connection: read, execute all complete requests, settle once, send once.
//!
//! Invariants:
//! - Nothing is read while replies wait to be sent: a client that does not read its replies holds one batch of them
//!   and one buffer of requests, no more.
//! - No reply is sent before `settle` has answered for it.
//! - The input buffer never holds more than about twice the bytes that arrived.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use lockgate_runtime::{TcpStream, timeout};

use super::codec::{Parser, Progress, Request};
use super::limits::{LargeInput, Limits};
use super::reply::{Reply, Taken};
use super::service::{Flow, Service};
use crate::Stop;

/// An input buffer up to this size is a connection's own; beyond it it counts against the node's limit.
pub const INPUT_BYTES_SMALL: usize = 64 << 10;
/// A batch's replies are sent before its end when they reach this size.
pub const REPLY_BYTES_PER_SEND: usize = 1 << 20;

/// The first input buffer: ten thousand idle connections hold 40 MiB.
const INPUT_BYTES_FIRST: usize = 4 << 10;
/// How long in all, how long without a byte, and for how many bytes a connection that ends with an error goes on
/// reading what the client still sends. Closing a socket with unread input resets it, and the client would lose the
/// error's text.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_IDLE: Duration = Duration::from_millis(100);
const LINGER_BYTES_MAX: usize = 64 << 20;

/// The connection is over; why does not matter any more (the peer is gone, or was told).
struct Closed;

/// Whether a batch leaves the connection open.
enum Next {
    /// Read on: the request at the front needs at least so many bytes in all.
    Read(usize),
    /// The service wished to close, after its replies.
    Close,
    /// The peer was sent an error, and may still be sending.
    Linger,
}

/// See the top of the file.
pub(super) struct Connection<S: Service> {
    stream: TcpStream,
    service: Rc<S>,
    session: S::Session,
    stop: Stop,
    parser: Parser,
    /// Received bytes from the first one of the current request on.
    input: Vec<u8>,
    /// Whether the last read filled the buffer, so that a larger one would save system calls.
    filled: bool,
    large: LargeInput,
    reply: Reply,
    /// Requests were executed since the last `settle`.
    unsettled: bool,
}

impl<S: Service> Connection<S> {
    pub(super) fn new(stream: TcpStream, service: Rc<S>, stop: Stop, limits: &Limits) -> Self {
        let session = service.open(stream.peer_addr());
        Self {
            stream,
            service,
            session,
            stop,
            parser: Parser::new(),
            input: Vec::new(),
            filled: false,
            large: limits.large_input(),
            reply: Reply::new(),
            unsettled: false,
        }
    }

    /// Serves until the peer leaves, an error, or the stop signal.
    pub(super) async fn run(mut self) {
        let mut total = 1;
        while !self.stop.is_stopped() {
            if !self.make_room(total) {
                self.reply.error("ERR the server's memory for large requests is in use, try again later");
                return self.send_and_linger().await;
            }
            if self.read().await.is_err() {
                return;
            }
            match self.execute().await {
                Ok(Next::Read(more)) => total = more,
                Ok(Next::Linger) => return linger(&self.stream).await,
                Ok(Next::Close) | Err(Closed) => return,
            }
        }
    }

    /// Executes every complete request of the input, sends the replies, and drops what was consumed.
    async fn execute(&mut self) -> Result<Next, Closed> {
        let mut start = 0;
        let mut spare: Vec<&[u8]> = Vec::new();
        let next = loop {
            let consumed = match self.parser.parse(&self.input[start..]) {
                Ok(Progress::Incomplete { total }) => break Next::Read(total),
                Ok(Progress::Empty { consumed }) => {
                    start += consumed;
                    continue;
                }
                Ok(Progress::Complete { consumed }) => consumed,
                Err(error) => {
                    self.reply.error(&format!("ERR {error}"));
                    break Next::Linger;
                }
            };
            let mut args = recycle(std::mem::take(&mut spare));
            self.parser.args(&self.input[start..][..consumed], &mut args);
            self.unsettled = true;
            let flow = self.service.call(&mut self.session, &Request::new(&args), &mut self.reply).await;
            spare = recycle(args);
            start += consumed;
            if flow == Flow::Close {
                break Next::Close;
            }
            if self.reply.len() >= REPLY_BYTES_PER_SEND {
                self.settle_and_send().await?;
            }
        };
        self.settle_and_send().await?;
        self.input.drain(..start);
        Ok(next)
    }

    /// Sends the gathered replies once they may be acknowledged; or, if they may not be, an error instead.
    async fn settle_and_send(&mut self) -> Result<(), Closed> {
        if std::mem::take(&mut self.unsettled)
            && let Err(text) = self.service.settle(&mut self.session).await
        {
            self.reply.clear();
            self.reply.error(&text);
            self.send_and_linger().await;
            return Err(Closed);
        }
        self.send().await
    }

    async fn send_and_linger(&mut self) {
        if self.send().await.is_ok() {
            linger(&self.stream).await;
        }
    }

    async fn send(&mut self) -> Result<(), Closed> {
        if self.reply.is_empty() {
            return Ok(());
        }
        let sent = match self.reply.take() {
            Taken::Whole(bytes) => {
                let (sent, bytes) = self.stream.send_all(bytes).await;
                self.reply.recycle(bytes);
                sent
            }
            Taken::Parts(parts) => self.stream.send_all_vectored(parts).await,
        };
        sent.map_err(|_| Closed)
    }

    /// Makes room for at least one more byte of a request of `total` bytes or more. False if the node has no memory
    /// left for large requests.
    fn make_room(&mut self, total: usize) -> bool {
        let length = self.input.len();
        if self.input.capacity() > INPUT_BYTES_SMALL
            && length <= INPUT_BYTES_SMALL
            && total <= INPUT_BYTES_SMALL
        {
            self.input.shrink_to(INPUT_BYTES_SMALL);
        }
        let capacity = self.input.capacity();
        let wanted = if length == capacity {
            // At most twice what arrived, and not past the end of a request whose end is known.
            (2 * length).min(total.max(length + length / 2)).max(INPUT_BYTES_FIRST)
        } else if self.filled && capacity < INPUT_BYTES_SMALL {
            2 * capacity
        } else {
            capacity
        };
        let counted = if wanted > INPUT_BYTES_SMALL { wanted } else { 0 };
        if !self.large.hold(counted) {
            return false;
        }
        self.input.reserve_exact(wanted - length);
        true
    }

    /// Receives what there is; `Closed` at the end of the stream, on an error, or when the node stops.
    async fn read(&mut self) -> Result<(), Closed> {
        let input = std::mem::take(&mut self.input);
        let received = {
            let receive = pin!(self.stream.recv(input));
            let stopped = pin!(self.stop.stopped());
            match select(receive, stopped).await {
                Either::Left((received, _)) => received,
                // No batch is at hand here, so nothing is cut off in the middle.
                Either::Right(_) => return Err(Closed),
            }
        };
        self.input = received.1;
        match received.0 {
            Ok(0) | Err(_) => Err(Closed),
            Ok(_) => {
                self.filled = self.input.len() == self.input.capacity();
                Ok(())
            }
        }
    }
}

/// Reads and forgets what the peer still sends, within bounds, so that it gets to read what it was sent last.
pub(super) async fn linger(stream: &TcpStream) {
    let drain = async {
        let mut drained = 0;
        let mut buffer = Vec::with_capacity(INPUT_BYTES_SMALL);
        while drained < LINGER_BYTES_MAX {
            let Ok((received, mut returned)) = timeout(LINGER_IDLE, stream.recv(buffer)).await else {
                return;
            };
            match received {
                Ok(0) | Err(_) => return,
                Ok(count) => drained += count,
            }
            returned.clear();
            buffer = returned;
        }
    };
    let _ = timeout(LINGER, drain).await;
}

/// An empty vector of another lifetime in the same allocation: arguments cost no allocation per request.
fn recycle<'b>(mut args: Vec<&[u8]>) -> Vec<&'b [u8]> {
    args.clear();
    args.into_iter().map(|_| -> &'b [u8] { unreachable!("cleared above") }).collect()
}
