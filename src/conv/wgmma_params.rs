//! What the implicit-GEMM kernels on wgmma share: their parameters, tensor maps, and NHWC copies of operands.

use super::{
    ConvCall, ConvOperands,
    phases::Axis,
    problem::{ConvPass, ConvProblem, volume},
};
use crate::{
    Array, DType, Layout, Result,
    cuda::{Launch, TensorMap},
    gemm::{arch::INDEX_LIMIT, bn_stats::BnPartials, model::wgmma},
};

/// Phases of one launch: `PHASES` of `conv2d_wgmma.cu`.
pub(super) const PHASES: usize = 5;

/// The `Phase` of `conv2d_wgmma.cu`: pixels of the result that meet the same taps.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct ConvPhase {
    pub(super) axes: [Axis; 2],
    /// The first tile.
    pub(super) begin: i32,
    /// The convolution.
    pub(super) of: i32,
}

/// The `Channels` of `conv2d_wgmma.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct ConvChannels {
    pub(super) rows: i32,
    pub(super) count: i32,
    pub(super) kw: i32,
}

/// The `Conv` of `conv2d_wgmma.cu` and `conv2d_six.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct WgmmaConvParams {
    pub(super) phase: [ConvPhase; PHASES],
    pub(super) channels: [ConvChannels; 2],
    pub(super) phases: i32,
    pub(super) tiles: i32,
    /// Images, rows and columns of the result; in wgrad of dy.
    pub(super) n: i32,
    pub(super) h: i32,
    pub(super) w: i32,
    pub(super) groups: i32,
    pub(super) steps_per_split: i32,
    pub(super) splits: i32,
    pub(super) accumulate: i32,
}

impl WgmmaConvParams {
    /// For `phases` of `tiles` tiles; `[rows, channels, kw]` of both convolutions.
    pub(super) fn new(phases: &[ConvPhase], tiles: usize, channels: [[usize; 3]; 2], written: [usize; 3], groups: usize) -> Self {
        let mut phase = [bytemuck::Zeroable::zeroed(); PHASES];
        phase[..phases.len()].copy_from_slice(phases);
        let [n, h, w] = written.map(|v| v as i32);
        WgmmaConvParams {
            phase,
            channels: channels.map(|c| c.map(|v| v as i32)).map(|[rows, count, kw]| ConvChannels { rows, count, kw }),
            phases: phases.len() as i32,
            tiles: tiles as i32,
            n,
            h,
            w,
            groups: groups as i32,
            steps_per_split: 0,
            splits: 1,
            accumulate: 0,
        }
    }
}

/// TMA's im2col map of `images` (n, c, h, w), NHWC: a box has `pixels` pixels.
pub(super) fn im2col(images: &Array, [down, across]: [Axis; 2], pixels: usize) -> TensorMap {
    let [n, c, h, w] = [0, 1, 2, 3].map(|i| images.shape()[i]);
    let (lower, upper) = ([across.lower, down.lower], [across.upper(w), down.upper(h)]);
    let channels = 128 / images.dtype().size();
    let map = TensorMap::im2col(&[c, w, h, n], &[c, w * c, h * w * c], &lower, &upper, channels, pixels);
    map.steps(&[1, across.step as usize, down.step as usize, 1])
}

/// The map of the filters (o, c, kh, kw), NHWC, in boxes of one tap: `rows` filters where they are K-major (`PASS=0`), else 64.
pub(super) fn filters(w: &Array, pass: usize, rows: usize) -> TensorMap {
    let (channels, rows) = if pass == 0 { (128 / w.dtype().size(), rows) } else { (64, 64) };
    let [o, c, kh, kw] = [0, 1, 2, 3].map(|i| w.shape()[i]);
    wgmma::swizzled(TensorMap::tiled(&[c, kh * kw, o], &[c, kh * kw * c], &[channels, 1, rows]), w.dtype())
}

/// Whether TMA reads the operands, as numbers of `read_as`, and 32 bits count them.
pub(super) fn tma_reads(s: &ConvProblem, read_as: DType) -> bool {
    let [n, o, oh, ow] = s.y_shape();
    let most = volume(&[n, s.h, s.w]).max(volume(&[n, oh, ow])).max(volume(&[s.c, s.o, s.kernel[0], s.kernel[1]]));
    let near = s.padding.iter().chain(&s.kernel).chain(&s.dilation).chain(&s.stride).all(|&v| v < 1 << 10);
    let empty = [n, s.c, o].contains(&0);
    most < INDEX_LIMIT && near && !empty && wgmma::aligned(read_as, &[s.c / s.groups, o / s.groups])
}

