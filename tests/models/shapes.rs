//! Names and output shapes of each model's layers, as the book prints them.

use std::thread;

use hadal::{Result, Tensor, cpu, init, models, models::Options};

/// Checks the names and the shapes behind the batch of the layers of `name` for one sample of `input`.
fn table(name: &'static str, input: &'static [usize], want: &[(&str, &[usize])]) -> Result<()> {
    // The book counts from 0 in each of its notebooks, hadal on each thread.
    let got = thread::spawn(move || -> Result<Vec<(String, Vec<usize>)>> {
        let net = models::by_name(name, &Options::default())?;
        net.initialize(init::Zero, &cpu())?;
        // Empty batches: see `settled`.
        let mut x = Tensor::zeros(&[&[0], input].concat(), &cpu())?;
        let mut rows = Vec::new();
        for layer in net.iter() {
            x = layer.forward(&x)?;
            assert_eq!(x.shape()[0], 0);
            rows.push((layer.name(), x.shape()[1..].to_vec()));
        }
        Ok(rows)
    });
    let got = got.join().expect("no panic in a forward pass")?;
    let got: Vec<(&str, &[usize])> = got.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
    assert_eq!(got, want, "{name}");
    Ok(())
}

#[test]
fn regressions_and_perceptrons() -> Result<()> {
    table("linear_regression", &[2], &[("dense0", &[1])])?;
    table("softmax_regression", &[1, 28, 28], &[("dense0", &[10])])?;
    table("mlp", &[1, 28, 28], &[("dense0", &[256]), ("dense1", &[10])])?;
    let dropout: &[(&str, &[usize])] =
        &[("dense0", &[256]), ("dropout0", &[256]), ("dense1", &[256]), ("dropout1", &[256]), ("dense2", &[10])];
    table("dropout_mlp", &[1, 28, 28], dropout)
}

#[test]
fn lenet() -> Result<()> {
    let want: &[(&str, &[usize])] = &[
        ("conv0", &[6, 24, 24]),
        ("pool0", &[6, 12, 12]),
        ("conv1", &[16, 8, 8]),
        ("pool1", &[16, 4, 4]),
        ("dense0", &[120]),
        ("dense1", &[84]),
        ("dense2", &[10]),
    ];
    table("lenet", &[1, 28, 28], want)
}

#[test]
fn alexnet() -> Result<()> {
    let want: &[(&str, &[usize])] = &[
        ("conv0", &[96, 54, 54]),
        ("pool0", &[96, 26, 26]),
        ("conv1", &[256, 26, 26]),
        ("pool1", &[256, 12, 12]),
        ("conv2", &[384, 12, 12]),
        ("conv3", &[384, 12, 12]),
        ("conv4", &[256, 12, 12]),
        ("pool2", &[256, 5, 5]),
        ("dense0", &[4096]),
        ("dropout0", &[4096]),
        ("dense1", &[4096]),
        ("dropout1", &[4096]),
        ("dense2", &[10]),
    ];
    table("alexnet", &[1, 224, 224], want)
}

#[test]
fn vgg() -> Result<()> {
    let want: &[(&str, &[usize])] = &[
        ("sequential1", &[64, 112, 112]),
        ("sequential2", &[128, 56, 56]),
        ("sequential3", &[256, 28, 28]),
        ("sequential4", &[512, 14, 14]),
        ("sequential5", &[512, 7, 7]),
        ("dense0", &[4096]),
        ("dropout0", &[4096]),
        ("dense1", &[4096]),
        ("dropout1", &[4096]),
        ("dense2", &[10]),
    ];
    for name in ["vgg11", "vgg13", "vgg16", "vgg19"] {
        table(name, &[1, 224, 224], want)?;
    }
    Ok(())
}

#[test]
fn nin() -> Result<()> {
    let want: &[(&str, &[usize])] = &[
        ("sequential1", &[96, 54, 54]),
        ("pool0", &[96, 26, 26]),
        ("sequential2", &[256, 26, 26]),
        ("pool1", &[256, 12, 12]),
        ("sequential3", &[384, 12, 12]),
        ("pool2", &[384, 5, 5]),
        ("dropout0", &[384, 5, 5]),
        ("sequential4", &[10, 5, 5]),
        ("pool3", &[10, 1, 1]),
        ("flatten0", &[10]),
    ];
    table("nin", &[1, 224, 224], want)
}

