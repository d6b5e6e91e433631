//! Whether and where to a run is uploaded.

use std::path::Path;

use lowrank_models::hub::Repository;
use serde::{Deserialize, Serialize};

use crate::fields::{FieldKind, OptionValue};
use crate::{Error, Result};

/// Whether a run is uploaded (`push_to_hub`): true or false, or to which repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PushToHub {
    /// Whether; `hub_model_id` or the name of the output folder says where to.
    Switch(bool),
    /// To `org/name`, or a name of the token's owner.
    To(String),
}

impl Default for PushToHub {
    fn default() -> Self {
        Self::Switch(false)
    }
}

impl OptionValue for PushToHub {
    const KIND: FieldKind = FieldKind::Optional;

    fn parse(text: &str) -> Result<toml::Value, String> {
        Ok(text.parse().map_or_else(|_| toml::Value::String(text.to_owned()), toml::Value::Boolean))
    }
}

impl PushToHub {
    /// The repository that the run is uploaded to.
    ///
    /// # Errors
    /// Where it has no name that can be one, or two, or options say how to upload and none to do it.
    pub(crate) fn repository(
        &self,
        model_id: Option<&str>,
        private: bool,
        out: &Path,
    ) -> Result<Option<String>> {
        let usage = |what: &str| Err(Error::Usage(what.to_owned()));
        let name = match (self, model_id) {
            (Self::Switch(false), None) if !private => return Ok(None),
            (Self::Switch(false), _) => {
                return usage(
                    "`hub_model_id` and `hub_private_repo` are for uploads: give `push_to_hub` as well",
                );
            }
            (Self::To(_), Some(_)) => {
                return usage("`push_to_hub` and `hub_model_id` both name a repository: give one");
            }
            (Self::To(name), None) => name.clone(),
            (Self::Switch(true), Some(name)) => name.to_owned(),
            (Self::Switch(true), None) => {
                let folder = std::path::absolute(out).map_err(Error::io(out))?;
                folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
            }
        };
        Repository::check_name(&name).map_err(|e| Error::Usage(format!("`hub_model_id`: {e}")))?;
        Ok(Some(name))
    }
}
