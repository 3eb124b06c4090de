//! What adapters add to products: two thin products with floating-point weights.

use super::args::{cuckoo_floats, cuckoo_linear_floats};
use super::machine::{Machine, Piece};
use super::matrix::floats;
use super::{Buffer, Cuda};
use crate::low_rank::{Adapted, LowRankSource, check_parts};
use crate::ops::{MatrixSource, OpsError};
use crate::quant::Quant;

/// An adapter's part of one product.
pub struct LowRank<M: Machine> {
    parts: Vec<Part<M>>,
    inputs: usize,
}

struct Part<M: Machine> {
    first_col: usize,
    a: Thin<M>,
    b: Thin<M>,
    scale: f32,
}

struct Thin<M: Machine> {
    quant: Quant,
    args: cuckoo_floats,
    _memory: M::Memory,
}

impl<M: Machine> LowRank<M> {
    /// Sends checked parts to the machine.
    pub(super) fn load(machine: &mut M, parts: &[LowRankSource<'_>]) -> Result<Self, OpsError> {
        if M::HOLDS {
            check_parts(parts)?;
        }
        let mut thin = |source: &MatrixSource<'_>| {
            let (args, memory) = floats(machine, source)?;
            Ok::<_, OpsError>(Thin { quant: source.quant, args, _memory: memory })
        };
        let mut part = |part: &LowRankSource<'_>| {
            Ok(Part { first_col: part.first_col, a: thin(&part.a)?, b: thin(&part.b)?, scale: part.scale })
        };
        let inputs = parts.first().map_or(0, |part| part.a.cols);
        Ok(Self { parts: parts.iter().map(&mut part).collect::<Result<_, OpsError>>()?, inputs })
    }
}

impl<M: Machine> Cuda<M> {
    /// Adds what an adapter gives to its rows.
    pub(super) fn adapt(
        &mut self,
        x: &Buffer<M>,
        Adapted { rows, by }: &Adapted<'_, LowRank<M>>,
        out: &mut Buffer<M>,
    ) -> Result<(), OpsError> {
        assert_eq!(x.cols, by.inputs, "an adapter takes rows of its width");
        let row = |cols: usize| (rows.start * cols * size_of::<f32>()) as u64;
        let (tokens, out_cols) = (rows.len() as u32, out.cols as u32);
        for part in &by.parts {
            let (rank, outputs) = (part.a.args.rows, part.b.args.rows);
            assert!(part.first_col + outputs as usize <= out.cols, "an adapter changes columns that are there");
            let bytes = rows.len() * rank as usize * size_of::<f32>();
            let inner =
                self.scratch.inner.at_least(&mut self.machine, bytes, "what adapters compute between products")?;
            let product = |w, x, out| cuckoo_linear_floats { w, x, out, tokens, scale: 1.0, ..Default::default() };
            let first = cuckoo_linear_floats {
                out_cols: rank,
                scale: part.scale,
                ..product(part.a.args, x.memory.address() + row(x.cols), inner)
            };
            let second = cuckoo_linear_floats {
                out_cols,
                first_row: part.first_col as u32,
                add: 1,
                ..product(part.b.args, inner, out.written() + row(out.cols))
            };
            // SAFETY: rows are in use in both buffers, columns were asserted, and there is room for what is between.
            unsafe {
                self.float_product(part.a.quant, &first)?;
                self.float_product(part.b.quant, &second)?;
            }
        }
        Ok(())
    }
}
