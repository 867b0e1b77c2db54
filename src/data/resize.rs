//! Resizing of grey images as the book's data loader does it: bilinear on bytes, before they are scaled to 0..1.
//!
//! The arithmetic is the widespread fixed-point one (OpenCV's `INTER_LINEAR` for 8-bit images, which the book's
//! `transforms.Resize` calls), bit for bit. For the output column `x` the source position is `f = (x + 0.5) * w / ow -
//! 0.5`, rounded to `f32`; with `i = floor(f)` the two weights are `2048 * (1 - (f - i))` and `2048 * (f - i)`, rounded
//! to integers. Left of the first and right of the last column the edge's pixel has all the weight; rows keep their
//! weights there and both of their indices are clamped. Then, in integers,
//!
//! ```text
//! h(y, x)   = (src[y][c.i0] * c.w0 + src[y][c.i1] * c.w1) >> 4                     with c = cols[x]
//! dst(y, x) = (((r.w0 * h(r.i0, x)) >> 16) + ((r.w1 * h(r.i1, x)) >> 16) + 2) >> 2  with r = rows[y]
//! ```
//!
//! All of it depends only on the sizes, so a [`ResizePlan`] holds it as two small tables, which a kernel can use as
//! they are ([`ResizePlan::table`]).

use crate::error::{Error, Result};

/// The largest height or width.
const MAX_SIDE: usize = 1 << 16;

/// One output row's or column's two source indices and their weights (11 bits; together 2048).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The index with weight `w0`, inside the source.
    pub i0: i32,
    /// The index with weight `w1`, inside the source, at least `i0`.
    pub i1: i32,
    /// The weight of `i0`, 0 to 2048.
    pub w0: i32,
    /// The weight of `i1`, 0 to 2048.
    pub w1: i32,
}

/// The tables that resize images of one size to another: see the [module](self) for the formula.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResizePlan {
    from: (usize, usize),
    rows: Vec<Tap>,
    cols: Vec<Tap>,
}

impl ResizePlan {
    /// Plans the resizing of `h` x `w` images to `oh` x `ow`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where a side is 0 or above 65536.
    ///
    /// ```
    /// # use hadal::data::ResizePlan;
    /// let plan = ResizePlan::new(1, 2, 1, 4)?;
    /// let mut wide = [0; 4];
    /// plan.run(&[0, 100], &mut wide)?;
    /// assert_eq!(wide, [0, 25, 75, 100]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn new(h: usize, w: usize, oh: usize, ow: usize) -> Result<Self> {
        if [h, w, oh, ow].iter().any(|side| !(1..=MAX_SIDE).contains(side)) {
            return Err(invalid(format!("sides of 1 to {MAX_SIDE} expected, got {h}x{w} to {oh}x{ow}")));
        }
        Ok(Self { from: (h, w), rows: taps(h, oh, false), cols: taps(w, ow, true) })
    }

    /// The height and width of the source images.
    pub fn source(&self) -> (usize, usize) {
        self.from
    }

    /// The height and width of the resized images.
    pub fn target(&self) -> (usize, usize) {
        (self.rows.len(), self.cols.len())
    }

    /// For each output row, the source rows and weights.
    pub fn rows(&self) -> &[Tap] {
        &self.rows
    }

    /// For each output column, the source columns and weights.
    pub fn cols(&self) -> &[Tap] {
        &self.cols
    }

    /// Both tables in a row for a kernel: `i0, i1, w0, w1` for each output row and then for each output column.
    pub fn table(&self) -> Vec<i32> {
        self.rows.iter().chain(&self.cols).flat_map(|t| [t.i0, t.i1, t.w0, t.w1]).collect()
    }

    /// Resizes the images that lie in `src` one after the other into `dst`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where `src` isn't a whole number of images or `dst` isn't as many resized ones.
    pub fn run(&self, src: &[u8], dst: &mut [u8]) -> Result<()> {
        let ((h, w), (oh, ow)) = (self.source(), self.target());
        if !src.len().is_multiple_of(h * w) || !dst.len().is_multiple_of(oh * ow) || src.len() / (h * w) != dst.len() / (oh * ow)
        {
            let reason = format!(
                "{} source bytes and {} target bytes are not the same number of {h}x{w} and {oh}x{ow} images",
                src.len(),
                dst.len()
            );
            return Err(invalid(reason));
        }
        if (h, w) == (oh, ow) {
            dst.copy_from_slice(src);
            return Ok(());
        }
        // Two source rows, stretched to the output's width; each is made once while the output goes down the image.
        let (mut above, mut below) = (vec![0i16; ow], vec![0i16; ow]);
        let (mut w0, mut w1) = (vec![0i16; ow], vec![0i16; ow]);
        for (image, out) in src.chunks_exact(h * w).zip(dst.chunks_exact_mut(oh * ow)) {
            let (mut above_is, mut below_is) = (-1, -1);
            for (tap, out) in self.rows.iter().zip(out.chunks_exact_mut(ow)) {
                if above_is != tap.i0 {
                    if below_is == tap.i0 {
                        std::mem::swap(&mut above, &mut below);
                        std::mem::swap(&mut above_is, &mut below_is);
                    } else {
                        self.stretch(image, tap.i0, &mut above);
                        above_is = tap.i0;
                    }
                }
                if below_is != tap.i1 {
                    self.stretch(image, tap.i1, &mut below);
                    below_is = tap.i1;
                }
                w0.fill(tap.w0 as i16);
                w1.fill(tap.w1 as i16);
                blend(&above, &below, (&w0, &w1), out);
            }
        }
        Ok(())
    }

    /// h(y, x) of the module's formula for one source row.
    fn stretch(&self, image: &[u8], y: i32, out: &mut [i16]) {
        let (y, w) = (y as usize, self.from.1);
        let row = &image[y * w..(y + 1) * w];
        for (tap, out) in self.cols.iter().zip(out) {
            let (a, b) = (i32::from(row[tap.i0 as usize]), i32::from(row[tap.i1 as usize]));
            *out = ((a * tap.w0 + b * tap.w1) >> 4) as i16; // at most 255 * 2048 / 16 = 32640
        }
    }
}

