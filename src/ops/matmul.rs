//! Matrix products: `matmul`, `matmul_t`, `dot`.

use super::operands::same_float;
use crate::{
    Array, Error, Layout, Result, Tensor,
    autograd::{Op, Saved, apply1},
    gemm::{Gemm, MatrixView},
    shape::{broadcast, broadcast_strides, numel},
};

/// y = op(a) · op(b), where op transposes the last two axes if asked to.
///
/// Axes before the last two are a batch and broadcast by numpy's rule; a vector as `a` is a row, as `b` a column, and its
/// axis is absent from the result. da = dy · op(b)ᵀ and db = op(a)ᵀ · dy, transposed back and summed over stretched axes.
#[derive(Clone, Copy, Debug, Default)]
pub struct MatMul {
    /// The last two axes of a are swapped; a vector stays.
    pub transpose_a: bool,
    /// The last two axes of b are swapped; a vector stays.
    pub transpose_b: bool,
}

/// The extents and strides of one matmul.
struct Plan {
    m: usize,
    n: usize,
    k: usize,
    /// op(a) (m, k) and op(b) (k, n).
    a: MatrixView,
    b: MatrixView,
    batch: Vec<usize>,
    /// Which batch axes are stretched for a and for b.
    stretched: [Vec<bool>; 2],
    /// The shape of y.
    shape: Vec<usize>,
}

impl MatMul {
    fn plan(&self, a: &[usize], b: &[usize]) -> Result<Plan> {
        let fail = |reason: String| Error::shape(self.name(), reason, &[a, b]);
        if a.is_empty() || b.is_empty() {
            return Err(fail("a scalar has no matrix product; multiply with *".into()));
        }
        // Vectors as matrices of one row (a) or column (b).
        let (own_a, own_b) = match (a, b) {
            (&[k], _) if b.len() == 1 => (vec![1, k], vec![b[0], 1]),
            (&[k], _) => (vec![1, k], b.to_vec()),
            (_, &[k]) => (a.to_vec(), vec![k, 1]),
            _ => (a.to_vec(), b.to_vec()),
        };
        let (batch_a, mat_a) = own_a.split_at(own_a.len() - 2);
        let (batch_b, mat_b) = own_b.split_at(own_b.len() - 2);
        let (flip_a, flip_b) = (self.transpose_a && a.len() > 1, self.transpose_b && b.len() > 1);
        let (m, k) = if flip_a { (mat_a[1], mat_a[0]) } else { (mat_a[0], mat_a[1]) };
        let (k_b, n) = if flip_b { (mat_b[1], mat_b[0]) } else { (mat_b[0], mat_b[1]) };
        if k != k_b {
            let what = |flip: bool, name: &str| if flip { format!("{name}ᵀ") } else { name.to_owned() };
            let (a, b) = (what(flip_a, "a"), what(flip_b, "b"));
            return Err(fail(format!("the inner extents of {a} (…, {m}, {k}) and {b} (…, {k_b}, {n}) differ")));
        }
        let batch = broadcast(self.name(), batch_a, batch_b).map_err(|_| fail("the batch axes do not broadcast".into()))?;
        let view = |own: &[usize], mat: &[usize], flip: bool| {
            let size = mat[0] * mat[1];
            let strides = broadcast_strides(own, &batch).into_iter().map(|s| s * size).collect();
            let v = MatrixView { batch: strides, rows: mat[1], cols: 1 };
            if flip { v.t() } else { v }
        };
        let stretched = |own: &[usize]| {
            let skip = batch.len() - own.len();
            (0..batch.len()).map(|i| batch[i] != 1 && (i < skip || own[i - skip] == 1)).collect()
        };
        let mut shape = batch.clone();
        shape.extend((a.len() > 1).then_some(m));
        shape.extend((b.len() > 1).then_some(n));
        Ok(Plan {
            m,
            n,
            k,
            a: view(batch_a, mat_a, flip_a),
            b: view(batch_b, mat_b, flip_b),
            stretched: [stretched(batch_a), stretched(batch_b)],
            batch,
            shape,
        })
    }
}

impl Plan {
    /// dy (m, n) as an operand.
    fn dy(&self) -> MatrixView {
        let size = self.m * self.n;
        MatrixView {
            batch: broadcast_strides(&self.batch, &self.batch).into_iter().map(|s| s * size).collect(),
            rows: self.n,
            cols: 1,
        }
    }

