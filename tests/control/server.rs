//! The real program serving as a control plane, and its clients.
use crate::database::{Database, Kind, fresh};
use crate::fixture::{identity, request, wireguard};
use spoke_enroll::request::{KEY_PROOF, Nonce, RequestParts};
use spoke_enroll::wire::PROVISION;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_model::key_proof::KeyProof;
use spoke_model::node_id::NodeId;
use spoke_model::signature::SignKey;
use spoke_sys::http::{Answer, Http as _, HttpError, HttpsClient, Request, Trust};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::process::{Child, Command};

/// The operator token of the tests.
pub const OPERATOR: &str = "an operator's token of the tests";

/// `spoke-control serve` as a process of its own.
pub struct ControlPlane {
    pub port: u16,
    pub pin: [u8; 32],
    settings: Settings,
    url: String,
    _database: Option<Database>,
    pub dir: tempfile::TempDir,
    child: Child,
}

/// The configuration of a control plane under test.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Lines of `[limits]`.
    pub limits: String,
    /// Lines of `[server]`.
    pub server: String,
    /// Lines of `[api]`.
    pub api: String,
    /// Further sections.
    pub sections: String,
    /// A command line in front of the program's.
    pub wrap: Vec<String>,
    /// The state directory of another control plane whose keys are copied: it becomes its replica.
    pub replica_of: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        let node = if std::env::var_os("SPOKE_BENCH_NODES").is_some() { 1_000_000 } else { 20 };
        let limits = format!(
            "per_address = 100000\nenrolments_per_address = 100000\nguesses_per_address = 100000\nper_node = {node}\n"
        );
        Self {
            limits,
            server: String::new(),
            api: String::new(),
            sections: String::new(),
            wrap: Vec::new(),
            replica_of: None,
        }
    }
}

