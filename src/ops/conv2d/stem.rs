//! Convolutions of images with few channels, the first layers of nets, on tensor cores: launches of `kernels/conv2d_stem.cu` and
//! `conv2d_stem_weight.cu`, and the rule when they are taken. Such a layer is bound by the memory that its output takes; general
//! kernels load each of its pixels once for every tap, one element at a time.

use super::output;
use crate::{
    Array, DType, Layout, Result,
    cpu::conv::ConvShape,
    cuda::{Define, Launch},
    ops::{
        mma::{Chip, Div, LIMIT},
        moments::Moments,
    },
    precision,
};

/// Channels that images have at most; with more, general kernels load whole words.
const CHANNELS: usize = 4;
/// Multiplications below which a convolution is left to others: it takes as long as its launch.
const SMALL: usize = 1 << 20;
/// What a warp computes: filters, and pixels of y or taps of dw.
pub(super) const FILTERS: usize = 32;
const PIXELS: usize = 64;
pub(super) const TAPS: usize = 64;
/// Bytes of ones behind the image, for the gradient of the bias.
const ONES: usize = 32;
/// Warps of a block.
pub(super) const WARPS: usize = 4;
/// Bytes from and to memory for each clock of a multiprocessor, about.
const BANDWIDTH: f64 = 13.0;

/// The `Stem` of `stem.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Sizes {
    extents: [i32; 7],
    window: [i32; 8],
    x: [i32; 4],
    w: [i32; 4],
    rows: i32,
    bands: i32,
    pub(super) all: i32,
    last: i32,
    inner: i32,
    count: i32,
    split: i32,
    phases: i32,
    at: [i32; 4],
    second: i32,
    bytes: i32,
    words: i32,
    steps: i32,
    groups: i32,
    pub(super) chunk: i32,
    bias: i32,
    ones: i32,
    by: [Div; 7],
}

/// y or dw, from arrays in this layout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pass {
    Forward(Layout),
    /// Of the filters, and perhaps of the bias.
    Weight(Layout, bool),
}

/// The arithmetic, as `EXACT` counts it: whole or rounded operands, split ones, and f32 without tensor cores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Math {
    Tensor,
    Split,
    Plain,
}

/// What is computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job<'a> {
    pub(super) s: &'a ConvShape,
    pub(super) pass: Pass,
    /// Bytes of an element.
    pub(super) size: usize,
    pub(super) math: Math,
    pub(super) chip: Chip,
}

/// How: the model's best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Plan {
    /// Output rows of a band.
    pub(super) rows: usize,
    /// Groups of a block: of 32 filters, or of 64 taps.
    pub(super) groups: usize,
    /// Blocks along grid.x, which take the bands, and along grid.y, which divide filters and taps.
    pub(super) blocks: usize,
    pub(super) splits: usize,
    /// Clocks that the model expects.
    pub(super) time: f64,
}

/// A plan for tests.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Force {
    pub rows: usize,
    pub groups: usize,
    pub blocks: usize,
}

/// How a band's image lies in shared memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Staged {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) split: usize,
    pub(super) phases: usize,
    /// From one row, phase, column, channel to the next, in elements.
    pub(super) at: [usize; 4],
    /// Bytes of the first plane; where the second one begins, if there is one; all bytes.
    pub(super) plane: usize,
    pub(super) second: usize,
    pub(super) bytes: usize,
}

impl Pass {
    fn of_weight(self) -> bool {
        matches!(self, Pass::Weight(..))
    }

    fn layout(self) -> Layout {
        let (Pass::Forward(layout) | Pass::Weight(layout, _)) = self;
        layout
    }
}

impl<'a> Job<'a> {
    /// `None` when this is not one for these kernels; `to` is the result.
    pub(super) fn new(s: &'a ConvShape, pass: Pass, to: &Array) -> Result<Option<Self>> {
        let [n, o, oh, ow] = output(s);
        let product = |v: &[usize]| v.iter().fold(1usize, |p, &v| p.saturating_mul(v));
        let span = |axis: usize| s.kernel[axis].saturating_mul(s.dilation[axis]).saturating_add(s.stride[axis]);
        // Counts and offsets of the kernel have 32 bits, those of pixels and taps outside of the image included.
        let height = s.h.saturating_add(s.padding[0]).saturating_add(span(0)).saturating_add(oh.saturating_mul(s.stride[0]));
        let width = s.w.saturating_add(s.padding[1]).saturating_add(span(1)).saturating_add(ow.saturating_mul(s.stride[1]));
        let fits = product(&[n, s.c.max(1), height, width]) < LIMIT && product(&[n, o, oh, ow]) < LIMIT && s.w_len() < LIMIT;
        if s.groups != 1 || s.c == 0 || s.c > CHANNELS || !fits || to.is_empty() || s.x_len() == 0 || n * oh * ow == 0 {
            return Ok(None);
        }
        let chip = Chip::of(to)?;
        let terms = if pass.of_weight() { n * oh * ow } else { s.w_len() / o };
        // In tests, small images too.
        #[cfg(test)]
        let terms = if pass.of_weight() && super::stem_tests::FORCED.get().is_some() { LIMIT } else { terms };
        let math = match chip.arithmetic(to.dtype(), precision::get(), terms) {
            Some(false) => Math::Tensor,
            Some(true) => Math::Split,
            None if to.dtype() == DType::F32 && !pass.of_weight() => Math::Plain,
            None => return Ok(None),
        };
        Ok(Some(Job { s, pass, size: to.dtype().size(), math, chip }))
    }

