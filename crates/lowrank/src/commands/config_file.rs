//! TOML files with options of a run: what is wrong in one is named with file, line and key.

use std::path::Path;

use lowrank::{Error, Result, TrainOptions};
use toml::de::{DeTable, DeValue};

/// A table of options in a file, or an entry of a list of tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct Section<'a> {
    /// Its name; empty for the file itself.
    pub name: &'a str,
    /// Which entry it is, of `[[name]]`.
    pub index: Option<usize>,
}

/// The options in the file at `path`.
pub fn read(path: &Path) -> Result<toml::Table> {
    let wrong = |e: String| Error::Usage(format!("{}: {e}", path.display()));
    let text = super::read_text(path)?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| wrong(e.to_string()))?;
    check(path, &text, Section::default(), &table)?;
    TrainOptions::named(table).map_err(|e| wrong(e.to_string()))
}

/// Checks each option in a table of the file.
pub fn check(path: &Path, text: &str, section: Section, table: &toml::Table) -> Result<()> {
    for (key, value) in table {
        let alone = toml::Table::from_iter([(key.clone(), value.clone())]);
        if let Err(error) = TrainOptions::from_table(alone) {
            let line = line_of(text, section, key).map(|line| format!(":{line}")).unwrap_or_default();
            let name = match (section.name, section.index) {
                ("", _) => String::new(),
                (name, None) => format!("[{name}] "),
                (name, Some(_)) => format!("[[{name}]] "),
            };
            return Err(Error::Usage(format!("{}{line}: {name}{error}", path.display())));
        }
    }
    Ok(())
}

/// The line of a key, from 1.
fn line_of(text: &str, section: Section, key: &str) -> Option<usize> {
    let file = DeTable::parse(text).ok()?;
    let mut table = file.get_ref();
    if !section.name.is_empty() {
        let (_, found) = table.iter().find(|(name, _)| name.get_ref() == section.name)?;
        table = match (found.get_ref(), section.index) {
            (DeValue::Table(table), None) => table,
            (DeValue::Array(list), Some(index)) => list.get(index)?.get_ref().as_table()?,
            _ => return None,
        };
    }
    let (name, _) = table.iter().find(|(name, _)| name.get_ref() == key)?;
    Some(text[..name.span().start].matches('\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_file_line_and_key() {
        let text = "name = \"x\"\n\n[train]\nr = 4\n\n[[method]]\nname = \"a\"\nr = 2\n[[method]]\nlernrate = 1\n\n\
                    lora-alpha = -1.0\n";
        let table: toml::Table = text.parse().unwrap();
        let said = |section, table: &toml::Value| {
            check(Path::new("s.toml"), text, section, table.as_table().unwrap()).unwrap_err().to_string()
        };
        let second = Section { name: "method", index: Some(1) };
        let error = said(second, &table["method"][1]);
        assert!(error.starts_with("s.toml:10: [[method]] unknown option `lernrate`"), "{error}");
        let error = said(
            second,
            &toml::Value::Table([("lora-alpha".to_owned(), (-1.0).into())].into_iter().collect()),
        );
        assert!(error.starts_with("s.toml:12: [[method]] `lora_alpha` is -1"), "{error}");
        let train = Section { name: "train", index: None };
        assert!(check(Path::new("s.toml"), text, train, table["train"].as_table().unwrap()).is_ok());
        let error = said(Section::default(), &toml::Value::Table(table.clone()));
        assert!(error.starts_with("s.toml:6: `method`: invalid type"), "{error}");
    }
}
