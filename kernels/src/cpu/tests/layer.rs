//! One layer of a model in small, batched and cut in every odd way: always the contract's bits.

use std::collections::BTreeMap;

use super::*;

/// One layer of a model: everything that a forward pass does, in small.
struct Layer {
    heads: Heads,
    rope: Rope,
    mask: Mask,
    sinks: Option<Vec<f32>>,
    kind: KvKind,
    embedding: OwnedMatrix,
    qkv: [OwnedMatrix; 3],
    output: OwnedMatrix,
    gate_up: OwnedMatrix,
    down: OwnedMatrix,
    norm: Vec<f32>,
}

const HIDDEN: usize = 96;
const FFN: usize = 160;

impl Layer {
    fn new(heads: Heads, pairs: RopePairs, seed: u64) -> Self {
        let mut random = Random(seed);
        let frequencies = (0..heads.dim / 4).map(|i| 1e4f64.powf(-4.0 * i as f64 / heads.dim as f64)).collect();
        let magnitude = if pairs == RopePairs::Halves { 1.25 } else { 1.0 };
        Self {
            heads,
            rope: Rope { frequencies, magnitude, pairs, positions: 256 },
            mask: Mask { scale: 0.3, softcap: None, window: None, causal: true },
            sinks: None,
            kind: KvKind::F16,
            embedding: random.matrix(Quant::Q8_0, 40, HIDDEN),
            qkv: [
                random.matrix(Quant::Q4_1, heads.query * heads.dim, HIDDEN),
                random.matrix(Quant::Q4_0, heads.kv * heads.dim, HIDDEN),
                random.matrix(Quant::Q8_0, heads.kv * heads.dim, HIDDEN),
            ],
            output: random.matrix(Quant::Q4_1, HIDDEN, heads.query * heads.dim),
            gate_up: random.matrix(Quant::Q4_1, 2 * FFN, HIDDEN),
            down: random.matrix(Quant::BF16, HIDDEN, FFN),
            norm: random.values(HIDDEN).iter().map(|v| v + 2.0).collect(),
        }
    }

