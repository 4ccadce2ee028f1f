//! What packages hold: pages and completions of every command, units whose command lines are understood.

mod streams;

use std::path::Path;
use streams::edge_infer;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn every_command_has_a_page_and_completions() {
    let folder = tempfile::tempdir().unwrap();
    assert!(edge_infer().arg("generate").arg(folder.path()).status().unwrap().success());
    let help = String::from_utf8(edge_infer().arg("--help").output().unwrap().stdout).unwrap();
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let names: Vec<&str> =
        commands.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   ")).filter_map(|l| l.split_whitespace().next()).collect();
    assert!(names.contains(&"serve") && names.contains(&"bench") && !names.contains(&"generate"), "{names:?}");
    let bash = std::fs::read_to_string(folder.path().join("bash/edge-infer.bash")).unwrap();
    for name in names.iter().filter(|n| **n != "help") {
        let page = std::fs::read_to_string(folder.path().join(format!("man1/edge-infer-{name}.1"))).unwrap();
        assert!(page.contains(".SH OPTIONS") && bash.contains(name), "{name}");
    }
    for file in ["zsh/_edge-infer", "fish/edge-infer.fish", "man1/edge-infer.1"] {
        let text = std::fs::read_to_string(folder.path().join(file)).unwrap();
        assert!(text.contains("camera"), "{file}");
    }
}

#[test]
fn units_call_commands_that_exist() {
    let mut lines = 0;
    for unit in std::fs::read_dir(Path::new(ROOT).join("packaging/systemd")).unwrap() {
        let text = std::fs::read_to_string(unit.unwrap().path()).unwrap();
        for command in text.lines().filter_map(|l| l.strip_prefix("ExecStart=/usr/bin/edge-infer ")) {
            let words = command.replace("${EDGE_MODEL}", "/nonexistent/model.onnx").replace("${EDGE_LISTEN}", "127.0.0.1:0");
            let words = words
                .replace("/usr/share/edge-infer/r18q.onnx", "/nonexistent/model.onnx")
                .replace("$EDGE_OPTIONS", "--camera /dev/edge-camera");
            let words = words.replace("/usr/share/edge-infer/pictures", streams::PICTURES);
            let output = edge_infer().args(words.split_whitespace()).output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            // Understood, and only then stopped by the model that is not there.
            assert!(output.status.code() == Some(1) && text.contains("/nonexistent/model.onnx"), "{command}: {text}");
            lines += 1;
        }
    }
    assert_eq!(lines, 3);
}
