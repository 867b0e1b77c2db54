//! Which products run on Hopper's warpgroup instructions (`kernels/wgmma.cuh`), and in what tiles: the one place that decides.
//!
//! On compute capability 9.0 alone, for bf16, f16 and, with [`Precision::Tf32`], f32 (else see [`super::six`]). What the copy
//! engine cannot read (strides that are no multiples of 16 bytes), what would mostly fill tiles with zeros, and what is small is left to
//! [`super::mma`].

mod tile;

use crate::{
    Array, DType, Error, Result,
    cuda::{
        Swizzle, TensorMap,
        tune::{self, Choice, Problem},
    },
    precision::{self, Precision},
};

pub(super) use tile::tile;
pub(crate) use tile::{BANDWIDTH, SHARED, Tile};
use tile::{Defines, ROW};

/// Counts in the kernels have 32 bits.
const LIMIT: usize = 1 << 30;
/// Multiplications below which a launch takes longer than they do, whatever computes them.
pub(crate) const SMALL: usize = 1 << 25;

/// Rows and columns that meet `steps` steps of k.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub m: usize,
    pub n: usize,
    pub steps: usize,
}

/// What is to be multiplied.
#[derive(Clone, Debug)]
pub(crate) struct Work<'a> {
    pub spans: &'a [Span],
    /// Such products side by side.
    pub batch: usize,
    /// Multiplications that are asked for: those of the spans, but for what fills them up.
    pub multiplications: usize,
    /// k may be cut into parts.
    pub split: bool,
    /// Instructions where operands along k take one: see [`products`].
    pub products: f64,
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    pub tile: Tile,
    pub stages: usize,
    pub resident: usize,
    /// Into so many parts of `chunk` steps k is cut.
    pub parts: usize,
    pub chunk: usize,
    /// Clocks that the model expects.
    pub time: f64,
    multiprocessors: usize,
}

/// What tests set: the number of the tile in its list, the parts of k, and whether 3x3 convolutions take a halo.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Force {
    pub tile: usize,
    pub parts: usize,
    pub halo: bool,
}

/// What a test forces, if it does; `Some(None)` is that wgmma is not taken, as in the tests of `mma`.
#[cfg(test)]
pub(crate) fn forced() -> Option<Option<Force>> {
    super::wgmma_tests::FORCED.get().or_else(|| super::mma_tests::FORCED.get().map(|_| None))
}

/// Steps of `k` elements of `dtype`.
pub(crate) fn steps(dtype: DType, k: usize) -> usize {
    k.div_ceil(ROW / dtype.size())
}

/// How many instructions take the place of one where operands do not lie along k: f32 is split into bf16 then (`wgmma_split.cuh`),
/// which takes three products at twice tf32's rate.
pub(crate) fn products(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1.5 } else { 1.0 }
}

/// Whether a device and its setting take `y`'s dtype at all.
pub(crate) fn takes(y: &Array) -> Result<bool> {
    let hopper = y.cuda("wgmma")?.owner().capability == (9, 0);
    Ok(hopper
        && match y.dtype() {
            DType::BF16 | DType::F16 => true,
            DType::F32 => precision::get() == Precision::Tf32,
            _ => false,
        })
}

/// The plan for `work`, or `None` where it is left to others.
pub(crate) fn plan(y: &Array, tiles: &[Tile], work: &Work) -> Result<Option<Plan>> {
    let multiprocessors = y.cuda("wgmma")?.owner().multiprocessors as usize;
    #[cfg(test)]
    if let Some(force) = forced() {
        let steps = work.spans.iter().map(|s| s.steps).max().unwrap_or(0);
        let plan = |f: Force| {
            super::wgmma_tests::reached();
            // So few that blocks take several pieces of work.
            Plan::new(tiles[f.tile % tiles.len()], if work.split { f.parts } else { 1 }, steps, multiprocessors.min(3))
        };
        return Ok(force.filter(|f| !f.halo || tiles == Tile::PRODUCT).map(plan));
    }
    let plan = choose(multiprocessors, y.dtype().size(), tiles, work);
    #[cfg(test)]
    plan.iter().for_each(|_| super::wgmma_tests::reached());
    Ok(plan)
}

/// The most candidates that are timed.
const CANDIDATES: usize = 16;

