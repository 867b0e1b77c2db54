//! The states of all parameters by index, as named arrays.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Update, check, distinct, settings, settings::Settings, wide};
use crate::{
    Array, Context, DType, Error, Layout, Result,
    cpu::{buffers::Buffer, memory},
    cuda::capture,
};

/// The arrays of one parameter.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    /// One for each name; `None` until the first update.
    pub(super) arrays: Vec<Option<Array>>,
    /// The f32 copy of a half-precision parameter.
    pub(super) master: Option<Array>,
}

/// What changes from step to step on the host. Captured graphs share it with their optimizer.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    pub(super) lr: f64,
    /// Steps so far by the parameter's index, with those under a loss scale that were skipped.
    steps: BTreeMap<usize, i64>,
    /// On each device, by the parameter's index, how many of them were skipped. An array that has become too short stays, since
    /// graphs may count in it.
    skipped: Vec<Array>,
}

impl Numbers {
    /// One more step of parameter `index`; gives its number, from 1 on.
    pub(super) fn count(&mut self, index: usize) -> i64 {
        let t = self.steps.entry(index).or_default();
        *t = t.saturating_add(1);
        *t
    }

    /// How many steps of parameter `index` were skipped; waits for the devices on which some may have been.
    pub(super) fn skipped(&self, index: usize) -> Result<i64> {
        let mut sum = 0i64;
        for counts in self.skipped.iter().filter(|a| index < a.len()) {
            sum = sum.saturating_add(counts.to_vec::<i64>()?[index]);
        }
        Ok(sum)
    }

    /// How often parameter `index` was updated.
    fn updates(&self, index: usize) -> Result<i64> {
        let steps = self.steps.get(&index).copied().unwrap_or(0);
        Ok(steps.saturating_sub(self.skipped(index)?).max(0))
    }

    /// Where kernels count the skipped steps of the first `n` parameters.
    pub(super) fn skip_counts(&mut self, n: usize, ctx: &Context) -> Result<Array> {
        if let Some(a) = self.skipped.iter().find(|a| a.context() == *ctx && a.len() >= n) {
            return Ok(a.clone());
        }
        capture::refuse("the count of skipped steps cannot come to be: run one step before the capture")?;
        let counts = Array::zeros(&[n.next_power_of_two()], DType::I64, ctx)?;
        self.skipped.push(counts.clone());
        Ok(counts)
    }
}

/// A handle on [`Numbers`]; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Live(Arc<Mutex<Numbers>>);

impl Live {
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Numbers) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// States by the parameter's index, and the numbers of the next update.
#[derive(Debug)]
pub(super) struct State {
    names: &'static [&'static str],
    entries: BTreeMap<usize, Entry>,
    live: Live,
}

impl Clone for State {
    /// With numbers of its own.
    fn clone(&self) -> Self {
        let numbers = self.live.with(|n| {
            let done = |(index, t): (&usize, &i64)| (*index, n.updates(*index).unwrap_or(*t));
            Numbers { lr: n.lr, steps: n.steps.iter().map(done).collect(), skipped: Vec::new() }
        });
        State { names: self.names, entries: self.entries.clone(), live: Live(Arc::new(Mutex::new(numbers))) }
    }
}

/// One parameter's state during an update.
pub(super) struct Slots<'a> {
    /// In the order of the names, ready to be written.
    pub(super) arrays: Vec<&'a mut Array>,
    pub(super) master: Option<&'a mut Array>,
}

