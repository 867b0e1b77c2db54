//! Elementwise functions of one array: relu, sigmoid, tanh, gelu, exp, log, …; their formulas are in [`functions`].

mod functions;

pub use functions::UnaryKind;

use crate::{
    Array, Context, Error, Result,
    autograd::{Op, Saved},
    cpu::buffers::Buffer,
    cuda::{Define, Launch},
    dtype::real_type,
};

/// y = f(x) elementwise; dx = dy · f′(x), and 0 where f′ is 0 by definition, whatever dy is.
#[derive(Clone, Copy, Debug)]
pub struct Unary(pub UnaryKind);

impl UnaryKind {
    /// The function as the products' kernels know it, where they can end with it.
    pub(crate) fn epilogue(self) -> Option<Define> {
        matches!(self, UnaryKind::Relu | UnaryKind::Sigmoid | UnaryKind::Tanh).then(|| Define::Word(self.code().0))
    }

    /// An error for constants that make no function.
    fn check(self) -> Result<()> {
        match self {
            UnaryKind::Clip(lo, hi) if lo > hi || lo.is_nan() || hi.is_nan() => {
                Err(Error::invalid("clip", format!("the bounds {lo} and {hi} are in the wrong order")))
            }
            _ => Ok(()),
        }
    }
}

impl Op for Unary {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let [x] = inputs else { return Err(Error::invalid(self.name(), "one input is needed")) };
        let y = self.value(x)?;
        if saved.wanted() {
            saved.keep(if self.0.keeps_output() { &y } else { x });
        }
        saved.outputs(self.name(), inputs, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        Ok(vec![Some(self.gradient(saved.get(0)?, dy)?)])
    }
}

impl Unary {
    /// y = f(x) on arrays.
    pub(super) fn value(&self, x: &Array) -> Result<Array> {
        self.0.check()?;
        match x.context() {
            Context::Cpu => real_type!(self.name(), x.dtype(), F => {
                let x_ = x.real::<F>(self.name())?;
                let mut y = Buffer::<F>::stale(x.len())?;
                self.0.map(&mut y, &x_);
                Ok(Array::from_real(y, x.shape(), x.dtype())?.with_layout(x.layout()))
            }),
            Context::Gpu(_) => {
                let y = x.uninit_like()?;
                self.launch("unary_fwd", &[&y, x])?;
                Ok(y)
            }
        }
    }

    /// dx from dy and what was kept, y or x.
    pub(super) fn gradient(&self, k: &Array, dy: &Array) -> Result<Array> {
        let dy = dy.to_layout(k.layout())?;
        Ok(match k.context() {
            Context::Cpu => real_type!(self.name(), k.dtype(), F => {
                let (k_, dy_) = (k.real::<F>(self.name())?, dy.real::<F>(self.name())?);
                let mut dx = Buffer::<F>::stale(k.len())?;
                self.0.gradient(&mut dx, &k_, &dy_);
                Ok(Array::from_real(dx, k.shape(), k.dtype())?.with_layout(k.layout()))
            })?,
            Context::Gpu(_) => {
                let dx = k.uninit_like()?;
                self.launch("unary_bwd", &[&dx, k, &dy])?;
                dx
            }
        })
    }

    fn launch(&self, kernel: &'static str, arrays: &[&Array]) -> Result<()> {
        let (dtype, n) = (arrays[0].dtype(), arrays[0].len());
        if !dtype.is_float() {
            return Err(Error::DType { op: self.name(), dtype, hint: "a float type is needed; use `cast`" });
        }
        let (code, a, b) = self.0.code();
        let mut launch =
            Launch::new(arrays[0], "unary.cu", kernel, &[("scalar_t", dtype.into()), ("FUNCTION", Define::Word(code))])?;
        for array in arrays {
            launch = launch.array(array);
        }
        launch.value(a).value(b).value(n as i64).run_packed(n, dtype)
    }
}
