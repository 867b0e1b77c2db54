//! The Euclidean norm over axes.

use crate::{
    Array, Context, DType, Error, Result, Tensor,
    autograd::{Op, Saved, apply1},
    cpu::{buffers::Buffer, parallel},
    dtype::{Element, Real, real_type},
    ops::{Unary, UnaryKind, broadcast::expand, cast::cast},
};

use super::{
    Fold, fold, gpu,
    plan::{Order, Plan, kept_shape},
};

/// y = √Σx² over `axes` (all of them when empty, negative ones count from the end). Floats only.
///
/// Squares and their sum are f64 whatever the dtype, so that only a norm that the dtype cannot hold overflows.
/// dx = dy·x/y, and 0 where y = 0, of the subgradients there the one of least norm.
///
/// Shapes: x (d₀, …), y without the reduced axes, or with extents of 1 when `keepdims`.
#[derive(Clone, Debug)]
pub struct Norm {
    /// The axes.
    pub axes: Vec<isize>,
    /// Reduced axes stay, with extent 1.
    pub keepdims: bool,
}

impl Op for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let [x] = inputs else { return Err(Error::invalid(self.name(), "one input is needed")) };
        if !x.dtype().is_float() {
            return Err(Error::DType { op: self.name(), dtype: x.dtype(), hint: "a float type is needed; use `cast`" });
        }
        let plan = Plan::new(self.name(), x, &self.axes, self.keepdims, Order::Memory)?;
        let squares = fold(x, &plan, Fold::Squares, 1.0, DType::F64)?;
        let wide = Unary(UnaryKind::Sqrt).value(&squares)?;
        if saved.wanted() {
            saved.keep(x);
            // Not y, which may have overflowed in x's dtype.
            saved.keep(&wide);
        }
        saved.outputs(self.name(), inputs, vec![cast(&wide, x.dtype())?])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        let (x, y) = (saved.get(0)?, saved.get(1)?);
        // With the reduced axes as 1, dy and y broadcast to x.
        let kept = kept_shape(self.name(), saved.shape(0), &self.axes)?;
        let wide = |a: &Array| if a.shape() == kept { Ok(a.clone()) } else { a.reshape(&kept) };
        let (dy, y) = (wide(dy)?, wide(y)?);
        if x.context().is_gpu() {
            return Ok(vec![Some(gpu::norm_gradient(x, &dy, &y)?)]);
        }
        let spread = |a: &Array| expand(a, x.shape(), x.layout())?.to_context(&Context::Cpu);
        let (dy, y) = (spread(&dy)?, spread(&y)?);
        let y = y.as_slice::<f64>()?;
        real_type!(self.name(), x.dtype(), F => {
            let (x_, dy) = (x.real::<F>(self.name())?, dy.real::<F>(self.name())?);
            let mut dx = Buffer::<F>::stale(x.len())?;
            parallel::chunks(&mut dx, |start, dx| {
                for (i, dx) in (start..).zip(dx) {
                    *dx = if y[i] == 0.0 { F::ZERO } else { F::from_f64(dy[i].to_f64() * (x_[i].to_f64() / y[i])) };
                }
            });
            Ok(vec![Some(Array::from_real(dx, x.shape(), x.dtype())?.with_layout(x.layout()))])
        })
    }
}

impl Tensor {
    /// ‖x‖ = √Σx² over `axes`, all of them when the list is empty; its gradient at x = 0 is 0. See [`Norm`].
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// assert_eq!(Tensor::from_vec(vec![3f32, 4.], &[2], &cpu())?.norm(&[])?.item()?, 5.0);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// When an axis is out of range or named twice, or for integers.
    pub fn norm(&self, axes: &[isize]) -> Result<Tensor> {
        apply1(Norm { axes: axes.to_vec(), keepdims: false }, &[self])
    }

    /// [`Tensor::norm`] that keeps the reduced axes with extent 1.
    pub fn norm_keepdims(&self, axes: &[isize]) -> Result<Tensor> {
        apply1(Norm { axes: axes.to_vec(), keepdims: true }, &[self])
    }
}
