//! A backend that measures another: how long each operation took, by what it worked on. Never changes a result.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::low_rank::{Adapted, LowRankSource};
use crate::memory::{Counted, Memory};
use crate::ops::{Activation, Heads, KvShape, Mask, MatrixSource, Ops, OpsError, Rope, StepLayout};
use crate::routing::{Routed, Routing};
use crate::sampling::{LogprobRequest, Logprobs, SampleRequest, Sampled};

/// Calls of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// How many.
    pub calls: u64,
    /// How long they took together.
    pub time: Duration,
}

/// `O`, measured.
pub struct Timed<O> {
    ops: O,
    spent: BTreeMap<String, Spent>,
}

/// A matrix with its shape, which names its products.
pub struct TimedMatrix<M> {
    matrix: M,
    name: String,
}

impl<O: Ops> Timed<O> {
    /// Measures `ops` from now on.
    pub fn new(ops: O) -> Self {
        Self { ops, spent: BTreeMap::new() }
    }

    /// Time by operation since the last call, in order of names.
    pub fn take_spent(&mut self) -> BTreeMap<String, Spent> {
        std::mem::take(&mut self.spent)
    }

    fn measure<T>(&mut self, name: &str, work: impl FnOnce(&mut O) -> T) -> T {
        let began = Instant::now();
        let result = work(&mut self.ops);
        let time = began.elapsed();
        if !self.spent.contains_key(name) {
            self.spent.insert(name.to_owned(), Spent::default());
        }
        let spent = self.spent.get_mut(name).expect("inserted above");
        (spent.calls, spent.time) = (spent.calls + 1, spent.time + time);
        result
    }
}

impl<O: Ops> Memory for Timed<O> {
    type Matrix = TimedMatrix<O::Matrix>;
    type Vector = O::Vector;
    type Buffer = O::Buffer;
    type KvCache = O::KvCache;
    type HostKv = O::HostKv;
    type RopeTable = O::RopeTable;
    type LowRank = O::LowRank;

