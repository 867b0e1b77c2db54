//! The cost model of the mma.sync kernels (`kernels/mma.cuh`), for GEMM and implicit GEMM.
//!
//! | | sm_75 | sm_80 and later |
//! | --- | --- | --- |
//! | f16 | mma, f32 accumulators | mma, f32 accumulators |
//! | bf16 | SIMT | mma, f32 accumulators |
//! | f32, [`Precision::F32`] | SIMT | 3xTF32 where that is faster, never less accurate |
//! | f32, [`Precision::Tf32`] | SIMT | TF32 |
//! | f64 | SIMT | SIMT |
//!
//! Small problems, and those whose extents 32 bits do not hold, are left to SIMT everywhere.

use crate::{
    Array, DType, Result,
    cuda::Define,
    gemm::{
        arch::{
            Arch, DRAM_BYTES_PER_CLOCK, INDEX_LIMIT, LAUNCH_CLOCKS, MMA_TILE_CLOCKS, MMA_TILE_ELEMENTS_PER_CLOCK, MmaMath,
            SMEM_RESERVED_PER_CTA, SPLITS, TF32X3_COST,
        },
        split_k::{split_k_reduce, splits, workspace},
    },
    precision::Precision,
};

/// Tiles by falling size: `TILE_M`, `TILE_N`, the CTAs that registers allow on an SM for 16- and 32-bit types (`RESIDENT`), and what
/// part of an SM's tensor throughput such CTAs reach when it is full of them.
const TILES: [(usize, usize, [usize; 2], f64); 3] = [(128, 128, [2, 1], 1.0), (128, 64, [3, 2], 0.85), (64, 64, [4, 3], 0.65)];
/// Bytes of an operand's row in shared memory: one step of the main loop.
const STEP_BYTES: usize = 128;

/// A product (m, k) by (k, n), `batch` times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GemmSize {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Products side by side: batches, groups, phases of a strided dgrad.
    pub batch: usize,
    /// Bytes of the widest loads that the operands' addresses allow: 16, 8, 4, or 0 for single elements.
    pub load_bytes: usize,
}

/// How mma.sync computes a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MmaPlan {
    /// `TILE_M` and `TILE_N` of a CTA.
    pub tile: [usize; 2],
    pub stages: usize,
    pub load_bytes: usize,
    pub math: MmaMath,
    pub splits: usize,
    pub k_per_split: usize,
    element_bytes: usize,
}

/// The cheapest plan by the model, and its clocks.
pub(crate) fn cheapest(arch: Arch, dtype: DType, precision: Precision, size: GemmSize) -> Option<(f64, MmaPlan)> {
    let mut best: Option<(f64, MmaPlan)> = None;
    plans(arch, dtype, precision, size, &mut |cost, plan| {
        if best.is_none_or(|(least, _)| cost < least) {
            best = Some((cost, plan));
        }
    });
    best
}

