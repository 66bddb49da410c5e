//! The network of the simulation: links that are blocked, slow or lossy, connections that break, a box in the middle.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use lockgate_runtime::sim::{Control, Flow, LinkFaults, Middlebox, Piece, Sim};
use lockgate_runtime::{Runtime, TcpListener, TcpStream, now_ns, sleep, spawn, timeout};

const SEEDS: u64 = 20;
const SECOND: Duration = Duration::from_secs(1);

fn address() -> SocketAddr {
    "127.0.0.1:7000".parse().expect("an address")
}

/// Has the node send back what it gets.
fn echo(node: &Runtime) {
    node.block_on(0, || async {
        let listener = TcpListener::bind(address()).await.expect("bound");
        spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                spawn(async move {
                    loop {
                        let (result, bytes) = stream.recv(Vec::with_capacity(100_000)).await;
                        if !matches!(result, Ok(1..)) || stream.send_all(bytes).await.0.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    });
}

async fn receive(stream: &TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count);
    while bytes.len() < count {
        let (result, back) = stream.recv(bytes).await;
        assert!(result.expect("received") > 0, "the stream ended");
        bytes = back;
    }
    bytes
}

fn numbers(count: usize) -> Vec<u8> {
    (0..count).map(|number| (number % 251) as u8).collect()
}

/// Runs `test` beside a server that echoes.
fn with_echo<F: Future<Output = ()> + 'static>(seeds: u64, test: impl Fn(Control) -> F) {
    for seed in 0..seeds {
        let sim = Sim::new(seed);
        echo(&sim.node("server", 1));
        sim.run_until(test(sim.control()));
    }
}

#[test]
fn a_blocked_link_holds_what_is_sent_and_keeps_its_order() {
    with_echo(SEEDS, |control| async move {
        let stream = TcpStream::connect(address()).await.expect("connected");
        echo_ns(&stream, 1000).await;
        control.block("driver", "server");
        for part in numbers(1000).chunks(300) {
            stream.send_all(part.to_vec()).await.0.expect("sent");
        }
        timeout(5 * SECOND, stream.recv(Vec::new())).await.expect_err("it is held");
        control.unblock("driver", "server");
        assert_eq!(receive(&stream, 1000).await, numbers(1000));
    });
}

#[test]
fn what_was_held_comes_after_a_while_that_depends_on_the_time_of_the_block() {
    let mut waits = BTreeSet::new();
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        echo(&sim.node("server", 1));
        let control = sim.control();
        let wait = sim.run_until(async move {
            let stream = TcpStream::connect(address()).await.expect("connected");
            control.block("server", "driver");
            stream.send_all(numbers(500)).await.0.expect("sent");
            sleep(Duration::from_millis(50)).await;
            control.unblock("server", "driver");
            let began = now_ns();
            assert_eq!(receive(&stream, 500).await, numbers(500));
            now_ns() - began
        });
        assert!((1_000_000..51_000_000).contains(&wait), "seed {seed}: {wait}");
        waits.insert(wait / 10_000_000);
    }
    assert!(waits.len() > 2, "{waits:?}");
}

#[test]
fn a_blocked_way_back_stops_the_sender_when_its_buffer_is_full() {
    with_echo(SEEDS, |control| async move {
        let stream = TcpStream::connect(address()).await.expect("connected");
        control.block("server", "driver");
        let sender = stream.clone();
        let mut sending = Box::pin(async move { sender.send_all(numbers(1 << 20)).await.0.expect("sent") });
        timeout(10 * SECOND, &mut sending).await.expect_err("nothing is acknowledged");
        control.unblock("server", "driver");
        spawn(sending);
        let bytes = timeout(20 * SECOND, receive(&stream, 1 << 20)).await.expect("it goes on");
        assert!(bytes == numbers(1 << 20));
    });
}

#[test]
fn connecting_over_a_blocked_link_waits() {
    for (from, to) in [("driver", "server"), ("server", "driver")] {
        with_echo(SEEDS, move |control| async move {
            control.block(from, to);
            let later = control.clone();
            spawn(async move {
                sleep(30 * SECOND).await;
                later.heal_network();
            });
            let began = now_ns();
            TcpStream::connect(address()).await.expect("connected in the end");
            let waited = now_ns() - began;
            assert!((30_000_000_000..32_000_000_000).contains(&waited), "{waited}");
            control.block(from, to);
            let began = now_ns();
            let error = TcpStream::connect(address()).await.expect_err("never answered");
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            assert!((60_000_000_000..60_001_000_000).contains(&(now_ns() - began)));
        });
    }
}

