//! Blocks in lz4's format: long ones are compressed two at a time, and of those that are read the ones that
//! repeat themselves are copied in large pieces. For all others there is [`lz4_flex`], which decompresses
//! them faster than safe code of our own did.
//!
//! Where to look for the next match is known when the one before is: whoever compresses one block waits for
//! memory and comparisons most of the time. Two blocks that have nothing to do with each other, a match of
//! each in turn, fill these gaps.
//!
//! **Invariant:** what is written any reader of lz4 takes. What is read may be anything.

/// Bytes of a block before compression, at most: as far back as a match can lie.
pub const BLOCK_BYTES: usize = 64 << 10;
/// Room for a block after compression, and for what writing it may touch beyond.
pub type Compressed = [u8; BLOCK_BYTES + BLOCK_BYTES / 255 + 64];

/// Entries of a table, as bits of a hash: more find more, and two tables of 32 KiB fit no first cache.
const TABLE_BITS: u32 = 14;
/// Bytes that have to be alike for a match. Four would be allowed and gain one byte, at the price of matches
/// that hide longer ones.
const ALIKE_BYTES: u32 = 5;
/// What is shorter lz4_flex compresses: its table is smaller, so it begins sooner.
const SHORT_BYTES: usize = 4 << 10;
/// Where no more than this is left of a block nothing is looked up, so that all may be read in whole words;
/// lz4 wants the last match to begin 12 bytes before the end.
const TAIL_BYTES: usize = 40;
/// The last bytes of a block are in no match.
const LAST_BYTES: usize = 5;
/// The shortest match, which a token's lower half counts from.
const LEAST_MATCH: usize = 4;
/// Says in either half of a token that bytes with the rest of the length follow.
const LONG: usize = 15;

/// Where bytes were seen last, by their hash.
type Table = [u16; 1 << TABLE_BITS];

/// A block, and some bytes that do not count: so each place that an `u16` can name has sixteen bytes.
type Padded = [u8; BLOCK_BYTES + 64];

/// Gathers bytes into two blocks and compresses them; what it needs is used again.
pub struct Compressor {
    blocks: Box<[Padded; 2]>,
    tables: Box<[Table; 2]>,
}

impl Default for Compressor {
    fn default() -> Self {
        let (blocks, tables) = ([[0; _]; 2], [[0; _]; 2]);
        Self { blocks: Box::new(blocks), tables: Box::new(tables) }
    }
}

impl Compressor {
    /// The bytes of block `i` of two.
    pub fn block(&mut self, i: usize) -> &mut [u8] {
        &mut self.blocks[i][..BLOCK_BYTES]
    }

    /// Compresses so many first bytes of each of the two blocks, into `out`, which is left alone where there
    /// are none; returns how many bytes each takes, which may be more than it had.
    pub fn compress(&mut self, lengths: [usize; 2], out: [&mut Compressed; 2]) -> [usize; 2] {
        let ([x, y], [table_x, table_y]) = (&*self.blocks, &mut *self.tables);
        let ([length_x, length_y], [out_x, out_y]) = (lengths, out);
        let (mut at_x, mut at_y) =
            (Place::begin(length_x, table_x), Place::begin(length_y, table_y));
        while at_x.is_far(length_x) && at_y.is_far(length_y) {
            match_or_pass(x, length_x, table_x, out_x, &mut at_x);
            match_or_pass(y, length_y, table_y, out_y, &mut at_y);
        }
        [
            compress_rest(x, length_x, table_x, out_x, at_x),
            compress_rest(y, length_y, table_y, out_y, at_y),
        ]
    }
}

/// How far a block is compressed.
#[derive(Clone, Copy)]
struct Place {
    /// Up to here the block is written.
    done: usize,
    /// Up to here there is no further match.
    at: usize,
    written: usize,
}

impl Place {
    /// The begin, with nothing in `table`: a 0 may be the first bytes or none, which comparing tells. The end
    /// where the block is short.
    fn begin(length: usize, table: &mut Table) -> Self {
        assert!(length <= BLOCK_BYTES, "a block of {length} bytes");
        if length < SHORT_BYTES {
            return Self { done: 0, at: length, written: 0 };
        }
        table.fill(0);
        Self { done: 0, at: 1, written: 0 }
    }

    /// Whether the end is so far away that a match may begin here.
    #[inline(always)]
    fn is_far(self, length: usize) -> bool {
        self.at + TAIL_BYTES < length
    }
}

fn hash(word: u64) -> usize {
    const PRIME: u64 = 0x9e37_79b1_85eb_ca87;
    ((word << (64 - 8 * ALIKE_BYTES)).wrapping_mul(PRIME) >> (64 - TABLE_BITS)) as usize
}

