//! What was sent and what is there, compared in SQL, so that memory stays flat.

use rusqlite::{Transaction, params};

use crate::verify::{Found, Sent};

/// So many ids are given as examples.
const EXAMPLES: usize = 20;

pub(super) fn expected(transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
    count(transaction, "SELECT count(*) FROM sent")
}

pub(super) fn note(transaction: &Transaction<'_>, run: i64, sent: &Sent) -> rusqlite::Result<()> {
    // Runs one after the other; within each, as they came.
    let order = run.saturating_mul(1 << 40).saturating_add(sent.order);
    insert(transaction, "INSERT INTO sent VALUES (?1, ?2, ?3, ?4, ?5, ?6)", order, sent)
}

fn insert(transaction: &Transaction<'_>, sql: &str, place: i64, sent: &Sent) -> rusqlite::Result<()> {
    let parts = &sent.parts;
    transaction
        .prepare_cached(sql)?
        .execute(params![place, sent.id, parts.key, parts.fields, parts.headers, parts.payload])
        .map(drop)
}

/// Both have an id, digests, and their place in the order. Of an id that was sent several times, as many may be there.
pub(super) fn compare(transaction: &Transaction<'_>, seen: &[Sent]) -> rusqlite::Result<(u64, Found)> {
    transaction.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS seen (
             place INTEGER PRIMARY KEY, id TEXT NOT NULL, key BLOB, fields BLOB NOT NULL, headers BLOB NOT NULL,
             payload BLOB NOT NULL
         );
         DELETE FROM temp.seen;
         CREATE INDEX IF NOT EXISTS temp.seen_id ON seen (id);
         CREATE INDEX IF NOT EXISTS sent_id ON sent (id);",
    )?;
    for message in seen {
        insert(transaction, "INSERT INTO temp.seen VALUES (?1, ?2, ?3, ?4, ?5, ?6)", message.order, message)?;
    }
    let all = expected(transaction)?;
    // For each id that was sent: how often, and how often it is there.
    const COUNTS: &str = "WITH counts AS (SELECT id, count(*) AS wanted, \
         (SELECT count(*) FROM temp.seen WHERE seen.id = sent.id) AS there FROM sent GROUP BY id)";
    // Of each message that is there and should be: what is like one that was sent.
    const CHANGED: &str = "SELECT count(*) FROM temp.seen AS seen WHERE EXISTS (SELECT 1 FROM sent WHERE sent.id = seen.id) \
         AND NOT EXISTS (SELECT 1 FROM sent WHERE sent.id = seen.id AND ";
    let changed = |part: &str| count(transaction, &format!("{CHANGED}sent.{part} IS seen.{part})"));
    let found = Found {
        read: seen.len() as u64,
        same: count(
            transaction,
            "SELECT count(*) FROM sent WHERE EXISTS (SELECT 1 FROM temp.seen AS seen WHERE seen.id = sent.id \
             AND seen.key IS sent.key AND seen.fields = sent.fields AND seen.headers = sent.headers \
             AND seen.payload = sent.payload)",
        )?,
        missing: Some(count(
            transaction,
            &format!("{COUNTS} SELECT coalesce(sum(wanted - there), 0) FROM counts WHERE there < wanted"),
        )?),
        missing_ids: ids(transaction, &format!("{COUNTS} SELECT id FROM counts WHERE there < wanted"))?,
        duplicates: count(
            transaction,
            &format!("{COUNTS} SELECT coalesce(sum(there - wanted), 0) FROM counts WHERE there > wanted"),
        )?,
        duplicate_ids: ids(transaction, &format!("{COUNTS} SELECT id FROM counts WHERE there > wanted"))?,
        changed_headers: changed("headers")?,
        changed_payload: changed("payload")?,
        changed_key: changed("key")?,
        changed_fields: changed("fields")?,
        // By the first time that each is there, and the first time that it was sent. Within a run: what an earlier one had
        // sent and not noted is there before what this one sends again.
        reordered: Some(count(
            transaction,
            "WITH firsts AS (
                 SELECT sent.key AS key, min(sent.place) AS sent_at, min(seen.place) AS seen_at
                 FROM temp.seen AS seen JOIN sent ON sent.id = seen.id WHERE sent.key IS NOT NULL GROUP BY sent.id
             ), before AS (
                 SELECT sent_at, max(sent_at) OVER (
                     PARTITION BY key, sent_at >> 40 ORDER BY seen_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                 ) AS latest FROM firsts
             )
             SELECT count(*) FROM before WHERE sent_at < latest",
        )?),
        others: count(
            transaction,
            "SELECT count(*) FROM temp.seen AS seen WHERE NOT EXISTS (SELECT 1 FROM sent WHERE sent.id = seen.id)",
        )?,
    };
    transaction.execute_batch("DROP TABLE temp.seen")?;
    Ok((all, found))
}

fn count(transaction: &Transaction<'_>, sql: &str) -> rusqlite::Result<u64> {
    transaction.query_row(sql, [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}

fn ids(transaction: &Transaction<'_>, sql: &str) -> rusqlite::Result<Vec<String>> {
    let mut select = transaction.prepare(&format!("{sql} LIMIT {EXAMPLES}"))?;
    select.query_map([], |row| row.get(0))?.collect()
}
