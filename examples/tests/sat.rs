//! Solvers race: the answer is right, and whoever nobody waits for any more is gone with all its processes.
//!
//! What needs real solvers (the packages `minisat picosat cadical cryptominisat clasp`) says so and passes where they
//! are not installed, unless `WARDKEEP_CI=1`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

mod support;

use std::{
    env,
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use support::{Hosted, in_time};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::unix::pipe,
    process::{Child, Command},
};
use tonic::{Code, Request};
use wardkeep_client::{Member, Policy, Replicated, ResponseExt as _};
use wardkeep_examples::{
    pb::{self, SolveRequest, solve_reply::Outcome, solver_client::SolverClient},
    sat::{Family, Formula, Solver},
    sat_node,
};
use wardkeep_proto::Error;

const UNSATISFIABLE: &str = "p cnf 1 2\n1 0\n-1 0\n";
/// Of a solver that never ends and has started others.
const BUSY: &str = "sleep 1000 & (sleep 1000; true) & sleep 1000";

/// A node as a process of its own. It ends with this.
struct Node {
    child: Child,
    uri: String,
}

impl Node {
    /// `dir`: for its temporary files, of which some are left when it is killed.
    async fn start(dir: &TempDir, solver: Solver, program: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sat-portfolio"));
        command.args(["node", "--until-eof", "--solver", solver.name(), "--program"]).arg(program);
        command.env_remove("WARDKEEP_SUPERVISOR").env("RUST_LOG", "error").env("TMPDIR", dir.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = in_time(60, "starting the node", lines.next_line()).await.unwrap();
        let line = line.expect("the node ended before it listened");
        let uri = format!("http://{}", line.strip_prefix("listening on ").expect(&line));
        Self { child, uri }
    }

    fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    async fn stop(mut self) {
        drop(self.child.stdin.take());
        assert!(in_time(30, "the end of the node", self.child.wait()).await.unwrap().success());
    }
}

/// Writes a program that stands in for a solver.
fn script(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A client that asks all of these at once.
fn client<'a>(nodes: impl IntoIterator<Item = (&'a str, &'a str)>) -> SolverClient<Replicated> {
    let members: Vec<_> = nodes.into_iter().map(|(name, uri)| Member::new(name, uri)).collect();
    let policy = Policy::All(u32::try_from(members.len()).unwrap());
    let replicated = Replicated::builder().members(members).methods(pb::FILE_DESCRIPTOR_SET).policy(policy);
    SolverClient::new(replicated.build().unwrap())
}

fn request(dimacs: impl Into<Vec<u8>>, seconds: u64) -> Request<SolveRequest> {
    let mut request = Request::new(SolveRequest { dimacs: dimacs.into() });
    request.set_timeout(Duration::from_secs(seconds));
    request
}

/// A pipe that programs and all they start hold open: it ends when the last of them has.
struct Held {
    path: PathBuf,
    pipe: pipe::Receiver,
}

impl Held {
    fn new(dir: &TempDir) -> Self {
        let path = dir.path().join("held");
        let _ = fs::remove_file(&path);
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let pipe = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        Self { path, pipe }
    }

    /// A program that does this while it holds the pipe; it has no version to tell.
    fn script(&self, dir: &TempDir, name: &str, text: &str) -> PathBuf {
        let held = self.path.display();
        script(dir, name, &format!("[ \"$1\" != --version ] || exit\nexec 3>'{held}'; printf x >&3\n{text}"))
    }

    /// That solver.
    fn solver(&self, dir: &TempDir, solver: Solver, first: &str) -> PathBuf {
        let program = solver.find().unwrap();
        self.script(dir, solver.name(), &format!("{first}\nexec '{}' \"$@\"", program.display()))
    }

    /// So many run.
    async fn run(&mut self, programs: usize) {
        in_time(60, "starting the solvers", self.pipe.read_exact(&mut vec![0; programs])).await.unwrap();
    }

