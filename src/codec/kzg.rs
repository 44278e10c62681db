//! Sums of points of BLS12-381's G1, and the 4096 points that blobs are committed to with (EIP-4844).
//!
//! Decided here: how Σ scalarᵢ × pointᵢ is computed, on one core (batches are what runs in parallel), and which 48 bytes
//! are a commitment. blst does the curve's arithmetic.
//!
//! `points.bin` holds the Lagrange points of the KZG ceremony, in the bit-reversed order in which a blob's elements meet
//! them: 96 bytes each, x and y, highest byte first. Uncompressed: read in a millisecond, with the check that each is on the
//! curve; compressed they would be half as long, and 4096 square roots take 80 ms. The tables for cell proofs that c-kzg computes when it loads its setup are never needed.

use std::sync::LazyLock;

use blst::BLST_ERROR;
use blst::MultiPoint;
use blst::min_pk::{AggregatePublicKey as Sum, PublicKey};
use sha2::{Digest, Sha256};

use super::field::Scalar;
use crate::types::BLOB_BYTES;

/// Field elements in a blob, and points that they are multiplied with.
pub const FIELD_ELEMENTS: usize = BLOB_BYTES / 32;

/// A point of the curve by its coordinates. blst names it after its use in signatures.
pub(super) type Point = PublicKey;

/// Bytes of a point's coordinates.
const POINT_BYTES: usize = 96;

/// [`FIELD_ELEMENTS`] points of [`POINT_BYTES`].
static POINTS_FILE: &[u8] = include_bytes!("points.bin");

/// SHA-256 of [`POINTS_FILE`].
const POINTS_DIGEST: &str = "f39d3cb84a0b8e5dbba3601ad506e5a6fc89db22b361b59b10207768a82ba623";

/// The point at infinity, compressed: the commitment of the blob of zeros.
pub(super) const INFINITY: [u8; 48] = {
    let mut bytes = [0; 48];
    bytes[0] = 0xc0;
    bytes
};

/// The points that are built into the program are not those of the ceremony: the program is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the commitment points built into this program are damaged")]
pub(super) struct Damaged;

/// Loaded at first use, in a few milliseconds; other threads wait meanwhile.
static POINTS: LazyLock<Result<Vec<Point>, Damaged>> = LazyLock::new(|| read_points(POINTS_FILE));

fn read_points(file: &[u8]) -> Result<Vec<Point>, Damaged> {
    if const_hex::encode(Sha256::digest(file)) != POINTS_DIGEST {
        return Err(Damaged);
    }
    let (points, _) = file.as_chunks::<POINT_BYTES>();
    points.iter().map(|bytes| Point::deserialize(bytes).map_err(|_| Damaged)).collect()
}

/// The points that a blob is committed to with.
///
/// # Errors
/// When the program is damaged.
pub(super) fn points() -> Result<&'static [Point], Damaged> {
    POINTS.as_deref().map_err(|damaged| *damaged)
}

/// Why 48 bytes are no commitment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPoint {
    /// They spell no point of the curve.
    NotOnCurve,
    /// The point lies outside G1, the subgroup of order r.
    NotInSubgroup,
}

/// The point that `bytes` spell; none for the point at infinity, which adds nothing to a sum and which [`sum`] must not be
/// given.
pub(super) fn point(bytes: &[u8; 48]) -> Result<Option<Point>, NoPoint> {
    let point = Point::uncompress(bytes).map_err(|error| match error {
        // (0, ±2) is on the curve, in no subgroup of ours, and blst says so without being asked.
        BLST_ERROR::BLST_POINT_NOT_IN_GROUP => NoPoint::NotInSubgroup,
        _ => NoPoint::NotOnCurve,
    })?;
    match point.validate() {
        Ok(()) => Ok(Some(point)),
        Err(BLST_ERROR::BLST_PK_IS_INFINITY) => Ok(None),
        Err(_) => Err(NoPoint::NotInSubgroup),
    }
}

/// Σ scalarᵢ × pointᵢ, compressed. Points of G1 other than infinity, scalars below
/// 2^255; what is longer of the two is left out at its end.
///
/// Pippenger's algorithm. Its cost grows with the number of points and with the scalars' length, so zeros at the end and
/// the bytes that are zero in every scalar are left out: the elements of a blob hold 31 bytes, and most blobs are not
/// full. It takes longer for some scalars than for others, which tells nobody anything: blobs are public.
pub(super) fn sum(points: &[Point], scalars: &[Scalar]) -> [u8; 48] {
    let used = scalars.iter().rposition(|scalar| *scalar != [0; 4]).map_or(0, |last| last.saturating_add(1));
    let used = used.min(points.len());
    let (Some(points), Some(scalars)) = (points.get(..used), scalars.get(..used)) else { return INFINITY };
    let all = scalars.iter().fold([0; 4], |all, scalar| {
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (all, *scalar);
        [a0 | b0, a1 | b1, a2 | b2, a3 | b3]
    });
    let Some(bytes) = spelt(&all).iter().rposition(|byte| *byte != 0).map(|last| last.saturating_add(1)) else {
        return INFINITY;
    };
    let mut spelling = Vec::with_capacity(used.saturating_mul(bytes));
    for scalar in scalars {
        spelling.extend(spelt(scalar).into_iter().take(bytes));
    }
    // No scalar has more bits than r.
    let bits = bytes.saturating_mul(8).min(255);
    let sum: Sum = points.mult(&spelling, bits);
    sum.to_public_key().compress()
}

