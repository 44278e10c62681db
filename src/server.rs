//! placeholder while merging
/// Serve.
pub async fn serve(
    _l: tokio::net::TcpListener,
    _s: tokio::sync::watch::Receiver<crate::flow::worker::Status>,
    _c: tokio_util::sync::CancellationToken,
) {
}
