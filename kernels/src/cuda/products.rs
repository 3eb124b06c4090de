//! Products with weights as launches.

use std::ffi::CStr;

use super::args::{cuckoo_linear_floats, cuckoo_linear_integers, cuckoo_rounded};
use super::machine::Machine;
use super::matrix::{Kind, Matrix, Part, Weights, segments};
use super::operations::{THREADS, WARP};
use super::{Buffer, Cuda};
use crate::ops::{ACTIVATION_BLOCK, OpsError, SEGMENT_BLOCKS};
use crate::quant::Quant;

#[cfg(test)]
mod tests;

/// The whole of a matrix that some rows are multiplied by, and where products go.
pub(super) struct Product<'a, M: Machine> {
    pub(super) x: &'a Buffer<M>,
    pub(super) w: &'a Matrix<M>,
    pub(super) planes: usize,
    pub(super) add: bool,
}

/// How a product with integers is cut into what blocks of threads compute. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tiling {
    /// 16 rows by all tokens, of which there are 8 at most: a tile of `mma` has room for 8, so fewer are no less work, and weights
    /// are read as fast as they come. `cuda/gemv_integers.cu`, like the next.
    Few,
    /// 32 rows by 16 tokens, or 64 by 32.
    Some(usize),
    /// 128 rows by so many tokens, 64 or 128, with fewer instructions each. `cuda/gemm_integers.cu`.
    Wide(usize),
}

/// Most tokens that are few.
pub(super) const FEW_TOKENS: usize = 8;
/// Blocks that keep a device busy: about as many as large ones have multiprocessors.
const BUSY_BLOCKS: usize = 128;
/// Bytes that a block of threads gets from every GPU without asking for more.
const SHARED_BYTES: usize = 48 << 10;
/// Warps of a block.
const WARPS: usize = THREADS / WARP;

impl Tiling {
    /// For a product of `rows` rows of weights and `tokens` of activations.
    pub(super) fn of(rows: usize, tokens: usize, planes: usize) -> Self {
        let wide = |each: usize| Self::Wide(each).grid(rows, tokens).iter().product::<usize>() >= BUSY_BLOCKS;
        match tokens {
            0..=FEW_TOKENS => Self::Few,
            9..=16 => Self::Some(16),
            17..=32 => Self::Some(32),
            // Two planes of 128 tokens do not fit.
            65.. if planes == 1 && wide(128) => Self::Wide(128),
            _ if wide(64) => Self::Wide(64),
            _ => Self::Some(32),
        }
    }

    fn grid(self, rows: usize, tokens: usize) -> [usize; 3] {
        match self {
            Self::Few => [1, rows.div_ceil(16), 1],
            Self::Some(each) => [tokens.div_ceil(each), rows.div_ceil(2 * each), 1],
            Self::Wide(each) => [tokens.div_ceil(each), rows.div_ceil(128), 1],
        }
    }

    fn kernel(self, kind: &Kind) -> &'static CStr {
        match self {
            Self::Few => kind.linear,
            Self::Some(_) => kind.gemm,
            Self::Wide(_) => kind.gemm_wide,
        }
    }

    /// `tile` of the kernel's arguments, and the bytes that its threads share.
    fn shared(self, cols: usize, tokens: usize, planes: usize) -> (usize, usize) {
        // As `Chunk` of gemv_integers.cu has it: codes and factors.
        let activations = |segments: usize, tokens: usize| {
            let blocks = segments * SEGMENT_BLOCKS;
            planes * tokens * ((blocks + 1) * ACTIVATION_BLOCK + (blocks + 2) * 8)
        };
        match self {
            Self::Few => {
                let sums = |segments: usize| segments * tokens * 16 * size_of::<f32>();
                let bytes = |segments: usize| activations(segments, tokens) + sums(segments);
                let all = segments(cols).next_multiple_of(WARPS);
                let fits = (WARPS..=all).rev().step_by(WARPS).find(|n| bytes(*n) <= SHARED_BYTES);
                let fits = fits.expect("eight segments of eight tokens in two planes fit");
                (fits, bytes(fits))
            }
            // A warp for each of a tile's segments; what they leave is less than what they had.
            Self::Some(each) => (each, activations(WARPS / (each / 8), each)),
            Self::Wide(each) => (each, SHARED_BYTES),
        }
    }
}

