//! Weights as the CPU wants them: tiles of 8 rows by 32 columns in which a vector lane is a row. Values stay quantized
//! exactly as in the file, scales stay `f16`: converting eight costs one instruction, widening them would cost a fifth
//! more memory traffic, which is what a batch of one is made of.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use super::disjoint::Disjoint;
use super::lanes::{LANES, Lanes};
use super::pool::Pool;
use crate::ops::{ACTIVATION_BLOCK, MatrixSource, OpsError};
use crate::quant::Quant;

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

/// Tile after tile of 8 rows (the last one padded with zeros), in each the blocks of 32 columns from left to right.
pub(super) enum Tiles {
    F32(Vec<F32Block>),
    F16(Vec<F16Block>),
    Bf16(Vec<Bf16Block>),
    Q4_0(Vec<Q4_0Block>),
    Q4_1(Vec<Q4_1Block>),
    Q8_0(Vec<Q8_0Block>),
}

/// Runs `$work` with `$blocks` bound to the blocks of whatever format `$tiles` holds.
macro_rules! with_blocks {
    ($tiles:expr, $blocks:ident => $work:expr) => {
        match $tiles {
            Tiles::F32($blocks) => $work,
            Tiles::F16($blocks) => $work,
            Tiles::Bf16($blocks) => $work,
            Tiles::Q4_0($blocks) => $work,
            Tiles::Q4_1($blocks) => $work,
            Tiles::Q8_0($blocks) => $work,
        }
    };
}

