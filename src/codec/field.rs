//! The field that a blob's elements belong to: integers modulo r, the order of BLS12-381's G1 (EIP-4844).
//!
//! Decided here: which 32 bytes are an element, and how weighted sums of elements are kept and reduced. Nothing is secret
//! from whoever could measure the time (docs/aggregated-check.md), so nothing takes pains to take constant time.

/// An integer below 2^256 in four limbs, the lowest first.
pub(super) type Scalar = [u64; 4];

/// r, the field's modulus: 255 bits.
pub(super) const MODULUS: Scalar =
    [0xffff_ffff_0000_0001, 0x53bd_a402_fffe_5bfe, 0x3339_d808_09a1_d805, 0x73ed_a753_299d_7d48];

/// −r⁻¹ modulo 2^64.
const MINUS_INVERSE: u64 = 0xffff_fffe_ffff_ffff;

/// 2^448 modulo r: see [`WeightedSum::residue`].
const TWO_448: Scalar = [0x5947_6ebc_41b4_528f, 0xc5a3_0cb2_43fc_c152, 0x2b34_e639_40cc_bd72, 0x1e17_9025_ca24_7088];

/// The element that `bytes` spell, highest byte first; none if it is not below the modulus.
pub(super) fn element(bytes: &[u8; 32]) -> Option<Scalar> {
    let ([highest, high, low, lowest], []) = bytes.as_chunks::<8>() else { return None };
    let scalar = [lowest, low, high, highest].map(|limb| u64::from_be_bytes(*limb));
    is_below(&scalar, &MODULUS).then_some(scalar)
}

fn is_below(one: &Scalar, other: &Scalar) -> bool {
    one.iter().rev().lt(other.iter().rev())
}

/// Σ weight × element as an integer, which is reduced only at its end: below 2^447 for fewer than 2^64 summands, each of
/// them below 2^(128 + 255).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WeightedSum([u64; 7]);

impl WeightedSum {
    /// Adds `weight` × `element`: eight multiplications.
    pub(super) fn add(&mut self, element: &Scalar, weight: [u64; 2]) {
        let ([x0, x1, x2, x3], [low, high]) = (*element, weight);
        let [s0, s1, s2, s3, s4, s5, s6] = self.0;
        let (s0, carry) = x0.carrying_mul_add(low, s0, 0);
        let (s1, carry) = x1.carrying_mul_add(low, s1, carry);
        let (s2, carry) = x2.carrying_mul_add(low, s2, carry);
        let (s3, carry) = x3.carrying_mul_add(low, s3, carry);
        let (s4, over) = s4.overflowing_add(carry);
        let (s1, carry) = x0.carrying_mul_add(high, s1, 0);
        let (s2, carry) = x1.carrying_mul_add(high, s2, carry);
        let (s3, carry) = x2.carrying_mul_add(high, s3, carry);
        let (s4, carry) = x3.carrying_mul_add(high, s4, carry);
        let (s5, over) = s5.carrying_add(carry, over);
        let (s6, _) = s6.carrying_add(0, over);
        self.0 = [s0, s1, s2, s3, s4, s5, s6];
    }

    /// The sum modulo r.
    ///
    /// Montgomery's reduction: three steps, each of which adds the multiple of r that makes the lowest limb zero and drops
    /// it, leave y ≡ sum / 2^192, below 2^255 + r and so four limbs long. y × 2^448 after four more steps is
    /// ≡ sum × 2^(−192 + 448 − 256), below 2 × r.
    pub(super) fn residue(&self) -> Scalar {
        let mut sum = self.0;
        for _ in 0..3 {
            drop_lowest(&mut sum);
        }
        let [y0, y1, y2, y3, ..] = sum;
        let mut product = [0; 8];
        for (place, factor) in TWO_448.into_iter().enumerate() {
            let mut carry = 0;
            let limbs = product.iter_mut().skip(place);
            for (limb, y) in limbs.zip([y0, y1, y2, y3, 0]) {
                (*limb, carry) = y.carrying_mul_add(factor, *limb, carry);
            }
        }
        for _ in 0..4 {
            drop_lowest(&mut product);
        }
        let [p0, p1, p2, p3, ..] = product;
        once_reduced([p0, p1, p2, p3])
    }
}

