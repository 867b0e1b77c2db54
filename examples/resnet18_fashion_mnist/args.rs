//! The command line of the main job, read by hand: a library for it would take longer to build than hadal.

use std::{path::PathBuf, process, str::FromStr};

use hadal::{eprintln, println};

const HELP: &str = "\
Trains ResNet-18 on Fashion-MNIST, as section 6.12 of the book does.

usage: resnet18_fashion_mnist [options]

  --context C         cpu, gpu, gpu:1, … or auto: gpu(0) if it can be used, else the CPU [auto]
  --epochs N          passes over the training images, those before --resume included [5]
  --batch-size N      images in a step [256; 50 on the shipped sample]
  --dtype T           what is computed in: f32, tf32 (f32 with rounded products), bf16 or f16 [f32]
  --lr R              learning rate [0.05]
  --resize N          side of the images after resizing [96]
  --seed N            decides first values and the order of the images [0]
  --data FOLDER       folder with the four idx files [searched, downloaded, else the shipped sample]
  --offline           never download
  --limit N           use only the first N images of each set
  --save FILE         write the parameters there at the end, also after Ctrl-C or SIGTERM: --resume then goes on with the next batch.
                      With 16 bits, the trainer's f32 copies of them go to FILE.states
  --checkpoint MIN    with --save, write them every so many minutes as well; 0: only at the end [10]
  --eager             run op by op instead of a fused graph
  --resume FILE       start from parameters that --save wrote";

/// What the command line says.
pub struct Args {
    pub context: String,
    pub epochs: usize,
    pub batch_size: Option<usize>,
    pub dtype: String,
    pub lr: f64,
    pub resize: usize,
    pub seed: u64,
    pub data: Option<PathBuf>,
    pub offline: bool,
    pub limit: Option<usize>,
    pub save: Option<PathBuf>,
    pub checkpoint: f64,
    pub resume: Option<PathBuf>,
    pub eager: bool,
}

impl Args {
    /// Reads the command line; ends the program after `--help`, or with what is wrong.
    pub fn parse() -> Args {
        let mut words = std::env::args().skip(1);
        Self::read(&mut words).unwrap_or_else(|wrong| {
            eprintln!("error: {wrong}; --help lists the options");
            process::exit(2)
        })
    }

    fn read(words: &mut dyn Iterator<Item = String>) -> Result<Args, String> {
        let mut args = Args {
            context: "auto".into(),
            epochs: 5,
            batch_size: None,
            dtype: "f32".into(),
            lr: 0.05,
            resize: 96,
            seed: 0,
            data: None,
            offline: false,
            limit: None,
            save: None,
            checkpoint: 10.0,
            resume: None,
            eager: false,
        };
        while let Some(word) = words.next() {
            // `--epochs 5` and `--epochs=5`.
            let (name, with) = word.split_once('=').map_or((word.as_str(), None), |(n, v)| (n, Some(v.to_owned())));
            let mut value = || with.clone().or_else(|| words.next()).ok_or_else(|| format!("{name} needs a value"));
            match name {
                "--context" => args.context = value()?,
                "--epochs" => args.epochs = number(name, &value()?)?,
                "--batch-size" => args.batch_size = Some(number(name, &value()?)?),
                "--dtype" => args.dtype = value()?,
                "--lr" => args.lr = number(name, &value()?)?,
                "--resize" => args.resize = number(name, &value()?)?,
                "--seed" => args.seed = number(name, &value()?)?,
                "--data" => args.data = Some(value()?.into()),
                "--eager" => args.eager = true,
                "--offline" => args.offline = true,
                "--limit" => args.limit = Some(number(name, &value()?)?),
                "--save" => args.save = Some(value()?.into()),
                "--checkpoint" => args.checkpoint = number(name, &value()?)?,
                "--resume" => args.resume = Some(value()?.into()),
                "--help" | "-h" => {
                    println!("{HELP}");
                    process::exit(0);
                }
                other => return Err(format!("there is no option {other:?}")),
            }
        }
        Ok(args)
    }
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name} needs a number, not {value:?}"))
}
