//! The CPU backend: quantized weights in tiles, AVX2 found at run time or plain Rust, a pool of threads. Results do not
//! depend on any of these, bit for bit. It never reads the environment; callers say how many threads.

mod activations;
mod arena;
mod attention;
mod disjoint;
mod kv_cache;
mod lanes;
mod linear;
mod low_rank;
mod pool;
mod rows;
mod sizes;
mod weights;

pub use self::kv_cache::{KvCache, RopeTable};
pub use self::low_rank::LowRank;
pub use self::pool::Pool;
pub use self::sizes::Sizes;
pub use self::weights::Matrix;

use std::ops::Range;

use self::activations::{Activations, Planes};
use self::arena::Arena;
use self::disjoint::Disjoint;
use self::lanes::Level;
use self::sizes::Scratch;

use self::weights::{reserve, zeroed};
use crate::low_rank::{Adapted, LowRankSource, check_rows};
use crate::memory::{Counted, Memory};
use crate::ops::{Activation, Heads, KvShape, Mask, MatrixSource, Ops, OpsError, Rope, StepLayout};
use crate::routing::{Routed, Routing, route};
use crate::sampling::{self, LogprobRequest, Logprobs, SampleRequest, Sampled};

pub(crate) use self::weights::check_source;

/// Instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// x86-64 with AVX-512 (F, BW, DQ, VL) and VNNI.
    Avx512,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// Anything.
    Portable,
}

impl Isa {
    /// Every set, the best first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Portable];

    /// The best that this processor has.
    pub fn detect() -> Self {
        Self::ALL.into_iter().find(|isa| isa.is_present()).unwrap_or(Self::Portable)
    }

    /// Whether this processor has it.
    pub fn is_present(self) -> bool {
        Level::new(self).is_some()
    }
}

/// A processor's cores as a backend.
pub struct Cpu {
    pool: Pool,
    isa: Isa,
    level: Level,
    /// Where weights lie.
    arena: Arena,
    /// Quantized activations of the product that is being computed.
    quantized: Vec<Activations>,
    /// What those may come to.
    scratch: Scratch,
    /// What is between the two products of adapters.
    inner: Vec<f32>,
    /// Bytes of what was handed out beside the arena's, rotations counted as if every position had been met.
    handed_out: u64,
}

/// A vector of weights.
pub struct Vector(Vec<f32>);

/// Activations.
pub struct Buffer {
    /// `capacity` rows.
    data: Vec<f32>,
    cols: usize,
    /// Rows in use.
    rows: usize,
}

impl Buffer {
    fn used(&self) -> &[f32] {
        &self.data[..self.rows * self.cols]
    }

    /// Declares `rows` to be in use and returns them.
    fn begin(&mut self, rows: usize) -> &mut [f32] {
        assert!(
            rows * self.cols <= self.data.len(),
            "{rows} rows do not fit a buffer of {}",
            self.data.len() / self.cols
        );
        self.rows = rows;
        &mut self.data[..rows * self.cols]
    }
}

impl Cpu {
    /// `threads` threads (the caller's among them) and the best instruction set of this processor.
    pub fn new(threads: usize) -> Self {
        Self::with_isa(threads, Isa::detect())
    }

    /// With a given instruction set, for comparisons.
    ///
    /// # Panics
    /// If the processor does not have it.
    pub fn with_isa(threads: usize, isa: Isa) -> Self {
        let level = Level::new(isa).expect("the instruction set asked for is one of this processor's");
        Self {
            pool: Pool::new(threads),
            isa,
            level,
            arena: Arena::default(),
            quantized: Vec::new(),
            scratch: Scratch::default(),
            inner: Vec::new(),
            handed_out: 0,
        }
    }

    /// Sees to it that no product needs memory that is not there.
    fn reserve_scratch(&mut self) -> Result<(), OpsError> {
        let blocks = self.scratch.blocks();
        reserve(&mut self.quantized, blocks, "quantized activations")?;
        reserve(&mut self.inner, self.scratch.inner(), "what adapters compute between their products")
    }

