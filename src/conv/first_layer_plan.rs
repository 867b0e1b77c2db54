//! First layers: the tiles, shared memory and cost model of `kernels/conv2d_stem.cu` and `conv2d_stem_weight.cu`.
//!
//! A CTA takes a band of output rows of an image, whose input it stages in shared memory once for all taps.

use super::problem::{ConvProblem, volume};
use crate::{
    Array, DType, Layout,
    cuda::Define,
    gemm::{
        arch::{
            Arch, FIRST_LAYER_BAND_CLOCKS, FIRST_LAYER_DRAM_BYTES_PER_CLOCK, FIRST_LAYER_MIN_MACS, INDEX_LIMIT, MmaMath,
            SMEM_RESERVED_PER_CTA,
        },
        fast_divmod::FastDivmod,
    },
    precision::Precision,
};

/// Channels that images have at most; with more, the other kernels load whole words.
const CHANNELS: usize = 4;
/// What a warp computes: filters, and pixels of y or taps of dw.
pub(crate) const FILTERS: usize = 32;
const PIXELS: usize = 64;
pub(crate) const TAPS: usize = 64;
/// Bytes of ones behind the image, for the gradient of the bias.
const ONES: usize = 32;
/// Warps of a block.
pub(crate) const WARPS: usize = 4;
/// The `Stem` of `stem.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct FirstLayerParams {
    extents: [i32; 7],
    window: [i32; 8],
    x: [i32; 4],
    w: [i32; 4],
    rows: i32,
    bands: i32,
    pub(crate) all: i32,
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
    pub(crate) chunk: i32,
    bias: i32,
    ones: i32,
    by: [FastDivmod; 7],
}

/// y or dw, from arrays in this layout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FirstLayerPass {
    Fprop(Layout),
    /// Of the filters, and perhaps of the bias.
    Wgrad(Layout, bool),
}

/// The arithmetic, as `EXACT` counts it: whole or rounded operands, split ones, and f32 without tensor cores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FirstLayerMath {
    Native,
    Tf32x3,
    Simt,
}

/// What is computed, on what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstLayerWork<'a> {
    pub(crate) s: &'a ConvProblem,
    pub(crate) pass: FirstLayerPass,
    /// Bytes of an element.
    pub(crate) size: usize,
    pub(crate) math: FirstLayerMath,
    pub(crate) arch: Arch,
}

/// How: the model's best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BandPlan {
    /// Output rows of a band.
    pub(crate) rows: usize,
    /// Groups of a block: of 32 filters, or of 64 taps.
    pub(crate) groups: usize,
    /// Blocks along grid.x, which take the bands, and along grid.y, which divide filters and taps.
    pub(crate) blocks: usize,
    pub(crate) splits: usize,
    /// Clocks that the model expects.
    pub(crate) time: f64,
}

/// How a band's image lies in shared memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StagedBand {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) split: usize,
    pub(crate) phases: usize,
    /// From one row, phase, column, channel to the next, in elements.
    pub(crate) at: [usize; 4],
    /// Bytes of the first plane; where the second one begins, if there is one; all bytes.
    pub(crate) plane: usize,
    pub(crate) second: usize,
    pub(crate) bytes: usize,
}

impl FirstLayerPass {
    fn is_wgrad(self) -> bool {
        matches!(self, FirstLayerPass::Wgrad(..))
    }

    fn layout(self) -> Layout {
        let (FirstLayerPass::Fprop(layout) | FirstLayerPass::Wgrad(layout, _)) = self;
        layout
    }
}

