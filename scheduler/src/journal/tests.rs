//! The journal's rules on small cases and on random histories. Writes nothing to disk.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};

use cuckoo_wire::message::{KvFormat, RefusalCode};
use proptest::prelude::*;

use super::*;

fn peer(n: u8) -> PeerId {
    PeerId([n; 32])
}

fn request(n: u8) -> RequestId {
    RequestId([n; 16])
}

fn open(n: u8) -> Entry {
    Entry::Open { request: request(n), client: ClientId([1; 8]), spec: vec![n] }
}

fn append_by(n: u8, epoch: u32, first: u32, tokens: &[u32], by: Option<Maker>) -> Entry {
    Entry::Append { request: request(n), epoch: Epoch(epoch), first, tokens: tokens.to_vec(), by }
}

fn append(n: u8, epoch: u32, first: u32, tokens: &[u32]) -> Entry {
    append_by(n, epoch, first, tokens, None)
}

fn end(n: u8, epoch: u32) -> Entry {
    Entry::End {
        request: request(n),
        epoch: Epoch(epoch),
        ending: Ending::Finished { reason: FinishReason::Stop, migrations: 0 },
    }
}

fn write(journal: &mut Journal, entry: &Entry) -> Result<Noted, Refused> {
    let noted = journal.check(entry)?;
    if noted == Noted::Now {
        journal.note(entry);
    }
    Ok(noted)
}

#[test]
fn tokens_follow_each_other_and_count_once() {
    let mut journal = Journal::new(peer(1), 1);
    assert_eq!(write(&mut journal, &append(1, 1, 0, &[5])), Err(Refused::Unknown(request(1))));
    assert_eq!(write(&mut journal, &open(1)), Ok(Noted::Now));
    assert_eq!(write(&mut journal, &open(1)), Ok(Noted::Before));
    assert_eq!(write(&mut journal, &append(1, 1, 0, &[5, 6])), Ok(Noted::Now));
    assert_eq!(write(&mut journal, &append(1, 1, 2, &[7])), Ok(Noted::Now));
    for again in [append(1, 1, 0, &[5, 6]), append(1, 1, 1, &[6]), append(1, 1, 0, &[5, 6, 7])] {
        assert_eq!(write(&mut journal, &again), Ok(Noted::Before));
    }
    let wrong = [(0, vec![5, 9]), (2, vec![7, 8]), (4, vec![8]), (1, vec![5])];
    for (first, tokens) in wrong {
        let refused = Err(Refused::OutOfOrder { request: request(1), accepted: 3, first });
        assert_eq!(write(&mut journal, &append(1, 1, first, &tokens)), refused);
    }
    assert!(matches!(write(&mut journal, &append(1, 1, 3, &[])), Err(Refused::Invalid(_))));
    assert!(matches!(write(&mut journal, &append(1, 1, u32::MAX, &[1])), Err(Refused::Invalid(_))));
    assert_eq!(journal.row(&request(1)).unwrap().tokens, [5, 6, 7]);
    assert_eq!(write(&mut journal, &end(1, 1)), Ok(Noted::Now));
    assert_eq!(write(&mut journal, &end(1, 1)), Ok(Noted::Before));
    assert_eq!(write(&mut journal, &append(1, 1, 3, &[8])), Err(Refused::Ended(request(1))));
}

#[test]
fn what_is_too_large_is_refused() {
    let mut journal = Journal::new(peer(1), 1);
    let large = Entry::Open { request: request(1), client: ClientId([1; 8]), spec: vec![0; SPEC_BYTES_MAX + 1] };
    assert!(matches!(write(&mut journal, &large), Err(Refused::Invalid(_))));
    write(&mut journal, &open(1)).unwrap();
    let all = vec![1; OUTPUT_TOKENS_MAX];
    assert_eq!(write(&mut journal, &append(1, 1, 0, &all)), Ok(Noted::Now));
    assert!(matches!(write(&mut journal, &append(1, 1, OUTPUT_TOKENS_MAX as u32, &[1])), Err(Refused::Invalid(_))));
    let refusal = Refusal::new(RefusalCode::Internal, "x".repeat(ENDING_BYTES_MAX));
    let wordy = Entry::End { request: request(1), epoch: Epoch::FIRST, ending: Ending::Failed(refusal) };
    assert!(matches!(write(&mut journal, &wordy), Err(Refused::Invalid(_))));
}

