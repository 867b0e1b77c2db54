//! Conversion between dtypes.

use half::{bf16, f16};

use crate::{
    Array, Context, DType, Error, Result, Tensor,
    autograd::{Op, Saved, apply1},
    cpu::parallel,
    cuda::Launch,
    dtype::element_type,
};

/// y = x in another dtype; dx = dy in x's dtype.
///
/// To a half: rounded to nearest even. From a float to an integer: cut towards zero and saturated, NaN to 0, as
/// Rust's `as`. From i64 to u8: the low bits.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    /// The dtype of y.
    pub to: DType,
}

/// Conversions between element types, each rounded once.
trait Convert: crate::Element {
    fn convert<T: crate::Element>(self) -> T {
        T::from_f64(self.to_f64())
    }
}
impl Convert for f32 {}
impl Convert for f64 {}
impl Convert for f16 {}
impl Convert for bf16 {}
impl Convert for u8 {}
impl Convert for i64 {
    fn convert<T: crate::Element>(self) -> T {
        // By way of f64 a large value would be rounded twice, or saturated instead of cut.
        match T::DTYPE {
            DType::U8 => T::from_f64(f64::from(self as u8)),
            DType::F32 => T::from_f64(f64::from(self as f32)),
            _ => T::from_f64(self as f64),
        }
    }
}

/// `a` in another dtype; shared memory when it has it already.
pub(crate) fn cast(a: &Array, to: DType) -> Result<Array> {
    if a.dtype() == to {
        return Ok(a.clone());
    }
    let mut y = Array::uninit(a.shape(), to, a.layout(), &a.context())?;
    match a.context() {
        Context::Cpu => element_type!(a.dtype(), X => element_type!(to, Y => {
            parallel::map(y.as_mut_slice::<Y>()?, a.as_slice::<X>()?, |x| x.convert::<Y>());
        })),
        Context::Gpu(_) => {
            Launch::new(&y, "cast.cu", "cast", &[("scalar_t", a.dtype().into()), ("to_t", to.into())])?
                .array(&y)
                .array(a)
                .value(y.len() as i64)
                .run_packed(y.len(), if to.size() < a.dtype().size() { to } else { a.dtype() })?;
        }
    }
    Ok(y)
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let [x] = inputs else { return Err(Error::invalid("cast", "one input is needed")) };
        if saved.wanted() {
            // An empty array that knows the dtype to go back to.
            saved.keep(&Array::zeros(&[0], x.dtype(), &Context::Cpu)?);
        }
        saved.outputs(self.name(), inputs, vec![cast(x, self.to)?])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        let from = saved.get(0)?.dtype();
        Ok(vec![if self.to.is_float() && from.is_float() { Some(cast(dy, from)?) } else { None }])
    }
}

impl Tensor {
    /// The same values in another dtype: rounded to nearest even for floats, cut towards zero and saturated for integers.
    ///
    /// ```
    /// use hadal::{DType, Tensor, cpu};
    /// let x = Tensor::from_vec(vec![-1.7f32, 2.9, 300.0], &[3], &cpu())?;
    /// assert_eq!(x.cast(DType::I64)?.to_vec()?, [-1., 2., 300.]);
    /// assert_eq!(x.cast(DType::U8)?.to_vec()?, [0., 2., 255.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[doc(alias("to", "astype", "half", "bfloat16"))]
    pub fn cast(&self, to: DType) -> Result<Tensor> {
        if self.dtype() == to { Ok(self.clone()) } else { apply1(Cast { to }, &[self]) }
    }
}

impl Array {
    /// The same values in another dtype, rounded as by [`Tensor::cast`]; shares memory when the dtype is its own.
    pub fn cast(&self, to: DType) -> Result<Array> {
        cast(self, to)
    }
}
