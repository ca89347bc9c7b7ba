"""Certificates that a site refuses, made here: it ends with one line that says what is wrong."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.clientapp import ClientApp

from skerry.federated.fleet import Certificates, Fleet
from skerry.federated.join import join

NOW = datetime.now(UTC)


def made(folder: Path, name: str, signer: Any = None, host: str = "127.0.0.1", days: int = 1) -> Any:
    """Write a certificate and its key; return both."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    above, above_key = signer or (None, key)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above.subject if above else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=9))
        .not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=False)
        .sign(above_key, SHA256())
    )
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    form = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / f"{name}.key").write_bytes(form)
    return certificate, key


@pytest.mark.parametrize(
    ("authority", "of_server", "told"),
    [
        ("other", {}, "use the ca.crt of the authority"),
        ("ca", {"days": -1}, "certificate has expired; the server needs another one"),
        ("ca", {"host": "127.0.0.2"}, "join by a name that it has"),
        ("server.key", {}, "cannot be read as a certificate"),
    ],
)
def test_a_site_ends_where_the_certificate_is_refused(authority, of_server, told, tmp_path):
    ca = made(tmp_path, "ca")
    made(tmp_path, "other")
    made(tmp_path, "server", ca, **of_server)
    (tmp_path / "server.key.crt").write_bytes((tmp_path / "server.key").read_bytes())
    files, said = Certificates(tmp_path / "server.crt", tmp_path / "server.key"), list[str]()
    with Fleet().serving("127.0.0.1", 0, files) as port, pytest.raises(ValueError, match=told) as raised:
        join(
            f"127.0.0.1:{port}", ClientApp(), certificate=tmp_path / f"{authority}.crt", key=None, node_config={},
            say=said.append,
        )  # fmt: skip
    assert not said
    assert "\n" not in str(raised.value)
