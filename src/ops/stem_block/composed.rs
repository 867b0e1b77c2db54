//! The block's ops one after the other: the definition, and the path of whatever the kernels do not take. Backward, it is computed
//! again from the inputs.

use super::{Conv2d, MaxPool2d, StemBlock};
use crate::{
    Array, Error, Result,
    autograd::{Op, Saved},
    ops::{BatchNormInferenceRelu, BatchNormRelu},
};

/// What the three ops keep.
type Kept = [Saved; 3];

fn norm(block: &StemBlock, given: bool) -> Box<dyn Op> {
    match given {
        true => Box::new(BatchNormInferenceRelu { eps: block.eps }),
        false => Box::new(BatchNormRelu { eps: block.eps }),
    }
}

/// The first of an op's outputs, and the others.
fn first(op: &str, mut all: Vec<Array>) -> Result<(Array, Vec<Array>)> {
    if all.is_empty() {
        return Err(Error::Autograd(format!("{op} gave nothing")));
    }
    let rest = all.split_off(1);
    Ok((all.remove(0), rest))
}

/// y, and with the batch's own statistics (not `given`) μ and σ²; what is kept is for the inputs that `needs` names.
pub(super) fn forward(block: &StemBlock, x: &[&Array], needs: Vec<bool>, given: bool) -> Result<(Vec<Array>, Kept)> {
    let (own, rest) = x.split_at(2 + usize::from(block.bias));
    let (own_needs, rest_needs) = needs.split_at(own.len());
    let mut conv = Saved::new(own, own_needs.to_vec());
    let (c, _) = first("conv2d", Conv2d(block.conv).forward(own, &mut conv)?)?;
    let inputs = [&[&c], rest].concat();
    let mut middle = Saved::new(&inputs, [&[own_needs.contains(&true)], rest_needs].concat());
    let (z, statistics) = first("batch_norm", norm(block, given).forward(&inputs, &mut middle)?)?;
    let mut pool = Saved::new(&[&z], vec![needs.contains(&true)]);
    let mut all = MaxPool2d(block.pool).forward(&[&z], &mut pool)?;
    all.extend(statistics);
    Ok((all, [conv, middle, pool]))
}

/// The gradients of the inputs that `needs` names.
pub(super) fn backward(
    block: &StemBlock,
    x: &[&Array],
    needs: Vec<bool>,
    dy: &[Array],
    given: bool,
) -> Result<Vec<Option<Array>>> {
    let own = 2 + usize::from(block.bias);
    let wants_conv = needs[..own].contains(&true);
    let (_, [conv, middle, pool]) = forward(block, x, needs, given)?;
    let missing = || Error::Autograd("a gradient between the block's ops is missing".into());
    let (y, statistics) = dy.split_first().ok_or_else(missing)?;
    let dz = MaxPool2d(block.pool).backward(&pool, std::slice::from_ref(y))?.swap_remove(0).ok_or_else(missing)?;
    let mut rest = norm(block, given).backward(&middle, &[&[dz], statistics].concat())?;
    let dc = rest.remove(0);
    let mut all = match wants_conv {
        true => Conv2d(block.conv).backward(&conv, &[dc.ok_or_else(missing)?])?,
        false => vec![None; own],
    };
    all.extend(rest);
    Ok(all)
}
