#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const WELL: Standing = Standing { is_suspect: false, is_leaving: false };
const SUSPECT: Standing = Standing { is_suspect: true, is_leaving: false };
const LEAVING: Standing = Standing { is_suspect: false, is_leaving: true };

#[test]
fn who_says_the_next_token_goes_on() {
    for standing in [WELL, SUSPECT, LEAVING] {
        for asked in [false, true] {
            assert_eq!(decide(0, standing, asked, 0), Decision::TakeOver);
        }
    }
    assert_eq!(decide(1_000, SUSPECT, false, 0), Decision::TakeOver, "nobody else says anything");
}

#[test]
fn a_false_alarm_costs_nobody_a_pause() {
    assert_eq!(decide(BEHIND_MAX + 1, WELL, false, 0), Decision::Drop);
    assert_eq!(decide(BEHIND_MAX, WELL, false, 0), Decision::TakeOver, "but one that was merely slow is left");
}

#[test]
fn who_leaves_is_followed_more_and_more_closely() {
    assert_eq!(decide(100, LEAVING, false, 0), Decision::Closer);
    assert_eq!(decide(101, LEAVING, true, 1), Decision::Wait);
    assert_eq!(decide(6, LEAVING, false, 1), Decision::Closer);
    assert_eq!(decide(2, LEAVING, false, 2), Decision::TakeOver);
    assert_eq!(decide(100, LEAVING, false, CLOSER_MAX), Decision::TakeOver, "and not for ever");
}

proptest! {
    /// Two lines say the same tokens in any portions and in any order: each position is relayed once, in order, and what is
    /// said is the whole; and any other token is noticed before anything of its portion is relayed.
    #[test]
    fn each_position_is_taken_once(
        tokens in prop::collection::vec(0u32..5, 1..60),
        from in 0usize..40,
        turns in prop::collection::vec((any::<bool>(), 1usize..6), 0..200),
        wrong in prop::option::of((any::<bool>(), 0usize..60)),
    ) {
        let mut at = [0, from.min(tokens.len())];
        let mut output = tokens[..at[1]].to_vec();
        at[0] = at[1] / 2;
        for (second, count) in turns.into_iter().chain([(true, 60), (false, 60)]) {
            let line = &mut at[usize::from(second)];
            let mut said = tokens[*line..tokens.len().min(*line + count)].to_vec();
            let lies = wrong.is_some_and(|(who, position)| {
                let position = position.checked_sub(*line).filter(|p| *p < said.len() && *p + *line < output.len());
                who == second && position.map(|p| said[p] = 9).is_some()
            });
            let found = known(&output, *line as u32, &said);
            prop_assert_eq!(found.is_none(), lies);
            let Some(found) = found else { return Ok(()) };
            *line += said.len();
            output.extend(&said[found..]);
            prop_assert_eq!(&output[..], &tokens[..output.len()]);
        }
        prop_assert_eq!(output, tokens);
    }
}

#[test]
fn a_position_that_nobody_has_reached_is_no_continuation() {
    assert_eq!(known(&[1, 2], 3, &[4]), None);
    assert_eq!(known(&[1, 2], 2, &[4]), Some(0));
    assert_eq!(known(&[], 0, &[]), Some(0));
}
