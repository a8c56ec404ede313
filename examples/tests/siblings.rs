//! What one call fails with does no harm to the others on its connection.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::{sync::Arc, time::Duration};

use futures_util::stream::BoxStream;
use support::Hosted;
use tokio::{sync::Barrier, task::JoinSet, time::timeout};
use tonic::{Code, Request, Response, Status, transport::Channel};
use wardkeep_examples::{
    pb::{
        TroubleReply, TroubleRequest,
        trouble_client::TroubleClient,
        trouble_request::Kind,
        trouble_server::{Trouble as Service, TroubleServer},
    },
    trouble::Trouble,
};
use wardkeep_node::{Node, Ward};
use wardkeep_proto::Error;

const SIBLINGS: usize = 200;
const ERRORS: usize = 50;

/// Trouble whose slow calls all wait for each other, and then for the test to let them go.
#[derive(Clone)]
struct Gated(Trouble, Arc<Barrier>);

#[tonic::async_trait]
impl Service for Gated {
    async fn make(&self, request: Request<TroubleRequest>) -> Result<Response<TroubleReply>, Status> {
        if request.get_ref().kind() == Kind::Slow {
            self.1.wait().await;
            self.1.wait().await;
        }
        self.0.make(request).await
    }

    type MakeStreamStream = BoxStream<'static, Result<TroubleReply, Status>>;

    async fn make_stream(
        &self,
        request: Request<TroubleRequest>,
    ) -> Result<Response<Self::MakeStreamStream>, Status> {
        self.0.make_stream(request).await
    }
}

fn request(kind: Kind, bytes: u32) -> TroubleRequest {
    TroubleRequest { kind: kind.into(), bytes, ..Default::default() }
}

async fn huge_errors(client: &mut TroubleClient<Channel>) {
    for _ in 0..ERRORS {
        let huge = request(Kind::HugeError, 100 * 1024);
        let single = client.make(huge).await.unwrap_err();
        let streamed = client.make_stream(huge).await.unwrap().into_inner().message().await.unwrap_err();
        for status in [single, streamed] {
            let error = Error::from_status(&status);
            assert_eq!(status.code(), Code::Unknown, "{status:?}");
            assert!(error.is_malformed() && error.what().starts_with("xxx"), "{status:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_errors_leave_two_hundred_calls_on_their_connection_untouched() {
    timeout(Duration::from_secs(60), async {
        let gate = Arc::new(Barrier::new(SIBLINGS + 1));
        let service = Gated(Trouble::default(), gate.clone());
        let ward = Ward::service("trouble", move |_| TroubleServer::new(service.clone()));
        let node = Hosted::start(Node::builder("n").ward(ward)).await;

        // One channel of tonic's is one connection: with tonic's own settings, as a stranger has them.
        let channel = Channel::from_shared(node.uri()).unwrap().connect().await.unwrap();
        let mut client = TroubleClient::new(channel);
        let mut siblings = JoinSet::new();
        for _ in 0..SIBLINGS {
            let mut client = client.clone();
            siblings.spawn(async move { client.make(request(Kind::Slow, 10)).await });
        }
        gate.wait().await;
        huge_errors(&mut client).await;
        gate.wait().await;
        while let Some(sibling) = siblings.join_next().await {
            assert_eq!(sibling.unwrap().unwrap().into_inner().payload.len(), 10);
        }
        drop(client);
        node.stop().await;
    })
    .await
    .expect("the test hangs");
}
