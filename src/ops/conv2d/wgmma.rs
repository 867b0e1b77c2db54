//! Convolution by wgmma: launches of `kernels/conv2d_wgmma.cu`, for channels-last images in 16 bits and tf32. Each
//! function answers `None` where another kernel has to run.

use super::{
    halo::{Halo, HaloWeight},
    mma, output, tf32,
};
use crate::{
    Array, DType, Layout, Result,
    cpu::conv::ConvShape,
    cuda::{Launch, Swizzle, TensorMap},
    ops::wgmma::{self, Plan, Span, Tile, Work},
};

/// Phases of one launch: `PHASES` of `conv2d_wgmma.cu`.
const PHASES: usize = 4;

/// The `Axis` of `conv2d_wgmma.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
struct Axis {
    count: i32,
    start: i32,
    stride: i32,
    lower: i32,
    step: i32,
    taps: i32,
    hop: i32,
    first: i32,
    jump: i32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Phase {
    axes: [Axis; 2],
    begin: i32,
}

/// The `Conv` of `conv2d_wgmma.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Sizes {
    phase: [Phase; PHASES],
    phases: i32,
    tiles: i32,
    written: [i32; 3],
    rows: i32,
    channels: i32,
    groups: i32,
    kw: i32,
    chunk: i32,
    parts: i32,
}

impl Axis {
    /// From x to y.
    fn forward(s: &ConvShape, axis: usize) -> Self {
        let count = [s.out_h(), s.out_w()][axis] as i32;
        let (lower, step) = (-(s.padding[axis] as i32), s.stride[axis] as i32);
        Axis {
            count,
            start: 0,
            stride: 1,
            lower,
            step,
            taps: s.kernel[axis] as i32,
            hop: s.dilation[axis] as i32,
            first: 0,
            jump: 1,
        }
    }

    /// From dy to the pixels start, start + stride, … of dx: `phase_of` of `conv2d_mma.cu`, its taps backwards, so that their
    /// places in dy rise.
    fn backward(s: &ConvShape, axis: usize, start: usize) -> Self {
        let (size, pad, stride) = ([s.h, s.w][axis], s.padding[axis], s.stride[axis]);
        let (kernel, dilation) = (s.kernel[axis], s.dilation[axis]);
        let rest = (start + pad) % stride;
        let first = (0..kernel).find(|t| t * dilation % stride == rest).unwrap_or(kernel);
        let period = (1..=kernel).find(|t| t * dilation % stride == 0).unwrap_or(kernel);
        let taps = (kernel - first).div_ceil(period);
        let last = first + taps.saturating_sub(1) * period;
        let up = if taps > 0 { (last * dilation - rest) / stride } else { 0 };
        Axis {
            count: (size - start).div_ceil(stride) as i32,
            start: start as i32,
            stride: stride as i32,
            lower: ((start + pad - rest) / stride) as i32 - up as i32,
            step: 1,
            taps: taps as i32,
            hop: (period * dilation / stride) as i32,
            first: last as i32,
            jump: -(period as i32),
        }
    }

    /// The same for filters whose `kernel` taps are stored from the last to the first.
    fn turned(self, kernel: usize) -> Self {
        Axis { first: kernel as i32 - 1 - self.first, jump: -self.jump, ..self }
    }

    /// The upper corner of im2col's bounding box in images of `size` pixels: behind the last pixel read at the first tap.
    fn upper(&self, size: usize) -> i32 {
        self.lower + (self.count - 1) * self.step - (size as i32 - 1)
    }

