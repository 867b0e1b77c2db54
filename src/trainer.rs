//! [`Trainer`]: an optimizer applied to a net's parameters.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::{
    Array, Error, Result, Tensor,
    nn::{self, Parameter},
    optim::{LossScale, Optimizer, Scaler, Step, Update},
};

/// The name of the loss scale in a file of states; those of the optimizer begin with a number.
const SCALE: &str = "loss_scale";

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
}

impl Trainer {
    /// For these parameters; their values may come later, with the first forward pass.
    pub fn new(parameters: Vec<Parameter>, optimizer: impl Optimizer + 'static) -> Self {
        Trainer { parameters, optimizer: Box::new(optimizer), scaler: None }
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
    /// [`LossScale`] nothing changes where a gradient is not finite.
    ///
    /// # Errors
    /// [`Error::Invalid`] when losses are to be scaled and this one was not; [`Error::Parameter`] names a parameter without values, or whose gradient no backward pass has brought since the
    /// last step; then nothing has been changed.
    pub fn step(&mut self, batch_size: usize) -> Result<()> {
        if batch_size == 0 {
            return Err(Error::invalid("step", "a batch size of 0"));
        }
        let mut updates = Vec::with_capacity(self.parameters.len());
        for (i, p) in self.parameters.iter().enumerate().filter(|(_, p)| p.is_trainable()) {
            let value = p.data()?;
            let grad = value.fresh_grad()?.ok_or_else(|| Error::Parameter {
                name: p.name(),
                reason:
                    "no backward pass has brought a gradient since the last step; freeze it with GradReq::Null if that is meant"
                        .into(),
            })?;
            let (lr_mult, wd_mult) = p.multipliers();
            updates.push((i, value, grad, Step { rescale: 1.0 / batch_size as f64, lr_mult, wd_mult }));
        }
        let grads: Vec<&Array> = updates.iter().map(|(_, _, grad, _)| grad).collect();
        let unscale = self.scaler.as_mut().map(|s| s.unscale(&grads)).transpose()?;
        drop(grads);
        while !updates.is_empty() {
            // All at once, but a parameter that is listed twice is updated twice.
            let mut seen = BTreeSet::new();
            let (round, later) = updates.into_iter().partition(|(_, value, ..)| seen.insert(value.id()));
            self.update(round, unscale.as_ref())?;
            updates = later;
        }
        Ok(())
    }

    fn update(&mut self, updates: Vec<(usize, Tensor, Array, Step)>, unscale: Option<&Array>) -> Result<()> {
        let (values, updates): (Vec<Tensor>, Vec<_>) =
            updates.into_iter().map(|(i, value, grad, step)| (value, (i, grad, step))).unzip();
        let name = |k: usize| format!("parameter {}", self.parameters[updates[k].0].name());
        Tensor::update_all(&values, name, |arrays| {
            let mut all = Vec::with_capacity(updates.len());
            for ((index, grad, step), w) in updates.iter().zip(arrays) {
                all.push(Update { index: *index, w, grad, step: *step });
            }
            match unscale {
                Some(unscale) => self.optimizer.update_all_scaled(&mut all, unscale),
                None => self.optimizer.update_all(&mut all),
            }
        })?;
        values.iter().try_for_each(Tensor::use_grad)
    }

    /// Writes the optimizer's state, the f32 copies of 16-bit parameters and the loss scale to a safetensors file. With the net's own
    /// file, training goes on from there to the same bits.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written.
    pub fn save_states(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut arrays: BTreeMap<String, Array> = self.optimizer.state()?.into_iter().collect();
        arrays.extend(self.scaler.as_ref().and_then(Scaler::state).map(|a| (SCALE.to_owned(), a)));
        nn::write_arrays(&arrays, &[], path.as_ref())
    }

    /// Reads what [`Trainer::save_states`] wrote, for the same parameters in the same order and the same kind of optimizer.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Data`] when the file cannot be read or is another optimizer's.
    pub fn load_states(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let mut arrays = nn::read_arrays(path.as_ref())?;
        if let (Some(state), Some(scaler)) = (arrays.remove(SCALE), &mut self.scaler) {
            scaler.load(&state)?;
        }
        self.optimizer.load_state(&arrays.into_iter().collect::<Vec<_>>())
    }

    /// The learning rate.
    pub fn learning_rate(&self) -> f64 {
        self.optimizer.learning_rate()
    }

    /// Another learning rate from the next step on.
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
