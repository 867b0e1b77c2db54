//! [`Tensor`]: an [`Array`] and its place on the tape. The operations are methods that stand beside their op in `ops/`.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    Array, Context, DType, Element, Error, Layout, Result,
    autograd::{self, Edge, GradReq, Node},
    cpu::parallel,
    cuda::capture,
    hybrid::trace,
};

/// An n-dimensional array that gradients can flow through; cheap to clone, clones are the same tensor.
///
/// ```
/// use hadal::{Tensor, cpu};
/// let x = Tensor::arange(0.0, 16.0, 1.0, &cpu())?.reshape(&[2, 8])?;
/// assert!(x.to_string().ends_with("<Tensor 2x8 @cpu(0)>"));
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(Clone)]
pub struct Tensor(Arc<Inner>);

struct Inner {
    id: u64,
    value: RwLock<Array>,
    origin: Option<(Arc<Node>, usize)>,
    variable: Option<Mutex<Variable>>,
}

/// The gradient's place of a tensor with `attach_grad`.
struct Variable {
    req: GradReq,
    grad: Option<Array>,
    /// True from a backward pass until an optimizer has used the gradient.
    fresh: bool,
}

const READS: &str = "it reads a tensor's values, on which it may depend";

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl Tensor {
    /// Tensors made from here on have this id or a greater one.
    pub(crate) fn next_id() -> u64 {
        NEXT_ID.load(Ordering::Relaxed)
    }

    /// A tensor whose values are the same whenever its block runs.
    fn constant(array: Result<Array>) -> Result<Self> {
        let t = Self::new(array?);
        trace::constant(&t);
        Ok(t)
    }

    /// A tensor off the tape.
    pub fn new(array: Array) -> Self {
        Self::build(array, None, None)
    }

    pub(crate) fn from_node(array: Array, node: Arc<Node>, output: usize) -> Self {
        Self::build(array, Some((node, output)), None)
    }

    fn build(array: Array, origin: Option<(Arc<Node>, usize)>, variable: Option<Mutex<Variable>>) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Tensor(Arc::new(Inner { id, value: RwLock::new(array.with_recorded(false)), origin, variable }))
    }

    /// A tensor of `shape` with the elements of `data` in row-major order.
    pub fn from_vec<T: Element>(data: Vec<T>, shape: &[usize], ctx: &Context) -> Result<Self> {
        Array::from_vec(data, shape, ctx).map(Self::new)
    }

    /// f32 zeros.
    pub fn zeros(shape: &[usize], ctx: &Context) -> Result<Self> {
        Self::constant(Array::zeros(shape, DType::F32, ctx))
    }

    /// f32 ones.
    pub fn ones(shape: &[usize], ctx: &Context) -> Result<Self> {
        Self::full(shape, 1.0, ctx)
    }

    /// f32, all equal to `value`.
    pub fn full(shape: &[usize], value: f64, ctx: &Context) -> Result<Self> {
        Self::constant(Array::full(shape, value, DType::F32, ctx))
    }

    /// f32: `start, start + step, …` below `stop`.
    pub fn arange(start: f64, stop: f64, step: f64, ctx: &Context) -> Result<Self> {
        Self::constant(Array::arange(start, stop, step, DType::F32, ctx))
    }

    /// Zeros with this tensor's shape, dtype and device.
    pub fn zeros_like(&self) -> Result<Self> {
        let a = self.array();
        Self::constant(Array::zeros(a.shape(), a.dtype(), &a.context()))
    }

    /// Ones with this tensor's shape, dtype and device.
    pub fn ones_like(&self) -> Result<Self> {
        let a = self.array();
        Self::constant(Array::full(a.shape(), 1.0, a.dtype(), &a.context()))
    }

    /// The array itself, sharing its memory.
    pub fn array(&self) -> Array {
        self.read(Array::clone).with_recorded(self.is_recorded())
    }

    /// The array, unless it is being written.
    pub(crate) fn try_array(&self) -> Option<Array> {
        self.0.value.try_read().ok().map(|a| a.clone())
    }

    /// Its place on the tape, for [`Debug`](std::fmt::Debug).
    pub(crate) fn place(&self) -> String {
        match (&self.0.origin, &self.0.variable) {
            (Some((node, _)), _) => format!(", recorded by {}", node.name()),
            (None, Some(_)) => ", attach_grad".to_owned(),
            (None, None) => String::new(),
        }
    }

    /// Replaces the array in place: for parameters and running statistics. Not recorded.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shape changes, [`Error::Autograd`] when the tensor is the result of a recorded operation; and in
    /// [`autograd::record`] when it or the tensor that `array` was read from is on the tape.
    pub fn set_array(&self, array: Array) -> Result<()> {
        self.write_in_place("set_array", array.is_recorded(), |value| {
            if value.shape() != array.shape() {
                return Err(Error::shape("set_array", "the shape must stay", &[value.shape(), array.shape()]));
            }
            *value = array;
            Ok(())
        })
    }

    /// Lets `f` change the array in place. Not recorded.
    ///
    /// The tensor is locked meanwhile: `f` must not use it otherwise, nor wait for threads that do.
    ///
    /// # Errors
    /// Of `f`; [`Error::Autograd`] when the tensor is the result of a recorded operation, and in [`autograd::record`] when it is on
    /// the tape.
    pub fn update(&self, f: impl FnOnce(&mut Array) -> Result<()>) -> Result<()> {
        self.write_in_place("update", false, f)
    }

    /// Where a gradient of this tensor would go, is something recorded now?
    pub(crate) fn is_recorded(&self) -> bool {
        autograd::is_recording() && self.edge().is_some()
    }

    /// What every write into a tensor goes through; `recorded` says that a value comes from the tape.
    ///
    /// Like every write but those of optimizers it is refused where the tape would miss it: the gradient would be that of the old value.
    pub(crate) fn write_in_place(
        &self,
        op: &'static str,
        recorded: bool,
        f: impl FnOnce(&mut Array) -> Result<()>,
    ) -> Result<()> {
        if autograd::is_recording() && (recorded || self.is_recorded()) {
            return Err(Error::Autograd(format!(
                "{op} changes a value in place, which the tape cannot undo: use an operation that gives a new tensor (such as \
                 slice_assign), the value's detach(), or autograd::pause"
            )));
        }
        if self.0.origin.is_some() {
            return Err(Error::Autograd("the result of a recorded operation cannot be changed in place".into()));
        }
        trace::refuse("it writes a tensor in place");
        parallel::alone(|| self.0.value.write().unwrap_or_else(PoisonError::into_inner).in_place(f))
    }

    /// [`Tensor::update`] of many tensors, all different, at once; `name` is what errors call the i-th one.
    pub(crate) fn update_all(
        tensors: &[Tensor],
        name: impl Fn(usize) -> String,
        f: impl FnOnce(&mut [&mut Array]) -> Result<()>,
    ) -> Result<()> {
        if tensors.iter().any(|t| t.0.origin.is_some()) {
            return Err(Error::Autograd("the result of a recorded operation cannot be changed in place".into()));
        }
        trace::refuse("it writes tensors in place");
        parallel::alone(|| Self::update_locked(tensors, name, f))
    }

    fn update_locked(
        tensors: &[Tensor],
        name: impl Fn(usize) -> String,
        f: impl FnOnce(&mut [&mut Array]) -> Result<()>,
    ) -> Result<()> {
        // Locked in one order by all, so that two threads never wait for each other.
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|&i| tensors[i].id());
        let mut locked: Vec<_> =
            order.iter().map(|&i| tensors[i].0.value.write().unwrap_or_else(PoisonError::into_inner)).collect();
        let mut arrays: Vec<(usize, &mut Array)> = order.into_iter().zip(locked.iter_mut().map(|a| &mut **a)).collect();
        arrays.sort_by_key(|&(i, _)| i);
        let mut arrays: Vec<&mut Array> = arrays.into_iter().map(|(_, a)| a).collect();
        let mut places = Vec::with_capacity(arrays.len());
        for (i, a) in arrays.iter_mut().enumerate() {
            places.push(capture::naming(
                || name(i),
                || {
                    let place = a.place()?;
                    // Notes the write under this name.
                    if place.is_some() { a.make_unique().map(|()| place) } else { Ok(None) }
                },
            )?);
        }
        f(&mut arrays)?;
        arrays.into_iter().zip(places).try_for_each(|(a, place)| a.keep_place(place))
    }

    /// Overwrites the values with `other`'s, from any device, in this tensor's own memory, where a [`crate::cuda::Graph`]
    /// reads its inputs. Not recorded.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::zeros(&[2], &cpu())?;
    /// x.copy_from(&Tensor::ones(&[2], &cpu())?)?;
    /// assert_eq!(x.to_vec()?, [1., 1.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`Array::copy_from`]; [`Error::Autograd`] when the tensor is the result of a recorded operation, and in
    /// [`autograd::record`] when either is on the tape.
    pub fn copy_from(&self, other: &Tensor) -> Result<()> {
        if Arc::ptr_eq(&self.0, &other.0) {
            return Ok(());
        }
        // Read first: two locks at once could wait for each other.
        let other = other.array();
        self.write_in_place("copy_from", other.is_recorded(), |a| a.copy_from(&other))
    }

    /// The shape.
    pub fn shape(&self) -> Vec<usize> {
        self.read(|a| a.shape().to_vec())
    }

    /// The number of dimensions.
    #[doc(alias("ndim", "dim"))]
    pub fn rank(&self) -> usize {
        self.read(Array::rank)
    }

    /// The extent of the first axis, the batch; 1 for a scalar.
    pub fn len(&self) -> usize {
        self.read(|a| a.shape().first().copied().unwrap_or(1))
    }

    /// The number of elements.
    #[doc(alias = "numel")]
    pub fn size(&self) -> usize {
        self.read(Array::len)
    }

    /// True when [`len`](Tensor::len) is 0: a batch of no samples. [`Tensor::size`] is 0 for any extent of 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.read(Array::dtype)
    }

    /// The physical order of the elements.
    pub fn layout(&self) -> Layout {
        self.read(Array::layout)
    }

    /// The device it lives on.
    pub fn context(&self) -> Context {
        self.read(Array::context)
    }

    fn read<T>(&self, f: impl FnOnce(&Array) -> T) -> T {
        f(&self.0.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The elements as f32 in row-major order, rounded if they are another float type; waits for the device.
    ///
    /// # Errors
    /// [`Error::DType`] for an integer that f32 does not hold, as indices beyond 2²⁴ may be: `array().to_vec::<i64>()` gives those.
    #[doc(alias("tolist", "asnumpy"))]
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        trace::refuse(READS);
        let a = self.array();
        match a.dtype() {
            DType::F32 => a.to_vec(),
            DType::I64 => {
                let v = a.to_vec::<i64>()?;
                let mut out = crate::cpu::memory::reserved(v.len())?;
                for x in v {
                    out.push(whole(x)?);
                }
                Ok(out)
            }
            _ => a.to_f32_vec(),
        }
    }

    /// The only element of a one-element tensor; waits for the device.
    pub fn item(&self) -> Result<f64> {
        trace::refuse(READS);
        self.array().item()
    }

    /// The same values off the tape.
    pub fn detach(&self) -> Self {
        let y = Self::new(self.array());
        trace::detached(self, &y);
        y
    }

    /// The same values in memory of their own, off the tape.
    #[doc(alias = "clone")]
    pub fn copy(&self) -> Result<Self> {
        let mut a = self.array();
        a.make_unique()?;
        Ok(Self::new(a))
    }

    /// A variable with these values, off the tape, whose gradient the backward pass writes.
    #[doc(alias = "requires_grad")]
    pub fn attach_grad(&self) -> Self {
        self.attach_grad_with(GradReq::Write)
    }

    /// A variable whose gradient is written, added up, or not computed.
    pub fn attach_grad_with(&self, req: GradReq) -> Self {
        Self::build(self.array(), None, Some(Mutex::new(Variable { req, grad: None, fresh: false })))
    }

    /// dL/dx as the last backward pass left it; zeros before the first.
    ///
    /// # Errors
    /// [`Error::Autograd`] without `attach_grad`.
    pub fn grad(&self) -> Result<Tensor> {
        let grad = self.variable()?.grad.clone();
        match grad {
            Some(g) => Ok(Tensor::new(g)),
            None => self.zeros_like(),
        }
    }

    /// Forgets the gradient: for a new round with [`GradReq::Add`].
    #[doc(alias = "zero_grad_")]
    pub fn zero_grad(&self) -> Result<()> {
        let mut v = self.variable()?;
        (v.grad, v.fresh) = (None, false);
        Ok(())
    }

    /// dL/dx for every variable that this tensor (L, summed over its elements) was computed from; frees the tape.
    ///
    /// # Errors
    /// [`Error::Autograd`] when nothing was recorded or the tape was freed before.
    pub fn backward(&self) -> Result<()> {
        autograd::backward(self.edge(), self.ones_like()?.array(), true, false)
    }

    /// [`Tensor::backward`] that keeps the tape for another pass.
    #[doc(alias = "retain_graph")]
    pub fn backward_retain(&self) -> Result<()> {
        autograd::backward(self.edge(), self.ones_like()?.array(), true, true)
    }

    /// The backward pass from dL/dy = `dy` instead of ones.
    pub fn backward_from(&self, dy: &Tensor, retain: bool) -> Result<()> {
        let dy = dy.array();
        if dy.shape() != self.shape() {
            return Err(Error::shape("backward", "the head gradient must have the tensor's shape", &[&self.shape(), dy.shape()]));
        }
        if dy.dtype() != self.dtype() {
            return Err(Error::DTypes { op: "backward", left: self.dtype(), right: dy.dtype() });
        }
        self.context().same("backward", &dy.context())?;
        autograd::backward(self.edge(), dy, false, retain)
    }

    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    /// Each of `tensors` once, in the order of their first places.
    pub(crate) fn distinct(tensors: &[Tensor]) -> Vec<&Tensor> {
        let mut seen = HashSet::new();
        tensors.iter().filter(|t| seen.insert(t.id())).collect()
    }

    /// Where a gradient of this tensor would go; `None` when nothing wants it.
    pub(crate) fn edge(&self) -> Option<Edge> {
        if let Some((node, i)) = &self.0.origin {
            return Some(Edge::Node(node.clone(), *i));
        }
        let v = self.variable().ok()?;
        (v.req != GradReq::Null).then(|| Edge::Leaf(self.clone()))
    }

    /// Takes the gradient of one backward pass.
    pub(crate) fn receive(&self, grad: Array) -> Result<()> {
        let mut v = self.variable()?;
        match (v.req, &mut v.grad) {
            (GradReq::Null, _) => return Ok(()),
            (GradReq::Add, Some(sum)) => parallel::alone(|| sum.in_place(|sum| sum.add_assign(&grad)))?,
            (_, place) => *place = Some(grad),
        }
        v.fresh = true;
        Ok(())
    }

    /// The gradient for an optimizer's step; `None` when no backward pass has brought one since the last.
    pub(crate) fn fresh_grad(&self) -> Result<Option<Array>> {
        let v = self.variable()?;
        Ok(v.grad.clone().filter(|_| v.fresh))
    }

    /// Marks the gradient as used by an optimizer.
    pub(crate) fn use_grad(&self) -> Result<()> {
        self.variable()?.fresh = false;
        Ok(())
    }

    /// Lets `f` change the gradient in place, if a backward pass has brought one.
    pub(crate) fn update_grad(&self, f: impl FnOnce(&mut Array) -> Result<()>) -> Result<()> {
        parallel::alone(|| self.variable()?.grad.as_mut().map_or(Ok(()), |g| g.in_place(f)))
    }

    fn variable(&self) -> Result<MutexGuard<'_, Variable>> {
        if let Some(v) = &self.0.variable {
            return Ok(v.lock().unwrap_or_else(PoisonError::into_inner));
        }
        Err(Error::Autograd(match &self.0.origin {
            Some((node, _)) => format!(
                "this tensor is a result of {}, whose gradient the backward pass uses and does not keep: only what attach_grad \
                 has given has one",
                node.name()
            ),
            None => "this tensor has no gradient: take the one that attach_grad gives, and compute with that".to_owned(),
        }))
    }
}

/// An integer as f32, if that holds it.
fn whole(v: i64) -> Result<f32> {
    // In i128, since 2⁶³ itself would come back as 2⁶³ − 1.
    let (wide, dtype) = (v as f32, DType::I64);
    if wide as i128 == i128::from(v) {
        return Ok(wide);
    }
    Err(Error::DType { op: "to_vec", dtype, hint: "f32 does not hold a value exactly: use `array().to_vec::<i64>()`" })
}
