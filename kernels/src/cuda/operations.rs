//! Each operation as launches. Shapes are asserted before addresses are handed over: that is what makes a launch safe.

use std::ffi::CStr;
use std::ops::Range;

use bytemuck::{Pod, bytes_of, cast_slice, cast_slice_mut};

use super::args::{
    cuckoo_elementwise, cuckoo_embed_floats, cuckoo_embed_integers, cuckoo_layer_norm, cuckoo_norm, cuckoo_rows,
};
use super::kv_cache::{HostKv, KvCache};
use super::low_rank::LowRank;
use super::machine::{Extent, Machine, Narrow, Piece};
use super::matrix::{Matrix, Weights};
use super::products::Product;
use super::{Buffer, Cuda, RopeTable, Vector};
use crate::low_rank::{Adapted, LowRankSource, check_rows};
use crate::memory::Memory;
use crate::ops::{
    Activation, DrawAhead, Heads, KvShape, Mask, MatrixSource, Ops, OpsError, Rope, RopePairs, StepLayout,
};
use crate::quant::Quant;
use crate::routing::{Routed, Routing};
use crate::sampling::{LogprobRequest, Logprobs, SampleRequest, Sampled};

/// Lanes of a warp.
pub(super) const WARP: usize = 32;
/// Threads of most blocks.
pub(super) const THREADS: usize = 256;
/// Neighbouring columns that a thread takes, where it takes several.
const COLS_EACH: usize = 4;
/// Columns of a row that shared memory holds on every GPU.
const SHARED_COLS: usize = 24 << 10;

impl<M: Machine> Buffer<M> {
    pub(super) fn begin(&mut self, rows: usize) {
        assert!(rows <= self.capacity, "{rows} rows do not fit a buffer of {}", self.capacity);
        self.rows = rows;
        self.written();
    }

    /// Where it is, to be read; or to be written, after [`Buffer::begin`].
    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Where it is, to be written: what is known of its contents holds no longer.
    pub(super) fn written(&mut self) -> u64 {
        self.contents.1 += 1;
        self.maker = None;
        self.memory.address()
    }
}

impl<M: Machine> Cuda<M> {
    /// Runs a kernel.
    ///
    /// # Safety
    /// As [`Machine::launch`].
    pub(super) unsafe fn launch<A: Pod>(
        &mut self,
        kernel: &'static CStr,
        grid: [usize; 3],
        (threads, shared_bytes): (usize, usize),
        args: &A,
    ) -> Result<(), OpsError> {
        if grid.contains(&0) {
            return Ok(());
        }
        let grid = grid.map(|n| u32::try_from(n).expect("a grid counts rows of one step"));
        let extent = Extent { grid, threads: threads as u32, shared_bytes: shared_bytes as u32 };
        // SAFETY: the caller's promise.
        unsafe { self.machine.launch(kernel, extent, bytes_of(args)) }
    }

    fn elementwise(&mut self, kernel: &'static CStr, args: &cuckoo_elementwise) -> Result<(), OpsError> {
        let grid = [(args.rows as usize * args.cols as usize).div_ceil(THREADS), 1, 1];
        // SAFETY: callers give extents of buffers in use.
        unsafe { self.launch(kernel, grid, (THREADS, 0), args) }
    }

    /// What is done to each value by itself, and may be wanted rounded: threads take columns of a row.
    fn activation(&mut self, kernel: &'static CStr, args: &cuckoo_elementwise) -> Result<(), OpsError> {
        let pieces = (args.cols as usize).div_ceil(COLS_EACH);
        let threads = pieces.next_multiple_of(WARP).min(THREADS);
        let grid = [args.rows as usize, pieces.div_ceil(threads), 1];
        // SAFETY: callers give extents of buffers in use.
        unsafe { self.launch(kernel, grid, (threads, 0), args) }
    }

    /// Norms by warps: of heads, or of rows too long to be shared.
    fn norm_by_warps(&mut self, args: &cuckoo_norm) -> Result<(), OpsError> {
        let grid = [(args.rows as usize * args.heads as usize).div_ceil(THREADS / WARP), 1, 1];
        // SAFETY: callers checked that the heads lie within rows of `stride` values.
        unsafe { self.launch(c"cuckoo_norm_heads", grid, (THREADS, 0), args) }
    }

