//! How the block's kernels share images out: a model of what an SM holds and how long it takes, as in [`crate::conv::first_layer_plan`].

use crate::{
    conv::{
        first_layer_plan::{BandPlan, FILTERS, FirstLayerMath, FirstLayerWork, TAPS, WARPS},
        problem::ConvProblem,
    },
    cpu::pooling::PoolShape,
    gemm::{
        arch::{FIRST_LAYER_DRAM_BYTES_PER_CLOCK, SMEM_RESERVED_PER_CTA, STEM_BLOCK_LAUNCH_CLOCKS},
        fast_divmod::FastDivmod,
    },
};

/// Bytes from and to memory for each clock of a multiprocessor, about.
const BANDWIDTH: f64 = FIRST_LAYER_DRAM_BYTES_PER_CLOCK;

/// Clocks that a launch takes.
const LAUNCH: f64 = STEM_BLOCK_LAUNCH_CLOCKS;

/// The `Windows` of `stem_pool.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Windows {
    sizes: [i32; 8],
    rows: i32,
    bands: i32,
    all: i32,
    pitch: i32,
    by: [FastDivmod; 6],
}

/// The pooling: its sizes and those of y.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pooling {
    pub(super) s: PoolShape,
    pub(super) y: [usize; 4],
}

/// How y is computed, or (`Weight`) its gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bands {
    /// As [`FirstLayerWork::sizes`] takes it; `rows` are the convolution's.
    pub(super) plan: BandPlan,
    /// Rows of y in a band, or of the convolution's output.
    pub(super) rows: usize,
    /// From one group of filters to the next, in elements or words.
    pub(super) pitch: usize,
    pub(super) shared: usize,
}

/// Warps' tiles of the gradients' products: 32 filters or taps by 64 taps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Units {
    /// Of a block; how often the bands are gone through; groups of filters that a block has at most.
    pub(super) warps: usize,
    pub(super) splits: usize,
    pub(super) most: usize,
}

/// The best by the model of `plan(rows)` for as many rows as there may be.
fn fastest(rows: usize, plan: impl Fn(usize) -> Option<Bands>) -> Option<Bands> {
    #[cfg(test)]
    if let Some(force) = crate::testing::forced_for("stem_block") {
        let plan = (1..=force.tile[0].min(rows)).rev().find_map(plan)?;
        return Some(Bands { plan: BandPlan { blocks: force.splits, ..plan.plan }, ..plan });
    }
    (1..=rows).take(64).filter_map(plan).min_by(|a, b| a.plan.time.total_cmp(&b.plan.time))
}

/// Clocks of a step of k for a warp's tile.
fn step(job: &FirstLayerWork) -> f64 {
    match job.math {
        FirstLayerMath::Native => 32.0,
        FirstLayerMath::Tf32x3 => 110.0,
        FirstLayerMath::Simt => 160.0,
    }
}

/// Blocks along grid.x, and how long it takes when a band takes so many clocks of a multiprocessor.
fn spread(job: &FirstLayerWork, resident: usize, splits: usize, bands: usize, work: f64) -> (usize, f64) {
    let blocks = (job.arch.num_sms * resident / splits).clamp(1, bands);
    let together = (blocks * splits).div_ceil(job.arch.num_sms) as f64;
    let busy = together / (together + 0.75);
    (blocks, bands.div_ceil(blocks) as f64 * (together * work / busy + 2000.0 / together))
}

