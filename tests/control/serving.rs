//! A control plane served by the real program, and clients of it.
use crate::db::Database;
use crate::world::{identity, request};
use spoke_enroll::request::{Nonce, RequestParts};
use spoke_enroll::wire::PROVISION;
use spoke_model::node_id::NodeId;
use spoke_model::signature::SignKey;
use spoke_sys::http::{Answer, Http as _, HttpError, HttpsClient, Request, Trust};
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
    setup: Setup,
    _database: Option<Database>,
    pub dir: tempfile::TempDir,
    child: Child,
}

/// How a control plane of the tests differs from the usual one.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Lines of `[limits]`.
    pub limits: String,
    /// Lines of `[server]`.
    pub server: String,
    /// Further sections.
    pub sections: String,
    /// A command in front of the program's.
    pub wrap: Vec<String>,
    /// Another one's state directory to begin with: a replica has the same keys.
    pub like: Option<PathBuf>,
}

impl Default for Setup {
    fn default() -> Self {
        let node = if std::env::var_os("SPOKE_BENCH_NODES").is_some() { 1_000_000 } else { 20 };
        let limits = format!(
            "per_address = 100000\nenrolments_per_address = 100000\nguesses_per_address = 100000\nper_node = {node}\n"
        );
        Self { limits, server: String::new(), sections: String::new(), wrap: Vec::new(), like: None }
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn config(dir: &std::path::Path, port: u16, url: &str, setup: &Setup) -> PathBuf {
    use std::os::unix::fs::OpenOptionsExt as _;
    let token = dir.join("operator");
    let mut open = std::fs::OpenOptions::new();
    let mut file = open.write(true).create(true).truncate(true).mode(0o600).open(&token).unwrap();
    std::io::Write::write_all(&mut file, OPERATOR.as_bytes()).unwrap();
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:{port}\"]\npublic = \"localhost:{port}\"\nstate_dir = \"{}\"\n{}\n[store]\nurl = \"{url}\"\n[api]\noperator_token = \"file:{}\"\n[limits]\n{}\n{}\n",
        dir.display(),
        setup.server,
        token.display(),
        setup.limits,
        setup.sections,
    );
    let path = dir.join("spoke-control.toml");
    std::fs::write(&path, text).unwrap();
    path
}

impl Serving {
    /// Starts it on `database` and waits until it answers.
    pub async fn start(database: Database) -> Self {
        Self::start_as(database, Setup::default()).await
    }

    /// Starts one that is set up otherwise.
    pub async fn start_as(database: Database, setup: Setup) -> Self {
        let url = database.url.clone();
        Self::start_on(&url, Some(database), setup).await
    }

    /// Starts one on the database at `url`, which another has as well.
    pub async fn start_on(url: &str, database: Option<Database>, setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        if let Some(like) = &setup.like {
            for name in ["master.key", "tls.crt", "tls.key"] {
                std::fs::copy(like.join(name), dir.path().join(name)).unwrap();
            }
        }
        let port = free_port();
        let path = config(dir.path(), port, url, &setup);
        let child = spawn(&path, &dir.path().join("log"), &setup.wrap);
        let mut serving = Self { port, pin: [0; 32], setup, _database: database, dir, child };
        serving.ready().await;
        serving
    }

    /// What it has written to standard output and to its log.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    async fn ready(&mut self) {
        let began = std::time::Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("spoke-control ended: {status}\n{}", self.said());
            }
            assert!(began.elapsed() < Duration::from_secs(60), "it does not listen: {}", self.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Where another certificate is served there is none here.
        let Ok(pem) = std::fs::read(self.dir.path().join("tls.crt")) else { return };
        let der = rustls_pemfile::certs(&mut pem.as_slice()).next().unwrap().unwrap();
        self.pin = ring::digest::digest(&ring::digest::SHA256, &der).as_ref().try_into().unwrap();
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// The figures that the process gives of itself and the fleet.
    pub async fn status(&self) -> serde_json::Value {
        self.operator("GET", "/api/status", "").await.1["data"].take()
    }

    /// `path` as the process sees it, which may have mounts of its own.
    pub fn inside(&self, path: &std::path::Path) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.pid(), path.display()))
    }

    /// Ends it in the middle of whatever it does.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Stops it by SIGTERM and waits for the end, which must be a good one.
    pub async fn stop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
    }

    /// Starts it again after [`Serving::stop`].
    pub async fn start_again(&mut self) {
        let dir = self.dir.path();
        self.child = spawn(&dir.join("spoke-control.toml"), &dir.join("log"), &self.setup.wrap);
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

    /// The command line on the same store: exit code, and what it said.
    pub async fn cli(&self, args: &[&str]) -> (i32, String) {
        run(&self.dir.path().join("spoke-control.toml"), args).await
    }

    /// The command line, which must succeed.
    pub async fn done(&self, args: &[&str]) -> String {
        let (code, text) = self.cli(args).await;
        assert_eq!(code, 0, "{args:?}: {text}");
        text.trim().to_owned()
    }

    /// The answer of the command line in JSON.
    pub async fn json(&self, args: &[&str]) -> serde_json::Value {
        let text = self.done(&[args, &["--json"]].concat()).await;
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
    }

    /// What an operator asks over HTTP.
    pub async fn operator(&self, method: &'static str, path: &str, body: &str) -> (u16, serde_json::Value) {
        let answer = self.client().send(plain(method, path, body, Some(OPERATOR))).await.unwrap();
        (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
    }
}

/// Runs a command of `spoke-control`: exit code, and what it said.
pub async fn run(config: &std::path::Path, args: &[&str]) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_spoke-control"))
        .arg("--config")
        .arg(config)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.code().unwrap_or(-1), text)
}

fn spawn(config: &std::path::Path, log: &std::path::Path, wrap: &[String]) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
    let program = env!("CARGO_BIN_EXE_spoke-control").to_owned();
    let mut words =
        wrap.iter().cloned().chain([program, "--config".into(), config.display().to_string(), "serve".into()]);
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

/// Waits until `look` gives something; a minute at most.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = std::time::Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "still waiting: {what}");
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
        let now = spoke_control::api::now_ms() + self.offset_ms;
        let asked = RequestParts { method, path, body: &body };
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
        self.send(|device| device.signed(method, path, body.as_bytes().to_vec())).await.unwrap()
    }

    /// Enrols with `token`.
    pub async fn enrol(&mut self, token: &str) -> (u16, serde_json::Value) {
        self.try_enrol(token).await.unwrap()
    }

    /// As [`Device::enrol`], where the control plane may be away.
    pub async fn try_enrol(&mut self, token: &str) -> Result<(u16, serde_json::Value), HttpError> {
        self.send(|device| {
            let mut asked = device.signed("POST", PROVISION, serde_json::to_vec(&request(device.id.as_str())).unwrap());
            asked.headers.push(("authorization", format!("Bearer {token}")));
            asked
        })
        .await
    }

    /// Once more where its time was not the server's, as every device does: the clock of the machine that runs the tests may be
    /// set while a request is under way.
    async fn send(&mut self, asked: impl Fn(&Self) -> Request) -> Result<(u16, serde_json::Value), HttpError> {
        let mut again = self.offset_ms == 0;
        loop {
            let Answer { status, body } = self.http.send(asked(self)).await?;
            let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            if !again || answer["detail"]["code"] != "clock_skew" {
                return Ok((status, answer));
            }
            again = false;
        }
    }
}
