//! The node's side of `Stewardship.Attend`: dials the supervisor, and dials again for as long as
//! the node lives. It carries messages and understands none.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use backon::BackoffBuilder as _;
use futures_util::{Stream, future::BoxFuture};
use http::Uri;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{
    Request,
    transport::{self, Channel, Endpoint},
};
use wardkeep_client::Checked;
use wardkeep_proto::{
    Error,
    v1::{NodeMessage, StewardMessage, node_message::Kind as Up, stewardship_client::StewardshipClient},
};

use crate::ledger::Ledger;

/// Messages up that may wait: beyond, the supervisor does not read and the session is given up.
const QUEUE: usize = 1_024;
/// For the supervisor to close its side, after the keeper has given up the session.
const LINGER: Duration = Duration::from_millis(500);
/// For connecting and for the answer to the first message.
const PATIENCE: Duration = Duration::from_secs(3);

/// The keeper's end of a session. When it is dropped, what was sent is still delivered; a supervisor
/// that does not close its side then is left after [`LINGER`].
pub(crate) struct Link {
    up: mpsc::Sender<NodeMessage>,
    _given_up: DropGuard,
}

impl Link {
    /// Queues a message. It comes back if the supervisor does not read, or the session has ended.
    #[allow(clippy::result_large_err, reason = "the message itself, for whoever wants to keep it")]
    pub(crate) fn send(&self, message: NodeMessage) -> Result<(), NodeMessage> {
        self.up.try_send(message).map_err(TrySendError::into_inner)
    }
}

/// What goes up. Errors that are still in it when the session ends go back to where they came from, and wait
/// for the next session.
struct Queue {
    messages: mpsc::Receiver<NodeMessage>,
    ledger: Ledger,
}

impl Stream for Queue {
    type Item = NodeMessage;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<NodeMessage>> {
        self.messages.poll_recv(context)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.messages.close();
        while let Ok(message) = self.messages.try_recv() {
            if let Some(Up::Errors(records)) = message.kind {
                self.ledger.give_back(records);
            }
        }
    }
}

/// What happens to the session.
pub(crate) enum Tidings {
    /// A connection stands. The first message to send into it is the Hello; dropping the link ends
    /// the session.
    Dialled(Link),
    /// From the supervisor.
    Down(StewardMessage),
    /// It ended, or could not be begun.
    Lost(String),
}

/// How connections are opened: with all of an endpoint's settings, but not always over TCP.
pub(crate) type Dial =
    Arc<dyn Fn(Endpoint) -> BoxFuture<'static, Result<Channel, transport::Error>> + Send + Sync>;

/// Where the supervisor is, and the way there.
#[derive(Clone)]
pub(crate) struct Supervisor {
    endpoint: Endpoint,
    /// `None` means TCP.
    dial: Option<Dial>,
}

impl Supervisor {
    pub(crate) fn new(endpoint: Endpoint, dial: Option<Dial>) -> Self {
        let endpoint = endpoint
            .connect_timeout(PATIENCE)
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(2))
            .keep_alive_while_idle(true);
        Self { endpoint, dial }
    }

    fn uri(&self) -> &Uri {
        self.endpoint.uri()
    }

    async fn connect(&self) -> Result<Channel, transport::Error> {
        match &self.dial {
            Some(dial) => dial(self.endpoint.clone()).await,
            None => self.endpoint.connect().await,
        }
    }
}

/// Keeps a session with the supervisor until `stop`.
pub(crate) async fn keep(
    supervisor: Supervisor,
    ledger: Ledger,
    tidings: mpsc::Sender<Tidings>,
    stop: CancellationToken,
) {
    let pauses = || {
        backon::ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(2))
            .without_max_times()
            .build()
    };
    let mut pause = pauses();
    loop {
        let mut welcomed = false;
        let ended = tokio::select! {
            ended = attend(&supervisor, &ledger, &tidings, &mut welcomed) => ended,
            () = stop.cancelled() => return,
        };
        if welcomed {
            pause = pauses();
        }
        if tidings.send(Tidings::Lost(ended)).await.is_err() {
            return;
        }
        let pause = pause.next().unwrap_or(Duration::from_secs(2));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// One session, from dialling to its end. Returns why it ended.
async fn attend(
    supervisor: &Supervisor,
    ledger: &Ledger,
    tidings: &mpsc::Sender<Tidings>,
    welcomed: &mut bool,
) -> String {
    let channel = match supervisor.connect().await {
        Ok(channel) => channel,
        Err(error) => return format!("{}: {}", supervisor.uri(), root_cause(&error)),
    };
    let (up, messages) = mpsc::channel(QUEUE);
    let queue = Queue { messages, ledger: ledger.clone() };
    let given_up = CancellationToken::new();
    let link = Link { up, _given_up: given_up.clone().drop_guard() };
    if tidings.send(Tidings::Dialled(link)).await.is_err() {
        return "the node ends".to_owned();
    }
    let left = async {
        given_up.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        ended = listen(supervisor, channel, queue, tidings, welcomed) => ended,
        () = left => "the node gave the session up".to_owned(),
    }
}

/// The rest of a session once the keeper has its end.
async fn listen(
    supervisor: &Supervisor,
    channel: Channel,
    queue: Queue,
    tidings: &mpsc::Sender<Tidings>,
    welcomed: &mut bool,
) -> String {
    let mut client = StewardshipClient::new(Checked(channel));
    let opening = client.attend(Request::new(queue));
    let mut down = match timeout(PATIENCE, opening).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return describe(&status),
        Err(_) => return format!("{}: no answer within {PATIENCE:?}", supervisor.uri()),
    };
    loop {
        // The first message is due at once; after it, silence is fine: the connection is probed.
        let patience = if *welcomed { None } else { Some(PATIENCE) };
        let message = match patience {
            None => down.message().await,
            Some(patience) => match timeout(patience, down.message()).await {
                Ok(message) => message,
                Err(_) => return format!("{}: no welcome within {patience:?}", supervisor.uri()),
            },
        };
        match message {
            Ok(Some(message)) => {
                *welcomed = true;
                if tidings.send(Tidings::Down(message)).await.is_err() {
                    return "the node ends".to_owned();
                }
            }
            Ok(None) => return "the supervisor ended the session".to_owned(),
            Err(status) => return describe(&status),
        }
    }
}

fn describe(status: &tonic::Status) -> String {
    Error::from_status(status).to_string()
}

fn root_cause(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |&e| e.source()).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use wardkeep_proto::error::Bug;

    use super::*;
    use crate::ledger::told_of;

    #[test]
    fn errors_that_a_session_did_not_get_to_send_wait_for_the_next_one() {
        let ledger = Ledger::new();
        for _ in 0..30 {
            ledger.write(&Bug::because("x"));
        }
        let records = ledger.take().unwrap();
        let (whole, told) = (records.records.clone(), told_of(&records));
        let (up, messages) = mpsc::channel(QUEUE);
        let given_up = CancellationToken::new();
        let link = Link { up, _given_up: given_up.drop_guard() };
        let queue = Queue { messages, ledger: ledger.clone() };
        let message = |kind| NodeMessage { kind: Some(kind) };
        assert!(link.send(message(Up::Goodbye(Default::default()))).is_ok());
        assert!(link.send(message(Up::Errors(records))).is_ok());
        // As when it breaks.
        drop(queue);
        let again = ledger.take().unwrap();
        assert_eq!((again.records.clone(), told_of(&again)), (whole, told));
        assert!(link.send(message(Up::Errors(again))).is_err(), "it comes back");
    }
}
