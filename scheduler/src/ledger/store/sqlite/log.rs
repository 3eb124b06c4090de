//! Tokens that no transaction has yet, appended to a file beside the database: to wait for a transaction of SQLite's, however
//! small, takes a batch of tokens about as long as the rest of its way through a scheduler. When the file is long, a transaction
//! takes them along as one segment, and the file begins anew.
//!
//! ```text
//! key │ record │ record │ …        key: 32 bytes, another one each time that the file begins
//! record = length of body (u32) │ owner (i64) │ number of the segment (i64) │ first 16 bytes of BLAKE3, keyed │ body
//! ```
//!
//! All numbers are little-endian; a body is a [`Segment`]. What is torn, or left of an earlier time, has another hash: there the
//! log ends.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use cuckoo_wire::message::RequestId;
use foldhash::{HashMap, HashMapExt};

use super::super::super::LEDGER_BYTES_MAX;
use super::super::{StoreError, files, step};
use crate::journal::{Append, Damaged, Journal, Parts, Segment};

/// Bytes of the file from which on a transaction is due within a second. Whoever asks for a request reads it all.
const LONG_BYTES: u64 = if cfg!(test) { 1 << 10 } else { 1 << 20 };
/// Bytes of the file from which on nothing is added before there was one.
const PENDING_BYTES_MAX: usize = 2 * LEDGER_BYTES_MAX;
/// Bytes of a file that are read: what may be pending, and the last batch, of which a token takes up to five bytes.
const FILE_BYTES_MAX: u64 = 2 * PENDING_BYTES_MAX as u64;
/// Bytes that a file keeps when it begins anew: to write where there is something already costs less, and to read costs more.
const KEPT_BYTES_MAX: u64 = 2 * LONG_BYTES;
const KEY_BYTES: usize = 32;
const HASH_BYTES: usize = 16;
/// Length, owner and number.
const HEAD_BYTES: usize = 4 + 8 + 8;

/// The file, as its one writer has it.
pub(super) struct Log {
    path: PathBuf,
    file: File,
    key: [u8; KEY_BYTES],
    owner: i64,
    /// What is not in the file yet.
    fresh: Parts,
    /// Of each output, what a transaction is to take along: it follows what the database has.
    pending: HashMap<RequestId, Range<usize>>,
    /// Where the file's records end.
    end: u64,
    /// Where those end that have been given to the disk, or are about to be.
    synced: u64,
}

impl Log {
    /// Begins the log of `owner` anew. Whatever the file has must be in the database by now.
    pub(super) fn begin(path: &Path, owner: i64) -> Result<Self, StoreError> {
        let opened = OpenOptions::new().write(true).create(true).truncate(true).open(path);
        let mut log = Self {
            path: path.to_owned(),
            file: opened.map_err(|e| files::failed(path, &e))?,
            key: rand::random(),
            owner,
            fresh: Parts::default(),
            pending: HashMap::new(),
            end: 0,
            synced: 0,
        };
        log.write(0, &{ log.key })?;
        Ok(log)
    }

    /// Adds what is to be flushed.
    pub(super) fn add(&mut self, append: &Append<'_>) {
        self.fresh.add(append);
        let first = append.first as usize;
        self.pending.entry(append.request).or_insert(first..first).end = first + append.tokens.len();
    }

    /// Has the system have what was added, as part of segment `number`, the next one: it survives this process when this returns.
    /// After a failure it may be tried again.
    pub(super) fn flush(&mut self, number: i64) -> Result<(), StoreError> {
        if self.fresh.is_empty() {
            return Ok(());
        }
        self.write(self.end, &record(&self.key, self.owner, number, &self.fresh.to_bytes()))?;
        self.fresh.clear();
        step::reached("tokens: flushed");
        Ok(())
    }

    /// What a transaction is to take along, of what still runs.
    pub(super) fn pending(&self, journal: &Journal) -> Segment {
        let mut segment = Segment::default();
        for (request, part) in &self.pending {
            if let Some(row) = journal.row(request).filter(|row| row.ending.is_none()) {
                segment.add_output(*request, &row.tokens, &row.makers, part.clone());
            }
        }
        segment
    }

