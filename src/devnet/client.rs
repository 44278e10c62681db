//! Which execution client the simulated node imitates, and by which of its ways of old and new.
//!
//! Decided here: in what the clients differ, as far as one word tells it. What follows from it for a write is in `reth`, for
//! an answer in `node_rpc`. morph-reth's ways are from its sources (protocol.md, section 7), and were not observed.

use std::collections::HashSet;
use std::str::FromStr;

use crate::types::B256;

/// An execution client of Morph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Client {
    /// Morph's fork of go-ethereum.
    #[default]
    Geth,
    /// morph-reth, in one of its generations.
    Reth(Generation),
}

/// A generation of morph-reth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Generation {
    /// v0.x: takes head + 1 only, and marks each block that it writes safe and finalized.
    A,
    /// v1.0: rewrites; its own pool's transactions come behind those that it is given.
    B,
    /// v1.1: rewrites, and makes of what it is given exactly that.
    C,
}

impl Client {
    /// The newest morph-reth.
    pub const RETH: Self = Self::Reth(Generation::C);

    /// Whether it is any morph-reth.
    pub const fn is_reth(self) -> bool {
        matches!(self, Self::Reth(_))
    }

    /// Whether it takes no notice of `parentHash`.
    pub(super) const fn ignores_parent(self) -> bool {
        matches!(self, Self::Reth(Generation::A))
    }

    /// Whether a block that is written is marked finalized.
    pub(super) const fn marks_finalized(self) -> bool {
        matches!(self, Self::Reth(Generation::A))
    }

    /// Whether transactions of its own pool come behind those that it is given.
    pub(super) const fn mixes_in_its_pool(self) -> bool {
        matches!(self, Self::Reth(Generation::A | Generation::B))
    }

    /// What `web3_clientVersion` says.
    pub const fn version(self) -> &'static str {
        match self {
            Self::Geth => "Geth/v2.2.4-mainnet/linux-amd64/go1.26.8",
            Self::Reth(Generation::A) => "morph-reth/v0.2.0-0f1e2d3c/x86_64-unknown-linux-gnu",
            Self::Reth(Generation::B) => "morph-reth/v1.0.0-1f2e3d4c/x86_64-unknown-linux-gnu",
            Self::Reth(Generation::C) => "morph-reth/v1.1.0-2f3e4d5c/x86_64-unknown-linux-gnu",
        }
    }

    /// Entries that a JSON-RPC batch may hold.
    pub(super) const fn batch_limit(self) -> usize {
        match self {
            Self::Geth => 1000,
            Self::Reth(_) => usize::MAX,
        }
    }
}

/// What a morph-reth remembers besides its blocks.
#[derive(Clone, Debug, Default)]
pub(super) struct RethState {
    /// The finalized block that every fork choice update names: the last one given to `engine_setBlockTags` in this process.
    pub(super) given_finalized: Option<B256>,
    /// The tags that survive a restart, by number.
    pub(super) stored_safe: Option<u64>,
    pub(super) stored_finalized: Option<u64>,
    /// Blocks that were judged invalid once.
    pub(super) invalid: HashSet<B256>,
}

impl FromStr for Client {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "geth" => Ok(Self::Geth),
            "reth" | "reth-c" => Ok(Self::RETH),
            "reth-b" => Ok(Self::Reth(Generation::B)),
            "reth-a" => Ok(Self::Reth(Generation::A)),
            _ => Err("one of geth, reth (the newest), reth-a, reth-b, reth-c".to_owned()),
        }
    }
}
