//! [`Trainer`]: an optimizer applied to a net's parameters.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

use crate::{
    Array, DType, Error, Result, Tensor, cpu,
    nn::{self, Parameter},
    optim::{self, LossScale, Optimizer, Scaler, Step, Update},
};

/// In a file of states, each parameter's factors on learning rate and weight decay: (n, 2).
const MULTIPLIERS: &str = "multipliers";
/// Beside the arrays, the parameters' names, one a line.
const PARAMETERS: &str = "parameters";

/// Updates parameters from their gradients, as Gluon's `Trainer` does.
///
/// ```
/// use hadal::{Tensor, Trainer, autograd, cpu, init, loss::L2, nn::{Block, Dense, Forward}, optim::Sgd};
/// let net = Dense::new(1);
/// net.initialize(init::Zero, &cpu())?;
/// let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.5));
/// let (x, y) = (Tensor::ones(&[2, 1], &cpu())?, Tensor::full(&[2, 1], 3.0, &cpu())?);
/// let l = autograd::record(|| L2::new().forward(&net.forward(&x)?, &y))?;
/// l.backward()?; // dL/dw = Σ (ŷ − y) x = −6, divided by the batch of 2
/// trainer.step(2)?;
/// assert_eq!(net.weight().data()?.to_vec()?, [1.5]);
/// # Ok::<(), hadal::Error>(())
/// ```
pub struct Trainer {
    parameters: Vec<Parameter>,
    optimizer: Box<dyn Optimizer>,
    scaler: Option<Scaler>,
    ignore_stale_grad: bool,
}

impl Trainer {
    /// For these parameters; their values may come later, with the first forward pass. One that is listed twice, as where the lists
    /// of nets with a common layer are joined, is one parameter. Which are frozen is asked at each step.
    pub fn new(mut parameters: Vec<Parameter>, optimizer: impl Optimizer + 'static) -> Self {
        let mut seen = HashSet::new();
        parameters.retain(|p| seen.insert(p.id()));
        Trainer { parameters, optimizer: Box::new(optimizer), scaler: None, ignore_stale_grad: false }
    }

