//! Models by name, and what is refused.

use hadal::{
    Result, Tensor, cpu, init,
    models::{self, Options},
    nn::Block,
};

#[test]
fn an_unknown_name_is_answered_with_the_known_ones() {
    let e = models::by_name("vgg12", &Options::default()).unwrap_err().to_string();
    assert!(e.contains("\"vgg12\""), "{e}");
    assert!(models::names().all(|name| e.contains(name)), "{e}");
    assert!(models::card("").is_err());
}

#[test]
fn an_option_without_a_place_is_refused() {
    let e = models::by_name("mlp", &Options { ratio: 2, ..Options::default() }).unwrap_err().to_string();
    assert!(e.contains("mlp") && e.contains("ratio"), "{e}");
    let e = models::by_name("resnet18", &Options { hidden: Some(7), ..Options::default() }).unwrap_err().to_string();
    assert!(e.contains("resnet18") && e.contains("hidden"), "{e}");
    let zeros = [Options::new(0), Options { ratio: 0, ..Options::default() }, Options { hidden: Some(0), ..Options::default() }];
    for options in zeros {
        assert!(models::by_name("vgg11", &options).is_err(), "{options:?}");
    }
}

#[test]
fn the_ratio_divides_channels_and_leaves_one() -> Result<()> {
    for (ratio, first) in [(1, 64), (4, 16), (5, 12), (1000, 1)] {
        let options = Options { ratio, hidden: Some(8), ..Options::default() };
        for card in models::CARDS.iter().filter(|card| card.name.starts_with("vgg")) {
            let net = card.build(&options)?;
            assert!(net.tree().contains(&format!("Conv2D(? -> {first}, ")), "{ratio}: {net}");
        }
    }
    // Even a single channel everywhere is a net that runs.
    for card in models::CARDS.iter().filter(|card| card.takes_ratio) {
        let net = card.build(&Options { ratio: usize::MAX, ..Options::new(3) })?;
        net.initialize(init::Zero, &cpu())?;
        assert_eq!(net.forward(&Tensor::zeros(&[0, 1, 96, 96], &cpu())?)?.shape(), [0, 3], "{}", card.name);
    }
    Ok(())
}

#[test]
fn the_cards_are_those_of_the_books_runs() -> Result<()> {
    // Batch, learning rate, side after resizing, channel ratio.
    let book = [
        ("dropout_mlp", 256, 0.5, None, 1),
        ("lenet", 256, 0.9, None, 1),
        ("alexnet", 128, 0.01, Some(224), 1),
        ("vgg11", 128, 0.05, Some(224), 4),
        ("nin", 128, 0.1, Some(224), 1),
        ("googlenet", 128, 0.1, Some(96), 1),
        ("resnet18", 256, 0.05, Some(96), 1),
        ("densenet", 256, 0.1, Some(96), 1),
    ];
    for (name, batch, lr, side, ratio) in book {
        let card = models::card(name)?;
        let got = (card.name, card.batch_size, card.learning_rate, card.resize(), card.options().ratio);
        assert_eq!(got, (name, batch, lr, side, ratio));
    }
    Ok(())
}
