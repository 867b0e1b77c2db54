//! Softmax cross-entropy of logits against labels or distributions of labels, one loss for each sample.

use std::borrow::Cow;

use crate::{
    Array, DType, Error, Layout, Result, Tensor,
    autograd::{Op, Saved, apply1},
    cpu::{buffers::Buffer, memory},
    cuda::Launch,
    dtype::{Real, element_type, real_type},
    gemm::split_k::accumulator,
    ops::rows::Rows,
    shape::axis,
};

/// ℓ = ln Σ exp(xⱼ) − x\[label\] along `axis`, averaged over all other axes but the first: one loss for each sample, shape (N).
///
/// Inputs: logits (N, …, C, …) and, with `sparse_label`, labels of the same shape without `axis` (or with an extent of 1
/// there): i64, u8, or floats that hold integers. Without it a distribution p of the logits' shape and dtype:
/// ℓ = Σ pⱼ (ln Σ exp(x) − xⱼ), where 0 · ∞ counts as 0.
///
/// dx = (softmax(x) − onehot(label))·dy, or (softmax(x)·Σp − p)·dy and dp = (ln Σ exp(x) − x)·dy; labels have no gradient.
/// Everything is accumulated in f32 at least; the losses are f32, of f64 logits f64.
///
/// On a GPU the kernel that reads the logits for the losses writes dx for dy = 1 too, where a gradient is wanted.
/// [`Tensor::backward`] on the losses themselves takes it as it is. Every other dy is multiplied with it for f32 and f64 logits, which
/// are then not kept; for bf16 that would round twice, and dx is computed again from the logits. Of f16 logits it is computed in the
/// backward pass only: with a loss scale, the usual case there, dy is never 1.
///
/// A label outside of 0..C is an error on the CPU. The GPU is not waited for: there the loss and this row of dx become NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxCrossEntropy {
    /// The axis of the classes; may count from the end.
    pub axis: isize,
    /// Labels are class numbers, not distributions.
    pub sparse_label: bool,
    /// The first input holds ln softmax(x) already.
    pub from_logits: bool,
    /// A factor on every loss.
    pub weight: f64,
}

impl Default for SoftmaxCrossEntropy {
    fn default() -> Self {
        SoftmaxCrossEntropy { axis: -1, sparse_label: true, from_logits: false, weight: 1.0 }
    }
}

/// What forward and backward share: rows of logits, and how many of them make a sample.
struct Plan {
    rows: Rows,
    samples: usize,
    /// Rows of a sample, over which the mean goes.
    per: usize,
    scale: f64,
}

impl Op for SoftmaxCrossEntropy {
    fn name(&self) -> &'static str {
        "softmax_cross_entropy"
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let [x, label] = inputs else { return Err(Error::invalid(self.name(), "logits and labels are needed")) };
        let axis = axis(self.name(), self.axis, x.rank())?;
        self.check(x, label, axis)?;
        // Channels-last rows come in the labels' order when the classes are the channels.
        let x = if axis == 1 { (*x).clone() } else { x.to_layout(Layout::RowMajor)? };
        let label = label.to_layout(if self.sparse_label { Layout::RowMajor } else { x.layout() })?;
        let plan = self.plan(&x, axis);
        if x.context().is_gpu() {
            let loss = self.forward_gpu(x, label, &plan, saved)?;
            return saved.outputs(self.name(), inputs, vec![loss]);
        }
        let (loss, stats) = real_type!(self.name(), x.dtype(), F => self.forward_cpu::<F>(&x, &label, &plan))?;
        if saved.wanted() {
            saved.keep(&x);
            saved.keep(&label);
            saved.keep(&stats);
        }
        saved.outputs(self.name(), inputs, vec![loss])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let ([dy], x) = (saved.gradients(self.name(), dy)?, saved.get(0)?);
        let plan = self.plan(x, axis(self.name(), self.axis, x.rank())?);
        if x.context().is_gpu() {
            return self.backward_gpu(saved, dy, &plan);
        }
        let (label, stats) = (saved.get(1)?, saved.get(2)?);
        real_type!(self.name(), x.dtype(), F => self.backward_cpu::<F>(saved, x, label, stats, dy, &plan))
    }
}