    /// Whether im2col's corners, offsets and steps can say it.
    fn fits(&self, size: usize) -> bool {
        let corner = |c: i32| (-128..128).contains(&c);
        corner(self.lower) && corner(self.upper(size)) && self.step <= 8 && (self.taps - 1) * self.hop < 256
    }
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
pub(super) fn filters(w: &Array, pass: usize, rows: usize) -> TensorMap {
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
    let aligned = wgmma::aligned(like.dtype(), &[s.c / s.groups, o / s.groups]);
    Ok(small && near && !empty && aligned && wgmma::takes(like)?)
}

/// How many pixels an axis pair writes in each image.
fn plane(axes: &[Axis; 2]) -> usize {
    (axes[0].count * axes[1].count) as usize
}

fn taps(axes: &[Axis; 2]) -> usize {
    (axes[0].taps * axes[1].taps) as usize
}

/// Whether `conv3x3_wgmma.cu` computes it.
fn is_plain_3x3(s: &ConvShape) -> bool {
    (s.kernel, s.stride, s.padding, s.dilation, s.groups) == ([3, 3], [1, 1], [1; 4], [1, 1], 1)
}

/// `to` (n, rows, h, w) from `images` (n, channels, …) and the filters, phase by phase.
struct Images<'a> {
    to: &'a Array,
    images: &'a Array,
    filters: &'a Array,
    bias: Option<&'a Array>,
    pass: usize,
    groups: usize,
}

impl Images<'_> {
    /// The arguments by which `Halo` computes the same.
    fn halo(&self, s: &ConvShape) -> Result<Option<Halo>> {
        if is_plain_3x3(s) { Halo::new(self.to, self.images.shape()[1]) } else { Ok(None) }
    }

    /// Whether `to` has been computed, and is not left to another kernel.
    fn compute(&self, s: &ConvShape, phases: &[[Axis; 2]]) -> Result<bool> {
        let (halo, plan) = (self.halo(s)?, self.plan(phases)?);
        if halo.is_none() && plan.is_none() {
            return Ok(false);
        }
        // Filters are read as they lie, those that are summed over next to each other or not; tf32 cannot.
        let (filters, pass) = match (self.pass, self.to.dtype()) {
            (1, DType::F32) => (tf32::turned(self.filters)?, 0),
            (pass, _) => (last(self.filters)?, pass),
        };
        let job = Images { images: &last(self.images)?, filters: &filters, pass, ..*self };
        match (halo, plan) {
            (Some(halo), plan) if plan.is_none_or(|p| halo.time <= p.time) => {
                halo.run(job.to, job.images, (job.filters, job.pass), job.bias)?;
            }
            (_, Some(plan)) => job.run(&plan, phases)?,
            _ => {}
        }
        Ok(true)
    }

    /// Channels written, in each group.
    fn rows(&self) -> usize {
        self.to.shape()[1] / self.groups
    }

    /// Channels summed over, in each group.
    fn channels(&self) -> usize {
        self.images.shape()[1] / self.groups
    }

    fn plan(&self, phases: &[[Axis; 2]]) -> Result<Option<Plan>> {
        let (n, rows, batch) = (self.to.shape()[0], self.rows(), self.groups);
        let (channels, size) = (self.channels(), [self.images.shape()[2], self.images.shape()[3]]);
        // A step that is no whole one would go on into the next group's channels.
        if batch > 1 && !channels.is_multiple_of(128 / self.to.dtype().size()) {
            return Ok(None);
        }
        if !phases.iter().flatten().zip(size.iter().cycle()).all(|(a, &size)| a.fits(size)) {
            return Ok(None);
        }
        let chunks = wgmma::steps(self.to.dtype(), channels);
        let spans: Vec<Span> = phases.iter().map(|a| Span { n: n * plane(a), steps: chunks * taps(a) }).collect();
        let multiplications = phases.iter().map(|a| (n * plane(a) * taps(a)).saturating_mul(rows * channels * batch)).sum();
        wgmma::plan(self.to, Tile::IMAGE, &Work { m: rows, spans: &spans, batch, multiplications, split: false, products: 1.0 })
    }

    fn run(&self, plan: &Plan, phases: &[[Axis; 2]]) -> Result<()> {
        let (shape, dtype) = (self.to.shape(), self.to.dtype());
        let define = plan.defines(dtype, &[("PASS", self.pass)]);
        let filters = filters(self.filters, self.pass, plan.tile.rows());
        for phases in phases.chunks(PHASES) {
            let (mut tiles, mut phase) = (0, [bytemuck::Zeroable::zeroed(); PHASES]);
            for (to, axes) in phase.iter_mut().zip(phases) {
                *to = Phase { axes: *axes, begin: tiles as i32 };
                let across = (shape[0] * plane(axes)).div_ceil(plan.tile.columns());
                tiles += self.rows().div_ceil(plan.tile.rows()) * across * self.groups;
            }
            let sizes = Sizes {
                phase,
                phases: phases.len() as i32,
                tiles: tiles as i32,
                written: [shape[0] as i32, shape[2] as i32, shape[3] as i32],
                rows: self.rows() as i32,
                channels: self.channels() as i32,
                groups: self.groups as i32,
                kw: self.filters.shape()[3] as i32,
                chunk: 0,
                parts: 1,
            };
            let mut launch = Launch::new(self.to, "conv2d_wgmma.cu", "conv2d_wgmma", &define)?.tensor(self.filters, &filters);
            for i in 0..PHASES {
                let axes = phases[i.min(phases.len() - 1)];
                let pixels = im2col(self.images, axes, plan.tile.columns());
                launch = launch.tensor(self.images, &wgmma::swizzled(pixels, dtype));
            }
            let launch = launch.array(self.to).optional(self.bias).value(sizes);
            launch.run(plan.grid(tiles), plan.threads(), plan.shared())?;
        }
        Ok(())
    }
}

