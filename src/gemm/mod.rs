//! Matrix products: `matmul`, `dense` and their gradients, with strided operands, a batch, and a batch that is summed.
//!
//! y[o] = f(Σᵣ a[o, r] b[o, r] (+ bias)), f maybe an activation, with a (m, k), b (k, n), y (m, n). A transpose swaps strides, a
//! broadcast axis has stride 0, and the gradient of a broadcast operand is a sum over r.
//!
//! On the GPU a [`GemmCall`] goes through the one selector ([`select`]) over the list [`GemmPlan`]:
//!
//! | algorithm | file | computes |
//! | --- | --- | --- |
//! | wgmma | [`wgmma`] | bf16, f16, TF32 on sm_90a |
//! | mma.sync | [`mma`] | bf16, f16, TF32, 3xTF32 from sm_75 or sm_80 on |
//! | bf16x6 | [`bf16x6`] | f32 on sm_90a |
//! | SIMT | [`simt`] | everything |
//!
//! [`model`] has the tiles and cost models that GEMM and [`crate::conv`] share, [`arch`] all constants of a chip. A new algorithm is
//! a file that implements [`Algorithm`](select::Algorithm), and a line of the list.

pub(crate) mod arch;
pub(crate) mod bf16x3;
mod bf16x6;
pub(crate) mod bn_stats;
mod cpu;
pub(crate) mod fast_divmod;
mod mma;
pub(crate) mod model;
mod operand;
pub(crate) mod select;
mod simt;
pub(crate) mod split_k;
mod wgmma;

use crate::{
    Array, Context, DType, Error, Layout, Result,
    cuda::Define,
    ops::UnaryKind,
    precision::{self, Precision},
    shape::numel,
};
use arch::Arch;
use bf16x6::Bf16x6;
use mma::Mma;
use select::{AnyPlan, Tuning, algorithms, select};
use simt::Simt;
use wgmma::Wgmma;

algorithms!(
    /// A plan of one of the algorithms, in the order in which they are asked.
    GemmPlan for GemmCall -> Array:
    Wgmma,
    Mma,
    Bf16x6,
    Simt,
);

/// One operand: element strides of each batch axis (0 where it is stretched), of a row and of a column.
#[derive(Clone, Debug)]
pub(crate) struct MatrixView {
    pub batch: Vec<usize>,
    pub rows: usize,
    pub cols: usize,
}

impl MatrixView {
    /// A single matrix.
    pub(crate) fn matrix(rows: usize, cols: usize) -> Self {
        MatrixView { batch: Vec::new(), rows, cols }
    }

    /// The transpose of each matrix.
    pub(crate) fn t(&self) -> Self {
        MatrixView { batch: self.batch.clone(), rows: self.cols, cols: self.rows }
    }
}

/// A batch of products; see the module.
#[derive(Clone, Debug)]
pub(crate) struct Gemm {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: MatrixView,
    pub b: MatrixView,
    /// Extents of the batch axes of y; 1 on those that are summed.
    pub outer: Vec<usize>,
    /// Extents of the batch axes that are summed; 1 on the others.
    pub inner: Vec<usize>,
    /// The epilogue: ReLU, sigmoid or tanh.
    pub activation: Option<UnaryKind>,
}

/// A GEMM on a GPU with its operands: what an algorithm computes.
pub(crate) struct GemmCall<'a> {
    pub op: &'static str,
    pub gemm: &'a Gemm,
    pub a: &'a Array,
    pub b: &'a Array,
    pub bias: Option<&'a Array>,
    /// The shape of y, of outer·m·n elements.
    pub shape: &'a [usize],
    pub arch: Arch,
    pub precision: Precision,
}

impl GemmCall<'_> {
    fn dtype(&self) -> DType {
        self.a.dtype()
    }

    /// Products side by side, and products that are summed.
    fn batches(&self) -> [usize; 2] {
        [numel(&self.gemm.outer), numel(&self.gemm.inner)]
    }

    /// Multiply-adds.
    fn macs(&self) -> usize {
        let [outer, inner] = self.batches();
        [self.gemm.m, self.gemm.n, self.gemm.k, outer, inner].iter().fold(1usize, |p, &v| p.saturating_mul(v))
    }

    /// Memory for y.
    fn uninit_y(&self) -> Result<Array> {
        Array::uninit(self.shape, self.dtype(), Layout::RowMajor, &self.a.context())
    }

    /// The `-D` of the epilogue, behind `define`.
    fn with_activation(&self, mut define: Vec<(&'static str, Define)>) -> Vec<(&'static str, Define)> {
        define.extend(self.gemm.activation.and_then(UnaryKind::epilogue).map(|f| ("ACTIVATION", f)));
        define
    }

    /// All that its time depends on, for the autotuner.
    fn key(&self) -> Vec<usize> {
        let g = self.gemm;
        let precision = if self.dtype() == DType::F32 { self.precision as usize } else { 0 };
        let flags = [self.dtype() as usize, precision, self.bias.is_some().into(), g.activation.is_some().into()];
        let [outer, inner] = self.batches();
        let mut key = [&flags[..], &[g.m, g.n, g.k, outer, inner, g.a.rows, g.a.cols, g.b.rows, g.b.cols]].concat();
        key.extend(g.a.batch.iter().chain(&g.b.batch));
        key
    }
}

/// A launch got a plan that is not for its call.
fn unsupported(call: &GemmCall) -> Error {
    Error::invalid(call.op, "a plan of another product")
}

impl Gemm {
    /// y of row-major operands in `shape`, which has outer·m·n elements.
    pub(crate) fn run(&self, op: &'static str, a: &Array, b: &Array, bias: Option<&Array>, shape: &[usize]) -> Result<Array> {
        debug_assert!(a.layout() == Layout::RowMajor && b.layout() == Layout::RowMajor);
        if a.context() == Context::Cpu {
            return self.run_on_cpu(op, a, b, bias, shape);
        }
        if shape.contains(&0) {
            return Array::uninit(shape, a.dtype(), Layout::RowMajor, &a.context());
        }
        let gemm = &self.clone().merged();
        let call = GemmCall { op, gemm, a, b, bias, shape, arch: Arch::of(a)?, precision: precision::get() };
        let trial = |plan: &GemmPlan| plan.launch(&call).map(|_| ());
        let tuning = Tuning { device: a.cuda(op)?.owner(), family: "gemm", key: &|| call.key(), trial: &trial };
        select(&call, &tuning)?.launch(&call)
    }

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
}
