//! Reductions on the GPU: the choice of kernels of `reduce.cu`, `arg.cu` and `reduce_bwd.cu`.

use crate::{
    Array, DType, Layout, Result,
    cuda::{Define, Dims, Launch},
    ops::{
        bias_grad::{column_sums, plane_sums},
        broadcast::Walk,
    },
};

use super::{Fold, plan::Plan};

/// Elements that a slice has at least before a second pass pays.
const ROW_SLICE: usize = 4096;
const COLUMN_SLICE: usize = 64;
/// Outputs from which the card is busy without slices.
const MANY_ROWS: usize = 512;
const MANY_COLUMNS: usize = 1 << 15;

/// How a plan is shared out: into slices of the reduced elements, one thread (or one block) for each output of each.
struct Share {
    columns: bool,
    slices: usize,
}

fn share(plan: &Plan) -> Share {
    let (n, count) = (plan.outputs.max(1), plan.count);
    let columns = count < 32 || (plan.by_columns() && plan.kept.last().is_some_and(|a| a.0 >= 32));
    let (slice, many) = if columns { (COLUMN_SLICE, MANY_COLUMNS) } else { (ROW_SLICE, MANY_ROWS) };
    // From the sizes alone, so that every card adds in the same order.
    let slices = (count / slice).clamp(1, (many / n).clamp(1, 512));
    Share { columns, slices }
}

/// `Index` and rank of some axes.
fn dims(op: &'static str, axes: &[(usize, usize)]) -> Result<(Dims, i32)> {
    let (extent, stride): (Vec<_>, Vec<_>) = axes.iter().copied().unzip();
    Ok((Dims::new(op, &extent, &stride)?, axes.len() as i32))
}

/// Adds the plan's part of the arguments and queues the kernel.
fn queue(launch: Launch, plan: &Plan, share: &Share) -> Result<()> {
    let ((kept, kept_rank), (reduced, reduced_rank)) = (dims("reduce", &plan.kept)?, dims("reduce", &plan.reduced)?);
    let jobs = plan.outputs * share.slices;
    let len = plan.count.div_ceil(share.slices);
    let launch = launch
        .value(kept)
        .value(kept_rank)
        .value(reduced)
        .value(reduced_rank)
        .value(plan.outputs as i64)
        .value(plan.count as i64)
        .value(len as i64)
        .value(jobs as i64);
    if share.columns {
        return launch.run_1d(jobs);
    }
    let threads = len.next_power_of_two().clamp(32, 256);
    launch.run([jobs.min(1 << 20) as u32, 1, 1], [threads as u32, 1, 1], 0)
}

/// The second pass: (slices, outputs) over its first axis.
fn second(plan: &Plan, slices: usize) -> (Plan, Share) {
    let n = plan.outputs;
    let plan = Plan { kept: vec![(n, 1)], reduced: vec![(slices, n)], outputs: n, count: slices, ..plan.clone() };
    let columns = slices < 32 || n >= MANY_ROWS;
    (plan, Share { columns, slices: 1 })
}

fn fold_name(how: Fold) -> &'static str {
    match how {
        Fold::Sum => "SUM",
        Fold::Prod => "PROD",
        Fold::Squares => "SQUARES",
    }
}

/// The sums of a bias' gradient in either layout, by kernels of their own: all rows of a dense matrix, or all planes of each channel.
pub(super) fn bias_sums(x: &Array, plan: &Plan) -> Result<Option<Array>> {
    if !x.context().is_gpu() || !x.dtype().is_float() {
        return Ok(None);
    }
    match (&plan.kept[..], &plan.reduced[..]) {
        (&[(cols, 1)], &[(rows, stride)]) if stride == cols => column_sums("sum_to", x, rows, cols).map(Some),
        (&[(channels, plane)], &[(images, stride), (elements, 1)]) if elements == plane && stride == channels * plane => {
            plane_sums(x, images, channels, plane).map(Some)
        }
        _ => Ok(None),
    }
}

/// y = fold(x) / divisor as `out`.
pub(super) fn fold(x: &Array, plan: &Plan, how: Fold, divisor: f64, out: DType) -> Result<Array> {
    let wide = match x.dtype() {
        DType::U8 | DType::I64 => DType::I64,
        _ => DType::F64,
    };
    let pass = |y: &Array, x: &Array, plan: &Plan, share: &Share, how: Fold, divisor: f64| {
        let kernel = if share.columns { "reduce_columns" } else { "reduce_rows" };
        let defines = [("scalar_t", x.dtype().into()), ("out_t", y.dtype().into()), ("FOLD", Define::Word(fold_name(how)))];
        queue(Launch::new(x, "reduce.cu", kernel, &defines)?.array(y).array(x).value(divisor), plan, share)
    };
    let y = Array::uninit(&plan.shape, out, plan.layout, &plan.context)?;
    let first = share(plan);
    if first.slices == 1 {
        pass(&y, x, plan, &first, how, divisor)?;
        return Ok(y);
    }
    let partial = Array::uninit(&[first.slices, plan.outputs], wide, Layout::RowMajor, &plan.context)?;
    pass(&partial, x, plan, &first, how, 1.0)?;
    let (plan, share) = second(plan, first.slices);
    let merge = if how == Fold::Prod { Fold::Prod } else { Fold::Sum };
    pass(&y, &partial, &plan, &share, merge, divisor)?;
    Ok(y)
}

