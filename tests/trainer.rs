//! What a training step and its bookkeeping promise: losses and metrics, which parameters move, what a file of states holds.

use hadal::{
    Context, DType, Error, Result, Tensor, cpu,
    data::{DataLoader, ImageSet, LastBatch},
    loss::{L1, L2, SigmoidBinaryCrossEntropy, SoftmaxCrossEntropy},
    optim::clip_grad_norm,
    train::{correct, evaluate_with, sgd},
};

#[path = "common/mod.rs"]
mod common;

fn tensor(values: &[f32], shape: &[usize], ctx: &Context) -> Result<Tensor> {
    Tensor::from_vec(values.to_vec(), shape, ctx)
}

#[track_caller]
fn says<T>(result: Result<T>, part: &str) {
    let Err(e) = result else { panic!("no error, {part:?} expected") };
    assert!(e.to_string().contains(part), "{e} does not say {part:?}");
}

#[test]
fn a_metric_takes_the_shapes_of_the_loss_and_nothing_is_broadcast() -> Result<()> {
    for ctx in common::contexts() {
        let logits = tensor(&[0., 1., 2., 0., 0., 3.], &[3, 2], &ctx)?;
        let loss = |labels: &Tensor| SoftmaxCrossEntropy::new().forward(&logits, labels);
        for shape in [&[3][..], &[3, 1]] {
            for dtype in [DType::I64, DType::U8, DType::F32, DType::F16] {
                let labels = tensor(&[1., 0., 0.], shape, &ctx)?.cast(dtype)?;
                assert_eq!(loss(&labels)?.shape(), [3]);
                assert_eq!(correct(&logits, &labels)?.item()?, 2.0, "{shape:?} {dtype} on {ctx}");
            }
        }
        for shape in [&[1, 3][..], &[3, 3], &[1], &[]] {
            let labels = Tensor::zeros(shape, &ctx)?.cast(DType::I64)?;
            assert!(matches!(loss(&labels), Err(Error::Shape { .. })), "{shape:?}");
            assert!(matches!(correct(&logits, &labels), Err(Error::Shape { .. })), "{shape:?}");
        }
        // Distributions, as sparse_label(false) takes them.
        let soft = tensor(&[0.1, 0.9, 0.2, 0.8, 0.4, 0.6], &[3, 2], &ctx)?;
        assert_eq!(SoftmaxCrossEntropy::new().sparse_label(false).forward(&logits, &soft)?.shape(), [3]);
        assert_eq!(correct(&logits, &soft)?.item()?, 2.0);
        // Several predictions a sample; of one class the label is a number, not a distribution; 0.5 is no class.
        let many = Tensor::zeros(&[2, 3, 4], &ctx)?;
        assert_eq!(correct(&many, &tensor(&[0., 1., 0., 0., 2., 0.], &[2, 3, 1], &ctx)?)?.item()?, 4.0);
        assert_eq!(correct(&Tensor::zeros(&[3, 1], &ctx)?, &tensor(&[0., 1., 0.5], &[3, 1], &ctx)?)?.item()?, 1.0);

        let pred = tensor(&[1., 2., 3., 4., 5., 6.], &[2, 3], &ctx)?;
        for label in [Tensor::zeros(&[3, 2], &ctx)?, Tensor::zeros(&[6], &ctx)?, Tensor::zeros(&[6, 1], &ctx)?] {
            says(L2::new().forward(&pred, &label), "as many samples");
            says(L1::new().forward(&pred, &label), "as many samples");
            says(SigmoidBinaryCrossEntropy::new().forward(&pred, &label), "as many samples");
        }
        let column = tensor(&[1., 2.], &[2, 1], &ctx)?;
        assert_eq!(L2::new().forward(&column, &tensor(&[1., 0.], &[2], &ctx)?)?.to_vec()?, [0., 2.]);
        assert_eq!(L2::new().forward(&pred, &Tensor::zeros(&[2, 3, 1], &ctx)?)?.shape(), [2]);
    }
    Ok(())
}

#[test]
fn an_accuracy_is_a_share_of_what_was_seen() -> Result<()> {
    for ctx in common::contexts() {
        let set = ImageSet::new(vec![7; 28], vec![0; 7], 2, 2)?;
        let loader = |size| Ok::<_, Error>(DataLoader::new(&set, size, &ctx)?.last_batch(LastBatch::Discard));
        // Class 0 always wins, which is right.
        let net = |x: &Tensor| tensor(&[2., 1.].repeat(x.len()), &[x.len(), 2], &x.context());
        assert_eq!(evaluate_with(net, &loader(4)?)?, 1.0, "4 of 7 are seen");
        assert_eq!(evaluate_with(net, &DataLoader::new(&set, 4, &ctx)?)?, 1.0);
        assert!(evaluate_with(net, &loader(8)?)?.is_nan(), "none is seen");
    }
    Ok(())
}

#[test]
fn what_is_listed_twice_counts_once_outside_of_a_trainer() -> Result<()> {
    for ctx in common::contexts() {
        let w = tensor(&[3., 4.], &[2], &ctx)?.attach_grad();
        hadal::autograd::record(|| w.square()?.sum(&[]))?.backward()?;
        assert_eq!(clip_grad_norm(&[w.clone(), w.clone()], 1e9)?.item()?, 10.0);
        sgd(&[w.clone(), w.clone()], 0.25, 1)?;
        assert_eq!(w.to_vec()?, [1.5, 2.]);
        clip_grad_norm(&[w.clone(), w.clone()], 5.0)?;
        assert!((w.grad()?.to_vec()?[0] - 3.0).abs() < 1e-5);
        // Everything is checked before anything changes.
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            says(sgd(std::slice::from_ref(&w), bad, 1), "the learning rate is");
        }
        says(sgd(std::slice::from_ref(&w), 0.1, 0), "a batch size of 0");
        assert!(sgd(&[w.clone(), Tensor::ones(&[1], &cpu())?], 0.1, 1).is_err());
        assert_eq!(w.to_vec()?, [1.5, 2.]);
    }
    Ok(())
}
