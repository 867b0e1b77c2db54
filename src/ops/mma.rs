//! Which products run on tensor cores (`kernels/mma.cuh`), and how: the one place that decides.
//!
//! | | sm_75 | sm_80 and later |
//! | --- | --- | --- |
//! | f16 | mma, f32 sums | mma, f32 sums |
//! | bf16 | general kernel | mma, f32 sums |
//! | f32, [`Precision::F32`] | general kernel | mma of split operands where that is faster, never less accurate |
//! | f32, [`Precision::Tf32`] | general kernel | mma of rounded operands |
//! | f64 | general kernel | general kernel |
//!
//! Small products, and those whose extents 32 bits do not hold, are the general kernel's everywhere. Hopper has faster
//! instructions for large ones, see [`super::wgmma`] and [`super::six`].

use crate::{
    Array, DType, Error, Result,
    cuda::{
        Define,
        tune::{self, Choice, Problem},
    },
    ops::product::{computed_in, split, sum_parts},
    precision::{self, Precision},
};

/// Tiles by falling size: `TILE_M`, `TILE_N`, the blocks that registers allow on a multiprocessor for 16- and 32-bit types
/// (`RESIDENT`), and what part of a multiprocessor's tensor throughput such blocks reach when it is full of them.
const TILES: [(usize, usize, [usize; 2], f64); 3] = [(128, 128, [2, 1], 1.0), (128, 64, [3, 2], 0.85), (64, 64, [4, 3], 0.65)];
/// Bytes of an operand's row in shared memory, which a step of the loop takes.
const ROW: usize = 128;
/// The largest count and offset that the kernels' 32-bit numbers take, with room for what lies outside of an image.
pub(crate) const LIMIT: usize = 1 << 30;

/// Plans that the tuner tries at most.
const CANDIDATES: usize = 12;

/// What is to be multiplied: (m, k) by (k, n), `batch` times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Products side by side: batches, groups, phases.
    pub batch: usize,
    /// Bytes of the widest loads that the operands' addresses allow: 16, 8, 4, or 0 for single elements.
    pub width: usize,
}

/// The part of a device that matters here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chip {
    /// Compute capability, 80 for 8.0.
    pub capability: usize,
    pub multiprocessors: usize,
}

impl Chip {
    /// That of the array's device.
    pub(crate) fn of(y: &Array) -> Result<Self> {
        let device = y.cuda("mma")?.owner();
        let (major, minor) = device.capability;
        Ok(Chip { capability: (major * 10 + minor) as usize, multiprocessors: device.multiprocessors as usize })
    }

    /// Shared memory of a multiprocessor in bytes, without what each block reserves.
    pub(crate) fn shared(&self) -> usize {
        let kib = match self.capability {
            75 => 64,
            80 | 87 => 163,
            90..=119 => 227,
            _ => 99,
        };
        kib << 10
    }

    /// Three tf32 products and the splitting are faster than the general f32 kernel where tf32 runs at several times the rate of
    /// f32: on the data-center chips. On the others it runs at the same rate.
    fn splits(&self) -> bool {
        matches!(self.capability, 80 | 90..=119)
    }

    /// Whether tensor cores compute sums of so many terms from split operands (`true`) or from whole or rounded ones; `None` where
    /// they do not.
    pub(crate) fn arithmetic(&self, dtype: DType, precision: Precision, terms: usize) -> Option<bool> {
        match (dtype, precision) {
            (DType::F16, _) if self.capability >= 75 => Some(false),
            (DType::BF16, _) if self.capability >= 80 => Some(false),
            (DType::F32, Precision::Tf32) if self.capability >= 80 => Some(false),
            // What is lost of an operand (2⁻²³ of it at most), and what the tensor cores cut off of eight terms (2⁻²³ of the
            // largest), together stay below what a plain sum loses by rounding from about a hundred terms on.
            (DType::F32, Precision::F32) if self.splits() && terms >= 128 => Some(true),
            _ => None,
        }
    }
}

/// How a product is computed on tensor cores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    pub tile: [usize; 2],
    pub stages: usize,
    pub width: usize,
    /// Split operands: f32 in f32's accuracy.
    pub exact: bool,
    /// Into so many parts of `chunk` steps k is cut.
    pub parts: usize,
    pub chunk: usize,
    size: usize,
}

