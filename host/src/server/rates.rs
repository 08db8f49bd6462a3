//! How many requests and connections one client may have.
//!
//! **Invariant:** what is remembered is bounded: a client whose allowance is full is forgotten, as it
//! would be treated as a new one all the same; a connection is counted for exactly as long as it lives.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::deployment::{Allowance, HttpMetrics};

/// Clients that are remembered before those that need not be are looked for.
const REMEMBERED: usize = 4_096;

/// Who is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Client {
    /// A token, by its id.
    Token(String),
    /// Whoever comes from an address.
    Address(IpAddr),
}

/// The address that a client is counted by: an IPv6 client has a whole /64 to choose from.
pub fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

/// Requests by client.
#[derive(Debug, Default)]
pub struct Rates(Mutex<HashMap<Client, Allowance>>);

impl Rates {
    /// Counts a request at `now`; how long to wait if there were too many.
    pub fn take(&self, client: Client, now: Duration, rate: u32) -> Result<(), Duration> {
        let mut known = self.0.lock();
        if known.len() >= REMEMBERED && !known.contains_key(&client) {
            known.retain(|_, allowance| !allowance.is_full(now, rate));
            // More at once than anyone means to serve: they share what is left.
            if known.len() >= 2 * REMEMBERED {
                known.clear();
            }
        }
        known.entry(client).or_default().take(now, rate)
    }
}

/// Connections by address.
pub struct Places {
    most: usize,
    most_of_one: usize,
    open: Mutex<(usize, HashMap<IpAddr, usize>)>,
    metrics: HttpMetrics,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// For nobody.
    All,
    /// For this address.
    One,
}

impl Places {
    /// So many places, and so many for one address.
    pub fn new(most: usize, most_of_one: usize, metrics: HttpMetrics) -> Arc<Self> {
        Arc::new(Self { most, most_of_one, open: Mutex::default(), metrics })
    }

    /// A place for a connection from `address`.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Result<Place, Full> {
        let address = counted(address);
        let mut open = self.open.lock();
        if open.0 >= self.most {
            return Err(Full::All);
        }
        let of_one = open.1.entry(address).or_default();
        if *of_one >= self.most_of_one {
            return Err(Full::One);
        }
        *of_one += 1;
        open.0 += 1;
        self.metrics.connections.set(open.0 as i64);
        Ok(Place { places: Arc::clone(self), address })
    }
}

/// The place of one connection, given back when it is dropped.
pub struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.places.open.lock();
        open.0 -= 1;
        if let Some(of_one) = open.1.get_mut(&self.address) {
            *of_one -= 1;
            if *of_one == 0 {
                open.1.remove(&self.address);
            }
        }
        self.places.metrics.connections.set(open.0 as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_given_back() {
        let places = Places::new(3, 2, HttpMetrics::default());
        let from = |text: &str| places.take(text.parse().unwrap());
        let held = [from("10.0.0.1"), from("::ffff:10.0.0.1")].map(|place| place.ok().unwrap());
        assert_eq!(from("10.0.0.1").err(), Some(Full::One));
        let other = from("2001:db8::1").ok().unwrap();
        assert_eq!(from("10.0.0.2").err(), Some(Full::All));
        drop(held);
        let second = from("2001:db8::ffff").ok().unwrap();
        assert_eq!(from("2001:db8::2").err(), Some(Full::One), "one /64 is one client");
        drop((other, second));
        assert_eq!(*places.open.lock(), (0, HashMap::new()));
        assert_eq!(places.metrics.connections.get(), 0);
    }

    #[test]
    fn each_client_has_a_rate_and_the_memory_of_them_is_bounded() {
        let rates = Rates::default();
        let token = |n: u32| Client::Token(n.to_string());
        let now = Duration::from_secs(1);
        assert!(rates.take(token(0), now, 2).is_ok() && rates.take(token(0), now, 2).is_ok());
        let wait = rates.take(token(0), now, 2).unwrap_err();
        assert!(wait <= Duration::from_millis(500) && wait > Duration::ZERO);
        assert!(rates.take(token(1), now, 2).is_ok());
        let most = |moment: Duration, clients: std::ops::Range<u32>| {
            let each = clients.map(|n| {
                let _ = rates.take(token(n), moment, 2);
                rates.0.lock().len()
            });
            each.max().unwrap_or_default()
        };
        assert_eq!(most(now, 0..100_000), 2 * REMEMBERED);
        most(now, 0..REMEMBERED as u32);
        assert!(rates.0.lock().len() >= REMEMBERED);
        most(now + Duration::from_secs(2), 200_000..200_001);
        assert_eq!(rates.0.lock().len(), 1, "who asked long ago is as good as new");
    }
}
