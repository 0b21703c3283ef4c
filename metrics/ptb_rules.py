"""The rules of Penn Treebank tokenization that ``metrics.ptb`` applies, as regular expressions."""

from __future__ import annotations

import re
from functools import cache


def _any(words: str) -> str:
    """Alternatives that ignore case."""
    return "(?i:" + "|".join(map(re.escape, words.split())) + ")"


def _any_capitalized(words: str) -> str:
    """Alternatives whose first letter must be a capital."""
    return "(?:" + "|".join(f"{word[0]}(?i:{word[1:]})" for word in words.split()) + ")"


# --- Character classes ---------------------------------------------------------------------------
# The characters themselves and no escapes, which the compiler of expressions reads slowly.
# Java reads UTF-16 and knows no character above U+FFFF: it drops those, so no class holds them.
_ASTRAL = "\U00010000-\U0010FFFF"
# Numeric characters that Python's \w counts in but that are neither letters nor digits: ² ½ Ⅷ ①.
NUMERIC = (
    "\u00B2\u00B3\u00B9\u00BC-\u00BE\u09F4-\u09F9\u0B72-\u0B77\u0BF0-\u0BF2\u0C78-\u0C7E"
    "\u0D58-\u0D5E\u0D70-\u0D78\u0F2A-\u0F33\u1369-\u137C\u16EE-\u16F0\u17F0-\u17F9\u19DA"
    "\u2070\u2074-\u2079\u2080-\u2089\u2150-\u2182\u2185-\u2189\u2460-\u249B\u24EA-\u24FF"
    "\u2776-\u2793\u2CFD\u3007\u3021-\u3029\u3038-\u303A\u3192-\u3195\u3220-\u3229"
    "\u3248-\u324F\u3251-\u325F\u3280-\u3289\u32B1-\u32BF\uA6E6-\uA6EF\uA830-\uA835"
)
# Soft hyphen, accents and vowel signs: part of a word although they are no letters.
_MARKS = (
    "\u00AD\u02C2-\u02C5\u02D2-\u02DF\u02E5-\u02EB\u02ED\u02EF-\u036F\u0375\u0378\u0379\u0384"
    "\u0385\u03F6\u0483-\u0487\u055A-\u055F\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7"
    "\u0615-\u061A\u064B-\u065E\u0670\u06D6-\u06E4\u06E7-\u06ED\u06FD\u06FE\u070F\u0711"
    "\u0730-\u074C\u07A6-\u07B0\u07EB-\u07F3\u0900-\u0903\u093C\u093E-\u094E\u0951-\u0955\u0962"
    "\u0963\u0981-\u0983\u09BC-\u09C4\u09C7\u09C8\u09CB-\u09CD\u09D7\u09E2\u09E3\u0A01-\u0A03"
    "\u0A3C\u0A3E-\u0A4F\u0A81-\u0A83\u0ABC-\u0ACF\u0B82\u0BBE-\u0BCD\u0C01-\u0C03\u0C3E-\u0C56"
    "\u0D3E-\u0D48\u0E31-\u0E3A\u0E47-\u0E4E\u0EB1-\u0EBC\u0EC8-\u0ECD\u1885\u1886"
)
# Symbols that are a token of their own, one character each; all other characters are dropped.
_SYMBOLS = (
    r"%&+,./:;<=>\\^|~\u00A1\u00A6-\u00A9\u00AC\u00AE-\u00B1\u00B4\u00B6-\u00B8\u00BF\u00D7\u00F7"
    r"\u037E\u0387\u0589\u05BE\u05C0\u05C3\u05C6\u05F3\u05F4\u0600-\u0603\u0606-\u060C\u0614\u061B"
    r"\u061E\u061F\u066A\u066D\u06D4\u0700-\u070D\u07F6-\u07F8\u0964\u0965\u0E4F\u1FBD\u2016\u2017"
    r"\u2020-\u2023\u2030-\u2038\u203B\u203E-\u2042\u2044\u207A-\u207E\u208A-\u208E\u2100\u2101"
    r"\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211E-\u2123\u2125\u2127\u2129\u212E\u213A\u213B"
    r"\u2140-\u2144\u214A-\u214D\u214F\u2190-\u2BFF\u3001\u3002\u3012\u30FB\uFF01-\uFF0F"
    r"\uFF1A-\uFF20\uFF3B-\uFF40\uFF5B-\uFF65"
)
_ENTITY = r"&[aeiouAEIOU](?i:acute|grave|uml);"  # &eacute; counts as a letter
_ALPHA = rf"[^\W\d_{_ASTRAL}{NUMERIC}]"
_ALNUM = rf"[^\W_{_ASTRAL}{NUMERIC}]"
_DIGIT = rf"[^\D{_ASTRAL}]"
_LETTER = rf"(?:{_ALPHA}|[{_MARKS}]|{_ENTITY})"
_LETTER_OR_DIGIT = rf"(?:{_ALNUM}|[{_MARKS}]|{_ENTITY})"
_APOS = r"(?:['\u0092\u2019]|&apos;)"
_APOS_LIKE = r"(?:['\u0091\u0092\u2018\u2019\u201B`]|&apos;)"
_SPACE = r" \t\u00A0\u2000-\u200A\u3000"
_BLANK = rf"[{_SPACE}\n\r\x0b\x0c\u2028\u2029]"

