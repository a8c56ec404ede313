//! The node of the suite: a ward of each kind, answers that can be checked, and trouble on request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};
use wardkeep_node::{Node, OnPanic, Program, Ward, WardContext, shutdown_signal};
use wardkeep_proto::{Error, error::Code};

use crate::{
    answer::{Answers, Path},
    pb::{
        self, Kind, Question, Reply, Trouble,
        answer_server::{Answer, AnswerServer},
    },
};

/// What it is told on its command line.
#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    /// How it finds answers
    #[arg(long, default_value = "formula")]
    path: Path,
    /// Its name [default: its path]
    #[arg(long)]
    name: Option<String>,
    /// Where it listens
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// The supervisor it attends
    #[arg(long)]
    supervisor: Option<String>,
    /// Where clients reach it, if not where it listens
    #[arg(long)]
    advertise: Option<String>,
    /// Accept plaintext on an address other machines can reach
    #[arg(long)]
    insecure: bool,
    /// Host no program: there is none to run in a container of one file
    #[arg(long)]
    no_program: bool,
    /// A panic in a handler restarts its ward
    #[arg(long)]
    restart_on_panic: bool,
    /// Open no more files than so many
    #[arg(long)]
    max_files: Option<u64>,
    /// Take so many bytes of address space, beyond what the program has at its start, and no more
    #[arg(long)]
    max_memory: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
enum AnswerError {
    #[error("the question {0} is larger than {largest}", largest = crate::answer::LARGEST)]
    TooLarge(u64),
    #[error("it was asked to fail, {left} more times")]
    Flaps { left: u32 },
    #[error("the limit on {what} cannot be set")]
    Limit { what: &'static str, source: nix::Error },
}

impl wardkeep_proto::Kind for AnswerError {
    fn domain(&self) -> &'static str {
        "faults.wardkeep"
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "TOO_LARGE",
            Self::Flaps { .. } => "FLAPS",
            Self::Limit { .. } => "LIMIT",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::TooLarge(_) => Code::InvalidArgument,
            Self::Flaps { .. } => Code::Unavailable,
            Self::Limit { .. } => Code::FailedPrecondition,
        }
    }

    fn user_message(&self) -> String {
        "The fault suite asked for this.".to_owned()
    }
}

/// Runs until SIGTERM or Ctrl-C.
///
/// # Errors
/// It cannot be set up, or failed.
pub async fn run(args: NodeArgs) -> Result<(), Error> {
    limit(&args)?;
    let flaps = Arc::new(AtomicU32::new(0));
    let answers = Arc::new(Answers::new(args.path));
    let for_ticks = flaps.clone();
    let on_panic = if args.restart_on_panic { OnPanic::Restart } else { OnPanic::Contain };
    let answer = Ward::service("answer", move |_| {
        AnswerServer::new(Answering {
            answers: answers.clone(),
            flaps: flaps.clone(),
            blocked: TaskTracker::new(),
        })
    });
    let name = args.name.unwrap_or_else(|| args.path.to_string());
    let mut builder = Node::builder(name.clone())
        .label("data_path", args.path.name())
        .machine(format!("machine-{}", args.path))
        .zone(format!("zone-{}", args.path))
        .descriptors(pb::FILE_DESCRIPTOR_SET)
        .restartable()
        .ward(answer.stall_timeout(Duration::from_secs(1)).on_panic(on_panic))
        .ward(
            Ward::task("tick", move |context| tick(context, for_ticks.clone()))
                .group(format!("{name}-tick"))
                .pulse_timeout(Duration::from_secs(5)),
        );
    if !args.no_program {
        let program = Program::new("sleep").arg("1000000");
        builder = builder.ward(Ward::process("program", program).grace(Duration::from_secs(1)));
    }
    if args.insecure {
        builder = builder.insecure();
    }
    if let Some(supervisor) = args.supervisor {
        builder = builder.supervisor(supervisor);
    }
    if let Some(advertise) = args.advertise {
        builder = builder.advertise(advertise);
    }
    builder.bind(&args.listen).await?.run_until(shutdown_signal()).await
}

