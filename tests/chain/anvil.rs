//! A local chain: anvil on a port of its own choice, killed on drop, and the access contract on it.
#![allow(dead_code, reason = "shared by several test programs, of which none uses all of it")]
#![allow(clippy::disallowed_methods, reason = "a real chain runs on real time")]

use alloy_primitives::{Address, B256, U256, hex, keccak256};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Chain id of the local chain.
pub(crate) const CHAIN_ID: u64 = 31337;

/// A running anvil.
#[derive(Debug)]
pub(crate) struct Anvil {
    child: Child,
    port: u16,
    arguments: Vec<String>,
}

impl Anvil {
    /// Starts a chain on which the block before the newest is safe. A block is mined for each transaction.
    pub(crate) fn start() -> Self {
        Self::with(&["--slots-in-an-epoch", "1"])
    }

    /// Starts a chain with further arguments.
    pub(crate) fn with(arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let (child, port) = spawn(0, &arguments);
        Self { child, port, arguments }
    }

    /// Starts a new chain on the port of one that was stopped.
    pub(crate) fn at(port: u16) -> Self {
        let arguments = vec!["--slots-in-an-epoch".to_owned(), "1".to_owned()];
        let (child, port) = spawn(port, &arguments);
        Self { child, port, arguments }
    }

    /// The URL of its endpoint.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The port of its endpoint.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Stops the process with SIGSTOP: state is kept, requests get no reply until [`Anvil::go_on`].
    pub(crate) fn halt(&self) {
        self.signal("STOP");
    }

    /// Continues after [`Anvil::halt`].
    pub(crate) fn go_on(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.is_ok_and(|s| s.success()), "kill -{name}");
    }

    /// Calls a JSON-RPC method; an error response panics.
    pub(crate) fn ask(&self, method: &str, params: Value) -> Value {
        self.try_ask(method, params.clone()).unwrap_or_else(|e| panic!("{method} {params}: {e}"))
    }

    /// Calls a JSON-RPC method; an error response is returned as text.
    pub(crate) fn try_ask(&self, method: &str, params: Value) -> Result<Value, String> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let text = post(self.port, &body)?;
        let mut answer: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        match answer.get("error") {
            Some(e) => Err(e.to_string()),
            None => Ok(answer["result"].take()),
        }
    }

    /// Mines blocks.
    pub(crate) fn mine(&self, blocks: u64) {
        self.ask("anvil_mine", json!([format!("{blocks:#x}")]));
    }

    /// Height of the newest block.
    pub(crate) fn height(&self) -> u64 {
        let text = self.ask("eth_blockNumber", json!([]));
        u64::from_str_radix(text.as_str().expect("a number").trim_start_matches("0x"), 16).expect("a number")
    }

    /// Replaces the newest `depth` blocks by empty ones.
    pub(crate) fn reorganise(&self, depth: u64) {
        self.ask("anvil_reorg", json!([depth, []]));
    }

    /// The `i`th unlocked account.
    pub(crate) fn account(&self, i: usize) -> Address {
        let all = self.ask("eth_accounts", json!([]));
        all[i].as_str().expect("an account").parse().expect("an address")
    }

    /// Sends a transaction and waits until it is in a block; a revert panics.
    pub(crate) fn send(&self, from: Address, to: Option<Address>, data: &[u8]) -> Value {
        let mut tx = json!({"from": from.to_string(), "data": hex::encode_prefixed(data), "gas": "0x1000000"});
        if let Some(to) = to {
            tx["to"] = to.to_string().into();
        }
        let hash = self.ask("eth_sendTransaction", json!([tx]));
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let receipt = self.ask("eth_getTransactionReceipt", json!([hash]));
            if !receipt.is_null() {
                assert_eq!(receipt["status"], "0x1", "the transaction reverted: {receipt}");
                return receipt;
            }
            assert!(Instant::now() < until, "no receipt");
            std::thread::yield_now();
        }
    }
}

