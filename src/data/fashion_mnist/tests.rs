//! Search order, checks and downloads, on small files and a server on this machine.

use super::*;
use crate::data::download::tests::{Manners, Scratch, Server, nobody, sum};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;

/// A set of four small files with their sums.
struct Tiny {
    specs: [FileSpec; 4],
    plain: [Vec<u8>; 4],
    gz: [Vec<u8>; 4],
}

fn tiny() -> Tiny {
    let bytes = |fields: &[u32], body: &[u8]| {
        let mut bytes: Vec<u8> = fields.iter().flat_map(|f| f.to_be_bytes()).collect();
        bytes.extend(body);
        bytes
    };
    let plain = [
        bytes(&[2051, 3, 2, 2], &(1..13).collect::<Vec<u8>>()),
        bytes(&[2049, 3], &[0, 9, 5]),
        bytes(&[2051, 1, 2, 2], &[9; 4]),
        bytes(&[2049, 1], &[4]),
    ];
    let gz = plain.each_ref().map(|bytes| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    });
    let mut specs = FILES;
    for ((spec, plain), gz) in specs.iter_mut().zip(&plain).zip(&gz) {
        spec.plain = sum(plain).leak();
        spec.gz = ["another sum", sum(gz).leak()];
    }
    Tiny { specs, plain, gz }
}

impl Tiny {
    fn write(&self, folder: &Path, gz: bool) {
        fs::create_dir_all(folder).unwrap();
        for ((spec, plain), packed) in self.specs.iter().zip(&self.plain).zip(&self.gz) {
            if gz {
                fs::write(folder.join(format!("{}.gz", spec.name)), packed).unwrap();
            } else {
                fs::write(folder.join(spec.name), plain).unwrap();
            }
        }
    }

    fn served(&self, manners: Manners) -> Server {
        let names = self.specs.map(|spec| format!("{}.gz", spec.name));
        let files: Vec<_> = names.iter().map(String::as_str).zip(self.gz.iter().cloned()).collect();
        Server::new(&files, manners)
    }
}

fn places(root: &Path) -> Places {
    Places { data: None, cache: Some(root.join("cache")), system: root.join("system"), offline: false, url: nobody() }
}

fn load(options: &Options, places: &Places, tiny: &Tiny) -> Result<FashionMnist> {
    options.load_from(places, &tiny.specs, &mut |_, _, _| {})
}

fn check(data: &FashionMnist, source: Source) {
    assert_eq!(data.source, source);
    assert_eq!(data.train.get(1), Some((&[5, 6, 7, 8][..], 9)));
    assert_eq!(data.test.get(0), Some((&[9; 4][..], 4)));
    assert_eq!((data.train.len(), data.test.len()), (3, 1));
    assert!(!data.is_sample());
}

fn error(result: Result<FashionMnist>) -> String {
    result.map(|data| data.describe()).unwrap_err().to_string()
}

#[test]
fn the_places_in_order() {
    let (scratch, tiny, auto) = (Scratch::new("order"), tiny(), Options::default());
    let root = &scratch.0;
    let mut places = places(root);

    let data = load(&auto, &places, &tiny).unwrap();
    assert!(data.is_sample());
    let line = data.describe();
    assert!(
        line.starts_with("Fashion-MNIST: NOT the full set but the shipped sample, 2000 training and 500 test images of 28x28")
    );
    assert!(line.contains(&format!("it is not in {}", root.join("cache").display())), "{line}");
    assert!(line.contains("the download failed: http://127.0.0.1:") && line.contains("refused"), "{line}");
    let _ = fs::remove_dir_all(root.join("cache"));

    tiny.write(&places.system, true);
    check(&load(&auto, &places, &tiny).unwrap(), Source::System(places.system.clone()));
    let cache = root.join("cache");
    tiny.write(&cache, false);
    check(&load(&auto, &places, &tiny).unwrap(), Source::Cache(cache));
    let base = root.join("data");
    places.data = Some(base.clone());
    check(&load(&auto, &places, &tiny).unwrap(), Source::Cache(root.join("cache")));
    tiny.write(&base.join("fashion-mnist"), true);
    check(&load(&auto, &places, &tiny).unwrap(), Source::Environment(base.join("fashion-mnist")));
    tiny.write(&base, false);
    let data = load(&auto, &places, &tiny).unwrap();
    assert_eq!(
        data.describe(),
        format!("Fashion-MNIST: 3 training and 1 test images of 2x2, from $HADAL_DATA, {}", base.display())
    );
    check(&data, Source::Environment(base));
    let own = root.join("own");
    tiny.write(&own, true);
    check(&load(&auto.clone().folder(&own), &places, &tiny).unwrap(), Source::Folder(own));
}

