//! LARS, layer-wise adaptive rate scaling (You, Gitman and Ginsburg 2017).

use rayon::prelude::*;

use super::{
    Optimizer, Prepare, State, Step, Update,
    clip::{blocks, sum_of_squares, sums_of_squares},
    settings::{Setting, Settings},
    sgd::{kernel, start},
    state, together,
};
use crate::{
    Array, Context, DType, Error, Layout, Result,
    cpu::parallel::Each,
    cuda::capture,
    dtype::{Real, real_type},
    nn::Parameter,
};

/// LARS: each parameter has a rate of its own, a fixed share of its norm for a gradient of norm 1:
///
/// λ = η·‖w‖ / (‖g‖ + wd·‖w‖), g = rescale·grad; then m ← μ·m + lr·λ·(g + wd·w); w ← w − m.
///
/// However large or small a layer's gradient is, the layer moves by about lr·η of its norm, which is what lets batches of
/// thousands train with their large rates. λ is 1 where ‖w‖ = 0 or both terms below the line are, and for vectors (biases,
/// scales), whose norm says little; [`Lars::vectors`] makes them layers like all others.
///
/// Norms are summed in f64 in a fixed order, on the parameter's device; the host does not wait for them.
///
/// ```
/// use hadal::{Array, cpu, optim::{Lars, Optimizer, Step}};
/// let mut w = Array::from_vec(vec![3f64, 4.], &[1, 2], &cpu())?;
/// let g = Array::from_vec(vec![0f64, 1000.], &[1, 2], &cpu())?;
/// Lars::new(1.0).trust(0.1).momentum(0.0).update(0, &mut w, &g, &Step::default())?;
/// assert_eq!(w.to_vec::<f64>()?, [3.0, 3.5]); // a tenth of its norm of 5, whatever the gradient's is
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Lars {
    form: Form,
    state: State,
}

/// What does not change from step to step.
#[derive(Clone, Copy, Debug)]
struct Form {
    trust: f64,
    momentum: f64,
    weight_decay: f64,
    vectors: bool,
}

impl Settings for Form {
    const NAME: &'static str = "lars";

    fn settings(&mut self) -> Vec<(&'static str, Setting<'_>)> {
        vec![
            ("trust", Setting::Number(&mut self.trust)),
            ("momentum", Setting::Number(&mut self.momentum)),
            ("weight_decay", Setting::Number(&mut self.weight_decay)),
            ("vectors", Setting::Flag(&mut self.vectors)),
        ]
    }

    fn states(&self) -> usize {
        1
    }
}

/// The numbers of one update.
#[derive(Clone, Copy, Debug)]
struct Rule {
    prepare: Prepare,
    lr: f64,
    momentum: f64,
    /// η; `None` for λ = 1.
    trust: Option<f64>,
}

impl Lars {
    /// With this global learning rate; η 0.001 and momentum 0.9 as in the paper, no weight decay.
    pub fn new(lr: f64) -> Self {
        let form = Form { trust: 0.001, momentum: 0.9, weight_decay: 0.0, vectors: false };
        Lars { form, state: State::new(&["mom"], lr) }
    }

    /// η, the share of its norm by which a layer may move.
    pub fn trust(mut self, trust: f64) -> Self {
        self.form.trust = trust;
        self
    }

    /// The momentum μ.
    pub fn momentum(mut self, momentum: f64) -> Self {
        self.form.momentum = momentum;
        self
    }

    /// The weight decay wd, the paper's β.
    pub fn weight_decay(mut self, wd: f64) -> Self {
        self.form.weight_decay = wd;
        self
    }

    /// True to scale the rates of vectors, too.
    pub fn vectors(mut self, on: bool) -> Self {
        self.form.vectors = on;
        self
    }
}