/// How accumulators are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ConvEpilogue {
    Store,
    /// With the statistics of each channel for a batch normalization, in training.
    BnStats,
    /// Added to what is there.
    AddTo,
}

impl ConvEpilogue {
    /// Of a call whose result is NHWC where the kernel writes it.
    pub(super) fn of(call: &ConvCall) -> Self {
        match call.pass {
            // A result that is copied to NCHW has its elements elsewhere.
            ConvPass::Fprop if call.layout() == Layout::ChannelsLast => ConvEpilogue::BnStats,
            ConvPass::Dgrad if call.grad_so_far.is_some() => ConvEpilogue::AddTo,
            _ => ConvEpilogue::Store,
        }
    }

    /// Memory for the statistics of `to` in so many parts.
    pub(super) fn bn_partials(self, to: &Array, parts: usize) -> Result<Option<BnPartials>> {
        if self == ConvEpilogue::BnStats { BnPartials::uninit(to, parts) } else { Ok(None) }
    }
}

pub(super) fn to_nhwc(a: &Array) -> Result<Array> {
    a.to_layout(Layout::ChannelsLast)
}

/// All arrays in NHWC; one that comes twice is copied once.
pub(super) fn all_to_nhwc<'a>(arrays: impl Iterator<Item = &'a Array>) -> Result<Vec<Array>> {
    let mut all: Vec<(&Array, Array)> = Vec::new();
    for a in arrays {
        let known = all.iter().find(|(of, _)| std::ptr::eq(*of, a)).map(|(_, copy)| copy.clone());
        all.push((a, known.map_or_else(|| to_nhwc(a), Ok)?));
    }
    Ok(all.into_iter().map(|(_, copy)| copy).collect())
}

/// The first convolution of a launch, and the second; the first again where there is only one.
pub(super) fn first_and_last<T>(convs: &[T]) -> (&T, &T) {
    (&convs[0], &convs[convs.len() - 1])
}

/// Where dgrad writes: `grad_so_far` in NHWC, or memory of its own.
pub(super) fn dx_nhwc(call: &ConvCall, conv: &ConvOperands) -> Result<Array> {
    call.grad_so_far.map_or_else(|| call.uninit(conv, Layout::ChannelsLast), to_nhwc)
}

/// Whether dx can be added to `grad_so_far`.
pub(super) fn can_accumulate(call: &ConvCall) -> bool {
    let fits = |sum: &Array| call.convs.iter().all(|c| sum.dtype() == call.dtype() && sum.shape() == c.problem.x_shape());
    call.grad_so_far.is_none_or(fits)
}

/// The filters (o, c, kh, kw) of f32 as those (c, o, kh, kw) of the fprop that computes dgrad: NHWC, the taps from the last to the first.
/// wgmma reads TF32 operands along k only. o and c are multiples of 4.
pub(super) fn flip_transpose_filters(w: &Array) -> Result<Array> {
    let [o, c, kh, kw] = [0, 1, 2, 3].map(|i| w.shape()[i]);
    let flipped = Array::uninit(&[c, o, kh, kw], w.dtype(), Layout::ChannelsLast, &w.context())?;
    let tiles = o.div_ceil(64) * (c * kh * kw).div_ceil(64);
    Launch::new(&flipped, "turn_filters.cu", "turn_filters", &[("scalar_t", DType::F32.into())])?
        .array(&flipped)
        .array(w)
        .value(o as i32)
        .value(c as i32)
        .value((kh * kw) as i32)
        .value(i32::from(w.layout() == Layout::ChannelsLast))
        .run([tiles as u32, 1, 1], [256, 1, 1], 0)?;
    Ok(flipped)
}

/// The filters in NHWC for fprop or dgrad, and the `PASS` to read them by: 16-bit filters are read as they lie, f32 ones flipped.
pub(super) fn filters_for(call: &ConvCall, w: &Array) -> Result<(Array, usize)> {
    match (call.pass, call.dtype()) {
        (ConvPass::Dgrad, DType::F32) => Ok((flip_transpose_filters(w)?, 0)),
        (ConvPass::Dgrad, _) => Ok((to_nhwc(w)?, 1)),
        _ => Ok((to_nhwc(w)?, 0)),
    }
}
