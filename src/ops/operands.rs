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
