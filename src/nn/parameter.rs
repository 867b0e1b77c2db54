//! A layer's parameter: values that may come later, when the first batch tells their shape.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use crate::{
    Array, Context, DType, Error, Layout, Result, Tensor,
    autograd::{self, GradReq},
    cuda::capture,
    hybrid::trace,
    init::{Constant, Init},
    random::{self, Draw},
    shape::Display,
};

/// What a parameter is for; decides its first values and whether it is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A weight: the net's initializer.
    Weight,
    /// An offset (bias, β): 0.
    Offset,
    /// A scale (γ): 1.
    Scale,
    /// A running mean: 0, not trained.
    RunningMean,
    /// A running variance: 1, not trained.
    RunningVar,
}

/// A handle on one parameter; clones are the same parameter.
#[derive(Clone)]
#[doc(alias = "register_parameter")]
pub struct Parameter(Arc<Inner>);

struct Inner {
    role: Role,
    state: RwLock<State>,
}

struct State {
    name: String,
    /// 0 where an extent is not known yet.
    shape: Vec<usize>,
    value: Option<Tensor>,
    dtype: DType,
    /// Stays f32 where a net is cast to a half type.
    wide: bool,
    /// First values wanted, shape not known yet. They come from a stream that is chosen now, so that they do not depend on the
    /// order in which layers learn their shapes.
    pending: Option<Pending>,
    /// The layer's own initializer, which comes before the net's.
    own_init: Option<Arc<dyn Init>>,
    grad_req: GradReq,
    lr_mult: f64,
    wd_mult: f64,
}

/// First values to come.
#[derive(Clone)]
struct Pending {
    init: Arc<dyn Init>,
    context: Context,
    draw: Draw,
}

impl Pending {
    /// The values of a parameter of that name; drawn in f32 and rounded, so that nets of all dtypes start alike.
    fn values(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Array> {
        let values = random::apart(self.draw, || self.init.values_for(name, shape))?;
        if values.len() != shape.iter().product::<usize>() {
            let reason = format!("the initializer gave {} values for {}", values.len(), Display(shape));
            return Err(Error::Parameter { name: name.to_owned(), reason });
        }
        Array::from_vec(values, shape, &Context::Cpu)?.cast(dtype)?.to_context(&self.context)
    }
}

impl Parameter {
    /// A parameter without values; extents of 0 are to be learned at the first forward pass.
    pub fn new(role: Role, shape: &[usize]) -> Self {
        let trained = !matches!(role, Role::RunningMean | Role::RunningVar);
        let state = State {
            name: format!("{role:?}").to_lowercase(),
            shape: shape.to_vec(),
            dtype: DType::F32,
            wide: false,
            value: None,
            pending: None,
            own_init: None,
            grad_req: if trained { GradReq::Write } else { GradReq::Null },
            lr_mult: 1.0,
            wd_mult: 1.0,
        };
        Parameter(Arc::new(Inner { role, state: RwLock::new(state) }))
    }

    /// One that stays f32 where its net is cast to a half type, as batch-norm's do: they are few, and sums of many values.
    pub fn wide(self) -> Self {
        self.write().wide = true;
        self
    }

    /// The path in its net, such as `net[0].weight`.
    pub fn name(&self) -> String {
        self.read().name.clone()
    }

    /// What it is for.
    pub fn role(&self) -> Role {
        self.0.role
    }

    /// The shape; 0 where an extent is not known yet.
    pub fn shape(&self) -> Vec<usize> {
        self.read().shape.clone()
    }

    /// The dtype of the values, those to come included; f32 unless [`Parameter::cast`] has changed it.
    pub fn dtype(&self) -> DType {
        self.read().dtype
    }

