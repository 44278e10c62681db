//! Payloads to compress: generated, the same in every run. Shared with `benches/codec.rs`.

/// A small generator of numbers (splitmix64), so that payloads depend on nothing but their seed.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// At least `low`, at most `high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + usize::try_from(self.next() % (high - low + 1) as u64).unwrap()
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.between(1, n) == 1
    }

    pub fn noise(&mut self, bytes: usize) -> Vec<u8> {
        let mut noise = Vec::with_capacity(bytes + 8);
        while noise.len() < bytes {
            noise.extend_from_slice(&self.next().to_le_bytes());
        }
        noise.truncate(bytes);
        noise
    }
}

/// `blocks` block contexts of 60 bytes; `transactions` in each.
fn contexts(numbers: &mut Numbers, blocks: usize, transactions: u16) -> Vec<u8> {
    let mut payload = Vec::with_capacity(blocks * 60);
    let number = numbers.next() % 40_000_000;
    let mut time = 1_700_000_000 + numbers.next() % 100_000_000;
    let mut base_fee = numbers.next() % 1_000_000_000;
    let (steady_time, steady_fee) = (numbers.one_in(2), numbers.one_in(2));
    for number in number..number + blocks as u64 {
        payload.extend_from_slice(&number.to_be_bytes());
        payload.extend_from_slice(&time.to_be_bytes());
        payload.extend_from_slice(&[0; 24]);
        payload.extend_from_slice(&base_fee.to_be_bytes());
        payload.extend_from_slice(&30_000_000u64.to_be_bytes());
        payload.extend_from_slice(&transactions.to_be_bytes());
        payload.extend_from_slice(&[0; 2]);
        time += if steady_time { 3 } else { numbers.next() % 5 };
        if !steady_fee {
            base_fee = base_fee + numbers.next() % 1000 - (numbers.next() % 1000).min(base_fee);
        }
    }
    payload
}

/// Contexts of empty blocks.
pub fn empty_blocks(seed: u64, blocks: usize) -> Vec<u8> {
    contexts(&mut Numbers::new(seed), blocks, 0)
}

/// Contexts, then what looks like transactions: a few senders, contracts and selectors over and over, amounts with
/// leading zeros, signatures of noise; about `bytes` long.
pub fn transactions(seed: u64, bytes: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    let blocks = numbers.between(1, 1 + bytes / 400);
    let mut payload = contexts(&mut numbers, blocks, 1);
    let contracts: Vec<_> = (0..numbers.between(1, 30)).map(|_| numbers.noise(20)).collect();
    let selectors: Vec<_> = (0..numbers.between(1, 12)).map(|_| numbers.noise(4)).collect();
    while payload.len() < bytes {
        payload.extend_from_slice(&[0x02, 0xf8, 0xb1, 0x82, 0x0b, 0x02]);
        let nonce = numbers.between(1, 5000) as u16;
        payload.extend_from_slice(&nonce.to_be_bytes());
        payload.extend_from_slice(&[0x83, 0x0f, 0x42, 0x40, 0x94]);
        let contract = numbers.between(0, contracts.len() - 1);
        payload.extend_from_slice(&contracts[contract]);
        let selector = numbers.between(0, selectors.len() - 1);
        payload.extend_from_slice(&selectors[selector]);
        for _ in 0..numbers.between(0, 6) {
            let significant = numbers.between(0, 20);
            payload.resize(payload.len() + 32 - significant, 0);
            payload.extend_from_slice(&numbers.noise(significant));
        }
        payload.extend_from_slice(&numbers.noise(65));
    }
    payload
}

/// Noise in which now and then something from further back comes again: one in `every` bytes begins a repeat of up to
/// `longest`. With rare and short repeats a block comes out near its own size.
pub fn repeats(seed: u64, bytes: usize, every: usize, longest: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    let mut payload = numbers.noise(bytes.min(32));
    while payload.len() < bytes {
        let fresh = numbers.between(1, 2 * every).min(bytes - payload.len());
        let noise = numbers.noise(fresh);
        payload.extend_from_slice(&noise);
        let length = numbers.between(4, longest.max(4));
        let back = numbers.between(1, payload.len().min(100_000));
        for _ in 0..length {
            if payload.len() < bytes {
                payload.push(payload[payload.len() - back]);
            }
        }
    }
    payload
}

/// Stretches of one byte each, some of noise between.
pub fn runs(seed: u64, bytes: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    let longest = numbers.between(2, 40_000);
    let mut payload = Vec::with_capacity(bytes);
    while payload.len() < bytes {
        let length = numbers.between(1, longest).min(bytes - payload.len());
        if numbers.one_in(4) {
            let noise = numbers.noise(length.min(200));
            payload.extend_from_slice(&noise);
            continue;
        }
        let byte = if numbers.one_in(2) { 0 } else { numbers.next().to_le_bytes()[0] };
        payload.resize(payload.len() + length, byte);
    }
    payload
}

/// Words of a small language.
pub fn words(seed: u64, bytes: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    let language: Vec<_> = (0..numbers.between(2, 60))
        .map(|_| {
            let length = numbers.between(1, 24);
            numbers.noise(length)
        })
        .collect();
    let mut payload = Vec::with_capacity(bytes);
    while payload.len() < bytes {
        let word = numbers.between(0, language.len() - 1);
        payload.extend_from_slice(&language[word]);
        if numbers.one_in(3) {
            payload.push(numbers.next().to_le_bytes()[0]);
        }
    }
    payload.truncate(bytes);
    payload
}
