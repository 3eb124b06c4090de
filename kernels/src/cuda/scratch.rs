//! Memory that operations use while they run: rounded activations, parts of attention, and what a step's rows are.

use bytemuck::{Pod, cast_slice};

use super::machine::{Machine, Piece};
use super::products::FACTOR_BYTES;
use crate::ops::{ACTIVATION_BLOCK, OpsError};

/// Planes of rounded activations.
const PLANES_MAX: usize = 2;

/// Lists grow to powers of two up to here, and what is larger by whole such pieces.
const GROWTH_BYTES: usize = 1 << 20;

/// Memory that grows to what was needed most.
pub(super) struct Scratch<M: Machine> {
    /// Integers of activations.
    pub(super) codes: Held<M>,
    /// Their scales and sums.
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
        }
    }
}

impl<M: Machine> Clone for Scratch<M>
where
    M::Memory: Clone,
{
    fn clone(&self) -> Self {
        Self {
            codes: self.codes.clone(),
            scales: self.scales.clone(),
            inner: self.inner.clone(),
            parts: self.parts.clone(),
            rows: self.rows.clone(),
            blocks: self.blocks.clone(),
            numbers: self.numbers.clone(),
            weights: self.weights.clone(),
        }
    }
}

/// The largest step that buffers, matrices and adapters so far allow.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    /// Rows of the largest buffer.
    pub(super) rows: usize,
    /// Columns of the widest matrix whose activations are rounded.
    pub(super) cols: usize,
    /// Values that the adapter with the highest ranks computes for a row between its two products.
    pub(super) inner: usize,
}

impl<M: Machine> Scratch<M> {
    /// Room for every step that `needs` allow, so that nothing is asked for when steps are computed: what the lists of a step
    /// take beside that is little.
    pub(super) fn reserve(&mut self, machine: &mut M, needs: &Needs) -> Result<(), OpsError> {
        let values = needs.rows.saturating_mul(needs.cols).saturating_mul(PLANES_MAX);
        let of = |bytes: usize| bytes.saturating_mul(size_of::<f32>());
        self.codes.at_least(machine, values, "rounded activations")?;
        self.scales.at_least(machine, (values / ACTIVATION_BLOCK).saturating_mul(FACTOR_BYTES), "scales")?;
        self.inner.at_least(machine, of(needs.rows.saturating_mul(needs.inner)), "what adapters compute")?;
        Ok(())
    }
}

/// One use of memory.
pub(super) struct Held<M: Machine> {
    memory: Option<M::Memory>,
    /// What was written last, so that the layout of a step is not sent for every layer.
    holds: Vec<u8>,
}

impl<M: Machine> Clone for Held<M>
where
    M::Memory: Clone,
{
    fn clone(&self) -> Self {
        Self { memory: self.memory.clone(), holds: self.holds.clone() }
    }
}

impl<M: Machine> Held<M> {
    /// The address of at least `bytes`.
    pub(super) fn at_least(&mut self, machine: &mut M, bytes: usize, what: &'static str) -> Result<u64, OpsError> {
        if self.memory.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
            // Given back before more is asked for.
            self.memory.take().map(|memory| machine.release(memory));
            self.holds.clear();
            let bytes =
                if bytes < GROWTH_BYTES { bytes.next_power_of_two() } else { bytes.next_multiple_of(GROWTH_BYTES) };
            self.memory = Some(machine.allocate(bytes, what)?);
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
}
