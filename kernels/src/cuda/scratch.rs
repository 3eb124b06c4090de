//! Memory that operations use while they run: rounded activations, parts of attention, lists.

use bytemuck::{Pod, cast_slice};

use super::machine::{Machine, Piece};
use super::rounding::FACTOR_BYTES;
use crate::ops::{ACTIVATION_BLOCK, OpsError};

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

/// Planes of rounded activations.
const PLANES_MAX: usize = 2;

/// Lists grow to powers of two up to here, and what is larger by whole such pieces.
const GROWTH_BYTES: usize = 1 << 20;

/// [`Scratch`], and what is the same for each of its parts.
macro_rules! scratch {
    ($($(#[$what:meta])* $name:ident,)*) => {
        /// Memory that grows to what was needed most.
        pub(super) struct Scratch<M: Machine> {
            $($(#[$what])* pub(super) $name: Held<M>,)*
        }

        impl<M: Machine> Default for Scratch<M> {
            fn default() -> Self {
                Self { $($name: Held::default(),)* }
            }
        }

        impl<M: Machine> Clone for Scratch<M>
        where
            M::Memory: Clone,
        {
            fn clone(&self) -> Self {
                Self { $($name: self.$name.clone(),)* }
            }
        }
    };
}

scratch! {
    /// Integers of activations.
    codes,
    /// Their scales and sums.
    scales,
    /// Activations as bfloat16.
    bf16,
    /// Activations as halves.
    f16,
    /// What rows of halves have to be multiplied by.
    f16_scales,
    /// What is between the two products of adapters.
    inner,
    /// Sums of splits.
    parts,
    /// Blocks of the KV cache on their way.
    staging,
    /// Numbers of rows, or tokens.
    numbers,
    /// Weights of rows.
    weights,
    /// Tokens that were drawn.
    drawn,
    /// Tokens of every other draw that nobody waits for, so that one may be read while the next is made.
    drawn_even,
    /// Those of the others.
    drawn_odd,
    /// Rows of a step whose tokens are drawn ones.
    fed,
    /// Logits as requests change them.
    changed,
    /// What changes them.
    changes,
    /// Lists of those.
    lists,
    /// How tokens are drawn.
    draws,
    /// Questions about probabilities.
    questions,
    /// Their answers.
    answers,
    /// Exponentials of logits.
    exponentials,
    /// Experts that rows chose.
    routed,
}

/// The largest step that buffers, matrices and adapters so far allow.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    /// Rows of the largest buffer.
    pub(super) rows: usize,
    /// Columns of the widest matrix whose activations are rounded.
    pub(super) cols: usize,
    /// Columns of the widest matrix whose activations are made bfloat16, and of that whose are made halves.
    pub(super) narrow_cols: [usize; 2],
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
        for (held, cols) in [&mut self.bf16, &mut self.f16].into_iter().zip(needs.narrow_cols) {
            let bytes = needs.rows.saturating_mul(cols).saturating_mul(size_of::<u16>());
            held.at_least(machine, bytes, "rounded activations")?;
        }
        self.inner.at_least(machine, of(needs.rows.saturating_mul(needs.inner)), "what adapters compute")?;
        Ok(())
    }
}

/// One use of memory.
pub(super) struct Held<M: Machine> {
    memory: Option<M::Memory>,
    /// What was written last, so that nothing is sent twice.
    holds: Vec<u8>,
}

impl<M: Machine> Default for Held<M> {
    fn default() -> Self {
        Self { memory: None, holds: Vec::new() }
    }
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
    /// The address of at least `bytes`; none where nothing is needed yet.
    pub(super) fn at_least(&mut self, machine: &mut M, bytes: usize, what: &'static str) -> Result<u64, OpsError> {
        if self.memory.as_ref().map_or(0, Piece::bytes) < bytes {
            // Given back before more is asked for.
            if let Some(memory) = self.memory.take() {
                machine.release(memory);
            }
            self.holds.clear();
            let bytes =
                if bytes < GROWTH_BYTES { bytes.next_power_of_two() } else { bytes.next_multiple_of(GROWTH_BYTES) };
            self.memory = Some(machine.allocate(bytes, what)?);
        }
        Ok(self.address())
    }

    /// Where it is; none where nothing was needed yet.
    pub(super) fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, Piece::address)
    }

    /// Whether these values were written last.
    pub(super) fn has<T: Pod>(&self, values: &[T]) -> bool {
        self.holds == cast_slice::<T, u8>(values)
    }

    /// Copies to the machine what nobody looks up again.
    pub(super) fn write(&mut self, machine: &mut M, at: usize, bytes: &[u8]) -> Result<(), OpsError> {
        self.holds.clear();
        let memory = self.memory.as_mut().expect("it was asked for");
        machine.write(memory, at, bytes)
    }

    /// What it holds was changed by a kernel.
    pub(super) fn forget(&mut self) {
        self.holds.clear();
    }

    /// Begins to copy the first bytes from the machine.
    pub(super) fn read_ahead(&self, machine: &mut M, bytes: usize) -> Result<M::Pending, OpsError> {
        let memory = self.memory.as_ref().expect("it was asked for");
        machine.read_ahead(memory, bytes)
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
