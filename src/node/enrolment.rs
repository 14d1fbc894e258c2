//! Enrols the device: one signed request with the enrolment token, repeated until the control plane accepts the node.
use crate::signed_request::{Signer, error_message, key_verifier, post, problem, prove_key, refusal_cause};
use spoke_enroll::identity::{Enrolment, ServerClock};
use spoke_enroll::status::{ControlOutage, ControlStatus, OutageCause};
use spoke_enroll::wire;
use spoke_enroll::wire::{ProvisionAnswer, ProvisionRequest};
use spoke_model::backoff::{Backoff, JitterRng};
use spoke_model::error_chain::ErrorChain;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_model::key_source::KeySource;
use spoke_model::log_text::Span;
use spoke_model::secret::Secret;
use spoke_model::signature::sha256_hex;
use spoke_sys::clock::Clock;
use spoke_sys::disk::{DiskError, Document};
use spoke_sys::http::{Http, HttpError};
use spoke_sys::keys;
use spoke_sys::keys::KeyError;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// First and longest wait after a failed enrolment.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(120));
/// Answers of one enrolment that only ask for a corrected request.
const MAX_CORRECTIONS: u32 = 4;
/// Wait before the request is repeated with the server's time.
const CLOCK_PAUSE: Duration = Duration::from_millis(200);

/// Version of the files that an enrolment and its states are kept in.
pub(crate) const FILE_VERSION: u32 = 1;

/// The record of the enrolment.
pub(crate) fn enrolment_file(state_dir: &Path) -> Document<Enrolment> {
    Document::new(state_dir.join("enrolment.json"), FILE_VERSION)
}

/// Reads the enrolment token when it is needed, so that a corrected token needs no restart.
pub type TokenSource = Arc<dyn Fn() -> Result<Secret<String>, TokenError> + Send + Sync>;

/// Erases what is left on the device of the token with this SHA-256, in hex.
pub type TokenEraser = Arc<dyn Fn(&str) + Send + Sync>;

/// Erases the token at `source` if it is the one with this SHA-256: it may be a new one for the next enrolment.
pub fn erase_token(source: Option<&KeySource>, sha256: &str) {
    let Some(source) = source else { return };
    let is_used = |token: &str| sha256_hex(token.as_bytes()) == sha256;
    match source {
        KeySource::File(path) => match spoke_sys::disk::erase_secret(path, is_used) {
            Ok(true) => tracing::info!(%source, "enrolment token erased"),
            Ok(false) => {}
            Err(e) => tracing::warn!(%source, error = %ErrorChain(&e), "used enrolment token stays on this device"),
        },
        KeySource::Credential(_) => {
            if keys::line(source).is_ok_and(|token| is_used(&token)) {
                let error = "a credential is not this process's to delete";
                tracing::warn!(%source, error, "used enrolment token stays on this device");
            }
        }
    }
}

/// Why there is no enrolment token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// `control.token` is not set.
    #[error("there is no enrolment token: set control.token")]
    NotConfigured,
    /// The place holds bytes.
    #[error("control.token: {0} is not text; put there what `spoke-control token create` printed")]
    NotText(KeySource),
    /// The place holds nothing.
    #[error("control.token: {0} is empty; put there what `spoke-control token create` printed")]
    Empty(KeySource),
    /// The place cannot be read.
    #[error("control.token: {}{}", ErrorChain(.0), unreadable_remedy(.0))]
    Unreadable(KeyError),
}

const fn unreadable_remedy(error: &KeyError) -> &'static str {
    match error {
        KeyError::Disk(DiskError::Read { .. }) => "; let the user that runs spoke read it, mode 0600",
        _ => "",
    }
}

/// Reads the token at `source`.
pub fn read_token(source: Option<&KeySource>) -> Result<Secret<String>, TokenError> {
    let source = source.ok_or(TokenError::NotConfigured)?;
    let text = keys::line(source).map_err(|e| match e {
        KeyError::NotAKey(_) => TokenError::NotText(source.clone()),
        e => TokenError::Unreadable(e),
    })?;
    if text.is_empty() { Err(TokenError::Empty(source.clone())) } else { Ok(Secret::new(text.as_str().to_owned())) }
}

/// Why the control plane did not enrol the node.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// There is no token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// No answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Not an answer of a control plane.
    #[error("the answer is malformed")]
    Malformed(#[from] serde_json::Error),
    /// Accepted, without what a node needs.
    #[error("the answer has no configuration")]
    NoConfiguration,
    /// Not for us.
    #[error("the answer is not for this node")]
    OtherNode,
    /// Not yet.
    #[error("an operator has to approve this node")]
    NotApproved,
    /// The control plane's reason.
    #[error("{0}")]
    Refused(String, OutageCause),
}

impl EnrolError {
    const fn cause(&self) -> OutageCause {
        match self {
            Self::Token(_) => OutageCause::TokenRefused,
            Self::NotApproved => OutageCause::ApprovalPending,
            Self::Refused(_, cause) => *cause,
            Self::Http(_) | Self::Malformed(_) | Self::NoConfiguration | Self::OtherNode => OutageCause::Unreachable,
        }
    }
}

/// Enrols one node.
pub(crate) struct Enroller<'a, H> {
    pub(crate) http: &'a mut H,
    pub(crate) signer: &'a Signer,
    pub(crate) token: &'a TokenSource,
    /// The control plane's URL.
    pub(crate) url: String,
    pub(crate) request: ProvisionRequest,
    /// The private half of the WireGuard key in the request.
    pub(crate) key: SecretKey,
    /// Whom the control plane wants the possession of the key proved to.
    pub(crate) verifier: Option<PublicKey>,
}

