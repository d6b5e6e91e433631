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
        let number = self.blocks;
        self.blocks += 1;
        let streams = self.scope.device.enter_block(number, Direction::Forward);
        if self.record != Record::Checkpoints {
            let y = block(self, x);
            if streams && self.keeps(y.id) {
                // The first of the block's nodes on the way back.
                self.push(EnterNode(number));
            }
            return y;
        }
        let virtual_rows = self.virtual_rows.clone();
        let (mut inner, input) =
            Tape::for_block(self.scope, self.adapters, Record::Nothing, &x, virtual_rows.clone());
        let y = block(&mut inner, input);
        let out = self.id(y.id.is_some());
        if let Some(out) = out {
            self.push(BlockNode { block, number, input: x, virtual_rows, out });
        }
        Var { tensor: y.tensor, id: out, recipe: None }
    }

    /// A tape of its own for one block, and the block's input as its value 0.
    fn for_block(
        scope: Scope<'m>,
        adapters: &'m ActiveAdapters,
        record: Record,
        x: &Var<'m>,
        virtual_rows: Rc<[(usize, usize)]>,
    ) -> (Self, Var<'m>) {
        let mut tape = Tape { virtual_rows, ..Tape::new(scope, adapters, record) };
        let id = tape.id(x.id.is_some());
        (tape, Var { tensor: x.tensor.clone(), id, recipe: None })
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
    input: Var<'m>,
    virtual_rows: Rc<[(usize, usize)]>,
    out: VarId,
}

impl<'m, F: Fn(&mut Tape<'m>, Var<'m>) -> Var<'m> + 'm> Node<'m> for BlockNode<'m, F> {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dy) = back.take(self.out) else { return };
        back.scope.device.enter_block(self.number, Direction::Backward);
        let (mut tape, input) =
            Tape::for_block(back.scope, back.adapters, Record::All, &self.input, self.virtual_rows);
        let x = input.id;
        let y = (self.block)(&mut tape, input);
        tape.seed(&y, dy);
        drop(y);
        let dx = tape.backward_to(back.grads, x);
        if let (Some(id), Some(dx)) = (self.input.id, dx) {
            back.add(id, dx);
        }
    }
}
