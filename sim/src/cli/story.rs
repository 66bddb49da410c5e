//! The story of a run: what nodes log and what was done to them, with ideal time and machine.

use std::cell::Cell;
use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// What is told unless RUST_LOG says otherwise.
const FILTER: &str = "info,lockgate_migrate=debug,lockgate_sim=trace";

thread_local! {
    static NOW_NS: Cell<u64> = const { Cell::new(0) };
}

/// Notes the time of what is told next.
pub(crate) fn set_now_ns(now_ns: u64) {
    NOW_NS.set(now_ns);
}

/// Has everything told on the standard output.
pub(super) fn tell() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(FILTER));
    let ansi = std::io::stdout().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).event_format(Line);
    lines.with_writer(std::io::stdout).init();
}

/// One line: milliseconds, machine, level, words.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let machine = lockgate_runtime::core_index().map_or_else(
            || "sim".to_owned(),
            |core| format!("{}/{core}", lockgate_runtime::current().name()),
        );
        let (now_ms, level) = (NOW_NS.get() as f64 / 1e6, event.metadata().level());
        write!(writer, "{now_ms:>12.3} ms {machine:<9} {level:<5} ")?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
