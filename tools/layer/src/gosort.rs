//! The order that Go's `sort.Slice` leaves elements in for a comparison that is no order.
//!
//! The reference sorts a file's extended attributes with such a comparison, so that the steps of the sort
//! decide bytes of the image. For a proper order without equal elements this is just a sort. The algorithm is
//! pattern-defeating quicksort (O. Peters, arXiv 2106.05123) with the choices that Go has made since 1.19;
//! each function states the choice it makes.

/// Up to this length, insertion sort.
const INSERTION: usize = 12;
/// From this length on, the pivot is a median of medians, and a nearly sorted range is mended by shifting.
const LONG: usize = 50;
/// Displaced elements that mending a nearly sorted range puts up with.
const MAX_SHIFTS: usize = 5;
/// Swaps of a median of medians that say that the range is in decreasing order.
const MAX_SWAPS: usize = 12;

/// Sorts by `less`, which need not be an order.
pub fn sort<T>(data: &mut [T], less: impl Fn(&T, &T) -> bool) {
    let limit = bit_length(data.len());
    let end = data.len();
    Sort { data, less }.range(0, end, limit);
}

fn bit_length(n: usize) -> u32 {
    usize::BITS - n.leading_zeros()
}

#[derive(PartialEq)]
enum Hint {
    Increasing,
    Decreasing,
    Unknown,
}

struct Sort<'a, T, F> {
    data: &'a mut [T],
    less: F,
}

