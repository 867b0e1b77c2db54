//! Batch normalization (Ioffe and Szegedy 2015): with the batch's statistics, or with given ones.

mod cpu;
mod following;
mod fused;
pub(super) mod gpu;

pub(crate) use following::{RunningStats, batch_norm_following};
pub use fused::{BatchNormInferenceRelu, BatchNormRelu};

use crate::{
    Array, Context, DType, Error, Layout, Result, Tensor,
    autograd::{Op, Saved, apply, apply1},
    cpu::{batch_norm::NormShape, buffers::Buffer, parallel},
    cuda::Launch,
    dtype::real_type,
};

/// y = γ(x − μ)/√(σ² + ε) + β with the mean μ and the biased variance σ² of each channel over the batch.
///
/// Inputs x (N, C, …) of rank 2 to 5, γ (C), β (C); outputs y like x, μ (C), σ² (C). For half-precision x the statistics are
/// f32, and γ and β f32 or of x's dtype. With m elements in a channel, x̂ = (x − μ)/√(σ² + ε), and gradients of all outputs:
/// dβ = Σ dy, dγ = Σ dy·x̂, dx = γ/√(σ² + ε)·(dy − dβ/m − x̂·dγ/m) + dμ/m + 2·dσ²·(x − μ)/m.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    /// ε, added to the variance.
    pub eps: f64,
}

/// y = γ(x − μ)/√(σ² + ε) + β with given μ and σ², for prediction.
///
/// Inputs x (N, C, …) of rank 2 to 5, then γ, β, μ, σ² (C); all of them have gradients. For half-precision x the pairs γ, β and
/// μ, σ² are f32 or of x's dtype.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormInference {
    /// ε, added to the variance.
    pub eps: f64,
}

/// f32 for f32 and the halves, f64 for f64.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The shape as (n, c, inner), when everything fits.
fn check(op: &'static str, eps: f64, x: &Array, rest: &[&Array]) -> Result<NormShape> {
    if !(eps >= 0.0 && eps.is_finite()) {
        return Err(Error::invalid(op, format!("eps is {eps}, it has to be finite and not negative")));
    }
    let (&[n, c, ..], 2..=5) = (x.shape(), x.rank()) else {
        return Err(Error::shape(op, "an input (N, C, …) of 2 to 5 dimensions is needed", &[x.shape()]));
    };
    if !x.dtype().is_float() {
        return Err(Error::DType { op, dtype: x.dtype(), hint: "a float type is needed; use `cast`" });
    }
    if rest.iter().any(|p| p.shape() != [c]) {
        let shapes: Vec<&[usize]> = std::iter::once(x).chain(rest.iter().copied()).map(Array::shape).collect();
        return Err(Error::shape(op, format!("parameters and statistics need shape ({c},), one value per channel"), &shapes));
    }
    for pair in rest.chunks(2) {
        for p in pair {
            if p.dtype() != pair[0].dtype() || (p.dtype() != x.dtype() && p.dtype() != wide(x.dtype())) {
                // An input of a half type goes with parameters of that type or f32.
                return Err(Error::DTypes { op, left: x.dtype(), right: p.dtype() });
            }
        }
    }
    Ok(NormShape { n, c, inner: x.shape()[2..].iter().product() })
}

/// What comes behind the normalization in the same pass.
#[derive(Clone, Copy, Debug, Default)]
struct Behind<'a> {
    /// ReLU, last.
    relu: bool,
    /// An array to add before ReLU, like x and in its memory order.
    residual: Option<&'a Array>,
}

/// The gradient that comes in, in x's memory order.
#[derive(Clone, Copy, Debug)]
struct Incoming<'a> {
    dy: &'a Array,
    /// Where there was ReLU, the output: what it made 0 sends nothing back.
    y: Option<&'a Array>,
    /// Whether the masked gradient itself is wanted, as the residual's.
    dr: bool,
}

/// Running statistics (C), which follow those of a batch in place: see [`Array::lerp_`].
#[derive(Debug)]
pub(crate) struct Running<'a> {
    pub mean: &'a mut Array,
    pub var: &'a mut Array,
    pub momentum: f64,
}

impl Running<'_> {
    /// Whether they lie where the kernel that finishes x's statistics can write them.
    fn lie_with(&self, x: &Array, channels: usize) -> bool {
        let lies = |a: &Array| a.shape() == [channels] && a.dtype() == wide(x.dtype()) && a.context() == x.context();
        x.context().is_gpu() && lies(self.mean) && lies(self.var)
    }
}

