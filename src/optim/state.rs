//! The states of all parameters by index, as named arrays.

use std::collections::BTreeMap;

use super::wide;
use crate::{Array, Context, DType, Error, Result, cpu::buffers::Buffer, cuda::capture};

/// The arrays of one parameter.
#[derive(Clone, Debug, Default)]
struct Entry {
    /// Updates so far.
    t: i64,
    /// One for each name; `None` until the first update.
    arrays: Vec<Option<Array>>,
    /// The f32 copy of a half-precision parameter.
    master: Option<Array>,
}

/// States by the parameter's index.
#[derive(Clone, Debug)]
pub(super) struct State {
    names: &'static [&'static str],
    entries: BTreeMap<usize, Entry>,
}

/// One parameter's state during an update.
pub(super) struct Slots<'a> {
    /// In the order of the names, ready to be written.
    pub(super) arrays: Vec<&'a mut Array>,
    pub(super) master: Option<&'a mut Array>,
}

impl State {
    pub(super) fn new(names: &'static [&'static str]) -> Self {
        State { names, entries: BTreeMap::new() }
    }

    /// The state of parameter `index`, made at its first update; the count of updates goes up. Of the names, the first `used`
    /// are made.
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
        entry.t = entry.t.saturating_add(1);
        let arrays = entry.arrays.iter_mut().take(used).flatten().collect();
        Ok(Slots { arrays, master: entry.master.as_mut() })
    }

    /// How often parameter `index` was updated.
    pub(super) fn updates(&self, index: usize) -> i64 {
        self.entries.get(&index).map_or(0, |e| e.t)
    }

    pub(super) fn save(&self) -> Result<Vec<(String, Array)>> {
        let mut out = Vec::new();
        for (index, e) in &self.entries {
            out.push((format!("{index}.t"), Array::from_vec(vec![e.t], &[], &Context::Cpu)?));
            for (name, a) in self.names.iter().zip(&e.arrays) {
                out.extend(a.iter().map(|a| (format!("{index}.{name}"), a.clone())));
            }
            out.extend(e.master.iter().map(|a| (format!("{index}.master"), a.clone())));
        }
        Ok(out)
    }

    pub(super) fn load(&mut self, arrays: &[(String, Array)]) -> Result<()> {
        let mut entries: BTreeMap<usize, Entry> = BTreeMap::new();
        for (path, a) in arrays {
            let unknown = || Error::Data {
                path: path.clone(),
                reason: format!("an optimizer's state has arrays <index>.t and <index>.{{{}, master}}", self.names.join(", ")),
            };
            let (index, name) = path.split_once('.').ok_or_else(unknown)?;
            let e = entries.entry(index.parse().map_err(|_| unknown())?).or_default();
            e.arrays.resize(self.names.len(), None);
            match name {
                "t" => e.t = (a.item()? as i64).max(0),
                "master" => e.master = Some(a.clone()),
                _ => {
                    let place = self.names.iter().position(|n| *n == name).ok_or_else(unknown)?;
                    e.arrays[place] = Some(a.clone());
                }
            }
        }
        self.entries = entries;
        Ok(())
    }
}

/// A copy of a half-precision parameter in `dtype`.
fn widened(w: &Array, dtype: DType) -> Result<Array> {
    crate::check::cast(&w.to_context(&Context::Cpu)?, dtype)?.to_layout(w.layout())?.to_context(&w.context())
}

/// Runs `host` on the parameter's master copy, or on itself where it has none, and rounds the result into the parameter.
pub(super) fn on_master(w: &mut Array, master: Option<&mut Array>, host: impl FnOnce(&mut Array) -> Result<()>) -> Result<()> {
    let Some(master) = master else { return host(w) };
    host(master)?;
    let values = Buffer::from_vec(master.as_slice::<f32>()?.to_vec());
    *w = Array::from_real(values, w.shape(), w.dtype()).with_layout(w.layout());
    Ok(())
}
