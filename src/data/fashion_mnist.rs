//! Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): 60,000 training and 10,000 test images of 28x28 grey pixels in ten
//! classes, found on this machine, downloaded, or replaced by the small sample that ships with this crate.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::download::{self, Failure, Progress};
use super::idx::{self, IdxImages};
use super::image_set::ImageSet;
use crate::error::{Error, Result};

/// The ten classes in the order of their labels.
pub const CLASS_NAMES: [&str; 10] =
    ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];

/// Where the files are downloaded from unless `$HADAL_FASHION_MNIST_URL` says otherwise.
pub const DEFAULT_URL: &str = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/";

const SYSTEM_FOLDER: &str = "/usr/share/datasets/fashion-mnist";

/// One of the four files: its name without `.gz`, and the SHA-256 sums that are right for it.
#[derive(Clone, Copy, Debug)]
struct FileSpec {
    name: &'static str,
    /// Of the compressed file as published, and as Debian's package compresses the same bytes.
    gz: [&'static str; 2],
    /// Of the uncompressed file.
    plain: &'static str,
}

/// Training images and labels, test images and labels.
const FILES: [FileSpec; 4] = [
    FileSpec {
        name: "train-images-idx3-ubyte",
        gz: [
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        ],
        plain: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    },
    FileSpec {
        name: "train-labels-idx1-ubyte",
        gz: [
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        ],
        plain: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    },
    FileSpec {
        name: "t10k-images-idx3-ubyte",
        gz: [
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        ],
        plain: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    },
    FileSpec {
        name: "t10k-labels-idx1-ubyte",
        gz: [
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        ],
        plain: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
];

/// Where the images came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The folder that the caller gave.
    Folder(PathBuf),
    /// The folder of `$HADAL_DATA`.
    Environment(PathBuf),
    /// The user's cache, filled by an earlier download.
    Cache(PathBuf),
    /// The system's data sets.
    System(PathBuf),
    /// The network, just now; the files lie in the user's cache.
    Downloaded(PathBuf),
    /// The small sample that ships with this crate, and why nothing better was at hand.
    Sample(String),
}

/// Whether Fashion-MNIST may come from the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Download {
    /// Where it isn't on this machine; with no network, the shipped sample takes its place.
    #[default]
    Auto,
    /// Not at all (`HADAL_OFFLINE=1` means the same).
    Never,
    /// It must: files found elsewhere are left aside, those in the cache are kept if their sums are right and replaced
    /// if not, and a failure is an error.
    Force,
}

/// Fashion-MNIST in memory: the two sets and where they come from.
///
/// The places are, in order: the folder given by [`Options::folder`] (then it is the only one); `$HADAL_DATA` or its
/// subfolder `fashion-mnist`; the user's cache (`$XDG_CACHE_HOME/hadal/fashion-mnist` or `~/.cache/hadal/fashion-mnist`;
/// `~/Library/Caches` on macOS, `%LOCALAPPDATA%` on Windows); `/usr/share/datasets/fashion-mnist`; a download into the
/// cache; the shipped sample. Files may be compressed or not. Outside of an explicit folder their SHA-256 must be right.
#[derive(Clone, Debug)]
pub struct FashionMnist {
    /// The training images, 60,000 in the full set.
    pub train: ImageSet,
    /// The test images, 10,000 in the full set.
    pub test: ImageSet,
    /// Where they come from.
    pub source: Source,
}

/// Loads Fashion-MNIST from wherever it is to be had, with [`Options::default`].
///
/// # Errors
///
/// As [`Options::load`].
pub fn fashion_mnist() -> Result<FashionMnist> {
    Options::default().load()
}

impl FashionMnist {
    /// Says how to load: which folder, whether to download.
    pub fn options() -> Options {
        Options::default()
    }

