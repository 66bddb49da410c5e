//! A round trip over loopback between two cores, through the runtime's sockets: what one message and its answer cost a node
//! before it does anything.

use std::net::SocketAddr;

use futures_channel::oneshot;
use lockgate_runtime::{Runtime, TcpListener, TcpStream, now_ns, spawn};

use crate::samples::Samples;

const MESSAGE_BYTES: usize = 64;

/// Measures `count` round trips from the current core to one of `other`'s.
pub async fn round_trips(other: &Runtime, count: usize) -> Samples {
    let (tell, bound) = oneshot::channel();
    other.spawn_on(0, move || async move {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(any).await.expect("a port is free");
        tell.send(listener.local_addr()).expect("somebody waits");
        let (stream, _) = listener.accept().await.expect("somebody connects");
        spawn(echo(stream));
    });
    let stream = TcpStream::connect(bound.await.expect("it is bound")).await.expect("it is there");
    let mut samples = Samples::default();
    for _ in 0..count {
        let began_ns = now_ns();
        let (sent, _) = stream.send_all(vec![7; MESSAGE_BYTES]).await;
        sent.expect("the other end is there");
        receive(&stream).await.expect("the other end answers");
        samples.push(now_ns() - began_ns);
    }
    samples
}

/// One message; `None` at the end of the stream.
async fn receive(stream: &TcpStream) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(MESSAGE_BYTES);
    while message.len() < MESSAGE_BYTES {
        let (received, filled) = stream.recv(message).await;
        message = filled;
        received.ok().filter(|bytes| *bytes > 0)?;
    }
    Some(message)
}

async fn echo(stream: TcpStream) {
    while let Some(message) = receive(&stream).await {
        if stream.send_all(message).await.0.is_err() {
            return;
        }
    }
}
