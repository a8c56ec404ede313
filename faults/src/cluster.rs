//! A real cluster of processes: a supervisor with its data on disk, and three unlike nodes that it launches.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path as FilePath, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use tonic::transport::Channel;
use wardkeep_client::{Member, Replicated};
use wardkeep_proto::v1::{self, Verdict, WardState, operator_client::OperatorClient};

use crate::{
    Outcome, Stuck, Trying as _,
    answer::{Path, expected},
    containers::Containers,
    pb::{Question, Trouble, answer_client::AnswerClient},
    process::{self, MARK, PARENT},
    proxy::Proxy,
    world::SmallDisk,
};

/// For the cluster to be well. What takes longer counts as never.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// For one question to the supervisor, or to one node.
const ASK: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// What is special about a cluster.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Clients and nodes reach each other through [`Proxy`]s.
    pub proxies: bool,
    /// A panic in a handler restarts its ward.
    pub restart_on_panic: bool,
    /// More arguments of one node.
    pub node_args: Vec<(Path, String)>,
    /// More environment of the supervisor, and through it of the nodes.
    pub env: Vec<(String, String)>,
    /// More of the supervisor's file.
    pub config: String,
}

/// Where a node is.
#[derive(Debug)]
pub struct Place {
    /// How it answers, and its name.
    pub path: Path,
    /// Where it listens.
    pub address: SocketAddr,
    /// What clients reach it through.
    pub clients: Option<Proxy>,
    /// What it reaches the supervisor through.
    pub supervisor: Option<Proxy>,
}

/// A node as the supervisor knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Which process it is.
    pub pid: u32,
    /// Which start of it.
    pub boot: String,
    /// It attends, is healthy, and so are all its wards.
    pub well: bool,
    /// Its wards' incarnations.
    pub wards: BTreeMap<String, u64>,
    /// The PID of the program in its process ward, when that is known.
    pub program: u32,
}

/// All nodes, by name.
pub type Picture = BTreeMap<String, Facts>;

/// A running cluster. Dropped, it is killed.
#[derive(Debug)]
pub struct Cluster {
    // Before the directory it is mounted in: fields end in this order.
    disk: Option<SmallDisk>,
    dir: tempfile::TempDir,
    run: String,
    program: PathBuf,
    options: Options,
    supervisor: Option<Child>,
    containers: Option<Containers>,
    address: SocketAddr,
    /// Its nodes.
    pub nodes: Vec<Place>,
    channel: Channel,
}

