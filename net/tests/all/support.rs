//! What the tests share: both backends, addresses, waiting for conditions.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use lockgate_net::link::{FORMAT, Hello, Purpose};
use lockgate_runtime::{Runtime, TcpListener, TcpStream, sim::Sim, sleep, timeout};

/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test on a core of a real runtime, and in simulations of several seeds.
pub fn on_both_backends<F, T>(test: F)
where
    F: Fn() -> T + Copy + Send + 'static,
    T: Future<Output = ()> + 'static,
{
    on_real_cores(test);
    for seed in 0..4 {
        Sim::new(seed).node("node", 2).block_on(0, move || async move { within(test()).await });
    }
}

pub fn on_real_cores<F, T>(test: F)
where
    F: Fn() -> T + Copy + Send + 'static,
    T: Future<Output = ()> + 'static,
{
    let runtime = Runtime::builder().cores(2).pin(false).spin_us(0).build().expect("io_uring is available");
    runtime.block_on(0, move || async move { within(test()).await });
    runtime.shutdown();
}

/// Fails the test instead of hanging it.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("the test hangs")
}

/// For conditions that have no event of their own.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE / 2, wait).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

pub async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let addr = listener.local_addr();
    (listener, addr)
}

pub fn hello(node: u32, purpose: Purpose) -> Hello {
    Hello { cluster: [7; 16], node, directory: [node as u8; 16], boot: 1, purpose, format: FORMAT }
}

/// Receives until `bytes` have come, or the end of the stream.
pub async fn recv_exactly(stream: &TcpStream, bytes: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < bytes {
        let (received, buffer) = within(stream.recv(Vec::with_capacity(64 << 10))).await;
        if received.unwrap_or(0) == 0 {
            break;
        }
        all.extend_from_slice(&buffer);
    }
    all
}

pub async fn recv_to_end(stream: &TcpStream) -> Vec<u8> {
    recv_exactly(stream, usize::MAX).await
}
