//! Many blobs checked against their commitments with one commitment (docs/aggregated-check.md).
//!
//! Decided here: whether every blob of a group has the commitment that L1 is bound to, up to a chance of 2^−128, and which
//! commitment is none at all. Not decided here: where the commitments and the random weights come from, and what follows
//! from a group that is not equal: its blobs are checked one by one, and only that says which one differs.

use std::num::NonZeroU128;

use super::blob::{self, BlobError};
use super::field::{Scalar, WeightedSum};
use super::kzg::{self, FIELD_ELEMENTS, NoPoint};
use crate::types::{B256, Blob};

/// A blob, and the commitment that it is said to have.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// The blob, as it was rebuilt or fetched.
    pub blob: &'a Blob,
    /// The commitment, compressed, from whoever offered it. Nothing about it is trusted.
    pub commitment: [u8; 48],
    /// The versioned hash that L1 holds.
    pub versioned_hash: B256,
    /// A random number for this member alone, uniform in 1 to 2^128 − 1, from a source that nobody can foresee. It must be
    /// drawn **after** all blobs and commitments of the group are fixed, be kept secret until then, and never be used for
    /// another group: whoever knows it beforehand can make two wrong blobs pass together.
    pub weight: NonZeroU128,
}

/// What is wrong with a commitment by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitmentFault {
    /// It does not hash to the versioned hash.
    #[error("the commitment has another versioned hash")]
    OtherHash,
    /// It spells no point of the curve.
    #[error("the commitment is no point of the curve")]
    NotOnCurve,
    /// Its point lies outside the subgroup in which commitments lie.
    #[error("the commitment lies outside the subgroup")]
    NotInSubgroup,
}

impl From<NoPoint> for CommitmentFault {
    fn from(why: NoPoint) -> Self {
        match why {
            NoPoint::NotOnCurve => Self::NotOnCurve,
            NoPoint::NotInSubgroup => Self::NotInSubgroup,
        }
    }
}

/// What the check of a group found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every blob has its member's versioned hash: what one by one would find, wrong with a chance of at most
    /// 1 / (2^128 − 1).
    Equal,
    /// At least one blob has not, for certain. Which one, only one by one can tell.
    Differs,
    /// The commitment of the member at `index` cannot be used. That says nothing about any blob.
    BadCommitment {
        /// The first such member.
        index: usize,
        /// What is wrong with its commitment.
        why: CommitmentFault,
    },
}

