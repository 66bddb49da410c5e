//! The RESP listener with a small key-value service.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use lockgate_net::Stop;
use lockgate_net::resp::{Flow, Limits, Reply, Request, STOP_GRACE, Service, serve};
use lockgate_runtime::{Event, TcpStream, now_ns, spawn, timeout};

use super::support::{listener, on_both_backends, on_real_cores, recv_exactly, recv_to_end, until, within};

#[derive(Default)]
struct Store {
    values: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
    calls: Cell<usize>,
    settles: Cell<usize>,
    /// What `settle` answers.
    unsettled: RefCell<Option<String>>,
    /// `PARK` waits for this.
    unpark: Event,
    parked: Cell<usize>,
}

impl Service for Store {
    type Session = usize;

    fn open(&self, peer: SocketAddr) -> usize {
        assert!(peer.ip().is_loopback());
        0
    }

    async fn call(&self, session: &mut usize, request: &Request<'_>, reply: &mut Reply) -> Flow {
        *session += 1;
        self.calls.set(self.calls.get() + 1);
        match request.args() {
            [name, key, value] if name.eq_ignore_ascii_case(b"SET") => {
                self.values.borrow_mut().insert(key.to_vec(), value.to_vec());
                reply.ok();
            }
            [_, key] if request.is("GET") => match self.values.borrow().get(*key) {
                Some(value) => reply.bulk_shared(value.clone()),
                None => reply.null(),
            },
            [_, text] if request.is("ECHO") => reply.bulk(text),
            [_] if request.is("COUNT") => reply.integer(*session as i64),
            [_] if request.is("PARK") => {
                let unpark = self.unpark.listen();
                self.parked.set(self.parked.get() + 1);
                unpark.await;
                reply.simple("UNPARKED");
            }
            [_] if request.is("QUIT") => {
                reply.ok();
                return Flow::Close;
            }
            _ => reply.error("ERR unknown command"),
        }
        Flow::Continue
    }

    async fn settle(&self, _: &mut usize) -> Result<(), String> {
        self.settles.set(self.settles.get() + 1);
        self.unsettled.borrow().clone().map_or(Ok(()), Err)
    }
}

/// A running listener.
struct Server {
    store: Rc<Store>,
    addr: SocketAddr,
    stop: Stop,
    limits: Limits,
    ended: Rc<Cell<bool>>,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let (listener, addr) = listener().await;
        let (store, stop, ended) = (Rc::new(Store::default()), Stop::new(), Rc::new(Cell::new(false)));
        let serving = serve(listener, store.clone(), stop.clone(), limits.clone());
        let end = ended.clone();
        spawn(async move {
            serving.await;
            end.set(true);
        });
        Self { store, addr, stop, limits, ended }
    }

    async fn connect(&self) -> TcpStream {
        within(TcpStream::connect(self.addr)).await.unwrap()
    }

    /// Sends bytes and returns all that is answered before the server closes.
    async fn last_words(&self, bytes: &[u8]) -> String {
        let stream = self.connect().await;
        let _ = stream.send_all(bytes.to_vec()).await;
        String::from_utf8(recv_to_end(&stream).await).unwrap()
    }

    /// Sends bytes and expects exactly this answer, on an open connection.
    async fn exchange(&self, stream: &TcpStream, bytes: &[u8], answer: &str) {
        stream.send_all(bytes.to_vec()).await.0.unwrap();
        let received = recv_exactly(stream, answer.len()).await;
        assert_eq!(received.escape_ascii().to_string(), answer.as_bytes().escape_ascii().to_string());
    }

    async fn end(self) {
        self.stop.stop();
        until("the listener's end", || self.ended.get()).await;
        assert_eq!((self.limits.connections(), self.limits.large_input_bytes()), (0, 0));
    }
}

fn set(key: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes =
        format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len()).into_bytes();
    bytes.extend_from_slice(value);
    bytes.extend_from_slice(b"\r\n");
    bytes
}

