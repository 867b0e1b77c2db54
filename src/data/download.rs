//! Resumable downloads over plain HTTP, trusted only by their SHA-256.

#[cfg(feature = "download")]
mod http;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files;

/// A build without the feature `download` has no network: the shipped sample takes its place.
#[cfg(not(feature = "download"))]
mod http {
    use super::{Failure, unavailable};

    pub struct Agent;

    pub fn agent(_url: &str) -> Agent {
        Agent
    }

    pub fn transfer(_: &Agent, url: &str, _: &std::path::Path, _: &mut dyn FnMut(u64, u64)) -> super::Result<(), Failure> {
        Err(unavailable(url, "hadal was built without its feature `download`"))
    }
}

/// No file of ours comes near this size: a server that sends more is not sending our file.
const MOST_BYTES: u64 = 1 << 28;

/// How often a transfer that was cut off is taken up again at once, as long as it got further each time.
const RETRIES: u32 = 3;

/// What is told of a running download: the file, the bytes that are here, the bytes in all (0 where unknown).
pub(super) type Progress<'a> = dyn FnMut(&str, u64, u64) + 'a;

/// Why a download failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The network or the disk, which may be better another time: a fallback may take its place.
    Unavailable(Error),
    /// All of the file came, and it is the wrong one: this must be seen.
    Wrong(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unavailable(error) | Failure::Wrong(error) => error,
        }
    }
}

fn unavailable(what: impl ToString, reason: impl ToString) -> Failure {
    Failure::Unavailable(Error::Data { path: what.to_string(), reason: reason.to_string() })
}

fn disk(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |source| Failure::Unavailable(Error::Io { path: path.to_path_buf(), source })
}

/// Downloads `url` to `target` by way of `target.part`, which a later call takes up again; moves it into place only if
/// its SHA-256 is one of `sums`.
pub(super) fn fetch(url: &str, target: &Path, sums: &[&str], progress: &mut Progress<'_>) -> Result<(), Failure> {
    let mut part = target.as_os_str().to_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if url.starts_with("https:") {
        return Err(unavailable(url, "this build speaks plain http only (the SHA-256 is checked); give an http address"));
    }
    let agent = http::agent(url);
    let mut retries = RETRIES;
    loop {
        let before = size(&part);
        match http::transfer(&agent, url, &part, &mut |done, total| progress(&name, done, total)) {
            Ok(()) => break,
            Err(_) if retries > 0 && before < size(&part) => retries -= 1,
            Err(failure) => return Err(failure),
        }
    }
    let sum = sha256(&part).map_err(Failure::Unavailable)?;
    if !sums.contains(&sum.as_str()) {
        let bytes = size(&part);
        fs::remove_file(&part).map_err(disk(&part))?;
        return Err(Failure::Wrong(Error::Data {
            path: url.to_string(),
            reason: format!(
                "SHA-256 {} expected, {sum} found in the {bytes} bytes that came; they were deleted, so that another try starts anew",
                sums.join(" or ")
            ),
        }));
    }
    fs::rename(&part, target).map_err(disk(target))
}

