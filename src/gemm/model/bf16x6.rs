//! The cost model of bf16x6 (`kernels/wgmma_six.cuh`): f32 in f32's accuracy on wgmma, by six products of operands split into three
//! bf16 each.

use super::{
    wgmma::{GemmShape, GroupedGemm},
    wgmma_tile::{Defines, WgmmaTile, tile},
};
use crate::{
    DType,
    gemm::{
        arch::{
            ACCUMULATORS_STORED_PER_CLOCK, DRAM_BYTES_PER_CLOCK, L2_BYTES_PER_CLOCK, LAUNCH_CLOCKS, SM90_SMEM_PER_CTA, SPLITS,
            WGMMA_MIN_MACS, WGMMA_TILE_CLOCKS,
        },
        split_k,
    },
};

/// Elements of k in a step of the main loop: `DEPTH` of the kernels.
pub(crate) const STEP_K: usize = 32;
/// bf16 planes of an operand.
pub(crate) const PLANES: usize = 3;

/// Fprop and dgrad by im2col: two consumer warpgroups along M, or along N where there are but 64 channels.
pub(crate) const IM2COL: &[WgmmaTile] = &[tile(2, 1, 192), tile(2, 1, 160), tile(2, 1, 128), tile(2, 1, 96), tile(1, 2, 192)];
/// Wgrad: filters by boxes of 64 channels under one tap.
pub(crate) const IM2COL_WGRAD: &[WgmmaTile] = &[tile(2, 1, 192), tile(2, 1, 128), tile(1, 2, 192)];
/// GEMM with a row-major result: the columns of b come as one box.
pub(crate) const GEMM: &[WgmmaTile] = &[tile(2, 1, 192), tile(2, 1, 128)];

/// How bf16x6 computes a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bf16x6Plan {
    pub tile: WgmmaTile,
    pub splits: usize,
    /// Steps of a split.
    pub steps_per_split: usize,
    num_sms: usize,
}

/// Offers every plan with the clocks that the model expects, the splitting of `elements` elements of operands included. Steps of the
/// group are of [`STEP_K`].
pub(crate) fn plans(
    num_sms: usize,
    tiles: &[WgmmaTile],
    group: &GroupedGemm,
    elements: usize,
    offer: &mut dyn FnMut(f64, Bf16x6Plan),
) {
    let GroupedGemm { shapes, batch, macs, can_split_k, .. } = *group;
    let count = |tile: WgmmaTile, s: &GemmShape| {
        s.m.div_ceil(tile.rows()).saturating_mul(s.n.div_ceil(tile.columns())).saturating_mul(batch)
    };
    let Some(longest) = shapes.iter().map(|s| s.k_steps).max() else { return };
    if macs < WGMMA_MIN_MACS || elements >= 1 << 31 || shapes.iter().any(|s| s.m.max(s.n).max(s.k_steps) >= 1 << 26) {
        return;
    }
    // Sums of one sign round by the root of their length. Here 32 terms are added at once, so an eighth of SIMT's splits do.
    let simt_splits = |s: &GemmShape| {
        split_k::splits(s.k_steps * STEP_K, s.m.div_ceil(64).saturating_mul(s.n.div_ceil(64)).saturating_mul(batch)).0
    };
    let least = if can_split_k { shapes.iter().map(simt_splits).max().unwrap_or(1).div_ceil(8) } else { 1 };
    for &tile in tiles {
        let all = shapes.iter().map(|s| count(tile, s)).fold(0, usize::saturating_add);
        if all >= 1 << 24 {
            continue;
        }
        for splits in SPLITS {
            // Splits of fewer steps would not fill the pipeline.
            if splits > 1 && (!can_split_k || longest / splits < 8) {
                break;
            }
            if splits < least {
                continue;
            }
            let plan = Bf16x6Plan::new(tile, splits, longest, num_sms);
            let main = if shapes.iter().all(|s| s.k_steps == longest) {
                (all * plan.splits).div_ceil(num_sms) as f64 * plan.tile_clocks(plan.steps_per_split)
            } else {
                let part =
                    |s: &GemmShape| (count(tile, s) * plan.splits) as f64 * plan.tile_clocks(s.k_steps.div_ceil(plan.splits));
                shapes.iter().map(part).sum::<f64>() / num_sms as f64 + plan.tile_clocks(plan.steps_per_split) / 2.0
            };
            let written: f64 = shapes.iter().map(|s| s.m as f64 * s.n as f64).sum::<f64>() * batch as f64;
            let bandwidth = num_sms as f64 * DRAM_BYTES_PER_CLOCK;
            let workspace = written * (plan.splits as f64 * 8.0 + 4.0);
            let reduce = if plan.splits > 1 { workspace / bandwidth + LAUNCH_CLOCKS } else { 0.0 };
            // Operands are read as f32 and written as three planes.
            let splitting = elements as f64 * 10.0 / bandwidth + 2.0 * LAUNCH_CLOCKS;
            offer(main + reduce + splitting, plan);
        }
    }
}