fn last(a: &Array) -> Result<Array> {
    a.to_layout(Layout::ChannelsLast)
}

pub(super) fn forward(x: &Array, w: &Array, b: Option<&Array>, s: &ConvShape) -> Result<Option<Array>> {
    if !takes(x, s)? {
        return Ok(None);
    }
    let y = Array::uninit(&output(s), x.dtype(), Layout::ChannelsLast, &x.context())?;
    let axes = [[Axis::forward(s, 0), Axis::forward(s, 1)]];
    let job = Images { to: &y, images: x, filters: w, bias: b, pass: 0, groups: s.groups };
    job.compute(s, &axes)?.then(|| y.to_layout(x.layout())).transpose()
}

pub(super) fn backward_data(dy: &Array, w: &Array, s: &ConvShape) -> Result<Option<Array>> {
    // Filters are turned as a whole, not by group.
    if (dy.dtype() == DType::F32 && s.groups > 1) || !takes(dy, s)? {
        return Ok(None);
    }
    let dx = Array::uninit(&[s.n, s.c, s.h, s.w], dy.dtype(), Layout::ChannelsLast, &dy.context())?;
    let [down, across] = [s.stride[0].min(s.h), s.stride[1].min(s.w)];
    let phase = |i: usize| {
        let axes = [Axis::backward(s, 0, i / across), Axis::backward(s, 1, i % across)];
        // Turned filters have their taps backwards.
        if dy.dtype() == DType::F32 { [axes[0].turned(s.kernel[0]), axes[1].turned(s.kernel[1])] } else { axes }
    };
    let mut phases: Vec<[Axis; 2]> = (0..down * across).map(phase).collect();
    // The heavy ones first; those without a tap write zeros.
    phases.sort_by_key(|axes| std::cmp::Reverse(taps(axes)));
    let job = Images { to: &dx, images: dy, filters: w, bias: None, pass: 1, groups: s.groups };
    job.compute(s, &phases)?.then(|| dx.to_layout(dy.layout())).transpose()
}

