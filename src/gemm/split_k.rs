//! Split-K: long sums are cut into splits whose partial sums a second kernel reduces in order.

use crate::{
    Array, DType, Layout, Result,
    cuda::{Define, Launch},
};

/// The dtype that kernels accumulate `dtype` in.
pub(crate) fn accumulator(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The splits of a sum of `k` terms, and k of each, for the SIMT kernels with `tiles` tiles: by the shape alone, so that every device
/// gives the same bits. Long sums with few tiles would leave most of a device idle, and splits of a few thousand terms keep the rounding
/// of f32 small.
pub(crate) fn splits(k: usize, tiles: usize) -> (usize, usize) {
    const SHORT: usize = 512;
    const LONG: usize = 8192;
    const ENOUGH: usize = 512;
    let splits = (ENOUGH / tiles.max(1)).min(k / SHORT).max(k.div_ceil(LONG)).clamp(1, 65535);
    let k_per_split = k.div_ceil(splits).next_multiple_of(16).max(16);
    (k.div_ceil(k_per_split).max(1), k_per_split)
}

/// Memory for the partial sums of `y`, (splits, len); `None` for one split.
pub(crate) fn workspace(y: &Array, splits: usize) -> Result<Option<Array>> {
    let uninit = || Array::uninit(&[splits, y.len()], accumulator(y.dtype()), Layout::RowMajor, &y.context());
    (splits > 1).then(uninit).transpose()
}

/// y = the sum of `splits` partial sums in order, + `bias` of `cols` elements; `file` is one that includes `parts.cuh`.
pub(crate) fn split_k_reduce(
    y: &Array,
    partials: &Array,
    bias: Option<&Array>,
    splits: usize,
    cols: usize,
    file: &'static str,
    define: &[(&'static str, Define)],
) -> Result<()> {
    Launch::new(y, file, "sum_parts", define)?
        .array(y)
        .array(partials)
        .optional(bias)
        .value(y.len() as i64)
        .value(splits as i64)
        .value(cols as i64)
        .run_1d(y.len())
}
