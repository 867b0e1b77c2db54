//! Files that are whole: written beside and then renamed, and read within bounds. Every file that hadal writes is written here.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufWriter, ErrorKind, Read, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{Context, Error, Result};

/// How the names of files that are not finished end.
const UNFINISHED: &str = ".hadal-tmp";

/// Writes a file as a whole: whoever reads `path` finds what was there or `bytes`, whenever this process is killed and
/// however many threads and processes write it.
///
/// The bytes go to a file of another name in the same folder, which is then renamed. A symbolic link stays one, and the file that it
/// names is replaced; the permissions of a file that was there are kept. What is no file (a pipe, `/dev/null`) is written directly.
/// Unfinished files of a run that was killed are removed by the next call that writes into their folder.
///
/// # Errors
/// [`Error::Io`] with the path; nothing is left then.
///
/// ```
/// let path = std::env::temp_dir().join("hadal-files-example.txt");
/// hadal::files::write(&path, b"whole")?;
/// assert_eq!(std::fs::read(&path).unwrap(), b"whole");
/// # std::fs::remove_file(path).unwrap();
/// # Ok::<(), hadal::Error>(())
/// ```
pub fn write(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(bytes))
}

/// [`write()`] for what need not be in memory at once: `fill` writes the content, buffered.
///
/// # Errors
/// As [`write()`], and those of `fill`.
pub fn write_with(path: impl AsRef<Path>, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    replace(path, fill).map_err(|e| Error::io(path, e))
}

fn replace(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let filled = |file: &File| {
        let mut out = BufWriter::with_capacity(1 << 16, file);
        fill(&mut out)?;
        out.flush()
    };
    let there = fs::metadata(path).ok();
    match &there {
        Some(there) if there.is_dir() => return Err(ErrorKind::IsADirectory.into()),
        Some(there) if !there.is_file() => return filled(&OpenOptions::new().write(true).open(path)?),
        _ => {}
    }
    let target = behind_links(path)?;
    let name = target.file_name().ok_or(ErrorKind::InvalidInput)?.to_string_lossy();
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    remove_unfinished(folder);
    let mut beside = Beside::new(folder, &name)?;
    filled(&beside.file)?;
    if let Some(there) = there {
        beside.file.set_permissions(there.permissions())?;
    }
    beside.file.sync_all()?;
    fs::rename(&beside.path, &target)?;
    beside.renamed = true;
    Ok(())
}

/// The path that a chain of symbolic links ends at, be there a file or not.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut at = path.to_path_buf();
    // As many as Linux follows.
    for _ in 0..40 {
        match fs::read_link(&at) {
            Ok(to) => at = at.parent().unwrap_or(Path::new("")).join(to),
            Err(_) => return Ok(at),
        }
    }
    Err(io::Error::other("too many symbolic links, one behind the other"))
}

/// A file that is being written, locked; removed unless it was renamed.
struct Beside {
    file: File,
    path: PathBuf,
    renamed: bool,
}

impl Beside {
    fn new(folder: &Path, name: &str) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // File systems end names at 255 bytes.
        let end = (0..=name.len().min(180)).rev().find(|&end| name.is_char_boundary(end));
        let name = &name[..end.unwrap_or(0)];
        for _ in 0..1000 {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!(".{name}.{}-{number}{UNFINISHED}", process::id()));
            let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => file,
                // Another machine's process of the same number, on a shared disk.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            };
            let mine = match file.try_lock() {
                Ok(()) => path.exists(),
                // Where there are no locks nothing is removed either.
                Err(TryLockError::Error(_)) => true,
                Err(TryLockError::WouldBlock) => false,
            };
            // Else somebody who tidies up was faster than the lock, and takes it for a dead process's.
            if mine {
                return Ok(Beside { file, path, renamed: false });
            }
        }
        Err(io::Error::new(ErrorKind::AlreadyExists, "no name is free for the unfinished file beside it"))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the unfinished files of processes that have ended: who still writes holds a lock, which the system takes back when a
