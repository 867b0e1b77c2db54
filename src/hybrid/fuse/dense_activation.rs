//! A dense layer and the ReLU, sigmoid or tanh behind it: the product's epilogue applies the function.

use std::sync::Arc;

use crate::{
    Result, Tensor,
    hybrid::graph::{Graph, Value},
    ops::{Dense, DenseActivation, Unary, UnaryKind},
};

pub(super) fn apply(graph: &mut Graph, function: usize, _: &[&Tensor]) -> Result<bool> {
    let Some((dense, kind)) = matched(graph, function) else { return Ok(false) };
    let Some(mut node) = graph.nodes[dense].take() else { return Ok(false) };
    (node.op, node.fused) = (Arc::new(DenseActivation(kind)), Some("dense_activation"));
    graph.nodes[function] = Some(node);
    Ok(true)
}

fn matched(graph: &Graph, function: usize) -> Option<(usize, UnaryKind)> {
    let &Unary(kind @ (UnaryKind::Relu | UnaryKind::Sigmoid | UnaryKind::Tanh)) = graph.op(function)? else { return None };
    let &[Value::Output(dense, 0)] = graph.node(function)?.inputs.as_slice() else { return None };
    graph.op::<Dense>(dense)?;
    let same_mode = graph.node(dense)?.mode == graph.node(function)?.mode;
    (same_mode && graph.only_user(dense) == Some(function)).then_some((dense, kind))
}
