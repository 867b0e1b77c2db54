//! Recording a block's ops while it runs.
//!
//! The hooks are called by [`apply`](crate::autograd::apply), by [`Parameter`], by layers, and by what a graph cannot replay. Without a trace on this thread
//! they cost one thread-local read.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use super::graph::{Graph, Meta, Mode, Node, Running, Value};
use crate::{
    Array, Result, Tensor,
    autograd::{self, Op, Saved},
    nn::Parameter,
    precision,
    random::{self, Draw},
};

thread_local! {
    static TRACE: RefCell<Option<Trace>> = const { RefCell::new(None) };
}

struct Trace {
    graph: Graph,
    /// What each tensor's id stands for.
    known: HashMap<u64, Value>,
    /// Tensors with this id or a later one were made during the trace.
    first_id: u64,
    /// Nodes from here on have no path yet.
    unnamed: usize,
    last_layer: String,
    /// Depth of [`suspend`].
    suspended: usize,
    /// Draws outside of ops, less those that an op can repeat.
    draws: i64,
    /// Why the block cannot be replayed.
    refused: Option<String>,
    /// Running statistics as they were before.
    before: Vec<(Tensor, Array)>,
}

impl Trace {
    /// What `t` stands for as an input of `op`.
    fn value(&mut self, op: &'static str, t: &Tensor) -> Value {
        if let Some(&v) = self.known.get(&t.id()) {
            return v;
        }
        if t.id() >= self.first_id {
            self.refuse(|| format!("{op} reads a tensor that the block made without an op, from an array or the host's numbers"));
        }
        let v = Value::Constant(self.graph.constants.len());
        self.graph.constants.push(t.clone());
        self.known.insert(t.id(), v);
        v
    }

    /// Ops between two layers are named after the first one.
    fn name_rest(&mut self) {
        let rest = self.graph.nodes.iter_mut().skip(self.unnamed).flatten();
        rest.for_each(|n| n.path = if self.last_layer.is_empty() { String::new() } else { format!("after {}", self.last_layer) });
        self.unnamed = self.graph.nodes.len();
    }

    fn refuse(&mut self, reason: impl FnOnce() -> String) {
        if self.refused.is_none() {
            self.refused = Some(reason());
        }
    }
}

/// Runs `f` on this thread's trace where there is one that is not suspended.
fn with(f: impl FnOnce(&mut Trace)) {
    TRACE.with_borrow_mut(|t| {
        if let Some(t) = t.as_mut().filter(|t| t.suspended == 0) {
            f(t);
        }
    });
}

/// True while a trace runs on this thread: an inner hybridized block then runs eagerly, as a part of the outer one.
pub(crate) fn is_active() -> bool {
    TRACE.with_borrow(Option::is_some)
}

/// Gives the thread its trace back, also when what ran meanwhile panics.
#[must_use]
pub(crate) struct Aside(Option<Trace>);

impl Aside {
    /// Puts this thread's trace aside: what runs until the guard is dropped is no part of the block.
    pub(crate) fn new() -> Self {
        Aside(TRACE.take())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        TRACE.set(self.0.take());
    }
}

/// Runs `f`, of which the trace records nothing: the inside of an op, or an effect that has a node of its own.
pub(crate) fn suspend<T>(f: impl FnOnce() -> T) -> T {
    struct Resume(bool);
    impl Drop for Resume {
        fn drop(&mut self) {
            if self.0 {
                TRACE.with_borrow_mut(|t| t.iter_mut().for_each(|t| t.suspended -= 1));
            }
        }
    }
    let active = TRACE.with_borrow_mut(|t| t.as_mut().map(|t| t.suspended += 1).is_some());
    let _resume = Resume(active);
    f()
}

/// Records that `op` has computed `outputs`.
pub(crate) fn applied(op: &Arc<dyn Op>, inputs: &[&Tensor], outputs: &[Tensor]) {
    record(op, inputs, outputs, None);
}

/// Records that `y` is `x` off the tape.
pub(crate) fn detached(x: &Tensor, y: &Tensor) {
    record(&(Arc::new(Detach) as Arc<dyn Op>), &[x], std::slice::from_ref(y), None);
}

/// The node of [`Tensor::detach`], which is no op: its result is off the tape.
#[derive(Debug)]
pub(super) struct Detach;

impl Op for Detach {
    fn name(&self) -> &'static str {
        "detach"
    }

    fn forward(&self, x: &[&Array], _: &mut Saved) -> Result<Vec<Array>> {
        Ok(x.iter().map(|&x| x.clone()).collect())
    }

    fn backward(&self, saved: &Saved, _: &[Array]) -> Result<Vec<Option<Array>>> {
        Ok(vec![None; saved.inputs()])
    }
}

/// Records a batch-norm in training, whose running statistics [mean, var] follow the batch's.
pub(crate) fn followed(op: &Arc<dyn Op>, inputs: &[&Tensor], y: &Tensor, [mean, var]: [&Tensor; 2], momentum: f64) {
    record(op, inputs, std::slice::from_ref(y), Some((mean, var, momentum)));
}