/// dst(y, x) of the module's formula for one output row.
///
/// All of it fits 16 bits. The weights come as rows of one number because the compiler then uses its instruction for
/// the upper half of a 16-bit product; with a number held in a register it multiplies in 32 bits, three times as slow.
fn blend(above: &[i16], below: &[i16], (w0, w1): (&[i16], &[i16]), out: &mut [u8]) {
    let high = |weight: i16, h: i16| ((i32::from(weight) * i32::from(h)) >> 16) as i16;
    for ((out, (&a, &b)), (&w0, &w1)) in out.iter_mut().zip(above.iter().zip(below)).zip(w0.iter().zip(w1)) {
        *out = ((high(w0, a) + high(w1, b) + 2) >> 2) as u8;
    }
}

/// The taps of one direction from `n` to `out` places; `edge` gives the edge's pixel all the weight outside the source.
fn taps(n: usize, out: usize, edge: bool) -> Vec<Tap> {
    // As the reference computes it: the ratio of the sizes is inverted, not divided the other way round.
    let scale = 1.0 / (out as f64 / n as f64);
    let last = n as i32 - 1;
    let tap = |x| {
        let at = ((f64::from(x) + 0.5) * scale - 0.5) as f32;
        let mut i = at.floor() as i32;
        let mut part = at - i as f32;
        if edge && (i < 0 || i >= last) {
            part = 0.0;
            i = i.clamp(0, last);
        }
        Tap {
            i0: i.clamp(0, last),
            i1: (i + 1).clamp(0, last),
            w0: ((1.0 - part) * 2048.0).round_ties_even() as i32,
            w1: (part * 2048.0).round_ties_even() as i32,
        }
    };
    (0..out as u32).map(tap).collect()
}

/// Resizes one grey image of `h` x `w` bytes to `oh` x `ow`; for many images, keep a [`ResizePlan`].
///
/// # Errors
///
/// [`Error::Invalid`] where a side is 0 or too large, or where `src` or `dst` isn't of its size.
pub fn resize_bilinear_u8(src: &[u8], h: usize, w: usize, dst: &mut [u8], oh: usize, ow: usize) -> Result<()> {
    let plan = ResizePlan::new(h, w, oh, ow)?;
    if src.len() != h * w {
        return Err(invalid(format!("{} bytes are not one {h}x{w} image", src.len())));
    }
    plan.run(src, dst)
}

