//! Sends the requests of the machines to the endpoints.
use spoke_grants::exchange::{EndpointNotice, RpcFailure, RpcReply, RpcRequest};
use spoke_grants::jsonrpc::BadAnswer;
use spoke_sys::rpc::{Rpc, RpcError};

pub(crate) fn endpoint_names(rpc: &impl Rpc) -> Vec<String> {
    (0..rpc.endpoints()).map(|i| rpc.name(i).to_owned()).collect()
}

pub(crate) async fn send(rpc: &impl Rpc, request: RpcRequest) -> Result<RpcReply, RpcFailure> {
    match rpc.ask(request.endpoint, request.calls, request.max_bytes).await {
        Ok(reply) => Ok(RpcReply { answers: reply.answers, took: reply.took, bytes: reply.bytes }),
        Err(RpcError::Bad(BadAnswer::Refused(refusal))) => Err(RpcFailure::Refused(refusal)),
        Err(RpcError::TooLarge(_)) => Err(RpcFailure::TooLarge),
        Err(e) => Err(RpcFailure::Failed { error: e.to_string(), retry_after: e.retry_after() }),
    }
}

pub(crate) fn log_notice(notice: &EndpointNotice) {
    match notice {
        EndpointNotice::Rejected { endpoint, fault } => tracing::debug!(endpoint, %fault, "endpoint answer rejected"),
        EndpointNotice::Refuted { endpoint, fault } => {
            tracing::warn!(endpoint, %fault, "endpoint reports what a quorum refutes");
        }
        EndpointNotice::Dissented { endpoint } => tracing::warn!(endpoint, "endpoint contradicts the quorum"),
    }
}
