//! What this machine can do at most, measured: bytes read from memory and 8-bit integer multiply-adds, each a second.
//! Benches print their figures as a share of these. Knows no model and no operation.
//!
//! Neither is a data sheet's figure: both run as ordinary code on the given number of threads at once, so they hold what
//! neighbours, hypervisor and clock leave.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// Bytes that each thread streams: more than any cache's share of it.
const STREAM_BYTES: usize = 128 << 20;
/// Rounds of either measurement; the best one counts, because a limit is what was ever reached.
const ROUNDS: usize = 7;
/// Independent sums, so that a multiply-add never waits for the one before it.
const SUMS: usize = 12;
/// Turns of the multiply-add loop in one round: some 10 ms.
const TURNS: usize = 4_000_000;

/// The limits of this machine on some number of threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// How many threads ran.
    pub threads: usize,
    /// Bytes read from memory a second, all threads together.
    pub read_bytes_per_s: f64,
    /// 8-bit multiplications and additions a second, all threads together; a multiply-add counts as two.
    pub int8_ops_per_s: f64,
    /// The instruction that did them.
    pub int8_with: &'static str,
}

impl Limits {
    /// Measures both on `threads` threads; takes about a second.
    pub fn measure(threads: usize) -> Self {
        let (int8_ops_per_s, int8_with) = int8_peak(threads, TURNS);
        Self { threads, read_bytes_per_s: read_bandwidth(threads, STREAM_BYTES), int8_ops_per_s, int8_with }
    }
}

/// Bytes a second that `threads` threads read, each from `bytes` of its own.
pub fn read_bandwidth(threads: usize, bytes: usize) -> f64 {
    let total = threads as f64 * bytes as f64;
    let seconds = together(threads, |thread| {
        // Written, so that every page exists; different, so that nothing can be shared.
        let memory: Vec<u64> = (0..bytes as u64 / 8).map(|i| i ^ thread as u64).collect();
        move || _ = black_box(stream(black_box(&memory)))
    });
    total / seconds
}

/// Reads all of `memory`; the sums are only there so that it cannot be left out.
fn stream(memory: &[u64]) -> u64 {
    let mut sums = [0u64; 16];
    for line in memory.chunks_exact(16) {
        sums.iter_mut().zip(line).for_each(|(sum, word)| *sum ^= word);
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

/// 8-bit operations a second of `threads` threads that do nothing else in `turns` turns, and the instruction used.
pub fn int8_peak(threads: usize, turns: usize) -> (f64, &'static str) {
    let kernel = Kernel::detect();
    let operations = 2.0 * threads as f64 * turns as f64 * kernel.multiply_adds() as f64;
    let seconds = together(threads, |_| move || kernel.run(black_box(turns)));
    (operations / seconds, kernel.name())
}

/// Seconds of the quickest of some rounds in which every thread does once what `prepare` gave it.
fn together<W: FnMut()>(threads: usize, prepare: impl Fn(usize) -> W + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let rounds = |thread: usize| -> Vec<(Instant, Instant)> {
        let mut work = prepare(thread);
        let round = |_| {
            barrier.wait();
            let began = Instant::now();
            work();
            (began, Instant::now())
        };
        (0..ROUNDS).map(round).collect()
    };
    let times: Vec<Vec<(Instant, Instant)>> = std::thread::scope(|scope| {
        let rounds = &rounds;
        let others: Vec<_> = (1..threads).map(|thread| scope.spawn(move || rounds(thread))).collect();
        let own = rounds(0);
        let others = others.into_iter().map(|t| t.join().expect("measuring does not panic"));
        std::iter::once(own).chain(others).collect()
    });
    let round_s = |round: usize| {
        let began = times.iter().map(|t| t[round].0).min();
        let ended = times.iter().map(|t| t[round].1).max();
        began.zip(ended).map_or(f64::INFINITY, |(began, ended)| (ended - began).as_secs_f64())
    };
    (0..ROUNDS).map(round_s).fold(f64::INFINITY, f64::min)
}

/// The best multiply-add of 8-bit integers that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Kernel {
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
                return Self::Avx512Vnni;
            }
            if is_x86_feature_detected!("avx2") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => "vpdpbusd, 512 bits",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "vpmaddubsw + vpaddw, 256 bits",
            Self::Portable => "portable",
        }
    }

    /// Multiply-adds in one turn.
    fn multiply_adds(self) -> usize {
        let lanes = match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => 64,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 32,
            Self::Portable => 16,
        };
        SUMS * lanes
    }

    fn run(self, turns: usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: made by `detect` only, which found AVX-512F and VNNI.
            Self::Avx512Vnni => unsafe { x86::vpdpbusd(turns) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: made by `detect` only, which found AVX2.
            Self::Avx2 => unsafe { x86::vpmaddubsw(turns) },
            Self::Portable => portable(turns),
        }
    }
}

/// Each sum is an operand of its own product: otherwise the product would never change and be computed once.
fn portable(turns: usize) {
    let (weights, mut sums) = (black_box([3u8; 16]), black_box([[1u8; 16]; SUMS]));
    for _ in 0..turns {
        for sum in &mut sums {
            sum.iter_mut().zip(weights).for_each(|(s, w)| *s = s.wrapping_mul(w).wrapping_add(*s));
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_add_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm512_dpbusd_epi32, _mm512_set1_epi8,
    };
    use std::hint::black_box;

    use super::SUMS;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn vpdpbusd(turns: usize) {
        let (x, w) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        let mut sums = [_mm512_set1_epi8(1); SUMS];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, w);
            }
        }
        black_box(sums);
    }

    /// As in [`super::portable`], the sum is an operand of the product.
    #[target_feature(enable = "avx2")]
    pub(super) fn vpmaddubsw(turns: usize) {
        let w = black_box(_mm256_set1_epi8(5));
        let mut sums = [_mm256_set1_epi8(1); SUMS];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(*sum, w));
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_positive_and_threads_end_together() {
        for threads in [1, 3] {
            let (ops, with) = int8_peak(threads, 100);
            assert!(ops.is_finite() && ops > 0.0 && !with.is_empty());
            let bytes = read_bandwidth(threads, 1 << 16);
            assert!(bytes.is_finite() && bytes > 0.0);
        }
    }

    #[test]
    fn every_kernel_of_this_processor_runs() {
        portable(3);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            Kernel::Avx2.run(3);
        }
        Kernel::detect().run(3);
    }

    #[test]
    fn all_memory_is_read() {
        let memory: Vec<u64> = (0..64).collect();
        assert_eq!(stream(&memory), memory.iter().fold(0, |a, b| a ^ b));
    }
}
