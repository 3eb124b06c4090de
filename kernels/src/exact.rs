//! The numerics contract of [`crate::ops`], one scalar operation after the other. A backend that rounds where the contract
//! says, in the order it says, agrees with this bit for bit, whatever its vectors, tiles and threads. Never fast.
//!
//! [`crate::Reference`] says what an operation should give; this says which of the many roundings of it is meant. Both are
//! needed: int8 roundings that flip breed flips, so through a whole model no f64 arithmetic can follow an f32 one.

mod rounding;

use std::ops::Range;

use self::rounding::{Activations, activated, capped, float_product, inverse_rms, row_product, sum_of_squares};
pub(crate) use self::rounding::{exp, fold};
use crate::cpu::check_source;
use crate::low_rank::{Adapted, LowRankSource, PlainLowRank, check_rows};
use crate::memory::Memory;
use crate::ops::{
    ATTENTION_SPLIT, Activation, Heads, KV_BLOCK_TOKENS, KvShape, LENGTH_MIN, Mask, MatrixSource, Ops, OpsError, Rope,
    RopePairs, StepLayout,
};
use crate::quant::{Quant, dequantize_row};
use crate::routing::{Routed, Routing, route};
use crate::sampling::{self, LogprobRequest, Logprobs, SampleRequest, Sampled};

/// Which version of the contract this is. Raised with every change after which any token could be another: see `NUMERICS.md`.
pub const CONTRACT_VERSION: u16 = 1;

/// The contract as a backend.
pub struct Exact {
    threads: usize,
}

/// Rows as the file has them.
pub struct Matrix {
    rows: Vec<(Quant, Box<[u8]>)>,
    cols: usize,
}

/// Activations, one vector a row.
pub struct Buffer {
    capacity: usize,
    cols: usize,
    rows: Vec<Vec<f32>>,
}

impl Buffer {
    fn set(&mut self, rows: Vec<Vec<f32>>) {
        assert!(rows.len() <= self.capacity, "{} rows do not fit a buffer of {}", rows.len(), self.capacity);
        assert!(rows.iter().all(|r| r.len() == self.cols), "rows of other than {} columns", self.cols);
        self.rows = rows;
    }
}

/// `[layer][block][slot][kv head]` of keys and values.
pub struct KvCache {
    shape: KvShape,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl KvCache {
    /// Copies a block of all layers from another cache of the same shape.
    fn copy(&mut self, to: u32, from: &Self, block: u32) {
        for layer in 0..self.shape.layers {
            let len = KV_BLOCK_TOKENS * self.shape.kv_heads;
            let (to, from_at) = (self.at(layer, to, 0, 0), from.at(layer, block, 0, 0));
            self.keys[to..to + len].clone_from_slice(&from.keys[from_at..from_at + len]);
            self.values[to..to + len].clone_from_slice(&from.values[from_at..from_at + len]);
        }
    }

    fn at(&self, layer: usize, block: u32, slot: usize, head: usize) -> usize {
        let s = &self.shape;
        assert!(layer < s.layers && (block as usize) < s.blocks && head < s.kv_heads, "block {block} is not there");
        ((layer * s.blocks + block as usize) * KV_BLOCK_TOKENS + slot) * s.kv_heads + head
    }
}

impl Exact {
    /// With all the cores of this machine.
    pub fn new() -> Self {
        Self { threads: std::thread::available_parallelism().map_or(1, usize::from) }
    }

