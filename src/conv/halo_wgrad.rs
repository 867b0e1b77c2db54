//! Wgrad of 3x3 filters of stride 1 and padding 1 by wgmma, with a halo: launches of `kernels/conv3x3_wgmma.cu`.

use super::halo_wgmma::boxes;
use crate::{
    Array, DType, Layout, Result,
    cuda::Launch,
    gemm::{
        arch::{
            DRAM_BYTES_PER_CLOCK, HALO_WGRAD_TILE_CLOCKS, L2_BYTES_PER_CLOCK, LAUNCH_CLOCKS, SM90_SMEM_PER_CTA, WGMMA_MIN_MACS,
        },
        model::wgmma_tile::{WgmmaTile, tile},
    },
};

/// The `Weight` of `conv3x3_wgmma.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct HaloWgradParams {
    n: i32,
    h: i32,
    w: i32,
    rows: i32,
    channels: i32,
    height: i32,
    count: i32,
    tiles_h: i32,
    tiles: i32,
    tiles_per_split: i32,
    splits: i32,
    ctas: [i32; 2],
    halo: i32,
    halo_bytes: i32,
    pixels: i32,
    pixel_bytes: i32,
}

/// The plan: a CTA has 64 filters, 64 channels and all taps, and a split of the tiles of pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct HaloWgradPlan {
    height: usize,
    count: usize,
    /// Tiles of an image's rows, of images.
    tiles: [usize; 2],
    /// CTAs along filters and channels.
    ctas: [usize; 2],
    tiles_per_split: usize,
    pub(super) splits: usize,
    pixels: usize,
    halo_bytes: usize,
    pixel_bytes: usize,
    /// Loads of 64 channels: two for f32, which is split in shared memory.
    copies: usize,
    pub time: f64,
}

impl HaloWgradPlan {
    const TILE: WgmmaTile = tile(1, 3, 192);
    /// Pixels that are multiplied at once.
    const AT_ONCE: usize = 32;

    /// All that other kernels are not sure to beat, for dy of `shape` (n, filters, h, w) and x of `channels` channels.
    pub(super) fn all(shape: [usize; 4], channels: usize, dtype: DType, num_sms: usize) -> impl Iterator<Item = Self> {
        let [n, filters, h, w] = shape;
        let macs = [n, h, w, filters, channels, 9].iter().fold(1usize, |p, &v| p.saturating_mul(v));
        let worth = move |b: &Self| {
            let padded = [b.tiles[0], b.tiles[1], b.pixels.next_multiple_of(Self::AT_ONCE), b.ctas[0], b.ctas[1], 64 * 64 * 9];
            macs >= WGMMA_MIN_MACS && macs as f64 >= 0.5 * padded.iter().map(|&v| v as f64).product::<f64>()
        };
        Self::tiles(shape, channels, dtype, num_sms).filter(worth)
    }

    /// The cheapest.
    #[cfg(test)]
    pub(super) fn best(shape: [usize; 4], channels: usize, dtype: DType, num_sms: usize) -> Option<Self> {
        Self::tiles(shape, channels, dtype, num_sms).min_by(|a, b| a.time.total_cmp(&b.time))
    }

    /// A test's plan: splits of few tiles too.
    #[cfg(test)]
    pub(super) fn forced(self, splits: usize) -> Self {
        let tiles = self.tiles[0] * self.tiles[1];
        let tiles_per_split = tiles.div_ceil(splits);
        HaloWgradPlan { tiles_per_split, splits: tiles.div_ceil(tiles_per_split), ..self }
    }

    /// The plan in the autotuner's numbers.
    pub(super) fn numbers(&self) -> [u32; 4] {
        [self.height as u32, self.count as u32, 0, 0]
    }

    /// With tiles of some rows of an image, or of several images where they are small.
    fn tiles(shape @ [n, _, h, w]: [usize; 4], channels: usize, dtype: DType, num_sms: usize) -> impl Iterator<Item = Self> {
        let rows = (1..h.min(255)).map(|height| (height, 1));
        let images = [64, 96, 128, 160, 192].map(|pixels| (h, (pixels / (h * (w + 1))).clamp(1, n.min(256))));
        let all = rows.chain(images.into_iter().filter(move |_| h < 255));
        all.filter_map(move |(height, most)| Self::of_height(height, most, shape, channels, dtype, num_sms))
    }

