//! The graph of a traced block: ops in the order in which they ran, and what each reads.

use std::{any::Any, fmt, sync::Arc};

use crate::{DType, Layout, Tensor, autograd::Op, nn::Parameter, precision::Precision, shape::Display};

/// What an op reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Value {
    /// An input of the block.
    Input(usize),
    /// A parameter, by its number in [`Graph::parameters`].
    Parameter(usize),
    /// A tensor that existed before the trace, by its number in [`Graph::constants`].
    Constant(usize),
    /// Output `.1` of node `.0`.
    Output(usize, usize),
}

/// What the ops depend on beside the values of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub layout: Layout,
    pub device: crate::Context,
    /// A gradient flows back to it.
    pub wants_grad: bool,
}

impl Meta {
    pub(crate) fn of(t: &Tensor) -> Self {
        let a = t.array();
        Meta {
            shape: a.shape().to_vec(),
            dtype: a.dtype(),
            layout: a.layout(),
            device: a.context(),
            wants_grad: t.edge().is_some(),
        }
    }
}

/// Running statistics that follow the batch's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub mean: Value,
    pub var: Value,
    pub momentum: f64,
}

/// The thread's settings while an op ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode {
    pub recording: bool,
    pub training: bool,
    pub precision: Precision,
}

/// One op.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub op: Arc<dyn Op>,
    pub inputs: Vec<Value>,
    pub outputs: Vec<Meta>,
    /// Of a batch-norm in training; its only visible output is then y.
    pub running: Option<Running>,
    /// The op takes a new draw in each pass.
    pub draws: bool,
    pub mode: Mode,
    /// The layer's path, for errors.
    pub path: String,
    /// The rewrite that made this node.
    pub fused: Option<&'static str>,
}

/// A traced block.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    /// `None` where a rewrite has removed the node.
    pub nodes: Vec<Option<Node>>,
    pub inputs: Vec<Meta>,
    pub parameters: Vec<(Parameter, Meta)>,
    pub constants: Vec<Tensor>,
    pub outputs: Vec<Value>,
}

impl Graph {
    /// The node at `i`, if it is there.
    pub(crate) fn node(&self, i: usize) -> Option<&Node> {
        self.nodes.get(i).and_then(Option::as_ref)
    }

    /// The op at node `i`, if it is a `T`.
    pub(crate) fn op<T: Op>(&self, i: usize) -> Option<&T> {
        let op: &dyn Any = &*self.node(i)?.op;
        op.downcast_ref()
    }

    /// The node that alone reads output 0 of node `i`, once, where the block does not return it.
    pub(crate) fn only_user(&self, i: usize) -> Option<usize> {
        let v = Value::Output(i, 0);
        if self.outputs.contains(&v) {
            return None;
        }
        let reads = |n: &Option<Node>| n.as_ref().map_or(0, |n| n.inputs.iter().filter(|&&x| x == v).count());
        let mut users = self.nodes.iter().enumerate().filter(|(_, n)| reads(n) > 0);
        let (user, node) = users.next()?;
        (users.next().is_none() && reads(node) == 1).then_some(user)
    }

    /// True where an output of node `i` other than the first is read.
    pub(crate) fn has_other_uses(&self, i: usize) -> bool {
        let other = |v: &Value| matches!(v, Value::Output(j, k) if *j == i && *k > 0);
        self.outputs.iter().any(other) || self.nodes.iter().flatten().any(|n| n.inputs.iter().any(other))
    }

    /// What is known of `v` beside its values.
    pub(crate) fn meta(&self, v: Value) -> Meta {
        match v {
            Value::Input(i) => self.inputs[i].clone(),
            Value::Parameter(i) => self.parameters[i].1.clone(),
            Value::Constant(i) => Meta::of(&self.constants[i]),
            Value::Output(i, k) => match self.node(i).and_then(|n| n.outputs.get(k)) {
                Some(meta) => meta.clone(),
                None => unreachable!("rewrites redirect the uses of what they remove"),
            },
        }
    }

    /// Lets every use of `from` read `to`.
    pub(crate) fn redirect(&mut self, from: Value, to: Value) {
        let read = self.nodes.iter_mut().flatten().flat_map(|n| n.inputs.iter_mut());
        for v in read.chain(&mut self.outputs).filter(|v| **v == from) {
            *v = to;
        }
    }
}

impl fmt::Display for Graph {
    /// One line a node: its number, op, inputs, shape and layer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |v: &Value| match v {
            Value::Input(i) => format!("x{i}"),
            Value::Parameter(i) => self.parameters[*i].0.name(),
            Value::Constant(i) => format!("constant{i}"),
            Value::Output(i, 0) => format!("%{i}"),
            Value::Output(i, k) => format!("%{i}.{k}"),
        };
        for (i, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else { continue };
            let inputs: Vec<String> = node.inputs.iter().map(name).collect();
            let shape = node.outputs.first().map_or_else(String::new, |m| Display(&m.shape).to_string());
            write!(f, "%{i} = {}({}) {shape}", node.op.name(), inputs.join(", "))?;
            if let Some(rewrite) = node.fused {
                write!(f, "  [{rewrite}]")?;
            }
            writeln!(f, "  {}", node.path)?;
        }
        let outputs: Vec<String> = self.outputs.iter().map(name).collect();
        writeln!(f, "return {}", outputs.join(", "))
    }
}
