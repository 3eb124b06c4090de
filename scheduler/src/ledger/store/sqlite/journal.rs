//! The journal on SQLite: what runs is read when a process starts, taken over from who is gone, and forgotten when it is
//! over for long.

use std::collections::HashMap;

use cuckoo_wire::PeerId;
use cuckoo_wire::message::RequestId;
use futures_util::TryStreamExt;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::super::rows::{self, Columns, Failure};
use super::super::{ENDED_KEPT, FORGOTTEN_MAX, Kept, Reopened, SEGMENTS_MAX, TAKEOVER_MAX, Takeover, step};
use super::log::{Log, Tail};
use super::{Live, Pen, Writer};
use crate::journal::{Journal, Output, Row, Segment};

/// Makes this process the newest run of scheduler `me`: its row and the run's number.
pub(super) async fn register(tx: &mut SqliteConnection, me: PeerId) -> Result<(i64, i64), Failure> {
    let sql = "INSERT INTO scheduler (peer, run) VALUES (?1, 1) \
               ON CONFLICT (peer) DO UPDATE SET run = run + 1 RETURNING id, run";
    let row = sqlx::query(sql).bind(me.0.as_slice()).fetch_one(tx).await?;
    Ok((row.int(0)?, row.int(1)?))
}

/// Reads what runs here, with its tokens.
pub(super) async fn load(tx: &mut SqliteConnection, me: PeerId, id: i64) -> Result<Journal, Failure> {
    let sql = "SELECT r.request, a.name, s.peer, r.epoch, length(r.spec) > 0, r.first_segment, r.ending \
               FROM request AS r JOIN hold AS h ON h.request = r.request JOIN account AS a ON a.id = h.client \
               JOIN scheduler AS s ON s.id = r.owner WHERE r.owner = ?1 AND r.ended_ms IS NULL";
    let found = sqlx::query(sql).bind(id).fetch_all(&mut *tx).await?;
    let found = found.iter().map(rows::journal).collect::<Result<Vec<(RequestId, Row)>, Failure>>()?;
    let next = due(tx, id).await?;
    let mut outputs = found.iter().map(|(request, row)| (*request, Output::beginning(row.first_segment))).collect();
    replay(tx, id, &mut outputs).await?;
    let mut journal = Journal::new(me, next);
    for (request, row) in found {
        let Output { tokens, makers, .. } = outputs.remove(&request).unwrap_or_default();
        journal.set(request, Row { tokens, makers, ..row });
    }
    Ok(journal)
}

/// The number of the next segment of `owner`, as far as the database knows.
async fn due(tx: &mut SqliteConnection, owner: i64) -> Result<i64, Failure> {
    let sql = "SELECT max((SELECT coalesce(max(seq), 0) + 1 FROM segment WHERE owner = ?1), \
               (SELECT coalesce(max(first_segment), 1) FROM request WHERE owner = ?1 AND ended_ms IS NULL))";
    sqlx::query(sql).bind(owner).fetch_one(tx).await?.int(0)
}

/// Moves what another process left in its log to where its segments are. What a loss of power took from between the two is
/// lost with what comes after it.
pub(super) async fn take_in(tx: &mut SqliteConnection, tail: &Tail) -> Result<(), Failure> {
    let Some(owner) = tail.owner() else { return Ok(()) };
    let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM scheduler WHERE id = ?1)")
        .bind(owner)
        .fetch_one(&mut *tx)
        .await?;
    if !known {
        tracing::warn!("the log of tokens is another ledger's: it is left out");
        return Ok(());
    }
    let due = due(tx, owner).await?;
    if tail.is_beyond(due) {
        tracing::warn!("the last tokens before a loss of power are lost; they are made again where they are asked for");
        return Ok(());
    }
    insert(tx, owner, due, &tail.segment(due)?).await
}

/// Reads the log of `owner` behind what the database has of it.
pub(super) async fn replay_tail(
    tx: &mut SqliteConnection,
    tail: &Tail,
    owner: i64,
    outputs: &mut HashMap<RequestId, Output>,
) -> Result<(), Failure> {
    if tail.owner() == Some(owner) {
        let due = due(tx, owner).await?;
        tail.segment(due)?.replay(due, outputs)?;
    }
    Ok(())
}

/// Reads what the database has of the log of `owner`, as far as it speaks of `outputs`.
async fn replay(
    tx: &mut SqliteConnection,
    owner: i64,
    outputs: &mut HashMap<RequestId, Output>,
) -> Result<(), Failure> {
    let Some(from) = outputs.values().map(|output| output.from).min() else { return Ok(()) };
    let sql = "SELECT seq, body FROM segment WHERE owner = ?1 AND seq >= ?2 ORDER BY seq";
    let mut segments = sqlx::query(sql).bind(owner).bind(from).fetch(tx);
    while let Some(row) = segments.try_next().await? {
        Segment::from_bytes(row.blob(1)?)?.replay(row.int(0)?, outputs)?;
    }
    Ok(())
}

