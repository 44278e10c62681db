//! Entry point: parses the command line, runs the command, gives its exit code.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use morph_deriver::commands::{self, Cli, Exit};

/// What blocking work may still hold a finished program up (P4).
const SHUTDOWN: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return Exit::Failed.into();
        }
    };
    let exit = runtime.block_on(commands::execute(cli));
    runtime.shutdown_timeout(SHUTDOWN);
    exit.into()
}