/// The bytes at `at`, which a block has.
#[inline(always)]
fn bytes<const N: usize>(block: &Padded, at: usize) -> [u8; N] {
    *block[usize::from(at as u16)..].first_chunk().expect("a block is padded")
}

#[inline(always)]
fn word(block: &Padded, at: usize) -> u64 {
    u64::from_le_bytes(bytes(block, at))
}

/// Looks for a match at four places at once. If there is one, writes what was passed over and the match,
/// otherwise passes over them.
#[inline(always)]
fn match_or_pass(
    block: &Padded,
    length: usize,
    table: &mut Table,
    out: &mut Compressed,
    place: &mut Place,
) {
    const ALIKE: u64 = (1 << (8 * ALIKE_BYTES)) - 1;
    let at = place.at;
    let [w0, w1, w2, w3] = [0, 1, 2, 3].map(|i| word(block, at + i));
    let [h0, h1, h2, h3] = [w0, w1, w2, w3].map(hash);
    let [s0, s1, s2, s3] = [h0, h1, h2, h3].map(|hash| usize::from(table[hash]));
    table[h0] = at as u16;
    table[h1] = (at + 1) as u16;
    table[h2] = (at + 2) as u16;
    table[h3] = (at + 3) as u16;
    let differ =
        [word(block, s0) ^ w0, word(block, s1) ^ w1, word(block, s2) ^ w2, word(block, s3) ^ w3];
    let alike = places(differ.map(|differ| differ & ALIKE == 0));
    if alike == 0 {
        // What does not compress is passed over ever faster.
        place.at = at + 4 + (at - place.done) / 128;
        return;
    }
    // Better a long one further on than a short one here.
    let long = places(differ.map(|differ| differ == 0));
    let i = if long != 0 { long } else { alike }.trailing_zeros() as usize;
    let seen = s0 as u64 | (s1 as u64) << 16 | (s2 as u64) << 32 | (s3 as u64) << 48;
    let (begin, seen) = (at + i, usize::from((seen >> (16 * i)) as u16));
    let end = begin + match_length(block, length, begin, seen);
    let (literals, more, back) =
        (begin - place.done, end - begin - LEAST_MATCH, (begin - seen) as u16);
    if literals < LONG && more < LONG {
        let to = &mut out[place.written..place.written + 24];
        to[0] = (literals << 4 | more) as u8;
        to[1..17].copy_from_slice(&bytes::<16>(block, place.done));
        to[1 + literals..3 + literals].copy_from_slice(&back.to_le_bytes());
        place.written += 3 + literals;
    } else {
        place.written = long_sequence(out, place.written, &block[place.done..begin], more, back);
    }
    (place.done, place.at) = (end, end);
    table[hash(word(block, end - 2))] = (end - 2) as u16;
}

/// Of four places a bit for each that is one.
#[inline(always)]
fn places(are: [bool; 4]) -> u32 {
    let [a, b, c, d] = are.map(u32::from);
    a | b << 1 | c << 2 | d << 3
}

/// How many bytes at `begin` and at `seen` are alike, of which [`ALIKE_BYTES`] are known to be.
#[inline(always)]
fn match_length(block: &Padded, length: usize, begin: usize, seen: usize) -> usize {
    let differ = |at: usize| {
        u128::from_le_bytes(bytes(block, begin + at)) ^ u128::from_le_bytes(bytes(block, seen + at))
    };
    let mut at = LEAST_MATCH;
    let first = differ(at);
    if first != 0 {
        return at + first.trailing_zeros() as usize / 8;
    }
    let most = length - LAST_BYTES - begin;
    loop {
        at += 16;
        let differ = differ(at);
        if differ != 0 || at >= most {
            return (at + differ.trailing_zeros() as usize / 8).min(most);
        }
    }
}

/// Writes a sequence, literals and then a match, of which either may be of any length.
#[inline(never)]
fn long_sequence(
    out: &mut Compressed,
    mut written: usize,
    literals: &[u8],
    more: usize,
    back: u16,
) -> usize {
    written = write_literals(out, written, literals, more.min(LONG));
    written = write(out, written, &back.to_le_bytes());
    if more >= LONG { write_length(out, written, more - LONG) } else { written }
}

/// Writes a token, and literals.
fn write_literals(
    out: &mut Compressed,
    mut written: usize,
    literals: &[u8],
    lower: usize,
) -> usize {
    written = write(out, written, &[(literals.len().min(LONG) << 4 | lower) as u8]);
    if literals.len() >= LONG {
        written = write_length(out, written, literals.len() - LONG);
    }
    write(out, written, literals)
}