    /// Elements in a word.
    fn per(&self) -> usize {
        4 / self.size
    }

    /// Words of a kernel row, and steps of k: of all, or (dw) of a row of pixels.
    pub(super) fn steps(&self) -> (usize, usize) {
        let words = (self.s.kernel[1] * self.s.c).div_ceil(self.per());
        match self.pass {
            Pass::Weight(..) => (words, self.s.out_w().div_ceil(8 * self.per())),
            _ => (words, (self.s.kernel[0] * words).div_ceil(8)),
        }
    }

    /// Taps, with the bias where its gradient is wanted.
    pub(super) fn taps(&self) -> usize {
        let s = self.s;
        s.c * s.kernel[0] * s.kernel[1] + usize::from(self.pass == Pass::Weight(self.pass.layout(), true))
    }

    pub(super) fn staged(&self, rows: usize) -> Staged {
        let s = self.s;
        let reach = [(s.kernel[0] - 1) * s.dilation[0], (s.kernel[1] - 1) * s.dilation[1]];
        let (rows, columns) = ((rows - 1) * s.stride[0] + reach[0] + 1, (s.out_w() - 1) * s.stride[1] + reach[1] + 1);
        // Words begin at even elements of rows and planes; one may reach an element over the end.
        let even = |v: usize| v.next_multiple_of(2);
        let (split, phases, at, odd) = if self.pass.of_weight() {
            let (split, phases) = (s.stride[1], s.stride[1].min(reach[1] + 1));
            let row = even(self.steps().1 * 8 * self.per() + reach[1] / split + 2);
            (split, phases, [row, rows * row, 1, phases * rows * row], reach[1] >= split)
        } else {
            let (split, plane) = (s.dilation[1], even(columns.div_ceil(s.dilation[1]) * s.c + 2));
            (split, split, [split * plane, plane, s.c, 1], s.c % 2 == 1 && (split > 1 || s.stride[1] % 2 == 1))
        };
        let all = if self.pass.of_weight() { s.c * at[3] } else { rows * at[0] };
        let bytes = ((all + 2) * self.size).next_multiple_of(16) + if self.pass.of_weight() { ONES } else { 0 };
        let second = if self.math == Math::Split || (self.size == 2 && odd) { bytes } else { 0 };
        Staged { rows, columns, split, phases, at, plane: bytes, second, bytes: bytes + second }
    }

    /// Bytes of shared memory.
    pub(super) fn shared(&self, rows: usize, groups: usize) -> usize {
        let (_, steps) = self.steps();
        let bytes = self.staged(rows).bytes;
        match self.pass {
            Pass::Weight(..) => bytes.max(groups * FILTERS * (TAPS + 2) * 4),
            _ => {
                let fragments = steps * if self.math == Math::Split { 2048 } else { 1024 };
                // What warps note, and of how many pixels.
                let noted = WARPS * 3 * FILTERS * 4;
                bytes + groups * (fragments + noted) + WARPS * 4 + steps * 32
            }
        }
    }

    /// Groups of filters or taps, and how often the bands are gone through for them when a block has `groups`.
    pub(super) fn splits(&self, groups: usize) -> usize {
        let s = self.s;
        let filters = s.o.div_ceil(FILTERS);
        match self.pass {
            Pass::Weight(..) => filters * self.taps().div_ceil(groups * TAPS),
            _ => filters.div_ceil(groups),
        }
    }

