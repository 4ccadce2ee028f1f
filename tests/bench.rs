//! `edge-infer bench`: the same figures as a clock outside, throttling that is seen, a schema that holds.

mod streams;

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use streams::{MODEL, edge_infer};

fn bench(arguments: &[&str]) -> Command {
    let mut command = edge_infer();
    command.args(["bench", "--model", MODEL]).args(arguments);
    command
}

fn text(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(command: Command) -> Value {
    serde_json::from_str(&text(command)).unwrap()
}

/// A `/sys` with this computer's number of processors, and the sensors of a Raspberry Pi and a Jetson at once.
struct Sysfs(tempfile::TempDir);

impl Sysfs {
    fn new() -> Self {
        let sys = Sysfs(tempfile::tempdir().unwrap());
        let cpus = std::thread::available_parallelism().unwrap().get();
        sys.write("devices/system/cpu/online", &format!("0-{}", cpus - 1));
        for cpu in 0..cpus {
            sys.write(&format!("devices/system/cpu/cpu{cpu}/cpu_capacity"), "1024");
            sys.write(&format!("devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq"), "2400000");
            sys.write(&format!("devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"), "performance");
        }
        sys.clock(2_400_000);
        sys.write("class/thermal/thermal_zone0/type", "cpu-thermal");
        sys.write("class/thermal/thermal_zone0/temp", "60000");
        sys.write("firmware/devicetree/base/model", "Raspberry Pi 9\0");
        sys.write("devices/platform/soc/soc:firmware/get_throttled", "0");
        sys.write("class/hwmon/hwmon0/name", "ina3221");
        sys.write("class/hwmon/hwmon0/in1_label", "VDD_IN");
        sys.write("class/hwmon/hwmon0/in1_input", "5000");
        sys.write("class/hwmon/hwmon0/curr1_input", "1000");
        sys
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn clock(&self, khz: u32) {
        for cpu in 0..std::thread::available_parallelism().unwrap().get() {
            // As a whole: the bench reads while we write.
            let file = self.0.path().join(format!("devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"));
            let new = file.with_extension("new");
            std::fs::write(&new, khz.to_string()).unwrap();
            std::fs::rename(new, file).unwrap();
        }
    }

    fn bench(&self, arguments: &[&str]) -> Command {
        let mut command = bench(arguments);
        command.env("EDGE_SYSFS", self.0.path());
        command
    }
}

#[test]
fn a_clock_that_drops_marks_the_run() {
    let sys = Sysfs::new();
    let steady = json(sys.bench(&["--sustained", "1s", "--json"]));
    let result = &steady["results"][0];
    assert_eq!((&steady["machine"]["model"], &steady["before"]["governor"]), (&"Raspberry Pi 9".into(), &"performance".into()));
    assert_eq!(
        (result["marks"].as_array().unwrap().len(), &result["conditions"]["mhz"]),
        (0, &serde_json::json!([2400.0, 2400.0, 2400.0]))
    );
    assert_eq!(result["conditions"]["rails"][0]["milliwatts"], 5000.0);
    assert_eq!(steady["unreadable"].as_array().unwrap().len(), 0, "{steady}");

    let mut command = sys.bench(&["--sustained", "5s", "--json"]);
    let child = command.stdout(Stdio::piped()).spawn().unwrap();
    // Full speed until it has measured for more than a second, then the board becomes too hot.
    let comm = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    let tasks = format!("/proc/{}/task", child.id());
    while !std::fs::read_dir(&tasks).unwrap().flatten().any(|t| comm(t).starts_with("edge-monitor")) {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(1400));
    sys.clock(1_500_000);
    let hot: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    sys.write("devices/platform/soc/soc:firmware/get_throttled", "0x4");
    let plain = text(sys.bench(&["--runs", "20"]));
    let result = &hot["results"][0];
    assert!(result["marks"][0].as_str().unwrap().contains("dropped from 2400 to 1500 MHz"), "{result}");
    let parts = result["sustained"].as_array().unwrap();
    let marked: Vec<bool> = parts.iter().map(|p| !p["marks"].as_array().unwrap().is_empty()).collect();
    assert!(marked.len() >= 3 && !marked[0] && marked[marked.len() - 1], "{marked:?}");
    assert!(
        plain.contains("MARKED: the clock was 1500 MHz, and can be 2400") && plain.contains("MARKED: the clock is throttled"),
        "{plain}"
    );
}

#[test]
fn what_cannot_be_read_is_said() {
    let nothing = tempfile::tempdir().unwrap();
    let mut command = bench(&["--runs", "3"]);
    command.env("EDGE_SYSFS", nothing.path());
    let out = text(command);
    for what in ["clock", "governor", "temperature", "throttling flags", "power"] {
        assert!(out.contains(&format!("not readable: {what}: ")) || out.contains(&format!("not readable: {what}")), "{what}: {out}");
    }
}

/// Names of all fields, at any depth.
fn fields(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| {
            into.insert(k.clone());
            fields(v, into);
        }),
        Value::Array(items) => items.iter().for_each(|v| fields(v, into)),
        _ => {}
    }
}

