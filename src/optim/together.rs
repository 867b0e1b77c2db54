//! All parameters of one device and dtype updated by one launch over a table of their addresses.
//!
//! The table and the numbers that change from step to step lie in device memory. Outside of a capture they are written where
//! they differ from the last step's. A captured launch has a table and numbers of its own, which live as long as the graph;
//! the numbers are brought up to date before each replay, so that it follows the learning rate and counts as an update.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Step, Update, defines,
    settings::Settings,
    state::{Live, State},
};
use crate::{
    Array, Context, DType, Error, Layout, Result,
    cuda::{Launch, capture},
};

/// Elements of a chunk in `kernels/optim.cu`.
pub(super) const CHUNK: usize = 4096;
/// Words of a parameter in the table.
const ENTRY: usize = 9;

/// The `Betas` of `kernels/optim.cu` and `kernels/loss_scale.cu`: Adam's.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Betas {
    pub(super) beta1: f64,
    pub(super) beta2: f64,
    pub(super) eps: f64,
}

/// An optimizer's rule as its kernel over all parameters knows it.
pub(super) trait Formula: Debug + Send + Sync {
    /// Its kernel over all parameters.
    fn kernel(&self) -> &'static str;
    /// The largest magnitude of a rescaled gradient's element; negative for any.
    fn clip(&self) -> f64;
    /// What of the weight decay goes into the gradient.
    fn decay(&self, step: &Step) -> f64;
    /// The numbers of a parameter's `t`-th update at this learning rate.
    fn rates(&self, lr: f64, t: i64, step: &Step) -> [f64; 3];
    /// How [`Formula::rates`] depends on t, for `rates_of_done_steps` in `kernels/loss_scale.cu`.
    fn correction(&self) -> (Betas, i32);
    /// The kernel's last arguments.
    fn constants(&self, launch: Launch) -> Launch;
}

/// The numbers of each parameter's update, on the device.
#[derive(Debug)]
struct Rates {
    device: Array,
    /// Under a loss scale, what the device needs to compute them.
    next: Option<Next>,
    /// What the host wrote last.
    last: Mutex<Vec<u64>>,
    parts: Vec<(usize, Step)>,
    formula: Arc<dyn Formula>,
    live: Live,
}

/// Under a loss scale only the device knows which steps were done, and so Adam's t.
#[derive(Debug)]
struct Next {
    /// The `Next` of `kernels/loss_scale.cu`, one for each parameter.
    words: Array,
    /// By the parameter's index.
    skipped: Array,
}

impl Rates {
    fn new(parts: Vec<(usize, Step)>, formula: Arc<dyn Formula>, live: Live, scaled: bool, ctx: &Context) -> Result<Self> {
        let device = Array::uninit(&[3 * parts.len()], DType::F64, Layout::RowMajor, ctx)?;
        let most = parts.iter().map(|(index, _)| index + 1).max().unwrap_or(0);
        let make = || -> Result<Next> {
            let words = Array::uninit(&[4 * parts.len()], DType::I64, Layout::RowMajor, ctx)?;
            Ok(Next { words, skipped: live.with(|n| n.skip_counts(most, ctx))? })
        };
        let next = scaled.then(make).transpose()?;
        Ok(Rates { device, next, last: Mutex::default(), parts, formula, live })
    }

    /// Counts a step of each parameter and lets the device know its numbers, or what they follow from.
    fn advance(&self) -> Result<()> {
        let mut words = Vec::with_capacity(4 * self.parts.len());
        self.live.with(|live| {
            for (index, step) in &self.parts {
                let (t, lr) = (live.count(*index), live.lr);
                match &self.next {
                    Some(_) => {
                        let [_, _, decay] = self.formula.rates(lr, 1, step);
                        words.extend([*index as u64, t as u64, (lr * step.lr_mult).to_bits(), decay.to_bits()]);
                    }
                    None => {
                        let done = t.saturating_sub(live.skipped(*index)?);
                        words.extend(self.formula.rates(lr, done, step).map(f64::to_bits));
                    }
                }
            }
            Ok::<_, Error>(())
        })?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != words {
            write(self.next.as_ref().map_or(&self.device, |n| &n.words), &words)?;
            *last = words;
        }
        Ok(())
    }

    /// Before the update, under a loss scale: computes the numbers on the device.
    fn compute(&self, unscale: Option<&Array>) -> Result<()> {
        let (Some(next), Some(unscale)) = (&self.next, unscale) else { return Ok(()) };
        let ((betas, correction), n) = (self.formula.correction(), self.parts.len());
        Launch::new(&self.device, "loss_scale.cu", "rates_of_done_steps", &[("scalar_t", DType::F64.into())])?
            .array(&self.device)
            .array(&next.skipped)
            .array(&next.words)
            .array(unscale)
            .value(betas)
            .value(correction)
            .value(n as i64)
            .run_1d(n)
    }
}

/// What a launch reads.
#[derive(Debug)]
struct Plan {
    table: Array,
    words: Vec<u64>,
    rates: Arc<Rates>,
}

impl Plan {
    fn new(words: Vec<u64>, rates: Rates, ctx: &Context) -> Result<Self> {
        let table = Array::uninit(&[words.len()], DType::I64, Layout::RowMajor, ctx)?;
        write(&table, &words)?;
        Ok(Plan { table, words, rates: Arc::new(rates) })
    }
}

/// The plans of the steps outside of captures, one for each device and dtype; a clone makes its own.
#[derive(Debug, Default)]
pub(super) struct Together {
    plans: Vec<(Context, DType, Plan)>,
}

