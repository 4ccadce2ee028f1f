//! Labelled pictures: a folder per class, as ImageNet (`val/n01440764/*.JPEG`) and torchvision's ImageFolder have it.

use crate::{Error, Result};
use edge_infer::image;
use edge_infer::labels::{self, Labels};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// A picture and its class.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled {
    /// The file.
    pub path: PathBuf,
    /// Position in the logits.
    pub class: usize,
}

/// Letters and digits only: folder names cannot hold every label.
fn key(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn name_of(path: Option<&Path>) -> String {
    path.and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Finds pictures and their classes. In order of preference a class comes from `labels` (lines `file-or-folder number`,
/// or the names of the classes; any form of [`labels::parse`]), from `names` that equal the folder's, or from the folder's
/// place among all folders in sorted order, if there are as many as classes.
pub fn collect(paths: &[PathBuf], labels: Option<&Path>, names: &[String], classes: usize) -> Result<Vec<Labelled>> {
    let pictures = image::collect(paths)?;
    let truth = labels.map(labels::read).transpose()?;
    let names = match &truth {
        Some(Labels::Names(names)) => names,
        _ => names,
    };
    let by_name: HashMap<String, usize> = names.iter().enumerate().map(|(i, n)| (key(n), i)).collect();
    let folders: BTreeSet<String> = pictures.iter().map(|p| name_of(p.parent())).collect();
    let by_order = folders.len() == classes && !folders.iter().any(|f| by_name.contains_key(&key(f)));
    let order: HashMap<&String, usize> = folders.iter().enumerate().map(|(i, f)| (f, i)).collect();
    let class_of = |path: &Path| {
        let folder = name_of(path.parent());
        if let Some(Labels::Numbers(numbers)) = &truth {
            let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            return [name_of(Some(path)), stem, folder].iter().find_map(|n| numbers.get(n).copied());
        }
        by_name.get(&key(&folder)).copied().or_else(|| order.get(&folder).copied().filter(|_| by_order))
    };
    pictures
        .into_iter()
        .map(|path| match class_of(&path) {
            Some(class) if class < classes => Ok(Labelled { path, class }),
            Some(class) => Err(Error::image(&path, format!("its class is {class}, the model has {classes}; check --labels"))),
            None => Err(Error::image(
                &path,
                format!(
                    "its class is not known: its folder should be named as one of the model's labels, or there should be one folder \
                     for each of {classes} classes (there are {}); or give --labels with lines `folder number`",
                    folders.len()
                ),
            )),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(folders: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for f in folders {
            std::fs::create_dir_all(dir.path().join(f)).unwrap();
            std::fs::write(dir.path().join(f).join("ILSVRC2012_val_1.JPEG"), b"").unwrap();
        }
        dir
    }

    fn classes(dir: &tempfile::TempDir, labels: Option<&str>, names: &[&str], n: usize) -> Result<Vec<usize>> {
        let file = dir.path().join("labels.txt");
        if let Some(text) = labels {
            std::fs::write(&file, text).unwrap();
        }
        let names: Vec<String> = names.iter().map(|s| s.to_string()).collect();
        let found = collect(&[dir.path().to_owned()], labels.map(|_| file.as_path()), &names, n)?;
        Ok(found.into_iter().map(|l| l.class).collect())
    }

    #[test]
    fn the_class_comes_from_labels_names_or_order() {
        let imagenet = tree(&["val/n01440764", "val/n01443537", "val/n01484850"]);
        assert_eq!(classes(&imagenet, None, &["tench", "goldfish", "great white shark"], 3).unwrap(), [0, 1, 2]);
        let numbers = "n01440764 2\nn01443537 0\nn01484850 1\n";
        assert_eq!(classes(&imagenet, Some(numbers), &[], 1000).unwrap(), [2, 0, 1]);
        let wear = tree(&["Ankle boot", "T-shirt_top"]);
        assert_eq!(classes(&wear, None, &["T-shirt/top", "Coat", "Ankle boot"], 3).unwrap(), [2, 0]);
        assert_eq!(classes(&wear, Some("Ankle boot\nT-shirt/top\nCoat"), &[], 3).unwrap(), [0, 1]);
    }

    #[test]
    fn what_is_not_known_is_an_error_that_says_what_to_do() {
        let two = tree(&["a", "b"]);
        let text = classes(&two, None, &["x", "y", "z"], 3).unwrap_err().to_string();
        assert!(text.contains("3 classes (there are 2)") && text.contains("--labels"), "{text}");
        assert!(classes(&two, Some("a 0\nb 7"), &[], 3).unwrap_err().to_string().contains("its class is 7"));
    }
}
