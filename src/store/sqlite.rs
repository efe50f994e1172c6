//! The durable store: one `SQLite` file in WAL mode with full synchronisation, so that what was committed
//! survives a crash of the process and of the machine.
//!
//! One table per kind of record, each row a JSON body with its key and the version of its format: a
//! build refuses, by name, a record that a newer one wrote, instead of guessing. `meta` holds the
//! schema's version, the next generation and the lease. Every commit checks the lease's epoch inside
//! its own transaction, so a manager that was overtaken can write nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::presence::Presence;
use super::{EVENT_LIMIT, Store, StoreError};
use crate::types::Timestamp;
use crate::types::record::{Change, StoredState};

/// Marks the file as ours ("Forb").
const APPLICATION_ID: i64 = 0x466f_7262;
/// The layout of the tables.
const SCHEMA_VERSION: u64 = 2;
/// The format of every JSON body that this build writes; it reads this and older ones.
const RECORD_FORMAT: i64 = 1;
/// How long a call waits for another process that has the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Events appended before the oldest are dropped in one go.
const TRIM_EVERY: usize = EVENT_LIMIT / 20;

const SCHEMA: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE instance (key TEXT PRIMARY KEY, v INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE variant (key TEXT PRIMARY KEY, v INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE capacity (key TEXT PRIMARY KEY, v INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE event (key INTEGER PRIMARY KEY AUTOINCREMENT, v INTEGER NOT NULL, body TEXT NOT NULL);
    CREATE TABLE proxy (key TEXT PRIMARY KEY, v INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
";
/// What makes layout 2 out of layout 1, which did not know the proxies.
const FROM_1_TO_2: &str = "CREATE TABLE proxy (key TEXT PRIMARY KEY, v INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;";

/// An open database file.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    path: PathBuf,
    presence: Option<Presence>,
    untrimmed: usize,
}

impl SqliteStore {
    /// Opens the file at `path`, creating it if there is none.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the file is not a database of ours or of a newer layout,
    /// [`StoreError::Io`] when it cannot be opened or is locked.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let connection = Connection::open(&path).map_err(|e| explain(&path, &e))?;
        let mut store = Self { connection, path, presence: None, untrimmed: TRIM_EVERY };
        store.prepare()?;
        Ok(store)
    }

    fn prepare(&mut self) -> Result<(), StoreError> {
        let path = self.path.clone();
        let fail = |error: rusqlite::Error| explain(&path, &error);
        self.connection.busy_timeout(BUSY_TIMEOUT).map_err(fail)?;
        self.connection.pragma_update(None, "journal_mode", "WAL").map_err(fail)?;
        self.connection.pragma_update(None, "synchronous", "FULL").map_err(fail)?;
        let tx = self.begin()?;
        let application: i64 =
            tx.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(fail)?;
        let tables: i64 = tx
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(fail)?;
        if application == 0 && tables == 0 {
            tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(fail)?;
            tx.execute_batch(SCHEMA).map_err(fail)?;
            put_meta(&tx, "schema_version", &SCHEMA_VERSION).map_err(fail)?;
        } else if application != APPLICATION_ID {
            return Err(not_ours(&path, "it is another program's database"));
        }
        let schema = number(&tx, "schema_version").map_err(fail)?;
        if schema > SCHEMA_VERSION {
            return Err(StoreError::Corrupt {
                key: format!("schema of {}", path.display()),
                reason: format!(
                    "a newer forebay wrote it (layout {schema}, this build reads {SCHEMA_VERSION}); run that one, or set [store] path to a new file"
                ),
            });
        }
        if schema == 1 {
            tx.execute_batch(FROM_1_TO_2).map_err(fail)?;
            put_meta(&tx, "schema_version", &SCHEMA_VERSION).map_err(fail)?;
        }
        tx.commit().map_err(fail)
    }

    fn begin(&mut self) -> Result<Transaction<'_>, StoreError> {
        let Self { connection, path, .. } = self;
        connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|e| explain(path, &e))
    }

    fn read_all<T: DeserializeOwned>(&self, kind: &str, query: &str) -> Result<Vec<T>, StoreError> {
        let fail = |error: rusqlite::Error| explain(&self.path, &error);
        let mut statement = self.connection.prepare_cached(query).map_err(fail)?;
        let mut rows = statement.query([]).map_err(fail)?;
        let mut records = Vec::new();
        while let Some(row) = rows.next().map_err(fail)? {
            let key = row.get_ref(0).map_err(fail)?;
            let key = key.as_str().map_or_else(|_| format!("{:?}", key.as_i64()), str::to_owned);
            let corrupt =
                |reason: String| StoreError::Corrupt { key: format!("{kind} {key}"), reason };
            let format: i64 = row.get(1).map_err(fail)?;
            if format > RECORD_FORMAT {
                return Err(corrupt(format!(
                    "a newer forebay wrote it (format {format}, this build reads up to {RECORD_FORMAT})"
                )));
            }
            let body: String = row.get(2).map_err(|e| corrupt(e.to_string()))?;
            records.push(serde_json::from_str(&body).map_err(|e| corrupt(e.to_string()))?);
        }
        Ok(records)
    }
}

