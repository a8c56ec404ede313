//! The running cluster as the quickstart sees it: over the network, like anyone else.

use std::{path::Path, process::Stdio, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use tonic::transport::Channel;
use wardkeep_client::{Member, Policy, Replicated};
use wardkeep_examples::pb::{
    self, ChaosRequest, SearchReply, SearchRequest, chaos_client::ChaosClient, chaos_request::Fault,
    search_client::SearchClient,
};
use wardkeep_node::shutdown_signal;
use wardkeep_proto::{
    Error,
    v1::{self, operator_client::OperatorClient},
};

use crate::{Failure, say::Say};

pub(crate) const SEARCH: &str = "wardkeep.examples.v1.Search";
/// For nodes to read the corpus and attend.
const START_PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Cluster {
    supervisor: Child,
    pub address: String,
    channel: Channel,
    replicated: Replicated,
    /// Sends each query to all nodes that the directory names.
    pub racing: SearchClient<Replicated>,
}

/// One node, for the story.
#[derive(Clone, Debug)]
pub(crate) struct NodeFacts {
    pub name: String,
    pub pid: u32,
    pub uri: String,
    pub data_path: String,
    pub boot: String,
    /// Incarnation of its search ward, and whether that runs.
    pub incarnation: u64,
    pub ready: bool,
}

impl Cluster {
    /// Starts the supervisor and waits until all nodes answer. `stay`: at the address where the
    /// `wardkeep` command looks for it, if that is free.
    pub(crate) async fn start(dir: &Path, stay: bool) -> Result<Self, Failure> {
        let usual = wardkeep::serve::SUPERVISOR_ADDRESS;
        let free = stay && tokio::net::TcpListener::bind(usual).await.is_ok();
        let listen = if free { usual } else { "127.0.0.1:0" };
        let program = std::env::current_exe().map_err(Failure::failed)?;
        let log = std::fs::File::create(dir.join("supervisor.log")).map_err(Failure::failed)?;
        let mut supervisor = Command::new(program)
            .args(["supervisor", "--listen", listen, "--dir"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(Failure::failed)?;
        let stdout = supervisor.stdout.take().map(|out| BufReader::new(out).lines());
        let first = async { stdout?.next_line().await.ok().flatten() };
        let address = timeout(START_PATIENCE, first)
            .await
            .ok()
            .flatten()
            .and_then(|line| line.strip_prefix("listening on ").map(|a| format!("http://{a}")))
            .ok_or_else(|| Failure::failed(format!("the supervisor did not start; see {}", dir.display())))?;
        let channel = wardkeep_client::endpoint(&address).map_err(Failure::failed)?.connect_lazy();
        let replicated = Replicated::builder()
            .directory(&address, SEARCH)
            .methods(pb::FILE_DESCRIPTOR_SET)
            .policy(Policy::All(3))
            .default_deadline(Duration::from_secs(10))
            .build()
            .map_err(Failure::failed)?;
        let racing = SearchClient::new(replicated.clone());
        let cluster = Self { supervisor, address, channel, replicated, racing };
        cluster.all_ready().await?;
        Ok(cluster)
    }

    async fn all_ready(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            match self.nodes().await {
                Ok(nodes) if nodes.len() == 3 && nodes.iter().all(|node| node.ready) => return Ok(()),
                _ if Instant::now() > deadline => {
                    return Err(Failure::failed("the nodes were not ready within a minute"));
                }
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    pub(crate) fn operator(&self) -> OperatorClient<Channel> {
        OperatorClient::new(self.channel.clone())
    }

    /// All nodes as the supervisor knows them.
    pub(crate) async fn nodes(&self) -> Result<Vec<NodeFacts>, Failure> {
        let asked = timeout(Duration::from_secs(5), self.operator().get_fleet(v1::GetFleetRequest {})).await;
        let fleet = asked.map_err(Failure::failed)?.map_err(|s| Failure::failed(Error::from_status(&s)))?;
        let fleet = fleet.into_inner();
        let facts = |node: &v1::Node| {
            let info = node.info.clone().unwrap_or_default();
            let is_search = |ward: &&v1::Ward| {
                ward.node == info.name && ward.spec.as_ref().is_some_and(|spec| spec.name == "search")
            };
            let search = fleet.wards.iter().find(is_search).cloned().unwrap_or_default();
            NodeFacts {
                ready: node.attending
                    && node.verdict() == v1::Verdict::Healthy
                    && search.state() == v1::WardState::Running
                    && search.verdict() == v1::Verdict::Healthy,
                incarnation: search.incarnation,
                data_path: info.labels.get("data_path").cloned().unwrap_or_default(),
                name: info.name,
                pid: info.pid,
                uri: info.uri,
                boot: info.boot_id,
            }
        };
        Ok(fleet.nodes.iter().map(facts).collect())
    }

    pub(crate) async fn node(&self, name: &str) -> Result<NodeFacts, Failure> {
        let nodes = self.nodes().await?;
        nodes
            .into_iter()
            .find(|node| node.name == name)
            .ok_or_else(|| Failure::failed(format!("no node {name}")))
    }

    /// A client of one node alone.
    pub(crate) fn alone(&self, node: &NodeFacts) -> Result<SearchClient<Replicated>, Failure> {
        let alone = Replicated::builder()
            .members([Member::new(&node.name, &node.uri)])
            .default_deadline(Duration::from_secs(5))
            .build()
            .map_err(Failure::failed)?;
        Ok(SearchClient::new(alone))
    }

    /// Has one search on this node hang or panic, and makes that search. Returns what its caller is
    /// told within `patience`.
    pub(crate) async fn break_search(
        &self,
        node: &NodeFacts,
        fault: Fault,
        patience: Duration,
    ) -> Result<Option<Error>, Failure> {
        const QUERY: &str = "the query that breaks it";
        let channel = wardkeep_client::endpoint(&node.uri).map_err(Failure::failed)?.connect_lazy();
        let request = ChaosRequest { fault: fault.into(), query: QUERY.to_owned() };
        ChaosClient::new(channel).next(request).await.map_err(|s| Failure::failed(Error::from_status(&s)))?;
        let mut alone = self.alone(node)?;
        let told = timeout(patience, ask(&mut alone, QUERY)).await;
        Ok(told.ok().and_then(Result::err).map(|status| Error::from_status(&status)))
    }

    /// The supervisor's events from now on.
    pub(crate) async fn events(
        &self,
    ) -> Result<impl futures_util::Stream<Item = v1::Event> + use<>, Failure> {
        let fleet = self.operator().get_fleet(v1::GetFleetRequest {}).await;
        let fleet = fleet.map_err(|s| Failure::failed(Error::from_status(&s)))?.into_inner();
        let after_sequence = fleet.supervisor.map_or(0, |s| s.last_event_sequence);
        let request = v1::WatchEventsRequest { follow: true, after_sequence, ..Default::default() };
        let events = self.operator().watch_events(request).await;
        let events = events.map_err(|s| Failure::failed(Error::from_status(&s)))?.into_inner();
        Ok(events.filter_map(async |event| event.ok()))
    }

    /// Leaves everything running until Ctrl-C.
    pub(crate) async fn stay(&self, say: &Say) {
        say.line(&format!("\nThe cluster stays up at {} until Ctrl-C.", self.address));
        say.line("In a second terminal:\n");
        say.line("  cargo build --release --bin wardkeep");
        say.line("  export PATH=\"$PWD/target/release:$PATH\"");
        if !self.address.ends_with(wardkeep::serve::SUPERVISOR_ADDRESS) {
            say.line(&format!("  export WARDKEEP_SUPERVISOR={}", self.address));
        }
        for command in [
            "wardkeep status",
            "wardkeep node restart trigram -y",
            "wardkeep ward restart scan/search -y",
            "wardkeep events -f",
            "wardkeep call wardkeep.examples.v1.Search/Search '{\"query\":\"fn main\"}' -n 3",
        ] {
            say.line(&format!("  {command}"));
        }
        shutdown_signal().await;
    }

    /// Ends the supervisor, which ends the nodes.
    pub(crate) async fn stop(mut self) {
        self.replicated.close().await;
        drop(self.supervisor.stdin.take());
        if timeout(Duration::from_secs(25), self.supervisor.wait()).await.is_err() {
            let _ = self.supervisor.kill().await;
        }
    }
}

/// A search and its answer, reduced to what must be the same from every path.
pub(crate) async fn ask(
    client: &mut SearchClient<Replicated>,
    query: &str,
) -> Result<tonic::Response<SearchReply>, tonic::Status> {
    client.search(SearchRequest { query: query.to_owned(), limit: 0 }).await
}

/// What is compared between answers: everything but who found it.
pub(crate) fn essence(reply: SearchReply) -> Arc<SearchReply> {
    Arc::new(SearchReply { data_path: String::new(), ..reply })
}