impl<M: Machine> Cuda<M> {
    pub(super) fn product(&mut self, p: &Product<'_, M>, out: &mut Buffer<M>) -> Result<(), OpsError> {
        let (x, w) = (p.x, p.w);
        assert_eq!(x.cols, w.cols, "activations and weights have the same number of columns");
        assert_eq!(out.cols, w.rows, "a product has a column for each row of weights");
        if p.add {
            assert_eq!(out.rows, x.rows, "rows are added to as many rows");
        } else {
            out.begin(x.rows);
        }
        let any = w.parts.iter().any(|part| matches!(part.weights, Weights::Integers { .. }));
        let quantized = if any { self.rounded(x, p.planes as u32)? } else { cuckoo_rounded::default() };
        self.narrow(x, w)?;
        w.parts.iter().try_for_each(|part| self.part(p, part, quantized, out))
    }

    fn part(
        &mut self,
        p: &Product<'_, M>,
        part: &Part<M>,
        x: cuckoo_rounded,
        out: &mut Buffer<M>,
    ) -> Result<(), OpsError> {
        let (tokens, out_cols) = (p.x.rows, out.cols as u32);
        let (first_row, add) = (part.first_row as u32, u32::from(p.add));
        match &part.weights {
            Weights::Integers { kind, args, .. } => {
                let tiling = Tiling::of(part.rows, tokens, p.planes);
                let args = cuckoo_linear_integers {
                    w: *args,
                    q: x.q,
                    factors: if kind.halves { x.halves } else { x.factors },
                    out: out.written(),
                    tokens: tokens as u32,
                    planes: p.planes as u32,
                    out_cols,
                    first_row,
                    add,
                    tile: 0,
                };
                // SAFETY: the weights are packed for so many rows and columns, the activations were rounded just now, and
                // `out` has a column for each row of the matrix and a row for each of `x`.
                unsafe { self.integer_product(kind, tiling, args) }
            }
            Weights::Floats { quant, args, .. } => {
                if let Some(kind) = self.narrow_kind(*quant) {
                    return self.narrow_product(p, kind, (*args, first_row), out);
                }
                let args = cuckoo_linear_floats {
                    w: *args,
                    x: p.x.address(),
                    out: out.written(),
                    tokens: tokens as u32,
                    out_cols,
                    first_row,
                    add,
                    scale: 1.0,
                    padding: 0,
                };
                // SAFETY: as above, of activations as they are.
                unsafe { self.float_product(*quant, &args) }
            }
        }
    }

    /// A product with weights in integers.
    ///
    /// # Safety
    /// As [`Machine::launch`].
    pub(super) unsafe fn integer_product(
        &mut self,
        kind: &Kind,
        tiling: Tiling,
        args: cuckoo_linear_integers,
    ) -> Result<(), OpsError> {
        let (tokens, planes) = (args.tokens as usize, args.planes as usize);
        if tokens == 0 {
            return Ok(());
        }
        assert!(tiling != Tiling::Few || tokens <= FEW_TOKENS, "{tokens} tokens are not few");
        assert!(tiling != Tiling::Wide(128) || planes == 1, "two planes of 128 tokens do not fit");
        let (tile, shared_bytes) = tiling.shared(args.w.cols as usize, tokens, planes);
        let args = cuckoo_linear_integers { tile: tile as u32, ..args };
        // SAFETY: the caller's promise.
        unsafe {
            self.launch(tiling.kernel(kind), tiling.grid(args.w.rows as usize, tokens), (THREADS, shared_bytes), &args)
        }
    }

    /// A product with floating-point weights.
    ///
    /// # Safety
    /// As [`Machine::launch`].
    pub(super) unsafe fn float_product(&mut self, quant: Quant, args: &cuckoo_linear_floats) -> Result<(), OpsError> {
        let kernel = match quant {
            Quant::F32 => c"cuckoo_linear_f32",
            Quant::F16 => c"cuckoo_linear_f16",
            Quant::FP8 => c"cuckoo_linear_fp8",
            _ => c"cuckoo_linear_bf16",
        };
        let grid = [(args.w.rows as usize).div_ceil(THREADS / 4), args.tokens as usize, 1];
        // SAFETY: the caller's promise.
        unsafe { self.launch(kernel, grid, (THREADS, 0), args) }
    }
}
