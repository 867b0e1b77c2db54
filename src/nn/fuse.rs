//! Layers that [`Sequential`](super::Sequential) does together.

use super::{BatchNorm, Block, Conv2D, MaxPool2D, Structure};
use crate::{Result, Tensor, autograd, ops::StemBlock};

/// A layer that has something in common with its neighbours; see [`Structure::part`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Part<'a> {
    /// A convolution.
    Conv2D(&'a Conv2D),
    /// A batch normalization.
    BatchNorm(&'a BatchNorm),
    /// ReLU and nothing else.
    Relu,
    /// A maximum pooling.
    MaxPool2D(&'a MaxPool2D),
}

/// How many of the first blocks are done together, and what they give; `None` where the first one is to be done alone.
pub(super) fn first(blocks: &[Box<dyn Block>], x: &Tensor) -> Result<Option<(usize, Tensor)>> {
    let part = |i: usize| blocks.get(i).and_then(|b| b.as_structure().part());
    match part(0) {
        Some(Part::BatchNorm(norm)) if matches!(part(1), Some(Part::Relu)) => Ok(Some((2, norm.forward_relu(x)?))),
        Some(Part::Conv2D(conv)) => match (part(1), part(2), part(3)) {
            (Some(Part::BatchNorm(norm)), Some(Part::Relu), Some(Part::MaxPool2D(pool))) => {
                Ok(stem_block(conv, norm, pool, x)?.map(|y| (4, y)))
            }
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}

/// As one op where a GPU has kernels for it. They give no gradient of x, and with given statistics none at all.
fn stem_block(conv: &Conv2D, norm: &BatchNorm, pool: &MaxPool2D, x: &Tensor) -> Result<Option<Tensor>> {
    let (recording, training) = (autograd::is_recording(), autograd::is_training());
    let Some(options) = conv.plain_options().filter(|_| x.context().is_gpu()) else { return Ok(None) };
    if recording && (!training || x.edge().is_some()) {
        return Ok(None);
    }
    let (w, b) = at(conv, conv.operands(x))?;
    let [gamma, beta, mean, var] = at(norm, norm.operands(w.shape()[0]))?;
    let (eps, pooling, filters) = (norm.eps(), pool.options, (&w, b.as_ref()));
    let parameters = [&gamma, &beta, &mean, &var].map(Tensor::array);
    let op = StemBlock::new(options, b.is_some(), eps, pooling);
    if !at(conv, op.is_fused(&x.array(), &w.array(), &parameters.each_ref(), recording))? {
        return Ok(None);
    }
    if !training {
        return at(conv, x.stem_block_inference(filters, [&gamma, &beta, &mean, &var], eps, options, pooling)).map(Some);
    }
    let (y, batch_mean, batch_var) = at(conv, x.stem_block(filters, [&gamma, &beta], eps, options, pooling))?;
    at(norm, norm.follow([&mean, &var], [&batch_mean, &batch_var]))?;
    Ok(Some(y))
}

/// Puts the layer's path in front of an error.
fn at<T>(layer: &impl Structure, result: Result<T>) -> Result<T> {
    match layer.info() {
        Some(info) => info.at(result),
        None => result,
    }
}
