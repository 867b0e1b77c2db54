//! Loss scaling: gradients that would underflow in f16 are computed larger, and made small again in the update.

use std::collections::BTreeMap;

use super::{defines, together::CHUNK};
use crate::{Array, Context, DType, Error, Layout, Result, Tensor, cuda::Launch, cuda::capture, dtype::real_type};

const OP: &str = "loss_scale";
/// The rule's name in a file of states; that of the scale is [`OP`].
const RULE: &str = "loss_scale.rule";
/// The `SMALLEST_SCALE` of `kernels/optim.cu`.
const SMALLEST: f64 = 1.0 / 16_777_216.0;
/// As many gradients as travel in one launch's arguments.
const TOGETHER: usize = 160;

/// How a [`Trainer`](crate::Trainer) scales losses (Micikevicius et al. 2018).
///
/// The loss is multiplied by a power of two before the backward pass, so that small gradients do not become 0 in f16, and each
/// update divides by it again. Where a gradient overflows, that step changes nothing and the scale is halved; after as many
/// finite steps as the interval says, it is doubled. bf16 has the range of f32 and needs none of this.
///
/// All of it happens on the device, where the host does not wait: also in a captured graph.
#[derive(Clone, Copy, Debug, PartialEq)]
#[doc(alias("GradScaler", "autocast"))]
pub struct LossScale {
    initial: f64,
    growth: f64,
    backoff: f64,
    interval: u32,
}

impl LossScale {
    /// From 256 on, halved by a step that overflows, doubled after 2000 that do not, as PyTorch's `GradScaler` does. That begins with
    /// 65536 on the mean loss of a batch; a [`Trainer`](crate::Trainer) takes the sum's gradients, which are as much larger as the
    /// batch is.
    pub fn dynamic() -> Self {
        LossScale { initial: 256.0, growth: 2.0, backoff: 0.5, interval: 2000 }
    }

    /// Always this scale; a step that overflows changes nothing.
    pub fn fixed(scale: f64) -> Self {
        LossScale { initial: scale, growth: 1.0, backoff: 1.0, interval: u32::MAX }
    }

    /// Another scale to begin with.
    pub fn initial(mut self, scale: f64) -> Self {
        self.initial = scale;
        self
    }

    /// Doubles after that many finite steps.
    pub fn growth_interval(mut self, steps: u32) -> Self {
        self.interval = steps;
        self
    }
}

/// A trainer's scale, on its device.
pub(crate) struct Scaler {
    rule: LossScale,
    place: Option<Place>,
    /// A backward pass has begun with the scale since the last step.
    used: bool,
    /// On the host, the state before the last [`Scaler::unscale`].
    before: Option<Vec<f64>>,
}

/// All f64.
struct Place {
    /// The scale, and the finite steps since it changed.
    state: Array,
    /// For the gradients at hand: 1/scale, or 0 where one is not finite.
    unscale: Array,
}

/// The `Gradients` of `kernels/optim.cu`: address, elements, chunks before.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Gradients {
    of: [[u64; 3]; TOGETHER],
}

impl Scaler {
    pub(crate) fn new(rule: LossScale) -> Self {
        Scaler { rule, place: None, used: false, before: None }
    }

    fn place(&mut self, ctx: &Context) -> Result<&mut Place> {
        let make = |scale: Array| -> Result<Place> {
            capture::refuse("a loss scale cannot come to be: run one step before the capture")?;
            Ok(Place { state: scale.to_context(ctx)?, unscale: Array::zeros(&[], DType::F64, ctx)? })
        };
        let place = match self.place.take() {
            Some(place) if place.state.context() == *ctx => place,
            Some(place) => make(place.state)?,
            None if self.rule.initial > 0.0 && self.rule.initial.is_finite() => {
                make(Array::from_vec(vec![self.rule.initial, 0.0], &[2], &Context::Cpu)?)?
            }
            None => return Err(Error::invalid(OP, format!("a scale of {}, it has to be positive", self.rule.initial))),
        };
        Ok(self.place.insert(place))
    }

    /// What the backward pass of `loss` begins with: the scale in each element.
    pub(crate) fn head(&mut self, loss: &Tensor) -> Result<Tensor> {
        let (loss, n) = (loss.array(), loss.size());
        let place = self.place(&loss.context())?;
        let head = match loss.context() {
            Context::Cpu => {
                let scale = place.state.as_slice::<f64>()?[0];
                Array::full(loss.shape(), scale, loss.dtype(), &Context::Cpu)?
            }
            Context::Gpu(_) => {
                let head = Array::uninit(loss.shape(), loss.dtype(), Layout::RowMajor, &loss.context())?;
                let launch = Launch::new(&head, "optim.cu", "fill_scale", &defines(loss.dtype()))?;
                launch.array(&head).array(&place.state).value(n as i64).run_1d(n)?;
                head
            }
        };
        self.used = true;
        Ok(Tensor::new(head))
    }

