//! Nodes, supervisors, threads and runtimes that stand still, and go on: told from each other, and nothing of
//! what they say late has an effect.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod binary;
mod fleet_support;

use std::{
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use binary::wardkeep;
use fleet_support::*;
use futures_util::future::join_all;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::watch,
    task::JoinSet,
};
use tonic::{Request, Response, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use wardkeep::daemon::Supervisor;
use wardkeep_client::{HedgeDelay, Member, Policy, Replicated, ResponseExt as _};
use wardkeep_node::{Node, Ward, WardContext};
use wardkeep_proto::v1::{
    self, Event, EventKind, Verdict,
    directory_client::DirectoryClient,
    directory_server::{Directory, DirectoryServer},
    operator_client::OperatorClient,
};
use wardkeep_steward::Config;

/// From a freeze to the verdict, with the pulses of every 500 ms that are the default.
const SEEN_WITHIN: Duration = Duration::from_secs(3);

/// `wardkeep serve`, as a process.
struct Process(Child);

impl Process {
    fn serve(args: &[&str]) -> Command {
        let mut command = wardkeep();
        command.arg("serve").args(args).stdout(Stdio::null());
        command
    }

    /// A supervisor on a port of the system's choice, and where it listens.
    async fn supervisor() -> (Self, String) {
        let args = ["supervisor", "--listen", "127.0.0.1:0"];
        let mut child = Self::serve(&args).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        loop {
            let line = lines.next_line().await.unwrap().expect("it comes up");
            if let Some((_, address)) = line.split_once("address=") {
                let address = address.split_whitespace().next().unwrap().to_owned();
                // It goes on talking to nobody.
                tokio::task::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                return (Self(child), address);
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().unwrap().cast_signed()), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that is stopped is killed, too; but it must not stay if that fails.
        let _ = self.0.start_kill();
    }
}

fn at(event: &Event) -> SystemTime {
    let at = event.at.unwrap();
    SystemTime::UNIX_EPOCH + Duration::new(at.seconds.unsigned_abs(), at.nanos.unsigned_abs())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_node_is_unreachable_within_three_seconds_and_its_wards_live_on_when_it_goes_on() {
    within(async {
        let sup = supervisor(Supervisor::builder()).await;
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("node.toml");
        std::fs::write(&config, "[[ward]]\nname = \"w\"\ncommand = [\"sleep\", \"3600\"]\n").unwrap();
        let config = config.to_str().unwrap();
        let args =
            ["node", "--name", "n", "--listen", "127.0.0.1:0", "--supervisor", &sup.uri, "--config", config];
        let node = Process(Process::serve(&args).stderr(Stdio::null()).spawn().unwrap());
        let program = sup.ward("n", "w", |w| w.incarnation == 1 && w.usage.is_some()).await;
        let mut events = sup.events().await;
        // Its rhythm is known.
        let known = sup.node("n", |node| node.last_report_at.is_some()).await.last_report_at;
        for _ in 0..4 {
            let before = sup.node("n", |_| true).await.last_report_at;
            sup.node("n", |node| node.last_report_at != before).await;
        }
        assert_ne!(sup.node("n", |_| true).await.last_report_at, known);

        let frozen = SystemTime::now();
        node.signal(Signal::SIGSTOP);
        let verdict = events.kind(EventKind::NodeVerdict).await;
        assert_eq!(verdict.verdict(), Verdict::Unreachable);
        let seen = at(&verdict).duration_since(frozen).unwrap();
        assert!(seen <= SEEN_WITHIN, "unreachable after {seen:?}");
        node.signal(Signal::SIGCONT);
        assert_eq!(events.kind(EventKind::NodeVerdict).await.verdict(), Verdict::Healthy);
        sup.node("n", |node| node.verdict() == Verdict::Healthy).await;
        let w = sup.runs("n", "w", 1).await;
        assert_eq!((w.restarts, w.usage.map(|usage| usage.pid)), (0, program.usage.map(|usage| usage.pid)));
        let restart =
            |event: &&Event| matches!(event.kind(), EventKind::WardVerdict | EventKind::WardRestart);
        assert_eq!(events.seen.iter().find(restart), None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_of_a_frozen_node_before_it_is_given_up_and_when_it_goes_on() {
    within(async {
        let sup = supervisor(Supervisor::builder()).await;
        let args = ["node", "--name", "n", "--listen", "127.0.0.1:0", "--supervisor", &sup.uri];
        let node = Process(Process::serve(&args).stderr(Stdio::null()).spawn().unwrap());
        let channel = wardkeep_client::endpoint(&sup.uri).unwrap().connect().await.unwrap();
        let everyone = v1::WatchDirectoryRequest::default();
        let mut views = DirectoryClient::new(channel).watch(everyone).await.unwrap().into_inner();
        let mut view = async |wanted: fn(&v1::Member) -> bool| loop {
            let view = views.message().await.unwrap().unwrap();
            if let Some(member) = view.members.into_iter().next().filter(wanted) {
                return member;
            }
        };
        view(|member| member.ready && !member.suspected).await;
        // Its rhythm is known.
        for _ in 0..4 {
            let before = sup.node("n", |_| true).await.last_report_at;
            sup.node("n", |node| node.last_report_at != before).await;
        }
        node.signal(Signal::SIGSTOP);
        let member = view(|member| member.suspected || !member.ready).await;
        assert!(member.ready && member.suspected, "suspected first: {member:?}");
        view(|member| !member.ready).await;
        node.signal(Signal::SIGCONT);
        view(|member| member.ready && !member.suspected).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_at_a_node_move_on_when_it_is_suspected_and_new_ones_avoid_it() {
    const CHECK: &str = "/grpc.health.v1.Health/Check";
    within(async {
        // No verdict falls while the test lasts; nor is a hedge due.
        let silence = Duration::from_secs(60);
        let config = Config { silence_floor: silence, silence_ceiling: silence, ..Config::default() };
        let sup = supervisor(Supervisor::builder().steward(config)).await;
        let serve = |name| {
            let args = ["node", "--name", name, "--listen", "127.0.0.1:0", "--supervisor", &sup.uri];
            Process(Process::serve(&args).stderr(Stdio::null()).spawn().unwrap())
        };
        let (frozen, _other) = (serve("frozen"), serve("other"));
        let client = || {
            let delay = HedgeDelay::Fixed(Duration::from_secs(60));
            Replicated::builder()
                .directory(&sup.uri, "")
                .policy_for(CHECK, Policy::Hedged { delay, max_attempts: 2 })
                .build()
                .unwrap()
        };
        let check = async |channel: &Replicated| {
            let reply =
                HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.unwrap();
            reply.winner().unwrap().clone()
        };
        let seen = async |channel: &Replicated, fits: fn(&Member) -> bool| {
            let mut members = channel.members();
            members
                .wait_for(|now| now.len() == 2 && now.iter().all(|m| m.name != "frozen" || fits(m)))
                .await
                .unwrap();
        };
        let known = client();
        seen(&known, |frozen| frozen.ready && !frozen.suspected).await;
        // Its rhythm is known.
        for _ in 0..4 {
            let before = sup.node("frozen", |_| true).await.last_report_at;
            sup.node("frozen", |node| node.last_report_at != before).await;
        }
        frozen.signal(Signal::SIGSTOP);
        // They take turns: two at each.
        let waiting = join_all((0..4).map(|_| check(&known))).await;
        assert!(waiting.iter().all(|winner| winner.node == "other"), "{waiting:?}");
        assert!(waiting.iter().any(|winner| winner.attempts == 2), "{waiting:?}");
        // One that has no bad memories of it asks the other first as well.
        let fresh = client();
        seen(&fresh, |frozen| frozen.ready && frozen.suspected).await;
        for _ in 0..4 {
            let winner = check(&fresh).await;
            assert_eq!((winner.node.as_str(), winner.attempts), ("other", 1));
        }
        let node = sup.node("frozen", |_| true).await;
        assert!(node.verdict() == Verdict::Healthy && node.suspected, "{node:?}");
        frozen.signal(Signal::SIGCONT);
        seen(&fresh, |frozen| frozen.ready && !frozen.suspected).await;
        // Well again, it is asked again.
        while check(&fresh).await.node != "frozen" {}
    })
    .await;
}

/// Whoever is asked first holds its answer, though its caller leaves, until it is told to give it.
#[derive(Clone, Default)]
struct Stuck(Arc<(Mutex<Option<bool>>, Condvar)>);

impl Stuck {
    fn let_go(&self) {
        *self.0.0.lock().unwrap() = Some(true);
        self.0.1.notify_all();
    }
}

#[tonic::async_trait]
impl Directory for Stuck {
    type WatchStream = tokio_stream::Once<Result<v1::DirectoryView, Status>>;

    async fn watch(
        &self,
        request: Request<v1::WatchDirectoryRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (context, gate) = (WardContext::of(&request).unwrap(), self.0.clone());
        let first = gate.0.lock().unwrap().is_none();
        if first {
            *gate.0.lock().unwrap() = Some(false);
            let hold = move |_: &WardContext| {
                let open = gate.0.lock().unwrap();
                drop(gate.1.wait_timeout_while(open, PATIENCE, |open| *open != Some(true)).unwrap());
            };
            context.blocking(hold).await?;
        }
        Ok(Response::new(tokio_stream::once(Ok(v1::DirectoryView::default()))))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_for_a_ward_move_on_when_it_is_suspected_and_new_ones_avoid_it() {
    within(async {
        let sup = supervisor(quick()).await;
        let stuck = Stuck::default();
        let mut nodes = Vec::new();
        for name in ["a", "b"] {
            let service = stuck.clone();
            // Suspected after half of it; the verdict is far away.
            let ward = Ward::service("w", move |_| DirectoryServer::new(service.clone()))
                .stall_timeout(Duration::from_secs(8));
            nodes.push(real_node(attending(&sup, name).ward(ward)).await);
        }
        let client = || {
            let delay = HedgeDelay::Fixed(Duration::from_secs(60));
            Replicated::builder()
                .directory(&sup.uri, "wardkeep.v1.Directory")
                .methods(wardkeep_proto::FILE_DESCRIPTOR_SET)
                .policy(Policy::Hedged { delay, max_attempts: 2 })
                .build()
                .unwrap()
        };
        let ask = async |channel: &Replicated| {
            let mut client = DirectoryClient::new(channel.clone());
            client.watch(v1::WatchDirectoryRequest::default()).await.unwrap().winner().unwrap().clone()
        };
        let suspected = async |channel: &Replicated, how_many: usize| {
            let ready = |member: &&Member| member.offers.iter().all(|offer| offer.ready);
            let count = |now: &[Member]| now.iter().filter(|member| member.suspected).count();
            let mut members = channel.members();
            members
                .wait_for(|now| now.iter().filter(ready).count() == 2 && count(now) == how_many)
                .await
                .unwrap();
        };
        let (known, fresh) = (client(), client());
        suspected(&known, 0).await;
        let winner = ask(&known).await;
        assert_eq!(winner.attempts, 2, "{winner:?}");
        suspected(&fresh, 1).await;
        for _ in 0..4 {
            let now = ask(&fresh).await;
            assert_eq!((&now.node, now.attempts), (&winner.node, 1));
        }
        let fleet = sup.fleet().await;
        assert!(fleet.wards.iter().all(|w| w.verdict() == Verdict::Healthy && w.restarts == 0), "{fleet:?}");
        stuck.let_go();
        suspected(&fresh, 0).await;
        // Well again, it is asked again.
        while ask(&fresh).await.node == winner.node {}
    })
    .await;
}

/// The supervisor that a process started by the test below is to attend, and what it waits for.
const ATTEND: &str = "WARDKEEP_FROZEN_NODE_ATTENDS";
const GATE: &str = "WARDKEEP_FROZEN_NODE_WAITS_FOR";

/// Its first incarnation holds its thread, and its replies, until there is such a file.
struct Held(Option<PathBuf>);

#[tonic::async_trait]
impl Directory for Held {
    type WatchStream = tokio_stream::Pending<Result<v1::DirectoryView, Status>>;

    async fn watch(
        &self,
        _: Request<v1::WatchDirectoryRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        while self.0.as_ref().is_some_and(|gate| !gate.exists()) {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Response::new(tokio_stream::pending()))
    }
}

/// Not a test of its own: the node, where another test has started it as a process.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node() {
    let Ok(uri) = std::env::var(ATTEND) else { return };
    let gate = PathBuf::from(std::env::var(GATE).unwrap());
    let held = Ward::service("held", move |context| {
        DirectoryServer::new(Held((context.incarnation() == 1).then(|| gate.clone())))
    });
    let held = held.stall_timeout(Duration::from_secs(1)).grace(Duration::from_millis(100));
    // Each time it wakes it is as likely to be late as the node's report is to be early.
    let pulses = Ward::task("pulses", |context| async move {
        while !context.is_cancelled() {
            context.pulse();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    });
    let pulses = pulses.pulse_timeout(Duration::from_secs(2));
    let node = Node::builder("n").supervisor(&uri).ward(held).ward(calm("calm")).ward(pulses);
    node.bind("127.0.0.1:0").await.unwrap().run_until(std::future::pending()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_was_held_across_a_freeze_is_dropped_and_counted_if_its_ward_was_replaced() {
    within(async {
        let sup = supervisor(Supervisor::builder()).await;
        let dir = tempfile::tempdir().unwrap();
        let gate = dir.path().join("gate");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "a_node", "--nocapture"]).env(ATTEND, &sup.uri).env(GATE, &gate);
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let process = Process(command.spawn().unwrap());
        sup.runs("n", "held", 1).await;
        sup.runs("n", "calm", 1).await;

        let uri = sup.node("n", |_| true).await.info.unwrap().uri;
        let mut client = DirectoryClient::new(channel(&uri).await);
        let call = tokio::task::spawn(async move {
            client.watch(v1::WatchDirectoryRequest { service: String::new() }).await
        });
        // It holds its thread, and has been replaced.
        sup.runs("n", "held", 2).await;
        sup.node("n", |node| node.leaked_threads == 1).await;
        let mut events = sup.events().await;
        process.signal(Signal::SIGSTOP);
        let unreachable = |event: &Event| event.kind() == EventKind::NodeVerdict;
        assert_eq!(events.until(unreachable).await.verdict(), Verdict::Unreachable);
        std::fs::write(&gate, "").unwrap();
        process.signal(Signal::SIGCONT);
        assert_eq!(events.until(unreachable).await.verdict(), Verdict::Healthy);

        let late = error(&call.await.unwrap().unwrap_err());
        assert_eq!(late.kind(), "WARD_STOPPED", "{late}");
        let held = sup.ward("n", "held", |ward| ward.fenced_replies == 1).await;
        assert_eq!((held.incarnation, held.state()), (2, v1::WardState::Running));
        sup.node("n", |node| node.leaked_threads == 0).await;
        for healthy in ["calm", "pulses"] {
            assert_eq!(sup.runs("n", healthy, 1).await.restarts, 0);
        }
    })
    .await;
}

/// Passes connections on to whichever address it is set to; those to another one are cut.
async fn switch(target: watch::Receiver<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::task::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            let mut target = target.clone();
            connections.spawn(async move {
                let now = target.borrow_and_update().clone();
                let Ok(mut to) = TcpStream::connect(&now).await else { return };
                tokio::select! {
                    _ = copy_bidirectional(&mut from, &mut to) => {}
                    _ = target.changed() => {}
                }
            });
        }
    });
    address
}

async fn sees(operator: &mut OperatorClient<tonic::transport::Channel>, so: impl Fn(&v1::Fleet) -> bool) {
    let mut look = tokio::time::interval(Duration::from_millis(20));
    loop {
        look.tick().await;
        if so(&operator.get_fleet(v1::GetFleetRequest {}).await.unwrap().into_inner()) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_that_was_frozen_and_replaced_has_no_authority_when_it_goes_on() {
    within(async {
        let (old, old_address) = Process::supervisor().await;
        let (point, target) = watch::channel(old_address.clone());
        let uri = format!("http://{}", switch(target).await);
        let (_, node) = real_node(Node::builder("n").supervisor(&uri).ward(calm("w"))).await;
        let mut operator = OperatorClient::new(channel(&format!("http://{old_address}")).await);
        let runs = |fleet: &v1::Fleet| ward(fleet, "n", "w").is_some_and(|ward| ward.incarnation == 1);
        sees(&mut operator, runs).await;

        old.signal(Signal::SIGSTOP);
        let (_young, young_address) = Process::supervisor().await;
        point.send_replace(young_address.clone());
        let mut young_operator = OperatorClient::new(channel(&format!("http://{young_address}")).await);
        sees(&mut young_operator, runs).await;

        // The old one is back, and the node finds it first.
        old.signal(Signal::SIGCONT);
        point.send_replace(old_address);
        let refused = |fleet: &v1::Fleet| node_of(fleet, "n").is_some_and(|node| !node.attending);
        sees(&mut operator, refused).await;
        // Whatever it is asked to command, nothing comes of it.
        for _ in 0..5 {
            let stop = timed(of_ward("n", "w"), Duration::from_millis(300));
            assert!(operator.stop_ward(stop).await.is_err());
        }
        point.send_replace(young_address);
        sees(&mut young_operator, |fleet| {
            node_of(fleet, "n").is_some_and(|node| node.attending) && runs(fleet)
        })
        .await;
        node.stop().await;
    })
    .await;
}

fn node_of<'a>(fleet: &'a v1::Fleet, name: &str) -> Option<&'a v1::Node> {
    node(fleet, name)
}

/// Nodes with threads of their own, so that what is blocked is theirs.
fn workers(threads: usize) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap()
}

/// A task that pulses, and blocks its thread for so long in its first incarnation.
fn blocks_once(name: &str, block: Duration, begun: Arc<AtomicU64>) -> Ward {
    Ward::task(name.to_owned(), move |context| {
        let begun = begun.clone();
        async move {
            if context.incarnation() == 1 {
                // Until it has been seen to live.
                for _ in 0..5 {
                    context.pulse();
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                context.pulse();
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
                begun.store(u64::try_from(now.as_millis()).unwrap(), Relaxed);
                std::thread::sleep(block);
            }
            while !context.is_cancelled() {
                context.pulse();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Ok(())
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ward_that_blocks_its_thread_is_replaced_within_twice_its_stall_timeout_and_nobody_waits_for_it() {
    within(async {
        const STALL: Duration = Duration::from_secs(2);
        let sup = supervisor(Supervisor::builder()).await;
        let mut events = sup.events().await;
        let (own, begun) = (workers(2), Arc::new(AtomicU64::new(0)));
        let ward = blocks_once("w", Duration::from_secs(9), begun.clone());
        let ward = ward.pulse_timeout(STALL).grace(Duration::from_millis(100));
        let node = Node::builder("n").supervisor(&sup.uri).ward(ward);
        let (_, node) = own.spawn(real_node(node)).await.unwrap();
        let replaced = events.says("runs, incarnation 2").await;
        let begun = SystemTime::UNIX_EPOCH + Duration::from_millis(begun.load(Relaxed));
        let took = at(&replaced).duration_since(begun).unwrap();
        assert!(took <= 2 * STALL, "replaced after {took:?}");
        let stalled =
            |event: &Event| event.kind() == EventKind::WardVerdict && event.verdict() == Verdict::Stalled;
        assert!(events.seen.iter().any(stalled), "{:#?}", events.seen);
        // The supervisor's own loop was never late, nor the node silent.
        let doubt =
            |event: &&Event| event.text.contains("doubts itself") || event.kind() == EventKind::NodeVerdict;
        assert_eq!(events.seen.iter().find(doubt), None);
        sup.node("n", |node| node.leaked_threads == 1).await;
        node.kill().await;
        own.shutdown_background();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_whose_threads_are_all_blocked_is_told_from_a_node_that_is_gone() {
    within(async {
        let sup = supervisor(Supervisor::builder()).await;
        let mut events = sup.events().await;
        let (own, begun) = (workers(2), Arc::new(AtomicU64::new(0)));
        let block = Duration::from_secs(5);
        let mut builder = Node::builder("n").supervisor(&sup.uri);
        for name in ["a", "b", "c"] {
            builder = builder.ward(blocks_once(name, block, begun.clone()));
        }
        let (_, node) = own.spawn(real_node(builder)).await.unwrap();
        let verdict = events.kind(EventKind::NodeVerdict).await;
        assert_eq!(verdict.verdict(), Verdict::RuntimeStalled, "{}", verdict.text);
        let seen = sup.node("n", |node| node.verdict() == Verdict::RuntimeStalled).await;
        assert!(seen.attending);
        let verdict = events.kind(EventKind::NodeVerdict).await;
        assert_eq!(verdict.verdict(), Verdict::Healthy, "{}", verdict.text);
        for name in ["a", "b", "c"] {
            sup.runs("n", name, 1).await;
        }
        node.kill().await;
        own.shutdown_background();
    })
    .await;
}
