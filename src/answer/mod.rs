//! What the outputs of a network say of a picture: classes, boxes, masks, vectors.
//!
//! [`Reader`] knows a network's [`Task`] and turns the values of its outputs into an [`Answer`].

pub mod boxes;
pub mod classes;
pub mod detect;
pub mod draw;
pub mod embed;
mod font;
pub mod segment;
mod yolo;

pub use crate::task::{Output, Task};
pub use crate::view::View;
pub use boxes::Detection;
pub use classes::{Class, label};

use crate::text::one_line;
use crate::{Error, Result};
use detect::Detector;
use embed::{Gallery, Neighbour};
use segment::{ClassMap, MAX_CLASSES, Share};
use serde::Serialize;

/// What a network says of a picture; as JSON, an object with the field that its task has.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// Of [`Task::Classify`].
    Top {
        /// The most probable classes.
        top: Vec<Class>,
    },
    /// Of [`Task::Classify`] and [`Task::MultiLabel`], of a network with several outputs.
    Heads {
        /// One of each output.
        heads: Vec<HeadAnswer>,
    },
    /// Of [`Task::MultiLabel`].
    Labels {
        /// All that are probable enough, most probable first.
        labels: Vec<Class>,
    },
    /// Of [`Task::Detect`].
    Boxes {
        /// Best first.
        boxes: Vec<Detection>,
    },
    /// Of [`Task::Segment`].
    Mask {
        /// The classes that are there, largest first.
        classes: Vec<Share>,
        /// The class of each pixel.
        #[serde(skip)]
        map: ClassMap,
    },
    /// Of [`Task::Embed`].
    Vector {
        /// Of length 1.
        embedding: Vec<f32>,
        /// The nearest of the gallery, where there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        nearest: Option<Vec<Neighbour>>,
    },
}

/// What one output of several says.
#[derive(Debug, Clone, Serialize)]
pub struct HeadAnswer {
    /// Name of the output.
    pub head: String,
    /// Its classes, most probable first.
    pub classes: Vec<Class>,
}

impl Answer {
    /// The name and score of what is most certain: a class, a box, a name of the gallery. `None` where nothing is there.
    pub fn best(&self) -> Option<(&str, f32)> {
        match self {
            Answer::Top { top: classes } | Answer::Labels { labels: classes } => classes.first().map(|c| (c.label.as_str(), c.probability)),
            Answer::Heads { heads } => heads.first()?.classes.first().map(|c| (c.label.as_str(), c.probability)),
            Answer::Boxes { boxes } => boxes.first().map(|b| (b.label.as_str(), b.score)),
            Answer::Mask { classes, .. } => classes.first().map(|c| (c.label.as_str(), c.share)),
            Answer::Vector { nearest, .. } => nearest.as_ref()?.first().map(|n| (n.name.as_str(), 1.0 - n.distance)),
        }
    }
}

/// Reads the outputs of one network.
#[derive(Debug)]
pub struct Reader {
    kind: Kind,
    task: Task,
    outputs: Vec<Output>,
    labels: Vec<String>,
    gallery: Gallery,
}

#[derive(Debug)]
enum Kind {
    Classify,
    MultiLabel(f32),
    Embed,
    Segment([usize; 3]),
    Detect(Box<Detector>),
}

/// The task that a network's outputs suggest, for a file that names none. `input`: height and width.
///
/// Boxes are told by names (`boxes`, `scores`) and by the number of places that YOLO has for this input, a class map by logits of several
/// places and a name such as `out` (torchvision's) or `segmentation`, a vector by a name such as `embedding`. All else is a classifier.
pub fn guess(outputs: &[Output], input: [usize; 2]) -> Task {
    if detect::guess(outputs, input).is_some() {
        return Task::Detect(crate::task::Detect::default());
    }
    let [output] = outputs else { return Task::Classify };
    let name = output.name.to_lowercase();
    match output.shape[..] {
        [1, c, h, w] if c <= MAX_CLASSES && h > 1 && w > 1 && (name == "out" || name.contains("seg") || name.contains("mask")) => {
            Task::Segment
        }
        _ if name.contains("embed") => Task::Embed,
        _ => Task::Classify,
    }
}

