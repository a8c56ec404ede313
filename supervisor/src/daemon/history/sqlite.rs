//! SQLite in WAL mode with `synchronous=FULL`: what was committed survives a power cut. A file that
//! is damaged, of a later version or not ours is refused; nothing is ever begun anew in its place.

use std::{path::Path, sync::Arc, time::Duration};

use prost::Message as _;
use rusqlite::{
    Connection, ErrorCode, Row, Transaction, TransactionBehavior, params, params_from_iter, types::Value,
};
use wardkeep_proto::v1;

use super::{
    super::failpoint,
    intent::{Aim, Intent},
    store::{
        Change, DECISIONS, Filter, HoldKey, MOST_DECISIONS, Millis, OF_GROUPS, Retention, State, Store,
        StoreError, Write, millis,
    },
};

/// "wdkp": so that `file` and people can tell whose it is.
const APPLICATION_ID: i64 = 0x7764_6B70;
/// Each takes a store from the version before; a store's version is how many it has seen.
const MIGRATIONS: [&str; 2] = [include_str!("schema_1.sql"), include_str!("schema_2.sql")];
/// For someone who looks at it with `sqlite3` to let go of a lock.
const BUSY: Duration = Duration::from_secs(1);
/// Rows deleted, and pages given back, in one step.
const STEP: i64 = 500;

pub(super) struct SqliteStore {
    db: Connection,
}

impl SqliteStore {
    /// Opens the file, or creates it where there is none.
    ///
    /// # Errors
    /// One line that says what to do.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let db = Connection::open(path)?;
        db.busy_timeout(BUSY)?;
        let fresh = check_identity(&db)?;
        if fresh {
            // Only possible before there is any table.
            db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        }
        assert_durable(&db)?;
        if !fresh {
            check_integrity(&db)?;
        }
        let mut store = Self { db };
        store.migrate()?;
        if fresh {
            // Out of the log and into the file: a file that has lost its log is not taken for a new one.
            store.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            tracing::info!(path = %path.display(), "a new history begins");
        }
        Ok(store)
    }

    fn migrate(&mut self) -> Result<(), StoreError> {
        let version = pragma(&self.db, "user_version")?;
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for (from, migration) in MIGRATIONS.iter().enumerate() {
            let to = i64::try_from(from).unwrap_or(i64::MAX) + 1;
            if version < to {
                tx.execute_batch(migration)?;
                tx.pragma_update(None, "user_version", to)?;
                tx.pragma_update(None, "application_id", APPLICATION_ID)?;
            }
        }
        Ok(tx.commit()?)
    }

    fn sequence(&self, sql: &str, params: &[Value]) -> Result<Option<i64>, StoreError> {
        Ok(self.db.prepare_cached(sql)?.query_row(params_from_iter(params), |row| row.get(0))?)
    }
}

/// Whether it is a new file. Refuses what is not ours, or newer.
fn check_identity(db: &Connection) -> Result<bool, StoreError> {
    let application = pragma(db, "application_id")?;
    let version = pragma(db, "user_version")?;
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if (application, version, tables) == (0, 0, 0) {
        return Ok(true);
    }
    if application != APPLICATION_ID {
        return Err(StoreError("it is a database, but not a history of wardkeep's; move it away".into()));
    }
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if version > known {
        let text = format!(
            "it was written by a later wardkeep (version {version}, this one knows {known}); use that one, or move it away"
        );
        return Err(StoreError(text));
    }
    Ok(false)
}

/// Nothing is worth being confirmed that a power cut could take back.
fn assert_durable(db: &Connection) -> Result<(), StoreError> {
    let mode: String = db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    db.pragma_update(None, "synchronous", "FULL")?;
    let synchronous = pragma(db, "synchronous")?;
    if mode != "wal" || synchronous != 2 {
        let text = format!(
            "the file system gives no durable writes (journal_mode is {mode}, synchronous is {synchronous}); choose a local disk"
        );
        return Err(StoreError(text));
    }
    Ok(())
}

fn check_integrity(db: &Connection) -> Result<(), StoreError> {
    let found: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found == "ok" { Ok(()) } else { Err(damaged(&found.replace('\n', " "))) }
}

fn damaged(what: &str) -> StoreError {
    StoreError(format!(
        "it is damaged ({what}); rescue what can be read with `sqlite3 history.db .recover`, or move it away to begin anew"
    ))
}

fn pragma(db: &Connection, name: &str) -> Result<i64, StoreError> {
    Ok(db.pragma_query_value(None, name, |row| row.get(0))?)
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => damaged(&error.to_string()),
            Some(ErrorCode::DiskFull) => StoreError("the disk is full".into()),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                StoreError("another program holds a lock on it".into())
            }
            _ => StoreError(error.to_string()),
        }
    }
}

