//! f32 in f32's accuracy by wgmma (`kernels/wgmma_six.cuh`): six products of operands split into three bf16 each. What runs so, and in
//! what tiles: the one place that decides, by a model, as [`super::wgmma`] does for other arithmetic.

use std::cell::RefCell;

use super::{
    product,
    wgmma::{BANDWIDTH, SHARED, SMALL, Span, Tile, tile},
};
use crate::{
    Array, DType, Layout, Result,
    cuda::{Define, Launch},
    precision::{self, Precision},
};

/// Steps of k that are multiplied at once: `DEPTH` of the kernels.
pub(crate) const DEPTH: usize = 32;
/// Planes of an operand.
pub(crate) const PLANES: usize = 3;
/// Clocks that a launch takes before it does anything.
const LAUNCH: f64 = 4000.0;
/// Bytes of memory that a multiprocessor has in a clock when all of them ask.
const MEMORY: f64 = 12.0;

/// Channels by pixels: two warpgroups, which take turns, below each other, or beside each other where there are but 64 channels.
pub(crate) const IMAGE: &[Tile] = &[tile(2, 1, 192), tile(2, 1, 160), tile(2, 1, 128), tile(2, 1, 96), tile(1, 2, 192)];
/// Filters by boxes of 64 channels under one tap.
pub(crate) const WEIGHT: &[Tile] = &[tile(2, 1, 192), tile(2, 1, 128), tile(1, 2, 192)];
/// For products whose result is row-major: the columns of b come as one box.
pub(crate) const PRODUCT: &[Tile] = &[tile(2, 1, 192), tile(2, 1, 128)];

/// What is to be multiplied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work<'a> {
    /// In steps of [`DEPTH`].
    pub spans: &'a [Span],
    /// Such products side by side.
    pub batch: usize,
    /// Multiplications that are asked for.
    pub multiplications: usize,
    /// k may be cut into parts.
    pub split: bool,
    /// Elements of the operands, all of which are split before.
    pub elements: usize,
    /// Clocks that the same takes by mma.sync; `None` where that leaves it to plain f32.
    pub other: Option<f64>,
}

/// How it is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    pub tile: Tile,
    /// Into so many parts of `chunk` steps k is cut.
    pub parts: usize,
    pub chunk: usize,
    /// Clocks that the model expects, the splitting included.
    pub time: f64,
    multiprocessors: usize,
}

/// Whether a device and its setting compute `y` so.
pub(crate) fn takes(y: &Array) -> Result<bool> {
    let hopper = y.cuda("wgmma")?.owner().capability == (9, 0);
    Ok(hopper && y.dtype() == DType::F32 && precision::get() == Precision::F32)
}

/// The plan for `work`, or `None` where it is left to others.
pub(crate) fn plan(y: &Array, tiles: &[Tile], work: &Work) -> Result<Option<Plan>> {
    let multiprocessors = y.cuda("wgmma")?.owner().multiprocessors as usize;
    #[cfg(test)]
    if let Some(force) = super::wgmma::forced() {
        let steps = work.spans.iter().map(|s| s.steps).max().unwrap_or(0);
        return Ok(force.map(|f| {
            super::wgmma_tests::reached();
            Plan::new(tiles[f.tile % tiles.len()], if work.split { f.parts } else { 1 }, steps, multiprocessors)
        }));
    }
    let plan = choose(multiprocessors, tiles, work);
    #[cfg(test)]
    plan.iter().for_each(|_| super::wgmma_tests::reached());
    Ok(plan)
}

