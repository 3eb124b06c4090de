//! Products with weights as launches.

use super::args::{cuckoo_linear_floats, cuckoo_linear_integers, cuckoo_quantize};
use super::machine::Machine;
use super::matrix::{Matrix, Part, Weights};
use super::operations::{THREADS, WARP};
use super::{Buffer, Cuda};
use crate::ops::{ACTIVATION_BLOCK, OpsError};
use crate::quant::Quant;

/// The whole of a matrix that some rows are multiplied by, and where products go.
pub(super) struct Product<'a, M: Machine> {
    pub(super) x: &'a Buffer<M>,
    pub(super) w: &'a Matrix<M>,
    pub(super) planes: usize,
    pub(super) add: bool,
}

/// Activations as integers: addresses on the machine. See `cuckoo_quantize`.
#[derive(Clone, Copy, Default)]
struct Quantized {
    q: u64,
    scales: u64,
    sums: u64,
    halves: u64,
}

/// Tokens up to which weights are read as fast as they come, whatever is done with them: a tile of `mma` has room for so many, so
/// fewer are no less work.
const FEW_TOKENS: usize = 8;

/// A way to cut a product into tiles: see `Shape` in `cuda/gemm_integers.cu`.
struct Tiles {
    rows: usize,
    tokens: usize,
}

const FEW: Tiles = Tiles { rows: 16, tokens: FEW_TOKENS };
const SOME: Tiles = Tiles { rows: 64, tokens: 32 };
const MANY: Tiles = Tiles { rows: 128, tokens: 64 };

/// Bytes that the threads of a tile share: `STAGES` times `STAGE_BYTES`. Every GPU gives as much without being asked for more.
const TILES_SHARED_BYTES: usize = 3 * 16_384;

/// Blocks of the largest tiles that are enough to keep a device busy: about as many as large ones have multiprocessors.
const BUSY_BLOCKS: usize = 128;

impl Tiles {
    fn blocks(&self, rows: usize, tokens: usize) -> usize {
        self.grid(rows, tokens).iter().product()
    }

    fn grid(&self, rows: usize, tokens: usize) -> [usize; 3] {
        [tokens.div_ceil(self.tokens), rows.div_ceil(self.rows), 1]
    }
}

impl<M: Machine> Cuda<M> {
    /// Activations as integers.
    fn quantize(&mut self, x: &Buffer<M>, planes: usize) -> Result<Quantized, OpsError> {
        let (machine, blocks) = (&mut self.machine, x.rows * x.cols / ACTIVATION_BLOCK);
        let q = self.scratch.codes.at_least(machine, planes * x.rows * x.cols, "rounded activations")?;
        let each = planes * blocks * size_of::<f32>();
        let scales = self.scratch.scales.at_least(machine, 3 * each, "scales and sums of activations")?;
        let (sums, halves) = (scales + each as u64, scales + 2 * each as u64);
        let args = cuckoo_quantize {
            x: x.address(),
            q,
            scales,
            sums,
            halves,
            rows: x.rows as u32,
            cols: x.cols as u32,
            planes: planes as u32,
            padding: 0,
        };
        let grid = [blocks.div_ceil(THREADS / WARP), 1, 1];
        // SAFETY: `x` has so many rows and columns in use, and the scratch was asked to have room for them.
        unsafe { self.launch(c"cuckoo_quantize_rows", grid, (THREADS, 0), &args)? };
        Ok(Quantized { q, scales, sums, halves })
    }

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
        let quantized = if any { self.quantize(x, p.planes)? } else { Quantized::default() };
        w.parts.iter().try_for_each(|part| self.part(p, part, quantized, out))
    }

    fn part(&mut self, p: &Product<'_, M>, part: &Part<M>, x: Quantized, out: &Buffer<M>) -> Result<(), OpsError> {
        let (tokens, out_cols) = (p.x.rows, out.cols as u32);
        let (first_row, add) = (part.first_row as u32, u32::from(p.add));
        match &part.weights {
            Weights::Integers { kind, args, .. } => {
                let (kernel, shape, tiles) = match tokens {
                    0..=FEW_TOKENS => (kind.linear, 0, FEW),
                    _ if MANY.blocks(part.rows, tokens) < BUSY_BLOCKS => (kind.gemm, 0, SOME),
                    _ => (kind.gemm, 1, MANY),
                };
                let args = cuckoo_linear_integers {
                    w: *args,
                    q: x.q,
                    scales: x.scales,
                    sums: if kind.halves { x.halves } else { x.sums },
                    out: out.address(),
                    tokens: tokens as u32,
                    planes: p.planes as u32,
                    out_cols,
                    first_row,
                    add,
                    shape,
                };
                // SAFETY: the weights are packed for so many rows and columns, the activations were rounded just now, and
                // `out` has a column for each row of the matrix and a row for each of `x`.
                unsafe { self.launch(kernel, tiles.grid(part.rows, tokens), (THREADS, TILES_SHARED_BYTES), &args) }
            }
            Weights::Floats { quant, args, .. } => {
                let args = cuckoo_linear_floats {
                    w: *args,
                    x: p.x.address(),
                    out: out.address(),
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
