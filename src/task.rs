//! What a network is for: the words that its metadata and `--task` use.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// What the outputs of a network mean, with the parameters that its file can set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "kebab-case")]
pub enum Task {
    /// One class of several: softmax over the output.
    #[default]
    Classify,
    /// Any number of classes: each value of the output is a logit of its own.
    MultiLabel(MultiLabel),
    /// A vector; near vectors are alike.
    Embed,
    /// A class for each pixel: logits `[1, C, H, W]`.
    Segment,
    /// Objects with their boxes.
    Detect(Detect),
}

/// Parameters of [`Task::MultiLabel`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MultiLabel {
    /// Least probability of a class that is named, 0 to 1.
    #[serde(default = "half")]
    pub threshold: f32,
}

fn half() -> f32 {
    0.5
}

impl Default for MultiLabel {
    fn default() -> Self {
        MultiLabel { threshold: half() }
    }
}

/// Parameters of [`Task::Detect`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Detect {
    /// How boxes are written in the outputs; `None`: what names and shapes of the outputs suggest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
    /// A box needs a higher score, 0 to 1.
    pub confidence: f32,
    /// Of two boxes of a class that overlap by more (intersection over union, 0 to 1), the one with the lower score goes.
    pub iou: f32,
    /// Most boxes of a picture.
    pub most: u32,
}

impl Default for Detect {
    fn default() -> Self {
        // The defaults of the YOLO tools.
        Detect { head: None, confidence: 0.25, iou: 0.45, most: 300 }
    }
}

/// How a detector writes boxes. `C` classes, `N` places, `A` anchors a cell; coordinates are pixels of the network's input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    /// YOLOv5 and YOLOv7: `[1, N, 5 + C]`, decoded; or an output for each level, `[1, A·(5 + C), H, W]` or `[1, A, H, W, 5 + C]`, before
    /// the sigmoid.
    Yolov5 {
        /// Width and height of each level's anchors, from the finest level on; without any, those of YOLOv5 for COCO.
        #[serde(default)]
        anchors: Vec<Vec<[f32; 2]>>,
    },
    /// YOLOv8 and YOLO11: `[1, 4 + C, N]`, decoded (centre and size, class scores).
    Yolov8,
    /// YOLOX: `[1, N, 5 + C]`, relative to grids of strides 8, 16 and 32.
    Yolox,
    /// SSD and RetinaNet: boxes `[1, N, 4]` and scores `[1, N, C]`, before suppression.
    Boxes(BoxForm),
    /// Boxes after suppression: `boxes [N, 4]`, `scores [N]` and `labels [N]` (torchvision), or rows `[1, N, 6]` of corners, score and class.
    Final,
}

/// Parameters of [`Head::Boxes`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BoxForm {
    /// Boxes are centre and size, not two corners.
    pub centre: bool,
    /// Coordinates are shares of the input's size, 0 to 1.
    pub relative: bool,
    /// Class 0 is the background.
    pub background: bool,
}

/// Anchors of YOLOv5 for COCO (`models/yolov5s.yaml` of ultralytics/yolov5).
pub const YOLOV5_ANCHORS: [[[f32; 2]; 3]; 3] =
    [[[10., 13.], [16., 30.], [33., 23.]], [[30., 61.], [62., 45.], [59., 119.]], [[116., 90.], [156., 198.], [373., 326.]]];
/// Anchors of YOLOv7 for COCO (`cfg/deploy/yolov7.yaml` of WongKinYiu/yolov7).
pub const YOLOV7_ANCHORS: [[[f32; 2]; 3]; 3] =
    [[[12., 16.], [19., 36.], [40., 28.]], [[36., 75.], [76., 55.], [72., 146.]], [[142., 110.], [192., 243.], [459., 401.]]];

