# Commands used most. `just ci` runs everything that must pass.

default: fmt lint test

fmt:
    cargo fmt --all --check

lint:
    cargo clippy --locked --all-targets -- -D warnings

test:
    cargo test --locked

replay fixture="tests/fixtures/devnet-small":
    cargo run --locked --release -- replay {{ fixture }}

# Needs cargo-deny and the advisory database.
deny:
    cargo deny check advisories bans sources

ci:
    .ci/run
