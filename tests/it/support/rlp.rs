//! A small RLP writer, and the few things that it is needed for. Written apart from `codec/`, so that what the codec
//! reads was not made by the codec.

use serde_json::Value;

use super::bytes;

/// One byte string.
pub fn string(data: &[u8]) -> Vec<u8> {
    match data {
        [byte] if *byte < 0x80 => vec![*byte],
        _ => prefixed(0x80, data),
    }
}

/// A list of items that are encoded already.
pub fn list(items: &[Vec<u8>]) -> Vec<u8> {
    prefixed(0xc0, &items.concat())
}

/// An integer: big-endian without leading zeros.
pub fn integer(big_endian: &[u8]) -> Vec<u8> {
    let start = big_endian.iter().position(|byte| *byte != 0).unwrap_or(big_endian.len());
    string(&big_endian[start..])
}

/// A JSON-RPC quantity, however many digits it has.
pub fn quantity(value: &Value) -> Vec<u8> {
    let digits = value.as_str().and_then(|text| text.strip_prefix("0x")).expect("a quantity");
    let even = if digits.len().is_multiple_of(2) { digits.to_owned() } else { format!("0{digits}") };
    integer(&const_hex::decode(even).expect("hex digits"))
}

/// JSON-RPC data.
pub fn data(value: &Value) -> Vec<u8> {
    string(&bytes(value.as_str().expect("data")))
}

fn prefixed(base: u8, content: &[u8]) -> Vec<u8> {
    let mut out = if content.len() <= 55 {
        vec![base + u8::try_from(content.len()).expect("at most 55")]
    } else {
        let length = content.len().to_be_bytes();
        let start = length.iter().position(|byte| *byte != 0).expect("not zero");
        let mut head = vec![base + 55 + u8::try_from(length.len() - start).expect("at most 8")];
        head.extend_from_slice(&length[start..]);
        head
    };
    out.extend_from_slice(content);
    out
}

/// An L2 header's RLP from its JSON. With `morph_fields`, `nextL1MsgIndex` and `batchHash` stand before the base fee,
/// as in `debug_getBlockRlp`; without, its keccak is the block's hash, and `debug_getRawBlock` puts it into another list.
pub fn header(block: &Value, morph_fields: bool) -> Vec<u8> {
    let mut items: Vec<Vec<u8>> =
        ["parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot"]
            .iter()
            .chain(&["logsBloom"])
            .map(|field| data(&block[*field]))
            .collect();
    items.extend(["difficulty", "number", "gasLimit", "gasUsed", "timestamp"].map(|field| quantity(&block[field])));
    items.extend(["extraData", "mixHash", "nonce"].map(|field| data(&block[field])));
    if morph_fields {
        items.push(quantity(&block["nextL1MsgIndex"]));
        items.push(string(&[0; 32]));
    }
    items.push(quantity(&block["baseFeePerGas"]));
    list(&items)
}

/// A block's RLP: header, transactions (typed ones as byte strings), no uncles. The header is flat, as in
/// `debug_getBlockRlp`, or nested, as in `debug_getRawBlock`.
pub fn block(block: &Value, raw_transactions: &[Vec<u8>], flat: bool) -> Vec<u8> {
    let in_block = match flat {
        true => header(block, true),
        false => list(&[quantity(&block["nextL1MsgIndex"]), header(block, false)]),
    };
    let transactions: Vec<Vec<u8>> =
        raw_transactions.iter().map(|raw| if raw[0] >= 0xc0 { raw.clone() } else { string(raw) }).collect();
    list(&[in_block, list(&transactions), list(&[])])
}

/// The binary form of an L1 message from its JSON.
pub fn l1_message(tx: &Value) -> Vec<u8> {
    let body = list(&[
        quantity(&tx["queueIndex"]),
        quantity(&tx["gas"]),
        data(&tx["to"]),
        quantity(&tx["value"]),
        data(&tx["input"]),
        data(&tx["sender"]),
    ]);
    [&[0x7e], body.as_slice()].concat()
}