    fn matrix(&mut self, parts: &[MatrixSource<'_>]) -> Result<Self::Matrix, OpsError> {
        let rows: usize = parts.iter().map(|p| p.rows).sum();
        let name = parts.first().map_or_else(String::new, |p| format!("linear {rows}x{} {}", p.cols, p.quant));
        Ok(TimedMatrix { matrix: self.ops.matrix(parts)?, name })
    }

    fn vector(&mut self, values: &[f32]) -> Result<Self::Vector, OpsError> {
        self.ops.vector(values)
    }

    fn low_rank(&mut self, parts: &[LowRankSource<'_>]) -> Result<Self::LowRank, OpsError> {
        self.ops.low_rank(parts)
    }

    fn buffer(&mut self, rows: usize, cols: usize) -> Result<Self::Buffer, OpsError> {
        self.ops.buffer(rows, cols)
    }

    fn kv_cache(&mut self, shape: KvShape) -> Result<Self::KvCache, OpsError> {
        self.ops.kv_cache(shape)
    }

    fn host_kv(&mut self, shape: KvShape) -> Result<Self::HostKv, OpsError> {
        self.ops.host_kv(shape)
    }

    fn rope_table(&mut self, rope: &Rope) -> Result<Self::RopeTable, OpsError> {
        self.ops.rope_table(rope)
    }
}

impl<O: Ops + Counted> Counted for Timed<O> {
    fn bytes(&self) -> u64 {
        self.ops.bytes()
    }
}

impl<O: Ops> Ops for Timed<O> {
    fn describe(&self) -> String {
        self.ops.describe()
    }

    fn wait(&mut self) -> Result<(), OpsError> {
        self.ops.wait()
    }

    fn copy_out(
        &mut self,
        cache: &Self::KvCache,
        host: &mut Self::HostKv,
        blocks: &[(u32, u32)],
    ) -> Result<(), OpsError> {
        self.measure("copy_out", |ops| ops.copy_out(cache, host, blocks))
    }

    fn copy_in(
        &mut self,
        host: &Self::HostKv,
        cache: &mut Self::KvCache,
        slots: &[(u32, u32)],
    ) -> Result<(), OpsError> {
        self.measure("copy_in", |ops| ops.copy_in(host, cache, slots))
    }

    fn embed(&mut self, table: &Self::Matrix, tokens: &[u32], out: &mut Self::Buffer) -> Result<(), OpsError> {
        self.measure("embed", |ops| ops.embed(&table.matrix, tokens, out))
    }

    fn norm(
        &mut self,
        x: &Self::Buffer,
        w: &Self::Vector,
        epsilon: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), OpsError> {
        self.measure("norm", |ops| ops.norm(x, w, epsilon, out))
    }

    fn linear(&mut self, x: &Self::Buffer, w: &Self::Matrix, out: &mut Self::Buffer) -> Result<(), OpsError> {
        self.measure(&w.name, |ops| ops.linear(x, &w.matrix, out))
    }

    fn linear_fine(&mut self, x: &Self::Buffer, w: &Self::Matrix, out: &mut Self::Buffer) -> Result<(), OpsError> {
        self.measure(&w.name, |ops| ops.linear_fine(x, &w.matrix, out))
    }

    fn linear_add(&mut self, x: &Self::Buffer, w: &Self::Matrix, out: &mut Self::Buffer) -> Result<(), OpsError> {
        self.measure(&w.name, |ops| ops.linear_add(x, &w.matrix, out))
    }

    fn lora_add(
        &mut self,
        x: &Self::Buffer,
        adapted: &[Adapted<'_, Self::LowRank>],
        out: &mut Self::Buffer,
    ) -> Result<(), OpsError> {
        self.measure("lora_add", |ops| ops.lora_add(x, adapted, out))
    }

    fn rope_store(
        &mut self,
        table: Option<&Self::RopeTable>,
        step: &StepLayout<'_>,
        heads: Heads,
        qkv: &mut Self::Buffer,
        cache: &mut Self::KvCache,
        layer: usize,
    ) -> Result<(), OpsError> {
        self.measure("rope_store", |ops| ops.rope_store(table, step, heads, qkv, cache, layer))
    }

    fn attention(
        &mut self,
        step: &StepLayout<'_>,
        heads: Heads,
        mask: Mask,
        sinks: Option<&Self::Vector>,
        qkv: &Self::Buffer,
        cache: &Self::KvCache,
        layer: usize,
        out: &mut Self::Buffer,
    ) -> Result<(), OpsError> {
        self.measure("attention", |ops| ops.attention(step, heads, mask, sinks, qkv, cache, layer, out))
    }

    fn gate(&mut self, activation: Activation, gate_up: &Self::Buffer, out: &mut Self::Buffer) -> Result<(), OpsError> {
        self.measure("gate", |ops| ops.gate(activation, gate_up, out))
    }

    fn activate(&mut self, activation: Activation, x: &mut Self::Buffer) -> Result<(), OpsError> {
        self.measure("activate", |ops| ops.activate(activation, x))
    }

    fn add_bias(&mut self, bias: &Self::Vector, x: &mut Self::Buffer) -> Result<(), OpsError> {
        self.measure("add_bias", |ops| ops.add_bias(bias, x))
    }

    fn add_scaled(&mut self, x: &Self::Buffer, scale: f32, out: &mut Self::Buffer) -> Result<(), OpsError> {
        self.measure("add_scaled", |ops| ops.add_scaled(x, scale, out))
    }

    fn scale(&mut self, factor: f32, softcap: Option<f32>, x: &mut Self::Buffer) -> Result<(), OpsError> {
        self.measure("scale", |ops| ops.scale(factor, softcap, x))
    }

    fn norm_heads(
        &mut self,
        weight: &Self::Vector,
        epsilon: f32,
        heads: Range<usize>,
        x: &mut Self::Buffer,
    ) -> Result<(), OpsError> {
        self.measure("norm_heads", |ops| ops.norm_heads(weight, epsilon, heads, x))
    }

    fn layer_norm(
        &mut self,
        x: &Self::Buffer,
        weight: &Self::Vector,
        bias: &Self::Vector,
        epsilon: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), OpsError> {
        self.measure("layer_norm", |ops| ops.layer_norm(x, weight, bias, epsilon, out))
    }

    fn zero(&mut self, rows: usize, out: &mut Self::Buffer) -> Result<(), OpsError> {
        self.measure("zero", |ops| ops.zero(rows, out))
    }

    fn route(&mut self, logits: &Self::Buffer, routing: &Routing) -> Result<Vec<Vec<Routed>>, OpsError> {
        self.measure("route", |ops| ops.route(logits, routing))
    }

    fn scatter_add(&mut self, x: &Self::Buffer, to: &[(usize, f32)], out: &mut Self::Buffer) -> Result<(), OpsError> {
        self.measure("scatter_add", |ops| ops.scatter_add(x, to, out))
    }

    fn gather(&mut self, x: &Self::Buffer, rows: &[usize], out: &mut Self::Buffer) -> Result<(), OpsError> {
        self.measure("gather", |ops| ops.gather(x, rows, out))
    }

    fn mean_rows(&mut self, x: &Self::Buffer, spans: &[Range<usize>], out: &mut Self::Buffer) -> Result<(), OpsError> {
        self.measure("mean_rows", |ops| ops.mean_rows(x, spans, out))
    }

    fn normalize(&mut self, x: &mut Self::Buffer) -> Result<(), OpsError> {
        self.measure("normalize", |ops| ops.normalize(x))
    }

    fn read(&mut self, x: &Self::Buffer) -> Result<Vec<f32>, OpsError> {
        self.ops.read(x)
    }

    fn sample(&mut self, logits: &Self::Buffer, requests: &[SampleRequest<'_>]) -> Result<Vec<Sampled>, OpsError> {
        self.measure("sample", |ops| ops.sample(logits, requests))
    }

    fn logprobs(&mut self, logits: &Self::Buffer, requests: &[LogprobRequest]) -> Result<Vec<Logprobs>, OpsError> {
        self.measure("logprobs", |ops| ops.logprobs(logits, requests))
    }
}
