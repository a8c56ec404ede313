//! The generated clients of our own examples work unchanged over [`Replicated`]: the same code, which only knows the
//! bounds that `tonic::transport::Channel` meets, gets the same answers over either.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc};

use futures_util::StreamExt as _;
use support::{Hosted, in_time};
use tonic::{
    Code, Status,
    body::Body,
    client::GrpcService,
    codegen::{Bytes, StdError},
    transport::Channel,
};
use wardkeep_client::{Member, Policy, Replicated};
use wardkeep_examples::{
    pb::{
        self, SearchReply, SearchRequest, SolveReply, SolveRequest, TroubleRequest,
        search_client::SearchClient, solver_client::SolverClient, trouble_client::TroubleClient,
        trouble_request::Kind, trouble_server::TroubleServer,
    },
    sat::Solver,
    sat_node,
    search::{Corpus, DataPath},
    search_node,
    trouble::Trouble,
};
use wardkeep_node::{Node, Ward};
use wardkeep_proto::Error;

/// An application that was written for `Channel`, as its author would have made it generic.
struct Application<T>(T);

impl<T> Application<T>
where
    T: GrpcService<Body> + Clone + Send + Sync + 'static,
    T::Error: Into<StdError>,
    T::Future: Send,
    T::ResponseBody: http_body::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as http_body::Body>::Error: Into<StdError> + Send,
{
    async fn search(&self, query: &str) -> Result<SearchReply, Status> {
        let request = SearchRequest { query: query.to_owned(), limit: 10 };
        Ok(SearchClient::new(self.0.clone()).search(request).await?.into_inner())
    }

    async fn solve(&self, dimacs: &str) -> Result<SolveReply, Status> {
        let request = SolveRequest { dimacs: dimacs.into() };
        let client = SolverClient::new(self.0.clone()).max_decoding_message_size(sat_node::MOST_REPLY_BYTES);
        Ok({ client }.solve(request).await?.into_inner())
    }

    /// The sizes of the messages of a stream.
    async fn stream(&self, request: TroubleRequest) -> Result<Vec<usize>, Status> {
        let mut client = TroubleClient::new(self.0.clone());
        let mut replies = client.make_stream(request).await?.into_inner();
        let mut sizes = Vec::new();
        while let Some(reply) = replies.next().await {
            sizes.push(reply?.payload.len());
        }
        Ok(sizes)
    }

    async fn fail(&self, kind: Kind) -> Status {
        let request = TroubleRequest { kind: kind.into(), ..Default::default() };
        TroubleClient::new(self.0.clone()).make(request).await.unwrap_err()
    }
}

/// Two nodes alike, each with this ward.
async fn pair(ward: impl Fn() -> Ward) -> [Hosted; 2] {
    let node = |name| Node::builder(name).descriptors(pb::FILE_DESCRIPTOR_SET).ward(ward());
    [Hosted::start(node("a")).await, Hosted::start(node("b")).await]
}

/// The application over a channel to the first, and over all.
async fn both(nodes: &[Hosted; 2]) -> (Application<Channel>, Application<Replicated>) {
    let channel = Channel::from_shared(nodes[0].uri()).unwrap().connect().await.unwrap();
    let members = nodes.iter().zip(["a", "b"]).map(|(node, name)| Member::new(name, node.uri()));
    let replicated = Replicated::builder().members(members).methods(pb::FILE_DESCRIPTOR_SET);
    (Application(channel), Application(replicated.policy(Policy::All(2)).build().unwrap()))
}

async fn stop(nodes: [Hosted; 2]) {
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn the_client_of_the_code_search() {
    let dir = tempfile::tempdir().unwrap();
    let node = async |name: &str, path: DataPath| {
        let corpus = Arc::new(Corpus::from_texts([("a.rs", "let needle = 1;\n"), ("b.rs", "no\nneedles\n")]));
        let engine = path.build(corpus, dir.path(), &|_| {}).unwrap();
        Hosted::start(search_node::builder(name, engine, Vec::new(), false)).await
    };
    let nodes = [node("a", DataPath::Scan).await, node("b", DataPath::Trigram).await];
    let (plain, replicated) = both(&nodes).await;
    let (one, all) = (plain.search("needle").await.unwrap(), replicated.search("needle").await.unwrap());
    assert_eq!((one.hits.len(), one.complete), (2, true));
    assert_eq!((one.hits, one.complete), (all.hits, all.complete));
    for refused in [plain.search("x").await.unwrap_err(), replicated.search("x").await.unwrap_err()] {
        assert_eq!(
            (refused.code(), Error::from_status(&refused).kind()),
            (Code::InvalidArgument, "BAD_QUERY")
        );
    }
    drop((plain, replicated));
    stop(nodes).await;
}

#[tokio::test]
async fn the_client_of_the_sat_portfolio() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("solver");
    fs::write(&program, "#!/bin/sh\necho 's SATISFIABLE'\necho 'v 1 -2 0'\nexit 10\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let node = async |name: &str| {
        Hosted::start(sat_node::builder(name, Solver::Cadical, program.clone()).await).await
    };
    let nodes = [node("a").await, node("b").await];
    let (plain, replicated) = both(&nodes).await;
    let formula = "p cnf 2 2\n1 0\n-2 0\n";
    let (one, all) = (plain.solve(formula).await.unwrap(), replicated.solve(formula).await.unwrap());
    assert_eq!(one.model, [1, -2]);
    assert_eq!((one.model, one.outcome), (all.model, all.outcome));
    for refused in [plain.solve("none").await.unwrap_err(), replicated.solve("none").await.unwrap_err()] {
        assert_eq!(Error::from_status(&refused).kind(), "BAD_FORMULA");
    }
    drop((plain, replicated));
    stop(nodes).await;
}

#[tokio::test]
async fn the_client_of_the_service_that_misbehaves() {
    let nodes = pair(|| Ward::service("trouble", |_| TroubleServer::new(Trouble::default()))).await;
    let (plain, replicated) = both(&nodes).await;
    let request = TroubleRequest { kind: Kind::Ok.into(), bytes: 7, depth: 3, ..Default::default() };
    let (one, all) = (plain.stream(request).await.unwrap(), replicated.stream(request).await.unwrap());
    assert_eq!((one, all), (vec![7; 3], vec![7; 3]));
    for (kind, code) in [(Kind::BareStatus, Code::FailedPrecondition), (Kind::InternalStatus, Code::Internal)]
    {
        let (one, all) = (plain.fail(kind).await, in_time(30, "failing", replicated.fail(kind)).await);
        assert_eq!((one.code(), all.code()), (code, code));
    }
    drop((plain, replicated));
    stop(nodes).await;
}