    /// The address of a step's tokens, of which some may have been drawn here.
    fn tokens(&mut self, tokens: &[u32], vocabulary: usize) -> Result<u64, OpsError> {
        let address = self.scratch.numbers.holding(&mut self.machine, tokens, "tokens")?;
        if self.take_drawn(address, vocabulary)? {
            self.scratch.numbers.forget();
        }
        Ok(address)
    }

    fn values_of(&mut self, x: &Buffer<M>) -> Result<Vec<f32>, OpsError> {
        let mut values = vec![0.0f32; x.rows * x.cols];
        self.machine.read(&x.memory, 0, cast_slice_mut(&mut values))?;
        Ok(values)
    }
}

/// The kernels' number of an activation, and its parameters.
fn activation(of: Activation) -> (u32, f32, f32) {
    match of {
        Activation::Silu => (0, 0.0, 0.0),
        Activation::GeluTanh => (1, 0.0, 0.0),
        Activation::GeluErf => (2, 0.0, 0.0),
        Activation::ClampedSwiglu { alpha, limit } => (3, alpha, limit),
    }
}

fn norm<M: Machine>(weight: &Vector<M>, x: &Buffer<M>) -> cuckoo_norm {
    cuckoo_norm {
        weight: weight.memory.address(),
        rows: x.rows as u32,
        cols: weight.len as u32,
        heads: 1,
        stride: x.cols as u32,
        ..Default::default()
    }
}

fn elementwise<M: Machine>(out: &mut Buffer<M>) -> cuckoo_elementwise {
    cuckoo_elementwise { out: out.written(), rows: out.rows as u32, cols: out.cols as u32, ..Default::default() }
}

impl<M: Machine> Memory for Cuda<M> {
    type Matrix = Matrix<M>;
    type Vector = Vector<M>;
    type Buffer = Buffer<M>;
    type KvCache = KvCache<M>;
    type HostKv = HostKv;
    type RopeTable = RopeTable<M>;
    type LowRank = LowRank<M>;