/// Gradients of all inputs.
#[derive(Debug, Default)]
struct Gradients {
    dx: Option<Array>,
    dgamma: Option<Array>,
    dbeta: Option<Array>,
    dmean: Option<Array>,
    dvar: Option<Array>,
    dr: Option<Array>,
}

/// [y, μ, σ²] with the batch's statistics, which `running` follow; keeps x, γ, μ, σ², and y behind ReLU.
fn train(
    op: &'static str,
    eps: f64,
    [x, gamma, beta]: [&Array; 3],
    behind: Behind,
    saved: &mut Saved,
    running: Option<Running>,
) -> Result<Vec<Array>> {
    let s = check(op, eps, x, &[gamma, beta])?;
    if s.count() == 0 && s.c > 0 {
        return Err(Error::shape(op, "an empty batch has no mean and variance", &[x.shape()]));
    }
    let (at_once, later) = match running {
        Some(r) if r.lie_with(x, s.c) => (Some(r), None),
        r => (None, r),
    };
    let [y, mean, var] = match x.context() {
        Context::Cpu => cpu::forward([x, gamma, beta], behind, eps, &s)?,
        Context::Gpu(_) => gpu::forward([x, gamma, beta], behind, eps, &s, at_once)?,
    };
    if let Some(Running { mean: running_mean, var: running_var, momentum }) = later {
        running_mean.lerp_(&mean, momentum)?;
        running_var.lerp_(&var, momentum)?;
    }
    if saved.wanted() {
        [x, gamma, &mean, &var].into_iter().chain(behind.relu.then_some(&y)).for_each(|a| saved.keep(a));
    }
    Ok(vec![y, mean, var])
}

/// y with given statistics; keeps what [`train`] keeps.
fn given(
    op: &'static str,
    eps: f64,
    [x, gamma, beta, mean, var]: [&Array; 5],
    behind: Behind,
    saved: &mut Saved,
) -> Result<Vec<Array>> {
    let s = check(op, eps, x, &[gamma, beta, mean, var])?;
    let y = match x.context() {
        Context::Cpu => cpu::inference(x, [gamma, beta, mean, var], behind, eps, &s)?,
        Context::Gpu(_) => gpu::normalize(x, [gamma, beta, mean, var], behind, eps, &s)?,
    };
    if saved.wanted() {
        [x, gamma, mean, var].into_iter().chain(behind.relu.then_some(&y)).for_each(|a| saved.keep(a));
    }
    Ok(vec![y])
}

/// Gradients from what was kept. In training `statistics` are the gradients of the outputs μ and σ²; `residual` is that input's number,
/// behind ReLU.
fn gradients(
    op: &'static str,
    eps: f64,
    saved: &Saved,
    dy: &Array,
    statistics: Option<(&Array, &Array)>,
    residual: Option<usize>,
) -> Result<Gradients> {
    let kept = [saved.get(0)?, saved.get(1)?, saved.get(2)?, saved.get(3)?];
    let s = check(op, eps, kept[0], &kept[1..2])?;
    let dy = dy.to_layout(kept[0].layout())?;
    let (y, dr) = match residual {
        Some(i) => (Some(saved.get(4)?), saved.needs(i)),
        None => (None, false),
    };
    let incoming = Incoming { dy: &dy, y, dr };
    match kept[0].context() {
        Context::Cpu => cpu::backward(kept, incoming, statistics, eps, &s),
        Context::Gpu(_) => gpu::backward(kept, incoming, statistics, saved.needs(0), eps, &s),
    }
}

impl BatchNorm {
    /// The forward pass, which running statistics may follow.
    fn run(&self, inputs: &[&Array], saved: &mut Saved, running: Option<Running>) -> Result<Vec<Array>> {
        let &[x, gamma, beta] = inputs else { return Err(Error::invalid(self.name(), "x, gamma and beta are needed")) };
        let y = train(self.name(), self.eps, [x, gamma, beta], Behind::default(), saved, running)?;
        saved.outputs(self.name(), inputs, y)
    }
}

impl Op for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        self.run(x, saved, None)
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy, dmean, dvar] = saved.gradients(self.name(), dy)?;
        let g = gradients(self.name(), self.eps, saved, dy, Some((dmean, dvar)), None)?;
        Ok(vec![g.dx, g.dgamma, g.dbeta])
    }
}