impl Cluster {
    /// Starts it and waits until all are well. `program` is this suite's own; it knows how to be a supervisor
    /// and a node.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(program: &FilePath, options: Options, seed: u64) -> Outcome<Self> {
        let mut cluster = Self::prepare(program, options, seed).await?;
        cluster.start_supervisor(&[])?;
        cluster.well(PATIENCE).await?;
        Ok(cluster)
    }

    /// All but the processes.
    ///
    /// # Errors
    /// There is no room on disk, or no port.
    pub async fn prepare(program: &FilePath, options: Options, seed: u64) -> Outcome<Self> {
        let dir = tempfile::Builder::new().prefix("wardkeep-faults-").tempdir().trying("a directory")?;
        let run = format!("{}-{:016x}", std::process::id(), fastrand::u64(..));
        let mut ports = Ports::default();
        let address = ports.free()?;
        let mut nodes = Vec::new();
        let mut dice = fastrand::Rng::with_seed(seed);
        for path in Path::ALL {
            let at = ports.free()?;
            let (mut clients, mut supervisor) = (None, None);
            if options.proxies {
                // Each has dice of its own: with the same ones all connections would meet their fate at once.
                let mut proxy =
                    async |to| Proxy::start("127.0.0.1:0", to, dice.u64(..)).await.trying("a proxy");
                clients = Some(proxy(at).await?);
                supervisor = Some(proxy(address).await?);
            }
            nodes.push(Place { path, address: at, clients, supervisor });
        }
        let endpoint = wardkeep_client::endpoint(&format!("http://{address}")).trying("its address")?;
        let channel = endpoint.connect_lazy();
        let program = program.to_owned();
        let (disk, supervisor, containers) = (None, None, None);
        Ok(Self { disk, dir, run, program, options, supervisor, containers, address, nodes, channel })
    }

    /// Starts it in containers of this image, and waits until all are well.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start_in_containers(image: &str) -> Outcome<Self> {
        let mut cluster = Self::prepare(FilePath::new(image), Options::default(), 0).await?;
        let containers = Containers::prepare(image, &cluster.run).await?;
        cluster.address = containers.supervisor();
        for place in &mut cluster.nodes {
            place.address = containers.node(place.path);
        }
        cluster.channel = wardkeep_client::endpoint(&cluster.uri()).trying("its address")?.connect_lazy();
        let config = cluster.dir.path().join("supervisor.toml");
        fs::write(&config, containers.config()).trying(config.display())?;
        cluster.containers = Some(containers);
        let containers = cluster.containers()?;
        containers.start_supervisor(&config).await?;
        for path in Path::ALL {
            containers.start_node(path).await?;
        }
        cluster.well(PATIENCE).await?;
        Ok(cluster)
    }

    /// Its containers.
    ///
    /// # Errors
    /// It is made of processes.
    pub fn containers(&self) -> Outcome<&Containers> {
        self.containers.as_ref().ok_or_else(|| Stuck("there are no containers".to_owned()))
    }

    /// Where the supervisor keeps its data.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Moves the supervisor's data to a disk of so many bytes. It must not run.
    ///
    /// # Errors
    /// It cannot be mounted, or the data does not fit.
    pub fn move_to_small_disk(&mut self, bytes: u64) -> Outcome<()> {
        let (data, aside) = (self.data_dir(), self.beside("aside"));
        fs::rename(&data, &aside).trying("the data directory")?;
        self.disk = Some(SmallDisk::mount(&data, bytes)?);
        for entry in fs::read_dir(&aside).trying("the data directory")?.flatten() {
            fs::copy(entry.path(), data.join(entry.file_name())).trying("the data directory")?;
        }
        Ok(())
    }

    /// Leaves no room on the small disk, until the file is removed.
    ///
    /// # Errors
    /// There is none, or it cannot be written at all.
    pub fn fill_disk(&self) -> Outcome<PathBuf> {
        self.disk.as_ref().ok_or_else(|| Stuck("there is no small disk".to_owned()))?.fill()
    }

    /// Where the supervisor listens, as a URI.
    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the supervisor listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// One of its nodes.
    pub fn place(&self, path: Path) -> &Place {
        // All paths have a place from the beginning.
        self.nodes.iter().find(|place| place.path == path).unwrap_or(&self.nodes[0])
    }

    /// Ports of the supervisor and of all nodes.
    pub fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(|place| place.address.port()).chain([self.address.port()]).collect()
    }

    /// The PID of the supervisor, while it runs.
    pub fn supervisor_pid(&self) -> Option<u32> {
        self.supervisor.as_ref()?.id()
    }

    // --- the supervisor's process ---

    /// Starts the supervisor, with this environment beside what is special about the cluster.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start_supervisor(&mut self, env: &[(&str, &str)]) -> Outcome<()> {
        let config = self.dir.path().join("supervisor.toml");
        fs::write(&config, self.config()).trying(config.display())?;
        let mut command = self.command("supervisor.log")?;
        command.args(["wardkeep", "serve", "supervisor", "--config"]).arg(&config);
        command.arg("--data-dir").arg(self.data_dir());
        command.envs(env.iter().copied());
        self.supervisor = Some(command.spawn().trying("the supervisor")?);
        Ok(())
    }

    /// A program of the suite with the mark of this cluster.
    fn command(&self, log: &str) -> Outcome<Command> {
        let log = self.dir.path().join(log);
        let log = fs::File::options().create(true).append(true).open(&log).trying(log.display())?;
        let mut command = Command::new(&self.program);
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("WARDKEEP_")) {
            // What CI marks its processes with stays.
            if key != "WARDKEEP_CI_RUN" {
                command.env_remove(key);
            }
        }
        command
            .env(MARK, &self.run)
            .env("WARDKEEP_HTTP_LISTEN", "off")
            .env(PARENT, std::process::id().to_string())
            .envs(self.options.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().trying("its log")?)
            .stderr(log)
            // Ctrl-C is for the suite, which puts an end to everything in order.
            .process_group(0)
            .kill_on_drop(true);
        Ok(command)
    }

    fn config(&self) -> String {
        let mut text = format!("listen = \"{}\"\n{}\n", self.address, self.options.config);
        for place in &self.nodes {
            let path = place.path.name();
            let supervisor = place.supervisor.as_ref().map_or(self.address, Proxy::address);
            let mut launch = vec![
                self.program.to_string_lossy().into_owned(),
                "node".to_owned(),
                format!("--path={path}"),
                format!("--listen={}", place.address),
                format!("--supervisor=http://{supervisor}"),
            ];
            if let Some(clients) = &place.clients {
                launch.push(format!("--advertise=http://{}", clients.address()));
            }
            if self.options.restart_on_panic {
                launch.push("--restart-on-panic".to_owned());
            }
            let more = self.options.node_args.iter().filter(|(of, _)| *of == place.path);
            launch.extend(more.map(|(_, arg)| arg.clone()));
            text.push_str(&format!("[[node]]\nname = {path:?}\nlaunch = {launch:?}\n"));
        }
        text
    }

    /// A second supervisor, with data of its own or the same; see what becomes of it.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn second_supervisor(&self, listen: SocketAddr, data_dir: &FilePath) -> Outcome<Child> {
        let mut command = self.command("second.log")?;
        command.args(["wardkeep", "serve", "supervisor", "--listen", &listen.to_string(), "--data-dir"]);
        command.arg(data_dir);
        command.spawn().trying("a second supervisor")
    }

    /// A directory beside the data.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Kills the supervisor.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill_supervisor(&mut self) -> Outcome<()> {
        let mut child = self.supervisor.take().ok_or_else(|| Stuck("there is no supervisor".to_owned()))?;
        child.kill().await.trying("the supervisor")
    }

    /// Waits for the supervisor to end by itself.
    ///
    /// # Errors
    /// It does not.
    pub async fn supervisor_ended(&mut self) -> Outcome<ExitStatus> {
        let mut child = self.supervisor.take().ok_or_else(|| Stuck("there is no supervisor".to_owned()))?;
        timeout(PATIENCE, child.wait()).await.trying("the supervisor's end")?.trying("the supervisor")
    }

    /// Tells the supervisor to end.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal_supervisor(&self, signal: Signal) -> Outcome<()> {
        let pid = self.supervisor_pid().ok_or_else(|| Stuck("there is no supervisor".to_owned()))?;
        process::signal(pid, signal)
    }

    // --- what it knows ---

    /// To ask the supervisor, and to command it.
    pub fn operator(&self) -> OperatorClient<Channel> {
        OperatorClient::new(self.channel.clone())
    }

    /// The fleet as the supervisor sees it.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn fleet(&self) -> Outcome<v1::Fleet> {
        let asked = timeout(ASK, async { self.operator().get_fleet(v1::GetFleetRequest {}).await }).await;
        Ok(asked.trying("the supervisor")?.trying("the supervisor")?.into_inner())
    }

    /// The nodes as the supervisor sees them.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn picture(&self) -> Outcome<Picture> {
        let fleet = self.fleet().await?;
        let nodes = fleet.nodes.iter().filter_map(|node| {
            let info = node.info.as_ref()?;
            let wards: Vec<_> = fleet.wards.iter().filter(|ward| ward.node == info.name).collect();
            let runs =
                |w: &&v1::Ward| w.state() == WardState::Running && w.verdict() == Verdict::Healthy && !w.held;
            let facts = Facts {
                pid: info.pid,
                boot: info.boot_id.clone(),
                well: node.attending
                    && node.verdict() == Verdict::Healthy
                    && !node.draining
                    && wards.len() == self.wards()
                    && wards.iter().all(runs),
                wards: wards
                    .iter()
                    .map(|w| (w.spec.as_ref().map_or(String::new(), |s| s.name.clone()), w.incarnation))
                    .collect(),
                program: wards.iter().filter_map(|w| w.usage.as_ref()).map(|usage| usage.pid).sum(),
            };
            Some((info.name.clone(), facts))
        });
        Ok(nodes.collect())
    }

    /// Of each node. In a container there is no program to run.
    fn wards(&self) -> usize {
        if self.containers.is_some() { 2 } else { 3 }
    }

    /// One node.
    ///
    /// # Errors
    /// The supervisor does not answer, or does not know it.
    pub async fn facts(&self, path: Path) -> Outcome<Facts> {
        let mut picture = self.picture().await?;
        picture.remove(path.name()).ok_or_else(|| Stuck(format!("no node {path}")))
    }

    /// Waits until the picture is as wanted. The time it took, and the picture.
    ///
    /// # Errors
    /// It does not become so in time: the last that was seen.
    pub async fn until(&self, patience: Duration, is: impl Fn(&Picture) -> bool) -> Outcome<Picture> {
        let deadline = Instant::now() + patience;
        loop {
            let seen = self.picture().await;
            match seen {
                Ok(picture) if is(&picture) => return Ok(picture),
                seen if Instant::now() >= deadline => {
                    return Err(Stuck(format!("not so within {patience:?}, but {seen:?}")));
                }
                _ => sleep(LOOK).await,
            }
        }
    }

    /// Waits until every node is well, in the supervisor's eyes and by its own answer.
    ///
    /// # Errors
    /// They are not in time.
    pub async fn well(&self, patience: Duration) -> Outcome<Picture> {
        let picture =
            self.until(patience, |now| now.len() == 3 && now.values().all(|facts| facts.well)).await?;
        for place in &self.nodes {
            let deadline = Instant::now() + patience;
            while let Err(why) = self.answers(place.path).await {
                if Instant::now() >= deadline {
                    return Err(why);
                }
                sleep(LOOK).await;
            }
        }
        Ok(picture)
    }

    /// Whether a node answers, and well.
    ///
    /// # Errors
    /// It does not.
    pub async fn answers(&self, path: Path) -> Outcome<()> {
        let question = Question { number: 1_000, ..Question::default() };
        let reply = self.alone(path)?.ask(question).await.trying(path)?.into_inner();
        if reply.sum == expected(1_000) { Ok(()) } else { Err(Stuck(format!("{path} answers {reply:?}"))) }
    }

    /// Asks one node alone, on a connection of its own.
    ///
    /// # Errors
    /// Its address is none.
    pub fn alone(&self, path: Path) -> Outcome<AnswerClient<Replicated>> {
        let place = self.place(path);
        let at = place.clients.as_ref().map_or(place.address, Proxy::address);
        let channel = Replicated::builder()
            .members([Member::new(path.name(), format!("http://{at}"))])
            .default_deadline(ASK)
            .build()
            .trying(path)?;
        Ok(AnswerClient::new(channel))
    }

    /// Has something go wrong on one node. Does not wait for what becomes of the call.
    ///
    /// # Errors
    /// Its address is none.
    pub async fn trouble(&self, path: Path, trouble: Trouble) -> Outcome<()> {
        let question = Question { number: 1, wait_ms: 0, trouble: Some(trouble) };
        let mut alone = self.alone(path)?;
        // It may never answer: that is what was asked of it.
        let _ = timeout(Duration::from_millis(200), alone.ask_once(question)).await;
        Ok(())
    }

    /// The end of what it logged, for whoever reads of a failure.
    pub fn log(&self, name: &str, lines: usize) -> String {
        let path = match name {
            "supervisor" => self.dir.path().join("supervisor.log"),
            name => self.data_dir().join(format!("{name}.log")),
        };
        let text = fs::read_to_string(path).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Ends it in order: the supervisor is told, and ends its nodes. Containers are removed.
    ///
    /// # Errors
    /// It does not end well, or leaves something running.
    pub async fn stop(mut self) -> Outcome<()> {
        let mut ended = Ok(());
        if self.supervisor.is_some() {
            self.signal_supervisor(Signal::SIGTERM)?;
            let status = self.supervisor_ended().await?;
            if !status.success() {
                ended = Err(Stuck(format!("the supervisor ended with {status}")));
            }
        }
        let left = process::marked(&self.run);
        if ended.is_ok() && !left.is_empty() {
            ended = Err(Stuck(format!("the supervisor has ended, and left processes {left:?}")));
        }
        for place in &mut self.nodes {
            for proxy in [place.clients.take(), place.supervisor.take()].into_iter().flatten() {
                proxy.stop().await;
            }
        }
        ended
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        process::kill_marked(&self.run);
        if let Some(keep) = std::env::var_os("WARDKEEP_FAULTS_KEEP") {
            let _ = fs::create_dir_all(&keep);
            let to = FilePath::new(&keep).join(&self.run);
            // For whoever wants to look into the logs of what failed.
            let _ = std::process::Command::new("cp").arg("-r").arg(self.dir.path()).arg(&to).status();
            if let Some(containers) = &self.containers {
                containers.keep_logs(&to);
            }
        }
    }
}

/// Free ports outside the range from which the system takes those of outgoing connections: a node that is
/// launched anew finds its port free.
#[derive(Debug, Default)]
struct Ports(Vec<u16>);

impl Ports {
    fn free(&mut self) -> Outcome<SocketAddr> {
        for _ in 0..1_000 {
            let port = fastrand::u16(10_000..30_000);
            if !self.0.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
                self.0.push(port);
                return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
            }
        }
        Err(Stuck("no port is free".to_owned()))
    }
}
