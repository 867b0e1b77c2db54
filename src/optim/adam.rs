//! Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019).

use rayon::prelude::*;

use super::{
    Convention, Optimizer, Prepare, State, Step, Update,
    settings::{Setting, Settings},
    sgd::start,
    state,
    together::{Betas, Formula, Together},
};
use crate::{
    Array, Error, Result,
    cpu::parallel::{self, Each},
    cuda::{Launch, capture},
    dtype::{Real, real_type},
    nn::Parameter,
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
    form: Form,
    state: State,
    together: Together,
}

/// What does not change from step to step.
#[derive(Clone, Copy, Debug)]
struct Form {
    betas: Betas,
    weight_decay: f64,
    clip_gradient: Option<f64>,
    decoupled: bool,
    convention: Convention,
}

/// The numbers of one update: w ← decay·w − rate·m/(√v·v_scale + ε).
#[derive(Clone, Copy, Debug)]
struct Rule {
    prepare: Prepare,
    betas: Betas,
    rate: f64,
    v_scale: f64,
    decay: f64,
}

impl Adam {
    /// With this learning rate; β₁ 0.9, β₂ 0.999, ε 1e-8, no weight decay, MXNet's convention.
    pub fn new(lr: f64) -> Self {
        let betas = Betas { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
        let convention = Convention::MxNet;
        let form = Form { betas, weight_decay: 0.0, clip_gradient: None, decoupled: false, convention };
        Adam { form, state: State::new(&["m", "v"], lr), together: Together::default() }
    }

    /// AdamW in PyTorch's convention, with its weight decay of 0.01.
    pub fn adamw(lr: f64) -> Self {
        Adam::new(lr).decoupled(true).weight_decay(0.01).convention(Convention::PyTorch)
    }

    /// β₁ and β₂, the rates at which the two moments forget.
    pub fn betas(mut self, beta1: f64, beta2: f64) -> Self {
        (self.form.betas.beta1, self.form.betas.beta2) = (beta1, beta2);
        self
    }

    /// ε.
    pub fn eps(mut self, eps: f64) -> Self {
        self.form.betas.eps = eps;
        self
    }

    /// The weight decay wd.
    pub fn weight_decay(mut self, wd: f64) -> Self {
        self.form.weight_decay = wd;
        self
    }

    /// Limits each element of the rescaled gradient to ±`limit`, before weight decay.
    pub fn clip_gradient(mut self, limit: f64) -> Self {
        self.form.clip_gradient = Some(limit);
        self
    }

    /// True for AdamW: weights decay by themselves, not through the gradient.
    pub fn decoupled(mut self, on: bool) -> Self {
        self.form.decoupled = on;
        self
    }

    /// Where ε stands.
    pub fn convention(mut self, convention: Convention) -> Self {
        self.form.convention = convention;
        self
    }
}

impl Settings for Form {
    const NAME: &'static str = "adam";

    fn settings(&mut self) -> Vec<(&'static str, Setting<'_>)> {
        vec![
            ("beta1", Setting::Share(&mut self.betas.beta1)),
            ("beta2", Setting::Share(&mut self.betas.beta2)),
            ("eps", Setting::Number(&mut self.betas.eps)),
            ("weight_decay", Setting::Number(&mut self.weight_decay)),
            ("clip_gradient", Setting::Limit(&mut self.clip_gradient)),
            ("decoupled", Setting::Flag(&mut self.decoupled)),
            ("convention", Setting::Convention(&mut self.convention)),
        ]
    }

    fn states(&self) -> usize {
        2
    }
}

impl Formula for Form {
    fn kernel(&self) -> &'static str {
        "adam_all"
    }

    fn clip(&self) -> f64 {
        self.clip_gradient.unwrap_or(-1.0)
    }

    fn decay(&self, step: &Step) -> f64 {
        if self.decoupled { 0.0 } else { self.weight_decay * step.wd_mult }
    }

    /// rate, v_scale and decay
    fn rates(&self, lr: f64, t: i64, step: &Step) -> [f64; 3] {
        let (lr, wd) = (lr * step.lr_mult, self.weight_decay * step.wd_mult);
        let correction = |beta: f64| 1.0 - beta.powf(t as f64);
        let (c1, c2) = (correction(self.betas.beta1), correction(self.betas.beta2));
        let (rate, v_scale) = match self.convention {
            Convention::MxNet => (lr * c2.sqrt() / c1, 1.0),
            Convention::PyTorch => (lr / c1, 1.0 / c2.sqrt()),
        };
        [rate, v_scale, if self.decoupled { 1.0 - lr * wd } else { 1.0 }]
    }