#[test]
fn googlenet() -> Result<()> {
    let want: &[(&str, &[usize])] = &[
        ("sequential0", &[64, 24, 24]),
        ("sequential1", &[192, 12, 12]),
        ("sequential2", &[480, 6, 6]),
        ("sequential3", &[832, 3, 3]),
        ("sequential4", &[1024, 1, 1]),
        ("dense0", &[10]),
    ];
    table("googlenet", &[1, 96, 96], want)
}

/// The maps of the paper's table 1: 112, 56, 28, 14, 7; `expansion` is 4 for bottlenecks.
fn resnet(name: &'static str, expansion: usize, stages: [&str; 4]) -> Result<()> {
    let want: &[(&str, &[usize])] = &[
        ("conv0", &[64, 112, 112]),
        ("batchnorm0", &[64, 112, 112]),
        ("relu0", &[64, 112, 112]),
        ("pool0", &[64, 56, 56]),
        (stages[0], &[64 * expansion, 56, 56]),
        (stages[1], &[128 * expansion, 28, 28]),
        (stages[2], &[256 * expansion, 14, 14]),
        (stages[3], &[512 * expansion, 7, 7]),
        ("pool1", &[512 * expansion, 1, 1]),
        ("dense0", &[10]),
    ];
    table(name, &[1, 224, 224], want)
}

#[test]
fn resnets() -> Result<()> {
    let stages = ["sequential1", "sequential2", "sequential3", "sequential4"];
    resnet("resnet18", 1, stages)?;
    resnet("resnet34", 1, stages)
}

#[test]
fn deep_resnets() -> Result<()> {
    // Each stage's first block has a short cut of two layers, a Sequential too.
    let stages = ["sequential1", "sequential3", "sequential5", "sequential7"];
    resnet("resnet50", 4, stages)?;
    resnet("resnet101", 4, stages)?;
    resnet("resnet152", 4, stages)
}

#[test]
fn densenet() -> Result<()> {
    let want: &[(&str, &[usize])] = &[
        ("conv0", &[64, 48, 48]),
        ("batchnorm0", &[64, 48, 48]),
        ("relu0", &[64, 48, 48]),
        ("pool0", &[64, 24, 24]),
        ("denseblock", &[192, 24, 24]),
        ("sequential5", &[96, 12, 12]),
        ("denseblock", &[224, 12, 12]),
        ("sequential10", &[112, 6, 6]),
        ("denseblock", &[240, 6, 6]),
        ("sequential15", &[120, 3, 3]),
        ("denseblock", &[248, 3, 3]),
        ("batchnorm20", &[248, 3, 3]),
        ("relu20", &[248, 3, 3]),
        ("pool4", &[248, 1, 1]),
        ("dense0", &[10]),
    ];
    table("densenet", &[1, 96, 96], want)
}

#[test]
fn densenet121() -> Result<()> {
    // The paper's table 1: 256, 512, 1024 and 1024 channels leave the dense blocks.
    let want: &[(&str, &[usize])] = &[
        ("conv0", &[64, 112, 112]),
        ("batchnorm0", &[64, 112, 112]),
        ("relu0", &[64, 112, 112]),
        ("pool0", &[64, 56, 56]),
        ("denseblock", &[256, 56, 56]),
        ("sequential7", &[128, 28, 28]),
        ("denseblock", &[512, 28, 28]),
        ("sequential20", &[256, 14, 14]),
        ("denseblock", &[1024, 14, 14]),
        ("sequential45", &[512, 7, 7]),
        ("denseblock", &[1024, 7, 7]),
        ("batchnorm120", &[1024, 7, 7]),
        ("relu120", &[1024, 7, 7]),
        ("pool4", &[1024, 1, 1]),
        ("dense0", &[10]),
    ];
    table("densenet121", &[1, 224, 224], want)
}
