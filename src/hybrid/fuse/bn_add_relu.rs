//! ReLU(batch-norm(x) + residual), the end of a residual block (He et al. 2016), in one pass over memory.

use super::bn_relu::with_relu;
use crate::{
    Result, Tensor,
    hybrid::graph::{Graph, Value},
    ops::{Binary, BinaryKind, Unary, UnaryKind},
};

pub(super) fn apply(graph: &mut Graph, relu: usize, _: &[&Tensor]) -> Result<bool> {
    let Some((norm, add, residual)) = matched(graph, relu) else { return Ok(false) };
    let (Some(op), Some(mut node)) = (with_relu(graph, norm), graph.nodes[norm].take()) else { return Ok(false) };
    (node.op, node.fused) = (op, Some("bn_add_relu"));
    node.inputs.push(residual);
    graph.nodes[add] = None;
    graph.nodes[relu] = Some(node);
    Ok(true)
}

/// The batch-norm, the addition, and the other operand. Where both operands are batch-norms it is the later one, which is the nearer to its use.
fn matched(graph: &Graph, relu: usize) -> Option<(usize, usize, Value)> {
    let Unary(UnaryKind::Relu) = graph.op(relu)? else { return None };
    let &[Value::Output(add, 0)] = graph.node(relu)?.inputs.as_slice() else { return None };
    let Binary(BinaryKind::Add) = graph.op(add)? else { return None };
    let &[a, b] = graph.node(add)?.inputs.as_slice() else { return None };
    if graph.only_user(add) != Some(relu) {
        return None;
    }
    let norm = |v: Value, other: Value| match v {
        Value::Output(i, 0) if with_relu(graph, i).is_some() && graph.only_user(i) == Some(add) && !graph.has_other_uses(i) => {
            let (x, r) = (graph.meta(v), graph.meta(other));
            // A residual that broadcasts is another op.
            ((&x.shape, x.dtype) == (&r.shape, r.dtype) && graph.node(i)?.mode == graph.node(relu)?.mode)
                .then_some((i, add, other))
        }
        _ => None,
    };
    [norm(a, b), norm(b, a)].into_iter().flatten().max_by_key(|&(i, ..)| i)
}
