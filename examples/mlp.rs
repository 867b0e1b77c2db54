//! The book's multilayer perceptron with dropout, in the README's 25 lines.

use hadal::{Result, Trainer, autograd, data, init, loss::SoftmaxCrossEntropy, nn, optim::Sgd, println, try_gpu};

fn main() -> Result<()> {
    let ctx = try_gpu(0);
    let net = nn::Sequential::new()
        .add(nn::Dense::new(256).relu())
        .add(nn::Dropout::new(0.2))
        .add(nn::Dense::new(256).relu())
        .add(nn::Dropout::new(0.5))
        .add(nn::Dense::new(10));
    net.initialize(init::Normal(0.01), &ctx)?;

    let (train, test) = data::load_data_fashion_mnist(256, None, 0, &ctx)?;
    let loss = SoftmaxCrossEntropy::new();
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.5));

    for epoch in 0..10 {
        for batch in train.epoch(epoch)? {
            let (x, y) = batch?;
            let l = autograd::record(|| loss.forward(&net.forward(&x)?, &y))?;
            l.backward()?;
            trainer.step(train.batch_size())?;
        }
        println!("epoch {}, test acc {:.3}", epoch + 1, hadal::evaluate_accuracy(&net, &test)?);
    }
    net.save("mlp.safetensors")
}
