//! Answers that follow a JSON schema.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, token_bytes_from_tokenizer_json};
use lowrank_models::Tokenizer;
use lowrank_models::decode::{Constrained, Constraint};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Bytes of a schema at most.
const MAX_SCHEMA: usize = 256 << 10;

/// Makes constraints for one tokenizer.
pub struct Grammars {
    factory: ParserFactory,
    stop_tokens: Arc<[u32]>,
}

impl Grammars {
    /// For a model with `vocab` rows of logits.
    ///
    /// # Errors
    /// Where the bytes of the tokens are not known.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, stop_tokens: &[u32]) -> Result<Self> {
        let failed =
            |what: String| Error::request(format!("JSON schemas cannot be used with this tokenizer: {what}"));
        let text = tokenizer.to_json().map_err(|e| failed(e.to_string()))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| failed(e.to_string()))?;
        let mut words = token_bytes_from_tokenizer_json(&json).unwrap_or_else(|_| decoded(tokenizer, vocab));
        words.resize(vocab, Vec::new());
        let eos = *stop_tokens.first().ok_or_else(|| failed("no token ends a text".into()))?;
        let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, eos), &words);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| failed(e.to_string()))?;
        factory.quiet();
        Ok(Self { factory, stop_tokens: stop_tokens.into() })
    }

    /// Answers that `schema` accepts.
    ///
    /// # Errors
    /// Where it is no schema, or one that cannot be followed.
    pub fn json(&self, mut schema: Value) -> Result<Constrained> {
        let wrong = |what: String| Error::field("response_format", format!("the JSON schema: {what}"));
        if schema.to_string().len() > MAX_SCHEMA {
            return Err(wrong(format!("is longer than {MAX_SCHEMA} bytes")));
        }
        // A small model left free to write spaces may write nothing else.
        if let Some(fields) = schema.as_object_mut() {
            let style = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
            fields.entry("x-guidance").or_insert(style);
        }
        let parser = self.factory.create_parser(TopLevelGrammar::from_json_schema(schema));
        let matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(error) => Err(wrong(error.lines().next().unwrap_or_default().to_owned())),
            None => Ok(Constrained(Arc::new(Grammar { matcher, stop_tokens: self.stop_tokens.clone() }))),
        }
    }
}

/// The bytes of each token of a tokenizer whose tokens are texts.
fn decoded(tokenizer: &Tokenizer, vocab: usize) -> Vec<Vec<u8>> {
    let word = |id: u32| {
        let text = tokenizer.decode(&[id], false).unwrap_or_default();
        let special = tokenizer.decode(&[id], true).is_ok_and(|text| text.is_empty());
        let mark = (special && !text.is_empty()).then_some(TokTrie::SPECIAL_TOKEN_MARKER);
        mark.into_iter().chain(text.bytes()).collect()
    };
    (0..vocab as u32).map(word).collect()
}

struct Grammar {
    matcher: Matcher,
    stop_tokens: Arc<[u32]>,
}

impl Constraint for Grammar {
    fn mask(&mut self, logits: &mut [f32]) {
        // A grammar that fails on its way allows what ends the text.
        let allowed = self.matcher.compute_mask_or_eos().ok();
        let ends = allowed.is_none() || self.matcher.is_accepting().unwrap_or(true);
        for (token, logit) in (0..).zip(logits) {
            let stops = ends && self.stop_tokens.contains(&token);
            if !stops && !allowed.as_ref().is_some_and(|allowed| allowed.is_allowed(token)) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    fn accept(&mut self, token: u32) -> bool {
        self.stop_tokens.contains(&token)
            || self.matcher.consume_token(token).is_err()
            || self.matcher.is_stopped()
    }

    fn start(&self) -> Box<dyn Constraint> {
        Box::new(Self { matcher: self.matcher.deep_clone(), stop_tokens: self.stop_tokens.clone() })
    }
}
