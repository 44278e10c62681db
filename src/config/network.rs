//! The network presets.

use std::str::FromStr;

use serde::Serialize;

use crate::types::L1Number;

/// A network with a preset (protocol.md, section 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Morph mainnet on Ethereum.
    Mainnet,
    /// Morph's test network on Hoodi.
    Hoodi,
}

impl Network {
    /// Lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mainnet => "mainnet",
            Self::Hoodi => "hoodi",
        }
    }

    /// The first L1 block that can hold a commit or an L1 message.
    pub const fn first_block(self) -> L1Number {
        match self {
            Self::Mainnet => L1Number::new(20_996_776),
            Self::Hoodi => L1Number::new(1_182_317),
        }
    }

    /// The settings of the preset. The start block is the first with L1 messages, which lies at or below
    /// the first with commits.
    pub(super) const fn preset(self) -> [(&'static str, &'static str); 9] {
        match self {
            Self::Mainnet => [
                ("l1.chain_id", "1"),
                ("l2.chain_id", "2818"),
                ("l1.rollup", "0x759894ced0e6af42c26668076ffa84d02e3cef60"),
                ("l1.queue", "0x3931ade842f5bb8763164bdd81e5361dce6cc1ef"),
                ("l1.start_block", "20996776"),
                ("l2.genesis_hash", "0x649c9b1f9f831771529dbf286a63dd071530d73c8fa410997eebaf449acfa7a9"),
                ("l2.switch_time_ms", "1785218400000"),
                ("l1.beacon_genesis_time", "1606824023"),
                ("l1.seconds_per_slot", "12"),
            ],
            Self::Hoodi => [
                ("l1.chain_id", "560048"),
                ("l2.chain_id", "2910"),
                ("l1.rollup", "0x57e0e6dde89dc52c01fe785774271504b1e04664"),
                ("l1.queue", "0xd7f39d837f4790b215ba67e0ab63665912648dbe"),
                ("l1.start_block", "1182317"),
                ("l2.genesis_hash", "0x2cbcff7ec8d68255cb130d5274217cded0c83c417b9ed5e045e1ffcc3ebfc35c"),
                ("l2.switch_time_ms", "1784613600000"),
                ("l1.beacon_genesis_time", "1742213400"),
                ("l1.seconds_per_slot", "12"),
            ],
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "mainnet" => Ok(Self::Mainnet),
            "hoodi" => Ok(Self::Hoodi),
            other => {
                Err(format!("{other:?} is not a known network: mainnet or hoodi, or leave it out and set the ids"))
            }
        }
    }
}
