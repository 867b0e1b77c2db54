//! Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019).

use rayon::prelude::*;

use super::{Convention, Optimizer, Prepare, State, Step, check, sgd::start, state};
use crate::{
    Array, Error, Result,
    cuda::capture,
    dtype::{Real, real_type},
};

/// Adam: m ← β₁m + (1 − β₁)g; v ← β₂v + (1 − β₂)g²; then at the t-th update of the parameter
///
/// - in MXNet's convention w ← w − lr·√(1 − β₂ᵗ)/(1 − β₁ᵗ) · m/(√v + ε),
/// - in PyTorch's w ← w − lr/(1 − β₁ᵗ) · m/(√(v/(1 − β₂ᵗ)) + ε).
///
/// g = clip(rescale·grad) + wd·w; as AdamW ([`Adam::decoupled`]) without the last term but first w ← (1 − lr·wd)·w.
///
/// ```
/// use hadal::{Array, cpu, optim::{Adam, Optimizer, Step}};
/// let mut w = Array::from_vec(vec![1f64], &[1], &cpu())?;
/// let g = Array::from_vec(vec![-3f64], &[1], &cpu())?;
/// Adam::new(0.1).eps(0.0).update(0, &mut w, &g, &Step::default())?;
/// assert!((w.item()? - 1.1).abs() < 1e-12); // the first step is lr·sign(g)
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Adam {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    clip_gradient: Option<f64>,
    decoupled: bool,
    convention: Convention,
    state: State,
}

/// The numbers of one update: w ← decay·w − rate·m/(√v·v_scale + ε).
#[derive(Clone, Copy, Debug)]
struct Rule {
    prepare: Prepare,
    beta1: f64,
    beta2: f64,
    decay: f64,
    rate: f64,
    v_scale: f64,
    eps: f64,
}

impl Adam {
    /// With this learning rate; β₁ 0.9, β₂ 0.999, ε 1e-8, no weight decay, MXNet's convention.
    pub fn new(lr: f64) -> Self {
        Adam {
            lr,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            clip_gradient: None,
            decoupled: false,
            convention: Convention::MxNet,
            state: State::new(&["m", "v"]),
        }
    }

    /// AdamW in PyTorch's convention, with its weight decay of 0.01.
    pub fn adamw(lr: f64) -> Self {
        Adam::new(lr).decoupled(true).weight_decay(0.01).convention(Convention::PyTorch)
    }

    /// β₁ and β₂, the rates at which the two moments forget.
    pub fn betas(mut self, beta1: f64, beta2: f64) -> Self {
        (self.beta1, self.beta2) = (beta1, beta2);
        self
    }

    /// ε.
    pub fn eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }

    /// The weight decay wd.
    pub fn weight_decay(mut self, wd: f64) -> Self {
        self.weight_decay = wd;
        self
    }

    /// Limits each element of the rescaled gradient to ±`limit`, before weight decay.
    pub fn clip_gradient(mut self, limit: f64) -> Self {
        self.clip_gradient = Some(limit);
        self
    }

    /// True for AdamW: weights decay by themselves, not through the gradient.
    pub fn decoupled(mut self, on: bool) -> Self {
        self.decoupled = on;
        self
    }

    /// Where ε stands.
    pub fn convention(mut self, convention: Convention) -> Self {
        self.convention = convention;
        self
    }

    fn rule(&self, step: &Step, t: i64) -> Rule {
        let (lr, wd) = (self.lr * step.lr_mult, self.weight_decay * step.wd_mult);
        let correction = |beta: f64| 1.0 - beta.powf(t as f64);
        let (c1, c2) = (correction(self.beta1), correction(self.beta2));
        let (rate, v_scale) = match self.convention {
            Convention::MxNet => (lr * c2.sqrt() / c1, 1.0),
            Convention::PyTorch => (lr / c1, 1.0 / c2.sqrt()),
        };
        let (wd, decay) = if self.decoupled { (0.0, 1.0 - lr * wd) } else { (wd, 1.0) };
        let prepare = Prepare { rescale: step.rescale, clip: self.clip_gradient.unwrap_or(-1.0), wd };
        Rule { prepare, beta1: self.beta1, beta2: self.beta2, decay, rate, v_scale, eps: self.eps }
    }
}

impl Optimizer for Adam {
    fn update(&mut self, index: usize, w: &mut Array, grad: &Array, step: &Step) -> Result<()> {
        check("adam", w, grad)?;
        // The kernel gets it by value, and each replay would repeat it.
        capture::refuse("Adam cannot be used: its factor changes with every step")?;
        let rule = self.rule(step, self.state.updates(index).saturating_add(1));
        let slots = self.state.slots("adam", index, w, 2)?;
        let grad = grad.to_layout(w.layout())?;
        let Ok([m, v]) = <[&mut Array; 2]>::try_from(slots.arrays) else {
            return Err(Error::invalid("adam", "two moments are expected"));
        };
        if w.context().is_gpu() {
            return rule.launch(w, slots.master, &grad, [m, v]);
        }
        state::on_master(w, slots.master, |w| {
            real_type!("adam", w.dtype(), F => {
                let g = grad.real::<F>("adam")?;
                rule.apply::<F>(w.as_mut_slice()?, &g, m.as_mut_slice()?, v.as_mut_slice()?);
                Ok(())
            })
        })
    }

    fn learning_rate(&self) -> f64 {
        self.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.lr = lr;
    }

    fn state(&self) -> Result<Vec<(String, Array)>> {
        self.state.save()
    }

    fn load_state(&mut self, arrays: &[(String, Array)]) -> Result<()> {
        self.state.load(arrays)
    }
}

impl Rule {
    fn apply<F: Real>(&self, w: &mut [F], g: &[F], m: &mut [F], v: &mut [F]) {
        let c = F::from_f64;
        let (b1, b2, c1, c2) = (c(self.beta1), c(self.beta2), c(1.0 - self.beta1), c(1.0 - self.beta2));
        let (decay, rate, v_scale, eps) = (c(self.decay), c(self.rate), c(self.v_scale), c(self.eps));
        const CHUNK: usize = 16 << 10;
        let chunks = w.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK)).zip(g.par_chunks(CHUNK));
        chunks.for_each(|(((w, m), v), g)| {
            for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
                let g = self.prepare.apply(g, *w);
                *m = b1 * *m + c1 * g;
                *v = b2 * *v + c2 * g * g;
                *w = decay * *w - rate * *m / ((*v).sqrt() * v_scale + eps);
            }
        });
    }

    fn launch(&self, w: &mut Array, master: Option<&mut Array>, grad: &Array, [m, v]: [&mut Array; 2]) -> Result<()> {
        w.make_unique()?;
        start("adam", w, master.as_deref())?
            .array(grad)
            .array(m)
            .array(v)
            .value(self.prepare)
            .value(self.beta1)
            .value(self.beta2)
            .value(self.decay)
            .value(self.rate)
            .value(self.v_scale)
            .value(self.eps)
            .value(w.len() as i64)
            .run_1d(w.len())
    }
}
