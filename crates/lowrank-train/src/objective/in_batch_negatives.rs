//! In-batch negatives (Henderson et al. 2017).

use lowrank_engine::{Grads, Tape, Targets, Var};
use lowrank_models::Head;

use super::contract::{Metrics, Objective, Scores, Tally};
use crate::pack::PackedBatch;
use crate::task::Task;
use crate::task_spec::TaskSpec;
use crate::{Example, Examples, metrics};

/// Factor of the cosines: sentence-transformers' `MultipleNegativesRankingLoss`.
const SIMILARITY_SCALE: f32 = 20.0;

/// `l_i = -log softmax_j(20 cos(a_i, p_j))[i]`: of the second texts `p` of a batch, the own one must be nearest to a
/// first text `a_i`. `a` and `p` are means of hidden states.
pub(crate) struct InBatchNegatives;

impl Objective for InBatchNegatives {
    fn matches(&self, head: &Head, _: &PackedBatch) -> bool {
        matches!(head, Head::Embedding)
    }

    fn tasks(&self) -> &'static [Task] {
        &[Task::Embedding]
    }

    fn score<'m>(
        &self,
        tape: &mut Tape<'m>,
        _: (&TaskSpec, &'m Head),
        h: Var<'m>,
        batch: &PackedBatch,
        weights: &[f32],
        _: &mut Grads,
    ) -> Scores {
        let (scope, device) = (tape.scope, tape.scope.device);
        let of = |second: usize| batch.segments.iter().skip(second).step_by(2).map(|s| s.q.clone());
        let mut embed = |second: usize| {
            let x = tape.mean_rows(&h, &of(second).collect::<Vec<_>>());
            tape.normalize(&x)
        };
        let (a, p) = (embed(0), embed(1));
        let n = a.tensor.rows();
        let mut cosines = device.alloc(n, n);
        scope.gemm(1.0, a.tensor.mat(), p.tensor.mat().t(), 0.0, cosines.mat_mut());
        let mut logits = device.alloc(n, n);
        device.copy(&mut logits, &cosines);
        device.scale(&mut logits, SIMILARITY_SCALE);
        let classes: Vec<u32> = (0..n as u32).collect();
        let mut losses = vec![0.0; n];
        if !tape.records() {
            let hits = device.argmax(&logits).iter().zip(&classes).map(|(a, b)| a == b).collect();
            let targets = Targets { classes: &classes, weights: None, softcap: None };
            device.cross_entropy(&mut logits, &mut losses, targets);
            return Scores { losses, hits, outputs: device.to_vec(&cosines), ..Scores::default() };
        }
        let targets = Targets { classes: &classes, weights: Some(weights), softcap: None };
        device.cross_entropy(&mut logits, &mut losses, targets);
        let d = a.tensor.cols();
        let (mut da, mut dp) = (device.alloc(n, d), device.alloc(n, d));
        scope.gemm(SIMILARITY_SCALE, logits.mat(), p.tensor.mat(), 0.0, da.mat_mut());
        scope.gemm(SIMILARITY_SCALE, logits.mat().t(), a.tensor.mat(), 0.0, dp.mat_mut());
        tape.seed(&a, da);
        tape.seed(&p, dp);
        Scores { losses, ..Scores::default() }
    }

    fn tally(&self, tally: &mut Tally, chunk: &[Example], scores: &Scores) {
        let n = chunk.len();
        tally.cosines.extend((0..n).map(|i| scores.outputs[i * n + i]));
    }

    fn metrics(&self, _: &TaskSpec, tally: &Tally, _: f64, examples: &Examples) -> Metrics {
        let cosines: Vec<f64> = tally.cosines.iter().map(|c| f64::from(*c)).collect();
        let cosine = cosines.iter().sum::<f64>() / cosines.len().max(1) as f64;
        let mut out = Metrics::from([("accuracy", tally.hit_rate()), ("cosine", cosine)]);
        let said: Option<Vec<f64>> = examples.iter().map(|e| e.similarity.map(f64::from)).collect();
        if let Some(said) = said.filter(|said| !said.is_empty()) {
            out.insert("pearson", metrics::pearson(&cosines, &said));
            out.insert("spearman", metrics::spearman(&cosines, &said));
        }
        out
    }
}
