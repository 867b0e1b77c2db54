//! Layers, and blocks made of them: [`Sequential`], [`Dense`], [`Conv2D`], [`BatchNorm`], …
//!
//! A block of your own is a struct of layers, declared in [`block!`](crate::block), and a [`Forward`]:
//!
//! ```
//! use hadal::{Result, Tensor, cpu, init, nn::{self, Block, Forward}};
//!
//! hadal::block! {
//!     /// Two layers with a short cut around the second.
//!     struct Mixer { first: nn::Dense, second: nn::Dense }
//! }
//!
//! impl Forward for Mixer {
//!     fn forward(&self, x: &Tensor) -> Result<Tensor> {
//!         let h = self.first.forward(x)?.relu()?;
//!         &h + self.second.forward(&h)?
//!     }
//! }
//!
//! let net = Mixer { first: nn::Dense::new(8), second: nn::Dense::new(8) };
//! net.initialize(init::Xavier::new(), &cpu())?;
//! assert_eq!(net.forward(&Tensor::ones(&[2, 5], &cpu())?)?.shape(), [2, 8]);
//! assert_eq!(net.collect().len(), 4);
//! # Ok::<(), hadal::Error>(())
//! ```

mod basic;
mod block;
mod conv;
mod norm;
mod parameter;
mod pool;
mod sequential;
mod store;

pub use basic::{Activation, Dense, Dropout, Flatten};
pub use block::{Block, Forward, Hybridize, Info, Structure};
pub use conv::Conv2D;
pub use norm::BatchNorm;
pub use parameter::{Parameter, Role};
pub use pool::{AvgPool2D, GlobalAvgPool2D, GlobalMaxPool2D, MaxPool2D};
pub use sequential::Sequential;
pub use store::metadata;
pub(crate) use store::{read_all, write_arrays};
