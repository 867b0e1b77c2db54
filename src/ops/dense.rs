//! The fully connected layer as one op: y = x wᵀ + b, or an activation of that.

use super::{Unary, UnaryKind, bias_grad::column_sums, matmul::leading, operands::same_float};
use crate::{
    Array, Error, Layout, Result, Tensor,
    autograd::{Op, Saved, apply1},
    gemm::{Gemm, MatrixView},
};

/// y = x wᵀ + b for x (…, in), w (units, in) and, if given, b (units); y is (…, units).
///
/// dx = dy · w, dw = dyᵀ · x and db = the sum of dy over all axes but the last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dense;

/// y = f(x wᵀ + b) with ReLU, sigmoid or tanh for f, computed where the product's sums are stored; the inputs of [`Dense`].
///
/// The gradients are those of `Dense` for g = dy · f′, which needs y alone. f32 and f64 give the bits of both operations one after
/// the other; 16-bit types round once instead of twice.
#[derive(Clone, Copy, Debug)]
pub struct DenseActivation(pub UnaryKind);

const OP: &str = "dense";

/// Rows, inputs and units.
fn extents(x: &[usize], w: &[usize], b: Option<&[usize]>) -> Result<[usize; 3]> {
    let shapes: Vec<&[usize]> = [x, w].into_iter().chain(b).collect();
    let fail = |reason: String| Err(Error::shape(OP, reason, &shapes));
    let &[units, inputs] = w else { return fail("a weight of 2 dimensions (units, inputs) is needed".into()) };
    let Some(&last) = x.last() else { return fail("an input with at least 1 dimension is needed".into()) };
    if last != inputs {
        return fail(format!("the input has {last} columns, the weight takes {inputs}"));
    }
    if b.is_some_and(|b| b != [units]) {
        return fail(format!("the bias needs {units} elements, one for each unit"));
    }
    Ok([leading(x), inputs, units])
}

/// left · right for two single matrices.
fn single(m: usize, n: usize, k: usize, a: MatrixView, b: MatrixView) -> Gemm {
    Gemm { m, n, k, a, b, outer: Vec::new(), inner: Vec::new(), activation: None }
}

fn forward(x: &[&Array], activation: Option<UnaryKind>, saved: &mut Saved) -> Result<Array> {
    let (x, w, b) = match *x {
        [x, w] => (x, w, None),
        [x, w, b] => (x, w, Some(b)),
        _ => return Err(Error::invalid(OP, "two or three inputs are needed: x, w and perhaps b")),
    };
    same_float(OP, &[&[x, w][..], b.as_slice()].concat())?;
    let [rows, inputs, units] = extents(x.shape(), w.shape(), b.map(Array::shape))?;
    let x = x.to_layout(Layout::RowMajor)?;
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = units;
    }
    let mut product = single(rows, units, inputs, MatrixView::matrix(inputs, 1), MatrixView::matrix(1, inputs));
    product.activation = activation;
    let y = product.run(OP, &x, w, b, &shape)?;
    if saved.needs(0) {
        saved.keep(w);
    }
    if saved.needs(1) {
        saved.keep(&x);
    }
    Ok(y)
}

fn backward(saved: &Saved, dy: &Array) -> Result<Vec<Option<Array>>> {
    let [rows, inputs, units] = extents(saved.shape(0), saved.shape(1), None)?;
    let dy = dy.to_layout(Layout::RowMajor)?;
    let run = |p: Gemm, a: &Array, b: &Array, shape: &[usize]| p.run(OP, a, b, None, shape).map(Some);
    let dx = if saved.needs(0) {
        let product = single(rows, inputs, units, MatrixView::matrix(units, 1), MatrixView::matrix(inputs, 1));
        run(product, &dy, saved.get(0)?, saved.shape(0))?
    } else {
        None
    };
    let dw = if saved.needs(1) {
        let product = single(units, inputs, rows, MatrixView::matrix(1, units), MatrixView::matrix(inputs, 1));
        run(product, &dy, saved.get(usize::from(saved.needs(0)))?, saved.shape(1))?
    } else {
        None
    };
    let mut grads = vec![dx, dw];
    if saved.inputs() == 3 {
        let db = || column_sums(OP, &dy, rows, units);
        grads.push(if saved.needs(2) { Some(db()?) } else { None });
    }
    Ok(grads)
}

impl Op for Dense {
    fn name(&self) -> &'static str {
        OP
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let y = forward(x, None, saved)?;
        saved.outputs(OP, x, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(OP, dy)?;
        backward(saved, dy)
    }
}

impl Op for DenseActivation {
    fn name(&self) -> &'static str {
        OP
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        if self.0.epilogue().is_none() {
            return Err(Error::invalid(OP, format!("a product ends with relu, sigmoid or tanh, not with {:?}", self.0)));
        }
        let y = forward(x, Some(self.0), saved)?;
        if saved.wanted() {
            saved.keep(&y);
        }
        saved.outputs(OP, x, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let y = saved.get(usize::from(saved.needs(0)) + usize::from(saved.needs(1)))?;
        let [dy] = saved.gradients(OP, dy)?;
        backward(saved, &Unary(self.0).gradient(y, dy)?)
    }
}

impl Tensor {
    /// y = x wᵀ + b: a fully connected layer on the last axis, with w (units, in) and b (units).
    ///
    /// # Errors
    /// [`Error::Shape`] when the last axis of x is not w's second, or b has another length than w's first.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::from_vec(vec![1f32, 2.], &[1, 2], &cpu())?;
    /// let w = Tensor::from_vec(vec![1f32, 0., 0., 1., 1., 1.], &[3, 2], &cpu())?;
    /// let b = Tensor::full(&[3], 0.5, &cpu())?;
    /// assert_eq!(x.dense(&w, Some(&b))?.to_vec()?, [1.5, 2.5, 3.5]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[doc(alias = "linear")]
    pub fn dense(&self, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
        match b {
            Some(b) => apply1(Dense, &[self, w, b]),
            None => apply1(Dense, &[self, w]),
        }
    }

    /// f(x wᵀ + b) for ReLU, sigmoid or tanh, computed where the product is stored. See [`DenseActivation`].
    ///
    /// # Errors
    /// As for [`Tensor::dense`]; [`Error::Invalid`] for another f.
    ///
    /// ```
    /// use hadal::{Tensor, cpu, ops::UnaryKind};
    /// let x = Tensor::from_vec(vec![1f32, -2.], &[1, 2], &cpu())?;
    /// let w = Tensor::from_vec(vec![1f32, 0., 0., 1.], &[2, 2], &cpu())?;
    /// assert_eq!(x.dense_activation(&w, None, UnaryKind::Relu)?.to_vec()?, [1., 0.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn dense_activation(&self, w: &Tensor, b: Option<&Tensor>, f: UnaryKind) -> Result<Tensor> {
        let inputs: Vec<&Tensor> = [self, w].into_iter().chain(b).collect();
        apply1(DenseActivation(f), &inputs)
    }
}
