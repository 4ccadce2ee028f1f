//! `inspect`: the lowered program of a model.

use super::{ChoiceArgs, RunArgs};
use clap::Args;
use edge_infer::text::one_line;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Shows what runs where: operations, shapes, scales, multiply-accumulates, memory.
#[derive(Args)]
pub struct InspectArgs {
    /// ONNX model, int8 QDQ or float.
    model: PathBuf,
    #[command(flatten)]
    choice: ChoiceArgs,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &InspectArgs, run: &RunArgs) -> anyhow::Result<ExitCode> {
    let model = run.load(&args.model, &args.choice)?;
    let report = model.report();
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let shape = |s: &[usize]| if s.is_empty() { "-".into() } else { s.iter().map(usize::to_string).collect::<Vec<_>>().join("×") };
    let mut rows = vec![["node", "operator", "runs on", "output", "scale", "zero point", "MMAC", "weights"].map(String::from).to_vec()];
    for n in &report.nodes {
        rows.push(vec![
            n.name.clone(),
            n.op.clone(),
            n.why.as_ref().map_or(n.runs_on.clone(), |why| format!("{} ({why})", n.runs_on)),
            shape(&n.output_shape),
            n.scale.map_or("-".into(), |s| format!("{s:.6}")),
            n.zero_point.map_or("-".into(), |z| z.to_string()),
            if n.macs == 0 { "-".into() } else { format!("{:.1}", n.macs as f64 / 1e6) },
            if n.weight_bytes == 0 { "-".into() } else { n.weight_bytes.to_string() },
        ]);
    }
    let widths: Vec<usize> = (0..rows[0].len()).map(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0)).collect();
    for row in &rows {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, &w)| format!("{cell:w$}")).collect();
        writeln!(out, "{}", one_line(line.join("  ").trim_end()))?;
    }
    let int8 = report.nodes.iter().filter(|n| n.why.is_none()).count();
    writeln!(
        out,
        "\n{}: {} operations in {} int8 regions ({:.3} GMAC, {:.1} % of all, {} kernels, {} threads), {} in tract; weights {:.2} MB packed, arena {:.2} MB",
        report.model,
        int8,
        report.regions,
        report.int8_macs as f64 / 1e9,
        report.int8_percent(),
        report.isa,
        report.threads,
        report.nodes.len() - int8,
        report.weight_bytes as f64 / 1e6,
        report.arena_bytes as f64 / 1e6,
    )?;
    Ok(ExitCode::SUCCESS)
}
