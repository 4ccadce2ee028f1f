//! Logits → names of classes.

use crate::text::one_line;
use serde::Serialize;

/// A class, and how probable it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Class {
    /// Its number.
    pub index: usize,
    /// Its name.
    pub label: String,
    /// 0 to 1.
    pub probability: f32,
}

/// Name of a class: its label, or its number.
pub fn label(labels: &[String], class: usize) -> String {
    labels.get(class).map_or_else(|| format!("class {class}"), |name| one_line(name).into_owned())
}

/// Numbers of the classes by value, highest first; ties keep their order.
fn ranked(values: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order
}

/// Softmax in f64, then the `count` most probable classes; ties keep the order of the classes.
pub fn top(logits: &[f32], count: usize, labels: &[String]) -> Vec<Class> {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    let exp: Vec<f64> = logits.iter().map(|&v| f64::from(v - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    let class = |i: usize| Class { index: i, label: label(labels, i), probability: (exp[i] / sum) as f32 };
    ranked(logits).into_iter().take(count).map(class).collect()
}

/// Classes whose sigmoid, in f64, is `threshold` or more, most probable first.
pub fn above(logits: &[f32], threshold: f32, labels: &[String]) -> Vec<Class> {
    let probability = |i: usize| (1.0 / (1.0 + (-f64::from(logits[i])).exp())) as f32;
    let likely = ranked(logits).into_iter().filter(|&i| probability(i) >= threshold);
    likely.map(|i| Class { index: i, label: label(labels, i), probability: probability(i) }).collect()
}
