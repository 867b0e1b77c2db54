//! 3x3 convolutions of stride 1 and padding 1 by wgmma, whose pixels are loaded once for all taps: launches of
//! `kernels/conv3x3_wgmma.cu`.

use super::{Store, filters, way::Around};
use crate::{
    Array, DType, Result,
    cuda::{Launch, Swizzle, TensorMap, tune::Choice},
    ops::{
        moments::Moments,
        wgmma::{self, BANDWIDTH, SHARED, Tile},
    },
};

/// Tiles with the rows around them that are in shared memory at once: `HALOS` of the kernel.
const HALOS: usize = 2;

/// The `Conv` of `conv3x3_wgmma.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Sizes {
    images: [i32; 3],
    rows: i32,
    channels: i32,
    height: i32,
    count: i32,
    tiles_m: i32,
    tiles_h: i32,
    all: i32,
    halo: i32,
    halo_bytes: i32,
    adds: i32,
}

/// How it is computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Halo {
    tile: Tile,
    /// Of a tile: rows, and images.
    height: usize,
    count: usize,
    /// Tiles of channels, of an image's rows, of images.
    tiles: [usize; 3],
    /// Pixels loaded, and bytes for them and what is read behind them.
    pixels: usize,
    bytes: usize,
    stages: usize,
    /// Clocks that the model expects.
    pub time: f64,
    multiprocessors: usize,
}

impl Around for Halo {
    fn time(&self) -> f64 {
        self.time
    }

    fn choice(&self) -> Choice {
        [self.tile.down, self.tile.across, self.tile.cols, 0, 0].map(|v| v as u32)
    }
}

impl Halo {
    /// For `to` (n, rows, h, w) from images of `channels` channels; `None` where other kernels are faster, or no tile fits.
    pub(super) fn new(to: &Array, channels: usize) -> Result<Option<Self>> {
        #[cfg(test)]
        if let Some(force) = wgmma::forced() {
            let (shape, multiprocessors) = Self::sizes(to)?;
            return Ok(force.filter(|f| f.halo).and_then(|f| {
                crate::ops::wgmma_tests::reached();
                Self::of(Tile::HALO[f.tile % Tile::HALO.len()], shape, channels, to.dtype(), multiprocessors)
            }));
        }
        let best = Self::all(to, channels)?.into_iter().min_by(|a, b| a.time.total_cmp(&b.time));
        #[cfg(test)]
        best.iter().for_each(|_| crate::ops::wgmma_tests::reached());
        Ok(best)
    }

    /// All that other kernels are not sure to beat.
    pub(super) fn all(to: &Array, channels: usize) -> Result<Vec<Self>> {
        let (shape @ [n, rows, h, w], multiprocessors) = Self::sizes(to)?;
        let multiplications = [n, h, w, rows, channels, 9].iter().fold(1usize, |p, &v| p.saturating_mul(v));
        let depth = 128 / to.dtype().size();
        let worth = |halo: &Halo| {
            let padded = halo.tiles.iter().product::<usize>() as f64 * (halo.tile.rows() * halo.tile.columns()) as f64;
            multiplications >= wgmma::SMALL
                && multiplications as f64 >= 0.5 * padded * (9 * channels.next_multiple_of(depth)) as f64
        };
        let tiles = Tile::HALO.iter().filter_map(|&tile| Self::of(tile, shape, channels, to.dtype(), multiprocessors));
        Ok(tiles.filter(worth).collect())
    }

    /// The images' shape, and the device's multiprocessors.
    pub(super) fn sizes(to: &Array) -> Result<([usize; 4], usize)> {
        Ok(([0, 1, 2, 3].map(|i| to.shape()[i]), to.cuda("conv2d")?.owner().multiprocessors as usize))
    }

    /// With as many rows as fit into a tile, spread evenly, or fewer of more images, whatever is the fastest.
    fn of(tile: Tile, shape @ [_, _, h, w]: [usize; 4], channels: usize, dtype: DType, multiprocessors: usize) -> Option<Self> {
        let most = tile.columns() / (w + 1);
        let rows = |pieces: usize| h.div_ceil(pieces.max(1));
        let heights = (1..4).map(rows).chain([if most == 0 { 0 } else { rows(h.div_ceil(most)) }]);
        let all = heights.filter_map(|height| Self::of_height(height, tile, shape, channels, dtype, multiprocessors));
        let count = |halo: &Halo| halo.tiles.iter().product::<usize>();
        all.min_by(|a, b| a.time.total_cmp(&b.time).then_with(|| count(a).cmp(&count(b))))
    }

