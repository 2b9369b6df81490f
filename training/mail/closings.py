"""Closing phrases: "Best regards,", "Mit freundlichen Grüßen", "LG Anna". They are voice and stay.

What the six languages' letters and quick mails end with; a name may follow on the same line.
"""

from __future__ import annotations

import re

_MAX_CHARS = 60
_LEADS = (
    r"many|much|with|kind|kindest|best|warm|warmest|all the|very|most|yours|sincerely|"
    r"freundlichen?|freundlichem|freundlicher|besten?|bester|liebe[nr]?|lieber|vielen?|herzlich(?:en?|em|er)|schönen?|"
    r"sonnigen?|winterlichen?|kollegialen?|mit|ganz|und|danke(?:schön)?,? und|dank und|vorab|"
    r"bien|meilleures|sincères|cordiales|respectueuses|salutations|mes|un|je vous prie d['’]agréer|"
    r"saludos|recib[ae](?: un)?|cordial(?:es)?|muchas|mil|gran|fuertes?|"
    r"cordiali|distinti|cari|caro|tanti|grazie e|met|vriendelijke|hartelijke|lieve|alvast|"
    r"com os(?: meus)?|melhores|os meus|muito|grande|med|vänliga|venlig|bästa"
)
_CLOSINGS = (
    r"thanks|thank you|thx|tks|regards|rgds|best|cheers|sincerely|truly|yours|love|wishes|xo+|take care|"
    r"ciao|br|kr|see you|talk soon|respectfully|"
    r"grüße|grüsse|gruß|gruss|grüßen|grüssen|lg|glg|mfg|vg|bg|danke|dank|hochachtungsvoll|"
    r"bis (?:dann|bald|morgen|später)|"
    r"cordialement|amicalement|amitiés|merci|salutations(?: distinguées| cordiales| sincères)?|à vous|à toi|"
    r"à bientôt|à (?:demain|plus(?: tard)?)|bises|bisous|biz|(?:bonne|belle) (?:journée|soirée|semaine)|"
    r"bon week-end|"
    r"(?:je )?(?:t['’]|vous )embrasse|respectueusement|cdlt|cordlt|"
    r"saludos?(?: cordial(?:es)?)?|gracias|atentamente|atte|abrazos?|besos?|hasta (?:pronto|luego|mañana)|"
    r"saluti|saluto|grazie(?: mille)?|cordialmente|un abbraccio|abbracci|a presto|a domani|"
    r"buon[ao] (?:giornata|serata)|"
    r"groet|groeten|groetjes|mvg|liefs|bedankt|tot (?:snel|ziens|morgen)|fijne dag|"
    r"cumprimentos|atenciosamente|att|abraços?|abs|beijinhos|beijos|bjs|obrigad[oa]|"
    r"até (?:breve|logo|amanhã)|hälsningar|hälsning|mvh|tack|hilsen"
)
_SUFFIXES = (
    r"again|so much|a lot|in advance|and best regards|& best regards|all|everyone|to you|yours|for your \w+|"
    r"im voraus|schon mal|d['’]avance|beaucoup|por adelantado|de antemano|in anticipo|desde já|"
    r"und (?:viele |liebe |beste )?gr(?:ü(?:ß|ss)e|uß|uss)"
)
# "Best, Anna"; without a comma only below what nobody says within a sentence: "LG Anna", "Grüße Anna".
_NAME = r"[A-ZÀ-Ý][\w'’.-]{0,20}(?: [A-ZÀ-Ý][\w'’.-]{0,20}){0,2}"
_SHORT = (
    r"(?i:lg|glg|mfg|vg|bg|mvg|mvh|gruß|gruss|grüße|grüsse|groet|groetjes|liefs|bises|bisous|abs|bjs|br|kr)"
)
_CLOSING = re.compile(
    rf"(?i:(?:(?:{_LEADS}) )*(?:{_CLOSINGS})(?: (?:{_SUFFIXES}))?)[\s,.!\-–]*(?:(?<=, )(?:{_NAME})[.!]?)?\s*$"
    rf"|{_SHORT}[,.]? {_NAME}[.!]?\s*$"
)


def is_closing(line: str) -> bool:
    """Tell whether a line is a closing phrase such as "Best regards,", with or without the name."""
    return len(line) <= _MAX_CHARS and _CLOSING.match(line.strip()) is not None
