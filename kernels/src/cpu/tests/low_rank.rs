use super::*;
use crate::low_rank::{Adapted, LowRankSource};

/// The matrices of one adapter for one product.
struct Owned(Vec<(usize, OwnedMatrix, OwnedMatrix, f32)>);

impl Owned {
    /// Parts of `(first column, outputs)`, of different ranks from `rank` on.
    fn new(random: &mut Random, quant: Quant, inputs: usize, parts: &[(usize, usize)], rank: usize) -> Self {
        let part = |(i, &(first, outputs)): (usize, &(usize, usize))| {
            let (a, b) = (random.matrix(quant, rank + i, inputs), random.matrix(quant, outputs, rank + i));
            (first, a, b, 2.0 / (rank + i) as f32)
        };
        Self(parts.iter().enumerate().map(part).collect())
    }

    fn load<O: Ops>(&self, ops: &mut O) -> O::LowRank {
        let parts = self.0.iter().map(|(first_col, a, b, scale)| LowRankSource {
            first_col: *first_col,
            a: a.source(),
            b: b.source(),
            scale: *scale,
        });
        ops.low_rank(&parts.collect::<Vec<_>>()).unwrap()
    }
}

/// `out` after the adapters of `rows` were added to it.
fn added<O: Ops>(
    ops: &mut O,
    x: &[f32],
    out: &[f32],
    cols: (usize, usize),
    rows: &[(Range<usize>, &Owned)],
) -> Vec<f32> {
    let (x, mut out) = (upload(ops, x, cols.0), upload(ops, out, cols.1));
    let loaded: Vec<O::LowRank> = rows.iter().map(|(_, owned)| owned.load(ops)).collect();
    let adapted: Vec<_> = rows.iter().zip(&loaded).map(|((rows, _), by)| Adapted { rows: rows.clone(), by }).collect();
    ops.lora_add(&x, &adapted, &mut out).unwrap();
    ops.read(&out).unwrap()
}

#[test]
fn adapters_of_all_formats_ranks_and_ragged_shapes() {
    let mut random = Random(60);
    for quant in [Quant::F32, Quant::F16, Quant::BF16] {
        for (inputs, rank) in [(32, 1), (96, 3), (576, 8), (160, 16), (64, 17), (1536, 64)] {
            // One that changes parts of the columns, and one that changes all of them.
            let some = Owned::new(&mut random, quant, inputs, &[(0, 19), (32, 64)], rank);
            let all = Owned::new(&mut random, quant, inputs, &[(0, 128)], rank);
            for rows in [1, 2, 7, 40] {
                let (x, out) = (random.values(rows * inputs), random.values(rows * 128));
                let half = rows / 2;
                agree!(1e-12, ops => added(ops, &x, &out, (inputs, 128), &[(0..half, &some), (half..rows, &all)]));
            }
        }
    }
}

#[test]
fn rows_do_not_depend_on_each_other_and_others_are_left_alone() {
    let mut random = Random(61);
    let adapters: Vec<Owned> =
        [5, 16, 33].map(|rank| Owned::new(&mut random, Quant::F16, 96, &[(16, 48), (64, 40)], rank)).into();
    let (x, out) = (random.values(41 * 96), random.values(41 * 128));
    let uses = [(2..3, &adapters[0]), (3..20, &adapters[1]), (25..26, &adapters[0]), (30..41, &adapters[2])];
    for mut ops in backends() {
        let all = added(&mut ops, &x, &out, (96, 128), &uses);
        for row in 0..41 {
            let (x, out, got) = (&x[row * 96..][..96], &out[row * 128..][..128], &all[row * 128..][..128]);
            let own = uses.iter().find(|(rows, _)| rows.contains(&row));
            let alone = match own {
                Some((_, adapter)) => added(&mut ops, x, out, (96, 128), &[(0..1, *adapter)]),
                None => out.to_vec(),
            };
            assert_eq!(bits(&alone), bits(got), "row {row}, {}", ops.describe());
            let untouched = |col: &usize| !(16..64).contains(col) && !(64..104).contains(col);
            assert!((0..128).filter(untouched).all(|col| got[col].to_bits() == out[col].to_bits()), "row {row}");
        }
    }
}

#[test]
fn adapters_that_contradict_themselves_are_refused() {
    let mut random = Random(62);
    let (a, b) = (random.matrix(Quant::F32, 4, 32), random.matrix(Quant::F32, 8, 4));
    let part = LowRankSource { first_col: 0, a: a.source(), b: b.source(), scale: 1.0 };
    let (other, quantized) = (random.matrix(Quant::F32, 8, 5), random.matrix(Quant::Q8_0, 4, 32));
    let wide = random.matrix(Quant::F32, 4, 64);
    let short = MatrixSource { data: &a.data[..100], ..a.source() };
    let bad = [
        vec![],
        vec![LowRankSource { b: other.source(), ..part }],
        vec![LowRankSource { a: quantized.source(), ..part }],
        vec![LowRankSource { a: short, ..part }],
        vec![LowRankSource { scale: f32::NAN, ..part }],
        vec![part, LowRankSource { first_col: 7, ..part }],
        vec![part, LowRankSource { first_col: 8, a: wide.source(), ..part }],
        vec![LowRankSource { a: MatrixSource { rows: usize::MAX, ..a.source() }, ..part }],
    ];
    for parts in bad {
        assert!(Cpu::new(1).low_rank(&parts).is_err(), "{parts:?}");
        assert!(Exact::new().low_rank(&parts).is_err(), "{parts:?}");
    }
    assert!(Cpu::new(1).low_rank(&[part, LowRankSource { first_col: 8, ..part }]).is_ok());
}
