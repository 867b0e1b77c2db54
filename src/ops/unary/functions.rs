//! The elementwise functions. An entry is all that the CPU has to know of one; `kernels/functions.cuh` has the same formulas for the GPU.
//!
//! An entry names the function (`Elu(alpha)`), its method on `Tensor` (`elu`), its name in the kernels (`"ELU"`), what the backward pass is
//! given (`x`, or `y` where the derivative is a function of y alone, so that x need not be kept), the value, and dy·f′.
//!
//! Where f′ is 0 by definition, dx is 0 whatever dy is: it is selected, not multiplied, since an infinite dy would become NaN.

use super::Unary;
use crate::{Result, Tensor, autograd::apply1, cpu::parallel, dtype::Real};

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const INV_SQRT_2PI: f64 = 0.398_942_280_401_432_7;

/// A constant in the arithmetic of `F`.
#[inline(always)]
fn c<F: Real>(v: f64) -> F {
    F::from_f64(v)
}

/// `v` where `yes`, else 0.
#[inline(always)]
fn pick<F: Real>(yes: bool, v: F) -> F {
    if yes { v } else { F::ZERO }
}

/// 1 / (1 + e⁻ˣ) without overflow on either side.
#[inline(always)]
fn sigmoid<F: Real>(x: F) -> F {
    let e = (-x.abs()).exp();
    let y = F::ONE / (F::ONE + e);
    if x < F::ZERO { e * y } else { y }
}