/// Offers every plan with the clocks that the model expects; none where SIMT is to compute it.
pub(crate) fn plans(arch: Arch, dtype: DType, precision: Precision, size: GemmSize, offer: &mut dyn FnMut(f64, MmaPlan)) {
    let GemmSize { m, n, k, batch, load_bytes } = size;
    // Below, an instruction's tile would be mostly empty, or a vector makes the product memory-bound.
    if m < 8 || n < 8 || k < 16 || m >= INDEX_LIMIT || n >= INDEX_LIMIT || k >= INDEX_LIMIT || batch == 0 || batch > 65535 {
        return;
    }
    let Some(math) = arch.mma_math(dtype, precision, k) else { return };
    let element_bytes = dtype.size();
    let k_per_step = STEP_BYTES / element_bytes;
    let steps = k.div_ceil(k_per_step);
    let simt_splits = splits(k, m.div_ceil(64).saturating_mul(n.div_ceil(64)).saturating_mul(batch)).0;
    for &(tile_m, tile_n, ctas_by_registers, efficiency) in &TILES {
        let small = (tile_m, tile_n) == (64, 64);
        // Narrow loads cost more than a large tile would save; without cp.async (sm_75) a step waits in registers.
        if (load_bytes < 16 && !small) || (arch.capability < 80 && tile_n > 64) {
            continue;
        }
        let room = |ctas: usize| arch.smem_per_sm() / ctas - if arch.capability < 80 { 0 } else { SMEM_RESERVED_PER_CTA };
        let stages = |ctas: usize| if arch.capability < 80 { 2 } else { (room(ctas) / ((tile_m + tile_n) * STEP_BYTES)).min(3) };
        let limit = if load_bytes < 16 { 2 } else { ctas_by_registers[usize::from(element_bytes == 4)] };
        let fits = |&ctas: &usize| stages(ctas) >= 2 && smem_bytes([tile_m, tile_n], stages(ctas)) <= room(ctas);
        let Some(ctas_per_sm) = (1..=limit).rev().find(fits) else { continue };
        let tiles = m.div_ceil(tile_m).saturating_mul(n.div_ceil(tile_n)).saturating_mul(batch);
        for splits in SPLITS {
            // Splits of fewer steps would not fill the pipeline.
            if splits > 1 && steps / splits < 4 {
                break;
            }
            // Sums of one sign round by the root of their length. Tensor cores add eight terms at once, so half of SIMT's splits do.
            if math == MmaMath::Tf32x3 && splits * 2 < simt_splits {
                continue;
            }
            let steps_per_split = steps.div_ceil(splits);
            let splits = steps.div_ceil(steps_per_split);
            let ctas = tiles.saturating_mul(splits) as f64;
            let sms = arch.num_sms as f64;
            // An SM multiplies a tile's step at its full rate if enough warps are there.
            let together = (ctas / sms).ceil().clamp(1.0, ctas_per_sm as f64);
            let warps = together * if element_bytes == 4 && tile_n == 128 { 8.0 } else { 4.0 };
            let filled = efficiency * (warps / (warps + 2.5)) / (8.0 / 10.5);
            let step = (tile_m * tile_n) as f64 / MMA_TILE_ELEMENTS_PER_CLOCK / filled.min(1.0)
                * if math == MmaMath::Tf32x3 { TF32X3_COST } else { 1.0 };
            let waves = (ctas / (sms * together)).ceil();
            let products = waves * together * (steps_per_split as f64 * step + MMA_TILE_CLOCKS);
            // Another kernel reads the workspace and writes the result.
            let reduce =
                (m * n) as f64 * batch as f64 * (splits as f64 * 8.0 + 4.0) / (sms * DRAM_BYTES_PER_CLOCK) + LAUNCH_CLOCKS;
            let cost = products + if splits > 1 { reduce } else { 0.0 };
            let (tile, k_per_split) = ([tile_m, tile_n], steps_per_split * k_per_step);
            offer(cost, MmaPlan { tile, stages: stages(ctas_per_sm), load_bytes, math, splits, k_per_split, element_bytes });
        }
    }
}

/// Bytes of shared memory of a CTA: the stages of the main loop, then the tile of accumulators in their place.
fn smem_bytes(tile: [usize; 2], stages: usize) -> usize {
    (stages * (tile[0] + tile[1]) * STEP_BYTES).max(tile[0] * (tile[1] + 8) * 4)
}

impl MmaPlan {
    /// The plan in the autotuner's numbers.
    pub(crate) fn numbers(&self) -> [u32; 4] {
        [self.tile[0], self.tile[1], self.stages, self.k_per_split].map(|v| v as u32)
    }

    /// A test's plan, on any chip and for any size.
    #[cfg(test)]
    pub(crate) fn forced(force: &crate::testing::Force, dtype: DType, precision: Precision, size: GemmSize) -> Self {
        let tf32x3 = dtype == DType::F32 && precision == Precision::F32;
        let k_per_step = STEP_BYTES / dtype.size();
        let k_per_split = size.k.div_ceil(k_per_step).div_ceil(force.splits.max(1)).max(1) * k_per_step;
        MmaPlan {
            // The kernels are compiled for narrow loads with small tiles.
            tile: if size.load_bytes < 16 { [64, 64] } else { force.tile },
            stages: force.stages,
            load_bytes: size.load_bytes,
            math: if tf32x3 { MmaMath::Tf32x3 } else { MmaMath::Native },
            splits: size.k.div_ceil(k_per_split).max(1),
            k_per_split,
            element_bytes: dtype.size(),
        }
    }

