//! The data-to-text sets of LoRA's paper in their original files.
//!
//! Each becomes rows of `prompt` and `completion` as the paper's code made them: the input in one line,
//! `subject : predicate : object | ...` (E2E: `slot : value | ...`), and a completion that begins with a space. A
//! prompt template may also name the columns in brackets.
//!
//! | format | file | completions of one prompt |
//! |---|---|---|
//! | `e2e` | CSV with the columns `mr` and `ref` (`mr`) | rows with the same `mr` |
//! | `webnlg` | JSON of the 2017 challenge: `{"entries": [{"1": {...}}]}` (`category`) | lexicalisations that are marked good |
//! | | its XML: `<benchmark><entries><entry category="...">` (`category`) | the same |
//! | `dart` | JSON: `[{"tripleset": [[s, p, o]], "annotations": [...]}]` | annotations; predicates in lower case |

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::contract::{DataFormat, DataOptions};
use super::fields::{Fields, Raw, Row, Rows};
use super::table;
use super::template::Template;
use crate::Error;

/// The format that a file shows by its first bytes, where it is one of these.
pub(super) fn detect(input: &mut BufReader<File>, path: &Path) -> Result<Option<DataFormat>, Error> {
    let start = String::from_utf8_lossy(input.fill_buf().map_err(Error::io(path))?);
    let start = start.trim_start();
    let header: Vec<_> =
        start.lines().next().unwrap_or("").split(',').map(|n| n.trim().trim_matches('"')).collect();
    Ok(match start.chars().next() {
        _ if header == ["mr", "ref"] => Some(DataFormat::E2e),
        Some('{') if start[1..].trim_start().starts_with("\"entries\"") => Some(DataFormat::Webnlg),
        Some('<') if start.contains("<benchmark") => Some(DataFormat::Webnlg),
        Some('[') if start.contains("\"tripleset\"") => Some(DataFormat::Dart),
        _ => None,
    })
}

/// How the rows of such a file are read: the prompt ends with a line end unless a template says otherwise.
pub(super) fn options(options: &DataOptions) -> Result<DataOptions, Error> {
    if options.prompt_column.is_some() || options.completion_column.is_some() || options.text_column.is_some()
    {
        return Err(Error::Options(
            "the data formats e2e, webnlg and dart name their columns: drop `prompt_column`, \
             `completion_column` and `text_column`"
                .into(),
        ));
    }
    let template = match &options.prompt_template {
        Some(template) => template.clone(),
        None => Template::parse("{prompt}\\n")?,
    };
    Ok(DataOptions { prompt_template: Some(template), ..options.clone() })
}

/// Bytes of a file that is one document, and read as one. DART's has 30 million.
const MAX_DOCUMENT: u64 = 1 << 30;

/// The rows of a file of `format`.
pub(super) fn rows(path: &Path, mut input: BufReader<File>, format: DataFormat) -> Result<Rows, Error> {
    if format == DataFormat::E2e {
        let options = DataOptions {
            prompt_column: Some("mr".into()),
            completion_column: Some("ref".into()),
            ..DataOptions::default()
        };
        let names = names(["prompt", "completion", "mr"]);
        let rows = table::Rows::new(path, input, b',', &options)?;
        return Ok(Box::new(rows.map(move |row| row.map(|row| e2e_row(row, &names)))));
    }
    let bad = |reason: String| Error::DataFile { path: path.into(), reason };
    let names = names(["prompt", "completion", "category"]);
    if format == DataFormat::Webnlg && first_is(&mut input, b'<').map_err(Error::io(path))? {
        return Ok(of_entries(webnlg_xml(input).map_err(bad)?, &names));
    }
    let json: Value =
        serde_json::from_reader(input.take(MAX_DOCUMENT)).map_err(|e| bad(format!("not JSON: {e}")))?;
    let (list, what, read): (_, _, fn(&Value) -> Entry) = match format {
        DataFormat::Webnlg => (json.get("entries"), "an object with a list \"entries\"", webnlg_entry),
        _ => (Some(&json), "a list", dart_entry),
    };
    let Some(Value::Array(list)) = list else {
        return Err(bad(format!("a {format} file holds {what}")));
    };
    Ok(of_entries(list.iter().map(read).map(|entry| (None, entry)).collect(), &names))
}