    /// For these gradients the number that undoes the scale, 0 where one is not finite; then the scale is the next step's.
    ///
    /// # Errors
    /// [`Error::Invalid`] when no backward pass began with [`Scaler::head`].
    pub(crate) fn unscale(&mut self, grads: &[&Array]) -> Result<Array> {
        if !self.used {
            let reason = "this trainer scales losses: call trainer.backward(&loss) instead of loss.backward()";
            return Err(Error::invalid("step", reason));
        }
        let rule = self.rule;
        let Some(place) = &mut self.place else { return Err(Error::invalid(OP, "no loss was scaled")) };
        let ctx = place.state.context();
        grads.iter().try_for_each(|g| ctx.same(OP, &g.context()))?;
        match ctx {
            Context::Cpu => {
                let mut finite = true;
                for g in grads {
                    finite &= real_type!(OP, g.dtype(), F => Ok(g.real::<F>(OP)?.iter().all(|v| v.is_finite())))?;
                }
                let state = place.state.as_mut_slice::<f64>()?;
                self.before = Some(state.to_vec());
                let (scale, steps) = (state[0], if finite { state[1] + 1.0 } else { 0.0 });
                place.unscale = Array::full(&[], if finite { 1.0 / scale } else { 0.0 }, DType::F64, &ctx)?;
                let grows = finite && steps >= f64::from(rule.interval);
                let next = match finite {
                    true if grows => scale * rule.growth,
                    true => scale,
                    false => (scale * rule.backoff).max(SMALLEST),
                };
                state.copy_from_slice(&[next, if grows { 0.0 } else { steps }]);
            }
            Context::Gpu(_) => {
                let found = find_infinite(grads, &ctx)?;
                let Place { state, unscale } = place;
                state.in_place(|state| {
                    state.make_unique()?;
                    unscale.in_place(|unscale| {
                        unscale.make_unique()?;
                        Launch::new(state, "optim.cu", "next_scale", &defines(DType::F32))?
                            .array(state)
                            .array(unscale)
                            .array(&found)
                            .value(found.len() as i64)
                            .value(rule.growth)
                            .value(rule.backoff)
                            .value(f64::from(rule.interval))
                            .run([1, 1, 1], [256, 1, 1], 0)
                    })
                })?;
            }
        }
        self.used = false;
        Ok(place.unscale.clone())
    }

    /// The scale; waits for the device.
    pub(crate) fn scale(&self) -> Result<f64> {
        self.place.as_ref().map_or(Ok(self.rule.initial), |p| Ok(p.state.to_f64_vec()?[0]))
    }

    /// Undoes [`Scaler::unscale`] after an update that failed. A GPU's scale goes on: there the updates of hadal's own rules fail
    /// before it changes.
    pub(crate) fn undo(&mut self) -> Result<()> {
        if let (Some(before), Some(place)) = (self.before.take(), &mut self.place) {
            place.state.as_mut_slice::<f64>()?.copy_from_slice(&before);
        }
        self.used = true;
        Ok(())
    }

    /// The scale and the finite steps since it changed, and the rule by which it changes: for a file.
    pub(crate) fn state(&self) -> Result<[(String, Array); 2]> {
        let LossScale { initial, growth, backoff, interval } = self.rule;
        let of = |v: Vec<f64>| Array::from_vec(v.clone(), &[v.len()], &Context::Cpu);
        let state = self.place.as_ref().map_or_else(|| of(vec![initial, 0.0]), |p| Ok(p.state.clone()))?;
        Ok([(OP.to_owned(), state), (RULE.to_owned(), of(vec![growth, backoff, f64::from(interval)])?)])
    }

    /// The scaler that goes on from a saved [`Scaler::state`], which is taken out of `arrays`; `None` where there is none.
    /// Files from before the rule was saved leave it as it is.
    ///
    /// # Errors
    /// [`Error::Data`] for numbers that are no scale and no rule.
    pub(crate) fn restored(&self, arrays: &mut BTreeMap<String, Array>) -> Result<Option<Scaler>> {
        let mut numbers = |name: &str, n: usize, fits: fn(&[f64]) -> bool| {
            let Some(a) = arrays.remove(name) else { return Ok(None) };
            let v = if a.shape() == [n] && a.dtype() == DType::F64 { a.to_vec::<f64>()? } else { Vec::new() };
            if v.len() == n && v.iter().all(|v| v.is_finite() && *v >= 0.0) && fits(&v) {
                return Ok(Some(v));
            }
            Err(Error::Data { path: name.into(), reason: format!("{n} f64 are expected that can go on as a loss scale: {v:?}") })
        };
        let state = numbers(OP, 2, |v| v[0] > 0.0)?;
        let rule = numbers(RULE, 3, |v| v[0] > 0.0 && v[1] > 0.0 && v[2] <= f64::from(u32::MAX) && v[2].fract() == 0.0)?;
        let Some(state) = state else { return Ok(None) };
        let mut scaler = Scaler::new(self.rule);
        if let Some(rule) = rule {
            (scaler.rule.growth, scaler.rule.backoff, scaler.rule.interval) = (rule[0], rule[1], rule[2] as u32);
        }
        let state = Array::from_vec(state, &[2], &Context::Cpu)?;
        scaler.place = Some(Place { state, unscale: Array::zeros(&[], DType::F64, &Context::Cpu)? });
        Ok(Some(scaler))
    }
}

/// For each chunk of the gradients, on their GPU, a byte that is 1 where an element is not finite.
fn find_infinite(grads: &[&Array], ctx: &Context) -> Result<Array> {
    let chunks = |g: &Array| g.len().div_ceil(CHUNK);
    let found = Array::uninit(&[grads.iter().map(|g| chunks(g)).sum()], DType::U8, Layout::RowMajor, ctx)?;
    let mut at = 0;
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let of_dtype: Vec<&Array> = grads.iter().copied().filter(|g| g.dtype() == dtype && !g.is_empty()).collect();
        for part in of_dtype.chunks(TOGETHER) {
            let mut launch = Launch::new(&found, "optim.cu", "find_infinite", &defines(dtype))?;
            let (mut table, mut first) = (Gradients { of: [[0; 3]; TOGETHER] }, 0);
            for (entry, g) in table.of.iter_mut().zip(part) {
                *entry = [launch.pointer(g), g.len() as u64, first as u64];
                first += chunks(g);
            }
            let launch = launch.array(&found).value(table).value(part.len() as i32);
            launch.value(at as i64).value(first as i64).run_in_turn(first)?;
            at += first;
        }
    }
    Ok(found)
}
