//! Matrix products on tensor cores: launches of `kernels/matmul_mma.cu`.

use super::{Product, View, sum_parts};
use crate::{
    Array, Result,
    cuda::{Dims, Launch},
    ops::mma::{self, LIMIT, Plan, Work},
    shape::numel,
};

/// The `Product` of `matmul_mma.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Sizes {
    extents: [i32; 3],
    a_line: i32,
    b_line: i32,
    chunk: i32,
    inner: i32,
    vector: i32,
}

/// An operand as lines of elements that lie next to each other.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    /// They run along k.
    pub k_major: bool,
    /// Elements from one line to the next.
    pub stride: usize,
}

/// The operand whose rows (of a) or columns (of b) are `along` elements apart, and the steps of k `k` elements.
pub(super) fn lines(along: usize, k: usize) -> Option<Lines> {
    match (along, k) {
        (stride, 1) => Some(Lines { k_major: true, stride }),
        (1, stride) => Some(Lines { k_major: false, stride }),
        _ => None,
    }
}

/// Strides of the axes that have more than one index.
fn steps<'a>(v: &'a View, extents: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
    v.batch.iter().zip(extents).filter(|(_, e)| **e > 1).map(|(s, _)| *s)
}

impl Product {
    /// The same product with batch axes made part of m or k where the elements lie so: (B, m, k)·(k, n) is one (B·m, k)·(k, n),
    /// and its gradient one sum over B·k terms.
    pub(super) fn merged(mut self) -> Self {
        for axis in (0..self.outer.len()).rev().filter(|&i| self.outer[i] > 1).collect::<Vec<_>>() {
            if self.b.batch[axis] != 0 || self.a.batch[axis] != self.m * self.a.rows {
                break;
            }
            self.m *= std::mem::replace(&mut self.outer[axis], 1);
        }
        for axis in (0..self.inner.len()).rev().filter(|&i| self.inner[i] > 1).collect::<Vec<_>>() {
            if self.a.batch[axis] != self.k * self.a.cols || self.b.batch[axis] != self.k * self.b.rows {
                break;
            }
            self.k *= std::mem::replace(&mut self.inner[axis], 1);
        }
        self
    }

    /// Computes `y` on tensor cores, or answers false where the general kernel has to.
    pub(super) fn on_tensor_cores(
        &self,
        op: &'static str,
        y: &Array,
        a: &Array,
        b: &Array,
        bias: Option<&Array>,
    ) -> Result<bool> {
        let (Some(of_a), Some(of_b)) = (lines(self.a.rows, self.a.cols), lines(self.b.cols, self.b.rows)) else {
            return Ok(false);
        };
        let [outer, inner] = [numel(&self.outer), numel(&self.inner)];
        let small = [self.m, self.n, self.k, inner].iter().all(|&v| v > 0 && v < LIMIT)
            && self.m.max(self.n).saturating_mul(self.k) < LIMIT;
        if !small {
            return Ok(false);
        }
        let strides = [of_a.stride, of_b.stride].into_iter();
        let batches = [(&self.a, &self.outer), (&self.b, &self.outer), (&self.a, &self.inner), (&self.b, &self.inner)];
        let width = mma::width(y.dtype().size(), strides.chain(batches.into_iter().flat_map(|(v, e)| steps(v, e))));
        let work = Work { m: self.m, n: self.n, k: self.k, batch: outer, width };
        let Some(plan) = mma::plan(y, work)? else { return Ok(false) };
        let launch = |y: &Array, plan: &Plan| -> Result<()> {
            let define = plan.defines(y.dtype(), [("A_K", of_a.k_major.into()), ("B_K", of_b.k_major.into())]);
            let define = if plan.parts > 1 { define } else { self.with_activation(define) };
            let sums = plan.sums(y)?;
            let sizes = Sizes {
                extents: [self.m as i32, self.n as i32, self.k as i32],
                a_line: of_a.stride as i32,
                b_line: of_b.stride as i32,
                chunk: plan.chunk as i32,
                inner: inner as i32,
                vector: i32::from((self.n * y.dtype().size()).is_multiple_of(16)),
            };
            let tiles = plan.tiles(self.m, self.n) as u32;
            Launch::new(y, "matmul_mma.cu", "matmul_mma", &define)?
                .array(y)
                .optional(sums.as_ref())
                .array(a)
                .array(b)
                .optional(bias)
                .value(sizes)
                .value(Dims::new(op, &self.outer, &self.a.batch)?)
                .value(Dims::new(op, &self.outer, &self.b.batch)?)
                .value(Dims::new(op, &self.inner, &self.a.batch)?)
                .value(Dims::new(op, &self.inner, &self.b.batch)?)
                .run([tiles, plan.parts as u32, outer as u32], [plan.threads(), 1, 1], plan.shared())?;
            let define = self.with_activation(vec![("scalar_t", y.dtype().into())]);
            sums.map_or(Ok(()), |sums| sum_parts(y, &sums, bias, plan.parts, self.n, "sum_parts.cu", &define))
        };
        let shape = [of_a.k_major.into(), of_b.k_major.into(), of_a.stride, of_b.stride, inner, bias.is_some().into()];
        let plan = mma::tuned(y, work, ("matmul_mma", &shape), plan, &|p| launch(&y.uninit_like()?, p))?;
        launch(y, &plan)?;
        Ok(true)
    }
}
