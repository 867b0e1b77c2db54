//! How the operands of a GEMM lie in memory, and the tensor maps over them.

use super::{MatrixView, model::wgmma};
use crate::{
    DType, Result,
    cuda::{Dims, TensorMap},
};

/// An operand as lines of elements that lie next to each other.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    /// They run along k.
    pub k_major: bool,
    /// Elements from one line to the next.
    pub stride: usize,
}

/// The operand whose rows (of a) or columns (of b) are `along` elements apart, and the steps of k `k` elements.
pub(super) fn lines(along: usize, k: usize) -> Option<Lines> {
    match (along, k) {
        (stride, 1) => Some(Lines { k_major: true, stride }),
        (1, stride) => Some(Lines { k_major: false, stride }),
        _ => None,
    }
}

/// Strides of the axes that have more than one index.
pub(super) fn batch_strides<'a>(v: &'a MatrixView, extents: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
    v.batch.iter().zip(extents).filter(|(_, e)| **e > 1).map(|(s, _)| *s)
}

/// An operand as matrices of one size, `size` elements from one to the next.
pub(super) struct Matrices {
    pub(super) lines: Lines,
    pub(super) size: usize,
    pub(super) count: usize,
}

impl Matrices {
    /// `along` rows (of a) or columns (of b) and `k` steps, in the batches `outer` and `inner`. `None` where the matrices of a batch
    /// do not lie one after the other, or at addresses that TMA does not read.
    pub(super) fn new(v: &MatrixView, lines: Lines, [outer, inner]: [&[usize]; 2], dtype: DType) -> Option<Self> {
        let axes = || v.batch.iter().zip(outer).chain(v.batch.iter().zip(inner)).filter(|(s, e)| **s > 0 && **e > 1);
        let size = axes().map(|(s, _)| *s).min().unwrap_or(0);
        let whole = axes().all(|(s, _)| s.is_multiple_of(size)) && wgmma::aligned(dtype, &[lines.stride, size]);
        let count = 1 + axes().map(|(s, e)| (e - 1) * s / size).sum::<usize>();
        whole.then_some(Matrices { lines, size, count })
    }

    /// The map whose boxes are a step of k and, K-major, `tall` of its rows.
    pub(super) fn map(&self, along: usize, k: usize, tall: usize, dtype: DType) -> TensorMap {
        let Lines { k_major, stride } = self.lines;
        let (extent, tile) =
            if k_major { ([k, along, self.count], [128 / dtype.size(), tall, 1]) } else { ([along, k, self.count], [64, 64, 1]) };
        // The distance to a second matrix, where there is none, is never used.
        let size = if self.count > 1 { self.size } else { stride };
        wgmma::swizzled(TensorMap::tiled(&extent, &[stride, size], &tile), dtype)
    }

    /// A batch, counted in matrices.
    pub(super) fn index(&self, op: &'static str, v: &MatrixView, extents: &[usize]) -> Result<Dims> {
        Dims::new(op, extents, &v.batch.iter().map(|s| s / self.size.max(1)).collect::<Vec<_>>())
    }
}
