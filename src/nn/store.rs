//! Parameters in safetensors files.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::Path,
};

use safetensors::{Dtype, SafeTensors, View};

use super::Parameter;
use crate::{Array, Context, DType, Error, Layout, Result, dtype::element_type, shape::Display};

/// An array on its way into a file.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

const TYPES: [(DType, Dtype); 6] = [
    (DType::F32, Dtype::F32),
    (DType::F64, Dtype::F64),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::U8, Dtype::U8),
    (DType::I64, Dtype::I64),
];

fn bytes_of(a: &Array) -> Result<Vec<u8>> {
    let host = a.to_layout(Layout::RowMajor)?.to_context(&Context::Cpu)?;
    element_type!(a.dtype(), T => Ok(bytemuck::cast_slice(host.as_slice::<T>()?).to_vec()))
}

fn array_of(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Array> {
    // The file's bytes need not be aligned for the type, hence the copy element by element.
    element_type!(dtype, T => Array::from_vec(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>).collect(), shape, &Context::Cpu))
}

/// Writes named arrays, beside and then renamed: whoever reads the file sees the old one or the new one.
pub(crate) fn write_arrays(arrays: &BTreeMap<String, Array>, metadata: &[(&str, &str)], path: &Path) -> Result<()> {
    let mut all = Vec::new();
    for (name, a) in arrays {
        let Some((_, dtype)) = TYPES.iter().find(|(d, _)| *d == a.dtype()) else { continue };
        all.push((name.clone(), Stored { dtype: *dtype, shape: a.shape().to_vec(), bytes: bytes_of(a)? }));
    }
    let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<HashMap<_, _>>();
    let bytes = safetensors::serialize(all, Some(metadata)).map_err(|e| bad(path, format!("cannot be made: {e}")))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(name);
    fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, path)).map_err(|e| {
        let _ = fs::remove_file(&beside);
        Error::io(path, e)
    })
}

/// The words that [`super::Block::save_with`] put beside the parameters.
///
/// # Errors
/// [`Error::Io`] or [`Error::Data`] when the file cannot be read.
pub fn metadata(path: impl AsRef<Path>) -> Result<HashMap<String, String>> {
    let path = path.as_ref();
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(path, format!("no safetensors file: {e}")))?;
    Ok(header.metadata().clone().unwrap_or_default())
}

/// Reads all arrays of a file.
pub(crate) fn read_arrays(path: &Path) -> Result<BTreeMap<String, Array>> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|e| bad(path, format!("no safetensors file of {} bytes: {e}", bytes.len())))?;
    let mut out = BTreeMap::new();
    for (name, view) in file.tensors() {
        let dtype = TYPES.iter().find(|(_, s)| *s == view.dtype()).map(|(d, _)| *d);
        let dtype = dtype.ok_or_else(|| bad(path, format!("{name} is of type {:?}, which hadal does not know", view.dtype())))?;
        out.insert(name, array_of(dtype, view.shape(), view.data())?);
    }
    Ok(out)
}

pub(super) fn save(parameters: &[(String, Parameter)], metadata: &[(&str, &str)], path: &Path) -> Result<()> {
    let mut arrays = BTreeMap::new();
    for (name, p) in parameters {
        arrays.insert(name.clone(), p.data()?.array());
    }
    write_arrays(&arrays, metadata, path)
}

pub(super) fn load(parameters: &[(String, Parameter)], path: &Path, ctx: &Context) -> Result<()> {
    let mut arrays = read_arrays(path)?;
    // Everything is checked before anything changes.
    for (name, p) in parameters {
        let a = arrays.get(name).ok_or_else(|| bad(path, format!("the net's parameter {name} is missing")))?;
        p.check(a.shape()).map_err(|e| bad(path, e.to_string()))?;
        if !a.dtype().is_float() {
            return Err(bad(path, format!("{name} {} is {}, a float type is expected", Display(a.shape()), a.dtype())));
        }
    }
    let known: HashSet<&str> = parameters.iter().map(|(n, _)| n.as_str()).collect();
    if let Some(extra) = arrays.keys().find(|k| !known.contains(k.as_str())) {
        return Err(bad(path, format!("{extra} is no parameter of this net")));
    }
    for (name, p) in parameters {
        if let Some(a) = arrays.remove(name) {
            p.replace(a, ctx)?;
        }
    }
    Ok(())
}

fn bad(path: &Path, reason: String) -> Error {
    Error::Data { path: path.display().to_string(), reason }
}
