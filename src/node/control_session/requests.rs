//! The two connections to the control plane: one for the long-poll, one for messages.
use spoke_enroll::request::Nonce;
use spoke_sys::http::{Answer, Http, HttpError, Request};
use std::future::Future;
use std::pin::Pin;

/// The client, the answer to its request, and the request's nonce.
pub(super) type Reply<H> = (H, Result<Answer, HttpError>, Nonce);
pub(super) type Pending<H> = Pin<Box<dyn Future<Output = Reply<H>> + Send>>;

/// The two connections, each idle or with a request out.
pub(super) struct Requests<H> {
    pub(super) poller: Option<H>,
    pub(super) sender: Option<H>,
    pub(super) polling: Option<Pending<H>>,
    /// With whether the message is about a key.
    pub(super) sending: Option<(Pending<H>, bool)>,
}

impl<H: Http> Requests<H> {
    pub(super) fn new((poller, sender): (H, H)) -> Self {
        Self { poller: Some(poller), sender: Some(sender), polling: None, sending: None }
    }

    pub(super) fn poll(&mut self, request: Request, nonce: Nonce) {
        self.polling = self.poller.take().map(|http| start(http, request, nonce));
    }

    pub(super) fn send(&mut self, request: Request, nonce: Nonce, is_key: bool) {
        self.sending = self.sender.take().map(|http| (start(http, request, nonce), is_key));
    }
}

/// Waits for the long-poll; for ever if none is out.
pub(super) async fn poll_ended<H>(polling: &mut Option<Pending<H>>) -> Reply<H> {
    match polling {
        Some(pending) => pending.await,
        None => std::future::pending().await,
    }
}

/// Waits for the answer to a message, with whether it was about a key; for ever if none is out.
pub(super) async fn send_ended<H>(sending: &mut Option<(Pending<H>, bool)>) -> (Reply<H>, bool) {
    match sending {
        Some((pending, is_key)) => (pending.await, *is_key),
        None => std::future::pending().await,
    }
}

fn start<H: Http>(mut http: H, request: Request, nonce: Nonce) -> Pending<H> {
    Box::pin(async move {
        let answer = http.send(request).await;
        (http, answer, nonce)
    })
}
