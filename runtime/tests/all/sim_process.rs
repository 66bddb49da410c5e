//! Processes and machines of the simulation that are killed, lose their power, or are paused.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use lockgate_runtime::sim::{Control, PowerLoss, Sim};
use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::{AtomicU64, Ordering};
use lockgate_runtime::{
    File, OpenOptions, Runtime, TcpListener, TcpStream, core_index, fs, now_ns, os_boot_id, sleep, spawn,
    timeout, yield_now,
};

const SEEDS: u64 = 30;

fn address() -> SocketAddr {
    "127.0.0.1:7000".parse().expect("an address")
}

async fn open(path: &str) -> File {
    let options = OpenOptions::new().read(true).write(true).create(true);
    File::open(Path::new(path), &options).await.expect("opened")
}

/// Lets time pass.
fn pass(sim: &Sim, time: Duration) {
    sim.run_until(async move { sleep(time).await });
}

/// Has the node accept connections for ever. Each is kept, and what comes is not read.
fn listen(node: &Runtime) {
    node.block_on(0, || async {
        let listener = TcpListener::bind(address()).await.expect("bound");
        spawn(async move {
            let mut kept = Vec::new();
            loop {
                kept.push(listener.accept().await.expect("accepted"));
            }
        });
    });
}

#[test]
fn a_killed_process_leaves_what_it_wrote_and_no_lock() {
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        let lock = OpenOptions::new().write(true).create(true).exclusive_lock(true);
        sim.node("node", 2).block_on(1, move || async move {
            let file = open("/file").await;
            file.write_all_at(vec![7; 5000], 0).await.0.expect("written");
            let lock = File::open(Path::new("/LOCK"), &lock).await.expect("locked");
            spawn(async move {
                std::future::pending::<()>().await;
                drop(lock);
            });
        });
        assert!(sim.is_running("node") && sim.tasks("node") == 1);
        sim.kill("node");
        assert_eq!(sim.tasks("node"), 0);
        assert!(!sim.is_running("node") && sim.has_power("node"));
        sim.node("node", 1).block_on(0, move || async move {
            assert_eq!(fs::read(Path::new("/file")).await.expect("read"), vec![7; 5000]);
            File::open(Path::new("/LOCK"), &lock).await.expect("the lock ended with the process");
        });
    }
}

#[test]
fn what_a_killed_process_had_under_way_happens_or_not() {
    let mut lengths = BTreeSet::new();
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        sim.node("node", 1).block_on(0, || async {
            let file = open("/file").await;
            spawn(async move {
                file.write_all_at(vec![7; 8192], 0).await.0.expect("written");
            });
            yield_now().await;
        });
        sim.kill("node");
        let read = || async { fs::read(Path::new("/file")).await.expect("read") };
        let node = sim.node("node", 1);
        let bytes = node.block_on(0, read);
        lengths.insert(bytes.len());
        assert!(bytes.iter().all(|byte| *byte == 7), "seed {seed}");
        let later = node.block_on(0, move || async move {
            sleep(Duration::from_secs(1)).await;
            read().await
        });
        assert_eq!(later, bytes, "nothing comes after the restart");
    }
    assert_eq!(lengths, BTreeSet::from([0, 4096, 8192]));
}

/// Writes to its file when it is dropped, as far as that can be done without waiting.
struct WriteOnDrop(File);

impl Drop for WriteOnDrop {
    fn drop(&mut self) {
        let write = pin!(self.0.write_all_at(vec![1; 10], 0));
        let _ = write.poll(&mut Context::from_waker(Waker::noop()));
    }
}

#[test]
fn what_the_drops_of_a_killed_process_start_does_not_happen() {
    for is_killed in [true, false] {
        let sim = Sim::new(5);
        let node = sim.node("node", 1);
        node.block_on(0, || async {
            let guard = WriteOnDrop(open("/file").await);
            spawn(async move {
                std::future::pending::<()>().await;
                drop(guard);
            });
        });
        if is_killed {
            sim.kill("node");
        } else {
            node.shutdown();
        }
        let left =
            sim.node("node", 1).block_on(0, || async { fs::read(Path::new("/file")).await.expect("read") });
        assert_eq!(left.is_empty(), is_killed);
    }
}