/// Whether every blob of `group` has its versioned hash: compares the commitment of Σ weightᵢ × blobᵢ with
/// Σ weightᵢ × commitmentᵢ. An empty group is equal.
///
/// Costs one commitment of a full blob, and for each member a hash, a square root, a subgroup check and about 30,000
/// multiplications of 64 bits. Not for an async thread.
///
/// # Errors
/// [`BlobError::Damaged`] alone, which says nothing about the group.
pub fn check(group: &[Member<'_>]) -> Result<Verdict, BlobError> {
    let setup = kzg::points()?;
    let mut points = Vec::with_capacity(group.len());
    let mut weights = Vec::with_capacity(group.len());
    for (index, member) in group.iter().enumerate() {
        match point(member) {
            Ok(Some(point)) => {
                points.push(point);
                let [low, high] = limbs(member.weight);
                weights.push([low, high, 0, 0]);
            }
            Ok(None) => {} // a weight times infinity is infinity, and adds nothing
            Err(why) => return Ok(Verdict::BadCommitment { index, why }),
        }
    }
    let mut sums = vec![WeightedSum::default(); FIELD_ELEMENTS];
    for member in group {
        let weight = limbs(member.weight);
        for (sum, element) in sums.iter_mut().zip(blob::elements(member.blob)) {
            // A blob without a commitment does not have the one that L1 is bound to.
            let Ok(element) = element else { return Ok(Verdict::Differs) };
            sum.add(&element, weight);
        }
    }
    let sums: Vec<Scalar> = sums.iter().map(WeightedSum::residue).collect();
    let equal = kzg::sum(setup, &sums) == kzg::sum(&points, &weights);
    Ok(if equal { Verdict::Equal } else { Verdict::Differs })
}

/// The member's commitment as a point; none for infinity.
fn point(member: &Member<'_>) -> Result<Option<kzg::Point>, CommitmentFault> {
    if blob::versioned_hash(&member.commitment) != member.versioned_hash {
        return Err(CommitmentFault::OtherHash);
    }
    Ok(kzg::point(&member.commitment)?)
}

/// The two limbs of a weight, the lower one first.
fn limbs(weight: NonZeroU128) -> [u64; 2] {
    let bytes = weight.get().to_le_bytes();
    let ([low, high], []) = bytes.as_chunks::<8>() else { return [0; 2] };
    [low, high].map(|limb| u64::from_le_bytes(*limb))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::blob::{commitment, versioned_hash};
    use crate::types::BLOB_BYTES;

    /// A blob, its commitment, its versioned hash.
    type Entry = (Blob, [u8; 48], B256);

    fn entry(blob: Blob) -> Entry {
        let commitment = commitment(&blob).unwrap();
        (blob, commitment, versioned_hash(&commitment))
    }

    /// A blob of `used` elements, each of which ends on a byte of its own.
    fn blob(seed: u8, used: usize) -> Blob {
        let mut bytes = vec![0; BLOB_BYTES];
        for (place, element) in bytes.chunks_mut(32).take(used).enumerate() {
            element[1] = seed;
            element[17] = place as u8;
            element[31] = seed.wrapping_mul(31) ^ (place as u8);
        }
        Blob::new(bytes).unwrap()
    }

    fn edited(blob: &Blob, edit: impl FnOnce(&mut [u8])) -> Blob {
        let mut bytes = blob.as_bytes().to_vec();
        edit(&mut bytes);
        Blob::new(bytes).unwrap()
    }

    fn weight(of: u128) -> NonZeroU128 {
        NonZeroU128::new(of).unwrap()
    }

    /// Weights that look random: tests must come out the same every time.
    fn weights(seed: u64) -> impl Iterator<Item = NonZeroU128> {
        (0_u64..).map(move |n| {
            let digest = crate::types::keccak(&[seed.to_be_bytes(), n.to_be_bytes()].concat());
            weight(u128::from_be_bytes(digest.0[..16].try_into().unwrap()))
        })
    }

    fn weighed(entries: &[Entry], weights: impl Iterator<Item = NonZeroU128>) -> Verdict {
        let group: Vec<_> = entries
            .iter()
            .zip(weights)
            .map(|((blob, commitment, versioned_hash), weight)| Member {
                blob,
                commitment: *commitment,
                versioned_hash: *versioned_hash,
                weight,
            })
            .collect();
        check(&group).unwrap()
    }

    fn checked(entries: &[Entry]) -> Verdict {
        weighed(entries, weights(7))
    }

    /// What the check stands for.
    fn one_by_one(entries: &[Entry]) -> bool {
        entries.iter().all(|(blob, _, hash)| blob::blob_hash(blob).is_ok_and(|ours| ours == *hash))
    }

    fn bad(index: usize, why: CommitmentFault) -> Verdict {
        Verdict::BadCommitment { index, why }
    }

    /// `entry` with another commitment, to which its hash is bound.
    fn with_commitment(entry: &Entry, commitment: [u8; 48]) -> Entry {
        (entry.0.clone(), commitment, versioned_hash(&commitment))
    }

    /// The first x with a point on the curve that is, or is not, in the subgroup. Practically none is by chance.
    fn outside_the_subgroup() -> [u8; 48] {
        let spelling = |x: u8| {
            let mut bytes = [0; 48];
            (bytes[0], bytes[47]) = (0x80, x);
            bytes
        };
        (1..=255).map(spelling).find(|bytes| kzg::point(bytes) == Err(NoPoint::NotInSubgroup)).unwrap()
    }

    #[test]
    fn one_bit_in_any_one_blob_is_noticed_in_groups_of_1_2_and_64() {
        assert_eq!(checked(&[]), Verdict::Equal);
        for size in [1_u8, 2, 64] {
            let entries: Vec<Entry> = (0..size).map(|seed| entry(blob(seed, 40 + usize::from(seed)))).collect();
            assert_eq!(checked(&entries), Verdict::Equal, "{size}");
            for at in 0..entries.len() {
                // In a used element, in its data's first byte, and in the blob's last bit.
                let bit = [31 * 8, 8, BLOB_BYTES * 8 - 1][at % 3];
                let mut wrong = entries.clone();
                wrong[at].0 = edited(&wrong[at].0, |bytes| bytes[bit / 8] ^= 0x80 >> (bit % 8));
                assert_eq!(checked(&wrong), Verdict::Differs, "bit {bit} of blob {at} of {size}");
                assert!(size > 2 || !one_by_one(&wrong));
            }
        }
    }

    #[test]
    fn commitments_of_other_blobs_are_noticed() {
        let entries = [entry(blob(1, 50)), entry(blob(2, 60)), entry(blob(3, 70))];
        let mut swapped = entries.clone();
        swapped[0].1 = entries[2].1;
        swapped[2].1 = entries[0].1;
        assert_eq!(checked(&swapped), bad(0, CommitmentFault::OtherHash));
        (swapped[0].2, swapped[2].2) = (entries[2].2, entries[0].2);
        assert_eq!(checked(&swapped), Verdict::Differs, "their sum is the same, weighed it is not");
        assert_eq!(weighed(&swapped, std::iter::repeat(weight(1))), Verdict::Equal, "without weights it would pass");
        let mut unbound = entries.clone();
        unbound[1].2 = entries[0].2;
        assert_eq!(checked(&unbound), bad(1, CommitmentFault::OtherHash));
    }

    #[test]
    fn errors_that_cancel_each_other_are_noticed() {
        let entries = [entry(blob(1, 50)), entry(blob(2, 60)), entry(blob(3, 70))];
        let mut wrong = entries.clone();
        // 2^112 more in element 5 of one blob, 2^112 less in the same element of another: byte 17 holds 5 in both.
        wrong[0].0 = edited(&wrong[0].0, |bytes| bytes[5 * 32 + 17] += 1);
        wrong[2].0 = edited(&wrong[2].0, |bytes| bytes[5 * 32 + 17] -= 1);
        assert!(!one_by_one(&wrong));
        assert_eq!(weighed(&wrong, std::iter::repeat(weight(1))), Verdict::Equal, "equal weights let it pass");
        assert_eq!(weighed(&wrong, std::iter::repeat(weight(u128::MAX))), Verdict::Equal, "any equal weights");
        for seed in 0..8 {
            assert_eq!(weighed(&wrong, weights(seed)), Verdict::Differs);
        }
        // Whoever knows the weights can make the errors cancel all the same: hence they are drawn afterwards.
        let mut known = entries.clone();
        known[0].0 = edited(&known[0].0, |bytes| bytes[5 * 32 + 31] ^= 2);
        let up = known[0].0.as_bytes()[5 * 32 + 31] > entries[0].0.as_bytes()[5 * 32 + 31];
        known[1].0 = edited(&known[1].0, |bytes| {
            let byte = &mut bytes[5 * 32 + 31];
            *byte = if up { *byte - 1 } else { *byte + 1 };
        });
        let chosen = [weight(1 << 100), weight(2 << 100), weight(5)];
        assert_eq!(weighed(&known, chosen.into_iter()), Verdict::Equal, "weights that were known beforehand");
        assert_eq!(checked(&known), Verdict::Differs);
    }

    #[test]
    fn commitments_that_are_no_points_of_the_subgroup_are_named() {
        let entries = [entry(blob(1, 50)), entry(blob(2, 60)), entry(blob(3, 70))];
        let spelt = |first: u8, rest: u8| {
            let mut bytes = [rest; 48];
            bytes[0] = first;
            bytes
        };
        let order_three = spelt(0x80, 0); // (0, 2): 4 = 0³ + 4
        let mut with_garbage = kzg::INFINITY;
        with_garbage[47] = 1;
        let mut off_curve = entries[0].1;
        while kzg::point(&off_curve) != Err(NoPoint::NotOnCurve) {
            off_curve[47] = off_curve[47].wrapping_add(1);
        }
        for (what, commitment, why) in [
            ("no such x on the curve", off_curve, CommitmentFault::NotOnCurve),
            ("x above the modulus", spelt(0x9f, 0xff), CommitmentFault::NotOnCurve),
            ("not marked as compressed", spelt(0x00, 0x01), CommitmentFault::NotOnCurve),
            ("infinity with something behind it", with_garbage, CommitmentFault::NotOnCurve),
            ("infinity with a sign", spelt(0xe0, 0), CommitmentFault::NotOnCurve),
            ("outside the subgroup", outside_the_subgroup(), CommitmentFault::NotInSubgroup),
            ("of order three", order_three, CommitmentFault::NotInSubgroup),
        ] {
            for at in 0..3 {
                let mut wrong = entries.clone();
                wrong[at] = with_commitment(&wrong[at], commitment);
                assert_eq!(checked(&wrong), bad(at, why), "{what}, at {at}");
            }
        }
    }

    #[test]
    fn infinity_is_the_commitment_of_the_blob_of_zeros_and_of_no_other() {
        let zeros = entry(blob(0, 0));
        assert_eq!(zeros.1, kzg::INFINITY);
        let other = entry(blob(9, 30));
        assert_eq!(checked(std::slice::from_ref(&zeros)), Verdict::Equal);
        assert_eq!(checked(&[zeros.clone(), other.clone(), zeros.clone()]), Verdict::Equal);
        assert_eq!(checked(&[with_commitment(&other, kzg::INFINITY)]), Verdict::Differs);
        assert_eq!(checked(&[with_commitment(&zeros, other.1)]), Verdict::Differs);
        assert_eq!(checked(&[other.clone(), with_commitment(&zeros, other.1)]), Verdict::Differs);
    }

    #[test]
    fn a_blob_may_be_there_more_than_once() {
        let (one, two) = (entry(blob(1, 50)), entry(blob(2, 60)));
        for copies in [2, 3, 31, 33] {
            let mut entries = vec![one.clone(); copies];
            entries.push(two.clone());
            assert_eq!(checked(&entries), Verdict::Equal, "{copies}");
            assert_eq!(weighed(&entries, std::iter::repeat(weight(1))), Verdict::Equal, "{copies}");
            entries[copies - 1].0 = two.0.clone();
            assert_eq!(checked(&entries), Verdict::Differs, "{copies}");
        }
    }

    #[test]
    fn f1_a_blob_with_an_element_above_the_modulus_differs() {
        let entries = [entry(blob(1, 50)), entry(blob(2, 60))];
        for element in [0, 4095] {
            let mut wrong = entries.clone();
            wrong[1].0 = edited(&wrong[1].0, |bytes| bytes[element * 32] = 0xff);
            assert_eq!(checked(&wrong), Verdict::Differs);
            assert!(!one_by_one(&wrong));
        }
        // 2^255 and more would change the sum's high limbs, a high byte below r does not: both are elements like any.
        let high = entry(edited(&blob(1, 50), |bytes| bytes[7 * 32] = 0x73));
        assert_eq!(checked(&[high, entries[1].clone()]), Verdict::Equal);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_verdict_is_that_of_one_by_one(
            blobs in proptest::collection::vec((any::<u8>(), 0_usize..60), 1..6),
            edits in proptest::collection::vec((any::<prop::sample::Index>(), 0_u8..5, any::<prop::sample::Index>(), any::<u8>()), 0..3),
            seed in any::<u64>(),
        ) {
            let mut entries: Vec<Entry> = blobs.into_iter().map(|(seed, used)| entry(blob(seed, used))).collect();
            let mut bound = true;
            for (at, kind, other, byte) in edits {
                let (at, from) = (at.index(entries.len()), other.index(entries.len()));
                match kind {
                    0 => entries[at].0 = edited(&entries[at].0, |bytes| bytes[other.index(BLOB_BYTES)] ^= byte),
                    1 => entries[at].0 = entries[from].0.clone(),
                    2 => entries[at] = with_commitment(&entries[at], entries[from].1),
                    3 => entries[at] = with_commitment(&entries[at], outside_the_subgroup()),
                    _ => entries[at] = entries[from].clone(),
                }
                bound &= kind != 3;
            }
            let verdict = weighed(&entries, weights(seed));
            prop_assert_eq!(verdict == Verdict::Equal, one_by_one(&entries));
            if let Verdict::BadCommitment { index, .. } = verdict {
                prop_assert!(!bound);
                prop_assert!(!one_by_one(&entries[index..=index]), "what has no commitment does not hash to it");
            }
        }
    }
}