impl Reader {
    /// For a network with these outputs, those that are computed. `task`: [`guess`] decides where it is `None`; `input`: height and width.
    ///
    /// # Errors
    /// The outputs are not what the task needs.
    pub fn new(task: Option<&Task>, outputs: &[Output], input: [usize; 2], labels: &[String]) -> Result<Self> {
        let task = task.cloned().unwrap_or_else(|| guess(outputs, input));
        let unfit = |why: String| Error::UnsupportedModel(format!("task {}: {why}", task.name()));
        task.check().map_err(unfit)?;
        let one = || match outputs {
            [output] => Ok(output),
            _ => Err(unfit(format!("one output is needed, {} are computed; choose one with --head", outputs.len()))),
        };
        let kind = match &task {
            Task::Classify => Kind::Classify,
            Task::MultiLabel(m) => Kind::MultiLabel(m.threshold),
            Task::Embed => one().map(|_| Kind::Embed)?,
            Task::Segment => match *one()?.shape {
                [1, c, h, w] if (1..=MAX_CLASSES).contains(&c) && h > 0 && w > 0 => Kind::Segment([c, h, w]),
                ref other => return Err(unfit(format!("an output [1, C, H, W] with C up to {MAX_CLASSES} is needed, this is {other:?}"))),
            },
            Task::Detect(d) => Kind::Detect(Box::new(Detector::new(d, outputs, input).map_err(unfit)?)),
        };
        Ok(Reader { kind, task, outputs: outputs.into(), labels: labels.into(), gallery: Gallery::default() })
    }

    /// What the network is for.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Named pictures to compare with, for [`Task::Embed`].
    pub fn set_gallery(&mut self, gallery: Gallery) {
        self.gallery = gallery;
    }

    /// Names of the classes.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The answer for a picture, from the values of the outputs. `count`: most classes of a classifier, or neighbours.
    ///
    /// # Errors
    /// Values have another number than the outputs' shapes say.
    pub fn read(&mut self, values: &[Vec<f32>], view: &View, count: usize) -> Result<Answer> {
        let fits = |(values, output): (&Vec<f32>, &Output)| {
            let expected = output.shape.iter().product::<usize>();
            expected == 0 || values.len() == expected
        };
        if values.len() != self.outputs.len() || !values.iter().zip(&self.outputs).all(fits) {
            let counts: Vec<usize> = values.iter().map(|v| v.len()).collect();
            return Err(Error::Shape(format!("outputs of {counts:?} values, expected are {:?}", self.outputs)));
        }
        let labels = &self.labels;
        let threshold = if let Kind::MultiLabel(threshold) = self.kind { Some(threshold) } else { None };
        let of = |values: &[f32]| match threshold {
            Some(threshold) => classes::above(values, threshold, labels),
            None => classes::top(values, count, labels),
        };
        Ok(match &mut self.kind {
            Kind::Classify | Kind::MultiLabel(_) if values.len() > 1 => {
                let heads = self.outputs.iter().zip(values);
                Answer::Heads { heads: heads.map(|(o, v)| HeadAnswer { head: one_line(&o.name).into_owned(), classes: of(v) }).collect() }
            }
            Kind::Classify => Answer::Top { top: of(&values[0]) },
            Kind::MultiLabel(_) => Answer::Labels { labels: of(&values[0]) },
            Kind::Embed => {
                let embedding = embed::normalised(&values[0]);
                let nearest = (!self.gallery.is_empty()).then(|| self.gallery.nearest(&embedding, count));
                Answer::Vector { embedding, nearest }
            }
            Kind::Segment(shape) => {
                let map = segment::segment(&values[0], *shape, view);
                Answer::Mask { classes: map.shares(labels), map }
            }
            Kind::Detect(detector) => Answer::Boxes { boxes: detector.detect(values, view, labels).map_err(Error::Shape)? },
        })
    }
}
