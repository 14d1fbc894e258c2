//! The contract's calls that change a grant, for who holds the account of its owner or a token: as calldata, and as a
//! line for `cast`.
use alloy_primitives::{Address, U256};
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use std::fmt::Write as _;

/// A transaction to the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// Grants access; only the contract's owner may.
    Mint {
        /// The token's holder.
        to: Address,
        /// The node.
        node: NodeId,
        /// Its key.
        key: PublicKey,
    },
    /// Revokes a token; only the contract's owner may.
    Revoke(U256),
    /// Gives a token to another holder; its holder may.
    Transfer {
        /// The holder.
        from: Address,
        /// The next holder.
        to: Address,
        /// The token.
        token: U256,
    },
    /// Destroys a token; its holder may. Only some contracts have it.
    Burn(U256),
}

enum Argument {
    Address(Address),
    Number(U256),
    Text(String),
}

impl Transaction {
    /// Selector, signature and arguments.
    fn parts(&self) -> ([u8; 4], &'static str, Vec<Argument>) {
        use Argument::{Address, Number, Text};
        match self {
            Self::Mint { to, node, key } => (
                [0xeb, 0x27, 0xf9, 0x48],
                "mintNodeAccess(address,string,string,string)",
                vec![Address(*to), Text(node.to_string()), Text(key.to_string()), Text(String::new())],
            ),
            Self::Revoke(token) => ([0xbe, 0x1b, 0xa4, 0x06], "revokeNodeAccess(uint256)", vec![Number(*token)]),
            Self::Transfer { from, to, token } => (
                [0x23, 0xb8, 0x72, 0xdd],
                "transferFrom(address,address,uint256)",
                vec![Address(*from), Address(*to), Number(*token)],
            ),
            Self::Burn(token) => ([0x42, 0x96, 0x6c, 0x68], "burn(uint256)", vec![Number(*token)]),
        }
    }

    /// Its calldata: selector, heads, then the strings.
    pub fn data(&self) -> Vec<u8> {
        let (selector, _, arguments) = self.parts();
        let mut out = selector.to_vec();
        let mut tail = Vec::new();
        for argument in &arguments {
            let head = match argument {
                Argument::Address(a) => U256::from_be_bytes(a.into_word().0),
                Argument::Number(n) => *n,
                Argument::Text(text) => {
                    let offset = arguments.len() * 32 + tail.len();
                    tail.extend_from_slice(&U256::from(text.len()).to_be_bytes::<32>());
                    tail.extend_from_slice(text.as_bytes());
                    tail.resize(tail.len().next_multiple_of(32), 0);
                    U256::from(offset)
                }
            };
            out.extend_from_slice(&head.to_be_bytes::<32>());
        }
        out.extend_from_slice(&tail);
        out
    }

    /// The command that sends it to `contract`. Endpoint and account are `cast`'s own: `ETH_RPC_URL`,
    /// `ETH_KEYSTORE_ACCOUNT`, or further options.
    pub fn cast_line(&self, contract: Address, chain_id: u64) -> String {
        let (_, signature, arguments) = self.parts();
        let mut out = format!("cast send --chain {chain_id} {contract} '{signature}'");
        for argument in arguments {
            // Writing into a `String` cannot fail.
            let _ = match argument {
                Argument::Address(a) => write!(out, " {a}"),
                Argument::Number(n) => write!(out, " {n}"),
                Argument::Text(text) => write!(out, " '{text}'"),
            };
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::{address, hex, keccak256};

    fn all() -> [Transaction; 4] {
        let [from, to] = [Address::repeat_byte(1), Address::repeat_byte(2)];
        let key = "gL9MIhpbgYcBdJHJ9cdTLoCzRXOg0tDmpmFmKTN6FlA=".parse().unwrap();
        let token = U256::from(7);
        [
            Transaction::Mint { to, node: "client-1".parse().unwrap(), key },
            Transaction::Revoke(token),
            Transaction::Transfer { from, to, token },
            Transaction::Burn(token),
        ]
    }

    #[test]
    fn selectors_are_those_of_the_signatures() {
        for transaction in all() {
            let (selector, signature, _) = transaction.parts();
            assert_eq!(selector, keccak256(signature)[..4], "{signature}");
        }
    }

    #[test]
    fn strings_follow_the_heads() {
        let [mint, ..] = all();
        let data = mint.data();
        let word = |i: usize| U256::from_be_slice(&data[4 + i * 32..36 + i * 32]);
        // Heads: address, three offsets; then lengths with their texts of one, two and no words.
        assert_eq!([word(1), word(2), word(3)].map(|w| w.to::<usize>()), [128, 192, 288]);
        assert_eq!([word(4), word(6), word(9)].map(|w| w.to::<usize>()), [8, 44, 0]);
        assert_eq!((data.len(), &data[4 + 5 * 32..4 + 5 * 32 + 8]), (4 + 10 * 32, &b"client-1"[..]));
        assert_eq!(hex::encode(Transaction::Revoke(U256::from(7)).data()), format!("be1ba406{:064x}", 7));
    }

    #[test]
    fn cast_line_names_chain_contract_and_arguments() {
        let contract = address!("37d2106bADB01dd5bE1926e45D172Cb4203C4186");
        let [mint, revoke, ..] = all();
        assert_eq!(
            revoke.cast_line(contract, 8453),
            "cast send --chain 8453 0x37d2106bADB01dd5bE1926e45D172Cb4203C4186 'revokeNodeAccess(uint256)' 7"
        );
        assert!(mint.cast_line(contract, 1).ends_with(
            "'mintNodeAccess(address,string,string,string)' 0x0202020202020202020202020202020202020202 'client-1' 'gL9MIhpbgYcBdJHJ9cdTLoCzRXOg0tDmpmFmKTN6FlA=' ''"
        ));
    }
}
