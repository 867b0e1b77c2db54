//! First values of parameters: [`Uniform`], [`Normal`], [`Xavier`], [`Msra`], [`Orthogonal`], …
//!
//! Values are drawn on the CPU from this thread's stream ([`crate::random`]), so that a net starts the same on every context.
//!
//! These are the heuristics of MXNet's `mxnet.initializer` under its names ([`Msra`] is its `MSRAPrelu`), with
//! [`TruncatedNormal`], [`Identity`] and [`from_fn`] beside them. Its `Load` is [`crate::nn::Block::load`]; `LSTMBias` and
//! `FusedRNN` belong to recurrent layers, of which hadal has none.

mod matrix;
mod mixed;

pub use matrix::{Bilinear, Identity, Orthogonal};
pub use mixed::Mixed;

use std::fmt::Debug;

use crate::{
    Result,
    cpu::{memory, parallel::chunks},
    random::{next_draw, unit},
    shape::checked_numel,
};

/// Gives a parameter its first values.
pub trait Init: Debug + Send + Sync {
    /// Values for `shape` in row-major order; dense weights are (units, in), convolution weights (O, C, kh, kw).
    fn values(&self, shape: &[usize]) -> Result<Vec<f32>>;

    /// [`Init::values`] for a parameter whose path is known, such as `net[0].weight`; [`Mixed`] goes by it.
    fn values_for(&self, path: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let _ = path;
        self.values(shape)
    }
}

impl<T: Init + ?Sized> Init for Box<T> {
    fn values(&self, shape: &[usize]) -> Result<Vec<f32>> {
        (**self).values(shape)
    }
}

/// All equal.
#[derive(Clone, Copy, Debug)]
pub struct Constant(pub f64);

/// All 0.
#[derive(Clone, Copy, Debug)]
pub struct Zero;

/// All 1.
#[derive(Clone, Copy, Debug)]
pub struct One;

/// U(−a, a); a = 0.07 is Gluon's default.
#[derive(Clone, Copy, Debug)]
pub struct Uniform(pub f64);

/// N(0, σ²), given σ.
///
/// ```
/// use hadal::init::{Init, Normal};
/// let w = Normal(0.01).values(&[256, 784])?;
/// let var = w.iter().map(|x| f64::from(x * x)).sum::<f64>() / w.len() as f64;
/// assert!((var.sqrt() - 0.01).abs() < 1e-4);
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Normal(pub f64);

/// N(0, σ²) without what lies beyond ±2σ, given σ; the deviation of what is left is about 0.88 σ.
///
/// Values outside are drawn again, so the density within keeps its form.
///
/// ```
/// use hadal::init::{Init, TruncatedNormal};
/// assert!(TruncatedNormal(0.1).values(&[100, 100])?.iter().all(|w| w.abs() <= 0.2));
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TruncatedNormal(pub f64);

impl Default for Uniform {
    fn default() -> Self {
        Uniform(0.07)
    }
}

/// Which count of connections scales the variance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fan {
    /// n_in
    In,
    /// n_out
    Out,
    /// (n_in + n_out) / 2
    #[default]
    Avg,
}

impl Fan {
    /// n for a weight: extents beyond the first two count for both sides.
    fn of(self, shape: &[usize]) -> f64 {
        // As doubles, which do not overflow.
        let field: f64 = shape.iter().skip(2).map(|&e| e as f64).product();
        let n = |i: usize| shape.get(i).map_or(1.0, |&e| e as f64) * field;
        match self {
            Fan::In => n(1),
            Fan::Out => n(0),
            Fan::Avg => (n(0) + n(1)) / 2.0,
        }
    }
}

/// Variance σ² = 1/n: U(±√(3/n)) or N(0, 1/n), with n = (n_in + n_out)/2 by default (Glorot and Bengio 2010).
///
/// The uniform form is Gluon's default, U(±√(6/(n_in + n_out))). The gaussian form has σ² = 2/(n_in + n_out) as the
/// book's text has it; MXNet's own gaussian option has three times that variance.
#[derive(Clone, Copy, Debug, Default)]
#[doc(alias = "Glorot")]
pub struct Xavier {
    gaussian: bool,
    fan: Fan,
}

impl Xavier {
    /// The uniform form with the average fan.
    pub fn new() -> Self {
        Self::default()
    }

    /// The gaussian form.
    pub fn gaussian(mut self) -> Self {
        self.gaussian = true;
        self
    }

    /// Another fan.
    pub fn fan(mut self, fan: Fan) -> Self {
        self.fan = fan;
        self
    }
}

/// N(0, 2 / ((1 + a²) n)) for nets of (leaky) relus with slope a (He et al. 2015); n = n_in by default.
#[derive(Clone, Copy, Debug, Default)]
#[doc(alias("Kaiming", "He"))]
pub struct Msra {
    slope: f64,
    fan: Option<Fan>,
}

/// Another name of [`Msra`].
pub type He = Msra;

impl Msra {
    /// For relu.
    pub fn new() -> Self {
        Self::default()
    }

    /// For leaky relu with this slope.
    pub fn slope(mut self, slope: f64) -> Self {
        self.slope = slope;
        self
    }

