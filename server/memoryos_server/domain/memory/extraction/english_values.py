"""What may be the value of a fact, and where it ends in the clause."""

from __future__ import annotations

import re

from memoryos_server.domain.memory.extraction.text import words

MOST_WORDS = 8

_QUOTES = '"“”「」『』‘’'
# Where a value of each kind ends. A comma ends it everywhere but in lists, which are cut before.
_ALWAYS = (
    r"but|because|since|when|while|which|who|whom|where|so|if|although|though|than|after|before|until|"
    r"till|whenever|instead|rather|except|"
    r"these days|right now|now|at the moment|currently|anymore|any more|too|as well|recently|lately|"
    r"again|together|already|every day|however|anyway|the most|the best|most of all|such as|"
    r"now and then|from time to time|especially|in particular|"
    r"lol|haha|and i|and we|and my|and it|then|as i|as it|just|also|even|at least|obviously|ever|i|you"
)
_STOPS = {
    "place": rf"{_ALWAYS}|with|for|to|and|at|near|as|that|by|from|on|close|about|or|over|a few|last|this|"
    r"originally|once|twice|(?:two|three|four|five|several|many|multiple|\d+) times",
    "org": rf"{_ALWAYS}|with|for|as|that|in|from|on|doing|where|near|by|over|full|part|remotely|to",
    "role": (
        rf"{_ALWAYS}|at|with|that|in|from|working|and|based|by|trying|who|living|on|specializing|focusing|"
        r"to|during|there|here|turned"
    ),
    "name": rf"{_ALWAYS}|and|from|with|that|in|at|or|as|is|on|for|by|to",
    "thing": (
        rf"{_ALWAYS}|that|from|to|so much|very much|a lot|more|most|as|with|for|by|during|every|about|over|"
        r"at|on|in|is|are|was|all|like|a bit|lots"
    ),
    "language": (
        rf"{_ALWAYS}|with|for|that|at|in|fluently|well|natively|to|as|from|on|poorly|pretty|quite|very|"
        r"fairly|because"
    ),
    "phrase": rf"{_ALWAYS}|that|and|or",
    "book": rf"{_ALWAYS}|that|by|and|from|on|with|for|about|twice|again|it|in|to my|at",
    "short": rf"{_ALWAYS}|that|and|or|to|from|with|for|in|at|on|about|as|by|of late",
    "taste": rf"{_ALWAYS}|that|so much|very much|a lot|more|most|as|like|a bit|lots|is|are|was|sometimes|out of",
    "favorite": rf"{_ALWAYS}|that|from|to|so much|with|for|by|every|about|over|at|on|is|are|was|and",
    "list": rf"{_ALWAYS}|that|from|to|with|for|by|every|about|over|at|on|in|is|are|was|as",
    "topic": rf"{_ALWAYS}|that|with|for|to|at|by|in order|from|on my own|on duolingo|every|on",
}
_DOT = r"(?<!\bst)(?<!\bdr)(?<!\bmr)(?<!\bms)(?<!\bmt)(?<!\bmrs)(?<!\bprof)\.(?=\s|$)"
"""The end of a sentence; not behind a title, which is the beginning of a name."""

