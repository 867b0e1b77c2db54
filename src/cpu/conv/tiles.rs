//! Short bilinear algorithms for 3-tap kernels, and the transforms between images and tiles.
//!
//! In one dimension, OUT outputs of a 3-tap correlation come from MUL products of transformed inputs and transformed taps: y = output(input(d) * filter(g)).
//! Applied along rows and columns this takes MUL^2 products for OUT^2 outputs, each a sum over channels, that is, a matrix product per product index ("xi").
//! All coefficients are 0, 1/2 and 1 in size, so rounding stays below that of plain f32 summation (the sums over channels are nine times shorter).
//!
//! Work is laid out in blocks of 16 channels per pixel ("lanes"): images are transposed on the way in and out, and the transforms then run on whole vectors
//! whatever the size of the image.

use pulp::{Simd, WithSimd};
use std::marker::PhantomData;

/// Channels per block.
pub const LANES: usize = 16;

/// One such algorithm; the `_adjoint`s are the transposed maps, used by the gradient of the weights.
pub trait Bilinear<const IN: usize, const MUL: usize, const OUT: usize>: Send + Sync {
    fn input<S: Simd>(s: S, d: [S::f32s; IN]) -> [S::f32s; MUL];
    fn filter<S: Simd>(s: S, g: [S::f32s; 3]) -> [S::f32s; MUL];
    fn output<S: Simd>(s: S, m: [S::f32s; MUL]) -> [S::f32s; OUT];
    fn output_adjoint<S: Simd>(s: S, y: [S::f32s; OUT]) -> [S::f32s; MUL];
    fn filter_adjoint<S: Simd>(s: S, m: [S::f32s; MUL]) -> [S::f32s; 3];
}

/// F(2, 3): two outputs from four inputs with four products (Winograd).
pub struct F2;

impl Bilinear<4, 4, 2> for F2 {
    #[inline(always)]
    fn input<S: Simd>(s: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 4] {
        [s.sub_f32s(a, c), s.add_f32s(b, c), s.sub_f32s(c, b), s.sub_f32s(b, d)]
    }
    #[inline(always)]
    fn filter<S: Simd>(s: S, [a, b, c]: [S::f32s; 3]) -> [S::f32s; 4] {
        let half = s.splat_f32s(0.5);
        let ends = s.add_f32s(a, c);
        [a, s.mul_f32s(half, s.add_f32s(ends, b)), s.mul_f32s(half, s.sub_f32s(ends, b)), c]
    }
    #[inline(always)]
    fn output<S: Simd>(s: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 2] {
        [s.add_f32s(a, s.add_f32s(b, c)), s.sub_f32s(s.sub_f32s(b, c), d)]
    }
    #[inline(always)]
    fn output_adjoint<S: Simd>(s: S, [a, b]: [S::f32s; 2]) -> [S::f32s; 4] {
        [a, s.add_f32s(a, b), s.sub_f32s(a, b), s.sub_f32s(s.splat_f32s(0.0), b)]
    }
    #[inline(always)]
    fn filter_adjoint<S: Simd>(s: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 3] {
        let half = s.splat_f32s(0.5);
        let even = s.mul_f32s(half, s.add_f32s(b, c));
        [s.add_f32s(a, even), s.mul_f32s(half, s.sub_f32s(b, c)), s.add_f32s(even, d)]
    }
}

/// A whole row of three with one zero on either side: three outputs from three inputs with five products. It is F(2, 3) for the first two outputs, and the
/// third reuses a product, because the left neighbour of the row is zero: y2 = x1 g0 + x2 g1, and x1 g0 is the first product negated.
pub struct Row3;

