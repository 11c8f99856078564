"""Which addresses are this machine's own, and what a peer is called when its failures are counted."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import unquote


def is_loopback(host: str) -> bool:
    """Is every address of this host on this machine only? No, when it has none."""
    try:
        addresses = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, None)} if host else set()
    except (OSError, UnicodeError):
        return False
    return bool(addresses) and all(ipaddress.ip_address(address).is_loopback for address in addresses)


def peer_address(peer: str) -> str:
    """gRPC's `ipv4:192.0.2.1:50000` or `ipv6:%5B2001:db8::1%5D:50000` without the port; of IPv6 the /64, since whoever
    has one address of it has all."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return kind
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
