//! What a wrong program is told, word for word, and what `{:?}` shows.

use hadal::{
    Array, Context, DType, Error, Result, Tensor, Trainer, autograd, cpu,
    data::{DataLoader, FashionMnist, ImageSet},
    init,
    loss::{L2, SoftmaxCrossEntropy},
    nn::{self, BatchNorm, Block, Conv2D, Dense, Forward, MaxPool2D, Parameter, Role, Sequential},
    optim::Sgd,
};

fn ones(shape: &[usize]) -> Tensor {
    Tensor::ones(shape, &cpu()).unwrap()
}

fn text<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("no error"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn the_error_that_a_program_ends_with_is_the_sentence() {
    let net = Sequential::new().add(Conv2D::new(8, 3)).add(Sequential::new().add(Conv2D::new(4, 3)));
    net.initialize(init::Xavier::new(), &cpu()).unwrap();
    net.forward(&ones(&[1, 3, 9, 9])).unwrap();
    let e = net.forward(&ones(&[1, 2, 9, 9])).err().unwrap();
    let sentence = "net[0]: conv2d: the input has 2 channels, the weight takes 3 (shapes (1, 2, 9, 9), (8, 3, 3, 3), (8,))";
    assert_eq!(e.to_string(), sentence);
    // What `fn main() -> hadal::Result<()>` prints.
    assert_eq!(format!("Error: {e:?}"), format!("Error: {sentence}"));
    assert_eq!(format!("{e:#?}"), sentence);
    let io = Error::io("no/such/file", std::io::Error::from(std::io::ErrorKind::NotFound));
    assert_eq!(format!("{io:?}"), format!("{io}"));
}

#[test]
fn debug_forms_are_short() {
    let x = Tensor::from_vec((0..100_000).collect::<Vec<i64>>(), &[10, 100, 100], &cpu()).unwrap();
    assert_eq!(format!("{x:?}"), "<Tensor 10x100x100 i64 @cpu(0)>");
    assert_eq!(format!("{:?}", x.array()), "<Array 10x100x100 i64 @cpu(0)>");
    assert_eq!(format!("{:?}", x.array().storage()), "Cpu(i64[100000])");
    let net = Sequential::new().add(Conv2D::new(6, 5).relu()).add(MaxPool2D::new(2)).add(Dense::new(10));
    let dense = Dense::new(10);
    assert_eq!(format!("{:?}", dense.weight()), "<Parameter weight (10, ?) f32>");
    net.initialize(init::Xavier::new(), &cpu()).unwrap();
    let x = ones(&[2, 1, 28, 28]);
    let l = autograd::record(|| {
        SoftmaxCrossEntropy::new().forward(&net.forward(&x)?, &Tensor::from_vec(vec![1i64, 2], &[2], &cpu())?)
    })
    .unwrap();
    assert_eq!(format!("{l:?}"), "<Tensor 2 @cpu(0), recorded by softmax_cross_entropy>");
    assert_eq!(format!("{:?}", net.parameters()[0]), "<Parameter net[0].weight (6, 1, 5, 5) f32>");
    assert_eq!(format!("{:?}", net.parameters()[0].data().unwrap()), "<Tensor 6x1x5x5 @cpu(0), attach_grad>");
    for layer in
        [&dense as &dyn std::fmt::Debug, &Conv2D::new(6, 5), &BatchNorm::new(), &nn::Dropout::new(0.5), &nn::Flatten::new()]
    {
        let shown = format!("{layer:?}");
        assert!(shown.len() < 100 && !shown.contains("Info") && !shown.contains("RwLock"), "{shown}");
    }
    let mut sgd = Sgd::new(0.1).momentum(0.9);
    let (mut w, g) = (ones(&[50_000]).array(), ones(&[50_000]).array());
    hadal::optim::Optimizer::update(&mut sgd, 0, &mut w, &g, &hadal::optim::Step::default()).unwrap();
    assert!(format!("{sgd:?}").len() < 500, "{sgd:?}");
    let set = ImageSet::new(vec![0; 784 * 50], vec![0; 50], 28, 28).unwrap();
    assert_eq!(format!("{set:?}"), "<ImageSet of 50, 28x28>");
    assert!(format!("{:?}", FashionMnist::sample("a test").unwrap()).len() < 500);
}

/// While a tensor is written its form can be asked for, too.
#[test]
fn debug_does_not_wait() {
    let x = ones(&[3]);
    x.update(|_| {
        assert_eq!(format!("{x:?}"), "<Tensor that is being written>");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_layer_is_named_by_its_place_also_before_initialize() {
    let net = Sequential::new().add(Dense::new(4)).add(Sequential::new().add(Dense::new(3)).add(Dense::new(2)));
    assert_eq!(
        text(net.forward(&ones(&[1, 2]))),
        "net[0]: parameter net[0].weight: it has no values: call initialize (or load) first"
    );
    assert_eq!(net.parameters()[4].name(), "net[1][1].weight");
    assert_eq!(
        text(Dense::new(3).forward(&ones(&[1, 2]))),
        "a dense layer: parameter weight: it has no values: call initialize (or load) first"
    );
    assert!(text(Conv2D::new(3, 3).forward(&ones(&[1, 2]))).starts_with("a conv layer: "));
}

#[test]
fn shapes_are_said_once() {
    let d = Dense::new(3).in_units(4);
    d.initialize(init::Zero, &cpu()).unwrap();
    for e in [
        text(d.forward(&ones(&[2, 5]))),
        text(ones(&[2, 5]).dense(&ones(&[3, 4]), None)),
        text(ones(&[1, 2, 5, 5]).conv2d(&ones(&[3, 4, 3, 3]), None, Default::default())),
        text(ones(&[2, 3]).add(&ones(&[4, 5]))),
        text(ones(&[2, 3]).matmul(&ones(&[4, 5]))),
        text(ones(&[2, 3]).softmax_cross_entropy(&Tensor::from_vec(vec![0i64; 5], &[5], &cpu()).unwrap())),
        text(L2::new().forward(&ones(&[2, 3]), &ones(&[5]))),
        text(ones(&[2, 3]).broadcast_to(&[4, 5])),
        text(Tensor::concat(&[&ones(&[2, 3]), &ones(&[4, 5])], 0)),
    ] {
        for shape in ["(2, 5)", "(3, 4)", "(2, 3)", "(4, 5)", "(1, 2, 5, 5)", "(3, 4, 3, 3)", "(5,)"] {
            assert!(e.matches(shape).count() <= 1, "{shape} is said twice: {e}");
        }
    }
}

#[test]
fn a_parameter_of_another_shape_says_whose() {
    let folder = std::env::temp_dir().join(format!("hadal-errors-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("net.safetensors");
    let make = |inputs: Option<usize>| {
        let d = Dense::new(3);
        Sequential::new().add(inputs.map_or(Dense::new(3), |n| d.in_units(n)))
    };
    let saved = make(Some(4));
    saved.initialize(init::Zero, &cpu()).unwrap();
    saved.save(&file).unwrap();
    let e = text(make(Some(5)).load(&file, &cpu()));
    assert!(e.ends_with("parameter net[0].weight: its shape is (3, 5), the file has (3, 4)"), "{e}");
    make(None).load(&file, &cpu()).unwrap();
    let p = Parameter::new(Role::Weight, &[3, 0]);
    let net = Owner { dense: Dense::new(2), scale: p };
    net.initialize(init::One, &cpu()).unwrap();
    assert_eq!(text(net.scale.ready(&[4, 4])), "parameter net.scale: its shape is (3, ?), the input needs (4, 4)");
    assert_eq!(text(net.scale.data()), "parameter net.scale: its shape (3, ?) is not known before the first forward pass");
    let known = Parameter::new(Role::Weight, &[3, 5]);
    known.set_init(init::Zero);
    let net = Owner { dense: Dense::new(2), scale: known };
    net.initialize(init::One, &cpu()).unwrap();
    net.save(&file).unwrap_err();
    std::fs::remove_dir_all(&folder).unwrap();
}

hadal::block! {
    struct Owner { dense: Dense, scale: Parameter }
}

impl Forward for Owner {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.dense.forward(x)?;
        y.mul(&self.scale.ready(&[3, y.shape()[1]])?)
    }
}

/// A block's own parameter is initialized, trained, cast, saved and loaded with the net's.
#[test]
fn a_block_has_parameters_of_its_own() -> Result<()> {
    let make = || Sequential::new().add(Owner { dense: Dense::new(2), scale: Parameter::new(Role::Scale, &[3, 0]) });
    let net = make();
    net.initialize(init::Constant(0.5), &cpu())?;
    let x = ones(&[3, 4]);
    assert_eq!(net.forward(&x)?.to_vec()?, [2.0; 6]);
    let names: Vec<String> = net.collect().into_iter().map(|(n, _)| n).collect();
    assert_eq!(names, ["0.dense.weight", "0.dense.bias", "0.scale"]);
    assert_eq!(net.parameters()[2].name(), "net[0].scale");
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.1));
    autograd::record(|| net.forward(&x)?.sum(&[]))?.backward()?;
    trainer.step(1)?;
    assert!(net.parameters()[2].data()?.to_vec()?.iter().all(|s| (s - 0.8).abs() < 1e-6));
    let file = std::env::temp_dir().join(format!("hadal-own-parameter-{}.safetensors", std::process::id()));
    net.save(&file)?;
    let other = make();
    other.load(&file, &cpu())?;
    assert_eq!(other.forward(&x)?.to_vec()?, net.forward(&x)?.to_vec()?);
    std::fs::remove_file(&file).unwrap();
    net.cast(DType::F64)?;
    assert_eq!(net.parameters()[2].dtype(), DType::F64);
    assert!(net.to_string().contains("(scale): <Parameter net[0].scale (3, 2) f64>"), "{net}");
    Ok(())
}

#[test]
fn gradients_that_are_not_there() {
    let x = ones(&[2]).attach_grad();
    let y = autograd::record(|| x.square()).unwrap();
    let e = text(y.grad());
    assert!(e.contains("a result of square") && !e.contains("first"), "{e}");
    let e = text(ones(&[2]).grad());
    assert!(e.contains("take the one that attach_grad gives"), "{e}");
}

#[test]
fn words_that_are_not_known_are_told_the_known_ones() {
    assert_eq!(text("int8".parse::<DType>()), "dtype: \"int8\" is none of f32, f64, f16, bf16, u8, i64");
    assert!(text("cuda".parse::<Context>()).contains("none of auto, cpu, gpu, gpu:1"));
    let e = text(hadal::models::by_name("resnet19", &Default::default()).map(|_| ()));
    assert!(e.contains("resnet18") && e.contains("resnet34"), "{e}");
}

/// What a new user does wrong in the first hour.
#[test]
fn wrong_programs() {
    let says = |e: String, parts: &[&str]| {
        for part in parts {
            assert!(e.contains(part), "{part:?} is not in: {e}");
        }
        assert!(e.len() < 400, "{e}");
    };
    // Values and a shape that do not fit.
    says(text(Tensor::from_vec(vec![1f32, 2., 3.], &[2, 2], &cpu())), &["3 elements", "(2, 2)"]);
    // More than one element as a number.
    says(text(ones(&[2]).item()), &["item", "one element", "(2,)"]);
    // No recording.
    says(text(ones(&[2]).attach_grad().square().unwrap().backward()), &["autograd::record", "attach_grad"]);
    // Backward twice.
    let x = ones(&[2]).attach_grad();
    let l = autograd::record(|| x.square()?.sum(&[])).unwrap();
    l.backward().unwrap();
    says(text(l.backward()), &["backward_retain"]);
    // A step without a backward pass.
    let net = Sequential::new().add(Dense::new(1));
    net.initialize(init::Zero, &cpu()).unwrap();
    net.forward(&ones(&[1, 2])).unwrap();
    says(text(Trainer::new(net.parameters(), Sgd::new(0.1)).step(1)), &["net[0].weight", "gradient"]);
    // A trainer before the first pass.
    let net = Sequential::new().add(Dense::new(1));
    net.initialize(init::Zero, &cpu()).unwrap();
    says(text(Trainer::new(net.parameters(), Sgd::new(0.1)).step(1)), &["net[0].weight", "(1, ?)", "first forward pass"]);
    // Labels as floats, labels out of range, too many labels.
    let logits = ones(&[2, 3]);
    let label = |l: Vec<i64>| Tensor::from_vec(l.clone(), &[l.len()], &cpu()).unwrap();
    says(text(logits.softmax_cross_entropy(&label(vec![0, 3]))), &["softmax_cross_entropy", "3"]);
    says(text(logits.softmax_cross_entropy(&label(vec![0, 1, 2]))), &["(2, 3)", "(3,)"]);
    // Images where a vector is needed, and the other way round.
    says(text(BatchNorm::new().forward(&ones(&[2]))), &["(N, C, …)", "(2,)"]);
    says(text(MaxPool2D::new(2).forward(&ones(&[2, 3]))), &["(N, C, H, W)", "(2, 3)"]);
    // A window that is larger than the image.
    says(text(MaxPool2D::new(5).forward(&ones(&[1, 1, 3, 3]))), &["5", "3", "(1, 1, 3, 3)"]);
    // Another dtype than the net's.
    let half = ones(&[1, 2]).cast(DType::F16).unwrap();
    let net = Sequential::new().add(Dense::new(1));
    net.initialize(init::Zero, &cpu()).unwrap();
    says(text(net.forward(&half)), &["net[0]", "f16", "f32", "cast"]);
    // Reading with another type.
    says(text(half.array().to_vec::<f32>()), &["f16", "cast"]);
    // A batch size of 0, a probability of 2.
    let set = FashionMnist::sample("a test").unwrap().test;
    says(text(DataLoader::new(&set, 0, &cpu()).map(|_| ())), &["batch size of 0"]);
    says(text(autograd::train_mode(|| ones(&[2]).dropout(2.0))), &["dropout", "2"]);
    // A file that is not there.
    says(text(net.load("no/such/file.safetensors", &cpu())), &["no/such/file.safetensors"]);
    says(text(Array::zeros(&[2], DType::F32, &cpu()).and_then(|a| a.reshape(&[3]))), &["reshape", "(3,)", "(2,)"]);
}