#[test]
fn only_the_newest_owner_writes() {
    let mut journal = Journal::new(peer(1), 1);
    write(&mut journal, &open(1)).unwrap();
    let row = journal.row(&request(1)).unwrap().clone();
    // The same scheduler, another run of it.
    assert_eq!(journal.take_over(request(1)).unwrap().epoch, Epoch(2));
    for late in [open(1), append(1, 1, 0, &[1]), end(1, 1), append(1, 3, 0, &[1])] {
        assert_eq!(write(&mut journal, &late), Err(Refused::Fenced(request(1))), "{late:?}");
    }
    assert_eq!(write(&mut journal, &append(1, 2, 0, &[1])), Ok(Noted::Now));
    // Another scheduler, whatever epoch it claims.
    journal.set(request(2), Row { owner: peer(2), ..row });
    for other in [open(2), append(2, 1, 0, &[1]), end(2, 1)] {
        assert_eq!(write(&mut journal, &other), Err(Refused::Fenced(request(2))));
    }
    journal.keep_running();
    assert_eq!(journal.rows().count(), 1);
    write(&mut journal, &end(1, 2)).unwrap();
    assert_eq!(journal.take_over(request(1)), Err(Refused::Ended(request(1))));
    assert_eq!(journal.take_over(request(3)), Err(Refused::Unknown(request(3))));
}

#[test]
fn a_segment_that_does_not_fit_is_damage() {
    let outputs = || HashMap::from([(request(1), Output { from: 3, tokens: vec![4, 5], makers: Vec::new() })]);
    let segment = |first, tokens: &[u32]| {
        let mut segment = Segment::default();
        segment.add(request(1), first, tokens, None);
        segment.add(request(2), 9, &[1], None);
        Segment::from_bytes(&segment.to_bytes()).unwrap()
    };
    let mut kept = outputs();
    segment(1, &[5, 6]).replay(3, &mut kept).unwrap();
    assert_eq!(kept[&request(1)].tokens, [4, 5, 6]);
    assert!(segment(3, &[6]).replay(3, &mut outputs()).is_err(), "one is missing");
    assert!(segment(1, &[6]).replay(3, &mut outputs()).is_err(), "one is another");
    segment(9, &[6]).replay(2, &mut outputs()).unwrap();
    assert!(Segment::from_bytes(&[0xFF; 9]).is_err());
}

/// How one of two miners computes.
fn numerics(n: u8) -> Option<Numerics> {
    Some(Numerics::exact(1, if n == 0 { KvFormat::F16 } else { KvFormat::Q8_0 }))
}

#[test]
fn parts_are_written_as_a_segment_has_them() {
    let by = Maker { miner: peer(2), ask: Price { input_per_mtok: 1, output_per_mtok: 2 }, numerics: numerics(1) };
    let (mut parts, mut segment) = (Parts::default(), Segment::default());
    assert!(parts.is_empty());
    for n in 0..200 {
        let (tokens, by) = ([u32::from(n), 70_000], (n % 3 == 0).then_some(by));
        parts.add(&Append { request: request(n), epoch: Epoch::FIRST, first: 300 * u32::from(n), tokens: &tokens, by });
        segment.add(request(n), 300 * u32::from(n), &tokens, by);
    }
    assert_eq!((parts.is_empty(), parts.to_bytes()), (false, segment.to_bytes()));
    parts.clear();
    assert_eq!((parts.is_empty(), parts.to_bytes()), (true, Segment::default().to_bytes()));
}

