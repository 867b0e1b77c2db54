//! Reverse-mode differentiation on a tape: [`record`], [`Op`], [`Tensor::backward`].
//!
//! Inside [`record`] each operation on a tensor that leads back to a variable (see [`Tensor::attach_grad`]) leaves a
//! node. [`Tensor::backward`] walks the nodes from the newest to the oldest and adds up what arrives at each tensor:
//! for `y = f(x)` an op turns dL/dy into dL/dx = (∂y/∂x)ᵀ dL/dy. The engine accumulates, but where [`Op::adds`]. First order only.
//!
//! ```
//! use hadal::{Tensor, autograd, cpu};
//! let x = Tensor::from_vec(vec![1f32, 2., 3.], &[3], &cpu())?.attach_grad();
//! let y = autograd::record(|| x.square())?;
//! y.backward()?;
//! assert_eq!(x.grad()?.to_vec()?, [2., 4., 6.]);
//! # Ok::<(), hadal::Error>(())
//! ```

use std::{
    any::Any,
    cell::Cell,
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fmt::Debug,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{Array, Context, Error, Layout, Result, Tensor, cpu::parallel, hybrid::trace, random::Draw};

/// A differentiable operation: how it computes and how it sends a gradient back.
///
/// The project's own ops and a user's are the same trait; there is no default for `backward`, so a gradient cannot
/// be forgotten.
pub trait Op: Any + Debug + Send + Sync {
    /// The name in errors and profiles, such as `conv2d`.
    fn name(&self) -> &'static str;

    /// Computes the outputs and puts aside in `saved` what `backward` will need.
    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>>;

    /// From the gradient of each output, the gradient of each input in order.
    ///
    /// `None` says that the derivative is zero everywhere or does not exist (labels, indices, comparisons). An input
    /// for which [`Saved::needs`] is false may be answered with `None` as well, to save work.
    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>>;

    /// Whether the gradient of input `i` is given as the sum of it and [`Saved::arrived`]; else the engine adds.
    ///
    /// For ops that can add while they write, which spares a pass over memory where an input has several uses.
    fn adds(&self, i: usize) -> bool {
        let _ = i;
        false
    }

    /// For an op that holds a random draw: the same op with another one.
    ///
    /// A [hybridized](crate::nn::Sequential::hybridize) block takes the thread's next draw in each pass, as the eager block does.
    fn redrawn(&self, draw: Draw) -> Option<Arc<dyn Op>> {
        let _ = draw;
        None
    }
}

/// What an op's forward pass keeps for its backward pass.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    arrays: Vec<Array>,
    needs: Vec<bool>,
    inputs: Vec<Meta>,
    /// The op that ran forward, and its outputs: what gradients have to look like.
    ran: Option<(&'static str, Vec<Meta>)>,
    /// The gradient that arrives is the 1 that a backward pass begins with.
    ones: bool,
    /// By input, from the end of the forward pass on.
    arrived: Vec<Option<Array>>,
}

impl Saved {
    /// For inputs `x`, of which those with `needs` want a gradient.
    pub fn new(x: &[&Array], needs: Vec<bool>) -> Self {
        Saved { needs, inputs: x.iter().map(|a| Meta::of(a)).collect(), ..Saved::default() }
    }

    /// Keeps an array (shared, not copied), to be read as `saved.get(0)`, `saved.get(1)`, … in the order of keeping.
    pub fn keep(&mut self, a: &Array) {
        self.arrays.push(a.clone());
    }

    /// The `i`-th array kept.
    ///
    /// # Errors
    /// When the forward pass kept fewer.
    pub fn get(&self, i: usize) -> Result<&Array> {
        self.arrays
            .get(i)
            .ok_or_else(|| Error::Autograd(format!("the forward pass kept {} arrays, {i} is asked for", self.arrays.len())))
    }

    /// True when the gradient of input `i` is wanted.
    pub fn needs(&self, i: usize) -> bool {
        self.needs.get(i).copied().unwrap_or(false)
    }

    /// True when any gradient is wanted: the pass is being recorded.
    pub fn wanted(&self) -> bool {
        self.needs.contains(&true)
    }

    /// The shape of input `i`; empty when there is no such input.
    pub fn shape(&self, i: usize) -> &[usize] {
        self.inputs.get(i).map_or(&[], |m| &m.shape)
    }

    /// True when it is known that dy, of an op with one output, is 1 everywhere: [`Tensor::backward`] begins with this op.
    ///
    /// A loss that has its gradient from the forward pass then has nothing to multiply. False does not say that dy is not 1.
    pub fn dy_is_one(&self) -> bool {
        self.ones
    }

    /// Gradients that other uses of input `i` have sent back already, where the op [adds](Op::adds) its own to them.
    pub fn arrived(&self, i: usize) -> Option<&Array> {
        self.arrived.get(i).and_then(Option::as_ref)
    }

    /// Sets [`arrived`](Saved::arrived); the memory becomes nobody else's, so that it can be added to in place.
    pub(crate) fn arrive(&mut self, i: usize, mut sum: Array) -> Result<()> {
        sum.make_unique()?;
        self.arrived.resize(self.inputs(), None);
        self.arrived[i] = Some(sum);
        Ok(())
    }

    /// Notes what the forward pass of `op` on `x` gave, and hands it on: the end of each of this crate's forward passes. The engine
    /// does the same for users' ops.
    ///
    /// # Errors
    /// [`Error::Autograd`] when this was made for other inputs than `x`, or has served a forward pass already.
    pub(crate) fn outputs(&mut self, op: &'static str, x: &[&Array], y: Vec<Array>) -> Result<Vec<Array>> {
        if self.wanted() {
            if self.inputs.len() != x.len() || self.inputs.iter().zip(x).any(|(m, a)| *m != Meta::of(a)) {
                return Err(Error::Autograd(format!("{op}: `Saved` was made for other inputs")));
            }
            if let Some((other, _)) = self.ran {
                return Err(Error::Autograd(format!("{op}: `Saved` has served a forward pass of {other} already")));
            }
        }
        self.note(op, &y);
        Ok(y)
    }

    /// [`Saved::outputs`] for an op that does not call it.
    pub(crate) fn note(&mut self, op: &'static str, y: &[Array]) {
        self.ran = Some((op, y.iter().map(Meta::of).collect()));
    }

    /// The gradients of the `N` outputs of `op`, which are what they have to be: how each of this crate's backward passes begins, since
    /// anybody may call it.
    ///
    /// # Errors
    /// As for [`Saved::check`].
    pub(crate) fn gradients<'a, const N: usize>(&self, op: &'static str, dy: &'a [Array]) -> Result<&'a [Array; N]> {
        self.check(op, dy)?;
        dy.try_into().map_err(|_| Error::Autograd(format!("{op}: {N} gradients are needed, {} are given", dy.len())))
    }

    /// Whether `dy` can be the gradients of what the forward pass of `op` gave.
    ///
    /// # Errors
    /// [`Error::Autograd`] when there was no such pass or their number is another one; [`Error::Shape`], [`Error::DTypes`] or
    /// [`Error::Context`] when one is not like its output.
    pub(crate) fn check(&self, op: &'static str, dy: &[Array]) -> Result<()> {
        let outputs = match &self.ran {
            Some((name, outputs)) if *name == op => outputs,
            Some((name, _)) => return Err(Error::Autograd(format!("{op}: `Saved` is from a forward pass of {name}"))),
            None => return Err(Error::Autograd(format!("{op}: backward needs the `Saved` of a forward pass"))),
        };
        if dy.len() != outputs.len() {
            return Err(Error::Autograd(format!("{op}: {} outputs, {} gradients", outputs.len(), dy.len())));
        }
        dy.iter().zip(outputs).try_for_each(|(dy, y)| y.takes(op, "a gradient of another shape than its output", dy))
    }

    /// Whether `dx` can be the gradients of the inputs.
    ///
    /// # Errors
    /// As for [`Saved::check`].
    pub(crate) fn takes(&self, op: &'static str, dx: &[Option<Array>]) -> Result<()> {
        if dx.len() != self.inputs() {
            return Err(Error::Autograd(format!("{op} has {} inputs, its backward gave {} gradients", self.inputs(), dx.len())));
        }
        let mut both = self.inputs.iter().zip(dx).filter_map(|(x, dx)| Some((x, dx.as_ref()?)));
        both.try_for_each(|(x, dx)| x.takes(op, "a gradient of another shape than its input", dx))
    }

    /// The number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs.len()
    }
}

