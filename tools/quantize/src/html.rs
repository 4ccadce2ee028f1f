//! The report as one self-contained web page: tables, and drawings in SVG.

use crate::report::{Bars, Report};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

const STYLE: &str = "body{font:14px/1.4 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .7em;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}\
td:first-child,th:first-child{text-align:left}.n{font-family:ui-monospace,monospace;font-size:12px}svg{vertical-align:middle}\
h2{margin-top:2em}.dim{color:#777}";

fn escape(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '&' => "&amp;".into(),
            '<' => "&lt;".into(),
            '>' => "&gt;".into(),
            '"' => "&quot;".into(),
            c => c.to_string(),
        })
        .collect()
}

/// A decibel figure, or a word where the signal is exact.
fn decibels(db: f64) -> String {
    if db.is_finite() { format!("{db:.1}") } else { "exact".into() }
}

/// A horizontal bar for 0 … 60 dB, red below 15, amber below 25.
fn bar(db: f64) -> String {
    let width = if db.is_finite() { (db.clamp(0.0, 60.0) * 4.0).round() } else { 240.0 };
    let color = if db < 15.0 {
        "#c33"
    } else if db < 25.0 {
        "#d90"
    } else {
        "#393"
    };
    format!(
        "<svg width=\"240\" height=\"12\"><rect width=\"240\" height=\"12\" fill=\"#eee\"/><rect width=\"{width}\" height=\"12\" fill=\"{color}\"/></svg>"
    )
}

/// Counts on a logarithmic scale, with the part that int8 covers shaded.
fn histogram(bars: &Bars, covered: (f64, f64)) -> String {
    let (w, h) = (320.0, 48.0);
    let (lo, hi) = (bars.range.0.min(0.0), bars.range.1.max(0.0));
    let span = (hi - lo).max(f64::MIN_POSITIVE);
    let x = |v: f64| ((v - lo) / span).clamp(0.0, 1.0) * w;
    let top = bars.counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let mut svg = format!("<svg width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\">");
    let (left, right) = (x(covered.0), x(covered.1));
    let _ = write!(svg, "<rect x=\"{left:.1}\" width=\"{:.1}\" height=\"{h}\" fill=\"#e4eefc\"/><path fill=\"#36c\" d=\"", right - left);
    let step = (bars.range.1 - bars.range.0) / bars.counts.len().max(1) as f64;
    for (i, &n) in bars.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
        let (a, b) = (x(bars.range.0 + i as f64 * step), x(bars.range.0 + (i + 1) as f64 * step));
        let height = (1.0 + n as f64).ln() / (1.0 + top).ln() * h;
        let _ = write!(svg, "M{a:.1} {h}V{:.1}H{b:.1}V{h}Z", h - height);
    }
    let zero = x(0.0);
    let _ = write!(svg, "\"/><path d=\"M{zero:.1} 0V{h}\" stroke=\"#c33\" stroke-width=\".7\"/></svg>");
    svg
}

