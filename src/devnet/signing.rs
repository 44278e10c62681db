//! Transactions as the simulated chains need them: signing of every type, the sender, the JSON that the real node
//! shows, and the real node's words for what it cannot decode. Independent of `codec::transaction`, so that a mistake
//! there does not cancel out here.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use ethers_core::k256::ecdsa::{RecoveryId, Signature, SigningKey, VerifyingKey};
use ethers_core::utils::rlp::{DecoderError, Rlp, RlpStream};
use serde_json::{Map, Value, json};

use super::jsonrpc::{address, big, data, hash, quantity};
use crate::types::{Address, B256, RawTx, U256, keccak, keccak256};

/// A key with its address and the nonce of its next transaction.
#[derive(Clone, Debug)]
pub struct Account {
    key: SigningKey,
    /// The account's address.
    pub address: Address,
    /// Nonce of its next transaction.
    pub nonce: u64,
}

impl Account {
    /// The account whose secret is the keccak of `seed`.
    pub fn from_seed(seed: &[u8]) -> Self {
        let mut secret = keccak256(seed);
        loop {
            // A secret outside the curve's order is as likely as a hash collision; hashing on costs nothing.
            if let Ok(key) = SigningKey::from_slice(&secret) {
                let address = address_of(key.verifying_key());
                return Self { key, address, nonce: 0 };
            }
            secret = keccak256(secret);
        }
    }

    /// `(parity, r, s)` over `digest`; `None` never happens for a valid key.
    fn sign(&self, digest: B256) -> (u64, U256, U256) {
        match self.key.sign_prehash_recoverable(digest.as_bytes()) {
            Ok((signature, id)) => {
                let (r, s) = signature.split_bytes();
                (u64::from(id.is_y_odd()), U256::from_big_endian(&r), U256::from_big_endian(&s))
            }
            Err(_) => (0, U256::one(), U256::one()),
        }
    }
}

fn address_of(key: &VerifyingKey) -> Address {
    let point = key.to_encoded_point(false);
    Address::from_slice(&keccak256(&point.as_bytes()[1..])[12..])
}

/// What every signed transaction carries.
#[derive(Clone, Debug)]
pub struct Body {
    /// Chain id.
    pub chain_id: u64,
    /// Gas limit.
    pub gas: u64,
    /// Called address; none creates a contract.
    pub to: Option<Address>,
    /// Wei.
    pub value: U256,
    /// Calldata.
    pub input: Vec<u8>,
}

/// The signed transaction types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// Legacy with EIP-155.
    Legacy,
    /// 0x01, with one access list entry.
    AccessList,
    /// 0x02.
    DynamicFee,
    /// 0x04, with one authorization.
    SetCode,
    /// 0x7f version 0: fee token and limit.
    MorphV0 {
        /// Not zero.
        fee_token: u16,
    },
    /// 0x7f version 1: fee token, reference, memo.
    MorphV1 {
        /// Any.
        fee_token: u16,
        /// 32 bytes or none.
        reference: Option<B256>,
        /// Up to 64 bytes.
        memo: Vec<u8>,
    },
    /// 0x03, for L1: carries blobs.
    Blob {
        /// Versioned hashes.
        hashes: Vec<B256>,
    },
}

const GAS_PRICE: u64 = 2_000_000_000;
const PRIORITY: u64 = 1_000_000;

fn append_to(stream: &mut RlpStream, to: Option<Address>) {
    match to {
        Some(to) => stream.append(&to),
        None => stream.append_empty_data(),
    };
}

fn append_access_list(stream: &mut RlpStream, entries: &[(Address, Vec<B256>)]) {
    stream.begin_list(entries.len());
    for (address, keys) in entries {
        stream.begin_list(2).append(address).begin_list(keys.len());
        for key in keys {
            stream.append(key);
        }
    }
}

/// Signs one transaction and takes the account's next nonce.
pub fn sign(account: &mut Account, form: &Form, body: &Body) -> RawTx {
    let nonce = account.nonce;
    account.nonce += 1;
    let raw = match form {
        Form::Legacy => sign_legacy(account, nonce, body),
        _ => sign_typed(account, nonce, form, body),
    };
    known_senders().insert(keccak(&raw), account.address);
    raw
}

