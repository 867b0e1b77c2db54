//! Initializers that look at a weight as a matrix, or as a window: [`Orthogonal`], [`Identity`], [`Bilinear`].

use super::{Init, count, normal};
use crate::{Error, Result, cpu::memory};

/// The rows and columns of a weight: its first extent, and the product of the others.
fn as_matrix(shape: &[usize]) -> Result<(usize, usize)> {
    count(shape)?;
    Ok((shape.first().copied().unwrap_or(1), shape.iter().skip(1).product()))
}

/// A matrix (first extent, product of the others) whose rows are orthogonal and of length `scale`; with more rows than columns
/// its columns are (Saxe, McClelland and Ganguli 2013).
///
/// Such a layer neither stretches nor shrinks what it gets. Drawn as normals and orthogonalized, so uniform among all of them.
///
/// ```
/// use hadal::init::{Init, Orthogonal};
/// let w = Orthogonal::new().values(&[2, 3])?;
/// let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
/// assert!(dot(&w[..3], &w[3..]).abs() < 1e-6 && (dot(&w[..3], &w[..3]) - 1.0).abs() < 1e-6);
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Orthogonal {
    scale: f64,
}

impl Default for Orthogonal {
    fn default() -> Self {
        Self::new()
    }
}

impl Orthogonal {
    /// With rows of length 1. (MXNet's default is √2, which suits relus.)
    pub fn new() -> Self {
        Orthogonal { scale: 1.0 }
    }

    /// With rows of this length.
    pub fn scale(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }
}

impl Init for Orthogonal {
    fn values(&self, shape: &[usize]) -> Result<Vec<f32>> {
        let (rows, cols) = as_matrix(shape)?;
        let (n, len) = (rows.min(cols), rows.max(cols));
        let mut q = memory::collected(normal(&[n, len], 1.0)?.into_iter().map(f64::from))?;
        orthonormalize(&mut q, len)?;
        let at = |r: usize, c: usize| if rows <= cols { r * len + c } else { c * len + r };
        let mut w = memory::reserved(count(shape)?)?;
        for r in 0..rows {
            w.extend((0..cols).map(|c| (self.scale * q[at(r, c)]) as f32));
        }
        Ok(w)
    }
}

/// Makes rows of `len` orthonormal by Gram and Schmidt's method, twice for each row, which is enough in f64.
fn orthonormalize(q: &mut [f64], len: usize) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    for i in 0..q.len() / len {
        let (done, rest) = q.split_at_mut(i * len);
        let row = &mut rest[..len];
        for _ in 0..2 {
            for other in done.chunks(len) {
                let dot: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= dot * b);
            }
        }
        let norm = row.iter().map(|a| a * a).sum::<f64>().sqrt();
        if norm < 1e-9 {
            return Err(Error::invalid("Orthogonal", "the rows that were drawn depend on each other"));
        }
        row.iter_mut().for_each(|a| *a /= norm);
    }
    Ok(())
}

/// The identity: 1 on the diagonal of a dense weight, and in the middle of a convolution's window for equal channels; else 0.
///
/// A layer of as many outputs as inputs then begins by passing on what it gets. (A window of even extents has its middle
/// right of and below the centre, as the book pads it.)
///
/// ```
/// use hadal::init::{Identity, Init};
/// assert_eq!(Identity.values(&[2, 3])?, [1., 0., 0., 0., 1., 0.]);
/// assert_eq!(Identity.values(&[1, 1, 3, 3])?, [0., 0., 0., 0., 1., 0., 0., 0., 0.]);
/// # Ok::<(), hadal::Error>(())
/// ```
///
/// # Errors
/// [`Error::Invalid`] unless there are at least two extents.
#[derive(Clone, Copy, Debug)]
pub struct Identity;

impl Init for Identity {
    fn values(&self, shape: &[usize]) -> Result<Vec<f32>> {
        let [outputs, inputs, window @ ..] = shape else {
            return Err(Error::invalid("Identity", format!("a weight of {shape:?} has no diagonal")));
        };
        let mut w = memory::filled(count(shape)?, 0.0)?;
        let field: usize = window.iter().product();
        let middle = window.iter().fold(0, |at, extent| at * extent + extent / 2);
        for i in 0..*outputs.min(inputs) {
            if let Some(v) = w.get_mut((i * inputs + i) * field + middle) {
                *v = 1.0;
            }
        }
        Ok(w)
    }
}