/// Writes the rest of a length.
fn write_length(out: &mut Compressed, mut written: usize, length: usize) -> usize {
    for _ in 0..length / 255 {
        written = write(out, written, &[255]);
    }
    write(out, written, &[(length % 255) as u8])
}

fn write(out: &mut Compressed, written: usize, bytes: &[u8]) -> usize {
    out[written..written + bytes.len()].copy_from_slice(bytes);
    written + bytes.len()
}

/// Compresses what is left of a block, or all of a short one; returns how many bytes it takes.
fn compress_rest(
    block: &Padded,
    length: usize,
    table: &mut Table,
    out: &mut Compressed,
    mut place: Place,
) -> usize {
    if length == 0 {
        return 0;
    }
    if length < SHORT_BYTES {
        let short = lz4_flex::block::compress_into(&block[..length], out);
        return short.expect("there is room for any block");
    }
    while place.is_far(length) {
        match_or_pass(block, length, table, out, &mut place);
    }
    write_literals(out, place.written, &block[place.done..length], 0)
}

/// A block that becomes so many times as long consists of few sequences, of bytes that repeat themselves.
const REPEATS: usize = 32;

/// Decompresses a block into the begin of `out`, which is as long as it may become; returns how many bytes
/// it has, or `None` where it is damaged or has more.
pub fn decompress(block: &[u8], out: &mut [u8]) -> Option<usize> {
    if block.len() * REPEATS > out.len().min(BLOCK_BYTES) {
        return lz4_flex::block::decompress_into(block, out).ok();
    }
    let (mut rest, mut written) = (block, 0);
    loop {
        let token = usize::from(*rest.split_off_first()?);
        let literals = read_length(token >> 4, &mut rest)?;
        let literals = rest.split_off(..literals)?;
        let to = written + literals.len();
        out.get_mut(written..to)?.copy_from_slice(literals);
        if rest.is_empty() {
            return Some(to);
        }
        let (back, after) = rest.split_first_chunk()?;
        rest = after;
        let seen = to.checked_sub(usize::from(u16::from_le_bytes(*back))).filter(|at| *at < to)?;
        written = to + read_length(token & 15, &mut rest)? + LEAST_MATCH;
        let out = out.get_mut(seen..written)?;
        let mut filled = to - seen;
        while filled < out.len() {
            // What repeats itself is twice as long after each copy.
            let some = filled.min(out.len() - filled);
            out.copy_within(..some, filled);
            filled += some;
        }
    }
}

