//! Copies between physical layouts: row-major (N,C,H,W) and channels-last (N,H,W,C in memory).

use crate::{
    Array, Context, Layout, Result,
    cuda::{Dims, Launch},
    dtype::element_type,
    shape::strides,
};

/// The same elements in `layout`; `a` is 4-D and in the other one.
pub(crate) fn convert(a: &Array, layout: Layout) -> Result<Array> {
    permuted_copy(a, &a.strides(), &strides(a.shape(), layout), layout)
}

/// Copies each element of `a` from its place under `from` to its place under `to` (both strides for `a`'s shape).
fn permuted_copy(a: &Array, from: &[usize], to: &[usize], layout: Layout) -> Result<Array> {
    let mut out = Array::uninit(a.shape(), a.dtype(), layout, &a.context())?;
    if let Context::Gpu(_) = a.context() {
        strided_copy(&out, a, to, from, a.shape())?;
        return Ok(out);
    }
    let [n, c, h, w] = a.shape() else { return Ok(a.clone()) };
    let (c, plane) = (*c, h * w);
    element_type!(a.dtype(), T => {
        let src = a.as_slice::<T>()?;
        let dst = out.as_mut_slice::<T>()?;
        // Per image a transpose of (C, H·W), in one direction or the other.
        let (rows, cols) = if layout == Layout::ChannelsLast { (c, plane) } else { (plane, c) };
        crate::cpu::parallel::rows(dst, rows * cols, |image, dst| transpose(&src[image * rows * cols..][..rows * cols], dst, rows, cols));
        debug_assert_eq!(dst.len(), n * c * plane);
    });
    Ok(out)
}

/// `dst` (cols × rows) becomes the transpose of `src` (rows × cols), in tiles that stay in the first-level cache.
pub(crate) fn transpose<T: Copy>(src: &[T], dst: &mut [T], rows: usize, cols: usize) {
    const TILE: usize = 16;
    for r0 in (0..rows).step_by(TILE) {
        for c0 in (0..cols).step_by(TILE) {
            for c in c0..(c0 + TILE).min(cols) {
                for r in r0..(r0 + TILE).min(rows) {
                    dst[c * rows + r] = src[r * cols + c];
                }
            }
        }
    }
}

/// `y[at(to)] = x[at(from)]` for every index of `shape`, on the device.
pub(crate) fn strided_copy(y: &Array, x: &Array, to: &[usize], from: &[usize], shape: &[usize]) -> Result<()> {
    let n = crate::shape::numel(shape);
    Launch::new(y, "layout.cu", "strided_copy", &[("scalar_t", y.dtype().into())])?
        .array(y)
        .array(x)
        .value(Dims::new("copy", shape, to)?)
        .value(Dims::new("copy", shape, from)?)
        .value(shape.len() as i32)
        .value(n as i64)
        .run_1d(n)
}
