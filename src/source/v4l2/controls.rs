//! `--set`: a device's controls by name.

use super::abi::{Control, QueryCtrl, control_flag, query_control, set_control};
use crate::source::options::usage;
use std::io;
use std::os::fd::BorrowedFd;

/// Most controls of a device.
const MOST: usize = 512;
/// `V4L2_CTRL_TYPE_*` of whole numbers, switches, menus, buttons and masks; not of texts and structures.
const KINDS: [u32; 6] = [1, 2, 3, 4, 8, 9];

/// Names that mean the same on every device: the control that chooses between automatic and manual with its two values,
/// and the control of the value (`linux/v4l2-controls.h`).
const COMMON: [(&str, u32, i32, i32, &[u32]); 4] = [
    // Exposure in steps of 100 µs; automatic is 3, aperture priority, which webcams have, or 0.
    ("exposure", 0x9A_0901, 3, 1, &[0x9A_0902, 0x98_0911]),
    ("gain", 0x98_0912, 1, 0, &[0x98_0913]),
    ("white_balance", 0x98_090C, 1, 0, &[0x98_091A]),
    ("focus", 0x9A_090C, 1, 0, &[0x9A_090A]),
];

/// Sets controls in the order in which they were given.
pub fn set(fd: BorrowedFd, wanted: &[(String, String)]) -> io::Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let has = list(fd);
    for (name, value) in wanted {
        for (control, value) in resolve(&has, name, value).map_err(usage)? {
            // One that is inactive, such as exposure while it is automatic, may be refused as busy.
            set_control(fd, &mut Control { id: control.id, value })
                .map_err(|e| io::Error::new(e.kind(), format!("--set {name}={value}: {}: {e}", plain_name(&control.name))))?;
        }
    }
    Ok(())
}

/// The device's controls that are numbers and can be set.
fn list(fd: BorrowedFd) -> Vec<QueryCtrl> {
    let (mut found, mut id) = (Vec::new(), 0);
    for _ in 0..MOST {
        let mut query = QueryCtrl { id: id | control_flag::NEXT, ..QueryCtrl::default() };
        if query_control(fd, &mut query).is_err() {
            break;
        }
        id = query.id;
        if KINDS.contains(&query.kind) && query.flags & (control_flag::DISABLED | control_flag::READ_ONLY) == 0 {
            found.push(query);
        }
    }
    found
}

/// As `v4l2-ctl` writes them: "Exposure Time, Absolute" is `exposure_time_absolute`.
fn plain_name(name: &[u8; 32]) -> String {
    let text = String::from_utf8_lossy(name.split(|b| *b == 0).next().unwrap_or_default()).to_lowercase();
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    words.join("_")
}

/// The controls to set for one `--set`, and their values.
fn resolve<'a>(has: &'a [QueryCtrl], name: &str, value: &str) -> Result<Vec<(&'a QueryCtrl, i32)>, String> {
    let by_id = |id: u32| has.iter().find(|c| c.id == id);
    let number = |control: &QueryCtrl| {
        let range = control.minimum..=control.maximum;
        value.parse::<i32>().ok().filter(|v| range.contains(v)).ok_or_else(|| {
            let (least, most, step) = (control.minimum, control.maximum, control.step);
            format!("--set {name}={value}: {} takes {least} to {most} in steps of {step}", plain_name(&control.name))
        })
    };
    if let Some(control) = has.iter().find(|c| plain_name(&c.name) == name) {
        return Ok(vec![(control, number(control)?)]);
    }
    if let Some(&(_, switch, automatic, manual, values)) = COMMON.iter().find(|(n, ..)| *n == name) {
        let switch = by_id(switch);
        if value == "auto" {
            let control = switch.ok_or_else(|| format!("--set {name}=auto: this camera cannot"))?;
            // Exposure's menu may lack aperture priority.
            let automatic = if automatic > control.maximum { control.minimum } else { automatic };
            return Ok(vec![(control, automatic)]);
        }
        if let Some(control) = values.iter().find_map(|id| by_id(*id)) {
            return Ok(switch.map(|s| (s, manual)).into_iter().chain([(control, number(control)?)]).collect());
        }
    }
    let names = has.iter().map(|c| plain_name(&c.name)).collect::<Vec<_>>().join(", ");
    Err(format!("--set {name}: this camera has {}", if names.is_empty() { "no controls" } else { &names }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(id: u32, title: &str, minimum: i32, maximum: i32) -> QueryCtrl {
        let mut name = [0; 32];
        name[..title.len()].copy_from_slice(title.as_bytes());
        QueryCtrl { id, kind: 1, name, minimum, maximum, step: 1, ..QueryCtrl::default() }
    }

    #[test]
    fn names_are_found_and_values_checked() {
        // As the kernel's uvcvideo names them.
        let has = [
            control(0x98_0900, "Brightness", 0, 255),
            control(0x9A_0901, "Auto Exposure", 0, 3),
            control(0x9A_0902, "Exposure Time, Absolute", 1, 10_000),
            control(0x98_0913, "Gain", 0, 255),
        ];
        let set = |name: &str, value: &str| resolve(&has, name, value).map(|v| v.into_iter().map(|(c, v)| (c.id, v)).collect::<Vec<_>>());
        assert_eq!(set("brightness", "7").unwrap(), [(0x98_0900, 7)]);
        assert_eq!(set("exposure", "120").unwrap(), [(0x9A_0901, 1), (0x9A_0902, 120)]);
        assert_eq!(set("exposure", "auto").unwrap(), [(0x9A_0901, 3)]);
        assert_eq!(set("exposure_time_absolute", "5").unwrap(), [(0x9A_0902, 5)]);
        assert_eq!(set("gain", "9").unwrap(), [(0x98_0913, 9)]);
        assert!(set("gain", "256").unwrap_err().contains("0 to 255"));
        assert!(set("exposure", "much").unwrap_err().contains("1 to 10000"));
        assert!(set("white_balance", "auto").unwrap_err().contains("cannot"));
        assert!(set("focus", "3").unwrap_err().contains("brightness, auto_exposure, exposure_time_absolute, gain"));
        assert!(resolve(&[], "x", "1").unwrap_err().contains("no controls"));
    }
}
