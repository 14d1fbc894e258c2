//! Connections to a host with one address that leads nowhere: the product's HTTP clients reach the other one at once.
use crate::netns::Namespace;
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::http::{Http as _, HttpsClient, Request, Trust};
use spoke_sys::rpc::Rpc as _;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

/// Longer than one attempt waits for the next, shorter than any timeout of a client.
const SOON: Duration = Duration::from_secs(2);

/// A namespace in which packets to 2001:db8:1::2 vanish behind the interface `void`.
fn with_black_hole() -> Namespace {
    let namespace = Namespace::new("device");
    for command in [
        "link add void type dummy",
        "link set void up",
        "addr add 2001:db8:1::1/64 dev void nodad",
        "neigh add 2001:db8:1::2 lladdr 02:00:00:00:00:02 dev void nud permanent",
    ] {
        namespace.ip(command);
    }
    namespace
}

/// The name `dual.test` with the black hole's address and 127.0.0.1, in the test kernel's own view of /etc/hosts.
struct DualName(tempfile::TempDir);

impl DualName {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let hosts = dir.path().join("hosts");
        let known = std::fs::read_to_string("/etc/hosts").expect("/etc/hosts");
        let dual = "2001:db8:1::2 dual.test\n127.0.0.1 dual.test\n";
        std::fs::write(&hosts, format!("{known}\n{dual}")).expect("hosts");
        rustix::mount::mount_bind(&hosts, "/etc/hosts").expect("bind /etc/hosts");
        Self(dir)
    }
}

impl Drop for DualName {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount("/etc/hosts", rustix::mount::UnmountFlags::DETACH) {
            eprintln!("{} stays mounted: {error}", self.0.path().display());
        }
    }
}

/// A server on 127.0.0.1 that answers each request with `answer`.
fn serve(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
                answer.len()
            );
        }
    });
    port
}

#[test]
fn black_holed_ipv6_address_does_not_starve_ipv4() {
    let namespace = with_black_hole();
    let _name = DualName::new();
    namespace.enter(|| {
        let timed = |what: &str, body: &mut dyn FnMut()| {
            let began = SystemClock.now();
            body();
            let took = SystemClock.now().since(began);
            assert!(took < SOON, "{what} took {took:?}");
            took
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        // The control plane: what answers does not speak TLS, which shows that the connection was made.
        let port = serve("");
        let mut client =
            HttpsClient::new(format!("dual.test:{port}").parse().expect("a server"), &Trust::Public).expect("a client");
        let mut ask = || {
            let (path, timeout) = ("/".into(), Duration::from_secs(30));
            let request = Request { method: "GET", path, headers: vec![], body: vec![], max: 1, timeout };
            let error = runtime.block_on(client.send(request)).expect_err("no TLS").to_string();
            assert!(error.contains("does not speak TLS"), "{error}");
        };
        let first = timed("the control plane", &mut ask);
        assert!(first >= Duration::from_millis(200), "the name has no black hole: {first:?}");
        let again = timed("the control plane again", &mut ask);
        assert!(again < Duration::from_millis(200), "the family that worked is remembered: {again:?}");

        let port = serve(r#"{"jsonrpc":"2.0","id":1,"result":"0x1"}"#);
        let text = format!(
            "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 1\nendpoints = [\"http://dual.test:{port}/\"]\ntimeout = \"30s\"\n"
        );
        let config = spoke_config::Config::from_text(Some(("test", &text)), []).expect("a configuration");
        let rpc = spoke_sys::rpc::Http::new(&config.grants.expect("grants")).expect("endpoints");
        timed("an endpoint of the chain", &mut || {
            match runtime.block_on(rpc.ask(0, vec![spoke_grants::jsonrpc::Call::ChainId], 4096)) {
                // Not what was asked, but from the server.
                Ok(_) | Err(spoke_sys::rpc::RpcError::Bad(_)) => {}
                Err(e) => panic!("{e}"),
            }
        });

        let port = serve("a bundle");
        timed("a release", &mut || {
            let mut text = String::new();
            let mut bundle = spoke_sys::fetch::open(&format!("http://dual.test:{port}/x.spoke"), None).expect("a download");
            bundle.read_to_string(&mut text).expect("its end");
            assert_eq!(text, "a bundle");
        });
    });
}
