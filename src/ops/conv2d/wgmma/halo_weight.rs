//! The gradients of 3x3 filters of stride 1 and padding 1 by wgmma: the other launches of `kernels/conv3x3_wgmma.cu`.

use super::{
    halo::{Halo, boxes},
    way::Around,
};
use crate::{
    Array, DType, Layout, Result,
    cuda::{Launch, tune::Choice},
    ops::wgmma::{self, BANDWIDTH, SHARED, Tile},
};

/// The `Weight` of `conv3x3_wgmma.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct WeightSizes {
    images: [i32; 3],
    rows: i32,
    channels: i32,
    height: i32,
    count: i32,
    tiles_h: i32,
    tiles: i32,
    chunk: i32,
    parts: i32,
    blocks: [i32; 2],
    halo: i32,
    halo_bytes: i32,
    pixels: i32,
    pixel_bytes: i32,
}

/// How they are computed: a block has 64 filters, 64 channels and all taps, and a part of the tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct HaloWeight {
    height: usize,
    count: usize,
    /// Tiles of an image's rows, of images.
    tiles: [usize; 2],
    /// Of filters, of channels.
    blocks: [usize; 2],
    chunk: usize,
    parts: usize,
    pixels: usize,
    halo_bytes: usize,
    pixel_bytes: usize,
    /// Copies that bring 64 channels: two of f32, which is split in shared memory then.
    copies: usize,
    pub time: f64,
}

impl Around for HaloWeight {
    fn time(&self) -> f64 {
        self.time
    }

    fn choice(&self) -> Choice {
        [0, self.height as u32, self.count as u32, 0, 0]
    }
}

impl HaloWeight {
    const TILE: Tile = wgmma::tile(1, 3, 192);
    /// Pixels that are multiplied at once.
    const AT_ONCE: usize = 32;

    /// For dy (n, filters, h, w) and x of `channels` channels.
    pub(super) fn new(dy: &Array, channels: usize) -> Result<Option<Self>> {
        #[cfg(test)]
        if let Some(force) = wgmma::forced() {
            let (shape, multiprocessors) = Halo::sizes(dy)?;
            let best = Self::best(shape, channels, dy.dtype(), multiprocessors);
            // Parts of few tiles too.
            return Ok(best.filter(|_| force.is_some_and(|f| f.halo)).map(|best| {
                crate::ops::wgmma_tests::reached();
                let (tiles, parts) = (best.tiles[0] * best.tiles[1], force.map_or(1, |f| f.parts));
                let chunk = tiles.div_ceil(parts);
                HaloWeight { chunk, parts: tiles.div_ceil(chunk), ..best }
            }));
        }
        Ok(Self::all(dy, channels)?.into_iter().min_by(|a, b| a.time.total_cmp(&b.time)))
    }

    /// All that other kernels are not sure to beat.
    pub(super) fn all(dy: &Array, channels: usize) -> Result<Vec<Self>> {
        let (shape @ [n, filters, h, w], multiprocessors) = Halo::sizes(dy)?;
        let multiplications = [n, h, w, filters, channels, 9].iter().fold(1usize, |p, &v| p.saturating_mul(v));
        let worth = |b: &Self| {
            let padded =
                [b.tiles[0], b.tiles[1], b.pixels.next_multiple_of(Self::AT_ONCE), b.blocks[0], b.blocks[1], 64 * 64 * 9];
            multiplications >= wgmma::SMALL && multiplications as f64 >= 0.5 * padded.iter().map(|&v| v as f64).product::<f64>()
        };
        Ok(Self::tiles(shape, channels, dy.dtype(), multiprocessors).filter(worth).collect())
    }

    /// With the fastest tiles.
    #[cfg(test)]
    pub(super) fn best(shape: [usize; 4], channels: usize, dtype: DType, multiprocessors: usize) -> Option<Self> {
        Self::tiles(shape, channels, dtype, multiprocessors).min_by(|a, b| a.time.total_cmp(&b.time))
    }

    /// With tiles of some rows of an image, or of several images where they are small.
    fn tiles(
        shape @ [n, _, h, w]: [usize; 4],
        channels: usize,
        dtype: DType,
        multiprocessors: usize,
    ) -> impl Iterator<Item = Self> {
        let rows = (1..h.min(255)).map(|height| (height, 1));
        let images = [64, 96, 128, 160, 192].map(|pixels| (h, (pixels / (h * (w + 1))).clamp(1, n.min(256))));
        let all = rows.chain(images.into_iter().filter(move |_| h < 255));
        all.filter_map(move |(height, most)| Self::of(height, most, shape, channels, dtype, multiprocessors))
    }