/// The page. `labels` may be empty: classes are then numbers.
pub fn page(model: &Path, r: &Report, labels: &[String]) -> String {
    let mut p = String::new();
    let class = |i: usize| escape(labels.get(i).map_or(&i.to_string(), |l| l));
    // Writing to a String cannot fail.
    let _ = (|| -> std::fmt::Result {
        let title = escape(&model.display().to_string());
        write!(p, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}: quantization</title><style>{STYLE}</style>")?;
        write!(p, "<h1>{title}: float to int8</h1><table>")?;
        let e = &r.evaluation;
        let o = &r.options;
        let word = |v: &dyn std::fmt::Debug| format!("{v:?}").to_lowercase();
        for (key, value) in [
            ("top-1 agreement", format!("{:.2} % of {} held-back images", 100.0 * e.top1_agreement, e.images)),
            ("logit SQNR", format!("{} dB", decibels(e.logit_sqnr_db))),
            ("size", format!("{:.2} MB → {:.2} MB", r.bytes_before as f64 / 1e6, r.bytes_after as f64 / 1e6)),
            ("activation ranges", format!("{} on {} images", word(&o.calibrator), r.calibration_images)),
            ("weight ranges", word(&o.weights)),
            ("rounding", format!("{:?}", o.rounding).to_lowercase()),
            ("bias correction", o.bias_correction.to_string()),
            ("equalized classes", if o.equalize { r.equalized.to_string() } else { "off".into() }),
            ("BatchNorm folded", format!("{}, kept {}", r.fold.folded, r.fold.kept.len())),
            ("time", format!("{:.1} s", r.seconds)),
        ] {
            write!(p, "<tr><td>{key}<td style=\"text-align:left\">{}", escape(&value))?;
        }
        write!(p, "</table>")?;
        if !r.float_nodes.is_empty() {
            write!(p, "<h2>Left in float</h2><table><tr><th>node<th>why")?;
            for n in &r.float_nodes {
                write!(p, "<tr><td class=\"n\">{}<td style=\"text-align:left\">{}", escape(&n.node), escape(&n.reason))?;
            }
            write!(p, "</table>")?;
        }
        if !r.sensitivity.is_empty() {
            write!(p, "<h2>Cost of each layer alone</h2><table><tr><th>layer<th>logit SQNR, dB<th><th>agreement, %<th>MMAC")?;
            for c in &r.sensitivity {
                let (db, same, macs) = (decibels(c.logit_sqnr_db), 100.0 * c.top1_agreement, c.macs as f64 / 1e6);
                write!(p, "<tr><td class=\"n\">{}<td>{db}<td>{}<td>{same:.2}<td>{macs:.1}", escape(&c.node), bar(c.logit_sqnr_db))?;
            }
            write!(p, "</table>")?;
        }
        write!(
            p,
            "<h2>Activations</h2><p class=\"dim\">Bars: signal to noise, errors of earlier layers included. Distributions: log counts without exact zeros; shaded: what int8 covers."
        )?;
        write!(p, "<table><tr><th>tensor<th>range<th>scale<th>zero<th>SQNR, dB<th><th>distribution")?;
        for t in &r.tensors {
            let covered = t.parameters.range();
            let (name, db, drawing) = (escape(&t.tensor), decibels(t.sqnr_db), t.histogram.as_ref().map(|h| histogram(h, covered)));
            write!(p, "<tr><td class=\"n\">{name}<td>{:.3} … {:.3}<td>{:.6}", t.range.0, t.range.1, t.parameters.scale)?;
            write!(p, "<td>{}<td>{db}<td>{}<td>{}", t.parameters.zero_point, bar(t.sqnr_db), drawing.unwrap_or_default())?;
        }
        write!(p, "</table><h2>Weights</h2><table><tr><th>layer<th>dimensions<th>scales<th>SQNR, dB<th>")?;
        for l in &r.layers {
            let dims = l.weight_dims.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
            let (a, b) = l.weight_scales;
            write!(p, "<tr><td class=\"n\">{}<td>{dims}<td>{a:.6} … {b:.6}", escape(&l.node))?;
            write!(p, "<td>{}<td>{}", decibels(l.weight_sqnr_db), bar(l.weight_sqnr_db))?;
        }
        write!(p, "</table><h2>Changed classes</h2>")?;
        if e.changes.is_empty() {
            write!(p, "<p>None of {} images.", e.images)?;
        } else {
            let mut pairs: BTreeMap<(usize, usize), usize> = BTreeMap::new();
            e.changes.iter().for_each(|c| *pairs.entry((c.float, c.int8)).or_default() += 1);
            write!(p, "<table><tr><th>float<th>int8<th>images")?;
            for ((a, b), n) in pairs {
                write!(p, "<tr><td>{}<td>{}<td>{n}", class(a), class(b))?;
            }
            write!(p, "</table><table><tr><th>image<th>float<th>int8")?;
            for c in &e.changes {
                write!(p, "<tr><td class=\"n\">{}<td>{}<td>{}", escape(&c.input), class(c.float), class(c.int8))?;
            }
            write!(p, "</table>")?;
        }
        writeln!(p, "</html>")
    })();
    p
}
