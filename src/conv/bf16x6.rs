//! Convolution of f32 by bf16x6, as implicit GEMM on wgmma: launches of `kernels/conv2d_six.cu`.

use super::{
    ConvCall, ConvOperands, ConvOutputs,
    im2col_wgmma::ImplicitGemm,
    im2col_wgrad::{self, reduce_wgrad},
    mma,
    phases::Axis,
    problem::ConvPass,
    wgmma_params::{PHASES, all_to_nhwc, first_and_last, to_nhwc},
};
use crate::{
    Array, DType, Result,
    cuda::{Launch, Swizzle, TensorMap},
    gemm::{
        bf16x3::split_bf16x3,
        model::bf16x6::{self as model, Bf16x6Plan, PLANES, STEP_K, plans},
        model::wgmma::GroupedGemm,
        select::{Algorithm, Rank},
    },
};

/// The `Read` of `conv2d_six.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Bf16x6ReadParams {
    h: [i32; 2],
    w: [i32; 2],
    taps: [i32; 2],
}

impl Bf16x6ReadParams {
    /// The images read (n, c, h, w) and the taps of the filters of both convolutions.
    fn new(both: [(&Array, usize); 2]) -> Self {
        let size = |axis: usize| both.map(|(images, _)| images.shape()[axis] as i32);
        Bf16x6ReadParams { h: size(2), w: size(3), taps: both.map(|(_, taps)| taps as i32) }
    }
}

/// An NHWC array and its planes.
#[derive(Clone)]
struct SplitOperand {
    whole: Array,
    planes: Array,
}

impl SplitOperand {
    fn new(whole: &Array) -> Result<Self> {
        Ok(SplitOperand { whole: whole.clone(), planes: split_bf16x3(whole)? })
    }

    /// The map of images, from which a copy takes `pixels` pixels of `channels` channels of one plane: the planes are one set of images
    /// after the other.
    fn im2col(&self, [down, across]: [Axis; 2], channels: usize, pixels: usize) -> TensorMap {
        let [n, c, h, w] = [0, 1, 2, 3].map(|i| self.whole.shape()[i]);
        let (lower, upper) = ([across.lower, down.lower], [across.upper(w), down.upper(h)]);
        let map = TensorMap::im2col(&[c, w, h, n * PLANES], &[c, w * c, h * w * c], &lower, &upper, channels, pixels);
        map.steps(&[1, across.step as usize, down.step as usize, 1]).swizzle(swizzle(channels))
    }

    /// The map of filters in boxes of one tap and all planes: for y (pass 0) 64 filters by a step of channels, else a step of filters by
    /// 64 channels.
    fn filters(&self, pass: usize) -> TensorMap {
        let [o, c, kh, kw] = [0, 1, 2, 3].map(|i| self.whole.shape()[i]);
        let (channels, filters) = if pass == 0 { (STEP_K, 64) } else { (64, STEP_K) };
        let (taps, plane) = (kh * kw, self.planes.len() / PLANES);
        let map = TensorMap::tiled(&[c, taps, o, PLANES], &[c, taps * c, plane], &[channels, 1, filters, PLANES]);
        map.swizzle(swizzle(channels))
    }

    /// The map of dy in boxes of a step of pixels by 64 filters.
    fn pixels(&self) -> TensorMap {
        let [n, o, oh, ow] = [0, 1, 2, 3].map(|i| self.whole.shape()[i]);
        let plane = self.planes.len() / PLANES;
        TensorMap::tiled(&[o, n * oh * ow, PLANES], &[o, plane], &[64, STEP_K, PLANES]).swizzle(swizzle(64))
    }
}

