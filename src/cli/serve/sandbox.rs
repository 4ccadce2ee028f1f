//! What the service may open once it runs (Landlock, Linux 5.13 and newer): a bug that asks for another file gets an error.

use edge_infer::source::address::Address;
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus,
};
use std::path::{Path, PathBuf};

/// The newest version of the kernel's interface whose rights are known here; of an older kernel, what it has.
const KNOWN: ABI = ABI::V5;

/// Restricts this thread, and all threads that it starts from now on, to reading the model's folder and what the system
/// tells of itself, and to the camera. Says whether the kernel does so. A camera that is a program of the user's choice runs
/// under the same restrictions and needs files that only it knows: then there are none of ours.
pub fn enter(model: &Path, camera: Option<&Address>) -> Result<bool, RulesetError> {
    if matches!(camera, Some(Address::Exec(_) | Address::Libcamera(_))) {
        return Ok(true);
    }
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read | AccessFs::WriteFile | AccessFs::IoctlDev;
    let mut rules: Vec<(PathBuf, BitFlags<AccessFs>)> = vec![
        // A compiled model lies beside the link or beside the file.
        (folder(model), read),
        (model.canonicalize().map_or_else(|_| folder(model), |file| folder(&file)), read),
        // Sensors; memory in use; a Raspberry Pi's mailbox.
        (std::env::var_os("EDGE_SYSFS").map_or("/sys".into(), PathBuf::from), read),
        ("/proc".into(), read),
        ("/dev/vcio".into(), write),
    ];
    match camera {
        // Connecting is not opening a file.
        None | Some(Address::Stdin | Address::Unix(_)) => {}
        Some(Address::File(path)) => rules.push((folder(path), read)),
        Some(_) => {
            // A device that is plugged in anew is another file of the same folder.
            rules.push(("/dev".into(), write));
            // Names of hosts: the resolver's settings and modules.
            rules.extend(["/etc", "/run/systemd/resolve", "/lib", "/usr/lib"].map(|p| (p.into(), read)));
        }
    }
    let handled = AccessFs::from_all(KNOWN);
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(handled)?.create()?;
    for (path, access) in rules {
        // What is not there cannot be read either.
        let Ok(place) = PathFd::new(&path) else { continue };
        // Of a single file, rights for folders mean nothing and are an error.
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(KNOWN) };
        ruleset = ruleset.add_rule(PathBeneath::new(place, access))?;
    }
    Ok(ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

fn folder(file: &Path) -> PathBuf {
    file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of one thread, so that the other tests go on as they were.
    #[test]
    fn only_the_model_s_folder_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("models")).unwrap();
        let [model, secret] = ["models/m.onnx", "secret"].map(|name| folder.path().join(name));
        for file in [&model, &secret] {
            std::fs::write(file, b"x").unwrap();
        }
        std::os::unix::fs::symlink(&secret, folder.path().join("models/link")).unwrap();
        let restricted = std::thread::spawn(move || {
            if !enter(&model, None).unwrap() {
                eprintln!("SKIPPED: this kernel has no Landlock");
                return;
            }
            std::fs::read(&model).unwrap();
            std::fs::read("/proc/self/statm").unwrap();
            std::fs::read_dir("/sys/devices").unwrap();
            for path in [&secret, &model.with_file_name("link"), Path::new("/etc/hostname"), Path::new("/dev/null")] {
                assert_eq!(std::fs::read(path).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied, "{}", path.display());
            }
            assert!(std::fs::write(model.with_file_name("new"), b"x").is_err());
            assert!(std::fs::remove_file(&model).is_err());
        });
        restricted.join().unwrap();
    }
}
