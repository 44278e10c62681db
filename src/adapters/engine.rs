//! The L2 node's engine: writing blocks and setting tags, with a JWT.
//!
//! Decided here: how a block is put on the wire, how many go into one request, that a reply is a header whose own fields
//! give its hash, and how far a write came. Not decided here: what a block must be (the node checks next to nothing of it,
//! protocol.md, section 7, so the caller has checked it before), and whether a header is that of the block that was sent
//! (`decide/reconcile.rs`).
//!
//! Nothing is repeated: an engine error means a block that was not taken and stays so, and after a lost connection
//! only the node's head shows how far it came. The secret is read from a file and never created (K1); each request is
//! signed anew, since the node accepts a token for 60 seconds only.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretBox, SecretString};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::l2::{block_call, read_header};
use super::rpc::{Call, Json, Pool, PoolConfig, Posted, TokenSource};
use super::wire::{hex_bytes, hex_hash, hex_quantity};
use crate::codec::block;
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::{EngineView, L2Engine, PortResult, WriteStopped};
use crate::types::{B256, L2Header, L2Number, NewBlock, keccak};

/// Longest secret file that is read: 64 digits, `0x`, and room for blanks.
const SECRET_FILE_MAX: u64 = 1024;

/// Why a secret file was not accepted. The file is never touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// There is no such file.
    #[error("JWT secret {path}: no such file (it is never created here; give the node's own)")]
    Missing {
        /// As configured.
        path: PathBuf,
    },
    /// It exists and cannot be read.
    #[error("JWT secret {path}: cannot be read: {cause}")]
    Unreadable {
        /// As configured.
        path: PathBuf,
        /// The system's error text.
        cause: ErrorKind,
    },
    /// Its content is not 32 bytes in hex.
    #[error("JWT secret {path}: is not 32 bytes in hex (64 digits, 0x optional)")]
    Format {
        /// As configured.
        path: PathBuf,
    },
    /// Its group or others can read or write it.
    #[error("JWT secret {path}: permissions {mode:03o} are too open; run chmod 600")]
    TooOpen {
        /// As configured.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
    },
}

/// The 32 bytes shared with the node. Wiped when dropped; its `Debug` shows nothing of it.
#[derive(Debug)]
pub struct JwtSecret(SecretBox<[u8; 32]>);

impl JwtSecret {
    /// From bytes that are already at hand (tests, the devnet).
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(SecretBox::new(Box::new(bytes)))
    }

    /// A token issued at `issued_at`, in seconds since the Unix epoch: HS256, claim `iat`.
    pub fn sign(&self, issued_at: u64) -> PortResult<SecretString> {
        #[derive(Serialize)]
        struct Claims {
            iat: u64,
        }
        let key = EncodingKey::from_secret(self.0.expose_secret());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &Claims { iat: issued_at }, &key)
            .map(SecretString::from)
            .map_err(|_| PortError::new(Target::Engine, PortErrorKind::Unauthorized, "the token cannot be signed"))
    }
}

impl TokenSource for JwtSecret {
    fn token(&self) -> PortResult<SecretString> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.sign(now)
    }
}

/// Reads the secret from `path`: 64 hex digits, `0x` and surrounding blanks allowed, no permission for group and
/// others. A symbolic link is followed, and its target's permissions count.
pub fn load_jwt_secret(path: &Path) -> Result<JwtSecret, JwtError> {
    let owned = || path.to_path_buf();
    let io = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => JwtError::Missing { path: owned() },
        cause => JwtError::Unreadable { path: owned(), cause },
    };
    let about = std::fs::metadata(path).map_err(io)?;
    if about.is_dir() {
        return Err(JwtError::Unreadable { path: owned(), cause: ErrorKind::IsADirectory });
    }
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(JwtError::TooOpen { path: owned(), mode });
    }
    if about.len() > SECRET_FILE_MAX {
        return Err(JwtError::Format { path: owned() });
    }
    let content = Zeroizing::new(std::fs::read(path).map_err(io)?);
    let blanks = content.trim_ascii();
    let digits = blanks.strip_prefix(b"0x").or_else(|| blanks.strip_prefix(b"0X")).unwrap_or(blanks);
    let mut secret = Zeroizing::new([0_u8; 32]);
    if digits.len() != 64 || const_hex::decode_to_slice(digits, secret.as_mut_slice()).is_err() {
        return Err(JwtError::Format { path: owned() });
    }
    Ok(JwtSecret::new(*secret))
}

