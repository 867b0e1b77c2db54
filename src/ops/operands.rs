//! Checks of inputs that several ops share.

use crate::{Array, DType, Error, Result};

/// The one float dtype of all operands.
///
/// # Errors
/// [`Error::DType`] when it is an integer type, [`Error::DTypes`] when two operands differ.
pub(crate) fn same_float(op: &'static str, x: &[&Array]) -> Result<DType> {
    let Some(first) = x.first() else { return Err(Error::invalid(op, "an input is needed")) };
    for a in x {
        let dtype = a.dtype();
        if !dtype.is_float() {
            return Err(Error::DType { op, dtype, hint: "a float type is needed; use `cast`" });
        }
        if dtype != first.dtype() {
            return Err(Error::DTypes { op, left: first.dtype(), right: dtype });
        }
    }
    Ok(first.dtype())
}

/// The number of elements of a result.
///
/// # Errors
/// [`Error::Shape`] when no memory could hold them.
pub(crate) fn countable(op: &'static str, shape: &[usize]) -> Result<usize> {
    let n = shape.iter().try_fold(1usize, |a, &b| a.checked_mul(b)).filter(|&n| n <= isize::MAX as usize / 8);
    n.ok_or_else(|| Error::shape(op, "the result has too many elements", &[shape]))
}
