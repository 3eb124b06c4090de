//! Weights as the CPU wants them: tiles of 16 rows by 32 columns in which a vector lane is a row. Values stay quantized
//! exactly as in the file, scales stay `f16`: converting sixteen costs one instruction, widening them would cost a fifth
//! more memory traffic, which is what a batch of one is made of.

mod float;
mod integer;
mod planes;
mod products;
mod superblock;

use bytemuck::{Pod, Zeroable};

pub(super) use self::float::FloatBlock;
use self::float::{Bf16Block, F16Block, F32Block, Fp8Block};
use self::integer::{Int4Block, Iq4NlBlock, Mxfp4Block, Q4_0Block, Q4_1Block, Q5_0Block, Q5_1Block, Q8_0Block};
use self::superblock::{Iq4XsBlock, Q2KBlock, Q3KBlock, Q4KBlock, Q5KBlock, Q6KBlock};
use super::activations::Activations;
use super::arena::{Arena, Slab};
use super::disjoint::Disjoint;
use super::lanes::{LANES, Lanes};
use super::pool::Pool;
use crate::ops::{ACTIVATION_BLOCK, MatrixSource, OpsError};
use crate::quant::Quant;

/// Columns of a block.
const BLOCK: usize = ACTIVATION_BLOCK;

/// Matrices stacked by rows.
pub struct Matrix {
    pub(super) parts: Vec<Part>,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// Rows of one format.
pub(super) struct Part {
    /// Row of the whole matrix at which this part begins.
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) tiles: Tiles,
}

/// Tile after tile of 16 rows (the last one padded with zeros), in each the blocks from left to right.
pub(super) enum Tiles {
    F32(Slab<F32Block>),
    F16(Slab<F16Block>),
    Bf16(Slab<Bf16Block>),
    Q4_0(Slab<Q4_0Block>),
    Q4_1(Slab<Q4_1Block>),
    Q5_0(Slab<Q5_0Block>),
    Q5_1(Slab<Q5_1Block>),
    Q8_0(Slab<Q8_0Block>),
    Q2K(Slab<Q2KBlock>),
    Q3K(Slab<Q3KBlock>),
    Q4K(Slab<Q4KBlock>),
    Q5K(Slab<Q5KBlock>),
    Q6K(Slab<Q6KBlock>),
    Iq4Nl(Slab<Iq4NlBlock>),
    Iq4Xs(Slab<Iq4XsBlock>),
    Mxfp4(Slab<Mxfp4Block>),
    Int4(Slab<Int4Block>),
    Fp8(Slab<Fp8Block>),
}

/// Runs `$float` or `$integer` with `$blocks` bound to the blocks of whatever format `$tiles` holds.
macro_rules! with_blocks {
    ($tiles:expr, $blocks:ident => $float:expr, $integer:expr) => {
        match $tiles {
            Tiles::F32($blocks) => $float,
            Tiles::F16($blocks) => $float,
            Tiles::Bf16($blocks) => $float,
            Tiles::Fp8($blocks) => $float,
            Tiles::Q4_0($blocks) => $integer,
            Tiles::Q4_1($blocks) => $integer,
            Tiles::Q5_0($blocks) => $integer,
            Tiles::Q5_1($blocks) => $integer,
            Tiles::Q8_0($blocks) => $integer,
            Tiles::Q2K($blocks) => $integer,
            Tiles::Q3K($blocks) => $integer,
            Tiles::Q4K($blocks) => $integer,
            Tiles::Q5K($blocks) => $integer,
            Tiles::Q6K($blocks) => $integer,
            Tiles::Iq4Nl($blocks) => $integer,
            Tiles::Iq4Xs($blocks) => $integer,
            Tiles::Mxfp4($blocks) => $integer,
            Tiles::Int4($blocks) => $integer,
        }
    };
}
pub(super) use with_blocks;

