//! Sums over all axes but one: the gradient of a bias.

use crate::{
    Array, Context, Layout, Result,
    cpu::{buffers::Buffer, memory},
    cuda::Launch,
    dtype::{Element, real_type},
    gemm::split_k::{accumulator, split_k_reduce, splits},
};

/// The column sums of row-major `x` seen as (rows, cols): the gradient of a bias.
pub(crate) fn column_sums(op: &'static str, x: &Array, rows: usize, cols: usize) -> Result<Array> {
    if let Context::Cpu = x.context() {
        return real_type!(op, x.dtype(), F => {
            // In double precision, row after row: exact enough for any number of rows.
            let mut sums = memory::filled(cols, 0.0)?;
            if cols > 0 {
                for row in x.real::<F>(op)?.chunks_exact(cols) {
                    sums.iter_mut().zip(row).for_each(|(s, v)| *s += v.to_f64());
                }
            }
            let mut y = Buffer::<F>::stale(cols)?;
            y.iter_mut().zip(&sums).for_each(|(y, &s)| *y = F::from_f64(s));
            Array::from_real(y, &[cols], x.dtype())
        });
    }
    let pack = 16 / x.dtype().size();
    let packed = cols.is_multiple_of(pack);
    let groups = if packed { cols / pack } else { cols };
    let lanes = groups.next_power_of_two().min(32);
    let blocks = groups.div_ceil(lanes);
    let kernel = if packed { "column_sums_packed" } else { "column_sums" };
    in_parts(kernel, x, cols, splits(rows, blocks), |launch, chunk, parts| {
        let launch = launch.value(rows as i64).value(cols as i64).value(chunk as i64).value(lanes as i32);
        launch.run([blocks as u32, parts, 1], [256, 1, 1], 0)
    })
}

/// The sums over all axes but the second of row-major `x`, on a GPU, seen as (images, channels, plane).
pub(crate) fn plane_sums(x: &Array, images: usize, channels: usize, plane: usize) -> Result<Array> {
    // A chunk is a multiple of 16 elements.
    let kernel = if plane.is_multiple_of(16 / x.dtype().size()) { "plane_sums_packed" } else { "plane_sums" };
    in_parts(kernel, x, channels, splits(images * plane, channels), |launch, chunk, parts| {
        let launch = launch.value(channels as i64).value(plane as i64).value((images * plane) as i64).value(chunk as i64);
        launch.run([channels as u32, parts, 1], [256, 1, 1], 0)
    })
}

/// `n` sums by a kernel of `column_sums.cu` that leaves parts of them, which are added in order.
fn in_parts(
    kernel: &'static str,
    x: &Array,
    n: usize,
    (parts, chunk): (usize, usize),
    run: impl FnOnce(Launch, usize, u32) -> Result<()>,
) -> Result<Array> {
    const FILE: &str = "column_sums.cu";
    let define = [("scalar_t", x.dtype().into())];
    let y = Array::uninit(&[n], x.dtype(), Layout::RowMajor, &x.context())?;
    let sums = Array::uninit(&[parts, n], accumulator(x.dtype()), Layout::RowMajor, &x.context())?;
    run(Launch::new(&y, FILE, kernel, &define)?.array(&sums).array(x), chunk, parts as u32)?;
    split_k_reduce(&y, &sums, None, parts, n.max(1), FILE, &define)?;
    Ok(y)
}
