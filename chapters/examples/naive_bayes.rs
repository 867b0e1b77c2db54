//! The book's naive Bayes classifier: probabilities that underflow, and the same in logarithms.
//!
//! A pixel is on from 128 up. P(pixel on | class) and P(class) are counted over the training set; counts start at 1.

use book::{Page, draw};
use hadal::{
    Context, Result, Tensor,
    data::{DataLoader, fashion_mnist::CLASS_NAMES},
    println,
    train::evaluate_with,
};
use plotters::prelude::Text;

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

/// P(x | y) for each pixel and class, (784, 10), and P(y).
struct Model {
    px: Tensor,
    py: Tensor,
}

/// The logarithms of a [`Model`]'s probabilities.
struct LogModel {
    logpx: Tensor,
    logpxneg: Tensor,
    logpy: Tensor,
}

fn chapter(page: &Page) -> Result<()> {
    let (train, test) = page.fashion_mnist(256, None, 2000)?;
    let model = fit(&train, &page.ctx)?;
    let Some(batch) = test.epoch(0)?.next() else { return Ok(()) };
    let (images, labels) = batch?;
    let column = |i: isize| on(&images.at(i)?)?.reshape(&[784, 1]);

    went_wrong(&model, &column(0)?)?;

    let model = model.log()?;
    let mut shown = Vec::new();
    for i in 0..10 {
        let label = labels.at(i)?.item()? as usize;
        let post = model.bayespost(&column(i)?)?;
        let guess = (0..post.len()).max_by(|&a, &b| post[a].total_cmp(&post[b])).unwrap_or(0);
        println!("image {i}: {}, posterior {:.4} for {}", CLASS_NAMES[label], post[guess], CLASS_NAMES[guess]);
        shown.push((images.at(i)?.to_vec()?, label, post));
    }
    let right = evaluate_with(|x| model.logposts(x), &test)?;
    println!("Naive Bayes has an error rate of {:.4}, test acc {right:.4}", 1.0 - right);
    page.figure("naive Bayes", "test acc", 0, right)?;
    picture(page, &shown)
}

/// 1 where a pixel is on, floor(byte / 128); the batches hold byte / 255.
fn on(images: &Tensor) -> Result<Tensor> {
    images.ge(0.5)
}

fn fit(train: &DataLoader, ctx: &Context) -> Result<Model> {
    let xcount = Tensor::ones(&[784, 10], ctx)?;
    let ycount = Tensor::ones(&[10], ctx)?;
    for batch in train.epoch(0)? {
        let (x, y) = batch?;
        let y = y.one_hot(10)?.cast(hadal::DType::F32)?;
        xcount.add_(&on(&x)?.reshape(&[-1, 784])?.matmul_t(&y, true, false)?)?;
        ycount.add_(&y.sum(&[0])?)?;
    }
    Ok(Model { px: (&xcount / &ycount)?, py: (&ycount / &ycount.sum(&[])?)? })
}

/// The product of 784 probabilities is less than any f32.
fn went_wrong(Model { px, py }: &Model, data: &Tensor) -> Result<()> {
    // The per pixel conditional probabilities, then their product
    let xprob = ((px * data)? + ((1.0 - px)? * (1.0 - data)?)?)?;
    let xprob = (xprob.prod(&[0])? * py)?;
    println!("Unnormalized Probabilities\n{xprob}");
    let xprob = (&xprob / &xprob.sum(&[])?)?;
    println!("Normalized Probabilities\n{xprob}");
    Ok(())
}

impl Model {
    fn log(&self) -> Result<LogModel> {
        Ok(LogModel { logpx: self.px.log()?, logpxneg: (1.0 - &self.px)?.log()?, logpy: self.py.log()? })
    }
}

impl LogModel {
    /// P(y | x) of one image as a column.
    fn bayespost(&self, data: &Tensor) -> Result<Vec<f32>> {
        // P(y | x) is proportional to P(x | y) P(y), hence the prior.
        let logpost = self.logpy.copy()?;
        logpost.add_(&((&self.logpx * data)? + (&self.logpxneg * (1.0 - data)?)?)?.sum(&[0])?)?;
        // The largest becomes 0, so that its exponential is 1: neither over- nor underflow.
        logpost.sub_(&logpost.max(&[])?)?;
        let post = logpost.exp()?;
        post.div_(&post.sum(&[])?)?;
        post.to_vec()
    }

    /// ln P(x | y) + ln P(y) of a batch: the sums of [`LogModel::bayespost`] as two products of matrices.
    fn logposts(&self, images: &Tensor) -> Result<Tensor> {
        let x = on(images)?.reshape(&[-1, 784])?;
        (x.dot(&self.logpx)? + (1.0 - &x)?.dot(&self.logpxneg)?)? + &self.logpy
    }
}

/// Ten images, each with its posterior below, the true class in orange.
fn picture(page: &Page, shown: &[(Vec<f32>, usize, Vec<f32>)]) -> Result<()> {
    draw::page(page, "naive_bayes", (1400, 350), |root| {
        let below = "below each image P(y | x) for the classes y = 0, …, 9; the true one in orange, the others in blue";
        root.draw(&Text::new(below, (6, 330), ("sans-serif", 14))).map_err(draw::failed)?;
        let (root, _) = root.split_vertically(325);
        let (top, bottom) = root.split_vertically(165);
        let (top, bottom) = (top.split_evenly((1, 10)), bottom.split_evenly((1, 10)));
        for (i, (pixels, label, post)) in shown.iter().enumerate() {
            draw::image(&top[i].margin(4, 2, 4, 4), &format!("{label}: {}", CLASS_NAMES[*label]), pixels, 28)?;
            draw::bars(&bottom[i].margin(2, 4, 2, 2), post, *label)?;
        }
        Ok(())
    })
}
