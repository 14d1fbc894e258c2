//! Proofs of tries built here: each is read back, and no changed byte of one passes.
use super::*;
use alloy_primitives::hex;
use proptest::prelude::*;

/// A trie of hashed keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trie {
    root: Option<B256>,
    /// Nodes by the nibbles that lead to them.
    nodes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Trie {
    /// A trie of values in RLP by key, which is hashed here.
    pub(crate) fn new<K: AsRef<[u8]>>(values: impl IntoIterator<Item = (K, Vec<u8>)>) -> Self {
        let mut all: Vec<(Vec<u8>, Vec<u8>)> =
            values.into_iter().map(|(key, value)| (nibbles(keccak256(key)), value)).collect();
        all.sort();
        let mut trie = Self::default();
        if !all.is_empty() {
            let root = trie.build(&all, 0);
            trie.root = Some(keccak256(&root));
            trie.nodes.push((Vec::new(), root));
        }
        trie
    }

    pub(crate) fn root(&self) -> B256 {
        self.root.unwrap_or(EMPTY_ROOT)
    }

    /// The nodes on the way to a key, from the root.
    pub(crate) fn proof(&self, key: impl AsRef<[u8]>) -> Vec<Vec<u8>> {
        let path = nibbles(keccak256(key));
        let mut on_path: Vec<_> = self.nodes.iter().filter(|(at, _)| path.starts_with(at)).collect();
        on_path.sort_by_key(|(at, _)| at.len());
        on_path.into_iter().map(|(_, node)| node.clone()).collect()
    }

    fn build(&mut self, all: &[(Vec<u8>, Vec<u8>)], depth: usize) -> Vec<u8> {
        let (first, value) = &all[0];
        if let [_] = all {
            return concat(&[string(&packed(&first[depth..], true)), string(value)]);
        }
        let last = &all[all.len() - 1].0;
        let common = first[depth..].iter().zip(&last[depth..]).take_while(|(a, b)| a == b).count();
        if common > 0 {
            let below = self.reference(all, depth + common);
            return concat(&[string(&packed(&first[depth..depth + common], false)), below]);
        }
        let children = (0..16).map(|n| {
            let below: Vec<_> = all.iter().filter(|(path, _)| path[depth] == n).cloned().collect();
            if below.is_empty() { string(&[]) } else { self.reference(&below, depth + 1) }
        });
        let mut items: Vec<_> = children.collect();
        items.push(string(&[]));
        concat(&items)
    }

    fn reference(&mut self, all: &[(Vec<u8>, Vec<u8>)], depth: usize) -> Vec<u8> {
        let node = self.build(all, depth);
        if node.len() < 32 {
            return node;
        }
        let hash = keccak256(&node);
        self.nodes.push((all[0].0[..depth].to_vec(), node));
        string(hash.as_slice())
    }
}

fn nibbles(hash: B256) -> Vec<u8> {
    hash.iter().flat_map(|b| [b >> 4, b & 15]).collect()
}

fn packed(nibbles: &[u8], leaf: bool) -> Vec<u8> {
    let flags = if leaf { 2 } else { 0 } + u8::from(!nibbles.len().is_multiple_of(2));
    let first = if !nibbles.len().is_multiple_of(2) { vec![flags] } else { vec![flags, 0] };
    [first.as_slice(), nibbles].concat().chunks(2).map(|n| n[0] << 4 | n[1]).collect()
}

fn length(base: u8, n: usize) -> Vec<u8> {
    match n {
        0..=55 => vec![base + u8::try_from(n).unwrap()],
        56..=255 => vec![base + 56, u8::try_from(n).unwrap()],
        _ => vec![base + 57, u8::try_from(n >> 8).unwrap(), u8::try_from(n & 255).unwrap()],
    }
}

/// A string in RLP.
pub(crate) fn string(bytes: &[u8]) -> Vec<u8> {
    match bytes {
        [one @ 0..=0x7f] => vec![*one],
        _ => [length(0x80, bytes.len()), bytes.to_vec()].concat(),
    }
}

fn concat(items: &[Vec<u8>]) -> Vec<u8> {
    let content = items.concat();
    [length(0xc0, content.len()), content].concat()
}

/// A word of storage as a value.
pub(crate) fn word(word: U256) -> Vec<u8> {
    string(&word.to_be_bytes_trimmed_vec())
}

/// An account as a value.
pub(crate) fn account(storage_root: B256, code_hash: B256) -> Vec<u8> {
    concat(&[string(&[1]), string(&[]), string(storage_root.as_slice()), string(code_hash.as_slice())])
}

fn nodes(proof: Vec<Vec<u8>>) -> Nodes {
    let mut nodes = Nodes::default();
    nodes.add(proof);
    nodes
}

fn slot(n: u64) -> B256 {
    B256::from(U256::from(n))
}

fn storage(words: &BTreeMap<u64, u64>) -> Trie {
    Trie::new(words.iter().map(|(n, w)| (slot(*n), word(U256::from(*w)))))
}