impl SoftmaxCrossEntropy {
    fn check(&self, x: &Array, label: &Array, axis: usize) -> Result<()> {
        let fail = |reason: &str| Err(Error::shape(self.name(), reason, &[x.shape(), label.shape()]));
        if !x.dtype().is_float() {
            return Err(Error::DType { op: self.name(), dtype: x.dtype(), hint: "logits need a float type; use `cast`" });
        }
        if !self.sparse_label {
            if label.dtype() != x.dtype() {
                let hint = "a distribution of labels needs the logits' dtype; use `cast`";
                return Err(Error::DType { op: self.name(), dtype: label.dtype(), hint });
            }
            return if x.shape() == label.shape() { Ok(()) } else { fail("a distribution of labels has the logits' shape") };
        }
        let (mut without, mut with) = (x.shape().to_vec(), x.shape().to_vec());
        without.remove(axis);
        with[axis] = 1;
        if label.shape() == without || label.shape() == with {
            Ok(())
        } else {
            fail("labels have the logits' shape without the axis of the classes (sparse_label = false takes distributions)")
        }
    }

    fn plan(&self, x: &Array, axis: usize) -> Plan {
        let rows = Rows::of(x, axis);
        let samples = if axis == 0 { 1 } else { x.shape()[0] };
        let per = rows.count().checked_div(samples).unwrap_or(1);
        Plan { rows, samples, per, scale: self.weight / per as f64 }
    }

    fn forward_cpu<F: Real>(&self, x: &Array, label: &Array, plan: &Plan) -> Result<(Array, Array)> {
        let (rows, name) = (plan.rows, self.name());
        let x_ = x.real::<F>(name)?;
        let classes = if self.sparse_label { Some(self.classes(label, plan)?) } else { None };
        let soft = if self.sparse_label { Cow::Borrowed(&[][..]) } else { label.real::<F>(name)? };
        let mut row_stats = memory::filled(rows.count(), (F::ZERO, F::ZERO, 0.0f64))?;
        rows.for_each(&mut row_stats, |first, chunk| {
            for (row, out) in (first..).zip(chunk) {
                let (mut m, mut log_s) = (F::ZERO, F::ZERO);
                if !self.from_logits {
                    m = rows.indices(row).fold(F::NEG_INFINITY, |m, i| if x_[i] > m { x_[i] } else { m });
                    log_s = F::from_f64(rows.indices(row).map(|i| (x_[i] - m).exp().to_f64()).sum::<f64>().ln());
                }
                // −ln q with q = exp(x − m) / s
                let surprise = |i: usize| (log_s - (x_[i] - m)).to_f64();
                let loss = match &classes {
                    Some(k) => surprise(rows.base(row) + k[row] * rows.inner()),
                    None => rows.indices(row).filter(|&i| soft[i] != F::ZERO).map(|i| soft[i].to_f64() * surprise(i)).sum(),
                };
                *out = (m, log_s, loss);
            }
        });
        let (mut loss, mut stats) = (Buffer::<F>::stale(plan.samples)?, Buffer::<F>::stale(2 * rows.count())?);
        for (b, loss) in loss.iter_mut().enumerate() {
            let sum: f64 = row_stats[b * plan.per..][..plan.per].iter().map(|s| s.2).sum();
            *loss = F::from_f64(plan.scale * sum);
        }
        for (row, s) in row_stats.iter().enumerate() {
            (stats[row], stats[rows.count() + row]) = (s.0, s.1);
        }
        Ok((
            Array::from_real(loss, &[plan.samples], accumulator(x.dtype()))?,
            Array::host(F::wrap(stats), &[2, rows.count()], F::DTYPE),
        ))
    }

    /// The labels as class numbers, all of them in range.
    fn classes(&self, label: &Array, plan: &Plan) -> Result<Vec<usize>> {
        let len = plan.rows.len();
        element_type!(label.dtype(), T => {
            let class = |(row, &l): (usize, &T)| {
                let v = crate::Element::to_f64(l);
                if v >= 0.0 && v < len as f64 && v.fract() == 0.0 {
                    return Ok(v as usize);
                }
                let at = if plan.per > 1 { format!(" (row {} of it)", row % plan.per) } else { String::new() };
                Err(Error::invalid(self.name(), format!("sample {}{at} has label {v}, the classes are 0 to {}", row / plan.per, len as i64 - 1)))
            };
            let labels = label.as_slice::<T>()?;
            let mut classes = memory::reserved(labels.len())?;
            for label in labels.iter().enumerate() {
                classes.push(class(label)?);
            }
            Ok(classes)
        })
    }

