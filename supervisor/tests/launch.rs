//! Nodes that a command starts somewhere else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod fleet_support;
mod history_support;

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use fleet_support::{FakeNode, hello, of_node, quick, supervisor};
use history_support::{
    binary::{Daemon, WARDKEEP, wardkeep},
    within,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use wardkeep::daemon::{How, Launch};
use wardkeep_proto::v1::{self, EventKind, operator_client::OperatorClient};

/// A supervisor whose node `n` is started by this script.
struct Site {
    dir: tempfile::TempDir,
    uri: String,
    supervisor: Daemon,
}

impl Site {
    /// `keys`: more about the node.
    async fn new(script: &str, keys: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let uri = format!("http://{address}");
        let program = dir.path().join("start-node");
        let script = format!(
            "#!/bin/sh\ncd {}\n[ \"$WARDKEEP_NODE\" = n ] || exit 9\necho \"$WARDKEEP_REASON\" >> reasons\n{script}\n",
            dir.path().display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let config = dir.path().join("supervisor.toml");
        let text = format!(
            "listen = {address:?}\npulse_interval = \"50ms\"\nsilence_ceiling = \"2s\"\nrelaunch_after = \"300ms\"\n\
             [[node]]\nname = \"n\"\ncommand = [{program:?}, {uri:?}]\n{keys}\n"
        );
        fs::write(&config, text).unwrap();
        let mut supervisor = Daemon::start(&["supervisor", "--config", config.to_str().unwrap()], &[]);
        supervisor.says("supervisor up").await;
        Self { dir, uri, supervisor }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn operator(&self) -> OperatorClient<tonic::transport::Channel> {
        OperatorClient::new(fleet_support::channel(&self.uri).await)
    }

    async fn attends(&self, seen: impl Fn(&v1::NodeInfo) -> bool) -> v1::NodeInfo {
        let mut operator = self.operator().await;
        let mut look = tokio::time::interval(Duration::from_millis(20));
        loop {
            look.tick().await;
            let fleet = operator.get_fleet(v1::GetFleetRequest {}).await.unwrap().into_inner();
            let node = fleet.nodes.into_iter().next().expect("it is known by name");
            assert_eq!(node.launcher, "command");
            if let Some(info) = node.info.filter(|info| node.attending && seen(info)) {
                return info;
            }
        }
    }

    /// What is told of launches, until there are so many.
    async fn launches(&self, says: &str, times: usize) -> Vec<v1::Event> {
        let request = v1::WatchEventsRequest { follow: true, ..Default::default() };
        let mut events = self.operator().await.watch_events(request).await.unwrap().into_inner();
        let mut found = Vec::new();
        while found.len() < times {
            let event = events.message().await.unwrap().unwrap();
            if event.kind() == EventKind::NodeRestart && event.text.contains(says) {
                found.push(event);
            }
        }
        found
    }

    async fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = wardkeep().args(args).args(["--supervisor", &self.uri]).output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

/// Nodes that were started beside us end with the test.
impl Drop for Site {
    fn drop(&mut self) {
        for pid in fs::read_to_string(self.path("pids")).unwrap_or_default().lines() {
            let _ = kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL);
        }
    }
}

/// Ends the node there is and starts another.
fn starting() -> String {
    format!(
        "for pid in $(cat pids 2>/dev/null); do kill -9 $pid 2>/dev/null; done\n\
         setsid {WARDKEEP} serve node --name n --listen 127.0.0.1:0 --supervisor $1 >/dev/null 2>>log &\n\
         echo $! >> pids"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_away_is_started_by_its_command_and_again_when_it_dies() {
    within(async {
        let site = Site::new(&starting(), "").await;
        let first = site.attends(|_| true).await;
        assert!(fs::read_to_string(site.path("reasons")).unwrap().starts_with("unreachable for"));
        kill(Pid::from_raw(first.pid.cast_signed()), Signal::SIGKILL).unwrap();
        let second = site.attends(|info| info.boot_id != first.boot_id).await;
        assert_ne!(first.pid, second.pid);
        site.launches("its launcher's command has run, in", 2).await;
        let (code, told, _) = site.run(&["node", "ls", "-o", "wide"]).await;
        assert!(code == 0 && told.contains("LAUNCHER") && told.contains("command"), "{told}");
        let (_, told, _) = site.run(&["node", "show", "n"]).await;
        assert!(told.lines().any(|line| line.starts_with("launcher") && line.contains("command")), "{told}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_fails_or_hangs_is_told_of_and_tried_again() {
    within(async {
        let mut site = Site::new("echo 'no route to host' >&2; exit 3", "").await;
        let failed = site.launches("its launcher failed", 6).await;
        for event in failed.iter().filter(|event| !event.text.starts_with("its process is started anew")) {
            assert!(
                event.text.ends_with("/start-node ended with exit status: 3: no route to host"),
                "{event:?}"
            );
        }
        assert!(
            failed.iter().any(|event| event.text.starts_with("its process is started anew, in ")),
            "{failed:?}"
        );
        site.supervisor.says("no route to host").await;

        let hangs = Site::new("sleep 600 & echo $! >> pids; wait", "timeout = \"300ms\"").await;
        hangs.launches("had not ended after 300ms and was killed", 2).await;
        let first = fs::read_to_string(hangs.path("pids")).unwrap().lines().next().unwrap().to_owned();
        let mut look = tokio::time::interval(Duration::from_millis(10));
        let lives = |pid: &str| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        while lives(&first) {
            look.tick().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_a_node_that_is_frozen_falls_back_to_its_command() {
    within(async {
        // Only an operator has it launched: by itself the supervisor would wait for longer.
        let site = Site::new(&starting(), "").await;
        let first = site.attends(|_| true).await;
        let (code, told, _) = site.run(&["node", "restart", "n", "-y"]).await;
        assert!(code == 0 && told.contains(&format!("pid {} kept", first.pid)), "{told}");
        let first = site.attends(|info| info.boot_id != first.boot_id).await;
        kill(Pid::from_raw(first.pid.cast_signed()), Signal::SIGSTOP).unwrap();
        let (code, told, error) = site.run(&["node", "restart", "n", "-y", "--reason", "it hangs"]).await;
        assert!(code == 0 && told.contains(&format!("pid {} -> ", first.pid)), "{told} {error}");
    })
    .await;
}

fn touching(file: &std::path::Path) -> Launch {
    Launch {
        node: "n".to_owned(),
        how: How::Command { timeout: Duration::from_secs(10) },
        program: "sh".into(),
        args: vec!["-c".into(), format!("echo $WARDKEEP_REASON > {}", file.display()).into()],
        env: Default::default(),
        socket: Default::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_beats_but_does_not_obey_is_restarted_by_its_launcher_and_one_that_is_away_at_once() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("reason");
        let sup = supervisor(quick().launch(touching(&file))).await;
        let (fake, _) = FakeNode::attend(&sup, hello("n", &[])).await.unwrap();
        let _reporter = fake.keep_reporting();
        let mut events = sup.events().await;
        let asked = v1::NodeRequest { detach: true, ..of_node("n") };
        sup.operator.clone().restart_node(asked.clone()).await.unwrap();
        let told = events.says("restart by its launcher (command): it does not answer in band").await;
        assert!(told.text.ends_with("ana@ops asked for it: a test"), "{told:?}");
        events.says("its launcher's command has run").await;
        assert!(fs::read_to_string(&file).unwrap().contains("it does not answer in band"));

        drop((_reporter, fake));
        sup.node("n", |n| !n.attending).await;
        sup.operator.clone().restart_node(asked).await.unwrap();
        let told = events.says("restart by its launcher (command): ana@ops").await;
        assert_eq!(told.actor, "ana@ops");
        events.says("its launcher's command has run").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_in_a_container_is_known_by_a_part_of_its_name_and_what_keeps_the_engine_away_is_told() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let launch = Launch {
            node: "n-*".to_owned(),
            how: How::Docker { timeout: Duration::from_secs(10) },
            program: "*".into(),
            socket: dir.path().join("engine.sock"),
            ..touching(dir.path())
        };
        let sup = supervisor(quick().launch(launch)).await;
        let (fake, _) = FakeNode::attend(&sup, hello("n-1f2e", &[])).await.unwrap();
        let _reporter = fake.keep_reporting();
        sup.node("n-1f2e", |n| n.launcher == "docker").await;
        let mut events = sup.events().await;
        let asked = v1::NodeRequest { detach: true, ..of_node("n-1f2e") };
        sup.operator.clone().restart_node(asked).await.unwrap();
        events.says("restart by its launcher (docker): it does not answer in band").await;
        let told = events.says("its launcher failed: the container engine at").await;
        assert_eq!(told.node, "n-1f2e");
        assert!(told.text.contains("No such file") && !told.text.contains('\n'), "{told:?}");
    })
    .await;
}
