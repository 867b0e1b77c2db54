//! Blocks one after the other.

use std::{fmt, path::Path};

use super::{Block, Forward, Hybridize, Info, Parameter, Structure, block::place_under};
use crate::{Context, DType, Result, Tensor, autograd::pause, hybrid::Hybrid, init::Init, shape::Display};

/// Feeds each block's output to the next.
///
/// ```
/// use hadal::{Tensor, cpu, init, nn::{Dense, Sequential}};
/// let net = Sequential::new().add(Dense::new(4).relu()).add(Dense::new(2));
/// net.initialize(init::Normal(0.01), &cpu())?;
/// let mut x = Tensor::ones(&[3, 5], &cpu())?;
/// for layer in net.iter() {
///     x = layer.forward(&x)?;
///     println!("{} output shape: {:?}", layer.name(), x.shape());
/// }
/// assert_eq!(x.shape(), [3, 2]);
/// # Ok::<(), hadal::Error>(())
/// ```
pub struct Sequential {
    info: Info,
    blocks: Vec<Box<dyn Block>>,
    hybrid: Hybrid,
}

impl Default for Sequential {
    fn default() -> Self {
        Self::new()
    }
}

impl Sequential {
    /// Without any block: the identity.
    pub fn new() -> Self {
        Sequential { info: Info::new("sequential"), blocks: Vec::new(), hybrid: Hybrid::default() }
    }

    /// Appends a block.
    #[allow(clippy::should_implement_trait)]
    pub fn add(mut self, block: impl Block + 'static) -> Self {
        self.push(block);
        self
    }

    /// Appends a block in place.
    pub fn push(&mut self, block: impl Block + 'static) {
        // So that errors name the place also before `initialize`; what this net becomes a part of says more.
        place_under(&format!("net[{}]", self.blocks.len()), block.as_structure());
        self.blocks.push(Box::new(block));
    }

    /// The blocks in order.
    pub fn iter(&self) -> impl Iterator<Item = &dyn Block> {
        self.blocks.iter().map(|b| &**b)
    }

    /// The block at `i`.
    pub fn get(&self, i: usize) -> Option<&dyn Block> {
        self.blocks.get(i).map(|b| &**b)
    }

    /// How many blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// True without any block.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// See [`Block::hybridize`].
    pub fn hybridize(&self) {
        Block::hybridize(self);
    }

    /// Whether it is [hybridized](Block::hybridize).
    pub fn hybridized(&self) -> Hybridize {
        self.hybrid.mode()
    }

    /// The graphs of the signatures met so far: each op with its inputs, shape, layer, and the rewrite that made it.
    pub fn explain(&self) -> String {
        self.hybrid.explain()
    }

    /// See [`Forward::forward`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Forward::forward(self, x)
    }

    /// See [`Block::initialize`].
    pub fn initialize(&self, init: impl Init + 'static, ctx: &Context) -> Result<()> {
        Block::initialize(self, init, ctx)
    }

    /// See [`Block::reinitialize`].
    pub fn reinitialize(&self, init: impl Init + 'static, ctx: &Context) -> Result<()> {
        Block::reinitialize(self, init, ctx)
    }

    /// See [`Block::parameters`].
    pub fn parameters(&self) -> Vec<Parameter> {
        Block::parameters(self)
    }

    /// See [`Block::collect`].
    pub fn collect(&self) -> Vec<(String, Parameter)> {
        Block::collect(self)
    }

    /// See [`Block::cast`].
    pub fn cast(&self, dtype: DType) -> Result<()> {
        Block::cast(self, dtype)
    }

    /// See [`Block::dtype`].
    pub fn dtype(&self) -> DType {
        Block::dtype(self)
    }

    /// See [`Block::save`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        Block::save(self, path)
    }

    /// See [`Block::load`].
    pub fn load(&self, path: impl AsRef<Path>, ctx: &Context) -> Result<()> {
        Block::load(self, path, ctx)
    }
}

impl Sequential {
    /// A table of the blocks with their output shapes and trainable parameters, for an input of zeros of that shape.
    ///
    /// The net has to be initialized; shapes that were not known before are settled by this pass.
    ///
    /// ```
    /// use hadal::{cpu, init, models};
    /// let net = models::lenet(10);
    /// net.initialize(init::Xavier::new(), &cpu())?;
    /// let table = net.summary(&[1, 1, 28, 28], &cpu())?;
    /// assert!(table.contains("(1, 16, 4, 4)") && table.contains("44426"));
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of the forward pass.
    pub fn summary(&self, input: &[usize], ctx: &Context) -> Result<String> {
        let mut x = Tensor::zeros(input, ctx)?.cast(self.dtype())?;
        let mut rows = vec![("layer".to_owned(), "output shape".to_owned(), "parameters".to_owned())];
        rows.push(("input".to_owned(), Display(input).to_string(), String::new()));
        for block in self.iter() {
            x = pause(|| block.forward(&x))?;
            rows.push((block.name(), Display(&x.shape()).to_string(), block.parameter_count()?.to_string()));
        }
        rows.push(("total".to_owned(), String::new(), self.parameter_count()?.to_string()));
        let width = |f: fn(&(String, String, String)) -> &String| rows.iter().map(|r| f(r).len()).max().unwrap_or(0);
        let (a, b, c) = (width(|r| &r.0), width(|r| &r.1), width(|r| &r.2));
        Ok(rows.iter().map(|(name, shape, count)| format!("{name:<a$}  {shape:<b$}  {count:>c$}\n")).collect())
    }
}

impl Sequential {
    fn eager(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            // Layers know their own path; this one is for blocks that fail outside of any layer.
            x = block.forward(&x).map_err(|e| e.at(&format!("{}[{i}]", self.info.path())))?;
        }
        Ok(x)
    }
}

impl Forward for Sequential {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.hybrid.forward(x, || self.info.path(), |x| self.eager(x))
    }
}

impl Structure for Sequential {
    fn info(&self) -> Option<&Info> {
        Some(&self.info)
    }

    fn children(&self) -> Vec<(String, &dyn Structure)> {
        self.blocks.iter().enumerate().map(|(i, b)| (format!("[{i}]"), b.as_structure())).collect()
    }

    fn describe(&self) -> String {
        "Sequential".to_owned()
    }

    fn set_hybrid(&self, mode: Hybridize) {
        self.hybrid.set(mode);
    }
}

impl fmt::Display for Sequential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.tree().trim_end())
    }
}

impl fmt::Debug for Sequential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
