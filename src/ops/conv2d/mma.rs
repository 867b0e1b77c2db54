//! Convolution on tensor cores: launches of `kernels/conv2d_mma.cu`. Operands are channels-last there; row-major ones are
//! copied first, which takes less than reading them element by element would. Each function answers `None` where the general
//! kernel has to run.

use super::output;
use crate::{
    Array, Layout, Result,
    cpu::conv::ConvShape,
    cuda::{Launch, tune},
    ops::{
        mma::{self, Div, LIMIT, Plan, Work},
        moments::Moments,
    },
};

/// The `Conv` of `conv2d_mma.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Sizes {
    extents: [i32; 7],
    window: [i32; 9],
    chunk: i32,
    row_major: i32,
    /// By c / groups, o / groups, kw, oh, ow.
    by: [Div; 5],
}

/// The three passes, as `PASS` counts them.
#[derive(Clone, Copy)]
pub(super) enum Pass {
    Forward,
    Data,
    Weight,
}

/// Everything that the launch of one pass needs.
struct Job<'a> {
    s: &'a ConvShape,
    pass: Pass,
    work: Work,
    plan: Plan,
}

/// Phases of an axis: pixels with the same remainder by the stride meet the same taps.
fn phases(s: &ConvShape) -> usize {
    s.stride[0].min(s.h) * s.stride[1].min(s.w)
}

/// The most taps of an axis that one pixel meets: every (stride / gcd)-th.
fn taps_met(kernel: usize, stride: usize, dilation: usize) -> usize {
    let period = (1..=kernel).find(|i| i.saturating_mul(dilation).is_multiple_of(stride));
    kernel.div_ceil(period.unwrap_or(kernel))
}

impl<'a> Job<'a> {
    /// `None` when this pass is not one for tensor cores; `to` is the result.
    fn new(s: &'a ConvShape, pass: Pass, to: &Array) -> Result<Option<Self>> {
        let Some(work) = Self::work(s, pass, to) else { return Ok(None) };
        Ok(mma::plan(to, work)?.map(|plan| Job { s, pass, work, plan }))
    }

    /// What is to be multiplied, where 32 bits count it; `to` is of the result's dtype, and empty where that is.
    fn work(s: &ConvShape, pass: Pass, to: &Array) -> Option<Work> {
        let [n, o, oh, ow] = output(s);
        let ([kh, kw], groups) = (s.kernel, s.groups);
        let product = |v: &[usize]| v.iter().fold(1usize, |p, &v| p.saturating_mul(v));
        // Offsets count in 32 bits, those of pixels and taps outside of the image included.
        let span = |axis: usize| s.kernel[axis].saturating_mul(s.dilation[axis]).saturating_add(s.stride[axis]);
        let height = product(&[n, s.h.max(oh)]).saturating_add(s.padding[0]).saturating_add(span(0));
        let width = s.w.max(ow).saturating_add(s.padding[1]).saturating_add(span(1));
        let fits = product(&[height, width, s.c.max(o)]) < LIMIT && product(&[s.c.max(o), kh, kw]) < LIMIT && s.w_len() < LIMIT;
        if !fits || height.max(width) >= LIMIT / 4 || groups > 65535 || to.is_empty() {
            return None;
        }
        let (cg, og, size) = (s.c / groups, o / groups, to.dtype().size());
        Some(match pass {
            Pass::Forward => Work { m: n * oh * ow, n: og, k: cg * kh * kw, batch: groups, width: mma::width(size, [s.c, cg]) },
            Pass::Data => {
                let met = |axis: usize| taps_met(s.kernel[axis], s.stride[axis], s.dilation[axis]);
                let pixels = n * s.h.div_ceil(s.stride[0]) * s.w.div_ceil(s.stride[1]);
                let batch = groups.saturating_mul(phases(s));
                Work { m: pixels, n: cg, k: og * met(0) * met(1), batch, width: mma::width(size, [o, og, cg]) }
            }
            Pass::Weight => {
                Work { m: og, n: cg * kh * kw, k: n * oh * ow, batch: groups, width: mma::width(size, [o, og, s.c, cg]) }
            }
        })
    }

    fn sizes(&self, to: Layout, plan: &Plan) -> Sizes {
        let (s, [n, o, oh, ow]) = (self.s, output(self.s));
        let int = |v: usize| v as i32;
        let [kh, kw] = s.kernel;
        let [pt, pl] = [s.padding[0], s.padding[1]];
        Sizes {
            extents: [n, s.c, s.h, s.w, o, oh, ow].map(int),
            window: [kh, kw, s.stride[0], s.stride[1], pt, pl, s.dilation[0], s.dilation[1], s.groups].map(int),
            chunk: int(plan.chunk),
            row_major: i32::from(to == Layout::RowMajor),
            by: [s.c / s.groups, o / s.groups, kw, oh, ow].map(Div::new),
        }
    }

    /// Where a plan writes: a bias that is added with the parts is added by channel, which has to be the last axis then.
    fn place(&self, to: &Array, bias: Option<&Array>, plan: &Plan) -> Result<Array> {
        let layout = if plan.parts > 1 && bias.is_some() { Layout::ChannelsLast } else { to.layout() };
        Array::uninit(to.shape(), to.dtype(), layout, &to.context())
    }

