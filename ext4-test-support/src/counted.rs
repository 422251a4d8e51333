//! Loops that fail if they saw too little.

/// Passes on the items of `items`, and fails the test at their end if there were fewer than `least`.
///
/// A loop that ends early (`break`, `return`) is not judged: use it in loops that run to their end.
///
/// # Panics
/// The iterator panics after its last item if there were fewer than `least`; `what` says of what.
pub fn at_least<I: IntoIterator>(least: usize, what: &str, items: I) -> AtLeast<'_, I::IntoIter> {
    AtLeast { items: items.into_iter(), seen: 0, least, what }
}

/// See [`at_least`].
#[derive(Debug)]
pub struct AtLeast<'a, I> {
    items: I,
    seen: usize,
    least: usize,
    what: &'a str,
}

impl<I: Iterator> Iterator for AtLeast<'_, I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        let item = self.items.next();
        match item {
            Some(_) => self.seen += 1,
            None => {
                let Self { seen, least, what, .. } = self;
                assert!(seen >= least, "{seen} {what} were seen, at least {least} were expected");
            }
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enough_items_pass_through() {
        assert_eq!(at_least(3, "numbers", 1..=3).sum::<i32>(), 6);
        assert_eq!(at_least(0, "numbers", 0..0).count(), 0);
    }

    #[test]
    #[should_panic(expected = "2 numbers were seen, at least 3 were expected")]
    fn too_few_items_fail() {
        for _ in at_least(3, "numbers", 1..=2) {}
    }

    #[test]
    #[should_panic(expected = "0 images were seen")]
    fn an_empty_listing_fails() {
        for _ in at_least(1, "images", std::iter::empty::<()>()) {}
    }
}
