"""Words that English patterns are made of, and what a way to say something is."""

from __future__ import annotations

import re
from dataclasses import dataclass

LISTED = frozenset({"taste", "thing", "language", "list", "tool"})
"""The kinds whose values come in lists."""


@dataclass(frozen=True, slots=True)
class Saying:
    """One way to say something.

    Attributes:
        predicate: What it says.
        pattern: How, in lower case.
        kind: The kind of its value.
        confidence: How sure it is.
        ended: It says that something is over.
        value: The value, where the pattern has none.
        modal: It begins with "would" or "will".
        also: Another fact that it says: predicate and value.
    """

    predicate: str
    pattern: re.Pattern[str]
    kind: str = "thing"
    confidence: float = 0.9
    ended: bool = False
    value: str = ""
    modal: bool = False
    also: tuple[str, str] | None = None

    @property
    def captures(self) -> bool:
        """The value stands in the text."""
        return "v" in self.pattern.groupindex


ADV = (
    r"(?:(?:really|just|also|still|actually|currently|now|already|absolutely|recently|mostly|mainly|"
    r"very|both|quite|truly|totally|officially|originally|actively|super|so) )*"
)
BE = rf"(?:am|'m|m|is|'s) {ADV}"
HAVE = rf"(?:have|'ve|has|'s) {ADV}"
V = r"(?P<v>.+)"
JOB = (
    r"(?:engineer|developer|programmer|teacher|professor|nurse|doctor|physician|surgeon|dentist|"
    r"lawyer|attorney|paralegal|accountant|designer|architect|analyst|scientist|"
    r"researcher|manager|director|consultant|writer|author|journalist|editor|artist|painter|musician|"
    r"singer|actor|actress|photographer|chef|cook|baker|"
    r"barista|waiter|waitress|driver|pilot|farmer|electrician|plumber|carpenter|mechanic|technician|"
    r"student|freelancer|entrepreneur|founder|"
    r"co-founder|ceo|cto|cfo|coach|trainer|librarian|veterinarian|vet|pharmacist|therapist|"
    r"psychologist|psychiatrist|counselor|social worker|firefighter|"
    r"police officer|soldier|officer|salesperson|salesman|saleswoman|realtor|translator|interpreter|"
    r"biologist|chemist|physicist|mathematician|"
    r"economist|statistician|historian|postdoc|intern|apprentice|secretary|receptionist|cashier|tutor|"
    r"lecturer|principal|recruiter|marketer|"
    r"product owner|scrum master|sysadmin|administrator|tester|data engineer|builder|contractor|"
    r"hairdresser|tailor|gardener|florist|dancer|"
    r"athlete|banker|broker|trader|investor|paramedic|midwife|judge|politician|priest|sailor|"
    r"astronomer|geologist|streamer|youtuber|blogger)"
)
LANGUAGES = (
    r"(?:english|french|german|spanish|italian|portuguese|russian|chinese|mandarin|cantonese|japanese|"
    r"korean|arabic|hindi|urdu|bengali|turkish|dutch|"
    r"swedish|norwegian|danish|finnish|polish|czech|greek|hebrew|thai|vietnamese|indonesian|malay|"
    r"tagalog|swahili|ukrainian|hungarian|romanian|latin|"
    r"persian|farsi|catalan|welsh|irish|tamil|punjabi|esperanto|sign language|asl)"
)
PEOPLES = (
    r"(?:american|british|english|french|german|spanish|italian|portuguese|russian|chinese|taiwanese|"
    r"japanese|korean|indian|canadian|australian|mexican|brazilian|"
    r"dutch|swedish|norwegian|danish|finnish|polish|czech|greek|turkish|egyptian|nigerian|kenyan|thai|"
    r"vietnamese|indonesian|malaysian|filipino|irish|scottish|welsh|"
    r"swiss|austrian|belgian|ukrainian|argentinian|colombian|chilean|israeli|iranian|pakistani|"
    r"south african|singaporean|hungarian|romanian)"
)
TRAITS = (
    r"(?:introverted|extroverted|shy|outgoing|ambitious|patient|impatient|optimistic|pessimistic|"
    r"creative|organized|disorganized|punctual|"
    r"a perfectionist|perfectionist|an introvert|an extrovert|a night owl|an early bird|"
    r"a morning person|left-handed|right-handed|color-?blind|curious by nature|"
    r"a vegetable hater|stubborn|sensitive|a homebody|a workaholic|religious|spiritual|easygoing|a quick learner)"
)
SICK = (
    r"(?:diabetes|type [12] diabetes|asthma|migraines?|depression|anxiety|adhd|autism|dyslexia|"
    r"epilepsy|arthritis|insomnia|cancer|celiac disease|"
    r"high blood pressure|hypertension|eczema|psoriasis|hay fever|a heart condition|crohn's disease|"
    r"ibs|tinnitus|scoliosis|sleep apnea|vertigo|lupus|anemia|"
    r"a bad back|a bad knee|chronic \w+(?: \w+)?)"
)
ANIMAL = (
    r"(?:dog|cat|puppy|kitten|rabbit|bunny|hamster|parrot|bird|turtle|tortoise|horse|snake|guinea pig|"
    r"goldfish|fish|lizard|ferret|hedgehog|chicken|budgie|retriever|labrador|poodle|terrier|corgi|"
    r"husky|bulldog|beagle|pup)s?"
)
COUNT = r"(?:an?|one|two|three|four|five|six|seven|eight|\d)"
THING = (
    r"(?:car|bike|bicycle|motorcycle|motorbike|truck|van|boat|laptop|computer|pc|macbook|phone|iphone|"
    r"tablet|ipad|camera|piano|guitar|violin|drum kit|telescope|house|apartment|flat|condo|cabin|farm|"
    r"garden|bakery|shop|store|restaurant|cafe|company|business|studio|drone|3d printer|printer|"
    r"keyboard|console|playstation|xbox|switch|kindle|tesla|watch|bookstore|startup|scooter|camper|"
    r"tent|kayak|surfboard|synth|record player)"
)
PLAYED = (
    r"(?:chess|tennis|football|soccer|basketball|baseball|badminton|volleyball|golf|hockey|rugby|"
    r"cricket|ping pong|table tennis|squash|poker|piano|guitar|violin|cello|drums|flute|saxophone|"
    r"trumpet|ukulele|bass|harp|clarinet|video games|board games|bridge|go|minecraft|d&d|"
    r"dungeons and dragons|the (?:piano|guitar|violin|cello|drums|flute|saxophone|trumpet|ukulele|"
    r"bass|harp|clarinet|keyboard|banjo)|bass guitar)"
)
TO_PLAN = (
    r"(?:move|visit|travel|go|fly|buy|get|start|open|learn|study|run|apply|take|write|build|launch|"
    r"retire|marry|get married|quit|adopt|sell|attend|become|switch|migrate|rewrite|publish|climb|"
    r"hike|join|finish|renovate|compete|enroll|train|host|release|train for)"
)
