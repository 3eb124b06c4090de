#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;
use crate::dispatcher::progress::{SILENCE_MAX, verdict};

const R: ReplicaId = ReplicaId(1);

/// A miner with one replica, seen at moments of the test's own.
struct Seen {
    sequences: Sequences,
    now: Instant,
    news: HashMap<u64, mpsc::Receiver<News>>,
}

impl Seen {
    fn new() -> Self {
        let sequences = Sequences { replicas: HashMap::from([(R, Progress::default())]), ..Sequences::default() };
        Self { sequences, now: Instant::now(), news: HashMap::new() }
    }

    fn assign(&mut self, id: u64) {
        let (news_in, news) = mpsc::channel(CREDIT_TOKENS as usize + 1);
        assert!(self.sequences.join(SequenceId(id), R, news_in, self.now));
        self.news.insert(id, news);
    }

    fn step(&mut self, items: Vec<StepItem>) {
        self.sequences.split(R, items, self.now).unwrap();
    }

    /// Whether it is stuck if nothing happens for so long.
    fn is_stuck_after(&self, silence: Duration) -> bool {
        let replicas: Vec<Progress> = self.sequences.replicas.values().copied().collect();
        verdict(&replicas, self.now + silence).is_err()
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }
}

fn item(id: u64, first: u32, tokens: u32, end: Option<End>) -> StepItem {
    StepItem::new(SequenceId(id), first, vec![7; tokens as usize], end)
}

const LATE: Duration = SILENCE_MAX.saturating_add(Duration::from_secs(1));

#[test]
fn a_replica_that_does_nothing_with_what_it_has_is_stuck() {
    let mut seen = Seen::new();
    assert!(!seen.is_stuck_after(100 * LATE));
    seen.assign(1);
    assert!(!seen.is_stuck_after(SILENCE_MAX) && seen.is_stuck_after(LATE));
    seen.wait(SILENCE_MAX);
    seen.step(vec![]);
    assert!(!seen.is_stuck_after(SILENCE_MAX) && seen.is_stuck_after(LATE), "a long prompt got on");
    seen.wait(SILENCE_MAX);
    seen.step(vec![item(1, 0, 3, None)]);
    assert!(!seen.is_stuck_after(SILENCE_MAX) && seen.is_stuck_after(LATE));
    seen.step(vec![item(1, 3, 1, Some(End::Stop))]);
    assert!(!seen.is_stuck_after(100 * LATE), "it has nothing left to do");
    assert_eq!(seen.news.get_mut(&1).unwrap().try_recv().unwrap().tokens, [7; 3]);
}

#[test]
fn a_developer_that_does_not_read_is_not_the_replicas_fault() {
    let mut seen = Seen::new();
    seen.assign(1);
    seen.step(vec![item(1, 0, CREDIT_TOKENS, None)]);
    assert!(!seen.is_stuck_after(100 * LATE));
    seen.assign(2);
    assert!(seen.is_stuck_after(LATE), "but others may go on");
    seen.step(vec![item(2, 0, 1, Some(End::Length))]);
    assert!(!seen.is_stuck_after(100 * LATE));
    seen.wait(100 * LATE);
    seen.sequences.credit(SequenceId(1), 2 * CREDIT_TOKENS, seen.now);
    assert!(!seen.is_stuck_after(SILENCE_MAX) && seen.is_stuck_after(LATE), "it reads again");
}

#[test]
fn who_gave_up_waiting_leaves_the_replica_stuck() {
    let mut seen = Seen::new();
    seen.assign(1);
    seen.wait(2 * LATE);
    seen.sequences.entries.remove(&SequenceId(1));
    seen.step(vec![item(1, 0, 0, Some(End::Cancelled))]);
    assert!(seen.is_stuck_after(Duration::ZERO), "it answers, and computes nothing");
    seen.step(vec![]);
    assert!(!seen.is_stuck_after(100 * LATE));
}

#[test]
fn nobody_joins_a_replica_that_has_gone() {
    let mut seen = Seen::new();
    seen.sequences.replicas.clear();
    let (news_in, mut news) = mpsc::channel(1);
    assert!(!seen.sequences.join(SequenceId(1), R, news_in, seen.now));
    assert!(matches!(news.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
}