#[test]
fn peers_of_a_killed_process_get_a_first_part_and_then_the_end_or_a_reset() {
    let (mut ends, mut parts) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        let (server, client) = (sim.node("server", 1), sim.node("client", 1));
        server.block_on(0, || async {
            let listener = TcpListener::bind(address()).await.expect("bound");
            spawn(async move {
                let (stream, _) = listener.accept().await.expect("accepted");
                for number in 0..8 {
                    stream.send_all(vec![number; 100]).await.0.expect("sent");
                }
                std::future::pending::<()>().await;
            });
        });
        let control = sim.control();
        let received = Rc::new(RefCell::new(Vec::new()));
        let got = received.clone();
        let end = sim.run_until(async move {
            let stream = TcpStream::connect(address()).await.expect("connected");
            sleep(Duration::from_micros(30)).await;
            control.kill("server");
            let refused = TcpStream::connect(address()).await.expect_err("nobody listens");
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            let mut bytes = Vec::with_capacity(1000);
            let end = loop {
                let (result, back) = stream.recv(bytes).await;
                bytes = back;
                match result {
                    Ok(0) => break None,
                    Ok(_) => {}
                    Err(error) => break Some(error.kind()),
                }
            };
            got.borrow_mut().extend(bytes);
            end
        });
        let sent: Vec<u8> = (0..8).flat_map(|number| [number; 100]).collect();
        assert!(sent.starts_with(&received.borrow()), "seed {seed}");
        parts.insert(received.borrow().len());
        ends.insert(format!("{end:?}"));
        drop(client);
    }
    assert_eq!(ends, BTreeSet::from(["None".into(), "Some(ConnectionReset)".into()]));
    assert!(parts.len() > 2, "{parts:?}");
}

#[test]
fn peers_of_a_machine_without_power_hear_nothing_until_it_is_back() {
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        listen(&sim.node("server", 1));
        sim.node("client", 1);
        let control = sim.control();
        sim.run_until(async move {
            let stream = TcpStream::connect(address()).await.expect("connected");
            let idle = TcpStream::connect(address()).await.expect("connected");
            control.cut_power("server", PowerLoss::All);
            assert!(!control.has_power("server"));
            let silence = timeout(Duration::from_secs(30), stream.recv(Vec::new())).await;
            silence.expect_err("nothing is heard");
            // The buffer takes some, and then nothing more.
            let stalled = timeout(Duration::from_secs(30), stream.send_all(vec![1; 1 << 20])).await;
            stalled.expect_err("nobody takes it");
            control.start("server", 1);
            let broken = timeout(Duration::from_secs(5), stream.recv(Vec::new())).await.expect("an answer");
            assert_eq!(broken.0.expect_err("a reset").kind(), ErrorKind::ConnectionReset);
            // Who has sent nothing still knows nothing.
            timeout(Duration::from_secs(30), idle.recv(Vec::new())).await.expect_err("nothing is heard");
            idle.send_all(vec![1]).await.0.expect("into the buffer");
            let broken = timeout(Duration::from_millis(1), idle.recv(Vec::new())).await.expect("an answer");
            assert_eq!(broken.0.expect_err("a reset").kind(), ErrorKind::ConnectionReset);
            assert_eq!(
                idle.send_all(vec![1]).await.0.expect_err("a reset").kind(),
                ErrorKind::ConnectionReset
            );
            assert_eq!(idle.send_all(vec![1]).await.0.expect_err("broken").kind(), ErrorKind::BrokenPipe);
            assert_eq!(idle.recv(Vec::new()).await.0.expect("the end"), 0);
        });
    }
}

