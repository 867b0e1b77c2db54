//! Choosing elementwise between two tensors by a condition.

use crate::{
    Array, Context, Error, Result, Tensor,
    autograd::{Op, Saved, apply1},
    cuda::Launch,
    dtype::element_type,
    shape::broadcast,
};

use super::{
    binary::same_dtype,
    broadcast::{Walk, layout_of, zip2, zip3},
    reduce::sum_to,
};

/// y = a where cond ≠ 0, else b; dy goes to the one that was chosen.
///
/// Inputs: cond of any dtype (NaN counts as true), a and b of one dtype; all three broadcast to one shape.
#[derive(Clone, Copy, Debug)]
pub struct Where;

const OP: &str = "where";

impl Op for Where {
    fn name(&self) -> &'static str {
        OP
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let [cond, a, b] = x else { return Err(Error::invalid(OP, "three inputs are needed: cond, a and b")) };
        same_dtype(OP, a, b)?;
        let shape = broadcast(OP, cond.shape(), &broadcast(OP, a.shape(), b.shape())?)?;
        let mut y = Array::uninit(&shape, a.dtype(), layout_of(&shape, &[a, b, cond]), &a.context())?;
        let walk = Walk::new(&shape, y.layout(), [cond, a, b]);
        match a.context() {
            Context::Cpu => element_type!(a.dtype(), T => element_type!(cond.dtype(), C => {
                let zero = <C as crate::Element>::from_f64(0.0);
                let operands = (cond.as_slice::<C>()?, a.as_slice::<T>()?, b.as_slice::<T>()?);
                zip3(y.as_mut_slice::<T>()?, &walk, operands, |c, a, b| if c != zero { a } else { b });
            })),
            Context::Gpu(_) => {
                launch("where_fwd", &y, cond)?
                    .array(&y)
                    .array(cond)
                    .array(a)
                    .array(b)
                    .value(walk.for_kernel(OP)?)
                    .value(y.len() as i64)
                    .run_1d(y.len())?;
            }
        }
        if saved.needs(1) || saved.needs(2) {
            saved.keep(cond);
        }
        saved.outputs(OP, x, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(OP, dy)?;
        let one = |side: usize| -> Result<Option<Array>> {
            if !saved.needs(1 + side) {
                return Ok(None);
            }
            Ok(Some(sum_to(&masked(saved.get(0)?, dy, side)?, saved.shape(1 + side))?))
        };
        Ok(vec![None, one(0)?, one(1)?])
    }
}

fn launch(kernel: &'static str, y: &Array, cond: &Array) -> Result<Launch> {
    Launch::new(y, "where.cu", kernel, &[("scalar_t", y.dtype().into()), ("cond_t", cond.dtype().into())])
}

/// dy where the condition chose operand `side` (0: a, 1: b), else 0.
fn masked(cond: &Array, dy: &Array, side: usize) -> Result<Array> {
    let mut g = dy.uninit_like()?;
    let walk = Walk::new(dy.shape(), dy.layout(), [cond, dy]);
    match dy.context() {
        Context::Cpu => element_type!(dy.dtype(), T => element_type!(cond.dtype(), C => {
            let (zero, nothing) = (<C as crate::Element>::from_f64(0.0), <T as crate::Element>::from_f64(0.0));
            let (cond, dy) = (cond.as_slice::<C>()?, dy.as_slice::<T>()?);
            zip2(g.as_mut_slice::<T>()?, &walk, cond, dy, |c, dy| if (c != zero) == (side == 0) { dy } else { nothing });
        })),
        Context::Gpu(_) => {
            launch("where_bwd", &g, cond)?
                .array(&g)
                .array(cond)
                .array(dy)
                .value(walk.for_kernel(OP)?)
                .value(side as i32)
                .value(g.len() as i64)
                .run_1d(g.len())?;
        }
    }
    Ok(g)
}

impl Tensor {
    /// a where this tensor (the condition, of any dtype) is not 0, else b; all three broadcast.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::from_vec(vec![-2f32, 3.], &[2], &cpu())?;
    /// let y = x.gt(0.0)?.where_(&x, &Tensor::zeros(&[], &cpu())?)?;
    /// assert_eq!(y.to_vec()?, [0., 3.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the shapes do not broadcast, the dtypes of a and b differ, or devices differ.
    #[doc(alias = "where")]
    pub fn where_(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        apply1(Where, &[self, a, b])
    }
}