pub(super) fn backward_weight(dy: &Array, x: &Array, s: &ConvShape) -> Result<Option<Array>> {
    let [n, o, oh, ow] = output(s);
    let (dtype, axes) = (dy.dtype(), [Axis::forward(s, 0), Axis::forward(s, 1)]);
    if !takes(dy, s)? || !axes[0].fits(s.h) || !axes[1].fits(s.w) {
        return Ok(None);
    }
    let (og, cg) = (o / s.groups, s.c / s.groups);
    let dw = Array::uninit(&[o, cg, s.kernel[0], s.kernel[1]], dtype, Layout::RowMajor, &dy.context())?;
    let (pixels, boxes) = (n * oh * ow, taps(&axes) * cg.div_ceil(64));
    let spans = [Span { n: boxes * 64, steps: wgmma::steps(dtype, pixels) }];
    let multiplications = pixels.saturating_mul(dw.len());
    let work = Work { m: og, spans: &spans, batch: s.groups, multiplications, split: true, products: wgmma::products(dtype) };
    let plan = wgmma::plan(dy, Tile::WEIGHT, &work)?;
    let halo = if is_plain_3x3(s) { HaloWeight::new(dy, s.c)? } else { None };
    if !worth_splitting(dy, s, [halo.map(|h| h.time), plan.map(|p| p.time)])? {
        return Ok(None);
    }
    let (sums, parts) = match (halo, plan) {
        (Some(halo), plan) if plan.is_none_or(|p| halo.time <= p.time) => halo.run(&last(dy)?, &last(x)?)?,
        (_, Some(plan)) => weight_parts(&last(dy)?, &last(x)?, s, axes, &plan)?,
        _ => return Ok(None),
    };
    Launch::new(&dw, "sum_filter_parts.cu", "sum_filter_parts", &[("scalar_t", dtype.into())])?
        .array(&dw)
        .array(&sums)
        .value(dw.len() as i64)
        .value(parts as i32)
        .value(taps(&axes) as i32)
        .value(cg as i32)
        .run_1d(dw.len())?;
    Ok(Some(dw))
}

/// Whether the gradient of the filters, split into bf16 where it is f32, takes less than by tf32 on mma.sync.
fn worth_splitting(dy: &Array, s: &ConvShape, times: [Option<f64>; 2]) -> Result<bool> {
    #[cfg(test)]
    if wgmma::forced().is_some() {
        return Ok(true);
    }
    let least = times.into_iter().flatten().fold(f64::INFINITY, f64::min);
    Ok(dy.dtype() != DType::F32 || mma::weight_time(dy, s)?.is_none_or(|other| least < other))
}

/// The parts of dw, (part, o, taps, c), from channels-last dy and x; how many there are.
fn weight_parts(dy: &Array, x: &Array, s: &ConvShape, axes: [Axis; 2], plan: &Plan) -> Result<(Array, usize)> {
    let ([n, o, oh, ow], dtype) = (output(s), dy.dtype());
    let depth = 128 / dtype.size();
    let (og, cg) = (o / s.groups, s.c / s.groups);
    let boxes = taps(&axes) * cg.div_ceil(64);
    let all = og.div_ceil(plan.tile.rows()) * (boxes * 64).div_ceil(plan.tile.columns()) * plan.parts * s.groups;
    let sums = Array::uninit(&[plan.parts, o * taps(&axes) * cg], DType::F32, Layout::RowMajor, &dy.context())?;
    let int = |v: usize| v as i32;
    let mut phase: [Phase; PHASES] = bytemuck::Zeroable::zeroed();
    phase[0].axes = axes;
    let sizes = Sizes {
        phase,
        phases: 1,
        tiles: int(all),
        written: [n, oh, ow].map(int),
        rows: int(og),
        channels: int(cg),
        groups: int(s.groups),
        kw: int(s.kernel[1]),
        chunk: int(plan.chunk),
        parts: int(plan.parts),
    };
    Launch::new(dy, "conv2d_wgmma.cu", "conv2d_wgmma", &plan.defines(dtype, &[("PASS", 2)]))?
        .tensor(dy, &TensorMap::tiled(&[o, n * oh * ow], &[o], &[depth, depth]).swizzle(Swizzle::Span128))
        .tensor(x, &im2col(x, axes, depth).swizzle(Swizzle::Span128))
        .array(&sums)
        .value(sizes)
        .run(plan.grid(all), plan.threads(), plan.shared())?;
    Ok((sums, plan.parts))
}
