"""Ways to say something in English that are tried before plain verbs: with their own subject, negated, or over."""

from __future__ import annotations

import re

from memoryos_server.domain.memory.extraction.english_words import HAVE, JOB, LANGUAGES, THING, TO_PLAN, Saying, V

MINE = tuple(
    Saying(predicate, re.compile(pattern), kind, sure, ended, value)
    for predicate, pattern, kind, sure, ended, value in (
        (
            "name",
            r"my (?:full |first |real |given )?name(?:'s| is) (?:actually |now )?(?P<v>(?!not\b).+)",
            "name",
            0.97,
            False,
            "",
        ),
        (
            "name",
            r"(?:please |just |you can |everyone |people |friends |my friends |they |everybody )+calls? me (?P<v>.+)",
            "name",
            0.9,
            False,
            "",
        ),
        ("name", r"call me (?P<v>(?!when|if|back|later|tomorrow|at|on|a|an|crazy)\w.+)", "name", 0.85, False, ""),
        ("age", r"my age is (?:now )?(?P<v>\d{1,3})\b", "short", 0.95, False, ""),
        (
            "birthday",
            (
                r"my birthday(?:'s| is) (?:on )?(?:the )?(?P<v>(?!coming|soon|next|in|tomorrow|today|this|over|"
                r"almost|not)[\w].{2,24})"
            ),
            "day",
            0.95,
            False,
            "",
        ),
        (
            "email",
            r"my (?:work |private |new )?e-?mail(?: address)?(?:'s| is) (?:now )?(?P<v>[\w.+-]+@[\w-]+\.[\w.]*\w)",
            "raw",
            0.97,
            False,
            "",
        ),
        (
            "phone",
            (
                r"my (?:new |cell |mobile )?(?:phone|number|phone number|mobile number)(?: number)?(?:'s| is) "
                r"(?:now )?(?P<v>\+?\d[\d ()-]{5,18}\d)"
            ),
            "raw",
            0.95,
            False,
            "",
        ),
        ("from", r"my (?:hometown|home town|home country)(?:'s| is) (?P<v>.+)", "place", 0.93, False, ""),
        (
            "has_role",
            r"my (?:job title|job|profession|occupation)(?:'s| is) (?:as )?(?P<v>(?:an? )?(?:[\w-]+ ){0,3}"
            + JOB
            + r")\b",
            "role",
            0.92,
            False,
            "",
        ),
        (
            "speaks",
            rf"my (?:native language|mother tongue|first language|native tongue)(?:'s| is) (?P<v>{LANGUAGES})\b",
            "language",
            0.95,
            False,
            "",
        ),
        (
            "favorite_",
            (
                r"my (?:all-time |absolute |current |personal |new )?favou?rite (?P<k>(?!part|thing|way|moment|"
                r"memor|one|time|bit|aspect)[a-z]+(?: [a-z]+){0,2}?)(?:'s| is| are)(?: now| still| definitely|"
                r" probably)? (?P<v>(?!when|to|not|how|what|that|this|from|by|where|the one|the part).+)"
            ),
            "favorite",
            0.92,
            False,
            "",
        ),
        (
            "favorite_",
            (
                r"my (?:all-time |absolute |current |personal |new )?favou?rite (?P<k>color|colour|food|book|"
                r"movie|song|band|season|sport|author|city|game|drink|animal|editor|language) (?:has become|"
                r"changed to|became) (?P<v>.+)"
            ),
            "favorite",
            0.92,
            False,
            "",
        ),
        (
            "hobby",
            r"my (?:main |biggest |favou?rite )?hobb(?:y|ies)(?:'s| is| are| include)(?: now)? (?P<v>.+)",
            "thing",
            0.93,
            False,
            "",
        ),
        (
            "diet",
            r"my diet(?:'s| is) (?:now )?(?P<v>vegan|vegetarian|pescatarian|keto|halal|kosher|gluten[- ]free)\b",
            "raw",
            0.93,
            False,
            "",
        ),
        (
            "uses",
            (
                r"(?:my|our) (?:tech )?(?:stack|back-?end|front-?end|database|editor|ide|framework|os|"
                r"operating system|main language|ci|shell|cloud provider|hosting|phone|laptop) (?:is|are|runs"
                r"(?: on)?|uses|consists of)(?: now| still| currently)? (?P<v>(?!not|very|really|too|so|broken|"
                r"slow|down|dead|great|old|fast|bad|good|getting|being|all|fine).+)"
            ),
            "list",
            0.88,
            False,
            "",
        ),
    )
)
"""Sayings that bring their own subject: whoever speaks."""

