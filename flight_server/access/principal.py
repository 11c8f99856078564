"""Who a call is made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """A name that was proved, or nobody's. Equal principals have equal rights.

    `method` says how it was proved: anonymous, password, api-key, jwt or certificate.
    """

    name: str
    is_admin: bool = False
    method: str = "anonymous"


#: Whoever came without credentials, where the settings allow that.
ANONYMOUS = Principal("anonymous")
