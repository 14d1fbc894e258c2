// SPDX-License-Identifier: MIT OR Apache-2.0
// The five reads of a grant for many nodes in one `eth_call`: code that is sent along and never deployed.
pragma solidity ^0.8.28;

/// Runs as a constructor in an `eth_call` without `to`; what it returns as "deployed code" is the answer, which clients
/// cap at 24,576 bytes. It decides nothing: per node come five outcomes in the order of the calls, each
/// `ok (1 byte) | length (4 bytes, big endian) | the first min(length, room) bytes`, exactly as the contract gave them.
/// A byte 0x00 comes first, because code may not begin with 0xEF.
contract GrantReads {
    constructor(address target, string[] memory nodes) {
        bytes memory out = new bytes(24_576);
        uint256 used = 1;
        for (uint256 i = 0; i < nodes.length; ++i) {
            bytes memory node = bytes(nodes[i]);
            bool ok;
            uint256 id;
            // getTokenIdByNodeId(string)
            (ok, id, used) = read(target, abi.encodeWithSelector(bytes4(0xb9244a9f), node), out, used, 32);
            // getNodeAccess(uint256), ownerOf(uint256)
            (, , used) = read(target, abi.encodeWithSelector(bytes4(0x6a572da6), id), out, used, 448);
            uint256 owner;
            (, owner, used) = read(target, abi.encodeWithSelector(bytes4(0x6352211e), id), out, used, 32);
            // getPublicKeyByOwner(address), hasNodeAccess(address,string)
            (, , used) = read(target, abi.encodeWithSelector(bytes4(0xe02129d3), owner), out, used, 128);
            (, , used) = read(target, abi.encodeWithSelector(bytes4(0x54698191), owner, node), out, used, 32);
        }
        assembly ("memory-safe") {
            return(add(out, 32), used)
        }
    }

    /// Appends one outcome to `out` at `used`. `word` is the first word of a successful answer, else 0. A refusal gets 100
    /// bytes of room: the selector and all of `Error(string)` that matters.
    function read(
        address target,
        bytes memory question,
        bytes memory out,
        uint256 used,
        uint256 room
    ) private view returns (bool ok, uint256 word, uint256 next) {
        assembly ("memory-safe") {
            ok := staticcall(gas(), target, add(question, 32), mload(question), 0, 0)
            let size := returndatasize()
            if iszero(ok) { room := 100 }
            let kept := size
            if gt(kept, room) { kept := room }
            let to := add(add(out, 32), used)
            mstore8(to, ok)
            mstore(add(to, 1), shl(224, size))
            returndatacopy(add(to, 5), 0, kept)
            if and(ok, gt(size, 31)) { word := mload(add(to, 5)) }
            next := add(used, add(5, kept))
        }
    }
}
