//! One table over all ops: gradient check, fast path against reference, GPU against CPU, in every dtype and both layouts.
//!
//! A family's cases stand in its own file; a type with `impl Op for` in `src/ops` that has no case fails the suite.

// `&[0..2]` is a list of one range for one axis here.
#![allow(clippy::single_range_in_vec_init)]

#[path = "../common/mod.rs"]
mod common;

mod batch_norm;
mod binary;
mod cast;
mod conv2d;
mod dropout;
mod losses;
mod matmul;
mod pool;
mod reduce;
mod shapes;
mod softmax;
mod stem_block;
mod unary;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use hadal::{
    Array, DType, Layout, Result,
    autograd::{Op, Saved},
    check, cpu,
    ops::{Softmax, Unary, UnaryKind},
};

/// An op with inputs to try it on.
pub struct Case {
    /// The op's Rust type, as in `impl Op for`.
    type_name: &'static str,
    op: Arc<dyn Op>,
    inputs: Vec<Array>,
    /// Finite differences make sense (the inputs are away from kinks).
    smooth: bool,
    /// Also tried with 4-D inputs in channels-last memory.
    layouts: bool,
    /// The dtypes besides f64 to try.
    dtypes: &'static [DType],
    /// The bound's factor over `check::bound`, for ops that amplify rounding.
    slack: f64,
}

const ALL: &[DType] = &[DType::F32, DType::F16, DType::BF16];

impl Case {
    pub fn new<O: Op>(op: O, inputs: Vec<Array>) -> Self {
        let type_name = std::any::type_name::<O>().rsplit("::").next().unwrap();
        Case { type_name, op: Arc::new(op), inputs, smooth: true, layouts: false, dtypes: ALL, slack: 1.0 }
    }
    /// Not differentiable at these inputs: no finite differences.
    pub fn rough(mut self) -> Self {
        self.smooth = false;
        self
    }
    pub fn both_layouts(mut self) -> Self {
        self.layouts = true;
        self
    }
    pub fn dtypes(mut self, dtypes: &'static [DType]) -> Self {
        self.dtypes = dtypes;
        self
    }
    pub fn slack(mut self, factor: f64) -> Self {
        self.slack = factor;
        self
    }
    fn label(&self) -> String {
        let shapes: Vec<_> = self.inputs.iter().map(|a| format!("{:?}", a.shape())).collect();
        format!("{:?} on {}", self.op, shapes.join(", "))
    }
    /// The inputs as they are, and with all 4-D ones channels-last.
    fn variants(&self) -> Vec<Vec<Array>> {
        let mut all = vec![self.inputs.clone()];
        if self.layouts {
            let cl = |a: &Array| if a.rank() == 4 { a.to_layout(Layout::ChannelsLast).unwrap() } else { a.clone() };
            all.push(self.inputs.iter().map(cl).collect());
        }
        all
    }
}

/// The whole table.
fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(batch_norm::cases().unwrap());
    all.extend(binary::cases().unwrap());
    all.extend(cast::cases().unwrap());
    all.extend(conv2d::cases().unwrap());
    all.extend(dropout::cases().unwrap());
    all.extend(losses::cases().unwrap());
    all.extend(matmul::cases().unwrap());
    all.extend(pool::cases().unwrap());
    all.extend(reduce::cases().unwrap());
    all.extend(shapes::cases().unwrap());
    all.extend(softmax::cases().unwrap());
    all.extend(stem_block::cases().unwrap());
    all.extend(unary::cases().unwrap());
    all
}

