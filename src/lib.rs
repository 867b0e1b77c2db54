//! A CUDA-backed deep-learning framework: hand-written kernels that NVRTC compiles at run time, and a CPU path that checks
//! every one of them and takes over where there is no GPU. The vocabulary is that of MXNet Gluon and *Dive into Deep Learning*.
//!
//! ```
//! use hadal::{Tensor, Trainer, autograd, init, loss::L2, nn, optim::Sgd, try_gpu};
//!
//! let ctx = try_gpu(0); // gpu(0), or cpu(0) where there is none
//! let net = nn::Sequential::new().add(nn::Dense::new(8).tanh()).add(nn::Dense::new(1));
//! net.initialize(init::Xavier::new(), &ctx)?;
//! let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.3));
//!
//! let x = Tensor::arange(-1.0, 1.0, 0.1, &ctx)?.reshape(&[-1, 1])?;
//! let y = x.square()?;
//! for _ in 0..50 {
//!     let l = autograd::record(|| L2::new().forward(&net.forward(&x)?, &y))?;
//!     l.backward()?;
//!     trainer.step(x.len())?;
//! }
//! # Ok::<(), hadal::Error>(())
//! ```
//!
//! # Where to find what
//!
//! | to | see |
//! | --- | --- |
//! | make a tensor, compute with it, print it | [`Tensor`]; without gradients [`Array`] |
//! | choose a device | [`try_gpu`], [`gpu`], [`cpu`]; [`doctor`] says why a GPU is not found |
//! | differentiate | [`autograd::record`], [`Tensor::attach_grad`], [`Tensor::backward`]; [`autograd::pause`] for no gradients |
//! | build a net | [`nn`]: [`nn::Sequential`], [`nn::Dense`], [`nn::Conv2D`], …; a block of your own: [`block!`] |
//! | initialize it | [`nn::Block::initialize`] with one of [`init`] |
//! | take a model of the book's | [`models`] |
//! | load images | [`data::load_data_fashion_mnist`], [`data::DataLoader`]; other data ahead of time: [`data::Prefetch`] |
//! | train | [`Trainer`] with one of [`optim`], one of [`loss`]; whole runs: [`train_ch5`], [`train::train_run`] |
//! | evaluate | [`evaluate_accuracy`], [`train::evaluate_with`] |
//! | save and load | [`nn::Block::save`], [`nn::Block::load`], [`Trainer::save_states`] |
//! | train in bf16 or f16 | [`nn::Block::cast`], [`Trainer::loss_scale`]; f32 products as TF32: [`precision`] |
//! | get the same numbers again | [`random::seed`]; in threads: [`random`] |
//! | capture a step on a GPU | [`cuda::Graph`] |
//! | write an operation | [`autograd::Op`], its kernel: [`cuda::Source`], its tests: [`check`] |
//! | follow the book | [`d2l`] has the functions that it defines, `examples/` its chapters |
//!
//! PyTorch's names lead here, too: search this page for `cat`, `Linear`, `view`, `no_grad`, `state_dict`, …
#![warn(missing_docs)]
#![deny(unsafe_code)]

#[macro_use]
#[doc(hidden)]
pub mod output;

mod array;
pub mod autograd;
pub mod check;
mod context;
mod conv;
mod cpu;
pub mod cuda;
pub mod d2l;
pub mod data;
mod display;
mod doctor;
mod dtype;
mod error;
pub mod files;
mod gemm;
pub mod guide;
mod hybrid;
pub mod init;
pub mod loss;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod precision;
pub mod prelude;
pub mod random;
mod settings;
pub mod shape;
mod tensor;
#[cfg(test)]
mod testing;
pub mod train;
mod trainer;

pub use array::{Array, Storage};
pub use context::{Context, MemoryStats, cpu, gpu, num_gpus, try_gpu};
pub use doctor::doctor;
pub use dtype::{CpuStorage, DType, Element};
pub use error::{Error, Result};
pub use shape::Layout;
pub use tensor::Tensor;
pub use train::{evaluate_accuracy, train_ch3, train_ch5};
pub use trainer::Trainer;

/// The user's cache folder for hadal.
pub(crate) fn user_cache() -> Option<std::path::PathBuf> {
    let path = |v: &str| std::env::var_os(v).filter(|p| !p.is_empty()).map(std::path::PathBuf::from);
    path("XDG_CACHE_HOME")
        .or_else(|| path("LOCALAPPDATA"))
        .or_else(|| path("HOME").map(|h| h.join(".cache")))
        .map(|c| c.join("hadal"))
}

/// The README's programs compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
