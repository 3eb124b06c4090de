//! Draws and log-probabilities of the kernels against those of the host, over random requests.

use super::*;
pub(super) use crate::cpu::tests::Random;
use crate::memory::Memory;
use crate::ops::{Ops, OpsError};
use crate::sampling::{
    self, Dry, LogprobRequest, Logprobs, SampleRequest, Sampled, SamplingParams, TokenHistory, TokenMask,
};
use bytemuck::cast_slice;

/// What requests are made of.
impl Random {
    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// From 0 to 1.
    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// From 0 to 1, or one of these.
    fn unit_or(&mut self, of: &[f32]) -> f32 {
        if self.one_in(2) { self.unit() } else { self.pick(of) }
    }

    /// As many as that at most.
    fn tokens(&mut self, most: usize, cols: usize) -> Vec<u32> {
        let count = self.below(most + 1);
        // A few do not exist.
        (0..count).map(|_| self.below(cols + 2) as u32).collect()
    }

    /// Logits of one of several kinds.
    pub(super) fn row(&mut self, kind: usize, cols: usize) -> Vec<f32> {
        let spread = self.pick(&[0.5, 3.0, 8.0]);
        let value = |r: &mut Self| ((0..4).map(|_| r.unit()).sum::<f32>() - 2.0) * 2.0 * spread;
        (0..cols)
            .map(|_| match kind {
                0 => value(self),
                // Many are equal.
                1 => (value(self) * 2.0).round() / 2.0,
                2 if !self.one_in(4) => f32::NEG_INFINITY,
                2 => value(self),
                3 => self.pick(&[0.0, -0.0]),
                // One stands out, and others are as far as can be.
                4 => self.unit_or(&[-3e38, 3e38, 40.0, -1e-40]),
                _ => 1e6 + value(self).round(),
            })
            .collect()
    }

    fn params(&mut self, cols: usize) -> SamplingParams {
        let mut p = SamplingParams { temperature: 0.2 + 1.5 * self.unit(), ..Default::default() };
        if self.one_in(5) {
            p.temperature = self.pick(&[0.0, f32::NAN, -1.0, f32::MIN_POSITIVE, 1e-45, 1e-6, 2.0, 1e38]);
        }
        if self.one_in(3) {
            p.top_k = 1 + self.below(cols + 3) as u32;
        }
        if self.one_in(2) {
            p.top_p = self.unit_or(&[0.0, 0.5, 0.9, 0.999_999_94, -1.0, f32::NAN]);
        }
        if self.one_in(3) {
            p.min_p = self.unit_or(&[0.05, 1.0, 1.5, 1e-30]);
        }
        if self.one_in(4) {
            p.xtc_probability = self.pick(&[1.0, 0.5]);
            p.xtc_threshold = self.unit_or(&[0.0, 0.1, 0.2, f32::NAN, 9.0]);
        }
        if self.one_in(12) {
            p.typical_p = self.unit();
        }
        if self.one_in(3) {
            self.penalties(&mut p);
        }
        if self.one_in(4) {
            let bias = |r: &mut Self| r.unit_or(&[f32::NEG_INFINITY, -1.5, 0.1, 1e-3]);
            p.logit_bias = self.tokens(9, cols.min(12)).into_iter().map(|token| (token, bias(self))).collect();
        }
        if self.one_in(6) {
            p.allowed_tokens = self.tokens(20, cols);
        }
        if self.one_in(4) {
            p.bad_words = (0..self.below(6)).map(|_| self.tokens(2, cols.min(6))).collect();
        }
        p
    }

    fn penalties(&mut self, p: &mut SamplingParams) {
        p.repetition_penalty = self.pick(&[1.0, 1.3, 0.5, f32::MIN_POSITIVE]);
        p.presence_penalty = self.pick(&[0.0, 0.7, -0.3]);
        p.frequency_penalty = self.pick(&[0.0, 0.1, -0.4]);
        if self.one_in(2) {
            let (multiplier, base) = (self.unit() * 3.0, 1.0 + self.unit());
            p.dry = Some(Dry { multiplier, base, allowed_length: 1, last_n: 50, breakers: vec![3] });
        }
    }
}

/// What a request refers to.
struct Asked {
    row: usize,
    params: SamplingParams,
    history: TokenHistory,
    forbidden: Vec<u32>,
    mask: Option<TokenMask>,
    seed: u64,
    position: u64,
}

