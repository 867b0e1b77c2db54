//! The transforms between images and tiles.
//!
//! Images are read and written in blocks of 16 channels (see `lanes`); the algorithm is one of `bilinear`, applied along columns and then along rows.

use super::bilinear::Bilinear;
use super::lanes::{Cut, LANES, read_lanes, write_lanes};
use pulp::{Simd, WithSimd};
use std::marker::PhantomData;

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

    /// Pixels of the largest patch of one band: what the transforms read, tiles of `input` rows that lie `out` apart.
    pub fn patch_len(&self, input: usize, out: usize) -> usize {
        let along = |tiles: usize| tiles.saturating_mul(out).saturating_add(input - out);
        along(self.band).saturating_mul(along(self.across))
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
                #[allow(clippy::needless_range_loop)] // l is a lane here and a kernel there
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
