//! `wardkeep config apply` with real daemons: files are edited, shown, applied; what has not changed goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod history_support;

use std::{fs, path::PathBuf, time::Duration};

use history_support::{
    binary::{self, Daemon, WARDKEEP, wardkeep},
    within,
};
use wardkeep_proto::v1::{self, Fleet, WardState};

struct Site {
    dir: tempfile::TempDir,
    address: String,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        Self { dir, address }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// `more`: after what every supervisor here has.
    fn write_supervisor(&self, more: &str) {
        let data = self.path("data");
        let own = format!("listen = {:?}\ndata_dir = {data:?}\npulse_interval = \"50ms\"\n", self.address);
        self.write("supervisor.toml", &(own + more));
    }

    async fn supervisor(&self) -> Daemon {
        let config = self.path("supervisor.toml");
        let mut daemon = Daemon::start(&["supervisor", "--config", config.to_str().unwrap()], &[]);
        daemon.says("supervisor up").await;
        daemon
    }

    async fn node(&self) -> Daemon {
        let (config, uri) = (self.path("node.toml"), self.uri());
        let config = config.to_str().unwrap();
        let args = ["node", "--config", config, "--listen", "127.0.0.1:0", "--supervisor", &uri];
        let mut daemon = Daemon::start(&args, &[]);
        daemon.says("attends the supervisor").await;
        daemon
    }

    /// A ward that writes down its starts, and that it was stopped.
    fn ward(&self, name: &str, keys: &str) -> String {
        let dir = self.dir.path().display();
        let script = format!(
            "echo $$ >> {dir}/{name}; trap 'echo {name} >> {dir}/stopped; exit 0' TERM; sleep 1000 & wait"
        );
        format!("[[ward]]\nname = {name:?}\ncommand = [\"sh\", \"-c\", {script:?}]\n{keys}\n")
    }

