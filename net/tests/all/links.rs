//! Links over sockets: messages, handshakes, damage, ends.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join;
use lockgate_net::Stop;
use lockgate_net::link::{
    FORMAT, FrameEncoder, FrameError, HELLO_BYTES, Hello, Link, LinkError, LinkReceiver, LinkSender, Purpose,
    Refusal, RefusalReason, SEND_QUEUE_BYTES_MAX, accept_links,
};
use lockgate_runtime::{IoBuf, TcpStream, spawn, timeout};

use super::support::{PATIENCE, hello, listener, on_both_backends, recv_to_end, until, within};

type Half = (LinkSender, LinkReceiver);

/// Two ends of a link.
async fn pair() -> (Half, Half) {
    let (listener, addr) = listener().await;
    let accepting = async {
        let (stream, _) = listener.accept().await.unwrap();
        Link::accept(stream, |_| Ok(hello(2, Purpose::Bulk))).await.unwrap()
    };
    let connecting = Link::connect(addr, hello(1, Purpose::Bulk), PATIENCE);
    let (accepted, connected) = within(join(accepting, connecting)).await;
    let (connected, peer) = halves(connected.unwrap());
    assert_eq!(peer, hello(2, Purpose::Bulk));
    let (accepted, peer) = halves(accepted);
    assert_eq!(peer, hello(1, Purpose::Bulk));
    (connected, accepted)
}

fn halves((sender, receiver, peer): (LinkSender, LinkReceiver, Hello)) -> (Half, Hello) {
    ((sender, receiver), peer)
}

fn part(byte: u8, bytes: usize) -> Box<dyn IoBuf> {
    Box::new(vec![byte; bytes])
}

#[test]
fn messages_of_all_sizes_arrive_whole_and_in_order() {
    on_both_backends(|| async {
        let ((sender, _receiver), (_sender, mut receiver)) = pair().await;
        let sizes: [&[usize]; 8] = [
            &[],
            &[0, 1, 0],
            &[100, 5000, 3],
            &[262_144],
            &[262_143, 1, 1],
            &[300_000, 0, 300_000],
            &[5_000_000, 7],
            &[1; 700],
        ];
        let sending = async {
            for (kind, sizes) in sizes.iter().enumerate() {
                let parts = sizes.iter().enumerate().map(|(at, bytes)| part(at as u8, *bytes)).collect();
                sender.send(16 + kind as u8, parts).await.unwrap();
            }
            sender.flush().await.unwrap();
        };
        let receiving = async {
            for (kind, sizes) in sizes.iter().enumerate() {
                let message = receiver.recv().await.unwrap();
                let expected: Vec<u8> =
                    sizes.iter().enumerate().flat_map(|(at, bytes)| vec![at as u8; *bytes]).collect();
                assert!(message.kind == 16 + kind as u8 && message.payload == expected, "message {kind}");
            }
        };
        within(join(sending, receiving)).await;
    });
}

#[test]
fn frames_of_concurrent_senders_do_not_mix() {
    on_both_backends(|| async {
        let ((sender, _receiver), (_sender, mut receiver)) = pair().await;
        for task in 0..4u8 {
            let sender = sender.clone();
            spawn(async move {
                for size in [1, 400_000, 20, 1_000_000] {
                    sender.send(16 + task, vec![part(task, size)]).await.unwrap();
                }
            });
        }
        let mut of_task = [const { Vec::new() }; 4];
        for _ in 0..16 {
            let message = within(receiver.recv()).await.unwrap();
            let task = message.kind - 16;
            assert!(message.payload.iter().all(|byte| *byte == task));
            of_task[task as usize].push(message.payload.len());
        }
        assert!(of_task.iter().all(|sizes| sizes == &[1, 400_000, 20, 1_000_000]));
        drop(sender);
        let end = within(receiver.recv()).await.unwrap_err();
        assert!(matches!(end, LinkError::ClosedByPeer { in_message: false, .. }), "{end}");
        assert!(end.to_string().starts_with("node 1 at 127.0.0.1:"), "{end}");
    });
}

