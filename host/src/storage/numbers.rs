//! Columns of numbers that rise by little, as offsets do: their lz4 blocks are written without searching for
//! what is alike.
//!
//! lz4 looks up each place of its input, and of offsets it finds eight bytes back what could have been known.
//! **Invariant:** what is written is a block that any reader of lz4 takes, and shorter than what was given.

/// Numbers below which it does not matter.
const FEW: usize = 64;

/// Compresses a block of whole little-endian numbers of eight bytes into `out`, and returns how many bytes
/// it takes; `None` where one does not rise, for what comes again lz4 makes more of, or does not share its
/// upper half with the one before.
pub fn compress(block: &[u8], out: &mut [u8]) -> Option<usize> {
    let (numbers, []) = block.as_chunks::<8>() else { return None };
    if numbers.len() < FEW {
        return None;
    }
    // A block ends in bytes that are given as they are, and begins with such.
    let (first, rest) = numbers.split_first()?;
    let (rest, last) = rest.split_last_chunk::<2>()?;
    let mut before = u64::from_le_bytes(*first);
    out.get_mut(1..9)?.copy_from_slice(first);
    let mut at = 8;
    for number in rest {
        let number = u64::from_le_bytes(*number);
        let differ = number ^ before;
        if number <= before || differ >= 1 << 32 {
            return None;
        }
        before = number;
        // Its lower bytes as they are, the upper ones from eight bytes back: four bytes are the least that
        // can be taken from there.
        let lower = 8 - differ.leading_zeros() / 8;
        let token = u64::from(lower << 4 | (4 - lower));
        let literals = number & ((1 << (8 * lower)) - 1);
        let back = 8 << (8 * lower + 8);
        let sequence = token | literals << 8 | back;
        out.get_mut(at..at + 8)?.copy_from_slice(&sequence.to_le_bytes());
        at += lower as usize + 3;
    }
    // The first number and the lower bytes of the second are of one sequence, whose token comes first.
    out[0] = out[8] + (8 << 4);
    out[8] = first[7];
    let end = out.get_mut(at..at + 18)?;
    end[..2].copy_from_slice(&[0xf0, 1]);
    end[2..].copy_from_slice(last.as_flattened());
    Some(at + 18)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(numbers: &[u64]) -> Option<usize> {
        let block: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut out = vec![0; lz4_flex::block::get_maximum_output_size(block.len())];
        let length = compress(&block, &mut out)?;
        assert!(length < block.len());
        let back = lz4_flex::block::decompress(&out[..length], block.len()).unwrap();
        assert_eq!(back, block);
        Some(length)
    }

    #[test]
    fn numbers_come_back() {
        for from in [0, 255, 65_000, (1 << 24) - 7, (1 << 31) - 100, u64::MAX - 20_000] {
            for step in [1, 3, 300, 70_000, 1 << 20] {
                let numbers: Vec<u64> = (0..8_192).map(|i| from.wrapping_add(i * step)).collect();
                let length = round(&numbers);
                assert!(step > 1 || length.is_none_or(|length| length < 8_192 * 41 / 10), "{from}");
            }
        }
        assert!(round(&(1_000_000..1_008_192).collect::<Vec<_>>()).is_some());
        for length in FEW as u64..FEW as u64 + 9 {
            assert!(round(&(0..length).collect::<Vec<_>>()).is_some());
        }
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            let (mut number, length) = (random.u64(..), random.usize(FEW..9_000));
            let numbers = std::iter::repeat_with(|| {
                let most = 1 << random.u32(1..32);
                number = number.wrapping_add(random.u64(1..most));
                number
            });
            round(&numbers.take(length).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_something_else_is_left_alone() {
        let equal: Vec<u64> = vec![7; 1_000];
        let again: Vec<u64> = (0..1_000).map(|i| i % 2).collect();
        let jumps: Vec<u64> = (0..1_000).map(|i| i << 33).collect();
        let few: Vec<u64> = (0..FEW as u64 - 1).collect();
        for numbers in [equal, again, jumps, few] {
            assert_eq!(round(&numbers), None);
        }
        assert_eq!(compress(&[b'x'; 1_001], &mut [0; 2_000]), None);
    }
}
