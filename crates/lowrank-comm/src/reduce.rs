//! Sums that have the same bits for any number of ranks.
//!
//! The parts of a batch are the leaves of a tree that depends on their number alone. Each rank has the leaves side by side
//! that [`SumTree::share`] gives it and adds those within a subtree itself; the rest is added by whoever has the slice. `MPI_Allreduce`
//! adds in an order of its own, which changes with the number of ranks and the size of the message.

use std::ops::Range;

use crate::{Communicator, Result};

/// The tree in which the values of `leaves` parts are added: a node of more than one leaf is the sum of its first leaves, the
/// largest power of two that is less than all of them, and of the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumTree {
    leaves: usize,
}

impl SumTree {
    /// Over `leaves` parts, at least one.
    pub fn new(leaves: usize) -> Self {
        Self { leaves: leaves.max(1) }
    }

    /// The leaves of `rank`.
    pub fn share(&self, rank: usize, size: usize) -> Range<usize> {
        self.leaves * rank / size..self.leaves * (rank + 1) / size
    }

    /// The largest nodes within the leaves of `rank`, in order.
    pub fn nodes(&self, rank: usize, size: usize) -> Vec<Range<usize>> {
        let mut nodes = Vec::new();
        cover(0..self.leaves, &self.share(rank, size), &mut nodes);
        nodes
    }

    /// The two nodes that a node is the sum of; none for a leaf.
    pub fn children(node: &Range<usize>) -> Option<[Range<usize>; 2]> {
        let count = node.len();
        let middle = node.start + count.next_power_of_two() / 2;
        (count > 1).then_some([node.start..middle, middle..node.end])
    }
}

/// Adds to `nodes` the largest nodes of the tree under `node` that lie within `share`.
fn cover(node: Range<usize>, share: &Range<usize>, nodes: &mut Vec<Range<usize>>) {
    if share.start <= node.start && node.end <= share.end {
        return nodes.push(node);
    }
    if node.end <= share.start || share.end <= node.start {
        return;
    }
    for child in SumTree::children(&node).into_iter().flatten() {
        cover(child, share, nodes);
    }
}

/// Adds the values of all nodes of all ranks: `own` are those of [`SumTree::nodes`] of this rank, each as long as `sum`, which is
/// written. Every rank adds a slice of all values, then all ranks gather the slices.
///
/// # Errors
/// As [`Communicator::exchange`].
///
/// # Panics
/// Where `own` does not fit.
pub fn all_reduce_sum(
    comm: &dyn Communicator,
    tree: SumTree,
    own: &[Vec<f32>],
    sum: &mut [f32],
) -> Result<()> {
    let (rank, size, length) = (comm.rank(), comm.size(), sum.len());
    let slice = |rank: usize| length * rank / size..length * (rank + 1) / size;
    let nodes: Vec<Vec<Range<usize>>> = (0..size).map(|rank| tree.nodes(rank, size)).collect();
    assert_eq!(own.len(), nodes[rank].len(), "nodes of rank {rank}");

    let for_rank = |to: usize| {
        let mut message = Vec::with_capacity(4 * own.len() * slice(to).len());
        own.iter().for_each(|values| write(&values[slice(to)], &mut message));
        message
    };
    let send: Vec<Vec<u8>> = (0..size).map(for_rank).collect();
    let mut received: Vec<Vec<u8>> =
        nodes.iter().map(|nodes| vec![0; 4 * nodes.len() * slice(rank).len()]).collect();
    let parts: Vec<&[u8]> = send.iter().map(Vec::as_slice).collect();
    comm.exchange(&parts, &mut received.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>())?;
    drop(send);

    // In the order of their first leaf, which is the order in which the tree asks for them.
    let width = slice(rank).len();
    let mut values = received.iter().zip(&nodes).flat_map(|(bytes, nodes)| {
        (0..nodes.len()).map(move |i| floats(&bytes[4 * i * width..4 * (i + 1) * width]))
    });
    let known: Vec<Range<usize>> = nodes.concat();
    let mut own = Vec::new();
    write(&add(&(0..tree.leaves), &known, &mut values), &mut own);

    let mut slices: Vec<Vec<u8>> = (0..size).map(|rank| vec![0; 4 * slice(rank).len()]).collect();
    let mut places: Vec<&mut [u8]> = slices.iter_mut().map(Vec::as_mut_slice).collect();
    comm.exchange(&vec![&own[..]; size], &mut places)?;
    for (from, bytes) in slices.iter().enumerate() {
        sum[slice(from)].copy_from_slice(&floats(bytes));
    }
    Ok(())
}

