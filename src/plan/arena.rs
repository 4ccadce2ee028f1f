//! Arena addresses from tensor lifetimes: greedy, largest first, lowest gap that fits.

/// Memory wanted from step `first` to step `last`, both included.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    pub bytes: usize,
    pub first: usize,
    pub last: usize,
}

const ALIGN: usize = 64;

/// Offsets for each request, and the total size. Requests alive at the same step never overlap.
pub fn assign(requests: &[Request]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(requests[i].bytes), requests[i].first));
    let mut offsets = vec![0; requests.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for &i in &order {
        let r = requests[i];
        let mut busy: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&p| requests[p].first <= r.last && r.first <= requests[p].last)
            .map(|&p| (offsets[p], offsets[p] + requests[p].bytes))
            .collect();
        busy.sort_unstable();
        let mut at = 0;
        for (start, end) in busy {
            if at + r.bytes <= start {
                break;
            }
            at = at.max(end.next_multiple_of(ALIGN));
        }
        offsets[i] = at;
        total = total.max(at + r.bytes);
        placed.push(i);
    }
    (offsets, total.next_multiple_of(ALIGN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn live_tensors_never_overlap(spec in prop::collection::vec((1usize..5000, 0usize..20, 0usize..6), 1..40)) {
            let requests: Vec<_> = spec.iter().map(|&(bytes, first, len)| Request { bytes, first, last: first + len }).collect();
            let (offsets, total) = assign(&requests);
            for (i, a) in requests.iter().enumerate() {
                prop_assert!(offsets[i] % ALIGN == 0 && offsets[i] + a.bytes <= total);
                for (j, b) in requests.iter().enumerate().skip(i + 1) {
                    let together = a.first <= b.last && b.first <= a.last;
                    let apart = offsets[i] + a.bytes <= offsets[j] || offsets[j] + b.bytes <= offsets[i];
                    prop_assert!(!together || apart);
                }
            }
        }
    }

    #[test]
    fn a_chain_needs_its_two_largest_neighbours_only() {
        let chain: Vec<_> = (0..10).map(|i| Request { bytes: 640, first: i, last: i + 1 }).collect();
        assert_eq!(assign(&chain).1, 1280);
    }
}
