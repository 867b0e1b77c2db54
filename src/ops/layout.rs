//! Strided copies: between physical layouts, and from any box of one array to any box of another.

use crate::{
    Array, Context, Error, Layout, Result,
    cpu::parallel,
    cuda::{Dims, Launch},
    dtype::element_type,
    shape::numel,
};

/// A box inside an array's memory: the offset of its first element and the strides of its axes.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) start: usize,
    pub(crate) strides: Vec<usize>,
}

impl Place {
    /// All of an array.
    pub(crate) fn whole(a: &Array) -> Self {
        Place { start: 0, strides: a.strides() }
    }
}

/// The same elements in `layout`; `a` is 4-D and in the other one.
pub(crate) fn convert(a: &Array, layout: Layout) -> Result<Array> {
    if let [_, c, h, w] = a.shape() {
        // One channel or one pixel: both orders are the same bytes.
        if *c == 1 || h * w == 1 {
            return Ok(a.clone().with_layout(layout));
        }
    }
    let mut out = Array::uninit(a.shape(), a.dtype(), layout, &a.context())?;
    let to = Place::whole(&out);
    copy_box(&mut out, &to, a, &Place::whole(a), a.shape())?;
    Ok(out)
}

/// One axis of a copy: its extent and its strides on both sides.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    extent: usize,
    to: usize,
    from: usize,
}

/// The axes in the destination's memory order, neighbours joined where both sides allow it.
fn plan(shape: &[usize], to: &[usize], from: &[usize]) -> Vec<Axis> {
    let axes = shape.iter().zip(to).zip(from).map(|((&extent, &to), &from)| Axis { extent, to, from });
    let mut axes: Vec<Axis> = axes.filter(|a| a.extent != 1).collect();
    axes.sort_by_key(|a| std::cmp::Reverse(a.to));
    let mut out: Vec<Axis> = Vec::with_capacity(axes.len());
    for b in axes {
        match out.last_mut() {
            Some(a) if a.to == b.to * b.extent && a.from == b.from * b.extent => {
                *a = Axis { extent: a.extent * b.extent, ..b };
            }
            _ => out.push(b),
        }
    }
    out
}

/// `y[to + i·to.strides] = x[from + i·from.strides]` for every index `i` of `shape`.
///
/// The places of `y` must be distinct; those of `x` need not (a stride of 0 repeats an element). Both boxes lie inside
/// their arrays: that is the caller's duty, and on the CPU the slices' own checks.
pub(crate) fn copy_box(y: &mut Array, to: &Place, x: &Array, from: &Place, shape: &[usize]) -> Result<()> {
    if y.dtype() != x.dtype() {
        return Err(Error::DType { op: "copy", dtype: x.dtype(), hint: "both arrays need one type; use `cast`" });
    }
    y.context().same("copy", &x.context())?;
    if numel(shape) == 0 {
        return Ok(());
    }
    let axes = plan(shape, &to.strides, &from.strides);
    if let Context::Gpu(_) = y.context() {
        y.make_unique()?;
        let list = |f: fn(&Axis) -> usize| axes.iter().map(f).collect::<Vec<_>>();
        return launch(y, to.start, x, from.start, &list(|a| a.extent), &list(|a| a.to), &list(|a| a.from));
    }
    element_type!(y.dtype(), T => {
        let source = x.as_slice::<T>()?;
        copy_axes(&mut y.as_mut_slice::<T>()?[to.start..], source, from.start, &axes);
        Ok(())
    })
}

/// Elements that are worth a task of their own.
const TASK: usize = 16 << 10;
/// The edge of a transpose's tile: two of them stay in the first-level cache.
const TILE: usize = 16;

/// The copy on the host; `y` begins at the box's first element, `x` is read from `at` on.
fn copy_axes<T: Copy + Send + Sync>(y: &mut [T], x: &[T], at: usize, axes: &[Axis]) {
    let Some((&a, rest)) = axes.split_first() else {
        y[0] = x[at];
        return;
    };
    match rest {
        [] => return copy_line(y, x, at, a),
        // Contiguous along one axis here, along the other one there: a transpose, in bands of tiles.
        [b] if a.from == 1 && b.to == 1 && b.from > 1 => {
            let band = |i: usize, y: &mut [T]| {
                let rows = TILE.min(a.extent - i * TILE);
                for c0 in (0..b.extent).step_by(TILE) {
                    for r in 0..rows {
                        let y = &mut y[r * a.to..];
                        for c in c0..(c0 + TILE).min(b.extent) {
                            y[c] = x[at + i * TILE + r + c * b.from];
                        }
                    }
                }
            };
            let (bands, length) = (a.extent.div_ceil(TILE), a.to * TILE);
            if a.extent * b.extent < 2 * TASK {
                y.chunks_mut(length).take(bands).enumerate().for_each(|(i, y)| band(i, y));
            } else {
                let all = y.len().min(length * bands);
                parallel::pieces(&mut y[..all], length, &band);
            }
            return;
        }
        _ => {}
    }
    let inner: usize = rest.iter().map(|r| r.extent).product();
    let slab = |i: usize, y: &mut [T]| copy_axes(y, x, at + i * a.from, rest);
    if inner * a.extent < 2 * TASK {
        y.chunks_mut(a.to).take(a.extent).enumerate().for_each(|(i, y)| slab(i, y));
    } else {
        // Short slabs are grouped so that a task is worth its cost.
        let group = (TASK / inner).max(1);
        let all = y.len().min(a.to * a.extent);
        parallel::pieces(&mut y[..all], a.to * group, &|g, y| {
            y.chunks_mut(a.to).enumerate().for_each(|(i, y)| slab(g * group + i, y));
        });
    }
}

