//! `run`: the worker beside a node, until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Exit, wiring};
use crate::adapters::store::SqliteStore;
use crate::config::{Config, ConfigArgs};
use crate::error::{PortErrorKind, Severity};
use crate::flow::worker::{Worker, contained};
use crate::ports::Progress as _;
use crate::types::Identity;

/// Wait between two tries to ask everybody for their network.
const IDENTITY_RETRY: Duration = Duration::from_secs(5);

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Configuration that cannot be used, a database that is refused, a party that belongs to another network.
pub async fn execute(args: Args) -> anyhow::Result<Exit> {
    let config = Config::load(&args.config)?;
    config.require(&config.run_needs())?;
    crate::telemetry::init(&config.log)?;
    let identity = config.identity()?;
    let clients = wiring::clients(&config)?;
    let store = Arc::new(SqliteStore::open(&config.store).await.context("the database")?);
    store.claim(&identity).await.context("the database")?;
    // Loading the trusted setup takes a second: off the start-up path, done before the first batch needs it.
    tokio::task::spawn_blocking(crate::codec::blob::warm_up);
    let ports = wiring::ports(&config, &clients, store.clone())?;
    let worker = Worker::start(ports, wiring::settings(&config)).await?;
    let stop = stop_on_signal();
    if let Some(address) = config.listen {
        let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        info!(%address, "status, health and metrics");
        tokio::spawn(crate::server::serve(listener, worker.status(), stop.clone()));
    }
    match stop.run_until_cancelled(identity_gate(&clients, &identity)).await {
        None => {}
        Some(Err(error)) => {
            worker.quiesce().shutdown(Duration::from_secs(1)).await;
            return Err(error.context("refused to start"));
        }
        Some(Ok(())) => {
            info!(observe = config.observe, "started");
            let ended = contained(&worker.quiesce(), worker.run(stop)).await;
            store.close().await;
            ended??;
        }
    }
    store.close().await;
    Ok(Exit::Done)
}

/// Waits until every party has said that it belongs to the configured network (A11). Who cannot be asked is asked
/// again; who belongs elsewhere ends the program.
async fn identity_gate(clients: &wiring::Clients, identity: &Identity) -> anyhow::Result<()> {
    loop {
        match wiring::check_identity(clients, identity).await {
            Ok(()) => return Ok(()),
            Err(error) if error.severity() == Severity::Halt => return Err(error.into()),
            Err(error) if error.kind == PortErrorKind::Unauthorized => return Err(error.into()),
            Err(error) => {
                warn!(code = error.code(), entity = error.target.as_str(), "cannot check the network yet: {error}");
            }
        }
        tokio::time::sleep(IDENTITY_RETRY).await;
    }
}

/// A token that SIGTERM or SIGINT cancels.
pub(super) fn stop_on_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        wait_for_signal().await;
        info!("told to stop");
        told.cancel();
    });
    stop
}

#[cfg(unix)]
async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

#[cfg(not(unix))]
async fn wait_for_signal() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
