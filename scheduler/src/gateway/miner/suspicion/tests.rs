use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
/// Of a neighbour.
const NEAR: Duration = MS;

fn beat(steps: u64, due_ms: u32) -> Beat {
    Beat { steps, due_ms }
}

/// A replica that has a sequence since `at`.
fn busy(at: Duration) -> Pulse {
    let mut pulse = Pulse::default();
    pulse.has(true, true, at);
    pulse
}

/// When it is found suspect if nothing more happens, looked at each millisecond.
fn suspect_after(pulse: &Pulse, since: Duration) -> Option<(Duration, Suspicion)> {
    (0..30_000).map(|ms| MS * ms).find_map(|later| Some((later, pulse.suspicion(NEAR, None, since + later)?)))
}

#[test]
fn three_missed_heartbeats_are_silence() {
    let at = MS * 1_000;
    assert_eq!(suspect_after(&busy(at), at), Some((MS * 302, Suspicion::Silent)), "it never answered");
    let mut pulse = busy(at);
    for beats in 1..100 {
        pulse.beat(beat(beats, 0), at + MS * 100 * beats as u32);
    }
    assert_eq!(suspect_after(&pulse, at + MS * 9_900), Some((MS * 302, Suspicion::Silent)));
    let far = pulse.suspicion(MS * 200, None, at + MS * (9_900 + 500));
    assert_eq!(far, None, "words take longer from afar");
}

#[test]
fn who_has_nothing_to_do_may_be_silent_for_longer() {
    let at = MS * 100_000;
    let idle = Some((MS * 1_202, Suspicion::Silent));
    assert_eq!(suspect_after(&Pulse::new(at), at), idle, "but it speaks now and then");
    let mut pulse = busy(MS);
    pulse.stepped(true, true, MS * 50);
    pulse.has(false, false, MS * 50);
    assert_eq!(suspect_after(&pulse, MS * 50), idle);
    (1..100).for_each(|beats| _ = pulse.beat(beat(1, 0), MS * (50 + 400 * beats)));
    pulse.has(true, true, MS * 40_000);
    assert_eq!(pulse.suspicion(NEAR, None, MS * 40_300), None, "its silence begins when it is given something");
    assert!(pulse.suspicion(NEAR, None, MS * 40_302).is_some());
}

#[test]
fn a_long_step_is_not_death_where_it_was_announced() {
    let mut pulse = busy(MS);
    let speaks = |pulse: &mut Pulse, from: u32, to: u32, steps, due_ms| {
        (from..to).step_by(100).find(|ms| {
            pulse.beat(beat(steps, due_ms), MS * *ms);
            pulse.suspicion(NEAR, None, MS * *ms).is_some()
        })
    };
    assert_eq!(speaks(&mut pulse, 1, 8_000, 0, 2_000), None, "four times what it expects");
    assert_eq!(speaks(&mut pulse, 8_000, 9_000, 0, 2_000), Some(8_300), "and not for ever");
    assert_eq!(speaks(&mut pulse, 9_000, 10_000, 1, 2_000), None, "it came back");
    // A prompt of many short steps: each is progress.
    let mut pulse = busy(MS);
    for ms in 1..200 {
        pulse.beat(beat(ms / 2, 60), MS * 100 * ms as u32);
        assert_eq!(pulse.suspicion(NEAR, None, MS * 100 * ms as u32), None);
    }
}

#[test]
fn a_gap_is_judged_by_the_pace_of_the_steps() {
    for (pace, patience) in [(5, 250), (30, 250), (100, 800), (1_000, 8_000)] {
        let mut pulse = busy(Duration::ZERO);
        (1..400).for_each(|step| pulse.stepped(true, true, MS * pace * step));
        let got = pulse.patience();
        assert!(got.abs_diff(MS * patience) < MS * patience / 50, "{got:?} at {pace} ms");
    }
    assert_eq!(busy(MS).patience(), MS * 1_000, "before two steps were seen");
}

#[test]
fn one_fault_does_not_make_the_next_one_bearable() {
    let mut pulse = busy(Duration::ZERO);
    (1..400).for_each(|step| pulse.stepped(true, true, MS * 10 * step));
    pulse.stepped(true, true, MS * (4_000 + 60_000));
    assert!(pulse.patience() < MS * 400, "{:?} after a minute of silence", pulse.patience());
    // One that is slow for good is slow, and no longer suspect.
    (1..60).for_each(|step| pulse.stepped(true, true, MS * (64_000 + 400 * step)));
    assert!(pulse.patience() > MS * 2_500, "{:?} at 400 ms a step", pulse.patience());
}

#[test]
fn who_was_suspect_stays_so_until_it_does_what_it_did_not() {
    let at = MS * 10_000;
    let mut silent = busy(Duration::ZERO);
    let before = silent.suspicion(NEAR, None, MS * 400);
    assert_eq!(before, Some(Suspicion::Silent));
    silent.has(false, false, MS * 400);
    assert_eq!(silent.suspicion(NEAR, before, MS * 410), before, "what it had has gone elsewhere");
    silent.stepped(false, false, at + MS * 2);
    assert_eq!(silent.suspicion(NEAR, before, at + MS * 3), None, "any word will do");

    let mut stalled = busy(Duration::ZERO);
    stalled.beat(beat(0, 0), at);
    let before = stalled.suspicion(NEAR, None, at);
    assert_eq!(before, Some(Suspicion::Stalled));
    stalled.has(false, false, at);
    stalled.stepped(false, false, at + MS);
    assert_eq!(stalled.suspicion(NEAR, before, at + MS), before, "words are no work");
    stalled.beat(beat(1, 0), at + MS * 2);
    assert_eq!(stalled.suspicion(NEAR, before, at + MS * 2), None);
}

#[test]
fn a_scheduler_that_was_stopped_has_not_been_waiting() {
    let began = Instant::now();
    let mut clock = Clock::new(began);
    let pulse = busy(clock.at(began));
    // An hour goes by between two looks, five times.
    for hour in 1..=5 {
        assert_eq!(pulse.suspicion(NEAR, None, clock.look(LOOK_INTERVAL, began + MS * 3_600_000 * hour)), None);
    }
    assert_eq!(clock.at(began + MS * 18_000_010), LOOK_INTERVAL * 10 + MS * 10);
}

proptest! {
    /// However a replica speaks: who says something each 100 ms and computes each 200 ms is never suspect.
    #[test]
    fn the_lively_are_never_suspect(gaps in prop::collection::vec((1u32..100, any::<bool>()), 1..300)) {
        let (mut pulse, mut at) = (busy(Duration::ZERO), Duration::ZERO);
        let (mut steps, mut has_computed) = (0, true);
        for (gap, by_beat) in gaps {
            at += MS * gap;
            prop_assert_eq!(pulse.suspicion(NEAR, None, at), None);
            // At least every other word tells of a step.
            if by_beat {
                steps += u64::from(!has_computed);
                has_computed = !has_computed;
                pulse.beat(beat(steps, 0), at);
            } else {
                (steps, has_computed) = (steps + 1, true);
                pulse.stepped(true, true, at);
            }
        }
    }
}