    /// Converts the values, now or when they come to be; first values are drawn in f32 and rounded. A [`wide`](Parameter::wide)
    /// parameter becomes f32 for the half types. The gradient is forgotten.
    ///
    /// # Errors
    /// [`Error::DType`] for integers.
    pub fn cast(&self, dtype: DType) -> Result<()> {
        if !dtype.is_float() {
            return Err(Error::DType { op: "cast", dtype, hint: "parameters need a float type" });
        }
        let mut s = self.write();
        let dtype = if s.wide && dtype != DType::F64 { DType::F32 } else { dtype };
        s.dtype = dtype;
        let old = s.value.clone();
        drop(s);
        // Converted without the lock, which tasks may want that this thread takes up while it waits for others.
        let Some(old) = old.filter(|t| t.dtype() != dtype) else { return Ok(()) };
        let array = old.array().cast(dtype)?;
        let mut s = self.write();
        if s.dtype == dtype && s.value.as_ref().is_some_and(|t| t.id() == old.id()) {
            s.value = Some(Tensor::new(array).attach_grad_with(s.grad_req));
        }
        Ok(())
    }

    /// The values.
    ///
    /// # Errors
    /// [`Error::Parameter`] before they exist.
    pub fn data(&self) -> Result<Tensor> {
        let s = self.read();
        s.value.clone().ok_or_else(|| s.missing())
    }

    /// dL/dw of the last backward pass.
    pub fn grad(&self) -> Result<Tensor> {
        self.data()?.grad()
    }

    /// Replaces the values, keeping shape, dtype and device.
    pub fn set_data(&self, array: Array) -> Result<()> {
        let value = self.data()?;
        value.set_array(array.cast(value.dtype())?.to_context(&value.context())?)
    }

    /// Has the values in another memory layout from now on; they stay where a graph is being captured, which would do it in each replay.
    pub(super) fn lay_out(&self, layout: Layout) -> Result<()> {
        let value = self.data()?;
        if value.layout() == layout || capture::active() {
            return Ok(());
        }
        // The same values: nothing that the tape or a trace would have to know.
        trace::suspend(|| autograd::pause(|| value.set_array(value.array().to_layout(layout)?)))
    }

    /// Gives it values on `ctx`, whatever it had, in its dtype; the shape must fit what is known of it.
    pub(super) fn replace(&self, array: Array, ctx: &Context) -> Result<()> {
        self.check(array.shape())?;
        let mut dtype = self.dtype();
        loop {
            let array = array.cast(dtype)?.to_context(ctx)?;
            let mut s = self.write();
            s.fits(array.shape(), FILE)?;
            if s.dtype == dtype {
                s.shape = array.shape().to_vec();
                s.value = Some(Tensor::new(array).attach_grad_with(s.grad_req));
                s.pending = None;
                return Ok(());
            }
            // Another thread has cast the net meanwhile.
            dtype = s.dtype;
        }
    }

    /// An error if an array of `shape` cannot be its value.
    pub(crate) fn check(&self, shape: &[usize]) -> Result<()> {
        self.read().fits(shape, FILE)
    }

    /// True if an optimizer changes it: neither frozen nor a running statistic.
    pub fn is_trainable(&self) -> bool {
        self.read().grad_req != GradReq::Null
    }

    /// What a backward pass does with its gradient; `Null` freezes it. Trainers ask at each step, so a parameter may be frozen and set
    /// free at any time. A change forgets the gradient at hand.
    pub fn set_grad_req(&self, req: GradReq) {
        loop {
            let state = self.read();
            if state.grad_req == req {
                return;
            }
            let value = state.value.clone();
            drop(state);
            // The tensor is read without this lock, since an optimizer has the two in the other order.
            let renewed = value.as_ref().map(|t| t.attach_grad_with(req));
            let mut s = self.write();
            if s.value.as_ref().map(Tensor::id) == value.as_ref().map(Tensor::id) {
                (s.grad_req, s.value) = (req, renewed);
                return;
            }
        }
    }

    /// An initializer of its own, instead of the net's.
    pub fn set_init(&self, init: impl Init + 'static) {
        self.write().own_init = Some(Arc::new(init));
    }

    /// Factors on the optimizer's learning rate and weight decay.
    pub fn multipliers(&self) -> (f64, f64) {
        let s = self.read();
        (s.lr_mult, s.wd_mult)
    }

    /// Sets the factor on the learning rate.
    pub fn set_lr_mult(&self, factor: f64) {
        self.write().lr_mult = factor;
    }

