"""What a text says, as values: facts, rules, and the closed list of what a fact can be about."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

SPEAKER = "user"
"""The subject of a fact about whoever said it. Other subjects are people or animals as the text names them."""

ASSERTED: Literal["asserted"] = "asserted"
ENDED: Literal["ended"] = "ended"

Polarity = Literal["asserted", "ended"]
Group = Literal["profile", "knowledge"]


@dataclass(frozen=True, slots=True)
class Predicate:
    """What a fact can be about.

    Attributes:
        name: Lower snake case.
        meaning: One line for people.
        single: A subject has one value at a time: a new one ends the old one. Otherwise values add up.
        group: `profile` (traits, preferences, background) or `knowledge`.
        opposite: The predicate whose fact of the same value this one ends, "" if none.
    """

    name: str
    meaning: str
    single: bool
    group: Group
    opposite: str = ""


FAVORITE = "favorite_"
"""The one open family: `favorite_color`, `favorite_food`...; each is single-valued."""

_ALL = (
    Predicate("name", "what the subject is called", single=True, group="profile"),
    Predicate("age", "age in years, when it was said", single=True, group="profile"),
    Predicate("birthday", "day of birth, as said", single=True, group="profile"),
    Predicate("email", "address for mail", single=True, group="profile"),
    Predicate("phone", "telephone number", single=True, group="profile"),
    Predicate("lives_in", "where the home is", single=True, group="profile"),
    Predicate("from", "where somebody comes from, was born or grew up", single=True, group="profile"),
    Predicate("nationality", "citizenship, or people", single=True, group="profile"),
    Predicate("works_at", "employer", single=True, group="profile"),
    Predicate("has_role", "occupation or position", single=True, group="profile"),
    Predicate("studies_at", "school or university attended", single=True, group="profile"),
    Predicate("studies", "subject of study", single=False, group="profile"),
    Predicate("relationship_status", "single, married, engaged, divorced...", single=True, group="profile"),
    Predicate("partner", "wife, husband, girlfriend, boyfriend", single=True, group="profile"),
    Predicate("diet", "vegetarian, vegan...", single=True, group="profile"),
    Predicate("trait", "a trait of character", single=False, group="profile"),
    Predicate("likes", "something liked or preferred", single=False, group="profile", opposite="dislikes"),
    Predicate("dislikes", "something disliked", single=False, group="profile", opposite="likes"),
    Predicate("avoids", "food, drink or a thing that the subject does not take", single=False, group="profile"),
    Predicate("hobby", "something done for pleasure: sport, instrument, game, craft", single=False, group="profile"),
    Predicate("speaks", "a language", single=False, group="profile"),
    Predicate("skill", "something the subject can do well", single=False, group="profile"),
    Predicate("allergic_to", "an allergy or intolerance", single=False, group="profile"),
    Predicate("condition", "an illness or injury", single=False, group="knowledge"),
    Predicate("has_relative", "a family member: `sister Ann`", single=False, group="knowledge"),
    Predicate("has_child", "children, as said: `two kids`", single=False, group="knowledge"),
    Predicate("has_friend", "a friend, colleague, neighbour: `friend Tom`", single=False, group="knowledge"),
    Predicate("has_pet", "an animal: `dog named Rex`", single=False, group="knowledge"),
    Predicate("uses", "a tool, language, product or service in use", single=False, group="knowledge"),
    Predicate("owns", "a thing the subject has or bought", single=False, group="knowledge"),
    Predicate("member_of", "a group, club, church or team that was joined", single=False, group="knowledge"),
    Predicate("attended", "an event or class that was attended", single=False, group="knowledge"),
    Predicate("visited", "a place that was visited", single=False, group="knowledge"),
    Predicate("learning", "something being learnt", single=False, group="knowledge"),
    Predicate("plans", "something decided for later", single=False, group="knowledge"),
    Predicate("wants", "a wish or goal", single=False, group="knowledge"),
    Predicate("works_on", "a project under way", single=False, group="knowledge"),
    Predicate("watched", "a film, series, show or concert that was seen", single=False, group="knowledge"),
    Predicate("read", "a book that is or was read", single=False, group="knowledge"),
)
PREDICATES = {predicate.name: predicate for predicate in _ALL}
"""Every predicate by name, but for the family of favourites."""


def predicate(name: str) -> Predicate:
    """What is known of a predicate.

    Raises:
        KeyError: There is none of this name.
    """
    if name.startswith(FAVORITE) and len(name) > len(FAVORITE):
        return Predicate(name, "what is liked most of its kind", single=True, group="profile")
    return PREDICATES[name]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that a text says of a subject.

    An `asserted` fact holds, from `valid_from` on. An `ended` one held once and holds no longer: it closes the current fact
    of the same subject, predicate and value, and never becomes a current one. A `denied` one does not hold, and nobody says
    that it ever did: it closes a current fact too, and where there is none it says nothing. An asserted fact whose
    predicate has an `opposite` closes that one's fact of the same value.

    Attributes:
        subject: `SPEAKER`, or somebody as the text names them: `sister Ann`, `Ann`, `姐姐`.
        predicate: A name that `predicate` knows.
        value: The value as it is spelled in the text; "" only if ended: whatever it was ("I quit my job").
        sentence: The fact for people, in the language and script of the text: `Lives in Berlin`, `住在柏林`.
        confidence: 0..1; below 0.7 the text itself hedges.
        polarity: `asserted` or `ended`.
        valid_from: When it began, UTC; None if the text does not say.
        valid_to: When it ended or will end, UTC; None if the text does not say.
        quote: The clause that says it, as it stands.
        denied: An ended fact that is denied ("I don't live in Rome") rather than over.
    """

    subject: str
    predicate: str
    value: str
    sentence: str
    confidence: float
    polarity: Polarity = ASSERTED
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    quote: str = ""
    denied: bool = False

    @property
    def ended(self) -> bool:
        """It holds no longer."""
        return self.polarity == ENDED

    @property
    def single(self) -> bool:
        """A subject has one value at a time."""
        return predicate(self.predicate).single

    @property
    def group(self) -> Group:
        """`profile` or `knowledge`."""
        return predicate(self.predicate).group


@dataclass(frozen=True, slots=True)
class Rule:
    """An instruction to the assistant that is meant to last: "always answer in French".

    Attributes:
        content: The instruction as it stands.
        importance: 0..1.
    """

    content: str
    importance: float


@dataclass(frozen=True, slots=True)
class Extraction:
    """What a text says.

    Attributes:
        facts: In the order of the text, none twice.
        rules: In the order of the text.
    """

    facts: tuple[Fact, ...] = ()
    rules: tuple[Rule, ...] = ()


MemoryType = Literal["rule", "fact", "context"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A typed memory that a text suggests.

    Attributes:
        content: The text of the memory.
        memory_type: `rule`, `fact` or `context`.
        importance: 0..1.
    """

    content: str
    memory_type: MemoryType
    importance: float
