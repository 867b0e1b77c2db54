//! Every model against the same net in PyTorch: `scripts/model_vectors.py` writes them anew from the book and the papers, gives
//! both sides the same weights, and prints what PyTorch computes in f64. A relu or a short cut in the wrong place shows here.

use hadal::{
    Array, Context, Result, Tensor, autograd, init,
    loss::SoftmaxCrossEntropy,
    models::{self, Options},
    nn::Role,
    optim::clip_grad_norm,
};

use crate::common;

const BATCH: usize = 8;

/// `n` numbers in [0, 1) of that stream: SplitMix64, as in the script.
fn unit(stream: u64, n: usize) -> impl Iterator<Item = f64> {
    (1..=n as u64).map(move |i| {
        let mut z = (stream << 32).wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        (z >> 11) as f64 * 2f64.powi(-53)
    })
}

/// The loss and the norm of its gradient, for the script's weights and images.
fn measure(name: &str, side: usize, ctx: &Context) -> Result<(f64, f64)> {
    let card = models::card(name)?;
    let net = card.build(&Options {
        classes: 10,
        ratio: if card.takes_ratio { 16 } else { 1 },
        hidden: card.takes_hidden.then_some(24),
    })?;
    net.initialize(init::Zero, ctx)?;
    let images = unit(1000, BATCH * side * side).map(|u| (2.0 * u - 1.0) as f32).collect();
    let x = Tensor::from_vec(images, &[BATCH, 1, side, side], ctx)?;
    net.forward(&x)?;
    let mut parameters = net.collect();
    parameters.retain(|(_, p)| p.is_trainable());
    parameters.sort_by(|a, b| a.0.cmp(&b.0));
    for (stream, (_, p)) in parameters.iter().enumerate() {
        let shape = p.shape();
        let spread = (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt();
        let value = |u: f64| match p.role() {
            Role::Weight => u * spread,
            Role::Scale => 0.1 * u + 0.3,
            _ => 0.1 * u,
        };
        let n = shape.iter().product();
        let values = unit(stream as u64, n).map(|u| value(2.0 * u - 1.0) as f32).collect();
        p.set_data(Array::from_vec(values, &shape, ctx)?)?;
    }
    let y = Tensor::arange(0.0, BATCH as f64, 1.0, ctx)?;
    let predicts = net.to_string().contains("Dropout");
    let l = autograd::record(|| {
        let logits = if predicts { autograd::predict_mode(|| net.forward(&x)) } else { net.forward(&x) };
        SoftmaxCrossEntropy::new().forward(&logits?, &y)
    })?;
    l.backward()?;
    let weights = parameters.iter().map(|(_, p)| p.data()).collect::<Result<Vec<_>>>()?;
    Ok((l.mean(&[])?.item()?, clip_grad_norm(&weights, f64::from(f32::MAX))?.item()?))
}

/// Compares losses and gradient norms, with a relative tolerance for each.
fn agrees(names: impl Fn(&str) -> bool, tolerance: (f64, f64)) -> Result<()> {
    let mut found = 0;
    for line in include_str!("pytorch.tsv").lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, side, loss, norm] = fields[..] else { panic!("{line}") };
        if !names(name) {
            continue;
        }
        found += 1;
        let number = |s: &str| s.parse::<f64>().unwrap();
        for ctx in common::contexts() {
            let got = measure(name, side.parse().unwrap(), &ctx)?;
            let off = ((got.0 / number(loss) - 1.0).abs(), (got.1 / number(norm) - 1.0).abs());
            println!("{name} on {ctx}: {got:?}, off by {off:?}");
            assert!(off.0 < tolerance.0 && off.1 < tolerance.1, "{name} on {ctx}: {got:?} instead of {loss} and {norm}");
        }
    }
    assert!(found > 0);
    Ok(())
}

#[test]
fn nets_without_batch_norm() -> Result<()> {
    agrees(|name| !name.starts_with("resnet") && !name.starts_with("densenet"), (1e-5, 1e-4))
}

#[test]
fn nets_with_batch_norm() -> Result<()> {
    agrees(|name| ["resnet18", "resnet34", "densenet", "densenet121"].contains(&name), (1e-5, 1e-3))
}

/// Rounding errors grow from batch-norm to batch-norm: up to a hundredth of the gradient of ResNet-152 in f32.
#[test]
fn nets_of_bottlenecks() -> Result<()> {
    agrees(|name| ["resnet50", "resnet101", "resnet152"].contains(&name), (5e-4, 5e-2))
}

#[test]
fn every_classifier_is_compared() {
    let lines = include_str!("pytorch.tsv").lines().filter(|line| !line.starts_with('#'));
    let compared = lines.map(|line| line.split('\t').next().unwrap_or_default());
    assert!(compared.eq(models::CARDS.iter().filter(|card| card.classifies).map(|card| card.name)));
}
