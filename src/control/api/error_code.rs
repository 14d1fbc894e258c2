//! The codes of errors of the operators' API: stable words for programs, each with its status code and remedy. Pure.
use serde::Serialize;

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])* $name:ident = $word:literal, $status:literal, $remedy:literal;)*) => {
        /// Why a request was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode { $($(#[doc = $doc])* $name,)* }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// As in JSON.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// The status code of the response.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// What the caller can do.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)* }
            }
        }
    };
}

error_codes! {
    /// A path, query, header or body that is not understood, or a value that is not accepted.
    BadRequest = "bad_request", 400, "correct the request: /api/openapi.json describes every call and its fields";
    /// No valid key.
    NoKey = "no_key", 401, "send Authorization: Bearer KEY; an admin makes one with `spoke-control key create`";
    /// The role of the key does not suffice.
    Role = "role", 403, "use a key with the role that the message names; an admin makes one with `spoke-control key create`";
    /// No such path, method or entity.
    NotFound = "not_found", 404, "correct the name: the list one level above shows what there is";
    /// The name is in use.
    Exists = "exists", 409, "choose another name, or change what has it";
    /// The node was removed from the fleet.
    Removed = "removed", 409, "announce it again with POST /api/nodes";
    /// Nodes depend on what would change or go.
    InUse = "in_use", 409, "move or remove first what the message names";
    /// The state of the entity does not allow it.
    WrongState = "wrong_state", 409, "read the entity: the message says what state it would have to be in";
    /// Another node or network holds the address, pool or key.
    Taken = "taken", 409, "choose a value that is free, or release it at the holder that the message names";
    /// The entity was changed since it was read: `fields` names what, `data` is how it is.
    Changed = "changed", 412, "take `data` for what you had, make the change again, and send its ETag in If-Match";
    /// A body over the limit.
    TooLarge = "too_large", 413, "send less in one request";
    /// The idempotency key was used for another request.
    KeyReused = "key_reused", 422, "make a new Idempotency-Key for each request, and repeat it only with the same request";
    /// The same request is being carried out.
    InProgress = "in_progress", 409, "repeat the request later with the same Idempotency-Key";
    /// The request was carried out, and its answer could not be kept.
    AnswerLost = "answer_lost", 409, "do not repeat it: read the entity, or the audit trail at /api/audit-logs";
    /// Too many requests.
    RateLimited = "rate_limited", 429, "repeat the request after the seconds in Retry-After";
    /// A fault of the control plane, which its log names.
    Internal = "internal", 500, "read the control plane's log of this time, and report it";
    /// The control plane or its database cannot serve the request.
    Unavailable = "unavailable", 503, "repeat the request after the seconds in Retry-After; the control plane's log names the cause";
    /// The test of a node failed: `data` is its result.
    NodeFailed = "node_failed", 503, "read the node's conditions and last report, and the log on the device";
    /// No address is left in the network's pool.
    PoolExhausted = "pool_exhausted", 503, "give the network a larger pool, or remove nodes";
}

impl ErrorCode {
    /// The code of an error of which only the status code is known.
    pub fn of_status(status: u16) -> Self {
        let general = [Self::NoKey, Self::Role, Self::NotFound, Self::TooLarge, Self::RateLimited, Self::Unavailable];
        match general.into_iter().find(|c| c.status() == status) {
            Some(code) => code,
            None if status >= 500 => Self::Internal,
            None => Self::BadRequest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_documented() {
        let page = include_str!("../../../docs/control-api.md");
        for code in ErrorCode::ALL {
            let word = code.as_str();
            assert_eq!(serde_json::to_value(code).unwrap(), word, "one spelling");
            assert_eq!(ErrorCode::ALL.iter().filter(|c| c.as_str() == word).count(), 1, "{word}");
            assert!(page.contains(&format!("| `{word}` | {} |", code.status())), "docs/control-api.md lists {word}");
            assert!(!code.remedy().is_empty() && (400..600).contains(&code.status()));
        }
    }

    #[test]
    fn framework_errors_have_a_code_of_their_class() {
        for status in 400..600 {
            let code = ErrorCode::of_status(status);
            assert_eq!(code.status() / 100, status / 100, "{status} is {code:?}");
        }
    }
}