    /// With tiles of `height` rows, of `most` images.
    pub(super) fn of_height(
        height: usize,
        most: usize,
        [n, filters, h, w]: [usize; 4],
        channels: usize,
        dtype: DType,
        num_sms: usize,
    ) -> Option<Self> {
        let copies = dtype.size() / 2;
        let count = n.div_ceil(n.div_ceil(most));
        let row = count * (w + 1);
        let pixels = height * row;
        let whole = pixels.next_multiple_of(Self::AT_ONCE);
        let halo = ((height + 2) * row + 1).max(2 * row + 2 + whole).next_multiple_of(8);
        let (halo_bytes, pixel_bytes) = (halo * 128, whole * 128);
        if w > 255 || Self::smem_bytes(copies, halo_bytes + pixel_bytes) > SM90_SMEM_PER_CTA {
            return None;
        }
        let (tiles, ctas) = ([h.div_ceil(height), n.div_ceil(count)], [filters.div_ceil(64), channels.div_ceil(64)]);
        let (all, side) = (tiles[0] * tiles[1], ctas[0] * ctas[1]);
        let tiles_per_split = all.div_ceil((num_sms / side).clamp(1, all));
        let splits = all.div_ceil(tiles_per_split);
        // Three warpgroups of 64 by 192; the loads; the reduction of the splits.
        let multiply = (2 * copies - 1) as f64 * (whole * 64 * 576) as f64 / 2048.0;
        let loads = (((height + 2) * row + pixels) * copies * 128) as f64 / L2_BYTES_PER_CLOCK;
        let waves = (side * splits).div_ceil(num_sms) as f64;
        let reduce = (filters * channels * 9 * (splits * 8 + 4)) as f64 / (num_sms as f64 * DRAM_BYTES_PER_CLOCK) + LAUNCH_CLOCKS;
        let time = waves * (tiles_per_split as f64 * multiply.max(loads) + HALO_WGRAD_TILE_CLOCKS) + reduce;
        Some(HaloWgradPlan { height, count, tiles, ctas, tiles_per_split, splits, pixels, halo_bytes, pixel_bytes, copies, time })
    }

    pub(super) fn stages(copies: usize) -> usize {
        if copies == 2 { 2 } else { 3 }
    }

    fn smem_bytes(copies: usize, stage: usize) -> usize {
        Self::TILE.smem_bytes(Self::stages(copies) * copies * stage)
    }

    /// The partial sums of dw, (split, filters, taps, channels), from NHWC dy and x.
    pub(super) fn launch(&self, dy: &Array, x: &Array) -> Result<Array> {
        let ([n, filters, height, width], dtype) = ([0, 1, 2, 3].map(|i| dy.shape()[i]), dy.dtype());
        let channels = x.shape()[1];
        let partials = Array::uninit(&[self.splits, filters * channels * 9], DType::F32, Layout::RowMajor, &dy.context())?;
        let int = |v: usize| v as i32;
        let params = HaloWgradParams {
            n: int(n),
            h: int(height),
            w: int(width),
            rows: int(filters),
            channels: int(channels),
            height: int(self.height),
            count: int(self.count),
            tiles_h: int(self.tiles[0]),
            tiles: int(self.tiles[0] * self.tiles[1]),
            tiles_per_split: int(self.tiles_per_split),
            splits: int(self.splits),
            ctas: self.ctas.map(int),
            halo: int((self.height + 2) * self.count * (width + 1)),
            halo_bytes: int(self.halo_bytes),
            pixels: int(self.pixels),
            pixel_bytes: int(self.pixel_bytes),
        };
        let define = Self::TILE.defines(dtype, Self::stages(self.copies), 1, &[("PASS", 2)]);
        Launch::new(dy, "conv3x3_wgmma.cu", "conv3x3_wgmma", &define)?
            .tensor(dy, &boxes(dy, self.count, self.height))
            .tensor(x, &boxes(x, self.count, self.height + 2))
            .array(&partials)
            .value(params)
            .run(
                [int(self.splits * self.ctas[0] * self.ctas[1]) as u32, 1, 1],
                Self::TILE.threads(),
                Self::smem_bytes(self.copies, self.halo_bytes + self.pixel_bytes) as u32,
            )?;
        Ok(partials)
    }
}
