//! Two completions of one prompt in a batch: what both texts begin with is there once.

use lowrank_engine::Label;

use super::{PackedBatch, PackedPair};
use crate::{Example, Target};

impl PackedBatch {
    /// Appends the two texts of an example: with `share_prefix`, their common beginning is a segment that both continue.
    pub(super) fn completions(&mut self, example: &Example, share_prefix: bool) {
        let mut pair = PackedPair::default();
        // A head reads the last row of a text; nothing else does.
        let (first, reads_last) = match example.target {
            Target::Completions { first, desirable } => {
                pair.desirable = desirable;
                (first, false)
            }
            Target::Rewards { first, margin } => {
                pair.margin = margin;
                (first, true)
            }
            _ => unreachable!("the caller looked"),
        };
        let (prompt, both) = example.tokens.split_at(example.prompt_len);
        let texts = [&both[..first], &both[first..]].map(|completion| [prompt, completion].concat());
        let inputs = [0, 1].map(|which| texts[which].len().saturating_sub(usize::from(!reads_last)));
        let same =
            texts[0][..inputs[0]].iter().zip(&texts[1][..inputs[1]]).take_while(|(a, b)| a == b).count();
        let shared = if share_prefix { same } else { 0 };
        let longest = texts[0].len().max(texts[1].len());
        let common = match shared {
            0 => 0..0,
            _ => self.segment(&texts[0][..shared], 0, 0..0, longest),
        };
        let labels_before = self.labels.len();
        for (which, text) in texts.iter().enumerate() {
            let own = self.segment(
                &text[shared.min(inputs[which])..inputs[which]],
                shared,
                common.clone(),
                text.len(),
            );
            let row = |at: usize| {
                let row = if at < shared { common.start + at } else { own.start + at - shared };
                u32::try_from(row).expect("a batch has fewer than 2^32 rows")
            };
            // A token is predicted by the one before it; nothing predicts the first of a text.
            let label = |at: usize| Label { row: row(at - 1), target: text[at] };
            if reads_last {
                self.labels.extend(text.len().checked_sub(1).map(|last| Label { row: row(last), target: 0 }));
                pair.labels[which] = 1;
                continue;
            }
            if which == 0 {
                let marked = (1..prompt.len()).filter(|at| example.loss_mask.get(*at) == Some(&true));
                self.labels.extend(marked.map(label));
                pair.prompt_labels = self.labels.len() - labels_before;
            }
            let targets = prompt.len().max(1)..text.len();
            pair.labels[which] = targets.len();
            self.labels.extend(targets.map(label));
        }
        for (own, logp) in pair.reference.iter_mut().zip(&example.reference) {
            *own = *logp;
        }
        self.completions.push(pair);
        self.weights.push(example.weight.unwrap_or(1.0));
    }
}
