//! GEMM on the CPU: the definition in plain loops, and f32 by the gemm crate.

use super::{Gemm, MatrixView};
use crate::{
    Array, DType, Result,
    cpu::{
        buffers::Buffer,
        gemm::{Mat, MatMut, Threads, gemm},
        parallel,
    },
    dtype::{Element, Real, real_type},
    shape::{checked_numel, numel},
};

/// The offset of the `i`-th index of `extents` under `strides`.
fn offset(mut i: usize, extents: &[usize], strides: &[usize]) -> usize {
    let mut sum = 0;
    for (&e, &s) in extents.iter().zip(strides).rev() {
        sum += i % e * s;
        i /= e;
    }
    sum
}

impl Gemm {
    /// [`Gemm::run`] on the CPU.
    pub(super) fn run_on_cpu(
        &self,
        op: &'static str,
        a: &Array,
        b: &Array,
        bias: Option<&Array>,
        shape: &[usize],
    ) -> Result<Array> {
        let dtype = a.dtype();
        real_type!(op, dtype, F => {
            let (a, b) = (a.real::<F>(op)?, b.real::<F>(op)?);
            let bias = bias.map(|b| b.real::<F>(op)).transpose()?;
            let mut y = Buffer::<F>::stale(checked_numel(op, shape)?)?;
            if y.is_empty() {
                return Array::from_real(y, shape, dtype);
            }
            if F::DTYPE == DType::F32 {
                let bias: Option<&[f32]> = bias.as_deref().map(bytemuck::cast_slice);
                self.fast(bytemuck::cast_slice(&a), bytemuck::cast_slice(&b), bias, bytemuck::cast_slice_mut(&mut y));
            } else {
                self.reference(&a, &b, bias.as_deref(), &mut y);
            }
            if let Some(kind) = self.activation {
                kind.assign(&mut y);
            }
            Array::from_real(y, shape, dtype)
        })
    }

    /// The definition in plain loops.
    fn reference<F: Real>(&self, a: &[F], b: &[F], bias: Option<&[F]>, y: &mut [F]) {
        for (o, y) in y.chunks_mut(self.m * self.n).enumerate() {
            for (i, y) in y.chunks_mut(self.n).enumerate() {
                for (j, y) in y.iter_mut().enumerate() {
                    let mut sum = bias.map_or(F::ZERO, |b| b[j]);
                    for (from_a, from_b) in self.terms(o) {
                        for k in 0..self.k {
                            sum += a[from_a + i * self.a.rows + k * self.a.cols] * b[from_b + k * self.b.rows + j * self.b.cols];
                        }
                    }
                    *y = sum;
                }
            }
        }
    }

    /// Where the matrices of each summed product of `y[o]` start.
    fn terms(&self, o: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let start = |v: &MatrixView| offset(o, &self.outer, &v.batch);
        let (a, b) = (start(&self.a), start(&self.b));
        (0..numel(&self.inner))
            .map(move |r| (a + offset(r, &self.inner, &self.a.batch), b + offset(r, &self.inner, &self.b.batch)))
    }

    /// The same by the gemm crate. Products are spread over the threads, or split inside where there are few; the sums
    /// along k are the same either way.
    fn fast(&self, a: &[f32], b: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
        let (m, n, k) = (self.m, self.n, self.k);
        let nothing = k == 0 || self.inner.contains(&0);
        let one = |o: usize, y: &mut [f32], threads: Threads| {
            match bias {
                Some(bias) => y.chunks_mut(n).for_each(|row| row.copy_from_slice(bias)),
                None if nothing => y.fill(0.0),
                None => {}
            }
            if nothing {
                return;
            }
            let mut beta = if bias.is_some() { 1.0 } else { 0.0 };
            for (from_a, from_b) in self.terms(o) {
                let a = Mat::new(&a[from_a..], self.a.rows, self.a.cols);
                let b = Mat::new(&b[from_b..], self.b.rows, self.b.cols);
                gemm(m, n, k, 1.0, a, b, beta, MatMut::row_major(y, n), threads);
                beta = 1.0;
            }
        };
        let (count, work) = (numel(&self.outer), (m * n).saturating_mul(k).saturating_mul(numel(&self.inner)));
        if count < 4 && work > 1 << 19 {
            y.chunks_mut(m * n).enumerate().for_each(|(o, y)| one(o, y, Threads::Pool));
        } else if count.saturating_mul(work) < 1 << 17 {
            y.chunks_mut(m * n).enumerate().for_each(|(o, y)| one(o, y, Threads::One));
        } else {
            parallel::pieces(y, m * n, &|o, y| one(o, y, Threads::One));
        }
    }
}
