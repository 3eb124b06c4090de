//! The journal on PostgreSQL: leases, what runs here, and what is taken over from schedulers that are gone.

use std::collections::{BTreeSet, HashMap};

use cuckoo_wire::PeerId;
use cuckoo_wire::message::RequestId;
use futures_util::TryStreamExt;
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::super::rows::{self, Columns, Failure};
use super::super::{
    ENDED_KEPT, FORGOTTEN_MAX, Kept, LEASE_SECONDS, Reopened, SEGMENTS_MAX, TAKEOVER_MAX, Takeover, step,
};
use super::wallet::SNAPSHOT;
use super::writer::{Lease, Writer};
use super::{INCOME_LOCK, notes};
use crate::journal::{Journal, Output, Row, Segment};

/// The chain before a scheduler's first posting.
pub(super) fn genesis(writer: PeerId) -> [u8; 32] {
    blake3::derive_key("cuckoo ledger 2026-11 first link of a scheduler's postings", &writer.0)
}

/// Makes this process the newest run of scheduler `me`: its row and the run's number.
pub(super) async fn register(tx: &mut PgConnection, me: PeerId) -> Result<(i64, i64), Failure> {
    let sql = "INSERT INTO scheduler (peer, run, taken, expires) VALUES ($1, 1, 0, clock_timestamp() + $2 * interval '1 s') \
               ON CONFLICT (peer) DO UPDATE SET run = scheduler.run + 1, expires = excluded.expires RETURNING id, run";
    let row = sqlx::query(sql).bind(me.0.as_slice()).bind(LEASE_SECONDS).fetch_one(tx).await?;
    Ok((row.int(0)?, row.int(1)?))
}

/// Reads what runs here, with its tokens.
pub(super) async fn load(tx: &mut PgConnection, lease: Lease) -> Result<Journal, Failure> {
    let sql = "SELECT r.request, a.name, s.peer, r.epoch, length(r.spec) > 0, r.first_segment, r.ending \
               FROM request AS r JOIN hold AS h ON h.request = r.request JOIN account AS a ON a.id = h.client \
               JOIN scheduler AS s ON s.id = r.owner WHERE r.owner = $1 AND r.ended_ms IS NULL";
    let found = sqlx::query(sql).bind(lease.id).fetch_all(&mut *tx).await?;
    let found = found.iter().map(rows::journal).collect::<Result<Vec<(RequestId, Row)>, Failure>>()?;
    let last = sqlx::query("SELECT coalesce(max(seq), 0) FROM segment WHERE owner = $1").bind(lease.id);
    let next = last.fetch_one(&mut *tx).await?.int(0)? + 1;
    let next = found.iter().map(|(_, row)| row.first_segment).fold(next, i64::max);
    let mut outputs = found.iter().map(|(request, row)| (*request, Output::beginning(row.first_segment))).collect();
    replay(tx, lease.id, &mut outputs).await?;
    let mut journal = Journal::new(lease.me, next);
    for (request, row) in found {
        let Output { tokens, makers, .. } = outputs.remove(&request).unwrap_or_default();
        journal.set(request, Row { tokens, makers, ..row });
    }
    Ok(journal)
}

/// Reads the log of `owner`, as far as it speaks of `outputs`.
async fn replay(tx: &mut PgConnection, owner: i64, outputs: &mut HashMap<RequestId, Output>) -> Result<(), Failure> {
    let Some(from) = outputs.values().map(|output| output.from).min() else { return Ok(()) };
    let sql = "SELECT seq, body FROM segment WHERE owner = $1 AND seq >= $2 ORDER BY seq";
    let mut segments = sqlx::query(sql).bind(owner).bind(from).fetch(tx);
    while let Some(row) = segments.try_next().await? {
        Segment::from_bytes(row.blob(1)?)?.replay(row.int(0)?, outputs)?;
    }
    Ok(())
}

