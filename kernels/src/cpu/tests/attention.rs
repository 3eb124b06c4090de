//! Attention of the CUDA kernels, whose tiles depend on everything: on the heads, on how many rows a span has, on the mask. Always
//! the contract's bits.

use super::*;
use crate::cuda::Bounds;

/// A step over caches that are filled: spans are (position of the first row, rows).
struct Case {
    heads: Heads,
    kind: KvKind,
    spans: Vec<(usize, usize)>,
    mask: Mask,
    sinks: bool,
}

const CAUSAL: Mask = Mask { scale: 0.4, softcap: None, window: None, causal: true };

impl Case {
    fn new((query, kv, dim): (usize, usize, usize), kind: KvKind, spans: &[(usize, usize)]) -> Self {
        Self { heads: Heads { query, kv, dim }, kind, spans: spans.to_vec(), mask: CAUSAL, sinks: false }
    }

    fn run<O: Ops>(&self, ops: &mut O) -> Vec<u32> {
        let Heads { query, kv, dim } = self.heads;
        let mut tables = Vec::new();
        let (mut spans, mut before) = (Vec::new(), Vec::new());
        let (mut rows, mut rows_before) = (0, 0);
        for &(first_position, count) in &self.spans {
            let first_block = tables.len();
            let span = Span { first_row: rows, rows: count, first_position, first_block };
            // Blocks are handed out in a scattered order.
            tables.extend((0..span.blocks()).map(|i| first_block + i));
            spans.push(span);
            rows += count;
            if first_position > 0 {
                before.push(Span { first_row: rows_before, rows: first_position, first_position: 0, first_block });
                rows_before += first_position;
            }
        }
        let count = tables.len();
        let tables: Vec<u32> = tables.iter().map(|i| (count - 1 - i) as u32).collect();
        let shape = KvShape { layers: 1, kv_heads: kv, head_dim: dim, blocks: count, kind: self.kind };
        let (mut cache, mut random) = (ops.kv_cache(shape).unwrap(), Random(77));
        let cols = self.heads.qkv_cols();
        // What nobody has stored yet is not a number.
        let whole = Span { first_row: 0, rows: count * KV_BLOCK_TOKENS, first_position: 0, first_block: 0 };
        let mut fill = |ops: &mut O, spans: &[Span], values: &[f32]| {
            let (mut qkv, step) = (upload(ops, values, cols), StepLayout { spans, blocks: &tables });
            ops.rope_store(None, &step, self.heads, &mut qkv, &mut cache, 0).unwrap();
            qkv
        };
        fill(ops, &[whole], &vec![f32::NAN; whole.rows * cols]);
        if rows_before > 0 {
            fill(ops, &before, &random.values(rows_before * cols));
        }
        let qkv = fill(ops, &spans, &random.values(rows * cols).iter().map(|v| v * 2.0).collect::<Vec<_>>());
        let sinks = self.sinks.then(|| random.values(query).iter().map(|v| 4.0 * v).collect::<Vec<_>>());
        let sinks = sinks.map(|sinks| ops.vector(&sinks).unwrap());
        let mut out = ops.buffer(rows, query * dim).unwrap();
        let step = StepLayout { spans: &spans, blocks: &tables };
        ops.attention(&step, self.heads, self.mask, sinks.as_ref(), &qkv, &cache, 0, &mut out).unwrap();
        bits(&ops.read(&out).unwrap())
    }

    /// On the emulator in three orders, with splits side by side, one after the other, and some of both.
    fn check(&self) {
        let Self { heads, kind, spans, mask, .. } = self;
        let expect = self.run(&mut Exact::new());
        assert!(expect.iter().any(|bits| *bits != 0) && expect.iter().all(|bits| !f32::from_bits(*bits).is_nan()));
        let side_by_side = Bounds { fill: usize::MAX / 4096, ..Bounds::default() };
        let in_order = Bounds { fill: 0, ..side_by_side };
        let some = Bounds { parts_bytes: 3 * spans.len() * heads.query * (heads.dim + 4) * 4, ..side_by_side };
        for (order, bounds) in [(0, side_by_side), (1, in_order), (7, some), (7, in_order)] {
            let Some(emulator) = Emulator::new(order, 1) else { return };
            let mut ops = Cuda::new(emulator).bounded(bounds);
            let same = self.run(&mut ops) == expect;
            assert!(same, "{heads:?} {kind} {spans:?} {mask:?}, order {order}, {bounds:?}");
        }
    }
}

