//! Maximum pooling.

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
        pooling::{PoolShape, max_pool_backward, max_pool_forward},
    },
    dtype::{Element, Real, real_type},
    ops::operands::same_float,
    shape::numel,
};

/// y\[n, c, i, j\] = the maximum of x\[n, c\] under the window at (i, j); (N, C, H, W) → (N, C, OH, OW).
///
/// dx gets each dy at the place of its maximum: the first one in row-major order where several are equal. A NaN wins over
/// everything; padding never wins.
#[derive(Clone, Copy, Debug, Default)]
pub struct MaxPool2d(pub PoolOptions);

/// On the host: the winners' places in their planes, two i32 in each i64 (there is no dtype i32).
fn places_of(outputs: usize) -> Result<Buffer<i64>> {
    Buffer::stale(outputs.div_ceil(2))
}

/// On the device: the type of a winner's number in its window.
fn tap_type(kernel: [usize; 2]) -> DType {
    if kernel[0].saturating_mul(kernel[1]) <= 256 { DType::U8 } else { DType::I64 }
}

fn forward(tap: DType) -> Kernels {
    match tap {
        DType::U8 => Kernels { file: "max_pool.cu", each: "max_pool_fwd", packed: Some("max_pool_fwd_packed"), rows: None },
        _ => wide("max_pool_fwd_wide"),
    }
}

fn backward(tap: DType) -> Kernels {
    match tap {
        DType::U8 => Kernels {
            file: "max_pool.cu",
            each: "max_pool_bwd",
            packed: Some("max_pool_bwd_packed"),
            rows: Some("max_pool_bwd_rows"),
        },
        _ => wide("max_pool_bwd_wide"),
    }
}

/// For windows of more than 256 taps there is one kernel.
fn wide(name: &'static str) -> Kernels {
    Kernels { file: "max_pool.cu", each: name, packed: None, rows: None }
}

/// The definition in plain loops.
fn reference<F: Real>(x: &[F], y: &mut [F], places: &mut [i32], s: &PoolShape) {
    let (oh, ow) = (s.out_h(), s.out_w());
    for (i, (y, place)) in y.iter_mut().zip(places).enumerate() {
        let (plane, oy, ox) = (&x[i / (oh * ow) * s.h * s.w..], i / ow % oh, i % ow);
        let mut best: Option<(F, usize)> = None;
        for row in under(s, 0, oy) {
            for col in under(s, 1, ox) {
                let (at, v) = (row * s.w + col, plane[row * s.w + col]);
                if best.is_none_or(|(b, _)| v > b || (v.is_nan() && !b.is_nan())) {
                    best = Some((v, at));
                }
            }
        }
        // No window is empty: padding is smaller than the window, and the last one starts inside.
        let (v, at) = best.unwrap_or((F::NEG_INFINITY, 0));
        (*y, *place) = (v, at as i32);
    }
}