    /// Whether a transaction is to take along what is pending.
    pub(super) fn is_long(&self) -> bool {
        self.end >= LONG_BYTES
    }

    /// The file, if it has what the disk may not have: whoever asks is to give it to the disk.
    pub(super) fn unsynced(&mut self) -> Result<Option<File>, StoreError> {
        if std::mem::replace(&mut self.synced, self.end) == self.end {
            return Ok(None);
        }
        self.file.try_clone().map(Some).map_err(|e| files::failed(&self.path, &e))
    }

    /// Whether nothing may be added before a transaction has taken along what is pending.
    pub(super) fn is_full(&self) -> bool {
        self.end >= PENDING_BYTES_MAX as u64
    }

    /// A transaction has taken along what was pending.
    pub(super) fn taken(&mut self) -> Result<(), StoreError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if self.end > KEPT_BYTES_MAX {
            self.file.set_len(0).map_err(|e| files::failed(&self.path, &e))?;
        }
        self.pending.clear();
        self.synced = 0;
        self.key = *blake3::hash(&self.key).as_bytes();
        self.write(0, &{ self.key })
    }

    /// Writes at a place, after which the file ends then, as far as it is this log's.
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.write_all(bytes));
        written.map_err(|e| files::failed(&self.path, &e))?;
        self.end = at + bytes.len() as u64;
        Ok(())
    }
}

fn record(key: &[u8; KEY_BYTES], owner: i64, number: i64, body: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEAD_BYTES + HASH_BYTES + body.len());
    record.extend_from_slice(&(body.len() as u32).to_le_bytes());
    record.extend_from_slice(&owner.to_le_bytes());
    record.extend_from_slice(&number.to_le_bytes());
    let hash = hash(key, &record, body);
    record.extend_from_slice(&hash);
    record.extend_from_slice(body);
    record
}

fn hash(key: &[u8; KEY_BYTES], head: &[u8], body: &[u8]) -> [u8; HASH_BYTES] {
    let hash = blake3::Hasher::new_keyed(key).update(head).update(body).finalize();
    std::array::from_fn(|i| hash.as_bytes()[i])
}

/// What a log's file has, for whoever reads. Read before the database is, nothing that was accepted by then is missing from
/// both.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tail {
    owner: i64,
    number: i64,
    bodies: Vec<Vec<u8>>,
}

impl Tail {
    /// Reads a file; one that is not there has nothing. It is short, and mostly in memory.
    pub(super) fn read(path: &Path) -> Result<Self, StoreError> {
        let mut bytes = Vec::new();
        match File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(files::failed(path, &error)),
            _ => Ok(Self::of(&bytes)),
        }
    }

    /// What is whole of a file.
    fn of(bytes: &[u8]) -> Self {
        let mut tail = Self::default();
        let Some((key, mut rest)) = bytes.split_first_chunk::<KEY_BYTES>() else { return tail };
        while let Some((owner, number, body, after)) = first(key, rest) {
            (tail.owner, tail.number) = (owner, number);
            tail.bodies.push(body.to_vec());
            rest = after;
        }
        tail
    }

    /// Whose it is, if it has anything.
    pub(super) fn owner(&self) -> Option<i64> {
        (!self.bodies.is_empty()).then_some(self.owner)
    }

    /// Whether the database lacks a segment before this, where number `due` is the first that it may lack.
    pub(super) fn is_beyond(&self, due: i64) -> bool {
        !self.bodies.is_empty() && self.number > due
    }

    /// The segment that the database lacks, where number `due` is the first that it may lack; nothing if it has it.
    ///
    /// # Errors
    /// If one before it is lost, or this is none that this program knows.
    pub(super) fn segment(&self, due: i64) -> Result<Segment, Damaged> {
        if self.is_beyond(due) {
            return Err(Damaged(format!("the log goes on with segment {} where {due} is due", self.number)));
        }
        let mut parts = Vec::new();
        for body in self.bodies.iter().filter(|_| self.number == due) {
            parts.extend(Segment::from_bytes(body)?.0);
        }
        Ok(Segment(parts))
    }
}

