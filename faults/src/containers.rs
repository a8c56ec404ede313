//! Containers of one cluster, on a network of their own. What an operator would do with them is done in the same
//! way: by the command `docker`. All of it carries one label, and is removed however the suite ends.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path as FilePath,
    process::{Child, Stdio},
    time::{Duration, SystemTime},
};

use tokio::{process::Command, time::timeout};

use crate::{Outcome, Stuck, Trying as _, answer::Path};

/// The program in the image.
const PROGRAM: &str = "/wardkeep-faults";
/// Where the engine listens, for the supervisor's launcher.
const SOCKET: &str = "/var/run/docker.sock";
/// What belongs to a cluster carries it, with the cluster's name.
const LABEL: &str = "wardkeep.faults";
/// For the engine to do one thing.
const PATIENCE: Duration = Duration::from_secs(60);
/// For a build of all there is.
const BUILD: Duration = Duration::from_secs(1_800);
/// Networks that are tried: one may be taken.
const TRIES: u32 = 20;
const SUPERVISOR_PORT: u16 = 7400;
const NODE_PORT: u16 = 7500;
/// What a node may take: it lives on much less.
const MEMORY: &str = "512m";

/// Whether there are containers here.
pub fn can() -> bool {
    let asked = std::process::Command::new("docker").arg("info").stdin(Stdio::null()).output();
    FilePath::new(SOCKET).exists() && asked.is_ok_and(|done| done.status.success())
}

/// Tells the engine something, and says what it answers.
///
/// # Errors
/// It refuses, or does not answer.
pub async fn docker(args: &[&str]) -> Outcome<String> {
    let what = || format!("docker {}", args.iter().take(2).copied().collect::<Vec<_>>().join(" "));
    let done = Command::new("docker").args(args).stdin(Stdio::null()).kill_on_drop(true).output();
    let done = timeout(PATIENCE, done).await.trying(what())?.trying(what())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if done.status.success() {
        Ok(text(&done.stdout))
    } else {
        Err(Stuck(format!("{}: {}", what(), text(&done.stderr))))
    }
}

/// A network with containers on it. Dropped, all of it is removed.
#[derive(Debug)]
pub struct Containers {
    run: String,
    image: String,
    net: u8,
    _guard: Guard,
}

impl Containers {
    /// The network alone. `image` has this suite's program.
    ///
    /// # Errors
    /// The engine makes none.
    pub async fn prepare(image: &str, run: &str) -> Outcome<Self> {
        let run = format!("wardkeep-faults-{run}");
        let guard = Guard::mount(&run)?;
        let label = format!("{LABEL}={run}");
        let mut made = Err(Stuck("no network was tried".to_owned()));
        for _ in 0..TRIES {
            // For measurements among machines of one's own (RFC 2544): nobody is reached there otherwise.
            let net = fastrand::u8(..);
            let subnet = format!("198.18.{net}.0/24");
            made = docker(&["network", "create", "--subnet", &subnet, "--label", &label, &run]).await;
            if made.is_ok() {
                return Ok(Self { run, image: image.to_owned(), net, _guard: guard });
            }
        }
        made.map(|_| Self { run, image: image.to_owned(), net: 0, _guard: guard })
    }

