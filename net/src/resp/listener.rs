//! Accepts clients on one core, within the node's limits, until the stop signal.
//!
//! Invariant: when [`serve`] returns, no connection of its core is left.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use lockgate_runtime::{Event, TaskHandle, TcpListener, TcpStream, sleep, spawn, timeout};

use super::connection::{Connection, linger};
use super::limits::Limits;
use super::service::Service;
use crate::Stop;

/// How long connections may take after the stop signal to finish the batch at hand.
pub const STOP_GRACE: Duration = Duration::from_secs(5);

/// After a failed accept (no file descriptors left, say), before the next try.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Refused connections that are still being told so; more are closed without words.
const REFUSALS_MAX: usize = 256;
const REFUSAL: &[u8] = b"-ERR max number of clients reached\r\n";

/// Serves clients of `listener` with `service` on the current core. Returns after `stop` was given and every
/// connection has finished the batch that it was executing (or [`STOP_GRACE`] has passed).
///
/// Start one on every core, with listeners of the same address, and clones of the same `stop` and `limits`.
pub async fn serve<S: Service>(listener: TcpListener, service: Rc<S>, stop: Stop, limits: Limits) {
    let connections = Tasks::new();
    let refusals = Tasks::new();
    while let Some(stream) = accept(&listener, &stop).await {
        match limits.connect() {
            Some(permit) => {
                let connection = Connection::new(stream, service.clone(), stop.clone(), &limits);
                connections.spawn(async move {
                    connection.run().await;
                    drop(permit);
                });
            }
            None if refusals.len() < REFUSALS_MAX => refusals.spawn(refuse(stream)),
            None => drop(stream),
        }
    }
    drop(listener);
    if timeout(STOP_GRACE, connections.ended()).await.is_err() {
        tracing::warn!(left = connections.len(), "connections did not finish in time and are cut off");
        connections.abort();
    }
    refusals.abort();
}

/// The next client, or None once the node stops.
async fn accept(listener: &TcpListener, stop: &Stop) -> Option<TcpStream> {
    loop {
        let accepted = {
            let accepted = pin!(listener.accept());
            let stopped = pin!(stop.stopped());
            match select(stopped, accepted).await {
                Either::Left(_) => return None,
                Either::Right((accepted, _)) => accepted,
            }
        };
        match accepted {
            Ok((stream, _)) => return Some(stream),
            Err(error) => {
                tracing::warn!(%error, "a client could not be accepted: look at the limit on open files");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn refuse(stream: TcpStream) {
    if stream.send_all(REFUSAL).await.0.is_ok() {
        linger(&stream).await;
    }
}

/// The running tasks of one kind; each leaves the table when it ends, however it ends.
#[derive(Clone)]
struct Tasks(Rc<Table>);

struct Table {
    running: RefCell<Running>,
    ended: Event,
}

#[derive(Default)]
struct Running {
    next: u64,
    handles: BTreeMap<u64, Option<TaskHandle>>,
}

impl Tasks {
    fn new() -> Self {
        Self(Rc::new(Table { running: RefCell::default(), ended: Event::new() }))
    }

    fn len(&self) -> usize {
        self.0.running.borrow().handles.len()
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let number = {
            let mut running = self.0.running.borrow_mut();
            running.next += 1;
            let number = running.next;
            running.handles.insert(number, None);
            number
        };
        let leave = Leave(self.clone(), number);
        let handle = spawn(async move {
            let _leave = leave;
            task.await;
        });
        if let Some(entry) = self.0.running.borrow_mut().handles.get_mut(&number) {
            *entry = Some(handle);
        }
    }

    async fn ended(&self) {
        loop {
            let listen = self.0.ended.listen();
            if self.len() == 0 {
                return;
            }
            listen.await;
        }
    }

    fn abort(&self) {
        // Taken out first: an aborted task's `Leave` looks at the table.
        let handles = std::mem::take(&mut self.0.running.borrow_mut().handles);
        for handle in handles.into_values().flatten() {
            handle.abort();
        }
    }
}

struct Leave(Tasks, u64);

impl Drop for Leave {
    fn drop(&mut self) {
        let left = self.0.0.running.borrow_mut().handles.remove(&self.1);
        drop(left);
        self.0.0.ended.notify_all();
    }
}
