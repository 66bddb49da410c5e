//! Scenarios that run on both backends: the same node code, on the machine and in the simulation.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockgate_runtime::sim::Sim;
use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::{AtomicU64, Ordering};
use lockgate_runtime::{
    DIRECT_ALIGN_BYTES, Event, File, OpenOptions, Runtime, TcpListener, TcpStream, Watermark, core_index,
    current, direct_start, fs, now_ns, random_u64, sleep, spawn, timeout, yield_now,
};

const CORES: usize = 2;
/// How many schedules of the simulation each scenario runs in.
const SEEDS: u64 = 10;

fn real() -> Runtime {
    Runtime::builder().cores(CORES).pin(false).name("test").build().expect("io_uring is available")
}

/// Runs `scenario` on the machine (with and without spinning) and in the simulation.
fn on_both<F: Future<Output = ()> + 'static>(
    scenario: impl Fn(PathBuf) -> F + Send + Sync + Clone + 'static,
) {
    for spin_us in [0, 20] {
        let directory = tempfile::tempdir().expect("a directory");
        let runtime = Runtime::builder().cores(CORES).pin(false).spin_us(spin_us).build().expect("io_uring");
        let (path, run) = (directory.path().to_path_buf(), scenario.clone());
        runtime.block_on(0, move || run(path));
        runtime.shutdown();
    }
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        let node = sim.node("node", CORES);
        let run = scenario.clone();
        node.block_on(0, move || async move {
            let directory = PathBuf::from("/data");
            fs::create_dir_all(&directory).await.expect("created");
            run(directory).await;
        });
    }
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

async fn open(path: &Path) -> File {
    File::open(path, &OpenOptions::new().read(true).write(true).create(true)).await.expect("opened")
}

#[test]
fn files_round_trip() {
    on_both(|directory| async move {
        let below = directory.join("a/b");
        fs::create_dir_all(&below).await.expect("created");
        let path = below.join("file");
        let file = open(&path).await;
        assert!(file.is_empty().await.expect("length"));
        let bytes: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let (result, bytes) = file.write_all_at(bytes, 10).await;
        result.expect("written");
        file.sync_data().await.expect("synced");
        assert_eq!(file.len().await.expect("length"), 100_010);
        let (result, read) = file.read_at(vec![7; 200_000], 5).await;
        assert_eq!(result.expect("read"), 100_005);
        assert_eq!(&read[..5], &[0; 5]);
        assert_eq!(&read[5..100_005], &bytes[..]);
        assert_eq!(read.len(), 200_000);

        fs::write_atomic(&below.join("whole"), b"one".to_vec()).await.expect("written");
        fs::write_atomic(&below.join("whole"), b"three".to_vec()).await.expect("written");
        assert_eq!(fs::read(&below.join("whole")).await.expect("read"), b"three");
        assert_eq!(fs::read_dir(&below).await.expect("listed"), ["file", "whole"]);
        fs::rename(&path, &below.join("other")).await.expect("renamed");
        assert!(!fs::exists(&path).await);
        let missing = File::open(&path, &OpenOptions::new().read(true)).await;
        assert_eq!(missing.expect_err("gone").kind(), std::io::ErrorKind::NotFound);
        let again = File::open(&below.join("other"), &OpenOptions::new().write(true).create_new(true)).await;
        assert_eq!(again.expect_err("there").kind(), std::io::ErrorKind::AlreadyExists);
        fs::remove_file(&below.join("other")).await.expect("removed");
        fs::sync_dir(&below).await.expect("synced");
        fs::remove_dir_all(&directory.join("a")).await.expect("removed");
        assert_eq!(fs::read_dir(&directory).await.expect("listed"), Vec::<String>::new());
        // An unlinked file lives on with its handle.
        let (result, _) = file.read_at(vec![0; 8], 0).await;
        assert_eq!(result.expect("read"), 8);
    });
}

#[test]
fn direct_reads_have_what_was_written_synced_or_not() {
    on_both(|directory| async move {
        let path = directory.join("file");
        let file = open(&path).await;
        let content: Vec<u8> = (0..20_000u32).map(|at| (at / 7) as u8).collect();
        file.write_all_at(content[..9_000].to_vec(), 0).await.0.expect("written");
        file.sync_data().await.expect("synced");
        file.write_all_at(content[9_000..].to_vec(), 9_000).await.0.expect("written");
        let direct = match File::open(&path, &OpenOptions::new().read(true).direct(true)).await {
            Ok(direct) => direct,
            // The filesystem of temporary files may have none.
            Err(error) => return assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}"),
        };
        for (offset, length) in
            [(0, 8_192), (4_096, 4_096), (8_192, 16_384), (16_384, 4_096), (20_480, 4_096)]
        {
            let mut buffer = vec![0; 100 + 2 * DIRECT_ALIGN_BYTES + length];
            let from = direct_start(&buffer, 100);
            buffer.truncate(from + length);
            let (read, buffer) = direct.read_part_at(buffer, from, offset as u64).await;
            let wanted = content.get(offset..content.len().min(offset + length)).unwrap_or_default();
            assert_eq!(&buffer[from..from + read.expect("read")], wanted, "{length} bytes from {offset}");
        }
    });
}

