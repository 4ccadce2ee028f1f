//! What each address may take of the service: connections, memory of bodies, requests a second, places in the queue. Whoever
//! takes most gives way, so that one neighbour cannot lock the others out.

use super::engine::lock;
use crate::cli::rate::Bucket;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::Notify;

/// Whoever counts as one: an IPv4 address, or the 64 bits of a network that one IPv6 machine chooses its addresses from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer(IpAddr);

impl Peer {
    pub fn new(address: IpAddr) -> Self {
        Peer(match address.to_canonical() {
            IpAddr::V6(v6) if !v6.is_loopback() => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
            other => other,
        })
    }
}

/// Whoever occurs most often, and how often.
fn heaviest<K: Copy + Eq + Hash>(all: impl Iterator<Item = K>) -> Option<(K, usize)> {
    let mut counts = HashMap::new();
    all.for_each(|k| *counts.entry(k).or_insert(0) += 1);
    counts.into_iter().max_by_key(|(_, n)| *n)
}

/// The open connections. Where there are too many, the address that has most of them loses its oldest one to a newcomer that
/// has at least two less.
pub struct Connections {
    most: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    /// Oldest first.
    places: Vec<(Peer, u64, Arc<Notify>)>,
    next: u64,
}

/// A connection's place, free again when dropped.
pub struct Place {
    connections: Arc<Connections>,
    id: u64,
    lost: Arc<Notify>,
}

impl Connections {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Connections { most, open: Mutex::default() })
    }

    /// `None` where there is no place.
    pub fn enter(self: &Arc<Self>, peer: Peer) -> Option<Place> {
        let mut open = lock(&self.open);
        if open.places.len() >= self.most {
            let own = open.places.iter().filter(|p| p.0 == peer).count();
            let (victim, most) = heaviest(open.places.iter().map(|p| p.0))?;
            if most < own + 2 {
                return None;
            }
            let oldest = open.places.iter().position(|p| p.0 == victim)?;
            // It is told, and ends; its place is taken already.
            open.places.remove(oldest).2.notify_one();
        }
        let (id, lost) = (open.next, Arc::new(Notify::new()));
        open.next += 1;
        open.places.push((peer, id, lost.clone()));
        Some(Place { connections: self.clone(), id, lost })
    }
}

impl Place {
    /// Waits until somebody else has taken it.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.connections.open).places.retain(|p| p.1 != self.id);
    }
}

/// Bytes of bodies that are being received or wait to be decoded. An address may hold as much as is left over: alone it gets
/// half, with a second one that does the same a third, and there is always something left for the next.
pub struct Bodies {
    most: usize,
    held: Mutex<HashMap<Peer, usize>>,
}

/// A body's bytes, given back when dropped.
pub struct Held {
    bodies: Arc<Bodies>,
    peer: Peer,
    bytes: usize,
}

impl Bodies {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Bodies { most, held: Mutex::default() })
    }

    pub fn hold(self: &Arc<Self>, peer: Peer) -> Held {
        Held { bodies: self.clone(), peer, bytes: 0 }
    }
}

impl Held {
    /// Counts more bytes; false where they are too many.
    pub fn add(&mut self, bytes: usize) -> bool {
        let mut held = lock(&self.bodies.held);
        let all: usize = held.values().sum();
        let own = held.get(&self.peer).copied().unwrap_or(0);
        if own + bytes > self.bodies.most.saturating_sub(all) {
            return false;
        }
        held.insert(self.peer, own + bytes);
        self.bytes += bytes;
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = lock(&self.bodies.held);
        let left = held.get(&self.peer).copied().unwrap_or(0).saturating_sub(self.bytes);
        if left == 0 {
            held.remove(&self.peer);
        } else {
            held.insert(self.peer, left);
        }
    }
}

/// Requests a second of each address.
pub struct Rates {
    per_second: f64,
    buckets: Mutex<HashMap<Option<Peer>, Bucket>>,
}

impl Rates {
    /// Addresses that are counted one by one; more share what one may do.
    const MOST: usize = 4096;

    pub fn new(per_second: f64) -> Self {
        Rates { per_second, buckets: Mutex::default() }
    }

    pub fn take(&self, peer: Peer, now: Instant) -> bool {
        let mut buckets = lock(&self.buckets);
        if buckets.len() >= Self::MOST && !buckets.contains_key(&Some(peer)) {
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        let key = Some(peer).filter(|_| buckets.len() < Self::MOST || buckets.contains_key(&Some(peer)));
        buckets.entry(key).or_insert_with(|| Bucket::new(self.per_second, self.per_second, now)).take(now)
    }
}

/// A queue in which addresses take turns. Where it is full, the address with most in it loses its newest entry to one that
/// has at least two less.
pub struct Queue<T> {
    most: usize,
    waiting: VecDeque<(Peer, T)>,
    last: Option<Peer>,
}

impl<T> Queue<T> {
    pub fn new(most: usize) -> Self {
        Queue { most, waiting: VecDeque::new(), last: None }
    }

