//! A control plane served by the real program, and clients of it.
use crate::db::Database;
use crate::world::{identity, request};
use spoke::enroll::request::{Asked, Nonce};
use spoke::enroll::signature::SignKey;
use spoke::enroll::wire::PROVISION;
use spoke::node::NodeId;
use spoke::sys::http::{Answer, Http as _, HttpsClient, Request, Trust};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// What operators show in the tests.
pub const OPERATOR: &str = "an operator's token of the tests";

/// `spoke-control serve` as a process of its own.
pub struct Serving {
    pub port: u16,
    pub pin: [u8; 32],
    _database: Database,
    pub dir: tempfile::TempDir,
    child: Child,
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn config(dir: &std::path::Path, port: u16, url: &str) -> PathBuf {
    use std::os::unix::fs::OpenOptionsExt as _;
    let token = dir.join("operator");
    let mut open = std::fs::OpenOptions::new();
    let mut file = open.write(true).create(true).truncate(true).mode(0o600).open(&token).unwrap();
    std::io::Write::write_all(&mut file, OPERATOR.as_bytes()).unwrap();
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:{port}\"]\npublic = \"localhost:{port}\"\nstate_dir = \"{}\"\n[store]\nurl = \"{url}\"\n[api]\noperator_token = \"file:{}\"\n[limits]\nper_address = 100000\nenrolments_per_address = 100000\nper_node = {}\n",
        dir.display(),
        token.display(),
        if std::env::var_os("SPOKE_BENCH_NODES").is_some() { 1_000_000 } else { 20 }
    );
    let path = dir.join("spoke-control.toml");
    std::fs::write(&path, text).unwrap();
    path
}

impl Serving {
    /// Starts it on `database` and waits until it answers.
    pub async fn start(database: Database) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let path = config(dir.path(), port, &database.url);
        let child = spawn(&path);
        let mut serving = Self { port, pin: [0; 32], _database: database, dir, child };
        serving.ready().await;
        serving
    }

    async fn ready(&mut self) {
        let began = std::time::Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("spoke-control ended: {status}");
            }
            assert!(began.elapsed() < Duration::from_secs(20), "it does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let pem = std::fs::read(self.dir.path().join("tls.crt")).unwrap();
        let der = rustls_pemfile::certs(&mut pem.as_slice()).next().unwrap().unwrap();
        self.pin = ring::digest::digest(&ring::digest::SHA256, &der).as_ref().try_into().unwrap();
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Stops it by SIGTERM and waits for the end, which must be a good one.
    pub async fn stop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = tokio::time::timeout(Duration::from_secs(15), self.child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
    }

    /// Starts it again after [`Serving::stop`].
    pub async fn start_again(&mut self) {
        self.child = spawn(&self.dir.path().join("spoke-control.toml"));
        self.ready().await;
    }

    /// A client that knows the server by its pin.
    pub fn client(&self) -> HttpsClient {
        let server = format!("localhost:{}", self.port).parse().unwrap();
        HttpsClient::new(server, &Trust::Pin(self.pin)).unwrap()
    }

    /// A device with the keys of `id`.
    pub fn device(&self, id: &str) -> Device {
        Device { id: id.parse().unwrap(), key: identity(id), http: self.client(), offset_ms: 0 }
    }

    /// The command line on the same store.
    pub async fn cli(&self, args: &[&str]) -> (bool, String) {
        let out = Command::new(env!("CARGO_BIN_EXE_spoke-control"))
            .arg("--config")
            .arg(self.dir.path().join("spoke-control.toml"))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.success(), text)
    }

    /// The command line, which must succeed.
    pub async fn done(&self, args: &[&str]) -> String {
        let (fine, text) = self.cli(args).await;
        assert!(fine, "{args:?}: {text}");
        text.trim().to_owned()
    }

    /// What an operator asks over HTTP.
    pub async fn operator(&self, method: &'static str, path: &str, body: &str) -> (u16, serde_json::Value) {
        let answer = self.client().send(plain(method, path, body, Some(OPERATOR))).await.unwrap();
        (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
    }
}

fn spawn(config: &std::path::Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_spoke-control"))
        .arg("--config")
        .arg(config)
        .arg("serve")
        .env("SPOKE_LOG", std::env::var("SPOKE_LOG").unwrap_or_else(|_| "warn".into()))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
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

/// A device as the API sees it.
pub struct Device {
    pub id: NodeId,
    pub key: SignKey,
    pub http: HttpsClient,
    pub offset_ms: i64,
}

impl Device {
    /// A signed request.
    pub fn signed(&self, method: &'static str, path: &str, body: Vec<u8>) -> Request {
        let now = spoke::control::api::now_ms() + self.offset_ms;
        let asked = Asked { method, path, body: &body };
        let proof = asked.prove(&self.key, &self.id, now.unsigned_abs(), nonce());
        Request {
            method,
            path: path.to_owned(),
            headers: proof.headers().into_iter().collect(),
            body,
            max: 16 << 20,
            timeout: Duration::from_secs(60),
        }
    }

    /// Sends a signed request and gives status and JSON.
    pub async fn ask(&mut self, method: &'static str, path: &str, body: &str) -> (u16, serde_json::Value) {
        let request = self.signed(method, path, body.as_bytes().to_vec());
        let Answer { status, body } = self.http.send(request).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// Enrols with `token`.
    pub async fn enrol(&mut self, token: &str) -> (u16, serde_json::Value) {
        let mut asked = self.signed("POST", PROVISION, serde_json::to_vec(&request(self.id.as_str())).unwrap());
        asked.headers.push(("authorization", format!("Bearer {token}")));
        let answer = self.http.send(asked).await.unwrap();
        (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
    }
}
