//! Power rails of a Jetson: INA3221 monitors, as the kernel's hwmon driver shows them (JetPack 5 and 6), or as
//! JetPack 4's own driver does (iio).

use super::{folders, number, text};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One measured rail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rail {
    /// The board's name of it.
    pub name: String,
    /// Power, mW.
    pub milliwatts: f64,
}

pub fn read(sysfs: &Path) -> Vec<Rail> {
    let mut rails = Vec::new();
    for folder in folders(&sysfs.join("class/hwmon"), "hwmon") {
        if text(&folder.join("name")).is_some_and(|n| n.starts_with("ina")) {
            rails.extend((1..=3).filter_map(|channel| hwmon(&folder, channel)));
        }
    }
    if rails.is_empty() {
        for device in std::fs::read_dir(sysfs.join("bus/i2c/drivers/ina3221x")).into_iter().flatten().flatten() {
            for folder in folders(&device.path(), "iio:device") {
                rails.extend((0..3).filter_map(|channel| iio(&folder, channel)));
            }
        }
    }
    rails
}

/// Millivolts times milliamperes.
fn hwmon(folder: &Path, channel: u32) -> Option<Rail> {
    let (volts, amperes) = (number(&folder.join(format!("in{channel}_input")))?, number(&folder.join(format!("curr{channel}_input")))?);
    let name = text(&folder.join(format!("in{channel}_label"))).unwrap_or_else(|| format!("rail {channel}"));
    Some(Rail { name, milliwatts: volts as f64 * amperes as f64 / 1000.0 })
}

fn iio(folder: &Path, channel: u32) -> Option<Rail> {
    let name = text(&folder.join(format!("rail_name_{channel}")))?;
    Some(Rail { name, milliwatts: number(&folder.join(format!("in_power{channel}_input")))? as f64 })
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    #[test]
    fn both_drivers_are_read() {
        let orin = tree(&[
            ("class/hwmon/hwmon0/name", "nvme"),
            ("class/hwmon/hwmon3/name", "ina3221"),
            ("class/hwmon/hwmon3/in1_label", "VDD_IN"),
            ("class/hwmon/hwmon3/in1_input", "5000"),
            ("class/hwmon/hwmon3/curr1_input", "1200"),
            ("class/hwmon/hwmon3/in2_label", "VDD_CPU_GPU_CV"),
        ]);
        assert_eq!(read(orin.path()), [Rail { name: "VDD_IN".into(), milliwatts: 6000.0 }]);
        let nano = tree(&[
            ("bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_0", "POM_5V_IN"),
            ("bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input", "2345"),
        ]);
        assert_eq!(read(nano.path()), [Rail { name: "POM_5V_IN".into(), milliwatts: 2345.0 }]);
        assert!(read(&nano.path().join("none")).is_empty());
    }
}