/// The engine over HTTP.
#[derive(Clone, Debug)]
pub struct EngineClient {
    pool: Pool,
    /// The configured hash of block 0, which a node that states it is not asked to prove.
    genesis: Option<B256>,
}

impl EngineClient {
    /// The engine at `url`, signed with `secret`. `config.check` is not used: ask [`EngineClient::chain_id`].
    pub fn new(url: &str, secret: JwtSecret, config: PoolConfig) -> PortResult<Self> {
        let pool = Pool::with_bearer(Target::Engine, &[url.to_owned()], config, Arc::new(secret))?;
        Ok(Self { pool, genesis: None })
    }

    /// Takes a block 0 with this hash at its word.
    #[must_use]
    pub const fn with_genesis(mut self, hash: Option<B256>) -> Self {
        self.genesis = hash;
        self
    }

    /// HTTP requests sent so far, and the endpoint's figures.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// `eth_chainId`; also the way to try the token.
    pub async fn chain_id(&self) -> PortResult<u64> {
        let answer = self.pool.call_on(0, Call::new("eth_chainId", json!([]))).await.map_err(name_clock_skew)?;
        answer.quantity()
    }

    /// The replies to the first of `calls`: to as many as the node takes in one request. A request that it refuses for its
    /// size wrote nothing, and a smaller one is sent in its place.
    async fn post_what_fits(&self, calls: &[Call]) -> PortResult<Vec<PortResult<Json>>> {
        let mut take = self.pool.batch_limit(0).min(calls.len());
        loop {
            match self.pool.post_on(0, calls.get(..take).unwrap_or(calls)).await {
                Ok(Posted::Replies(replies)) => return Ok(replies),
                Ok(Posted::TooLarge(_)) => take = self.pool.learn_batch_limit(0, take),
                Err(error) => return Err(name_clock_skew(error)),
            }
        }
    }
}

#[async_trait]
impl L2Engine for EngineClient {
    async fn view(&self, number: L2Number) -> PortResult<EngineView> {
        let calls = [
            Call::new("eth_chainId", json!([])),
            block_call("latest", false),
            block_call(&hex_quantity(number.get()), false),
            Call::new("web3_clientVersion", json!([])),
        ];
        let replies = self.pool.batch_on(0, &calls).await.map_err(name_clock_skew)?;
        let Ok([chain_id, latest, at, version]) = <[PortResult<Json>; 4]>::try_from(replies) else {
            return Err(PortError::malformed(Target::Engine, "the engine's view: not four replies"));
        };
        let chain_id = chain_id?.quantity()?;
        let head = read_header(latest, self.genesis)?
            .ok_or_else(|| PortError::new(Target::Engine, PortErrorKind::NotFound, "the engine has no latest block"))?;
        let at = read_header(at, self.genesis)?;
        if let Some(other) = at.filter(|header| header.number != number) {
            let detail = format!("asked for block {number}, got block {}", other.number);
            return Err(PortError::malformed(Target::Engine, detail));
        }
        // Only whether it changes matters: what a node says of itself is not kept.
        let version = version.ok().and_then(|json| json.parse::<String>().ok()).map(|text| keccak(text.as_bytes()));
        Ok(EngineView { chain_id, head: head.l2_ref(), at: at.map(|header| header.l2_ref()), version })
    }

    async fn write_blocks(&self, blocks: &[NewBlock]) -> Result<Vec<L2Header>, WriteStopped> {
        let calls: Vec<Call> = blocks.iter().map(new_block_call).collect();
        let mut written = Vec::new();
        let replies = match self.post_what_fits(&calls).await {
            Ok(replies) => replies,
            Err(error) => return Err(WriteStopped { written, error }),
        };
        for reply in replies {
            match reply.and_then(|json| read_new_header(&json)) {
                Ok(header) => written.push(header),
                Err(error) => return Err(WriteStopped { written, error }),
            }
        }
        Ok(written)
    }

