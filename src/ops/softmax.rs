//! softmax and log-softmax along one axis.

use crate::{
    Array, Context, Error, Result, Tensor,
    autograd::{Op, Saved, apply1},
    cpu::{buffers::Buffer, memory, parallel},
    cuda::Launch,
    dtype::{Real, real_type},
    ops::rows::Rows,
    shape::axis,
};

/// yᵢ = exp(xᵢ − m) / Σ exp(xⱼ − m) with m = max x, or with `log` yᵢ = xᵢ − m − ln Σ exp(xⱼ − m), along `axis`.
///
/// dx = y·(dy − Σ y·dy), or with `log` dx = dy − eʸ·Σ dy. An entry of −∞ has probability 0; a row of nothing else is NaN.
#[derive(Clone, Copy, Debug)]
pub struct Softmax {
    /// The axis of the classes; may count from the end.
    pub axis: isize,
    /// The logarithm of the probabilities.
    pub log: bool,
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "log_softmax" } else { "softmax" }
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let [x] = inputs else { return Err(Error::invalid(self.name(), "one input is needed")) };
        let rows = Rows::of(x, axis(self.name(), self.axis, x.rank())?);
        let y = match x.context() {
            Context::Cpu => real_type!(self.name(), x.dtype(), F => {
                let y = forward::<F>(&x.real::<F>(self.name())?, rows, self.log)?;
                Ok(Array::from_real(y, x.shape(), x.dtype())?.with_layout(x.layout()))
            })?,
            Context::Gpu(_) => {
                let y = x.uninit_like()?;
                self.launch("softmax_fwd", &[&y, x], rows)?;
                y
            }
        };
        if saved.wanted() {
            saved.keep(&y);
        }
        saved.outputs(self.name(), inputs, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let ([dy], y) = (saved.gradients(self.name(), dy)?, saved.get(0)?);
        let rows = Rows::of(y, axis(self.name(), self.axis, y.rank())?);
        let dy = dy.to_layout(y.layout())?;
        let dx = match y.context() {
            Context::Cpu => real_type!(self.name(), y.dtype(), F => {
                let dx = backward::<F>(&y.real::<F>(self.name())?, &dy.real::<F>(self.name())?, rows, self.log)?;
                Ok(Array::from_real(dx, y.shape(), y.dtype())?.with_layout(y.layout()))
            })?,
            Context::Gpu(_) => {
                let dx = y.uninit_like()?;
                self.launch("softmax_bwd", &[&dx, y, &dy], rows)?;
                dx
            }
        };
        Ok(vec![Some(dx)])
    }
}

impl Softmax {
    fn launch(&self, kernel: &'static str, arrays: &[&Array], rows: Rows) -> Result<()> {
        let dtype = arrays[0].dtype();
        if !dtype.is_float() {
            return Err(Error::DType { op: self.name(), dtype, hint: "a float type is needed; use `cast`" });
        }
        let mut launch = Launch::new(arrays[0], "softmax.cu", kernel, &[("scalar_t", dtype.into())])?;
        for array in arrays {
            launch = launch.array(array);
        }
        rows.run(launch.value(rows).value(i32::from(self.log)))
    }
}

/// The larger of two; a NaN is passed over (the sum after it is NaN anyway).
fn max<F: Real>(a: F, b: F) -> F {
    if b > a { b } else { a }
}

/// One slab (len, inner) at a time; sums are kept in f64, which costs nothing beside the exponentials.
fn forward<F: Real>(x: &[F], rows: Rows, log: bool) -> Result<Buffer<F>> {
    let (len, inner) = (rows.len(), rows.inner());
    let mut y = Buffer::<F>::stale(x.len())?;
    parallel::try_rows(&mut y, len * inner, |slab, y| {
        let x = &x[slab * len * inner..][..len * inner];
        let (mut m, mut s) = (memory::filled(inner, F::NEG_INFINITY)?, memory::filled(inner, 0.0f64)?);
        for x in x.chunks(inner) {
            m.iter_mut().zip(x).for_each(|(m, &x)| *m = max(*m, x));
        }
        for (y, x) in y.chunks_mut(inner).zip(x.chunks(inner)) {
            for i in 0..inner {
                let e = (x[i] - m[i]).exp();
                s[i] += e.to_f64();
                y[i] = if log { x[i] - m[i] } else { e };
            }
        }
        for y in y.chunks_mut(inner) {
            for i in 0..inner {
                y[i] = if log { y[i] - F::from_f64(s[i].ln()) } else { y[i] * F::from_f64(1.0 / s[i]) };
            }
        }
        Ok(())
    })?;
    Ok(y)
}

fn backward<F: Real>(y: &[F], dy: &[F], rows: Rows, log: bool) -> Result<Buffer<F>> {
    let (len, inner) = (rows.len(), rows.inner());
    let mut dx = Buffer::<F>::stale(y.len())?;
    parallel::try_rows(&mut dx, len * inner, |slab, dx| {
        let range = slab * len * inner..(slab + 1) * len * inner;
        let (y, dy) = (&y[range.clone()], &dy[range]);
        let mut s = memory::filled(inner, 0.0f64)?;
        for (y, dy) in y.chunks(inner).zip(dy.chunks(inner)) {
            for i in 0..inner {
                s[i] += if log { dy[i].to_f64() } else { y[i].to_f64() * dy[i].to_f64() };
            }
        }
        for ((dx, y), dy) in dx.chunks_mut(inner).zip(y.chunks(inner)).zip(dy.chunks(inner)) {
            for i in 0..inner {
                let s = F::from_f64(s[i]);
                dx[i] = if log { dy[i] - y[i].exp() * s } else { y[i] * (dy[i] - s) };
            }
        }
        Ok(())
    })?;
    Ok(dx)
}

impl Tensor {
    /// Probabilities exp(xᵢ) / Σ exp(xⱼ) along `axis`, of the same shape; safe for any finite logits.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::from_vec(vec![0f32, 3f32.ln(), 1e4, 1e4], &[2, 2], &cpu())?;
    /// let y = x.softmax(-1)?.to_vec()?;
    /// assert!((y[0] - 0.25).abs() < 1e-6 && (y[1] - 0.75).abs() < 1e-6);
    /// assert_eq!(y[2..], [0.5, 0.5]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no such axis, [`Error::DType`] for integers.
    pub fn softmax(&self, axis: isize) -> Result<Tensor> {
        apply1(Softmax { axis, log: false }, &[self])
    }

    /// xᵢ − ln Σ exp(xⱼ) along `axis`, of the same shape.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let y = Tensor::zeros(&[1, 4], &cpu())?.log_softmax(-1)?.to_vec()?;
    /// assert!((y[0] + 4f32.ln()).abs() < 1e-6);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`Tensor::softmax`].
    pub fn log_softmax(&self, axis: isize) -> Result<Tensor> {
        apply1(Softmax { axis, log: true }, &[self])
    }
}
