//! Parameters in safetensors files.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    io::Read,
    path::Path,
};

use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};

use super::Parameter;
use crate::{Array, Context, DType, Error, Layout, Result, dtype::element_type, files, shape::Display};

const TYPES: [(DType, Dtype); 6] = [
    (DType::F32, Dtype::F32),
    (DType::F64, Dtype::F64),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::U8, Dtype::U8),
    (DType::I64, Dtype::I64),
];

/// A header beyond this is no safetensors file: the format's own limit.
const MOST_HEADER: u64 = 100_000_000;

/// Writes named arrays as a whole: whoever reads the file sees the old one or the new one.
pub(crate) fn write_arrays(arrays: &BTreeMap<String, Array>, metadata: &[(&str, &str)], path: &Path) -> Result<()> {
    let mut all = Vec::new();
    for (name, a) in arrays {
        let dtype = TYPES.iter().find(|(d, _)| *d == a.dtype()).map(|(_, s)| *s);
        let dtype = dtype.ok_or_else(|| bad(path, format!("{name} is {}, which safetensors has no name for", a.dtype())))?;
        // To the host first: what fails there has written nothing.
        all.push((name, dtype, a.to_layout(Layout::RowMajor)?.to_context(&Context::Cpu)?));
    }
    // The widest types first, as the format's own library has it, so that all are aligned.
    all.sort_by_key(|(name, dtype, _)| (Reverse(*dtype), *name));
    let mut end = 0;
    let infos = all.iter().map(|(name, dtype, a)| {
        let begin = end;
        end += a.len() * a.dtype().size();
        ((*name).clone(), TensorInfo { dtype: *dtype, shape: a.shape().to_vec(), data_offsets: (begin, end) })
    });
    // Other readers refuse an empty map.
    let metadata: HashMap<_, _> = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let header = Metadata::new(Some(metadata).filter(|m| !m.is_empty()), infos.collect());
    let made = |e: String| bad(path, format!("cannot be made: {e}"));
    let mut header = serde_json::to_vec(&header.map_err(|e| made(e.to_string()))?).map_err(|e| made(e.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut parts: Vec<&[u8]> = Vec::with_capacity(all.len());
    for (_, _, a) in &all {
        parts.push(element_type!(a.dtype(), T => bytemuck::cast_slice(a.as_slice::<T>()?)));
    }
    files::write_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        parts.iter().try_for_each(|bytes| file.write_all(bytes))
    })
}

/// A file whose header was read and found right; the arrays follow in their order.
struct Stored {
    file: File,
    header: Metadata,
}

impl Stored {
    /// Reads the header alone, once its length was compared with the file's.
    fn open(path: &Path) -> Result<Self> {
        let no = |why: String| bad(path, format!("no safetensors file: {why}"));
        let (mut file, len) = files::open(path)?;
        let mut size = [0; 8];
        if len < 8 {
            return Err(no(format!("8 bytes with the header's length expected, {len} found")));
        }
        file.read_exact(&mut size).map_err(|e| Error::io(path, e))?;
        let size = u64::from_le_bytes(size);
        if size > MOST_HEADER || size > len - 8 {
            return Err(no(format!("byte 0 says that the header has {size} bytes, but {} follow", len - 8)));
        }
        let mut json = files::room(size)?;
        Read::by_ref(&mut file).take(size).read_to_end(&mut json).map_err(|e| Error::io(path, e))?;
        let header: Metadata = serde_json::from_slice(&json).map_err(|e| no(format!("the header at byte 8: {e}")))?;
        let wanted = (header.data_len() as u64).checked_add(size + 8);
        if wanted != Some(len) {
            return Err(no(format!("the header asks for {} bytes behind it, {} are there", header.data_len(), len - 8 - size)));
        }
        Ok(Stored { file, header })
    }

    /// Name, type and shape of each array, in the order of the file.
    fn arrays(&self, path: &Path) -> Result<Vec<(String, DType, Vec<usize>)>> {
        let mut out = Vec::new();
        for name in self.header.offset_keys() {
            let Some(info) = self.header.info(&name) else { continue };
            let dtype = TYPES.iter().find(|(_, s)| *s == info.dtype).map(|(d, _)| *d);
            let dtype =
                dtype.ok_or_else(|| bad(path, format!("{name} is of type {:?}, which hadal does not know", info.dtype)))?;
            out.push((name, dtype, info.shape.clone()));
        }
        Ok(out)
    }

    /// The next array, which has this type and shape.
    fn next(&mut self, path: &Path, dtype: DType, shape: &[usize]) -> Result<Array> {
        // The header's library has multiplied them with a check.
        let elements = shape.iter().product::<usize>();
        element_type!(dtype, T => {
            let mut values: Vec<T> = files::room(elements as u64)?;
            values.resize(elements, bytemuck::Zeroable::zeroed());
            self.file.read_exact(bytemuck::cast_slice_mut(&mut values)).map_err(|e| Error::io(path, e))?;
            Array::from_vec(values, shape, &Context::Cpu)
        })
    }
}

