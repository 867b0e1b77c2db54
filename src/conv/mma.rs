//! Convolution as implicit GEMM on mma.sync: launches of `kernels/conv2d_mma.cu`. Operands are NHWC there; NCHW ones are copied first,
//! which takes less than reading them element by element would.

use super::{
    ConvCall, ConvOperands, ConvOutputs,
    problem::{ConvPass, ConvProblem, volume},
    wgmma_params::to_nhwc,
};
use crate::{
    DType, Layout, Result,
    cuda::Launch,
    gemm::{
        arch::INDEX_LIMIT,
        bn_stats::BnPartials,
        fast_divmod::FastDivmod,
        model::mma::{self, GemmSize, MmaPlan, load_bytes, plans},
        select::{Algorithm, Rank},
    },
};

/// The `Conv` of `conv2d_mma.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct MmaConvParams {
    n: i32,
    c: i32,
    h: i32,
    w: i32,
    o: i32,
    oh: i32,
    ow: i32,
    kernel: [i32; 2],
    stride: [i32; 2],
    /// Top and left.
    padding: [i32; 2],
    dilation: [i32; 2],
    groups: i32,
    k_per_split: i32,
    /// The result is NCHW.
    row_major: i32,
    by_c: FastDivmod,
    by_o: FastDivmod,
    by_kw: FastDivmod,
    by_oh: FastDivmod,
    by_ow: FastDivmod,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Mma;

/// Phases of dgrad: pixels with the same remainders by the stride meet the same taps.
fn phases(s: &ConvProblem) -> usize {
    s.stride[0].min(s.h) * s.stride[1].min(s.w)
}

/// The most taps of an axis that one pixel meets: every (stride / gcd)-th.
fn taps_met(kernel: usize, stride: usize, dilation: usize) -> usize {
    let period = (1..=kernel).find(|i| i.saturating_mul(dilation).is_multiple_of(stride));
    kernel.div_ceil(period.unwrap_or(kernel))
}

/// The implicit GEMM of a pass, where 32 bits count it.
fn size(s: &ConvProblem, pass: ConvPass, dtype: DType) -> Option<GemmSize> {
    let [n, o, oh, ow] = s.y_shape();
    let ([kh, kw], groups) = (s.kernel, s.groups);
    // Offsets count in 32 bits, those of pixels and taps outside of the image included.
    let span = |axis: usize| s.kernel[axis].saturating_mul(s.dilation[axis]).saturating_add(s.stride[axis]);
    let height = volume(&[n, s.h.max(oh)]).saturating_add(s.padding[0]).saturating_add(span(0));
    let width = s.w.max(ow).saturating_add(s.padding[1]).saturating_add(span(1));
    let fits = volume(&[height, width, s.c.max(o)]) < INDEX_LIMIT
        && volume(&[s.c.max(o), kh, kw]) < INDEX_LIMIT
        && s.w_len() < INDEX_LIMIT;
    if !fits || height.max(width) >= INDEX_LIMIT / 4 || groups > 65535 || s.result_shape(pass).contains(&0) {
        return None;
    }
    let (cg, og, bytes) = (s.c / groups, o / groups, dtype.size());
    Some(match pass {
        ConvPass::Fprop => {
            GemmSize { m: n * oh * ow, n: og, k: cg * kh * kw, batch: groups, load_bytes: load_bytes(bytes, [s.c, cg]) }
        }
        ConvPass::Dgrad => {
            let met = |axis: usize| taps_met(s.kernel[axis], s.stride[axis], s.dilation[axis]);
            let pixels = n * s.h.div_ceil(s.stride[0]) * s.w.div_ceil(s.stride[1]);
            let batch = groups.saturating_mul(phases(s));
            GemmSize { m: pixels, n: cg, k: og * met(0) * met(1), batch, load_bytes: load_bytes(bytes, [o, og, cg]) }
        }
        ConvPass::Wgrad => {
            let load_bytes = load_bytes(bytes, [o, og, s.c, cg]);
            GemmSize { m: og, n: cg * kh * kw, k: n * oh * ow, batch: groups, load_bytes }
        }
    })
}

/// That of a call of one convolution.
fn size_of(call: &ConvCall) -> Option<GemmSize> {
    size(call.single()?.problem, call.pass, call.dtype())
}

