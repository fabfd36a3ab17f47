//! The header of the PROXY protocol, version 2, which tells a stream's peer who the client is
//! (<https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt>, §2.2).
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, a connection on a client's behalf.
const PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// The header for a connection from `client` to `server`.
pub fn header(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let (from, to) = (client.ip().to_canonical(), server.ip().to_canonical());
    let mut addresses = Vec::new();
    let family = if let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) {
        addresses.extend(from.octets());
        addresses.extend(to.octets());
        TCP_OVER_IPV4
    } else {
        // Mixed families meet in IPv6.
        for ip in [from, to] {
            addresses.extend(match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            });
        }
        TCP_OVER_IPV6
    };
    addresses.extend(client.port().to_be_bytes());
    addresses.extend(server.port().to_be_bytes());
    let mut header = SIGNATURE.to_vec();
    header.extend([PROXY, family]);
    header.extend((addresses.len() as u16).to_be_bytes());
    header.extend(addresses);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let header4 = header("1.2.3.4:258".parse().unwrap(), "5.6.7.8:80".parse().unwrap());
        assert_eq!(
            header4,
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x01\x02\0\x50"
        );
        let header6 = header("[::1]:1".parse().unwrap(), "1.2.3.4:2".parse().unwrap());
        assert_eq!(header6[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(header6.len(), 52);
        assert_eq!(header6[31], 1);
        assert_eq!(header6[42..48], [0xff, 0xff, 1, 2, 3, 4]);
        // IPv4 on a socket that also takes IPv6.
        assert_eq!(
            header("[::ffff:1.2.3.4]:258".parse().unwrap(), "5.6.7.8:80".parse().unwrap()),
            header4
        );
    }
}