    /// The plan that the tuner has for this pass.
    fn tuned(&self, to: &Array, left: &Array, right: &Array, bias: Option<&Array>) -> Result<Plan> {
        if tune::is_off()? {
            return Ok(self.plan);
        }
        let (s, row_major) = (self.s, to.layout() == Layout::RowMajor);
        let ([kh, kw], [sh, sw], [dh, dw], [pt, pl, pb, pr]) = (s.kernel, s.stride, s.dilation, s.padding);
        let image = [self.pass as usize, s.n, s.c, s.h, s.w, s.o, s.groups, row_major.into(), bias.is_some().into()];
        let window = [kh, kw, sh, sw, dh, dw, pt, pl, pb, pr];
        let mut shape = [0; 19];
        shape[..image.len()].copy_from_slice(&image);
        shape[image.len()..].copy_from_slice(&window);
        let scratch = |plan: &Plan| {
            let y = self.place(to, bias, plan)?;
            self.launch(&y, left, right, bias, plan)?;
            y.to_layout(to.layout()).map(|_| ())
        };
        mma::tuned(to, self.work, ("conv2d_mma", &shape), self.plan, &scratch)
    }

    /// `to`, or an array like it in another layout, = the pass over `left` (x or dy) and `right` (the filters or x), both
    /// channels-last.
    fn run(&self, to: Array, left: &Array, right: &Array, bias: Option<&Array>) -> Result<Array> {
        let plan = self.tuned(&to, left, right, bias)?;
        let to =
            if plan.parts > 1 && bias.is_some() && to.layout() == Layout::RowMajor { self.place(&to, bias, &plan)? } else { to };
        self.launch(&to, left, right, bias, &plan)?;
        Ok(to)
    }

    fn launch(&self, to: &Array, left: &Array, right: &Array, bias: Option<&Array>, plan: &Plan) -> Result<()> {
        let (phases, pass) = match self.pass {
            Pass::Forward => (1, 0),
            Pass::Data => (phases(self.s), 1),
            Pass::Weight => (1, 2),
        };
        let sums = plan.sums(to)?;
        let blocks = plan.tiles(self.work.m, self.work.n) * phases;
        // Moments are taken where channels are written by 16 bytes.
        let chunks = plan.parts == 1 && self.work.n.is_multiple_of(16 / to.dtype().size());
        let moments = match self.pass {
            Pass::Forward if chunks => Moments::room(to, self.work.m.div_ceil(plan.tile[0]))?,
            _ => None,
        };
        let launch = Launch::new(to, "conv2d_mma.cu", "conv2d_mma", &plan.defines(to.dtype(), [("PASS", pass), ("", 0)]))?
            .array(to)
            .optional(sums.as_ref())
            .array(left)
            .array(right)
            .optional(bias)
            .value(self.sizes(to.layout(), plan));
        let grid = [blocks as u32, plan.parts as u32, self.s.groups as u32];
        Moments::argument(moments.as_ref(), launch).run(grid, [plan.threads(), 1, 1], plan.shared())?;
        moments.map_or(Ok(()), |m| m.note(to))?;
        plan.add_up(to, sums, bias, self.work.n * self.s.groups)
    }
}

fn last(a: &Array) -> Result<Array> {
    a.to_layout(Layout::ChannelsLast)
}

pub(super) fn forward(x: &Array, w: &Array, b: Option<&Array>, s: &ConvShape) -> Result<Option<Array>> {
    let y = Array::uninit(&output(s), x.dtype(), x.layout(), &x.context())?;
    let Some(job) = Job::new(s, Pass::Forward, &y)? else { return Ok(None) };
    job.run(y, &last(x)?, &last(w)?, b)?.to_layout(x.layout()).map(Some)
}

pub(super) fn backward_data(dy: &Array, w: &Array, s: &ConvShape) -> Result<Option<Array>> {
    let dx = Array::uninit(&[s.n, s.c, s.h, s.w], dy.dtype(), dy.layout(), &dy.context())?;
    let Some(job) = Job::new(s, Pass::Data, &dx)? else { return Ok(None) };
    job.run(dx, &last(dy)?, &last(w)?, None).map(Some)
}

pub(super) fn backward_weight(dy: &Array, x: &Array, s: &ConvShape) -> Result<Option<Array>> {
    let shape = [s.o, s.c / s.groups, s.kernel[0], s.kernel[1]];
    let dw = Array::uninit(&shape, dy.dtype(), x.layout(), &dy.context())?;
    let Some(job) = Job::new(s, Pass::Weight, &dw)? else { return Ok(None) };
    job.run(dw, &last(dy)?, &last(x)?, None).map(Some)
}

/// Clocks that the model expects of a pass, if it is taken; `like` is of the result's dtype.
pub(super) fn time(pass: Pass, like: &Array, s: &ConvShape) -> Result<Option<f64>> {
    Job::work(s, pass, like).map_or(Ok(None), |work| mma::time(like, work))
}
