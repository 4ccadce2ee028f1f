//! Logits of each class → the class of each pixel of the picture.

use super::classes::label;
use crate::view::View;
use serde::Serialize;

/// A pixel that the network did not see, as PASCAL VOC marks pixels of no class.
pub const UNSEEN: u8 = 255;
/// Most classes of a map of bytes.
pub const MAX_CLASSES: usize = 255;

/// The class of each pixel of a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassMap {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Rows from the top: numbers of classes, or [`UNSEEN`].
    pub classes: Vec<u8>,
}

/// A class, and how much of the picture it takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Share {
    /// Its number.
    pub index: usize,
    /// Its name.
    pub label: String,
    /// Of the pixels that the network saw, 0 to 1.
    pub share: f32,
}

/// For each pixel of one side of a picture: the two logits around it, and the weight of the second; `None` outside of the view.
fn taps(view: &View, axis: usize, logits: usize) -> Vec<Option<(usize, usize, f32)>> {
    let ratio = logits as f32 / view.input[axis] as f32;
    let tap = |pixel: u32| {
        let seen = (pixel as f32 + 0.5) * view.scale[axis] + view.offset[axis];
        if !(0.0..=view.input[axis] as f32).contains(&seen) {
            return None;
        }
        let at = (seen * ratio - 0.5).clamp(0.0, (logits - 1) as f32);
        let first = at as usize;
        Some((first, (first + 1).min(logits - 1), at - first as f32))
    };
    (0..view.picture[axis]).map(tap).collect()
}

/// Interpolates `[C, H, W]` logits to the picture's pixels (bilinear between centres of pixels, as PyTorch's `interpolate` without
/// `align_corners`), and takes the class of the highest, the first of equals. One class alone stands against 0: the map has classes 0 and 1.
pub fn segment(logits: &[f32], [classes, height, width]: [usize; 3], view: &View) -> ClassMap {
    let (across, down) = (taps(view, 0, width), taps(view, 1, height));
    let mut map = Vec::with_capacity(across.len() * down.len());
    // Between two rows of logits, one row of each class.
    let mut rows = vec![0.0; classes * width];
    for tap in &down {
        let Some((upper, lower, weight)) = *tap else {
            map.resize(map.len() + across.len(), UNSEEN);
            continue;
        };
        for (class, row) in rows.chunks_exact_mut(width).enumerate() {
            let of = |y: usize| &logits[(class * height + y) * width..][..width];
            for (v, (a, b)) in row.iter_mut().zip(of(upper).iter().zip(of(lower))) {
                *v = a * (1.0 - weight) + b * weight;
            }
        }
        map.extend(across.iter().map(|tap| {
            let Some((left, right, weight)) = *tap else { return UNSEEN };
            let value = |class: usize| rows[class * width + left] * (1.0 - weight) + rows[class * width + right] * weight;
            if classes == 1 {
                return u8::from(value(0) > 0.0);
            }
            let mut best = (0, value(0));
            for class in 1..classes {
                let v = value(class);
                if v > best.1 {
                    best = (class, v);
                }
            }
            best.0 as u8
        }));
    }
    ClassMap { width: view.picture[0], height: view.picture[1], classes: map }
}

impl ClassMap {
    /// The classes that are there, the largest first.
    pub fn shares(&self, labels: &[String]) -> Vec<Share> {
        let mut counts = [0u64; MAX_CLASSES];
        self.classes.iter().filter(|c| **c != UNSEEN).for_each(|c| counts[usize::from(*c)] += 1);
        let seen: u64 = counts.iter().sum();
        let mut there: Vec<usize> = (0..MAX_CLASSES).filter(|c| counts[*c] > 0).collect();
        there.sort_by_key(|c| std::cmp::Reverse(counts[*c]));
        there.into_iter().map(|c| Share { index: c, label: label(labels, c), share: (counts[c] as f64 / seen as f64) as f32 }).collect()
    }
}
