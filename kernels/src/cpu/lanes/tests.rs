//! Both instruction sets against each other and against `std`, lane by lane.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

/// Everything floating that a kernel may ask of `a`, `b` and `c`.
struct Floats<'a> {
    a: [f32; 8],
    b: [f32; 8],
    c: [f32; 8],
    out: &'a mut Vec<[f32; 8]>,
}

impl Kernel for Floats<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (a, b, c) = (l.load(&self.a), l.load(&self.b), l.load(&self.c));
        let n = l.round(l.min(l.splat(127.0), l.max(l.splat(-126.0), a)));
        let halves = self.a.map(|v| (v.to_bits() >> 16) as u16);
        let results = [
            l.add(a, b),
            l.mul(a, b),
            l.div(a, b),
            l.fma(a, b, c),
            l.max(a, b),
            l.min(a, b),
            l.zero_below(a, b, 0.5),
            l.round(a),
            l.pow2(n),
            l.exp(a),
            l.load_bf16(&halves),
            l.load_f16(&halves),
            l.to_f32(l.to_i32(l.min(l.splat(1e6), l.max(l.splat(-1e6), a)))),
            l.splat(l.sum(a)),
            l.splat(l.largest(a)),
        ];
        for r in results {
            let mut v = [0.0; 8];
            l.store(r, &mut v);
            self.out.push(v);
        }
    }
}

/// The integer side.
struct Integers<'a> {
    packed: [u16; 16],
    pair: i32,
    out: &'a mut Vec<[i32; 8]>,
}

impl Kernel for Integers<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (a, b) = (l.nibble::<0>(&self.packed), l.nibble::<1>(&self.packed));
        let (c, d) = (l.nibble::<2>(&self.packed), l.nibble::<3>(&self.packed));
        let [e, f] = l.bytes(&self.packed);
        for w in [a, b, c, d, e, f] {
            let mut v = [0; 8];
            l.istore(l.dot(l.isplat(-7), w, self.pair), &mut v);
            self.out.push(v);
        }
    }
}

fn levels() -> Vec<Level> {
    [Isa::Portable, Isa::Avx2].into_iter().filter_map(Level::new).collect()
}

/// NaNs agree whatever their payload.
fn bits(v: &[[f32; 8]]) -> Vec<u32> {
    v.iter().flatten().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect()
}

proptest! {
    #[test]
    fn floats_agree(a in prop::array::uniform8(-100f32..100.0), b in prop::array::uniform8(any::<f32>()),
                    c in prop::array::uniform8(any::<f32>())) {
        let mut all = Vec::new();
        for level in levels() {
            let mut out = Vec::new();
            level.run(Floats { a, b, c, out: &mut out });
            all.push(bits(&out));
        }
        prop_assert!(all.windows(2).all(|w| w[0] == w[1]));
    }

    #[test]
    fn integers_agree(packed in prop::array::uniform16(any::<u16>()), low in any::<i16>(), high in any::<i16>()) {
        let pair = i32::from(high) << 16 | i32::from(low as u16);
        for level in levels() {
            let mut out = Vec::new();
            level.run(Integers { packed, pair, out: &mut out });
            for lane in 0..8 {
                let words = [packed[2 * lane], packed[2 * lane + 1]];
                let expect = |f: &dyn Fn(u16) -> i32| -7 + f(words[0]) * i32::from(low) + f(words[1]) * i32::from(high);
                for (n, out) in out.iter().enumerate().take(4) {
                    prop_assert_eq!(out[lane], expect(&|w| i32::from((w >> (4 * n)) & 15)));
                }
                prop_assert_eq!(out[4][lane], expect(&|w| i32::from(w as u8 as i8)));
                prop_assert_eq!(out[5][lane], expect(&|w| i32::from((w >> 8) as u8 as i8)));
            }
        }
    }

    #[test]
    fn exp_is_accurate(x in prop::array::uniform8(-87.0f32..88.0)) {
        for level in levels() {
            let mut out = Vec::new();
            level.run(Floats { a: x, b: x, c: x, out: &mut out });
            for (x, y) in x.iter().zip(out[9]) {
                let exact = f64::from(*x).exp();
                prop_assert!((f64::from(y) - exact).abs() <= exact * 2.4e-7, "exp({x}) = {y}");
            }
        }
    }
}

#[test]
fn exp_at_the_ends() {
    let x = [f32::NEG_INFINITY, -1e30, -87.4, 0.0, -0.0, 200.0, f32::INFINITY, f32::NAN];
    for level in levels() {
        let mut out = Vec::new();
        level.run(Floats { a: x, b: x, c: x, out: &mut out });
        let y = out[9];
        assert_eq!(y[..5], [0.0, 0.0, 0.0, 1.0, 1.0]);
        assert!(y[5] > 1.6e38 && y[5].is_finite() && y[5] == y[6] && y[7].is_nan());
    }
}
