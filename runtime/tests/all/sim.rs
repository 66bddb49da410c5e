//! What only the simulation can show: equal schedules of equal seeds, deadlocks, power cuts and restarts.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use lockgate_runtime::sim::Sim;
use lockgate_runtime::sync::Arc;
use lockgate_runtime::{
    Event, File, OpenOptions, TcpListener, TcpStream, Watermark, current, fs, now_ns, random_u64, sleep,
    spawn, unix_ms, yield_now,
};

/// Two nodes that talk and write, so that the schedule has many ways to go. Returns (trace, end, a random number).
fn busy_run(seed: u64) -> (u64, u64, u64) {
    let sim = Sim::new(seed);
    let address: SocketAddr = "127.0.0.1:7000".parse().expect("an address");
    let (server, client) = (sim.node("server", 2), sim.node("client", 3));
    let bound = Event::new();
    let listen = bound.listen();
    for core in 0..2 {
        let bound = bound.clone();
        server.spawn_on(core, move || async move {
            let listener = TcpListener::bind(address).await.expect("bound");
            bound.notify_all();
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                spawn(async move {
                    loop {
                        let (result, bytes) = stream.recv(Vec::with_capacity(1000)).await;
                        if result.expect("received") == 0 || stream.send_all(bytes).await.0.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    }
    let done = Arc::new(Watermark::new(0));
    let wait = done.clone();
    let number = sim.run_until(async move {
        listen.await;
        for core in 0..3 {
            let done = done.clone();
            client.spawn_on(core, move || async move {
                fs::create_dir_all(Path::new("/data")).await.expect("created");
                let file = File::open(
                    Path::new(&format!("/data/{core}")),
                    &OpenOptions::new().write(true).create(true),
                )
                .await
                .expect("opened");
                let stream = TcpStream::connect(address).await.expect("connected");
                for _ in 0..20 {
                    let bytes = vec![1; usize::try_from(random_u64() % 5000).expect("small") + 1];
                    let len = bytes.len();
                    file.write_all_at(bytes.clone(), random_u64() % 10_000).await.0.expect("written");
                    stream.send_all(bytes).await.0.expect("sent");
                    let mut got = 0;
                    while got < len {
                        got += stream.recv(Vec::with_capacity(700)).await.0.expect("received");
                    }
                }
                file.sync_data().await.expect("synced");
                done.advance_to(done.get() + 1);
            });
        }
        wait.wait_for(3).await.expect("not failed");
        random_u64()
    });
    (sim.trace_hash(), sim.now_ns(), number)
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let mut traces = std::collections::BTreeSet::new();
    for seed in 0..10 {
        let first = busy_run(seed);
        assert_eq!(first, busy_run(seed), "seed {seed}");
        traces.insert(first.0);
    }
    assert_eq!(traces.len(), 10, "different seeds give different runs");
}

#[test]
fn time_is_virtual() {
    let real = std::time::Instant::now();
    let sim = Sim::new(1);
    let node = sim.node("node", 1);
    let (start, wall) = (sim.now_ns(), sim.run_until(async { unix_ms() }));
    let slept = sim.run_until(async {
        let start = now_ns();
        sleep(Duration::from_secs(3600)).await;
        now_ns() - start
    });
    assert!((3_600_000_000_000..3_600_001_000_000).contains(&slept), "{slept}");
    assert!(node.now_ns() - start >= slept);
    assert!(sim.run_until(async { unix_ms() }) - wall >= 3_600_000);
    assert!(real.elapsed() < Duration::from_secs(60));
}

#[test]
fn yielding_in_a_loop_does_not_stop_the_clock() {
    let sim = Sim::new(3);
    sim.run_until(async {
        let start = now_ns();
        while now_ns() - start < 1_000_000 {
            yield_now().await;
        }
    });
}

#[test]
#[should_panic(expected = "deadlock in the simulation")]
fn a_deadlock_panics() {
    Sim::new(0).run_until(std::future::pending::<()>());
}

#[test]
fn a_power_cut_leaves_what_was_durable() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let node = sim.node("node", 1);
        node.block_on(0, || async {
            let directory = Path::new("/data");
            fs::create_dir_all(directory).await.expect("created");
            fs::sync_dir(Path::new("/")).await.expect("synced");
            let options = OpenOptions::new().read(true).write(true).create(true);
            let file = File::open(&directory.join("log"), &options).await.expect("opened");
            file.write_all_at(vec![1; 5000], 0).await.0.expect("written");
            file.sync_data().await.expect("synced");
            fs::sync_dir(directory).await.expect("synced");
            file.write_all_at(vec![2; 5000], 4000).await.0.expect("written");
            fs::write_atomic(&directory.join("meta"), b"m".to_vec()).await.expect("written");
            // Its name is never made durable.
            let lost = File::open(&directory.join("lost"), &options).await.expect("opened");
            lost.write_all_at(vec![3; 10], 0).await.0.expect("written");
            lost.sync_data().await.expect("synced");
            spawn(async move {
                // Under way when the power is cut.
                let _ = file.write_all_at(vec![9; 5000], 0).await;
                let _ = file.sync_data().await;
            });
            yield_now().await;
        });
        sim.cut_power(&node);
        let node = sim.node("node", 2);
        node.block_on(1, || async {
            let directory = Path::new("/data");
            assert_eq!(fs::read_dir(directory).await.expect("listed"), ["log", "meta"]);
            assert!(fs::read(&directory.join("log")).await.expect("read") == vec![1; 5000]);
            assert_eq!(fs::read(&directory.join("meta")).await.expect("read"), b"m");
            sleep(Duration::from_secs(1)).await;
            assert!(fs::read(&directory.join("log")).await.expect("read") == vec![1; 5000]);
        });
    }
}

#[test]
fn a_shutdown_keeps_what_was_written_and_ends_connections() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let node = sim.node("node", 2);
        let other = sim.node("other", 1);
        let address: SocketAddr = "127.0.0.1:7000".parse().expect("an address");
        node.block_on(0, move || async move {
            let listener = TcpListener::bind(address).await.expect("bound");
            spawn(async move {
                let mut open = Vec::new();
                loop {
                    open.push(listener.accept().await.expect("accepted"));
                }
            });
            fs::write_atomic(Path::new("/file"), vec![1; 100]).await.expect("written");
            let lock = OpenOptions::new().write(true).create(true).exclusive_lock(true);
            let file = File::open(Path::new("/LOCK"), &lock).await.expect("locked");
            spawn(async move {
                std::future::pending::<()>().await;
                drop(file);
            });
        });
        let stopping = node.clone();
        let ended = other.block_on(0, move || async move {
            let taken = TcpListener::bind(address).await.expect_err("taken by another node");
            assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
            let stream = TcpStream::connect(address).await.expect("connected");
            current().spawn_on(0, move || async move { stopping.shutdown() });
            let ended = stream.recv(Vec::new()).await.0.expect("the end");
            TcpListener::bind(address).await.expect("free now");
            ended
        });
        assert_eq!(ended, 0);
        sim.node("node", 1).block_on(0, || async {
            assert_eq!(fs::read(Path::new("/file")).await.expect("read"), vec![1; 100]);
            let lock = OpenOptions::new().write(true).create(true).exclusive_lock(true);
            File::open(Path::new("/LOCK"), &lock).await.expect("the lock ended with the node");
        });
    }
}

#[test]
#[should_panic(expected = "is running")]
fn a_node_runs_once() {
    let sim = Sim::new(0);
    let _first = sim.node("node", 1);
    let _second = sim.node("node", 1);
}