/// Writes the next segment: what is pending in the log of what still runs, and `more`. The log is to hear of it when it is
/// committed.
pub(super) async fn write_segment(
    tx: &mut SqliteConnection,
    owner: i64,
    journal: &mut Journal,
    log: &Log,
    more: Segment,
) -> Result<(), Failure> {
    let mut segment = log.pending(journal);
    segment.0.extend(more.0);
    insert_next(tx, owner, journal, &segment).await
}

async fn insert_next(
    tx: &mut SqliteConnection,
    owner: i64,
    journal: &mut Journal,
    segment: &Segment,
) -> Result<(), Failure> {
    insert(tx, owner, journal.next_segment(), segment).await?;
    if !segment.0.is_empty() {
        journal.segment_written();
    }
    Ok(())
}

async fn insert(tx: &mut SqliteConnection, owner: i64, number: i64, segment: &Segment) -> Result<(), Failure> {
    if !segment.0.is_empty() {
        let insert = sqlx::query("INSERT INTO segment (owner, seq, body) VALUES (?1, ?2, ?3)");
        insert.bind(owner).bind(number).bind(segment.to_bytes()).execute(tx).await?;
        step::reached("the segment is written");
    }
    Ok(())
}

/// A request that is to change hands.
struct Due {
    request: RequestId,
    row: Row,
    owner: i64,
    spec: Vec<u8>,
}

pub(super) async fn take_over(writer: &mut Writer, which: Takeover) -> Result<Vec<Reopened>, Failure> {
    let Writer { pen: Pen { connection, id, run, .. }, live: Live { journal, log } } = writer;
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    step::reached("takeover: begun");
    let due = changing_hands(&mut tx, which, (*id, *run), TAKEOVER_MAX).await?;
    let mut outputs: HashMap<i64, HashMap<RequestId, Output>> = HashMap::new();
    for Due { request, owner, row, .. } in due.iter().filter(|due| due.owner != *id) {
        outputs.entry(*owner).or_default().insert(*request, Output::beginning(row.first_segment));
    }
    for (owner, outputs) in &mut outputs {
        replay(&mut tx, *owner, outputs).await?;
    }
    let mut taken = Vec::with_capacity(due.len());
    let mut segment = Segment::default();
    for Due { request, row, owner, spec } in due {
        if let Some(output) = outputs.get_mut(&owner).and_then(|outputs| outputs.remove(&request)) {
            let Output { tokens, makers, .. } = output;
            segment.add_output(request, &tokens, &makers, 0..tokens.len());
            journal.set(request, Row { tokens, makers, ..row });
        }
        let row = journal.take_over(request).map_err(|e| rows::out_of_balance(e.to_string()))?;
        let sql = "UPDATE request SET owner = ?2, run = ?3, epoch = ?4, first_segment = ?5 WHERE request = ?1";
        let update = sqlx::query(sql).bind(request.0.as_slice()).bind(*id).bind(*run).bind(i64::from(row.epoch.0));
        update.bind(row.first_segment).execute(&mut *tx).await?;
        taken.push(rows::reopened(request, row, spec));
    }
    step::reached("takeover: owners are written");
    write_segment(&mut tx, *id, journal, log, segment).await?;
    tx.commit().await?;
    step::reached("takeover: committed");
    log.taken()?;
    Ok(taken)
}

/// Whether any request of `which` is open.
pub(super) async fn has_any(reader: &mut SqliteConnection, which: Takeover, me: (i64, i64)) -> Result<bool, Failure> {
    Ok(!changing_hands(reader, which, me, 1).await?.is_empty())
}

/// Open requests of `which`, `most` of them at most. Nobody else has the database, so all other schedulers are gone.
async fn changing_hands(
    tx: &mut SqliteConnection,
    which: Takeover,
    (id, run): (i64, i64),
    most: usize,
) -> Result<Vec<Due>, Failure> {
    let (own, others, one) = match which {
        Takeover::Earlier => (true, false, None),
        Takeover::Expired => (false, true, None),
        Takeover::Request(request) => (false, false, Some(request.0.to_vec())),
    };
    let sql = "SELECT r.request, a.name, s.peer, r.epoch, length(r.spec) > 0, r.first_segment, r.ending, r.owner, r.spec \
               FROM request AS r JOIN hold AS h ON h.request = r.request JOIN account AS a ON a.id = h.client \
               JOIN scheduler AS s ON s.id = r.owner WHERE r.ended_ms IS NULL AND ((?1 AND r.owner = ?4 AND r.run < ?5) \
               OR (?2 AND r.owner <> ?4) OR r.request = ?3) ORDER BY r.opened_ms, r.request LIMIT ?6";
    let query = sqlx::query(sql).bind(own).bind(others).bind(one).bind(id).bind(run).bind(most as i64);
    let found = query.fetch_all(tx).await?;
    let due = found.iter().map(|found| {
        let (request, row) = rows::journal(found)?;
        Ok(Due { request, row, owner: found.int(7)?, spec: found.blob(8)?.to_vec() })
    });
    due.collect()
}

