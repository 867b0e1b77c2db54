//! Data sets on the host: idx files, Fashion-MNIST, resizing, shuffling, prefetching.

mod download;
pub mod fashion_mnist;
pub mod idx;
mod image_set;
mod loader;
pub mod prefetch;
pub mod resize;
pub mod sampler;

pub use fashion_mnist::{Download, FashionMnist, Source, fashion_mnist};
pub use image_set::ImageSet;
pub use loader::{Batch, DataLoader, Epoch, load_data_fashion_mnist};
pub use prefetch::Prefetch;
pub use resize::{ResizePlan, Tap, resize_bilinear_u8};
pub use sampler::{Batches, LastBatch, Position, Sampler, permutation};
