//! Programs that are run for a request: they end with it, and all they have started with them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{io::AsyncReadExt as _, net::unix::pipe};
use tonic::Code;
use uuid::Uuid;
use wardkeep_proto::v1::Fate;

use crate::{
    Caller, START, failure, named,
    support::{Insides, Running, make, node, trouble, within},
    text,
};

/// A pipe that a program and its children hold open: it ends when the last of them has.
struct Held {
    _dir: tempfile::TempDir,
    path: PathBuf,
    pipe: pipe::Receiver,
}

impl Held {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("held");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let pipe = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        Self { _dir: dir, path, pipe }
    }

    /// A shell, its child and its grandchild say so when they are there, and stay. Deaf to what asks them to end.
    fn script(&self) -> String {
        let held = Path::display(&self.path);
        format!(
            "exec 3>{held}; trap '' TERM INT HUP; \
             sh -c 'trap \"\" TERM INT HUP; sleep 1000 & printf x >&3; wait' & \
             sleep 1000 & printf x >&3; wait"
        )
    }

    async fn has_begun(&mut self) {
        self.pipe.read_exact(&mut [0; 2]).await.unwrap();
    }

    async fn ends(mut self) {
        assert_eq!(self.pipe.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    }
}

async fn a_node() -> (Running, Caller) {
    let node = node([trouble(&Insides::default())]).await;
    node.running("trouble", 1).await;
    let caller = Caller::to(&node).await;
    (node, caller)
}

fn run(script: &str) -> wardkeep_proto::v1::WardRequest {
    wardkeep_proto::v1::WardRequest { reason: script.to_owned(), ..make("program") }
}

#[tokio::test]
async fn what_it_prints_and_how_it_ends_is_the_callers() {
    within(async {
        let (node, _) = a_node().await;
        let mut client = node.client().await;
        let mut say = async |script: &str| {
            client.start_ward(run(script)).await.unwrap().into_inner().after.unwrap().status
        };
        assert_eq!(say("printf hello; exit 3").await, "Some(3) hello 5 false");
        assert_eq!(say("kill -s KILL $$").await, "None  0 false");
        assert!(say("head -c 20000000 /dev/zero").await.ends_with(" 16777216 true"));
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_reset_kills_the_whole_group() {
    within(async {
        let (node, caller) = a_node().await;
        let mut held = Held::new();
        let script = held.script();
        let call = tokio::spawn(caller.call(START, &run(&script), &[]));
        held.has_begun().await;
        call.abort();
        held.ends().await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_withdrawal_kills_the_whole_group_and_tells_what_it_used() {
    within(async {
        let (node, caller) = a_node().await;
        let mut held = Held::new();
        // Uses some of the processor before it says that it is there.
        let script = format!("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; {}", held.script());
        let id = Uuid::now_v7();
        let call = tokio::spawn(caller.call(START, &run(&script), &named(id, 1)));
        held.has_begun().await;
        let ends = caller.withdraw(&[(id, 1)]).await;
        assert_eq!(ends[0].fate(), Fate::Running);
        held.ends().await;
        let end = call.await.unwrap().end().await;
        assert_eq!(failure(&end), (Code::Cancelled, "WITHDRAWN".to_owned()));
        let busy: u64 = text(&end, "wardkeep-fate").rsplit_once("busy=").unwrap().1.parse().unwrap();
        assert!(busy >= 10_000, "{end:?}");
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_deadline_kills_the_whole_group() {
    within(async {
        let (node, caller) = a_node().await;
        let mut held = Held::new();
        let script = held.script();
        let deadline = [("grpc-timeout", "1S".to_owned())];
        let call = tokio::spawn(caller.call(START, &run(&script), &deadline));
        held.has_begun().await;
        held.ends().await;
        assert_eq!(failure(&call.await.unwrap().end().await).0, Code::DeadlineExceeded);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_a_program_leaves_behind_in_its_group_ends_with_it() {
    within(async {
        let (node, caller) = a_node().await;
        let held = Held::new();
        let script = format!("exec 3>{}; sleep 1000 & exit 0", held.path.display());
        let end = caller.call(START, &run(&script), &[]).await.end().await;
        assert_eq!(failure(&end).0, Code::Ok);
        held.ends().await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_a_clear_error() {
    within(async {
        let context = wardkeep_node::testing::TestContext::new("w");
        let missing = wardkeep_node::Program::new("/no/such/program");
        let error = context.context().run(&missing).await.err().unwrap();
        assert_eq!(error.kind(), "CANNOT_START");
        assert!(error.what().contains("/no/such/program"), "{error}");
        context.stop();
        let stopped = context.context().run(&wardkeep_node::Program::new("/bin/true")).await.err().unwrap();
        assert_eq!(stopped.kind(), "CANCELLED");
    })
    .await;
}

#[tokio::test]
async fn what_a_program_and_its_children_used_is_told_with_its_end() {
    within(async {
        let context = wardkeep_node::testing::TestContext::new("w");
        // A child goes on until the kernel has counted three ticks of it, and the program waits for that.
        let busy = "while :; do read -r stat </proc/self/stat; set -- $stat; [ ${14} -lt 3 ] || exit 0; done";
        let sh = |script: String| wardkeep_node::Program::new("/bin/sh").arg("-c").arg(script);
        let output = context.context().run(&sh(format!("({busy}); exit 0"))).await.unwrap();
        assert!(output.cpu >= Duration::from_millis(30), "{output:?}");
        // Its output ends long before it does.
        let output = context.context().run(&sh(format!("exec >&- 2>&-; ({busy}); exit 0"))).await.unwrap();
        assert!(output.cpu >= Duration::from_millis(30), "{output:?}");
        let output = context.context().run(&sh("yes | head -c 100".to_owned()).captures(10)).await.unwrap();
        assert_eq!((&*output.stdout, output.cut), (&b"y\ny\ny\ny\ny\n"[..], true));
    })
    .await;
}