impl Asked {
    fn new(random: &mut Random, rows: usize, cols: usize) -> Self {
        let mut history = TokenHistory::default();
        history.push_prompt(&random.tokens(10, cols.min(8)));
        random.tokens(10, cols.min(8)).iter().for_each(|t| history.push_output(*t));
        let words = |r: &mut Random| (0..r.below(cols / 32 + 3)).map(|_| r.bits() as u32).collect();
        Self {
            row: random.below(rows),
            params: random.params(cols),
            history,
            forbidden: if random.one_in(4) { random.tokens(5, cols) } else { vec![] },
            mask: random.one_in(4).then(|| TokenMask::from_words(words(random))),
            seed: random.bits(),
            position: random.bits() >> random.below(60),
        }
    }

    fn request(&self) -> SampleRequest<'_> {
        SampleRequest {
            row: self.row,
            params: &self.params,
            seed: self.seed,
            position: self.position,
            history: &self.history,
            forbidden: &self.forbidden,
            allowed: self.mask.as_ref(),
        }
    }
}

pub(super) fn orders() -> Vec<Cuda<Emulator>> {
    [0, 1, 7].into_iter().filter_map(|order| Emulator::new(order, 2)).map(Cuda::new).collect()
}

pub(super) fn upload(ops: &mut Cuda<Emulator>, rows: &[Vec<f32>]) -> Buffer<Emulator> {
    let mut buffer = ops.buffer(rows.len(), rows[0].len()).unwrap();
    ops.machine.write(&mut buffer.memory, 0, cast_slice(&rows.concat())).unwrap();
    buffer.begin(rows.len());
    buffer
}

fn told<T>(result: Result<T, OpsError>) -> Result<T, String> {
    result.map_err(|why| why.to_string())
}

/// Draws of the device are those of the host; the logits are as they were; tokens stay on the device.
fn agree(rows: &[Vec<f32>], asked: &[Asked]) {
    let expected: Vec<Result<Sampled, String>> =
        asked.iter().map(|a| told(sampling::draw(&rows[a.row], &a.request()))).collect();
    for mut ops in orders() {
        let logits = upload(&mut ops, rows);
        // Those that are faults, one by one; the others all together.
        let (sound, faults): (Vec<usize>, Vec<usize>) = (0..asked.len()).partition(|i| expected[*i].is_ok());
        for i in faults {
            let got = told(ops.sample(&logits, &[asked[i].request()])).map(|drawn| drawn[0]);
            assert_eq!(got, expected[i], "{}: {:?}", ops.describe(), asked[i].request());
        }
        let requests: Vec<SampleRequest<'_>> = sound.iter().map(|i| asked[*i].request()).collect();
        let drawn = ops.sample(&logits, &requests).unwrap();
        for ((got, i), request) in drawn.iter().zip(&sound).zip(&requests) {
            assert_eq!(Ok(*got), expected[*i], "{}: {request:?}", ops.describe());
        }
        let mut kept = vec![0u32; drawn.len()];
        ops.scratch.drawn.read(&mut ops.machine, 0, bytemuck::cast_slice_mut(&mut kept)).unwrap();
        assert_eq!(kept, drawn.iter().map(|s| s.token).collect::<Vec<_>>());
        let after = ops.read(&logits).unwrap();
        assert_eq!(cast_slice::<f32, u8>(&after), cast_slice::<f32, u8>(&rows.concat()), "logits are not changed");
    }
}

#[test]
fn draws_are_those_of_the_host() {
    let mut random = Random(1);
    for (cols, count) in [(1, 60), (2, 60), (31, 400), (33, 400), (257, 300), (1000, 300)] {
        let mut rows: Vec<Vec<f32>> = (0..12).map(|kind| random.row(kind % 6, cols)).collect();
        // One with a fault, and one in which nothing is allowed.
        rows[11][cols / 2] = f32::NAN;
        rows[10].fill(f32::NEG_INFINITY);
        rows[9][cols - 1] = f32::INFINITY;
        let asked: Vec<Asked> = (0..count).map(|_| Asked::new(&mut random, rows.len(), cols)).collect();
        agree(&rows, &asked);
    }
}