/// All of an array but its elements.
#[derive(Clone, Debug, PartialEq)]
struct Meta {
    shape: Vec<usize>,
    dtype: crate::DType,
    layout: Layout,
    context: Context,
}

impl Meta {
    fn of(a: &Array) -> Self {
        Meta { shape: a.shape().to_vec(), dtype: a.dtype(), layout: a.layout(), context: a.context() }
    }

    /// Errs unless `gradient` has this shape, dtype and device. Integers have no gradient: what stands for theirs is not looked at.
    fn takes(&self, op: &'static str, reason: &'static str, gradient: &Array) -> Result<()> {
        if gradient.shape() != self.shape {
            return Err(Error::shape(op, reason, &[gradient.shape(), &self.shape]));
        }
        if self.dtype.is_float() && gradient.dtype() != self.dtype {
            return Err(Error::DTypes { op, left: gradient.dtype(), right: self.dtype });
        }
        gradient.context().same(op, &self.context)
    }
}

/// What [`Tensor::backward`] does with a new gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GradReq {
    /// It replaces the old one.
    #[default]
    Write,
    /// It is added to the old one.
    Add,
    /// It is not computed.
    Null,
}

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(false) };
    static TRAINING: Cell<bool> = const { Cell::new(false) };
}

/// Sets both flags until it is dropped, also by a panic.
#[must_use]
pub(crate) struct Flags(bool, bool);

