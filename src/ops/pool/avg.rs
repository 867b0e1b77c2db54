//! Average pooling.

use super::{
    PoolOptions,
    device::{Kernels, Pass},
    ordinary, under,
};
use crate::{
    Array, Context, DType, Error, Layout, Result, Tensor,
    autograd::{Op, Saved, apply1},
    cpu::{
        buffers::Buffer,
        pooling::{PoolShape, avg_pool_backward, avg_pool_forward},
    },
    dtype::{Element, Real, real_type},
    ops::operands::same_float,
    shape::numel,
};

/// y\[n, c, i, j\] = the mean of x\[n, c\] under the window at (i, j); (N, C, H, W) → (N, C, OH, OW).
///
/// Padding counts as zeros, or not at all without [`PoolOptions::count_include_pad`]. dx spreads each dy evenly over its window.
#[derive(Clone, Copy, Debug, Default)]
pub struct AvgPool2d(pub PoolOptions);

/// How many elements the mean of output `o` divides by, along one axis.
fn counted(s: &PoolShape, axis: usize, o: usize) -> usize {
    if !s.count_include_pad {
        return under(s, axis, o).len();
    }
    let padded = s.padding[axis] + s.padding[axis + 2] + if axis == 0 { s.h } else { s.w };
    let start = o * s.stride[axis];
    (start + s.kernel[axis]).min(padded) - start
}

/// Calls `f(index in x, index in y, 1 / size of the window)` for every element under every window.
fn shares<F: Real>(s: &PoolShape, mut f: impl FnMut(usize, usize, F)) {
    let (oh, ow) = (s.out_h(), s.out_w());
    for i in 0..s.planes * oh * ow {
        let (plane, oy, ox) = (i / (oh * ow) * s.h * s.w, i / ow % oh, i % ow);
        let share = F::ONE / F::from_f64(counted(s, 0, oy) as f64 * counted(s, 1, ox) as f64);
        for row in under(s, 0, oy) {
            for col in under(s, 1, ox) {
                f(plane + row * s.w + col, i, share);
            }
        }
    }
}

const FORWARD: Kernels = Kernels { file: "avg_pool.cu", each: "avg_pool_fwd", packed: Some("avg_pool_fwd_packed"), rows: None };
const BACKWARD: Kernels =
    Kernels { file: "avg_pool.cu", each: "avg_pool_bwd", packed: Some("avg_pool_bwd_packed"), rows: Some("avg_pool_bwd_rows") };

impl Op for AvgPool2d {
    fn name(&self) -> &'static str {
        "avg_pool2d"
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let dtype = same_float(self.name(), inputs)?;
        let [x] = inputs else { return Err(Error::invalid(self.name(), "one input is needed")) };
        let (s, shape) = self.0.plan(self.name(), x.shape())?;
        if let Context::Gpu(_) = x.context() {
            let y = Array::uninit(&shape, dtype, x.layout(), &x.context())?;
            Pass::new(self.name(), &FORWARD, &s, &shape, &y, false)?.array(Some(&y)).array(Some(x)).run()?;
            return saved.outputs(self.name(), inputs, vec![y]);
        }
        let rows = x.to_layout(Layout::RowMajor)?;
        let y = real_type!(self.name(), dtype, F => {
            let rows = rows.real::<F>(self.name())?;
            let mut y = Buffer::<F>::zeros(numel(&shape))?;
            if F::DTYPE == DType::F32 && ordinary(&s) {
                avg_pool_forward(bytemuck::cast_slice(&rows), bytemuck::cast_slice_mut(&mut y), &s)?;
            } else {
                shares::<F>(&s, |ix, iy, share| y[iy] += rows[ix] * share);
            }
            Array::from_real(y, &shape, dtype)
        })?;
        saved.outputs(self.name(), inputs, vec![y.to_layout(x.layout())?])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let (s, shape) = self.0.plan(self.name(), saved.shape(0))?;
        let [dy] = saved.gradients(self.name(), dy)?;
        let dtype = dy.dtype();
        if let Context::Gpu(_) = dy.context() {
            let dx = Array::uninit(saved.shape(0), dtype, dy.layout(), &dy.context())?;
            Pass::new(self.name(), &BACKWARD, &s, &shape, &dx, true)?.array(Some(&dx)).array(Some(dy)).run()?;
            return Ok(vec![Some(dx)]);
        }
        let rows = dy.to_layout(Layout::RowMajor)?;
        let dx = real_type!(self.name(), dtype, F => {
            let rows = rows.real::<F>(self.name())?;
            let mut dx = Buffer::<F>::zeros(s.x_len())?;
            if F::DTYPE == DType::F32 && ordinary(&s) {
                avg_pool_backward(bytemuck::cast_slice(&rows), bytemuck::cast_slice_mut(&mut dx), &s)?;
            } else {
                shares::<F>(&s, |ix, iy, share| dx[ix] += rows[iy] * share);
            }
            Array::from_real(dx, saved.shape(0), dtype)
        })?;
        Ok(vec![Some(dx.to_layout(dy.layout())?)])
    }
}

impl Tensor {
    /// The mean under a sliding window; (N, C, H, W) → (N, C, OH, OW), in the input's layout.
    ///
    /// # Errors
    /// As [`Tensor::max_pool2d`].
    ///
    /// ```
    /// use hadal::{Tensor, cpu, ops::PoolOptions};
    /// let x = Tensor::arange(0.0, 9.0, 1.0, &cpu())?.array().reshape(&[1, 1, 3, 3])?;
    /// let y = Tensor::new(x).avg_pool2d(PoolOptions::new(2).stride(1))?;
    /// assert_eq!(y.to_vec()?, [2., 3., 5., 6.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn avg_pool2d(&self, options: PoolOptions) -> Result<Tensor> {
        apply1(AvgPool2d(options), &[self])
    }
}
