//! The oracle: every operation as its contract reads, in `f64`, naively. Never fast, never clever: where a backend and
//! this disagree by more than rounding, the backend is wrong.

mod kv_cache;

pub use self::kv_cache::KvCache;

use std::ops::Range;

use crate::cpu::check_source;
use crate::kv::KvKind;
use crate::low_rank::{Adapted, LowRankSource, PlainLowRank, check_rows};
use crate::memory::Memory;
use crate::ops::{
    ACTIVATION_BLOCK, Activation, Heads, KV_BLOCK_TOKENS, KvShape, LENGTH_MIN, Mask, MatrixSource, Ops, OpsError, Rope,
    RopePairs, StepLayout,
};
use crate::quant::{PLANE_STEP, Quant, dequantize_row, quantize_activations, quantize_activations_fine};
use crate::routing::{Routed, Routing, route};
use crate::sampling::{self, LogprobRequest, Logprobs, SampleRequest, Sampled};

/// Where values are rounded to less than `f64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Where [`crate::ops`] says that every backend rounds.
    AsBackends,
    /// Nowhere.
    None,
}

/// The f64 backend.
pub struct Reference {
    rounding: Rounding,
    threads: usize,
}

/// Rows as the file has them; dequantized whenever they are used.
pub struct Matrix {
    rows: Vec<(Quant, Box<[u8]>)>,
    cols: usize,
}

impl Matrix {
    fn row(&self, row: usize) -> Vec<f64> {
        let (quant, bytes) = &self.rows[row];
        let mut values = vec![0.0f32; self.cols];
        dequantize_row(*quant, bytes, &mut values);
        values.into_iter().map(f64::from).collect()
    }
}

/// Activations, one vector a row.
pub struct Buffer {
    capacity: usize,
    cols: usize,
    rows: Vec<Vec<f64>>,
}

impl Buffer {
    fn set(&mut self, rows: Vec<Vec<f64>>) {
        assert!(rows.len() <= self.capacity, "{} rows do not fit a buffer of {}", rows.len(), self.capacity);
        assert!(rows.iter().all(|r| r.len() == self.cols), "rows of other than {} columns", self.cols);
        self.rows = rows;
    }

    fn rounded(&self, row: usize) -> Vec<f32> {
        self.rows[row].iter().map(|&v| v as f32).collect()
    }
}

/// Block and slot of every position `0 .. end` of a span's sequence.
fn places(step: &StepLayout<'_>, first_block: usize, end: usize) -> Vec<(u32, usize)> {
    (0..end).map(|p| (step.blocks[first_block + p / KV_BLOCK_TOKENS], p % KV_BLOCK_TOKENS)).collect()
}

impl Reference {
    /// With all the cores of this machine.
    pub fn new(rounding: Rounding) -> Self {
        Self { rounding, threads: std::thread::available_parallelism().map_or(1, usize::from) }
    }

    /// A row of activations as products with quantized weights see it.
    fn activations(&self, row: &[f64], fine: bool) -> Vec<f64> {
        if self.rounding == Rounding::None {
            return row.to_vec();
        }
        let single: Vec<f32> = row.iter().map(|&v| v as f32).collect();
        let (mut high, mut low) = (vec![0; row.len()], vec![0; row.len()]);
        let mut scales = vec![0.0; row.len() / ACTIVATION_BLOCK];
        match fine {
            true => quantize_activations_fine(&single, &mut high, &mut low, &mut scales),
            false => quantize_activations(&single, &mut low, &mut scales),
        }
        let units = high.iter().zip(&low).map(|(high, low)| f64::from(PLANE_STEP) * f64::from(*high) + f64::from(*low));
        units.enumerate().map(|(i, q)| q * f64::from(scales[i / ACTIVATION_BLOCK])).collect()
    }

