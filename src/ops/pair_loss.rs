//! Losses of predictions against labels of the same size, one for each sample: squared, absolute, binary cross-entropy.

use crate::{
    Array, Context, Element, Error, Layout, Result,
    autograd::{Op, Saved},
    cpu::{buffers::Buffer, parallel},
    cuda::{Define, Launch},
    dtype::{Real, real_type},
    gemm::split_k::accumulator,
    ops::rows::Rows,
};

/// Which function f(x, z) of a prediction x and a label z.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairLossKind {
    /// ½(x − z)²
    Squared,
    /// |x − z|; derivative 0 at 0.
    Absolute,
    /// −z·ln σ(x) − (1 − z)·ln(1 − σ(x)) = max(x, 0) − x·z + ln(1 + e^−|x|) for a logit x.
    SigmoidCrossEntropy,
    /// −z·ln(x + t) − (1 − z)·ln(1 − x + t) for a probability x, with t = 10⁻¹² as MXNet has it (in f32, 1 + t is 1).
    ProbabilityCrossEntropy,
}

use PairLossKind::*;

/// ℓ_b = weight · mean f(x, z) over the elements of sample b: shape (N) from (N, …).
///
/// The label has as many elements as the prediction, and as many samples; where the shapes differ it is read in the prediction's, as
/// Gluon does.
/// Both have one float dtype; the losses are f32, of f64 f64. Sums are taken in f64 on the CPU and f32 at least on the GPU.
/// dx = dy_b · weight/m · ∂f/∂x and dz = dy_b · weight/m · ∂f/∂z, m the elements of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// The function.
    pub kind: PairLossKind,
    /// A factor on every loss.
    pub weight: f64,
}

const TINY: f64 = 1e-12;

impl PairLossKind {
    fn word(self) -> &'static str {
        match self {
            Squared => "SQUARED",
            Absolute => "ABSOLUTE",
            SigmoidCrossEntropy => "SIGMOID_CROSS_ENTROPY",
            ProbabilityCrossEntropy => "PROBABILITY_CROSS_ENTROPY",
        }
    }

    /// f(x, z)
    fn value<F: Real>(self, x: F, z: F) -> F {
        let tiny = F::from_f64(TINY);
        match self {
            Squared => F::from_f64(0.5) * (x - z) * (x - z),
            Absolute => (x - z).abs(),
            SigmoidCrossEntropy => (if x > F::ZERO { x } else { F::ZERO }) - x * z + (-x.abs()).exp().ln_1p(),
            ProbabilityCrossEntropy => -(z * (x + tiny).ln() + (F::ONE - z) * (F::ONE - x + tiny).ln()),
        }
    }

    /// ∂f/∂x
    fn d_x<F: Real>(self, x: F, z: F) -> F {
        let tiny = F::from_f64(TINY);
        match self {
            Squared => x - z,
            Absolute => sign(x - z),
            SigmoidCrossEntropy => {
                let e = (-x.abs()).exp();
                let y = F::ONE / (F::ONE + e);
                (if x < F::ZERO { e * y } else { y }) - z
            }
            ProbabilityCrossEntropy => (F::ONE - z) / (F::ONE - x + tiny) - z / (x + tiny),
        }
    }

    /// ∂f/∂z
    fn d_z<F: Real>(self, x: F, z: F) -> F {
        let tiny = F::from_f64(TINY);
        match self {
            Squared => z - x,
            Absolute => sign(z - x),
            SigmoidCrossEntropy => -x,
            ProbabilityCrossEntropy => (F::ONE - x + tiny).ln() - (x + tiny).ln(),
        }
    }
}

fn sign<F: Real>(x: F) -> F {
    let step = |yes: bool| if yes { F::ONE } else { F::ZERO };
    step(x > F::ZERO) - step(x < F::ZERO)
}