/// A port that no client and no other test takes: below the range of ephemeral ports, each returned once.
pub fn free_port() -> u16 {
    const RANGE: std::ops::Range<u16> = 20_000..32_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Two test processes start at different ports.
    let first = u16::try_from(std::process::id() % 1_000).unwrap() * 12;
    loop {
        let offset = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % (RANGE.end - RANGE.start);
        let port = RANGE.start + offset;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn write_config(dir: &Path, port: u16, url: &str, settings: &Settings) -> PathBuf {
    use std::os::unix::fs::OpenOptionsExt as _;
    let token = dir.join("operator");
    let mut open = std::fs::OpenOptions::new();
    let mut file = open.write(true).create(true).truncate(true).mode(0o600).open(&token).unwrap();
    std::io::Write::write_all(&mut file, OPERATOR.as_bytes()).unwrap();
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:{port}\"]\npublic = \"localhost:{port}\"\nstate_dir = \"{}\"\n{}\n[store]\nurl = \"{url}\"\n[api]\noperator_token = \"file:{}\"\n{}\n[limits]\n{}\n{}\n",
        dir.display(),
        settings.server,
        token.display(),
        settings.api,
        settings.limits,
        settings.sections,
    );
    let path = dir.join("spoke-control.toml");
    std::fs::write(&path, text).unwrap();
    path
}

impl ControlPlane {
    /// Starts one on `database` and waits until it listens.
    pub async fn start(database: Database) -> Self {
        Self::start_as(database, Settings::default()).await
    }

    /// Starts one with the network `field` on `pool`, and a token for it of 10,000 uses.
    pub async fn start_with_network(kind: Kind, pool: &str) -> (Self, String) {
        let server = Self::start(fresh(kind).await).await;
        let token = server.create_network(pool).await;
        (server, token)
    }

    /// Creates the network `field` on `pool`; returns a token for it of 10,000 uses.
    pub async fn create_network(&self, pool: &str) -> String {
        self.cli_ok(&["network", "create", "field", "--pool4", pool]).await;
        self.cli_ok(&["token", "create", "--network", "field", "--uses", "10000"]).await
    }

    /// Waits until `count` nodes have a long-poll at it.
    pub async fn wait_for_polls(&self, count: u64) {
        wait_until("long-polls are open", async || (self.status().await["connected"] == count).then_some(())).await;
    }

    /// Waits until the audit trail counts `count` invalid tokens of this machine, and no more.
    pub async fn wait_for_audited_tokens(&self, count: u64) {
        let audited = wait_until("invalid tokens are audited", async || {
            let audit = self.cli_json(&["audit", "--entity", "127.0.0.1"]).await;
            let counts = audit.as_array().unwrap().iter().map(|r| r["details"]["count"].as_u64());
            counts.sum::<Option<u64>>().filter(|n| *n >= count)
        });
        assert_eq!(audited.await, count);
    }

    /// As [`ControlPlane::start`], with settings.
    pub async fn start_as(database: Database, settings: Settings) -> Self {
        let url = database.url.clone();
        Self::start_on(&url, Some(database), settings).await
    }

    /// Starts one on the database at `url`, which may be shared.
    pub async fn start_on(url: &str, database: Option<Database>, settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        if let Some(original) = &settings.replica_of {
            for name in ["master.key", "tls.crt", "tls.key"] {
                std::fs::copy(original.join(name), dir.path().join(name)).unwrap();
            }
        }
        let port = free_port();
        let path = write_config(dir.path(), port, url, &settings);
        let child = spawn(&path, &dir.path().join("log"), &settings.wrap);
        let url = url.to_owned();
        let mut server = Self { port, pin: [0; 32], settings, url, _database: database, dir, child };
        server.wait_until_ready().await;
        server
    }

    /// The URL of its database.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Its standard output and log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    async fn wait_until_ready(&mut self) {
        let began = std::time::Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("spoke-control ended: {status}\n{}", self.log());
            }
            assert!(began.elapsed() < Duration::from_secs(60), "it does not listen: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Missing when another certificate is configured.
        let Ok(pem) = std::fs::read(self.dir.path().join("tls.crt")) else { return };
        let der = rustls_pemfile::certs(&mut pem.as_slice()).next().unwrap().unwrap();
        self.pin = ring::digest::digest(&ring::digest::SHA256, &der).as_ref().try_into().unwrap();
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// `/api/status`.
    pub async fn status(&self) -> serde_json::Value {
        self.operator("GET", "/api/status", "").await.1["data"].take()
    }

    /// `path` in the process's mount namespace.
    pub fn inside(&self, path: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.pid(), path.display()))
    }

    /// Kills it.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Stops it by SIGTERM and waits for its exit, which must be successful.
    pub async fn stop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
    }

    /// Starts it again after [`ControlPlane::stop`].
    pub async fn start_again(&mut self) {
        let dir = self.dir.path();
        self.child = spawn(&dir.join("spoke-control.toml"), &dir.join("log"), &self.settings.wrap);
        self.wait_until_ready().await;
    }

    /// A client that knows the server by its pin.
    pub fn client(&self) -> HttpsClient {
        let server = format!("localhost:{}", self.port).parse().unwrap();
        HttpsClient::new(server, &Trust::Pin(self.pin)).unwrap()
    }

    /// A device with the keys of `id`.
    pub fn device(&self, id: &str) -> Device {
        let (wireguard, verifier) = (wireguard(id), None);
        Device { id: id.parse().unwrap(), key: identity(id), wireguard, verifier, http: self.client(), offset_ms: 0 }
    }

    /// Runs the command line on the same database: exit code and output.
    pub async fn cli(&self, args: &[&str]) -> (i32, String) {
        run(&self.dir.path().join("spoke-control.toml"), args).await
    }

    /// Runs the command line, which must succeed; returns its output.
    pub async fn cli_ok(&self, args: &[&str]) -> String {
        let (code, text) = self.cli(args).await;
        assert_eq!(code, 0, "{args:?}: {text}");
        text.trim().to_owned()
    }

    /// Runs the command line with `--json`, which must succeed: the document, or the items of a list.
    pub async fn cli_json(&self, args: &[&str]) -> serde_json::Value {
        let text = self.cli_ok(&[args, &["--json"]].concat()).await;
        let mut document: serde_json::Value =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"));
        assert_eq!(document["schema"], 1, "{args:?}: {text}");
        if document["items"].is_array() { document["items"].take() } else { document }
    }

    /// Sends an operator's request: status code and JSON.
    pub async fn operator(&self, method: &'static str, path: &str, body: &str) -> (u16, serde_json::Value) {
        let answer = self.client().send(plain(method, path, body, Some(OPERATOR))).await.unwrap();
        (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
    }
}

/// The program under test: SPOKE_TEST_CONTROL_PROGRAM, or the one built with the tests.
fn program() -> String {
    std::env::var("SPOKE_TEST_CONTROL_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_spoke-control").to_owned())
}

/// Runs a command of `spoke-control`: exit code and output.
pub async fn run(config: &Path, args: &[&str]) -> (i32, String) {
    let out =
        Command::new(program()).arg("--config").arg(config).args(args).stdin(Stdio::null()).output().await.unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.code().unwrap_or(-1), text)
}

