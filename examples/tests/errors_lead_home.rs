//! One ID leads from what a caller is told to the whole story, over every machine on the way.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::{sync::Arc, time::Duration};

use tokio::{sync::oneshot, task::JoinSet, time::timeout};
use wardkeep::daemon::Supervisor;
use wardkeep_client::{Member, Policy, Replicated};
use wardkeep_examples::{
    pb::{
        TroubleRequest, trouble_client::TroubleClient, trouble_request::Kind, trouble_server::TroubleServer,
    },
    trouble::{Counters, Relay, Trouble},
};
use wardkeep_node::{Node, Ward};
use wardkeep_proto::{
    Error,
    v1::{self, operator_client::OperatorClient},
};

struct Cluster {
    supervisor: String,
    tasks: JoinSet<()>,
    ends: Vec<oneshot::Sender<()>>,
}

impl Cluster {
    async fn start() -> Self {
        let supervisor = Supervisor::builder().bind("127.0.0.1:0").await.unwrap();
        let mut cluster = Self {
            supervisor: format!("http://{}", supervisor.local_addr()),
            tasks: JoinSet::new(),
            ends: Vec::new(),
        };
        let end = cluster.end();
        cluster.tasks.spawn(async move { supervisor.run_until(end).await.unwrap() });
        cluster
    }

    fn end(&mut self) -> impl Future<Output = ()> + Send + 'static {
        let (end, ended) = oneshot::channel::<()>();
        self.ends.push(end);
        async move { drop(ended.await) }
    }

    /// Starts a node with one ward, and waits until it attends. Returns where it listens.
    async fn node(&mut self, name: &str, ward: Ward) -> String {
        let node = Node::builder(name).supervisor(&self.supervisor).ward(ward);
        let node = node.bind("127.0.0.1:0").await.unwrap();
        let (address, mut snapshots) = (format!("http://{}", node.local_addr()), node.handle().snapshots());
        let end = self.end();
        self.tasks.spawn(async move { node.run_until(end).await.unwrap() });
        snapshots.wait_for(|now| now.attending).await.unwrap();
        address
    }

    async fn look_up(&self, id: &str) -> v1::Error {
        let channel = wardkeep_client::endpoint(&self.supervisor).unwrap().connect_lazy();
        let mut operator = OperatorClient::new(channel);
        loop {
            // Nodes tell of their errors within a sweep or two; asking is the event to wait for.
            let found = operator.get_error(v1::GetErrorRequest { id: id.to_owned() }).await;
            match found {
                Ok(found) => return found.into_inner(),
                Err(status) => assert_eq!(status.code(), tonic::Code::NotFound, "{status}"),
            }
            tokio::task::yield_now().await;
        }
    }

    async fn stop(mut self) {
        while let Some(end) = self.ends.pop() {
            drop(end);
            self.tasks.join_next().await;
        }
    }
}

fn client(name: &str, address: &str) -> TroubleClient<Replicated> {
    let channel = Replicated::builder().members([Member::new(name, address)]).policy(Policy::Single);
    TroubleClient::new(channel.build().unwrap())
}

fn trouble() -> Ward {
    let counters = Arc::new(Counters::default());
    Ward::service("trouble", move |_| TroubleServer::new(Trouble::new(counters.clone())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_id_a_caller_holds_leads_to_the_stack_over_all_machines() {
    timeout(Duration::from_secs(30), async {
        let mut cluster = Cluster::start().await;
        let at_c = cluster.node("c", trouble()).await;
        let onward = Relay::to("c", &at_c).unwrap();
        let relay = Ward::service("relay", move |_| TroubleServer::new(onward.clone()));
        let at_b = cluster.node("b", relay).await;

        for (kind, malformed) in [(Kind::WellFormed, false), (Kind::Panic, true), (Kind::BareStatus, false)] {
            let request = TroubleRequest { kind: kind.into(), depth: 2, ..Default::default() };
            let told = client("b", &at_b).make(request).await.unwrap_err();
            let told = Error::from_status(&told);
            let record = cluster.look_up(told.id()).await;
            assert_eq!(record.malformed, malformed, "{kind:?}");
            assert_eq!((record.node.as_str(), record.ward.as_str()), ("c", "trouble"), "{kind:?}");
            let way: Vec<_> = record.hops.iter().map(|hop| hop.node.as_str()).collect();
            assert_eq!(way, ["", "b", "c"], "{kind:?}: {record:#?}");
            assert!(record.hops.iter().all(|hop| !hop.machine.is_empty() && hop.entered_at.is_some()));
            assert_eq!(record.group_hash, told.group_hash());
        }
        cluster.stop().await;
    })
    .await
    .expect("the test hangs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_says_again_and_again_is_found_by_the_id_of_the_last() {
    timeout(Duration::from_secs(30), async {
        let mut cluster = Cluster::start().await;
        let at_c = cluster.node("c", trouble()).await;
        let channel = wardkeep_client::endpoint(&cluster.supervisor).unwrap().connect_lazy();
        let drain =
            v1::NodeRequest { node: "c".to_owned(), reason: "a test".to_owned(), ..Default::default() };
        OperatorClient::new(channel).drain_node(drain).await.unwrap();
        // Refused as long as it drains, it is asked again some times.
        let told = client("c", &at_c).make(TroubleRequest::default()).await.unwrap_err();
        let told = Error::from_status(&told);
        let record = cluster.look_up(told.id()).await;
        assert_eq!((record.node.as_str(), record.kind.as_str()), ("c", told.kind()));
        cluster.stop().await;
    })
    .await
    .expect("the test hangs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_failure_is_one_group_however_often_it_happens() {
    timeout(Duration::from_secs(30), async {
        let mut cluster = Cluster::start().await;
        let at_c = cluster.node("c", trouble()).await;
        let mut last = String::new();
        for _ in 0..5 {
            let request = TroubleRequest { kind: Kind::WellFormed.into(), ..Default::default() };
            let told = client("c", &at_c).make(request).await.unwrap_err();
            Error::from_status(&told).id().clone_into(&mut last);
        }
        cluster.look_up(&last).await;
        let channel = wardkeep_client::endpoint(&cluster.supervisor).unwrap().connect_lazy();
        let list = OperatorClient::new(channel).list_errors(v1::ListErrorsRequest {}).await.unwrap();
        let groups = list.into_inner().groups;
        assert_eq!(groups.len(), 1, "{groups:#?}");
        assert_eq!((groups[0].count, groups[0].last_id.as_str()), (5, last.as_str()));
        assert_eq!(groups[0].places, ["c/trouble"]);
        cluster.stop().await;
    })
    .await
    .expect("the test hangs");
}
