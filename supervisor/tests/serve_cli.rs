//! `wardkeep serve` as processes: how they start, end, outlive each other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod binary;
mod fleet_support;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use binary::{Daemon, WARDKEEP, operator, until};
use fleet_support::within;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use wardkeep_proto::v1::{self, Fleet};

fn daemon(args: &[&str]) -> Daemon {
    Daemon::start(args, &[])
}

/// The exit code, and all it said.
async fn end(mut daemon: Daemon) -> (Option<i32>, Vec<String>) {
    (daemon.ended().await.code(), daemon.said)
}

#[tokio::test]
async fn sigterm_and_ctrl_c_end_a_daemon_well_and_soon() {
    within(async {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut supervisor = daemon(&["supervisor", "--listen", "127.0.0.1:0"]);
            let address = supervisor.address("supervisor up").await;
            let uri = format!("http://{address}");
            let mut node = daemon(&["node", "--name", "n", "--listen", "127.0.0.1:0", "--supervisor", &uri]);
            node.says("attends the supervisor").await;
            let begun = tokio::time::Instant::now();
            supervisor.signal(signal);
            let (code, said) = end(supervisor).await;
            assert_eq!(code, Some(0), "{said:#?}");
            node.signal(signal);
            let (code, said) = end(node).await;
            assert_eq!(code, Some(0), "{said:#?}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        }
    })
    .await;
}

#[tokio::test]
async fn what_keeps_a_daemon_from_starting_is_said_in_one_line() {
    within(async {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let unknown = file("unknown.toml", "listen = \"127.0.0.1:0\"\nlistn = 1\n");
        let slash = file("slash.toml", "[[node]]\nname = \"a/b\"\nlaunch = [\"true\"]\n");
        let pulse = file("pulse.toml", "pulse_interval = \"1m\"\n");
        for (kind, args, code, says) in [
            ("supervisor", ["--listen", &address], 1, "in use"),
            ("node", ["--listen", &address], 1, "in use"),
            ("supervisor", ["--listen", "0.0.0.0:0"], 2, "insecure"),
            ("supervisor", ["--listen", "nonsense"], 1, "nonsense"),
            ("supervisor", ["--config", &unknown], 2, "did you mean `listen`?"),
            ("node", ["--config", &unknown], 2, "did you mean `listen`?"),
            ("supervisor", ["--config", "/does/not/exist.toml"], 2, "/does/not/exist.toml"),
            ("supervisor", ["--config", &slash], 2, "slash"),
            ("supervisor", ["--config", &pulse], 2, "silence_ceiling"),
            ("supervisor", ["--data-dir", &unknown], 1, "unknown.toml"),
        ] {
            let mut arguments = vec![kind];
            if !args.contains(&"--listen") {
                arguments.extend(["--listen", "127.0.0.1:0"]);
            }
            arguments.extend(args);
            let (ended, said) = end(daemon(&arguments)).await;
            assert_eq!((ended, said.len()), (Some(code), 1), "{arguments:?}: {said:#?}");
            assert!(said[0].contains(says), "{arguments:?}: {said:#?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_node_without_its_supervisor_keeps_trying_and_says_so_once() {
    within(async {
        let place = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = place.local_addr().unwrap().to_string();
        drop(place);
        let uri = format!("http://{address}");
        let mut node = daemon(&["node", "--name", "n", "--listen", "127.0.0.1:0", "--supervisor", &uri]);
        node.says("no session with the supervisor").await;
        // Some attempts later its supervisor is there.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let mut supervisor = daemon(&["supervisor", "--listen", &address]);
        supervisor.says("supervisor up").await;
        node.says("attends the supervisor").await;
        let complaints = node.said.iter().filter(|line| line.contains("no session with")).count();
        assert_eq!(complaints, 1, "{:#?}", node.said);
        node.signal(Signal::SIGTERM);
        supervisor.signal(Signal::SIGTERM);
        assert_eq!((end(node).await.0, end(supervisor).await.0), (Some(0), Some(0)));
    })
    .await;
}

/// A configuration that launches these nodes, under a supervisor at this address.
fn launching(dir: &Path, address: &str, nodes: &[(&str, &[&str])]) -> PathBuf {
    let mut text = format!("listen = {address:?}\ndata_dir = {:?}\n", dir.join("data"));
    for (name, launch) in nodes {
        text.push_str(&format!("[[node]]\nname = {name:?}\nlaunch = {launch:?}\n"));
    }
    let path = dir.join("supervisor.toml");
    fs::write(&path, text).unwrap();
    path
}

fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn attending(fleet: &Fleet, name: &str) -> Option<v1::NodeInfo> {
    fleet.nodes.iter().filter(|n| n.attending).filter_map(|n| n.info.clone()).find(|info| info.name == name)
}

fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn launched_nodes_outlive_a_killed_supervisor_and_the_next_one_takes_them_over() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let address = free_address();
        let uri = format!("http://{address}");
        let node =
            [WARDKEEP, "serve", "node", "--name", "n", "--listen", "127.0.0.1:0", "--supervisor", &uri];
        let config = launching(dir.path(), &address, &[("n", &node)]);
        let serve = || daemon(&["supervisor", "--config", config.to_str().unwrap()]);

        let mut first = serve();
        first.says("supervisor up").await;
        let before = until(&uri, |fleet| attending(fleet, "n")).await;
        // What steers the supervisor has not reached its node, and there is one supervisor only.
        let second = daemon(&["supervisor", "--config", config.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
        let (code, said) = end(second).await;
        assert_eq!(code, Some(1));
        assert!(said.last().unwrap().contains("another supervisor uses"), "{said:#?}");

        first.signal(Signal::SIGKILL);
        end(first).await;
        assert!(lives(before.pid));
        let mut next = serve();
        next.says("is taken over").await;
        let after = until(&uri, |fleet| attending(fleet, "n")).await;
        assert_eq!((&after.boot_id, after.pid), (&before.boot_id, before.pid));

        // Its end is seen as that of a child would be.
        kill(Pid::from_raw(after.pid.cast_signed()), Signal::SIGKILL).unwrap();
        next.says("its process ended: it is gone").await;
        let anew =
            until(&uri, |fleet| attending(fleet, "n").filter(|info| info.boot_id != before.boot_id)).await;
        assert!(!next.said.iter().any(|line| line.contains("another node named")), "{:#?}", next.said);
        next.signal(Signal::SIGKILL);
        end(next).await;

        // One that was taken over is stopped with its supervisor, too.
        let mut last = serve();
        last.says("is taken over").await;
        until(&uri, |fleet| attending(fleet, "n")).await;
        last.signal(Signal::SIGTERM);
        let (code, said) = end(last).await;
        assert_eq!(code, Some(0), "{said:#?}");
        assert!(!lives(anew.pid), "{said:#?}");
        assert!(!dir.path().join("data/n.pid").exists());

        // So is one of its own.
        let mut own = serve();
        own.says("launched").await;
        let pid = until(&uri, |fleet| attending(fleet, "n")).await.pid;
        own.signal(Signal::SIGTERM);
        assert_eq!(end(own).await.0, Some(0));
        assert!(!lives(pid));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_exits_is_launched_anew_with_longer_and_longer_pauses() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let address = free_address();
        let starts = dir.path().join("starts");
        let script = format!("echo x >> {}; exit 3", starts.display());
        let nodes: [(&str, &[&str]); 2] =
            [("brief", &["sh", "-c", &script]), ("absent", &["/does/not/exist"])];
        let config = launching(dir.path(), &address, &nodes);
        let mut supervisor = daemon(&["supervisor", "--config", config.to_str().unwrap()]);
        supervisor.says("its process is started anew, in").await;
        let mut operator = operator(&format!("http://{address}")).await;
        let request = v1::WatchEventsRequest { follow: true, ..Default::default() };
        let mut events = operator.watch_events(request).await.unwrap().into_inner();
        let (mut brief, mut absent) = (Vec::new(), Vec::new());
        while brief.len() < 4 || absent.len() < 4 {
            let event = events.message().await.unwrap().unwrap();
            if event.kind() == v1::EventKind::NodeRestart {
                if event.node == "brief" { &mut brief } else { &mut absent }.push(event.text);
            }
        }
        assert!(brief.iter().all(|text| text.contains("its process ended: exit status: 3")), "{brief:?}");
        assert!(absent.iter().all(|text| text.contains("cannot start /does/not/exist")), "{absent:?}");
        assert!(brief[0].starts_with("its process is started anew: "), "{brief:?}");
        assert!(
            brief[1..].iter().all(|text| text.starts_with("its process is started anew, in ")),
            "{brief:?}"
        );
        assert!(fs::read_to_string(&starts).unwrap().lines().count() >= 4);
        // An operator sees what has never attended.
        let fleet = operator.get_fleet(v1::GetFleetRequest {}).await.unwrap().into_inner();
        let names: Vec<_> = fleet.nodes.iter().map(|n| n.info.as_ref().unwrap().name.as_str()).collect();
        assert_eq!(names, ["absent", "brief"]);
        assert!(fleet.nodes.iter().all(|n| n.verdict() == v1::Verdict::Unreachable && !n.attending));
        supervisor.signal(Signal::SIGTERM);
        assert_eq!(end(supervisor).await.0, Some(0));
    })
    .await;
}