/// The plan for `work` on the device and in the dtype of `y`, or `None` where the general kernel is to be taken.
pub(crate) fn plan(y: &Array, work: Work) -> Result<Option<Plan>> {
    #[cfg(test)]
    if let Some(force) = super::mma_tests::FORCED.get() {
        return Ok(force.plan(y.dtype(), work));
    }
    Ok(choose(Chip::of(y)?, y.dtype(), precision::get(), work))
}

/// The plan to use after the tuner had its say: `model` is that of [`plan`], `shape` all that the time depends on besides `work`,
/// and `run` computes the same with a plan, into memory of its own.
pub(crate) fn tuned(
    y: &Array,
    work: Work,
    (family, shape): (&'static str, &[usize]),
    model: Plan,
    run: &dyn Fn(&Plan) -> Result<()>,
) -> Result<Plan> {
    #[cfg(test)]
    if super::mma_tests::FORCED.get().is_some() {
        return Ok(model);
    }
    if tune::is_off()? {
        return Ok(model);
    }
    let (chip, dtype, precision) = (Chip::of(y)?, y.dtype(), precision::get());
    let all = || {
        let mut all = Vec::new();
        plans(chip, dtype, precision, work, &mut |time, plan| all.push((time, plan)));
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        // What the model finds hopeless is not worth compiling.
        let most = all.first().map_or(0.0, |(least, _)| least * 2.5);
        all.into_iter().filter(|(time, _)| *time <= most).map(|(_, plan)| plan).take(CANDIDATES).collect::<Vec<_>>()
    };
    let Work { m, n, k, batch, width } = work;
    let of = |c: &Choice| Plan::of(*c, &model, k);
    let mut key = [0; 32];
    let own = [dtype as usize, usize::from(model.exact), m, n, k, batch, width];
    let len = own.len() + shape.len();
    let Some(slots) = key.get_mut(..len) else {
        return Err(Error::invalid(family, "a key of more than 32 numbers"));
    };
    slots[..own.len()].copy_from_slice(&own);
    slots[own.len()..].copy_from_slice(shape);
    let problem = Problem { device: y.cuda("mma")?.owner(), family, shape: &key[..len] };
    let candidates = || all().iter().map(Plan::choice).collect();
    tune::choose(&problem, model.choice(), &candidates, &|c| run(&of(c))).map(|c| of(&c))
}

/// A plan for tests; a tile of 0 is the general kernel.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Force {
    pub tile: [usize; 2],
    pub stages: usize,
    pub parts: usize,
}

#[cfg(test)]
impl Force {
    fn plan(self, dtype: DType, Work { k, width, .. }: Work) -> Option<Plan> {
        let Force { tile, stages, parts } = self;
        let (exact, depth) = (dtype == DType::F32 && precision::get() == Precision::F32, ROW / dtype.size());
        let chunk = k.div_ceil(depth).div_ceil(parts.max(1)).max(1) * depth;
        let parts = k.div_ceil(chunk).max(1);
        // What the kernels are compiled for: narrow loads with small tiles.
        let tile = if width < 16 && tile != [0, 0] { [64, 64] } else { tile };
        (tile != [0, 0]).then_some(Plan { tile, stages, width, exact, parts, chunk, size: dtype.size() })
    }
}

/// The fastest plan by the model, if there is any.
fn choose(chip: Chip, dtype: DType, precision: Precision, work: Work) -> Option<Plan> {
    fastest(chip, dtype, precision, work).map(|(_, plan)| plan)
}

/// Clocks that the model expects of the fastest plan, if there is any.
pub(crate) fn time(y: &Array, work: Work) -> Result<Option<f64>> {
    Ok(fastest(Chip::of(y)?, y.dtype(), precision::get(), work).map(|(time, _)| time))
}

/// The same on an H100 for tests, in TF32.
#[cfg(test)]
pub(crate) fn time_in_tf32(work: Work) -> Option<f64> {
    fastest(Chip { capability: 90, multiprocessors: 132 }, DType::F32, Precision::Tf32, work).map(|(time, _)| time)
}