/// Whether mma.sync has a plan for one of a call's convolutions.
pub(super) fn has_plan(call: &ConvCall, conv: &ConvOperands) -> bool {
    let cheapest = |size| mma::cheapest(call.arch, call.dtype(), call.precision, size);
    size(conv.problem, call.pass, call.dtype()).and_then(cheapest).is_some()
}

impl Algorithm for Mma {
    type Call<'a> = ConvCall<'a>;
    type Output = ConvOutputs;
    type Plan = MmaPlan;
    const NAME: &'static str = "mma";

    fn supports(call: &ConvCall) -> Result<Option<Rank>> {
        Ok(size_of(call).map(|_| Rank::TensorCore))
    }

    fn plans(call: &ConvCall, offer: &mut dyn FnMut(f64, MmaPlan)) -> Result<()> {
        if let Some(size) = size_of(call) {
            plans(call.arch, call.dtype(), call.precision, size, offer);
        }
        Ok(())
    }

    fn numbers(plan: &MmaPlan) -> [u32; 4] {
        plan.numbers()
    }

    #[cfg(test)]
    fn forced(call: &ConvCall, force: &crate::testing::Force) -> Result<Option<MmaPlan>> {
        Ok(size_of(call).map(|size| MmaPlan::forced(force, call.dtype(), call.precision, size)))
    }

    fn launch(call: &ConvCall, plan: &MmaPlan) -> Result<ConvOutputs> {
        let Some(size) = size_of(call) else { return Err(call.unsupported()) };
        let (conv, s) = (&call.convs[0], call.convs[0].problem);
        // The reduction of splits adds a bias by channel, which has to be the last axis then.
        let by_channel = plan.splits > 1 && conv.bias.is_some();
        let to = call.uninit(conv, if by_channel { Layout::ChannelsLast } else { call.layout() })?;
        let (a, b) = (to_nhwc(conv.a)?, to_nhwc(conv.b)?);
        let partials = plan.workspace(&to)?;
        let ctas = plan.tiles(size.m, size.n) * if call.pass == ConvPass::Dgrad { phases(s) } else { 1 };
        // Statistics are taken where channels are stored by 16 bytes.
        let by_16_bytes = plan.splits == 1 && size.n.is_multiple_of(16 / to.dtype().size());
        let stats = match call.pass {
            ConvPass::Fprop if by_16_bytes => BnPartials::uninit(&to, size.m.div_ceil(plan.tile[0]))?,
            _ => None,
        };
        let define = plan.defines(to.dtype(), [("PASS", call.pass as usize), ("", 0)]);
        let launch = Launch::new(&to, "conv2d_mma.cu", "conv2d_mma", &define)?
            .array(&to)
            .optional(partials.as_ref())
            .array(&a)
            .array(&b)
            .optional(conv.bias)
            .value(params(s, to.layout(), plan));
        let grid = [ctas as u32, plan.splits as u32, s.groups as u32];
        BnPartials::argument(stats.as_ref(), launch).run(grid, [plan.threads(), 1, 1], plan.smem_bytes())?;
        stats.map_or(Ok(()), |s| s.attach(&to))?;
        plan.reduce(&to, partials, conv.bias, size.n * s.groups)?;
        Ok(ConvOutputs::new(vec![to.to_layout(call.layout())?]))
    }
}

fn params(s: &ConvProblem, layout: Layout, plan: &MmaPlan) -> MmaConvParams {
    let (int, [n, o, oh, ow]) = (|v: usize| v as i32, s.y_shape());
    MmaConvParams {
        n: int(n),
        c: int(s.c),
        h: int(s.h),
        w: int(s.w),
        o: int(o),
        oh: int(oh),
        ow: int(ow),
        kernel: s.kernel.map(int),
        stride: s.stride.map(int),
        padding: [s.padding[0], s.padding[1]].map(int),
        dilation: s.dilation.map(int),
        groups: int(s.groups),
        k_per_split: int(plan.k_per_split),
        row_major: i32::from(layout == Layout::RowMajor),
        by_c: FastDivmod::new(s.c / s.groups),
        by_o: FastDivmod::new(o / s.groups),
        by_kw: FastDivmod::new(s.kernel[1]),
        by_oh: FastDivmod::new(oh),
        by_ow: FastDivmod::new(ow),
    }
}