    /// Whether a step leaves out, with value and state as they are, a parameter whose gradient no backward pass has brought since the
    /// last step, as Gluon's option of that name does. Without it such a step is an error, since it is mostly a forgotten layer.
    ///
    /// ```
    /// use hadal::{Tensor, Trainer, autograd, cpu, init, nn::{Block, Dense, Forward}, optim::Sgd};
    /// let (used, other) = (Dense::new(1).no_bias(), Dense::new(1).no_bias());
    /// used.initialize(init::One, &cpu())?;
    /// other.initialize(init::One, &cpu())?;
    /// let all = [used.parameters(), other.parameters()].concat();
    /// let mut trainer = Trainer::new(all, Sgd::new(0.5)).ignore_stale_grad(true);
    /// autograd::record(|| used.forward(&Tensor::ones(&[1, 1], &cpu())?))?.backward()?;
    /// trainer.step(1)?;
    /// assert_eq!(used.weight().data()?.item()?, 0.5);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn ignore_stale_grad(mut self, on: bool) -> Self {
        self.ignore_stale_grad = on;
        self
    }

    /// Scales losses, for nets in f16; backward passes then begin with [`Trainer::backward`]. See [`LossScale`].
    ///
    /// ```
    /// use hadal::{DType, Tensor, Trainer, autograd, cpu, init, loss::L2, nn::{Block, Dense, Forward}, optim::{LossScale, Sgd}};
    /// let net = Dense::new(1);
    /// net.initialize(init::Constant(0.5), &cpu())?;
    /// net.cast(DType::F16)?;
    /// let (x, y) = (Tensor::full(&[2, 1], 1e-4, &cpu())?.cast(DType::F16)?, Tensor::zeros(&[2, 1], &cpu())?.cast(DType::F16)?);
    /// let mut trainer = Trainer::new(net.parameters(), Sgd::new(1e6)).loss_scale(LossScale::fixed(1024.0));
    /// let l = autograd::record(|| L2::new().forward(&net.forward(&x)?, &y))?;
    /// trainer.backward(&l)?; // dL/dw = Σ x²w = 10⁻⁸, which is 0 in f16; 1024 times as much is not
    /// trainer.step(1)?;
    /// assert!((net.weight().data()?.item()? - 0.49).abs() < 1e-3);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn loss_scale(mut self, scale: LossScale) -> Self {
        self.scaler = Some(Scaler::new(scale));
        self
    }

    /// [`Tensor::backward`] of the loss, multiplied by the loss scale where there is one. The gradients are then too large by
    /// that factor, until [`Trainer::step`] has used them.
    ///
    /// # Errors
    /// As for [`Tensor::backward`]; [`Error::Invalid`] for a scale that is not positive.
    pub fn backward(&mut self, loss: &Tensor) -> Result<()> {
        match &mut self.scaler {
            Some(scaler) => loss.backward_from(&scaler.head(loss)?, false),
            None => loss.backward(),
        }
    }

    /// The present loss scale, 1 where there is none; waits for the device.
    pub fn scale(&self) -> Result<f64> {
        self.scaler.as_ref().map_or(Ok(1.0), Scaler::scale)
    }

    /// One update with the gradients divided by `batch_size`, the nominal one also for a smaller last batch. Under a
    /// [`LossScale`] nothing changes where a gradient is not finite, but the scale.
    ///
    /// # Errors
    /// [`Error::Invalid`] when losses are to be scaled and this one was not, and for a learning rate or another number of the rule that
    /// makes no sense; [`Error::Parameter`] names a parameter without values, or whose gradient no backward pass has brought since the
    /// last step ([`Trainer::ignore_stale_grad`] allows both); [`Error::Shape`] or [`Error::DType`] for one that its state does not
    /// fit. Then nothing has been changed.
    pub fn step(&mut self, batch_size: usize) -> Result<()> {
        if batch_size == 0 {
            return Err(Error::invalid("step", "a batch size of 0"));
        }
        optim::at_least_0("step", "the learning rate", self.learning_rate())?;
        let (mut values, mut updates) = (Vec::new(), Vec::new());
        for (i, p) in self.parameters.iter().enumerate().filter(|(_, p)| p.is_trainable()) {
            let value = match p.data() {
                Err(_) if self.ignore_stale_grad => continue,
                value => value?,
            };
            let grad = match value.fresh_grad()? {
                Some(grad) => grad,
                None if self.ignore_stale_grad => continue,
                None => {
                    let reason = "no backward pass has brought a gradient since the last step; Trainer::ignore_stale_grad leaves such \
                                  parameters out, GradReq::Null freezes one";
                    return Err(Error::Parameter { name: p.name(), reason: reason.into() });
                }
            };
            let (lr_mult, wd_mult) = p.multipliers();
            values.push(value);
            updates.push((i, grad, Step { rescale: 1.0 / batch_size as f64, lr_mult, wd_mult }));
        }
        let (optimizer, scaler) = (&mut self.optimizer, &mut self.scaler);
        let name = |k: usize| format!("parameter {}", self.parameters[updates[k].0].name());
        Tensor::update_all(&values, name, |arrays| {
            let mut all = Vec::with_capacity(updates.len());
            for ((index, grad, step), w) in updates.iter().zip(arrays) {
                all.push(Update { index: *index, w, grad, step: *step });
            }
            optimizer.check_updates(&all)?;
            let Some(scaler) = scaler else { return optimizer.update_all(&mut all) };
            let unscale = scaler.unscale(&all.iter().map(|u| u.grad).collect::<Vec<_>>())?;
            match optimizer.update_all_scaled(&mut all, &unscale) {
                Err(e) => scaler.undo().and(Err(e)),
                done => done,
            }
        })?;
        values.iter().try_for_each(Tensor::use_grad)
    }

    /// Writes all that the next step depends on beside values and gradients to a safetensors file: the optimizer's settings, learning
    /// rate, states and step counts, the f32 copies of 16-bit parameters, the parameters' factors on learning rate and weight
    /// decay, and the loss scale with its rule. With the net's own file, training goes on from there to the same bits. Which
    /// parameters are frozen is the net's, and not in the file.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written.
    pub fn save_states(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut arrays: BTreeMap<String, Array> = self.optimizer.state()?.into_iter().collect();
        if let Some(scaler) = &self.scaler {
            arrays.extend(scaler.state()?);
        }
        let factors = self.parameters.iter().flat_map(|p| <[f64; 2]>::from(p.multipliers())).collect::<Vec<_>>();
        arrays.insert(MULTIPLIERS.to_owned(), Array::from_vec(factors, &[self.parameters.len(), 2], &cpu())?);
        nn::write_arrays(&arrays, &[(PARAMETERS, &self.names())], path.as_ref())
    }

    /// Reads what [`Trainer::save_states`] wrote, for the same parameters in the same order and the same kind of optimizer. What the
    /// program has set before (the learning rate, say) is replaced by what the file says.
    ///
    /// Files of versions that saved no settings leave these as they are; they need a state for every parameter that is trained. A
    /// trainer that scales losses keeps its own scale where the file has none.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Data`] when the file cannot be read, is another optimizer's or another net's (numbers, names, shapes and
    /// dtypes of all parameters are compared), has a number that is not finite, or a loss scale for a trainer without one. Then
    /// nothing has been changed.
    pub fn load_states(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let (arrays, words) = nn::read_all(path)?;
        self.restore(arrays, words.get(PARAMETERS).map(String::as_str)).map_err(|e| {
            let reason = match e {
                Error::Data { path, reason } => format!("{path}: {reason}"),
                e => e.to_string(),
            };
            Error::Data { path: path.display().to_string(), reason }
        })
    }

    fn restore(&mut self, mut arrays: BTreeMap<String, Array>, names: Option<&str>) -> Result<()> {
        let bad = |name: &str, reason: String| Err(Error::Data { path: name.into(), reason });
        if let Some(names) = names.filter(|names| *names != self.names()) {
            let own = self.parameters.iter().map(Parameter::name);
            let (there, here) = (names.lines().count(), self.parameters.len());
            let reason = match names.lines().zip(own).enumerate().find(|(_, (there, here))| there != here) {
                _ if there != here => format!("the states are those of {there} parameters, the trainer has {here}"),
                Some((i, (there, here))) => format!("state {i} is that of {there}, the trainer's parameter {i} is {here}"),
                None => "they are not the trainer's".into(),
            };
            return bad(PARAMETERS, reason);
        }
        let factors = match arrays.remove(MULTIPLIERS) {
            Some(a) if a.dtype() == DType::F64 && a.shape() == [self.parameters.len(), 2] => a.to_vec::<f64>()?,
            Some(a) => {
                return bad(
                    MULTIPLIERS,
                    format!("{} f64 pairs are expected, not {:?} {}", self.parameters.len(), a.shape(), a.dtype()),
                );
            }
            None => Vec::new(),
        };
        factors.iter().try_for_each(|f| optim::at_least_0(MULTIPLIERS, "a factor", *f))?;
        let scaler = match &self.scaler {
            Some(scaler) => scaler.restored(&mut arrays)?,
            None if arrays.contains_key("loss_scale") => {
                return bad("loss_scale", "the trainer has none: make it with Trainer::loss_scale".into());
            }
            None => None,
        };
        let arrays: Vec<(String, Array)> = arrays.into_iter().collect();
        self.optimizer.check_state(&arrays, &self.parameters)?;
        // From here on nothing fails, unless an optimizer of the user's does.
        self.optimizer.load_state(&arrays)?;
        self.scaler = scaler.or_else(|| self.scaler.take());
        for (p, factors) in self.parameters.iter().zip(factors.chunks_exact(2)) {
            p.set_lr_mult(factors[0]);
            p.set_wd_mult(factors[1]);
        }
        Ok(())
    }

    /// The parameters' names, one a line.
    fn names(&self) -> String {
        self.parameters.iter().map(|p| p.name().replace('\n', " ")).collect::<Vec<_>>().join("\n")
    }

    /// The learning rate.
    pub fn learning_rate(&self) -> f64 {
        self.optimizer.learning_rate()
    }

    /// Another learning rate from the next step on, which errs where it is negative or not finite.
    pub fn set_learning_rate(&mut self, lr: f64) {
        self.optimizer.set_learning_rate(lr);
    }

    /// The parameters, in the order of the optimizer's states.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The optimizer.
    pub fn optimizer(&self) -> &dyn Optimizer {
        &*self.optimizer
    }
}