SAID = (
    Saying(
        "dislikes",
        re.compile(
            r"(?:do not|don't|dont|does not|doesn't|did not|didn't|never) (?:really |particularly |actually |"
            r"even |much )*(?:like|love|enjoy|care for) (?P<v>(?!to be|being).+)"
        ),
        "taste",
    ),
    Saying(
        "dislikes", re.compile(r"(?:can't|cannot|can not) (?:stand|bear|tolerate) (?P<v>.+)"), "taste", confidence=0.92
    ),
    Saying(
        "dislikes",
        re.compile(
            r"(?:am not|'m not|is not|isn't) (?:really |much of |exactly |such )*(?:a (?:big |huge )?fan of|"
            r"fond of|into|keen on) (?P<v>.+)"
        ),
        "taste",
    ),
    Saying(
        "avoids",
        re.compile(
            r"(?:do not|don't|does not|doesn't|can't|cannot|never) (?:really |ever )*(?:eat|drink|smoke|wear) "
            r"(?P<v>(?!much|enough|well|a lot|too|out|there|breakfast|lunch|dinner).+)"
        ),
    ),
    Saying(
        "likes",
        re.compile(r"(?:can't|cannot) (?:get enough of|live without|do without) (?P<v>.+)"),
        "taste",
        confidence=0.85,
    ),
    Saying(
        "wants",
        re.compile(
            rf"(?:would|'d) (?:really |absolutely )*(?:love|like) to (?:one day |someday )?(?P<v>{TO_PLAN}\b.+)"
        ),
        "phrase",
        0.7,
        modal=True,
    ),
    Saying(
        "plans",
        re.compile(r"(?:will|'ll) be (?P<v>(?:moving|visiting|travell?ing|going|flying) to .+)"),
        "phrase",
        0.8,
        modal=True,
    ),
)
"""Sayings that begin with a negation or a modal verb: the only ones that are read as facts."""

ENDINGS = (
    Saying(
        "switch",
        re.compile(
            r"(?:'ve |have |just |recently )*(?:switched|migrated|changed) (?:over )?from "
            r"(?P<old>[\w .#+-]{1,30}?) to (?P<v>.+)"
        ),
    ),
    Saying(
        "works_at",
        re.compile(
            rf"(?:{HAVE})?(?:just |recently |finally )*(?:quit|left|resigned from|got fired from|lost|"
            r"got laid off from|was laid off from) (?:my|the) (?:old |current |previous )?(?:job|position)(?! "
            r"(?:at|with|in))"
        ),
        confidence=0.9,
        ended=True,
    ),
    Saying(
        "works_at",
        re.compile(
            rf"(?:{HAVE})?(?:just |recently |finally )*(?:quit|left|resigned from|got fired from|lost|"
            r"got laid off from|was laid off from|retired from) (?:(?:my|the) (?:job|position) (?:at|with) )?"
            r"(?P<v>(?!my|the|a |it|out|home|school|for|work|there|early).+)"
        ),
        "org",
        0.85,
        ended=True,
    ),
    Saying(
        "works_at",
        re.compile(rf"(?:{HAVE})?(?:just |recently )*(?:got|been|was|were) (?:fired|laid off)\b"),
        confidence=0.9,
        ended=True,
    ),
    Saying(
        "works_at",
        re.compile(rf"(?:{HAVE})?(?:just |recently )*retired\b(?! from)"),
        confidence=0.85,
        ended=True,
        also=("has_role", "retired"),
    ),
    Saying(
        "lives_in",
        re.compile(rf"(?:{HAVE})?(?:just |recently )*moved (?:out of|away from) {V}"),
        "place",
        0.88,
        ended=True,
    ),
    Saying(
        "relationship_status",
        re.compile(rf"(?:{HAVE})?(?:just |recently |finally )*(?:got|gotten) (?P<v>married|engaged|divorced)\b"),
        "raw",
        0.93,
    ),
    Saying(
        "partner",
        re.compile(
            rf"(?:{HAVE})?(?:just |recently )*(?:broke|broken|split) up with (?:my (?:girlfriend|boyfriend|"
            r"partner|fiancée|fiancé|fiancee|fiance))\b"
        ),
        confidence=0.9,
        ended=True,
        also=("relationship_status", "single"),
    ),
    Saying(
        "uses",
        re.compile(rf"(?:{HAVE})?(?:just |recently )*(?:stopped|quit|gave up) using {V}"),
        "thing",
        0.9,
        ended=True,
    ),
    Saying("likes", re.compile(rf"(?:{HAVE})?(?:stopped|quit) (?:liking|enjoying) {V}"), "taste", 0.85, ended=True),
    Saying(
        "learning",
        re.compile(rf"(?:{HAVE})?(?:stopped|quit|gave up) (?:learning|studying) {V}"),
        "topic",
        0.85,
        ended=True,
    ),
    Saying("hobby", re.compile(rf"(?:{HAVE})?(?:stopped|quit|gave up) playing {V}"), "thing", 0.85, ended=True),
    Saying(
        "owns",
        re.compile(rf"(?:{HAVE})?(?:just |recently )*sold (?:my|our) (?P<v>(?:[\w-]+ ){{0,2}}{THING}\b)"),
        "thing",
        0.9,
        ended=True,
    ),
    Saying(
        "owns",
        re.compile(rf"(?:{HAVE})?(?:just |recently )*sold (?:my|our|the) (?:old )?(?P<v>[\w-]+(?: [\w-]+){{0,2}})"),
        "book",
        0.85,
        ended=True,
    ),
    Saying(
        "studies_at",
        re.compile(rf"(?:{HAVE})?(?:just |recently )*(?:graduated|dropped out) (?:from|of) {V}"),
        "org",
        0.85,
        ended=True,
    ),
    Saying("lives_in", re.compile(rf"was living in {V}"), "place", 0.8, ended=True),
    Saying("works_at", re.compile(rf"was working (?:at|for) {V}"), "org", 0.75, ended=True),
)