impl Flags {
    pub(crate) fn set(recording: bool, training: bool) -> Self {
        Flags(RECORDING.replace(recording), TRAINING.replace(training))
    }
}

impl Drop for Flags {
    fn drop(&mut self) {
        RECORDING.set(self.0);
        TRAINING.set(self.1);
    }
}

/// Sets both flags while `f` runs.
pub(crate) fn with_flags<T>(recording: bool, training: bool, f: impl FnOnce() -> T) -> T {
    let _flags = Flags::set(recording, training);
    f()
}

/// Runs `f` in training mode with its operations on the tape.
#[doc(alias("GradientTape", "enable_grad"))]
pub fn record<T>(f: impl FnOnce() -> T) -> T {
    with_flags(true, true, f)
}

/// Runs `f` off the tape and in prediction mode, inside or outside of [`record`].
#[doc(alias("no_grad", "stop_recording"))]
pub fn pause<T>(f: impl FnOnce() -> T) -> T {
    with_flags(false, false, f)
}

/// Runs `f` in training mode (dropout drops, batch-norm uses the batch), whether recorded or not.
pub fn train_mode<T>(f: impl FnOnce() -> T) -> T {
    with_flags(is_recording(), true, f)
}

/// Runs `f` in prediction mode, whether recorded or not.
#[doc(alias("eval", "inference_mode"))]
pub fn predict_mode<T>(f: impl FnOnce() -> T) -> T {
    with_flags(is_recording(), false, f)
}

/// True where operations go on the tape.
pub fn is_recording() -> bool {
    RECORDING.get()
}

/// True where layers behave as in training.
pub fn is_training() -> bool {
    TRAINING.get()
}

/// One recorded operation.
#[cfg_attr(test, derive(Debug))]
pub(crate) struct Node {
    op: Arc<dyn Op>,
    /// Newer nodes have larger ids, so parents always have smaller ones.
    id: u64,
    /// Taken by the backward pass.
    saved: Mutex<Option<Saved>>,
    inputs: Vec<Option<Edge>>,
    /// From which a zero gradient is made for an output that nobody used.
    outputs: Vec<Meta>,
}

/// Where an input of a node came from.
#[derive(Clone)]
#[cfg_attr(test, derive(Debug))]
pub(crate) enum Edge {
    /// A variable.
    Leaf(Tensor),
    /// Output `.1` of another node.
    Node(Arc<Node>, usize),
}