/// The normal distribution function Φ.
#[inline(always)]
fn cdf<F: Real>(x: F) -> F {
    c::<F>(0.5) * (F::ONE + (x * c(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

/// The argument of gelu's tanh.
#[inline(always)]
fn gelu_inner<F: Real>(x: F) -> F {
    c::<F>(SQRT_2_OVER_PI) * (x + c::<F>(0.044715) * x * x * x)
}

/// `true` for y, `false` for x.
macro_rules! is_output {
    (x) => {
        false
    };
    (y) => {
        true
    };
}

/// The type of a constant.
macro_rules! number {
    ($arg:ident) => {
        f64
    };
}

macro_rules! functions {
    ($(
        $(#[$doc:meta])*
        $kind:ident $(($($arg:ident),+))? $method:ident $cuda:literal keeps $kept:ident
            value |$x:ident| $value:expr;
            gradient |$dy:ident, $k:ident| $gradient:expr;
    )*) => {
        /// Which function; the letters are those of the formulas.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum UnaryKind {
            $($(#[$doc])* $kind $(($(number!($arg)),+))?,)*
        }

        // Not every formula reads all constants.
        #[allow(unused_variables)]
        impl UnaryKind {
            /// The name in errors and profiles.
            pub(super) fn name(self) -> &'static str {
                match self {
                    $(UnaryKind::$kind $(($($arg),+))? => stringify!($method),)*
                }
            }

            /// The function's name in `kernels/functions.cuh`, and its constants a and b.
            pub(super) fn code(self) -> (&'static str, f64, f64) {
                let pair = |all: &[f64]| (all.first().copied().unwrap_or(0.0), all.get(1).copied().unwrap_or(0.0));
                match self {
                    $(UnaryKind::$kind $(($($arg),+))? => {
                        let (a, b) = pair(&[$($($arg),+)?]);
                        ($cuda, a, b)
                    })*
                }
            }

            /// True when the backward pass is given y, else x.
            pub(super) fn keeps_output(self) -> bool {
                match self {
                    $(UnaryKind::$kind $(($($arg),+))? => is_output!($kept),)*
                }
            }

            /// y = f(x); each function has a loop of its own, compiled for each instruction set.
            pub(super) fn map<F: Real>(self, y: &mut [F], x: &[F]) {
                match self {
                    $(UnaryKind::$kind $(($($arg),+))? => parallel::map_vectorized(
                        y,
                        x,
                        #[inline(always)]
                        |$x: F| $value,
                    ),)*
                }
            }

            /// y ← f(y)
            pub(crate) fn assign<F: Real>(self, y: &mut [F]) {
                match self {
                    $(UnaryKind::$kind $(($($arg),+))? => parallel::assign_vectorized(
                        y,
                        #[inline(always)]
                        |$x: F| $value,
                    ),)*
                }
            }

            /// dx = dy·f′, from what was kept.
            pub(super) fn gradient<F: Real>(self, dx: &mut [F], kept: &[F], dy: &[F]) {
                match self {
                    $(UnaryKind::$kind $(($($arg),+))? => parallel::zip_vectorized(
                        dx,
                        kept,
                        dy,
                        #[inline(always)]
                        |$k: F, $dy: F| $gradient,
                    ),)*
                }
            }
        }

        impl Tensor {
            $($(#[$doc])*
            ///
            /// # Errors
            /// [`Error::DType`](crate::Error::DType) for integers, [`Error::Invalid`](crate::Error::Invalid) for constants that make no function.
            pub fn $method(&self $($(, $arg: number!($arg))+)?) -> Result<Tensor> {
                apply1(Unary(UnaryKind::$kind $(($($arg),+))?), &[self])
            })*
        }
    };
}

functions! {
    /// max(x, 0); derivative 0 at 0, 1 at NaN.
    #[doc(alias = "ReLU")]
    Relu relu "RELU" keeps y
        // Written so that a NaN stays one, and lets the gradient through.
        value |x| if x < F::ZERO { F::ZERO } else { x };
        gradient |dy, y| if y <= F::ZERO { F::ZERO } else { dy };

    /// x for x > 0, else `slope`·x; derivative `slope` at 0 (Maas et al. 2013).
    #[doc(alias = "LeakyReLU")]
    LeakyRelu(slope) leaky_relu "LEAKY_RELU" keeps x
        value |x| if x > F::ZERO { x } else { c::<F>(slope) * x };
        gradient |dy, x| if x > F::ZERO { dy } else { pick(slope != 0.0, dy * c(slope)) };

    /// x for x > 0, else `alpha`·(eˣ − 1) (Clevert et al. 2016).
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::from_vec(vec![-1f32, 0., 2.], &[3], &cpu())?;
    /// assert_eq!(x.elu(1.0)?.to_vec()?, [(-1f32).exp_m1(), 0., 2.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    Elu(alpha) elu "ELU" keeps x
        value |x| if x > F::ZERO { x } else { c::<F>(alpha) * x.exp_m1() };
        gradient |dy, x| if x > F::ZERO { dy } else { pick(alpha != 0.0, dy * (c::<F>(alpha) * x.exp())) };

    /// 1 / (1 + e⁻ˣ)
    Sigmoid sigmoid "SIGMOID" keeps y
        value |x| sigmoid(x);
        gradient |dy, y| dy * (y * (F::ONE - y));

    /// tanh x
    Tanh tanh "TANH" keeps y
        value |x| x.tanh();
        gradient |dy, y| dy * (F::ONE - y * y);

    /// x·Φ(x) with the error function (Hendrycks and Gimpel 2016).
    Gelu gelu "GELU" keeps x
        value |x| c::<F>(0.5) * x * (F::ONE + (x * c(std::f64::consts::FRAC_1_SQRT_2)).erf());
        gradient |dy, x| dy * (cdf(x) + x * c(INV_SQRT_2PI) * (c::<F>(-0.5) * x * x).exp());

    /// The tanh approximation of [`UnaryKind::Gelu`]: ½x(1 + tanh(√(2/π)(x + 0.044715x³))).
    GeluTanh gelu_tanh "GELU_TANH" keeps x
        value |x| c::<F>(0.5) * x * (F::ONE + gelu_inner(x).tanh());
        gradient |dy, x| {
            let t = gelu_inner(x).tanh();
            let inner = c::<F>(SQRT_2_OVER_PI) * (F::ONE + c::<F>(3.0 * 0.044715) * x * x);
            dy * (c::<F>(0.5) * (F::ONE + t) + c::<F>(0.5) * x * (F::ONE - t * t) * inner)
        };

    /// ln(1 + eˣ), without overflow.
    Softplus softplus "SOFTPLUS" keeps x
        value |x| pick(x > F::ZERO, x) + (-x.abs()).exp().ln_1p();
        gradient |dy, x| dy * sigmoid(x);

    /// eˣ
    Exp exp "EXP" keeps y
        value |x| x.exp();
        gradient |dy, y| dy * y;

    /// ln x
    Log log "LOG" keeps x
        value |x| x.ln();
        // Divided, since 1 / x of a subnormal x is infinite.
        gradient |dy, x| dy / x;

    /// √x
    Sqrt sqrt "SQRT" keeps y
        value |x| x.sqrt();
        gradient |dy, y| dy / (c::<F>(2.0) * y);

    /// |x|; derivative 0 at 0.
    Abs abs "ABS" keeps x
        value |x| x.abs();
        gradient |dy, x| pick(x > F::ZERO, dy) - pick(x < F::ZERO, dy);

    /// x²
    Square square "SQUARE" keeps x
        value |x| x * x;
        gradient |dy, x| dy * (c::<F>(2.0) * x);

    /// xᵖ
    Pow(p) pow "POW" keeps x
        value |x| x.powf(c(p));
        gradient |dy, x| pick(p != 0.0, dy * (c::<F>(p) * x.powf(c(p - 1.0))));

    /// −x
    Neg neg "NEG" keeps x
        value |x| -x;
        gradient |dy, x| -dy;

    /// a·x + b with two constants.
    Affine(a, b) affine "AFFINE" keeps x
        value |x| c::<F>(a) * x + c(b);
        gradient |dy, x| dy * c(a);

    /// x limited to `lo..=hi`; derivative 1 inside and at the bounds, else 0.
    #[doc(alias = "clamp")]
    Clip(lo, hi) clip "CLIP" keeps x
        value |x| if x < c(lo) { c(lo) } else if x > c(hi) { c(hi) } else { x };
        gradient |dy, x| pick(x >= c(lo) && x <= c(hi), dy);
}