fn invalid(reason: String) -> Error {
    Error::Invalid { op: "resize", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resize(src: &[u8], h: usize, w: usize, oh: usize, ow: usize) -> Vec<u8> {
        let mut dst = vec![0xaa; oh * ow];
        resize_bilinear_u8(src, h, w, &mut dst, oh, ow).unwrap();
        dst
    }

    /// The test image of the stored vectors: Knuth's multiplicative hash of the pixel's number.
    fn noise(n: usize) -> Vec<u8> {
        (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    /// FNV-1a, 64 bits.
    fn fnv(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    }

    // The expected values are printed by scripts/resize_vectors.py, which asks OpenCV (3.4.18, 4.14 and 5.0 agree, with and without their
    // vector code).
    #[test]
    fn small_images_equal_opencv() {
        assert_eq!(resize(&noise(1), 1, 1, 1, 4), [0, 0, 0, 0]);
        assert_eq!(resize(&noise(2), 1, 2, 1, 8), [0, 0, 20, 59, 99, 138, 158, 158]);
        assert_eq!(resize(&noise(4), 2, 2, 3, 3), [0, 79, 158, 30, 109, 188, 60, 139, 218]);
        assert_eq!(
            resize(&noise(25), 5, 5, 9, 9),
            [
                0, 52, 140, 114, 60, 148, 207, 153, 120, 8, 60, 148, 122, 67, 155, 215, 160, 127, 20, 73, 161, 135, 80, 168, 227,
                173, 140, 33, 86, 174, 148, 93, 118, 139, 148, 153, 46, 99, 186, 160, 106, 52, 26, 114, 167, 59, 111, 199, 173,
                119, 64, 38, 127, 180, 71, 124, 212, 186, 131, 77, 51, 139, 192, 84, 137, 225, 199, 144, 90, 64, 152, 205, 92,
                145, 232, 206, 152, 97, 72, 160, 213
            ]
        );
        assert_eq!(resize(&noise(24), 4, 6, 2, 3), [106, 166, 98, 84, 145, 141]);
        assert_eq!(resize(&noise(15), 3, 5, 7, 2), [118, 193, 122, 197, 132, 206, 142, 217, 151, 144, 161, 72, 164, 48]);
    }

    #[test]
    fn checksums_equal_opencv() {
        for ((h, w, oh, ow), sum) in [
            ((28, 28, 96, 96), 0x37f3235bf84a8abc),
            ((28, 28, 224, 224), 0x3a1ac47519faba3c),
            ((28, 28, 64, 64), 0x88720c1e45f339d3),
            ((28, 28, 32, 32), 0xa3503b0029624ef0),
            ((28, 28, 14, 14), 0x0fd859c87e1d44e2),
            ((28, 28, 7, 7), 0xf8a52a546d54f8f0),
            ((28, 28, 20, 20), 0xbc1b09da6947f77f),
            ((5, 5, 9, 9), 0xed32014a68c4d55a),
            ((1, 1, 4, 4), 0x88201fb960ff6465),
            ((1, 7, 4, 3), 0x40d593227b48f317),
            ((7, 1, 3, 9), 0x75a0f8f17a2ee28a),
            ((28, 20, 31, 77), 0x8ef1291c53acc0a3),
            ((64, 48, 33, 96), 0xde12c03ff3a3627b),
        ] {
            assert_eq!(fnv(&resize(&noise(h * w), h, w, oh, ow)), sum, "{h}x{w} to {oh}x{ow}");
        }
    }

    #[test]
    fn a_plain_loop_over_the_table_gives_the_same_bytes() {
        for (h, w, oh, ow) in [(28, 28, 96, 96), (9, 31, 17, 5), (31, 9, 4, 50), (1, 1, 3, 3), (2, 3, 1, 1)] {
            let plan = ResizePlan::new(h, w, oh, ow).unwrap();
            let (table, src) = (plan.table(), noise(2 * h * w));
            assert_eq!(table.len(), 4 * (oh + ow));
            let mut dst = vec![0; 2 * oh * ow];
            plan.run(&src, &mut dst).unwrap();
            for (at, &found) in dst.iter().enumerate() {
                let (n, y, x) = (at / (oh * ow), at / ow % oh, at % ow);
                let (r, c) = (&table[4 * y..4 * y + 4], &table[4 * (oh + x)..4 * (oh + x) + 4]);
                let px = |y: i32, x: i32| i32::from(src[n * h * w + y as usize * w + x as usize]);
                let h = |y: i32| (px(y, c[0]) * c[2] + px(y, c[1]) * c[3]) >> 4;
                let want = (((r[2] * h(r[0])) >> 16) + ((r[3] * h(r[1])) >> 16) + 2) >> 2;
                assert_eq!(i32::from(found), want, "{at}");
            }
        }
    }

    #[test]
    fn taps_stay_inside_and_sum_to_2048() {
        for (n, out) in [(1, 1), (1, 9), (2, 1), (28, 96), (96, 28), (28, 28), (7, 65536), (65536, 7), (65536, 65535)] {
            for edge in [false, true] {
                for t in taps(n, out, edge) {
                    assert!(0 <= t.i0 && t.i0 <= t.i1 && (t.i1 as usize) < n, "{n} {out} {t:?}");
                    assert!(t.w0 >= 0 && t.w1 >= 0 && t.w0 + t.w1 == 2048, "{n} {out} {t:?}");
                }
            }
        }
    }

    #[test]
    fn the_same_size_is_a_copy_and_extremes_stay() {
        assert_eq!(resize(&noise(12), 3, 4, 3, 4), noise(12));
        assert_eq!(resize(&[255; 28 * 28], 28, 28, 96, 96), [255; 96 * 96]);
        assert_eq!(resize(&[0; 28 * 28], 28, 28, 96, 96), [0; 96 * 96]);
    }

    #[test]
    fn bad_sizes_are_errors() {
        for (h, w, oh, ow) in [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0), (1, 1, 1, usize::MAX)] {
            assert!(matches!(ResizePlan::new(h, w, oh, ow), Err(Error::Invalid { .. })));
        }
        let plan = ResizePlan::new(2, 2, 4, 4).unwrap();
        plan.run(&[], &mut []).unwrap();
        for (src, dst) in [(3, 16), (4, 15), (4, 32), (0, 16), (4, 0)] {
            let error = plan.run(&vec![0; src], &mut vec![0; dst]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("resize: {src} source bytes and {dst} target bytes")), "{error}");
        }
        assert!(resize_bilinear_u8(&[0; 8], 2, 2, &mut [0; 32], 4, 4).is_err());
    }
}