    /// Gives back what has no place: an older entry, or the new one.
    pub fn push(&mut self, peer: Peer, item: T) -> Option<T> {
        let mut lost = None;
        if self.waiting.len() >= self.most {
            let own = self.waiting.iter().filter(|w| w.0 == peer).count();
            let victim = heaviest(self.waiting.iter().map(|w| w.0)).filter(|(_, most)| *most >= own + 2);
            let newest = victim.and_then(|(victim, _)| self.waiting.iter().rposition(|w| w.0 == victim));
            match newest.and_then(|at| self.waiting.remove(at)) {
                Some((_, old)) => lost = Some(old),
                None => return Some(item),
            }
        }
        self.waiting.push_back((peer, item));
        lost
    }

    /// The oldest entry of another address than the last one's, if there is any.
    pub fn pop(&mut self) -> Option<T> {
        let other = self.waiting.iter().position(|w| Some(w.0) != self.last).unwrap_or(0);
        let (peer, item) = self.waiting.remove(other)?;
        self.last = Some(peer);
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn peer(last: u8) -> Peer {
        Peer::new([192, 168, 1, last].into())
    }

    #[test]
    fn an_ipv6_machine_is_one_peer_whatever_its_addresses() {
        let of = |text: &str| Peer::new(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.168.1.7"), peer(7));
        assert_ne!(of("::1"), of("::2"));
    }

    #[test]
    fn a_hoarder_of_connections_gives_way() {
        let connections = Connections::new(4);
        let mut hoard: Vec<_> = (0..4).map(|_| connections.enter(peer(1)).unwrap()).collect();
        assert!(connections.enter(peer(1)).is_none(), "not to itself");
        let told = |place: &Place| {
            let mut lost = std::pin::pin!(place.lost());
            lost.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready()
        };
        let second = connections.enter(peer(2)).unwrap();
        assert_eq!(hoard.iter().map(told).collect::<Vec<_>>(), [true, false, false, false]);
        drop(hoard.remove(0));
        let third = connections.enter(peer(2)).unwrap();
        drop(hoard.remove(0));
        // Two each: nobody has too many.
        assert!(connections.enter(peer(2)).is_none() && connections.enter(peer(1)).is_none());
        assert!(connections.enter(peer(3)).is_some_and(|place| { !told(&place) }));
        drop((second, third));
        assert!(connections.enter(peer(4)).is_some());
    }

    #[test]
    fn there_is_always_memory_left_for_the_next_body() {
        let bodies = Bodies::new(64);
        let fill = |last: u8| {
            let mut held = bodies.hold(peer(last));
            while held.add(1) {}
            held
        };
        let hoards: Vec<Held> = (0..4).map(fill).collect();
        assert_eq!(hoards.iter().map(|h| h.bytes).collect::<Vec<_>>(), [32, 16, 8, 4]);
        assert!(bodies.hold(peer(9)).add(4) && !bodies.hold(peer(0)).add(1));
        drop(hoards);
        assert!(lock(&bodies.held).is_empty());
    }

    #[test]
    fn rates_are_per_address_and_their_memory_is_bounded() {
        let (rates, now) = (Rates::new(5.0), Instant::now());
        assert_eq!((0..9).filter(|_| rates.take(peer(1), now)).count(), 5);
        assert!(rates.take(peer(2), now) && rates.take(peer(1), now + Duration::from_millis(250)));
        let many = (0..2 * Rates::MOST as u32).filter(|i| rates.take(Peer::new(i.to_be_bytes().into()), now)).count();
        assert!(many < Rates::MOST + 6 && lock(&rates.buckets).len() <= Rates::MOST + 1, "{many}");
        assert!(rates.take(peer(9), now + Duration::from_secs(10)) && lock(&rates.buckets).len() < 10);
    }

    #[test]
    fn addresses_take_turns_and_a_full_queue_is_shared() {
        let mut queue = Queue::new(4);
        for i in 0..4 {
            assert_eq!(queue.push(peer(1), i), None);
        }
        assert_eq!(queue.push(peer(1), 4), Some(4));
        assert_eq!(queue.push(peer(2), 5), Some(3), "the newest of the one with most");
        assert_eq!(queue.push(peer(2), 6), Some(2));
        assert_eq!(queue.push(peer(2), 7), Some(7));
        assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>(), [0, 5, 1, 6]);
    }
}
