//! Both instruction sets against each other and against `std`, lane by lane.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

/// Everything floating that a kernel may ask of `a`, `b` and `c`.
struct Floats<'a> {
    a: [f32; LANES],
    b: [f32; LANES],
    c: [f32; LANES],
    out: &'a mut Vec<[f32; LANES]>,
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
            let mut v = [0.0; LANES];
            l.store(r, &mut v);
            self.out.push(v);
        }
    }
}

/// The integer side: bytes of weights, and products that cannot overflow.
struct Integers<'a> {
    packed: [u8; 64],
    x: [i32; 8],
    out: &'a mut Vec<[f32; LANES]>,
}

const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Kernel for Integers<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let v = l.bytes(&self.packed);
        let five = l.join::<6, 1, 4>(l.low(v), v);
        let six = l.join::<0, 2, 4>(l.high(v), v);
        let (w, x): ([L::B; 8], _) =
            ([l.low(v), l.high(v), l.low(v), l.high(v), l.low(v), l.high(v), l.low(v), l.high(v)], &self.x);
        let mut dots = [[l.isplat(-7); 1]; 5];
        l.dot(w, [x], &mut dots[0]);
        l.dot([five; 4], [x.first_chunk().unwrap()], &mut dots[1]);
        l.dot([six; 2], [x.first_chunk().unwrap()], &mut dots[2]);
        let sum: i32 = self.x[..2].iter().flat_map(|x| x.to_le_bytes()).map(|x| i32::from(x as i8)).sum();
        dots[3] = [l.isplat(-sum * L::SIGNED_BIAS)];
        l.dot_signed([v; 2], [x.first_chunk().unwrap()], &mut dots[3]);
        dots[4] = [l.isplat(-sum * L::SIGNED_BIAS)];
        l.dot_signed([l.lookup(l.low(v), &TABLE); 2], [x.first_chunk().unwrap()], &mut dots[4]);
        for dot in dots {
            let mut v = [0.0; LANES];
            l.store(l.to_f32(dot[0]), &mut v);
            self.out.push(v);
        }
        let bytes: &[u8; LANES] = self.packed.first_chunk().unwrap();
        let signed = bytes.map(|b| b as i8);
        for v in [l.load_u8(bytes), l.load_i8(&signed)] {
            let mut to = [0.0; LANES];
            l.store(v, &mut to);
            self.out.push(to);
            let integers = l.to_i32(v);
            self.out.push([l.isum(integers) as f32; LANES]);
            self.out.push([l.ilargest(integers) as f32; LANES]);
        }
        let mut narrow = [0i8; LANES];
        l.store_i8(l.to_i32(l.load_i8(&signed)), &mut narrow);
        assert_eq!(narrow, signed);
    }
}

fn levels() -> Vec<Level> {
    Isa::ALL.into_iter().filter_map(Level::new).collect()
}

/// NaNs agree whatever their payload.
fn bits(v: &[[f32; LANES]]) -> Vec<u32> {
    v.iter().flatten().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect()
}

proptest! {
    #[test]
    fn floats_agree(a in prop::array::uniform16(-100f32..100.0), b in prop::array::uniform16(any::<f32>()),
                    c in prop::array::uniform16(any::<f32>())) {
        let mut all = Vec::new();
        for level in levels() {
            let mut out = Vec::new();
            level.run(Floats { a, b, c, out: &mut out });
            all.push(bits(&out));
        }
        prop_assert!(all.windows(2).all(|w| w[0] == w[1]));
    }

    #[test]
    fn integers_agree(packed in prop::collection::vec(any::<u8>(), 64), x in prop::array::uniform32(-127i8..=127)) {
        let packed: [u8; 64] = packed.try_into().unwrap();
        let q: [i32; 8] = bytemuck::cast(x);
        for level in levels() {
            let mut out = Vec::new();
            level.run(Integers { packed, x: q, out: &mut out });
            for lane in 0..LANES {
                let w = &packed[4 * lane..][..4];
                // The sum over `groups` groups of columns of weight times activation.
                let expect = |groups: usize, start: i32, weight: &dyn Fn(usize, u8) -> i32| {
                    let products = (0..4 * groups).map(|c| weight(c / 4, w[c % 4]) * i32::from(x[c]));
                    (start + products.sum::<i32>()) as f32
                };
                let nibble = |g: usize, b: u8| i32::from(if g.is_multiple_of(2) { b & 15 } else { b >> 4 });
                prop_assert_eq!(out[0][lane], expect(8, -7, &nibble));
                prop_assert_eq!(out[1][lane], expect(4, -7, &|_, b| i32::from(b & 15 | (b >> 6 & 1) << 4)));
                prop_assert_eq!(out[2][lane], expect(2, -7, &|_, b| i32::from(b >> 4 | (b & 3) << 4)));
                prop_assert_eq!(out[3][lane], expect(2, 0, &|_, b| i32::from(b as i8)));
                prop_assert_eq!(out[4][lane], expect(2, 0, &|_, b| i32::from(TABLE[usize::from(b & 15)])));
                prop_assert_eq!(out[5][lane], f32::from(packed[lane]));
                prop_assert_eq!(out[8][lane], f32::from(packed[lane] as i8));
            }
            let signed = packed[..16].iter().map(|b| i32::from(*b as i8));
            prop_assert_eq!((out[9][0], out[10][0]), (signed.clone().sum::<i32>() as f32, signed.max().unwrap() as f32));
        }
    }

    #[test]
    fn exp_is_accurate(x in prop::array::uniform16(-87.0f32..88.0)) {
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
    let ends = [f32::NEG_INFINITY, -1e30, -87.4, 0.0, -0.0, 200.0, f32::INFINITY, f32::NAN];
    let x = std::array::from_fn(|i| ends[i % 8]);
    for level in levels() {
        let mut out = Vec::new();
        level.run(Floats { a: x, b: x, c: x, out: &mut out });
        for y in out[9].as_chunks::<8>().0 {
            assert_eq!(y[..5], [0.0, 0.0, 0.0, 1.0, 1.0]);
            assert!(y[5] > 1.6e38 && y[5].is_finite() && y[5] == y[6] && y[7].is_nan());
        }
    }
}