/// process ends, however that comes about.
fn remove_unfinished(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let named = name.to_str().is_some_and(|n| n.starts_with('.') && n.ends_with(UNFINISHED));
        if named && entry.file_type().is_ok_and(|t| t.is_file()) {
            let Ok(file) = OpenOptions::new().write(true).open(entry.path()) else { continue };
            // The lock is kept until the file is gone: its writer, where it has not locked it yet, then sees that it lost it.
            if file.try_lock().is_ok() {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Opens a file to read it, and says how long it is. What is no file is refused, since reading a pipe might never end.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let found = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !found.is_file() {
        return Err(bad(path, "not a file"));
    }
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
    Ok((file, len))
}

/// Reads a file of at most `most` bytes; a longer one is refused before anything of it is read.
pub(crate) fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let (file, len) = open(path)?;
    if len > most {
        return Err(bad(path, &format!("{len} bytes long, where at most {most} are expected")));
    }
    let mut bytes = room(len)?;
    file.take(most).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    Ok(bytes)
}

/// An empty vector with room for so many elements, or an error where there is none.
pub(crate) fn room<T>(elements: u64) -> Result<Vec<T>> {
    let (mut v, n) = (Vec::new(), usize::try_from(elements).unwrap_or(usize::MAX));
    v.try_reserve_exact(n).map_err(|_| Error::OutOfMemory {
        context: Context::Cpu,
        requested: n.saturating_mul(size_of::<T>()),
        in_use: 0,
        cached: 0,
        free: 0,
    })?;
    Ok(v)
}

/// An error about a file's content.
pub(crate) fn bad(path: &Path, reason: &str) -> Error {
    Error::Data { path: path.display().to_string(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("hadal-files-{name}-{}", process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn threads_that_write_one_path_all_succeed() {
        let folder = scratch("threads");
        let path = folder.join("f");
        std::thread::scope(|s| {
            for t in 0..8u8 {
                let path = &path;
                s.spawn(move || (0..30).for_each(|_| write(path, &[t; 1000]).unwrap()));
            }
        });
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() == 1000 && bytes.iter().all(|b| *b == bytes[0]));
        assert_eq!(names(&folder), ["f"]);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn only_the_dead_lose_their_unfinished_files() {
        let folder = scratch("dead");
        let dead = folder.join(format!(".f.1-0{UNFINISHED}"));
        fs::write(&dead, "half").unwrap();
        let alive = Beside::new(&folder, "g").unwrap();
        fs::write(folder.join("notes.hadal-tmp"), "a user's own name").unwrap();
        write(folder.join("f"), b"whole").unwrap();
        assert!(!dead.exists() && alive.path.exists());
        drop(alive);
        assert_eq!(names(&folder), ["f", "notes.hadal-tmp"]);
        // A failure leaves nothing either.
        let failed = write_with(folder.join("f"), |file| {
            file.write_all(b"new")?;
            Err(io::Error::other("the disk is full"))
        });
        assert!(failed.unwrap_err().to_string().contains("the disk is full"));
        assert_eq!((names(&folder).len(), fs::read(folder.join("f")).unwrap()), (2, b"whole".to_vec()));
        fs::remove_dir_all(folder).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn links_permissions_and_devices_stay_what_they_are() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = scratch("links");
        fs::create_dir(folder.join("far")).unwrap();
        let (link, second, file) = (folder.join("link"), folder.join("second"), folder.join("far/file"));
        symlink("far/file", &link).unwrap();
        symlink("link", &second).unwrap();
        // First the links lead nowhere, then to a file.
        write(&second, b"one").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"one");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        write(&second, b"two").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink() && fs::symlink_metadata(&second).unwrap().is_symlink());
        let found = fs::metadata(&file).unwrap();
        assert!(found.is_file() && found.permissions().mode() & 0o777 == 0o600);
        assert_eq!(fs::read(&file).unwrap(), b"two");
        symlink("round", folder.join("round")).unwrap();
        assert!(write(folder.join("round"), b"").is_err());
        write("/dev/null", b"nothing").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        assert!(matches!(write(&folder, b""), Err(Error::Io { .. })));
        write(folder.join("n".repeat(250)), b"a long name").unwrap();
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_too_long_is_not_read() {
        let folder = scratch("long");
        let path = folder.join("f");
        // It takes no room on the disk, but would in memory.
        File::create(&path).unwrap().set_len(3 << 30).unwrap();
        let e = read(&path, 1 << 20).unwrap_err().to_string();
        assert!(e.contains("3221225472 bytes long"), "{e}");
        assert!(read(&folder, 1 << 20).unwrap_err().to_string().contains("not a file"));
        write(&path, b"short").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"short");
        assert!(read(&path, 4).is_err());
        fs::remove_dir_all(folder).unwrap();
    }
}
