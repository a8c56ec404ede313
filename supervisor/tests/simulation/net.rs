//! The simulated network, as servers and clients of ours want it.

use std::{io, net::SocketAddr};

use http::Uri;
use hyper_util::rt::TokioIo;
use turmoil::net::{TcpListener, TcpStream};
use wardkeep_node::server;

use super::book::Book;

/// Where supervisors and nodes listen.
pub const PORT: u16 = 7400;

pub struct Listener(TcpListener);

impl Listener {
    pub async fn bind(host: &str) -> io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
        Ok((Self(listener), SocketAddr::new(turmoil::lookup(host), PORT)))
    }
}

impl server::Listener for Listener {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, Option<tonic::transport::server::TcpConnectInfo>)> {
        let (stream, remote) = self.0.accept().await?;
        let info = tonic::transport::server::TcpConnectInfo {
            local_addr: stream.local_addr().ok(),
            remote_addr: Some(remote),
        };
        Ok((stream, Some(info)))
    }
}

/// Connects to hosts by name; `sup` is the supervisor whose turn it is.
pub fn connector(
    book: &Book,
) -> impl tower::Service<
    Uri,
    Response = TokioIo<TcpStream>,
    Error = io::Error,
    Future = futures_util::future::BoxFuture<'static, io::Result<TokioIo<TcpStream>>>,
> + Clone
+ Send
+ Sync
+ 'static {
    let book = book.clone();
    tower::service_fn(move |uri: Uri| -> futures_util::future::BoxFuture<'static, _> {
        let host = match uri.host().unwrap_or_default() {
            "sup" => book.supervisor().to_owned(),
            host => host.to_owned(),
        };
        Box::pin(async move { TcpStream::connect((host, PORT)).await.map(TokioIo::new) })
    })
}
