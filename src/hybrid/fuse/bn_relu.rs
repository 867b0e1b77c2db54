//! ReLU(batch-norm(x)) in one pass over memory, in training and for prediction.

use std::sync::Arc;

use crate::{
    Result, Tensor,
    autograd::Op,
    hybrid::graph::{Graph, Value},
    ops::{BatchNorm, BatchNormInference, BatchNormInferenceRelu, BatchNormRelu, Unary, UnaryKind},
};

/// The op that ends with ReLU in the place of the batch-norm at node `i`.
pub(super) fn with_relu(graph: &Graph, i: usize) -> Option<Arc<dyn Op>> {
    if let Some(&BatchNorm { eps }) = graph.op(i) {
        return Some(Arc::new(BatchNormRelu { eps }));
    }
    let &BatchNormInference { eps } = graph.op(i)?;
    Some(Arc::new(BatchNormInferenceRelu { eps }))
}

pub(super) fn apply(graph: &mut Graph, relu: usize, _: &[&Tensor]) -> Result<bool> {
    let Some(norm) = matched(graph, relu) else { return Ok(false) };
    let (Some(op), Some(mut node)) = (with_relu(graph, norm), graph.nodes[norm].take()) else { return Ok(false) };
    (node.op, node.fused) = (op, Some("bn_relu"));
    graph.nodes[relu] = Some(node);
    (1..3).for_each(|k| graph.redirect(Value::Output(norm, k), Value::Output(relu, k)));
    Ok(true)
}

fn matched(graph: &Graph, relu: usize) -> Option<usize> {
    let Unary(UnaryKind::Relu) = graph.op(relu)? else { return None };
    let &[Value::Output(norm, 0)] = graph.node(relu)?.inputs.as_slice() else { return None };
    with_relu(graph, norm)?;
    let same_mode = graph.node(norm)?.mode == graph.node(relu)?.mode;
    // The statistics would come later than a reader in between expects them.
    (same_mode && graph.only_user(norm) == Some(relu) && !graph.has_other_uses(norm)).then_some(norm)
}
