//! Making a link: connect or accept, tell each other who one is, agree or refuse.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use lockgate_runtime::{Boxed, TcpStream, spawn, timeout};

use super::error::{LinkError, Peer};
use super::frame::{FrameEncoder, MESSAGE_BYTES_MAX, Message};
use super::handshake::{
    HANDSHAKE_BYTES_MAX, Hello, HelloError, KIND_HELLO, KIND_REFUSED, KIND_WELCOME, Refusal, RefusalReason,
};
use super::keepalive::keep_alive;
use super::receiver::{FrameReader, LinkReceiver};
use super::sender::{LinkSender, Shared, write_out};

/// How long an accepted connection may take to say who it is.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes links. Both ends of one are a [`LinkSender`] and a [`LinkReceiver`], on the core that made them.
#[derive(Debug)]
pub struct Link;

impl Link {
    /// Connects to a node and introduces this one as `mine`. Returns the halves of the link, and who the peer is.
    /// All of it takes at most `limit`.
    pub fn connect(
        addr: SocketAddr,
        mine: Hello,
        limit: Duration,
    ) -> Boxed<'static, Result<(LinkSender, LinkReceiver, Hello), LinkError>> {
        Box::pin(async move {
            let peer = Peer { addr, node: None };
            let handshake = async {
                let stream =
                    TcpStream::connect(addr).await.map_err(|error| LinkError::connect(peer, &error))?;
                let mut handshake = Handshake::new(stream, peer);
                handshake.send(KIND_HELLO, &mine.encode()).await?;
                let answer = handshake.recv().await?;
                let hello = handshake.check_answer(&mine, &answer)?;
                Ok(handshake.finish(hello))
            };
            within(peer, limit, handshake).await
        })
    }

    /// Takes an accepted connection: `decide` sees who the peer says to be, and answers with this node's Hello, or
    /// with a refusal (which the peer is told).
    pub async fn accept(
        stream: TcpStream,
        decide: impl Fn(&Hello) -> Result<Hello, Refusal>,
    ) -> Result<(LinkSender, LinkReceiver, Hello), LinkError> {
        Self::accept_within(stream, HANDSHAKE_TIMEOUT, decide).await
    }

    /// As [`Link::accept`], with another time limit.
    pub async fn accept_within(
        stream: TcpStream,
        limit: Duration,
        decide: impl Fn(&Hello) -> Result<Hello, Refusal>,
    ) -> Result<(LinkSender, LinkReceiver, Hello), LinkError> {
        let peer = Peer { addr: stream.peer_addr(), node: None };
        let handshake = async {
            let mut handshake = Handshake::new(stream, peer);
            let message = handshake.recv().await?;
            if message.kind != KIND_HELLO {
                let reason = format!("its first message is of kind {}, not a hello", message.kind);
                return Err(LinkError::Handshake { peer, reason });
            }
            let hello = match Hello::decode(&message.payload) {
                Ok(hello) => hello,
                Err(HelloError::Format(format)) => {
                    return Err(handshake.refuse(Refusal::format_mismatch(format)).await);
                }
                Err(error) => return Err(LinkError::Handshake { peer, reason: error.to_string() }),
            };
            handshake.peer.node = Some(hello.node);
            match decide(&hello) {
                Ok(mine) => {
                    let welcome = Hello { purpose: hello.purpose, ..mine };
                    handshake.send(KIND_WELCOME, &welcome.encode()).await?;
                    Ok(handshake.finish(hello))
                }
                Err(refusal) => Err(handshake.refuse(refusal).await),
            }
        };
        within(peer, limit, handshake).await
    }
}

async fn within<T>(
    peer: Peer,
    limit: Duration,
    handshake: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    let timeout_ms = limit.as_millis() as u64;
    timeout(limit, handshake).await.unwrap_or(Err(LinkError::HandshakeTimeout { peer, timeout_ms }))
}

/// A link before both ends have agreed.
struct Handshake {
    peer: Peer,
    stream: TcpStream,
    encoder: FrameEncoder,
    reader: FrameReader,
}

impl Handshake {
    fn new(stream: TcpStream, peer: Peer) -> Self {
        let reader = FrameReader::new(stream.clone(), HANDSHAKE_BYTES_MAX);
        Self { peer, stream, encoder: FrameEncoder::new(), reader }
    }

    async fn send(&mut self, kind: u8, payload: &[u8]) -> Result<(), LinkError> {
        let frame = self.encoder.whole(kind, payload);
        self.stream.send_all(frame).await.0.map_err(|error| LinkError::io(self.peer, &error))
    }

    async fn recv(&mut self) -> Result<Message, LinkError> {
        self.reader.next().await.map_err(|error| error.of(self.peer))
    }

    /// Tells the peer why it is not welcome.
    async fn refuse(&mut self, refusal: Refusal) -> LinkError {
        // Whether it arrives or not, the link is refused.
        let _ = self.send(KIND_REFUSED, &refusal.encode()).await;
        LinkError::RefusedHere { peer: self.peer, refusal }
    }

    /// What the accepting node answered to `mine`.
    fn check_answer(&mut self, mine: &Hello, answer: &Message) -> Result<Hello, LinkError> {
        let peer = self.peer;
        let damaged = |reason: String| LinkError::Handshake { peer, reason };
        match answer.kind {
            KIND_WELCOME => {}
            KIND_REFUSED => {
                let refusal = Refusal::decode(&answer.payload)
                    .ok_or_else(|| damaged("its refusal cannot be read".to_owned()))?;
                return Err(LinkError::Refused { peer, refusal });
            }
            kind => return Err(damaged(format!("it answered a hello with a message of kind {kind}"))),
        }
        let hello = Hello::decode(&answer.payload).map_err(|error| damaged(error.to_string()))?;
        self.peer.node = Some(hello.node);
        let refused = |refusal| LinkError::RefusedHere { peer: self.peer, refusal };
        mine.check_cluster(&hello).map_err(refused)?;
        if hello.purpose != mine.purpose {
            let words =
                format!("purpose mismatch: {:?} was asked for, {:?} answered", mine.purpose, hello.purpose);
            return Err(refused(Refusal::new(RefusalReason::Purpose, words)));
        }
        Ok(hello)
    }

    fn finish(mut self, hello: Hello) -> (LinkSender, LinkReceiver, Hello) {
        self.reader.decoder.limit(MESSAGE_BYTES_MAX);
        let shared = Shared::new(self.peer, hello.clone(), self.stream);
        spawn(write_out(shared.clone(), self.encoder));
        spawn(keep_alive(Rc::downgrade(&shared)));
        (LinkSender::new(shared.clone()), LinkReceiver::new(shared, self.reader), hello)
    }
}