impl Drop for Anvil {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16, arguments: &[String]) -> (Child, u16) {
    let program =
        std::env::var("SPOKE_ANVIL").expect("SPOKE_ANVIL is not set: run scripts/test-chain, which installs anvil");
    let mut child = Command::new(&program)
        .args(["--host", "127.0.0.1", "--accounts", "5", "--port", &port.to_string()])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .stdin(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    let found = lines.by_ref().lines().find_map(|line| {
        let address = line.expect("its output").trim().strip_prefix("Listening on ")?.to_owned();
        address.rsplit(':').next()?.parse().ok()
    });
    let Some(port) = found else {
        let ended = child.wait();
        panic!("anvil ended before it listened: {ended:?}");
    };
    // Drained so that anvil does not block on a full pipe.
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    (child, port)
}

/// Height of the newest block of the chain on a port; 0 if there is no reply.
pub(crate) fn height(port: u16) -> u64 {
    let text = post(port, r#"{"jsonrpc":"2.0","id":1,"method":"eth_blockNumber","params":[]}"#).unwrap_or_default();
    let answer: Value = serde_json::from_str(&text).unwrap_or_default();
    let digits = answer["result"].as_str().unwrap_or_default().trim_start_matches("0x").to_owned();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

/// Sends one request on its own connection; returns the response's body.
pub(crate) fn post(port: u16, body: &str) -> Result<String, String> {
    let fail = |e: std::io::Error| e.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(fail)?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(fail)?;
    write!(
        stream,
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .map_err(fail)?;
    let mut all = String::new();
    stream.read_to_string(&mut all).map_err(fail)?;
    let (_, body) = all.split_once("\r\n\r\n").ok_or("no answer")?;
    Ok(body.to_owned())
}

/// The access contract on a chain.
#[derive(Debug)]
pub(crate) struct Contract<'a> {
    pub(crate) chain: &'a Anvil,
    /// Address of the contract.
    pub(crate) address: Address,
    /// The account that may mint and revoke.
    pub(crate) operator: Address,
    tokens: AtomicU64,
}

impl<'a> Contract<'a> {
    /// Deploys it. Two behaviours of the production contract are unknown and therefore parameters: whether a transfer
    /// clears the token's key, and whether a revoked node can be minted again. One empty block follows.
    pub(crate) fn deploy(chain: &'a Anvil, clears_key: bool, remints: bool) -> Self {
        let operator = chain.account(0);
        let mut code = hex::decode(include_str!("../../contracts/NodeAccess.hex").trim()).expect("hex");
        for switch in [clears_key, remints] {
            code.extend_from_slice(&U256::from(u8::from(switch)).to_be_bytes::<32>());
        }
        let receipt = chain.send(operator, None, &code);
        let address = receipt["contractAddress"].as_str().expect("an address").parse().expect("an address");
        chain.mine(1);
        Self { chain, address, operator, tokens: AtomicU64::new(0) }
    }

    /// Mints access of `node` with `key` to `to`; returns the token id.
    pub(crate) fn mint(&self, to: Address, node: &str, key: &str) -> u64 {
        let arguments = [Arg::Address(to), Arg::Text(node), Arg::Text(key), Arg::Text("")];
        self.call("mintNodeAccess(address,string,string,string)", &arguments);
        self.tokens.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Revokes a token.
    pub(crate) fn revoke(&self, token: u64) {
        self.call("revokeNodeAccess(uint256)", &[Arg::Number(token)]);
    }

    /// Transfers a token.
    pub(crate) fn transfer(&self, from: Address, to: Address, token: u64) {
        let data = encode(
            "transferFrom(address,address,uint256)",
            &[Arg::Address(from), Arg::Address(to), Arg::Number(token)],
        );
        self.chain.send(from, Some(self.address), &data);
    }

    /// Destroys a token.
    pub(crate) fn burn(&self, from: Address, token: u64) {
        self.chain.send(from, Some(self.address), &encode("burn(uint256)", &[Arg::Number(token)]));
    }

    /// Calls the contract as `from`: returns the result in hexadecimal digits, or the error.
    pub(crate) fn read(&self, from: Address, signature: &str, arguments: &[Arg<'_>]) -> Result<String, String> {
        let data = hex::encode_prefixed(encode(signature, arguments));
        let call = json!({"from": from.to_string(), "to": self.address.to_string(), "data": data});
        let answer = self.chain.try_ask("eth_call", json!([call, "latest"]))?;
        Ok(answer.as_str().unwrap_or_default().trim_start_matches("0x").to_owned())
    }

    fn call(&self, signature: &str, arguments: &[Arg<'_>]) {
        self.chain.send(self.operator, Some(self.address), &encode(signature, arguments));
    }

    /// Mints to holder, node and key in blocks of 50, without waiting for each receipt. A holder has one key.
    pub(crate) fn mint_many(&self, nodes: impl Iterator<Item = (Address, String, String)>) {
        self.chain.ask("evm_setAutomine", json!([false]));
        let mut last = B256::ZERO;
        for (n, (to, node, key)) in nodes.enumerate() {
            let arguments = [Arg::Address(to), Arg::Text(&node), Arg::Text(&key), Arg::Text("")];
            let data = encode("mintNodeAccess(address,string,string,string)", &arguments);
            let tx = json!({"from": self.operator.to_string(), "to": self.address.to_string(), "data": hex::encode_prefixed(&data), "gas": "0x7a120"});
            last =
                self.chain.ask("eth_sendTransaction", json!([tx])).as_str().expect("a hash").parse().expect("a hash");
            if n % 50 == 49 {
                self.chain.mine(1);
            }
        }
        self.chain.mine(1);
        self.chain.ask("evm_setAutomine", json!([true]));
        self.chain.mine(1);
        let receipt = self.chain.ask("eth_getTransactionReceipt", json!([last.to_string()]));
        assert_eq!(receipt["status"], "0x1", "the last mint failed: {receipt}");
    }
}

/// An argument of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg<'a> {
    Address(Address),
    Number(u64),
    Text(&'a str),
}

/// ABI-encodes a call: the head first, then the strings.
pub(crate) fn encode(signature: &str, arguments: &[Arg<'_>]) -> Vec<u8> {
    let mut out = keccak256(signature)[..4].to_vec();
    let mut tail = Vec::new();
    let word = |n: usize| U256::from(n).to_be_bytes::<32>();
    for argument in arguments {
        match argument {
            Arg::Address(a) => out.extend_from_slice(a.into_word().as_slice()),
            Arg::Number(n) => out.extend_from_slice(&U256::from(*n).to_be_bytes::<32>()),
            Arg::Text(t) => {
                out.extend_from_slice(&word(arguments.len() * 32 + tail.len()));
                tail.extend_from_slice(&word(t.len()));
                tail.extend_from_slice(t.as_bytes());
                tail.resize(tail.len().next_multiple_of(32), 0);
            }
        }
    }
    out.extend_from_slice(&tail);
    out
}