/// The swizzle of rows of so many bf16.
fn swizzle(numbers: usize) -> Swizzle {
    if numbers == 64 { Swizzle::Span128 } else { Swizzle::Span64 }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Bf16x6;

/// Gives `f` the grouped GEMM, and how many elements of operands are split, if TMA reads them.
fn group<T>(call: &ConvCall, f: impl FnOnce(&GroupedGemm, usize) -> T) -> Option<T> {
    if call.pass == ConvPass::Wgrad {
        let elements = call.convs[0].b.len() + call.convs.iter().map(|c| c.a.len()).sum::<usize>();
        return im2col_wgrad::group(call, DType::BF16, |g| f(g, elements));
    }
    // Fprop reads one x, and splits it once.
    let images = |convs: &[ConvOperands]| convs.iter().map(|c| c.a.len()).sum::<usize>();
    let images = images(if call.pass == ConvPass::Fprop { &call.convs[..1] } else { call.convs });
    let elements = images + call.convs.iter().map(|c| c.b.len()).sum::<usize>();
    Some(ImplicitGemm::new(call, DType::BF16)?.group(|g| f(g, elements)))
}

impl Algorithm for Bf16x6 {
    type Call<'a> = ConvCall<'a>;
    type Output = ConvOutputs;
    type Plan = Bf16x6Plan;
    const NAME: &'static str = "bf16x6";

    fn supports(call: &ConvCall) -> Result<Option<Rank>> {
        let is_ours = call.arch.has_bf16x6(call.dtype(), call.precision) && group(call, |_, _| ()).is_some();
        Ok(is_ours.then_some(Rank::TensorCore))
    }

    fn plans(call: &ConvCall, offer: &mut dyn FnMut(f64, Bf16x6Plan)) -> Result<()> {
        // Sums that are too short for 3xTF32 are plain f32's, by the same bound on the error.
        if call.convs.iter().all(|c| mma::has_plan(call, c)) {
            let tiles = if call.pass == ConvPass::Wgrad { model::IM2COL_WGRAD } else { model::IM2COL };
            group(call, |g, elements| plans(call.arch.num_sms, tiles, g, elements, offer));
        }
        Ok(())
    }

    fn numbers(plan: &Bf16x6Plan) -> [u32; 4] {
        plan.numbers()
    }

    #[cfg(test)]
    fn forced(call: &ConvCall, force: &crate::testing::Force) -> Result<Option<Bf16x6Plan>> {
        let tiles = if call.pass == ConvPass::Wgrad { model::IM2COL_WGRAD } else { model::IM2COL };
        Ok(group(call, |g, _| Bf16x6Plan::forced(force, tiles, g, call.arch.num_sms)))
    }

    fn launch(call: &ConvCall, plan: &Bf16x6Plan) -> Result<ConvOutputs> {
        if call.pass == ConvPass::Wgrad { wgrad(call, plan) } else { fprop_or_dgrad(call, plan) }
    }
}

fn fprop_or_dgrad(call: &ConvCall, plan: &Bf16x6Plan) -> Result<ConvOutputs> {
    let Some(gemm) = ImplicitGemm::new(call, DType::BF16) else { return Err(call.unsupported()) };
    let (results, pass) = (gemm.results()?, call.pass as usize);
    let images = all_to_nhwc(call.convs.iter().map(|c| c.a))?;
    let filters = call.convs.iter().map(|c| SplitOperand::new(&to_nhwc(c.b)?)).collect::<Result<Vec<_>>>()?;
    let mut read = vec![SplitOperand::new(&images[0])?];
    if let Some(other) = images.get(1) {
        let shared = call.pass == ConvPass::Fprop;
        read.push(if shared { read[0].clone() } else { SplitOperand::new(other)? });
    }
    let ((y0, y1), (c0, c1)) = (first_and_last(&results), first_and_last(call.convs));
    let ((w0, w1), (x0, x1)) = (first_and_last(&filters), first_and_last(&read));
    let taps = |c: &ConvOperands| c.problem.kernel[0] * c.problem.kernel[1];
    gemm.launches(&|phases| {
        let (all, tiles, params) = gemm.params(plan.tile, phases);
        let mut launch = Launch::new(y0, "conv2d_six.cu", "conv2d_six", &plan.defines(&[("PASS", pass)]))?
            .tensor(&w0.planes, &w0.filters(pass))
            .tensor(&w1.planes, &w1.filters(pass));
        for phase in all.iter().chain(std::iter::repeat(&all[0])).take(PHASES) {
            let images = if phase.of == 0 { x0 } else { x1 };
            launch = launch.tensor(&images.planes, &images.im2col(phase.axes, STEP_K, plan.tile.columns()));
        }
        let launch = launch
            .array(y0)
            .array(y1)
            .optional(c0.bias)
            .optional(c1.bias)
            .array(&w0.whole)
            .array(&w1.whole)
            .array(&x0.whole)
            .array(&x1.whole)
            .value(params)
            .value(Bf16x6ReadParams::new([(&x0.whole, taps(c0)), (&x1.whole, taps(c1))]));
        gemm.run_with_stats(launch, (plan.tile, true), phases, (y0, y1), (plan.grid(tiles), plan.threads(), plan.smem_bytes()))
    })?;
    gemm.outputs(&results)
}

fn wgrad(call: &ConvCall, plan: &Bf16x6Plan) -> Result<ConvOutputs> {
    let Some(axes) = im2col_wgrad::axes(call, DType::BF16) else { return Err(call.unsupported()) };
    let x = SplitOperand::new(&to_nhwc(call.convs[0].b)?)?;
    let dys = all_to_nhwc(call.convs.iter().map(|c| c.a))?.iter().map(SplitOperand::new).collect::<Result<Vec<_>>>()?;
    let (partials, tiles, params) = im2col_wgrad::workspace(call, &axes, (plan.tile, plan.splits, plan.steps_per_split))?;
    let ((dy0, dy1), (axes0, axes1), (dw0, dw1)) = (first_and_last(&dys), first_and_last(&axes), first_and_last(&partials));
    Launch::new(&x.whole, "conv2d_six.cu", "conv2d_six", &plan.defines(&[("PASS", 2)]))?
        .tensor(&dy0.planes, &dy0.pixels())
        .tensor(&dy1.planes, &dy1.pixels())
        .tensor(&x.planes, &x.im2col(*axes0, 64, STEP_K))
        .tensor(&x.planes, &x.im2col(*axes1, 64, STEP_K))
        .array(dw0)
        .array(dw1)
        .array(&dy0.whole)
        .array(&dy1.whole)
        .array(&x.whole)
        .value(params)
        .value(Bf16x6ReadParams::new([(&x.whole, 0), (&x.whole, 0)]))
        .run(plan.grid(tiles), plan.threads(), plan.smem_bytes())?;
    Ok(ConvOutputs::new(reduce_wgrad(call, &partials, plan.splits)?))
}
