//! Rows of an embedding trained in place of the base's (`trainable_token_indices` in `adapter_config.json`): `y_i = E[id_i]`, with
//! `E[t_j]` replaced by row `j` of `T: [n,D]`. A head that shares the table uses the same rows for its scores `x E^T`. `T` starts
//! as the base's rows; there is no dropout. All as in PEFT (`peft/tuners/trainable_tokens`).

use std::collections::HashMap;

use lowrank_engine::{Accumulator, Adapter, Grads, Linear, ParamId, Params, Scope, Site, SiteKind, Tensor};
use serde_json::{Map, Value};

use crate::config::LoraConfig;
use crate::contract::{InitContext, Variant, WeightRows};
use crate::error::Error;

/// The field of `adapter_config.json`: a list of tokens, or lists by the names of embeddings.
pub const FIELD: &str = "trainable_token_indices";

/// Ending of its tensor's name.
pub const SUFFIX: &str = "token_adapter.trainable_tokens_delta";

/// The tokens that `config` trains, by the index of the site.
pub(crate) fn wanted(config: &LoraConfig, sites: &[Site]) -> Result<Vec<(usize, Vec<u32>)>, Error> {
    let wrong = |what: String| Error::Config(format!("{FIELD} {what}"));
    let list = |value: &Value| -> Result<Vec<u32>, Error> {
        let number = |token: &Value| token.as_u64().and_then(|token| u32::try_from(token).ok());
        let tokens: Option<Vec<u32>> =
            value.as_array().and_then(|list| list.iter().map(number).collect::<Option<_>>());
        tokens
            .filter(|tokens| !tokens.is_empty())
            .ok_or_else(|| wrong(format!("is {value}: it must be a list of tokens, or such lists by name")))
    };
    if !config.is_set(FIELD) {
        return Ok(Vec::new());
    }
    let embeddings = || sites.iter().enumerate().filter(|(_, site)| site.kind == SiteKind::Embedding);
    let names = || embeddings().map(|(_, site)| site.path.as_str()).collect::<Vec<_>>().join(", ");
    match &config.other[FIELD] {
        Value::Object(by_name) => by_name
            .iter()
            .filter(|(name, value)| !is_tied_again(name, value, by_name, sites))
            .map(|(name, value)| {
                let found = embeddings().find(|(_, site)| site.path.ends_with(name.as_str()));
                let (index, _) = found.ok_or_else(|| {
                    wrong(format!("names {name:?}; this model's embeddings are {}", names()))
                })?;
                Ok((index, list(value)?))
            })
            .collect(),
        value => {
            let tokens = list(value)?;
            // Every model's first is that of its tokens.
            let (index, _) =
                embeddings().next().ok_or_else(|| wrong("is set, and the model has no embedding".into()))?;
            Ok(vec![(index, tokens)])
        }
    }
}

/// Whether `name` is a head that shares the table of another entry with the same tokens: it has its rows.
fn is_tied_again(name: &str, tokens: &Value, by_name: &Map<String, Value>, sites: &[Site]) -> bool {
    let ends = |path: &str, name: &str| path.ends_with(name);
    sites.iter().any(|head| match head.kind {
        SiteKind::TiedHead(table) if ends(&head.path, name) => {
            by_name.iter().any(|(other, same)| ends(&sites[table.0].path, other) && same == tokens)
        }
        _ => false,
    })
}

/// Trained rows of a table.
#[derive(Clone, Debug)]
pub struct TrainedTokens {
    /// `T: [n,D]`.
    pub rows: ParamId,
    tokens: Vec<u32>,
    place: HashMap<u32, usize>,
    /// Whether the rows are another site's: that of the embedding a head is tied to.
    shares: bool,
}