#[test]
fn an_explicit_folder_is_never_replaced() {
    let (scratch, tiny) = (Scratch::new("explicit"), tiny());
    let (root, places) = (&scratch.0, places(&scratch.0));
    tiny.write(&places.system, true);
    let own = root.join("own");
    let options = Options::default().folder(&own);
    let labels = own.join("t10k-labels-idx1-ubyte.gz");
    let text = error(load(&options, &places, &tiny));
    assert!(text.ends_with("train-images-idx3-ubyte.gz: not found: there is no such folder"), "{text}");
    tiny.write(&own, true);
    fs::remove_file(&labels).unwrap();
    assert_eq!(error(load(&options, &places, &tiny)), format!("{}: not found, nor without .gz", labels.display()));

    // Other data of the same form is welcome, but its structure is checked.
    idx::write_labels(&labels, &[7]).unwrap();
    assert_eq!(load(&options, &places, &tiny).unwrap().test.get(0), Some((&[9; 4][..], 7)));
    idx::write_labels(&labels, &[10]).unwrap();
    let at = labels.display();
    assert_eq!(error(load(&options, &places, &tiny)), format!("{at}: label 10 of item 0 (byte 8) is not below 10"));
    idx::write_labels(&labels, &[1, 2]).unwrap();
    let text = error(load(&options, &places, &tiny));
    assert_eq!(text, format!("{at}: 1 labels expected (one for each image), 2 found"));
    idx::write_labels(&labels, &[1]).unwrap();
    idx::write_images(own.join("t10k-images-idx3-ubyte.gz"), 1, 4, &[1; 4]).unwrap();
    let text = error(load(&options, &places, &tiny));
    assert!(text.contains("images of 2x2 expected as in the training set, 1x4 found"), "{text}");
    let half = &tiny.plain[0][..20];
    fs::remove_file(own.join("train-images-idx3-ubyte.gz")).unwrap();
    fs::write(own.join("train-images-idx3-ubyte"), half).unwrap();
    let text = error(load(&options, &places, &tiny));
    assert!(text.ends_with("28 bytes expected, 20 found (truncated download?); delete it or run with --download"));

    let force = options.download(Download::Force);
    assert!(matches!(load(&force, &places, &tiny), Err(Error::Invalid { .. })));
}

#[test]
fn found_files_must_have_their_sums() {
    let (scratch, tiny, auto) = (Scratch::new("sums"), tiny(), Options::default());
    let mut places = places(&scratch.0);
    for gz in [true, false] {
        tiny.write(&places.system, gz);
        let name = if gz { "train-labels-idx1-ubyte.gz" } else { "train-labels-idx1-ubyte" };
        let path = places.system.join(name);
        idx::write_labels(&path, &[0, 9, 6]).unwrap();
        let text = error(load(&auto, &places, &tiny));
        let wanted = if gz { tiny.specs[1].gz.join(" or ") } else { tiny.specs[1].plain.to_string() };
        let found = sum(&fs::read(&path).unwrap());
        assert!(text.starts_with(&format!("{}: SHA-256 {wanted} expected, {found} found", path.display())), "{text}");
        fs::remove_dir_all(&places.system).unwrap();
    }
    // A part of the set in $HADAL_DATA is a mistake to be told; in the system's folder it is passed over.
    tiny.write(&places.system, true);
    fs::remove_file(places.system.join("train-labels-idx1-ubyte.gz")).unwrap();
    let text = load(&auto, &places, &tiny).unwrap().describe();
    assert!(text.contains("system (lacks train-labels-idx1-ubyte)"), "{text}");
    places.data = Some(places.system.clone());
    let text = error(load(&auto, &places, &tiny));
    assert!(text.ends_with("train-labels-idx1-ubyte.gz: not found, nor without .gz"), "{text}");
}

#[test]
fn downloads() {
    let (scratch, tiny) = (Scratch::new("downloads"), tiny());
    let mut places = places(&scratch.0);
    let cache = scratch.0.join("cache");
    let server = tiny.served(Manners::default());
    places.url = server.url.clone();

    // What is in the cache already is not asked for again.
    fs::create_dir_all(&cache).unwrap();
    fs::write(cache.join("t10k-labels-idx1-ubyte"), &tiny.plain[3]).unwrap();
    let mut seen = Vec::new();
    let data = Options::default().load_from(&places, &tiny.specs, &mut |name, done, total| {
        seen.push((name.to_string(), done, total));
    });
    check(&data.unwrap(), Source::Downloaded(cache.clone()));
    let size = tiny.gz[0].len() as u64;
    assert!(seen.contains(&("train-images-idx3-ubyte.gz".into(), size, size)), "{seen:?}");
    assert_eq!(server.log().len(), 3);
    check(&load(&Options::default(), &places, &tiny).unwrap(), Source::Cache(cache.clone()));
    assert!(server.log().is_empty());

    // By force: what is right is kept, the rest replaced.
    fs::write(cache.join("train-labels-idx1-ubyte.gz"), "bad").unwrap();
    assert!(error(load(&Options::default(), &places, &tiny)).contains("SHA-256"));
    let force = Options::default().download(Download::Force);
    check(&load(&force, &places, &tiny).unwrap(), Source::Downloaded(cache.clone()));
    assert_eq!(server.log(), ["/train-labels-idx1-ubyte.gz whole", "/t10k-labels-idx1-ubyte.gz whole"]);
}

