//! Memory that operations use while they run: rounded activations, parts of attention, and what a step's rows are.

use bytemuck::{Pod, cast_slice};

use super::machine::{Machine, Piece};
use crate::ops::OpsError;

/// How much of it there may be, and how work is shared out. No result depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Blocks of threads that fill the machine. A tile of an attention that would take longer than their even share of all work
    /// is cut into splits.
    pub(crate) fill: usize,
    /// For sums of splits. A tile whose sums would not fit goes through its splits in order.
    pub(crate) parts_bytes: usize,
    /// For blocks of the KV cache on their way to the host or back, one block at least.
    pub(crate) staging_bytes: usize,
}

impl Default for Bounds {
    /// For a large GPU.
    fn default() -> Self {
        Self { fill: 384, parts_bytes: 64 << 20, staging_bytes: 32 << 20 }
    }
}

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
    /// Tiles of attention: without a window, and with one.
    pub(super) tiles: [Held<M>; 2],
    /// Blocks of the KV cache on their way.
    pub(super) staging: Held<M>,
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
            tiles: [empty(), empty()],
            staging: empty(),
            rows: empty(),
            blocks: empty(),
            numbers: empty(),
            weights: empty(),
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

    /// Copies to the machine what nobody looks up again.
    pub(super) fn write(&mut self, machine: &mut M, at: usize, bytes: &[u8]) -> Result<(), OpsError> {
        self.holds.clear();
        let memory = self.memory.as_mut().expect("it was asked for");
        machine.write(memory, at, bytes)
    }

    /// Copies from the machine.
    pub(super) fn read(&self, machine: &mut M, at: usize, to: &mut [u8]) -> Result<(), OpsError> {
        let memory = self.memory.as_ref().expect("it was asked for");
        machine.read(memory, at, to)
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
