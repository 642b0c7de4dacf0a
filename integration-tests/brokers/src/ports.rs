//! Free loopback ports for brokers that are told their port before they start.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;

use anyhow::{Result, bail};

/// Below every system's range of ephemeral ports (Linux from 32768, macOS from 49152), and that matters: a client that
/// reconnects in a loop to an *ephemeral* port on which nobody listens can be given that very port as its own source
/// port, connects to itself, and then holds the port that the restarted broker needs.
const RANGE: Range<u16> = 20_000..32_000;

/// `count` different ports of 127.0.0.1 on which nobody listens now.
///
/// Somebody else may take one before the broker binds it: who starts a broker tries again on a lost race.
pub fn free(count: usize) -> Result<Vec<u16>> {
    // All are held until all are found, so that they differ.
    let mut held = Vec::with_capacity(count);
    for _ in 0..2_000 {
        if held.len() == count {
            break;
        }
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, random_port())) {
            held.push(listener);
        }
    }
    if held.len() < count {
        bail!(
            "found only {} of {count} free ports on 127.0.0.1 in {RANGE:?}; stop what holds them",
            held.len()
        );
    }
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

fn random_port() -> u16 {
    // std's only source of randomness: each RandomState has keys of its own.
    let random = RandomState::new().build_hasher().finish();
    let width = u64::from(RANGE.end - RANGE.start);
    RANGE.start + u16::try_from(random % width).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_distinct_and_in_range() {
        let mut ports = free(20).unwrap();
        assert!(ports.iter().all(|port| RANGE.contains(port)));
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }

    #[test]
    fn a_taken_port_is_not_handed_out() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        assert!(!free(5).unwrap().contains(&taken));
    }
}