/// Takes in what the log has, so that it begins anew; with all that runs if some of that began too many segments ago.
pub(super) async fn take_along(writer: &mut Writer) -> Result<(), Failure> {
    let Writer { pen: Pen { connection, id, .. }, live: Live { journal, log } } = writer;
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    if is_long(journal) {
        let at = journal.next_segment();
        // All that runs, with what is pending.
        let segment = journal.checkpoint();
        insert_next(&mut tx, *id, journal, &segment).await?;
        let sql = "UPDATE request SET first_segment = ?2 WHERE owner = ?1 AND ended_ms IS NULL";
        sqlx::query(sql).bind(*id).bind(at).execute(&mut *tx).await?;
        step::reached("tend: the log is written anew");
    } else {
        write_segment(&mut tx, *id, journal, log, Segment::default()).await?;
    }
    tx.commit().await?;
    step::reached("tend: tokens are taken along");
    Ok(log.taken()?)
}

/// Whether some of what runs began too many segments ago.
pub(super) fn is_long(journal: &Journal) -> bool {
    journal.next_segment() - journal.first_needed() > SEGMENTS_MAX
}

/// Forgets what nobody needs any more: segments before number `needed`, and requests a day after their end.
pub(super) async fn forget(pen: &mut Pen, needed: i64, at_ms: i64) -> Result<(), Failure> {
    let Pen { connection, id, .. } = pen;
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    // The newest stays: it is known by that which number is next.
    let sql = "DELETE FROM segment WHERE owner = ?1 AND seq < min(?2, (SELECT max(seq) FROM segment WHERE owner = ?1))";
    sqlx::query(sql).bind(*id).bind(needed).execute(&mut *tx).await?;
    // Who is gone and has nothing open left needs no log.
    let sql = "DELETE FROM segment WHERE owner IN (SELECT s.id FROM scheduler AS s WHERE s.id <> ?1 AND NOT EXISTS \
               (SELECT 1 FROM request AS r WHERE r.owner = s.id AND r.ended_ms IS NULL))";
    sqlx::query(sql).bind(*id).execute(&mut *tx).await?;
    step::reached("tend: old segments are gone");
    let until = at_ms.saturating_sub(i64::try_from(ENDED_KEPT.as_millis()).unwrap_or(i64::MAX));
    let sql = "DELETE FROM request WHERE request IN \
               (SELECT request FROM request WHERE ended_ms < ?1 ORDER BY ended_ms LIMIT ?2)";
    sqlx::query(sql).bind(until).bind(FORGOTTEN_MAX).execute(&mut *tx).await?;
    step::reached("tend: old requests are gone");
    tx.commit().await?;
    step::reached("tend: committed");
    Ok(())
}

/// What is kept of a request; the tokens of an open one are read from its owner's log, whose end is `tail`.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    tail: &Tail,
    request: RequestId,
) -> Result<Option<Kept>, Failure> {
    let mut tx = connection.begin().await?;
    let sql = "SELECT h.request, a.name, h.amount, h.state, h.cost, h.miner, h.author, h.network, h.prompt_tokens, \
               h.completion_tokens, s.peer, r.epoch, r.spec, r.output, r.ending, r.owner, r.first_segment \
               FROM request AS r JOIN hold AS h ON h.request = r.request JOIN account AS a ON a.id = h.client \
               JOIN scheduler AS s ON s.id = r.owner WHERE r.request = ?1";
    let found = sqlx::query(sql).bind(request.0.as_slice()).fetch_optional(&mut *tx).await?;
    let Some(row) = found else { return Ok(None) };
    let mut kept = rows::kept(&row)?;
    if kept.ending.is_none() {
        let mut outputs = HashMap::from([(request, Output::beginning(row.int(16)?))]);
        replay(&mut tx, row.int(15)?, &mut outputs).await?;
        replay_tail(&mut tx, tail, row.int(15)?, &mut outputs).await?;
        kept.tokens = outputs.remove(&request).unwrap_or_default().tokens;
    }
    tx.rollback().await?;
    Ok(Some(kept))
}

/// Gives every open hold of a ledger that had no journal yet a request that nobody can go on with.
pub(super) async fn adopt_holds(tx: &mut SqliteConnection, id: i64) -> Result<(), Failure> {
    let sql = "INSERT INTO request (request, owner, run, epoch, spec, first_segment, opened_ms) \
               SELECT request, ?1, 0, 1, zeroblob(0), 1, 0 FROM hold WHERE state = 'open'";
    sqlx::query(sql).bind(id).execute(tx).await?;
    Ok(())
}