    async fn set_tags(&self, safe: Option<B256>, finalized: Option<B256>) -> PortResult<()> {
        let tag = |hash: Option<B256>| hex_hash(&hash.unwrap_or_default());
        let call = Call::new("engine_setBlockTags", json!([tag(safe), tag(finalized)]));
        self.pool.call_on(0, call).await.map(drop).map_err(name_clock_skew)
    }
}

fn new_block_call(block: &NewBlock) -> Call {
    let mut fields = Map::new();
    fields.insert("number".into(), json!(hex_quantity(block.number.get())));
    fields.insert("gasLimit".into(), json!(hex_quantity(block.gas_limit)));
    // Also where it is zero: absent it is no zero to either client. Morph's go-ethereum makes a header without a base fee
    // of it, which no block of a Morph chain has, and morph-reth one of its own default fee.
    fields.insert("baseFeePerGas".into(), json!(hex_quantity(block.base_fee)));
    fields.insert("timestamp".into(), json!(hex_quantity(block.timestamp)));
    let transactions: Vec<String> = block.transactions.iter().map(|raw| hex_bytes(raw)).collect();
    fields.insert("transactions".into(), json!(transactions));
    if let Some(parent) = &block.parent_hash {
        fields.insert("parentHash".into(), json!(hex_hash(parent)));
    }
    Call::new("engine_newSafeL2Block", json!([Value::Object(fields)]))
}

/// The header that came back, with the hash that its fields give.
fn read_new_header(json: &Json) -> PortResult<L2Header> {
    let value = json.tree()?;
    block::written_header_from_json(&value).map_err(|error| json.malformed(error))
}