impl State {
    pub(super) fn new(names: &'static [&'static str], lr: f64) -> Self {
        let state = State { names, entries: BTreeMap::new(), live: Live::default() };
        state.set_learning_rate(lr);
        state
    }

    pub(super) fn live(&self) -> Live {
        self.live.clone()
    }

    pub(super) fn learning_rate(&self) -> f64 {
        self.live.with(|n| n.lr)
    }

    pub(super) fn set_learning_rate(&self, lr: f64) {
        self.live.with(|n| n.lr = lr);
    }

    /// Errs unless all of these updates can be done by a rule with these settings; changes nothing.
    pub(super) fn check<S: Settings>(&self, rule: &S, updates: &[Update]) -> Result<()> {
        distinct(S::NAME, updates)?;
        settings::check(rule, self.learning_rate())?;
        for u in updates {
            check(S::NAME, u.w, u.grad)?;
            u.step.check(S::NAME, u.index)?;
            let Some(entry) = self.entries.get(&u.index) else { continue };
            let dtype = wide(u.w.dtype());
            let master = entry.master.iter().filter(|_| dtype != u.w.dtype());
            for a in entry.arrays.iter().take(rule.states()).flatten().chain(master) {
                if a.shape() != u.w.shape() || a.dtype() != dtype {
                    let reason =
                        format!("the state of parameter {} ({}) is not for a parameter of {}", u.index, a.dtype(), u.w.dtype());
                    return Err(Error::shape(S::NAME, reason, &[a.shape(), u.w.shape()]));
                }
            }
        }
        Ok(())
    }

    /// Makes the states of all updates, after [`State::check`], so that nothing has been changed where memory does not suffice.
    pub(super) fn prepare<S: Settings>(&mut self, rule: &S, updates: &[&mut Update]) -> Result<()> {
        updates.iter().try_for_each(|u| self.slots(S::NAME, u.index, u.w, rule.states()).map(|_| ()))
    }

    /// The state of parameter `index`, made at its first update, after [`State::check`]. Of the names, the first `used` are made.
    pub(super) fn slots(&mut self, op: &'static str, index: usize, w: &Array, used: usize) -> Result<Slots<'_>> {
        let entry = self.entries.entry(index).or_default();
        entry.arrays.resize(self.names.len(), None);
        let (ctx, dtype) = (w.context(), wide(w.dtype()));
        let missing = entry.arrays.iter().take(used).any(Option::is_none) || (dtype != w.dtype() && entry.master.is_none());
        if missing {
            // Each replay would begin with an empty state again.
            capture::refuse("an optimizer's state cannot come to be: run one step before the capture")?;
        }
        let fit = |a: &mut Array| -> Result<()> {
            if a.shape() != w.shape() || a.dtype() != dtype {
                return Err(Error::shape(op, format!("the state of parameter {index} does not fit"), &[a.shape(), w.shape()]));
            }
            if a.context() != ctx || a.layout() != w.layout() {
                *a = a.to_layout(w.layout())?.to_context(&ctx)?;
            }
            a.in_place(Array::make_unique)
        };
        for place in entry.arrays.iter_mut().take(used) {
            match place {
                Some(a) => fit(a)?,
                None => *place = Some(Array::zeros(w.shape(), dtype, &ctx)?.with_layout(w.layout())),
            }
        }
        if dtype != w.dtype() {
            match &mut entry.master {
                Some(a) => fit(a)?,
                None => entry.master = Some(widened(w, dtype)?),
            }
        }
        let arrays = entry.arrays.iter_mut().take(used).flatten().collect();
        Ok(Slots { arrays, master: entry.master.as_mut() })
    }

    /// How often parameter `index` was updated.
    pub(super) fn updates(&self, index: usize) -> Result<i64> {
        self.live.with(|n| n.updates(index))
    }

    /// One more update of parameter `index`.
    pub(super) fn count(&self, index: usize) {
        self.live.with(|n| n.count(index));
    }

    /// The settings of `rule`, the learning rate, and all arrays, by name.
    pub(super) fn save<S: Settings>(&self, rule: &S) -> Result<Vec<(String, Array)>> {
        let mut out = Vec::new();
        for (index, e) in &self.entries {
            out.push((format!("{index}.t"), Array::from_vec(vec![self.updates(*index)?], &[], &Context::Cpu)?));
            for (name, a) in self.names.iter().zip(&e.arrays) {
                out.extend(a.iter().map(|a| (format!("{index}.{name}"), a.clone())));
            }
            out.extend(e.master.iter().map(|a| (format!("{index}.master"), a.clone())));
        }
        out.extend(settings::save(rule, self.learning_rate())?);
        Ok(out)
    }

    /// The rule and the state that `arrays` describe; nothing has been changed yet.
    fn parse<S: Settings>(&self, rule: &S, arrays: &[(String, Array)]) -> Result<Loaded<S>> {
        let (mut entries, mut updates): (BTreeMap<usize, Entry>, _) = (BTreeMap::new(), BTreeMap::new());
        let mut read = settings::Reader::new(*rule, self.learning_rate());
        // First, since they say whose states these are.
        for (path, a) in arrays {
            if let Some((owner, name)) = settings::owner(path) {
                read.setting(path, owner, name, a)?;
            }
        }
        for (path, a) in arrays {
            let unknown = || {
                let reason = format!(
                    "an optimizer's state has arrays <index>.t and <index>.{{{}, master}}, and the settings {}.<name>",
                    self.names.join(", "),
                    S::NAME
                );
                bad(path, reason)
            };
            let (index, name) = path.split_once('.').ok_or_else(unknown)?;
            if settings::owner(path).is_some() {
                continue;
            }
            let number = index.parse().map_err(|_| unknown())?;
            if usize::to_string(&number) != index {
                return Err(unknown());
            }
            let e = entries.entry(number).or_default();
            e.arrays.resize(self.names.len(), None);
            if name == "t" {
                let t = if a.dtype() == DType::I64 && a.len() == 1 { a.to_vec::<i64>()?[0] } else { -1 };
                if t < 0 {
                    return Err(bad(path, "one i64 of at least 0 is expected, the count of updates".into()));
                }
                updates.insert(number, t);
                continue;
            }
            let place = match self.names.iter().position(|n| *n == name) {
                Some(i) => &mut e.arrays[i],
                None if name == "master" => &mut e.master,
                None => return Err(unknown()),
            };
            sound(path, name, a)?;
            *place = Some(a.clone());
        }
        let (rule, lr) = read.finish()?;
        for (index, e) in &entries {
            let t = updates.get(index).ok_or_else(|| bad(&format!("{index}.t"), "it is missing".into()))?;
            let missing = self.names.iter().zip(&e.arrays).take(rule.states()).find(|(_, a)| a.is_none() && *t > 0);
            if let Some((name, _)) = missing {
                return Err(bad(&format!("{index}.{name}"), format!("it is missing, after {t} updates")));
            }
        }
        Ok(Loaded { rule, lr, entries, updates })
    }

    /// Errs unless [`State::load`] would take `arrays` for these parameters; changes nothing.
    pub(super) fn check_load<S: Settings>(
        &self,
        rule: &S,
        arrays: &[(String, Array)],
        parameters: &[crate::nn::Parameter],
    ) -> Result<()> {
        let loaded = self.parse(rule, arrays)?;
        for (index, e) in &loaded.entries {
            let p = parameters.get(*index).ok_or_else(|| {
                bad(&format!("{index}.t"), format!("the trainer has {} parameters, from 0 on", parameters.len()))
            })?;
            let named = self.names.iter().zip(&e.arrays).filter_map(|(n, a)| Some((*n, a.as_ref()?)));
            for (name, a) in named.chain(e.master.iter().map(|a| ("master", a))) {
                let path = format!("{index}.{name}");
                p.check(a.shape()).map_err(|e| bad(&path, e.to_string()))?;
                let dtype = if name == "master" { DType::F32 } else { wide(p.dtype()) };
                if a.dtype() != dtype {
                    return Err(bad(&path, format!("it is {}, of {} ({}) {dtype} is expected", a.dtype(), p.name(), p.dtype())));
                }
            }
        }
        // A file from before settings were saved has no list of parameters, but had a state for all that were trained.
        let old = !arrays.iter().any(|(name, _)| name.starts_with(S::NAME));
        let without = |(i, p): &(usize, &crate::nn::Parameter)| p.is_trainable() && !loaded.entries.contains_key(i);
        match parameters.iter().enumerate().find(without) {
            Some((i, p)) if old && !loaded.entries.is_empty() => {
                Err(bad(&format!("{i}.t"), format!("it is missing, so {} would have no state", p.name())))
            }
            _ => Ok(()),
        }
    }

    /// Replaces rule, learning rate and state; after an error nothing has been changed.
    pub(super) fn load<S: Settings>(&mut self, rule: &mut S, arrays: &[(String, Array)]) -> Result<()> {
        let loaded = self.parse(rule, arrays)?;
        self.live.with(|n| {
            // Graphs go on counting what they skip where they did.
            let counted = |(index, t): (&usize, &i64)| Ok((*index, t.saturating_add(n.skipped(*index)?)));
            let mut steps = loaded.updates.iter().map(counted).collect::<Result<BTreeMap<_, _>>>()?;
            for index in n.steps.keys().filter(|i| !loaded.updates.contains_key(i)) {
                steps.insert(*index, n.skipped(*index)?);
            }
            (n.lr, n.steps) = (loaded.lr, steps);
            Ok::<_, Error>(())
        })?;
        (*rule, self.entries) = (loaded.rule, loaded.entries);
        Ok(())
    }
}