/// In f32.
#[cfg(test)]
pub(crate) fn time_in_f32(work: Work) -> Option<f64> {
    fastest(Chip { capability: 90, multiprocessors: 132 }, DType::F32, Precision::F32, work).map(|(time, _)| time)
}

fn fastest(chip: Chip, dtype: DType, precision: Precision, work: Work) -> Option<(f64, Plan)> {
    let mut best: Option<(f64, Plan)> = None;
    plans(chip, dtype, precision, work, &mut |time, plan| {
        if best.is_none_or(|(least, _)| time < least) {
            best = Some((time, plan));
        }
    });
    best
}

/// Gives `f` every plan, with the model's estimate of its time in clocks; none where the general kernel is to be taken.
fn plans(chip: Chip, dtype: DType, precision: Precision, work: Work, f: &mut dyn FnMut(f64, Plan)) {
    let Work { m, n, k, batch, width } = work;
    // Below, an instruction's tile would be mostly empty, or a vector makes the product memory-bound.
    if m < 8 || n < 8 || k < 16 || m >= LIMIT || n >= LIMIT || k >= LIMIT || batch == 0 || batch > 65535 {
        return;
    }
    let Some(exact) = chip.arithmetic(dtype, precision, k) else { return };
    let size = dtype.size();
    let depth = ROW / size;
    let steps = k.div_ceil(depth);
    let general = split(k, m.div_ceil(64).saturating_mul(n.div_ceil(64)).saturating_mul(batch)).0;
    for &(tile_m, tile_n, resident, efficiency) in &TILES {
        let small = (tile_m, tile_n) == (64, 64);
        // Narrow loads cost more than a large tile would save; sm_75 keeps a step in registers on its way.
        if (width < 16 && !small) || (chip.capability < 80 && tile_n > 64) {
            continue;
        }
        let room = |blocks: usize| chip.shared() / blocks - if chip.capability < 80 { 0 } else { 1 << 10 };
        let stages = |blocks: usize| if chip.capability < 80 { 2 } else { (room(blocks) / ((tile_m + tile_n) * ROW)).min(3) };
        let limit = if width < 16 { 2 } else { resident[usize::from(size == 4)] };
        let fits = |&blocks: &usize| stages(blocks) >= 2 && shared([tile_m, tile_n], stages(blocks)) <= room(blocks);
        let Some(resident) = (1..=limit).rev().find(fits) else { continue };
        let tiles = m.div_ceil(tile_m).saturating_mul(n.div_ceil(tile_n)).saturating_mul(batch);
        for parts in [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128] {
            // Parts of fewer steps would not fill the pipeline.
            if parts > 1 && steps / parts < 4 {
                break;
            }
            // Sums of one sign round by the root of their length, here by eight terms at once: half the general kernel's parts do.
            if exact && parts * 2 < general {
                continue;
            }
            let chunk = steps.div_ceil(parts);
            let parts = steps.div_ceil(chunk);
            let blocks = tiles.saturating_mul(parts) as f64;
            let sms = chip.multiprocessors as f64;
            // In clocks: a multiprocessor multiplies a tile's step in tile_m · tile_n / 16 of them if enough warps are there.
            let together = (blocks / sms).ceil().clamp(1.0, resident as f64);
            let warps = together * if size == 4 && tile_n == 128 { 8.0 } else { 4.0 };
            let filled = efficiency * (warps / (warps + 2.5)) / (8.0 / 10.5);
            let step = (tile_m * tile_n) as f64 / 16.0 / filled.min(1.0) * if exact { 3.5 } else { 1.0 };
            let waves = (blocks / (sms * together)).ceil();
            let products = waves * together * (chunk as f64 * step + 2500.0);
            // The sums are written and read once more, by another kernel.
            let reduction = (m * n) as f64 * batch as f64 * (parts as f64 * 8.0 + 4.0) / (sms * 12.0) + 4000.0;
            let time = products + if parts > 1 { reduction } else { 0.0 };
            let (tile, chunk) = ([tile_m, tile_n], chunk * depth);
            f(time, Plan { tile, stages: stages(resident), width, exact, parts, chunk, size });
        }
    }
}

