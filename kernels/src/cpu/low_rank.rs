//! What adapters add to products, for the rows that use them: two thin products after each other. As with weights, a
//! vector lane is a row of a matrix, and the order in which a result is summed depends on the number of columns alone.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::arena::{Arena, Slab};
use super::disjoint::Disjoint;
use super::lanes::{Kernel, LANES, Lanes, Level};
use super::pool::Pool;
use crate::low_rank::{Adapted, LowRankSource, check_parts};
use crate::ops::{MatrixSource, OpsError};
use crate::quant::Quant;

/// Multiplications that make a chunk worth handing to a thread.
const CHUNK_PRODUCTS: usize = 1 << 16;
/// Rows of a step that one chunk computes at most.
const CHUNK_ROWS: usize = 16;
/// Sums of a product: of the columns equal modulo 4.
const SUMS: usize = 4;

/// What an adapter adds to one product.
pub struct LowRank {
    inputs: usize,
    /// Values between the two products for one row: the ranks of all parts, each padded to whole vectors.
    inner: usize,
    parts: Vec<Part>,
}

struct Part {
    first_col: usize,
    /// Where its values between the two products begin.
    first_inner: usize,
    scale: f32,
    a: Tiles,
    b: Tiles,
}

/// A thin matrix: tile after tile of 16 rows (the last one padded with zeros), in each column after column.
struct Tiles {
    rows: usize,
    cols: usize,
    columns: Columns,
}

enum Columns {
    F32(Slab<F32Column>),
    F16(Slab<F16Column>),
    Bf16(Slab<Bf16Column>),
}

/// One column of 16 rows.
trait Column: Pod + Send + Sync {
    /// Bytes of a value in a file.
    const BYTES: usize;
    fn put(&mut self, lane: usize, bytes: &[u8]);
    fn load<L: Lanes>(&self, l: L) -> L::F;
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
struct F32Column([f32; LANES]);

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
struct F16Column([u16; LANES]);

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
struct Bf16Column([u16; LANES]);

impl Column for F32Column {
    const BYTES: usize = 4;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.0[lane] = f32::from_le_bytes(bytes.as_chunks().0[0]);
    }

    #[inline(always)]
    fn load<L: Lanes>(&self, l: L) -> L::F {
        l.load(&self.0)
    }
}

impl Column for F16Column {
    const BYTES: usize = 2;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.0[lane] = u16::from_le_bytes(bytes.as_chunks().0[0]);
    }

    #[inline(always)]
    fn load<L: Lanes>(&self, l: L) -> L::F {
        l.load_f16(&self.0)
    }
}

impl Column for Bf16Column {
    const BYTES: usize = 2;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.0[lane] = u16::from_le_bytes(bytes.as_chunks().0[0]);
    }

    #[inline(always)]
    fn load<L: Lanes>(&self, l: L) -> L::F {
        l.load_bf16(&self.0)
    }
}