impl Bf16x6Plan {
    /// For sums of at most `k_steps` steps.
    pub(crate) fn new(tile: WgmmaTile, splits: usize, k_steps: usize, num_sms: usize) -> Self {
        let steps_per_split = k_steps.div_ceil(splits.max(1)).max(1);
        Bf16x6Plan { tile, splits: k_steps.div_ceil(steps_per_split).max(1), steps_per_split, num_sms }
    }

    /// The plan in the autotuner's numbers.
    pub(crate) fn numbers(&self) -> [u32; 4] {
        let WgmmaTile { wg_m, wg_n, wg_tile_n, .. } = self.tile;
        [wg_m << 8 | wg_n, wg_tile_n, self.splits, 0].map(|v| v as u32)
    }

    /// A test's plan.
    #[cfg(test)]
    pub(crate) fn forced(force: &crate::testing::Force, tiles: &[WgmmaTile], group: &GroupedGemm, num_sms: usize) -> Self {
        let k_steps = group.shapes.iter().map(|s| s.k_steps).max().unwrap_or(0);
        let splits = if group.can_split_k { force.splits } else { 1 };
        Bf16x6Plan::new(tiles[force.tile[0] % tiles.len()], splits, k_steps, num_sms)
    }

    /// Bytes of a step of both operands.
    fn stage_bytes(&self) -> usize {
        (self.tile.rows() + self.tile.columns()) * STEP_K * 2 * PLANES
    }

    fn stages(&self) -> usize {
        (2..=4).rev().find(|s| self.tile.smem_bytes(s * self.stage_bytes()) <= SM90_SMEM_PER_CTA).unwrap_or(2)
    }

    /// Clocks of a tile with so many steps: six products, or the reads from the L2 cache; prologue and epilogue.
    fn tile_clocks(&self, steps: usize) -> f64 {
        let tile = self.tile;
        // A step has half of bf16's k.
        let step = (6.0 * tile.mma_clocks() / 2.0).max(self.stage_bytes() as f64 / L2_BYTES_PER_CLOCK);
        // A twentieth is lost where the warpgroups alternate.
        steps as f64 * step * 1.05 + (tile.rows() * tile.columns()) as f64 / ACCUMULATORS_STORED_PER_CLOCK + WGMMA_TILE_CLOCKS
    }