    /// The groups that a block may have.
    pub(super) fn groups(&self) -> Vec<usize> {
        let s = self.s;
        let all = match self.pass {
            Pass::Weight(..) => self.taps().div_ceil(TAPS),
            _ => s.o.div_ceil(FILTERS),
        };
        let most = if self.pass.of_weight() { WARPS } else { all };
        let mut groups: Vec<usize> = (1..=all).map(|n| all.div_ceil(n)).filter(|&g| g <= most).collect();
        groups.dedup();
        // Fewer only where shared memory asks for it: each time, the image is staged again, and dw's dy is read again.
        groups.truncate(if self.pass.of_weight() { 1 } else { 4 });
        groups
    }

    /// Warps that work on the same groups of dw.
    fn shares(groups: usize) -> usize {
        WARPS / groups
    }

    pub(super) fn plan(&self, rows: usize, groups: usize) -> Option<Plan> {
        let s = self.s;
        let [n, o, oh, ow] = output(s);
        let shared = self.shared(rows, groups);
        let limit = match (self.math, self.pass) {
            (Math::Split, Pass::Weight(..)) | (Math::Tensor | Math::Plain, Pass::Forward(Layout::RowMajor)) => 3,
            (Math::Split, Pass::Forward(_)) => 2,
            _ => 4,
        };
        let resident = (self.chip.shared() / (shared + 1024)).min(limit);
        if resident == 0 {
            return None;
        }
        let (splits, bands, steps) = (self.splits(groups), n * oh.div_ceil(rows), self.steps().1);
        let places = self.chip.multiprocessors * resident;
        let blocks = (places / splits).clamp(1, bands);
        // Clocks of a step for a warp's tile, with all warps of a multiprocessor at work.
        let step = match self.math {
            Math::Tensor => 32.0,
            Math::Split => 110.0,
            Math::Plain => 8.0 * 20.0,
        };
        let used = |all: usize, part: usize| all.min(part) as f64;
        let work = if self.pass.of_weight() {
            let moved = (steps * 8 * self.per() * self.size) as f64 * used(o, FILTERS) / BANDWIDTH;
            let shares = Self::shares(groups);
            let turns = (rows * steps).div_ceil(shares) * shares;
            let multiplied = (groups * steps) as f64 * step;
            turns as f64 / steps as f64 * moved.max(multiplied)
        } else {
            let moved = PIXELS as f64 * used(o, FILTERS) * self.size as f64 / BANDWIDTH;
            let turns = (rows * ow).div_ceil(PIXELS * WARPS) * WARPS;
            (turns * groups) as f64 * moved.max(steps as f64 * step)
        };
        let staged = self.staged(rows);
        let turns = bands.div_ceil(blocks) as f64;
        // What blocks share a multiprocessor hide from each other: the waits for memory, and for the image.
        let together = (blocks * splits).div_ceil(self.chip.multiprocessors) as f64;
        let busy = together / (together + 0.75);
        let staging = (staged.rows * s.w * s.c) as f64 * 0.2;
        let time = turns * (together * (work + staging) / busy + 2000.0 / together) + (groups * steps) as f64 * 100.0;
        // Parts of dw are written and read again.
        let parts = if self.pass.of_weight() { blocks as f64 * s.w_len() as f64 * 8.0 } else { 0.0 };
        let time = time + parts / (self.chip.multiprocessors as f64 * BANDWIDTH);
        Some(Plan { rows, groups, blocks, splits, time })
    }

    fn best(&self) -> Option<Plan> {
        #[cfg(test)]
        if let Some(Force { rows, groups, blocks }) = super::stem_tests::FORCED.get() {
            let groups = self.groups().into_iter().find(|&g| g <= groups || self.pass.of_weight())?;
            let plan = (1..=rows.min(self.s.out_h())).rev().find_map(|rows| self.plan(rows, groups))?;
            super::stem_tests::reached();
            return Some(Plan { blocks, ..plan });
        }
        let multiplications =
            [self.s.y_len(), self.s.c, self.s.kernel[0], self.s.kernel[1]].iter().fold(1usize, |p, &v| p.saturating_mul(v));
        if multiplications < SMALL {
            return None;
        }
        let best = self.fastest();
        #[cfg(test)]
        best.iter().for_each(|_| super::stem_tests::reached());
        best
    }

    /// The best by the model, however small the convolution is.
    pub(super) fn fastest(&self) -> Option<Plan> {
        let rows = (1..=self.s.out_h()).take(256);
        let plans = rows.flat_map(|rows| self.groups().into_iter().filter_map(move |groups| self.plan(rows, groups)));
        plans.min_by(|a, b| a.time.total_cmp(&b.time))
    }

