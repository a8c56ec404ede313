//! Attempts withdrawn in band: a message to their member says that nobody waits for them any more, and their
//! streams end by themselves. A reset of each stream would do, too, but too many of those harm a connection.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use http_body::Body as HttpBody;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};
use tonic::{Code, body::Body, client::GrpcService, codegen::StdError};
use uuid::Uuid;
use wardkeep_proto::v1::{AttemptEnd, AttemptRef, Fate, WithdrawRequest, replica_client::ReplicaClient};

/// Between two messages while there is much to withdraw, unless many wait.
const PAUSE: Duration = Duration::from_millis(2);
/// A message with so many shows that there is much to withdraw. With fewer, each goes when the one before has been
/// answered: within two round trips.
const SEVERAL: usize = 4;
/// Those that wait go at once when they are so many.
const MANY: usize = 64;
/// In one message; nodes take no more.
const MOST: usize = 1_024;
/// That may wait: further ones are to be reset.
const MOST_WAITING: usize = 4_096;
/// For an answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// A member that knows of no withdrawals is asked again after so long.
const UNABLE_FOR: Duration = Duration::from_secs(60);

/// Withdraws attempts at one member. Cheap to clone.
///
/// One message is under way at a time, and takes along what has come together meanwhile; while that is several, for
/// 2 ms. It never waits for room: when 4,096 wait, when
/// the member does not answer within 500 ms, or does not know the service, attempts are to be reset.
#[derive(Clone, Debug)]
pub struct Withdrawals(mpsc::Sender<Asked>);

#[derive(Debug)]
struct Asked {
    attempt: AttemptRef,
    answer: oneshot::Sender<Withdrawn>,
}

/// What has become of an attempt that was to be withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Withdrawn {
    /// Its member has dealt with it: its stream ends by itself, or has ended.
    Ended {
        /// How far it had come.
        fate: Fate,
        /// Since its work began, if it did.
        wall: Option<Duration>,
        /// Of that, what it was worked on, as far as it was known by then.
        busy: Option<Duration>,
    },
    /// Its member could not be told, or does not know it: its stream must be reset.
    Reset,
}

impl Withdrawals {
    /// Over this channel, by the future that comes with it. That is to be run beside, and ends when there is
    /// nobody left who could ask.
    pub fn new<S>(channel: S) -> (Self, impl Future<Output = ()> + Send)
    where
        S: GrpcService<Body, Future: Send> + Send + 'static,
        S::Error: Into<StdError>,
        S::ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
    {
        let (asked, inbox) = mpsc::channel(MOST_WAITING);
        (Self(asked), run(ReplicaClient::new(channel), inbox))
    }

    /// Withdraws an attempt of the call of this ID: its `wardkeep-call-id`, or else its request's.
    pub fn withdraw(&self, call_id: Uuid, attempt: u32) -> impl Future<Output = Withdrawn> + Send + use<> {
        let attempt = AttemptRef { call_id: call_id.as_bytes().to_vec(), attempt };
        let (answer, answered) = oneshot::channel();
        let asked = self.0.try_send(Asked { attempt, answer });
        async move {
            match asked {
                Ok(()) => answered.await.unwrap_or(Withdrawn::Reset),
                Err(_) => Withdrawn::Reset,
            }
        }
    }
}

async fn run<S>(mut member: ReplicaClient<S>, mut inbox: mpsc::Receiver<Asked>)
where
    S: GrpcService<Body, Future: Send> + Send + 'static,
    S::Error: Into<StdError>,
    S::ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
{
    let mut next = Instant::now();
    let mut able_from = next;
    let mut batch = Vec::new();
    while inbox.recv_many(&mut batch, MOST).await > 0 {
        while batch.len() < MANY {
            let more = timeout_at(next, inbox.recv_many(&mut batch, MANY)).await;
            if !matches!(more, Ok(1..)) {
                break;
            }
        }
        if Instant::now() < able_from {
            // Whoever asked hears that nobody answers.
            batch.clear();
            continue;
        }
        next = Instant::now();
        if batch.len() >= SEVERAL {
            next += PAUSE;
        }
        let attempts = batch.iter_mut().map(|asked| std::mem::take(&mut asked.attempt)).collect();
        let asking = pin!(member.withdraw(WithdrawRequest { attempts }));
        match timeout(PATIENCE, asking).await {
            Ok(Ok(reply)) => {
                for (asked, end) in batch.drain(..).zip(reply.into_inner().attempts) {
                    // Who asked may have gone.
                    let _ = asked.answer.send(read(&end));
                }
            }
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                able_from = Instant::now() + UNABLE_FOR;
            }
            Ok(Err(_)) | Err(_) => {}
        }
        batch.clear();
    }
}

