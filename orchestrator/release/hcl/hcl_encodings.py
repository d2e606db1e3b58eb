"""Functions of HCL for encodings, digests, addresses and identifiers: ``hcl_functions.py`` names them."""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import io
import ipaddress
import json
import os
import pwd
import urllib.parse
import uuid
from fractions import Fraction
from typing import Final

import msgspec

from orchestrator.release.hcl import hcl_values as values
from orchestrator.release.hcl.hcl_values import HclValue, MappingValue, SequenceValue, ValueRefused
from platforms import decoding
from platforms.errors import EnvironmentUnfit, printable

_HTML: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_JSON_DEPTH: Final = 100
_NAMESPACES: Final = {
    "dns": uuid.NAMESPACE_DNS,
    "url": uuid.NAMESPACE_URL,
    "oid": uuid.NAMESPACE_OID,
    "x500": uuid.NAMESPACE_X500,
}


def base64_encoded(text: str) -> str:
    """Return the base64 of the UTF-8 of ``text``."""
    return base64.b64encode(text.encode()).decode()


def base64_decoded(text: str) -> str:
    """Return the text that base64 stands for."""
    try:
        return base64.b64decode(text, validate=True).decode()
    except binascii.Error as error:
        raise ValueRefused("it is not base64") from error
    except UnicodeDecodeError as error:
        raise ValueRefused("what is encoded is not UTF-8") from error


def url_encoded(text: str) -> str:
    """Return ``text`` escaped for the query of a URL."""
    return urllib.parse.quote_plus(text, safe="")