#[test]
fn a_download_that_fails() {
    let (scratch, tiny) = (Scratch::new("fails"), tiny());
    let mut places = places(&scratch.0);
    let cache = scratch.0.join("cache");
    let (auto, force) = (Options::default(), Options::default().download(Download::Force));

    // Nobody listens.
    assert!(load(&auto, &places, &tiny).unwrap().is_sample());
    assert!(error(load(&force, &places, &tiny)).contains("refused"));
    // The connection is cut, again and again.
    let server = tiny.served(Manners { cut_after: Some(3), ..Manners::default() });
    places.url = server.url.clone();
    let why = load(&auto, &places, &tiny).unwrap().describe();
    assert!(why.contains("the connection ended after 12 of"), "{why}");
    assert!(cache.join("train-images-idx3-ubyte.gz.part").exists());
    // Another file comes: that must be seen, and nothing of it stays.
    let mut other = tiny.specs;
    other[0].gz = ["one sum", "another"];
    let server = tiny.served(Manners::default());
    places.url = server.url.clone();
    let text = error(auto.load_from(&places, &other, &mut |_, _, _| {}));
    assert!(text.contains("SHA-256 one sum or another expected"), "{text}");
    assert!(!cache.join("train-images-idx3-ubyte.gz.part").exists());
    // The cache cannot be made.
    let file = scratch.0.join("file");
    fs::write(&file, "").unwrap();
    places.cache = Some(file.join("cache"));
    assert!(load(&auto, &places, &tiny).unwrap().describe().contains(&file.display().to_string()));
    assert!(matches!(load(&force, &places, &tiny), Err(Error::Io { .. })));
    places.cache = None;
    assert!(load(&auto, &places, &tiny).unwrap().describe().contains("neither XDG_CACHE_HOME nor HOME is set"));
    assert!(error(load(&force, &places, &tiny)).contains("no place for a download"));
}

#[test]
fn without_the_network() {
    let (scratch, tiny) = (Scratch::new("offline"), tiny());
    let mut places = places(&scratch.0);
    let server = tiny.served(Manners::default());
    places.url = server.url.clone();
    let never = Options::default().download(Download::Never);
    let why = load(&never, &places, &tiny).unwrap().describe();
    assert!(why.contains("and no download is wanted"), "{why}");
    places.offline = true;
    let why = load(&Options::default(), &places, &tiny).unwrap().describe();
    assert!(why.contains("and HADAL_OFFLINE forbids a download"), "{why}");
    let force = Options::default().download(Download::Force);
    assert_eq!(error(load(&force, &places, &tiny)), "FashionMnist: a download is asked for, but HADAL_OFFLINE forbids it");
    assert!(server.log().is_empty() && !scratch.0.join("cache").exists());
}

#[test]
fn the_sample_is_balanced() {
    let data = FashionMnist::sample("why").unwrap();
    for (set, each) in [(&data.train, 200), (&data.test, 50)] {
        assert_eq!((set.rows(), set.cols(), set.len()), (28, 28, 10 * each));
        for ten in set.labels().chunks(10) {
            let mut ten = ten.to_vec();
            ten.sort_unstable();
            assert_eq!(ten, (0..10).collect::<Vec<u8>>());
        }
    }
}

#[test]
fn the_full_set_of_this_machine() {
    if !Path::new(SYSTEM_FOLDER).is_dir() {
        println!("skipped: no {SYSTEM_FOLDER}");
        return;
    }
    let mut places = Places::of_this_machine().unwrap();
    (places.data, places.cache, places.offline) = (None, None, true);
    let data = Options::default().load_from(&places, &FILES, &mut |_, _, _| {}).unwrap();
    assert_eq!(data.source, Source::System(SYSTEM_FOLDER.into()));
    assert_eq!((data.train.len(), data.test.len()), (60_000, 10_000));
    assert_eq!(data.train.labels()[..5], [9, 0, 0, 3, 0]);
    // The sample's images are the full set's.
    let sample = FashionMnist::sample("").unwrap();
    for (part, whole) in [(&sample.train, &data.train), (&sample.test, &data.test)] {
        let whole: std::collections::HashSet<_> = (0..whole.len()).filter_map(|i| whole.get(i)).collect();
        assert!((0..part.len()).filter_map(|i| part.get(i)).all(|image| whole.contains(&image)));
    }
}