impl<H: Http> Enroller<'_, H> {
    /// Asks until the control plane accepts the node.
    pub(crate) async fn enrol(
        &mut self,
        clock: &impl Clock,
        server: &mut ServerClock,
        rng: &mut JitterRng,
        status: &watch::Sender<ControlStatus>,
    ) -> Enrolment {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut since = None;
        loop {
            let wait = match self.request(clock, server).await {
                Ok(Some(enrolment)) => return enrolment,
                Ok(None) => CLOCK_PAUSE,
                Err(e) => {
                    let (wait, reason) = (backoff.fail(rng), ErrorChain(&e).to_string());
                    tracing::warn!(url = %self.url, error = reason, retry_in = %Span(wait), "enrolment failed");
                    let since = *since.get_or_insert(clock.now());
                    status.send_replace(ControlStatus {
                        outage: Some(ControlOutage { since, reason, cause: e.cause() }),
                        ..ControlStatus::default()
                    });
                    wait
                }
            };
            clock.sleep(wait).await;
        }
    }

    /// Asks once, and again where the answer says what was missing: our clock, the proof of the key.
    pub(crate) async fn enrol_once(
        &mut self,
        clock: &impl Clock,
        server: &mut ServerClock,
    ) -> Result<Enrolment, EnrolError> {
        for _ in 0..MAX_CORRECTIONS {
            if let Some(enrolment) = self.request(clock, server).await? {
                return Ok(enrolment);
            }
        }
        Err(EnrolError::NoConfiguration)
    }

    /// One request; `None`: it failed only because of our clock, which is corrected, or for the lack of a proof of the
    /// WireGuard key, which the next one has.
    async fn request(&mut self, clock: &impl Clock, server: &mut ServerClock) -> Result<Option<Enrolment>, EnrolError> {
        let token = (self.token)()?;
        let path = format!("{}?{}", wire::PROVISION, wire::TAKES_PRESHARED);
        let mut request = post(&path, serde_json::to_vec(&self.request)?);
        request.headers.push(("authorization", format!("Bearer {}", token.reveal())));
        let (mut request, _) = self.signer.sign(server.at(clock.now()), request);
        if let Some(verifier) = self.verifier {
            prove_key(&mut request, &self.key, verifier);
        }
        let answer = self.http.send(request).await?;
        match answer.status {
            200 => {
                let answer: ProvisionAnswer = serde_json::from_slice(&answer.body)?;
                let config = answer.config.ok_or(EnrolError::NoConfiguration)?;
                if config.node_id != self.signer.node || config.signing_keys.is_empty() {
                    return Err(EnrolError::OtherNode);
                }
                Ok(Some(Enrolment {
                    server: self.url.clone(),
                    node_id: config.node_id,
                    signing_keys: config.signing_keys,
                    fresh: true,
                    removed: false,
                    token: Some(sha256_hex(token.reveal().as_bytes())),
                    role: None,
                    networks: None,
                }))
            }
            202 => Err(EnrolError::NotApproved),
            401 if key_verifier(&answer).is_some_and(|v| self.verifier != Some(v)) => {
                self.verifier = key_verifier(&answer);
                Ok(None)
            }
            // No key is pinned yet: TLS alone vouches for this time, and only our own requests use it.
            _ => match problem(&answer).and_then(|p| p.detail.time) {
                Some(time) => {
                    server.set(clock.now(), time.server_time_ms);
                    Ok(None)
                }
                None => Err(EnrolError::Refused(error_message(&answer), refusal_cause(&answer))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn used_token_is_erased_and_a_new_one_is_kept() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let source = KeySource::File(path.clone());
        let put = |text: &str| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        let used = sha256_hex(b"spk_1_2");
        put("spk_3_4\n");
        erase_token(Some(&source), &used);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "spk_3_4\n", "for the next enrolment");
        put("spk_1_2\n");
        // Another name of the same blocks, as a copy in progress would have.
        let second = dir.path().join("second");
        std::fs::hard_link(&path, &second).unwrap();
        erase_token(Some(&source), &used);
        assert!(!path.exists());
        assert_eq!(std::fs::read_to_string(&second).unwrap(), "", "overwritten, not only unlinked");
        erase_token(Some(&source), &used);
        erase_token(None, &used);
    }

    #[test]
    fn token_errors_name_place_error_and_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let source: KeySource = format!("file:{}", path.display()).parse().unwrap();
        let error = || read_token(Some(&source)).unwrap_err().to_string();
        let expect = |parts: &[&str]| {
            let error = error();
            for part in parts.iter().chain(&["control.token", path.to_str().unwrap()]) {
                assert!(error.contains(part), "{part}: {error}");
            }
        };
        expect(&["is missing", "put the line there"]);
        std::fs::create_dir(&path).unwrap();
        expect(&["cannot read", "not a file", "mode 0600"]);
        std::fs::remove_dir(&path).unwrap();
        let write = |bytes: &[u8], mode| {
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write(b"spk_1_2", 0o644);
        expect(&["can be read by others", "chmod 600"]);
        write(b" \n", 0o600);
        expect(&["is empty", "token create"]);
        write(&[0xff], 0o600);
        expect(&["not text", "token create"]);
        write(b"spk_1_2\n", 0o600);
        assert_eq!(read_token(Some(&source)).unwrap().reveal(), "spk_1_2");
        assert!(read_token(None).unwrap_err().to_string().contains("set control.token"));
    }
}
