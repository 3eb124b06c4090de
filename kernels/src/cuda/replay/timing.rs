//! How long launches take by the machine's own clock: for benches, which have what they gathered run many times.

use std::mem::take;
use std::time::Duration;

use super::{Capture, Replay};
use crate::ops::OpsError;

/// A machine with a clock of its own, which does not see what its host does meanwhile.
pub trait Clock: Capture {
    /// A moment between two launches.
    type Mark;

    /// The moment when all before is done.
    fn mark(&mut self) -> Result<Self::Mark, OpsError>;

    /// What passed from one to the other; waits for both.
    fn between(&mut self, from: &Self::Mark, to: &Self::Mark) -> Result<Duration, OpsError>;
}

/// Launches that were run again and again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// How many there were.
    pub launches: usize,
    /// How long each round of them took.
    pub rounds: Vec<Duration>,
}

impl<M: Clock> Replay<M> {
    /// Takes what was gathered since the last answer or write, keeps it as one graph, and runs that once unmeasured and then
    /// `rounds` times under the machine's clock. The values are those of running it once more than that.
    pub fn time_replays(&mut self, rounds: usize) -> Result<Replayed, OpsError> {
        let launches = take(&mut self.gathered);
        let mut replayed = Replayed { launches: launches.len(), rounds: Vec::with_capacity(rounds) };
        if launches.is_empty() {
            return Ok(replayed);
        }
        // SAFETY: who launched promised that memory would be there until the next answer, which is when the rounds are done: what
        // was dropped since is kept until then. Running launches once more touches nothing else than running them once.
        unsafe {
            let graph = self.machine.capture(&launches)?;
            self.machine.replay(&graph)?;
            self.machine.wait()?;
            for _ in 0..rounds {
                let began = self.machine.mark()?;
                self.machine.replay(&graph)?;
                let ended = self.machine.mark()?;
                replayed.rounds.push(self.machine.between(&began, &ended)?);
            }
        }
        self.machine.wait()?;
        self.dropped.borrow_mut().clear();
        Ok(replayed)
    }
}
