//! What schedulers tell each other. No lock and no transaction: a note is one statement, and who hears it writes nothing.

use std::collections::HashMap;

use sqlx::postgres::PgConnection;

use super::super::rows::{Columns, Failure};
use super::super::{FORGOTTEN_MAX, NOTES_KEPT_SECONDS, NOTES_MAX, Note};

/// The last note of each scheduler.
pub(super) async fn last(connection: &mut PgConnection) -> Result<HashMap<i64, i64>, Failure> {
    let found = sqlx::query("SELECT scheduler, max(id) FROM note GROUP BY scheduler").fetch_all(connection).await?;
    found.iter().map(|row| Ok((row.int(0)?, row.int(1)?))).collect()
}

/// Tells `note`, and answers those of others behind what was `heard` of each.
pub(super) async fn exchange(
    connection: &mut PgConnection,
    (me, run): (i64, i64),
    heard: &mut HashMap<i64, i64>,
    note: Option<&Note>,
) -> Result<Vec<Vec<u8>>, Failure> {
    if let Some(Note { number, body }) = note {
        // A first try whose answer was lost may still be under way: this waits for its end.
        let sql = "INSERT INTO note (scheduler, run, number, at, body) VALUES ($1, $2, $3, clock_timestamp(), $4) \
                   ON CONFLICT (scheduler, run, number) DO NOTHING";
        let insert = sqlx::query(sql).bind(me).bind(run).bind(number).bind(body.as_slice());
        insert.execute(&mut *connection).await?;
    }
    let (schedulers, notes): (Vec<i64>, Vec<i64>) = heard.iter().unzip();
    let sql = "SELECT n.scheduler, n.id, n.body FROM scheduler AS s \
               LEFT JOIN unnest($2::bigint[], $3::bigint[]) AS h (scheduler, id) ON h.scheduler = s.id \
               CROSS JOIN LATERAL (SELECT scheduler, id, body FROM note \
               WHERE scheduler = s.id AND id > coalesce(h.id, 0) ORDER BY id LIMIT $4) AS n \
               WHERE s.id <> $1 ORDER BY n.id LIMIT $4";
    let found = sqlx::query(sql).bind(me).bind(schedulers).bind(notes).bind(NOTES_MAX).fetch_all(connection).await?;
    let notes = found.iter().map(|row| Ok((row.int(0)?, row.int(1)?, row.blob(2)?.to_vec())));
    let notes = notes.collect::<Result<Vec<(i64, i64, Vec<u8>)>, Failure>>()?;
    heard.extend(notes.iter().map(|(scheduler, id, _)| (*scheduler, *id)));
    Ok(notes.into_iter().map(|(_, _, body)| body).collect())
}

/// Forgets old notes, by the server's clock. The newest of each scheduler stays: should that tell it again after all that
/// time, it is known.
pub(super) async fn forget(tx: &mut PgConnection) -> Result<(), Failure> {
    let sql = "DELETE FROM note WHERE id IN (SELECT n.id FROM note AS n WHERE n.at < clock_timestamp() - $1 * interval '1 s' \
               AND EXISTS (SELECT 1 FROM note AS later WHERE later.scheduler = n.scheduler AND later.id > n.id) \
               ORDER BY n.at LIMIT $2 FOR UPDATE OF n SKIP LOCKED)";
    sqlx::query(sql).bind(NOTES_KEPT_SECONDS).bind(FORGOTTEN_MAX).execute(tx).await?;
    Ok(())
}
