//! What nearly every program needs: `use hadal::prelude::*;`.
//!
//! ```
//! use hadal::prelude::*;
//! let net = nn::Sequential::new().add(nn::Dense::new(2));
//! net.initialize(init::Xavier::new(), &cpu())?;
//! let x = Tensor::ones(&[1, 3], &cpu())?.attach_grad();
//! autograd::record(|| net.forward(&x)?.sum(&[]))?.backward()?;
//! assert_eq!(x.grad()?.shape(), [1, 3]);
//! # Ok::<(), hadal::Error>(())
//! ```

pub use crate::{
    Array, Context, DType, Error, Result, Tensor, Trainer,
    autograd::{self, Op, Saved},
    cpu, data, gpu, init, loss,
    nn::{self, Block, Forward},
    optim, try_gpu,
};