# --- Parts of tokens -----------------------------------------------------------------------------
_WORD = rf"{_LETTER}{_LETTER_OR_DIGIT}*(?:[.!?]{_LETTER}{_LETTER_OR_DIGIT}*)*"  # also "end.The"
_RUN = rf"(?:[dDoOlL]{_APOS_LIKE}{_ALNUM})?{_ALNUM}+"  # also "O'Neil", "d'or", "2x4"
_JOINED = rf"{_RUN}(?:[-_\u058A\u2010\u2011]{_RUN})*"  # t-shirt, a_b
_HYPHENED = (  # 1.5-inch, non-U.S.
    r"[A-Za-z0-9][A-Za-z0-9.,\u00AD]*"
    r"(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\u00AD]+))+"
)
_NUMBER = rf"(?:{_DIGIT}*(?:[.:,\u00AD\u066B\u066C]{_DIGIT}+)+|{_DIGIT}+)"  # 1,000 .5 12:30
_CLITIC = r"(?i:[msd]|re|ve|ll)"
_TAG_NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"
_TAG_VALUE = r" *= *(?:\"[^\r\n\"]*\"|'[^\r\n']*'|['\"][^\r\n'\"]*['\"])"
_TAG = (
    rf"<(?:[!?][A-Za-z-][^>\n\r]*|/{_TAG_NAME}"
    rf"|{_TAG_NAME}(?: +(?:{_TAG_NAME}{_TAG_VALUE}|{_TAG_NAME}))* */?) *>"
)
_STOP = r" \t\n\f\r\"<>|()"  # no address goes past these
_URL_END = rf"[^{_STOP}.!?{{}},-]"
_URL_PATH = rf"(?:/[^{_STOP}]+{_URL_END})?"
_HOST_PART = rf"[^{_STOP}`'{{}}!?$,-_]+\."  # the range ,-_ leaves out digits and capitals
_MAIL_PART = rf"[^{_STOP}.{{}}\u00A0]+"
_DIAL, _GAP = r"[0-9]{2,4}", r"[- \u00A0]"
_EYE = r"x^=~<>'"
_MODIFIED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"  # one side of a slash: black-and-white/color
_EXTENSION = _any(
    "bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php "
    "pl png ppt pptx ps py sql tar txt wav x xml zip"
)

# Abbreviations keep their full stop, some only with a capital ("Wash."); some are cut in "etc.x".
ENDING = (
    "ph.d ed.d al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos "
    "ct dak dec esq est etc ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md "
    "mich minn mo mon mont neb nev nov oct okla penn plc ppte ppty pte ptes pty ptys rd rt sep "
    "sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo"
)
ENDING_CAPITAL = "Ark Az Del Ill Ind La Mass Miss Ore Pa Tex Wash"
TITLES = (
    "adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr "
    "drs elec ens ft gen gov govs hon insp invt jos lieut lt maj messrs mfg mlle mme mr mrs ms "
    "msgr mt mtg natl pfc ph pres prof profs pvt rep reps rev sen sens sfc sgt spc st ste supt "
    "supts treas vs wm"
)
_BEFORE_NUMBER = "art ca fig figs no nos op pp prop"  # "no. 5" but "he said no ."
# After "I. " these words, capitalized, begin a sentence and free the full stop.
_SENTENCE_START = (
    "A About According Additionally After An As At But Earlier He Her Here However If In It Last "
    "Many More Now Once One Other Our She Since So Some Such That The Their Then There These They "
    "This We What When While Yet You Mr\\. Ms\\."
)

