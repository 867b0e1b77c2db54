//! Boxes of a tensor: slice, slices, slice_assign, write, pad.

use std::ops::Range;

use super::layout::{Place, copy_box};
use super::reduce::sum_to;
use super::shape_ops::one;
use crate::{
    Array, Error, Layout, Result, Tensor,
    autograd::{Op, Saved, apply1},
    shape::{self, broadcast, broadcast_strides, strides},
};

/// What is taken of one axis: `count` indices from `start` on, `step` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first index.
    pub start: usize,
    /// How many.
    pub count: usize,
    /// The distance from one to the next, at least 1.
    pub step: usize,
}

/// A span for each axis of `shape`; axes without a range are taken whole.
fn spans(op: &'static str, ranges: &[Range<usize>], shape: &[usize]) -> Result<Vec<Span>> {
    if ranges.len() > shape.len() {
        return Err(Error::shape(op, format!("{} ranges for {} dimensions", ranges.len(), shape.len()), &[shape]));
    }
    let span = |(d, &extent): (usize, &usize)| match ranges.get(d) {
        None => Ok(Span { start: 0, count: extent, step: 1 }),
        Some(r) if r.start <= r.end && r.end <= extent => Ok(Span { start: r.start, count: r.end - r.start, step: 1 }),
        Some(r) => Err(Error::shape(op, format!("{r:?} is outside of axis {d} with extent {extent}"), &[shape])),
    };
    shape.iter().enumerate().map(span).collect()
}

/// The box's shape, and its place in an array of the given shape and layout.
fn place(op: &'static str, spans: &[Span], shape: &[usize], layout: Layout) -> Result<(Vec<usize>, Place)> {
    // The last index that a span reaches.
    let last = |s: &Span| s.count.saturating_sub(1).checked_mul(s.step)?.checked_add(s.start);
    let inside = |s: &Span, e: usize| s.step > 0 && if s.count == 0 { s.start <= e } else { last(s).is_some_and(|l| l < e) };
    if spans.len() != shape.len() || spans.iter().zip(shape).any(|(s, &e)| !inside(s, e)) {
        return Err(Error::shape(op, format!("the box {spans:?} is not inside the array"), &[shape]));
    }
    let own = strides(shape, layout);
    let start = spans.iter().zip(&own).map(|(s, o)| s.start * o).sum();
    // An axis of one index is not stepped along, whatever its step.
    let step = |s: &Span| if s.count > 1 { s.step } else { 1 };
    let strides = spans.iter().zip(&own).map(|(s, o)| step(s) * o).collect();
    Ok((spans.iter().map(|s| s.count).collect(), Place { start, strides }))
}

/// The box of `x`, in x's layout.
fn read(op: &'static str, x: &Array, spans: &[Span]) -> Result<Array> {
    let (shape, from) = place(op, spans, x.shape(), x.layout())?;
    let mut y = Array::uninit(&shape, x.dtype(), x.layout(), &x.context())?;
    let to = Place::whole(&y);
    copy_box(&mut y, &to, x, &from, &shape)?;
    Ok(y)
}

/// The box of `y` becomes `value`, which is stretched to it.
fn write(op: &'static str, y: &mut Array, spans: &[Span], value: &Array) -> Result<()> {
    let (shape, to) = place(op, spans, y.shape(), y.layout())?;
    if broadcast(op, value.shape(), &shape)? != shape {
        return Err(Error::shape(op, "the value does not stretch to the box", &[value.shape(), &shape]));
    }
    if value.shape() == shape {
        return copy_box(y, &to, value, &Place::whole(value), &shape);
    }
    let value = value.to_layout(Layout::RowMajor)?;
    let from = Place { start: 0, strides: broadcast_strides(value.shape(), &shape) };
    copy_box(y, &to, &value, &from, &shape)
}

/// `value` everywhere in the box of `y`.
fn fill(op: &'static str, y: &mut Array, spans: &[Span], value: f64) -> Result<()> {
    let value = Array::full(&[], value, y.dtype(), &y.context())?;
    write(op, y, spans, &value)
}

/// y = the box of x; dx is dy in the box and 0 elsewhere.
#[derive(Clone, Debug)]
pub struct Slice {
    /// A span for each axis.
    pub spans: Vec<Span>,
}