impl Pooling {
    /// Whether the block's kernels take less time than the separate ops by the model, in which all that is between those goes through
    /// memory. With many taps their products, which have no part in the separate ops, take longer than that.
    pub(super) fn is_faster(&self, job: &FirstLayerWork, back: Option<&FirstLayerWork>) -> bool {
        let (Some(moments), Some(forward), Some(separate)) = (self.bn_stats(job), self.forward(job), job.fastest()) else {
            return false;
        };
        let arch = &job.arch;
        // Once for each pass over what the convolution gives: two to normalize and one to pool; backward one of the pooling and seven of
        // the normalization.
        let pass = (job.s.y_len() * job.size) as f64 / (arch.num_sms as f64 * BANDWIDTH);
        let Some(back) = back else { return forward.plan.time < separate.time + 3.0 * pass + 2.0 * LAUNCH };
        let (Some(gradients), Some(weight)) = (self.backward(back, &Self::units(back)), back.fastest()) else { return false };
        let fused = moments.time + forward.plan.time + gradients.plan.time;
        fused < separate.time + weight.time + 11.0 * pass + 4.0 * LAUNCH
    }

    /// The convolution's statistics.
    pub(super) fn bn_stats(&self, job: &FirstLayerWork) -> Option<BandPlan> {
        #[cfg(test)]
        if let Some(force) = crate::testing::forced_for("stem_block") {
            let groups = job.groups().into_iter().next()?;
            let plan = (1..=force.tile[0].min(job.s.out_h())).rev().find_map(|rows| job.plan(rows, groups))?;
            return Some(BandPlan { blocks: force.splits, ..plan });
        }
        job.fastest()
    }

    /// y.
    pub(super) fn forward(&self, job: &FirstLayerWork) -> Option<Bands> {
        let groups = job.groups();
        fastest(self.y[2], |rows| {
            let plans = groups.iter().filter_map(|&groups| self.forward_by(job, rows, groups));
            plans.min_by(|a, b| a.plan.time.total_cmp(&b.plan.time))
        })
    }

    fn forward_by(&self, job: &FirstLayerWork, rows: usize, groups: usize) -> Option<Bands> {
        let (s, steps, split) = (job.s, job.steps().1, job.math == FirstLayerMath::Tf32x3);
        let conv = ((rows - 1) * self.s.stride[0] + self.s.kernel[0]).min(s.out_h());
        let (pixels, staged) = (conv * s.out_w(), job.staged(conv));
        // Two groups' 16-bit elements of a pixel then lie in different banks.
        let pitch = pixels * FILTERS + if job.size == 2 && pixels % 2 == 0 { FILTERS } else { 0 };
        let fragments = steps * if split { 2048 } else { 1024 };
        let shared = groups * (fragments + 3 * FILTERS * 4 + pitch * job.size) + steps * 32 + staged.bytes;
        let resident = (job.arch.smem_per_sm() / (shared + SMEM_RESERVED_PER_CTA)).min(if split { 2 } else { 4 });
        if resident == 0 {
            return None;
        }
        let (splits, bands) = (job.splits(groups), self.y[0] * self.y[2].div_ceil(rows));
        let tiles = (pixels.div_ceil(TAPS * WARPS) * WARPS * groups) as f64;
        let pooled = (rows * self.y[3] * groups * FILTERS) as f64;
        let taps = (self.s.kernel[0] * self.s.kernel[1]) as f64;
        // Tiles are normalized and stored beside the products; each element under a window is looked at by two instructions and more.
        let work = tiles * (steps as f64 * step(job) + 40.0) + pooled * (taps * 0.02 + (job.size + 1) as f64 / BANDWIDTH);
        let work = work + (staged.rows * s.w * s.c) as f64 * 0.2;
        let (blocks, time) = spread(job, resident, splits, bands, work);
        let time = time + (groups * steps) as f64 * 100.0;
        Some(Bands { plan: BandPlan { rows: conv, groups, blocks, splits, time }, rows, pitch, shared })
    }

