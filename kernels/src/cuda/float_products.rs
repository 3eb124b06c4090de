//! Products with 16-bit floating-point weights on tensor cores: what [`Profile::Fast`] computes in place of the contract.

use std::ffi::CStr;

use super::args::{cuckoo_floats, cuckoo_gemm, cuckoo_gemm_mapped, cuckoo_narrow, cuckoo_tensor_map};
use super::machine::{Machine, Narrow, TiledMatrix};
use super::matrix::{Matrix, Part, Weights};
use super::operations::{THREADS, WARP};
use super::products::Product;
use super::scratch::Scratch;
use super::{Buffer, Cuda};
use crate::ops::OpsError;
use crate::quant::Quant;

/// What a backend may do for speed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Nothing: every result is the contract's, bit for bit.
    #[default]
    Exact,
    /// Products with weights of bfloat16 or halves are those of tensor cores: activations are rounded to the weights' kind, sums
    /// are in `f32`, in an order of the hardware's own within 16 columns. A row's result still does not depend on the rows
    /// beside it. See `NUMERICS.md`.
    Fast,
}

/// Columns of tiles that the accelerator loads.
const BOX_COLS: usize = 64;
/// Tokens of a tile of the kernels for many tokens.
const WIDE_TOKENS: usize = 128;
/// Rows of a tile of the generic one.
const WIDE_ROWS: usize = 128;
/// Most tokens of a tile of the kernel for few.
const SKINNY_TOKENS: usize = 64;
/// Rows of a warp of it.
const WARP_ROWS: usize = 16;

/// A kernel, and how a product is shared out among its blocks.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    blocks: usize,
    threads: usize,
    shared_bytes: usize,
    path: Path,
}

#[derive(Debug, PartialEq, Eq)]
enum Path {
    /// Few tokens, or little to do.
    Skinny,
    /// Many tokens, on any architecture.
    Wide,
    /// Many tokens, on Hopper: rows of weights in a tile.
    Hopper(usize),
}

impl Plan {
    /// For a product of `tokens` rows with `rows` of weights. No value depends on which it is, only how long it takes.
    fn of(architecture: u32, multiprocessors: usize, rows: usize, tokens: usize) -> Self {
        let tiles = |tile_rows: usize| rows.div_ceil(tile_rows) * tokens.div_ceil(WIDE_TOKENS);
        // Most multiprocessors would have nothing to do, and weights come from memory no faster for it.
        if tokens <= SKINNY_TOKENS || 2 * tiles(WIDE_ROWS) < multiprocessors {
            return Self::skinny(multiprocessors, rows, tokens);
        }
        if architecture != 90 {
            let shared_bytes = 3 * (WIDE_ROWS + WIDE_TOKENS) * 32 * 2;
            return Self { blocks: tiles(WIDE_ROWS), threads: THREADS, shared_bytes, path: Path::Wide };
        }
        // The larger tile reads less of shared memory for each product, if there are enough of them.
        let (tile_rows, stages) = if tiles(256) >= multiprocessors { (256, 4) } else { (128, 6) };
        let barriers = 2 * stages * size_of::<u64>();
        Self {
            blocks: tiles(tile_rows).min(multiprocessors),
            threads: 384,
            shared_bytes: stages * (WIDE_TOKENS + tile_rows) * BOX_COLS * 2 + barriers,
            path: Path::Hopper(tile_rows),
        }
    }

    /// As many warps in a block as leave a block for each multiprocessor, at most 4.
    fn skinny(multiprocessors: usize, rows: usize, tokens: usize) -> Self {
        let (tile_tokens, stages) = match tokens {
            0..=8 => (8, 8),
            9..=16 => (16, 8),
            17..=32 => (32, 6),
            _ => (SKINNY_TOKENS, 4),
        };
        let token_tiles = tokens.div_ceil(tile_tokens);
        let tiles = rows.div_ceil(WARP_ROWS) * token_tiles;
        let warps = [4, 2].into_iter().find(|warps| tiles >= warps * multiprocessors).unwrap_or(1);
        Self {
            blocks: rows.div_ceil(warps * WARP_ROWS) * token_tiles,
            threads: warps * WARP,
            shared_bytes: stages * (warps * WARP_ROWS + tile_tokens) * 64 * 2,
            path: Path::Skinny,
        }
    }

    fn kernel(&self, kind: Narrow) -> &'static CStr {
        match (&self.path, kind) {
            (Path::Skinny, Narrow::Bf16) => c"cuckoo_gemm_skinny_bf16",
            (Path::Skinny, Narrow::F16) => c"cuckoo_gemm_skinny_f16",
            (Path::Wide, Narrow::Bf16) => c"cuckoo_gemm_wide_bf16",
            (Path::Wide, Narrow::F16) => c"cuckoo_gemm_wide_f16",
            (Path::Hopper(128), Narrow::Bf16) => c"cuckoo_gemm_hopper_128_bf16",
            (Path::Hopper(128), Narrow::F16) => c"cuckoo_gemm_hopper_128_f16",
            (Path::Hopper(_), Narrow::Bf16) => c"cuckoo_gemm_hopper_256_bf16",
            (Path::Hopper(_), Narrow::F16) => c"cuckoo_gemm_hopper_256_f16",
        }
    }
}

