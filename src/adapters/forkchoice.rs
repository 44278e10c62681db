//! The engine of a standard execution node: head, safe and finalized by `engine_forkchoiceUpdatedV3`.
//!
//! Decided here: how one tag, or the head, is put into a call that always names all three: what is not to change is named
//! as the node shows it at that moment, and a tag that was never set by the zero hash. A zero hash does not leave a tag
//! alone: seen on a real client (`tests/ethereumjs`), it puts the tag on block 0. Not decided here: when a head is set,
//! and whether it became the head: the caller reads that back.
//!
//! No payload is ever built, and no block is written: such a node takes blocks from its own peers.

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

use super::engine::{EngineClient, name_clock_skew};
use super::l2::{block_call, read_header};
use super::rpc::{Call, Json};
use super::wire::hex_hash;
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::{EngineView, HeadTold, L2Engine, PortResult, WriteStopped};
use crate::redact::tidy;
use crate::types::{B256, L2Header, L2Number, NewBlock};

/// A standard execution node's engine.
#[derive(Clone, Debug)]
pub struct ForkchoiceClient {
    engine: EngineClient,
}

/// The three heads as the node shows them. Zero for a tag that was never set.
struct Shown {
    head: B256,
    safe: B256,
    finalized: B256,
}

impl ForkchoiceClient {
    /// The engine behind `engine`, with its token.
    pub const fn new(engine: EngineClient) -> Self {
        Self { engine }
    }

    async fn shown(&self) -> PortResult<Shown> {
        let calls = ["latest", "safe", "finalized"].map(|tag| block_call(tag, false));
        let replies = self.engine.pool().batch_on(0, &calls).await.map_err(name_clock_skew)?;
        let Ok([latest, safe, finalized]) = <[PortResult<Json>; 3]>::try_from(replies) else {
            return Err(PortError::malformed(Target::Engine, "the engine's heads: not three replies"));
        };
        let hash = |reply| PortResult::Ok(read_header(reply, None)?.map(|header| header.hash));
        let head = hash(latest)?
            .ok_or_else(|| PortError::new(Target::Engine, PortErrorKind::NotFound, "the engine has no latest block"))?;
        let tag = |reply| match hash(reply) {
            Err(error) if is_unset(&error) => Ok(B256::zero()),
            shown => shown.map(Option::unwrap_or_default),
        };
        Ok(Shown { head, safe: tag(safe)?, finalized: tag(finalized)? })
    }

    /// `engine_forkchoiceUpdatedV3` without payload attributes; what the node said, and why if a block is invalid.
    async fn update(&self, heads: &Shown) -> PortResult<(HeadTold, Option<String>)> {
        let state = json!({
            "headBlockHash": hex_hash(&heads.head),
            "safeBlockHash": hex_hash(&heads.safe),
            "finalizedBlockHash": hex_hash(&heads.finalized),
        });
        let call = Call::new("engine_forkchoiceUpdatedV3", json!([state, Value::Null]));
        let reply = self.engine.pool().call_on(0, call).await.map_err(name_clock_skew)?;
        let Updated { payload_status } = reply.parse()?;
        match payload_status.status.as_str() {
            "VALID" => Ok((HeadTold::Valid, None)),
            "SYNCING" | "ACCEPTED" => Ok((HeadTold::Syncing, None)),
            "INVALID" => Ok((HeadTold::Invalid, payload_status.validation_error)),
            _ => Err(reply.malformed("an unknown payload status")),
        }
    }

    fn refused(&self, told: HeadTold, why: Option<String>) -> PortError {
        let said = match told {
            HeadTold::Syncing => "SYNCING".to_owned(),
            _ => format!("INVALID {}", self.engine.pool().show(&tidy(&why.unwrap_or_default()))),
        };
        let kind = PortErrorKind::Refused { code: 0, message: said.clone() };
        PortError::new(Target::Engine, kind, format!("the node did not take its own head with new tags: {said}"))
    }
}

/// Whether the node says by an error that a tag was never set (E22).
fn is_unset(error: &PortError) -> bool {
    let says = |words: &str| ["not available", "not found", "unknown block"].iter().any(|part| words.contains(part));
    matches!(&error.kind, PortErrorKind::Refused { code: -32_000 | -39_001, message } if says(&message.to_ascii_lowercase()))
}

#[derive(Deserialize)]
struct Updated {
    #[serde(rename = "payloadStatus")]
    payload_status: PayloadStatus,
}

#[derive(Deserialize)]
struct PayloadStatus {
    status: String,
    #[serde(rename = "validationError")]
    validation_error: Option<String>,
}

#[async_trait]
impl L2Engine for ForkchoiceClient {
    async fn view(&self, number: L2Number) -> PortResult<EngineView> {
        self.engine.view(number).await
    }

