//! Walking several operands that stretch to one shape: numpy's broadcasting for the elementwise ops.
//!
//! The output is dense in its own layout; each operand is read by strides, 0 along a stretched axis. So neither a
//! stretched operand nor one of another layout is ever copied. Neighbouring axes that all operands cross in one
//! stride are merged: operands of one shape become a single axis, a bias (1,C,1,1) on (N,C,H,W) the axes N, C, H·W.

use crate::{
    Array, Context, Error, Layout, Result,
    cpu::parallel,
    cuda::{Dims, Launch},
    dtype::element_type,
    shape::{Display, numel},
};

/// The merged axes of an output and, for each operand, its strides along them.
#[derive(Clone, Debug)]
pub(crate) struct Walk<const N: usize> {
    extent: Vec<usize>,
    stride: [Vec<usize>; N],
}

/// The `Walk` of `kernels/broadcast.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct KernelWalk {
    extent: [i64; Dims::MAX],
    stride: [[i64; Dims::MAX]; 3],
    rank: i64,
}

/// Axes in the order of memory, the outermost first.
pub(crate) fn memory_order(rank: usize, layout: Layout) -> Vec<usize> {
    if layout == Layout::ChannelsLast && rank == 4 { vec![0, 2, 3, 1] } else { (0..rank).collect() }
}

/// The layout of an output of `shape`: that of the first operand which has this shape itself.
pub(crate) fn layout_of(shape: &[usize], operands: &[&Array]) -> Layout {
    operands.iter().find(|a| a.shape() == shape).map_or(Layout::RowMajor, |a| a.layout())
}

/// Appends an axis, or merges it with the one before when each operand goes on there in the same stride.
pub(crate) fn push_axis<const N: usize>(axes: &mut Vec<(usize, [usize; N])>, extent: usize, stride: [usize; N]) {
    if extent == 1 {
        return;
    }
    match axes.last_mut() {
        Some((e, s)) if s.iter().zip(&stride).all(|(outer, inner)| *outer == inner * extent) => {
            *e *= extent;
            *s = stride;
        }
        _ => axes.push((extent, stride)),
    }
}

impl<const N: usize> Walk<N> {
    /// For an output of `shape` in `layout`, to which all operands broadcast.
    pub(crate) fn new(shape: &[usize], layout: Layout, operands: [&Array; N]) -> Self {
        let strides = operands.map(|a| {
            let (own, skip) = (a.strides(), shape.len() - a.rank());
            let at = |i: usize| if i < skip || a.shape()[i - skip] == 1 { 0 } else { own[i - skip] };
            (0..shape.len()).map(at).collect::<Vec<_>>()
        });
        let mut axes = Vec::new();
        for d in memory_order(shape.len(), layout) {
            push_axis(&mut axes, shape[d], std::array::from_fn(|k| strides[k][d]));
        }
        let stride = std::array::from_fn(|k| axes.iter().map(|(_, s): &(usize, [usize; N])| s[k]).collect());
        Walk { extent: axes.iter().map(|(e, _)| *e).collect(), stride }
    }

    /// `n` elements, each operand in one stride.
    pub(crate) fn flat(n: usize, stride: [usize; N]) -> Self {
        Walk { extent: vec![n], stride: stride.map(|s| vec![s]) }
    }

    /// The operands' strides along the innermost axis.
    fn inner(&self) -> [usize; N] {
        std::array::from_fn(|k| self.stride[k].last().copied().unwrap_or(0))
    }

    /// Cuts the elements `start..start + len` of the output into pieces of the innermost axis:
    /// `f(position after start, offsets of the operands, length)`.
    fn pieces(&self, start: usize, len: usize, f: &mut dyn FnMut(usize, [usize; N], usize)) {
        let rank = self.extent.len();
        let Some(&row) = self.extent.last() else {
            return if len > 0 {
                f(0, [0; N], 1)
            };
        };
        let mut index = vec![0; rank];
        let mut rest = start;
        for (i, &e) in index.iter_mut().zip(&self.extent).rev() {
            (*i, rest) = (rest % e.max(1), rest / e.max(1));
        }
        let mut done = 0;
        while done < len {
            let at = std::array::from_fn(|k| index.iter().zip(&self.stride[k]).map(|(i, s)| i * s).sum());
            let piece = (row - index[rank - 1]).min(len - done);
            f(done, at, piece);
            done += piece;
            // The next row: the innermost index returns to 0, the others count on.
            index[rank - 1] = 0;
            for d in (0..rank - 1).rev() {
                index[d] += 1;
                if index[d] < self.extent[d] {
                    break;
                }
                index[d] = 0;
            }
        }
    }

    /// The operands' steps along the innermost axis, where kernels may take it in packs of `pack` elements: each operand then
    /// goes on in steps of 1 from a multiple of `pack`, or stays.
    pub(crate) fn packs(&self, pack: usize) -> Option<[i32; N]> {
        let (inner, outer) = (self.inner(), self.extent.len().saturating_sub(1));
        let aligned = |k: usize| self.stride[k][..outer].iter().all(|s| s.is_multiple_of(pack));
        let fits = |k: usize| inner[k] == 0 || (inner[k] == 1 && aligned(k));
        let whole = self.extent.last().is_some_and(|e| e.is_multiple_of(pack));
        (whole && (0..N).all(fits)).then(|| inner.map(|s| s as i32))
    }

