//! Benchmarks as text.

use edge_infer::bench::compare::Comparison;
use edge_infer::bench::report::{Interval, Layer, Measurement, Report};
use edge_infer::bench::stats::Histogram;
use edge_infer::text::one_line;
use std::io::{Result, Write};

/// Heights of a histogram's bars.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

pub fn report(out: &mut impl Write, r: &Report) -> Result<()> {
    for m in &r.results {
        layers(out, m)?;
        measurement(out, m)?;
        sustained(out, &m.sustained)?;
    }
    table(out, &r.results)?;
    let machine = r.machine.model.as_deref().unwrap_or("unknown machine");
    let governor = r.before.governor.as_deref().map_or(String::new(), |g| format!(", governor {g}"));
    let flags = r.after.throttled.filter(|t| t.ever()).map_or("", |_| "; it has throttled since it was switched on");
    writeln!(out, "{machine}, {}{governor}{flags}", r.machine.arch)?;
    let heat = |s: &edge_infer::board::Snapshot| s.hottest();
    if let (Some(before), Some(after)) = (heat(&r.before), heat(&r.after)) {
        writeln!(out, "{before:.1} °C before, {after:.1} °C after")?;
    }
    for what in &r.unreadable {
        writeln!(out, "not readable: {what}")?;
    }
    Ok(())
}

fn measurement(out: &mut impl Write, m: &Measurement) -> Result<()> {
    let cpus = if m.cpus.is_empty() { String::new() } else { format!(" on processors {:?}", m.cpus) };
    writeln!(
        out,
        "{}: {} kernels, {} threads{cpus}, {} runs after {} warm-ups (stopped by {})",
        m.model, m.isa, m.threads, m.runs, m.warmup, m.stopped_by
    )?;
    let l = &m.latency_ms;
    writeln!(
        out,
        "  min {:.3} ms, median {:.3} [{:.3}, {:.3}], p90 {:.3}, p95 {:.3}, p99 {:.3}, max {:.3}; mean {:.3} ± {:.3}{}",
        l.min,
        l.median,
        l.median_ci95[0],
        l.median_ci95[1],
        l.p90,
        l.p95,
        l.p99,
        l.max,
        l.mean,
        l.sd,
        if m.int8_macs > 0 { format!("; int8 {:.1} GMAC/s", m.int8_gmacs_per_s) } else { String::new() }
    )?;
    writeln!(out, "  {}", histogram(&m.histogram))?;
    let memory = m.peak_rss_bytes.map_or(String::new(), |b| format!(", {:.1} MB at most", b as f64 / 1e6));
    let faults = |f: Option<[u64; 2]>| f.map_or(String::new(), |[minor, major]| format!(", {minor}+{major} page faults"));
    writeln!(
        out,
        "  cold: loaded in {:.1} ms, first inference {:.2} ms{memory}{}; timed runs{}",
        m.load_ms,
        m.first_inference_ms,
        faults(m.cold_faults),
        faults(m.run_faults).trim_start_matches(',')
    )?;
    let c = &m.conditions;
    if let Some([low, mean, high]) = c.mhz {
        writeln!(out, "  clock {low:.0} to {high:.0} MHz, mean {mean:.0}")?;
    }
    if let Some(celsius) = c.celsius {
        writeln!(out, "  at most {celsius:.1} °C")?;
    }
    for rail in &c.rails {
        writeln!(out, "  {} {:.2} W", rail.name, rail.milliwatts / 1000.0)?;
    }
    if l.outliers * 20 > m.runs {
        writeln!(out, "  warning: {} of {} runs are outliers: something else uses this machine", l.outliers, m.runs)?;
    }
    for mark in &m.marks {
        writeln!(out, "  MARKED: {mark}")?;
    }
    Ok(())
}

fn histogram(h: &Histogram) -> String {
    let most = h.counts.iter().copied().max().unwrap_or(0).max(1);
    let bar = |count: &u64| BARS[(*count as f64 / most as f64 * 8.0).ceil() as usize % 9];
    let bars: String = h.counts.iter().map(bar).collect();
    format!("{:.3} {bars} {:.3} ms and above", h.from_ms, h.from_ms + h.bin_ms * h.counts.len().saturating_sub(1) as f64)
}