impl Op for BatchNormInference {
    fn name(&self) -> &'static str {
        "batch_norm_inference"
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let &[x, gamma, beta, mean, var] = inputs else {
            return Err(Error::invalid(self.name(), "x, gamma, beta, mean and var are needed"));
        };
        let y = given(self.name(), self.eps, [x, gamma, beta, mean, var], Behind::default(), saved)?;
        saved.outputs(self.name(), inputs, y)
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        let g = gradients(self.name(), self.eps, saved, dy, None, None)?;
        Ok(vec![g.dx, g.dgamma, g.dbeta, g.dmean, g.dvar])
    }
}

impl Array {
    /// self ← momentum·self + (1 − momentum)·recent, in place: how running statistics follow the batch's.
    ///
    /// ```
    /// use hadal::{Array, cpu};
    /// let mut running = Array::from_vec(vec![1f64], &[1], &cpu())?;
    /// running.lerp_(&Array::from_vec(vec![3f64], &[1], &cpu())?, 0.5)?;
    /// assert_eq!(running.item()?, 2.0);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes differ, [`Error::DType`] for integers, or f64 on one side only.
    pub fn lerp_(&mut self, recent: &Array, momentum: f64) -> Result<()> {
        let op = "lerp_";
        if self.shape() != recent.shape() {
            return Err(Error::shape(op, "the shapes differ", &[self.shape(), recent.shape()]));
        }
        self.context().same(op, &recent.context())?;
        if !(self.dtype().is_float() && recent.dtype().is_float()) || wide(self.dtype()) != wide(recent.dtype()) {
            return Err(Error::DType {
                op,
                dtype: recent.dtype(),
                hint: "two float types of one width of arithmetic are needed",
            });
        }
        let recent = recent.to_layout(self.layout())?;
        if self.context().is_gpu() {
            self.make_unique()?;
            let defines =
                [("scalar_t", self.dtype().into()), ("param_t", recent.dtype().into()), ("stat_t", recent.dtype().into())];
            return Launch::new(self, "batch_norm.cu", "lerp", &defines)?
                .array(self)
                .array(&recent)
                .value(momentum)
                .value(self.len() as i64)
                .run_1d(self.len());
        }
        *self = real_type!(op, self.dtype(), F => {
            let (a, b) = (self.real::<F>(op)?, recent.real::<F>(op)?);
            let (keep, take) = (momentum as F, (1.0 - momentum) as F);
            let mut out = Buffer::<F>::stale(a.len())?;
            parallel::zip(&mut out, &a, &b, |a, b| keep * a + take * b);
            Ok(Array::from_real(out, self.shape(), self.dtype())?.with_layout(self.layout()))
        })?;
        Ok(())
    }
}

impl Tensor {
    /// Batch normalization over axis 1 with the batch's own statistics: y, and for running statistics the mean and the biased
    /// variance per channel. See [`BatchNorm`].
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::from_vec(vec![1f32, 3., 10., 30.], &[2, 2], &cpu())?; // the columns are the channels
    /// let (one, zero) = (Tensor::ones(&[2], &cpu())?, Tensor::zeros(&[2], &cpu())?);
    /// let (y, mean, var) = x.batch_norm(&one, &zero, 0.0)?;
    /// assert_eq!(mean.to_vec()?, [5.5, 16.5]);
    /// assert_eq!(var.to_vec()?, [20.25, 182.25]);
    /// assert_eq!(y.to_vec()?, [-1., -1., 1., 1.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] unless x is (N, C, …) of rank 2 to 5 with values in it, and γ and β are (C).
    pub fn batch_norm(&self, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<(Tensor, Tensor, Tensor)> {
        match <[Tensor; 3]>::try_from(apply(BatchNorm { eps }, &[self, gamma, beta])?) {
            Ok([y, mean, var]) => Ok((y, mean, var)),
            Err(_) => Err(Error::invalid("batch_norm", "three outputs are expected")),
        }
    }

    /// Batch normalization over axis 1 with given statistics. See [`BatchNormInference`].
    ///
    /// # Errors
    /// As for [`Tensor::batch_norm`].
    pub fn batch_norm_inference(&self, gamma: &Tensor, beta: &Tensor, mean: &Tensor, var: &Tensor, eps: f64) -> Result<Tensor> {
        apply1(BatchNormInference { eps }, &[self, gamma, beta, mean, var])
    }
}

/// The input's memory as kernels know it: row-major has runs of `inner`, channels-last takes channels in turn.
fn memory_shape(x: &Array, s: &NormShape) -> NormShape {
    match x.layout() {
        // One channel is one run, in either order.
        _ if s.c == 1 => NormShape { n: 1, c: 1, inner: s.count() },
        Layout::ChannelsLast => NormShape { n: s.count(), c: s.c, inner: 1 },
        Layout::RowMajor => *s,
    }
}