/// The extremum of each output and its place in the plan's order; either may be left out.
pub(super) fn extremum(x: &Array, plan: &Plan, largest: bool, want: (bool, bool)) -> Result<(Option<Array>, Option<Array>)> {
    let array = |yes: bool, shape: &[usize], dtype: DType, layout: Layout| {
        yes.then(|| Array::uninit(shape, dtype, layout, &plan.context)).transpose()
    };
    let pass = |y: (Option<&Array>, Option<&Array>), x: &Array, xi: Option<&Array>, plan: &Plan, share: &Share| {
        let kernel = if share.columns { "arg_columns" } else { "arg_rows" };
        let launch = Launch::new(x, "arg.cu", kernel, &[("scalar_t", x.dtype().into())])?;
        let launch = launch.optional(y.0).optional(y.1).array(x).optional(xi).value(i32::from(largest));
        queue(launch, plan, share)
    };
    let y = array(want.0, &plan.shape, x.dtype(), plan.layout)?;
    let index = array(want.1, &plan.shape, DType::I64, plan.layout)?;
    let first = share(plan);
    if first.slices == 1 {
        pass((y.as_ref(), index.as_ref()), x, None, plan, &first)?;
        return Ok((y, index));
    }
    let shape = [first.slices, plan.outputs];
    let part = Array::uninit(&shape, x.dtype(), Layout::RowMajor, &plan.context)?;
    let part_index = array(want.1, &shape, DType::I64, Layout::RowMajor)?;
    pass((Some(&part), part_index.as_ref()), x, None, plan, &first)?;
    let (plan, share) = second(plan, first.slices);
    pass((y.as_ref(), index.as_ref()), &part, part_index.as_ref(), &plan, &share)?;
    Ok((y, index))
}

/// dx[place of output o's extremum] = dy[o]; dx is zero before.
pub(super) fn scatter(dx: &Array, dy: &Array, index: &Array, plan: &Plan) -> Result<()> {
    let ((kept, kept_rank), (reduced, reduced_rank)) = (dims("max", &plan.kept)?, dims("max", &plan.reduced)?);
    Launch::new(dx, "reduce_bwd.cu", "extremum_bwd", &[("scalar_t", dx.dtype().into())])?
        .array(dx)
        .array(dy)
        .array(index)
        .value(kept)
        .value(kept_rank)
        .value(reduced)
        .value(reduced_rank)
        .value(plan.outputs as i64)
        .run_1d(plan.outputs)
}

/// dx = dy · Π of the others; `plan` keeps the axes.
pub(super) fn prod_gradient(x: &Array, dy: &Array, plan: &Plan) -> Result<Array> {
    let (dx, dy) = (x.uninit_like()?, dy.to_layout(plan.layout)?);
    let left = Array::uninit(&[x.len()], DType::F64, Layout::RowMajor, &x.context())?;
    let ((kept, kept_rank), (reduced, reduced_rank)) = (dims("prod", &plan.kept)?, dims("prod", &plan.reduced)?);
    // Runs of a few elements at least.
    let threads = (plan.count / 8).next_power_of_two().clamp(32, 256);
    Launch::new(&dx, "reduce_bwd.cu", "prod_bwd", &[("scalar_t", x.dtype().into())])?
        .array(&dx)
        .array(x)
        .array(&dy)
        .array(&left)
        .value(kept)
        .value(kept_rank)
        .value(reduced)
        .value(reduced_rank)
        .value(plan.outputs as i64)
        .value(plan.count as i64)
        .run([plan.outputs.min(1 << 20) as u32, 1, 1], [threads as u32, 1, 1], 0)?;
    Ok(dx)
}

/// dx = dy · x / y of the norms y in f64, 0 where y is 0.
pub(super) fn norm_gradient(x: &Array, dy: &Array, y: &Array) -> Result<Array> {
    let (dx, y) = (x.uninit_like()?, y.to_layout(dy.layout())?);
    let walk = Walk::new(x.shape(), x.layout(), [dy]);
    Launch::new(&dx, "reduce_bwd.cu", "norm_bwd", &[("scalar_t", x.dtype().into())])?
        .array(&dx)
        .array(x)
        .array(dy)
        .array(&y)
        .value(walk.for_kernel("norm")?)
        .value(dx.len() as i64)
        .run_1d(dx.len())?;
    Ok(dx)
}