    pub(super) fn sizes(&self, x: &Array, w: &[usize], plan: &Plan) -> Sizes {
        let (s, [n, o, oh, ow]) = (self.s, output(self.s));
        let (staged, (words, steps)) = (self.staged(plan.rows), self.steps());
        let int = |v: usize| v as i32;
        let four = |v: &[usize]| [0, 1, 2, 3].map(|i| v.get(i).map_or(0, |&v| v as i32));
        let last = x.layout() == Layout::ChannelsLast;
        let columns = s.w.min(staged.columns.saturating_sub(s.padding[1]));
        let inner = columns * if last { s.c } else { 1 };
        let bands = oh.div_ceil(plan.rows);
        let [[kh, kw], [sh, sw], [dh, dw]] = [s.kernel, s.stride, s.dilation];
        Sizes {
            extents: [n, s.c, s.h, s.w, o, oh, ow].map(int),
            window: [kh, kw, sh, sw, s.padding[0], s.padding[1], dh, dw].map(int),
            x: four(&x.strides()),
            w: four(w),
            rows: int(plan.rows),
            bands: int(bands),
            all: int(n * bands),
            last: last.into(),
            inner: int(inner),
            count: int(staged.rows * columns * s.c),
            split: int(staged.split),
            phases: int(staged.phases),
            at: staged.at.map(int),
            second: int(staged.second),
            bytes: int(staged.bytes),
            words: int(words),
            steps: int(steps),
            groups: int(plan.groups),
            chunk: int((n * bands).div_ceil(plan.blocks)),
            bias: i32::from(self.taps() > s.w_len() / o),
            ones: int(staged.plane - ONES),
            by: [inner.max(1), s.c, staged.split, ow, words, bands, steps].map(Div::new),
        }
    }

