//! One connection of a simulated client.

use std::io;
use std::net::SocketAddr;

use lockgate::client::Reply;
use lockgate::client::reply::encode_command;
use lockgate_runtime::TcpStream;

/// Bytes received at once.
const RECV_BYTES: usize = 16 << 10;

/// What came of a request.
#[derive(Debug)]
pub enum Answer {
    /// The machine replied.
    Reply(Reply),
    /// Nothing was sent.
    NotSent,
    /// It was sent, perhaps, and no reply came.
    Lost,
}

pub(super) struct Connection {
    stream: TcpStream,
    /// Room for requests and for replies.
    request: Vec<u8>,
    received: Vec<u8>,
}

impl Connection {
    pub(super) async fn open(addr: SocketAddr) -> io::Result<Self> {
        Ok(Self { stream: TcpStream::connect(addr).await?, request: Vec::new(), received: Vec::new() })
    }

    /// Sends a command and waits for its reply. After anything but a reply, the connection is of no more use.
    pub(super) async fn ask(&mut self, command: &[&[u8]]) -> Answer {
        let mut request = std::mem::take(&mut self.request);
        request.clear();
        encode_command(&mut request, command);
        let (sent, request) = self.stream.send_all(request).await;
        if sent.is_err() {
            return Answer::Lost;
        }
        self.request = request;
        let mut received = std::mem::take(&mut self.received);
        received.clear();
        // How much is received at once depends on the room: each reply finds the same.
        received.shrink_to(RECV_BYTES);
        loop {
            received.reserve(RECV_BYTES);
            let (result, bytes) = self.stream.recv(received).await;
            received = bytes;
            if !result.is_ok_and(|count| count > 0) {
                return Answer::Lost;
            }
            let mut rest = &received[..];
            match Reply::read(&mut rest) {
                Ok(reply) => {
                    self.received = received;
                    return Answer::Reply(reply);
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => panic!("a node sent what is no reply: {error}"),
            }
        }
    }
}
