//! Weights as the kernels want them (`cuda/weights.cuh`). Values stay as in the file: integers in 4 or 8 bits, scales as they are.

use bytemuck::cast_slice;

use super::args::{cuckoo_floats, cuckoo_integers};
use super::machine::{Machine, Piece};
use super::operations::WARP;
use crate::cpu::check_source;
use crate::ops::{ACTIVATION_BLOCK, MatrixSource, OpsError, SEGMENT_BLOCKS};
use crate::quant::{IntBlock, IntFormat, Quant, int_blocks, small_scales, super_scales};

/// Rows of a tile, which lie together.
const TILE_ROWS: usize = 16;
/// Most rows of a part: a tile for each block that a grid may have in its second direction.
const ROWS_MAX: usize = 65_535 * TILE_ROWS;

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
    pub(super) halves: bool,
    minimums: bool,
    /// The product with a few rows of activations.
    pub(super) linear: &'static std::ffi::CStr,
    /// The product with some more.
    pub(super) gemm: &'static std::ffi::CStr,
    /// The product with so many that the largest tiles keep a device busy.
    pub(super) gemm_wide: &'static std::ffi::CStr,
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
            gemm: kind!(@ concat!("cuckoo_gemm_", $bits, "_", $name, "_", $halves, "_", $minimums, "\0")),
            gemm_wide: kind!(@ concat!("cuckoo_gemm_wide_", $bits, "_", $name, "_", $halves, "_", $minimums, "\0")),
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
        let [smallest, largest] = [format.smallest, format.largest].map(|q| i32::from(q) - format.offset);
        // Nibbles have a sign where the format has no minimums.
        let (lowest, highest) = if format.minimums { (0, 15) } else { (-8, 7) };
        let bits = if smallest >= lowest && largest <= highest { 4 } else { 8 };
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

    /// Bytes of what a lane holds of a step of a tile.
    fn lane_bytes(&self) -> usize {
        self.bits * 2
    }

    /// Bytes of a step of a tile.
    fn step_codes(&self) -> usize {
        WARP * self.lane_bytes()
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

/// Segments of a row.
pub(super) fn segments(cols: usize) -> usize {
    cols.div_ceil(SEGMENT_BLOCKS * ACTIVATION_BLOCK)
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
            if part.rows > ROWS_MAX {
                let why = format!("the CUDA kernels take at most {ROWS_MAX} rows");
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
    let packed = M::HOLDS.then(|| Packed::of(kind, part, format.offset));
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

/// The three planes of a part: see `cuda/weights.cuh`.
struct Packed {
    codes: Vec<u8>,
    scales: Vec<u8>,
    supers: Vec<u16>,
}

impl Packed {
    /// How long each plane is.
    fn bytes(kind: &Kind, part: &MatrixSource<'_>) -> [usize; 3] {
        let tile_segments = part.rows.div_ceil(TILE_ROWS).saturating_mul(segments(part.cols));
        let steps = tile_segments.saturating_mul(SEGMENT_BLOCKS);
        let supers = if kind.scales == Scales::Super { TILE_ROWS * 2 * size_of::<u16>() } else { 0 };
        let scales = TILE_ROWS * kind.scale_bytes();
        [steps.saturating_mul(kind.step_codes()), steps.saturating_mul(scales), tile_segments.saturating_mul(supers)]
    }

    fn of(kind: &Kind, part: &MatrixSource<'_>, offset: i32) -> Self {
        let (per_row, row_bytes) = (segments(part.cols), part.quant.row_bytes(part.cols));
        let [codes, scales, supers] = Self::bytes(kind, part);
        let mut packed =
            Self { codes: vec![0; codes], scales: vec![0; scales], supers: vec![0; supers / size_of::<u16>()] };
        let mut blocks = vec![IntBlock::default(); part.cols / ACTIVATION_BLOCK];
        for (row, bytes) in part.data.chunks_exact(row_bytes).enumerate() {
            let first_segment = row / TILE_ROWS * per_row;
            int_blocks(part.quant, bytes, &mut blocks);
            for (at, block) in blocks.iter().enumerate() {
                packed.put(kind, (first_segment * SEGMENT_BLOCKS + at, row % TILE_ROWS), block, offset);
            }
            if kind.scales == Scales::Super {
                packed.put_superblocks(kind, part.quant, (first_segment, row % TILE_ROWS), bytes);
            }
        }
        packed
    }

    /// A block's integers, and its scales where they stand by themselves. `row` is that in the step's tile.
    fn put(&mut self, kind: &Kind, (step, row): (usize, usize), block: &IntBlock, offset: i32) {
        let codes = &mut self.codes[step * kind.step_codes()..][..kind.step_codes()];
        // A lane has words of four columns, of this row and of that 8 rows on.
        for t in 0..4 {
            let lane = &mut codes[(row % 8 * 4 + t) * kind.lane_bytes()..][..kind.lane_bytes()];
            for c in 0..4 {
                let [first, last] =
                    [block.q[4 * t + c], block.q[16 + 4 * t + c]].map(|q| (i32::from(q) - offset) as u8);
                let word = row / 8 * 4 + c;
                if kind.bits == 4 {
                    lane[word] = (first & 15) | last << 4;
                } else {
                    (lane[word], lane[8 + word]) = (first, last);
                }
            }
        }
        let values = if kind.minimums { vec![block.scale[0], block.minimum[0]] } else { vec![block.scale[0]] };
        let to = self.scales_of(kind, step, row);
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

    /// Where the scales of a block are: those of rows 8 apart lie together.
    fn scales_of(&mut self, kind: &Kind, step: usize, row: usize) -> &mut [u8] {
        let place = step * TILE_ROWS + in_pairs(row);
        &mut self.scales[place * kind.scale_bytes()..][..kind.scale_bytes()]
    }

    /// Scales of a row of superblocks, each of which is a segment.
    fn put_superblocks(&mut self, kind: &Kind, quant: Quant, (first, row): (usize, usize), bytes: &[u8]) {
        for (segment, bytes) in bytes.chunks_exact(quant.block_bytes()).enumerate() {
            let place = (first + segment) * TILE_ROWS + in_pairs(row);
            self.supers[place * 2..][..2].copy_from_slice(&super_scales(quant, bytes));
            for step in 0..SEGMENT_BLOCKS {
                let small = small_scales(quant, bytes, step);
                let to = self.scales_of(kind, (first + segment) * SEGMENT_BLOCKS + step, row);
                let groups = if kind.halves { 2 } else { 1 };
                for (to, scale) in to.iter_mut().zip(&small.scale[..groups]) {
                    *to = *scale as u8 ^ 0x80; // 128 above what it is
                }
                for (to, minimum) in to.iter_mut().skip(groups).zip(&small.minimum[..groups]) {
                    *to = *minimum;
                }
            }
        }
    }
}

/// The place of a row in its tile where rows 8 apart lie together.
fn in_pairs(row: usize) -> usize {
    row % 8 * 2 + row / 8
}