    async fn write_blocks(&self, _: &[NewBlock]) -> Result<Vec<L2Header>, WriteStopped> {
        let error = PortError::new(Target::Engine, PortErrorKind::Unsupported, "blocks are not written to this node");
        Err(WriteStopped { written: Vec::new(), error })
    }

    async fn set_tags(&self, safe: Option<B256>, finalized: Option<B256>) -> PortResult<()> {
        let now = self.shown().await?;
        let heads =
            Shown { head: now.head, safe: safe.unwrap_or(now.safe), finalized: finalized.unwrap_or(now.finalized) };
        match self.update(&heads).await? {
            (HeadTold::Valid, _) => Ok(()),
            (told, why) => Err(self.refused(told, why)),
        }
    }

    async fn set_head(&self, head: B256, safe: Option<B256>) -> PortResult<HeadTold> {
        let now = self.shown().await?;
        let heads = Shown { head, safe: safe.unwrap_or(now.safe), finalized: now.finalized };
        self.update(&heads).await.map(|(told, _)| told)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::adapters::engine::JwtSecret;
    use crate::adapters::rpc::PoolConfig;
    use crate::adapters::testing;
    use crate::devnet::block::StoredBlock;

    const NODE: u8 = 7;

    /// A node that stands on a block, with safe there and finalized never set, and answers each update with `status`.
    async fn node(status: &'static str) -> (testing::Server, ForkchoiceClient, B256, Arc<Mutex<Vec<Value>>>) {
        let block = StoredBlock::genesis(5, B256::repeat_byte(NODE));
        let (shown, hash) = (block.to_json(false), block.hash());
        let updates: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kept = updates.clone();
        let server = testing::rpc(move |method, params| match (method, params[0].as_str()) {
            ("eth_getBlockByNumber", Some("finalized")) => Err((-32_000, "finalized block not available")),
            ("eth_getBlockByNumber", _) => Ok(shown.clone()),
            ("engine_forkchoiceUpdatedV3", _) if status == "unknown safe" => Err((-38_002, "Invalid forkchoice state")),
            ("engine_forkchoiceUpdatedV3", _) => {
                kept.lock().unwrap().push(params.clone());
                let payload = json!({ "status": status, "latestValidHash": null, "validationError": "no good" });
                Ok(json!({ "payloadStatus": payload, "payloadId": null }))
            }
            _ => Err((-32_601, "the method does not exist")),
        })
        .await;
        let config = PoolConfig { retry_for: std::time::Duration::ZERO, ..PoolConfig::default() };
        let engine = EngineClient::new(&server.url, JwtSecret::new([1; 32]), config).unwrap();
        (server, ForkchoiceClient::new(engine), hash, updates)
    }

    #[tokio::test]
    async fn i8_what_is_not_to_change_is_named_as_the_node_shows_it() {
        let (server, client, hash, updates) = node("VALID").await;
        let other = B256::repeat_byte(9);
        client.set_tags(Some(other), None).await.unwrap();
        client.set_tags(None, Some(other)).await.unwrap();
        assert_eq!(client.set_head(other, None).await.unwrap(), HeadTold::Valid);
        assert_eq!(client.set_head(other, Some(other)).await.unwrap(), HeadTold::Valid);
        let zero = B256::zero();
        let expected = [(hash, other, zero), (hash, hash, other), (other, hash, zero), (other, other, zero)];
        let state = |(head, safe, finalized): (B256, B256, B256)| json!([{ "headBlockHash": head, "safeBlockHash": safe, "finalizedBlockHash": finalized }, null]);
        assert_eq!(*updates.lock().unwrap(), expected.map(state));
        assert!(server.hits().iter().all(|hit| hit.authorization.is_some()), "every request has a token");
    }

    #[tokio::test]
    async fn i3_syncing_accepted_and_invalid_are_three_answers_and_no_tag_counts_as_set() {
        let other = B256::repeat_byte(9);
        for (status, told) in
            [("SYNCING", HeadTold::Syncing), ("ACCEPTED", HeadTold::Syncing), ("INVALID", HeadTold::Invalid)]
        {
            let (_server, client, ..) = node(status).await;
            assert_eq!(client.set_head(other, None).await.unwrap(), told, "{status}");
            let error = client.set_tags(Some(other), None).await.unwrap_err();
            assert!(matches!(error.kind, PortErrorKind::Refused { .. }), "{status}: {error}");
        }
        let (_server, client, ..) = node("unknown safe").await;
        let error = client.set_tags(Some(other), None).await.unwrap_err();
        assert!(matches!(error.kind, PortErrorKind::Refused { code: -38_002, .. }), "{error}");
        let (_server, client, ..) = node("PERHAPS").await;
        assert_eq!(client.set_head(other, None).await.unwrap_err().kind, PortErrorKind::Malformed);
        let stopped = client.write_blocks(&[]).await.unwrap_err();
        assert_eq!(stopped.error.kind, PortErrorKind::Unsupported);
    }
}
