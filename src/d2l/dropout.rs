//! The book's dropout, section 4.6.4.

use crate::{Array, Error, Result, Tensor};

/// Dropout from scratch, in the book's four lines: X·\[U > p\] / (1 − p) with a fresh U from U\[0, 1) for each element.
///
/// Its expectation is X, its variance X²·p / (1 − p). It drops whenever it is called; the caller asks
/// [`crate::autograd::is_training`] first. [`crate::nn::Dropout`] and [`Tensor::dropout`] ask themselves, and do it in one
/// pass, without mask and product in memory.
///
/// ```
/// use hadal::{Tensor, cpu, d2l::dropout};
/// let x = Tensor::arange(0.0, 16.0, 1.0, &cpu())?.reshape(&[2, 8])?;
/// assert_eq!(dropout(&x, 0.0)?.to_vec()?, x.to_vec()?);
/// let half = dropout(&x, 0.5)?.to_vec()?;
/// assert!(half.iter().zip(0..).all(|(&y, x)| y == 0.0 || y == 2.0 * x as f32));
/// assert_eq!(dropout(&x, 1.0)?.to_vec()?, [0.0; 16]);
/// # Ok::<(), hadal::Error>(())
/// ```
///
/// # Errors
/// [`Error::Invalid`] when p is outside of [0, 1], [`Error::DType`] for integers.
pub fn dropout(x: &Tensor, p: f64) -> Result<Tensor> {
    if !(0.0..=1.0).contains(&p) {
        return Err(Error::invalid("dropout", format!("the probability {p} is outside of [0, 1]")));
    }
    // All elements are dropped, and 1 / (1 − p) does not exist.
    if p == 1.0 {
        return x.zeros_like();
    }
    let u = Tensor::new(Array::uniform(0.0, 1.0, &x.shape(), x.dtype(), &x.context())?);
    // U = 0 has to be kept for p = 0, hence ≥.
    u.ge(p)?.mul(x)?.div(1.0 - p)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{autograd, cpu};

    #[test]
    fn the_mean_stays_and_the_variance_is_the_formulas() -> Result<()> {
        crate::random::seed(3);
        for p in [0.2, 0.5, 0.9] {
            let y = dropout(&Tensor::full(&[200_000], 3.0, &cpu())?, p)?;
            let mean = y.mean(&[])?.item()?;
            let variance = y.sub(mean)?.square()?.mean(&[])?.item()?;
            assert!((mean / 3.0 - 1.0).abs() < 0.03, "p = {p}: mean {mean}");
            let formula = 9.0 * p / (1.0 - p);
            assert!((variance / formula - 1.0).abs() < 0.03, "p = {p}: variance {variance}, not {formula}");
        }
        Ok(())
    }

    #[test]
    fn gradients_flow_through_what_is_kept() -> Result<()> {
        let x = Tensor::ones(&[100], &cpu())?.attach_grad();
        let y = autograd::record(|| dropout(&x, 0.5))?;
        y.backward()?;
        assert_eq!(x.grad()?.to_vec()?, y.to_vec()?);
        Ok(())
    }

    #[test]
    fn a_probability_is_between_0_and_1() -> Result<()> {
        let x = Tensor::ones(&[2], &cpu())?;
        for p in [-0.1, 1.1, f64::NAN] {
            let text = dropout(&x, p).unwrap_err().to_string();
            assert!(text.contains("outside of [0, 1]"), "{text}");
        }
        assert_eq!(dropout(&x, 0.0)?.to_vec()?, [1.0, 1.0]);
        Ok(())
    }
}
