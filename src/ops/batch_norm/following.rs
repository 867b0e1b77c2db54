//! Batch normalization in training, whose running statistics follow the batch's.

use std::{any::Any, sync::Arc};

use super::{BatchNorm, BatchNormRelu, Running};
use crate::{
    Array, Context, Error, Result, Tensor,
    autograd::{Op, Saved, apply_arc, apply_with},
    hybrid::trace,
};

/// Running statistics (C): running = momentum · running + (1 − momentum) · batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunningStats<'a> {
    pub mean: &'a Tensor,
    pub var: &'a Tensor,
    pub momentum: f64,
}

/// A forward pass of an op, which lets running statistics follow.
type Forward<'a> = &'a dyn Fn(&[&Array], &mut Saved, Option<Running>) -> Result<Vec<Array>>;

/// y of `op`, which is [`BatchNorm`], [`BatchNormRelu`] or another op with the outputs y, μ and σ²; `stats` follow μ and σ².
///
/// On a GPU the launch that finishes the statistics of a batch-norm updates the running ones as well.
pub(crate) fn batch_norm_following(op: &Arc<dyn Op>, x: &[&Tensor], stats: RunningStats) -> Result<Tensor> {
    [stats.mean, stats.var].into_iter().for_each(trace::will_follow);
    let y = trace::suspend(|| {
        let any: &dyn Any = &**op;
        let on_gpu = x.first().is_some_and(|x| x.context() != Context::Cpu);
        match (any.downcast_ref::<BatchNorm>(), any.downcast_ref::<BatchNormRelu>()) {
            (Some(norm), _) if on_gpu => in_one_launch(op, x, stats, &|x, saved, running| norm.run(x, saved, running)),
            (_, Some(norm)) if on_gpu => in_one_launch(op, x, stats, &|x, saved, running| norm.run(x, saved, running)),
            _ => afterwards(op, x, stats),
        }
    })?;
    trace::followed(op, x, &y, [stats.mean, stats.var], stats.momentum);
    Ok(y)
}

fn in_one_launch(op: &Arc<dyn Op>, x: &[&Tensor], stats: RunningStats, forward: Forward) -> Result<Tensor> {
    let all = [stats.mean.clone(), stats.var.clone()];
    let name = |i: usize| ["running_mean", "running_var"][i].to_owned();
    let mut y = None;
    Tensor::update_all(&all, name, |running| {
        let [mean, var] = running else { return Ok(()) };
        let mut running = Some(Running { mean, var, momentum: stats.momentum });
        y = apply_with(op.clone(), x, &mut |x, saved| forward(x, saved, running.take()))?.into_iter().next();
        Ok(())
    })?;
    y.ok_or_else(|| Error::invalid(op.name(), "the op gave no output"))
}

/// Nothing is locked while other threads may be waited for.
fn afterwards(op: &Arc<dyn Op>, x: &[&Tensor], stats: RunningStats) -> Result<Tensor> {
    let [y, mean, var] = <[Tensor; 3]>::try_from(apply_arc(op.clone(), x)?)
        .map_err(|_| Error::invalid(op.name(), "three outputs are expected: y, the mean and the variance"))?;
    stats.mean.update(|m| m.lerp_(&mean.array(), stats.momentum))?;
    stats.var.update(|v| v.lerp_(&var.array(), stats.momentum))?;
    Ok(y)
}
