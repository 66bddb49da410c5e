//! One connection to one node: commands out, replies in, in order.
//!
//! Invariants: after any error the connection is of no more use (replies could be matched to the wrong commands), and
//! says so. Replies already read when it failed are not thrown away: they tell what those commands did.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lockgate_runtime::sync::Arc;

use super::error::ClientError;
use super::reply::{Reply, encode_command};

const READ_BUFFER_BYTES: usize = 64 * 1024;
/// A socket's timeout cannot be zero.
const TIMEOUT_MIN: Duration = Duration::from_micros(1);

/// How long to wait for a node.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For the node to take a pipeline's commands, and again for all of its replies.
    pub answer: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { connect: Duration::from_secs(1), answer: Duration::from_secs(5) }
    }
}

/// Commands to be sent together.
#[derive(Clone, Debug, Default)]
pub struct Pipeline {
    bytes: Vec<u8>,
    commands: usize,
}

impl Pipeline {
    /// Without commands.
    pub fn new() -> Pipeline {
        Pipeline::default()
    }

    /// Adds a command.
    pub fn push(&mut self, args: &[&[u8]]) -> &mut Pipeline {
        encode_command(&mut self.bytes, args);
        self.commands += 1;
        self
    }

    /// How many commands it has.
    pub fn len(&self) -> usize {
        self.commands
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.commands == 0
    }
}

/// Sending failed.
#[derive(Debug)]
pub struct SendError {
    /// Why.
    pub error: ClientError,
    /// Whether some bytes may have reached the node. If not, no command took effect.
    pub may_have_arrived: bool,
}

/// A connection to a node.
pub struct Connection {
    addr: SocketAddr,
    timeouts: Timeouts,
    stream: BufReader<DeadlineStream>,
    broken: bool,
}

impl Connection {
    /// Connects.
    pub fn connect(addr: SocketAddr, timeouts: Timeouts) -> Result<Connection, ClientError> {
        let failed = |source| ClientError::Connect { addr, source: Arc::new(source) };
        let stream = TcpStream::connect_timeout(&addr, timeouts.connect).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let stream = DeadlineStream { stream, deadline: Instant::now() };
        let stream = BufReader::with_capacity(READ_BUFFER_BYTES, stream);
        Ok(Connection { addr, timeouts, stream, broken: false })
    }

    /// The node's address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether an error made it useless.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Sends one command and waits for its reply. An error reply is `Err`.
    pub fn call(&mut self, args: &[&[u8]]) -> Result<Reply, ClientError> {
        let mut pipeline = Pipeline::new();
        pipeline.push(args);
        self.send(&pipeline).map_err(|failed| failed.error)?;
        match self.receive()? {
            Reply::Error(error) => Err(ClientError::Server { addr: self.addr, error }),
            reply => Ok(reply),
        }
    }

    /// Sends all commands and reads replies until all are there or the connection fails.
    ///
    /// The commands without a reply have an unknown outcome. A pipeline's commands and replies should not both be
    /// larger than what sockets hold: nothing is read until all is sent.
    pub fn pipeline(&mut self, pipeline: &Pipeline) -> (Vec<Reply>, Result<(), ClientError>) {
        let mut replies = Vec::with_capacity(pipeline.len());
        if let Err(failed) = self.send(pipeline) {
            return (replies, Err(failed.error));
        }
        while replies.len() < pipeline.len() {
            match self.receive() {
                Ok(reply) => replies.push(reply),
                Err(error) => return (replies, Err(error)),
            }
        }
        (replies, Ok(()))
    }

    /// Sends commands without waiting; as many calls of [`Connection::receive`] must follow. Starts the time for the replies.
    pub fn send(&mut self, pipeline: &Pipeline) -> Result<(), SendError> {
        if self.broken {
            let error = ClientError::Closed { addr: self.addr };
            return Err(SendError { error, may_have_arrived: false });
        }
        let deadline = Instant::now() + self.timeouts.answer;
        let stream = self.stream.get_mut();
        stream.deadline = deadline;
        let mut sent = 0;
        while sent < pipeline.bytes.len() {
            match stream.send_some(&pipeline.bytes[sent..]) {
                Ok(count) => sent += count,
                Err(source) => {
                    self.broken = true;
                    let error = ClientError::from_io(self.addr, "send", self.timeouts.answer, source);
                    return Err(SendError { error, may_have_arrived: sent > 0 });
                }
            }
        }
        stream.deadline = Instant::now() + self.timeouts.answer;
        Ok(())
    }