/// Runs `f` over the table, on all cores, and reports all failures together. `HADAL_OPS=MaxPool2d,Dropout` names the only types to
/// try, for checks that are slow.
fn for_all(f: impl Fn(&Case) -> Result<()> + Sync) {
    let mut cases = cases();
    if let Ok(types) = std::env::var("HADAL_OPS") {
        cases.retain(|c| types.split(',').any(|t| t == c.type_name));
        assert!(!cases.is_empty(), "HADAL_OPS={types} names no op of the table");
    }
    // Most of the time goes into the compiler: one after the other they would leave all cores but one idle.
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = f(case) {
                failures.lock().unwrap().push(format!("{}: {e}", case.label()));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            // By the test's name GPU checks are counted.
            let name = thread::current().name().unwrap_or_default().to_owned();
            thread::Builder::new().name(name).spawn_scoped(scope, work).unwrap();
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {} cases failed:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

fn cast(a: &Array, dtype: DType) -> Array {
    hadal::check::cast(a, dtype).unwrap().to_layout(a.layout()).unwrap()
}

#[test]
fn every_op_is_in_the_table() {
    let have: BTreeSet<&str> = cases().iter().map(|c| c.type_name).collect();
    let missing: Vec<_> = hadal::ops::OP_TYPES.iter().filter(|t| !have.contains(*t)).collect();
    assert!(!hadal::ops::OP_TYPES.is_empty() && missing.is_empty(), "ops without a gradient check: {missing:?}");
}

/// Forward, then backward as it must not be called: with too few gradients, too many, and such as are not like the outputs; and with
/// a `Saved` that no forward pass, another op's or one of other inputs has filled.
fn misuse(op: &dyn Op, others: &dyn Op, x: &[Array]) -> Result<()> {
    let refs: Vec<&Array> = x.iter().collect();
    let needs: Vec<bool> = x.iter().map(|a| a.dtype().is_float()).collect();
    let mut saved = Saved::new(&refs, needs.clone());
    let y = op.forward(&refs, &mut saved)?;
    let ctx = y[0].context();
    let like = |y: &Array, dtype: DType| Array::zeros(y.shape(), if y.dtype().is_float() { dtype } else { y.dtype() }, &ctx);
    let right = y.iter().map(|y| like(y, y.dtype())).collect::<Result<Vec<_>>>()?;
    let dtype = if y[0].dtype() == DType::F64 { DType::F16 } else { DType::F64 };
    let mut wrong = vec![
        ("none", Vec::new()),
        ("one too few", right[1..].to_vec()),
        ("one too many", [&right[..], &right[..1]].concat()),
        ("of rank 0", vec![Array::zeros(&[], right[0].dtype(), &ctx)?.reshape(&[1, 1, 1, 1, 1, 1, 1])?; y.len()]),
        (
            "of one more axis",
            y.iter().map(|y| Array::zeros(&[&[2], y.shape()].concat(), y.dtype(), &ctx)).collect::<Result<_>>()?,
        ),
    ];
    if y[0].dtype().is_float() {
        wrong.push(("of another dtype", y.iter().map(|y| like(y, dtype)).collect::<Result<_>>()?));
        if ctx.is_gpu() {
            let host = right.iter().map(|a| a.to_context(&cpu())).collect::<Result<_>>()?;
            wrong.push(("on another device", host));
        }
    }
    let refused = |what: &str, refused: bool| match refused {
        true => Ok(()),
        false => Err(hadal::Error::Check(format!("{}: {what} passed", op.name()))),
    };
    for (what, dy) in wrong {
        refused(&format!("gradients, {what}"), op.backward(&saved, &dy).is_err())?;
    }
    refused("an empty Saved", op.backward(&Saved::default(), &right).is_err())?;
    refused("a Saved without a forward pass", op.backward(&Saved::new(&refs, needs.clone()), &right).is_err())?;
    refused("a second forward pass", !needs.contains(&true) || op.forward(&refs, &mut saved).is_err())?;
    refused("a Saved of other inputs", op.forward(&refs, &mut Saved::new(&[], vec![true])).is_err())?;
    if others.name() != op.name() {
        refused("another op's Saved", others.backward(&saved, &right).is_err())?;
    }
    op.backward(&saved, &right)?;
    Ok(())
}

#[test]
fn a_wrong_call_of_backward_is_an_error() {
    for_all(|c| {
        let others: [&dyn Op; 2] = [&Unary(UnaryKind::Exp), &Softmax { axis: 0, log: false }];
        for ctx in common::contexts() {
            let x = c.inputs.iter().map(|a| cast(a, DType::F32).to_context(&ctx)).collect::<Result<Vec<_>>>()?;
            others.iter().try_for_each(|other| misuse(&*c.op, *other, &x))?;
        }
        Ok(())
    });
}

#[test]
fn gradients_match_finite_differences() {
    let smooth: BTreeSet<&str> = cases().iter().filter(|c| c.smooth).map(|c| c.type_name).collect();
    assert!(!smooth.is_empty());
    for_all(|c| if c.smooth { c.variants().iter().try_for_each(|x| check::gradients(&*c.op, x)) } else { Ok(()) });
}

#[test]
fn the_fast_path_matches_the_reference() {
    for_all(|c| {
        for x in c.variants() {
            for &dtype in c.dtypes {
                check::reference_within(&*c.op, &x, dtype, 2.0 * c.slack * check::bound(dtype))?;
            }
        }
        Ok(())
    });
}

#[test]
fn the_gpu_matches_the_cpu() {
    for_all(|c| {
        let Some(gpu) = common::gpu() else { return Ok(()) };
        for x in c.variants() {
            for &dtype in c.dtypes.iter().chain(&[DType::F64]) {
                let x: Vec<Array> = x.iter().map(|a| cast(a, dtype)).collect();
                check::parity_within(&*c.op, &x, &gpu, &cpu(), c.slack * check::bound(dtype))?;
            }
        }
        Ok(())
    });
}