    fn of_height(
        height: usize,
        tile: Tile,
        [n, rows, h, w]: [usize; 4],
        channels: usize,
        dtype: DType,
        multiprocessors: usize,
    ) -> Option<Self> {
        let most = (tile.columns() / (w + 1)).checked_div(height)?.min(256);
        if most == 0 || height > 254 || w > 255 {
            return None;
        }
        let count = n.div_ceil(n.div_ceil(most));
        let row = count * (w + 1);
        let pixels = (height + 2) * row;
        let bytes = (pixels + 1).max(2 * row + 2 + tile.columns()).next_multiple_of(8) * 128;
        let stages = if tile.down == 1 { 6 } else { 4 };
        let halo = Halo {
            tile,
            height,
            count,
            tiles: [rows.div_ceil(tile.rows()), h.div_ceil(height), n.div_ceil(count)],
            pixels,
            bytes,
            stages,
            time: 0.0,
            multiprocessors,
        };
        let waves = halo.tiles.iter().product::<usize>().div_ceil(multiprocessors) as f64;
        let loads = ((pixels + 9 * tile.rows()) * 128) as f64 / BANDWIDTH;
        let step = (9.0 * tile.multiply()).max(loads);
        let time = waves * (wgmma::steps(dtype, channels) as f64 * step + tile.finish());
        (halo.shared() <= SHARED).then_some(Halo { time, ..halo })
    }

    /// Bytes of dynamic shared memory.
    fn shared(&self) -> usize {
        self.tile.shared(self.stages * self.tile.rows() * 128 + HALOS * self.bytes)
    }

    /// Computes `to` from `images` and the filters for `pass`, all channels-last.
    pub(super) fn run(
        &self,
        to: &Array,
        images: &Array,
        (w, pass): (&Array, usize),
        bias: Option<&Array>,
        store: Store,
    ) -> Result<()> {
        let ([n, rows, height, width], dtype) = ([0, 1, 2, 3].map(|i| to.shape()[i]), to.dtype());
        let (channels, all) = (images.shape()[1], self.tiles.iter().product::<usize>());
        let int = |v: usize| v as i32;
        let sizes = Sizes {
            images: [n, height, width].map(int),
            rows: int(rows),
            channels: int(wgmma::steps(dtype, channels)),
            height: int(self.height),
            count: int(self.count),
            tiles_m: int(self.tiles[0]),
            tiles_h: int(self.tiles[1]),
            all: int(all),
            halo: int(self.pixels),
            halo_bytes: int(self.bytes),
            adds: (store == Store::Added).into(),
        };
        let define = self.tile.defines(dtype, self.stages, 1, &[("PASS", pass)]);
        let moments = store.moments(to, all / self.tiles[0] * self.tile.across)?;
        let launch = Launch::new(to, "conv3x3_wgmma.cu", "conv3x3_wgmma", &define)?
            .tensor(w, &filters(w, pass, self.tile.rows()))
            .tensor(images, &wgmma::swizzled(boxes(images, self.count, self.height + 2), dtype))
            .array(to)
            .optional(bias)
            .value(sizes);
        let grid = [all.min(self.multiprocessors) as u32, 1, 1];
        Moments::argument(moments.as_ref(), launch).run(grid, self.tile.threads(), self.shared() as u32)?;
        moments.map_or(Ok(()), |m| m.note(to))
    }
}

/// Boxes of `height` rows of `count` channels-last images with a pixel more than there are, that lie in shared memory as
/// (rows, images, pixels, channels).
pub(super) fn boxes(images: &Array, count: usize, height: usize) -> TensorMap {
    let ([n, c, h, w], dtype) = ([0, 1, 2, 3].map(|i| images.shape()[i]), images.dtype());
    TensorMap::tiled(&[c, w, n, h], &[c, h * w * c, w * c], &[128 / dtype.size(), w + 1, count, height]).swizzle(Swizzle::Span128)
}

#[cfg(test)]
mod tests {
    use super::{super::halo_weight::HaloWeight, *};

    /// For as many filters as channels.
    fn best([n, c, h, w]: [usize; 4]) -> Halo {
        let all = Tile::HALO.iter().filter_map(|&tile| Halo::of(tile, [n, c, h, w], c, DType::BF16, 132));
        all.min_by(|a, b| a.time.total_cmp(&b.time)).unwrap()
    }

