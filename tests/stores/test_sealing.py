from __future__ import annotations

import os

import pytest

from memoryos_server.stores.keyring import KeyringError, MasterKey, StoreSecrets
from memoryos_server.stores.sealing import SealBroken, Sealer, framed

KEY = os.urandom(32)


def sealer(key: bytes = KEY, tenant: str = "acme", subject: str = "a" * 32, *, sealing: bool = True) -> Sealer:
    return Sealer(key, tenant, subject, sealing=sealing)


def test_open_when_sealed_by_the_same_subject_then_gives_the_text_back() -> None:
    sealed = sealer().seal("r1", "Ann lives in 奥斯陆".encode())
    assert b"Ann" not in sealed
    assert sealer().open("r1", sealed).decode() == "Ann lives in 奥斯陆"


def test_seal_when_repeated_then_gives_other_bytes() -> None:
    assert sealer().seal("r1", b"x") != sealer().seal("r1", b"x")


@pytest.mark.parametrize(
    ("other", "record"),
    [
        (sealer(), "r2"),
        (sealer(tenant="other"), "r1"),
        (sealer(subject="b" * 32), "r1"),
        (sealer(key=os.urandom(32)), "r1"),
    ],
    ids=["record", "tenant", "subject", "key"],
)
def test_open_when_anything_differs_then_is_refused(other: Sealer, record: str) -> None:
    with pytest.raises(SealBroken):
        other.open(record, sealer().seal("r1", b"secret"))


def test_open_when_any_byte_is_changed_then_is_refused() -> None:
    sealed = sealer().seal("r1", b"secret")
    for at in range(len(sealed)):
        with pytest.raises(SealBroken):
            sealer().open("r1", sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
    with pytest.raises(SealBroken):
        sealer().open("r1", b"")


def test_sealing_when_off_then_text_is_readable_and_hashes_stay_keyed() -> None:
    plain = sealer(sealing=False)
    assert plain.seal("r1", b"secret") == b"secret"
    assert plain.open("r1", b"secret") == b"secret"
    assert plain.equality("session", "s") == sealer().equality("session", "s") != ""
    assert plain.term("oslo") == sealer().term("oslo")


def test_hashes_when_subject_or_kind_differs_then_differ() -> None:
    ours, theirs = sealer(), sealer(key=os.urandom(32))
    assert ours.equality("session", "s") != theirs.equality("session", "s")
    assert ours.equality("session", "s") != ours.equality("tag", "s")
    assert [ours.term(word) for word in ("oslo", "rome")] != [theirs.term(word) for word in ("oslo", "rome")]
    assert 0 <= ours.term("oslo") < 2**32
    assert len(ours.equality("session", "s")) == 32


def test_framed_when_parts_are_cut_elsewhere_then_differs() -> None:
    assert framed("ab", "c") != framed("a", "bc")


def test_unwrap_when_owner_purpose_or_master_differs_then_is_refused() -> None:
    master, other = MasterKey(os.urandom(32)), MasterKey(os.urandom(32))
    wrapped = master.wrap("subject", "s1", KEY)
    assert master.unwrap("subject", "s1", wrapped) == KEY
    for purpose, owner in (("subject", "s2"), ("store", "s1")):
        with pytest.raises(KeyringError):
            master.unwrap(purpose, owner, wrapped)
    with pytest.raises(KeyringError, match=f"{master.id}, not by {other.id}"):
        other.unwrap("subject", "s1", wrapped)


def test_secrets_when_purpose_differs_then_hashes_differ_and_seals_stay_shut() -> None:
    secrets = StoreSecrets(KEY)
    assert secrets.hash("subject", "t", "u") != secrets.hash("audit", "t", "u")
    assert secrets.hash("subject", "t", "u") == StoreSecrets(KEY, sealing=False).hash("subject", "t", "u")
    with pytest.raises(SealBroken):
        secrets.open("other", "r", secrets.seal("apikey", "r", b"x"))


def test_master_key_when_printed_then_does_not_show_itself() -> None:
    master = MasterKey(KEY)
    assert KEY.hex() not in repr(master)
    assert repr(KEY) not in repr(master)
    assert len(master.id) == 16
