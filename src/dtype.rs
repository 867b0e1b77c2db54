//! Element types: which exist, how they are read and written, and which ones an operation computes in.

use std::{borrow::Cow, fmt, str::FromStr, sync::Arc};

use half::{bf16, f16};

use crate::{
    Error, Result,
    cpu::{
        buffers::{Buffer, Pooled},
        math, memory,
    },
};

/// The type of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision, the default.
    F32,
    /// IEEE double precision, for references and gradient checks.
    F64,
    /// IEEE half precision; arithmetic accumulates in f32.
    F16,
    /// bfloat16; arithmetic accumulates in f32.
    BF16,
    /// Bytes, such as image pixels.
    U8,
    /// Indices and labels.
    I64,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::U8 => 1,
            DType::F16 | DType::BF16 => 2,
            DType::F32 => 4,
            DType::F64 | DType::I64 => 8,
        }
    }

    /// True for the types that gradients flow through.
    pub fn is_float(self) -> bool {
        !matches!(self, DType::U8 | DType::I64)
    }

    /// The type's name in kernel sources, the value of `-Dscalar_t=`.
    pub fn cuda_name(self) -> &'static str {
        match self {
            DType::F32 => "float",
            DType::F64 => "double",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::U8 => "u8",
            DType::I64 => "i64",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::U8 => "u8",
            DType::I64 => "i64",
        })
    }
}

impl FromStr for DType {
    type Err = Error;

    /// By the name that is printed: `f32`, `bf16`, …
    fn from_str(name: &str) -> Result<Self> {
        let all = [DType::F32, DType::F64, DType::F16, DType::BF16, DType::U8, DType::I64];
        let known = all.map(|d| d.to_string());
        all.into_iter()
            .find(|d| d.to_string() == name)
            .ok_or_else(|| Error::invalid("dtype", format!("{name:?} is none of {}", known.join(", "))))
    }
}

/// Host memory of an array, shared by reference count and copied when a shared one is written.
#[derive(Clone)]
#[allow(missing_docs)]
pub enum CpuStorage {
    F32(Arc<Buffer<f32>>),
    F64(Arc<Buffer<f64>>),
    F16(Arc<Buffer<f16>>),
    BF16(Arc<Buffer<bf16>>),
    U8(Arc<Buffer<u8>>),
    I64(Arc<Buffer<i64>>),
}

impl fmt::Debug for CpuStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dtype, len) = match self {
            CpuStorage::F32(b) => (DType::F32, b.len()),
            CpuStorage::F64(b) => (DType::F64, b.len()),
            CpuStorage::F16(b) => (DType::F16, b.len()),
            CpuStorage::BF16(b) => (DType::BF16, b.len()),
            CpuStorage::U8(b) => (DType::U8, b.len()),
            CpuStorage::I64(b) => (DType::I64, b.len()),
        };
        write!(f, "{dtype}[{len}]")
    }
}

/// A Rust type that arrays can hold: `f32`, `f64`, `f16`, `bf16`, `u8`, `i64`.
pub trait Element: bytemuck::Pod + Pooled + PartialEq + PartialOrd + fmt::Debug + private::Sealed {
    /// Its tag.
    const DTYPE: DType;
    /// From a double, rounded to nearest (saturating for the integers).
    fn from_f64(x: f64) -> Self;
    /// To a double, exact for all but large `i64`.
    fn to_f64(self) -> f64;
    #[doc(hidden)]
    fn wrap(buffer: Buffer<Self>) -> CpuStorage;
    #[doc(hidden)]
    fn view(storage: &CpuStorage) -> Option<&[Self]>;
    #[doc(hidden)]
    fn view_mut(storage: &mut CpuStorage) -> Result<Option<&mut [Self]>>;
}

mod private {
    pub trait Sealed {}
}

macro_rules! element {
    ($t:ty, $tag:ident, $from:expr, $to:expr) => {
        impl private::Sealed for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$tag;
            fn from_f64(x: f64) -> Self {
                $from(x)
            }
            fn to_f64(self) -> f64 {
                $to(self)
            }
            fn wrap(buffer: Buffer<Self>) -> CpuStorage {
                CpuStorage::$tag(Arc::new(buffer))
            }
            fn view(storage: &CpuStorage) -> Option<&[Self]> {
                match storage {
                    CpuStorage::$tag(b) => Some(b),
                    _ => None,
                }
            }
            fn view_mut(storage: &mut CpuStorage) -> Result<Option<&mut [Self]>> {
                let CpuStorage::$tag(b) = storage else { return Ok(None) };
                // Copy on write: nobody else who holds this memory sees the change.
                if Arc::get_mut(b).is_none() {
                    *b = Arc::new(b.copy()?);
                }
                Ok(Arc::get_mut(b).map(|b| &mut **b))
            }
        }
    };
}

element!(f32, F32, |x| x as f32, |x| x as f64);
element!(f64, F64, |x| x, |x| x);
// Inherent functions of the half types come before these in method calls: write `<T as Element>::from_f64`.
element!(f16, F16, |x| f16::from_f32(to_odd(x)), |x: f16| x.to_f64());
element!(bf16, BF16, |x| bf16::from_f32(to_odd(x)), |x: bf16| x.to_f64());
element!(u8, U8, |x| x as u8, |x| x as f64);
element!(i64, I64, |x| x as i64, |x| x as f64);