    fn ip(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.net, host)
    }

    fn node_ip(&self, path: Path) -> Ipv4Addr {
        let before = Path::ALL.into_iter().take_while(|other| *other != path).count();
        self.ip(u8::try_from(before).unwrap_or(0) + 3)
    }

    /// Where the supervisor is reached, from here too.
    pub fn supervisor(&self) -> SocketAddr {
        (self.ip(2), SUPERVISOR_PORT).into()
    }

    /// Where a node is reached.
    pub fn node(&self, path: Path) -> SocketAddr {
        (self.node_ip(path), NODE_PORT).into()
    }

    /// What the engine knows a container by: a node's, or `supervisor`'s.
    pub fn name(&self, who: &str) -> String {
        format!("{}-{who}", self.run)
    }

    /// How the supervisor is told where its nodes are.
    pub fn config(&self) -> String {
        let entry =
            |path: Path| format!("[[node]]\nname = \"{path}\"\ncontainer = \"{}\"\n", self.name(path.name()));
        Path::ALL.map(entry).concat()
    }

    /// Starts the supervisor, whose file is this one. It has the engine's socket.
    ///
    /// # Errors
    /// The engine does not start it.
    pub async fn start_supervisor(&self, config: &FilePath) -> Outcome<()> {
        let socket = format!("{SOCKET}:{SOCKET}");
        let config = format!("{}:/supervisor.toml:ro", config.display());
        let listen = format!("0.0.0.0:{SUPERVISOR_PORT}");
        let own = ["--volume", &socket, "--volume", &config, "--volume", "/data", "--memory", "256m"];
        let program = [
            "wardkeep",
            "serve",
            "supervisor",
            "--config",
            "/supervisor.toml",
            "--data-dir",
            "/data",
            "--listen",
            &listen,
            "--insecure",
        ];
        self.start("supervisor", self.ip(2), &own, &program).await
    }

    /// Starts a node.
    ///
    /// # Errors
    /// The engine does not start it.
    pub async fn start_node(&self, path: Path) -> Outcome<()> {
        let args = [
            format!("--path={path}"),
            format!("--listen=0.0.0.0:{NODE_PORT}"),
            format!("--advertise=http://{}", self.node(path)),
            format!("--supervisor=http://{}", self.supervisor()),
        ];
        let mut program = vec!["node", "--insecure", "--no-program"];
        program.extend(args.iter().map(String::as_str));
        let own = ["--user", "65532:65532", "--memory", MEMORY, "--memory-swap", MEMORY];
        self.start(path.name(), self.node_ip(path), &own, &program).await
    }

    /// Hardened as the compose file has it. No restart policy: who starts what anew is the supervisor's business.
    async fn start(&self, who: &str, ip: Ipv4Addr, own: &[&str], program: &[&str]) -> Outcome<()> {
        let (name, ip, label) = (self.name(who), ip.to_string(), format!("{LABEL}={}", self.run));
        let mut args = vec!["run", "--detach", "--name", &name, "--hostname", who, "--label", &label];
        args.extend(["--network", &self.run, "--network-alias", who, "--ip", &ip, "--read-only"]);
        args.extend(["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "256"]);
        args.extend(own);
        args.extend([self.image.as_str(), PROGRAM]);
        args.extend(program);
        docker(&args).await.map(drop)
    }

    /// Has the engine do something with a container: `kill`, `pause`, `unpause`, `stop`, `start`.
    ///
    /// # Errors
    /// It refuses.
    pub async fn tell(&self, verb: &str, who: &str) -> Outcome<()> {
        docker(&[verb, &self.name(who)]).await.map(drop)
    }

    /// A field of what the engine knows of a container.
    ///
    /// # Errors
    /// There is none such.
    pub async fn field(&self, who: &str, field: &str) -> Outcome<String> {
        docker(&["inspect", "--format", &format!("{{{{{field}}}}}"), &self.name(who)]).await
    }

    /// When the container last ended, by the engine's clock, which is this machine's.
    ///
    /// # Errors
    /// The engine does not say.
    pub async fn ended_at(&self, who: &str) -> Outcome<SystemTime> {
        let text = self.field(who, ".State.FinishedAt").await?;
        humantime::parse_rfc3339(&text).trying(format!("the end of {who}, {text}"))
    }

    /// Pulls a node's network cable.
    ///
    /// # Errors
    /// The engine refuses.
    pub async fn disconnect(&self, path: Path) -> Outcome<()> {
        docker(&["network", "disconnect", &self.run, &self.name(path.name())]).await.map(drop)
    }

    /// Plugs it in again, at the address and by the name that it had.
    ///
    /// # Errors
    /// The engine refuses.
    pub async fn connect(&self, path: Path) -> Outcome<()> {
        let (name, ip) = (self.name(path.name()), self.node_ip(path).to_string());
        docker(&["network", "connect", "--alias", path.name(), "--ip", &ip, &self.run, &name]).await.map(drop)
    }

    /// Keeps what the containers have said.
    pub fn keep_logs(&self, to: &FilePath) {
        for who in Path::ALL.map(Path::name).into_iter().chain(["supervisor"]) {
            let said = std::process::Command::new("docker")
                .args(["logs", &self.name(who)])
                .stdin(Stdio::null())
                .output();
            if let Ok(said) = said {
                let _ = std::fs::write(to.join(format!("{who}.log")), [said.stdout, said.stderr].concat());
            }
        }
    }
}

/// An image that has this suite's program. Dropped, it is removed if it was made here.
#[derive(Debug)]
pub struct Image {
    name: String,
    _guard: Option<Guard>,
}

impl Image {
    /// One that is there already.
    pub fn of(name: String) -> Self {
        Self { name, _guard: None }
    }

    /// Builds the program statically, and makes an image of nothing else.
    ///
    /// # Errors
    /// It cannot be built, or the engine takes no image.
    pub async fn make() -> Outcome<Self> {
        let script = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../interop/docker/static.sh");
        let dir = tempfile::tempdir().trying("a directory")?;
        let mut build = Command::new(&script);
        build.arg(dir.path()).arg("wardkeep-faults").stdin(Stdio::null()).kill_on_drop(true);
        let built =
            timeout(BUILD, build.status()).await.trying("the static build")?.trying(script.display())?;
        if !built.success() {
            return Err(Stuck(format!("the static build ended with {built}")));
        }
        let tar = dir.path().join("image.tar");
        let mut pack = Command::new("tar");
        pack.arg("-C").arg(dir.path()).arg("-cf").arg(&tar).arg("wardkeep-faults");
        let packed = pack.status().await.trying("tar")?;
        if !packed.success() {
            return Err(Stuck(format!("tar ended with {packed}")));
        }
        let name = format!("wardkeep-faults-{}", std::process::id());
        let guard = Guard::mount(&name)?;
        let label = format!("LABEL {LABEL}={name}");
        docker(&["import", "--change", &label, &tar.to_string_lossy(), &name]).await?;
        Ok(Self { name, _guard: Some(guard) })
    }

    /// What the engine knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Removes what carries the label when its input ends, which it does however this process ended. Before that it is
/// deaf to signals, Ctrl-C at the terminal among them.
const CLEAN: &str = r#"
trap '' HUP INT QUIT TERM
read -r _
tries=0
while
  containers=$(docker ps --all --quiet --filter "label=$1")
  networks=$(docker network ls --quiet --filter "label=$1")
  images=$(docker images --quiet --filter "label=$1")
  [ -n "$containers$networks$images" ] && [ $tries -lt 20 ]
do
  [ $tries -eq 0 ] || sleep 1
  tries=$((tries + 1))
  [ -z "$containers" ] || docker rm --force --volumes $containers
  [ -z "$networks" ] || docker network rm $networks
  [ -z "$images" ] || docker rmi --force $images
done
"#;

#[derive(Debug)]
struct Guard(Child);

impl Guard {
    fn mount(run: &str) -> Outcome<Self> {
        use std::os::unix::process::CommandExt as _;
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", CLEAN, "sh", &format!("{LABEL}={run}")]).process_group(0);
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        shell.spawn().map(Self).trying("a shell that cleans up")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It ends when all is gone, and gives up by itself.
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_made_is_gone_when_it_is_dropped() {
        if !can() {
            assert!(std::env::var_os("WARDKEEP_CI").is_none(), "Docker does not answer");
            return eprintln!("skipped: Docker does not answer");
        }
        let run = format!("test-{:016x}", fastrand::u64(..));
        let containers = Containers::prepare("none", &run).await.unwrap();
        let label = format!("label={LABEL}={}", containers.run);
        let there = || docker_now(&["network", "ls", "--quiet", "--filter", &label]);
        assert!(!there().is_empty());
        drop(containers);
        assert_eq!(there(), "");
    }

    fn docker_now(args: &[&str]) -> String {
        let done = std::process::Command::new("docker").args(args).output().unwrap();
        String::from_utf8(done.stdout).unwrap()
    }
}
