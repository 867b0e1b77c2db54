//! What every layer and every block of layers is: something with a forward pass, and parts with names.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use super::{Parameter, Role, store};
use crate::{Context, DType, Error, Result, Tensor, hybrid::trace, init::Init};

/// The forward pass.
#[doc(alias = "Module")]
pub trait Forward {
    /// Computes the output for a batch.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;
}

/// The parts of a block. Layers write it by hand, [`block!`](crate::block) writes it for structs of layers.
pub trait Structure {
    /// The layer's identity; `None` for plain structs.
    fn info(&self) -> Option<&Info> {
        None
    }

    /// The layer's own parameters.
    fn own_parameters(&self) -> Vec<(&'static str, &Parameter)> {
        Vec::new()
    }

    /// The parts in order of declaration; a name like `[0]` is an index.
    fn children(&self) -> Vec<(String, &dyn Structure)> {
        Vec::new()
    }

    /// Lets this block replay a fused graph, or its parts where it cannot; see [`Block::hybridize`].
    fn set_hybrid(&self, mode: Hybridize) {
        self.children().into_iter().for_each(|(_, child)| child.set_hybrid(mode));
    }

    /// One line for printing, such as `Dense(784 -> 10)`; empty for what is no layer at all.
    fn describe(&self) -> String {
        String::new()
    }
}

/// Whether a block replays a fused graph of its ops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hybridize {
    /// Each op runs when it is called.
    #[default]
    Off,
    /// A block that depends on values stays eager, with one warning.
    On,
    /// A block that depends on values is an error.
    Strict,
}

/// A block of a net: [`Forward`] with [`Structure`]. Implemented for everything that has both.
pub trait Block: Forward + Structure + Send + Sync {
    /// The layer's name by Gluon's counters (`conv0`, `dense1`), or the struct's name.
    fn name(&self) -> String {
        self.info().map_or_else(|| self.describe().to_lowercase(), |i| i.name.clone())
    }

    /// All parameters (weights, biases, running statistics) with their paths, such as `4.0.conv1.weight`; a shared one once.
    #[doc(alias("named_parameters", "collect_params"))]
    fn collect(&self) -> Vec<(String, Parameter)> {
        let mut out = Vec::new();
        walk(self.as_structure(), "", &mut |path, s| {
            let dotted = path.replace('[', ".").replace(']', "");
            let prefix = dotted.trim_start_matches('.');
            for (name, p) in s.own_parameters() {
                let dot = if prefix.is_empty() || name.is_empty() { "" } else { "." };
                out.push((format!("{prefix}{dot}{name}"), p.clone()));
            }
        });
        let mut seen = HashSet::new();
        out.retain(|(_, p)| seen.insert(p.id()));
        out
    }

    /// The parameters for a [`crate::Trainer`]: all but running statistics, frozen ones too, since they may be set free later.
    fn parameters(&self) -> Vec<Parameter> {
        let running = |p: &Parameter| matches!(p.role(), Role::RunningMean | Role::RunningVar);
        self.collect().into_iter().map(|(_, p)| p).filter(|p| p.is_trainable() || !running(p)).collect()
    }

    /// The number of trainable elements.
    ///
    /// # Errors
    /// [`Error::Parameter`] names a parameter whose shape is not known before the first forward pass.
    fn parameter_count(&self) -> Result<usize> {
        let mut count = 0;
        for p in self.parameters().iter().filter(|p| p.is_trainable()) {
            let shape = p.shape();
            if shape.contains(&0) && p.data().is_err() {
                let reason = "its shape is not known before the first forward pass, and so is the count of parameters".into();
                return Err(Error::Parameter { name: p.name(), reason });
            }
            count += shape.iter().product::<usize>();
        }
        Ok(count)
    }