/// A node in a small place.
fn limit(args: &NodeArgs) -> Result<(), AnswerError> {
    let set = |what, resource, most: u64| {
        let cannot = |source| AnswerError::Limit { what, source };
        let (_, hard) = getrlimit(resource).map_err(cannot)?;
        setrlimit(resource, most.min(hard), hard).map_err(cannot)
    };
    if let Some(most) = args.max_files {
        set("open files", Resource::RLIMIT_NOFILE, most)?;
    }
    if let Some(most) = args.max_memory {
        set("memory", Resource::RLIMIT_AS, address_space().saturating_add(most))?;
    }
    Ok(())
}

/// What this process has mapped now.
fn address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// A background loop that lives well until it is asked to flap.
async fn tick(context: WardContext, flaps: Arc<AtomicU32>) -> Result<(), Error> {
    while !context.is_cancelled() {
        context.pulse();
        let take = |left: u32| left.checked_sub(1);
        if let Ok(left) = flaps.fetch_update(SeqCst, SeqCst, take) {
            return Err(AnswerError::Flaps { left: left - 1 }.into());
        }
        let _ = tokio::time::timeout(Duration::from_millis(20), context.cancelled()).await;
    }
    Ok(())
}

/// The service `Answer` alone, for a node of one's own.
pub fn answering() -> AnswerServer<impl Answer> {
    AnswerServer::new(Answering {
        answers: Arc::new(Answers::new(Path::Formula)),
        flaps: Arc::default(),
        blocked: TaskTracker::new(),
    })
}

struct Answering {
    answers: Arc<Answers>,
    flaps: Arc<AtomicU32>,
    /// What blocks the runtime; it ends with the process.
    blocked: TaskTracker,
}

impl Answering {
    async fn answer(&self, question: Question) -> Result<Response<Reply>, Status> {
        if let Some(trouble) = question.trouble {
            self.make(trouble);
        }
        if question.wait_ms > 0 {
            tokio::time::sleep(Duration::from_millis(question.wait_ms.into())).await;
        }
        let number = question.number;
        let sum = self.answers.find(number).ok_or_else(|| Error::from(AnswerError::TooLarge(number)))?;
        Ok(Response::new(Reply { number, sum, path: self.answers.path().name().to_owned() }))
    }

    fn make(&self, trouble: Trouble) {
        let time = Duration::from_millis(trouble.millis.into());
        match trouble.kind() {
            Kind::Unspecified => {}
            Kind::Panic => panic!("the fault suite asked for a panic"),
            Kind::BlockThread => std::thread::sleep(time),
            Kind::BlockRuntime => {
                let workers = tokio::runtime::Handle::current().metrics().num_workers();
                let until = Instant::now() + time;
                // More than there are threads: one that is taken from its queue late blocks no longer for it.
                for _ in 0..workers * 4 {
                    self.blocked.spawn(async move {
                        std::thread::sleep(until.saturating_duration_since(Instant::now()));
                    });
                }
            }
            Kind::Abort => std::process::abort(),
            Kind::EatMemory => {
                let mut eaten: Vec<Vec<u8>> = Vec::new();
                loop {
                    // Touched, so that it is really there.
                    eaten.push(vec![1; 4 << 20]);
                }
            }
            Kind::Flap => self.flaps.store(trouble.times, SeqCst),
        }
    }
}

#[tonic::async_trait]
impl Answer for Answering {
    async fn ask(&self, request: Request<Question>) -> Result<Response<Reply>, Status> {
        self.answer(request.into_inner()).await
    }

    async fn ask_once(&self, request: Request<Question>) -> Result<Response<Reply>, Status> {
        self.answer(request.into_inner()).await
    }
}