    /// Of the gradients.
    pub(super) fn units(job: &FirstLayerWork) -> Units {
        let (filters, taps) = (job.s.o.div_ceil(FILTERS), job.taps());
        let columns = taps.div_ceil(TAPS);
        // Of the taps' products, what is not below the diagonal; the last 32 rows may be empty.
        let empty = usize::from(taps.div_ceil(FILTERS) < 2 * columns);
        let all = filters * columns + columns * (columns + 1) - empty;
        let splits = all.div_ceil(WARPS);
        let warps = all.div_ceil(splits);
        let own = |i: usize| {
            let (from, to) = (i * warps, ((i + 1) * warps).min(filters * columns));
            if from < to { (to - 1) / columns + 1 - from / columns } else { 0 }
        };
        Units { warps, splits, most: (0..splits).map(own).max().unwrap_or(0) }
    }

    /// The gradients.
    pub(super) fn backward(&self, job: &FirstLayerWork, units: &Units) -> Option<Bands> {
        fastest(job.s.out_h(), |rows| self.backward_by(job, units, rows))
    }

    fn backward_by(&self, job: &FirstLayerWork, units: &Units, rows: usize) -> Option<Bands> {
        let (s, steps, split, &Units { warps, splits, most }) = (job.s, job.steps().1, job.math == FirstLayerMath::Tf32x3, units);
        let (line, staged) = (line_of(job, rows), job.staged(rows));
        // Lanes that write filters of neighbouring groups meet different banks.
        let pitch = FILTERS * line + 16;
        let shared = staged.bytes + most * pitch * if split { 8 } else { 4 };
        let resident = (job.arch.smem_per_sm() / (shared + SMEM_RESERVED_PER_CTA)).min(3);
        if resident == 0 {
            return None;
        }
        let bands = s.n * s.out_h().div_ceil(rows);
        // Not all of a grid's columns have filters.
        let filters = s.o.div_ceil(FILTERS) * job.taps().div_ceil(TAPS);
        let gathers = filters.div_ceil(warps) as f64 / splits as f64;
        let elements = (rows * s.out_w() * most * FILTERS) as f64 * gathers;
        let work = (rows * steps * warps) as f64 * step(job) + elements * 0.1 + (staged.rows * s.w * s.c) as f64 * 0.2;
        let (blocks, time) = spread(job, resident, splits, bands, work);
        let plan = BandPlan { rows, groups: 1, blocks, splits, time };
        Some(Bands { plan, rows, pitch, shared })
    }

    /// `octets` groups of eight filters are a block's.
    pub(super) fn windows(&self, s: &ConvProblem, bands: &Bands, octets: usize, words: usize) -> Windows {
        let int = |v: usize| v as i32;
        let ([_, _, oh, ow], p) = (self.y, &self.s);
        let count = oh.div_ceil(bands.rows);
        Windows {
            sizes: [oh, ow, p.kernel[0], p.kernel[1], p.stride[0], p.stride[1], p.padding[0], p.padding[1]].map(int),
            rows: int(bands.rows),
            bands: int(count),
            all: int(s.n * count),
            pitch: int(bands.pitch),
            by: [ow, count, octets.max(1), p.stride[0], p.stride[1], words.max(1)].map(FastDivmod::new),
        }
    }
}