/// The words that [`super::Block::save_with`] put beside the parameters; reads the file's header alone.
///
/// # Errors
/// [`Error::Io`] or [`Error::Data`] when the file cannot be read.
pub fn metadata(path: impl AsRef<Path>) -> Result<HashMap<String, String>> {
    Ok(Stored::open(path.as_ref())?.header.metadata().clone().unwrap_or_default())
}

/// Reads all arrays of a file and the words beside them.
pub(crate) fn read_all(path: &Path) -> Result<(BTreeMap<String, Array>, HashMap<String, String>)> {
    let mut file = Stored::open(path)?;
    let mut out = BTreeMap::new();
    for (name, dtype, shape) in file.arrays(path)? {
        out.insert(name, file.next(path, dtype, &shape)?);
    }
    Ok((out, file.header.metadata().clone().unwrap_or_default()))
}

pub(super) fn save(parameters: &[(String, Parameter)], metadata: &[(&str, &str)], path: &Path) -> Result<()> {
    let mut arrays = BTreeMap::new();
    for (name, p) in parameters {
        arrays.insert(name.clone(), p.data()?.array());
    }
    write_arrays(&arrays, metadata, path)
}

pub(super) fn load(parameters: &[(String, Parameter)], path: &Path, ctx: &Context) -> Result<()> {
    let mut file = Stored::open(path)?;
    let stored = file.arrays(path)?;
    // Everything is checked before anything is read or changes.
    let found: HashMap<&str, _> = stored.iter().map(|(name, dtype, shape)| (name.as_str(), (dtype, shape))).collect();
    for (name, p) in parameters {
        let (dtype, shape) =
            found.get(name.as_str()).ok_or_else(|| bad(path, format!("the net's parameter {name} is missing")))?;
        p.check(shape).map_err(|e| bad(path, e.to_string()))?;
        if !dtype.is_float() {
            return Err(bad(path, format!("{name} {} is {dtype}, a float type is expected", Display(shape))));
        }
    }
    let known: HashSet<&str> = parameters.iter().map(|(n, _)| n.as_str()).collect();
    if let Some(extra) = found.keys().find(|k| !known.contains(*k)) {
        return Err(bad(path, format!("{extra} is no parameter of this net")));
    }
    let mut arrays = BTreeMap::new();
    for (name, dtype, shape) in stored {
        let array = file.next(path, dtype, &shape)?;
        arrays.insert(name, array);
    }
    for (name, p) in parameters {
        if let Some(a) = arrays.remove(name) {
            p.replace(a, ctx)?;
        }
    }
    Ok(())
}

fn bad(path: &Path, reason: String) -> Error {
    files::bad(path, &reason)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        Tensor, Trainer, autograd, cpu, init,
        nn::{Block, Dense, Forward, Sequential},
        optim::Sgd,
    };

    #[test]
    fn files_without_arrays_or_words_are_whole_files() -> Result<()> {
        let path = std::env::temp_dir().join(format!("hadal-store-{}", std::process::id()));
        let header = || String::from_utf8_lossy(&fs::read(&path).unwrap()[8..]).into_owned();
        // A net without parameters.
        let empty = Sequential::new();
        empty.save(&path)?;
        assert_eq!(header(), "{}      ");
        empty.load(&path, &cpu())?;
        assert!(metadata(&path)?.is_empty());
        empty.save_with(&path, &[("epoch", "1")])?;
        empty.load(&path, &cpu())?;
        assert_eq!(metadata(&path)?["epoch"], "1");
        // States before the first step.
        let net = Dense::new(1);
        net.initialize(init::One, &cpu())?;
        autograd::pause(|| net.forward(&Tensor::ones(&[1, 2], &cpu())?))?;
        let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.1).momentum(0.9));
        trainer.save_states(&path)?;
        trainer.load_states(&path)?;
        // Parameters without words.
        net.save(&path)?;
        assert!(!header().contains("__metadata__"));
        net.load(&path, &cpu())?;
        fs::remove_file(path).unwrap();
        Ok(())
    }

    #[test]
    fn the_format_is_the_librarys() -> Result<()> {
        let path = std::env::temp_dir().join(format!("hadal-store-format-{}", std::process::id()));
        let array = |v: Vec<f32>, n: usize| Array::from_vec(v, &[n], &cpu());
        let arrays = BTreeMap::from([
            ("b".to_owned(), array(vec![1.0, 2.0, 3.0], 3)?),
            ("a".to_owned(), Array::from_vec(vec![7u8; 5], &[5, 1], &cpu())?),
            ("c".to_owned(), Array::from_vec(vec![0.5f64], &[], &cpu())?),
            ("none".to_owned(), array(vec![], 0)?),
        ]);
        write_arrays(&arrays, &[("k", "v")], &path)?;
        let bytes = fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| bad(&path, e.to_string()))?;
        assert_eq!(file.tensor("b").unwrap().data(), bytemuck::cast_slice::<f32, u8>(&[1.0, 2.0, 3.0]));
        assert_eq!(file.tensor("a").unwrap().shape(), [5, 1]);
        assert_eq!(file.len(), 4);
        let read = read_all(&path)?.0;
        assert_eq!(read.len(), 4);
        assert_eq!(read["c"].to_vec::<f64>()?, [0.5]);
        fs::remove_file(path).unwrap();
        Ok(())
    }
}