impl TrainedTokens {
    /// `tokens` of the table at `site`, their rows added to `params`.
    ///
    /// # Errors
    /// If a token is not in the table or is named twice.
    pub fn plan(site: &Site, tokens: Vec<u32>, params: &mut Params) -> Result<Self, Error> {
        let mut place = HashMap::new();
        for (at, token) in tokens.iter().enumerate() {
            let wrong = |what: String| Err(Error::Config(format!("{FIELD} names token {token}, {what}")));
            if *token as usize >= site.in_features {
                return wrong(format!("and {} has {} rows", site.path, site.in_features));
            }
            if place.insert(*token, at).is_some() {
                return wrong("twice".to_owned());
            }
        }
        let name = format!("{}.{SUFFIX}", site.path);
        let rows = params.push(name, tokens.len(), site.out_features, Vec::new());
        Ok(Self { rows, tokens, place, shares: false })
    }

    /// The same rows at a head that shares the table.
    pub fn shared(&self) -> Self {
        Self { shares: true, ..self.clone() }
    }

    /// The row of each of `ids` that is trained.
    fn rows(&self, ids: &[u32]) -> Vec<Option<u32>> {
        ids.iter().map(|id| self.place.get(id).map(|at| *at as u32)).collect()
    }

    /// `z[:, j] = y[:, t_j]`.
    fn columns(&self, scope: &Scope<'_>, y: &Tensor) -> Tensor {
        let mut z = scope.alloc(y.rows(), self.tokens.len());
        scope.device.gather_columns(&mut z, y, &self.tokens);
        z
    }
}

impl Adapter for TrainedTokens {
    /// At a head: the base's scores, and `x T^T` for the trained tokens.
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        let mut z =
            if beta == 0.0 { scope.alloc(x.rows(), self.tokens.len()) } else { self.columns(scope, y) };
        base.forward(scope, x, y, beta);
        scope.gemm(1.0, x.mat(), scope.param(self.rows).t(), beta, z.mat_mut());
        scope.device.replace_columns(y, &z, base.bias.as_ref(), &self.tokens);
        Vec::new()
    }

    /// With `dz` the gradients of the trained tokens' scores and `E'` the base's rows of them: `dT += dz^T x`,
    /// `dx += dy E + dz (T - E')`.
    fn backward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        grads: &mut Grads,
        x: &Tensor,
        dy: &Tensor,
        _: Vec<Tensor>,
        dx: Option<&mut Accumulator>,
    ) {
        let dz = self.columns(scope, dy);
        scope.gemm(1.0, dz.mat().t(), x.mat(), 1.0, grads.mat_mut(self.rows));
        let Some(dx) = dx else { return };
        base.backward(scope, dy, dx);
        let mut change = scope.alloc(self.tokens.len(), x.cols());
        scope.device.table_change(&mut change, scope.params.tensor(self.rows), &base.weight, &self.tokens);
        scope.gemm(1.0, dz.mat(), change.mat(), 1.0, dx.tensor.mat_mut());
    }

    fn embed(&self, scope: &Scope<'_>, ids: &[u32], scale: f32, y: &mut Tensor) -> Vec<Tensor> {
        scope.device.table_lookup(y, scope.params.tensor(self.rows), &self.rows(ids), scale);
        Vec::new()
    }

    /// `dT[j] += scale dy_i` where `id_i = t_j`.
    fn embed_backward(
        &self,
        scope: &Scope<'_>,
        grads: &mut Grads,
        ids: &[u32],
        scale: f32,
        dy: &Tensor,
        _: Vec<Tensor>,
    ) {
        scope.device.table_lookup_backward(grads.get_mut(self.rows), dy, &self.rows(ids), scale);
    }
}

impl Variant for TrainedTokens {
    fn params(&self) -> Vec<ParamId> {
        if self.shares { Vec::new() } else { vec![self.rows] }
    }

    fn shares_weight(&self) -> bool {
        self.shares
    }

    fn init(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        if self.shares {
            return Ok(());
        }
        let d = start.site.out_features;
        let mut value = vec![0.0; self.tokens.len() * d];
        for (row, token) in value.chunks_exact_mut(d).zip(&self.tokens) {
            let token = *token as usize;
            start.base.read_rows(&start.site.path, token..token + 1, row)?;
        }
        params.set(self.rows, value);
        Ok(())
    }

