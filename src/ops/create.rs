//! Filling and accumulating device arrays; the operations that the engine itself needs.

use crate::{Array, Result, cuda::Launch};

/// `y[i] = value` on the device.
pub(crate) fn fill(y: &Array, value: f64) -> Result<()> {
    Launch::new(y, "create.cu", "fill", &[("scalar_t", y.dtype().into())])?
        .array(y)
        .value(value)
        .value(y.len() as i64)
        .run_1d(y.len())
}

/// `y[i] += x[i]` on the device; both in the same memory order, `y` not shared.
pub(crate) fn accumulate(y: &Array, x: &Array) -> Result<()> {
    Launch::new(y, "create.cu", "accumulate", &[("scalar_t", y.dtype().into())])?
        .array(y)
        .array(x)
        .value(y.len() as i64)
        .run_1d(y.len())
}
