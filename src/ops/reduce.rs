//! Sums, means, products and extrema over axes, and where the extrema are.
//!
//! Accumulated in f64 (i64 for the integers), also what the halves and f32 have between two passes: nothing overflows or is rounded
//! before the result is. CPU: in fixed pieces, so that neither the number of elements nor that of threads changes the last digits of
//! an f32 result; f64 itself by halves. GPU: a block for each output, or a thread for each when neighbouring outputs are
//! neighbours in memory; few outputs of many elements in two passes.
//! All orders are fixed, so results are the same bits each time.

mod arg;
mod cpu;
mod gpu;
mod norm;
mod plan;

pub use arg::{Arg, ArgKind};
pub use norm::Norm;

use crate::{
    Array, DType, Error, Result, Tensor,
    autograd::{Op, Saved, apply1},
    dtype::real_type,
    shape::numel,
};

use super::{
    binary::BinaryKind,
    binary_scalar::scalar,
    broadcast::{expand, fits},
    number::{Number, number_type},
};
use plan::{Order, Plan};

/// Which reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceKind {
    /// Σ x; 0 of no elements. u8 is summed in i64.
    Sum,
    /// Σ x / n; NaN of no elements. Floats only.
    Mean,
    /// The largest element, NaN if there is one; an error of no elements.
    Max,
    /// The smallest element, NaN if there is one; an error of no elements.
    Min,
    /// Π x; 1 of no elements. u8 is multiplied in i64.
    Prod,
}

/// How elements are put together: what the CPU's loops and `kernels/reduce.cu` know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fold {
    Sum,
    Prod,
    /// The sum of the squares; of floats, always as f64.
    Squares,
}

/// y = a reduction of x over `axes` (all of them when empty, negative ones count from the end).
///
/// Shapes: x (d₀, …), y without the reduced axes, or with extents of 1 when `keepdims`. Of several largest (smallest)
/// elements the first in row-major order gets the gradient of max (min). The gradient of a product is right with
/// zeros among its factors.
#[derive(Clone, Debug)]
pub struct Reduce {
    /// The reduction.
    pub kind: ReduceKind,
    /// The axes.
    pub axes: Vec<isize>,
    /// Reduced axes stay, with extent 1.
    pub keepdims: bool,
}

use ReduceKind::*;

impl Op for Reduce {
    fn name(&self) -> &'static str {
        match self.kind {
            Sum => "sum",
            Mean => "mean",
            Max => "max",
            Min => "min",
            Prod => "prod",
        }
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let [x] = inputs else { return Err(Error::invalid(self.name(), "one input is needed")) };
        let plan = |order| Plan::new(self.name(), x, &self.axes, self.keepdims, order);
        let y = match self.kind {
            Sum => fold(x, &plan(Order::Memory)?, Fold::Sum, 1.0, wide_integer(x.dtype()))?,
            Prod => {
                if saved.wanted() {
                    saved.keep(x);
                }
                fold(x, &plan(Order::Memory)?, Fold::Prod, 1.0, wide_integer(x.dtype()))?
            }
            Mean if !x.dtype().is_float() => {
                let hint = "the mean of integers is none: `cast` to a float type first";
                return Err(Error::DType { op: "mean", dtype: x.dtype(), hint });
            }
            Mean => {
                let plan = plan(Order::Memory)?;
                fold(x, &plan, Fold::Sum, plan.count as f64, x.dtype())?
            }
            Max | Min => {
                let (y, index) = arg::extremum(self.name(), x, &plan(Order::Logical)?, self.kind == Max, saved.wanted())?;
                if let Some(index) = index {
                    saved.keep(&index);
                }
                y
            }
        };
        saved.outputs(self.name(), inputs, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let (shape, [dy]) = (saved.shape(0), saved.gradients(self.name(), dy)?);
        // With the reduced axes as 1, dy broadcasts to x.
        let kept = plan::kept_shape(self.name(), shape, &self.axes)?;
        let layout = dy.layout();
        let wide = || if dy.shape() == kept { Ok(dy.clone()) } else { dy.reshape(&kept) };
        let dx = match self.kind {
            Sum => expand(&wide()?, shape, layout)?,
            Mean => {
                let n = numel(shape) as f64 / numel(&kept) as f64;
                // An empty x has an empty gradient, whatever n.
                let dy = if n > 0.0 { scalar(BinaryKind::Div, &wide()?, n, false)? } else { wide()? };
                expand(&dy, shape, layout)?
            }
            Max | Min => arg::scatter(self.name(), dy, saved.get(0)?, shape, &self.axes)?,
            Prod => prod_gradient(saved.get(0)?, &wide()?, &self.axes)?,
        };
        Ok(vec![Some(dx)])
    }
}