impl<'a> FirstLayerWork<'a> {
    /// `None` for other convolutions, for counts of more than 31 bits, and for arithmetic that the kernels do not have.
    pub(crate) fn new(s: &'a ConvProblem, pass: FirstLayerPass, dtype: DType, precision: Precision, arch: Arch) -> Option<Self> {
        let [n, o, oh, ow] = s.y_shape();
        let span = |axis: usize| s.kernel[axis].saturating_mul(s.dilation[axis]).saturating_add(s.stride[axis]);
        // Counts and offsets of the kernel have 32 bits, those of pixels and taps outside of the image included.
        let height = s.h.saturating_add(s.padding[0]).saturating_add(span(0)).saturating_add(oh.saturating_mul(s.stride[0]));
        let width = s.w.saturating_add(s.padding[1]).saturating_add(span(1)).saturating_add(ow.saturating_mul(s.stride[1]));
        let fits = volume(&[n, s.c.max(1), height, width]) < INDEX_LIMIT
            && volume(&[n, o, oh, ow]) < INDEX_LIMIT
            && s.w_len() < INDEX_LIMIT;
        let empty = s.x_len() == 0 || s.y_len() == 0 || s.w_len() == 0;
        if s.groups != 1 || s.c == 0 || s.c > CHANNELS || !fits || empty {
            return None;
        }
        let terms = if pass.is_wgrad() { n * oh * ow } else { s.w_len() / o };
        // In tests, small images too.
        #[cfg(test)]
        let terms = if pass.is_wgrad() && crate::testing::forced_for("first_layer").is_some() { INDEX_LIMIT } else { terms };
        let math = match arch.mma_math(dtype, precision, terms) {
            Some(MmaMath::Native) => FirstLayerMath::Native,
            Some(MmaMath::Tf32x3) => FirstLayerMath::Tf32x3,
            None if dtype == DType::F32 && !pass.is_wgrad() => FirstLayerMath::Simt,
            None => return None,
        };
        Some(FirstLayerWork { s, pass, size: dtype.size(), math, arch })
    }

    /// Whether it is enough to do for a launch of its own.
    pub(crate) fn is_large(&self) -> bool {
        let s = self.s;
        volume(&[s.y_len(), s.c, s.kernel[0], s.kernel[1]]) >= FIRST_LAYER_MIN_MACS
    }

    /// Elements in a word.
    fn per(&self) -> usize {
        4 / self.size
    }

    /// Words of a kernel row, and steps of k: of all, or (dw) of a row of pixels.
    pub(crate) fn steps(&self) -> (usize, usize) {
        let words = (self.s.kernel[1] * self.s.c).div_ceil(self.per());
        match self.pass {
            FirstLayerPass::Wgrad(..) => (words, self.s.out_w().div_ceil(8 * self.per())),
            _ => (words, (self.s.kernel[0] * words).div_ceil(8)),
        }
    }

    /// Taps, with the bias where its gradient is wanted.
    pub(crate) fn taps(&self) -> usize {
        let s = self.s;
        s.c * s.kernel[0] * s.kernel[1] + usize::from(self.pass == FirstLayerPass::Wgrad(self.pass.layout(), true))
    }

    pub(crate) fn staged(&self, rows: usize) -> StagedBand {
        let s = self.s;
        let reach = [(s.kernel[0] - 1) * s.dilation[0], (s.kernel[1] - 1) * s.dilation[1]];
        let (rows, columns) = ((rows - 1) * s.stride[0] + reach[0] + 1, (s.out_w() - 1) * s.stride[1] + reach[1] + 1);
        // Words begin at even elements of rows and planes; one may reach an element over the end.
        let even = |v: usize| v.next_multiple_of(2);
        let (split, phases, at, odd) = if self.pass.is_wgrad() {
            let (split, phases) = (s.stride[1], s.stride[1].min(reach[1] + 1));
            let row = even(self.steps().1 * 8 * self.per() + reach[1] / split + 2);
            (split, phases, [row, rows * row, 1, phases * rows * row], reach[1] >= split)
        } else {
            let (split, plane) = (s.dilation[1], even(columns.div_ceil(s.dilation[1]) * s.c + 2));
            (split, split, [split * plane, plane, s.c, 1], s.c % 2 == 1 && (split > 1 || s.stride[1] % 2 == 1))
        };
        let all = if self.pass.is_wgrad() { s.c * at[3] } else { rows * at[0] };
        let bytes = ((all + 2) * self.size).next_multiple_of(16) + if self.pass.is_wgrad() { ONES } else { 0 };
        let second = if self.math == FirstLayerMath::Tf32x3 || (self.size == 2 && odd) { bytes } else { 0 };
        StagedBand { rows, columns, split, phases, at, plane: bytes, second, bytes: bytes + second }
    }