/// One axis: a block copy, a fill, or a loop.
fn copy_line<T: Copy + Send + Sync>(y: &mut [T], x: &[T], at: usize, a: Axis) {
    match a {
        Axis { extent, to: 1, from: 1 } => {
            let (y, x) = (&mut y[..extent], &x[at..at + extent]);
            if extent < 4 * TASK {
                y.copy_from_slice(x);
            } else {
                parallel::pieces(y, TASK, &|i, y| y.copy_from_slice(&x[i * TASK..][..y.len()]));
            }
        }
        Axis { extent, to: 1, from: 0 } => {
            let value = x[at];
            parallel::chunks(&mut y[..extent], |_, y| y.fill(value));
        }
        Axis { extent, to, from } => {
            for i in 0..extent {
                y[i * to] = x[at + i * from];
            }
        }
    }
}

/// `dst` (cols × rows) becomes the transpose of `src` (rows × cols), in tiles that stay in the first-level cache.
#[allow(dead_code)] // for the CPU paths of convolution and pooling
pub(crate) fn transpose<T: Copy + Send + Sync>(src: &[T], dst: &mut [T], rows: usize, cols: usize) {
    if rows * cols > 0 {
        copy_axes(dst, src, 0, &plan(&[cols, rows], &[rows, 1], &[1, cols]));
    }
}

/// `y[at(to)] = x[at(from)]` for every index of `shape`, on the device.
#[allow(dead_code)]
pub(crate) fn strided_copy(y: &Array, x: &Array, to: &[usize], from: &[usize], shape: &[usize]) -> Result<()> {
    launch(y, 0, x, 0, shape, to, from)
}

fn launch(y: &Array, y0: usize, x: &Array, x0: usize, shape: &[usize], to: &[usize], from: &[usize]) -> Result<()> {
    let n = numel(shape);
    Launch::new(y, "layout.cu", "strided_copy", &[("scalar_t", y.dtype().into())])?
        .array(y)
        .value(y0 as i64)
        .array(x)
        .value(x0 as i64)
        .value(Dims::new("copy", shape, to)?)
        .value(Dims::new("copy", shape, from)?)
        .value(shape.len() as i32)
        .value(n as i64)
        .run_1d(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::strides;

    #[test]
    fn neighbouring_axes_are_joined() {
        let all = strides(&[2, 3, 4], Layout::RowMajor);
        assert_eq!(plan(&[2, 3, 4], &all, &all), [Axis { extent: 24, to: 1, from: 1 }]);
        assert_eq!(plan(&[1, 1], &[1, 1], &[1, 1]), []);
        // N,C,H,W to channels-last: H and W are one axis on both sides.
        let (cl, rm) = (strides(&[2, 3, 4, 5], Layout::ChannelsLast), strides(&[2, 3, 4, 5], Layout::RowMajor));
        let axes = plan(&[2, 3, 4, 5], &cl, &rm);
        assert_eq!(axes.iter().map(|a| a.extent).collect::<Vec<_>>(), [2, 20, 3]);
    }

    #[test]
    fn copies_agree_with_index_arithmetic_in_every_order() {
        let extent = [3usize, 40, 70, 5];
        let n = numel(&extent);
        let x: Vec<i64> = (0..n as i64).collect();
        let from = strides(&extent, Layout::RowMajor);
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 3, 1], [1, 0, 3, 2], [2, 3, 0, 1]] {
            let shape = order.map(|i| extent[i]);
            let (to, own) = (strides(&shape, Layout::RowMajor), order.map(|i| from[i]));
            let mut y = vec![-1; n];
            copy_axes(&mut y, &x, 0, &plan(&shape, &to, &own));
            for (i, &v) in y.iter().enumerate() {
                let source: usize = (0..4).map(|d| i / to[d] % shape[d] * own[d]).sum();
                assert_eq!(v, source as i64, "{order:?} at {i}");
            }
        }
    }
}
