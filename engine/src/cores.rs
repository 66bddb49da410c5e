//! Work on a certain core, and its result.

use lockgate_runtime::sync::{Arc, Mutex};
use lockgate_runtime::{Event, Runtime};

/// Something that a core does, to be awaited.
pub(crate) struct Job<T>(Arc<(Mutex<Option<T>>, Event)>);

impl<T: Send + 'static> Job<T> {
    /// Has a core begin it.
    pub(crate) fn start_on<M, F>(runtime: &Runtime, core: usize, make: M) -> Job<T>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let answer = Arc::new((Mutex::new(None), Event::new()));
        let sender = answer.clone();
        runtime.spawn_on(core, move || {
            let work = make();
            async move {
                let done = work.await;
                *sender.0.lock() = Some(done);
                sender.1.notify_all();
            }
        });
        Job(answer)
    }

    /// Waits for its result. Where the core is shut down before there is one, this never ends: to be awaited on a core of
    /// the same runtime, which is shut down with it.
    pub(crate) async fn done(self) -> T {
        loop {
            let answered = self.0.1.listen();
            let answer = self.0.0.lock().take();
            match answer {
                Some(answer) => return answer,
                None => answered.await,
            }
        }
    }
}
