"""A service account key that opens nothing but the sandbox, for clients that insist on one."""

from __future__ import annotations

from functools import cache

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

# Google's have 2048, and the check of such a key takes long each time a block with it is loaded.
KEY_BITS = 1024


@cache
def private_key() -> str:
    """Return a private key in PEM, one for each process: it takes a while to make."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def public_key(private_key: str) -> str:
    """Return the public key in PEM that belongs to a private one."""
    key = serialization.load_pem_private_key(private_key.encode(), password=None)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public.decode()


def service_account_info(project: str, private_key: str, token_uri: str) -> dict[str, str]:
    """Return the JSON of a service account key: Google knows nothing of it."""
    return {
        "type": "service_account",
        "project_id": project,
        "private_key_id": "sandbox",
        "private_key": private_key,
        "client_email": f"sandbox@{project}.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": token_uri,
    }
