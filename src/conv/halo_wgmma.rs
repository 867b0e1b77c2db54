//! 3x3 convolutions of stride 1 and padding 1 by wgmma with a halo: a tile of whole rows is loaded once for all taps. Launches of
//! `kernels/conv3x3_wgmma.cu`.

use super::{
    ConvCall, ConvOutputs,
    halo_wgrad::HaloWgradPlan,
    im2col_wgrad::reduce_wgrad,
    problem::ConvPass,
    wgmma_params::{ConvEpilogue, can_accumulate, dx_nhwc, filters, filters_for, tma_reads, to_nhwc},
};
use crate::{
    Array, DType, Layout, Result,
    cuda::{Launch, Swizzle, TensorMap},
    gemm::{
        arch::{L2_BYTES_PER_CLOCK, SM90_SMEM_PER_CTA, WGMMA_MIN_MACS},
        bn_stats::BnPartials,
        model::{wgmma, wgmma_tile::WgmmaTile},
        select::{Algorithm, Rank},
    },
};

/// Tiles with their halo that are in shared memory at once: `HALOS` of the kernel.
const HALOS: usize = 2;

/// The `Conv` of `conv3x3_wgmma.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct HaloParams {
    n: i32,
    h: i32,
    w: i32,
    rows: i32,
    channels: i32,
    height: i32,
    count: i32,
    tiles_m: i32,
    tiles_h: i32,
    tiles: i32,
    halo: i32,
    halo_bytes: i32,
    accumulate: i32,
}

/// The plan of fprop or dgrad.
#[derive(Clone, Copy, Debug)]
pub(super) struct HaloTile {
    tile: WgmmaTile,
    /// Rows of an image in a tile, and images.
    height: usize,
    count: usize,
    /// Tiles of channels, of an image's rows, of images.
    tiles: [usize; 3],
    /// Pixels loaded, and the bytes of these and of what is read past them.
    pixels: usize,
    bytes: usize,
    stages: usize,
    num_sms: usize,
}

/// The plan of a pass.
#[derive(Clone, Copy, Debug)]
pub(super) enum HaloPlan {
    /// Fprop and dgrad.
    Tile(HaloTile),
    Wgrad(HaloWgradPlan),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct HaloWgmma;

/// The images written (in wgrad dy), and the channels that each of their elements sums over (in wgrad those of x).
fn extents(call: &ConvCall) -> ([usize; 4], usize) {
    let p = call.convs[0].problem;
    if call.pass == ConvPass::Dgrad { (p.x_shape(), p.o) } else { (p.y_shape(), p.c) }
}

impl Algorithm for HaloWgmma {
    type Call<'a> = ConvCall<'a>;
    type Output = ConvOutputs;
    type Plan = HaloPlan;
    const NAME: &'static str = "halo_wgmma";

    fn supports(call: &ConvCall) -> Result<Option<Rank>> {
        let Some(conv) = call.single() else { return Ok(None) };
        let multiplies = call.arch.wgmma_multiplies(call.dtype(), call.precision);
        let is_ours = multiplies && conv.problem.is_same_3x3() && tma_reads(conv.problem, call.dtype()) && can_accumulate(call);
        Ok(is_ours.then_some(rank(call)))
    }

    fn plans(call: &ConvCall, offer: &mut dyn FnMut(f64, HaloPlan)) -> Result<()> {
        let ((shape, channels), dtype, num_sms) = (extents(call), call.dtype(), call.arch.num_sms);
        if call.pass == ConvPass::Wgrad {
            HaloWgradPlan::all(shape, channels, dtype, num_sms).for_each(|plan| offer(plan.time, HaloPlan::Wgrad(plan)));
        } else {
            HaloTile::all(shape, channels, dtype, num_sms).for_each(|(cost, tile)| offer(cost, HaloPlan::Tile(tile)));
        }
        Ok(())
    }

    fn numbers(plan: &HaloPlan) -> [u32; 4] {
        match plan {
            HaloPlan::Tile(HaloTile { tile, .. }) => [tile.wg_m << 8 | tile.wg_n, tile.wg_tile_n, 0, 0].map(|v| v as u32),
            HaloPlan::Wgrad(plan) => plan.numbers(),
        }
    }

    #[cfg(test)]
    fn forced(call: &ConvCall, force: &crate::testing::Force) -> Result<Option<HaloPlan>> {
        let ((shape, channels), dtype, num_sms) = (extents(call), call.dtype(), call.arch.num_sms);
        if call.pass == ConvPass::Wgrad {
            let best = HaloWgradPlan::best(shape, channels, dtype, num_sms);
            return Ok(best.map(|best| HaloPlan::Wgrad(best.forced(force.splits))));
        }
        let tile = WgmmaTile::HALO[force.tile[0] % WgmmaTile::HALO.len()];
        Ok(HaloTile::of(tile, shape, channels, dtype, num_sms).map(|(_, tile)| HaloPlan::Tile(tile)))
    }

