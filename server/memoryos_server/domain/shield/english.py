"""Attempts in English. `_` is a blank; texts are lower case, and have single blanks and straight apostrophes."""

from __future__ import annotations

from memoryos_server.domain.shield.model import pattern

_ALL = r"(?:(?:all|any|every|each|of|the|your|these|those|and|such|other|or|whatever)_){0,5}"
_BEFORE = (
    r"(?:previous|prior|above|preceding|earlier|former|foregoing|past|initial|original|existing|system|developer|"
    r"safety|current|previously_given)"
)
_ORDERS = (
    r"(?:instructions?|directives?|prompts?|commands?|guidelines?|rules?|orders|programming|training|guardrails?|"
    r"restrictions?|constraints?|polic(?:y|ies)|messages?_and_instructions)"
)
# What somebody says of the orders of somebody else: of a recipe, a doctor, or his own of a moment ago.
_NOT_OF_OTHERS = (
    r"(?!_(?:on|in|for|about|from|that_came|printed|regarding|concerning)_(?:the|my|our|mum|mom|"
    r"dad|his|her|their|page|how|where)"
    r"(?!_(?:developer|system|admin|user|prompt|conversation|context|above))|_(?:i|we|he|she|they|mum|mom|dad)_)"
)
_SKIP = r"(?:ignore|disregard|forget|overlook|override|bypass|neglect|(?:do_not|don't|stop)_(?:follow|obey)(?:ing)?|abandon|discard)"
_HIDDEN = (
    r"(?:(?:full|entire|whole|exact|complete|very|first|initial|original|hidden|secret|internal|confidential|"
    r"current|own|verbatim|raw)_){0,4}"
)
_SHOW = (
    r"(?:reveal|show|print|repeat|output|display|tell|give|leak|dump|disclose|recite|write|copy|paste|expose|share|"
    r"summari[sz]e|translate|encode|quote|what_(?:is|are|was|were)|what's)"
)
_PERSONA = (
    r"(?:you_are|you're|act_as|pretend|role-?play|behave_(?:as|like)|respond_as|imagine_you|simulate|"
    r"you_will_(?:act|be|play)|become|answer_as|take_on_the_role)"
)

