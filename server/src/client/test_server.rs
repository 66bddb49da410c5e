//! A tiny RESP2 server for the client's tests: each command is answered by a closure. Ends when it is dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;

use lockgate_runtime::sync::atomic::{AtomicBool, Ordering};
use lockgate_runtime::sync::{Arc, Mutex};

/// What the server does with a command.
pub(crate) enum Action {
    Reply(Vec<u8>),
    Close,
    Silence,
}

impl Action {
    /// A reply of one line, which is given without its end.
    pub(crate) fn reply(line: &str) -> Action {
        Action::Reply(format!("{line}\r\n").into_bytes())
    }

    pub(crate) fn bulk(bytes: &[u8]) -> Action {
        let mut reply = format!("${}\r\n", bytes.len()).into_bytes();
        reply.extend_from_slice(bytes);
        reply.extend_from_slice(b"\r\n");
        Action::Reply(reply)
    }
}

type Handler = Arc<dyn Fn(&[Vec<u8>]) -> Action + Send + Sync>;

pub(crate) struct TestServer {
    addr: SocketAddr,
    stopping: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    acceptor: Option<JoinHandle<()>>,
}

impl TestServer {
    pub(crate) fn start(handler: impl Fn(&[Vec<u8>]) -> Action + Send + Sync + 'static) -> TestServer {
        TestServer::start_on(Self::bind(), handler)
    }

    /// A listener to be given to `start_on`, so that servers can know each other's addresses.
    pub(crate) fn bind() -> TcpListener {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
    }

    /// An address that nobody listens on.
    pub(crate) fn unused_addr() -> SocketAddr {
        Self::bind().local_addr().unwrap()
    }

    pub(crate) fn start_on(
        listener: TcpListener,
        handler: impl Fn(&[Vec<u8>]) -> Action + Send + Sync + 'static,
    ) -> TestServer {
        let addr = listener.local_addr().unwrap();
        let stopping = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let handler: Handler = Arc::new(handler);
        let (stop, open) = (stopping.clone(), connections.clone());
        let acceptor = std::thread::spawn(move || {
            let mut servers = Vec::new();
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                open.lock().push(stream.try_clone().unwrap());
                let handler = handler.clone();
                servers.push(std::thread::spawn(move || serve(stream, &handler)));
            }
            drop(listener);
            for connection in open.lock().drain(..) {
                let _ = connection.shutdown(std::net::Shutdown::Both);
            }
            for server in servers {
                server.join().unwrap();
            }
        });
        TestServer { addr, stopping, connections, acceptor: Some(acceptor) }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Closes all connections, but goes on accepting.
    pub(crate) fn disconnect_all(&self) {
        for connection in self.connections.lock().drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn serve(stream: TcpStream, handler: &Handler) {
    let mut out = stream.try_clone().unwrap();
    let mut input = BufReader::new(stream);
    while let Some(args) = read_command(&mut input) {
        match handler(&args) {
            Action::Reply(bytes) => {
                if out.write_all(&bytes).is_err() {
                    return;
                }
            }
            Action::Close => {
                // Unread input would turn the end into a reset, which can overtake replies.
                let _ = out.shutdown(std::net::Shutdown::Write);
                let _ = std::io::copy(&mut input, &mut std::io::sink());
                return;
            }
            Action::Silence => {}
        }
    }
}

fn read_command(input: &mut BufReader<TcpStream>) -> Option<Vec<Vec<u8>>> {
    let count = read_length(input, '*')?;
    (0..count)
        .map(|_| {
            let mut bytes = vec![0; read_length(input, '$')? + 2];
            input.read_exact(&mut bytes).ok()?;
            bytes.truncate(bytes.len() - 2);
            Some(bytes)
        })
        .collect()
}

fn read_length(input: &mut BufReader<TcpStream>, kind: char) -> Option<usize> {
    let mut line = String::new();
    input.read_line(&mut line).ok()?;
    line.strip_prefix(kind)?.trim_end().parse().ok()
}
