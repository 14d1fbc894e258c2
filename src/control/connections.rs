//! The open connections, and which one makes room for a new one. No I/O.
//!
//! A connection is proven once a request on it had a valid proof or token. Only unproven ones are closed: idle ones, handshakes
//! and requests of unknown clients. The client with the most of them loses its oldest, so that no client shuts out another.
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// One client may have this share of all connections unproven.
const CLIENT_SHARE: usize = 4;

/// The open connections of a server.
#[derive(Debug)]
pub struct Connections {
    max: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Entry>,
    /// Ids of unproven connections, oldest first.
    unproven: HashMap<IpAddr, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Entry {
    client: IpAddr,
    close: Arc<Notify>,
}

/// A place in the table, given back when dropped.
#[derive(Debug)]
pub struct Connection {
    id: u64,
    connections: Arc<Connections>,
    /// Notified when the connection has to make room.
    pub close: Arc<Notify>,
}

/// Every connection is proven and in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Table {
    /// Gives the connection `id` to `client`, which may have `share` unproven ones.
    fn attribute(&mut self, id: u64, client: IpAddr, share: usize) {
        let Some(before) = self.open.get(&id).map(|e| e.client).filter(|before| *before != client) else { return };
        let is_unproven = self.unproven.get(&before).is_some_and(|ids| ids.contains(&id));
        self.prove(id, before);
        if self.unproven.get(&client).map_or(0, BTreeSet::len) >= share {
            self.evict(client);
        }
        if let Some(entry) = self.open.get_mut(&id) {
            entry.client = client;
        }
        if is_unproven {
            self.unproven.entry(client).or_default().insert(id);
        }
    }

    fn forget(&mut self, id: u64) {
        let Some(entry) = self.open.remove(&id) else { return };
        self.prove(id, entry.client);
    }

    fn prove(&mut self, id: u64, client: IpAddr) {
        if let Some(ids) = self.unproven.get_mut(&client) {
            ids.remove(&id);
            if ids.is_empty() {
                self.unproven.remove(&client);
            }
        }
    }

    /// Closes the oldest unproven connection of `client`; `false`: it has none.
    fn evict(&mut self, client: IpAddr) -> bool {
        let Some(id) = self.unproven.get(&client).and_then(|ids| ids.first().copied()) else { return false };
        if let Some(entry) = self.open.get(&id) {
            entry.close.notify_one();
        }
        self.forget(id);
        true
    }
}

impl Connections {
    /// A table of `max` connections.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max: max.max(1), table: Mutex::default() })
    }

    /// Unproven connections of one client.
    fn share(&self) -> usize {
        (self.max / CLIENT_SHARE).max(1)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a connection of `client`, whose addresses count as one.
    pub fn open(self: &Arc<Self>, client: IpAddr) -> Result<Connection, Full> {
        let mut table = self.lock();
        let own = table.unproven.get(&client).map_or(0, BTreeSet::len);
        if own >= self.share() {
            table.evict(client);
        }
        if table.open.len() >= self.max {
            let most = table.unproven.iter().max_by_key(|(_, ids)| ids.len()).map(|(client, _)| *client);
            if !most.is_some_and(|client| table.evict(client)) {
                return Err(Full);
            }
        }
        let (id, close) = (table.next, Arc::new(Notify::new()));
        table.next += 1;
        table.open.insert(id, Entry { client, close: close.clone() });
        table.unproven.entry(client).or_default().insert(id);
        Ok(Connection { id, connections: self.clone(), close })
    }
}

impl Connection {
    /// The connection is of `client`, for which a proxy opened it.
    pub fn attribute(&self, client: IpAddr) {
        let share = self.connections.share();
        self.connections.lock().attribute(self.id, client, share);
    }

    /// A request on it had a valid proof or token.
    pub fn prove(&self) {
        let mut table = self.connections.lock();
        if let Some(client) = table.open.get(&self.id).map(|e| e.client) {
            table.prove(self.id, client);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.lock().forget(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    fn is_closed(connection: &Connection) -> bool {
        !connection.connections.lock().open.contains_key(&connection.id)
    }

    #[test]
    fn client_with_most_unproven_connections_makes_room() {
        let connections = Connections::new(8);
        let proven = connections.open(client(1)).unwrap();
        proven.prove();
        let waiting = connections.open(client(2)).unwrap();
        let flood: Vec<_> = (0..50).map(|_| connections.open(client(9)).unwrap()).collect();
        assert_eq!(flood.iter().filter(|c| !is_closed(c)).count(), 2, "a quarter of all");
        assert!(is_closed(&flood[47]) && !is_closed(&flood[48]), "its oldest go first");
        assert!(!is_closed(&proven) && !is_closed(&waiting));
        // Many clients with one connection each.
        let many: Vec<_> = (100..200).map(|n| connections.open(client(n)).unwrap()).collect();
        assert!(!is_closed(&proven), "a proven one never makes room");
        assert_eq!(connections.lock().open.len(), 8);
        drop((many, flood, waiting));
        assert_eq!(connections.lock().open.len(), 1);
        assert!(connections.lock().unproven.is_empty());
    }

    #[test]
    fn connections_through_a_proxy_count_for_their_sources() {
        let connections = Connections::new(8);
        let through_proxy = |n| {
            let connection = connections.open(client(1)).unwrap();
            connection.attribute(client(n));
            connection
        };
        let waiting = through_proxy(2);
        let flood: Vec<_> = (0..50).map(|_| through_proxy(9)).collect();
        assert_eq!(flood.iter().filter(|c| !is_closed(c)).count(), 2, "a quarter of all");
        let many: Vec<_> = (20..24).map(through_proxy).collect();
        assert!(!is_closed(&waiting) && many.iter().all(|c| !is_closed(c)), "not the proxy's quarter");
        flood[49].prove();
        flood[49].attribute(client(30));
        assert!(!connections.lock().unproven.contains_key(&client(30)), "a proven one stays so");
        drop((waiting, flood, many));
        assert!(connections.lock().open.is_empty() && connections.lock().unproven.is_empty());
    }

    #[test]
    fn new_connection_is_refused_when_all_are_proven() {
        let connections = Connections::new(4);
        let held: Vec<_> = (0..4).map(|n| connections.open(client(n)).unwrap()).collect();
        held.iter().for_each(Connection::prove);
        assert!(connections.open(client(9)).is_err());
        drop(held);
        assert!(connections.open(client(9)).is_ok());
    }
}
