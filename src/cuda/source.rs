//! Kernel sources: hadal's own and a user's, compiled for a dtype (and, where it pays, a layer's shape) at first use.

use std::{
    borrow::Cow,
    hash::{Hash, Hasher},
};

use super::{HEADERS, KERNELS, splice::splice};
use crate::{DType, Error, Result};

/// The value of a `-D` option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Define {
    /// A dtype by its name in kernel sources.
    Type(DType),
    /// An integer.
    Int(i64),
    /// A word.
    Word(&'static str),
}

impl From<DType> for Define {
    fn from(d: DType) -> Self {
        Define::Type(d)
    }
}

impl From<i64> for Define {
    fn from(i: i64) -> Self {
        Define::Int(i)
    }
}

impl From<&'static str> for Define {
    fn from(w: &'static str) -> Self {
        Define::Word(w)
    }
}

/// A CUDA source file of the user's, compiled by NVRTC when a kernel of it is first launched.
///
/// `#include "common.cuh"` and hadal's other headers (see [`HEADERS`]) are found, and the user's own that
/// [`Source::with_headers`] gives. Compiled images are kept like those of hadal's own kernels: in the process for each
/// device and set of defines, and on disk (`HADAL_CACHE`). Messages of the compiler name the user's file and line.
///
/// A source is best a `static`: it is known by where its text is.
///
/// ```
/// use hadal::cuda::Source;
/// static TWICE: Source = Source::new(
///     "twice.cu",
///     r#"#include "common.cuh"
/// extern "C" __global__ void twice(scalar_t* y, const scalar_t* x, i64 n) {
///   GRID_STRIDE(i, n) store(y + i, 2 * load(x + i));
/// }"#,
/// );
/// assert!(TWICE.expand()?.contains("#line 2 \"twice.cu\""));
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Source {
    file: &'static str,
    /// `None` for a file of `kernels/`.
    text: Option<&'static str>,
    headers: &'static [(&'static str, &'static str)],
}

impl PartialEq for Source {
    /// By place, not by letter: it is looked up at each launch.
    fn eq(&self, other: &Self) -> bool {
        let place = |s: &Self| (s.text.map(|t| (t.as_ptr(), t.len())), s.headers.as_ptr(), s.headers.len());
        self.file == other.file && place(self) == place(other)
    }
}

impl Eq for Source {}

impl Hash for Source {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.file.hash(state);
        self.text.map(str::as_ptr).hash(state);
    }
}

impl Source {
    /// The source `text` under the name that messages shall show: `Source::new("swish.cu", include_str!("swish.cu"))`.
    ///
    /// Text made at run time can be had for the life of the process by [`String::leak`].
    pub const fn new(file: &'static str, text: &'static str) -> Self {
        Source { file, text: Some(text), headers: &[] }
    }

    /// The same with headers of its own, as pairs of name and text; they come before hadal's of the same name.
    pub const fn with_headers(self, headers: &'static [(&'static str, &'static str)]) -> Self {
        Source { headers, ..self }
    }

    /// The file of that name in `kernels/`.
    pub(super) const fn own(file: &'static str) -> Self {
        Source { file, text: None, headers: &[] }
    }

    /// True for a file of `kernels/`.
    pub(super) fn is_own(&self) -> bool {
        self.text.is_none()
    }

    /// The name shown in messages.
    pub fn file(&self) -> &'static str {
        self.file
    }

    /// The text that NVRTC gets: included headers in their places, with `#line` for each file.
    ///
    /// # Errors
    /// Never for a source made by [`Source::new`].
    pub fn expand(&self) -> Result<String> {
        self.expanded().map(Cow::into_owned)
    }

    /// [`Source::expand`] without a copy of hadal's own.
    pub(super) fn expanded(&self) -> Result<Cow<'static, str>> {
        let Some(text) = self.text else {
            let own = KERNELS.iter().find(|(name, _)| *name == self.file).map(|(_, text)| Cow::Borrowed(*text));
            return own.ok_or_else(|| Error::invalid("kernel", format!("there is no kernel file {}", self.file)));
        };
        let find = |name: &str| {
            let of = |list: &[(&'static str, &'static str)]| list.iter().find(|(n, _)| *n == name).map(|(_, text)| *text);
            let own = of(self.headers).map(|text| (name.to_owned(), text));
            own.or_else(|| of(HEADERS).map(|text| (format!("kernels/{name}"), text)))
        };
        Ok(splice(self.file, text, &mut Vec::new(), &find).into())
    }
}

/// `-Dname=value` for each define.
pub(super) fn options(defines: &[(&'static str, Define)]) -> Vec<String> {
    let value = |d: &Define| match d {
        Define::Type(t) => t.cuda_name().to_owned(),
        Define::Int(i) => i.to_string(),
        Define::Word(w) => (*w).to_owned(),
    };
    defines.iter().map(|(name, d)| format!("-D{name}={}", value(d))).collect()
}
