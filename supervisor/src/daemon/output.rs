//! What programs of process wards printed, for operators: asked of the node, a page at a time, only when
//! the reader has taken the page before. So nothing piles up here for a reader who is slow or has gone.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::{sleep, timeout},
};
use uuid::Uuid;
use wardkeep_proto::{
    Error, duration,
    v1::{self, steward_message::Kind as Down},
};

use super::{
    SupervisorError,
    fleet::{Fleet, Msg, SessionId},
};

/// Readers at a time.
pub(super) const READERS: usize = 64;
/// A node without news says so after this.
const WAIT: Duration = Duration::from_secs(10);
/// For its answer, after that.
const PATIENCE: Duration = Duration::from_secs(3);
/// Until a node that is away is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// What is wanted of a ward's output.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) node: String,
    pub(super) ward: String,
    /// The node's life that `after` counts in; in another one all lines are wanted.
    pub(super) boot: Option<Uuid>,
    pub(super) after: u64,
    pub(super) newest: u32,
    pub(super) wait: Duration,
}

/// What the node says, and in which of its lives.
pub(super) type Answer = Result<(Uuid, v1::Output), Error>;

/// Questions to nodes that are not answered yet.
#[derive(Default)]
pub(super) struct Questions {
    open: HashMap<(SessionId, u64), oneshot::Sender<Answer>>,
    last: u64,
}

impl Questions {
    fn ask(&mut self, session: SessionId, answer: oneshot::Sender<Answer>) -> u64 {
        // Nodes answer all they know; what is left is of readers who have gone, and of older nodes.
        self.open.retain(|_, answer| !answer.is_closed());
        self.last += 1;
        self.open.insert((session, self.last), answer);
        self.last
    }

    pub(super) fn answered(&mut self, session: SessionId, boot: Uuid, output: v1::Output) {
        if let Some(answer) = self.open.remove(&(session, output.id)) {
            let _ = answer.send(Ok((boot, output)));
        }
    }

    /// The session has ended: nobody will answer.
    pub(super) fn forget(&mut self, session: SessionId) {
        self.open.retain(|(of, _), _| *of != session);
    }
}

impl Fleet {
    pub(super) fn ask_for_output(&mut self, wanted: &Wanted, answer: oneshot::Sender<Answer>) {
        match self.output_question(wanted) {
            Ok((node, session, mut question)) => {
                question.id = self.questions.ask(session, answer);
                self.send(&node, Down::ReadOutput(question));
            }
            Err(error) => drop(answer.send(Err(error.into()))),
        }
    }

    fn output_question(
        &self,
        wanted: &Wanted,
    ) -> Result<(Arc<str>, SessionId, v1::ReadOutput), SupervisorError> {
        let Some((name, record)) = self.nodes.get_key_value(wanted.node.as_str()) else {
            return Err(SupervisorError::NoSuchNode(wanted.node.clone()));
        };
        let (node, ward) = (wanted.node.clone(), wanted.ward.clone());
        let found = record.slot(&ward).and_then(|slot| Some((slot, record.ward(slot)?)));
        let Some((slot, known)) = found else {
            return Err(SupervisorError::NoSuchWard { node, ward });
        };
        if known.spec.as_ref().is_none_or(|spec| spec.kind() != v1::WardKind::Process) {
            return Err(SupervisorError::NoOutput { node, ward });
        }
        let session = record.session.as_ref().ok_or(SupervisorError::NotAttending(node))?;
        let same_life = wanted.boot.is_none_or(|boot| boot == record.boot);
        let question = v1::ReadOutput {
            id: 0,
            slot,
            after_sequence: if same_life { wanted.after } else { 0 },
            newest: if same_life { wanted.newest } else { 0 },
            wait: Some(duration(wanted.wait)),
        };
        Ok((name.clone(), session.id, question))
    }
}

/// One reader.
pub(super) struct Reader {
    fleet: mpsc::Sender<Msg>,
    wanted: Wanted,
    follow: bool,
    /// Without following: the last line to be read.
    until: Option<u64>,
    _seat: OwnedSemaphorePermit,
}

impl Reader {
    pub(super) fn new(
        fleet: mpsc::Sender<Msg>,
        request: v1::WatchOutputRequest,
        seat: OwnedSemaphorePermit,
    ) -> Self {
        let v1::WatchOutputRequest { node, ward, follow, newest } = request;
        let wanted = Wanted { node, ward, newest, ..Wanted::default() };
        Self { fleet, wanted, follow, until: None, _seat: seat }
    }

    /// The next lines there are. `None`: all has been read.
    pub(super) async fn next(&mut self) -> Result<Option<v1::WardOutput>, Error> {
        loop {
            if self.until.is_some_and(|until| self.wanted.after >= until) {
                return Ok(None);
            }
            let begun = self.wanted.boot.is_some();
            let output = match self.ask().await {
                Ok((boot, output)) => {
                    self.wanted.boot = Some(boot);
                    output
                }
                // What is followed may come back.
                Err(error) if self.follow && begun && will_pass(&error) => {
                    sleep(RETRY).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Some(error) = output.error {
                return Err(Error::from_proto(error));
            }
            (self.wanted.newest, self.wanted.wait) = (0, if self.follow { WAIT } else { Duration::ZERO });
            let last = output.lines.last().map(|line| line.sequence);
            self.wanted.after = last.unwrap_or(output.newest_sequence);
            if !self.follow {
                let until = *self.until.get_or_insert(output.newest_sequence);
                // Lines that came meanwhile were not asked for, and a node that tells none has no more.
                if last.is_none() {
                    self.wanted.after = until;
                }
            }
            if last.is_some() || output.dropped > 0 {
                return Ok(Some(v1::WardOutput { lines: output.lines, dropped: output.dropped }));
            }
        }
    }

    async fn ask(&self) -> Answer {
        let (answer, answered) = oneshot::channel();
        let question = Msg::ReadOutput { wanted: self.wanted.clone(), answer };
        self.fleet.send(question).await.map_err(|_| SupervisorError::ShuttingDown)?;
        let patience = self.wanted.wait + PATIENCE;
        match timeout(patience, answered).await {
            Ok(Ok(answer)) => answer,
            // Its session has ended.
            Ok(Err(_)) => Err(SupervisorError::NotAttending(self.wanted.node.clone()).into()),
            Err(_) => {
                let what = format!("output of {}/{}", self.wanted.node, self.wanted.ward);
                Err(SupervisorError::NotSeen { what, waited: patience }.into())
            }
        }
    }
}

fn will_pass(error: &Error) -> bool {
    matches!(error.kind(), "NOT_ATTENDING" | "NOT_SEEN")
}