impl LowRank {
    /// Repacks `parts` from their bytes.
    pub(super) fn load(arena: &mut Arena, parts: &[LowRankSource<'_>]) -> Result<Self, OpsError> {
        check_parts(parts)?;
        let mut low_rank = Self { inputs: parts[0].a.cols, inner: inner(parts), parts: Vec::new() };
        for (number, part) in parts.iter().enumerate() {
            low_rank.parts.push(Part {
                first_col: part.first_col,
                first_inner: inner(&parts[..number]),
                scale: part.scale,
                a: Tiles::load(arena, &part.a)?,
                b: Tiles::load(arena, &part.b)?,
            });
        }
        Ok(low_rank)
    }

    /// The end of the columns that it changes.
    fn end_col(&self) -> usize {
        self.parts.last().map_or(0, |part| part.first_col + part.b.rows)
    }
}

impl Tiles {
    fn load(arena: &mut Arena, source: &MatrixSource<'_>) -> Result<Self, OpsError> {
        let columns = match source.quant {
            Quant::F16 => Columns::F16(pack(arena, source)?),
            Quant::BF16 => Columns::Bf16(pack(arena, source)?),
            _ => Columns::F32(pack(arena, source)?),
        };
        Ok(Self { rows: source.rows, cols: source.cols, columns })
    }
}

/// Values between the two products for one row: each part's are whole vectors.
pub(super) fn inner(parts: &[LowRankSource<'_>]) -> usize {
    parts.iter().fold(0, |sum, part| sum.saturating_add(part.a.rows.next_multiple_of(LANES)))
}

/// Bytes that one matrix of an adapter takes in the arena.
pub(super) fn tiles_bytes(source: &MatrixSource<'_>) -> usize {
    let column = match source.quant {
        Quant::F16 => size_of::<F16Column>(),
        Quant::BF16 => size_of::<Bf16Column>(),
        _ => size_of::<F32Column>(),
    };
    source.rows.div_ceil(LANES).saturating_mul(source.cols).saturating_mul(column)
}

fn pack<C: Column>(arena: &mut Arena, source: &MatrixSource<'_>) -> Result<Slab<C>, OpsError> {
    let tiles = source.rows.div_ceil(LANES);
    let mut slab = arena.zeroed::<C>(tiles.saturating_mul(source.cols), "an adapter")?;
    let columns = slab.as_mut();
    for (row, bytes) in source.data.chunks_exact(C::BYTES * source.cols).enumerate() {
        let tile = &mut columns[row / LANES * source.cols..][..source.cols];
        for (column, value) in tile.iter_mut().zip(bytes.chunks_exact(C::BYTES)) {
            column.put(row % LANES, value);
        }
    }
    Ok(slab)
}

/// `out += scale * b * (a * x)` for the rows of each of `adapted`; `inner` is room for what is between the products.
pub(super) fn lora_add(
    (pool, level): (&mut Pool, Level),
    (x, inputs): (&[f32], usize),
    adapted: &[Adapted<'_, LowRank>],
    inner: &mut Vec<f32>,
    (out, cols): (&mut [f32], usize),
) {
    let mut starts = Vec::with_capacity(adapted.len());
    let mut end = 0;
    for Adapted { rows, by } in adapted {
        assert!(by.inputs == inputs && by.end_col() <= cols, "an adapter is as wide as the product it changes");
        starts.push(end);
        end += rows.len() * by.inner;
    }
    inner.resize(inner.len().max(end), 0.0);
    let parts =
        || adapted.iter().zip(&starts).flat_map(|(used, start)| used.by.parts.iter().map(move |p| (used, p, *start)));
    // What lies between is written whole before any of it is read.
    let to = Disjoint::new(&mut inner[..end]);
    let first = parts().map(|(used, part, start)| Product {
        w: &part.a,
        x: (x, inputs, used.rows.start * inputs),
        rows: used.rows.len(),
        scale: Some(part.scale),
        out: (&to, used.by.inner, start + part.first_inner),
    });
    run(pool, level, &first.collect::<Vec<_>>());
    let to = Disjoint::new(out);
    let second = parts().map(|(used, part, start)| Product {
        w: &part.b,
        x: (inner.as_slice(), used.by.inner, start + part.first_inner),
        rows: used.rows.len(),
        scale: None,
        out: (&to, cols, used.rows.start * cols + part.first_col),
    });
    run(pool, level, &second.collect::<Vec<_>>());
}

/// A thin product for some rows. Rows of inputs and of outputs are given by their values, stride and first value.
struct Product<'a> {
    w: &'a Tiles,
    x: (&'a [f32], usize, usize),
    rows: usize,
    /// Where there is one, products are multiplied by it and stored with all lanes of the last tile; else they are added.
    scale: Option<f32>,
    out: (&'a Disjoint<'a, f32>, usize, usize),
}

/// Some tiles of a product, for some of its rows.
struct Chunk<'a> {
    product: &'a Product<'a>,
    tiles: Range<usize>,
    rows: Range<usize>,
}

/// Computes all products. How they are cut decides who computes what, never how.
fn run(pool: &mut Pool, level: Level, products: &[Product<'_>]) {
    let mut chunks = Vec::new();
    for product in products {
        let (tiles, rows) = (product.w.rows.div_ceil(LANES), product.rows.min(CHUNK_ROWS));
        let tiles_each = (CHUNK_PRODUCTS / (rows * LANES * product.w.cols).max(1)).max(1);
        for row in (0..product.rows).step_by(CHUNK_ROWS) {
            let rows = row..product.rows.min(row + CHUNK_ROWS);
            let cut = (0..tiles).step_by(tiles_each).map(|t| t..tiles.min(t + tiles_each));
            chunks.extend(cut.map(|tiles| Chunk { product, tiles, rows: rows.clone() }));
        }
    }
    let work = |i: usize| match &chunks[i] {
        chunk @ Chunk { product: Product { w: Tiles { columns: Columns::F32(w), .. }, .. }, .. } => {
            level.run(Thin { chunk, w })
        }
        chunk @ Chunk { product: Product { w: Tiles { columns: Columns::F16(w), .. }, .. }, .. } => {
            level.run(Thin { chunk, w })
        }
        chunk @ Chunk { product: Product { w: Tiles { columns: Columns::Bf16(w), .. }, .. }, .. } => {
            level.run(Thin { chunk, w })
        }
    };
    let products: usize = products.iter().map(|p| p.rows * p.w.rows * p.w.cols).sum();
    match products < CHUNK_PRODUCTS {
        true => (0..chunks.len()).for_each(work),
        false => pool.run(chunks.len(), &work),
    }
}

struct Thin<'a, C> {
    chunk: &'a Chunk<'a>,
    w: &'a [C],
}

impl<C: Column> Kernel for Thin<'_, C> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for tile in self.chunk.tiles.clone() {
            let mut row = self.chunk.rows.start;
            while row + 2 <= self.chunk.rows.end {
                self.rows::<L, 2>(l, tile, row);
                row += 2;
            }
            if row < self.chunk.rows.end {
                self.rows::<L, 1>(l, tile, row);
            }
        }
    }
}