impl Clone for Together {
    fn clone(&self) -> Self {
        Together::default()
    }
}

impl Together {
    /// Those of `updates` that are on a GPU, in one launch for each device and dtype; gives the others, which are to be updated
    /// one by one. See [`super::Optimizer::update_all_scaled`].
    pub(super) fn update<'u, 'a, F: Formula + Settings + 'static>(
        &mut self,
        rule: F,
        state: &mut State,
        updates: &'u mut [Update<'a>],
        unscale: Option<&Array>,
    ) -> Result<Vec<(&'u mut Update<'a>, Step)>> {
        let (formula, mut groups): (Arc<dyn Formula>, _) = (Arc::new(rule), Vec::new());
        state.check(&rule, updates)?;
        for u in updates.iter() {
            let group = (u.w.context(), u.w.dtype());
            if group.0.is_gpu() && !groups.contains(&group) {
                groups.push(group);
            }
        }
        for (ctx, dtype) in groups {
            let group = updates.iter_mut().filter(|u| u.w.context() == ctx && u.w.dtype() == dtype).collect();
            self.launch((F::NAME, rule.states()), &formula, state, group, unscale, (ctx, dtype))?;
        }
        let host: Vec<_> = updates.iter_mut().filter(|u| !u.w.context().is_gpu()).collect();
        let factor = unscale.filter(|_| !host.is_empty()).map_or(Ok(1.0), Array::item)?;
        if factor == 0.0 {
            return Ok(Vec::new());
        }
        state.prepare(&rule, &host)?;
        let scaled = |u: &'u mut Update<'a>| {
            let step = u.step.scaled(factor);
            (u, step)
        };
        Ok(host.into_iter().map(scaled).collect())
    }

    fn launch(
        &mut self,
        (op, states): (&'static str, usize),
        formula: &Arc<dyn Formula>,
        state: &mut State,
        group: Vec<&mut Update>,
        unscale: Option<&Array>,
        (ctx, dtype): (Context, DType),
    ) -> Result<()> {
        let Some(first) = group.first() else { return Ok(()) };
        let mut launch = Launch::new(first.w, "optim.cu", formula.kernel(), &defines(dtype))?;
        let (mut words, mut parts) = (Vec::with_capacity(ENTRY * group.len()), Vec::with_capacity(group.len()));
        // Gradients in their parameter's layout, which have to last until the launch is queued.
        let mut grads = Vec::with_capacity(group.len());
        let mut chunks = 0;
        for u in group {
            let grad = u.grad.to_layout(u.w.layout())?;
            let slots =
                capture::naming(|| format!("the state of parameter {}", u.index), || state.slots(op, u.index, u.w, states))?;
            u.w.make_unique()?;
            let own = launch.pointer(u.w);
            let [w, low] = slots.master.map_or([own, 0], |master| [launch.pointer(master), own]);
            let mut places = slots.arrays.iter().map(|a| launch.pointer(a));
            let [a, b] = std::array::from_fn(|_| places.next().unwrap_or(0));
            drop(places);
            let (n, grad_) = (u.w.len(), launch.pointer(&grad));
            let [rescale, wd] = [u.step.rescale, formula.decay(&u.step)].map(f64::to_bits);
            words.extend([w, low, grad_, a, b, chunks as u64, n as u64, rescale, wd]);
            parts.push((u.index, u.step));
            grads.push(grad);
            chunks += n.div_ceil(CHUNK);
        }
        let scaled = unscale.is_some();
        let make = |words, parts| Plan::new(words, Rates::new(parts, formula.clone(), state.live(), scaled, &ctx)?, &ctx);
        let run = |plan: &Plan| {
            plan.rates.compute(unscale)?;
            let parameters = plan.rates.parts.len() as i32;
            let launch = launch.array(&plan.table).array(&plan.rates.device).value(parameters).value(chunks as i64);
            formula.constants(launch.optional(unscale).value(formula.clip())).run_in_turn(chunks)
        };
        if capture::active() {
            let plan = capture::outside(|| make(words, parts))?;
            run(&plan)?;
            let rates = plan.rates;
            capture::before_replay(Box::new(move || rates.advance()));
            return Ok(());
        }
        let place = self.plans.iter().position(|(c, d, _)| (*c, *d) == (ctx, dtype));
        let mut plan = match place.map(|i| self.plans.swap_remove(i).2) {
            Some(plan) if plan.rates.parts == parts && plan.rates.next.is_some() == scaled => plan,
            _ => make(words.clone(), parts)?,
        };
        if plan.words != words {
            write(&plan.table, &words)?;
            plan.words = words;
        }
        plan.rates.advance()?;
        run(&plan)?;
        self.plans.push((ctx, dtype, plan));
        Ok(())
    }
}

/// The `Words` of `kernels/optim.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Words {
    v: [u64; 480],
}

/// Writes words to the device without waiting: they travel as a kernel's arguments.
pub(super) fn write(to: &Array, words: &[u64]) -> Result<()> {
    const MOST: usize = 480;
    for (i, part) in words.chunks(MOST).enumerate() {
        let mut by_value = Words { v: [0; MOST] };
        by_value.v[..part.len()].copy_from_slice(part);
        Launch::new(to, "optim.cu", "put_words", &defines(DType::F32))?
            .array(to)
            .value(by_value)
            .value((i * MOST) as i64)
            .value(part.len() as i64)
            .run_1d(part.len())?;
    }
    Ok(())
}
