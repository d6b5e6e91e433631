//! What training with an adapter does beside following the gradient.

use lowrank_engine::{Device, Grads, Params};

/// A method's part in each training step: a penalty before, and changes of the parameters after. One for a whole set,
/// since a budget is shared by all sites.
pub trait TrainingHook: Send + Sync {
    /// Adds the gradient of the method's penalty to `grads` and returns the penalty.
    fn penalty(&self, device: &Device, params: &Params, grads: &mut Grads) -> f64 {
        let _ = (device, params, grads);
        0.0
    }

    /// After optimiser step number `step` (from 1), with the gradients it followed.
    fn after_step(&mut self, device: &Device, step: u64, params: &mut Params, grads: &Grads);

    /// Its own numbers, by name: what a checkpoint must keep.
    fn state(&self) -> Vec<(String, Vec<f32>)>;

    /// Puts one of them back.
    fn restore(&mut self, name: &str, value: Vec<f32>);

    /// A copy.
    fn clone_box(&self) -> Box<dyn TrainingHook>;
}

impl Clone for Box<dyn TrainingHook> {
    fn clone(&self) -> Self {
        self.clone_box()
    }
}
