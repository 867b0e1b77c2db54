//! Depthwise convolution: launches of `kernels/depthwise.cu`.

use super::{
    ConvCall, ConvOutputs,
    problem::{ConvPass, ConvProblem, volume},
};
use crate::{
    Array, DType, Layout, Result,
    cuda::{Define, Launch},
    gemm::{
        arch::INDEX_LIMIT,
        select::{Algorithm, Rank},
        split_k::{accumulator, split_k_reduce, splits},
    },
};

const FILE: &str = "depthwise.cu";
/// Threads of a CTA.
const THREADS: usize = 256;
/// Taps that a thread accumulates at once: `TAPS` of the kernel.
const TAPS: usize = 3;
/// Bytes of shared memory for weights: little enough for eight CTAs on an SM.
const WEIGHT_BYTES: usize = 12 << 10;

/// The `Depthwise` of `depthwise.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DepthwiseParams {
    n: i32,
    c: i32,
    h: i32,
    w: i32,
    oh: i32,
    ow: i32,
    kernel: [i32; 2],
    stride: [i32; 2],
    padding: [i32; 2],
    dilation: [i32; 2],
    /// Channels of a CTA.
    span: i32,
}

/// What all passes share.
struct DepthwiseWork {
    params: DepthwiseParams,
    layout: Layout,
    /// Channels of a thread.
    pack: usize,
    span: usize,
    channels: usize,
    taps: usize,
}

impl DepthwiseWork {
    /// `None` for other convolutions, for counts of more than 31 bits, and for filters that exceed shared memory.
    fn new(s: &ConvProblem, dtype: DType, layout: Layout) -> Option<Self> {
        let [n, o, oh, ow] = s.y_shape();
        let [reach_h, reach_w] = [0, 1].map(|i| s.kernel[i].saturating_mul(s.dilation[i]).saturating_add(s.stride[i]));
        let small = volume(&[n, s.c, s.h, s.w]).max(volume(&[n, o, oh, ow])).max(reach_h).max(reach_w) < INDEX_LIMIT
            && s.padding.iter().all(|&p| p < 1 << 28);
        if s.groups < 2 || s.groups != s.c || s.c != o || !small {
            return None;
        }
        let size = dtype.size();
        let last = layout == Layout::ChannelsLast;
        let pack = if last && s.c.is_multiple_of(16 / size) { 16 / size } else { 1 };
        let taps = volume(&s.kernel);
        let fit = WEIGHT_BYTES / taps.saturating_mul(accumulator(dtype).size()) / pack * pack;
        let span = fit.min(s.c).min(THREADS * pack);
        if span == 0 || s.c.div_ceil(span) > 65535 {
            return None;
        }
        let int = |v: usize| v as i32;
        let params = DepthwiseParams {
            n: int(n),
            c: int(s.c),
            h: int(s.h),
            w: int(s.w),
            oh: int(oh),
            ow: int(ow),
            kernel: s.kernel.map(int),
            stride: s.stride.map(int),
            padding: [s.padding[0], s.padding[1]].map(int),
            dilation: s.dilation.map(int),
            span: int(span),
        };
        Some(DepthwiseWork { params, layout, pack, span, channels: s.c, taps })
    }

    /// Of a call, with the channels of a CTA in wgrad.
    fn of(call: &ConvCall) -> Option<Self> {
        let mut work = Self::new(call.single()?.problem, call.dtype(), call.layout())?;
        if call.pass == ConvPass::Wgrad {
            if work.layout == Layout::RowMajor {
                // Neighbouring threads take neighbouring pixels of one channel.
                (work.span, work.params.span) = (1, 1);
            }
            if work.channels.div_ceil(work.span) > 65535 {
                return None;
            }
        }
        Some(work)
    }

    fn launch(&self, name: &'static str, to: &Array) -> Result<Launch> {
        let last = i64::from(self.layout == Layout::ChannelsLast);
        Launch::new(to, FILE, name, &[("scalar_t", to.dtype().into()), ("CHANNELS_LAST", Define::Int(last))])
    }

    /// Queues a pass that writes the images `to`.
    fn run(&self, call: &ConvCall, launch: Launch, to: &Array) -> Result<()> {
        let spans = self.channels.div_ceil(self.span);
        // Enough CTAs to fill the device twice: each loads its weights once.
        let most = (call.arch.num_sms * 16).div_ceil(spans);
        let ctas = (to.len() / self.pack).div_ceil(spans * THREADS).min(most);
        let weights = self.span * self.taps * accumulator(to.dtype()).size();
        launch.value(self.params).run([ctas as u32, spans as u32, 1], [THREADS as u32, 1, 1], weights as u32)
    }

