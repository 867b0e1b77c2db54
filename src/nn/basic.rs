//! Layers without a window: [`Dense`], [`Activation`], [`Dropout`], [`Flatten`].

use super::{Forward, Info, Parameter, Role, Structure};
use crate::{Error, Result, Tensor, autograd, init::Init, ops::UnaryKind};

/// An elementwise function, by name in Gluon: relu, sigmoid, tanh, softrelu, …
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Function(pub(super) Option<UnaryKind>);

impl Function {
    pub(super) fn apply(self, x: Tensor) -> Result<Tensor> {
        match self.0 {
            Some(kind) => autograd::apply1(crate::ops::Unary(kind), &[&x]),
            None => Ok(x),
        }
    }

    pub(super) fn describe(self) -> String {
        self.0.map_or_else(String::new, |k| format!(", {}", kind_name(k)))
    }
}

fn kind_name(kind: UnaryKind) -> &'static str {
    autograd::Op::name(&crate::ops::Unary(kind))
}

/// Setters for the activation that a layer ends with.
macro_rules! activations {
    ($layer:ident) => {
        impl $layer {
            /// Ends with max(x, 0).
            pub fn relu(self) -> Self {
                self.activation($crate::ops::UnaryKind::Relu)
            }
            /// Ends with 1 / (1 + e⁻ˣ).
            pub fn sigmoid(self) -> Self {
                self.activation($crate::ops::UnaryKind::Sigmoid)
            }
            /// Ends with tanh x.
            pub fn tanh(self) -> Self {
                self.activation($crate::ops::UnaryKind::Tanh)
            }
            /// Ends with any elementwise function.
            pub fn activation(mut self, kind: $crate::ops::UnaryKind) -> Self {
                self.function = Function(Some(kind));
                self
            }
        }
    };
}
pub(super) use activations;

/// y = x wᵀ + b, w of shape (units, in), for x of shape (N, in) or (N, …) flattened.
///
/// ```
/// use hadal::{Tensor, cpu, init, nn::{Block, Dense, Forward}};
/// let layer = Dense::new(10);
/// layer.initialize(init::Uniform::default(), &cpu())?;
/// assert_eq!(layer.forward(&Tensor::ones(&[2, 1, 28, 28], &cpu())?)?.shape(), [2, 10]);
/// assert_eq!(layer.weight().shape(), [10, 784]);
/// # Ok::<(), hadal::Error>(())
/// ```
#[doc(alias = "Linear")]
pub struct Dense {
    info: Info,
    units: usize,
    flatten: bool,
    function: Function,
    weight: Parameter,
    bias: Option<Parameter>,
}

impl Dense {
    /// With that many outputs; the inputs are learned at the first forward pass.
    pub fn new(units: usize) -> Self {
        Dense {
            info: Info::new("dense"),
            units,
            flatten: true,
            function: Function(None),
            weight: Parameter::new(Role::Weight, &[units, 0]),
            bias: Some(Parameter::new(Role::Offset, &[units])),
        }
    }

    /// Declares the number of inputs.
    pub fn in_units(mut self, inputs: usize) -> Self {
        self.weight = Parameter::new(Role::Weight, &[self.units, inputs]);
        self
    }

    /// Without b.
    pub fn no_bias(mut self) -> Self {
        self.bias = None;
        self
    }

    /// Applies to the last axis only, instead of flattening all axes but the first.
    pub fn no_flatten(mut self) -> Self {
        self.flatten = false;
        self
    }

    /// An initializer of its own for w.
    pub fn weight_init(self, init: impl Init + 'static) -> Self {
        self.weight.set_init(init);
        self
    }