#[test]
fn draws_from_a_whole_vocabulary_are_those_of_the_host() {
    let mut random = Random(2);
    let rows: Vec<Vec<f32>> = [0, 1, 3, 5].map(|kind| random.row(kind, 49_152)).into();
    let asked: Vec<Asked> = (0..16)
        .map(|i| {
            let mut asked = Asked::new(&mut random, rows.len(), 49_152);
            asked.row = i % rows.len();
            // Every filter on every kind of row.
            asked.params.top_k = [0, 5000, 40, 0][i / 4];
            asked.params.top_p = [0.9, 0.8, 1.0, 1.0][i / 4];
            asked
        })
        .collect();
    agree(&rows, &asked);
}

/// The greedy draw's tie rule and every place that a highest logit may have.
#[test]
fn the_highest_logit_is_found_wherever_it_is() {
    let (cols, history) = (300, TokenHistory::default());
    let greedy = SamplingParams { temperature: 0.0, ..Default::default() };
    let Some(emulator) = Emulator::new(0, 2) else { return };
    let mut ops = Cuda::new(emulator);
    let rows: Vec<Vec<f32>> =
        (0..cols).map(|at| (0..cols).map(|i| if i == at || i == 299 { 0.5 } else { -1.0 }).collect()).collect();
    let logits = upload(&mut ops, &rows);
    let requests: Vec<_> =
        (0..cols).map(|row| SampleRequest { row, ..SampleRequest::new(&greedy, &history) }).collect();
    let drawn = ops.sample(&logits, &requests).unwrap();
    assert!(drawn.iter().zip(0..).all(|(drawn, at)| drawn.token == at), "{drawn:?}");
}

#[test]
fn probabilities_are_those_of_the_host() {
    let mut random = Random(3);
    for (cols, count) in [(1, 10), (31, 60), (33, 60), (1000, 60), (4127, 12)] {
        let mut rows: Vec<Vec<f32>> = (0..9).map(|kind| random.row(kind % 6, cols)).collect();
        rows[8][cols / 2] = f32::NAN;
        rows[7].fill(f32::NEG_INFINITY);
        let requests: Vec<LogprobRequest> = (0..count)
            .map(|_| LogprobRequest {
                row: random.below(rows.len()),
                token: random.below(cols) as u32,
                top: random.pick(&[0, 1, 5, 20, 3000]),
            })
            .collect();
        let expected: Vec<Result<Logprobs, String>> =
            requests.iter().map(|r| told(sampling::logprobs(&rows[r.row], r))).collect();
        for mut ops in orders() {
            let logits = upload(&mut ops, &rows);
            for (r, expected) in requests.iter().zip(&expected).filter(|(_, expected)| expected.is_err()) {
                assert_eq!(&told(ops.logprobs(&logits, &[*r])).map(|found| found[0].clone()), expected, "{r:?}");
            }
            let (sound, expected): (Vec<LogprobRequest>, Vec<&Logprobs>) =
                requests.iter().zip(&expected).filter_map(|(r, expected)| Some((*r, expected.as_ref().ok()?))).unzip();
            let found = ops.logprobs(&logits, &sound).unwrap();
            for ((got, expected), r) in found.iter().zip(expected).zip(&sound) {
                let bits = |l: &Logprobs| {
                    (l.logprob.to_bits(), l.rank, l.top.iter().map(|t| (t.0, t.1.to_bits())).collect::<Vec<_>>())
                };
                assert_eq!(bits(got), bits(expected), "{}: {r:?}", ops.describe());
            }
        }
    }
}

#[test]
fn exponentials_and_logarithms_are_musls() {
    let mut random = Random(4);
    let mut values: Vec<f64> = (0..200_000)
        .map(|i| match i % 5 {
            // What noise and probabilities ask for, and then whatever there is.
            0 => (f64::from(random.bits() as u32) + 0.5) / 4_294_967_296.0,
            1 => f64::from(random.unit()) * -80.0,
            2 => f64::from(random.unit()) * 1500.0 - 750.0,
            3 => f64::from(random.unit() - 0.5),
            _ => f64::from_bits(random.bits()),
        })
        .collect();
    values.extend([
        0.0,
        -0.0,
        1.0,
        -1.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        5e-324,
        0.5,
        -745.0,
        -708.5,
        709.7,
    ]);
    let (exps, logs) = Emulator::libm(&values);
    for ((x, exp), log) in values.iter().zip(&exps).zip(&logs) {
        let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        assert!(same(*exp, libm::exp(*x)), "exp({x:e}) is {exp:e}");
        assert!(same(*log, libm::log(*x)), "log({x:e}) is {log:e}");
    }
}
