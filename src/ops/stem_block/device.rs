//! The block on a GPU: launches of `kernels/stem_pool.cu` and `stem_pool_weight.cu`.

use std::cell::Cell;

use super::{
    Inputs, StemBlock,
    plan::{Pooling, line_of},
};
use crate::{
    Array, Context, DType, Layout, Result,
    autograd::Op,
    conv::{
        first_layer_plan::{FirstLayerPass, FirstLayerWork, WARPS},
        problem::ConvProblem,
    },
    cuda::{Define, Launch},
    gemm::{
        arch::{Arch, INDEX_LIMIT},
        bn_stats::BnPartials,
    },
    ops::{Conv2d, batch_norm::gpu::merge},
    precision::{self, Precision},
};

const FILE: &str = "stem_pool.cu";
const BACKWARD: &str = "stem_pool_weight.cu";
/// Taps of a window: a winner's number is a byte, and one of them says that there is none.
const WINDOW: usize = 255;
/// Taps of a filter, which a block of the last kernel has in shared memory.
const TAPS: usize = 4096;

/// What the forward pass makes; `place` where it is recorded.
#[derive(Debug)]
pub(super) struct Fused {
    pub(super) y: Array,
    pub(super) statistics: [Array; 2],
    pub(super) place: Option<Array>,
}

/// The sizes, where they are the kernels'.
fn sizes(block: &StemBlock, x: &Array, w: &Array, b: Option<&Array>, parameters: &[&Array]) -> Option<(ConvProblem, Pooling)> {
    let dtypes = matches!(x.dtype(), DType::F16 | DType::BF16 | DType::F32)
        && [Some(w), b].into_iter().flatten().all(|a| a.dtype() == x.dtype())
        && parameters.iter().all(|p| p.dtype() == DType::F32);
    let shapes = parameters.iter().all(|p| p.shape() == [w.shape()[0]]) && block.eps >= 0.0 && block.eps.is_finite();
    if !matches!(x.context(), Context::Gpu(_)) || x.layout() != Layout::ChannelsLast || !dtypes || !shapes {
        return None;
    }
    let s = Conv2d(block.conv).problem(x.shape(), w.shape(), b.map(Array::shape)).ok()?;
    let c = [s.n, s.o, s.out_h(), s.out_w()];
    let (pool, y) = block.pool.plan(block.name(), &c).ok()?;
    let small = |v: usize, most: usize| v > 0 && v <= most;
    let taps = small(pool.kernel[0].saturating_mul(pool.kernel[1]), WINDOW) && small(s.w_len() / s.o.max(1), TAPS);
    // Counts have 32 bits, those of windows outside of the image included.
    let pooled = y.iter().chain(&pool.stride).fold(1usize, |p, &v| p.saturating_mul(v.max(1)));
    (taps && pooled < INDEX_LIMIT).then_some((s, Pooling { s: pool, y }))
}

/// Whether the kernels take it and the model finds them faster than the separate ops; see [`StemBlock::is_fused`].
pub(super) fn takes(block: &StemBlock, x: &Array, w: &Array, parameters: &[&Array], recorded: bool) -> Result<bool> {
    // What is at fault otherwise is told by the layers.
    if w.rank() != 4 || w.context() != x.context() {
        return Ok(false);
    }
    let Some((s, pool)) = sizes(block, x, w, None, parameters) else { return Ok(false) };
    let Some(job) = convolution(&s, x)? else { return Ok(false) };
    let back = if recorded { gradients(&s, x)? } else { None };
    if recorded && back.is_none() {
        return Ok(false);
    }
    // Each step asks the same.
    let key = (*block, s, x.dtype(), precision::get(), (job.arch.capability, job.arch.num_sms), recorded);
    let known = LAST.take().filter(|(last, _)| *last == key).map(|(_, known)| known);
    let known = known.unwrap_or_else(|| pool.is_faster(&job, back.as_ref()));
    LAST.set(Some((key, known)));
    Ok(known)
}

/// What a choice depends on.
type Key = (StemBlock, ConvProblem, DType, Precision, (usize, usize), bool);

thread_local! {
    /// The last choice of this thread's.
    static LAST: Cell<Option<(Key, bool)>> = const { Cell::new(None) };
}

fn first_layer<'a>(s: &'a ConvProblem, pass: FirstLayerPass, x: &Array) -> Result<Option<FirstLayerWork<'a>>> {
    Ok(FirstLayerWork::new(s, pass, x.dtype(), precision::get(), Arch::of(x)?))
}

fn convolution<'a>(s: &'a ConvProblem, x: &Array) -> Result<Option<FirstLayerWork<'a>>> {
    first_layer(s, FirstLayerPass::Fprop(Layout::ChannelsLast), x)
}

fn gradients<'a>(s: &'a ConvProblem, x: &Array) -> Result<Option<FirstLayerWork<'a>>> {
    first_layer(s, FirstLayerPass::Wgrad(Layout::ChannelsLast, true), x)
}

