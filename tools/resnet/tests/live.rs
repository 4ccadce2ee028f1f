//! Full-size networks against torchvision itself, where Python has torch.

use std::process::Command;

#[test]
fn full_size_outputs_are_torchvisions() {
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/live.py");
    let Ok(out) = Command::new("python3").arg(script).arg(env!("CARGO_BIN_EXE_edge-resnet")).arg(folder.path()).output() else {
        return println!("skipped: python3 is not installed");
    };
    match out.status.code() {
        Some(77) => println!("skipped: {}", String::from_utf8_lossy(&out.stdout).trim()),
        code => assert_eq!(code, Some(0), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)),
    }
}
