//! Entry point: parses the command line, runs the command, gives its exit code.

use std::process::ExitCode;

use clap::Parser as _;
use morph_deriver::commands::{self, Cli, Exit};

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
    // What still runs then is computing whose result nobody waits for: it must not hold up the end (P4).
    runtime.shutdown_background();
    exit.into()
}
