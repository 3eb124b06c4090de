//! Weights as the kernels want them (`cuda/weights.cuh`). Values stay as in the file: integers in 4 or 8 bits, scales as they are.

use bytemuck::cast_slice;

use super::args::{cuckoo_floats, cuckoo_integers};
use super::machine::{Machine, Piece};
use crate::cpu::check_source;
use crate::ops::{ACTIVATION_BLOCK, MatrixSource, OpsError, SEGMENT_BLOCKS};
use crate::quant::{IntBlock, IntFormat, Quant, int_blocks, small_scales, super_scales};

/// Items that lie together: the lanes of a warp.
const LANES: usize = 32;
/// Bytes of a lane's load.
const PIECE: usize = 16;
/// Threads of a block; it has work for all of them.
pub(super) const LINEAR_THREADS: usize = 256;
/// Most bytes that a block's threads share without asking for more than every GPU gives.
const SHARED_BYTES: usize = 48 << 10;

/// Matrices stacked by rows.
pub struct Matrix<M: Machine> {
    pub(super) parts: Vec<Part<M>>,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// Rows of one format.
pub(super) struct Part<M: Machine> {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) weights: Weights<M>,
}

pub(super) enum Weights<M: Machine> {
    Integers { kind: &'static Kind, args: cuckoo_integers, _memory: [M::Memory; 3] },
    Floats { quant: Quant, args: cuckoo_floats, _memory: M::Memory },
}

/// How the scales of a block are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scales {
    /// Halves.
    Half,
    /// Floats.
    Single,
    /// Small integers, to be multiplied by two halves of the superblock.
    Super,
}

/// A way to store integers, for which there are kernels.
#[derive(Debug)]
pub(super) struct Kind {
    bits: usize,
    scales: Scales,
    halves: bool,
    minimums: bool,
    pub(super) linear: &'static std::ffi::CStr,
    pub(super) embed: &'static std::ffi::CStr,
}

macro_rules! kind {
    ($bits:literal, $scales:ident, $name:literal, $halves:literal, $minimums:literal) => {
        Kind {
            bits: $bits,
            scales: Scales::$scales,
            halves: $halves == 1,
            minimums: $minimums == 1,
            linear: kind!(@ concat!("cuckoo_linear_", $bits, "_", $name, "_", $halves, "_", $minimums, "\0")),
            embed: kind!(@ concat!("cuckoo_embed_", $bits, "_", $name, "_", $halves, "_", $minimums, "\0")),
        }
    };
    (@ $name:expr) => {
        match std::ffi::CStr::from_bytes_with_nul($name.as_bytes()) {
            Ok(name) => name,
            Err(_) => panic!("a name ends with its only zero"),
        }
    };
}

/// As `CUCKOO_FORMATS` of `cuda/weights.cuh`.
pub(super) static KINDS: [Kind; 12] = [
    kind!(4, Half, "half", 0, 0),
    kind!(4, Half, "half", 0, 1),
    kind!(8, Half, "half", 0, 0),
    kind!(8, Half, "half", 0, 1),
    kind!(8, Single, "single", 0, 0),
    kind!(4, Single, "single", 0, 1),
    kind!(4, Super, "super", 1, 1),
    kind!(4, Super, "super", 1, 0),
    kind!(4, Super, "super", 0, 1),
    kind!(8, Super, "super", 0, 1),
    kind!(8, Super, "super", 1, 0),
    kind!(8, Super, "super", 0, 0),
];

impl Kind {
    fn of(quant: Quant, format: IntFormat) -> &'static Self {
        let bits = if format.smallest >= 0 && format.largest < 16 { 4 } else { 8 };
        let scales = match quant {
            Quant::MXFP4 | Quant::INT4 => Scales::Single,
            _ if quant.block() == ACTIVATION_BLOCK => Scales::Half,
            _ => Scales::Super,
        };
        let wanted = |kind: &&Self| {
            (kind.bits, kind.scales, kind.halves, kind.minimums) == (bits, scales, format.halves, format.minimums)
        };
        KINDS.iter().find(wanted).expect("there are kernels for every format")
    }

    /// Bytes of a block's scales and minimums.
    fn scale_bytes(&self) -> usize {
        let each = match self.scales {
            Scales::Half => 2,
            Scales::Single => 4,
            Scales::Super => 1,
        };
        each << (u32::from(self.halves) + u32::from(self.minimums))
    }
}