pub(super) async fn write_segment(
    tx: &mut PgConnection,
    owner: i64,
    journal: &mut Journal,
    segment: &Segment,
) -> Result<(), Failure> {
    let insert = sqlx::query("INSERT INTO segment (owner, seq, body) VALUES ($1, $2, $3)");
    insert.bind(owner).bind(journal.next_segment()).bind(segment.to_bytes()).execute(tx).await?;
    journal.segment_written();
    step::reached("the segment is written");
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
    let Writer { connection, lease, journal, .. } = writer;
    let mut tx = connection.begin().await?;
    let owners: BTreeSet<i64> = due(&mut tx, which, *lease, None).await?.iter().map(|due| due.owner).collect();
    step::reached("takeover: begun");
    if owners.is_empty() {
        tx.rollback().await?;
        return Ok(Vec::new());
    }
    // Whoever owns these writes nothing until this has ended, and whatever it wrote before is seen.
    let locked: Vec<i64> = owners.into_iter().collect();
    lock_owners(&mut tx, &locked, lease, journal).await?;
    let due = due(&mut tx, which, *lease, Some(&locked)).await?;
    let mut outputs: HashMap<i64, HashMap<RequestId, Output>> = HashMap::new();
    for Due { request, owner, row, .. } in due.iter().filter(|due| due.owner != lease.id) {
        outputs.entry(*owner).or_default().insert(*request, Output::beginning(row.first_segment));
    }
    let victims: Vec<i64> = outputs.keys().copied().collect();
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
        let sql = "UPDATE request SET owner = $2, run = $3, epoch = $4, first_segment = $5 WHERE request = $1";
        let update = sqlx::query(sql).bind(request.0.as_slice()).bind(lease.id).bind(lease.run);
        update.bind(i64::from(row.epoch.0)).bind(row.first_segment).execute(&mut *tx).await?;
        taken.push(rows::reopened(request, row, spec));
    }
    step::reached("takeover: owners are written");
    sqlx::query("UPDATE scheduler SET taken = taken + 1 WHERE id = ANY($1)").bind(victims).execute(&mut *tx).await?;
    if !segment.0.is_empty() {
        write_segment(&mut tx, lease.id, journal, &segment).await?;
    }
    tx.commit().await?;
    step::reached("takeover: committed");
    Ok(taken)
}

/// Locks the rows of `owners` and this scheduler's own, in the order that everybody locks them in.
async fn lock_owners(
    tx: &mut PgConnection,
    owners: &[i64],
    lease: &mut Lease,
    journal: &mut Journal,
) -> Result<(), Failure> {
    let sql = "SELECT id, run, taken FROM scheduler WHERE id = ANY($1) OR id = $2 ORDER BY id FOR NO KEY UPDATE";
    for row in sqlx::query(sql).bind(owners).bind(lease.id).fetch_all(&mut *tx).await? {
        if row.int(0)? == lease.id {
            lease.check(row.int(1)?)?;
            lease.heed(tx, journal, row.int(2)?).await?;
        }
    }
    Ok(())
}

/// Open requests of `which`; where `owners` are given, only theirs.
async fn due(
    tx: &mut PgConnection,
    which: Takeover,
    lease: Lease,
    owners: Option<&[i64]>,
) -> Result<Vec<Due>, Failure> {
    let (own, others, one) = match which {
        Takeover::Earlier => (true, false, None),
        Takeover::Expired => (false, true, None),
        Takeover::Request(request) => (false, false, Some(request.0.to_vec())),
    };
    let sql = "SELECT r.request, a.name, s.peer, r.epoch, length(r.spec) > 0, r.first_segment, r.ending, r.owner, r.spec \
               FROM request AS r JOIN hold AS h ON h.request = r.request JOIN account AS a ON a.id = h.client \
               JOIN scheduler AS s ON s.id = r.owner WHERE r.ended_ms IS NULL AND (($1 AND r.owner = $4 AND r.run < $5) \
               OR ($2 AND r.owner <> $4 AND s.expires < clock_timestamp()) OR r.request = $3) \
               AND ($7::bigint[] IS NULL OR r.owner = ANY($7)) ORDER BY r.opened_ms, r.request LIMIT $6";
    let query = sqlx::query(sql).bind(own).bind(others).bind(one).bind(lease.id).bind(lease.run);
    let found = query.bind(TAKEOVER_MAX as i64).bind(owners).fetch_all(tx).await?;
    let due = found.iter().map(|found| {
        let (request, row) = rows::journal(found)?;
        Ok(Due { request, row, owner: found.int(7)?, spec: found.blob(8)?.to_vec() })
    });
    due.collect()
}