fn sign_typed(account: &Account, nonce: u64, form: &Form, body: &Body) -> RawTx {
    let (prefix, fields, count) = typed_fields(account, nonce, form, body);
    let preimage = signing_preimage(&prefix, &Rlp::new(&in_list(&fields, count)), count);
    let (parity, r, s) = account.sign(keccak(&preimage));
    let mut signed = RlpStream::new();
    signed.begin_list(count + 3).append_raw(&fields, count).append(&parity).append(&r).append(&s);
    let mut raw = prefix;
    raw.extend_from_slice(&signed.out());
    raw.into()
}

fn sign_legacy(account: &Account, nonce: u64, body: &Body) -> RawTx {
    let fields = |stream: &mut RlpStream| {
        stream.append(&nonce).append(&GAS_PRICE).append(&body.gas);
        append_to(stream, body.to);
        stream.append(&body.value).append(&body.input);
    };
    let mut unsigned = RlpStream::new_list(9);
    fields(&mut unsigned);
    unsigned.append(&body.chain_id).append(&0u8).append(&0u8);
    let (parity, r, s) = account.sign(keccak(&unsigned.out()));
    let mut signed = RlpStream::new_list(9);
    fields(&mut signed);
    signed.append(&(body.chain_id * 2 + 35 + parity)).append(&r).append(&s);
    signed.out().freeze()
}

/// The bytes whose keccak a typed transaction signs: type byte and the list of its unsigned fields. A MorphTx of version
/// 1 signs its version as a list item before the reference, not as the byte after the type (seen: the senders of the
/// recorded transactions come out right this way only).
fn signing_preimage(prefix: &[u8], list: &Rlp<'_>, unsigned: usize) -> Vec<u8> {
    let version = prefix.get(1).copied();
    let mut stream = RlpStream::new_list(unsigned + usize::from(version.is_some()));
    for place in 0..unsigned {
        if let Some(version) = version.filter(|_| place == MORPH_REFERENCE) {
            stream.append(&version);
        }
        if let Ok(item) = list.at(place) {
            stream.append_raw(item.as_raw(), 1);
        }
    }
    let mut preimage: Vec<u8> = prefix.iter().take(1).copied().collect();
    preimage.extend_from_slice(&stream.out());
    preimage
}

/// Place of `reference` in a MorphTx of version 1.
const MORPH_REFERENCE: usize = 11;

fn in_list(fields: &[u8], count: usize) -> Vec<u8> {
    let mut list = RlpStream::new();
    list.begin_list(count).append_raw(fields, count);
    list.out().to_vec()
}