#[test]
fn every_number_of_query_heads_for_a_key_head() {
    // Decode rows, short spans and chunks of prompts in one step, over contexts of one, two and three splits.
    let spans = [(530, 1), (3, 1), (250, 34), (15, 2), (510, 4)];
    for (i, heads) in [(2, 2, 64), (3, 1, 32), (4, 1, 48), (8, 1, 16), (18, 2, 16)].into_iter().enumerate() {
        let mut case = Case::new(heads, KvKind::ALL[i % 3], &spans);
        case.sinks = i % 2 == 1;
        case.check();
    }
}

#[test]
fn heads_of_every_size() {
    for (i, dim) in [16, 32, 64, 80, 96, 128, 160, 256, 512].into_iter().enumerate() {
        // The second span is long enough for tiles of many queries.
        Case::new((2, 1, dim), KvKind::ALL[i % 3], &[(37, 1), (9, 19)]).check();
        Case::new((2, 2, dim), KvKind::ALL[(i + 1) % 3], &[(17, 1)]).check();
    }
}

#[test]
fn windows_that_begin_anywhere_and_rows_that_see_what_comes() {
    for (i, window) in [1, 15, 16, 17, 40, 255, 257, 300].into_iter().enumerate() {
        let mut case = Case::new((3, 1, 32), KvKind::ALL[i % 3], &[(525, 1), (240, 40), (0, 3), (509, 3)]);
        case.mask = Mask { window: Some(window), softcap: (i % 2 == 0).then_some(1.5), ..CAUSAL };
        case.sinks = i % 3 == 0;
        case.check();
        case.mask.causal = false;
        case.spans.truncate(2);
        case.check();
    }
    let mut case = Case::new((4, 2, 32), KvKind::Q8_0, &[(0, 21), (0, 3), (0, 270)]);
    case.mask.causal = false;
    case.check();
}

/// More query heads for a key head than a block of threads takes.
#[test]
fn more_heads_than_a_tile_has_room_for() {
    for (i, query) in [10, 18, 72].into_iter().enumerate() {
        Case::new((query, 1, 16), KvKind::ALL[i], &[(260, 1), (30, 5)]).check();
    }
    Case::new((18, 1, 272), KvKind::F16, &[(5, 3)]).check();
}

/// Scores that are infinite or no number show as they do in the contract, and in no other row.
#[test]
fn a_broken_query_breaks_its_own_row_only() {
    let heads = Heads { query: 2, kv: 1, dim: 16 };
    let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 16, blocks: 2, kind: KvKind::F16 };
    let mut x = Random(78).values(20 * heads.qkv_cols());
    x[7 * heads.qkv_cols()] = f32::NAN;
    x[9 * heads.qkv_cols() + 20] = f32::NEG_INFINITY;
    let spans = [Span { first_row: 0, rows: 20, first_position: 0, first_block: 0 }];
    let step = StepLayout { spans: &spans, blocks: &[1, 0] };
    let run = |ops: &mut dyn FnMut() -> Vec<f32>| -> Vec<Option<u32>> {
        ops().into_iter().map(|v| (!v.is_nan()).then_some(v.to_bits())).collect()
    };
    fn attended<O: Ops>(ops: &mut O, x: &[f32], (step, heads, shape): (&StepLayout<'_>, Heads, KvShape)) -> Vec<f32> {
        let (mut qkv, mut cache) = (upload(ops, x, heads.qkv_cols()), ops.kv_cache(shape).unwrap());
        let mut out = ops.buffer(20, 32).unwrap();
        ops.rope_store(None, step, heads, &mut qkv, &mut cache, 0).unwrap();
        ops.attention(step, heads, CAUSAL, None, &qkv, &cache, 0, &mut out).unwrap();
        ops.read(&out).unwrap()
    }
    let expect = run(&mut || attended(&mut Exact::new(), &x, (&step, heads, shape)));
    assert!(
        expect[7 * 32..7 * 32 + 16].iter().all(Option::is_none)
            && expect[7 * 32 + 16..8 * 32].iter().all(Option::is_some)
    );
    for mut ops in emulated() {
        assert_eq!(run(&mut || attended(&mut ops, &x, (&step, heads, shape))), expect, "{}", ops.describe());
    }
}