    /// A further layer with this one's parameters, and an activation of its own: Gluon's `params=shared.params`.
    ///
    /// There is one w and one b: a step changes both layers, gradients of all uses add up, a net lists and saves them once.
    ///
    /// ```
    /// use hadal::{cpu, init, nn::{Block, Dense, Sequential}};
    /// let shared = Dense::new(8).relu();
    /// let twin = shared.tied().sigmoid();
    /// let net = Sequential::new().add(Dense::new(8)).add(shared).add(twin);
    /// net.initialize(init::Normal(0.01), &cpu())?;
    /// assert_eq!(net.parameters().len(), 4);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn tied(&self) -> Self {
        let (weight, bias) = (self.weight.clone(), self.bias.clone());
        Dense { info: Info::new("dense"), units: self.units, flatten: self.flatten, function: Function(None), weight, bias }
    }

    /// w
    pub fn weight(&self) -> &Parameter {
        &self.weight
    }

    /// b
    pub fn bias(&self) -> Option<&Parameter> {
        self.bias.as_ref()
    }

    fn run(&self, x: &Tensor) -> Result<Tensor> {
        let shape = x.shape();
        let Some((&batch, rest)) = shape.split_first() else {
            return Err(Error::shape("Dense", "a batch is needed", &[&shape]));
        };
        let inputs = if self.flatten { rest.iter().product() } else { *shape.last().unwrap_or(&1) };
        // The row count is said in full, since an empty batch leaves nothing to infer it from.
        let rows = if self.flatten { batch } else { shape.iter().take(shape.len() - 1).product() };
        let w = self.weight.ready(&[self.units, inputs])?;
        let b = self.bias.as_ref().map(|b| b.ready(&[self.units])).transpose()?;
        let x2 = if shape == [rows, inputs] { x.clone() } else { x.reshape(&[rows as isize, inputs as isize])? };
        // The product ends with the activation where it can.
        let fused = self.function.0.filter(|f| matches!(f, UnaryKind::Relu | UnaryKind::Sigmoid | UnaryKind::Tanh));
        let mut y = match fused {
            Some(f) => x2.dense_activation(&w, b.as_ref(), f)?,
            None => x2.dense(&w, b.as_ref())?,
        };
        if !self.flatten && shape.len() != 2 {
            let mut out: Vec<isize> = shape.iter().map(|&e| e as isize).collect();
            if let Some(last) = out.last_mut() {
                *last = self.units as isize;
            }
            y = y.reshape(&out)?;
        }
        if fused.is_some() { Ok(y) } else { self.function.apply(y) }
    }
}

activations!(Dense);

impl Forward for Dense {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.info.at(self.run(x))
    }
}

impl Structure for Dense {
    fn info(&self) -> Option<&Info> {
        Some(&self.info)
    }

    fn own_parameters(&self) -> Vec<(&'static str, &Parameter)> {
        let mut all = vec![("weight", &self.weight)];
        all.extend(self.bias.as_ref().map(|b| ("bias", b)));
        all
    }

    fn describe(&self) -> String {
        let inputs = match self.weight.shape().get(1) {
            Some(&n) if n > 0 => n.to_string(),
            _ => "?".to_owned(),
        };
        let bias = if self.bias.is_some() { "" } else { ", no bias" };
        format!("Dense({inputs} -> {}{}{bias})", self.units, self.function.describe())
    }
}

/// An elementwise function as a layer.
#[doc(alias = "ReLU")]
pub struct Activation {
    info: Info,
    kind: UnaryKind,
}

impl Activation {
    /// Any elementwise function.
    pub fn new(kind: UnaryKind) -> Self {
        Activation { info: Info::new(kind_name(kind)), kind }
    }

    /// max(x, 0)
    pub fn relu() -> Self {
        Self::new(UnaryKind::Relu)
    }

    /// 1 / (1 + e⁻ˣ)
    pub fn sigmoid() -> Self {
        Self::new(UnaryKind::Sigmoid)
    }

    /// tanh x
    pub fn tanh() -> Self {
        Self::new(UnaryKind::Tanh)
    }
}

impl Forward for Activation {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.info.at(Function(Some(self.kind)).apply(x.clone()))
    }
}

impl Structure for Activation {
    fn info(&self) -> Option<&Info> {
        Some(&self.info)
    }

    fn describe(&self) -> String {
        format!("Activation({})", kind_name(self.kind))
    }
}

/// In training, each element is 0 with probability p, else divided by 1 − p; the identity otherwise (Srivastava et al. 2014).
pub struct Dropout {
    info: Info,
    p: f64,
}

impl Dropout {
    /// With drop probability p in 0..=1.
    pub fn new(p: f64) -> Self {
        Dropout { info: Info::new("dropout"), p }
    }
}

impl Forward for Dropout {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !autograd::is_training() {
            return Ok(x.clone());
        }
        self.info.at(x.dropout(self.p))
    }
}

impl Structure for Dropout {
    fn info(&self) -> Option<&Info> {
        Some(&self.info)
    }

    fn describe(&self) -> String {
        format!("Dropout(p = {})", self.p)
    }
}

/// (N, …) becomes (N, product of the rest).
pub struct Flatten(Info);

impl Default for Flatten {
    fn default() -> Self {
        Self::new()
    }
}

impl Flatten {
    /// The layer.
    pub fn new() -> Self {
        Flatten(Info::new("flatten"))
    }
}

impl Forward for Flatten {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.at(x.flatten())
    }
}

impl Structure for Flatten {
    fn info(&self) -> Option<&Info> {
        Some(&self.0)
    }

    fn describe(&self) -> String {
        "Flatten".to_owned()
    }
}