    /// Calls `f` for every row of `out` (in use: `rows`), in parallel where there is enough to do.
    fn for_rows(&mut self, rows: usize, out: &mut Buffer, f: impl Fn(usize, &mut [f32]) + Sync) {
        let cols = out.cols;
        let each = (rows::VALUES_EACH / cols).max(1);
        let data = Disjoint::new(out.begin(rows));
        self.pool.run(rows.div_ceil(each), &|chunk| {
            for row in chunk * each..rows.min((chunk + 1) * each) {
                // SAFETY: every row belongs to one chunk.
                f(row, unsafe { data.range(row * cols..(row + 1) * cols) });
            }
        });
    }

    /// What `f` makes of each request and of the row that it names, in parallel.
    fn for_requests<R: Sync, T: Send>(
        &mut self,
        logits: &Buffer,
        requests: &[R],
        row: impl Fn(&R) -> usize + Sync,
        f: impl Fn(&[f32], &R) -> Result<T, OpsError> + Sync,
    ) -> Result<Vec<T>, OpsError> {
        let mut results: Vec<_> = requests.iter().map(|_| None).collect();
        let to = Disjoint::new(&mut results);
        self.pool.run(requests.len(), &|i| {
            let logits = &logits.used()[row(&requests[i]) * logits.cols..][..logits.cols];
            // SAFETY: every chunk of the job is another request.
            let to = unsafe { to.range(i..i + 1) };
            to[0] = Some(f(logits, &requests[i]));
        });
        results.into_iter().map(|r| r.expect("every chunk has run")).collect()
    }

    fn multiply(&mut self, x: &Buffer, w: &Matrix, planes: Planes, out: &mut Buffer, add: bool) {
        assert_eq!(x.cols, w.cols, "activations and weights have the same number of columns");
        assert_eq!(out.cols, w.rows, "a product has as many columns as the weights have rows");
        assert!(!add || out.rows == x.rows, "rows are added to as many rows");
        let out = out.begin(x.rows);
        linear::linear(&mut self.pool, self.level, (x.used(), planes, &mut self.quantized), w, (out, add));
    }
}

impl Memory for Cpu {
    type Matrix = Matrix;
    type Vector = Vector;
    type Buffer = Buffer;
    type KvCache = KvCache;
    type HostKv = KvCache;
    type RopeTable = RopeTable;
    type LowRank = LowRank;

