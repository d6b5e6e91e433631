//! Which processors the processes of one machine run on: each a share of its own, on one NUMA node where there are several.

use std::collections::BTreeSet;

/// The processors of `rank` of `size`: the ranks are spread over the nodes, and those of a node share its processors.
///
/// None where there are fewer processors than ranks: the system then does better.
fn share(rank: usize, size: usize, nodes: &[Vec<usize>]) -> Option<Vec<usize>> {
    let nodes: Vec<&Vec<usize>> = nodes.iter().filter(|node| !node.is_empty()).collect();
    let all: Vec<usize> = nodes.iter().flat_map(|node| node.iter().copied()).collect();
    let part =
        |list: &[usize], i: usize, n: usize| list[list.len() * i / n..list.len() * (i + 1) / n].to_vec();
    if size < nodes.len() || size == 1 {
        return (all.len() >= size && size > 1).then(|| part(&all, rank, size));
    }
    let node = rank * nodes.len() / size;
    let mates: Vec<usize> = (0..size).filter(|other| other * nodes.len() / size == node).collect();
    let place = mates.iter().position(|mate| *mate == rank)?;
    (mates.len() <= nodes[node].len()).then(|| part(nodes[node], place, mates.len()))
}

/// The numbers of a list such as `0-3,8`.
fn numbers(list: &str) -> BTreeSet<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

/// The processors of each NUMA node.
#[cfg(target_os = "linux")]
fn nodes() -> Vec<BTreeSet<usize>> {
    let online = std::fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default();
    let list = |node: usize| std::fs::read_to_string(format!("/sys/devices/system/node/node{node}/cpulist"));
    numbers(&online).into_iter().filter_map(|node| Some(numbers(&list(node).ok()?))).collect()
}

/// Binds this process to its share, unless it asked for more threads than that.
#[cfg(target_os = "linux")]
pub fn bind(rank: usize, size: usize, threads: Option<usize>) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let may = |cpu: &usize| *cpu < CpuSet::MAX_CPU && allowed.is_set(*cpu);
    let mut nodes: Vec<Vec<usize>> =
        nodes().into_iter().map(|node| node.into_iter().filter(may).collect()).collect();
    if nodes.iter().all(Vec::is_empty) {
        nodes = vec![(0..CpuSet::MAX_CPU).filter(may).collect()];
    }
    if let Some(own) = share(rank, size, &nodes).filter(|own| threads.is_none_or(|n| n <= own.len())) {
        let mut set = CpuSet::new();
        own.into_iter().for_each(|cpu| set.set(cpu));
        // Where the system refuses, the process runs anywhere.
        let _ = sched_setaffinity(None, &set);
    }
}

/// Other systems place processes themselves.
#[cfg(not(target_os = "linux"))]
pub fn bind(_: usize, _: usize, _: Option<usize>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lists() {
        assert_eq!(numbers("0-3,8\n"), [0, 1, 2, 3, 8].into());
        assert_eq!(numbers(""), [].into());
        assert_eq!(numbers("x,2-1,5"), [5].into());
    }

    #[test]
    fn ranks_share_the_processors_of_their_node() {
        let nodes = [vec![0, 1, 2, 3, 8], vec![4, 5, 6, 7]];
        let shares = |size| (0..size).map(|rank| share(rank, size, &nodes)).collect::<Vec<_>>();
        assert_eq!(shares(2), [Some(vec![0, 1, 2, 3, 8]), Some(vec![4, 5, 6, 7])]);
        assert_eq!(shares(4), [Some(vec![0, 1]), Some(vec![2, 3, 8]), Some(vec![4, 5]), Some(vec![6, 7])]);
        for size in 1..=9 {
            let all: Vec<usize> = shares(size).into_iter().flatten().flatten().collect();
            let distinct: BTreeSet<usize> = all.iter().copied().collect();
            assert_eq!(all.len(), distinct.len(), "{size} ranks");
            if size > 1 {
                assert_eq!(distinct.len(), 9, "{size} ranks");
            }
        }
    }

    #[test]
    fn none_is_bound_where_ranks_outnumber_processors() {
        assert_eq!(share(0, 1, &[vec![0, 1]]), None);
        assert!((0..3).all(|rank| share(rank, 3, &[vec![0, 1]]).is_none()));
        let three_nodes = [vec![0], vec![1], vec![2, 3]];
        assert_eq!(share(1, 2, &three_nodes), Some(vec![2, 3]));
        assert_eq!(share(0, 2, &[vec![], vec![0, 1]]), Some(vec![0]));
    }
}