    /// Feeds sequences in the steps given, each a list of (sequence, tokens to take), and returns what came out at every
    /// (sequence, position). Blocks are handed out in a scattered order and were full of NaN before.
    fn run<O: Ops>(&self, ops: &mut O, steps: &[Vec<(usize, usize)>]) -> BTreeMap<(usize, usize), Vec<f32>> {
        const BLOCKS: usize = 24;
        let layer = 1;
        let (kv_heads, head_dim) = (self.heads.kv, self.heads.dim);
        let kv = KvShape { layers: 2, kv_heads, head_dim, blocks: BLOCKS, kind: self.kind };
        let (mut cache, rope) = (ops.kv_cache(kv).unwrap(), ops.rope_table(&self.rope).unwrap());
        let nan = vec![f32::NAN; BLOCKS * KV_BLOCK_TOKENS * self.heads.qkv_cols()];
        let mut nan = upload(ops, &nan, self.heads.qkv_cols());
        let whole = Span { first_row: 0, rows: 2 * KV_BLOCK_TOKENS, first_position: 0, first_block: 0 };
        let blocks: Vec<u32> = (0..BLOCKS as u32).collect();
        let spans: Vec<Span> =
            (0..BLOCKS / 2).map(|i| Span { first_row: i * whole.rows, first_block: 2 * i, ..whole }).collect();
        let layout = StepLayout { spans: &spans, blocks: &blocks };
        ops.rope_store(Some(&rope), &layout, self.heads, &mut nan, &mut cache, layer).unwrap();

        let (mut tables, mut lengths) = (vec![Vec::new(); 8], [0; 8]);
        let (mut results, mut taken) = (BTreeMap::new(), 0u32);
        for step in steps {
            let (mut spans, mut blocks, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
            for &(sequence, rows) in step {
                let span = Span {
                    first_row: tokens.len(),
                    rows,
                    first_position: lengths[sequence],
                    first_block: blocks.len(),
                };
                while tables[sequence].len() < span.blocks() {
                    tables[sequence].push(taken * 7 % BLOCKS as u32);
                    taken += 1;
                }
                blocks.extend(&tables[sequence]);
                tokens.extend((0..rows).map(|i| ((lengths[sequence] + i) * 5 + sequence * 11) as u32 % 40));
                lengths[sequence] += rows;
                spans.push(span);
            }
            let out =
                self.forward(ops, &StepLayout { spans: &spans, blocks: &blocks }, &tokens, (&rope, &mut cache, layer));
            for (span, &(sequence, _)) in spans.iter().zip(step) {
                for i in 0..span.rows {
                    let row = &out[(span.first_row + i) * HIDDEN..][..HIDDEN];
                    results.insert((sequence, span.first_position + i), row.to_vec());
                }
            }
        }
        results
    }

    fn forward<O: Ops>(
        &self,
        ops: &mut O,
        step: &StepLayout<'_>,
        tokens: &[u32],
        (rope, cache, layer): (&O::RopeTable, &mut O::KvCache, usize),
    ) -> Vec<f32> {
        let (heads, rows) = (self.heads, tokens.len());
        let [table, output, gate_up, down] =
            [&self.embedding, &self.output, &self.gate_up, &self.down].map(|m| ops.matrix(&[m.source()]).unwrap());
        let qkv_weights = ops.matrix(&[self.qkv[0].source(), self.qkv[1].source(), self.qkv[2].source()]).unwrap();
        let norm = ops.vector(&self.norm).unwrap();
        let sinks = self.sinks.as_ref().map(|s| ops.vector(s).unwrap());
        let [mut x, mut y, mut qkv, mut mixed, mut wide, mut narrow] =
            [HIDDEN, HIDDEN, heads.qkv_cols(), heads.query * heads.dim, 2 * FFN, FFN]
                .map(|cols| ops.buffer(rows, cols).unwrap());
        ops.embed(&table, tokens, &mut x).unwrap();
        ops.norm(&x, &norm, 1e-5, &mut y).unwrap();
        ops.linear(&y, &qkv_weights, &mut qkv).unwrap();
        ops.rope_store(Some(rope), step, heads, &mut qkv, cache, layer).unwrap();
        ops.attention(step, heads, self.mask, sinks.as_ref(), &qkv, cache, layer, &mut mixed).unwrap();
        ops.linear_add(&mixed, &output, &mut x).unwrap();
        ops.norm(&x, &norm, 1e-5, &mut y).unwrap();
        ops.linear(&y, &gate_up, &mut wide).unwrap();
        ops.gate(Activation::Silu, &wide, &mut narrow).unwrap();
        ops.linear_add(&narrow, &down, &mut x).unwrap();
        ops.read(&x).unwrap()
    }
}

/// Sequence 0 has 70 tokens, sequence 1 has 33, sequence 2 has 17: all alone; in two chunkings; mixed in odd ways.
fn schedules() -> Vec<Vec<Vec<(usize, usize)>>> {
    let one_by_one = |s, n| (0..n).map(move |_| vec![(s, 1)]);
    vec![
        vec![vec![(0, 70)], vec![(1, 33)], vec![(2, 17)]],
        one_by_one(2, 17).chain(one_by_one(0, 70)).chain(one_by_one(1, 33)).collect(),
        vec![vec![(0, 7), (1, 16), (2, 17)], vec![(1, 1), (0, 63)], vec![(1, 16)]],
        (0..70)
            .map(|i| [(0, 70), (1, 33), (2, 17)].into_iter().filter(|&(_, n)| i < n).map(|(s, _)| (s, 1)).collect())
            .collect(),
    ]
}

fn compositions_agree(layer: &Layer) {
    let heads = layer.heads;
    let exact = layer.run(&mut Exact::new(), &schedules()[0]);
    let check = |name: &str, got: BTreeMap<(usize, usize), Vec<f32>>| {
        assert_eq!(got.len(), 120, "{name}");
        assert!(got.iter().all(|(place, row)| bits(row) == bits(&exact[place])), "{name} differs from the contract");
    };
    for (i, schedule) in schedules().iter().enumerate() {
        for mut ops in backends() {
            check(
                &format!("{heads:?}, {}, schedule {i}, {}", layer.kind, ops.describe()),
                layer.run(&mut ops, schedule),
            );
        }
        for mut ops in emulated() {
            check(
                &format!("{heads:?}, {}, schedule {i}, {}", layer.kind, ops.describe()),
                layer.run(&mut ops, schedule),
            );
        }
    }
}

#[test]
fn a_layer_is_the_same_however_it_is_batched() {
    compositions_agree(&Layer::new(Heads { query: 9, kv: 3, dim: 32 }, RopePairs::Adjacent, 4));
    compositions_agree(&Layer::new(Heads { query: 4, kv: 4, dim: 48 }, RopePairs::Halves, 5));
    compositions_agree(&Layer::new(Heads { query: 8, kv: 1, dim: 16 }, RopePairs::Halves, 6));
}

/// Heads of whole blocks of 32, and one of blocks of 16.
#[test]
fn every_format_of_keys_and_values_is_the_same_however_it_is_batched() {
    for kind in [KvKind::BF16, KvKind::Q8_0] {
        for heads in
            [Heads { query: 6, kv: 2, dim: 32 }, Heads { query: 4, kv: 4, dim: 48 }, Heads { query: 2, kv: 1, dim: 64 }]
        {
            let mut layer = Layer::new(heads, RopePairs::Halves, 60);
            layer.kind = kind;
            layer.mask.window = (heads.dim == 48).then_some(21);
            compositions_agree(&layer);
        }
    }
}

#[test]
fn windows_caps_and_sinks_are_the_same_however_they_are_batched() {
    for (i, window) in [1, 5, 16, 17, 40].into_iter().enumerate() {
        let mut layer = Layer::new(Heads { query: 6, kv: 2, dim: 32 }, RopePairs::Halves, 40 + i as u64);
        layer.mask.window = Some(window);
        layer.mask.softcap = (i % 2 == 0).then_some(2.0);
        layer.sinks = (i % 3 == 0).then(|| vec![0.5, -1.0, 2.0, 0.0, 8.0, -30.0]);
        compositions_agree(&layer);
    }
}

/// The contract is close to arithmetic without rounding: int8 activations cost what eight bits must, and no more.
#[test]
fn rounding_is_small() {
    let layer = Layer::new(Heads { query: 6, kv: 2, dim: 32 }, RopePairs::Adjacent, 7);
    let exact = layer.run(&mut Reference::new(Rounding::None), &schedules()[0]);
    let rounded = layer.run(&mut Exact::new(), &schedules()[0]);
    let flat = |m: &BTreeMap<_, Vec<f32>>| m.values().flatten().copied().collect::<Vec<f32>>();
    let error = nmse(&flat(&rounded), &flat(&exact));
    assert!(error > 1e-6 && error < 3e-4, "{error:e}");
}

/// Keys and values alone: against attention without rounding, each format costs what its bits must.
#[test]
fn formats_of_keys_and_values_cost_what_their_bits_must() {
    let heads = Heads { query: 6, kv: 2, dim: 64 };
    let x = Random(9).values(40 * heads.qkv_cols());
    let exact = attend(&mut Reference::new(Rounding::None), &x, heads, KvKind::F16);
    let errors = KvKind::ALL.map(|kind| nmse(&attend(&mut Exact::new(), &x, heads, kind), &exact));
    println!("{errors:?}");
    for (error, (least, most)) in errors.into_iter().zip([(1e-9, 1e-6), (1e-7, 1e-4), (1e-7, 1e-4)]) {
        assert!(error > least && error < most, "{errors:?}");
    }
}

fn attend<O: Ops>(ops: &mut O, x: &[f32], heads: Heads, kind: KvKind) -> Vec<f32> {
    let rows = x.len() / heads.qkv_cols();
    let mut qkv = upload(ops, x, heads.qkv_cols());
    let shape = KvShape { layers: 1, kv_heads: heads.kv, head_dim: heads.dim, blocks: rows.div_ceil(16), kind };
    let mut cache = ops.kv_cache(shape).unwrap();
    let mut out = ops.buffer(rows, heads.query * heads.dim).unwrap();
    let spans = [Span { first_row: 0, rows, first_position: 0, first_block: 0 }];
    let blocks: Vec<u32> = (0..shape.blocks as u32).collect();
    let step = StepLayout { spans: &spans, blocks: &blocks };
    let mask = Mask { scale: 0.5, softcap: None, window: None, causal: true };
    ops.rope_store(None, &step, heads, &mut qkv, &mut cache, 0).unwrap();
    ops.attention(&step, heads, mask, None, &qkv, &cache, 0, &mut out).unwrap();
    ops.read(&out).unwrap()
}
