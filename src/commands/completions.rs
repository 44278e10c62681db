//! `completions`: a completion script for a shell, to stdout.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Exit};

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    pub shell: Shell,
}

/// Prints the script.
///
/// # Errors
///
/// None.
pub fn execute(args: &Args) -> anyhow::Result<Exit> {
    clap_complete::generate(args.shell, &mut Cli::command(), "morph-deriver", &mut std::io::stdout());
    Ok(Exit::Done)
}
