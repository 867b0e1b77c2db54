//! [`Trainer`]: an optimizer applied to a net's parameters.

use std::collections::BTreeSet;

use crate::{
    Array, Error, Result, Tensor,
    nn::Parameter,
    optim::{Optimizer, Step, Update},
};

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
}

impl Trainer {
    /// For these parameters; their values may come later, with the first forward pass.
    pub fn new(parameters: Vec<Parameter>, optimizer: impl Optimizer + 'static) -> Self {
        Trainer { parameters, optimizer: Box::new(optimizer) }
    }

    /// One update with the gradients divided by `batch_size`, the nominal one also for a smaller last batch.
    ///
    /// # Errors
    /// [`Error::Parameter`] names a parameter without values, or whose gradient no backward pass has brought since the
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
        while !updates.is_empty() {
            // All at once, but a parameter that is listed twice is updated twice.
            let mut seen = BTreeSet::new();
            let (round, later) = updates.into_iter().partition(|(_, value, ..)| seen.insert(value.id()));
            self.update(round)?;
            updates = later;
        }
        Ok(())
    }

    fn update(&mut self, updates: Vec<(usize, Tensor, Array, Step)>) -> Result<()> {
        let (values, updates): (Vec<Tensor>, Vec<_>) =
            updates.into_iter().map(|(i, value, grad, step)| (value, (i, grad, step))).unzip();
        let name = |k: usize| format!("parameter {}", self.parameters[updates[k].0].name());
        Tensor::update_all(&values, name, |arrays| {
            let mut all = Vec::with_capacity(updates.len());
            for ((index, grad, step), w) in updates.iter().zip(arrays) {
                all.push(Update { index: *index, w, grad, step: *step });
            }
            self.optimizer.update_all(&mut all)
        })?;
        values.iter().try_for_each(Tensor::use_grad)
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