def md5(text: str) -> str:
    """Return the MD5 of ``text`` in hexadecimal digits."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def sha1(text: str) -> str:
    """Return the SHA-1 of ``text`` in hexadecimal digits."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def sha256(text: str) -> str:
    """Return the SHA-256 of ``text`` in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha512(text: str) -> str:
    """Return the SHA-512 of ``text`` in hexadecimal digits."""
    return hashlib.sha512(text.encode()).hexdigest()


def bcrypt_hash(text: str, *cost: int) -> str:
    """Return a salted hash, another one each time."""
    if len(cost) > 1:
        raise ValueRefused("it takes no more than 2 arguments")
    rounds = values.as_whole(cost[0]) if cost else 10
    if not 4 <= rounds <= 16:
        raise ValueRefused("the cost has to be from 4 to 16")
    try:
        import bcrypt
    except ImportError as error:
        raise EnvironmentUnfit(
            "cannot call bcrypt()", why="bcrypt is not installed", remedy="pip install bcrypt"
        ) from error
    if len(text.encode()) > 72:
        raise ValueRefused("the text has more than 72 bytes")
    return bcrypt.hashpw(text.encode(), bcrypt.gensalt(rounds, b"2a")).decode()


def rsa_decrypted(text: str, key: str) -> str:
    """Return what base64 of an RSA ciphertext (PKCS #1 v1.5) was made of, with a private key in PEM."""
    try:
        from cryptography.hazmat.primitives.asymmetric import padding, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        why, remedy = "cryptography is not installed", "pip install cryptography"
        raise EnvironmentUnfit("cannot call rsadecrypt()", why=why, remedy=remedy) from error
    try:
        private = load_pem_private_key(key.encode(), None)
        if not isinstance(private, rsa.RSAPrivateKey):
            raise ValueRefused("it is not an RSA key")
        return private.decrypt(base64.b64decode(text, validate=True), padding.PKCS1v15()).decode()
    except (ValueError, TypeError) as error:
        raise ValueRefused(f"it cannot be decrypted: {printable(str(error), 80)}") from error


def json_encoded(value: HclValue) -> str:
    """Return ``value`` as JSON, in the form that Go writes."""
    return values.text_of(*_json(value, 0))


def _json(value: HclValue, depth: int) -> list[str]:
    if depth > _JSON_DEPTH:
        raise ValueRefused("it is nested too deeply")
    if isinstance(value, SequenceValue):
        parts = [_json(each, depth + 1) for each in value.items]
        return ["[", *_separated(parts), "]"]
    if isinstance(value, MappingValue):
        parts = [[_json_text(key), ":", *_json(each, depth + 1)] for key, each in value.entries.items()]
        return ["{", *_separated(parts), "}"]
    if value is None:
        return ["null"]
    return [_json_text(value) if isinstance(value, str) else values.as_string(value)]


def _separated(parts: list[list[str]]) -> list[str]:
    return [each for at, part in enumerate(parts) for each in ([",", *part] if at else part)]


def _json_text(text: str) -> str:
    encoded = json.dumps(text, ensure_ascii=False)
    return "".join(_HTML.get(each, each) for each in encoded) if any(each in encoded for each in _HTML) else encoded


def json_decoded(text: str) -> HclValue:
    """Return the value that JSON stands for: objects and tuples."""
    try:
        return _from_json(decoding.from_json(text, number=values.parse_number))
    except msgspec.DecodeError as error:
        raise ValueRefused(printable(str(error), 80)) from error


def _from_json(found: object) -> HclValue:
    if isinstance(found, list):
        return values.sequence("tuple", map(_from_json, found))
    if isinstance(found, dict):
        return values.mapping("object", {key: _from_json(each) for key, each in found.items()})
    if isinstance(found, float):
        raise ValueRefused("NaN and Infinity are not JSON")
    assert found is None or isinstance(found, str | bool | int | Fraction)
    return found


def csv_decoded(text: str) -> SequenceValue:
    """Return a list of objects, whose attributes the first line names."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise ValueRefused(f"it is not CSV: {printable(str(error), 80)}") from error
    if not rows:
        raise ValueRefused("there is no line with names")
    names = rows[0]
    if len(set(names)) < len(names):
        raise ValueRefused("a name is there twice")
    if any(len(row) != len(names) for row in rows):
        raise ValueRefused("a line has another number of fields than the first")
    entries = (values.mapping("object", dict(zip(names, row, strict=True))) for row in rows[1:])
    return values.sequence("list", entries)


def home_directory() -> str:
    """Return the home directory of the user."""
    return os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir


def uuid_4() -> str:
    """Return a random UUID."""
    return str(uuid.uuid4())


def uuid_5(namespace: str, name: str) -> str:
    """Return the UUID of a name in a namespace: dns, url, oid, x500, or a UUID."""
    try:
        return str(uuid.uuid5(_NAMESPACES.get(namespace) or uuid.UUID(namespace), name))
    except ValueError as error:
        raise ValueRefused("the namespace is not a UUID") from error


_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(prefix: str) -> _Network:
    try:
        if "/" not in prefix:
            raise ValueRefused("it is not an address with the length of a prefix")
        found = ipaddress.ip_network(prefix, strict=False)
    except ValueError as error:
        raise ValueRefused("it is not an address with the length of a prefix") from error
    if isinstance(found, ipaddress.IPv6Network) and found.network_address.ipv4_mapped and found.prefixlen >= 96:
        return ipaddress.IPv4Network((found.network_address.ipv4_mapped, found.prefixlen - 96))
    return found


def cidr_host(prefix: str, number: int) -> str:
    """Return the address of a host; negative numbers count from the end."""
    network, at = _network(prefix), values.as_whole(number)
    if not -network.num_addresses <= at < network.num_addresses:
        raise ValueRefused(f"the prefix has no room for host {at}")
    return str(network[at])


def cidr_netmask(prefix: str) -> str:
    """Return the mask of a prefix."""
    return str(_network(prefix).netmask)


def cidr_subnet(prefix: str, bits: int, number: int) -> str:
    """Return a subnet whose prefix is longer by ``bits``."""
    network, more, at = _network(prefix), values.as_whole(bits), values.as_whole(number)
    if not 0 <= more <= 32 or network.prefixlen + more > network.max_prefixlen:
        raise ValueRefused(f"the prefix cannot be {more} bits longer")
    if not -(1 << more) <= at < 1 << more:
        raise ValueRefused(f"{more} bits do not have the number {at}")
    size = network.max_prefixlen - network.prefixlen - more
    address = int(network.network_address) + ((at % (1 << more)) << size)
    return str(type(network)((address, network.prefixlen + more)))


def cidr_subnets(prefix: str, *bits: int) -> SequenceValue:
    """Return subnets one after the other, each with a prefix that is longer by some bits."""
    network = _network(prefix)
    address = int(network.network_address)
    found: list[HclValue] = []
    for each in bits:
        more = values.as_whole(each)
        if not 1 <= more <= 32 or network.prefixlen + more > network.max_prefixlen:
            raise ValueRefused(f"the prefix cannot be {more} bits longer")
        size = 1 << (network.max_prefixlen - network.prefixlen - more)
        address = -(-address // size) * size
        if address + size > int(network.network_address) + network.num_addresses:
            raise ValueRefused("the prefix has no room for all subnets")
        found.append(str(type(network)((address, network.prefixlen + more))))
        address += size
    return values.sequence("list", found)