    fn correction(&self) -> (Betas, i32) {
        (self.betas, if self.convention == Convention::MxNet { 1 } else { 2 })
    }

    fn constants(&self, launch: Launch) -> Launch {
        launch.value(self.betas)
    }
}

impl Adam {
    fn all(&mut self, updates: &mut [Update], unscale: Option<&Array>) -> Result<()> {
        let rest = self.together.update(self.form, &mut self.state, updates, unscale)?;
        rest.into_iter().try_for_each(|(u, step)| self.update(u.index, u.w, u.grad, &step))
    }
}

impl Optimizer for Adam {
    fn update(&mut self, index: usize, w: &mut Array, grad: &Array, step: &Step) -> Result<()> {
        if capture::active() && w.context().is_gpu() {
            return self.update_all(&mut [Update { index, w, grad, step: *step }]);
        }
        let form = self.form;
        self.state.check(&form, &[Update { index, w, grad, step: *step }])?;
        let prepare = Prepare { rescale: step.rescale, clip: form.clip(), wd: form.decay(step) };
        let t = self.state.updates(index)?.saturating_add(1);
        let [rate, v_scale, decay] = form.rates(self.state.learning_rate(), t, step);
        let rule = Rule { prepare, betas: form.betas, rate, v_scale, decay };
        let slots = self.state.slots("adam", index, w, 2)?;
        let grad = grad.to_layout(w.layout())?;
        let Ok([m, v]) = <[&mut Array; 2]>::try_from(slots.arrays) else {
            return Err(Error::invalid("adam", "two moments are expected"));
        };
        if w.context().is_gpu() {
            rule.launch(w, slots.master, &grad, [m, v])?;
        } else {
            state::on_master(w, slots.master, |w| {
                real_type!("adam", w.dtype(), F => {
                    let g = grad.real::<F>("adam")?;
                    rule.apply::<F>(w.as_mut_slice()?, &g, m.as_mut_slice()?, v.as_mut_slice()?);
                    Ok(())
                })
            })?;
        }
        self.state.count(index);
        Ok(())
    }

    fn update_all(&mut self, updates: &mut [Update]) -> Result<()> {
        self.all(updates, None)
    }

    fn update_all_scaled(&mut self, updates: &mut [Update], unscale: &Array) -> Result<()> {
        self.all(updates, Some(unscale))
    }

    fn check_updates(&self, updates: &[Update]) -> Result<()> {
        self.state.check(&self.form, updates)
    }

    fn learning_rate(&self) -> f64 {
        self.state.learning_rate()
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.state.set_learning_rate(lr);
    }

    fn state(&self) -> Result<Vec<(String, Array)>> {
        self.state.save(&self.form)
    }

    fn check_state(&self, arrays: &[(String, Array)], parameters: &[Parameter]) -> Result<()> {
        self.state.check_load(&self.form, arrays, parameters)
    }

    fn load_state(&mut self, arrays: &[(String, Array)]) -> Result<()> {
        self.state.load(&mut self.form, arrays)
    }
}

impl Rule {
    fn apply<F: Real>(&self, w: &mut [F], g: &[F], m: &mut [F], v: &mut [F]) {
        let c = F::from_f64;
        let Betas { beta1, beta2, eps } = self.betas;
        let (b1, b2, c1, c2) = (c(beta1), c(beta2), c(1.0 - beta1), c(1.0 - beta2));
        let (decay, rate, v_scale, eps) = (c(self.decay), c(self.rate), c(self.v_scale), c(eps));
        let run = |w: &mut [F], m: &mut [F], v: &mut [F], g: &[F]| {
            for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
                let g = self.prepare.apply(g, *w);
                *m = b1 * *m + c1 * g;
                *v = b2 * *v + c2 * g * g;
                *w = decay * *w - rate * *m / ((*v).sqrt() * v_scale + eps);
            }
        };
        if w.len() < parallel::SERIAL {
            return run(w, m, v, g);
        }
        const CHUNK: usize = 16 << 10;
        let chunks = w.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK)).zip(g.par_chunks(CHUNK));
        chunks.each(|(((w, m), v), g)| run(w, m, v, g));
    }

    fn launch(&self, w: &mut Array, master: Option<&mut Array>, grad: &Array, [m, v]: [&mut Array; 2]) -> Result<()> {
        w.make_unique()?;
        start("adam", w, master.as_deref())?
            .array(grad)
            .array(m)
            .array(v)
            .value(self.prepare)
            .value(self.betas)
            .value(self.rate)
            .value(self.v_scale)
            .value(self.decay)
            .value(w.len() as i64)
            .run_1d(w.len())
    }
}