const FORMS: &str = "classify, multi-label, embed, segment, detect, detect:yolov5, detect:yolov7, detect:yolov8, detect:yolo11, detect:yolox, \
    detect:boxes, detect:final, or JSON";

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim_start().starts_with('{') {
            let task: Task = serde_json::from_str(text).map_err(|e| e.to_string())?;
            return task.check().map(|()| task);
        }
        let detect = |head| Task::Detect(Detect { head, ..Detect::default() });
        Ok(match text {
            "classify" => Task::Classify,
            "multi-label" => Task::MultiLabel(MultiLabel::default()),
            "embed" => Task::Embed,
            "segment" => Task::Segment,
            "detect" => detect(None),
            "detect:yolov5" => detect(Some(Head::Yolov5 { anchors: vec![] })),
            "detect:yolov7" => detect(Some(Head::Yolov5 { anchors: YOLOV7_ANCHORS.map(Vec::from).into() })),
            "detect:yolov8" | "detect:yolo11" => detect(Some(Head::Yolov8)),
            "detect:yolox" => detect(Some(Head::Yolox)),
            "detect:boxes" => detect(Some(Head::Boxes(BoxForm::default()))),
            "detect:final" => detect(Some(Head::Final)),
            _ => return Err(format!("one of {FORMS} is expected")),
        })
    }
}

impl Task {
    /// Refuses parameters that are out of range.
    ///
    /// # Errors
    /// Says which one, and its range.
    pub fn check(&self) -> Result<(), String> {
        let share = |name: &str, v: f32| match (0.0..=1.0).contains(&v) {
            true => Ok(()),
            false => Err(format!("{name} is {v}, 0 to 1 is possible")),
        };
        match self {
            Task::Classify | Task::Embed | Task::Segment => Ok(()),
            Task::MultiLabel(m) => share("threshold", m.threshold),
            Task::Detect(d) => {
                share("confidence", d.confidence)?;
                share("iou", d.iou)?;
                if !(1..=10_000).contains(&d.most) {
                    return Err(format!("most is {}, 1 to 10000 is possible", d.most));
                }
                match &d.head {
                    Some(Head::Yolov5 { anchors }) if anchors.iter().flatten().flatten().any(|v| !(*v > 0.0 && v.is_finite())) => {
                        Err("anchors have widths and heights above 0".into())
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// Its name, as [`FromStr`] takes it.
    pub fn name(&self) -> &'static str {
        match self {
            Task::Classify => "classify",
            Task::MultiLabel(_) => "multi-label",
            Task::Embed => "embed",
            Task::Segment => "segment",
            Task::Detect(_) => "detect",
        }
    }
}

/// An output of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its name in the ONNX file; may be empty.
    pub name: String,
    /// Its ONNX shape; a dimension that is only known after a run is 0.
    pub shape: Vec<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_survives_its_metadata() {
        for text in FORMS.split(", ").filter(|t| !t.contains("JSON")) {
            let task: Task = text.parse().unwrap();
            let json = serde_json::to_string(&task).unwrap();
            assert_eq!(json.parse::<Task>().unwrap(), task, "{json}");
            assert_eq!(task.name(), text.split(':').next().unwrap());
        }
        let text = r#"{"task":"detect","head":{"boxes":{"relative":true}},"iou":0.6}"#;
        let form = BoxForm { relative: true, ..BoxForm::default() };
        assert_eq!(text.parse::<Task>().unwrap(), Task::Detect(Detect { head: Some(Head::Boxes(form)), iou: 0.6, ..Detect::default() }));
    }

    #[test]
    fn wrong_parameters_are_named() {
        for (text, word) in [
            ("paint", "detect:yolov8"),
            (r#"{"task":"detect","iou":1.5}"#, "iou is 1.5"),
            (r#"{"task":"detect","most":0}"#, "most is 0"),
            (r#"{"task":"detect","colour":1}"#, "colour"),
            (r#"{"task":"multi-label","threshold":-1}"#, "threshold is -1"),
            (r#"{"task":"detect","head":{"yolov5":{"anchors":[[[0,1]]]}}}"#, "anchors"),
        ] {
            let reason = text.parse::<Task>().unwrap_err();
            assert!(reason.contains(word), "{text}: {reason}");
        }
    }
}
