//! Files with the names of classes, in the forms that people have them.

use crate::{Error, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Largest label file.
const MAX_BYTES: u64 = 64 << 20;

/// What a label file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Labels {
    /// The names of the classes in order.
    Names(Vec<String>),
    /// Names of classes, folders or files, and the number of the class of each.
    Numbers(HashMap<String, usize>),
}

/// A class in a JSON file: its name, or several (ImageNet's `["n01440764", "tench"]`), of which the last is for people.
#[derive(Deserialize)]
#[serde(untagged)]
enum Class {
    Name(String),
    Names(Vec<String>),
}

impl Class {
    fn name(self) -> Result<String, String> {
        match self {
            Class::Name(name) => Ok(name),
            Class::Names(mut names) => names.pop().ok_or_else(|| "a class has no name".into()),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Json {
    /// `["cat", "dog"]`
    List(Vec<Class>),
    /// `{"0": "cat", "1": "dog"}`
    ByNumber(BTreeMap<String, Class>),
    /// `{"cat": 0, "dog": 1}`
    ByName(HashMap<String, usize>),
}

/// Reads a file of at most 64 MB: UTF-8, with or without a byte order mark, lines ended by LF or CRLF.
pub fn read(path: &Path) -> Result<Labels> {
    parse(&text(path)?).map_err(|reason| Error::image(path, reason))
}

/// Reads a file that names the classes: one name a line (whatever it ends with), or JSON.
pub fn read_names(path: &Path) -> Result<Vec<String>> {
    names(&text(path)?).map_err(|reason| Error::image(path, reason))
}

fn text(path: &Path) -> Result<String> {
    let io = |e| Error::io(path, e);
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > MAX_BYTES {
        return Err(Error::image(path, format!("a label file of at most {MAX_BYTES} bytes is read, this has {length}")));
    }
    String::from_utf8(std::fs::read(path).map_err(io)?).map_err(|_| Error::image(path, "it is not UTF-8; save it as UTF-8"))
}

fn trimmed(text: &str) -> &str {
    text.strip_prefix('\u{FEFF}').unwrap_or(text).trim()
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).collect()
}

/// One name a line; or one `name number` a line, separated by a space, a tab or a comma; or JSON.
pub fn parse(text: &str) -> Result<Labels, String> {
    let text = trimmed(text);
    if text.starts_with(['[', '{']) {
        return parse_json(text);
    }
    let lines = lines(text);
    let pair = |line: &&str| {
        let (name, number) = line.rsplit_once([' ', ',', '\t'])?;
        Some((name.trim().trim_end_matches(',').to_string(), number.trim().parse().ok()?))
    };
    Ok(match lines.iter().map(pair).collect::<Option<HashMap<String, usize>>>() {
        Some(numbers) if !numbers.is_empty() => Labels::Numbers(numbers),
        _ => Labels::Names(lines.into_iter().map(String::from).collect()),
    })
}

/// The names of the classes in order: one a line, or JSON.
pub fn names(text: &str) -> Result<Vec<String>, String> {
    let text = trimmed(text);
    if text.starts_with(['[', '{']) { parse_json(text)?.into_names() } else { Ok(lines(text).into_iter().map(String::from).collect()) }
}

fn parse_json(text: &str) -> Result<Labels, String> {
    // `untagged` loses the position of an error in the text: whether it is JSON at all is asked first.
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| format!("it begins as JSON: {e}"))?;
    let forms = r#"JSON of labels is ["cat", "dog"], {"0": "cat", "1": "dog"} or {"cat": 0, "dog": 1}"#;
    match serde_json::from_value(value).map_err(|_| forms)? {
        Json::List(classes) => Ok(Labels::Names(classes.into_iter().map(Class::name).collect::<Result<_, _>>()?)),
        Json::ByName(numbers) => Ok(Labels::Numbers(numbers)),
        Json::ByNumber(classes) => {
            let mut names = BTreeMap::new();
            for (key, class) in classes {
                let number: usize = key.trim().parse().map_err(|_| format!("{key:?} is not the number of a class; {forms}"))?;
                names.insert(number, class.name()?);
            }
            match names.keys().copied().enumerate().find(|(expected, number)| expected != number) {
                Some((missing, _)) => Err(format!("class {missing} is missing: {} classes are numbered from 0", names.len())),
                None => Ok(Labels::Names(names.into_values().collect())),
            }
        }
    }
}

impl Labels {
    /// The names of the classes in order.
    pub fn into_names(self) -> Result<Vec<String>, String> {
        let numbers = match self {
            Labels::Names(names) => return Ok(names),
            Labels::Numbers(numbers) => numbers,
        };
        let mut names = vec![None; numbers.len()];
        for (name, number) in numbers {
            match names.get_mut(number) {
                Some(place @ None) => *place = Some(name),
                Some(Some(other)) => return Err(format!("{name:?} and {other:?} are both class {number}")),
                None => return Err(format!("class {number} is named, but there are {} names, counted from 0", names.len())),
            }
        }
        Ok(names.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_gives_the_same_names() {
        let expected = ["Übung", "great white shark", "b"].map(String::from);
        for text in [
            "Übung\ngreat white shark\nb\n",
            "\u{FEFF}Übung\r\ngreat white shark\r\n\r\nb\r\n",
            "\n  Übung  \ngreat white shark\nb",
            r#"["Übung", "great white shark", "b"]"#,
            "\u{FEFF} [\"Übung\",\r\n\"great white shark\", \"b\"]\r\n",
            r#"{"0": "\u00dcbung", "1": "great white shark", "2": "b"}"#,
            r#"{"2": "b", "1": "great white shark", "0": "Übung"}"#,
            r#"{"0": ["n01", "Übung"], "1": ["n02", "great white shark"], "2": ["n03", "b"]}"#,
            r#"[["n01", "Übung"], ["n02", "great white shark"], ["n03", "b"]]"#,
            r#"{"b": 2, "Übung": 0, "great white shark": 1}"#,
        ] {
            assert_eq!(names(text).unwrap(), expected, "{text}");
            assert_eq!(parse(text).unwrap().into_names().unwrap(), expected, "{text}");
        }
        assert_eq!(parse("Übung 0\nb 2\ngreat white shark, 1").unwrap().into_names().unwrap(), expected);
        // A name may end with a number.
        assert_eq!(names("digit 0\r\ndigit 1\r\n").unwrap(), ["digit 0", "digit 1"]);
        // Ten classes: numbers are ordered as numbers, not as text.
        let ten: Vec<String> = (0..12).map(|i| format!("\"{i}\": \"c{i}\"")).collect();
        assert_eq!(names(&format!("{{{}}}", ten.join(","))).unwrap()[11], "c11");
        let numbers = HashMap::from([("n01440764".into(), 2), ("n01443537".into(), 0)]);
        assert_eq!(parse("\u{FEFF}n01440764 2\r\nn01443537\t0\r\n").unwrap(), Labels::Numbers(numbers));
    }

    #[test]
    fn what_fits_no_form_is_an_error_that_names_it() {
        let fails = |text: &str, words: &str| {
            let reason = names(text).unwrap_err();
            assert!(reason.contains(words), "{text}: {reason}");
        };
        fails(r#"{"0": "a", "2": "c"}"#, "class 1 is missing");
        fails(r#"{"zero": "a"}"#, "\"zero\" is not the number");
        fails(r#"["a", "#, "line 1");
        fails(r#"["a", 7]"#, "JSON of labels is");
        fails(r#"{"0": []}"#, "no name");
        fails(r#"{"a": 0, "b": 0}"#, "both class 0");
        fails(r#"{"a": 0, "b": 7}"#, "class 7");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"\xFF\xFEa\0\n\0").unwrap();
        assert!(read(file.path()).unwrap_err().to_string().contains("save it as UTF-8"));
    }
}
