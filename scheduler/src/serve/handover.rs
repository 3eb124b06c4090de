//! Who goes on with a request that two miners run at a time, decided.
//!
//! A miner that should have spoken by now, or that leaves, is not thrown away: somebody else is looked for while it goes on
//! as it can. Both run for as long as it takes to compute the prompt and what came after it; then one of them is dropped,
//! which fences it. Tokens are accepted by their position, from whoever says the next one first.

use crate::gateway::miner::Standing;

/// A successor that is so many tokens behind is level: it needs no more than that many steps.
const BEHIND_MAX: u32 = 2;
/// How often the successor of a miner that leaves is placed anew to be closer.
const CLOSER_MAX: u32 = 3;

/// What becomes of a successor that has computed all that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It goes on, and the other one is dropped.
    TakeOver,
    /// It is placed anew on the same replica, from where the other one has come meanwhile: the replica has nearly all of
    /// it in its cache now, so that the next one will be closer.
    Closer,
    /// It is dropped: the other one is well after all, and ahead.
    Drop,
    /// Nothing yet.
    Wait,
}

/// Decides when the successor speaks. It is `behind` by so many tokens before what it says now, is placed anew or not, and
/// was so `closer` times before; the other one is of such a `standing`.
pub(super) fn decide(behind: u32, standing: Standing, is_asked_closer: bool, closer: u32) -> Decision {
    match () {
        () if behind == 0 || standing.is_suspect => Decision::TakeOver,
        () if is_asked_closer => Decision::Wait,
        () if behind <= BEHIND_MAX => Decision::TakeOver,
        () if !standing.is_leaving => Decision::Drop,
        () if closer < CLOSER_MAX => Decision::Closer,
        () => Decision::TakeOver,
    }
}

/// How many of `tokens`, which begin at position `at` of the output, are in it already; `None` if they differ from it.
pub(super) fn known(output: &[u32], at: u32, tokens: &[u32]) -> Option<usize> {
    let accepted = output.get(at as usize..)?;
    let known = accepted.len().min(tokens.len());
    (accepted[..known] == tokens[..known]).then_some(known)
}

#[cfg(test)]
mod tests;