    /// Another fan.
    pub fn fan(mut self, fan: Fan) -> Self {
        self.fan = Some(fan);
        self
    }
}

/// From a function of the shape.
pub fn from_fn(f: impl Fn(&[usize]) -> Result<Vec<f32>> + Send + Sync + 'static) -> impl Init {
    struct Function<F>(F);
    impl<F> Debug for Function<F> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("from_fn")
        }
    }
    impl<F: Fn(&[usize]) -> Result<Vec<f32>> + Send + Sync> Init for Function<F> {
        fn values(&self, shape: &[usize]) -> Result<Vec<f32>> {
            (self.0)(shape)
        }
    }
    Function(f)
}

fn count(shape: &[usize]) -> Result<usize> {
    checked_numel("initializer", shape)
}

fn uniform(shape: &[usize], a: f64) -> Result<Vec<f32>> {
    let (mut v, draw, a) = (memory::filled(count(shape)?, 0.0)?, next_draw(), a as f32);
    chunks(&mut v, |start, v| draw.words(start, v.len(), |i, w| v[i] = (2.0 * unit(w) - 1.0) * a));
    Ok(v)
}

fn normal(shape: &[usize], sigma: f64) -> Result<Vec<f32>> {
    let (mut v, draw) = (memory::filled(count(shape)?, 0.0f32)?, next_draw());
    // Chunks begin at even places, and so with a pair.
    chunks(&mut v, |start, v| {
        for (i, v) in v.chunks_mut(2).enumerate() {
            let pair = draw.normal_pair((start / 2 + i) as u64);
            v.iter_mut().zip(pair).for_each(|(v, x)| *v = x * sigma as f32);
        }
    });
    Ok(v)
}

impl Init for Constant {
    fn values(&self, shape: &[usize]) -> Result<Vec<f32>> {
        memory::filled(count(shape)?, self.0 as f32)
    }
}

impl Init for Zero {
    fn values(&self, shape: &[usize]) -> Result<Vec<f32>> {
        Constant(0.0).values(shape)
    }
}

impl Init for One {
    fn values(&self, shape: &[usize]) -> Result<Vec<f32>> {
        Constant(1.0).values(shape)
    }
}

impl Init for Uniform {
    fn values(&self, shape: &[usize]) -> Result<Vec<f32>> {
        uniform(shape, self.0)
    }
}

impl Init for Normal {
    fn values(&self, shape: &[usize]) -> Result<Vec<f32>> {
        normal(shape, self.0)
    }
}

impl Init for TruncatedNormal {
    fn values(&self, shape: &[usize]) -> Result<Vec<f32>> {
        let n = count(shape)?;
        let (mut v, draw, sigma) = (memory::reserved(n)?, next_draw(), self.0 as f32);
        let normals = (0..).flat_map(|pair| draw.normal_pair(pair));
        v.extend(normals.filter(|x| x.abs() <= 2.0).take(n).map(|x| x * sigma));
        Ok(v)
    }
}

impl Init for Xavier {
    fn values(&self, shape: &[usize]) -> Result<Vec<f32>> {
        let n = self.fan.of(shape).max(1.0);
        if self.gaussian { normal(shape, (1.0 / n).sqrt()) } else { uniform(shape, (3.0 / n).sqrt()) }
    }
}

impl Init for Msra {
    fn values(&self, shape: &[usize]) -> Result<Vec<f32>> {
        let n = self.fan.unwrap_or(Fan::In).of(shape).max(1.0);
        normal(shape, (2.0 / ((1.0 + self.slope * self.slope) * n)).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deviation(v: &[f32]) -> f64 {
        (v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / v.len() as f64).sqrt()
    }

    #[test]
    fn deviations_are_those_of_the_papers() {
        let shape = [64, 32, 3, 3];
        let avg = (64.0 + 32.0) * 9.0 / 2.0;
        let cases: [(&dyn Init, f64); 8] = [
            (&Uniform::default(), 0.07 / 3f64.sqrt()),
            (&Normal(0.5), 0.5),
            // 1 − 2·2·φ(2) / (Φ(2) − Φ(−2)) is what is left of the variance.
            (&TruncatedNormal(0.5), 0.5 * (1.0f64 - 4.0 * 0.053_990_966_5 / 0.954_499_736).sqrt()),
            (&Xavier::new(), (1.0f64 / avg).sqrt()),
            (&Xavier::new().gaussian(), (1.0f64 / avg).sqrt()),
            (&Xavier::new().fan(Fan::In), (1.0 / 288f64).sqrt()),
            (&Msra::new(), (2.0 / 288f64).sqrt()),
            (&Msra::new().fan(Fan::Out).slope(1.0), (1.0 / 576f64).sqrt()),
        ];
        for (init, want) in cases {
            let got = deviation(&init.values(&shape).unwrap());
            assert!((got / want - 1.0).abs() < 0.02, "{init:?}: {got} instead of {want}");
        }
        let bound = (6.0f64 / (96.0 * 9.0)).sqrt() as f32;
        assert!(Xavier::new().values(&shape).unwrap().iter().all(|x| x.abs() <= bound));
    }
}
