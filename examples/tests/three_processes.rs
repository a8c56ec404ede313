//! A call from process to process: wherever it breaks, its caller holds one ID that tells the whole way.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::Trouble;
use tokio::{sync::oneshot, task::JoinSet, time::timeout};
use tonic::{Code, Status, transport::Channel};
use wardkeep::daemon::Supervisor;
use wardkeep_client::{Member, Policy, Replicated};
use wardkeep_examples::pb::{TroubleRequest, trouble_client::TroubleClient, trouble_request::Kind};
use wardkeep_proto::{
    Error,
    error::ERROR_ID_KEY,
    v1::{self, operator_client::OperatorClient},
};

/// A supervisor, and three nodes that attend it: `a` passes calls on to `b`, `b` to `c`.
struct Chain {
    operator: OperatorClient<Channel>,
    a: Trouble,
    b: Trouble,
    _c: Trouble,
    end: oneshot::Sender<()>,
    tasks: JoinSet<()>,
}

impl Chain {
    async fn start() -> Self {
        let supervisor = Supervisor::builder().bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", supervisor.local_addr());
        let (end, ended) = oneshot::channel::<()>();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { supervisor.run_until(async { drop(ended.await) }).await.unwrap() });
        let attending = ["--supervisor", &uri];
        let start = async |name, next: &[&str]| {
            Trouble::start(&[&["--name", name], &attending[..], next].concat(), "info").await
        };
        let c = start("c", &[]).await;
        let b = start("b", &["--next", &c.uri()]).await;
        let a = start("a", &["--next", &b.uri()]).await;
        let channel = wardkeep_client::endpoint(&uri).unwrap().connect_lazy();
        let mut operator = OperatorClient::new(channel);
        fleet_shows(&mut operator, |fleet| {
            let runs = |ward: &v1::Ward| ward.state() == v1::WardState::Running;
            fleet.wards.iter().filter(|ward| runs(ward)).count() == 3
        })
        .await;
        Self { operator, a, b, _c: c, end, tasks }
    }

    /// A call to `a`, by a caller that is no node.
    async fn call(&self, kind: Kind, millis: u32) -> Status {
        let members = [Member::new("a", self.a.uri())];
        let channel = Replicated::builder().members(members).policy(Policy::Single).build().unwrap();
        let request = TroubleRequest { kind: kind.into(), millis, depth: 2, ..Default::default() };
        TroubleClient::new(channel).make(request).await.unwrap_err()
    }

    /// The record that the supervisor has of the one ID in what the caller was told.
    async fn look_up(&mut self, told: &Status) -> v1::Error {
        let id = told.metadata().get(ERROR_ID_KEY).unwrap().to_str().unwrap().to_owned();
        assert_eq!(Error::from_status(told).id(), id);
        assert_eq!(Error::from_status(told).user_message(), told.message());
        self.find(&id).await
    }

    async fn find(&mut self, id: &str) -> v1::Error {
        loop {
            // Nodes tell of their errors within a sweep or two; asking is the event to wait for.
            match self.operator.get_error(v1::GetErrorRequest { id: id.to_owned() }).await {
                Ok(found) => return found.into_inner(),
                Err(status) => assert_eq!(status.code(), Code::NotFound, "{status}"),
            }
            tokio::task::yield_now().await;
        }
    }

    async fn stop(mut self) {
        drop(self.end);
        self.tasks.join_next().await;
    }
}

/// Waits until the supervisor's picture is so.
async fn fleet_shows(operator: &mut OperatorClient<Channel>, so: impl Fn(&v1::Fleet) -> bool) {
    while !so(&operator.get_fleet(v1::GetFleetRequest {}).await.unwrap().into_inner()) {
        tokio::task::yield_now().await;
    }
}

/// The nodes on the way, after checking that each hop says on which machine and when.
fn way(record: &v1::Error) -> Vec<&str> {
    assert!(record.hops.iter().all(|hop| !hop.machine.is_empty()), "{record:#?}");
    let entered = record.hops.iter().map(|hop| hop.entered_at.expect("a time at each hop"));
    let mut times: Vec<_> = entered.map(|at| (at.seconds, at.nanos)).collect();
    let origin = record.occurred_at.unwrap();
    times.push((origin.seconds, origin.nanos));
    assert!(times.is_sorted(), "{record:#?}");
    record.hops.iter().map(|hop| hop.node.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_three_processes_away_is_looked_up_by_the_one_id_its_caller_holds() {
    timeout(Duration::from_secs(60), async {
        let mut chain = Chain::start().await;
        for (kind, code, malformed) in [
            (Kind::WellFormed, Code::Unavailable, false),
            (Kind::BareStatus, Code::FailedPrecondition, false),
            (Kind::InternalStatus, Code::Internal, true),
            (Kind::Panic, Code::Internal, true),
        ] {
            let told = chain.call(kind, 0).await;
            assert_eq!(told.code(), code, "{kind:?}");
            let record = chain.look_up(&told).await;
            assert_eq!(way(&record), ["", "a", "b", "c"], "{kind:?}: {record:#?}");
            assert_eq!((record.node.as_str(), record.ward.as_str()), ("c", "trouble"), "{kind:?}");
            assert_eq!((record.code, record.malformed), (code as i32, malformed), "{kind:?}");
            assert_eq!(record.group_hash, Error::from_status(&told).group_hash(), "{kind:?}");
            assert!(
                record.hops.last().unwrap().sites.iter().any(|site| !site.file.is_empty()),
                "{record:#?}"
            );
        }
        chain.stop().await;
    })
    .await
    .expect("the test hangs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_in_the_middle_of_a_call_is_named_by_the_error_its_caller_gets() {
    timeout(Duration::from_secs(60), async {
        let mut chain = Chain::start().await;
        let (mut operator, b) = (chain.operator.clone(), chain.b.child.id().unwrap());
        let kill = async {
            // The call has come through to `c`.
            fleet_shows(&mut operator, |fleet| {
                fleet.wards.iter().any(|ward| ward.node == "c" && ward.work_in_progress == 1)
            })
            .await;
            kill(Pid::from_raw(b.cast_signed()), Signal::SIGKILL).unwrap();
        };
        let (told, ()) = tokio::join!(chain.call(Kind::Slow, 60_000), kill);
        assert_eq!(told.code(), Code::Unavailable, "{told:?}");
        let error = Error::from_status(&told);
        assert!(!error.is_malformed() && error.retry_after().is_some(), "{error:?}");
        assert!(error.what().contains(&chain.b.address), "{error:?}");

        let record = chain.look_up(&told).await;
        assert_eq!(record.what, error.what());
        assert_eq!(way(&record), ["", "a"], "{record:#?}");
        assert_eq!((record.node.as_str(), record.ward.as_str()), ("a", "relay"));
        // The failed attempt itself can be looked up as well.
        let attempt = chain.find(&record.related_ids[0]).await;
        assert_eq!((attempt.kind.as_str(), attempt.node.as_str()), ("CONNECTION_LOST", "a"));
        chain.stop().await;
    })
    .await
    .expect("the test hangs");
}
