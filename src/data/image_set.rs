//! Images with their labels on the host.

use std::{fmt, sync::Arc};

use super::resize::ResizePlan;
use crate::{
    cpu::memory,
    error::{Error, Result},
};

/// Real images with their labels on the host, shared cheaply.
#[derive(Clone, PartialEq, Eq)]
pub struct ImageSet {
    images: Arc<Vec<u8>>,
    labels: Arc<Vec<u8>>,
    rows: usize,
    cols: usize,
}

impl fmt::Debug for ImageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<ImageSet of {}, {}x{}>", self.len(), self.rows, self.cols)
    }
}

impl ImageSet {
    /// Images of `rows` x `cols` grey bytes, one after the other, and a label for each.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where a side is 0 or there aren't `labels.len() * rows * cols` bytes.
    pub fn new(images: Vec<u8>, labels: Vec<u8>, rows: usize, cols: usize) -> Result<Self> {
        let wanted = rows.checked_mul(cols).and_then(|size| size.checked_mul(labels.len()));
        if rows == 0 || cols == 0 || wanted != Some(images.len()) {
            let reason = format!("{} bytes are not {} images of {rows}x{cols}", images.len(), labels.len());
            return Err(Error::Invalid { op: "ImageSet", reason });
        }
        Ok(Self { images: Arc::new(images), labels: Arc::new(labels), rows, cols })
    }

    /// All pixels: image after image, row after row.
    pub fn images(&self) -> &Arc<Vec<u8>> {
        &self.images
    }

    /// The label of each image.
    pub fn labels(&self) -> &Arc<Vec<u8>> {
        &self.labels
    }

    /// The height of each image.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The width of each image.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The pixels and the label of image `i`; `None` past the last.
    pub fn get(&self, i: usize) -> Option<(&[u8], u8)> {
        let (label, size) = (*self.labels.get(i)?, self.rows * self.cols);
        Some((self.images.get(i * size..(i + 1) * size)?, label))
    }

    /// The first `n` images (all, where there are fewer), for quick trials.
    #[must_use]
    pub fn take(&self, n: usize) -> Self {
        if n >= self.len() {
            return self.clone();
        }
        let part = |bytes: &[u8], n: usize| Arc::new(bytes.get(..n).unwrap_or_default().to_vec());
        let images = part(&self.images, n * self.rows * self.cols);
        Self { images, labels: part(&self.labels, n), rows: self.rows, cols: self.cols }
    }

    /// The images with these numbers, resized if asked for, one after the other, and their labels.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where a number is past the last image, or the plan is for images of another size.
    ///
    /// ```
    /// # use hadal::data::{ImageSet, ResizePlan};
    /// let set = ImageSet::new(vec![0, 9, 100, 200], vec![3, 5], 1, 2)?;
    /// assert_eq!(set.gather(&[1], None)?, (vec![100, 200], vec![5]));
    /// let wider = ResizePlan::new(1, 2, 1, 4)?;
    /// assert_eq!(set.gather(&[1, 1], Some(&wider))?.0, [100, 125, 175, 200, 100, 125, 175, 200]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn gather(&self, numbers: &[u32], resize: Option<&ResizePlan>) -> Result<(Vec<u8>, Vec<u8>)> {
        let invalid = |reason| Error::Invalid { op: "ImageSet::gather", reason };
        let size = self.rows * self.cols;
        let mut pixels = memory::reserved(numbers.len().saturating_mul(size))?;
        let mut labels = memory::reserved(numbers.len())?;
        for &i in numbers {
            let (image, label) = self.get(i as usize).ok_or_else(|| invalid(format!("image {i} of {} images", self.len())))?;
            pixels.extend_from_slice(image);
            labels.push(label);
        }
        let Some(plan) = resize else { return Ok((pixels, labels)) };
        if plan.source() != (self.rows, self.cols) {
            let (h, w) = plan.source();
            return Err(invalid(format!("images of {}x{}, a resize plan for {h}x{w}", self.rows, self.cols)));
        }
        let (oh, ow) = plan.target();
        let mut resized = memory::filled(numbers.len().saturating_mul(oh * ow), 0)?;
        plan.run(&pixels, &mut resized)?;
        Ok((resized, labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_sets() {
        let set = ImageSet::new((0..12).collect(), vec![1, 2, 3], 2, 2).unwrap();
        assert_eq!(set.take(2), ImageSet::new((0..8).collect(), vec![1, 2], 2, 2).unwrap());
        assert_eq!(set.take(9), set);
        assert!(set.take(0).is_empty());
        assert_eq!(set.get(3), None);
        assert_eq!(set.gather(&[2, 0], None).unwrap(), (vec![8, 9, 10, 11, 0, 1, 2, 3], vec![3, 1]));
        assert_eq!(set.gather(&[], None).unwrap(), (vec![], vec![]));
        let error = set.gather(&[0, 3], None).unwrap_err().to_string();
        assert_eq!(error, "ImageSet::gather: image 3 of 3 images");
        let plan = ResizePlan::new(2, 3, 4, 4).unwrap();
        let error = set.gather(&[0], Some(&plan)).unwrap_err().to_string();
        assert_eq!(error, "ImageSet::gather: images of 2x2, a resize plan for 2x3");
        for (rows, cols) in [(2, 3), (0, 2), (usize::MAX, 2)] {
            let error = ImageSet::new(vec![0; 12], vec![0; 3], rows, cols).unwrap_err().to_string();
            assert_eq!(error, format!("ImageSet: 12 bytes are not 3 images of {rows}x{cols}"));
        }
    }
}
