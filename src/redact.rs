//! What may be shown of a URL, of a server's text and of a finished line (P10). The one place that hides credentials.
//!
//! Three guards, one after the other. A configured URL lives in [`SecretUrl`], which shows scheme, host and port. The text
//! of a server passes [`scrub`], which knows the parts of the endpoint's own URL ([`secrets_of`]) and strikes them out
//! wherever they occur. Everything printed, logged or served passes [`cut_urls`] last, which knows no secret and recognises
//! URLs and tokens by their shape alone.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use url::Url;

/// How much of a server's text a refusal is judged by, in characters.
pub const WORDS: usize = 1_000;

/// How much of a server's text is shown, in characters.
pub const SHOWN: usize = 200;

/// A URL whose user info, path and query may hold credentials. Shows scheme, host and port only.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(Url);

impl SecretUrl {
    /// The whole URL, to connect to.
    pub const fn expose(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme(), self.0.host_str().unwrap_or("?"))?;
        self.0.port().map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SecretUrl {
    type Err = String;

    /// An http or https URL with a host. The error does not repeat the text.
    fn from_str(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|e| format!("not a URL ({e})"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("a URL must start with http:// or https://".to_owned());
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err("the URL has no host".to_owned());
        }
        Ok(Self(url))
    }
}

/// The parts of a URL that may be credentials: user, password, path segments, query values, and a query that is a bare
/// word. Short path segments (`v1`, `rpc`) are kept: they occur in every text.
pub fn secrets_of(url: &Url) -> Vec<String> {
    let user = Some(url.username().to_owned());
    let password = url.password().map(str::to_owned);
    let segments = url.path_segments().into_iter().flatten().filter(|part| part.len() >= 6).map(str::to_owned);
    let values = url.query_pairs().map(|(_, value)| value.into_owned());
    let pairs = url.query().unwrap_or_default().split('&');
    let raw_values = pairs.map(|pair| pair.split_once('=').map_or(pair, |(_, value)| value).to_owned());
    let mut secrets: Vec<String> = user
        .into_iter()
        .chain(password)
        .chain(segments)
        .chain(values)
        .chain(raw_values)
        .filter(|part| part.len() >= 3)
        .collect();
    secrets.sort_by_key(|part| std::cmp::Reverse(part.len()));
    secrets.dedup();
    secrets
}

/// Strikes `secrets`, URLs and tokens out of `text`, and makes it one short line.
pub fn scrub(text: &str, secrets: &[String]) -> String {
    scrub_to(text, secrets, SHOWN)
}

/// As [`scrub`], shortened to `limit` characters.
pub fn scrub_to(text: &str, secrets: &[String], limit: usize) -> String {
    let mut clean = tidy_to(text, limit.saturating_mul(4));
    for secret in secrets {
        if clean.contains(secret.as_str()) {
            clean = clean.replace(secret.as_str(), "***");
        }
    }
    let word = |word: &str| -> String {
        match () {
            () if word.contains("://") => String::from("<url>"),
            () if word.contains("eyJ") => String::from("<token>"),
            () => word.to_owned(),
        }
    };
    let words: Vec<String> = clean.split(' ').map(word).collect();
    tidy_to(&words.join(" "), limit)
}

/// `text` on one line of printable characters, shortened.
pub fn tidy(text: &str) -> String {
    tidy_to(text, SHOWN)
}

fn tidy_to(text: &str, limit: usize) -> String {
    let mut line = String::new();
    let mut length = 0_usize;
    let printable = text.chars().map(|c| if c.is_control() || c.is_whitespace() { ' ' } else { c });
    for c in printable {
        if c == ' ' && (line.is_empty() || line.ends_with(' ')) {
            continue;
        }
        if length >= limit {
            line.push('…');
            break;
        }
        line.push(c);
        length = length.saturating_add(1);
    }
    line.truncate(line.trim_end().len());
    line
}

/// Cuts every URL in `text` to scheme, host and port, and every bearer token away (P10).
///
/// The last guard, not the first: errors and log lines already name endpoints by host.
pub fn cut_urls(text: &str) -> Cow<'_, str> {
    if !text.contains("://") && !text.contains("Bearer ") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        let url = rest.find("://").map(|at| (at, at.saturating_add(3), true));
        let token = rest.find("Bearer ").map(|at| (at, at.saturating_add(7), false));
        let next = [url, token].into_iter().flatten().min_by_key(|(at, ..)| *at);
        let Some((_, end, is_url)) = next else { break };
        let (before, after) = rest.split_at(end);
        out.push_str(before);
        let span = after.split(ends_secret).next().unwrap_or_default();
        let secret = span.trim_end_matches(|c: char| c.is_ascii_punctuation() && c != '/');
        let (secret, tail) = after.split_at(secret.len());
        if is_url {
            out.push_str(host_of(secret))
        } else {
            out.push_str("<redacted>")
        }
        rest = tail;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Whether a URL or token in running text ends before this character. Not at a comma or a bracket: those may be part of a
/// path or a password, and are punctuation only at the very end.
fn ends_secret(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '`' | '<' | '>' | '\\' | '\u{1b}')
}

/// Host and port of what follows `://`.
fn host_of(rest: &str) -> &str {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k4_texts_are_scrubbed_and_shortened() {
        let url = Url::parse("https://user:hunter22@host.example/v3/canary0123456789?apikey=topsecret%21").unwrap();
        let secrets = secrets_of(&url);
        let text =
            "bad key canary0123456789 for user hunter22, topsecret! or topsecret%21 at https://h/x \n eyJhbGciOi.x.y";
        let shown = scrub(text, &secrets);
        for secret in ["canary", "hunter22", "topsecret", "https", "eyJ"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert!(scrub(&"x".repeat(5000), &[]).chars().count() <= SHOWN + 1);
        assert_eq!(tidy("a\n\t b\u{7}c"), "a b c");
    }

    #[test]
    fn k4_scrub_leaves_the_rest_alone() {
        let table = [
            ("plain text: a/b?c=d user@host", "plain text: a/b?c=d user@host"),
            ("http://h", "http://h"),
            ("http://h/a, then ws://u:p@h:1/x.", "http://h, then ws://h:1."),
            ("(https://h:8545/key)", "(https://h:8545)"),
            ("https://u:p,'w)d@h/k,ey), and", "https://h), and"),
            ("{\"url\":\"https://h/key\"}", "{\"url\":\"https://h\"}"),
            ("Bearer abc", "Bearer <redacted>"),
            ("https://a/Bearer x", "https://a x"),
            ("://", "://"),
        ];
        for (text, expected) in table {
            assert_eq!(cut_urls(text), expected, "{text}");
        }
    }
}