impl Store for SqliteStore {
    fn commit(&mut self, writes: &[Arc<Write>]) -> Result<(), StoreError> {
        if failpoint::disk_is_full() {
            return Err(StoreError("the disk is full".into()));
        }
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for write in writes {
            write.changes.iter().try_for_each(|made| change(&tx, made))?;
            write.events.iter().try_for_each(|event| insert(&tx, event))?;
        }
        Ok(tx.commit()?)
    }

    fn state(&mut self, since: Millis) -> Result<State, StoreError> {
        let last_sequence = self.sequence("SELECT max(sequence) FROM event", &[])?;
        let last_intent = self.sequence("SELECT max(id) FROM intent", &[])?;
        let mut open = self.db.prepare("SELECT * FROM intent WHERE closed_at IS NULL ORDER BY id")?;
        let intents = open.query_map([], intent)?.filter_map(Result::transpose).collect::<Result<_, _>>()?;
        let mut rest = self.db.prepare("SELECT node, ward, quarantined FROM hold")?;
        let hold = |row: &Row<'_>| -> rusqlite::Result<(HoldKey, bool)> {
            Ok(((row.get(0)?, row.get(1)?), row.get(2)?))
        };
        let holds = rest.query_map([], hold)?.collect::<Result<_, _>>()?;
        let kinds = DECISIONS.map(|kind| format!("'{}'", word(kind))).join(", ");
        let mut newest = self.db.prepare(&format!(
            "SELECT body FROM event WHERE at >= ?1 AND kind IN ({kinds}) ORDER BY sequence DESC LIMIT ?2"
        ))?;
        let mut decisions =
            bodies(newest.query_map(params![since, number(MOST_DECISIONS)], |row| row.get(0))?)?;
        decisions.reverse();
        Ok(State {
            last_sequence: last_sequence.map_or(0, i64::unsigned_abs),
            last_intent: last_intent.map_or(0, i64::unsigned_abs),
            intents,
            holds,
            decisions,
        })
    }

    fn locate(&mut self, filter: &Filter) -> Result<u64, StoreError> {
        let mut after = filter.after;
        if let Some(since) = filter.since {
            let first = self.sequence("SELECT min(sequence) FROM event WHERE at >= ?1", &[since.into()])?;
            let newest = self.sequence("SELECT max(sequence) FROM event", &[])?.unwrap_or(0);
            after = after.max(first.map_or(newest, |first| first - 1).unsigned_abs());
        }
        if filter.newest == 0 {
            return Ok(after);
        }
        let (parts, params) = place(filter, after, filter.newest);
        let sql = format!("SELECT min(sequence) FROM ({})", union("sequence", &parts, "DESC"));
        Ok(self.sequence(&sql, &params)?.map_or(after, |first| first.unsigned_abs() - 1))
    }

    fn page(&mut self, filter: &Filter, after: u64, limit: usize) -> Result<Vec<v1::Event>, StoreError> {
        let (parts, params) = place(filter, after, limit);
        let sql = format!("SELECT body FROM ({})", union("sequence, body", &parts, "ASC"));
        let mut found = self.db.prepare_cached(&sql)?;
        bodies(found.query_map(params_from_iter(params), |row| row.get(0))?)
    }

    fn trim(&mut self, retention: &Retention, now: Millis) -> Result<bool, StoreError> {
        let age = i64::try_from(retention.max_age.as_millis()).unwrap_or(i64::MAX);
        let oldest = now.saturating_sub(age);
        let too_much = self.used()? > retention.max_bytes;
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let old = "DELETE FROM event WHERE sequence IN (SELECT sequence FROM event WHERE at < ?1 ORDER BY at LIMIT ?2)
            AND sequence < (SELECT max(sequence) FROM event)";
        let mut dropped = tx.execute(old, params![oldest, STEP])?;
        if too_much && dropped == 0 {
            let first =
                "DELETE FROM event WHERE sequence IN (SELECT sequence FROM event ORDER BY sequence LIMIT ?1)
                AND sequence < (SELECT max(sequence) FROM event)";
            dropped = tx.execute(first, params![STEP])?;
        }
        // What came true goes with the events of its time.
        let since: Option<i64> = tx.query_row("SELECT min(at) FROM event", [], |row| row.get(0))?;
        let closed = "DELETE FROM intent WHERE id IN
            (SELECT id FROM intent WHERE closed_at IS NOT NULL AND closed_at < ?1 ORDER BY closed_at LIMIT ?2)
            AND id < (SELECT max(id) FROM intent)";
        let closed = tx.execute(closed, params![since.unwrap_or(oldest), STEP])?;
        tx.commit()?;
        if dropped + closed > 0 {
            // It gives back a page at each step, and none that is not taken.
            let mut vacuum = self.db.prepare(&format!("PRAGMA incremental_vacuum({STEP})"))?;
            let mut pages = vacuum.query([])?;
            while pages.next()?.is_some() {}
        }
        Ok(dropped.max(closed) >= number(STEP).unsigned_abs() as usize
            || (dropped > 0 && self.used()? > retention.max_bytes))
    }

    fn used(&mut self) -> Result<u64, StoreError> {
        let pages = pragma(&self.db, "page_count")? - pragma(&self.db, "freelist_count")?;
        Ok(pages.unsigned_abs() * pragma(&self.db, "page_size")?.unsigned_abs())
    }
}

