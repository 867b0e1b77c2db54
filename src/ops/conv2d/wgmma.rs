//! Convolution by wgmma: launches of `kernels/conv2d_wgmma.cu`, for channels-last images in 16 bits and tf32. Each
//! function takes one convolution or two of the same x, and answers `None` where another kernel, or one for each, has to run.

use super::{
    Filters, Gradient,
    halo::{Halo, HaloWeight},
    mma, output, tf32,
};
use crate::{
    Array, DType, Layout, Result,
    cpu::conv::ConvShape,
    cuda::{Launch, Swizzle, TensorMap},
    ops::{
        moments::Moments,
        wgmma::{self, Plan, Span, Tile, Work},
    },
};

/// Phases of one launch: `PHASES` of `conv2d_wgmma.cu`.
const PHASES: usize = 5;

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

/// One of the convolutions of a launch: `to` (n, rows, h, w) from `images` (n, channels, …) and the filters.
#[derive(Clone, Copy)]
struct Side<'a> {
    s: &'a ConvShape,
    to: &'a Array,
    images: &'a Array,
    filters: &'a Array,
    bias: Option<&'a Array>,
}

impl Side<'_> {
    /// Channels written, in each group.
    fn rows(&self) -> usize {
        self.to.shape()[1] / self.s.groups
    }

    /// Channels summed over, in each group.
    fn channels(&self) -> usize {
        self.images.shape()[1] / self.s.groups
    }
}

/// How sums are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Store {
    Plain,
    /// With a note for batch normalization, in training.
    Noted,
    /// Added to what is there.
    Added,
}

impl Store {
    /// Room for a note on `to` of so many parts.
    pub(super) fn moments(self, to: &Array, parts: usize) -> Result<Option<Moments>> {
        if self == Store::Noted { Moments::room(to, parts) } else { Ok(None) }
    }
}

/// The number of a side, and its axes.
type Term = (usize, [Axis; 2]);

/// Forward pass (0) or data gradient (1) of one convolution or two.
struct Images<'a> {
    sides: &'a [Side<'a>],
    /// What adds up in the same tiles.
    sums: &'a [Vec<Term>],
    pass: usize,
    store: Store,
}