    fn lines(&self, file: &str) -> Vec<String> {
        fs::read_to_string(self.path(file)).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Exit code, stdout, stderr.
    async fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = wardkeep().args(args).args(["--supervisor", &self.uri()]).output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    async fn until<T>(&self, seen: impl Fn(&Fleet) -> Option<T>) -> T {
        binary::until(&self.uri(), seen).await
    }

    /// Waits until so many wards run, and have written so.
    async fn all_run(&self, names: &[&str]) {
        let running = |fleet: &Fleet| {
            let runs = |ward: &&v1::Ward| ward.state() == WardState::Running;
            fleet.wards.iter().filter(runs).count() == names.len()
        };
        self.until(|fleet| running(fleet).then_some(())).await;
        let mut look = tokio::time::interval(Duration::from_millis(10));
        while names.iter().any(|name| self.lines(name).is_empty()) {
            look.tick().await;
        }
    }

    async fn events(&self) -> Vec<v1::Event> {
        binary::events(&self.uri()).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_nodes_file_only_what_has_changed_restarts() {
    within(async {
        let site = Site::new();
        site.write_supervisor("");
        let before = ["same", "policy", "env", "old", "older", "program"]
            .map(|name| site.ward(name, "grace = \"9s\""));
        site.write("node.toml", &format!("name = \"n\"\n{}", before.concat()));
        let (_supervisor, _node) = (site.supervisor().await, site.node().await);
        site.all_run(&["same", "policy", "env", "old", "older", "program"]).await;
        let (code, told, _) = site.run(&["config", "apply", "n", "--dry-run"]).await;
        assert_eq!((code, told.as_str()), (0, "n: nothing has changed\n"));

        let after = [
            site.ward("same", "grace = \"9000ms\""),
            site.ward("policy", "grace = \"10s\"\ngroup = \"g\"\nrestart = \"transient\""),
            site.ward("env", "grace = \"9s\"\nenv = { TOKEN = \"hush\" }"),
            site.ward("program", "grace = \"9s\"").replace("sleep 1000", "sleep 2000"),
            site.ward("new", ""),
        ];
        let group = "[[group]]\nname = \"g\"\nintensity = 3\n";
        site.write("node.toml", &format!("name = \"n\"\n{group}{}", after.concat()));
        let (code, told, _) = site.run(&["config", "apply", "--dry-run", "n"]).await;
        assert_eq!(code, 0);
        let told: Vec<_> = told.lines().filter(|line| !line.contains("program: command")).collect();
        assert_eq!(
            told,
            [
                "n: + group g",
                "n: ward policy: grace 9s -> 10s",
                "n: ward policy: group the node's own -> g",
                "n: ward policy: restart permanent -> transient",
                "n: ward env: env.TOKEN is new (restarts)",
                "n: + ward new (is started)",
                "n: - ward older (is stopped)",
                "n: - ward old (is stopped)",
            ]
        );
        let (code, _, error) = site.run(&["config", "apply", "n"]).await;
        assert_eq!(code, 2);
        assert!(error.ends_with("no terminal is here: pass -y\n"), "{error}");
        assert_eq!(
            (site.lines("env").len(), site.lines("new").len(), site.lines("stopped").len()),
            (1, 0, 0)
        );

        let (code, told, error) = site.run(&["config", "apply", "n", "-y", "--reason", "tidy up"]).await;
        assert_eq!(code, 0, "{error}");
        assert!(told.starts_with("n: 9 changes applied, 2 wards restarted, "), "{told}");
        site.all_run(&["same", "policy", "env", "program", "new"]).await;
        let starts =
            ["same", "policy", "env", "old", "older", "program", "new"].map(|name| site.lines(name).len());
        assert_eq!(starts, [1, 1, 2, 1, 1, 2, 1]);
        assert_eq!(site.lines("stopped"), ["older", "old", "env", "program"]);
        let fleet = site.until(|fleet| Some(fleet.clone())).await;
        let wards: Vec<_> =
            fleet.wards.iter().map(|w| (w.spec.as_ref().unwrap().name.as_str(), w.incarnation)).collect();
        assert_eq!(wards, [("same", 1), ("policy", 1), ("env", 2), ("program", 2), ("new", 1)]);
        let group = fleet.groups.iter().find(|group| group.spec.as_ref().unwrap().name == "g").unwrap();
        assert_eq!(
            (group.spec.as_ref().unwrap().intensity, group.members.as_slice()),
            (3, &["n/policy".to_owned()][..])
        );

        let events = site.events().await;
        let of_config: Vec<_> =
            events.iter().filter(|e| e.text.starts_with("configuration applied: ")).collect();
        assert_eq!(of_config.len(), 9);
        assert!(of_config.iter().all(|e| e.actor.contains('@') && e.node == "n"), "{of_config:?}");
        assert!(
            of_config
                .iter()
                .any(|e| e.text.contains("ward policy: grace 9s -> 10s: ") && e.text.ends_with("tidy up"))
        );
        assert!(!events.iter().any(|e| e.text.contains("hush")));
        let (code, told, _) = site.run(&["config", "apply", "-y"]).await;
        assert_eq!((code, told.as_str()), (0, "supervisor: nothing has changed\nn: nothing has changed\n"));
        // It is healed as it is described now.
        let (code, told, error) = site.run(&["ward", "restart", "program", "-y"]).await;
        assert!(code == 0 && told.contains("incarnation 2 -> 3"), "{told}{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_applied_changes_nothing_and_is_told_by_line_and_key() {
    within(async {
        let site = Site::new();
        site.write_supervisor("");
        site.write("node.toml", &format!("name = \"n\"\n{}", site.ward("a", "")));
        let (_supervisor, _node) = (site.supervisor().await, site.node().await);
        site.all_run(&["a"]).await;
        let file = site.path("node.toml").display().to_string();
        let changed = site.ward("a", "env = { X = \"1\" }");
        for (text, says) in [
            (format!("name = \"n\"\n{changed}grcae = \"1s\"\n"), format!("{file}:6: unknown field `grcae`")),
            (
                format!("{changed}[[ward]]\nname = \"b\"\ncommand = []\n"),
                format!("{file}:5: ward b: command names no program"),
            ),
            (format!("{changed}{changed}"), format!("{file}:5: two wards are named a")),
            (format!("{changed}[[ward]]\nname = \"a/b\"\ncommand = [\"x\"]\n"), "slash".to_owned()),
            (
                format!("name = \"n\"\nzone = \"z\"\n{changed}"),
                "nothing was changed: zone cannot be changed while it runs: restart the node".to_owned(),
            ),
        ] {
            site.write("node.toml", &text);
            let (code, told, error) = site.run(&["config", "apply", "n", "-y"]).await;
            assert_eq!((code, told.as_str(), error.lines().count()), (2, "", 1), "{error}");
            assert!(error.contains(&says), "{says}: {error}");
        }
        let (code, told, _) = site.run(&["config", "apply", "n", "--dry-run", "-o", "json"]).await;
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!((code, &told["schema"]), (0, &"wardkeep.config_diffs/v1".into()));
        let effects: Vec<_> =
            told["targets"][0]["changes"].as_array().unwrap().iter().map(|c| &c["effect"]).collect();
        assert_eq!(effects, ["refused", "restarts"]);
        fs::remove_file(&file).unwrap();
        let (code, _, error) = site.run(&["config", "apply", "-y"]).await;
        assert!(code == 2 && error.contains("cannot read") && error.contains(&file), "{error}");
        assert_eq!(site.lines("a").len(), 1);
        assert!(site.run(&["config", "apply", "nobody", "-y"]).await.0 == 4);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_takes_groups_limits_and_launches_from_its_file() {
    within(async {
        let site = Site::new();
        let uri = site.uri();
        let launch = |name: &str| {
            let line =
                [WARDKEEP, "serve", "node", "--name", name, "--listen", "127.0.0.1:0", "--supervisor", &uri];
            format!("[[node]]\nname = {name:?}\nlaunch = {line:?}\n")
        };
        let group = |intensity: u32| format!("[[group]]\nname = \"g\"\nintensity = {intensity}\n");
        site.write_supervisor(&(group(5) + &launch("one")));
        let mut supervisor = site.supervisor().await;
        let attends = |name: &'static str| {
            move |fleet: &Fleet| {
                let named = |n: &&v1::Node| n.attending && n.info.as_ref().unwrap().name == name;
                fleet.nodes.iter().find(named).cloned()
            }
        };
        let one = site.until(attends("one")).await;
        assert_eq!(one.launcher, "process");

        let history = "[history]\nmax_bytes = \"64MiB\"\n";
        site.write_supervisor(&format!("relaunch_after = \"1m\"\n{history}{}{}", group(3), launch("two")));
        let (code, told, error) = site.run(&["config", "apply", "-y"]).await;
        assert_eq!(code, 0, "{error}");
        assert!(told.starts_with("supervisor: 5 changes applied, nothing restarted, "), "{told}");
        for line in [
            "supervisor: relaunch_after 15s -> 1m",
            "supervisor: history.max_bytes 268435456 -> 67108864",
            "supervisor: group g: intensity 5 -> 3",
            "supervisor: + node two (is launched)",
            "supervisor: - node one (goes on if it runs; nobody launches it any more)",
        ] {
            assert!(error.lines().any(|told| told == line), "{line}: {error}");
        }
        let two = site.until(attends("two")).await;
        let fleet = site.until(|fleet| Some(fleet.clone())).await;
        let spec = fleet
            .groups
            .iter()
            .filter_map(|group| group.spec.as_ref())
            .find(|spec| spec.name == "g")
            .unwrap();
        assert_eq!(spec.intensity, 3);
        assert_eq!(fleet.supervisor.as_ref().unwrap().history.as_ref().unwrap().max_bytes, 64 << 20);
        let again = site.until(attends("one")).await;
        assert_eq!(
            (again.launcher.as_str(), &again.info.unwrap().boot_id),
            ("", &one.info.as_ref().unwrap().boot_id)
        );

        // One that comes back into the file is the one that runs.
        site.write_supervisor(&(launch("one") + &launch("two")));
        assert_eq!(site.run(&["config", "apply", "supervisor", "-y"]).await.0, 0);
        let again = site.until(|fleet| attends("one")(fleet).filter(|node| node.launcher == "process")).await;
        assert_eq!(again.info.unwrap().pid, one.info.unwrap().pid);

        site.write_supervisor("pulse_interval = \"1s\"\n");
        let (code, _, error) = site.run(&["config", "apply", "supervisor", "-y"]).await;
        assert!(code == 2 && error.contains(":4: duplicate key"), "{error}");
        site.write_supervisor("insecure = true\n");
        let (code, _, error) = site.run(&["config", "apply", "supervisor", "-y"]).await;
        assert!(
            code == 2 && error.contains("insecure cannot be changed while it runs: restart the supervisor"),
            "{error}"
        );
        // Both are its children still, and end with it.
        supervisor.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(supervisor.ended().await.code(), Some(0));
        for pid in [pid_of(&two), pid_of(&node_one(&fleet))] {
            assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
        }
    })
    .await;
}

fn pid_of(node: &v1::Node) -> u32 {
    node.info.as_ref().unwrap().pid
}

fn node_one(fleet: &Fleet) -> v1::Node {
    fleet.nodes.iter().find(|node| node.info.as_ref().unwrap().name == "one").unwrap().clone()
}
