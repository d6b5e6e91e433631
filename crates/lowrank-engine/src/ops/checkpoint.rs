//! Activation checkpointing (Chen et al. 2016): a block keeps only its input and runs again in the
//! backward pass.

use std::rc::Rc;

use crate::adapter::ActiveAdapters;
use crate::scope::Scope;
use crate::stream::Direction;
use crate::tape::{Backward, Node, Record, Tape, Var, VarId};

impl<'m> Tape<'m> {
    /// Runs `block` on `x`. On a tape that records checkpoints, its inner values are dropped and computed
    /// again when the gradient is asked for; otherwise this is just `block(self, x)`.
    pub fn block(&mut self, x: Var<'m>, block: impl Fn(&mut Tape<'m>, Var<'m>) -> Var<'m> + 'm) -> Var<'m> {
        self.block_with_shared_input(x, None, move |tape, x, _| block(tape, x))
    }

    /// The same where the block also reads a value that it shares with others. Its gradient is what all of them add.
    pub fn block_with_shared_input(
        &mut self,
        x: Var<'m>,
        shared: Option<Var<'m>>,
        block: impl Fn(&mut Tape<'m>, Var<'m>, Option<Var<'m>>) -> Var<'m> + 'm,
    ) -> Var<'m> {
        let number = self.blocks;
        self.blocks += 1;
        let streams = self.scope.device.enter_block(number, Direction::Forward);
        if self.record != Record::Checkpoints {
            let y = block(self, x, shared);
            if streams && self.keeps(y.id) {
                // The first of the block's nodes on the way back.
                self.push(EnterNode(number));
            }
            return y;
        }
        let (virtual_rows, inputs) = (self.virtual_rows.clone(), [Some(x), shared]);
        let (mut inner, [input, shared]) =
            Tape::for_block(self.scope, self.adapters, Record::Nothing, &inputs, virtual_rows.clone());
        let y = block(&mut inner, input.expect("it was given"), shared);
        let out = self.id(y.id.is_some());
        if let Some(out) = out {
            self.push(BlockNode { block, number, inputs, virtual_rows, out });
        }
        Var::output(y.tensor, out)
    }

    /// A tape of its own for one block, and the block's inputs as values of it.
    fn for_block(
        scope: Scope<'m>,
        adapters: &'m ActiveAdapters,
        record: Record,
        inputs: &[Option<Var<'m>>; 2],
        virtual_rows: Rc<[(usize, usize)]>,
    ) -> (Self, [Option<Var<'m>>; 2]) {
        let mut tape = Tape { virtual_rows, ..Tape::new(scope, adapters, record) };
        let inputs = inputs.each_ref().map(|input| {
            let input = input.as_ref()?;
            let id = tape.id(input.id.is_some());
            Some(Var::output(input.tensor.clone(), id))
        });
        (tape, inputs)
    }
}

/// Tells the device which block's weights are needed.
struct EnterNode(usize);

impl<'m> Node<'m> for EnterNode {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        back.scope.device.enter_block(self.0, Direction::Backward);
    }
}

struct BlockNode<'m, F> {
    block: F,
    number: usize,
    inputs: [Option<Var<'m>>; 2],
    virtual_rows: Rc<[(usize, usize)]>,
    out: VarId,
}

impl<'m, F> Node<'m> for BlockNode<'m, F>
where
    F: Fn(&mut Tape<'m>, Var<'m>, Option<Var<'m>>) -> Var<'m> + 'm,
{
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dy) = back.take(self.out) else { return };
        back.scope.device.enter_block(self.number, Direction::Backward);
        let (mut tape, inputs) =
            Tape::for_block(back.scope, back.adapters, Record::All, &self.inputs, self.virtual_rows);
        let inner = inputs.each_ref().map(|input| input.as_ref().and_then(|input| input.id));
        let [input, shared] = inputs;
        let y = (self.block)(&mut tape, input.expect("it was given"), shared);
        tape.seed(&y, dy);
        drop(y);
        let gradients = tape.backward_to(back.grads, inner);
        for (input, gradient) in self.inputs.iter().zip(gradients) {
            if let (Some(id), Some(gradient)) = (input.as_ref().and_then(|input| input.id), gradient) {
                back.add(id, gradient);
            }
        }
    }
}