#[test]
fn a_dropped_recv_loses_nothing() {
    on_both_backends(|| async {
        let ((sender, _receiver), (_sender, mut receiver)) = pair().await;
        let sending = async {
            for number in 0..50u8 {
                sender.send(16, vec![part(number, 40_000)]).await.unwrap();
            }
        };
        let receiving = async {
            let mut number = 0;
            while number < 50 {
                if let Ok(message) = timeout(Duration::from_micros(50), receiver.recv()).await {
                    assert!(message.unwrap().payload.iter().all(|byte| *byte == number));
                    number += 1;
                }
            }
        };
        within(join(sending, receiving)).await;
    });
}

#[test]
fn a_full_queue_holds_senders_back_and_the_first_reason_frees_them() {
    on_both_backends(|| async {
        let ((sender, mut receiver), far) = pair().await;
        let sent = Rc::new(Cell::new(0));
        let (waiting, count) = (sender.clone(), sent.clone());
        let failed = Rc::new(RefCell::new(None));
        let failure = failed.clone();
        spawn(async move {
            loop {
                match waiting.send(16, vec![part(1, 100_000)]).await {
                    Ok(()) => count.set(count.get() + 1),
                    Err(error) => return *failure.borrow_mut() = Some(error),
                }
            }
        });
        // The far end receives nothing: what is taken is the queue and the kernel's buffers.
        let mut last = 0;
        while last == 0 || last != sent.get() {
            last = sent.get();
            let _ = timeout(Duration::from_millis(200), std::future::pending::<()>()).await;
        }
        assert!(last * 100_000 < SEND_QUEUE_BYTES_MAX + (64 << 20));
        assert_eq!(sender.try_send(16, vec![]), Ok(false));
        assert!(failed.borrow().is_none());
        sender.close("the test is over");
        sender.close("another reason");
        until("the waiting sender's end", || failed.borrow().is_some()).await;
        let reason = failed.borrow_mut().take().unwrap();
        assert!(matches!(&reason, LinkError::ClosedHere { reason, .. } if reason == "the test is over"));
        assert_eq!(within(receiver.recv()).await.unwrap_err(), reason);
        assert_eq!(within(sender.closed()).await, reason);
        assert_eq!(sender.send(16, vec![]).await.unwrap_err(), reason);
        drop(far);
    });
}

#[test]
fn messages_beyond_the_limit_are_refused_and_the_link_goes_on() {
    on_both_backends(|| async {
        let ((sender, _receiver), (_sender, mut receiver)) = pair().await;
        // One part of 1 MiB, many times: the limit is reached without holding that much.
        static MEBIBYTE: [u8; 1 << 20] = [0; 1 << 20];
        let parts = (0..521).map(|_| -> Box<dyn IoBuf> { Box::new(&MEBIBYTE[..]) }).collect();
        let error = sender.send(16, parts).await.unwrap_err();
        assert!(matches!(error, LinkError::MessageTooLong { bytes: 546_308_096, .. }), "{error}");
        sender.send(16, vec![part(1, 3)]).await.unwrap();
        assert_eq!(within(receiver.recv()).await.unwrap().payload, [1; 3]);
    });
}

/// Connects as `mine` to an acceptor that answers as `decide` does.
async fn handshake(
    mine: Hello,
    decide: impl Fn(&Hello) -> Result<Hello, Refusal>,
) -> (Result<Half, LinkError>, Result<Half, LinkError>) {
    let (listener, addr) = listener().await;
    let accepting = async {
        let (stream, _) = listener.accept().await.unwrap();
        Link::accept(stream, decide).await.map(|link| halves(link).0)
    };
    let connecting = async { Link::connect(addr, mine, PATIENCE).await.map(|link| halves(link).0) };
    within(join(connecting, accepting)).await
}

fn refusal_of(result: Result<Half, LinkError>) -> (bool, Refusal) {
    match result {
        Err(LinkError::Refused { refusal, .. }) => (true, refusal),
        Err(LinkError::RefusedHere { refusal, .. }) => (false, refusal),
        other => panic!("not a refusal: {other:?}"),
    }
}

