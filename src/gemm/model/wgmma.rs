//! The cost model of the wgmma kernels (`kernels/wgmma.cuh`), for GEMM and implicit GEMM: sm_90a, bf16, f16 and, with
//! [`Precision::Tf32`](crate::precision::Precision::Tf32), f32.
//!
//! Problems that TMA cannot read (strides that are no multiples of 16 bytes), that would mostly fill tiles with zeros, or that are small
//! have no plan here.

use super::wgmma_tile::{Defines, STEP_BYTES, WgmmaTile};
use crate::{
    DType,
    cuda::{Swizzle, TensorMap},
    gemm::arch::{DRAM_BYTES_PER_CLOCK, INDEX_LIMIT, LAUNCH_CLOCKS, SPLITS, WGMMA_MIN_MACS},
};

/// One GEMM of a group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GemmShape {
    pub m: usize,
    pub n: usize,
    /// Steps of the main loop along k.
    pub k_steps: usize,
}

/// GEMMs whose tiles share one launch: the phases of a strided dgrad, two convolutions of one input, or a single one.
#[derive(Clone, Debug)]
pub(crate) struct GroupedGemm<'a> {
    pub shapes: &'a [GemmShape],
    /// Batches or groups of each.
    pub batch: usize,
    /// Useful multiply-adds, without the padding of tiles.
    pub macs: usize,
    /// Split-K is possible.
    pub can_split_k: bool,
    /// Products that make up one: see [`products`].
    pub products: f64,
}

/// How wgmma computes a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct WgmmaPlan {
    pub tile: WgmmaTile,
    pub stages: usize,
    pub ctas_per_sm: usize,
    pub splits: usize,
    /// Steps of a split.
    pub steps_per_split: usize,
    num_sms: usize,
}

/// Steps of `k` elements of `dtype`.
pub(crate) fn steps(dtype: DType, k: usize) -> usize {
    k.div_ceil(STEP_BYTES / dtype.size())
}

/// Products that make up one where operands are not K-major: wgmma transposes 16-bit operands only, so f32 is split into two bf16
/// (`wgmma_split.cuh`), three products at twice TF32's rate.
pub(crate) fn products(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1.5 } else { 1.0 }
}

/// Offers every plan for elements of `element_bytes` with the clocks that the model expects; none where others are to compute it.
pub(crate) fn plans(
    num_sms: usize,
    element_bytes: usize,
    tiles: &[WgmmaTile],
    group: &GroupedGemm,
    offer: &mut dyn FnMut(f64, WgmmaPlan),
) {
    let GroupedGemm { shapes, batch, macs, can_split_k, products } = *group;
    if macs < WGMMA_MIN_MACS || shapes.iter().any(|s| s.m.max(s.n).max(s.k_steps) >= INDEX_LIMIT) {
        return;
    }
    let Some(longest) = shapes.iter().map(|s| s.k_steps).max() else { return };
    for &tile in tiles {
        // The last CTA of a cluster may have no rows.
        let rows = |s: &GemmShape| s.m.div_ceil(tile.cluster_rows()) * tile.cluster;
        let count = |s: &GemmShape| rows(s).saturating_mul(s.n.div_ceil(tile.columns())).saturating_mul(batch);
        let all: usize = shapes.iter().map(count).fold(0, usize::saturating_add);
        // mma.sync has at best half of wgmma's rate, so half of a tile may be padding.
        let padded = |s: &GemmShape| {
            count(s) as f64 * (tile.rows() * tile.columns() * STEP_BYTES / element_bytes) as f64 * s.k_steps as f64
        };
        if all >= INDEX_LIMIT || (macs as f64) < 0.5 * shapes.iter().map(padded).sum::<f64>() {
            continue;
        }
        for splits in SPLITS {
            // Splits of fewer steps would not fill the pipeline.
            if splits > 1 && (!can_split_k || longest / splits < 4) {
                break;
            }
            let plan = WgmmaPlan::new(tile, splits, longest, num_sms);
            let slots = (plan.clusters() * tile.cluster) as f64;
            // Of `count` tiles, those on one SM share its bandwidth.
            let clocks_of = |steps: usize, count: usize| {
                let together = (count as f64 / num_sms as f64).ceil().clamp(1.0, plan.ctas_per_sm as f64);
                // One warpgroup alone does not keep the tensor cores busy.
                let alone = if together * (tile.wg_m * tile.wg_n) as f64 > 1.0 { 1.0 } else { 1.3 };
                let step = (alone * products * tile.mma_clocks()).max(tile.load_clocks()) * together;
                steps as f64 * step + tile.tile_clocks()
            };
            let work_tiles = |s: &GemmShape| count(s).saturating_mul(plan.splits);
            let all = all.saturating_mul(plan.splits);
            let waves = |steps: usize, count: usize| (count as f64 / slots).ceil() * clocks_of(steps, count);
            let main = if shapes.iter().all(|s| s.k_steps == longest) {
                waves(plan.steps_per_split, all)
            } else {
                // Long tiles come first, and short ones fill the SMs that they leave free.
                let long = shapes.iter().filter(|s| s.k_steps == longest).map(work_tiles).sum();
                let part = |s: &GemmShape| work_tiles(s) as f64 * clocks_of(s.k_steps.div_ceil(plan.splits), all);
                let last = shapes.iter().map(|s| s.k_steps).min().unwrap_or(0).div_ceil(plan.splits);
                waves(plan.steps_per_split, long).max(shapes.iter().map(part).sum::<f64>() / slots + clocks_of(last, all) / 2.0)
            };
            // Another kernel reads the workspace and writes the result.
            let elements: f64 = shapes.iter().map(|s| s.m as f64 * s.n as f64).sum();
            let workspace = elements * batch as f64 * (plan.splits as f64 * 8.0 + 4.0);
            let reduce = workspace / (num_sms as f64 * DRAM_BYTES_PER_CLOCK) + LAUNCH_CLOCKS;
            offer(main + if plan.splits > 1 { reduce } else { 0.0 }, plan);
        }
    }
}

