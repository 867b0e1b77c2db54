//! Two operands, elementwise with numpy's broadcasting: arithmetic, extrema, powers, comparisons.
//!
//! Both operands have one dtype, which is the result's too: nothing is promoted silently. Integers wrap around, and
//! their quotient is cut towards zero (0 for a divisor of 0). An extremum of two equal elements sends its gradient to
//! the first operand; NaN is above and below all.

use crate::{
    Array, Context, DType, Error, Result,
    autograd::{Op, Saved},
    cpu::buffers::Buffer,
    cuda::{Define, Launch},
    dtype::{Real, real_type},
    shape::{broadcast, numel},
};

use super::{
    binary_scalar::scalar,
    broadcast::{Walk, layout_of, zip2, zip3},
    number::{Number, number_type},
    reduce::sum_to,
};

/// Which function of a and b.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryKind {
    /// a + b
    Add,
    /// a − b
    Sub,
    /// a·b
    Mul,
    /// a / b
    Div,
    /// aᵇ, floats only.
    Power,
    /// The larger one.
    Maximum,
    /// The smaller one.
    Minimum,
    /// 1 where a = b, else 0; so the following ones.
    Eq,
    /// a ≠ b
    Ne,
    /// a < b
    Lt,
    /// a ≤ b
    Le,
    /// a > b
    Gt,
    /// a ≥ b
    Ge,
}

use BinaryKind::*;

impl BinaryKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Add => "add",
            Sub => "sub",
            Mul => "mul",
            Div => "div",
            Power => "power",
            Maximum => "maximum",
            Minimum => "minimum",
            Eq => "eq",
            Ne => "ne",
            Lt => "lt",
            Le => "le",
            Gt => "gt",
            Ge => "ge",
        }
    }

    /// The name in `kernels/binary.cu`.
    fn code(self) -> &'static str {
        match self {
            Add => "ADD",
            Sub => "SUB",
            Mul => "MUL",
            Div => "DIV",
            Power => "POWER",
            Maximum => "MAXIMUM",
            Minimum => "MINIMUM",
            Eq => "EQ",
            Ne => "NE",
            Lt => "LT",
            Le => "LE",
            Gt => "GT",
            Ge => "GE",
        }
    }

    pub(super) fn is_comparison(self) -> bool {
        matches!(self, Eq | Ne | Lt | Le | Gt | Ge)
    }

    /// Which operands the gradients need, given which gradients are wanted.
    fn keeps(self, wanted: [bool; 2]) -> [bool; 2] {
        match self {
            Mul => [wanted[1], wanted[0]],
            Div => [wanted[1], wanted[0] || wanted[1]],
            Power | Maximum | Minimum => [wanted[0] || wanted[1]; 2],
            _ => [false; 2],
        }
    }

    pub(super) fn check(self, dtype: DType) -> Result<()> {
        if self == Power && !dtype.is_float() {
            return Err(Error::DType { op: self.name(), dtype, hint: "a float type is needed; use `cast`" });
        }
        Ok(())
    }

    /// y = f(a, b) over a walk. One loop for each function, so that each is vectorized.
    pub(super) fn compute<T: Number>(self, y: &mut [T], walk: &Walk<2>, a: &[T], b: &[T]) {
        let flag = |yes: bool| if yes { T::ONE } else { T::ZERO };
        match self {
            Add => zip2(y, walk, a, b, |a, b| a.plus(b)),
            Sub => zip2(y, walk, a, b, |a, b| a.minus(b)),
            Mul => zip2(y, walk, a, b, |a, b| a.times(b)),
            Div => zip2(y, walk, a, b, |a, b| a.over(b)),
            Power => zip2(y, walk, a, b, |a, b| a.power(b)),
            Maximum => zip2(y, walk, a, b, |a, b| if a >= b || a.is_nan() { a } else { b }),
            Minimum => zip2(y, walk, a, b, |a, b| if a <= b || a.is_nan() { a } else { b }),
            Eq => zip2(y, walk, a, b, |a, b| flag(a == b)),
            Ne => zip2(y, walk, a, b, |a, b| flag(a != b)),
            Lt => zip2(y, walk, a, b, |a, b| flag(a < b)),
            Le => zip2(y, walk, a, b, |a, b| flag(a <= b)),
            Gt => zip2(y, walk, a, b, |a, b| flag(a > b)),
            Ge => zip2(y, walk, a, b, |a, b| flag(a >= b)),
        }
    }

    /// dy · ∂f/∂a (side 0) or dy · ∂f/∂b (side 1), where it is not again one of these functions.
    pub(super) fn gradient<F: Real + Number>(self, dy: F, a: F, b: F, side: usize) -> F {
        match (self, side) {
            (Div, 0) => dy / b,
            // a / b first: dy / b of a subnormal b is infinite, and a may be 0.
            (Div, _) => -dy * ((a / b) / b),
            // Where the factor in front is 0 the derivative is 0, though the rest may be infinite.
            (Power, 0) if b == <F as Number>::ZERO => <F as Number>::ZERO,
            (Power, 0) => dy * (b * a.power(b - <F as Number>::ONE)),
            (Power, _) if a == <F as Number>::ZERO && b >= <F as Number>::ZERO => <F as Number>::ZERO,
            (Power, _) => dy * (a.power(b) * Real::ln(a)),
            (Maximum, _) => pick((a >= b || Number::is_nan(a)) == (side == 0), dy),
            (Minimum, _) => pick((a <= b || Number::is_nan(a)) == (side == 0), dy),
            _ => <F as Number>::ZERO,
        }
    }
}

