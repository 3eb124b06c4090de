//! Tokens that no transaction has yet, appended to a file beside the database: to wait for a transaction of SQLite's, however
//! small, takes a batch of tokens about as long as the rest of its way through a scheduler. The next transaction takes them along
//! as one segment, a second later at the latest, and the file begins anew.
//!
//! ```text
//! key │ record │ record │ …        key: 32 bytes, another one each time that the file begins
//! record = length of body (u32) │ owner (i64) │ number of the segment (i64) │ first 16 bytes of BLAKE3, keyed │ body
//! ```
//!
//! All numbers are little-endian; a body is a [`Segment`]. What is torn, or left of an earlier time, has another hash: there the
//! log ends.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use cuckoo_wire::message::RequestId;

use super::super::super::LEDGER_BYTES_MAX;
use super::super::{StoreError, files, step};
use crate::journal::{Damaged, Part, Segment};

/// Bytes of the file from which on a transaction is due, though there is no other reason for one.
const PENDING_BYTES_MAX: usize = 2 * LEDGER_BYTES_MAX;
/// Bytes of a file that are read: what may be pending, and the last batch, of which a token takes up to five bytes.
const FILE_BYTES_MAX: u64 = 2 * PENDING_BYTES_MAX as u64;
/// Bytes that a file keeps when it begins anew: to write where there is something already costs less, and to read costs more.
const KEPT_BYTES_MAX: u64 = 1 << 20;
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
    fresh: Segment,
    /// What the records have, and where they end.
    pending: HashMap<RequestId, Segment>,
    end: u64,
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
            fresh: Segment::default(),
            pending: HashMap::new(),
            end: 0,
        };
        log.write(0, &{ log.key })?;
        Ok(log)
    }

    /// Adds what is to be flushed.
    pub(super) fn add(&mut self, segment: Segment) {
        self.fresh.0.extend(segment.0);
    }

    /// Has the system have what was added, as part of segment `number`, the next one: it survives this process when this returns.
    /// After a failure it may be tried again.
    pub(super) fn flush(&mut self, number: i64) -> Result<(), StoreError> {
        if self.fresh.0.is_empty() {
            return Ok(());
        }
        self.write(self.end, &record(&self.key, self.owner, number, &self.fresh.to_bytes()))?;
        for Part { request, first, tokens, by } in self.fresh.0.drain(..) {
            self.pending.entry(request).or_default().add(request, first, &tokens, by);
        }
        step::reached("tokens: flushed");
        Ok(())
    }

    /// What a transaction is to take along of the file, of requests that are still `needed`.
    pub(super) fn pending(&self, needed: impl Fn(&RequestId) -> bool) -> Segment {
        let parts = self.pending.iter().filter(|(request, _)| needed(request));
        Segment(parts.flat_map(|(_, segment)| segment.0.iter().cloned()).collect())
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
    use proptest::prelude::*;

    use super::*;

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

    fn part(n: u8, first: u32, tokens: &[u32]) -> Segment {
        let mut segment = Segment::default();
        segment.add(id(n), first, tokens, None);
        segment
    }

    #[test]
    fn what_was_appended_is_read_back_and_what_was_taken_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(Tail::read(&path).unwrap(), Tail::default());
        let mut log = Log::begin(&path, 3).unwrap();
        for first in 0..4 {
            log.add(part(1, first, &[first]));
            log.add(part(2, first, &[first]));
            assert_eq!(Tail::read(&path).unwrap().bodies.len(), first as usize);
            log.flush(7).unwrap();
            log.flush(7).unwrap();
        }
        let tail = Tail::read(&path).unwrap();
        assert_eq!((tail.owner(), tail.bodies.len(), tail.segment(7).unwrap().0.len()), (Some(3), 4, 8));
        assert_eq!(tail.segment(8).unwrap(), Segment::default(), "the database has it");
        assert!(tail.segment(6).unwrap_err().0.contains("segment 7 where 6 is due"));
        // A request's tokens are one part.
        assert_eq!(log.pending(|request| *request == id(2)), part(2, 0, &[0, 1, 2, 3]));
        assert_eq!(log.pending(|_| true).0.len(), 2);

        log.taken().unwrap();
        assert_eq!((log.pending(|_| true), Tail::read(&path).unwrap().owner()), (Segment::default(), None));
        // As long as what was there, so that whole records follow, of the same number even.
        log.add(part(1, 4, &[4]));
        log.add(part(2, 4, &[4]));
        log.flush(7).unwrap();
        let tail = Tail::read(&path).unwrap();
        assert_eq!(
            (tail.bodies.len(), tail.segment(7).unwrap()),
            (1, Segment([part(1, 4, &[4]).0, part(2, 4, &[4]).0].concat()))
        );
        log.add(part(1, 5, &[5, 6]));
        log.flush(7).unwrap();
        assert_eq!(Tail::read(&path).unwrap().bodies.len(), 2);
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
            log.add(part(1, first, &many));
            log.flush(7).unwrap();
            first += many.len() as u32;
        }
        assert_eq!(first >> 20, 4, "five bytes each");
        let file = std::fs::metadata(&log.path).unwrap().len();
        assert!(file < FILE_BYTES_MAX, "{file}");
        log.taken().unwrap();
        assert!(!log.is_full());
        assert_eq!(std::fs::metadata(&log.path).unwrap().len(), KEY_BYTES as u64, "it is read whole");
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
