//! Vectors that stand for pictures, and the nearest of a gallery.

use crate::text::one_line;
use serde::Serialize;

/// The vector with a length of 1, computed in f64. A vector without length or with values that are not finite stays as it is.
pub fn normalised(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    if !(length.is_finite() && length > 0.0) {
        return vector.to_vec();
    }
    vector.iter().map(|&v| (f64::from(v) / length) as f32).collect()
}

/// A name, and how far its nearest picture is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Neighbour {
    /// Name in the gallery.
    pub name: String,
    /// 1 − cosine of the angle between the vectors: 0 alike, 2 opposite.
    pub distance: f32,
}

/// Named vectors.
#[derive(Debug, Clone, Default)]
pub struct Gallery {
    pictures: Vec<(String, Vec<f32>)>,
}

impl Gallery {
    /// Adds a picture's vector; a name may have several.
    pub fn add(&mut self, name: &str, vector: &[f32]) {
        self.pictures.push((one_line(name).into_owned(), normalised(vector)));
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }

    /// The `count` nearest names to a normalised vector, nearest first, each with its nearest picture.
    pub fn nearest(&self, vector: &[f32], count: usize) -> Vec<Neighbour> {
        let cosine = |other: &[f32]| vector.iter().zip(other).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let mut all: Vec<(&str, f64)> = self.pictures.iter().map(|(name, other)| (name.as_str(), 1.0 - cosine(other))).collect();
        all.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut seen = std::collections::HashSet::new();
        all.retain(|(name, _)| seen.insert(*name));
        all.into_iter().take(count).map(|(name, d)| Neighbour { name: name.into(), distance: d as f32 }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_its_nearest_picture() {
        let mut gallery = Gallery::default();
        gallery.add("east", &[5.0, 0.0]);
        gallery.add("north", &[0.0, 0.1]);
        gallery.add("east", &[1.0, 1.0]);
        let nearest = gallery.nearest(&normalised(&[3.0, 4.0]), 5);
        assert_eq!(nearest.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["east", "north"]);
        assert!((nearest[0].distance - (1.0 - 7.0 / (5.0 * 2f32.sqrt()))).abs() < 1e-6 && (nearest[1].distance - 0.2).abs() < 1e-6);
        assert_eq!(normalised(&[0.0; 3]), [0.0; 3]);
    }
}