/// Bytes of shared memory that a block takes: the stages, later the tile of sums.
fn shared(tile: [usize; 2], stages: usize) -> usize {
    (stages * (tile[0] + tile[1]) * ROW).max(tile[0] * (tile[1] + 8) * 4)
}

impl Plan {
    /// The plan in the tuner's numbers.
    fn choice(&self) -> Choice {
        [self.tile[0], self.tile[1], self.stages, self.chunk, 0].map(|v| v as u32)
    }

    /// The plan of these numbers for the problem of `like`, whose sums are over `k` terms.
    fn of(choice: Choice, like: &Plan, k: usize) -> Self {
        let [tile_m, tile_n, stages, chunk, _] = choice.map(|v| v as usize);
        Plan { tile: [tile_m, tile_n], stages, chunk, parts: k.div_ceil(chunk.max(1)), ..*like }
    }

    /// The kernel's `-D`, with two of its own.
    pub(crate) fn defines(&self, dtype: DType, own: [(&'static str, usize); 2]) -> Vec<(&'static str, Define)> {
        let int = |v: usize| Define::Int(v as i64);
        let mut all = vec![
            ("scalar_t", dtype.into()),
            ("EXACT", int(self.exact.into())),
            ("TILE_M", int(self.tile[0])),
            ("TILE_N", int(self.tile[1])),
            ("STAGES", int(self.stages)),
            ("WIDTH", int(self.width)),
        ];
        all.extend(own.into_iter().filter(|(name, _)| !name.is_empty()).map(|(name, v)| (name, int(v))));
        all
    }

    /// Tiles of an (m, n) product.
    pub(crate) fn tiles(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.tile[0]).saturating_mul(n.div_ceil(self.tile[1]))
    }

    /// Threads of a block.
    pub(crate) fn threads(&self) -> u32 {
        if self.size == 4 && self.tile[1] == 128 { 256 } else { 128 }
    }

    /// Bytes of dynamic shared memory.
    pub(crate) fn shared(&self) -> u32 {
        shared(self.tile, self.stages) as u32
    }

    /// Memory for the sums of the parts of `y`, if there are several.
    pub(crate) fn sums(&self, y: &Array) -> Result<Option<Array>> {
        let layout = crate::Layout::RowMajor;
        let sums = || Array::uninit(&[self.parts, y.len()], computed_in(y.dtype()), layout, &y.context());
        (self.parts > 1).then(sums).transpose()
    }

    /// Adds the parts up, in their order.
    pub(crate) fn add_up(&self, y: &Array, sums: Option<Array>, bias: Option<&Array>, cols: usize) -> Result<()> {
        let define = [("scalar_t", y.dtype().into())];
        sums.map_or(Ok(()), |sums| sum_parts(y, &sums, bias, self.parts, cols, "sum_parts.cu", &define))
    }
}

/// The widest loads for elements of `size` bytes that begin at multiples of each of `strides` elements.
pub(crate) fn width(size: usize, strides: impl IntoIterator<Item = usize>) -> usize {
    let aligned =
        |widest: usize, s: usize| [16, 8, 4].into_iter().find(|w| *w <= widest && (s * size).is_multiple_of(*w)).unwrap_or(0);
    let all = strides.into_iter().fold(16, aligned);
    if all >= size { all } else { 0 }
}

/// Division of numbers below 2³¹ by `d` > 0: n / d = n · mul >> shift. The `Div` of `conv2d_mma.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Div {
    mul: u32,
    shift: i32,
}