    async fn gone(mut self, why: &str) {
        let mut more = Vec::new();
        in_time(10, &format!("the end of the solvers when {why}"), self.pipe.read_to_end(&mut more))
            .await
            .unwrap();
        assert_eq!(more, b"", "another has begun");
    }
}

/// False, and a line that says so, where these are not installed.
fn installed(solvers: &[Solver]) -> bool {
    let missing: Vec<_> = solvers.iter().filter(|s| s.find().is_none()).map(|s| s.name()).collect();
    if missing.is_empty() {
        return true;
    }
    let why = format!("no SAT solver installed, or not all that this needs: {}", missing.join(" "));
    assert!(env::var_os("WARDKEEP_CI").is_none_or(|value| value != "1"), "{why}");
    eprintln!("skipped: {why}");
    false
}

#[tokio::test]
async fn the_first_answer_wins_and_the_process_groups_of_the_others_are_gone() {
    if !installed(&[Solver::Minisat, Solver::Cadical, Solver::Cryptominisat]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // The one that sees through parity begins when all three are at it: whoever loses has begun, too.
    let gate = dir.path().join("gate");
    mkfifo(&gate, Mode::S_IRWXU).unwrap();
    let mut held = Held::new(&dir);
    let program = held.solver(&dir, Solver::Cryptominisat, &format!("read -r _ <'{}'", gate.display()));
    let winner = Node::start(&dir, Solver::Cryptominisat, &program).await;
    let minisat = Node::start(&dir, Solver::Minisat, &held.solver(&dir, Solver::Minisat, "")).await;
    let cadical = Node::start(&dir, Solver::Cadical, &held.solver(&dir, Solver::Cadical, "")).await;

    let instance = Family::Parity.make(60, 1);
    let nodes = [("minisat", &*minisat.uri), ("cryptominisat", &*winner.uri), ("cadical", &*cadical.uri)];
    let mut client = client(nodes);
    let race = client.solve(request(instance.formula.to_dimacs(), 240));
    let open = async {
        held.run(3).await;
        let mut gate = OpenOptions::new().read(true).write(true).open(&gate).unwrap();
        gate.write_all(b"go\n").unwrap();
        gate
    };
    let (reply, _gate) = in_time(300, "the race", async { tokio::join!(race, open) }).await;
    let reply = reply.unwrap();
    assert_eq!(reply.winner().unwrap().node, "cryptominisat");
    assert_eq!(Some(reply.get_ref().outcome() == Outcome::Satisfiable), instance.satisfiable);
    held.gone("one has won").await;
    for node in [minisat, winner, cadical] {
        node.stop().await;
    }
}

#[tokio::test]
async fn nothing_of_a_solver_is_left_when_its_caller_leaves_its_time_is_up_or_its_node_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    for way in ["the caller leaves", "its time is up", "the node ends", "the node is killed"] {
        let mut held = Held::new(&dir);
        let program = held.script(&dir, "busy", BUSY);
        let mut node = Node::start(&dir, Solver::Picosat, &program).await;
        let (pid, uri) = (node.pid(), node.uri.clone());
        let mut client = client([("busy", &*uri)]);
        let seconds = if way == "its time is up" { 10 } else { 600 };
        let mut call = Box::pin(client.solve(request(UNSATISFIABLE, seconds)));
        tokio::select! {
            () = held.run(1) => {}
            ended = &mut call => panic!("{way}: it has ended before: {ended:?}"),
        };
        match way {
            "the caller leaves" => drop(call),
            "its time is up" => {
                let status = in_time(60, way, call).await.unwrap_err();
                assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
            }
            "the node ends" => {
                drop(node.child.stdin.take());
                assert!(in_time(60, way, call).await.is_err());
            }
            _ => {
                kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
                assert!(in_time(60, way, call).await.is_err());
                in_time(10, way, node.child.wait()).await.unwrap();
            }
        }
        held.gone(way).await;
        if node.child.try_wait().unwrap().is_none() {
            node.stop().await;
        }
    }
}

#[tokio::test]
async fn a_solver_that_lies_gives_up_or_fails_is_a_well_formed_error_and_beats_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let honest = script(&dir, "honest", "echo 's UNSATISFIABLE'\nexit 20");
    let honest = Hosted::start(sat_node::builder("honest", Solver::Clasp, honest).await).await;
    for (at, (does, code, kind)) in [
        ("echo 's SATISFIABLE'\necho 'v 1 0'\nexit 10", Code::DataLoss, "WRONG_MODEL"),
        ("echo 's SATISFIABLE'\necho 'v 1 -1 0'\nexit 10", Code::DataLoss, "WRONG_MODEL"),
        ("echo 's SATISFIABLE'\nexit 20", Code::Aborted, "NO_ANSWER"),
        ("head -c 100000 /dev/urandom\nexit 10", Code::Aborted, "NO_ANSWER"),
        ("echo 's UNKNOWN'\nexit 0", Code::Aborted, "NO_ANSWER"),
        ("echo 'out of memory' >&2\nexit 1", Code::Aborted, "NO_ANSWER"),
        ("kill -s KILL $$", Code::Aborted, "NO_ANSWER"),
    ]
    .into_iter()
    .enumerate()
    {
        let program = script(&dir, &format!("bad-{at}"), does);
        let bad = Hosted::start(sat_node::builder("bad", Solver::Cadical, program).await).await;
        let alone = client([("bad", &*bad.uri())]).solve(request(UNSATISFIABLE, 60)).await.unwrap_err();
        let error = Error::from_status(&alone);
        // Sent to all there are, which is one: the client's list of attempts names it.
        assert!(!error.is_malformed(), "{does}: {error:?}");
        assert!(error.what().contains(kind) || error.kind() == kind, "{does}: {error:?}");
        assert_eq!(alone.code(), code, "{does}: {error:?}");
        let both = client([("bad", &*bad.uri()), ("honest", &*honest.uri())]);
        let reply = { both }.solve(request(UNSATISFIABLE, 60)).await.unwrap();
        assert_eq!(reply.winner().unwrap().node, "honest", "{does}");
        assert_eq!(reply.get_ref().outcome(), Outcome::Unsatisfiable, "{does}");
        bad.stop().await;
    }
    let refused =
        client([("honest", &*honest.uri())]).solve(request("p cnf 1 2\n1 0\n", 60)).await.unwrap_err();
    let error = Error::from_status(&refused);
    assert_eq!((refused.code(), error.kind()), (Code::InvalidArgument, "BAD_FORMULA"), "{error:?}");
    honest.stop().await;
}