impl Op for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let y = read(self.name(), one(self.name(), x)?, &self.spans)?;
        saved.outputs(self.name(), x, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        let shape = saved.shape(0);
        let mut dx = Array::zeros(shape, dy.dtype(), &dy.context())?.with_layout(dy.layout());
        write(self.name(), &mut dx, &self.spans, dy)?;
        Ok(vec![Some(dx)])
    }
}

/// y = x with its box replaced by a value; dx is dy with zeros in the box, the value's gradient is dy's box.
#[derive(Clone, Debug)]
pub struct SliceAssign {
    /// A span for each axis.
    pub spans: Vec<Span>,
}

impl Op for SliceAssign {
    fn name(&self) -> &'static str {
        "slice_assign"
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let [x, value] = inputs else { return Err(Error::invalid(self.name(), "two inputs are needed")) };
        let mut y = (*x).clone();
        write(self.name(), &mut y, &self.spans, value)?;
        saved.outputs(self.name(), inputs, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        let mut dx = None;
        if saved.needs(0) {
            let mut rest = dy.clone();
            fill(self.name(), &mut rest, &self.spans, 0.0)?;
            dx = Some(rest);
        }
        let dvalue = saved.needs(1).then(|| sum_to(&read(self.name(), dy, &self.spans)?, saved.shape(1))).transpose()?;
        Ok(vec![dx, dvalue])
    }
}

/// y = x with `value` before and after it along each axis; dx is dy without the margin.
#[derive(Clone, Debug)]
pub struct Pad {
    /// For each axis, how many elements before and after.
    pub margins: Vec<(usize, usize)>,
    /// What they are.
    pub value: f64,
}

impl Pad {
    /// The input's box in the output.
    fn inner(&self, shape: &[usize]) -> Vec<Span> {
        self.margins.iter().zip(shape).map(|(m, &e)| Span { start: m.0, count: e, step: 1 }).collect()
    }
}

impl Op for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let x = one(self.name(), inputs)?;
        let refuse = |reason: String| Error::shape(self.name(), reason, &[x.shape()]);
        if self.margins.len() != x.rank() {
            return Err(refuse(format!("{} margins for {} dimensions", self.margins.len(), x.rank())));
        }
        let wide = |(&e, m): (&usize, &(usize, usize))| e.checked_add(m.0)?.checked_add(m.1);
        let shape: Option<Vec<usize>> = x.shape().iter().zip(&self.margins).map(wide).collect();
        let shape = shape.ok_or_else(|| refuse(format!("the margins {:?} are too wide", self.margins)))?;
        let mut y = Array::full(&shape, self.value, x.dtype(), &x.context())?.with_layout(x.layout());
        write(self.name(), &mut y, &self.inner(x.shape()), x)?;
        saved.outputs(self.name(), inputs, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        Ok(vec![Some(read(self.name(), dy, &self.inner(saved.shape(0)))?)])
    }
}

impl Tensor {
    /// The indices `range` of one axis; the others whole.
    ///
    /// # Errors
    /// [`Error::Shape`] when the range is not inside the axis.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::arange(0.0, 6.0, 1.0, &cpu())?.reshape(&[3, 2])?;
    /// assert_eq!(x.slice(0, 1..3)?.to_vec()?, [2., 3., 4., 5.]);
    /// assert_eq!(x.slice(-1, 0..1)?.to_vec()?, [0., 2., 4.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[doc(alias = "narrow")]
    pub fn slice(&self, axis: isize, range: Range<usize>) -> Result<Tensor> {
        self.slice_step(axis, range, 1)
    }

