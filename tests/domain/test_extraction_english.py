from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from memoryos_server.domain.memory.extraction import Extraction, extract
from memoryos_server.tools.words import Words

FOLD = Words().fold
SAID_AT = datetime(2024, 5, 15, 10, tzinfo=UTC)  # a Wednesday

# Text | the facts it states, `-` before those that ended, `~` before those denied, another subject before a colon.
# Nothing behind the bar: no fact.
CASES = r"""
My name is Alice and I work as a data scientist | name=Alice; has_role=a data scientist
Hi, I'm calling about nothing. My name is Omar. | name=Omar
Please call me Bea | name=Bea
Everyone calls me Max | name=Max
Call me when you are done |
Call me back later |
My name is not Bob |
What is my name? |
I'm 34 years old | age=34
I just turned 40 | age=40
I am 29 | age=29
I'm 5 minutes away |
My birthday is May 5, 1990 | birthday=May 5, 1990
My birthday is on the 3rd of March | birthday=3rd of March
My birthday is coming soon |
I was born on 12 July 1985 | birthday=12 July 1985
My email is ann.lee@example.org | email=ann.lee@example.org
My phone number is +49 170 1234567 | phone=+49 170 1234567
I live in Paris | lives_in=Paris
I currently live in New York City | lives_in=New York City
I live in a small house |
I live in fear of spiders |
We live in Oslo now | lives_in=Oslo
I'm based in Nairobi | lives_in=Nairobi
I'm living in Porto at the moment | lives_in=Porto
I moved to Berlin last Tuesday | lives_in=Berlin
I've moved to Lima | lives_in=Lima
I moved from Rome to Milan in 2019 | lives_in=Milan
We relocated to Austin for work | lives_in=Austin
I moved to the next question |
I live in St. Gallen. | lives_in=St. Gallen
Actually, I quit St. Mary's. I now work at Google. | -works_at=St. Mary's; works_at=Google
I used to live in Rome | -lives_in=Rome
I no longer live in Madrid | -lives_in=Madrid
I don't live in Madrid anymore | -lives_in=Madrid
I moved out of Boston | -lives_in=Boston
I have lived in Kyoto since 2015 | lives_in=Kyoto
I might move to Berlin |
I may move to Berlin |
I could live in Berlin |
I would live in Berlin |
If I lived in Rome, I would be happy |
If I move to Rome I will sell my car |
I wish I lived in Hawaii |
Should I move to Berlin? |
Do I live in Berlin? |
I live in Berlin? |
I live in Berlin, do you know a good cafe? | lives_in=Berlin
Imagine I live on Mars |
Suppose I work at NASA |
Let's say I live in Peru |
In my dream I lived in a castle in Prague |
He said I live in Paris |
She thinks I work at Apple |
"I live in Rome," she said |
My friend told me "I love sushi" |
He wrote: "I hate cats" |
I don't live in Paris | ~lives_in=Paris
I have never lived in Paris |
I never worked at Oracle |
I almost moved to Dublin |
I tried to move to Dublin |
I'm not from Spain | ~from=Spain
I'm from Brazil but I live in Canada | from=Brazil; lives_in=Canada
I come from Ghana | from=Ghana
I was born in Osaka | from=Osaka
I grew up in Texas | from=Texas
My hometown is Leeds | from=Leeds
I'm Canadian | nationality=Canadian
I'm German and I live in Graz | nationality=German; lives_in=Graz
I work at Google | works_at=Google
I work for Siemens in Munich | works_at=Siemens
I work at night |
I work for myself |
I work from home |
I work at a hospital | works_at=a hospital
I work as a nurse at St Mary Hospital | has_role=a nurse
I joined Spotify two months ago | works_at=Spotify
I started a new job at Airbus | works_at=Airbus
I quit my job | -works_at=
I lost my job last week | -works_at=
I got laid off | -works_at=
I left Amazon in March | -works_at=Amazon
I quit my job at Apple | -works_at=Apple
I no longer work at Google | -works_at=Google
I don't work at Microsoft any more | -works_at=Microsoft
I used to work at IBM | -works_at=IBM
I left home early |
I'm a software engineer | has_role=a software engineer
I'm a software engineer at Google and I love hiking | has_role=a software engineer; likes=hiking
I'm a big fan of jazz | likes=jazz
I am the CTO of a small company | has_role=the CTO
I'm a nervous wreck |
I'm a teacher, not a doctor | has_role=a teacher
I'm not a doctor | ~has_role=a doctor
I want to be a doctor | wants=be a doctor
I used to be a teacher | -has_role=a teacher
I'm no longer a manager | -has_role=a manager
I became a librarian in 2020 | has_role=a librarian
I'm studying biology | studies=biology
I study hard |
I'm studying at Stanford University | studies_at=Stanford University
I majored in philosophy | studies=philosophy
I graduated from Yale | -studies_at=Yale
I'm married | relationship_status=married
I'm single | relationship_status=single
I got engaged! | relationship_status=engaged
We got divorced last year | relationship_status=divorced
I'm not married | ~relationship_status=married
I broke up with my boyfriend | -partner=; relationship_status=single
I'm married to Carlos | partner=Carlos
My wife Sarah is a doctor | partner=wife Sarah; wife Sarah:has_role=a doctor
My sister Ann lives in Rome | has_relative=sister Ann; sister Ann:lives_in=Rome
My brother works at Tesla | brother:works_at=Tesla
My mom is allergic to bees | mom:allergic_to=bees
My friend Tom moved to Dublin last year | has_friend=friend Tom; friend Tom:lives_in=Dublin
My sister doesn't live in Rome | ~sister:lives_in=Rome
My sister might move to Rome |
My sister's car is red |
My late father worked at Ford |
Ann lives in Rome | Ann:lives_in=Rome
Music lives in all of us |
I have two kids | has_child=two kids
I have a daughter named Lily | has_child=daughter named Lily
I don't have kids |
I have three brothers | has_relative=three brothers
I have a dog named Rex | has_pet=dog named Rex
We adopted a cat called Miso yesterday | has_pet=cat called Miso
I don't have a dog | ~has_pet=dog
My dog is called Rex. | has_pet=dog Rex
Our cat's name is Mimi | has_pet=cat Mimi
My sister's name is Anna. | has_relative=sister Anna
My wife's name is Anna Maria | partner=wife Anna Maria
My brother is named Tom and he lives in Oslo | has_relative=brother Tom
My dog is called a monster by everyone |
My cat isn't called Tom |
Is your dog called Rex? |
My car is called Betty |
I drive a Clio. | owns=Clio
I've been driving an old Volvo since 2019 | owns=Volvo
I drive a lot |
I don't drive a Clio | ~owns=Clio
We sold the Clio | -owns=Clio
We sold the house |
I want a dog |
I wish I had a cat |
My dog Rex died last week | -has_pet=dog Rex
My cat Luna loves tuna | has_pet=cat Luna; cat Luna:likes=tuna
I'm vegetarian | diet=vegetarian
Actually, I'm vegetarian now | diet=vegetarian
I became vegan in January | diet=vegan
I'm not vegan | ~diet=vegan
I'm no longer vegan | -diet=vegan
I'm allergic to peanuts and shellfish | allergic_to=peanuts; allergic_to=shellfish
I'm not allergic to anything |
I have a nut allergy | allergic_to=nut
I'm lactose intolerant | allergic_to=lactose
I have asthma | condition=asthma
I was diagnosed with type 2 diabetes | condition=type 2 diabetes
I broke my left arm | condition=left arm
I'm quite introverted | trait=introverted
I'm a night owl | trait=a night owl
I like coffee | likes=coffee
I love hiking, chess and jazz | likes=hiking; likes=chess; likes=jazz
I really enjoy baking bread | likes=baking bread
I like to read | likes=to read
I prefer tea over coffee | likes=tea
I don't like coffee | dislikes=coffee
User prefers dark mode and uses vim | likes=dark mode; uses=vim
I like tea, have a cold and need a nap | likes=tea
I enjoy hiking and want to see Peru | likes=hiking
I like plays and musicals | likes=plays; likes=musicals
I love history and studies about war | likes=history
My sister likes cats, drinks coffee and has two kids | sister:likes=cats
I don't really like horror movies | dislikes=horror movies
I can't stand cilantro | dislikes=cilantro
I hate mornings | dislikes=mornings
I'm not a fan of horror movies | dislikes=horror movies
I don't eat pork | avoids=pork
I no longer like techno | -likes=techno
I don't like techno anymore | -likes=techno
I used to love sushi | -likes=sushi
I love you |
I love it |
I like that |
I like how you put it |
I love the colors |
I love this! |
I'd like a coffee |
Do you like coffee? |
Who doesn't like coffee? |
I doubt I like coffee |
I like coffee. Just kidding. |
Maybe I like coffee |
I think I like jazz | likes=jazz
My favorite color is blue | favorite_color=blue
My favourite food is ramen | favorite_food=ramen
My favorite part is the ending |
My favorite movie isn't Titanic |
My new favorite band is Radiohead | favorite_band=Radiohead
My hobbies are knitting and archery | hobby=knitting; hobby=archery
I play the piano | hobby=the piano
I play with my kids |
I started running last month | hobby=running
I stopped playing tennis | -hobby=tennis
I speak French and German | speaks=French; speaks=German
I can speak Japanese | speaks=Japanese
I don't speak French | ~speaks=French
I'm fluent in Spanish | speaks=Spanish
My native language is Polish | speaks=Polish
I'm learning Korean | learning=Korean
I'm learning a lot |
I use React 19 + TypeScript, my backend is Go | uses=React 19 + TypeScript; uses=Go
I use Python 3.12 | uses=Python 3.12
User uses Python 3.12 and prefers async mode | uses=Python 3.12; likes=async mode
I switched from Vim to Emacs last month | -uses=Vim; uses=Emacs
I stopped using Windows | -uses=Windows
I use it every day |
I don't use Windows | ~uses=Windows
We use PostgreSQL and Redis | uses=PostgreSQL; uses=Redis
I bought a new car | owns=new car
I sold my car | -owns=car
I bought a camera for my brother |
I've been to Japan | visited=Japan
I've been to Japan twice | visited=Japan
I have visited Times Square three times | visited=Times Square
I'm from Ghana originally but grew up in London | from=Ghana
I have never been to Japan |
I went to Lisbon last summer | visited=Lisbon
I just got back from Peru | visited=Peru
I went to bed |
I'm planning to visit Japan next spring | plans=visit Japan
I'm going to adopt a cat | plans=adopt a cat
I'm going to bed |
I decided to learn Rust | plans=learn Rust
I'm not planning to move |
I'd love to visit Iceland | wants=visit Iceland
I want to become a nurse | wants=become a nurse
I'm reading "Dune" | read=Dune
I watched "Heat" yesterday | watched=Heat
I joined a book club | member_of=a book club
I went to a jazz concert last Friday | attended=a jazz concert
Thanks, that helps a lot! |
Can you write a poem about Rome? |
Translate this: I live in Paris |
> I live in Paris |
```I live in Paris``` |
My character lives in Paris and I love Mars |
In the novel I live in Paris |
For example, I like cats |
You live in Paris |
They work at Google |
It is raining in Paris |
Hi, I'm Anna | name=Anna
I'm Anna Lee, nice to meet you! | name=Anna Lee
Hi, I'm German | nationality=German
Hi, I'm sorry |
Hey, I'm Catholic |
I'm Batman |
It's not true that I work at Google |
My boss thinks I live in London |
I don't think I like jazz |
I never said I live in Berlin |
I was going to move to Spain, but I changed my mind |
I can't eat gluten because I have celiac disease | avoids=gluten; condition=celiac disease
I work as a barista but I'd rather be a painter | has_role=a barista
I just moved to Toronto two weeks ago for a new job and I'm loving it | lives_in=Toronto
"""


