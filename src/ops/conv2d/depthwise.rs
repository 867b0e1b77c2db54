//! Convolution of each channel by itself on the GPU: launches of `kernels/depthwise.cu`. Each function answers `None` where another
//! kernel has to run.

use super::output;
use crate::{
    Array, Layout, Result,
    cpu::conv::ConvShape,
    cuda::{Define, Launch},
    ops::product::{computed_in, split, sum_parts},
};

const FILE: &str = "depthwise.cu";
/// Threads of a block.
const THREADS: usize = 256;
/// Taps that a thread sums at once: `TAPS` of the kernel.
const TAPS: usize = 3;
/// Bytes of shared memory for weights: little enough for eight blocks on a multiprocessor.
const WEIGHTS: usize = 12 << 10;

/// The `Depthwise` of `depthwise.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Sizes {
    extents: [i32; 6],
    window: [i32; 8],
    span: i32,
}

/// What all passes share.
struct Job {
    sizes: Sizes,
    layout: Layout,
    /// Channels that a thread has.
    pack: usize,
    span: usize,
    channels: usize,
    taps: usize,
}

impl Job {
    /// `None` for other convolutions, for what 31 bits do not count, and for filters that shared memory does not hold; `like` has
    /// the dtype and layout.
    fn new(s: &ConvShape, like: &Array) -> Option<Self> {
        let [n, o, oh, ow] = output(s);
        let product = |v: &[usize]| v.iter().fold(1usize, |p, &v| p.saturating_mul(v));
        let [reach_h, reach_w] = [0, 1].map(|i| s.kernel[i].saturating_mul(s.dilation[i]).saturating_add(s.stride[i]));
        let small = product(&[n, s.c, s.h, s.w]).max(product(&[n, o, oh, ow])).max(reach_h).max(reach_w) < 1 << 30
            && s.padding.iter().all(|&p| p < 1 << 28);
        if s.groups < 2 || s.groups != s.c || s.c != o || !small {
            return None;
        }
        let (size, layout) = (like.dtype().size(), like.layout());
        let last = layout == Layout::ChannelsLast;
        let pack = if last && s.c.is_multiple_of(16 / size) { 16 / size } else { 1 };
        let taps = product(&s.kernel);
        let fit = WEIGHTS / taps.saturating_mul(computed_in(like.dtype()).size()) / pack * pack;
        let span = fit.min(s.c).min(THREADS * pack);
        if span == 0 || s.c.div_ceil(span) > 65535 {
            return None;
        }
        let int = |v: usize| v as i32;
        let [kh, kw] = s.kernel;
        let sizes = Sizes {
            extents: [n, s.c, s.h, s.w, oh, ow].map(int),
            window: [kh, kw, s.stride[0], s.stride[1], s.padding[0], s.padding[1], s.dilation[0], s.dilation[1]].map(int),
            span: int(span),
        };
        Some(Job { sizes, layout, pack, span, channels: s.c, taps })
    }

    fn launch(&self, name: &'static str, to: &Array) -> Result<Launch> {
        let last = i64::from(self.layout == Layout::ChannelsLast);
        Launch::new(to, FILE, name, &[("scalar_t", to.dtype().into()), ("CHANNELS_LAST", Define::Int(last))])
    }

    /// Queues a pass that writes the images `to`.
    fn run(&self, launch: Launch, to: &Array) -> Result<()> {
        let device = to.cuda("conv2d")?.owner();
        let spans = self.channels.div_ceil(self.span);
        // Enough blocks to fill the device twice: each loads its weights once.
        let most = (device.multiprocessors as usize * 16).div_ceil(spans);
        let blocks = (to.len() / self.pack).div_ceil(spans * THREADS).min(most);
        let weights = self.span * self.taps * computed_in(to.dtype()).size();
        launch.value(self.sizes).run([blocks as u32, spans as u32, 1], [THREADS as u32, 1, 1], weights as u32)
    }
}