    /// The kernel's `-D`, with its own.
    pub(crate) fn defines(&self, own: &[(&'static str, usize)]) -> Defines {
        self.tile.defines(DType::F32, self.stages(), 1, own)
    }

    /// The persistent grid for `all` tiles: as many CTAs as the device holds.
    pub(crate) fn grid(&self, all: usize) -> [u32; 3] {
        [all.min(self.num_sms) as u32, 1, 1]
    }

    /// Threads of a CTA: two consumer warpgroups, and a producer warpgroup.
    pub(crate) fn threads(&self) -> [u32; 3] {
        [(self.tile.wg_m * self.tile.wg_n * 128 + 128) as u32, 1, 1]
    }

    /// Bytes of dynamic shared memory.
    pub(crate) fn smem_bytes(&self) -> u32 {
        self.tile.smem_bytes(self.stages() * self.stage_bytes()) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gemm::{
            arch::Arch,
            model::mma::{self, GemmSize},
        },
        precision::Precision,
    };

    /// The kernels are compiled for these tiles, which shared memory holds.
    #[test]
    fn tiles_fit() {
        let (matmul, conv) = (include_str!("../../../kernels/matmul_six.cu"), include_str!("../../../kernels/conv2d_six.cu"));
        for (tiles, source, pass) in [(GEMM, matmul, ""), (IM2COL, conv, "0,1"), (IM2COL_WGRAD, conv, "2")] {
            for &tile in tiles {
                let plan = Bf16x6Plan::new(tile, 1, 9, 132);
                let WgmmaTile { wg_m, wg_n, wg_tile_n, .. } = tile;
                let variant = format!("DOWN={wg_m}; ACROSS={wg_n}; COLS={wg_tile_n}; STAGES={}; RESIDENT=1;", plan.stages());
                let named = |line: &str| line.contains(&variant) && line.contains(pass);
                assert!(source.lines().any(named), "not among the kernel's variants: {variant}");
                // b that is not K-major comes in boxes of 64.
                let boxes = if pass == "0,1" { 32 } else { 64 };
                assert!(plan.smem_bytes() as usize <= SM90_SMEM_PER_CTA && wg_tile_n.is_multiple_of(boxes) && wg_m * wg_n == 2);
            }
        }
    }

    /// Clocks by 3xTF32 on mma.sync.
    fn tf32x3(m: usize, n: usize, k: usize) -> f64 {
        let (arch, size) = (Arch { capability: 90, num_sms: 132 }, GemmSize { m, n, k, batch: 1, load_bytes: 16 });
        mma::cheapest(arch, DType::F32, Precision::F32, size).map_or(f64::INFINITY, |(cost, _)| cost)
    }

    fn cheapest(tiles: &[WgmmaTile], group: &GroupedGemm, elements: usize) -> Option<(f64, Bf16x6Plan)> {
        let mut best: Option<(f64, Bf16x6Plan)> = None;
        plans(132, tiles, group, elements, &mut |cost, plan| {
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, plan));
            }
        });
        best
    }

    fn single(
        tiles: &[WgmmaTile],
        m: usize,
        n: usize,
        k: usize,
        can_split_k: bool,
        elements: usize,
    ) -> Option<(f64, Bf16x6Plan)> {
        let shapes = [GemmShape { m, n, k_steps: k.div_ceil(STEP_K) }];
        cheapest(tiles, &GroupedGemm { shapes: &shapes, batch: 1, macs: m * n * k, can_split_k, products: 1.0 }, elements)
    }

    /// ResNet-18's layers on 256 images of 96 by 96 take less than by mma.sync, the splitting included.
    #[test]
    fn it_is_worth_it() {
        for [c, side] in [[64, 24], [128, 12], [256, 6], [512, 3]] {
            let pixels = 256 * side * side;
            for (name, tiles, m, n, k) in [("y, dx", IM2COL, c, pixels, c * 9), ("dw", IM2COL_WGRAD, c, c * 9, pixels)] {
                let is_wgrad = name == "dw";
                let elements = if is_wgrad { 2 * c * pixels } else { c * pixels + c * c * 9 };
                let (cost, plan) = single(tiles, m, n, k, is_wgrad, elements).expect("a plan");
                let other = tf32x3(m, n, k);
                println!("{c} channels, {name}: {cost:.0} clocks, {other:.0} by mma.sync, {plan:?}");
                assert!(cost < other, "{c} channels: {name}");
            }
        }
    }

    #[test]
    fn large_products_take_it_and_small_ones_do_not() {
        let (large, other) = (single(GEMM, 8192, 8192, 8192, true, 2 * 8192 * 8192), tf32x3(8192, 8192, 8192));
        let fits = |&(cost, p): &(f64, Bf16x6Plan)| p.tile == tile(2, 1, 192) && p.splits == 1 && cost < 0.65 * other;
        assert!(large.as_ref().is_some_and(fits), "{large:?}, {other}");
        let small = single(GEMM, 256, 256, 784, true, 512 * 784);
        assert!(small.is_none_or(|(cost, _)| cost >= tf32x3(256, 256, 784)), "{small:?}");
        // Long sums of few elements are cut as often as they have to be.
        let long = [GemmShape { m: 4096, n: 4096, k_steps: 1 << 15 }];
        let group = GroupedGemm { shapes: &long, batch: 1, macs: 1 << 44, can_split_k: true, products: 1.0 };
        let long = cheapest(GEMM, &group, 0);
        assert!(long.is_some_and(|(_, p)| p.splits * 8 >= split_k::splits(1 << 20, 64 * 64).0), "{long:?}");
    }
}
