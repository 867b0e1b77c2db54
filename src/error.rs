//! The one error type: a variant says which op, layer or file failed, and with which shapes or bytes.

use std::{fmt, path::PathBuf};

use crate::{Context, DType};

/// `Result` with hadal's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, in the words of the person who has to mend it.
///
/// [`Debug`](fmt::Debug) prints the same sentence as [`Display`](fmt::Display), sources included, since that is what a program shows whose
/// `main` returns an error, and what `unwrap` panics with.
///
/// ```
/// use hadal::{Tensor, cpu};
/// let e = Tensor::ones(&[2, 3], &cpu())?.matmul(&Tensor::ones(&[2, 3], &cpu())?).unwrap_err();
/// assert_eq!(format!("{e:?}"), e.to_string());
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Operand shapes that do not fit together.
    #[error("{op}: {reason} (shapes {})", Shapes(.shapes))]
    Shape {
        /// The operation, such as `conv2d`.
        op: &'static str,
        /// What was expected and what was found.
        reason: String,
        /// The shapes of all operands, in order.
        shapes: Vec<Vec<usize>>,
    },

    /// An attribute or argument out of its range.
    #[error("{op}: {reason}")]
    Invalid {
        /// The operation or function.
        op: &'static str,
        /// What is wrong with which argument.
        reason: String,
    },

    /// A dtype that the operation cannot take.
    #[error("{op}: {dtype} is not supported here ({hint})")]
    DType {
        /// The operation.
        op: &'static str,
        /// The dtype found.
        dtype: DType,
        /// What would work.
        hint: &'static str,
    },

    /// Operands of different dtypes where one is needed.
    #[error("{op}: operands are {left} and {right}, the same float type is needed; convert one with `cast`")]
    DTypes {
        /// The operation.
        op: &'static str,
        /// The dtype of the first operand.
        left: DType,
        /// The dtype of the other one.
        right: DType,
    },

    /// Operands that live on different devices.
    #[error("{op}: operands are on {left} and {right}; move one with `to_context`")]
    Context {
        /// The operation.
        op: &'static str,
        /// Where the first operand lives.
        left: Context,
        /// Where the other one lives.
        right: Context,
    },

    /// A failure inside a layer, with the layer's path (`net[4].conv1`).
    #[error("{path}: {source}")]
    Layer {
        /// The layer's path from the root of the net.
        path: String,
        /// What failed there.
        #[source]
        source: Box<Error>,
    },

    /// Autograd was asked for something that the tape cannot give.
    #[error("autograd: {0}")]
    Autograd(String),

    /// A parameter that is not ready: not initialized, or of unknown shape.
    #[error("parameter {name}: {reason}")]
    Parameter {
        /// The parameter's name.
        name: String,
        /// What is missing.
        reason: String,
    },

    /// No such GPU, no driver, or no NVRTC; the text says which file was looked for, and where.
    #[error("{context}: {reason}")]
    Device {
        /// The device that was asked for.
        context: Context,
        /// Why it cannot be used.
        reason: String,
    },

    /// The device or the host has no room for an allocation.
    #[error("{context}: out of memory: {requested} bytes asked for, {in_use} in use by arrays, {cached} cached, {free} free")]
    OutOfMemory {
        /// The device.
        context: Context,
        /// Bytes asked for.
        requested: usize,
        /// Bytes held by live arrays of this process.
        in_use: usize,
        /// Bytes held by the pool for reuse.
        cached: usize,
        /// Bytes that the driver reports as free; 0 for the host.
        free: usize,
    },

    /// A CUDA driver call or a kernel failed.
    #[error("{context}: {call}: {reason}")]
    Cuda {
        /// The device.
        context: Context,
        /// The driver call or the kernel.
        call: String,
        /// The driver's own words.
        reason: String,
    },

    /// Something that a CUDA graph cannot hold, or that would make its replays wrong; see [`crate::cuda::Graph`].
    #[error("{context}: {reason}")]
    Graph {
        /// The device.
        context: Context,
        /// What was done, why a graph cannot have it, and what to do instead.
        reason: String,
    },

    /// A kernel source that NVRTC refused; the log has file and line.
    #[error("{file}: NVRTC refused it for {arch}:\n{log}")]
    Compile {
        /// The kernel file.
        file: String,
        /// The target architecture.
        arch: String,
        /// NVRTC's log.
        log: String,
    },

    /// A file or folder that could not be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },

    /// A file whose content is not what it should be.
    #[error("{path}: {reason}")]
    Data {
        /// The file.
        path: String,
        /// What was expected, what was found, and what to do.
        reason: String,
    },

    /// A numeric check (gradient, parity, fixture) that failed.
    #[error("check: {0}")]
    Check(String),
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// A shape error of `op`, listing the shapes of all operands.
    pub fn shape(op: &'static str, reason: impl Into<String>, shapes: &[&[usize]]) -> Self {
        Error::Shape { op, reason: reason.into(), shapes: shapes.iter().map(|s| s.to_vec()).collect() }
    }

    /// An argument error of `op`.
    pub fn invalid(op: &'static str, reason: impl Into<String>) -> Self {
        Error::Invalid { op, reason: reason.into() }
    }

    /// A file-system error on `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { path: path.into(), source }
    }

    /// Wraps the error with the path of the layer in which it happened; a path already there is kept.
    pub fn at(self, path: &str) -> Self {
        match self {
            Error::Layer { .. } => self,
            _ if path.is_empty() => self,
            source => Error::Layer { path: path.to_owned(), source: Box::new(source) },
        }
    }
}

/// Shapes as `(2, 3), (3,)`.
struct Shapes<'a>(&'a [Vec<usize>]);

impl fmt::Display for Shapes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, s) in self.0.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{}", crate::shape::Display(s))?;
        }
        Ok(())
    }
}
