//! Optimizers: in-place updates of parameters from their gradients.
//!
//! Each keeps its state (momentum, moments, step counts) by the parameter's index, on the parameter's device, in f32 at least.
//! A half-precision parameter gets a master copy in f32, which is what is updated; the parameter itself is its rounding. Where it is
//! not, because it was loaded or set since, the copy follows the parameter.
//!
//! ```
//! use hadal::{Array, cpu, optim::{Optimizer, Sgd, Step}};
//! let mut w = Array::from_vec(vec![1f32, 2.], &[2], &cpu())?;
//! let g = Array::from_vec(vec![10f32, 20.], &[2], &cpu())?;
//! let mut sgd = Sgd::new(0.1);
//! // The gradient is that of a sum over 2 samples.
//! sgd.update(0, &mut w, &g, &Step { rescale: 0.5, ..Step::default() })?;
//! assert_eq!(w.to_vec::<f32>()?, [0.5, 1.0]);
//! # Ok::<(), hadal::Error>(())
//! ```

mod adam;
mod clip;
mod lars;
mod loss_scale;
mod settings;
mod sgd;
mod state;
mod together;

pub use adam::Adam;
pub use clip::{clip_global_norm, clip_grad_norm};
pub use lars::Lars;
pub use loss_scale::LossScale;
pub(crate) use loss_scale::Scaler;
pub use sgd::Sgd;

use std::collections::BTreeSet;

use crate::{Array, DType, Error, Result, cuda::Define, nn::Parameter};
use state::State;

/// Whose formulas; the results differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Convention {
    /// SGD: the learning rate inside the momentum. Adam: ε beside the square root of the uncorrected v.
    #[default]
    MxNet,
    /// SGD: the learning rate outside of the momentum. Adam: ε beside the square root of the corrected v.
    PyTorch,
}

/// What an update is told about this step and this parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// A factor on the gradient, such as 1 / batch size.
    pub rescale: f64,
    /// A factor on the learning rate for this parameter.
    pub lr_mult: f64,
    /// A factor on the weight decay for this parameter (0 for biases and batch-norm, often).
    pub wd_mult: f64,
}

impl Step {
    /// With another factor on the gradient.
    fn scaled(self, factor: f64) -> Self {
        Step { rescale: self.rescale * factor, ..self }
    }

    /// Errs unless parameter `index` can be updated by these numbers.
    fn check(&self, op: &'static str, index: usize) -> Result<()> {
        if !self.rescale.is_finite() {
            return Err(Error::invalid(op, format!("the factor on the gradient of parameter {index} is {}", self.rescale)));
        }
        at_least_0(op, &format!("parameter {index}'s factor on the learning rate"), self.lr_mult)?;
        at_least_0(op, &format!("parameter {index}'s factor on the weight decay"), self.wd_mult)
    }
}

impl Default for Step {
    fn default() -> Self {
        Step { rescale: 1.0, lr_mult: 1.0, wd_mult: 1.0 }
    }
}

/// One parameter's part of [`Optimizer::update_all`].
#[derive(Debug)]
pub struct Update<'a> {
    /// The parameter's index, under which its state is kept.
    pub index: usize,
    /// The parameter.
    pub w: &'a mut Array,
    /// Its gradient.
    pub grad: &'a Array,
    /// This step's factors for it.
    pub step: Step,
}

/// A rule that updates parameters, each under an index of its own.
pub trait Optimizer: Send {
    /// Updates parameter `index`, in place, from its gradient.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`] when parameter, gradient and state do not fit together, [`Error::Invalid`] for a learning
    /// rate or another number that makes no sense; then nothing has been changed.
    fn update(&mut self, index: usize, w: &mut Array, grad: &Array, step: &Step) -> Result<()>;

    /// Updates many parameters, of different indices, to the same bits as [`Optimizer::update`] one by one, which is what it
    /// does unless the optimizer has a faster way. [`Sgd`] and [`Adam`] need one launch for all parameters of a GPU and dtype;
    /// captured in a [`Graph`](crate::cuda::Graph) they follow the learning rate, and count their updates, at each replay.
    ///
    /// # Errors
    /// As for [`Optimizer::update`]; [`Error::Invalid`] for an index that comes twice. Of hadal's own rules nothing has been changed
    /// then, whichever parameter it was.
    fn update_all(&mut self, updates: &mut [Update]) -> Result<()> {
        distinct("update_all", updates)?;
        updates.iter_mut().try_for_each(|u| self.update(u.index, u.w, u.grad, &u.step))
    }

