//! Pooling layers: [`MaxPool2D`], [`AvgPool2D`], [`GlobalAvgPool2D`], [`GlobalMaxPool2D`].

use super::{Forward, Info, Structure};
use crate::{
    Result, Tensor,
    ops::{Padding, Pair, PoolOptions},
};

macro_rules! pool {
    ($(#[$doc:meta])* $name:ident, $method:ident) => {
        $(#[$doc])*
        pub struct $name {
            info: Info,
            options: PoolOptions,
        }

        super::block::short!($name);

        impl $name {
            /// With that window; the stride is the window's size, as in Gluon.
            pub fn new(kernel: impl Into<Pair>) -> Self {
                $name { info: Info::new("pool"), options: PoolOptions::new(kernel) }
            }

            /// Steps of the window; windows may overlap.
            pub fn stride(mut self, stride: impl Into<Pair>) -> Self {
                self.options = self.options.stride(stride);
                self
            }

            /// Padding: one number, rows and columns for both sides, or top, left, bottom, right.
            pub fn padding(mut self, padding: impl Into<Padding>) -> Self {
                self.options = self.options.padding(padding);
                self
            }

            /// Rounds the output's size up instead of down.
            pub fn ceil_mode(mut self, on: bool) -> Self {
                self.options = self.options.ceil_mode(on);
                self
            }
        }

        impl Forward for $name {
            fn forward(&self, x: &Tensor) -> Result<Tensor> {
                self.info.at(x.$method(self.options))
            }
        }

        impl Structure for $name {
            fn info(&self) -> Option<&Info> {
                Some(&self.info)
            }

            fn describe(&self) -> String {
                let PoolOptions { kernel, stride, padding: [top, left, ..], .. } = self.options;
                let (stride, padding) = (Pair(stride.unwrap_or(kernel)), Pair([top, left]));
                format!("{}(kernel {}, stride {stride}, padding {padding})", stringify!($name), Pair(kernel))
            }
        }
    };
}

pool!(
    /// The largest element of each window.
    ///
    /// ```
    /// use hadal::{Tensor, cpu, nn::{Forward, MaxPool2D}};
    /// let x = Tensor::arange(0.0, 16.0, 1.0, &cpu())?.reshape(&[1, 1, 4, 4])?;
    /// assert_eq!(MaxPool2D::new(3).forward(&x)?.to_vec()?, [10.0]);
    /// assert_eq!(MaxPool2D::new(3).padding(1).stride(2).forward(&x)?.to_vec()?, [5., 7., 13., 15.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    MaxPool2D, max_pool2d
);
pool!(
    /// The mean of each window.
    AvgPool2D, avg_pool2d
);

impl AvgPool2D {
    /// Whether padding counts as elements of value 0 (the default) or not at all.
    pub fn count_include_pad(mut self, on: bool) -> Self {
        self.options = self.options.count_include_pad(on);
        self
    }
}

macro_rules! global {
    ($(#[$doc:meta])* $name:ident, $method:ident) => {
        $(#[$doc])*
        pub struct $name(Info);

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        super::block::short!($name);

        impl $name {
            /// The layer.
            pub fn new() -> Self {
                $name(Info::new("pool"))
            }
        }

        impl Forward for $name {
            fn forward(&self, x: &Tensor) -> Result<Tensor> {
                self.0.at(x.$method())
            }
        }

        impl Structure for $name {
            fn info(&self) -> Option<&Info> {
                Some(&self.0)
            }

            fn describe(&self) -> String {
                stringify!($name).to_owned()
            }
        }
    };
}

global!(
    /// The mean of each channel: (N, C, H, W) becomes (N, C, 1, 1).
    GlobalAvgPool2D, global_avg_pool2d
);
global!(
    /// The maximum of each channel: (N, C, H, W) becomes (N, C, 1, 1).
    GlobalMaxPool2D, global_max_pool2d
);
