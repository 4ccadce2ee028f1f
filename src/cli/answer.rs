//! What commands that answer pictures share: options of the answer, its text, its drawing.

use super::new_file_in;
use clap::Args;
use edge_infer::answer::embed::Gallery;
use edge_infer::answer::{self, Answer, Class, Reader, Task, draw};
use edge_infer::image::{self, Picture, Preprocessor};
use edge_infer::model::Model;
use edge_infer::{Error, Result};
use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What an answer contains.
#[derive(Args)]
pub struct AnswerArgs {
    /// Least score of a box, 0 to 1 [default: the file's, or 0.25].
    #[arg(long, value_name = "SCORE", value_parser = share)]
    confidence: Option<f32>,
    /// Of two boxes of a class that overlap by more, 0 to 1, the better one stays [default: the file's, or 0.45].
    #[arg(long, value_name = "OVERLAP", value_parser = share)]
    iou: Option<f32>,
    /// Least probability of a class of a multi-label network, 0 to 1 [default: the file's, or 0.5].
    #[arg(long, value_name = "PROBABILITY", value_parser = share)]
    threshold: Option<f32>,
}

fn share(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|v| (0.0..=1.0).contains(v)).ok_or_else(|| "a number from 0 to 1".into())
}

/// Height and width of a network's input.
fn input_size(model: &Model) -> [usize; 2] {
    match *model.input_shape() {
        [.., height, width] => [height, width],
        _ => [1, 1],
    }
}

impl AnswerArgs {
    /// Reads the outputs of `model` as its file, its shapes and these options say.
    pub fn reader(&self, model: &Model) -> Result<Reader> {
        let (outputs, size) = (model.outputs().0, input_size(model));
        let mut task = model.task().cloned().unwrap_or_else(|| answer::guess(outputs, size));
        let unused = |given: bool, option: &str, of: &str| match given {
            true => Err(Error::Usage(format!("{option} is for {of}; choose another --task"))),
            false => Ok(()),
        };
        match &mut task {
            Task::Detect(d) => {
                d.confidence = self.confidence.unwrap_or(d.confidence);
                d.iou = self.iou.unwrap_or(d.iou);
            }
            _ => unused(self.confidence.is_some() || self.iou.is_some(), "--confidence or --iou", "detectors")?,
        }
        match &mut task {
            Task::MultiLabel(m) => m.threshold = self.threshold.unwrap_or(m.threshold),
            _ => unused(self.threshold.is_some(), "--threshold", "multi-label networks")?,
        }
        Reader::new(Some(&task), outputs, size, &model.metadata().labels)
    }
}

/// The vectors of a folder's pictures. A picture is called as the folder inside of `folder` that holds it, or as its file.
pub fn gallery(folder: &Path, model: &mut Model, preprocessor: &mut Preprocessor) -> Result<Gallery> {
    let mut gallery = Gallery::default();
    for path in image::collect(&[folder.to_owned()])? {
        let inside = path.strip_prefix(folder).unwrap_or(&path);
        let name = match inside.components().count() {
            0 | 1 => inside.file_stem(),
            _ => inside.components().next().map(|c| c.as_os_str()),
        };
        let picture = image::decode(&path, preprocessor.record())?;
        let pixels = preprocessor.pixels(&picture).map_err(|reason| Error::image(&path, reason))?;
        gallery.add(&name.unwrap_or_default().to_string_lossy(), model.run_pixels(&pixels)?);
    }
    Ok(gallery)
}

/// Where drawings go: a name once only, however many folders the pictures come from.
pub struct Drawings {
    folder: PathBuf,
    taken: HashSet<OsString>,
}

impl Drawings {
    /// Makes the folder.
    pub fn new(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        Ok(Drawings { folder: folder.to_owned(), taken: HashSet::new() })
    }

    /// Writes the picture with its answer drawn on it as NAME.png, and a class map as NAME.classes.png, each whole or not at all.
    pub fn save(&mut self, path: &Path, picture: &Picture, answer: &Answer) -> Result<()> {
        let Some(drawn) = draw::annotated(picture, answer) else { return Ok(()) };
        let stem = path.file_stem().unwrap_or_default().to_owned();
        let mut name = stem.clone();
        let mut number = 1;
        while !self.taken.insert(name.clone()) {
            number += 1;
            name = stem.clone();
            name.push(format!("-{number}"));
        }
        self.write(&name, ".png", &drawn)?;
        match answer {
            Answer::Mask { map, .. } => self.write(&name, ".classes.png", &draw::class_picture(map)),
            _ => Ok(()),
        }
    }

    fn write(&self, name: &OsString, ending: &str, picture: &Picture) -> Result<()> {
        let mut file_name = name.clone();
        file_name.push(ending);
        let path = self.folder.join(file_name);
        let bytes = draw::png(picture).map_err(|reason| Error::image(&path, reason))?;
        let mut file = new_file_in(&self.folder)?;
        file.write_all(&bytes).map_err(|e| Error::io(&path, e))?;
        file.persist(&path).map_err(|e| Error::io(&path, e.error))?;
        Ok(())
    }
}

/// An answer for people, in lines below the name of its picture.
pub fn print(out: &mut impl Write, answer: &Answer) -> std::io::Result<()> {
    let wide = |names: &mut dyn Iterator<Item = &str>| names.map(|n| n.chars().count()).max().unwrap_or(0);
    let classes = |out: &mut dyn Write, classes: &[Class]| {
        let width = wide(&mut classes.iter().map(|c| c.label.as_str()));
        classes.iter().try_for_each(|c| writeln!(out, "  {:width$}  {:6.2} %", c.label, 100.0 * c.probability))
    };
    match answer {
        Answer::Top { top: list } | Answer::Labels { labels: list } => classes(out, list),
        Answer::Heads { heads } => heads.iter().try_for_each(|head| {
            writeln!(out, "  {}:", head.head)?;
            classes(out, &head.classes)
        }),
        Answer::Boxes { boxes } => {
            let width = wide(&mut boxes.iter().map(|b| b.label.as_str()));
            boxes.iter().try_for_each(|b| {
                let [x1, y1, x2, y2] = b.corners;
                writeln!(out, "  {:width$}  {:6.2} %  {x1:.1},{y1:.1} to {x2:.1},{y2:.1}", b.label, 100.0 * b.score)
            })
        }
        Answer::Mask { classes, .. } => {
            let width = wide(&mut classes.iter().map(|c| c.label.as_str()));
            classes.iter().try_for_each(|c| writeln!(out, "  {:width$}  {:6.2} % of the picture", c.label, 100.0 * c.share))
        }
        Answer::Vector { nearest: Some(nearest), .. } => {
            let width = wide(&mut nearest.iter().map(|n| n.name.as_str()));
            nearest.iter().try_for_each(|n| writeln!(out, "  {:width$}  at distance {:.4}", n.name, n.distance))
        }
        Answer::Vector { embedding, nearest: None } => {
            writeln!(out, "  a vector of {} values; --json prints it, --gallery DIR compares it", embedding.len())
        }
    }
}