/// Adds a multiple of r, so that the lowest limb becomes zero, and divides by 2^64.
fn drop_lowest(limbs: &mut [u64]) {
    let factor = limbs.first().map_or(0, |lowest| lowest.wrapping_mul(MINUS_INVERSE));
    let mut carry = 0;
    for (limb, modulus) in limbs.iter_mut().zip(MODULUS.into_iter().chain(std::iter::repeat(0))) {
        (*limb, carry) = factor.carrying_mul_add(modulus, *limb, carry);
    }
    limbs.rotate_left(1);
}

/// `scalar`, less r if it is not below r.
fn once_reduced(scalar: Scalar) -> Scalar {
    if is_below(&scalar, &MODULUS) {
        return scalar;
    }
    let mut borrow = false;
    let mut less = scalar;
    for (limb, modulus) in less.iter_mut().zip(MODULUS) {
        (*limb, borrow) = limb.borrowing_sub(modulus, borrow);
    }
    less
}

#[cfg(test)]
mod tests {
    use ethers_core::types::U512;
    use proptest::prelude::*;

    use super::*;

    fn number(limbs: &[u64]) -> U512 {
        let mut wide = [0; 8];
        wide[..limbs.len()].copy_from_slice(limbs);
        U512(wide)
    }

    fn weight(weight: u128) -> [u64; 2] {
        [weight as u64, (weight >> 64) as u64]
    }

    #[test]
    fn the_constants_are_what_they_are_called() {
        let modulus = number(&MODULUS);
        let text = "52435875175126190479447740508185965837690552500527637822603658699938581184513";
        assert_eq!(modulus.to_string(), text);
        assert_eq!(MODULUS[0].wrapping_mul(MINUS_INVERSE), u64::MAX, "−1");
        assert_eq!((U512::one() << 448) % modulus, number(&TWO_448));
    }

    #[test]
    fn f1_an_element_is_below_the_modulus() {
        let spell = |number: U512| {
            let mut wide = [0; 64];
            number.to_big_endian(&mut wide);
            <[u8; 32]>::try_from(&wide[32..]).unwrap()
        };
        let modulus = number(&MODULUS);
        for (what, number, taken) in [
            ("zero", U512::zero(), true),
            ("one", U512::one(), true),
            ("31 bytes of 0xff", (U512::one() << 248) - 1, true),
            ("r − 1", modulus - 1, true),
            ("r", modulus, false),
            ("r + 1", modulus + 1, false),
            ("r + 2^64", modulus + (U512::one() << 64), false),
            ("all bits", (U512::one() << 256) - 1, false),
        ] {
            let found = element(&spell(number));
            assert_eq!(found.map(|limbs| super::tests::number(&limbs)), taken.then_some(number), "{what}");
        }
    }

    #[test]
    fn the_largest_sum_that_may_be_is_reduced_right() {
        let largest = number(&[u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX >> 1]);
        let sum = WeightedSum([u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX >> 1]);
        assert_eq!(number(&sum.residue()), largest % number(&MODULUS));
        for below in 0..3_u64 {
            let near: U512 = number(&MODULUS) * U512::from(77) - U512::from(below);
            let sum = WeightedSum(near.0[..7].try_into().unwrap());
            assert_eq!(number(&sum.residue()), near % number(&MODULUS), "77 r − {below}");
        }
    }

    proptest! {
        #[test]
        fn sums_are_those_of_a_library(summands in proptest::collection::vec((any::<[u64; 4]>(), any::<u128>()), 0..20)) {
            let mut sum = WeightedSum::default();
            let mut expected = U512::zero();
            for (mut element, by) in summands {
                element[3] &= u64::MAX >> 1;
                sum.add(&element, weight(by));
                expected += number(&element) * U512::from(by);
            }
            prop_assert_eq!(number(&sum.0), expected);
            prop_assert_eq!(number(&sum.residue()), expected % number(&MODULUS));
        }
    }
}