    pub(super) fn defines(&self, dtype: DType) -> [(&'static str, Define); 3] {
        let int = |v: usize| Define::Int(v as i64);
        [
            ("scalar_t", dtype.into()),
            ("EXACT", int(self.math as usize)),
            ("PASS", int((self.pass.layout() == Layout::RowMajor).into())),
        ]
    }
}

pub(super) fn forward(x: &Array, w: &Array, b: Option<&Array>, s: &ConvShape) -> Result<Option<Array>> {
    let y = Array::uninit(&output(s), x.dtype(), x.layout(), &x.context())?;
    let Some(job) = Job::new(s, Pass::Forward(x.layout()), &y)? else { return Ok(None) };
    let Some(plan) = job.best() else { return Ok(None) };
    let moments = Moments::room(&y, plan.blocks)?;
    let launch = Launch::new(&y, "conv2d_stem.cu", "conv2d_stem", &job.defines(y.dtype()))?
        .array(&y)
        .array(x)
        .array(w)
        .optional(b)
        .value(job.sizes(x, &w.strides(), &plan));
    let grid = [plan.blocks as u32, plan.splits as u32, 1];
    let shared = job.shared(plan.rows, plan.groups) as u32;
    Moments::argument(moments.as_ref(), launch).run(grid, [WARPS as u32 * 32, 1, 1], shared)?;
    moments.map_or(Ok(()), |m| m.note(&y))?;
    Ok(Some(y))
}

/// dw in x's layout, and where it is asked for db.
pub(super) fn backward_weight(dy: &Array, x: &Array, s: &ConvShape, bias: bool) -> Result<Option<(Array, Option<Array>)>> {
    const FILE: &str = "conv2d_stem_weight.cu";
    let on = |shape: &[usize], dtype| Array::uninit(shape, dtype, Layout::RowMajor, &dy.context());
    let dw = Array::uninit(&[s.o, s.c / s.groups, s.kernel[0], s.kernel[1]], dy.dtype(), x.layout(), &dy.context())?;
    let Some(job) = Job::new(s, Pass::Weight(dy.layout(), bias), &dw)? else { return Ok(None) };
    let Some(plan) = job.best() else { return Ok(None) };
    let db = bias.then(|| on(&[s.o], dy.dtype())).transpose()?;
    let (sizes, all) = (job.sizes(x, &dw.strides(), &plan), s.o * job.taps());
    let parts = (sizes.all as usize).div_ceil(sizes.chunk as usize);
    let sums = on(&[parts, all], DType::F32)?;
    let define = job.defines(dw.dtype());
    let threads = (plan.groups * Job::shares(plan.groups) * 32) as u32;
    Launch::new(&dw, FILE, "conv2d_stem_weight", &define)?.array(&sums).array(dy).array(x).value(sizes).run(
        [parts as u32, plan.splits as u32, 1],
        [threads, 1, 1],
        job.shared(plan.rows, plan.groups) as u32,
    )?;
    Launch::new(&dw, FILE, "stem_sum", &define)?
        .array(&dw)
        .optional(db.as_ref())
        .array(&sums)
        .value(all as i32)
        .value((s.w_len() / s.o) as i32)
        .value((s.kernel[0] * s.kernel[1]) as i32)
        .value(dw.strides()[3] as i32)
        .value(dw.strides()[1] as i32)
        .value(parts as i32)
        .run([all.div_ceil(32) as u32, 1, 1], [256, 1, 1], 0)?;
    Ok(Some((dw, db)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(n: usize, c: usize, side: usize, o: usize, [kernel, stride, padding]: [usize; 3]) -> ConvShape {
        let (kernel, stride, padding) = ([kernel; 2], [stride; 2], [padding; 4]);
        ConvShape { n, c, h: side, w: side, o, kernel, stride, padding, dilation: [1; 2], groups: 1 }
    }

    /// The first layers of ResNet, LeNet, AlexNet (and NiN), VGG: gray images, and those of ImageNet.
    fn layers() -> [ConvShape; 6] {
        [
            shape(256, 1, 96, 64, [7, 2, 3]),
            shape(256, 1, 28, 6, [5, 1, 2]),
            shape(128, 1, 224, 96, [11, 4, 0]),
            shape(128, 1, 224, 64, [3, 1, 1]),
            shape(64, 3, 224, 64, [7, 2, 3]),
            shape(64, 3, 224, 96, [11, 4, 1]),
        ]
    }

    fn jobs(s: &ConvShape, capability: usize) -> Vec<Job<'_>> {
        let chip = Chip { capability, multiprocessors: 132 };
        let maths = [(2, Math::Tensor), (4, Math::Tensor), (4, Math::Split), (4, Math::Plain)];
        let passes = [Pass::Forward, |layout| Pass::Weight(layout, true)].into_iter();
        let passes = passes.flat_map(|pass| [Layout::ChannelsLast, Layout::RowMajor].map(pass)).collect::<Vec<_>>();
        let all = maths.into_iter().flat_map(|(size, math)| {
            let job = move |&pass: &Pass| Job { s, pass, size, math, chip };
            passes.iter().map(job).collect::<Vec<_>>()
        });
        all.filter(|j| !j.pass.of_weight() || j.math != Math::Plain).collect()
    }

    /// Plans fit, and fill the larger chips; rows that do not fit have none.
    #[test]
    fn plans_fit() {
        for capability in [75, 80, 86, 90, 100, 120] {
            for s in &layers() {
                for job in jobs(s, capability) {
                    let Some(plan) = job.best() else {
                        assert!(matches!(capability, 75 | 86 | 120), "{job:?}");
                        continue;
                    };
                    assert!(job.shared(plan.rows, plan.groups) + 1024 <= job.chip.shared(), "{job:?} {plan:?}");
                    let blocks = plan.blocks * plan.splits;
                    assert!(
                        blocks <= 132 * 4 && (capability < 90 || job.math != Math::Tensor || blocks >= 100),
                        "{job:?} {plan:?}"
                    );
                }
            }
        }
        let wide = shape(1, 4, 20000, 64, [11, 1, 5]);
        assert!(jobs(&wide, 90).iter().all(|job| job.best().is_none()));
    }

    /// What is moved, with halo rows and images that are loaded again counted although the L2 cache holds them, is little more
    /// than the arrays once.
    #[test]
    fn traffic_is_near_its_floor() {
        for s in &layers() {
            for job in jobs(s, 90).into_iter().filter(|job| job.math == Math::Tensor) {
                let plan = job.best().unwrap();
                let ([n, _, oh, _], size) = (output(s), job.size);
                let bands = n * oh.div_ceil(plan.rows);
                let rows = job.staged(plan.rows).rows.min(s.h);
                let staged = bands * rows * s.w * s.c * plan.splits * size;
                let floor = (s.x_len() + s.y_len() + s.w_len()) * size;
                let filters = s.o.div_ceil(FILTERS);
                let (large, small) = match job.pass {
                    Pass::Weight(..) => (s.y_len() * plan.splits / filters * size, plan.blocks * s.w_len() * 8),
                    _ => (s.y_len() * size, plan.blocks * s.w_len() * size),
                };
                let excess = (large + staged + small) as f64 / floor as f64 - 1.0;
                println!("{:?} {size} {:?}: {plan:?}, floor {floor}, {:.1} % over", job.pass, s.kernel, 100.0 * excess);
                // Taps of more than four warps are gone through twice, dy with them; a small x is loaded for all.
                let most = if job.pass.of_weight() && job.taps() > WARPS * TAPS { 4.0 } else { 0.6 };
                assert!(excess < most, "{job:?} {plan:?}: {excess}");
            }
        }
    }
}