/// A file's SHA-256 in hexadecimal; one that is too long to be ours is refused before it is read.
pub(super) fn sha256(path: &Path) -> Result<String> {
    let (mut file, len) = files::open(path)?;
    if len > MOST_BYTES {
        return Err(files::bad(path, &format!("{len} bytes, where the data set's files have at most {MOST_BYTES}")));
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(n) => hash.update(buffer.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io(path, e)),
        }
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

#[cfg(all(test, feature = "download"))]
pub(super) mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    /// How the test server behaves.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Manners {
        /// It answers `Range` requests with the whole file.
        pub no_range: bool,
        /// It closes the connection after this many bytes of each answer's body.
        pub cut_after: Option<usize>,
        /// It sends no Content-Length.
        pub no_length: bool,
        /// It sends everything as a web page.
        pub html: bool,
    }

    /// A server on this machine, which lives until the test program ends.
    pub struct Server {
        pub url: String,
        /// One line for each request: its path and its Range header.
        pub log: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        pub fn new(files: &[(&str, Vec<u8>)], manners: Manners) -> Self {
            let files: HashMap<String, Vec<u8>> = files.iter().map(|(n, b)| (format!("/{n}"), b.clone())).collect();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}/", listener.local_addr().unwrap());
            let log = Arc::new(Mutex::new(Vec::new()));
            let shared = Arc::clone(&log);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let _ = stream.and_then(|stream| answer(stream, &files, manners, &shared));
                }
            });
            Self { url, log }
        }

        pub fn log(&self) -> Vec<String> {
            std::mem::take(&mut *self.log.lock().unwrap())
        }
    }

    fn answer(
        mut stream: TcpStream,
        files: &HashMap<String, Vec<u8>>,
        manners: Manners,
        log: &Mutex<Vec<String>>,
    ) -> io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let path = lines.next().unwrap()?.split(' ').nth(1).unwrap().to_string();
        let mut range = None;
        for line in lines {
            let line = line?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("range: bytes=") {
                range = Some(value.to_string());
            }
        }
        log.lock().unwrap().push(format!("{path} {}", range.as_deref().unwrap_or("whole")));
        let Some(file) = files.get(&path) else {
            return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        };
        let start = range.filter(|_| !manners.no_range).map_or(0, |r| r.trim_end_matches('-').parse().unwrap());
        let mut head = String::from("HTTP/1.1 ");
        let body = if start >= file.len() && start > 0 {
            head += &format!("416 Range Not Satisfiable\r\nContent-Range: bytes */{}\r\n", file.len());
            &[][..]
        } else if start > 0 {
            let n = file.len();
            head += &format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{n}\r\n", n - 1);
            &file[start..]
        } else {
            head += "200 OK\r\n";
            &file[..]
        };
        if !manners.no_length {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        let kind = if manners.html { "text/html; charset=utf-8" } else { "application/gzip" };
        head += &format!("Content-Type: {kind}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(&body[..body.len().min(manners.cut_after.unwrap_or(usize::MAX))])?;
        stream.shutdown(std::net::Shutdown::Both)
    }

    /// An address where nobody listens.
    pub fn nobody() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/", listener.local_addr().unwrap())
    }

    /// A folder of this test's own, removed when it is dropped.
    pub struct Scratch(pub PathBuf);

    impl Scratch {
        pub fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("hadal-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    pub fn sum(bytes: &[u8]) -> String {
        hex(&Sha256::digest(bytes))
    }

    fn content() -> Vec<u8> {
        (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    struct Case {
        server: Server,
        folder: Scratch,
    }

    impl Case {
        fn new(name: &str, manners: Manners) -> Self {
            Self { server: Server::new(&[("f.gz", content())], manners), folder: Scratch::new(name) }
        }

        fn part(&self) -> PathBuf {
            self.folder.0.join("f.gz.part")
        }

        fn get(&self, sum: &str) -> Result<Vec<(u64, u64)>, Failure> {
            let mut seen = Vec::new();
            let target = self.folder.0.join("f.gz");
            fetch(&format!("{}f.gz", self.server.url), &target, &["other", sum], &mut |name, done, total| {
                assert_eq!(name, "f.gz");
                seen.push((done, total));
            })?;
            assert_eq!(fs::read(target).unwrap(), content());
            assert!(!self.part().exists());
            Ok(seen)
        }
    }

    #[test]
    fn whole() {
        for no_length in [false, true] {
            let case = Case::new(&format!("whole-{no_length}"), Manners { no_length, ..Manners::default() });
            let seen = case.get(&sum(&content())).unwrap();
            let total = if no_length { 0 } else { 300_000 };
            assert_eq!((seen[0], seen[seen.len() - 1]), ((0, total), (300_000, total)));
            assert!(seen.is_sorted());
            assert_eq!(case.server.log(), ["/f.gz whole"]);
        }
    }

    #[test]
    fn resumed() {
        let case = Case::new("resumed", Manners::default());
        fs::write(case.part(), &content()[..123_456]).unwrap();
        let seen = case.get(&sum(&content())).unwrap();
        assert_eq!(seen[0], (123_456, 300_000));
        assert_eq!(case.server.log(), ["/f.gz 123456-"]);
    }

    #[test]
    fn a_complete_part_only_has_to_be_checked() {
        let case = Case::new("complete", Manners::default());
        fs::write(case.part(), content()).unwrap();
        case.get(&sum(&content())).unwrap();
        assert_eq!(case.server.log(), ["/f.gz 300000-"]);
        // One that is too long is of something else.
        fs::write(case.part(), vec![0; 400_000]).unwrap();
        case.get(&sum(&content())).unwrap();
        assert_eq!(case.server.log(), ["/f.gz 400000-", "/f.gz whole"]);
    }

    #[test]
    fn a_server_without_ranges_starts_anew() {
        let case = Case::new("no-range", Manners { no_range: true, ..Manners::default() });
        fs::write(case.part(), vec![7; 350_000]).unwrap();
        let seen = case.get(&sum(&content())).unwrap();
        assert_eq!(seen[0], (0, 300_000));
        assert_eq!(case.server.log(), ["/f.gz 350000-"]);
    }

    #[test]
    fn a_wrong_sum_is_an_error_and_leaves_nothing() {
        let case = Case::new("wrong", Manners::default());
        let failure = case.get("abc").unwrap_err();
        assert!(matches!(failure, Failure::Wrong(_)));
        let text = Error::from(failure).to_string();
        let wanted = format!("f.gz: SHA-256 other or abc expected, {} found in the 300000 bytes", sum(&content()));
        assert!(text.contains(&wanted), "{text}");
        assert_eq!(fs::read_dir(&case.folder.0).unwrap().count(), 0);
    }

    #[test]
    fn a_cut_connection_is_taken_up_again_as_long_as_it_helps() {
        let cut = |n| Manners { cut_after: Some(n), ..Manners::default() };
        let case = Case::new("cut-enough", cut(100_000));
        case.get(&sum(&content())).unwrap();
        assert_eq!(case.server.log(), ["/f.gz whole", "/f.gz 100000-", "/f.gz 200000-"]);

        let case = Case::new("cut", cut(50_000));
        let failure = case.get(&sum(&content())).unwrap_err();
        assert!(matches!(failure, Failure::Unavailable(_)));
        let text = Error::from(failure).to_string();
        assert!(text.contains("the connection ended after 200000 of 300000 bytes"), "{text}");
        assert_eq!(case.server.log().len(), 4);
        assert_eq!(fs::read(case.part()).unwrap(), content()[..200_000], "what has come is kept");
        case.get(&sum(&content())).unwrap();

        let case = Case::new("cut-at-once", cut(0));
        assert!(matches!(case.get(&sum(&content())), Err(Failure::Unavailable(_))));
        assert_eq!(case.server.log().len(), 1);
    }

    #[test]
    fn refusals() {
        let case = Case::new("html", Manners { html: true, ..Manners::default() });
        let text = Error::from(case.get("").unwrap_err()).to_string();
        assert!(text.contains("a web page came"), "{text}");

        let get = |url: &str| fetch(url, &case.folder.0.join("g.gz"), &[], &mut |_, _, _| {});
        let text = |url: &str| match get(url) {
            Err(Failure::Unavailable(error)) => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(text(&format!("{}g.gz", case.server.url)).ends_with("g.gz: the server answered 404 Not Found"));
        assert!(text(&format!("{}g.gz", nobody())).contains("refused"));
        assert!(text("https://127.0.0.1/g.gz").contains("plain http only"));
        assert!(!text("no address").is_empty());
        let target = case.folder.0.join("no/such/folder/f.gz");
        let case = Case::new("disk", Manners::default());
        let failure = fetch(&format!("{}f.gz", case.server.url), &target, &[], &mut |_, _, _| {});
        assert!(matches!(failure, Err(Failure::Unavailable(Error::Io { .. }))), "{failure:?}");
    }
}
