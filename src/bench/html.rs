//! A benchmark as one HTML file, without scripts and without anything from elsewhere.

use super::report::{Measurement, Report};
use std::fmt::Write;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.15rem .7rem;text-align:right;border-bottom:1px solid #8884}\
td:first-child,th:first-child{text-align:left}svg{width:100%;height:12rem;background:#8881}.mark{color:#c30;font-weight:600}small{color:#777}";

/// The page.
pub fn page(r: &Report) -> String {
    let mut out = String::new();
    let o = &mut out;
    let machine = r.machine.model.as_deref().unwrap_or("unknown machine");
    // Writing to a String cannot fail.
    let _ = write!(
        o,
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>edge-infer bench: {0}</title><style>{STYLE}</style>\n\
         <h1>{0}</h1><p>edge-infer {1}, {2}, kernel {3}, {4} (UTC)</p>\n<h2>Latency</h2>\n<table><tr><th>model<th>threads<th>median, ms\
         <th>± 95 %<th>p90<th>p95<th>p99<th>max<th>GMAC/s<th>load<th>first<th>MHz<th>°C</tr>\n",
        escape(machine),
        escape(&r.version),
        escape(&r.machine.arch),
        escape(r.machine.kernel.as_deref().unwrap_or("unknown")),
        utc(r.unix_seconds)
    );
    for m in &r.results {
        let l = &m.latency_ms;
        let cpus = if m.cpus.is_empty() { String::new() } else { format!(" on {:?}", m.cpus) };
        let _ = writeln!(
            o,
            "<tr><td>{}<td>{}{cpus}<td>{:.3}<td>{:.1} %<td>{:.3}<td>{:.3}<td>{:.3}<td>{:.3}<td>{:.1}<td>{:.1}<td>{:.2}<td>{}<td>{}</tr>",
            escape(&m.model),
            m.threads,
            l.median,
            50.0 * (l.median_ci95[1] - l.median_ci95[0]) / l.median,
            l.p90,
            l.p95,
            l.p99,
            l.max,
            m.int8_gmacs_per_s,
            m.load_ms,
            m.first_inference_ms,
            m.conditions.mhz.map_or("?".into(), |[low, _, high]| format!("{low:.0}–{high:.0}")),
            m.conditions.celsius.map_or("?".into(), |c| format!("{c:.1}")),
        );
        for mark in &m.marks {
            let _ = writeln!(o, "<tr><td colspan=\"13\" class=\"mark\">{}</tr>", escape(mark));
        }
    }
    o.push_str("</table>\n");
    for m in &r.results {
        let _ = writeln!(o, "<h2>{}, {} threads</h2>", escape(&m.model), m.threads);
        histogram(o, m);
        sustained(o, m);
        layers(o, m);
    }
    if !r.unreadable.is_empty() {
        o.push_str("<h2>Not readable here</h2><ul>");
        r.unreadable.iter().for_each(|u| {
            let _ = write!(o, "<li>{}", escape(u));
        });
        o.push_str("</ul>");
    }
    o.push_str("</html>\n");
    out
}

fn histogram(o: &mut String, m: &Measurement) {
    let (h, most) = (&m.histogram, m.histogram.counts.iter().copied().max().unwrap_or(0));
    if most == 0 {
        return;
    }
    let width = 100.0 / h.counts.len() as f64;
    o.push_str("<svg viewBox=\"0 0 100 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"histogram\">");
    for (i, &count) in h.counts.iter().enumerate() {
        let (height, from) = (96.0 * count as f64 / most as f64, h.from_ms + i as f64 * h.bin_ms);
        let _ = write!(
            o,
            "<rect x=\"{:.3}\" y=\"{:.2}\" width=\"{:.3}\" height=\"{height:.2}\" fill=\"#2a7\"><title>{from:.3} ms: {count}</title></rect>",
            i as f64 * width,
            100.0 - height,
            width * 0.9
        );
    }
    let end = h.from_ms + h.counts.len() as f64 * h.bin_ms;
    let _ = writeln!(o, "</svg><small>{} inferences from {:.3} to {end:.3} ms and above</small>", m.runs, h.from_ms);
}

/// Latency (green), clock (blue) and temperature (red), each from 0 to its highest.
fn sustained(o: &mut String, m: &Measurement) {
    if m.sustained.len() < 2 {
        return;
    }
    o.push_str("<svg viewBox=\"0 0 100 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"over time\">");
    let span = m.sustained.last().map_or(1.0, |i| i.start_s).max(1e-9);
    let mut legend = Vec::new();
    let series: [(&str, &str, Vec<Option<f64>>); 3] = [
        ("median, ms", "#2a7", m.sustained.iter().map(|i| Some(i.median_ms)).collect()),
        ("lowest clock, MHz", "#27c", m.sustained.iter().map(|i| i.conditions.mhz.map(|c| c[0])).collect()),
        ("hottest zone, °C", "#c30", m.sustained.iter().map(|i| i.conditions.celsius).collect()),
    ];
    for (what, colour, values) in series {
        let Some(most) = values.iter().flatten().copied().max_by(f64::total_cmp).filter(|m| *m > 0.0) else { continue };
        let points: Vec<_> = (m.sustained.iter().zip(&values))
            .filter_map(|(i, v)| v.map(|v| format!("{:.2},{:.2}", 100.0 * i.start_s / span, 100.0 - 95.0 * v / most)))
            .collect();
        let _ =
            write!(o, "<polyline fill=\"none\" stroke=\"{colour}\" vector-effect=\"non-scaling-stroke\" points=\"{}\"/>", points.join(" "));
        legend.push(format!("{what} (<span style=\"color:{colour}\">—</span>, highest {most:.2})"));
    }
    let marked = m.sustained.iter().filter(|i| !i.marks.is_empty()).count();
    let _ = writeln!(o, "</svg><small>{span:.0} s: {}; {marked} of {} parts marked</small>", legend.join(", "), m.sustained.len());
}

fn layers(o: &mut String, m: &Measurement) {
    if m.layers.is_empty() {
        return;
    }
    o.push_str("<table><tr><th>layer<th>operator<th>kernel<th>MMAC<th>ms<th>%<th>GMAC/s<th>of peak</tr>\n");
    for l in &m.layers {
        let _ = writeln!(
            o,
            "<tr><td>{}<td>{}<td>{}<td>{:.1}<td>{:.4}<td>{:.1}<td>{:.1}<td>{}</tr>",
            escape(&l.name),
            escape(&l.op),
            escape(&l.runs_on),
            l.macs as f64 / 1e6,
            l.median_ms,
            100.0 * l.share,
            l.gmacs_per_s,
            l.share_of_peak.map_or(String::new(), |s| format!("{:.0} %", 100.0 * s)),
        );
    }
    o.push_str("</table>\n");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Date and time of seconds since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days).
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_right_and_text_is_harmless() {
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(utc(951_827_696), "2000-02-29 12:34:56");
        assert_eq!(utc(1_798_761_599), "2026-12-31 23:59:59");
        assert_eq!(escape("<b a=\"&\">"), "&lt;b a=&quot;&amp;&quot;&gt;");
    }
}