impl Matrix {
    /// Repacks `parts`, in parallel, straight from their bytes.
    pub(super) fn load(pool: &mut Pool, parts: &[MatrixSource<'_>]) -> Result<Self, OpsError> {
        let (mut rows, cols) = (0, parts.first().map_or(0, |p| p.cols));
        let mut loaded = Vec::with_capacity(parts.len());
        for part in parts {
            check_source(part, cols)?;
            let tiles = match part.quant {
                Quant::F32 => Tiles::F32(pack(pool, part)?),
                Quant::F16 => Tiles::F16(pack(pool, part)?),
                Quant::BF16 => Tiles::Bf16(pack(pool, part)?),
                Quant::Q4_0 => Tiles::Q4_0(pack(pool, part)?),
                Quant::Q4_1 => Tiles::Q4_1(pack(pool, part)?),
                Quant::Q8_0 => Tiles::Q8_0(pack(pool, part)?),
                other => return Err(OpsError::Unsupported(other)),
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
        let n = self.cols / ACTIVATION_BLOCK;
        with_blocks!(&part.tiles, blocks => {
            for (block, out) in blocks[tile * n..][..n].iter().zip(out.chunks_exact_mut(ACTIVATION_BLOCK)) {
                block.values(lane, out);
            }
        });
    }

    /// Whether some part multiplies quantized activations.
    pub(super) fn is_quantized(&self) -> bool {
        self.parts.iter().any(|p| !matches!(p.tiles, Tiles::F32(_) | Tiles::F16(_) | Tiles::Bf16(_)))
    }
}

/// Rejects sources that contradict themselves. `cols` is that of the first part.
pub(crate) fn check_source(source: &MatrixSource<'_>, cols: usize) -> Result<(), OpsError> {
    let MatrixSource { quant, rows, cols: own, data } = *source;
    let bytes = rows.checked_mul(quant.row_bytes(own));
    let why = if rows == 0 || own == 0 {
        "it is empty".to_owned()
    } else if own % ACTIVATION_BLOCK != 0 {
        format!("the number of columns must be a multiple of {ACTIVATION_BLOCK}")
    } else if own != cols {
        format!("it is to be stacked with a matrix of {cols} columns")
    } else if bytes != Some(data.len()) {
        format!("its {} bytes of data are not {} bytes a row", data.len(), quant.row_bytes(own))
    } else {
        return Ok(());
    };
    Err(OpsError::BadMatrix { rows, cols: own, quant, why })
}

fn pack<B: WeightBlock>(pool: &mut Pool, source: &MatrixSource<'_>) -> Result<Vec<B>, OpsError> {
    let (n, row_bytes) = (source.cols / ACTIVATION_BLOCK, source.quant.row_bytes(source.cols));
    let tiles = source.rows.div_ceil(LANES);
    let mut blocks = zeroed::<B>(tiles * n, "a weight matrix")?;
    let packed = Disjoint::new(&mut blocks);
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

/// 8 rows by 32 columns.
pub(super) trait WeightBlock: Pod + Send + Sync {
    /// Fills an empty row from its 32 values in the file.
    fn put(&mut self, lane: usize, bytes: &[u8]);
    /// The 32 values of a row.
    fn values(&self, lane: usize, out: &mut [f32]);
}

/// A block of integers with scales.
pub(super) trait QuantizedBlock: WeightBlock {
    /// The stored integers are this much above the real ones.
    const OFFSET: i32;
    /// Weights of `R` tiles times the column pairs of `T` tokens, added to `dots`.
    fn dot<L: Lanes, const R: usize, const T: usize>(
        l: L,
        tiles: [&Self; R],
        x: [&[i32; 16]; T],
        dots: &mut [[L::I; T]; R],
    );
    /// What one unit is worth in each row.
    fn scale<L: Lanes>(&self, l: L) -> L::F;
    /// What is added to each value of a row, if the format has that.
    fn minimum<L: Lanes>(&self, l: L) -> Option<L::F>;
}

/// A block of floating-point values.
pub(super) trait FloatBlock: WeightBlock {
    /// One column of 8 rows.
    fn column<L: Lanes>(&self, l: L, col: usize) -> L::F;
}

/// Where nibble `col` of a row lies: which vector, which of its words (without the lane), which nibble.
///
/// A word of lane `i` holds the same half of four column pairs, so that a shift and a mask give 16 words ready for a
/// multiplication of pairs.
const fn nibble_place(col: usize) -> (usize, usize, u32) {
    let (pair, half) = (col / 2, col % 2);
    (pair / 4, half, 4 * (pair % 4) as u32)
}

/// The same for bytes, two pairs to a word.
const fn byte_place(col: usize) -> (usize, usize, u32) {
    let (pair, half) = (col / 2, col % 2);
    (pair / 2, half, 8 * (pair % 2) as u32)
}

type Nibbles = [[u16; 2 * LANES]; 4];

/// The file's low nibbles are columns 0..16 and the high ones 16..32.
fn put_nibbles(q: &mut Nibbles, lane: usize, bytes: &[u8]) {
    for col in 0..ACTIVATION_BLOCK {
        let nibble = (bytes[col % 16] >> (col / 16 * 4)) & 15;
        let (vector, half, shift) = nibble_place(col);
        q[vector][2 * lane + half] |= u16::from(nibble) << shift;
    }
}

fn nibble(q: &Nibbles, lane: usize, col: usize) -> f32 {
    let (vector, half, shift) = nibble_place(col);
    f32::from((q[vector][2 * lane + half] >> shift) & 15)
}

#[inline(always)]
fn dot_nibbles<L: Lanes, const R: usize, const T: usize>(
    l: L,
    q: [&Nibbles; R],
    x: [&[i32; 16]; T],
    dots: &mut [[L::I; T]; R],
) {
    for v in 0..4 {
        // One nibble after the other, so that few words are alive at a time.
        dot_nibble::<L, 0, R, T>(l, q, x, v, dots);
        dot_nibble::<L, 1, R, T>(l, q, x, v, dots);
        dot_nibble::<L, 2, R, T>(l, q, x, v, dots);
        dot_nibble::<L, 3, R, T>(l, q, x, v, dots);
    }
}

#[inline(always)]
fn dot_nibble<L: Lanes, const N: usize, const R: usize, const T: usize>(
    l: L,
    q: [&Nibbles; R],
    x: [&[i32; 16]; T],
    v: usize,
    dots: &mut [[L::I; T]; R],
) {
    let mut words = [l.nibble::<N>(&q[0][v]); R];
    for r in 1..R {
        words[r] = l.nibble::<N>(&q[r][v]);
    }
    for t in 0..T {
        for r in 0..R {
            dots[r][t] = l.dot(dots[r][t], words[r], x[t][4 * v + N]);
        }
    }
}

fn bits_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn half(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

/// [`Quant::Q4_0`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(16))]
pub(super) struct Q4_0Block {
    d: [u16; LANES],
    q: Nibbles,
}

impl WeightBlock for Q4_0Block {
    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.d[lane] = bits_at(bytes, 0);
        put_nibbles(&mut self.q, lane, &bytes[2..]);
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        let d = half(self.d[lane]);
        out.iter_mut().enumerate().for_each(|(col, v)| *v = d * (nibble(&self.q, lane, col) - 8.0));
    }
}

impl QuantizedBlock for Q4_0Block {
    const OFFSET: i32 = 8;

    #[inline(always)]
    fn dot<L: Lanes, const R: usize, const T: usize>(
        l: L,
        tiles: [&Self; R],
        x: [&[i32; 16]; T],
        dots: &mut [[L::I; T]; R],
    ) {
        dot_nibbles(l, tiles.map(|tile| &tile.q), x, dots);
    }

    #[inline(always)]
    fn scale<L: Lanes>(&self, l: L) -> L::F {
        l.load_f16(&self.d)
    }

    #[inline(always)]
    fn minimum<L: Lanes>(&self, _: L) -> Option<L::F> {
        None
    }
}

/// [`Quant::Q4_1`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(super) struct Q4_1Block {
    d: [u16; LANES],
    m: [u16; LANES],
    q: Nibbles,
}

impl WeightBlock for Q4_1Block {
    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.d[lane] = bits_at(bytes, 0);
        self.m[lane] = bits_at(bytes, 2);
        put_nibbles(&mut self.q, lane, &bytes[4..]);
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        let (d, m) = (half(self.d[lane]), half(self.m[lane]));
        out.iter_mut().enumerate().for_each(|(col, v)| *v = d * nibble(&self.q, lane, col) + m);
    }
}

impl QuantizedBlock for Q4_1Block {
    const OFFSET: i32 = 0;

    #[inline(always)]
    fn dot<L: Lanes, const R: usize, const T: usize>(
        l: L,
        tiles: [&Self; R],
        x: [&[i32; 16]; T],
        dots: &mut [[L::I; T]; R],
    ) {
        dot_nibbles(l, tiles.map(|tile| &tile.q), x, dots);
    }

    #[inline(always)]
    fn scale<L: Lanes>(&self, l: L) -> L::F {
        l.load_f16(&self.d)
    }

    #[inline(always)]
    fn minimum<L: Lanes>(&self, l: L) -> Option<L::F> {
        Some(l.load_f16(&self.m))
    }
}

/// [`Quant::Q8_0`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(16))]
pub(super) struct Q8_0Block {
    d: [u16; LANES],
    q: [[u16; 2 * LANES]; 8],
}

impl WeightBlock for Q8_0Block {
    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.d[lane] = bits_at(bytes, 0);
        for (col, &byte) in bytes[2..].iter().enumerate() {
            let (vector, half, shift) = byte_place(col);
            self.q[vector][2 * lane + half] |= u16::from(byte) << shift;
        }
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        let d = half(self.d[lane]);
        for (col, v) in out.iter_mut().enumerate() {
            let (vector, half, shift) = byte_place(col);
            *v = d * f32::from((self.q[vector][2 * lane + half] >> shift) as i8);
        }
    }
}

impl QuantizedBlock for Q8_0Block {
    const OFFSET: i32 = 0;