/// The bytes of `scalar`, lowest first.
fn spelt(scalar: &Scalar) -> [u8; 32] {
    let mut bytes = [0; 32];
    let (places, _) = bytes.as_chunks_mut::<8>();
    for (place, limb) in places.iter_mut().zip(scalar) {
        *place = limb.to_le_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use c_kzg::ethereum_kzg_settings;
    use proptest::prelude::*;

    use super::*;
    use crate::codec::blob::{self, BlobError};
    use crate::codec::field::MODULUS;
    use crate::codec::testing;
    use crate::types::Blob;

    /// What c-kzg says.
    fn reference(bytes: &[u8]) -> Option<[u8; 48]> {
        let blob = c_kzg::Blob::from_bytes(bytes).unwrap();
        let commitment = ethereum_kzg_settings(0).blob_to_kzg_commitment(&blob).ok()?;
        Some(commitment.to_bytes().into_inner())
    }

    fn ours(bytes: &[u8]) -> Option<[u8; 48]> {
        match blob::commitment(&Blob::new(bytes.to_vec()).unwrap()) {
            Ok(commitment) => Some(commitment),
            Err(error) => {
                assert_eq!(error, BlobError::NotCanonical);
                None
            }
        }
    }

    /// A blob of zeros but for `elements`, highest byte first.
    fn blob_of(elements: impl IntoIterator<Item = (usize, [u8; 32])>) -> Vec<u8> {
        let mut bytes = vec![0; BLOB_BYTES];
        for (place, element) in elements {
            bytes[place * 32..][..32].copy_from_slice(&element);
        }
        bytes
    }

    /// r − 1, highest byte first.
    fn largest() -> [u8; 32] {
        let mut bytes = spelt(&MODULUS);
        bytes.reverse();
        bytes[31] -= 1;
        bytes
    }

    fn one() -> [u8; 32] {
        std::array::from_fn(|place| u8::from(place == 31))
    }

    /// Bytes that look random.
    fn noise(seed: u64) -> impl Iterator<Item = u8> {
        (0_u64..).flat_map(move |n| crate::types::keccak(&[seed.to_be_bytes(), n.to_be_bytes()].concat()).0)
    }

    /// A full blob of elements that look random in all their bits but the highest one or two.
    fn random(seed: u64) -> Vec<u8> {
        let mut bytes: Vec<u8> = noise(seed).take(BLOB_BYTES).collect();
        bytes.iter_mut().step_by(32).for_each(|high| *high &= 0x3f);
        bytes
    }

    /// c-kzg does not show its points, but the commitment of a blob whose only element is a one is the point of that
    /// element. All 4096 of them take half a minute, so that only some are asked for one by one. The others
    /// follow from blobs with random elements: if a point were another one of G1, two commitments would still be the same
    /// with a chance of 1 / r. That each is in G1 is checked first.
    ///
    /// With `MORPH_WRITE_POINTS=1` all of them are asked for, and the file is written; its digest then goes into
    /// [`POINTS_DIGEST`].
    #[test]
    fn every_point_is_that_of_c_kzg() {
        if std::env::var_os("MORPH_WRITE_POINTS").is_some() {
            let asked = |place| reference(&blob_of([(place, one())])).unwrap();
            let file: Vec<u8> =
                (0..FIELD_ELEMENTS).flat_map(|place| point(&asked(place)).unwrap().unwrap().serialize()).collect();
            println!("POINTS_DIGEST: {}", const_hex::encode(Sha256::digest(&file)));
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/codec/points.bin"), file).unwrap();
            return;
        }
        let points = points().unwrap();
        assert_eq!(points.len(), FIELD_ELEMENTS);
        assert!(points.iter().all(|point| point.validate().is_ok()));
        for place in (0..64).chain([1023, 1024, 2047, 2048, 4094, 4095]) {
            assert_eq!(Some(points[place].compress()), reference(&blob_of([(place, one())])), "point {place}");
        }
        for seed in 0..4 {
            let bytes = random(seed);
            assert_eq!(ours(&bytes), reference(&bytes), "seed {seed}");
        }
    }

    #[test]
    fn p7_points_that_were_altered_are_not_used() {
        let mut file = POINTS_FILE.to_vec();
        assert_eq!(read_points(&file).unwrap().len(), FIELD_ELEMENTS);
        file[100_000] ^= 1;
        assert_eq!(read_points(&file).unwrap_err(), Damaged);
        assert_eq!(read_points(&file[..96]).unwrap_err(), Damaged);
        assert_eq!(read_points(&[]).unwrap_err(), Damaged);
    }

    #[test]
    fn commitments_are_those_of_c_kzg_at_the_edges() {
        let data = std::array::from_fn(|place| if place == 0 { 0 } else { 0xff });
        let all = |element: [u8; 32]| (0..FIELD_ELEMENTS).map(move |place| (place, element));
        let mut table = vec![
            ("zeros".to_owned(), blob_of([])),
            ("ones".to_owned(), blob_of(all(one()))),
            ("all data bytes 0xff".to_owned(), blob_of(all(data))),
            ("r − 1 everywhere".to_owned(), blob_of(all(largest()))),
            ("r − 1 first".to_owned(), blob_of([(0, largest())])),
            ("r − 1 last".to_owned(), blob_of([(4095, largest())])),
            ("first and last".to_owned(), blob_of([(0, data), (4095, one())])),
            ("every 97th".to_owned(), blob_of((0..FIELD_ELEMENTS).step_by(97).map(|place| (place, data)))),
        ];
        // Around the numbers of points at which blst changes its way, in scalars of any length.
        for (used, length) in [
            (1, 1),
            (1, 32),
            (2, 1),
            (2, 31),
            (3, 2),
            (31, 1),
            (31, 16),
            (31, 32),
            (32, 1),
            (32, 8),
            (33, 31),
            (100, 3),
        ] {
            let mut bytes: Vec<u8> = random(7).into_iter().take(used * 32).collect();
            bytes.chunks_mut(32).for_each(|element| element[..32 - length].fill(0));
            bytes.resize(BLOB_BYTES, 0);
            table.push((format!("{used} elements of {length} bytes"), bytes));
        }
        for (what, bytes) in table {
            assert_eq!(ours(&bytes), reference(&bytes), "{what}");
        }
    }

    #[test]
    fn f1_elements_that_are_not_canonical_are_refused_as_c_kzg_refuses_them() {
        let mut modulus = largest();
        modulus[31] += 1;
        for (element, taken) in [(largest(), true), (modulus, false), ([0xff; 32], false)] {
            for place in [0, 1, 4095] {
                let bytes = blob_of([(place, element)]);
                assert_eq!(ours(&bytes), reference(&bytes));
                assert_eq!(ours(&bytes).is_some(), taken, "at {place}");
            }
        }
    }

    #[test]
    fn commitments_of_real_blobs_are_those_of_c_kzg() {
        let mut seen = 0;
        for batch in ["batch-54334", "batch-55157", "mainnet-47561"] {
            for file in std::fs::read_dir(testing::vectors().join("blobs").join(batch)).unwrap() {
                let bytes = testing::unhex(&std::fs::read_to_string(file.unwrap().path()).unwrap());
                assert_eq!(ours(&bytes), reference(&bytes), "{batch}");
                seen += 1;
            }
        }
        assert_eq!(seen, 4);
    }

    #[test]
    fn sums_come_to_infinity_and_to_doubles() {
        let points = points().unwrap();
        let minus_one = [MODULUS[0] - 1, MODULUS[1], MODULUS[2], MODULUS[3]];
        let (one, two) = ([1, 0, 0, 0], [2, 0, 0, 0]);
        for copies in [2, 16, 40] {
            let equal = vec![points[5]; copies];
            let mut scalars = vec![one; copies];
            let expected = sum(&[points[5]], &[[copies as u64, 0, 0, 0]]);
            assert_eq!(sum(&equal, &scalars), expected, "{copies}");
            scalars[0] = [MODULUS[0] - (copies as u64 - 1), MODULUS[1], MODULUS[2], MODULUS[3]];
            assert_eq!(sum(&equal, &scalars), INFINITY, "{copies}");
        }
        assert_eq!(sum(&[points[5], points[5], points[6]], &[minus_one, one, two]), sum(&[points[6]], &[two]));
        assert_eq!(sum(&[], &[]), INFINITY);
        assert_eq!(sum(points, &[]), INFINITY);
        assert_eq!(sum(&[], &[one]), INFINITY);
        assert_eq!(sum(points, &[[0; 4]; 9]), INFINITY);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn commitments_are_those_of_c_kzg(
            seed in any::<u64>(), used in 0..=FIELD_ELEMENTS, length in 1_usize..=32, holes in 1_usize..50,
        ) {
            let mut bytes = random(seed);
            for (place, element) in bytes.chunks_mut(32).enumerate() {
                element[..32 - length].fill(0);
                if place >= used || place % holes == holes - 1 && holes > 1 {
                    element.fill(0);
                }
            }
            prop_assert_eq!(ours(&bytes), reference(&bytes));
        }
    }
}
