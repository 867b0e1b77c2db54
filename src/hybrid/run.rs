//! Replaying a graph.

use std::{any::Any, sync::Arc};

use super::{
    graph::{Graph, Meta, Node, Running, Value},
    trace::Detach,
};
use crate::{
    Error, Result, Tensor,
    autograd::{self, Op},
    ops::{self, RunningStats},
    precision,
    random::next_draw,
};

impl Graph {
    /// The parameters' tensors, or `None` where one has other properties than in the trace.
    pub(crate) fn parameters(&self) -> Result<Option<Vec<Tensor>>> {
        let mut all = Vec::with_capacity(self.parameters.len());
        for (p, meta) in &self.parameters {
            let t = p.data()?;
            if Meta::of(&t) != *meta {
                return Ok(None);
            }
            all.push(t);
        }
        Ok(Some(all))
    }

    /// The node that reads each value last, by node: what can be dropped after it. Values that the block returns stay.
    pub(super) fn last_uses(&self) -> Vec<Vec<Value>> {
        let mut seen: std::collections::HashSet<Value> = self.outputs.iter().copied().collect();
        let mut last = vec![Vec::new(); self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate().rev() {
            let Some(node) = node else { continue };
            let own = (0..node.outputs.len()).map(|k| Value::Output(i, k));
            for v in node.inputs.iter().copied().chain(own) {
                if matches!(v, Value::Output(..)) && seen.insert(v) {
                    last[i].push(v);
                }
            }
        }
        last
    }

    /// Applies the ops to `inputs` and the parameters' tensors.
    pub(super) fn run(&self, inputs: &[&Tensor], parameters: &[Tensor], last_uses: &[Vec<Value>]) -> Result<Tensor> {
        let mut computed: Vec<Vec<Option<Tensor>>> = vec![Vec::new(); self.nodes.len()];
        let lost = || Error::Autograd("a hybridized block reads a value that is not there".into());
        for (i, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else { continue };
            let get = |v: &Value| match *v {
                Value::Input(i) => inputs.get(i).map(|&t| t.clone()),
                Value::Parameter(i) => parameters.get(i).cloned(),
                Value::Constant(i) => self.constants.get(i).cloned(),
                Value::Output(i, k) => computed.get(i).and_then(|all| all.get(k)).cloned().flatten(),
            };
            let x = node.inputs.iter().map(|v| get(v).ok_or_else(lost)).collect::<Result<Vec<_>>>()?;
            let stats = |r: Running| Ok::<_, Error>((get(&r.mean).ok_or_else(lost)?, get(&r.var).ok_or_else(lost)?, r.momentum));
            let running = node.running.map(stats).transpose()?;
            let y = node.apply(&x, running).map_err(|e| if node.path.is_empty() { e } else { e.at(&node.path) })?;
            computed[i] = y.into_iter().map(Some).collect();
            drop(x);
            for v in last_uses.get(i).into_iter().flatten() {
                if let Value::Output(i, k) = *v
                    && let Some(place) = computed[i].get_mut(k)
                {
                    *place = None;
                }
            }
        }
        match self.outputs.first() {
            Some(&Value::Input(i)) => inputs.get(i).map(|&t| t.clone()),
            Some(&Value::Parameter(i)) => parameters.get(i).cloned(),
            Some(&Value::Constant(i)) => self.constants.get(i).cloned(),
            Some(&Value::Output(i, k)) => computed.get_mut(i).and_then(|all| all.get_mut(k)?.take()),
            None => None,
        }
        .ok_or_else(lost)
    }
}

impl Node {
    fn apply(&self, x: &[Tensor], running: Option<(Tensor, Tensor, f64)>) -> Result<Vec<Tensor>> {
        let x: Vec<&Tensor> = x.iter().collect();
        let redrawn = if self.draws { self.op.redrawn(next_draw()) } else { None };
        let op: Arc<dyn Op> = redrawn.unwrap_or_else(|| self.op.clone());
        let any: &dyn Any = &*op;
        let run = || match &running {
            Some((mean, var, momentum)) => {
                ops::batch_norm_following(&op, &x, RunningStats { mean, var, momentum: *momentum }).map(|y| vec![y])
            }
            None if any.is::<Detach>() => Ok(x.iter().map(|x| x.detach()).collect()),
            None => autograd::apply_arc(op.clone(), &x),
        };
        let mode = self.mode;
        precision::with(mode.precision, || autograd::with_flags(mode.recording, mode.training, run))
    }
}