    /// `[x row][w row]`.
    fn product(&self, x: &Buffer, w: &Matrix, fine: bool) -> Vec<Vec<f64>> {
        assert_eq!(x.cols, w.cols, "activations and weights have the same number of columns");
        let tokens = x.rows.len();
        // Transposed, so that one row of weights meets all tokens at once.
        let transposed =
            |rows: &[Vec<f64>]| -> Vec<f64> { (0..w.cols * tokens).map(|i| rows[i % tokens][i / tokens]).collect() };
        let rounded: Vec<Vec<f64>> = x.rows.iter().map(|row| self.activations(row, fine)).collect();
        let (rounded, exact) = (transposed(&rounded), transposed(&x.rows));
        let mut out = vec![vec![0.0; tokens]; w.rows.len()];
        let each = w.rows.len().div_ceil(self.threads).max(1);
        std::thread::scope(|scope| {
            for (i, out) in out.chunks_mut(each).enumerate() {
                let (rounded, exact) = (&rounded, &exact);
                scope.spawn(move || {
                    for (j, sums) in out.iter_mut().enumerate() {
                        let row = i * each + j;
                        let x = if w.rows[row].0.is_float() { exact } else { rounded };
                        for (weight, x) in w.row(row).iter().zip(x.chunks_exact(tokens.max(1))) {
                            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += weight * x);
                        }
                    }
                });
            }
        });
        (0..tokens).map(|t| out.iter().map(|sums| sums[t]).collect()).collect()
    }

    fn round_kv(&self, kind: KvKind, v: &[f64]) -> Vec<f64> {
        match self.rounding {
            Rounding::None => v.to_vec(),
            Rounding::AsBackends => {
                let single: Vec<f32> = v.iter().map(|v| *v as f32).collect();
                kind.rounded(&single).into_iter().map(f64::from).collect()
            }
        }
    }
}

impl Memory for Reference {
    type Matrix = Matrix;
    type Vector = Vec<f64>;
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

