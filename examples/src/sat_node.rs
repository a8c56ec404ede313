//! A SAT solver as a node: a service ward that runs the program for each request.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    process::Command,
    sync::Semaphore,
    time::{Instant, timeout},
};
use tonic::{Request, Response, Status};
use wardkeep_node::{Node, NodeBuilder, NodeError, Output, Program, Ward, WardContext, server::Limits};
use wardkeep_proto::{Error, Kind, error::Code};

use crate::{
    pb::{
        self, SolveReply, SolveRequest,
        solve_reply::Outcome,
        solver_server::{Solver as SolverService, SolverServer},
    },
    sat::{Answer, BadFormula, Formula, NoAnswer, Solver},
};

/// Largest formula, in bytes of DIMACS.
pub const MOST_DIMACS_BYTES: usize = 64 << 20;
/// Largest request: a formula and its frame. To be set at clients and servers, whose own limits are lower.
pub const MOST_REQUEST_BYTES: usize = MOST_DIMACS_BYTES + 1024;
/// Largest reply: a model takes at most four bytes per variable.
pub const MOST_REPLY_BYTES: usize = (4 * crate::sat::MOST_VARIABLES + 1024) as usize;
/// Most that a solver may print: a model as text.
const MOST_PRINTED_BYTES: usize = 64 << 20;
/// Most that is told of what a solver complains of, in bytes.
const MOST_COMPLAINT: usize = 1024;
/// Requests at a time on one connection. One is worked on, the others wait.
const STREAMS: u32 = 16;
/// For a solver to tell its version.
const VERSION_PATIENCE: Duration = Duration::from_secs(5);

/// What goes wrong with solving, as kinds of the well-formed error.
#[derive(Debug, thiserror::Error)]
enum SolveTrouble {
    #[error("the formula cannot be read")]
    BadFormula(#[from] BadFormula),
    #[error("the formula has {0} bytes; the limit is {MOST_DIMACS_BYTES}")]
    TooLarge(usize),
    #[error("{solver} gives no answer: {why}{complaint}")]
    NoAnswer { solver: Solver, why: NoAnswer, complaint: String },
    #[error(
        "{solver} says that the formula is satisfiable, but clause {clause} is not satisfied by its model"
    )]
    WrongModel { solver: Solver, clause: usize },
    #[error("the formula cannot be written to a temporary file")]
    CannotWrite(#[source] io::Error),
    #[error("the solver was called outside a node")]
    NoContext,
}

impl Kind for SolveTrouble {
    fn domain(&self) -> &'static str {
        "sat.examples.wardkeep"
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::BadFormula(_) => "BAD_FORMULA",
            Self::TooLarge(_) => "FORMULA_TOO_LARGE",
            Self::NoAnswer { .. } => "NO_ANSWER",
            Self::WrongModel { .. } => "WRONG_MODEL",
            Self::CannotWrite(_) => "CANNOT_WRITE",
            Self::NoContext => "NO_CONTEXT",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::BadFormula(_) | Self::TooLarge(_) => Code::InvalidArgument,
            Self::NoAnswer { .. } => Code::Aborted,
            Self::WrongModel { .. } => Code::DataLoss,
            Self::CannotWrite(_) => Code::Unavailable,
            Self::NoContext => Code::FailedPrecondition,
        }
    }

    fn user_message(&self) -> String {
        match self {
            Self::BadFormula(why) => format!("Please change the formula: {why}."),
            Self::TooLarge(_) => format!("Please send a formula of at most {MOST_DIMACS_BYTES} bytes."),
            Self::NoAnswer { solver, .. } => format!("{solver} did not find an answer. Another solver may."),
            Self::WrongModel { solver, .. } => {
                format!("The answer of {solver} is wrong. Please report this ID.")
            }
            _ => "The solver does not work at the moment. Please try again later.".to_owned(),
        }
    }
}

/// Describes a node that solves with this program.
pub async fn builder(name: &str, solver: Solver, program: PathBuf) -> NodeBuilder {
    let version = version(solver, &program).await;
    let service = Service { solver, program, version, turn: Arc::new(Semaphore::new(1)) };
    let ward = Ward::service("solver", move |_| {
        SolverServer::new(service.clone())
            .max_decoding_message_size(MOST_REQUEST_BYTES)
            .max_encoding_message_size(MOST_REPLY_BYTES)
    });
    Node::builder(name)
        .label("solver", solver.name())
        .descriptors(pb::FILE_DESCRIPTOR_SET)
        .limits(Limits { streams: STREAMS, ..Limits::default() })
        .restartable()
        // Nothing of an unsolved formula is worth waiting for.
        .ward(ward.grace(Duration::ZERO))
}