    /// [`Optimizer::update_all`] with all gradients multiplied by the number in `unscale`, one f64 on their device, or nothing at all
    /// where that is 0: a step under a [`LossScale`]. [`Sgd`] and [`Adam`] read it on the device, also in a captured graph, where
    /// they count what they skip, too; others wait for it, unless they say otherwise.
    ///
    /// # Errors
    /// As for [`Optimizer::update_all`].
    fn update_all_scaled(&mut self, updates: &mut [Update], unscale: &Array) -> Result<()> {
        let factor = unscale.item()?;
        if factor == 0.0 {
            return Ok(());
        }
        updates.iter_mut().for_each(|u| u.step = u.step.scaled(factor));
        self.update_all(updates)
    }

    /// Errs unless [`Optimizer::update_all`] can do these updates; changes nothing. [`Trainer::step`](crate::Trainer::step) asks this
    /// before anything changes, its loss scale included. An optimizer of one's own says here what could stop it in the middle.
    fn check_updates(&self, updates: &[Update]) -> Result<()> {
        distinct("update_all", updates)
    }

    /// The learning rate.
    fn learning_rate(&self) -> f64;

    /// Changes the learning rate from the next update on.
    fn set_learning_rate(&mut self, lr: f64);

    /// All that the next update depends on, as named arrays: `<index>.<name>`, such as `3.mom`, `<index>.t` (i64) for the updates so
    /// far, and `<rule>.<setting>` (f64), such as `sgd.learning_rate`, for the numbers of the rule.
    fn state(&self) -> Result<Vec<(String, Array)>>;

    /// Errs unless [`Optimizer::load_state`] can take these arrays as the state of these parameters; changes nothing.
    fn check_state(&self, arrays: &[(String, Array)], parameters: &[Parameter]) -> Result<()> {
        let _ = (arrays, parameters);
        Ok(())
    }

    /// Replaces the state, settings and learning rate included, by one from [`Optimizer::state`]; arrays move to their parameter's
    /// device at its next update. Settings that are not there (older versions had none) stay as they are.
    ///
    /// # Errors
    /// [`Error::Data`] for a name that this optimizer does not write, and for numbers that no update could go on from; then nothing
    /// has been changed.
    fn load_state(&mut self, arrays: &[(String, Array)]) -> Result<()>;
}

/// What all rules share: g = clip(rescale·grad) + wd·w.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Prepare {
    rescale: f64,
    /// Negative for none.
    clip: f64,
    wd: f64,
}

impl Prepare {
    /// g for one element.
    fn apply<F: crate::dtype::Real>(&self, grad: F, w: F) -> F {
        let (mut g, clip) = (F::from_f64(self.rescale) * grad, F::from_f64(self.clip));
        if clip >= F::ZERO {
            g = if g > clip {
                clip
            } else if g < -clip {
                -clip
            } else {
                g
            };
        }
        g + F::from_f64(self.wd) * w
    }
}

/// Errs unless `w` can be updated from `grad`.
fn check(op: &'static str, w: &Array, grad: &Array) -> Result<()> {
    if !w.dtype().is_float() {
        return Err(Error::DType { op, dtype: w.dtype(), hint: "parameters need a float type" });
    }
    if grad.dtype() != w.dtype() {
        return Err(Error::DType { op, dtype: grad.dtype(), hint: "a gradient has its parameter's dtype" });
    }
    if grad.shape() != w.shape() {
        return Err(Error::shape(op, "a gradient has its parameter's shape", &[w.shape(), grad.shape()]));
    }
    w.context().same(op, &grad.context())
}

/// Errs unless `value` is finite and at least 0; `what` is its name in the error.
pub(crate) fn at_least_0(op: &'static str, what: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::invalid(op, format!("{what} is {value}, it has to be finite and at least 0")))
}

/// Errs where an index comes twice.
fn distinct(op: &'static str, updates: &[Update]) -> Result<()> {
    let mut indices = BTreeSet::new();
    match updates.iter().find(|u| !indices.insert(u.index)) {
        Some(u) => Err(Error::invalid(op, format!("parameter {} is to be updated twice at once", u.index))),
        None => Ok(()),
    }
}

/// The dtype of states.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// What `optim.cu` is compiled with for parameters of this dtype.
fn defines(dtype: DType) -> [(&'static str, Define); 2] {
    [("scalar_t", dtype.into()), ("norm_t", wide(dtype).into())]
}