/// Without the choice of a layout, which these kernels do not have.
fn defines(job: &FirstLayerWork, dtype: DType) -> [(&'static str, Define); 2] {
    let [scalar, exact, _] = job.defines(dtype);
    [scalar, exact]
}

/// `None` where the kernels do not take it.
pub(super) fn forward(block: &StemBlock, inputs: &Inputs, recorded: bool) -> Result<Option<Fused>> {
    let &Inputs { x, w, b, gamma, beta, statistics } = inputs;
    let parameters = [gamma, beta].into_iter().chain(statistics.into_iter().flatten()).collect::<Vec<_>>();
    if w.rank() != 4 {
        return Ok(None);
    }
    let Some((s, pool)) = sizes(block, x, w, b, &parameters) else { return Ok(None) };
    let Some(job) = convolution(&s, x)? else { return Ok(None) };
    if recorded && gradients(&s, x)?.is_none_or(|back| pool.backward(&back, &Pooling::units(&back)).is_none()) {
        return Ok(None);
    }
    let (Some(moments), Some(bands)) = (pool.bn_stats(&job), pool.forward(&job)) else { return Ok(None) };
    let (define, threads) = (defines(&job, x.dtype()), [WARPS as u32 * 32, 1, 1]);
    #[cfg(test)]
    crate::testing::reached("stem_block");
    let [mean, var] = match statistics {
        Some(given) => given.map(Array::clone),
        None => {
            let parts = moments.blocks;
            let sums = Array::uninit(&[parts * (2 * s.o + 1)], DType::F32, Layout::RowMajor, &x.context())?;
            let mut launch = Launch::new(x, FILE, "stem_moments", &define)?.array(x).array(w).optional(b);
            launch = launch.value(job.sizes(x, &w.strides(), &moments));
            let partials = BnPartials::parts(&mut launch, &sums, parts);
            let shared = job.shared(moments.rows, moments.groups) as u32;
            launch.value(partials).run([parts as u32, moments.splits as u32, 1], threads, shared)?;
            merge(x, DType::F32, (&sums, parts as i64), s.o, None)?
        }
    };
    let y = Array::uninit(&pool.y, x.dtype(), x.layout(), &x.context())?;
    let place = if recorded { Some(Array::uninit(&pool.y, DType::U8, x.layout(), &x.context())?) } else { None };
    Launch::new(&y, FILE, "stem_pool", &define)?
        .array(&y)
        .optional(place.as_ref())
        .array(x)
        .array(w)
        .optional(b)
        .array(gamma)
        .array(beta)
        .array(&mean)
        .array(&var)
        .value(block.eps)
        .value(job.sizes(x, &w.strides(), &bands.plan))
        .value(pool.windows(&s, &bands, 4 * bands.plan.groups, 1))
        .run([bands.plan.blocks as u32, bands.plan.splits as u32, 1], threads, bands.shared as u32)?;
    Ok(Some(Fused { y, statistics: [mean, var], place }))
}

/// The gradients of w, b, γ and β from those of y, μ and σ²; `None` where the kernels do not take it, as in another precision than
/// that of the forward pass.
pub(super) fn backward(
    block: &StemBlock,
    inputs: &Inputs,
    [mean, var]: [&Array; 2],
    place: &Array,
    dy: &[Array],
) -> Result<Option<[Option<Array>; 4]>> {
    let &Inputs { x, w, b, gamma, beta, .. } = inputs;
    let (Some((s, pool)), [dy, dmean, dvar]) = (sizes(block, x, w, b, &[gamma, beta]), dy) else { return Ok(None) };
    let Some(job) = gradients(&s, x)? else { return Ok(None) };
    let units = Pooling::units(&job);
    let Some(bands) = pool.backward(&job, &units) else { return Ok(None) };
    let dy = dy.to_layout(Layout::ChannelsLast)?;
    let on = |shape: &[usize], dtype, layout| Array::uninit(shape, dtype, layout, &x.context());
    let (taps, line) = (job.taps(), line_of(&job, bands.rows));
    let own = job.sizes(x, &w.strides(), &bands.plan);
    let parts = (own.all as usize).div_ceil(own.chunk as usize);
    let n = (s.o + taps) * taps;
    let (partial, sums) = (on(&[parts, n], DType::F32, Layout::RowMajor)?, on(&[n], DType::F64, Layout::RowMajor)?);
    let define = defines(&job, x.dtype());
    Launch::new(&partial, BACKWARD, "stem_pool_weight", &define)?
        .array(&partial)
        .array(&dy)
        .array(place)
        .array(x)
        .value(own)
        .value(pool.windows(&s, &bands, 4 * units.most, 8 * job.steps().1))
        .value(units.most as i32)
        .value(line as i32)
        .value((units.most * bands.pitch) as i32)
        .run([parts as u32, units.splits as u32, 1], [units.warps as u32 * 32, 1, 1], bands.shared as u32)?;
    Launch::new(&sums, BACKWARD, "stem_pool_sum", &define)?
        .array(&sums)
        .array(&partial)
        .value(s.o as i32)
        .value(taps as i32)
        .value(parts as i32)
        .run([n.div_ceil(32) as u32, 1, 1], [256, 1, 1], 0)?;
    let dw = on(w.shape(), w.dtype(), x.layout())?;
    let db = b.map(|b| on(&[s.o], b.dtype(), Layout::RowMajor)).transpose()?;
    let row = || on(&[s.o], DType::F32, Layout::RowMajor);
    let (dgamma, dbeta) = (row()?, row()?);
    Launch::new(&dw, BACKWARD, "stem_pool_finish", &define)?
        .array(&dw)
        .optional(db.as_ref())
        .array(&dgamma)
        .array(&dbeta)
        .array(&sums)
        .array(w)
        .optional(b)
        .array(gamma)
        .array(mean)
        .array(var)
        .array(dmean)
        .array(dvar)
        .value(block.eps)
        .value((s.n * s.out_h() * s.out_w()) as f64)
        .value(own)
        .value(dw.strides()[3] as i32)
        .value(dw.strides()[1] as i32)
        .run([s.o as u32, 1, 1], [128, 1, 1], (taps * 8) as u32)?;
    Ok(Some([Some(dw), db, Some(dgamma), Some(dbeta)]))
}