    /// Sets the factor on the weight decay.
    pub fn set_wd_mult(&self, factor: f64) {
        self.write().wd_mult = factor;
    }

    /// The values; at the first forward pass this is where they come to be, with the shape that the batch asks for.
    ///
    /// # Errors
    /// [`Error::Parameter`] when the net was not initialized or a known extent differs.
    pub fn ready(&self, shape: &[usize]) -> Result<Tensor> {
        let t = self.ready_value(shape)?;
        trace::parameter(&t, self);
        Ok(t)
    }

    fn ready_value(&self, shape: &[usize]) -> Result<Tensor> {
        loop {
            let s = self.read();
            if let Some(t) = &s.value {
                return Ok(t.clone());
            }
            let pending = s.pending.clone().ok_or_else(|| s.missing())?;
            s.fits(shape, "the input needs")?;
            let (name, dtype) = (s.name.clone(), s.dtype);
            drop(s);
            // Without the lock: the initializer may be the user's, and tasks may want the parameter that this thread takes up
            // while it waits for others. Two threads that get here compute the same values from the same draw.
            let array = trace::suspend(|| pending.values(&name, shape, dtype))?;
            let mut s = self.write();
            if s.value.is_none() && s.dtype == dtype && s.pending.as_ref().is_some_and(|p| p.draw == pending.draw) {
                let t = Tensor::new(array).attach_grad_with(s.grad_req);
                (s.shape, s.value, s.pending) = (shape.to_vec(), Some(t.clone()), None);
                return Ok(t);
            }
        }
    }

    /// First values on `ctx`, now or, where the shape is not known, at the first forward pass.
    pub(super) fn initialize(&self, net: &Arc<dyn Init>, ctx: &Context, force: bool) -> Result<()> {
        let mut s = self.write();
        if s.value.is_some() && !force {
            return Ok(());
        }
        let init: Arc<dyn Init> = match (&s.own_init, self.0.role) {
            (Some(own), _) => own.clone(),
            (None, Role::Weight) => net.clone(),
            (None, Role::Offset | Role::RunningMean) => Arc::new(Constant(0.0)),
            (None, Role::Scale | Role::RunningVar) => Arc::new(Constant(1.0)),
        };
        s.value = None;
        s.pending = Some(Pending { init, context: *ctx, draw: random::next_draw() });
        let shape = s.shape.clone();
        drop(s);
        if shape.contains(&0) { Ok(()) } else { self.ready(&shape).map(|_| ()) }
    }

    pub(super) fn set_name(&self, name: String) {
        self.write().name = name;
    }

    /// The same for clones of one parameter, different for others.
    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose shape it is that [`State::fits`] speaks of.
const FILE: &str = "the file has";

/// A shape as far as it is known: `(10, ?)`.
struct So<'a>(&'a [usize]);

impl fmt::Display for So<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.contains(&0) {
            return Display(self.0).fmt(f);
        }
        let extents: Vec<String> = self.0.iter().map(|&e| if e == 0 { "?".to_owned() } else { e.to_string() }).collect();
        write!(f, "({}{})", extents.join(", "), if extents.len() == 1 { "," } else { "" })
    }
}

impl fmt::Debug for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.read();
        write!(f, "<Parameter {} {} {}>", s.name, So(&s.shape), s.dtype)
    }
}

impl State {
    /// An error unless `shape`, of what is `given`, can be this parameter's.
    fn fits(&self, shape: &[usize], given: &str) -> Result<()> {
        if self.shape.len() == shape.len() && self.shape.iter().zip(shape).all(|(&own, &s)| own == 0 || own == s) {
            return Ok(());
        }
        let reason = format!("its shape is {}, {given} {}", So(&self.shape), Display(shape));
        Err(Error::Parameter { name: self.name.clone(), reason })
    }

    fn missing(&self) -> Error {
        let reason = match &self.pending {
            Some(_) => format!("its shape {} is not known before the first forward pass", So(&self.shape)),
            None => "it has no values: call initialize (or load) first".to_owned(),
        };
        Error::Parameter { name: self.name.clone(), reason }
    }
}