fn record(op: &Arc<dyn Op>, inputs: &[&Tensor], outputs: &[Tensor], running: Option<(&Tensor, &Tensor, f64)>) {
    with(|t| {
        let name = op.name();
        let inputs = inputs.iter().map(|x| t.value(name, x)).collect();
        let running =
            running.map(|(mean, var, momentum)| Running { mean: t.value(name, mean), var: t.value(name, var), momentum });
        let draws = op.redrawn(Draw { seed: 0, number: 0 }).is_some();
        t.draws -= i64::from(draws);
        let i = t.graph.nodes.len();
        t.known.extend(outputs.iter().enumerate().map(|(k, y)| (y.id(), Value::Output(i, k))));
        let mode = Mode { recording: autograd::is_recording(), training: autograd::is_training(), precision: precision::get() };
        t.graph.nodes.push(Some(Node {
            op: op.clone(),
            inputs,
            outputs: outputs.iter().map(Meta::of).collect(),
            running,
            draws,
            mode,
            path: String::new(),
            fused: None,
        }));
    });
}

/// Records that `t` is the value of `p`, now and whatever `p` is given later.
pub(crate) fn parameter(t: &Tensor, p: &Parameter) {
    with(|trace| {
        // A layer asks for its parameters first: what came before is no layer's.
        trace.name_rest();
        if trace.known.contains_key(&t.id()) {
            return;
        }
        let all = &mut trace.graph.parameters;
        let i = all.iter().position(|(known, _)| known.id() == p.id()).unwrap_or(all.len());
        if i == all.len() {
            all.push((p.clone(), Meta::of(t)));
        }
        trace.known.insert(t.id(), Value::Parameter(i));
    });
}

/// Records that `t`, just made, has these values in every pass.
pub(crate) fn constant(t: &Tensor) {
    with(|trace| {
        let v = Value::Constant(trace.graph.constants.len());
        trace.graph.constants.push(t.clone());
        trace.known.insert(t.id(), v);
    });
}

/// Gives the ops since the last call the path of the layer that has applied them.
pub(crate) fn layer(path: impl FnOnce() -> String) {
    with(|t| {
        if t.unnamed < t.graph.nodes.len() {
            let path = path();
            t.graph.nodes[t.unnamed..].iter_mut().flatten().for_each(|n| n.path.clone_from(&path));
            t.unnamed = t.graph.nodes.len();
            t.last_layer = path;
        }
    });
}

/// Puts aside what `t`, running statistics, are before they are updated.
pub(crate) fn will_follow(t: &Tensor) {
    with(|trace| {
        if trace.before.iter().all(|(known, _)| known.id() != t.id()) {
            trace.before.push((t.clone(), t.array()));
        }
    });
}

/// Notes that a random draw was taken.
pub(crate) fn drew() {
    with(|t| t.draws += 1);
}

/// Notes that the block does what a replay cannot repeat.
pub(crate) fn refuse(reason: &'static str) {
    with(|t| t.refuse(|| reason.to_owned()));
}

/// Runs `f`, a block's forward pass on `inputs`, and records it. A graph comes with random draws and running statistics put back, so that
/// it is yet to run; a reason why there is none comes with the output.
pub(crate) fn trace(inputs: &[&Tensor], f: impl FnOnce() -> Result<Tensor>) -> Result<Result<Graph, (String, Tensor)>> {
    struct Forget;
    impl Drop for Forget {
        fn drop(&mut self) {
            TRACE.set(None);
        }
    }
    let known = inputs.iter().enumerate().map(|(i, t)| (t.id(), Value::Input(i))).collect();
    let graph = Graph { inputs: inputs.iter().map(|t| Meta::of(t)).collect(), ..Graph::default() };
    let (first_id, state) = (Tensor::next_id(), random::state());
    let (last_layer, before) = (String::new(), Vec::new());
    TRACE.set(Some(Trace { graph, known, first_id, unnamed: 0, last_layer, suspended: 0, draws: 0, refused: None, before }));
    let forget = Forget;
    let y = f()?;
    let Some(mut t) = TRACE.take() else { return Ok(Err(("the trace was lost".to_owned(), y))) };
    drop(forget);
    if t.draws != 0 {
        t.refuse(|| "it draws random numbers outside of an op".to_owned());
    }
    t.name_rest();
    let output = t.value("the block", &y);
    t.graph.outputs = vec![output];
    if let Some(reason) = t.refused {
        return Ok(Err((reason, y)));
    }
    // A layer may have changed the layout of its weight.
    for (p, meta) in &mut t.graph.parameters {
        *meta = Meta::of(&p.data()?);
    }
    random::set_state(state);
    t.before.into_iter().try_for_each(|(t, before)| t.set_array(before))?;
    Ok(Ok(t.graph))
}
