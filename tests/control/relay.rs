//! A relay in front of a server that counts what passes, and what a connection costs by its count.
use crate::db::{Kind, fresh};
use crate::serving::{Serving, plain};
use spoke_sys::http::{Http as _, HttpsClient, Trust};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Passes every connection on to `server` of this machine: its own port, and the bytes of both directions so far.
pub async fn relay(server: u16) -> (u16, Arc<AtomicU64>) {
    let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, count) = (relay.local_addr().unwrap().port(), Arc::new(AtomicU64::new(0)));
    tokio::spawn({
        let count = count.clone();
        async move {
            while let Ok((mut near, _)) = relay.accept().await {
                let mut far = tokio::net::TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                let count = count.clone();
                tokio::spawn(async move {
                    let (mut near_in, mut near_out) = near.split();
                    let (mut far_in, mut far_out) = far.split();
                    tokio::join!(copy(&mut near_in, &mut far_out, &count), copy(&mut far_in, &mut near_out, &count));
                });
            }
        }
    });
    (port, count)
}

async fn copy(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    count: &AtomicU64,
) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut buffer = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        count.fetch_add(n as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// A device on a metered line connects a few hundred times a day.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_connects_again_is_known_by_a_ticket_however_many_came_in_between() {
    let serving = Serving::start(fresh(Kind::Sqlite).await).await;
    let (port, count) = relay(serving.port).await;
    let client = || HttpsClient::new(format!("localhost:{port}").parse().unwrap(), &Trust::Pin(serving.pin)).unwrap();
    let cost = async |client: &mut HttpsClient| {
        let before = count.load(Ordering::Relaxed);
        assert_eq!(client.send(plain("GET", "/nowhere", "", None)).await.unwrap().status, 404);
        count.load(Ordering::Relaxed) - before
    };
    let mut first = client();
    let whole = cost(&mut first).await;
    // More than the library's own cache has places for.
    for _ in 0..300 {
        serving.client().send(plain("GET", "/nowhere", "", None)).await.unwrap();
    }
    for _ in 0..3 {
        // Each is made known by what the one before was given; a certificate costs more than all of the difference.
        first = first.another();
        let again = cost(&mut first).await;
        assert!(again + 200 < whole, "{again} bytes again, {whole} the first time");
    }
}