/// The values of `node`, where those of the nodes `known` come one after the other.
fn add(node: &Range<usize>, known: &[Range<usize>], values: &mut impl Iterator<Item = Vec<f32>>) -> Vec<f32> {
    match SumTree::children(node) {
        Some([left, right]) if !known.contains(node) => {
            let mut sum = add(&left, known, values);
            let other = add(&right, known, values);
            sum.iter_mut().zip(other).for_each(|(sum, x)| *sum += x);
            sum
        }
        _ => values.next().expect("every leaf belongs to a rank"),
    }
}

fn write(values: &[f32], message: &mut Vec<u8>) {
    let begin = message.len();
    message.resize(begin + 4 * values.len(), 0);
    let places = message[begin..].chunks_exact_mut(4);
    places.zip(values).for_each(|(place, x)| place.copy_from_slice(&x.to_le_bytes()));
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier, Mutex};

    use super::*;
    use crate::Callback;

    /// `work` on `size` ranks, each a thread.
    fn on_ranks<T: Send>(size: usize, work: impl Fn(&dyn Communicator) -> T + Sync) -> Vec<T> {
        let shared = Arc::new((Mutex::new(vec![Vec::new(); size]), Barrier::new(size)));
        let comm = |rank: usize| {
            let shared = shared.clone();
            let gather = move |own: &[u8]| {
                let (messages, barrier) = &*shared;
                messages.lock().unwrap()[rank] = own.to_vec();
                barrier.wait();
                let all = messages.lock().unwrap().clone();
                barrier.wait();
                Ok(all)
            };
            Callback::new(rank, size, Box::new(gather))
        };
        std::thread::scope(|scope| {
            let start = |rank| {
                let (work, comm) = (&work, comm(rank));
                scope.spawn(move || work(&comm))
            };
            let threads: Vec<_> = (0..size).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Values whose sum depends on the order.
    fn leaf(i: usize, length: usize) -> Vec<f32> {
        let mut x = 1 + i as u64;
        let mut next = || {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((x >> 40) as f32 / 1e7 - 0.8) * (1.0 + (x % 7) as f32).exp()
        };
        (0..length).map(|_| next()).collect()
    }

    fn node(node: &Range<usize>, length: usize) -> Vec<f32> {
        let Some([left, right]) = SumTree::children(node) else { return leaf(node.start, length) };
        self::node(&left, length).iter().zip(self::node(&right, length)).map(|(a, b)| a + b).collect()
    }

    #[test]
    fn the_sum_has_the_same_bits_for_any_number_of_ranks() {
        const LENGTH: usize = 1003;
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let mut orders_matter = false;
        for leaves in 1..=9 {
            let tree = SumTree::new(leaves);
            let expected = bits(&node(&(0..leaves), LENGTH));
            let in_order = (0..leaves).map(|i| leaf(i, LENGTH)).reduce(|mut a, b| {
                a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                a
            });
            orders_matter |= bits(&in_order.unwrap()) != expected;
            for size in 1..=5 {
                let sums = on_ranks(size, |comm| {
                    let nodes = tree.nodes(comm.rank(), size);
                    let own: Vec<Vec<f32>> = nodes.iter().map(|range| node(range, LENGTH)).collect();
                    let mut sum = vec![0.0; LENGTH];
                    all_reduce_sum(comm, tree, &own, &mut sum).unwrap();
                    bits(&sum)
                });
                assert!(sums.iter().all(|sum| *sum == expected), "{leaves} parts, {size} ranks");
            }
        }
        assert!(orders_matter, "values for which any order would do show nothing");
    }

    #[test]
    fn every_leaf_is_of_one_rank() {
        for (leaves, size) in [(8, 3), (1, 4), (5, 2), (64, 7)] {
            let tree = SumTree::new(leaves);
            let nodes: Vec<Range<usize>> = (0..size).flat_map(|rank| tree.nodes(rank, size)).collect();
            assert_eq!(nodes.into_iter().flatten().collect::<Vec<_>>(), (0..leaves).collect::<Vec<_>>());
        }
        assert_eq!(SumTree::new(8).nodes(1, 2), vec![4..8; 1]);
        assert_eq!(SumTree::new(8).nodes(1, 3), [2..4, 4..5]);
    }

    #[test]
    fn gathers_bytes_of_different_lengths() {
        for size in 1..=4 {
            let all = on_ranks(size, |comm| {
                comm.barrier().unwrap();
                (comm.all_gather(&vec![7; comm.rank()]).unwrap(), comm.broadcast(size - 1, b"text").unwrap())
            });
            let expected: Vec<Vec<u8>> = (0..size).map(|rank| vec![7; rank]).collect();
            assert!(all.iter().all(|(gathered, text)| *gathered == expected && text == b"text"));
        }
    }
}
