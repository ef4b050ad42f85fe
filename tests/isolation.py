"""Random calls of people of two tenants, made with ids that they got hold of; and what of one's own comes back to another.

Whatever a person writes holds words of that person alone (canaries). What is found in somebody else's answer, and was not in the
request, has leaked. So have the ids that a server made for one person and tells another.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor

from memoryos.schema import Method
from memoryos_bridge.scalars import Misfit
from tests.any_rpc import METHODS, Outcome, over_grpc, over_http
from tests.rpc.authorisation import LINES, Line
from tests.system import System

IDS = ("id", "memory_id", "segment_id", "session_id", "event_id", "receipt_id", "key", "key_id", "page_token")
"""Fields that name something."""

TEXTS = ("content", "query", "text", "summary", "description", "name", "reason", "input")
"""Fields that say something."""

SHARED = ("coffee", "garden", "Lisbon", "violin", "train", "winter")
"""Words that everybody uses, so that everybody's things are alike."""

_CHAT = ("CreateChatCompletion", "StreamChatCompletion", "CreateResponse", "StreamResponse")
_ENDING = ("DeleteApiKey", "RotateApiKey")
"""What an administrator must not do to the keys of those who play."""

_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|key_[0-9a-f]{16}|(?:chatcmpl|resp)[-_][\w-]{8,}")
_CRASHES = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


@dataclass
class Person:
    """Who plays.

    Attributes:
        tenant: The tenant.
        user: The user id, a canary itself.
        admin: Whether he is the tenant's administrator.
        headers: The key.
        canaries: The words of this person: the user id, four that only texts have, and one that only names have.
        made: The ids that the servers made for this person.
        sent: The names and words that this person ever sent, or others sent in this person's name: thereby they are known to him.
    """

    tenant: str
    user: str
    admin: bool
    headers: dict[str, str]
    canaries: list[str]
    made: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)


