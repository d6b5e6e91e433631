//! PEFT's `ensure_weight_tying`: what is trained of a table is trained of the head that shares it
//! (`peft/tuners/lora/model.py`: `_add_modules_to_save_to_tie`, `_add_targets_to_tie`).

use lowrank_engine::{Site, SiteKind};

use crate::config::{LoraConfig, Targets};
use crate::error::Error;
use crate::pattern::Pattern;

/// The field of `adapter_config.json`.
const FIELD: &str = "ensure_weight_tying";
/// PEFT knows tables and heads by these names.
const TABLES: [&str; 2] = ["embed_tokens", "lm_head"];

/// What a head shares with its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tied {
    /// The copy that is trained whole.
    Saved,
    /// The adapter.
    Adapted,
}

/// A head and the table it is tied to, by index, with what they share.
#[derive(Clone, Copy, Debug)]
pub struct TiedHead {
    /// The head.
    pub head: usize,
    /// The table.
    pub table: usize,
    /// What they share.
    pub shares: Tied,
}

/// Makes `config` name the table in place of the head, where the two are to stay tied. The warning is for a
/// configuration that names neither, or a model without such a head.
///
/// # Errors
/// If `target_modules` is not a valid regular expression.
pub fn tie(config: &mut LoraConfig, sites: &[Site]) -> Result<(Option<TiedHead>, Option<String>), Error> {
    if !config.is_set(FIELD) {
        return Ok((None, None));
    }
    let tied = |(index, site): (usize, &Site)| match site.kind {
        SiteKind::TiedHead(table) => Some((index, table.0)),
        _ => None,
    };
    let Some((head, table)) = sites.iter().enumerate().find_map(tied) else {
        return Ok((None, Some(format!("{FIELD} is set, and the model has no tied layers"))));
    };
    let (head_path, table_path) = (sites[head].path.as_str(), sites[table].path.as_str());
    if let Some(names) = &mut config.modules_to_save
        && names.iter().any(|name| is_table(name))
    {
        name_table(names, head_path, table_path);
        return Ok((Some(TiedHead { head, table, shares: Tied::Saved }), None));
    }
    let named = match &mut config.target_modules {
        Some(Targets::Names(names)) if names.iter().any(|name| is_table(name)) => {
            name_table(names, head_path, table_path);
            true
        }
        Some(Targets::Pattern(pattern)) if !pattern.eq_ignore_ascii_case("all-linear") => {
            let whole = Pattern::whole(pattern)?;
            let named = TABLES.iter().map(|name| whole.is_match(name)).collect::<Result<Vec<_>, _>>()?;
            let named = named.contains(&true);
            if named && !whole.is_match(table_path)? {
                *pattern = format!("(?:{pattern}|^{}$)", regex_escaped(table_path));
            }
            named
        }
        _ => false,
    };
    match named {
        true => Ok((Some(TiedHead { head, table, shares: Tied::Adapted }), None)),
        false => Ok((
            None,
            Some(format!(
                "{FIELD} is set, and neither modules_to_save nor target_modules names a tied layer"
            )),
        )),
    }
}

fn is_table(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|last| TABLES.contains(&last))
}

/// Adds the table and removes what names the head.
fn name_table(names: &mut Vec<String>, head: &str, table: &str) {
    if !names.iter().any(|name| name == table) {
        names.push(table.to_owned());
    }
    names.retain(|name| head != name && !head.ends_with(&format!(".{name}")));
}

fn regex_escaped(path: &str) -> String {
    path.replace('.', "\\.")
}