/// The node says in plain text why it refused a token; two of its reasons are a clock that is wrong.
pub(super) fn name_clock_skew(mut error: PortError) -> PortError {
    if error.kind != PortErrorKind::Unauthorized {
        return error;
    }
    let says = |part: &str| error.detail.contains(part);
    if says("stale token") || says("future token") || says("issued-at") || says("within ±60 seconds") {
        error.detail.push_str(" (clock skew: this machine's clock and the node's differ by more than 60 s)");
    } else if error.detail.contains("signature is invalid") {
        error.detail.push_str(" (the JWT secret is not the node's)");
    }
    error
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::adapters::testing::{Answer, config, http, reply, rpc};
    use crate::codec::testing::vectors;
    use crate::types::U256;

    fn engine(url: &str) -> EngineClient {
        EngineClient::new(url, JwtSecret::new([7; 32]), config()).unwrap()
    }

    fn secret_file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jwt.hex");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    #[test]
    fn k1_a_secret_is_never_made_and_each_failure_has_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let typo = folder.path().join("jwt.hx");
        assert_eq!(load_jwt_secret(&typo).unwrap_err(), JwtError::Missing { path: typo.clone() });
        assert!(!typo.exists(), "nothing was written");
        let unreadable = load_jwt_secret(folder.path()).unwrap_err();
        assert!(matches!(unreadable, JwtError::Unreadable { .. }), "{unreadable}");
        let good = "11".repeat(32);
        let (_folder, path) = secret_file(good.as_bytes(), 0o600);
        load_jwt_secret(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), good, "untouched");
    }

    #[test]
    fn k2_length_format_and_mode_are_checked() {
        let digits = "ab".repeat(32);
        let table: [(String, u32, &str); 10] = [
            (digits.clone(), 0o600, "ok"),
            (format!("0x{digits}\n"), 0o400, "ok"),
            ("ab".repeat(31), 0o600, "format"),
            ("ab".repeat(33), 0o600, "format"),
            (String::new(), 0o600, "format"),
            ("zz".repeat(32), 0o600, "format"),
            (" ".repeat(5000), 0o600, "format"),
            (digits.clone(), 0o640, "open"),
            (digits.clone(), 0o604, "open"),
            (digits.clone(), 0o622, "open"),
        ];
        for (content, mode, expected) in table {
            let (_folder, path) = secret_file(content.as_bytes(), mode);
            let got = match load_jwt_secret(&path) {
                Ok(_) => "ok",
                Err(JwtError::Format { .. }) => "format",
                Err(JwtError::TooOpen { .. }) => "open",
                Err(other) => panic!("{other}"),
            };
            assert_eq!(got, expected, "{content:?} {mode:o}");
        }
        let (folder, path) = secret_file(digits.as_bytes(), 0o644);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(load_jwt_secret(&link), Err(JwtError::TooOpen { mode: 0o644, .. })));
    }

    #[test]
    fn k2_debug_shows_nothing() {
        let secret = JwtSecret::new([0xab; 32]);
        let shown = format!("{secret:?} {:?}", engine("http://127.0.0.1:1"));
        assert!(!shown.contains("ab, ab") && !shown.contains("171") && !shown.contains("abab"), "{shown}");
    }

    #[tokio::test]
    async fn k3_every_request_is_signed_anew() {
        let server = rpc(|_, _| Ok(json!("0xcf55"))).await;
        let engine = engine(&server.url);
        engine.chain_id().await.unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        engine.chain_id().await.unwrap();
        let mut issued = Vec::new();
        for hit in server.hits() {
            let header = hit.authorization.unwrap();
            let token = header.strip_prefix("Bearer ").unwrap();
            let key = jsonwebtoken::DecodingKey::from_secret(&[7; 32]);
            let mut rules = jsonwebtoken::Validation::new(Algorithm::HS256);
            rules.required_spec_claims.clear();
            rules.validate_exp = false;
            let claims = jsonwebtoken::decode::<Value>(token, &key, &rules).unwrap().claims;
            issued.push(claims["iat"].as_u64().unwrap());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(issued[1] > issued[0] && now.abs_diff(issued[1]) < 5, "{issued:?}");
    }

    #[tokio::test]
    async fn k3_a_refused_token_names_clock_skew_and_is_not_repeated() {
        for (text, hint) in [
            ("stale token\n", "clock skew"),
            ("future token\n", "clock skew"),
            ("IAT (issued-at) claim is not within ±60 seconds from the current time", "clock skew"),
            ("signature is invalid\n", "not the node's"),
            ("missing token\n", "missing token"),
        ] {
            let server = http(move |_| async move { (401, vec![], text.to_owned()) }).await;
            let engine = engine(&server.url);
            let errors = [
                engine.set_tags(None, None).await.unwrap_err(),
                engine.write_blocks(&[new_block(1, None)]).await.unwrap_err().error,
            ];
            for error in errors {
                assert_eq!(error.kind, PortErrorKind::Unauthorized);
                assert!(error.detail.contains(hint) && !error.detail.contains("eyJ"), "{error}");
            }
            assert_eq!(server.hits().len(), 2);
        }
    }

    fn new_block(number: u64, parent_hash: Option<B256>) -> NewBlock {
        NewBlock {
            number: L2Number::new(number),
            timestamp: 1_763_600_000 + number,
            base_fee: U256::from(1_000_000),
            gas_limit: 30_000_000,
            transactions: vec![Bytes::from_static(&[0x7e, 0xc0])],
            parent_hash,
        }
    }

    /// Headers of the recorded chain, by number.
    fn recorded() -> Vec<Value> {
        let text = std::fs::read(vectors().join("recorded/l2/blocks.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn from_recorded(blocks: &[Value], params: &Value) -> Answer {
        let number = crate::adapters::testing::field_quantity(&params[0], "number").unwrap();
        Ok(blocks[usize::try_from(number).unwrap()].clone())
    }

    #[tokio::test]
    async fn e17_write_blocks_is_one_request() {
        let blocks = recorded();
        let parent = crate::adapters::testing::field_hash(&blocks[10], "parentHash").unwrap();
        let chain = blocks.clone();
        let server = rpc(move |_, params| from_recorded(&chain, params)).await;
        let mut batch: Vec<NewBlock> = (10..20).map(|number| new_block(number, None)).collect();
        batch[0].parent_hash = Some(parent);
        batch[1].base_fee = U256::zero();
        let headers = engine(&server.url).write_blocks(&batch).await.unwrap();
        assert_eq!(headers.len(), 10);
        assert!(headers.windows(2).all(|pair| pair[1].parent_hash == pair[0].hash));
        assert_eq!(server.hits().len(), 1);
        let calls = server.calls();
        assert_eq!(calls[0]["params"][0]["parentHash"], json!(hex_hash(&parent)));
        assert_eq!(calls[0]["params"][0]["transactions"], json!(["0x7ec0"]));
        assert_eq!(calls[1]["params"][0]["baseFeePerGas"], json!("0x0"), "zero, and not absent");
        assert!(calls[1]["params"][0].get("parentHash").is_none());
    }

    #[tokio::test]
    async fn e17_a_header_of_another_block_is_handed_on_for_the_writer_to_judge() {
        let blocks = recorded();
        let other = block::written_header_from_json(&blocks[17]).unwrap();
        let server = rpc(move |_, _| Ok(blocks[17].clone())).await;
        let pinned = NewBlock { parent_hash: Some(B256::repeat_byte(9)), ..new_block(10, None) };
        assert_eq!(engine(&server.url).write_blocks(&[pinned]).await.unwrap(), [other]);
        assert_eq!(server.hits().len(), 1);
    }

    #[tokio::test]
    async fn e17_a_refused_block_stops_the_write_and_says_how_far_it_came() {
        let blocks = recorded();
        let server = rpc(move |_, params| match params[0]["number"].as_str().unwrap() {
            "0xd" | "0xe" => Err((-32000, "could not apply tx 0 [0x12]: nonce too low")),
            _ => from_recorded(&blocks, params),
        })
        .await;
        let batch: Vec<NewBlock> = (10..15).map(|number| new_block(number, None)).collect();
        let stopped = engine(&server.url).write_blocks(&batch).await.unwrap_err();
        assert_eq!(stopped.written.len(), 3);
        assert!(matches!(stopped.error.kind, PortErrorKind::Refused { code: -32000, .. }));
        assert_eq!(server.hits().len(), 1, "permanent: one exchange");
    }

    #[tokio::test]
    async fn e17_a_header_that_is_not_its_own_hash_is_not_taken() {
        let mut blocks = recorded();
        blocks[10]["stateRoot"] = json!(hex_hash(&B256::repeat_byte(3)));
        let server = rpc(move |_, params| from_recorded(&blocks, params)).await;
        let stopped = engine(&server.url).write_blocks(&[new_block(10, None)]).await.unwrap_err();
        assert_eq!(stopped.error.kind, PortErrorKind::Malformed);
    }

    #[tokio::test]
    async fn l1_a_written_header_without_its_hash_is_taken_with_the_one_that_it_has() {
        let mut blocks = recorded();
        let hash_of = |block: &Value| crate::adapters::testing::field_hash(block, "hash").unwrap();
        let expected: Vec<B256> = blocks[10..15].iter().map(hash_of).collect();
        for block in &mut blocks {
            let fields = block.as_object_mut().unwrap();
            fields.remove("hash");
            fields.remove("batchHash");
        }
        let server = rpc(move |_, params| from_recorded(&blocks, params)).await;
        let batch: Vec<NewBlock> = (10..15).map(|number| new_block(number, None)).collect();
        let written = engine(&server.url).write_blocks(&batch).await.unwrap();
        assert_eq!(written.iter().map(|header| header.hash).collect::<Vec<_>>(), expected);
    }

    #[tokio::test]
    async fn j9_a_node_that_takes_smaller_batches_is_asked_in_smaller_ones() {
        let blocks = recorded();
        let server = http(move |hit| {
            let blocks = blocks.clone();
            async move {
                let calls = hit.calls();
                let body = match calls.len() {
                    0..=4 => calls.iter().map(|call| reply(call, from_recorded(&blocks, &call["params"]))).collect(),
                    _ => vec![json!({"id": 1, "error": {"code": -32600, "message": "batch too large"}})],
                };
                (200, vec![], Value::Array(body).to_string())
            }
        })
        .await;
        let batch: Vec<NewBlock> = (10..20).map(|number| new_block(number, None)).collect();
        let engine = engine(&server.url);
        let sizes = || -> Vec<usize> { server.hits().iter().map(|hit| hit.calls().len()).collect() };
        let written = engine.write_blocks(&batch).await.unwrap();
        assert_eq!(written.iter().map(|header| header.number.get()).collect::<Vec<_>>(), [10, 11]);
        assert_eq!(sizes(), [10, 5, 2], "the reply is judged before more is sent");
        let written = engine.write_blocks(&batch[2..]).await.unwrap();
        assert_eq!(written.iter().map(|header| header.number.get()).collect::<Vec<_>>(), [12, 13]);
        assert_eq!(sizes(), [10, 5, 2, 2], "the limit is remembered");
    }

    #[tokio::test]
    async fn m7_the_view_is_one_request_and_every_hash_is_recomputed() {
        let blocks = recorded();
        let serve = |blocks: Vec<Value>, at: usize| {
            rpc(move |method, params| match (method, params[0].as_str()) {
                ("eth_chainId", _) => Ok(json!("0xcf55")),
                (_, Some("latest")) => Ok(blocks[20].clone()),
                (_, Some("0x5")) => Ok(blocks[at].clone()),
                _ => Ok(Value::Null),
            })
        };
        let server = serve(blocks.clone(), 5).await;
        let view = engine(&server.url).view(L2Number::new(5)).await.unwrap();
        let hash_of = |n: usize| crate::adapters::testing::field_hash(&blocks[n], "hash").unwrap();
        assert_eq!((view.chain_id, view.head.number.get(), view.head.hash), (0xcf55, 20, hash_of(20)));
        assert_eq!(view.at.map(|at| (at.number.get(), at.hash)), Some((5, hash_of(5))));
        assert_eq!(server.hits().len(), 1);
        assert_eq!(engine(&server.url).view(L2Number::new(90)).await.unwrap().at, None);
        // Another block than the one that was asked for, and a hash that is not the header's own.
        let other = serve(blocks.clone(), 6).await;
        assert_eq!(engine(&other.url).view(L2Number::new(5)).await.unwrap_err().kind, PortErrorKind::Malformed);
        let mut forged = blocks;
        forged[20]["hash"] = json!(hex_hash(&B256::repeat_byte(9)));
        let forged = serve(forged, 5).await;
        assert_eq!(engine(&forged.url).view(L2Number::new(5)).await.unwrap_err().kind, PortErrorKind::Malformed);
    }

    #[tokio::test]
    async fn l2_a_view_of_block_zero_takes_the_configured_hash() {
        let mut genesis = recorded()[0].clone();
        genesis["baseFeePerGas"] = json!("0x3b9aca00");
        let stated = crate::adapters::testing::field_hash(&genesis, "hash");
        let server = rpc(move |method, _| match method {
            "eth_chainId" => Ok(json!("0xcf55")),
            "web3_clientVersion" => Err((-32601, "Method not found")),
            _ => Ok(genesis.clone()),
        })
        .await;
        let known = engine(&server.url).with_genesis(stated);
        let view = known.view(L2Number::new(0)).await.unwrap();
        assert_eq!((Some(view.head.hash), view.at.map(|at| at.hash), view.version), (stated, stated, None));
        assert_eq!(engine(&server.url).view(L2Number::new(0)).await.unwrap_err().kind, PortErrorKind::Malformed);
    }

    #[tokio::test]
    async fn tags_left_alone_are_sent_as_zero() {
        let server = rpc(|_, _| Ok(Value::Null)).await;
        engine(&server.url).set_tags(Some(B256::repeat_byte(1)), None).await.unwrap();
        let params = &server.calls()[0]["params"];
        assert_eq!(params[1], json!(hex_hash(&B256::zero())));
        assert_eq!(params[0], json!(hex_hash(&B256::repeat_byte(1))));
    }
}