#[test]
fn a_pipeline_is_executed_in_order_and_settled_once() {
    on_both_backends(|| async {
        let server = Server::start(Limits::default()).await;
        let stream = server.connect().await;
        let mut pipeline = set("k", b"v1");
        pipeline.extend_from_slice(
            b"GET k\r\n*2\r\n$3\r\nget\r\n$1\r\nx\r\n\r\nSET k \"v 2\"\r\nGET k\r\nNOPE\r\nCOUNT\r\n",
        );
        let answer = "+OK\r\n$2\r\nv1\r\n$-1\r\n+OK\r\n$3\r\nv 2\r\n-ERR unknown command\r\n:7\r\n";
        server.exchange(&stream, &pipeline, answer).await;
        server.exchange(&stream, b"QUIT\r\nCOUNT\r\n", "+OK\r\n").await;
        assert_eq!(recv_to_end(&stream).await, b"");
        assert_eq!(server.store.calls.get(), 8, "nothing is executed after QUIT");
        server.end().await;
    });
}

#[test]
fn a_long_pipeline_is_settled_in_few_batches() {
    on_real_cores(|| async {
        let server = Server::start(Limits::default()).await;
        let stream = server.connect().await;
        let answer = (1..=2000).map(|n| format!(":{n}\r\n")).collect::<String>();
        server.exchange(&stream, &b"*1\r\n$5\r\nCOUNT\r\n".repeat(2000), &answer).await;
        assert!(server.store.settles.get() <= 20, "{} batches", server.store.settles.get());
        server.end().await;
    });
}

