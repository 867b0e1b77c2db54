//! Arrays of random numbers: uniform and normal.

use crate::{
    Array, Context, DType, Element, Error, Layout, Result, Tensor,
    cpu::{buffers::Buffer, parallel, simd},
    cuda::Launch,
    dtype::{Real, real_type},
    random::{Draw, next_draw, unit},
    shape::checked_numel,
};

/// An array of `shape` from the next draw: `kernel` on the device, `f(draw, start, chunk)` on the host.
fn fill<F: Real>(
    kernel: &'static str,
    (a, b): (f64, f64),
    shape: &[usize],
    dtype: DType,
    ctx: &Context,
    f: impl Fn(Draw, usize, &mut [F]) + Sync,
) -> Result<Array> {
    let n = checked_numel(kernel, shape)?;
    if ctx.is_gpu() {
        let (out, draw) = (Array::uninit(shape, dtype, Layout::RowMajor, ctx)?, next_draw());
        Launch::new(&out, "random.cu", kernel, &[("scalar_t", dtype.into())])?
            .array(&out)
            .draw(draw)
            .value(a)
            .value(b)
            .value(out.len() as i64)
            .run_1d(out.len().div_ceil(4))?;
        return Ok(out);
    }
    // No memory, no draw.
    let (mut data, draw) = (Buffer::<F>::stale(n)?, next_draw());
    parallel::chunks(&mut data, |start, chunk| f(draw, start, chunk));
    Array::from_real(data, shape, dtype)
}

impl Array {
    /// Uniform numbers lo + (hi − lo)·u of the thread's next draw, u in [0, 1) with 24 bits; the same bits on every device.
    ///
    /// Rounding may bring the largest ones to `hi` itself.
    ///
    /// ```
    /// use hadal::{Array, DType, cpu};
    /// let a = Array::uniform(-1.0, 1.0, &[2, 3], DType::F64, &cpu())?;
    /// assert!(a.to_f64_vec()?.iter().all(|x| (-1.0..=1.0).contains(x)));
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] unless `lo ≤ hi` are finite, [`Error::DType`] for an integer dtype.
    #[doc(alias = "rand")]
    pub fn uniform(lo: f64, hi: f64, shape: &[usize], dtype: DType, ctx: &Context) -> Result<Self> {
        if !(lo <= hi && (hi - lo).is_finite()) {
            return Err(Error::invalid("uniform", format!("{lo} to {hi} is no range of numbers")));
        }
        let width = hi - lo;
        real_type!("uniform", dtype, F => {
            let (lo_, width_) = (F::from_f64(lo), F::from_f64(width));
            fill::<F>("uniform", (lo, width), shape, dtype, ctx, |draw, start, chunk| {
                simd::vectorized(
                    #[inline(always)]
                    || {
                        draw.batches(start, chunk.len(), |i, words| {
                            for (y, &w) in chunk[i..i + words.len()].iter_mut().zip(words) {
                                *y = lo_ + width_ * F::from_f64(f64::from(unit(w)));
                            }
                        });
                    },
                );
            })
        })
    }

    /// Normal numbers mean + std·z of the thread's next draw, z by Box and Muller's transform; the same on every device but
    /// for the rounding of ln, sin and cos.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless `mean` and `std` ≥ 0 are finite, [`Error::DType`] for an integer dtype.
    #[doc(alias = "randn")]
    pub fn normal(mean: f64, std: f64, shape: &[usize], dtype: DType, ctx: &Context) -> Result<Self> {
        if !(mean.is_finite() && std.is_finite() && std >= 0.0) {
            return Err(Error::invalid("normal", format!("mean {mean} and standard deviation {std} are no normal distribution")));
        }
        real_type!("normal", dtype, F => {
            let (mean_, std_) = (F::from_f64(mean), F::from_f64(std));
            fill::<F>("normal", (mean, std), shape, dtype, ctx, |draw, start, chunk| {
                // Chunks begin at a multiple of four.
                for (k, pair) in chunk.chunks_mut(2).enumerate() {
                    for (y, z) in pair.iter_mut().zip(draw.normal_pair((start / 2 + k) as u64)) {
                        *y = mean_ + std_ * F::from_f64(f64::from(z));
                    }
                }
            })
        })
    }
}

impl Tensor {
    /// f32, uniform in `lo..hi`; see [`Array::uniform`].
    ///
    /// ```
    /// use hadal::{Tensor, cpu, random};
    /// random::seed(1);
    /// let x = Tensor::uniform(0.0, 1.0, &[1000], &cpu())?;
    /// let mean = x.to_vec()?.iter().sum::<f32>() / 1000.0;
    /// assert!((mean - 0.5).abs() < 0.05);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn uniform(lo: f64, hi: f64, shape: &[usize], ctx: &Context) -> Result<Self> {
        Array::uniform(lo, hi, shape, DType::F32, ctx).map(Self::new)
    }

    /// f32, normal with that mean and standard deviation; see [`Array::normal`].
    ///
    /// ```
    /// use hadal::{Tensor, cpu, random};
    /// random::seed(1);
    /// let w = Tensor::normal(0.0, 0.01, &[784, 10], &cpu())?;
    /// assert_eq!(w.shape(), [784, 10]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn normal(mean: f64, std: f64, shape: &[usize], ctx: &Context) -> Result<Self> {
        Array::normal(mean, std, shape, DType::F32, ctx).map(Self::new)
    }
}