impl WgmmaPlan {
    /// For sums of at most `k_steps` steps.
    pub(crate) fn new(tile: WgmmaTile, splits: usize, k_steps: usize, num_sms: usize) -> Self {
        let (ctas_per_sm, stages) = tile.occupancy();
        let steps_per_split = k_steps.div_ceil(splits.max(1)).max(1);
        let splits = k_steps.div_ceil(steps_per_split).max(1);
        WgmmaPlan { tile, stages, ctas_per_sm, splits, steps_per_split, num_sms }
    }

    /// The plan in the autotuner's numbers.
    pub(crate) fn numbers(&self) -> [u32; 4] {
        let WgmmaTile { wg_m, wg_n, wg_tile_n, cluster } = self.tile;
        [wg_m << 8 | wg_n, wg_tile_n, self.splits, cluster].map(|v| v as u32)
    }

    /// A test's plan: so few SMs that CTAs take several tiles.
    #[cfg(test)]
    pub(crate) fn forced(force: &crate::testing::Force, tiles: &[WgmmaTile], group: &GroupedGemm, num_sms: usize) -> Self {
        let k_steps = group.shapes.iter().map(|s| s.k_steps).max().unwrap_or(0);
        let splits = if group.can_split_k { force.splits } else { 1 };
        WgmmaPlan::new(tiles[force.tile[0] % tiles.len()], splits, k_steps, num_sms.min(3))
    }

