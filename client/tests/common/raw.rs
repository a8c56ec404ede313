//! A peer that speaks HTTP/2 and otherwise what a test tells it, frame by frame.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use wardkeep_client::Member;

/// What the peer does with a request, in this order.
#[derive(Clone, Debug)]
pub enum Step {
    Head(u16, HeaderMap),
    /// A head that is all there is.
    Only(HeaderMap),
    Data(Bytes),
    Trailers(HeaderMap),
    /// No trailers follow.
    End,
    /// Waits until the caller has seen what was sent.
    Seen,
    Reset(u32),
    GoAway(u32),
}

type Script = Arc<dyn Fn(&HeaderMap) -> Vec<Step> + Send + Sync>;

pub struct Raw {
    pub uri: String,
    pub accepted: Arc<AtomicUsize>,
    /// A permit lets one [`Step::Seen`] pass.
    pub seen: Arc<Semaphore>,
    _server: JoinSet<()>,
}

impl Raw {
    /// Answers requests with these headers as the script says.
    pub async fn start(script: impl Fn(&HeaderMap) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let (accepted, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let (count, permits) = (accepted.clone(), seen.clone());
        let script: Script = Arc::new(script);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((io, _)) = listener.accept().await {
                count.fetch_add(1, SeqCst);
                connections.spawn(connection(io, script.clone(), permits.clone()));
            }
        });
        Self { uri, accepted, seen, _server: server }
    }

    pub fn member(&self) -> Member {
        Member::new("raw", &self.uri)
    }

    pub fn connections(&self) -> usize {
        self.accepted.load(SeqCst)
    }
}

async fn connection(io: TcpStream, script: Script, seen: Arc<Semaphore>) {
    io.set_nodelay(true).unwrap();
    let Ok(mut connection) = h2::server::handshake(io).await else { return };
    let (go_away, mut told) = mpsc::channel(1);
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            request = connection.accept() => {
                let Some(Ok((request, respond))) = request else { return };
                let steps = script(request.headers());
                streams.spawn(play(request, respond, steps, seen.clone(), go_away.clone()));
            }
            Some(reason) = told.recv() => connection.abrupt_shutdown(reason),
            Some(_) = streams.join_next() => {}
        }
    }
}

async fn play(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    steps: Vec<Step>,
    seen: Arc<Semaphore>,
    go_away: mpsc::Sender<Reason>,
) -> Result<(), h2::Error> {
    let mut asked = request.into_body();
    while let Some(chunk) = asked.data().await {
        asked.flow_control().release_capacity(chunk?.len())?;
    }
    let mut reply: Option<SendStream<Bytes>> = None;
    let gone = || h2::Error::from(Reason::INTERNAL_ERROR);
    for step in steps {
        match step {
            Step::Head(status, headers) => reply = Some(respond.send_response(head(status, headers), false)?),
            Step::Only(headers) => reply = Some(respond.send_response(head(200, headers), true)?),
            Step::Data(bytes) => reply.as_mut().ok_or_else(gone)?.send_data(bytes, false)?,
            Step::Trailers(map) => reply.as_mut().ok_or_else(gone)?.send_trailers(map)?,
            Step::End => reply.as_mut().ok_or_else(gone)?.send_data(Bytes::new(), true)?,
            Step::Seen => seen.acquire().await.unwrap().forget(),
            Step::Reset(code) => match &mut reply {
                Some(reply) => reply.send_reset(Reason::from(code)),
                None => respond.send_reset(Reason::from(code)),
            },
            Step::GoAway(code) => {
                let _ = go_away.send(Reason::from(code)).await;
                // The connection's end ends this stream too.
                std::future::pending().await
            }
        }
    }
    Ok(())
}

fn head(status: u16, headers: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status.try_into().unwrap();
    *response.headers_mut() = headers;
    response.headers_mut().entry("content-type").or_insert(HeaderValue::from_static("application/grpc"));
    response
}
