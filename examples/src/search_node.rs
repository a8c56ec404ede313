//! The code search as a node: a service ward that searches, a task ward that keeps the index in step
//! with the files, and, in the quickstart, a way to break it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use tokio::{sync::RwLock, time::timeout};
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
    search::{Answer, Corpus, DataPath, Engine, Query, QueryError, SearchError},
};

/// Hits in a reply to a request that sets no limit.
const DEFAULT_LIMIT: u32 = 50;
/// Most hits in a reply.
const MOST_HITS: u32 = 1_000;
/// How often the index is compared with the files.
const UPKEEP_EVERY: Duration = Duration::from_millis(500);
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
    next_fault: AtomicI32,
    files: Vec<(PathBuf, u64, Option<SystemTime>)>,
}

/// Describes a node that searches. `chaos`: it can be told to break.
pub fn builder(name: &str, engine: Box<dyn Engine>, corpus: &Corpus, chaos: bool) -> NodeBuilder {
    let path = engine.data_path();
    let shared = Arc::new(Shared {
        engine: engine.into(),
        index: Mutex::default(),
        next_fault: AtomicI32::new(0),
        files: corpus.files.iter().map(|file| stamp(corpus.root.join(&file.path))).collect(),
    });
    let (for_search, for_upkeep) = (shared.clone(), shared.clone());
    let search = Ward::service("search", move |_| SearchServer::new(Searcher::new(for_search.clone())));
    let upkeep = Ward::task("upkeep", move |context| upkeep(context, for_upkeep.clone()));
    let mut builder = Node::builder(name)
        .label("data_path", path.as_str())
        .descriptors(pb::FILE_DESCRIPTOR_SET)
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
pub fn engine(path: DataPath, list: &Path, dir: &Path) -> Result<(Corpus, Box<dyn Engine>), String> {
    let corpus = Corpus::from_list(list).map_err(|e| e.to_string())?;
    if path == DataPath::Sqlite {
        let engine = crate::search::Sqlite::open_built(dir).map_err(|e| e.to_string())?;
        // The text is on disk: only the files' names are needed, to keep an eye on them.
        let files =
            corpus.files.into_iter().map(|file| crate::search::File { text: "".into(), ..file }).collect();
        return Ok((Corpus { files, ..corpus }, Box::new(engine)));
    }
    let corpus = Arc::new(corpus);
    let engine = path.build(corpus.clone(), dir, &|_| {}).map_err(|e| e.to_string())?;
    let names = |file: &crate::search::File| crate::search::File { path: file.path.clone(), text: "".into() };
    let files = corpus.files.iter().map(names).collect();
    Ok((Corpus { root: corpus.root.clone(), files, ..Corpus::from_texts::<String, String>([]) }, engine))
}

fn stamp(path: PathBuf) -> (PathBuf, u64, Option<SystemTime>) {
    let meta = path.metadata().ok();
    (path, meta.as_ref().map_or(0, std::fs::Metadata::len), meta.and_then(|m| m.modified().ok()))
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
        match Fault::try_from(self.shared.next_fault.swap(0, Relaxed)) {
            Ok(Fault::Hang) => return self.hang(context).await,
            Ok(Fault::Panic) => panic!("the search was told to panic"),
            Ok(Fault::None) | Err(_) => {}
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

    /// The bug: a thread takes the index for itself and never gives it back.
    async fn hang(&self, context: &WardContext) -> Result<Answer, Error> {
        let turn = self.index.clone().write_owned().await;
        let hung = context.blocking(move |_| {
            let _turn = turn;
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

/// Now and then looks whether the files are still those of the index, and lets no search in
/// meanwhile: the short pauses that every real service has (compaction, collection, reloading).
async fn upkeep(context: WardContext, shared: Arc<Shared>) -> Result<(), Error> {
    loop {
        tokio::select! {
            () = context.cancelled() => return Ok(()),
            () = tokio::time::sleep(UPKEEP_EVERY) => {}
        }
        context.pulse();
        let index = shared.index.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // If the index is not to be had, its ward is in trouble, and someone else is on it.
        let Ok(turn) = timeout(UPKEEP_EVERY, index.write_owned()).await else { continue };
        let work = shared.clone();
        let changed = context
            .blocking(move |context| {
                let _turn = turn;
                let same = |file: &&(PathBuf, u64, Option<SystemTime>)| stamp(file.0.clone()) != **file;
                work.files.iter().take_while(|_| !context.is_cancelled()).filter(same).count()
            })
            .await?;
        context.set_status(match changed {
            0 => format!("{} files as indexed", shared.files.len()),
            n => format!("{n} files changed since they were indexed"),
        });
    }
}

struct Breaker(Arc<Shared>);

#[tonic::async_trait]
impl Chaos for Breaker {
    async fn next(&self, request: Request<ChaosRequest>) -> Result<Response<ChaosReply>, Status> {
        self.0.next_fault.store(request.into_inner().fault, Relaxed);
        Ok(Response::new(ChaosReply {}))
    }
}
