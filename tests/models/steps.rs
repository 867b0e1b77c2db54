//! Three training steps of every model, narrow and on small images, on each context.

use hadal::{
    Context, Result, Tensor, Trainer, autograd,
    data::{DataLoader, FashionMnist},
    init,
    loss::{L2, SoftmaxCrossEntropy},
    models::{self, Card, Options},
    nn::Parameter,
    optim::{Sgd, clip_grad_norm},
    random,
};

use crate::common;

const BATCH: usize = 8;

/// Deep nets with batch-norms, whose loss bends within a short way of the first weights.
fn normalizes(card: &Card) -> bool {
    card.name.starts_with("resnet") || card.name.starts_with("densenet")
}

/// Clothes for a classifier, in the smallest size that the model's windows fit in, else 32x32 instead of the book's resized
/// ones; random features for a regression.
fn batch(card: &Card, ctx: &Context) -> Result<(Tensor, Tensor)> {
    if !card.classifies {
        let x = Tensor::uniform(-1.0, 1.0, &[&[BATCH], card.input].concat(), ctx)?;
        return Ok((x, Tensor::arange(0.0, BATCH as f64, 1.0, ctx)?));
    }
    let side = match (card.name, card.resize()) {
        ("alexnet" | "nin", _) => 67,
        (_, Some(_)) => 32,
        (_, None) => 28,
    };
    let set = FashionMnist::sample("a test")?.train.take(BATCH);
    DataLoader::new(&set, BATCH, ctx)?.resize(side, side)?.epoch(0)?.next().expect("a batch")
}

/// The mean losses of three steps on one batch, and by how much the first gradient says that the first step lowers it.
fn losses(card: &Card, ctx: &Context) -> Result<(Vec<f64>, f64)> {
    let options = Options { classes: 10, ratio: if card.takes_ratio { 16 } else { 1 }, hidden: card.takes_hidden.then_some(24) };
    random::seed(1);
    let net = card.build(&options)?;
    net.initialize(init::Xavier::new(), ctx)?;
    let (x, y) = batch(card, ctx)?;
    // Settles the shapes, and with them all draws of first values.
    net.forward(&x)?;
    let weights = net.parameters().iter().map(Parameter::data).collect::<Result<Vec<_>>>()?;
    // The gradient is clipped to 1, so a step's length is this over the batch.
    let lr = if normalizes(card) { 3e-5 } else { 3e-3 };
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(lr));
    let mut losses = Vec::new();
    let mut foretold = None;
    for _ in 0..3 {
        // The same masks in each step: the loss is then one function of the weights, which a short step has to lower.
        random::seed(2);
        let l = autograd::record(|| {
            let pred = net.forward(&x)?;
            if card.classifies { SoftmaxCrossEntropy::new().forward(&pred, &y) } else { L2::new().forward(&pred, &y) }
        })?;
        l.backward()?;
        let norm = clip_grad_norm(&weights, 1.0)?.item()?;
        assert!(norm > 1.0, "a gradient of {norm} was not clipped");
        // The mean loss has 1/BATCH of that gradient.
        foretold.get_or_insert(lr / BATCH as f64 * norm / BATCH as f64);
        trainer.step(BATCH)?;
        losses.push(l.mean(&[])?.item()?);
    }
    Ok((losses, foretold.unwrap_or_default()))
}

fn train(name: &str) -> Result<()> {
    let card = models::card(name)?;
    let mut all = Vec::new();
    for ctx in common::contexts() {
        let (losses, foretold) = losses(card, &ctx)?;
        let drop = losses[0] - losses[1];
        println!("{name} on {ctx}: {losses:?}, the first step lowers it by {drop:.6}, its gradient says {foretold:.6}");
        assert!(losses[2] < losses[1] && losses[1] < losses[0], "{name} on {ctx}: {losses:?}");
        assert!((0.5..2.0).contains(&(drop / foretold)), "{name} on {ctx}: {losses:?}, {foretold} was to be expected");
        all.push(losses);
    }
    // First values and masks are the same draws on each context, so the first losses are too, but for roundings, which a
    // hundred batch-norms make larger.
    if let [host, device] = all.as_slice() {
        assert!((host[0] - device[0]).abs() < 1e-3 * host[0], "{name}: {host:?} and {device:?}");
    }
    Ok(())
}

macro_rules! models {
    ($($name:ident),*) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                train(stringify!($name))
            }
        )*

        #[test]
        fn no_model_is_left_out() {
            assert!(models::names().eq([$(stringify!($name)),*]));
        }
    };
}

models!(
    linear_regression,
    softmax_regression,
    mlp,
    dropout_mlp,
    lenet,
    alexnet,
    vgg11,
    vgg13,
    vgg16,
    vgg19,
    nin,
    googlenet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    densenet,
    densenet121
);