#[test]
fn genesis_of_ethereum_has_its_hash_and_root() {
    let hash = "d4e56740f876aef8c010b86a40d5f56745a118d0906a34e69aec8c0db1cb8fa3".parse().unwrap();
    let root = hex!("d7f8974fb5ac78d9ac099b9ad5018bedc2ce0a72dad1827a1709da30580f0544");
    let uncles = hex!("1dcc4de8dec75d7aab85b567b6ccd41ad312451b948a7413f0a142fd40d49347");
    let extra = hex!("11bbe8db4e347b4e8c937c1c8370e4b5ed33adb3db69cbdb7a38e1e50b1b82fa");
    let (zero, empty, bloom) = ([0; 32], EMPTY_ROOT.0, [0; 256]);
    let nonce = [0, 0, 0, 0, 0, 0, 0, 0x42];
    let fields: [&[u8]; 15] = [
        &zero,
        &uncles,
        &[0; 20],
        &root,
        &empty,
        &empty,
        &bloom,
        &hex!("0400000000"),
        &[],
        &hex!("1388"),
        &[],
        &[],
        &extra,
        &zero,
        &nonce,
    ];
    let rlp = encode_list(fields.into_iter());
    assert_eq!(header(&rlp, hash), Ok(Header { number: 0, state_root: root.into() }));
    assert_eq!(header(&rlp[1..], hash), Err(BadProof::Header));
}

#[test]
fn absent_account_and_empty_trie_are_proved() {
    let known = Address::repeat_byte(1);
    let trie = Trie::new([(known, account(EMPTY_ROOT, NO_CODE))]);
    let account = nodes(trie.proof(known)).account(trie.root(), known);
    assert_eq!(account, Ok(Some(Account { storage_root: EMPTY_ROOT, code_hash: NO_CODE })));
    assert!(!account.unwrap().unwrap().has_code());
    let other = Address::repeat_byte(2);
    assert_eq!(nodes(trie.proof(other)).account(trie.root(), other), Ok(None));
    assert_eq!(nodes(Vec::new()).word(EMPTY_ROOT, slot(1)), Ok(U256::ZERO));
    assert_eq!(nodes(Vec::new()).word(trie.root(), slot(1)), Err(BadProof::Missing));
}

proptest! {
    /// Words and absences are read back from their own proofs.
    #[test]
    fn proofs_are_read_back(words in proptest::collection::btree_map(0u64..200, 1u64.., 0..120), at in 0u64..200) {
        let trie = storage(&words);
        let wanted = U256::from(words.get(&at).copied().unwrap_or(0));
        prop_assert_eq!(nodes(trie.proof(slot(at))).word(trie.root(), slot(at)), Ok(wanted));
    }

    /// No changed byte, missing node or other root passes, whether the proof is of a word or of an absence.
    #[test]
    fn changed_byte_is_refused(
        words in proptest::collection::btree_map(0u64..200, 1u64.., 1..60),
        at in 0u64..200, node in any::<prop::sample::Index>(), byte in any::<prop::sample::Index>(), flip in 1u8..,
    ) {
        let trie = storage(&words);
        let proof = trie.proof(slot(at));
        let i = node.index(proof.len());
        let mut changed = proof.clone();
        let byte = byte.index(changed[i].len());
        changed[i][byte] ^= flip;
        prop_assert_eq!(nodes(changed).word(trie.root(), slot(at)), Err(BadProof::Missing));
        let mut short = proof.clone();
        short.remove(i);
        prop_assert_eq!(nodes(short).word(trie.root(), slot(at)), Err(BadProof::Missing));
        let mut root = trie.root();
        root.0[31] ^= flip;
        prop_assert_eq!(nodes(proof).word(root, slot(at)), Err(BadProof::Missing));
    }

    /// Nodes that hash right and make no trie are no proof, and none of them panics or loops.
    #[test]
    fn nonsense_is_no_proof(node in proptest::collection::vec(any::<u8>(), 0..80), at in 0u64..4) {
        let root = keccak256(&node);
        let _ = nodes(vec![node.clone()]).word(root, slot(at));
        let _ = header(&node, root);
        // A node that refers to itself cannot be made, but a list of any two or 17 items can.
        let pair = concat(&[string(&node), string(&node)]);
        let _ = nodes(vec![pair.clone()]).word(keccak256(&pair), slot(at));
        let branch = concat(&vec![string(&node); 17]);
        let _ = nodes(vec![branch.clone()]).account(keccak256(&branch), Address::ZERO);
    }

    #[test]
    fn lists_are_encoded_as_they_are_read(items in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20)) {
        let rlp = encode_list(items.iter().map(Vec::as_slice));
        prop_assert_eq!(&rlp, &concat(&items.iter().map(|i| string(i)).collect::<Vec<_>>()).clone());
        let mut rest = list(&rlp).unwrap();
        for wanted in &items {
            let (found, after) = next(rest).unwrap();
            prop_assert_eq!(found, Item::Bytes(wanted));
            rest = after;
        }
        prop_assert!(rest.is_empty());
    }
}