impl<M: Machine> Cuda<M> {
    /// The kind of numbers, if products with these weights go to tensor cores.
    pub(super) fn narrow_kind(&self, quant: Quant) -> Option<Narrow> {
        match (self.profile, quant) {
            (Profile::Fast, Quant::BF16) => Some(Narrow::Bf16),
            (Profile::Fast, Quant::F16) => Some(Narrow::F16),
            _ => None,
        }
    }

    /// Activations rounded to 16 bits, for every part of `w` that wants them so.
    pub(super) fn narrow(&mut self, x: &Buffer<M>, w: &Matrix<M>) -> Result<(), OpsError> {
        for kind in [Narrow::Bf16, Narrow::F16] {
            let wanted = |part: &Part<M>| match part.weights {
                Weights::Floats { quant, .. } => self.narrow_kind(quant) == Some(kind),
                Weights::Integers { .. } => false,
            };
            if !w.parts.iter().any(wanted) {
                continue;
            }
            let (out, scales) = self.narrowed(x, kind)?;
            let args = cuckoo_narrow { x: x.address(), out, scales, rows: x.rows as u32, cols: x.cols as u32 };
            let (kernel, blocks, shared_bytes) = match kind {
                Narrow::Bf16 => (c"cuckoo_narrow_bf16", (x.rows * x.cols / 8).div_ceil(THREADS), 0),
                Narrow::F16 => (c"cuckoo_narrow_f16", x.rows, THREADS / WARP * size_of::<u32>()),
            };
            // SAFETY: `x` has so many values in use, in blocks of 32, and the scratch was asked to have room for them.
            unsafe { self.launch(kernel, [blocks, 1, 1], (THREADS, shared_bytes), &args)? };
        }
        Ok(())
    }

    /// Where they are, and what rows of halves have to be multiplied by.
    fn narrowed(&mut self, x: &Buffer<M>, kind: Narrow) -> Result<(u64, u64), OpsError> {
        let (machine, what, bytes) = (&mut self.machine, "rounded activations", x.rows * x.cols * size_of::<u16>());
        let Scratch { bf16, f16, f16_scales: scales, .. } = &mut self.scratch;
        match kind {
            Narrow::Bf16 => Ok((bf16.at_least(machine, bytes, what)?, 0)),
            Narrow::F16 => Ok((f16.at_least(machine, bytes, what)?, scales.at_least(machine, x.rows * 4, what)?)),
        }
    }

    /// The product with a part whose rows begin at `first_row` of the matrix, after [`Self::narrow`].
    pub(super) fn narrow_product(
        &mut self,
        p: &Product<'_, M>,
        kind: Narrow,
        (w, first_row): (cuckoo_floats, u32),
        out: &Buffer<M>,
    ) -> Result<(), OpsError> {
        let (tokens, rows) = (p.x.rows, w.rows as usize);
        if tokens == 0 {
            return Ok(());
        }
        let (x, scales) = self.narrowed(p.x, kind)?;
        let gemm = cuckoo_gemm {
            w,
            x,
            scales,
            out: out.address(),
            tokens: tokens as u32,
            out_cols: out.cols as u32,
            first_row,
            add: u32::from(p.add),
        };
        let plan = Plan::of(self.machine.architecture(), self.machine.multiprocessors() as usize, rows, tokens);
        let (grid, extent) = ([plan.blocks, 1, 1], (plan.threads, plan.shared_bytes));
        let Path::Hopper(tile_rows) = plan.path else {
            // SAFETY: weights and activations have so many rows and columns, and `out` a column for each row of the matrix and a
            // row for each of `x`: `Cuda::product` asserted it.
            return unsafe { self.launch(plan.kernel(kind), grid, extent, &gemm) };
        };
        let map = |address, rows: u32, box_rows: usize| {
            let (cols, box_cols) = (u64::from(w.cols), BOX_COLS as u32);
            let rows = u64::from(rows);
            let of =
                TiledMatrix { address, kind, rows, cols, row_bytes: 2 * cols, box_rows: box_rows as u32, box_cols };
            Ok::<_, OpsError>(cuckoo_tensor_map { words: self.machine.tensor_map(&of)? })
        };
        let x_map = map(gemm.x, gemm.tokens, WIDE_TOKENS)?;
        let args = cuckoo_gemm_mapped { x_map, w_map: map(w.values, w.rows, tile_rows)?, gemm, padding: 0 };
        // SAFETY: as above; the maps are of the same two matrices.
        unsafe { self.launch(plan.kernel(kind), grid, extent, &args) }
    }
}

#[cfg(test)]
mod tests;