def read(text: str, *, speaker: str = "", role: str = "user") -> Extraction:
    return extract(text, speaker=speaker, role=role, said_at=SAID_AT, fold=FOLD)


def brief(said: Extraction) -> list[str]:
    return [
        f"{'~' if f.denied else '-' if f.ended else ''}{'' if f.subject == 'user' else f.subject + ':'}{f.predicate}={f.value}"
        for f in said.facts
    ]


@pytest.mark.parametrize("case", [line for line in CASES.splitlines() if line])
def test_extract_when_a_sentence_is_said_then_exactly_its_facts(case: str) -> None:
    text, _, expected = case.rpartition("|")
    assert brief(read(text.strip())) == [fact.strip() for fact in expected.split(";") if fact.strip()]


def test_extract_when_a_move_is_dated_then_it_holds_from_that_day() -> None:
    (fact,) = read("I moved to Berlin last Tuesday").facts
    assert (fact.valid_from, fact.valid_to) == (datetime(2024, 5, 14, tzinfo=UTC), None)
    assert (fact.sentence, fact.single, fact.group) == ("Lives in Berlin", True, "profile")


def test_extract_when_something_used_to_be_then_it_is_never_current() -> None:
    (fact,) = read("I used to live in Rome until 2019").facts
    assert fact.ended
    assert fact.sentence == "Used to live in Rome"