/// How a product is shared out among blocks of threads.
pub(super) struct Shares {
    /// Rows of weights for each.
    pub(super) rows: usize,
    /// Rows of activations for each.
    pub(super) tokens: usize,
    /// Bytes that its threads share.
    pub(super) shared_bytes: usize,
}

impl Shares {
    /// Of a product of `tokens` rows with a matrix of `cols` columns.
    pub(super) fn of(cols: usize, tokens: usize) -> Self {
        let rows = tile_rows(cols);
        let items = rows * segments(cols);
        let rows = rows * (LINEAR_THREADS / items).max(1);
        let bytes = |tokens: usize| tokens * rows * segments(cols) * size_of::<f32>();
        let wanted = [8, 4, 2].into_iter().find(|t| *t < 2 * tokens && bytes(*t) <= SHARED_BYTES);
        let tokens = wanted.unwrap_or(1);
        Self { rows, tokens, shared_bytes: bytes(tokens) }
    }
}

fn segments(cols: usize) -> usize {
    cols.div_ceil(SEGMENT_BLOCKS * ACTIVATION_BLOCK)
}

/// The fewest rows whose segments fill whole groups of lanes.
fn tile_rows(cols: usize) -> usize {
    LANES >> segments(cols).trailing_zeros().min(LANES.trailing_zeros())
}

impl<M: Machine> Matrix<M> {
    /// Repacks `parts`, and sends them to the machine.
    pub(super) fn load(machine: &mut M, parts: &[MatrixSource<'_>]) -> Result<Self, OpsError> {
        let (mut rows, cols) = (0, parts.first().map_or(0, |p| p.cols));
        let mut loaded = Vec::with_capacity(parts.len());
        for part in parts {
            if M::HOLDS {
                check_source(part, cols)?;
            }
            if Shares::of(cols, 1).shared_bytes > SHARED_BYTES {
                let why = format!("the CUDA kernels take at most {SHARED_BYTES} bytes of partial sums a block");
                return Err(OpsError::BadMatrix { rows: part.rows, cols, quant: part.quant, why });
            }
            let weights = match part.quant.integers() {
                Some(format) => integers(machine, part, format)?,
                None => {
                    let (args, memory) = floats(machine, part)?;
                    Weights::Floats { quant: part.quant, args, _memory: memory }
                }
            };
            loaded.push(Part { first_row: rows, rows: part.rows, weights });
            rows += part.rows;
        }
        assert!(rows > 0, "a matrix has at least one part");
        Ok(Self { parts: loaded, rows, cols })
    }
}

/// Floating-point rows as they are in the file.
pub(super) fn floats<M: Machine>(
    machine: &mut M,
    part: &MatrixSource<'_>,
) -> Result<(cuckoo_floats, M::Memory), OpsError> {
    let memory = filled(machine, part.rows.saturating_mul(part.quant.row_bytes(part.cols)), || part.data)?;
    Ok((cuckoo_floats { values: memory.address(), rows: part.rows as u32, cols: part.cols as u32 }, memory))
}

fn integers<M: Machine>(machine: &mut M, part: &MatrixSource<'_>, format: IntFormat) -> Result<Weights<M>, OpsError> {
    let kind = Kind::of(part.quant, format);
    let [codes, scales, supers] = Packed::bytes(kind, part);
    let packed = M::HOLDS.then(|| Packed::of(kind, part));
    let plane = |of: fn(&Packed) -> &[u8]| packed.as_ref().map_or(&[][..], of);
    let memory = [
        filled(machine, codes, || plane(|packed| &packed.codes))?,
        filled(machine, scales, || plane(|packed| &packed.scales))?,
        filled(machine, supers, || plane(|packed| cast_slice(&packed.supers)))?,
    ];
    let args = cuckoo_integers {
        codes: memory[0].address(),
        scales: memory[1].address(),
        supers: if kind.scales == Scales::Super { memory[2].address() } else { 0 },
        rows: part.rows as u32,
        cols: part.cols as u32,
        offset: format.offset,
        padding: 0,
    };
    Ok(Weights::Integers { kind, args, _memory: memory })
}

/// Memory of `bytes` bytes that holds `values`, which a machine that only counts is not given.
fn filled<'a, M: Machine>(
    machine: &mut M,
    bytes: usize,
    values: impl FnOnce() -> &'a [u8],
) -> Result<M::Memory, OpsError> {
    let mut memory = machine.allocate(bytes, "a weight matrix")?;
    if M::HOLDS {
        machine.write(&mut memory, 0, values())?;
    }
    Ok(memory)
}