    /// As the kernels take it; at most three operands and eight merged axes.
    pub(crate) fn for_kernel(&self, op: &'static str) -> Result<KernelWalk> {
        let rank = self.extent.len();
        if rank > Dims::MAX {
            return Err(Error::shape(op, format!("kernels know at most {} dimensions", Dims::MAX), &[&self.extent]));
        }
        let mut k = KernelWalk { extent: [1; Dims::MAX], stride: [[0; Dims::MAX]; 3], rank: rank as i64 };
        for d in 0..rank {
            k.extent[d] = self.extent[d] as i64;
            for (to, from) in k.stride.iter_mut().zip(&self.stride) {
                to[d] = from[d] as i64;
            }
        }
        Ok(k)
    }
}

/// `y[i] = x[…]`
pub(crate) fn zip1<X: Copy + Sync, Y: Send>(y: &mut [Y], walk: &Walk<1>, x: &[X], f: impl Fn(X) -> Y + Sync) {
    let [s] = walk.inner();
    parallel::chunks(y, |start, y| {
        walk.pieces(start, y.len(), &mut |done, [i], len| {
            let y = &mut y[done..done + len];
            match s {
                0 => y.iter_mut().for_each(|y| *y = f(x[i])),
                1 => y.iter_mut().zip(&x[i..i + len]).for_each(|(y, &x)| *y = f(x)),
                _ => y.iter_mut().enumerate().for_each(|(j, y)| *y = f(x[i + j * s])),
            }
        });
    });
}

/// `y[i] = f(a[…], b[…])`
pub(crate) fn zip2<A: Copy + Sync, B: Copy + Sync, Y: Send>(
    y: &mut [Y],
    walk: &Walk<2>,
    a: &[A],
    b: &[B],
    f: impl Fn(A, B) -> Y + Sync,
) {
    let [sa, sb] = walk.inner();
    parallel::chunks(y, |start, y| {
        walk.pieces(start, y.len(), &mut |done, [i, j], len| {
            let y = &mut y[done..done + len];
            // The three common cases are loops that the compiler vectorizes.
            match (sa, sb) {
                (1, 1) => y.iter_mut().zip(&a[i..i + len]).zip(&b[j..j + len]).for_each(|((y, &a), &b)| *y = f(a, b)),
                (1, 0) => {
                    let b = b[j];
                    y.iter_mut().zip(&a[i..i + len]).for_each(|(y, &a)| *y = f(a, b));
                }
                (0, 1) => {
                    let a = a[i];
                    y.iter_mut().zip(&b[j..j + len]).for_each(|(y, &b)| *y = f(a, b));
                }
                _ => y.iter_mut().enumerate().for_each(|(n, y)| *y = f(a[i + n * sa], b[j + n * sb])),
            }
        });
    });
}

/// `y[i] = f(a[…], b[…], c[…])`
pub(crate) fn zip3<A: Copy + Sync, B: Copy + Sync, C: Copy + Sync, Y: Send>(
    y: &mut [Y],
    walk: &Walk<3>,
    (a, b, c): (&[A], &[B], &[C]),
    f: impl Fn(A, B, C) -> Y + Sync,
) {
    let [sa, sb, sc] = walk.inner();
    parallel::chunks(y, |start, y| {
        walk.pieces(start, y.len(), &mut |done, [i, j, k], len| {
            let y = &mut y[done..done + len];
            if (sa, sb, sc) == (1, 1, 1) {
                let (a, b, c) = (&a[i..i + len], &b[j..j + len], &c[k..k + len]);
                y.iter_mut().zip(a).zip(b).zip(c).for_each(|(((y, &a), &b), &c)| *y = f(a, b, c));
            } else {
                y.iter_mut().enumerate().for_each(|(n, y)| *y = f(a[i + n * sa], b[j + n * sb], c[k + n * sc]));
            }
        });
    });
}

/// `a` stretched to `shape` in fresh memory of `layout`.
///
/// # Errors
/// [`Error::Shape`] when `a` does not broadcast to `shape`.
pub(crate) fn expand(a: &Array, shape: &[usize], layout: Layout) -> Result<Array> {
    fits("expand", a.shape(), shape)?;
    let mut y = Array::uninit(shape, a.dtype(), layout, &a.context())?;
    let walk = Walk::new(shape, y.layout(), [a]);
    match a.context() {
        Context::Cpu => element_type!(a.dtype(), T => zip1(y.as_mut_slice::<T>()?, &walk, a.as_slice::<T>()?, |x| x)),
        Context::Gpu(_) => {
            let (n, define) = (numel(shape), [("scalar_t", a.dtype().into())]);
            let launch = |kernel| Ok(Launch::new(&y, "broadcast.cu", kernel, &define)?.array(&y).array(a)) as Result<Launch>;
            let kernel_walk = walk.for_kernel("expand")?;
            match walk.packs(16 / a.dtype().size()) {
                Some([step]) => {
                    launch("expand_rows")?.value(kernel_walk).value(step).value(n as i64).run_packed(n, a.dtype())?;
                }
                None => launch("expand")?.value(kernel_walk).value(n as i64).run_1d(n)?,
            }
        }
    }
    Ok(y)
}

/// Errs unless `from` broadcasts to exactly `to`.
pub(crate) fn fits(op: &'static str, from: &[usize], to: &[usize]) -> Result<()> {
    if crate::shape::broadcast(op, from, to)? != to {
        return Err(Error::shape(op, format!("the first does not stretch to {}", Display(to)), &[from, to]));
    }
    Ok(())
}
