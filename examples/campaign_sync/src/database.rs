//! The worker's database, SQLite or PostgreSQL, with a span a query by the database conventions (semantic-conventions 1.44).

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use tokio_postgres::NoTls;

use crate::{ads, http};

/// The company of the story, and its profiles.
pub(crate) const COMPANY: i64 = 5000;
pub(crate) const PROFILES: [i64; 3] = [50_000_100, ads::FLAKY, ads::BROKEN];

/// Cheap to clone.
#[derive(Clone)]
pub(crate) enum Database {
    Sqlite(Arc<Mutex<rusqlite::Connection>>),
    Postgres(Arc<tokio_postgres::Client>),
}

/// What went wrong; its text names no credentials.
#[derive(Debug)]
pub(crate) enum DatabaseError {
    Sqlite(rusqlite::Error),
    Postgres(tokio_postgres::Error),
    Ended,
}

impl std::fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(error) => write!(f, "SQLite: {error}"),
            Self::Postgres(error) => write!(f, "PostgreSQL: {error}"),
            Self::Ended => f.write_str("the query was given up"),
        }
    }
}

impl std::error::Error for DatabaseError {}

const TABLES: &str = "CREATE TABLE IF NOT EXISTS profiles (id BIGINT PRIMARY KEY, company BIGINT NOT NULL, account TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS reports (profile BIGINT PRIMARY KEY, impressions BIGINT NOT NULL);";
const PROFILES_OF: &str = "SELECT id FROM profiles WHERE company = $1 ORDER BY id";
const ACCOUNT_OF: &str = "SELECT account FROM profiles WHERE id = $1";
const SAVE: &str = "INSERT INTO reports (profile, impressions) VALUES ($1, $2) \
    ON CONFLICT (profile) DO UPDATE SET impressions = excluded.impressions";

impl Database {
    /// Opens it, with the tables and the profiles of the story.
    pub(crate) async fn open(at: &str) -> Result<Self> {
        let seed = PROFILES
            .map(|id| {
                format!(
                    "INSERT INTO profiles VALUES ({id}, {COMPANY}, 'account-{id}') ON CONFLICT DO NOTHING;"
                )
            })
            .concat();
        if at.starts_with("postgres://") || at.starts_with("postgresql://") {
            let (client, connection) =
                tokio_postgres::connect(at, NoTls).await.context("cannot connect to PostgreSQL")?;
            // It ends with the client.
            tokio::spawn(connection);
            client.batch_execute(&format!("{TABLES}{seed}")).await.context("cannot make the tables")?;
            return Ok(Self::Postgres(Arc::new(client)));
        }
        let connection =
            rusqlite::Connection::open(Path::new(at)).with_context(|| format!("cannot open {at}"))?;
        connection.execute_batch(&format!("{TABLES}{seed}")).context("cannot make the tables")?;
        Ok(Self::Sqlite(Arc::new(Mutex::new(connection))))
    }

    /// The profiles of a company.
    pub(crate) async fn profiles(&self, company: i64) -> Result<Vec<i64>, DatabaseError> {
        let rows = self.query(
            ("SELECT", "profiles", PROFILES_OF),
            vec![company],
            |row| row.get(0),
            |row| row.try_get(0),
        );
        rows.await
    }

    /// The account of a profile, if there is one.
    pub(crate) async fn account(&self, profile: i64) -> Result<Option<String>, DatabaseError> {
        let rows = self.query(
            ("SELECT", "profiles", ACCOUNT_OF),
            vec![profile],
            |row| row.get(0),
            |row| row.try_get(0),
        );
        Ok(rows.await?.pop())
    }

    /// Saves a report.
    pub(crate) async fn save(&self, profile: i64, impressions: i64) -> Result<(), DatabaseError> {
        let values = vec![profile, impressions];
        self.query(("INSERT", "reports", SAVE), values, |_| Ok(()), |_| Ok(())).await.map(drop)
    }

    /// One query, in a span.
    async fn query<T: Send + 'static>(
        &self,
        (operation, table, text): (&'static str, &'static str, &'static str),
        values: Vec<i64>,
        of_sqlite: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<T> + Send + 'static,
        of_postgres: impl Fn(&tokio_postgres::Row) -> Result<T, tokio_postgres::Error>,
    ) -> Result<Vec<T>, DatabaseError> {
        let (system, client) = match self {
            Self::Sqlite(connection) => ("sqlite", Err(connection.clone())),
            Self::Postgres(client) => ("postgresql", Ok(client)),
        };
        let attributes = vec![
            KeyValue::new("db.system.name", system),
            KeyValue::new("db.operation.name", operation),
            KeyValue::new("db.collection.name", table),
            KeyValue::new("db.query.text", text),
        ];
        let work = async {
            match client {
                Ok(client) => {
                    let values: Vec<_> = values
                        .iter()
                        .map(|value| value as &(dyn tokio_postgres::types::ToSql + Sync))
                        .collect();
                    let rows = client.query(text, &values).await.map_err(DatabaseError::Postgres)?;
                    rows.iter().map(of_postgres).collect::<Result<_, _>>().map_err(DatabaseError::Postgres)
                }
                // It may wait for the disk.
                Err(connection) => {
                    blocking(move || {
                        let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
                        let mut statement = connection.prepare_cached(text)?;
                        let rows = statement.query_map(rusqlite::params_from_iter(values), of_sqlite)?;
                        rows.collect()
                    })
                    .await
                }
            }
        };
        let name = format!("{operation} {table}");
        let end = |outcome: &Result<_, DatabaseError>, context: &opentelemetry::Context| {
            if let Err(error) = outcome {
                http::failed(context, system.to_owned(), error.to_string());
            }
        };
        http::spanned(name, SpanKind::Client, attributes, work, end).await.0
    }
}

fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> rusqlite::Result<T> + Send + 'static,
) -> impl Future<Output = Result<T, DatabaseError>> {
    let done = tokio::task::spawn_blocking(work);
    async { done.await.map_err(|_| DatabaseError::Ended)?.map_err(DatabaseError::Sqlite) }
}