    /// If the output layer shares the table, it has the rows then, as in PEFT.
    fn merge(&self, params: &Params, at: &WeightRows<'_>, w: &mut [f32]) -> Result<(), Error> {
        let rows = params.get(self.rows);
        let d = rows.cols;
        for (own, token) in rows.values().chunks_exact(d).zip(&self.tokens) {
            let token = *token as usize;
            if at.rows.contains(&token) {
                w[(token - at.rows.start) * d..][..d].copy_from_slice(own);
            }
        }
        Ok(())
    }

    fn unmerge(&self, _: &Params, at: &WeightRows<'_>, _: &mut [f32]) -> Result<(), Error> {
        match self.tokens.iter().find(|token| at.rows.contains(&(**token as usize))) {
            None => Ok(()),
            Some(token) => {
                Err(crate::contract::gone(&format!("row {token} of {} was trained", at.site.path)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lowrank_engine::SiteId;
    use serde_json::json;

    use super::*;
    use crate::config::Targets;
    use crate::set::AdapterSet;

    fn sites() -> Vec<Site> {
        let site = |path: &str, kind, in_features, out_features| {
            let (path, bias) = (path.to_owned(), false);
            Site { path, kind, in_features, out_features, bias }
        };
        vec![
            site("model.embed_tokens", SiteKind::Embedding, 9, 4),
            site("model.layers.0.q_proj", SiteKind::Linear, 4, 4),
            site("lm_head", SiteKind::TiedHead(SiteId(0)), 4, 9),
        ]
    }

    fn planned(targets: &str, other: Value) -> Result<AdapterSet, String> {
        let Value::Object(other) = other else { panic!("fields") };
        let target_modules = Some(Targets::parse(targets));
        let config = LoraConfig { target_modules, other, ..LoraConfig::default() };
        AdapterSet::planned(config, &sites()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_tied_head_has_the_same_rows() {
        for value in [json!([2, 7]), json!({"embed_tokens": [2, 7]})] {
            let set = planned("q_proj", json!({"trainable_token_indices": value})).unwrap();
            let names: Vec<&str> = set.params.iter().map(|(_, p)| p.name.as_str()).collect();
            assert_eq!(names[2..], ["model.embed_tokens.token_adapter.trainable_tokens_delta"]);
            assert_eq!(set.layers.len(), 3);
            assert!(set.warnings(&sites()).is_empty());
        }
    }

    #[test]
    fn what_cannot_be_trained_is_refused() {
        for (targets, value, says) in [
            ("q_proj", json!([2, 9]), "token 9, and model.embed_tokens has 9 rows"),
            ("q_proj", json!([2, 2]), "token 2, twice"),
            ("q_proj", json!("2"), "must be a list of tokens"),
            ("q_proj", json!([-1]), "must be a list of tokens"),
            ("q_proj", json!({"wte": [1]}), "this model's embeddings are model.embed_tokens"),
            ("embed_tokens", json!([1]), "model.embed_tokens is adapted or saved whole"),
            ("q_proj,lm_head", json!([1]), "lm_head shares the table"),
        ] {
            let error = planned(targets, json!({"trainable_token_indices": value})).err().unwrap_or_default();
            assert!(error.contains(says), "{targets} {value}: {error:?}");
        }
    }

    #[test]
    fn one_of_two_tied_layers_is_warned_of() {
        for targets in ["q_proj,embed_tokens", "q_proj,lm_head", "q_proj,embed_tokens,lm_head"] {
            let set = planned(targets, json!({})).unwrap();
            let warnings = set.warnings(&sites());
            assert_eq!(warnings.len(), 1, "{targets}");
            assert!(warnings[0].contains("model.embed_tokens and lm_head share one weight"), "{warnings:?}");
            let tied = planned(targets, json!({"ensure_weight_tying": true})).unwrap();
            assert!(tied.warnings(&sites()).is_empty() && tied.notes.is_empty(), "{targets}");
            let params: Vec<usize> = tied.layers.iter().map(|layer| layer.variant.params().len()).collect();
            assert_eq!(params.iter().sum::<usize>(), 4, "{targets}: q_proj and the table");
        }
        let without = planned("q_proj", json!({"ensure_weight_tying": true})).unwrap();
        assert!(without.notes[0].contains("ensure_weight_tying"), "{:?}", without.notes);
    }
}
