//! From the outputs of a detector to boxes.

use super::boxes::{Candidate, Detection, suppress};
use super::classes::label;
use super::yolo::{self, Level};
use crate::task::{BoxForm, Detect, Head, Output, YOLOV5_ANCHORS};
use crate::view::View;

/// Decodes the outputs of one network; keeps its memory from one picture to the next.
#[derive(Debug)]
pub struct Detector {
    decoding: Decoding,
    parameters: Detect,
    candidates: Vec<Candidate>,
    best: Vec<f32>,
}

/// A head whose shapes have been checked; numbers are places of outputs.
#[derive(Debug)]
enum Decoding {
    V5 { columns: usize },
    V5Levels(Vec<Level>),
    V8 { places: usize },
    X { columns: usize, grid: Vec<[f32; 3]> },
    Boxes { boxes: usize, scores: usize, classes: usize, form: BoxForm, input: [f32; 2] },
    Final { boxes: usize, scores: usize, labels: usize },
    Rows,
}

/// Numbers of classes come as floats, and from anywhere.
fn class_number(value: f32) -> usize {
    value.clamp(0.0, 1e6) as usize
}

/// Shape without the batch of 1.
fn unbatched(output: &Output) -> &[usize] {
    match &output.shape[..] {
        [1, rest @ ..] if output.shape.len() > 1 => rest,
        all => all,
    }
}

/// The output that is called like this.
fn named(outputs: &[Output], word: &str) -> Option<usize> {
    outputs.iter().position(|o| o.name.to_lowercase().contains(word))
}

/// Anchors a cell, rows and columns of cells, values of a box, and whether these lie together; of a level with `anchors` anchors a cell.
fn level(output: &Output, anchors: usize) -> Option<([usize; 2], usize, bool)> {
    match *unbatched(output) {
        [a, h, w, columns] if a == anchors && columns >= 5 => Some(([h, w], columns, true)),
        [channels, h, w] if channels.is_multiple_of(anchors) && channels / anchors >= 5 => Some(([h, w], channels / anchors, false)),
        _ => None,
    }
}

/// Three levels of three anchors, each of half the size of the one before: what YOLOv5 and YOLOv7 end in.
fn looks_like_levels(outputs: &[Output]) -> bool {
    let levels: Option<Vec<_>> = outputs.iter().map(|o| level(o, 3)).collect();
    levels.is_some_and(|l| l.len() == 3 && l.windows(2).all(|p| p[0].0 == p[1].0.map(|s| 2 * s) && p[0].1 == p[1].1))
}

/// The head that names and shapes of outputs suggest. `input`: height and width.
pub fn guess(outputs: &[Output], input: [usize; 2]) -> Option<Head> {
    if let [output] = outputs {
        let places = yolo::grid(input).len();
        return match *unbatched(output) {
            [_, 6] if output.shape.len() == 3 && output.shape[1] < places => Some(Head::Final),
            [columns, n] if n == places && columns > 4 && n != columns => Some(Head::Yolov8),
            [n, columns] if n == places && columns > 4 => Some(Head::Yolox),
            [n, columns] if n == 3 * places && columns > 4 => Some(Head::Yolov5 { anchors: vec![] }),
            _ => None,
        };
    }
    if named(outputs, "box").is_some() && named(outputs, "score").is_some() {
        let after = named(outputs, "label").or(named(outputs, "class"));
        return Some(if after.is_some() { Head::Final } else { Head::Boxes(BoxForm::default()) });
    }
    looks_like_levels(outputs).then(|| Head::Yolov5 { anchors: vec![] })
}

impl Detector {
    /// For a network with these outputs; `input`: its height and width.
    ///
    /// # Errors
    /// Says what the outputs are and what the head needs.
    pub fn new(parameters: &Detect, outputs: &[Output], input: [usize; 2]) -> Result<Self, String> {
        let shapes = || outputs.iter().map(|o| format!("`{}` {:?}", o.name, o.shape)).collect::<Vec<_>>().join(", ");
        let head = parameters.head.clone().or_else(|| guess(outputs, input));
        let head = head.ok_or_else(|| {
            format!("boxes cannot be told from outputs {}; say how they are written, as in --task detect:yolov8", shapes())
        })?;
        let decoding =
            Decoding::new(&head, outputs, input).ok_or_else(|| format!("the head {head:?} does not fit outputs {}", shapes()))?;
        Ok(Detector { decoding, parameters: parameters.clone(), candidates: vec![], best: vec![] })
    }

