//! The launcher on an engine that is made up here, and on a real one where there is one.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use super::{super::How, *};

const PATIENCE: Duration = Duration::from_secs(30);

fn launch(container: &str, socket: &Path) -> Launch {
    Launch {
        node: "n".to_owned(),
        how: How::Docker { timeout: PATIENCE },
        program: container.into(),
        args: Vec::new(),
        env: BTreeMap::new(),
        socket: socket.to_owned(),
    }
}

/// What the made-up engine has: one container, `c`.
#[derive(Debug, Default)]
struct State {
    status: &'static str,
    starts: u32,
    /// So many containers have the label `a=b`.
    labelled: usize,
    /// Exit codes of `c` that it has to tell.
    ends: Vec<i32>,
    /// It takes requests and does not answer.
    mute: bool,
    asked: Vec<String>,
    stop: bool,
}

struct Fake {
    dir: tempfile::TempDir,
    state: Arc<Mutex<State>>,
    serving: Option<JoinHandle<()>>,
}

impl Fake {
    fn new(state: State) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("engine.sock")).unwrap();
        let state = Arc::new(Mutex::new(state));
        let of_engine = state.clone();
        let serving = std::thread::spawn(move || serve(&listener, &of_engine));
        Self { dir, state, serving: Some(serving) }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("engine.sock")
    }

    async fn run(&self, container: &str, patience: Duration) -> Result<String, String> {
        timeout(2 * PATIENCE, run(launch(container, &self.socket()), patience)).await.expect("it hangs")
    }

    /// What was asked that changes something.
    fn told(&self) -> Vec<String> {
        let asked = self.state.lock().unwrap().asked.clone();
        asked
            .into_iter()
            .filter_map(|line| line.strip_prefix("POST /containers/").map(str::to_owned))
            .collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.state.lock().unwrap().stop = true;
        let _ = UnixStream::connect(self.socket());
        self.serving.take().map(JoinHandle::join);
    }
}

