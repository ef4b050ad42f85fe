"""Irregular English: forms that no stemmer brings together. Closed classes of the language, not a list of synonyms."""

from __future__ import annotations

_FORMS = """
go went gone; buy bought; see saw seen; take took taken; give gave given; get got gotten; make made; find found; think
thought; bring brought; teach taught; catch caught; feel felt; keep kept; leave left; meet met; lose lost; win won; write
wrote written; drive drove driven; ride rode ridden; eat ate eaten; drink drank drunk; sing sang sung; swim swam swum; run
ran; begin began begun; speak spoke spoken; break broke broken; choose chose chosen; fall fell fallen; fly flew flown;
grow grew grown; know knew known; draw drew drawn; throw threw thrown; wear wore worn; tell told; sell sold; say said; pay
paid; hear heard; hold held; stand stood; understand understood; build built; send sent; spend spent; lend lent; sleep
slept; sit sat; come came; become became; fight fought; seek sought; shake shook shaken; steal stole stolen; wake woke
woken; rise rose risen; hide hid hidden; bite bitten; forget forgot forgotten; forgive forgave forgiven; lead led; feed
fed; dig dug; stick stuck; hang hung; lie lay lain; light lit; shoot shot; sweep swept; deal dealt; mean meant; dream
dreamt; learn learnt; bend bent; bind bound; bleed bled; blow blew blown; breed bred; burn burnt; creep crept; freeze froze
frozen; lay laid; ring rang rung; shine shone; shrink shrank shrunk; sink sank sunk; slide slid; spin spun; spring sprang
sprung; strike struck stricken; swear swore sworn; swing swung; tear tore torn; weave wove woven; weep wept; child children;
man men; woman women; person people; foot feet; tooth teeth; mouse mice; goose geese; wife wives; knife knives;
leaf leaves; shelf shelves; half halves; thief thieves; good better best; bad worse worst
"""

BASE = {form: forms[0] for forms in (line.split() for line in _FORMS.split(";")) for form in forms[1:]}
"""Irregular form -> base form."""
