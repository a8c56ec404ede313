//! In whatever order the parts of a cluster start: they find each other.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

use std::{future::Future, net::SocketAddr, time::Duration};

use tokio::{sync::oneshot, task::JoinSet, time::timeout};
use wardkeep::daemon::Supervisor;
use wardkeep_client::Replicated;
use wardkeep_faults::{answer::expected, load::SERVICE, node, pb, pb::answer_client::AnswerClient};
use wardkeep_node::{Node, Ward};

/// A hang is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Supervisor,
    Node,
    Client,
}

/// What runs until it is dropped.
#[derive(Default)]
struct Parts {
    stop: Vec<oneshot::Sender<()>>,
    tasks: JoinSet<()>,
}

impl Parts {
    fn until_dropped(&mut self) -> impl Future<Output = ()> + Send + 'static {
        let (stop, stopped) = oneshot::channel::<()>();
        self.stop.push(stop);
        async move { drop(stopped.await) }
    }

    async fn supervisor(&mut self, at: SocketAddr) {
        let supervisor = Supervisor::builder().bind(&at.to_string()).await.unwrap();
        let end = self.until_dropped();
        self.tasks.spawn(async move { supervisor.run_until(end).await.unwrap() });
    }

    async fn node(&mut self, supervisor: &str) {
        let ward = Ward::service("answer", |_| node::answering());
        let node = Node::builder("n").supervisor(supervisor).ward(ward).bind("127.0.0.1:0").await.unwrap();
        let end = self.until_dropped();
        self.tasks.spawn(async move { node.run_until(end).await.unwrap() });
    }
}

fn client(supervisor: &str) -> AnswerClient<Replicated> {
    let methods = pb::FILE_DESCRIPTOR_SET;
    let channel = Replicated::builder().directory(supervisor, SERVICE).methods(methods).build().unwrap();
    AnswerClient::new(channel)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_in_which_they_start_does_not_matter() {
    use Part::{Client, Node, Supervisor};
    for order in [
        [Supervisor, Node, Client],
        [Supervisor, Client, Node],
        [Node, Supervisor, Client],
        [Node, Client, Supervisor],
        [Client, Supervisor, Node],
        [Client, Node, Supervisor],
    ] {
        // Nobody listens there until the supervisor does.
        let at = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let uri = format!("http://{at}");
        let (mut parts, mut asks) = (Parts::default(), None);
        for part in order {
            match part {
                Supervisor => parts.supervisor(at).await,
                Node => parts.node(&uri).await,
                Client => {
                    let mut client = client(&uri);
                    asks = Some(tokio::task::spawn(async move {
                        let question = pb::Question { number: 10, ..Default::default() };
                        loop {
                            // Until all are there it is told why not, and asks again.
                            if let Ok(reply) = client.ask(question).await {
                                return reply.into_inner().sum;
                            }
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }));
                }
            }
        }
        let answered = timeout(PATIENCE, asks.unwrap()).await;
        assert_eq!(
            answered.unwrap_or_else(|_| panic!("{order:?} hangs")).unwrap(),
            expected(10),
            "{order:?}"
        );
        parts.stop.clear();
        timeout(PATIENCE, async { while parts.tasks.join_next().await.is_some() {} }).await.unwrap();
    }
}
