//! What strangers are told of errors, and what they are not.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

mod support;

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use support::*;
use tokio::{sync::oneshot, task::JoinSet, time::timeout};
use tonic_types::{ErrorDetails, StatusExt as _};
use tracing::{Event, Subscriber, field::Field};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
    util::SubscriberInitExt as _,
};
use wardkeep_client::{Member, Replicated, endpoint};
use wardkeep_node::{Audience, Node};
use wardkeep_proto::{
    Error,
    error::{Code, ERROR_ID_KEY},
    v1::operator_client::OperatorClient,
};

#[tokio::test]
async fn strangers_get_code_line_id_and_retry_hint_and_nothing_else() {
    timeout(Duration::from_secs(20), async {
        let covered = Covered::start("node-with-a-secret-name").await;
        let mut client = OperatorClient::new(endpoint(&covered.uri).unwrap().connect_lazy());
        for (what, code) in
            [("not found", Code::NotFound), ("internal", Code::Internal), ("panic", Code::Internal)]
        {
            let told = client.start_ward(make(what)).await.unwrap_err();
            assert_eq!(told.code(), code);
            let id = told.metadata().get(ERROR_ID_KEY).unwrap().to_str().unwrap().to_owned();
            uuid::Uuid::parse_str(&id).unwrap();
            let details: ErrorDetails = told.get_error_details();
            assert_eq!(details.request_info().unwrap().serving_data, id);
            assert_eq!(details.localized_message().unwrap().message, told.message());
            assert!(details.error_info().is_none(), "{details:?}");
            let everything = format!("{told:?} {:?}", String::from_utf8_lossy(told.details()));
            for secret in ["secret", "asked to", "no such book", ".rs", "g1-", "wardkeep.v1"] {
                assert!(!everything.contains(secret), "{secret} in {everything}");
            }
            // Without our own record the error is adopted anew: nothing of the first is left in it.
            assert_ne!(Error::from_status(&told).domain(), "wardkeep.bug");
        }
        covered.end().await;
    })
    .await
    .expect("the test hangs");
}

#[tokio::test]
async fn callers_through_a_replicated_channel_hold_the_id_under_which_the_node_wrote_it_down() {
    timeout(Duration::from_secs(20), async {
        let written = Written::default();
        tracing_subscriber::registry().with(written.clone()).init();
        let covered = Covered::start("covered").await;
        let member = |dress: fn(Member) -> Member| dress(Member::new("covered", &covered.uri));
        let members = [(member(|member| member), true), (member(Member::stranger), false)];
        for (member, believed) in members {
            let mut client = OperatorClient::new(Replicated::from_static_members([member]));
            for what in ["not found", "internal", "panic"] {
                let told = client.start_ward(make(what)).await.unwrap_err();
                let error = Error::from_status(&told);
                let key = told.metadata().get(ERROR_ID_KEY).unwrap().to_str().unwrap();
                assert_eq!(key, error.id(), "{what}");
                assert_eq!(error.user_message(), told.message(), "{what}");
                assert_eq!(written.by("covered", error.id()), believed, "{what}: {error:?}");
                // The node's bug is no bug of whoever is told of it, and counted once.
                assert!(!error.is_malformed(), "{what}: {error:?}");
            }
        }
        covered.end().await;
    })
    .await
    .expect("the test hangs");
}

/// A node for strangers, whose ward fails as it is told.
struct Covered {
    uri: String,
    end: oneshot::Sender<()>,
    tasks: JoinSet<()>,
}

impl Covered {
    async fn start(name: &str) -> Self {
        let node = Node::builder(name).audience(Audience::Untrusted);
        let node = node.ward(trouble(&Insides::default())).bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", node.local_addr());
        let mut snapshots = node.handle().snapshots();
        let (end, ended) = oneshot::channel::<()>();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { node.run_until(async { drop(ended.await) }).await.unwrap() });
        let running = |now: &Arc<wardkeep_node::NodeSnapshot>| {
            now.wards.iter().any(|ward| ward.state() == wardkeep_proto::v1::WardState::Running)
        };
        snapshots.wait_for(running).await.unwrap();
        Self { uri, end, tasks }
    }

    async fn end(mut self) {
        drop(self.end);
        self.tasks.join_next().await;
    }
}

/// The IDs of the errors that were logged, each with the node that says it arose there.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<[String; 2]>>>);

impl Written {
    fn by(&self, node: &str, id: &str) -> bool {
        self.0.lock().unwrap().iter().any(|[by, what]| by == node && what == id)
    }
}

impl<S: Subscriber> Layer<S> for Written {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut found = [String::new(), String::new()];
        event.record(&mut |field: &Field, value: &dyn fmt::Debug| match field.name() {
            "node" => found[0] = format!("{value:?}"),
            "error.id" => found[1] = format!("{value:?}"),
            _ => {}
        });
        self.0.lock().unwrap().push(found);
    }
}