#[test]
fn connecting_to_a_machine_without_power_waits_and_times_out() {
    let sim = Sim::new(1);
    listen(&sim.node("server", 1));
    let control = sim.control();
    sim.run_until(async move {
        control.cut_power("server", PowerLoss::All);
        let began = now_ns();
        let error = TcpStream::connect(address()).await.expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!((60_000_000_000..60_100_000_000).contains(&(now_ns() - began)), "{}", now_ns() - began);
        let later = control.clone();
        spawn(async move {
            sleep(Duration::from_secs(20)).await;
            let server = later.start("server", 1);
            server.spawn_on(0, || async {
                let listener = TcpListener::bind(address()).await.expect("bound");
                let _accepted = listener.accept().await.expect("accepted");
                std::future::pending::<()>().await;
            });
        });
        // At first nobody listens there again: then it may also be refused.
        let began = now_ns();
        let result = TcpStream::connect(address()).await;
        assert!(now_ns() - began > 19_000_000_000);
        if let Err(error) = result {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
    });
}

#[test]
fn the_clock_begins_anew_with_the_power_and_not_with_the_process() {
    let sim = Sim::new(1);
    let node = sim.node("node", 1);
    pass(&sim, Duration::from_secs(100));
    assert!(node.now_ns() > 100_000_000_000);
    sim.kill("node");
    let node = sim.node("node", 1);
    assert!(node.now_ns() > 100_000_000_000);
    let wall = node.unix_ms();
    sim.cut_power(&node);
    let node = sim.node("node", 1);
    assert!((1_000_000_000..=1_100_000_000).contains(&node.now_ns()), "{}", node.now_ns());
    assert_eq!(node.unix_ms(), wall, "the wall clock has a battery");
    pass(&sim, Duration::from_secs(3));
    assert!((4_000_000_000..4_200_000_000).contains(&node.now_ns()), "{}", node.now_ns());
}

#[test]
fn a_paused_process_does_nothing_while_its_kernel_goes_on() {
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        let node = sim.node("node", 2);
        let ticks = Arc::new(AtomicU64::new(0));
        let counter = ticks.clone();
        node.block_on(0, move || async move {
            let listener = TcpListener::bind(address()).await.expect("bound");
            spawn(async move {
                loop {
                    sleep(Duration::from_millis(1)).await;
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
            spawn(async move {
                let (stream, _) = listener.accept().await.expect("accepted");
                let got = stream.recv(Vec::with_capacity(10)).await.0.expect("received");
                assert!((1..=10).contains(&got));
                stream.send_all(vec![2; 1]).await.0.expect("sent");
                std::future::pending::<()>().await;
            });
            let file = open("/file").await;
            spawn(async move {
                file.write_all_at(vec![3; 10], 0).await.0.expect("written");
                file.sync_data().await.expect("synced");
            });
            fs::sync_dir(Path::new("/")).await.expect("synced");
        });
        let (control, seen) = (sim.control(), ticks.clone());
        sim.run_until(async move {
            control.pause("node");
            assert!(control.is_paused("node") && control.is_running("node"));
            let before = seen.load(Ordering::Relaxed);
            let stream = TcpStream::connect(address()).await.expect("the kernel accepts");
            stream.send_all(vec![1; 10]).await.0.expect("sent");
            timeout(Duration::from_secs(20), stream.recv(Vec::new())).await.expect_err("nobody answers");
            assert_eq!(seen.load(Ordering::Relaxed), before);
            control.resume("node");
            assert!(!control.is_paused("node"));
            let answer = timeout(Duration::from_millis(10), stream.recv(Vec::new())).await.expect("awake");
            assert_eq!(answer.0.expect("received"), 1);
        });
        assert!(node.now_ns() > 21_000_000_000, "time has passed for it");
        pass(&sim, Duration::from_millis(10));
        let counted = ticks.load(Ordering::Relaxed);
        assert!((2..100).contains(&counted), "a timer that was late fires once: {counted}");
    }
}

#[test]
fn a_paused_process_can_be_killed() {
    let sim = Sim::new(1);
    let node = sim.node("node", 1);
    sim.pause("node");
    node.spawn_on(0, || async { panic!("it never runs") });
    pass(&sim, Duration::from_secs(1));
    sim.kill("node");
    assert!(!sim.is_paused("node"));
    sim.node("node", 1).block_on(0, yield_now);
}

thread_local! {
    /// For tasks of nodes: what makes them must be Send, which a control is not.
    static CONTROL: RefCell<Option<Control>> = const { RefCell::new(None) };
}

#[test]
fn a_process_can_end_itself_and_be_started_by_a_task() {
    let sim = Sim::new(1);
    let polls = Arc::new(AtomicU64::new(0));
    let counter = polls.clone();
    CONTROL.set(Some(sim.control()));
    sim.node("node", 1).spawn_on(0, move || async move {
        CONTROL.take().expect("left there").kill("node");
        // The rest of the poll goes on, and starts nothing.
        counter.fetch_add(1, Ordering::Relaxed);
        let options = OpenOptions::new().write(true).create(true);
        File::open(Path::new("/file"), &options).await.expect_err("the process is gone");
        yield_now().await;
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let control = sim.control();
    sim.run_until(async move {
        while control.is_running("node") {
            yield_now().await;
        }
        sleep(Duration::from_millis(10)).await;
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        let node = control.start("node", 3);
        assert_eq!((node.cores(), node.name()), (3, "node"));
    });
}

#[test]
fn observers_see_every_step_and_no_poll() {
    let sim = Sim::new(1);
    let node = sim.node("node", 1);
    let (calls, killed_at) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(None)));
    let (control, count, seen) = (sim.control(), calls.clone(), killed_at.clone());
    sim.on_step(move || {
        count.set(count.get() + 1);
        assert_eq!(core_index(), None, "no core is current");
        // Whatever a node's handle can tell may be asked for.
        let _ = (node.now_ns(), node.cores());
        if !control.is_running("node") && seen.get().is_none() {
            seen.set(Some(control.steps()));
        }
    });
    let control = sim.control();
    let killed = sim.run_until(async move {
        for _ in 0..10 {
            sleep(Duration::from_millis(1)).await;
        }
        control.kill("node");
        let at = control.steps();
        yield_now().await;
        at
    });
    assert_eq!(killed_at.get(), Some(killed + 1), "right after the poll that killed it");
    assert!(calls.get() > 10);
    let before = calls.get();
    sim.start("node", 1);
    assert_eq!(calls.get(), before + 1, "a fault from outside is seen at once");
}

#[test]
fn a_process_ends_right_after_the_poll_that_was_named() {
    /// A node that polls one task a hundred times; killed after `number` of its polls. Returns how many there were.
    fn polls(number: u64) -> (u64, u64) {
        let sim = Sim::new(3);
        let node = sim.node("node", 1);
        let polls = Arc::new(AtomicU64::new(0));
        let counted = polls.clone();
        node.spawn_on(0, move || async move {
            for _ in 0..100 {
                counted.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
            }
        });
        let control = sim.control();
        sim.after_poll("node", number, move || control.kill("node"));
        pass(&sim, Duration::from_millis(10));
        (polls.load(Ordering::Relaxed), sim.polls("node"))
    }
    let (all, _) = polls(u64::MAX);
    assert_eq!(all, 100);
    for number in 1..20 {
        assert_eq!(polls(number), (number, number), "not one poll more");
    }
}

#[test]
#[should_panic(expected = "the observer's own words")]
fn a_panic_of_an_observer_comes_out() {
    let sim = Sim::new(1);
    sim.on_step(|| panic!("the observer's own words"));
    pass(&sim, Duration::from_secs(1));
}

#[test]
#[should_panic(expected = "no machine of the simulation is named \"nobody\"")]
fn an_unknown_machine_is_named() {
    Sim::new(1).is_running("nobody");
}

#[test]
fn a_machine_that_loses_its_power_starts_its_system_anew() {
    let sim = Sim::new(5);
    let control = sim.control();
    let start = |name: &str| control.start(name, 1).block_on(0, || async { os_boot_id().expect("known") });
    let (first, other) = (start("a"), start("b"));
    assert_ne!(first, other);
    control.kill("a");
    assert_eq!(start("a"), first, "a process ends, the system goes on");
    control.cut_power("a", PowerLoss::All);
    let second = start("a");
    assert!(second != first && second != other);
    control.cut_power("a", PowerLoss::Seeded);
    let third = start("a");
    assert!(third != second && third != first);
    control.kill("b");
    assert_eq!(start("b"), other);
}
