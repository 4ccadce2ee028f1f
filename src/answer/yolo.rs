//! The published decodings of the YOLO family: values of an output → boxes in pixels of the network's input.

use super::boxes::Candidate;

/// Before the values of a box: its centre, its size, and whether there is one.
const BOX: usize = 5;

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// YOLOv8 and YOLO11: `[4 + C, N]`, centre and size, then scores. `best` is memory for `N` scores.
///
/// Scores lie class by class: one pass over whole rows finds the best of each place, and only the few above `confidence` are looked at again.
pub(super) fn v8(values: &[f32], places: usize, confidence: f32, best: &mut Vec<f32>, out: &mut Vec<Candidate>) {
    let (boxes, scores) = values.split_at(4 * places);
    best.clear();
    best.extend_from_slice(&scores[..places]);
    for row in scores[places..].chunks_exact(places) {
        for (best, &score) in best.iter_mut().zip(row) {
            *best = if score > *best { score } else { *best };
        }
    }
    for (i, &score) in best.iter().enumerate().filter(|(_, s)| **s > confidence) {
        let class = scores.iter().skip(i).step_by(places).position(|s| *s == score).unwrap_or(0);
        out.push(Candidate::centred(std::array::from_fn(|k| boxes[k * places + i]), score, class));
    }
}

/// The class of the highest product of class and object score, the first of equals; a head without classes has one.
fn best_class(object: f32, classes: impl Iterator<Item = f32>) -> (usize, f32) {
    let mut best = None;
    for (class, score) in classes.enumerate() {
        let score = object * score;
        if best.is_none_or(|(_, b)| score > b) {
            best = Some((class, score));
        }
    }
    best.unwrap_or((0, object))
}

/// Rows of centre, size, object score and class scores; `place` turns a row's box into pixels.
fn rows(values: &[f32], columns: usize, confidence: f32, out: &mut Vec<Candidate>, mut place: impl FnMut(usize, [f32; 4]) -> [f32; 4]) {
    for (i, row) in values.chunks_exact(columns).enumerate() {
        // A product with a score of a class is no higher.
        if row[4] > confidence {
            let (class, score) = best_class(row[4], row[BOX..].iter().copied());
            if score > confidence {
                out.push(Candidate::centred(place(i, [row[0], row[1], row[2], row[3]]), score, class));
            }
        }
    }
}

/// YOLOv5 and YOLOv7, decoded: `[N, 5 + C]`.
pub(super) fn v5(values: &[f32], columns: usize, confidence: f32, out: &mut Vec<Candidate>) {
    rows(values, columns, confidence, out, |_, b| b);
}

/// The cell of each place, left and top, and its stride: levels of strides 8, 16 and 32, each in rows.
pub(super) fn grid([height, width]: [usize; 2]) -> Vec<[f32; 3]> {
    let cells = |stride: usize| {
        let (rows, columns) = (height / stride, width / stride);
        (0..rows * columns).map(move |i| [(i % columns) as f32, (i / columns) as f32, stride as f32])
    };
    [8, 16, 32].into_iter().flat_map(cells).collect()
}

/// YOLOX: `[N, 5 + C]`, offsets within cells of [`grid`] and logarithms of sizes.
pub(super) fn x(values: &[f32], columns: usize, grid: &[[f32; 3]], confidence: f32, out: &mut Vec<Candidate>) {
    rows(values, columns, confidence, out, |i, [x, y, w, h]| {
        let [left, top, stride] = grid[i];
        [(x + left) * stride, (y + top) * stride, w.exp() * stride, h.exp() * stride]
    });
}

/// One level of YOLOv5 or YOLOv7 before the sigmoid.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Level {
    /// Width and height of each anchor, pixels.
    pub anchors: Vec<[f32; 2]>,
    /// Rows and columns of cells.
    pub cells: [usize; 2],
    /// Values of a box: `5 + C`.
    pub columns: usize,
    /// The values of a box lie together (`[A, H, W, 5 + C]`), not those of a channel (`[A·(5 + C), H, W]`).
    pub together: bool,
    /// Pixels from a cell to the next, across and down.
    pub stride: [f32; 2],
}

impl Level {
    pub(super) fn decode(&self, values: &[f32], confidence: f32, out: &mut Vec<Candidate>) {
        let &Level { cells: [height, width], columns, stride, .. } = self;
        let cells = height * width;
        // The sigmoid rises: a bound for its argument, with room for its rounding, spares most of them.
        let least = (confidence / (1.0 - confidence)).ln() - 1e-3;
        for (a, anchor) in self.anchors.iter().enumerate() {
            let values = &values[a * cells * columns..][..cells * columns];
            for cell in 0..cells {
                let value = |k: usize| values[if self.together { cell * columns + k } else { k * cells + cell }];
                if value(4) > least {
                    let (class, score) = best_class(sigmoid(value(4)), (BOX..columns).map(|k| sigmoid(value(k))));
                    if score > confidence {
                        let at = |k: usize, cell: usize| (sigmoid(value(k)) * 2.0 + (cell as f32 - 0.5)) * stride[k];
                        let side = |k: usize| (sigmoid(value(k + 2)) * 2.0).powi(2) * anchor[k];
                        out.push(Candidate::centred([at(0, cell % width), at(1, cell / width), side(0), side(1)], score, class));
                    }
                }
            }
        }
    }
}