/// A sum of bytes does not fit a byte.
fn wide_integer(dtype: DType) -> DType {
    if dtype == DType::U8 { DType::I64 } else { dtype }
}

/// y = fold(x) / divisor as `out`.
fn fold(x: &Array, plan: &Plan, how: Fold, divisor: f64, out: DType) -> Result<Array> {
    if x.context().is_gpu() {
        return gpu::fold(x, plan, how, divisor, out);
    }
    number_type!(x.dtype(), T => {
        let x_ = T::elements(x, "reduce")?;
        let mut y = cpu::fold::<T>(&x_, plan, how)?;
        if divisor != 1.0 {
            let d = <<T as Number>::Wide as crate::Element>::from_f64(divisor);
            y.iter_mut().for_each(|y| *y = y.over(d));
        }
        Ok(T::rounded(y, &plan.shape, out)?.with_layout(plan.layout))
    })
}

/// dxᵢ = dy · Π_{j≠i} xⱼ; 0 where that product is, whatever dy is.
fn prod_gradient(x: &Array, dy: &Array, axes: &[isize]) -> Result<Array> {
    let plan = Plan::new("prod", x, axes, true, Order::Memory)?;
    if x.context().is_gpu() {
        return gpu::prod_gradient(x, dy, &plan);
    }
    real_type!("prod", x.dtype(), F => cpu::prod_gradient::<F>(x, dy, &plan))
}

/// `a` summed over the axes along which `shape` was stretched to a's: the way back through broadcasting.
///
/// # Errors
/// [`Error::Shape`] when `shape` does not broadcast to a's.
pub(crate) fn sum_to(a: &Array, shape: &[usize]) -> Result<Array> {
    if a.shape() == shape {
        return Ok(a.clone());
    }
    fits("sum_to", shape, a.shape())?;
    let skip = a.rank() - shape.len();
    let stretched = |d: usize| d < skip || (shape[d - skip] == 1 && a.shape()[d] != 1);
    let axes: Vec<isize> = (0..a.rank()).filter(|&d| stretched(d)).map(|d| d as isize).collect();
    let plan = Plan::new("sum_to", a, &axes, true, Order::Memory)?;
    if let Some(sums) = gpu::bias_sums(a, &plan)? {
        return sums.reshape(shape);
    }
    let y = fold(a, &plan, Fold::Sum, 1.0, wide_integer(a.dtype()))?;
    if y.shape() == shape { Ok(y) } else { y.reshape(shape) }
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident, $keep:ident => $kind:expr;)*) => {
        impl Tensor {
            $($(#[$doc])*
            ///
            /// # Errors
            /// When an axis is out of range or named twice, or the dtype has no such reduction.
            pub fn $name(&self, axes: &[isize]) -> Result<Tensor> {
                apply1(Reduce { kind: $kind, axes: axes.to_vec(), keepdims: false }, &[self])
            }

            #[doc = concat!("[`Tensor::", stringify!($name), "`] that keeps the reduced axes with extent 1.")]
            pub fn $keep(&self, axes: &[isize]) -> Result<Tensor> {
                apply1(Reduce { kind: $kind, axes: axes.to_vec(), keepdims: true }, &[self])
            })*
        }
    };
}

methods! {
    /// Σ x over `axes`; over all of them when the list is empty.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::arange(0.0, 6.0, 1.0, &cpu())?.reshape(&[2, 3])?;
    /// assert_eq!(x.sum(&[])?.item()?, 15.0);
    /// assert_eq!(x.sum(&[0])?.to_vec()?, [3., 5., 7.]);
    /// assert_eq!(x.sum_keepdims(&[-1])?.shape(), [2, 1]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    sum, sum_keepdims => Sum;
    /// The mean over `axes`, all of them when the list is empty; NaN of no elements. Floats only.
    mean, mean_keepdims => Mean;
    /// The largest element over `axes`, all of them when the list is empty; NaN if there is one.
    ///
    /// Of several largest ones the first gets the gradient. No elements have no maximum: an error.
    max, max_keepdims => Max;
    /// The smallest element over `axes`, as [`Tensor::max`].
    min, min_keepdims => Min;
    /// Π x over `axes`, all of them when the list is empty; 1 of no elements.
    prod, prod_keepdims => Prod;
}
