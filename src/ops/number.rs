//! The four types that arithmetic and reductions compute in on the CPU: f32 (also for the halves), f64, u8, i64.

use std::borrow::Cow;

use crate::{Array, DType, Element, Result, cpu::buffers::Buffer};

/// Arithmetic of a dtype. Integers wrap around; their quotient is cut towards zero and 0 for a divisor of 0.
pub(crate) trait Number: Element {
    /// What sums and products are accumulated in: f64, or i64 for the integers.
    type Wide: Number;
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// What no maximum is below.
    const LOWEST: Self;
    /// What no minimum is above.
    const HIGHEST: Self;
    /// a + b
    fn plus(self, b: Self) -> Self;
    /// a − b
    fn minus(self, b: Self) -> Self;
    /// a·b
    fn times(self, b: Self) -> Self;
    /// a / b
    fn over(self, b: Self) -> Self;
    /// aᵇ; floats only, the ops refuse integers.
    fn power(self, b: Self) -> Self;
    /// Exact.
    fn widen(self) -> Self::Wide;
    /// The elements of a host array in memory order.
    fn elements<'a>(a: &'a Array, op: &'static str) -> Result<Cow<'a, [Self]>>;
    /// A host array of `dtype`, one that computes in this type.
    fn array(data: Buffer<Self>, shape: &[usize], dtype: DType) -> Result<Array>;
    /// A host array of `dtype` from accumulators; i64 for the integers whatever `dtype`.
    fn rounded(data: Buffer<Self::Wide>, shape: &[usize], dtype: DType) -> Result<Array>;
    /// True for NaN.
    fn is_nan(self) -> bool {
        self.partial_cmp(&self).is_none()
    }
}

macro_rules! float {
    ($t:ty) => {
        impl Number for $t {
            type Wide = f64;
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const LOWEST: Self = <$t>::NEG_INFINITY;
            const HIGHEST: Self = <$t>::INFINITY;
            fn plus(self, b: Self) -> Self {
                self + b
            }
            fn minus(self, b: Self) -> Self {
                self - b
            }
            fn times(self, b: Self) -> Self {
                self * b
            }
            fn over(self, b: Self) -> Self {
                self / b
            }
            fn power(self, b: Self) -> Self {
                self.powf(b)
            }
            fn widen(self) -> f64 {
                self.into()
            }
            fn elements<'a>(a: &'a Array, op: &'static str) -> Result<Cow<'a, [Self]>> {
                a.real::<$t>(op)
            }
            fn array(data: Buffer<Self>, shape: &[usize], dtype: DType) -> Result<Array> {
                Array::from_real(data, shape, dtype)
            }
            fn rounded(data: Buffer<f64>, shape: &[usize], dtype: DType) -> Result<Array> {
                Array::from_real(data, shape, dtype)
            }
        }
    };
}
float!(f32);
float!(f64);

macro_rules! integer {
    ($t:ty) => {
        impl Number for $t {
            type Wide = i64;
            const ZERO: Self = 0;
            const ONE: Self = 1;
            const LOWEST: Self = <$t>::MIN;
            const HIGHEST: Self = <$t>::MAX;
            fn plus(self, b: Self) -> Self {
                self.wrapping_add(b)
            }
            fn minus(self, b: Self) -> Self {
                self.wrapping_sub(b)
            }
            fn times(self, b: Self) -> Self {
                self.wrapping_mul(b)
            }
            fn over(self, b: Self) -> Self {
                if b == 0 { 0 } else { self.wrapping_div(b) }
            }
            fn power(self, _: Self) -> Self {
                0
            }
            fn widen(self) -> i64 {
                self.into()
            }
            fn elements<'a>(a: &'a Array, _: &'static str) -> Result<Cow<'a, [Self]>> {
                a.as_slice::<$t>().map(Cow::Borrowed)
            }
            fn array(data: Buffer<Self>, shape: &[usize], _: DType) -> Result<Array> {
                Ok(Array::host(<$t>::wrap(data), shape, <$t>::DTYPE))
            }
            fn rounded(data: Buffer<i64>, shape: &[usize], _: DType) -> Result<Array> {
                Ok(Array::host(i64::wrap(data), shape, DType::I64))
            }
        }
    };
}
integer!(u8);
integer!(i64);

/// Runs a block with `$N` set to the type that the CPU computes `$dtype` in.
macro_rules! number_type {
    ($dtype:expr, $N:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 | $crate::DType::F16 | $crate::DType::BF16 => {
                type $N = f32;
                $body
            }
            $crate::DType::F64 => {
                type $N = f64;
                $body
            }
            $crate::DType::U8 => {
                type $N = u8;
                $body
            }
            $crate::DType::I64 => {
                type $N = i64;
                $body
            }
        }
    };
}
pub(crate) use number_type;
