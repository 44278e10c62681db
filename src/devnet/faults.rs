//! Faults that an HTTP server of the devnet injects before it answers, and the rules that say when.

use std::time::Duration;

use super::jsonrpc::RpcError;

/// One of the devnet's servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Server {
    /// An L1 endpoint; the first is 0.
    L1(usize),
    /// A beacon endpoint; the first is 0.
    Beacon(usize),
    /// The execution node without token.
    L2,
    /// The execution node's engine.
    Engine,
    /// The consensus node's reactors.
    Reactors,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// The request is accepted and never answered.
    Hang,
    /// The connection breaks in the middle of the answer.
    Drop,
    /// Another HTTP status, with this body.
    Status(u16, String),
    /// 429, with `Retry-After` in seconds if any.
    RateLimited(Option<u64>),
    /// A JSON-RPC error for the calls that match; the others of a batch are answered.
    Error(RpcError),
    /// 200 with this body.
    Body(String),
    /// 200 with a body of this many bytes.
    Huge(usize),
    /// Answered, this much later.
    Delay(Duration),
    /// Executed and answered this much later, whether or not the caller still waits for it (engine and reactors).
    Late(Duration),
    /// The call's effect happens, then the connection breaks: the caller cannot know.
    DropAfter,
}

/// When a fault strikes.
#[derive(Clone, Debug)]
pub struct Rule {
    /// JSON-RPC method, or a part of the beacon's path; none strikes every request.
    pub method: Option<String>,
    /// What happens.
    pub fault: Fault,
    /// Matching requests let through first.
    pub skip: u64,
    /// How often it strikes; none is for ever.
    pub times: Option<u64>,
    /// Matching requests let through between two strikes.
    pub between: u64,
}

impl Rule {
    /// Strikes every request, for ever.
    pub const fn always(fault: Fault) -> Self {
        Self { method: None, fault, skip: 0, times: None, between: 0 }
    }

    /// Strikes calls of `method`, for ever.
    pub fn on(method: &str, fault: Fault) -> Self {
        Self { method: Some(method.to_owned()), fault, skip: 0, times: None, between: 0 }
    }

    /// Strikes this often only.
    #[must_use]
    pub const fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Lets this many matching requests through first.
    #[must_use]
    pub const fn after(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// Strikes every `nth` matching request only, after as many were let through.
    #[must_use]
    pub const fn every(mut self, nth: u64) -> Self {
        self.between = nth.saturating_sub(1);
        self.skip = self.between;
        self
    }

    fn matches(&self, method: &str) -> bool {
        self.method.as_deref().is_none_or(|wanted| method.contains(wanted))
    }
}

/// The first rule that strikes `method`, used up by one.
pub fn strike(rules: &mut [Rule], method: &str) -> Option<Fault> {
    for rule in rules.iter_mut().filter(|rule| rule.matches(method)) {
        if rule.skip > 0 {
            rule.skip -= 1;
            continue;
        }
        match &mut rule.times {
            Some(0) => continue,
            Some(times) => *times -= 1,
            None => {}
        }
        rule.skip = rule.between;
        return Some(rule.fault.clone());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_skip_strike_and_run_out() {
        let mut rules = vec![Rule::on("eth_getLogs", Fault::Hang).after(1).times(2)];
        let strikes: Vec<bool> = (0..5).map(|_| strike(&mut rules, "eth_getLogs").is_some()).collect();
        assert_eq!(strikes, [false, true, true, false, false]);
        assert_eq!(strike(&mut rules, "eth_call"), None);
        let mut limit = vec![Rule::on("eth_getLogs", Fault::Hang).every(3)];
        let strikes: Vec<bool> = (0..7).map(|_| strike(&mut limit, "eth_getLogs").is_some()).collect();
        assert_eq!(strikes, [false, false, true, false, false, true, false]);
        assert_eq!(strike(&mut [Rule::always(Fault::Drop)], "anything"), Some(Fault::Drop));
    }
}