    fn matrix(&mut self, parts: &[MatrixSource<'_>]) -> Result<Matrix, OpsError> {
        let matrix = Matrix::load(&mut self.pool, &mut self.arena, parts)?;
        if matrix.is_quantized() {
            self.scratch.for_matrix(matrix.cols);
            self.reserve_scratch()?;
        }
        Ok(matrix)
    }

    fn vector(&mut self, values: &[f32]) -> Result<Vector, OpsError> {
        let values = values.to_vec();
        self.handed_out += (values.capacity() * size_of::<f32>()) as u64;
        Ok(Vector(values))
    }

    fn low_rank(&mut self, parts: &[LowRankSource<'_>]) -> Result<LowRank, OpsError> {
        let low_rank = LowRank::load(&mut self.arena, parts)?;
        self.scratch.for_low_rank(parts);
        self.reserve_scratch()?;
        Ok(low_rank)
    }

    fn buffer(&mut self, rows: usize, cols: usize) -> Result<Buffer, OpsError> {
        let data: Vec<f32> = zeroed(rows.saturating_mul(cols), "a buffer of activations")?;
        self.handed_out += (data.capacity() * size_of::<f32>()) as u64;
        self.scratch.for_buffer(rows);
        self.reserve_scratch()?;
        Ok(Buffer { data, cols, rows: 0 })
    }

    fn kv_cache(&mut self, shape: KvShape) -> Result<KvCache, OpsError> {
        KvCache::new(&mut self.arena, shape)
    }

    fn host_kv(&mut self, shape: KvShape) -> Result<KvCache, OpsError> {
        self.kv_cache(shape)
    }

    fn rope_table(&mut self, rope: &Rope) -> Result<RopeTable, OpsError> {
        self.handed_out += RopeTable::bytes(rope);
        RopeTable::new(rope)
    }
}

impl Counted for Cpu {
    fn bytes(&self) -> u64 {
        let scratch = self.quantized.capacity() * size_of::<Activations>() + self.inner.capacity() * size_of::<f32>();
        self.arena.mapped() + self.handed_out + scratch as u64
    }
}

impl Ops for Cpu {
    fn describe(&self) -> String {
        let isa = match self.isa {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        };
        let threads = self.pool.threads();
        format!("cpu {isa} x{threads} thread{}", if threads == 1 { "" } else { "s" })
    }

    fn copy_out(&mut self, cache: &KvCache, host: &mut KvCache, blocks: &[(u32, u32)]) -> Result<(), OpsError> {
        blocks.iter().for_each(|(block, slot)| host.copy(*slot, cache, *block));
        Ok(())
    }

    fn copy_in(&mut self, host: &KvCache, cache: &mut KvCache, slots: &[(u32, u32)]) -> Result<(), OpsError> {
        slots.iter().for_each(|(slot, block)| cache.copy(*block, host, *slot));
        Ok(())
    }

    fn embed(&mut self, table: &Matrix, tokens: &[u32], out: &mut Buffer) -> Result<(), OpsError> {
        assert_eq!(out.cols, table.cols, "embeddings are as wide as their table");
        self.for_rows(tokens.len(), out, |i, out| table.row(tokens[i] as usize, out));
        Ok(())
    }

    fn norm(&mut self, x: &Buffer, weight: &Vector, epsilon: f32, out: &mut Buffer) -> Result<(), OpsError> {
        assert!(x.cols == weight.0.len() && x.cols == out.cols && x.cols.is_multiple_of(16), "norm keeps the shape");
        let level = self.level;
        let row = |i: usize| &x.used()[i * x.cols..][..x.cols];
        self.for_rows(x.rows, out, |i, out| rows::norm(level, row(i), &weight.0, epsilon, out));
        Ok(())
    }

    fn linear(&mut self, x: &Buffer, w: &Matrix, out: &mut Buffer) -> Result<(), OpsError> {
        self.multiply(x, w, Planes::One, out, false);
        Ok(())
    }

    fn linear_fine(&mut self, x: &Buffer, w: &Matrix, out: &mut Buffer) -> Result<(), OpsError> {
        self.multiply(x, w, Planes::Two, out, false);
        Ok(())
    }

    fn linear_add(&mut self, x: &Buffer, w: &Matrix, out: &mut Buffer) -> Result<(), OpsError> {
        self.multiply(x, w, Planes::One, out, true);
        Ok(())
    }

    fn lora_add(&mut self, x: &Buffer, adapted: &[Adapted<'_, LowRank>], out: &mut Buffer) -> Result<(), OpsError> {
        check_rows(adapted, (x.rows, out.rows));
        let (rows, cols) = (out.rows, out.cols);
        let out = (out.begin(rows), cols);
        low_rank::lora_add((&mut self.pool, self.level), (x.used(), x.cols), adapted, &mut self.inner, out);
        Ok(())
    }

    fn rope_store(
        &mut self,
        table: Option<&RopeTable>,
        step: &StepLayout<'_>,
        heads: Heads,
        qkv: &mut Buffer,
        cache: &mut KvCache,
        layer: usize,
    ) -> Result<(), OpsError> {
        check_heads(step, heads, qkv, cache);
        let rows = qkv.rows;
        kv_cache::rope_store(&mut self.pool, table, step, heads, qkv.begin(rows), (cache, layer));
        Ok(())
    }

    fn attention(
        &mut self,
        step: &StepLayout<'_>,
        heads: Heads,
        mask: Mask,
        sinks: Option<&Vector>,
        qkv: &Buffer,
        cache: &KvCache,
        layer: usize,
        out: &mut Buffer,
    ) -> Result<(), OpsError> {
        check_heads(step, heads, qkv, cache);
        assert_eq!(out.cols, heads.query * heads.dim, "attention gives one output a query head");
        let (out, pool) = (out.begin(qkv.rows), &mut self.pool);
        let sinks = sinks.map(|s| s.0.as_slice());
        assert!(sinks.is_none_or(|s| s.len() == heads.query), "a sink for each query head");
        attention::attention((pool, self.level), step, (heads, mask, sinks), qkv.used(), (cache, layer), out);
        Ok(())
    }

    fn gate(&mut self, activation: Activation, gate_up: &Buffer, out: &mut Buffer) -> Result<(), OpsError> {
        assert!(gate_up.cols == 2 * out.cols && out.cols.is_multiple_of(16), "a row is a gate and as many values");
        let level = self.level;
        let row = |i: usize| &gate_up.used()[i * gate_up.cols..][..gate_up.cols];
        self.for_rows(gate_up.rows, out, |i, out| rows::gate(level, activation, row(i), out));
        Ok(())
    }

    fn activate(&mut self, activation: Activation, x: &mut Buffer) -> Result<(), OpsError> {
        assert!(x.cols.is_multiple_of(16), "rows are whole vectors");
        let level = self.level;
        self.for_rows(x.rows, x, |_, x| rows::activate(level, activation, x));
        Ok(())
    }

    fn add_bias(&mut self, bias: &Vector, x: &mut Buffer) -> Result<(), OpsError> {
        assert_eq!(x.cols, bias.0.len(), "a bias for each column");
        self.for_rows(x.rows, x, |_, x| rows::add_bias(x, &bias.0));
        Ok(())
    }

    fn add_scaled(&mut self, x: &Buffer, scale: f32, out: &mut Buffer) -> Result<(), OpsError> {
        assert!(x.cols == out.cols && x.rows == out.rows && x.cols.is_multiple_of(16), "rows are added to their like");
        let level = self.level;
        let row = |i: usize| &x.used()[i * x.cols..][..x.cols];
        self.for_rows(x.rows, out, |i, out| rows::add_scaled(level, row(i), scale, out));
        Ok(())
    }

    fn scale(&mut self, factor: f32, softcap: Option<f32>, x: &mut Buffer) -> Result<(), OpsError> {
        let level = self.level;
        self.for_rows(x.rows, x, |_, x| rows::scale(level, factor, softcap, x));
        Ok(())
    }

    fn norm_heads(
        &mut self,
        weight: &Vector,
        epsilon: f32,
        heads: Range<usize>,
        x: &mut Buffer,
    ) -> Result<(), OpsError> {
        let dim = weight.0.len();
        assert!(heads.end * dim <= x.cols && dim.is_multiple_of(16), "heads lie in the row and are whole vectors");
        let level = self.level;
        let place = heads.start * dim..heads.end * dim;
        self.for_rows(x.rows, x, |_, x| rows::norm_heads(level, &mut x[place.clone()], &weight.0, epsilon));
        Ok(())
    }

    fn layer_norm(
        &mut self,
        x: &Buffer,
        weight: &Vector,
        bias: &Vector,
        epsilon: f32,
        out: &mut Buffer,
    ) -> Result<(), OpsError> {
        let same = [weight.0.len(), bias.0.len(), out.cols].iter().all(|n| *n == x.cols);
        assert!(same && x.cols.is_multiple_of(16), "norm keeps the shape");
        let level = self.level;
        let row = |i: usize| &x.used()[i * x.cols..][..x.cols];
        let weights = (weight.0.as_slice(), bias.0.as_slice());
        self.for_rows(x.rows, out, |i, out| rows::layer_norm(level, row(i), weights, epsilon, out));
        Ok(())
    }

    fn zero(&mut self, rows: usize, out: &mut Buffer) -> Result<(), OpsError> {
        out.begin(rows).fill(0.0);
        Ok(())
    }

    fn route(&mut self, logits: &Buffer, routing: &Routing) -> Result<Vec<Vec<Routed>>, OpsError> {
        Ok(logits.used().chunks_exact(logits.cols).map(|row| route(row, routing)).collect())
    }

    fn scatter_add(&mut self, x: &Buffer, to: &[(usize, f32)], out: &mut Buffer) -> Result<(), OpsError> {
        assert!(x.cols == out.cols && x.rows == to.len() && x.cols.is_multiple_of(16), "rows go to their like");
        for ((row, weight), x) in to.iter().zip(x.used().chunks_exact(x.cols)) {
            let at = row * out.cols;
            assert!(*row < out.rows, "row {row} of {}", out.rows);
            rows::add_scaled(self.level, x, *weight, &mut out.data[at..at + out.cols]);
        }
        Ok(())
    }

    fn gather(&mut self, x: &Buffer, rows: &[usize], out: &mut Buffer) -> Result<(), OpsError> {
        assert_eq!(x.cols, out.cols, "gathered rows keep their width");
        self.for_rows(rows.len(), out, |i, out| out.copy_from_slice(&x.used()[rows[i] * x.cols..][..x.cols]));
        Ok(())
    }

    fn mean_rows(&mut self, x: &Buffer, spans: &[Range<usize>], out: &mut Buffer) -> Result<(), OpsError> {
        assert!(x.cols == out.cols && x.cols.is_multiple_of(16), "means keep the width");
        assert!(spans.iter().all(|span| !span.is_empty()), "a mean is of something");
        let level = self.level;
        let rows = |i: usize| &x.used()[spans[i].start * x.cols..spans[i].end * x.cols];
        self.for_rows(spans.len(), out, |i, out| rows::mean(level, rows(i), out));
        Ok(())
    }

    fn normalize(&mut self, x: &mut Buffer) -> Result<(), OpsError> {
        assert!(x.cols.is_multiple_of(16), "rows are whole vectors");
        let level = self.level;
        self.for_rows(x.rows, x, |_, x| rows::normalize(level, x));
        Ok(())
    }

    fn read(&mut self, x: &Buffer) -> Result<Vec<f32>, OpsError> {
        Ok(x.used().to_vec())
    }

    fn sample(&mut self, logits: &Buffer, requests: &[SampleRequest<'_>]) -> Result<Vec<Sampled>, OpsError> {
        self.for_requests(logits, requests, |r| r.row, sampling::draw)
    }

    fn logprobs(&mut self, logits: &Buffer, requests: &[LogprobRequest]) -> Result<Vec<Logprobs>, OpsError> {
        self.for_requests(logits, requests, |r| r.row, sampling::logprobs)
    }
}

fn check_heads(step: &StepLayout<'_>, heads: Heads, qkv: &Buffer, cache: &KvCache) {
    assert!(heads.query.is_multiple_of(heads.kv) && heads.dim.is_multiple_of(16), "{heads:?} cannot be computed with");
    assert_eq!(qkv.cols, heads.qkv_cols(), "a row is [query | key | value]");
    // What the kernels' chunks rely on when they write at the same time.
    let end = step.spans.iter().fold(0, |row, span| {
        assert!(span.first_row == row && span.rows > 0, "spans follow each other without gaps");
        row + span.rows
    });
    assert_eq!(qkv.rows, end, "every row belongs to a span");
    assert!(cache.shape.kv_heads == heads.kv && cache.shape.head_dim == heads.dim, "the cache is for other heads");
}

#[cfg(test)]
pub(crate) mod tests;