fn number(n: impl TryInto<i64>) -> i64 {
    n.try_into().unwrap_or(i64::MAX)
}

/// The conditions that fit a filter's place, each served by an index and none overlapping another,
/// and the parameters: after, limit, node, ward, group.
fn place(filter: &Filter, after: u64, limit: usize) -> (Vec<String>, Vec<Value>) {
    let mut params: Vec<Value> = vec![number(after).into(), number(limit).into()];
    let parts = if filter.node.is_empty() {
        vec!["1".to_owned()]
    } else if filter.ward.is_empty() {
        params.push(filter.node.clone().into());
        vec!["node = ''".to_owned(), "node = ?3".to_owned()]
    } else {
        let texts = [&filter.node, &filter.ward].into_iter().chain(&filter.groups);
        params.extend(texts.map(|text| Value::from(text.clone())));
        let kinds = OF_GROUPS.map(|kind| format!("'{}'", word(kind))).join(", ");
        let group =
            |n| format!("grp = ?{} AND kind IN ({kinds}) AND NOT (node = ?3 AND ward IN (?4, ''))", 5 + n);
        let own = ["node = ''", "node = ?3 AND ward = ''", "node = ?3 AND ward = ?4"].map(str::to_owned);
        own.into_iter().chain((0..filter.groups.len()).map(group)).collect()
    };
    (parts, params)
}

fn union(columns: &str, parts: &[String], order: &str) -> String {
    let part = |condition: &String| {
        format!(
            "SELECT * FROM (SELECT {columns} FROM event WHERE {condition} AND sequence > ?1 ORDER BY sequence {order} LIMIT ?2)"
        )
    };
    let all = parts.iter().map(part).collect::<Vec<_>>().join(" UNION ALL ");
    format!("SELECT * FROM ({all}) ORDER BY sequence {order} LIMIT ?2")
}

fn bodies(rows: impl Iterator<Item = rusqlite::Result<Vec<u8>>>) -> Result<Vec<v1::Event>, StoreError> {
    rows.map(|body| v1::Event::decode(body?.as_slice()).map_err(|e| damaged(&e.to_string()))).collect()
}

fn word(kind: v1::EventKind) -> String {
    let name = kind.as_str_name();
    name.strip_prefix("EVENT_KIND_").unwrap_or(name).to_ascii_lowercase()
}

fn insert(tx: &Transaction<'_>, event: &v1::Event) -> Result<(), StoreError> {
    let sql = "INSERT OR REPLACE INTO event
        (sequence, at, kind, node, ward, grp, incarnation, text, error_id, actor, epoch, body)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
    tx.prepare_cached(sql)?.execute(params![
        number(event.sequence),
        millis(event),
        word(event.kind()),
        event.node,
        event.ward,
        event.group,
        number(event.incarnation),
        event.text,
        event.error.as_ref().map_or("", |error| &error.id),
        event.actor,
        number(event.epoch),
        event.encode_to_vec(),
    ])?;
    Ok(())
}

fn change(tx: &Transaction<'_>, change: &Change) -> Result<(), StoreError> {
    match change {
        Change::Open(intent) => open(tx, intent)?,
        Change::Close { id, at, outcome } => {
            let sql = "UPDATE intent SET closed_at = ?2, outcome = ?3 WHERE id = ?1";
            tx.prepare_cached(sql)?.execute(params![number(*id), at, outcome])?;
        }
        Change::Hold { ward: (node, ward), quarantined } => {
            let sql = "INSERT OR REPLACE INTO hold (node, ward, quarantined) VALUES (?1, ?2, ?3)";
            tx.prepare_cached(sql)?.execute(params![node, ward, quarantined])?;
        }
        Change::Release { ward: (node, ward) } => {
            let sql = "DELETE FROM hold WHERE node = ?1 AND ward = ?2";
            tx.prepare_cached(sql)?.execute(params![node, ward])?;
        }
    }
    Ok(())
}