#[test]
fn a_part_of_an_output_has_its_makers() {
    let by = |n| Maker { miner: peer(n), ask: Price::default(), numerics: None };
    let (tokens, makers) = ([10, 11, 12, 13], [Made { first: 0, by: by(1) }, Made { first: 2, by: by(2) }]);
    let part = |first, end| {
        let mut segment = Segment::default();
        segment.add_output(request(1), &tokens, &makers, first..end);
        segment.0.into_iter().map(|part| (part.first, part.tokens, part.by)).collect::<Vec<_>>()
    };
    assert_eq!(part(0, 4), [(0, vec![10, 11], Some(by(1))), (2, vec![12, 13], Some(by(2)))]);
    assert_eq!(part(1, 3), [(1, vec![11], None), (2, vec![12], Some(by(2)))]);
    assert_eq!(part(2, 4), [(2, vec![12, 13], Some(by(2)))]);
    assert_eq!(part(3, 3), []);
}

#[test]
fn older_segments_are_read_and_neither_newer_ones_nor_these_by_older_programs() {
    let ask = Price { input_per_mtok: 1, output_per_mtok: 2 };
    let mut segment = Segment::default();
    segment.add(request(1), 3, &[5, 70_000], Some(Maker { miner: peer(2), ask, numerics: numerics(1) }));
    segment.add(request(2), 0, &[6], None);
    let bytes = segment.to_bytes();
    assert_eq!(Segment::from_bytes(&bytes), Ok(segment.clone()));
    // As they were before anybody asked how a maker computes.
    type Old = Vec<(RequestId, u32, Vec<u32>, Option<(PeerId, Price)>)>;
    let old: Old = vec![(request(1), 3, vec![5, 70_000], Some((peer(2), ask))), (request(2), 0, vec![6], None)];
    segment.0[0].by = Some(Maker { miner: peer(2), ask, numerics: None });
    assert_eq!(Segment::from_bytes(&postcard::to_stdvec(&old).unwrap()), Ok(segment));
    assert_eq!(Segment::from_bytes(&postcard::to_stdvec(&Old::new()).unwrap()), Ok(Segment::default()));
    assert!(postcard::from_bytes::<Old>(&bytes).is_err(), "a program of then finds it damaged, and not empty");
    let newer = [&bytes[..4], &[3], &bytes[5..]].concat();
    let why = Segment::from_bytes(&newer).unwrap_err().to_string();
    assert!(why.contains("form 3") && why.contains("update"), "{why}");
}

/// A step of a history of two schedulers and four requests.
#[derive(Clone, Debug)]
enum Step {
    Open(u8),
    /// Which, in the newest epoch or the one before, from how many tokens before the end, which, and whose.
    Append(u8, bool, u32, Vec<u32>, Option<Maker>),
    End(u8),
    TakeOver(u8),
    Checkpoint,
}

fn any_step() -> impl Strategy<Value = Step> {
    let tokens = prop::collection::vec(any::<u32>(), 1..5);
    let ask = Price { input_per_mtok: 1, output_per_mtok: 2 };
    let by =
        prop::option::weighted(0.3, (0..3_u8).prop_map(move |n| Maker { miner: peer(n), ask, numerics: numerics(n) }));
    prop_oneof![
        3 => (0..4_u8).prop_map(Step::Open),
        8 => (0..4_u8, prop::bool::weighted(0.2), 0..2_u32, tokens, by).prop_map(|(n, l, b, t, m)| Step::Append(n, l, b, t, m)),
        1 => (0..4_u8).prop_map(Step::End),
        2 => (0..4_u8).prop_map(Step::TakeOver),
        1 => Just(Step::Checkpoint),
    ]
}

/// What a store does with a journal: one log for each scheduler, cut where nobody needs it.
struct Logs {
    journals: [Journal; 2],
    logs: [BTreeMap<i64, Vec<u8>>; 2],
}

impl Logs {
    fn write(&mut self, who: usize, segment: &Segment) {
        if !segment.0.is_empty() {
            let journal = &mut self.journals[who];
            self.logs[who].insert(journal.next_segment(), segment.to_bytes());
            journal.segment_written();
        }
    }

