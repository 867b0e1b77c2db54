//! The settings of a rule: what they may be, and how a file holds them.

use super::{Convention, at_least_0};
use crate::{Array, Context, DType, Error, Result};

/// The numbers of a rule that do not change from step to step.
pub(super) trait Settings: Copy {
    /// The rule's name in errors and files.
    const NAME: &'static str;

    /// Each with its name in files.
    fn settings(&mut self) -> Vec<(&'static str, Setting<'_>)>;

    /// How many of the rule's arrays it has with these settings.
    fn states(&self) -> usize;
}

/// The rules whose settings a file may have.
const RULES: [&str; 3] = ["sgd", "adam", "lars"];
const LEARNING_RATE: &str = "learning_rate";

/// The rule and the setting that an array of this name is, if it is one.
pub(super) fn owner(path: &str) -> Option<(&str, &str)> {
    path.split_once('.').filter(|(owner, _)| RULES.contains(owner))
}

/// One of them, in a file an f64.
pub(super) enum Setting<'a> {
    /// At least 0.
    Number(&'a mut f64),
    /// At least 0 and below 1.
    Share(&'a mut f64),
    /// At least 0; none is −1 in a file.
    Limit(&'a mut Option<f64>),
    /// 0 or 1 in a file.
    Flag(&'a mut bool),
    /// 0 for MXNet's, 1 for PyTorch's.
    Convention(&'a mut Convention),
}

impl Setting<'_> {
    fn get(&self) -> f64 {
        match self {
            Setting::Number(v) | Setting::Share(v) => **v,
            Setting::Limit(v) => v.unwrap_or(-1.0),
            Setting::Flag(v) => f64::from(**v),
            Setting::Convention(v) => f64::from(**v == Convention::PyTorch),
        }
    }

    /// Takes a number from a file; [`check`] says whether it may be that.
    fn set(self, value: f64) {
        match self {
            Setting::Number(v) | Setting::Share(v) => *v = value,
            Setting::Limit(v) => *v = (value != -1.0).then_some(value),
            Setting::Flag(v) => *v = value != 0.0,
            Setting::Convention(v) => *v = if value == 0.0 { Convention::MxNet } else { Convention::PyTorch },
        }
    }

    fn check(&self, op: &'static str, name: &str) -> Result<()> {
        match self {
            Setting::Number(v) => at_least_0(op, name, **v),
            Setting::Share(v) if **v >= 1.0 => Err(Error::invalid(op, format!("{name} is {v}, it has to be below 1"))),
            Setting::Share(v) => at_least_0(op, name, **v),
            // Infinity limits nothing, which does no harm.
            Setting::Limit(Some(v)) if v.is_nan() || *v < 0.0 => {
                Err(Error::invalid(op, format!("{name} is {v}, it has to be at least 0")))
            }
            Setting::Limit(_) | Setting::Flag(_) | Setting::Convention(_) => Ok(()),
        }
    }
}

/// Errs unless a rule with these settings and this learning rate makes sense.
pub(super) fn check<S: Settings>(rule: &S, lr: f64) -> Result<()> {
    at_least_0(S::NAME, "the learning rate", lr)?;
    let mut rule = *rule;
    rule.settings().iter().try_for_each(|(name, s)| s.check(S::NAME, name))
}

/// As named arrays for a file.
pub(super) fn save<S: Settings>(rule: &S, lr: f64) -> Result<Vec<(String, Array)>> {
    let mut rule = *rule;
    let all = rule.settings().into_iter().map(|(name, s)| (name, s.get())).chain([(LEARNING_RATE, lr)]);
    let array = |(name, v)| Ok((format!("{}.{name}", S::NAME), Array::from_vec(vec![v], &[], &Context::Cpu)?));
    all.map(array).collect()
}

/// Reads settings one by one: all of them or, from files that are older than they are, none.
pub(super) struct Reader<S> {
    rule: S,
    lr: f64,
    read: usize,
}

impl<S: Settings> Reader<S> {
    /// What is not in the file stays as it is here.
    pub(super) fn new(rule: S, lr: f64) -> Self {
        Reader { rule, lr, read: 0 }
    }

    /// Takes the array `<owner>.<name>`.
    ///
    /// # Errors
    /// [`Error::Data`] for another rule's, an unknown one, or one that is no f64 in the setting's range.
    pub(super) fn setting(&mut self, path: &str, owner: &str, name: &str, a: &Array) -> Result<()> {
        let bad = |reason: String| Err(Error::Data { path: path.to_owned(), reason });
        if owner != S::NAME {
            return bad(format!("the states are those of {owner}, the optimizer is {}", S::NAME));
        }
        if a.dtype() != DType::F64 || a.len() != 1 {
            return bad("one f64 is expected".into());
        }
        let value = a.item()?;
        self.read += 1;
        if name == LEARNING_RATE {
            self.lr = value;
            return Ok(());
        }
        let Some((_, setting)) = self.rule.settings().into_iter().find(|(n, _)| *n == name) else {
            return bad(format!("{} has no such setting", S::NAME));
        };
        setting.set(value);
        let kept = self.rule.settings().into_iter().find(|(n, _)| *n == name).map(|(_, s)| s.get());
        if kept == Some(value) { Ok(()) } else { bad(format!("the setting cannot be {value}")) }
    }

    /// The rule and the learning rate.
    ///
    /// # Errors
    /// [`Error::Data`] when some settings are missing, or have values that make no sense.
    pub(super) fn finish(mut self) -> Result<(S, f64)> {
        let all = self.rule.settings().len() + 1;
        let bad = |reason: String| Error::Data { path: S::NAME.to_owned(), reason };
        if self.read != 0 && self.read != all {
            return Err(bad(format!("{} of {all} settings are there", self.read)));
        }
        if self.read > 0 {
            check(&self.rule, self.lr).map_err(|e| bad(e.to_string()))?;
        }
        Ok((self.rule, self.lr))
    }
}