fn open(tx: &Transaction<'_>, intent: &Intent) -> Result<(), StoreError> {
    let sql = "INSERT OR REPLACE INTO intent
        (id, aim, node, ward, incarnation, boot, counted, asked, drain_ms, decided_at, due_at, reason, actor,
         error_id, traceparent, epoch)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";
    tx.prepare_cached(sql)?.execute(params![
        number(intent.id),
        intent.aim.word(),
        intent.node,
        intent.ward,
        number(intent.incarnation),
        intent.boot,
        intent.counted,
        intent.asked,
        intent.drain_ms,
        intent.decided_at,
        intent.due_at,
        intent.reason,
        intent.actor,
        intent.error_id,
        intent.traceparent,
        number(intent.epoch),
    ])?;
    Ok(())
}

/// `None`: of a kind this version does not know, which can only be left as it is.
fn intent(row: &Row<'_>) -> rusqlite::Result<Option<Intent>> {
    let unsigned = |column: &str| row.get::<_, i64>(column).map(i64::unsigned_abs);
    let Some(aim) = Aim::from_word(&row.get::<_, String>("aim")?) else { return Ok(None) };
    Ok(Some(Intent {
        id: unsigned("id")?,
        aim,
        node: row.get("node")?,
        ward: row.get("ward")?,
        incarnation: unsigned("incarnation")?,
        boot: row.get("boot")?,
        counted: row.get("counted")?,
        asked: row.get("asked")?,
        drain_ms: row.get("drain_ms")?,
        decided_at: row.get("decided_at")?,
        due_at: row.get("due_at")?,
        reason: row.get("reason")?,
        actor: row.get("actor")?,
        error_id: row.get("error_id")?,
        traceparent: row.get("traceparent")?,
        epoch: unsigned("epoch")?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(spoil: impl FnOnce(&Path)) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.db");
        drop(SqliteStore::open(&path).unwrap());
        spoil(&path);
        let line = SqliteStore::open(&path).err().expect("refused").to_string();
        assert!(path.exists(), "it is left where it is");
        assert_eq!(line.lines().count(), 1, "{line}");
        line
    }

    fn sql(path: &Path, sql: &str) {
        Connection::open(path).unwrap().execute_batch(sql).unwrap();
    }

    #[test]
    fn a_store_of_a_later_version_is_refused() {
        let line = refused(|path| sql(path, "PRAGMA user_version = 9"));
        assert!(
            line.starts_with("it was written by a later wardkeep (version 9, this one knows 2)"),
            "{line}"
        );
    }

    #[test]
    fn somebody_elses_database_is_refused() {
        let line = refused(|path| sql(path, "PRAGMA application_id = 5"));
        assert!(line.contains("not a history of wardkeep's"), "{line}");
    }

    #[test]
    fn a_damaged_file_is_refused_and_never_begun_anew() {
        let line = refused(|path| {
            std::fs::write(path, "this is no database, and long enough to be looked at").unwrap()
        });
        assert!(line.starts_with("it is damaged") && line.contains(".recover"), "{line}");
        // The head is whole, a page is not.
        let line = refused(|path| {
            let mut bytes = std::fs::read(path).unwrap();
            bytes[4_096..8_192].fill(0xA5);
            std::fs::write(path, bytes).unwrap();
        });
        assert!(line.starts_with("it is damaged"), "{line}");
    }

    #[test]
    fn it_is_durable_and_marked_as_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.db");
        let store = SqliteStore::open(&path).unwrap();
        let head = std::fs::read(&path).unwrap();
        assert_eq!(&head[68..72], b"wdkp", "also while its log is elsewhere");
        let read = |name| pragma(&store.db, name).unwrap();
        assert_eq!(
            (read("synchronous"), read("application_id"), read("user_version")),
            (2, APPLICATION_ID, 2)
        );
        assert_eq!(read("auto_vacuum"), 2, "space can be given back in small steps");
        let mode: String = store.db.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        assert_eq!(mode, "wal");
    }

    #[test]
    fn each_question_is_answered_by_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("history.db")).unwrap();
        let filter = Filter {
            node: "n".into(),
            ward: "w".into(),
            groups: vec!["g".into(), "p".into()],
            ..Filter::default()
        };
        let (parts, params) = place(&filter, 0, 10);
        let plan = format!("EXPLAIN QUERY PLAN {}", union("sequence", &parts, "DESC"));
        let mut plan = store.db.prepare(&plan).unwrap();
        let steps: Vec<String> =
            plan.query_map(params_from_iter(params), |row| row.get(3)).unwrap().map(Result::unwrap).collect();
        assert!(!steps.iter().any(|step| step.starts_with("SCAN event")), "{steps:#?}");
    }
}