    /// The sample of real images that ships with this crate: 2,000 for training and 500 for testing, each class equally
    /// often; `why` is kept for [`FashionMnist::describe`].
    ///
    /// # Errors
    ///
    /// None in practice: the embedded files are read and checked like any others.
    ///
    /// ```
    /// # use hadal::data::FashionMnist;
    /// let data = FashionMnist::sample("a quick look")?;
    /// assert_eq!((data.train.len(), data.test.len()), (2000, 500));
    /// let (pixels, label) = data.train.get(0).unwrap();
    /// assert_eq!(pixels.len(), 28 * 28);
    /// println!("{}", hadal::data::fashion_mnist::CLASS_NAMES[usize::from(label)]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn sample(why: impl Into<String>) -> Result<Self> {
        let set = |images, labels, name: &str| {
            let (images_name, labels_name) = (format!("shipped sample, {name} images"), format!("shipped sample, {name} labels"));
            let images = idx::parse_images(&images_name, images)?;
            pair(images, idx::parse_labels(&labels_name, labels)?, &labels_name)
        };
        Ok(Self {
            train: set(
                include_bytes!("../../data/fashion-mnist-sample/train-images-idx3-ubyte.gz"),
                include_bytes!("../../data/fashion-mnist-sample/train-labels-idx1-ubyte.gz"),
                "training",
            )?,
            test: set(
                include_bytes!("../../data/fashion-mnist-sample/t10k-images-idx3-ubyte.gz"),
                include_bytes!("../../data/fashion-mnist-sample/t10k-labels-idx1-ubyte.gz"),
                "test",
            )?,
            source: Source::Sample(why.into()),
        })
    }

    /// Whether this is the shipped sample and not the full set.
    pub fn is_sample(&self) -> bool {
        matches!(self.source, Source::Sample(_))
    }

    /// One line for the user: how many images of what size from where; for the sample, also why and what to do.
    pub fn describe(&self) -> String {
        let (train, test) = (&self.train, &self.test);
        let counts = format!("{} training and {} test images of {}x{}", train.len(), test.len(), train.rows(), train.cols());
        let from = |what: &str, folder: &Path| format!("Fashion-MNIST: {counts}, {what} {}", folder.display());
        match &self.source {
            Source::Folder(folder) => from("from", folder),
            Source::Environment(folder) => from("from $HADAL_DATA,", folder),
            Source::Cache(folder) => from("from the cache,", folder),
            Source::System(folder) => from("from", folder),
            Source::Downloaded(folder) => from("downloaded to", folder),
            Source::Sample(why) => format!(
                "Fashion-MNIST: NOT the full set but the shipped sample, {counts}; expect lower accuracy ({why}; give its folder or set HADAL_DATA)"
            ),
        }
    }
}

/// How to load Fashion-MNIST.
#[derive(Clone, Debug, Default)]
pub struct Options {
    folder: Option<PathBuf>,
    download: Download,
}

impl Options {
    /// Reads this folder and no other; the files may be any data set of the same form.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Says whether the network may be used.
    #[must_use]
    pub fn download(mut self, download: Download) -> Self {
        self.download = download;
        self
    }

    /// Loads without telling of a download's progress.
    ///
    /// # Errors
    ///
    /// As [`Options::load_with`].
    pub fn load(&self) -> Result<FashionMnist> {
        self.load_with(&mut |_, _, _| {})
    }

    /// Loads; during a download `progress` is told the file, the bytes that are here and the bytes in all (0 where the
    /// server doesn't say).
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and [`Error::Data`], which name the file, where one that should be used is missing, unreadable,
    /// truncated, corrupt or not of its SHA-256 (before and after a download), or where a download that was asked for
    /// fails; [`Error::Invalid`] where the options contradict each other. A network that cannot be reached is no error
    /// with [`Download::Auto`]: then [`FashionMnist::source`] is [`Source::Sample`] and says why.
    pub fn load_with(&self, progress: &mut dyn FnMut(&str, u64, u64)) -> Result<FashionMnist> {
        self.load_from(&Places::of_this_machine()?, &FILES, progress)
    }