    /// left (m, k) · right (k, n), summed over the batch axes that were stretched for operand `of`.
    fn gradient(&self, of: usize, left: MatrixView, right: MatrixView, [m, n, k]: [usize; 3]) -> Gemm {
        let pick = |summed: bool| {
            let each = self.batch.iter().zip(&self.stretched[of]);
            each.map(|(&e, &s)| if s == summed { e } else { 1 }).collect()
        };
        Gemm { m, n, k, a: left, b: right, outer: pick(false), inner: pick(true), activation: None }
    }
}

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let [a, b] = x else { return Err(Error::invalid(self.name(), "two inputs are needed")) };
        same_float(self.name(), x)?;
        let plan = self.plan(a.shape(), b.shape())?;
        let (a, b) = (a.to_layout(Layout::RowMajor)?, b.to_layout(Layout::RowMajor)?);
        let ones = vec![1; plan.batch.len()];
        let product =
            Gemm { m: plan.m, n: plan.n, k: plan.k, a: plan.a, b: plan.b, outer: plan.batch, inner: ones, activation: None };
        let y = product.run(self.name(), &a, &b, None, &plan.shape)?;
        // Each operand is needed for the other one's gradient.
        if saved.needs(0) {
            saved.keep(&b);
        }
        if saved.needs(1) {
            saved.keep(&a);
        }
        saved.outputs(self.name(), x, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let plan = self.plan(saved.shape(0), saved.shape(1))?;
        let [dy] = saved.gradients(self.name(), dy)?;
        let dy = dy.to_layout(Layout::RowMajor)?;
        let (m, n, k) = (plan.m, plan.n, plan.k);
        let flipped = |flag: bool, i: usize| flag && saved.shape(i).len() > 1;
        // Each gradient is computed as its operand lies in memory: transposed, if that is.
        let da = if saved.needs(0) {
            let b = saved.get(0)?;
            let (product, left, right) = if flipped(self.transpose_a, 0) {
                (plan.gradient(0, plan.b.clone(), plan.dy().t(), [k, m, n]), b, &dy)
            } else {
                (plan.gradient(0, plan.dy(), plan.b.t(), [m, k, n]), &dy, b)
            };
            Some(product.run(self.name(), left, right, None, saved.shape(0))?)
        } else {
            None
        };
        let db = if saved.needs(1) {
            let a = saved.get(usize::from(saved.needs(0)))?;
            let (product, left, right) = if flipped(self.transpose_b, 1) {
                (plan.gradient(1, plan.dy().t(), plan.a.clone(), [n, k, m]), &dy, a)
            } else {
                (plan.gradient(1, plan.a.t(), plan.dy(), [k, n, m]), a, &dy)
            };
            Some(product.run(self.name(), left, right, None, saved.shape(1))?)
        } else {
            None
        };
        Ok(vec![da, db])
    }
}

impl Tensor {
    /// The matrix product over the last two axes; axes before them broadcast, vectors are a row (left) or a column (right).
    ///
    /// (…, m, k) · (…, k, n) → (…, m, n); the book's `dot` and `batch_dot`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the inner extents differ, the batches do not broadcast, or an operand is a scalar.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let a = Tensor::from_vec(vec![1f32, 2., 3., 4., 5., 6.], &[2, 3], &cpu())?;
    /// let b = Tensor::ones(&[3, 2], &cpu())?;
    /// assert_eq!(a.matmul(&b)?.to_vec()?, [6., 6., 15., 15.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[doc(alias("mm", "bmm"))]
    pub fn matmul(&self, b: &Tensor) -> Result<Tensor> {
        self.matmul_t(b, false, false)
    }

    /// [`Tensor::matmul`] with the last two axes of either operand swapped first; nothing is copied for it.
    pub fn matmul_t(&self, b: &Tensor, transpose_a: bool, transpose_b: bool) -> Result<Tensor> {
        apply1(MatMul { transpose_a, transpose_b }, &[self, b])
    }

    /// The book's `nd.dot`: inner product of two vectors (a scalar), matrix times vector, or matrix times matrix.
    ///
    /// # Errors
    /// [`Error::Shape`] for other ranks and for extents that do not fit.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::arange(0.0, 4.0, 1.0, &cpu())?;
    /// assert_eq!(x.dot(&x)?.item()?, 14.0);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn dot(&self, b: &Tensor) -> Result<Tensor> {
        let ranks = (self.rank(), b.rank());
        if !matches!(ranks, (1, 1) | (2, 1) | (2, 2)) {
            let reason = "two vectors, a matrix and a vector, or two matrices are needed; for batches use `matmul`";
            return Err(Error::shape("dot", reason, &[&self.shape(), &b.shape()]));
        }
        self.matmul(b)
    }
}

/// The number of rows of `shape` seen as a matrix whose columns are the last axis.
pub(super) fn leading(shape: &[usize]) -> usize {
    numel(&shape[..shape.len().saturating_sub(1)])
}