impl Drop for Node {
    /// Frees a long chain without recursion.
    fn drop(&mut self) {
        let mut edges = std::mem::take(&mut self.inputs);
        while let Some(edge) = edges.pop() {
            if let Some(Edge::Node(parent, _)) = edge
                && let Some(mut parent) = Arc::into_inner(parent)
            {
                edges.append(&mut parent.inputs);
            }
        }
    }
}

/// Runs `op` on tensors; on the tape when recording and an input leads to a variable.
///
/// # Errors
/// The op's own, or [`Error::Context`] when the inputs live on different devices.
pub fn apply(op: impl Op, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    apply_arc(Arc::new(op), inputs)
}

/// [`apply`] for an op with one output.
pub fn apply1(op: impl Op, inputs: &[&Tensor]) -> Result<Tensor> {
    let name = op.name();
    apply(op, inputs)?.pop().ok_or_else(|| Error::invalid(name, "the op gave no output"))
}

/// [`apply`] for an op that is shared.
pub fn apply_arc(op: Arc<dyn Op>, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    let own = op.clone();
    apply_with(op, inputs, &mut |x, saved| own.forward(x, saved))
}

/// A forward pass: [`Op::forward`].
type Forward<'a> = dyn FnMut(&[&Array], &mut Saved) -> Result<Vec<Array>> + 'a;

/// [`apply_arc`] with another forward pass than the op's own, which has more to do than the tape has to know.
pub(crate) fn apply_with(op: Arc<dyn Op>, inputs: &[&Tensor], forward: &mut Forward) -> Result<Vec<Tensor>> {
    let arrays: Vec<Array> = inputs.iter().map(|t| t.array()).collect();
    let refs: Vec<&Array> = arrays.iter().collect();
    if let Some((first, rest)) = refs.split_first() {
        for other in rest {
            first.context().same(op.name(), &other.context())?;
        }
        if first.context() == Context::Cpu {
            parallel::enlist();
        }
    }
    let edges: Vec<Option<Edge>> = if is_recording() { inputs.iter().map(|t| t.edge()).collect() } else { Vec::new() };
    let needs = edges.iter().map(Option::is_some).collect();
    let mut saved = Saved::new(&refs, needs);
    // What an op does inside is its own affair.
    let outputs = trace::suspend(|| forward(&refs, &mut saved))?;
    let outputs = place(&op, edges, saved, outputs);
    trace::applied(&op, inputs, &outputs);
    Ok(outputs)
}

/// The outputs as tensors, on the tape where a gradient of an input is wanted.
fn place(op: &Arc<dyn Op>, edges: Vec<Option<Edge>>, mut saved: Saved, outputs: Vec<Array>) -> Vec<Tensor> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    if !saved.wanted() {
        return outputs.into_iter().map(Tensor::new).collect();
    }
    saved.note(op.name(), &outputs);
    let node = Arc::new(Node {
        op: op.clone(),
        id: NEXT.fetch_add(1, Ordering::Relaxed),
        saved: Mutex::new(Some(saved)),
        inputs: edges,
        outputs: outputs.iter().map(Meta::of).collect(),
    });
    let tensor = |(i, a): (usize, Array)| {
        // Integers (an argmax, say) carry no gradient.
        if a.dtype().is_float() { Tensor::from_node(a, node.clone(), i) } else { Tensor::new(a) }
    };
    outputs.into_iter().enumerate().map(tensor).collect()
}

/// Gradients on their way: for each node still to be visited, what has arrived at each of its outputs.
#[derive(Default)]
struct Pending {
    nodes: BTreeMap<u64, (Arc<Node>, Vec<Option<Array>>)>,
    leaves: HashMap<u64, (Tensor, Array)>,
    order: Vec<u64>,
    /// The node whose output's gradient is known to be 1.
    ones: Option<u64>,
}

impl Pending {
    /// Takes what has arrived at `edge`; not from a variable.
    fn take(&mut self, edge: &Edge) -> Option<Array> {
        let Edge::Node(node, i) = edge else { return None };
        self.nodes.get_mut(&node.id)?.1.get_mut(*i)?.take()
    }

