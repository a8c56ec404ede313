//! What strangers are told of errors, and what they are not.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

mod support;

use std::time::Duration;

use support::*;
use tokio::{sync::oneshot, task::JoinSet, time::timeout};
use tonic_types::{ErrorDetails, StatusExt as _};
use wardkeep_node::{Audience, Node};
use wardkeep_proto::{
    Error,
    error::{Code, ERROR_ID_KEY},
    v1::operator_client::OperatorClient,
};

#[tokio::test]
async fn strangers_get_code_line_id_and_retry_hint_and_nothing_else() {
    timeout(Duration::from_secs(20), async {
        let insides = Insides::default();
        let node = Node::builder("node-with-a-secret-name").audience(Audience::Untrusted);
        let node = node.ward(trouble(&insides)).bind("127.0.0.1:0").await.unwrap();
        let channel =
            wardkeep_client::endpoint(&format!("http://{}", node.local_addr())).unwrap().connect_lazy();
        let mut snapshots = node.handle().snapshots();
        let (end, ended) = oneshot::channel::<()>();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { node.run_until(async { drop(ended.await) }).await.unwrap() });
        let running = |now: &std::sync::Arc<wardkeep_node::NodeSnapshot>| {
            now.wards.iter().any(|ward| ward.state() == wardkeep_proto::v1::WardState::Running)
        };
        snapshots.wait_for(running).await.unwrap();

        let mut client = OperatorClient::new(channel);
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
        drop(end);
        tasks.join_next().await;
    })
    .await
    .expect("the test hangs");
}
