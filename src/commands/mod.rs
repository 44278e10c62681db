//! The command line: one file a command, and the only place that wires adapters to ports.
//!
//! Decided here: which commands there are, and what exit code an outcome has. Not decided here: anything else.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::ConfigError;
use crate::decide::stall::Reason;

pub mod audit;
pub mod completions;
pub mod config;
pub mod devnet;
pub mod inspect;
pub mod record;
pub mod recover;
pub mod replay;
pub mod run;
pub mod status;
pub mod terminal;
pub mod wiring;

/// Proves, batch by batch, that a Morph L2 node holds the chain that L1 committed to, and repairs it if it does not.
#[derive(Debug, Parser)]
#[command(name = "morph-deriver", version, about, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follow L1 beside a node: verify, repair, move safe and finalized
    Run(run::Args),
    /// Rebuild from L1 what a stopped sequencer left missing
    Recover(recover::Args),
    /// Verify the whole history, or a range of batches, once and without an engine
    Audit(audit::Args),
    /// Run the worker's flow over a range of L1, writing nothing to the node, and keep every answer in a folder
    Record(record::Args),
    /// Run the worker's flow on a recorded folder
    Replay(replay::Args),
    /// Serve a simulated network, to try everything without a node
    Devnet(devnet::Args),
    /// Show a batch by index, transaction or blob files, or how a payload is encoded
    Inspect(inspect::Args),
    /// Show a running worker's status, or print the journal of its writes
    Status(status::Args),
    /// Print the effective configuration, redacted, and check it
    Config(config::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Failed for any other reason than the ones below.
    Failed,
    /// Wrong usage or configuration. Also clap's own code.
    Usage,
    /// The chain differs from what L1 committed to.
    Divergence,
    /// Undecided: something that the decision needs is unavailable (blobs pruned, fixture incomplete).
    Unavailable,
}

impl Exit {
    /// The number that the shell sees.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Divergence => 3,
            Self::Unavailable => 4,
        }
    }
}

impl From<Reason> for Exit {
    /// The exit code of a command that ends on a stall: one rule for all commands.
    fn from(reason: Reason) -> Self {
        if reason.is_divergence() {
            Self::Divergence
        } else if reason.is_undecidable() {
            Self::Unavailable
        } else {
            Self::Failed
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Parses the command line, runs the command, gives its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return Exit::Failed.into();
        }
    };
    let exit = runtime.block_on(execute(cli));
    // Computations that still run have no use for their result any more. They must not delay the exit (P4).
    runtime.shutdown_background();
    exit.into()
}

/// Runs a command to its end. An error is printed to stderr with its causes, scrubbed of credentials.
async fn execute(cli: Cli) -> Exit {
    let outcome = match cli.command {
        Command::Run(args) => run::execute(args).await,
        Command::Recover(args) => recover::execute(args).await,
        Command::Audit(args) => audit::execute(args).await,
        Command::Record(args) => record::execute(args).await,
        Command::Replay(args) => replay::execute(args).await,
        Command::Devnet(args) => devnet::execute(args).await,
        Command::Inspect(args) => inspect::execute(args).await,
        Command::Status(args) => status::execute(args).await,
        Command::Config(args) => config::execute(args).await,
        Command::Completions(args) => completions::execute(&args),
    };
    match outcome {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("error: {}", crate::redact::cut_urls(&format!("{error:#}")));
            exit_of(&error)
        }
    }
}

/// A configuration that cannot be used is a usage error, anything else a failure.
fn exit_of(error: &anyhow::Error) -> Exit {
    if error.chain().any(|cause| cause.is::<ConfigError>()) { Exit::Usage } else { Exit::Failed }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let all = [Exit::Done, Exit::Failed, Exit::Usage, Exit::Divergence, Exit::Unavailable];
        assert_eq!(all.map(Exit::code), [0, 1, 2, 3, 4]);
    }

    /// The table of README's section on exit codes, reason by reason.
    fn documented(reason: Reason) -> Exit {
        match reason {
            Reason::StateRoot
            | Reason::WithdrawalRoot
            | Reason::DivergesBelowFinalized
            | Reason::DivergesBeforeSwitch
            | Reason::PoisonBatch
            | Reason::Unbound
            | Reason::WouldSelfHeal
            | Reason::RevertBelowFinalized => Exit::Divergence,
            Reason::WaitingForBlocks
            | Reason::BeforeSwitch
            | Reason::NodeLostBlocks
            | Reason::BlockMissing
            | Reason::FixtureIncomplete
            | Reason::BlobPruned
            | Reason::BlobMissing
            | Reason::RootsUnavailable
            | Reason::RevertPending
            | Reason::Gap
            | Reason::UnknownCommit => Exit::Unavailable,
            _ => Exit::Failed,
        }
    }

    #[test]
    fn every_reason_has_one_exit_code() {
        for reason in Reason::ALL {
            assert_eq!(Exit::from(*reason), documented(*reason), "{reason}");
            assert!(!(reason.is_divergence() && reason.is_undecidable()), "{reason}");
        }
    }

    #[test]
    fn wrong_configuration_is_a_usage_error_also_under_context() {
        let wrong: Result<(), _> = Err(ConfigError::Conflict("x".to_owned()));
        assert_eq!(exit_of(&wrong.context("while starting").unwrap_err()), Exit::Usage);
        assert_eq!(exit_of(&anyhow::anyhow!("x")), Exit::Failed);
    }
}