    fn vector(&mut self, values: &[f32]) -> Result<Vec<f64>, OpsError> {
        Ok(values.iter().map(|&v| f64::from(v)).collect())
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

impl Ops for Reference {
    fn describe(&self) -> String {
        match self.rounding {
            Rounding::AsBackends => "reference f64, rounded as backends round".into(),
            Rounding::None => "reference f64".into(),
        }
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
        out.set(tokens.iter().map(|&t| table.row(t as usize)).collect());
        Ok(())
    }

    fn norm(&mut self, x: &Buffer, weight: &Vec<f64>, epsilon: f32, out: &mut Buffer) -> Result<(), OpsError> {
        let rows = x.rows.iter().map(|row| {
            let inverse = inverse_rms(row, epsilon);
            row.iter().zip(weight).map(|(v, w)| v * inverse * w).collect()
        });
        out.set(rows.collect());
        Ok(())
    }

    fn linear(&mut self, x: &Buffer, w: &Matrix, out: &mut Buffer) -> Result<(), OpsError> {
        out.set(self.product(x, w, false));
        Ok(())
    }

    fn linear_fine(&mut self, x: &Buffer, w: &Matrix, out: &mut Buffer) -> Result<(), OpsError> {
        out.set(self.product(x, w, true));
        Ok(())
    }

    fn linear_add(&mut self, x: &Buffer, w: &Matrix, out: &mut Buffer) -> Result<(), OpsError> {
        assert_eq!(out.rows.len(), x.rows.len(), "rows are added to as many rows");
        for (row, product) in out.rows.iter_mut().zip(self.product(x, w, false)) {
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
        let dot = |w: &[f32], x: &[f64]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
        for Adapted { rows, by } in adapted {
            for (row, part) in rows.clone().flat_map(|row| by.parts.iter().map(move |part| (row, part))) {
                let inner: Vec<f64> = part.a.iter().map(|a| dot(a, &x.rows[row])).collect();
                let out = out.rows[row][part.first_col..].iter_mut().zip(&part.b);
                out.for_each(|(out, b)| *out += f64::from(part.scale) * dot(b, &inner));
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
        for span in step.spans {
            let places = places(step, span.first_block, span.first_position + span.rows);
            for i in 0..span.rows {
                let position = span.first_position + i;
                let row = &mut qkv.rows[span.first_row + i];
                let (rotated, values) = row.split_at_mut((heads.query + heads.kv) * dim);
                if let Some(rope) = rope {
                    rotated.chunks_exact_mut(dim).for_each(|head| rotate(rope, head, position));
                }
                let keys = rotated[heads.query * dim..].chunks_exact(dim);
                for (head, (key, value)) in keys.zip(values.chunks_exact(dim)).enumerate() {
                    let at = cache.at(layer, places[position].0, places[position].1, head);
                    cache.keys[at] = self.round_kv(cache.shape.kind, key);
                    cache.values[at] = self.round_kv(cache.shape.kind, value);
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
        sinks: Option<&Vec<f64>>,
        qkv: &Buffer,
        cache: &KvCache,
        layer: usize,
        out: &mut Buffer,
    ) -> Result<(), OpsError> {
        let mut rows = Vec::new();
        for span in step.spans {
            for i in 0..span.rows {
                let seen = mask.seen(span, i);
                let places = places(step, span.first_block, seen.end);
                let mut row = Vec::new();
                for (head, query) in qkv.rows[span.first_row + i].chunks_exact(heads.dim).take(heads.query).enumerate()
                {
                    let kv_head = head / (heads.query / heads.kv);
                    let at = places[seen.clone()].iter().map(|&(b, slot)| cache.at(layer, b, slot, kv_head));
                    row.extend(attend(query, &mask, sinks.map(|s| s[head]), &at.collect::<Vec<_>>(), cache));
                }
                rows.push(row);
            }
        }
        out.set(rows);
        Ok(())
    }

    fn gate(&mut self, activation: Activation, gate_up: &Buffer, out: &mut Buffer) -> Result<(), OpsError> {
        let rows = gate_up.rows.iter().map(|row| {
            let (gate, up) = row.split_at(row.len() / 2);
            let other = |up: f64| match activation {
                Activation::ClampedSwiglu { limit, .. } => up.clamp(f64::from(-limit), f64::from(limit)) + 1.0,
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

    fn add_bias(&mut self, bias: &Vec<f64>, x: &mut Buffer) -> Result<(), OpsError> {
        x.rows.iter_mut().for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
        Ok(())
    }

    fn add_scaled(&mut self, x: &Buffer, scale: f32, out: &mut Buffer) -> Result<(), OpsError> {
        assert_eq!(out.rows.len(), x.rows.len(), "rows are added to as many rows");
        for (out, x) in out.rows.iter_mut().flatten().zip(x.rows.iter().flatten()) {
            *out += f64::from(scale) * x;
        }
        Ok(())
    }

    fn scale(&mut self, factor: f32, softcap: Option<f32>, x: &mut Buffer) -> Result<(), OpsError> {
        x.rows.iter_mut().flatten().for_each(|x| *x = capped(f64::from(factor) * *x, softcap));
        Ok(())
    }

    fn norm_heads(
        &mut self,
        weight: &Vec<f64>,
        epsilon: f32,
        heads: Range<usize>,
        x: &mut Buffer,
    ) -> Result<(), OpsError> {
        for row in &mut x.rows {
            for head in row.chunks_exact_mut(weight.len()).take(heads.end).skip(heads.start) {
                let inverse = inverse_rms(head, epsilon);
                head.iter_mut().zip(weight).for_each(|(v, w)| *v *= inverse * w);
            }
        }
        Ok(())
    }

    fn layer_norm(
        &mut self,
        x: &Buffer,
        weight: &Vec<f64>,
        bias: &Vec<f64>,
        epsilon: f32,
        out: &mut Buffer,
    ) -> Result<(), OpsError> {
        let rows = x.rows.iter().map(|row| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let centred: Vec<f64> = row.iter().map(|v| v - mean).collect();
            let inverse = inverse_rms(&centred, epsilon);
            centred.iter().zip(weight.iter().zip(bias)).map(|(v, (w, b))| v * inverse * w + b).collect()
        });
        out.set(rows.collect());
        Ok(())
    }

    fn zero(&mut self, rows: usize, out: &mut Buffer) -> Result<(), OpsError> {
        out.set(vec![vec![0.0; out.cols]; rows]);
        Ok(())
    }

    fn route(&mut self, logits: &Buffer, routing: &Routing) -> Result<Vec<Vec<Routed>>, OpsError> {
        Ok((0..logits.rows.len()).map(|row| route(&logits.rounded(row), routing)).collect())
    }

    fn scatter_add(&mut self, x: &Buffer, to: &[(usize, f32)], out: &mut Buffer) -> Result<(), OpsError> {
        for ((row, weight), x) in to.iter().zip(&x.rows) {
            out.rows[*row].iter_mut().zip(x).for_each(|(out, x)| *out += f64::from(*weight) * x);
        }
        Ok(())
    }

    fn gather(&mut self, x: &Buffer, rows: &[usize], out: &mut Buffer) -> Result<(), OpsError> {
        out.set(rows.iter().map(|&row| x.rows[row].clone()).collect());
        Ok(())
    }

    fn mean_rows(&mut self, x: &Buffer, spans: &[Range<usize>], out: &mut Buffer) -> Result<(), OpsError> {
        let mean = |span: &Range<usize>| {
            let rows = &x.rows[span.clone()];
            (0..x.cols).map(|col| rows.iter().map(|row| row[col]).sum::<f64>() / rows.len() as f64).collect()
        };
        out.set(spans.iter().map(mean).collect());
        Ok(())
    }

    fn normalize(&mut self, x: &mut Buffer) -> Result<(), OpsError> {
        for row in &mut x.rows {
            let length = row.iter().map(|v| v * v).sum::<f64>().sqrt().max(f64::from(LENGTH_MIN));
            row.iter_mut().for_each(|v| *v /= length);
        }
        Ok(())
    }

    fn read(&mut self, x: &Buffer) -> Result<Vec<f32>, OpsError> {
        Ok(x.rows.iter().flatten().map(|&v| v as f32).collect())
    }

    fn sample(&mut self, logits: &Buffer, requests: &[SampleRequest<'_>]) -> Result<Vec<Sampled>, OpsError> {
        requests.iter().map(|request| sampling::draw(&logits.rounded(request.row), request)).collect()
    }

    fn logprobs(&mut self, logits: &Buffer, requests: &[LogprobRequest]) -> Result<Vec<Logprobs>, OpsError> {
        requests.iter().map(|request| sampling::logprobs(&logits.rounded(request.row), request)).collect()
    }
}

fn inverse_rms(x: &[f64], epsilon: f32) -> f64 {
    1.0 / (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + f64::from(epsilon)).sqrt()
}

fn capped(v: f64, softcap: Option<f32>) -> f64 {
    softcap.map_or(v, |cap| f64::from(cap) * (v / f64::from(cap)).tanh())
}

fn activated(activation: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::Silu => x * sigmoid(x),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::GeluErf => 0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2)),
        Activation::ClampedSwiglu { alpha, limit } => {
            let x = x.min(f64::from(limit));
            x * sigmoid(f64::from(alpha) * x)
        }
    }
}

fn rotate(rope: &Rope, head: &mut [f64], position: usize) {
    assert!(position < rope.positions, "position {position} is beyond the table");
    let half = rope.frequencies.len();
    for (i, frequency) in rope.frequencies.iter().enumerate() {
        let (sine, cosine) = (position as f64 * frequency).sin_cos();
        let (sine, cosine) = (sine * f64::from(rope.magnitude), cosine * f64::from(rope.magnitude));
        let (a, b) = match rope.pairs {
            RopePairs::Adjacent => (2 * i, 2 * i + 1),
            RopePairs::Halves => (i, i + half),
        };
        (head[a], head[b]) = (head[a] * cosine - head[b] * sine, head[a] * sine + head[b] * cosine);
    }
}

/// Softmax of the scores of one query against the keys `at`, times their values.
fn attend(query: &[f64], mask: &Mask, sink: Option<f64>, at: &[usize], cache: &KvCache) -> Vec<f64> {
    let dot = |key: &[f64]| query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>();
    let scores: Vec<f64> =
        at.iter().map(|&i| capped(f64::from(mask.scale) * dot(&cache.keys[i]), mask.softcap)).collect();
    let max = scores.iter().copied().fold(sink.unwrap_or(f64::NEG_INFINITY), f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - max).exp());
    let mut out = vec![0.0; query.len()];
    for (weight, &i) in weights.iter().zip(at) {
        out.iter_mut().zip(&cache.values[i]).for_each(|(out, v)| *out += weight / total * v);
    }
    out
}

#[cfg(test)]
mod tests;