fn spawn(config: &Path, log: &Path, wrap: &[String]) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
    let mut words =
        wrap.iter().cloned().chain([program(), "--config".into(), config.display().to_string(), "serve".into()]);
    Command::new(words.next().unwrap())
        .args(words)
        .env("SPOKE_LOG", std::env::var("SPOKE_LOG").unwrap_or_else(|_| "warn".into()))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Waits until `probe` returns something; a minute at most.
pub async fn wait_until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let began = std::time::Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A request without a node's proof.
pub fn plain(method: &'static str, path: &str, body: &str, bearer: Option<&str>) -> Request {
    Request {
        method,
        path: path.to_owned(),
        headers: bearer.map(|t| ("authorization", format!("Bearer {t}"))).into_iter().collect(),
        body: body.as_bytes().to_vec(),
        max: 16 << 20,
        timeout: Duration::from_secs(20),
    }
}

/// 16 random bytes.
pub fn nonce() -> Nonce {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; 16];
    ring::rand::SystemRandom::new().fill(&mut bytes).unwrap();
    Nonce(bytes)
}

/// A simulated device.
pub struct Device {
    pub id: NodeId,
    pub key: SignKey,
    /// The key it proves the possession of.
    pub wireguard: SecretKey,
    /// Whom it proves it to, once asked.
    pub verifier: Option<PublicKey>,
    pub http: HttpsClient,
    pub offset_ms: i64,
}

impl Device {
    /// A signed request.
    pub fn signed(&self, method: &'static str, path: &str, body: Vec<u8>) -> Request {
        let now = spoke_control::clock::now_ms() + self.offset_ms;
        let asked = RequestParts { method, path, body: &body };
        let proof = asked.prove(&self.key, &self.id, now.unsigned_abs(), nonce());
        let message = proof.signature.to_string();
        let key_proof = self.verifier.and_then(|v| KeyProof::new(&self.wireguard, v, message.as_bytes()));
        let mut headers: Vec<_> = proof.headers().into_iter().collect();
        headers.extend(key_proof.map(|p| (KEY_PROOF, p.to_string())));
        Request { method, path: path.to_owned(), headers, body, max: 16 << 20, timeout: Duration::from_secs(60) }
    }

    /// Sends a signed request: status code and JSON.
    pub async fn ask(&mut self, method: &'static str, path: &str, body: &str) -> (u16, serde_json::Value) {
        self.send(|device| device.signed(method, path, body.as_bytes().to_vec())).await.unwrap()
    }

    /// Enrols with `token`.
    pub async fn enrol(&mut self, token: &str) -> (u16, serde_json::Value) {
        self.try_enrol(token).await.unwrap()
    }

    /// As [`Device::enrol`], when the control plane may be unreachable.
    pub async fn try_enrol(&mut self, token: &str) -> Result<(u16, serde_json::Value), HttpError> {
        self.send(|device| {
            let mut asked = device.signed("POST", PROVISION, serde_json::to_vec(&request(device.id.as_str())).unwrap());
            asked.headers.push(("authorization", format!("Bearer {token}")));
            asked
        })
        .await
    }

    /// As [`Device::enrol`], with the keys it has in place of those of its id.
    pub async fn enrol_with_own_keys(&mut self, token: &str) -> (u16, serde_json::Value) {
        let sent = self.send(|device| {
            let mut request = request(device.id.as_str());
            request.identity_public_key = device.key.public();
            request.wireguard_public_key = device.wireguard.public();
            let mut asked = device.signed("POST", PROVISION, serde_json::to_vec(&request).unwrap());
            asked.headers.push(("authorization", format!("Bearer {token}")));
            asked
        });
        sent.await.unwrap()
    }

    /// Sends once more after a clock skew, as every device does: the machine's clock may be set during a request.
    /// And once more with a proof of the WireGuard key, where it is asked for.
    async fn send(&mut self, asked: impl Fn(&Self) -> Request) -> Result<(u16, serde_json::Value), HttpError> {
        let mut again = self.offset_ms == 0;
        loop {
            let Answer { status, body } = self.http.send(asked(self)).await?;
            let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let verifier = answer["detail"]["key_verifier"].as_str().map(|v| v.parse().unwrap());
            if verifier.is_some() && verifier != self.verifier {
                self.verifier = verifier;
                continue;
            }
            if !again || answer["detail"]["code"] != "clock_skew" {
                return Ok((status, answer));
            }
            again = false;
        }
    }
}
