//! What the files of the cache look like: a compiled kernel behind its sum, the tuner's choices as lines. Text and bytes alone, so that
//! `tests/hostile` can damage them without a device.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
};

use sha2::{Digest, Sha256};

/// A candidate of the tuner in the family's own numbers, such as tile, stages and parts.
pub(crate) type Choice = [u32; 5];

/// Winners by family and shape.
pub(super) type Table = HashMap<String, BTreeMap<Vec<usize>, Choice>>;

/// The name under which what is made of these inputs is kept.
pub(super) fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// A file for this image: the SHA-256, then the image.
pub(super) fn with_sum(image: &[u8]) -> Vec<u8> {
    [&Sha256::digest(image)[..], image].concat()
}

/// The image in such a file, if it is whole.
pub(super) fn image(file: &[u8]) -> Option<&[u8]> {
    let (sum, image) = file.split_at_checked(32)?;
    (Sha256::digest(image).as_slice() == sum).then_some(image)
}

/// The lines of a file of choices; `None` when it does not add up.
pub(super) fn parse(text: &str) -> Option<Table> {
    let (lines, sum) = text.trim_end().rsplit_once('\n')?;
    if sum.strip_prefix("# sum ")? != key(&[lines]) {
        return None;
    }
    let mut table = Table::new();
    for line in lines.lines().filter(|l| !l.starts_with('#')) {
        let mut fields = line.split('\t');
        let (family, shape, choice) = (fields.next()?, fields.next()?, fields.next()?);
        let shape = shape.split(' ').map(str::parse).collect::<Result<Vec<usize>, _>>().ok()?;
        let choice = choice.split(' ').map(str::parse).collect::<Result<Vec<u32>, _>>().ok()?;
        table.entry(family.to_owned()).or_default().insert(shape, choice.try_into().ok()?);
    }
    Some(table)
}

/// A file of these choices, under a line that says what they were measured on.
pub(super) fn print(title: &str, table: &Table) -> String {
    fn words<T: ToString>(v: &[T]) -> String {
        v.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
    }
    let mut lines = title.to_owned();
    for (family, shapes) in table.iter().collect::<BTreeMap<_, _>>() {
        for (shape, choice) in shapes {
            let _ = write!(lines, "\n{family}\t{}\t{}", words(shape), words(choice));
        }
    }
    let sum = key(&[&lines]);
    format!("{lines}\n# sum {sum}\n")
}
