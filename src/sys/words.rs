//! Failures of connections in words: what the other side answered, and what to check.
use rustls::{CertificateError, Error as TlsError};
use std::io;

/// A certificate that is not the pinned one; both pins in hex.
#[derive(Debug, thiserror::Error)]
#[error(
    "its certificate has the pin sha256:{seen}, and sha256:{pinned} is configured: correct control.pin, or look for who answers in its place"
)]
pub(crate) struct OtherPin {
    pub(crate) seen: String,
    pub(crate) pinned: String,
}

/// Why a connection failed.
///
/// The texts hold addresses and no URL: there may be a key in it.
pub fn io_error(e: &io::Error) -> String {
    let tls = e.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    match (tls, e.raw_os_error(), e.kind()) {
        (Some(tls), ..) => tls_error(tls),
        (None, None, io::ErrorKind::UnexpectedEof) => "the connection was closed before an answer".into(),
        (None, ..) => look_up(&e.to_string()),
    }
}

/// An error of the standard library's look-up, which has no kind of its own, is introduced by what failed.
fn look_up(text: &str) -> String {
    match text.strip_prefix("failed to lookup address information: ") {
        Some(why) => format!("its name cannot be looked up ({why}): check the spelling, and the resolver"),
        None => text.to_owned(),
    }
}

/// Why a TLS handshake failed.
pub fn tls_error(e: &TlsError) -> String {
    match e {
        TlsError::InvalidCertificate(certificate) => certificate_error(certificate),
        TlsError::InvalidMessage(_) => "it does not speak TLS: is it an http:// port?".into(),
        TlsError::AlertReceived(alert) => format!("it ended the TLS handshake: {alert:?}"),
        TlsError::PeerIncompatible(_) => format!("its TLS is too old or too different: {e}"),
        other => format!("TLS: {other}"),
    }
}

fn certificate_error(e: &CertificateError) -> String {
    match e {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired: renew it, or correct the clock of this machine".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet: correct the clock of this machine, or of the machine that issued it"
                .into()
        }
        CertificateError::UnknownIssuer => {
            "its certificate is of no CA that is trusted here: give its CA or its pin, or make the server send its \
             intermediate certificates"
                .into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name".into()
        }
        CertificateError::Other(rustls::OtherError(e)) if e.is::<OtherPin>() => e.to_string(),
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "its certificate is that of a CA: trust it by its pin".into()
        }
        other => format!("its certificate is not accepted: {other}"),
    }
}