    /// With tiles of `height` rows, of `most` images.
    pub(super) fn of(
        height: usize,
        most: usize,
        [n, filters, h, w]: [usize; 4],
        channels: usize,
        dtype: DType,
        multiprocessors: usize,
    ) -> Option<Self> {
        let copies = dtype.size() / 2;
        let count = n.div_ceil(n.div_ceil(most));
        let row = count * (w + 1);
        let pixels = height * row;
        let whole = pixels.next_multiple_of(Self::AT_ONCE);
        let halo = ((height + 2) * row + 1).max(2 * row + 2 + whole).next_multiple_of(8);
        let (halo_bytes, pixel_bytes) = (halo * 128, whole * 128);
        if w > 255 || Self::shared(copies, halo_bytes + pixel_bytes) > SHARED {
            return None;
        }
        let (tiles, blocks) = ([h.div_ceil(height), n.div_ceil(count)], [filters.div_ceil(64), channels.div_ceil(64)]);
        let (all, side) = (tiles[0] * tiles[1], blocks[0] * blocks[1]);
        let chunk = all.div_ceil((multiprocessors / side).clamp(1, all));
        let parts = all.div_ceil(chunk);
        // Three warpgroups of 64 by 192; what is loaded; the sums, written and read.
        let multiply = (2 * copies - 1) as f64 * (whole * 64 * 576) as f64 / 2048.0;
        let loads = (((height + 2) * row + pixels) * copies * 128) as f64 / BANDWIDTH;
        let waves = (side * parts).div_ceil(multiprocessors) as f64;
        let sums = (filters * channels * 9 * (parts * 8 + 4)) as f64 / (multiprocessors as f64 * 12.0) + 4000.0;
        let time = waves * (chunk as f64 * multiply.max(loads) + 4000.0) + sums;
        Some(HaloWeight { height, count, tiles, blocks, chunk, parts, pixels, halo_bytes, pixel_bytes, copies, time })
    }

    pub(super) fn stages(copies: usize) -> usize {
        if copies == 2 { 2 } else { 3 }
    }

    fn shared(copies: usize, stage: usize) -> usize {
        Self::TILE.shared(Self::stages(copies) * copies * stage)
    }

    /// The parts of the gradient, (part, filters, taps, channels), from channels-last dy and x; how many there are.
    pub(super) fn run(&self, dy: &Array, x: &Array) -> Result<(Array, usize)> {
        let ([n, filters, height, width], dtype) = ([0, 1, 2, 3].map(|i| dy.shape()[i]), dy.dtype());
        let channels = x.shape()[1];
        let sums = Array::uninit(&[self.parts, filters * channels * 9], DType::F32, Layout::RowMajor, &dy.context())?;
        let int = |v: usize| v as i32;
        let sizes = WeightSizes {
            images: [n, height, width].map(int),
            rows: int(filters),
            channels: int(channels),
            height: int(self.height),
            count: int(self.count),
            tiles_h: int(self.tiles[0]),
            tiles: int(self.tiles[0] * self.tiles[1]),
            chunk: int(self.chunk),
            parts: int(self.parts),
            blocks: self.blocks.map(int),
            halo: int((self.height + 2) * self.count * (width + 1)),
            halo_bytes: int(self.halo_bytes),
            pixels: int(self.pixels),
            pixel_bytes: int(self.pixel_bytes),
        };
        let define = Self::TILE.defines(dtype, Self::stages(self.copies), 1, &[("PASS", 2)]);
        Launch::new(dy, "conv3x3_wgmma.cu", "conv3x3_wgmma", &define)?
            .tensor(dy, &boxes(dy, self.count, self.height))
            .tensor(x, &boxes(x, self.count, self.height + 2))
            .array(&sums)
            .value(sizes)
            .run(
                [int(self.parts * self.blocks[0] * self.blocks[1]) as u32, 1, 1],
                Self::TILE.threads(),
                Self::shared(self.copies, self.halo_bytes + self.pixel_bytes) as u32,
            )?;
        Ok((sums, self.parts))
    }
}
