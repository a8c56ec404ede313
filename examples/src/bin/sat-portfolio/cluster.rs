//! The nodes, one per solver: started here, or found at a supervisor.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Request, Response};
use wardkeep_client::{Member, Policy, Replicated};
use wardkeep_examples::{
    pb::{self, SolveReply, SolveRequest, solver_client::SolverClient},
    sat::{Solver, processes},
    sat_node::{MOST_REPLY_BYTES, MOST_REQUEST_BYTES},
};
use wardkeep_proto::{
    Error, machine_name,
    v1::{self, operator_client::OperatorClient},
};

use wardkeep_examples::Failure;

const START_PATIENCE: Duration = Duration::from_secs(20);
const STOP_PATIENCE: Duration = Duration::from_secs(15);
/// For killed programs to be gone.
const GONE_PATIENCE: Duration = Duration::from_secs(5);

/// A client of one node or all.
pub(crate) type Client = SolverClient<Replicated>;

pub(crate) struct Cluster {
    pub nodes: Vec<SolverNode>,
    started: Vec<(Child, Option<ChildStdin>)>,
}

/// A node that solves.
pub(crate) struct SolverNode {
    pub name: String,
    uri: String,
    /// If it is on this machine.
    pid: Option<u32>,
}

/// What a call came to.
pub(crate) enum Outcome {
    Answered(Response<SolveReply>),
    OutOfTime,
    Failed(Error),
}

impl Cluster {
    /// The nodes of this supervisor; without one, a new node for each solver that is installed.
    pub(crate) async fn join(supervisor: Option<&str>) -> Result<Self, Failure> {
        match supervisor {
            Some(uri) => Self::of(uri).await,
            None => Self::start().await,
        }
    }

    async fn start() -> Result<Self, Failure> {
        let installed = Solver::installed();
        if installed.is_empty() {
            let packages = Solver::ALL.map(Solver::name).join(" ");
            return Err(Failure::usage(format!(
                "no SAT solver is installed: apt-get install {packages} (one is enough, two make a race)"
            )));
        }
        let mut cluster = Self { nodes: Vec::new(), started: Vec::new() };
        for (solver, program) in installed {
            let mut child = Command::new(std::env::current_exe().map_err(Failure::failed)?)
                .args(["node", "--until-eof", "--solver", solver.name(), "--program"])
                .arg(program)
                .env_remove("WARDKEEP_SUPERVISOR")
                .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned()))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(Failure::failed)?;
            let stdout = child.stdout.take().map(|out| BufReader::new(out).lines());
            let first = async { stdout?.next_line().await.ok().flatten() };
            let line = timeout(START_PATIENCE, first).await.ok().flatten();
            let uri = line.and_then(|line| line.strip_prefix("listening on ").map(|a| format!("http://{a}")));
            let uri = uri.ok_or_else(|| Failure::failed(format!("the node of {solver} did not start")))?;
            cluster.nodes.push(SolverNode { name: solver.to_string(), uri, pid: child.id() });
            let stdin = child.stdin.take();
            cluster.started.push((child, stdin));
        }
        Ok(cluster)
    }

    async fn of(supervisor: &str) -> Result<Self, Failure> {
        let channel = wardkeep_client::endpoint(supervisor).map_err(Failure::usage)?.connect_lazy();
        let mut operator = OperatorClient::new(channel);
        let asked = operator.get_fleet(v1::GetFleetRequest {});
        let asked = timeout(START_PATIENCE, asked)
            .await
            .map_err(|_| Failure::failed(format!("the supervisor {supervisor} does not answer")))?;
        let fleet = asked
            .map_err(|status| {
                Failure::failed(format!("the supervisor {supervisor} cannot be asked: {}", status.message()))
            })?
            .into_inner();
        let nodes = fleet.nodes.into_iter().filter(|node| node.attending).filter_map(|node| node.info);
        let nodes: Vec<SolverNode> = nodes
            .filter(|info| info.labels.contains_key("solver"))
            .map(|info| SolverNode {
                pid: (info.machine == machine_name()).then_some(info.pid),
                name: info.name,
                uri: info.uri,
            })
            .collect();
        if nodes.is_empty() {
            return Err(Failure::usage(format!(
                "no node of {supervisor} solves: sat-portfolio node --solver minisat --supervisor {supervisor}"
            )));
        }
        Ok(Self { nodes, started: Vec::new() })
    }

    /// A client that asks all nodes at once.
    pub(crate) fn all(&self) -> Result<Client, Failure> {
        client(&self.nodes)
    }

    /// A client of this node alone.
    pub(crate) fn alone(&self, node: usize) -> Result<Client, Failure> {
        client(&self.nodes[node..=node])
    }

    /// The programs that nodes of this machine run now: the node's place in the list, and the process group.
    pub(crate) fn groups(&self) -> Vec<(usize, i32)> {
        let pids: Vec<u32> = self.nodes.iter().filter_map(|node| node.pid).collect();
        let at = |pid: u32| self.nodes.iter().position(|node| node.pid == Some(pid));
        processes::groups_of(&pids).into_iter().filter_map(|(pid, group)| Some((at(pid)?, group))).collect()
    }

    /// Waits until all programs of nodes of this machine, and these, are gone. Says when each went, from now.
    pub(crate) async fn all_gone(&self, groups: &[(usize, i32)]) -> Result<Vec<(i32, Duration)>, Failure> {
        let began = Instant::now();
        let mut left: Vec<i32> = groups.iter().chain(&self.groups()).map(|(_, group)| *group).collect();
        left.sort_unstable();
        left.dedup();
        let mut gone = Vec::new();
        loop {
            let still = processes::left_of(&left);
            let at = began.elapsed();
            gone.extend(left.extract_if(.., |group| !still.contains(group)).map(|group| (group, at)));
            if left.is_empty() {
                return Ok(gone);
            }
            if at > GONE_PATIENCE {
                return Err(Failure::failed(format!("process groups still run: {left:?}")));
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ends the nodes that were started here.
    pub(crate) async fn stop(self) {
        let (mut children, inputs): (Vec<_>, Vec<_>) = self.started.into_iter().unzip();
        drop(inputs);
        for child in &mut children {
            if timeout(STOP_PATIENCE, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }
}

fn client(nodes: &[SolverNode]) -> Result<Client, Failure> {
    let replicated = Replicated::builder()
        .members(nodes.iter().map(|node| Member::new(&node.name, &node.uri)))
        .methods(pb::FILE_DESCRIPTOR_SET)
        .policy(Policy::All(u32::try_from(nodes.len()).unwrap_or(u32::MAX)))
        .max_request_bytes(MOST_REQUEST_BYTES)
        .max_reply_bytes(MOST_REPLY_BYTES)
        .build()
        .map_err(Failure::failed)?;
    let client = SolverClient::new(replicated).max_decoding_message_size(MOST_REPLY_BYTES);
    Ok(client.max_encoding_message_size(MOST_REQUEST_BYTES))
}

/// Has a formula solved.
pub(crate) async fn solve(client: &mut Client, dimacs: Vec<u8>, limit: Duration) -> Outcome {
    let mut request = Request::new(SolveRequest { dimacs });
    request.set_timeout(limit);
    match client.solve(request).await {
        Ok(reply) => Outcome::Answered(reply),
        Err(status) if status.code() == Code::DeadlineExceeded => Outcome::OutOfTime,
        Err(status) => Outcome::Failed(Error::from_status(&status)),
    }
}
