//! Raft's own words, into this process's log.

/// What raft says, at this process's levels: raft's "info" is about its own doings, so it counts as debugging here.
pub(super) fn logger() -> slog::Logger {
    struct Tracing;
    impl slog::Drain for Tracing {
        type Ok = ();
        type Err = slog::Never;

        fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
            match record.level() {
                slog::Level::Critical | slog::Level::Error => {
                    tracing::error!(target: "raft", "{}", record.msg())
                }
                slog::Level::Warning => tracing::warn!(target: "raft", "{}", record.msg()),
                slog::Level::Info => tracing::debug!(target: "raft", "{}", record.msg()),
                slog::Level::Debug | slog::Level::Trace => {
                    tracing::trace!(target: "raft", "{}", record.msg())
                }
            }
            Ok(())
        }
    }
    slog::Logger::root(Tracing, slog::o!())
}