    fn matrix(&mut self, parts: &[MatrixSource<'_>]) -> Result<Matrix<M>, OpsError> {
        for part in parts {
            let cols = match self.narrow_kind(part.quant) {
                Some(Narrow::Bf16) => &mut self.needs.narrow_cols[0],
                Some(Narrow::F16) => &mut self.needs.narrow_cols[1],
                None if part.quant.is_float() => continue,
                None => &mut self.needs.cols,
            };
            *cols = part.cols.max(*cols);
        }
        self.scratch.reserve(&mut self.machine, &self.needs)?;
        Matrix::load(&mut self.machine, parts)
    }

    fn vector(&mut self, values: &[f32]) -> Result<Vector<M>, OpsError> {
        let mut memory = self.machine.allocate(size_of_val(values), "a vector of weights")?;
        self.machine.write(&mut memory, 0, cast_slice(values))?;
        Ok(Vector { memory, len: values.len() })
    }

    fn buffer(&mut self, rows: usize, cols: usize) -> Result<Buffer<M>, OpsError> {
        let bytes = rows.saturating_mul(cols).saturating_mul(size_of::<f32>());
        let memory = self.machine.allocate(bytes, "activations")?;
        self.needs.rows = self.needs.rows.max(rows);
        self.scratch.reserve(&mut self.machine, &self.needs)?;
        self.buffers += 1;
        Ok(Buffer { memory, capacity: rows, rows: 0, cols, contents: (self.buffers, 0), maker: None })
    }

    fn low_rank(&mut self, parts: &[LowRankSource<'_>]) -> Result<LowRank<M>, OpsError> {
        self.needs.inner = parts.iter().map(|part| part.a.rows).fold(self.needs.inner, usize::max);
        self.scratch.reserve(&mut self.machine, &self.needs)?;
        LowRank::load(&mut self.machine, parts)
    }

    fn kv_cache(&mut self, shape: KvShape) -> Result<KvCache<M>, OpsError> {
        KvCache::new(&mut self.machine, shape)
    }

    fn host_kv(&mut self, shape: KvShape) -> Result<HostKv, OpsError> {
        self.machine.took_of_host(shape.bytes());
        if M::HOLDS { HostKv::new(shape) } else { HostKv::new(KvShape { blocks: 0, ..shape }) }
    }

    fn rope_table(&mut self, rope: &Rope) -> Result<RopeTable<M>, OpsError> {
        let pairs = rope.frequencies.len();
        let turn = |at: usize| rope.turn(at / pairs, at % pairs);
        let count = rope.positions.saturating_mul(pairs);
        let mut memory = self.machine.allocate(count.saturating_mul(size_of::<[f32; 2]>()), "a rotation table")?;
        if M::HOLDS {
            let turns: Vec<[f32; 2]> = (0..count).map(|at| turn(at).into()).collect();
            self.machine.write(&mut memory, 0, cast_slice(&turns))?;
        }
        Ok(RopeTable { memory, pairs, positions: rope.positions, halves: rope.pairs == RopePairs::Halves })
    }
}

impl<M: Machine> Ops for Cuda<M> {
    fn describe(&self) -> String {
        self.machine.describe()
    }

    fn wait(&mut self) -> Result<(), OpsError> {
        self.machine.wait()
    }

    fn ahead(&mut self) -> Option<&mut dyn DrawAhead<Buffer<M>>> {
        Some(self)
    }

    fn copy_out(&mut self, cache: &KvCache<M>, host: &mut HostKv, blocks: &[(u32, u32)]) -> Result<(), OpsError> {
        self.spill(cache, host, blocks)
    }

    fn copy_in(&mut self, host: &HostKv, cache: &mut KvCache<M>, slots: &[(u32, u32)]) -> Result<(), OpsError> {
        self.restore(host, cache, slots)
    }

    fn embed(&mut self, table: &Matrix<M>, tokens: &[u32], out: &mut Buffer<M>) -> Result<(), OpsError> {
        assert!(tokens.iter().all(|t| (*t as usize) < table.rows), "every token is in the table");
        assert_eq!(out.cols, table.cols, "a row of the table is a row of the buffer");
        out.begin(tokens.len());
        let numbers = self.tokens(tokens, table.rows)?;
        for part in &table.parts {
            let (count, first_row) = (tokens.len() as u32, part.first_row as u32);
            match &part.weights {
                Weights::Integers { kind, args, .. } => {
                    let args =
                        cuckoo_embed_integers { table: *args, tokens: numbers, out: out.address(), count, first_row };
                    let grid = [tokens.len().div_ceil(THREADS / WARP), 1, 1];
                    // SAFETY: tokens are below the rows of the table, and `out` has a row for each.
                    unsafe { self.launch(kind.embed, grid, (THREADS, 0), &args)? }
                }
                Weights::Floats { quant, args, .. } => {
                    let args =
                        cuckoo_embed_floats { table: *args, tokens: numbers, out: out.address(), count, first_row };
                    let kernel = match quant {
                        Quant::F32 => c"cuckoo_embed_f32",
                        Quant::F16 => c"cuckoo_embed_f16",
                        Quant::FP8 => c"cuckoo_embed_fp8",
                        _ => c"cuckoo_embed_bf16",
                    };
                    // SAFETY: as above.
                    unsafe { self.launch(kernel, [tokens.len(), 1, 1], (THREADS, 0), &args)? }
                }
            }
        }
        Ok(())
    }

    fn norm(&mut self, x: &Buffer<M>, weight: &Vector<M>, epsilon: f32, out: &mut Buffer<M>) -> Result<(), OpsError> {
        assert!(x.cols == weight.len && out.cols == x.cols, "a factor for each column");
        out.begin(x.rows);
        let args = cuckoo_norm { x: x.address(), out: out.address(), epsilon, ..norm(weight, x) };
        if x.cols > SHARED_COLS {
            return self.norm_by_warps(&args);
        }
        let args = cuckoo_norm { rounded: self.leave_rounded(args.weight, out)?, ..args };
        let threads = x.cols.div_ceil(COLS_EACH).next_multiple_of(WARP).min(THREADS);
        // SAFETY: both have so many rows in use, and shared memory holds one of them.
        unsafe { self.launch(c"cuckoo_norm_rows", [x.rows, 1, 1], (threads, (x.cols + 1) * size_of::<f32>()), &args) }
    }

    fn linear(&mut self, x: &Buffer<M>, w: &Matrix<M>, out: &mut Buffer<M>) -> Result<(), OpsError> {
        self.product(&Product { x, w, planes: 1, add: false }, out)
    }

    fn linear_fine(&mut self, x: &Buffer<M>, w: &Matrix<M>, out: &mut Buffer<M>) -> Result<(), OpsError> {
        self.product(&Product { x, w, planes: 2, add: false }, out)
    }

    fn linear_add(&mut self, x: &Buffer<M>, w: &Matrix<M>, out: &mut Buffer<M>) -> Result<(), OpsError> {
        self.product(&Product { x, w, planes: 1, add: true }, out)
    }

    fn lora_add(
        &mut self,
        x: &Buffer<M>,
        adapted: &[Adapted<'_, LowRank<M>>],
        out: &mut Buffer<M>,
    ) -> Result<(), OpsError> {
        check_rows(adapted, (x.rows, out.rows));
        adapted.iter().try_for_each(|adapted| self.adapt(x, adapted, out))
    }

    fn add_bias(&mut self, bias: &Vector<M>, x: &mut Buffer<M>) -> Result<(), OpsError> {
        assert_eq!(x.cols, bias.len, "a bias for each column");
        self.elementwise(c"cuckoo_add_bias", &cuckoo_elementwise { y: bias.memory.address(), ..elementwise(x) })
    }

    fn add_scaled(&mut self, x: &Buffer<M>, scale: f32, out: &mut Buffer<M>) -> Result<(), OpsError> {
        assert!(x.cols == out.cols && x.rows == out.rows, "rows are added to their like");
        self.elementwise(c"cuckoo_add_scaled", &cuckoo_elementwise { x: x.address(), a: scale, ..elementwise(out) })
    }

    fn scale(&mut self, factor: f32, softcap: Option<f32>, x: &mut Buffer<M>) -> Result<(), OpsError> {
        let (kind, b) = (u32::from(softcap.is_some()), softcap.unwrap_or(0.0));
        self.elementwise(c"cuckoo_scale", &cuckoo_elementwise { kind, a: factor, b, ..elementwise(x) })
    }

    fn norm_heads(
        &mut self,
        weight: &Vector<M>,
        epsilon: f32,
        heads: Range<usize>,
        x: &mut Buffer<M>,
    ) -> Result<(), OpsError> {
        assert!(heads.end * weight.len <= x.cols, "heads lie within a row");
        let (count, first_head) = (heads.len() as u32, heads.start as u32);
        let args = cuckoo_norm { heads: count, first_head, epsilon, ..norm(weight, x) };
        let at = x.written();
        self.norm_by_warps(&cuckoo_norm { x: at, out: at, ..args })
    }

    fn layer_norm(
        &mut self,
        x: &Buffer<M>,
        weight: &Vector<M>,
        bias: &Vector<M>,
        epsilon: f32,
        out: &mut Buffer<M>,
    ) -> Result<(), OpsError> {
        assert!(x.cols == weight.len && x.cols == bias.len && x.cols == out.cols, "a factor for each column");
        out.begin(x.rows);
        let args = cuckoo_layer_norm {
            x: x.address(),
            weight: weight.memory.address(),
            bias: bias.memory.address(),
            out: out.address(),
            rows: x.rows as u32,
            cols: x.cols as u32,
            epsilon,
            padding: 0,
        };
        // SAFETY: all are as long as was asserted.
        unsafe { self.launch(c"cuckoo_layer_norm_rows", [x.rows.div_ceil(THREADS / WARP), 1, 1], (THREADS, 0), &args) }
    }

    fn rope_store(
        &mut self,
        table: Option<&RopeTable<M>>,
        step: &StepLayout<'_>,
        heads: Heads,
        qkv: &mut Buffer<M>,
        cache: &mut KvCache<M>,
        layer: usize,
    ) -> Result<(), OpsError> {
        self.store(table, (step, heads), qkv, (cache, layer))
    }

    fn attention(
        &mut self,
        step: &StepLayout<'_>,
        heads: Heads,
        mask: Mask,
        sinks: Option<&Vector<M>>,
        qkv: &Buffer<M>,
        cache: &KvCache<M>,
        layer: usize,
        out: &mut Buffer<M>,
    ) -> Result<(), OpsError> {
        self.attend(step, (heads, mask, sinks), qkv, (cache, layer), out)
    }

    fn gate(&mut self, of: Activation, gate_up: &Buffer<M>, out: &mut Buffer<M>) -> Result<(), OpsError> {
        assert_eq!(gate_up.cols, 2 * out.cols, "a row is a gate and as many values");
        out.begin(gate_up.rows);
        let (kind, a, b) = activation(of);
        let args = cuckoo_elementwise { x: gate_up.address(), kind, a, b, ..elementwise(out) };
        let rounded = self.leave_rounded(args.out, out)?;
        self.activation(c"cuckoo_gate", &cuckoo_elementwise { rounded, ..args })
    }

    fn activate(&mut self, of: Activation, x: &mut Buffer<M>) -> Result<(), OpsError> {
        let (kind, a, b) = activation(of);
        let args = cuckoo_elementwise { kind, a, b, ..elementwise(x) };
        let rounded = self.leave_rounded(args.out, x)?;
        self.activation(c"cuckoo_activate", &cuckoo_elementwise { rounded, ..args })
    }

    fn zero(&mut self, rows: usize, out: &mut Buffer<M>) -> Result<(), OpsError> {
        out.begin(rows);
        self.machine.zero(&mut out.memory, rows * out.cols * size_of::<f32>())
    }

    fn route(&mut self, logits: &Buffer<M>, routing: &Routing) -> Result<Vec<Vec<Routed>>, OpsError> {
        self.choose(logits, routing)
    }

    fn scatter_add(&mut self, x: &Buffer<M>, to: &[(usize, f32)], out: &mut Buffer<M>) -> Result<(), OpsError> {
        assert!(x.cols == out.cols && x.rows == to.len(), "rows are added to their like");
        assert!(to.iter().all(|(row, _)| *row < out.rows), "every row is there");
        let (numbers, weights): (Vec<u32>, Vec<f32>) = to.iter().map(|(row, weight)| (*row as u32, *weight)).unzip();
        let args = cuckoo_rows {
            x: x.address(),
            out: out.written(),
            numbers: self.scratch.numbers.holding(&mut self.machine, &numbers, "rows")?,
            weights: self.scratch.weights.holding(&mut self.machine, &weights, "weights of rows")?,
            count: to.len() as u32,
            cols: x.cols as u32,
        };
        // SAFETY: numbers are those of rows in use.
        unsafe { self.launch(c"cuckoo_scatter_add", [to.len(), 1, 1], (THREADS, 0), &args) }
    }

    fn gather(&mut self, x: &Buffer<M>, rows: &[usize], out: &mut Buffer<M>) -> Result<(), OpsError> {
        assert!(x.cols == out.cols && rows.iter().all(|row| *row < x.rows), "every row is there");
        out.begin(rows.len());
        let numbers: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let args = cuckoo_rows {
            x: x.address(),
            out: out.address(),
            numbers: self.scratch.numbers.holding(&mut self.machine, &numbers, "rows")?,
            count: rows.len() as u32,
            cols: x.cols as u32,
            ..Default::default()
        };
        // SAFETY: numbers are those of rows in use.
        unsafe { self.launch(c"cuckoo_gather", [rows.len(), 1, 1], (THREADS, 0), &args) }
    }

    fn mean_rows(&mut self, x: &Buffer<M>, spans: &[Range<usize>], out: &mut Buffer<M>) -> Result<(), OpsError> {
        assert!(x.cols == out.cols && spans.iter().all(|s| !s.is_empty() && s.end <= x.rows), "every row is there");
        out.begin(spans.len());
        let ranges: Vec<[u32; 2]> = spans.iter().map(|span| [span.start as u32, span.end as u32]).collect();
        let args = cuckoo_rows {
            x: x.address(),
            out: out.address(),
            numbers: self.scratch.numbers.holding(&mut self.machine, &ranges, "ranges of rows")?,
            count: spans.len() as u32,
            cols: x.cols as u32,
            ..Default::default()
        };
        // SAFETY: ranges are of rows in use.
        unsafe { self.launch(c"cuckoo_mean_rows", [spans.len(), 1, 1], (THREADS, 0), &args) }
    }

    fn normalize(&mut self, x: &mut Buffer<M>) -> Result<(), OpsError> {
        let args =
            cuckoo_norm { out: x.written(), rows: x.rows as u32, cols: x.cols as u32, heads: 1, ..Default::default() };
        // SAFETY: rows in use.
        unsafe { self.launch(c"cuckoo_normalize_rows", [x.rows.div_ceil(THREADS / WARP), 1, 1], (THREADS, 0), &args) }
    }

    fn read(&mut self, x: &Buffer<M>) -> Result<Vec<f32>, OpsError> {
        self.values_of(x)
    }

    fn sample(&mut self, logits: &Buffer<M>, requests: &[SampleRequest<'_>]) -> Result<Vec<Sampled>, OpsError> {
        self.draw(logits, requests)
    }

    fn logprobs(&mut self, logits: &Buffer<M>, requests: &[LogprobRequest]) -> Result<Vec<Logprobs>, OpsError> {
        self.rank(logits, requests)
    }
}