    /// Makes the connection useless: a reply was not what was asked for, so later ones cannot be trusted either.
    pub fn poison(&mut self) {
        self.broken = true;
    }

    /// The next reply.
    pub fn receive(&mut self) -> Result<Reply, ClientError> {
        if self.broken {
            return Err(ClientError::Closed { addr: self.addr });
        }
        Reply::read(&mut self.stream).map_err(|source| {
            self.broken = true;
            ClientError::from_io(self.addr, "reply", self.timeouts.answer, source)
        })
    }
}

/// A socket whose reads and writes end at a deadline, however slowly bytes trickle.
struct DeadlineStream {
    stream: TcpStream,
    deadline: Instant,
}

impl DeadlineStream {
    fn left(&self) -> std::io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left < TIMEOUT_MIN { Err(std::io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn send_some(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        match self.stream.write(bytes) {
            Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(0),
            result => result,
        }
    }
}

impl Read for DeadlineStream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_server::{Action, TestServer};
    use super::*;

    fn short() -> Timeouts {
        Timeouts { connect: Duration::from_secs(5), answer: Duration::from_millis(50) }
    }

    #[test]
    fn calls_and_pipelines_are_answered_in_order() {
        let server = TestServer::start(|args| match args[0].as_slice() {
            b"ECHO" => Action::bulk(&args[1]),
            _ => Action::reply("-ERR unknown command"),
        });
        let mut connection = Connection::connect(server.addr(), Timeouts::default()).unwrap();
        assert_eq!(connection.call(&[b"ECHO", b"hello"]).unwrap(), Reply::Bulk(b"hello".to_vec()));
        let error = connection.call(&[b"NO"]).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: ERR unknown command", server.addr()));

        let mut pipeline = Pipeline::new();
        for n in 0..1000 {
            pipeline.push(&[b"ECHO", format!("{n}").as_bytes()]);
        }
        let (replies, result) = connection.pipeline(&pipeline);
        result.unwrap();
        let expected: Vec<_> = (0..1000).map(|n| Reply::Bulk(n.to_string().into_bytes())).collect();
        assert_eq!(replies, expected);
    }

    #[test]
    fn what_was_answered_before_the_end_is_kept() {
        let server = TestServer::start(|args| match args[0].as_slice() {
            b"CLOSE" => Action::Close,
            _ => Action::reply("+OK"),
        });
        let mut connection = Connection::connect(server.addr(), Timeouts::default()).unwrap();
        let mut pipeline = Pipeline::new();
        pipeline.push(&[b"A"]).push(&[b"B"]).push(&[b"CLOSE"]).push(&[b"C"]);
        let (replies, result) = connection.pipeline(&pipeline);
        assert_eq!(replies.len(), 2);
        assert!(matches!(result, Err(ClientError::Closed { .. })), "{result:?}");
        assert!(connection.is_broken());
        let failed = connection.send(&pipeline).unwrap_err();
        assert!(!failed.may_have_arrived);
    }

    #[test]
    fn silence_is_a_timeout_and_nonsense_is_named() {
        let server = TestServer::start(|args| match args[0].as_slice() {
            b"SILENCE" => Action::Silence,
            _ => Action::reply("nonsense"),
        });
        let mut connection = Connection::connect(server.addr(), short()).unwrap();
        let error = connection.call(&[b"SILENCE"]).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: no reply within 50 ms", server.addr()));
        let mut connection = Connection::connect(server.addr(), Timeouts::default()).unwrap();
        let error = connection.call(&[b"X"]).unwrap_err();
        assert!(error.to_string().ends_with("not a proper reply: a reply cannot begin with 'n'"), "{error}");
    }

    #[test]
    fn nobody_listens() {
        let addr = TestServer::unused_addr();
        assert!(matches!(Connection::connect(addr, short()), Err(ClientError::Connect { .. })));
    }
}
