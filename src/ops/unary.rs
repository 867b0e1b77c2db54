//! Elementwise functions of one array: relu, sigmoid, tanh, gelu, exp, log, …

use crate::{
    Array, Context, Error, Result, Tensor,
    autograd::{Op, Saved, apply1},
    cpu::{buffers::Buffer, parallel},
    cuda::{Define, Launch},
    dtype::{Real, real_type},
};

/// Which function; the letters are those of the formulas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum UnaryKind {
    /// max(x, 0); derivative 0 at 0, 1 at NaN.
    Relu,
    /// x for x > 0, else `slope`·x; derivative `slope` at 0 (Maas et al. 2013).
    LeakyRelu(f64),
    /// 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// tanh x
    Tanh,
    /// x·Φ(x) with the error function (Hendrycks and Gimpel 2016).
    Gelu,
    /// The tanh approximation of [`UnaryKind::Gelu`]: ½x(1 + tanh(√(2/π)(x + 0.044715x³))).
    GeluTanh,
    /// ln(1 + eˣ), without overflow.
    Softplus,
    /// eˣ
    Exp,
    /// ln x
    Log,
    /// √x
    Sqrt,
    /// |x|; derivative 0 at 0 and at NaN.
    Abs,
    /// x²
    Square,
    /// xᵖ
    Pow(f64),
    /// −x
    Neg,
    /// a·x + b
    Affine(f64, f64),
    /// min(max(x, lo), hi); derivative 1 inside and at the bounds, else 0, also at NaN.
    Clip(f64, f64),
}

use UnaryKind::*;

impl UnaryKind {
    /// The function's number and its up to two constants, as `kernels/unary.cu` knows them.
    fn code(self) -> (&'static str, f64, f64) {
        match self {
            Relu => ("RELU", 0.0, 0.0),
            LeakyRelu(slope) => ("LEAKY_RELU", slope, 0.0),
            Sigmoid => ("SIGMOID", 0.0, 0.0),
            Tanh => ("TANH", 0.0, 0.0),
            Gelu => ("GELU", 0.0, 0.0),
            GeluTanh => ("GELU_TANH", 0.0, 0.0),
            Softplus => ("SOFTPLUS", 0.0, 0.0),
            Exp => ("EXP", 0.0, 0.0),
            Log => ("LOG", 0.0, 0.0),
            Sqrt => ("SQRT", 0.0, 0.0),
            Abs => ("ABS", 0.0, 0.0),
            Square => ("SQUARE", 0.0, 0.0),
            Pow(p) => ("POW", p, 0.0),
            Neg => ("AFFINE", -1.0, 0.0),
            Affine(a, b) => ("AFFINE", a, b),
            Clip(lo, hi) => ("CLIP", lo, hi),
        }
    }

    /// The function as the products' kernels know it, where they can end with it.
    pub(crate) fn epilogue(self) -> Option<Define> {
        matches!(self, Relu | Sigmoid | Tanh).then(|| Define::Word(self.code().0))
    }

    /// y ← f(y), for what products can end with.
    pub(crate) fn assign<F: Real>(self, y: &mut [F]) {
        match self {
            Relu => parallel::assign_vectorized(
                y,
                #[inline(always)]
                |y| Relu.value(y),
            ),
            Sigmoid => parallel::assign_vectorized(
                y,
                #[inline(always)]
                |y| Sigmoid.value(y),
            ),
            Tanh => parallel::assign_vectorized(
                y,
                #[inline(always)]
                |y| Tanh.value(y),
            ),
            other => parallel::assign_vectorized(y, |y| other.value(y)),
        }
    }

    /// True when the derivative is a function of y alone, so that x need not be kept.
    fn keeps_output(self) -> bool {
        matches!(self, Relu | Sigmoid | Tanh | Exp | Sqrt)
    }

    /// y = f(x)
    #[inline(always)]
    fn value<F: Real>(self, x: F) -> F {
        let c = F::from_f64;
        match self {
            // Written so that a NaN stays one.
            Relu => {
                if x < F::ZERO {
                    F::ZERO
                } else {
                    x
                }
            }
            LeakyRelu(slope) => {
                if x > F::ZERO {
                    x
                } else {
                    c(slope) * x
                }
            }
            Sigmoid => sigmoid(x),
            Tanh => x.tanh(),
            Gelu => c(0.5) * x * (F::ONE + (x * c(std::f64::consts::FRAC_1_SQRT_2)).erf()),
            GeluTanh => c(0.5) * x * (F::ONE + gelu_inner(x).tanh()),
            Softplus => (if x > F::ZERO { x } else { F::ZERO }) + (-x.abs()).exp().ln_1p(),
            Exp => x.exp(),
            Log => x.ln(),
            Sqrt => x.sqrt(),
            Abs => x.abs(),
            Square => x * x,
            Pow(p) => x.powf(c(p)),
            Neg => -x,
            Affine(a, b) => c(a) * x + c(b),
            Clip(lo, hi) => {
                if x < c(lo) {
                    c(lo)
                } else if x > c(hi) {
                    c(hi)
                } else {
                    x
                }
            }
        }
    }