impl Op for MaxPool2d {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let dtype = same_float(self.name(), inputs)?;
        let [x] = inputs else { return Err(Error::invalid(self.name(), "one input is needed")) };
        let (s, shape) = self.0.plan(self.name(), x.shape())?;
        if let Context::Gpu(_) = x.context() {
            let y = Array::uninit(&shape, dtype, x.layout(), &x.context())?;
            let tap = tap_type(s.kernel);
            let taps = if saved.wanted() { Some(Array::uninit(&shape, tap, x.layout(), &x.context())?) } else { None };
            let pass = Pass::new(self.name(), &forward(tap), &s, &shape, &y, false)?;
            pass.array(Some(&y)).array(taps.as_ref()).array(Some(x)).run()?;
            if let Some(taps) = &taps {
                saved.keep(taps);
            }
            return saved.outputs(self.name(), inputs, vec![y]);
        }
        if s.h.saturating_mul(s.w) > i32::MAX as usize {
            return Err(Error::shape(self.name(), "the plane is too large", &[x.shape()]));
        }
        let rows = x.to_layout(Layout::RowMajor)?;
        let outputs = numel(&shape);
        let mut places = places_of(outputs)?;
        let y = real_type!(self.name(), dtype, F => {
            let rows = rows.real::<F>(self.name())?;
            let places = &mut bytemuck::cast_slice_mut::<i64, i32>(&mut places)[..outputs];
            let mut y = Buffer::<F>::stale(outputs)?;
            if F::DTYPE == DType::F32 && ordinary(&s) {
                let places = saved.wanted().then_some(places);
                max_pool_forward(bytemuck::cast_slice(&rows), bytemuck::cast_slice_mut(&mut y), places, &s)?;
            } else {
                reference(&rows, &mut y, places, &s);
            }
            Array::from_real(y, &shape, dtype)
        })?;
        if saved.wanted() {
            let words = [places.len()];
            saved.keep(&Array::host(crate::CpuStorage::I64(places.into()), &words, DType::I64));
        }
        saved.outputs(self.name(), inputs, vec![y.to_layout(x.layout())?])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let (s, shape) = self.0.plan(self.name(), saved.shape(0))?;
        let ([dy], places) = (saved.gradients(self.name(), dy)?, saved.get(0)?);
        let dtype = dy.dtype();
        if let Context::Gpu(_) = dy.context() {
            let dy = dy.to_layout(places.layout())?;
            let dx = Array::uninit(saved.shape(0), dtype, dy.layout(), &dy.context())?;
            let pass = Pass::new(self.name(), &backward(places.dtype()), &s, &shape, &dx, true)?;
            pass.array(Some(&dx)).array(Some(&dy)).array(Some(places)).run()?;
            return Ok(vec![Some(dx)]);
        }
        let rows = dy.to_layout(Layout::RowMajor)?;
        let places = &bytemuck::cast_slice::<i64, i32>(places.as_slice()?)[..dy.len()];
        let dx = real_type!(self.name(), dtype, F => {
            let rows = rows.real::<F>(self.name())?;
            let mut dx = Buffer::<F>::zeros(s.x_len())?;
            if F::DTYPE == DType::F32 && ordinary(&s) {
                max_pool_backward(bytemuck::cast_slice(&rows), places, bytemuck::cast_slice_mut(&mut dx), &s);
            } else {
                let outputs = shape[2] * shape[3];
                for (i, (&v, &at)) in rows.iter().zip(places).enumerate() {
                    dx[i / outputs * s.h * s.w + at as usize] += v;
                }
            }
            Array::from_real(dx, saved.shape(0), dtype)
        })?;
        Ok(vec![Some(dx.to_layout(dy.layout())?)])
    }
}

impl Tensor {
    /// The maximum under a sliding window; (N, C, H, W) → (N, C, OH, OW), in the input's layout.
    ///
    /// OH = ⌊(H + top + bottom − kh) / stride⌋ + 1, rounded up instead in ceil mode.
    ///
    /// # Errors
    /// [`Error::Shape`] when the input is not 4-D, its planes are empty or smaller than the window with their padding,
    /// [`Error::Invalid`] for a zero window or stride and for padding as large as the window.
    ///
    /// ```
    /// use hadal::{Tensor, cpu, ops::PoolOptions};
    /// let x = Tensor::arange(0.0, 9.0, 1.0, &cpu())?.array().reshape(&[1, 1, 3, 3])?;
    /// let y = Tensor::new(x).max_pool2d(PoolOptions::new(2).stride(1))?;
    /// assert_eq!(y.to_vec()?, [4., 5., 7., 8.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn max_pool2d(&self, options: PoolOptions) -> Result<Tensor> {
        apply1(MaxPool2d(options), &[self])
    }

    /// The maximum of each plane; (N, C, H, W) → (N, C, 1, 1).
    ///
    /// # Errors
    /// [`Error::Shape`] when the input is not 4-D or its planes are empty.
    pub fn global_max_pool2d(&self) -> Result<Tensor> {
        match self.shape()[..] {
            [_, _, h, w] if h > 0 && w > 0 => self.max_pool2d(PoolOptions::new([h, w])),
            ref other => {
                Err(Error::shape("global_max_pool2d", "an input (N, C, H, W) with non-empty planes is needed", &[other]))
            }
        }
    }
}