/// Whether a file begins with `byte`, behind spaces and a byte order mark.
fn first_is(input: &mut BufReader<File>, byte: u8) -> std::io::Result<bool> {
    let start = input.fill_buf()?;
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    Ok(start.trim_ascii_start().first() == Some(&byte))
}

/// The rows of entries, which are at a line of their own or are counted.
fn of_entries(entries: Vec<(Option<u64>, Entry)>, names: &Arc<[String]>) -> Rows {
    let mut rows = Vec::new();
    for (number, (line, entry)) in (1..).zip(entries) {
        let line = line.unwrap_or(number);
        match entry {
            Ok((prompt, texts, category)) => rows.extend(texts.iter().map(|text| {
                let record = csv::ByteRecord::from(vec![prompt.clone(), completion(text), category.clone()]);
                Ok(Row { line, raw: Raw::Table(names.clone(), record) })
            })),
            Err(reason) => rows.push(Ok(Row { line, raw: Raw::Bad(format!("entry {number}: {reason}")) })),
        }
    }
    Box::new(rows.into_iter())
}

/// Prompt, completions, category; or what is wrong.
type Entry = Result<(String, Vec<String>, String), String>;

fn names<const N: usize>(names: [&str; N]) -> Arc<[String]> {
    names.iter().map(ToString::to_string).collect()
}

fn completion(text: &str) -> String {
    format!(" {}", text.trim())
}

fn e2e_row(row: Row, names: &Arc<[String]>) -> Row {
    let line = row.line;
    let made = Fields::of(&row.raw).and_then(|fields| {
        let mr = fields.text("mr")?;
        Ok(csv::ByteRecord::from(vec![slots(mr)?, completion(fields.text("ref")?), mr.to_owned()]))
    });
    let raw = match made {
        Ok(record) => Raw::Table(names.clone(), record),
        Err(reason) => Raw::Bad(reason),
    };
    Row { line, raw }
}