#[test]
fn a_lock_excludes_others_until_dropped() {
    on_both(|directory| async move {
        let path = directory.join("LOCK");
        let options = OpenOptions::new().write(true).create(true).exclusive_lock(true);
        let first = File::open(&path, &options).await.expect("locked");
        let error = File::open(&path, &options).await.expect_err("locked by the first");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        drop(first);
        File::open(&path, &options).await.expect("free again");
    });
}

/// Serves one connection after the other: what comes goes back.
async fn echo(listener: TcpListener) {
    loop {
        let (stream, _) = listener.accept().await.expect("accepted");
        spawn(async move {
            loop {
                let (result, bytes) = stream.recv(Vec::with_capacity(5000)).await;
                if !matches!(result, Ok(count) if count > 0) {
                    return;
                }
                if stream.send_all(bytes).await.0.is_err() {
                    return;
                }
            }
        });
    }
}

/// An echo server on core 1.
async fn echo_address() -> SocketAddr {
    let address = Arc::new(AtomicU64::new(0));
    let bound = Event::new();
    let listen = bound.listen();
    let (port, told) = (address.clone(), bound.clone());
    current().spawn_on(1, move || async move {
        assert_eq!(core_index(), Some(1));
        let listener = TcpListener::bind(any_port()).await.expect("bound");
        port.store(u64::from(listener.local_addr().port()), Ordering::Release);
        told.notify_all();
        echo(listener).await;
    });
    listen.await;
    let port = u16::try_from(address.load(Ordering::Acquire)).expect("a port");
    SocketAddr::from(([127, 0, 0, 1], port))
}

async fn recv_exactly(stream: &TcpStream, len: usize) -> Vec<u8> {
    let mut got = Vec::with_capacity(len);
    while got.len() < len {
        let (result, bytes) = stream.recv(got).await;
        assert_ne!(result.expect("received"), 0, "the stream ended early");
        got = bytes;
    }
    got
}

#[test]
fn tcp_echoes_between_cores() {
    on_both(|_| async {
        let address = echo_address().await;
        let stream = TcpStream::connect(address).await.expect("connected");
        assert_eq!(stream.peer_addr(), address);
        for round in 0..50usize {
            let bytes: Vec<u8> = (0..round * 100 + 1).map(|n| (n + round) as u8).collect();
            let (result, bytes) = stream.send_all(bytes).await;
            result.expect("sent");
            assert_eq!(recv_exactly(&stream, bytes.len()).await, bytes);
        }
        stream.shutdown();
        let (result, _) = stream.recv(Vec::new()).await;
        assert_eq!(result.expect("the end"), 0);
    });
}

#[test]
fn a_large_vectored_send_arrives_whole() {
    on_both(|_| async {
        let address = echo_address().await;
        let stream = TcpStream::connect(address).await.expect("connected");
        let mut expected = Vec::new();
        let mut bufs: Vec<Box<dyn lockgate_runtime::IoBuf>> = Vec::new();
        for n in 0..3000usize {
            let piece: Vec<u8> = (0..(n * 7) % 3000).map(|m| (n ^ m) as u8).collect();
            expected.extend_from_slice(&piece);
            bufs.push(match n % 3 {
                0 => Box::new(piece),
                1 => Box::new(Arc::<[u8]>::from(piece)),
                _ => Box::new(Arc::new(piece)),
            });
        }
        bufs.push(Box::new(Vec::new()));
        let sender = stream.clone();
        spawn(async move { sender.send_all_vectored(bufs).await.expect("sent") });
        assert!(recv_exactly(&stream, expected.len()).await == expected);
    });
}

