//! Losses under Gluon's names; each gives one loss for every sample of the batch.
//!
//! ```
//! use hadal::{Tensor, cpu, loss::L2};
//! let pred = Tensor::from_vec(vec![1f32, 2., 3., 4.], &[2, 2], &cpu())?;
//! let loss = L2::new().forward(&pred, &Tensor::zeros(&[2, 2], &cpu())?)?;
//! assert_eq!(loss.to_vec()?, [1.25, 6.25]); // the means of ½·1, ½·4 and of ½·9, ½·16
//! # Ok::<(), hadal::Error>(())
//! ```

use crate::{
    Result, Tensor,
    autograd::apply1,
    ops::{self, PairLoss, PairLossKind},
};

/// ln Σ exp(xⱼ) − x\[label\] on logits: [`ops::SoftmaxCrossEntropy`].
///
/// ```
/// use hadal::{Tensor, cpu, loss::SoftmaxCrossEntropy};
/// let logits = Tensor::zeros(&[2, 10], &cpu())?;
/// let label = Tensor::from_vec(vec![3i64, 9], &[2], &cpu())?;
/// let loss = SoftmaxCrossEntropy::new().forward(&logits, &label)?.to_vec()?;
/// assert!((loss[0] - 10f32.ln()).abs() < 1e-6);
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[doc(alias("CrossEntropyLoss", "NLLLoss", "nll_loss"))]
pub struct SoftmaxCrossEntropy(ops::SoftmaxCrossEntropy);

impl SoftmaxCrossEntropy {
    /// Classes on the last axis, labels as class numbers, weight 1.
    pub fn new() -> Self {
        Self::default()
    }

    /// The axis of the classes.
    pub fn axis(mut self, axis: isize) -> Self {
        self.0.axis = axis;
        self
    }

    /// True (the default) for class numbers, false for distributions of the prediction's shape.
    pub fn sparse_label(mut self, sparse: bool) -> Self {
        self.0.sparse_label = sparse;
        self
    }

    /// True when predictions are log-probabilities already (Gluon's word for them is "logits").
    pub fn from_logits(mut self, normalized: bool) -> Self {
        self.0.from_logits = normalized;
        self
    }

    /// A factor on every loss.
    pub fn weight(mut self, weight: f64) -> Self {
        self.0.weight = weight;
        self
    }

    /// Losses (N) of predictions (N, …, C) and labels (N, …).
    ///
    /// # Errors
    /// When shapes or dtypes do not fit; on the CPU for a label outside of 0..C (on the GPU its loss is NaN).
    pub fn forward(&self, pred: &Tensor, label: &Tensor) -> Result<Tensor> {
        apply1(self.0, &[pred, label])
    }
}

macro_rules! pair_loss {
    ($(#[$doc:meta])* $name:ident, $kind:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct $name(PairLoss);

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl $name {
            /// With weight 1.
            pub fn new() -> Self {
                Self(PairLoss { kind: PairLossKind::$kind, weight: 1.0 })
            }

            /// A factor on every loss.
            pub fn weight(mut self, weight: f64) -> Self {
                self.0.weight = weight;
                self
            }

            /// Losses (N) of predictions (N, …) and labels of as many samples and elements.
            ///
            /// # Errors
            /// When the numbers of samples or elements or the dtypes differ.
            pub fn forward(&self, pred: &Tensor, label: &Tensor) -> Result<Tensor> {
                apply1(self.0, &[pred, label])
            }
        }
    };
}

pair_loss! {
    /// weight/2 · mean (x − z)² over each sample.
    #[doc(alias("MSELoss", "mse_loss"))]
    L2, Squared
}

pair_loss! {
    /// weight · mean |x − z| over each sample.
    #[doc(alias("L1Loss", "l1_loss"))]
    L1, Absolute
}

pair_loss! {
    /// weight · mean of −z·ln σ(x) − (1 − z)·ln(1 − σ(x)) over each sample, on logits x.
    ///
    /// ```
    /// use hadal::{Tensor, cpu, loss::SigmoidBinaryCrossEntropy};
    /// let x = Tensor::from_vec(vec![0f32, 1e4], &[2], &cpu())?;
    /// let z = Tensor::from_vec(vec![1f32, 1.], &[2], &cpu())?;
    /// let loss = SigmoidBinaryCrossEntropy::new().forward(&x, &z)?.to_vec()?;
    /// assert!((loss[0] - 2f32.ln()).abs() < 1e-6 && loss[1] == 0.0);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[doc(alias("BCE", "BCELoss", "BCEWithLogitsLoss"))]
    SigmoidBinaryCrossEntropy, SigmoidCrossEntropy
}

impl SigmoidBinaryCrossEntropy {
    /// True when predictions are probabilities σ(x) already.
    pub fn from_sigmoid(mut self, probabilities: bool) -> Self {
        self.0.kind = if probabilities { PairLossKind::ProbabilityCrossEntropy } else { PairLossKind::SigmoidCrossEntropy };
        self
    }
}