    fn launch(call: &ConvCall, plan: &HaloPlan) -> Result<ConvOutputs> {
        match plan {
            HaloPlan::Tile(tile) => tile.launch(call),
            HaloPlan::Wgrad(plan) => {
                let conv = &call.convs[0];
                let partials = plan.launch(&to_nhwc(conv.a)?, &to_nhwc(conv.b)?)?;
                Ok(ConvOutputs::new(reduce_wgrad(call, &[partials], plan.splits)?))
            }
        }
    }
}

/// The rank of wgmma: wgrad in TF32 splits operands into bf16, which mma.sync may beat.
pub(super) fn rank(call: &ConvCall) -> Rank {
    if call.pass == ConvPass::Wgrad && call.dtype() == DType::F32 { Rank::TensorCore } else { Rank::Wgmma }
}

impl HaloTile {
    /// All that other kernels are not sure to beat, for images of `shape` (n, rows, h, w), each of whose elements sums over `channels`.
    fn all(shape: [usize; 4], channels: usize, dtype: DType, num_sms: usize) -> impl Iterator<Item = (f64, Self)> {
        let [n, rows, h, w] = shape;
        let macs = [n, h, w, rows, channels, 9].iter().fold(1usize, |p, &v| p.saturating_mul(v));
        let depth = 128 / dtype.size();
        let worth = move |(_, halo): &(f64, HaloTile)| {
            let padded = halo.count_tiles() as f64 * (halo.tile.rows() * halo.tile.columns()) as f64;
            macs >= WGMMA_MIN_MACS && macs as f64 >= 0.5 * padded * (9 * channels.next_multiple_of(depth)) as f64
        };
        WgmmaTile::HALO.iter().filter_map(move |&tile| Self::of(tile, shape, channels, dtype, num_sms)).filter(worth)
    }

    fn count_tiles(&self) -> usize {
        self.tiles.iter().product()
    }

    /// With as many rows as fit into a tile, spread evenly, or fewer of more images, whatever is the fastest.
    fn of(
        tile: WgmmaTile,
        shape @ [_, _, h, w]: [usize; 4],
        channels: usize,
        dtype: DType,
        num_sms: usize,
    ) -> Option<(f64, Self)> {
        let most = tile.columns() / (w + 1);
        let rows = |pieces: usize| h.div_ceil(pieces.max(1));
        let heights = (1..4).map(rows).chain([if most == 0 { 0 } else { rows(h.div_ceil(most)) }]);
        let all = heights.filter_map(|height| Self::of_height(height, tile, shape, channels, dtype, num_sms));
        all.min_by(|(a, x), (b, y)| a.total_cmp(b).then_with(|| x.count_tiles().cmp(&y.count_tiles())))
    }

    fn of_height(
        height: usize,
        tile: WgmmaTile,
        [n, rows, h, w]: [usize; 4],
        channels: usize,
        dtype: DType,
        num_sms: usize,
    ) -> Option<(f64, Self)> {
        let most = (tile.columns() / (w + 1)).checked_div(height)?.min(256);
        if most == 0 || height > 254 || w > 255 {
            return None;
        }
        let count = n.div_ceil(n.div_ceil(most));
        let row = count * (w + 1);
        let pixels = (height + 2) * row;
        let bytes = (pixels + 1).max(2 * row + 2 + tile.columns()).next_multiple_of(8) * 128;
        let stages = if tile.wg_m == 1 { 6 } else { 4 };
        let halo = HaloTile {
            tile,
            height,
            count,
            tiles: [rows.div_ceil(tile.rows()), h.div_ceil(height), n.div_ceil(count)],
            pixels,
            bytes,
            stages,
            num_sms,
        };
        let waves = halo.count_tiles().div_ceil(num_sms) as f64;
        let loads = ((pixels + 9 * tile.rows()) * 128) as f64 / L2_BYTES_PER_CLOCK;
        let step = (9.0 * tile.mma_clocks()).max(loads);
        let time = waves * (wgmma::steps(dtype, channels) as f64 * step + tile.tile_clocks());
        (halo.smem_bytes() <= SM90_SMEM_PER_CTA).then_some((time, halo))
    }

