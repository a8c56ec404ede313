//! One code search, three data paths, one answer.
//!
//! The answer is defined here and nowhere else: the lines that contain a [`Query`] as a literal, case-sensitive
//! substring, ordered by path and then by line, the first `limit` of them. Every [`Engine`] gives exactly this answer;
//! they differ only in how long they take, and over what:
//!
//! * [`Scan`]: reads everything in parallel; best when the first hits come soon;
//! * [`Trigram`]: an index in memory; best when the trigrams of the query are rarely together in one file;
//! * [`Sqlite`]: an FTS5 index on disk that knows positions, and needs no corpus in memory.
//!
//! A search asks its caller at least once per 64 KiB of text it reads whether to go on.

mod corpus;
mod matcher;
mod queries;
mod scan;
mod sqlite;
mod trigram;

use std::{fmt, path::Path, str::FromStr, sync::Arc};

pub use self::{
    corpus::{Corpus, CorpusError, DEFAULT_MAX_BYTES, File, MAX_FILE_BYTES},
    queries::{Drawn, QueryKind, draw},
    scan::Scan,
    sqlite::Sqlite,
    trigram::Trigram,
};

/// A text to search for, known to be 3 to 200 bytes without a line break or NUL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Query(String);

/// What is wrong with the text of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Fewer than [`Query::MIN_BYTES`].
    #[error("a query needs at least {min} bytes, this one has {0}", min = Query::MIN_BYTES)]
    TooShort(usize),
    /// More than [`Query::MAX_BYTES`].
    #[error("a query has at most {max} bytes, this one has {0}", max = Query::MAX_BYTES)]
    TooLong(usize),
    /// A carriage return, line feed or NUL.
    #[error("a query is one line of text: no line break and no NUL")]
    NotOneLine,
}

impl Query {
    /// Shortest query, in bytes: one trigram.
    pub const MIN_BYTES: usize = 3;
    /// Longest query, in bytes.
    pub const MAX_BYTES: usize = 200;

    /// Checks the text of a query.
    ///
    /// # Errors
    /// [`QueryError`] says which rule the text breaks.
    pub fn new(text: impl Into<String>) -> Result<Self, QueryError> {
        let text = text.into();
        match text.len() {
            n if n < Self::MIN_BYTES => Err(QueryError::TooShort(n)),
            n if n > Self::MAX_BYTES => Err(QueryError::TooLong(n)),
            _ if text.contains(['\n', '\r', '\0']) => Err(QueryError::NotOneLine),
            _ => Ok(Self(text)),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One line that contains the query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Path of the file, relative to the corpus.
    pub path: String,
    /// Counted from 1.
    pub line: u32,
    /// Byte in the line at which the first occurrence starts, counted from 1.
    pub column: u32,
    /// The line without its end, at most 200 characters of it.
    pub text: String,
}

/// The answer to a query: the same from every engine over the same corpus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Ordered by path, then by line.
    pub hits: Vec<Hit>,
    /// False when there are more hits than the limit let through.
    pub complete: bool,
}

impl Answer {
    /// Cuts hits that were gathered up to one beyond `limit`.
    fn cut(mut hits: Vec<Hit>, limit: usize) -> Self {
        let complete = hits.len() <= limit;
        hits.truncate(limit);
        Self { hits, complete }
    }
}

/// Asked at least once per 64 KiB of text read; `false` ends the search.
pub type KeepGoing<'a> = &'a (dyn Fn() -> bool + Sync);

/// The caller said not to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the search was stopped by its caller")]
pub struct Stopped;

/// Why a search has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The caller said not to go on.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The index on disk failed.
    #[error("the search index failed: {0}")]
    Index(#[from] rusqlite::Error),
}

/// Why an engine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The threads of the scan or of the build did not start.
    #[error("cannot start the search threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// The folder of the index cannot be used.
    #[error("cannot write the index {path}: {source}")]
    Folder {
        /// The file or folder.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// SQLite refused.
    #[error("cannot build the index: {0}")]
    Index(#[from] rusqlite::Error),
}

/// How far a load or a build is, in bytes of corpus text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, for people: "reading", "indexing", "merging".
    pub stage: &'static str,
    /// Bytes done in this stage.
    pub done: u64,
    /// Bytes in this stage; never less than `done`.
    pub total: u64,
}

/// Told how far the work is; called from several threads.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Sync);

/// A data path that is ready to answer. Searches block their thread: call from a blocking thread.
pub trait Engine: Send + Sync {
    /// Which one this is.
    fn data_path(&self) -> DataPath;

    /// The first `limit` hits.
    ///
    /// # Errors
    /// [`SearchError::Stopped`] soon after `keep_going` said no; [`SearchError::Index`] when the disk failed.
    fn search(&self, query: &Query, limit: usize, keep_going: KeepGoing<'_>) -> Result<Answer, SearchError>;
}

/// The data paths there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DataPath {
    /// Parallel scan of the text in memory.
    Scan,
    /// Trigram index in memory.
    Trigram,
    /// SQLite FTS5 on disk.
    Sqlite,
}

impl DataPath {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Scan, Self::Trigram, Self::Sqlite];

    /// The name in flags, labels and replies.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Trigram => "trigram",
            Self::Sqlite => "sqlite",
        }
    }

    /// Builds the engine over the corpus. `dir` is an existing folder for what goes on disk (only SQLite writes there);
    /// the caller removes it when the engine is gone.
    ///
    /// # Errors
    /// [`BuildError`] when threads, folder or database cannot be had.
    pub fn build(
        self,
        corpus: Arc<Corpus>,
        dir: &Path,
        progress: OnProgress<'_>,
    ) -> Result<Box<dyn Engine>, BuildError> {
        Ok(match self {
            Self::Scan => Box::new(Scan::new(corpus)?),
            Self::Trigram => Box::new(Trigram::build(corpus, progress)?),
            Self::Sqlite => Box::new(Sqlite::build(&corpus, dir, progress)?),
        })
    }
}

impl fmt::Display for DataPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A name that is no data path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no data path is called {0:?}: use scan, trigram or sqlite")]
pub struct UnknownDataPath(String);

impl FromStr for DataPath {
    type Err = UnknownDataPath;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|path| path.as_str() == name).ok_or_else(|| UnknownDataPath(name.into()))
    }
}

/// A pool of threads of its own for half of the cores, so that no engine takes the threads of another, and one that is
/// busy leaves room for those that run beside it.
fn pool(name: &'static str) -> Result<rayon::ThreadPool, rayon::ThreadPoolBuildError> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
    rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(move |n| format!("{name}-{n}")).build()
}