    /// Bytes of shared memory.
    pub(crate) fn shared(&self, rows: usize, groups: usize) -> usize {
        let (_, steps) = self.steps();
        let bytes = self.staged(rows).bytes;
        match self.pass {
            FirstLayerPass::Wgrad(..) => bytes.max(groups * FILTERS * (TAPS + 2) * 4),
            _ => {
                let fragments = steps * if self.math == FirstLayerMath::Tf32x3 { 2048 } else { 1024 };
                // What warps note, and of how many pixels.
                let noted = WARPS * 3 * FILTERS * 4;
                bytes + groups * (fragments + noted) + WARPS * 4 + steps * 32
            }
        }
    }

    /// Groups of filters or taps, and how often the bands are gone through for them when a block has `groups`.
    pub(crate) fn splits(&self, groups: usize) -> usize {
        let s = self.s;
        let filters = s.o.div_ceil(FILTERS);
        match self.pass {
            FirstLayerPass::Wgrad(..) => filters * self.taps().div_ceil(groups * TAPS),
            _ => filters.div_ceil(groups),
        }
    }

    /// The groups that a block may have.
    pub(crate) fn groups(&self) -> Vec<usize> {
        let s = self.s;
        let all = match self.pass {
            FirstLayerPass::Wgrad(..) => self.taps().div_ceil(TAPS),
            _ => s.o.div_ceil(FILTERS),
        };
        let most = if self.pass.is_wgrad() { WARPS } else { all };
        let mut groups: Vec<usize> = (1..=all).map(|n| all.div_ceil(n)).filter(|&g| g <= most).collect();
        groups.dedup();
        // Fewer only where shared memory asks for it: each time, the image is staged again, and dw's dy is read again.
        groups.truncate(if self.pass.is_wgrad() { 1 } else { 4 });
        groups
    }

    /// Warps that work on the same groups of dw.
    pub(crate) fn shares(groups: usize) -> usize {
        WARPS / groups
    }

    pub(crate) fn plan(&self, rows: usize, groups: usize) -> Option<BandPlan> {
        let s = self.s;
        let [n, o, oh, ow] = s.y_shape();
        let shared = self.shared(rows, groups);
        let limit = match (self.math, self.pass) {
            (FirstLayerMath::Tf32x3, FirstLayerPass::Wgrad(..))
            | (FirstLayerMath::Native | FirstLayerMath::Simt, FirstLayerPass::Fprop(Layout::RowMajor)) => 3,
            (FirstLayerMath::Tf32x3, FirstLayerPass::Fprop(_)) => 2,
            _ => 4,
        };
        let resident = (self.arch.smem_per_sm() / (shared + SMEM_RESERVED_PER_CTA)).min(limit);
        if resident == 0 {
            return None;
        }
        let (splits, bands, steps) = (self.splits(groups), n * oh.div_ceil(rows), self.steps().1);
        let places = self.arch.num_sms * resident;
        let blocks = (places / splits).clamp(1, bands);
        // Clocks of a step for a warp's tile, with all warps of a multiprocessor at work.
        let step = match self.math {
            FirstLayerMath::Native => 32.0,
            FirstLayerMath::Tf32x3 => 110.0,
            FirstLayerMath::Simt => 8.0 * 20.0,
        };
        let used = |all: usize, part: usize| all.min(part) as f64;
        let work = if self.pass.is_wgrad() {
            let moved = (steps * 8 * self.per() * self.size) as f64 * used(o, FILTERS) / FIRST_LAYER_DRAM_BYTES_PER_CLOCK;
            let shares = Self::shares(groups);
            let turns = (rows * steps).div_ceil(shares) * shares;
            let multiplied = (groups * steps) as f64 * step;
            turns as f64 / steps as f64 * moved.max(multiplied)
        } else {
            let moved = PIXELS as f64 * used(o, FILTERS) * self.size as f64 / FIRST_LAYER_DRAM_BYTES_PER_CLOCK;
            let turns = (rows * ow).div_ceil(PIXELS * WARPS) * WARPS;
            (turns * groups) as f64 * moved.max(steps as f64 * step)
        };
        let staged = self.staged(rows);
        let turns = bands.div_ceil(blocks) as f64;
        // What blocks share a multiprocessor hide from each other: the waits for memory, and for the image.
        let together = (blocks * splits).div_ceil(self.arch.num_sms) as f64;
        let busy = together / (together + 0.75);
        let staging = (staged.rows * s.w * s.c) as f64 * 0.2;
        let time =
            turns * (together * (work + staging) / busy + FIRST_LAYER_BAND_CLOCKS / together) + (groups * steps) as f64 * 100.0;
        // Parts of dw are written and read again.
        let parts = if self.pass.is_wgrad() { blocks as f64 * s.w_len() as f64 * 8.0 } else { 0.0 };
        let time = time + parts / (self.arch.num_sms as f64 * FIRST_LAYER_DRAM_BYTES_PER_CLOCK);
        Some(BandPlan { rows, groups, blocks, splits, time })
    }

