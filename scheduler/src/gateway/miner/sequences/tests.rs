#![allow(clippy::unwrap_used)]

use super::super::news::Heard;
use super::*;
use crate::dispatcher::progress::{SILENCE_MAX, verdict};

const R: ReplicaId = ReplicaId(1);

/// A miner with one replica, seen at moments of the test's own.
struct Seen {
    sequences: Sequences,
    now: Instant,
    news: HashMap<u64, Hearer>,
    steps: u64,
}

impl Seen {
    fn new() -> Self {
        let now = Instant::now();
        let mut sequences = Sequences::new(now);
        sequences.add_replica(R, now);
        Self { sequences, now, news: HashMap::new(), steps: 0 }
    }

    fn assign(&mut self, id: u64) {
        self.news.insert(id, self.sequences.join(SequenceId(id), R, self.now).unwrap());
    }

    /// It says that it has computed something.
    fn beat(&mut self) {
        self.steps += 1;
        self.sequences.beat(R, Beat { steps: self.steps, due_ms: 0 }, self.now);
    }

    fn standing(&self, id: u64) -> Standing {
        self.news[&id].standing()
    }

    /// Time goes by, and is looked at. The replicas of which something else is thought.
    fn watch(&mut self, ms: u64) -> Vec<(ReplicaId, bool)> {
        let mut changed = Vec::new();
        for _ in 0..ms / 10 {
            self.wait(Duration::from_millis(10));
            changed.extend(self.sequences.look(Duration::ZERO, self.now));
        }
        changed
    }

    fn step(&mut self, items: Vec<StepItem>) {
        self.sequences.split(R, items, self.now).unwrap();
    }

    /// Whether it is stuck if nothing happens for so long.
    fn is_stuck_after(&self, silence: Duration) -> bool {
        let replicas: Vec<Progress> = self.sequences.progress(R).into_iter().collect();
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
    seen.beat();
    assert!(!seen.is_stuck_after(SILENCE_MAX) && seen.is_stuck_after(LATE), "a long prompt got on");
    seen.wait(SILENCE_MAX);
    seen.step(vec![item(1, 0, 3, None)]);
    assert!(!seen.is_stuck_after(SILENCE_MAX) && seen.is_stuck_after(LATE));
    seen.step(vec![item(1, 3, 1, Some(End::Stop))]);
    assert!(!seen.is_stuck_after(100 * LATE), "it has nothing left to do");
    assert_eq!(seen.news.get_mut(&1).unwrap().now().unwrap().1.tokens, [7; 4], "what was not heard is one item");
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
    assert!(seen.sequences.remove(SequenceId(1), seen.now));
    seen.step(vec![item(1, 0, 0, Some(End::Cancelled))]);
    assert!(seen.is_stuck_after(Duration::ZERO), "it answers, and computes nothing");
    seen.beat();
    assert!(!seen.is_stuck_after(100 * LATE));
}

#[test]
fn nobody_joins_a_replica_that_has_gone() {
    let mut seen = Seen::new();
    seen.assign(1);
    seen.sequences.lose_replica(R);
    assert!(seen.sequences.join(SequenceId(2), R, seen.now).is_none());
    assert_eq!(seen.news.get_mut(&1).unwrap().now().unwrap().0, Heard::Lost, "who was there hears it");
}

#[test]
fn a_silent_replica_is_suspect_with_all_that_it_has_until_it_speaks() {
    let mut seen = Seen::new();
    assert_eq!(
        (seen.sequences.look_interval(), seen.watch(1_000)),
        (IDLE_LOOK_INTERVAL, vec![]),
        "nobody waits for it"
    );
    assert_eq!(seen.watch(1_000), [(R, true)], "but it says nothing at all");
    seen.beat();
    assert_eq!(seen.watch(10), [(R, false)]);
    seen.assign(1);
    seen.assign(2);
    seen.step(vec![item(1, 0, 1, None)]);
    assert_eq!(seen.watch(300), []);
    assert_eq!(seen.watch(10), [(R, true)], "once");
    assert_eq!((seen.watch(1_000), seen.sequences.look_interval()), (vec![], LOOK_INTERVAL));
    assert!(seen.standing(1).is_suspect && seen.standing(2).is_suspect && seen.standing(2).wants_successor());
    seen.assign(3);
    assert!(seen.standing(3).is_suspect, "who comes later is told at once");
    seen.beat();
    assert_eq!(seen.watch(10), [(R, false)]);
    assert!(!seen.standing(2).is_suspect && !seen.standing(3).is_suspect);
    assert!(seen.standing(1).is_suspect, "the others may wait for their first token, but this one was decoding");
    seen.step(vec![item(1, 1, 1, None)]);
    assert_eq!(seen.standing(1), Standing::default(), "at once");
    assert_eq!((seen.watch(10), seen.standing(1)), (vec![], Standing::default()));
}

#[test]
fn one_sequence_that_is_left_out_is_suspect_alone() {
    let mut seen = Seen::new();
    seen.assign(1);
    seen.assign(2);
    seen.step(vec![item(1, 0, 1, None), item(2, 0, 1, None)]);
    for token in 1..40 {
        assert_eq!(seen.watch(20), []);
        seen.step(vec![item(1, token, 1, None)]);
    }
    assert_eq!((seen.standing(1).is_suspect, seen.standing(2).is_suspect), (false, true));
}

#[test]
fn who_may_send_nothing_owes_nothing() {
    let mut seen = Seen::new();
    seen.assign(1);
    seen.step(vec![item(1, 0, CREDIT_TOKENS, None)]);
    for _ in 0..100 {
        seen.sequences.beat(R, Beat::default(), seen.now);
        assert_eq!(seen.watch(100), [], "its developer does not read");
    }
    assert_eq!(seen.standing(1), Standing::default());
    seen.sequences.credit(SequenceId(1), 2 * CREDIT_TOKENS, seen.now);
    assert_eq!((seen.watch(200), seen.standing(1)), (vec![], Standing::default()), "its time begins now");
    assert_eq!(seen.watch(200), [(R, true)]);
}

#[test]
fn sequences_of_a_leaving_replica_are_told_so() {
    let mut seen = Seen::new();
    seen.assign(1);
    seen.sequences.leave(R);
    assert_eq!(seen.standing(1), Standing { is_suspect: false, is_leaving: true });
    seen.assign(2);
    assert!(seen.standing(2).is_leaving, "one that crossed its word");
    seen.step(vec![item(1, 0, 1, None)]);
    assert_eq!(seen.watch(50), []);
    assert!(seen.standing(1).is_leaving);
}