/// How long an echo of `count` bytes takes, in nanoseconds.
async fn echo_ns(stream: &TcpStream, count: usize) -> u64 {
    let began = now_ns();
    stream.send_all(numbers(count)).await.0.expect("sent");
    assert_eq!(receive(stream, count).await, numbers(count));
    now_ns() - began
}

#[test]
fn links_have_latencies_of_their_own_in_each_direction() {
    with_echo(SEEDS, |control| async move {
        let ms = 1_000_000;
        control.set_link(
            "driver",
            "server",
            LinkFaults { latency_ns: (10 * ms, 20 * ms), ..LinkFaults::default() },
        );
        let began = now_ns();
        let stream = TcpStream::connect(address()).await.expect("connected");
        assert!((10 * ms..21 * ms).contains(&(now_ns() - began)), "a handshake takes it too");
        let took = echo_ns(&stream, 10).await;
        assert!((10 * ms..21 * ms).contains(&took), "{took}");
        control.set_default_link(LinkFaults { latency_ns: (40 * ms, 50 * ms), ..LinkFaults::default() });
        let took = echo_ns(&stream, 10).await;
        assert!((50 * ms..71 * ms).contains(&took), "the default is for the way back: {took}");
        control.heal_network();
        let took = echo_ns(&stream, 10).await;
        assert!(took < ms, "{took}");
    });
}

#[test]
fn the_default_link_is_not_for_what_stays_on_a_machine() {
    let sim = Sim::new(1);
    let node = sim.node("node", 1);
    echo(&node);
    sim.set_default_link(LinkFaults { latency_ns: (1 << 30, 1 << 30), ..LinkFaults::default() });
    let took = node.block_on(0, || async {
        let stream = TcpStream::connect(address()).await.expect("connected");
        echo_ns(&stream, 10).await
    });
    assert!(took < 1_000_000, "{took}");
}

#[test]
fn what_is_lost_comes_late_and_in_order() {
    let mut late = 0;
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        echo(&sim.node("server", 1));
        sim.set_default_link(LinkFaults { loss_one_in: 4, ..LinkFaults::default() });
        late += sim.run_until(async {
            let stream = TcpStream::connect(address()).await.expect("connected");
            let began = now_ns();
            for part in numbers(1000).chunks(50) {
                stream.send_all(part.to_vec()).await.0.expect("sent");
            }
            assert_eq!(receive(&stream, 1000).await, numbers(1000));
            u64::from(now_ns() - began > 200_000_000)
        });
    }
    assert!(late > SEEDS / 2, "{late}");
}

#[test]
fn bandwidth_is_shared_and_makes_a_queue() {
    with_echo(5, |control| async move {
        let slow = LinkFaults { bytes_per_s: Some(1_000_000), ..LinkFaults::default() };
        let one = TcpStream::connect(address()).await.expect("connected");
        let other = TcpStream::connect(address()).await.expect("connected");
        control.set_link("driver", "server", slow);
        let began = now_ns();
        one.send_all(numbers(100_000)).await.0.expect("sent");
        other.send_all(numbers(100_000)).await.0.expect("sent");
        assert!(now_ns() - began < 10_000_000, "the buffers take it");
        receive(&one, 100_000).await;
        receive(&other, 100_000).await;
        let took = now_ns() - began;
        assert!((200_000_000..210_000_000).contains(&took), "{took}");
    });
}

