//! `run`: the worker beside a node, until a signal stops it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Exit, wiring};
use crate::adapters::reactors::NoReactors;
use crate::adapters::store::SqliteStore;
use crate::config::{Config, ConfigArgs, ConfigError, ReactorControl};
use crate::error::{PortErrorKind, Severity};
use crate::flow::follow::Follower;
use crate::flow::quiesce::Quiesce;
use crate::flow::worker::{Worker, contained};
use crate::ports::{LeaseStore as _, PortResult, Progress as _};
use crate::server::About;
use crate::types::{B256, Identity};

/// Wait between two rounds of asking all parties for their network.
const IDENTITY_RETRY: Duration = Duration::from_secs(5);

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Drop a pause that an earlier run left and this configuration cannot resume, because the consensus node is gone
    #[arg(long = "reactors.forget-pause")]
    pub forget_pause: bool,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Configuration that cannot be used, a database that is refused, a party that belongs to another network.
pub async fn execute(args: Args) -> anyhow::Result<Exit> {
    let config = Config::load(&args.config)?;
    config.require(&config.run_needs())?;
    if args.forget_pause && (config.observe || config.reactors.control != ReactorControl::None) {
        return Err(ConfigError::Conflict("--reactors.forget-pause needs reactors.kind = none".to_owned()).into());
    }
    crate::telemetry::init(&config.log)?;
    let stop = stop_on_signal();
    let identity = config.identity()?;
    let clients = wiring::clients(&config)?;
    if config.follows() {
        return follow(&config, &identity, clients, stop).await;
    }
    let opening = open(&config, &identity, args.forget_pause);
    let Some(store) = stop.run_until_cancelled(opening).await else { return Ok(Exit::Done) };
    let store = store.context("the database")?;
    // Takes milliseconds; a program that cannot make commitments must not begin.
    crate::codec::blob::warm_up()?;
    let ports = wiring::ports(&config, &clients, store.clone())?;
    let Some(worker) = stop.run_until_cancelled(Worker::start(ports, wiring::settings(&config))).await else {
        warn!(
            code = "stopped_starting",
            "stopped while starting; if an earlier run left a pause, its lease stays stored and the next start resumes it"
        );
        store.close().await;
        return Ok(Exit::Done);
    };
    let worker = worker?;
    if let Some(address) = config.listen {
        let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        info!(%address, "status, health and metrics");
        let about = About { identity: identity.clone(), instance: B256(rand::random()) };
        tokio::spawn(crate::server::serve(listener, worker.status(), Some(about), stop.clone()));
    }
    let ended = match stop.run_until_cancelled(identity_gate(&clients, &identity)).await {
        None => Ok(()),
        Some(Err(error)) => {
            worker.quiesce().shutdown(Duration::from_secs(1)).await;
            Err(error.context("refused to start"))
        }
        Some(Ok(())) => {
            info!(observe = config.observe, "started");
            let ended = contained(&worker.quiesce(), worker.run(stop)).await;
            ended.map_err(anyhow::Error::from).and_then(|ended| Ok(ended?))
        }
    };
    store.close().await;
    ended.map(|()| Exit::Done)
}

/// Follows another node until a signal stops it. Nothing is derived, written or paused.
async fn follow(
    config: &Config,
    identity: &Identity,
    clients: wiring::Clients,
    stop: CancellationToken,
) -> anyhow::Result<Exit> {
    let instance = B256(rand::random());
    let store = Arc::new(SqliteStore::open(&config.store).await.context("the database")?);
    store.claim(identity).await.context("the database")?;
    store.claim_use(true).await.context("the database")?;
    // No blob is asked for: a beacon node that is configured and does not answer holds up nothing.
    let clients = wiring::Clients { beacon: None, ..clients };
    let ports = wiring::follow_ports(config, &clients, store.clone())?;
    let quiesce = Quiesce::new(Arc::new(NoReactors), store.clone(), ports.l2.clone(), Duration::ZERO);
    let follower = Follower::start(ports, wiring::follow_settings(config, identity, instance)).await?;
    if let Some(address) = config.listen {
        let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        info!(%address, "status, health and metrics");
        let about = About { identity: identity.clone(), instance };
        tokio::spawn(crate::server::serve(listener, follower.status(), Some(about), stop.clone()));
    }
    let ended = match stop.run_until_cancelled(identity_gate(&clients, identity)).await {
        None => Ok(()),
        Some(Err(error)) => Err(error.context("refused to start")),
        Some(Ok(())) => {
            info!(observe = config.observe, sources = config.follow.sources.len(), "started; following");
            contained(&quiesce, follower.run(stop)).await.map_err(anyhow::Error::from)
        }
    };
    store.close().await;
    ended.map(|()| Exit::Done)
}

/// Opens the database of this network.
async fn open(config: &Config, identity: &Identity, forget: bool) -> PortResult<Arc<SqliteStore>> {
    let store = SqliteStore::open(&config.store).await?;
    store.claim(identity).await?;
    store.claim_use(false).await?;
    store.claim_start(wiring::settings(config).start).await?;
    if forget {
        forget_pause(&store).await?;
    }
    Ok(Arc::new(store))
}

/// Drops the pause that an earlier run left, without resuming.
async fn forget_pause(store: &SqliteStore) -> PortResult<()> {
    match store.lease().await? {
        Some(lease) => {
            warn!(
                code = "pause_dropped",
                height = lease.height.get(),
                "dropping the pause that an earlier run left (--reactors.forget-pause)"
            )
        }
        None => info!("no earlier run left a pause"),
    }
    store.set_lease(None).await
}

/// Waits until every party has shown that it belongs to the configured network (A11). A party that does not answer is asked
/// again; one of another network ends the program.
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

/// A token that SIGTERM or SIGINT cancels, from the return of this function on.
pub(super) fn stop_on_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let told = stop.clone();
    let signal = signal();
    tokio::spawn(async move {
        signal.await;
        info!("received shutdown signal");
        told.cancel();
    });
    stop
}

/// Installs the signal handlers. The future that it returns waits for a signal.
#[cfg(unix)]
fn signal() -> impl Future<Output = ()> + Send {
    use tokio::signal::unix::{SignalKind, signal};
    let handlers = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async move {
        let (Ok(mut terminate), Ok(mut interrupt)) = handlers else { return std::future::pending().await };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
async fn signal() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