/// The unsigned fields of a typed transaction as raw RLP items, the bytes in front of the list, and the item count.
fn typed_fields(account: &Account, nonce: u64, form: &Form, body: &Body) -> (Vec<u8>, Vec<u8>, usize) {
    let mut stream = RlpStream::new();
    let head = |stream: &mut RlpStream, dynamic: bool| {
        stream.append(&body.chain_id).append(&nonce);
        if dynamic {
            stream.append(&PRIORITY);
        }
        stream.append(&GAS_PRICE).append(&body.gas);
        append_to(stream, body.to);
        stream.append(&body.value).append(&body.input);
    };
    match form {
        Form::Legacy | Form::DynamicFee => {
            stream.begin_list(9);
            head(&mut stream, true);
            append_access_list(&mut stream, &[]);
            (vec![0x02], items(&stream.out()), 9)
        }
        Form::AccessList => {
            stream.begin_list(8);
            head(&mut stream, false);
            let keys = vec![B256::from_low_u64_be(nonce), B256::zero()];
            append_access_list(&mut stream, &[(body.to.unwrap_or_default(), keys)]);
            (vec![0x01], items(&stream.out()), 8)
        }
        Form::SetCode => {
            stream.begin_list(10);
            head(&mut stream, true);
            append_access_list(&mut stream, &[]);
            stream.begin_list(1);
            let delegate = body.to.unwrap_or_default();
            // A nonce that the account will never have: the authorization is part of the bytes, and has no effect.
            let mut tuple = RlpStream::new_list(3);
            tuple.append(&body.chain_id).append(&delegate).append(&(nonce + 100));
            let mut preimage = vec![0x05];
            preimage.extend_from_slice(&tuple.out());
            let (parity, r, s) = account.sign(keccak(&preimage));
            stream.begin_list(6).append(&body.chain_id).append(&delegate).append(&(nonce + 100));
            stream.append(&parity).append(&r).append(&s);
            (vec![0x04], items(&stream.out()), 10)
        }
        Form::MorphV0 { fee_token } => {
            stream.begin_list(11);
            head(&mut stream, true);
            append_access_list(&mut stream, &[]);
            stream.append(fee_token).append(&1_000_000_000_000_000u64);
            (vec![0x7f], items(&stream.out()), 11)
        }
        Form::MorphV1 { fee_token, reference, memo } => {
            stream.begin_list(13);
            head(&mut stream, true);
            append_access_list(&mut stream, &[]);
            let limit = if *fee_token == 0 { 0u64 } else { 1_000_000_000_000_000 };
            stream.append(fee_token).append(&limit);
            match reference {
                Some(reference) => stream.append(reference),
                None => stream.append_empty_data(),
            };
            stream.append(memo);
            (vec![0x7f, 0x01], items(&stream.out()), 13)
        }
        Form::Blob { hashes } => {
            stream.begin_list(11);
            head(&mut stream, true);
            append_access_list(&mut stream, &[]);
            stream.append(&GAS_PRICE).begin_list(hashes.len());
            for hash in hashes {
                stream.append(hash);
            }
            (vec![0x03], items(&stream.out()), 11)
        }
    }
}

/// The content of an RLP list without its own header.
fn items(list: &[u8]) -> Vec<u8> {
    match Rlp::new(list).payload_info() {
        Ok(info) => list[info.header_len..].to_vec(),
        Err(_) => Vec::new(),
    }
}

/// The list of a transaction, and the number of bytes before it.
struct Parsed<'a> {
    kind: u8,
    version: u8,
    prefix: usize,
    list: Rlp<'a>,
}

fn parse(raw: &[u8]) -> Result<Parsed<'_>, String> {
    let unsupported = || "transaction type not supported".to_owned();
    let (kind, version, prefix) = match raw {
        [] => return Err("typed transaction too short".to_owned()),
        [first, ..] if *first >= 0xc0 => (0, 0, 0),
        [0x7f, 0x01, ..] => (0x7f, 1, 2),
        [kind @ (0x01..=0x04 | 0x7e | 0x7f), ..] => (*kind, 0, 1),
        _ => return Err(unsupported()),
    };
    Ok(Parsed { kind, version, prefix, list: Rlp::new(raw.get(prefix..).unwrap_or_default()) })
}

impl Parsed<'_> {
    fn go_name(&self) -> &'static str {
        match self.kind {
            0 => "types.LegacyTx",
            1 => "types.AccessListTx",
            2 => "types.DynamicFeeTx",
            3 => "types.BlobTx",
            4 => "types.SetCodeTx",
            0x7e => "types.L1MessageTx",
            _ => "types.MorphTx",
        }
    }

    const fn fields(&self) -> usize {
        match (self.kind, self.version) {
            (0, _) => 9,
            (1, _) => 11,
            (2, _) => 12,
            (3, _) => 14,
            (4, _) => 13,
            (0x7e, _) => 6,
            (_, 0) => 14,
            _ => 16,
        }
    }

    /// Place of `to` in the list; `value` and `input` follow it.
    const fn to_place(&self) -> usize {
        match self.kind {
            0 => 3,
            1 => 4,
            0x7e => 2,
            _ => 5,
        }
    }

    fn to(&self) -> Option<Address> {
        let bytes: Vec<u8> = self.list.val_at(self.to_place()).ok()?;
        (bytes.len() == 20).then(|| Address::from_slice(&bytes))
    }

    fn number(&self, place: usize) -> U256 {
        self.list.val_at(place).unwrap_or_default()
    }

    fn bytes(&self, place: usize) -> Vec<u8> {
        self.list.val_at(place).unwrap_or_default()
    }
}

