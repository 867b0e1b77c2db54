//! Convolution of f32 by wgmma in f32's accuracy: launches of `kernels/conv2d_six.cu`.

use super::{
    super::mma::{self, Pass},
    Sizes,
    axis::Axis,
    each_last, ends,
    images::{Images, Side, Term},
    last,
    weight::{add_up, layout},
};
use crate::{
    Array, Result,
    cpu::conv::ConvShape,
    cuda::{Launch, Swizzle, TensorMap},
    ops::{
        moments::Moments,
        six::{self, DEPTH, PLANES, Plan, Work},
        wgmma::{self, Span},
    },
};

/// The `Read` of `conv2d_six.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Read {
    h: [i32; 2],
    w: [i32; 2],
    taps: [i32; 2],
}

impl Read {
    /// Of the images read (n, c, h, w) and the taps of the filters, of both convolutions.
    fn new(both: [(&Array, usize); 2]) -> Self {
        let size = |axis: usize| both.map(|(images, _)| images.shape()[axis] as i32);
        Read { h: size(2), w: size(3), taps: both.map(|(_, taps)| taps as i32) }
    }
}

/// A channels-last array and its planes.
#[derive(Clone)]
struct Split {
    whole: Array,
    planes: Array,
}

impl Split {
    fn new(whole: &Array) -> Result<Self> {
        Ok(Split { whole: whole.clone(), planes: six::split(whole)? })
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
        let (channels, filters) = if pass == 0 { (DEPTH, 64) } else { (64, DEPTH) };
        let (taps, plane) = (kh * kw, self.planes.len() / PLANES);
        let map = TensorMap::tiled(&[c, taps, o, PLANES], &[c, taps * c, plane], &[channels, 1, filters, PLANES]);
        map.swizzle(swizzle(channels))
    }

    /// The map of dy in boxes of a step of pixels by 64 filters.
    fn pixels(&self) -> TensorMap {
        let [n, o, oh, ow] = [0, 1, 2, 3].map(|i| self.whole.shape()[i]);
        let plane = self.planes.len() / PLANES;
        TensorMap::tiled(&[o, n * oh * ow, PLANES], &[o, plane], &[64, DEPTH, PLANES]).swizzle(swizzle(64))
    }
}

/// That of rows of so many numbers of bf16.
fn swizzle(numbers: usize) -> Swizzle {
    if numbers == 64 { Swizzle::Span128 } else { Swizzle::Span64 }
}

/// Clocks by mma.sync of several convolutions, if it takes them all.
fn all(times: impl Iterator<Item = Result<Option<f64>>>) -> Result<Option<f64>> {
    Ok(times.collect::<Result<Vec<_>>>()?.into_iter().sum())
}