_CUT = {
    kind: re.compile(rf"[;()!?—–\n]|{_DOT}|,|\s-+\s|\s(?:{words})(?![\w'-])", re.IGNORECASE)
    for kind, words in _STOPS.items()
}
_CUT_LIST = {
    kind: re.compile(rf"[;()!?—–\n]|{_DOT}|\s-+\s|\s(?:{words})(?![\w'-])", re.IGNORECASE)
    for kind, words in _STOPS.items()
}
_SAME_AS = {"tool": "list", "project": "book", "employer": "org", "moving": "phrase"}
_AS_IT_IS = frozenset({"raw", "pet", "count", "injury", "group"})
_TOOLS = words(
    """
    vim neovim emacs docker linux git postgres postgresql mysql redis react vue python java
    rust go typescript javascript kotlin swift vscode tmux zsh bash nginx kubernetes terraform django
    flask fastapi pytorch tensorflow excel notion obsidian figma ruby php
    """
)
_NO_EMPLOYER = re.compile(
    r"(?:myself|home|night|nights|a while|a living|me|it|that|this|hours|least|times|weekends|years|"
    r"days|months|weeks|the moment|all|free|"
    r"the weekend|the same|a few|many|over|about|\d|long|so|almost|nearly|my|our|his|her|their|one|"
    r"some|someone|something|him|them|you|us|what|peanuts)\b",
    re.IGNORECASE,
)
_HEAD = re.compile(
    (
        r"\b(?:movies?|films?|music|food|cuisine|weather|books?|games?|novels?|songs?|sports?|activities|"
        r"shows?|restaurants?|dishes|culture|history|art|literature|styles?|colou?rs?|pieces)\s*$"
    ),
    re.IGNORECASE,
)
_DAY_END = re.compile(r"[;()!?]|,(?! ?(?:19|20)\d\d)|\s(?:but|because|so|and|in|at)\s", re.IGNORECASE)
_DOING = re.compile(
    r"\s*(?:to [a-z]{2,}|(?!thing|everything|something|anything|nothing|spring|king|ring|string|"
    r"evening|morning|wedding)[a-z]{2,}ing)\b"
)
_HANGS_ON = re.compile(
    r"\s(?:to|from|with|for|by|during|every|about|over|at|on|in|of course|whose)(?![\w'-])", re.IGNORECASE
)
_HOLLOW = re.compile(
    (
        r"(?:to )?(?:making sure|coming|being|having|getting|get|come|going|sharing|talking|chatting|"
        r"working with|thinking|knowing|looking|doing|trying|taking|bringing|giving|spending)\b(?! out\b)"
    ),
    re.IGNORECASE,
)
_OWN_NAME = re.compile(r"[A-Z][a-z'’-]+(?: [A-Z][a-z'’-]+)?")
_NO_OWN_NAME = re.compile(
    r"(?:Catholic|Christian|Jewish|Muslim|Buddhist|Hindu|Asian|European|African|Latino|Latina|Hispanic|Sikh|Mormon|Gemini|Leo|Virgo|Aries|"
    r"Taurus|Libra|Scorpio|Capricorn|Aquarius|Pisces|Team|Batman|Santa|God|Sorry|Fine|Ok|Okay|Good|Great|Happy|So|Not|Very|Really|\w+(?:ese|ish|ian))\b"
)
_POINTS = re.compile(r"\blike (?:this|that|these|those|it)\b", re.IGNORECASE)
_VAGUE = re.compile(
    r"(?:(?:an?|the|my|our|one|two|three|four|five|some|many|several) )?(?:new |big |small |local |great |nice |fun |good |different )*"
    r"(?:groups?|teams?|community|convention|class|course|projects?|event|theme|place|thing|job|competition|reading)",
    re.IGNORECASE,
)
_LOOSE_END = words(
    """
    how what why like in to with about of for the a an and on at next by from into as or my our your
    such
    """
)
_NEXT_VERB = re.compile(
    r"(?:,\s*(?:(?:and|or|plus) )?|(?<!\s)\s+(?:and|&|plus|or)\s+)(?:(?:also|now|really|still|just|currently) )*(?:"
    r"(?:have|am|want|need|own|speak|know|think|has|is|was|are|were|wants|needs|owns|uses|speaks|eats|knows|thinks|"
    r"studies|enjoys|hates|loves|likes|prefers|dislikes)(?=\s|$)|"
    r"(?:plays|drinks|works|lives|drives|goes|gets|makes|keeps|takes) (?!(?:of|by|with|from|about|that|in|on)\b)|"
    r"(?:play|drink|eat|drive|study|go|get|make|live|work|keep|take|use) (?:an?|the|my|our|in|at|to|every)\b)",
    re.IGNORECASE,
)
_BETWEEN = re.compile(r"\s*,\s*(?:and |or |plus )?\s*|\s+(?:and|&|plus|as well as|or)\s+", re.IGNORECASE)
_DROP_FIRST = re.compile(
    (
        r"(?:an?|the|my|our|some|both|lots of|a lot of|a bit of|a little|to be|being|all kinds of|all|"
        r"playing with|mostly|mainly|especially)\s+"
    ),
    re.IGNORECASE,
)
_BAD_FIRST = words(
    """
    it this that these those he she they them him her us me you your yours his its their theirs how when
    what why who where which if something anything everything nothing someone anyone everyone nobody one
    ones some any all much more most lots both either neither being having not no never so very too just
    going doing getting making such there here and or but with of off for from by at in on as to seeing
    hearing everybody people things stuff way another other others same i we working talking chatting
    hanging it's that's don't only rather idea ideas exactly really each every been also always is are
    was were would could should can will be able already spending knowing having sharing watching it's
    what's
    """
) - {"watching", "making"}
_BAD_ANY = words(
    """
    i you it me him them this that those these your we i'm it's you're something anything someone myself
    yourself yours they he she her his us
    """
)
_BAD_WHOLE = words(
    """
    classical modern
    time day week year lot bit few couple way thing things stuff guy person people life fan break moment
    chance while blast feeling idea plan question problem issue part kind sort type rest place home
    house work job school there here today tomorrow idea ideas good great fine ok okay better best nice
    well sure ready busy tired happy sad excited glad sorry back done lucky grateful thankful fun love
    hope result results look looks sound challenge vibe vibes energy support ton skill skills outside
    outdoors inside two projects project technique techniques company concept details detail passion
    story advice
    """
)
_PLACEY = re.compile(
    (
        r"(?:an?|the|my|our|your|his|her|their|this|that|peace|harmony|fear|love|hope|constant|trouble|"
        r"charge|touch|general|need|pain|person|bed|hell|debt|poverty|one|two|such|it|me|you)\b"
    ),
    re.IGNORECASE,
)


