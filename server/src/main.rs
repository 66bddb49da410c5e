//! The `lockgate` binary: parses the command line and calls the library.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use lockgate::cli::Cli;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // LOCKGATE_LOG takes the directives of tracing-subscriber, such as `debug` or `lockgate_migrate=trace`.
    let filter = EnvFilter::try_from_env("LOCKGATE_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    match lockgate::run(Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