#[test]
fn the_schema_is_the_documented_one() {
    let sys = Sysfs::new();
    let (mut real, mut documented) = (BTreeSet::new(), BTreeSet::new());
    let report = json(sys.bench(&["--sustained", "1s", "--layers", "--threads", "1", "--json"]));
    fields(&report, &mut real);
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/bench.md")).unwrap();
    for row in page.lines().filter(|l| l.starts_with("| `")) {
        for name in row.split('`').skip(1).step_by(2) {
            let name = name.trim_end_matches("[]").rsplit('.').next().unwrap();
            if name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
                documented.insert(name.to_string());
            }
        }
    }
    // Values, not fields.
    ["confidence", "time", "get_throttled"].iter().for_each(|v| assert!(documented.remove(*v), "{v}"));
    assert_eq!(real, documented);
    assert_eq!(report["schema"], "edge-infer-bench/1");
    let layers = report["results"][0]["layers"].as_array().unwrap();
    let macs: u64 = layers.iter().map(|l| l["macs"].as_u64().unwrap()).sum();
    assert_eq!(macs, report["results"][0]["int8_macs"].as_u64().unwrap());
    let share: f64 = layers.iter().map(|l| l["share"].as_f64().unwrap()).sum();
    assert!((share - 1.0).abs() < 1e-9, "{share}");
    edge_infer::bench::report::Report::parse(&report.to_string()).unwrap();
}

#[test]
fn latencies_add_up_to_the_time_that_passes_outside() {
    // Whatever a busy machine does to the inferences, it does to the clock outside.
    let (start, report) = (Instant::now(), json(bench(&["--threads", "1", "--warmup", "1", "--runs", "10000", "--json"])));
    let outside = start.elapsed().as_secs_f64() * 1e3;
    let result = &report["results"][0];
    let number = |of: &Value| of.as_f64().unwrap();
    let inside = number(&result["load_ms"]) + number(&result["first_inference_ms"]) + 1e4 * number(&result["latency_ms"]["mean"]);
    assert!((0.8..1.001).contains(&(inside / outside)), "{inside} ms inside, {outside} ms outside");
}

#[test]
fn models_take_turns_and_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let float = concat!(env!("CARGO_MANIFEST_DIR"), "/models/thin.onnx");
    let both = bench(&["--against", float, "--runs", "30", "--threads", "1", "--json"]);
    let report = json(both);
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.iter().map(|r| r["runs"].as_u64().unwrap()).collect::<Vec<_>>(), [30, 30]);
    assert!(results[0]["int8_macs"].as_u64() > Some(0) && results[1]["int8_macs"] == 0);

    let page = folder.path().join("report.html");
    let csv = text(bench(&["--runs", "30", "--sweep", "--csv", "--html", page.to_str().unwrap()]));
    let (head, rows) = csv.split_once("\r\n").unwrap();
    assert!(rows.lines().count() >= 1 && rows.lines().all(|r| r.split(',').count() == head.split(',').count()), "{csv}");
    let html = std::fs::read_to_string(page).unwrap();
    assert!(html.contains("<svg") && !html.contains("http") && !html.contains("<script"));

    // A made-up tenth of the latency: certainly faster.
    let a = folder.path().join("a.json");
    let b = folder.path().join("b.json");
    let mut slow = json(bench(&["--runs", "50", "--threads", "1", "--json"]));
    std::fs::write(&b, slow.to_string()).unwrap();
    let latency = &mut slow["results"][0]["latency_ms"];
    let median = latency["median"].as_f64().unwrap();
    latency["median"] = (10.0 * median).into();
    latency["median_ci95"] = serde_json::json!([9.9 * median, 10.1 * median]);
    std::fs::write(&a, slow.to_string()).unwrap();
    let compare = |a: &Path, b: &Path, more: &[&str]| {
        let mut command = edge_infer();
        command.args(["bench", "compare"]).args([a, b]).args(more);
        command.output().unwrap()
    };
    let better = compare(&a, &b, &["--fail-above", "5"]);
    assert!(better.status.success() && String::from_utf8_lossy(&better.stdout).contains(": faster"), "{better:?}");
    let worse = compare(&b, &a, &["--fail-above", "5"]);
    assert!(worse.status.code() == Some(1) && String::from_utf8_lossy(&worse.stdout).contains(": slower"), "{worse:?}");
    std::fs::write(&a, "{}").unwrap();
    let wrong = compare(&a, &b, &[]);
    assert!(wrong.status.code() == Some(1) && String::from_utf8_lossy(&wrong.stderr).contains("no schema"), "{wrong:?}");
}

#[test]
fn wrong_usage_is_2() {
    for arguments in
        [&["--runs", "0"][..], &["--sustained", "5"], &["--sustained", "1s", "--runs", "3"], &["--json", "--csv"], &["--confidence", "0"]]
    {
        assert_eq!(bench(arguments).output().unwrap().status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(edge_infer().arg("bench").output().unwrap().status.code(), Some(2));
}