    /// The boxes of a picture, best first, from the values of the outputs.
    ///
    /// # Errors
    /// Outputs whose number is only known now do not fit each other.
    pub fn detect(&mut self, values: &[Vec<f32>], view: &View, labels: &[String]) -> Result<Vec<Detection>, String> {
        let confidence = self.parameters.confidence;
        let out = &mut self.candidates;
        out.clear();
        match &self.decoding {
            Decoding::V5 { columns } => yolo::v5(&values[0], *columns, confidence, out),
            Decoding::V5Levels(levels) => levels.iter().zip(values).for_each(|(level, values)| level.decode(values, confidence, out)),
            Decoding::V8 { places } => yolo::v8(&values[0], *places, confidence, &mut self.best, out),
            Decoding::X { columns, grid } => yolo::x(&values[0], *columns, grid, confidence, out),
            Decoding::Boxes { boxes, scores, classes, form, input } => {
                let size = if form.relative { *input } else { [1.0; 2] };
                for (b, scores) in values[*boxes].as_chunks::<4>().0.iter().zip(values[*scores].chunks_exact(*classes)) {
                    let b: [f32; 4] = std::array::from_fn(|k| b[k] * size[k % 2]);
                    // Each class is a box of its own, as in torchvision's SSD and RetinaNet.
                    for (class, &score) in scores.iter().enumerate().skip(usize::from(form.background)).filter(|(_, s)| **s > confidence) {
                        out.push(match form.centre {
                            true => Candidate::centred(b, score, class),
                            false => Candidate { corners: b, score, class },
                        });
                    }
                }
            }
            Decoding::Final { boxes, scores, labels } => {
                let [boxes, scores, labels] = [boxes, scores, labels].map(|i| &values[*i]);
                if boxes.len() != 4 * scores.len() || scores.len() != labels.len() {
                    return Err(format!("{} coordinates, {} scores and {} labels do not fit", boxes.len(), scores.len(), labels.len()));
                }
                let all = boxes.as_chunks::<4>().0.iter().zip(scores.iter().zip(labels));
                out.extend(all.map(|(b, (&score, &class))| Candidate { corners: *b, score, class: class_number(class) }));
            }
            Decoding::Rows => {
                let rows = values[0].as_chunks::<6>().0.iter();
                out.extend(rows.map(|&[a, b, c, d, score, class]| Candidate { corners: [a, b, c, d], score, class: class_number(class) }));
            }
        }
        // What is suppressed already is only sorted.
        let done = matches!(self.decoding, Decoding::Final { .. } | Decoding::Rows);
        if done {
            out.retain(|c| c.score > confidence);
        }
        suppress(out, if done { f32::INFINITY } else { self.parameters.iou }, self.parameters.most as usize);
        let detection = |c: &Candidate| Detection {
            index: c.class,
            label: label(labels, c.class),
            score: c.score,
            corners: view.to_picture(c.corners),
        };
        Ok(out.iter().map(detection).collect())
    }
}

impl Decoding {
    /// `None` where the outputs are not those of the head.
    fn new(head: &Head, outputs: &[Output], input: [usize; 2]) -> Option<Self> {
        let only = || if let [output] = outputs { Some(unbatched(output)) } else { None };
        match head {
            Head::Yolov8 => match *only()? {
                [columns, places] if columns > 4 && places > 0 => Some(Decoding::V8 { places }),
                _ => None,
            },
            Head::Yolox => match *only()? {
                [places, columns] if columns >= 5 => {
                    let grid = yolo::grid(input);
                    (grid.len() == places).then_some(Decoding::X { columns, grid })
                }
                _ => None,
            },
            Head::Yolov5 { anchors } => match only() {
                Some(&[_, columns]) if columns >= 5 => Some(Decoding::V5 { columns }),
                _ => {
                    let usual = || YOLOV5_ANCHORS.map(Vec::from).into();
                    let anchors: Vec<Vec<[f32; 2]>> = if anchors.is_empty() { usual() } else { anchors.clone() };
                    if anchors.len() != outputs.len() {
                        return None;
                    }
                    let levels = outputs.iter().zip(anchors).map(|(output, anchors)| {
                        let (cells @ [h, w], columns, together) = level(output, anchors.len().max(1))?;
                        let stride = [input[1] as f32 / w.max(1) as f32, input[0] as f32 / h.max(1) as f32];
                        (h * w > 0 && !anchors.is_empty()).then_some(Level { anchors, cells, columns, together, stride })
                    });
                    levels.collect::<Option<Vec<_>>>().map(Decoding::V5Levels)
                }
            },
            Head::Boxes(form) => {
                let [a, b] = outputs else { return None };
                let boxes = named(outputs, "box").unwrap_or(usize::from(a.shape.last() != Some(&4)));
                let (of_boxes, of_scores) = if boxes == 0 { (a, b) } else { (b, a) };
                let classes = *of_scores.shape.last().filter(|c| **c > 0)?;
                let count = |o: &Output| o.shape.iter().product::<usize>();
                let input = [input[1] as f32, input[0] as f32];
                let fits = of_boxes.shape.last() == Some(&4) && count(of_boxes) / 4 == count(of_scores) / classes;
                fits.then(|| Decoding::Boxes { boxes, scores: 1 - boxes, classes, form: form.clone(), input })
            }
            Head::Final => match outputs {
                [o] => (o.shape.last() == Some(&6)).then_some(Decoding::Rows),
                [_, _, _] => {
                    let at = |word| named(outputs, word);
                    // By name, or in torchvision's order.
                    let [boxes, scores, labels] = match (at("box"), at("score"), at("label").or(at("class"))) {
                        (Some(b), Some(s), Some(l)) if b != s && s != l && b != l => [b, s, l],
                        _ => [0, 1, 2],
                    };
                    (outputs[boxes].shape.last() == Some(&4)).then_some(Decoding::Final { boxes, scores, labels })
                }
                _ => None,
            },
        }
    }
}
