//! Where a reduction reads: the axes that stay and those that go, merged where memory allows.

use crate::{
    Array, Context, Layout, Result,
    ops::broadcast::{memory_order, push_axis},
    shape::{axes, numel},
};

/// The order in which the elements of one output are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// As they lie in memory: the fastest.
    Memory,
    /// Row-major whatever the layout: where "the first" means something.
    Logical,
}

/// Extents and strides in the input, the outermost axis first. `kept` counts the outputs in their memory order.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub kept: Vec<(usize, usize)>,
    pub reduced: Vec<(usize, usize)>,
    /// The number of outputs.
    pub outputs: usize,
    /// The number of elements of each output.
    pub count: usize,
    pub shape: Vec<usize>,
    pub layout: Layout,
    pub context: Context,
}

impl Plan {
    pub(super) fn new(op: &'static str, x: &Array, list: &[isize], keepdims: bool, order: Order) -> Result<Self> {
        let gone = axes(op, list, x.rank())?;
        let layout = if keepdims { x.layout() } else { Layout::RowMajor };
        let (mut kept, mut reduced) = (Vec::new(), Vec::new());
        let strides = x.strides();
        for d in memory_order(x.rank(), layout) {
            if !gone.contains(&d) {
                push_axis(&mut kept, x.shape()[d], [strides[d]]);
            }
        }
        for d in memory_order(x.rank(), if order == Order::Memory { x.layout() } else { Layout::RowMajor }) {
            if gone.contains(&d) {
                push_axis(&mut reduced, x.shape()[d], [strides[d]]);
            }
        }
        let flat = |v: Vec<(usize, [usize; 1])>| v.into_iter().map(|(e, [s])| (e, s)).collect::<Vec<_>>();
        let (kept, reduced) = (flat(kept), flat(reduced));
        let shape = shape_without(x.shape(), &gone, keepdims);
        Ok(Plan {
            outputs: kept.iter().map(|a| a.0).product(),
            count: reduced.iter().map(|a| a.0).product(),
            kept,
            reduced,
            layout: if shape.len() == 4 { layout } else { Layout::RowMajor },
            shape,
            context: x.context(),
        })
    }

    /// True when neighbouring outputs read neighbouring elements, but the elements of one output are apart.
    pub(super) fn by_columns(&self) -> bool {
        let unit = |axes: &[(usize, usize)]| axes.last().is_some_and(|a| a.1 == 1);
        unit(&self.kept) && !unit(&self.reduced)
    }
}

fn shape_without(shape: &[usize], gone: &[usize], keepdims: bool) -> Vec<usize> {
    let kept = |(d, &e): (usize, &usize)| match gone.contains(&d) {
        true => keepdims.then_some(1),
        false => Some(e),
    };
    shape.iter().enumerate().filter_map(kept).collect()
}

/// `shape` with an extent of 1 for each reduced axis.
pub(super) fn kept_shape(op: &'static str, shape: &[usize], list: &[isize]) -> Result<Vec<usize>> {
    Ok(shape_without(shape, &axes(op, list, shape.len())?, true))
}

/// The offset of the `i`-th index over `axes`.
pub(super) fn offset(axes: &[(usize, usize)], mut i: usize) -> usize {
    let mut at = 0;
    for &(extent, stride) in axes.iter().rev() {
        let extent = extent.max(1);
        at += (i % extent) * stride;
        i /= extent;
    }
    at
}

/// Cuts the indices `start..end` over `axes` into pieces of the innermost one: `f(position after start, offset, length)`.
pub(super) fn pieces(axes: &[(usize, usize)], start: usize, end: usize, mut f: impl FnMut(usize, usize, usize)) {
    let row = axes.last().map_or(1, |a| a.0);
    let mut i = start;
    while i < end {
        let len = (row - i % row).min(end - i);
        f(i - start, offset(axes, i), len);
        i += len;
    }
}

/// The number of elements that a plan reads, for deciding how to share the work.
pub(super) fn work(plan: &Plan) -> usize {
    numel(&[plan.outputs, plan.count])
}