impl Store for SqliteStore {
    fn acquire_lease(
        &mut self,
        owner: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<u64, StoreError> {
        let path = self.path.clone();
        let fail = |error: rusqlite::Error| explain(&path, &error);
        let tx = self.begin()?;
        let holder = meta(&tx, "lease_owner").map_err(fail)?.unwrap_or_default();
        let mut epoch = number(&tx, "lease_epoch").map_err(fail)?;
        let expires_at = Timestamp(number(&tx, "lease_expires_at").map_err(fail)?);
        let mut presence = None;
        if holder != owner {
            if !holder.is_empty() && expires_at > now && !Presence::is_gone(&path, epoch) {
                let remaining = now.until(expires_at);
                return Err(StoreError::LeaseHeld { owner: holder, remaining });
            }
            Presence::forget(&path, epoch);
            epoch = super::next_epoch(epoch, now);
            presence = Presence::announce(&path, epoch);
            put_meta(&tx, "lease_owner", &owner).map_err(fail)?;
            put_meta(&tx, "lease_epoch", &epoch).map_err(fail)?;
        }
        put_meta(&tx, "lease_expires_at", &(now + ttl).0).map_err(fail)?;
        tx.commit().map_err(fail)?;
        if holder != owner {
            self.presence = presence;
        }
        Ok(epoch)
    }

    fn release_lease(&mut self, epoch: u64) -> Result<(), StoreError> {
        let path = self.path.clone();
        let fail = |error: rusqlite::Error| explain(&path, &error);
        let tx = self.begin()?;
        fence(&tx, &path, epoch)?;
        put_meta(&tx, "lease_owner", &"").map_err(fail)?;
        tx.commit().map_err(fail)?;
        if let Some(presence) = self.presence.take() {
            presence.end();
        }
        Ok(())
    }

    fn load(&mut self) -> Result<StoredState, StoreError> {
        // One read transaction, so that the parts belong together.
        let path = self.path.clone();
        let fail = |error: rusqlite::Error| explain(&path, &error);
        self.connection.execute_batch("BEGIN").map_err(fail)?;
        let state = self.read_state();
        self.connection.execute_batch("COMMIT").map_err(fail)?;
        state
    }

    fn commit(&mut self, epoch: u64, changes: &[Change]) -> Result<(), StoreError> {
        let path = self.path.clone();
        let fail = |error: rusqlite::Error| explain(&path, &error);
        let events = changes.iter().filter(|change| matches!(change, Change::Log(_))).count();
        let untrimmed = self.untrimmed + events;
        let trims = events > 0 && untrimmed >= TRIM_EVERY;
        let tx = self.begin()?;
        fence(&tx, &path, epoch)?;
        let before = number(&tx, "next_generation").map_err(fail)?;
        let mut next_generation = before;
        for change in changes {
            if let Change::PutInstance(record) = change {
                next_generation = next_generation.max(record.generation.0.saturating_add(1));
            }
            apply(&tx, &path, change)?;
        }
        if next_generation != before {
            put_meta(&tx, "next_generation", &next_generation).map_err(fail)?;
        }
        if trims {
            let oldest = format!(
                "DELETE FROM event WHERE key <= (SELECT max(key) FROM event) - {EVENT_LIMIT}"
            );
            tx.execute(&oldest, []).map_err(fail)?;
        }
        tx.commit().map_err(fail)?;
        self.untrimmed = if trims { 0 } else { untrimmed };
        Ok(())
    }
}

impl SqliteStore {
    fn read_state(&self) -> Result<StoredState, StoreError> {
        let next_generation = number(&self.connection, "next_generation")
            .map_err(|error| explain(&self.path, &error))?;
        let newest =
            format!("SELECT key, v, body FROM event ORDER BY key DESC LIMIT {EVENT_LIMIT}");
        let mut state = StoredState {
            next_generation,
            instances: self.read_all("instance", "SELECT key, v, body FROM instance")?,
            variants: self.read_all("variant", "SELECT key, v, body FROM variant")?,
            capacities: self.read_all("capacity", "SELECT key, v, body FROM capacity")?,
            proxies: self.read_all("proxy", "SELECT key, v, body FROM proxy")?,
            events: self.read_all("event", &newest)?,
        };
        state.instances.sort_by(|a, b| a.id.cmp(&b.id));
        state.variants.sort_by(|a, b| a.variant.cmp(&b.variant));
        state.capacities.sort_by(|a, b| a.key.cmp(&b.key));
        state.proxies.sort_by(|a, b| a.id.cmp(&b.id));
        state.events.reverse();
        Ok(state)
    }
}

fn apply(tx: &Transaction<'_>, path: &Path, change: &Change) -> Result<(), StoreError> {
    match change {
        Change::PutInstance(record) => put(tx, path, "instance", record.id.as_str(), record),
        Change::DeleteInstance(id) => delete(tx, path, "instance", id.as_str()),
        Change::PutVariant(record) => put(tx, path, "variant", &record.variant.to_string(), record),
        Change::DeleteVariant(key) => delete(tx, path, "variant", &key.to_string()),
        Change::PutCapacity(record) => put(tx, path, "capacity", &text(&record.key)?, record),
        Change::DeleteCapacity(key) => delete(tx, path, "capacity", &text(key)?),
        Change::PutProxy(record) => put(tx, path, "proxy", record.id.as_str(), record),
        Change::DeleteProxy(id) => delete(tx, path, "proxy", id.as_str()),
        Change::Log(event) => {
            let body = text(event)?;
            tx.prepare_cached("INSERT INTO event (v, body) VALUES (?1, ?2)")
                .and_then(|mut statement| statement.execute(params![RECORD_FORMAT, body]))
                .map_err(|error| explain(path, &error))?;
            Ok(())
        }
    }
}

fn put(
    tx: &Transaction<'_>,
    path: &Path,
    table: &str,
    key: &str,
    record: &impl Serialize,
) -> Result<(), StoreError> {
    let body = text(record)?;
    let query = format!("INSERT OR REPLACE INTO {table} (key, v, body) VALUES (?1, ?2, ?3)");
    tx.prepare_cached(&query)
        .and_then(|mut statement| statement.execute(params![key, RECORD_FORMAT, body]))
        .map_err(|error| explain(path, &error))?;
    Ok(())
}

fn delete(tx: &Transaction<'_>, path: &Path, table: &str, key: &str) -> Result<(), StoreError> {
    tx.prepare_cached(&format!("DELETE FROM {table} WHERE key = ?1"))
        .and_then(|mut statement| statement.execute(params![key]))
        .map_err(|error| explain(path, &error))?;
    Ok(())
}

fn text(record: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(record)
        .map_err(|error| StoreError::Io(format!("a record cannot be written as JSON: {error}")))
}

fn fence(tx: &Transaction<'_>, path: &Path, epoch: u64) -> Result<(), StoreError> {
    let fail = |error: rusqlite::Error| explain(path, &error);
    let held = !meta(tx, "lease_owner").map_err(fail)?.unwrap_or_default().is_empty();
    if held && number(tx, "lease_epoch").map_err(fail)? == epoch {
        Ok(())
    } else {
        Err(StoreError::Fenced { epoch })
    }
}

fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
        .query_row(params![key], |row| row.get(0))
        .optional()
}

