//! Settings of runs: what differs between them first, what they share folded.

use std::collections::HashMap;

use lowrank_tools::modules::natural_order;

use crate::report::{Cell, Table};

/// One setting of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Name of the option.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Whether it is not the default.
    pub given: bool,
}

/// Settings that say most about a run: these go first, and are shown whether they were given or not.
const FIRST: [&str; 15] = [
    "model",
    "data",
    "eval_data",
    "task",
    "method",
    "r",
    "lora_alpha",
    "target_modules",
    "learning_rate",
    "lr_scheduler",
    "batch_size",
    "gradient_accumulation_steps",
    "epochs",
    "max_steps",
    "seed",
];

/// Settings that say nothing of what was computed.
const LAST: [&str; 6] = ["out", "force", "resume", "threads", "log_json", "tensorboard"];

/// The tables of the settings of `runs`, each with its name. Of several runs the first table has what differs, of one what
/// says most; the second one, folded, has the rest.
pub(crate) fn tables(runs: &[(&str, &[Setting])]) -> Vec<Table> {
    let maps: Vec<HashMap<&str, &Setting>> =
        runs.iter().map(|(_, settings)| settings.iter().map(|s| (s.key.as_str(), s)).collect()).collect();
    let mut keys: Vec<&str> = maps.iter().flat_map(|map| map.keys().copied()).collect();
    let place = |key: &str| FIRST.iter().position(|first| *first == key).unwrap_or(FIRST.len());
    keys.sort_by(|a, b| place(a).cmp(&place(b)).then_with(|| natural_order(a, b)));
    keys.dedup();
    let value = |map: &HashMap<&str, &Setting>, key: &str| map.get(key).map(|s| s.value.clone());
    let first = |key: &&str| match &maps[..] {
        _ if LAST.contains(key) => false,
        [only] => FIRST.contains(key) || only[key].given,
        [one, others @ ..] => others.iter().any(|other| value(other, key) != value(one, key)),
        [] => false,
    };
    let (shown, rest): (Vec<&str>, Vec<&str>) = keys.into_iter().partition(first);
    let several = runs.len() > 1;
    let mut tables = Vec::new();
    if !shown.is_empty() {
        let mut columns = vec!["setting".to_owned()];
        match several {
            true => columns.extend(runs.iter().map(|(name, _)| (*name).to_owned())),
            false => columns.push("value".into()),
        }
        let row = |key: &&str| {
            let values = maps.iter().map(|map| value(map, key).map_or_else(Cell::none, Cell::text));
            [Cell::text(*key)].into_iter().chain(values).collect()
        };
        tables.push(Table {
            id: "settings".into(),
            title: if several { "Settings that differ between the runs." } else { "Settings." }.into(),
            columns,
            rows: shown.iter().map(row).collect(),
            folded: false,
        });
    }
    let rest: Vec<&str> = rest.into_iter().filter(|key| !(several && LAST.contains(key))).collect();
    if !rest.is_empty() {
        let row = |key: &&str| {
            let value = maps.first().and_then(|map| value(map, key));
            vec![Cell::text(*key), value.map_or_else(Cell::none, Cell::text)]
        };
        tables.push(Table {
            id: "common-settings".into(),
            title: if several { "Settings that all runs share" } else { "Further settings" }.into(),
            columns: ["setting", "value"].map(Into::into).to_vec(),
            rows: rest.iter().map(row).collect(),
            folded: true,
        });
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(list: &[(&str, &str, bool)]) -> Vec<Setting> {
        let setting = |(key, value, given): &(&str, &str, bool)| Setting {
            key: (*key).into(),
            value: (*value).into(),
            given: *given,
        };
        list.iter().map(setting).collect()
    }

    fn keys(table: &Table) -> Vec<&str> {
        table.rows.iter().map(|row| row[0].text.as_str()).collect()
    }

    #[test]
    fn what_differs_goes_first_and_what_is_shared_is_folded_and_said_once() {
        let one = settings(&[
            ("weight_decay", "0", false),
            ("seed", "42", false),
            ("learning_rate", "0.001", true),
            ("out", "a", true),
            ("batch_size", "8", false),
        ]);
        let mut other = one.clone();
        other[2].value = "0.002".into();
        other[3].value = "b".into();
        other.push(Setting { key: "max_steps".into(), value: "10".into(), given: true });
        let tables = tables(&[("a", &one), ("b", &other)]);
        assert_eq!(keys(&tables[0]), ["learning_rate", "max_steps"]);
        assert_eq!(tables[0].columns, ["setting", "a", "b"]);
        let row = |i: usize| tables[0].rows[i].iter().map(|c| c.text.as_str()).collect::<Vec<_>>();
        assert_eq!((row(0), row(1)), (vec!["learning_rate", "0.001", "0.002"], vec!["max_steps", "–", "10"]));
        assert!(!tables[0].folded && tables[1].folded);
        assert_eq!(keys(&tables[1]), ["batch_size", "seed", "weight_decay"]);
        assert!(tables[1].rows.iter().all(|row| row.len() == 2));
    }

    #[test]
    fn one_run_shows_rate_batch_steps_and_what_was_given() {
        let one = settings(&[
            ("weight_decay", "0.1", true),
            ("adam_beta1", "0.9", false),
            ("learning_rate", "0.001", false),
            ("batch_size", "8", false),
            ("threads", "2", true),
        ]);
        let tables = tables(&[("a", &one)]);
        assert_eq!(keys(&tables[0]), ["learning_rate", "batch_size", "weight_decay"]);
        assert_eq!(keys(&tables[1]), ["adam_beta1", "threads"]);
    }

    #[test]
    fn runs_without_settings_have_no_table() {
        assert!(tables(&[("a", &[]), ("b", &[])]).is_empty() && tables(&[]).is_empty());
    }
}