#[test]
fn a_dropped_receive_loses_no_byte() {
    on_both(|_| async {
        let address = echo_address().await;
        let stream = TcpStream::connect(address).await.expect("connected");
        let waited = timeout(Duration::from_millis(5), stream.recv(Vec::with_capacity(100))).await;
        assert!(waited.is_err(), "nothing was sent yet");
        stream.send_all(b"hello, lockgate".to_vec()).await.0.expect("sent");
        // The next receives have little room each.
        let mut got = Vec::new();
        while got.len() < 15 {
            let (result, bytes) = stream.recv(Vec::with_capacity(4)).await;
            assert_ne!(result.expect("received"), 0);
            got.extend(bytes);
        }
        assert_eq!(got, b"hello, lockgate");
    });
}

#[test]
fn a_dropped_accept_loses_no_connection() {
    on_both(|_| async {
        let listener = TcpListener::bind(any_port()).await.expect("bound");
        let waited = timeout(Duration::from_millis(2), listener.accept()).await;
        assert!(waited.is_err(), "nobody connects yet");
        let address = listener.local_addr();
        spawn(async move {
            let stream = TcpStream::connect(address).await.expect("connected");
            stream.send_all(&b"x"[..]).await.0.expect("sent");
        });
        let (stream, _) = listener.accept().await.expect("accepted");
        assert_eq!(recv_exactly(&stream, 1).await, b"x");
        // Its peer drops the stream after the byte.
        let (result, _) = stream.recv(Vec::new()).await;
        assert_eq!(result.expect("the end"), 0);
    });
}

