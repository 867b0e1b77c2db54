//! The first layers of a ResNet (convolution, batch-norm, ReLU, max-pooling) as one op, where a GPU has kernels for it: they never store the
//! convolution's output. They give no gradient of x.

use std::sync::Arc;

use crate::{
    Array, Result, Tensor,
    autograd::Op,
    hybrid::graph::{Graph, Value},
    ops::{BatchNorm, BatchNormInference, Conv2d, MaxPool2d, StemBlock, StemBlockInference, Unary, UnaryKind},
};

pub(super) fn apply(graph: &mut Graph, pool: usize, x: &[&Tensor]) -> Result<bool> {
    let Some([conv, norm, relu]) = matched(graph, pool) else { return Ok(false) };
    let (Some(&Conv2d(options)), Some(&MaxPool2d(pooling))) = (graph.op(conv), graph.op(pool)) else { return Ok(false) };
    let (training, eps) = match (graph.op(norm), graph.op(norm)) {
        (Some(&BatchNorm { eps }), _) => (true, eps),
        (_, Some(&BatchNormInference { eps })) => (false, eps),
        _ => return Ok(false),
    };
    let (Some(c), Some(n)) = (graph.node(conv), graph.node(norm)) else { return Ok(false) };
    let (recording, running) = (c.mode.recording, n.running);
    let Value::Input(input) = c.inputs[0] else { return Ok(false) };
    if graph.inputs[input].wants_grad || (recording && !training) || training != running.is_some() {
        return Ok(false);
    }
    let block = StemBlock::new(options, c.inputs.len() == 3, eps, pooling);
    let parameters: Vec<Value> = n.inputs[1..].iter().copied().chain(running.into_iter().flat_map(|r| [r.mean, r.var])).collect();
    let fused = {
        let array = |v: &Value| match *v {
            Value::Parameter(i) => graph.parameters[i].0.data().map(|t| Some(t.array())),
            _ => Ok(None),
        };
        let of = |all: &[Value]| all.iter().map(array).collect::<Result<Option<Vec<Array>>>>();
        match (of(&c.inputs[1..2])?, of(&parameters)?) {
            (Some(w), Some(p)) => block.is_fused(&x[input].array(), &w[0], &p.iter().collect::<Vec<_>>(), recording)?,
            _ => false,
        }
    };
    if !fused {
        return Ok(false);
    }
    let (Some(mut node), Some(norm), Some(_), Some(last)) =
        (graph.nodes[conv].take(), graph.nodes[norm].take(), graph.nodes[relu].take(), graph.nodes[pool].take())
    else {
        return Ok(false);
    };
    node.op = if training { Arc::new(block) as Arc<dyn Op> } else { Arc::new(StemBlockInference(block)) };
    node.inputs.extend(&norm.inputs[1..]);
    (node.outputs, node.running, node.fused) = (last.outputs, norm.running, Some("stem_block"));
    graph.nodes[pool] = Some(node);
    Ok(true)
}

fn matched(graph: &Graph, pool: usize) -> Option<[usize; 3]> {
    graph.op::<MaxPool2d>(pool)?;
    let before = |i: usize| match graph.node(i)?.inputs.first() {
        Some(&Value::Output(j, 0)) if graph.only_user(j) == Some(i) && !graph.has_other_uses(j) => Some(j),
        _ => None,
    };
    let relu = before(pool)?;
    let Unary(UnaryKind::Relu) = graph.op(relu)? else { return None };
    let norm = before(relu)?;
    let conv = before(norm)?;
    graph.op::<Conv2d>(conv)?;
    let mode = graph.node(conv)?.mode;
    [norm, relu, pool].iter().all(|&i| graph.node(i).is_some_and(|n| n.mode == mode)).then_some([conv, norm, relu])
}
