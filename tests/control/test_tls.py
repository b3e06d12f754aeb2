"""The own address with TLS; and what a damaged store does to tokens."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import Any

import pytest


def certificate(folder: Path) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "control")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()))
    return paths


@pytest.mark.blocking
async def test_the_own_address_speaks_tls_and_nothing_else(serving: Any, tmp_path: Path) -> None:
    certificate_path, key_path = certificate(tmp_path)
    tls = {"tls_certificate": str(certificate_path), "tls_key": str(key_path)}
    async with serving(tmp_path / ".deia", bootstrap_token=False, listen="127.0.0.1:0", **tls) as service:
        context = ssl.create_default_context(cafile=str(certificate_path))
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port, ssl=context)
        token = await service.token("admin")
        body = b'{"value": "x"}'
        origin = f"https://127.0.0.1:{service.port}"
        head = (
            f"POST /deia/probe/write HTTP/1.1\r\nhost: 127.0.0.1:{service.port}\r\norigin: {origin}\r\n"
            f"authorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        assert b"200 OK" in await reader.readline()
        writer.close()
        assert b"HTTP" not in await service.raw(b"GET /deia/livez HTTP/1.1\r\nhost: localhost\r\n\r\n", service.port)


@pytest.mark.blocking
async def test_a_certificate_that_cannot_be_read_refuses_the_settings(serving: Any, tmp_path: Path) -> None:
    from deia_hardening.control.plugin import ControlPlugin
    from deia_hardening.control.settings import ControlSettings

    async with serving(tmp_path / ".deia", bootstrap_token=False) as service:
        plugin: ControlPlugin = service.plugin
        with pytest.raises(OSError):
            await plugin.check(ControlSettings(tls_certificate=str(tmp_path / "none"), tls_key=str(tmp_path / "none")))


@pytest.mark.blocking
async def test_a_damaged_store_revokes_all_tokens_and_makes_a_first_one_anew(
    serving: Any, tmp_path: Path, caplog: Any
) -> None:
    home = tmp_path / ".deia"
    path = home / "keys" / "bootstrap-token"
    async with serving(home, listen="127.0.0.1:0") as service:
        await service.until(path.exists, "a first token")
        token = await service.token("admin", "ci")
        first = path.read_text()
    (home / "state" / "store.db").write_bytes(b"damaged" * 1000)
    caplog.clear()
    async with serving(home, listen="127.0.0.1:0") as service:
        await service.until(lambda: "first token" in caplog.text, "another first token")
        assert path.read_text() != first
        for old in (token, first.strip()):
            headers = {"authorization": f"Bearer {old}"}
            assert (await service.ask("GET", "/deia/health", headers=headers, port=service.port)).status == 401
        notes = (await service.ask("GET", "/deia/health")).json["store"]
        assert any("damaged" in note for note in notes)
