//! Entry point. All code is in the library, the runtime's start included: what the binary instantiated itself would be
//! compiled a second time.

use std::process::ExitCode;

fn main() -> ExitCode {
    morph_deriver::commands::main()
}