    fn backward_cpu<F: Real>(
        &self,
        saved: &Saved,
        x: &Array,
        label: &Array,
        stats: &Array,
        dy: &Array,
        plan: &Plan,
    ) -> Result<Vec<Option<Array>>> {
        let (rows, name) = (plan.rows, self.name());
        let (x_, stats, dy) = (x.real::<F>(name)?, stats.real::<F>(name)?, dy.real::<F>(name)?);
        let slab = rows.len() * rows.inner();
        // ln q of element i in row `row`
        let log_q = |row: usize, i: usize| x_[i] - stats[row] - stats[rows.count() + row];
        let q = |row: usize, i: usize| if self.from_logits { F::ZERO } else { log_q(row, i).exp() };
        let gradient = |row: usize| dy[row / plan.per] * F::from_f64(plan.scale);
        // Fills an array like x: `f(row, the row's places in the slab, slab)`.
        let build = |f: &(dyn Fn(usize, usize, &mut [F]) + Sync)| -> Result<Array> {
            let mut out = Buffer::<F>::stale(x.len())?;
            crate::cpu::parallel::rows(&mut out, slab, |o, out| {
                (0..rows.inner()).for_each(|i| f(o * rows.inner() + i, i, out));
            });
            Ok(Array::from_real(out, x.shape(), x.dtype())?.with_layout(x.layout()))
        };
        let places = |first: usize| (first..slab).step_by(rows.inner().max(1));
        if self.sparse_label {
            if !saved.needs(0) {
                return Ok(vec![None, None]);
            }
            let classes = self.classes(label, plan)?;
            let dx = build(&|row, first, out| {
                let (g, start) = (gradient(row), row / rows.inner() * slab);
                places(first).for_each(|i| out[i] = q(row, start + i) * g);
                let k = first + classes[row] * rows.inner();
                out[k] = (q(row, start + k) - F::ONE) * g;
            })?;
            return Ok(vec![Some(dx), None]);
        }
        let p = label.real::<F>(name)?;
        let dx = saved.needs(0).then(|| {
            build(&|row, first, out| {
                let (g, start) = (gradient(row), row / rows.inner() * slab);
                let sum: F = places(first).map(|i| p[start + i]).sum();
                places(first).for_each(|i| out[i] = (q(row, start + i) * sum - p[start + i]) * g);
            })
        });
        let dx = dx.transpose()?;
        let dp = saved.needs(1).then(|| {
            build(&|row, first, out| {
                let (g, start) = (gradient(row), row / rows.inner() * slab);
                places(first).for_each(|i| out[i] = -log_q(row, start + i) * g);
            })
        });
        let dp = dp.transpose()?;
        Ok(vec![dx, dp])
    }

    /// True where the forward pass leaves dx itself.
    fn leaves_gradient(&self, saved: &Saved, dtype: DType) -> bool {
        saved.needs(0) && !saved.needs(1) && dtype != DType::F16
    }

    /// True where dx is stored in fewer digits than it is computed in.
    fn rounds(dtype: DType) -> bool {
        matches!(dtype, DType::F16 | DType::BF16)
    }

    fn forward_gpu(&self, x: Array, label: Array, plan: &Plan, saved: &mut Saved) -> Result<Array> {
        let (ctx, wide) = (x.context(), accumulator(x.dtype()));
        let loss = Array::uninit(&[plan.samples], wide, Layout::RowMajor, &ctx)?;
        let dx = if self.leaves_gradient(saved, x.dtype()) { Some(x.uninit_like()?) } else { None };
        let outputs = |loss| Outputs { loss: Some(loss), dx: dx.as_ref(), ..Outputs::default() };
        if plan.per == 1 {
            self.launch(&x, &label, plan, outputs(&loss))?;
        } else {
            let rows = Array::uninit(&[plan.rows.count()], wide, Layout::RowMajor, &ctx)?;
            self.launch(&x, &label, plan, outputs(&rows))?;
            let sums = Rows::new(plan.samples, plan.per, 1);
            let launch = self.start("rows_mean", &x, label.dtype())?.array(&loss).array(&rows).value(sums).value(plan.scale);
            sums.run(launch)?;
        }
        if let Some(dx) = &dx {
            saved.keep(dx);
        }
        if saved.wanted() && (dx.is_none() || Self::rounds(x.dtype())) {
            saved.keep(&x);
            saved.keep(&label);
        }
        Ok(loss)
    }