#[test]
fn malformed_input_is_answered_in_words_and_the_server_goes_on() {
    on_both_backends(|| async {
        let server = Server::start(Limits::default()).await;
        let inline = vec![b'a'; 1 << 20];
        for (input, error) in [
            (&b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$629145600\r\n"[..], "invalid bulk length"),
            (b"*1\r\n$-5\r\n", "invalid bulk length"),
            (b"*99999999\r\n", "invalid multibulk length"),
            (b"*2\r\n$3\r\nGET\r\nx", "expected '$', got 'x'"),
            (b"GET \"k\r\n", "unbalanced quotes in request"),
            (&inline, "too big inline request"),
            (&[b"*", &inline[..]].concat(), "too big mbulk count string"),
        ] {
            assert_eq!(server.last_words(input).await, format!("-ERR Protocol error: {error}\r\n"));
        }
        // What came before the damage is executed.
        assert_eq!(
            server.last_words(b"SET a b\r\n*1\r\n!").await,
            "+OK\r\n-ERR Protocol error: expected '$', got '!'\r\n"
        );
        let stream = server.connect().await;
        server.exchange(&stream, b"GET a\r\n", "$1\r\nb\r\n").await;
        drop(stream);
        // Half a command, and nobody who waits for its end.
        let stream = server.connect().await;
        stream.send_all(&b"*2\r\n$3\r\nGET\r\n$10\r\nab"[..]).await.0.unwrap();
        drop(stream);
        server.end().await;
    });
}

#[test]
fn large_values_pass_and_their_memory_is_given_back() {
    on_both_backends(|| async {
        let server = Server::start(Limits::new(10, 32 << 20)).await;
        let stream = server.connect().await;
        let value: Vec<u8> = (0..5_000_000u32).map(|n| n as u8).collect();
        server.exchange(&stream, &set("k", &value), "+OK\r\n").await;
        stream.send_all(&b"GET k\r\n"[..]).await.0.unwrap();
        let answer = recv_exactly(&stream, value.len() + 12).await;
        assert!(answer.starts_with(b"$5000000\r\n") && answer[10..].starts_with(&value));
        server.exchange(&stream, b"COUNT\r\n", ":3\r\n").await;
        until("the memory", || server.limits.large_input_bytes() == 0).await;
        server.end().await;
    });
}

#[test]
fn memory_for_large_requests_is_bounded_over_all_connections() {
    on_both_backends(|| async {
        let server = Server::start(Limits::new(10, 200 << 10)).await;
        let words = server.last_words(&set("k", &vec![0; 1 << 20])).await;
        assert_eq!(words, "-ERR the server's memory for large requests is in use, try again later\r\n");
        let stream = server.connect().await;
        server.exchange(&stream, &set("k", &[b'x'; 100_000]), "+OK\r\n").await;
        server.end().await;
    });
}

#[test]
fn replies_that_may_not_be_acknowledged_are_replaced() {
    on_both_backends(|| async {
        let server = Server::start(Limits::default()).await;
        *server.store.unsettled.borrow_mut() = Some("ERR the log has failed".to_owned());
        assert_eq!(server.last_words(b"SET a b\r\nGET a\r\n").await, "-ERR the log has failed\r\n");
        server.end().await;
    });
}

#[test]
fn too_many_clients_are_told_so() {
    on_both_backends(|| async {
        let server = Server::start(Limits::new(2, 1 << 20)).await;
        let open = [server.connect().await, server.connect().await];
        for stream in &open {
            server.exchange(stream, b"COUNT\r\n", ":1\r\n").await;
        }
        assert_eq!(server.last_words(b"COUNT\r\n").await, "-ERR max number of clients reached\r\n");
        let [first, second] = open;
        drop(first);
        until("room", || server.limits.connections() == 1).await;
        server.exchange(&server.connect().await, b"COUNT\r\n", ":1\r\n").await;
        server.exchange(&second, b"COUNT\r\n", ":2\r\n").await;
        server.end().await;
    });
}

#[test]
fn a_stop_lets_the_batch_at_hand_finish() {
    on_both_backends(|| async {
        let server = Server::start(Limits::default()).await;
        let (busy, idle) = (server.connect().await, server.connect().await);
        server.exchange(&idle, b"COUNT\r\n", ":1\r\n").await;
        busy.send_all(&b"PARK\r\nSET a b\r\n"[..]).await.0.unwrap();
        until("a parked call", || server.store.parked.get() == 1).await;
        server.stop.stop();
        assert_eq!(recv_to_end(&idle).await, b"", "idle connections close at once");
        assert!(!server.ended.get());
        server.store.unpark.notify_all();
        // How much of the rest belongs to the batch at hand depends on what had arrived.
        assert!(recv_to_end(&busy).await.starts_with(b"+UNPARKED\r\n"));
        assert!(within(TcpStream::connect(server.addr)).await.is_err(), "the listener is closed");
        server.end().await;
    });
}

#[test]
fn a_stop_does_not_wait_for_ever() {
    on_both_backends(|| async {
        // In the simulation the grace passes at once; on real cores it takes its time.
        let server = Server::start(Limits::default()).await;
        let busy = server.connect().await;
        busy.send_all(&b"PARK\r\n"[..]).await.0.unwrap();
        until("a parked call", || server.store.parked.get() == 1).await;
        let start = now_ns();
        server.stop.stop();
        assert_eq!(recv_to_end(&busy).await, b"");
        assert!(Duration::from_nanos(now_ns() - start) >= STOP_GRACE);
        server.end().await;
    });
}

/// A client that sends and sends, and does not read.
async fn deaf_client(requests: usize) {
    let server = Server::start(Limits::default()).await;
    let stream = server.connect().await;
    let request = [b"*2\r\n$4\r\nECHO\r\n$65536\r\n", &vec![b'x'; 65536][..], b"\r\n"].concat();
    let (sender, all) = (stream.clone(), Rc::new(Cell::new(0)));
    let sent = all.clone();
    let sending = spawn(async move {
        for _ in 0..requests {
            if sender.send_all(request.clone()).await.0.is_err() {
                return;
            }
            sent.set(sent.get() + 1);
        }
    });
    // Stalled: nothing is sent for a while.
    let mut last = usize::MAX;
    while last != all.get() {
        last = all.get();
        let _ = timeout(Duration::from_millis(300), std::future::pending::<()>()).await;
    }
    assert!(all.get() < requests, "the server must stop reading from a client that does not read");
    assert!(server.limits.large_input_bytes() <= 1 << 20);
    let executed = server.store.calls.get();
    assert!(executed < requests);
    // Once it reads, everything comes, in order.
    let reply = [b"$65536\r\n", &vec![b'x'; 65536][..], b"\r\n"].concat();
    for _ in 0..requests {
        assert!(recv_exactly_into(&stream, &reply).await);
    }
    drop(sending);
    server.end().await;
}

/// Receives exactly as many bytes as `expected` has; whether they are those.
async fn recv_exactly_into(stream: &TcpStream, expected: &[u8]) -> bool {
    let mut buffer = Vec::new();
    while buffer.len() < expected.len() {
        let mut room = Vec::new();
        room.reserve_exact(expected.len() - buffer.len());
        let (received, bytes) = within(stream.recv(room)).await;
        if received.unwrap_or(0) == 0 {
            return false;
        }
        buffer.extend_from_slice(&bytes);
    }
    buffer == expected
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    // More than the kernel's buffers of both directions hold.
    on_real_cores(|| deaf_client(600));
    lockgate_runtime::sim::Sim::new(1).node("node", 1).block_on(0, || deaf_client(40));
}