    /// The kernel's `-D`, with two of its own.
    pub(crate) fn defines(&self, dtype: DType, own: [(&'static str, usize); 2]) -> Vec<(&'static str, Define)> {
        let int = |v: usize| Define::Int(v as i64);
        let mut all = vec![
            ("scalar_t", dtype.into()),
            ("EXACT", int((self.math == MmaMath::Tf32x3).into())),
            ("TILE_M", int(self.tile[0])),
            ("TILE_N", int(self.tile[1])),
            ("STAGES", int(self.stages)),
            ("WIDTH", int(self.load_bytes)),
        ];
        all.extend(own.into_iter().filter(|(name, _)| !name.is_empty()).map(|(name, v)| (name, int(v))));
        all
    }

    /// Tiles of an (m, n) product.
    pub(crate) fn tiles(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.tile[0]).saturating_mul(n.div_ceil(self.tile[1]))
    }

    /// Threads of a CTA.
    pub(crate) fn threads(&self) -> u32 {
        if self.element_bytes == 4 && self.tile[1] == 128 { 256 } else { 128 }
    }

    /// Bytes of dynamic shared memory.
    pub(crate) fn smem_bytes(&self) -> u32 {
        smem_bytes(self.tile, self.stages) as u32
    }

    /// Memory for the partial sums of `y`, if there are several splits.
    pub(crate) fn workspace(&self, y: &Array) -> Result<Option<Array>> {
        workspace(y, self.splits)
    }

    /// Reduces the splits in their order.
    pub(crate) fn reduce(&self, y: &Array, partials: Option<Array>, bias: Option<&Array>, cols: usize) -> Result<()> {
        let define = [("scalar_t", y.dtype().into())];
        partials.map_or(Ok(()), |partials| split_k_reduce(y, &partials, bias, self.splits, cols, "sum_parts.cu", &define))
    }
}

/// The widest loads for elements of `size` bytes that begin at multiples of each of `strides` elements.
pub(crate) fn load_bytes(size: usize, strides: impl IntoIterator<Item = usize>) -> usize {
    let aligned =
        |widest: usize, s: usize| [16, 8, 4].into_iter().find(|w| *w <= widest && (s * size).is_multiple_of(*w)).unwrap_or(0);
    let all = strides.into_iter().fold(16, aligned);
    if all >= size { all } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_as_wide_as_all_strides_allow() {
        assert_eq!(load_bytes(2, [8, 64]), 16);
        assert_eq!(load_bytes(2, [8, 4]), 8);
        assert_eq!(load_bytes(2, [6, 0]), 4);
        assert_eq!(load_bytes(2, [8, 7]), 0);
        assert_eq!(load_bytes(4, [7]), 4);
        assert_eq!(load_bytes(4, [6, 12]), 8);
    }

    fn choose(arch: Arch, dtype: DType, precision: Precision, size: GemmSize) -> Option<MmaPlan> {
        cheapest(arch, dtype, precision, size).map(|(_, plan)| plan)
    }

    fn on(capability: usize, dtype: DType, precision: Precision, k: usize) -> Option<MmaPlan> {
        let size = GemmSize { m: 512, n: 512, k, batch: 1, load_bytes: 16 };
        choose(Arch { capability, num_sms: 108 }, dtype, precision, size)
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
            assert_eq!(
                on(capability, F32, Precision::F32, 512).is_some_and(|p| p.math == MmaMath::Tf32x3),
                [80, 90, 100].contains(&capability)
            );
            assert!(on(capability, F32, Precision::F32, 512).is_none_or(|p| p.math == MmaMath::Tf32x3));
            assert!(on(capability, F32, Precision::F32, 127).is_none());
        }
    }

    /// Every plan fits into the chip, and is one that the kernels' `variants` lines name.
    #[test]
    fn plans_fit() {
        for capability in [75, 80, 86, 89, 90, 100, 120] {
            let arch = Arch { capability, num_sms: 82 };
            for dtype in [DType::F16, DType::BF16, DType::F32] {
                for (m, n) in [(8, 8), (64, 64), (65, 300), (1000, 24), (256, 256), (8192, 8192)] {
                    for (k, batch, width) in [(16, 1, 16), (64, 500, 16), (4608, 1, 16), (100_000, 1, 4), (784, 3, 0)] {
                        let load_bytes = if dtype == DType::F32 { width.max(4) } else { width };
                        let size = GemmSize { m, n, k, batch, load_bytes };
                        let Some(p) = choose(arch, dtype, Precision::Tf32, size) else { continue };
                        assert!(
                            smem_bytes(p.tile, p.stages) <= arch.smem_per_sm() && (2..=3).contains(&p.stages),
                            "{size:?}: {p:?}"
                        );
                        assert!(p.load_bytes == 16 || p.tile == [64, 64], "{size:?}: {p:?}");
                        assert!(capability >= 80 || (p.stages == 2 && p.tile[1] == 64), "{size:?}: {p:?}");
                        assert!(p.k_per_split * p.splits >= k && p.k_per_split * (p.splits - 1) < k, "{size:?}: {p:?}");
                    }
                }
            }
        }
    }

    /// Large products take large tiles, small ones are spread over the device.
    #[test]
    fn the_model_fills_the_device() {
        let arch = Arch { capability: 90, num_sms: 132 };
        let size = |m, n, k| GemmSize { m, n, k, batch: 1, load_bytes: 16 };
        let large = choose(arch, DType::BF16, Precision::F32, size(8192, 8192, 8192)).unwrap();
        assert_eq!((large.tile, large.splits), ([128, 128], 1));
        let skinny = choose(arch, DType::BF16, Precision::F32, size(64, 576, 147_456)).unwrap();
        assert!(skinny.tiles(64, 576) * skinny.splits >= 100, "{skinny:?}");
        let small = choose(arch, DType::BF16, Precision::F32, size(256, 256, 784)).unwrap();
        assert_eq!(small.tile, [64, 64]);
    }
}
