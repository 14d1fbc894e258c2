//! Tests of the ABI: selectors against keccak, decoders against arbitrary bytes.
use super::*;
use alloy_primitives::keccak256;
use proptest::prelude::*;

#[test]
fn topics_and_selectors_match_their_signatures() {
    let topics: [(&str, B256); 5] = [
        ("NodeAccessGranted(uint256,string,address,string)", GRANTED),
        ("NodeAccessRevoked(uint256,string)", REVOKED),
        ("NodeAccessTransferred(uint256,address,address)", TRANSFERRED),
        ("PublicKeyUpdated(address,string)", KEY_UPDATED),
        ("Transfer(address,address,uint256)", TRANSFER),
    ];
    for (signature, topic) in topics {
        assert_eq!(keccak256(signature), topic, "{signature}");
    }
    let harmless = [
        "Approval(address,address,uint256)",
        "ApprovalForAll(address,address,bool)",
        "OwnershipTransferred(address,address)",
        "OwnershipTransferInitiated(address,address)",
        "MetadataUpdate(uint256)",
        "BatchMetadataUpdate(uint256,uint256)",
    ];
    assert_eq!(harmless.map(keccak256), HARMLESS);
    assert_eq!(keccak256("ERC721NonexistentToken(uint256)")[..4], NONEXISTENT);
    assert_eq!(keccak256("Error(string)")[..4], ERROR);
}

#[test]
fn reads_code_contains_the_five_selectors() {
    let code = code();
    assert!(code.len() > 500 && code.len() < 2000, "{} bytes", code.len());
    for signature in [
        "getTokenIdByNodeId(string)",
        "getNodeAccess(uint256)",
        "ownerOf(uint256)",
        "getPublicKeyByOwner(address)",
        "hasNodeAccess(address,string)",
    ] {
        let selector = u32::from_be_bytes(keccak256(signature)[..4].try_into().unwrap());
        // The compiler pushes a constant without its trailing zero bits and shifts it into place.
        let pushed = (selector >> selector.trailing_zeros()).to_be_bytes();
        assert!(code.windows(4).any(|w| w == pushed), "{signature}");
    }
    let data = reads_call(Address::ZERO, ["a", "bb"].into_iter());
    assert_eq!(data.len() - code.len(), 32 * 9);
}

#[test]
fn pin_call_reports_the_contract() {
    let call = pin_call(Address::repeat_byte(7));
    // The jump-free code ends with its return; every instruction before it is a whole one.
    assert_eq!((call.len(), &call[call.len() - 5..]), (115, &[0x60, 0xa0, 0x60, 0x00, 0xf3][..]));
    let mut data = [0u8; 160];
    (data[31], data[63], data[95], data[127]) = (9, 1, 200, 1);
    let contract = ContractProbe { exists: true, erc721: true };
    assert_eq!(decode_pin(&data), Ok(PinAnswer { number: 9, chain_id: 1, contract }));
    data[100] = 1;
    assert!(!decode_pin(&data).unwrap().contract.erc721, "only 1 is true");
    assert_eq!(decode_pin(&data[..64]), Err(Malformed::Short));
}

#[test]
fn head_of_a_wrong_length_or_range_is_refused() {
    let mut data = [0u8; 128];
    data[31] = 9;
    data[63] = 1;
    data[127] = 5;
    let head = decode_head(&data).unwrap();
    assert_eq!((head.number, head.parent.is_some(), head.asked, head.chain_id), (9, true, None, 5));
    assert_eq!(decode_head(&data[..127]), Err(Malformed::Short));
    assert_eq!(decode_head(&[0; 129]), Err(Malformed::Trailing));
    assert_eq!(decode_head(&[0xff; 128]), Err(Malformed::Range));
}

fn record(reads: &[(bool, Vec<u8>)]) -> Vec<u8> {
    let rooms = [32, 448, 32, 128, 32];
    reads
        .iter()
        .zip(rooms.into_iter().cycle())
        .flat_map(|((ok, data), room)| {
            let room = if *ok { room } else { 100 };
            let mut out = vec![u8::from(*ok)];
            out.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
            out.extend_from_slice(&data[..data.len().min(room)]);
            out
        })
        .collect()
}

proptest! {
    #[test]
    fn records_read_back(reads in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..600)), 5..=5)) {
        let bytes = [vec![0], record(&reads), record(&reads)].concat();
        let back = decode_reads(&bytes, 2).unwrap();
        prop_assert_eq!(back.len(), 2);
        for (read, (ok, data)) in [back[1].token_id, back[1].access, back[1].owner, back[1].owner_key, back[1].has_access].iter().zip(&reads) {
            match read {
                Read::Returned { size, data: d } => { prop_assert!(*ok); prop_assert_eq!(*size, data.len()); prop_assert!(data.starts_with(d)); }
                Read::Reverted(d) => { prop_assert!(!*ok); prop_assert!(data.starts_with(d)); }
            }
        }
        prop_assert!(decode_reads(&bytes, 1).is_err() && decode_reads(&bytes, 3).is_err());
    }

    #[test]
    fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..800), count in 0usize..4) {
        for r in decode_reads(&data, count).into_iter().flatten() {
            let _ = (uint(r.token_id), node_access(r.access), address(r.owner), string(r.owner_key), boolean(r.has_access));
        }
        let whole = Read::Returned { size: data.len(), data: &data };
        let _ = (uint(whole), node_access(whole), address(whole), string(whole), boolean(whole));
        let _ = (no_such_token(&data), event_text(&data, 0), event_text(&data, usize::MAX), decode_head(&data));
    }

    /// Offsets and lengths that overflow, in otherwise plausible answers.
    #[test]
    fn hostile_offsets_are_refused(offset in any::<[u8; 32]>(), len in any::<[u8; 32]>()) {
        let data = [offset, len, [0; 32], [0; 32]].concat();
        let _ = string(Read::Returned { size: data.len(), data: &data });
        let near = [U256::from(32).to_be_bytes(), len, [b'x'; 32]].concat();
        if let Ok(Some(Text::Plain(t))) = string(Read::Returned { size: near.len(), data: &near }) {
            prop_assert!(t.len() <= 32);
        }
    }
}
