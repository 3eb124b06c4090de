//! Memory that operations use while they run: rounded activations, parts of attention, and what a step's rows are.

use bytemuck::{Pod, cast_slice};

use super::machine::{Machine, Piece};
use crate::ops::OpsError;

/// Memory that grows to what was needed most.
pub(super) struct Scratch<M: Machine> {
    /// Integers of activations.
    pub(super) codes: Held<M>,
    /// Their scales.
    pub(super) scales: Held<M>,
    /// What is between the two products of adapters.
    pub(super) inner: Held<M>,
    /// Sums of splits.
    pub(super) parts: Held<M>,
    /// Rows of a step.
    pub(super) rows: Held<M>,
    /// Block tables of a step.
    pub(super) blocks: Held<M>,
    /// Numbers of rows, or tokens.
    pub(super) numbers: Held<M>,
    /// Weights of rows.
    pub(super) weights: Held<M>,
    /// Tokens that were drawn.
    pub(super) drawn: Held<M>,
    /// Logits as requests change them.
    pub(super) changed: Held<M>,
    /// What changes them.
    pub(super) changes: Held<M>,
    /// Lists of those.
    pub(super) lists: Held<M>,
    /// How tokens are drawn.
    pub(super) draws: Held<M>,
    /// Questions about probabilities.
    pub(super) questions: Held<M>,
    /// Their answers.
    pub(super) answers: Held<M>,
    /// Exponentials of logits.
    pub(super) exponentials: Held<M>,
    /// Experts that rows chose.
    pub(super) routed: Held<M>,
}

impl<M: Machine> Default for Scratch<M> {
    fn default() -> Self {
        let empty = || Held { memory: None, holds: Vec::new() };
        Self {
            codes: empty(),
            scales: empty(),
            inner: empty(),
            parts: empty(),
            rows: empty(),
            blocks: empty(),
            numbers: empty(),
            weights: empty(),
            drawn: empty(),
            changed: empty(),
            changes: empty(),
            lists: empty(),
            draws: empty(),
            questions: empty(),
            answers: empty(),
            exponentials: empty(),
            routed: empty(),
        }
    }
}

/// One use of memory.
pub(super) struct Held<M: Machine> {
    memory: Option<M::Memory>,
    /// What was written last, so that the layout of a step is not sent for every layer.
    holds: Vec<u8>,
}

impl<M: Machine> Held<M> {
    /// The address of at least `bytes`.
    pub(super) fn at_least(&mut self, machine: &mut M, bytes: usize, what: &'static str) -> Result<u64, OpsError> {
        if self.memory.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
            self.memory = None; // given back before more is asked for
            self.holds.clear();
            self.memory = Some(machine.allocate(bytes.next_power_of_two(), what)?);
        }
        Ok(self.memory.as_ref().map_or(0, Piece::address))
    }

    /// The address of these values on the machine.
    pub(super) fn holding<T: Pod>(
        &mut self,
        machine: &mut M,
        values: &[T],
        what: &'static str,
    ) -> Result<u64, OpsError> {
        let bytes: &[u8] = cast_slice(values);
        let address = self.at_least(machine, bytes.len().max(1), what)?;
        if self.holds != bytes {
            self.holds.clear();
            if let Some(memory) = &mut self.memory {
                machine.write(memory, 0, bytes)?;
            }
            self.holds.extend_from_slice(bytes);
        }
        Ok(address)
    }

    /// Copies from its beginning, when all launches before are done.
    pub(super) fn read(&self, machine: &mut M, to: &mut [u8]) -> Result<(), OpsError> {
        self.memory.as_ref().map_or(Ok(()), |memory| machine.read(memory, 0, to))
    }

    /// Copies to it, from byte `at` on.
    pub(super) fn write(&mut self, machine: &mut M, at: usize, bytes: &[u8]) -> Result<(), OpsError> {
        self.holds.clear();
        self.memory.as_mut().map_or(Ok(()), |memory| machine.write(memory, at, bytes))
    }
}