    fn wgrad(&self, call: &ConvCall, dw: &Array) -> Result<()> {
        let (dy, x) = (call.convs[0].a, call.convs[0].b);
        let pixels = dy.len() / self.channels;
        let (spans, groups) = (self.channels.div_ceil(self.span), self.taps.div_ceil(TAPS).min(65535));
        let (splits, k_per_split) = splits(pixels, spans * groups);
        let partials = Array::uninit(&[splits, dw.len()], accumulator(dw.dtype()), Layout::RowMajor, &dw.context())?;
        let launch = self.launch("depthwise_bwd_weight", dw)?.array(&partials).array(&dy.to_layout(x.layout())?).array(x);
        let grid = [splits as u32, spans as u32, groups as u32];
        launch.value(self.params).value(k_per_split as i32).run(grid, [THREADS as u32, 1, 1], 0)?;
        split_k_reduce(dw, &partials, None, splits, 1, "sum_parts.cu", &[("scalar_t", dw.dtype().into())])
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Depthwise;

impl Algorithm for Depthwise {
    type Call<'a> = ConvCall<'a>;
    type Output = ConvOutputs;
    type Plan = ();
    const NAME: &'static str = "depthwise";

    fn supports(call: &ConvCall) -> Result<Option<Rank>> {
        Ok(DepthwiseWork::of(call).map(|_| Rank::Specialised))
    }

    /// Without a model: nothing else comes near.
    fn plans(_call: &ConvCall, offer: &mut dyn FnMut(f64, ())) -> Result<()> {
        offer(0.0, ());
        Ok(())
    }

    fn numbers((): &()) -> [u32; 4] {
        [0; 4]
    }

    fn launch(call: &ConvCall, (): &()) -> Result<ConvOutputs> {
        let (Some(work), Some(conv)) = (DepthwiseWork::of(call), call.single()) else { return Err(call.unsupported()) };
        let to = call.uninit(conv, call.layout())?;
        // With one channel each, filters lie alike in both layouts.
        match call.pass {
            ConvPass::Fprop => {
                let launch = work.launch("depthwise_fwd", &to)?.array(&to).array(conv.a).array(conv.b).optional(conv.bias);
                work.run(call, launch, &to)?;
            }
            ConvPass::Dgrad => {
                let launch = work.launch("depthwise_bwd_data", &to)?.array(&to).array(conv.a).array(conv.b);
                work.run(call, launch, &to)?;
            }
            ConvPass::Wgrad => work.wgrad(call, &to)?,
        }
        Ok(ConvOutputs::new(vec![to]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DType, Layout,
        check::{bound, cast, parity_within, random},
        cpu,
        ops::{Conv2d, Conv2dOptions, mma_tests::gpu},
    };

    fn work(x: [usize; 4], o: usize, kernel: usize, groups: usize, layout: Layout) -> Option<DepthwiseWork> {
        let [n, c, h, w] = x;
        let s = ConvProblem {
            n,
            c,
            h,
            w,
            o,
            kernel: [kernel; 2],
            stride: [1; 2],
            padding: [kernel / 2; 4],
            dilation: [1; 2],
            groups,
        };
        DepthwiseWork::new(&s, DType::BF16, layout)
    }

    #[test]
    fn what_is_taken() {
        let last = |c, kernel| work([2, c, 9, 9], c, kernel, c, Layout::ChannelsLast).map(|j| (j.pack, j.span));
        assert_eq!((last(64, 3), last(12, 3), last(4096, 3)), (Some((8, 64)), Some((1, 12)), Some((8, 336))));
        assert_eq!((last(64, 11), last(64, 55)), (Some((8, 24)), None));
        assert_eq!(work([2, 64, 9, 9], 64, 3, 64, Layout::RowMajor).map(|j| j.pack), Some(1));
        // A multiplier, groups of two, one channel, more than 31 bits count.
        for (x, o, groups) in [([2, 8, 9, 9], 16, 8), ([2, 8, 9, 9], 8, 4), ([2, 1, 9, 9], 1, 1), ([1 << 20, 64, 9, 9], 64, 64)] {
            assert!(work(x, o, 3, groups, Layout::RowMajor).is_none(), "{x:?} {o} {groups}");
        }
    }

    /// Several spans of channels, of taps, of pixels; some tens of blocks, so that threads have several turns.
    #[test]
    fn agrees_with_the_cpu() -> Result<()> {
        let Some(gpu) = gpu((7, 5)) else { return Ok(()) };
        let o = Conv2dOptions::new;
        for (c, side, kernel, options) in [
            (24, 40, 3, o().padding(1)),
            (40, 13, 11, o().padding(5)),
            (7, 30, 4, o().stride([3, 2]).padding(2).dilation([1, 3])),
        ] {
            let op = Conv2d(options.groups(c));
            for (dtype, layout) in
                [(DType::BF16, Layout::ChannelsLast), (DType::F32, Layout::ChannelsLast), (DType::F32, Layout::RowMajor)]
            {
                let all =
                    [random(&[2, c, side, side], 1)?.to_layout(layout)?, random(&[c, 1, kernel, kernel], 2)?, random(&[c], 3)?];
                let own = all.iter().map(|a| cast(a, dtype)?.to_layout(a.layout())).collect::<Result<Vec<_>>>()?;
                parity_within(&op, &own, &gpu, &cpu(), 2.0 * bound(dtype))?;
            }
        }
        Ok(())
    }
}