PATTERNS = (
    pattern(
        "override.ignore",
        "ignore |disregard |forget |overlook |override |bypass |neglect |not follow |n't follow "
        "|stop follow|not obey |n't obey |stop obey|abandon |discard ",
        rf"\b{_SKIP}_{_ALL}{_BEFORE}_(?:{_BEFORE}_)?(?:(?:system|safety|user|chat|content|assistant)_"
        rf")?{_ORDERS}\b{_NOT_OF_OTHERS}",
    ),
    pattern(
        "override.ignore",
        "ignore |disregard |forget |overlook |override |bypass |neglect |not follow |n't follow "
        "|stop follow|not obey |n't obey |stop obey|abandon |discard ",
        rf"\b{_SKIP}_(?:(?:all|any|every|each|of|the|these|those)_){{0,3}}your_(?:\w{{1,16}}_){{0,2}}{_ORDERS}\b",
    ),
    pattern(
        "override.ignore",
        "ignore |disregard |forget |overlook |override |bypass |not follow |n't follow |stop follow|discard ",
        rf"\b{_SKIP}_(?:all_|any_|the_|those_|these_)?{_ORDERS}_(?:above|before_this|you_(?:were|"
        rf"have_been|got|received)|given_to_you|that_you_(?:were|have|got))",
    ),
    pattern(
        "override.forget",
        "forget e|forget a|disregard e|disregard a|ignore e|ignore a|erase e|erase a|wipe e|wipe a",
        r"\b(?:forget|disregard|ignore|erase|wipe)_(?:everything|all|anything)_(?:(?:that|which|of|about)_)?"
        r"(?:(?:is_|was_|were_)?(?:above|written_above|said_above|before_this|previously_said)\b|"
        r"you_(?:were|have_been|'ve_been|had_been)_"
        r"(?:told|taught|instructed|given|trained)|your_(?:training|instructions|programming|rules|guidelines)|"
        r"the_(?:above|instructions|rules_you))",
    ),
    pattern(
        "override.new_orders",
        "your new |your updated |your real |your actual |your true |your revised |your only |your sole |new system ",
        r"\b(?:your|here_(?:are|is)_your|these_are_your)_(?:only_|sole_)?(?:new|updated|real|actual|true|revised)_"
        r"(?:and_only_|system_|secret_)?(?:instructions?|directives?|prompt|orders|objective)(?:_"
        r"is|_are|_follows?|:|_-)"
        r"|\bnew_system_(?:prompt|instructions?|message)\b_?[:=]",
    ),
    pattern(
        "override.precedence",
        "override|supersede|precedence over|priority over|replaces |replace ",
        r"\b(?:instructions?|commands?|message|prompt|directives?|rules?|text)_(?:(?:will|shall|"
        r"must|now|here|below|hereby)_){0,2}"
        r"(?:overrides?|supersedes?|takes?_precedence_over|(?:has|have)_priority_over|replaces?)_"
        r"(?:(?:all|any|every|the)_){0,2}(?:your_|system_|(?:previous|prior|other|earlier|existing)_"
        r"(?:system_)?(?:instructions?|rules?|prompts?|directives?|guidelines?))",
        before=60,
    ),
    pattern(
        "override.safety_off",
        "disable |turn off |switch off |deactivate |remove |bypass |ignore |suspend |override |lift |drop ",
        r"\b(?:disable|turn_off|switch_off|deactivate|remove|bypass|ignore|suspend|override|lift|drop)_"
        r"(?:(?:all|any|your|of|built-in)_){1,3}(?:safety|content|ethical|ethics|moderation|security|"
        r"alignment)_(?:moderation_|safety_)?"
        r"(?:and_\w{1,12}_)?(?:filters?|guidelines|protocols?|measures|restrictions|polic(?:y|"
        r"ies)|settings|checks|guardrails|rules|training)"
        r"|\b(?:disable|turn_off|deactivate|remove|bypass|drop)_(?:all_)?(?:of_)?your_(?:guardrails|"
        r"filters|censorship|ethics)",
    ),
    pattern(
        "role.unrestricted",
        "restrict|unfilter|uncensor|jailbr|jail broken|amoral|limitations|limits|rules|filter|"
        "guidelines|censorship|safeguards|morals|ethics",
        rf"\b{_PERSONA}\b[^.!?\n]{{0,60}}?\b(?:unrestricted|unfiltered|uncensored|jail-?broken|amoral|"
        r"(?:without|has_no|have_no|with_no|free_(?:of|from))_(?:(?:any|all|ethical|moral|safety|"
        r"content|your|its|usual)_){0,4}"
        r"(?:restrictions|limitations|limits|rules|filters?|guidelines|censorship|safeguards|morals|ethics))\b",
        before=140,
        after=60,
    ),
    pattern(
        "role.no_rules",
        "you have no |by no |follow no |you are no |you're no |you are not |you're not |you do "
        "not |you don't |you no longer|you needn't",
        r"\byou_(?:have|are_bound_by|follow|must_follow|need_follow)_no_(?:more_|longer_)?(?:content_"
        r"|ethical_|safety_)?(?:restrictions|rules|guidelines|filters?|limits|limitations|ethics)\b"
        r"|\byou(?:_are|'re)_(?:no_longer|not)_(?:bound|restricted|limited|constrained|governed)_"
        r"(?:by|to)_(?:any|your|the|openai|all|these|those|rules|guidelines)"
        r"|\byou_(?:do_not|don't|no_longer|needn't)_(?:have_to_|need_to_)?(?:obey|follow|comply_"
        r"with|adhere_to)_(?:any|your|openai|anthropic|safety|content)[^.!?]{0,20}(?:rules|guidelines|"
        r"policies|policy|restrictions|instructions)",
        before=32,
    ),
    pattern(
        "role.mode",
        "developer mode|god mode|debug mode|sudo mode|root mode|admin mode|dan mode|jailbreak mode|unrestricted mode|"
        "maintenance mode|evil mode|unfiltered mode|uncensored mode|filter mode|are dan |called dan |anything now",
        r"\byou(?:_are|'re|_will_be)_(?:now_)?(?:in_|running_in_|operating_in_|entering_)?(?:developer|"
        r"god|debug|sudo|root|admin|dan|jailbreak|unrestricted|maintenance|evil)_mode"
        r"|\b(?:enter|enable|activate|switch_to|engage)_(?:god|jailbreak|unrestricted|unfiltered|"
        r"uncensored|dan|evil|no-?filter)_mode"
        r"|\byou_are_(?:now_)?(?:called_)?dan\b[^.!?]{0,40}(?:anything|free|rules|broken)|\bdo_"
        r"anything_now\b|\b(?:developer|debug)_mode_(?:is_)?(?:now_)?(?:enabled|activated|on)_"
        r"?[.:!,][^.!?]{0,60}\byou\b",
        before=60,
    ),
    pattern(
        "role.claim",
        "your developer|your creator|your admin|your programmer|your maker|your system admin|openai|anthropic",
        r"\b(?:i_am|i'm|this_is|speaking_as|as)_(?:your_(?:lead_|chief_)?(?:developer|creator|"
        r"administrator|admin|programmer|maker|system_administrator)|(?:an?_)?(?:openai|anthropic)(?:_"
        r"(?:engineer|employee|staff|developer|support))?)\b"
        r"[^?\n]{0,80}\b(?:reveal|ignore|disable|override|unlock|bypass|grant|debug|disregard|"
        r"show_me_your|print|dump|authori[sz]ed?)\b",
    ),
    pattern(
        "exfil.prompt",
        " prompt|instructions| system message|directives|guidelines| rules|preprompt",
        rf"\b{_SHOW}_(?:(?:me|us|out|back|to_me|all|of|word_for_word|verbatim|exactly|into_\w{{1,12}})_"
        rf"){{0,3}}your_{_HIDDEN}"
        r"(?:system_(?:prompt|message|instructions?)|pre-?prompt|prompt|(?:developer|system|initial|"
        r"hidden|secret|internal)_(?:instructions?|messages?|directives?|guidelines|rules)|instructions(?=_"
        r"(?:verbatim|word_for_word|in_full|above|exactly|as_|in_a_code|from_the_(?:system|developer)|"
        r"$)|[.?!:;]|$))",
        before=160,
        after=60,
    ),
    pattern(
        "exfil.prompt",
        "system prompt|system message|system instructions|hidden instructions|secret instructions|initial prompt",
        r"\b(?:reveal|leak|dump|disclose|recite|expose|print|output|repeat|display)_(?:(?:me|us|"
        r"out|back|all|of|word_for_word|verbatim)_){0,3}(?:the_|this_)"
        rf"{_HIDDEN}(?:system_(?:prompt|message|instructions?)|(?:hidden|secret|initial)_(?:instructions?|prompt))\b",
        before=120,
        after=60,
    ),
    pattern(
        "exfil.prompt",
        "instructed|instructions were you|told before|were you given",
        r"\bwhat_(?:exact_|secret_|hidden_)?(?:instructions|rules|prompt)_(?:were_you|have_you_been)_(?:given|told)|"
        r"\b(?:everything|exactly_what|what_exactly)_you_were_(?:told|instructed)_(?:before|above|"
        r"at_the_(?:start|beginning)|in_your)",
        before=60,
    ),
    pattern(
        "exfil.above",
        " above|before this|preceding this",
        r"\b(?:repeat|print|output|copy|write_out|reproduce|display)_(?:me_|back_|out_)?(?:(?:all|"
        r"everything|every_word|the|of|entire|whole|exact)_){0,4}"
        r"(?:text_|words?_|content_|messages?_|instructions_|lines?_|conversation_)?(?:above|before_"
        r"this(?:_message|_line|_point)?|preceding_this)"
        r"(?:_(?:this_(?:line|message|point)))?[^.!?\n]{0,30}(?:verbatim|word_for_word|code_block|"
        r"exactly|starting_with|beginning_with|you_are|as_is|without_changes)"
        r"|\b(?:repeat|print|output)_(?:everything|all_the_words|all_text|all_of_the_text)_(?:above|before_this)\b",
        before=120,
        after=120,
    ),
    pattern(
        "exfil.secrets",
        "api key|credential|access token|environment variable|env var|secret key|private key|password",
        r"\b(?:reveal|leak|exfiltrate|dump|print|output|disclose|send_me|list|expose)_(?:me_)?(?:(?:all|"
        r"any|every|of)_)*?(?:your_(?:own_|internal_|stored_)?|all_(?:the_|stored_|user_|users'_"
        r")?|the_(?:system|server|user|other_users?|admin)(?:'s|s'|s)?_)"
        r"(?:api_keys?|credentials|access_tokens?|environment_variables|env_vars|secret_keys?|"
        r"private_keys?|passwords?)\b",
        before=80,
        after=60,
    ),
    pattern(
        "exfil.memories",
        "other user|another user|all users|everyone's|other people",
        r"\b(?:show|tell|give|reveal|list|print|dump|read)_(?:me_|us_|out_)?(?:(?:all|the|every|"
        r"any|of|stored|private|saved)_){0,4}(?:memories|messages|chats?|conversations?|data|history|"
        r"secrets|profiles?)_"
        r"(?:of|from|about|belonging_to)_(?:(?:all|the|any|your|every)_){0,2}(?:other_users?|another_"
        r"user|users|other_people|other_customers)",
        before=120,
        after=60,
    ),
    pattern(
        "exfil.url",
        "](http|to http",
        r"!\[[^\]]{0,80}\]\(https?://[^)\s]{1,200}[?&][a-z\x5f]{1,32}=(?:\{|<|\[|%7b|%3c|\$)"
        r"|\b(?:send|post|upload|forward|exfiltrate|transmit|append|submit)_(?:(?:all|the|this|"
        r"our|entire|whole|full|every|of|a_summary_of|a_copy_of|his|her|their|user's)_){1,4}"
        r"(?:conversation|chat|chat_history|history|memories|memory|user_data|messages|system_"
        r"prompt|context|prompt|personal_data|secrets)\b[^.!?]{0,40}\bto_https?://",
        before=260,
    ),
    pattern(
        "indirect.hide",
        "the user",
        r"\b(?:do_not|don't|never|must_not)_(?:tell|inform|notify|mention|alert|reveal|disclose|"
        r"let)_?(?:_(?:this|that|it|any_of_this|these_instructions|anything|about_this))?(?:_to)?_"
        r"the_user\b"
        r"(?!_(?:manual|guide|interface|name|id|stor))(?=_(?:about|of|that_you|this|these|know|"
        r"what|you|anything|see|why)|[.,;!:]|$)"
        r"|\bwithout_(?:telling|informing|notifying|alerting|asking)_the_user\b[^.!?]{0,60}\b(?:call|"
        r"send|use|invoke|run|execute|forward|delete|transfer)\b"
        r"|\b(?:call|send|use|invoke|run|execute|forward|delete|transfer|email)\b[^.!?]{0,60}\bwithout_"
        r"(?:telling|informing|notifying|alerting|asking)_the_user\b",
        before=140,
        after=160,
    ),
    pattern(
        "indirect.address",
        "to all ai|all ai |any ai|ai assistant|ai model|ai agent|ai system|ai crawl|ai review|"
        "ai reading|ai process|ai summ|llm |llms |language model|chatbot|an ai|an automated",
        r"\b(?:attention|note|notice|hey|dear|important|instructions?|message)\W{1,3}(?:to_|for_"
        r")?(?:(?:all|any|the|every)_)?(?:ai|llms?|language_model|chatbot)s?"
        r"(?:_(?:assistants?|models?|agents?|systems?|crawlers?|reviewers?))?(?:_(?:reading|processing|"
        r"summari[sz]ing|reviewing|parsing)_(?:this|the)\b|[^.!?\n]{0,30}\b(?:you_must|ignore|"
        r"instead|please_(?:say|output|include|recommend|rate|add)))"
        r"|\bif_you_are_an?_(?:ai|llm|(?:large_)?language_model|chatbot|automated)(?:_(?:language_"
        r"model|assistant|agent|model|system))?\b[^.!?\n]{0,40}\b(?:must|instead|include|(?:reply|"
        r"respond)_with|say|print|write|recommend|rate|insert|ignore|approve|output)\b",
        before=60,
    ),
    pattern(
        "exhaust.repeat",
        "repeat the|repeat this|repeat following",
        r"\brepeat_(?:the|this|following)_(?:\w{1,12}_)?(?:word|token|phrase|letter)\b.{0,40}\b(?:forever|"
        r"endlessly|infinitely|indefinitely|[0-9],?000,?000_times|without_(?:ever_)?stopping)",
    ),
)
