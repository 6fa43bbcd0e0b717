"""Who a node is: the cluster's certificate authority, node certificates, and where they are kept.

The CA's private key is only on nodes that keep the log. A node makes its own key, which never leaves it, and
has a request signed. A certificate's one subject alternative name is the node's id; its chain says which
cluster it is of. Time comes as a value (Unix seconds).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sllmd.core.errors import ConfigError, PeerRefused
from sllmd.core.ids import NodeId

NODE_LIFETIME_SECONDS = 365 * 86400.0
"""A certificate that leaked is good for at most this long; renewal needs no operator."""
CA_LIFETIME_SECONDS = 20 * NODE_LIFETIME_SECONDS
"""Replacing the CA means to visit every node."""
BACKDATED_SECONDS = 3600.0
"""A certificate is good from a while ago, so that clocks may differ by minutes."""
RENEWAL_SHARE = 2 / 3
"""Of its life, after which a certificate is to be renewed: months are left for a cluster without a leader."""

_IDENTITY_FILE = "node.pem"
AUTHORITY_FILE = "authority.pem"


@dataclass(frozen=True, slots=True, repr=False)
class Authority:
    """The cluster's CA with its private key."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def certificate_pem(self) -> str:
        """The public half."""
        return _pem(self.certificate)

    @property
    def pin(self) -> str:
        """What a join token carries."""
        return pin_of(self.certificate_pem)

    def to_pem(self) -> str:
        """Key and certificate: for another voter, and for nobody else."""
        return _key_pem(self.key) + self.certificate_pem

    def sign(
        self,
        request_pem: str,
        node: NodeId,
        *,
        now_seconds: float,
        lifetime_seconds: float = NODE_LIFETIME_SECONDS,
    ) -> str:
        """A certificate for ``node``, in PEM. Raises PeerRefused when the request is not one of that node."""
        try:
            request = x509.load_pem_x509_csr(request_pem.encode())
        except ValueError as error:
            raise PeerRefused(f"the certificate request cannot be read: {error}") from error
        if not request.is_signature_valid or _common_name(request.subject) != node:
            raise PeerRefused(f"the certificate request is not one of node {node}")
        public_key = request.public_key()
        if not isinstance(public_key, ec.EllipticCurvePublicKey):
            raise PeerRefused("the certificate request's key is not of an elliptic curve")
        builder = _builder(node, now_seconds, lifetime_seconds).public_key(public_key)
        builder = builder.issuer_name(self.certificate.subject)
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.SubjectAlternativeName([x509.DNSName(node)]), False),
            (_key_usage(signs_certificates=False), True),
            (
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                False,
            ),
            (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False),
        ]
        return _pem(_signed(builder, extensions, self.key))


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """One node's key and certificate, and the CA that it trusts."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    ca_certificate: x509.Certificate

    @property
    def node(self) -> NodeId:
        """Whom the certificate names."""
        return NodeId(_common_name(self.certificate.subject))

    @property
    def ca_pem(self) -> str:
        """The CA's certificate."""
        return _pem(self.ca_certificate)

    @property
    def fingerprint(self) -> str:
        """What the member registry knows this certificate by."""
        return fingerprint_of(self.certificate.public_bytes(serialization.Encoding.DER))

    def to_pem(self) -> str:
        """Key, certificate, CA: the file that TLS contexts are made from."""
        return _key_pem(self.key) + _pem(self.certificate) + self.ca_pem

    def renewal_due(self, now_seconds: float) -> bool:
        """Whether it is time for a new certificate."""
        begin = self.certificate.not_valid_before_utc.timestamp()
        end = self.certificate.not_valid_after_utc.timestamp()
        return now_seconds >= begin + RENEWAL_SHARE * (end - begin)


def new_authority(cluster_id: str, *, now_seconds: float) -> Authority:
    """The CA of a new cluster."""
    key = new_key()
    name = f"sllmd cluster {cluster_id}"
    builder = _builder(name, now_seconds, CA_LIFETIME_SECONDS).public_key(key.public_key())
    builder = builder.issuer_name(_name(name))
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_key_usage(signs_certificates=True), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    ]
    return Authority(key, _signed(builder, extensions, key))


