//! The decoders of chain responses. Input is decoded or refused without a panic, and a grant requires node and key in the input.

use spoke_grants::abi::{decode_head, decode_reads, event_text, no_such_token};
use spoke_grants::cursor::ChainCursor;
use spoke_grants::jsonrpc::{Answer, At, BlockRef, Call, decode};
use spoke_grants::policy::{Facts, decide};
use spoke_grants::proof::ProofRequest;
use spoke_grants::question::{Finding, Question, pinned_calls};
use spoke_model::key::PublicKey;

const NODE: &str = "edge-1";
const KEY: PublicKey = PublicKey([7; 32]);

/// The first byte selects the decoder, the rest is its input.
pub(crate) fn consume(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 7 {
        0 => batch(rest),
        1 => {
            for reads in decode_reads(rest, 1).into_iter().flatten() {
                if decide(&Facts::of(&reads), NODE, &KEY).is_ok_and(|d| d.reason.grants()) {
                    assert_contained(rest);
                }
            }
        }
        2 => drop(decode_head(rest)),
        3 => {
            let _ = (no_such_token(rest), event_text(rest, 0), event_text(rest, 3));
        }
        4 => verification(rest),
        5 => position(rest),
        _ => proof(rest),
    }
}

/// A granting response contains the node's name and its key.
fn assert_contained(bytes: &[u8]) {
    let contains = |word: &[u8]| bytes.windows(word.len()).any(|w| w == word);
    assert!(contains(KEY.to_string().as_bytes()) && contains(NODE.as_bytes()), "a grant without node and key");
}

fn batch(bytes: &[u8]) {
    let asks = [
        Call::ChainId,
        Call::ClientVersion,
        Call::Run { code: Vec::new(), at: At::Latest },
        Call::Logs { contract: Default::default(), from: 0, to: None },
        Call::Header(At::Latest),
        Call::Send { from: Default::default(), to: Default::default(), data: Vec::new(), dry: false },
    ];
    if let Ok(answers) = decode(bytes, &asks) {
        assert_eq!(answers.len(), asks.len());
        for (ask, answer) in asks.iter().zip(answers) {
            let fits = matches!(
                (ask, answer),
                (_, None | Some(Answer::Refused(_)))
                    | (Call::ChainId, Some(Answer::Number(_)))
                    | (Call::ClientVersion, Some(Answer::Name(_)))
                    | (Call::Run { .. } | Call::Send { .. }, Some(Answer::Bytes(_)))
                    | (Call::Logs { .. }, Some(Answer::Events(_)))
                    | (Call::Header(_), Some(Answer::Block(_) | Answer::Nothing))
            );
            assert!(fits, "the answer does not match its call");
        }
    }
}

/// A whole response about one node, from JSON to the decision.
fn verification(bytes: &[u8]) {
    let Ok(answers) = decode(bytes, &[Call::Run { code: Vec::new(), at: At::Latest }]) else {
        return;
    };
    let Some(Some(Answer::Bytes(inner))) = answers.first().cloned() else {
        return;
    };
    let pair = (NODE.parse().unwrap_or_else(|_| unreachable!("a node id")), KEY);
    let calls = pinned_calls(&[BlockRef::default()], 1, 1);
    let question = Question::Decisions { calls, pairs: std::sync::Arc::from([pair]) };
    let pin = [[0; 31].as_slice(), &[1], &[0; 31], &[1]].concat();
    let answers = std::iter::once(Some(Answer::Bytes(pin))).chain(answers).collect();
    if let Ok(Finding::Decisions { decisions, .. }) = question.read(answers, Default::default(), 1) {
        assert_eq!(decisions.len(), 1);
        if decisions[0].is_ok_and(|d| d.reason.grants()) {
            assert_contained(&inner);
        }
    }
}

/// A whole response to a poll: the accepted head is not older than the known one.
fn position(bytes: &[u8]) {
    let cursor = Box::new(ChainCursor::start(BlockRef { number: 3, ..BlockRef::default() }));
    let question = Question::Position { cursor, finality: None, events: true };
    if let Ok(answers) = decode(bytes, &question.calls(Default::default()))
        && let Ok(Finding::Position(view)) = question.read(answers, Default::default(), 1)
    {
        assert!(view.head >= 3, "the accepted head went back");
    }
}

/// A response to a request for proofs: nothing is proved against a hash that is that of no header.
fn proof(bytes: &[u8]) {
    let block = BlockRef { number: 3, hash: [1; 32].into() };
    let slots = std::sync::Arc::from([[2; 32].into()]);
    let question = Question::Proofs(vec![ProofRequest { pin: 0, block, storage_root: None, slots }]);
    if let Ok(answers) = decode(bytes, &question.calls(Default::default())) {
        assert!(question.read(answers, Default::default(), 1).is_err(), "proved against no block");
    }
}