impl Matrix {
    /// Repacks `parts`, in parallel, straight from their bytes.
    pub(super) fn load(pool: &mut Pool, arena: &mut Arena, parts: &[MatrixSource<'_>]) -> Result<Self, OpsError> {
        let (mut rows, cols) = (0, parts.first().map_or(0, |p| p.cols));
        let mut loaded = Vec::with_capacity(parts.len());
        for part in parts {
            check_source(part, cols)?;
            let tiles = match part.quant {
                Quant::F32 => Tiles::F32(pack(pool, arena, part)?),
                Quant::F16 => Tiles::F16(pack(pool, arena, part)?),
                Quant::BF16 => Tiles::Bf16(pack(pool, arena, part)?),
                Quant::Q4_0 => Tiles::Q4_0(pack(pool, arena, part)?),
                Quant::Q4_1 => Tiles::Q4_1(pack(pool, arena, part)?),
                Quant::Q5_0 => Tiles::Q5_0(pack(pool, arena, part)?),
                Quant::Q5_1 => Tiles::Q5_1(pack(pool, arena, part)?),
                Quant::Q8_0 => Tiles::Q8_0(pack(pool, arena, part)?),
                Quant::Q2_K => Tiles::Q2K(pack(pool, arena, part)?),
                Quant::Q3_K => Tiles::Q3K(pack(pool, arena, part)?),
                Quant::Q4_K => Tiles::Q4K(pack(pool, arena, part)?),
                Quant::Q5_K => Tiles::Q5K(pack(pool, arena, part)?),
                Quant::Q6_K => Tiles::Q6K(pack(pool, arena, part)?),
                Quant::IQ4_NL => Tiles::Iq4Nl(pack(pool, arena, part)?),
                Quant::IQ4_XS => Tiles::Iq4Xs(pack(pool, arena, part)?),
                Quant::MXFP4 => Tiles::Mxfp4(pack(pool, arena, part)?),
                Quant::INT4 => Tiles::Int4(pack(pool, arena, part)?),
                Quant::FP8 => Tiles::Fp8(pack(pool, arena, part)?),
            };
            loaded.push(Part { first_row: rows, rows: part.rows, tiles });
            rows += part.rows;
        }
        assert!(rows > 0, "a matrix has at least one part");
        Ok(Self { parts: loaded, rows, cols })
    }

    /// One row, as [`crate::quant::dequantize_row`] would give it.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of a matrix of {} rows", self.rows);
        let part = self.parts.iter().rfind(|p| p.first_row <= row).expect("the first part begins at row 0");
        let (tile, lane) = ((row - part.first_row) / LANES, (row - part.first_row) % LANES);
        with_blocks!(&part.tiles, blocks => values(blocks, tile, lane, out), values(blocks, tile, lane, out));
    }

    /// Whether some part multiplies quantized activations.
    pub(super) fn is_quantized(&self) -> bool {
        self.parts.iter().any(|p| with_blocks!(&p.tiles, _blocks => false, true))
    }
}

/// Bytes that a matrix of that shape and format takes, repacked.
pub(super) fn matrix_slabs(source: &MatrixSource<'_>) -> usize {
    fn bytes<B: WeightBlock>(source: &MatrixSource<'_>) -> usize {
        let blocks = source.rows.div_ceil(LANES).saturating_mul(source.cols / (B::BLOCKS * BLOCK));
        blocks.saturating_mul(size_of::<B>())
    }
    let bytes = match source.quant {
        Quant::F32 => bytes::<F32Block>,
        Quant::F16 => bytes::<F16Block>,
        Quant::BF16 => bytes::<Bf16Block>,
        Quant::Q4_0 => bytes::<Q4_0Block>,
        Quant::Q4_1 => bytes::<Q4_1Block>,
        Quant::Q5_0 => bytes::<Q5_0Block>,
        Quant::Q5_1 => bytes::<Q5_1Block>,
        Quant::Q8_0 => bytes::<Q8_0Block>,
        Quant::Q2_K => bytes::<Q2KBlock>,
        Quant::Q3_K => bytes::<Q3KBlock>,
        Quant::Q4_K => bytes::<Q4KBlock>,
        Quant::Q5_K => bytes::<Q5KBlock>,
        Quant::Q6_K => bytes::<Q6KBlock>,
        Quant::IQ4_NL => bytes::<Iq4NlBlock>,
        Quant::IQ4_XS => bytes::<Iq4XsBlock>,
        Quant::MXFP4 => bytes::<Mxfp4Block>,
        Quant::INT4 => bytes::<Int4Block>,
        Quant::FP8 => bytes::<Fp8Block>,
    };
    bytes(source)
}