def parse_authority(text: str) -> Authority:
    """The inverse of ``Authority.to_pem``; raises ConfigError."""
    try:
        return Authority(_load_key(text), x509.load_pem_x509_certificate(text.encode()))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"this is no certificate authority: {error}") from error


def new_key() -> ec.EllipticCurvePrivateKey:
    """A node's private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """A private key as text; for its owner's disk only."""
    return _key_pem(key)


def key_from_pem(text: str) -> ec.EllipticCurvePrivateKey:
    """The inverse; raises ConfigError."""
    try:
        return _load_key(text)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"this is no private key: {error}") from error


def make_request(node: NodeId, key: ec.EllipticCurvePrivateKey) -> str:
    """What a node asks the cluster to sign, in PEM."""
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(node)).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def make_identity(key: ec.EllipticCurvePrivateKey, certificate_pem: str, ca_pem: str) -> Identity:
    """What came back from the cluster. Raises PeerRefused unless it is ours and the CA signed it."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        ca_certificate = x509.load_pem_x509_certificate(ca_pem.encode())
        certificate.verify_directly_issued_by(ca_certificate)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise PeerRefused(f"the certificate was not signed by this cluster: {error}") from error
    if certificate.public_key() != key.public_key():
        raise PeerRefused("the certificate belongs to another key")
    return Identity(key, certificate, ca_certificate)


def pin_of(ca_pem: str) -> str:
    """sha256 of a CA's certificate, in hex; raises PeerRefused when ``ca_pem`` is none."""
    try:
        certificate = x509.load_pem_x509_certificate(ca_pem.encode())
    except ValueError as error:
        raise PeerRefused(f"this is no certificate: {error}") from error
    return fingerprint_of(certificate.public_bytes(serialization.Encoding.DER))


def fingerprint_of(certificate_der: bytes) -> str:
    """sha256 of a certificate, in hex."""
    return hashlib.sha256(certificate_der).hexdigest()


# --- on disk ---


def save_identity(directory: Path, identity: Identity) -> Path:
    """Keep it, replacing an older one in one step; the file's path. Raises OSError."""
    return _save_secret(directory / _IDENTITY_FILE, identity.to_pem())


def load_identity(directory: Path) -> Identity | None:
    """What ``save_identity`` kept; None: nothing. Raises ConfigError when it cannot be used."""
    path = directory / _IDENTITY_FILE
    text = _read_secret(path)
    if text is None:
        return None
    try:
        own, ca = x509.load_pem_x509_certificates(text.encode())
        return make_identity(_load_key(text), _pem(own), _pem(ca))
    except (ValueError, TypeError, PeerRefused) as error:
        raise ConfigError(
            f"{path} cannot be used: {error}", hint="remove it and join again with a new token"
        ) from error


def save_authority(directory: Path, authority: Authority) -> Path:
    """Keep the CA. Raises OSError."""
    return _save_secret(directory / AUTHORITY_FILE, authority.to_pem())


def load_authority(directory: Path) -> Authority | None:
    """What ``save_authority`` kept; None: this node has no CA key. Raises ConfigError."""
    text = _read_secret(directory / AUTHORITY_FILE)
    return None if text is None else parse_authority(text)


def forget_authority(directory: Path) -> None:
    """Undo ``save_authority``: this node is not to keep the CA any more. Raises OSError."""
    (directory / AUTHORITY_FILE).unlink(missing_ok=True)
    _sync_directory(directory)


def _save_secret(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)
    return path


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_secret(path: Path) -> str | None:
    try:
        status = path.stat()
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if status.st_mode & 0o077:
        raise ConfigError(f"{path} holds a private key and others may read it", hint=f"chmod 600 {path}")
    return text


# --- certificates ---


def _builder(name: str, now_seconds: float, lifetime_seconds: float) -> x509.CertificateBuilder:
    begin = dt.datetime.fromtimestamp(now_seconds - BACKDATED_SECONDS, dt.UTC)
    end = dt.datetime.fromtimestamp(now_seconds + lifetime_seconds, dt.UTC)
    builder = x509.CertificateBuilder().subject_name(_name(name))
    return builder.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)


def _signed(
    builder: x509.CertificateBuilder,
    extensions: list[tuple[x509.ExtensionType, bool]],
    key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, hashes.SHA256())


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _common_name(name: x509.Name) -> str:
    names = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _load_key(text: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(text.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("the key is not of an elliptic curve")
    return key