    /// What a store does: it shows the row to the one who takes, and the loser hears of it.
    fn take_over(&mut self, who: usize, n: u8) -> Option<Row> {
        let other = 1 - who;
        let theirs = |row: &&Row| row.owner == peer(other as u8);
        if let Some(row) = self.journals[other].row(&request(n)).filter(theirs).cloned() {
            self.journals[who].set(request(n), row);
        }
        let row = self.journals[who].take_over(request(n)).cloned().ok()?;
        let mut segment = Segment::default();
        if row.first_segment == self.journals[who].next_segment() {
            segment.add_output(request(n), &row.tokens, &row.makers, 0..row.tokens.len());
        }
        self.write(who, &segment);
        self.journals[other].set(request(n), row.clone());
        Some(row)
    }

    /// Reads back what the scheduler runs, from its log alone.
    fn read(&self, who: usize) -> HashMap<RequestId, Output> {
        let journal = &self.journals[who];
        let runs = |(request, row): (&RequestId, &Row)| {
            (row.owner == journal.me() && row.ending.is_none())
                .then(|| (*request, Output::beginning(row.first_segment)))
        };
        let mut outputs = journal.rows().filter_map(runs).collect();
        for (seq, bytes) in &self.logs[who] {
            Segment::from_bytes(bytes).unwrap().replay(*seq, &mut outputs).unwrap();
        }
        outputs
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn outputs_only_grow_and_are_in_their_owners_log(
        steps in prop::collection::vec((any_step(), 0..2_usize, any::<bool>()), 1..120),
    ) {
        let mut all = Logs {
            journals: [Journal::new(peer(0), 1), Journal::new(peer(1), 1)],
            logs: [BTreeMap::new(), BTreeMap::new()],
        };
        let mut truth: BTreeMap<RequestId, (Vec<u32>, Vec<Made>)> = BTreeMap::new();
        for (step, who, cut) in steps {
            match step {
                Step::Open(n) if !truth.contains_key(&request(n)) => {
                    write(&mut all.journals[who], &open(n)).unwrap();
                    truth.insert(request(n), Default::default());
                }
                Step::Append(n, late, back, tokens, by) => {
                    let Some(row) = all.journals[who].row(&request(n)) else { continue };
                    let epoch = row.epoch.0 - u32::from(late);
                    let first = (row.tokens.len() as u32).saturating_sub(back);
                    let entry = append_by(n, epoch, first, &tokens, by);
                    let mine = row.owner == peer(who as u8) && row.ending.is_none() && !late;
                    let answer = write(&mut all.journals[who], &entry);
                    let (output, makers) = truth.get_mut(&request(n)).unwrap();
                    if first as usize == output.len() && mine {
                        prop_assert_eq!(answer, Ok(Noted::Now));
                        output.extend(&tokens);
                        makers.extend(by.map(|by| Made { first, by }));
                        let mut segment = Segment::default();
                        segment.add(request(n), first, &tokens, by);
                        all.write(who, &segment);
                    } else {
                        prop_assert!(answer != Ok(Noted::Now), "{:?} was {:?}", entry, answer);
                    }
                }
                Step::End(n) => {
                    if let Some(row) = all.journals[who].row(&request(n)).cloned() {
                        let _ = write(&mut all.journals[who], &end(n, row.epoch.0));
                    }
                }
                Step::TakeOver(n) => {
                    if let Some(row) = all.take_over(who, n) {
                        prop_assert_eq!((&row.tokens, &row.makers), (&truth[&request(n)].0, &truth[&request(n)].1));
                    }
                }
                Step::Checkpoint => {
                    let segment = all.journals[who].checkpoint();
                    all.write(who, &segment);
                }
                Step::Open(_) => {}
            }
            if cut {
                let needed = all.journals[who].first_needed();
                all.logs[who].retain(|seq, _| *seq >= needed);
            }
            for who in 0..2 {
                for (request, output) in all.read(who) {
                    prop_assert_eq!((&output.tokens, &output.makers), (&truth[&request].0, &truth[&request].1));
                }
            }
        }
    }
}
