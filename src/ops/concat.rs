//! Joining and dividing along an axis: concat, stack, split.

use super::layout::{Place, copy_box};
use super::shape_ops::one;
use crate::{
    Array, Error, Layout, Result, Tensor,
    autograd::{Op, Saved, apply, apply1},
    cpu::memory,
    shape,
};

/// The arrays one after the other along `axis`; channels-last when all of them are.
fn join(op: &'static str, x: &[&Array], axis: usize) -> Result<Array> {
    let shapes: Vec<&[usize]> = x.iter().map(|a| a.shape()).collect();
    let Some((head, rest)) = x.split_first() else { return Err(Error::invalid(op, "at least one input is needed")) };
    let alike = |a: &&&Array| {
        a.rank() == head.rank() && a.shape().iter().zip(head.shape()).enumerate().all(|(d, (x, y))| d == axis || x == y)
    };
    if axis >= head.rank() || !rest.iter().all(|a| alike(&a)) {
        return Err(Error::shape(op, format!("the inputs must agree in all axes but axis {axis}"), &shapes));
    }
    if let Some(other) = rest.iter().find(|a| a.dtype() != head.dtype()) {
        return Err(Error::DType { op, dtype: other.dtype(), hint: "all inputs need the type of the first; use `cast`" });
    }
    let mut shape = head.shape().to_vec();
    let total = x.iter().try_fold(0usize, |n, a| n.checked_add(a.shape()[axis]));
    shape[axis] = total.ok_or_else(|| Error::shape(op, "too many elements", &shapes))?;
    let all_last = x.iter().all(|a| a.layout() == Layout::ChannelsLast);
    let layout = if all_last { Layout::ChannelsLast } else { Layout::RowMajor };
    let mut y = Array::uninit(&shape, head.dtype(), layout, &head.context())?;
    let strides = y.strides();
    let mut start = 0;
    for a in x {
        copy_box(&mut y, &Place { start, strides: strides.clone() }, a, &Place::whole(a), a.shape())?;
        start += a.shape()[axis] * strides[axis];
    }
    Ok(y)
}

/// The pieces of `x` along `axis` with the given extents, in x's layout.
fn divide(op: &'static str, x: &Array, sizes: &[usize], axis: usize) -> Result<Vec<Array>> {
    let total = sizes.iter().try_fold(0usize, |n, &s| n.checked_add(s));
    if total.is_none() || x.shape().get(axis).copied() != total {
        return Err(Error::shape(op, format!("pieces of {sizes:?} do not make up axis {axis}"), &[x.shape()]));
    }
    let (mut shape, strides) = (x.shape().to_vec(), x.strides());
    let mut start = 0;
    let mut out = memory::reserved(sizes.len())?;
    for &size in sizes {
        shape[axis] = size;
        let mut y = Array::uninit(&shape, x.dtype(), x.layout(), &x.context())?;
        let to = Place::whole(&y);
        copy_box(&mut y, &to, x, &Place { start, strides: strides.clone() }, &shape)?;
        start += size * strides[axis];
        out.push(y);
    }
    Ok(out)
}

/// y = the inputs one after the other along an axis; each dx is its piece of dy.
#[derive(Clone, Copy, Debug)]
pub struct Concat {
    /// The axis.
    pub axis: usize,
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let y = join(self.name(), x, self.axis)?;
        saved.outputs(self.name(), x, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        let sizes: Vec<usize> = (0..saved.inputs()).map(|i| saved.shape(i).get(self.axis).copied().unwrap_or(0)).collect();
        Ok(divide(self.name(), dy, &sizes, self.axis)?.into_iter().map(Some).collect())
    }
}

/// The pieces of x along an axis; dx is the pieces' gradients one after the other.
#[derive(Clone, Debug)]
pub struct Split {
    /// The extent of each piece.
    pub sizes: Vec<usize>,
    /// The axis.
    pub axis: usize,
}

impl Op for Split {
    fn name(&self) -> &'static str {
        "split"
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let y = divide(self.name(), one(self.name(), x)?, &self.sizes, self.axis)?;
        saved.outputs(self.name(), x, y)
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        saved.check(self.name(), dy)?;
        Ok(vec![Some(join(self.name(), &dy.iter().collect::<Vec<_>>(), self.axis)?)])
    }
}

impl Tensor {
    /// The tensors one after the other along `axis`; they agree in all other axes. Gradients go back to each.
    ///
    /// Of channels-last inputs the result is channels-last (GoogLeNet's and DenseNet's channels).
    ///
    /// # Errors
    /// [`Error::Shape`] when another axis differs, [`Error::Invalid`] without inputs.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let (a, b) = (Tensor::ones(&[2, 1], &cpu())?, Tensor::zeros(&[2, 2], &cpu())?);
    /// assert_eq!(Tensor::concat(&[&a, &b], 1)?.to_vec()?, [1., 0., 0., 1., 0., 0.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[doc(alias = "cat")]
    pub fn concat(tensors: &[&Tensor], axis: isize) -> Result<Tensor> {
        let Some(head) = tensors.first() else { return Err(Error::invalid("concat", "at least one tensor is needed")) };
        apply1(Concat { axis: shape::axis("concat", axis, head.rank())? }, tensors)
    }

    /// Tensors of one shape along a new axis.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let (a, b) = (Tensor::ones(&[2], &cpu())?, Tensor::zeros(&[2], &cpu())?);
    /// assert_eq!(Tensor::stack(&[&a, &b], 0)?.shape(), [2, 2]);
    /// assert_eq!(Tensor::stack(&[&a, &b], -1)?.to_vec()?, [1., 0., 1., 0.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn stack(tensors: &[&Tensor], axis: isize) -> Result<Tensor> {
        let Some(head) = tensors.first() else { return Err(Error::invalid("stack", "at least one tensor is needed")) };
        let axis = shape::axis("stack", axis, head.rank() + 1)? as isize;
        if let Some(other) = tensors.iter().find(|t| t.shape() != head.shape()) {
            return Err(Error::shape("stack", "the tensors must have one shape", &[&head.shape(), &other.shape()]));
        }
        let wide = tensors.iter().map(|t| t.expand_dims(axis)).collect::<Result<Vec<_>>>()?;
        Self::concat(&wide.iter().collect::<Vec<_>>(), axis)
    }

    /// `pieces` equal pieces along `axis`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the extent is no multiple of `pieces`.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let parts = Tensor::arange(0.0, 6.0, 1.0, &cpu())?.split(3, 0)?;
    /// assert_eq!(parts[1].to_vec()?, [2., 3.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[doc(alias = "chunk")]
    pub fn split(&self, pieces: usize, axis: isize) -> Result<Vec<Tensor>> {
        let shape = self.shape();
        let extent = shape[shape::axis("split", axis, shape.len())?];
        if pieces == 0 || pieces > extent.max(1) || !extent.is_multiple_of(pieces) {
            return Err(Error::shape("split", format!("axis {axis} does not divide into {pieces} equal pieces"), &[&shape]));
        }
        self.split_sizes(&memory::filled(pieces, extent / pieces)?, axis)
    }

    /// Pieces of the given extents along `axis`, which together make up the axis.
    pub fn split_sizes(&self, sizes: &[usize], axis: isize) -> Result<Vec<Tensor>> {
        let axis = shape::axis("split", axis, self.rank())?;
        if sizes.is_empty() {
            return Err(Error::invalid("split", "at least one piece is needed"));
        }
        apply(Split { sizes: sizes.to_vec(), axis }, &[self])
    }
}
