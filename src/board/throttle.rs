//! Why a Raspberry Pi is slow: the firmware's `get_throttled` flags
//! (<https://www.raspberrypi.com/documentation/computers/os.html#get_throttled>).

use super::text;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::{Command, Stdio};

/// The flags. The high half is what happened since the board was switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttled(pub u32);

const NOW: [&str; 4] =
    ["the supply voltage is too low", "the clock is capped", "the clock is throttled", "the soft temperature limit holds"];

impl Throttled {
    /// What holds now.
    pub fn now(self) -> Vec<&'static str> {
        (0..4).filter(|bit| self.0 >> bit & 1 == 1).map(|bit| NOW[bit]).collect()
    }

    /// Whether any of it happened since the board was switched on.
    pub fn ever(self) -> bool {
        self.0 & 0xF_000F != 0
    }
}

pub fn read(sysfs: &Path, ask_firmware: bool) -> Option<Throttled> {
    let places = ["devices/platform/soc/soc:firmware/get_throttled", "devices/platform/soc/soc@107c000000:firmware/get_throttled"];
    if let Some(text) = places.iter().find_map(|p| text(&sysfs.join(p))) {
        return parse(&text);
    }
    // Asking costs a process: only where there is a firmware to ask.
    if !(ask_firmware && Path::new("/dev/vcio").exists()) {
        return None;
    }
    let answer = Command::new("vcgencmd").arg("get_throttled").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    parse(String::from_utf8(answer.stdout).ok()?.trim())
}

/// `throttled=0x50005`, or the number alone, in hexadecimal.
fn parse(text: &str) -> Option<Throttled> {
    let digits = text.trim_start_matches("throttled=").trim_start_matches("0x");
    u32::from_str_radix(digits, 16).ok().map(Throttled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_in_both_spellings() {
        assert_eq!(parse("throttled=0x50005"), Some(Throttled(0x50005)));
        assert_eq!(parse("50000"), Some(Throttled(0x50000)));
        assert_eq!(parse("error=1"), None);
        assert_eq!(Throttled(0x50005).now(), ["the supply voltage is too low", "the clock is throttled"]);
        assert!(Throttled(0x50000).now().is_empty() && Throttled(0x50000).ever() && !Throttled(0).ever());
    }
}
