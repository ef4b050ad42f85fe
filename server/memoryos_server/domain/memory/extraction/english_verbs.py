"""What verb phrases say, in the order they are tried: the first that fits wins.

A pattern begins right behind the subject and its adverbs. Its group `v` is where the value begins; how far it goes is
decided by its kind (see `english_values`).
"""

from __future__ import annotations

import re

from memoryos_server.domain.memory.extraction.english_words import (
    ADV,
    ANIMAL,
    BE,
    COUNT,
    HAVE,
    JOB,
    LANGUAGES,
    PEOPLES,
    PLAYED,
    SICK,
    THING,
    TO_PLAN,
    TRAITS,
    Saying,
    V,
)

VERBS = (
    Saying(
        "age",
        re.compile(rf"(?:{BE}|just turned |turned |recently turned )(?P<v>\d{{1,3}})(?: years? old| yo\b|(?=\s*$|,))"),
        "raw",
        0.93,
    ),
    Saying(
        "lives_in",
        re.compile(rf"(?:lives?|{BE}living|{BE}based|resides?|{HAVE}lived|{HAVE}been living|{BE}located) {ADV}in {V}"),
        "place",
        0.95,
    ),
    Saying(
        "lives_in",
        re.compile(
            rf"(?:{HAVE})?(?:moved|relocated|settled) (?:back )?(?:(?:from [\w ]{{1,24}}? )?(?:to|into|in)|in) {V}"
        ),
        "place",
        0.93,
    ),
    Saying("plans", re.compile(rf"{BE}(?P<v>(?:moving|relocating|travell?ing|flying) to .+)"), "phrase", 0.85),
    Saying(
        "plans",
        re.compile(
            rf"(?:plans?|intends?|{BE}planning|{BE}going|decided|{HAVE}decided|{BE}about) to (?P<v>{TO_PLAN}\b.+)"
        ),
        "phrase",
        0.85,
    ),
    Saying(
        "plans",
        re.compile(
            rf"{BE}planning (?P<v>(?:an?|my|our) (?:\w+ ){{0,2}}(?:trip|wedding|vacation|holiday|move|party|"
            r"honeymoon|tour)\b.*)"
        ),
        "phrase",
        0.85,
    ),
    Saying(
        "wants",
        re.compile(
            rf"(?:wants?|{HAVE}always wanted|dreams? of|{BE}hoping|hopes?|wants?) (?:to |(?=becoming|visiting|"
            rf"opening))(?P<v>(?:be (?:an?|the) |(?:becom|visit|open)ing |{TO_PLAN}\b).+)"
        ),
        "phrase",
        0.75,
    ),
    Saying(
        "has_role",
        re.compile(rf"(?:works?|worked|{BE}working|{HAVE}been working|{HAVE}worked) as (?P<v>.+)"),
        "role",
        0.95,
    ),
    Saying(
        "has_role",
        re.compile(
            rf"(?:{BE}|became |{HAVE}become |{BE}training to be )(?P<v>(?:an? |the )"
            rf"(?:[\w/+#.-]+ ){{0,3}}?{JOB})(?![\w-]| of (?!\w+ at)(?:life|mine))"
        ),
        "role",
        0.9,
    ),
    Saying(
        "works_at",
        re.compile(
            rf"(?:works?|{BE}working|{BE}employed|{HAVE}been working|{HAVE}worked|worked|interns?|"
            rf"{BE}interning) (?:full[- ]time |part[- ]time |remotely )?(?:at|for|by) {V}"
        ),
        "employer",
        0.92,
    ),
    Saying(
        "works_at",
        re.compile(
            rf"(?:{HAVE})?(?:just )?(?:joined|started (?:working )?at|started a (?:new )?(?:job|position) at|"
            r"got a (?:new )?job at|accepted an offer from) (?P<v>(?!a |an |the (?![A-Z])).+)"
        ),
        "employer",
        0.88,
    ),
    Saying(
        "works_on",
        re.compile(
            rf"(?:{BE}|{HAVE}been )(?:working on|building|developing|writing) (?P<v>(?:an?|my|our|the) (?!lot|"
            r"few|bit|same|best)\w.+)"
        ),
        "project",
        0.8,
    ),
    Saying(
        "studies_at",
        re.compile(
            rf"(?:{BE}studying|study|studies|{BE}a student|{BE}enrolled|go to school|attends?) (?:at )?(?P<v>"
            r"(?:the )?(?:university|[\w.]+ (?:university|college|institute|school)|mit|ucla|stanford|harvard|"
            r"oxford|cambridge|yale|princeton|eth)\b.*)"
        ),
        "org",
        0.9,
    ),
    Saying(
        "studies",
        re.compile(
            rf"(?:{BE}studying|study|studies|{BE}majoring in|majored in|{HAVE}a degree in|{BE}doing a (?:phd|"
            r"master's|degree) in) (?P<v>(?!hard|a lot|abroad|at|for|with|every|in|and|late|group|together|"
            r"how|the|to|more|very|all).+)"
        ),
        "topic",
        0.85,
    ),
    Saying("from", re.compile(rf"(?:{BE}|comes? |{BE}originally |originally come )from {V}"), "place", 0.92),
    Saying("from", re.compile(rf"(?:was born|was raised|grew up|was born and raised) in {V}"), "place", 0.93),
    Saying("birthday", re.compile(r"was born on (?:the )?(?P<v>.{3,24})"), "day", 0.93),
    Saying("nationality", re.compile(rf"{BE}(?P<v>{PEOPLES})(?: citizen)?(?=\s*$|,| and| but| by)"), "raw", 0.88),
    Saying(
        "diet",
        re.compile(
            rf"(?:{BE}|became |went |{HAVE}become |{HAVE}gone |turned |{HAVE}been )(?:strictly |fully )?"
            r"(?:an? )?(?:strict |lifelong )?(?P<v>vegetarian|vegan|pescatarian|pescetarian|flexitarian|"
            r"gluten[- ]free|on a keto diet|keto|halal|kosher)(?! (?:restaurant|food|recipe|cook|place))\b"
        ),
        "raw",
        0.94,
    ),
    Saying(
        "allergic_to",
        re.compile(
            rf"(?:{BE}(?:severely |mildly |highly |deathly )?allergic to|{HAVE}an? (?:severe |mild |bad )?"
            rf"(?:allergy to|intolerance to)) {V}"
        ),
        "thing",
        0.96,
    ),
    Saying(
        "allergic_to",
        re.compile(rf"{HAVE}an? (?:severe |mild |bad )?(?P<v>[\w-]+(?: \w+)?) (?:allergy|intolerance)\b"),
        "raw",
        0.94,
    ),
    Saying("allergic_to", re.compile(rf"{BE}(?P<v>lactose|gluten)[ -]intolerant\b"), "raw", 0.94),
    Saying(
        "condition",
        re.compile(
            rf"(?:{HAVE}|suffers? from |{BE}suffering from |was diagnosed with |{BE}diagnosed with |"
            rf"{HAVE}been diagnosed with |got diagnosed with )(?P<v>{SICK})\b"
        ),
        "raw",
        0.92,
    ),
    Saying(
        "condition",
        re.compile(
            rf"(?:{HAVE})?(?:broke|sprained|tore|injured|dislocated|fractured) (?:my|his|her) (?P<v>(?:left |"
            r"right )?(?:arm|leg|ankle|wrist|knee|shoulder|foot|hand|finger|toe|acl|back|elbow|hip|rib|"
            r"collarbone))\b"
        ),
        "injury",
        0.88,
    ),
    Saying("partner", re.compile(rf"{BE}(?:married|engaged) to {V}"), "name", 0.9),
    Saying(
        "relationship_status",
        re.compile(
            rf"{BE}(?:happily |still |newly |recently )?(?P<v>married|single|divorced|engaged|widowed|"
            r"separated|in a relationship)(?! (?:parent|mom|mum|dad|mother|father|in (?!a)))\b"
        ),
        "raw",
        0.92,
    ),
    Saying(
        "has_child",
        re.compile(
            rf"{HAVE}(?P<v>{COUNT} (?:(?:\w+ )?(?:kids?|children|sons?|daughters?|boys|girls|twins|baby|"
            rf"toddlers?)\b(?: and {COUNT} (?:sons?|daughters?|boys?|girls?)\b)?(?:,? (?:named|called) \w+"
            r"(?: and \w+)?)?))"
        ),
        "count",
        0.92,
    ),
    Saying(
        "has_relative",
        re.compile(
            rf"{HAVE}(?P<v>{COUNT} (?:(?:older|younger|twin|little|big|half) )?(?:brothers?|sisters?|siblings|"
            rf"cousins|nephews?|nieces?|grandchildren)\b(?: (?:and {COUNT} (?:brothers?|sisters?)|(?:named|"
            r"called) \w+))?)"
        ),
        "count",
        0.92,
    ),
    Saying(
        "has_pet",
        re.compile(
            rf"(?:{HAVE}|owns? |{HAVE}got |got |(?:{HAVE})?adopted |(?:{HAVE})?(?:just )?(?:got|bought|"
            rf"rescued) )(?:just )?(?P<v>{COUNT} (?:[\w-]+ ){{0,3}}?{ANIMAL}\b(?:,? (?:named|called) \w+"
            r"(?: and \w+)?)?)"
        ),
        "pet",
        0.94,
    ),
    Saying(
        "has_pet",
        re.compile(
            rf"(?:{HAVE})?(?:just |recently |finally )*(?:adopted|got|rescued|bought) (?P<v>{COUNT} "
            rf"(?:[\w-]+ ){{0,3}}?{ANIMAL}\b(?:,? (?:named|called) \w+(?: and \w+)?)?)"
        ),
        "pet",
        0.94,
    ),
    Saying(
        "speaks",
        re.compile(
            rf"(?:can |{HAVE}learned to )?(?:fluently )?speaks? (?:fluent |some |a little |a bit of |both |"
            rf"basic |good )?(?P<v>{LANGUAGES}\b.*)"
        ),
        "language",
        0.94,
    ),
    Saying("speaks", re.compile(rf"{BE}(?:fluent|bilingual) in (?P<v>{LANGUAGES}\b.*)"), "language", 0.94),
    Saying("speaks", re.compile(rf"{BE}a native (?P<v>{LANGUAGES})(?: speaker)?"), "language", 0.94),
    Saying(
        "learning",
        re.compile(
            rf"(?:{BE}(?:learning|teaching myself)|(?:{HAVE})?(?:just )?(?:started|begun|began) (?:learning|"
            rf"to learn)|{HAVE}been learning) (?:how to |to )?(?P<v>(?!a lot|so much|more|that|from|about|"
            r"new things|the ropes|things).+)"
        ),
        "topic",
        0.88,
    ),
    Saying(
        "hobby",
        re.compile(
            rf"(?:can )?(?:plays?|{HAVE}been playing|started playing|{BE}playing) (?P<v>{PLAYED})\b(?! (?:with|"
            r"for) (?:my|the) (?:band|team))"
        ),
        "raw",
        0.88,
    ),
    Saying(
        "hobby",
        re.compile(
            rf"(?:took up|{HAVE}taken up|(?:{HAVE})?(?:just |recently )?started(?: doing)?|do|does|(?:go|"
            r"goes)) (?P<v>(?:hiking|running|climbing|bouldering|swimming|cycling|painting|pottery|knitting|"
            r"gardening|surfing|skiing|snowboarding|fishing|camping|yoga|photography|baking|kayaking|dancing|"
            r"jogging|woodworking|birdwatching|boxing|crocheting|skateboarding|horseback riding|rock climbing|"
            r"scuba diving))\b"
        ),
        "raw",
        0.85,
    ),
    Saying(
        "skill",
        re.compile(
            rf"{BE}(?:very |pretty |quite )?(?:good|great|skilled) at (?P<v>(?!it|this|that|what|my|being|"
            r"making people).+)"
        ),
        "thing",
        0.75,
    ),
    Saying(
        "trait",
        re.compile(
            rf"{BE}(?:a bit |pretty |rather |naturally |quite |an? )?(?P<v>{TRAITS})(?= person|\s*$|,| and| but| by)"
        ),
        "raw",
        0.85,
    ),
    Saying(
        "dislikes",
        re.compile(
            r"(?:hates?|dislikes?|despises?|detests?|loathes?) (?P<v>(?!that|when|how|to say|to be|the way|being).+)"
        ),
        "taste",
        0.92,
    ),
    Saying(
        "likes",
        re.compile(
            rf"(?:{BE}(?:really )?(?:into|fond of|passionate about|a (?:big |huge |massive |lifelong )?fan of|"
            rf"obsessed with|addicted to|keen on)) {V}"
        ),
        "taste",
        0.9,
    ),
    Saying("likes", re.compile(r"(?:prefers?) (?P<v>(?!to (?:not|be)|not|it).+)"), "taste", 0.92),
    Saying(
        "likes",
        re.compile(
            r"(?:likes?|loves?|enjoys?|adores?) (?P<v>(?!that|when|how|the way|hearing|seeing|being|having|it|"
            r"you|your|to (?:think|say|know|see|hear|have|talk|chat|be|come|get|keep|imagine|believe)).+)"
        ),
        "taste",
        0.88,
    ),
    Saying(
        "uses",
        re.compile(
            rf"(?:{HAVE}(?:been using|switched to|migrated to)|{BE}(?:now )?using|switched to|migrated to|"
            rf"uses?|codes? in|programs? in|{BE}coding in|develops? (?:with|in)) (?P<v>(?!to |the (?![A-Z])|my|"
            r"it|this|that|a |an |your|them|some|what|these|those|all|up|every|both|different|visual).+)"
        ),
        "tool",
        0.85,
    ),
    Saying(
        "owns",
        re.compile(
            rf"(?:{HAVE}|owns? |drives? |{HAVE}got |(?:{HAVE})?(?:just |recently |finally )*(?:bought|"
            r"purchased|got|opened|founded|started) )(?:just )?(?P<v>(?:an?|my own|my first|our first) "
            rf"(?:[\w-]+ ){{0,3}}?{THING})\b(?! (?:for (?:my|him|her|them|his|a friend)|as a gift|accident|"
            r"trip|problem|ride|crash|call|issue|idea))"
        ),
        "thing",
        0.88,
    ),
    Saying(
        "owns",
        re.compile(
            rf"(?:drives? |{BE}driving |{HAVE}been driving )(?:an?|my own|our own) (?:(?:old|new|used|small|little|big|"
            r"second-hand|electric|hybrid|white|black|gr[ae]y|silver|red|blue|green|yellow) ){0,2}"
            r"(?P<v>[\w-]+(?: [\w-]+){0,2})"
        ),
        "book",  # as a title, a make begins with a capital letter
        0.85,
    ),
    Saying(
        "member_of",
        re.compile(
            rf"(?:{HAVE})?(?:just |recently |finally )*joined (?P<v>(?:an?|the|my) (?:[\w'-]+ ){{0,4}}?"
            r"(?:group|club|church|gym|team|band|choir|forum|community|league|organization|orchestra|society|"
            r"meetup|troupe|union))\b"
        ),
        "group",
        0.88,
    ),
    Saying(
        "attended",
        re.compile(
            rf"(?:{HAVE})?(?:just |recently |finally )*(?:attended|went to|took part in|participated in|"
            r"signed up for|took|started) (?P<v>(?:an?|the|my first) (?:[\w'&-]+ ){0,4}?(?:conference|"
            r"concert|festival|workshop|retreat|parade|seminar|convention|marathon|tournament|wedding|reading|"
            r"exhibition|meetup|course|class|competition|fundraiser|gala|bootcamp|hackathon))\b"
        ),
        "group",
        0.85,
    ),
    Saying(
        "visited",
        re.compile(
            rf"(?:{HAVE}(?:been to|visited|traveled to|travelled to)|visited|(?:just )?(?:got back|came back|"
            r"returned) from(?: (?:a|my) (?:\w+ )?(?:trip|vacation|holiday) (?:to|in))?|(?:went|traveled|"
            rf"travelled|flew) to) {V}"
        ),
        "place",
        0.88,
    ),
    Saying(
        "watched",
        re.compile(rf"(?:{HAVE})?(?:just |recently |finally )*(?:watched|seen|saw|finished watching) (?P<v>.+)"),
        "book",
        0.8,
    ),
    Saying(
        "read",
        re.compile(
            rf"(?:{HAVE}|{BE})?(?:just |recently |finally |currently )*(?:read|reading|finished reading|"
            r"been reading|re-read|finished) (?:the (?:book|novel) )?(?P<v>.+)"
        ),
        "book",
        0.8,
    ),
    Saying("name", re.compile(rf"(?:am|'m) {V}"), "own_name", 0.85),
)
"""Sayings of plain statements."""
