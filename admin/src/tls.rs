//! TLS both ways: each side shows the public key made of the token and takes no other.

use std::sync::Arc;

use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    ServerConfig, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::{
        AlwaysResolvesServerRawPublicKeys,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};

use crate::Token;

/// Takes one public key and no other.
#[derive(Debug)]
struct Pinned {
    key: SubjectPublicKeyInfoDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        if shown.as_ref() == self.key.as_ref() {
            Ok(())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn signed(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(shown.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }
}

/// TLS 1.2 is not spoken.
fn too_old() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        too_old()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        too_old()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// What both sides are made of.
struct Parts {
    provider: Arc<CryptoProvider>,
    own: Arc<CertifiedKey>,
    pinned: Arc<Pinned>,
}

fn parts(token: &Token) -> Result<Parts, Error> {
    let provider = ring::default_provider();
    let algorithms = provider.signature_verification_algorithms;
    let (own, key) = token.key()?;
    let pinned = Pinned { key, algorithms };
    Ok(Parts { provider: Arc::new(provider), own: Arc::new(own), pinned: Arc::new(pinned) })
}

/// The agent's side.
///
/// # Errors
/// Only what the TLS library itself cannot do.
pub fn server(token: &Token) -> Result<Arc<ServerConfig>, Error> {
    let Parts { provider, own, pinned } = parts(token)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(pinned)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(own)));
    // Each connection proves the token anew.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The asker's side.
///
/// # Errors
/// Only what the TLS library itself cannot do.
pub fn client(token: &Token) -> Result<Arc<ClientConfig>, Error> {
    let Parts { provider, own, pinned } = parts(token)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(pinned)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(own)));
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// What the asker calls the agent; the key says who it is, not the name.
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST).into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use tokio_rustls::rustls::{ClientConnection, ServerConnection};

    use super::*;

    /// Carries octets between the two until both rest; the first error of either.
    fn shake(c: &mut ClientConnection, s: &mut ServerConnection) -> Result<(), Error> {
        for _ in 0..20 {
            let (mut there, mut back) = (Vec::new(), Vec::new());
            while c.wants_write() {
                c.write_tls(&mut there).unwrap();
            }
            s.read_tls(&mut there.as_slice()).unwrap();
            s.process_new_packets()?;
            while s.wants_write() {
                s.write_tls(&mut back).unwrap();
            }
            c.read_tls(&mut back.as_slice()).unwrap();
            c.process_new_packets()?;
        }
        Ok(())
    }

    fn pair(theirs: &str, ours: &str) -> (ClientConnection, ServerConnection) {
        let c = ClientConnection::new(client(&Token::of(ours)).unwrap(), server_name()).unwrap();
        let s = ServerConnection::new(server(&Token::of(theirs)).unwrap()).unwrap();
        (c, s)
    }

    #[test]
    fn who_knows_the_token_is_let_in_and_the_token_is_not_on_the_wire() {
        let token = "a token of more than thirty-two characters";
        let (mut c, mut s) = pair(token, token);
        c.writer().write_all(b"question").unwrap();
        let mut wire = Vec::new();
        c.write_tls(&mut wire).unwrap();
        assert!(!wire.windows(token.len()).any(|w| w == token.as_bytes()));
        s.read_tls(&mut wire.as_slice()).unwrap();
        s.process_new_packets().unwrap();
        shake(&mut c, &mut s).unwrap();
        assert!(!c.is_handshaking() && !s.is_handshaking());
        let mut text = [0; 8];
        s.reader().read_exact(&mut text).unwrap();
        assert_eq!(&text, b"question");
    }

    #[test]
    fn another_token_is_refused_by_both() {
        let (mut c, mut s) =
            pair("one token, thirty-two characters long", "another, also more than thirty-two");
        let e = shake(&mut c, &mut s).unwrap_err();
        assert_eq!(e, Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
    }

    #[test]
    fn a_client_without_a_key_is_refused() {
        let token = Token::of("a token of more than thirty-two characters");
        let Parts { provider, pinned, .. } = parts(&token).unwrap();
        let bare = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(pinned)
            .with_no_client_auth();
        let mut c = ClientConnection::new(Arc::new(bare), server_name()).unwrap();
        let mut s = ServerConnection::new(server(&token).unwrap()).unwrap();
        assert!(shake(&mut c, &mut s).is_err());
    }

    #[test]
    fn short_and_missing_tokens_are_told() {
        let path = std::env::temp_dir().join(format!("brindle-token-{}", std::process::id()));
        std::fs::write(&path, "short\n").unwrap();
        let e = Token::read(&path).unwrap_err().to_string();
        assert!(e.contains("at least 32 characters, this one has 5"), "{e}");
        std::fs::remove_file(&path).unwrap();
        assert!(Token::read(&path).unwrap_err().to_string().contains("cannot read"));
    }
}