/// Bilinear interpolation in every window: w\[i, j\] = t(i, kh)·t(j, kw) with t(i, k) = 1 − |i − (k − 1)/2| / ⌈k/2⌉, for
/// transposed convolutions that enlarge images (Long, Shelhamer and Darrell 2015). MXNet's differs, and is lopsided, where ⌈k/2⌉ and k are not both even or odd.
///
/// ```
/// use hadal::init::{Bilinear, Init};
/// let w = Bilinear.values(&[1, 1, 4, 4])?;
/// assert_eq!(w[..4], [0.0625, 0.1875, 0.1875, 0.0625]);
/// # Ok::<(), hadal::Error>(())
/// ```
///
/// # Errors
/// [`Error::Invalid`] unless the weight has four extents.
#[derive(Clone, Copy, Debug)]
pub struct Bilinear;

impl Init for Bilinear {
    fn values(&self, shape: &[usize]) -> Result<Vec<f32>> {
        let [_, _, kh, kw] = *shape else {
            return Err(Error::invalid("Bilinear", format!("a window is needed, the weight has the shape {shape:?}")));
        };
        let t = |i: usize, k: usize| 1.0 - (i as f64 - (k as f64 - 1.0) / 2.0).abs() / k.div_ceil(2) as f64;
        let at = |i: usize| (t(i / kw % kh, kh) * t(i % kw, kw)) as f32;
        memory::collected((0..count(shape)?).map(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orthogonal_rows_or_columns() {
        for shape in [&[5, 5][..], &[3, 7], &[7, 3], &[4, 2, 3, 3], &[20, 1, 2, 2], &[1, 1], &[6]] {
            let w = Orthogonal::new().scale(2.0).values(shape).unwrap();
            let (rows, cols) = as_matrix(shape).unwrap();
            let at = |r: usize, c: usize| f64::from(w[r * cols + c]);
            let (n, len) = (rows.min(cols), rows.max(cols));
            for a in 0..n {
                for b in 0..n {
                    let pair = |k: usize| if rows <= cols { (at(a, k), at(b, k)) } else { (at(k, a), at(k, b)) };
                    let dot: f64 = (0..len).map(pair).map(|(x, y)| x * y).sum();
                    let want = if a == b { 4.0 } else { 0.0 };
                    assert!((dot - want).abs() < 1e-5, "{shape:?}: {a}·{b} is {dot}");
                }
            }
        }
        assert!(Orthogonal::new().values(&[0, 3]).unwrap().is_empty());
        assert!(orthonormalize(&mut [1.0, 2.0, 2.0, 4.0], 2).is_err());
    }

    #[test]
    fn the_identity_passes_on_what_it_gets() -> Result<()> {
        use crate::{Tensor, cpu, ops::Conv2dOptions};
        let x = Tensor::arange(0.0, 50.0, 1.0, &cpu())?.reshape(&[1, 2, 5, 5])?;
        let w = Tensor::from_vec(Identity.values(&[2, 2, 3, 3])?, &[2, 2, 3, 3], &cpu())?;
        assert_eq!(x.conv2d(&w, None, Conv2dOptions::new().padding(1))?.to_vec()?, x.to_vec()?);
        assert!(Identity.values(&[3]).is_err());
        assert!(Identity.values(&[2, 2, 0, 3])?.is_empty());
        Ok(())
    }

    #[test]
    fn bilinear_windows_are_symmetric_and_even_ones_sum_to_the_enlargement() {
        let w = Bilinear.values(&[2, 1, 4, 4]).unwrap();
        assert_eq!(w[..16], w[16..]);
        for i in 0..16 {
            assert_eq!(w[i], w[15 - i]);
        }
        // Enlarging twice, each input is spread over 2x2 outputs' worth of weight.
        assert_eq!(w[..16].iter().sum::<f32>(), 4.0);
        let odd = Bilinear.values(&[1, 1, 3, 3]).unwrap();
        assert_eq!(odd, [0.25, 0.5, 0.25, 0.5, 1.0, 0.5, 0.25, 0.5, 0.25]);
        assert!(Bilinear.values(&[4, 4]).is_err());
    }
}