#[tokio::test]
async fn all_solvers_say_the_same_and_what_is_known() {
    if !installed(&Solver::ALL) {
        return;
    }
    let mut nodes = Vec::new();
    for (solver, program) in Solver::installed() {
        nodes.push((solver, Hosted::start(sat_node::builder(solver.name(), solver, program).await).await));
    }
    let mut instances: Vec<_> = (0..6).map(|seed| Family::Random.make(60, seed)).collect();
    instances.extend(
        [(Family::Planted, 80), (Family::Pigeonhole, 5), (Family::Parity, 12)].map(|(f, s)| f.make(s, 1)),
    );
    for mut instance in instances {
        for (solver, node) in &nodes {
            let mut client = client([(solver.name(), &*node.uri())]);
            let reply = client.solve(request(instance.formula.to_dimacs(), 120)).await.unwrap().into_inner();
            let says = reply.outcome() == Outcome::Satisfiable;
            let known = *instance.satisfiable.get_or_insert(says);
            assert_eq!(known, says, "{solver} on {instance}");
            assert!(
                !says || instance.formula.unsatisfied_by(&reply.model).is_none(),
                "{solver} on {instance}"
            );
            assert_eq!(reply.solver, solver.name());
            assert_eq!(reply.version.is_empty(), *solver == Solver::Minisat, "{solver}: {}", reply.version);
        }
    }
    for (_, node) in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_large_formula_is_sent_and_its_model_comes_back() {
    if !installed(&[Solver::Cadical]) {
        return;
    }
    let program = Solver::Cadical.find().unwrap();
    let node = Hosted::start(sat_node::builder("cadical", Solver::Cadical, program).await).await;
    // More than what gRPC allows by default, both ways.
    let variables = 1_200_000;
    let formula = Formula::new((1..variables).map(|v| [-v, v + 1]));
    let dimacs = formula.to_dimacs();
    assert!(dimacs.len() > 16 << 20);
    let members = [Member::new("cadical", node.uri())];
    let replicated = Replicated::builder().members(members).methods(pb::FILE_DESCRIPTOR_SET);
    let replicated = replicated.max_request_bytes(sat_node::MOST_REQUEST_BYTES).build().unwrap();
    let client = SolverClient::new(replicated).max_decoding_message_size(sat_node::MOST_REPLY_BYTES);
    let reply = { client }.solve(request(dimacs, 240)).await.unwrap().into_inner();
    assert_eq!(formula.unsatisfied_by(&reply.model), None);
    node.stop().await;
}

async fn command(args: &[&str], path: Option<&str>) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sat-portfolio"));
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let output = in_time(240, "the command", command.output()).await.unwrap();
    let told =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, told)
}

#[tokio::test]
async fn the_command_tells_who_won_and_what_became_of_the_others() {
    if !installed(&Solver::ALL) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (family, size, code, verdict) in
        [(Family::Planted, 100, 10, "s SATISFIABLE\nv "), (Family::Pigeonhole, 6, 20, "s UNSATISFIABLE\nc ")]
    {
        let file = dir.path().join("formula.cnf");
        fs::write(&file, family.make(size, 1).formula.to_dimacs()).unwrap();
        let (output, told) = command(&["race", file.to_str().unwrap(), "--model"], None).await;
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.starts_with(verdict), "{told}");
        assert_eq!((told.matches(" won").count(), told.matches(" lost").count()), (1, 4), "{told}");
    }
    let (output, told) = command(&["table", "--sizes", "1", "--seconds", "60"], None).await;
    assert!(output.status.success(), "{told}");
    assert!(told.contains("4 of 4 solved") && told.contains(": all at once"), "{told}");
}

#[tokio::test]
async fn bad_use_is_told_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().to_str().unwrap();
    let file = dir.path().join("formula.cnf");
    fs::write(&file, UNSATISFIABLE).unwrap();
    for (args, line) in [
        (&["race", file.to_str().unwrap()][..], "no SAT solver is installed: apt-get install minisat"),
        (&["table"], "no SAT solver is installed: apt-get install minisat"),
        (&["race", "/no/such/file"], "/no/such/file: No such file"),
        (&["node", "--solver", "minisat"], "minisat is not installed: apt-get install minisat"),
    ] {
        let (output, told) = command(args, Some(empty)).await;
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.starts_with(&format!("sat-portfolio: {line}")) && told.lines().count() == 1, "{told}");
    }
}