class Play:
    """A game: people, and what they know of each other's things."""

    def __init__(self, system: System, channel: grpc.Channel, boss: Mapping[str, str], seed: int) -> None:
        """Makes the people.

        Args:
            system: The running system.
            channel: A channel to its server.
            boss: The header of a key of all tenants.
            seed: What all chance follows from.
        """
        self.random = random.Random(seed)  # noqa: S311  # a game
        self.system, self.channel, self.boss = system, channel, dict(boss)
        self.calls: dict[str, int] = {}
        self.answered = self.refused = self.pairs = 0
        self.pool: dict[str, list[str]] = {name: [] for name in IDS}
        self.people = [self._person(tenant, admin) for tenant in ("north", "south") for admin in (False, False, True)]

    def _person(self, tenant: str, admin: bool) -> Person:
        words = ["".join(self.random.choices(string.ascii_lowercase, k=14)) for _ in range(6)]
        person = Person(tenant, words[0], admin, {}, words)
        self._give_key(person)
        return person

    def _give_key(self, person: Person) -> None:
        held = ["admin"] if person.admin else ["chat", "memory", "graph", "multimodal", "security", "wiki"]
        body = {"user_id": person.user, "permissions": held, "tenant_id": person.tenant}
        status, answer, _ = self.system.post("/v1/admin/keys", body, self.boss)
        assert status == 200, answer
        person.headers = {"Authorization": f"Bearer {answer['api_key']}"}
        person.made.add(answer["id"])

    def says(self, person: Person) -> str:
        """Something that only this person says, in words that others use, too."""
        return f"My {self.random.choice(person.canaries[1:5])} likes {' and '.join(self.random.sample(SHARED, 2))}."

    def step(self) -> None:
        """One random call of one person, and what must hold of it."""
        person = self.random.choice(self.people)
        open_to = [one for one in LINES if one.permission != "public" and self._may(person, one)]
        line = self.random.choice(open_to)
        if self.random.random() < 0.1:  # chance alone would leave out some RPC now and then
            line = min(open_to, key=lambda one: self.calls.get(one.rpc, 0))
        method = METHODS[line.rpc]
        request = self._request(person, line, method)
        headers = dict(person.headers)
        other = self.random.choice([one for one in self.people if one is not person])
        reaches = not person.admin or other.tenant != person.tenant
        foreign = self.random.random() < 0.15 and reaches
        if foreign and self.random.random() < 0.3:
            headers["X-Tenant-ID"] = other.tenant if other.tenant != person.tenant else "elsewhere"
        elif foreign and line.whose in ("user", "self"):
            headers["X-User-ID"] = other.user
            foreign = not (person.admin and other.tenant != person.tenant)  # there he is another user of the same name
        else:
            foreign = False
        self.calls[line.rpc] = self.calls.get(line.rpc, 0) + 1
        sent = json.dumps([request, headers])
        said = self._words(sent)
        person.sent |= said
        if "X-User-ID" in headers:
            other.sent |= said  # an attempt on somebody's things stands in that person's trail, with what it named
        if method.routes and line.rpc not in _CHAT and self.random.random() < 0.2:
            status, answer = over_http(self.system, method, request, headers)
            assert status < 500 or status == 503, (line.rpc, request, answer)
            self._look(person, line, json.dumps(answer))
            ok, unknown = status < 300, status == 401
        else:
            try:
                seen = over_grpc(self.channel, method, request, headers)
            except Misfit:
                return  # chance made what no client can send
            assert seen.code not in _CRASHES, (line.rpc, request, seen)
            self._look(person, line, text_of(seen))
            self._learn(person, seen)
            ok, unknown = seen.code is grpc.StatusCode.OK, seen.code is grpc.StatusCode.UNAUTHENTICATED
        assert not (foreign and ok), (line.rpc, request, headers)
        self.answered, self.refused = self.answered + ok, self.refused + (not ok)
        if unknown:
            self._give_key(person)  # who erases himself has none any more

    def compare(self) -> bool:
        """Asks for something of somebody else's and for something that is not there; both answers must be the same."""
        person = self.random.choice([one for one in self.people if not one.admin])
        line = self.random.choice([one for one in LINES if one.whose == "user" and self._id_field(one)])
        name = self._id_field(line)
        kinds = "memory_id" if name in ("id", "memory_id", "segment_id") else name
        pool = [*self.pool["id"], *self.pool["memory_id"], *self.pool["segment_id"], *self.pool[kinds]]
        theirs = [
            one
            for one in pool
            if (_UUID.fullmatch(one) if kinds == "memory_id" else one in self.pool[kinds])
            and not any(word in person.sent or word in person.made for word in (one, *self._words(one)))
        ]
        if not theirs:
            return False
        known = self.random.choice(theirs)
        unknown = _unlike(known, self.random)
        person.sent |= {known, *self._words(known)}
        answers = []
        for one in (known, unknown):
            seen = over_grpc(self.channel, METHODS[line.rpc], dict(line.request) | {name: one}, person.headers)
            answers.append((seen.code, text_of(seen).replace(one, "<id>")))
        assert answers[0] == answers[1], (line.rpc, known, answers)
        self.pairs += 1
        return True

    @staticmethod
    def _id_field(line: Line) -> str:
        return next((name for name in line.request if name in IDS), "")

    @staticmethod
    def _may(person: Person, line: Line) -> bool:
        return person.admin or line.permission != "admin"

    def _request(self, person: Person, line: Line, method: Method) -> dict[str, Any]:
        chance = self.random
        if line.rpc in _CHAT:
            body = json.loads(line.request["chat"]["body_json"])
            body["messages" if "messages" in body else "input"] = [{"role": "user", "content": self.says(person)}]
            chat = {"body_json": json.dumps(body)}
            if chance.random() < 0.4:
                chat["session_id"] = self._name(person, "session_id")
            return {"chat": chat}
        request = dict(line.request)
        for one in method.descriptor.input_type.fields:
            if one.name in request and one.name not in (*IDS, *TEXTS, "tags", "segments", "messages"):
                continue
            needed = one.name in request
            if one.name == "segments":
                request["segments"] = [self._segment(person) for _ in range(chance.randint(1, 2))]
            elif one.name == "tags":
                request["tags"] = [chance.choice([*person.canaries[1:5], *SHARED])]
            elif one.is_repeated or one.message_type is not None:
                continue
            elif one.name in IDS and (needed or chance.random() < 0.5):
                request[one.name] = self._name(person, one.name)
            elif one.name in TEXTS and one.type == FieldDescriptor.TYPE_STRING and (needed or chance.random() < 0.3):
                request[one.name] = self.says(person)
            elif one.name == "page_size" and chance.random() < 0.5:
                request[one.name] = chance.randint(1, 5)
        if line.rpc in _ENDING:
            mine = {key for each in self.people for key in each.made if each.tenant == person.tenant}
            if request["key"] in mine or not request["key"].startswith("key_"):
                request["key"] = "key_0000000000000000"
        return request

    def _segment(self, person: Person) -> dict[str, Any]:
        made: dict[str, Any] = {"summary": self.says(person), "tags": [self.random.choice(person.canaries[1:5])]}
        if self.random.random() < 0.4 and (ids := [one for one in self.pool["id"] if _UUID.fullmatch(one)]):
            made["id"] = self.random.choice(ids)
        return made

    def _name(self, person: Person, kind: str) -> str:
        """The name of something: somebody's, or a new one."""
        pool = self.pool[kind]
        if kind in ("id", "memory_id", "segment_id"):
            pool = self.pool["id"] + self.pool["memory_id"] + self.pool["segment_id"]
        if pool and self.random.random() < 0.8:
            return self.random.choice(pool)
        made = f"{person.canaries[5]}-{self.random.randint(1, 30)}"
        if kind in ("session_id", "event_id") and made not in pool:
            pool.append(made)
        return made

    def _words(self, text: str) -> set[str]:
        """The ids in a text, and the words that are somebody's."""
        return {*_UUID.findall(text), *(word for each in self.people for word in each.canaries if word in text)}

    def _look(self, person: Person, line: Line, seen: str) -> None:
        """Sees that nothing in an answer is somebody else's.

        What people of a tenant sent, whosesoever it is, its administrator may see: it stands in the audit.
        """
        beside, found = self._beside(person), set(_UUID.findall(seen))

        def known(word: str) -> bool:
            return any(word in each.sent for each in beside)

        for other in self.people:
            if other in beside:
                continue
            for word in other.canaries:
                assert word not in seen or known(word), (
                    f"{line.rpc} told {person} of {other}: "
                    f"...{seen[max(0, seen.index(word) - 600) : seen.index(word) + 200]}..."
                )
            told = {one for one in found if one in other.made and one not in person.made and not known(one)}
            assert not told, f"{line.rpc} told {person} ids of {other}: {told}"

    def _beside(self, person: Person) -> list[Person]:
        """Whose things a person may see."""
        return [one for one in self.people if one is person or (person.admin and one.tenant == person.tenant)]

    def _learn(self, person: Person, seen: Outcome) -> None:
        for answer in seen.answers:
            shown = json_format.MessageToDict(answer, preserving_proto_field_name=True)
            for name, text in _strings(shown):
                kind = "page_token" if name == "next_page_token" else name
                if kind in self.pool and text and not text.startswith("mos-"):
                    self.pool[kind] = [*self.pool[kind][-400:], text]
                if not person.admin:
                    person.made |= set(_UUID.findall(text)) - person.sent


def _strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, name)
    elif isinstance(value, str):
        yield name, value


def text_of(seen: Outcome) -> str:
    """All that a call told, in one text."""
    return "\n".join(
        [seen.message, seen.trailers, *(json_format.MessageToJson(one, ensure_ascii=False) for one in seen.answers)]
    )


def _unlike(name: str, chance: random.Random) -> str:
    """A name of the same form and length that nobody has."""
    kind = string.hexdigits[:16] if _UUID.fullmatch(name) else string.ascii_lowercase
    return "".join(chance.choice(kind) if one.isalnum() else one for one in name)
