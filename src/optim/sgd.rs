//! Stochastic gradient descent with momentum.

use rayon::prelude::*;

use super::{
    Convention, Optimizer, Prepare, State, Step, Update, defines,
    settings::{Setting, Settings},
    state,
    together::{Betas, Formula, Together},
};
use crate::{
    Array, Result,
    cpu::parallel::{self, Each},
    cuda::{Launch, capture},
    dtype::{Real, real_type},
    nn::Parameter,
};

/// SGD: g = clip(rescale·grad) + wd·w; w ← w − lr·g, or with momentum μ
///
/// - in MXNet's convention m ← μ·m − lr·g; w ← w + m (Nesterov: w + μ·m − lr·g),
/// - in PyTorch's m ← μ·m + g; w ← w − lr·m (Nesterov: w − lr·(g + μ·m)).
///
/// They differ when the learning rate changes.
///
/// ```
/// use hadal::{Array, cpu, optim::{Optimizer, Sgd, Step}};
/// let mut w = Array::from_vec(vec![1f64], &[1], &cpu())?;
/// let g = Array::from_vec(vec![1f64], &[1], &cpu())?;
/// let mut sgd = Sgd::new(0.5).momentum(0.5);
/// sgd.update(0, &mut w, &g, &Step::default())?; // m = −0.5
/// sgd.update(0, &mut w, &g, &Step::default())?; // m = −0.75
/// assert_eq!(w.item()?, -0.25);
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sgd {
    form: Form,
    state: State,
    together: Together,
}

/// What does not change from step to step.
#[derive(Clone, Copy, Debug)]
struct Form {
    momentum: f64,
    weight_decay: f64,
    clip_gradient: Option<f64>,
    nesterov: bool,
    convention: Convention,
}

/// The numbers of one update.
#[derive(Clone, Copy, Debug)]
struct Rule {
    prepare: Prepare,
    lr: f64,
    momentum: f64,
    lr_inside: bool,
    nesterov: bool,
}

impl Sgd {
    /// With this learning rate; no momentum, no weight decay, MXNet's convention.
    pub fn new(lr: f64) -> Self {
        let convention = Convention::MxNet;
        let form = Form { momentum: 0.0, weight_decay: 0.0, clip_gradient: None, nesterov: false, convention };
        Sgd { form, state: State::new(&["mom"], lr), together: Together::default() }
    }

    /// The momentum μ; 0 keeps no state.
    pub fn momentum(mut self, momentum: f64) -> Self {
        self.form.momentum = momentum;
        self
    }

    /// The weight decay wd, added to the gradient as wd·w.
    pub fn weight_decay(mut self, wd: f64) -> Self {
        self.form.weight_decay = wd;
        self
    }

    /// Limits each element of the rescaled gradient to ±`limit`, before weight decay.
    pub fn clip_gradient(mut self, limit: f64) -> Self {
        self.form.clip_gradient = Some(limit);
        self
    }

    /// Nesterov's momentum.
    pub fn nesterov(mut self, on: bool) -> Self {
        self.form.nesterov = on;
        self
    }

    /// Where the learning rate stands.
    pub fn convention(mut self, convention: Convention) -> Self {
        self.form.convention = convention;
        self
    }
}

impl Sgd {
    fn all(&mut self, updates: &mut [Update], unscale: Option<&Array>) -> Result<()> {
        let rest = self.together.update(self.form, &mut self.state, updates, unscale)?;
        rest.into_iter().try_for_each(|(u, step)| self.update(u.index, u.w, u.grad, &step))
    }
}