    /// Every `step`-th index of `range` along one axis.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::arange(0.0, 6.0, 1.0, &cpu())?;
    /// assert_eq!(x.slice_step(0, 1..6, 2)?.to_vec()?, [1., 3., 5.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn slice_step(&self, axis: isize, range: Range<usize>, step: usize) -> Result<Tensor> {
        let shape = self.shape();
        let axis = shape::axis("slice", axis, shape.len())?;
        if step == 0 {
            return Err(Error::invalid("slice", "a step of 0 goes nowhere"));
        }
        let mut ranges: Vec<Range<usize>> = shape[..axis].iter().map(|&e| 0..e).collect();
        ranges.push(range);
        let mut spans = spans("slice", &ranges, &shape)?;
        (spans[axis].count, spans[axis].step) = (spans[axis].count.div_ceil(step), step);
        apply1(Slice { spans }, &[self])
    }

    /// A box: a range for each of the first axes, the others whole; the book's `X[1:3, 2:4]`.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::arange(0.0, 12.0, 1.0, &cpu())?.reshape(&[3, 4])?;
    /// assert_eq!(x.slices(&[1..3, 2..4])?.to_vec()?, [6., 7., 10., 11.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn slices(&self, ranges: &[Range<usize>]) -> Result<Tensor> {
        apply1(Slice { spans: spans("slice", ranges, &self.shape())? }, &[self])
    }

    /// Index `i` of the first axis, without that axis: the book's `X[i]`.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::arange(0.0, 12.0, 1.0, &cpu())?.reshape(&[3, 4])?;
    /// assert_eq!(x.at(2)?.to_vec()?, [8., 9., 10., 11.]);
    /// assert_eq!(x.at(-1)?.shape(), [4]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[doc(alias = "select")]
    pub fn at(&self, i: isize) -> Result<Tensor> {
        let shape = self.shape();
        let Some((&extent, rest)) = shape.split_first() else {
            return Err(Error::shape("at", "a scalar has no axis to index", &[&shape]));
        };
        let index = if i < 0 { extent.checked_sub(i.unsigned_abs()) } else { Some(i.unsigned_abs()) };
        let index = index.filter(|&k| k < extent);
        let index = index.ok_or_else(|| Error::shape("at", format!("index {i} is outside of the first axis"), &[&shape]))?;
        self.slice(0, index..index + 1)?.reshape_as(rest)
    }

    /// A copy whose box is `value` (stretched to it); gradients flow to both.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::zeros(&[2, 3], &cpu())?;
    /// let y = x.slice_assign(&[0..2, 1..2], &Tensor::full(&[], 9.0, &cpu())?)?;
    /// assert_eq!(y.to_vec()?, [0., 9., 0., 0., 9., 0.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn slice_assign(&self, ranges: &[Range<usize>], value: &Tensor) -> Result<Tensor> {
        apply1(SliceAssign { spans: spans("slice_assign", ranges, &self.shape())? }, &[self, value])
    }

    /// Writes `value` (stretched) into a box in place: the book's `X[0:2, :] = V`. Not recorded.
    ///
    /// # Errors
    /// [`Error::Shape`] when the value does not stretch to the box, [`Error::DType`] when its dtype is another one,
    /// [`Error::Autograd`] when the tensor is the result of a recorded operation, and in [`crate::autograd::record`] when it or the
    /// value is on the tape: [`Tensor::slice_assign`] is recorded.
    pub fn write(&self, ranges: &[Range<usize>], value: &Tensor) -> Result<()> {
        // Read first: the value may be this very tensor.
        let value = value.array();
        self.write_in_place("write", value.is_recorded(), |x| {
            let spans = spans("write", ranges, x.shape())?;
            write("write", x, &spans, &value)
        })
    }

    /// Writes one number into a box in place: the book's `X[:, 2:6] = 0`. Not recorded.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::ones(&[6, 8], &cpu())?;
    /// x.fill(&[0..6, 2..6], 0.0)?;
    /// assert_eq!(x.at(0)?.to_vec()?, [1., 1., 0., 0., 0., 0., 1., 1.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn fill(&self, ranges: &[Range<usize>], value: f64) -> Result<()> {
        self.write_in_place("fill", false, |x| {
            let spans = spans("fill", ranges, x.shape())?;
            fill("fill", x, &spans, value)
        })
    }

    /// A margin of `value` around the tensor: for each axis, how many elements before and after.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::ones(&[1, 2], &cpu())?;
    /// assert_eq!(x.pad(&[(0, 1), (1, 0)], 7.0)?.to_vec()?, [7., 1., 1., 7., 7., 7.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn pad(&self, margins: &[(usize, usize)], value: f64) -> Result<Tensor> {
        apply1(Pad { margins: margins.to_vec(), value }, &[self])
    }
}