/// Words of a filter's rows in shared memory: eight lanes' filters then lie in different banks.
pub(super) fn line_of(job: &FirstLayerWork, rows: usize) -> usize {
    rows * job.steps().1 * 8 + 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layout, conv::first_layer_plan::FirstLayerPass, gemm::arch::Arch, ops::PoolOptions};

    /// ResNet's first layers on Fashion-MNIST at 96 by 96, and on ImageNet.
    fn layers() -> [(ConvProblem, Pooling); 2] {
        [(256, 1, 96), (64, 3, 224)].map(|(n, c, side)| {
            let (kernel, stride, padding) = ([7; 2], [2; 2], [3; 4]);
            let s = ConvProblem { n, c, h: side, w: side, o: 64, kernel, stride, padding, dilation: [1; 2], groups: 1 };
            let pool = PoolOptions::new(3).stride(2).padding(1).plan("test", &[n, 64, side / 2, side / 2]);
            let (pool, y) = pool.expect("a pooling");
            (s, Pooling { s: pool, y })
        })
    }

    /// Plans fit and fill the chip; what overlapping bands compute twice is less than a third, and parts of dw are small beside dy.
    #[test]
    fn plans_fit() {
        for (s, pool) in &layers() {
            for (size, math) in [(2, FirstLayerMath::Native), (4, FirstLayerMath::Native), (4, FirstLayerMath::Tf32x3)] {
                let arch = Arch { capability: 90, num_sms: 132 };
                let job = |pass| FirstLayerWork { s, pass, size, math, arch };
                let (y, dw) =
                    (job(FirstLayerPass::Fprop(Layout::ChannelsLast)), job(FirstLayerPass::Wgrad(Layout::ChannelsLast, true)));
                let (once, forward, units) = (pool.bn_stats(&y).unwrap(), pool.forward(&y).unwrap(), Pooling::units(&dw));
                let backward = pool.backward(&dw, &units).unwrap();
                let us = |clocks: f64| clocks / 1755.0;
                // With three channels there are 147 taps, whose products may take longer than what they spare.
                let (both, alone) = (pool.is_faster(&y, Some(&dw)), pool.is_faster(&y, None));
                println!("faster: {both}, in prediction {alone}");
                assert!((both && alone) || s.c == 3, "{math:?} {size}");
                assert!(!both || math == FirstLayerMath::Native || s.c == 1, "{math:?} {size}");
                let times = [once.time, forward.plan.time, backward.plan.time].map(us);
                println!(
                    "{}x{}x{} {math:?} {size}: {times:.0?} us\n  {once:?}\n  {forward:?}\n  {units:?} {backward:?}",
                    s.n, s.c, s.h
                );
                for (bands, least) in [(&forward, 100), (&backward, 100)] {
                    assert!(
                        bands.shared + 1024 <= arch.smem_per_sm() && bands.plan.blocks * bands.plan.splits >= least,
                        "{bands:?}"
                    );
                }
                let twice = forward.plan.rows as f64 / (forward.rows * pool.s.stride[0]) as f64;
                assert!(twice < if math == FirstLayerMath::Tf32x3 { 1.6 } else { 1.34 }, "{forward:?}: {twice}");
                let parts = backward.plan.blocks * (s.o + dw.taps()) * dw.taps() * 4;
                assert!(parts < pool.y.iter().product::<usize>() * 3, "{backward:?}: {parts} bytes");
            }
        }
    }

    /// Each pair of 32 rows and 64 taps is one unit's, as `unit_of` in `stem_pool_weight.cu` counts them.
    #[test]
    fn units_cover_the_products() {
        for (o, c, kernel) in [(64, 1, 7), (64, 3, 7), (33, 3, 11), (6, 1, 5), (130, 2, 3), (32, 1, 6), (8, 4, 4)] {
            let (stride, padding) = ([1; 2], [0; 4]);
            let s = ConvProblem { n: 1, c, h: 20, w: 20, o, kernel: [kernel; 2], stride, padding, dilation: [1; 2], groups: 1 };
            let arch = Arch { capability: 90, num_sms: 132 };
            let job = FirstLayerWork {
                s: &s,
                pass: FirstLayerPass::Wgrad(Layout::ChannelsLast, true),
                size: 2,
                math: FirstLayerMath::Native,
                arch,
            };
            let Units { warps, splits, most } = Pooling::units(&job);
            let (taps, filters) = (job.taps(), o.div_ceil(FILTERS));
            let columns = taps.div_ceil(TAPS);
            // Rows of taps that are not below the diagonal, for each 64 columns.
            let pairs =
                (0..columns).map(|column| (0..taps.div_ceil(FILTERS)).filter(|row| row / 2 <= column).count()).sum::<usize>();
            assert!(warps * splits >= filters * columns + pairs && warps <= WARPS, "{o} {c} {kernel}: {warps} {splits}");
            assert!(warps * (splits - 1) < filters * columns + pairs && (1..=filters).contains(&most));
        }
    }
}
