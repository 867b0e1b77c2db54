//! The gradient of the kernels of 3x3 convolutions of stride 1, by tiles: dW = filter_adjoint(sum over tiles of output_adjoint(dy)^T input(x)).

use super::ConvProblem;
use super::bilinear::{Bilinear, F2, Row3};
use super::lanes::LANES;
use super::tiles::{Grid, Place, filter_adjoint, input_transform, output_adjoint, xi_stride};
use super::winograd::{forward_grid, is_row3, piece_tiles};
use crate::Result;
use crate::cpu::buffers::Buffer;
use crate::cpu::gemm::{Mat, MatMut, Threads, gemm};
use crate::cpu::memory;
use crate::cpu::parallel::Each;
use rayon::prelude::*;

/// Elements of transformed data per round (16 MiB): the rounds alternate between transforming and multiplying, so this should stay within the last cache.
const ROUND: usize = 1 << 22;
/// Rows of the result per product: products of one round are independent tasks.
const ROWS: usize = 128;
/// Up to this many elements (8 MiB) of products, each part of the work sums into a copy of its own. Beyond it the copies cost too much memory.
const OWN: usize = 1 << 21;
/// Copies of the products, each summing over a fixed part of the pieces.
const PARTS: usize = 8;

pub fn backward_weight(x: &[f32], dy: &[f32], dw: &mut [f32], s: &ConvProblem) -> Result<()> {
    let g = forward_grid(s);
    if is_row3(s) {
        gradient::<Row3, 3, 5, 3>(x, dy, dw, Grid { top: 0, left: 0, ..g })
    } else {
        gradient::<F2, 4, 4, 2>(x, dy, dw, g)
    }
}

/// The pieces of the work and the places of their matrices.
struct Work<'a> {
    g: Grid,
    x: &'a [f32],
    dy: &'a [f32],
    v_stride: usize,
    z_stride: usize,
    m_stride: usize,
    products: usize,
}

impl Work<'_> {
    /// A piece is a band of tile rows of a group of images.
    fn pieces(&self) -> usize {
        self.g.n.div_ceil(self.g.images) * self.g.bands()
    }

    /// Elements of the transformed x and dy of a piece.
    fn piece_len(&self) -> usize {
        self.products * (self.v_stride + self.z_stride)
    }

    /// First image, number of images, first tile row, number of tile rows.
    fn extent(&self, piece: usize) -> (usize, usize, usize, usize) {
        let (row0, rows) = self.g.band_rows(piece % self.g.bands());
        let first = piece / self.g.bands() * self.g.images;
        (first, self.g.images.min(self.g.n - first), row0, rows)
    }

    fn transform<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize>(
        &self,
        piece: usize,
        data: &mut [f32],
    ) -> Result<()> {
        let g = &self.g;
        let (x_len, y_len) = (g.c * g.h * g.w, g.o * g.out_h * g.out_w);
        let (first, count, row0, rows) = self.extent(piece);
        let (v, z) = data.split_at_mut(self.products * self.v_stride);
        let mut patch = memory::reserved(g.patch_len(IN, OUT))?;
        for image in 0..count {
            let place = |stride: usize| Place { row0, rows, t0: image * rows * g.across, stride };
            let x = &self.x[(first + image) * x_len..][..x_len];
            let dy = &self.dy[(first + image) * y_len..][..y_len];
            input_transform::<A, IN, MUL, OUT>(g, x, place(self.v_stride), &mut patch, v);
            output_adjoint::<A, IN, MUL, OUT>(g, dy, place(self.z_stride), &mut patch, z);
        }
        Ok(())
    }

    /// Adds a piece's share to rows `first..` of the products `xi` (or sets them).
    fn multiply(&self, piece: usize, data: &[f32], xi: usize, first: usize, m: &mut [f32], set: bool) {
        let g = &self.g;
        let (_, count, _, band) = self.extent(piece);
        let (v, z) = data.split_at(self.products * self.v_stride);
        let v = Mat::row_major(&v[xi * self.v_stride..], g.cp());
        let z = Mat::row_major(&z[xi * self.z_stride + first..], g.op()).t();
        let (rows, beta) = (m.len() / g.cp(), if set { 0.0 } else { 1.0 });
        gemm(rows, g.c, count * band * g.across, 1.0, z, v, beta, MatMut::row_major(m, g.cp()), Threads::One);
    }
}