    fn load_from(&self, places: &Places, files: &[FileSpec; 4], progress: &mut Progress<'_>) -> Result<FashionMnist> {
        let force = self.download == Download::Force;
        if force && (self.folder.is_some() || places.offline) {
            let but = if places.offline { "HADAL_OFFLINE forbids it" } else { "a folder is given" };
            let reason = format!("a download is asked for, but {but}");
            return Err(Error::Invalid { op: "FashionMnist", reason });
        }
        if let Some(folder) = &self.folder {
            let paths = match look(folder, files) {
                Found::All(paths) => paths,
                Found::Some { missing } | Found::None { missing } => return Err(not_found(folder, missing)),
            };
            return read(&paths, None, Source::Folder(folder.clone()));
        }

        let mut seen = Vec::new();
        if !force {
            for folder in places.data.iter().flat_map(|d| [d.clone(), d.join("fashion-mnist")]) {
                match look(&folder, files) {
                    Found::All(paths) => return read(&paths, Some(files), Source::Environment(folder)),
                    Found::Some { missing } => return Err(not_found(&folder, missing)),
                    Found::None { .. } => {}
                }
            }
            if let Some(folder) = &places.data {
                seen.push(format!("$HADAL_DATA={}", folder.display()));
            }
            let cache = places.cache.as_ref().map(|folder| Source::Cache(folder.clone()));
            let system = Source::System(places.system.clone());
            for source in cache.into_iter().chain([system]) {
                if let Source::Cache(folder) | Source::System(folder) = &source {
                    match look(folder, files) {
                        Found::All(paths) => return read(&paths, Some(files), source),
                        Found::Some { missing } => seen.push(format!("{} (lacks {missing})", folder.display())),
                        Found::None { .. } => seen.push(folder.display().to_string()),
                    }
                }
            }
        }

        let mut why = format!("it is not in {}", seen.join(", "));
        if self.download == Download::Never || places.offline {
            why += if places.offline { ", and HADAL_OFFLINE forbids a download" } else { ", and no download is wanted" };
            return FashionMnist::sample(why);
        }
        let fetched = match &places.cache {
            Some(folder) => fetch(folder, &places.url, files, force, progress),
            None => Err(Failure::Unavailable(Error::Data {
                path: "cache".into(),
                reason: "no place for a download: neither XDG_CACHE_HOME nor HOME is set".into(),
            })),
        };
        match (fetched, &places.cache) {
            (Ok(paths), Some(folder)) => read(&paths, Some(files), Source::Downloaded(folder.clone())),
            (Err(Failure::Unavailable(error)), _) if !force => {
                FashionMnist::sample(format!("{why}, and the download failed: {error}"))
            }
            (Err(failure), _) => Err(failure.into()),
            (Ok(_), None) => FashionMnist::sample(why),
        }
    }
}

/// What the environment says of the places to look in.
#[derive(Clone, Debug)]
struct Places {
    data: Option<PathBuf>,
    cache: Option<PathBuf>,
    system: PathBuf,
    offline: bool,
    url: String,
}

impl Places {
    fn of_this_machine() -> Result<Self> {
        let path = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = || path("HOME").or_else(|| path("USERPROFILE"));
        let cache = path("XDG_CACHE_HOME").filter(|p| p.is_absolute()).or_else(|| {
            if cfg!(target_os = "macos") {
                home().map(|h| h.join("Library").join("Caches"))
            } else if cfg!(windows) {
                path("LOCALAPPDATA").or_else(|| home().map(|h| h.join("AppData").join("Local")))
            } else {
                home().map(|h| h.join(".cache"))
            }
        });
        let text = |name| env::var(name).ok().filter(|v| !v.is_empty());
        Ok(Self {
            data: path("HADAL_DATA"),
            cache: cache.map(|c| c.join("hadal").join("fashion-mnist")),
            system: PathBuf::from(SYSTEM_FOLDER),
            offline: crate::settings::flag("HADAL_OFFLINE", false)?,
            url: text("HADAL_FASHION_MNIST_URL").unwrap_or_else(|| DEFAULT_URL.into()),
        })
    }
}