/// The fastest plan, where it is faster than mma.sync.
fn choose(multiprocessors: usize, tiles: &[Tile], work: &Work) -> Option<Plan> {
    let Work { spans, batch, multiplications, split, elements, other } = *work;
    let count =
        |tile: Tile, s: &Span| s.m.div_ceil(tile.rows()).saturating_mul(s.n.div_ceil(tile.columns())).saturating_mul(batch);
    let longest = spans.iter().map(|s| s.steps).max()?;
    if multiplications < SMALL || elements >= 1 << 31 || spans.iter().any(|s| s.m.max(s.n).max(s.steps) >= 1 << 26) {
        return None;
    }
    // Sums of one sign round by the root of their length, here by 32 terms at once: an eighth of the general kernel's parts do.
    let general =
        |s: &Span| product::split(s.steps * DEPTH, s.m.div_ceil(64).saturating_mul(s.n.div_ceil(64)).saturating_mul(batch)).0;
    let least = if split { spans.iter().map(general).max().unwrap_or(1).div_ceil(8) } else { 1 };
    let mut best: Option<Plan> = None;
    for &tile in tiles {
        let all = spans.iter().map(|s| count(tile, s)).fold(0, usize::saturating_add);
        if all >= 1 << 24 {
            continue;
        }
        for parts in [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128] {
            // Parts of fewer steps would not fill the ring.
            if parts > 1 && (!split || longest / parts < 8) {
                break;
            }
            if parts < least {
                continue;
            }
            let mut plan = Plan::new(tile, parts, longest, multiprocessors);
            let tiles = if spans.iter().all(|s| s.steps == longest) {
                (all * plan.parts).div_ceil(multiprocessors) as f64 * plan.time_of(plan.chunk)
            } else {
                let part = |s: &Span| (count(tile, s) * plan.parts) as f64 * plan.time_of(s.steps.div_ceil(plan.parts));
                spans.iter().map(part).sum::<f64>() / multiprocessors as f64 + plan.time_of(plan.chunk) / 2.0
            };
            let written: f64 = spans.iter().map(|s| s.m as f64 * s.n as f64).sum::<f64>() * batch as f64;
            let bandwidth = multiprocessors as f64 * MEMORY;
            let sums = if plan.parts > 1 { written * (plan.parts as f64 * 8.0 + 4.0) / bandwidth + LAUNCH } else { 0.0 };
            // Read as f32, written as three planes.
            let splitting = elements as f64 * 10.0 / bandwidth + 2.0 * LAUNCH;
            plan.time = tiles + sums + splitting;
            if best.is_none_or(|b| plan.time < b.time) {
                best = Some(plan);
            }
        }
    }
    best.filter(|b| other.is_some_and(|other| b.time < other))
}

impl Plan {
    fn new(tile: Tile, parts: usize, steps: usize, multiprocessors: usize) -> Self {
        let chunk = steps.div_ceil(parts.max(1)).max(1);
        Plan { tile, parts: steps.div_ceil(chunk).max(1), chunk, time: 0.0, multiprocessors }
    }

    /// Bytes of a step of both operands.
    fn stage(&self) -> usize {
        (self.tile.rows() + self.tile.columns()) * DEPTH * 2 * PLANES
    }

    fn stages(&self) -> usize {
        (2..=4).rev().find(|s| self.tile.shared(s * self.stage()) <= SHARED).unwrap_or(2)
    }

    /// Clocks of a tile with so many steps: six products, or what they read from the L2 cache; what begins and ends it.
    fn time_of(&self, steps: usize) -> f64 {
        let tile = self.tile;
        // A step is half of bf16's.
        let step = (6.0 * tile.multiply() / 2.0).max(self.stage() as f64 / BANDWIDTH);
        // A twentieth is lost where the warpgroups change places.
        steps as f64 * step * 1.05 + (tile.rows() * tile.columns()) as f64 / 16.0 + 1500.0
    }

