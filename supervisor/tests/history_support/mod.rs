//! A supervisor and a node as processes of their own, with wards that write down each of their
//! starts, and a look into the history's file.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

#[path = "../binary/mod.rs"]
pub mod binary;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use binary::{Daemon, wardkeep};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rusqlite::{Connection, OpenFlags};
use wardkeep_proto::v1::{self, Fleet, WardState, operator_client::OperatorClient};

/// A hang is a failure.
const PATIENCE: Duration = Duration::from_secs(120);

pub async fn within<T>(test: impl Future<Output = T>) -> T {
    tokio::select! {
        done = test => done,
        // Not a timeout around it: what is dropped by this panic can tell how far it was.
        () = tokio::time::sleep(PATIENCE) => panic!("the test hangs"),
    }
}

/// One supervisor's data, and one node with two wards.
pub struct Site {
    pub dir: tempfile::TempDir,
    pub address: String,
}

pub const VICTIM: &str = "victim";
pub const BYSTANDER: &str = "bystander";

impl Site {
    /// `group`: more of the group's settings.
    pub fn new(group: &str) -> Self {
        Self::grouped(group, "h")
    }

    /// The bystander is in this group.
    pub fn grouped(group: &str, bystander: &str) -> Self {
        Self::of(&format!("[[group]]\nname = \"g\"\n{group}\n"), ["g", bystander])
    }

    /// With these groups, and the two wards in two of them.
    pub fn of(groups: &str, of_wards: [&str; 2]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let data = dir.path().join("data");
        let config = format!(
            "listen = {address:?}\ndata_dir = {data:?}\npulse_interval = \"50ms\"\nmandate_grace = \"10m\"\n{groups}"
        );
        fs::write(dir.path().join("supervisor.toml"), config).unwrap();
        let mut config = "name = \"n\"\n".to_owned();
        for (ward, group) in [VICTIM, BYSTANDER].into_iter().zip(of_wards) {
            let script = format!("echo $$ >> {}; exec sleep 1000", dir.path().join(ward).display());
            config.push_str(&format!(
                "[[ward]]\nname = {ward:?}\ngroup = {group:?}\nrestart = \"transient\"\ngrace = \"1s\"\n\
                 command = [\"sh\", \"-c\", {script:?}]\n"
            ));
        }
        fs::write(dir.path().join("node.toml"), config).unwrap();
        Self { dir, address }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join("data/history.db")
    }

    pub async fn supervisor(&self, env: &[(&str, &str)]) -> Daemon {
        let mut daemon = Daemon::start(&["supervisor", "--config", &self.path("supervisor.toml")], env);
        daemon.says("supervisor up").await;
        daemon
    }

    pub async fn node(&self) -> Daemon {
        let (config, uri) = (self.path("node.toml"), self.uri());
        let args = ["node", "--config", &config, "--listen", "127.0.0.1:0", "--supervisor", &uri];
        let mut daemon = Daemon::start(&args, &[]);
        daemon.says("attends the supervisor").await;
        daemon
    }

    /// PIDs of a ward's incarnations, as it wrote them down.
    pub fn starts(&self, ward: &str) -> Vec<i32> {
        let text = fs::read_to_string(self.dir.path().join(ward)).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// The present incarnation dies.
    pub fn crash(&self, ward: &str) {
        kill(Pid::from_raw(*self.starts(ward).last().unwrap()), Signal::SIGKILL).unwrap();
    }

    pub async fn operator(&self) -> OperatorClient<tonic::transport::Channel> {
        binary::operator(&self.uri()).await
    }

    /// Waits until the picture is as wanted.
    pub async fn until<T>(&self, seen: impl Fn(&Fleet) -> Option<T>) -> T {
        binary::until(&self.uri(), seen).await
    }

    /// Waits until a ward is as wanted.
    pub async fn ward(&self, name: &str, seen: impl Fn(&v1::Ward) -> bool) -> v1::Ward {
        let named = |ward: &&v1::Ward| ward.spec.as_ref().unwrap().name == name;
        self.until(|fleet| fleet.wards.iter().find(named).filter(|ward| seen(ward)).cloned()).await
    }

    /// Waits until it runs in this incarnation, and has written so.
    pub async fn runs(&self, name: &str, incarnation: u64) {
        self.ward(name, |w| w.state() == WardState::Running && w.incarnation == incarnation).await;
        let mut look = tokio::time::interval(Duration::from_millis(10));
        while (self.starts(name).len() as u64) < incarnation {
            look.tick().await;
        }
    }

    /// Waits until nothing is open, and until the node has reported some times since.
    pub async fn rests(&self) {
        let mut look = tokio::time::interval(Duration::from_millis(20));
        while self.count("intent WHERE closed_at IS NULL") > 0 {
            look.tick().await;
        }
        let report = |fleet: &Fleet| fleet.nodes.iter().find(|n| n.attending).and_then(|n| n.last_report_at);
        for _ in 0..5 {
            let before = self.until(report).await;
            self.until(|fleet| report(fleet).filter(|at| *at != before)).await;
        }
    }

    /// Waits until it is in the file.
    pub async fn written(&self, from: &str) {
        let mut look = tokio::time::interval(Duration::from_millis(10));
        while self.count(from) == 0 {
            look.tick().await;
        }
    }

    pub async fn picture(&self) -> Fleet {
        self.until(|fleet| Some(fleet.clone())).await
    }

    pub async fn events(&self) -> Vec<v1::Event> {
        binary::events(&self.uri()).await
    }

    /// Runs a command against it: exit code, stdout, stderr.
    pub async fn command(&self, args: &[&str]) -> (i32, String, String) {
        let output = wardkeep().args(args).args(["--supervisor", &self.uri()]).output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    // --- the file ---

    /// How many rows `SELECT count(*) FROM ...` finds.
    pub fn count(&self, from: &str) -> i64 {
        self.ask(&format!("SELECT count(*) FROM {from}"))
    }

    pub fn ask<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        look_into(&self.file()).query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// The file is sound, and no event is missing.
    pub fn is_whole(&self) {
        assert_eq!(self.ask::<String>("PRAGMA integrity_check"), "ok");
        let gap = self.count("event WHERE sequence > 1 AND sequence - 1 NOT IN (SELECT sequence FROM event)");
        assert_eq!((gap, self.ask::<i64>("SELECT min(sequence) FROM event")), (0, 1));
    }
}

/// What a test that failed leaves for whoever reads its output.
impl Drop for Site {
    fn drop(&mut self) {
        if !std::thread::panicking() || !self.file().exists() {
            return;
        }
        let db = look_into(&self.file());
        for sql in [
            "SELECT sequence || ' ' || strftime('%M:%f', at / 1000.0, 'unixepoch') || ' ' || node || '/' || ward || ' ' || text
             FROM event ORDER BY sequence DESC LIMIT 60",
            "SELECT 'intent ' || id || ' ' || aim || ' ' || ward || ' ' || incarnation || ' ' || coalesce(outcome, 'OPEN')
             FROM intent ORDER BY id DESC LIMIT 20",
            "SELECT 'hold ' || node || '/' || ward || ' ' || quarantined FROM hold",
        ] {
            let mut rows = db.prepare(sql).unwrap();
            let lines: Vec<String> = rows.query_map([], |row| row.get(0)).unwrap().flatten().collect();
            lines.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        for ward in [VICTIM, BYSTANDER] {
            eprintln!("{ward} was started as {:?}", self.starts(ward));
        }
    }
}

fn look_into(path: &Path) -> Connection {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    db.busy_timeout(Duration::from_secs(5)).unwrap();
    db
}
