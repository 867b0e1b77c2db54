//! The states of all parameters by index, as named arrays.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::wide;
use crate::{Array, Context, DType, Error, Result, cpu::buffers::Buffer, cuda::capture};

/// The arrays of one parameter.
#[derive(Clone, Debug, Default)]
struct Entry {
    /// One for each name; `None` until the first update.
    arrays: Vec<Option<Array>>,
    /// The f32 copy of a half-precision parameter.
    master: Option<Array>,
}

/// What changes from step to step on the host. Captured graphs share it with their optimizer.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    pub(super) lr: f64,
    /// Updates so far by the parameter's index.
    updates: BTreeMap<usize, i64>,
}

impl Numbers {
    /// One more update of parameter `index`; gives its number, from 1 on.
    pub(super) fn count(&mut self, index: usize) -> i64 {
        let t = self.updates.entry(index).or_default();
        *t = t.saturating_add(1);
        *t
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
        let numbers = self.live.with(|n| Numbers { lr: n.lr, updates: n.updates.clone() });
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

    /// The state of parameter `index`, made at its first update. Of the names, the first `used` are made.
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
                let reason = format!("the state of parameter {index} ({}) is not for a parameter of {}", a.dtype(), w.dtype());
                return Err(Error::shape(op, reason, &[a.shape(), w.shape()]));
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
    pub(super) fn updates(&self, index: usize) -> i64 {
        self.live.with(|n| n.updates.get(&index).copied().unwrap_or(0))
    }

    /// One more update of parameter `index`.
    pub(super) fn count(&self, index: usize) {
        self.live.with(|n| n.count(index));
    }

    pub(super) fn save(&self) -> Result<Vec<(String, Array)>> {
        let mut out = Vec::new();
        for (index, e) in &self.entries {
            out.push((format!("{index}.t"), Array::from_vec(vec![self.updates(*index)], &[], &Context::Cpu)?));
            for (name, a) in self.names.iter().zip(&e.arrays) {
                out.extend(a.iter().map(|a| (format!("{index}.{name}"), a.clone())));
            }
            out.extend(e.master.iter().map(|a| (format!("{index}.master"), a.clone())));
        }
        Ok(out)
    }

    pub(super) fn load(&mut self, arrays: &[(String, Array)]) -> Result<()> {
        let (mut entries, mut updates): (BTreeMap<usize, Entry>, _) = (BTreeMap::new(), BTreeMap::new());
        for (path, a) in arrays {
            let unknown = || Error::Data {
                path: path.clone(),
                reason: format!("an optimizer's state has arrays <index>.t and <index>.{{{}, master}}", self.names.join(", ")),
            };
            let (index, name) = path.split_once('.').ok_or_else(unknown)?;
            let index = index.parse().map_err(|_| unknown())?;
            let e = entries.entry(index).or_default();
            e.arrays.resize(self.names.len(), None);
            match name {
                "t" => {
                    updates.insert(index, (a.item()? as i64).max(0));
                }
                "master" => e.master = Some(a.clone()),
                _ => {
                    let place = self.names.iter().position(|n| *n == name).ok_or_else(unknown)?;
                    e.arrays[place] = Some(a.clone());
                }
            }
        }
        self.entries = entries;
        self.live.with(|n| n.updates = updates);
        Ok(())
    }
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
    let values = Buffer::from_vec(master.as_slice::<f32>()?.to_vec());
    *w = Array::from_real(values, w.shape(), w.dtype()).with_layout(w.layout());
    Ok(())
}