    #[inline(always)]
    fn dot<L: Lanes, const R: usize, const T: usize>(
        l: L,
        tiles: [&Self; R],
        x: [&[i32; 16]; T],
        dots: &mut [[L::I; T]; R],
    ) {
        for v in 0..8 {
            let mut words = [l.bytes(&tiles[0].q[v]); R];
            for r in 1..R {
                words[r] = l.bytes(&tiles[r].q[v]);
            }
            for n in 0..2 {
                for t in 0..T {
                    for r in 0..R {
                        dots[r][t] = l.dot(dots[r][t], words[r][n], x[t][2 * v + n]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn scale<L: Lanes>(&self, l: L) -> L::F {
        l.load_f16(&self.d)
    }

    #[inline(always)]
    fn minimum<L: Lanes>(&self, _: L) -> Option<L::F> {
        None
    }
}

/// [`Quant::F32`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct F32Block([[f32; LANES]; ACTIVATION_BLOCK]);

impl WeightBlock for F32Block {
    fn put(&mut self, lane: usize, bytes: &[u8]) {
        for (column, v) in self.0.iter_mut().zip(bytes.as_chunks::<4>().0) {
            column[lane] = f32::from_le_bytes(*v);
        }
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        out.iter_mut().zip(&self.0).for_each(|(v, column)| *v = column[lane]);
    }
}

impl FloatBlock for F32Block {
    #[inline(always)]
    fn column<L: Lanes>(&self, l: L, col: usize) -> L::F {
        l.load(&self.0[col])
    }
}

/// [`Quant::F16`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct F16Block([[u16; LANES]; ACTIVATION_BLOCK]);

impl WeightBlock for F16Block {
    fn put(&mut self, lane: usize, bytes: &[u8]) {
        for (column, v) in self.0.iter_mut().zip(bytes.as_chunks::<2>().0) {
            column[lane] = u16::from_le_bytes(*v);
        }
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        out.iter_mut().zip(&self.0).for_each(|(v, column)| *v = half(column[lane]));
    }
}

impl FloatBlock for F16Block {
    #[inline(always)]
    fn column<L: Lanes>(&self, l: L, col: usize) -> L::F {
        l.load_f16(&self.0[col])
    }
}

/// [`Quant::BF16`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Bf16Block([[u16; LANES]; ACTIVATION_BLOCK]);

impl WeightBlock for Bf16Block {
    fn put(&mut self, lane: usize, bytes: &[u8]) {
        for (column, v) in self.0.iter_mut().zip(bytes.as_chunks::<2>().0) {
            column[lane] = u16::from_le_bytes(*v);
        }
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        out.iter_mut().zip(&self.0).for_each(|(v, column)| *v = bf16::from_bits(column[lane]).to_f32());
    }
}

impl FloatBlock for Bf16Block {
    #[inline(always)]
    fn column<L: Lanes>(&self, l: L, col: usize) -> L::F {
        l.load_bf16(&self.0[col])
    }
}
