//! Wgrad as implicit GEMM on wgmma: filters by taps and channels, summed over pixels in splits. The other launch of
//! `kernels/conv2d_wgmma.cu`.

use super::{
    ConvCall, ConvOperands, ConvOutputs,
    phases::{Axis, plane, taps},
    problem::ConvProblem,
    wgmma_params::{ConvPhase, WgmmaConvParams, all_to_nhwc, first_and_last, im2col, tma_reads, to_nhwc},
};
use crate::{
    Array, DType, Layout, Result,
    cuda::{Launch, Swizzle, TensorMap},
    gemm::model::{
        wgmma::{self, GemmShape, GroupedGemm, WgmmaPlan},
        wgmma_tile::WgmmaTile,
    },
};

/// The axes of each convolution; `None` where TMA cannot read the operands, as numbers of `read_as`.
pub(super) fn axes(call: &ConvCall, read_as: DType) -> Option<Vec<[Axis; 2]>> {
    let groups = call.convs[0].problem.groups;
    let axes = |s: &ConvProblem| {
        let axes = [Axis::fprop(s, 0), Axis::fprop(s, 1)];
        let reads = s.groups == groups && tma_reads(s, read_as) && axes[0].fits(s.h) && axes[1].fits(s.w);
        reads.then_some(axes)
    };
    call.convs.iter().map(|c| axes(c.problem)).collect()
}

/// Gives `f` the grouped GEMM of all convolutions, if TMA reads them.
pub(super) fn group<T>(call: &ConvCall, read_as: DType, f: impl FnOnce(&GroupedGemm) -> T) -> Option<T> {
    let (axes, groups, mut macs) = (axes(call, read_as)?, call.convs[0].problem.groups, 0usize);
    let shape = |(c, axes): (&ConvOperands, &[Axis; 2])| {
        let (s, pixels) = (c.problem, c.problem.n * plane(axes));
        macs = macs.saturating_add(pixels.saturating_mul(s.w_len()));
        let n = taps(axes) * (s.c / groups).next_multiple_of(64);
        GemmShape { m: s.o / groups, n, k_steps: wgmma::steps(call.dtype(), pixels) }
    };
    let shapes: Vec<GemmShape> = call.convs.iter().zip(&axes).map(shape).collect();
    let products = wgmma::products(call.dtype());
    Some(f(&GroupedGemm { shapes: &shapes, batch: groups, macs, can_split_k: true, products }))
}

pub(super) fn launch(call: &ConvCall, plan: &WgmmaPlan) -> Result<ConvOutputs> {
    let Some(axes) = axes(call, call.dtype()) else { return Err(call.unsupported()) };
    let (dtype, x) = (call.dtype(), to_nhwc(call.convs[0].b)?);
    let depth = 128 / dtype.size();
    let dys = all_to_nhwc(call.convs.iter().map(|c| c.a))?;
    let (partials, tiles, params) = workspace(call, &axes, (plan.tile, plan.splits, plan.steps_per_split))?;
    let map = |dy: &Array| {
        let [n, o, oh, ow] = [0, 1, 2, 3].map(|i| dy.shape()[i]);
        TensorMap::tiled(&[o, n * oh * ow], &[o], &[depth, depth]).swizzle(Swizzle::Span128)
    };
    let ((dy0, dy1), (axes0, axes1), (dw0, dw1)) = (first_and_last(&dys), first_and_last(&axes), first_and_last(&partials));
    Launch::new(&x, "conv2d_wgmma.cu", "conv2d_wgmma", &plan.defines(dtype, &[("PASS", 2)]))?
        .tensor(dy0, &map(dy0))
        .tensor(dy1, &map(dy1))
        .tensor(&x, &im2col(&x, *axes0, depth).swizzle(Swizzle::Span128))
        .tensor(&x, &im2col(&x, *axes1, depth).swizzle(Swizzle::Span128))
        .array(dw0)
        .array(dw1)
        .value(params)
        .run(plan.grid(tiles), plan.threads(), plan.smem_bytes())?;
    Ok(ConvOutputs::new(reduce_wgrad(call, &partials, plan.splits)?))
}

/// Memory for the partial sums of each dw, (split, o, taps, c / groups), how many tiles a launch has, and its parameters.
pub(super) fn workspace(
    call: &ConvCall,
    axes: &[[Axis; 2]],
    (tile, splits, steps_per_split): (WgmmaTile, usize, usize),
) -> Result<(Vec<Array>, usize, WgmmaConvParams)> {
    let groups = call.convs[0].problem.groups;
    let (mut tiles, mut phases, mut partials) = (0, Vec::new(), Vec::new());
    for (of, (conv, &axes)) in call.convs.iter().zip(axes).enumerate() {
        let s = conv.problem;
        phases.push(ConvPhase { axes, begin: tiles as i32, of: of as i32 });
        let columns = taps(&axes) * (s.c / groups).next_multiple_of(64);
        tiles += (s.o / groups).div_ceil(tile.rows()) * columns.div_ceil(tile.columns()) * splits * groups;
        partials.push(Array::uninit(&[splits, s.w_len()], DType::F32, Layout::RowMajor, &conv.a.context())?);
    }
    let (first, last) = first_and_last(call.convs);
    let channels = |c: &ConvOperands| [c.problem.o / groups, c.problem.c / groups, c.problem.kernel[1]];
    let [n, _, oh, ow] = first.problem.y_shape();
    let params = WgmmaConvParams::new(&phases, tiles, [channels(first), channels(last)], [n, oh, ow], groups);
    let params = WgmmaConvParams { steps_per_split: steps_per_split as i32, splits: splits as i32, ..params };
    Ok((partials, tiles, params))
}

/// Each dw, in x's layout, from its partial sums in their order.
pub(super) fn reduce_wgrad(call: &ConvCall, partials: &[Array], splits: usize) -> Result<Vec<Array>> {
    let reduce = |(conv, partials): (&ConvOperands, &Array)| {
        let (s, dw) = (conv.problem, call.uninit(conv, call.layout())?);
        // Partial sums are NHWC: copied as they are, that is one tap of as many channels as there are numbers.
        let (taps, channels) = (s.kernel[0] * s.kernel[1], s.c / s.groups);
        let [taps, channels] = if call.layout() == Layout::RowMajor { [taps, channels] } else { [1, taps * channels] };
        Launch::new(&dw, "sum_filter_parts.cu", "sum_filter_parts", &[("scalar_t", call.dtype().into())])?
            .array(&dw)
            .array(partials)
            .value(dw.len() as i64)
            .value(splits as i32)
            .value(taps as i32)
            .value(channels as i32)
            .run_1d(dw.len())?;
        Ok(dw)
    };
    call.convs.iter().zip(partials).map(reduce).collect()
}
