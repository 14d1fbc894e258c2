//! A TCP relay that counts the bytes it passes.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Relays connections to the local port `server`; returns its own port and the bytes passed in both directions.
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