impl Op for PairLoss {
    fn name(&self) -> &'static str {
        match self.kind {
            Squared => "l2_loss",
            Absolute => "l1_loss",
            SigmoidCrossEntropy | ProbabilityCrossEntropy => "sigmoid_binary_cross_entropy",
        }
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let [x, z] = inputs else { return Err(Error::invalid(self.name(), "a prediction and a label are needed")) };
        if x.len() != z.len() {
            return Err(Error::shape(self.name(), "a label needs as many elements as the prediction", &[x.shape(), z.shape()]));
        }
        // (N, 1) against (N) is the same data; (2, 3) against (3, 2) would compare elements of different samples.
        let wide = |a: &Array| a.shape().iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
        if x.shape().first() != z.shape().first() && wide(x) != wide(z) {
            let reason = "a label needs as many samples as the prediction (extents of the first axis)";
            return Err(Error::shape(self.name(), reason, &[x.shape(), z.shape()]));
        }
        if !x.dtype().is_float() || x.dtype() != z.dtype() {
            let (dtype, hint) = (z.dtype(), "prediction and label need the same float type; use `cast`");
            return Err(Error::DType { op: self.name(), dtype, hint });
        }
        let (x, z) = (x.to_layout(Layout::RowMajor)?, z.to_layout(Layout::RowMajor)?);
        let shape = &x.shape()[..x.rank().min(1)];
        let (rows, scale) = self.plan(&x);
        let loss = match x.context() {
            Context::Cpu => real_type!(self.name(), x.dtype(), F => {
                let (x_, z_) = (x.real::<F>(self.name())?, z.real::<F>(self.name())?);
                let mut loss = Buffer::<F>::stale(rows.count())?;
                rows.for_each(&mut loss, |first, chunk| {
                    for (row, loss) in (first..).zip(chunk) {
                        let sum: f64 = rows.indices(row).map(|i| self.kind.value(x_[i], z_[i]).to_f64()).sum();
                        *loss = F::from_f64(scale * sum);
                    }
                });
                Array::from_real(loss, shape, accumulator(x.dtype()))
            })?,
            Context::Gpu(_) => {
                let loss = Array::uninit(shape, accumulator(x.dtype()), Layout::RowMajor, &x.context())?;
                let launch = self.start("pair_loss_fwd", &x)?.array(&loss).array(&x).array(&z).value(rows).value(scale);
                rows.run(launch)?;
                loss
            }
        };
        if saved.wanted() {
            saved.keep(&x);
            saved.keep(&z);
        }
        saved.outputs(self.name(), inputs, vec![loss])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let ([dy], x, z) = (saved.gradients(self.name(), dy)?, saved.get(0)?, saved.get(1)?);
        let (rows, scale) = self.plan(x);
        let per = rows.len();
        if x.context().is_gpu() {
            let like = |i: usize, a: &Array| if saved.needs(i) { a.uninit_like().map(Some) } else { Ok(None) };
            let (dx, dz) = (like(0, x)?, like(1, z)?);
            self.start("pair_loss_bwd", x)?
                .optional(dx.as_ref())
                .optional(dz.as_ref())
                .array(x)
                .array(z)
                .array(dy)
                .value(per as i64)
                .value(scale)
                .value(x.len() as i64)
                .run_1d(x.len())?;
            return Ok(vec![dx, dz]);
        }
        real_type!(self.name(), x.dtype(), F => {
            let (x_, z_, dy) = (x.real::<F>(self.name())?, z.real::<F>(self.name())?, dy.real::<F>(self.name())?);
            let (scale, dead) = (F::from_f64(scale), self.kind == Absolute);
            let gradient = |shape: &[usize], f: &(dyn Fn(F, F) -> F + Sync)| {
                let mut out = Buffer::<F>::stale(x.len())?;
                parallel::rows(&mut out, per, |b, out| {
                    let g = dy[b] * scale;
                    for (k, out) in out.iter_mut().enumerate() {
                        let d = f(x_[b * per + k], z_[b * per + k]);
                        // A dead unit of |x − z|: nothing of an infinite g.
                        *out = if dead && d == F::ZERO { F::ZERO } else { g * d };
                    }
                });
                Array::from_real(out, shape, x.dtype())
            };
            let dx = saved.needs(0).then(|| gradient(x.shape(), &|x, z| self.kind.d_x(x, z))).transpose()?;
            let dz = saved.needs(1).then(|| gradient(z.shape(), &|x, z| self.kind.d_z(x, z))).transpose()?;
            Ok(vec![dx, dz])
        })
    }
}

impl PairLoss {
    /// Samples as rows, and what each sum is multiplied with.
    fn plan(&self, x: &Array) -> (Rows, f64) {
        let (samples, per) = match x.shape().split_first() {
            Some((&n, rest)) => (n, rest.iter().product()),
            None => (1, 1usize),
        };
        (Rows::new(samples, per, 1), self.weight / per as f64)
    }

    fn start(&self, kernel: &'static str, x: &Array) -> Result<Launch> {
        let defines = [("scalar_t", x.dtype().into()), ("FUNCTION", Define::Word(self.kind.word()))];
        Launch::new(x, "pair_loss.cu", kernel, &defines)
    }
}
