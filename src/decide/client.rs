//! Which execution client is it, and what may be expected of it?
//!
//! Decided here: what `web3_clientVersion` shows. If one way is right for all clients, the worker does the same beside
//! each. What is left is three things that a client can or cannot do. They are shown and warned about, never used
//! inside a decision. A client that cannot rewrite refuses a rewrite, and a block that was made differently shows it in
//! its own header: both are found whatever the version says.

use serde::Serialize;

/// What one execution client can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// It writes below its head. Otherwise no batch is repaired.
    pub rewrites: bool,
    /// A block that it writes holds the given transactions and no other.
    pub exact_blocks: bool,
    /// It marks a block that it writes finalized by itself.
    pub marks_finalized: bool,
}

impl Capabilities {
    /// Everything that a repair needs.
    const ALL: Self = Self { rewrites: true, exact_blocks: true, marks_finalized: false };
    /// morph-reth of its first generation, v0.x.
    const FIRST_RETH: Self = Self { rewrites: false, exact_blocks: false, marks_finalized: true };
    /// morph-reth v1.0, before the fix of its issue 179.
    const SECOND_RETH: Self = Self { rewrites: true, exact_blocks: false, marks_finalized: false };
}

/// An execution client, as far as its version shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Client {
    /// The version that it reports, without control characters, cut to a sane length.
    pub version: String,
    /// What it can do; none for an unknown client, or a version that cannot be read.
    pub capabilities: Option<Capabilities>,
}

/// Longest version that is shown, in characters.
const VERSION_MAX: usize = 120;

impl Client {
    /// The client that reports `version`: `name/vA.B.C-…/…`.
    pub fn of(version: &str) -> Self {
        // Characters that change the reading direction or break a line are dropped too.
        let turns = |letter: char| matches!(letter, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let printable = |letter: &char| !letter.is_control() && !turns(*letter);
        let shown = version.chars().filter(printable).take(VERSION_MAX).collect();
        Self { version: shown, capabilities: capabilities(version) }
    }

    /// What an operator must know before the first repair; none if all is well.
    pub fn warning(&self) -> Option<&'static str> {
        let Some(known) = self.capabilities else {
            return Some("this execution client is not known: whether it can repair a chain shows at the first repair");
        };
        if !known.rewrites {
            return Some(
                "this execution client cannot write below its head: missing blocks are filled in, and a chain that differs from \
                 L1 cannot be repaired (`el_cannot_reorg`); upgrade it",
            );
        }
        if !known.exact_blocks {
            return Some(
                "this execution client may put transactions of its own pool into blocks that it is given: such a block is found and \
                 named (`block_refused`), and stays until it is upgraded",
            );
        }
        None
    }
}

/// Morph's go-ethereum says `Geth/v2.2.4-…` (recorded). morph-reth says `morph-reth/v1.1.0-…` by its sources, and
/// builds that keep the name of their base say `reth/v2.4.0-…`. Which version behaves how is from its sources too, and
/// not observed (protocol.md, section 7).
fn capabilities(version: &str) -> Option<Capabilities> {
    let lower = version.to_ascii_lowercase();
    let (name, rest) = lower.split_once('/')?;
    let mut numbers = rest.trim_start_matches('v').split(|letter: char| !letter.is_ascii_digit());
    let mut number = || numbers.next()?.parse::<u64>().ok();
    let (major, minor) = (number()?, number()?);
    match name {
        "geth" => Some(Capabilities::ALL),
        "morph-reth" => Some(match (major, minor) {
            (0, _) => Capabilities::FIRST_RETH,
            (1, 0) => Capabilities::SECOND_RETH,
            _ => Capabilities::ALL,
        }),
        "reth" => Some(match (major, minor) {
            (0 | 1, _) => Capabilities::FIRST_RETH,
            (2, 0..=3) => Capabilities::SECOND_RETH,
            _ => Capabilities::ALL,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l16_what_is_known_of_every_client_version() {
        let table = [
            ("Geth/v2.2.4-mainnet/linux-amd64/go1.26.8", Some(Capabilities::ALL), false),
            ("morph-reth/v0.2.0-0f1e2d3c/x86_64-unknown-linux-gnu", Some(Capabilities::FIRST_RETH), true),
            ("Morph-Reth/v1.0.3-0f1e2d3c/x86_64-unknown-linux-gnu", Some(Capabilities::SECOND_RETH), true),
            ("morph-reth/v1.1.0-0f1e2d3c/x86_64-unknown-linux-gnu", Some(Capabilities::ALL), false),
            ("morph-reth/v2.0.0", Some(Capabilities::ALL), false),
            ("reth/v1.9.3-0f1e2d3c/x86_64-unknown-linux-gnu", Some(Capabilities::FIRST_RETH), true),
            ("reth/v2.2.0-0f1e2d3c/x86_64-unknown-linux-gnu", Some(Capabilities::SECOND_RETH), true),
            ("reth/v2.4.0-0f1e2d3c/x86_64-unknown-linux-gnu", Some(Capabilities::ALL), false),
            ("erigon/3.0.1/linux-amd64", None, true),
            ("morph-reth", None, true),
            ("morph-reth/v1", None, true),
            ("morph-reth/v99999999999999999999.1", None, true),
            ("", None, true),
        ];
        for (version, expected, is_warned_of) in table {
            let client = Client::of(version);
            assert_eq!((client.capabilities, client.warning().is_some()), (expected, is_warned_of), "{version}");
        }
        let long = Client::of(&"a\n\u{1b}[2J".repeat(500));
        assert!(long.version.len() <= VERSION_MAX && !long.version.contains(['\n', '\u{1b}']));
    }
}