    /// The kernel's `-D`, with its own.
    pub(crate) fn defines(&self, dtype: DType, own: &[(&'static str, usize)]) -> Defines {
        self.tile.defines(dtype, self.stages, self.ctas_per_sm, own)
    }

    /// Clusters that the device holds. (SMs come in twos, so that clusters of two leave none idle.)
    fn clusters(&self) -> usize {
        (self.num_sms * self.ctas_per_sm / self.tile.cluster).max(1)
    }

    /// The persistent grid for `all` tiles of a cluster: as many CTAs as the device holds.
    pub(crate) fn grid(&self, all: usize) -> [u32; 3] {
        [(all.min(self.clusters()) * self.tile.cluster) as u32, 1, 1]
    }

    /// Threads of a CTA.
    pub(crate) fn threads(&self) -> [u32; 3] {
        self.tile.threads()
    }

    /// Bytes of dynamic shared memory.
    pub(crate) fn smem_bytes(&self) -> u32 {
        self.tile.smem_bytes(self.stages * self.tile.stage_bytes()) as u32
    }
}

/// The map with the swizzle that the kernels expect, f32 rounded to TF32.
pub(crate) fn swizzled(map: TensorMap, dtype: DType) -> TensorMap {
    let map = map.swizzle(Swizzle::Span128);
    if dtype == DType::F32 { map.tf32() } else { map }
}

/// Whether TMA reads rows that are these numbers of elements apart.
pub(crate) fn aligned(dtype: DType, strides: &[usize]) -> bool {
    strides.iter().all(|s| (s * dtype.size()).is_multiple_of(16))
}

#[cfg(test)]
mod tests {
    use super::{
        super::wgmma_tile::{cluster_of_2, tile},
        *,
    };

    /// Shared memory and registers hold every tile, with enough stages to hide the way from memory.
    #[test]
    fn tiles_fit() {
        let (matmul, conv) = (include_str!("../../../kernels/matmul_wgmma.cu"), include_str!("../../../kernels/conv2d_wgmma.cu"));
        let all = [(WgmmaTile::GEMM, matmul), (WgmmaTile::IM2COL, conv), (WgmmaTile::IM2COL_WGRAD, conv)];
        for (tile, source) in all.iter().flat_map(|(tiles, source)| tiles.iter().map(move |t| (*t, source))) {
            let (ctas, stages) = tile.occupancy();
            let threads = (tile.wg_m * tile.wg_n * 128 + 32) * ctas;
            assert!(
                stages >= 3 && ctas * (tile.smem_bytes(stages * tile.stage_bytes()) + 2048) <= 228 << 10,
                "{tile:?}: {stages}"
            );
            // The sums, and what else a thread needs; registers come by 8, warps are spread over four places.
            assert!(tile.wg_tile_n / 2 + 28 <= 16384 / 32 / threads.div_ceil(128) / 8 * 8, "{tile:?}");
            let WgmmaTile { wg_m, wg_n, wg_tile_n, cluster } = tile;
            let mut variant = format!("DOWN={wg_m}; ACROSS={wg_n}; COLS={wg_tile_n}; STAGES={stages}; RESIDENT={ctas};");
            if cluster > 1 {
                variant += &format!(" CLUSTER={cluster};");
            }
            assert!(source.contains(&variant), "not among the kernel's variants: {variant}");
            // A part of the columns is whole boxes of 64, where the operand is not K-major.
            assert!(cluster == 1 || tile.loaded_columns().is_multiple_of(64), "{tile:?}");
            let unit = if WgmmaTile::IM2COL_WGRAD.contains(&tile) {
                64
            } else if WgmmaTile::GEMM.contains(&tile) {
                32
            } else {
                8
            };
            assert!(tile.wg_tile_n % unit == 0, "{tile:?}");
        }
    }

    fn choice(tiles: &[WgmmaTile], m: usize, n: usize, k: usize, can_split_k: bool) -> Option<WgmmaPlan> {
        let shapes = [GemmShape { m, n, k_steps: steps(DType::BF16, k) }];
        let group = GroupedGemm { shapes: &shapes, batch: 1, macs: m * n * k, can_split_k, products: 1.0 };
        let mut best: Option<(f64, WgmmaPlan)> = None;
        plans(132, 2, tiles, &group, &mut |cost, plan| {
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, plan));
            }
        });
        best.map(|(_, plan)| plan)
    }

    #[test]
    fn large_products_take_large_tiles_and_small_ones_fill_the_device() {
        assert_eq!(choice(WgmmaTile::GEMM, 8192, 8192, 8192, true).map(|p| (p.tile, p.splits)), Some((cluster_of_2(256), 1)));
        let skinny = choice(WgmmaTile::GEMM, 256, 256, 147_456, true).unwrap();
        assert!(256 / skinny.tile.rows() * 256 / skinny.tile.columns() * skinny.splits >= 100, "{skinny:?}");
        // 64 channels are no work for 128 rows.
        assert_eq!(choice(WgmmaTile::IM2COL, 64, 147_456, 576, false).unwrap().tile.wg_m, 1);
        // A step of a pair takes the L2 cache as long as the tensor cores; where one of two blocks has no rows, it is no pair.
        assert_eq!(
            (cluster_of_2(256).load_clocks(), cluster_of_2(256).mma_clocks(), tile(2, 1, 256).load_clocks()),
            (1024.0, 1024.0, 1536.0)
        );
        assert_eq!(choice(WgmmaTile::GEMM, 128, 65536, 4096, true).map(|p| p.tile.cluster), Some(1));
        assert_eq!(choice(WgmmaTile::GEMM, 16, 8192, 8192, true), None);
        assert_eq!(choice(WgmmaTile::GEMM, 256, 256, 256, true), None);
    }
}
