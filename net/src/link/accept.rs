//! Takes links on a listening socket until the stop signal.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use lockgate_runtime::{TcpListener, sleep, spawn};

use super::handshake::{Hello, Refusal};
use super::link::Link;
use super::receiver::LinkReceiver;
use super::sender::LinkSender;
use crate::Stop;

/// Handshakes under way at one listener; further connections are closed at once. (A peer connects again.)
pub const HANDSHAKES_MAX: usize = 128;

/// After a failed accept (no file descriptors left, say), before the next try.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Accepts links on `listener` until `stop`. `decide` answers a peer's Hello (see [`Link::accept`]); `on_link` gets each
/// link that was made and should spawn what serves it.
pub async fn accept_links<D, L>(listener: TcpListener, stop: Stop, decide: D, on_link: L)
where
    D: Fn(&Hello) -> Result<Hello, Refusal> + 'static,
    L: Fn(LinkSender, LinkReceiver, Hello) + 'static,
{
    let handlers = Rc::new((decide, on_link));
    let under_way = Rc::new(Cell::new(0));
    loop {
        let accepted = {
            let stopped = pin!(stop.stopped());
            let accepted = pin!(listener.accept());
            match select(stopped, accepted).await {
                Either::Left(_) => return,
                Either::Right((accepted, _)) => accepted,
            }
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a link could not be accepted: look at the limit on open files");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        if under_way.get() >= HANDSHAKES_MAX {
            tracing::warn!(peer = %stream.peer_addr(), "too many handshakes under way, connection closed");
            continue;
        }
        let counted = Counted::new(&under_way);
        let handlers = handlers.clone();
        spawn(async move {
            let made = Link::accept(stream, |hello| handlers.0(hello)).await;
            drop(counted);
            match made {
                Ok((sender, receiver, hello)) => handlers.1(sender, receiver, hello),
                Err(error) => tracing::warn!(%error, "no link was made"),
            }
        });
    }
}

/// Counts while it lives.
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