/// The three planes of a part.
struct Packed {
    codes: Vec<u8>,
    scales: Vec<u8>,
    supers: Vec<u16>,
}

impl Packed {
    /// How long each plane is.
    fn bytes(kind: &Kind, part: &MatrixSource<'_>) -> [usize; 3] {
        let rows = part.rows.div_ceil(tile_rows(part.cols)).saturating_mul(tile_rows(part.cols));
        let items = rows.saturating_mul(segments(part.cols));
        let places = items.saturating_mul(SEGMENT_BLOCKS);
        let supers = if kind.scales == Scales::Super { items.saturating_mul(2 * size_of::<u16>()) } else { 0 };
        [places.saturating_mul(kind.bits / 4 * PIECE), places.saturating_mul(kind.scale_bytes()), supers]
    }

    fn of(kind: &Kind, part: &MatrixSource<'_>) -> Self {
        let (per_row, row_bytes) = (segments(part.cols), part.quant.row_bytes(part.cols));
        let [codes, scales, supers] = Self::bytes(kind, part);
        let mut packed =
            Self { codes: vec![0; codes], scales: vec![0; scales], supers: vec![0; supers / size_of::<u16>()] };
        let mut blocks = vec![IntBlock::default(); part.cols / ACTIVATION_BLOCK];
        for (row, bytes) in part.data.chunks_exact(row_bytes).enumerate() {
            int_blocks(part.quant, bytes, &mut blocks);
            for (at, block) in blocks.iter().enumerate() {
                let item = row * per_row + at / SEGMENT_BLOCKS;
                packed.put(kind, (item, at % SEGMENT_BLOCKS), block);
            }
            if kind.scales == Scales::Super {
                packed.put_superblocks(kind, part.quant, (row * per_row, bytes));
            }
        }
        packed
    }

    /// A block's integers, and its scales where they stand by themselves.
    fn put(&mut self, kind: &Kind, (item, step): (usize, usize), block: &IntBlock) {
        let (group, lane) = (item / LANES, item % LANES);
        let pieces = kind.bits / 4;
        for piece in 0..pieces {
            let at = (((group * SEGMENT_BLOCKS + step) * pieces + piece) * LANES + lane) * PIECE;
            for (i, code) in self.codes[at..at + PIECE].iter_mut().enumerate() {
                *code = match pieces {
                    1 => block.q[i] as u8 | (block.q[PIECE + i] as u8) << 4,
                    _ => block.q[piece * PIECE + i] as u8,
                };
            }
        }
        let at = ((group * SEGMENT_BLOCKS + step) * LANES + lane) * kind.scale_bytes();
        let values = if kind.minimums { vec![block.scale[0], block.minimum[0]] } else { vec![block.scale[0]] };
        let to = &mut self.scales[at..at + kind.scale_bytes()];
        match kind.scales {
            // They were halves in the file.
            Scales::Half => {
                let halves: Vec<_> = values.iter().map(|v| half::f16::from_f32(*v).to_bits()).collect();
                to.copy_from_slice(cast_slice(&halves));
            }
            Scales::Single => to.copy_from_slice(cast_slice(&values)),
            Scales::Super => {}
        }
    }

    /// Scales of a row of superblocks, each of which is a segment.
    fn put_superblocks(&mut self, kind: &Kind, quant: Quant, (first_item, row): (usize, &[u8])) {
        for (segment, bytes) in row.chunks_exact(quant.block_bytes()).enumerate() {
            let (group, lane) = ((first_item + segment) / LANES, (first_item + segment) % LANES);
            self.supers[(group * LANES + lane) * 2..][..2].copy_from_slice(&super_scales(quant, bytes));
            for step in 0..SEGMENT_BLOCKS {
                let small = small_scales(quant, bytes, step);
                let at = ((group * SEGMENT_BLOCKS + step) * LANES + lane) * kind.scale_bytes();
                let groups = if kind.halves { 2 } else { 1 };
                let minimums = if kind.minimums { groups } else { 0 };
                for g in 0..groups {
                    self.scales[at + g] = small.scale[g] as u8;
                }
                for g in 0..minimums {
                    self.scales[at + groups + g] = small.minimum[g];
                }
            }
        }
    }
}
