//! The code search as a node: a service ward that searches, a task ward that keeps the index in step
//! with the files, and, in the quickstart, a way to break it.

use std::{
    hash::{DefaultHasher, Hasher as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::RwLock,
    time::{Instant, timeout},
};
use tonic::{Request, Response, Status};
use wardkeep_node::{Node, NodeBuilder, NodeError, OnPanic, Ward, WardContext};
use wardkeep_proto::{Error, Kind, error::Code};

use crate::{
    pb::{
        self, ChaosReply, ChaosRequest, SearchHit, SearchReply, SearchRequest,
        chaos_request::Fault,
        chaos_server::{Chaos, ChaosServer},
        search_server::{Search, SearchServer},
    },
    search::{Answer, Corpus, DataPath, Engine, File, Query, QueryError, SearchError, Sqlite},
};

/// Hits in a reply to a request that sets no limit.
const DEFAULT_LIMIT: u32 = 50;
/// Most hits in a reply.
const MOST_HITS: u32 = 1_000;
/// How often the files are compared with the index, at least.
const UPKEEP_EVERY: Duration = Duration::from_millis(250);
/// Searches are kept out for no longer at a time, however slowly the files are read; and for one part in so many of all
/// time, and one more.
const LONGEST_TURN: Duration = Duration::from_millis(100);
const UPKEEP_SHARE: u32 = 9;
/// What a search may take before its ward counts as stalled.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// What goes wrong with a search, as kinds of the well-formed error.
#[derive(Debug, thiserror::Error)]
enum SearchTrouble {
    #[error("the query cannot be searched for: {0}")]
    BadQuery(#[from] QueryError),
    #[error("the index cannot be read")]
    Index(#[source] SearchError),
    #[error("the search was called outside a node")]
    NoContext,
}

impl Kind for SearchTrouble {
    fn domain(&self) -> &'static str {
        "search.examples.wardkeep"
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::BadQuery(_) => "BAD_QUERY",
            Self::Index(_) => "INDEX",
            Self::NoContext => "NO_CONTEXT",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::BadQuery(_) => Code::InvalidArgument,
            Self::Index(_) => Code::Unavailable,
            Self::NoContext => Code::FailedPrecondition,
        }
    }

    fn user_message(&self) -> String {
        match self {
            Self::BadQuery(why) => format!("Please change the query: {why}."),
            _ => "The search does not work at the moment. Please try again later.".to_owned(),
        }
    }
}

/// What all incarnations of a node's wards share.
struct Shared {
    engine: Arc<dyn Engine>,
    /// The lock of the present incarnation's index: searches read, upkeep writes.
    index: Mutex<Arc<RwLock<()>>>,
    /// What the next search for this text is to do.
    next_fault: Mutex<Option<(Fault, String)>>,
    files: Vec<Indexed>,
}

/// A file, and the checksum of what was indexed of it.
pub type Indexed = (PathBuf, u64);

/// Describes a node that searches these files. `chaos`: it can be told to break.
pub fn builder(name: &str, engine: Box<dyn Engine>, files: Vec<Indexed>, chaos: bool) -> NodeBuilder {
    let path = engine.data_path();
    let shared = Arc::new(Shared {
        engine: engine.into(),
        index: Mutex::default(),
        next_fault: Mutex::default(),
        files,
    });
    let (for_search, for_upkeep) = (shared.clone(), shared.clone());
    let search = Ward::service("search", move |_| SearchServer::new(Searcher::new(for_search.clone())));
    let upkeep = Ward::task("upkeep", move |context| upkeep(context, for_upkeep.clone()));
    let mut builder = Node::builder(name)
        .label("data_path", path.as_str())
        .descriptors(pb::FILE_DESCRIPTOR_SET)
        .restartable()
        .ward(search.stall_timeout(STALL_TIMEOUT).on_panic(OnPanic::Restart))
        .ward(upkeep.pulse_timeout(Duration::from_secs(10)));
    if chaos {
        builder = builder.ward(Ward::service("chaos", move |_| ChaosServer::new(Breaker(shared.clone()))));
    }
    builder
}

/// Builds the engine of a data path over the corpus a list names; SQLite's index must be in `dir`.
///
/// # Errors
/// One line: what cannot be read or built.
pub fn engine(path: DataPath, list: &Path, dir: &Path) -> Result<(Vec<Indexed>, Box<dyn Engine>), String> {
    let corpus = Arc::new(Corpus::from_list(list).map_err(|e| e.to_string())?);
    let indexed = |file: &File| (corpus.root.join(&file.path), checksum(file.text.as_bytes()));
    let files = corpus.files.iter().map(indexed).collect();
    let engine = match path {
        DataPath::Sqlite => Ok(Box::new(Sqlite::open_built(dir).map_err(|e| e.to_string())?) as _),
        DataPath::Scan | DataPath::Trigram => {
            path.build(corpus.clone(), dir, &|_| {}).map_err(|e| e.to_string())
        }
    };
    Ok((files, engine?))
}

fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// One incarnation of the search ward.
struct Searcher {
    shared: Arc<Shared>,
    index: Arc<RwLock<()>>,
}

impl Searcher {
    fn new(shared: Arc<Shared>) -> Self {
        // A new incarnation trusts nothing that the one before may have left locked.
        let index = Arc::<RwLock<()>>::default();
        *shared.index.lock().unwrap_or_else(PoisonError::into_inner) = index.clone();
        Self { shared, index }
    }

    async fn answer(&self, context: &WardContext, request: SearchRequest) -> Result<Answer, Error> {
        let query = Query::new(request.query).map_err(SearchTrouble::BadQuery)?;
        let limit = if request.limit == 0 { DEFAULT_LIMIT } else { request.limit.min(MOST_HITS) };
        match self.fault(&query) {
            Fault::Hang => return self.hang(context).await,
            Fault::Panic => panic!("the search was told to panic"),
            Fault::None => {}
        }
        let engine = self.shared.engine.clone();
        let turn = self.index.clone().read_owned().await;
        let search = context.blocking(move |context| {
            let _turn = turn;
            engine.search(&query, limit as usize, &|| !context.is_cancelled())
        });
        match search.await? {
            Ok(answer) => Ok(answer),
            Err(SearchError::Stopped(_)) => Err(NodeError::Cancelled.into()),
            Err(error) => Err(SearchTrouble::Index(error).into()),
        }
    }

    fn fault(&self, query: &Query) -> Fault {
        let mut next = self.shared.next_fault.lock().unwrap_or_else(PoisonError::into_inner);
        next.take_if(|(_, of)| of == query.as_str()).map_or(Fault::None, |(fault, _)| fault)
    }

    /// The bug: a thread takes the index for itself and never gives it back.
    async fn hang(&self, context: &WardContext) -> Result<Answer, Error> {
        let index = self.index.clone();
        let hung = context.blocking(move |_| {
            let _turn = index.blocking_write();
            loop {
                std::thread::park();
            }
        });
        hung.await
    }
}

#[tonic::async_trait]
impl Search for Searcher {
    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<SearchReply>, Status> {
        let context = WardContext::of(&request).ok_or(SearchTrouble::NoContext).map_err(Error::from)?;
        let answer = self.answer(&context, request.into_inner()).await?;
        let hit = |hit: crate::search::Hit| SearchHit {
            path: hit.path,
            line: hit.line,
            column: hit.column,
            text: hit.text,
        };
        Ok(Response::new(SearchReply {
            hits: answer.hits.into_iter().map(hit).collect(),
            complete: answer.complete,
            data_path: self.shared.engine.data_path().to_string(),
        }))
    }
}

/// Now and then reads the files again and compares them with what was indexed, and lets no search
/// in meanwhile: the short pauses that every real service has (compaction, collection, scrubbing,
/// reloading), at another time on each node.
async fn upkeep(context: WardContext, shared: Arc<Shared>) -> Result<(), Error> {
    let pause = UPKEEP_EVERY + UPKEEP_EVERY.mul_f64(f64::from(std::process::id() % 64) / 128.0);
    let (mut took, mut checked, mut changed) = (Duration::ZERO, 0, 0);
    loop {
        tokio::select! {
            () = context.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause.max(took * UPKEEP_SHARE)) => {}
        }
        context.pulse();
        let index = shared.index.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // If the index is not to be had, its ward is in trouble, and someone else is on it.
        let Ok(turn) = timeout(UPKEEP_EVERY, index.write_owned()).await else { continue };
        let work = shared.clone();
        let check = context.blocking(move |context| {
            let _turn = turn;
            let begun = Instant::now();
            let goes_on = |_: &&Indexed| !context.is_cancelled() && begun.elapsed() < LONGEST_TURN;
            let differs =
                |(path, sum): &Indexed| !std::fs::read(path).is_ok_and(|now| checksum(&now) == *sum);
            let found: Vec<bool> = work.files.iter().skip(checked).take_while(goes_on).map(differs).collect();
            (found, begun.elapsed())
        });
        let (found, lasted) = check.await?;
        took = lasted;
        checked += found.len();
        changed += found.iter().filter(|differs| **differs).count();
        if checked < shared.files.len() {
            continue;
        }
        context.set_status(match changed {
            0 => format!("{checked} files are as indexed"),
            n => format!("{n} files changed since they were indexed"),
        });
        (checked, changed) = (0, 0);
    }
}

struct Breaker(Arc<Shared>);

#[tonic::async_trait]
impl Chaos for Breaker {
    async fn next(&self, request: Request<ChaosRequest>) -> Result<Response<ChaosReply>, Status> {
        let request = request.into_inner();
        let next = (request.fault(), request.query);
        *self.0.next_fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(next);
        Ok(Response::new(ChaosReply {}))
    }
}