pub(super) fn forward(x: &Array, w: &Array, b: Option<&Array>, s: &ConvShape) -> Result<Option<Array>> {
    let Some(job) = Job::new(s, x) else { return Ok(None) };
    let y = Array::uninit(&output(s), x.dtype(), x.layout(), &x.context())?;
    // With one channel each, filters lie alike in both layouts.
    job.run(job.launch("depthwise_fwd", &y)?.array(&y).array(x).array(w).optional(b), &y)?;
    Ok(Some(y))
}

pub(super) fn backward_data(dy: &Array, w: &Array, s: &ConvShape) -> Result<Option<Array>> {
    let Some(job) = Job::new(s, dy) else { return Ok(None) };
    let dx = Array::uninit(&[s.n, s.c, s.h, s.w], dy.dtype(), dy.layout(), &dy.context())?;
    job.run(job.launch("depthwise_bwd_data", &dx)?.array(&dx).array(dy).array(w), &dx)?;
    Ok(Some(dx))
}

pub(super) fn backward_weight(dy: &Array, x: &Array, s: &ConvShape) -> Result<Option<Array>> {
    let Some(mut job) = Job::new(s, x) else { return Ok(None) };
    if job.layout == Layout::RowMajor {
        // Neighbouring threads take neighbouring pixels of one channel.
        (job.span, job.sizes.span) = (1, 1);
    }
    let (dw, pixels) =
        (Array::uninit(&[s.c, 1, s.kernel[0], s.kernel[1]], dy.dtype(), x.layout(), &dy.context())?, dy.len() / s.c);
    let (spans, groups) = (s.c.div_ceil(job.span), job.taps.div_ceil(TAPS).min(65535));
    if spans > 65535 {
        return Ok(None);
    }
    let (parts, chunk) = split(pixels, spans * groups);
    let sums = Array::uninit(&[parts, dw.len()], computed_in(dw.dtype()), Layout::RowMajor, &dw.context())?;
    let launch = job.launch("depthwise_bwd_weight", &dw)?.array(&sums).array(&dy.to_layout(x.layout())?).array(x);
    let grid = [parts as u32, spans as u32, groups as u32];
    launch.value(job.sizes).value(chunk as i32).run(grid, [THREADS as u32, 1, 1], 0)?;
    sum_parts(&dw, &sums, None, parts, 1, "sum_parts.cu", &[("scalar_t", dw.dtype().into())])?;
    Ok(Some(dw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DType,
        check::{bound, cast, parity_within, random},
        cpu,
        ops::{Conv2d, Conv2dOptions, mma_tests::gpu},
    };

    fn job(x: [usize; 4], o: usize, kernel: usize, groups: usize, layout: Layout) -> Option<Job> {
        let [n, c, h, w] = x;
        let s =
            ConvShape { n, c, h, w, o, kernel: [kernel; 2], stride: [1; 2], padding: [kernel / 2; 4], dilation: [1; 2], groups };
        Job::new(&s, &Array::uninit(&[1, 1, 1, 1], DType::BF16, layout, &cpu()).unwrap())
    }

    #[test]
    fn what_is_taken() {
        let last = |c, kernel| job([2, c, 9, 9], c, kernel, c, Layout::ChannelsLast).map(|j| (j.pack, j.span));
        assert_eq!((last(64, 3), last(12, 3), last(4096, 3)), (Some((8, 64)), Some((1, 12)), Some((8, 336))));
        assert_eq!((last(64, 11), last(64, 55)), (Some((8, 24)), None));
        assert_eq!(job([2, 64, 9, 9], 64, 3, 64, Layout::RowMajor).map(|j| j.pack), Some(1));
        // A multiplier, groups of two, one channel, more than 31 bits count.
        for (x, o, groups) in [([2, 8, 9, 9], 16, 8), ([2, 8, 9, 9], 8, 4), ([2, 1, 9, 9], 1, 1), ([1 << 20, 64, 9, 9], 64, 64)] {
            assert!(job(x, o, 3, groups, Layout::RowMajor).is_none(), "{x:?} {o} {groups}");
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