impl Bilinear<3, 5, 3> for Row3 {
    #[inline(always)]
    fn input<S: Simd>(s: S, [a, b, c]: [S::f32s; 3]) -> [S::f32s; 5] {
        [b, s.add_f32s(a, b), s.sub_f32s(b, a), s.sub_f32s(a, c), c]
    }
    #[inline(always)]
    fn filter<S: Simd>(s: S, [a, b, c]: [S::f32s; 3]) -> [S::f32s; 5] {
        let [_, even, odd, _] = F2::filter(s, [a, b, c]);
        [a, even, odd, c, b]
    }
    #[inline(always)]
    fn output<S: Simd>(s: S, [a, b, c, d, e]: [S::f32s; 5]) -> [S::f32s; 3] {
        [s.sub_f32s(s.add_f32s(b, c), a), s.sub_f32s(s.sub_f32s(b, c), d), s.add_f32s(a, e)]
    }
    #[inline(always)]
    fn output_adjoint<S: Simd>(s: S, [a, b, c]: [S::f32s; 3]) -> [S::f32s; 5] {
        [s.sub_f32s(c, a), s.add_f32s(a, b), s.sub_f32s(a, b), s.sub_f32s(s.splat_f32s(0.0), b), c]
    }
    #[inline(always)]
    fn filter_adjoint<S: Simd>(s: S, [a, b, c, d, e]: [S::f32s; 5]) -> [S::f32s; 3] {
        let [first, middle, last] = F2::filter_adjoint(s, [a, b, c, d]);
        [first, s.add_f32s(middle, e), last]
    }
}

/// A correlation of stride 1 from planes of `h x w` to planes of `out_h x out_w`, cut into tiles and grouped into pieces that fit the cache.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    pub n: usize,
    pub c: usize,
    pub o: usize,
    pub h: usize,
    pub w: usize,
    pub out_h: usize,
    pub out_w: usize,
    /// Rows and columns of zeros before the input, as the tiles see it.
    pub top: usize,
    pub left: usize,
    /// Tiles down and across one image.
    pub down: usize,
    pub across: usize,
    /// Images per piece; more than one only when a piece holds whole images.
    pub images: usize,
    /// Tile rows per piece.
    pub band: usize,
}

impl Grid {
    /// `tiles`: the number of tiles that a piece should have.
    pub fn with_pieces(mut self, out: usize, tiles: usize) -> Self {
        self.down = self.out_h.div_ceil(out);
        self.across = self.out_w.div_ceil(out);
        let per_image = self.down * self.across;
        if per_image <= tiles {
            self.images = (tiles / per_image).clamp(1, self.n);
            self.band = self.down;
        } else {
            self.images = 1;
            let bands = per_image.div_ceil(tiles).min(self.down);
            self.band = self.down.div_ceil(bands);
        }
        self
    }

    pub fn bands(&self) -> usize {
        self.down.div_ceil(self.band)
    }

    /// Tiles of a full piece.
    pub fn tiles(&self) -> usize {
        self.images * self.band * self.across
    }

    /// The tile rows of a band.
    pub fn band_rows(&self, band: usize) -> (usize, usize) {
        (band * self.band, self.band.min(self.down - band * self.band))
    }

    pub fn cp(&self) -> usize {
        self.c.next_multiple_of(LANES)
    }

    pub fn op(&self) -> usize {
        self.o.next_multiple_of(LANES)
    }
}

/// Distance between the matrices of successive xi, with a line to spare: equal low address bits would make the stores of one tile evict each other.
pub fn xi_stride(rows: usize, cols: usize) -> usize {
    rows * cols + LANES
}

