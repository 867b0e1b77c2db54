//! The models by name, with the settings of the book's runs.

use super::{
    VGG11, VGG13, VGG16, VGG19, alexnet::alexnet_of, bottleneck::bottleneck_of, densenet::densenet_of, densenet::densenet121_of,
    googlenet::googlenet_of, lenet, linear_regression, mlp::dropout_mlp_of, mlp::mlp_of, nin::nin_of, resnet::resnet_of,
    softmax_regression, vgg::vgg_of,
};
use crate::{
    Error, Result,
    init::{Init, Normal, Xavier},
    nn::Sequential,
};

/// What a model can be built with; [`Default`] is the book's model at full width for 10 classes.
///
/// ```
/// use hadal::models::{self, Options};
/// let net = models::by_name("vgg11", &Options { ratio: 4, hidden: Some(256), ..Options::default() })?;
/// # assert!(net.to_string().contains("-> 16, kernel 3x3") && net.to_string().contains("-> 256, relu"));
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Classes, the outputs of the last layer. Linear regression has one output whatever this says.
    pub classes: usize,
    /// Divides the channels of all convolutions, rounded down, but leaves one at least; 1 changes nothing.
    pub ratio: usize,
    /// Units of the hidden dense layers instead of the book's 256 or 4096.
    pub hidden: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Options::new(10)
    }
}

impl Options {
    /// The book's model for that many classes.
    pub fn new(classes: usize) -> Self {
        Options { classes, ratio: 1, hidden: None }
    }

    /// The channels of a convolution that has `full` of them in the book.
    pub(super) fn channels(&self, full: usize) -> usize {
        (full / self.ratio.max(1)).max(1)
    }

    /// The units of a hidden dense layer that has `full` of them in the book.
    pub(super) fn units(&self, full: usize) -> usize {
        self.hidden.unwrap_or(full)
    }
}

/// A model with the settings that the book trains it with.
///
/// Where the book trains only one member of a family (VGG-11, ResNet-18, its own DenseNet), the others have that one's settings.
///
/// ```
/// use hadal::{cpu, models};
/// let card = models::card("resnet18")?;
/// assert_eq!((card.input, card.batch_size, card.learning_rate), (&[1, 96, 96][..], 256, 0.05));
/// assert_eq!(card.resize(), Some(96));
/// let net = card.build(&card.options())?;
/// net.initialize(card.init(), &cpu())?;
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Card {
    /// The name, such as `vgg11`.
    pub name: &'static str,
    /// Its full name and source.
    pub about: &'static str,
    /// The shape of one sample: (C, H, W) for images, (features,) for linear regression.
    pub input: &'static [usize],
    /// Samples in a step.
    pub batch_size: usize,
    /// Learning rate of plain SGD.
    pub learning_rate: f64,
    /// Passes over the training data.
    pub epochs: usize,
    /// What the book's run divides the channels by: 4 for VGG, else 1.
    pub ratio: usize,
    /// False for linear regression, which predicts numbers.
    pub classifies: bool,
    /// Whether it has channels that [`Options::ratio`] divides.
    pub takes_ratio: bool,
    /// Whether it has hidden dense layers, whose width [`Options::hidden`] sets.
    pub takes_hidden: bool,
    start: Start,
    make: fn(&Options) -> Sequential,
}

/// First values of weights.
#[derive(Clone, Copy, Debug)]
enum Start {
    Normal,
    Xavier,
}

impl Card {
    /// The options of the book's run: 10 classes, the channels divided by [`Card::ratio`].
    pub fn options(&self) -> Options {
        Options { ratio: self.ratio, ..Options::default() }
    }

    /// The side that 28x28 images are resized to, if they are.
    pub fn resize(&self) -> Option<usize> {
        match self.input {
            [_, 28, 28] => None,
            [_, height, _] => Some(*height),
            _ => None,
        }
    }

    /// The weights' first values: N(0, 0.01²) for regressions and perceptrons, Xavier's for convolutional nets.
    pub fn init(&self) -> Box<dyn Init> {
        match self.start {
            Start::Normal => Box::new(Normal(0.01)),
            Start::Xavier => Box::new(Xavier::new()),
        }
    }

    /// The net, not initialized.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a number is 0, or an option is given that the model has no place for.
    pub fn build(&self, options: &Options) -> Result<Sequential> {
        let bad = |reason: String| Err(Error::invalid("models", format!("{}: {reason}", self.name)));
        if options.classes == 0 || options.ratio == 0 || options.hidden == Some(0) {
            return bad(format!("classes, ratio and hidden units are at least 1, not {options:?}"));
        }
        if options.ratio != 1 && !self.takes_ratio {
            return bad(format!("a channel ratio ({}) is given, but its channels are fixed", options.ratio));
        }
        if let (Some(units), false) = (options.hidden, self.takes_hidden) {
            return bad(format!("{units} hidden units are asked for, but it has no hidden dense layer of free width"));
        }
        Ok((self.make)(options))
    }
}