/// `name[Blue Spice], area[city centre]` to `name : Blue Spice | area : city centre`.
fn slots(mr: &str) -> Result<String, String> {
    let slot = |slot: &str| {
        let (name, value) = slot.split_once('[')?;
        let value = value.strip_suffix(']').unwrap_or(value);
        Some(format!("{} : {}", name.trim(), value.trim()))
    };
    let slots: Option<Vec<String>> = mr.trim().split("],").map(slot).collect();
    let slots = slots
        .ok_or_else(|| format!("{mr:?} is not a list of slots like name[The Punter], area[riverside]"))?;
    Ok(slots.join(" | "))
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str, String> {
    value.get(key).and_then(Value::as_str).ok_or_else(|| format!("a text {key:?} is missing"))
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a [Value], String> {
    let list = value.get(key).and_then(Value::as_array).filter(|list| !list.is_empty());
    list.map(Vec::as_slice).ok_or_else(|| format!("a list {key:?} is missing or empty"))
}

fn webnlg_entry(entry: &Value) -> Entry {
    // An entry stands alone in an object, under its number.
    let entry =
        entry.as_object().and_then(|o| o.values().next()).ok_or("it is not an object with an entry")?;
    let triples = list(entry, "modifiedtripleset")?.iter().map(|triple| {
        let [s, p, o] = ["subject", "property", "object"].map(|key| text(triple, key));
        Ok(format!("{} : {} : {}", s?, p?, o?))
    });
    let triples: Vec<String> = triples.collect::<Result<_, String>>()?;
    let good =
        list(entry, "lexicalisations")?.iter().filter(|lex| lex.get("comment").is_none_or(|c| c == "good"));
    let texts = good.map(|lex| text(lex, "lex").map(str::to_owned)).collect::<Result<_, _>>()?;
    let category = entry.get("category").and_then(Value::as_str).unwrap_or_default();
    Ok((triples.join(" | "), texts, category.to_owned()))
}

/// The entries of the challenge's XML, with their lines.
fn webnlg_xml(mut input: BufReader<File>) -> Result<Vec<(Option<u64>, Entry)>, String> {
    let mut text = String::new();
    input.by_ref().take(MAX_DOCUMENT).read_to_string(&mut text).map_err(|e| format!("not UTF-8: {e}"))?;
    let xml = roxmltree::Document::parse(&text).map_err(|e| format!("not XML: {e}"))?;
    let (mut line, mut at, mut entries) = (1, 0, Vec::new());
    for entry in xml.descendants().filter(|node| node.has_tag_name("entry")) {
        let start = entry.range().start;
        line += text[at..start].matches('\n').count() as u64;
        at = start;
        entries.push((Some(line), webnlg_xml_entry(entry)));
    }
    match entries.is_empty() {
        true => Err("a webnlg file holds <entry> elements, and this has none".into()),
        false => Ok(entries),
    }
}

fn webnlg_xml_entry(entry: roxmltree::Node<'_, '_>) -> Entry {
    let triples = entry.children().find(|node| node.has_tag_name("modifiedtripleset"));
    let triples = triples.ok_or("<modifiedtripleset> is missing")?;
    let triples = triples.children().filter(|node| node.has_tag_name("mtriple")).map(|triple| {
        let text = triple.text().unwrap_or_default().trim();
        let parts: Vec<&str> = text.split(" | ").collect();
        match parts[..] {
            [s, p, o] => Ok(format!("{s} : {p} : {o}")),
            _ => Err(format!("<mtriple> {text:?} is not a subject | property | object")),
        }
    });
    let triples: Vec<String> = triples.collect::<Result<_, String>>()?;
    if triples.is_empty() {
        return Err("<modifiedtripleset> holds no <mtriple>".into());
    }
    let lexes = entry.children().filter(|node| node.has_tag_name("lex"));
    let good = lexes.filter(|lex| matches!(lex.attribute("comment"), None | Some("good" | "")));
    let texts = good.map(|lex| lex.text().unwrap_or_default().trim().to_owned()).collect();
    let category = entry.attribute("category").unwrap_or_default();
    Ok((triples.join(" | "), texts, category.to_owned()))
}

fn dart_entry(entry: &Value) -> Entry {
    let triples = list(entry, "tripleset")?.iter().map(|triple| {
        let parts: Option<Vec<&str>> =
            triple.as_array().and_then(|parts| parts.iter().map(Value::as_str).collect());
        match parts.as_deref() {
            Some([s, p, o]) => Ok(format!("{s} : {} : {o}", p.to_lowercase())),
            _ => Err("\"tripleset\" holds something else than three texts".to_owned()),
        }
    });
    let triples: Vec<String> = triples.collect::<Result<_, String>>()?;
    let texts = list(entry, "annotations")?.iter().map(|a| text(a, "text").map(str::to_owned));
    Ok((triples.join(" | "), texts.collect::<Result<_, _>>()?, String::new()))
}

#[cfg(test)]
mod tests {
    use super::super::{PromptGroup, read_groups};
    use super::*;

    fn groups(name: &str, content: &str, options: &DataOptions) -> Result<Vec<PromptGroup>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let detected = read_groups(&path, options).map_err(|e| e.to_string());
        let named = DataOptions { format: Some(DataFormat::Jsonl), ..options.clone() };
        assert!(read_groups(&path, &named).is_err(), "a named format holds");
        detected
    }

    fn group(prompt: &str, references: &[&str]) -> PromptGroup {
        let references = references.iter().map(ToString::to_string).collect();
        PromptGroup { prompt: prompt.into(), references }
    }

    const DART: &str = r#"[
      {"tripleset": [["Mars Hill", "JOINED", "1973"], ["Mars Hill", "AREA", "North"]],
       "annotations": [{"source": "x", "text": "It joined."}, {"text": " Joined in 1973 "}]},
      {"tripleset": [["A", "B"]], "annotations": [{"text": "two parts only"}]}
    ]"#;

    #[test]
    fn e2e_rows_of_one_meaning_are_one_prompt() {
        let file = "mr,ref\n\"name[The Punter], area[city centre]\",One.\n\
                    \"name[Ali, Baba], rating[5 out of 5]\",\" Two, too. \"\n\
                    \"name[The Punter], area[city centre]\",Three.\n";
        let want = [
            group("name : The Punter | area : city centre\n", &["One.", "Three."]),
            group("name : Ali, Baba | rating : 5 out of 5\n", &["Two, too."]),
        ];
        assert_eq!(groups("a.csv", file, &DataOptions::default()).unwrap(), want);
        let template = Template::parse("{mr} -> {prompt}").unwrap();
        let options = DataOptions { prompt_template: Some(template), ..DataOptions::default() };
        let first = groups("a.csv", file, &options).unwrap().swap_remove(0).prompt;
        assert_eq!(first, "name[The Punter], area[city centre] -> name : The Punter | area : city centre");
        let error = groups("a.csv", "mr,ref\nno slots,text\n", &DataOptions::default()).unwrap_err();
        assert!(error.contains(":2:") && error.contains("not a list of slots"), "{error}");
    }

    #[test]
    fn webnlg_leaves_out_what_is_not_good() {
        let file = r#"{"entries": [{"1": {"category": "Airport",
            "modifiedtripleset": [{"subject": "A_B", "property": "p", "object": "\"x\""}],
            "lexicalisations": [{"comment": "good", "lex": "A B has x."}, {"comment": "toFix", "lex": "bad"}]}}]}"#;
        let want = [group("A_B : p : \"x\"\n", &["A B has x."])];
        assert_eq!(groups("dev.json", file, &DataOptions::default()).unwrap(), want);
        let error = groups("dev.json", r#"{"entries": [{"1": {}}]}"#, &DataOptions::default()).unwrap_err();
        assert!(error.contains("entry 1") && error.contains("modifiedtripleset"), "{error}");
    }

    #[test]
    fn webnlg_in_xml() {
        let file = "<?xml version=\"1.0\" ?>\n<benchmark>\n<entries>\n<entry category=\"Airport\" eid=\"Id1\" size=\"2\">\n\
            <originaltripleset><otriple>X | y | z</otriple></originaltripleset>\n<modifiedtripleset>\n\
            <mtriple>Aarhus_Airport | cityServed | \"Aarhus, Denmark\"</mtriple>\n\
            <mtriple>A &amp; B | p | 3</mtriple></modifiedtripleset>\n\
            <lex comment=\"good\" lid=\"Id1\">It serves Aarhus &amp; more.</lex>\n<lex comment=\"toFix\">bad</lex>\n</entry>\n\
            <entry category=\"City\"><modifiedtripleset><mtriple>one | two</mtriple></modifiedtripleset></entry>\n\
            </entries></benchmark>";
        let options = DataOptions { skip_bad_lines: true, ..DataOptions::default() };
        let prompt = "Aarhus_Airport : cityServed : \"Aarhus, Denmark\" | A & B : p : 3\n";
        assert_eq!(groups("d.xml", file, &options).unwrap(), [group(prompt, &["It serves Aarhus & more."])]);
        let error = groups("d.xml", file, &DataOptions::default()).unwrap_err();
        assert!(
            error.contains(":12:") && error.contains("entry 2") && error.contains("\"one | two\""),
            "{error}"
        );
        let cut = &file[..file.len() - 12];
        let error = groups("d.xml", cut, &options).unwrap_err();
        assert!(error.contains("d.xml") && error.contains("not XML"), "{error}");
        let error = groups("d.xml", "<benchmark></benchmark>", &options).unwrap_err();
        assert!(error.contains("<entry>"), "{error}");
    }

    #[test]
    fn dart_has_predicates_in_lower_case() {
        let options = DataOptions { skip_bad_lines: true, ..DataOptions::default() };
        let want = [group(
            "Mars Hill : joined : 1973 | Mars Hill : area : North\n",
            &["It joined.", "Joined in 1973"],
        )];
        assert_eq!(groups("d.json", DART, &options).unwrap(), want);
        let error = groups("d.json", DART, &DataOptions::default()).unwrap_err();
        assert!(error.contains("entry 2") && error.contains("three texts"), "{error}");
    }

    #[test]
    fn columns_are_not_named_twice() {
        let options = DataOptions {
            format: Some(DataFormat::E2e),
            prompt_column: Some("mr".into()),
            ..DataOptions::default()
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        std::fs::write(&path, "mr,ref\na[b],c\n").unwrap();
        let error = read_groups(&path, &options).unwrap_err().to_string();
        assert!(error.contains("`prompt_column`"), "{error}");
    }
}
