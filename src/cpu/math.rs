//! eˣ and tanh x in f32 without branches or calls, so that loops over them vectorize.
//!
//! The method is the usual one: x = n·ln 2 + r with |r| ≤ ½ ln 2, a polynomial for eʳ, and the exponent put back by adding to
//! the bits (Cody and Waite 1980). Errors are stated against the exact value and tested over the whole range.

/// 1.5·2²³: adding it rounds to the nearest integer, which is then in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; n times the first is exact for |n| < 2⁸.
const LN2_HI: f32 = 355.0 / 512.0;
const LN2_LO: f32 = -2.121_944_4e-4;

/// eˣ within 2 units in the last place; 0 and ∞ beyond the range of f32, subnormal results included, NaN for NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Comparisons with NaN are false, so that it stays.
    let x = if x > 128.0 { 128.0 } else { x };
    let x = if x < -128.0 { -128.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HI) - n * LN2_LO;
    // eʳ = 1 + r + r²·q(r), q the Taylor polynomial; the first omitted term is below 6e-9 of the result.
    let q = 1.0 / 5040.0;
    let q = q * r + 1.0 / 720.0;
    let q = q * r + 1.0 / 120.0;
    let q = q * r + 1.0 / 24.0;
    let q = q * r + 1.0 / 6.0;
    let q = q * r + 0.5;
    let y = q * (r * r) + r + 1.0;
    // 2ⁿ as two factors, since n goes from −185 to 185 and an exponent only from −126 to 127.
    let n = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    y * power(half) * power(n.wrapping_sub(half))
}

/// tanh x within 4 units in the last place.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let a = x.abs();
    // Near 0 the quotient would cancel: x + x³·p(x²), minimax on [0, 0.625] (Moshier's Cephes library, 1989).
    let z = x * x;
    let p = -5.704_988_7e-3;
    let p = p * z + 2.063_909e-2;
    let p = p * z - 5.373_971_6e-2;
    let p = p * z + 1.333_144_2e-1;
    let p = p * z - 3.333_328e-1;
    let near = (p * z * x + x).copysign(x); // −0 for −0
    let e = exp(-2.0 * a);
    let far = ((1.0 - e) / (1.0 + e)).copysign(x);
    if a < 0.625 { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::{exp, tanh};

    /// The error in units of the last place of the exact value (of the least normal number below it).
    fn ulps(got: f32, exact: f64) -> f64 {
        let near = (exact as f32).abs().max(f32::MIN_POSITIVE);
        let unit = f64::from(f32::from_bits(near.to_bits() + 1) - near);
        (f64::from(got) - exact).abs() / unit
    }

    /// Every 1021st finite f32.
    fn samples() -> impl Iterator<Item = f32> {
        (0..u32::MAX).step_by(1021).map(f32::from_bits).filter(|x| x.is_finite())
    }

    #[test]
    fn exp_is_right_to_two_units() {
        let mut worst = (0.0, 0.0);
        for x in samples().filter(|x| x.abs() < 87.0) {
            let error = ulps(exp(x), f64::from(x).exp());
            if error > worst.0 {
                worst = (error, x);
            }
        }
        assert!(worst.0 <= 2.0, "{worst:?}");
        for x in [88.7, 88.72, -88.0, -100.0, -103.0] {
            assert!(ulps(exp(x), f64::from(x).exp()) <= 2.0, "{x}: {}", exp(x));
        }
        assert_eq!((exp(0.0), exp(-0.0)), (1.0, 1.0));
        assert_eq!((exp(88.73), exp(1e30), exp(f32::INFINITY)), (f32::INFINITY, f32::INFINITY, f32::INFINITY));
        assert_eq!((exp(-104.0), exp(-1e30), exp(f32::NEG_INFINITY)), (0.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_right_to_four_units() {
        let mut worst = (0.0, 0.0);
        for x in samples() {
            let error = ulps(tanh(x), f64::from(x).tanh());
            if error > worst.0 {
                worst = (error, x);
            }
        }
        assert!(worst.0 <= 4.0, "{worst:?}");
        assert_eq!((tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (1.0, -1.0));
        assert!(tanh(-0.0) == 0.0 && tanh(-0.0).is_sign_negative() && tanh(f32::NAN).is_nan());
    }
}