/// The real node's words when it cannot decode `raw`.
pub fn decodable(raw: &[u8]) -> Result<(), String> {
    let parsed = parse(raw)?;
    let wrong = |e: DecoderError| match e {
        DecoderError::RlpIsTooShort => "rlp: value size exceeds available input length".to_owned(),
        _ => format!("rlp: expected input list for {}", parsed.go_name()),
    };
    let info = parsed.list.payload_info().map_err(wrong)?;
    if !parsed.list.is_list() {
        return Err(format!("rlp: expected input list for {}", parsed.go_name()));
    }
    if parsed.prefix + info.total() > raw.len() {
        return Err("rlp: value size exceeds available input length".to_owned());
    }
    let count = parsed.list.item_count().map_err(wrong)?;
    if count < parsed.fields() {
        return Err(format!("rlp: too few elements for {}", parsed.go_name()));
    }
    if count > parsed.fields() {
        return Err(format!("rlp: input list has too many elements for {}", parsed.go_name()));
    }
    if parsed.prefix + info.total() < raw.len() {
        return Err("rlp: input contains more than one value".to_owned());
    }
    Ok(())
}

/// Queue index of an L1 message; none for any other transaction.
pub fn queue_index(raw: &[u8]) -> Option<u64> {
    let parsed = parse(raw).ok().filter(|parsed| parsed.kind == 0x7e)?;
    parsed.list.val_at(0).ok()
}

/// Called address and calldata of a decodable transaction.
pub fn call_of(raw: &[u8]) -> Option<(Address, Vec<u8>)> {
    let parsed = parse(raw).ok()?;
    Some((parsed.to()?, parsed.bytes(parsed.to_place() + 2)))
}

/// Nonce of a decodable transaction; zero for an L1 message.
pub fn nonce(raw: &[u8]) -> u64 {
    match parse(raw) {
        Ok(parsed) if parsed.kind == 0x7e => 0,
        Ok(parsed) => parsed.list.val_at(usize::from(parsed.kind != 0)).unwrap_or_default(),
        Err(_) => 0,
    }
}

/// The gas limit; zero for what is no transaction.
pub fn gas_limit(raw: &[u8]) -> u64 {
    parse(raw).map_or(0, |parsed| parsed.number(parsed.to_place() - 1).min(u64::MAX.into()).as_u64())
}

/// The sender: recovered from the signature, or stated by an L1 message.
pub fn sender(raw: &[u8]) -> Option<Address> {
    let parsed = parse(raw).ok()?;
    if parsed.kind == 0x7e {
        return parsed.list.val_at(5).ok();
    }
    let count = parsed.fields();
    let unsigned = count.checked_sub(3)?;
    let v: U256 = parsed.list.val_at(unsigned).ok()?;
    let (parity, preimage) = if parsed.kind == 0 {
        let v = v.low_u64();
        let mut stream = RlpStream::new_list(if v >= 35 { 9 } else { 6 });
        for place in 0..6 {
            stream.append_raw(parsed.list.at(place).ok()?.as_raw(), 1);
        }
        if v >= 35 {
            stream.append(&((v - 35) / 2)).append(&0u8).append(&0u8);
        }
        (if v >= 35 { (v - 35) % 2 } else { v.saturating_sub(27) }, stream.out().to_vec())
    } else {
        (v.low_u64(), signing_preimage(raw.get(..parsed.prefix)?, &parsed.list, unsigned))
    };
    let mut bytes = [0u8; 64];
    parsed.number(count - 2).to_big_endian(&mut bytes[..32]);
    parsed.number(count - 1).to_big_endian(&mut bytes[32..]);
    let signature = Signature::from_slice(&bytes).ok()?;
    let id = RecoveryId::new(parity == 1, false);
    let key = VerifyingKey::recover_from_prehash(keccak(&preimage).as_bytes(), &signature, id).ok()?;
    Some(address_of(&key))
}

