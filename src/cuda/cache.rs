//! Compiled kernels on disk: a process that starts with a warm cache compiles nothing.

use std::{
    env, fs,
    io::Write,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use sha2::{Digest, Sha256};

/// Where compiled kernels are kept: `$HADAL_CACHE`, else the user's cache folder; `HADAL_CACHE=off` keeps none.
fn folder() -> Option<PathBuf> {
    match env::var_os("HADAL_CACHE") {
        Some(v) if v == "off" => None,
        Some(v) => Some(PathBuf::from(v).join("kernels")),
        None => crate::user_cache().map(|c| c.join("kernels")),
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
    let file = fs::read(folder()?.join(format!("{key}.cubin"))).ok()?;
    let (sum, image) = file.split_at_checked(32)?;
    (Sha256::digest(image).as_slice() == sum).then(|| image.to_vec())
}

/// Keeps an image, written beside and then renamed. A cache that cannot be written is no error: the next process compiles again.
pub(super) fn write(key: &str, image: &[u8]) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(folder) = folder() else { return };
    if fs::create_dir_all(&folder).is_err() {
        return;
    }
    let own = format!("{key}.{}.{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let beside = folder.join(own);
    let put = || -> std::io::Result<()> {
        let mut f = fs::File::create(&beside)?;
        f.write_all(&Sha256::digest(image))?;
        f.write_all(image)?;
        f.sync_all()?;
        fs::rename(&beside, folder.join(format!("{key}.cubin")))
    };
    if put().is_err() {
        let _ = fs::remove_file(&beside);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