impl Optimizer for Sgd {
    fn update(&mut self, index: usize, w: &mut Array, grad: &Array, step: &Step) -> Result<()> {
        if capture::active() && w.context().is_gpu() {
            return self.update_all(&mut [Update { index, w, grad, step: *step }]);
        }
        let form = self.form;
        self.state.check(&form, &[Update { index, w, grad, step: *step }])?;
        let prepare = Prepare { rescale: step.rescale, clip: form.clip(), wd: form.decay(step) };
        let (lr, lr_inside) = (self.state.learning_rate() * step.lr_mult, form.lr_inside());
        let rule = Rule { prepare, lr, momentum: form.momentum, lr_inside, nesterov: form.nesterov };
        let slots = self.state.slots("sgd", index, w, form.states())?;
        let grad = grad.to_layout(w.layout())?;
        let momentum = slots.arrays.into_iter().next();
        if w.context().is_gpu() {
            rule.launch(w, slots.master, &grad, momentum)?;
        } else {
            state::on_master(w, slots.master, |w| {
                real_type!("sgd", w.dtype(), F => {
                    let g = grad.real::<F>("sgd")?;
                    match momentum {
                        None => rule.plain::<F>(w.as_mut_slice()?, &g),
                        Some(m) => rule.with_momentum::<F>(w.as_mut_slice()?, &g, m.as_mut_slice()?),
                    }
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

impl Form {
    fn lr_inside(&self) -> bool {
        self.convention == Convention::MxNet
    }
}

impl Settings for Form {
    const NAME: &'static str = "sgd";

    fn settings(&mut self) -> Vec<(&'static str, Setting<'_>)> {
        vec![
            ("momentum", Setting::Number(&mut self.momentum)),
            ("weight_decay", Setting::Number(&mut self.weight_decay)),
            ("clip_gradient", Setting::Limit(&mut self.clip_gradient)),
            ("nesterov", Setting::Flag(&mut self.nesterov)),
            ("convention", Setting::Convention(&mut self.convention)),
        ]
    }

    fn states(&self) -> usize {
        usize::from(self.momentum != 0.0)
    }
}

impl Formula for Form {
    fn kernel(&self) -> &'static str {
        if self.momentum == 0.0 { "sgd_all" } else { "sgd_momentum_all" }
    }

    fn clip(&self) -> f64 {
        self.clip_gradient.unwrap_or(-1.0)
    }

    fn decay(&self, step: &Step) -> f64 {
        self.weight_decay * step.wd_mult
    }

    fn rates(&self, lr: f64, _: i64, step: &Step) -> [f64; 3] {
        [lr * step.lr_mult, 0.0, 0.0]
    }

    fn correction(&self) -> (Betas, i32) {
        (Betas { beta1: 0.0, beta2: 0.0, eps: 0.0 }, 0)
    }

    fn constants(&self, launch: Launch) -> Launch {
        if self.momentum == 0.0 {
            return launch;
        }
        launch.value(self.momentum).value(i32::from(self.lr_inside())).value(i32::from(self.nesterov))
    }
}

impl Rule {
    fn plain<F: Real>(&self, w: &mut [F], g: &[F]) {
        let lr = F::from_f64(self.lr);
        parallel::zip_assign(w, g, |w, g| *w = *w - lr * self.prepare.apply(g, *w));
    }

    fn with_momentum<F: Real>(&self, w: &mut [F], g: &[F], m: &mut [F]) {
        let (lr, mu) = (F::from_f64(self.lr), F::from_f64(self.momentum));
        let run = |((w, m), g): ((&mut [F], &mut [F]), &[F])| {
            for ((w, m), &g) in w.iter_mut().zip(m).zip(g) {
                let g = self.prepare.apply(g, *w);
                let step = if self.lr_inside { -lr * g } else { g };
                *m = mu * *m + step;
                let go = if self.nesterov { mu * *m + step } else { *m };
                *w += if self.lr_inside { go } else { -lr * go };
            }
        };
        if w.len() < parallel::SERIAL {
            return run(((w, m), g));
        }
        const CHUNK: usize = 16 << 10;
        w.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(g.par_chunks(CHUNK)).each(run);
    }

    fn launch(&self, w: &mut Array, master: Option<&mut Array>, grad: &Array, momentum: Option<&mut Array>) -> Result<()> {
        w.make_unique()?;
        let (kernel, n) = (if momentum.is_some() { "sgd_momentum" } else { "sgd" }, w.len());
        let mut launch = start(kernel, w, master.as_deref())?.array(grad);
        if let Some(m) = &momentum {
            launch = launch.array(m);
        }
        launch = launch.value(self.prepare).value(self.lr);
        if momentum.is_some() {
            launch = launch.value(self.momentum).value(i32::from(self.lr_inside)).value(i32::from(self.nesterov));
        }
        launch.value(n as i64).run_1d(n)
    }
}

/// A kernel of `optim.cu` for this parameter.
pub(super) fn kernel(kernel: &'static str, w: &Array) -> Result<Launch> {
    Launch::new(w, "optim.cu", kernel, &defines(w.dtype()))
}

/// A kernel of `optim.cu` with its first two arguments: what is updated in f32 at least, and its half-precision copy.
pub(super) fn start(name: &'static str, w: &Array, master: Option<&Array>) -> Result<Launch> {
    let launch = kernel(name, w)?;
    Ok(match master {
        Some(master) => launch.array(master).array(w),
        None => launch.array(w).optional(None),
    })
}