QUOTES = str.maketrans({  # `_scan` undoes &apos; and &amp; as well
    "\x91": "`", "\u2018": "`", "\u201b": "`", "\u2039": "`", "\x92": "'", "\u2019": "'",
    "\u203a": "'", "\x93": "``", "\u201c": "``", "\u00ab": "``", "\x94": "''", "\u201d": "''",
    "\u00bb": "''",
})  # fmt: skip
_SIGNS = str.maketrans({
    "\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3",
    "\u00a2": "cents", "\u00a3": "#", "\u00a4": "$", "\x80": "$", "\u20a0": "$", "\u20ac": "$",
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
})  # fmt: skip
_SPACES = str.maketrans({" ": "\u00a0"})
_ROUND = str.maketrans({"(": "-lrb-", ")": "-rrb-", " ": "\u00a0"})
_AS_IS: dict[int, str] = {}

# --- Rules: (pattern, output) --------------------------------------------------------------------
# The longest match wins, and the earlier rule on a tie. Group 1, where a pattern has one, is the
# token: what follows it is only looked at, yet counts for the length. Output: a fixed string, a
# table to translate by, or None for the text itself without soft hyphens.
RULES: list[tuple[str, str | dict[int, str] | None]] = [
    # cannot, gonna, gotta, lemme, gimme, wanna: two tokens
    (r"(?i:(can(?=not)|gon(?=na)|got(?=ta)|lem(?=me)|gim(?=me)|wan(?=na))(?:not|na|ta|me))", None),
    # tags and entities
    (_TAG, _SPACES),
    (r"&(?i:MD|mdash|ndash);|[\u0096\u0097\u2013-\u2015]", "--"),
    (r"&(?i:amp);", "&"),
    (r"&(?:(?i:HT|TL|UR|LR|QC|QL|QR|odq|cdq)|#[0-9]+);", None),
    # words, and where a clitic is cut off: he|'s, do|n't
    (rf"({_WORD}){_APOS}{_CLITIC}", None),
    (rf"([A-Za-z\u00AD]*[A-MO-Za-mo-z]\u00AD*)[nN]{_APOS_LIKE}[tT]", None),
    (_WORD, None),
    # words with an apostrophe of their own; 'tis and y'all are cut
    (rf"[A-HJ-XZn]{_APOS_LIKE}{_ALPHA}{{2,}}|[oO]{_APOS_LIKE}[oO]", None),
    (rf"{_ALPHA}+[aeiouyAEIOUY]{_APOS_LIKE}[aeiouA-Z]{_ALPHA}*", None),
    (rf"(?i:cap{_APOS}n|c{_APOS}est|c'mon|s'mores|li'l|e'er|nor'easter|ev'ry|nat'l)", None),
    (rf"{_APOS}[nN]{_APOS}?|[lLdDjJ]{_APOS}|(?i:dunkin|somethin|ol){_APOS}", None),
    (rf"{_APOS}(?:(?i:em|till?|cause)|[2-9]0[sS])", None),
    (r"('[tT])(?i:is|was)", None),
    (rf"([yY]{_APOS}){_ALPHA}", None),
    # addresses, handles, hashtags
    (rf"(?i:https?)://[^{_STOP}{{}}]+{_URL_END}", _AS_IS),
    (rf"(?i:www)\.(?:[^{_STOP}.!?{{}},]+\.)+[a-zA-Z]{{2,4}}{_URL_PATH}", _AS_IS),
    (rf"(?:{_HOST_PART})+(?i:com|net|org|edu){_URL_PATH}", None),
    (rf"(?:<|(?i:&lt;))?[A-Za-z0-9][^{_STOP}{{}}\u00A0]*@{_MAIL_PART}(?:\.{_MAIL_PART})*>?",
     _AS_IS),
    (rf"@[A-Za-z_][A-Za-z_0-9]*|#{_LETTER}+", _AS_IS),
    # clitics that stand alone
    (rf"({_APOS}{_CLITIC})[^A-Za-z]|([nN]{_APOS_LIKE}[tT])[^A-Za-z]", QUOTES),
    # dates, numbers, exponents, fractions
    (rf"{_DIGIT}{{1,2}}[-/]{_DIGIT}{{1,2}}[-/]{_DIGIT}{{2,4}}|[-+]?{_NUMBER}", None),
    (r"[⁺⁻₊₋]?(?:[\u2070¹²³\u2074-\u2079]+|[\u2080-\u2089]+)", None),
    (rf"(?:{_DIGIT}{{1,4}}[- \u00A0])?{_DIGIT}{{1,4}}(?:\\?/|\u2044){_DIGIT}{{1,4}}", _SPACES),
    (r"[\u00BC-\u00BE\u2153-\u215E]", _SIGNS),
    (r"-(?i:[LR][RCS]B)-|(?i:pro-|anti-|S(?:&|&amp;)(?:P-500|Ls))", QUOTES),
    # and/or, him/her/it
    (rf"{_MODIFIED}\\?/{_MODIFIED}(?:\\?/{_MODIFIED})?", None),
    # currency; C#, F# and C++
    (r"[A-Z]*\$|[CcFf]?#|[Cc]\+\+", None),
    (r"[\u00A2-\u00A5\x80\u20A0\u20AC\u060B\u0E3F\u20A4\uFFE0\uFFE1\uFFE5\uFFE6]", _SIGNS),
    # abbreviations, initials, '95, words before ".,", file names
    (rf"((?:{_any(ENDING)}|{_any_capitalized(ENDING_CAPITAL)})\.)(?s:..)", None),
    (rf"{_any(TITLES)}\.", None),
    (rf"({_any(_BEFORE_NUMBER)}\.){_BLANK}?{_DIGIT}", None),
    (rf"([A-Za-z])\.{_BLANK}+(?:{_any_capitalized(_SENTENCE_START)}|{_TAG}){_BLANK}", None),
    (r"[A-Za-z](?:\.[A-Za-z])*\.", None),
    (rf"({_APOS}[0-9][0-9]){_BLANK}", None),
    (rf"((?:{_HYPHENED}|{_JOINED}|{_WORD})\.)[,;:\u3001]", None),
    (rf"({_LETTER_OR_DIGIT}+(?:\.{_LETTER_OR_DIGIT}+)*\.{_EXTENSION})(?:{_BLANK}|[.?!,])", None),
    # telephone numbers: (555) 123-4567, 555.123.4567
    (rf"\([0-9]{{2,3}}\)[ \u00A0]?[0-9]{{3,4}}{_GAP}?[0-9]{{3,5}}", _ROUND),
    (rf"\+{{0,2}}{_DIAL}{_GAP}(?:{_DIAL}{_GAP})?[0-9]{{3,4}}{_GAP}?[0-9]{{3,5}}", _ROUND),
    (rf"(?:\+{{0,2}}{_DIAL}\.)?{_DIAL}\.[0-9]{{3,4}}\.[0-9]{{3,5}}", None),
    # a double quote opens before a letter or digit, else it closes
    (r"(\"|&quot;)[A-Za-z0-9$]", "``"),
    (r"\"|&quot;", "''"),
    (r"(?i:&lt;)", "<"),
    (r"(?i:&gt;)", ">"),
    # faces: :-) and (^_^)
    (r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", _ROUND),
    (rf"[-{_EYE}]_[-{_EYE}]|\([-{_EYE}][_.]?[-{_EYE}]\)|\([{_EYE}]-[{_EYE}`]\)", _ROUND),
    # blanks, brackets, runs of punctuation
    (rf"(?:{_BLANK}|(?i:&nbsp;))+", ""),
    (r"[()\[\]{}]", _SIGNS),
    (r"-{2,4}", "--"),
    (r"\.{3,5}|(?:\.[ \u00A0]){2,4}\.|[\u0085\u2026]", "..."),
    (r"-+|@+|_+|\*+|(?:\\\*){1,3}|#+|[?!]+|<<?|>>?", None),
    # t-shirt, O'Neil, 1.5-inch, AT&T
    (_JOINED, None),
    (_HYPHENED, None),
    (r"[A-Z]+(?:(?:&amp;|[+&])[A-Z]+)+", QUOTES),
    # what is left: an opening quote, clitics before letters, other quotes, symbols
    (r"(')[A-Za-z][^ \t\n\r\u00A0]", "`"),
    (rf"{_APOS}{_CLITIC}|[nN]{_APOS_LIKE}[tT]", QUOTES),
    (rf"''|[`\u2018-\u201F\x91-\x94\u2039\u203A\u00AB\u00BB]{{1,2}}|{_APOS}", QUOTES),
    (rf"&(?i:quot|apos);|[{_SYMBOLS}]", None),
]


@cache  # compiled when a text needs them, and not at each start of a script
def rules_for(ascii_alone: bool) -> list[tuple[re.Pattern, str | dict[int, str] | None]]:
    """(compiled pattern, output) of each rule. Those for texts that are ASCII alone leave out the
    marks and numerals of other scripts, which take long to compile."""
    rest = {NUMERIC: "", _ASTRAL: "", _MARKS: _MARKS[0]} if ascii_alone else {}
    compiled = []
    for pattern, output in RULES:
        for characters, instead in rest.items():
            pattern = pattern.replace(characters, instead)
        compiled.append((re.compile(pattern), output))
    return compiled
