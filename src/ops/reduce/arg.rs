//! Where extrema are: argmax, argmin, and the gradient of max and min.

use crate::{
    Array, DType, Error, Result, Tensor,
    autograd::{Op, Saved, apply1},
    dtype::element_type,
    ops::number::{Number, number_type},
};

use super::{
    cpu, gpu,
    plan::{Order, Plan, offset},
};

/// Which extremum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgKind {
    /// The largest element.
    Max,
    /// The smallest element.
    Min,
}

/// The index (i64) of the largest or smallest element along an axis, or in the whole array in row-major order.
///
/// The first one of several; NaN counts as the largest and as the smallest, as in numpy. No gradient.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    /// Which extremum.
    pub kind: ArgKind,
    /// The axis; `None` for the whole array.
    pub axis: Option<isize>,
    /// The axis stays, with extent 1.
    pub keepdims: bool,
}

impl Op for Arg {
    fn name(&self) -> &'static str {
        match self.kind {
            ArgKind::Max => "argmax",
            ArgKind::Min => "argmin",
        }
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let [x] = inputs else { return Err(Error::invalid(self.name(), "one input is needed")) };
        let axes: Vec<isize> = self.axis.into_iter().collect();
        let plan = Plan::new(self.name(), x, &axes, self.keepdims, Order::Logical)?;
        let (_, index) = run(self.name(), x, &plan, self.kind == ArgKind::Max, (false, true))?;
        saved.outputs(self.name(), inputs, index.into_iter().collect())
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        saved.check(self.name(), dy)?;
        Ok(vec![None])
    }
}

/// The extremum of each output, and its place if asked for.
pub(super) fn extremum(op: &'static str, x: &Array, plan: &Plan, largest: bool, index: bool) -> Result<(Array, Option<Array>)> {
    match run(op, x, plan, largest, (true, index))? {
        (Some(y), index) => Ok((y, index)),
        _ => Err(Error::invalid(op, "no output")),
    }
}

fn run(op: &'static str, x: &Array, plan: &Plan, largest: bool, want: (bool, bool)) -> Result<(Option<Array>, Option<Array>)> {
    if plan.count == 0 && plan.outputs > 0 {
        return Err(Error::shape(op, "no elements to choose from", &[x.shape()]));
    }
    if x.context().is_gpu() {
        return gpu::extremum(x, plan, largest, want);
    }
    number_type!(x.dtype(), T => {
        let x_ = T::elements(x, op)?;
        let y = cpu::extremum::<T>(&x_, plan, largest)?;
        let array = |a: Array| a.with_layout(plan.layout);
        let index = match want.1 {
            true => Some(array(i64::array(cpu::places(&x_, plan, &y)?, &plan.shape, DType::I64)?)),
            false => None,
        };
        let y = if want.0 { Some(array(T::array(y, &plan.shape, x.dtype())?)) } else { None };
        Ok((y, index))
    })
}

/// dx of `shape`: dy at the places of the extrema, 0 elsewhere.
pub(super) fn scatter(op: &'static str, dy: &Array, index: &Array, shape: &[usize], axes: &[isize]) -> Result<Array> {
    let mut dx = Array::zeros(shape, dy.dtype(), &dy.context())?.with_layout(dy.layout());
    // The same order of outputs and elements as in the forward pass, in dx's memory.
    let keepdims = dy.rank() == shape.len();
    let plan = Plan::new(op, &dx, axes, keepdims, Order::Logical)?;
    let (dy, index) = (dy.to_layout(plan.layout)?, index.to_layout(plan.layout)?);
    if dx.context().is_gpu() {
        gpu::scatter(&dx, &dy, &index, &plan)?;
        return Ok(dx);
    }
    element_type!(dy.dtype(), T => {
        let (dy, index) = (dy.as_slice::<T>()?, index.as_slice::<i64>()?);
        let dx = dx.as_mut_slice::<T>()?;
        for (o, (&dy, &r)) in dy.iter().zip(index).enumerate() {
            dx[offset(&plan.kept, o) + offset(&plan.reduced, r as usize)] = dy;
        }
    });
    Ok(dx)
}

impl Tensor {
    /// The index of the largest element along `axis` (first of several, NaN is the largest); `None`: in the whole
    /// tensor in row-major order.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::from_vec(vec![1f32, 9., 2., 7., 3., 7.], &[2, 3], &cpu())?;
    /// assert_eq!(x.argmax(1)?.to_vec()?, [1., 0.]);
    /// assert_eq!(x.argmax(None)?.item()?, 1.0);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the axis is out of range or there are no elements.
    pub fn argmax(&self, axis: impl Into<Option<isize>>) -> Result<Tensor> {
        apply1(Arg { kind: ArgKind::Max, axis: axis.into(), keepdims: false }, &[self])
    }

    /// The index of the smallest element, as [`Tensor::argmax`].
    pub fn argmin(&self, axis: impl Into<Option<isize>>) -> Result<Tensor> {
        apply1(Arg { kind: ArgKind::Min, axis: axis.into(), keepdims: false }, &[self])
    }
}