    /// Bytes of dynamic shared memory.
    fn smem_bytes(&self) -> usize {
        self.tile.smem_bytes(self.stages * self.tile.rows() * 128 + HALOS * self.bytes)
    }

    fn launch(&self, call: &ConvCall) -> Result<ConvOutputs> {
        let (conv, epilogue) = (&call.convs[0], ConvEpilogue::of(call));
        let fprop = call.pass == ConvPass::Fprop;
        let to = if fprop { call.uninit(conv, Layout::ChannelsLast)? } else { dx_nhwc(call, conv)? };
        let (images, (w, pass)) = (to_nhwc(conv.a)?, filters_for(call, conv.b)?);
        let ([n, rows, height, width], dtype) = ([0, 1, 2, 3].map(|i| to.shape()[i]), to.dtype());
        let (channels, tiles) = (images.shape()[1], self.count_tiles());
        let int = |v: usize| v as i32;
        let params = HaloParams {
            n: int(n),
            h: int(height),
            w: int(width),
            rows: int(rows),
            channels: int(wgmma::steps(dtype, channels)),
            height: int(self.height),
            count: int(self.count),
            tiles_m: int(self.tiles[0]),
            tiles_h: int(self.tiles[1]),
            tiles: int(tiles),
            halo: int(self.pixels),
            halo_bytes: int(self.bytes),
            accumulate: (epilogue == ConvEpilogue::AddTo).into(),
        };
        let define = self.tile.defines(dtype, self.stages, 1, &[("PASS", pass)]);
        let stats = epilogue.bn_partials(&to, tiles / self.tiles[0] * self.tile.wg_n)?;
        let launch = Launch::new(&to, "conv3x3_wgmma.cu", "conv3x3_wgmma", &define)?
            .tensor(&w, &filters(&w, pass, self.tile.rows()))
            .tensor(&images, &wgmma::swizzled(boxes(&images, self.count, self.height + 2), dtype))
            .array(&to)
            .optional(conv.bias)
            .value(params);
        let grid = [tiles.min(self.num_sms) as u32, 1, 1];
        BnPartials::argument(stats.as_ref(), launch).run(grid, self.tile.threads(), self.smem_bytes() as u32)?;
        stats.map_or(Ok(()), |s| s.attach(&to))?;
        Ok(ConvOutputs { accumulated: epilogue == ConvEpilogue::AddTo, ..ConvOutputs::new(vec![to.to_layout(call.layout())?]) })
    }
}

/// Boxes of `height` rows of `count` NHWC images with a pixel more than there are, that lie in shared memory as
/// (rows, images, pixels, channels).
pub(super) fn boxes(images: &Array, count: usize, height: usize) -> TensorMap {
    let ([n, c, h, w], dtype) = ([0, 1, 2, 3].map(|i| images.shape()[i]), images.dtype());
    TensorMap::tiled(&[c, w, n, h], &[c, h * w * c, w * c], &[128 / dtype.size(), w + 1, count, height]).swizzle(Swizzle::Span128)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gemm::{
            arch::Arch,
            model::{
                mma::{self, GemmSize},
                wgmma::{GemmShape, GroupedGemm, WgmmaPlan, plans},
            },
        },
        precision::Precision,
    };

    /// For as many filters as channels.
    fn best([n, c, h, w]: [usize; 4]) -> (f64, HaloTile) {
        let all = WgmmaTile::HALO.iter().filter_map(|&tile| HaloTile::of(tile, [n, c, h, w], c, DType::BF16, 132));
        all.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
    }

    /// The layers of ResNet-18 on images of 96 by 96 are mostly pixels, not what pads rows and tiles; and the kernel's variants
    /// name the tiles.
    #[test]
    fn tiles_are_full() {
        for shape in [[256, 64, 24, 24], [256, 128, 12, 12], [256, 256, 6, 6], [256, 512, 3, 3]] {
            let (_, halo) = best(shape);
            let [n, c, h, w] = shape;
            let columns = halo.tiles[1] * halo.tiles[2] * halo.tile.columns();
            assert!(columns as f64 * 0.7 < (n * h * w) as f64 && c.is_multiple_of(halo.tile.rows()), "{shape:?}: {halo:?}");
        }
        // A third of 24 rows at once, of two images.
        let (_, third) = best([256, 64, 24, 24]);
        assert_eq!((third.height, third.count), (8, 2));
        let source = include_str!("../../kernels/conv3x3_wgmma.cu");
        for copies in [1, 2] {
            let stages = HaloWgradPlan::stages(copies);
            assert!(source.contains(&format!("PASS=2; DOWN=1; ACROSS=3; COLS=192; STAGES={stages}; RESIDENT=1;")));
        }
        for tile in WgmmaTile::HALO {
            let stages = if tile.wg_m == 1 { 6 } else { 4 };
            let named = |line: &str| {
                line.contains(&format!("DOWN={}; ACROSS={}; COLS=", tile.wg_m, tile.wg_n))
                    && line.contains(&format!("STAGES={stages}; RESIDENT=1"))
                    && line
                        .split("COLS=")
                        .nth(1)
                        .is_some_and(|l| l.split(';').next().unwrap().split(',').any(|c| c == tile.wg_tile_n.to_string()))
            };
            assert!(source.lines().any(named), "{tile:?} is not among the kernel's variants");
        }
    }