    fn backward_gpu(&self, saved: &Saved, dy: &Array, plan: &Plan) -> Result<Vec<Option<Array>>> {
        let x = saved.get(0)?;
        if self.leaves_gradient(saved, x.dtype()) {
            // What was kept first is dx for dy = 1.
            if saved.dy_is_one() {
                return Ok(vec![Some(x.clone()), None]);
            }
            if Self::rounds(x.dtype()) {
                let (dx, x, label) = (x.uninit_like()?, saved.get(1)?, saved.get(2)?);
                self.launch(x, label, plan, Outputs { dx: Some(&dx), dy: Some(dy), ..Outputs::default() })?;
                return Ok(vec![Some(dx), None]);
            }
            let dx = x.uninit_like()?;
            self.start("scale_samples", x, DType::I64)?
                .array(&dx)
                .array(x)
                .array(dy)
                .value((x.len() / plan.samples.max(1)) as i64)
                .value(x.len() as i64)
                .run_packed(x.len(), x.dtype())?;
            return Ok(vec![Some(dx), None]);
        }
        let like_x = |wanted: bool| if wanted { x.uninit_like().map(Some) } else { Ok(None) };
        let dx = like_x(saved.needs(0))?;
        let dp = like_x(saved.needs(1) && !self.sparse_label)?;
        if dx.is_some() || dp.is_some() {
            self.launch(x, saved.get(1)?, plan, Outputs { loss: None, dx: dx.as_ref(), dp: dp.as_ref(), dy: Some(dy) })?;
        }
        Ok(vec![dx, dp])
    }

    fn start(&self, kernel: &'static str, x: &Array, label: DType) -> Result<Launch> {
        let defines = [("scalar_t", x.dtype().into()), ("label_t", label.into())];
        Launch::new(x, "softmax_cross_entropy.cu", kernel, &defines)
    }

    fn launch(&self, x: &Array, label: &Array, plan: &Plan, to: Outputs) -> Result<()> {
        let (rows, sparse) = (plan.rows, self.sparse_label);
        // Contiguous rows of few elements go through shared memory, which holds that many of them.
        let short = rows.inner() == 1 && rows.len() <= 128;
        let name = match (sparse, short) {
            (true, true) => "sparse_short",
            (true, false) => "sparse_long",
            (false, true) => "soft_short",
            (false, false) => "soft_long",
        };
        let mut launch = self.start(name, x, label.dtype())?;
        let mut address = |a: Option<&Array>| a.map_or(0, |a| launch.pointer(a));
        let pointers = [to.loss, to.dx, to.dp, to.dy].map(&mut address);
        let loss_scale = if plan.per == 1 { plan.scale } else { 1.0 };
        let [per, normalized] = [plan.per as u64, u64::from(self.from_logits)];
        let numbers = [loss_scale.to_bits(), plan.scale.to_bits(), per, normalized];
        let launch = launch.value([pointers, numbers]).array(x).array(label);
        if !short {
            // Few rows are shared by whole blocks, so that more of the card has work.
            let block = rows.inner() == 1 && (rows.len() > 1024 || (rows.len() >= 512 && rows.count() < 4096));
            let rows = if block { rows.shared_by(256) } else { rows };
            return rows.run(launch.value(rows));
        }
        // Four elements for each thread, and as many rounds as leave enough tiles for the whole card.
        let team = rows.len().div_ceil(4).next_power_of_two();
        let rounds = match rows.count() * team / 256 {
            0..2048 => 1,
            2048..8192 => 2,
            _ => 4,
        };
        let tile = 256 / team * if sparse { rounds } else { rounds.min(2) };
        let launch = launch.value(rows.shared_by(team)).value(tile as i32);
        launch.run([rows.count().div_ceil(tile).min(1 << 20) as u32, 1, 1], [256, 1, 1], 0)
    }
}

/// What a kernel of `softmax_cross_entropy.cu` writes, and the gradient that it multiplies with.
#[derive(Clone, Copy, Default)]
struct Outputs<'a> {
    loss: Option<&'a Array>,
    dx: Option<&'a Array>,
    dp: Option<&'a Array>,
    dy: Option<&'a Array>,
}

impl Tensor {
    /// ln Σ exp(xⱼ) − x\[label\] for each row of logits (N, C) and labels (N): losses (N). See [`SoftmaxCrossEntropy`].
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let logits = Tensor::from_vec(vec![0f32, 3f32.ln()], &[1, 2], &cpu())?;
    /// let loss = logits.softmax_cross_entropy(&Tensor::from_vec(vec![1i64], &[1], &cpu())?)?;
    /// assert!((loss.item()? - (4.0f64 / 3.0).ln()).abs() < 1e-6);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] when the labels do not fit, on the CPU [`Error::Invalid`] for a label outside of 0..C.
    #[doc(alias = "cross_entropy")]
    pub fn softmax_cross_entropy(&self, label: &Tensor) -> Result<Tensor> {
        apply1(SoftmaxCrossEntropy::default(), &[self, label])
    }
}
