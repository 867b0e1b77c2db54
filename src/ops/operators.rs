//! The methods and operators of two operands: `x.add(&y)?`, `x.gt(0.5)?`, `(&x + &y)?`, `(1.0 - x)?`, `x.add_(&y)?`.

use std::ops;

use crate::{Array, Error, Result, Tensor, autograd::apply1, shape::Display};

use super::{
    binary::{AddN, Binary, BinaryKind, BinaryKind::*, binary},
    binary_scalar::{BinaryScalar, scalar},
};

/// The right-hand side of an operation: a tensor, or a number.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// Broadcast with the left-hand side.
    Tensor(&'a Tensor),
    /// A constant.
    Number(f64),
}

impl<'a> From<&'a Tensor> for Operand<'a> {
    fn from(t: &'a Tensor) -> Self {
        Operand::Tensor(t)
    }
}

impl From<f64> for Operand<'_> {
    fn from(x: f64) -> Self {
        Operand::Number(x)
    }
}

fn apply(kind: BinaryKind, a: &Tensor, b: Operand) -> Result<Tensor> {
    match b {
        Operand::Tensor(b) => apply1(Binary(kind), &[a, b]),
        Operand::Number(s) => apply1(BinaryScalar { kind, scalar: s, flipped: false }, &[a]),
    }
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident => $kind:expr;)*) => {
        impl Tensor {
            $($(#[$doc])*
            ///
            /// # Errors
            /// When the shapes do not broadcast, or the dtypes or devices differ.
            pub fn $name<'a>(&self, other: impl Into<Operand<'a>>) -> Result<Tensor> {
                apply($kind, self, other.into())
            })*
        }
    };
}

methods! {
    /// x + y with broadcasting; y is a tensor or a number.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::arange(0.0, 6.0, 1.0, &cpu())?.reshape(&[2, 3])?;
    /// let column = Tensor::from_vec(vec![10f32, 20.], &[2, 1], &cpu())?;
    /// assert_eq!(x.add(&column)?.to_vec()?, [10., 11., 12., 23., 24., 25.]);
    /// assert_eq!(x.add(1.0)?.to_vec()?, [1., 2., 3., 4., 5., 6.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    add => Add;
    /// x − y with broadcasting.
    sub => Sub;
    /// x·y elementwise with broadcasting.
    mul => Mul;
    /// x / y with broadcasting; integers are cut towards zero, and x / 0 is 0 for them.
    div => Div;
    /// xʸ with broadcasting; floats only. [`Tensor::pow`] takes a constant exponent.
    power => Power;
    /// The larger of x and y; of equal ones x, which gets the gradient. NaN if one is.
    maximum => Maximum;
    /// The smaller of x and y; of equal ones x, which gets the gradient. NaN if one is.
    minimum => Minimum;
    /// 1 where x = y, else 0, in x's dtype; no gradient.
    eq => Eq;
    /// 1 where x ≠ y, else 0, in x's dtype; no gradient.
    ne => Ne;
    /// 1 where x < y, else 0, in x's dtype; no gradient.
    lt => Lt;
    /// 1 where x ≤ y, else 0, in x's dtype; no gradient.
    le => Le;
    /// 1 where x > y, else 0, in x's dtype; no gradient.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::from_vec(vec![0.2f32, 0.5, 0.9], &[3], &cpu())?;
    /// assert_eq!(x.gt(0.5)?.to_vec()?, [0., 0., 1.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    gt => Gt;
    /// 1 where x ≥ y, else 0, in x's dtype; no gradient.
    ge => Ge;
}