/// A rectangle of one block of channels, `rows x cols` pixels of 16 lanes each, cut out of planes at (`y0`, `x0`), which may lie outside (zeros there).
struct Cut {
    y0: isize,
    x0: isize,
    rows: usize,
    cols: usize,
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
fn read_lanes(planes: &[f32], h: usize, w: usize, cut: &Cut, patch: &mut [[f32; LANES]]) {
    let lanes = planes.len() / (h * w);
    let (r0, r1, c0, c1) = cut.inside(h, w);
    if lanes < LANES || (r0, r1, c0, c1) != (0, cut.rows, 0, cut.cols) {
        patch.fill([0.0; LANES]);
    }
    if r0 == r1 || c0 == c1 {
        return;
    }
    let from = |r: usize| (cut.y0 + r as isize) as usize * w + (cut.x0 + c0 as isize) as usize;
    touch(&planes[..], h * w, from(r0), from(r1 - 1) + c1 - c0);
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
fn write_lanes(patch: &[[f32; LANES]], cut: &Cut, bias: Option<&[f32]>, h: usize, w: usize, planes: &mut [f32]) {
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

/// What a transform works on: tile rows `row0..row0 + rows` of one image, whose tiles are number `t0..` of the matrices.
#[derive(Clone, Copy)]
pub struct Place {
    pub row0: usize,
    pub rows: usize,
    pub t0: usize,
    /// Distance between the matrices of successive xi.
    pub stride: usize,
}

/// Fills V: for each tile, channel and xi the transformed input. `x` is one image; rows of V have `cp` channels.
pub fn input_transform<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize>(
    g: &Grid,
    x: &[f32],
    place: Place,
    patch: &mut Vec<[f32; LANES]>,
    v: &mut [f32],
) {
    let cut = Cut {
        y0: (place.row0 * OUT) as isize - g.top as isize,
        x0: -(g.left as isize),
        rows: (place.rows - 1) * OUT + IN,
        cols: (g.across - 1) * OUT + IN,
    };
    crate::cpu::simd::dispatch(Input::<A, IN, MUL, OUT> { g, x, place, cut, patch, v, algorithm: PhantomData });
}

struct Input<'a, A, const IN: usize, const MUL: usize, const OUT: usize> {
    g: &'a Grid,
    x: &'a [f32],
    place: Place,
    cut: Cut,
    patch: &'a mut Vec<[f32; LANES]>,
    v: &'a mut [f32],
    algorithm: PhantomData<A>,
}

impl<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize> WithSimd for Input<'_, A, IN, MUL, OUT> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { g, x, place, cut, patch, v, .. } = self;
        let plane = g.h * g.w;
        let per = LANES / S::F32_LANES;
        let (stride, cp) = (place.stride / S::F32_LANES, g.cp() / S::F32_LANES);
        patch.resize(cut.rows * cut.cols, [0.0; LANES]);
        for (block, planes) in x.chunks(LANES * plane).enumerate() {
            read_lanes(planes, g.h, g.w, &cut, patch);
            let (patch, _) = S::as_simd_f32s(patch.as_flattened());
            let (v, _) = S::as_mut_simd_f32s(v);
            for ty in 0..place.rows {
                for tx in 0..g.across {
                    for lane in 0..per {
                        let at = (ty * OUT * cut.cols + tx * OUT) * per + lane;
                        let mut half = [[s.splat_f32s(0.0); IN]; MUL];
                        for j in 0..IN {
                            let column = A::input(s, std::array::from_fn(|i| patch[at + (i * cut.cols + j) * per]));
                            for xi in 0..MUL {
                                half[xi][j] = column[xi];
                            }
                        }
                        let to = (place.t0 + ty * g.across + tx) * cp + block * per + lane;
                        for xi in 0..MUL {
                            let row = A::input(s, half[xi]);
                            for nu in 0..MUL {
                                v[to + (xi * MUL + nu) * stride] = row[nu];
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The adjoint of the output transform: fills the matrices of dy, one image, in rows of `op` channels. Outputs outside the image count as zero.
pub fn output_adjoint<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize>(
    g: &Grid,
    dy: &[f32],
    place: Place,
    patch: &mut Vec<[f32; LANES]>,
    m: &mut [f32],
) {
    let cut = Cut { y0: (place.row0 * OUT) as isize, x0: 0, rows: place.rows * OUT, cols: g.across * OUT };
    crate::cpu::simd::dispatch(OutputAdjoint::<A, IN, MUL, OUT> { g, dy, place, cut, patch, m, algorithm: PhantomData });
}

struct OutputAdjoint<'a, A, const IN: usize, const MUL: usize, const OUT: usize> {
    g: &'a Grid,
    dy: &'a [f32],
    place: Place,
    cut: Cut,
    patch: &'a mut Vec<[f32; LANES]>,
    m: &'a mut [f32],
    algorithm: PhantomData<A>,
}

impl<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize> WithSimd
    for OutputAdjoint<'_, A, IN, MUL, OUT>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { g, dy, place, cut, patch, m, .. } = self;
        let plane = g.out_h * g.out_w;
        let per = LANES / S::F32_LANES;
        let (stride, op) = (place.stride / S::F32_LANES, g.op() / S::F32_LANES);
        patch.resize(cut.rows * cut.cols, [0.0; LANES]);
        for (block, planes) in dy.chunks(LANES * plane).enumerate() {
            read_lanes(planes, g.out_h, g.out_w, &cut, patch);
            let (patch, _) = S::as_simd_f32s(patch.as_flattened());
            let (m, _) = S::as_mut_simd_f32s(m);
            for ty in 0..place.rows {
                for tx in 0..g.across {
                    for lane in 0..per {
                        let at = (ty * OUT * cut.cols + tx * OUT) * per + lane;
                        let mut half = [[s.splat_f32s(0.0); OUT]; MUL];
                        for j in 0..OUT {
                            let column = A::output_adjoint(s, std::array::from_fn(|i| patch[at + (i * cut.cols + j) * per]));
                            for xi in 0..MUL {
                                half[xi][j] = column[xi];
                            }
                        }
                        let to = (place.t0 + ty * g.across + tx) * op + block * per + lane;
                        for xi in 0..MUL {
                            let row = A::output_adjoint(s, half[xi]);
                            for nu in 0..MUL {
                                m[to + (xi * MUL + nu) * stride] = row[nu];
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Turns the products of one image's tiles into its outputs `y`.
pub fn output_transform<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize>(
    g: &Grid,
    m: &[f32],
    place: Place,
    bias: Option<&[f32]>,
    patch: &mut Vec<[f32; LANES]>,
    y: &mut [f32],
) {
    let cut = Cut { y0: (place.row0 * OUT) as isize, x0: 0, rows: place.rows * OUT, cols: g.across * OUT };
    crate::cpu::simd::dispatch(Output::<A, IN, MUL, OUT> { g, m, place, cut, bias, patch, y, algorithm: PhantomData });
}

struct Output<'a, A, const IN: usize, const MUL: usize, const OUT: usize> {
    g: &'a Grid,
    m: &'a [f32],
    place: Place,
    cut: Cut,
    bias: Option<&'a [f32]>,
    patch: &'a mut Vec<[f32; LANES]>,
    y: &'a mut [f32],
    algorithm: PhantomData<A>,
}

impl<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize> WithSimd for Output<'_, A, IN, MUL, OUT> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { g, m, place, cut, bias, patch, y, .. } = self;
        let plane = g.out_h * g.out_w;
        let per = LANES / S::F32_LANES;
        let (stride, op) = (place.stride / S::F32_LANES, g.op() / S::F32_LANES);
        patch.resize(cut.rows * cut.cols, [0.0; LANES]);
        for (block, planes) in y.chunks_mut(LANES * plane).enumerate() {
            {
                let (patch, _) = S::as_mut_simd_f32s(patch.as_flattened_mut());
                let (m, _) = S::as_simd_f32s(m);
                for ty in 0..place.rows {
                    for tx in 0..g.across {
                        for lane in 0..per {
                            let from = (place.t0 + ty * g.across + tx) * op + block * per + lane;
                            let mut half = [[s.splat_f32s(0.0); MUL]; OUT];
                            for nu in 0..MUL {
                                let column = A::output(s, std::array::from_fn(|xi| m[from + (xi * MUL + nu) * stride]));
                                for i in 0..OUT {
                                    half[i][nu] = column[i];
                                }
                            }
                            let at = (ty * OUT * cut.cols + tx * OUT) * per + lane;
                            for i in 0..OUT {
                                let row = A::output(s, half[i]);
                                for j in 0..OUT {
                                    patch[at + (i * cut.cols + j) * per] = row[j];
                                }
                            }
                        }
                    }
                }
            }
            let bias = bias.map(|b| &b[block * LANES..]);
            write_lanes(patch, &cut, bias, g.out_h, g.out_w, planes);
        }
    }
}

/// How the weights are read for the filter transform: as `rows` (summed over) by `lanes` (of the result) 3x3 kernels.
#[derive(Clone, Copy)]
pub struct Filters<'a> {
    pub w: &'a [f32],
    pub rows: usize,
    pub lanes: usize,
    pub row_step: usize,
    pub lane_step: usize,
    /// Rotated by 180 degrees.
    pub flip: bool,
}

/// Transforms the kernels of rows `first..` into `u`, which has one slice of (rows, lanes rounded up to 16) per xi.
pub fn filter_transform<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize>(
    f: Filters,
    first: usize,
    u: &mut [&mut [f32]],
) {
    crate::cpu::simd::dispatch(FilterOp::<A, IN, MUL, OUT> { f, first, u, algorithm: PhantomData });
}

struct FilterOp<'a, 'b, A, const IN: usize, const MUL: usize, const OUT: usize> {
    f: Filters<'a>,
    first: usize,
    u: &'a mut [&'b mut [f32]],
    algorithm: PhantomData<A>,
}

impl<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize> WithSimd
    for FilterOp<'_, '_, A, IN, MUL, OUT>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { f, first, u, .. } = self;
        let padded = f.lanes.next_multiple_of(LANES);
        let rows = u[0].len() / padded;
        let mut taps = [[0.0f32; LANES]; 9];
        for block in 0..padded / LANES {
            let lanes = LANES.min(f.lanes - block * LANES);
            if lanes < LANES {
                taps = [[0.0; LANES]; 9];
            }
            for row in 0..rows {
                for l in 0..lanes {
                    let kernel = &f.w[(first + row) * f.row_step + (block * LANES + l) * f.lane_step..][..9];
                    for t in 0..9 {
                        taps[t][l] = kernel[if f.flip { 8 - t } else { t }];
                    }
                }
                let (flat, _) = S::as_simd_f32s(taps.as_flattened());
                let per = LANES / S::F32_LANES;
                for lane in 0..per {
                    let mut half = [[s.splat_f32s(0.0); 3]; MUL];
                    for j in 0..3 {
                        let column = A::filter(s, std::array::from_fn(|i| flat[(i * 3 + j) * per + lane]));
                        for xi in 0..MUL {
                            half[xi][j] = column[xi];
                        }
                    }
                    for xi in 0..MUL {
                        let out = A::filter(s, half[xi]);
                        for nu in 0..MUL {
                            let (u, _) = S::as_mut_simd_f32s(&mut *u[xi * MUL + nu]);
                            u[(row * padded + block * LANES) / S::F32_LANES + lane] = out[nu];
                        }
                    }
                }
            }
        }
    }
}

/// The adjoint of the filter transform: the gradient of the kernels (o, c, 3, 3) of outputs `first..` from the products `m[xi]` (o, cp).
pub fn filter_adjoint<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize>(
    g: &Grid,
    m: &[f32],
    stride: usize,
    first: usize,
    dw: &mut [f32],
) {
    crate::cpu::simd::dispatch(FilterAdjoint::<A, IN, MUL, OUT> { g, m, stride, first, dw, algorithm: PhantomData });
}

struct FilterAdjoint<'a, A, const IN: usize, const MUL: usize, const OUT: usize> {
    g: &'a Grid,
    m: &'a [f32],
    stride: usize,
    first: usize,
    dw: &'a mut [f32],
    algorithm: PhantomData<A>,
}

impl<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize> WithSimd
    for FilterAdjoint<'_, A, IN, MUL, OUT>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { g, m, stride, first, dw, .. } = self;
        let per = LANES / S::F32_LANES;
        let (m, _) = S::as_simd_f32s(m);
        let (stride, cp) = (stride / S::F32_LANES, g.cp() / S::F32_LANES);
        let mut taps = [[0.0f32; LANES]; 9];
        for (o, dw) in dw.chunks_exact_mut(g.c * 9).enumerate() {
            for (block, dw) in dw.chunks_mut(LANES * 9).enumerate() {
                let (flat, _) = S::as_mut_simd_f32s(taps.as_flattened_mut());
                for lane in 0..per {
                    let from = (first + o) * cp + block * per + lane;
                    let mut half = [[s.splat_f32s(0.0); MUL]; 3];
                    for nu in 0..MUL {
                        let column = A::filter_adjoint(s, std::array::from_fn(|xi| m[from + (xi * MUL + nu) * stride]));
                        for i in 0..3 {
                            half[i][nu] = column[i];
                        }
                    }
                    for i in 0..3 {
                        let row = A::filter_adjoint(s, half[i]);
                        for j in 0..3 {
                            flat[(i * 3 + j) * per + lane] = row[j];
                        }
                    }
                }
                for (l, kernel) in dw.chunks_exact_mut(9).enumerate() {
                    for t in 0..9 {
                        kernel[t] = taps[t][l];
                    }
                }
            }
        }
    }
}