    /// The kernel's `-D`, with its own.
    pub(crate) fn defines(&self, own: &[(&'static str, usize)]) -> Vec<(&'static str, Define)> {
        self.tile.defines(DType::F32, self.stages(), 1, own)
    }

    /// The grid for `all` pieces of work: as many blocks as the device holds, which share them.
    pub(crate) fn grid(&self, all: usize) -> [u32; 3] {
        [all.min(self.multiprocessors) as u32, 1, 1]
    }

    /// Threads of a block: those that multiply, and a warpgroup that loads.
    pub(crate) fn threads(&self) -> [u32; 3] {
        [(self.tile.down * self.tile.across * 128 + 128) as u32, 1, 1]
    }

    /// Bytes of dynamic shared memory.
    pub(crate) fn shared(&self) -> u32 {
        self.tile.shared(self.stages() * self.stage()) as u32
    }
}

thread_local! {
    /// Arrays whose planes are kept, with these once there are some.
    static KEPT: RefCell<Vec<(Array, Option<Array>)>> = const { RefCell::new(Vec::new()) };
}

/// While it lives, arrays that this thread splits more than once are split once: dy, which both gradients of a convolution read.
#[must_use]
pub(crate) struct Kept(usize);

impl Kept {
    pub(crate) fn new(arrays: &[&Array]) -> Self {
        KEPT.with_borrow_mut(|kept| {
            let before = kept.len();
            kept.extend(arrays.iter().filter(|a| takes(a).unwrap_or(false)).map(|&a| (a.clone(), None)));
            Kept(before)
        })
    }

    /// The place of `a`: the same memory, whose elements are split one by one.
    fn place(a: &Array) -> Result<Option<usize>> {
        let memory = a.cuda("split")?;
        let is = |(of, _): &(Array, _)| of.cuda("split").is_ok_and(|m| std::ptr::eq(m, memory)) && of.len() == a.len();
        Ok(KEPT.with_borrow(|kept| kept.iter().position(is)))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Memory is given back behind the borrow.
        let own = KEPT.with_borrow_mut(|kept| kept.split_off(self.0.min(kept.len())));
        drop(own);
    }
}

/// `a` as three planes of bf16, (3, stride) with a stride that is a multiple of 8 elements.
pub(crate) fn split(a: &Array) -> Result<Array> {
    let place = Kept::place(a)?;
    if let Some(planes) = place.and_then(|i| KEPT.with_borrow(|kept| kept[i].1.clone())) {
        return Ok(planes);
    }
    let stride = a.len().next_multiple_of(8);
    let planes = Array::uninit(&[PLANES, stride], DType::BF16, Layout::RowMajor, &a.context())?;
    Launch::new(a, "split_planes.cu", "split_planes", &[])?
        .array(&planes)
        .array(a)
        .value(a.len() as i64)
        .value(stride as i64)
        .run_in_turn(a.len().div_ceil(256 * 8))?;
    if let Some(i) = place {
        KEPT.with_borrow_mut(|kept| kept[i].1 = Some(planes.clone()));
    }
    Ok(planes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::mma::{self, time_in_f32};

    /// The kernels are compiled for these tiles, which shared memory holds.
    #[test]
    fn tiles_fit() {
        let (matmul, conv) = (include_str!("../../kernels/matmul_six.cu"), include_str!("../../kernels/conv2d_six.cu"));
        for (tiles, source, pass) in [(PRODUCT, matmul, ""), (IMAGE, conv, "0,1"), (WEIGHT, conv, "2")] {
            for &tile in tiles {
                let plan = Plan::new(tile, 1, 9, 132);
                let Tile { down, across, cols, .. } = tile;
                let variant = format!("DOWN={down}; ACROSS={across}; COLS={cols}; STAGES={}; RESIDENT=1;", plan.stages());
                let named = |line: &str| line.contains(&variant) && line.contains(pass);
                assert!(source.lines().any(named), "not among the kernel's variants: {variant}");
                // b that is not K-major comes in boxes of 64.
                let boxes = if pass == "0,1" { 32 } else { 64 };
                assert!(plan.shared() as usize <= SHARED && cols.is_multiple_of(boxes) && down * across == 2);
            }
        }
    }

    fn fastest(tiles: &[Tile], m: usize, n: usize, k: usize, split: bool) -> (Option<Plan>, f64) {
        let spans = [Span { m, n, steps: k.div_ceil(DEPTH) }];
        let other = time_in_f32(mma::Work { m, n, k, batch: 1, width: 16 }).unwrap_or(f64::INFINITY);
        let work = Work { spans: &spans, batch: 1, multiplications: m * n * k, split, elements: (m + n) * k, other: Some(other) };
        (choose(132, tiles, &work), other)
    }

    /// ResNet-18's layers on 256 images of 96 by 96 take less than by mma.sync, the splitting included.
    #[test]
    fn it_is_worth_it() {
        for [c, side] in [[64, 24], [128, 12], [256, 6], [512, 3]] {
            let pixels = 256 * side * side;
            for (name, tiles, m, n, k) in [("y, dx", IMAGE, c, pixels, c * 9), ("dw", WEIGHT, c, c * 9, pixels)] {
                let spans = [Span { m, n, steps: k.div_ceil(DEPTH) }];
                let other = time_in_f32(mma::Work { m, n, k, batch: 1, width: 16 }).unwrap();
                let elements = if name == "dw" { 2 * c * pixels } else { c * pixels + c * c * 9 };
                let split = name == "dw";
                let work = Work { spans: &spans, batch: 1, multiplications: m * n * k, split, elements, other: Some(other) };
                let plan = choose(132, tiles, &work);
                println!("{c} channels, {name}: {:.0} clocks, {other:.0} by mma.sync, {plan:?}", plan.map_or(0.0, |p| p.time));
                assert!(plan.is_some(), "{c} channels: {name}");
            }
        }
    }

    #[test]
    fn large_products_take_it_and_small_ones_do_not() {
        let (large, other) = fastest(PRODUCT, 8192, 8192, 8192, true);
        assert!(large.is_some_and(|p| p.tile == tile(2, 1, 192) && p.parts == 1 && p.time < 0.65 * other), "{large:?}, {other}");
        assert!(fastest(PRODUCT, 256, 256, 784, true).0.is_none());
        // Long sums of few elements are cut as often as they have to be.
        let long = [Span { m: 4096, n: 4096, steps: 1 << 15 }];
        let work =
            Work { spans: &long, batch: 1, multiplications: 1 << 44, split: true, elements: 0, other: Some(f64::INFINITY) };
        let long = choose(132, PRODUCT, &work);
        assert!(long.is_some_and(|p| p.parts * 8 >= product::split(1 << 20, 64 * 64).0), "{long:?}");
    }
}