#[test]
fn connecting_to_nobody_is_refused() {
    on_both(|_| async {
        let listener = TcpListener::bind(any_port()).await.expect("bound");
        let address = listener.local_addr();
        drop(listener);
        // The cancel of a listener's accept is not immediate on the machine; here none is in flight.
        let error = TcpStream::connect(address).await.expect_err("nobody listens");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn every_core_may_bind_the_same_address() {
    on_both(|_| async {
        let listener = TcpListener::bind(any_port()).await.expect("bound");
        let address = listener.local_addr();
        let second = TcpListener::bind(address).await.expect("bound again");
        let accepted = Arc::new(AtomicU64::new(0));
        let all = Event::new();
        for listener in [listener, second] {
            let (accepted, all) = (accepted.clone(), all.clone());
            spawn(async move {
                let mut open = Vec::new();
                loop {
                    open.push(listener.accept().await.expect("accepted"));
                    accepted.fetch_add(1, Ordering::Relaxed);
                    all.notify_all();
                }
            });
        }
        let mut streams = Vec::new();
        for _ in 0..20 {
            streams.push(TcpStream::connect(address).await.expect("connected"));
        }
        loop {
            let listen = all.listen();
            if accepted.load(Ordering::Relaxed) == 20 {
                break;
            }
            listen.await;
        }
    });
}

#[test]
fn timers_fire_in_order() {
    on_both(|_| async {
        let order = Arc::new(lockgate_runtime::sync::Mutex::new(Vec::new()));
        let done = Arc::new(Watermark::new(0));
        for n in [5u64, 1, 4, 2, 3] {
            let (order, done) = (order.clone(), done.clone());
            spawn(async move {
                let start = now_ns();
                sleep(Duration::from_millis(n * 20)).await;
                assert!(now_ns() - start >= n * 20_000_000);
                order.lock().push(n);
                done.advance_to(done.get() + 1);
            });
        }
        done.wait_for(5).await.expect("not failed");
        assert_eq!(*order.lock(), [1, 2, 3, 4, 5]);
    });
}

#[test]
fn a_timeout_ends_what_takes_too_long() {
    on_both(|_| async {
        assert_eq!(timeout(Duration::from_secs(60), async { 7 }).await, Ok(7));
        let start = now_ns();
        timeout(Duration::from_millis(3), std::future::pending::<()>()).await.expect_err("elapsed");
        let took = now_ns() - start;
        assert!((3_000_000..2_000_000_000).contains(&took), "{took}");
    });
}

#[test]
fn wakes_between_cores_are_not_lost() {
    const ROUNDS: u64 = 3000;
    on_both(|_| async {
        let ball = Arc::new(AtomicU64::new(0));
        let (ping, pong) = (Event::new(), Event::new());
        let (other, hear, tell) = (ball.clone(), ping.clone(), pong.clone());
        current().spawn_on(1, move || async move {
            for round in 0..ROUNDS {
                loop {
                    let listen = hear.listen();
                    if other.load(Ordering::Acquire) == 2 * round + 1 {
                        break;
                    }
                    listen.await;
                }
                other.store(2 * round + 2, Ordering::Release);
                tell.notify_all();
            }
        });
        for round in 0..ROUNDS {
            ball.store(2 * round + 1, Ordering::Release);
            ping.notify_all();
            loop {
                let listen = pong.listen();
                if ball.load(Ordering::Acquire) == 2 * round + 2 {
                    break;
                }
                listen.await;
            }
        }
    });
}

#[test]
fn spawns_between_cores_are_not_lost() {
    on_both(|_| async {
        let done = Arc::new(Watermark::new(0));
        let count = Arc::new(AtomicU64::new(0));
        for n in 0..2000usize {
            let (done, count) = (done.clone(), count.clone());
            current().spawn_on(n % CORES, move || async move {
                assert_eq!(core_index(), Some(n % CORES));
                yield_now().await;
                done.advance_to(count.fetch_add(1, Ordering::AcqRel) + 1);
            });
        }
        done.wait_for(2000).await.expect("not failed");
    });
}

#[test]
fn an_aborted_task_is_dropped() {
    on_both(|_| async {
        let dropped = Event::new();
        struct OnDrop(Event);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.notify_all();
            }
        }
        let guard = OnDrop(dropped.clone());
        let listen = dropped.listen();
        let task = spawn(async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
        yield_now().await;
        task.abort();
        listen.await;
        task.abort();
    });
}

#[test]
fn a_failed_watermark_wakes_its_waiters() {
    on_both(|_| async {
        let mark = Arc::new(Watermark::new(3));
        mark.wait_for(3).await.expect("reached");
        let failing = mark.clone();
        current().spawn_on(1, move || async move {
            sleep(Duration::from_millis(1)).await;
            failing.advance_to(4);
            failing.fail();
        });
        mark.wait_for(4).await.expect("reached before the failure");
        mark.wait_for(5).await.expect_err("failed");
        mark.wait_for(4).await.expect("stays reached");
        assert!(lockgate_runtime::block_on_foreign(async {}).is_err(), "this is a core");
        assert!(mark.wait_for_blocking(9).is_err());
    });
}

#[test]
fn randomness_differs() {
    on_both(|_| async {
        let (one, two) = (random_u64(), random_u64());
        assert_ne!(one, two);
        assert_ne!(current().random_u64(), one);
    });
}

#[test]
fn a_foreign_thread_waits_for_a_core() {
    let runtime = real();
    let mark = Arc::new(Watermark::new(0));
    let told = mark.clone();
    runtime.spawn_on(1, move || async move {
        for n in 1..=100 {
            yield_now().await;
            told.advance_to(n);
        }
    });
    mark.wait_for_blocking(100).expect("reached");
    assert_eq!(runtime.block_on(1, || async { core_index() }), Some(1));
    assert_eq!(core_index(), None);
    runtime.shutdown();
    runtime.shutdown();
}

#[test]
fn a_shutdown_with_operations_in_flight_ends() {
    let runtime = real();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    let address = runtime.block_on(0, || async {
        let listener = TcpListener::bind(any_port()).await.expect("bound");
        let address = listener.local_addr();
        spawn(echo(listener));
        address
    });
    runtime.block_on(1, move || async move {
        for _ in 0..20 {
            let stream = TcpStream::connect(address).await.expect("connected");
            let sender = stream.clone();
            spawn(async move {
                let _ = stream.recv(Vec::with_capacity(100)).await;
                std::future::pending::<()>().await;
            });
            // More than the buffers of both ends hold, and nobody reads.
            spawn(async move {
                let _ = sender.send_all(vec![1; 20 << 20]).await;
            });
        }
        let file = open(&path).await;
        spawn(async move {
            let mut offset = 0;
            loop {
                let (result, buf) = file.write_all_at(vec![2; 1 << 16], offset).await;
                result.expect("written");
                offset += buf.len() as u64;
                file.sync_data().await.expect("synced");
            }
        });
        sleep(Duration::from_millis(20)).await;
    });
    runtime.shutdown();
}

#[test]
fn a_panic_in_a_task_stops_the_runtime() {
    let runtime = real();
    runtime.spawn_on(1, || async { panic!("on purpose") });
    let waiter = runtime.clone();
    let result = std::thread::spawn(move || {
        waiter.block_on(0, std::future::pending::<()>);
    })
    .join();
    let panic = result.expect_err("the runtime stopped");
    let text = panic.downcast_ref::<String>().expect("a text");
    assert!(text.contains("on purpose"), "{text}");
}

#[test]
fn dropping_the_last_handle_stops_the_cores() {
    let runtime = real();
    let dropped = Arc::new(Event::new());
    let kept = dropped.clone();
    runtime.spawn_on(0, move || async move {
        let _kept = kept;
        std::future::pending::<()>().await;
    });
    runtime.block_on(0, || async {});
    drop(runtime);
    assert_eq!(Arc::strong_count(&dropped), 1);
}