    /// dy·f′, given what was kept: y where [`UnaryKind::keeps_output`], else x.
    ///
    /// A unit whose derivative is 0 is passed over, not multiplied with 0, so that an infinite dy behind it does not become NaN.
    #[inline(always)]
    fn gradient<F: Real>(self, dy: F, k: F) -> F {
        let c = F::from_f64;
        let pick = |yes: bool, dy: F| if yes { dy } else { F::ZERO };
        match self {
            // A NaN, which the function lets through, lets the gradient through.
            Relu => {
                if k <= F::ZERO {
                    F::ZERO
                } else {
                    dy
                }
            }
            LeakyRelu(slope) => {
                if k > F::ZERO {
                    dy
                } else {
                    pick(slope != 0.0, dy * c(slope))
                }
            }
            Sigmoid => dy * (k * (F::ONE - k)),
            Tanh => dy * (F::ONE - k * k),
            Gelu => {
                let cdf = c(0.5) * (F::ONE + (k * c(std::f64::consts::FRAC_1_SQRT_2)).erf());
                dy * (cdf + k * c(0.398_942_280_401_432_7) * (c(-0.5) * k * k).exp())
            }
            GeluTanh => {
                let t = gelu_inner(k).tanh();
                let inner = c(SQRT_2_OVER_PI) * (F::ONE + c(3.0 * 0.044715) * k * k);
                dy * (c(0.5) * (F::ONE + t) + c(0.5) * k * (F::ONE - t * t) * inner)
            }
            Softplus => dy * sigmoid(k),
            Exp => dy * k,
            // Divided, since 1 / k of a subnormal k is infinite.
            Log => dy / k,
            Sqrt => dy / (c(2.0) * k),
            Abs => pick(k > F::ZERO, dy) - pick(k < F::ZERO, dy),
            Square => dy * (c(2.0) * k),
            Pow(p) => pick(p != 0.0, dy * (c(p) * k.powf(c(p - 1.0)))),
            Neg => -dy,
            Affine(a, _) => dy * c(a),
            Clip(lo, hi) => pick(k >= c(lo) && k <= c(hi), dy),
        }
    }
}

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;

fn gelu_inner<F: Real>(x: F) -> F {
    F::from_f64(SQRT_2_OVER_PI) * (x + F::from_f64(0.044715) * x * x * x)
}

/// 1 / (1 + e⁻ˣ) without overflow on either side.
#[inline(always)]
fn sigmoid<F: Real>(x: F) -> F {
    let e = (-x.abs()).exp();
    let y = F::ONE / (F::ONE + e);
    if x < F::ZERO { e * y } else { y }
}

/// Runs a block with `$kind` bound to the function: the cheap ones each get a loop of their own, in which the compiler
/// knows the function, since choosing it anew for each element would cost several times the arithmetic.
macro_rules! for_kind {
    ($given:expr, $kind:ident => $body:expr) => {
        match $given {
            Relu => {
                let $kind = Relu;
                $body
            }
            Abs => {
                let $kind = Abs;
                $body
            }
            Square => {
                let $kind = Square;
                $body
            }
            Neg => {
                let $kind = Neg;
                $body
            }
            Sigmoid => {
                let $kind = Sigmoid;
                $body
            }
            Tanh => {
                let $kind = Tanh;
                $body
            }
            LeakyRelu(slope) => {
                let $kind = LeakyRelu(slope);
                $body
            }
            Affine(a, b) => {
                let $kind = Affine(a, b);
                $body
            }
            Clip(lo, hi) => {
                let $kind = Clip(lo, hi);
                $body
            }
            $kind => $body,
        }
    };
}

/// y = f(x) elementwise; dx = dy · f′(x), and 0 where f′ is 0 by definition, whatever dy is.
#[derive(Clone, Copy, Debug)]
pub struct Unary(pub UnaryKind);

impl Op for Unary {
    fn name(&self) -> &'static str {
        match self.0 {
            Relu => "relu",
            LeakyRelu(_) => "leaky_relu",
            Sigmoid => "sigmoid",
            Tanh => "tanh",
            Gelu => "gelu",
            GeluTanh => "gelu_tanh",
            Softplus => "softplus",
            Exp => "exp",
            Log => "log",
            Sqrt => "sqrt",
            Abs => "abs",
            Square => "square",
            Pow(_) => "pow",
            Neg => "neg",
            Affine(..) => "affine",
            Clip(..) => "clip",
        }
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let [x] = inputs else { return Err(Error::invalid(self.name(), "one input is needed")) };
        let y = self.value(x)?;
        if saved.wanted() {
            saved.keep(if self.0.keeps_output() { &y } else { x });
        }
        saved.outputs(self.name(), inputs, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        Ok(vec![Some(self.gradient(saved.get(0)?, dy)?)])
    }
}