impl<C: Column> Thin<'_, C> {
    /// One tile times `T` rows: four sums over columns 0, 1, 2, 3 modulo 4, then those.
    #[inline(always)]
    fn rows<L: Lanes, const T: usize>(&self, l: L, tile: usize, row: usize) {
        let product = self.chunk.product;
        let cols = product.w.cols;
        let (values, stride, first) = product.x;
        let x: [&[f32]; T] = std::array::from_fn(|t| &values[first + (row + t) * stride..][..cols]);
        let (columns, rest) = self.w[tile * cols..][..cols].as_chunks::<SUMS>();
        let mut sums = [[l.splat(0.0); SUMS]; T];
        for (i, group) in columns.iter().enumerate() {
            for c in 0..SUMS {
                let w = group[c].load(l);
                for t in 0..T {
                    sums[t][c] = l.fma(w, l.splat(x[t][i * SUMS + c]), sums[t][c]);
                }
            }
        }
        for (c, column) in rest.iter().enumerate() {
            let w = column.load(l);
            for t in 0..T {
                sums[t][c] = l.fma(w, l.splat(x[t][columns.len() * SUMS + c]), sums[t][c]);
            }
        }
        for (t, s) in sums.into_iter().enumerate() {
            let sum = l.add(l.add(s[0], s[1]), l.add(s[2], s[3]));
            self.put(l, tile, row + t, sum);
        }
    }

    #[inline(always)]
    fn put<L: Lanes>(&self, l: L, tile: usize, row: usize, v: L::F) {
        let product = self.chunk.product;
        let (out, stride, first) = product.out;
        let at = first + row * stride + tile * LANES;
        let lanes = if product.scale.is_some() { LANES } else { (product.w.rows - tile * LANES).min(LANES) };
        // SAFETY: every pair of tile and row of a product belongs to one chunk, and the outputs of products are apart:
        // rows of uses are, and so are the columns of the parts of one.
        let to = unsafe { out.range(at..at + lanes) };
        if let Some(scale) = product.scale {
            if let Ok(to) = <&mut [f32; LANES]>::try_from(to) {
                l.store(l.mul(l.splat(scale), v), to);
            }
            return;
        }
        if let Ok(to) = <&mut [f32; LANES]>::try_from(&mut *to) {
            l.store(l.add(l.load(to), v), to);
            return;
        }
        let mut last = [0.0; LANES];
        l.store(v, &mut last);
        to.iter_mut().zip(last).for_each(|(to, v)| *to += v);
    }
}