def clean(raw: str, kind: str) -> str:
    """The value at the beginning of what stands behind a verb, as it is spelled; "" if there is none worth keeping."""
    if kind == "day":
        cut = _DAY_END.search(raw)
        return _checked(raw if cut is None else raw[: cut.start()], kind)
    if kind == "own_name":
        said = raw.split(",")[0].strip(" .!")
        return said if _OWN_NAME.fullmatch(said) and not _NO_OWN_NAME.match(said) else ""
    if kind in _AS_IT_IS:
        return _checked(raw, kind)
    cut = _CUT[_SAME_AS.get(kind, kind)].search(" " + raw)
    # A blank was put before it, so that a value that begins with a stop word is none.
    value = raw if cut is None else raw[: max(0, cut.start() - 1)]
    return _checked(value, kind)


def parts(raw: str, kind: str) -> list[str]:
    """The values of a list: "coffee, tea and cake"; it ends at the first part that is none, such as " and owns a boat"."""
    if _POINTS.search(raw):
        return []  # "scents like this"
    cut = _CUT_LIST[_SAME_AS.get(kind, kind)].search(" " + raw)
    raw = raw if cut is None else raw[: max(0, cut.start() - 1)]
    if after := _NEXT_VERB.search(raw):
        raw = raw[: after.start()]
    if kind == "taste":
        return _tastes(raw)
    found: list[str] = []
    for piece in _BETWEEN.split(raw)[:12]:
        value = _checked(piece, kind)
        if not value or len(value.split()) > (MOST_WORDS if not found else 4):
            break
        found.append(value)
    return found


def _tastes(raw: str) -> list[str]:
    """What is liked: things, each without what hangs on it ("films about war" stays "films"), and activities, whole."""
    found: list[str] = []
    pieces = _BETWEEN.split(raw)[:12]
    if pieces[0].startswith("to "):
        pieces = pieces[:1]  # "to listen to music or go for a run"
    if len(pieces) == 2 and len(pieces[0].split()) == 1 and _HEAD.search(pieces[1]) and not pieces[0].endswith("ing"):
        pieces = [raw]  # "action and comedy movies"
    if len(pieces) > 1 and (_DOING.match(pieces[0]) and " " in pieces[0].strip()) and not _DOING.match(pieces[1]):
        # "shooting near beaches, mountains and lakes": one activity. "baking bread and chess" is kept whole, too.
        pieces = [raw]
    for i, piece in enumerate(pieces):
        doing = _DOING.match(piece.strip()) is not None
        if not doing:
            cut = _HANGS_ON.search(" " + piece)
            if cut is not None:
                piece = piece[: max(0, cut.start() - 1)]
                del pieces[i + 1 :]  # "books about growth and mindset": the rest hangs on it, too
        words = piece.split()
        if len(words) > 1 and words[-2].casefold() in ("a", "an") and i + 1 < len(pieces):
            break  # "creating a safe, inviting place"
        if doing and len(piece.split()) > MOST_WORDS:
            fits = [cut.start() for cut in _HANGS_ON.finditer(piece) if len(piece[: cut.start()].split()) <= MOST_WORDS]
            piece = piece[: fits[-1]] if fits else piece
        value = _checked(piece, "activity" if doing else "thing")
        if not value or (i and len(value.split()) > 5):
            break
        found.append(value)
    return found