impl Unary {
    /// y = f(x) on arrays.
    pub(super) fn value(&self, x: &Array) -> Result<Array> {
        match x.context() {
            Context::Cpu => real_type!(self.name(), x.dtype(), F => {
                let x_ = x.real::<F>(self.name())?;
                let mut y = Buffer::<F>::stale(x.len())?;
                match self.0 {
                    Sigmoid => parallel::map_vectorized(&mut y, &x_, #[inline(always)] |x| Sigmoid.value(x)),
                    Tanh => parallel::map_vectorized(&mut y, &x_, #[inline(always)] |x| Tanh.value(x)),
                    Exp => parallel::map_vectorized(&mut y, &x_, #[inline(always)] |x| Exp.value(x)),
                    other => for_kind!(other, kind => parallel::map(&mut y, &x_, |x| kind.value(x))),
                }
                Ok(Array::from_real(y, x.shape(), x.dtype())?.with_layout(x.layout()))
            }),
            Context::Gpu(_) => {
                let y = x.uninit_like()?;
                self.launch("unary_fwd", &[&y, x])?;
                Ok(y)
            }
        }
    }

    /// dx from dy and what was kept, y or x.
    pub(super) fn gradient(&self, k: &Array, dy: &Array) -> Result<Array> {
        let dy = dy.to_layout(k.layout())?;
        Ok(match k.context() {
            Context::Cpu => real_type!(self.name(), k.dtype(), F => {
                let (k_, dy_) = (k.real::<F>(self.name())?, dy.real::<F>(self.name())?);
                let mut dx = Buffer::<F>::stale(k.len())?;
                for_kind!(self.0, kind => parallel::zip(&mut dx, &k_, &dy_, |k, dy| kind.gradient(dy, k)));
                Ok(Array::from_real(dx, k.shape(), k.dtype())?.with_layout(k.layout()))
            })?,
            Context::Gpu(_) => {
                let dx = k.uninit_like()?;
                self.launch("unary_bwd", &[&dx, k, &dy])?;
                dx
            }
        })
    }

    fn launch(&self, kernel: &'static str, arrays: &[&Array]) -> Result<()> {
        let (dtype, n) = (arrays[0].dtype(), arrays[0].len());
        if !dtype.is_float() {
            return Err(Error::DType { op: self.name(), dtype, hint: "a float type is needed; use `cast`" });
        }
        let (code, a, b) = self.0.code();
        let mut launch =
            Launch::new(arrays[0], "unary.cu", kernel, &[("scalar_t", dtype.into()), ("FUNCTION", Define::Word(code))])?;
        for array in arrays {
            launch = launch.array(array);
        }
        launch.value(a).value(b).value(n as i64).run_packed(n, dtype)
    }
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident => $kind:expr;)*) => {
        impl Tensor {
            $($(#[$doc])* pub fn $name(&self) -> Result<Tensor> {
                apply1(Unary($kind), &[self])
            })*
        }
    };
}

methods! {
    /// max(x, 0).
    relu => Relu;
    /// 1 / (1 + e⁻ˣ).
    sigmoid => Sigmoid;
    /// tanh x.
    tanh => Tanh;
    /// x·Φ(x), by the error function.
    gelu => Gelu;
    /// The tanh approximation of gelu.
    gelu_tanh => GeluTanh;
    /// ln(1 + eˣ).
    softplus => Softplus;
    /// eˣ.
    exp => Exp;
    /// ln x.
    log => Log;
    /// √x.
    sqrt => Sqrt;
    /// |x|.
    abs => Abs;
    /// x².
    square => Square;
    /// −x.
    neg => Neg;
}

impl Tensor {
    /// x where x > 0, else `slope`·x.
    #[doc(alias = "LeakyReLU")]
    pub fn leaky_relu(&self, slope: f64) -> Result<Tensor> {
        apply1(Unary(LeakyRelu(slope)), &[self])
    }

    /// xᵖ.
    pub fn pow(&self, p: f64) -> Result<Tensor> {
        apply1(Unary(Pow(p)), &[self])
    }

    /// a·x + b with two constants.
    pub fn affine(&self, a: f64, b: f64) -> Result<Tensor> {
        apply1(Unary(Affine(a, b)), &[self])
    }

    /// x limited to `lo..=hi`.
    #[doc(alias = "clamp")]
    pub fn clip(&self, lo: f64, hi: f64) -> Result<Tensor> {
        if lo > hi || lo.is_nan() || hi.is_nan() {
            return Err(Error::invalid("clip", format!("the bounds {lo} and {hi} are in the wrong order")));
        }
        apply1(Unary(Clip(lo, hi)), &[self])
    }
}