    /// A test's plan: at most so many rows and groups, and as many CTAs.
    #[cfg(test)]
    pub(crate) fn forced(&self, rows: usize, groups: usize, ctas: usize) -> Option<BandPlan> {
        let groups = self.groups().into_iter().find(|&g| g <= groups || self.pass.is_wgrad())?;
        let plan = (1..=rows.min(self.s.out_h())).rev().find_map(|rows| self.plan(rows, groups))?;
        Some(BandPlan { blocks: ctas, ..plan })
    }

    /// All plans of at most 256 rows.
    pub(crate) fn plans(&self) -> impl Iterator<Item = BandPlan> + '_ {
        let rows = (1..=self.s.out_h()).take(256);
        rows.flat_map(move |rows| self.groups().into_iter().filter_map(move |groups| self.plan(rows, groups)))
    }

    /// The cheapest by the model, however small the convolution is.
    pub(crate) fn fastest(&self) -> Option<BandPlan> {
        self.plans().min_by(|a, b| a.time.total_cmp(&b.time))
    }

    pub(crate) fn sizes(&self, x: &Array, w: &[usize], plan: &BandPlan) -> FirstLayerParams {
        let (s, [n, o, oh, ow]) = (self.s, self.s.y_shape());
        let (staged, (words, steps)) = (self.staged(plan.rows), self.steps());
        let int = |v: usize| v as i32;
        let four = |v: &[usize]| [0, 1, 2, 3].map(|i| v.get(i).map_or(0, |&v| v as i32));
        let last = x.layout() == Layout::ChannelsLast;
        let columns = s.w.min(staged.columns.saturating_sub(s.padding[1]));
        let inner = columns * if last { s.c } else { 1 };
        let bands = oh.div_ceil(plan.rows);
        let [[kh, kw], [sh, sw], [dh, dw]] = [s.kernel, s.stride, s.dilation];
        FirstLayerParams {
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
            by: [inner.max(1), s.c, staged.split, ow, words, bands, steps].map(FastDivmod::new),
        }
    }

    pub(crate) fn defines(&self, dtype: DType) -> [(&'static str, Define); 3] {
        let int = |v: usize| Define::Int(v as i64);
        [
            ("scalar_t", dtype.into()),
            ("EXACT", int(self.math as usize)),
            ("PASS", int((self.pass.layout() == Layout::RowMajor).into())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(n: usize, c: usize, side: usize, o: usize, [kernel, stride, padding]: [usize; 3]) -> ConvProblem {
        let (kernel, stride, padding) = ([kernel; 2], [stride; 2], [padding; 4]);
        ConvProblem { n, c, h: side, w: side, o, kernel, stride, padding, dilation: [1; 2], groups: 1 }
    }

    /// The first layers of ResNet, LeNet, AlexNet (and NiN), VGG: gray images, and those of ImageNet.
    fn layers() -> [ConvProblem; 6] {
        [
            shape(256, 1, 96, 64, [7, 2, 3]),
            shape(256, 1, 28, 6, [5, 1, 2]),
            shape(128, 1, 224, 96, [11, 4, 0]),
            shape(128, 1, 224, 64, [3, 1, 1]),
            shape(64, 3, 224, 64, [7, 2, 3]),
            shape(64, 3, 224, 96, [11, 4, 1]),
        ]
    }

    fn best(job: &FirstLayerWork) -> Option<BandPlan> {
        job.fastest().filter(|_| job.is_large())
    }

    fn jobs(s: &ConvProblem, capability: usize) -> Vec<FirstLayerWork<'_>> {
        let arch = Arch { capability, num_sms: 132 };
        let maths =
            [(2, FirstLayerMath::Native), (4, FirstLayerMath::Native), (4, FirstLayerMath::Tf32x3), (4, FirstLayerMath::Simt)];
        let passes = [FirstLayerPass::Fprop, |layout| FirstLayerPass::Wgrad(layout, true)].into_iter();
        let passes = passes.flat_map(|pass| [Layout::ChannelsLast, Layout::RowMajor].map(pass)).collect::<Vec<_>>();
        let all = maths.into_iter().flat_map(|(size, math)| {
            let job = move |&pass: &FirstLayerPass| FirstLayerWork { s, pass, size, math, arch };
            passes.iter().map(job).collect::<Vec<_>>()
        });
        all.filter(|j| !j.pass.is_wgrad() || j.math != FirstLayerMath::Simt).collect()
    }

    /// Plans fit, and fill the larger chips; rows that do not fit have none.
    #[test]
    fn plans_fit() {
        for capability in [75, 80, 86, 90, 100, 120] {
            for s in &layers() {
                for job in jobs(s, capability) {
                    let Some(plan) = best(&job) else {
                        assert!(matches!(capability, 75 | 86 | 120), "{job:?}");
                        continue;
                    };
                    assert!(job.shared(plan.rows, plan.groups) + 1024 <= job.arch.smem_per_sm(), "{job:?} {plan:?}");
                    let blocks = plan.blocks * plan.splits;
                    assert!(
                        blocks <= 132 * 4 && (capability < 90 || job.math != FirstLayerMath::Native || blocks >= 100),
                        "{job:?} {plan:?}"
                    );
                }
            }
        }
        let wide = shape(1, 4, 20000, 64, [11, 1, 5]);
        assert!(jobs(&wide, 90).iter().all(|job| best(job).is_none()));
    }

    /// What is moved, with halo rows and images that are loaded again counted although the L2 cache holds them, is little more
    /// than the arrays once.
    #[test]
    fn traffic_is_near_its_floor() {
        for s in &layers() {
            for job in jobs(s, 90).into_iter().filter(|job| job.math == FirstLayerMath::Native) {
                let plan = best(&job).unwrap();
                let ([n, _, oh, _], size) = (s.y_shape(), job.size);
                let bands = n * oh.div_ceil(plan.rows);
                let rows = job.staged(plan.rows).rows.min(s.h);
                let staged = bands * rows * s.w * s.c * plan.splits * size;
                let floor = (s.x_len() + s.y_len() + s.w_len()) * size;
                let filters = s.o.div_ceil(FILTERS);
                let (large, small) = match job.pass {
                    FirstLayerPass::Wgrad(..) => (s.y_len() * plan.splits / filters * size, plan.blocks * s.w_len() * 8),
                    _ => (s.y_len() * size, plan.blocks * s.w_len() * size),
                };
                let excess = (large + staged + small) as f64 / floor as f64 - 1.0;
                println!("{:?} {size} {:?}: {plan:?}, floor {floor}, {:.1} % over", job.pass, s.kernel, 100.0 * excess);
                // Taps of more than four warps are gone through twice, dy with them; a small x is loaded for all.
                let most = if job.pass.is_wgrad() && job.taps() > WARPS * TAPS { 4.0 } else { 0.6 };
                assert!(excess < most, "{job:?} {plan:?}: {excess}");
            }
        }
    }
}