    /// Gives every parameter its first values on `ctx`: weights by `init`, biases and running means 0, scales and running
    /// variances 1. A weight whose shape is not known yet gets them at the first forward pass. Parameters that have
    /// values keep them.
    fn initialize(&self, init: impl Init + 'static, ctx: &Context) -> Result<()>
    where
        Self: Sized,
    {
        initialize(self, Arc::new(init), ctx, false)
    }

    /// [`Block::initialize`] that draws new values also where there are some: the book's `force_reinit=True`.
    fn reinitialize(&self, init: impl Init + 'static, ctx: &Context) -> Result<()>
    where
        Self: Sized,
    {
        initialize(self, Arc::new(init), ctx, true)
    }

    /// Compiles the net: Gluon's `hybridize`. It takes effect on each outermost [`Sequential`](super::Sequential).
    ///
    /// For each signature (shapes, dtypes, training or not, what needs gradients) the net is run once to record its ops. All passes then replay
    /// them, fused into fewer kernels, with the same random draws and running statistics as before. Fusing changes no value unless the fused op
    /// says so. A net that depends on values (it reads a tensor, draws random numbers without an op, writes in place) stays eager, with one
    /// warning, or fails under [`Hybridize::Strict`]. `HADAL_EXPLAIN=1` prints each graph, `HADAL_FUSE_OFF=bn_relu` (or `all`) switches
    /// rewrites off.
    ///
    /// ```
    /// use hadal::{Tensor, cpu, init, nn::{Activation, BatchNorm, Dense, Sequential}};
    /// let net = Sequential::new().add(Dense::new(4)).add(BatchNorm::new()).add(Activation::relu());
    /// net.initialize(init::Xavier::new(), &cpu())?;
    /// let x = Tensor::uniform(-1.0, 1.0, &[8, 3], &cpu())?;
    /// let eager = net.forward(&x)?;
    /// net.hybridize();
    /// assert_eq!(net.forward(&x)?.to_vec()?, eager.to_vec()?);
    /// assert!(net.explain().contains("batch_norm_inference_relu"));
    /// # Ok::<(), hadal::Error>(())
    /// ```
    fn hybridize(&self) {
        self.hybridize_as(Hybridize::On);
    }

    /// [`Block::hybridize`], strictly or not, or the way back. Graphs so far are forgotten.
    fn hybridize_as(&self, mode: Hybridize) {
        self.as_structure().set_hybrid(mode);
    }

    /// Computes in another dtype from now on: converts every parameter, with or without values yet, as Gluon's `cast` does.
    ///
    /// Batch-norm's parameters and running statistics stay f32 beside bf16 and f16. Inputs are the caller's to cast (a loader has
    /// [`dtype`](crate::data::DataLoader::dtype)), and every layer passes its input's dtype on; another one is an error that names the
    /// layer and both dtypes. First values are drawn in f32 and rounded, so that nets of all dtypes start alike. Losses are f32,
    /// products and sums accumulate in f32, and optimizers keep a copy of each 16-bit parameter in f32, which is what they update
    /// (Micikevicius et al. 2018). f16 has a small range: [`Trainer::loss_scale`](crate::Trainer::loss_scale) keeps gradients inside of
    /// it. A trainer of this net goes on with the new parameters.
    ///
    /// ```
    /// use hadal::{DType, Tensor, Trainer, autograd, cpu, init, loss::SoftmaxCrossEntropy, models, nn::Block, optim::Sgd};
    /// let net = models::lenet_relu(10);
    /// net.initialize(init::Xavier::new(), &cpu())?;
    /// net.cast(DType::BF16)?;
    /// let x = Tensor::uniform(0.0, 1.0, &[4, 1, 28, 28], &cpu())?.cast(DType::BF16)?;
    /// let y = Tensor::from_vec(vec![0i64, 1, 2, 3], &[4], &cpu())?;
    /// let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.1));
    /// let l = autograd::record(|| SoftmaxCrossEntropy::new().forward(&net.forward(&x)?, &y))?;
    /// l.backward()?;
    /// trainer.step(4)?;
    /// assert_eq!(net.dtype(), DType::BF16);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::DType`] for integers; then nothing has been changed.
    #[doc(alias("to", "half"))]
    fn cast(&self, dtype: DType) -> Result<()> {
        self.collect().iter().try_for_each(|(_, p)| p.cast(dtype))
    }

    /// The dtype that the net computes in: that of its weights, f32 where it has none.
    fn dtype(&self) -> DType {
        let all = self.collect();
        all.iter().find(|(_, p)| p.role() == Role::Weight).map_or(DType::F32, |(_, p)| p.dtype())
    }

    /// Writes all parameters, each in its own dtype, to a safetensors file, beside first, then renamed.
    ///
    /// # Errors
    /// [`Error::Parameter`] when one has no values yet, [`Error::Io`] when the file cannot be written.
    #[doc(alias = "state_dict")]
    fn save(&self, path: impl AsRef<Path>) -> Result<()>
    where
        Self: Sized,
    {
        self.save_with(path, &[])
    }

    /// [`Block::save`] with words beside the parameters, such as the number of epochs; [`super::metadata`] reads them.
    fn save_with(&self, path: impl AsRef<Path>, metadata: &[(&str, &str)]) -> Result<()>
    where
        Self: Sized,
    {
        store::save(&self.collect(), metadata, path.as_ref())
    }

    /// Reads all parameters from a safetensors file onto `ctx`; what has another float type there is converted to the parameter's.
    ///
    /// # Errors
    /// [`Error::Data`] names the file and the first parameter that is missing, superfluous or of another shape; then
    /// nothing has been changed.
    #[doc(alias = "load_state_dict")]
    fn load(&self, path: impl AsRef<Path>, ctx: &Context) -> Result<()>
    where
        Self: Sized,
    {
        place(self.as_structure());
        store::load(&self.collect(), path.as_ref(), ctx)
    }

    /// The tree of layers, one line each.
    fn tree(&self) -> String {
        let mut out = String::new();
        print(self.as_structure(), "", 0, &mut out);
        out
    }

    #[doc(hidden)]
    fn as_structure(&self) -> &dyn Structure;
}

impl<T: Forward + Structure + Send + Sync> Block for T {
    fn as_structure(&self) -> &dyn Structure {
        self
    }
}

fn initialize(block: &impl Block, init: Arc<dyn Init>, ctx: &Context, force: bool) -> Result<()> {
    place(block.as_structure());
    block.collect().iter().try_for_each(|(_, p)| p.initialize(&init, ctx, force))
}

/// Tells every layer its path from the root and every parameter its name, for errors. What is used twice has the path of its
/// first place, under which [`Block::collect`] lists it.
fn place(root: &dyn Structure) {
    place_under("net", root);
}

/// [`place`] for what is a part of the net, which `root` is the path of.
pub(super) fn place_under(root_path: &str, root: &dyn Structure) {
    let (mut layers, mut parameters) = (HashSet::new(), HashSet::new());
    walk(root, "", &mut |path, s| {
        let dot = if path.starts_with('[') || path.is_empty() { "" } else { "." };
        let path = format!("{root_path}{dot}{path}");
        if let Some(info) = s.info().filter(|i| layers.insert(std::ptr::from_ref::<Info>(i) as usize)) {
            *info.path.write().unwrap_or_else(PoisonError::into_inner) = path.clone();
        }
        for (name, p) in s.own_parameters().into_iter().filter(|(_, p)| parameters.insert(p.id())) {
            let dot = if name.is_empty() { "" } else { "." };
            p.set_name(format!("{path}{dot}{name}"));
        }
    });
}

/// Visits `s` and all its parts, outermost first; paths look like `[4][0].conv1`.
fn walk<'a>(s: &'a dyn Structure, path: &str, f: &mut dyn FnMut(&str, &'a dyn Structure)) {
    f(path, s);
    for (name, child) in s.children() {
        let dot = if path.is_empty() || name.starts_with('[') { "" } else { "." };
        walk(child, &format!("{path}{dot}{name}"), f);
    }
}

fn print(s: &dyn Structure, label: &str, depth: usize, out: &mut String) {
    let line = s.describe();
    let children = s.children();
    if line.is_empty() && children.is_empty() {
        return;
    }
    let indent = "  ".repeat(depth);
    *out += &format!("{indent}{label}{line}{}\n", if children.is_empty() { "" } else { "(" });
    for (name, child) in &children {
        print(*child, &format!("({}): ", name.trim_matches(['[', ']'])), depth + 1, out);
    }
    if !children.is_empty() {
        *out += &format!("{indent})\n");
    }
}

/// A layer's identity: its name by Gluon's counters, and its path once the net is initialized.
#[derive(Debug)]
pub struct Info {
    name: String,
    kind: &'static str,
    path: RwLock<String>,
}

thread_local! {
    static COUNTERS: RefCell<HashMap<&'static str, usize>> = RefCell::default();
}

impl Info {
    /// The next name of that kind on this thread: `conv0`, `conv1`, …
    pub fn new(kind: &'static str) -> Self {
        let n = COUNTERS.with_borrow_mut(|c| {
            let n = c.entry(kind).or_default();
            *n += 1;
            *n - 1
        });
        Info { name: format!("{kind}{n}"), kind, path: RwLock::default() }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path from the root of the net, such as `net[4].conv1`; before initialization the name.
    pub fn path(&self) -> String {
        let path = self.path.read().unwrap_or_else(PoisonError::into_inner);
        if path.is_empty() { self.name.clone() } else { path.clone() }
    }

    /// Puts the layer's path in front of an error: `net[4].conv1: …`; of a layer that is in no net yet, what kind of layer it is.
    pub fn at<T>(&self, result: Result<T>) -> Result<T> {
        trace::layer(|| self.path());
        result.map_err(|e: Error| {
            let path = self.path.read().unwrap_or_else(PoisonError::into_inner).clone();
            e.at(&if path.is_empty() { format!("a {} layer", self.kind) } else { path })
        })
    }
}

/// Declares a struct of layers and its [`Structure`](crate::nn::Structure): every field is part of the block, none can be forgotten.
///
/// Fields may be layers, blocks, [`Parameter`](crate::nn::Parameter)s, `Option`s, `Vec`s, `Box`es and `Arc`s of them, and plain numbers,
/// flags and strings. A parameter of the block's own is initialized, trained, saved and cast with the net's; its values are those of
/// [`Parameter::ready`](crate::nn::Parameter::ready), which is told the shape that the batch asks for.
///
/// ```
/// use hadal::{Result, Tensor, cpu, init, nn::{Block, Dense, Forward, Parameter, Role}};
///
/// hadal::block! {
///     /// y = s · (x wᵀ + b), s one factor for each column.
///     struct Scaled { dense: Dense, scale: Parameter }
/// }
///
/// impl Forward for Scaled {
///     fn forward(&self, x: &Tensor) -> Result<Tensor> {
///         let y = self.dense.forward(x)?;
///         y.mul(&self.scale.ready(&[y.shape()[1]])?)
///     }
/// }
///
/// // An extent of 0 is learned from the first batch; a scale begins with 1, a weight as the initializer says.
/// let net = Scaled { dense: Dense::new(4), scale: Parameter::new(Role::Scale, &[0]) };
/// net.initialize(init::Xavier::new(), &cpu())?;
/// assert_eq!(net.forward(&Tensor::ones(&[2, 3], &cpu())?)?.shape(), [2, 4]);
/// let names: Vec<String> = net.collect().into_iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["dense.weight", "dense.bias", "scale"]);
/// # Ok::<(), hadal::Error>(())
/// ```
#[macro_export]
#[doc(alias("Module", "HybridBlock"))]
macro_rules! block {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$fmeta:meta])* $fvis:vis $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        $vis struct $name { $($(#[$fmeta])* $fvis $field: $ty),* }

        impl $crate::nn::Structure for $name {
            fn children(&self) -> Vec<(String, &dyn $crate::nn::Structure)> {
                vec![$((stringify!($field).to_owned(), &self.$field as &dyn $crate::nn::Structure)),*]
            }
            fn describe(&self) -> String {
                stringify!($name).to_owned()
            }
        }
    };
}

/// A block's own parameter, under the field's name.
impl Structure for Parameter {
    fn own_parameters(&self) -> Vec<(&'static str, &Parameter)> {
        vec![("", self)]
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
}

/// `Debug` of layers is what they print in a net: their values are many.
macro_rules! short {
    ($($layer:ty),*) => {$(
        impl std::fmt::Debug for $layer {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&$crate::nn::Structure::describe(self))
            }
        }
    )*};
}
pub(super) use short;
short!(super::Dense, super::Activation, super::Dropout, super::Flatten, super::Conv2D, super::BatchNorm);

macro_rules! plain {
    ($($t:ty),*) => {$( impl Structure for $t {} )*};
}
plain!(usize, isize, i32, i64, u32, u64, f32, f64, bool, String, &'static str);

impl<T: Structure> Structure for Option<T> {
    fn info(&self) -> Option<&Info> {
        self.as_ref().and_then(Structure::info)
    }
    fn own_parameters(&self) -> Vec<(&'static str, &Parameter)> {
        self.as_ref().map_or_else(Vec::new, Structure::own_parameters)
    }
    fn children(&self) -> Vec<(String, &dyn Structure)> {
        self.as_ref().map_or_else(Vec::new, Structure::children)
    }
    fn describe(&self) -> String {
        self.as_ref().map_or_else(String::new, Structure::describe)
    }
    fn set_hybrid(&self, mode: Hybridize) {
        self.iter().for_each(|s| s.set_hybrid(mode));
    }
}

impl<T: Structure> Structure for Vec<T> {
    fn children(&self) -> Vec<(String, &dyn Structure)> {
        self.iter().enumerate().map(|(i, c)| (format!("[{i}]"), c as &dyn Structure)).collect()
    }
}

macro_rules! pointer {
    ($($p:ident),*) => {$(
        impl<T: Structure + ?Sized> Structure for $p<T> {
            fn info(&self) -> Option<&Info> {
                (**self).info()
            }
            fn own_parameters(&self) -> Vec<(&'static str, &Parameter)> {
                (**self).own_parameters()
            }
            fn children(&self) -> Vec<(String, &dyn Structure)> {
                (**self).children()
            }
            fn describe(&self) -> String {
                (**self).describe()
            }
            fn set_hybrid(&self, mode: Hybridize) {
                (**self).set_hybrid(mode);
            }
        }
        impl<T: Forward + ?Sized> Forward for $p<T> {
            fn forward(&self, x: &Tensor) -> Result<Tensor> {
                (**self).forward(x)
            }
        }
    )*};
}
pointer!(Box, Arc);