/// A length of which a token says `half`.
fn read_length(half: usize, rest: &mut &[u8]) -> Option<usize> {
    let mut length = half;
    let mut is_open = half == LONG;
    while is_open {
        let byte = *rest.split_off_first()?;
        length += usize::from(byte);
        is_open = byte == 255;
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that compress more or less, or not at all.
    fn sample(random: &mut fastrand::Rng, length: usize) -> Vec<u8> {
        let words: Vec<Vec<u8>> = (0..random.usize(1..40))
            .map(|_| (0..random.usize(1..30)).map(|_| random.u8(..)).collect())
            .collect();
        let noise = random.u8(..4);
        let mut bytes = Vec::with_capacity(length + 300);
        while bytes.len() < length {
            match random.u8(..4) {
                kind if kind < noise => bytes.push(random.u8(..)),
                3 => bytes.resize(bytes.len() + random.usize(..300), random.u8(..)),
                _ => bytes.extend_from_slice(&words[random.usize(..words.len())]),
            }
        }
        bytes.truncate(length);
        bytes
    }

    fn compress(compressor: &mut Compressor, blocks: [&[u8]; 2]) -> [Vec<u8>; 2] {
        let mut out = vec![[0; _]; 2];
        for (i, block) in blocks.iter().enumerate() {
            compressor.block(i)[..block.len()].copy_from_slice(block);
        }
        let [x, y] = &mut out[..] else { unreachable!() };
        let [length_x, length_y] = compressor.compress(blocks.map(<[u8]>::len), [x, y]);
        [x[..length_x].to_vec(), y[..length_y].to_vec()]
    }

    #[test]
    fn both_blocks_come_back_from_any_reader() {
        let seed = crate::clock::test_seed();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut compressor = Compressor::default();
        for round in 0..200 {
            let blocks = [0, 1].map(|i| {
                let length = match (round + i) % 4 {
                    0 => BLOCK_BYTES,
                    1 => random.usize(..100),
                    _ => random.usize(..=BLOCK_BYTES),
                };
                sample(&mut random, length)
            });
            let compressed = compress(&mut compressor, [&blocks[0], &blocks[1]]);
            for (block, compressed) in blocks.iter().zip(compressed) {
                if block.is_empty() {
                    assert!(compressed.is_empty());
                    continue;
                }
                let theirs = lz4_flex::block::decompress(&compressed, block.len()).ok();
                assert_eq!(theirs.as_ref(), Some(block), "seed {seed}");
                let mut ours = vec![0; block.len()];
                assert_eq!(decompress(&compressed, &mut ours), Some(block.len()), "seed {seed}");
                assert_eq!(ours, *block, "seed {seed}");
                // The format's own rules, which lz4_flex does not ask for: C's decoder does.
                let (tail, sequences) = literals_at_end(&compressed);
                assert!(sequences == 0 || tail >= LAST_BYTES, "seed {seed}: {tail} at the end");
            }
        }
    }

    /// How many literals end a block, and how many matches are before them.
    fn literals_at_end(mut rest: &[u8]) -> (usize, usize) {
        let mut matches = 0;
        loop {
            let token = usize::from(*rest.split_off_first().unwrap());
            let literals = read_length(token >> 4, &mut rest).unwrap();
            rest = &rest[literals..];
            if rest.is_empty() {
                return (literals, matches);
            }
            rest = &rest[2..];
            read_length(token & 15, &mut rest).unwrap();
            matches += 1;
        }
    }

    #[test]
    fn where_there_is_no_block_nothing_is_written() {
        let mut compressor = Compressor::default();
        compressor.block(1).fill(b'x');
        let mut out = vec![[7; _]; 2];
        let [x, y] = &mut out[..] else { unreachable!() };
        let lengths = compressor.compress([0, BLOCK_BYTES], [x, y]);
        assert!(lengths[0] == 0 && lengths[1] > 0);
        assert!(out[0].iter().all(|byte| *byte == 7));
    }

    #[test]
    fn what_repeats_itself_takes_next_to_nothing() {
        let mut compressor = Compressor::default();
        for back in [1, 2, 4, 8, 12, 108] {
            let block: Vec<u8> = (0..BLOCK_BYTES).map(|i| (i % back) as u8).collect();
            let [compressed, _] = compress(&mut compressor, [&block, &[]]);
            assert!(compressed.len() < 450, "{} with {back}", compressed.len());
            let mut out = vec![0; BLOCK_BYTES];
            assert_eq!(decompress(&compressed, &mut out), Some(BLOCK_BYTES));
            assert_eq!(out, block);
            // With less room than it needs, and cut off anywhere.
            assert_eq!(decompress(&compressed, &mut out[1..]), None);
            for end in 0..compressed.len() {
                let found = decompress(&compressed[..end], &mut out);
                assert!(found.is_none_or(|length| length < BLOCK_BYTES));
            }
        }
    }

    #[test]
    fn it_compresses_no_less_than_lz4_flex() {
        let seed = crate::clock::test_seed();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut compressor = Compressor::default();
        let (mut ours, mut theirs) = (0, 0);
        for _ in 0..20 {
            let lines = |random: &mut fastrand::Rng| {
                let mut text = Vec::new();
                while text.len() < BLOCK_BYTES {
                    let (user, amount) = (random.u32(..100_000), random.u32(..10_000));
                    let word = ["express", "returned", "customs", "locker"][random.usize(..4)];
                    let line = format!(r#"{{"user":{user},"amount":{amount},"note":"{word} "}}"#);
                    text.extend_from_slice(line.as_bytes());
                }
                text.truncate(BLOCK_BYTES);
                text
            };
            let blocks = [lines(&mut random), lines(&mut random)];
            ours += compress(&mut compressor, [&blocks[0], &blocks[1]]).concat().len();
            theirs += blocks.iter().map(|b| lz4_flex::block::compress(b).len()).sum::<usize>();
        }
        assert!(ours < theirs, "{ours} and {theirs} bytes, seed {seed}");
    }

    #[test]
    fn damaged_blocks_are_refused_or_something_else() {
        let seed = crate::clock::test_seed();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut compressor = Compressor::default();
        let mut out = vec![0; BLOCK_BYTES];
        for _ in 0..200 {
            let repeated = vec![random.u8(..); BLOCK_BYTES - 50];
            let block = [sample(&mut random, 50), repeated].concat();
            let [mut compressed, _] = compress(&mut compressor, [&block, &[]]);
            for _ in 0..30 {
                let at = random.usize(..compressed.len());
                compressed[at] ^= 1 << random.u8(..8);
                let ours = decompress(&compressed, &mut out);
                let theirs = lz4_flex::block::decompress(&compressed, BLOCK_BYTES).ok();
                if let (Some(ours), Some(theirs)) = (ours, &theirs) {
                    assert_eq!(out[..ours], *theirs, "seed {seed}");
                }
            }
        }
    }
}