def _unquoted(value: str) -> str:
    """The value without signs and quotation marks around it; those of a title inside it stay."""
    value = value.strip(" ,.;:*~-\t")
    if value[:1] in _QUOTES or sum(value.count(mark) for mark in _QUOTES) % 2:
        value = value.strip(" ,.;:*~-\t" + _QUOTES)
    return value


def _checked(value: str, kind: str) -> str:
    value = _unquoted(value)
    if kind == "place":
        if _PLACEY.match(value) and not re.match(r"the [A-Z]", value):
            return ""
        if not (value[:1].isupper() or value[:1].isdigit() or not value[:1].isascii()):
            return ""
        value = re.split(r",\s(?![A-Z])", value)[0]
    if kind == "employer" and re.fullmatch(r"an? (?:new )?(?:company|place|firm|job)", value):
        return ""
    if kind == "employer" and _NO_EMPLOYER.match(value):
        return ""
    if kind == "tool" and not (re.search(r"[A-Z0-9]", value) or value.split(" ")[0] in _TOOLS):
        return ""
    if kind == "activity" and (_HOLLOW.match(value) or len(value.split()) > MOST_WORDS):
        return ""
    bare = value
    if kind == "favorite":
        bare = re.sub(r"^(?:an? |probably |definitely )", "", bare)
    elif kind not in ("role", "phrase", "raw", "employer", "project", "activity", "group"):
        while dropped := _DROP_FIRST.match(bare):
            if (
                kind == "thing"
                and dropped[0].casefold().startswith(("the ", "all "))
                and not bare[dropped.end() :][:1].isupper()
            ):
                return ""  # "I love the colors": of something that was mentioned before
            if kind == "book" and dropped[0].casefold() == "the " and bare[dropped.end() :][:1].isupper():
                break
            bare = bare[dropped.end() :]
    if kind == "book" and not (bare[:1].isupper() or bare[:1].isdigit()):
        return ""
    value = _unquoted(bare)
    words = value.casefold().replace("’", "'").split()
    if not words or len(words) > MOST_WORDS or not any(c.isalnum() for c in value) or len(value) > 80:
        return ""
    if _VAGUE.fullmatch(value) and kind not in ("favorite", "pet", "count"):
        return ""
    if words[0] in _BAD_FIRST and kind not in ("phrase", "activity", *_AS_IT_IS):
        return ""
    if _BAD_ANY.intersection(words) or (len(words) == 1 and words[0] in _BAD_WHOLE):
        return ""
    if words[-1] in _LOOSE_END and kind not in _AS_IT_IS:
        return ""
    if kind == "phrase" and (
        len(words) < 2
        or re.match(
            (
                r"(?:get|take|go|become|learn|start|join) (?:in|it|there|back|out|stronger|better|more|home|over|"
                r"on|up|away|through|started)\b"
            ),
            value,
        )
    ):
        return ""
    if words[-1] in _BAD_WHOLE and words[0] in (
        "good",
        "great",
        "nice",
        "long",
        "hard",
        "big",
        "amazing",
        "tough",
        "rough",
        "new",
    ):
        return ""
    if len(value) == 1 and value.isascii() and value not in "CRDJ":
        return ""
    if re.search(r"\b(?:not|never|n't|don't|no)\b", value.casefold()):
        return ""
    return value
