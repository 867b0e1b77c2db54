//! Dropout (Srivastava et al. 2014) with masks that are computed, not stored.

use std::sync::Arc;

use crate::{
    Array, Context, Error, Layout, Result, Tensor,
    autograd::{Op, Saved, apply1, is_training},
    cpu::{buffers::Buffer, parallel, simd},
    cuda::{Dims, Launch},
    dtype::{Real, real_type},
    random::{Draw, next_draw},
    shape::strides,
};

/// yᵢ = xᵢ / (1 − p) where the uniform number uᵢ of `draw` is at least p, else 0; dxᵢ = dyᵢ / (1 − p) there, else 0.
///
/// i is the row-major index of the element, whatever the layout, and uᵢ has 24 bits: for a seed the mask is the same bit for
/// bit on every device. It is never in memory; the backward pass computes it again. p = 0 keeps everything, p = 1 nothing.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// The probability that an element is dropped, in [0, 1].
    pub p: f64,
    /// Which random numbers.
    pub draw: Draw,
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let [x] = inputs else { return Err(Error::invalid(self.name(), "one input is needed")) };
        saved.outputs(self.name(), inputs, vec![self.masked(x)?])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        Ok(vec![Some(self.masked(dy)?)])
    }

    fn redrawn(&self, draw: Draw) -> Option<Arc<dyn Op>> {
        Some(Arc::new(Dropout { p: self.p, draw }))
    }
}

impl Dropout {
    /// x·mask / (1 − p)
    fn masked(&self, x: &Array) -> Result<Array> {
        if !(0.0..=1.0).contains(&self.p) {
            return Err(Error::invalid(self.name(), format!("the probability {} is outside of [0, 1]", self.p)));
        }
        match x.context() {
            Context::Cpu => real_type!(self.name(), x.dtype(), F => {
                let row_major = x.to_layout(Layout::RowMajor)?;
                let y = self.masked_slice(&row_major.real::<F>(self.name())?)?;
                Array::from_real(y, x.shape(), x.dtype())?.to_layout(x.layout())
            }),
            Context::Gpu(_) => self.launch(x),
        }
    }

    /// A word is kept when its upper 24 bits are at least this: u ≥ p without rounding.
    fn threshold(&self) -> u32 {
        (self.p * 16_777_216.0).ceil() as u32
    }

    fn scale(&self) -> f64 {
        if self.p < 1.0 { 1.0 / (1.0 - self.p) } else { 0.0 }
    }

    fn masked_slice<F: Real>(&self, x: &[F]) -> Result<Buffer<F>> {
        let (threshold, scale) = (self.threshold(), F::from_f64(self.scale()));
        let mut y = Buffer::<F>::stale(x.len())?;
        parallel::chunks(&mut y, |start, y| {
            simd::vectorized(
                #[inline(always)]
                || {
                    self.draw.batches(start, y.len(), |i, words| {
                        let here = i..i + words.len();
                        let x = &x[start + i..start + here.end];
                        for ((y, &x), &word) in y[here].iter_mut().zip(x).zip(words) {
                            *y = if word >> 8 >= threshold { x * scale } else { F::ZERO };
                        }
                    });
                },
            );
        });
        Ok(y)
    }

    fn launch(&self, x: &Array) -> Result<Array> {
        if !x.dtype().is_float() {
            return Err(Error::DType { op: self.name(), dtype: x.dtype(), hint: "a float type is needed; use `cast`" });
        }
        let (y, n) = (x.uninit_like()?, x.len());
        let define = [("scalar_t", x.dtype().into())];
        if let (Layout::ChannelsLast, &[n_, c, h, w]) = (x.layout(), x.shape()) {
            let (pack, size) = (16 / x.dtype().size(), h * w);
            if c.is_multiple_of(pack) && size.is_multiple_of(4) {
                let items = n / (4 * pack);
                return Launch::new(&y, "dropout.cu", "dropout_channels", &define)?
                    .array(&y)
                    .array(x)
                    .draw(self.draw)
                    .value(self.threshold())
                    .value(self.scale())
                    .value(size as i64)
                    .value(c as i64)
                    .value(items as i64)
                    .run_1d(items)
                    .map(|()| y);
            }
            let s = strides(x.shape(), Layout::RowMajor);
            Launch::new(&y, "dropout.cu", "dropout_strided", &define)?
                .array(&y)
                .array(x)
                .value(Dims::new(self.name(), &[n_, h, w, c], &[s[0], s[2], s[3], s[1]])?)
                .draw(self.draw)
                .value(self.threshold())
                .value(self.scale())
                .value(n as i64)
                .run_1d(n)?;
        } else {
            Launch::new(&y, "dropout.cu", "dropout", &define)?
                .array(&y)
                .array(x)
                .draw(self.draw)
                .value(self.threshold())
                .value(self.scale())
                .value(n as i64)
                .run_packed(n, y.dtype())?;
        }
        Ok(y)
    }
}

impl Tensor {
    /// In training mode x with each element dropped with probability `p` and the kept ones divided by 1 − p, from the thread's
    /// next draw; in prediction mode x itself. See [`Dropout`].
    ///
    /// ```
    /// use hadal::{Tensor, autograd, cpu};
    /// let x = Tensor::arange(1.0, 17.0, 1.0, &cpu())?;
    /// assert_eq!(x.dropout(0.5)?.to_vec()?, x.to_vec()?);
    /// let y = autograd::train_mode(|| x.dropout(0.5))?.to_vec()?;
    /// assert!(y.iter().zip(1..).all(|(&y, x)| y == 0.0 || y == 2.0 * x as f32));
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] when `p` is outside of [0, 1].
    pub fn dropout(&self, p: f64) -> Result<Tensor> {
        if !(0.0..=1.0).contains(&p) {
            return Err(Error::invalid("dropout", format!("the probability {p} is outside of [0, 1]")));
        }
        if !is_training() { Ok(self.clone()) } else { self.dropout_with(Dropout { p, draw: next_draw() }) }
    }

    /// Dropout with random numbers of the caller's, in either mode.
    pub fn dropout_with(&self, dropout: Dropout) -> Result<Tensor> {
        apply1(dropout, &[self])
    }
}
