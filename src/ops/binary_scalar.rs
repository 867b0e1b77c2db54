//! One operand and a constant: the functions of [`super::binary`] without a second array.

use crate::{
    Array, Context, DType, Error, Result,
    autograd::{Op, Saved},
    cpu::buffers::Buffer,
    dtype::real_type,
};

use super::{
    binary::{BinaryKind, BinaryKind::*, launch},
    broadcast::Walk,
    number::{Number, number_type},
};

/// y = f(x, s), or f(s, x) when `flipped`, with a constant s.
///
/// For an integer x the constant has to be one of its dtype's values; for the halves it keeps f32's precision.
#[derive(Clone, Copy, Debug)]
pub struct BinaryScalar {
    /// The function.
    pub kind: BinaryKind,
    /// The constant s.
    pub scalar: f64,
    /// The constant stands on the left.
    pub flipped: bool,
}

/// y = f(x, s) on arrays, or f(s, x) when `flipped`.
pub(crate) fn scalar(kind: BinaryKind, x: &Array, s: f64, flipped: bool) -> Result<Array> {
    kind.check(x.dtype())?;
    let whole = match x.dtype() {
        DType::U8 => f64::from(s as u8) == s,
        // 2⁶³ itself would be saturated to 2⁶³ − 1 and come back as 2⁶³.
        DType::I64 => (s as i64) as f64 == s && s < 9_223_372_036_854_775_808.0,
        _ => true,
    };
    if !whole {
        return Err(Error::invalid(kind.name(), format!("{s} is not a {} value: `cast` the tensor first", x.dtype())));
    }
    match x.context() {
        Context::Cpu => number_type!(x.dtype(), T => {
            let (n, s) = (x.len(), [<T as crate::Element>::from_f64(s)]);
            let mut y = Buffer::<T>::stale(n)?;
            let x_ = T::elements(x, kind.name())?;
            match flipped {
                false => kind.compute(&mut y, &Walk::flat(n, [1, 0]), &x_, &s),
                true => kind.compute(&mut y, &Walk::flat(n, [0, 1]), &s, &x_),
            }
            Ok(T::array(y, x.shape(), x.dtype())?.with_layout(x.layout()))
        }),
        Context::Gpu(_) => {
            let y = x.uninit_like()?;
            launch(kind, "scalar_fwd", &y)?
                .array(&y)
                .array(x)
                .value(s)
                .value(i32::from(flipped))
                .value(y.len() as i64)
                .run_packed(y.len(), y.dtype())?;
            Ok(y)
        }
    }
}

impl Op for BinaryScalar {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let [x] = inputs else { return Err(Error::invalid(self.name(), "one input is needed")) };
        if saved.wanted() && self.kept() {
            saved.keep(x);
        }
        saved.outputs(self.name(), inputs, vec![scalar(self.kind, x, self.scalar, self.flipped)?])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        let dx = match self.kind {
            Add => dy.clone(),
            Sub if self.flipped => scalar(Mul, dy, -1.0, false)?,
            Sub => dy.clone(),
            Mul => scalar(Mul, dy, self.scalar, false)?,
            Div if !self.flipped => scalar(Div, dy, self.scalar, false)?,
            kind if kind.is_comparison() => return Ok(vec![None]),
            _ => self.gradient(saved.get(0)?, dy)?,
        };
        Ok(vec![Some(dx)])
    }
}

impl BinaryScalar {
    /// True where the gradient is a function of x.
    fn kept(&self) -> bool {
        matches!(self.kind, Power | Maximum | Minimum) || (self.kind == Div && self.flipped)
    }

    fn gradient(&self, x: &Array, dy: &Array) -> Result<Array> {
        let (kind, op) = (self.kind, self.kind.name());
        let dy = dy.to_layout(x.layout())?;
        match x.context() {
            Context::Cpu => real_type!(op, x.dtype(), F => {
                let s = <F as crate::Element>::from_f64(self.scalar);
                let (x_, dy) = (x.real::<F>(op)?, dy.real::<F>(op)?);
                let mut dx = Buffer::<F>::stale(x.len())?;
                let flipped = self.flipped;
                crate::cpu::parallel::zip(&mut dx, &dy, &x_, |dy, x| match flipped {
                    false => kind.gradient(dy, x, s, 0),
                    true => kind.gradient(dy, s, x, 1),
                });
                Ok(Array::from_real(dx, x.shape(), x.dtype())?.with_layout(x.layout()))
            }),
            Context::Gpu(_) => {
                let dx = x.uninit_like()?;
                launch(kind, "scalar_bwd", &dx)?
                    .array(&dx)
                    .array(&dy)
                    .array(x)
                    .value(self.scalar)
                    .value(i32::from(self.flipped))
                    .value(dx.len() as i64)
                    .run_packed(dx.len(), dx.dtype())?;
                Ok(dx)
            }
        }
    }
}