/// All models, smallest first.
pub const CARDS: &[Card] = &[
    Card {
        name: "linear_regression",
        about: "linear regression",
        input: &[2],
        batch_size: 10,
        learning_rate: 0.03,
        epochs: 3,
        classifies: false,
        ..card_of(|_| linear_regression())
    },
    Card {
        name: "softmax_regression",
        about: "softmax regression",
        learning_rate: 0.1,
        ..card_of(|o| softmax_regression(o.classes))
    },
    Card { name: "mlp", about: "a perceptron with one hidden layer", ..perceptron(mlp_of) },
    Card { name: "dropout_mlp", about: "a perceptron with dropout, Srivastava et al. 2014", ..perceptron(dropout_mlp_of) },
    Card {
        name: "lenet",
        about: "LeNet, LeCun et al. 1998",
        learning_rate: 0.9,
        start: Start::Xavier,
        ..card_of(|o| lenet(o.classes))
    },
    Card {
        name: "alexnet",
        about: "AlexNet, Krizhevsky et al. 2012",
        input: &[1, 224, 224],
        batch_size: 128,
        learning_rate: 0.01,
        takes_hidden: true,
        ..convolutional(alexnet_of)
    },
    Card { name: "vgg11", about: "VGG-11, Simonyan and Zisserman 2015", ..vgg(|o| vgg_of(VGG11, o)) },
    Card { name: "vgg13", about: "VGG-13, Simonyan and Zisserman 2015", ..vgg(|o| vgg_of(VGG13, o)) },
    Card { name: "vgg16", about: "VGG-16, Simonyan and Zisserman 2015", ..vgg(|o| vgg_of(VGG16, o)) },
    Card { name: "vgg19", about: "VGG-19, Simonyan and Zisserman 2015", ..vgg(|o| vgg_of(VGG19, o)) },
    Card {
        name: "nin",
        about: "network in network, Lin et al. 2014",
        input: &[1, 224, 224],
        batch_size: 128,
        learning_rate: 0.1,
        ..convolutional(nin_of)
    },
    Card {
        name: "googlenet",
        about: "GoogLeNet, Szegedy et al. 2015",
        batch_size: 128,
        learning_rate: 0.1,
        ..convolutional(googlenet_of)
    },
    Card { name: "resnet18", about: "ResNet-18, the book's; He et al. 2016", ..convolutional(|o| resnet_of([2, 2, 2, 2], o)) },
    Card { name: "resnet34", about: "ResNet-34, of the book's blocks", ..convolutional(|o| resnet_of([3, 4, 6, 3], o)) },
    Card { name: "resnet50", about: "ResNet-50, He et al. 2016", ..convolutional(|o| bottleneck_of([3, 4, 6, 3], o)) },
    Card { name: "resnet101", about: "ResNet-101, He et al. 2016", ..convolutional(|o| bottleneck_of([3, 4, 23, 3], o)) },
    Card { name: "resnet152", about: "ResNet-152, He et al. 2016", ..convolutional(|o| bottleneck_of([3, 8, 36, 3], o)) },
    Card { name: "densenet", about: "DenseNet, the book's; Huang et al. 2017", learning_rate: 0.1, ..convolutional(densenet_of) },
    Card { name: "densenet121", about: "DenseNet-121, Huang et al. 2017", learning_rate: 0.1, ..convolutional(densenet121_of) },
];

const fn card_of(make: fn(&Options) -> Sequential) -> Card {
    Card {
        name: "",
        about: "",
        input: &[1, 28, 28],
        batch_size: 256,
        learning_rate: 0.05,
        epochs: 5,
        ratio: 1,
        classifies: true,
        takes_ratio: false,
        takes_hidden: false,
        start: Start::Normal,
        make,
    }
}

const fn perceptron(make: fn(&Options) -> Sequential) -> Card {
    Card { learning_rate: 0.5, epochs: 10, takes_hidden: true, ..card_of(make) }
}

const fn convolutional(make: fn(&Options) -> Sequential) -> Card {
    Card { input: &[1, 96, 96], takes_ratio: true, start: Start::Xavier, ..card_of(make) }
}

const fn vgg(make: fn(&Options) -> Sequential) -> Card {
    Card { input: &[1, 224, 224], batch_size: 128, ratio: 4, takes_hidden: true, ..convolutional(make) }
}

/// The names of all models.
///
/// ```
/// assert!(hadal::models::names().any(|name| name == "googlenet"));
/// ```
pub fn names() -> impl Iterator<Item = &'static str> {
    CARDS.iter().map(|card| card.name)
}

/// The card of the model of that name.
///
/// # Errors
/// [`Error::Invalid`] lists the known names.
pub fn card(name: &str) -> Result<&'static Card> {
    CARDS.iter().find(|card| card.name == name).ok_or_else(|| {
        let known = names().collect::<Vec<_>>().join(", ");
        Error::invalid("models", format!("there is no model {name:?}; there are {known}"))
    })
}

/// The model of that name, not initialized.
///
/// ```
/// use hadal::{Tensor, cpu, init, models::{self, Options}};
/// let net = models::by_name("resnet50", &Options { classes: 7, ratio: 16, ..Options::default() })?;
/// net.initialize(init::Xavier::new(), &cpu())?;
/// assert_eq!(net.forward(&Tensor::ones(&[2, 3, 32, 32], &cpu())?)?.shape(), [2, 7]);
/// assert!(models::by_name("resnet51", &Options::default()).unwrap_err().to_string().contains("resnet50, resnet101"));
/// # Ok::<(), hadal::Error>(())
/// ```
///
/// # Errors
/// Those of [`card`] and [`Card::build`].
pub fn by_name(name: &str, options: &Options) -> Result<Sequential> {
    card(name)?.build(options)
}
