//! Blocks of 16 channels, transposed so that each pixel is a run of 16 lanes: the tile transforms then run on whole vectors whatever the size of the image.

/// Channels per block.
pub const LANES: usize = 16;

/// A rectangle of one block of channels, `rows x cols` pixels of 16 lanes each, cut out of planes at (`y0`, `x0`), which may lie outside (zeros there).
pub struct Cut {
    pub y0: isize,
    pub x0: isize,
    pub rows: usize,
    pub cols: usize,
}

impl Cut {
    /// The part of the rectangle inside planes of `h x w`: first row, end row, first column, end column.
    fn inside(&self, h: usize, w: usize) -> (usize, usize, usize, usize) {
        let clip = |at: isize, len: usize, size: usize| {
            let lo = (-at).clamp(0, len as isize);
            (lo as usize, (size as isize - at).clamp(lo, len as isize) as usize)
        };
        let (r0, r1) = clip(self.y0, self.rows, h);
        let (c0, c1) = clip(self.x0, self.cols, w);
        (r0, r1, c0, c1)
    }
}

/// Reads up to 16 planes (`h x w` each, contiguous) into `patch`.
#[inline(always)]
pub fn read_lanes(planes: &[f32], h: usize, w: usize, cut: &Cut, patch: &mut [[f32; LANES]]) {
    let lanes = planes.len() / (h * w);
    let (r0, r1, c0, c1) = cut.inside(h, w);
    if lanes < LANES || (r0, r1, c0, c1) != (0, cut.rows, 0, cut.cols) {
        patch.fill([0.0; LANES]);
    }
    if r0 == r1 || c0 == c1 {
        return;
    }
    let from = |r: usize| (cut.y0 + r as isize) as usize * w + (cut.x0 + c0 as isize) as usize;
    touch(planes, h * w, from(r0), from(r1 - 1) + c1 - c0);
    if lanes < LANES {
        for r in r0..r1 {
            let row = &mut patch[r * cut.cols + c0..r * cut.cols + c1];
            for (l, plane) in planes.chunks_exact(h * w).enumerate() {
                row.iter_mut().zip(&plane[from(r)..]).for_each(|(pixel, v)| pixel[l] = *v);
            }
        }
    } else if c1 - c0 == w && cut.cols == w {
        // Whole rows lie one after the other on both sides.
        transpose_in(planes, h * w, from(r0), &mut patch[r0 * w..r1 * w]);
    } else {
        for r in r0..r1 {
            transpose_in(planes, h * w, from(r), &mut patch[r * cut.cols + c0..r * cut.cols + c1]);
        }
    }
}

/// Loads each line of the given part of every plane in order of address: a run that the hardware prefetches, unlike the sixteen interleaved ones of a transpose.
#[inline(always)]
fn touch(planes: &[f32], plane: usize, from: usize, to: usize) {
    let mut seen = 0;
    for plane in planes.chunks_exact(plane) {
        for line in plane[from..to].chunks(16) {
            seen |= line[0].to_bits();
        }
    }
    std::hint::black_box(seen);
}

/// pixels[i][l] = planes[l * plane + from + i]
#[inline(always)]
fn transpose_in(planes: &[f32], plane: usize, from: usize, pixels: &mut [[f32; LANES]]) {
    let avx = crate::cpu::simd::avx();
    for (i, pixels) in pixels.chunks_mut(8).enumerate() {
        let from = from + i * 8;
        for half in 0..2 {
            let first = half * 8;
            let row = |l: usize| planes[(first + l) * plane + from..].first_chunk::<8>();
            // Reading into the next row is harmless, but the last plane may end too early for that.
            let mut copy = [[0.0f32; 8]; 8];
            let columns = if let Some(last) = row(7) {
                crate::cpu::simd::transpose(avx, std::array::from_fn(|l| row(l).unwrap_or(last)), None)
            } else {
                for (l, copy) in copy.iter_mut().enumerate() {
                    copy.iter_mut().zip(&planes[(first + l) * plane + from..]).for_each(|(c, v)| *c = *v);
                }
                crate::cpu::simd::transpose(avx, copy.each_ref(), None)
            };
            for (pixel, column) in pixels.iter_mut().zip(&columns) {
                pixel[first..first + 8].copy_from_slice(column);
            }
        }
    }
}

/// Writes `patch` into up to 16 planes, adding a bias per plane; what lies outside is dropped.
#[inline(always)]
pub fn write_lanes(patch: &[[f32; LANES]], cut: &Cut, bias: Option<&[f32]>, h: usize, w: usize, planes: &mut [f32]) {
    let lanes = planes.len() / (h * w);
    let (r0, r1, c0, c1) = cut.inside(h, w);
    let to = |r: usize| (cut.y0 + r as isize) as usize * w + (cut.x0 + c0 as isize) as usize;
    let bias: [f32; LANES] = std::array::from_fn(|l| bias.map_or(0.0, |b| b.get(l).copied().unwrap_or(0.0)));
    if lanes == LANES && cut.cols == w && (r1 - r0) * w >= 8 {
        transpose_out(&patch[r0 * w..r1 * w], &bias, h * w, to(r0), planes);
        return;
    }
    for r in r0..r1 {
        let row = &patch[r * cut.cols + c0..r * cut.cols + c1];
        if lanes == LANES && row.len() >= 8 {
            transpose_out(row, &bias, h * w, to(r), planes);
            continue;
        }
        for (l, plane) in planes.chunks_exact_mut(h * w).enumerate() {
            for (v, pixel) in plane[to(r)..].iter_mut().zip(row) {
                *v = pixel[l] + bias[l];
            }
        }
    }
}

/// planes[l * plane + to + i] = pixels[i][l] + bias[l], for at least eight pixels.
#[inline(always)]
fn transpose_out(pixels: &[[f32; LANES]], bias: &[f32; LANES], plane: usize, to: usize, planes: &mut [f32]) {
    let avx = crate::cpu::simd::avx();
    let (biases, _) = bias.as_chunks::<8>();
    for start in (0..pixels.len()).step_by(8) {
        // The last eight may overlap the ones before, which writes the same values again.
        let start = start.min(pixels.len() - 8);
        let Some(eight) = pixels[start..].first_chunk::<8>() else { return };
        for half in 0..2 {
            let rows = eight.each_ref().map(|pixel| &pixel.as_chunks::<8>().0[half]);
            for (l, column) in crate::cpu::simd::transpose(avx, rows, Some(&biases[half])).iter().enumerate() {
                planes[(half * 8 + l) * plane + to + start..][..8].copy_from_slice(column);
            }
        }
    }
}