    /// Adds `grad` to what has arrived at `edge`.
    fn arrive(&mut self, edge: &Edge, grad: Array) -> Result<()> {
        match edge {
            Edge::Leaf(t) => match self.leaves.entry(t.id()) {
                Entry::Occupied(mut e) => e.get_mut().1.add_assign(&grad)?,
                Entry::Vacant(e) => {
                    self.order.push(t.id());
                    e.insert((t.clone(), grad));
                }
            },
            Edge::Node(node, i) => {
                let (_, slots) = self.nodes.entry(node.id).or_insert_with(|| (node.clone(), vec![None; node.outputs.len()]));
                match slots.get_mut(*i) {
                    Some(Some(sum)) => sum.add_assign(&grad)?,
                    Some(slot) => *slot = Some(grad),
                    None => return Err(Error::Autograd(format!("{} has no output {i}", node.op.name()))),
                }
            }
        }
        Ok(())
    }
}

/// Sends `head`, with `ones` known to be 1 everywhere, back from `edge` to all variables that it leads to.
pub(crate) fn backward(edge: Option<Edge>, head: Array, ones: bool, retain: bool) -> Result<()> {
    let Some(edge) = edge else {
        return Err(Error::Autograd(
            "this tensor leads to no variable: compute it inside autograd::record from tensors with attach_grad".into(),
        ));
    };
    let mut pending = Pending::default();
    if let (Edge::Node(node, _), true) = (&edge, ones) {
        // Nothing is added to it, since all other nodes of this pass are older.
        pending.ones = (node.outputs.len() == 1).then_some(node.id);
    }
    pending.arrive(&edge, head)?;
    // The walk must not record, and its callers' edge must not keep nodes alive longer than needed.
    drop(edge);
    pause(|| {
        while let Some((_, (node, slots))) = pending.nodes.pop_last() {
            node.step(slots, retain, &mut pending)?;
        }
        Ok::<(), Error>(())
    })?;
    for id in &pending.order {
        if let Some((tensor, grad)) = pending.leaves.remove(id) {
            tensor.receive(grad)?;
        }
    }
    Ok(())
}

impl Node {
    /// The operation's name.
    pub(crate) fn name(&self) -> &'static str {
        self.op.name()
    }

    /// One step of the backward walk: from the gradients of the outputs to those of the inputs.
    fn step(&self, slots: Vec<Option<Array>>, retain: bool, pending: &mut Pending) -> Result<()> {
        let mut place = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = if retain { place.clone() } else { place.take() };
        drop(place);
        let name = self.op.name();
        let mut saved = kept.ok_or_else(|| {
            Error::Autograd(format!(
                "the graph at {name} was freed by an earlier backward; use backward_retain for the first one"
            ))
        })?;
        saved.ones = pending.ones == Some(self.id);
        let zeros = |m: &Meta| Ok(Array::shared_zeros(&m.shape, m.dtype, &m.context)?.with_layout(m.layout));
        let dy = slots.into_iter().zip(&self.outputs).map(|(s, m)| s.map_or_else(|| zeros(m), Ok)).collect::<Result<Vec<_>>>()?;
        saved.check(name, &dy)?;
        for (i, edge) in self.inputs.iter().enumerate() {
            if let Some(edge) = edge.as_ref().filter(|_| self.op.adds(i))
                && let Some(sum) = pending.take(edge)
            {
                saved.arrive(i, sum)?;
            }
        }
        let mut dx = self.op.backward(&saved, &dy)?;
        saved.takes(name, &dx)?;
        for (dx, arrived) in dx.iter_mut().zip(&saved.arrived) {
            // Without a gradient of the op's own it stays what it was.
            *dx = dx.take().or_else(|| arrived.clone());
        }
        // What the forward pass kept is free before the gradients travel on.
        drop((saved, dy));
        for (edge, dx) in self.inputs.iter().zip(dx) {
            if let (Some(edge), Some(dx)) = (edge, dx) {
                pending.arrive(edge, dx)?;
            }
        }
        Ok(())
    }
}