    /// The layers of ResNet-18 on images of 96 by 96 are mostly pixels, not what pads rows and tiles; and the kernel's variants
    /// name the tiles.
    #[test]
    fn tiles_are_full() {
        for shape in [[256, 64, 24, 24], [256, 128, 12, 12], [256, 256, 6, 6], [256, 512, 3, 3]] {
            let halo = best(shape);
            let [n, c, h, w] = shape;
            let columns = halo.tiles[1] * halo.tiles[2] * halo.tile.columns();
            assert!(columns as f64 * 0.7 < (n * h * w) as f64 && c.is_multiple_of(halo.tile.rows()), "{shape:?}: {halo:?}");
        }
        // A third of 24 rows at once, of two images.
        assert_eq!((best([256, 64, 24, 24]).height, best([256, 64, 24, 24]).count), (8, 2));
        let source = include_str!("../../../../kernels/conv3x3_wgmma.cu");
        for copies in [1, 2] {
            let stages = HaloWeight::stages(copies);
            assert!(source.contains(&format!("PASS=2; DOWN=1; ACROSS=3; COLS=192; STAGES={stages}; RESIDENT=1;")));
        }
        for tile in Tile::HALO {
            let stages = if tile.down == 1 { 6 } else { 4 };
            let named = |line: &str| {
                line.contains(&format!("DOWN={}; ACROSS={}; COLS=", tile.down, tile.across))
                    && line.contains(&format!("STAGES={stages}; RESIDENT=1"))
                    && line
                        .split("COLS=")
                        .nth(1)
                        .is_some_and(|l| l.split(';').next().unwrap().split(',').any(|c| c == tile.cols.to_string()))
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
            let mut line = |what: String, tile: Tile, time: f64, multiplications: usize, launches: f64| {
                let part = multiplications as f64 / (132.0 * 2048.0 * time);
                println!("batch {batch}, {what}: {} x {}, {time:.0} clocks, {part:.2} of the peak", tile.rows(), tile.columns());
                assert!(part >= least, "batch {batch}, {what}: {tile:?}");
                sum += time * launches;
            };
            for ([c, side], layers) in [([64, 24], 4.0), ([128, 12], 3.0), ([256, 6], 3.0), ([512, 3], 3.0)] {
                let halo = best([batch, c, side, side]);
                let multiplications = batch * side * side * c * c * 9;
                line(format!("{c} channels"), halo.tile, halo.time, multiplications, 2.0 * layers);
            }
            for [c, side] in [[64, 12], [128, 6], [256, 3]] {
                let (n, multiplications) = (batch * side * side, batch * side * side * c * 2 * c * 10);
                let span = |m, channels, taps| wgmma::Span { m, n, steps: wgmma::steps(DType::BF16, channels) * taps };
                let forward = [span(2 * c, c, 9), span(2 * c, c, 1)];
                let backward = [4, 2, 2, 2].map(|taps| span(c, 2 * c, taps));
                for (pass, spans) in [("forward", &forward[..]), ("dx", &backward)] {
                    let work = wgmma::Work { spans, batch: 1, multiplications, split: false, products: 1.0 };
                    let plan = wgmma::choose(132, 2, Tile::IMAGE, &work).unwrap();
                    line(format!("{c} to {} channels, {pass}", 2 * c), plan.tile, plan.time, multiplications, 1.0);
                }
            }
            println!("batch {batch}: {sum:.0} clocks");
        }
    }

    /// Three products of bf16 take less than one of TF32 by mma.sync, for the same layers.
    #[test]
    fn splitting_is_worth_it() {
        for [c, side] in [[64, 24], [128, 12], [256, 6], [512, 3]] {
            let of = |dtype| HaloWeight::best([256, c, side, side], c, dtype, 132).unwrap().time;
            let work = crate::ops::mma::Work { m: c, n: c * 9, k: 256 * side * side, batch: 1, width: 16 };
            let other = crate::ops::mma::time_in_tf32(work).unwrap();
            println!("{c} channels: {:.0} clocks split, {:.0} in bf16, {other:.0} by mma.sync", of(DType::F32), of(DType::BF16));
            assert!(of(DType::BF16) < of(DType::F32) && of(DType::F32) < other, "{c} channels");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let of = |shape| Tile::HALO.iter().filter_map(|&t| Halo::of(t, shape, 64, DType::BF16, 132)).count();
        assert_eq!(of([1, 64, 8, 256]), 0);
        // Three such rows take too much shared memory.
        assert_eq!(of([1, 64, 300, 200]), 0);
        let weight = |shape, height| HaloWeight::of(height, 1, shape, 64, DType::BF16, 132);
        assert!(
            weight([1, 64, 8, 256], 1).is_none() && weight([1, 64, 8, 255], 8).is_none() && weight([9, 64, 1, 1], 1).is_some()
        );
        assert!(of([1, 64, 300, 130]) > 0 && of([1, 64, 1, 1]) > 0);
    }
}
