//! Numbers of trainable parameters, against published figures and against sums over the papers' tables.

use hadal::{Result, models, nn::Block};

use crate::settled;

fn count(name: &str, classes: usize, input: &[usize]) -> Result<usize> {
    settled(name, classes, input)?.parameter_count()
}

fn dense(inputs: usize, units: usize) -> usize {
    units * (inputs + 1)
}

fn conv(inputs: usize, channels: usize, side: usize) -> usize {
    dense(inputs * side * side, channels)
}

fn batch_norm(channels: usize) -> usize {
    2 * channels
}

#[test]
fn parameters_are_as_many_as_published() -> Result<()> {
    // For three channels of 224x224 and 1000 classes: VGG, ResNet-50 and DenseNet-121 as in torchvision's table of weights,
    // GoogLeNet as in the Caffe model that its authors' paper was reproduced with, without the auxiliary classifiers.
    let published = [
        ("vgg11", 132_863_336),
        ("vgg13", 133_047_848),
        ("vgg16", 138_357_544),
        ("vgg19", 143_667_240),
        ("googlenet", 6_998_552),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("densenet121", 7_978_856),
    ];
    for (name, want) in published {
        assert_eq!(count(name, 1000, &[3, 224, 224])?, want, "{name}");
    }
    // The book's blocks have biases in the convolutions, and no batch-norm in the three short cuts with a convolution.
    for (name, published, [n1, n2, n3, n4]) in [("resnet18", 11_689_512, [2, 2, 2, 2]), ("resnet34", 21_797_672, [3, 4, 6, 3])] {
        let biases = 64 + 64 * 2 * n1 + 128 * (2 * n2 + 1) + 256 * (2 * n3 + 1) + 512 * (2 * n4 + 1);
        let shortcuts = batch_norm(128) + batch_norm(256) + batch_norm(512);
        assert_eq!(count(name, 1000, &[3, 224, 224])?, published + biases - shortcuts, "{name}");
    }
    // Counted in the book's own listing.
    assert_eq!(count("resnet18", 10, &[1, 96, 96])?, 11_178_378);
    Ok(())
}

#[test]
fn regressions_perceptrons_and_lenet() -> Result<()> {
    assert_eq!(count("linear_regression", 10, &[2])?, 2 + 1);
    assert_eq!(count("softmax_regression", 10, &[1, 28, 28])?, dense(784, 10));
    assert_eq!(count("mlp", 10, &[1, 28, 28])?, dense(784, 256) + dense(256, 10));
    assert_eq!(count("dropout_mlp", 10, &[1, 28, 28])?, dense(784, 256) + dense(256, 256) + dense(256, 10));
    let lenet = conv(1, 6, 5) + conv(6, 16, 5) + dense(16 * 4 * 4, 120) + dense(120, 84) + dense(84, 10);
    assert_eq!(lenet, 44_426);
    assert_eq!(count("lenet", 10, &[1, 28, 28])?, lenet);
    Ok(())
}

#[test]
fn alexnet_and_nin() -> Result<()> {
    let convolutions = conv(1, 96, 11) + conv(96, 256, 5) + conv(256, 384, 3) + conv(384, 384, 3) + conv(384, 256, 3);
    let alexnet = convolutions + dense(256 * 5 * 5, 4096) + dense(4096, 4096) + dense(4096, 10);
    assert_eq!(alexnet, 46_764_746);
    assert_eq!(count("alexnet", 10, &[1, 224, 224])?, alexnet);

    let block = |inputs, channels, side| conv(inputs, channels, side) + 2 * conv(channels, channels, 1);
    let nin = block(1, 96, 11) + block(96, 256, 5) + block(256, 384, 3) + block(384, 10, 3);
    assert_eq!(nin, 1_992_166);
    assert_eq!(count("nin", 10, &[1, 224, 224])?, nin);
    Ok(())
}

#[test]
fn googlenet() -> Result<()> {
    // Input channels and the paper's table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
    let table = [
        [192, 64, 96, 128, 16, 32, 32],
        [256, 128, 128, 192, 32, 96, 64],
        [480, 192, 96, 208, 16, 48, 64],
        [512, 160, 112, 224, 24, 64, 64],
        [512, 128, 128, 256, 24, 64, 64],
        [512, 112, 144, 288, 32, 64, 64],
        [528, 256, 160, 320, 32, 128, 128],
        [832, 256, 160, 320, 32, 128, 128],
        [832, 384, 192, 384, 48, 128, 128],
    ];
    let inception = |[c, c1, r3, c3, r5, c5, pool]: [usize; 7]| {
        conv(c, c1, 1) + conv(c, r3, 1) + conv(r3, c3, 3) + conv(c, r5, 1) + conv(r5, c5, 5) + conv(c, pool, 1)
    };
    let stem = conv(1, 64, 7) + conv(64, 64, 1) + conv(64, 192, 3);
    let want = stem + table.into_iter().map(inception).sum::<usize>() + dense(1024, 10);
    assert_eq!(want, 5_977_530);
    assert_eq!(count("googlenet", 10, &[1, 96, 96])?, want);
    Ok(())
}

#[test]
fn the_books_densenet() -> Result<()> {
    // The channels that each 3x3 convolution sees, a row for a dense block; 32 are added each time, a transition takes half.
    let inputs = [[64, 96, 128, 160], [96, 128, 160, 192], [112, 144, 176, 208], [120, 152, 184, 216]];
    let blocks: usize = inputs.as_flattened().iter().map(|&c| batch_norm(c) + conv(c, 32, 3)).sum();
    let transitions: usize = [192, 224, 240].iter().map(|&c| batch_norm(c) + conv(c, c / 2, 1)).sum();
    let want = conv(1, 64, 7) + batch_norm(64) + blocks + transitions + batch_norm(248) + dense(248, 10);
    assert_eq!(want, 758_226);
    assert_eq!(count("densenet", 10, &[1, 96, 96])?, want);
    Ok(())
}

#[test]
fn the_guides_table_is_that_of_the_models() -> Result<()> {
    let guide = include_str!("../../docs/guide/models.md");
    let mut rows = String::new();
    for card in models::CARDS {
        let input = card.input.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let digits = count(card.name, 10, card.input)?.to_string();
        let grouped = digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).unwrap()).collect::<Vec<_>>().join(",");
        rows += &format!("| `{}` | {} | {input} | {grouped} |\n", card.name, card.about);
    }
    assert!(guide.contains(&rows), "docs/guide/models.md needs the rows\n{rows}");
    Ok(())
}
