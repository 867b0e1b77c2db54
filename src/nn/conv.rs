//! [`Conv2D`].

use super::{
    Forward, Info, Parameter, Role, Structure,
    basic::{Function, activations},
};
use crate::{
    Error, Layout, Result, Tensor,
    init::Init,
    ops::{Conv2d, Conv2dOptions, Padding, Pair},
};

/// Cross-correlation of (N, C, H, W) with weights (O, C/groups, kh, kw), plus a bias for each output channel.
///
/// `y[n,o,i,j] = b[o] + Σ_{c,r,s} w[o,c,r,s] · x[n, c, i·stride − pad + r·dilation, j·stride − pad + s·dilation]`
///
/// ```
/// use hadal::{Tensor, cpu, init, nn::{Block, Conv2D, Forward}};
/// let conv = Conv2D::new(1, (3, 5)).padding((0, 1)).stride((3, 4));
/// conv.initialize(init::Xavier::new(), &cpu())?;
/// assert_eq!(conv.forward(&Tensor::ones(&[1, 1, 8, 8], &cpu())?)?.shape(), [1, 1, 2, 2]);
/// # Ok::<(), hadal::Error>(())
/// ```
pub struct Conv2D {
    info: Info,
    channels: usize,
    kernel: Pair,
    options: Conv2dOptions,
    function: Function,
    weight: Parameter,
    bias: Option<Parameter>,
}

impl Conv2D {
    /// With that many output channels and that window; stride 1, no padding.
    pub fn new(channels: usize, kernel: impl Into<Pair>) -> Self {
        let kernel = kernel.into();
        let [kh, kw] = kernel.0;
        Conv2D {
            info: Info::new("conv"),
            channels,
            kernel,
            options: Conv2dOptions::new(),
            function: Function(None),
            weight: Parameter::new(Role::Weight, &[channels, 0, kh, kw]),
            bias: Some(Parameter::new(Role::Offset, &[channels])),
        }
    }

    /// Steps of the window.
    pub fn stride(mut self, stride: impl Into<Pair>) -> Self {
        self.options = self.options.stride(stride);
        self
    }

    /// Zeros around the input: one number, rows and columns for both sides, or top, left, bottom, right.
    pub fn padding(mut self, padding: impl Into<Padding>) -> Self {
        self.options = self.options.padding(padding);
        self
    }

    /// Distance of the window's elements.
    pub fn dilation(mut self, dilation: impl Into<Pair>) -> Self {
        self.options = self.options.dilation(dilation);
        self
    }

    /// Splits the channels into independent groups.
    pub fn groups(mut self, groups: usize) -> Self {
        self.options = self.options.groups(groups);
        self
    }

    /// Without the bias.
    pub fn no_bias(mut self) -> Self {
        self.bias = None;
        self
    }

    /// Declares the number of input channels; after `groups`.
    pub fn in_channels(mut self, channels: usize) -> Self {
        let [kh, kw] = self.kernel.0;
        self.weight = Parameter::new(Role::Weight, &[self.channels, channels / self.options.groups.max(1), kh, kw]);
        self
    }

    /// An initializer of its own for the weight.
    pub fn weight_init(self, init: impl Init + 'static) -> Self {
        self.weight.set_init(init);
        self
    }

    /// A further layer with this one's parameters and options, and an activation of its own; see [`super::Dense::tied`].
    pub fn tied(&self) -> Self {
        Conv2D {
            info: Info::new("conv"),
            channels: self.channels,
            kernel: self.kernel,
            options: self.options,
            function: Function(None),
            weight: self.weight.clone(),
            bias: self.bias.clone(),
        }
    }

    /// The weight.
    pub fn weight(&self) -> &Parameter {
        &self.weight
    }

    /// The bias.
    pub fn bias(&self) -> Option<&Parameter> {
        self.bias.as_ref()
    }

    /// Weight and bias for `x`.
    fn operands(&self, x: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let shape = x.shape();
        let &[_, c, _, _] = shape.as_slice() else {
            return Err(Error::shape("conv2d", "an input (N, C, H, W) is needed", &[&shape]));
        };
        let groups = self.options.groups;
        if groups == 0 || c % groups != 0 || c == 0 {
            return Err(Error::shape("conv2d", format!("{c} input channels do not split into {groups} groups"), &[&shape]));
        }
        let [kh, kw] = self.kernel.0;
        let w = self.weight.ready(&[self.channels, c / groups, kh, kw])?;
        if x.context().is_gpu() && x.layout() == Layout::ChannelsLast {
            // As the kernels read it, once instead of in every pass; its gradients come in this layout too.
            self.weight.lay_out(Layout::ChannelsLast)?;
        }
        let b = self.bias.as_ref().map(|b| b.ready(&[self.channels])).transpose()?;
        // What does not fit is told here, where it is known whose it is.
        Conv2d(self.options).check(&shape, &w.shape(), b.as_ref().map(Tensor::shape).as_deref())?;
        Ok((w, b))
    }

    fn run(&self, x: &Tensor) -> Result<Tensor> {
        let (w, b) = self.operands(x)?;
        self.function.apply(x.conv2d(&w, b.as_ref(), self.options)?)
    }
}

activations!(Conv2D);

impl Forward for Conv2D {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.info.at(self.run(x))
    }
}

impl Structure for Conv2D {
    fn info(&self) -> Option<&Info> {
        Some(&self.info)
    }

    fn own_parameters(&self) -> Vec<(&'static str, &Parameter)> {
        let mut all = vec![("weight", &self.weight)];
        all.extend(self.bias.as_ref().map(|b| ("bias", b)));
        all
    }

    fn describe(&self) -> String {
        let Conv2dOptions { stride, padding: [top, left, bottom, right], dilation, groups, .. } = self.options;
        let inputs = match self.weight.shape().get(1) {
            Some(&n) if n > 0 => (n * groups).to_string(),
            _ => "?".to_owned(),
        };
        let padding =
            if (top, left) == (bottom, right) { Pair([top, left]).to_string() } else { format!("{:?}", self.options.padding) };
        let mut s =
            format!("Conv2D({inputs} -> {}, kernel {}, stride {}, padding {padding}", self.channels, self.kernel, Pair(stride));
        if dilation != [1, 1] {
            s += &format!(", dilation {}", Pair(dilation));
        }
        if groups != 1 {
            s += &format!(", groups {groups}");
        }
        s += &self.function.describe();
        s + if self.bias.is_some() { ")" } else { ", no bias)" }
    }
}
