//! Boxes, and which of those that overlap stay.

use serde::Serialize;

/// Candidates that are compared at most, the best: as in Ultralytics' YOLO. It bounds the time.
const MOST_COMPARED: usize = 30_000;

/// A box that a network proposes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Left, top, right, bottom.
    pub corners: [f32; 4],
    /// 0 to 1.
    pub score: f32,
    /// Number of the class.
    pub class: usize,
}

/// An object in a picture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Detection {
    /// Number of the class.
    pub index: usize,
    /// Its name.
    pub label: String,
    /// 0 to 1.
    pub score: f32,
    /// Left, top, right, bottom: pixels of the picture, from its upper left corner.
    #[serde(rename = "box")]
    pub corners: [f32; 4],
}

impl Candidate {
    /// From centre and size.
    pub(super) fn centred([x, y, w, h]: [f32; 4], score: f32, class: usize) -> Self {
        Candidate { corners: [x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0], score, class }
    }
}

fn area([x1, y1, x2, y2]: [f32; 4]) -> f32 {
    (x2 - x1) * (y2 - y1)
}

/// Intersection over union, in the order of operations of `torchvision.ops.nms`.
fn overlap(a: [f32; 4], b: [f32; 4]) -> f32 {
    let side = |k: usize| (a[k + 2].min(b[k + 2]) - a[k].max(b[k])).max(0.0);
    let common = side(0) * side(1);
    common / (area(a) + area(b) - common)
}

/// Greedy non-maximum suppression, each class for itself: keeps at most `most` candidates, best first; equal scores keep their order.
/// The same boxes as of `torchvision.ops.batched_nms` and of ONNX's NonMaxSuppression; of more than 30,000 candidates only the best are
/// looked at.
pub fn suppress(candidates: &mut Vec<Candidate>, iou: f32, most: usize) {
    candidates.retain(|c| c.corners.iter().all(|v| v.is_finite()) && !c.score.is_nan());
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    candidates.truncate(MOST_COMPARED);
    let mut kept = 0;
    for i in 0..candidates.len() {
        if kept == most {
            break;
        }
        let c = candidates[i];
        if !candidates[..kept].iter().any(|k| k.class == c.class && overlap(k.corners, c.corners) > iou) {
            candidates[kept] = c;
            kept += 1;
        }
    }
    candidates.truncate(kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_a_class_stays() {
        let at = |x: f32, score, class| Candidate { corners: [x, 0.0, x + 10.0, 10.0], score, class };
        let mut all = vec![at(0.0, 0.5, 0), at(1.0, 0.9, 0), at(1.0, 0.6, 1), at(30.0, 0.4, 0), at(f32::NAN, 0.99, 0)];
        suppress(&mut all, 0.5, 10);
        assert_eq!(all, [at(1.0, 0.9, 0), at(1.0, 0.6, 1), at(30.0, 0.4, 0)]);
        suppress(&mut all, 0.5, 2);
        assert_eq!(all.len(), 2);
        // An overlap of exactly the threshold stays.
        let mut two = vec![at(0.0, 0.9, 0), at(5.0, 0.8, 0)];
        suppress(&mut two, 50.0 / 150.0, 10);
        assert_eq!(two.len(), 2);
    }
}
