//! A fresh database of either kind for each test.
use spoke::control::store::Store;
use std::sync::atomic::{AtomicU32, Ordering};

/// The kinds of database the control plane runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
}

/// A database that goes away with the value (SQLite) or with the server (PostgreSQL).
pub struct Database {
    pub url: String,
    _dir: Option<tempfile::TempDir>,
}

/// The server that `scripts/test-control` has started, as `postgres://user@localhost/?host=DIR`.
fn server() -> String {
    std::env::var("SPOKE_TEST_POSTGRES").expect("SPOKE_TEST_POSTGRES is not set: run scripts/test-control")
}

/// Makes an empty database.
pub async fn fresh(kind: Kind) -> Database {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    match kind {
        Kind::Sqlite => {
            let dir = tempfile::tempdir().unwrap();
            Database { url: format!("sqlite:{}", dir.path().join("fleet.db").display()), _dir: Some(dir) }
        }
        Kind::Postgres => {
            let name = format!("t{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let made = tokio::process::Command::new("psql")
                .args([
                    "--quiet",
                    "--no-psqlrc",
                    "-c",
                    &format!("CREATE DATABASE {name}"),
                    &server().replace("localhost/?", "localhost/postgres?"),
                ])
                .status()
                .await
                .unwrap();
            assert!(made.success());
            Database { url: server().replace("localhost/?", &format!("localhost/{name}?")), _dir: None }
        }
    }
}

/// Makes an empty database and opens it.
pub async fn open(kind: Kind) -> (Store, Database) {
    let database = fresh(kind).await;
    (Store::open(&database.url).await.unwrap(), database)
}

/// One test of each name for each kind of database.
#[macro_export]
macro_rules! on_both {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        mod sqlite { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name($crate::db::Kind::Sqlite).await }
        )* }
        mod postgres { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name($crate::db::Kind::Postgres).await }
        )* }
    };
}