fn read(end: &AttemptEnd) -> Withdrawn {
    let time = |time: Option<prost_types::Duration>| time.and_then(|time| time.try_into().ok());
    match end.fate() {
        Fate::Unknown | Fate::Unspecified => Withdrawn::Reset,
        fate => Withdrawn::Ended { fate, wall: time(end.wall), busy: time(end.busy) },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::future::join_all;
    use tokio::task::JoinSet;
    use tonic::{Request, Response, Status};
    use wardkeep_proto::v1::{
        WithdrawReply,
        replica_server::{Replica, ReplicaServer},
    };

    use super::*;

    #[derive(Clone, Copy, PartialEq)]
    enum Manner {
        Answers,
        Silent,
        Unable,
    }

    /// Answers QUEUED to even attempts and UNKNOWN to odd ones, and remembers how many came together, when.
    #[derive(Clone)]
    struct Member {
        manner: Arc<Mutex<Manner>>,
        came: Arc<Mutex<Vec<(Duration, usize)>>>,
        start: Instant,
    }

    #[tonic::async_trait]
    impl Replica for Member {
        async fn withdraw(
            &self,
            request: Request<WithdrawRequest>,
        ) -> Result<Response<WithdrawReply>, Status> {
            let attempts = request.into_inner().attempts;
            self.came.lock().unwrap().push((self.start.elapsed(), attempts.len()));
            let manner = *self.manner.lock().unwrap();
            match manner {
                Manner::Silent => std::future::pending().await,
                Manner::Unable => return Err(Status::unimplemented("no such service")),
                Manner::Answers => {}
            }
            let fate = |attempt: u32| if attempt.is_multiple_of(2) { Fate::Queued } else { Fate::Unknown };
            let end =
                |attempt: AttemptRef| AttemptEnd { fate: fate(attempt.attempt).into(), ..Default::default() };
            Ok(Response::new(WithdrawReply { attempts: attempts.into_iter().map(end).collect() }))
        }
    }

    fn member(manner: Manner) -> (Member, Withdrawals, JoinSet<()>) {
        let manner = Arc::new(Mutex::new(manner));
        let member = Member { manner, came: Arc::default(), start: Instant::now() };
        let (withdrawals, run) = Withdrawals::new(ReplicaServer::new(member.clone()));
        let mut runs = JoinSet::new();
        runs.spawn(run);
        (member, withdrawals, runs)
    }

    const QUEUED: Withdrawn = Withdrawn::Ended { fate: Fate::Queued, wall: None, busy: None };

    fn ask(withdrawals: &Withdrawals, attempts: u32) -> Vec<impl Future<Output = Withdrawn> + use<>> {
        (0..attempts).map(|attempt| withdrawals.withdraw(Uuid::nil(), attempt)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn few_go_at_once_those_that_follow_many_go_together_and_many_do_not_wait() {
        let (member, withdrawals, mut runs) = member(Manner::Answers);
        assert_eq!(withdrawals.withdraw(Uuid::nil(), 0).await, QUEUED);
        let answers = join_all(ask(&withdrawals, 3)).await;
        assert_eq!(answers, [QUEUED, Withdrawn::Reset, QUEUED]);
        join_all(ask(&withdrawals, 2_000)).await;
        let came = member.came.lock().unwrap().clone();
        let zero = Duration::ZERO;
        assert_eq!(came, [(zero, 1), (zero, 3), (zero, 1_024), (zero, 976)]);
        join_all(ask(&withdrawals, 2)).await;
        assert_eq!(member.came.lock().unwrap().last(), Some(&(PAUSE, 2)));
        drop(withdrawals);
        runs.join_next().await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_member_that_does_not_answer_nobody_waits_for_long_and_no_more_is_asked_than_fits() {
        let (member, withdrawals, _runs) = member(Manner::Silent);
        let start = Instant::now();
        assert_eq!(withdrawals.withdraw(Uuid::nil(), 0).await, Withdrawn::Reset);
        assert_eq!(start.elapsed(), PATIENCE);
        let start = Instant::now();
        let mut asked = ask(&withdrawals, 5_000);
        for one_too_many in asked.split_off(MOST_WAITING) {
            assert_eq!(one_too_many.await, Withdrawn::Reset);
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        *member.manner.lock().unwrap() = Manner::Answers;
        assert_eq!(join_all(asked).await[0], QUEUED);
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_cannot_is_left_alone_for_a_while() {
        let (member, withdrawals, _runs) = member(Manner::Unable);
        for _ in 0..10 {
            assert_eq!(withdrawals.withdraw(Uuid::nil(), 0).await, Withdrawn::Reset);
        }
        assert_eq!(member.came.lock().unwrap().len(), 1);
        *member.manner.lock().unwrap() = Manner::Answers;
        tokio::time::sleep(UNABLE_FOR).await;
        assert_eq!(withdrawals.withdraw(Uuid::nil(), 0).await, QUEUED);
    }
}
