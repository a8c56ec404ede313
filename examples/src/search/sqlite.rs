//! SQLite FTS5 on disk: the index knows where in a file each trigram stands, so nearly every candidate is a hit, and
//! neither text nor index is held in memory.
//!
//! A search asks its caller before each candidate and while it reads one, but not while SQLite looks for the next: that
//! takes up to a few milliseconds in 48 MiB of code.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rusqlite::{Connection, OpenFlags, params};

use super::{
    Answer, BuildError, Corpus, DataPath, Engine, Hit, KeepGoing, OnProgress, Progress, Query, SearchError,
    Stopped, matcher::Matcher,
};

const FILE_NAME: &str = "corpus.sqlite";
/// Connections kept open between searches.
const IDLE_CONNECTIONS: usize = 8;
/// Characters in a token of the index: a shorter query has no token to look up.
const TOKEN_CHARS: usize = 3;

/// Characters of the query that are looked up. Each costs SQLite one more list to walk, and few are needed to tell the
/// files apart; the candidates are compared with the whole query.
const LOOKED_UP_CHARS: usize = 32;

const SCHEMA: &str = "
    PRAGMA page_size = 8192;
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    CREATE TABLE file (id INTEGER PRIMARY KEY, path TEXT NOT NULL, text TEXT NOT NULL);
    CREATE VIRTUAL TABLE gram USING fts5 (
        text, content = 'file', content_rowid = 'id', columnsize = 0, tokenize = 'trigram case_sensitive 1');
    INSERT INTO gram (gram, rank) VALUES ('automerge', 0), ('crisismerge', 1999), ('hashsize', 33554432);
    BEGIN;
";
const CANDIDATES: &str = "SELECT rowid FROM gram WHERE gram MATCH ?1 ORDER BY rowid";
const EVERY_FILE: &str = "SELECT id FROM file WHERE ?1 <> '' ORDER BY id";
const ONE_FILE: &str = "SELECT path, text FROM file WHERE id = ?1";

/// A read-only index on disk, with a connection for each search that runs at the same time.
pub struct Sqlite {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Sqlite {
    /// Writes text and index to a database in the folder, replacing one that is there.
    ///
    /// # Errors
    /// [`BuildError::Folder`] when the folder cannot be used, [`BuildError::Index`] when SQLite refuses.
    pub fn build(corpus: &Corpus, dir: &Path, progress: OnProgress<'_>) -> Result<Self, BuildError> {
        let path = dir.join(FILE_NAME);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(BuildError::Folder { path: path.display().to_string(), source });
            }
            _ => {}
        }
        write(&path, corpus, progress)?;
        let engine = Self { path, idle: Mutex::default() };
        let first = engine.open()?;
        engine.give_back(first);
        Ok(engine)
    }

    /// Opens an index that [`Sqlite::build`] has finished in this folder.
    ///
    /// # Errors
    /// [`BuildError::Index`] when there is none, or SQLite refuses it.
    pub fn open_built(dir: &Path) -> Result<Self, BuildError> {
        let engine = Self { path: dir.join(FILE_NAME), idle: Mutex::default() };
        let first = engine.open()?;
        first.query_row("SELECT count(*) FROM file", [], |row| row.get::<_, i64>(0))?;
        engine.give_back(first);
        Ok(engine)
    }

    fn open(&self) -> Result<Connection, rusqlite::Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&self.path, flags)?;
        db.execute_batch("PRAGMA mmap_size = 1073741824;")?;
        Ok(db)
    }

    fn take(&self) -> Result<Connection, rusqlite::Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| self.open(), Ok)
    }

    fn give_back(&self, db: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONNECTIONS {
            idle.push(db);
        }
    }
}

impl Engine for Sqlite {
    fn data_path(&self) -> DataPath {
        DataPath::Sqlite
    }

    fn search(&self, query: &Query, limit: usize, keep_going: KeepGoing<'_>) -> Result<Answer, SearchError> {
        let db = self.take()?;
        let hits = find(&db, query, limit.saturating_add(1), keep_going);
        // A connection that failed is closed rather than given back.
        if matches!(hits, Ok(_) | Err(SearchError::Stopped(_))) {
            self.give_back(db);
        }
        Ok(Answer::cut(hits?, limit))
    }
}

fn write(path: &Path, corpus: &Corpus, progress: OnProgress<'_>) -> Result<(), rusqlite::Error> {
    let db = Connection::open(path)?;
    db.execute_batch(SCHEMA)?;
    let mut done = 0;
    {
        let mut file = db.prepare("INSERT INTO file (id, path, text) VALUES (?1, ?2, ?3)")?;
        let mut gram = db.prepare("INSERT INTO gram (rowid, text) VALUES (?1, ?2)")?;
        for (id, entry) in (0_i64..).zip(&corpus.files) {
            file.execute(params![id, entry.path, entry.text])?;
            gram.execute(params![id, entry.text])?;
            done += entry.text.len() as u64;
            progress(Progress { stage: "indexing", done, total: corpus.bytes });
        }
    }
    progress(Progress { stage: "merging", done: 0, total: corpus.bytes });
    db.execute_batch("INSERT INTO gram (gram) VALUES ('optimize'); COMMIT;")?;
    progress(Progress { stage: "merging", done: corpus.bytes, total: corpus.bytes });
    Ok(())
}

fn find(
    db: &Connection,
    query: &Query,
    upto: usize,
    keep_going: KeepGoing<'_>,
) -> Result<Vec<Hit>, SearchError> {
    let matcher = Matcher::new(query);
    let indexed = query.as_str().chars().nth(TOKEN_CHARS - 1).is_some();
    let mut candidates = db.prepare_cached(if indexed { CANDIDATES } else { EVERY_FILE })?;
    let mut one_file = db.prepare_cached(ONE_FILE)?;
    let start: String = query.as_str().chars().take(LOOKED_UP_CHARS).collect();
    let phrase = format!("\"{}\"", start.replace('"', "\"\""));
    let mut hits = Vec::new();
    let mut rows = candidates.query([phrase])?;
    while hits.len() < upto {
        if !keep_going() {
            return Err(Stopped.into());
        }
        let Some(row) = rows.next()? else { break };
        one_file.query_row([row.get::<_, i64>(0)?], |file| {
            let (path, text) = (file.get_ref(0)?.as_str()?, file.get_ref(1)?.as_str()?);
            Ok(matcher.collect(path, text, upto, &mut hits, keep_going))
        })??;
    }
    Ok(hits)
}
