//! The cache on disk. Compiled kernels: a process that starts with a warm cache compiles nothing.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use sha2::{Digest, Sha256};

/// A folder of the cache: in `$HADAL_CACHE`, else the user's cache folder; `HADAL_CACHE=off` keeps none.
pub(super) fn folder(name: &str) -> Option<PathBuf> {
    match env::var_os("HADAL_CACHE") {
        Some(v) if v == "off" => None,
        Some(v) => Some(PathBuf::from(v).join(name)),
        None => crate::user_cache().map(|c| c.join(name)),
    }
}

/// The name under which the image of these inputs is kept.
pub(super) fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hex(&hash.finalize())
}

/// The image under `key`, if there is one and it is whole: the file begins with the SHA-256 of the rest.
pub(super) fn read(key: &str) -> Option<Vec<u8>> {
    let file = fs::read(folder("kernels")?.join(format!("{key}.cubin"))).ok()?;
    let (sum, image) = file.split_at_checked(32)?;
    (Sha256::digest(image).as_slice() == sum).then(|| image.to_vec())
}

/// Keeps an image. A cache that cannot be written is no error: the next process compiles again.
pub(super) fn write(key: &str, image: &[u8]) {
    let Some(folder) = folder("kernels") else { return };
    if fs::create_dir_all(&folder).is_ok() {
        put(&folder.join(format!("{key}.cubin")), &[&Sha256::digest(image), image]);
    }
}

/// Writes a file beside and then renames it, so that nobody ever reads half of one.
pub(super) fn put(path: &Path, parts: &[&[u8]]) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let beside = path.with_extension(format!("{}.{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let put = || -> std::io::Result<()> {
        let mut f = fs::File::create(&beside)?;
        parts.iter().try_for_each(|p| f.write_all(p))?;
        f.sync_all()?;
        fs::rename(&beside, path)
    };
    if put().is_err() {
        let _ = fs::remove_file(&beside);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