/// The record that `bytes` begin with: owner, number, body, and what follows. `None` if they begin with none.
fn first<'a>(key: &[u8; KEY_BYTES], bytes: &'a [u8]) -> Option<(i64, i64, &'a [u8], &'a [u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let (found, rest) = rest.split_first_chunk::<HASH_BYTES>()?;
    let (len, numbers) = head.split_first_chunk::<4>()?;
    let (owner, number) = numbers.split_first_chunk::<8>()?;
    let (body, after) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    let number = i64::from_le_bytes(number.try_into().ok()?);
    (hash(key, head, body) == *found).then_some((i64::from_le_bytes(*owner), number, body, after))
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use cuckoo_wire::PeerId;
    use cuckoo_wire::message::Price;
    use proptest::prelude::*;

    use super::*;
    use crate::journal::{Ending, Entry, Epoch, Maker, Noted};
    use crate::ledger::ClientId;

    impl Log {
        /// Has writes go where there is no room, or back to the file.
        pub(in super::super) fn fail(&mut self, fails: bool) {
            let path = if fails { Path::new("/dev/full") } else { &self.path };
            self.file = OpenOptions::new().write(true).open(path).unwrap();
        }
    }

    /// A log whose one segment is of a form that comes later.
    pub(in super::super) fn newer(log: &[u8]) -> Vec<u8> {
        let key = *log.first_chunk().unwrap();
        let mut body = Segment::default().to_bytes();
        body[4] += 1;
        [&key[..], &record(&key, 1, 1, &body)].concat()
    }

    fn id(n: u8) -> RequestId {
        RequestId([n; 16])
    }

    fn part(n: u8, first: u32, tokens: &[u32]) -> Append<'_> {
        Append { request: id(n), epoch: Epoch::FIRST, first, tokens, by: None }
    }

    fn segment(parts: &[Append<'_>]) -> Segment {
        let mut segment = Segment::default();
        for Append { request, first, tokens, by, .. } in parts {
            segment.add(*request, *first, tokens, *by);
        }
        segment
    }

    /// Where two requests run.
    fn journal() -> Journal {
        let mut journal = Journal::new(PeerId([1; 32]), 7);
        for n in [1, 2] {
            journal.note(&Entry::Open { request: id(n), client: ClientId([n; 8]), spec: vec![1] });
        }
        journal
    }

    /// Accepts tokens as a store does.
    fn add(log: &mut Log, journal: &mut Journal, append: Append<'_>) {
        assert_eq!(journal.append(append), Ok(Noted::Now));
        log.add(&append);
    }

    #[test]
    fn what_was_appended_is_read_back_and_what_was_taken_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(Tail::read(&path).unwrap(), Tail::default());
        let (mut log, mut journal) = (Log::begin(&path, 3).unwrap(), journal());
        for first in 0..4 {
            add(&mut log, &mut journal, part(1, first, &[first]));
            add(&mut log, &mut journal, part(2, first, &[first]));
            assert_eq!(Tail::read(&path).unwrap().bodies.len(), first as usize);
            log.flush(7).unwrap();
            log.flush(7).unwrap();
        }
        let tail = Tail::read(&path).unwrap();
        assert_eq!((tail.owner(), tail.bodies.len(), tail.segment(7).unwrap().0.len()), (Some(3), 4, 8));
        assert_eq!(tail.segment(8).unwrap(), Segment::default(), "the database has it");
        assert!(tail.segment(6).unwrap_err().0.contains("segment 7 where 6 is due"));
        // A request's tokens are one part, and what has ended is kept elsewhere.
        assert_eq!(log.pending(&journal).0.len(), 2);
        let ended = Entry::End { request: id(1), epoch: Epoch::FIRST, ending: Ending::Gone };
        let mut then = journal.clone();
        then.note(&ended);
        assert_eq!(log.pending(&then), segment(&[part(2, 0, &[0, 1, 2, 3])]));

        log.taken().unwrap();
        assert_eq!((log.pending(&journal), Tail::read(&path).unwrap().owner()), (Segment::default(), None));
        // As long as what was there, so that whole records follow, of the same number even.
        add(&mut log, &mut journal, part(1, 4, &[4]));
        add(&mut log, &mut journal, part(2, 4, &[4]));
        log.flush(7).unwrap();
        let tail = Tail::read(&path).unwrap();
        assert_eq!((tail.bodies.len(), tail.segment(7).unwrap()), (1, segment(&[part(1, 4, &[4]), part(2, 4, &[4])])));
        let by = Some(Maker { miner: PeerId([2; 32]), ask: Price::default(), numerics: None });
        add(&mut log, &mut journal, Append { by, ..part(1, 5, &[5, 6]) });
        log.flush(7).unwrap();
        assert_eq!(Tail::read(&path).unwrap().bodies.len(), 2);
        // Since the last transaction, a part a maker.
        let mut pending = log.pending(&journal);
        pending.0.sort_by_key(|part| (part.request.0, part.first));
        assert_eq!(pending, segment(&[part(1, 4, &[4]), Append { by, ..part(1, 5, &[5, 6]) }, part(2, 4, &[4])]));
        drop(Log::begin(&path, 3).unwrap());
        assert_eq!(Tail::read(&path).unwrap().owner(), None);
    }

    #[test]
    fn a_log_is_full_when_a_transaction_is_due() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::begin(&dir.path().join("log"), 1).unwrap();
        let many = vec![u32::MAX; 1 << 20];
        let mut first = 0;
        while !log.is_full() {
            log.add(&part(1, first, &many));
            log.flush(7).unwrap();
            first += many.len() as u32;
        }
        assert_eq!(first >> 20, 4, "five bytes each");
        assert!(log.is_long());
        let file = std::fs::metadata(&log.path).unwrap().len();
        assert!(file < FILE_BYTES_MAX, "{file}");
        log.taken().unwrap();
        assert!(!log.is_full() && !log.is_long());
        assert_eq!(std::fs::metadata(&log.path).unwrap().len(), KEY_BYTES as u64, "it is read whole");
    }

    #[test]
    fn the_disk_is_asked_once_for_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::begin(&dir.path().join("log"), 1).unwrap();
        let mut asked = Vec::new();
        for (adds, taken) in
            [(false, false), (false, false), (true, false), (false, true), (true, false), (false, false)]
        {
            if adds {
                log.add(&part(1, 0, &[1]));
                log.flush(7).unwrap();
            }
            if taken {
                log.taken().unwrap();
            }
            asked.push(log.unsynced().unwrap().is_some());
        }
        assert_eq!(asked, [true, false, true, true, true, false]);
    }

    /// A file with records of these lengths, and where each ends.
    fn file(key: [u8; KEY_BYTES], lengths: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (key.to_vec(), Vec::new());
        for (i, len) in lengths.iter().enumerate() {
            bytes.extend(record(&key, 1, 1, &vec![i as u8; *len]));
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    proptest! {
        /// However it is cut, and whichever bit turns over, what is before that is read and nothing else.
        #[test]
        fn a_log_ends_before_what_is_torn(
            lengths in prop::collection::vec(0usize..200, 1..8), cut: prop::sample::Index, bit: prop::sample::Index,
        ) {
            let (bytes, ends) = file([9; KEY_BYTES], &lengths);
            let cut = cut.index(bytes.len() + 1);
            let whole = ends.iter().filter(|end| **end <= cut).count();
            prop_assert_eq!(Tail::of(&bytes[..cut]).bodies.len(), whole);
            let mut turned = bytes.clone();
            let bit = bit.index(bytes.len() * 8);
            turned[bit / 8] ^= 1 << (bit % 8);
            let whole = if bit / 8 < KEY_BYTES { 0 } else { ends.iter().filter(|end| **end <= bit / 8).count() };
            prop_assert_eq!(Tail::of(&turned).bodies.len(), whole);
        }

        #[test]
        fn any_bytes_are_a_log_with_nothing(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
            prop_assert_eq!(Tail::of(&bytes).owner(), None);
        }

        /// Records of another opening are none of this one, though they follow where one ends.
        #[test]
        fn another_openings_records_are_none(lengths in prop::collection::vec(0usize..200, 2..8)) {
            let (ours, ends) = file([1; KEY_BYTES], &lengths);
            let (theirs, _) = file([2; KEY_BYTES], &lengths);
            let mixed = [&ours[..ends[0]], &theirs[ends[0]..]].concat();
            prop_assert_eq!(Tail::of(&mixed).bodies.len(), 1);
        }
    }
}