    /// `[x row][w row]`.
    fn product(&self, x: &Buffer, w: &Matrix, rounded: impl Fn(&[f32]) -> Activations) -> Vec<Vec<f32>> {
        assert_eq!(x.cols, w.cols, "activations and weights have the same number of columns");
        let x: Vec<Activations> = x.rows.iter().map(|row| rounded(row)).collect();
        let mut columns = vec![vec![0.0; x.len()]; w.rows.len()];
        let each = w.rows.len().div_ceil(self.threads).max(1);
        std::thread::scope(|scope| {
            for (columns, rows) in columns.chunks_mut(each).zip(w.rows.chunks(each)) {
                let x = &x;
                scope.spawn(move || {
                    for (column, (quant, bytes)) in columns.iter_mut().zip(rows) {
                        row_product(*quant, bytes, x, column);
                    }
                });
            }
        });
        (0..x.len()).map(|t| columns.iter().map(|column| column[t]).collect()).collect()
    }
}

impl Default for Exact {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory for Exact {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Buffer = Buffer;
    type KvCache = KvCache;
    type HostKv = KvCache;
    type RopeTable = Rope;
    type LowRank = PlainLowRank;

    fn matrix(&mut self, parts: &[MatrixSource<'_>]) -> Result<Matrix, OpsError> {
        let cols = parts.first().map_or(0, |p| p.cols);
        let mut rows = Vec::new();
        for part in parts {
            check_source(part, cols)?;
            let bytes = part.data.chunks_exact(part.quant.row_bytes(cols));
            rows.extend(bytes.map(|row| (part.quant, row.into())));
        }
        Ok(Matrix { rows, cols })
    }

    fn vector(&mut self, values: &[f32]) -> Result<Vec<f32>, OpsError> {
        Ok(values.to_vec())
    }

    fn low_rank(&mut self, parts: &[LowRankSource<'_>]) -> Result<PlainLowRank, OpsError> {
        PlainLowRank::new(parts)
    }

    fn buffer(&mut self, rows: usize, cols: usize) -> Result<Buffer, OpsError> {
        Ok(Buffer { capacity: rows, cols, rows: Vec::new() })
    }

    fn kv_cache(&mut self, shape: KvShape) -> Result<KvCache, OpsError> {
        let empty = vec![Vec::new(); shape.layers * shape.blocks * KV_BLOCK_TOKENS * shape.kv_heads];
        Ok(KvCache { shape, keys: empty.clone(), values: empty })
    }

    fn host_kv(&mut self, shape: KvShape) -> Result<KvCache, OpsError> {
        self.kv_cache(shape)
    }

    fn rope_table(&mut self, rope: &Rope) -> Result<Rope, OpsError> {
        Ok(rope.clone())
    }
}

impl Ops for Exact {
    fn describe(&self) -> String {
        "the contract, operation by operation".into()
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
        let row = |token: &u32| {
            let (quant, bytes) = &table.rows[*token as usize];
            let mut values = vec![0.0; table.cols];
            dequantize_row(*quant, bytes, &mut values);
            values
        };
        out.set(tokens.iter().map(row).collect());
        Ok(())
    }

    fn norm(&mut self, x: &Buffer, weight: &Vec<f32>, epsilon: f32, out: &mut Buffer) -> Result<(), OpsError> {
        let rows = x.rows.iter().map(|row| {
            let inverse = inverse_rms(row, epsilon);
            row.iter().zip(weight).map(|(v, w)| v * inverse * w).collect()
        });
        out.set(rows.collect());
        Ok(())
    }

    fn linear(&mut self, x: &Buffer, w: &Matrix, out: &mut Buffer) -> Result<(), OpsError> {
        out.set(self.product(x, w, Activations::new));
        Ok(())
    }

    fn linear_fine(&mut self, x: &Buffer, w: &Matrix, out: &mut Buffer) -> Result<(), OpsError> {
        out.set(self.product(x, w, Activations::fine));
        Ok(())
    }

    fn linear_add(&mut self, x: &Buffer, w: &Matrix, out: &mut Buffer) -> Result<(), OpsError> {
        assert_eq!(out.rows.len(), x.rows.len(), "rows are added to as many rows");
        for (row, product) in out.rows.iter_mut().zip(self.product(x, w, Activations::new)) {
            row.iter_mut().zip(product).for_each(|(out, p)| *out += p);
        }
        Ok(())
    }

    fn lora_add(
        &mut self,
        x: &Buffer,
        adapted: &[Adapted<'_, PlainLowRank>],
        out: &mut Buffer,
    ) -> Result<(), OpsError> {
        check_rows(adapted, (x.rows.len(), out.rows.len()));
        for Adapted { rows, by } in adapted {
            for (row, part) in rows.clone().flat_map(|row| by.parts.iter().map(move |part| (row, part))) {
                let inner: Vec<f32> = part.a.iter().map(|a| part.scale * float_product(a, &x.rows[row])).collect();
                let out = out.rows[row][part.first_col..].iter_mut().zip(&part.b);
                out.for_each(|(out, b)| *out += float_product(b, &inner));
            }
        }
        Ok(())
    }

    fn rope_store(
        &mut self,
        rope: Option<&Rope>,
        step: &StepLayout<'_>,
        heads: Heads,
        qkv: &mut Buffer,
        cache: &mut KvCache,
        layer: usize,
    ) -> Result<(), OpsError> {
        assert_eq!(qkv.rows.len(), step.rows(), "every row belongs to a span");
        let dim = heads.dim;
        let kind = cache.shape.kind;
        for span in step.spans {
            for i in 0..span.rows {
                let position = span.first_position + i;
                let block = step.blocks[span.first_block + position / KV_BLOCK_TOKENS];
                let (rotated, values) = qkv.rows[span.first_row + i].split_at_mut((heads.query + heads.kv) * dim);
                if let Some(rope) = rope {
                    rotated.chunks_exact_mut(dim).for_each(|head| rotate(rope, head, position));
                }
                let keys = rotated[heads.query * dim..].chunks_exact(dim);
                for (head, (key, value)) in keys.zip(values.chunks_exact(dim)).enumerate() {
                    let at = cache.at(layer, block, position % KV_BLOCK_TOKENS, head);
                    (cache.keys[at], cache.values[at]) = (kind.rounded(key), kind.rounded(value));
                }
            }
        }
        Ok(())
    }

    fn attention(
        &mut self,
        step: &StepLayout<'_>,
        heads: Heads,
        mask: Mask,
        sinks: Option<&Vec<f32>>,
        qkv: &Buffer,
        cache: &KvCache,
        layer: usize,
        out: &mut Buffer,
    ) -> Result<(), OpsError> {
        let mut rows = Vec::new();
        for span in step.spans {
            for i in 0..span.rows {
                let place = |p| (step.blocks[span.first_block + p / KV_BLOCK_TOKENS], p % KV_BLOCK_TOKENS);
                let queries = qkv.rows[span.first_row + i].chunks_exact(heads.dim).take(heads.query);
                let row = queries.enumerate().flat_map(|(head, query)| {
                    let kv_head = head / (heads.query / heads.kv);
                    let at = |p| (p, cache.at(layer, place(p).0, place(p).1, kv_head));
                    let keys: Vec<_> = mask.seen(span, i).map(at).collect();
                    attend(query, &mask, sinks.map(|s| s[head]), &keys, cache)
                });
                rows.push(row.collect());
            }
        }
        out.set(rows);
        Ok(())
    }

    fn gate(&mut self, activation: Activation, gate_up: &Buffer, out: &mut Buffer) -> Result<(), OpsError> {
        let rows = gate_up.rows.iter().map(|row| {
            let (gate, up) = row.split_at(row.len() / 2);
            let other = |up: f32| match activation {
                Activation::ClampedSwiglu { limit, .. } => up.clamp(-limit, limit) + 1.0,
                _ => up,
            };
            gate.iter().zip(up).map(|(g, u)| activated(activation, *g) * other(*u)).collect()
        });
        out.set(rows.collect());
        Ok(())
    }

    fn activate(&mut self, activation: Activation, x: &mut Buffer) -> Result<(), OpsError> {
        x.rows.iter_mut().flatten().for_each(|x| *x = activated(activation, *x));
        Ok(())
    }

    fn add_bias(&mut self, bias: &Vec<f32>, x: &mut Buffer) -> Result<(), OpsError> {
        x.rows.iter_mut().for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
        Ok(())
    }

    fn add_scaled(&mut self, x: &Buffer, scale: f32, out: &mut Buffer) -> Result<(), OpsError> {
        assert_eq!(out.rows.len(), x.rows.len(), "rows are added to as many rows");
        for (out, x) in out.rows.iter_mut().flatten().zip(x.rows.iter().flatten()) {
            *out = scale.mul_add(*x, *out);
        }
        Ok(())
    }

    fn scale(&mut self, factor: f32, softcap: Option<f32>, x: &mut Buffer) -> Result<(), OpsError> {
        x.rows.iter_mut().flatten().for_each(|x| *x = capped(factor * *x, softcap));
        Ok(())
    }

    fn norm_heads(
        &mut self,
        weight: &Vec<f32>,
        epsilon: f32,
        heads: Range<usize>,
        x: &mut Buffer,
    ) -> Result<(), OpsError> {
        for row in &mut x.rows {
            for head in row.chunks_exact_mut(weight.len()).take(heads.end).skip(heads.start) {
                let inverse = inverse_rms(head, epsilon);
                head.iter_mut().zip(weight).for_each(|(v, w)| *v = *v * inverse * w);
            }
        }
        Ok(())
    }

    fn layer_norm(
        &mut self,
        x: &Buffer,
        weight: &Vec<f32>,
        bias: &Vec<f32>,
        epsilon: f32,
        out: &mut Buffer,
    ) -> Result<(), OpsError> {
        let rows = x.rows.iter().map(|row| {
            let mut sums = [0.0f32; 32];
            row.iter().enumerate().for_each(|(i, v)| sums[i % 32] += v);
            let mean = fold(&mut sums) / row.len() as f32;
            let centred: Vec<f32> = row.iter().map(|v| v - mean).collect();
            let inverse = inverse_rms(&centred, epsilon);
            centred.iter().zip(weight.iter().zip(bias)).map(|(v, (w, b))| (v * inverse).mul_add(*w, *b)).collect()
        });
        out.set(rows.collect());
        Ok(())
    }

    fn zero(&mut self, rows: usize, out: &mut Buffer) -> Result<(), OpsError> {
        out.set(vec![vec![0.0; out.cols]; rows]);
        Ok(())
    }

    fn route(&mut self, logits: &Buffer, routing: &Routing) -> Result<Vec<Vec<Routed>>, OpsError> {
        Ok(logits.rows.iter().map(|row| route(row, routing)).collect())
    }

    fn scatter_add(&mut self, x: &Buffer, to: &[(usize, f32)], out: &mut Buffer) -> Result<(), OpsError> {
        for ((row, weight), x) in to.iter().zip(&x.rows) {
            out.rows[*row].iter_mut().zip(x).for_each(|(out, x)| *out = weight.mul_add(*x, *out));
        }
        Ok(())
    }

    fn gather(&mut self, x: &Buffer, rows: &[usize], out: &mut Buffer) -> Result<(), OpsError> {
        out.set(rows.iter().map(|&row| x.rows[row].clone()).collect());
        Ok(())
    }

    fn mean_rows(&mut self, x: &Buffer, spans: &[Range<usize>], out: &mut Buffer) -> Result<(), OpsError> {
        let mean = |span: &Range<usize>| {
            let mut sum = vec![0.0f32; x.cols];
            for row in &x.rows[span.clone()] {
                sum.iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
            }
            sum.iter().map(|sum| sum / span.len() as f32).collect()
        };
        out.set(spans.iter().map(mean).collect());
        Ok(())
    }

    fn normalize(&mut self, x: &mut Buffer) -> Result<(), OpsError> {
        for row in &mut x.rows {
            let inverse = 1.0 / sum_of_squares(row).sqrt().max(LENGTH_MIN);
            row.iter_mut().for_each(|v| *v *= inverse);
        }
        Ok(())
    }

    fn read(&mut self, x: &Buffer) -> Result<Vec<f32>, OpsError> {
        Ok(x.rows.concat())
    }

    fn sample(&mut self, logits: &Buffer, requests: &[SampleRequest<'_>]) -> Result<Vec<Sampled>, OpsError> {
        requests.iter().map(|request| sampling::draw(&logits.rows[request.row], request)).collect()
    }

    fn logprobs(&mut self, logits: &Buffer, requests: &[LogprobRequest]) -> Result<Vec<Logprobs>, OpsError> {
        requests.iter().map(|request| sampling::logprobs(&logits.rows[request.row], request)).collect()
    }
}

fn rotate(rope: &Rope, head: &mut [f32], position: usize) {
    assert!(position < rope.positions, "position {position} is beyond the table");
    for i in 0..rope.frequencies.len() {
        let (cosine, sine) = rope.turn(position, i);
        let (a, b) = match rope.pairs {
            RopePairs::Adjacent => (2 * i, 2 * i + 1),
            RopePairs::Halves => (i, i + rope.frequencies.len()),
        };
        (head[a], head[b]) = (head[a] * cosine - head[b] * sine, head[a] * sine + head[b] * cosine);
    }
}

/// Softmax of the scores of one query against `keys` (position and place), times their values: split by split, each with a
/// running maximum over positions that share a KV block together, joined in order.
fn attend(query: &[f32], mask: &Mask, sink: Option<f32>, keys: &[(usize, usize)], cache: &KvCache) -> Vec<f32> {
    let mut out = vec![0.0f32; query.len()];
    let (mut max, mut total) = sink.map_or((f32::NEG_INFINITY, 0.0), |sink| (sink, 1.0f32));
    for keys in keys.chunk_by(|a, b| a.0 / ATTENTION_SPLIT == b.0 / ATTENTION_SPLIT) {
        let (part, part_max, part_total) = attend_split(query, mask, keys, cache);
        let highest = if part_max > max { part_max } else { max };
        let (before, this) = (exp(max - highest), exp(part_max - highest));
        out.iter_mut().zip(part).for_each(|(out, part)| *out = part.mul_add(this, *out * before));
        (max, total) = (highest, part_total.mul_add(this, total * before));
    }
    let inverse = 1.0 / total;
    out.iter().map(|v| v * inverse).collect()
}

/// The weighted sum of the values of one split, its largest score and the sum of its weights.
fn attend_split(query: &[f32], mask: &Mask, keys: &[(usize, usize)], cache: &KvCache) -> (Vec<f32>, f32, f32) {
    let (mut out, mut max, mut total) = (vec![0.0f32; query.len()], f32::NEG_INFINITY, 0.0);
    for keys in keys.chunk_by(|a, b| a.0 / KV_BLOCK_TOKENS == b.0 / KV_BLOCK_TOKENS) {
        let mut weights = [f32::NEG_INFINITY; KV_BLOCK_TOKENS];
        for &(position, at) in keys {
            let dot = query.iter().zip(&cache.keys[at]).fold(0.0f32, |sum, (q, k)| q.mul_add(*k, sum));
            weights[position % KV_BLOCK_TOKENS] = capped(dot * mask.scale, mask.softcap);
        }
        let before = max;
        max = weights.iter().fold(max, |m, w| if *w > m { *w } else { m });
        weights = weights.map(|w| exp(w + -max));
        let rescale = if max == before { 1.0 } else { exp(before - max) };
        out.iter_mut().for_each(|v| *v *= rescale);
        for &(position, at) in keys {
            let weight = weights[position % KV_BLOCK_TOKENS];
            out.iter_mut().zip(&cache.values[at]).for_each(|(v, value)| *v = weight.mul_add(*value, *v));
        }
        total = total * rescale + fold(&mut weights);
    }
    (out, max, total)
}
