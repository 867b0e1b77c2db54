//! Convolution by wgmma: launches of `kernels/conv2d_wgmma.cu`, for channels-last images in 16 bits and tf32, and of its like. Each
//! function takes one convolution or two of the same x, and answers `None` where another kernel, or one for each, has to run.

mod axis;
mod halo;
mod halo_weight;
mod images;
mod six;
mod tf32;
mod way;
mod weight;

use super::output;
use crate::{
    Array, DType, Layout, Result,
    cpu::conv::ConvShape,
    cuda::TensorMap,
    ops::{moments::Moments, wgmma},
};
use axis::Axis;

pub(super) use images::{backward_data, forward};
pub(super) use weight::backward_weight;

/// Phases of one launch: `PHASES` of `conv2d_wgmma.cu`.
const PHASES: usize = 5;

/// The `Phase` of `conv2d_wgmma.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Phase {
    axes: [Axis; 2],
    begin: i32,
    of: i32,
}

/// The `Channels` of `conv2d_wgmma.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Channels {
    rows: i32,
    count: i32,
    kw: i32,
}

/// The `Conv` of `conv2d_wgmma.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Sizes {
    phase: [Phase; PHASES],
    channels: [Channels; 2],
    phases: i32,
    tiles: i32,
    written: [i32; 3],
    groups: i32,
    chunk: i32,
    parts: i32,
    adds: i32,
}

/// The map of `images` (n, c, h, w), channels-last, from which a copy takes `pixels` pixels.
fn im2col(images: &Array, [down, across]: [Axis; 2], pixels: usize) -> TensorMap {
    let [n, c, h, w] = [0, 1, 2, 3].map(|i| images.shape()[i]);
    let (lower, upper) = ([across.lower, down.lower], [across.upper(w), down.upper(h)]);
    let channels = 128 / images.dtype().size();
    let map = TensorMap::im2col(&[c, w, h, n], &[c, w * c, h * w * c], &lower, &upper, channels, pixels);
    map.steps(&[1, across.step as usize, down.step as usize, 1])
}

/// The map of the filters (o, c, kh, kw), channels-last, in boxes of one tap: for y (pass 0) `rows` filters, else 64.
fn filters(w: &Array, pass: usize, rows: usize) -> TensorMap {
    let (channels, rows) = if pass == 0 { (128 / w.dtype().size(), rows) } else { (64, 64) };
    let [o, c, kh, kw] = [0, 1, 2, 3].map(|i| w.shape()[i]);
    wgmma::swizzled(TensorMap::tiled(&[c, kh * kw, o], &[c, kh * kw * c], &[channels, 1, rows]), w.dtype())
}

/// Whether shapes are such that the copy engine reads them and 32 bits count them; `like` is one of the arrays.
fn takes(like: &Array, s: &ConvShape) -> Result<bool> {
    let [n, o, oh, ow] = output(s);
    let product = |v: &[usize]| v.iter().fold(1usize, |p, &v| p.saturating_mul(v));
    let small = product(&[n, s.h, s.w]).max(product(&[n, oh, ow])).max(product(&[s.c, s.o, s.kernel[0], s.kernel[1]])) < 1 << 30;
    let empty = [n, s.c, o].contains(&0);
    let near = s.padding.iter().chain(&s.kernel).chain(&s.dilation).chain(&s.stride).all(|&v| v < 1 << 10);
    let six = crate::ops::six::takes(like)?;
    let read_as = if six { DType::BF16 } else { like.dtype() };
    let aligned = wgmma::aligned(read_as, &[s.c / s.groups, o / s.groups]);
    Ok(small && near && !empty && aligned && (six || wgmma::takes(like)?))
}

/// Whether `conv3x3_wgmma.cu` computes it.
fn is_plain_3x3(s: &ConvShape) -> bool {
    (s.kernel, s.stride, s.padding, s.dilation, s.groups) == ([3, 3], [1, 1], [1; 4], [1, 1], 1)
}

/// How sums are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Store {
    Plain,
    /// With a note for batch normalization, in training.
    Noted,
    /// Added to what is there.
    Added,
}

impl Store {
    /// Room for a note on `to` of so many parts.
    fn moments(self, to: &Array, parts: usize) -> Result<Option<Moments>> {
        if self == Store::Noted { Moments::room(to, parts) } else { Ok(None) }
    }
}

impl Sizes {
    /// For `phases` of `tiles` tiles; rows, channels and kw of both sides.
    fn new(phases: &[Phase], tiles: usize, channels: [[usize; 3]; 2], written: [usize; 3], groups: usize) -> Self {
        let mut phase = [bytemuck::Zeroable::zeroed(); PHASES];
        phase[..phases.len()].copy_from_slice(phases);
        Sizes {
            phase,
            channels: channels.map(|c| c.map(|v| v as i32)).map(|[rows, count, kw]| Channels { rows, count, kw }),
            phases: phases.len() as i32,
            tiles: tiles as i32,
            written: written.map(|v| v as i32),
            groups: groups as i32,
            chunk: 0,
            parts: 1,
            adds: 0,
        }
    }
}

fn last(a: &Array) -> Result<Array> {
    a.to_layout(Layout::ChannelsLast)
}

/// All arrays channels-last; one that comes twice is copied once.
fn each_last<'a>(arrays: impl Iterator<Item = &'a Array>) -> Result<Vec<Array>> {
    let mut all: Vec<(&Array, Array)> = Vec::new();
    for a in arrays {
        let known = all.iter().find(|(of, _)| std::ptr::eq(*of, a)).map(|(_, copy)| copy.clone());
        all.push((a, known.map_or_else(|| last(a), Ok)?));
    }
    Ok(all.into_iter().map(|(_, copy)| copy).collect())
}

/// The first one of a launch, and the second, where there is none the first again.
fn ends<T>(sides: &[T]) -> (&T, &T) {
    (&sides[0], &sides[sides.len() - 1])
}