fn serve(listener: &UnixListener, state: &Mutex<State>) {
    let mut unanswered = Vec::new();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut state = state.lock().unwrap();
        if state.stop {
            return;
        }
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        // Whoever only looks whether someone listens says nothing.
        let Some(request) = lines.next() else { continue };
        lines.by_ref().take_while(|line| !line.is_empty()).for_each(drop);
        if state.mute {
            unanswered.push(stream);
            continue;
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let path = path.split('?').next().unwrap();
        let known = ["/version", "/containers", "/events"];
        let path = known.iter().find_map(|of| path.find(of)).map_or(path, |at| &path[at..]);
        let asked = format!("{method} {path}");
        let (code, body) = answer(&mut state, &asked);
        state.asked.push(asked);
        let head = format!("HTTP/1.1 {code} x\r\nContent-Type: application/json\r\nConnection: close\r\n");
        let length = if code == 204 || code == 304 {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        let _ = write!(stream, "{head}{length}\r\n{body}");
    }
}

fn answer(state: &mut State, asked: &str) -> (u16, String) {
    match asked {
        "GET /version" => (200, r#"{"ApiVersion":"1.41","MinAPIVersion":"1.12"}"#.to_owned()),
        "GET /events" => {
            let actor =
                |code| format!(r#"{{"ID":"c","Attributes":{{"name":"box-1","a":"b","exitCode":"{code}"}}}}"#);
            let event = |code| format!(r#"{{"Type":"container","Action":"die","Actor":{}}}"#, actor(code));
            (200, state.ends.drain(..).map(event).collect::<Vec<_>>().join("\n"))
        }
        "GET /containers/json" => {
            let one = format!(r#"{{"Id":"c{}"}}"#, "0".repeat(63));
            (200, format!("[{}]", vec![one; state.labelled].join(",")))
        }
        "GET /containers/c/json" | "GET /containers/c00000000000/json" => {
            let (running, paused) = (state.status != "exited", state.status == "paused");
            let (status, starts) = (state.status, state.starts);
            let started = format!("2026-01-01T00:00:{starts:02}Z");
            let state = format!(
                r#"{{"Status":"{status}","Running":{running},"Paused":{paused},"StartedAt":"{started}"}}"#
            );
            (200, format!(r#"{{"Id":"c","State":{state}}}"#))
        }
        _ if !asked.starts_with("POST /containers/c") => {
            (404, r#"{"message":"No such container:\n x"}"#.to_owned())
        }
        _ => {
            match (asked.rsplit('/').next().unwrap(), state.status) {
                ("unpause", "paused") => state.status = "running",
                ("kill", "running") => state.status = "exited",
                ("start", "exited") => (state.status, state.starts) = ("running", state.starts + 1),
                ("start", "running") => return (304, String::new()),
                (what, status) => return (409, format!(r#"{{"message":"cannot {what} what is {status}"}}"#)),
            }
            (204, String::new())
        }
    }
}

#[tokio::test]
async fn a_container_runs_anew_afterwards_however_it_was() {
    for (status, told, says) in [
        ("exited", &["c/start"][..], "container c was started, in "),
        ("running", &["c/kill", "c/start"], "container c was killed and started, in "),
        (
            "paused",
            &["c/unpause", "c/kill", "c/start"],
            "container c was paused: thawed, killed and started, in ",
        ),
    ] {
        let fake = Fake::new(State { status, ..State::default() });
        let done = fake.run("c", PATIENCE).await.unwrap();
        assert!(done.starts_with(says), "{done}");
        assert_eq!(fake.told(), told);
        assert_eq!(fake.state.lock().unwrap().starts, 1);
    }
}

#[tokio::test]
async fn a_label_means_the_one_container_that_has_it() {
    let fake = Fake::new(State { status: "exited", labelled: 1, ..State::default() });
    fake.run("a=b", PATIENCE).await.unwrap();
    assert_eq!(fake.told(), ["c00000000000/start"]);
    for (labelled, says) in [(0, "no container has the label a=b"), (2, "2 containers have the label a=b: ")]
    {
        let fake = Fake::new(State { status: "exited", labelled, ..State::default() });
        let error = fake.run("a=b", PATIENCE).await.unwrap_err();
        assert!(error.starts_with(says), "{error}");
        assert!(fake.told().is_empty());
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_in_one_line() {
    let fake = Fake::new(State { status: "exited", ..State::default() });
    let at = fake.socket().display().to_string();
    let unknown = fake.run("x", PATIENCE).await.unwrap_err();
    assert_eq!(unknown, format!("container x: the engine at {at} says: No such container: x"));

    let nowhere = fake.dir.path().join("nowhere");
    let missing = run(launch("c", &nowhere), PATIENCE).await.unwrap_err();
    let wanted = format!("the container engine at {} cannot be reached: No such file", nowhere.display());
    assert!(missing.starts_with(&wanted) && missing.ends_with("(is it mounted here?)"), "{missing}");

    let deaf = fake.dir.path().join("deaf");
    drop(UnixListener::bind(&deaf).unwrap());
    let refused = run(launch("c", &deaf), PATIENCE).await.unwrap_err();
    assert!(refused.contains("cannot be reached: Connection refused"), "{refused}");
}

#[tokio::test]
async fn an_engine_that_does_not_answer_is_waited_for_only_so_long() {
    let fake = Fake::new(State { mute: true, ..State::default() });
    let error = fake.run("c", Duration::from_millis(300)).await.unwrap_err();
    let at = fake.socket().display().to_string();
    assert_eq!(error, format!("container c: the engine at {at} was not done after 300ms"));
}

/// What is told of the next end, if that is soon.
async fn told_of(launches: Vec<Launch>) -> Option<(String, String)> {
    let mut deaths = Deaths::default();
    deaths.follow(&launches);
    timeout(Duration::from_secs(4), deaths.next(&launches)).await.ok()
}

#[tokio::test]
async fn a_container_that_has_failed_and_stays_so_is_told_of_by_whatever_name_it_is_meant() {
    let ended = || State { status: "exited", ends: vec![0, 137], ..State::default() };
    for (node, container) in [("n", "c"), ("n", "box-1"), ("n", "a=b"), ("node-*", "box-*"), ("of-*", "a=*")]
    {
        let fake = Fake::new(ended());
        let launch = Launch { node: node.to_owned(), ..launch(container, &fake.socket()) };
        let (told, how) =
            told_of(vec![launch]).await.unwrap_or_else(|| panic!("{container}: nothing is told"));
        let star = if container == "a=*" { "b" } else { "1" };
        assert_eq!((told, how.as_str()), (node.replace('*', star), "in container c, exit code 137"));
    }
}

#[tokio::test]
async fn nothing_is_told_of_a_container_that_ended_well_runs_again_is_nobodys_or_not_the_nodes() {
    let [well, again, strange, taken] = [
        State { status: "exited", ends: vec![0], ..State::default() },
        State { status: "running", ends: vec![1], ..State::default() },
        State { status: "exited", ends: vec![1], ..State::default() },
        State { status: "exited", ends: vec![1], ..State::default() },
    ]
    .map(Fake::new);
    let own = |fake: &Fake, container| vec![launch(container, &fake.socket())];
    let many = Launch { node: "*".to_owned(), ..launch("box-*", &taken.socket()) };
    let one = Launch { node: "1".to_owned(), ..launch("another", &taken.socket()) };
    let told = futures_util::future::join_all([
        told_of(own(&well, "c")),
        told_of(own(&again, "c")),
        told_of(own(&strange, "x")),
        told_of(vec![many, one]),
    ]);
    assert_eq!(told.await, [None, None, None, None]);
}

#[tokio::test]
async fn an_engine_that_was_away_is_followed_again() {
    let fake = Fake::new(State { status: "exited", ..State::default() });
    let launches = [launch("c", &fake.socket())];
    let mut deaths = Deaths::default();
    deaths.follow(&launches);
    let later = async {
        // It has answered, and closed its side, once.
        while !fake.state.lock().unwrap().asked.iter().any(|asked| asked == "GET /events") {
            sleep(Duration::from_millis(10)).await;
        }
        fake.state.lock().unwrap().ends.push(3);
        std::future::pending::<()>().await
    };
    let told = async { timeout(PATIENCE, deaths.next(&launches)).await.unwrap() };
    tokio::select! {
        told = told => assert_eq!(told.1, "in container c, exit code 3"),
        () = later => {}
    }
}

// ------------------------------------------------------------------------------------------- a real engine

/// A container of a real engine, removed with its image when it is dropped.
struct Real(String);

fn docker(args: &[&str]) -> Option<String> {
    let done = Command::new("docker").args(args).stdin(Stdio::null()).output().ok()?;
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

impl Real {
    /// One that does nothing, of an image with one program. `None`, and why: there can be none here.
    fn new(purpose: &str) -> Result<Self, &'static str> {
        docker(&["info"]).ok_or("Docker does not answer")?;
        let name = format!("wardkeep-launcher-test-{purpose}-{}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("idle.c");
        std::fs::write(&source, "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n").unwrap();
        let built =
            Command::new("cc").args(["-static", "-o"]).arg(dir.path().join("idle")).arg(&source).status();
        built
            .ok()
            .filter(std::process::ExitStatus::success)
            .ok_or("there is no C compiler that links statically")?;
        let tar = dir.path().join("image.tar");
        let packed = Command::new("tar").arg("-C").arg(dir.path()).arg("-cf").arg(&tar).arg("idle").status();
        packed.ok().filter(std::process::ExitStatus::success).ok_or("there is no tar")?;
        let real = Self(name);
        docker(&["import", tar.to_str().unwrap(), &real.0]).ok_or("no image can be made")?;
        let label = format!("wardkeep.test={}", real.0);
        let run =
            ["run", "--detach", "--network", "none", "--name", &real.0, "--label", &label, &real.0, "/idle"];
        docker(&run).ok_or("no container can be made")?;
        Ok(real)
    }

    /// The same, or a word on why not.
    fn here(purpose: &str) -> Option<Self> {
        let real = Self::new(purpose);
        if let Err(why) = real {
            assert!(std::env::var_os("WARDKEEP_CI").is_none(), "a container engine is needed, but {why}");
            eprintln!("skipped: {why}");
        }
        real.ok()
    }

    fn state(&self) -> String {
        docker(&["inspect", "--format", "{{.State.Status}} {{.State.Pid}}", &self.0]).unwrap()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        docker(&["rm", "--force", &self.0]);
        docker(&["rmi", "--force", &self.0]);
    }
}

#[tokio::test]
async fn a_real_engine_starts_a_container_anew_that_is_well_killed_or_frozen() {
    let Some(real) = Real::here("anew") else { return };
    let name = real.0.as_str();
    let label = format!("wardkeep.test={name}");
    for (before, container, says) in [
        (None, name, "was killed and started"),
        (Some("kill"), name, "was started"),
        (Some("pause"), name, "was paused: thawed, killed and started"),
        (Some("stop"), label.as_str(), "was started"),
    ] {
        let was = real.state();
        match before {
            Some("stop") => docker(&["stop", "--time", "0", name]).map(drop),
            Some(command) => docker(&[command, name]).map(drop),
            None => Some(()),
        }
        .unwrap();
        let done = run(launch(container, Path::new(SOCKET)), PATIENCE).await.unwrap();
        assert!(done.contains(says), "{done}");
        let is = real.state();
        assert!(is.starts_with("running ") && is != was, "{before:?}: {was}, then {is}");
    }
    let error = run(launch("wardkeep-no-such-container", Path::new(SOCKET)), PATIENCE).await.unwrap_err();
    assert!(error.ends_with("says: No such container: wardkeep-no-such-container"), "{error}");
}

#[tokio::test]
async fn a_real_engine_tells_of_a_container_that_was_killed_once_it_is_followed() {
    let Some(real) = Real::here("told") else { return };
    let name = real.0.as_str();
    let launches = [launch(name, Path::new(SOCKET))];
    let mut deaths = Deaths::default();
    deaths.follow(&launches);
    let id = docker(&["inspect", "--format", "{{.Id}}", name]).unwrap();
    // Killed as often as it takes: an engine tells only those that listen by then.
    let kills = async {
        loop {
            docker(&["start", name]).unwrap();
            docker(&["kill", name]).unwrap();
            sleep(3 * Duration::from_secs(1)).await;
        }
    };
    let told = async { timeout(PATIENCE, deaths.next(&launches)).await.expect("nothing is told") };
    tokio::select! {
        (node, how) = told => assert_eq!((node.as_str(), how), ("n", format!("in container {}, exit code 137", &id[..12]))),
        () = kills => {}
    }
}