fn number(connection: &Connection, key: &str) -> rusqlite::Result<u64> {
    let Some(value) = meta(connection, key)? else { return Ok(0) };
    value.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
    })
}

fn put_meta(tx: &Transaction<'_>, key: &str, value: &impl ToString) -> rusqlite::Result<()> {
    tx.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
        .execute(params![key, value.to_string()])?;
    Ok(())
}

fn not_ours(path: &Path, what: &str) -> StoreError {
    StoreError::Corrupt {
        key: path.display().to_string(),
        reason: format!("{what}; move the file away or set [store] path to another one"),
    }
}

/// Puts what `SQLite` said into words that name the file and what to do.
fn explain(path: &Path, error: &rusqlite::Error) -> StoreError {
    let file = path.display();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => not_ours(path, "it is not a database"),
        Some(ErrorCode::DatabaseCorrupt) => not_ours(path, "the database is damaged"),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Io(format!(
            "{file} has been locked by another program for more than {BUSY_TIMEOUT:?}; end that program or try again"
        )),
        Some(ErrorCode::CannotOpen) => StoreError::Io(format!(
            "cannot open {file} ({error}); does its directory exist, and may this user write there?"
        )),
        Some(ErrorCode::ReadOnly) => {
            StoreError::Io(format!("cannot write to {file}: it or its directory is read-only"))
        }
        Some(ErrorCode::DiskFull) => StoreError::Io(format!("the disk that holds {file} is full")),
        _ => StoreError::Io(format!("{file}: {error}")),
    }
}

#[cfg(test)]
mod tests;