fn pick<F: Real + Number>(yes: bool, dy: F) -> F {
    if yes { dy } else { <F as Number>::ZERO }
}

/// y = f(a, b), both broadcast to one shape; the gradients are summed over the stretched axes.
///
/// Shapes: a and b broadcast by numpy's rule. The layout is that of the first operand with the output's shape.
#[derive(Clone, Copy, Debug)]
pub struct Binary(pub BinaryKind);

/// y = f(a, b) on arrays; both of one dtype.
pub(crate) fn binary(kind: BinaryKind, a: &Array, b: &Array) -> Result<Array> {
    same_dtype(kind.name(), a, b)?;
    kind.check(a.dtype())?;
    let shape = broadcast(kind.name(), a.shape(), b.shape())?;
    let layout = layout_of(&shape, &[a, b]);
    let walk = Walk::new(&shape, layout, [a, b]);
    match a.context() {
        Context::Cpu => number_type!(a.dtype(), T => {
            let mut y = Buffer::<T>::stale(numel(&shape))?;
            kind.compute(&mut y, &walk, &T::elements(a, kind.name())?, &T::elements(b, kind.name())?);
            Ok(T::array(y, &shape, a.dtype())?.with_layout(layout))
        }),
        Context::Gpu(_) => {
            let y = Array::uninit(&shape, a.dtype(), layout, &a.context())?;
            if [a, b].iter().all(|x| x.shape() == shape && x.layout() == layout) {
                let launch = launch(kind, "binary_same", &y)?.array(&y).array(a).array(b);
                return launch.value(y.len() as i64).run_packed(y.len(), y.dtype()).map(|()| y);
            }
            let (n, kernel_walk) = (y.len(), walk.for_kernel(kind.name())?);
            if let Some([a_step, b_step]) = walk.packs(16 / y.dtype().size()) {
                let launch = launch(kind, "binary_rows", &y)?.array(&y).array(a).array(b).value(kernel_walk);
                launch.value(a_step).value(b_step).value(n as i64).run_packed(n, y.dtype())?;
                return Ok(y);
            }
            launch(kind, "binary_fwd", &y)?.array(&y).array(a).array(b).value(kernel_walk).value(n as i64).run_1d(n)?;
            Ok(y)
        }
    }
}

/// Errs unless two operands have one dtype.
pub(crate) fn same_dtype(op: &'static str, a: &Array, b: &Array) -> Result<()> {
    if a.dtype() == b.dtype() {
        return Ok(());
    }
    let (a, b) = (a.dtype(), b.dtype());
    Err(Error::invalid(op, format!("the operands are {a} and {b}, one dtype is needed: `cast` one of them")))
}

pub(super) fn launch(kind: BinaryKind, kernel: &'static str, y: &Array) -> Result<Launch> {
    Launch::new(y, "binary.cu", kernel, &[("scalar_t", y.dtype().into()), ("FUNCTION", Define::Word(kind.code()))])
}

