//! Convolution on the CPU: the definition in plain loops for f64, [`crate::cpu::conv`] for f32. Both work on row-major data.

use std::{borrow::Cow, ops::Range};

use crate::{
    Array, DType, Layout, Result,
    conv::{ConvOperands, problem::ConvProblem},
    cpu::{
        buffers::Buffer,
        conv::{conv2d_backward_bias, conv2d_backward_data, conv2d_backward_weight, conv2d_forward},
        parallel,
    },
    dtype::{Element, Real, real_type},
    shape::numel,
};

/// The taps of a filter that meet the input, not its padding, under output `o` of an axis: no more than the input has places.
fn inside(s: &ConvProblem, axis: usize, o: usize) -> Range<usize> {
    let (at, pad, dilation) = (o * s.stride[axis], s.padding[axis], s.dilation[axis]);
    let size = if axis == 0 { s.h } else { s.w };
    let first = pad.saturating_sub(at).div_ceil(dilation);
    first..(size + pad).saturating_sub(at).div_ceil(dilation).min(s.kernel[axis]).max(first)
}

/// Calls `f(index in x, index in w, index in y)` for every product that makes up the convolution.
fn products(s: &ConvProblem, mut f: impl FnMut(usize, usize, usize)) {
    let [n, o, oh, ow] = s.y_shape();
    let ([kh, kw], cg, og) = (s.kernel, s.c / s.groups, o / s.groups);
    for (n, o) in (0..n).flat_map(|n| (0..o).map(move |o| (n, o))) {
        for (oy, ox) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
            let y = ((n * s.o + o) * oh + oy) * ow + ox;
            let (down, across) = (inside(s, 0, oy), inside(s, 1, ox));
            if down.is_empty() || across.is_empty() {
                continue;
            }
            for (c, i) in (0..cg).flat_map(|c| down.clone().map(move |i| (c, i))) {
                let row = oy * s.stride[0] + i * s.dilation[0] - s.padding[0];
                let (x, w) = (((n * s.c + o / og * cg + c) * s.h + row) * s.w, ((o * cg + c) * kh + i) * kw);
                for j in across.clone() {
                    f(x + ox * s.stride[1] + j * s.dilation[1] - s.padding[1], w + j, y);
                }
            }
        }
    }
}

/// Row-major elements of an array in any layout.
fn rows(a: &Array) -> Result<Array> {
    a.to_layout(Layout::RowMajor)
}

/// The fast path takes f32; it adds nothing to nothing, and its patches are in proportion to what is read and written.
fn fast<F: Real>(s: &ConvProblem) -> bool {
    let sizes = [s.x_len(), s.w_len(), s.y_len()];
    F::DTYPE == DType::F32 && !sizes.contains(&0) && s.patches() <= (16 * sizes.iter().sum::<usize>()).max(1 << 22)
}

fn f32s<F: Real>(x: &[F]) -> &[f32] {
    bytemuck::cast_slice(x)
}

pub(super) fn fprop(op: &'static str, conv: &ConvOperands) -> Result<Array> {
    let &ConvOperands { problem: s, a: x, b: w, bias: b } = conv;
    let (layout, dtype, shape) = (x.layout(), x.dtype(), s.y_shape());
    let (x, w) = (rows(x)?, rows(w)?);
    let y = real_type!(op, dtype, F => {
        let (x, w) = (x.real::<F>(op)?, w.real::<F>(op)?);
        let b: Option<Cow<'_, [F]>> = b.map(|b| b.real::<F>(op)).transpose()?;
        let mut y = Buffer::<F>::stale(numel(&shape))?;
        if fast::<F>(s) {
            conv2d_forward(f32s(&x), f32s(&w), b.as_deref().map(f32s), bytemuck::cast_slice_mut(&mut y), s)?;
        } else {
            let plane = shape[2] * shape[3];
            for (i, y) in y.iter_mut().enumerate() {
                *y = b.as_ref().map_or(F::ZERO, |b| b[i / plane % s.o]);
            }
            products(s, |ix, iw, iy| y[iy] += x[ix] * w[iw]);
        }
        Array::from_real(y, &shape, dtype)
    })?;
    y.to_layout(layout)
}

/// The sum of dx of all convolutions, and of `grad_so_far`.
pub(super) fn dgrad(op: &'static str, convs: &[ConvOperands], grad_so_far: Option<&Array>) -> Result<Array> {
    let ConvOperands { problem: s, a: dy, .. } = convs[0];
    let (layout, dtype) = (dy.layout(), dy.dtype());
    let dx = real_type!(op, dtype, F => {
        let mut dx = x_gradient::<F>(op, &convs[0])?;
        for conv in &convs[1..] {
            parallel::zip_assign(&mut dx, &x_gradient::<F>(op, conv)?, |a, b| *a += b);
        }
        if let Some(sum) = grad_so_far {
            parallel::zip_assign(&mut dx, &rows(sum)?.real::<F>(op)?, |a, b| *a += b);
        }
        Array::from_real(dx, &[s.n, s.c, s.h, s.w], dtype)
    })?;
    dx.to_layout(layout)
}

fn x_gradient<F: Real>(op: &'static str, conv: &ConvOperands) -> Result<Buffer<F>> {
    let &ConvOperands { problem: s, a: dy, b: w, .. } = conv;
    let (dy, w) = (rows(dy)?, rows(w)?);
    let (dy, w) = (dy.real::<F>(op)?, w.real::<F>(op)?);
    let mut dx = Buffer::<F>::zeros(s.x_len())?;
    if fast::<F>(s) {
        conv2d_backward_data(f32s(&dy), f32s(&w), bytemuck::cast_slice_mut(&mut dx), s)?;
    } else {
        products(s, |ix, iw, iy| dx[ix] += dy[iy] * w[iw]);
    }
    Ok(dx)
}

pub(super) fn wgrad(op: &'static str, conv: &ConvOperands) -> Result<Array> {
    let &ConvOperands { problem: s, a: dy, b: x, .. } = conv;
    let dtype = dy.dtype();
    let (dy, x) = (rows(dy)?, rows(x)?);
    real_type!(op, dtype, F => {
        let (dy, x) = (dy.real::<F>(op)?, x.real::<F>(op)?);
        let mut dw = Buffer::<F>::zeros(s.w_len())?;
        if fast::<F>(s) {
            conv2d_backward_weight(f32s(&x), f32s(&dy), bytemuck::cast_slice_mut(&mut dw), s)?;
        } else {
            products(s, |ix, iw, iy| dw[iw] += x[ix] * dy[iy]);
        }
        Array::from_real(dw, &[s.o, s.c / s.groups, s.kernel[0], s.kernel[1]], dtype)
    })
}

pub(super) fn bias_grad(op: &'static str, dy: &Array, s: &ConvProblem) -> Result<Array> {
    let (dtype, [n, o, oh, ow]) = (dy.dtype(), s.y_shape());
    let dy = rows(dy)?;
    real_type!(op, dtype, F => {
        let dy = dy.real::<F>(op)?;
        let mut db = Buffer::<F>::zeros(o)?;
        if F::DTYPE == DType::F32 && !dy.is_empty() {
            conv2d_backward_bias(f32s(&dy), bytemuck::cast_slice_mut(&mut db), n, oh * ow)?;
        } else {
            for (i, &v) in dy.iter().enumerate() {
                db[i / (oh * ow) % o] += v;
            }
        }
        Array::from_real(db, &[o], dtype)
    })
}
