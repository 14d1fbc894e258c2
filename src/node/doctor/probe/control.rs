//! Probes of a hub's forwarding and of the control plane.
use spoke_config::control::Control;
use spoke_sys::disk::DiskError;
use spoke_sys::http::{BadTrust, Http as _, HttpError, HttpsClient, Request, Trust};
use std::time::Duration;

/// An address family with a forwarding switch of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardingFamily {
    /// `net.ipv4.ip_forward`.
    V4,
    /// `net.ipv6.conf.all.forwarding`.
    V6,
}

impl ForwardingFamily {
    /// The sysctl that enables it.
    pub const fn sysctl(self) -> &'static str {
        match self {
            Self::V4 => "net.ipv4.ip_forward",
            Self::V6 => "net.ipv6.conf.all.forwarding",
        }
    }
}

/// Time limit of the request to the control plane.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Why the control plane did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlProbeError {
    /// `control.ca` cannot be read.
    #[error(transparent)]
    Ca(#[from] DiskError),
    /// `control.ca` cannot be used.
    #[error(transparent)]
    Trust(#[from] BadTrust),
    /// No answer.
    #[error(transparent)]
    Http(#[from] HttpError),
}

/// Whether the machine forwards packets of `family`; `None` if the setting cannot be read.
pub fn forwarding(family: ForwardingFamily) -> Option<bool> {
    let path = format!("/proc/sys/{}", family.sysctl().replace('.', "/"));
    Some(std::fs::read_to_string(path).ok()?.trim() != "0")
}

/// Sends an unauthenticated request; returns the HTTP status.
pub async fn control_plane(control: &Control) -> Result<u16, ControlProbeError> {
    let trust = match (&control.pin, &control.ca) {
        (Some(pin), _) => Trust::Pin(pin.0),
        (None, Some(path)) => Trust::Own(spoke_sys::disk::read_public(path)?),
        (None, None) => Trust::Public,
    };
    let request = Request {
        method: "GET",
        path: spoke_enroll::wire::STATE.to_owned(),
        headers: Vec::new(),
        body: Vec::new(),
        max: 64 << 10,
        timeout: REQUEST_TIMEOUT,
    };
    let answer = HttpsClient::new(control.url.0.clone(), &trust)?.send(request).await?;
    Ok(answer.status)
}