/// dy · ∂f/∂(operand `side`), of dy's shape.
fn gradient(kind: BinaryKind, side: usize, dy: &Array, a: &Array, b: &Array) -> Result<Array> {
    let walk = Walk::new(dy.shape(), dy.layout(), [dy, a, b]);
    match dy.context() {
        Context::Cpu => real_type!(kind.name(), dy.dtype(), F => {
            let op = kind.name();
            let mut g = Buffer::<F>::stale(dy.len())?;
            let operands = (&*dy.real::<F>(op)?, &*a.real::<F>(op)?, &*b.real::<F>(op)?);
            zip3(&mut g, &walk, operands, |dy, a, b| kind.gradient(dy, a, b, side));
            Ok(Array::from_real(g, dy.shape(), dy.dtype())?.with_layout(dy.layout()))
        }),
        Context::Gpu(_) => {
            let g = dy.uninit_like()?;
            if [a, b].iter().all(|x| x.shape() == dy.shape() && x.layout() == dy.layout()) {
                let launch = launch(kind, "binary_bwd_same", &g)?.array(&g).array(dy).array(a).array(b);
                return launch.value(side as i32).value(g.len() as i64).run_packed(g.len(), g.dtype()).map(|()| g);
            }
            let (n, kernel_walk) = (g.len(), walk.for_kernel(kind.name())?);
            let launch = |kernel| Ok(launch(kind, kernel, &g)?.array(&g).array(dy).array(a).array(b)) as Result<Launch>;
            match walk.packs(16 / g.dtype().size()) {
                Some([1, a_step, b_step]) => {
                    let launch = launch("binary_bwd_rows")?.value(kernel_walk).value(a_step).value(b_step);
                    launch.value(side as i32).value(n as i64).run_packed(n, g.dtype())?;
                }
                _ => launch("binary_bwd")?.value(kernel_walk).value(side as i32).value(n as i64).run_1d(n)?,
            }
            Ok(g)
        }
    }
}

impl Op for Binary {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let [a, b] = x else { return Err(Error::invalid(self.name(), "two inputs are needed")) };
        let y = binary(self.0, a, b)?;
        for (x, keep) in x.iter().zip(self.0.keeps([saved.needs(0), saved.needs(1)])) {
            if keep {
                saved.keep(x);
            }
        }
        saved.outputs(self.name(), x, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let (kind, [dy]) = (self.0, saved.gradients(self.name(), dy)?);
        if kind.is_comparison() {
            return Ok(vec![None, None]);
        }
        let wanted = [saved.needs(0), saved.needs(1)];
        let [keeps_a, _] = kind.keeps(wanted);
        let a = || saved.get(0);
        let b = || saved.get(usize::from(keeps_a));
        let full = |side: usize| match (kind, side) {
            (Add, _) | (Sub, 0) => Ok(dy.clone()),
            (Mul, 0) => binary(Mul, dy, b()?),
            (Mul, _) => binary(Mul, dy, a()?),
            (Div, 0) => binary(Div, dy, b()?),
            (Sub, _) => Ok(dy.clone()),
            _ => gradient(kind, side, dy, a()?, b()?),
        };
        let one = |side: usize| -> Result<Option<Array>> {
            if !wanted[side] {
                return Ok(None);
            }
            let g = sum_to(&full(side)?, saved.shape(side))?;
            // The sign after the sum: there are fewer elements.
            Ok(Some(if (kind, side) == (Sub, 1) { scalar(Mul, &g, -1.0, false)? } else { g }))
        };
        Ok(vec![one(0)?, one(1)?])
    }
}

/// y = x₀ + x₁ + …, of operands of one shape and dtype, added in this order.
#[derive(Clone, Copy, Debug)]
pub struct AddN;

impl Op for AddN {
    fn name(&self) -> &'static str {
        "add_n"
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let Some((first, rest)) = x.split_first() else {
            return Err(Error::invalid("add_n", "one input at least is needed"));
        };
        let mut y = (*first).clone();
        for b in rest {
            if b.shape() != first.shape() {
                return Err(Error::shape("add_n", "all operands need one shape", &[first.shape(), b.shape()]));
            }
            same_dtype("add_n", first, b)?;
            y = binary(Add, &y, b)?;
        }
        saved.outputs(self.name(), x, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        Ok((0..saved.inputs()).map(|_| Some(dy.clone())).collect())
    }
}