/// The version a solver gives itself; empty if it tells none.
async fn version(solver: Solver, program: &Path) -> String {
    let Some(arg) = solver.version_arg() else { return String::new() };
    let asked = Command::new(program).arg(arg).kill_on_drop(true).output();
    let Ok(Ok(output)) = timeout(VERSION_PATIENCE, asked).await else { return String::new() };
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().next().and_then(|line| line.split_whitespace().last());
    last.unwrap_or_default().to_owned()
}

#[derive(Clone)]
struct Service {
    solver: Solver,
    program: PathBuf,
    version: String,
    /// One formula at a time: two would only take each other's processor.
    turn: Arc<Semaphore>,
}

impl Service {
    async fn solve(&self, context: &WardContext, request: SolveRequest) -> Result<SolveReply, Error> {
        let _turn = self.turn.acquire().await.map_err(|_| NodeError::Cancelled)?;
        let (formula, dir) = context.blocking(move |_| prepare(&request.dimacs)).await??;
        let result = dir.path().join("result");
        let args = self.solver.args(&dir.path().join("formula.cnf"), &result);
        let program = Program::new(&self.program).args(args).captures(MOST_PRINTED_BYTES);
        let (solver, began) = (self.solver, Instant::now());
        // Who has lost the race is killed here, with all it has started.
        let mut output = context.run(&program).await?;
        let wall = began.elapsed();
        let checked = context.blocking(move |_| {
            if solver == Solver::Minisat {
                output.stdout = fs::read(&result).unwrap_or_default();
            }
            drop(dir);
            (check(solver, &formula, &output), output.cpu)
        });
        let (answer, cpu) = checked.await?;
        let (outcome, model) = match answer? {
            Answer::Satisfiable(model) => (Outcome::Satisfiable, model),
            Answer::Unsatisfiable => (Outcome::Unsatisfiable, Vec::new()),
        };
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Ok(SolveReply {
            outcome: outcome.into(),
            model,
            solver: self.solver.to_string(),
            version: self.version.clone(),
            wall_micros: micros(wall),
            cpu_micros: micros(cpu),
        })
    }
}

/// Reads the formula, and writes it to a file as every solver understands it.
fn prepare(dimacs: &[u8]) -> Result<(Formula, TempDir), SolveTrouble> {
    if dimacs.len() > MOST_DIMACS_BYTES {
        return Err(SolveTrouble::TooLarge(dimacs.len()));
    }
    let formula = Formula::parse(dimacs)?;
    let dir =
        tempfile::Builder::new().prefix("wardkeep-sat-").tempdir().map_err(SolveTrouble::CannotWrite)?;
    fs::write(dir.path().join("formula.cnf"), formula.to_dimacs()).map_err(SolveTrouble::CannotWrite)?;
    Ok((formula, dir))
}

/// What the solver found, if it is true. That there is no model must be believed.
fn check(solver: Solver, formula: &Formula, output: &Output) -> Result<Answer, SolveTrouble> {
    let read = match output.status.code() {
        _ if output.cut => Err(NoAnswer::Endless),
        Some(code) => solver.read(code, &output.stdout),
        None => Err(NoAnswer::Ended(output.status.to_string())),
    };
    let answer = read.map_err(|why| {
        let last = &output.stderr[output.stderr.len().saturating_sub(MOST_COMPLAINT)..];
        let complaint = String::from_utf8_lossy(last).trim().lines().last().map(|line| format!(" ({line})"));
        SolveTrouble::NoAnswer { solver, why, complaint: complaint.unwrap_or_default() }
    })?;
    if let Answer::Satisfiable(model) = &answer
        && let Some(clause) = formula.unsatisfied_by(model)
    {
        return Err(SolveTrouble::WrongModel { solver, clause });
    }
    Ok(answer)
}

#[tonic::async_trait]
impl SolverService for Service {
    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveReply>, Status> {
        let context = WardContext::of(&request).ok_or(SolveTrouble::NoContext).map_err(Error::from)?;
        Ok(Response::new(self.solve(&context, request.into_inner()).await?))
    }
}
