//! Hiding tokens for masked language models (Devlin et al. 2018), anew whenever an example is seen.

use std::borrow::Cow;

use lowrank_engine::{Label, kernels};

use crate::data::{Example, Target};

/// Share of a text's tokens that are to be found again.
const CHOSEN: f32 = 0.15;
/// Of the chosen, those that become the mask token; half of the others become a random one, the rest stay.
const MASKED: f32 = 0.8;

/// How tokens are hidden: `DataCollatorForLanguageModeling` of transformers.
#[derive(Clone, Copy, Debug)]
pub struct Masking {
    /// What stands in a hidden token's place.
    pub token: u32,
    /// Tokens to draw random ones from.
    pub vocab: usize,
    /// Of the choice.
    pub seed: u64,
}

/// Random streams of hiding, far from those of dropout and initialisation.
const STREAM: u64 = 3 << 61;

impl Masking {
    /// `example` with tokens hidden, the same for the same `pass` and `place`. At least one is chosen.
    pub fn hide(&self, example: &Example, pass: u64, place: usize) -> Example {
        let n = example.tokens.len();
        let mut random = vec![0.0; 3 * n];
        kernels::uniform(&mut random, 0.0, 1.0, self.seed, STREAM + (pass << 24) + place as u64);
        let (choice, rest) = random.split_at(n);
        let (fate, word) = rest.split_at(n);
        let allowed: Vec<usize> = (0..n).filter(|&i| example.loss_mask[i]).collect();
        let mut chosen: Vec<usize> = allowed.iter().copied().filter(|&i| choice[i] < CHOSEN).collect();
        if chosen.is_empty() {
            chosen.extend(allowed.iter().copied().min_by(|&a, &b| choice[a].total_cmp(&choice[b])));
        }
        let mut tokens = example.tokens.clone();
        let label = |&i: &usize| Label { row: i as u32, target: example.tokens[i] };
        let labels = chosen.iter().map(label).collect();
        for i in chosen {
            if fate[i] < MASKED {
                tokens[i] = self.token;
            } else if fate[i] < MASKED + (1.0 - MASKED) / 2.0 {
                tokens[i] = ((word[i] * self.vocab as f32) as u32).min(self.vocab as u32 - 1);
            }
        }
        Example {
            tokens,
            token_types: example.token_types.clone(),
            target: Target::Classes(labels),
            weight: example.weight,
            id: example.id.clone(),
            ..Example::default()
        }
    }

    /// All of a batch.
    pub(crate) fn apply<'a>(
        this: Option<&Self>,
        examples: &[&'a Example],
        pass: u64,
    ) -> Vec<Cow<'a, Example>> {
        let one = |(place, &example): (usize, &&'a Example)| match this {
            Some(masking) if example.target == Target::Masked => {
                Cow::Owned(masking.hide(example, pass, place))
            }
            _ => Cow::Borrowed(example),
        };
        examples.iter().enumerate().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_the_shares_it_says() {
        let masking = Masking { token: 999, vocab: 500, seed: 7 };
        let n = 4000;
        let mut loss_mask = vec![true; n];
        loss_mask[0] = false;
        let tokens: Vec<u32> = (0..n as u32).map(|i| i % 400).collect();
        let example = Example { tokens, loss_mask, target: Target::Masked, ..Example::default() };
        let hidden = masking.hide(&example, 3, 1);
        let Target::Classes(labels) = &hidden.target else { panic!("labels") };
        let share = labels.len() as f32 / n as f32;
        assert!((share - CHOSEN).abs() < 0.03, "{share}");
        let masked = labels.iter().filter(|l| hidden.tokens[l.row as usize] == 999).count();
        assert!((masked as f32 / labels.len() as f32 - MASKED).abs() < 0.08, "{masked}");
        for (i, (was, is)) in example.tokens.iter().zip(&hidden.tokens).enumerate() {
            let label = labels.iter().find(|l| l.row as usize == i);
            assert!(was == is || label.is_some_and(|l| l.target == *was), "{i}");
        }
        assert_eq!(hidden, masking.hide(&example, 3, 1));
        assert_ne!(hidden, masking.hide(&example, 4, 1));
        let short = Example {
            tokens: vec![1, 2],
            loss_mask: vec![false, true],
            target: Target::Masked,
            ..Example::default()
        };
        let Target::Classes(labels) = masking.hide(&short, 0, 0).target else { panic!("labels") };
        assert_eq!(labels, [Label { row: 1, target: 2 }]);
    }
}