enum Found {
    All([PathBuf; 4]),
    Some { missing: &'static str },
    None { missing: &'static str },
}

/// The file in this folder, compressed or not.
fn find(folder: &Path, file: &FileSpec) -> Option<PathBuf> {
    [folder.join(format!("{}.gz", file.name)), folder.join(file.name)].into_iter().find(|path| path.is_file())
}

fn look(folder: &Path, files: &[FileSpec; 4]) -> Found {
    match files.each_ref().map(|file| find(folder, file)) {
        [Some(a), Some(b), Some(c), Some(d)] => Found::All([a, b, c, d]),
        paths => {
            let missing = files.iter().zip(&paths).find(|(_, path)| path.is_none()).map_or("", |(file, _)| file.name);
            if paths.iter().any(Option::is_some) { Found::Some { missing } } else { Found::None { missing } }
        }
    }
}

fn not_found(folder: &Path, missing: &str) -> Error {
    let path = folder.join(format!("{missing}.gz")).display().to_string();
    let reason = if folder.is_dir() { "not found, nor without .gz" } else { "not found: there is no such folder" };
    Error::Data { path, reason: reason.into() }
}

/// Reads the four files; with `files`, after their SHA-256 was found right.
fn read(paths: &[PathBuf; 4], files: Option<&[FileSpec; 4]>, source: Source) -> Result<FashionMnist> {
    for (path, file) in paths.iter().zip(files.into_iter().flatten()) {
        verify(path, file)?;
    }
    let [train_images, train_labels, test_images, test_labels] = paths;
    let set =
        |images: &Path, labels: &Path| pair(idx::read_images(images)?, idx::read_labels(labels)?, &labels.display().to_string());
    let (train, test) = (set(train_images, train_labels)?, set(test_images, test_labels)?);
    if (train.rows(), train.cols()) != (test.rows(), test.cols()) {
        let (path, found) = (test_images.display().to_string(), (test.rows(), test.cols()));
        let reason =
            format!("images of {}x{} expected as in the training set, {}x{} found", train.rows(), train.cols(), found.0, found.1);
        return Err(Error::Data { path, reason });
    }
    Ok(FashionMnist { train, test, source })
}

fn pair(images: IdxImages, labels: Vec<u8>, labels_name: &str) -> Result<ImageSet> {
    idx::check_labels(labels_name, &labels, images.count, CLASS_NAMES.len())?;
    ImageSet::new(images.pixels, labels, images.rows, images.cols)
}

fn verify(path: &Path, file: &FileSpec) -> Result<()> {
    let sum = download::sha256(path)?;
    let compressed = path.extension().is_some_and(|e| e == "gz");
    let wanted: &[&str] = if compressed { &file.gz } else { &[file.plain] };
    if wanted.contains(&sum.as_str()) {
        return Ok(());
    }
    Err(Error::Data {
        path: path.display().to_string(),
        reason: format!(
            "SHA-256 {} expected, {sum} found; delete it or run with --download (data of your own: give its folder explicitly)",
            wanted.join(" or ")
        ),
    })
}

/// Downloads what the cache lacks; with `force`, also what it has with a wrong sum.
fn fetch(
    folder: &Path,
    url: &str,
    files: &[FileSpec; 4],
    force: bool,
    progress: &mut Progress<'_>,
) -> Result<[PathBuf; 4], Failure> {
    let disk = |source| Failure::Unavailable(Error::Io { path: folder.to_path_buf(), source });
    fs::create_dir_all(folder).map_err(disk)?;
    // One program at a time: a second one waits, and then finds the files. Released when it is dropped.
    let lock = File::create(folder.join(".lock")).map_err(disk)?;
    let _ = lock.lock();
    for file in files {
        let target = folder.join(format!("{}.gz", file.name));
        let have = if force { verify(&target, file).is_ok() } else { find(folder, file).is_some() };
        if !have {
            let address = format!("{}/{}.gz", url.trim_end_matches('/'), file.name);
            download::fetch(&address, &target, &file.gz, progress)?;
        }
    }
    match look(folder, files) {
        Found::All(paths) => Ok(paths),
        Found::Some { missing } | Found::None { missing } => Err(Failure::Unavailable(not_found(folder, missing))),
    }
}

#[cfg(test)]
mod tests;
