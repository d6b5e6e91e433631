//! What a method adds to each training step.

use lowrank_engine::{Device, Grads, Params};

/// A method's part in each training step: a penalty before the optimiser, and changes of the parameters after it. One hook
/// serves a whole set, since AdaLoRA's budget is shared by all sites.
pub trait TrainingHook: Send + Sync {
    /// Adds the gradient of the method's penalty to `grads` and returns the penalty.
    fn penalty(&self, device: &Device, params: &Params, grads: &mut Grads) -> f64 {
        let _ = (device, params, grads);
        0.0
    }

    /// Before the optimiser, with the gradients after clipping.
    fn before_update(&self, device: &Device, grads: &mut Grads) {
        let _ = (device, grads);
    }

    /// After optimiser step number `step` (from 1), with the gradients it followed.
    fn after_step(&mut self, device: &Device, step: u64, params: &mut Params, grads: &Grads);

    /// Bytes of its own values once it has seen a step.
    fn bytes(&self, params: &Params) -> usize;

    /// Its own values, by name, for checkpoints.
    fn state(&self) -> Vec<(String, Vec<f32>)>;

    /// Restores one of them.
    fn restore(&mut self, name: &str, value: Vec<f32>);

    /// A copy.
    fn clone_box(&self) -> Box<dyn TrainingHook>;
}

impl Clone for Box<dyn TrainingHook> {
    fn clone(&self) -> Self {
        self.clone_box()
    }
}