impl Images<'_> {
    /// [`Images::compute`] in f32.
    pub(super) fn compute_six(&self) -> Result<bool> {
        if !self.fits() {
            return Ok(false);
        }
        let forward = self.pass == 0;
        // The forward pass reads one x, and splits it once.
        let read = |side: &Side| side.images.len();
        let images: usize = if forward { read(&self.sides[0]) } else { self.sides.iter().map(read).sum() };
        let elements = images + self.sides.iter().map(|side| side.filters.len()).sum::<usize>();
        let (first, second) = ends(self.sides);
        let pass = if forward { Pass::Forward } else { Pass::Data };
        let other = all(self.sides.iter().map(|side| mma::time(pass, side.to, side.s)))?;
        let plan = self.work(|&wgmma::Work { spans, batch, multiplications, split, .. }| {
            six::plan(first.to, six::IMAGE, &Work { spans, batch, multiplications, split, elements, other })
        })?;
        let Some(plan) = plan else { return Ok(false) };
        let images = each_last(self.sides.iter().map(|side| side.images))?;
        let filters = self.sides.iter().map(|side| Split::new(&last(side.filters)?)).collect::<Result<Vec<_>>>()?;
        let mut read = vec![Split::new(&images[0])?];
        if let Some(other) = images.get(1) {
            read.push(if forward { read[0].clone() } else { Split::new(other)? });
        }
        self.launches(&|sums| self.launch_six(&plan, sums, ends(&read), ends(&filters), [first, second]))?;
        Ok(true)
    }

    fn launch_six(
        &self,
        plan: &Plan,
        sums: &[Vec<Term>],
        read: (&Split, &Split),
        filters: (&Split, &Split),
        [first, second]: [&Side; 2],
    ) -> Result<()> {
        let (phases, tiles, sizes) = self.phases(plan.tile, sums);
        let mut launch = Launch::new(first.to, "conv2d_six.cu", "conv2d_six", &plan.defines(&[("PASS", self.pass)]))?
            .tensor(&filters.0.planes, &filters.0.filters(self.pass))
            .tensor(&filters.1.planes, &filters.1.filters(self.pass));
        for phase in phases.iter().chain(std::iter::repeat(&phases[0])).take(super::PHASES) {
            let images = if phase.of == 0 { read.0 } else { read.1 };
            launch = launch.tensor(&images.planes, &images.im2col(phase.axes, DEPTH, plan.tile.columns()));
        }
        let taps = |side: &Side| side.s.kernel[0] * side.s.kernel[1];
        let mut launch = launch
            .array(first.to)
            .array(second.to)
            .optional(first.bias)
            .optional(second.bias)
            .array(&filters.0.whole)
            .array(&filters.1.whole)
            .array(&read.0.whole)
            .array(&read.1.whole)
            .value(sizes)
            .value(Read::new([(&read.0.whole, taps(first)), (&read.1.whole, taps(second))]));
        let mut notes = Vec::new();
        for (i, side) in [first, second].into_iter().enumerate() {
            let moments = self.parts(i, plan.tile, sums).map_or(Ok(None), |parts| self.store.moments(side.to, parts))?;
            launch = Moments::argument(moments.as_ref(), launch);
            notes.extend(moments.map(|m| (m, side.to)));
        }
        launch.run(plan.grid(tiles), plan.threads(), plan.shared())?;
        notes.into_iter().try_for_each(|(moments, to)| moments.note(to))
    }
}

/// dw in f32 of one convolution or two; see [`super::backward_weight`].
pub(super) fn backward_weight(
    x: &Array,
    convs: &[(&Array, &ConvShape)],
    axes: &[[Axis; 2]],
    spans: &[Span],
    multiplications: usize,
) -> Result<Option<Vec<Array>>> {
    let elements = x.len() + convs.iter().map(|(dy, _)| dy.len()).sum::<usize>();
    let other = all(convs.iter().map(|(dy, s)| mma::time(Pass::Weight, dy, s)))?;
    let work = Work { spans, batch: convs[0].1.groups, multiplications, split: true, elements, other };
    let Some(plan) = six::plan(x, six::WEIGHT, &work)? else { return Ok(None) };
    let own = Split::new(&last(x)?)?;
    let dys = each_last(convs.iter().map(|(dy, _)| *dy))?.iter().map(Split::new).collect::<Result<Vec<_>>>()?;
    let (sums, tiles, sizes): (_, _, Sizes) = layout(x, convs, axes, (plan.tile, plan.parts, plan.chunk))?;
    let ((dy0, dy1), (axes0, axes1), (sums0, sums1)) = (ends(&dys), ends(axes), ends(&sums));
    Launch::new(x, "conv2d_six.cu", "conv2d_six", &plan.defines(&[("PASS", 2)]))?
        .tensor(&dy0.planes, &dy0.pixels())
        .tensor(&dy1.planes, &dy1.pixels())
        .tensor(&own.planes, &own.im2col(*axes0, 64, DEPTH))
        .tensor(&own.planes, &own.im2col(*axes1, 64, DEPTH))
        .array(sums0)
        .array(sums1)
        .array(&dy0.whole)
        .array(&dy1.whole)
        .array(&own.whole)
        .value(sizes)
        .value(Read::new([(&own.whole, 0), (&own.whole, 0)]))
        .run(plan.grid(tiles), plan.threads(), plan.shared())?;
    add_up(x, convs, &sums, plan.parts).map(Some)
}