#[test]
fn refusals_are_typed_and_in_words_at_both_ends() {
    on_both_backends(|| async {
        let here = hello(2, Purpose::Control);
        let stranger = Hello { cluster: [8; 16], ..hello(1, Purpose::Control) };
        let decide = |peer: &Hello| here.check_cluster(peer).map(|()| here.clone());
        let (connected, accepted) = handshake(stranger.clone(), decide).await;
        let (by_peer, refusal) = refusal_of(connected);
        assert!(
            by_peer && refusal.words.starts_with("cluster mismatch: this node belongs to 0707"),
            "{refusal}"
        );
        assert_eq!(refusal.reason, RefusalReason::ClusterMismatch);
        assert_eq!(refusal_of(accepted), (false, refusal));

        // An acceptor that does not look: the connecting node does.
        let (connected, _) = handshake(stranger.clone(), |_| Ok(here.clone())).await;
        let (by_peer, refusal) = refusal_of(connected);
        assert!(!by_peer && refusal.reason == RefusalReason::ClusterMismatch);

        // Admin links need no cluster.
        let admin = Hello { purpose: Purpose::Admin, ..stranger };
        let (connected, accepted) = handshake(admin, decide).await;
        assert!(connected.is_ok() && accepted.is_ok());

        let unknown = Refusal::new(RefusalReason::UnknownNode, "node 1 is not a member");
        let (connected, _) = handshake(hello(1, Purpose::Bulk), |_| Err(unknown.clone())).await;
        assert_eq!(refusal_of(connected), (true, unknown));
    });
}

/// What an acceptor says to, and thinks of, a peer that sends these bytes.
async fn raw_peer(bytes: Vec<u8>, limit: Duration) -> (Vec<u8>, LinkError) {
    let (listener, addr) = listener().await;
    let accepting = async {
        let (stream, _) = listener.accept().await.unwrap();
        let decide = |_: &Hello| Ok(hello(2, Purpose::Bulk));
        Link::accept_within(stream, limit, decide).await.map(drop).unwrap_err()
    };
    let peer = async {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.send_all(bytes).await.0.unwrap();
        recv_to_end(&stream).await
    };
    let (error, answer) = within(join(accepting, peer)).await;
    (answer, error)
}

#[test]
fn what_is_not_a_handshake_is_named() {
    on_both_backends(|| async {
        let limit = Duration::from_millis(200);
        let mut other_format = vec![0; HELLO_BYTES];
        other_format[..6].copy_from_slice(b"LGLK\x63\0");
        let (answer, error) = raw_peer(FrameEncoder::new().whole(1, &other_format), limit).await;
        assert!(
            matches!(&error, LinkError::RefusedHere { refusal, .. } if refusal.reason == RefusalReason::FormatMismatch)
        );
        let words = format!("format mismatch: this node speaks format {FORMAT}, the peer format 99");
        assert!(answer.ends_with(words.as_bytes()), "{}", answer.escape_ascii());

        let (answer, error) = raw_peer(b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n".to_vec(), limit).await;
        assert!(answer.is_empty() && matches!(error, LinkError::Frame { .. }), "{error}");
        let (_, error) = raw_peer(FrameEncoder::new().whole(1, b"hello"), limit).await;
        assert!(error.to_string().contains("does not speak this protocol"), "{error}");
        let (_, error) = raw_peer(FrameEncoder::new().whole(20, b"LGLK"), limit).await;
        assert!(matches!(error, LinkError::Handshake { .. }), "{error}");
        // A frame that no handshake needs is refused by its length.
        let (_, error) = raw_peer(FrameEncoder::new().whole(1, &[0; 2000]), limit).await;
        assert!(matches!(
            error,
            LinkError::Frame { error: FrameError::FrameTooLong { limit: 1024, .. }, .. }
        ));
        let (_, error) = raw_peer(b"LG".to_vec(), limit).await;
        assert!(matches!(error, LinkError::HandshakeTimeout { timeout_ms: 200, .. }), "{error}");
    });
}

#[test]
fn nobody_there_is_an_error_in_words() {
    on_both_backends(|| async {
        let (closed, addr) = listener().await;
        drop(closed);
        let error =
            within(Link::connect(addr, hello(1, Purpose::Bulk), PATIENCE)).await.map(drop).unwrap_err();
        assert!(error.to_string().starts_with(&format!("no connection to {addr}: ")), "{error}");
        let (_silent, addr) = listener().await;
        let limit = Duration::from_millis(100);
        let error = within(Link::connect(addr, hello(1, Purpose::Bulk), limit)).await.map(drop).unwrap_err();
        assert_eq!(error.to_string(), format!("{addr} did not finish the handshake within 100 ms"));
    });
}

/// Passes bytes on, and flips a bit of byte number `damaged` from the connecting end.
async fn damaging_proxy(to: SocketAddr, damaged: usize) -> SocketAddr {
    let (listener, addr) = listener().await;
    spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let far = TcpStream::connect(to).await.unwrap();
        spawn(pass_on(far.clone(), near.clone(), None));
        pass_on(near, far, Some(damaged)).await;
    });
    addr
}