fn values<B: WeightBlock>(blocks: &[B], tile: usize, lane: usize, out: &mut [f32]) {
    let units = out.len() / (B::BLOCKS * BLOCK);
    for (block, out) in blocks[tile * units..][..units].iter().zip(out.chunks_exact_mut(B::BLOCKS * BLOCK)) {
        block.values(lane, out);
    }
}

/// Rejects sources that contradict themselves. `cols` is that of the first part.
pub(crate) fn check_source(source: &MatrixSource<'_>, cols: usize) -> Result<(), OpsError> {
    let MatrixSource { quant, rows, cols: own, data } = *source;
    let bytes = rows.checked_mul(quant.row_bytes(own));
    let columns = quant.block().max(ACTIVATION_BLOCK);
    let why = if rows == 0 || own == 0 {
        "it is empty".to_owned()
    } else if own % columns != 0 {
        format!("the number of columns must be a multiple of {columns}")
    } else if own != cols {
        format!("it is to be stacked with a matrix of {cols} columns")
    } else if bytes != Some(data.len()) {
        format!("its {} bytes of data are not {} bytes a row", data.len(), quant.row_bytes(own))
    } else {
        return Ok(());
    };
    Err(OpsError::BadMatrix { rows, cols: own, quant, why })
}

fn pack<B: WeightBlock>(pool: &mut Pool, arena: &mut Arena, source: &MatrixSource<'_>) -> Result<Slab<B>, OpsError> {
    assert_eq!(source.quant, B::QUANT, "every format has its own blocks");
    let (n, row_bytes) = (source.cols / (B::BLOCKS * BLOCK), source.quant.row_bytes(source.cols));
    let tiles = source.rows.div_ceil(LANES);
    let mut blocks = arena.zeroed::<B>(tiles.saturating_mul(n), "a weight matrix")?;
    let packed = Disjoint::new(blocks.as_mut());
    pool.run(tiles, &|tile| {
        // SAFETY: every chunk of the job is another tile.
        let blocks = unsafe { packed.range(tile * n..(tile + 1) * n) };
        let rows = source.data.chunks_exact(row_bytes).skip(tile * LANES).take(LANES);
        for (lane, row) in rows.enumerate() {
            for (block, bytes) in blocks.iter_mut().zip(row.chunks_exact(row_bytes / n)) {
                block.put(lane, bytes);
            }
        }
    });
    Ok(blocks)
}

/// `len` zeros, from the system's zero pages where it has them.
pub(super) fn zeroed<T: Zeroable>(len: usize, what: &'static str) -> Result<Vec<T>, OpsError> {
    let bytes = len.saturating_mul(size_of::<T>());
    if bytes > isize::MAX as usize {
        return Err(OpsError::OutOfMemory { what, bytes });
    }
    bytemuck::allocation::try_zeroed_vec(len).map_err(|()| OpsError::OutOfMemory { what, bytes })
}

/// Sees to it that `items` has room for `len` of them.
pub(super) fn reserve<T>(items: &mut Vec<T>, len: usize, what: &'static str) -> Result<(), OpsError> {
    let more = len.saturating_sub(items.len());
    let refused = |_| OpsError::OutOfMemory { what, bytes: len.saturating_mul(size_of::<T>()) };
    if more > 0 { items.try_reserve_exact(more).map_err(refused) } else { Ok(()) }
}

/// 16 rows by 32 columns, or by as many such blocks as the format scales together.
pub(super) trait WeightBlock: Pod + Send + Sync {
    /// The format.
    const QUANT: Quant;
    /// Blocks of 32 columns.
    const BLOCKS: usize = 1;
    /// Fills an empty row from its bytes in the file.
    fn put(&mut self, lane: usize, bytes: &[u8]);
    /// The values of a row.
    fn values(&self, lane: usize, out: &mut [f32]);
}

/// A block of integers with scales.
pub(super) trait IntegerBlock: WeightBlock {
    /// Adds the products of block `block` of this unit (0 where a unit is one block) and of one block of `T` rows of
    /// activations to `sums`, as [`crate::ops::Ops::linear`] says.
    fn multiply<L: Lanes, const T: usize>(&self, l: L, block: usize, x: [&Activations; T], sums: &mut [L::F; T]);
}