impl Optimizer for Lars {
    fn update(&mut self, index: usize, w: &mut Array, grad: &Array, step: &Step) -> Result<()> {
        let form = self.form;
        self.state.check(&form, &[Update { index, w, grad, step: *step }])?;
        let prepare = Prepare { rescale: step.rescale, clip: -1.0, wd: form.weight_decay * step.wd_mult };
        let trust = (form.vectors || w.rank() > 1).then_some(form.trust);
        let rule = Rule { prepare, lr: self.state.learning_rate() * step.lr_mult, momentum: form.momentum, trust };
        let live = captured_rate(&self.state, index, step, &w.context())?;
        let slots = self.state.slots("lars", index, w, 1)?;
        let grad = grad.to_layout(w.layout())?;
        let Some(momentum) = slots.arrays.into_iter().next() else {
            return Err(Error::invalid("lars", "a momentum is expected"));
        };
        if w.context().is_gpu() {
            rule.launch(w, slots.master, &grad, momentum, live.as_ref())?;
        } else {
            state::on_master(w, slots.master, |w| {
                real_type!("lars", w.dtype(), F => {
                    let g = grad.real::<F>("lars")?;
                    rule.apply::<F>(w.as_mut_slice()?, &g, momentum.as_mut_slice()?)
                })
            })?;
        }
        // A replay counts itself.
        if live.is_none() {
            self.state.count(index);
        }
        Ok(())
    }

    fn update_all(&mut self, updates: &mut [Update]) -> Result<()> {
        self.check_updates(updates)?;
        self.state.prepare(&self.form, &updates.iter_mut().collect::<Vec<_>>())?;
        updates.iter_mut().try_for_each(|u| self.update(u.index, u.w, u.grad, &u.step))
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

/// In a capture, a place on the device for the learning rate: every replay writes the present one there and counts as an update.
fn captured_rate(state: &State, index: usize, step: &Step, ctx: &Context) -> Result<Option<Array>> {
    if !capture::active() {
        return Ok(None);
    }
    let rate = capture::outside(|| Array::uninit(&[1], DType::F64, Layout::RowMajor, ctx))?;
    let (live, place, factor) = (state.live(), rate.clone(), step.lr_mult);
    capture::before_replay(Box::new(move || {
        let lr = live.with(|numbers| {
            numbers.count(index);
            numbers.lr
        });
        together::write(&place, &[(lr * factor).to_bits()])
    }));
    Ok(Some(rate))
}

impl Rule {
    /// lr·λ
    fn rate<F: Real>(&self, w: &[F], g: &[F]) -> Result<f64> {
        let Some(trust) = self.trust else { return Ok(self.lr) };
        let (w, g) = (sum_of_squares(w)?.sqrt(), self.prepare.rescale.abs() * sum_of_squares(g)?.sqrt());
        let below = g + self.prepare.wd * w;
        Ok(if w == 0.0 || below == 0.0 { self.lr } else { self.lr * trust * w / below })
    }

    fn apply<F: Real>(&self, w: &mut [F], g: &[F], m: &mut [F]) -> Result<()> {
        let (rate, mu) = (F::from_f64(self.rate(w, g)?), F::from_f64(self.momentum));
        const CHUNK: usize = 16 << 10;
        w.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(g.par_chunks(CHUNK)).each(|((w, m), g)| {
            for ((w, m), &g) in w.iter_mut().zip(m).zip(g) {
                *m = mu * *m + rate * self.prepare.apply(g, *w);
                *w = *w - *m;
            }
        });
        Ok(())
    }

    fn launch(&self, w: &mut Array, master: Option<&mut Array>, grad: &Array, m: &mut Array, live: Option<&Array>) -> Result<()> {
        w.make_unique()?;
        let rate = self.trust.map(|trust| self.device_rate(w, master.as_deref().unwrap_or(w), grad, trust, live)).transpose()?;
        start("lars", w, master.as_deref())?
            .array(grad)
            .array(m)
            .optional(rate.as_ref())
            .value(self.prepare)
            .value(self.lr)
            .optional(live)
            .value(self.momentum)
            .value(w.len() as i64)
            .run_1d(w.len())
    }

    /// lr·λ as a scalar on the device; `wide` is w in f32 at least.
    fn device_rate(&self, w: &Array, wide: &Array, grad: &Array, trust: f64, live: Option<&Array>) -> Result<Array> {
        let partial = sums_of_squares(&[wide, grad])?;
        let rate = Array::uninit(&[], DType::F64, Layout::RowMajor, &w.context())?;
        kernel("lars_rate", w)?
            .array(&rate)
            .array(&partial)
            .value(blocks(wide) as i64)
            .value(blocks(grad) as i64)
            .value(self.prepare.rescale)
            .value(self.prepare.wd)
            .value(self.lr)
            .optional(live)
            .value(trust)
            .run([1, 1, 1], [256, 1, 1], 0)?;
        Ok(rate)
    }
}