impl Div {
    pub(crate) fn new(d: usize) -> Self {
        // With 2^s ≥ d the rounded-up factor is too large by less than 1 in 2^31 of what would change the quotient.
        let shift = 31 + d.next_power_of_two().trailing_zeros();
        Div { mul: (1u128 << shift).div_ceil(d as u128) as u32, shift: shift as i32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_by_a_known_number_is_exact() {
        let most = (1u64 << 31) - 1;
        for d in (1..200).chain([255, 256, 257, 4095, 65535, 65537, (1 << 20) - 1, (1 << 30) - 1, 1 << 30, most as usize]) {
            let Div { mul, shift } = Div::new(d);
            let tries = [0, 1, most, most - 1].into_iter().chain((1..50).flat_map(|q| {
                let multiple = (most / d as u64 * q / 49) * d as u64;
                [multiple, multiple.saturating_sub(1), (multiple + d as u64 - 1).min(most)]
            }));
            for n in tries {
                assert_eq!((n * u64::from(mul)) >> shift, n / d as u64, "{n} / {d}");
            }
        }
    }

    #[test]
    fn loads_are_as_wide_as_all_strides_allow() {
        assert_eq!(width(2, [8, 64]), 16);
        assert_eq!(width(2, [8, 4]), 8);
        assert_eq!(width(2, [6, 0]), 4);
        assert_eq!(width(2, [8, 7]), 0);
        assert_eq!(width(4, [7]), 4);
        assert_eq!(width(4, [6, 12]), 8);
    }

    fn on(capability: usize, dtype: DType, precision: Precision, k: usize) -> Option<Plan> {
        let work = Work { m: 512, n: 512, k, batch: 1, width: 16 };
        choose(Chip { capability, multiprocessors: 108 }, dtype, precision, work)
    }

    /// The table of the module, and that f32 is never rounded unless asked for.
    #[test]
    fn what_runs_on_tensor_cores() {
        use DType::{BF16, F16, F32, F64};
        for capability in [75, 80, 86, 89, 90, 100, 120] {
            let has = |dtype, precision| on(capability, dtype, precision, 512).is_some();
            assert!(has(F16, Precision::F32) && !has(F64, Precision::Tf32));
            assert_eq!(has(BF16, Precision::F32), capability >= 80);
            assert_eq!(has(F32, Precision::Tf32), capability >= 80);
            assert_eq!(on(capability, F32, Precision::F32, 512).is_some_and(|p| p.exact), [80, 90, 100].contains(&capability));
            assert!(on(capability, F32, Precision::F32, 512).is_none_or(|p| p.exact));
            assert!(on(capability, F32, Precision::F32, 127).is_none());
        }
    }

    /// Every plan fits into the chip, and is one that the kernels' `variants` lines name.
    #[test]
    fn plans_fit() {
        for capability in [75, 80, 86, 89, 90, 100, 120] {
            let chip = Chip { capability, multiprocessors: 82 };
            for dtype in [DType::F16, DType::BF16, DType::F32] {
                for (m, n) in [(8, 8), (64, 64), (65, 300), (1000, 24), (256, 256), (8192, 8192)] {
                    for (k, batch, width) in [(16, 1, 16), (64, 500, 16), (4608, 1, 16), (100_000, 1, 4), (784, 3, 0)] {
                        let work = Work { m, n, k, batch, width: if dtype == DType::F32 { width.max(4) } else { width } };
                        plans(chip, dtype, Precision::Tf32, work, &mut |_, p| assert_eq!(Plan::of(p.choice(), &p, k), p));
                        let Some(p) = choose(chip, dtype, Precision::Tf32, work) else { continue };
                        assert!(shared(p.tile, p.stages) <= chip.shared() && (2..=3).contains(&p.stages), "{work:?}: {p:?}");
                        assert!(p.width == 16 || p.tile == [64, 64], "{work:?}: {p:?}");
                        assert!(capability >= 80 || (p.stages == 2 && p.tile[1] == 64), "{work:?}: {p:?}");
                        assert!(p.chunk * p.parts >= k && p.chunk * (p.parts - 1) < k, "{work:?}: {p:?}");
                    }
                }
            }
        }
    }

    /// Large products take large tiles, small ones are spread over the device.
    #[test]
    fn the_model_fills_the_device() {
        let chip = Chip { capability: 90, multiprocessors: 132 };
        let work = |m, n, k| Work { m, n, k, batch: 1, width: 16 };
        let large = choose(chip, DType::BF16, Precision::F32, work(8192, 8192, 8192)).unwrap();
        assert_eq!((large.tile, large.parts), ([128, 128], 1));
        let skinny = choose(chip, DType::BF16, Precision::F32, work(64, 576, 147_456)).unwrap();
        assert!(skinny.tiles(64, 576) * skinny.parts >= 100, "{skinny:?}");
        let small = choose(chip, DType::BF16, Precision::F32, work(256, 256, 784)).unwrap();
        assert_eq!(small.tile, [64, 64]);
    }
}