/// Senders by transaction: a real node recovers each once, and serving a block must not cost a curve operation each time.
fn known_senders() -> MutexGuard<'static, HashMap<B256, Address>> {
    static KNOWN: LazyLock<Mutex<HashMap<B256, Address>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() > 1_000_000 {
        known.clear();
    }
    known
}

/// The place of a mined transaction.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its block's hash.
    pub block_hash: B256,
    /// Its block's height.
    pub number: u64,
    /// Its block's time.
    pub timestamp: u64,
    /// Its block's base fee.
    pub base_fee: U256,
    /// Its place in the block.
    pub index: u64,
}

fn access_list_json(list: &Rlp<'_>) -> Value {
    list.iter()
        .map(|entry| {
            let keys: Vec<Value> = entry
                .at(1)
                .map(|keys| keys.iter().filter_map(|key| key.as_val().ok()).map(hash).collect())
                .unwrap_or_default();
            json!({ "address": address(entry.val_at(0).unwrap_or_default()), "storageKeys": keys })
        })
        .collect()
}

fn authorization_json(list: &Rlp<'_>) -> Value {
    let number = |entry: &Rlp<'_>, place| big(entry.val_at(place).unwrap_or_default());
    list.iter()
        .map(|entry| {
            json!({
                "chainId": number(&entry, 0), "address": address(entry.val_at(1).unwrap_or_default()),
                "nonce": number(&entry, 2), "yParity": number(&entry, 3), "r": number(&entry, 4), "s": number(&entry, 5),
            })
        })
        .collect()
}

