//! The two convolutions of one input at the entry of a residual block: 3x3, and 1x1 in the short cut. On compute capability 9.0 they share one
//! launch for each pass, and everywhere the input's gradient is written once.

use std::sync::Arc;

use crate::{
    Result, Tensor,
    hybrid::graph::{Graph, Value},
    ops::{Conv2d, Conv2dPair},
};

pub(super) fn apply(graph: &mut Graph, second: usize, _: &[&Tensor]) -> Result<bool> {
    let Some(first) = matched(graph, second) else { return Ok(false) };
    let (Some(Conv2d(o1)), Some(Conv2d(o2))) = (graph.op(first).copied(), graph.op(second).copied()) else { return Ok(false) };
    let (Some(mut node), Some(other)) = (graph.nodes[first].take(), graph.nodes[second].take()) else { return Ok(false) };
    node.op = Arc::new(Conv2dPair::new([o1, o2], [node.inputs.len() == 3, other.inputs.len() == 3]));
    node.inputs.extend(&other.inputs[1..]);
    node.outputs.extend(other.outputs);
    node.fused = Some("conv_dual");
    graph.nodes[first] = Some(node);
    graph.redirect(Value::Output(second, 0), Value::Output(first, 1));
    Ok(true)
}

/// An earlier convolution of the same input whose output has the same shape, one of both being 1x1 and the other not.
fn matched(graph: &Graph, second: usize) -> Option<usize> {
    let node = graph.node(second)?;
    let conv: &Conv2d = graph.op(second)?;
    let filter = |i: usize| graph.node(i).map(|n| graph.meta(n.inputs[1]).shape[2..].to_vec());
    let is_parameter = |v: &Value| matches!(v, Value::Parameter(_) | Value::Constant(_));
    if !node.inputs[1..].iter().all(is_parameter) {
        // Its filters may not be there yet where the first one runs.
        return None;
    }
    (0..second).rev().find(|&i| {
        let (Some(first), Some(other)) = (graph.node(i), graph.op::<Conv2d>(i)) else { return false };
        let pointwise = [filter(i), filter(second)].map(|f| f.is_some_and(|f| f == [1, 1]));
        first.inputs[0] == node.inputs[0]
            && first.mode == node.mode
            && first.outputs[0].shape[2..] == node.outputs[0].shape[2..]
            && pointwise[0] != pointwise[1]
            && (other.0.stride, other.0.groups) == (conv.0.stride, 1)
            && conv.0.groups == 1
    })
}