fn gradient<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize>(
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    g: Grid,
) -> Result<()> {
    let (cp, op, products) = (g.cp(), g.op(), MUL * MUL);
    let m_stride = g.o * cp + LANES;
    let m_len = products * m_stride;
    let own = m_len <= OWN;
    let g = g.with_pieces(OUT, piece_tiles(&g));
    let work = Work { g, x, dy, v_stride: xi_stride(g.tiles(), cp), z_stride: xi_stride(g.tiles(), op), m_stride, products };
    let per_part = work.pieces().div_ceil(PARTS);
    let parts = if own { work.pieces().div_ceil(per_part) } else { 1 };
    let mut m = Buffer::<f32>::stale(parts * m_len)?;
    if own {
        by_parts::<A, IN, MUL, OUT>(&work, per_part, &mut m)?;
    } else {
        by_rounds::<A, IN, MUL, OUT>(&work, &mut m)?;
    }
    let (m, others) = m.split_at_mut(m_len);
    if !others.is_empty() {
        m.par_chunks_mut(m_stride).enumerate().each(|(xi, m)| {
            for other in others.chunks_exact(m_len) {
                m[..g.o * cp].iter_mut().zip(&other[xi * m_stride..]).for_each(|(m, o)| *m += o);
            }
        });
    }
    const KERNELS: usize = 16;
    let m = &*m;
    dw.par_chunks_mut(KERNELS * g.c * 9)
        .enumerate()
        .each(|(i, dw)| filter_adjoint::<A, IN, MUL, OUT>(&g, m, m_stride, i * KERNELS, dw));
    Ok(())
}

/// Each part has products of its own and goes through its pieces, which stay in the inner cache.
fn by_parts<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize>(
    work: &Work,
    per_part: usize,
    m: &mut [f32],
) -> Result<()> {
    let len = work.g.o * work.g.cp();
    m.par_chunks_exact_mut(work.products * work.m_stride).enumerate().try_each(|(part, m)| {
        let mut data = Buffer::<f32>::stale(work.piece_len())?;
        for piece in part * per_part..((part + 1) * per_part).min(work.pieces()) {
            work.transform::<A, IN, MUL, OUT>(piece, &mut data)?;
            for (xi, m) in m.chunks_exact_mut(work.m_stride).enumerate() {
                work.multiply(piece, &data, xi, 0, &mut m[..len], piece == part * per_part);
            }
        }
        Ok(())
    })
}

/// All threads transform a round of pieces and then share out its products, of which there is one copy.
fn by_rounds<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize>(
    work: &Work,
    m: &mut [f32],
) -> Result<()> {
    let (piece_len, cp) = (work.piece_len(), work.g.cp());
    let per_round = (ROUND / piece_len).max(2).min(work.pieces());
    let mut data = Buffer::<f32>::stale(per_round * piece_len)?;
    for start in (0..work.pieces()).step_by(per_round) {
        let in_round = per_round.min(work.pieces() - start);
        let data = &mut data[..in_round * piece_len];
        data.par_chunks_exact_mut(piece_len)
            .enumerate()
            .try_each(|(i, data)| work.transform::<A, IN, MUL, OUT>(start + i, data))?;
        let data = &*data;
        m.par_chunks_exact_mut(work.m_stride).enumerate().each(|(xi, m)| {
            m[..work.g.o * cp].par_chunks_mut(ROWS * cp).enumerate().each(|(block, m)| {
                for (i, data) in data.chunks_exact(piece_len).enumerate() {
                    work.multiply(start + i, data, xi, block * ROWS, m, start + i == 0);
                }
            });
        });
    }
    Ok(())
}