def test_extract_when_the_speaker_hedges_then_the_confidence_is_low() -> None:
    (hedged,) = read("I think I like jazz").facts
    (plain,) = read("I like jazz").facts
    assert hedged.confidence < 0.7 <= plain.confidence


def test_extract_when_an_assistant_speaks_then_nothing() -> None:
    assert read("I live in Paris. Always answer in French.", role="assistant") == Extraction()


def test_extract_when_a_memory_block_is_echoed_then_only_the_rest_counts() -> None:
    text = "<memoryos-context>\nI live in Rome.\n</memoryos-context>\nI live in Oslo."
    assert brief(read(text)) == ["lives_in=Oslo"]


def test_extract_when_the_speaker_is_named_then_the_fact_is_theirs() -> None:
    assert brief(read("Ann lives in Rome", speaker="Ann")) == ["lives_in=Rome"]


def test_extract_when_several_sentences_then_facts_in_their_order_and_none_twice() -> None:
    said = read("Hi! I'm from Chile. I like tea, and I really like tea. Do you? I hate rain!")
    assert brief(said) == ["from=Chile", "likes=tea", "dislikes=rain"]


@pytest.mark.parametrize(
    "piece",
    [
        "I live in Paris and I love it. ",
        "I like a, ",
        "and i like ",
        '"',
        "```",
        "> x\n",
        "[image: ",
        "my ",
        "if ",
        "a",
        " ",
        ".",
    ],
)
def test_extract_when_the_text_is_long_then_time_is_linear(piece: str) -> None:
    text = (piece * 100_000)[:100_000]
    start = time.process_time()
    read(text)
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    "text",
    [
        "I like " + " " * 99_000 + "tea.",
        "I like tea" + "\t" * 99_000,
        "I like tea, see https://a.example/" + "x" * 99_000 + " and I like rice",  # read as blanks
        "```" + "x=1;" * 24_000 + "``` I like tea",
    ],
    ids=["blanks", "tabs", "address", "code"],
)
def test_extract_when_there_are_many_blanks_then_time_is_linear(text: str) -> None:
    start = time.process_time()
    read(text)
    assert time.process_time() - start < 3