/// The plan to use after the tuner had its say: `model` is that of [`plan`], `shape` all that the time depends on, and
/// `run` computes the same with a plan, into memory of its own.
pub(crate) fn tuned(
    y: &Array,
    (tiles, work): (&[Tile], &Work),
    (family, shape): (&'static str, &[usize]),
    model: Plan,
    run: &dyn Fn(&Plan) -> Result<()>,
) -> Result<Plan> {
    let steps = work.spans.iter().map(|s| s.steps).max().unwrap_or(0);
    let of = |c: &Choice| Plan::of(*c, steps, &model);
    let all = || all(&model, y, tiles, work).iter().map(|p| (p.time, p.choice())).collect();
    pick(y, (family, shape), model.choice(), &all, &|c| run(&of(c))).map(|c| of(&c))
}

/// All plans for `work` on the device of `like`.
pub(crate) fn all(like: &Plan, y: &Array, tiles: &[Tile], work: &Work) -> Vec<Plan> {
    let mut all = Vec::new();
    plans(like.multiprocessors, y.dtype().size(), tiles, work, &mut |plan| all.push(plan));
    all
}

/// Candidates, and the clocks that the model expects of each.
pub(crate) type Candidates = Vec<(f64, Choice)>;

/// The same for what has other ways than plans, in numbers of its own: the choice among all that the model does not find hopeless.
pub(crate) fn pick(
    y: &Array,
    (family, shape): (&'static str, &[usize]),
    model: Choice,
    all: &dyn Fn() -> Candidates,
    run: &dyn Fn(&Choice) -> Result<()>,
) -> Result<Choice> {
    #[cfg(test)]
    if forced().is_some() {
        return Ok(model);
    }
    if tune::is_off()? {
        return Ok(model);
    }
    let candidates = || {
        let mut all = all();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        // What the model finds hopeless is not worth compiling.
        let most = all.first().map_or(0.0, |(time, _)| time * 2.5);
        let mut few: Vec<Choice> = Vec::new();
        for (_, choice) in all.into_iter().filter(|(time, _)| *time <= most) {
            if few.len() < CANDIDATES && !few.contains(&choice) {
                few.push(choice);
            }
        }
        few
    };
    let mut key = [0; 40];
    let len = 2 + shape.len();
    let Some(slots) = key.get_mut(2..len) else {
        return Err(Error::invalid(family, "a key of more than 38 numbers"));
    };
    slots.copy_from_slice(shape);
    // The precision is that of f32.
    (key[0], key[1]) = (y.dtype() as usize, if y.dtype() == DType::F32 { precision::get() as usize } else { 0 });
    let problem = Problem { device: y.cuda("wgmma")?.owner(), family, shape: &key[..len] };
    tune::choose(&problem, model, &candidates, run)
}

/// The fastest plan by the model, if there is any.
pub(crate) fn choose(multiprocessors: usize, size: usize, tiles: &[Tile], work: &Work) -> Option<Plan> {
    let mut best: Option<Plan> = None;
    plans(multiprocessors, size, tiles, work, &mut |plan| {
        if best.is_none_or(|b| plan.time < b.time) {
            best = Some(plan);
        }
    });
    best
}

/// Gives `f` every plan; none where the work is left to others.
fn plans(multiprocessors: usize, size: usize, tiles: &[Tile], work: &Work, f: &mut dyn FnMut(Plan)) {
    let Work { spans, batch, multiplications, split, products } = *work;
    if multiplications < SMALL || spans.iter().any(|s| s.m.max(s.n).max(s.steps) >= LIMIT) {
        return;
    }
    let Some(longest) = spans.iter().map(|s| s.steps).max() else { return };
    for &tile in tiles {
        // A cluster's last block may have no rows.
        let down = |s: &Span| s.m.div_ceil(tile.height()) * tile.cluster;
        let count = |s: &Span| down(s).saturating_mul(s.n.div_ceil(tile.columns())).saturating_mul(batch);
        let all: usize = spans.iter().map(count).fold(0, usize::saturating_add);
        // mma.sync has at best half of wgmma's rate, so half of a tile may be zeros.
        let padded = |s: &Span| count(s) as f64 * (tile.rows() * tile.columns() * ROW / size) as f64 * s.steps as f64;
        if all >= LIMIT || (multiplications as f64) < 0.5 * spans.iter().map(padded).sum::<f64>() {
            continue;
        }
        for parts in [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128] {
            // Parts of fewer steps would not fill the ring.
            if parts > 1 && (!split || longest / parts < 4) {
                break;
            }
            let mut plan = Plan::new(tile, parts, longest, multiprocessors);
            let slots = (plan.clusters() * tile.cluster) as f64;
            // Of `count` tiles, those on one multiprocessor share its bandwidth.
            let time_of = |steps: usize, count: usize| {
                let together = (count as f64 / multiprocessors as f64).ceil().clamp(1.0, plan.resident as f64);
                // A warpgroup alone does not keep the tensor cores busy.
                let alone = if together * (tile.down * tile.across) as f64 > 1.0 { 1.0 } else { 1.3 };
                let step = (alone * products * tile.multiply()).max(tile.load()) * together;
                steps as f64 * step + tile.finish()
            };
            let parts_of = |s: &Span| count(s).saturating_mul(plan.parts);
            let all = all.saturating_mul(plan.parts);
            let waves = |steps: usize, count: usize| (count as f64 / slots).ceil() * time_of(steps, count);
            let tiles = if spans.iter().all(|s| s.steps == longest) {
                waves(plan.chunk, all)
            } else {
                // The long ones begin, and the short ones fill what they leave free.
                let long = spans.iter().filter(|s| s.steps == longest).map(parts_of).sum();
                let part = |s: &Span| parts_of(s) as f64 * time_of(s.steps.div_ceil(plan.parts), all);
                let last = spans.iter().map(|s| s.steps).min().unwrap_or(0).div_ceil(plan.parts);
                waves(plan.chunk, long).max(spans.iter().map(part).sum::<f64>() / slots + time_of(last, all) / 2.0)
            };
            // The sums are written and read once more, by another kernel.
            let elements: f64 = spans.iter().map(|s| s.m as f64 * s.n as f64).sum();
            let sums = elements * batch as f64 * (plan.parts as f64 * 8.0 + 4.0);
            plan.time = tiles + if plan.parts > 1 { sums / (multiprocessors as f64 * 12.0) + 4000.0 } else { 0.0 };
            f(plan);
        }
    }
}

impl Plan {
    /// The plan in the tuner's numbers.
    pub(crate) fn choice(&self) -> Choice {
        let Tile { down, across, cols, cluster } = self.tile;
        [down, across, cols, self.parts, cluster].map(|v| v as u32)
    }

    /// The plan of these numbers for sums over `steps` steps, on the device of `like`.
    pub(crate) fn of(choice: Choice, steps: usize, like: &Plan) -> Self {
        let [down, across, cols, parts, cluster] = choice.map(|v| v as usize);
        Plan::new(Tile { down, across, cols, cluster: cluster.max(1) }, parts, steps, like.multiprocessors)
    }

    fn new(tile: Tile, parts: usize, steps: usize, multiprocessors: usize) -> Self {
        let (resident, stages) = tile.fit();
        let chunk = steps.div_ceil(parts.max(1)).max(1);
        Plan { tile, stages, resident, parts: steps.div_ceil(chunk).max(1), chunk, time: 0.0, multiprocessors }
    }

    /// The kernel's `-D`, with its own.
    pub(crate) fn defines(&self, dtype: DType, own: &[(&'static str, usize)]) -> Defines {
        self.tile.defines(dtype, self.stages, self.resident, own)
    }

    /// Clusters that the device holds. (Multiprocessors come in twos, so that pairs leave none without a block.)
    fn clusters(&self) -> usize {
        (self.multiprocessors * self.resident / self.tile.cluster).max(1)
    }

    /// The grid for `all` pieces of a cluster's work: as many blocks as the device holds, which share them.
    pub(crate) fn grid(&self, all: usize) -> [u32; 3] {
        [(all.min(self.clusters()) * self.tile.cluster) as u32, 1, 1]
    }

    /// Threads of a block.
    pub(crate) fn threads(&self) -> [u32; 3] {
        self.tile.threads()
    }

    /// Bytes of dynamic shared memory.
    pub(crate) fn shared(&self) -> u32 {
        self.tile.shared(self.stages * self.tile.stage()) as u32
    }
}

/// A map in the swizzle that the kernels expect, f32 rounded to tf32.
pub(crate) fn swizzled(map: TensorMap, dtype: DType) -> TensorMap {
    let map = map.swizzle(Swizzle::Span128);
    if dtype == DType::F32 { map.tf32() } else { map }
}

/// Whether the copy engine reads rows that are these numbers of elements apart.
pub(crate) fn aligned(dtype: DType, strides: &[usize]) -> bool {
    strides.iter().all(|s| (s * dtype.size()).is_multiple_of(16))
}

#[cfg(test)]
mod tests {
    use super::{tile::pair, *};

    /// Shared memory and registers hold every tile, with enough stages to hide the way from memory.
    #[test]
    fn tiles_fit() {
        let (matmul, conv) = (include_str!("../../../kernels/matmul_wgmma.cu"), include_str!("../../../kernels/conv2d_wgmma.cu"));
        let all = [(Tile::PRODUCT, matmul), (Tile::IMAGE, conv), (Tile::WEIGHT, conv)];
        for (tile, source) in all.iter().flat_map(|(tiles, source)| tiles.iter().map(move |t| (*t, source))) {
            let (resident, stages) = tile.fit();
            let threads = (tile.down * tile.across * 128 + 32) * resident;
            assert!(stages >= 3 && resident * (tile.shared(stages * tile.stage()) + 2048) <= 228 << 10, "{tile:?}: {stages}");
            // The sums, and what else a thread needs; registers come by 8, warps are spread over four places.
            assert!(tile.cols / 2 + 28 <= 16384 / 32 / threads.div_ceil(128) / 8 * 8, "{tile:?}");
            let Tile { down, across, cols, cluster } = tile;
            let mut variant = format!("DOWN={down}; ACROSS={across}; COLS={cols}; STAGES={stages}; RESIDENT={resident};");
            if cluster > 1 {
                variant += &format!(" CLUSTER={cluster};");
            }
            assert!(source.contains(&variant), "not among the kernel's variants: {variant}");
            // A part of the columns is whole boxes of 64, where the operand is not K-major.
            assert!(cluster == 1 || tile.loads().is_multiple_of(64), "{tile:?}");
            let unit = if Tile::WEIGHT.contains(&tile) {
                64
            } else if Tile::PRODUCT.contains(&tile) {
                32
            } else {
                8
            };
            assert!(tile.cols % unit == 0, "{tile:?}");
        }
    }

    /// The tuner's numbers are the whole plan.
    #[test]
    fn plans_come_back_from_their_numbers() {
        for (m, n, k) in [(8192, 8192, 8192), (256, 256, 147_456), (520, 264, 4608), (64, 147_456, 576)] {
            let spans = [Span { m, n, steps: steps(DType::BF16, k) }];
            let work = Work { spans: &spans, batch: 1, multiplications: m * n * k, split: true, products: 1.0 };
            let mut count = 0;
            plans(132, 2, Tile::PRODUCT, &work, &mut |p| {
                count += 1;
                assert_eq!(Plan { time: p.time, ..Plan::of(p.choice(), spans[0].steps, &p) }, p, "{m}x{n}x{k}");
            });
            assert!(count > 0, "{m}x{n}x{k} has no plan");
        }
    }

    fn choice(tiles: &[Tile], m: usize, n: usize, k: usize, split: bool) -> Option<Plan> {
        let spans = [Span { m, n, steps: steps(DType::BF16, k) }];
        choose(132, 2, tiles, &Work { spans: &spans, batch: 1, multiplications: m * n * k, split, products: 1.0 })
    }

    #[test]
    fn large_products_take_large_tiles_and_small_ones_fill_the_device() {
        assert_eq!(choice(Tile::PRODUCT, 8192, 8192, 8192, true).map(|p| (p.tile, p.parts)), Some((pair(256), 1)));
        let skinny = choice(Tile::PRODUCT, 256, 256, 147_456, true).unwrap();
        assert!(256 / skinny.tile.rows() * 256 / skinny.tile.columns() * skinny.parts >= 100, "{skinny:?}");
        // 64 channels are no work for 128 rows.
        assert_eq!(choice(Tile::IMAGE, 64, 147_456, 576, false).unwrap().tile.down, 1);
        // A step of a pair takes the L2 cache as long as the tensor cores; where one of two blocks has no rows, it is no pair.
        assert_eq!((pair(256).load(), pair(256).multiply(), tile(2, 1, 256).load()), (1024.0, 1024.0, 1536.0));
        assert_eq!(choice(Tile::PRODUCT, 128, 65536, 4096, true).map(|p| p.tile.cluster), Some(1));
        assert_eq!(choice(Tile::PRODUCT, 16, 8192, 8192, true), None);
        assert_eq!(choice(Tile::PRODUCT, 256, 256, 256, true), None);
    }
}