    /// What the model expects of ResNet-18's convolutions on images of 96 by 96, in bf16 on an H100; the device is filled for batches
    /// of 256 and of 32.
    #[test]
    fn the_model_fills_the_device() {
        for (batch, least) in [(256, 0.25), (32, 0.065)] {
            let mut sum = 0.0;
            let mut line = |what: String, tile: WgmmaTile, time: f64, multiplications: usize, launches: f64| {
                let part = multiplications as f64 / (132.0 * 2048.0 * time);
                println!("batch {batch}, {what}: {} x {}, {time:.0} clocks, {part:.2} of the peak", tile.rows(), tile.columns());
                assert!(part >= least, "batch {batch}, {what}: {tile:?}");
                sum += time * launches;
            };
            for ([c, side], layers) in [([64, 24], 4.0), ([128, 12], 3.0), ([256, 6], 3.0), ([512, 3], 3.0)] {
                let (cost, halo) = best([batch, c, side, side]);
                let multiplications = batch * side * side * c * c * 9;
                line(format!("{c} channels"), halo.tile, cost, multiplications, 2.0 * layers);
            }
            for [c, side] in [[64, 12], [128, 6], [256, 3]] {
                let (n, multiplications) = (batch * side * side, batch * side * side * c * 2 * c * 10);
                let shape = |m, channels, taps| GemmShape { m, n, k_steps: wgmma::steps(DType::BF16, channels) * taps };
                let forward = [shape(2 * c, c, 9), shape(2 * c, c, 1)];
                let backward = [4, 2, 2, 2].map(|taps| shape(c, 2 * c, taps));
                for (pass, shapes) in [("forward", &forward[..]), ("dx", &backward)] {
                    let group = GroupedGemm { shapes, batch: 1, macs: multiplications, can_split_k: false, products: 1.0 };
                    let mut all: Vec<(f64, WgmmaPlan)> = Vec::new();
                    plans(132, 2, WgmmaTile::IM2COL, &group, &mut |cost, plan| all.push((cost, plan)));
                    let (cost, plan) = all.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
                    line(format!("{c} to {} channels, {pass}", 2 * c), plan.tile, cost, multiplications, 1.0);
                }
            }
            println!("batch {batch}: {sum:.0} clocks");
        }
    }

    /// Three products of bf16 take less than one of TF32 by mma.sync, for the same layers.
    #[test]
    fn splitting_is_worth_it() {
        for [c, side] in [[64, 24], [128, 12], [256, 6], [512, 3]] {
            let of = |dtype| HaloWgradPlan::best([256, c, side, side], c, dtype, 132).unwrap().time;
            let size = GemmSize { m: c, n: c * 9, k: 256 * side * side, batch: 1, load_bytes: 16 };
            let arch = Arch { capability: 90, num_sms: 132 };
            let (other, _) = mma::cheapest(arch, DType::F32, Precision::Tf32, size).unwrap();
            println!("{c} channels: {:.0} clocks split, {:.0} in bf16, {other:.0} by mma.sync", of(DType::F32), of(DType::BF16));
            assert!(of(DType::BF16) < of(DType::F32) && of(DType::F32) < other, "{c} channels");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let of = |shape| WgmmaTile::HALO.iter().filter_map(|&t| HaloTile::of(t, shape, 64, DType::BF16, 132)).count();
        assert_eq!(of([1, 64, 8, 256]), 0);
        // Three such rows take too much shared memory.
        assert_eq!(of([1, 64, 300, 200]), 0);
        let weight = |shape, height| HaloWgradPlan::of_height(height, 1, shape, 64, DType::BF16, 132);
        assert!(
            weight([1, 64, 8, 256], 1).is_none() && weight([1, 64, 8, 255], 8).is_none() && weight([9, 64, 1, 1], 1).is_some()
        );
        assert!(of([1, 64, 300, 130]) > 0 && of([1, 64, 1, 1]) > 0);
    }
}