/// What a file says.
struct Loaded<S> {
    rule: S,
    lr: f64,
    entries: BTreeMap<usize, Entry>,
    updates: BTreeMap<usize, i64>,
}

/// Errs unless a state's array has numbers that a step can go on from.
fn sound(path: &str, name: &str, a: &Array) -> Result<()> {
    let expected = if name == "master" { "f32" } else { "f32 or f64" };
    if a.dtype() != DType::F32 && (a.dtype() != DType::F64 || name == "master") {
        return Err(bad(path, format!("it is {}, {expected} is expected", a.dtype())));
    }
    let values = a.to_layout(Layout::RowMajor)?.to_f64_vec()?;
    match values.iter().position(|v| !v.is_finite() || (name == "v" && *v < 0.0)) {
        Some(i) => Err(bad(path, format!("element {i} of {} is {}, no step can go on from there", values.len(), values[i]))),
        None => Ok(()),
    }
}

fn bad(path: &str, reason: String) -> Error {
    Error::Data { path: path.to_owned(), reason }
}

/// A copy of a half-precision parameter in `dtype`.
fn widened(w: &Array, dtype: DType) -> Result<Array> {
    crate::check::cast(&w.to_context(&Context::Cpu)?, dtype)?.to_layout(w.layout())?.to_context(&w.context())
}

/// Runs `host` on the parameter's master copy, or on itself where it has none, and rounds the result into the parameter. Where the
/// parameter is not the copy's rounding, somebody has set it, and the copy follows.
pub(super) fn on_master(w: &mut Array, master: Option<&mut Array>, host: impl FnOnce(&mut Array) -> Result<()>) -> Result<()> {
    let Some(master) = master else { return host(w) };
    let own = master.cast(w.dtype())?;
    let (own, set) = (own.real::<f32>("optimizer")?, w.real::<f32>("optimizer")?);
    for (m, (own, &set)) in master.as_mut_slice::<f32>()?.iter_mut().zip(own.iter().zip(set.iter())) {
        if *own != set {
            *m = set;
        }
    }
    drop(set);
    host(master)?;
    let values = Buffer::from_vec(memory::copied(master.as_slice::<f32>()?)?);
    *w = Array::from_real(values, w.shape(), w.dtype())?.with_layout(w.layout());
    Ok(())
}
