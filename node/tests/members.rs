//! Wards that come and go while their node runs, which heals them itself.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

use std::time::Duration;

use tokio::sync::watch;
use tonic::Code;
use wardkeep_node::{GroupSpec, Node, NodeError, Program, Ward, testing::TestNode};
use wardkeep_proto::v1::{
    self, WatchDirectoryRequest, directory_client::DirectoryClient, directory_server::DirectoryServer,
};

const SECOND: Duration = Duration::from_secs(1);

/// A task that fails when its number is called, once.
fn worker(number: usize, called: &watch::Sender<Vec<usize>>) -> Ward {
    let called = called.subscribe();
    Ward::task(format!("worker-{number}"), move |context| {
        let mut called = called.clone();
        async move {
            tokio::select! {
                () = context.cancelled() => Ok(()),
                _ = called.wait_for(|called| context.incarnation() == 1 && called.contains(&number)) => {
                    Err(NodeError::Cancelled.into())
                }
            }
        }
    })
    .group("pool")
}

fn named<'a>(now: &'a wardkeep_node::NodeSnapshot, name: &str) -> Option<&'a v1::Ward> {
    now.wards.iter().find(|ward| ward.spec.as_ref().unwrap().name == name)
}

#[tokio::test(start_paused = true)]
async fn a_hundred_workers_join_a_group_some_crash_some_are_removed_and_nobody_else_notices() {
    let called = watch::Sender::new(Vec::new());
    let pool = GroupSpec { intensity: 50, ..GroupSpec::new("pool") };
    TestNode::run(Node::builder("test").group(pool), async |node| {
        let handle = node.handle();
        for number in 0..100 {
            handle.add(worker(number, &called)).await.unwrap();
        }
        let running = |ward: &v1::Ward| ward.state() == v1::WardState::Running;
        node.until(|now| now.wards.len() == 100 && now.wards.iter().all(running)).await;

        let crash: Vec<_> = (0..100).step_by(10).collect();
        called.send_replace(crash.clone());
        for number in &crash {
            node.runs(&format!("worker-{number}"), 2).await;
        }
        for number in (1..100).step_by(10) {
            handle.remove(&format!("worker-{number}")).await.unwrap();
        }
        let now = node.now();
        assert_eq!(now.wards.len(), 90);
        for number in 0..100 {
            let ward = named(&now, &format!("worker-{number}"));
            let expected = match number % 10 {
                0 => Some(2),
                1 => None,
                _ => Some(1),
            };
            assert_eq!(ward.map(|ward| ward.incarnation), expected, "worker-{number}");
        }
        node.stays_so(60 * SECOND).await;

        // A name that is free again begins anew, and is found among those that stayed.
        handle.add(worker(1, &called)).await.unwrap();
        node.runs("worker-1", 1).await;
        node.restart_ward("worker-99").await;
        node.runs("worker-99", 2).await;
        called.send_modify(|called| called.push(1));
        node.runs("worker-1", 2).await;
        assert_eq!(named(&node.now(), "worker-98").unwrap().incarnation, 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_join_or_leave_is_refused_in_one_line() {
    let called = watch::Sender::new(Vec::new());
    TestNode::run(Node::builder("test").ward(worker(0, &called)), async |node| {
        let handle = node.handle();
        let twice = handle.add(worker(0, &called)).await.unwrap_err();
        assert_eq!(twice.what(), "node test has a ward named worker-0 already");
        let slash = handle.add(Ward::process("a/b", Program::new("true"))).await.unwrap_err();
        assert!(slash.what().contains("slash"), "{slash}");
        let nobody = handle.remove("nobody").await.unwrap_err();
        assert_eq!((nobody.kind(), nobody.what()), ("NO_SUCH_WARD", "node test hosts no ward named nobody"));
        handle.add(echo("echo")).await.unwrap();
        let same = handle.add(echo("another")).await.unwrap_err();
        assert_eq!(same.what(), "two wards of node test answer the service wardkeep.v1.Directory");
        assert_eq!(node.now().wards.len(), 2);
    })
    .await;
}

/// A ward that does not listen is taken down the ladder, and is then gone; meanwhile its name is taken.
#[tokio::test(start_paused = true)]
async fn a_ward_that_does_not_listen_is_removed_all_the_same() {
    let deaf = || {
        Ward::task("deaf", |_| async {
            std::future::pending::<()>().await;
            Ok(())
        })
        .grace(5 * SECOND)
    };
    TestNode::run(Node::builder("test").ward(deaf()), async |node| {
        node.runs("deaf", 1).await;
        let handle = node.handle();
        let removing = handle.remove("deaf");
        let mut removing = std::pin::pin!(removing);
        tokio::select! {
            _ = &mut removing => panic!("it had its grace"),
            () = tokio::time::sleep(SECOND) => {}
        }
        assert!(node.now().wards.is_empty());
        assert!(handle.add(deaf()).await.unwrap_err().what().contains("already"));
        removing.await.unwrap();
        handle.add(deaf()).await.unwrap();
        node.runs("deaf", 1).await;
    })
    .await;
}

struct Echo;

#[tonic::async_trait]
impl v1::directory_server::Directory for Echo {
    type WatchStream = tokio_stream::Empty<Result<v1::DirectoryView, tonic::Status>>;

    async fn watch(
        &self,
        _: tonic::Request<WatchDirectoryRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, tonic::Status> {
        Ok(tonic::Response::new(tokio_stream::empty()))
    }
}

fn echo(name: &'static str) -> Ward {
    Ward::service(name, |_| DirectoryServer::new(Echo)).descriptors(wardkeep_proto::FILE_DESCRIPTOR_SET)
}

#[tokio::test(start_paused = true)]
async fn calls_reflection_and_health_follow_services_that_come_and_go() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    TestNode::run(Node::builder("test"), async |node| {
        let reflected = async || {
            let asked = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(MessageRequest::ListServices(String::new())),
            };
            let mut client = ServerReflectionClient::new(node.service());
            let answer = client.server_reflection_info(tokio_stream::once(asked)).await.unwrap();
            let answer = answer.into_inner().message().await.unwrap().unwrap();
            let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
                panic!("no list")
            };
            list.service.iter().any(|service| service.name == "wardkeep.v1.Directory")
        };
        let call =
            async || DirectoryClient::new(node.service()).watch(WatchDirectoryRequest::default()).await;
        let health = async || {
            let service = "wardkeep.v1.Directory".to_owned();
            let mut client = tonic_health::pb::health_client::HealthClient::new(node.service());
            let answer = client.check(tonic_health::pb::HealthCheckRequest { service }).await;
            answer.map(|answer| answer.into_inner().status).map_err(|status| status.code())
        };
        assert_eq!(call().await.unwrap_err().code(), Code::Unimplemented);
        assert!(!reflected().await);
        assert_eq!(health().await, Err(Code::NotFound));

        node.handle().add(echo("echo")).await.unwrap();
        node.runs("echo", 1).await;
        call().await.unwrap();
        assert!(reflected().await);
        assert_eq!(health().await, Ok(1));

        node.handle().remove("echo").await.unwrap();
        assert_eq!(call().await.unwrap_err().code(), Code::Unimplemented);
        assert!(!reflected().await);
        assert_eq!(health().await, Err(Code::NotFound));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_ends_in_time_however_many_of_its_wards_do_not_stop() {
    let stubborn = |number: usize| {
        Ward::task(format!("stubborn-{number}"), |_| std::future::pending()).grace(5 * SECOND)
    };
    let node = (0..20).map(stubborn).fold(Node::builder("test"), wardkeep_node::NodeBuilder::ward);
    let told = TestNode::run(node, async |node| {
        node.runs("stubborn-19", 1).await;
        tokio::time::Instant::now()
    })
    .await;
    // The longest grace, and ten seconds for all.
    let took = told.elapsed();
    assert!(took >= 14 * SECOND && took < 20 * SECOND, "{took:?}");
}