/// An f32 from which rounding to a half gives what rounding `x` itself would: where it is inexact its last bit is 1.
///
/// `f16::from_f64` drops the low half of the mantissa before it rounds, so that a value just above a tie seems to be one.
fn to_odd(x: f64) -> f32 {
    let f = x as f32;
    let back = f64::from(f);
    if back == x || x.is_nan() {
        return f;
    }
    let towards_zero = f.to_bits() - u32::from(back.abs() > x.abs());
    f32::from_bits(towards_zero | 1)
}

/// The two types that the CPU computes in: f32 (also for the halves) and f64.
pub trait Real:
    Element
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::MulAssign
    + std::iter::Sum
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −∞, the start of a maximum.
    const NEG_INFINITY: Self;
    /// eˣ
    fn exp(self) -> Self;
    /// eˣ − 1, also near 0.
    fn exp_m1(self) -> Self;
    /// ln x
    fn ln(self) -> Self;
    /// ln(1 + x)
    fn ln_1p(self) -> Self;
    /// √x
    fn sqrt(self) -> Self;
    /// tanh x
    fn tanh(self) -> Self;
    /// erf x
    fn erf(self) -> Self;
    /// |x|
    fn abs(self) -> Self;
    /// xʸ
    fn powf(self, y: Self) -> Self;
    /// True for NaN.
    fn is_nan(self) -> bool;
    /// Reads storage of this type, or of a half type widened to it.
    fn read(storage: &CpuStorage) -> Result<Option<Cow<'_, [Self]>>>;
}

macro_rules! real {
    ($t:ty, $exp:path, $tanh:path, $erf:path) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = <$t>::NEG_INFINITY;
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            fn exp_m1(self) -> Self {
                <$t>::exp_m1(self)
            }
            fn ln(self) -> Self {
                <$t>::ln(self)
            }
            fn ln_1p(self) -> Self {
                <$t>::ln_1p(self)
            }
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                $tanh(self)
            }
            fn erf(self) -> Self {
                $erf(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                <$t>::abs(self)
            }
            fn powf(self, y: Self) -> Self {
                <$t>::powf(self, y)
            }
            fn is_nan(self) -> bool {
                <$t>::is_nan(self)
            }
            fn read(storage: &CpuStorage) -> Result<Option<Cow<'_, [Self]>>> {
                let wide = |v| Ok(Some(Cow::Owned(v)));
                match storage {
                    CpuStorage::F16(b) => wide(memory::collected(b.iter().map(|x| x.to_f32() as $t))?),
                    CpuStorage::BF16(b) => wide(memory::collected(b.iter().map(|x| x.to_f32() as $t))?),
                    own => Ok(<$t>::view(own).map(Cow::Borrowed)),
                }
            }
        }
    };
}

real!(f32, math::exp, math::tanh, libm::erff);
real!(f64, f64::exp, f64::tanh, libm::erf);

/// Runs a block with `$F` set to the type that the CPU computes `$dtype` in: f32 for f32, f16 and bf16, f64 for f64.
macro_rules! real_type {
    ($op:expr, $dtype:expr, $F:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 | $crate::DType::F16 | $crate::DType::BF16 => {
                type $F = f32;
                $body
            }
            $crate::DType::F64 => {
                type $F = f64;
                $body
            }
            dtype => Err($crate::Error::DType { op: $op, dtype, hint: "a float type is needed; use `cast`" }),
        }
    };
}
pub(crate) use real_type;

/// Runs a block with `$T` set to the Rust type of `$dtype`.
macro_rules! element_type {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            $crate::DType::U8 => {
                type $T = u8;
                $body
            }
            $crate::DType::I64 => {
                type $T = i64;
                $body
            }
        }
    };
}
pub(crate) use element_type;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_printed() {
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16, DType::U8, DType::I64] {
            assert_eq!(dtype.to_string().parse::<DType>().unwrap(), dtype);
        }
        assert!("f8".parse::<DType>().unwrap_err().to_string().contains("f8"));
    }

    #[test]
    fn halves_round_to_nearest_even() {
        // 1 + 2⁻¹¹ lies between the f16 neighbours 1 and 1 + 2⁻¹⁰; a hair more has to go up.
        let (tie, hair) = (1.0 + 2f64.powi(-11), 2f64.powi(-40));
        assert_eq!(<f16 as Element>::from_f64(tie).to_f64(), 1.0);
        assert_eq!(<f16 as Element>::from_f64(tie + hair).to_f64(), 1.0 + 2f64.powi(-10));
        assert_eq!(<f16 as Element>::from_f64(-tie - hair).to_f64(), -1.0 - 2f64.powi(-10));
        let tie = 1.0 + 2f64.powi(-8);
        assert_eq!(<bf16 as Element>::from_f64(tie).to_f64(), 1.0);
        assert_eq!(<bf16 as Element>::from_f64(tie + hair).to_f64(), 1.0 + 2f64.powi(-7));
        assert!(<f16 as Element>::from_f64(1e300).is_infinite() && <f16 as Element>::from_f64(f64::NAN).is_nan());
        assert_eq!(<bf16 as Element>::from_f64(-1e300).to_f64(), f64::NEG_INFINITY);
        assert_eq!(<f16 as Element>::from_f64(65519.99).to_f64(), 65504.0);
    }
}
