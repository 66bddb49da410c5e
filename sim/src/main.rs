//! The simulator's command line: see [`lockgate_sim::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    lockgate_sim::cli::main()
}