fn layers(out: &mut impl Write, m: &Measurement) -> Result<()> {
    if m.layers.is_empty() {
        return Ok(());
    }
    let width = m.layers.iter().map(|l| l.name.chars().count()).max().unwrap_or(0);
    writeln!(out, "{:width$}  {:11}  {:>8}  {:>9}  {:>6}  {:>7}  {:>7}", "layer", "operator", "MMAC", "ms", "%", "GMAC/s", "of peak")?;
    let peak = |l: &Layer| l.share_of_peak.map_or(String::new(), |s| format!("{:.0} %", 100.0 * s));
    for l in &m.layers {
        let (macs, share) = (l.macs as f64 / 1e6, 100.0 * l.share);
        writeln!(
            out,
            "{:width$}  {:11}  {macs:8.1}  {:9.4}  {share:6.1}  {:7.1}  {:>7}",
            one_line(&l.name),
            l.op,
            l.median_ms,
            l.gmacs_per_s,
            peak(l)
        )?;
    }
    if let Some(peak) = m.peak_gmacs_per_s {
        writeln!(out, "peak of one core: {peak:.1} GMAC/s ({} products on registers alone; Winograd can exceed it)", m.isa)?;
    }
    writeln!(out)
}

fn sustained(out: &mut impl Write, parts: &[Interval]) -> Result<()> {
    if parts.is_empty() {
        return Ok(());
    }
    writeln!(out, "  {:>7}  {:>9}  {:>9}  {:>9}  {:>6}", "s", "median ms", "p99 ms", "MHz", "°C")?;
    for p in parts {
        let mhz = p.conditions.mhz.map_or("?".into(), |[low, _, _]| format!("{low:.0}"));
        let celsius = p.conditions.celsius.map_or("?".into(), |c| format!("{c:.1}"));
        let marks = if p.marks.is_empty() { String::new() } else { format!("  MARKED: {}", p.marks.join("; ")) };
        writeln!(out, "  {:7.1}  {:9.3}  {:9.3}  {mhz:>9}  {celsius:>6}{marks}", p.start_s, p.median_ms, p.p99_ms)?;
    }
    Ok(())
}

/// Results side by side, where there are several.
fn table(out: &mut impl Write, results: &[Measurement]) -> Result<()> {
    if results.len() < 2 {
        return Ok(());
    }
    let first = results[0].latency_ms.median;
    let width = results.iter().map(|r| r.model.chars().count()).max().unwrap_or(0).max(5);
    writeln!(out, "\n{:width$}  {:>7}  {:16}  {:>9}  {:>9}  {:>8}", "model", "threads", "processors", "median ms", "p99 ms", "relative")?;
    for r in results {
        let (l, cpus) = (&r.latency_ms, if r.cpus.is_empty() { "any".into() } else { format!("{:?}", r.cpus) });
        let mark = if r.marks.is_empty() { "" } else { "  MARKED" };
        let relative = l.median / first;
        writeln!(out, "{:width$}  {:7}  {cpus:16}  {:9.3}  {:9.3}  {relative:7.2}×{mark}", r.model, r.threads, l.median, l.p99)?;
    }
    writeln!(out)
}

pub fn comparison(out: &mut impl Write, c: &Comparison) -> Result<()> {
    for p in &c.pairs {
        let [low, high] = p.ratio_interval.map(|r| 100.0 * (r - 1.0));
        let cpus = if p.cpus.is_empty() { String::new() } else { format!(" on {:?}", p.cpus) };
        writeln!(
            out,
            "{}, {} threads{cpus}: {:.3} → {:.3} ms, {:+.1} % [{low:+.1}, {high:+.1}]: {}",
            p.name,
            p.threads,
            p.median_ms[0],
            p.median_ms[1],
            100.0 * (p.ratio - 1.0),
            p.verdict
        )?;
        for (name, a, b) in p.layers.iter().take(5) {
            writeln!(out, "  {}: {a:.4} → {b:.4} ms", one_line(name))?;
        }
        for mark in &p.marks {
            writeln!(out, "  MARKED: {mark}")?;
        }
    }
    for difference in &c.differences {
        writeln!(out, "not alike: {difference}")?;
    }
    Ok(())
}
