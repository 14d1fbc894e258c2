// SPDX-License-Identifier: MIT OR Apache-2.0
// The reference access contract: the published interface, with the two behaviours that are unknown of the deployed one as
// constructor switches, and burn.
pragma solidity ^0.8.28;

import {ERC721URIStorage, ERC721} from "@openzeppelin/contracts/token/ERC721/extensions/ERC721URIStorage.sol";
import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";

contract NodeAccess is ERC721URIStorage, Ownable {
    struct Access {
        string wireguardPublicKey;
        string nodeId;
        uint256 createdAt;
        bool isActive;
    }

    event NodeAccessGranted(uint256 indexed tokenId, string nodeId, address indexed owner, string wireguardPublicKey);
    event NodeAccessRevoked(uint256 indexed tokenId, string nodeId);
    event NodeAccessTransferred(uint256 indexed tokenId, address indexed from, address indexed to);
    event PublicKeyUpdated(address indexed owner, string wireguardPublicKey);
    event OwnershipTransferInitiated(address indexed previousOwner, address indexed newOwner);

    /// Unknown behaviour 1: whether a transfer clears the key that the token carries.
    bool public immutable clearsKeyOnTransfer;
    /// Unknown behaviour 2: whether the id of a revoked node can be minted again.
    bool public immutable remintsRevoked;

    mapping(uint256 tokenId => Access) private accesses;
    mapping(string nodeId => uint256 tokenId) private tokens;
    mapping(address owner => string wireguardPublicKey) private keys;
    uint256 private last;

    constructor(bool clearsKeyOnTransfer_, bool remintsRevoked_) ERC721("Node Access", "NODE") Ownable(msg.sender) {
        clearsKeyOnTransfer = clearsKeyOnTransfer_;
        remintsRevoked = remintsRevoked_;
    }

    function mintNodeAccess(
        address to,
        string calldata nodeId,
        string calldata wireguardPublicKey,
        string calldata uri
    ) external onlyOwner returns (uint256 tokenId) {
        uint256 before = tokens[nodeId];
        require(before == 0 || (remintsRevoked && !accesses[before].isActive), "node id is taken");
        tokenId = ++last;
        tokens[nodeId] = tokenId;
        accesses[tokenId] = Access(wireguardPublicKey, nodeId, block.timestamp, true);
        _setKey(to, wireguardPublicKey);
        _mint(to, tokenId);
        _setTokenURI(tokenId, uri);
        emit NodeAccessGranted(tokenId, nodeId, to, wireguardPublicKey);
    }

    function revokeNodeAccess(uint256 tokenId) external onlyOwner {
        address owner = _requireOwned(tokenId);
        Access storage access = accesses[tokenId];
        access.isActive = false;
        if (keccak256(bytes(keys[owner])) == keccak256(bytes(access.wireguardPublicKey))) {
            _setKey(owner, "");
        }
        emit NodeAccessRevoked(tokenId, access.nodeId);
    }

    /// For the holder, or whom the holder approved. The node id can be minted again.
    function burn(uint256 tokenId) external {
        _update(address(0), tokenId, _msgSender());
    }

    function getNodeAccess(
        uint256 tokenId
    ) external view returns (string memory nodeId, string memory wireguardPublicKey, uint256 createdAt, bool isActive) {
        _requireOwned(tokenId);
        Access storage access = accesses[tokenId];
        return (access.nodeId, access.wireguardPublicKey, access.createdAt, access.isActive);
    }

    function hasNodeAccess(address user, string calldata nodeId) public view returns (bool) {
        uint256 tokenId = tokens[nodeId];
        return tokenId != 0 && accesses[tokenId].isActive && _ownerOf(tokenId) == user;
    }

    function verifyAccess(address user, string calldata nodeId) external view returns (bool) {
        return hasNodeAccess(user, nodeId);
    }

    function getTokenIdByNodeId(string calldata nodeId) external view returns (uint256) {
        return tokens[nodeId];
    }

    function getPublicKeyByOwner(address owner) external view returns (string memory) {
        return keys[owner];
    }

    function getPublicKeyByTokenId(uint256 tokenId) external view returns (string memory) {
        _requireOwned(tokenId);
        return accesses[tokenId].wireguardPublicKey;
    }

    function transferContractOwnership(address newOwner) external onlyOwner {
        emit OwnershipTransferInitiated(owner(), newOwner);
        _transferOwnership(newOwner);
    }

    /// Every change of hands passes here; a mint (from nobody) is announced by mintNodeAccess itself.
    function _update(address to, uint256 tokenId, address auth) internal override returns (address from) {
        from = super._update(to, tokenId, auth);
        if (from == address(0)) return from;
        Access storage access = accesses[tokenId];
        if (keccak256(bytes(keys[from])) == keccak256(bytes(access.wireguardPublicKey))) {
            _setKey(from, "");
        }
        if (to == address(0)) {
            delete tokens[access.nodeId];
            delete accesses[tokenId];
        } else if (clearsKeyOnTransfer) {
            access.wireguardPublicKey = "";
        }
        emit NodeAccessTransferred(tokenId, from, to);
    }

    function _setKey(address owner, string memory wireguardPublicKey) private {
        keys[owner] = wireguardPublicKey;
        emit PublicKeyUpdated(owner, wireguardPublicKey);
    }
}