#[test]
fn a_reset_breaks_all_connections_of_two_machines_at_both_ends() {
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        let (server, other) = (sim.node("server", 1), sim.node("other", 1));
        let outcome = Rc::new(RefCell::new(Vec::new()));
        OUTCOMES.set(Some(outcome.clone()));
        server.block_on(0, || async {
            let outcomes = OUTCOMES.take().expect("left there");
            let listener = TcpListener::bind(address()).await.expect("bound");
            spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.expect("accepted");
                    let outcomes = outcomes.clone();
                    spawn(async move {
                        let result = stream.recv(Vec::new()).await.0;
                        outcomes.borrow_mut().push(result.map_err(|error| error.kind()));
                    });
                }
            });
        });
        let control = sim.control();
        other.block_on(0, || async {
            let stream = TcpStream::connect(address()).await.expect("connected");
            spawn(async move {
                sleep(SECOND).await;
                stream.send_all(vec![1]).await.0.expect("not touched");
                std::future::pending::<()>().await;
            });
        });
        sim.run_until(async move {
            let stream = TcpStream::connect(address()).await.expect("connected");
            let waiting = stream.clone();
            let received = Rc::new(RefCell::new(None));
            let place = received.clone();
            spawn(async move {
                let result = waiting.recv(Vec::new()).await.0;
                place.borrow_mut().replace(result.map_err(|error| error.kind()));
            });
            sleep(Duration::from_millis(1)).await;
            stream.send_all(vec![1]).await.0.expect("sent, and lost");
            control.reset_connections("server", "driver");
            assert_eq!(
                stream.send_all(vec![1]).await.0.expect_err("broken").kind(),
                ErrorKind::ConnectionReset
            );
            assert_eq!(stream.send_all(vec![1]).await.0.expect_err("broken").kind(), ErrorKind::BrokenPipe);
            sleep(2 * SECOND).await;
            assert_eq!(*received.borrow(), Some(Err(ErrorKind::ConnectionReset)));
            assert_eq!(stream.recv(Vec::new()).await.0.expect("the end"), 0);
        });
        assert_eq!(*outcome.borrow(), [Err(ErrorKind::ConnectionReset), Ok(1)], "seed {seed}");
    }
}

thread_local! {
    /// For tasks of nodes: what makes them must be Send.
    static OUTCOMES: RefCell<Option<Outcomes>> = const { RefCell::new(None) };
}

type Outcomes = Rc<RefCell<Vec<Result<usize, ErrorKind>>>>;

/// Splits what is sent to the server into single bytes, reverses them and drops zeros; notes what it sees.
struct Reverser {
    seen: Rc<RefCell<Vec<String>>>,
}

fn note(flow: &Flow, what: &str) -> String {
    format!("{} {}>{}:{} {what}", flow.connection, flow.from, flow.to, flow.port)
}

impl Middlebox for Reverser {
    fn pass(&mut self, flow: &Flow, bytes: Vec<u8>, draw: &mut dyn FnMut() -> u64) -> Vec<Piece> {
        self.seen.borrow_mut().push(note(flow, &format!("{bytes:?}")));
        if !flow.is_from_connector {
            return vec![Piece { delay_ns: 0, bytes }];
        }
        let late_ns = 1_000_000 + draw() % 2;
        let count = bytes.len() as u64;
        let piece = |(place, byte)| Piece { delay_ns: late_ns * (count - place), bytes: vec![byte] };
        (0..).zip(bytes).filter(|(_, byte)| *byte != 0).map(piece).collect()
    }

    fn closed(&mut self, flow: &Flow) {
        self.seen.borrow_mut().push(note(flow, "closed"));
    }
}

#[test]
fn a_middlebox_sees_all_and_changes_what_arrives() {
    let sim = Sim::new(3);
    echo(&sim.node("server", 1));
    let seen = Rc::new(RefCell::new(Vec::new()));
    sim.set_middlebox(Some(Box::new(Reverser { seen: seen.clone() })));
    let control = sim.control();
    sim.run_until(async move {
        let stream = TcpStream::connect(address()).await.expect("connected");
        stream.send_all(vec![1, 0, 2, 3]).await.0.expect("sent");
        assert_eq!(receive(&stream, 3).await, [3, 2, 1]);
        stream.shutdown();
        sleep(Duration::from_millis(10)).await;
        drop(stream);
        control.set_middlebox(None);
        let stream = TcpStream::connect(address()).await.expect("connected");
        echo_ns(&stream, 100).await;
    });
    let seen = seen.borrow();
    let connection = seen[0].split(' ').next().expect("a number");
    let note = |what: &str| format!("{connection} {what}");
    assert_eq!(seen[0], note("driver>server:7000 [1, 0, 2, 3]"));
    let closed = [note("driver>server:7000 closed"), note("server>driver:7000 closed")];
    assert_eq!(seen[seen.len() - 2..], closed);
    let back = &seen[1..seen.len() - 2];
    assert!(back.iter().all(|line| line.starts_with(&note("server>driver:7000 ["))), "{seen:?}");
}