/// Renews the lease, forgets what nobody needs any more, and adds up what was earned.
pub(super) async fn tend(writer: &mut Writer, at_ms: i64) -> Result<(), Failure> {
    let Writer { connection, lease, journal, .. } = writer;
    let mut tx = connection.begin().await?;
    lease.hold(&mut tx, journal).await?;
    let sql = "UPDATE scheduler SET expires = clock_timestamp() + $2 * interval '1 s' WHERE id = $1";
    sqlx::query(sql).bind(lease.id).bind(LEASE_SECONDS).execute(&mut *tx).await?;
    step::reached("tend: the lease is renewed");
    if journal.next_segment() - journal.first_needed() > SEGMENTS_MAX {
        let at = journal.next_segment();
        let segment = journal.checkpoint();
        write_segment(&mut tx, lease.id, journal, &segment).await?;
        let sql = "UPDATE request SET first_segment = $2 WHERE owner = $1 AND ended_ms IS NULL";
        sqlx::query(sql).bind(lease.id).bind(at).execute(&mut *tx).await?;
        step::reached("tend: the log is written anew");
    }
    let sql = "DELETE FROM segment WHERE owner = $1 AND seq < $2";
    sqlx::query(sql).bind(lease.id).bind(journal.first_needed()).execute(&mut *tx).await?;
    // Who is gone and has nothing open left needs no log. One that comes back writes new segments.
    let sql = "DELETE FROM segment WHERE owner IN (SELECT s.id FROM scheduler AS s WHERE s.expires < clock_timestamp() \
               AND NOT EXISTS (SELECT 1 FROM request AS r WHERE r.owner = s.id AND r.ended_ms IS NULL))";
    sqlx::query(sql).execute(&mut *tx).await?;
    step::reached("tend: old segments are gone");
    let until = at_ms.saturating_sub(i64::try_from(ENDED_KEPT.as_millis()).unwrap_or(i64::MAX));
    let sql = "DELETE FROM request WHERE request IN (SELECT request FROM request WHERE ended_ms < $1 \
               ORDER BY ended_ms LIMIT $2 FOR UPDATE SKIP LOCKED)";
    sqlx::query(sql).bind(until).bind(FORGOTTEN_MAX).execute(&mut *tx).await?;
    step::reached("tend: old requests are gone");
    notes::forget(&mut tx).await?;
    step::reached("tend: old notes are gone");
    add_up_income(&mut tx).await?;
    tx.commit().await?;
    step::reached("tend: committed");
    Ok(())
}

/// Adds what was earned to the balances, unless another scheduler is doing so. A queue and not a watermark: whatever was
/// committed is there to be taken, in whichever order.
async fn add_up_income(tx: &mut PgConnection) -> Result<(), Failure> {
    let sql = "SELECT pg_try_advisory_xact_lock($1, hashtext(current_schema()))";
    if !sqlx::query(sql).bind(INCOME_LOCK).fetch_one(&mut *tx).await?.flag(0)? {
        return Ok(());
    }
    let sql = "WITH gone AS (DELETE FROM income RETURNING account, amount), \
               sums AS (SELECT account, sum(amount)::bigint AS amount FROM gone GROUP BY account) \
               UPDATE account AS a SET balance = a.balance + s.amount FROM sums AS s WHERE a.id = s.account";
    sqlx::query(sql).execute(tx).await?;
    step::reached("tend: incomes are added up");
    Ok(())
}

/// What is kept of a request; the tokens of an open one are read from its owner's log.
pub(super) async fn read(connection: &mut PgConnection, request: RequestId) -> Result<Option<Kept>, Failure> {
    let mut tx = connection.begin_with(SNAPSHOT).await?;
    let sql = "SELECT h.request, a.name, h.amount, h.state, h.cost, h.miner, h.author, h.network, h.prompt_tokens, \
               h.completion_tokens, s.peer, r.epoch, r.spec, r.output, r.ending, r.owner, r.first_segment \
               FROM request AS r JOIN hold AS h ON h.request = r.request JOIN account AS a ON a.id = h.client \
               JOIN scheduler AS s ON s.id = r.owner WHERE r.request = $1";
    let found = sqlx::query(sql).bind(request.0.as_slice()).fetch_optional(&mut *tx).await?;
    let Some(row) = found else {
        tx.rollback().await?;
        return Ok(None);
    };
    let mut kept = rows::kept(&row)?;
    if kept.ending.is_none() {
        let mut outputs = HashMap::from([(request, Output::beginning(row.int(16)?))]);
        replay(&mut tx, row.int(15)?, &mut outputs).await?;
        kept.tokens = outputs.remove(&request).unwrap_or_default().tokens;
    }
    tx.rollback().await?;
    Ok(Some(kept))
}
