//! The cluster's token: a file with a secret, and the key made of it.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::{
    crypto::ring::sign::any_eddsa_type,
    pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer},
    sign::{CertifiedKey, SigningKey},
};

/// Fewest characters of a token. The derived public key is shown to whoever connects, so that a short token could be
/// found by trying.
pub const MIN_TOKEN: usize = 32;
/// Longest token file, octets.
const MAX_FILE: u64 = 4096;
/// Keeps this use of the token apart from any other.
const DOMAIN: &[u8] = b"brindle admin channel, Ed25519 key, version 1\0";
/// PKCS #8 around an Ed25519 seed (RFC 8410, section 7).
const PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("cannot read the token file {}: {why}", path.display())]
    Read { path: PathBuf, why: io::Error },
    #[error(
        "{}: a token has at least {MIN_TOKEN} characters, this one has {found}; make one: \
         head -c 32 /dev/urandom | base64", path.display()
    )]
    Short { path: PathBuf, found: usize },
    #[error("{}: {why}", path.display())]
    Wrong { path: PathBuf, why: String },
}

/// The secret all agents of a cluster and its operators share.
pub struct Token {
    seed: [u8; 32],
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// Reads a token file: text of at least [`MIN_TOKEN`] characters; blanks around it do not count.
    ///
    /// # Errors
    /// [`TokenError`]; it never holds any of the secret.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let fail = |why| TokenError::Read { path: path.into(), why };
        let size = std::fs::metadata(path).map_err(fail)?.len();
        let wrong = |why: &str| TokenError::Wrong { path: path.into(), why: why.into() };
        if size > MAX_FILE {
            return Err(wrong("is too large to be a token"));
        }
        let bytes = std::fs::read(path).map_err(fail)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| wrong("is not text"))?.trim();
        let found = text.chars().count();
        if found < MIN_TOKEN {
            return Err(TokenError::Short { path: path.into(), found });
        }
        Ok(Self::of(text))
    }

    /// The token with this text, whatever its length.
    pub fn of(text: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update(text.as_bytes());
        Self { seed: hash.finalize().into() }
    }

    /// The key both sides have, and its public half as it is shown.
    pub(crate) fn key(
        &self,
    ) -> Result<(CertifiedKey, SubjectPublicKeyInfoDer<'static>), tokio_rustls::rustls::Error> {
        let der: Vec<u8> = PKCS8.iter().chain(&self.seed).copied().collect();
        let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(der))?;
        let spki = SigningKey::public_key(&*key)
            .ok_or_else(|| tokio_rustls::rustls::Error::General("an Ed25519 key without public half".into()))?
            .into_owned();
        Ok((CertifiedKey::new(vec![spki.as_ref().to_vec().into()], key), spki))
    }
}