impl Images<'_> {
    /// Whether all `to` have been computed, and are not left to another kernel.
    fn compute(&self) -> Result<bool> {
        let halo = match self.sides.iter().find(|side| is_plain_3x3(side.s)) {
            Some(side) => Halo::new(side.to, side.images.shape()[1])?,
            None => None,
        };
        if halo.is_some() && self.sides.len() > 1 {
            return Ok(false);
        }
        let plan = self.plan()?;
        if halo.is_none() && plan.is_none() {
            return Ok(false);
        }
        let images = each_last(self.sides.iter().map(|side| side.images))?;
        // Filters are read as they lie, those that are summed over next to each other or not; tf32 cannot.
        let turns = self.pass == 1 && self.sides[0].to.dtype() == DType::F32;
        let lie = |side: &Side| if turns { tf32::turned(side.filters) } else { last(side.filters) };
        let (filters, pass) = (self.sides.iter().map(lie).collect::<Result<Vec<_>>>()?, if turns { 0 } else { self.pass });
        let own = self.sides.iter().zip(images.iter().zip(&filters));
        let sides: Vec<Side> = own.map(|(side, (images, filters))| Side { images, filters, ..*side }).collect();
        match (halo, plan) {
            (Some(halo), plan) if plan.is_none_or(|p| halo.time <= p.time) => {
                let Side { to, images, filters, bias, .. } = sides[0];
                halo.run(to, images, (filters, pass), bias, self.store)?;
            }
            (_, Some(plan)) => Images { sides: &sides, pass, ..*self }.run(&plan)?,
            _ => {}
        }
        Ok(true)
    }

    fn plan(&self) -> Result<Option<Plan>> {
        let (to, groups) = (self.sides[0].to, self.sides[0].s.groups);
        let size = |a: &Array| [a.shape()[2], a.shape()[3]];
        let fits = |&(of, axes): &Term| axes.iter().zip(size(self.sides[of].images)).all(|(axis, size)| axis.fits(size));
        // A step that is no whole one would go on into the next group's channels.
        let whole = |side: &Side| groups == 1 || side.channels().is_multiple_of(128 / to.dtype().size());
        if !self.sums.iter().flatten().all(fits) || !self.sides.iter().all(whole) {
            return Ok(None);
        }
        let mut multiplications = 0usize;
        let span = |terms: &Vec<Term>| {
            let (n, m) = (to.shape()[0] * plane(&terms[0].1), self.sides[terms[0].0].rows());
            let steps = |&(of, axes): &Term| {
                let channels = self.sides[of].channels();
                multiplications = multiplications.saturating_add((n * taps(&axes)).saturating_mul(m * channels * groups));
                wgmma::steps(to.dtype(), channels) * taps(&axes)
            };
            Span { m, n, steps: terms.iter().map(steps).sum() }
        };
        let spans: Vec<Span> = self.sums.iter().map(span).collect();
        wgmma::plan(to, Tile::IMAGE, &Work { spans: &spans, batch: groups, multiplications, split: false, products: 1.0 })
    }

    /// Launches with as many phases as one takes.
    fn run(&self, plan: &Plan) -> Result<()> {
        let mut sums = self.sums;
        while !sums.is_empty() {
            let phases = sums.iter().scan(0, |all, terms| {
                *all += terms.len();
                Some(*all)
            });
            let (now, later) = sums.split_at(phases.take_while(|&all| all <= PHASES).count().max(1));
            self.launch(plan, now)?;
            sums = later;
        }
        Ok(())
    }

    fn launch(&self, plan: &Plan, sums: &[Vec<Term>]) -> Result<()> {
        let (first, second) = ends(self.sides);
        let (shape, dtype) = (first.to.shape(), first.to.dtype());
        let (mut tiles, mut phases) = (0, Vec::new());
        for terms in sums {
            phases.extend(terms.iter().map(|&(of, axes)| Phase { axes, begin: tiles as i32, of: of as i32 }));
            let across = (shape[0] * plane(&terms[0].1)).div_ceil(plan.tile.columns());
            tiles += self.sides[terms[0].0].rows().div_ceil(plan.tile.rows()) * across * first.s.groups;
        }
        let channels = |side: &Side| [side.rows(), side.channels(), side.filters.shape()[3]];
        let sizes = Sizes::new(&phases, tiles, [first, second].map(channels), [shape[0], shape[2], shape[3]], first.s.groups);
        let filters = |side: &Side| filters(side.filters, self.pass, plan.tile.rows());
        let mut launch = Launch::new(first.to, "conv2d_wgmma.cu", "conv2d_wgmma", &plan.defines(dtype, &[("PASS", self.pass)]))?
            .tensor(first.filters, &filters(first))
            .tensor(second.filters, &filters(second));
        for phase in phases.iter().chain(std::iter::repeat(&phases[0])).take(PHASES) {
            let images = self.sides[phase.of as usize].images;
            let pixels = im2col(images, phase.axes, plan.tile.columns());
            launch = launch.tensor(images, &wgmma::swizzled(pixels, dtype));
        }
        let launch = launch.array(first.to).array(second.to).optional(first.bias).optional(second.bias);
        let mut launch = launch.value(Sizes { adds: (self.store == Store::Added).into(), ..sizes });
        let mut all = Vec::new();
        for (i, side) in [first, second].into_iter().enumerate() {
            let across = |&(_, axes): &Term| (shape[0] * plane(&axes)).div_ceil(plan.tile.columns()) * plan.tile.across;
            let parts = sums.iter().flatten().find(|(of, _)| *of == i).map(across);
            // `NOTES` of the kernel.
            let notes = dtype.size() == 2 || plan.resident == 1 || plan.tile.cols < 128;
            let moments = parts.filter(|_| notes).map_or(Ok(None), |parts| self.store.moments(side.to, parts))?;
            launch = Moments::argument(moments.as_ref(), launch);
            all.extend(moments.map(|m| (m, side.to)));
        }
        launch.run(plan.grid(tiles), plan.threads(), plan.shared())?;
        all.into_iter().try_for_each(|(moments, to)| moments.note(to))
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

pub(super) fn forward(x: &Array, convs: &[Filters]) -> Result<Option<Vec<Array>>> {
    let mut all = Vec::new();
    for (_, _, s) in convs {
        if s.groups != convs[0].2.groups || !takes(x, s)? {
            return Ok(None);
        }
        all.push(Array::uninit(&output(s), x.dtype(), Layout::ChannelsLast, &x.context())?);
    }
    let side = |(&(w, b, s), y)| Side { s, to: y, images: x, filters: w, bias: b };
    let sides: Vec<Side> = convs.iter().zip(&all).map(side).collect();
    let axes = |(i, side): (usize, &Side)| vec![(i, [Axis::forward(side.s, 0), Axis::forward(side.s, 1)])];
    let mut sums: Vec<Vec<Term>> = sides.iter().enumerate().map(axes).collect();
    heavy_first(&mut sums);
    // Where y has to be turned, its elements go elsewhere.
    let store = if x.layout() == Layout::ChannelsLast { Store::Noted } else { Store::Plain };
    let done = Images { sides: &sides, sums: &sums, pass: 0, store }.compute()?;
    done.then(|| all.iter().map(|y| y.to_layout(x.layout())).collect()).transpose()
}

/// Long tiles come first, so that the short ones fill what is left of the device; those without a tap write zeros.
fn heavy_first(sums: &mut [Vec<Term>]) {
    sums.sort_by_key(|terms| std::cmp::Reverse(terms.iter().map(|(_, axes)| taps(axes)).sum::<usize>()));
}

/// dx of one convolution, or the sum of those of two with the same strides, added to what has `arrived` in its place.
pub(super) fn backward_data(convs: &[Gradient], arrived: Option<&Array>) -> Result<Option<Array>> {
    let (dy, _, s) = convs[0];
    let turns = dy.dtype() == DType::F32;
    // Filters are turned as a whole, not by group.
    if (turns && s.groups > 1) || convs.iter().any(|(_, _, other)| (other.stride, other.groups) != (s.stride, s.groups)) {
        return Ok(None);
    }
    for (_, _, s) in convs {
        if !takes(dy, s)? || arrived.is_some_and(|a| a.dtype() != dy.dtype() || a.shape() != [s.n, s.c, s.h, s.w]) {
            return Ok(None);
        }
    }
    let dx = match arrived {
        Some(sum) => last(sum)?,
        None => Array::uninit(&[s.n, s.c, s.h, s.w], dy.dtype(), Layout::ChannelsLast, &dy.context())?,
    };
    let side = |&(dy, w, s)| Side { s, to: &dx, images: dy, filters: w, bias: None };
    let sides: Vec<Side> = convs.iter().map(side).collect();
    let [down, across] = [s.stride[0].min(s.h), s.stride[1].min(s.w)];
    let phase = |i: usize| {
        let axes = |side: &Side| {
            let axes = [Axis::backward(side.s, 0, i / across), Axis::backward(side.s, 1, i % across)];
            // Turned filters have their taps backwards.
            if turns { [axes[0].turned(side.s.kernel[0]), axes[1].turned(side.s.kernel[1])] } else { axes }
        };
        let mut terms: Vec<Term> = sides.iter().map(axes).enumerate().collect();
        // One without a tap is left where the other has some.
        terms.sort_by_key(|(_, axes)| taps(axes) == 0);
        terms.truncate(terms.iter().filter(|(_, axes)| taps(axes) > 0).count().max(1));
        terms
    };
    let mut sums: Vec<Vec<Term>> = (0..down * across).map(phase).collect();
    heavy_first(&mut sums);
    let store = if arrived.is_some() { Store::Added } else { Store::Plain };
    let done = Images { sides: &sides, sums: &sums, pass: 1, store }.compute()?;
    done.then(|| dx.to_layout(dy.layout())).transpose()
}

/// dw of one convolution or two, from each one's dy and sizes.
pub(super) fn backward_weight(x: &Array, convs: &[(&Array, &ConvShape)]) -> Result<Option<Vec<Array>>> {
    let (mut axes, mut halo) = (Vec::new(), None);
    for &(dy, s) in convs {
        let own = [Axis::forward(s, 0), Axis::forward(s, 1)];
        if s.groups != convs[0].1.groups || !takes(dy, s)? || !own[0].fits(s.h) || !own[1].fits(s.w) {
            return Ok(None);
        }
        if is_plain_3x3(s) {
            halo = HaloWeight::new(dy, s.c)?;
        }
        axes.push(own);
    }
    if halo.is_some() && convs.len() > 1 {
        return Ok(None);
    }
    let (dtype, groups, mut multiplications) = (x.dtype(), convs[0].1.groups, 0usize);
    let span = |(&(_, s), axes): (&(&Array, &ConvShape), &[Axis; 2])| {
        let pixels = s.n * plane(axes);
        multiplications = multiplications.saturating_add(pixels.saturating_mul(s.w_len()));
        Span { m: s.o / groups, n: taps(axes) * (s.c / groups).next_multiple_of(64), steps: wgmma::steps(dtype, pixels) }
    };
    let spans: Vec<Span> = convs.iter().zip(&axes).map(span).collect();
    let work = Work { spans: &spans, batch: groups, multiplications, split: true, products: wgmma::products(dtype) };
    let plan = wgmma::plan(x, Tile::WEIGHT, &work)?;
    if !worth_splitting(convs, [halo.as_ref().map(|h| h.time), plan.map(|p| p.time)])? {
        return Ok(None);
    }
    let (sums, parts) = match (halo, plan) {
        (Some(halo), plan) if plan.is_none_or(|p| halo.time <= p.time) => {
            let (sums, parts) = halo.run(&last(convs[0].0)?, &last(x)?)?;
            (vec![sums], parts)
        }
        (_, Some(plan)) => (weight_parts(&last(x)?, convs, &axes, &plan)?, plan.parts),
        _ => return Ok(None),
    };
    let add_up = |((_, s), sums): (&(&Array, &ConvShape), &Array)| {
        let dw = Array::uninit(&[s.o, s.c / groups, s.kernel[0], s.kernel[1]], dtype, x.layout(), &x.context())?;
        // The parts are channels-last already: a tap of as many channels as there are numbers.
        let (taps, channels) = (s.kernel[0] * s.kernel[1], s.c / groups);
        let [taps, channels] = if x.layout() == Layout::RowMajor { [taps, channels] } else { [1, taps * channels] };
        Launch::new(&dw, "sum_filter_parts.cu", "sum_filter_parts", &[("scalar_t", dtype.into())])?
            .array(&dw)
            .array(sums)
            .value(dw.len() as i64)
            .value(parts as i32)
            .value(taps as i32)
            .value(channels as i32)
            .run_1d(dw.len())?;
        Ok(dw)
    };
    convs.iter().zip(&sums).map(add_up).collect::<Result<_>>().map(Some)
}

/// Whether the gradients of the filters, split into bf16 where they are f32, take less than by tf32 on mma.sync.
fn worth_splitting(convs: &[(&Array, &ConvShape)], times: [Option<f64>; 2]) -> Result<bool> {
    #[cfg(test)]
    if wgmma::forced().is_some() {
        return Ok(true);
    }
    let least = times.into_iter().flatten().fold(f64::INFINITY, f64::min);
    let mut other = 0.0;
    for (dy, s) in convs.iter().filter(|(dy, _)| dy.dtype() == DType::F32) {
        other += mma::weight_time(dy, s)?.unwrap_or(f64::INFINITY);
    }
    Ok(other == 0.0 || least < other)
}

/// The parts of each dw, (part, o, taps, c / groups), from channels-last x.
fn weight_parts(x: &Array, convs: &[(&Array, &ConvShape)], axes: &[[Axis; 2]], plan: &Plan) -> Result<Vec<Array>> {
    let (dtype, context, groups) = (x.dtype(), x.context(), convs[0].1.groups);
    let depth = 128 / dtype.size();
    let dys = each_last(convs.iter().map(|(dy, _)| *dy))?;
    let (mut tiles, mut phases, mut sums) = (0, Vec::new(), Vec::new());
    for (of, (&(_, s), &axes)) in convs.iter().zip(axes).enumerate() {
        phases.push(Phase { axes, begin: tiles as i32, of: of as i32 });
        let columns = taps(&axes) * (s.c / groups).next_multiple_of(64);
        tiles += (s.o / groups).div_ceil(plan.tile.rows()) * columns.div_ceil(plan.tile.columns()) * plan.parts * groups;
        sums.push(Array::uninit(&[plan.parts, s.w_len()], DType::F32, Layout::RowMajor, &context)?);
    }
    let (first, second) = ends(convs);
    let channels = |s: &ConvShape| [s.o / groups, s.c / groups, s.kernel[1]];
    let [n, _, oh, ow] = output(first.1);
    let sizes = Sizes::new(&phases, tiles, [channels(first.1), channels(second.1)], [n, oh, ow], groups);
    let map = |dy: &Array| {
        let [n, o, oh, ow] = [0, 1, 2, 3].map(|i| dy.shape()[i]);
        TensorMap::tiled(&[o, n * oh * ow], &[o], &[depth, depth]).swizzle(Swizzle::Span128)
    };
    let ((dy0, dy1), (axes0, axes1), (sums0, sums1)) = (ends(&dys), ends(axes), ends(&sums));
    Launch::new(x, "conv2d_wgmma.cu", "conv2d_wgmma", &plan.defines(dtype, &[("PASS", 2)]))?
        .tensor(dy0, &map(dy0))
        .tensor(dy1, &map(dy1))
        .tensor(x, &im2col(x, *axes0, depth).swizzle(Swizzle::Span128))
        .tensor(x, &im2col(x, *axes1, depth).swizzle(Swizzle::Span128))
        .array(sums0)
        .array(sums1)
        .value(Sizes { chunk: plan.chunk as i32, parts: plan.parts as i32, ..sizes })
        .run(plan.grid(tiles), plan.threads(), plan.shared())?;
    Ok(sums)
}
