//! How much a server takes at a time, as it teaches by refusing.
//!
//! Decided here: how far a refusal narrows, and when a wider try is due again. A limit may be one odd answer, or depend
//! on how much the server has to do: it is never learnt for ever.

/// After so many answers in a row at the learnt width, a wider one is tried.
const GROW_AFTER: u32 = 32;

/// A width, in whatever is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Width {
    now: usize,
    answers: u32,
}

impl Width {
    /// Nothing was refused yet.
    pub const fn unlimited() -> Self {
        Self { now: usize::MAX, answers: 0 }
    }

    /// The widest that may be asked for at present.
    pub const fn get(&self) -> usize {
        self.now
    }

    /// `width` was refused: half of it from now on.
    pub fn refused(&mut self, width: usize) {
        self.now = (width / 2).max(1).min(self.now);
        self.answers = 0;
    }

    /// `width` was answered. After enough answers at full width a wider one is tried.
    pub fn answered(&mut self, width: usize) {
        if width < self.now {
            return;
        }
        self.answers = self.answers.saturating_add(1);
        if self.answers >= GROW_AFTER {
            self.now = self.now.saturating_mul(2);
            self.answers = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m27_a_width_halves_at_a_refusal_and_grows_back_with_answers() {
        let mut width = Width::unlimited();
        width.answered(100);
        assert_eq!(width.get(), usize::MAX);
        width.refused(100);
        assert_eq!(width.get(), 50);
        width.refused(1);
        assert_eq!(width.get(), 1, "never nothing");
        width.refused(100);
        assert_eq!(width.get(), 1, "a late refusal of a wider one teaches nothing new");
        let mut answers = 0;
        while width.get() < 100 {
            for _ in 0..GROW_AFTER {
                assert!(width.get() < 100);
                width.answered(width.get());
                answers += 1;
            }
        }
        assert_eq!(answers, 7 * GROW_AFTER, "each doubling costs so many answers");
        let grown = width;
        for _ in 0..GROW_AFTER {
            width.answered(grown.get() - 1);
        }
        assert_eq!(width, grown, "narrower answers say nothing of wider ones");
    }
}