async fn pass_on(from: TcpStream, to: TcpStream, damaged: Option<usize>) {
    let mut passed = 0;
    loop {
        let (received, mut bytes) = from.recv(Vec::with_capacity(4096)).await;
        if received.unwrap_or(0) == 0 {
            return to.shutdown();
        }
        if let Some(at) = damaged.and_then(|at| at.checked_sub(passed)).filter(|at| *at < bytes.len()) {
            bytes[at] ^= 4;
        }
        passed += bytes.len();
        if to.send_all(bytes).await.0.is_err() {
            return;
        }
    }
}

#[test]
fn damage_on_the_way_ends_the_link_with_the_peers_name() {
    on_both_backends(|| async {
        let handshake_bytes = 16 + HELLO_BYTES;
        // In the first message's length, kind, sequence, checksum; in its payload; in its last frame.
        for damaged in [1, 4, 8, 12, 16, 16 + 262_144 + 16 + 100_000] {
            let (listener, addr) = listener().await;
            let proxy = damaging_proxy(addr, handshake_bytes + damaged).await;
            let accepting = async {
                let (stream, _) = listener.accept().await.unwrap();
                Link::accept(stream, |_| Ok(hello(2, Purpose::Bulk))).await.unwrap()
            };
            let connecting = Link::connect(proxy, hello(1, Purpose::Bulk), PATIENCE);
            let (accepted, connected) = within(join(accepting, connecting)).await;
            let ((sender, mut answers), _) = halves(connected.unwrap());
            let ((_far_sender, mut receiver), _) = halves(accepted);
            sender.send(16, vec![part(9, 400_000)]).await.unwrap();
            sender.send(16, vec![part(9, 400_000)]).await.unwrap();
            let error = within(receiver.recv()).await.unwrap_err();
            assert!(matches!(error, LinkError::Frame { .. }), "byte {damaged}: {error}");
            assert!(error.to_string().starts_with("damaged bytes from node 1 at 127.0.0.1:"), "{error}");
            // Everybody gets the first reason, and the other end hears of it.
            assert_eq!(within(receiver.recv()).await.unwrap_err(), error);
            within(answers.recv()).await.unwrap_err();
        }
    });
}

#[test]
fn accepted_links_are_handed_over_until_the_stop() {
    on_both_backends(|| async {
        let (listener, addr) = listener().await;
        let (stop, ended, links) =
            (Stop::new(), Rc::new(Cell::new(false)), Rc::new(RefCell::new(Vec::new())));
        let made = links.clone();
        let decide =
            |peer: &Hello| hello(2, peer.purpose).check_cluster(peer).map(|()| hello(2, peer.purpose));
        let accepting = accept_links(listener, stop.clone(), decide, move |sender, receiver, peer| {
            made.borrow_mut().push((sender, receiver, peer));
        });
        let end = ended.clone();
        spawn(async move {
            accepting.await;
            end.set(true);
        });
        // Somebody who never finishes does not keep others waiting.
        let silent = TcpStream::connect(addr).await.unwrap();
        for node in 3..6 {
            let mine = hello(node, Purpose::Control);
            let (sender, _receiver, _) = within(Link::connect(addr, mine, PATIENCE)).await.unwrap();
            sender.send(16, vec![part(node as u8, 1)]).await.unwrap();
            until("the link", || !links.borrow().is_empty()).await;
            let (_sender, mut receiver, peer) = links.borrow_mut().pop().unwrap();
            assert_eq!((peer.node, within(receiver.recv()).await.unwrap().payload[0]), (node, node as u8));
            drop(sender);
        }
        stop.stop();
        until("the listener's end", || ended.get()).await;
        assert!(TcpStream::connect(addr).await.is_err());
        drop(silent);
    });
}
