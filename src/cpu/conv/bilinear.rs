//! Short bilinear algorithms for 3-tap kernels.
//!
//! In one dimension, OUT outputs of a 3-tap correlation come from MUL products of transformed inputs and transformed taps: y = output(input(d) * filter(g)).
//! Applied along rows and columns this takes MUL^2 products for OUT^2 outputs, each a sum over channels, that is, a matrix product per product index ("xi").
//! All coefficients are 0, 1/2 and 1 in size, so rounding stays below that of plain f32 summation (the sums over channels are nine times shorter).

use pulp::Simd;

/// One such algorithm; the `_adjoint`s are the transposed maps, used by the gradient of the weights.
pub trait Bilinear<const IN: usize, const MUL: usize, const OUT: usize>: Send + Sync {
    fn input<S: Simd>(s: S, d: [S::f32s; IN]) -> [S::f32s; MUL];
    fn filter<S: Simd>(s: S, g: [S::f32s; 3]) -> [S::f32s; MUL];
    fn output<S: Simd>(s: S, m: [S::f32s; MUL]) -> [S::f32s; OUT];
    fn output_adjoint<S: Simd>(s: S, y: [S::f32s; OUT]) -> [S::f32s; MUL];
    fn filter_adjoint<S: Simd>(s: S, m: [S::f32s; MUL]) -> [S::f32s; 3];
}

/// F(2, 3): two outputs from four inputs with four products (Winograd).
pub struct F2;

impl Bilinear<4, 4, 2> for F2 {
    #[inline(always)]
    fn input<S: Simd>(s: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 4] {
        [s.sub_f32s(a, c), s.add_f32s(b, c), s.sub_f32s(c, b), s.sub_f32s(b, d)]
    }
    #[inline(always)]
    fn filter<S: Simd>(s: S, [a, b, c]: [S::f32s; 3]) -> [S::f32s; 4] {
        let half = s.splat_f32s(0.5);
        let ends = s.add_f32s(a, c);
        [a, s.mul_f32s(half, s.add_f32s(ends, b)), s.mul_f32s(half, s.sub_f32s(ends, b)), c]
    }
    #[inline(always)]
    fn output<S: Simd>(s: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 2] {
        [s.add_f32s(a, s.add_f32s(b, c)), s.sub_f32s(s.sub_f32s(b, c), d)]
    }
    #[inline(always)]
    fn output_adjoint<S: Simd>(s: S, [a, b]: [S::f32s; 2]) -> [S::f32s; 4] {
        [a, s.add_f32s(a, b), s.sub_f32s(a, b), s.sub_f32s(s.splat_f32s(0.0), b)]
    }
    #[inline(always)]
    fn filter_adjoint<S: Simd>(s: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 3] {
        let half = s.splat_f32s(0.5);
        let even = s.mul_f32s(half, s.add_f32s(b, c));
        [s.add_f32s(a, even), s.mul_f32s(half, s.sub_f32s(b, c)), s.add_f32s(even, d)]
    }
}

/// A whole row of three with one zero on either side: three outputs from three inputs with five products. It is F(2, 3) for the first two outputs, and the
/// third reuses a product, because the left neighbour of the row is zero: y2 = x1 g0 + x2 g1, and x1 g0 is the first product negated.
pub struct Row3;

impl Bilinear<3, 5, 3> for Row3 {
    #[inline(always)]
    fn input<S: Simd>(s: S, [a, b, c]: [S::f32s; 3]) -> [S::f32s; 5] {
        [b, s.add_f32s(a, b), s.sub_f32s(b, a), s.sub_f32s(a, c), c]
    }
    #[inline(always)]
    fn filter<S: Simd>(s: S, [a, b, c]: [S::f32s; 3]) -> [S::f32s; 5] {
        let [_, even, odd, _] = F2::filter(s, [a, b, c]);
        [a, even, odd, c, b]
    }
    #[inline(always)]
    fn output<S: Simd>(s: S, [a, b, c, d, e]: [S::f32s; 5]) -> [S::f32s; 3] {
        [s.sub_f32s(s.add_f32s(b, c), a), s.sub_f32s(s.sub_f32s(b, c), d), s.add_f32s(a, e)]
    }
    #[inline(always)]
    fn output_adjoint<S: Simd>(s: S, [a, b, c]: [S::f32s; 3]) -> [S::f32s; 5] {
        [s.sub_f32s(c, a), s.add_f32s(a, b), s.sub_f32s(a, b), s.sub_f32s(s.splat_f32s(0.0), b), c]
    }
    #[inline(always)]
    fn filter_adjoint<S: Simd>(s: S, [a, b, c, d, e]: [S::f32s; 5]) -> [S::f32s; 3] {
        let [first, middle, last] = F2::filter_adjoint(s, [a, b, c, d]);
        [first, s.add_f32s(middle, e), last]
    }
}