macro_rules! in_place {
    ($($(#[$doc:meta])* $name:ident, $text:literal => $kind:expr;)*) => {
        impl Tensor {
            $($(#[$doc])*
            ///
            /// Not recorded. All clones of the tensor see the change; arrays that shared its memory do not.
            ///
            /// # Errors
            /// When y does not stretch to x's shape, and in [`crate::autograd::record`] when x or y is on the tape.
            pub fn $name<'a>(&self, other: impl Into<Operand<'a>>) -> Result<()> {
                replace($text, $kind, self, other.into())
            })*
        }
    };
}

in_place! {
    /// x += y.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::ones(&[2], &cpu())?;
    /// x.add_(&Tensor::arange(0.0, 2.0, 1.0, &cpu())?)?;
    /// assert_eq!(x.to_vec()?, [1., 2.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    add_, "add_" => Add;
    /// x −= y.
    sub_, "sub_" => Sub;
    /// x *= y.
    mul_, "mul_" => Mul;
    /// x /= y.
    div_, "div_" => Div;
}

fn replace(op: &'static str, kind: BinaryKind, x: &Tensor, y: Operand) -> Result<()> {
    // Read before the lock: y may be x itself.
    let y: Result<Array, f64> = match y {
        Operand::Tensor(t) => Ok(t.array()),
        Operand::Number(s) => Err(s),
    };
    let recorded = y.as_ref().is_ok_and(Array::is_recorded);
    x.write_in_place(op, recorded, |value| {
        *value = match &y {
            Ok(y) => {
                value.context().same(op, &y.context())?;
                let result = binary(kind, value, y)?;
                if result.shape() != value.shape() {
                    let reason = format!("the result {} does not fit in place", Display(result.shape()));
                    return Err(Error::shape(op, reason, &[value.shape(), y.shape()]));
                }
                result
            }
            Err(s) => scalar(kind, value, *s, false)?,
        };
        Ok(())
    })
}

impl Tensor {
    /// x₀ + x₁ + … of tensors of one shape, added in this order; the book's `nd.add_n`.
    ///
    /// # Errors
    /// Without operands, or when shapes, dtypes or devices differ.
    pub fn add_n(x: &[&Tensor]) -> Result<Tensor> {
        apply1(AddN, x)
    }
}

macro_rules! operators {
    ($($trait:ident, $method:ident => $kind:expr;)*) => {$(
        impl ops::$trait<&Tensor> for &Tensor {
            type Output = Result<Tensor>;
            fn $method(self, other: &Tensor) -> Result<Tensor> {
                apply1(Binary($kind), &[self, other])
            }
        }
        impl ops::$trait<Tensor> for &Tensor {
            type Output = Result<Tensor>;
            fn $method(self, other: Tensor) -> Result<Tensor> {
                apply1(Binary($kind), &[self, &other])
            }
        }
        impl ops::$trait<&Tensor> for Tensor {
            type Output = Result<Tensor>;
            fn $method(self, other: &Tensor) -> Result<Tensor> {
                apply1(Binary($kind), &[&self, other])
            }
        }
        impl ops::$trait<Tensor> for Tensor {
            type Output = Result<Tensor>;
            fn $method(self, other: Tensor) -> Result<Tensor> {
                apply1(Binary($kind), &[&self, &other])
            }
        }
        impl ops::$trait<f64> for &Tensor {
            type Output = Result<Tensor>;
            fn $method(self, s: f64) -> Result<Tensor> {
                apply1(BinaryScalar { kind: $kind, scalar: s, flipped: false }, &[self])
            }
        }
        impl ops::$trait<f64> for Tensor {
            type Output = Result<Tensor>;
            fn $method(self, s: f64) -> Result<Tensor> {
                apply1(BinaryScalar { kind: $kind, scalar: s, flipped: false }, &[&self])
            }
        }
        impl ops::$trait<&Tensor> for f64 {
            type Output = Result<Tensor>;
            fn $method(self, x: &Tensor) -> Result<Tensor> {
                apply1(BinaryScalar { kind: $kind, scalar: self, flipped: true }, &[x])
            }
        }
        impl ops::$trait<Tensor> for f64 {
            type Output = Result<Tensor>;
            fn $method(self, x: Tensor) -> Result<Tensor> {
                apply1(BinaryScalar { kind: $kind, scalar: self, flipped: true }, &[&x])
            }
        }
    )*};
}

operators! {
    Add, add => Add;
    Sub, sub => Sub;
    Mul, mul => Mul;
    Div, div => Div;
}

impl ops::Neg for &Tensor {
    type Output = Result<Tensor>;
    fn neg(self) -> Result<Tensor> {
        // 0 − x would make +0 of +0, so it serves the integers only.
        if self.dtype().is_float() { Tensor::neg(self) } else { 0.0 - self }
    }
}

impl ops::Neg for Tensor {
    type Output = Result<Tensor>;
    fn neg(self) -> Result<Tensor> {
        -&self
    }
}
