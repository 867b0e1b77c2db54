//! The cache on disk. Compiled kernels: a process that starts with a warm cache compiles nothing.

use std::{fs, path::PathBuf};

use super::kept;
use crate::{
    files,
    settings::{self, Cache},
};

/// No cubin of ours comes near this size: what is larger is not read.
const MOST_BYTES: u64 = 64 << 20;

/// A folder of the cache: in `$HADAL_CACHE`, else the user's cache folder; `HADAL_CACHE=off` keeps none.
pub(super) fn folder(name: &str) -> Option<PathBuf> {
    // An unknown word was refused when the device was opened.
    match settings::cache() {
        Ok(Cache::At(path)) => Some(path.join(name)),
        Ok(Cache::User) => crate::user_cache().map(|c| c.join(name)),
        Ok(Cache::Off) | Err(_) => None,
    }
}

/// The image under `key`, if there is one and it is whole.
pub(super) fn read(key: &str) -> Option<Vec<u8>> {
    let file = files::read(&folder("kernels")?.join(format!("{key}.cubin")), MOST_BYTES).ok()?;
    kept::image(&file).map(<[u8]>::to_vec)
}

/// Keeps an image. A cache that cannot be written is no error: the next process compiles again.
pub(super) fn write(key: &str, image: &[u8]) {
    let Some(folder) = folder("kernels") else { return };
    if fs::create_dir_all(&folder).is_ok() {
        let _ = files::write(folder.join(format!("{key}.cubin")), &kept::with_sum(image));
    }
}