impl<T, F: Fn(&T, &T) -> bool> Sort<'_, T, F> {
    fn less(&self, i: usize, j: usize) -> bool {
        (self.less)(&self.data[i], &self.data[j])
    }

    /// Sorts `[a, b)`; after `limit` unbalanced partitions by heap sort. The shorter part is sorted first.
    fn range(&mut self, mut a: usize, mut b: usize, mut limit: u32) {
        let (mut balanced, mut partitioned) = (true, true);
        while b - a > INSERTION {
            if limit == 0 {
                return self.heap(a, b);
            }
            if !balanced {
                self.break_patterns(a, b);
                limit -= 1;
            }
            let (mut pivot, mut hint) = self.choose_pivot(a, b);
            if hint == Hint::Decreasing {
                self.data[a..b].reverse();
                pivot = (b - 1) - (pivot - a);
                hint = Hint::Increasing;
            }
            if balanced && partitioned && hint == Hint::Increasing && self.mend(a, b) {
                return;
            }
            if a > 0 && !self.less(a - 1, pivot) {
                a = self.partition_equal(a, b, pivot);
                continue;
            }
            let (middle, already) = self.partition(a, b, pivot);
            partitioned = already;
            let (left, right) = (middle - a, b - middle);
            balanced = left.min(right) >= (b - a) / 8;
            if left < right {
                self.range(a, middle, limit);
                a = middle + 1;
            } else {
                self.range(middle + 1, b, limit);
                b = middle;
            }
        }
        for end in a + 1..b {
            self.sink_left(end, a);
        }
    }

    /// Moves the element at `from` left, not past `first`, while it is less than the one before it.
    fn sink_left(&mut self, from: usize, first: usize) {
        let mut at = from;
        while at > first && self.less(at, at - 1) {
            self.data.swap(at, at - 1);
            at -= 1;
        }
    }

    /// A binary heap with its greatest element first, taken apart from the end.
    fn heap(&mut self, a: usize, b: usize) {
        let length = b - a;
        for root in (0..=(length - 1) / 2).rev() {
            self.sift_down(root, length, a);
        }
        for end in (0..length).rev() {
            self.data.swap(a, a + end);
            self.sift_down(0, end, a);
        }
    }

    fn sift_down(&mut self, mut root: usize, end: usize, first: usize) {
        while 2 * root + 1 < end {
            let mut child = 2 * root + 1;
            if child + 1 < end && self.less(first + child, first + child + 1) {
                child += 1;
            }
            if !self.less(first + root, first + child) {
                return;
            }
            self.data.swap(first + root, first + child);
            root = child;
        }
    }

    /// Swaps the three elements around the middle with others that a xorshift seeded by the length picks.
    fn break_patterns(&mut self, a: usize, b: usize) {
        let length = b - a;
        let mut random = length as u64;
        let mask = (1 << bit_length(length)) - 1;
        let middle = a + length / 4 * 2;
        for at in middle - 1..=middle + 1 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let other = random as usize & mask;
            self.data.swap(at, a + if other >= length { other - length } else { other });
        }
    }

    /// The median of the elements at the quarters; of a long range, the median of the medians around them.
    fn choose_pivot(&self, a: usize, b: usize) -> (usize, Hint) {
        let length = b - a;
        let mut swaps = 0;
        let mut at = [1, 2, 3].map(|quarter| a + length / 4 * quarter);
        if length >= LONG {
            at = at.map(|i| self.median([i - 1, i, i + 1], &mut swaps));
        }
        let pivot = self.median(at, &mut swaps);
        let hint = match swaps {
            0 => Hint::Increasing,
            MAX_SWAPS => Hint::Decreasing,
            _ => Hint::Unknown,
        };
        (pivot, hint)
    }

    fn median(&self, mut at: [usize; 3], swaps: &mut usize) -> usize {
        for (low, high) in [(0, 1), (1, 2), (0, 1)] {
            if self.less(at[high], at[low]) {
                at.swap(low, high);
                *swaps += 1;
            }
        }
        at[1]
    }

    /// True where the range is in order, perhaps after a few elements of a long one were shifted.
    fn mend(&mut self, a: usize, b: usize) -> bool {
        let mut at = a + 1;
        for _ in 0..MAX_SHIFTS {
            while at < b && !self.less(at, at - 1) {
                at += 1;
            }
            if at == b {
                return true;
            }
            if b - a < LONG {
                return false;
            }
            self.data.swap(at, at - 1);
            if at - a >= 2 {
                self.sink_left(at - 1, 0); // to the start of all the data, if it comes to that
            }
            if b - at >= 2 {
                let mut right = at + 1;
                while right < b && self.less(right, right - 1) {
                    self.data.swap(right, right - 1);
                    right += 1;
                }
            }
        }
        false
    }

    /// Elements less than the pivot, the pivot, the others. Gives the pivot's place, and whether nothing but
    /// the pivot moved.
    fn partition(&mut self, a: usize, b: usize, pivot: usize) -> (usize, bool) {
        self.data.swap(a, pivot);
        let (mut i, mut j) = (a + 1, b - 1);
        let mut already = true;
        loop {
            while i <= j && self.less(i, a) {
                i += 1;
            }
            while i <= j && !self.less(j, a) {
                j -= 1;
            }
            if i > j {
                self.data.swap(j, a);
                return (j, already);
            }
            self.data.swap(i, j);
            already = false;
            i += 1;
            j -= 1;
        }
    }

    /// Elements not greater than the pivot, then the others. Gives the first of these.
    fn partition_equal(&mut self, a: usize, b: usize, pivot: usize) -> usize {
        self.data.swap(a, pivot);
        let (mut i, mut j) = (a + 1, b - 1);
        loop {
            while i <= j && !self.less(a, i) {
                i += 1;
            }
            while i <= j && self.less(a, j) {
                j -= 1;
            }
            if i > j {
                return i;
            }
            self.data.swap(i, j);
            i += 1;
            j -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_proper_order_is_sorted_whatever_the_input_looks_like() {
        for length in 0..300usize {
            let patterns: [&dyn Fn(usize) -> usize; 6] = [
                &|i| i,
                &|i| length - i,
                &|i| i * 7919 % 311,
                &|i| i % 5,
                &|i| if i == length / 2 { 0 } else { i },
                &|i| i ^ 0x55,
            ];
            for (number, pattern) in patterns.iter().enumerate() {
                let mut sorted: Vec<usize> = (0..length).map(pattern).collect();
                let mut expected = sorted.clone();
                expected.sort_unstable();
                super::sort(&mut sorted, |a, b| a < b);
                assert_eq!(sorted, expected, "pattern {number} of {length}");
            }
        }
    }
}