/// The transaction as the real node shows it inside a block (recorded: `l2/blocks.json`).
pub fn to_json(raw: &[u8], place: &Place) -> Value {
    let Ok(parsed) = parse(raw) else { return Value::Null };
    let mut tx = Map::new();
    let mut set = |key: &str, value: Value| {
        tx.insert(key.to_owned(), value);
    };
    let at = parsed.to_place();
    let id = keccak(raw);
    let from = *known_senders().entry(id).or_insert_with(|| sender(raw).unwrap_or_default());
    set("blockHash", hash(place.block_hash));
    set("blockNumber", quantity(place.number));
    set("blockTimestamp", quantity(place.timestamp));
    set("from", address(from));
    set("hash", hash(id));
    set("input", data(&parsed.bytes(at + 2)));
    set("to", parsed.to().map_or(Value::Null, address));
    set("transactionIndex", quantity(place.index));
    set("value", big(parsed.number(at + 1)));
    set("type", quantity(u64::from(parsed.kind)));
    set("gas", big(parsed.number(at - 1)));
    set("nonce", quantity(nonce(raw)));
    if parsed.kind == 0x7e {
        for key in ["gasPrice", "v", "r", "s"] {
            set(key, quantity(0));
        }
        set("sender", address(from));
        set("queueIndex", quantity(queue_index(raw).unwrap_or_default()));
        return Value::Object(tx);
    }
    let count = parsed.fields();
    set("v", big(parsed.number(count - 3)));
    set("r", big(parsed.number(count - 2)));
    set("s", big(parsed.number(count - 1)));
    if parsed.kind == 0 {
        set("gasPrice", big(parsed.number(1)));
        return Value::Object(tx);
    }
    set("chainId", big(parsed.number(0)));
    let list_at = at + 3;
    set("accessList", parsed.list.at(list_at).map_or(json!([]), |list| access_list_json(&list)));
    if parsed.kind == 1 {
        set("gasPrice", big(parsed.number(2)));
        return Value::Object(tx);
    }
    let (priority, max) = (parsed.number(2), parsed.number(3));
    set("maxPriorityFeePerGas", big(priority));
    set("maxFeePerGas", big(max));
    set("gasPrice", big(max.min(place.base_fee.saturating_add(priority))));
    match parsed.kind {
        3 => {
            set("maxFeePerBlobGas", big(parsed.number(list_at + 1)));
            let hashes: Vec<B256> = parsed.list.list_at(list_at + 2).unwrap_or_default();
            set("blobVersionedHashes", hashes.into_iter().map(hash).collect());
            set("yParity", big(parsed.number(count - 3)));
        }
        4 => {
            let list = parsed.list.at(list_at + 1);
            set("authorizationList", list.map_or(json!([]), |list| authorization_json(&list)));
            set("yParity", big(parsed.number(count - 3)));
        }
        0x7f => {
            set("feeTokenID", big(parsed.number(list_at + 1)));
            set("feeLimit", big(parsed.number(list_at + 2)));
            if parsed.version == 1 {
                set("version", quantity(1));
                for (key, place) in [("reference", list_at + 3), ("memo", list_at + 4)] {
                    let bytes = parsed.bytes(place);
                    if !bytes.is_empty() {
                        set(key, data(&bytes));
                    }
                }
            }
        }
        _ => {}
    }
    Value::Object(tx)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> Body {
        Body { chain_id: 53077, gas: 100_000, to: Some(Address::repeat_byte(7)), value: 5u64.into(), input: vec![1, 2] }
    }

    #[test]
    fn every_form_is_signed_by_its_account() {
        let mut account = Account::from_seed(b"a");
        let forms = [
            Form::Legacy,
            Form::AccessList,
            Form::DynamicFee,
            Form::SetCode,
            Form::MorphV0 { fee_token: 3 },
            Form::MorphV1 { fee_token: 0, reference: Some(B256::repeat_byte(9)), memo: b"hello".to_vec() },
            Form::Blob { hashes: vec![B256::repeat_byte(1)] },
        ];
        for (i, form) in forms.iter().enumerate() {
            let raw = sign(&mut account, form, &body());
            assert_eq!(decodable(&raw), Ok(()), "{form:?}");
            assert_eq!(sender(&raw), Some(account.address), "{form:?}");
            assert_eq!(nonce(&raw), i as u64, "{form:?}");
            assert_eq!(call_of(&raw), Some((Address::repeat_byte(7), vec![1, 2])), "{form:?}");
        }
    }

    #[test]
    fn words_of_the_real_node() {
        assert_eq!(decodable(&[0x02, 0xc0]), Err("rlp: too few elements for types.DynamicFeeTx".to_owned()));
        assert_eq!(decodable(&[0x55, 0xc0]), Err("transaction type not supported".to_owned()));
        assert!(decodable(&[]).is_err());
        assert!(decodable(&[0x02]).is_err());
        assert!(decodable(&[0x02, 0xf9, 0xff]).is_err());
    }

    #[test]
    fn json_and_sender_of_every_recorded_transaction() {
        let dir = crate::codec::testing::vectors();
        let text = std::fs::read_to_string(dir.join("recorded/l2/blocks.json")).unwrap();
        let blocks: Vec<Value> = serde_json::from_str(&text).unwrap();
        let raws: std::collections::HashMap<String, String> =
            serde_json::from_str(&std::fs::read_to_string(dir.join("recorded/l2/raw-transactions.json")).unwrap())
                .unwrap();
        for block in &blocks {
            for (i, tx) in block["transactions"].as_array().unwrap().iter().enumerate() {
                let raw = const_hex::decode(&raws[tx["hash"].as_str().unwrap()][2..]).unwrap();
                let place = Place {
                    block_hash: super::super::jsonrpc::parse_hash(&block["hash"]).unwrap(),
                    number: super::super::jsonrpc::parse_quantity(&block["number"]).unwrap(),
                    timestamp: super::super::jsonrpc::parse_quantity(&block["timestamp"]).unwrap(),
                    base_fee: super::super::jsonrpc::parse_big(&block["baseFeePerGas"]).unwrap(),
                    index: i as u64,
                };
                assert_eq!(to_json(&raw, &place), *tx);
                assert_eq!(decodable(&raw), Ok(()));
            }
        }
    }
}
