//! Secrets that are kept in files: the tokens of the admin listener. A file has one a line; empty lines and
//! those that begin with `#` are not looked at. All of them let in and the first is the one that is sent, so
//! that a token is replaced by adding the new one in front on every machine, then taking the old one away.

use std::fmt;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use http::HeaderValue;

use crate::types::access::Digest;

/// Shorter ones could be guessed.
const SHORTEST: usize = 20;
/// Bytes that a file is read of.
const LARGEST: u64 = 64 << 10;

/// A token as it is sent. Nothing shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The token in `text`, blanks around it aside.
    ///
    /// # Errors
    /// What it must be, when it is not; the text is not repeated.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.len() >= SHORTEST && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "a token has at least {SHORTEST} printable ASCII characters, without blanks"
            ))
        }
    }

    /// By which it is known.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }

    /// The value of `Authorization` with it, marked as what must not be shown.
    #[must_use]
    pub fn header(&self) -> HeaderValue {
        let mut value =
            HeaderValue::from_str(&format!("Bearer {}", self.0)).expect("printable characters");
        value.set_sensitive(true);
        value
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The tokens of a file, at least one.
///
/// # Errors
/// When it cannot be read, has none, or has a line that is none. Names the file and shows nothing of it.
pub fn read(path: &Path) -> io::Result<Vec<Token>> {
    let mut text = String::new();
    let file =
        std::fs::File::open(path).and_then(|file| file.take(LARGEST).read_to_string(&mut text));
    file.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let lines = text.lines().map(str::trim).enumerate();
    let tokens: Result<Vec<_>, _> = lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| Token::new(line).map_err(|rule| (number + 1, rule)))
        .collect();
    let invalid = |what: String| io::Error::new(ErrorKind::InvalidData, what);
    let tokens =
        tokens.map_err(|(line, rule)| invalid(format!("{}:{line}: {rule}", path.display())))?;
    if tokens.is_empty() {
        return Err(invalid(format!("{}: there is no token in it", path.display())));
    }
    Ok(tokens)
}

/// The token of a file that is sent. It follows the file: whoever is refused with it asks for it again.
#[derive(Debug, Clone)]
pub struct SentToken {
    path: PathBuf,
    current: Arc<RwLock<HeaderValue>>,
}

impl SentToken {
    /// The first of those in the file at `path`.
    ///
    /// # Errors
    /// As [`read`].
    pub fn load(path: &Path) -> io::Result<Self> {
        let current = Arc::new(RwLock::new(first(path)?));
        Ok(Self { path: path.to_owned(), current })
    }

    /// The value of `Authorization`.
    #[must_use]
    pub fn header(&self) -> HeaderValue {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the file again. Blocks.
    ///
    /// # Errors
    /// As [`read`]; the token stays as it was.
    pub fn refresh(&self) -> io::Result<()> {
        let token = first(&self.path)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = token;
        Ok(())
    }
}

fn first(path: &Path) -> io::Result<HeaderValue> {
    Ok(read(path)?[0].header())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "old-token-0123456789abcdef";
    const NEW: &str = "new-token-0123456789abcdef";

    #[test]
    fn a_file_has_one_a_line_and_the_first_is_sent() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("token");
        std::fs::write(&path, format!("{OLD}\n")).expect("written");
        let sent = SentToken::load(&path).expect("a token");
        assert_eq!(sent.header(), format!("Bearer {OLD}"));
        std::fs::write(&path, format!("# of June\n  {NEW} \n\n{OLD}")).expect("written");
        let digests: Vec<_> = read(&path).expect("two").iter().map(Token::digest).collect();
        assert_eq!(digests, [Digest::of(NEW.as_bytes()), Digest::of(OLD.as_bytes())]);
        assert_eq!(sent.header(), format!("Bearer {OLD}"));
        sent.refresh().expect("read");
        assert_eq!(sent.header(), format!("Bearer {NEW}"));
        std::fs::remove_file(&path).expect("removed");
        assert!(sent.refresh().is_err());
        assert_eq!(sent.header(), format!("Bearer {NEW}"));
        assert!(!format!("{sent:?}").contains(NEW));
    }

    #[test]
    fn what_is_no_token_is_told_without_showing_it() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("token");
        for (text, says) in [
            ("", "no token in it"),
            ("# nothing\n\n", "no token in it"),
            ("sesame\n", "token:1: a token has at least 20"),
            ("\nsesame sesame sesame sesame", "token:2: a token has"),
            ("sésame-sésame-sésame-sésame", "printable ASCII"),
        ] {
            std::fs::write(&path, text).expect("written");
            let error = read(&path).expect_err(text).to_string();
            assert!(error.contains(says) && !error.contains("same"), "{error}");
        }
        let absent = read(&dir.path().join("absent")).expect_err("absent").to_string();
        assert!(absent.contains("absent"), "{absent}");
    }
}
